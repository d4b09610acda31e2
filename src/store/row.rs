//! What the rows of the tables are made of, and how they are written. Floor 3: pure.
//!
//! Numbers in keys are big-endian, so that keys sort like them; in values they are little-endian. Rows of the
//! queue are in `entry`.
//!
//! ```text
//! meta            "applied" | "greatest_session"  [number u64]
//! sessions        [session u64]                   client identifier
//! terms           [session u64]                   [flags u8][expiry_s u32][left_at_ms u64]
//!                                                 [version u8][delay_s u32][frame]   with a will
//! subscriptions   [session u64] filter            [QoS and options u8][identifier u32, or 0]
//! outgoing        [session u64][packet id u16]    [0][position of the message u64][its number u32]
//!                                                 [1][position of the PUBREC u64]
//! accepted        [session u64][packet id u16]
//! retained        topic                           [version u8][flags u8][received_at_ms u64][position u64]
//!                                                 [number u32][offset u32][length u32]
//! segments        [base u64]                      [end u64][live u64]
//! bodies          [position u64]                  [checksum u32][number of the first frame u32][frames]
//! bodies_live     [position u64]                  [messages u64]
//! owners          [session u64]                   as in the record, see `record::owner`
//! ```
//!
//! # Invariants
//!
//! - A layout stays for ever: another one is another format of the whole file (see `database`).
//! - Bytes that are no row are `None`, never a panic.

use std::num::NonZeroU32;

use bytes::{Buf, BufMut};

use crate::ids::{LogPosition, PacketId, ProtocolVersion, Qos, SessionId};
use crate::message::Grant;

/// Keys of [`Table::Meta`](super::database::Table::Meta).
pub(super) const APPLIED: &[u8] = b"applied";
/// See [`APPLIED`].
pub(super) const GREATEST_SESSION: &[u8] = b"greatest_session";

const HAS_LEFT: u8 = 1;
const HAS_WILL: u8 = 1 << 1;
/// After the QoS.
const NO_LOCAL: u8 = 1 << 2;
const RETAIN_AS_PUBLISHED: u8 = 1 << 3;
const EXPIRES: u8 = 1 << 2;
const IS_SENT: u8 = 0;
const IS_RECEIVED: u8 = 1;

/// What a session's connection brought, and when it left.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Terms {
    /// `u32::MAX` is for ever.
    pub(super) expiry_s: u32,
    /// `None` while it is connected.
    pub(super) left_at_ms: Option<u64>,
    /// Neither withdrawn nor published.
    pub(super) will: Option<Will>,
}

/// See [`Terms::will`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Will {
    pub(super) version: ProtocolVersion,
    pub(super) delay_s: u32,
    pub(super) frame: Box<[u8]>,
}

/// How far a packet identifier is on its way to the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outgoing {
    /// It names a message that the session waits for.
    Sent {
        /// Position of its record.
        at: LogPosition,
        /// Its number among the frames.
        number: u32,
    },
    /// PUBREC has come, PUBCOMP has not.
    Received {
        /// Position of the record that said so.
        at: LogPosition,
    },
}

/// Where the retained message of a topic is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Retained {
    pub(super) version: ProtocolVersion,
    pub(super) qos: Qos,
    pub(super) expires: bool,
    pub(super) received_at_ms: u64,
    /// Of its record.
    pub(super) at: LogPosition,
    /// Among the frames of the record.
    pub(super) number: u32,
    /// Of its frame in those frames.
    pub(super) offset: u32,
    /// Of its frame.
    pub(super) len: u32,
}

/// A stretch of the log that comes and goes as a whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    /// No record of it lies at or behind; the latest one has no end yet.
    pub(super) end: LogPosition,
    /// Messages that are needed from it.
    pub(super) live: u64,
}

/// The key of all that begins with a number: a session, a position, a base.
pub(super) fn key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The key of a packet identifier.
pub(super) fn id_key(session: SessionId, id: PacketId) -> [u8; 10] {
    let mut key = [0; 10];
    let mut rest = &mut key[..];
    rest.put_u64(session.0);
    rest.put_u16(id.get());
    key
}

