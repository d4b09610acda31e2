//! The receiving hot path: parses what one read brought, accounts for it, prepares the answers.
//!
//! Called by `worker` with all whole packets that a read brought. Parsed by hand rather than by the
//! codec, because only lengths and the stamp matter here; consecutive messages with the same
//! publisher and time (one write of that publisher) are handed on as one run.

use std::fmt;

use mailboxqtt::codec::ReasonCode;

use crate::payload::{Source, Stamp};
use crate::sequence::Tracking;

const PUBLISH: u8 = 3;
const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;
const DISCONNECT: u8 = 0xe0;
/// An acknowledgement of success, which is nearly every one.
const SHORT_ACK_BYTES: usize = 4;

/// Messages of one publisher with the same time and without a gap between their numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Run {
    /// Who sent them.
    pub(crate) publisher: u32,
    /// When they left, as their stamps say it: the low 48 bits, see `payload::widen`.
    pub(crate) sent_ns: u64,
    /// The number of the first; the others follow by the stride.
    pub(crate) sequence: u64,
    /// How many.
    pub(crate) count: u64,
    /// The index of the tracker that accounts for them.
    pub(crate) tracker: usize,
}

/// Why nothing more can be read from a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Broken {
    /// The broker sent what no packet looks like.
    Malformed,
    /// MQTT 5: PUBACK or PUBREC with this reason code. Then the message will not arrive.
    Refused(u8),
    /// MQTT 5: DISCONNECT with this reason code.
    Disconnected(u8),
}

use Broken::Malformed;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, reason) = match self {
            Malformed => return f.write_str("the broker sent a malformed packet"),
            Self::Refused(reason) => ("refused a message", *reason),
            Self::Disconnected(reason) => ("disconnected the client", *reason),
        };
        match ReasonCode::from_u8(reason) {
            Some(reason) => write!(f, "the broker {what}: {reason}"),
            None => write!(f, "the broker {what} with 0x{reason:02x}"),
        }
    }
}

impl std::error::Error for Broken {}

/// Whose messages a subscriber expects, and where it accounts for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// The first publisher as stamps name it; messages of other runs are ignored.
    pub(crate) first: Source,
    /// Its number.
    pub(crate) publisher_first: u32,
    /// Index of its tracker.
    pub(crate) trackers_at: usize,
    /// How many publishers.
    pub(crate) publishers: u32,
    /// From one sequence number of a publisher to the next one.
    pub(crate) stride: u64,
}

