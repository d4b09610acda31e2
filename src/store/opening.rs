//! What is found in the directory of a log, and made of it.
//!
//! Headers are read, and the last segment: the log ends with the last record in it that checks, for a segment is
//! synced before the next one begins. What was read is synced before anything is built on it, because after the end
//! of a process the page cache may know more than the disk.
//!
//! # Invariants
//!
//! - New positions are beyond those that any file found here can hold, be it a segment or free: bytes of an append
//!   that was cut off never lie at a position that is given out again.
//! - No content is overwritten and no segment removed. Files that cannot be used get another name.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::ids::LogPosition;
use crate::record;

use super::damage::{self, Cause, Damage};
use super::files::{Files, StoredFile};
use super::log::Settings;
use super::scan;
use super::segment::{self, HEADER_BYTES, Head, Header, Kind, Segment};
use super::spares::Spare;

/// Taken for the size of a file that is no segment and cannot be opened: more than any append has.
const UNKNOWN_BYTES: u64 = 1 << 40;

/// Written at once to make it durable.
const REWRITE_BYTES: usize = 1 << 20;

/// What was found when a log was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// Where the log ends. New records lie further on.
    pub end: LogPosition,
    /// The end, if there were bytes of an append that was being written: its completion never ran at
    /// [`Level::Always`](super::log::Level::Always).
    pub cut: Option<LogPosition>,
    /// Behind what was cut lies a record that checks: more than one was being written and the disk kept the later one,
    /// or it was written long ago and its predecessor is damaged.
    pub has_more_behind_cut: bool,
    /// Files that are no segments though their names say so. What is missing because of them is known by a scan.
    pub damage: Vec<Damage>,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A later version wrote it.
    #[error("{file} was written by a later version of the broker: its format is {version}")]
    Newer {
        /// Its name in the directory of the log.
        file: String,
        /// Of the format.
        version: u32,
    },
    /// The directory, or a file in it, cannot be used at all.
    #[error("cannot {operation}: {source}")]
    Io {
        /// A verb and what it was about.
        operation: String,
        /// What the system says.
        source: io::Error,
    },
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

impl OpenError {
    fn of(operation: &str, name: &str) -> impl FnOnce(io::Error) -> Self {
        let operation = format!("{operation} {name}");
        move |source| Self::Io { operation, source }
    }
}

/// All that a log begins with.
pub(super) struct Opening {
    pub(super) recovered: Recovered,
    pub(super) segments: BTreeMap<u64, Arc<Segment>>,
    pub(super) spares: VecDeque<Spare>,
    /// Where the next segment begins.
    pub(super) base_next: LogPosition,
    /// For the name of the next new file.
    pub(super) new_next: u64,
}

/// See `Log::open`.
pub(super) fn open(
    files: &dyn Files,
    settings: &Settings,
    not_before: LogPosition,
) -> Result<Opening, OpenError> {
    let mut directory = Directory::read(files, settings.segment_bytes)?;
    let mut base_next = not_before;
    for (_, number, bytes) in directory.entries.iter().filter(|(kind, ..)| kind.has_base()) {
        base_next = base_next.max(segment::limit(LogPosition(*number), *bytes));
    }

    let (found, damage) = directory.take_segments()?;
    let mut recovered =
        Recovered { end: not_before, cut: None, has_more_behind_cut: false, damage };
    let mut segments = link(found);
    if let Some((base, last)) = segments.pop_last() {
        let last = find_end(files, &last, &mut recovered)?;
        segments.insert(base, Arc::new(last));
    }
    let written_to = segments.last_key_value().map_or(LogPosition(0), |(_, last)| last.limit());
    let spares = directory.take_spares(settings.spare_segments_max, written_to)?;
    files.sync_dir().map_err(OpenError::of("sync", "the directory"))?;
    Ok(Opening { recovered, segments, spares, base_next, new_next: directory.new_next })
}

/// The files of the log: what their names say, and their sizes, not below that of a segment where they may have held
/// one.
struct Directory<'f> {
    files: &'f dyn Files,
    segment_bytes: u64,
    entries: Vec<(Kind, u64, u64)>,
    new_next: u64,
}

/// A file with the header that belongs to its name.
struct Found {
    header: Header,
    file: Arc<dyn StoredFile>,
    bytes: u64,
}

