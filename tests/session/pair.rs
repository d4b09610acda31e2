//! A session and the client at the other end of its link.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mailboxqtt::codec::Delivery as Flow;
use mailboxqtt::codec::{
    Ack, Connect, Packet, Properties, PropertiesBuf, Property, Publish, PublishView, decode,
    frame_len,
};
use mailboxqtt::ids::{ClientId, PacketId, ProtocolVersion, Qos};
use mailboxqtt::message::{Batch, Buffer, Collector, Delivery, Kind, Piece, TopicHasher, shard_of};
use mailboxqtt::session::{
    Availability, CloseReason, Limits, Opening, Output, Place, Request, Session, Tally, negotiate,
};

/// Shards that the pair's collector knows.
pub(crate) const SHARDS: usize = 4;

/// What differs from one connection to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) version: ProtocolVersion,
    /// v5 only.
    pub(crate) receive_max: Option<u16>,
    /// v5 only.
    pub(crate) packet_bytes_max: Option<u32>,
    /// v5 only.
    pub(crate) problem_information: Option<bool>,
    /// v5 only.
    pub(crate) topic_alias_max: Option<u16>,
    pub(crate) keep_alive_s: u16,
}

impl Terms {
    pub(crate) const V311: Self = Self {
        version: ProtocolVersion::V311,
        receive_max: None,
        packet_bytes_max: None,
        problem_information: None,
        topic_alias_max: None,
        keep_alive_s: 0,
    };
    pub(crate) const V5: Self = Self { version: ProtocolVersion::V5, ..Self::V311 };
}

pub(crate) const LIMITS: Limits = Limits {
    inflight_max: 10,
    receive_max: 10,
    packet_bytes_max: 1024 * 1024,
    subscriptions_max: 5,
    subscription_bytes_max: usize::MAX,
    keep_alive_s_max: None,
    session_expiry_s_max: None,
    topic_alias_max: 64,
    availability: Availability::EVERYTHING,
    check_payload_format: false,
};

/// A packet from the session, as far as the scenarios care.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Heard {
    Publish(Message),
    PubAck(u16, u8),
    PubRec(u16, u8),
    PubRel(u16),
    PubComp(u16),
    SubAck(u16, Vec<u8>),
    UnsubAck(u16, Vec<u8>),
    PingResp,
    Disconnect(u8),
}

/// A PUBLISH from the session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Message {
    /// 0 at QoS 0.
    pub(crate) id: u16,
    pub(crate) qos: u8,
    pub(crate) dup: bool,
    /// The first four bytes of the payload.
    pub(crate) number: u32,
}

/// A batch went to a shard, which answers with `turn`.
#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) turn: u64,
}

/// A message that the session let through to a shard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Routed {
    pub(crate) topic: String,
    pub(crate) qos: Qos,
    pub(crate) number: u32,
}

/// See the module comment.
pub(crate) struct Pair {
    pub(crate) session: Session,
    pub(crate) out: Output,
    pub(crate) now: Instant,
    /// Everything that was routed.
    pub(crate) routed: Vec<Routed>,
    /// Sums since the beginning.
    pub(crate) released_messages: u64,
    pub(crate) released_bytes: usize,
    pub(crate) too_large: u64,
    pub(crate) expired: u64,
    pub(crate) charged_bytes: usize,
    pub(crate) charged_messages: u64,
    hasher: TopicHasher,
}

impl Pair {
    pub(crate) fn new(terms: Terms) -> Self {
        Self::with_limits(terms, LIMITS)
    }

    pub(crate) fn with_limits(terms: Terms, limits: Limits) -> Self {
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let now = Instant::now();
        Self {
            session: Session::new(limits, &opening(terms, &limits), now),
            out: Output::new(Collector::new(hasher.clone(), SHARDS, now)),
            now,
            routed: Vec::new(),
            released_messages: 0,
            released_bytes: 0,
            too_large: 0,
            expired: 0,
            charged_bytes: 0,
            charged_messages: 0,
            hasher,
        }
    }

