//! Random operations with seeds, and what they have found, as scenarios.
//!
//! `SESSION_SEED=N cargo test --test session fuzz` plays one seed again. The fuzz target
//! `session_operations` plays the same game with bytes that look for new code.

use std::panic;
use std::sync::Arc;

use mailboxqtt::message::Via;
use mailboxqtt::topic::TopicFilter;

use crate::operations::play;
use crate::pair::{Heard, LIMITS, Pair, Run, Terms, delivery, flow, publish};

const SEEDS: u64 = 1500;
/// Bytes of one game; a step takes two to ten.
const BYTES: usize = 2000;

#[test]
fn random_operations_keep_every_promise_of_the_session() {
    let seeds = match std::env::var("SESSION_SEED") {
        Ok(seed) => vec![seed.parse().expect("SESSION_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    };
    for seed in seeds {
        let mut bytes = vec![0; BYTES];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        if let Err(cause) = panic::catch_unwind(|| play(&bytes)) {
            eprintln!("SESSION_SEED={seed}");
            panic::resume_unwind(cause);
        }
    }
}

/// What a partly sent run has of messages was given back to the queue limit twice.
#[test]
fn shared_messages_that_are_given_away_are_released_once() {
    let mut pair = Pair::new(Terms { receive_max: Some(2), ..Terms::V5 });
    let mut shared = delivery(Run::new(1, 0, 5));
    let share = TopicFilter::parse("$share/group/t").ok();
    shared.vias = [Arc::new(Via { share, ..Via::default() })].into();
    shared.pieces[0].via = 1;
    pair.deliver(shared);
    assert_eq!(pair.hear_numbers(), [0, 1]);
    pair.lose_link();

    let undelivered = pair.session.take_shared(false, |_| true, &mut pair.out);
    assert_eq!(undelivered.iter().map(|run| run.count).sum::<u32>(), 3);
    pair.take_bytes();
    assert_eq!(pair.released_messages, pair.charged_messages);
    assert!(pair.released_bytes < pair.charged_bytes, "two are still held");
}

/// An alias takes three bytes, the topic only one: the message was left out as too large.
#[test]
fn a_message_that_only_an_alias_makes_too_large_is_sent_without_it() {
    // PUBLISH to "t" with twelve bytes of payload has 20 bytes.
    let packet_bytes_max = Some(20);
    let mut pair = Pair::new(Terms { packet_bytes_max, topic_alias_max: Some(1), ..Terms::V5 });
    pair.deliver(delivery(Run::new(1, 0, 1)));
    pair.deliver(delivery(Run { payload_bytes: 12, ..Run::new(1, 1, 1) }));
    assert_eq!(pair.hear_numbers(), [0, 1]);
    assert_eq!(pair.too_large, 0);
}

/// The refusal of the lost connection was kept, and the next message with the identifier was refused, too.
#[test]
fn an_identifier_is_free_after_a_refusal_that_the_client_hears_on_its_next_connection() {
    let mut pair = Pair::new(Terms::V5);
    let first = publish("one", &[0; 4], flow(1, 1, false));
    let refused = |dup| publish("$SYS/forged", &[0; 4], flow(2, 2, dup));
    // The refusal has to wait for the receipt of the message before it.
    let receipts = pair.say(&[first, refused(false)]);
    pair.lose_link();
    pair.resume(Terms::V5, LIMITS);
    assert!(pair.say(&[refused(true)]).is_empty());
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), [Heard::PubRec(2, 0x87)]);

    let receipts = pair.say(&[publish("one", &[0, 0, 0, 9], flow(2, 2, false))]);
    assert_eq!(pair.routed.last().map(|routed| routed.number), Some(9));
    pair.accept(&receipts[0]);
    assert_eq!(pair.hear(), [Heard::PubRec(2, 0)]);
}
