//! The one deadline of a session.

use std::time::Duration;

use mailboxqtt::codec::Packet;
use mailboxqtt::session::{CloseReason, Limits};

use crate::pair::{Heard, LIMITS, Pair, Terms};

/// [MQTT-3.1.2-22]
#[test]
fn silence_closes_at_one_and_a_half_keep_alive_periods_and_not_before() {
    let mut pair = Pair::new(Terms { keep_alive_s: 10, ..Terms::V5 });
    let deadline = pair.now + Duration::from_secs(15);
    assert_eq!(pair.session.poll_timeout(), Some(deadline));

    pair.session.handle_timeout(deadline - Duration::from_nanos(1), &mut pair.out);
    assert_eq!(pair.close_reason(), None);

    pair.session.handle_timeout(deadline, &mut pair.out);
    let reason = pair.close_reason().unwrap();
    assert_eq!(reason, CloseReason::KeepAliveTimeout(10));
    pair.session.say_goodbye(&reason, &mut pair.out);
    assert_eq!(pair.hear(), [Heard::Disconnect(0x8d)]);
}

#[test]
fn each_packet_moves_the_deadline() {
    let mut pair = Pair::new(Terms { keep_alive_s: 10, ..Terms::V311 });
    for _ in 0..5 {
        pair.pass(Duration::from_secs(14));
        pair.say(&[Packet::PingReq]);
        assert_eq!(pair.hear(), [Heard::PingResp]);
        pair.session.handle_timeout(pair.now, &mut pair.out);
        assert_eq!(pair.close_reason(), None);
    }
    assert_eq!(pair.session.poll_timeout(), Some(pair.now + Duration::from_secs(15)));
}

#[test]
fn keep_alive_of_zero_has_no_deadline() {
    let mut pair = Pair::new(Terms::V5);
    assert_eq!(pair.session.poll_timeout(), None);
    let far = pair.now + Duration::from_secs(1_000_000);
    pair.session.handle_timeout(far, &mut pair.out);
    assert_eq!(pair.close_reason(), None);
}

#[test]
fn broker_may_shorten_the_keep_alive_of_v5_clients_alone() {
    let limits = Limits { keep_alive_s_max: Some(20), ..LIMITS };
    for (asked_s, deadline_s) in [(0, 30), (100, 30), (10, 15)] {
        let terms = Terms { keep_alive_s: asked_s, ..Terms::V5 };
        let pair = Pair::with_limits(terms, limits);
        let deadline = pair.now + Duration::from_secs(deadline_s);
        assert_eq!(pair.session.poll_timeout(), Some(deadline), "asked for {asked_s} s");
    }
    let pair = Pair::with_limits(Terms::V311, limits);
    assert_eq!(pair.session.poll_timeout(), None);
}

#[test]
fn next_connection_brings_its_own_keep_alive() {
    let mut pair = Pair::new(Terms { keep_alive_s: 10, ..Terms::V311 });
    pair.lose_link();
    pair.pass(Duration::from_secs(1_000));
    pair.resume(Terms { keep_alive_s: 60, ..Terms::V5 }, LIMITS);
    assert_eq!(pair.session.poll_timeout(), Some(pair.now + Duration::from_secs(90)));
}
