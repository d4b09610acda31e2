//! Reason codes and Reason Strings: what a v5 client is told when something of it is refused, and
//! when nobody has subscribed to what it publishes.

use mailboxqtt::codec::{
    Ack, Connect, DecodeError, Packet, Properties, PropertiesBuf, Property, Publish, ReasonCode,
    Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe, UnsubscribeFiltersBuf, Will,
    decode, frame_len,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{ClientId, Qos};
use mailboxqtt::session::{CloseReason, Limits, negotiate};
use mailboxqtt::topic::check_topic_name;

use crate::pair::{
    Heard, LIMITS, Pair, Run, Terms, delivery, flow, pid, puback, pubcomp, publish, pubrec, pubrel,
};

const CHECKED: Limits = Limits { check_payload_format: true, subscriptions_max: 1, ..LIMITS };
const NOT_TEXT: &[u8] = b"\xFF\xFF\xFF\xFF";

/// What a packet from the session says about its reason.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Said {
    /// First byte.
    packet: u8,
    codes: Vec<u8>,
    why: Option<String>,
    /// Bytes of the packet.
    len: usize,
}

/// A client's mistake.
type Mistake = fn(&mut Pair);

/// Each kind of acknowledgement with each code that says no: its first byte, the code, the sentence.
const MISTAKES: [(u8, u8, &str, Mistake); 10] = [
    (0x40, 0x87, "$SYS/ topics belong to the broker: publish to another topic", |pair| {
        drop(pair.say(&[publish("$SYS/x", b"0000", flow(1, 5, false))]));
    }),
    (0x50, 0x87, "$SYS/ topics belong to the broker: publish to another topic", |pair| {
        drop(pair.say(&[publish("$SYS/x", b"0000", flow(2, 5, false))]));
    }),
    (0x40, 0x99, NO_TEXT, |pair| drop(pair.say_text(1, NOT_TEXT))),
    (0x50, 0x99, NO_TEXT, |pair| drop(pair.say_text(2, NOT_TEXT))),
    (0x62, 0x92, NOTHING_OPEN, |pair| drop(pair.say(&[pubrec(7)]))),
    (0x70, 0x92, NOTHING_OPEN, |pair| drop(pair.say(&[pubrel(7)]))),
    (
        0x90,
        0x8F,
        "filter 1: `#` is the last level of a topic filter, but one is at byte 2",
        |pair| pair.say_filters(&["a/#/b"], &[]),
    ),
    (
        0x90,
        0x8F,
        "filter 2: a wildcard fills its whole level, but the one at byte 1 does not",
        |pair| pair.say_filters(&["a", "b+", ""], &[]),
    ),
    (
        0x90,
        0x97,
        "filter 2: a session has at most 1 subscriptions: unsubscribe from one first",
        |pair| pair.say_filters(&["a", "b"], &[]),
    ),
    (0xB0, 0x8F, "filter 2: a topic filter has at least one character", |pair| {
        pair.say_filters(&[], &["a", ""]);
    }),
];
const NO_TEXT: &str =
    "the payload is not UTF-8, as its format indicator says: correct it or leave the indicator out";
const NOTHING_OPEN: &str = "no QoS 2 message is open under this packet identifier: forget it";

/// [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1] [MQTT-3.9.3-2] [MQTT-3.11.3-2]
#[test]
fn every_refusal_has_its_code_and_a_sentence() {
    for (packet, code, why, mistake) in MISTAKES {
        let said = answer(Terms::V5, mistake);
        assert_eq!((said.packet, said.why.as_deref()), (packet, Some(why)));
        assert!(said.codes.contains(&code), "{said:?}");
    }
}

/// [MQTT-3.4.2-2] [MQTT-3.5.2-2] [MQTT-3.6.2-2] [MQTT-3.7.2-2] [MQTT-3.9.2-1] [MQTT-3.11.2-1]
#[test]
fn sentence_is_left_out_when_the_client_takes_no_packet_of_that_size() {
    for (packet, code, why, mistake) in MISTAKES {
        let full = answer(Terms::V5, mistake);
        let largest = Terms { packet_bytes_max: Some(full.len as u32), ..Terms::V5 };
        assert_eq!(answer(largest, mistake), full);
        let smaller = Terms { packet_bytes_max: Some(full.len as u32 - 1), ..Terms::V5 };
        let bare = answer(smaller, mistake);
        assert_eq!((bare.packet, bare.codes, bare.why), (packet, full.codes, None), "{why}");
        assert!(bare.len < full.len - why.len(), "{code:#x}");
    }
}

