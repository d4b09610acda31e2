//! A publisher: sends, remembers what is not acknowledged, and sends that again after a kill.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use mailboxqtt::codec::{Ack, Packet};
use mailboxqtt::ids::ProtocolVersion;

use crate::history::Sent;
use crate::link::{Event, Link, Session};
use crate::message::Key;
use crate::repertoire::{Choice, Repertoire};
use crate::stage::{Act, Patience, Stage, Visit};
use crate::wire::{Hello, PUBREL, Publication};

/// Messages that are not acknowledged to the end, at most.
const WINDOW: usize = 20;
/// Few identifiers, so that they are soon used again: one that the broker still holds by mistake is noticed.
const IDENTIFIERS: u16 = 32;
/// Messages that are sent at once, at most.
const BATCH_MAX: usize = 8;
/// From one batch to the next, at most.
const PAUSE_MAX_US: u64 = 6_000;

/// See the module comment.
pub(crate) struct Publisher {
    pub(crate) index: u8,
    pub(crate) name: &'static str,
    pub(crate) version: ProtocolVersion,
    pub(crate) kind: Kind,
    pub(crate) repertoire: Repertoire,
    pub(crate) rng: Rng,
    pub(crate) stage: Arc<Stage>,
    pub(crate) progress: Progress,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Its session survives; it sends again what was not acknowledged.
    Persistent,
    /// It begins anew with each connection, and never learns what became of the rest.
    Clean,
}

/// What it has done.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    sent: Vec<Sent>,
    in_flight: VecDeque<InFlight>,
    /// PUBRELs that go with the next batch.
    pubrels: Vec<u8>,
    last_id: u16,
    is_established: bool,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    number: u32,
    id: u16,
    awaits: Awaits,
}

#[allow(clippy::enum_variant_names, reason = "MQTT's own words")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Awaits {
    PubAck,
    PubRec,
    PubComp(Pubrel),
}

/// How often PUBREL was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pubrel {
    Once,
    /// The broker may have forgotten the identifier after the first one.
    Again,
}

impl Publisher {
    /// Until nothing is left to do; returns all that was sent.
    pub(crate) fn live(mut self) -> Vec<Sent> {
        self.stage.wait_until_running();
        let mut life = 0;
        while let Some(visit) = self.stage.visit_after(life) {
            life = visit.life;
            self.attend(&visit);
        }
        self.progress.sent
    }

    /// One connection.
    fn attend(&mut self, visit: &Visit) {
        let stage = self.stage.clone();
        let is_persistent = self.kind == Kind::Persistent;
        let hello = match self.kind {
            Kind::Persistent => Hello::persistent(self.version, self.name),
            Kind::Clean => Hello::new(self.version, self.name),
        };
        let session = match self.progress.is_established {
            true => Session::Established,
            false => Session::Any,
        };
        let Some((mut link, is_present)) = Link::open(&stage, visit, &hello, session) else {
            return;
        };
        self.progress.is_established = is_persistent;
        self.progress.pubrels.clear();
        if is_present {
            self.send_again(visit, &mut link);
        } else {
            self.progress.in_flight.clear();
        }
        let (mut due, mut patience) = (Instant::now(), Patience::new());
        loop {
            let act = stage.act();
            let now = Instant::now();
            if due <= now {
                link.send(&std::mem::take(&mut self.progress.pubrels));
                if act == Act::Running {
                    self.send_batch(visit, &mut link);
                }
                due = now + Duration::from_micros(self.rng.u64(..PAUSE_MAX_US));
            }
            if act > Act::Running && self.progress.in_flight.is_empty() {
                return link.disconnect();
            }
            match link.next(due.saturating_duration_since(now).min(Duration::from_millis(10))) {
                Event::Packet(frame) => {
                    patience.renew();
                    self.take(visit, &frame, &mut link);
                }
                Event::Quiet if self.progress.in_flight.is_empty() => patience.renew(),
                Event::Quiet if patience.is_at_end() => {
                    let open: Vec<_> = self.progress.in_flight.iter().collect();
                    stage.complain(format!("{}: no answer to {open:?}", self.name));
                    return;
                }
                Event::Quiet => (),
                Event::Gone => return stage.lost(visit, self.name, "its connection has ended"),
            }
        }
    }

    fn send_batch(&mut self, visit: &Visit, link: &mut Link) {
        let room = WINDOW - self.progress.in_flight.len();
        let mut bytes = Vec::new();
        for _ in 0..self.rng.usize(1..=BATCH_MAX).min(room) {
            let Choice { topic, qos, is_clear } = self.repertoire.next(&mut self.rng, visit.life);
            let number = self.progress.sent.len() as u32;
            let awaits = if qos == 1 { Awaits::PubAck } else { Awaits::PubRec };
            let in_flight = InFlight { number, id: self.free_id(), awaits };
            let (first, again) = (self.stage.now(visit.life), Vec::new());
            let (accepted, completed) = (None, None);
            let sent = Sent { topic, qos, is_clear, first, again, accepted, completed };
            bytes.extend(self.publish(&sent, &in_flight).bytes(self.version));
            self.progress.sent.push(sent);
            self.progress.in_flight.push_back(in_flight);
        }
        link.send(&bytes);
    }

