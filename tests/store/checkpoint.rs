//! The store on a disk that cannot be read for a while: messages are waited for, and the log is kept.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::ids::{ProtocolVersion, Qos, SessionId};
use mailboxqtt::record::{Messages, MessagesWriter, Recipient, Targets};
use mailboxqtt::store::Place;
use mailboxqtt::store::handle::Store;
use mailboxqtt::store::log::{Level, Settings};
use mailboxqtt::store::start::{Started, start_with};
use tempfile::TempDir;

use crate::disk::Disk;
use crate::week::{come, frame, number_of};

const PATIENCE: Duration = Duration::from_secs(60);
const SEGMENT_BYTES: u64 = 1 << 20;
const READER: SessionId = SessionId(1);

#[test]
fn disk_with_read_errors_is_waited_for_once_and_not_for_each_message() {
    const COUNT: u64 = 200;
    let (disk, dir) = (Disk::default(), TempDir::new().unwrap());
    let started = open(&disk, dir.path());
    come(&started.store, READER, "reader");
    (0..COUNT).for_each(|number| publish(&started.store, number));
    close(started);
    let started = open(&disk, dir.path());
    let places = waiting(&started);
    assert_eq!(places.len() as u64, COUNT);

    // It recovers while it is waited for.
    disk.fail_reads(true);
    let later = disk.clone();
    let recovery = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        later.fail_reads(false);
    });
    let read = started.store.read_all(&places);
    let numbers: Vec<_> = read.iter().flatten().map(|frame| number_of(frame)).collect();
    assert_eq!(numbers, (0..COUNT).collect::<Vec<_>>());
    recovery.join().unwrap();

    disk.fail_reads(true);
    let begun = Instant::now();
    assert!(started.store.read_all(&places).iter().all(Option::is_none));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(COUNT / 4), "{took:?}");
    disk.fail_reads(false);
    close(started);
}

/// What cannot be read now may be readable for the next process: the tables must not pass over it.
#[test]
fn checkpoint_that_fails_keeps_the_log_and_stops_new_messages_in_time() {
    let (disk, dir) = (Disk::default(), TempDir::new().unwrap());
    let started = open(&disk, dir.path());
    come(&started.store, READER, "reader");
    disk.fail_reads(true);
    let deadline = Instant::now() + PATIENCE;
    let mut count = 0;
    while !started.store.is_short() {
        // A process that goes on as ever would use ten times as much.
        assert!(started.store.used_bytes() < 500 << 20 && Instant::now() < deadline);
        (0..64).for_each(|number| publish(&started.store, count + number));
        count += 64;
        // No faster than a disk: it takes a moment until this one is given up, and what comes meanwhile is no fault.
        thread::sleep(Duration::from_millis(5));
    }
    disk.fail_reads(false);
    close(started);

    let started = open(&disk, dir.path());
    let places = waiting(&started);
    let last = started.store.read(places.last().unwrap()).unwrap();
    assert_eq!((places.len() as u64, number_of(&last)), (count, count - 1));
    // The tables are written again, and the log is given back as far as it may be.
    assert!(!started.store.is_short());
    close(started);
}

fn open(disk: &Disk, dir: &Path) -> Started {
    let settings = Settings { segment_bytes: SEGMENT_BYTES, ..Settings::default() };
    let files = Arc::new(disk.clone());
    start_with(files, dir, Level::Os, settings, |why| panic!("{why}")).unwrap()
}

fn close(started: Started) {
    assert_eq!(started.checkpointer.stop(), None);
}

/// What waits for the one session there is.
fn waiting(started: &Started) -> Vec<Place> {
    let [session] = &started.recovered.sessions[..] else { panic!("one session") };
    session.waiting.iter().map(|run| run.place).collect()
}

/// A message for [`READER`].
fn publish(store: &Store, number: u64) {
    let frame = frame(0, number);
    let messages = Messages {
        version: ProtocolVersion::V311,
        qos: Qos::ExactlyOnce,
        expires: false,
        is_retained: false,
        received_at_ms: number,
        publisher: None,
        count: 1,
        frames: &frame,
        targets: Targets::NONE,
    };
    let recipient = Recipient {
        session: READER,
        qos: Qos::AtLeastOnce,
        retain: false,
        identifiers: &[],
        share: None,
        part: None,
    };
    let mut bytes = Vec::new();
    let mut writer = MessagesWriter::begin(&messages, &mut bytes);
    writer.add(&recipient, &mut bytes);
    writer.end(&mut bytes);
    store.append(&bytes, None);
}
