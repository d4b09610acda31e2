//! The tables of the durable state against a plain model: any history, legal or not, cut by flushes, crashes
//! and copies at any point.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::num::NonZeroU32;

use mailboxqtt::codec::{PublishView, next_frame};
use mailboxqtt::ids::{LogPosition, PacketId, ProtocolVersion, Qos, SessionId};
use mailboxqtt::message::Grant;
use mailboxqtt::record::{
    HEADER_BYTES, Messages, MessagesWriter, Owner, OwnerRule, Recipient, Record, Span, Targets,
    Terms, Will,
};
use mailboxqtt::store::{Place, Tables};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::model::{Model, as_model, in_order};

mod cases;
mod model;

const VERSION: ProtocolVersion = ProtocolVersion::V311;

/// What happens next. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Messages {
        topic: u8,
        payloads: Vec<u8>,
        targets: Vec<To>,
        publisher: Option<u64>,
        retained: bool,
    },
    /// Any messages of any record, there or not.
    Done {
        session: u64,
        record: usize,
        first: u32,
        count: u32,
    },
    Sent {
        session: u64,
        record: usize,
        first: u32,
        count: u32,
        id: u16,
    },
    /// As a client that behaves: the first messages that wait.
    SendNext {
        session: u64,
        count: u32,
        id: u16,
    },
    /// As a client that behaves: the message that was sent first.
    FinishNext {
        session: u64,
        how: u8,
    },
    Received {
        session: u64,
        id: u16,
    },
    Completed {
        session: u64,
        id: u16,
    },
    Accepted {
        session: u64,
        first: u16,
        count: u16,
    },
    Released {
        session: u64,
        id: u16,
    },
    Began {
        session: u64,
    },
    Connected {
        session: u64,
        expiry_s: u32,
        will: Option<u8>,
    },
    Disconnected {
        session: u64,
        at_ms: u64,
        is_will_withdrawn: bool,
    },
    WillPublished {
        session: u64,
    },
    Ended {
        session: u64,
    },
    Subscribed {
        session: u64,
        filter: u8,
        qos: u8,
    },
    Unsubscribed {
        session: u64,
        filter: u8,
    },
    Owned {
        session: u64,
        user: u8,
    },
    RetainedGone {
        topic: u8,
    },
    /// Later records lie in another segment, this far behind.
    Segment {
        gap: u8,
    },
    Flush,
    /// The process is killed, the file is as it was, and the log is folded again from the beginning.
    Crash,
    /// The process is killed, and everything is asked for.
    Recover,
    /// Old segments are emptied, those of the bits; the next but one cannot be read.
    Keep {
        bits: u8,
        is_broken: bool,
    },
}

#[derive(Clone, Debug)]
struct To {
    session: u64,
    qos: u8,
    identifiers: Vec<u32>,
    is_shared: bool,
}

fn any_session() -> impl Strategy<Value = u64> {
    1..5_u64
}

/// Few, and around the end of the range.
fn any_id() -> impl Strategy<Value = u16> {
    prop_oneof![1..6_u16, 65_533..=65_535_u16]
}

fn any_count() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 1..5_u32, 1 => Just(100_000), 1 => Just(u32::MAX / 2)]
}