/// A file named as a segment.
enum Candidate {
    Segment(Found),
    /// Was never written to, or only as another segment: the process ended when it was about to become this one.
    Unused,
    Unusable(Cause),
}

impl<'f> Directory<'f> {
    fn read(files: &'f dyn Files, segment_bytes: u64) -> Result<Self, OpenError> {
        let names = files.list().map_err(OpenError::of("list", "the directory"))?;
        let mut entries = Vec::new();
        let mut new_next = 0;
        for (kind, number) in names.iter().filter_map(|name| Kind::parse(name)) {
            let name = kind.name(number);
            let bytes = match files.open(&name).and_then(|file| file.size()) {
                Ok(bytes) => bytes.max(segment_bytes),
                // Positions that it holds must not be given out again, so its size has to be known.
                Err(error) if kind == Kind::Segment => {
                    return Err(OpenError::of("open", &name)(error));
                }
                Err(_) => UNKNOWN_BYTES,
            };
            entries.push((kind, number, bytes));
            if kind == Kind::New {
                new_next = new_next.max(number.saturating_add(1));
            }
        }
        entries.sort_unstable();
        Ok(Self { files, segment_bytes, entries, new_next })
    }

    /// The segments in their order. The others that are named so get another name.
    fn take_segments(&mut self) -> Result<(Vec<Found>, Vec<Damage>), OpenError> {
        let (mut found, mut damage) = (Vec::new(), Vec::new());
        let mut is_last = true;
        let entries = self.entries.clone();
        for (_, base, bytes) in entries.iter().rev().filter(|(kind, ..)| *kind == Kind::Segment) {
            match self.candidate(*base)? {
                Candidate::Segment(segment) => {
                    found.push(segment);
                    is_last = false;
                }
                Candidate::Unused if is_last => {
                    self.rename(Kind::Segment, Kind::Free, *base)?;
                    self.entries.push((Kind::Free, *base, *bytes));
                }
                Candidate::Unused => damage.push(self.set_aside(*base, Cause::Header)?),
                Candidate::Unusable(cause) => damage.push(self.set_aside(*base, cause)?),
            }
        }
        found.reverse();
        damage.reverse();
        Ok((found, damage))
    }

    fn candidate(&self, base: u64) -> Result<Candidate, OpenError> {
        let name = Kind::Segment.name(base);
        let file = self.files.open(&name).map_err(OpenError::of("open", &name))?;
        let bytes = file.size().map_err(OpenError::of("open", &name))?;
        let mut head = [0; HEADER_BYTES as usize];
        if let Err(error) = scan::read(&*file, &mut head, 0) {
            return Ok(Candidate::Unusable(Cause::Io(error.to_string())));
        }
        Ok(match Header::decode(head) {
            Head::Newer(version) => return Err(OpenError::Newer { file: name, version }),
            Head::Header(header) if header.base.0 == base => {
                Candidate::Segment(Found { header, file, bytes })
            }
            Head::Header(_) | Head::Blank => Candidate::Unused,
            Head::Unreadable => Candidate::Unusable(Cause::Header),
        })
    }

    /// Gives an unusable file the name that keeps it from being touched again, unless there is one of that name.
    fn set_aside(&self, base: u64, cause: Cause) -> Result<Damage, OpenError> {
        let is_taken =
            |(kind, number, _): &(Kind, u64, u64)| (*kind, *number) == (Kind::Damaged, base);
        let set_aside = match self.entries.iter().any(is_taken) {
            true => None,
            false => {
                self.rename(Kind::Segment, Kind::Damaged, base)?;
                Some(Kind::Damaged.name(base))
            }
        };
        let missing = LogPosition(base)..LogPosition(base);
        Ok(Damage { missing, file: Kind::Segment.name(base), cause, set_aside })
    }

