//! Messages on their way to the client: what waits, what is sent, what is acknowledged. Floor 2,
//! owned by `Session`.
//!
//! QoS 0 and QoS 1/2 wait in queues of their own, so that a client that does not acknowledge
//! still gets its QoS 0 messages. Frames are copied a whole stretch at a time and then patched where
//! version and QoS allow it; else they are encoded anew, one by one.
//!
//! # Invariants
//!
//! - Within one QoS the order of deliveries is the order on the wire [MQTT-4.6.0-6].
//! - Nothing new is sent before everything open has been sent again.

use std::collections::VecDeque;

use crate::codec::Ack;
use crate::codec::Delivery as Flow;
use crate::codec::{Packet, Properties, PublishView, ReasonCode, next_frame};
use crate::ids::{PacketId, Qos};
use crate::message::{Delivery, Kind, Piece};
use crate::session::refusal::NO_OPEN_MESSAGE;
use crate::session::window::{Acknowledged, Body, Resend, Window};
use crate::session::{Link, OUTPUT_BYTES_MAX, Output};

/// See the module comment.
#[derive(Debug)]
pub(super) struct Outgoing {
    unacknowledged: Queue,
    acknowledged: Queue,
    window: Window,
}

impl Outgoing {
    /// Nothing waits, nothing is sent.
    pub(super) fn new() -> Self {
        Self {
            unacknowledged: Queue::default(),
            acknowledged: Queue::default(),
            window: Window::new(),
        }
    }

    /// A connection begins.
    pub(super) fn attach(&mut self, link: &Link) {
        self.window.attach(link.send_max);
    }

    /// Queues what a shard sent. [`Outgoing::fill`] puts it on the wire.
    pub(super) fn push(&mut self, delivery: Delivery) {
        match delivery.kind {
            Kind::Unacknowledged => self.unacknowledged.deliveries.push_back(delivery),
            Kind::Acknowledged => self.acknowledged.deliveries.push_back(delivery),
        }
    }

    /// Whether everything that was pushed has been sent.
    pub(super) fn is_drained(&self) -> bool {
        self.unacknowledged.deliveries.is_empty() && self.acknowledged.deliveries.is_empty()
    }

