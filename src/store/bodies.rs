//! Frames that were copied out of the log, so that a few messages do not keep a whole segment. Floor 3.
//!
//! The owner of the tables copies; whoever delivers a message and does not find its segment reads here.
//!
//! # Invariants
//!
//! - A segment may go when the copies are on disk, not before: at every moment a message is in the one or in
//!   the other.
//! - A copy has a checksum that also covers its place, and is not given out without a look at it.
//! - A copy goes with the last message that needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

use bytes::{Buf, Bytes};

use super::database::{Database, Table, TablesError, put, remove};
use super::entry::Entry;
use super::overlay::Overlay;
use super::place::{Place, frames};
use super::row::{Retained, key, read_key, read_position};
use super::segment::checksum;
use crate::ids::LogPosition;

/// See the module comment. A clone reads the same rows.
#[derive(Clone, Debug)]
pub struct Bodies {
    database: Database,
}

/// What was copied of one record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Body {
    /// Number of the first frame among those of the record.
    pub first: u32,
    /// Whole frames.
    pub frames: Bytes,
}

/// What copying did.
#[derive(Debug, Default)]
pub struct Kept {
    /// Records of which something was copied.
    pub records: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Why a segment stays as it is, if one does.
    pub failed: Option<io::Error>,
}

/// Which segments are worth it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Density {
    /// All: they are old.
    Any,
    /// Those of which less than half is needed: others would take more space in the tables.
    Sparse,
}

/// What is needed of one record.
#[derive(Debug)]
struct Needed {
    numbers: Range<u32>,
    /// Bytes from the beginning of the frames to the end of the last one that is needed, or more.
    len: u32,
    messages: u64,
}

impl Bodies {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// What was copied of the record at `at` and is still needed. An error, too, where it does not check.
    pub fn read(&self, at: LogPosition) -> Result<Option<Body>, TablesError> {
        let reader = self.database.reader()?;
        match reader.get(Table::Bodies, &key(at.0), |row| decode(at, row))? {
            None => Ok(None),
            Some(Some(body)) => Ok(Some(body)),
            Some(None) => {
                let what = "a copied message does not check";
                Err(io::Error::new(io::ErrorKind::InvalidData, what).into())
            }
        }
    }
}

impl Body {
    /// Exactly the frames of these messages; `None` when they are not there.
    pub fn cut(&self, place: &Place) -> Option<Bytes> {
        let skip = place.first.checked_sub(self.first)?;
        Some(self.frames.slice_ref(frames(&self.frames, skip, place.count)?))
    }
}

/// See [`Tables::keep_bodies`](super::Tables::keep_bodies). Nothing may wait in `overlay`.
pub(super) fn keep(
    database: &Database,
    overlay: &mut Overlay,
    segments: &[LogPosition],
    density: Density,
    read: &mut dyn FnMut(LogPosition, u32) -> io::Result<Vec<u8>>,
) -> Result<Kept, TablesError> {
    let stored_until = overlay.stored_until();
    let closed = segments.iter().filter(|base| overlay.segments.ends_by(**base, stored_until));
    let mut segments: BTreeSet<LogPosition> = closed.copied().collect();
    let mut kept = Kept::default();
    let mut copies = Vec::new();
    let needed = needed(overlay, &segments)?;
    if density == Density::Sparse {
        let mut bytes: BTreeMap<LogPosition, u64> = BTreeMap::new();
        for (at, needed) in &needed {
            let base = overlay.segments.base_of(*at).unwrap_or(*at);
            *bytes.entry(base).or_default() += u64::from(needed.len);
        }
        let is_sparse = |base: &LogPosition| {
            let needed = bytes.get(base).copied().unwrap_or(0);
            needed < overlay.segments.len(*base) / 2
        };
        segments.retain(is_sparse);
    }
    for (at, needed) in needed {
        let Some(base) = overlay.segments.base_of(at).filter(|base| segments.contains(base)) else {
            continue;
        };
        match copy(at, &needed, read) {
            Ok(copy) => copies.push((base, at, needed.messages, copy)),
            Err(error) => {
                segments.remove(&base);
                kept.failed.get_or_insert(error);
            }
        }
    }
    copies.retain(|(base, ..)| segments.contains(base));
    database.write(|writer| {
        writer.rows(Table::Bodies, |rows| {
            copies.iter().try_for_each(|(_, at, _, copy)| put(rows, &key(at.0), copy))
        })?;
        writer.rows(Table::BodiesLive, |rows| {
            let mut live = copies.iter();
            live.try_for_each(|(_, at, live, _)| put(rows, &key(at.0), &live.to_le_bytes()))
        })?;
        writer.rows(Table::Segments, |rows| {
            segments.iter().try_for_each(|base| remove(rows, &key(base.0)))
        })
    })?;
    overlay.refresh(database)?;
    segments.iter().for_each(|base| overlay.segments.forget(*base));
    kept.records = copies.len() as u64;
    kept.bytes = copies.iter().map(|(.., copy)| copy.len() as u64).sum();
    Ok(kept)
}