/// [MQTT-3.1.2-29]
#[test]
fn sentence_is_left_out_when_the_client_wants_no_problem_information() {
    for (packet, _, why, mistake) in MISTAKES {
        let full = answer(Terms::V5, mistake);
        let said = answer(Terms { problem_information: Some(false), ..Terms::V5 }, mistake);
        assert_eq!((said.packet, said.codes, said.why), (packet, full.codes.clone(), None));
        let said = answer(Terms { problem_information: Some(true), ..Terms::V5 }, mistake);
        assert_eq!(said, full, "{why}");
    }
}

/// [MQTT-3.1.2-24]: what cannot be left out ends the connection instead.
#[test]
fn suback_that_is_too_large_without_its_sentence_closes_with_0x95() {
    for (count, is_too_large) in [(15, false), (16, true)] {
        let mut pair = Pair::new(Terms { packet_bytes_max: Some(20), ..Terms::V5 });
        pair.say_filters(&vec!["a/#/b"; count], &[]);
        let [.., last] = &said(&mut pair)[..] else {
            let reason = pair.close_reason().unwrap();
            assert_eq!((is_too_large, &reason), (true, &CloseReason::AnswerTooLarge(21)));
            assert_eq!(goodbye(&mut pair, &reason).unwrap().codes, [0x95]);
            continue;
        };
        assert_eq!((is_too_large, last.codes.len(), &last.why), (false, count, &None));
        assert_eq!(pair.close_reason(), None);
    }
}

#[test]
fn client_before_v5_hears_no_reason() {
    for (packet, _, why, mistake) in MISTAKES {
        if why == NO_TEXT {
            continue;
        }
        let said = answer(Terms::V311, mistake);
        assert_eq!((said.packet, said.why), (packet, None));
        assert!(said.codes.iter().all(|code| [0, 1, 0x80].contains(code)), "{:?}", said.codes);
    }
}

#[test]
fn good_news_is_four_bytes_in_every_version() {
    for terms in [Terms::V5, Terms::V311] {
        let mut pair = Pair::new(terms);
        let receipts = pair.say(&[
            publish("t", b"0000", flow(1, 5, false)),
            publish("t", b"0000", flow(2, 6, false)),
        ]);
        pair.accept(&receipts[0]);
        pair.say(&[pubrel(6)]);
        let expected = [[0x40, 2, 0, 5], [0x50, 2, 0, 6], [0x70, 2, 0, 6]];
        assert_eq!(pair.out.bytes, expected.concat());
    }
}

/// The standard has no answer to a PUBACK or PUBCOMP that nothing waits for: they are counted.
#[test]
fn acknowledgements_of_nothing_are_counted() {
    let mut pair = Pair::new(Terms::V5);
    pair.say(&[puback(9), pubcomp(9)]);
    assert_eq!((pair.out.bytes.len(), pair.out.tally.acks_unknown), (0, 2));
    pair.say(&[pubrec(9), pubrel(9)]);
    assert_eq!(pair.out.tally.acks_unknown, 4);
    assert_eq!(pair.close_reason(), None);
}

#[test]
fn message_is_refused_by_puback_and_pubrec_and_not_by_pubcomp() {
    let said = |id, reason| Ack { reason, ..Ack::success(pid(id)) };
    let mut pair = Pair::new(Terms::V5);
    pair.deliver(delivery(Run::new(2, 0, 2)));
    pair.deliver(delivery(Run::new(1, 2, 1)));
    assert_eq!(pair.hear_numbers(), [0, 1, 2]);
    pair.say(&[pubrec(1), Packet::PubComp(said(1, ReasonCode::PacketIdentifierNotFound))]);
    assert_eq!(pair.out.tally.refused, 0);
    pair.say(&[Packet::PubRec(said(2, ReasonCode::NotAuthorized))]);
    pair.say(&[Packet::PubAck(said(3, ReasonCode::NotAuthorized))]);
    assert_eq!(pair.out.tally.refused, 2);
}

