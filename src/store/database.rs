//! The file of the tables: bytes by bytes, in one transaction at a time. The only file that names redb.
//!
//! Called by the other files of the tables, which know what the bytes mean.
//!
//! All checksums are verified at opening, before any row is believed. What the engine itself reads before
//! that, its list of free pages, it trusts if the file was closed in order, and panics on damage there: that
//! counts as damage found.
//!
//! # Invariants
//!
//! - A file that cannot be used is set aside under a new name, with all its rows, and never removed. The
//!   engine may have marked it as damaged before.
//! - A [`Reader`] sees one moment; while it lives the pages of that moment cannot be used again, so the
//!   owner takes a new one after each commit.

use std::cell::Cell;
use std::error::Error as StdError;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{
    DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition, WriteTransaction,
};

use crate::store::files::FILE_MODE;

/// Name of the file in the directory.
pub(super) const FILE_NAME: &str = "state.redb";
/// Memory for pages. The overlay holds what is used often.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// Which layout the rows have. A later one reads all earlier ones: in the first, copies of messages had no checksum.
const FORMAT: u64 = 2;
const FORMATS: RangeInclusive<u64> = 1..=FORMAT;
const FORMAT_KEY: &[u8] = b"format";

/// A kind of rows. What keys and values are is written in `row` and `entry`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub(super) enum Table {
    /// Name -> number: the format, and what the fold knows of the whole.
    Meta,
    /// Session -> client identifier.
    Sessions,
    /// Session -> what its connection brought, and when it left.
    Terms,
    /// Session and filter -> what was granted.
    Subscriptions,
    /// Session and position -> messages that it waits for.
    Queue,
    /// Session and packet identifier -> how far it is on its way to the client.
    Outgoing,
    /// Session and packet identifier -> nothing: a QoS 2 message of the client was accepted with it.
    Accepted,
    /// Topic -> where its retained message is.
    Retained,
    /// Base of a segment -> its end, and what is live in it.
    Segments,
    /// Position -> frames that were copied out of the log.
    Bodies,
    /// Position -> how many messages need its row in [`Table::Bodies`].
    BodiesLive,
    /// Session -> whose it is, of those that belong to somebody. Files of earlier versions lack it.
    Owners,
}

/// All of them, each at the place of its number.
const TABLES: [(Table, Definition); 12] = [
    (Table::Meta, Definition::new("meta")),
    (Table::Sessions, Definition::new("sessions")),
    (Table::Terms, Definition::new("terms")),
    (Table::Subscriptions, Definition::new("subscriptions")),
    (Table::Queue, Definition::new("queue")),
    (Table::Outgoing, Definition::new("outgoing")),
    (Table::Accepted, Definition::new("accepted")),
    (Table::Retained, Definition::new("retained")),
    (Table::Segments, Definition::new("segments")),
    (Table::Bodies, Definition::new("bodies")),
    (Table::BodiesLive, Definition::new("bodies_live")),
    (Table::Owners, Definition::new("owners")),
];

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
type Rows<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;

/// The database cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the tables of the durable state: {source}")]
pub struct TablesError {
    source: Box<dyn StdError + Send + Sync>,
}

macro_rules! from_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for TablesError {
            fn from(error: $error) -> Self {
                Self { source: Box::new(error) }
            }
        }
    )*};
}

from_errors!(
    io::Error,
    redb::CommitError,
    redb::DatabaseError,
    redb::SetDurabilityError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError
);

/// A file of tables that could not be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SetAside {
    /// What it is called now.
    pub to: PathBuf,
    /// What was wrong with it.
    pub why: String,
}

