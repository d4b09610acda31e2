//! What the message log costs: appends of many threads that wait until their record is synced, and reading all back.
//!
//! Ids are `store/append/<level>_<threads>_threads`, `store/append/raw_fdatasync` and `store/scan/<record>`. In an append
//! round every thread appends [`ROUND`] records of 150 bytes one after the other, in closed loop; throughput is records.
//! Files lie below the target directory, on whatever disk that is: compare with the raw sync beside it. A scan
//! reads from the page cache; what it read is counted in every round.

#![allow(missing_docs, reason = "criterion_group! generates an undocumented function")]
#![allow(clippy::panic, reason = "a bench without its directory is none")]

use std::fs::{self, OpenOptions};
use std::hint::black_box;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use mailboxqtt::ids::LogPosition;
use mailboxqtt::record::HEADER_BYTES;
use mailboxqtt::store::files::Directory;
use mailboxqtt::store::log::{Level, Log, Settings};
use tempfile::TempDir;

/// Appends of one thread in one round.
const ROUND: u64 = 50;
const RECORD_BYTES: usize = 150;
const SCANNED_BYTES: usize = 256 << 20;

fn append(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("store/append");
    group.measurement_time(Duration::from_secs(5)).sample_size(10);
    group.throughput(Throughput::Elements(1));
    group.bench_function("raw_fdatasync", |b| {
        let dir = directory();
        let path = dir.path().join("file");
        let Ok(file) = OpenOptions::new().create_new(true).write(true).open(path) else { return };
        let written = file.write_all_at(&vec![0; 1 << 20], 0).and_then(|()| file.sync_data());
        assert!(written.is_ok());
        let mut at = 0;
        b.iter(|| {
            at = (at + RECORD_BYTES as u64) % ((1 << 20) - 4096);
            let synced = file.write_all_at(&[1; RECORD_BYTES], at).and_then(|()| file.sync_data());
            assert!(synced.is_ok());
        });
    });
    for (name, level, threads) in [
        ("always_1_threads", Level::Always, 1),
        ("always_16_threads", Level::Always, 16),
        ("always_256_threads", Level::Always, 256),
        ("os_1_threads", Level::Os, 1),
        ("os_256_threads", Level::Os, 256),
    ] {
        let (_dir, log) = open();
        group.throughput(Throughput::Elements(ROUND * threads));
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| rounds_of_appends(&log, level, threads, ROUND * rounds));
        });
    }
}

/// Retires what is full, so that files are used again, as in a broker whose subscribers keep up.
fn rounds_of_appends(log: &Log, level: Level, threads: u64, appends: u64) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let record = record(RECORD_BYTES);
                let (done, is_done) = mpsc::channel();
                for _ in 0..appends {
                    let done = done.clone();
                    let then = Box::new(move || assert!(done.send(()).is_ok()));
                    log.append(&record, level, Some(then));
                    assert!(is_done.recv().is_ok());
                }
            });
        }
    });
    let took = start.elapsed();
    let segments = log.segments();
    for segment in segments.iter().rev().skip(1) {
        assert!(log.retire(segment.base).is_ok());
    }
    took
}

fn scan(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("store/scan");
    group.measurement_time(Duration::from_secs(5)).sample_size(10);
    for (name, bytes) in [("40_bytes", 40), ("150_bytes", 150), ("4096_bytes", 4096)] {
        let (_dir, log) = open();
        let record = record(bytes);
        let many = record.repeat((1 << 20) / record.len());
        for _ in 0..SCANNED_BYTES / many.len() {
            log.append(&many, Level::Os, None);
            while log.pending_bytes() > 64 << 20 {
                thread::yield_now();
            }
        }
        let (done, is_done) = mpsc::channel();
        let then = Box::new(move || assert!(done.send(()).is_ok()));
        log.append(&[], Level::Always, Some(then));
        assert!(is_done.recv().is_ok());
        let expected = SCANNED_BYTES / many.len() * many.len();
        group.throughput(Throughput::Bytes(expected as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut read = 0;
                let end = log.scan(LogPosition(0), log.durable(), |at, record| {
                    black_box(at);
                    read += HEADER_BYTES + record.len();
                    ControlFlow::Continue(())
                });
                assert_eq!((read, end.damage), (expected, Vec::new()));
            });
        });
    }
}

fn record(bytes: usize) -> Vec<u8> {
    let mut record = vec![7; bytes];
    record[..4].fill(0);
    record[4..HEADER_BYTES].copy_from_slice(&((bytes - HEADER_BYTES) as u32).to_le_bytes());
    record
}

fn open() -> (TempDir, Log) {
    let dir = directory();
    let opened = Directory::open(dir.path());
    let Ok(files) = opened else { panic!("the directory is new: {opened:?}") };
    match Log::open(Arc::new(files), Settings::default(), LogPosition(0), |_| ()) {
        Ok((log, _)) => (dir, log),
        Err(error) => panic!("the directory is empty: {error}"),
    }
}

/// Not the system's one for temporary files, which may be in memory.
fn directory() -> TempDir {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let made = fs::create_dir_all(&target).and_then(|()| TempDir::new_in(target));
    match made {
        Ok(dir) => dir,
        Err(error) => panic!("no directory below target: {error}"),
    }
}

criterion_group!(benches, append, scan);
criterion_main!(benches);
