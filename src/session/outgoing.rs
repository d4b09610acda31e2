//! Messages on their way to the client: what waits, what is sent, what is acknowledged. Floor 2,
//! owned by `Session`.
//!
//! QoS 0 and QoS 1/2 wait in queues of their own, so that a client that does not acknowledge
//! still gets its QoS 0 messages. Frames are copied a whole stretch at a time and then patched where
//! version, QoS and properties allow it; else they are encoded anew, one by one.
//!
//! # Invariants
//!
//! - Within one QoS the order of deliveries is the order on the wire [MQTT-4.6.0-6].
//! - Nothing new is sent before everything open has been sent again.

use std::time::Instant;

use crate::codec::Ack;
use crate::codec::Delivery as Flow;
use crate::codec::{
    Forward, PACKET_BYTES_MAX, Packet, Properties, PublishView, ReasonCode, TopicAlias, next_frame,
};
use crate::ids::{PacketId, Qos};
use crate::message::{Delivery, Kind, Logged, Piece, Stored, Undelivered};
use crate::session::aliases::SentAliases;
use crate::session::naming::unmounted;
use crate::session::queue::{Queue, Stretch};
use crate::session::refusal::NO_OPEN_MESSAGE;
use crate::session::window::{Acknowledged, Body, Resend, Window};
use crate::session::{Link, Output};
use crate::topic::TopicFilter;

/// See the module comment.
#[derive(Debug)]
pub(super) struct Outgoing {
    unacknowledged: Queue,
    acknowledged: Queue,
    window: Window,
    aliases: SentAliases,
}

impl Outgoing {
    /// Nothing waits, nothing is sent.
    pub(super) fn new() -> Self {
        Self {
            unacknowledged: Queue::default(),
            acknowledged: Queue::default(),
            window: Window::new(),
            aliases: SentAliases::default(),
        }
    }

    /// What an earlier process has sent.
    pub(super) fn remember(
        &mut self,
        sent: Vec<(PacketId, Delivery)>,
        awaits_pubcomp: &[PacketId],
    ) {
        let body = |delivery: &Delivery| {
            let piece = delivery.pieces.first()?;
            let buffer = delivery.buffers.first()?;
            let body = Body {
                frames: buffer.frames.clone(),
                version: piece.version,
                qos: piece.qos,
                retain: piece.retain,
                expires: piece.expires,
                received_at: buffer.received_at,
                via: delivery.via(piece).cloned(),
                charged_bytes: 0,
                logged: delivery.logged(piece),
            };
            Some((body, piece.count as usize))
        };
        let sent = sent
            .iter()
            .filter_map(|(id, delivery)| body(delivery).map(|(body, count)| (*id, body, count)));
        self.window.remember(sent.collect(), awaits_pubcomp);
    }

    /// A connection begins.
    pub(super) fn attach(&mut self, link: &Link) {
        self.window.attach(link.send_max);
        self.aliases.attach(link.topic_alias_max);
    }

    /// The connection is gone, and the aliases with it.
    pub(super) fn detach(&mut self) {
        self.aliases.attach(0);
    }

    /// Queues what a shard sent. [`Outgoing::fill`] puts it on the wire.
    pub(super) fn push(&mut self, delivery: Delivery, is_away: bool, out: &mut Output) {
        match delivery.kind {
            Kind::Unacknowledged => self.unacknowledged.push(delivery, is_away, out),
            Kind::Acknowledged => self.acknowledged.push(delivery, is_away, out),
        }
    }

    /// Queues what waited when an earlier process ended.
    pub(super) fn push_stored(&mut self, stored: Stored) {
        self.acknowledged.push_stored(stored);
    }

    /// The chunk that was asked for has been read; `lost` could not be.
    pub(super) fn push_fetched(
        &mut self,
        fetched: Vec<Delivery>,
        lost: Vec<Stored>,
        link: &Link,
        out: &mut Output,
    ) {
        for Stored { at, first, count, len, .. } in lost {
            out.journal.done(link.durable, Logged { at, number: first }, count);
            out.tally.unreadable += u64::from(count);
            out.tally.released_messages += u64::from(count);
            out.tally.released_bytes += len as usize;
        }
        self.acknowledged.push_fetched(fetched);
    }

    /// What has to be read from the log next, if it is time.
    pub(super) fn next_chunk(&mut self) -> Option<Vec<Stored>> {
        self.acknowledged.next_chunk()
    }

    /// Whether everything that was pushed has been sent.
    pub(super) fn is_drained(&self) -> bool {
        self.unacknowledged.is_empty() && self.acknowledged.is_empty()
    }

    /// Sent and not complete.
    pub(super) fn inflight(&self) -> usize {
        self.window.len()
    }

