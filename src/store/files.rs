//! The few file operations that the log needs, as a trait, and their real implementation.
//!
//! Whoever writes another implementation (a test with faults) has to keep what a file system promises: what
//! [`StoredFile::sync_data`] or [`Files::sync_dir`] returned from stays, names change in order, and of everything else
//! any part may be gone after the power was.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Messages are nobody's business but the broker's: a new directory is open to its user alone.
const DIRECTORY_MODE: u32 = 0o700;
/// And so are new files, in whatever directory.
pub(super) const FILE_MODE: u32 = 0o600;
/// Zeros are written in pieces of this size.
const FILL_BYTES: usize = 1 << 20;
/// And synced in pieces of this size, so that the sync of another file does not wait for all of them.
const FILL_SYNC_BYTES: u64 = 8 << 20;

/// One directory. All names are names of files directly in it.
pub trait Files: Send + Sync {
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A file that exists, to read and to write.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>>;

    /// A new file of `bytes` zeros that have their place on the disk and are synced; its name is not. An error
    /// where there is one of that name.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn StoredFile>>;

    /// Gives a file another name. An existing one of that name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Who has it open goes on reading it.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names that were created, changed and removed survive a power cut.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file. Every operation says where; there is no cursor, so threads share it.
pub trait StoredFile: Send + Sync {
    /// How many bytes it has.
    fn size(&self) -> io::Result<u64>;

    /// Reads from `offset` on; returns fewer bytes than asked for at the end of the file only.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the content survive a power cut. After an error nothing is known about it.
    fn sync_data(&self) -> io::Result<()>;
}

/// A directory on disk that belongs to this process until the value is dropped.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// For [`Files::sync_dir`].
    handle: File,
    /// Locked; the lock goes with the file.
    _lock: File,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Two writers would destroy each other's files.
    #[error("{0} is in use by another broker")]
    InUse(PathBuf),
    /// It cannot be made, opened or locked.
    #[error("{path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Directory {
    /// Opens it, and makes it where there is none. A file `lock` in it keeps others out.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let io = |source| DirectoryError::Io { path: path.to_owned(), source };
        create_and_sync(path).map_err(io)?;
        let handle = File::open(path).map_err(io)?;
        let name = path.join("lock");
        let lock = OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(name);
        let lock = lock.map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), handle, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DirectoryError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

impl Files for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                // A name that is no text is none of ours.
                names.extend(entry.file_name().into_string().ok());
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StoredFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(file))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn StoredFile>> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(FILE_MODE).open(&path)?;
        match fill(&file, bytes) {
            Ok(()) => Ok(Arc::new(file)),
            Err(error) => {
                // Half of a file is of no use, and the space is needed now.
                fs::remove_file(&path)?;
                Err(error)
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

/// A directory is an entry in the one above it, and that has to survive as well.
fn create_and_sync(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)?;
    for parent in missing.into_iter().filter_map(Path::parent) {
        let is_here = parent.as_os_str().is_empty();
        File::open(if is_here { Path::new(".") } else { parent })?.sync_all()?;
    }
    Ok(())
}

/// Written zeros, and not only reserved space: overwriting them changes no metadata, so that a sync of the records
/// that come later is one write to the disk.
fn fill(file: &File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; FILL_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let len = (bytes - offset).min(FILL_BYTES as u64);
        file.write_all_at(zeros.get(..len as usize).unwrap_or(&zeros), offset)?;
        offset += len;
        if offset % FILL_SYNC_BYTES == 0 {
            file.sync_data()?;
        }
    }
    file.sync_data()
}

impl StoredFile for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_may_read_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("of/the/broker");
        let directory = Directory::open(&path).unwrap();
        directory.create("segment", 8).unwrap();
        for name in ["", "lock", "segment"] {
            let mode = fs::metadata(path.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
        }
    }
}