thread_local! {
    static IS_PANIC_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread says that a file is damaged, and is dealt with. Any other one is a bug of ours, and
/// the process had better end.
pub fn is_panic_expected() -> bool {
    IS_PANIC_EXPECTED.get()
}

/// See the module comment. A clone is the same database.
#[derive(Clone, Debug)]
pub(super) struct Database {
    engine: Arc<redb::Database>,
}

/// Why a file does not open.
enum Refusal {
    /// It is not, or not any more, a database of ours.
    Damaged(String),
    /// Nothing is known against it.
    Unusable(TablesError),
}

impl Database {
    /// Opens the file in `dir`, or makes it; see the module comment for what happens to one that is damaged.
    pub(super) fn open(dir: &Path) -> Result<(Self, Option<SetAside>), TablesError> {
        let path = dir.join(FILE_NAME);
        let set_aside = match Self::open_perhaps_damaged(&path) {
            Ok(database) => return Ok((database.created(dir)?, None)),
            Err(Refusal::Unusable(error)) => return Err(error),
            Err(Refusal::Damaged(why)) => SetAside { to: set_aside(&path)?, why },
        };
        match Self::open_file(&path) {
            Ok(database) => Ok((database.created(dir)?, Some(set_aside))),
            Err(Refusal::Unusable(error)) => Err(error),
            Err(Refusal::Damaged(why)) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, why).into())
            }
        }
    }

    /// The engine panics on some files that are damaged: on this thread, for this moment, that is an answer.
    fn open_perhaps_damaged(path: &Path) -> Result<Self, Refusal> {
        IS_PANIC_EXPECTED.set(true);
        let opened = panic::catch_unwind(|| Self::open_file(path));
        IS_PANIC_EXPECTED.set(false);
        opened.unwrap_or_else(|_| {
            Err(Refusal::Damaged("the database engine cannot make sense of it".to_owned()))
        })
    }

    fn open_file(path: &Path) -> Result<Self, Refusal> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        let file = options.open(path).map_err(|error| Refusal::Unusable(error.into()))?;
        let backend = FileBackend::new(file).map_err(refusal)?;
        let opened = redb::Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend);
        let mut engine = opened.map_err(refusal)?;
        // The engine trusts the pages of a file that was closed in order: it would take damaged rows for good
        // ones, or panic on them later.
        engine.check_integrity().map_err(refusal)?;
        let database = Self { engine: Arc::new(engine) };
        if database.is_new().map_err(Refusal::Unusable)? {
            database.write(Self::make_tables).map_err(Refusal::Unusable)?;
        } else if database.lacks_owners().map_err(Refusal::Unusable)? {
            let add = |writer: &Writer| writer.rows(Table::Owners, |_| Ok(()));
            database.write(add).map_err(Refusal::Unusable)?;
        }
        let damaged = |error: TablesError| Refusal::Damaged(error.to_string());
        match database.format().map_err(damaged)? {
            Some(format) if FORMATS.contains(&format) => Ok(database),
            Some(format) => {
                Err(Refusal::Damaged(format!("its format is {format} instead of {FORMAT}")))
            }
            None => Err(Refusal::Damaged("it does not say which format it has".to_owned())),
        }
    }

    fn is_new(&self) -> Result<bool, TablesError> {
        Ok(self.engine.begin_read()?.list_tables()?.next().is_none())
    }

    /// Whether it is a file of ours, and of a version in which sessions belonged to nobody.
    fn lacks_owners(&self) -> Result<bool, TablesError> {
        let names: Vec<String> = self
            .engine
            .begin_read()?
            .list_tables()?
            .map(|table| redb::TableHandle::name(&table).to_owned())
            .collect();
        let has = |name: &str| names.iter().any(|other| other == name);
        Ok(has("bodies_live") && !has("owners"))
    }

    fn make_tables(writer: &Writer) -> Result<(), TablesError> {
        TABLES.iter().try_for_each(|(table, _)| writer.rows(*table, |_| Ok(())))?;
        writer.set_format()
    }

    fn format(&self) -> Result<Option<u64>, TablesError> {
        let read = |value: &[u8]| value.try_into().ok().map(u64::from_le_bytes);
        Ok(self.reader()?.get(Table::Meta, FORMAT_KEY, read)?.flatten())
    }

    /// Whether its rows have the layout of an earlier version.
    pub(super) fn is_of_earlier_format(&self) -> Result<bool, TablesError> {
        Ok(self.format()? != Some(FORMAT))
    }

    /// Makes sure that the name of the file is on disk as well.
    fn created(self, dir: &Path) -> io::Result<Self> {
        File::open(dir)?.sync_all()?;
        Ok(self)
    }

    /// Sees what is committed now.
    pub(super) fn reader(&self) -> Result<Reader, TablesError> {
        let moment = self.engine.begin_read()?;
        let tables = TABLES.iter().map(|(_, definition)| moment.open_table(*definition));
        Ok(Reader { tables: tables.collect::<Result<_, _>>()? })
    }

    /// All that `change` does is on disk when this returns, or none of it.
    pub(super) fn write(
        &self,
        change: impl FnOnce(&Writer) -> Result<(), TablesError>,
    ) -> Result<(), TablesError> {
        let mut transaction = self.engine.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        let writer = Writer { transaction };
        change(&writer)?;
        Ok(writer.transaction.commit()?)
    }
}

