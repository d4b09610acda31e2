//! From one turn of a shard to one subscriber. Floor 0.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::ids::{LogPosition, ProtocolVersion, Qos};
use crate::topic::TopicFilter;

/// A part of a [`Run`](super::Run) on its way to one subscriber.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Index into the delivery's buffers.
    pub buffer: u32,
    /// Where the first frame starts in that buffer.
    pub offset: u32,
    /// Bytes of all frames of the piece.
    pub len: u32,
    /// Frames, at least one.
    pub count: u32,
    /// How the frames are encoded.
    pub version: ProtocolVersion,
    /// QoS in the frames.
    pub frame_qos: Qos,
    /// RETAIN flag in the frames.
    pub frame_retain: bool,
    /// QoS to deliver with: the lower one of the message's and the subscription's.
    pub qos: Qos,
    /// RETAIN flag to deliver with.
    pub retain: bool,
    /// The frames have a Message Expiry Interval.
    pub expires: bool,
    /// Which of the delivery's `vias` it came by, counted from 1; 0 is none of them.
    pub via: u32,
    /// Where the record of its run starts, counted from 1 behind the delivery's `logged_from`; 0 where there
    /// is none.
    pub record: u32,
    /// Number of its first frame in that record.
    pub first: u32,
}

/// A message in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Logged {
    /// Where its record starts.
    pub at: LogPosition,
    /// Its number among the frames of the record.
    pub number: u32,
}

/// Frames of one batch.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Whole PUBLISH frames, and perhaps others that are not meant for this subscriber.
    pub frames: Bytes,
    /// When they were read; a Message Expiry Interval in them counts from here.
    pub received_at: Instant,
}

/// By which subscriptions of the receiver a message comes, where that makes a difference.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Via {
    /// Subscription Identifiers of those that have one [MQTT-3.3.4-3].
    pub identifiers: Box<[NonZeroU32]>,
    /// The shared subscription. If the receiver cannot take the message, another member may.
    pub share: Option<TopicFilter>,
}

/// Whether a delivery has to be acknowledged. A delivery is of one kind only, so that a full window
/// of the one never holds back the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// QoS 0.
    Unacknowledged,
    /// QoS 1 and 2.
    Acknowledged,
}

/// What one turn of one shard has for one subscriber.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Each buffer once, however many pieces point into it.
    pub buffers: Vec<Buffer>,
    /// What some of the pieces came by.
    pub vias: Box<[Arc<Via>]>,
    /// In the order of delivery.
    pub pieces: Vec<Piece>,
    /// Messages in all pieces.
    pub messages: u32,
    /// Bytes in all pieces.
    pub piece_bytes: usize,
    /// What the queue limit is charged: the buffers that are held, and a share for the lists.
    pub held_bytes: usize,
    /// QoS 0, or QoS 1 and 2.
    pub kind: Kind,
    /// Some of the frames have a Message Expiry Interval.
    pub expires: bool,
    /// Positions of records count from here.
    pub logged_from: LogPosition,
}

/// Messages that came by a shared subscription and that its member did not get: another one may.
#[derive(Clone, Debug)]
pub struct Undelivered {
    /// The shared subscription.
    pub filter: TopicFilter,
    /// Whole PUBLISH frames with the same topic, QoS and flags, as published, in memory of their own.
    pub frames: Bytes,
    /// How many.
    pub count: u32,
    /// How they are encoded.
    pub version: ProtocolVersion,
    /// They have a Message Expiry Interval, which counts from `received_at`.
    pub expires: bool,
    /// When the broker got them.
    pub received_at: Instant,
    /// The first of them, where they are in the log.
    pub logged: Option<Logged>,
}

/// Memory of a queued delivery besides its frames, charged to the queue limit. Other deliveries may have
/// the same vias; that is not worth finding out.
fn overhead_bytes(buffers: &[Buffer], pieces: &[Piece], vias: &[Arc<Via>]) -> usize {
    let via_bytes: usize = vias.iter().map(|via| size_of_val(via) + via.bytes()).sum();
    160 + size_of_val(buffers) + size_of_val(pieces) + via_bytes
}

impl Via {
    /// Memory that it takes, but for the text of the filter, which it shares.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.identifiers)
    }
}