/// Every cause has a code that DISCONNECT may carry [MQTT-3.14.2-1], and its sentence, also for a client
/// that wants no problem information.
#[test]
fn disconnect_has_the_code_of_its_cause_and_a_sentence() {
    let wildcard = || check_topic_name("a/+").unwrap_err();
    for (reason, code) in [
        (CloseReason::KeepAliveTimeout(60), 0x8D),
        (CloseReason::TakenOver, 0x8E),
        (CloseReason::ShuttingDown, 0x8B),
        (CloseReason::Protocol("second CONNECT"), 0x82),
        (CloseReason::ReceiveMaximumExceeded(10), 0x93),
        (CloseReason::AnswerTooLarge(9), 0x95),
        (CloseReason::TopicAliasInvalid, 0x94),
        (CloseReason::PayloadFormatInvalid, 0x99),
        (CloseReason::RetainNotSupported, 0x9A),
        (CloseReason::QosNotSupported(2), 0x9B),
        (CloseReason::SubscriptionIdentifiersNotSupported, 0xA1),
        (DecodeError::PublishQos.into(), 0x81),
        (DecodeError::EmptyTopic.into(), 0x82),
        (DecodeError::TopicName(wildcard()).into(), 0x90),
        (DecodeError::ResponseTopic(wildcard()).into(), 0x82),
        (DecodeError::ZeroTopicAlias.into(), 0x94),
        (DecodeError::PacketTooLarge { size: 10, limit: 9 }.into(), 0x95),
        // Only a second CONNECT can have these, and DISCONNECT has no 0x84.
        (DecodeError::ProtocolName.into(), 0x82),
        (DecodeError::UnsupportedProtocolVersion { level: 9 }.into(), 0x82),
    ] {
        let silent = Terms { problem_information: Some(false), ..Terms::V5 };
        for terms in [Terms::V5, silent] {
            let said = goodbye(&mut Pair::new(terms), &reason).unwrap();
            assert_eq!((said.packet, &said.codes[..]), (0xE0, &[code][..]), "{reason}");
            assert_eq!(said.why, Some(reason.to_string()));
        }
    }
}

#[test]
fn client_that_left_or_is_older_than_v5_hears_no_disconnect() {
    let left = [
        CloseReason::Disconnected,
        CloseReason::DisconnectedWithReason(4),
        CloseReason::Lost("reset".to_owned()),
    ];
    for reason in left {
        assert_eq!(goodbye(&mut Pair::new(Terms::V5), &reason), None);
    }
    assert_eq!(goodbye(&mut Pair::new(Terms::V311), &CloseReason::TakenOver), None);
}

/// [MQTT-3.14.2-3]
#[test]
fn disconnect_leaves_out_its_sentence_for_its_size() {
    let full = goodbye(&mut Pair::new(Terms::V5), &CloseReason::TakenOver).unwrap();
    let heard = |max| {
        let mut pair = Pair::new(Terms { packet_bytes_max: Some(max), ..Terms::V5 });
        let said = goodbye(&mut pair, &CloseReason::TakenOver);
        assert_eq!(pair.close_reason(), None);
        said
    };
    let len = full.len as u32;
    assert_eq!(heard(len), Some(full));
    let bare = Said { packet: 0xE0, codes: vec![0x8E], why: None, len: 3 };
    assert_eq!(heard(len - 1), Some(bare));
}

/// MQTT 5, section 3.3.2.3.2, and [MQTT-3.3.2-4] where nobody asked for the check.
#[test]
fn message_that_is_not_the_text_it_says_is_refused_when_that_is_checked() {
    for level in [1, 2] {
        let mut pair = Pair::with_limits(Terms::V5, CHECKED);
        for _ in 0..3 {
            assert!(pair.say_text(level, NOT_TEXT).is_empty());
            assert!(matches!(pair.hear()[..], [Heard::PubAck(5, 0x99) | Heard::PubRec(5, 0x99)]));
        }
        assert!(pair.routed.is_empty());
        pair.say_text(level, "Grüße".as_bytes());
        assert_eq!(pair.routed.len(), 1, "QoS {level}");

        let mut pair = Pair::new(Terms::V5);
        pair.say_text(level, NOT_TEXT);
        assert_eq!(pair.routed.len(), 1, "QoS {level}");
    }
}

