//! Where messages are: in the log, or copied out of it. Floor 3, handed to whoever delivers them.

use crate::codec::next_frame;
use crate::ids::LogPosition;
use crate::record::Span;

/// Consecutive messages of one record, and what must be read to have their frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// Where their record starts.
    pub at: LogPosition,
    /// Number of the first among the frames of the record.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
    /// Bytes from the beginning of the record's frames to those that must be read.
    pub offset: u32,
    /// Bytes that must be read.
    pub len: u32,
    /// Frames at the beginning of what was read that are not meant.
    pub skip: u32,
}

impl Place {
    /// What the messages are called in records.
    pub fn span(&self) -> Span {
        Span { at: self.at, first: self.first, count: self.count }
    }

    /// Exactly the frames that are meant, out of what was read of the log; `None` when they are not there.
    pub fn cut<'a>(&self, read: &'a [u8]) -> Option<&'a [u8]> {
        frames(read, self.skip, self.count)
    }
}

/// `count` frames behind the first `skip`.
pub(super) fn frames(bytes: &[u8], skip: u32, count: u32) -> Option<&[u8]> {
    let (_, rest) = split(bytes, skip)?;
    Some(split(rest, count)?.0)
}

/// The first `count` frames, and what follows them.
pub(super) fn split(bytes: &[u8], count: u32) -> Option<(&[u8], &[u8])> {
    let mut end = 0;
    for _ in 0..count {
        end += next_frame(bytes.get(end..)?)?;
    }
    bytes.split_at_checked(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: &[u8] = b"\x32\x06\0\x01t\0\x01a\x32\x07\0\x01t\0\x02bc\x32\x06\0\x01t\0\x03d";

    #[test]
    fn frames_are_cut_by_their_numbers_and_missing_ones_are_noticed() {
        let place = |skip, count| Place {
            at: LogPosition(9),
            first: skip,
            count,
            offset: 0,
            len: FRAMES.len() as u32,
            skip,
        };
        assert_eq!(place(0, 3).cut(FRAMES), Some(FRAMES));
        assert_eq!(place(1, 1).cut(FRAMES), Some(&FRAMES[8..17]));
        assert_eq!(place(2, 2).cut(FRAMES), None);
        assert_eq!(place(0, 3).cut(&FRAMES[..FRAMES.len() - 1]), None);
        assert_eq!(place(u32::MAX, u32::MAX).cut(FRAMES), None);
        assert_eq!(place(1, 2).span(), Span { at: LogPosition(9), first: 1, count: 2 });
    }
}
