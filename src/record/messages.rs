//! Messages of one run and the sessions that are to get them, in one record. Floor 1.
//!
//! ```text
//! [version u8][flags u8][received_at_ms u64][publisher u64][count u32][length u32][frames]
//! [targets u32] then for each
//!     [session u64][flags u8][first u32, count u32][identifiers u16, then u32 each][filter u16 and its text]
//!     where all behind the flags is there only if they say so
//! ```
//!
//! The frames lie at a fixed distance from the start of the record, [`Messages::FRAMES_AT`]: whoever
//! knows the position and the length of some of them reads them without the rest.

use std::num::NonZeroU32;

use bytes::{Buf, BufMut};

use super::{HEADER_BYTES, begin, end, kind, put_version, take_version, via};
use crate::ids::{ProtocolVersion, Qos, SessionId};

/// Flags of the messages: QoS in two bits, then these.
const EXPIRES: u8 = 1 << 2;
const RETAINED: u8 = 1 << 3;
const HAS_PUBLISHER: u8 = 1 << 4;
/// Flags of a target: QoS in two bits, then these and those of `via`.
const RETAIN: u8 = 1 << 2;
const IS_PART: u8 = 1 << 5;

/// Consecutive PUBLISH frames with one topic, QoS and set of flags. At least one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Messages<'a> {
    /// How the frames are encoded; 3.1 is 3.1.1 here.
    pub version: ProtocolVersion,
    /// As published.
    pub qos: Qos,
    /// The frames have a Message Expiry Interval, which counts from `received_at_ms`.
    pub expires: bool,
    /// The last of them is the retained message of its topic now; where its payload is empty, the topic has
    /// none.
    pub is_retained: bool,
    /// Milliseconds since 1970, UTC.
    pub received_at_ms: u64,
    /// A durable session that published them at QoS 2: the identifiers in the frames are in use.
    pub publisher: Option<SessionId>,
    /// How many frames.
    pub count: u32,
    /// The frames.
    pub frames: &'a [u8],
    /// Who is to get them.
    pub targets: Targets<'a>,
}

/// A durable session that is to get the messages.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target<'a> {
    /// Which one.
    pub session: SessionId,
    /// QoS to deliver with, 1 or 2.
    pub qos: Qos,
    /// RETAIN flag to deliver with.
    pub retain: bool,
    /// Subscription Identifiers to deliver with.
    pub identifiers: Vec<NonZeroU32>,
    /// The shared subscription by which it gets them.
    pub share: Option<&'a str>,
    /// It gets only some of them: number of the first, and how many.
    pub part: Option<(u32, u32)>,
}

/// A target that is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Recipient<'a> {
    /// Which one.
    pub session: SessionId,
    /// QoS to deliver with, 1 or 2.
    pub qos: Qos,
    /// RETAIN flag to deliver with.
    pub retain: bool,
    /// Subscription Identifiers to deliver with; of more than 65,535 those behind are left out.
    pub identifiers: &'a [NonZeroU32],
    /// The shared subscription by which it gets them.
    pub share: Option<&'a str>,
    /// It gets only some of them: number of the first, and how many.
    pub part: Option<(u32, u32)>,
}

/// The targets of one record, still encoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Targets<'a> {
    left: u32,
    encoded: &'a [u8],
}

impl<'a> Messages<'a> {
    /// From the start of the record to its frames.
    pub const FRAMES_AT: usize = HEADER_BYTES + 1 + 1 + 1 + 8 + 8 + 4 + 4;

    pub(super) fn encode_body(&self, out: &mut Vec<u8>) {
        self.encode_head(out);
        out.put_u32_le(self.targets.left);
        out.put_slice(self.targets.encoded);
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        put_version(self.version, out);
        let flags = [
            (EXPIRES, self.expires),
            (RETAINED, self.is_retained),
            (HAS_PUBLISHER, self.publisher.is_some()),
        ];
        out.put_u8(with_flags(self.qos, flags));
        out.put_u64_le(self.received_at_ms);
        out.put_u64_le(self.publisher.map_or(0, |session| session.0));
        out.put_u32_le(self.count);
        out.put_u32_le(self.frames.len() as u32);
        out.put_slice(self.frames);
    }