/// The database as it was at one moment.
pub(super) struct Reader {
    tables: Vec<ReadOnlyTable<&'static [u8], &'static [u8]>>,
}

impl Reader {
    /// What `read` makes of the row under `key`.
    pub(super) fn get<T>(
        &self,
        table: Table,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, TablesError> {
        let Some(rows) = self.tables.get(table as usize) else { return Ok(None) };
        Ok(rows.get(key)?.map(|value| read(value.value())))
    }

    /// Shows all rows whose key begins with `prefix`, in the order of their keys: what follows the prefix,
    /// and the value.
    pub(super) fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), TablesError> {
        let Some(rows) = self.tables.get(table as usize) else { return Ok(()) };
        for row in rows.range(prefix..)? {
            let (key, value) = row?;
            let Some(rest) = key.value().strip_prefix(prefix) else { break };
            each(rest, value.value());
        }
        Ok(())
    }
}

/// A transaction that has begun.
pub(super) struct Writer {
    transaction: WriteTransaction,
}

impl Writer {
    /// Changes the rows of one table.
    pub(super) fn rows(
        &self,
        table: Table,
        change: impl FnOnce(&mut Rows<'_>) -> Result<(), TablesError>,
    ) -> Result<(), TablesError> {
        let Some((_, definition)) = TABLES.get(table as usize) else { return Ok(()) };
        change(&mut self.transaction.open_table(*definition)?)
    }

    /// All rows have the layout of this version.
    pub(super) fn set_format(&self) -> Result<(), TablesError> {
        self.rows(Table::Meta, |rows| put(rows, FORMAT_KEY, &FORMAT.to_le_bytes()))
    }
}

/// Writes a row in place of an earlier one.
pub(super) fn put(rows: &mut Rows<'_>, key: &[u8], value: &[u8]) -> Result<(), TablesError> {
    rows.insert(key, value)?;
    Ok(())
}

/// Removes a row, if there is one.
pub(super) fn remove(rows: &mut Rows<'_>, key: &[u8]) -> Result<(), TablesError> {
    rows.remove(key)?;
    Ok(())
}

/// Removes all rows whose key begins with `prefix`.
pub(super) fn remove_all(rows: &mut Rows<'_>, prefix: &[u8]) -> Result<(), TablesError> {
    let mut keys = Vec::new();
    for row in rows.range(prefix..)? {
        let (key, _) = row?;
        if !key.value().starts_with(prefix) {
            break;
        }
        keys.push(key.value().to_vec());
    }
    keys.iter().try_for_each(|key| remove(rows, key))
}

/// What an error of the engine at opening says of the file. Without a reason to think it damaged it stays
/// where it is: a process without file handles must not begin with empty tables.
fn refusal(error: DatabaseError) -> Refusal {
    let is_damaged = match &error {
        DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_) => true,
        DatabaseError::Storage(StorageError::Corrupted(_)) => true,
        DatabaseError::Storage(StorageError::Io(error)) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    };
    if is_damaged { Refusal::Damaged(error.to_string()) } else { Refusal::Unusable(error.into()) }
}

