//! What the log does on a directory that is as it should be, and on files that somebody has touched.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use mailboxqtt::ids::{LogPosition, SessionId};
use mailboxqtt::record::{HEADER_BYTES, Record};
use mailboxqtt::store::files::{Directory, DirectoryError, Files};
use mailboxqtt::store::log::{
    Cause, Completion, Failure, Level, Log, OpenError, ReadError, Recovered, ScanEnd, Settings,
};
use tempfile::TempDir;

use crate::disk::{Disk, Fault};
use crate::history::settings;

const PATIENCE: Duration = Duration::from_secs(60);

fn open(path: &Path, settings: Settings) -> (Log, Recovered) {
    let files = Arc::new(Directory::open(path).unwrap());
    Log::open(files, settings, LogPosition(0), |_| ()).unwrap()
}

fn open_on(disk: &Disk) -> (Log, Recovered) {
    Log::open(Arc::new(disk.clone()), settings(), LogPosition(0), |_| ()).unwrap()
}

fn record(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Record::SessionEnded { session: SessionId(number) }.encode(&mut bytes);
    bytes
}

/// Appends and waits until it is synced.
fn append(log: &Log, records: &[u8]) -> LogPosition {
    let (done, is_done) = mpsc::channel();
    let then: Completion = Box::new(move || done.send(()).unwrap());
    let at = log.append(records, Level::Always, Some(then));
    is_done.recv_timeout(PATIENCE).unwrap();
    at
}

fn read(log: &Log, from: LogPosition) -> (Vec<(LogPosition, u64)>, ScanEnd) {
    let mut read = Vec::new();
    let end = log.scan(from, log.durable(), |at, record| {
        let Ok(Record::SessionEnded { session }) = Record::decode(record) else {
            panic!("it is no such record");
        };
        read.push((at, session.0));
        ControlFlow::Continue(())
    });
    (read, end)
}

fn numbers(log: &Log) -> Vec<u64> {
    read(log, LogPosition(0)).0.into_iter().map(|(_, number)| number).collect()
}

#[test]
fn records_are_read_back_after_a_restart_in_their_order_and_at_their_positions() {
    let dir = TempDir::new().unwrap();
    let mut expected = Vec::new();
    for run in 0..3 {
        let (log, recovered) = open(dir.path(), settings());
        assert_eq!((recovered.cut, recovered.damage), (None, Vec::new()));
        assert_eq!(read(&log, LogPosition(0)).0, expected);
        for number in 0..100 {
            let two = [record(2 * number + run), record(2 * number + 1 + run)].concat();
            let at = append(&log, &two);
            let second = LogPosition(at.0 + record(0).len() as u64);
            expected.push((at, 2 * number + run));
            expected.push((second, 2 * number + 1 + run));
        }
        assert_eq!(read(&log, LogPosition(0)).0, expected);
        assert!(log.segments().len() > 3, "more than one segment is in use");
    }
}

#[test]
fn scan_goes_on_where_another_one_ended() {
    let disk = Disk::default();
    let (log, _) = open_on(&disk);
    let ats: Vec<LogPosition> = (0..200).map(|number| append(&log, &record(number))).collect();
    let mut from = LogPosition(0);
    for number in 0..200_u64 {
        let mut seen = None;
        let end = log.scan(from, log.durable(), |at, _| {
            seen = Some(at);
            ControlFlow::Break(())
        });
        assert_eq!(seen, Some(ats[number as usize]));
        from = end.at;
        assert_eq!(end.damage, []);
    }
    let end = log.scan(from, log.durable(), |_, _| panic!("there is nothing left"));
    assert_eq!((end.at, end.damage), (log.durable(), Vec::new()));
    append(&log, &record(200));
    assert_eq!(read(&log, from).0.len(), 1);
}

