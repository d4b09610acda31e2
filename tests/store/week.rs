//! A week of steady traffic, with its clock wound forward: the disk holds as much at its end as after its first day.
//!
//! Two sessions take what is published, one at QoS 1 and one at QoS 2; retained messages are replaced; clients come, get a
//! few messages, and are gone; and one session was forgotten on the first day with messages that wait for ever. The
//! broker's store is started anew every day.
//!
//! `STORE_WEEK_RATE=N` publishes N messages every ten seconds of that week instead of one.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::ids::{LogPosition, PacketId, ProtocolVersion, Qos, SessionId};
use mailboxqtt::message::Grant;
use mailboxqtt::record::{Messages, MessagesWriter, Recipient, Record, Span, Targets, Terms};
use mailboxqtt::store::handle::Store;
use mailboxqtt::store::log::{Level, Settings};
use mailboxqtt::store::start::{Started, start};
use mailboxqtt::store::{Place, RecoveredState};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
const SEGMENT_BYTES: u64 = 1 << 20;
const PAYLOAD_BYTES: usize = 4000;
/// At a rate of 1, so that there is more than one checkpoint per day and all of it takes seconds.
const DAY_S: u64 = 86_400;
const INTERVAL_S: u64 = 10;
const DAYS: u64 = 7;
const MS: u64 = 1000;

const FORGOTTEN: SessionId = SessionId(1);
const AT_QOS_1: SessionId = SessionId(2);
const AT_QOS_2: SessionId = SessionId(3);
/// Messages that wait for the first.
const HELD_MAX: usize = 300;
/// It gets one of so many.
const HELD_PER: u64 = 28;
/// Messages on their way to a client that is connected.
const WINDOW: usize = 20;
const RETAINED_PER: u64 = 10;
const RETAINED_TOPICS: u64 = 50;
const VISITOR_PER: u64 = 100;

/// What may be there at the end of a day: 16 segments behind which old ones are emptied, the one that is written, one
/// that is ready, and four that are kept; at a start there is one more.
const LOG_BYTES_MAX: u64 = (16 + 1 + 1 + 4 + 1) * SEGMENT_BYTES;
/// While it runs: what comes until it is looked at, too.
const RUNNING_BYTES_MAX: u64 = LOG_BYTES_MAX + 4 * (16 << 20);

#[test]
fn week_of_steady_traffic_does_not_grow_the_log_while_a_forgotten_session_holds_old_messages() {
    let rate = std::env::var("STORE_WEEK_RATE").map_or(1, |rate| rate.parse().unwrap());
    let dir = TempDir::new().unwrap();
    let mut week = Week::default();
    let mut tables_bytes = Vec::new();
    let begun = Instant::now();
    for day in 0..=DAYS {
        let (started, recovered) = open(dir.path());
        week.check(&started.store, &recovered);
        if day == 0 {
            week.begin(&started.store);
        }
        if day == DAYS {
            week.forget_the_forgotten(&started.store);
        }
        week.day(&started.store, dir.path(), rate);
        assert_eq!(started.checkpointer.stop(), None);
        let (log, tables) = bytes(dir.path());
        let (messages, greatest) = (week.number, week.log_bytes_greatest);
        println!("day {day}: {messages} messages, log {log}, at most {greatest}, tables {tables}");
        assert!(log <= LOG_BYTES_MAX, "{log} bytes of log after day {day}");
        tables_bytes.push(tables);
    }
    let total = week.number * PAYLOAD_BYTES as u64;
    assert!(total > 3 * RUNNING_BYTES_MAX, "so much could be kept without anybody noticing");
    // The engine takes more as it needs it, and uses again what it has.
    let second = tables_bytes[1];
    assert!(tables_bytes.iter().all(|bytes| *bytes <= 2 * second), "{tables_bytes:?}");

    let (started, recovered) = open(dir.path());
    week.check(&started.store, &recovered);
    assert!(recovered.sessions.iter().all(|it| it.session != FORGOTTEN));
    started.checkpointer.stop();
    println!("{total} bytes of messages in {:?}", begun.elapsed());
}

fn open(dir: &Path) -> (Started, RecoveredState) {
    let settings = Settings { segment_bytes: SEGMENT_BYTES, ..Settings::default() };
    let mut started = start(dir, Level::Os, settings, |why| panic!("{why}")).unwrap();
    let nothing = RecoveredState {
        sessions: vec![],
        retained: vec![],
        greatest_session: 0,
        unreadable_rows: 0,
    };
    let recovered = std::mem::replace(&mut started.recovered, nothing);
    (started, recovered)
}

