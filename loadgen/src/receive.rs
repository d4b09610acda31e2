//! The receiving hot path: parses what one read brought, accounts for it, prepares the answers.
//!
//! Called by `worker` with all whole packets that a read brought. Parsed by hand rather than by the
//! codec, because only lengths and the stamp matter here; consecutive messages with the same
//! publisher and time (one write of that publisher) are handed on as one run.

use std::fmt;

use crate::payload::Stamp;
use crate::sequence::Tracker;

const PUBLISH: u8 = 3;
const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;

/// Messages of one publisher with the same time and without a gap between their numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Run {
    /// Who sent them.
    pub(crate) publisher: u32,
    /// When they left.
    pub(crate) sent_ns: u64,
    /// The number of the first; the others follow by the stride.
    pub(crate) sequence: u64,
    /// How many.
    pub(crate) count: u64,
    /// The index of the tracker that accounts for them.
    pub(crate) tracker: usize,
}

/// The broker sent what no packet looks like.
#[derive(Debug)]
pub(crate) struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the broker sent a malformed packet")
    }
}

impl std::error::Error for Malformed {}

/// Whose messages a subscriber expects, and where it accounts for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// Messages of other runs are ignored.
    pub(crate) run: u32,
    /// Index of the tracker of the first publisher.
    pub(crate) trackers_at: usize,
    /// The first publisher.
    pub(crate) publisher_first: u32,
    /// How many publishers.
    pub(crate) publishers: u32,
    /// From one sequence number of a publisher to the next one.
    pub(crate) stride: u64,
}

/// Takes all whole packets at the start of `bytes` as a subscriber and returns how long they are.
/// Answers are appended to `answers`; every run is given to `on_run` once it has ended.
#[inline]
pub(crate) fn as_subscriber(
    bytes: &[u8],
    expected: Expected,
    trackers: &mut [Tracker],
    answers: &mut Vec<u8>,
    mut on_run: impl FnMut(&mut [Tracker], Run),
) -> Result<usize, Malformed> {
    let mut at = 0;
    let mut run = Run { publisher: u32::MAX, sent_ns: 0, sequence: 0, count: 0, tracker: 0 };
    let mut next = 0;
    while let Some(frame) = next_frame(&bytes[at..])? {
        at += frame.bytes.len();
        let first_byte = frame.bytes[0];
        if first_byte >> 4 != PUBLISH {
            if first_byte == PUBREL {
                answer(answers, PUBCOMP, packet_id(frame)?);
            }
            continue;
        }
        let payload = payload(frame, first_byte & 0b0110, answers)?;
        let Some(stamp) = Stamp::read(payload).filter(|stamp| stamp.run == expected.run) else {
            continue;
        };
        let same = stamp.publisher == run.publisher && stamp.sent_ns == run.sent_ns;
        if !same || stamp.sequence != next {
            let publisher = stamp.publisher.wrapping_sub(expected.publisher_first);
            if publisher >= expected.publishers {
                continue;
            }
            if run.count > 0 {
                on_run(trackers, run);
            }
            run = Run {
                publisher: stamp.publisher,
                sent_ns: stamp.sent_ns,
                sequence: stamp.sequence,
                count: 0,
                tracker: expected.trackers_at + publisher as usize,
            };
        }
        run.count += 1;
        next = stamp.sequence + expected.stride;
        trackers[run.tracker].arrived(stamp.sequence);
    }
    if run.count > 0 {
        on_run(trackers, run);
    }
    Ok(at)
}

/// Takes all whole packets at the start of `bytes` as a publisher. Returns how long they are and
/// how many messages they end the flow of.
#[inline]
pub(crate) fn as_publisher(bytes: &[u8], answers: &mut Vec<u8>) -> Result<(usize, u64), Malformed> {
    let (mut at, mut acked) = (0, 0);
    while let Some(frame) = next_frame(&bytes[at..])? {
        at += frame.bytes.len();
        match frame.bytes[0] {
            PUBACK | PUBCOMP => acked += 1,
            PUBREC => answer(answers, PUBREL, packet_id(frame)?),
            _ => {}
        }
    }
    Ok((at, acked))
}

/// One whole packet.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// From the first byte of the fixed header to the end.
    pub(crate) bytes: &'a [u8],
    /// Length of the fixed header.
    header_len: usize,
}

/// The packet at the start of `bytes`, if it is whole.
#[inline]
pub(crate) fn next_frame(bytes: &[u8]) -> Result<Option<Frame<'_>>, Malformed> {
    // Nearly every frame has one or two length bytes; the loop unrolls.
    let mut remaining = 0;
    for length_byte in 0..4 {
        let Some(&byte) = bytes.get(1 + length_byte) else { return Ok(None) };
        remaining |= usize::from(byte & 0x7f) << (7 * length_byte);
        if byte < 0x80 {
            let header_len = 2 + length_byte;
            let bytes = bytes.get(..header_len + remaining);
            return Ok(bytes.map(|bytes| Frame { bytes, header_len }));
        }
    }
    Err(Malformed)
}

