//! What has changed since the last transaction, over the rows on disk. Floor 3, used by `fold`.
//!
//! Reads fall through to the database, writes stay here until [`Overlay::write`]. A message that comes and is
//! done in between never reaches the database: what starts behind [`Overlay::stored_until`] has no row there.
//!
//! # Limits
//!
//! Memory grows with what changes between two transactions: the caller bounds it by bytes of the log.
//! Besides, about 30 bytes for each session that there is.

use std::collections::{BTreeMap, VecDeque};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::database::{Database, Reader, Table, TablesError, Writer, put, remove, remove_all};
use super::entry::Entry;
use super::row::{
    APPLIED, GREATEST_SESSION, Outgoing, Retained, Segment, Terms, encode_grant, entry_key,
    filter_key, id_key, key, read_id, read_key, read_number, read_position,
};
use super::segments::Segments;
use crate::ids::{LogPosition, PacketId, SessionId};
use crate::message::Grant;

/// See the module comment.
pub(super) struct Overlay {
    reader: Reader,
    /// Records that start before it are in the rows on disk.
    stored_until: LogPosition,
    sessions: HashMap<SessionId, Known, RandomState>,
    /// Sessions whose rows on disk mean nothing any more.
    ended: Vec<SessionId>,
    retained: HashMap<Box<str>, Option<Retained>, RandomState>,
    /// Messages that need a body that was copied out of the log.
    bodies_live: BTreeMap<LogPosition, u64>,
    /// See `segments`.
    pub(super) segments: Segments,
    /// The greatest number of a session that a record has named.
    pub(super) greatest_session: u64,
}

/// A session that there is.
#[derive(Debug, Default)]
struct Known {
    /// It has rows on disk.
    is_stored: bool,
    changes: Option<Box<Changes>>,
}

/// Of one session.
#[derive(Debug, Default)]
struct Changes {
    /// Of a new session.
    client_id: Option<Box<str>>,
    /// The row of whom it belongs to.
    owner: Option<Vec<u8>>,
    terms: Option<Terms>,
    subscriptions: BTreeMap<Box<str>, Option<Grant>>,
    /// Of records behind `stored_until`, in order; `None` is done, and never first or last.
    fresh: VecDeque<(LogPosition, Option<Entry>)>,
    /// Of earlier records; `None` is done.
    earlier: BTreeMap<LogPosition, Option<Entry>>,
    /// `None` before the first look at them: then they are all as on disk.
    outgoing: Option<Slots<Outgoing>>,
    /// As `outgoing`.
    accepted: Option<Slots<()>>,
}

/// The rows of a session that are keyed by packet identifier, all of them.
#[derive(Debug)]
pub(super) struct Slots<T> {
    by_id: BTreeMap<PacketId, Slot<T>>,
}

#[derive(Debug)]
struct Slot<T> {
    stored: Option<T>,
    now: Option<T>,
}

impl Overlay {
    /// Nothing has changed.
    pub(super) fn open(database: &Database) -> Result<Self, TablesError> {
        let reader = database.reader()?;
        let number = |name| reader.get(Table::Meta, name, |value| read_number(value).unwrap_or(0));
        let stored_until = LogPosition(number(APPLIED)?.unwrap_or(0));
        let greatest_session = number(GREATEST_SESSION)?.unwrap_or(0);
        let mut segments = Segments::default();
        reader.scan(Table::Segments, &[], |base, row| {
            if let (Some(base), Some(segment)) = (read_position(base), Segment::decode(row)) {
                segments.load(base, segment);
            }
        })?;
        let mut sessions = HashMap::default();
        reader.scan(Table::Sessions, &[], |session, _| {
            if let Some((session, [])) = read_key(session) {
                sessions.insert(SessionId(session), Known { is_stored: true, changes: None });
            }
        })?;
        Ok(Self {
            reader,
            stored_until,
            sessions,
            ended: Vec::new(),
            retained: HashMap::default(),
            bodies_live: BTreeMap::new(),
            segments,
            greatest_session,
        })
    }

    /// Records that start before it are in the rows on disk.
    pub(super) fn stored_until(&self) -> LogPosition {
        self.stored_until
    }

    /// What is on disk.
    pub(super) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Another transaction than that of [`Overlay::write`] was made, when nothing had changed here.
    pub(super) fn refresh(&mut self, database: &Database) -> Result<(), TablesError> {
        self.reader = database.reader()?;
        Ok(())
    }

