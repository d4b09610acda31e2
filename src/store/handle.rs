//! What the rest of the broker sees of the store. Floor 3, called by `router` and `net`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use crate::ids::LogPosition;
use crate::store::log::{Completion, Level, Log};
use crate::store::room::Room;
use crate::store::{Bodies, Place, start};
use crate::topic::TopicFilter;

/// What may wait for the disk before those who append wait, too.
const PENDING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The log, and what "safe" means in it. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    log: Arc<Log>,
    bodies: Bodies,
    room: Arc<Room>,
    level: Level,
    overrides: Arc<[Override]>,
    clock: Clock,
}

/// Messages to the topics of a filter are kept at a level of their own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Override {
    /// Which topics.
    pub filter: TopicFilter,
    /// `None`: they are not kept.
    pub level: Option<Level>,
}

/// One moment on both clocks: what is written down must mean something to the next process.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    instant: Instant,
    since_1970: Duration,
}

impl Store {
    /// Records are safe when they are in `log` at `level`.
    pub(super) fn new(
        log: Arc<Log>,
        bodies: Bodies,
        room: Arc<Room>,
        level: Level,
        clock: Clock,
    ) -> Self {
        Self { log, bodies, room, level, overrides: Arc::default(), clock }
    }

    /// Whether the disk has no room for more messages.
    pub fn is_short(&self) -> bool {
        self.room.is_short()
    }

    /// Bytes that it takes on the disk.
    pub fn used_bytes(&self) -> u64 {
        self.room.used_bytes()
    }

    /// It may take another number of bytes from now on; 0 is no limit.
    pub fn replace_limit(&self, disk_bytes_max: u64) {
        self.room.replace(disk_bytes_max);
    }

    /// With other levels for some topics: the first one whose filter matches counts.
    pub fn with_overrides(self, overrides: Vec<Override>) -> Self {
        Self { overrides: overrides.into(), ..self }
    }

    /// At which level messages to `topic` are kept; `None` for not at all.
    pub fn level_of(&self, topic: &str) -> Option<Level> {
        let found = self.overrides.iter().find(|it| it.filter.matches(topic));
        found.map_or(Some(self.level), |it| it.level)
    }

    /// Appends `records`, which stay together; `then` runs when they are safe, on a thread that must not be
    /// kept. Where nobody waits they are synced with what comes next, or in a second. Returns where they begin.
    pub fn append(&self, records: &[u8], then: Option<Completion>) -> LogPosition {
        self.append_at(self.level, records, then)
    }

    /// As [`Store::append`], with an idea of its own of what is safe.
    pub fn append_at(&self, level: Level, records: &[u8], then: Option<Completion>) -> LogPosition {
        let level = if then.is_some() { level } else { Level::Os };
        self.log.append(records, level, then)
    }

    /// Whether what was appended at `at` is safe.
    pub fn is_safe(&self, at: LogPosition) -> bool {
        at < match self.level {
            Level::Os => self.log.written(),
            Level::Always => self.log.durable(),
        }
    }

    /// Whether more was appended than should wait for the disk.
    pub fn is_behind(&self) -> bool {
        self.log.pending_bytes() > PENDING_BYTES_MAX
    }

    /// Waits until everything that was appended is safe. For ever if the log has failed: then nothing is
    /// acknowledged any more, and the process is about to end.
    pub async fn settle(&self) {
        let (done, is_done) = tokio::sync::oneshot::channel();
        // Nobody may wait any more.
        let tell = move || {
            let _ = done.send(());
        };
        self.append(&[], Some(Box::new(tell)));
        if is_done.await.is_err() {
            std::future::pending().await
        }
    }

    /// Nothing is written or read any more: what was safe is there for the next process.
    pub fn has_failed(&self) -> bool {
        self.log.failure().is_some()
    }

    /// The frames of messages that are safe. Blocks. What cannot be read is reported, and lost, unless
    /// [`Store::has_failed`].
    pub fn read(&self, place: &Place) -> Option<Bytes> {
        self.read_all(std::slice::from_ref(place)).pop().flatten()
    }

    /// As [`Store::read`] for each of `places`. A disk with errors is waited for once, not once for each.
    pub fn read_all(&self, places: &[Place]) -> Vec<Option<Bytes>> {
        start::read(&self.log, &self.bodies, places)
    }

    /// Both clocks.
    pub fn clock(&self) -> Clock {
        self.clock
    }
}

impl Clock {
    /// Now.
    pub fn start() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self { instant: Instant::now(), since_1970: since_1970.unwrap_or_default() }
    }

    /// Milliseconds since 1970, UTC.
    pub fn epoch_ms(self, at: Instant) -> u64 {
        let since_1970 = match at.checked_duration_since(self.instant) {
            Some(later) => self.since_1970 + later,
            None => self.since_1970.saturating_sub(self.instant.duration_since(at)),
        };
        since_1970.as_millis() as u64
    }

    /// The moment of this process that was `epoch_ms`; the earliest there is where it is before that. What lies
    /// in the future, by a clock that was set back, is now.
    pub fn instant(self, epoch_ms: u64) -> Instant {
        let age = self.since_1970.saturating_sub(Duration::from_millis(epoch_ms));
        let mut age = age;
        loop {
            match self.instant.checked_sub(age) {
                Some(instant) => return instant,
                None => age /= 2,
            }
        }
    }
}
