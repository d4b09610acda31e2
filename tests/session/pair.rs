//! A session and the client at the other end of its link.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mailboxqtt::codec::Delivery as Flow;
use mailboxqtt::codec::{
    Ack, Connect, Packet, Properties, PropertiesBuf, Property, Publish, PublishView, decode,
    frame_len, header_len,
};
use mailboxqtt::ids::{ClientId, PacketId, ProtocolVersion, Qos};
use mailboxqtt::message::{Batch, Buffer, Collector, Delivery, Kind, Piece, TopicHasher, shard_of};
use mailboxqtt::session::authentication::Authenticated;
use mailboxqtt::session::{
    Availability, CloseReason, Limits, Opening, Output, Place, Request, Session, negotiate,
};
use mailboxqtt::topic::MountPoint;

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

/// What the session was given of the bytes that the client sent, in order.
#[derive(Debug)]
pub(crate) enum Taken {
    /// A whole packet, which made the session ask the router for something or not.
    Packet { frame: Vec<u8>, asked: bool },
    /// The turn ended, and one batch went to each shard that it touched.
    Turn { number: Option<u64>, batches: Vec<(usize, Batch)> },
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
    /// Messages of the client that were not routed.
    pub(crate) not_routed: u64,
    pub(crate) charged_bytes: usize,
    pub(crate) charged_messages: u64,
    hasher: TopicHasher,
    /// The start of a packet whose end has not arrived.
    tail: Vec<u8>,
    /// Who the next connections are authenticated as.
    pub(crate) authenticated: Option<Authenticated>,
    /// What stands before the topics of the next connections.
    mount_point: Option<MountPoint>,
    pub(crate) not_authorized: u64,
    pub(crate) topic_too_long: u64,
}

impl Pair {
    pub(crate) fn new(terms: Terms) -> Self {
        Self::with_limits(terms, LIMITS)
    }

    pub(crate) fn with_limits(terms: Terms, limits: Limits) -> Self {
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let now = Instant::now();
        Self {
            session: Session::new(limits, &opening(terms, &limits, None), now),
            out: Output::new(Collector::new(hasher.clone(), SHARDS, now)),
            now,
            routed: Vec::new(),
            released_messages: 0,
            released_bytes: 0,
            too_large: 0,
            expired: 0,
            not_routed: 0,
            charged_bytes: 0,
            charged_messages: 0,
            hasher,
            tail: Vec::new(),
            authenticated: None,
            mount_point: None,
            not_authorized: 0,
            topic_too_long: 0,
        }
    }

    /// A client of a listener with that mount point.
    pub(crate) fn behind(mount_point: &str, terms: Terms, limits: Limits) -> Self {
        let mut pair = Self::with_limits(terms, limits);
        pair.mount_point = Some(MountPoint::parse(mount_point).unwrap());
        pair.resume(terms, limits);
        pair
    }

    /// The shard of a topic.
    pub(crate) fn shard_of(&self, topic: &str) -> usize {
        shard_of(self.hasher.hash(topic.as_bytes()), SHARDS)
    }

    /// A topic that hashes to `shard`.
    pub(crate) fn topic_of(&self, shard: usize) -> String {
        let mut names = (0..).map(|n| format!("topic/{n}"));
        names.find(|name| self.shard_of(name) == shard).unwrap()
    }

    /// The client sends all of `packets` in one read. Returns the receipts that are due.
    pub(crate) fn say(&mut self, packets: &[Packet<'_>]) -> Vec<Receipt> {
        let version = self.session.link().version;
        let mut read = Vec::new();
        packets.iter().for_each(|packet| packet.encode(version, &mut read));
        let mut receipts = Vec::new();
        for taken in self.receive(&read) {
            let Taken::Turn { number, batches } = taken else { continue };
            for (_, batch) in batches {
                self.routed.extend(messages_of(&batch));
                receipts.extend(number.map(|turn| Receipt { turn }));
            }
        }
        receipts
    }

    /// As `net::connection` takes what one read brought: whole packets or not, right or wrong.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Vec<Taken> {
        let mut read = std::mem::take(&mut self.tail);
        read.extend_from_slice(bytes);
        let version = self.session.link().version;
        self.out.routes.begin(self.session.link().wire_version(), self.now);
        let mut log = Vec::new();
        let mut taken = 0;
        let mut topic = None;
        while self.out.close.is_none() {
            let rest = &read[taken..];
            let frame = match frame_len(rest, self.session.packet_bytes_max()) {
                Ok(len) => len.and_then(|len| rest.get(..len)),
                Err(error) => {
                    self.out.close = Some(error.into());
                    None
                }
            };
            let Some(frame) = frame else { break };
            let requests = self.out.requests.len();
            let publish = if frame[0] >> 4 == 3 {
                Publish::decode_after(frame, version, topic).map(Packet::Publish)
            } else {
                decode(frame, version)
            };
            match publish {
                Ok(Packet::Publish(publish)) => {
                    topic = Some(publish.topic);
                    let topic_at = taken + header_len(frame).unwrap() + 2;
                    let place = Place { frame: taken..taken + frame.len(), topic_at };
                    self.session.handle_publish(&publish, place, &mut self.out);
                }
                Ok(packet) => self.session.handle_packet(&packet, &mut self.out),
                Err(error) => self.out.close = Some(error.into()),
            }
            taken += frame.len();
            let asked = self.out.requests.len() > requests;
            log.push(Taken::Packet { frame: frame.to_vec(), asked });
            if asked {
                log.push(self.end_turn(&read));
            }
        }
        log.push(self.end_turn(&read));
        if taken > 0 {
            // Whole packets count, not bytes [MQTT-3.1.2-22].
            self.session.handle_read(self.now);
        }
        self.tail = read.split_off(taken);
        log
    }

