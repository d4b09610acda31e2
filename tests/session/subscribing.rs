//! SUBACK, UNSUBACK and the replay of retained messages.

use mailboxqtt::codec::{
    Packet, Properties, Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe,
    UnsubscribeFiltersBuf,
};
use mailboxqtt::ids::Qos;
use mailboxqtt::message::{Grant, Replay};
use mailboxqtt::session::{Request, Retained};
use mailboxqtt::topic::TopicFilter;

use crate::pair::{Heard, LIMITS, Pair, Run, Terms, delivery, first_time, pid, puback};

#[test]
fn suback_waits_for_all_parts() {
    let mut pair = Pair::new(Terms::V311);
    let token = pair.subscribe(1, &["a", "b/#"]);
    for _ in 0..2 {
        pair.session.handle_part_done(token, 3, None, &mut pair.out);
        assert_eq!(pair.hear(), []);
    }
    pair.session.handle_part_done(token, 3, None, &mut pair.out);
    assert_eq!(pair.hear(), [Heard::SubAck(1, vec![1, 1])]);
    assert_eq!(pair.session.subscriptions(), 2);
}

#[test]
fn subacks_and_unsubacks_leave_in_the_order_of_their_requests() {
    let mut pair = Pair::new(Terms::V5);
    let first = pair.subscribe(1, &["a"]);
    let second = pair.subscribe(2, &["b"]);
    let third = pair.unsubscribe(3, &["a"]);
    pair.session.handle_part_done(third, 1, None, &mut pair.out);
    pair.session.handle_part_done(second, 1, None, &mut pair.out);
    assert_eq!(pair.hear(), []);
    pair.session.handle_part_done(first, 1, None, &mut pair.out);
    let expected =
        [Heard::SubAck(1, vec![1]), Heard::SubAck(2, vec![1]), Heard::UnsubAck(3, vec![0])];
    assert_eq!(pair.hear(), expected);
}

#[test]
fn request_without_a_valid_filter_is_answered_in_its_turn() {
    let mut pair = Pair::new(Terms::V311);
    let first = pair.subscribe(1, &["a"]);
    pair.say_subscribe(2, &["a/#/b"]);
    assert!(pair.requests().is_empty());
    assert_eq!(pair.hear(), []);
    pair.session.handle_part_done(first, 1, None, &mut pair.out);
    assert_eq!(pair.hear(), [Heard::SubAck(1, vec![1]), Heard::SubAck(2, vec![0x80])]);
}

#[test]
fn filters_over_the_limit_are_refused_one_by_one() {
    let mut pair = Pair::new(Terms::V5);
    let token = pair.subscribe(1, &["1", "2", "3", "4", "5", "6", "1"]);
    pair.session.handle_part_done(token, 1, None, &mut pair.out);
    assert_eq!(pair.hear(), [Heard::SubAck(1, vec![1, 1, 1, 1, 1, 0x97, 1])]);
    assert_eq!(pair.session.subscriptions(), LIMITS.subscriptions_max);
}

#[test]
fn parts_of_a_request_of_an_earlier_connection_answer_nothing() {
    let mut pair = Pair::new(Terms::V311);
    let token = pair.subscribe(1, &["a", "b"]);
    pair.session.handle_part_done(token, 2, None, &mut pair.out);
    pair.lose_link();
    pair.resume(Terms::V311, LIMITS);
    let newer = pair.subscribe(1, &["c"]);
    pair.session.handle_part_done(token, 2, Some(replay(0, token)), &mut pair.out);
    assert_eq!(pair.hear(), []);
    pair.session.handle_part_done(newer, 1, None, &mut pair.out);
    assert_eq!(pair.hear(), [Heard::SubAck(1, vec![1])]);
    assert!(pair.requests().is_empty());
}

#[test]
fn replay_is_asked_for_behind_the_suback_one_chunk_at_a_time() {
    let mut pair = Pair::new(Terms::V311);
    let token = pair.subscribe(1, &["#"]);
    pair.session.handle_part_done(token, 2, Some(replay(0, token)), &mut pair.out);
    pair.hear();
    assert!(pair.requests().is_empty(), "the subscription is not in force everywhere");
    pair.session.handle_part_done(token, 2, Some(replay(1, token)), &mut pair.out);
    assert_eq!(pair.hear(), [Heard::SubAck(1, vec![1])]);
    assert_eq!(pair.asked_shards(), [0]);
    pair.hear();
    assert!(pair.asked_shards().is_empty(), "one chunk is on its way");

    pair.session.handle_chunk(Some(replay(0, token)));
    pair.hear();
    assert_eq!(pair.asked_shards(), [0], "the rest of the first replay comes first");
    pair.session.handle_chunk(None);
    pair.hear();
    assert_eq!(pair.asked_shards(), [1]);
    pair.session.handle_chunk(None);
    pair.hear();
    assert!(pair.asked_shards().is_empty());
}

#[test]
fn next_chunk_is_asked_for_only_when_everything_before_it_is_sent() {
    let mut pair = Pair::new(Terms { receive_max: Some(2), ..Terms::V5 });
    let token = pair.subscribe(1, &["#"]);
    pair.deliver(delivery(Run::new(1, 0, 3)));
    pair.session.handle_part_done(token, 1, Some(replay(0, token)), &mut pair.out);
    pair.hear();
    assert!(pair.asked_shards().is_empty(), "a live message waits behind the window");
    pair.say(&[puback(1)]);
    assert_eq!(pair.hear(), [first_time(1, 3, 2)]);
    assert_eq!(pair.asked_shards(), [0]);

    pair.deliver(delivery(Run::new(1, 10, 2)));
    pair.session.handle_chunk(Some(replay(0, token)));
    pair.hear();
    assert!(pair.asked_shards().is_empty(), "the chunk itself is not sent");
    pair.say(&[puback(2), puback(3)]);
    pair.hear();
    assert_eq!(pair.asked_shards(), [0]);
}

