//! The pre-encoded PUBLISH frames of one publisher, as a ring that is patched and written.
//!
//! All frames have one length, so message `n` is at `n % frames`; stamp and packet identifier are
//! patched just before the write, and a write takes as many frames as were patched. With topic
//! aliases the frames of the ring have none but the alias, and the first message on each topic is a
//! frame of its own outside of the ring. Called by `client`; knows no socket and no clock.
//!
//! # Invariant
//!
//! A frame is patched again only after all its bytes were written: `room` says how many may be.

use std::collections::VecDeque;

use mailboxqtt::codec::{
    Delivery, Packet, Properties, PropertiesBuf, Property, Publish, packet_id_offset,
};
use mailboxqtt::ids::{PacketId, Qos};

use crate::payload::{STAMP_BYTES, Source, Stamp};
use crate::settings::Wire;

/// Memory that the frames of one publisher may take, when one frame does not take more.
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Block {
    ring: Vec<u8>,
    frame_len: usize,
    frames: u64,
    /// Frames that say what an alias stands for, to be sent before those of the ring.
    introductions: VecDeque<Vec<u8>>,
    /// Who sends them.
    source: Source,
    payload_bytes: usize,
    /// Offset of the packet identifier in a frame; QoS 0 has none.
    packet_id_at: Option<usize>,
    /// Messages patched so far, in the whole run.
    patched: u64,
    /// Bytes written so far, in the whole run, as if introductions were frames of the ring.
    written: u64,
}

/// What all messages of a publisher have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    /// Who sends them.
    pub(crate) source: Source,
    /// How they are encoded.
    pub(crate) wire: Wire,
    /// Of publishing.
    pub(crate) qos: Qos,
    /// The RETAIN flag.
    pub(crate) retain: bool,
    /// Size of a payload.
    pub(crate) payload_bytes: usize,
}