    /// Takes out what came by a shared subscription and was not sent. Of an ended session also what was
    /// sent at QoS 1 and not acknowledged; at QoS 2 that must not go to anyone else [MQTT-4.8.2-5].
    pub(super) fn take_shared(
        &mut self,
        has_ended: bool,
        are_takers: &mut dyn FnMut(&TopicFilter) -> bool,
        out: &mut Output,
    ) -> Vec<Undelivered> {
        let mut undelivered = Vec::new();
        if has_ended {
            self.window.take_shared(&mut undelivered);
        }
        self.acknowledged.take_shared(are_takers, &mut undelivered, out);
        self.unacknowledged.take_shared(are_takers, &mut undelivered, out);
        undelivered
    }

    /// Drops what has expired and was not sent. Returns whether anything else may expire.
    pub(super) fn drop_expired(&mut self, now: Instant, link: &Link, out: &mut Output) -> bool {
        let acknowledged = self.acknowledged.drop_expired(now, link.durable, out);
        self.unacknowledged.drop_expired(now, link.durable, out) || acknowledged
    }

    /// Drops what waits longest until so much has left the queue, or nothing waits: QoS 0 first, for it is promised to
    /// nobody.
    pub(super) fn make_room(&mut self, messages: u64, bytes: usize, link: &Link, out: &mut Output) {
        for queue in [&mut self.unacknowledged, &mut self.acknowledged] {
            while (out.tally.released_messages < messages || out.tally.released_bytes < bytes)
                && queue.drop_oldest(messages, link.durable, out)
            {}
        }
    }

    /// The client acknowledged something with PUBACK, PUBREC or PUBCOMP.
    pub(super) fn acknowledged(
        &mut self,
        step: Step,
        ack: &Ack<'_>,
        link: &Link,
        out: &mut Output,
    ) {
        let refused = ack.reason.as_u8() >= 0x80;
        let outcome = match step {
            Step::Acknowledged => self.window.puback(ack.id),
            Step::Received if refused => self.window.pubrec_refused(ack.id),
            Step::Received => self.window.pubrec(ack.id),
            Step::Completed => self.window.pubcomp(ack.id),
        };
        match outcome {
            Acknowledged::Expected { released_bytes, done } => {
                out.tally.released_bytes += released_bytes;
                match done {
                    Some(_) if step == Step::Received => out.journal.given_up(link.durable, ack.id),
                    Some(logged) => out.journal.done(link.durable, logged, 1),
                    None => out.journal.step(link.durable, step, ack.id),
                }
                // A PUBCOMP that says no is about its identifier: the client has the message since its PUBREC.
                out.tally.refused += u64::from(refused && step != Step::Completed);
            }
            // Only PUBREC has an answer that could say so.
            Acknowledged::Unknown => out.tally.acks_unknown += 1,
        }
        if step == Step::Received && !refused {
            match outcome {
                Acknowledged::Expected { .. } => pubrel(ack.id, link, out),
                Acknowledged::Unknown => pubrel_of_nothing(ack.id, link, out),
            }
        }
    }

    /// Sends again what is open, then what waits, as far as the window and the room in the output
    /// go. Returns whether more could be sent as soon as there is room.
    pub(super) fn fill(
        &mut self,
        link: &Link,
        now: &dyn Fn() -> Instant,
        out: &mut Output,
    ) -> bool {
        while out.bytes.len() < out.bytes_max() {
            if self.resend(link, now, out) || self.send_acknowledged(link, now, out) {
                continue;
            }
            if !self.send_unacknowledged(link, now, out) {
                return false;
            }
        }
        true
    }

    fn resend(&mut self, link: &Link, now: &dyn Fn() -> Instant, out: &mut Output) -> bool {
        match self.window.next_resend() {
            None => return false,
            Some(Resend::PubRel { id }) => pubrel(id, link, out),
            Some(Resend::Publish { id, body, index }) => {
                let mut frames = &body.frames[..];
                for _ in 0..index {
                    frames = next_frame(frames).and_then(|len| frames.get(len..)).unwrap_or(&[]);
                }
                let qos = body.qos;
                let mut writer = Writer::new(body, &mut self.aliases, link, now);
                // Expiry is no matter here: its delivery has begun [MQTT-3.3.2-5].
                let is_sent = PublishView::parse(frames, body.version)
                    .is_some_and(|view| writer.write(&view, flow(qos, id, true), out));
                if !is_sent {
                    self.window.resent();
                    self.leave_out(id, qos, link, out);
                    return true;
                }
            }
        }
        self.window.resent();
        true
    }

