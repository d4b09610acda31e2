//! The durable state: what the records of the log have led to. Floor 3.
//!
//! One owner reads the log behind what is synced, calls [`Tables::apply`] for each record, and from time to
//! time [`Tables::flush`]. When the broker starts it does the same with what is left of the log, and
//! [`Tables::recovered`] is everything that must be known.
//!
//! ```text
//!   log --records--> fold --changes--> overlay --flush--> database (state.redb)
//!                                         \---reads fall through---/
//! ```
//!
//! # Invariants
//!
//! - The rows on disk are the fold of exactly the records before [`Tables::applied`].
//! - A record is folded once: what starts before [`Tables::folded`] is not looked at again.
//! - No bytes make anything here panic.

use std::io;
use std::path::{Path, PathBuf};

use super::bodies::{self, Bodies, Kept};
use super::database::{Database, FILE_NAME, SetAside, TablesError};
use super::fold::fold;
use super::overlay::Overlay;
use super::recovered::{self, RecoveredState};
use crate::ids::LogPosition;
use crate::record::{HEADER_BYTES, Record, RecordError};

/// See the module comment.
pub struct Tables {
    database: Database,
    overlay: Overlay,
    folded: LogPosition,
}

/// A record was not folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// It cannot be understood. Of an unknown kind: a newer version of the broker wrote it.
    #[error("at position {} of the log: {error}", at.0)]
    Record {
        /// Where it starts.
        at: LogPosition,
        /// What is wrong with it.
        error: RecordError,
    },
    /// It lies in no segment that has begun.
    #[error("position {} is in no segment of the log", at.0)]
    NoSegment {
        /// Where it starts.
        at: LogPosition,
    },
    /// What it changes could not be read.
    #[error(transparent)]
    Tables(#[from] TablesError),
}

impl Tables {
    /// Opens the tables in `dir`, or makes them. A file that is damaged, or of a format that is not known
    /// here, is renamed and reported: the tables are empty then, and the fold begins at the oldest segment.
    ///
    /// Fails only where nothing is known against the file and yet it cannot be used, or a new one cannot be
    /// made.
    pub fn open(dir: &Path) -> Result<(Self, Option<SetAside>), TablesError> {
        let (database, set_aside) = Database::open(dir)?;
        bodies::upgrade(&database)?;
        let overlay = Overlay::open(&database)?;
        let folded = overlay.stored_until();
        Ok((Self { database, overlay, folded }, set_aside))
    }

    /// Their file in `dir`.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(FILE_NAME)
    }

    /// On disk: records that start before it need not be folded again. The log must not give a position
    /// before it to a new record.
    pub fn applied(&self) -> LogPosition {
        self.overlay.stored_until()
    }

    /// In memory: records that start before it are nothing to [`Tables::apply`].
    pub fn folded(&self) -> LogPosition {
        self.folded
    }

    /// Records from `base` on lie in one segment. Must come before the first of them; nothing when it has
    /// come before, or when such records were folded already.
    pub fn begin_segment(&mut self, base: LogPosition) {
        if base >= self.folded {
            self.overlay.segments.begin(base);
        }
    }

    /// Folds the record whose header starts at `at`; `record` is what follows the header. When it fails with
    /// anything but [`FoldError::Tables`] nothing has changed.
    pub fn apply(&mut self, at: LogPosition, record: &[u8]) -> Result<(), FoldError> {
        if at < self.folded {
            return Ok(());
        }
        let decoded = Record::decode(record).map_err(|error| FoldError::Record { at, error })?;
        if self.overlay.segments.base_of(at).is_none() {
            return Err(FoldError::NoSegment { at });
        }
        fold(&mut self.overlay, at, decoded)?;
        self.folded = LogPosition(at.0.saturating_add((HEADER_BYTES + record.len()) as u64));
        Ok(())
    }

    /// Writes all changes, and that the log was read up to `applied`, in one transaction that is on disk when
    /// this returns. When it fails the file is to be trusted as little as a log whose sync has failed.
    pub fn flush(&mut self, applied: LogPosition) -> Result<(), TablesError> {
        let applied = applied.max(self.folded);
        self.overlay.write(&self.database, applied)?;
        self.folded = applied;
        Ok(())
    }

    /// Everything that must be known when a broker starts: flushes as [`Tables::flush`] does and reads all
    /// rows.
    pub fn recovered(&mut self, applied: LogPosition) -> Result<RecoveredState, TablesError> {
        self.flush(applied)?;
        recovered::read(self.overlay.reader(), self.overlay.greatest_session)
    }

    /// Messages that are needed from the segment with this base: each that a session waits for, counted for
    /// each session, and each retained one.
    pub fn live(&self, base: LogPosition) -> u64 {
        self.overlay.segments.live(base)
    }

    /// Whether the segment from `base` to `end` may be used again: no recovery will fold it, and nobody needs
    /// a message of it.
    pub fn may_go(&self, base: LogPosition, end: LogPosition) -> bool {
        end <= self.applied() && self.live(base) == 0
    }

    /// Copies what is needed of these segments into the tables, so that they may go. Flushes before, and what
    /// it does is on disk when it returns. Reads the rows of all queues once: call it seldom, with all
    /// segments that are old and hold little.
    ///
    /// `read` gets the position of a record and reads that many bytes of its frames, from their beginning. A
    /// segment where it fails stays as it is, as does one whose end is not folded yet.
    pub fn keep_bodies(
        &mut self,
        segments: &[LogPosition],
        read: &mut dyn FnMut(LogPosition, u32) -> io::Result<Vec<u8>>,
    ) -> Result<Kept, TablesError> {
        self.flush(self.folded)?;
        bodies::keep(&self.database, &mut self.overlay, segments, read)
    }

    /// Reads what was copied, on any thread.
    pub fn bodies(&self) -> Bodies {
        Bodies::new(self.database.clone())
    }
}
