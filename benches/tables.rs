//! What the durable state costs: the fold of records, and everything that a start reads.
//!
//! Ids are `store/<operation>/<input>`. The fold is of what never reaches the disk: messages that are done
//! before the next flush, `WINDOW` messages later; throughput is records. The start is of sessions with
//! queues, all in the database; throughput is queued messages. Both check their results.

#![allow(missing_docs, reason = "criterion_group! generates an undocumented function")]
#![allow(clippy::unwrap_used, reason = "a benchmark may")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use mailboxqtt::ids::{LogPosition, ProtocolVersion, Qos, SessionId};
use mailboxqtt::record::{
    HEADER_BYTES, Messages, MessagesWriter, Recipient, Record, Span, Targets,
};
use mailboxqtt::store::Tables;
use tempfile::TempDir;

/// Records of messages that are not done, in the fold.
const WINDOW: usize = 100;
const PAIRS: usize = 100_000;
const SESSIONS: u64 = 100_000;
const QUEUED: u64 = 10;
const FRAME: &[u8] = b"\x32\x0e\0\x03a/b\0\x01payload";

criterion_group!(benches, fold, recover);
criterion_main!(benches);

/// Records as bytes, and where each starts.
#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    starts: Vec<usize>,
}

impl Log {
    fn begin(&mut self) -> LogPosition {
        self.starts.push(self.bytes.len());
        LogPosition(self.bytes.len() as u64)
    }

    fn record(&mut self, record: &Record<'_>) {
        self.begin();
        record.encode(&mut self.bytes);
    }

    fn messages(&mut self, session: u64) -> LogPosition {
        let at = self.begin();
        let messages = Messages {
            version: ProtocolVersion::V311,
            qos: Qos::AtLeastOnce,
            expires: false,
            is_retained: false,
            received_at_ms: 0,
            publisher: None,
            count: 1,
            frames: FRAME,
            targets: Targets::NONE,
        };
        let mut writer = MessagesWriter::begin(&messages, &mut self.bytes);
        let recipient = Recipient {
            session: SessionId(session),
            qos: Qos::AtLeastOnce,
            retain: false,
            identifiers: &[],
            share: None,
            part: None,
        };
        writer.add(&recipient, &mut self.bytes);
        writer.end(&mut self.bytes);
        at
    }

    fn began(&mut self, session: u64) {
        let client_id = format!("client-{session}");
        self.record(&Record::SessionBegan { session: SessionId(session), client_id: &client_id });
    }

    fn fold(&self, tables: &mut Tables) {
        let ends = self.starts.iter().skip(1).copied().chain([self.bytes.len()]);
        for (start, end) in self.starts.iter().zip(ends) {
            let record = &self.bytes[start + HEADER_BYTES..end];
            tables.apply(LogPosition(*start as u64), record).unwrap();
        }
    }
}

fn tables() -> (TempDir, Tables) {
    let dir = TempDir::new().unwrap();
    let (mut tables, _) = Tables::open(dir.path()).unwrap();
    tables.begin_segment(LogPosition(0));
    (dir, tables)
}

fn fold(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("store/fold");
    group.sample_size(10);
    for sessions in [1, 10_000] {
        let mut log = Log::default();
        (1..=sessions).for_each(|session| log.began(session));
        let mut open = Vec::new();
        for number in 0..PAIRS {
            let session = number as u64 % sessions + 1;
            open.push((session, log.messages(session)));
            if let Some((session, at)) = number.checked_sub(WINDOW).and_then(|done| open.get(done))
            {
                let span = Span { at: *at, first: 0, count: 1 };
                log.record(&Record::Done { session: SessionId(*session), span });
            }
        }
        group.throughput(Throughput::Elements(log.starts.len() as u64));
        group.bench_function(format!("messages_and_done_{sessions}_sessions"), |b| {
            b.iter_batched(
                tables,
                |(dir, mut tables)| {
                    log.fold(&mut tables);
                    assert_eq!(tables.live(LogPosition(0)), WINDOW as u64);
                    (dir, tables)
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn recover(bench: &mut Criterion) {
    let mut log = Log::default();
    (1..=SESSIONS).for_each(|session| log.began(session));
    for _ in 0..QUEUED {
        for session in 1..=SESSIONS {
            log.messages(session);
        }
    }
    let (dir, mut tables) = tables();
    log.fold(&mut tables);
    let end = LogPosition(log.bytes.len() as u64);
    tables.flush(end).unwrap();
    drop((tables, log));

    let mut group = bench.benchmark_group("store/recover");
    group.sample_size(10);
    group.throughput(Throughput::Elements(SESSIONS * QUEUED));
    group.bench_function("100000_sessions_1000000_messages", |b| {
        b.iter(|| {
            let (mut tables, _) = Tables::open(dir.path()).unwrap();
            let recovered = tables.recovered(end).unwrap();
            let queued: usize = recovered.sessions.iter().map(|it| it.waiting.len()).sum();
            assert_eq!(queued as u64, SESSIONS * QUEUED);
            black_box(recovered)
        });
    });
    group.finish();
}