    /// Whether there is such a session.
    pub(super) fn is_known(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// A session begins, if there is none of that number.
    pub(super) fn begin_session(&mut self, session: SessionId, client_id: &str) {
        self.sessions.entry(session).or_insert_with(|| {
            let changes = Changes { client_id: Some(client_id.into()), ..Changes::default() };
            Known { is_stored: false, changes: Some(Box::new(changes)) }
        });
    }

    /// Nothing is left of the session; what its queue held is let go.
    pub(super) fn end_session(&mut self, session: SessionId) -> Result<(), TablesError> {
        let Some(known) = self.sessions.remove(&session) else { return Ok(()) };
        let changes = known.changes.unwrap_or_default();
        if known.is_stored {
            self.ended.push(session);
            let mut held = Vec::new();
            self.reader.scan(Table::Queue, &key(session.0), |at, row| {
                if let (Some(at), Some(entry)) = (read_position(at), Entry::decode(row))
                    && !changes.earlier.contains_key(&at)
                {
                    held.push((at, entry.live()));
                }
            })?;
            held.into_iter().try_for_each(|(at, messages)| self.let_go(at, messages))?;
        }
        let changed = changes.earlier.iter().filter_map(|(at, entry)| Some((*at, entry.as_ref()?)));
        let fresh = changes.fresh.iter().filter_map(|(at, entry)| Some((*at, entry.as_ref()?)));
        for (at, entry) in changed.chain(fresh) {
            self.let_go(at, entry.live())?;
        }
        Ok(())
    }

    /// The terms of a session that there is.
    pub(super) fn terms(&mut self, session: SessionId) -> Result<&mut Terms, TablesError> {
        let known = self.sessions.entry(session).or_default();
        let is_stored = known.is_stored;
        let terms = &mut known.changes().terms;
        if terms.is_none() && is_stored {
            *terms = self.reader.get(Table::Terms, &key(session.0), Terms::decode)?.flatten();
        }
        Ok(terms.get_or_insert_default())
    }

    /// A session that there is belongs to somebody else from now on.
    pub(super) fn own(&mut self, session: SessionId, row: Vec<u8>) {
        self.sessions.entry(session).or_default().changes().owner = Some(row);
    }

    /// A session that there is has that subscription from now on, or has it no more.
    pub(super) fn subscribe(&mut self, session: SessionId, filter: &str, grant: Option<Grant>) {
        let known = self.sessions.entry(session).or_default();
        known.changes().subscriptions.insert(filter.into(), grant);
    }

    /// A new entry of the queue, for the record that is being folded; false when there is no such session.
    pub(super) fn enqueue(
        &mut self,
        session: SessionId,
        at: LogPosition,
        add: impl FnOnce(Option<&mut Entry>) -> Option<Entry>,
    ) -> bool {
        let Some(known) = self.sessions.get_mut(&session) else { return false };
        let fresh = &mut known.changes().fresh;
        let present = fresh.back_mut().filter(|(last, _)| *last == at);
        if let Some(entry) = add(present.and_then(|(_, entry)| entry.as_mut())) {
            fresh.push_back((at, Some(entry)));
        }
        true
    }

    /// Changes what the session waits for of one record, if it waits for any of it. The entry goes when
    /// nothing is left. `change` returns how many messages are gone by it, and what else it found.
    pub(super) fn change_entry<T>(
        &mut self,
        session: SessionId,
        at: LogPosition,
        change: impl FnOnce(&mut Entry) -> (u64, T),
    ) -> Result<Option<T>, TablesError> {
        let Some(known) = self.sessions.get_mut(&session) else { return Ok(None) };
        let (gone, found) = if at >= self.stored_until {
            let Some(changes) = &mut known.changes else { return Ok(None) };
            let Ok(index) = changes.fresh.binary_search_by_key(&at, |(at, _)| *at) else {
                return Ok(None);
            };
            let Some((_, slot)) = changes.fresh.get_mut(index) else { return Ok(None) };
            let Some(entry) = slot else { return Ok(None) };
            let changed = change(entry);
            if entry.is_empty() {
                *slot = None;
                changes.trim();
            }
            changed
        } else {
            let is_changed = known.changes.as_ref().is_some_and(|it| it.earlier.contains_key(&at));
            if !is_changed {
                // Rows of an earlier session with that number mean nothing.
                if !known.is_stored {
                    return Ok(None);
                }
                let row = self.reader.get(Table::Queue, &entry_key(session, at), Entry::decode)?;
                let Some(entry) = row.flatten() else { return Ok(None) };
                known.changes().earlier.insert(at, Some(entry));
            }
            let Some(slot) = known.changes().earlier.get_mut(&at) else { return Ok(None) };
            let Some(entry) = slot else { return Ok(None) };
            let changed = change(entry);
            if entry.is_empty() {
                *slot = None;
            }
            changed
        };
        self.let_go(at, gone)?;
        Ok(Some(found))
    }

    /// The identifiers of a session that there is towards its client.
    pub(super) fn outgoing(
        &mut self,
        session: SessionId,
    ) -> Result<&mut Slots<Outgoing>, TablesError> {
        let known = self.sessions.entry(session).or_default();
        let is_stored = known.is_stored;
        let slots = &mut known.changes().outgoing;
        if slots.is_none() {
            let stored = is_stored.then_some(session);
            *slots = Some(Slots::load(&self.reader, Table::Outgoing, stored, Outgoing::decode)?);
        }
        Ok(slots.get_or_insert_default())
    }

    /// The identifiers of a session that there is as a publisher.
    pub(super) fn accepted(&mut self, session: SessionId) -> Result<&mut Slots<()>, TablesError> {
        let known = self.sessions.entry(session).or_default();
        let is_stored = known.is_stored;
        let slots = &mut known.changes().accepted;
        if slots.is_none() {
            let stored = is_stored.then_some(session);
            *slots = Some(Slots::load(&self.reader, Table::Accepted, stored, |_| Some(()))?);
        }
        Ok(slots.get_or_insert_default())
    }

    /// The topic has this retained message from now on, or none; the earlier one is let go.
    pub(super) fn retain(
        &mut self,
        topic: &str,
        retained: Option<Retained>,
    ) -> Result<(), TablesError> {
        let earlier = match self.retained.get(topic) {
            Some(earlier) => *earlier,
            None => {
                let key = topic.as_bytes();
                self.reader.get(Table::Retained, key, Retained::decode)?.flatten()
            }
        };
        self.retained.insert(topic.into(), retained);
        match earlier {
            Some(earlier) => self.let_go(earlier.at, 1),
            None => Ok(()),
        }
    }

    /// So many messages of the record at `at` are not needed any more.
    fn let_go(&mut self, at: LogPosition, messages: u64) -> Result<(), TablesError> {
        if messages == 0 || self.segments.subtract(at, messages) {
            return Ok(());
        }
        let live = match self.bodies_live.get(&at) {
            Some(live) => Some(*live),
            None => self.reader.get(Table::BodiesLive, &key(at.0), read_number)?.flatten(),
        };
        if let Some(live) = live {
            self.bodies_live.insert(at, live.saturating_sub(messages));
        }
        Ok(())
    }

    /// Writes all changes in one transaction, after which records before `applied` need not be folded again.
    pub(super) fn write(
        &mut self,
        database: &Database,
        applied: LogPosition,
    ) -> Result<(), TablesError> {
        database.write(|writer| {
            self.write_sessions(writer)?;
            writer.rows(Table::Retained, |rows| {
                self.retained.iter().try_for_each(|(topic, retained)| match retained {
                    Some(retained) => put(rows, topic.as_bytes(), &retained.encode()),
                    None => remove(rows, topic.as_bytes()),
                })
            })?;
            let unneeded = self.bodies_live.iter().filter(|(_, live)| **live == 0);
            let unneeded: Vec<[u8; 8]> = unneeded.map(|(at, _)| key(at.0)).collect();
            writer.rows(Table::Bodies, |rows| {
                unneeded.iter().try_for_each(|key| remove(rows, key))
            })?;
            writer.rows(Table::BodiesLive, |rows| {
                let mut live = self.bodies_live.iter();
                live.try_for_each(|(at, live)| put(rows, &key(at.0), &live.to_le_bytes()))?;
                unneeded.iter().try_for_each(|key| remove(rows, key))
            })?;
            self.segments.write(applied, writer)?;
            writer.rows(Table::Meta, |rows| {
                put(rows, APPLIED, &applied.0.to_le_bytes())?;
                put(rows, GREATEST_SESSION, &self.greatest_session.to_le_bytes())
            })
        })?;
        self.reader = database.reader()?;
        self.stored_until = applied;
        for known in self.sessions.values_mut() {
            known.is_stored = true;
            known.changes = None;
        }
        self.ended = Vec::new();
        self.retained = HashMap::default();
        self.bodies_live = BTreeMap::new();
        self.segments.written();
        Ok(())
    }

    /// Table by table, and in each in the order of the keys.
    fn write_sessions(&self, writer: &Writer) -> Result<(), TablesError> {
        let of_sessions = [
            Table::Sessions,
            Table::Terms,
            Table::Subscriptions,
            Table::Queue,
            Table::Outgoing,
            Table::Accepted,
            Table::Owners,
        ];
        for table in of_sessions {
            writer.rows(table, |rows| {
                self.ended.iter().try_for_each(|session| remove_all(rows, &key(session.0)))
            })?;
        }
        let changed = self.sessions.iter();
        let mut changed: Vec<(SessionId, &Changes)> = changed
            .filter_map(|(session, known)| Some((*session, known.changes.as_deref()?)))
            .collect();
        changed.sort_unstable_by_key(|(session, _)| *session);
        writer.rows(Table::Sessions, |rows| {
            changed.iter().try_for_each(|(session, changes)| match &changes.client_id {
                Some(client_id) => put(rows, &key(session.0), client_id.as_bytes()),
                None => Ok(()),
            })
        })?;
        writer.rows(Table::Terms, |rows| {
            changed.iter().try_for_each(|(session, changes)| match &changes.terms {
                Some(terms) => put(rows, &key(session.0), &terms.encode()),
                None => Ok(()),
            })
        })?;
        writer.rows(Table::Owners, |rows| {
            changed.iter().try_for_each(|(session, changes)| match &changes.owner {
                Some(owner) => put(rows, &key(session.0), owner),
                None => Ok(()),
            })
        })?;
        writer.rows(Table::Subscriptions, |rows| {
            changed.iter().try_for_each(|(session, changes)| {
                changes.subscriptions.iter().try_for_each(|(filter, grant)| match grant {
                    Some(grant) => put(rows, &filter_key(*session, filter), &encode_grant(*grant)),
                    None => remove(rows, &filter_key(*session, filter)),
                })
            })
        })?;
        writer.rows(Table::Queue, |rows| {
            let mut row = Vec::new();
            changed.iter().try_for_each(|(session, changes)| {
                changes.entries().try_for_each(|(at, entry)| match entry {
                    Some(entry) => {
                        row.clear();
                        entry.encode(&mut row);
                        put(rows, &entry_key(*session, at), &row)
                    }
                    None => remove(rows, &entry_key(*session, at)),
                })
            })
        })?;
        writer.rows(Table::Outgoing, |rows| {
            changed.iter().try_for_each(|(session, changes)| {
                changes.outgoing.iter().flat_map(Slots::changes).try_for_each(|(id, now)| match now
                {
                    Some(now) => put(rows, &id_key(*session, id), &now.encode()),
                    None => remove(rows, &id_key(*session, id)),
                })
            })
        })?;
        writer.rows(Table::Accepted, |rows| {
            changed.iter().try_for_each(|(session, changes)| {
                changes.accepted.iter().flat_map(Slots::changes).try_for_each(|(id, now)| match now
                {
                    Some(()) => put(rows, &id_key(*session, id), &[]),
                    None => remove(rows, &id_key(*session, id)),
                })
            })
        })
    }
}

impl Known {
    fn changes(&mut self) -> &mut Changes {
        self.changes.get_or_insert_default()
    }
}

impl Changes {
    /// Lets go of what is done at both ends of `fresh`.
    fn trim(&mut self) {
        while let Some((_, None)) = self.fresh.front() {
            self.fresh.pop_front();
        }
        while let Some((_, None)) = self.fresh.back() {
            self.fresh.pop_back();
        }
    }

