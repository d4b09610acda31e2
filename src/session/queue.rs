//! Messages that wait for the window or for room in the output. Floor 2, owned by `session::outgoing`.

use std::collections::VecDeque;
use std::time::Instant;

use crate::codec::{PublishView, next_frame};
use crate::message::{Delivery, Piece, Undelivered};
use crate::session::Output;
use crate::session::window::Body;

/// Deliveries in order; the front one may be sent in part.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) deliveries: VecDeque<Delivery>,
    /// Pieces of the front delivery that are sent.
    sent_pieces: usize,
    /// What the front delivery was charged and its stretches were not given yet.
    charge_given: usize,
}

/// Frames of one piece that go out together.
pub(super) struct Stretch {
    /// As it was delivered.
    pub(super) piece: Piece,
    /// As the window keeps it.
    pub(super) body: Body,
}

impl Queue {
    /// See [`Outgoing::take_shared`].
    pub(super) fn take_shared(&mut self, undelivered: &mut Vec<Undelivered>, out: &mut Output) {
        self.forget_sent();
        for delivery in std::mem::take(&mut self.deliveries) {
            if !delivery.is_shared() {
                self.deliveries.push_back(delivery);
                continue;
            }
            let (messages, held_bytes) = (delivery.messages, delivery.held_bytes);
            let (rest, mut shared) = delivery.split_shared();
            undelivered.append(&mut shared);
            let kept = rest.as_ref().map_or((0, 0), |it| (it.messages, it.held_bytes));
            out.tally.released_messages += u64::from(messages - kept.0);
            out.tally.released_bytes += held_bytes - kept.1;
            self.deliveries.extend(rest);
        }
    }

    /// See [`Outgoing::drop_expired`].
    pub(super) fn drop_expired(&mut self, now: Instant, out: &mut Output) -> bool {
        if !self.deliveries.iter().any(|delivery| delivery.expires) {
            return false;
        }
        self.forget_sent();
        for delivery in std::mem::take(&mut self.deliveries) {
            if !delivery.expires {
                self.deliveries.push_back(delivery);
                continue;
            }
            let (messages, held_bytes) = (delivery.messages, delivery.held_bytes);
            let current = current_pieces(&delivery, now);
            let rest = delivery.with_pieces(current);
            let kept = rest.as_ref().map_or((0, 0), |it| (it.messages, it.held_bytes));
            out.tally.expired += u64::from(messages - kept.0);
            out.tally.released_messages += u64::from(messages - kept.0);
            out.tally.released_bytes += held_bytes - kept.1;
            self.deliveries.extend(rest);
        }
        self.deliveries.iter().any(|delivery| delivery.expires)
    }

    /// The front delivery becomes what of it has not been sent.
    fn forget_sent(&mut self) {
        if let Some(front) = self.deliveries.front_mut() {
            let sent = front.pieces.drain(..self.sent_pieces);
            front.messages -= sent.map(|piece| piece.count).sum::<u32>();
            front.piece_bytes = front.pieces.iter().map(|piece| piece.len as usize).sum();
            front.held_bytes = front.held_bytes.saturating_sub(self.charge_given);
            self.sent_pieces = 0;
            self.charge_given = 0;
        }
    }

    /// Takes the next frames that belong together, at most `count_max`.
    pub(super) fn take(&mut self, count_max: usize, out: &mut Output) -> Option<Stretch> {
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
        let found = buffer.filter(|buffer| end <= buffer.frames.len());
        let found = found.map(|buffer| (buffer.frames.slice(start..end), buffer.received_at));
        let via = delivery.via(&piece).cloned();

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
        let (frames, received_at) = found?;
        let Piece { version, qos, retain, expires, .. } = piece;
        let body = Body { frames, version, qos, retain, expires, received_at, via, charged_bytes };
        Some(Stretch { piece, body })
    }
}

/// The pieces of `delivery` without the messages that have expired.
fn current_pieces(delivery: &Delivery, now: Instant) -> Vec<Piece> {
    let mut current = Vec::new();
    for piece in &delivery.pieces {
        let buffer = delivery.buffers.get(piece.buffer as usize);
        let (true, Some(buffer)) = (piece.expires, buffer) else {
            current.push(*piece);
            continue;
        };
        let waited_s = now.saturating_duration_since(buffer.received_at).as_secs();
        let mut frames = delivery.frames(piece);
        let mut offset = piece.offset;
        // The piece that grows while frames follow each other that have not expired.
        let mut growing: Option<Piece> = None;
        while let Some(view) = PublishView::parse(frames, piece.version) {
            let len = view.frame_len as u32;
            let interval_s = view.message_expiry_interval_s();
            if interval_s.is_some_and(|interval_s| u64::from(interval_s) <= waited_s) {
                current.extend(growing.take());
            } else {
                let grown = growing.get_or_insert(Piece { offset, len: 0, count: 0, ..*piece });
                grown.len += len;
                grown.count += 1;
            }
            offset += len;
            frames = frames.get(view.frame_len..).unwrap_or_default();
        }
        current.extend(growing);
    }
    current
}

/// Bytes of the first `count` frames.
fn bytes_of_frames(frames: &[u8], count: usize) -> usize {
    let mut len = 0;
    for _ in 0..count {
        len += frames.get(len..).and_then(next_frame).unwrap_or(0);
    }
    len
}