#[test]
fn single_records_are_read_by_position_when_they_are_written() {
    let dir = TempDir::new().unwrap();
    let (log, _) = open(dir.path(), settings());
    let at = append(&log, &record(7));
    let read = log.read_record(at, HEADER_BYTES + 9).unwrap();
    assert_eq!(number_of(&read), 7);
    assert_eq!(log.read_record(at, HEADER_BYTES + 1).unwrap(), read[..HEADER_BYTES + 1]);
    assert_eq!(log.read_record(at, usize::MAX).unwrap(), read);
    let beyond = log.read_record(log.written(), 1);
    assert!(matches!(beyond, Err(ReadError::Pending)), "{beyond:?}");
}

/// Of [`record`].
fn number_of(read: &[u8]) -> u64 {
    u64::from_le_bytes(read[HEADER_BYTES + 1..][..8].try_into().unwrap())
}

#[test]
fn single_record_with_a_changed_byte_anywhere_is_refused_whatever_was_wanted_of_it() {
    let disk = Disk::default();
    let settings = Settings { segment_bytes: 1 << 20, ..settings() };
    let (log, _) = Log::open(Arc::new(disk.clone()), settings, LogPosition(0), |_| ()).unwrap();
    let before = append(&log, &record(1));
    // More than one piece is read of it.
    let filter = "a".repeat(150_000);
    let mut long = Vec::new();
    Record::Unsubscribed { session: SessionId(2), filter: &filter }.encode(&mut long);
    let at = append(&log, &long);
    let behind = append(&log, &record(3));
    let offset = 64 + at.0 as usize;
    for byte in (0..HEADER_BYTES + 9).chain((0..long.len()).step_by(4999)).chain([long.len() - 1]) {
        disk.damage(&name(0), |bytes| bytes[offset + byte] ^= 0x10);
        for wanted in [1, HEADER_BYTES + 9, 100_000, usize::MAX] {
            let read = log.read_record(at, wanted);
            assert!(matches!(read, Err(ReadError::Damaged)), "byte {byte}: {read:?}");
        }
        disk.damage(&name(0), |bytes| bytes[offset + byte] ^= 0x10);
        assert_eq!(log.read_record(at, 100_000).unwrap()[4..], long[4..100_000]);
    }
    let inside = log.read_record(LogPosition(at.0 + 1), 100);
    assert!(matches!(inside, Err(ReadError::Damaged)), "no record begins there: {inside:?}");
    for (at, number) in [(before, 1), (behind, 3)] {
        assert_eq!(number_of(&log.read_record(at, usize::MAX).unwrap()), number);
    }
}

#[test]
fn position_is_not_written_before_the_thread_has_written_it() {
    let (log, _) = open_on(&Disk::default());
    let (hold, held) = mpsc::channel::<()>();
    log.append(&[], Level::Os, Some(Box::new(move || held.recv().unwrap_or_default())));
    let at = log.append(&record(1), Level::Os, None);
    let read = log.read_record(at, 4);
    assert!(matches!(read, Err(ReadError::Pending)), "{read:?}");
    assert_eq!(log.pending_bytes(), record(1).len());

    let (done, is_done) = mpsc::channel();
    log.append(&[], Level::Os, Some(Box::new(move || done.send(()).unwrap())));
    drop(hold);
    is_done.recv_timeout(PATIENCE).unwrap();
    log.read_record(at, 4).unwrap();
    assert_eq!(log.durable(), LogPosition(0), "nobody asked for a sync");
    append(&log, &[]);
    assert_eq!(log.durable(), log.written(), "an empty append is a barrier");
    assert_eq!(log.pending_bytes(), 0);
}

#[test]
fn level_os_is_synced_after_the_interval() {
    let disk = Disk::default();
    let settings = Settings { sync_interval: Duration::from_millis(1), ..settings() };
    let (log, _) = Log::open(Arc::new(disk), settings, LogPosition(0), |_| ()).unwrap();
    log.append(&record(1), Level::Os, None);
    let end = record(1).len() as u64;
    let deadline = std::time::Instant::now() + PATIENCE;
    while log.durable().0 < end {
        assert!(std::time::Instant::now() < deadline, "it is not synced");
        thread::yield_now();
    }
}