    /// All entries that a transaction has to write or to remove, in order.
    fn entries(&self) -> impl Iterator<Item = (LogPosition, Option<&Entry>)> {
        let earlier = self.earlier.iter().map(|(at, entry)| (*at, entry.as_ref()));
        let fresh = self.fresh.iter().map(|(at, entry)| (*at, entry.as_ref()));
        earlier.chain(fresh.filter(|(_, entry)| entry.is_some()))
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { by_id: BTreeMap::new() }
    }
}

impl<T: Copy + PartialEq> Slots<T> {
    /// The rows of the session, if it has any.
    fn load(
        reader: &Reader,
        table: Table,
        session: Option<SessionId>,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Self, TablesError> {
        let mut by_id = BTreeMap::new();
        if let Some(session) = session {
            reader.scan(table, &key(session.0), |id, row| {
                if let (Some(id), Some(row)) = (read_id(id), decode(row)) {
                    by_id.insert(id, Slot { stored: Some(row), now: Some(row) });
                }
            })?;
        }
        Ok(Self { by_id })
    }

    /// What the identifier stands for.
    pub(super) fn get(&self, id: PacketId) -> Option<T> {
        self.by_id.get(&id)?.now
    }

    /// The identifier stands for something else from now on.
    pub(super) fn set(&mut self, id: PacketId, now: T) {
        self.by_id.entry(id).or_insert(Slot { stored: None, now: None }).now = Some(now);
    }

    /// The identifier is free.
    pub(super) fn remove(&mut self, id: PacketId) {
        let Some(slot) = self.by_id.get_mut(&id) else { return };
        if slot.stored.is_some() {
            slot.now = None;
        } else {
            self.by_id.remove(&id);
        }
    }

    fn changes(&self) -> impl Iterator<Item = (PacketId, Option<T>)> {
        let changed = self.by_id.iter().filter(|(_, slot)| slot.stored != slot.now);
        changed.map(|(id, slot)| (*id, slot.now))
    }
}
