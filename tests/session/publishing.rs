//! From the client to the shards: acknowledgements, duplicates, the Receive Maximum.

use mailboxqtt::session::{CloseReason, Limits};

use crate::pair::{Heard, LIMITS, Pair, SHARDS, Terms, flow, publish, pubrec, pubrel, qos};

#[test]
fn puback_waits_until_all_touched_shards_accepted() {
    let mut pair = Pair::new(Terms::V311);
    let topics: Vec<String> = (0..3).map(|shard| pair.topic_of(shard)).collect();
    let packets: Vec<_> = topics
        .iter()
        .zip(1..)
        .map(|(topic, id)| publish(topic, b"0000", flow(1, id, false)))
        .collect();
    let receipts = pair.say(&packets);
    assert_eq!(receipts.len(), 3);

    pair.accept(&receipts[2]);
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), []);
    pair.accept(&receipts[1]);
    assert_eq!(pair.hear(), [Heard::PubAck(1, 0), Heard::PubAck(2, 0), Heard::PubAck(3, 0)]);
}

#[test]
fn pubacks_leave_in_order_when_shards_answer_out_of_order() {
    let mut pair = Pair::new(Terms::V311);
    let topics: Vec<String> = (0..SHARDS).map(|shard| pair.topic_of(shard)).collect();
    let mut receipts = Vec::new();
    for (topic, id) in topics.iter().zip([9, 3, 60_000, 4]) {
        receipts.extend(pair.say(&[publish(topic, b"0000", flow(1, id, false))]));
    }
    for receipt in [&receipts[3], &receipts[1], &receipts[2]] {
        pair.accept(receipt);
        assert_eq!(pair.hear(), []);
    }
    pair.accept(&receipts[0]);
    let ids = [9, 3, 60_000, 4].map(|id| Heard::PubAck(id, 0));
    assert_eq!(pair.hear(), ids);
}

#[test]
fn qos_1_and_qos_2_are_answered_in_the_order_of_their_publishes() {
    let mut pair = Pair::new(Terms::V311);
    let receipts = pair.say(&[
        publish("t", b"0000", flow(2, 5, false)),
        publish("t", b"0001", flow(1, 6, false)),
        publish("t", b"0002", flow(0, 0, false)),
        publish("t", b"0003", flow(2, 7, false)),
    ]);
    pair.accept(&receipts[0]);
    let answers = [Heard::PubRec(5, 0), Heard::PubAck(6, 0), Heard::PubRec(7, 0)];
    assert_eq!(pair.hear(), answers);
}

#[test]
fn qos_0_alone_asks_for_no_receipt() {
    let mut pair = Pair::new(Terms::V5);
    assert!(pair.say(&[publish("t", b"0000", flow(0, 0, false))]).is_empty());
    assert_eq!(pair.routed.len(), 1);
    assert_eq!(pair.hear(), []);
}

/// [MQTT-4.3.3-10]
#[test]
fn qos_2_duplicate_before_acceptance_is_not_routed_and_waits_for_it() {
    let mut pair = Pair::new(Terms::V311);
    let receipts = pair.say(&[publish("t", b"0000", flow(2, 5, false))]);
    assert!(pair.say(&[publish("t", b"0000", flow(2, 5, true))]).is_empty());
    assert_eq!(pair.hear(), [], "the message is not owned yet");
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), [Heard::PubRec(5, 0), Heard::PubRec(5, 0)]);
    assert_eq!(pair.routed.len(), 1);
}

/// [MQTT-4.3.3-10]
#[test]
fn qos_2_duplicate_after_acceptance_is_answered_at_once_and_not_routed() {
    let mut pair = Pair::new(Terms::V311);
    let receipts = pair.say(&[publish("t", b"0000", flow(2, 5, false))]);
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), [Heard::PubRec(5, 0)]);
    assert!(pair.say(&[publish("t", b"0000", flow(2, 5, true))]).is_empty());
    assert_eq!(pair.hear(), [Heard::PubRec(5, 0)]);
    assert_eq!(pair.routed.len(), 1);
}