/// The key of a queue's entry.
pub(super) fn entry_key(session: SessionId, at: LogPosition) -> [u8; 16] {
    let mut key = [0; 16];
    let mut rest = &mut key[..];
    rest.put_u64(session.0);
    rest.put_u64(at.0);
    key
}

/// The key of a subscription.
pub(super) fn filter_key(session: SessionId, filter: &str) -> Vec<u8> {
    [&key(session.0), filter.as_bytes()].concat()
}

/// The number at the beginning of a key, and what follows it.
pub(super) fn read_key(mut key: &[u8]) -> Option<(u64, &[u8])> {
    let number = key.try_get_u64().ok()?;
    Some((number, key))
}

/// A key, or what follows a prefix, that is one packet identifier.
pub(super) fn read_id(key: &[u8]) -> Option<PacketId> {
    PacketId::new(u16::from_be_bytes(key.try_into().ok()?))
}

/// A key, or what follows a prefix, that is one position.
pub(super) fn read_position(key: &[u8]) -> Option<LogPosition> {
    key.try_into().ok().map(u64::from_be_bytes).map(LogPosition)
}

/// A value that is one number.
pub(super) fn read_number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}

pub(super) fn put_version(version: ProtocolVersion, out: &mut Vec<u8>) {
    out.put_u8(match version {
        ProtocolVersion::V31 | ProtocolVersion::V311 => 4,
        ProtocolVersion::V5 => 5,
    });
}

pub(super) fn take_version(row: &mut &[u8]) -> Option<ProtocolVersion> {
    match row.try_get_u8().ok()? {
        4 => Some(ProtocolVersion::V311),
        5 => Some(ProtocolVersion::V5),
        _ => None,
    }
}

impl Terms {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let has_left = if self.left_at_ms.is_some() { HAS_LEFT } else { 0 };
        let has_will = if self.will.is_some() { HAS_WILL } else { 0 };
        out.put_u8(has_left | has_will);
        out.put_u32_le(self.expiry_s);
        out.put_u64_le(self.left_at_ms.unwrap_or(0));
        if let Some(Will { version, delay_s, frame }) = &self.will {
            put_version(*version, &mut out);
            out.put_u32_le(*delay_s);
            out.put_slice(frame);
        }
        out
    }

    pub(super) fn decode(mut row: &[u8]) -> Option<Self> {
        let flags = row.try_get_u8().ok()?;
        let expiry_s = row.try_get_u32_le().ok()?;
        let left_at_ms = row.try_get_u64_le().ok()?;
        let mut will = None;
        if flags & HAS_WILL != 0 {
            let version = take_version(&mut row)?;
            let delay_s = row.try_get_u32_le().ok()?;
            will = Some(Will { version, delay_s, frame: row.into() });
        }
        Some(Self { expiry_s, left_at_ms: (flags & HAS_LEFT != 0).then_some(left_at_ms), will })
    }
}

pub(super) fn encode_grant(grant: Grant) -> [u8; 5] {
    let Grant { qos, no_local, retain_as_published, identifier } = grant;
    let no_local = if no_local { NO_LOCAL } else { 0 };
    let retain_as_published = if retain_as_published { RETAIN_AS_PUBLISHED } else { 0 };
    let [a, b, c, d] = identifier.map_or(0, NonZeroU32::get).to_le_bytes();
    [qos as u8 | no_local | retain_as_published, a, b, c, d]
}

pub(super) fn decode_grant(row: &[u8]) -> Option<Grant> {
    let [flags, identifier @ ..]: [u8; 5] = row.try_into().ok()?;
    Some(Grant {
        qos: Qos::new(flags & 0b11)?,
        no_local: flags & NO_LOCAL != 0,
        retain_as_published: flags & RETAIN_AS_PUBLISHED != 0,
        identifier: NonZeroU32::new(u32::from_le_bytes(identifier)),
    })
}

