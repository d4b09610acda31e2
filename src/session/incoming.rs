//! Messages from the client that wait for their acknowledgement. Floor 2, owned by `Session`.
//!
//! What one read brought is a *turn*: it goes to some shards as one batch each, and every shard answers
//! with one receipt. A message is acknowledged when its turn and all turns before it are complete,
//! so acknowledgements leave in the order of the PUBLISHes [MQTT-4.6.0-2] without any sorting.
//!
//! # Invariants
//!
//! - The receipts of an earlier connection complete its turns and say nothing else: no answer waits for them.
//! - A QoS 2 message that is sent again gets the answer that it got, or waits for, from the first time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::codec::{Ack, Packet, Properties, ReasonCode};
use crate::ids::{PacketId, ProtocolVersion};
use crate::metrics::Shortage;
use crate::session::refusal::PublishRefusal;
use crate::session::{CloseReason, Link, Output};

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// QoS 2 identifiers between PUBLISH and PUBREL, and what is said about them: these are not routed
    /// again [MQTT-4.3.3-10].
    received: HashMap<PacketId, Verdict, BuildHasherDefault<IdHasher>>,
    /// In the order of the PUBLISHes.
    waiting: VecDeque<Waiting>,
    /// QoS 1 messages in `waiting`.
    waiting_pubacks: usize,
    /// Open turns in their order.
    turns: VecDeque<Turn>,
    /// Number of the first open turn; `first_turn + turns.len()` is the turn that gathers now.
    first_turn: u64,
    /// A message was refused and the client could not be told: nothing is answered on this connection any more.
    is_silent: bool,
}

/// A turn that shards have a part of.
#[derive(Debug)]
struct Turn {
    /// Receipts that are still due.
    due: usize,
    /// Messages of which a receipt said that nobody has subscribed to their topic.
    unmatched: Vec<PacketId>,
    /// Messages that a shard had no room for.
    refused: Vec<(PacketId, Shortage)>,
}

/// What the client is told about a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// The broker owns it.
    Accepted,
    /// The broker owns it, and nobody has subscribed to its topic.
    Unmatched,
    /// It is not routed.
    Refused(PublishRefusal),
}

/// How a message is acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// QoS 1.
    PubAck,
    /// QoS 2.
    PubRec,
    /// QoS 2, and the identifier was known already.
    RepeatedPubRec,
}

/// Messages with consecutive identifiers that get the same answer.
#[derive(Debug)]
struct Waiting {
    turn: u64,
    first: PacketId,
    last: PacketId,
    answer: Answer,
    verdict: Verdict,
}

/// Whether a QoS 2 message has to be routed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Novelty {
    /// Seen for the first time.
    New,
    /// The client sends it again because it has not seen our PUBREC.
    Repeated,
}

impl Incoming {
    /// Answers that wait for a connection that is gone are not due any more: the client will
    /// send those messages again. Receipts may still come and are counted as always. What was to be
    /// refused is forgotten with its answer, and judged anew when it comes again.
    pub(super) fn detach(&mut self) {
        self.waiting.clear();
        self.waiting_pubacks = 0;
        self.is_silent = false;
        self.received.retain(|_, verdict| !matches!(verdict, Verdict::Refused(_)));
    }

    /// These messages were routed by an earlier process.
    pub(super) fn remember(&mut self, accepted: Vec<PacketId>) {
        self.received.extend(accepted.into_iter().map(|id| (id, Verdict::Accepted)));
    }

    /// A QoS 1 message came; an answer is due once the present turn is complete.
    pub(super) fn receive_once(&mut self, id: PacketId, verdict: Verdict) {
        self.waiting_pubacks += 1;
        self.await_turn(id, Answer::PubAck, verdict);
    }

