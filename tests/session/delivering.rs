//! From the shards to the client: windows, identifiers, downgrades, sizes, what is given back.

use std::collections::{HashMap, VecDeque};

use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::session::{Limits, OUTPUT_BYTES_MAX};
use proptest::prelude::*;

use crate::pair::{
    Heard, LIMITS, Pair, Run, Terms, delivery, delivery_of, first_time, puback, pubcomp, pubrec,
};

/// [MQTT-3.3.4-9]
#[test]
fn window_holds_messages_back_until_an_acknowledgement_frees_a_slot() {
    let mut pair = Pair::new(Terms { receive_max: Some(3), ..Terms::V5 });
    pair.deliver(delivery(Run::new(1, 0, 5)));
    assert_eq!(pair.hear_numbers(), [0, 1, 2]);
    assert_eq!(pair.hear(), []);
    pair.say(&[puback(1), puback(2)]);
    assert_eq!(pair.hear(), [first_time(1, 4, 3), first_time(1, 5, 4)]);
}

#[test]
fn own_limit_holds_where_the_client_names_none_or_a_higher_one() {
    for terms in [Terms::V311, Terms { receive_max: Some(60_000), ..Terms::V5 }] {
        let mut pair = Pair::new(terms);
        pair.deliver(delivery(Run::new(1, 0, 100)));
        assert_eq!(pair.hear().len(), usize::from(LIMITS.inflight_max));
    }
}

#[test]
fn qos_2_holds_its_slot_from_publish_to_pubcomp() {
    let mut pair = Pair::new(Terms { receive_max: Some(1), ..Terms::V5 });
    pair.deliver(delivery(Run::new(2, 0, 2)));
    assert_eq!(pair.hear(), [first_time(2, 1, 0)]);
    pair.say(&[pubrec(1)]);
    assert_eq!(pair.hear(), [Heard::PubRel(1)]);
    pair.say(&[pubcomp(1)]);
    assert_eq!(pair.hear(), [first_time(2, 2, 1)]);
}

#[test]
fn out_of_order_acknowledgements_free_the_window() {
    let mut pair = Pair::new(Terms { receive_max: Some(3), ..Terms::V5 });
    pair.deliver(delivery(Run::new(1, 0, 9)));
    assert_eq!(pair.hear_numbers(), [0, 1, 2]);
    pair.say(&[puback(3)]);
    assert_eq!(pair.hear(), [first_time(1, 4, 3)]);
    pair.say(&[puback(2), puback(4)]);
    assert_eq!(pair.hear(), [first_time(1, 5, 4), first_time(1, 6, 5)]);
    pair.say(&[puback(1), puback(1), puback(4)]);
    assert_eq!(pair.hear(), [first_time(1, 7, 6)], "an acknowledgement counts once");
}

/// [MQTT-2.2.1-3]
#[test]
fn no_identifier_is_used_twice_in_flight_over_two_hundred_thousand_messages() {
    const MESSAGES: u32 = 200_000;
    let limits = Limits { inflight_max: 500, ..LIMITS };
    let mut pair = Pair::with_limits(Terms::V311, limits);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut open: HashMap<u16, u32> = HashMap::new();
    let mut order: VecDeque<u16> = VecDeque::new();
    let (mut sent, mut heard) = (0, 0);
    while heard < MESSAGES || !order.is_empty() {
        if sent < MESSAGES {
            let count = rng.u32(1..=300).min(MESSAGES - sent);
            pair.deliver(delivery(Run::new(1, sent, count)));
            sent += count;
        }
        for packet in pair.hear() {
            let Heard::Publish(message) = packet else { panic!("{packet:?}") };
            assert_eq!(message.number, heard);
            assert_eq!(open.insert(message.id, message.number), None, "{}", message.id);
            assert!(open.len() <= 500);
            order.push_back(message.id);
            heard += 1;
        }
        for _ in 0..rng.usize(0..=order.len()) {
            // Mostly the oldest, at times one from anywhere; a few stay open for long.
            let at = if rng.u8(..) < 20 { rng.usize(..order.len()) } else { 0 };
            let id = order.remove(at).unwrap();
            open.remove(&id);
            pair.say(&[puback(id)]);
        }
    }
    assert_eq!(pair.session.inflight(), 0);
}

#[test]
fn oldest_message_unacknowledged_while_others_wrap_around_keeps_its_identifier() {
    let mut pair = Pair::new(Terms { receive_max: Some(2), ..Terms::V5 });
    pair.deliver(delivery(Run::new(1, 0, 1)));
    assert_eq!(pair.hear(), [first_time(1, 1, 0)]);
    for number in 1..=65_534 {
        pair.deliver(delivery(Run::new(1, number, 1)));
        let id = (number + 1) as u16;
        assert_eq!(pair.hear(), [first_time(1, id, number)]);
        pair.say(&[puback(id)]);
    }
    pair.deliver(delivery(Run::new(1, 65_535, 1)));
    assert_eq!(pair.hear(), [], "all other identifiers follow the first, which is in use");
    pair.say(&[puback(1)]);
    assert_eq!(pair.hear(), [first_time(1, 1, 65_535)]);
}