/// Of the log, whatever its files are, and of the tables.
fn bytes(dir: &Path) -> (u64, u64) {
    let len = |path: &Path| fs::metadata(path).map_or(0, |it| it.len());
    let log = fs::read_dir(dir.join("log")).unwrap();
    let log = log.map(|entry| len(&entry.unwrap().path())).sum();
    (log, len(&dir.join("state.redb")))
}

/// What has been published, and what is owed.
#[derive(Default)]
struct Week {
    number: u64,
    /// Where the messages of each session that is away are, and their numbers.
    held: Vec<(LogPosition, u64)>,
    on_their_way: VecDeque<(LogPosition, u64)>,
    at_qos_2: VecDeque<(PacketId, LogPosition, u64)>,
    id_next: u16,
    retained: BTreeMap<u64, u64>,
    log_bytes_greatest: u64,
}

impl Week {
    fn begin(&mut self, store: &Store) {
        for (session, client_id) in
            [(FORGOTTEN, "forgotten"), (AT_QOS_1, "at QoS 1"), (AT_QOS_2, "at QoS 2")]
        {
            come(store, session, client_id);
        }
        let expiry_s = u32::MAX;
        let session = FORGOTTEN;
        let gone = Record::Disconnected { session, at_ms: 0, expiry_s, is_will_withdrawn: true };
        write(store, &[gone]);
    }

    fn forget_the_forgotten(&mut self, store: &Store) {
        write(store, &[Record::SessionEnded { session: FORGOTTEN }]);
        self.held.clear();
    }

    fn day(&mut self, store: &Store, dir: &Path, rate: u64) {
        let is_last = self.held.is_empty() && self.number > 0;
        for _ in 0..rate * DAY_S / INTERVAL_S {
            let is_held =
                !is_last && self.number.is_multiple_of(HELD_PER) && self.held.len() < HELD_MAX;
            let topic = self.number / RETAINED_PER % RETAINED_TOPICS;
            let is_retained = self.number.is_multiple_of(RETAINED_PER);
            let at = self.publish(store, topic, is_retained, is_held, rate);
            if is_retained {
                self.retained.insert(topic, self.number);
            }
            if is_held {
                self.held.push((at, self.number));
            }
            self.deliver(store, at);
            if self.number.is_multiple_of(VISITOR_PER) {
                visit(store, SessionId(100 + self.number), at);
            }
            self.number += 1;
            if self.number.is_multiple_of(64) {
                self.wait_for_room(store, dir);
            }
        }
    }

    /// One message, for both who are there and perhaps for the one who is not.
    fn publish(
        &mut self,
        store: &Store,
        topic: u64,
        is_retained: bool,
        is_held: bool,
        rate: u64,
    ) -> LogPosition {
        let frame = frame(topic, self.number);
        let messages = Messages {
            version: ProtocolVersion::V311,
            qos: Qos::ExactlyOnce,
            expires: false,
            is_retained,
            received_at_ms: self.number * INTERVAL_S * MS / rate,
            publisher: None,
            count: 1,
            frames: &frame,
            targets: Targets::NONE,
        };
        let mut bytes = Vec::new();
        let mut writer = MessagesWriter::begin(&messages, &mut bytes);
        let forgotten = is_held.then_some((FORGOTTEN, Qos::AtLeastOnce));
        let others = [(AT_QOS_1, Qos::AtLeastOnce), (AT_QOS_2, Qos::ExactlyOnce)];
        for (session, qos) in forgotten.into_iter().chain(others) {
            let recipient = Recipient {
                session,
                qos,
                retain: false,
                identifiers: &[],
                share: None,
                part: None,
            };
            writer.add(&recipient, &mut bytes);
        }
        writer.end(&mut bytes);
        store.append(&bytes, None)
    }

