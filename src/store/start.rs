//! Opens log and tables, and keeps the tables up with the log. Floor 3, called by `broker`.
//!
//! ```text
//!   <data directory>/state.redb      the tables
//!   <data directory>/log/            the segments
//! ```
//!
//! A thread folds what is synced into the tables, and lets go of the segments that nobody needs. It reads the log
//! like a process that starts, so what it writes is what such a process would find out.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{error, info, warn};

use super::files::{Directory, DirectoryError, Files};
use super::handle::{Clock, Store};
use super::log::{Damage, Failure, Level, Log, OpenError, ReadError, SegmentInfo, Settings};
use super::room::{DiskLimits, Room};
use super::{Bodies, FoldError, Place, RecoveredState, Tables, TablesError};
use crate::ids::LogPosition;
use crate::record::{Messages, RecordError};

/// The tables are brought up to date after so much log.
const CHECKPOINT_BYTES: u64 = 16 << 20;
/// And after this time, if there is any.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// How often the length of the log is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A read that has failed is repeated after this time.
const SECOND_READ_AFTER: Duration = Duration::from_secs(2);
/// Segments behind which an old one is emptied: what it still holds is copied into the tables.
const SEGMENTS_MAX: usize = 16;
/// The same where there is little room on the disk.
const TIGHT_SEGMENTS_MAX: usize = 4;
/// Then space is looked for in what is still needed, no more often than this: it takes a look at all queues.
const RELIEF_INTERVAL: Duration = Duration::from_secs(5);

