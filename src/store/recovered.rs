//! What is known when a broker starts, in words that need no table. Floor 3.

use std::num::NonZeroU32;

use bytes::Bytes;

use super::database::{Reader, Table, TablesError};
use super::entry::{Delivery, Entry, Part};
use super::place::Place;
use super::row::{Outgoing, Retained, Terms, decode_grant, read_id, read_key, read_position};
use crate::ids::{LogPosition, PacketId, ProtocolVersion, Qos, SessionId};
use crate::message::Grant;
use crate::record::Owner;

/// See the module comment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RecoveredState {
    /// In the order of their numbers.
    pub sessions: Vec<RecoveredSession>,
    /// In the order of their topics.
    pub retained: Vec<RecoveredRetained>,
    /// The greatest number of a session that a record has named, of those that are gone, too; 0 if there
    /// was none.
    pub greatest_session: u64,
    /// Rows that are damaged, and left out here.
    pub unreadable_rows: u64,
}

/// A session that outlives its connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecoveredSession {
    /// Its number.
    pub session: SessionId,
    /// Its client.
    pub client_id: Box<str>,
    /// Whose it is, if it belongs to somebody; as [`Owner::decode`] reads it.
    pub owner: Option<Box<[u8]>>,
    /// How long it outlives its connection; `u32::MAX` is for ever, 0 also where it never had one.
    pub expiry_s: u32,
    /// Neither withdrawn nor published.
    pub will: Option<RecoveredWill>,
    /// When its client left, in milliseconds since 1970, UTC; `None` if it was connected.
    pub left_at_ms: Option<u64>,
    /// Filters, and what was granted.
    pub subscriptions: Vec<(Box<str>, Grant)>,
    /// Identifiers of QoS 2 messages that the client has published and not released.
    pub accepted: Vec<PacketId>,
    /// Messages that were sent and not acknowledged, in the order in which they were sent first.
    pub sent: Vec<RecoveredSent>,
    /// Identifiers whose PUBREC has come and PUBCOMP has not, in the order of the PUBRECs [MQTT-4.6.0-4].
    pub awaits_pubcomp: Vec<PacketId>,
    /// Messages that were not sent, in the order in which they came.
    pub waiting: Vec<RecoveredRun>,
}

/// See [`RecoveredSession::will`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecoveredWill {
    /// The whole PUBLISH.
    pub frame: Bytes,
    /// How it is encoded.
    pub version: ProtocolVersion,
    /// Will Delay Interval.
    pub delay_s: u32,
}

/// Messages that were sent with consecutive identifiers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecoveredSent {
    /// Of the first of them; 65,535 is followed by 1.
    pub first_id: PacketId,
    /// The messages.
    pub run: RecoveredRun,
}

/// Consecutive messages of one record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecoveredRun {
    /// Where they are.
    pub place: Place,
    /// How their frames are encoded.
    pub version: ProtocolVersion,
    /// QoS to deliver with, 1 or 2.
    pub qos: Qos,
    /// RETAIN flag to deliver with.
    pub retain: bool,
    /// The frames have a Message Expiry Interval, which counts from `received_at_ms`.
    pub expires: bool,
    /// Milliseconds since 1970, UTC.
    pub received_at_ms: u64,
    /// Subscription Identifiers to deliver with.
    pub identifiers: Box<[NonZeroU32]>,
    /// The shared subscription by which they came.
    pub share: Option<Box<str>>,
}

/// The retained message of a topic.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecoveredRetained {
    /// Its name.
    pub topic: Box<str>,
    /// Where it is.
    pub place: Place,
    /// How its frame is encoded.
    pub version: ProtocolVersion,
    /// As published.
    pub qos: Qos,
    /// The frame has a Message Expiry Interval, which counts from `received_at_ms`.
    pub expires: bool,
    /// Milliseconds since 1970, UTC.
    pub received_at_ms: u64,
}

/// Reads all rows.
pub(super) fn read(reader: &Reader, greatest_session: u64) -> Result<RecoveredState, TablesError> {
    let mut sessions = read_sessions(reader)?;
    read_terms(reader, &mut sessions)?;
    read_identifiers(reader, &mut sessions)?;
    read_queues(reader, &mut sessions)?;
    let mut retained = Vec::new();
    reader.scan(Table::Retained, &[], |topic, row| {
        let read = str::from_utf8(topic).ok().zip(Retained::decode(row));
        sessions.count(read.map(|(topic, row)| retained.push(retained_at(topic, row))));
    })?;
    let Sessions { list, unreadable_rows, .. } = sessions;
    Ok(RecoveredState { sessions: list, retained, greatest_session, unreadable_rows })
}

/// Sessions in the order of their numbers.
#[derive(Debug, Default)]
struct Sessions {
    list: Vec<RecoveredSession>,
    unreadable_rows: u64,
}

impl Sessions {
    fn find(&mut self, session: SessionId) -> Option<&mut RecoveredSession> {
        let index = self.list.binary_search_by_key(&session, |it| it.session).ok()?;
        self.list.get_mut(index)
    }