    pub(super) fn decode_body(body: &mut &'a [u8]) -> Option<Self> {
        let version = take_version(body)?;
        let flags = body.try_get_u8().ok()?;
        let received_at_ms = body.try_get_u64_le().ok()?;
        let publisher = SessionId(body.try_get_u64_le().ok()?);
        let count = body.try_get_u32_le().ok().filter(|count| *count > 0)?;
        let len = body.try_get_u32_le().ok()?;
        let (frames, rest) = body.split_at_checked(len as usize)?;
        *body = rest;
        let left = body.try_get_u32_le().ok()?;
        let targets = Targets { left, encoded: body };
        // All of them are there, and nothing else.
        let mut checked = targets;
        for _ in 0..left {
            let target = checked.next_target()?;
            let is_inside = |(first, part): (u32, u32)| {
                part > 0 && first.checked_add(part).is_some_and(|end| end <= count)
            };
            if !target.part.is_none_or(is_inside) {
                return None;
            }
        }
        *body = checked.encoded;
        Some(Self {
            version,
            qos: Qos::new(flags & 0b11)?,
            expires: flags & EXPIRES != 0,
            is_retained: flags & RETAINED != 0,
            received_at_ms,
            publisher: (flags & HAS_PUBLISHER != 0).then_some(publisher),
            count,
            frames,
            targets,
        })
    }
}

impl<'a> Targets<'a> {
    /// Nobody: the messages are retained only.
    pub const NONE: Self = Self { left: 0, encoded: &[] };

    /// How many are left.
    pub fn len(&self) -> usize {
        self.left as usize
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    fn next_target(&mut self) -> Option<Target<'a>> {
        let body = &mut self.encoded;
        let session = SessionId(body.try_get_u64_le().ok()?);
        let flags = body.try_get_u8().ok()?;
        let mut part = None;
        if flags & IS_PART != 0 {
            part = Some((body.try_get_u32_le().ok()?, body.try_get_u32_le().ok()?));
        }
        let (identifiers, share) = via::take(flags, body)?;
        self.left = self.left.checked_sub(1)?;
        let (qos, retain) = (Qos::new(flags & 0b11)?, flags & RETAIN != 0);
        Some(Target { session, qos, retain, identifiers, share, part })
    }
}

impl<'a> Iterator for Targets<'a> {
    type Item = Target<'a>;

    fn next(&mut self) -> Option<Target<'a>> {
        if self.left == 0 { None } else { self.next_target() }
    }
}

/// Writes one record, target by target.
#[derive(Debug)]
pub struct MessagesWriter {
    start: usize,
    targets_at: usize,
    targets: u32,
}

impl MessagesWriter {
    /// Writes `messages`, and those targets that they have already.
    pub fn begin(messages: &Messages<'_>, out: &mut Vec<u8>) -> Self {
        let start = begin(kind::MESSAGES, out);
        messages.encode_head(out);
        let targets_at = out.len();
        out.put_u32_le(0);
        out.put_slice(messages.targets.encoded);
        Self { start, targets_at, targets: messages.targets.left }
    }

    /// Where the record starts in the buffer.
    pub fn start(&self) -> usize {
        self.start
    }

    /// How many targets there are.
    pub fn targets(&self) -> usize {
        self.targets as usize
    }

    /// Adds a target.
    pub fn add(&mut self, recipient: &Recipient<'_>, out: &mut Vec<u8>) {
        let Recipient { session, qos, retain, identifiers, share, part } = *recipient;
        let identifiers = identifiers.get(..usize::from(u16::MAX)).unwrap_or(identifiers);
        let flags = [(RETAIN, retain), (IS_PART, part.is_some())];
        out.put_u64_le(session.0);
        out.put_u8(with_flags(qos, flags) | via::flags(identifiers, share));
        if let Some((first, count)) = part {
            out.put_u32_le(first);
            out.put_u32_le(count);
        }
        via::put(identifiers, share, out);
        self.targets += 1;
    }

    /// The record is complete.
    pub fn end(self, out: &mut [u8]) {
        if let Some(field) = out.get_mut(self.targets_at..self.targets_at + 4) {
            field.copy_from_slice(&self.targets.to_le_bytes());
        }
        end(self.start, out);
    }
}

fn with_flags<const N: usize>(qos: Qos, flags: [(u8, bool); N]) -> u8 {
    flags.iter().fold(qos as u8, |all, (bit, is_set)| if *is_set { all | bit } else { all })
}
