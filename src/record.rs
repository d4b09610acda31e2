//! Records of the log: what must still be known after a crash, as bytes. Floor 1: pure.
//!
//! Shards write [`Messages`], sessions and connections write the rest; `store` keeps them in their order
//! and reads them when the broker starts. A record is framed as
//!
//! ```text
//! [checksum u32][length u32, of what follows][kind u8][body]          all integers little-endian
//! ```
//!
//! The checksum is left at zero here: the log fills it in when it knows the position, which it covers.
//!
//! # Invariants
//!
//! - A kind keeps its number and its layout for ever; what changes becomes a new kind.
//! - Any prefix of a sequence of records that one party appended is a legal state. What must be there
//!   together is one record: a message, all sessions that are to get it, and the identifier it came with.
//! - A message is named by the position of its [`Messages`] record and its number among the frames in it.

use std::num::NonZeroU32;

use bytes::{Buf, BufMut};

use crate::ids::{LogPosition, PacketId, ProtocolVersion, Qos, SessionId};
use crate::message::Grant;

pub use messages::Messages;
pub use messages::MessagesWriter;
pub use messages::Recipient;
pub use messages::Target;
pub use messages::Targets;
pub use owner::Owner;
pub use owner::OwnerRule;

mod messages;
mod owner;
pub(crate) mod via;

/// Bytes before the kind of each record: checksum and length.
pub const HEADER_BYTES: usize = 8;

/// Messages of one record, by their numbers among its frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// Where the [`Messages`] record starts.
    pub at: LogPosition,
    /// Number of the first message.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
}

/// One record, with what it borrows from the buffer it was read from.
#[derive(Clone, Debug, PartialEq)]
pub enum Record<'a> {
    /// Messages, and who is to get them.
    Messages(Messages<'a>),
    /// The session does not wait for these messages any more: acknowledged, expired or dropped.
    Done {
        /// Whose.
        session: SessionId,
        /// Which messages.
        span: Span,
    },
    /// QoS 2 messages are about to be sent with consecutive identifiers.
    Sent {
        /// Whose.
        session: SessionId,
        /// Which messages.
        span: Span,
        /// Of the first of them.
        first_id: PacketId,
    },
    /// PUBREC came from the client: the message is done, its identifier is not.
    Received {
        /// Whose.
        session: SessionId,
        /// Its identifier.
        id: PacketId,
    },
    /// PUBCOMP came from the client: the identifier is free.
    Completed {
        /// Whose.
        session: SessionId,
        /// Its identifier.
        id: PacketId,
    },
    /// QoS 2 messages of the client were accepted that no durable session gets.
    Accepted {
        /// Whose.
        session: SessionId,
        /// Of the first of them.
        first_id: PacketId,
        /// Of the last of them; 65,535 is followed by 1.
        last_id: PacketId,
    },
    /// PUBREL came from the client: the identifier may come with a new message.
    Released {
        /// Whose.
        session: SessionId,
        /// Its identifier.
        id: PacketId,
    },
    /// A session that outlives its connection was made.
    SessionBegan {
        /// Whose.
        session: SessionId,
        /// Its client: the identifier, and before it the mount point and U+0000 if there is one.
        client_id: &'a str,
    },
    /// Its client is connected.
    Connected {
        /// Whose.
        session: SessionId,
        /// For this connection.
        terms: Terms<'a>,
    },
    /// Its client has gone; the will, if it is not withdrawn, and the expiry interval count from here.
    Disconnected {
        /// Whose.
        session: SessionId,
        /// Milliseconds since 1970, UTC.
        at_ms: u64,
        /// How long the session stays; `u32::MAX` is for ever.
        expiry_s: u32,
        /// By DISCONNECT.
        is_will_withdrawn: bool,
    },
    /// The will has been published.
    WillPublished {
        /// Whose.
        session: SessionId,
    },
    /// Nothing of it is left.
    SessionEnded {
        /// Whose.
        session: SessionId,
    },
    /// In force, in place of an earlier subscription with that filter.
    Subscribed {
        /// Whose.
        session: SessionId,
        /// Its text.
        filter: &'a str,
        /// What was granted.
        grant: Grant,
    },
    /// Not in force any more.
    Unsubscribed {
        /// Whose.
        session: SessionId,
        /// Its text.
        filter: &'a str,
    },
    /// There is no retained message under that topic any more.
    RetainedGone {
        /// Its name.
        topic: &'a str,
    },
    /// The session belongs to somebody from here on. A session without this record belongs to nobody.
    Owned {
        /// Whose.
        session: SessionId,
        /// Who that is.
        owner: Owner<'a>,
    },
}