impl Outgoing {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Sent { at, number } => {
                out.put_u8(IS_SENT);
                out.put_u64_le(at.0);
                out.put_u32_le(number);
            }
            Self::Received { at } => {
                out.put_u8(IS_RECEIVED);
                out.put_u64_le(at.0);
            }
        }
        out
    }

    pub(super) fn decode(mut row: &[u8]) -> Option<Self> {
        let state = row.try_get_u8().ok()?;
        let at = LogPosition(row.try_get_u64_le().ok()?);
        match state {
            IS_SENT => Some(Self::Sent { at, number: row.try_get_u32_le().ok()? }),
            IS_RECEIVED => Some(Self::Received { at }),
            _ => None,
        }
    }
}

impl Retained {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_version(self.version, &mut out);
        out.put_u8(self.qos as u8 | if self.expires { EXPIRES } else { 0 });
        out.put_u64_le(self.received_at_ms);
        out.put_u64_le(self.at.0);
        out.put_u32_le(self.number);
        out.put_u32_le(self.offset);
        out.put_u32_le(self.len);
        out
    }

    pub(super) fn decode(mut row: &[u8]) -> Option<Self> {
        let version = take_version(&mut row)?;
        let flags = row.try_get_u8().ok()?;
        Some(Self {
            version,
            qos: Qos::new(flags & 0b11)?,
            expires: flags & EXPIRES != 0,
            received_at_ms: row.try_get_u64_le().ok()?,
            at: LogPosition(row.try_get_u64_le().ok()?),
            number: row.try_get_u32_le().ok()?,
            offset: row.try_get_u32_le().ok()?,
            len: row.try_get_u32_le().ok()?,
        })
    }
}

impl Segment {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.end.0);
        out.put_u64_le(self.live);
        out
    }

    pub(super) fn decode(mut row: &[u8]) -> Option<Self> {
        let end = LogPosition(row.try_get_u64_le().ok()?);
        Some(Self { end, live: row.try_get_u64_le().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let will = Will { version: ProtocolVersion::V5, delay_s: 7, frame: b"frame"[..].into() };
        for terms in [
            Terms::default(),
            Terms { expiry_s: u32::MAX, left_at_ms: Some(0), will: None },
            Terms { expiry_s: 1, left_at_ms: Some(u64::MAX), will: Some(will) },
        ] {
            assert_eq!(Terms::decode(&terms.encode()), Some(terms));
        }
        for outgoing in [
            Outgoing::Sent { at: LogPosition(1 << 60), number: 9 },
            Outgoing::Received { at: LogPosition(3) },
        ] {
            assert_eq!(Outgoing::decode(&outgoing.encode()), Some(outgoing));
        }
        for (no_local, raw) in [(false, 0), (true, 268_435_455)] {
            let grant = Grant {
                qos: Qos::ExactlyOnce,
                no_local,
                retain_as_published: !no_local,
                identifier: NonZeroU32::new(raw),
            };
            assert_eq!(decode_grant(&encode_grant(grant)), Some(grant));
        }
        let retained = Retained {
            version: ProtocolVersion::V311,
            qos: Qos::AtLeastOnce,
            expires: true,
            received_at_ms: 5,
            at: LogPosition(6),
            number: 7,
            offset: 8,
            len: 9,
        };
        assert_eq!(Retained::decode(&retained.encode()), Some(retained));
        let segment = Segment { end: LogPosition(u64::MAX), live: 4 };
        assert_eq!(Segment::decode(&segment.encode()), Some(segment));
        let id = PacketId::new(258).unwrap();
        assert_eq!(read_id(&id_key(SessionId(1), id)[8..]), Some(id));
        assert_eq!(read_key(&entry_key(SessionId(4), LogPosition(5))), Some((4, &key(5)[..])));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_row_or_none(bytes in prop::collection::vec(0..7_u8, 0..40)) {
            let _ = (Terms::decode(&bytes), Outgoing::decode(&bytes), Retained::decode(&bytes));
            let _ = (Segment::decode(&bytes), decode_grant(&bytes), read_key(&bytes));
            let _ = (read_id(&bytes), read_position(&bytes), read_number(&bytes));
        }
    }
}