    /// A QoS 2 message came; an answer is due once the present turn is complete. A message that
    /// is known already is answered as the first time, whatever `verdict` says.
    pub(super) fn receive(&mut self, id: PacketId, verdict: Verdict) -> Novelty {
        match self.received.entry(id) {
            Entry::Vacant(place) => {
                place.insert(verdict);
                self.await_turn(id, Answer::PubRec, verdict);
                Novelty::New
            }
            Entry::Occupied(place) => {
                let earlier = *place.get();
                self.await_turn(id, Answer::RepeatedPubRec, earlier);
                Novelty::Repeated
            }
        }
    }

    /// PUBREL: the identifier may be used for a new message. False where it was not known.
    pub(super) fn release(&mut self, id: PacketId) -> bool {
        self.received.remove(&id).is_some()
    }

    /// Messages that count against the Receive Maximum [MQTT-3.3.4-7].
    pub(super) fn unacknowledged(&self) -> usize {
        self.waiting_pubacks + self.received.len()
    }

    fn await_turn(&mut self, id: PacketId, answer: Answer, verdict: Verdict) {
        let turn = self.first_turn + self.turns.len() as u64;
        if let Some(newest) = self.waiting.back_mut()
            && newest.turn == turn
            && newest.answer == answer
            && newest.verdict == verdict
            && newest.last.next() == id
            && newest.first != id
        {
            newest.last = id;
            return;
        }
        self.waiting.push_back(Waiting { turn, first: id, last: id, answer, verdict });
    }

    /// Whether the present turn has a message that must be answered.
    pub(super) fn turn_awaits_receipt(&self) -> bool {
        let turn = self.first_turn + self.turns.len() as u64;
        self.waiting.back().is_some_and(|newest| newest.turn == turn)
    }

    /// Whether a receipt is due, of this connection or of an earlier one.
    pub(super) fn awaits_receipt(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The present turn ends: it went to `shards` shards. Returns its number, which comes back with
    /// each receipt.
    pub(super) fn end_turn(&mut self, shards: usize) -> u64 {
        self.turns.push_back(Turn { due: shards, unmatched: Vec::new(), refused: Vec::new() });
        self.first_turn + self.turns.len() as u64 - 1
    }

    /// A shard owns what it got in `turn`; nobody has subscribed to the topics of `unmatched`.
    pub(super) fn accept(&mut self, turn: u64, mut unmatched: Vec<PacketId>) {
        let index = turn.wrapping_sub(self.first_turn) as usize;
        if let Some(turn) = self.turns.get_mut(index) {
            turn.due = turn.due.saturating_sub(1);
            turn.unmatched.append(&mut unmatched);
        }
    }

    /// A shard had no room for these messages of `turn`.
    pub(super) fn refuse(&mut self, turn: u64, mut refused: Vec<(PacketId, Shortage)>) {
        let index = turn.wrapping_sub(self.first_turn) as usize;
        if let Some(turn) = self.turns.get_mut(index) {
            turn.refused.append(&mut refused);
        }
    }

    /// Answers everything that is due.
    pub(super) fn answer(&mut self, link: &Link, out: &mut Output) {
        while let Some(mut turn) = self.turns.pop_front_if(|turn| turn.due == 0) {
            self.first_turn += 1;
            let complete = self.first_turn;
            turn.unmatched.sort_unstable();
            turn.refused.sort_unstable();
            for (id, shortage) in &turn.refused {
                // If nobody waits for the answer any more, it is given when the client sends the message again.
                if let Some(noted) = self.received.get_mut(id) {
                    *noted = Verdict::Refused(PublishRefusal::NoRoom(*shortage));
                }
            }
            while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.turn < complete) {
                self.answer_each(&waiting, &turn, link, out);
            }
        }
    }

    fn answer_each(&mut self, waiting: &Waiting, turn: &Turn, link: &Link, out: &mut Output) {
        let is_plain = waiting.verdict == Verdict::Accepted
            && waiting.answer != Answer::RepeatedPubRec
            && turn.unmatched.is_empty()
            && turn.refused.is_empty()
            && !self.is_silent;
        let mut id = waiting.first;
        loop {
            if is_plain {
                send_plain(id, waiting.answer, out);
            } else {
                let verdict = self.conclude(id, waiting, turn);
                self.tell(id, waiting.answer, verdict, link, out);
            }
            if waiting.answer == Answer::PubAck {
                self.waiting_pubacks -= 1;
            }
            if id == waiting.last {
                break;
            }
            id = id.next();
        }
    }

