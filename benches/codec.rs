//! How long the codec takes for each kind of packet, in both directions.
//!
//! Ids are `codec/<direction>/<packet>`. What is measured is checked once before the clock starts:
//! each packet must come back from its own encoding. `publish_run_of_100` is what a connection
//! does with one read: cut, decode, compare topics by pointer.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

use mailboxqtt::codec::frame_len;
use mailboxqtt::codec::{
    Ack, Auth, ConnAck, Connect, Delivery, Disconnect, Packet, Properties, PropertiesBuf, Property,
    Publish, PublishView, ReasonCode, SubAck, Subscribe, SubscribeFiltersBuf, SubscribeOptions,
    UnsubAck, Unsubscribe, UnsubscribeFiltersBuf, Will, decode, next_frame, packet_id_offset,
};
use mailboxqtt::ids::{PacketId, ProtocolVersion, Qos};

const VERSION: ProtocolVersion = ProtocolVersion::V5;
const ID: PacketId = PacketId::FIRST;
const TOPIC: &str = "site/7/line/3/temperature";

fn packets(bench: &mut Criterion) {
    let mut properties = PropertiesBuf::new();
    properties
        .push(Property::MessageExpiryInterval(60))
        .push(Property::ContentType("application/json"))
        .push(Property::UserProperty { name: "trace", value: "4bf92f3577b34da6" });
    let mut filters = SubscribeFiltersBuf::new();
    let mut names = UnsubscribeFiltersBuf::new();
    for filter in ["site/+/line/#", "site/7/line/3/temperature", "$share/workers/jobs/#"] {
        filters.push(filter, SubscribeOptions::new(Qos::AtLeastOnce));
        names.push(filter);
    }
    let publish = publish_64b();
    let qos1 = Delivery::AtLeastOnce { id: ID, dup: false };
    let id = ID;
    let empty = Properties::EMPTY;
    let will = Will {
        topic: TOPIC,
        payload: b"gone",
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: empty,
    };
    let connect = Connect {
        version: VERSION,
        clean_start: true,
        keep_alive_s: 60,
        client_id: "line-3-sensor-17",
        properties: empty,
        will: Some(will),
        user_name: Some("line-3"),
        password: Some(b"secret"),
    };
    let ack = Ack::success(ID);
    let reason = ReasonCode::Success;
    let reasons = [0, 1, 2];
    let kinds = [
        ("publish_64b_qos0", Packet::Publish(publish)),
        ("publish_64b_qos1", Packet::Publish(Publish { delivery: qos1, ..publish })),
        (
            "publish_64b_properties",
            Packet::Publish(Publish { properties: properties.as_properties(), ..publish }),
        ),
        ("connect", Packet::Connect(connect)),
        ("connack", Packet::ConnAck(ConnAck { session_present: true, reason, properties: empty })),
        ("puback", Packet::PubAck(ack)),
        ("pubrec", Packet::PubRec(ack)),
        ("pubrel", Packet::PubRel(ack)),
        ("pubcomp", Packet::PubComp(ack)),
        (
            "subscribe_3",
            Packet::Subscribe(Subscribe { id, properties: empty, filters: filters.as_filters() }),
        ),
        ("suback_3", Packet::SubAck(SubAck { id, properties: empty, reasons: &reasons })),
        (
            "unsubscribe_3",
            Packet::Unsubscribe(Unsubscribe { id, properties: empty, filters: names.as_filters() }),
        ),
        ("unsuback_3", Packet::UnsubAck(UnsubAck { id, properties: empty, reasons: &[0, 0, 17] })),
        ("pingreq", Packet::PingReq),
        ("disconnect", Packet::Disconnect(Disconnect { reason, properties: empty })),
        ("auth", Packet::Auth(Auth { reason, properties: empty })),
    ];
    let mut group = bench.benchmark_group("codec/decode");
    for (name, packet) in &kinds {
        let frame = encoded(packet);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(*name, |b| b.iter(|| decode(black_box(&frame), VERSION)));
    }
    publish_paths(&mut group);
    group.finish();

    let mut group = bench.benchmark_group("codec/encode");
    for (name, packet) in &kinds {
        let mut out = encoded(packet);
        group.throughput(Throughput::Bytes(out.len() as u64));
        group.bench_function(*name, |b| {
            b.iter(|| {
                out.clear();
                black_box(packet).encode(VERSION, &mut out);
                black_box(out.len())
            });
        });
    }
    group.finish();
}

/// The ways to read PUBLISH that avoid work which was done before.
fn publish_paths(group: &mut BenchmarkGroup<'_, WallTime>) {
    let frame = encoded(&Packet::Publish(publish_64b()));
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("publish_64b_qos0_same_topic", |b| {
        b.iter(|| Publish::decode_after(black_box(&frame), VERSION, Some(black_box(TOPIC))));
    });
    group.bench_function("publish_64b_qos0_view", |b| {
        b.iter(|| PublishView::parse(black_box(&frame), VERSION));
    });
    group.bench_function("publish_64b_packet_id_offset", |b| {
        b.iter(|| (next_frame(black_box(&frame)), packet_id_offset(black_box(&frame))));
    });

    let run = frame.repeat(100);
    assert_eq!(decode_run(&run), (100, 99));
    group.throughput(Throughput::Elements(100));
    group.bench_function("publish_run_of_100", |b| b.iter(|| decode_run(black_box(&run))));
}

/// Returns how many frames there are, and how many have the topic of the one before.
fn decode_run(mut rest: &[u8]) -> (usize, usize) {
    let (mut frames, mut repeats) = (0, 0);
    let mut previous: Option<&str> = None;
    while let Ok(Some(len)) = frame_len(rest, u32::MAX) {
        let Some((frame, behind)) = rest.split_at_checked(len) else { break };
        let Ok(publish) = Publish::decode_after(frame, VERSION, previous) else { break };
        frames += 1;
        if previous.is_some_and(|previous| std::ptr::eq(previous, publish.topic)) {
            repeats += 1;
        }
        black_box(&publish);
        previous = Some(publish.topic);
        rest = behind;
    }
    (frames, repeats)
}

fn publish_64b() -> Publish<'static> {
    Publish {
        topic: TOPIC,
        payload: &[b'x'; 64],
        properties: Properties::EMPTY,
        delivery: Delivery::AtMostOnce,
        retain: false,
    }
}

/// Encodes, and makes sure that the benchmark measures a right answer.
fn encoded(packet: &Packet<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    packet.encode(VERSION, &mut frame);
    assert_eq!(decode(&frame, VERSION).as_ref(), Ok(packet));
    frame
}

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
}

criterion_group! {
    name = codec;
    config = short();
    targets = packets
}
criterion_main!(codec);
