//! One file of the log: its name, its header, and the checksum of a record in it.
//!
//! ```text
//! 0  magic "MBQTTLOG"       16  base       position of the first record
//! 8  format version u32     24  follows    where the log ended before this segment
//! 12 checksum u32           32  previous   base of the segment before; its own where there was none
//!                           40  zeros      up to 64, where the records begin; all integers little-endian
//! ```
//!
//! # Invariants
//!
//! - The record at offset `o` has the position `base + o - 64`, and its checksum covers the position: what a file
//!   held before it became this segment never checks.
//! - Everything in a segment is synced before the first byte of the next one is written.
//! - A retired segment is marked as such before its file is touched, so whoever reads without a lock looks at the
//!   mark afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::ids::LogPosition;

use super::files::StoredFile;

/// Bytes before the first record.
pub(super) const HEADER_BYTES: u64 = 64;

const MAGIC: &[u8; 8] = b"MBQTTLOG";
const VERSION: u32 = 1;

/// Where a segment stands in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) base: LogPosition,
    pub(super) follows: LogPosition,
    pub(super) previous: LogPosition,
}

/// What the first bytes of a file are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Head {
    /// A header; whether it is that of the name is another question.
    Header(Header),
    /// Of a later version of the broker.
    Newer(u32),
    /// Never written to.
    Blank,
    /// Something else.
    Unreadable,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        put(&mut bytes, 0, MAGIC);
        put(&mut bytes, 8, &VERSION.to_le_bytes());
        put(&mut bytes, 16, &self.base.0.to_le_bytes());
        put(&mut bytes, 24, &self.follows.0.to_le_bytes());
        put(&mut bytes, 32, &self.previous.0.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes);
        put(&mut bytes, 12, &checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(mut bytes: [u8; HEADER_BYTES as usize]) -> Head {
        if bytes == [0; HEADER_BYTES as usize] {
            return Head::Blank;
        }
        let checksum = u32_at(&bytes, 12);
        put(&mut bytes, 12, &[0; 4]);
        if !bytes.starts_with(MAGIC) || checksum != crc32c::crc32c(&bytes) {
            return Head::Unreadable;
        }
        match u32_at(&bytes, 8) {
            VERSION => Head::Header(Self {
                base: LogPosition(u64_at(&bytes, 16)),
                follows: LogPosition(u64_at(&bytes, 24)),
                previous: LogPosition(u64_at(&bytes, 32)),
            }),
            version => Head::Newer(version),
        }
    }
}

/// Of a record at `position`; `framed` is its length field, kind and body.
pub(super) fn checksum(position: LogPosition, framed: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&position.0.to_le_bytes()), framed)
}

/// The length field of a record, if the whole header is there.
pub(super) fn length(record: &[u8]) -> Option<usize> {
    let field = record.get(4..8)?;
    Some(u32::from_le_bytes(field.try_into().ok()?) as usize)
}

/// Nothing beyond the end.
fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    if let Some(to) = bytes.get_mut(offset..offset + field.len()) {
        to.copy_from_slice(field);
    }
}

/// Zero beyond the end.
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let field = bytes.get(offset..offset + 4).and_then(|field| field.try_into().ok());
    u32::from_le_bytes(field.unwrap_or_default())
}

/// Zero beyond the end.
fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let field = bytes.get(offset..offset + 8).and_then(|field| field.try_into().ok());
    u64::from_le_bytes(field.unwrap_or_default())
}

/// What the name of a file says. The number of [`Kind::New`] means nothing, that of the others is a base.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    /// A part of the log.
    Segment,
    /// Was a segment and may become one again; the number is the base that it had.
    Free,
    /// All zeros, may become a segment.
    New,
    /// Copy, or all there is, of a segment that cannot be read whole. Nothing is done with it any more.
    Damaged,
    /// A copy that is not complete.
    Copying,
}

const KINDS: [Kind; 5] = [Kind::Segment, Kind::Free, Kind::New, Kind::Damaged, Kind::Copying];

impl Kind {
    /// Its number is a position, and it may hold bytes that were written there.
    pub(super) fn has_base(self) -> bool {
        matches!(self, Self::Segment | Self::Free | Self::Damaged)
    }

    pub(super) fn name(self, number: u64) -> String {
        let extension = match self {
            Self::Segment => "seg",
            Self::Free => "free",
            Self::New => "new",
            Self::Damaged => "damaged",
            Self::Copying => "copying",
        };
        format!("{number:016x}.{extension}")
    }