#[test]
fn qos_0_message_that_is_not_the_text_it_says_closes_with_0x99() {
    let mut pair = Pair::with_limits(Terms::V5, CHECKED);
    pair.say_text(0, NOT_TEXT);
    assert_eq!(pair.out.tally.payload_format_invalid, 1);
    assert!(pair.routed.is_empty());
    let reason = pair.close_reason().unwrap();
    assert_eq!(goodbye(&mut pair, &reason).unwrap().codes, [0x99]);
}

#[test]
fn payload_that_does_not_say_it_is_text_may_be_anything() {
    let mut pair = Pair::with_limits(Terms::V5, CHECKED);
    pair.say(&[publish("t", NOT_TEXT, flow(0, 0, false))]);
    let mut properties = PropertiesBuf::new();
    properties.push(Property::PayloadFormatIndicator(false));
    pair.say(&[message(0, &properties, NOT_TEXT)]);
    assert_eq!((pair.routed.len(), pair.close_reason()), (2, None));
}

#[test]
fn refused_messages_are_counted_by_reason() {
    let mut pair = Pair::with_limits(Terms::V5, CHECKED);
    for level in [1, 2] {
        pair.say_text(level, NOT_TEXT);
        pair.say(&[publish("$SYS/x", b"0000", flow(level, 6, false))]);
    }
    pair.say(&[publish("$SYS/x", b"0000", flow(0, 0, false))]);
    assert_eq!((pair.out.tally.payload_format_invalid, pair.out.tally.not_authorized), (2, 3));
    assert_eq!(pair.close_reason(), None);
}

#[test]
fn will_that_is_not_the_text_it_says_is_refused_with_the_connect() {
    let mut properties = PropertiesBuf::new();
    properties.push(Property::PayloadFormatIndicator(true));
    let will = Will {
        topic: "t",
        payload: NOT_TEXT,
        qos: Qos::AtMostOnce,
        retain: false,
        properties: properties.as_properties(),
    };
    let connect = Connect {
        version: V5,
        clean_start: true,
        keep_alive_s: 0,
        client_id: "client",
        properties: Properties::EMPTY,
        will: Some(will),
        user_name: None,
        password: None,
    };
    let negotiated = |limits| negotiate(&connect, limits, || ClientId::new("spare"));
    let refused = |limits| negotiated(limits).err().map(|refusal| refusal.reason);
    assert_eq!(refused(&CHECKED), Some(ReasonCode::PayloadFormatInvalid));
    assert_eq!(refused(&LIMITS), None);
}

#[test]
fn messages_for_nobody_are_answered_with_0x10_in_their_place() {
    let mut pair = Pair::new(Terms::V5);
    let topics = [pair.topic_of(0), pair.topic_of(1)];
    let packets: Vec<_> = (1..=6)
        .map(|id| publish(&topics[usize::from(id % 2)], b"0000", flow(1 + id as u8 / 4, id, false)))
        .collect();
    let receipts = pair.say(&packets);
    assert_eq!(receipts.len(), 2);
    // Behind these, and with one of their identifiers.
    let later = pair.say(&[publish("t", b"0000", flow(1, 2, false))]);
    pair.accept(&later[0]);
    pair.accept_unmatched(&receipts[0], &[3, 5]);
    assert_eq!(pair.hear(), []);
    pair.accept_unmatched(&receipts[1], &[6, 2]);
    let expected = [
        Heard::PubAck(1, 0),
        Heard::PubAck(2, 0x10),
        Heard::PubAck(3, 0x10),
        Heard::PubRec(4, 0),
        Heard::PubRec(5, 0x10),
        Heard::PubRec(6, 0x10),
        Heard::PubAck(2, 0),
    ];
    assert_eq!(pair.hear(), expected);
}

/// The number says it all.
#[test]
fn answer_to_a_message_for_nobody_has_no_sentence() {
    let mut pair = Pair::new(Terms::V5);
    let receipts = pair.say(&[publish("t", b"0000", flow(1, 5, false))]);
    pair.accept_unmatched(&receipts[0], &[5]);
    assert_eq!(pair.out.bytes, [0x40, 3, 0, 5, 0x10]);
}