#[test]
fn close_writes_what_was_appended_and_later_appends_are_dropped() {
    let disk = Disk::default();
    let (log, _) = open_on(&disk);
    let has_run = Arc::new(AtomicBool::new(false));
    let flag = has_run.clone();
    log.append(&record(1), Level::Os, None);
    log.append(
        &record(2),
        Level::Always,
        Some(Box::new(move || flag.store(true, Ordering::SeqCst))),
    );
    log.close();
    assert!(has_run.load(Ordering::SeqCst));
    let never: Completion = Box::new(|| panic!("the log is closed"));
    log.append(&record(3), Level::Os, Some(never));
    drop(log);
    // Without power from here on.
    let image = &disk.images(1, &mut fastrand::Rng::with_seed(0))[0];
    assert_eq!(numbers(&open_on(image).0), [1, 2]);
}

#[test]
fn log_may_be_dropped_by_one_of_its_completions() {
    let log = Arc::new(open_on(&Disk::default()).0);
    let (done, is_done) = mpsc::channel();
    let last = log.clone();
    let (gone, is_gone) = mpsc::channel::<()>();
    let then: Completion = Box::new(move || {
        let _ = is_gone.recv();
        drop(last);
        done.send(()).unwrap();
    });
    log.append(&[], Level::Os, Some(then));
    drop(log);
    drop(gone);
    is_done.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn retired_segments_are_used_again_and_their_old_records_are_not_read() {
    let disk = Disk::default();
    let (log, _) = open_on(&disk);
    let mut kept = Vec::new();
    for number in 0..2000 {
        append(&log, &record(number));
        kept.push(number);
        while log.segments().len() > 2 {
            let oldest = log.segments()[0];
            assert!(log.retire(oldest.base).unwrap());
            let read = log.read_record(oldest.base, 4);
            assert!(matches!(read, Err(ReadError::Gone)), "{read:?}");
        }
    }
    assert!(disk.names().len() <= 3, "two segments and a spare: {:?}", disk.names());
    let last = log.segments().last().unwrap().base;
    assert!(!log.retire(last).unwrap(), "the last one stays");
    assert!(!log.retire(LogPosition(1)).unwrap(), "there is none");
    drop(log);

    let (log, recovered) = open_on(&disk);
    let read = numbers(&log);
    assert_eq!(recovered.cut, None, "zeros follow the last record, whatever the file held before");
    assert!(!read.is_empty());
    assert_eq!(read, kept[kept.len() - read.len()..]);
}

#[test]
fn append_that_is_longer_than_a_segment_gets_its_own() {
    let disk = Disk::default();
    let (log, _) = open_on(&disk);
    let many: Vec<u8> = (0..1000).flat_map(record).collect();
    append(&log, &record(5000));
    append(&log, &many);
    append(&log, &record(5001));
    let segments = log.segments();
    assert_eq!(segments.len(), 3);
    assert!(segments[1].bytes > many.len() as u64);
    assert!(log.retire(segments[1].base).unwrap());
    assert_eq!(disk.names().len(), 2, "it is of no use for another segment");
    assert_eq!(numbers(&log), [5000, 5001]);
}

#[test]
fn second_broker_is_refused_until_the_first_has_gone() {
    let dir = TempDir::new().unwrap();
    let first = Directory::open(dir.path()).unwrap();
    let second = Directory::open(dir.path());
    assert!(matches!(second, Err(DirectoryError::InUse(_))), "{second:?}");
    drop(first);
    Directory::open(dir.path()).unwrap();
}

#[test]
fn failed_sync_is_final() {
    let disk = Disk::default();
    let (told, is_told) = mpsc::channel();
    let on_failure = move |failure: &Failure| told.send(failure.to_string()).unwrap();
    let (log, _) =
        Log::open(Arc::new(disk.clone()), settings(), LogPosition(0), on_failure).unwrap();
    append(&log, &record(1));
    // The write is the first call, and then there is the sync.
    disk.fail_at(1, Fault::Error(5));
    let never: Completion = Box::new(|| panic!("it is not synced"));
    log.append(&record(2), Level::Always, Some(never));
    let said = is_told.recv_timeout(PATIENCE).unwrap();
    assert!(said.starts_with("cannot sync 0000000000000000.seg: "), "{said}");
    let never: Completion = Box::new(|| panic!("the log has failed"));
    log.append(&record(3), Level::Os, Some(never));
    assert_eq!(log.failure().unwrap().to_string(), said);
    assert_eq!(log.pending_bytes(), 0);
    log.close();
    assert_eq!(disk.calls(), 2, "nothing is tried again");
}

#[test]
fn panic_in_a_completion_and_bytes_that_are_no_records_are_failures() {
    let panics: Completion = Box::new(|| {
        panic!("on purpose");
    });
    for (bytes, then, expected) in [
        (record(1), Some(panics), "the thread of the log"),
        (record(1)[1..].to_vec(), None, "appended bytes"),
        (vec![0; 8], None, "appended bytes"),
    ] {
        let (told, is_told) = mpsc::channel();
        let on_failure = move |failure: &Failure| told.send(failure.to_string()).unwrap();
        let files = Arc::new(Disk::default());
        let (log, _) = Log::open(files, settings(), LogPosition(0), on_failure).unwrap();
        log.append(&bytes, Level::Always, then);
        let said = is_told.recv_timeout(PATIENCE).unwrap();
        assert!(said.starts_with(expected), "{said}");
    }
}

#[test]
fn new_positions_are_not_below_those_that_somebody_else_knows() {
    let disk = Disk::default();
    let from = LogPosition(1 << 40);
    let (log, recovered) = Log::open(Arc::new(disk.clone()), settings(), from, |_| ()).unwrap();
    assert_eq!((recovered.end, log.durable()), (from, from));
    assert_eq!(append(&log, &record(1)), from);
    assert_eq!(read(&log, from), (vec![(from, 1)], ScanEnd { at: log.durable(), damage: vec![] }));
}

#[test]
fn files_of_others_are_left_alone() {
    let disk = Disk::default();
    for name in ["lock", "notes.txt", "1.seg", "00000000000000ff.damaged"] {
        disk.create(name, 1).unwrap();
    }
    let (log, recovered) = open_on(&disk);
    assert_eq!(recovered.damage, []);
    append(&log, &record(1));
    drop(log);
    assert_eq!(numbers(&open_on(&disk).0), [1]);
    assert_eq!(disk.names().len(), 5);
}

/// Three segments and more, with records numbered from 0 on.
fn three_segments() -> (Disk, Vec<u64>) {
    let disk = Disk::default();
    let (log, _) = open_on(&disk);
    let mut number = 0;
    while log.segments().len() < 4 {
        append(&log, &record(number));
        number += 1;
    }
    (disk, log.segments().iter().map(|segment| segment.base.0).collect())
}

fn name(base: u64) -> String {
    format!("{base:016x}.seg")
}

#[test]
fn damage_in_the_middle_is_reported_kept_and_passed_over() {
    let (disk, bases) = three_segments();
    let whole = numbers(&open_on(&disk).0);
    let len = record(0).len();
    disk.damage(&name(bases[1]), |bytes| bytes[64 + 3 * len + 10] ^= 1);
    let damaged = disk.content(&name(bases[1]));

    let (log, recovered) = open_on(&disk);
    assert_eq!((recovered.cut, recovered.damage), (None, vec![]), "it is found by a scan");
    let (read, end) = read(&log, LogPosition(0));
    let [damage] = &end.damage[..] else { panic!("{:?}", end.damage) };
    let per_segment = (1024 - 64) / len as u64;
    let lost = per_segment + 3..2 * per_segment;
    let expected: Vec<u64> = whole.into_iter().filter(|n| !lost.contains(n)).collect();
    assert_eq!(read.iter().map(|(_, number)| *number).collect::<Vec<_>>(), expected);
    let start = LogPosition(bases[1] + 3 * len as u64);
    assert_eq!(damage.missing, start..LogPosition(bases[1] + per_segment * len as u64));
    assert_eq!(damage.cause, Cause::Content);
    let kept = damage.set_aside.clone().unwrap();
    assert_eq!(disk.content(&kept), damaged);

    // The copy is made once and never changed.
    disk.damage(&name(bases[1]), |bytes| bytes.fill(9));
    let (log, _) = open_on(&disk);
    assert_eq!(
        log.scan(LogPosition(0), log.durable(), |_, _| ControlFlow::Continue(())).damage.len(),
        1
    );
    assert_eq!(disk.content(&kept), damaged);
}

#[test]
fn segment_that_is_not_there_or_not_readable_is_passed_over() {
    let len = record(0).len() as u64;
    let per_segment = (1024 - 64) / len;
    for case in ["removed", "header", "empty", "unreadable"] {
        let (disk, bases) = three_segments();
        let whole = numbers(&open_on(&disk).0);
        match case {
            "removed" => disk.remove(&name(bases[1])).unwrap(),
            "header" => disk.damage(&name(bases[1]), |bytes| bytes[20] ^= 1),
            "empty" => disk.damage(&name(bases[1]), Vec::clear),
            _ => disk.damage(&name(bases[1]), |bytes| bytes.truncate(200)),
        }
        let (log, recovered) = open_on(&disk);
        assert_eq!(
            recovered.damage.len(),
            usize::from(case == "header" || case == "empty"),
            "{case}"
        );
        let (read, end) = read(&log, LogPosition(0));
        let is_kept = |number: &u64| {
            let first_lost = per_segment + if case == "unreadable" { (200 - 64) / len } else { 0 };
            !(first_lost..2 * per_segment).contains(number)
        };
        let expected: Vec<u64> = whole.into_iter().filter(is_kept).collect();
        assert_eq!(read.iter().map(|(_, number)| *number).collect::<Vec<_>>(), expected, "{case}");
        assert_eq!(end.damage.len(), 1, "{case}: {:?}", end.damage);
        assert_eq!(end.at, log.durable());
    }
}

#[test]
fn cut_tail_is_reported_and_its_positions_are_not_used_again() {
    let disk = Disk::default();
    let (log, _) = open_on(&disk);
    let first = append(&log, &record(1));
    let second = append(&log, &record(2));
    drop(log);
    disk.damage(&name(first.0), |bytes| bytes[64 + (second.0 - first.0) as usize + 9] ^= 1);
    let (log, recovered) = open_on(&disk);
    assert_eq!((recovered.end, recovered.cut), (second, Some(second)));
    assert!(!recovered.has_more_behind_cut);
    assert_eq!(numbers(&log), [1]);
    let third = append(&log, &record(3));
    assert!(third.0 >= first.0 + 1024 - 64);
    assert_eq!(read(&log, recovered.end).0, [(third, 3)]);
    assert_eq!(numbers(&log), [1, 3]);
}

#[test]
fn cut_before_a_record_that_checks_is_told_from_a_write_that_was_not_finished() {
    let disk = Disk::default();
    let (log, _) = open_on(&disk);
    let ats: Vec<LogPosition> = (0..5).map(|number| append(&log, &record(number))).collect();
    drop(log);
    disk.damage(&name(0), |bytes| bytes[64 + ats[2].0 as usize + 9] ^= 1);
    let (log, recovered) = open_on(&disk);
    assert_eq!((recovered.cut, recovered.has_more_behind_cut), (Some(ats[2]), true));
    assert_eq!(numbers(&log), [0, 1]);
}

#[test]
fn log_of_a_later_version_is_refused_and_not_touched() {
    let (disk, bases) = three_segments();
    disk.damage(&name(bases[0]), |bytes| {
        bytes[8] = 2;
        bytes[12..16].fill(0);
        let checksum = crc32c::crc32c(&bytes[..64]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    });
    let names = disk.names();
    let opened = Log::open(Arc::new(disk.clone()), settings(), LogPosition(0), |_| ());
    let Err(error) = opened else { panic!("it is opened") };
    assert!(matches!(error, OpenError::Newer { version: 2, .. }), "{error}");
    assert_eq!(disk.names(), names);
}

#[test]
fn many_threads_append_read_and_retire_at_once() {
    let dir = TempDir::new().unwrap();
    let settings = Settings { segment_bytes: 8192, spare_segments_max: 2, ..Settings::default() };
    let (log, _) = open(dir.path(), settings);
    let log = &log;
    thread::scope(|scope| {
        for writer in 0..4_u64 {
            scope.spawn(move || {
                for number in 0..400 {
                    let number = writer << 32 | number;
                    let at = append(log, &record(number));
                    match log.read_record(at, usize::MAX) {
                        Ok(read) => assert_eq!(number_of(&read), number),
                        Err(ReadError::Gone) => (),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        scope.spawn(move || {
            let mut next = [0_u64; 4];
            let mut from = LogPosition(0);
            while next.iter().any(|next| *next < 400) {
                let (read, end) = read(log, from);
                assert_eq!(end.damage, []);
                from = end.at;
                for (_, number) in read {
                    let (writer, number) = ((number >> 32) as usize, number & 0xffff_ffff);
                    assert_eq!(next[writer], number);
                    next[writer] += 1;
                }
                let segments = log.segments();
                for segment in segments.iter().filter(|segment| segment.end <= from) {
                    log.retire(segment.base).unwrap();
                }
                thread::yield_now();
            }
        });
    });
}

#[test]
fn segment_whose_header_was_never_synced_becomes_a_spare_and_its_positions_are_not_used_again() {
    let (disk, bases) = three_segments();
    let last = bases[3];
    let whole = numbers(&open_on(&disk).0);
    disk.damage(&name(last), |bytes| bytes[..64].fill(0));
    for _ in 0..2 {
        let (log, recovered) = open_on(&disk);
        assert_eq!((recovered.cut, recovered.damage), (None, vec![]));
        assert_eq!(numbers(&log), whole[..whole.len() - 1]);
    }
    let free = name(last).replace(".seg", ".free");
    assert!(disk.names().contains(&free), "{:?}", disk.names());
    let (log, _) = open_on(&disk);
    let at = append(&log, &record(9000));
    assert!(at.0 >= last + 1024 - 64, "what that file holds would check at {last}");
    assert!(!disk.names().contains(&free), "it is used again");
    assert_eq!(numbers(&log).last(), Some(&9000));
}

/// A segment at 4,096 that follows another one, with two records. Never change these bytes: logs of that format are
/// out there.
const FIRST_FORMAT: &str = "4d425154544c4f47010000004f303a990010000000000000f00f000000000000\
    0000000000000000000000000000000000000000000000000000000000000000\
    4e381b9b090000000c0700000000000000ad9ad4fe090000000c08000000000000000000000000000000";

#[test]
fn log_of_the_first_format_is_read() {
    let bytes: Vec<u8> = (0..FIRST_FORMAT.len() / 2)
        .map(|at| u8::from_str_radix(&FIRST_FORMAT[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let disk = Disk::default();
    disk.create(&name(4096), bytes.len() as u64).unwrap();
    disk.damage(&name(4096), |content| *content = bytes);
    let (log, recovered) = open_on(&disk);
    let expected = Recovered {
        end: LogPosition(4096 + 34),
        cut: None,
        has_more_behind_cut: false,
        damage: vec![],
    };
    assert_eq!(recovered, expected);
    let (read, end) = read(&log, LogPosition(4096));
    assert_eq!(read, [(LogPosition(4096), 7), (LogPosition(4096 + 17), 8)]);
    assert_eq!(end.damage, []);
}