/// What a connection brought for its session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Terms<'a> {
    /// How long the session outlives the connection; `u32::MAX` is for ever.
    pub expiry_s: u32,
    /// The message to be published when the connection ends without DISCONNECT.
    pub will: Option<Will<'a>>,
}

/// See [`Terms::will`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Will<'a> {
    /// The whole PUBLISH.
    pub frame: &'a [u8],
    /// How it is encoded.
    pub version: ProtocolVersion,
    /// Will Delay Interval.
    pub delay_s: u32,
}

/// Bytes that are no record of a kind that is known here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// A newer version of the broker wrote it.
    #[error("record of unknown kind {0}")]
    UnknownKind(u8),
    /// Its fields are not what its kind has.
    #[error("record of kind {0} with a wrong layout")]
    Malformed(u8),
}

mod kind {
    pub(super) const MESSAGES: u8 = 1;
    pub(super) const DONE: u8 = 2;
    pub(super) const SENT: u8 = 3;
    pub(super) const RECEIVED: u8 = 4;
    pub(super) const COMPLETED: u8 = 5;
    pub(super) const ACCEPTED: u8 = 6;
    pub(super) const RELEASED: u8 = 7;
    pub(super) const SESSION_BEGAN: u8 = 8;
    pub(super) const CONNECTED: u8 = 9;
    pub(super) const DISCONNECTED: u8 = 10;
    pub(super) const WILL_PUBLISHED: u8 = 11;
    pub(super) const SESSION_ENDED: u8 = 12;
    pub(super) const SUBSCRIBED: u8 = 13;
    pub(super) const UNSUBSCRIBED: u8 = 14;
    pub(super) const RETAINED_GONE: u8 = 15;
    pub(super) const OWNED: u8 = 16;
}

impl<'a> Record<'a> {
    /// Appends the record with its header. [`Messages`] have a writer of their own.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(self.kind(), out);
        match self {
            Self::Messages(messages) => messages.encode_body(out),
            Self::Done { session, span } => {
                out.put_u64_le(session.0);
                put_span(*span, out);
            }
            Self::Sent { session, span, first_id } => {
                out.put_u64_le(session.0);
                put_span(*span, out);
                out.put_u16_le(first_id.get());
            }
            Self::Received { session, id }
            | Self::Completed { session, id }
            | Self::Released { session, id } => {
                out.put_u64_le(session.0);
                out.put_u16_le(id.get());
            }
            Self::Accepted { session, first_id, last_id } => {
                out.put_u64_le(session.0);
                out.put_u16_le(first_id.get());
                out.put_u16_le(last_id.get());
            }
            Self::SessionBegan { session, client_id } => {
                out.put_u64_le(session.0);
                put_text(client_id, out);
            }
            Self::Connected { session, terms } => {
                out.put_u64_le(session.0);
                out.put_u32_le(terms.expiry_s);
                put_will(terms.will, out);
            }
            Self::Disconnected { session, at_ms, expiry_s, is_will_withdrawn } => {
                out.put_u64_le(session.0);
                out.put_u64_le(*at_ms);
                out.put_u32_le(*expiry_s);
                out.put_u8(u8::from(*is_will_withdrawn));
            }
            Self::WillPublished { session } | Self::SessionEnded { session } => {
                out.put_u64_le(session.0);
            }
            Self::Subscribed { session, filter, grant } => {
                out.put_u64_le(session.0);
                put_grant(*grant, out);
                put_text(filter, out);
            }
            Self::Unsubscribed { session, filter } => {
                out.put_u64_le(session.0);
                put_text(filter, out);
            }
            Self::RetainedGone { topic } => put_text(topic, out),
            Self::Owned { session, owner } => {
                out.put_u64_le(session.0);
                owner.encode(out);
            }
        }
        end(start, out);
    }

    /// Reads what follows the header of a record: kind and body, all of it.
    pub fn decode(record: &'a [u8]) -> Result<Self, RecordError> {
        let Some((&kind, mut body)) = record.split_first() else {
            return Err(RecordError::Malformed(0));
        };
        if !(kind::MESSAGES..=kind::OWNED).contains(&kind) {
            return Err(RecordError::UnknownKind(kind));
        }
        let record = decode_body(kind, &mut body).filter(|_| body.is_empty());
        record.ok_or(RecordError::Malformed(kind))
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Messages(_) => kind::MESSAGES,
            Self::Done { .. } => kind::DONE,
            Self::Sent { .. } => kind::SENT,
            Self::Received { .. } => kind::RECEIVED,
            Self::Completed { .. } => kind::COMPLETED,
            Self::Accepted { .. } => kind::ACCEPTED,
            Self::Released { .. } => kind::RELEASED,
            Self::SessionBegan { .. } => kind::SESSION_BEGAN,
            Self::Connected { .. } => kind::CONNECTED,
            Self::Disconnected { .. } => kind::DISCONNECTED,
            Self::WillPublished { .. } => kind::WILL_PUBLISHED,
            Self::SessionEnded { .. } => kind::SESSION_ENDED,
            Self::Subscribed { .. } => kind::SUBSCRIBED,
            Self::Unsubscribed { .. } => kind::UNSUBSCRIBED,
            Self::RetainedGone { .. } => kind::RETAINED_GONE,
            Self::Owned { .. } => kind::OWNED,
        }
    }
}