    /// In the order in which it was sent before [MQTT-4.4.0-1] [MQTT-4.6.0-1].
    fn send_again(&mut self, visit: &Visit, link: &mut Link) {
        let mut bytes = Vec::new();
        let mut in_flight = std::mem::take(&mut self.progress.in_flight);
        for message in &mut in_flight {
            if let Awaits::PubComp(pubrel) = &mut message.awaits {
                *pubrel = Pubrel::Again;
                bytes.extend(ack(PUBREL, message.id));
                continue;
            }
            let again = self.stage.now(visit.life);
            let sent = &mut self.progress.sent[message.number as usize];
            sent.again.push(again);
            let sent = &self.progress.sent[message.number as usize];
            bytes.extend(self.publish(sent, message).dup_bytes(self.version));
        }
        self.progress.in_flight = in_flight;
        link.send(&bytes);
    }

    fn publish(&self, sent: &Sent, message: &InFlight) -> Frame {
        let key = Key { publisher: self.index, number: message.number };
        let payload = if sent.is_clear { String::new() } else { key.payload(&sent.topic) };
        let retain = self.repertoire.is_retained();
        Frame { topic: sent.topic.clone(), payload, qos: sent.qos, id: message.id, retain }
    }

    fn take(&mut self, visit: &Visit, frame: &[u8], link: &mut Link) {
        match link.decode(frame) {
            Packet::PubAck(ack) => self.answered(visit, &ack, Awaits::PubAck, link),
            Packet::PubRec(ack) => self.answered(visit, &ack, Awaits::PubRec, link),
            Packet::PubComp(ack) => self.completed(visit, &ack),
            other => self.stage.complain(format!("{}: {other:?} came", self.name)),
        }
    }

    /// PUBACK or PUBREC came.
    fn answered(&mut self, visit: &Visit, answer: &Ack<'_>, awaits: Awaits, link: &mut Link) {
        let Some(index) = self.index_of(answer, |state| state == awaits) else { return };
        let message = self.progress.in_flight[index];
        let sent = &mut self.progress.sent[message.number as usize];
        let code = answer.reason.as_u8();
        if code >= 0x80 || code == 0x10 && !self.repertoire.is_retained() {
            let key = Key { publisher: self.index, number: message.number };
            self.stage.complain(format!("{key} was answered with {:?}", answer.reason));
        }
        if code < 0x80 {
            sent.accepted = Some(self.stage.now(visit.life));
        }
        if awaits == Awaits::PubAck || code >= 0x80 {
            self.progress.in_flight.remove(index);
        } else {
            self.progress.in_flight[index].awaits = Awaits::PubComp(Pubrel::Once);
            // What was accepted and is not released outlives a kill, too.
            self.progress.pubrels.extend(ack(PUBREL, message.id));
            if self.rng.bool() {
                link.send(&std::mem::take(&mut self.progress.pubrels));
            }
        }
    }

    fn completed(&mut self, visit: &Visit, answer: &Ack<'_>) {
        let is_completed = |state| matches!(state, Awaits::PubComp(_));
        let Some(index) = self.index_of(answer, is_completed) else { return };
        let message = self.progress.in_flight[index];
        if answer.reason.is_error() && message.awaits == Awaits::PubComp(Pubrel::Once) {
            let key = Key { publisher: self.index, number: message.number };
            self.stage.complain(format!("PUBREL of {key} was answered with {:?}", answer.reason));
        }
        let at = self.stage.now(visit.life);
        self.progress.sent[message.number as usize].completed = Some(at);
        self.progress.in_flight.remove(index);
    }

    fn index_of(&self, answer: &Ack<'_>, is_meant: impl Fn(Awaits) -> bool) -> Option<usize> {
        let id = answer.id.get();
        let mut all = self.progress.in_flight.iter();
        let index = all.position(|message| message.id == id && is_meant(message.awaits));
        if index.is_none() {
            self.stage.complain(format!("{}: {answer:?} answers nothing", self.name));
        }
        index
    }

    fn free_id(&mut self) -> u16 {
        loop {
            self.progress.last_id = self.progress.last_id % IDENTIFIERS + 1;
            let id = self.progress.last_id;
            if self.progress.in_flight.iter().all(|message| message.id != id) {
                return id;
            }
        }
    }
}

/// A PUBLISH before it is bytes.
struct Frame {
    topic: Arc<str>,
    payload: String,
    qos: u8,
    id: u16,
    retain: bool,
}

impl Frame {
    fn bytes(&self, version: ProtocolVersion) -> Vec<u8> {
        self.publication().bytes(version)
    }

    fn dup_bytes(&self, version: ProtocolVersion) -> Vec<u8> {
        self.publication().dup().bytes(version)
    }

    fn publication(&self) -> Publication<'_> {
        let publication = Publication::new(&self.topic, &self.payload).qos(self.qos, self.id);
        Publication { retain: self.retain, ..publication }
    }
}

/// An acknowledgement with nothing but its identifier.
pub(crate) fn ack(first_byte: u8, id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [first_byte, 2, high, low]
}