#[test]
fn qos_2_duplicate_on_the_next_connection_waits_for_receipts_of_the_last_one() {
    let mut pair = Pair::new(Terms::V311);
    let receipts = pair.say(&[publish("t", b"0000", flow(2, 5, false))]);
    pair.lose_link();
    pair.resume(Terms::V5, LIMITS);
    pair.say(&[publish("t", b"0000", flow(2, 5, true))]);
    assert_eq!(pair.hear(), []);
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), [Heard::PubRec(5, 0)]);
    assert_eq!(pair.routed.len(), 1);
}

#[test]
fn identifier_is_new_again_after_pubrel() {
    let mut pair = Pair::new(Terms::V311);
    for _ in 0..3 {
        let receipts = pair.say(&[publish("t", b"0000", flow(2, 5, false))]);
        pair.accept(&receipts[0]);
        pair.say(&[pubrel(5)]);
        assert_eq!(pair.hear(), [Heard::PubRec(5, 0), Heard::PubComp(5)]);
    }
    assert_eq!(pair.routed.len(), 3);
    assert!(pair.routed.iter().all(|message| message.qos == qos(2)));
}

/// [MQTT-3.3.4-7]
#[test]
fn receive_maximum_exceeded_closes_a_v5_client_with_0x93() {
    for level in [1, 2] {
        let mut pair = Pair::new(Terms::V5);
        for id in 1..=LIMITS.receive_max {
            pair.say(&[publish("t", b"0000", flow(level, id, false))]);
        }
        assert_eq!(pair.close_reason(), None, "QoS {level}");
        pair.say(&[publish("t", b"0000", flow(level, 11, false))]);
        let reason = pair.close_reason().unwrap();
        assert_eq!(reason, CloseReason::ReceiveMaximumExceeded(10));
        pair.session.say_goodbye(&reason, &mut pair.out);
        assert_eq!(pair.hear(), [Heard::Disconnect(0x93)], "QoS {level}");
    }
}

#[test]
fn acknowledged_messages_do_not_count_against_the_receive_maximum() {
    let mut pair = Pair::new(Terms::V5);
    for id in 1..=1_000 {
        let receipts = pair.say(&[publish("t", b"0000", flow(1, id, false))]);
        pair.accept(&receipts[0]);
    }
    for id in 1..=1_000 {
        let receipts = pair.say(&[publish("t", b"0000", flow(2, id, false))]);
        pair.accept(&receipts[0]);
        pair.say(&[pubrel(id)]);
    }
    assert_eq!(pair.close_reason(), None);
}

#[test]
fn v3_client_has_no_receive_maximum() {
    let mut pair = Pair::new(Terms::V311);
    for id in 1..=1_000 {
        pair.say(&[publish("t", b"0000", flow(1, id, false))]);
    }
    assert_eq!(pair.close_reason(), None);
}

#[test]
fn pubrec_with_an_error_frees_the_identifier() {
    let mut pair = Pair::with_limits(Terms::V5, Limits { receive_max: 1, ..LIMITS });
    for _ in 0..3 {
        pair.say(&[publish("$SYS/x", b"0000", flow(2, 5, false))]);
        assert_eq!(pair.hear(), [Heard::PubRec(5, 0x87)]);
    }
    assert_eq!(pair.close_reason(), None);
    assert!(pair.routed.is_empty());
}

#[test]
fn acknowledgement_of_nothing_is_answered_and_harmless() {
    let mut pair = Pair::new(Terms::V5);
    pair.say(&[pubrec(77), pubrel(78)]);
    assert_eq!(pair.hear(), [Heard::PubRel(77), Heard::PubComp(78)]);
    assert_eq!(pair.close_reason(), None);
}
