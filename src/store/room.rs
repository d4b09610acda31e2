//! How much of the disk the store may use, and whether there is room for more messages. Floor 3: the checkpointer
//! measures, shards ask.
//!
//! Messages stop before the disk is full, so that what gives space back, and is small, can go on: acknowledgements,
//! deliveries, sessions that end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use tracing::{info, warn};

use super::Density;
use super::log::Log;

/// What the log may grow by while its tables cannot be written, in segments.
const STUCK_SEGMENTS_MAX: u64 = 16;
/// Files of the log that are ready to be used and not counted: one is, and one is being made.
const SPARE_SEGMENTS: u64 = 2;
/// What the disk must have left besides room for segments.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Bounds of the data directory.
#[derive(Clone, Copy, Debug)]
pub struct DiskLimits {
    /// Bytes of all its files; 0 is as much as the disk has.
    pub bytes_max: u64,
    /// Size of a segment of the log.
    pub segment_bytes: u64,
}

/// See the module comment.
pub struct Room {
    log: Arc<Log>,
    segment_bytes: u64,
    /// `u64::MAX` where there is no limit.
    bytes_max: AtomicU64,
    /// A limit that stays, see [`Room::give_up`]; `u64::MAX` where there is none.
    stuck_bytes_max: AtomicU64,
    /// Size of the tables.
    tables_bytes: AtomicU64,
    /// The disk itself has little left.
    is_low: AtomicBool,
    /// [`Room::is_short`] was reported.
    is_reported: AtomicBool,
}

impl Room {
    pub(super) fn new(log: Arc<Log>, limits: DiskLimits) -> Self {
        let room = Self {
            log,
            segment_bytes: limits.segment_bytes,
            bytes_max: AtomicU64::new(u64::MAX),
            stuck_bytes_max: AtomicU64::new(u64::MAX),
            tables_bytes: AtomicU64::new(0),
            is_low: AtomicBool::new(false),
            is_reported: AtomicBool::new(false),
        };
        room.replace(limits.bytes_max);
        room
    }

    /// Another limit from now on; 0 is none.
    pub(super) fn replace(&self, bytes_max: u64) {
        self.bytes_max.store(if bytes_max == 0 { u64::MAX } else { bytes_max }, Relaxed);
    }

    /// Bytes of log and tables.
    pub fn used_bytes(&self) -> u64 {
        self.log.disk_bytes() + self.tables_bytes.load(Relaxed)
    }

    /// Whether there is no room for more messages.
    pub fn is_short(&self) -> bool {
        let max = self.bytes_max();
        self.is_low.load(Relaxed) || (max < u64::MAX && self.used_bytes() > max - self.reserve(max))
    }

    /// Whether it is time to look for space that can be given back.
    pub(super) fn is_tight(&self) -> bool {
        let max = self.bytes_max();
        self.is_low.load(Relaxed)
            || (max < u64::MAX && self.used_bytes() > max / 4 * 3 - self.reserve(max / 4 * 3))
    }

    /// Which segments are emptied into the tables, which grow by what they still hold: where there is little room, or a
    /// limit, those only that give back more.
    pub(super) fn density(&self) -> Density {
        let is_limited = self.bytes_max() < u64::MAX;
        if is_limited || self.is_low.load(Relaxed) { Density::Sparse } else { Density::Any }
    }

    /// Whether the tables take a large part of what there is.
    pub(super) fn has_large_tables(&self) -> bool {
        self.tables_bytes.load(Relaxed) > self.used_bytes() / 4
    }

    /// Nothing will be given back by this process: the log may not grow much more.
    pub(super) fn give_up(&self) {
        let more = (STUCK_SEGMENTS_MAX + SPARE_SEGMENTS).saturating_mul(self.segment_bytes);
        // What `reserve` takes away again.
        let max = self.used_bytes().saturating_add(more).saturating_mul(8) / 7;
        self.stuck_bytes_max.store(max, Relaxed);
    }

    /// Looks at the disk that `dir` is on, and says so when there is room no more, or again.
    pub(super) fn measure(&self, dir: &Path, tables: &Path) {
        if let Ok(metadata) = tables.metadata() {
            self.tables_bytes.store(metadata.len(), Relaxed);
        }
        if let Ok(disk) = rustix::fs::statvfs(dir) {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let wanted = FREE_BYTES_MIN + 2 * SPARE_SEGMENTS * self.segment_bytes;
            // Below that it is low; it is enough again with one segment more.
            let wanted = match self.is_low.load(Relaxed) {
                true => wanted + self.segment_bytes,
                false => wanted,
            };
            self.is_low.store(free < wanted, Relaxed);
        }
        let is_short = self.is_short();
        if self.is_reported.swap(is_short, Relaxed) != is_short {
            let used_bytes = self.used_bytes();
            match is_short {
                true => warn!(
                    used_bytes,
                    "the disk is nearly full, or what the data may take of it: messages that must be kept are refused \
                     until there is room; see disk_bytes_max"
                ),
                false => info!(used_bytes, "there is room for messages on the disk again"),
            }
        }
    }

    fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Relaxed).min(self.stuck_bytes_max.load(Relaxed))
    }

    /// What is kept free of `max` bytes.
    fn reserve(&self, max: u64) -> u64 {
        (max / 8).saturating_add(SPARE_SEGMENTS * self.segment_bytes).min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LogPosition;
    use crate::store::files::Directory;
    use crate::store::log::Settings;

    const SEGMENT_BYTES: u64 = 65_536;

    fn room(dir: &Path) -> Room {
        let files = Arc::new(Directory::open(dir).unwrap());
        let settings = Settings { segment_bytes: SEGMENT_BYTES, ..Settings::default() };
        let (log, _) = Log::open(files, settings, LogPosition(0), |_| ()).unwrap();
        Room::new(Arc::new(log), DiskLimits { bytes_max: 0, segment_bytes: SEGMENT_BYTES })
    }

    /// Copies of what is all needed give no space back, and the tables could not be written any more.
    #[test]
    fn full_segments_are_not_copied_where_the_disk_is_low_or_limited() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        assert_eq!(room.density(), Density::Any);
        room.is_low.store(true, Relaxed);
        assert_eq!((room.density(), room.is_short()), (Density::Sparse, true));
        room.is_low.store(false, Relaxed);
        room.replace(1 << 30);
        assert_eq!((room.density(), room.is_short()), (Density::Sparse, false));
    }

    #[test]
    fn log_whose_tables_cannot_be_written_stays_bounded_when_the_limit_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        room.give_up();
        for bytes_max in [0, 1 << 40] {
            room.replace(bytes_max);
            assert!(!room.is_short());
            room.tables_bytes.store(17 * SEGMENT_BYTES, Relaxed);
            assert!(room.is_short(), "{bytes_max}");
            room.tables_bytes.store(0, Relaxed);
        }
    }
}