impl Block {
    /// Encodes frames for `topics` in turn, all of one length, at least `frames_min` of them as
    /// long as the memory limit allows (one per topic in any case).
    pub(crate) fn new(topics: &[String], frames_min: u64, message: Message) -> Self {
        let mut ring = Vec::new();
        let mut introductions = VecDeque::new();
        for (topic, alias) in topics.iter().zip(1..) {
            if message.wire.topic_alias {
                let mut properties = PropertiesBuf::new();
                properties.push(Property::TopicAlias(alias));
                let mut frame = Vec::new();
                message.encode(topic, properties.as_properties(), &mut frame);
                introductions.push_back(frame);
                message.encode("", properties.as_properties(), &mut ring);
            } else {
                message.encode(topic, Properties::EMPTY, &mut ring);
            }
        }
        let frame_len = ring.len() / topics.len();
        let rounds = (frames_min as usize).div_ceil(topics.len());
        let rounds = rounds.min(BLOCK_BYTES_MAX / ring.len()).max(1);
        let packet_id_at =
            if message.qos == Qos::AtMostOnce { None } else { packet_id_offset(&ring) };
        let ring = ring.repeat(rounds);
        Self {
            frames: (ring.len() / frame_len) as u64,
            ring,
            frame_len,
            introductions,
            source: message.source,
            payload_bytes: message.payload_bytes.max(STAMP_BYTES),
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

    /// Bytes of the longest frame.
    pub(crate) fn frame_bytes_max(&self) -> usize {
        self.introductions.iter().map(Vec::len).fold(self.frame_len, usize::max)
    }

    /// How many topics have an alias that the broker does not know yet.
    pub(crate) fn introductions(&self) -> usize {
        self.introductions.len()
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

    /// Makes the next `count` messages ready to be written; at most [`Self::room`] of them. Says how
    /// many. While there are aliases to be introduced it is one, appended to `control`, which is
    /// written before the ring.
    #[inline]
    pub(crate) fn patch(
        &mut self,
        count: u64,
        control: &mut Vec<u8>,
        intended_ns: impl Fn(u64) -> u64,
    ) -> u64 {
        if !self.introductions.is_empty() {
            return self.introduce(control, intended_ns(self.patched));
        }
        let count = count.min(self.room());
        let first = (self.patched % self.frames) as usize;
        let mut packet_id = (self.patched % u64::from(u16::MAX)) as u16;
        let mut sequence = self.patched;
        self.patched += count;
        let stamp_at = self.frame_len - self.payload_bytes;
        // A ring: up to the end, and what is left from the beginning.
        let to_end = (count as usize).min(self.frames as usize - first);
        for (from, frames) in [(first, to_end), (0, count as usize - to_end)] {
            let bytes = from * self.frame_len..(from + frames) * self.frame_len;
            for frame in self.ring[bytes].chunks_exact_mut(self.frame_len) {
                let stamp = Stamp::new(self.source, sequence, intended_ns(sequence));
                frame[stamp_at..stamp_at + STAMP_BYTES].copy_from_slice(&stamp.to_bytes());
                if let Some(at) = self.packet_id_at {
                    // Identifiers go round from 1 to 65,535 and come back long after their last
                    // use.
                    frame[at..at + 2].copy_from_slice(&(packet_id + 1).to_be_bytes());
                    packet_id = if packet_id + 1 == u16::MAX { 0 } else { packet_id + 1 };
                }
                sequence += 1;
            }
        }
        count
    }

    #[cold]
    fn introduce(&mut self, control: &mut Vec<u8>, intended_ns: u64) -> u64 {
        let Some(mut frame) = self.introductions.pop_front() else { return 0 };
        let stamp_at = frame.len() - self.payload_bytes;
        let stamp = Stamp::new(self.source, self.patched, intended_ns);
        frame[stamp_at..stamp_at + STAMP_BYTES].copy_from_slice(&stamp.to_bytes());
        if self.packet_id_at.is_some()
            && let Some(at) = packet_id_offset(&frame)
        {
            let packet_id = (self.patched % u64::from(u16::MAX)) as u16;
            frame[at..at + 2].copy_from_slice(&(packet_id + 1).to_be_bytes());
        }
        control.append(&mut frame);
        self.patched += 1;
        self.written += self.frame_len as u64;
        1
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

impl Message {
    fn encode(self, topic: &str, properties: Properties<'_>, out: &mut Vec<u8>) {
        let payload = Stamp::new(self.source, 0, 0).payload(self.payload_bytes);
        let delivery = match self.qos {
            Qos::AtMostOnce => Delivery::AtMostOnce,
            Qos::AtLeastOnce => Delivery::AtLeastOnce { id: PacketId::FIRST, dup: false },
            Qos::ExactlyOnce => Delivery::ExactlyOnce { id: PacketId::FIRST, dup: false },
        };
        let publish =
            Publish { topic, payload: &payload, properties, delivery, retain: self.retain };
        Packet::Publish(publish).encode(self.wire.version, out);
    }
}

#[cfg(test)]
mod tests {
    use mailboxqtt::codec::decode;
    use mailboxqtt::ids::ProtocolVersion;

    use super::*;

    #[test]
    fn frames_go_round_with_their_own_number_time_and_packet_id() {
        for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
            let mut block = block(Wire { version, topic_alias: false }, Qos::AtLeastOnce, 3);
            for round in 0..5 {
                block.patch(2, &mut Vec::new(), |n| n * 10);
                let (front, back) = block.unwritten();
                let bytes = [front, back].concat();
                let frames: Vec<&[u8]> = bytes.chunks(block.frame_len).collect();
                assert_eq!(frames.len(), 2);
                for (frame, n) in frames.iter().zip(round * 2..) {
                    let Ok(Packet::Publish(publish)) = decode(frame, version) else {
                        panic!("not a PUBLISH");
                    };
                    let stamp = Stamp::read(publish.payload).unwrap();
                    assert_eq!((stamp.sequence, stamp.sent_low), (n, n * 10));
                    assert_eq!(publish.delivery.id().unwrap().get(), n as u16 + 1);
                }
                block.wrote(bytes.len());
                assert!(block.is_flushed());
            }
        }
    }

    #[test]
    fn a_frame_in_the_middle_of_its_write_is_not_patched_again() {
        let mut block = block(V311, Qos::AtMostOnce, 3);
        assert_eq!(block.patch(9, &mut Vec::new(), |_| 0), 3);
        assert_eq!((block.patched(), block.room()), (3, 0));
        block.wrote(block.frame_len + 1);
        assert!(block.is_mid_frame());
        assert_eq!(block.room(), 1);
    }

    #[test]
    fn a_topic_is_said_once_and_its_alias_from_then_on() {
        let wire = Wire { version: ProtocolVersion::V5, topic_alias: true };
        let mut block = block(wire, Qos::AtLeastOnce, 3);
        let mut control = Vec::new();
        assert_eq!(block.patch(3, &mut control, |n| n + 7), 1);
        assert!(block.is_flushed());
        assert_eq!(block.patch(3, &mut control, |n| n + 7), 3);
        let (front, back) = block.unwritten();
        let ring = [front, back].concat();
        let frames = [&control[..]].into_iter().chain(ring.chunks(block.frame_len));
        for (frame, n) in frames.zip(0..) {
            let Ok(Packet::Publish(publish)) = decode(frame, wire.version) else {
                panic!("not a PUBLISH");
            };
            assert_eq!(publish.topic, if n == 0 { "a/b" } else { "" });
            assert_eq!(publish.properties.topic_alias(), Some(1));
            assert_eq!(publish.delivery.id().unwrap().get(), n as u16 + 1);
            let stamp = Stamp::read(publish.payload).unwrap();
            assert_eq!((stamp.sequence, stamp.sent_low), (n, n + 7));
        }
        assert_eq!(block.patched(), 4);
    }

    const V311: Wire = Wire { version: ProtocolVersion::V311, topic_alias: false };

    fn block(wire: Wire, qos: Qos, frames: u64) -> Block {
        let source = Source::new(1, 2);
        let message = Message { source, wire, qos, retain: false, payload_bytes: STAMP_BYTES };
        Block::new(&["a/b".to_owned()], frames, message)
    }
}