    /// Files of the right size, those first that were segments the longest time ago. Others are removed, unless only
    /// the name still tells of positions beyond `written_to` that were given out.
    fn take_spares(
        &self,
        free_max: usize,
        written_to: LogPosition,
    ) -> Result<VecDeque<Spare>, OpenError> {
        let count = |kind| self.entries.iter().filter(|entry| entry.0 == kind).count();
        let mut surplus = count(Kind::Free).saturating_sub(free_max);
        let mut entries = self.entries.clone();
        entries.sort_unstable();
        let mut spares = VecDeque::new();
        for (kind, number, bytes) in entries {
            let name = kind.name(number);
            let is_beyond = segment::limit(LogPosition(number), bytes) > written_to;
            match kind {
                Kind::Segment | Kind::Damaged => continue,
                Kind::Free | Kind::New => {
                    let is_surplus = kind == Kind::Free && surplus > 0;
                    surplus = surplus.saturating_sub(usize::from(is_surplus));
                    let file = self.files.open(&name).ok();
                    let fits = |file: &Arc<dyn StoredFile>| {
                        file.size().is_ok_and(|bytes| bytes == self.segment_bytes)
                    };
                    if let Some(file) = file.filter(|file| !is_surplus && fits(file)) {
                        spares.push_back(Spare { name, file });
                        continue;
                    }
                    if kind == Kind::Free && is_beyond {
                        continue;
                    }
                }
                Kind::Copying => (),
            }
            self.files.remove(&name).map_err(OpenError::of("remove", &name))?;
        }
        Ok(spares)
    }

    fn rename(&self, from: Kind, to: Kind, base: u64) -> Result<(), OpenError> {
        let (from, to) = (from.name(base), to.name(base));
        self.files.rename(&from, &to).map_err(OpenError::of("rename", &from))
    }
}

/// Each segment knows where the one before it ends, if that is still there.
fn link(found: Vec<Found>) -> BTreeMap<u64, Arc<Segment>> {
    let mut segments = BTreeMap::new();
    let mut next: Option<Header> = None;
    for Found { header, file, bytes } in found.into_iter().rev() {
        let end = next.filter(|next| next.previous == header.base).map(|next| next.follows);
        segments.insert(header.base.0, Arc::new(Segment::found(header, file, bytes, end)));
        next = Some(header);
    }
    segments
}

/// Reads the last segment, and makes what was read survive.
fn find_end(
    files: &dyn Files,
    last: &Segment,
    recovered: &mut Recovered,
) -> Result<Segment, OpenError> {
    let base = last.header.base;
    let (end, ended) = scan::records(last, base, last.end(), |_, _| ControlFlow::Continue(()));
    if let scan::Ended::Io(error) = ended {
        recovered.damage.push(Damage {
            missing: end..end,
            file: last.name(),
            cause: Cause::Io(error.to_string()),
            set_aside: damage::copy_aside(files, last),
        });
    }
    recovered.end = end;
    recovered.cut = is_cut(last, end).then_some(end);
    recovered.has_more_behind_cut = has_more_behind(last, end);
    make_durable(last, end).map_err(OpenError::of("sync", &last.name()))?;
    Ok(Segment::found(last.header, last.file.clone(), last.bytes, Some(end)))
}

/// Writes what was read once more. Where a sync has failed, the page cache may hold what is on no disk and take it for
/// written, so that a sync alone would succeed and do nothing.
fn make_durable(last: &Segment, end: LogPosition) -> io::Result<()> {
    let mut piece = vec![0; REWRITE_BYTES];
    let mut offset = 0;
    while offset < last.offset(end) {
        let bytes = (last.offset(end) - offset).min(REWRITE_BYTES as u64);
        let piece = piece.get_mut(..bytes as usize).unwrap_or_default();
        if last.file.read_at(piece, offset)? < piece.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        last.file.write_at(piece, offset)?;
        offset += bytes;
    }
    last.file.sync_data()
}

/// Whether there is a record that checks where the one at `end` would end by its length.
fn has_more_behind(last: &Segment, end: LogPosition) -> bool {
    let mut head = [0; record::HEADER_BYTES];
    let read = last.file.read_at(&mut head, last.offset(end));
    let Some(len) = segment::length(&head).filter(|len| read.is_ok() && *len > 0) else {
        return false;
    };
    let next = LogPosition(end.0.saturating_add((head.len() + len) as u64));
    next < last.end() && matches!(scan::one(last, next, 0), Ok(Some(_)))
}

/// After the last record of a finished write there are zeros.
fn is_cut(last: &Segment, end: LogPosition) -> bool {
    let mut bytes = [0; 8];
    let read = last.file.read_at(&mut bytes, last.offset(end));
    read.is_err() || bytes != [0; 8]
}