/// Renames the file to the first name that is free.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let mut number = 1_u32;
    loop {
        let to = path.with_file_name(format!("{FILE_NAME}.damaged-{number}"));
        if fs::symlink_metadata(&to).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            fs::rename(path, &to)?;
            return Ok(to);
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_there_after_the_database_was_closed_and_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (database, set_aside) = Database::open(dir.path()).unwrap();
        assert_eq!(set_aside, None);
        database
            .write(|writer| {
                writer.rows(Table::Queue, |rows| {
                    [b"a1", b"b1", b"b2", b"c1"]
                        .iter()
                        .try_for_each(|key| put(rows, *key, b"x"))?;
                    remove(rows, b"b1")
                })?;
                writer.rows(Table::Queue, |rows| remove_all(rows, b"c"))
            })
            .unwrap();
        drop(database);
        let (database, set_aside) = Database::open(dir.path()).unwrap();
        assert_eq!(set_aside, None);
        let reader = database.reader().unwrap();
        let mut keys = Vec::new();
        reader.scan(Table::Queue, b"", |key, _| keys.push(key.to_vec())).unwrap();
        assert_eq!(keys, [b"a1", b"b2"]);
        reader.scan(Table::Queue, b"b", |rest, _| assert_eq!(rest, b"2")).unwrap();
        assert_eq!(reader.get(Table::Queue, b"a1", <[u8]>::len).unwrap(), Some(1));
        assert_eq!(reader.get(Table::Terms, b"a1", <[u8]>::len).unwrap(), None);
    }

    #[test]
    fn tables_lie_at_the_places_of_their_numbers() {
        for (place, (table, _)) in TABLES.iter().enumerate() {
            assert_eq!(*table as usize, place);
        }
    }

    #[test]
    fn file_that_is_no_database_is_set_aside_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for number in 1..4 {
            let garbage = vec![number; 100_000];
            fs::write(dir.path().join(FILE_NAME), &garbage).unwrap();
            let (database, set_aside) = Database::open(dir.path()).unwrap();
            let to = dir.path().join(format!("state.redb.damaged-{number}"));
            assert_eq!(set_aside.map(|it| it.to), Some(to.clone()));
            assert_eq!(fs::read(to).unwrap(), garbage);
            drop(database);
        }
        assert_eq!(Database::open(dir.path()).unwrap().1, None);
    }

    #[test]
    fn file_of_a_version_in_which_sessions_belonged_to_nobody_gets_the_table_of_owners() {
        let dir = tempfile::tempdir().unwrap();
        {
            let (database, _) = Database::open(dir.path()).unwrap();
            let add = |rows: &mut Rows<'_>| put(rows, b"12345678", b"client");
            database.write(|writer| writer.rows(Table::Sessions, add)).unwrap();
            let transaction = database.engine.begin_write().unwrap();
            assert!(transaction.delete_table(TABLES[Table::Owners as usize].1).unwrap());
            transaction.commit().unwrap();
        }
        for _ in 0..2 {
            let (database, set_aside) = Database::open(dir.path()).unwrap();
            assert_eq!(set_aside, None);
            let reader = database.reader().unwrap();
            assert_eq!(reader.get(Table::Sessions, b"12345678", <[u8]>::len).unwrap(), Some(6));
            assert_eq!(reader.get(Table::Owners, b"12345678", <[u8]>::len).unwrap(), None);
        }
    }

    #[test]
    fn file_of_another_format_is_set_aside() {
        for format in [&b"short"[..], &(FORMAT + 1).to_le_bytes()] {
            let dir = tempfile::tempdir().unwrap();
            let (database, _) = Database::open(dir.path()).unwrap();
            let change = |rows: &mut Rows<'_>| put(rows, FORMAT_KEY, format);
            database.write(|writer| writer.rows(Table::Meta, change)).unwrap();
            drop(database);
            let (_, set_aside) = Database::open(dir.path()).unwrap();
            assert!(set_aside.unwrap().why.contains("format"), "{format:?}");
        }
    }

    #[test]
    fn database_of_somebody_else_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let other = redb::Database::create(dir.path().join(FILE_NAME)).unwrap();
        let transaction = other.begin_write().unwrap();
        drop(transaction.open_table(TableDefinition::<u64, u64>::new("meta")).unwrap());
        transaction.commit().unwrap();
        drop(other);
        assert!(Database::open(dir.path()).unwrap().1.is_some());
    }

    #[test]
    fn file_that_is_merely_not_to_be_had_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (_open, _) = Database::open(dir.path()).unwrap();
        assert!(Database::open(dir.path()).is_err(), "it is open already");
        assert!(Database::open(&dir.path().join("missing")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