/// [MQTT-4.3.3-8] [MQTT-4.3.3-10] [MQTT-4.3.3-11]: PUBREC 0x10 is a success.
#[test]
fn qos_2_message_for_nobody_goes_on_and_is_answered_alike_each_time() {
    let mut pair = Pair::new(Terms::V5);
    let first = publish("t", b"0000", flow(2, 5, false));
    let again = publish("t", b"0000", flow(2, 5, true));
    let receipts = pair.say(&[first]);
    pair.say(&[again]);
    pair.accept_unmatched(&receipts[0], &[5]);
    pair.say(&[again]);
    assert_eq!(pair.hear(), vec![Heard::PubRec(5, 0x10); 3]);

    pair.lose_link();
    pair.resume(Terms::V5, LIMITS);
    pair.say(&[again]);
    assert_eq!(pair.hear(), [Heard::PubRec(5, 0x10)]);
    pair.say(&[pubrel(5)]);
    assert_eq!(said(&mut pair)[0].codes, [0]);
    assert_eq!(pair.routed.len(), 1);

    let receipts = pair.say(&[first]);
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), [Heard::PubRec(5, 0)]);
    assert_eq!(pair.routed.len(), 2);
}

/// The receipt may be about an earlier message with the same identifier.
#[test]
fn what_a_receipt_says_is_forgotten_with_its_connection() {
    let mut pair = Pair::new(Terms::V5);
    let old = pair.say(&[publish("t", b"0000", flow(1, 5, false))]);
    pair.lose_link();
    pair.resume(Terms::V5, LIMITS);
    let new = pair.say(&[publish("t", b"0001", flow(2, 5, false))]);
    pair.accept_unmatched(&old[0], &[5]);
    pair.accept(&new[0]);
    assert_eq!(pair.hear(), [Heard::PubRec(5, 0)]);
}

/// [MQTT-4.3.3-9] [MQTT-4.3.3-10]: one answer to one identifier, whatever comes under it.
#[test]
fn repeated_message_is_answered_as_the_first_time_before_and_after_the_answer() {
    let mut pair = Pair::new(Terms::V5);
    let receipts = pair.say(&[
        publish("t", b"0000", flow(2, 5, false)),
        publish("$SYS/x", b"0001", flow(2, 6, false)),
    ]);
    pair.say(&[publish("$SYS/x", b"0001", flow(2, 6, true))]);
    pair.say(&[publish("$SYS/x", b"0000", flow(2, 5, true))]);
    assert_eq!(pair.hear(), []);
    pair.accept(&receipts[0]);
    let refused = Heard::PubRec(6, 0x87);
    let accepted = Heard::PubRec(5, 0);
    assert_eq!(pair.hear(), [accepted.clone(), refused.clone(), refused, accepted.clone()]);

    // 5 is known until PUBREL, 6 is free and may be used for a message that is allowed.
    let receipts = pair.say(&[
        publish("$SYS/x", b"0000", flow(2, 5, true)),
        publish("t", b"0002", flow(2, 6, false)),
    ]);
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), [accepted, Heard::PubRec(6, 0)]);
    assert_eq!(
        pair.routed.iter().map(|routed| routed.number).collect::<Vec<_>>(),
        [u32::from_be_bytes(*b"0000"), u32::from_be_bytes(*b"0002"),]
    );
}

/// [MQTT-4.3.3-9]: also if the connection was lost before the client was told.
#[test]
fn identifier_of_a_message_that_was_refused_to_a_lost_connection_is_free() {
    let mut pair = Pair::new(Terms::V5);
    let receipts = pair.say(&[
        publish("t", b"0000", flow(2, 5, false)),
        publish("$SYS/x", b"0001", flow(2, 6, false)),
    ]);
    pair.lose_link();
    pair.resume(Terms::V5, LIMITS);
    pair.accept(&receipts[0]);
    pair.say(&[publish("$SYS/x", b"0001", flow(2, 6, true))]);
    assert_eq!(pair.hear(), [Heard::PubRec(6, 0x87)]);
    let receipts = pair.say(&[publish("t", b"0002", flow(2, 6, false))]);
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), [Heard::PubRec(6, 0)]);
    assert_eq!(pair.routed.len(), 2);
}