    /// A row was understood, or it was not.
    fn count(&mut self, read: Option<()>) {
        self.unreadable_rows += u64::from(read.is_none());
    }

    /// Shows all rows of a table, each with its session.
    fn scan(
        &mut self,
        reader: &Reader,
        table: Table,
        mut each: impl FnMut(&mut RecoveredSession, &[u8], &[u8]) -> Option<()>,
    ) -> Result<(), TablesError> {
        reader.scan(table, &[], |key, row| {
            let read = read_key(key)
                .and_then(|(session, rest)| each(self.find(SessionId(session))?, rest, row));
            self.count(read);
        })
    }
}

fn read_sessions(reader: &Reader) -> Result<Sessions, TablesError> {
    let mut sessions = Sessions::default();
    reader.scan(Table::Sessions, &[], |key, client_id| {
        let session = read_key(key).filter(|(_, rest)| rest.is_empty());
        let read = session.zip(str::from_utf8(client_id).ok());
        sessions.count(read.is_some().then_some(()));
        sessions.list.extend(read.map(|((session, _), client_id)| RecoveredSession {
            session: SessionId(session),
            client_id: client_id.into(),
            owner: None,
            expiry_s: 0,
            will: None,
            left_at_ms: None,
            subscriptions: Vec::new(),
            accepted: Vec::new(),
            sent: Vec::new(),
            awaits_pubcomp: Vec::new(),
            waiting: Vec::new(),
        }));
    })?;
    Ok(sessions)
}

fn read_terms(reader: &Reader, sessions: &mut Sessions) -> Result<(), TablesError> {
    sessions.scan(reader, Table::Terms, |session, _, row| {
        let Terms { expiry_s, left_at_ms, will } = Terms::decode(row)?;
        session.expiry_s = expiry_s;
        session.left_at_ms = left_at_ms;
        session.will = will.map(|will| RecoveredWill {
            frame: Bytes::from(will.frame),
            version: will.version,
            delay_s: will.delay_s,
        });
        Some(())
    })?;
    sessions.scan(reader, Table::Owners, |session, _, row| {
        Owner::decode(&mut &row[..])?;
        session.owner = Some(row.into());
        Some(())
    })?;
    sessions.scan(reader, Table::Subscriptions, |session, filter, row| {
        let filter = str::from_utf8(filter).ok()?;
        session.subscriptions.push((filter.into(), decode_grant(row)?));
        Some(())
    })
}

fn read_identifiers(reader: &Reader, sessions: &mut Sessions) -> Result<(), TablesError> {
    sessions.scan(reader, Table::Accepted, |session, id, _| {
        session.accepted.push(read_id(id)?);
        Some(())
    })?;
    let mut received: Vec<(SessionId, LogPosition, PacketId)> = Vec::new();
    sessions.scan(reader, Table::Outgoing, |session, id, row| {
        let id = read_id(id)?;
        // The queue has the others.
        if let Outgoing::Received { at } = Outgoing::decode(row)? {
            received.push((session.session, at, id));
        }
        Some(())
    })?;
    received.sort_unstable();
    for (session, _, id) in received {
        if let Some(session) = sessions.find(session) {
            session.awaits_pubcomp.push(id);
        }
    }
    Ok(())
}

fn read_queues(reader: &Reader, sessions: &mut Sessions) -> Result<(), TablesError> {
    let mut sent: Vec<(SessionId, LogPosition, RecoveredSent)> = Vec::new();
    sessions.scan(reader, Table::Queue, |session, at, row| {
        let at = read_position(at)?;
        let entry = Entry::decode(row)?;
        for (delivery, part) in entry.parts() {
            let run = run(at, &entry, delivery, part);
            match part.sent {
                None => session.waiting.push(run),
                Some(it) => {
                    let first_id = it.first_id;
                    sent.push((session.session, it.at, RecoveredSent { first_id, run }));
                }
            }
        }
        Some(())
    })?;
    sent.sort_by_key(|(session, at, sent)| (*session, *at, sent.run.place.first));
    for (session, _, sent) in sent {
        if let Some(session) = sessions.find(session) {
            session.sent.push(sent);
        }
    }
    Ok(())
}

fn run(at: LogPosition, entry: &Entry, delivery: &Delivery, part: Part) -> RecoveredRun {
    let Part { first, count, .. } = part;
    let via = delivery.via.as_deref();
    RecoveredRun {
        place: Place { at, first, count, offset: 0, len: entry.frames_len, skip: first },
        version: entry.version,
        qos: delivery.qos,
        retain: delivery.retain,
        expires: entry.expires,
        received_at_ms: entry.received_at_ms,
        identifiers: via.map(|via| via.identifiers.clone()).unwrap_or_default(),
        share: via.and_then(|via| via.share.clone()),
    }
}

fn retained_at(topic: &str, row: Retained) -> RecoveredRetained {
    let Retained { version, qos, expires, received_at_ms, at, number, offset, len } = row;
    RecoveredRetained {
        topic: topic.into(),
        place: Place { at, first: number, count: 1, offset, len, skip: 0 },
        version,
        qos,
        expires,
        received_at_ms,
    }
}