impl Delivery {
    /// Takes the parts and works out the sums. Where the pieces are less than a quarter of the
    /// buffers, they are copied out, so that 20 waiting bytes do not pin 64 KiB.
    pub fn new(kind: Kind, buffers: Vec<Buffer>, pieces: Vec<Piece>, vias: Vec<Arc<Via>>) -> Self {
        let messages = pieces.iter().map(|piece| piece.count).sum();
        let expires = pieces.iter().any(|piece| piece.expires);
        let piece_bytes = pieces.iter().map(|piece| piece.len as usize).sum();
        let buffer_bytes: usize = buffers.iter().map(|buffer| buffer.frames.len()).sum();
        let held_bytes = buffer_bytes + overhead_bytes(&buffers, &pieces, &vias);
        let vias = vias.into();
        let delivery = Self {
            buffers,
            vias,
            pieces,
            messages,
            piece_bytes,
            held_bytes,
            kind,
            expires,
            logged_from: LogPosition(0),
        };
        if piece_bytes < buffer_bytes / 4 { delivery.copied_out() } else { delivery }
    }

    /// The frames of `piece`; empty when the piece is not of this delivery.
    pub fn frames(&self, piece: &Piece) -> &[u8] {
        let start = piece.offset as usize;
        let buffer = self.buffers.get(piece.buffer as usize);
        let frames = buffer.and_then(|buffer| buffer.frames.get(start..start + piece.len as usize));
        frames.unwrap_or_default()
    }

    /// The first message of `piece`, where it is in the log.
    pub fn logged(&self, piece: &Piece) -> Option<Logged> {
        let offset = piece.record.checked_sub(1)?;
        let at = LogPosition(self.logged_from.0 + u64::from(offset));
        Some(Logged { at, number: piece.first })
    }

    /// Its messages that are in the log.
    pub fn logged_runs(&self) -> impl Iterator<Item = (Logged, u32)> {
        self.pieces.iter().filter_map(|piece| Some((self.logged(piece)?, piece.count)))
    }

    /// Whether any of it came by a shared subscription.
    pub fn is_shared(&self) -> bool {
        self.vias.iter().any(|via| via.share.is_some())
    }

    /// What `piece` came by.
    pub fn via(&self, piece: &Piece) -> Option<&Arc<Via>> {
        self.vias.get((piece.via as usize).checked_sub(1)?)
    }

    /// Takes out what came by those shared subscriptions for which there `are_takers`; returns the rest, if
    /// there is any, see [`Delivery::with_pieces`].
    pub fn split_shared(
        mut self,
        are_takers: &mut dyn FnMut(&TopicFilter) -> bool,
    ) -> (Option<Self>, Vec<Undelivered>) {
        let mut undelivered = Vec::new();
        let mut rest = Vec::new();
        for piece in std::mem::take(&mut self.pieces) {
            let share = self.via(&piece).and_then(|via| via.share.clone());
            let share = share.filter(&mut *are_takers);
            let (Some(filter), Some(buffer)) = (share, self.buffers.get(piece.buffer as usize))
            else {
                rest.push(piece);
                continue;
            };
            let frames = self.frames(&piece);
            if !frames.is_empty() {
                undelivered.push(Undelivered {
                    filter,
                    frames: Bytes::copy_from_slice(frames),
                    count: piece.count,
                    version: piece.version,
                    expires: piece.expires,
                    received_at: buffer.received_at,
                    logged: self.logged(&piece),
                });
            }
        }
        (self.with_pieces(rest), undelivered)
    }

    /// The delivery with these `pieces` of it, if there are any. Its `held_bytes` are what it holds then, and
    /// not more than before.
    pub fn with_pieces(self, pieces: Vec<Piece>) -> Option<Self> {
        if pieces.is_empty() {
            return None;
        }
        let charged_bytes = self.held_bytes;
        let logged_from = self.logged_from;
        let mut rest = Self::new(self.kind, self.buffers, pieces, self.vias.into_vec());
        rest.logged_from = logged_from;
        rest.held_bytes = rest.held_bytes.min(charged_bytes);
        Some(rest)
    }

    fn copied_out(mut self) -> Self {
        let mut copy = Vec::with_capacity(self.piece_bytes);
        let mut pieces = self.pieces.clone();
        for (piece, copied) in self.pieces.iter().zip(&mut pieces) {
            copied.offset = copy.len() as u32;
            copy.extend_from_slice(self.frames(piece));
        }
        self.held_bytes = copy.len() + overhead_bytes(&self.buffers, &pieces, &self.vias);
        self.pieces = pieces;
        // One copy for all; each buffer stays, for it knows when its frames were received.
        let copy = Bytes::from(copy);
        self.buffers.iter_mut().for_each(|buffer| buffer.frames = copy.clone());
        self
    }
}
