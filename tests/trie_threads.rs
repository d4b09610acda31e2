//! The subscription trie while threads change it and others match: no subscription that stays in
//! force is ever missed, nothing is misdelivered, a group keeps its cursor as long as it has a member,
//! and the end is the same as without threads.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use mailboxqtt::ids::SessionId;
use mailboxqtt::subscriptions::Trie;
use mailboxqtt::topic::TopicFilter;

const WRITERS: usize = 3;
const READERS: usize = 3;
const CHANGES_PER_WRITER: usize = 20_000;

/// In force during the whole test. The writers' filters share nodes and groups with them.
const STABLE: [&str; 10] = [
    "a/#",
    "+/b/#",
    "a/+/c",
    "#",
    "a/b/c/d/+",
    "+/+/+",
    "$share/g/a/#",
    "$share/h/a/b",
    "$share/h/+/b/#",
    "$share/g/+",
];

const TOPICS: [&str; 6] = ["a", "a/b", "a/b/c", "a/b/c/d/e", "x/b/c", "$a/b/c"];

#[test]
fn matching_never_misses_a_stable_subscription_while_others_come_and_go() {
    let trie = Trie::new();
    for (at, filter) in STABLE.into_iter().map(filter).enumerate() {
        trie.insert(&filter, SessionId(at as u64), filter.clone());
    }
    let cursors = STABLE.map(|text| trie.group(&filter(text)).map(|group| group.cursor));
    let turns = AtomicU64::new(0);
    let (start, writing) = (Barrier::new(WRITERS + READERS), AtomicUsize::new(WRITERS));

    let changes: u64 = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (trie, start, writing) = (&trie, &start, &writing);
                scope.spawn(move || {
                    let _leaving = Leaving(writing);
                    start.wait();
                    change_at_random(trie, writer)
                })
            })
            .collect();
        for _ in 0..READERS {
            scope.spawn(|| {
                start.wait();
                // At least once after the last writer has ended.
                loop {
                    let last = writing.load(Ordering::Acquire) == 0;
                    for topic in TOPICS {
                        check_matches(&trie, topic);
                        turns.fetch_add(check_groups(&trie, topic, &cursors), Ordering::Relaxed);
                    }
                    if last {
                        break;
                    }
                }
            });
        }
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    });

    // No turn of a stable group was taken with a cursor that had no future.
    let taken = cursors.iter().flatten().map(|cursor| cursor.load(Ordering::Relaxed)).sum::<u64>();
    assert_eq!(taken, turns.into_inner());
    assert!(taken > 0);
    // The writers removed what they had inserted, so the stable subscriptions are all there is.
    assert_eq!(trie.len(), STABLE.len());
    assert_eq!(trie.generation(), STABLE.len() as u64 + changes);
    for (at, text) in STABLE.into_iter().enumerate() {
        assert_eq!(trie.remove(&filter(text), SessionId(at as u64)), Some(filter(text)));
    }
    assert!(trie.is_empty());
}

/// Counts a writer out, also one that panics: the readers wait for that.
struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
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
    for (session, filter) in trie.matches(topic).subscribers {
        assert!(!filter.is_shared() && filter.matches(topic), "{filter} on {topic}");
        if session.0 < STABLE.len() as u64 {
            stable += 1;
        }
    }
    let stable_filters = STABLE.into_iter().map(filter);
    let expected = stable_filters.filter(|filter| !filter.is_shared() && filter.matches(topic));
    assert_eq!(stable, expected.count(), "{topic}");
}

/// Takes a turn in each group that `topic` and its filter find. Returns how many turns that were in
/// stable groups.
fn check_groups(
    trie: &Trie<TopicFilter>,
    topic: &str,
    cursors: &[Option<Arc<AtomicU64>>; STABLE.len()],
) -> u64 {
    let (mut turns, mut stable) = (0, 0);
    for group in trie.matches(topic).groups {
        assert!(group.filter.is_shared() && group.filter.matches(topic));
        let by_filter = trie.group(&group.filter);
        for group in [Some(&group), by_filter.as_ref()].into_iter().flatten() {
            assert!(!group.members.is_empty(), "{}", group.filter);
            assert!(group.members.iter().all(|(_, filter)| *filter == group.filter));
        }
        let stable_member = STABLE.iter().position(|text| *text == group.filter.as_str());
        if let Some(at) = stable_member {
            let by_filter = by_filter.unwrap();
            for group in [group, by_filter] {
                assert!(group.members.iter().any(|(session, _)| session.0 == at as u64));
                assert!(Arc::ptr_eq(&group.cursor, cursors[at].as_ref().unwrap()));
                group.cursor.fetch_add(1, Ordering::Relaxed);
                turns += 1;
            }
            stable += 1;
        }
    }
    let stable_filters = STABLE.into_iter().map(filter);
    let expected = stable_filters.filter(|filter| filter.is_shared() && filter.matches(topic));
    assert_eq!(stable, expected.count(), "{topic}");
    turns
}

fn random_filter(random: &mut fastrand::Rng) -> TopicFilter {
    let mut levels: Vec<_> =
        (0..random.usize(1..5)).map(|_| random.choice(["a", "b", "c", "+"]).unwrap()).collect();
    if random.bool() {
        levels.push("#");
    }
    let share = random.choice(["", "", "$share/g/", "$share/h/"]).unwrap();
    filter(&format!("{share}{}", levels.join("/")))
}

fn filter(text: &str) -> TopicFilter {
    TopicFilter::parse(text).unwrap()
}
