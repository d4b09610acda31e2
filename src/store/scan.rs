//! Reads the records of one segment, all in their order or a single one, in pieces, and checks them.

use std::io;
use std::ops::ControlFlow;

use crate::ids::LogPosition;
use crate::record;

use super::files::StoredFile;
use super::segment::{self, Segment};

/// Read at once, unless a record is longer.
const PIECE_BYTES: usize = 1 << 20;
/// Of a single record, behind what is wanted of it: the sessions that get a message, if they are few.
const REST_BYTES: usize = 64;
/// And if they are many.
const REST_PIECE_BYTES: usize = 64 << 10;

/// Why reading ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// At the position that was asked for.
    There,
    /// The visitor wanted no more than this.
    ByVisitor,
    /// What comes next is no record of this place.
    NoRecord,
    /// The file cannot be read.
    Io(io::Error),
}

/// The records of `segment` that begin from `from` on and before `until`, which are starts of records or the end.
/// Returns where the next one begins, and what was in the way.
pub(super) fn records(
    segment: &Segment,
    from: LogPosition,
    until: LogPosition,
    mut visit: impl FnMut(LogPosition, &[u8]) -> ControlFlow<()>,
) -> (LogPosition, Ended) {
    let limit = segment.end();
    let mut window = Window::new(&*segment.file, segment.offset(from), segment.offset(limit));
    let mut at = from;
    while at < until.min(limit) {
        let record = match window.record(at, limit) {
            Ok(Some(record)) => record,
            Ok(None) => return (at, Ended::NoRecord),
            Err(error) => return (at, Ended::Io(error)),
        };
        let len = record.len();
        let wish = visit(at, record.get(record::HEADER_BYTES..).unwrap_or_default());
        at = LogPosition(at.0 + len as u64);
        window.start += len;
        if wish.is_break() {
            return (at, Ended::ByVisitor);
        }
    }
    (at, Ended::There)
}

/// The first `bytes` of the record at `at`, or all of it; `None` if there is none that checks.
pub(super) fn one(segment: &Segment, at: LogPosition, bytes: usize) -> io::Result<Option<Vec<u8>>> {
    let room = segment.end().0.saturating_sub(at.0);
    let at_first = bytes.max(record::HEADER_BYTES).saturating_add(REST_BYTES);
    let mut first = vec![0; at_first.min(room as usize)];
    let filled = read(&*segment.file, &mut first, segment.offset(at))?;
    first.truncate(filled);
    let Some(len) = segment::length(&first).filter(|len| *len > 0) else { return Ok(None) };
    let whole = (record::HEADER_BYTES + len) as u64;
    if whole > room {
        return Ok(None);
    }
    first.truncate(whole as usize);
    let Some((expected, framed)) = first.split_first_chunk::<4>() else { return Ok(None) };
    let mut checksum = segment::checksum(at, framed);
    let mut piece = Vec::new();
    let mut done = first.len() as u64;
    while done < whole {
        piece.resize((whole - done).min(REST_PIECE_BYTES as u64) as usize, 0);
        if read(&*segment.file, &mut piece, segment.offset(at) + done)? < piece.len() {
            return Ok(None);
        }
        checksum = crc32c::crc32c_append(checksum, &piece);
        done += piece.len() as u64;
    }
    if u32::from_le_bytes(*expected) != checksum {
        return Ok(None);
    }
    first.truncate(bytes);
    Ok(Some(first))
}

/// A piece of the file in memory that moves forward.
struct Window<'f> {
    file: &'f dyn StoredFile,
    /// The next record is at `start`; the bytes up to `filled` are the file's.
    buffer: Vec<u8>,
    start: usize,
    filled: usize,
    /// Where in the file the byte after the filled ones is.
    offset: u64,
    /// Nothing is read beyond.
    offset_end: u64,
}

impl<'f> Window<'f> {
    fn new(file: &'f dyn StoredFile, offset: u64, offset_end: u64) -> Self {
        let bytes = offset_end.saturating_sub(offset).min(PIECE_BYTES as u64);
        let buffer = vec![0; bytes as usize];
        Self { file, buffer, start: 0, filled: 0, offset, offset_end }
    }

    /// The whole record at the start of the window; `None` if there is none that checks.
    fn record(&mut self, at: LogPosition, limit: LogPosition) -> io::Result<Option<&[u8]>> {
        if self.filled - self.start < record::HEADER_BYTES {
            self.fill(record::HEADER_BYTES)?;
        }
        let Some(len) = self.filled().and_then(segment::length) else { return Ok(None) };
        let rest = limit.0.saturating_sub(at.0).saturating_sub(record::HEADER_BYTES as u64);
        if len == 0 || len as u64 > rest {
            return Ok(None);
        }
        let whole = record::HEADER_BYTES + len;
        if self.filled - self.start < whole {
            self.fill(whole)?;
        }
        let record = self.filled().and_then(|filled| filled.get(..whole));
        Ok(record.filter(|record| checks(at, record)))
    }

    fn filled(&self) -> Option<&[u8]> {
        self.buffer.get(self.start..self.filled)
    }

    /// Moves what is left to the front and reads on, for at least `bytes` in all if the file has them.
    fn fill(&mut self, bytes: usize) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.filled, 0);
        self.filled -= self.start;
        self.start = 0;
        if self.buffer.len() < bytes {
            self.buffer.resize(bytes, 0);
        }
        let rest = self.offset_end.saturating_sub(self.offset);
        let end = self.buffer.len().min(self.filled.saturating_add(rest as usize));
        let Some(into) = self.buffer.get_mut(self.filled..end) else { return Ok(()) };
        let missing = bytes.saturating_sub(self.filled).min(into.len());
        let read = match self.file.read_at(into, self.offset) {
            Ok(read) => read,
            // What lies further on may be what cannot be read.
            Err(_) => {
                self.file.read_at(into.get_mut(..missing).unwrap_or_default(), self.offset)?
            }
        };
        self.filled += read;
        self.offset += read as u64;
        Ok(())
    }
}

/// As [`StoredFile::read_at`]; an error is believed when it comes twice.
pub(super) fn read(file: &dyn StoredFile, into: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(into, offset).or_else(|_| file.read_at(into, offset))
}

fn checks(at: LogPosition, record: &[u8]) -> bool {
    record.split_first_chunk::<4>().is_some_and(|(checksum, framed)| {
        u32::from_le_bytes(*checksum) == segment::checksum(at, framed)
    })
}