/// `None` where a field is missing or impossible.
fn decode_body<'a>(kind: u8, body: &mut &'a [u8]) -> Option<Record<'a>> {
    if kind == kind::MESSAGES {
        return Messages::decode_body(body).map(Record::Messages);
    }
    if kind == kind::RETAINED_GONE {
        return Some(Record::RetainedGone { topic: take_text(body)? });
    }
    let session = SessionId(body.try_get_u64_le().ok()?);
    Some(match kind {
        kind::DONE => Record::Done { session, span: take_span(body)? },
        kind::SENT => {
            Record::Sent { session, span: take_span(body)?, first_id: take_packet_id(body)? }
        }
        kind::RECEIVED => Record::Received { session, id: take_packet_id(body)? },
        kind::COMPLETED => Record::Completed { session, id: take_packet_id(body)? },
        kind::ACCEPTED => Record::Accepted {
            session,
            first_id: take_packet_id(body)?,
            last_id: take_packet_id(body)?,
        },
        kind::RELEASED => Record::Released { session, id: take_packet_id(body)? },
        kind::SESSION_BEGAN => Record::SessionBegan { session, client_id: take_text(body)? },
        kind::CONNECTED => {
            let expiry_s = body.try_get_u32_le().ok()?;
            Record::Connected { session, terms: Terms { expiry_s, will: take_will(body)? } }
        }
        kind::DISCONNECTED => Record::Disconnected {
            session,
            at_ms: body.try_get_u64_le().ok()?,
            expiry_s: body.try_get_u32_le().ok()?,
            is_will_withdrawn: take_bool(body)?,
        },
        kind::WILL_PUBLISHED => Record::WillPublished { session },
        kind::SESSION_ENDED => Record::SessionEnded { session },
        kind::SUBSCRIBED => {
            let grant = take_grant(body)?;
            Record::Subscribed { session, grant, filter: take_text(body)? }
        }
        kind::UNSUBSCRIBED => Record::Unsubscribed { session, filter: take_text(body)? },
        kind::OWNED => Record::Owned { session, owner: Owner::decode(body)? },
        _ => return None,
    })
}

/// Writes an incomplete header and the kind; returns where the record starts.
fn begin(kind: u8, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.put_bytes(0, HEADER_BYTES);
    out.put_u8(kind);
    start
}

