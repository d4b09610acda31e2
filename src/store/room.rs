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
        let max = self.bytes_max.load(Relaxed);
        self.is_low.load(Relaxed) || (max < u64::MAX && self.used_bytes() > max - self.reserve(max))
    }

    /// Whether it is time to look for space that can be given back.
    pub(super) fn is_tight(&self) -> bool {
        let max = self.bytes_max.load(Relaxed);
        self.is_low.load(Relaxed)
            || (max < u64::MAX && self.used_bytes() > max / 4 * 3 - self.reserve(max / 4 * 3))
    }

    /// Nothing will be given back by this process: the log may not grow much more.
    pub(super) fn give_up(&self) {
        let more = (STUCK_SEGMENTS_MAX + SPARE_SEGMENTS).saturating_mul(self.segment_bytes);
        // What `reserve` takes away again.
        let max = self.used_bytes().saturating_add(more).saturating_mul(8) / 7;
        self.bytes_max.fetch_min(max, Relaxed);
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

    /// What is kept free of `max` bytes.
    fn reserve(&self, max: u64) -> u64 {
        (max / 8).saturating_add(SPARE_SEGMENTS * self.segment_bytes).min(max)
    }
}