/// The payload of a PUBLISH; its acknowledgement is appended to the answers.
#[inline]
fn payload<'a>(frame: Frame<'a>, qos: u8, answers: &mut Vec<u8>) -> Result<&'a [u8], Malformed> {
    let body = &frame.bytes[frame.header_len..];
    let (topic_len, rest) = body.split_first_chunk().ok_or(Malformed)?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*topic_len))..).ok_or(Malformed)?;
    if qos == 0 {
        return Ok(rest);
    }
    let (id, payload) = rest.split_first_chunk().ok_or(Malformed)?;
    answer(answers, if qos == 0b0010 { PUBACK } else { PUBREC }, *id);
    Ok(payload)
}

#[inline]
fn packet_id(frame: Frame<'_>) -> Result<[u8; 2], Malformed> {
    frame.bytes[frame.header_len..].first_chunk().copied().ok_or(Malformed)
}

#[inline]
fn answer(answers: &mut Vec<u8>, first_byte: u8, id: [u8; 2]) {
    answers.extend_from_slice(&[first_byte, 2, id[0], id[1]]);
}

#[cfg(test)]
mod tests {
    use mailboxqtt::codec::{Delivery, Packet, Properties, Publish};
    use mailboxqtt::ids::{PacketId, ProtocolVersion};

    use super::*;

    #[test]
    fn messages_of_one_write_without_a_gap_are_one_run_and_other_runs_are_ignored() {
        let mut bytes = Vec::new();
        for (run, publisher, sequence, sent_ns) in [
            (1, 5, 0, 10),
            (1, 5, 1, 10),
            (9, 5, 2, 10),
            (1, 5, 2, 20),
            (1, 6, 0, 20),
            (1, 6, 2, 20),
            (1, 8, 0, 0),
        ] {
            let stamp = Stamp { run, publisher, sequence, sent_ns };
            push(&mut bytes, stamp, Delivery::AtMostOnce);
        }
        let (used, runs, answers) = receive(&bytes);
        assert_eq!(used, bytes.len());
        assert_eq!(runs, [(5, 10, 2), (5, 20, 1), (6, 20, 1), (6, 20, 1)]);
        assert!(answers.is_empty());
    }

    #[test]
    fn qos_1_and_2_are_answered_and_a_half_packet_is_left() {
        let mut bytes = Vec::new();
        let stamp = Stamp { run: 1, publisher: 5, sequence: 0, sent_ns: 0 };
        let id = PacketId::new(0x102).unwrap();
        push(&mut bytes, stamp, Delivery::AtLeastOnce { id, dup: false });
        push(&mut bytes, stamp, Delivery::ExactlyOnce { id, dup: false });
        bytes.extend([PUBREL, 2, 1, 2]);
        let whole = bytes.len();
        bytes.extend([0x30, 0x80]);
        let (used, _, answers) = receive(&bytes);
        assert_eq!(used, whole);
        assert_eq!(answers, [PUBACK, 2, 1, 2, PUBREC, 2, 1, 2, PUBCOMP, 2, 1, 2]);
    }

    #[test]
    fn a_publisher_releases_what_was_received_and_counts_what_is_complete() {
        let mut answers = Vec::new();
        let bytes = [PUBREC, 2, 0, 7, PUBCOMP, 2, 0, 6, PUBACK, 2, 0, 1, 0x40];
        let (used, acked) = as_publisher(&bytes, &mut answers).unwrap();
        assert_eq!((used, acked), (12, 2));
        assert_eq!(answers, [PUBREL, 2, 0, 7]);
    }

    #[test]
    fn nonsense_is_an_error_and_not_a_panic() {
        assert!(next_frame(&[0x30, 0xff, 0xff, 0xff, 0xff]).is_err());
        for bytes in [&[0x30, 0][..], &[0x30, 3, 0, 9, 0], &[0x32, 2, 0, 0], &[PUBREL, 1, 0]] {
            let expected = expected();
            let mut trackers = [Tracker::new(0, 1)];
            let taken = as_subscriber(bytes, expected, &mut trackers, &mut Vec::new(), |_, _| {});
            assert!(taken.is_err(), "{bytes:?}");
        }
    }

    fn receive(bytes: &[u8]) -> (usize, Vec<(u32, u64, u64)>, Vec<u8>) {
        let mut trackers = [Tracker::new(0, 1), Tracker::new(0, 1)];
        let (mut runs, mut answers) = (Vec::new(), Vec::new());
        let used = as_subscriber(bytes, expected(), &mut trackers, &mut answers, |_, run| {
            runs.push((run.publisher, run.sent_ns, run.count));
        });
        (used.unwrap(), runs, answers)
    }

    fn expected() -> Expected {
        Expected { run: 1, trackers_at: 0, publisher_first: 5, publishers: 2, stride: 1 }
    }

    fn push(bytes: &mut Vec<u8>, stamp: Stamp, delivery: Delivery) {
        let payload = stamp.payload(24);
        let properties = Properties::EMPTY;
        let publish =
            Publish { topic: "a", payload: &payload, properties, delivery, retain: false };
        Packet::Publish(publish).encode(ProtocolVersion::V311, bytes);
    }
}