fn any_step() -> impl Strategy<Value = Step> {
    let session = any_session;
    let to = (session(), 1..3_u8, prop::collection::vec(1..9_u32, 0..2), any::<bool>());
    let to = to.prop_map(|(session, qos, identifiers, is_shared)| To {
        session,
        qos,
        identifiers,
        is_shared,
    });
    let messages = (
        0..3_u8,
        prop::collection::vec(0..3_u8, 1..5),
        prop::collection::vec(to, 0..4),
        prop::option::of(session()),
        any::<bool>(),
    );
    let messages = messages.prop_map(|(topic, payloads, targets, publisher, retained)| {
        Step::Messages { topic, payloads, targets, publisher, retained }
    });
    let done = (session(), 0..6_usize, 0..4_u32, any_count());
    let sent = (session(), 0..6_usize, 0..4_u32, any_count(), any_id());
    let terms = (session(), any::<u32>(), prop::option::of(any::<u8>()));
    let left = (session(), any::<u64>(), any::<bool>());
    prop_oneof![
        12 => messages,
        6 => done.prop_map(|(session, record, first, count)| Step::Done { session, record, first, count }),
        3 => sent.prop_map(|(session, record, first, count, id)| Step::Sent { session, record, first, count, id }),
        8 => (session(), 1..4_u32, any_id()).prop_map(|(session, count, id)| Step::SendNext { session, count, id }),
        10 => (session(), 0..5_u8).prop_map(|(session, how)| Step::FinishNext { session, how }),
        2 => (session(), any_id()).prop_map(|(session, id)| Step::Received { session, id }),
        4 => (session(), any_id()).prop_map(|(session, id)| Step::Completed { session, id }),
        1 => (session(), any_id(), 0..4_u16).prop_map(|(session, first, count)| Step::Accepted { session, first, count }),
        2 => (session(), any_id()).prop_map(|(session, id)| Step::Released { session, id }),
        6 => session().prop_map(|session| Step::Began { session }),
        2 => terms.prop_map(|(session, expiry_s, will)| Step::Connected { session, expiry_s, will }),
        2 => left.prop_map(|(session, at_ms, is_will_withdrawn)| Step::Disconnected { session, at_ms, is_will_withdrawn }),
        1 => session().prop_map(|session| Step::WillPublished { session }),
        1 => session().prop_map(|session| Step::Ended { session }),
        2 => (session(), 0..3_u8, 0..3_u8).prop_map(|(session, filter, qos)| Step::Subscribed { session, filter, qos }),
        1 => (session(), 0..3_u8).prop_map(|(session, filter)| Step::Unsubscribed { session, filter }),
        1 => (session(), 0..3_u8).prop_map(|(session, user)| Step::Owned { session, user }),
        1 => (0..3_u8).prop_map(|topic| Step::RetainedGone { topic }),
        3 => (0..100_u8).prop_map(|gap| Step::Segment { gap }),
        3 => Just(Step::Flush),
        2 => Just(Step::Crash),
        1 => Just(Step::Recover),
        2 => (any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(bits, is_broken)| Step::Keep { bits, is_broken }),
    ]
}

/// The tables, the model, and the log that both have read.
struct History {
    dir: TempDir,
    tables: Tables,
    model: Model,
    /// Kind and body of each record.
    log: BTreeMap<LogPosition, Vec<u8>>,
    /// Bases, in order.
    segments: Vec<LogPosition>,
    /// What was copied is not in them any more.
    emptied: BTreeSet<LogPosition>,
    end: LogPosition,
}