    /// A topic that hashes to `shard`.
    pub(crate) fn topic_of(&self, shard: usize) -> String {
        let mut names = (0..).map(|n| format!("topic/{n}"));
        names.find(|name| shard_of(self.hasher.hash(name.as_bytes()), SHARDS) == shard).unwrap()
    }

    /// The client sends all of `packets` in one read. Returns the receipts that are due.
    pub(crate) fn say(&mut self, packets: &[Packet<'_>]) -> Vec<Receipt> {
        let version = self.session.link().version;
        let mut read = Vec::new();
        packets.iter().for_each(|packet| packet.encode(version, &mut read));
        self.read(&read)
    }

    /// As `net::connection` takes what one read brought.
    fn read(&mut self, read: &[u8]) -> Vec<Receipt> {
        self.session.handle_read(self.now);
        self.out.routes.begin(self.session.link().wire_version(), self.now);
        let version = self.session.link().version;
        let mut receipts = Vec::new();
        let mut taken = 0;
        let mut topic = None;
        while taken < read.len() && self.out.close.is_none() {
            let len = frame_len(&read[taken..], u32::MAX).unwrap().unwrap();
            let frame = &read[taken..taken + len];
            if frame[0] >> 4 == 3 {
                let publish = Publish::decode_after(frame, version, topic).unwrap();
                topic = Some(publish.topic);
                let header_len = PublishView::parse(frame, version).unwrap().header_len;
                let place = Place { frame: taken..taken + len, topic_at: taken + header_len + 2 };
                self.session.handle_publish(&publish, place, &mut self.out);
            } else {
                let packet = decode(frame, version).unwrap();
                self.session.handle_packet(&packet, &mut self.out);
                if !self.out.requests.is_empty() {
                    self.route(read, &mut receipts);
                }
            }
            taken += len;
        }
        self.route(read, &mut receipts);
        receipts
    }

    fn route(&mut self, read: &[u8], receipts: &mut Vec<Receipt>) {
        let turn = self.session.end_turn(self.out.routes.touched(), &mut self.out);
        let routed = &mut self.routed;
        self.out.routes.flush(read, |_, batch| {
            routed.extend(messages_of(&batch));
            receipts.extend(turn.map(|turn| Receipt { turn }));
        });
    }

    /// The shard owns what it got.
    pub(crate) fn accept(&mut self, receipt: &Receipt) {
        self.accept_unmatched(receipt, &[]);
    }

    /// The shard owns what it got, and nobody has subscribed to the topics of messages `ids`.
    pub(crate) fn accept_unmatched(&mut self, receipt: &Receipt, ids: &[u16]) {
        let unmatched = ids.iter().map(|id| pid(*id)).collect();
        self.session.handle_accepted(receipt.turn, unmatched, &mut self.out);
    }

    /// A shard has `delivery` for the client.
    pub(crate) fn deliver(&mut self, delivery: Delivery) {
        self.charged_bytes += delivery.held_bytes;
        self.charged_messages += u64::from(delivery.messages);
        self.session.handle_delivery(delivery);
    }

    /// The session writes what it can, and the client reads all of it.
    pub(crate) fn hear(&mut self) -> Vec<Heard> {
        let mut heard = Vec::new();
        loop {
            let more = self.session.fill(|| self.now, &mut self.out);
            heard.append(&mut self.take_bytes());
            if !more {
                return heard;
            }
        }
    }

    /// The session writes what it can; the bytes as they are.
    pub(crate) fn hear_bytes(&mut self) -> Vec<u8> {
        while self.session.fill(|| self.now, &mut self.out) {}
        self.take_tally();
        std::mem::take(&mut self.out.bytes)
    }

    /// Only the messages, by number.
    pub(crate) fn hear_numbers(&mut self) -> Vec<u32> {
        self.hear().iter().filter_map(number).collect()
    }

    fn take_tally(&mut self) {
        let Tally { released_messages, released_bytes, too_large, expired, .. } =
            std::mem::take(&mut self.out.tally);
        self.released_messages += released_messages;
        self.released_bytes += released_bytes;
        self.too_large += too_large;
        self.expired += expired;
    }

    fn take_bytes(&mut self) -> Vec<Heard> {
        self.take_tally();
        let version = self.session.link().version;
        let bytes = std::mem::take(&mut self.out.bytes);
        let mut rest = &bytes[..];
        let mut heard = Vec::new();
        while !rest.is_empty() {
            let len = frame_len(rest, u32::MAX).unwrap().unwrap();
            let max = self.session.link().packet_bytes_max.unwrap_or(u32::MAX);
            assert!(len as u64 <= u64::from(max), "packet of {len} bytes");
            heard.push(Heard::new(&decode(&rest[..len], version).unwrap()));
            rest = &rest[len..];
        }
        heard
    }

    /// What the router is asked for.
    pub(crate) fn requests(&mut self) -> Vec<Request> {
        self.out.requests.drain(..).collect()
    }

    pub(crate) fn close_reason(&mut self) -> Option<CloseReason> {
        self.out.close.take()
    }

    /// The link breaks: what the session wrote and the client did not hear is lost.
    pub(crate) fn lose_link(&mut self) {
        let lost = CloseReason::Lost("gone".to_owned());
        self.session.detach(&lost);
        self.out.bytes.clear();
        self.out.close = None;
    }

    pub(crate) fn resume(&mut self, terms: Terms, limits: Limits) {
        self.session.attach(&opening(terms, &limits), self.now);
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

impl Heard {
    fn new(packet: &Packet<'_>) -> Self {
        match packet {
            Packet::Publish(publish) => Self::Publish(Message {
                id: publish.delivery.id().map_or(0, PacketId::get),
                qos: publish.delivery.qos() as u8,
                dup: publish.delivery.dup(),
                number: number_in(publish.payload),
            }),
            Packet::PubAck(ack) => Self::PubAck(ack.id.get(), ack.reason.as_u8()),
            Packet::PubRec(ack) => Self::PubRec(ack.id.get(), ack.reason.as_u8()),
            Packet::PubRel(ack) => Self::PubRel(ack.id.get()),
            Packet::PubComp(ack) => Self::PubComp(ack.id.get()),
            Packet::SubAck(ack) => Self::SubAck(ack.id.get(), ack.reasons.to_vec()),
            Packet::UnsubAck(ack) => Self::UnsubAck(ack.id.get(), ack.reasons.to_vec()),
            Packet::PingResp => Self::PingResp,
            Packet::Disconnect(disconnect) => Self::Disconnect(disconnect.reason.as_u8()),
            other => panic!("a server does not send {other:?}"),
        }
    }
}

fn messages_of(batch: &Batch) -> Vec<Routed> {
    let mut routed = Vec::new();
    for run in &batch.runs {
        let start = run.offset as usize;
        let mut frames = &batch.frames[start..start + run.len as usize];
        for _ in 0..run.count {
            let view = PublishView::parse(frames, batch.version).unwrap();
            assert_eq!(view.topic, batch.topic(run));
            let topic = std::str::from_utf8(view.topic).unwrap().to_owned();
            routed.push(Routed { topic, qos: run.qos, number: number_in(view.payload) });
            frames = &frames[view.frame_len..];
        }
        assert!(frames.is_empty(), "a run is exactly its frames");
    }
    routed
}

fn opening(terms: Terms, limits: &Limits) -> Opening {
    let mut properties = PropertiesBuf::new();
    if let Some(max) = terms.topic_alias_max {
        properties.push(Property::TopicAliasMaximum(max));
    }
    if let Some(max) = terms.receive_max {
        properties.push(Property::ReceiveMaximum(max));
    }
    if let Some(max) = terms.packet_bytes_max {
        properties.push(Property::MaximumPacketSize(max));
    }
    if let Some(is_wanted) = terms.problem_information {
        properties.push(Property::RequestProblemInformation(is_wanted));
    }
    let connect = Connect {
        version: terms.version,
        clean_start: false,
        keep_alive_s: terms.keep_alive_s,
        client_id: "client",
        properties: properties.as_properties(),
        will: None,
        user_name: None,
        password: None,
    };
    negotiate(&connect, limits, || ClientId::new("spare")).unwrap()
}

/// A PUBLISH whose payload is `payload`.
pub(crate) fn publish<'a>(topic: &'a str, payload: &'a [u8], delivery: Flow) -> Packet<'a> {
    let properties = Properties::EMPTY;
    Packet::Publish(Publish { topic, payload, properties, delivery, retain: false })
}

pub(crate) fn flow(qos: u8, id: u16, dup: bool) -> Flow {
    match qos {
        0 => Flow::AtMostOnce,
        1 => Flow::AtLeastOnce { id: pid(id), dup },
        _ => Flow::ExactlyOnce { id: pid(id), dup },
    }
}

pub(crate) fn puback<'a>(id: u16) -> Packet<'a> {
    Packet::PubAck(Ack::success(pid(id)))
}

pub(crate) fn pubrec<'a>(id: u16) -> Packet<'a> {
    Packet::PubRec(Ack::success(pid(id)))
}

pub(crate) fn pubrel<'a>(id: u16) -> Packet<'a> {
    Packet::PubRel(Ack::success(pid(id)))
}

pub(crate) fn pubcomp<'a>(id: u16) -> Packet<'a> {
    Packet::PubComp(Ack::success(pid(id)))
}

pub(crate) fn pid(id: u16) -> PacketId {
    PacketId::new(id).unwrap()
}

pub(crate) fn qos(raw: u8) -> Qos {
    Qos::new(raw).unwrap()
}

/// Number of a message that was heard.
pub(crate) fn number(heard: &Heard) -> Option<u32> {
    match heard {
        Heard::Publish(message) => Some(message.number),
        _ => None,
    }
}

fn number_in(payload: &[u8]) -> u32 {
    u32::from_be_bytes(*payload.first_chunk().unwrap())
}

/// What a publisher's run becomes on its way to a subscriber.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// What the publisher speaks.
    pub(crate) version: ProtocolVersion,
    /// As published.
    pub(crate) from: u8,
    /// As delivered.
    pub(crate) to: u8,
    /// Number of the first message.
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// Bytes of each payload, at least four.
    pub(crate) payload_bytes: usize,
}

impl Run {
    /// 3.1.1 messages at one QoS.
    pub(crate) fn new(qos: u8, first: u32, count: u32) -> Self {
        let version = ProtocolVersion::V311;
        Self { version, from: qos, to: qos, first, count, payload_bytes: 4 }
    }
}

/// One run alone.
pub(crate) fn delivery(run: Run) -> Delivery {
    delivery_of(&[run])
}

/// `runs`, all of one kind, each in a buffer of its own.
pub(crate) fn delivery_of(runs: &[Run]) -> Delivery {
    let kind = match runs[0].to {
        0 => Kind::Unacknowledged,
        _ => Kind::Acknowledged,
    };
    let mut buffers = Vec::new();
    let mut pieces = Vec::new();
    for run in runs {
        let mut frames = Vec::new();
        for number in run.first..run.first + run.count {
            let mut payload = vec![0; run.payload_bytes];
            payload[..4].copy_from_slice(&number.to_be_bytes());
            publish("t", &payload, flow(run.from, 7, false)).encode(run.version, &mut frames);
        }
        pieces.push(Piece {
            buffer: buffers.len() as u32,
            offset: 0,
            len: frames.len() as u32,
            count: run.count,
            version: run.version,
            frame_qos: qos(run.from),
            frame_retain: false,
            qos: qos(run.to),
            retain: false,
            expires: false,
            via: 0,
        });
        buffers.push(Buffer { frames: Bytes::from(frames), received_at: Instant::now() });
    }
    Delivery::new(kind, buffers, pieces, Vec::new())
}

/// A message as it is heard for the first time.
pub(crate) fn first_time(qos: u8, id: u16, number: u32) -> Heard {
    Heard::Publish(Message { id, qos, dup: false, number })
}

/// A message as it is heard again.
pub(crate) fn again(qos: u8, id: u16, number: u32) -> Heard {
    Heard::Publish(Message { id, qos, dup: true, number })
}