/// Why a broker cannot begin with these data. Files that are merely damaged are set aside and reported instead.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory is somebody else's, or cannot be made.
    #[error("data directory {0}")]
    Directory(#[from] DirectoryError),
    /// The log cannot be used at all.
    #[error("message log: {0}")]
    Log(#[from] OpenError),
    /// The tables cannot be used at all.
    #[error("state tables: {0}")]
    Tables(#[from] TablesError),
    /// A newer version wrote something that is not known here.
    #[error("message log, {0}")]
    Fold(#[from] FoldError),
    /// There is no thread to be had.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// Why the tables stay behind.
#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error(transparent)]
    Fold(#[from] FoldError),
    #[error(transparent)]
    Tables(#[from] TablesError),
    #[error("a part of the message log cannot be read")]
    Unreadable,
}

/// Keeps the tables up with the log until it is stopped.
pub struct Checkpointer {
    stop: flume::Sender<()>,
    thread: JoinHandle<()>,
    log: Arc<Log>,
}

/// What a process begins with.
pub struct Started {
    /// The handle.
    pub store: Store,
    /// What the one before it has left.
    pub recovered: RecoveredState,
    /// To be stopped last.
    pub checkpointer: Checkpointer,
}

/// Reads what there is in `dir`, and goes on with a log as `settings` say. `on_failure` is told once if the log cannot be written any more; nothing is safe
/// from then on.
pub fn start(
    dir: &Path,
    level: Level,
    settings: Settings,
    on_failure: impl FnOnce(String) + Send + 'static,
) -> Result<Started, StartError> {
    let files = Arc::new(Directory::open(&dir.join("log"))?);
    start_with(files, dir, level, settings, on_failure)
}

/// As [`start`], with a log in `files` of the caller's choice and the tables in `dir`.
pub fn start_with(
    files: Arc<dyn Files>,
    dir: &Path,
    level: Level,
    settings: Settings,
    on_failure: impl FnOnce(String) + Send + 'static,
) -> Result<Started, StartError> {
    let (mut tables, set_aside) = Tables::open(dir)?;
    if let Some(set_aside) = set_aside {
        let to = set_aside.to.display();
        warn!(%to, why = %set_aside.why, "the state tables are damaged: set aside, and made anew from the log");
    }
    let on_failure = |failure: &Failure| on_failure(failure.to_string());
    let disk = DiskLimits { bytes_max: 0, segment_bytes: settings.segment_bytes };
    let (log, found) = Log::open(files, settings, tables.applied(), on_failure)?;
    if let Some(cut) = found.cut.filter(|_| found.has_more_behind_cut) {
        warn!(
            position = cut.0,
            "the end of the log is cut before records that are whole: its last write was torn, or the file is damaged"
        );
    } else if let Some(cut) = found.cut {
        info!(
            position = cut.0,
            "the end of the log was being written: cut, it was never acknowledged"
        );
    }
    report(&found.damage);
    let log = Arc::new(log);
    fold(&log, &mut tables, found.end)?;
    let recovered = tables.recovered(found.end)?;
    if recovered.unreadable_rows > 0 {
        warn!(
            rows = recovered.unreadable_rows,
            "rows of the state tables are damaged and left out"
        );
    }
    let room = Arc::new(Room::new(log.clone(), disk));
    room.measure(dir, &Tables::path(dir));
    let store = Store::new(log.clone(), tables.bodies(), room.clone(), level, Clock::start());
    let work = Work { log, tables, room, dir: dir.to_owned(), relieved_at: None };
    let checkpointer = Checkpointer::start(work).map_err(StartError::Thread)?;
    Ok(Started { store, recovered, checkpointer })
}

/// Reads the log from where the tables are up to `until`.
/// Returns whether all of it could be read.
fn fold(log: &Log, tables: &mut Tables, until: LogPosition) -> Result<bool, FoldError> {
    let mut is_whole = true;
    let segments = log.segments();
    let mut nexts = segments.iter().skip(1).map(|next| next.base);
    for segment in &segments {
        let next = nexts.next().unwrap_or(until).min(until);
        // Where that lies before the segment the scan says whether anything is missing between.
        let from = tables.folded();
        if next <= from.max(segment.base) {
            continue;
        }
        tables.begin_segment(segment.base);
        let mut outcome = Ok(());
        let end = log.scan(from, next, |at, record| {
            outcome = match tables.apply(at, record) {
                Err(FoldError::Record { at, error: error @ RecordError::Malformed(_) }) => {
                    // It was written like this: what it says is lost, and nothing else.
                    error!(position = at.0, %error, "a record of the message log makes no sense: left out");
                    Ok(())
                }
                outcome => outcome,
            };
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        report(&end.damage);
        is_whole &= end.damage.is_empty();
        outcome?;
    }
    Ok(is_whole)
}

fn report(damage: &[Damage]) {
    for damage in damage {
        error!(%damage, "a part of the message log is damaged: what it held is lost");
    }
}

impl Checkpointer {
    fn start(work: Work) -> io::Result<Self> {
        let (stop, stopped) = flume::bounded(1);
        let log = work.log.clone();
        let thread = thread::Builder::new().name("checkpoint".into());
        let thread = thread.spawn(move || work.run(&stopped))?;
        Ok(Self { stop, thread, log })
    }

    /// Writes and syncs what was appended, and brings the tables up to it. Blocks. Returns why the log has failed, if
    /// it has.
    pub fn stop(self) -> Option<String> {
        self.log.close();
        drop(self.stop);
        // A panic has been logged.
        let _ = self.thread.join();
        self.log.failure().map(Failure::to_string)
    }
}

struct Work {
    log: Arc<Log>,
    tables: Tables,
    room: Arc<Room>,
    dir: PathBuf,
    /// The last time that space was looked for.
    relieved_at: Option<Instant>,
}

impl Work {
    fn run(mut self, stopped: &flume::Receiver<()>) {
        let mut waited = Duration::ZERO;
        loop {
            let is_stopped =
                stopped.recv_timeout(LOOK_INTERVAL) == Err(flume::RecvTimeoutError::Disconnected);
            waited += LOOK_INTERVAL;
            self.room.measure(&self.dir, &Tables::path(&self.dir));
            let behind = self.log.durable().0.saturating_sub(self.tables.applied().0);
            let is_due = behind >= CHECKPOINT_BYTES
                || (behind > 0 && (waited >= CHECKPOINT_INTERVAL || self.room.is_tight()));
            if is_due || is_stopped {
                waited = Duration::ZERO;
                if let Err(error) = self.checkpoint() {
                    // The log has everything; it grows until a process starts that can write the tables.
                    error!(%error, "cannot bring the state tables up to date: the log is kept, and messages are refused when it has grown too much");
                    self.room.give_up();
                    return self.only_measure(stopped);
                }
            }
            if is_stopped {
                return;
            }
        }
    }

    /// The tables are not touched any more.
    fn only_measure(&self, stopped: &flume::Receiver<()>) {
        while stopped.recv_timeout(LOOK_INTERVAL) != Err(flume::RecvTimeoutError::Disconnected) {
            self.room.measure(&self.dir, &Tables::path(&self.dir));
        }
    }

    fn checkpoint(&mut self) -> Result<(), CheckpointError> {
        let until = self.log.durable();
        if !fold(&self.log, &mut self.tables, until)? {
            // Perhaps the disk gives it back to the next process.
            return Err(CheckpointError::Unreadable);
        }
        self.tables.flush(until)?;
        let segments = self.log.segments();
        self.retire(&segments);
        let is_tight = self.room.is_tight();
        if is_tight && self.relieved_at.is_some_and(|at| at.elapsed() < RELIEF_INTERVAL) {
            return Ok(());
        }
        let segments_max = if is_tight { TIGHT_SEGMENTS_MAX } else { SEGMENTS_MAX };
        let excess = segments.len().saturating_sub(segments_max);
        let old: Vec<LogPosition> = segments.iter().take(excess).map(|it| it.base).collect();
        if !old.is_empty() {
            let log = &self.log;
            let density = self.room.density();
            let read = &mut |at, len| read_frames(log, at, len);
            let kept = self.tables.keep_bodies(&old, density, read)?;
            if let Some(error) = kept.failed {
                warn!(%error, "an old segment of the log cannot be read");
            }
            self.tables.flush(until)?;
            self.retire(&segments);
        }
        if is_tight {
            if self.room.has_large_tables() {
                self.tables.compact()?;
            }
            self.relieved_at = Some(Instant::now());
        }
        Ok(())
    }

    fn retire(&self, segments: &[SegmentInfo]) {
        for segment in segments {
            if self.tables.may_go(segment.base, segment.end)
                && let Err(error) = self.log.retire(segment.base)
            {
                warn!(%error, "cannot use a segment of the log again");
            }
        }
    }
}

/// At least the first `len` bytes of the frames of the record at `at`, checked.
fn read_frames(log: &Log, at: LogPosition, len: u32) -> io::Result<Vec<u8>> {
    let wanted = Messages::FRAMES_AT + len as usize;
    let mut record = log.read_record(at, wanted).map_err(io::Error::other)?;
    if record.len() < wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    record.drain(..Messages::FRAMES_AT);
    Ok(record)
}

/// The frames at each of these places, wherever they are now, once they have been checked; `None`, and a word in the log
/// of the broker, where they cannot be read. `None` for all when the log has failed, whatever is there: a disk that goes
/// away fails to read at first, and what it holds is not lost. So what fails is read once more after a while, which is
/// the same while for all of them.
pub(super) fn read(log: &Log, bodies: &Bodies, places: &[Place]) -> Vec<Option<Bytes>> {
    let mut outcomes: Vec<_> = places.iter().map(|place| read_once(log, place)).collect();
    let has_failed = |outcome: &Result<_, _>| matches!(outcome, Err(ReadError::Io(_)));
    if outcomes.iter().any(has_failed) && log.failure().is_none() {
        thread::sleep(SECOND_READ_AFTER);
        for (outcome, place) in outcomes.iter_mut().zip(places) {
            if has_failed(outcome) {
                *outcome = read_once(log, place);
            }
        }
    }
    if log.failure().is_some() {
        return vec![None; places.len()];
    }
    let all = outcomes.into_iter().zip(places);
    all.map(|(outcome, place)| {
        let found = match outcome {
            Ok(frames) => frames.ok_or_else(|| "it holds something else".to_owned()),
            Err(error) => read_copy(bodies, place, &error),
        };
        let lost = |why| error!(position = place.at.0, why, "a message cannot be read and is lost");
        found.map_err(lost).ok()
    })
    .collect()
}

/// From the log. `None` where the record is no such message.
fn read_once(log: &Log, place: &Place) -> Result<Option<Bytes>, ReadError> {
    let start = Messages::FRAMES_AT + place.offset as usize;
    let end = start + place.len as usize;
    let mut outcome = log.read_record(place.at, end);
    if let Err(ReadError::Pending) = outcome {
        wait_until_written(log);
        outcome = log.read_record(place.at, end);
    }
    let record = outcome?;
    let frames = record.get(start..end).and_then(|read| place.cut(read));
    Ok(frames.map(Bytes::copy_from_slice))
}

/// What was copied into the tables of a record that the log has not got any more, as `error` says.
fn read_copy(bodies: &Bodies, place: &Place, error: &ReadError) -> Result<Bytes, String> {
    match bodies.read(place.at) {
        Ok(Some(body)) => body.cut(place).ok_or_else(|| "its copy holds something else".to_owned()),
        Ok(None) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whatever was appended can be read then, unless the log has failed.
fn wait_until_written(log: &Log) {
    let (tell, told) = flume::bounded(1);
    let then = move || {
        let _ = tell.send(());
    };
    log.append(&[], Level::Os, Some(Box::new(then)));
    let _ = told.recv();
}

/// Where the state is kept if nobody says where: `STATE_DIRECTORY` is a service's, `XDG_STATE_HOME` and `HOME` are a
/// user's.
pub fn default_dir(env: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    set("STATE_DIRECTORY")
        .or_else(|| set("XDG_STATE_HOME").map(|dir| dir.join("mailboxqtt")))
        .or_else(|| set("HOME").map(|dir| dir.join(".local/state/mailboxqtt")))
}
