//! The message log: records in the order in which they were appended, on disk before anybody is told so.
//!
//! # Who calls whom
//!
//! Shards and connections call [`Log::append`], which copies into a batch in memory and returns. One thread
//! (`committer`) takes the batch, writes it, syncs it and runs the completions; meanwhile the next one grows. There is
//! no timer: a batch is what came during the last sync. Another thread (`spares`) makes files beforehand.
//! Whoever keeps tables of what the records say reads them back by [`Log::scan`] and gives segments back by
//! [`Log::retire`]; readers of single messages call [`Log::read_record`].
//!
//! # Files
//!
//! `<base, 16 hex digits>.seg` holds the records from the position `base` on (`segment`); `.free` and `.new` wait to
//! become segments; `.damaged` is a copy that an operator may look at, and is never touched again.
//!
//! # Invariants
//!
//! - A position names one record for ever. What was not whole after a crash leaves a hole in the positions.
//! - After a failed write or sync nothing is written any more and no completion runs: what the disk holds is unknown.
//! - Memory: two batches of what is appended during a sync, see [`Log::pending_bytes`]; 1 MiB per scan.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crate::ids::LogPosition;

use super::committer::Committer;
use super::damage;
use super::files::Files;
use super::opening;
use super::pending::{Batch, Pending};
use super::scan;
use super::segment::Segment;
use super::spares::Spares;

pub use super::damage::{Cause, Damage};
pub use super::opening::{OpenError, Recovered};

/// What has to be true before a completion runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// The operating system has the records: they survive the process. A sync follows within
    /// [`Settings::sync_interval`].
    Os,
    /// They are synced: they survive the machine.
    Always,
}

/// Runs on the thread of the log and must not block. Dropped without running when the log has failed or is closed.
pub type Completion = Box<dyn FnOnce() + Send>;

/// How the log uses the disk.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Size of a segment's file, 1 KiB at least. 64 MiB. A longer append gets a longer segment.
    pub segment_bytes: u64,
    /// So many retired segments wait to be used again; more are removed. 4.
    pub spare_segments_max: usize,
    /// A thread makes the next segment before it is needed. Without it appends wait for that.
    pub prepares_ahead: bool,
    /// [`Level::Os`] is synced at latest so long after the write. One second.
    pub sync_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            spare_segments_max: 4,
            prepares_ahead: true,
            sync_interval: Duration::from_secs(1),
        }
    }
}

impl Settings {
    pub(super) const SEGMENT_BYTES_MIN: u64 = 1024;
}

/// Why the log can be used no more.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The disk is full, or broken.
    #[error("cannot {operation} {file}: {source}")]
    Io {
        /// A verb.
        operation: &'static str,
        /// Its name in the directory of the log.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody appended bytes that are not whole records.
    #[error("appended bytes are not whole records")]
    NoRecords,
    /// The thread of the log panicked, perhaps in a completion.
    #[error("the thread of the log panicked")]
    Panicked,
}

impl Failure {
    pub(super) fn of(operation: &'static str, file: String) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, file, source }
    }
}

/// Why there are no bytes.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// They have a position and are not written yet: wait with an empty append of [`Level::Os`].
    #[error("not written yet")]
    Pending,
    /// Their segment was retired.
    #[error("the segment is gone")]
    Gone,
    /// There is no record at this position that checks.
    #[error("the record there does not check")]
    Damaged,
    /// The disk is broken.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A part of the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SegmentInfo {
    /// Where it begins. All positions from here up to the next base are its own.
    pub base: LogPosition,
    /// No record in it ends behind.
    pub end: LogPosition,
    /// Size of its file.
    pub bytes: u64,
}

/// What [`Log::scan`] came to.
#[derive(Debug, PartialEq)]
pub struct ScanEnd {
    /// Where another scan goes on.
    pub at: LogPosition,
    /// What was in the way.
    pub damage: Vec<Damage>,
}

/// See the module comment.
pub struct Log {
    shared: Arc<Shared>,
    committer: ThreadId,
    /// Empty when closed.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Log {
    /// Finds the end of the log, syncs what was read, and starts the threads. Only headers and the last segment are
    /// read: damage in the middle is found by [`Log::scan`].
    ///
    /// No new position is below `not_before`: whoever knows of positions elsewhere says so, in case that the files
    /// were removed. `on_failure` runs once on the thread of the log.
    pub fn open(
        files: Arc<dyn Files>,
        settings: Settings,
        not_before: LogPosition,
        on_failure: impl FnOnce(&Failure) + Send + 'static,
    ) -> Result<(Self, Recovered), OpenError> {
        let bytes = settings.segment_bytes.max(Settings::SEGMENT_BYTES_MIN);
        let settings = Settings { segment_bytes: bytes, ..settings };
        let opening = opening::open(&*files, &settings, not_before)?;
        let end = opening.recovered.end;
        let previous = opening.segments.last_key_value().map(|(base, _)| LogPosition(*base));
        let pending = Pending::new(end, previous, opening.base_next, settings.segment_bytes);
        let disk_bytes = opening.segments.values().map(|segment| segment.bytes).sum();
        let shared = Arc::new(Shared {
            spares: Spares::new(
                files.clone(),
                settings.segment_bytes,
                settings.spare_segments_max,
                opening.spares,
                opening.new_next,
            ),
            files,
            sync_interval: settings.sync_interval,
            inbox: Mutex::new(Inbox { pending, state: State::Open, is_waiting: false }),
            arrived: Condvar::new(),
            segments: RwLock::new(opening.segments),
            written: AtomicU64::new(end.0),
            durable: AtomicU64::new(end.0),
            pending_bytes: AtomicUsize::new(0),
            disk_bytes: AtomicU64::new(disk_bytes),
            failure: OnceLock::new(),
        });
        let committer = Committer::new(shared.clone());
        let committer = spawn("log", move || committer.run(on_failure))?;
        let mut threads = vec![committer];
        if settings.prepares_ahead {
            shared.spares.announce();
            let maker = shared.clone();
            threads.push(spawn("log-spare", move || maker.spares.make())?);
        }
        let committer = threads.first().map_or_else(|| thread::current().id(), |t| t.thread().id());
        let log = Self { shared, committer, threads: Mutex::new(threads) };
        Ok((log, opening.recovered))
    }

