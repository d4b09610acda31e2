//! What the protocol costs per message, without sockets and shards.
//!
//! Ids are `session/<direction>/<flow>`. `publish_in` is what a connection does with one read of
//! 100 frames from its client, `deliver` with one delivery of 100 messages for it, each up to the
//! last acknowledgement of the flow. Throughput is messages. What is measured is checked once
//! before the clock starts.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use foldhash::quality::RandomState;

use mailboxqtt::codec::Delivery as Flow;
use mailboxqtt::codec::{
    Ack, Connect, Packet, Properties, Publish, decode, frame_len, packet_id_offset,
};
use mailboxqtt::ids::{ClientId, PacketId, ProtocolVersion, Qos};
use mailboxqtt::message::{Buffer, Collector, Delivery, Kind, Piece, TopicHasher};
use mailboxqtt::session::{Availability, Limits, Output, Place, Session, negotiate};

const VERSION: ProtocolVersion = ProtocolVersion::V311;
const TOPIC: &str = "site/7/line/3/temperature";
const RUN: usize = 100;

const LIMITS: Limits = Limits {
    inflight_max: 1_000,
    receive_max: 1_000,
    packet_bytes_max: 1024 * 1024,
    subscriptions_max: 10,
    subscription_bytes_max: usize::MAX,
    keep_alive_s_max: None,
    session_expiry_s_max: None,
    topic_alias_max: 64,
    availability: Availability::EVERYTHING,
    check_payload_format: false,
};

fn publish_in(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("session/publish_in");
    group.throughput(Throughput::Elements(RUN as u64));
    for (name, qos) in [("qos0_run_of_100", 0), ("qos1_run_of_100", 1), ("qos2_run_of_100", 2)] {
        let Some(mut bench) = Bench::new(VERSION) else { continue };
        let read = frames(qos);
        let mut releases = Vec::new();
        if qos == 2 {
            for id in ids() {
                Packet::PubRel(Ack::success(id)).encode(VERSION, &mut releases);
            }
        }
        assert_eq!(bench.publish_in(&read, &releases), (RUN, RUN * 4 * usize::from(qos)));
        group.bench_function(name, |b| {
            b.iter(|| bench.publish_in(black_box(&read), black_box(&releases)));
        });
    }
    group.finish();
}

fn deliver(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("session/deliver");
    group.throughput(Throughput::Elements(RUN as u64));
    let v5 = ProtocolVersion::V5;
    bench_delivery(&mut group, "qos0_run_of_100", VERSION, (0, 0));
    bench_delivery(&mut group, "qos1_run_of_100", VERSION, (1, 1));
    bench_delivery(&mut group, "qos2_run_of_100", VERSION, (2, 2));
    bench_delivery(&mut group, "qos1_to_qos0_run_of_100", VERSION, (1, 0));
    bench_delivery(&mut group, "qos1_v3_to_v5_run_of_100", v5, (1, 1));
    group.finish();
}

fn bench_delivery(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    version: ProtocolVersion,
    (from, to): (u8, u8),
) {
    let Some(mut bench) = Bench::new(version) else { return };
    let delivery = delivery(from, to);
    let is_right = |(messages, bytes): (usize, usize)| messages == RUN && bytes >= RUN * 90;
    assert!(is_right(bench.deliver(&delivery)));
    assert_eq!(bench.session.inflight(), 0);
    group.bench_function(name, |b| b.iter(|| bench.deliver(black_box(&delivery))));
    assert_eq!(bench.session.inflight(), 0);
}

/// A session and what its connection would own.
struct Bench {
    session: Session,
    out: Output,
    answers: Vec<u8>,
}

impl Bench {
    fn new(version: ProtocolVersion) -> Option<Self> {
        let connect = Connect {
            version,
            clean_start: true,
            keep_alive_s: 60,
            client_id: "bench",
            properties: Properties::EMPTY,
            will: None,
            user_name: None,
            password: None,
        };
        let opening = negotiate(&connect, &LIMITS, || ClientId::new("spare")).ok()?;
        let session = Session::new(LIMITS, &opening, Instant::now());
        let hasher = TopicHasher::new(RandomState::default());
        let out = Output::new(Collector::new(hasher, 4, Instant::now()));
        Some(Self { session, out, answers: Vec::new() })
    }