/// Writes the length of the record that started at `start`.
fn end(start: usize, out: &mut [u8]) {
    let len = out.len() - start - HEADER_BYTES;
    if let Some(field) = out.get_mut(start + 4..start + HEADER_BYTES) {
        field.copy_from_slice(&(len as u32).to_le_bytes());
    }
}

fn put_span(span: Span, out: &mut Vec<u8>) {
    out.put_u64_le(span.at.0);
    out.put_u32_le(span.first);
    out.put_u32_le(span.count);
}

fn take_span(body: &mut &[u8]) -> Option<Span> {
    let at = LogPosition(body.try_get_u64_le().ok()?);
    let (first, count) = (body.try_get_u32_le().ok()?, body.try_get_u32_le().ok()?);
    let is_possible = count > 0 && first.checked_add(count).is_some();
    is_possible.then_some(Span { at, first, count })
}

fn take_packet_id(body: &mut &[u8]) -> Option<PacketId> {
    PacketId::new(body.try_get_u16_le().ok()?)
}

fn take_bool(body: &mut &[u8]) -> Option<bool> {
    match body.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    put_bytes(text.as_bytes(), out);
}

fn take_text<'a>(body: &mut &'a [u8]) -> Option<&'a str> {
    str::from_utf8(take_bytes(body)?).ok()
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

fn take_bytes<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = body.try_get_u32_le().ok()?;
    let (bytes, rest) = body.split_at_checked(len as usize)?;
    *body = rest;
    Some(bytes)
}

/// QoS in two bits, then No Local, then Retain As Published; the identifier is 0 where there is none.
fn put_grant(grant: Grant, out: &mut Vec<u8>) {
    let Grant { qos, no_local, retain_as_published, identifier } = grant;
    out.put_u8(qos as u8 | u8::from(no_local) << 2 | u8::from(retain_as_published) << 3);
    out.put_u32_le(identifier.map_or(0, NonZeroU32::get));
}

fn take_grant(body: &mut &[u8]) -> Option<Grant> {
    let bits = body.try_get_u8().ok().filter(|bits| bits >> 4 == 0)?;
    let identifier = NonZeroU32::new(body.try_get_u32_le().ok()?);
    let qos = Qos::new(bits & 0b11)?;
    let (no_local, retain_as_published) = (bits & 0b100 != 0, bits & 0b1000 != 0);
    Some(Grant { qos, no_local, retain_as_published, identifier })
}

/// A frame of length 0 is no will.
fn put_will(will: Option<Will<'_>>, out: &mut Vec<u8>) {
    let none = Will { frame: &[], version: ProtocolVersion::V311, delay_s: 0 };
    let Will { frame, version, delay_s } = will.unwrap_or(none);
    put_version(version, out);
    out.put_u32_le(delay_s);
    put_bytes(frame, out);
}

fn take_will<'a>(body: &mut &'a [u8]) -> Option<Option<Will<'a>>> {
    let version = take_version(body)?;
    let delay_s = body.try_get_u32_le().ok()?;
    let frame = take_bytes(body)?;
    Some((!frame.is_empty()).then_some(Will { frame, version, delay_s }))
}

/// The level of the protocol. 3.1 has the frames of 3.1.1 and becomes it.
fn put_version(version: ProtocolVersion, out: &mut Vec<u8>) {
    out.put_u8(match version {
        ProtocolVersion::V31 | ProtocolVersion::V311 => 4,
        ProtocolVersion::V5 => 5,
    });
}

