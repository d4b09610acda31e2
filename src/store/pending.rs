//! What was appended and is not yet taken by the thread that writes it, and where it will lie in the log.
//!
//! # Invariants
//!
//! - An append lies in one segment. The segments are chosen here, when the position is given out; the files come
//!   later.
//! - Positions only grow. The rest of a segment that an append did not fit into is never used.

use std::ops::Range;

use crate::ids::LogPosition;

use super::log::{Completion, Level};
use super::segment::{self, HEADER_BYTES, Header};

/// So many zeros follow the records of a chunk, for [`Chunk::padded`].
pub(super) const PADDING_BYTES: usize = PAGE_BYTES as usize + END_BYTES as usize;

/// The system reads a page from the disk before it overwrites a part of it, so whole ones are written.
const PAGE_BYTES: u64 = 4096;
/// At least so many zeros follow the last record, where the file has them: the start of a record that is none.
const END_BYTES: u64 = 8;

/// Bytes that lie together in one segment.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Of the first byte.
    pub(super) at: LogPosition,
    /// The segment that begins with this chunk.
    pub(super) begins: Option<NewSegment>,
    /// In [`Batch::bytes`].
    pub(super) range: Range<usize>,
}

impl Chunk {
    /// The range with as many of the zeros after it as are to be written, if the first byte goes to `offset` of a
    /// file of `file_bytes`.
    pub(super) fn padded(&self, offset: u64, file_bytes: u64) -> Range<usize> {
        let end = offset + self.range.len() as u64;
        let padded = (end + END_BYTES).next_multiple_of(PAGE_BYTES).min(file_bytes);
        self.range.start..self.range.end + padded.saturating_sub(end) as usize
    }
}

/// A segment that has a place and no file yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewSegment {
    pub(super) header: Header,
    /// Size of the file.
    pub(super) bytes: u64,
}

/// What is written at once.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) chunks: Vec<Chunk>,
    /// How many of the bytes are records.
    pub(super) appended: usize,
    /// In the order of the appends, as those below.
    pub(super) when_written: Vec<Completion>,
    pub(super) when_synced: Vec<Completion>,
    /// Somebody waits for a sync, with or without a completion.
    pub(super) wants_sync: bool,
}

impl Batch {
    /// Capacity that an empty one keeps: enough for a steady load, little enough to forget a burst.
    const BYTES_KEPT: usize = 4 << 20;

    pub(super) fn is_empty(&self) -> bool {
        let has_completions = !self.when_written.is_empty() || !self.when_synced.is_empty();
        self.chunks.is_empty() && !has_completions
    }

    /// Ready for the next appends.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(Self::BYTES_KEPT);
        self.chunks.clear();
        self.appended = 0;
        self.when_written.clear();
        self.when_synced.clear();
        self.wants_sync = false;
    }
}

/// The batch that grows, and where the log goes on.
pub(super) struct Pending {
    pub(super) batch: Batch,
    /// Where the next append begins, if there is room.
    next: LogPosition,
    /// No room in this segment from here on.
    limit: LogPosition,
    /// Base of this segment; before the first append, of the last one that was found.
    base: LogPosition,
    /// Base of the segment to come.
    base_next: LogPosition,
    /// Size of a segment's file.
    segment_bytes: u64,
    /// Sizes of the files of all segments that were begun here, since somebody has asked.
    begun_bytes: u64,
}

impl Pending {
    /// Of a log that ended at `end`, in the segment at `previous` if it has any. The first append begins a segment
    /// at `base`, and no position between is given out.
    pub(super) fn new(
        end: LogPosition,
        previous: Option<LogPosition>,
        base: LogPosition,
        segment_bytes: u64,
    ) -> Self {
        Self {
            batch: Batch::default(),
            next: end,
            limit: end,
            base: previous.unwrap_or(base),
            base_next: base,
            segment_bytes,
            begun_bytes: 0,
        }
    }

    /// Sizes of the files of the segments that were begun since the last time.
    pub(super) fn take_begun_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.begun_bytes)
    }

    /// Where the next append begins, unless it needs a new segment.
    pub(super) fn next(&self) -> LogPosition {
        self.next
    }

    /// Copies records into the batch; see `Log::append`.
    pub(super) fn append(
        &mut self,
        records: &[u8],
        level: Level,
        then: Option<Completion>,
    ) -> LogPosition {
        let mut at = self.next;
        if !records.is_empty() {
            at = self.place(records.len() as u64);
            self.batch.bytes.extend_from_slice(records);
            self.batch.appended += records.len();
            if let Some(chunk) = self.batch.chunks.last_mut() {
                chunk.range.end = self.batch.bytes.len();
            }
        }
        self.batch.wants_sync |= level == Level::Always;
        match level {
            Level::Os => self.batch.when_written.extend(then),
            Level::Always => self.batch.when_synced.extend(then),
        }
        at
    }

    /// Exchanges the batch for an empty one. Its last chunk gets its padding.
    pub(super) fn take(&mut self, empty: &mut Batch) {
        std::mem::swap(&mut self.batch, empty);
        pad(&mut empty.bytes);
    }

    /// Makes the last chunk one that `bytes` more can be added to, and returns where those begin.
    fn place(&mut self, bytes: u64) -> LogPosition {
        let begins = self.begin_segment(bytes);
        if begins.is_some() && !self.batch.chunks.is_empty() {
            pad(&mut self.batch.bytes);
        }
        let at = self.next;
        if begins.is_some() || self.batch.chunks.is_empty() {
            let start = self.batch.bytes.len();
            self.batch.chunks.push(Chunk { at, begins, range: start..start });
        }
        self.next = LogPosition(at.0 + bytes);
        at
    }

    /// A new segment, if there is no room for `bytes` in this one.
    fn begin_segment(&mut self, bytes: u64) -> Option<NewSegment> {
        if self.next.0 + bytes <= self.limit.0 {
            return None;
        }
        let base = self.base_next;
        let header = Header { base, follows: self.next, previous: self.base };
        let file_bytes = self.segment_bytes.max(HEADER_BYTES + bytes);
        (self.next, self.base) = (base, base);
        self.limit = segment::limit(base, file_bytes);
        self.base_next = self.limit;
        self.begun_bytes += file_bytes;
        Some(NewSegment { header, bytes: file_bytes })
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len() + PADDING_BYTES, 0);
}
