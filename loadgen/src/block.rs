//! The pre-encoded PUBLISH frames of one publisher, as a ring that is patched and written.
//!
//! All frames have one length, so message `n` is at `n % frames`; sequence number, time and packet
//! identifier are patched just before the write, and a write takes as many frames as were patched.
//! Called by `client`; knows no socket and no clock.
//!
//! # Invariant
//!
//! A frame is patched again only after all its bytes were written: `room` says how many may be.

use mailboxqtt::codec::{Delivery, Packet, Properties, Publish, packet_id_offset};
use mailboxqtt::ids::{PacketId, ProtocolVersion, Qos};

use crate::payload::{SEQUENCE_AT, Stamp};

/// Memory that the frames of one publisher may take, when one frame does not take more.
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Block {
    ring: Vec<u8>,
    frame_len: usize,
    frames: u64,
    /// Offset of the sequence number in a frame.
    sequence_at: usize,
    /// Offset of the packet identifier in a frame; QoS 0 has none.
    packet_id_at: Option<usize>,
    /// Messages patched so far, in the whole run.
    patched: u64,
    /// Bytes written so far, in the whole run.
    written: u64,
}

impl Block {
    /// Encodes frames for `topics` in turn, all of one length, at least `frames_min` of them as
    /// long as the memory limit allows (one per topic in any case).
    pub(crate) fn new(
        topics: &[String],
        frames_min: u64,
        qos: Qos,
        stamp: Stamp,
        payload_bytes: usize,
    ) -> Self {
        let payload = stamp.payload(payload_bytes);
        let delivery = match qos {
            Qos::AtMostOnce => Delivery::AtMostOnce,
            Qos::AtLeastOnce => Delivery::AtLeastOnce { id: PacketId::FIRST, dup: false },
            Qos::ExactlyOnce => Delivery::ExactlyOnce { id: PacketId::FIRST, dup: false },
        };
        let mut ring = Vec::new();
        for topic in topics {
            let publish = Publish {
                topic,
                payload: &payload,
                properties: Properties::EMPTY,
                delivery,
                retain: false,
            };
            Packet::Publish(publish).encode(ProtocolVersion::V311, &mut ring);
        }
        let frame_len = ring.len() / topics.len();
        let rounds = (frames_min as usize).div_ceil(topics.len());
        let rounds = rounds.min(BLOCK_BYTES_MAX / ring.len()).max(1);
        let packet_id_at = if qos == Qos::AtMostOnce { None } else { packet_id_offset(&ring) };
        let ring = ring.repeat(rounds);
        Self {
            frames: (ring.len() / frame_len) as u64,
            sequence_at: frame_len - payload.len() + SEQUENCE_AT,
            ring,
            frame_len,
            packet_id_at,
            patched: 0,
            written: 0,
        }
    }

    /// Messages patched so far: the number of the next one.
    pub(crate) fn patched(&self) -> u64 {
        self.patched
    }

    /// How many frames there are.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    /// How many further messages may be patched now.
    pub(crate) fn room(&self) -> u64 {
        self.frames - (self.patched - self.written / self.frame_len as u64)
    }

    /// Whether everything that was patched has been written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.written == self.patched * self.frame_len as u64
    }

    /// Whether the last write ended inside a frame, so that nothing else may be written now.
    pub(crate) fn is_mid_frame(&self) -> bool {
        !self.written.is_multiple_of(self.frame_len as u64)
    }

    /// Makes the next `count` messages ready to be written; at most [`Self::room`] of them.
    #[inline]
    pub(crate) fn patch(&mut self, count: u64, intended_ns: impl Fn(u64) -> u64) {
        let count = count.min(self.room());
        let first = (self.patched % self.frames) as usize;
        let mut packet_id = (self.patched % u64::from(u16::MAX)) as u16;
        let mut sequence = self.patched;
        self.patched += count;
        // A ring: up to the end, and what is left from the beginning.
        let to_end = (count as usize).min(self.frames as usize - first);
        for (from, frames) in [(first, to_end), (0, count as usize - to_end)] {
            let bytes = from * self.frame_len..(from + frames) * self.frame_len;
            for frame in self.ring[bytes].chunks_exact_mut(self.frame_len) {
                let stamp = &mut frame[self.sequence_at..self.sequence_at + 16];
                stamp[..8].copy_from_slice(&sequence.to_le_bytes());
                stamp[8..].copy_from_slice(&intended_ns(sequence).to_le_bytes());
                if let Some(at) = self.packet_id_at {
                    // Identifiers go round from 1 to 65,535 and come back long after their last
                    // use.
                    frame[at..at + 2].copy_from_slice(&(packet_id + 1).to_be_bytes());
                    packet_id = if packet_id + 1 == u16::MAX { 0 } else { packet_id + 1 };
                }
                sequence += 1;
            }
        }
    }

    /// The bytes to write now: up to the end of the ring, and what wrapped round.
    pub(crate) fn unwritten(&self) -> (&[u8], &[u8]) {
        let unwritten = (self.patched * self.frame_len as u64 - self.written) as usize;
        let from = (self.written % self.ring.len() as u64) as usize;
        let to_end = unwritten.min(self.ring.len() - from);
        (&self.ring[from..from + to_end], &self.ring[..unwritten - to_end])
    }

    /// Takes note of a write.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use mailboxqtt::codec::decode;

    use super::*;

    #[test]
    fn frames_go_round_with_their_own_number_time_and_packet_id() {
        let mut block = block(Qos::AtLeastOnce, 3);
        for round in 0..5 {
            block.patch(2, |n| n * 10);
            let (front, back) = block.unwritten();
            let bytes = [front, back].concat();
            let frames: Vec<&[u8]> = bytes.chunks(block.frame_len).collect();
            assert_eq!(frames.len(), 2);
            for (frame, n) in frames.iter().zip(round * 2..) {
                let Ok(Packet::Publish(publish)) = decode(frame, ProtocolVersion::V311) else {
                    panic!("not a PUBLISH");
                };
                let stamp = Stamp::read(publish.payload).unwrap();
                assert_eq!((stamp.sequence, stamp.sent_ns), (n, n * 10));
                assert_eq!(publish.delivery.id().unwrap().get(), n as u16 + 1);
            }
            block.wrote(bytes.len());
            assert!(block.is_flushed());
        }
    }

    #[test]
    fn a_frame_in_the_middle_of_its_write_is_not_patched_again() {
        let mut block = block(Qos::AtMostOnce, 3);
        block.patch(9, |_| 0);
        assert_eq!((block.patched(), block.room()), (3, 0));
        block.wrote(block.frame_len + 1);
        assert!(block.is_mid_frame());
        assert_eq!(block.room(), 1);
    }

    fn block(qos: Qos, frames: u64) -> Block {
        let stamp = Stamp { run: 1, publisher: 2, sequence: 0, sent_ns: 0 };
        Block::new(&["a/b".to_owned()], frames, qos, stamp, 64)
    }
}
