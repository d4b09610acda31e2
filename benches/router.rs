//! What the way through the router costs: batches from one mailbox's session to many others, over
//! the real shards on a runtime.
//!
//! Ids are `router/hop/<flow>`. One round is [`BATCHES`] batches of 100 messages, sent through the
//! links of one connection; it ends when every subscriber's inbox has all of them and, where they
//! are asked for, all receipts are back. Throughput is messages that reach an inbox; they travel by
//! reference, so what writing them costs is in `session/deliver`. Counts are checked in every
//! round.

use std::future::poll_fn;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use foldhash::quality::RandomState;

use mailboxqtt::codec::Delivery as Flow;
use mailboxqtt::codec::{Packet, Properties, Publish};
use mailboxqtt::ids::{PacketId, ProtocolVersion, Qos};
use mailboxqtt::message::{Collector, Grant, Incoming, TopicHasher};
use mailboxqtt::metrics::Metrics;
use mailboxqtt::router::keeper::RetainedLimits;
use mailboxqtt::router::links::Links;
use mailboxqtt::router::mailbox::{Home, Inbox, Mail, QueueLimits};
use mailboxqtt::router::shard::{Command, Publication};
use mailboxqtt::router::sharing::Strategy;
use mailboxqtt::router::{Limits, Router};
use mailboxqtt::session::{Request, Retained};
use mailboxqtt::topic::TopicFilter;
use tokio::runtime::{Builder, Runtime};

const VERSION: ProtocolVersion = ProtocolVersion::V311;
const TOPIC: &str = "site/7/line/3/temperature";
const RUN: usize = 100;
/// Batches of one round; few enough for the shard's channel.
const BATCHES: usize = 50;

const LIMITS: Limits = Limits {
    queue: QueueLimits { messages_max: u64::MAX, bytes_max: usize::MAX },
    retained: RetainedLimits { messages_max: 10, bytes_max: 1000 },
    sharing: Strategy::RoundRobin,
};

fn hop(bench: &mut Criterion) {
    let Ok(runtime) = Builder::new_multi_thread().enable_all().build() else { return };
    let mut group = bench.benchmark_group("router/hop");
    for (name, subscribers, qos, filter) in [
        ("qos0_to_1", 1, Qos::AtMostOnce, TOPIC),
        ("qos0_to_1_by_wildcard", 1, Qos::AtMostOnce, "site/+/line/#"),
        ("qos1_with_receipts_to_1", 1, Qos::AtLeastOnce, TOPIC),
        ("qos0_to_50", 50, Qos::AtMostOnce, TOPIC),
        ("qos1_with_receipts_to_50", 50, Qos::AtLeastOnce, TOPIC),
    ] {
        let mut hop = Hop::new(&runtime, subscribers, qos, filter);
        group.throughput(Throughput::Elements((BATCHES * RUN * subscribers) as u64));
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                let start = Instant::now();
                runtime.block_on(async {
                    for _ in 0..rounds {
                        hop.round().await;
                    }
                });
                start.elapsed()
            });
        });
        assert_eq!(hop.router.metrics().dropped_total(), 0);
    }
    group.finish();
}

/// One publisher, its connection to the shards, and its subscribers.
struct Hop {
    router: Router,
    links: Links,
    collector: Collector,
    publisher: Inbox,
    subscribers: Vec<Inbox>,
    qos: Qos,
    /// The frames of one read.
    read: Vec<u8>,
    frame_len: usize,
}

impl Hop {
    fn new(runtime: &Runtime, subscribers: usize, qos: Qos, filter: &str) -> Self {
        let _runtime = runtime.enter();
        let hasher = TopicHasher::new(RandomState::default());
        let router = Router::spawn(2, LIMITS, hasher, Arc::new(Metrics::default()), None);
        let read = frames(qos);
        let mut hop = Self {
            links: router.links(),
            collector: router.collector(),
            publisher: router.open_mailbox(None, Home::Memory),
            subscribers: (0..subscribers)
                .map(|_| router.open_mailbox(None, Home::Memory))
                .collect(),
            router,
            qos,
            frame_len: read.len() / RUN,
            read,
        };
        if let Ok(filter) = TopicFilter::parse(filter) {
            runtime.block_on(hop.subscribe(&filter));
        }
        hop
    }

    async fn subscribe(&mut self, filter: &TopicFilter) {
        let Self { router, links, subscribers, qos, .. } = self;
        let grant =
            Grant { qos: *qos, no_local: false, retain_as_published: false, identifier: None };
        for inbox in subscribers.iter() {
            let filters = vec![(filter.clone(), grant, Retained::Skip)];
            router.request(Request::Subscribe { token: 0, filters }, inbox.mailbox(), links);
        }
        poll_fn(|cx| links.poll_flush(cx)).await;
        router.settle().await;
        for inbox in subscribers {
            while inbox.try_next().is_some() {}
        }
    }

    async fn round(&mut self) {
        for turn in 0..BATCHES as u64 {
            self.send(turn);
            poll_fn(|cx| self.links.poll_flush(cx)).await;
        }
        let due = (BATCHES * RUN) as u32;
        for inbox in &self.subscribers {
            let mut messages = 0;
            while messages < due {
                if let Mail::Delivery(delivery) = next(inbox).await {
                    messages += delivery.messages;
                    inbox.mailbox().release(u64::from(delivery.messages), delivery.held_bytes);
                    black_box(&delivery);
                }
            }
            assert_eq!(messages, due);
        }
        if self.qos != Qos::AtMostOnce {
            for due in 0..BATCHES as u64 {
                let mail = next(&self.publisher).await;
                assert!(matches!(mail, Mail::Accepted { turn, .. } if turn == due));
            }
        }
    }

    /// What a connection does with one read.
    fn send(&mut self, turn: u64) {
        let Self { links, collector, publisher, qos, read, frame_len, .. } = self;
        collector.begin(VERSION, Instant::now());
        let message = Incoming { topic: TOPIC, qos: *qos, retain: false, expires: false };
        for start in (0..read.len()).step_by(*frame_len) {
            collector.add(message, start..start + *frame_len, start + 4);
        }
        let turn = (*qos != Qos::AtMostOnce).then_some(turn);
        collector.flush(read, |shard, batch| {
            let mailbox = publisher.mailbox().clone();
            links.send(shard, Command::Publish(Publication { batch, mailbox, turn }));
        });
    }
}

async fn next(inbox: &Inbox) -> Mail {
    loop {
        if let Some(mail) = inbox.try_next() {
            return mail;
        }
        poll_fn(|cx| inbox.poll_ready(cx)).await;
    }
}

/// A hundred messages of 64 bytes.
fn frames(qos: Qos) -> Vec<u8> {
    let delivery = match qos {
        Qos::AtMostOnce => Flow::AtMostOnce,
        Qos::AtLeastOnce => Flow::AtLeastOnce { id: PacketId::FIRST, dup: false },
        Qos::ExactlyOnce => Flow::ExactlyOnce { id: PacketId::FIRST, dup: false },
    };
    let (properties, retain) = (Properties::EMPTY, false);
    let publish = Publish { topic: TOPIC, payload: &[b'x'; 64], properties, delivery, retain };
    let mut frame = Vec::new();
    Packet::Publish(publish).encode(VERSION, &mut frame);
    frame.repeat(RUN)
}

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(250))
        .measurement_time(Duration::from_millis(1_000))
        .sample_size(30)
        .nresamples(10_000)
        .without_plots()
}

criterion_group! {
    name = router;
    config = short();
    targets = hop
}
criterion_main!(router);