#[test]
fn replay_ends_when_the_client_unsubscribes() {
    let mut pair = Pair::new(Terms::V311);
    let token = pair.subscribe(1, &["#"]);
    pair.session.handle_part_done(token, 1, Some(replay(0, token)), &mut pair.out);
    pair.hear();
    assert_eq!(pair.asked_shards(), [0]);
    pair.unsubscribe(2, &["#"]);
    pair.session.handle_chunk(Some(replay(0, token)));
    pair.hear();
    assert!(pair.asked_shards().is_empty());
}

#[test]
fn newer_subscription_takes_the_place_of_an_unfinished_replay() {
    let mut pair = Pair::new(Terms::V311);
    let first = pair.subscribe(1, &["#"]);
    pair.session.handle_part_done(first, 1, Some(replay(0, first)), &mut pair.out);
    pair.hear();
    assert_eq!(pair.asked_shards(), [0]);
    let second = pair.subscribe(2, &["#"]);
    pair.session.handle_part_done(second, 1, Some(replay(7, second)), &mut pair.out);
    pair.session.handle_chunk(Some(replay(0, first)));
    pair.hear();
    assert_eq!(pair.asked_shards(), [7], "the rest of the first one is not asked for");
}

#[test]
fn filter_that_comes_twice_in_one_packet_is_asked_for_once() {
    let mut pair = Pair::new(Terms::V311);
    pair.say_subscribe(1, &["a", "#", "a", "#", "a"]);
    match pair.requests().pop() {
        Some(Request::Subscribe { filters, .. }) => assert_eq!(filters.len(), 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn replay_goes_on_with_the_next_connection() {
    let mut pair = Pair::new(Terms::V311);
    let token = pair.subscribe(1, &["#"]);
    pair.session.handle_part_done(token, 1, Some(replay(3, token)), &mut pair.out);
    pair.hear();
    assert_eq!(pair.asked_shards(), [3]);
    pair.lose_link();
    pair.resume(Terms::V311, LIMITS);
    pair.session.handle_chunk(Some(replay(3, token)));
    pair.hear();
    assert_eq!(pair.asked_shards(), [3]);
}

#[test]
fn what_was_published_before_a_subscribe_is_routed_before_it() {
    let mut pair = Pair::new(Terms::V311);
    let mut filters = SubscribeFiltersBuf::new();
    filters.push("t", SubscribeOptions::new(Qos::AtMostOnce));
    let subscribe =
        Subscribe { id: pid(1), properties: Properties::EMPTY, filters: filters.as_filters() };
    let receipts = pair.say(&[
        crate::pair::publish("t", b"0000", crate::pair::flow(1, 1, false)),
        Packet::Subscribe(subscribe),
        crate::pair::publish("t", b"0001", crate::pair::flow(1, 2, false)),
    ]);
    let turns: Vec<u64> = receipts.iter().map(|receipt| receipt.turn).collect();
    assert_eq!(turns, [0, 1]);
}

impl Pair {
    pub(crate) fn say_subscribe(&mut self, id: u16, filters: &[&str]) {
        let mut buf = SubscribeFiltersBuf::new();
        for filter in filters {
            buf.push(filter, SubscribeOptions::new(Qos::AtLeastOnce));
        }
        let (id, properties) = (pid(id), Properties::EMPTY);
        let packet = Subscribe { id, properties, filters: buf.as_filters() };
        self.say(&[Packet::Subscribe(packet)]);
    }

    /// Returns the token of the request that the router gets.
    pub(crate) fn subscribe(&mut self, id: u16, filters: &[&str]) -> u64 {
        self.say_subscribe(id, filters);
        match self.requests().pop() {
            Some(Request::Subscribe { token, filters }) => {
                assert!(filters.iter().all(|(.., retained)| *retained == Retained::Replay));
                token
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn unsubscribe(&mut self, id: u16, filters: &[&str]) -> u64 {
        let mut buf = UnsubscribeFiltersBuf::new();
        for filter in filters {
            buf.push(filter);
        }
        let (id, properties) = (pid(id), Properties::EMPTY);
        let packet = Unsubscribe { id, properties, filters: buf.as_filters() };
        self.say(&[Packet::Unsubscribe(packet)]);
        match self.requests().pop() {
            Some(Request::Unsubscribe { token, .. }) => token,
            other => panic!("{other:?}"),
        }
    }

    /// The shards that were asked for a chunk.
    fn asked_shards(&mut self) -> Vec<usize> {
        let shard = |request| match request {
            Request::Replay(replay) => replay.shard,
            other => panic!("{other:?}"),
        };
        self.requests().into_iter().map(shard).collect()
    }
}

/// As a shard answers request `token` for the filter `#`.
fn replay(shard: usize, token: u64) -> Replay {
    let grant = Grant {
        qos: Qos::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        identifier: None,
    };
    let filters = [(TopicFilter::parse("#").unwrap(), grant)].into();
    Replay { shard, token, filters, filter: 0, after: None, stored_until: 0 }
}