    fn end_turn(&mut self, read: &[u8]) -> Taken {
        let number = self.session.end_turn(self.out.routes.touched(), &mut self.out);
        let mut batches = Vec::new();
        self.out.routes.flush(read, |shard, batch| batches.push((shard, batch)));
        Taken::Turn { number, batches }
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
        self.session.handle_delivery(delivery, &mut self.out);
    }

    /// The session writes what it can, and the client reads all of it.
    pub(crate) fn hear(&mut self) -> Vec<Heard> {
        let mut heard = Vec::new();
        loop {
            let (bytes, more) = self.fill();
            self.each_packet(&bytes, |packet| heard.push(Heard::new(&packet)));
            if !more {
                return heard;
            }
        }
    }

    /// The session writes what it can. Returns all that it has written since the last time, and
    /// whether there is more.
    pub(crate) fn fill(&mut self) -> (Vec<u8>, bool) {
        let more = self.session.fill(|| self.now, &mut self.out);
        (self.take_bytes(), more)
    }

    /// The session writes what it can; the bytes as they are.
    pub(crate) fn hear_bytes(&mut self) -> Vec<u8> {
        while self.session.fill(|| self.now, &mut self.out) {}
        self.take_bytes()
    }

    /// Only the messages, by number.
    pub(crate) fn hear_numbers(&mut self) -> Vec<u32> {
        self.hear().iter().filter_map(number).collect()
    }

    /// What the session has written since the last time.
    pub(crate) fn take_bytes(&mut self) -> Vec<u8> {
        let tally = std::mem::take(&mut self.out.tally);
        self.released_messages += tally.released_messages;
        self.released_bytes += tally.released_bytes;
        self.too_large += tally.too_large;
        self.expired += tally.expired;
        self.not_routed += tally.not_authorized + tally.payload_format_invalid;
        self.not_authorized += tally.not_authorized;
        self.topic_too_long += tally.topic_too_long;
        std::mem::take(&mut self.out.bytes)
    }

    /// Reads `bytes` of the session as the client does.
    pub(crate) fn each_packet<'b>(&self, bytes: &'b [u8], mut read: impl FnMut(Packet<'b>)) {
        let version = self.session.link().version;
        let max = self.session.link().packet_bytes_max.unwrap_or(u32::MAX);
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = frame_len(rest, u32::MAX).unwrap().unwrap();
            assert!(len as u64 <= u64::from(max), "packet of {len} bytes");
            read(decode(&rest[..len], version).unwrap());
            rest = &rest[len..];
        }
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
        self.tail.clear();
    }

    pub(crate) fn resume(&mut self, terms: Terms, limits: Limits) {
        let mut opening = opening(terms, &limits, self.mount_point.as_ref());
        opening.authenticated = self.authenticated.clone();
        self.session.attach(limits, &opening, self.now);
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

fn opening(terms: Terms, limits: &Limits, mount_point: Option<&MountPoint>) -> Opening {
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
    if let Some(max) = terms.topic_alias_max {
        properties.push(Property::TopicAliasMaximum(max));
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
    let mut opening = negotiate(&connect, limits, || ClientId::new("spare")).unwrap();
    if let Some(mount_point) = mount_point {
        opening.mount(&connect, mount_point).unwrap();
    }
    opening
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
            record: 0,
            first: 0,
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