#[test]
fn run_is_sent_in_parts_as_the_window_opens() {
    for version in [V311, V5] {
        let mut pair = Pair::new(Terms { receive_max: Some(2), ..Terms::V5 });
        pair.deliver(delivery_of(&[
            Run { version, ..Run::new(1, 0, 5) },
            Run { version, ..Run::new(2, 5, 3) },
        ]));
        let mut numbers = Vec::new();
        loop {
            let heard = pair.hear();
            if heard.is_empty() {
                break;
            }
            for packet in heard {
                match packet {
                    Heard::Publish(message) if message.qos == 1 => {
                        numbers.push(message.number);
                        pair.say(&[puback(message.id)]);
                    }
                    Heard::Publish(message) => {
                        numbers.push(message.number);
                        pair.say(&[pubrec(message.id)]);
                    }
                    Heard::PubRel(id) => drop(pair.say(&[pubcomp(id)])),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(pair.released_bytes, pair.charged_bytes);
    }
}

#[test]
fn messages_arrive_with_the_lower_qos_of_publisher_and_subscription() {
    for (terms, version) in
        [(Terms::V311, V311), (Terms::V5, V5), (Terms::V311, V5), (Terms::V5, V311)]
    {
        for (from, to) in [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (2, 2)] {
            let mut pair = Pair::new(terms);
            pair.deliver(delivery(Run { version, from, to, ..Run::new(to, 40, 3) }));
            let expected: Vec<Heard> = (0..3)
                .map(|n| first_time(to, if to == 0 { 0 } else { n + 1 }, 40 + u32::from(n)))
                .collect();
            assert_eq!(pair.hear(), expected, "QoS {from} to {to}, {version:?} to {terms:?}");
        }
    }
}

/// [MQTT-3.1.2-24] [MQTT-3.1.2-25]
#[test]
fn message_too_large_for_the_client_is_skipped_and_frees_the_window() {
    for level in [0, 1, 2] {
        let terms = Terms { receive_max: Some(1), packet_bytes_max: Some(40), ..Terms::V5 };
        let mut pair = Pair::new(terms);
        let large = Run { payload_bytes: 100, ..Run::new(level, 0, 3) };
        pair.deliver(delivery_of(&[large, Run::new(level, 3, 1)]));
        assert_eq!(pair.hear_numbers(), [3], "QoS {level}");
        assert_eq!(pair.too_large, 3);
        assert_eq!(pair.session.inflight(), usize::from(level > 0));
    }
}

#[test]
fn qos_0_passes_a_full_qos_1_window() {
    let mut pair = Pair::new(Terms { receive_max: Some(1), ..Terms::V5 });
    pair.deliver(delivery(Run::new(1, 0, 5)));
    pair.deliver(delivery(Run::new(0, 100, 2)));
    assert_eq!(pair.hear_numbers(), [0, 100, 101]);
}

#[test]
fn fill_stops_when_the_output_is_full_and_says_that_there_is_more() {
    let mut pair = Pair::new(Terms::V311);
    let run = Run { payload_bytes: 1_000, ..Run::new(0, 0, 100) };
    for _ in 0..10 {
        pair.deliver(delivery(run));
    }
    assert!(pair.session.fill(|| pair.now, &mut pair.out));
    assert!(pair.out.bytes.len() >= OUTPUT_BYTES_MAX);
    assert!(pair.out.bytes.len() < OUTPUT_BYTES_MAX + 110_000);
    assert_eq!(pair.hear_numbers().len(), 1_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// The queue limit gets back exactly what it was charged, whatever is acknowledged when.
    #[test]
    fn everything_that_was_charged_is_released_in_the_end(
        deliveries in prop::collection::vec(arbitrary_runs(), 1..20),
        window in 1_u16..20,
        packet_bytes_max in prop::option::of(Just(60)),
        seed: u64,
    ) {
        let terms = Terms { receive_max: Some(window), packet_bytes_max, ..Terms::V5 };
        let mut pair = Pair::with_limits(terms, Limits { inflight_max: 100, ..LIMITS });
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut answers = Vec::new();
        let mut waiting = deliveries.into_iter();
        loop {
            let next = waiting.next();
            let is_last = next.is_none();
            if let Some(runs) = next {
                pair.deliver(delivery_of(&runs));
            }
            answers.extend(pair.hear().iter().filter_map(answer_to));
            prop_assert!(pair.released_bytes <= pair.charged_bytes);
            prop_assert!(pair.released_messages <= pair.charged_messages);
            if is_last && answers.is_empty() {
                break;
            }
            for _ in 0..rng.usize(usize::from(is_last)..=answers.len().max(1)) {
                if !answers.is_empty() {
                    let answer = answers.swap_remove(rng.usize(..answers.len()));
                    pair.say(&[answer]);
                }
            }
        }
        prop_assert_eq!(pair.released_messages, pair.charged_messages);
        prop_assert_eq!(pair.released_bytes, pair.charged_bytes);
        prop_assert_eq!(pair.session.inflight(), 0);
    }
}

fn answer_to(heard: &Heard) -> Option<mailboxqtt::codec::Packet<'static>> {
    match heard {
        Heard::Publish(message) if message.qos == 1 => Some(puback(message.id)),
        Heard::Publish(message) if message.qos == 2 => Some(pubrec(message.id)),
        Heard::PubRel(id) => Some(pubcomp(*id)),
        _ => None,
    }
}

/// Runs of one kind, in any version and with any downgrade.
fn arbitrary_runs() -> impl Strategy<Value = Vec<Run>> {
    let acknowledged = prop_oneof![Just((1, 1)), Just((2, 1)), Just((2, 2))];
    let unacknowledged = prop_oneof![Just((0, 0)), Just((1, 0)), Just((2, 0))];
    let run = |levels: BoxedStrategy<(u8, u8)>| {
        let version = prop_oneof![Just(V311), Just(V5)];
        let parts = (levels, version, 1_u32..12, 4_usize..120);
        let run = parts.prop_map(|((from, to), version, count, payload_bytes)| Run {
            version,
            from,
            to,
            first: 0,
            count,
            payload_bytes,
        });
        prop::collection::vec(run, 1..5)
    };
    prop_oneof![run(acknowledged.boxed()), run(unacknowledged.boxed())]
}