    /// Too large for this client, or out of date: as if it had been sent and acknowledged [MQTT-3.1.2-25].
    fn leave_out(&mut self, id: PacketId, qos: Qos, link: &Link, out: &mut Output) {
        let outcome = match qos {
            Qos::AtMostOnce | Qos::AtLeastOnce => self.window.puback(id),
            Qos::ExactlyOnce => self.window.pubrec_refused(id),
        };
        if let Acknowledged::Expected { released_bytes, done } = outcome {
            out.tally.released_bytes += released_bytes;
            match done {
                Some(_) if qos == Qos::ExactlyOnce => out.journal.given_up(link.durable, id),
                Some(logged) => out.journal.done(link.durable, logged, 1),
                None => (),
            }
        }
    }

    fn send_acknowledged(
        &mut self,
        link: &Link,
        now: &dyn Fn() -> Instant,
        out: &mut Output,
    ) -> bool {
        let free = self.window.free();
        if free == 0 {
            return false;
        }
        let Some(Stretch { piece, body }) = self.acknowledged.take(free, out) else {
            return false;
        };
        let first = self.window.next_id();
        if piece.qos == Qos::ExactlyOnce
            && let Some(logged) = body.logged
        {
            out.journal.sent(link.durable, logged, piece.count, first);
        }
        let left_out = send_stretch(&piece, &body, first, &mut self.aliases, link, now, out);
        self.window.push(body, piece.count as usize);
        for id in left_out {
            self.leave_out(id, piece.qos, link, out);
        }
        true
    }

    fn send_unacknowledged(
        &mut self,
        link: &Link,
        now: &dyn Fn() -> Instant,
        out: &mut Output,
    ) -> bool {
        let Some(Stretch { piece, body }) = self.unacknowledged.take(usize::MAX, out) else {
            return false;
        };
        send_stretch(&piece, &body, PacketId::FIRST, &mut self.aliases, link, now, out);
        out.tally.released_bytes += body.charged_bytes;
        true
    }
}

/// Which acknowledgement of an outgoing message arrived.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// PUBACK: QoS 1, done.
    Acknowledged,
    /// PUBREC: QoS 2, the client has it.
    Received,
    /// PUBCOMP: QoS 2, done.
    Completed,
}

/// Writes the frames of `body` with identifiers from `first` on. Returns the identifiers of the
/// messages that were left out: too large for the client, or out of date.
fn send_stretch(
    piece: &Piece,
    body: &Body,
    first: PacketId,
    aliases: &mut SentAliases,
    link: &Link,
    now: &dyn Fn() -> Instant,
    out: &mut Output,
) -> Vec<PacketId> {
    let has_id = |qos: Qos| qos != Qos::AtMostOnce;
    let same_layout = link.wire_version() == piece.version
        && has_id(piece.qos) == has_id(piece.frame_qos)
        && link.packet_bytes_max.is_none()
        && !piece.expires
        && body.identifiers().is_empty()
        && !aliases.are_allowed()
        && link.mount_point.is_none();
    if !same_layout {
        return write_stretch(body, first, aliases, link, now, out);
    }
    let start = out.bytes.len();
    out.bytes.extend_from_slice(&body.frames);
    let first_byte = 0x30 | (piece.qos as u8) << 1 | u8::from(piece.retain);
    if has_id(piece.qos) {
        patch(&mut out.bytes[start..], first_byte, first);
    } else if piece.frame_retain != piece.retain {
        patch_first_bytes(&mut out.bytes[start..], first_byte);
    }
    out.tally.publishes_sent(u64::from(piece.count), body.frames.len());
    Vec::new()
}

/// Sets the first byte and the packet identifier of each frame.
fn patch(mut frames: &mut [u8], first_byte: u8, first: PacketId) {
    let mut id = first;
    while let Some(len) = next_frame(frames)
        && let Some((frame, rest)) = frames.split_at_mut_checked(len)
    {
        if let Some(at) = crate::codec::packet_id_offset(frame)
            && let Some(bytes) = frame.get_mut(at..at + 2)
        {
            bytes.copy_from_slice(&id.get().to_be_bytes());
        }
        if let Some(byte) = frame.first_mut() {
            *byte = first_byte;
        }
        id = id.next();
        frames = rest;
    }
}

fn patch_first_bytes(mut frames: &mut [u8], first_byte: u8) {
    while let Some(len) = next_frame(frames)
        && let Some((frame, rest)) = frames.split_at_mut_checked(len)
    {
        if let Some(byte) = frame.first_mut() {
            *byte = first_byte;
        }
        frames = rest;
    }
}

