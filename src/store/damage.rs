//! Parts of the log that were there and are not any more: what is said about them, and what is kept.

use std::io;
use std::ops::Range;

use crate::ids::LogPosition;

use super::files::Files;
use super::segment::{Kind, Segment};

/// Copied at once, and lost at once where the disk does not give it.
const PIECE_BYTES: usize = 4096;

/// A part of the log that was there and is not any more.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{file}: {cause} (positions {} to {})", .missing.start.0, .missing.end.0)]
pub struct Damage {
    /// Records in there cannot be read. Empty if it is not known whether there were any.
    pub missing: Range<LogPosition>,
    /// The file in the directory of the log.
    pub file: String,
    /// What is wrong.
    pub cause: Cause,
    /// The file that keeps what there is for an operator, if it could be kept.
    pub set_aside: Option<String>,
}

/// What is wrong with a file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Cause {
    /// A record does not check.
    #[error("its content is not what was written")]
    Content,
    /// The first bytes are not those of a segment, or are those of another one.
    #[error("its header is not what was written")]
    Header,
    /// It follows a segment that is not there.
    #[error("the segment before it is not there")]
    Missing,
    /// The disk is broken.
    #[error("{0}")]
    Io(String),
}

/// Copies the file of a segment, unless that was done before, and returns the name of the copy. `None` if it cannot
/// be copied, for want of space for instance.
pub(super) fn copy_aside(files: &dyn Files, segment: &Segment) -> Option<String> {
    let base = segment.header.base.0;
    let name = Kind::Damaged.name(base);
    if !files.list().ok()?.contains(&name) {
        copy(files, segment, &Kind::Copying.name(base), &name).ok()?;
    }
    Some(name)
}

fn copy(files: &dyn Files, segment: &Segment, while_copying: &str, name: &str) -> io::Result<()> {
    let to = files.create(while_copying, segment.bytes)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut offset = 0;
    while offset < segment.bytes {
        // What cannot be read stays zeros.
        let read = segment.file.read_at(&mut piece, offset).unwrap_or(0);
        to.write_at(piece.get(..read).unwrap_or_default(), offset)?;
        offset += PIECE_BYTES as u64;
    }
    to.sync_data()?;
    files.rename(while_copying, name)?;
    files.sync_dir()
}