    /// Sent and not complete.
    pub(super) fn inflight(&self) -> usize {
        self.window.len()
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
            Acknowledged::Expected { released_bytes } => out.tally.released_bytes += released_bytes,
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
    pub(super) fn fill(&mut self, link: &Link, out: &mut Output) -> bool {
        while out.bytes.len() < OUTPUT_BYTES_MAX {
            if self.resend(link, out) || self.send_acknowledged(link, out) {
                continue;
            }
            if !self.send_unacknowledged(link, out) {
                return false;
            }
        }
        true
    }

    fn resend(&mut self, link: &Link, out: &mut Output) -> bool {
        match self.window.next_resend() {
            None => return false,
            Some(Resend::PubRel { id }) => pubrel(id, link, out),
            Some(Resend::Publish { id, body, index }) => {
                let mut frames = &body.frames[..];
                for _ in 0..index {
                    frames = next_frame(frames).and_then(|len| frames.get(len..)).unwrap_or(&[]);
                }
                let (qos, retain) = (body.qos, body.retain);
                let is_sent = PublishView::parse(frames, body.version)
                    .is_some_and(|view| encode(&view, flow(qos, id, true), retain, link, out));
                if !is_sent {
                    self.window.resent();
                    self.leave_out(id, qos, out);
                    return true;
                }
            }
        }
        self.window.resent();
        true
    }

    /// Too large for this client: as if it had been sent and acknowledged [MQTT-3.1.2-25].
    fn leave_out(&mut self, id: PacketId, qos: Qos, out: &mut Output) {
        let outcome = match qos {
            Qos::AtMostOnce | Qos::AtLeastOnce => self.window.puback(id),
            Qos::ExactlyOnce => self.window.pubrec_refused(id),
        };
        if let Acknowledged::Expected { released_bytes } = outcome {
            out.tally.released_bytes += released_bytes;
        }
    }

    fn send_acknowledged(&mut self, link: &Link, out: &mut Output) -> bool {
        let free = self.window.free();
        if free == 0 {
            return false;
        }
        let Some(Stretch { piece, frames, charged_bytes }) = self.acknowledged.take(free, out)
        else {
            return false;
        };
        let body = Body {
            frames,
            version: piece.version,
            qos: piece.qos,
            retain: piece.retain,
            charged_bytes,
        };
        let bytes = body.frames.clone();
        let first = self.window.push(body, piece.count as usize);
        for id in send_stretch(&piece, &bytes, first, link, out) {
            self.leave_out(id, piece.qos, out);
        }
        true
    }

    fn send_unacknowledged(&mut self, link: &Link, out: &mut Output) -> bool {
        let Some(stretch) = self.unacknowledged.take(usize::MAX, out) else { return false };
        send_stretch(&stretch.piece, &stretch.frames, PacketId::FIRST, link, out);
        out.tally.released_bytes += stretch.charged_bytes;
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

/// Deliveries in order; the front one may be sent in part.
#[derive(Debug, Default)]
struct Queue {
    deliveries: VecDeque<Delivery>,
    /// Pieces of the front delivery that are sent.
    sent_pieces: usize,
    /// What the front delivery was charged and its stretches were not given yet.
    charge_given: usize,
}

/// Frames of one piece that go out together.
struct Stretch {
    piece: Piece,
    frames: bytes::Bytes,
    charged_bytes: usize,
}

impl Queue {
    /// Takes the next frames that belong together, at most `count_max`.
    fn take(&mut self, count_max: usize, out: &mut Output) -> Option<Stretch> {
        let delivery = self.deliveries.front_mut()?;
        let whole = *delivery.pieces.get(self.sent_pieces)?;
        let mut piece = whole;
        if whole.count as usize > count_max {
            piece.count = count_max as u32;
            piece.len = bytes_of_frames(delivery.frames(&whole), count_max) as u32;
        }
        let start = piece.offset as usize;
        let end = start + piece.len as usize;
        let buffer = delivery.buffers.get(piece.buffer as usize);
        let frames =
            buffer.filter(|buffer| end <= buffer.len()).map(|buffer| buffer.slice(start..end));

        let share = delivery.held_bytes * piece.len as usize / delivery.piece_bytes.max(1);
        let mut charged_bytes = share;
        self.charge_given += share;
        if piece.count == whole.count {
            self.sent_pieces += 1;
        } else if let Some(rest) = delivery.pieces.get_mut(self.sent_pieces) {
            rest.offset += piece.len;
            rest.len -= piece.len;
            rest.count -= piece.count;
        }
        if self.sent_pieces == delivery.pieces.len() {
            charged_bytes += delivery.held_bytes.saturating_sub(self.charge_given);
            self.deliveries.pop_front();
            self.sent_pieces = 0;
            self.charge_given = 0;
        }
        out.tally.released_messages += u64::from(piece.count);
        Some(Stretch { piece, frames: frames?, charged_bytes })
    }
}

/// Bytes of the first `count` frames.
fn bytes_of_frames(frames: &[u8], count: usize) -> usize {
    let mut len = 0;
    for _ in 0..count {
        len += frames.get(len..).and_then(next_frame).unwrap_or(0);
    }
    len
}

/// Writes the frames of `piece` with identifiers from `first` on. Returns the identifiers of the
/// messages that are too large for the client and were left out.
fn send_stretch(
    piece: &Piece,
    frames: &[u8],
    first: PacketId,
    link: &Link,
    out: &mut Output,
) -> Vec<PacketId> {
    let has_id = |qos: Qos| qos != Qos::AtMostOnce;
    let same_layout = link.wire_version() == piece.version
        && has_id(piece.qos) == has_id(piece.frame_qos)
        && link.packet_bytes_max.is_none();
    if !same_layout {
        return encode_stretch(piece, frames, first, link, out);
    }
    let start = out.bytes.len();
    out.bytes.extend_from_slice(frames);
    let first_byte = 0x30 | (piece.qos as u8) << 1 | u8::from(piece.retain);
    if has_id(piece.qos) {
        patch(&mut out.bytes[start..], first_byte, first);
    } else if piece.frame_retain != piece.retain {
        patch_first_bytes(&mut out.bytes[start..], first_byte);
    }
    out.tally.publishes_sent(u64::from(piece.count), frames.len());
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

fn encode_stretch(
    piece: &Piece,
    mut frames: &[u8],
    first: PacketId,
    link: &Link,
    out: &mut Output,
) -> Vec<PacketId> {
    let mut too_large = Vec::new();
    let mut id = first;
    while let Some(view) = PublishView::parse(frames, piece.version) {
        if !encode(&view, flow(piece.qos, id, false), piece.retain, link, out) {
            too_large.push(id);
        }
        id = id.next();
        frames = frames.get(view.frame_len..).unwrap_or(&[]);
    }
    too_large
}

/// Encodes one PUBLISH anew. Returns false where it is larger than the client takes.
fn encode(view: &PublishView<'_>, flow: Flow, retain: bool, link: &Link, out: &mut Output) -> bool {
    let start = out.bytes.len();
    view.encode(link.version, flow, retain, &mut out.bytes);
    let len = out.bytes.len() - start;
    if link.packet_bytes_max.is_some_and(|max| len > max as usize) {
        out.bytes.truncate(start);
        out.tally.too_large += 1;
        return false;
    }
    out.tally.publishes_sent(1, len);
    true
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