/// Encodes the frames of `body` one by one; like [`send_stretch`].
fn write_stretch(
    body: &Body,
    first: PacketId,
    aliases: &mut SentAliases,
    link: &Link,
    now: &dyn Fn() -> Instant,
    out: &mut Output,
) -> Vec<PacketId> {
    let mut writer = Writer::new(body, aliases, link, now);
    let mut left_out = Vec::new();
    let mut frames = &body.frames[..];
    let mut id = first;
    while let Some(view) = PublishView::parse(frames, body.version) {
        if writer.has_expired(&view) {
            out.tally.expired += 1;
            left_out.push(id);
        } else if !writer.write(&view, flow(body.qos, id, false), out) {
            left_out.push(id);
        }
        id = id.next();
        frames = frames.get(view.frame_len..).unwrap_or(&[]);
    }
    left_out
}

/// Encodes messages of one body, which have one topic.
struct Writer<'a> {
    body: &'a Body,
    aliases: &'a mut SentAliases,
    link: &'a Link,
    /// Whole seconds since the messages were received.
    waited_s: u32,
    /// Looked up with the first message.
    alias: Option<Option<TopicAlias>>,
}

impl<'a> Writer<'a> {
    fn new(
        body: &'a Body,
        aliases: &'a mut SentAliases,
        link: &'a Link,
        now: &dyn Fn() -> Instant,
    ) -> Self {
        let waited_s = match body.expires {
            true => now().saturating_duration_since(body.received_at).as_secs(),
            false => 0,
        };
        let waited_s = u32::try_from(waited_s).unwrap_or(u32::MAX);
        Self { body, aliases, link, waited_s, alias: None }
    }

    fn has_expired(&self, view: &PublishView<'_>) -> bool {
        self.body.expires
            && view.message_expiry_interval_s().is_some_and(|interval| interval <= self.waited_s)
    }

    /// Writes one PUBLISH. Returns false where it is larger than the client takes [MQTT-3.1.2-24], or not below
    /// the mount point of the client: no route leads there, but if one did, it would end here.
    fn write(&mut self, view: &PublishView<'_>, flow: Flow, out: &mut Output) -> bool {
        let Some(mount_point) = &self.link.mount_point else {
            return self.write_as_it_is(view, flow, out);
        };
        match unmounted(view, mount_point) {
            Some(view) => self.write_as_it_is(&view, flow, out),
            None => {
                out.tally.not_authorized += 1;
                false
            }
        }
    }

    fn write_as_it_is(&mut self, view: &PublishView<'_>, flow: Flow, out: &mut Output) -> bool {
        let alias = match self.alias {
            Some(alias) => alias,
            None if self.aliases.are_allowed() => {
                self.aliases.find(view.topic, out.is_memory_short)
            }
            None => None,
        };
        let is_written = self.write_with(alias, view, flow, out);
        match alias {
            Some(TopicAlias::New(number)) if is_written => {
                self.aliases.learn(view.topic, number);
                self.alias = Some(Some(TopicAlias::Known(number)));
            }
            // Its three bytes may be too many: behind a name, or in place of a shorter one.
            Some(_) if !is_written => {
                if self.write_with(None, view, flow, out) {
                    return true;
                }
            }
            alias => self.alias = Some(alias),
        }
        out.tally.too_large += u64::from(!is_written);
        is_written
    }

    fn write_with(
        &self,
        alias: Option<TopicAlias>,
        view: &PublishView<'_>,
        flow: Flow,
        out: &mut Output,
    ) -> bool {
        let identifiers = self.body.identifiers();
        let forward = Forward { waited_s: self.waited_s, identifiers, alias };
        let start = out.bytes.len();
        view.encode(self.link.version, flow, self.body.retain, &forward, &mut out.bytes);
        let len = out.bytes.len() - start;
        // What is published in the largest packet there can be may not fit into one with an identifier.
        let max = self.link.packet_bytes_max.unwrap_or(PACKET_BYTES_MAX);
        if len > max.min(PACKET_BYTES_MAX) as usize {
            out.bytes.truncate(start);
            return false;
        }
        out.tally.publishes_sent(1, len);
        true
    }
}

fn flow(qos: Qos, id: PacketId, dup: bool) -> Flow {
    match qos {
        Qos::AtMostOnce => Flow::AtMostOnce,
        Qos::AtLeastOnce => Flow::AtLeastOnce { id, dup },
        Qos::ExactlyOnce => Flow::ExactlyOnce { id, dup },
    }
}

fn pubrel(id: PacketId, link: &Link, out: &mut Output) {
    out.send(&Packet::PubRel(Ack::success(id)), link);
}

fn pubrel_of_nothing(id: PacketId, link: &Link, out: &mut Output) {
    let reason = ReasonCode::PacketIdentifierNotFound;
    let ack = Ack { id, reason, properties: Properties::EMPTY };
    out.send_explained(&Packet::PubRel(ack), NO_OPEN_MESSAGE, link);
}