    /// Appends whole records, whose checksums are zero, and returns the position of their first byte. They lie
    /// together: what is `k` bytes into `records` has the position `k` further on. Consecutive appends need not.
    ///
    /// Completions of one level run in the order of the appends. With no `records`, `then` runs when everything that
    /// was appended before is written or synced. After a failure, or [`Log::close`], nothing is kept.
    pub fn append(&self, records: &[u8], level: Level, then: Option<Completion>) -> LogPosition {
        let mut inbox = self.shared.inbox();
        if inbox.state != State::Open {
            let at = inbox.pending.next();
            // A completion may hold anything, so it is not dropped under the lock.
            drop(inbox);
            drop(then);
            return at;
        }
        self.shared.pending_bytes.fetch_add(records.len(), Ordering::AcqRel);
        let at = inbox.pending.append(records, level, then);
        let begun_bytes = inbox.pending.take_begun_bytes();
        let must_wake = std::mem::take(&mut inbox.is_waiting);
        drop(inbox);
        if begun_bytes > 0 {
            self.shared.disk_bytes.fetch_add(begun_bytes, Ordering::AcqRel);
        }
        if must_wake {
            self.shared.arrived.notify_one();
        }
        at
    }

    /// Everything before it is synced.
    pub fn durable(&self) -> LogPosition {
        LogPosition(self.shared.durable.load(Ordering::Acquire))
    }

    /// Everything before it is written and can be read.
    pub fn written(&self) -> LogPosition {
        LogPosition(self.shared.written.load(Ordering::Acquire))
    }

    /// Appended, and the batch is not done.
    pub fn pending_bytes(&self) -> usize {
        self.shared.pending_bytes.load(Ordering::Acquire)
    }