/// What the rows on disk need of these segments.
fn needed(
    overlay: &Overlay,
    segments: &BTreeSet<LogPosition>,
) -> Result<BTreeMap<LogPosition, Needed>, TablesError> {
    let is_meant = |at| overlay.segments.base_of(at).is_some_and(|base| segments.contains(&base));
    let mut all: BTreeMap<LogPosition, Needed> = BTreeMap::new();
    let mut need = |at, numbers: Range<u32>, len: u32| {
        let empty = Needed { numbers: numbers.clone(), len, messages: 0 };
        let needed = all.entry(at).or_insert(empty);
        needed.numbers.start = needed.numbers.start.min(numbers.start);
        needed.numbers.end = needed.numbers.end.max(numbers.end);
        needed.len = needed.len.max(len);
        needed.messages += u64::from(numbers.end - numbers.start);
    };
    overlay.reader().scan(Table::Queue, &[], |key, row| {
        let at = read_key(key).and_then(|(_, at)| read_position(at));
        let Some(at) = at.filter(|at| is_meant(*at)) else { return };
        let Some(entry) = Entry::decode(row) else { return };
        entry.parts().for_each(|(_, part)| need(at, part.numbers(), entry.frames_len));
    })?;
    overlay.reader().scan(Table::Retained, &[], |_, row| {
        let Some(it) = Retained::decode(row).filter(|it| is_meant(it.at)) else { return };
        need(it.at, it.number..it.number.saturating_add(1), it.offset.saturating_add(it.len));
    })?;
    Ok(all)
}

/// The row with the frames that are needed, and those between them.
fn copy(
    at: LogPosition,
    needed: &Needed,
    read: &mut dyn FnMut(LogPosition, u32) -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    let Range { start, end } = needed.numbers;
    let all = read(at, needed.len)?;
    let Some(frames) = frames(&all, start, end.saturating_sub(start)) else {
        let what = format!("the frames of the record at {} are not there", at.0);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    };
    Ok(checked(at, &[&start.to_le_bytes(), frames].concat()))
}

/// Gives the copies of an earlier version their checksums.
pub(super) fn upgrade(database: &Database) -> Result<(), TablesError> {
    if !database.is_of_earlier_format()? {
        return Ok(());
    }
    let reader = database.reader()?;
    database.write(|writer| {
        writer.rows(Table::Bodies, |rows| {
            let mut outcome = Ok(());
            reader.scan(Table::Bodies, &[], |key, row| {
                if let (Ok(()), Some(at)) = (&outcome, read_position(key)) {
                    outcome = put(rows, key, &checked(at, row));
                }
            })?;
            outcome
        })?;
        writer.set_format()
    })
}

/// With the checksum in front that the place of the copy is part of.
fn checked(at: LogPosition, row: &[u8]) -> Vec<u8> {
    [&checksum(at, row).to_le_bytes(), row].concat()
}

fn decode(at: LogPosition, mut row: &[u8]) -> Option<Body> {
    let expected = row.try_get_u32_le().ok()?;
    if checksum(at, row) != expected {
        return None;
    }
    let first = row.try_get_u32_le().ok()?;
    Some(Body { first, frames: Bytes::copy_from_slice(row) })
}

#[cfg(test)]
mod tests {
    use super::super::database::Writer;
    use super::*;

    const AT: LogPosition = LogPosition(77);
    const ROW: &[u8] = b"\x05\0\0\0\x32\x06\0\x01t\0\x01a";

    fn opened() -> (tempfile::TempDir, Database) {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path()).unwrap().0;
        (dir, database)
    }

    fn put_body(database: &Database, at: LogPosition, row: &[u8]) {
        let write = |writer: &Writer| writer.rows(Table::Bodies, |rows| put(rows, &key(at.0), row));
        database.write(write).unwrap();
    }

    #[test]
    fn copy_with_any_changed_bit_or_at_another_place_is_not_given_out() {
        let (_dir, database) = opened();
        let bodies = Bodies::new(database.clone());
        let row = checked(AT, ROW);
        put_body(&database, AT, &row);
        let frames = Bytes::from_static(&ROW[4..]);
        assert_eq!(bodies.read(AT).unwrap(), Some(Body { first: 5, frames }));
        for bit in 0..row.len() * 8 {
            let mut changed = row.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            put_body(&database, AT, &changed);
            let error = bodies.read(AT).unwrap_err().to_string();
            assert!(error.ends_with("a copied message does not check"), "bit {bit}: {error}");
        }
        put_body(&database, LogPosition(78), &row);
        assert!(bodies.read(LogPosition(78)).is_err());
        assert_eq!(bodies.read(LogPosition(79)).unwrap(), None);
    }

    #[test]
    fn copies_of_the_first_format_are_read_after_an_upgrade() {
        let (_dir, database) = opened();
        put_body(&database, AT, ROW);
        let earlier = |writer: &Writer| {
            writer.rows(Table::Meta, |rows| put(rows, b"format", &1_u64.to_le_bytes()))
        };
        database.write(earlier).unwrap();
        for _ in 0..2 {
            upgrade(&database).unwrap();
            let body = Bodies::new(database.clone()).read(AT).unwrap().unwrap();
            assert_eq!((body.first, &body.frames[..]), (5, &ROW[4..]));
        }
        assert!(!database.is_of_earlier_format().unwrap());
    }
}
