//! Cost of topics, filters and the trie. Ids are `module/operation/input`, so
//! `cargo bench --bench subscriptions -- subscriptions/match` selects a family.

#![allow(missing_docs, reason = "criterion_group! generates an undocumented function")]
#![allow(clippy::unwrap_used, reason = "all filters here are literals")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mailboxqtt::ids::SessionId;
use mailboxqtt::subscriptions::Trie;
use mailboxqtt::topic::{self, TopicFilter};

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1));
    targets = match_topic, match_deep_topic, match_group, insert_remove, parse_filter, topic_matches
}
criterion_main!(benches);

const SITES: usize = 20;

/// What a shard does when it compiles a route: a handful of matches among more and more filters.
fn match_topic(c: &mut Criterion) {
    let mut group = c.benchmark_group("subscriptions/match");
    group.throughput(Throughput::Elements(1));
    for filters in [10, 1_000, 100_000] {
        let trie = trie(filters);
        let topic = "plant/1/line/1/sensor/temp";
        // Two dashboards, and the line's own filter.
        assert_eq!(count(&trie, topic), 3);

        group.bench_function(BenchmarkId::from_parameter(filters), |b| {
            b.iter(|| count(&trie, black_box(topic)));
        });
    }
    group.finish();
}

/// Topics that a hostile publisher would choose, and one that nobody wants.
fn match_deep_topic(c: &mut Criterion) {
    let mut group = c.benchmark_group("subscriptions/match_edge");
    group.throughput(Throughput::Elements(1));
    let trie = trie(1_000);
    for (id, text) in [(2_000, "#"), (2_001, "+/#")] {
        trie.insert(&filter(text), SessionId(id), id);
    }
    let deep = "a/".repeat(30_000);
    for (name, topic, expected) in
        [("30000_levels", deep.as_str(), 2), ("no_match", "$none/of/these", 0)]
    {
        assert_eq!(count(&trie, topic), expected);
        group.bench_function(name, |b| b.iter(|| count(&trie, black_box(topic))));
    }
    group.finish();
}

/// What a group adds to the match of a topic that others want too.
fn match_group(c: &mut Criterion) {
    let mut group = c.benchmark_group("subscriptions/match_group");
    group.throughput(Throughput::Elements(1));
    let topic = "plant/1/line/1/sensor/temp";
    for members in [1, 100] {
        let trie = trie(1_000);
        let filter = filter("$share/workers/plant/+/line/#");
        (0..members).for_each(|id| assert_eq!(trie.insert(&filter, SessionId(id), id), None));
        let found = trie.matches(topic);
        assert_eq!(found.subscribers.len(), 3);
        assert_eq!(found.groups.len(), 1);
        assert_eq!(found.groups[0].members.len() as u64, members);

        group.bench_function(BenchmarkId::new("members", members), |b| {
            b.iter(|| trie.matches(black_box(topic)));
        });
        group.bench_function(BenchmarkId::new("by_filter", members), |b| {
            b.iter(|| trie.group(black_box(&filter)));
        });
    }
    group.finish();
}

/// A session that comes and goes: a path of its own, or a place among many at one node.
fn insert_remove(c: &mut Criterion) {
    let mut group = c.benchmark_group("subscriptions/insert_remove");
    group.throughput(Throughput::Elements(2));
    let newcomer = SessionId(u64::MAX);
    for filters in [1_000, 100_000] {
        let trie = trie(filters);
        let filter = filter("site/new/device/+/state/#");
        assert_eq!(
            (trie.insert(&filter, newcomer, 7), trie.remove(&filter, newcomer)),
            (None, Some(7))
        );

        group.bench_function(BenchmarkId::new("new_path", filters), |b| {
            b.iter(|| {
                trie.insert(&filter, newcomer, 7);
                trie.remove(&filter, newcomer)
            });
        });
    }
    let trie = Trie::new();
    let filter = filter("news/#");
    (0..10_000).for_each(|id| assert_eq!(trie.insert(&filter, SessionId(id), 0), None));
    assert_eq!(
        (trie.insert(&filter, newcomer, 7), trie.remove(&filter, newcomer)),
        (None, Some(7))
    );
    group.bench_function("same_filter/10000_sessions", |b| {
        b.iter(|| {
            trie.insert(&filter, newcomer, 7);
            trie.remove(&filter, newcomer)
        });
    });
    let shared = TopicFilter::parse("$share/workers/news/#").unwrap();
    assert_eq!(
        (trie.insert(&shared, newcomer, 7), trie.remove(&shared, newcomer)),
        (None, Some(7))
    );
    group.bench_function("group_of_one", |b| {
        b.iter(|| {
            trie.insert(&shared, newcomer, 7);
            trie.remove(&shared, newcomer)
        });
    });
    group.finish();
}

fn parse_filter(c: &mut Criterion) {
    let mut group = c.benchmark_group("topic/parse_filter");
    group.throughput(Throughput::Elements(1));
    for (name, text) in FILTERS {
        assert_eq!(filter(text).as_str(), text);
        group.bench_function(name, |b| b.iter(|| TopicFilter::parse(black_box(text))));
    }
    group.finish();
}

fn topic_matches(c: &mut Criterion) {
    let mut group = c.benchmark_group("topic/matches");
    group.throughput(Throughput::Elements(1));
    let topic = "plant/1/line/1/sensor/temp";
    for (name, filter) in FILTERS {
        assert!(topic::matches(filter, topic));
        group.bench_function(name, |b| {
            b.iter(|| topic::matches(black_box(filter), black_box(topic)));
        });
    }
    group.finish();
}

const FILTERS: [(&str, &str); 3] = [
    ("exact", "plant/1/line/1/sensor/temp"),
    ("single_level", "plant/+/line/+/sensor/temp"),
    ("multi_level", "plant/1/#"),
];

/// Two dashboards that see much, then devices and lines of the sites by turns, one session each.
fn trie(filters: usize) -> Trie<u64> {
    let trie = Trie::new();
    let dashboards = ["+/1/#", "plant/+/line/+/sensor/temp"].map(str::to_owned);
    let own = (0..).map(|n| match n % 2 {
        0 => format!("site/{}/device/{n}/#", n % SITES),
        _ => format!("plant/{}/line/{n}/sensor/+", n % SITES),
    });
    for (id, text) in dashboards.into_iter().chain(own).take(filters).enumerate() {
        trie.insert(&filter(&text), SessionId(id as u64), id as u64);
    }
    assert_eq!(trie.len(), filters);
    trie
}

fn count(trie: &Trie<u64>, topic: &str) -> usize {
    let mut found = 0;
    trie.matches(topic).subscribers.iter().for_each(|_| found += 1);
    found
}

fn filter(text: &str) -> TopicFilter {
    TopicFilter::parse(text).unwrap()
}