    /// Who speaks a version without a word for "no room" is told nothing, nor anything else after that: an
    /// acknowledgement would say that the broker has the message.
    fn tell(
        &mut self,
        id: PacketId,
        answer: Answer,
        verdict: Verdict,
        link: &Link,
        out: &mut Output,
    ) {
        if let Verdict::Refused(PublishRefusal::NoRoom(shortage)) = verdict
            && link.version != ProtocolVersion::V5
        {
            self.is_silent = true;
            out.hold.get_or_insert(CloseReason::NoRoom(shortage));
        }
        if !self.is_silent {
            send_verdict(id, answer, verdict, link, out);
        }
    }

    /// What is said about `id` now that the shards have spoken, and noted for the case that the client sends
    /// it again. A refused identifier is free with its PUBREC [MQTT-4.3.3-9].
    fn conclude(&mut self, id: PacketId, waiting: &Waiting, turn: &Turn) -> Verdict {
        let is_unmatched = || turn.unmatched.binary_search(&id).is_ok();
        let refused = || {
            let found = turn.refused.binary_search_by_key(&id, |(id, _)| *id).ok()?;
            let (_, shortage) = turn.refused.get(found)?;
            Some(Verdict::Refused(PublishRefusal::NoRoom(*shortage)))
        };
        let verdict = match (waiting.answer, waiting.verdict) {
            (Answer::PubAck | Answer::PubRec, Verdict::Accepted) if refused().is_some() => {
                refused().unwrap_or(Verdict::Accepted)
            }
            (Answer::PubAck, Verdict::Accepted) if is_unmatched() => Verdict::Unmatched,
            (Answer::PubRec, Verdict::Accepted) if is_unmatched() => {
                if let Some(noted) = self.received.get_mut(&id) {
                    *noted = Verdict::Unmatched;
                }
                Verdict::Unmatched
            }
            // The first one may have been answered since this one came.
            (Answer::RepeatedPubRec, Verdict::Accepted) => {
                self.received.get(&id).copied().unwrap_or(Verdict::Accepted)
            }
            (_, verdict) => verdict,
        };
        if let (Answer::PubRec | Answer::RepeatedPubRec, Verdict::Refused(_)) =
            (waiting.answer, verdict)
        {
            self.received.remove(&id);
        }
        verdict
    }
}

/// The form that says nothing but success. A client that takes our CONNACK takes these four bytes.
fn send_plain(id: PacketId, answer: Answer, out: &mut Output) {
    let first_byte = match answer {
        Answer::PubAck => 0x40,
        Answer::PubRec | Answer::RepeatedPubRec => 0x50,
    };
    let [high, low] = id.get().to_be_bytes();
    out.bytes.extend_from_slice(&[first_byte, 2, high, low]);
    out.tally.packets_sent += 1;
}

fn send_verdict(id: PacketId, answer: Answer, verdict: Verdict, link: &Link, out: &mut Output) {
    let packet = |reason| {
        let ack = Ack { id, reason, properties: Properties::EMPTY };
        match answer {
            Answer::PubAck => Packet::PubAck(ack),
            Answer::PubRec | Answer::RepeatedPubRec => Packet::PubRec(ack),
        }
    };
    match verdict {
        Verdict::Accepted => out.send(&packet(ReasonCode::Success), link),
        Verdict::Unmatched => out.send(&packet(ReasonCode::NoMatchingSubscribers), link),
        Verdict::Refused(refusal) => {
            out.send_explained(&packet(refusal.reason_code()), &refusal.to_string(), link);
        }
    }
}

/// Packet identifiers are 16 bits: there are too few to attack a table with.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u16(&mut self, id: u16) {
        // An odd constant spreads neighbours over the table and over its seven tag bits.
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