#[test]
fn client_before_v5_hears_success_for_a_message_that_a_v5_client_published_to_nobody() {
    let mut pair = Pair::new(Terms::V5);
    let receipts = pair.say(&[publish("t", b"0000", flow(2, 5, false))]);
    pair.accept_unmatched(&receipts[0], &[5]);
    pair.lose_link();
    pair.out.bytes.clear();
    pair.resume(Terms::V311, LIMITS);
    pair.say(&[publish("t", b"0000", flow(2, 5, true))]);
    assert_eq!(pair.out.bytes, [0x50, 2, 0, 5]);
}

impl Pair {
    /// A message with identifier 5 that says it is text.
    fn say_text(&mut self, level: u8, payload: &[u8]) -> Vec<crate::pair::Receipt> {
        let mut properties = PropertiesBuf::new();
        properties.push(Property::PayloadFormatIndicator(true));
        self.say(&[message(level, &properties, payload)])
    }

    /// SUBSCRIBE or UNSUBSCRIBE, whichever has filters.
    fn say_filters(&mut self, subscribe: &[&str], unsubscribe: &[&str]) {
        let (id, properties) = (pid(5), Properties::EMPTY);
        let mut list = SubscribeFiltersBuf::new();
        for filter in subscribe {
            list.push(filter, SubscribeOptions::new(Qos::AtLeastOnce));
        }
        if !subscribe.is_empty() {
            let packet = Subscribe { id, properties, filters: list.as_filters() };
            self.say(&[Packet::Subscribe(packet)]);
        }
        let mut list = UnsubscribeFiltersBuf::new();
        for filter in unsubscribe {
            list.push(filter);
        }
        if !unsubscribe.is_empty() {
            let packet = Unsubscribe { id, properties, filters: list.as_filters() };
            self.say(&[Packet::Unsubscribe(packet)]);
        }
    }

    /// The shards have done what they were asked for.
    fn settle(&mut self) {
        if !self.requests().is_empty() {
            self.session.handle_part_done(0, 1, None, &mut self.out);
        }
    }
}

/// The only packet that answers `mistake`, and the connection goes on.
fn answer(terms: Terms, mistake: Mistake) -> Said {
    let mut pair = Pair::with_limits(terms, CHECKED);
    mistake(&mut pair);
    pair.settle();
    assert_eq!(pair.close_reason(), None);
    let [said] = &said(&mut pair)[..] else { panic!("not one answer") };
    said.clone()
}

fn goodbye(pair: &mut Pair, reason: &CloseReason) -> Option<Said> {
    pair.session.say_goodbye(reason, &mut pair.out);
    said(pair).pop()
}

/// What the session has written.
fn said(pair: &mut Pair) -> Vec<Said> {
    let bytes = std::mem::take(&mut pair.out.bytes);
    let version = pair.session.link().version;
    let mut rest = &bytes[..];
    let mut all = Vec::new();
    while !rest.is_empty() {
        let len = frame_len(rest, u32::MAX).unwrap().unwrap();
        let (codes, properties) = match decode(&rest[..len], version).unwrap() {
            Packet::PubAck(ack)
            | Packet::PubRec(ack)
            | Packet::PubRel(ack)
            | Packet::PubComp(ack) => (vec![ack.reason.as_u8()], ack.properties),
            Packet::SubAck(ack) => (ack.reasons.to_vec(), ack.properties),
            Packet::UnsubAck(ack) => (ack.reasons.to_vec(), ack.properties),
            Packet::Disconnect(last) => (vec![last.reason.as_u8()], last.properties),
            other => panic!("{other:?}"),
        };
        let why = properties.reason_string().map(str::to_owned);
        assert!(version == V5 || properties.is_empty() && version == V311);
        all.push(Said { packet: rest[0], codes, why, len });
        rest = &rest[len..];
    }
    all
}

/// A PUBLISH with identifier 5.
fn message<'a>(level: u8, properties: &'a PropertiesBuf, payload: &'a [u8]) -> Packet<'a> {
    let (delivery, properties) = (flow(level, 5, false), properties.as_properties());
    Packet::Publish(Publish { topic: "t", payload, properties, delivery, retain: false })
}
