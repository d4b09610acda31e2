//! A session that outlives its link: what is sent again, in which order, in which encoding.

use mailboxqtt::session::Limits;

use crate::pair::{
    Heard, LIMITS, Pair, Run, Terms, again, delivery, delivery_of, first_time, puback, pubcomp,
    pubrec,
};

/// [MQTT-4.4.0-1] [MQTT-4.6.0-1]
#[test]
fn resume_sends_again_in_order_with_dup_and_identical_identifiers() {
    let mut pair = Pair::new(Terms::V311);
    pair.deliver(delivery_of(&[Run::new(1, 0, 3), Run::new(2, 3, 3)]));
    assert_eq!(pair.hear().len(), 6);
    pair.say(&[puback(2), pubrec(5)]);
    assert_eq!(pair.hear(), [Heard::PubRel(5)]);
    pair.lose_link();

    pair.resume(Terms::V311, LIMITS);
    pair.deliver(delivery(Run::new(1, 6, 1)));
    let expected = [
        Heard::PubRel(5),
        again(1, 1, 0),
        again(1, 3, 2),
        again(2, 4, 3),
        again(2, 6, 5),
        first_time(1, 7, 6),
    ];
    assert_eq!(pair.hear(), expected);
    assert_eq!(pair.hear(), [], "once per connection");
}

#[test]
fn acknowledged_messages_are_not_sent_again() {
    let mut pair = Pair::new(Terms::V311);
    pair.deliver(delivery_of(&[Run::new(1, 0, 1), Run::new(2, 1, 1)]));
    pair.hear();
    pair.say(&[puback(1), pubrec(2), pubcomp(2)]);
    pair.hear();
    pair.lose_link();
    pair.resume(Terms::V311, LIMITS);
    assert_eq!(pair.hear(), []);
    assert_eq!(pair.session.inflight(), 0);
}

#[test]
fn frames_are_encoded_anew_for_another_version() {
    for (before, after) in [(Terms::V311, Terms::V5), (Terms::V5, Terms::V311)] {
        let version = before.version;
        let mut pair = Pair::new(before);
        pair.deliver(delivery_of(&[
            Run { version, ..Run::new(1, 0, 2) },
            Run { version, ..Run::new(2, 2, 2) },
        ]));
        pair.hear();
        pair.lose_link();
        pair.resume(after, LIMITS);
        // Decoded in the new version, byte for byte a packet of it.
        let expected = [again(1, 1, 0), again(1, 2, 1), again(2, 3, 2), again(2, 4, 3)];
        assert_eq!(pair.hear(), expected);
        pair.say(&[puback(1), puback(2), pubrec(3), pubrec(4)]);
        assert_eq!(pair.hear(), [Heard::PubRel(3), Heard::PubRel(4)]);
    }
}

#[test]
fn downgraded_messages_are_sent_again_with_the_lower_qos() {
    let mut pair = Pair::new(Terms::V311);
    pair.deliver(delivery(Run { from: 2, ..Run::new(1, 0, 2) }));
    pair.hear();
    pair.lose_link();
    pair.resume(Terms::V311, LIMITS);
    assert_eq!(pair.hear(), [again(1, 1, 0), again(1, 2, 1)]);
}

#[test]
fn smaller_receive_maximum_paces_what_is_sent_again() {
    let mut pair = Pair::new(Terms::V5);
    pair.deliver(delivery(Run::new(1, 0, 6)));
    assert_eq!(pair.hear().len(), 6);
    pair.lose_link();

    pair.resume(Terms { receive_max: Some(2), ..Terms::V5 }, LIMITS);
    pair.deliver(delivery(Run::new(1, 6, 1)));
    assert_eq!(pair.hear(), [again(1, 1, 0), again(1, 2, 1)]);
    pair.say(&[puback(2)]);
    assert_eq!(pair.hear(), [again(1, 3, 2)]);
    pair.say(&[puback(1), puback(3)]);
    assert_eq!(pair.hear(), [again(1, 4, 3), again(1, 5, 4)]);
    pair.say(&[puback(4), puback(5)]);
    assert_eq!(pair.hear(), [again(1, 6, 5), first_time(1, 7, 6)]);
}

