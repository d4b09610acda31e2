//! Messages whose frames are in the log only. Floor 0.

use std::time::Instant;

use bytes::Bytes;

use super::delivery::{Buffer, Delivery, Kind, Logged, Piece};
use crate::ids::{LogPosition, ProtocolVersion, Qos};

/// Consecutive messages of one record, and how to deliver them. What came by a shared subscription or with
/// subscription identifiers, or expires, is not left to the log like this.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stored {
    /// Where their record starts.
    pub at: LogPosition,
    /// Number of the first among the frames of the record.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
    /// Bytes from the beginning of the record's frames to those that must be read.
    pub offset: u32,
    /// Bytes that must be read.
    pub len: u32,
    /// Frames at the beginning of these that are not meant.
    pub skip: u32,
    /// How they are encoded.
    pub version: ProtocolVersion,
    /// QoS to deliver with, 1 or 2; they were published at one of these, too.
    pub qos: Qos,
    /// RETAIN flag to deliver with.
    pub retain: bool,
}

impl Stored {
    /// What of `delivery` has to be kept to find `piece` again; `None` where that would not be all.
    pub fn of(delivery: &Delivery, piece: &Piece) -> Option<Self> {
        let Logged { at, number } = delivery.logged(piece)?;
        if number > 0 || piece.via > 0 || piece.expires {
            return None;
        }
        Some(Self {
            at,
            first: 0,
            count: piece.count,
            offset: 0,
            len: piece.len,
            skip: 0,
            version: piece.version,
            qos: piece.qos,
            retain: piece.retain,
        })
    }

    /// Those behind the first `count`, if there are any. The bytes that must be read stay the same, for nobody knows where
    /// a frame begins before that.
    pub fn without_first(&self, count: u32) -> Option<Self> {
        let rest = self.count.checked_sub(count).filter(|rest| *rest > 0)?;
        Some(Self { first: self.first + count, count: rest, skip: self.skip + count, ..*self })
    }

    /// The messages, whose `frames` have been read at `now`.
    pub fn delivery(&self, frames: Bytes, now: Instant) -> Delivery {
        let piece = Piece {
            buffer: 0,
            offset: 0,
            len: frames.len() as u32,
            count: self.count,
            version: self.version,
            frame_qos: self.qos,
            frame_retain: self.retain,
            qos: self.qos,
            retain: self.retain,
            expires: false,
            via: 0,
            record: 1,
            first: self.first,
        };
        let buffers = vec![Buffer { frames, received_at: now }];
        let mut delivery = Delivery::new(Kind::Acknowledged, buffers, vec![piece], Vec::new());
        delivery.logged_from = self.at;
        // As long as they wait they are charged as what they are, wherever that is.
        delivery.held_bytes = self.len as usize;
        delivery
    }
}
