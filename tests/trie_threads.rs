//! The subscription trie while threads change it and others match: no subscription that stays in
//! force is ever missed, nothing is misdelivered, and the end is the same as without threads.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use mailboxqtt::ids::SessionId;
use mailboxqtt::subscriptions::Trie;
use mailboxqtt::topic::TopicFilter;

const WRITERS: usize = 3;
const READERS: usize = 3;
const CHANGES_PER_WRITER: usize = 20_000;

/// In force during the whole test. The writers' filters share nodes with them.
const STABLE: [&str; 6] = ["a/#", "+/b/#", "a/+/c", "#", "a/b/c/d/+", "+/+/+"];

const TOPICS: [&str; 6] = ["a", "a/b", "a/b/c", "a/b/c/d/e", "x/b/c", "$a/b/c"];

#[test]
fn matching_never_misses_a_stable_subscription_while_others_come_and_go() {
    let trie = Trie::new();
    for (at, filter) in STABLE.into_iter().map(filter).enumerate() {
        trie.insert(&filter, SessionId(at as u64), filter.clone());
    }
    let (start, writing) = (Barrier::new(WRITERS + READERS), AtomicUsize::new(WRITERS));

    let changes: u64 = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (trie, start, writing) = (&trie, &start, &writing);
                scope.spawn(move || {
                    start.wait();
                    let changes = change_at_random(trie, writer);
                    writing.fetch_sub(1, Ordering::Release);
                    changes
                })
            })
            .collect();
        for _ in 0..READERS {
            scope.spawn(|| {
                start.wait();
                // At least once after the last writer has ended.
                loop {
                    let last = writing.load(Ordering::Acquire) == 0;
                    TOPICS.into_iter().for_each(|topic| check_matches(&trie, topic));
                    if last {
                        break;
                    }
                }
            });
        }
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });

    // The writers removed what they had inserted, so the stable subscriptions are all there is.
    assert_eq!(trie.len(), STABLE.len());
    assert_eq!(trie.generation(), STABLE.len() as u64 + changes);
    for (at, text) in STABLE.into_iter().enumerate() {
        assert_eq!(trie.remove(&filter(text), SessionId(at as u64)), Some(filter(text)));
    }
    assert!(trie.is_empty());
}

/// Toggles random filters of a session of its own, then ends all of them. Returns how many changes
/// took effect.
fn change_at_random(trie: &Trie<TopicFilter>, writer: usize) -> u64 {
    let session = SessionId((100 + writer) as u64);
    let mut random = fastrand::Rng::with_seed(writer as u64);
    let mut own = Vec::new();
    let mut changes = 0;
    for _ in 0..CHANGES_PER_WRITER {
        let filter = random_filter(&mut random);
        match own.iter().position(|present| *present == filter) {
            Some(at) => {
                own.swap_remove(at);
                assert_eq!(trie.remove(&filter, session), Some(filter));
            }
            None => {
                assert_eq!(trie.insert(&filter, session, filter.clone()), None);
                own.push(filter);
            }
        }
        changes += 1;
    }
    for filter in own {
        assert_eq!(trie.remove(&filter, session), Some(filter));
        changes += 1;
    }
    changes
}

fn check_matches(trie: &Trie<TopicFilter>, topic: &str) {
    let mut stable = 0;
    trie.for_each_match(topic, |session, filter| {
        assert!(filter.matches(topic), "{filter} on {topic}");
        if session.0 < STABLE.len() as u64 {
            stable += 1;
        }
    });
    let expected = STABLE.into_iter().filter(|text| filter(text).matches(topic)).count();
    assert_eq!(stable, expected, "{topic}");
}

fn random_filter(random: &mut fastrand::Rng) -> TopicFilter {
    let mut levels: Vec<_> =
        (0..random.usize(1..5)).map(|_| random.choice(["a", "b", "c", "+"]).unwrap()).collect();
    if random.bool() {
        levels.push("#");
    }
    filter(&levels.join("/"))
}

fn filter(text: &str) -> TopicFilter {
    TopicFilter::parse(text).unwrap()
}