/// Takes all whole packets at the start of `bytes` as a subscriber and returns how long they are.
/// Answers are appended to `answers`; every run is given to `on_run` once it has ended; messages that
/// nobody here has sent are counted in `foreign`. `MQTT5` says whether a PUBLISH has properties.
#[inline]
pub(crate) fn as_subscriber<const MQTT5: bool, T: Tracking>(
    bytes: &[u8],
    expected: Expected,
    trackers: &mut [T],
    answers: &mut Vec<u8>,
    foreign: &mut u64,
    mut on_run: impl FnMut(&mut [T], Run),
) -> Result<usize, Broken> {
    let mut at = 0;
    // A time that no stamp has.
    let mut run = Run { publisher: 0, sent_ns: u64::MAX, sequence: 0, count: 0, tracker: 0 };
    let mut offset = 0;
    let mut next = 0;
    while let Some(frame) = next_frame(&bytes[at..])? {
        at += frame.bytes.len();
        let first_byte = frame.bytes[0];
        if first_byte >> 4 != PUBLISH {
            match first_byte {
                PUBREL => answer(answers, PUBCOMP, packet_id(frame)?),
                DISCONNECT => return Err(Broken::Disconnected(frame.reason(0))),
                _ => {}
            }
            continue;
        }
        let payload = payload::<MQTT5>(frame, first_byte & 0b0110, answers)?;
        let Some(stamp) = Stamp::read(payload) else {
            *foreign += 1;
            continue;
        };
        let after_first = stamp.source.after(expected.first);
        let same = after_first == offset && stamp.sent_low == run.sent_ns;
        if !same || stamp.sequence != next {
            if after_first >= u64::from(expected.publishers) {
                *foreign += 1;
                continue;
            }
            if run.count > 0 {
                on_run(trackers, run);
            }
            offset = after_first;
            run = Run {
                publisher: expected.publisher_first + after_first as u32,
                sent_ns: stamp.sent_low,
                sequence: stamp.sequence,
                count: 0,
                tracker: expected.trackers_at + after_first as usize,
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
pub(crate) fn as_publisher(bytes: &[u8], answers: &mut Vec<u8>) -> Result<(usize, u64), Broken> {
    let (mut at, mut acked) = (0, 0);
    while let Some(frame) = next_frame(&bytes[at..])? {
        at += frame.bytes.len();
        match frame.bytes[0] {
            PUBACK | PUBCOMP if frame.bytes.len() == SHORT_ACK_BYTES => acked += 1,
            PUBACK | PUBREC if frame.reason(2) >= 0x80 => {
                return Err(Broken::Refused(frame.reason(2)));
            }
            PUBACK | PUBCOMP => acked += 1,
            PUBREC => answer(answers, PUBREL, packet_id(frame)?),
            DISCONNECT => return Err(Broken::Disconnected(frame.reason(0))),
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

impl Frame<'_> {
    /// MQTT 5: the reason code at this offset behind the fixed header; success may be left out.
    #[inline]
    fn reason(self, offset: usize) -> u8 {
        self.bytes.get(self.header_len + offset).copied().unwrap_or(0)
    }
}

/// The packet at the start of `bytes`, if it is whole.
#[inline]
pub(crate) fn next_frame(bytes: &[u8]) -> Result<Option<Frame<'_>>, Broken> {
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
fn payload<'a, const MQTT5: bool>(
    frame: Frame<'a>,
    qos: u8,
    answers: &mut Vec<u8>,
) -> Result<&'a [u8], Broken> {
    let body = &frame.bytes[frame.header_len..];
    let (topic_len, rest) = body.split_first_chunk().ok_or(Malformed)?;
    let mut rest = rest.get(usize::from(u16::from_be_bytes(*topic_len))..).ok_or(Malformed)?;
    if qos != 0 {
        let (id, behind) = rest.split_first_chunk().ok_or(Malformed)?;
        answer(answers, if qos == 0b0010 { PUBACK } else { PUBREC }, *id);
        rest = behind;
    }
    if MQTT5 { behind_properties(rest) } else { Ok(rest) }
}

/// What follows the properties at the start of `bytes`. Nearly always their length is a zero.
#[inline]
fn behind_properties(bytes: &[u8]) -> Result<&[u8], Broken> {
    let mut length = 0;
    for (&byte, at) in bytes.iter().zip(0..4) {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return bytes.get(at + 1 + length..).ok_or(Malformed);
        }
    }
    Err(Malformed)
}

#[inline]
fn packet_id(frame: Frame<'_>) -> Result<[u8; 2], Broken> {
    frame.bytes[frame.header_len..].first_chunk().copied().ok_or(Malformed)
}

#[inline]
fn answer(answers: &mut Vec<u8>, first_byte: u8, id: [u8; 2]) {
    answers.extend_from_slice(&[first_byte, 2, id[0], id[1]]);
}

#[cfg(test)]
mod tests {
    use mailboxqtt::codec::{Delivery, Packet, Properties, PropertiesBuf, Property, Publish};
    use mailboxqtt::ids::{PacketId, ProtocolVersion};

    use super::*;
    use crate::sequence::Tracker;

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
            let stamp = Stamp::new(Source::new(run, publisher), sequence, sent_ns);
            push(&mut bytes, stamp, Delivery::AtMostOnce);
        }
        let (used, runs, answers, foreign) = receive(&bytes);
        assert_eq!((used, foreign), (bytes.len(), 2));
        assert_eq!(runs, [(5, 10, 2), (5, 20, 1), (6, 20, 1), (6, 20, 1)]);
        assert!(answers.is_empty());
    }

    #[test]
    fn qos_1_and_2_are_answered_and_a_half_packet_is_left() {
        let mut bytes = Vec::new();
        let stamp = Stamp::new(Source::new(1, 5), 0, 0);
        let id = PacketId::new(0x102).unwrap();
        push(&mut bytes, stamp, Delivery::AtLeastOnce { id, dup: false });
        push(&mut bytes, stamp, Delivery::ExactlyOnce { id, dup: false });
        bytes.extend([PUBREL, 2, 1, 2]);
        let whole = bytes.len();
        bytes.extend([0x30, 0x80]);
        let (used, _, answers, _) = receive(&bytes);
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
            let mut answers = Vec::new();
            let taken = as_subscriber::<false, _>(
                bytes,
                expected,
                &mut trackers,
                &mut answers,
                &mut 0,
                |_, _| {},
            );
            assert_eq!(taken, Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn properties_of_mqtt_5_are_stepped_over() {
        let stamp = Stamp::new(Source::new(1, 5), 0, 0);
        let mut properties = PropertiesBuf::new();
        for _ in 0..2 {
            let mut bytes = Vec::new();
            Packet::Publish(Publish {
                topic: "a",
                payload: &stamp.payload(0),
                properties: properties.as_properties(),
                delivery: Delivery::AtMostOnce,
                retain: false,
            })
            .encode(ProtocolVersion::V5, &mut bytes);
            let mut trackers = [Tracker::new(0, 1)];
            let (mut count, mut answers) = (0, Vec::new());
            let used = as_subscriber::<true, _>(
                &bytes,
                expected(),
                &mut trackers,
                &mut answers,
                &mut 0,
                |_, run| count += run.count,
            );
            assert_eq!((used, count), (Ok(bytes.len()), 1));
            // Longer than one byte of length can say.
            properties.push(Property::ContentType(&"x".repeat(200)));
        }
        for bytes in [&[0x30, 3, 0, 0, 1][..], &[0x30, 3, 0, 0, 0x80], &[0x30, 2, 0, 0]] {
            let mut trackers = [Tracker::new(0, 1)];
            let mut answers = Vec::new();
            let taken = as_subscriber::<true, _>(
                bytes,
                expected(),
                &mut trackers,
                &mut answers,
                &mut 0,
                |_, _| {},
            );
            assert_eq!(taken, Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn a_refusal_of_mqtt_5_is_told_with_its_reason() {
        for (bytes, broken, sentence) in [
            (&[PUBACK, 3, 0, 1, 0x97][..], Broken::Refused(0x97), "refused a message"),
            (&[PUBREC, 4, 0, 1, 0x87, 0], Broken::Refused(0x87), "refused a message"),
            (&[DISCONNECT, 1, 0x8b], Broken::Disconnected(0x8b), "disconnected the client"),
            (&[DISCONNECT, 0], Broken::Disconnected(0), "disconnected the client"),
        ] {
            assert_eq!(as_publisher(bytes, &mut Vec::new()), Err(broken));
            assert!(broken.to_string().contains(sentence), "{broken}");
        }
        // No matching subscribers is a success.
        assert_eq!(as_publisher(&[PUBACK, 3, 0, 1, 0x10], &mut Vec::new()), Ok((5, 1)));
    }

    /// Publisher, time of sending and number of messages.
    type Heard = (u32, u64, u64);

    /// Bytes used, runs, answers, and how much was foreign.
    fn receive(bytes: &[u8]) -> (usize, Vec<Heard>, Vec<u8>, u64) {
        let mut trackers = [Tracker::new(0, 1), Tracker::new(0, 1)];
        let (mut runs, mut answers, mut foreign) = (Vec::new(), Vec::new(), 0);
        let used = as_subscriber::<false, _>(
            bytes,
            expected(),
            &mut trackers,
            &mut answers,
            &mut foreign,
            |_, run| runs.push((run.publisher, run.sent_ns, run.count)),
        );
        (used.unwrap(), runs, answers, foreign)
    }

    fn expected() -> Expected {
        Expected {
            first: Source::new(1, 5),
            publisher_first: 5,
            trackers_at: 0,
            publishers: 2,
            stride: 1,
        }
    }

    fn push(bytes: &mut Vec<u8>, stamp: Stamp, delivery: Delivery) {
        let payload = stamp.payload(0);
        let properties = Properties::EMPTY;
        let publish =
            Publish { topic: "a", payload: &payload, properties, delivery, retain: false };
        Packet::Publish(publish).encode(ProtocolVersion::V311, bytes);
    }
}