impl History {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (tables, set_aside) = Tables::open(dir.path()).unwrap();
        assert_eq!(set_aside, None);
        let mut history = Self {
            dir,
            tables,
            model: Model::default(),
            log: BTreeMap::new(),
            segments: Vec::new(),
            emptied: BTreeSet::new(),
            end: LogPosition(1000),
        };
        history.begin_segment(0);
        history
    }

    fn begin_segment(&mut self, gap: u8) {
        self.end.0 += u64::from(gap);
        if self.segments.last() != Some(&self.end) {
            self.segments.push(self.end);
            self.tables.begin_segment(self.end);
        }
    }

    /// Appends a record and folds it.
    fn record(&mut self, record: &[u8]) {
        let body = &record[HEADER_BYTES..];
        self.model.apply(self.end, &Record::decode(body).unwrap());
        self.tables.apply(self.end, body).unwrap();
        self.log.insert(self.end, body.to_vec());
        self.end.0 += record.len() as u64;
    }

    fn write(&mut self, record: &Record<'_>) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        self.record(&bytes);
    }

    fn step(&mut self, step: Step) {
        let session = |raw| SessionId(raw);
        match step {
            Step::Messages { topic, payloads, targets, publisher, retained } => {
                self.messages(topic, &payloads, &targets, publisher, retained);
            }
            Step::Done { session, record, first, count } => {
                let span = Span { at: self.some_record(record), first, count };
                self.write(&Record::Done { session: SessionId(session), span });
            }
            Step::Sent { session, record, first, count, id } => {
                let span = Span { at: self.some_record(record), first, count };
                let session = SessionId(session);
                self.write(&Record::Sent { session, span, first_id: id_of_raw(id) });
            }
            Step::SendNext { session, count, id } => {
                let session = SessionId(session);
                let Some(it) = self.model.sessions.get(&session) else { return };
                let Some(next) = it.messages.iter().find(|it| it.sent.is_none()) else { return };
                let span = Span { at: next.at, first: next.number, count };
                self.write(&Record::Sent { session, span, first_id: id_of_raw(id) });
            }
            Step::FinishNext { session, how } => {
                let session = SessionId(session);
                let Some(it) = self.model.sessions.get(&session) else { return };
                let sent = it.messages.iter().filter(|it| it.sent.is_some());
                let first_sent = sent.min_by_key(|it| it.sent.map(|(at, _)| (at, it.number)));
                let Some(next) = first_sent.or(it.messages.first()) else { return };
                let span = Span { at: next.at, first: next.number, count: 1 };
                let id = next.sent.map(|(_, id)| id).filter(|_| how > 0);
                let Some(id) = id else { return self.write(&Record::Done { session, span }) };
                self.write(&Record::Received { session, id });
                if how > 2 {
                    self.write(&Record::Completed { session, id });
                }
            }
            Step::Received { session: raw, id } => {
                self.write(&Record::Received { session: session(raw), id: id_of_raw(id) });
            }
            Step::Completed { session: raw, id } => {
                self.write(&Record::Completed { session: session(raw), id: id_of_raw(id) });
            }
            Step::Accepted { session: raw, first, count } => {
                let first_id = id_of_raw(first);
                let last_id = (0..count).fold(first_id, |id, _| id.next());
                self.write(&Record::Accepted { session: session(raw), first_id, last_id });
            }
            Step::Released { session: raw, id } => {
                self.write(&Record::Released { session: session(raw), id: id_of_raw(id) });
            }
            Step::Began { session: raw } => {
                let client_id = format!("client {raw}");
                self.write(&Record::SessionBegan { session: session(raw), client_id: &client_id });
            }
            Step::Connected { session: raw, expiry_s, will } => {
                let frame = [b'w', will.unwrap_or_default()];
                let delay_s = 7;
                let will = will.map(|_| Will { frame: &frame, version: VERSION, delay_s });
                let terms = Terms { expiry_s, will };
                self.write(&Record::Connected { session: session(raw), terms });
            }
            Step::Disconnected { session: raw, at_ms, is_will_withdrawn } => {
                let session = session(raw);
                let expiry_s = 60;
                self.write(&Record::Disconnected { session, at_ms, expiry_s, is_will_withdrawn });
            }
            Step::Owned { session: raw, user } => {
                let user = user.to_string();
                let rule = OwnerRule {
                    denies: false,
                    is_publish: true,
                    is_subscribe: false,
                    filter: &user,
                };
                let owner = Owner { user: Some(&user), rules: vec![rule] };
                self.write(&Record::Owned { session: session(raw), owner });
            }
            Step::WillPublished { session: raw } => {
                self.write(&Record::WillPublished { session: session(raw) });
            }
            Step::Ended { session: raw } => {
                self.write(&Record::SessionEnded { session: session(raw) });
            }
            Step::Subscribed { session: raw, filter, qos } => {
                let grant = Grant {
                    qos: Qos::new(qos).unwrap(),
                    no_local: qos == 1,
                    retain_as_published: qos == 2,
                    identifier: NonZeroU32::new(qos.into()),
                };
                let filter = format!("filter/{filter}");
                self.write(&Record::Subscribed { session: session(raw), filter: &filter, grant });
            }
            Step::Unsubscribed { session: raw, filter } => {
                let filter = format!("filter/{filter}");
                self.write(&Record::Unsubscribed { session: session(raw), filter: &filter });
            }
            Step::RetainedGone { topic } => {
                self.write(&Record::RetainedGone { topic: &format!("topic/{topic}") });
            }
            Step::Segment { gap } => self.begin_segment(gap),
            Step::Flush => self.tables.flush(self.end).unwrap(),
            Step::Crash => self.crash(),
            Step::Recover => {
                self.crash();
                self.check_recovered();
            }
            Step::Keep { bits, is_broken } => self.keep(bits, is_broken),
        }
    }

    fn messages(
        &mut self,
        topic: u8,
        payloads: &[u8],
        targets: &[To],
        publisher: Option<u64>,
        is_retained: bool,
    ) {
        let frames: Vec<u8> = payloads
            .iter()
            .enumerate()
            .flat_map(|(number, payload)| {
                let id = (self.end.0 as u16).wrapping_add(number as u16) % 5 + 1;
                frame(&format!("topic/{topic}"), id, &vec![b'p'; usize::from(*payload)])
            })
            .collect();
        let messages = Messages {
            version: VERSION,
            qos: Qos::ExactlyOnce,
            expires: topic == 1,
            is_retained,
            received_at_ms: self.end.0,
            publisher: publisher.map(SessionId),
            count: payloads.len() as u32,
            frames: &frames,
            targets: Targets::NONE,
        };
        let mut bytes = Vec::new();
        let mut writer = MessagesWriter::begin(&messages, &mut bytes);
        for to in targets {
            let ids: Vec<_> = to.identifiers.iter().filter_map(|id| NonZeroU32::new(*id)).collect();
            let share = to.is_shared.then_some("$share/group/topic");
            let (session, qos) = (SessionId(to.session), Qos::new(to.qos).unwrap());
            let retain = to.is_shared;
            let recipient =
                Recipient { session, qos, retain, identifiers: &ids, share, part: None };
            writer.add(&recipient, &mut bytes);
        }
        writer.end(&mut bytes);
        self.record(&bytes);
    }

    /// The position of a late record of messages, or of none.
    fn some_record(&self, from_the_end: usize) -> LogPosition {
        let messages = self.log.iter().rev().filter(|(_, body)| body[0] == 1);
        let mut positions = messages.map(|(at, _)| *at);
        positions.nth(from_the_end).unwrap_or(LogPosition(3))
    }

    /// What was in memory is lost; the file is as a process that was killed leaves it.
    fn crash(&mut self) {
        let dir = TempDir::new().unwrap();
        let name = "state.redb";
        fs::copy(self.dir.path().join(name), dir.path().join(name)).unwrap();
        let (tables, set_aside) = Tables::open(dir.path()).unwrap();
        assert_eq!(set_aside, None);
        assert_eq!(tables.applied(), self.tables.applied());
        (self.tables, self.dir) = (tables, dir);
        self.fold_all();
    }

    /// Folds the whole log, of which the tables know some already.
    fn fold_all(&mut self) {
        let mut segments = self.segments.iter().peekable();
        for (at, body) in &self.log {
            while let Some(base) = segments.next_if(|base| *base <= at) {
                self.tables.begin_segment(*base);
            }
            self.tables.apply(*at, body).unwrap();
        }
        segments.for_each(|base| self.tables.begin_segment(*base));
    }

    fn keep(&mut self, bits: u8, is_broken: bool) {
        let closed = &self.segments[..self.segments.len() - 1];
        let chosen = closed.iter().enumerate().filter(|(index, _)| bits >> (index % 8) & 1 == 1);
        let chosen: Vec<LogPosition> = chosen.map(|(_, base)| *base).collect();
        let broken = chosen.get(1).copied().filter(|_| is_broken);
        let log = &self.log;
        let segments = self.segments.clone();
        let base_of = |at| segments.iter().rev().find(|base| **base <= at).copied();
        let needed = self.model.live();
        let mut read = |at: LogPosition, len: u32| {
            assert!(needed.contains_key(&at), "nobody needs the record at {at:?}");
            if base_of(at) == broken {
                return Err(io::Error::other("cannot be read"));
            }
            let Ok(Record::Messages(it)) = Record::decode(&log[&at]) else { panic!("{at:?}") };
            Ok(it.frames[..len as usize].to_vec())
        };
        self.tables.flush(self.end).unwrap();
        let kept = self.tables.keep_bodies(&chosen, &mut read).unwrap();
        let broken = broken.filter(|_| kept.failed.is_some());
        self.emptied.extend(chosen.iter().filter(|base| Some(**base) != broken));
        for base in &chosen {
            let end = self.end_of(*base);
            assert_eq!(self.tables.may_go(*base, end), Some(*base) != broken, "{base:?}");
        }
    }

    fn end_of(&self, base: LogPosition) -> LogPosition {
        self.segments.iter().find(|other| **other > base).copied().unwrap_or(self.end)
    }

    fn check_live(&self) {
        let mut expected: BTreeMap<LogPosition, u64> = BTreeMap::new();
        for (at, live) in self.model.live() {
            let base = self.segments.iter().rev().find(|base| **base <= at).unwrap();
            *expected.entry(*base).or_default() += live;
        }
        for base in &self.segments {
            let live = expected.get(base).copied().unwrap_or(0);
            let live = if self.emptied.contains(base) { 0 } else { live };
            assert_eq!(self.tables.live(*base), live, "in the segment at {base:?}");
        }
    }

    /// Everything that was recovered is what the model says, and every frame can be read.
    fn check_recovered(&mut self) {
        let recovered = self.tables.recovered(self.end).unwrap();
        let bodies = self.tables.bodies();
        let read = |place: &Place| {
            let base = self.segments.iter().rev().find(|base| **base <= place.at).unwrap();
            if self.emptied.contains(base) {
                let body = bodies.read(place.at).unwrap().unwrap();
                return body.cut(place).unwrap().to_vec();
            }
            let body = &self.log[&place.at];
            let start = Messages::FRAMES_AT - HEADER_BYTES + place.offset as usize;
            place.cut(&body[start..start + place.len as usize]).unwrap().to_vec()
        };
        for session in &recovered.sessions {
            let runs = session.waiting.iter().chain(session.sent.iter().map(|it| &it.run));
            for run in runs {
                let Ok(Record::Messages(it)) = Record::decode(&self.log[&run.place.at]) else {
                    panic!("{run:?} is not in the log")
                };
                let Place { first, count, .. } = run.place;
                let all = frames(it.frames);
                let expected = all[first as usize..(first + count) as usize].concat();
                assert_eq!(read(&run.place), expected);
            }
        }
        assert_eq!(as_model(&recovered, read), in_order(self.model.clone()));
        let live = self.model.live();
        for at in self.log.keys().filter(|at| !live.contains_key(at)) {
            assert_eq!(bodies.read(*at).unwrap(), None, "nobody needs the copy of {at:?}");
        }
    }
}