/// [MQTT-3.3.4-10]: a PUBREL is no PUBLISH, though its message counts until PUBCOMP [MQTT-3.3.4-9].
#[test]
fn pubrels_are_sent_again_in_the_order_of_the_pubrecs_however_small_the_receive_maximum() {
    let mut pair = Pair::new(Terms::V5);
    pair.deliver(delivery(Run::new(2, 0, 6)));
    assert_eq!(pair.hear().len(), 6);
    pair.say(&[pubrec(5), pubrec(2), pubrec(3), pubrec(2)]);
    pair.hear();
    let small = Terms { receive_max: Some(2), ..Terms::V5 };
    for _ in 0..2 {
        pair.lose_link();
        pair.resume(small, LIMITS);
        assert_eq!(pair.hear(), [5, 2, 3].map(Heard::PubRel));
    }
    // Three are over the maximum, two still fill it.
    pair.say(&[pubcomp(2), pubcomp(5)]);
    assert_eq!(pair.hear(), [again(2, 1, 0)]);
    // A message whose turn has not come: its PUBREL goes at once and counts, too.
    pair.say(&[pubrec(6)]);
    assert_eq!(pair.hear(), [Heard::PubRel(6)]);
    pair.say(&[pubcomp(3)]);
    assert_eq!(pair.hear(), []);
    pair.say(&[pubcomp(6)]);
    assert_eq!(pair.hear(), [again(2, 4, 3)]);
    pair.say(&[pubrec(1), pubcomp(1), pubrec(4), pubcomp(4)]);
    assert_eq!(pair.hear(), [Heard::PubRel(1), Heard::PubRel(4)]);
    assert_eq!(pair.session.inflight(), 0);
    assert_eq!(pair.released_bytes, pair.charged_bytes);
}

#[test]
fn late_acknowledgement_of_a_message_that_was_not_sent_again_yet_is_taken() {
    let mut pair = Pair::new(Terms::V5);
    pair.deliver(delivery_of(&[Run::new(1, 0, 3), Run::new(2, 3, 1)]));
    pair.hear();
    pair.lose_link();
    pair.resume(Terms { receive_max: Some(1), ..Terms::V5 }, LIMITS);
    assert_eq!(pair.hear(), [again(1, 1, 0)]);
    pair.say(&[puback(3)]);
    assert_eq!(pair.hear(), [], "it freed no slot of this connection");
    pair.say(&[puback(1)]);
    assert_eq!(pair.hear(), [again(1, 2, 1)]);
    pair.say(&[puback(2)]);
    assert_eq!(pair.hear(), [again(2, 4, 3)]);
}

#[test]
fn partially_sent_run_goes_on_where_it_stopped() {
    let mut pair = Pair::new(Terms { receive_max: Some(3), ..Terms::V5 });
    pair.deliver(delivery(Run::new(1, 0, 8)));
    assert_eq!(pair.hear_numbers(), [0, 1, 2]);
    pair.say(&[puback(2)]);
    assert_eq!(pair.hear_numbers(), [3]);
    pair.lose_link();

    pair.resume(Terms::V311, LIMITS);
    let expected = [
        again(1, 1, 0),
        again(1, 3, 2),
        again(1, 4, 3),
        first_time(1, 5, 4),
        first_time(1, 6, 5),
        first_time(1, 7, 6),
        first_time(1, 8, 7),
    ];
    assert_eq!(pair.hear(), expected);
}

#[test]
fn message_that_became_too_large_is_skipped_and_frees_its_slot() {
    for level in [1, 2] {
        let mut pair = Pair::new(Terms::V5);
        let large = Run { payload_bytes: 100, ..Run::new(level, 0, 2) };
        pair.deliver(delivery_of(&[large, Run::new(level, 2, 1)]));
        assert_eq!(pair.hear_numbers(), [0, 1, 2]);
        pair.lose_link();

        let terms = Terms { receive_max: Some(1), packet_bytes_max: Some(40), ..Terms::V5 };
        pair.resume(terms, LIMITS);
        assert_eq!(pair.hear(), [again(level, 3, 2)], "QoS {level}");
        assert_eq!(pair.too_large, 2);
        assert_eq!(pair.session.inflight(), 1);
        match level {
            1 => pair.say(&[puback(3)]),
            _ => pair.say(&[pubrec(3), pubcomp(3)]),
        };
        pair.hear();
        assert_eq!(pair.session.inflight(), 0);
        assert_eq!(pair.released_bytes, pair.charged_bytes);
    }
}

#[test]
fn answers_of_the_lost_connection_are_not_given_to_the_next_one() {
    let mut pair = Pair::new(Terms::V311);
    let receipts = pair.say(&[crate::pair::publish("t", b"0000", crate::pair::flow(1, 9, false))]);
    pair.lose_link();
    pair.resume(Terms::V311, LIMITS);
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), []);
}

#[test]
fn window_may_grow_with_the_next_connection() {
    let mut pair = Pair::new(Terms { receive_max: Some(1), ..Terms::V5 });
    pair.deliver(delivery(Run::new(1, 0, 40)));
    assert_eq!(pair.hear_numbers(), [0]);
    pair.lose_link();
    pair.resume(
        Terms { receive_max: Some(30), ..Terms::V5 },
        Limits { inflight_max: 20, ..LIMITS },
    );
    assert_eq!(pair.hear().len(), 20);
}