    /// `None` for a file that is none of the log's.
    pub(super) fn parse(name: &str) -> Option<(Self, u64)> {
        let (number, _) = name.split_once('.')?;
        // No log comes so far, and there is room to go on behind it.
        let number = u64::from_str_radix(number, 16).ok().filter(|at| *at <= u64::MAX / 2)?;
        KINDS.into_iter().find(|kind| kind.name(number) == name).map(|kind| (kind, number))
    }
}

/// A file that is part of the log.
pub(super) struct Segment {
    pub(super) header: Header,
    pub(super) file: Arc<dyn StoredFile>,
    /// Size of the file.
    pub(super) bytes: u64,
    /// Records end here, or before if `is_end_exact` is not set.
    end: AtomicU64,
    /// The segment that came next says so, or this process has written it.
    pub(super) is_end_exact: bool,
    is_retired: AtomicBool,
}

impl Segment {
    /// One that is about to be written.
    pub(super) fn begin(header: Header, file: Arc<dyn StoredFile>, bytes: u64) -> Self {
        Self::found(header, file, bytes, Some(header.base))
    }

    /// One that was there, whose records end at `end` if that is known.
    pub(super) fn found(
        header: Header,
        file: Arc<dyn StoredFile>,
        bytes: u64,
        end: Option<LogPosition>,
    ) -> Self {
        let limit = limit(header.base, bytes);
        Self {
            header,
            file,
            bytes,
            end: AtomicU64::new(end.unwrap_or(limit).0),
            is_end_exact: end.is_some(),
            is_retired: AtomicBool::new(false),
        }
    }

    pub(super) fn end(&self) -> LogPosition {
        LogPosition(self.end.load(Ordering::Acquire))
    }

    /// Records up to there have been written.
    pub(super) fn extend(&self, end: LogPosition) {
        self.end.store(end.0, Ordering::Release);
    }

    /// No record reaches beyond.
    pub(super) fn limit(&self) -> LogPosition {
        limit(self.header.base, self.bytes)
    }

    /// Where `position` lies in the file.
    pub(super) fn offset(&self, position: LogPosition) -> u64 {
        position.0.saturating_sub(self.header.base.0).saturating_add(HEADER_BYTES)
    }

    pub(super) fn name(&self) -> String {
        Kind::Segment.name(self.header.base.0)
    }

    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::SeqCst)
    }
}

/// No record of a file of `bytes` reaches beyond.
pub(super) fn limit(base: LogPosition, bytes: u64) -> LogPosition {
    LogPosition(base.0.saturating_add(bytes.saturating_sub(HEADER_BYTES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header =
        Header { base: LogPosition(1 << 40), follows: LogPosition(77), previous: LogPosition(1) };

    #[test]
    fn header_is_read_as_it_was_written_and_any_changed_bit_is_seen() {
        let bytes = HEADER.encode();
        assert_eq!(Header::decode(bytes), Head::Header(HEADER));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(changed), Head::Unreadable, "bit {bit}");
        }
        assert_eq!(Header::decode([0; 64]), Head::Blank);
    }

    #[test]
    fn header_of_a_later_version_is_known_as_such() {
        let mut bytes = HEADER.encode();
        bytes[8] = 2;
        bytes[12..16].fill(0);
        let checksum = crc32c::crc32c(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::decode(bytes), Head::Newer(2));
    }

    #[test]
    fn bytes_of_the_first_format_stay_as_they_are() {
        let mut expected = *b"MBQTTLOG\x01\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\
            \x4d\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let checksum = crc32c::crc32c(&expected);
        expected[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(HEADER.encode(), expected);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283, "it is Castagnoli's polynomial");
    }

    #[test]
    fn name_is_read_as_it_was_written_and_other_names_are_left_alone() {
        for kind in KINDS {
            assert_eq!(Kind::parse(&kind.name(0xab)), Some((kind, 0xab)));
        }
        for name in [
            "lock",
            "ab.seg",
            "00000000000000AB.seg",
            "00000000000000ab.segment",
            "ffffffffffffffff.seg",
        ] {
            assert_eq!(Kind::parse(name), None, "{name}");
        }
    }

    #[test]
    fn checksum_depends_on_the_position() {
        let framed = [1, 0, 0, 0, 9];
        assert_ne!(checksum(LogPosition(1), &framed), checksum(LogPosition(2), &framed));
    }
}