fn id_of_raw(raw: u16) -> PacketId {
    PacketId::new(raw).unwrap()
}

/// A PUBLISH at QoS 2.
fn frame(topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x34, (4 + topic.len() + payload.len()) as u8, 0, topic.len() as u8];
    frame.extend_from_slice(topic.as_bytes());
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Each frame by itself.
fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some(len) = next_frame(bytes) {
        let (frame, rest) = bytes.split_at(len);
        frames.push(frame);
        bytes = rest;
    }
    frames
}

fn id_of(frame: &[u8]) -> Option<PacketId> {
    PublishView::parse(frame, VERSION)?.packet_id.and_then(PacketId::new)
}

fn topic_and_payload(frame: &[u8]) -> (String, Vec<u8>) {
    let view = PublishView::parse(frame, VERSION).unwrap();
    (String::from_utf8(view.topic.to_vec()).unwrap(), view.payload.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_history_with_crashes_and_copies_at_any_point_is_what_a_plain_model_says(
        steps in prop::collection::vec(any_step(), 1..150),
    ) {
        let mut history = History::new();
        for step in steps {
            history.step(step);
            history.check_live();
        }
        history.crash();
        history.check_live();
        history.check_recovered();
        history.check_live();
    }

    #[test]
    fn any_bytes_are_folded_or_refused(
        records in prop::collection::vec((1..17_u8, prop::collection::vec(any::<u8>(), 0..60)), 0..60),
    ) {
        let dir = TempDir::new().unwrap();
        let (mut tables, _) = Tables::open(dir.path()).unwrap();
        tables.begin_segment(LogPosition(0));
        for (kind, mut body) in records {
            body.insert(0, kind);
            let _ = tables.apply(tables.folded(), &body);
        }
        tables.recovered(LogPosition(0)).unwrap();
    }
}