fn take_version(body: &mut &[u8]) -> Option<ProtocolVersion> {
    match body.try_get_u8().ok()? {
        4 => Some(ProtocolVersion::V311),
        5 => Some(ProtocolVersion::V5),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_as_it_was_written() {
        for record in samples() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
            assert_eq!(HEADER_BYTES + len, bytes.len());
            assert_eq!(Record::decode(&bytes[HEADER_BYTES..]), Ok(record));
        }
    }

    #[test]
    fn record_that_is_cut_or_longer_than_its_fields_is_malformed() {
        for record in samples() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let whole = &bytes[HEADER_BYTES..];
            for len in 0..whole.len() {
                assert!(Record::decode(&whole[..len]).is_err(), "{record:?} cut to {len}");
            }
            let longer = [whole, &[0]].concat();
            assert_eq!(Record::decode(&longer), Err(RecordError::Malformed(whole[0])));
        }
        assert_eq!(Record::decode(&[200]), Err(RecordError::UnknownKind(200)));
    }

    #[test]
    fn frames_lie_where_the_constant_says_and_targets_come_in_their_order() {
        let mut bytes = vec![1, 2, 3];
        let mut writer = MessagesWriter::begin(&messages(), &mut bytes);
        let identifiers = [NonZeroU32::new(7).unwrap(), NonZeroU32::new(9).unwrap()];
        let share = Some("$share/group/a");
        let one = Recipient {
            session: SessionId(5),
            qos: Qos::ExactlyOnce,
            retain: true,
            identifiers: &identifiers,
            share: None,
            part: None,
        };
        writer.add(&one, &mut bytes);
        let qos = Qos::AtLeastOnce;
        let (retain, identifiers) = (false, &[][..]);
        let session = SessionId(6);
        let other = Recipient { session, qos, retain, identifiers, share, part: Some((1, 1)) };
        writer.add(&other, &mut bytes);
        writer.end(&mut bytes);

        let frames_at = 3 + Messages::FRAMES_AT;
        assert_eq!(&bytes[frames_at..frames_at + 5], b"abcde");
        let Ok(Record::Messages(read)) = Record::decode(&bytes[3 + HEADER_BYTES..]) else {
            panic!("it is a record of messages");
        };
        let targets: Vec<Target<'_>> = read.targets.collect();
        let (first, second) = (&targets[0], &targets[1]);
        assert_eq!(
            (first.session, first.qos, first.retain),
            (SessionId(5), Qos::ExactlyOnce, true)
        );
        assert_eq!((&first.identifiers[..], first.part), (one.identifiers, None));
        assert_eq!((second.session, second.share, second.part), (session, share, other.part));
        assert_eq!(targets.len(), 2);
    }

    fn messages() -> Messages<'static> {
        Messages {
            version: ProtocolVersion::V5,
            qos: Qos::ExactlyOnce,
            expires: true,
            is_retained: false,
            received_at_ms: 1_700_000_000_000,
            publisher: Some(SessionId(3)),
            count: 2,
            frames: b"abcde",
            targets: Targets::NONE,
        }
    }

    fn samples() -> Vec<Record<'static>> {
        let (session, id) = (SessionId(1), PacketId::new(65_535).unwrap());
        let first_id = PacketId::FIRST;
        let span = Span { at: LogPosition(1 << 40), first: 3, count: 4 };
        let (denies, is_publish, is_subscribe) = (true, false, true);
        let rule = OwnerRule { denies, is_publish, is_subscribe, filter: "a/#" };
        let will = Will { frame: b"frame", version: ProtocolVersion::V5, delay_s: 10 };
        let identifier = NonZeroU32::new(268_435_455);
        let qos = Qos::AtLeastOnce;
        let grant = Grant { qos, no_local: true, retain_as_published: false, identifier };
        vec![
            Record::Messages(messages()),
            Record::Done { session, span },
            Record::Sent { session, span, first_id: id },
            Record::Received { session, id },
            Record::Completed { session, id },
            Record::Accepted { session, first_id, last_id: id },
            Record::Released { session, id },
            Record::SessionBegan { session, client_id: "client" },
            Record::Connected { session, terms: Terms { expiry_s: 1, will: None } },
            Record::Connected { session, terms: Terms { expiry_s: u32::MAX, will: Some(will) } },
            Record::Disconnected { session, at_ms: 1, expiry_s: 2, is_will_withdrawn: true },
            Record::WillPublished { session },
            Record::SessionEnded { session },
            Record::Subscribed { session, filter: "a/+", grant },
            Record::Unsubscribed { session, filter: "a/+" },
            Record::RetainedGone { topic: "a/b" },
            Record::Owned { session, owner: Owner { user: None, rules: Vec::new() } },
            Record::Owned { session, owner: Owner { user: Some("bob"), rules: vec![rule, rule] } },
        ]
    }
}