    /// The message is sent, and the oldest that is on its way is acknowledged.
    fn deliver(&mut self, store: &Store, at: LogPosition) {
        let span = |at| Span { at, first: 0, count: 1 };
        self.on_their_way.push_back((at, self.number));
        self.id_next = self.id_next % 60_000 + 1;
        let id = PacketId::new(self.id_next).unwrap();
        self.at_qos_2.push_back((id, at, self.number));
        write(store, &[Record::Sent { session: AT_QOS_2, span: span(at), first_id: id }]);
        if self.on_their_way.len() > WINDOW {
            let (at, _) = self.on_their_way.pop_front().unwrap();
            write(store, &[Record::Done { session: AT_QOS_1, span: span(at) }]);
        }
        if self.at_qos_2.len() > WINDOW {
            let (id, ..) = self.at_qos_2.pop_front().unwrap();
            let session = AT_QOS_2;
            write(store, &[Record::Received { session, id }, Record::Completed { session, id }]);
        }
    }

    /// The week passes as fast as the disk is given back.
    fn wait_for_room(&mut self, store: &Store, dir: &Path) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (log, _) = bytes(dir);
            self.log_bytes_greatest = self.log_bytes_greatest.max(log);
            if log <= RUNNING_BYTES_MAX && !store.is_behind() {
                return;
            }
            assert!(Instant::now() < deadline, "{log} bytes of log are not given back");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything that is owed is there, in its order, and can be read.
    fn check(&self, store: &Store, recovered: &RecoveredState) {
        let number_at = |place: &Place| number_of(&store.read(place).unwrap());
        for session in &recovered.sessions {
            let waiting: Vec<u64> =
                session.waiting.iter().map(|run| number_at(&run.place)).collect();
            let sent: Vec<u64> =
                session.sent.iter().map(|sent| number_at(&sent.run.place)).collect();
            let numbers = |held: &mut dyn Iterator<Item = u64>| held.collect::<Vec<u64>>();
            let (expected_waiting, expected_sent) = match session.session {
                FORGOTTEN => (numbers(&mut self.held.iter().map(|it| it.1)), vec![]),
                AT_QOS_1 => (numbers(&mut self.on_their_way.iter().map(|it| it.1)), vec![]),
                AT_QOS_2 => (vec![], numbers(&mut self.at_qos_2.iter().map(|it| it.2))),
                other => panic!("{other:?} is gone"),
            };
            assert_eq!((waiting, sent), (expected_waiting, expected_sent), "{}", session.client_id);
        }
        let mut retained: Vec<u64> =
            recovered.retained.iter().map(|it| number_at(&it.place)).collect();
        retained.sort_unstable();
        let mut expected: Vec<u64> = self.retained.values().copied().collect();
        expected.sort_unstable();
        assert_eq!(retained, expected);
    }
}

/// A client that stays for a moment.
fn visit(store: &Store, session: SessionId, at: LogPosition) {
    come(store, session, &format!("visitor {}", session.0));
    let span = Span { at, first: 0, count: 1 };
    let gone = Record::Disconnected { session, at_ms: 1, expiry_s: 60, is_will_withdrawn: true };
    write(store, &[Record::Done { session, span }, gone, Record::SessionEnded { session }]);
}

pub(crate) fn come(store: &Store, session: SessionId, client_id: &str) {
    let qos = Qos::ExactlyOnce;
    let grant = Grant { qos, no_local: false, retain_as_published: false, identifier: None };
    let terms = Terms { expiry_s: u32::MAX, will: None };
    write(
        store,
        &[
            Record::SessionBegan { session, client_id },
            Record::Connected { session, terms },
            Record::Subscribed { session, filter: "topic/#", grant },
        ],
    );
}

fn write(store: &Store, records: &[Record<'_>]) {
    let mut bytes = Vec::new();
    records.iter().for_each(|record| record.encode(&mut bytes));
    store.append(&bytes, None);
}

/// A PUBLISH at QoS 2 whose payload begins with its number.
pub(crate) fn frame(topic: u64, number: u64) -> Vec<u8> {
    let topic = format!("topic/{topic:02}");
    let len = 2 + topic.len() + 2 + 8 + PAYLOAD_BYTES;
    let mut frame = vec![0x34, (len % 128) as u8 | 0x80, (len / 128) as u8, 0, topic.len() as u8];
    frame.extend_from_slice(topic.as_bytes());
    frame.extend_from_slice(&[0, 1]);
    frame.extend_from_slice(&number.to_be_bytes());
    frame.resize(frame.len() + PAYLOAD_BYTES, number as u8);
    frame
}

pub(crate) fn number_of(frame: &[u8]) -> u64 {
    let at = frame.len() - PAYLOAD_BYTES - 8;
    u64::from_be_bytes(frame[at..at + 8].try_into().unwrap())
}