    /// Sizes of the files of all segments, those included that were begun and are not made yet; without files that
    /// wait to be used.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes.load(Ordering::Acquire)
    }

    /// Why the log has stopped, if it has.
    pub fn failure(&self) -> Option<&Failure> {
        self.shared.failure.get()
    }

    /// Every record from `from` on that begins before `until`: its position, and its kind and body. `from` is where a
    /// record begins, or [`ScanEnd::at`] of another scan; `until` is [`Log::durable`] or before.
    /// [`ControlFlow::Break`] ends the scan after the record that was given.
    ///
    /// Nothing makes it fail: what does not check, or cannot be read, is reported, its file is copied, and the next
    /// segment is read. No segment may be retired meanwhile from which it reads.
    pub fn scan(
        &self,
        from: LogPosition,
        until: LogPosition,
        mut visit: impl FnMut(LogPosition, &[u8]) -> ControlFlow<()>,
    ) -> ScanEnd {
        let mut end = ScanEnd { at: from, damage: Vec::new() };
        for segment in self.shared.segments_from(from) {
            let base = segment.header.base;
            if until <= base {
                break;
            }
            if end.at < segment.header.follows && end.at < base {
                end.damage.push(Damage {
                    missing: end.at..segment.header.follows,
                    file: segment.name(),
                    cause: Cause::Missing,
                    set_aside: None,
                });
            }
            let from = end.at.max(base);
            if segment.end() <= from {
                continue;
            }
            let (at, ended) = scan::records(&segment, from, until, &mut visit);
            end.at = at;
            let cause = match ended {
                scan::Ended::There => continue,
                scan::Ended::ByVisitor => break,
                scan::Ended::NoRecord if !segment.is_end_exact => continue,
                scan::Ended::NoRecord => Cause::Content,
                scan::Ended::Io(error) => Cause::Io(error.to_string()),
            };
            end.at = segment.end().min(until);
            end.damage.push(Damage {
                missing: at..end.at,
                file: segment.name(),
                cause,
                set_aside: damage::copy_aside(&*self.shared.files, &segment),
            });
        }
        end
    }

    /// The first `bytes` of the record at `at`, header included; fewer where it is shorter. All of it is checked: what is
    /// long is read in pieces, and only what was asked for is kept. No lock is held meanwhile.
    pub fn read_record(&self, at: LogPosition, bytes: usize) -> Result<Vec<u8>, ReadError> {
        if self.written() <= at {
            return Err(ReadError::Pending);
        }
        let segment = self.shared.segment_of(at).filter(|segment| at < segment.end());
        let segment = segment.ok_or(ReadError::Gone)?;
        let read = scan::one(&segment, at, bytes);
        // Its file may be another segment by now.
        if segment.is_retired() {
            return Err(ReadError::Gone);
        }
        read?.ok_or(ReadError::Damaged)
    }

    /// All segments, the oldest first. The last one is written to.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let segments = self.shared.segments.read().unwrap_or_else(PoisonError::into_inner);
        let info = |segment: &Arc<Segment>| SegmentInfo {
            base: segment.header.base,
            end: segment.end(),
            bytes: segment.bytes,
        };
        segments.values().map(info).collect()
    }

    /// Nobody needs the segment at `base` any more: its file is used for another one, or removed. The last segment is
    /// kept, and nothing happens if there is none at `base`; both return `false`.
    ///
    /// After a power cut or an error it may be among the segments when the log is opened again.
    pub fn retire(&self, base: LogPosition) -> io::Result<bool> {
        let segment = {
            let segments = &self.shared.segments;
            let mut segments = segments.write().unwrap_or_else(PoisonError::into_inner);
            if segments.last_key_value().is_none_or(|(last, _)| *last == base.0) {
                return Ok(false);
            }
            let Some(segment) = segments.remove(&base.0) else { return Ok(false) };
            segment.retire();
            segment
        };
        self.shared.disk_bytes.fetch_sub(segment.bytes, Ordering::AcqRel);
        self.shared.spares.give(base.0, segment.file.clone(), segment.bytes)?;
        Ok(true)
    }

    /// Writes and syncs what was appended, runs the completions, and ends the threads. Dropping the log does the same.
    /// On the thread of the log itself it does not wait for the end.
    pub fn close(&self) {
        let mut inbox = self.shared.inbox();
        if inbox.state == State::Open {
            inbox.state = State::Closing;
        }
        drop(inbox);
        self.shared.arrived.notify_one();
        if thread::current().id() == self.committer {
            return;
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A panic on it has become the failure of the log.
            let _ = thread.join();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map_err(OpenError::Thread)
}

/// What the threads share.
pub(super) struct Shared {
    pub(super) files: Arc<dyn Files>,
    pub(super) spares: Spares,
    pub(super) sync_interval: Duration,
    inbox: Mutex<Inbox>,
    /// Something is in the inbox, or its state has changed.
    arrived: Condvar,
    /// By their bases.
    segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    /// Behind [`Log::written`], [`Log::durable`] and [`Log::pending_bytes`].
    pub(super) written: AtomicU64,
    pub(super) durable: AtomicU64,
    pub(super) pending_bytes: AtomicUsize,
    /// Behind [`Log::disk_bytes`].
    disk_bytes: AtomicU64,
    failure: OnceLock<Failure>,
}

struct Inbox {
    pending: Pending,
    state: State,
    /// The thread has to be woken.
    is_waiting: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    /// What is in the inbox is still to be written.
    Closing,
    Failed,
}

/// What the thread has to do.
pub(super) enum Work {
    /// It has been given a batch.
    Batch,
    /// Nothing came until the sync was due.
    Sync,
    /// The log was closed, and the inbox is empty.
    End,
}

impl Shared {
    /// Exchanges what has been appended for `empty`, or waits for that.
    pub(super) fn wait(&self, empty: &mut Batch, sync_due: Option<Instant>) -> Work {
        let mut inbox = self.inbox();
        loop {
            if !inbox.pending.batch.is_empty() {
                inbox.pending.take(empty);
                return Work::Batch;
            }
            if inbox.state != State::Open {
                return Work::End;
            }
            let left = sync_due.map(|due| due.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Work::Sync;
            }
            inbox.is_waiting = true;
            inbox = match left {
                None => self.arrived.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.arrived.wait_timeout(inbox, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Nothing is appended, written or completed from now on.
    pub(super) fn fail(&self, failure: Failure, on_failure: impl FnOnce(&Failure)) {
        let failure = self.failure.get_or_init(|| failure);
        let mut inbox = self.inbox();
        inbox.state = State::Failed;
        let never = std::mem::take(&mut inbox.pending.batch);
        drop(inbox);
        self.pending_bytes.fetch_sub(never.appended, Ordering::AcqRel);
        on_failure(failure);
    }

    pub(super) fn add(&self, segment: Arc<Segment>) {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.insert(segment.header.base.0, segment);
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn segment_of(&self, position: LogPosition) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.range(..=position.0).next_back().map(|(_, segment)| segment.clone())
    }

    /// The one that `position` is in, and all that follow.
    fn segments_from(&self, position: LogPosition) -> Vec<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let first = segments.range(..=position.0).next_back().map_or(position.0, |(base, _)| *base);
        segments.range(first..).map(|(_, segment)| segment.clone()).collect()
    }
}