    /// One read of PUBLISHes to the last answer; returns messages routed and bytes answered.
    fn publish_in(&mut self, read: &[u8], releases: &[u8]) -> (usize, usize) {
        let Self { session, out, .. } = self;
        out.bytes.clear();
        out.routes.begin(VERSION, Instant::now());
        let (mut taken, mut topic) = (0, None);
        while let Some(rest) = read.get(taken..)
            && let Ok(Some(len)) = frame_len(rest, u32::MAX)
            && let Some(frame) = rest.get(..len)
            && let Ok(publish) = Publish::decode_after(frame, VERSION, topic)
        {
            topic = Some(publish.topic);
            // All frames are short: two bytes of header, two of the topic's length.
            let place = Place { frame: taken..taken + len, topic_at: taken + 4 };
            session.handle_publish(&publish, place, out);
            taken += len;
        }
        let turn = session.end_turn(out.routes.touched(), out);
        let mut routed = 0;
        out.routes.flush(read, |_, batch| {
            routed += black_box(&batch).runs.iter().map(|run| run.count as usize).sum::<usize>()
        });
        if let Some(turn) = turn {
            session.handle_accepted(turn, Vec::new(), out);
        }
        handle_all(session, out, releases, VERSION);
        (routed, out.bytes.len())
    }

    /// One delivery to the last acknowledgement; returns messages and bytes sent.
    fn deliver(&mut self, delivery: &Delivery) -> (usize, usize) {
        let Self { session, out, answers } = self;
        let version = session.link().version;
        out.tally = Default::default();
        session.handle_delivery(delivery.clone(), out);
        let mut sent = 0;
        loop {
            out.bytes.clear();
            session.fill(Instant::now, out);
            // What answers to PUBREC left there is written as well: PUBREL for PUBREC.
            sent += out.bytes.len();
            answers.clear();
            answer(&out.bytes, answers);
            if answers.is_empty() {
                return (out.tally.publishes_sent as usize, sent);
            }
            out.bytes.clear();
            handle_all(session, out, answers, version);
            let releases = std::mem::take(&mut out.bytes);
            sent += releases.len();
            answers.clear();
            answer(&releases, answers);
            out.bytes = releases;
            out.bytes.clear();
            handle_all(session, out, answers, version);
        }
    }
}

/// What a client answers to `bytes`: PUBACK, PUBREC and PUBCOMP of four bytes each.
fn answer(mut bytes: &[u8], answers: &mut Vec<u8>) {
    while let Ok(Some(len)) = frame_len(bytes, u32::MAX)
        && let Some((frame, rest)) = bytes.split_at_checked(len)
    {
        bytes = rest;
        let (kind, at) = match frame.first() {
            Some(first) if first >> 4 == 6 => (0x70, Some(2)),
            Some(first) if first >> 1 & 3 == 1 => (0x40, packet_id_offset(frame)),
            Some(first) if first >> 1 & 3 == 2 => (0x50, packet_id_offset(frame)),
            _ => continue,
        };
        if let Some(id) = at.and_then(|at| frame.get(at..at + 2)) {
            answers.extend_from_slice(&[kind, 2]);
            answers.extend_from_slice(id);
        }
    }
}

fn handle_all(
    session: &mut Session,
    out: &mut Output,
    mut packets: &[u8],
    version: ProtocolVersion,
) {
    while let Ok(Some(len)) = frame_len(packets, u32::MAX)
        && let Some((frame, rest)) = packets.split_at_checked(len)
        && let Ok(packet) = decode(frame, version)
    {
        session.handle_packet(&packet, out);
        packets = rest;
    }
}

/// A hundred messages of 64 bytes.
fn frames(qos: u8) -> Vec<u8> {
    let mut frames = Vec::new();
    for id in ids() {
        let delivery = match qos {
            0 => Flow::AtMostOnce,
            1 => Flow::AtLeastOnce { id, dup: false },
            _ => Flow::ExactlyOnce { id, dup: false },
        };
        let (properties, retain) = (Properties::EMPTY, false);
        let publish = Publish { topic: TOPIC, payload: &[b'x'; 64], properties, delivery, retain };
        Packet::Publish(publish).encode(VERSION, &mut frames);
    }
    frames
}

fn ids() -> impl Iterator<Item = PacketId> {
    std::iter::successors(Some(PacketId::FIRST), |id| Some(id.next())).take(RUN)
}

fn delivery(from: u8, to: u8) -> Delivery {
    let frames = Bytes::from(frames(from));
    let (frame_qos, qos) = (level(from), level(to));
    let kind = match qos {
        Qos::AtMostOnce => Kind::Unacknowledged,
        Qos::AtLeastOnce | Qos::ExactlyOnce => Kind::Acknowledged,
    };
    let piece = Piece {
        buffer: 0,
        offset: 0,
        len: frames.len() as u32,
        count: RUN as u32,
        version: VERSION,
        frame_qos,
        frame_retain: false,
        qos,
        retain: false,
        expires: false,
        via: 0,
        record: 0,
        first: 0,
    };
    let buffer = Buffer { frames, received_at: Instant::now() };
    Delivery::new(kind, vec![buffer], vec![piece], Vec::new())
}

fn level(raw: u8) -> Qos {
    Qos::new(raw).unwrap_or(Qos::AtMostOnce)
}

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(250))
        .measurement_time(Duration::from_millis(750))
        .nresamples(10_000)
        .without_plots()
}

criterion_group! {
    name = session;
    config = short();
    targets = publish_in, deliver
}
criterion_main!(session);
