//! The thread that writes the log: one write and one sync for everything that was appended meanwhile.
//!
//! # Invariants
//!
//! - What a segment holds is synced before the next one gets its header, and the name of a segment before that.
//! - Nothing is tried again. The first operation that fails ends the thread, and no completion runs after it.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::ids::LogPosition;
use crate::record;

use super::log::{Failure, Shared, Work};
use super::pending::{Batch, Chunk, NewSegment};
use super::segment::{self, Segment};

/// State of the thread.
pub(super) struct Committer {
    shared: Arc<Shared>,
    batch: Batch,
    /// The one that is written to; `None` before the first append.
    segment: Option<Arc<Segment>>,
    /// When the first of the bytes was written that are not synced.
    unsynced_since: Option<Instant>,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, batch: Batch::default(), segment: None, unsynced_since: None }
    }

    /// The body of the thread. `on_failure` runs if the log fails.
    pub(super) fn run(mut self, on_failure: impl FnOnce(&Failure)) {
        let ended = panic::catch_unwind(AssertUnwindSafe(|| self.commit_all()));
        self.shared.spares.end();
        if let Err(failure) = ended.unwrap_or(Err(Failure::Panicked)) {
            self.shared.fail(failure, on_failure);
        }
    }

    fn commit_all(&mut self) -> Result<(), Failure> {
        let interval = self.shared.sync_interval;
        loop {
            let sync_due = self.unsynced_since.map(|since| since + interval);
            match self.shared.wait(&mut self.batch, sync_due) {
                Work::Batch => self.commit(sync_due)?,
                Work::Sync => self.sync()?,
                Work::End => return self.sync(),
            }
        }
    }

    fn commit(&mut self, sync_due: Option<Instant>) -> Result<(), Failure> {
        let mut batch = std::mem::take(&mut self.batch);
        let committed = self.commit_batch(&mut batch, sync_due);
        self.shared.pending_bytes.fetch_sub(batch.appended, Ordering::AcqRel);
        if committed.is_ok() {
            batch.clear();
        }
        // After a failure its completions are dropped with it, when the failure is known.
        self.batch = batch;
        committed
    }

    fn commit_batch(&mut self, batch: &mut Batch, due: Option<Instant>) -> Result<(), Failure> {
        for chunk in &batch.chunks {
            if let Some(new) = chunk.begins {
                self.sync()?;
                self.begin_segment(new)?;
            }
            self.write(chunk, &mut batch.bytes)?;
        }
        batch.when_written.drain(..).for_each(|then| then());
        if batch.wants_sync || due.is_some_and(|due| due <= Instant::now()) {
            self.sync()?;
        }
        batch.when_synced.drain(..).for_each(|then| then());
        Ok(())
    }

    fn write(&mut self, chunk: &Chunk, bytes: &mut [u8]) -> Result<(), Failure> {
        let Some(segment) = &self.segment else { return Ok(()) };
        let records = bytes.get_mut(chunk.range.clone()).unwrap_or_default();
        fill_checksums(chunk.at, records)?;
        let offset = segment.offset(chunk.at);
        let padded = bytes.get(chunk.padded(offset, segment.bytes)).unwrap_or_default();
        let written = segment.file.write_at(padded, offset);
        written.map_err(Failure::of("write", segment.name()))?;

        let end = LogPosition(chunk.at.0 + chunk.range.len() as u64);
        segment.extend(end);
        self.shared.written.store(end.0, Ordering::Release);
        self.unsynced_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Failure> {
        let Some(segment) = &self.segment else { return Ok(()) };
        if self.unsynced_since.take().is_some() {
            segment.file.sync_data().map_err(Failure::of("sync", segment.name()))?;
            self.shared.durable.store(segment.end().0, Ordering::Release);
        }
        Ok(())
    }

    fn begin_segment(&mut self, new: NewSegment) -> Result<(), Failure> {
        let NewSegment { header, bytes } = new;
        let name = segment::Kind::Segment.name(header.base.0);
        let spare =
            self.shared.spares.take(bytes).map_err(Failure::of("make room for", name.clone()))?;
        let files = &self.shared.files;
        files.rename(&spare.name, &name).map_err(Failure::of("name", name.clone()))?;
        files.sync_dir().map_err(Failure::of("sync the name of", name.clone()))?;
        let written = spare.file.write_at(&header.encode(), 0);
        written.map_err(Failure::of("write", name))?;

        let segment = Arc::new(Segment::begin(header, spare.file, bytes));
        self.shared.add(segment.clone());
        self.segment = Some(segment);
        Ok(())
    }
}

/// Completes the headers of `records`, the first of which is at `at`.
fn fill_checksums(mut at: LogPosition, mut records: &mut [u8]) -> Result<(), Failure> {
    while !records.is_empty() {
        let len = segment::length(records).filter(|len| *len > 0).ok_or(Failure::NoRecords)?;
        let whole = record::HEADER_BYTES + len;
        let (record, rest) = records.split_at_mut_checked(whole).ok_or(Failure::NoRecords)?;
        if let Some((field, framed)) = record.split_first_chunk_mut::<4>() {
            *field = segment::checksum(at, framed).to_le_bytes();
        }
        at = LogPosition(at.0 + whole as u64);
        records = rest;
    }
    Ok(())
}
