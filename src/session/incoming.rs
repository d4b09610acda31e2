//! Messages from the client that wait for their acknowledgement. Floor 2, owned by `Session`.
//!
//! What one read brought is a *turn*: it goes to some shards as one batch each, and every shard answers
//! with one receipt. A message is acknowledged when its turn and all turns before it are complete,
//! so acknowledgements leave in the order of the PUBLISHes [MQTT-4.6.0-2] without any sorting.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::codec::{Ack, Packet, Properties, ReasonCode};
use crate::ids::PacketId;
use crate::session::{Link, Output};

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// QoS 2 identifiers between PUBLISH and PUBREL: these are not routed again [MQTT-4.3.3-10].
    received: HashSet<PacketId, BuildHasherDefault<IdHasher>>,
    /// In the order of the PUBLISHes.
    waiting: VecDeque<Waiting>,
    /// QoS 1 messages in `waiting`.
    waiting_pubacks: usize,
    /// Receipts that are still due for each open turn.
    turns: VecDeque<usize>,
    /// Number of the first open turn; `first_turn + turns.len()` is the turn that gathers now.
    first_turn: u64,
}

/// How a message is acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// QoS 1.
    PubAck,
    /// QoS 2.
    PubRec,
}

/// Messages with consecutive identifiers that get the same answer.
#[derive(Debug)]
struct Waiting {
    turn: u64,
    first: PacketId,
    last: PacketId,
    answer: Answer,
    reason: ReasonCode,
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
    /// send those messages again. Receipts may still come and are counted as always.
    pub(super) fn detach(&mut self) {
        self.waiting.clear();
        self.waiting_pubacks = 0;
    }

    /// Notes a QoS 2 identifier.
    pub(super) fn receive(&mut self, id: PacketId) -> Novelty {
        if self.received.insert(id) { Novelty::New } else { Novelty::Repeated }
    }

    /// PUBREL: the identifier may be used for a new message. False where it was not known.
    pub(super) fn release(&mut self, id: PacketId) -> bool {
        self.received.remove(&id)
    }

    /// Messages that count against the Receive Maximum [MQTT-3.3.4-7].
    pub(super) fn unacknowledged(&self) -> usize {
        self.waiting_pubacks + self.received.len()
    }

    /// An answer is due once the present turn is complete.
    pub(super) fn await_turn(&mut self, id: PacketId, answer: Answer, reason: ReasonCode) {
        self.waiting_pubacks += usize::from(answer == Answer::PubAck);
        let turn = self.first_turn + self.turns.len() as u64;
        if let Some(newest) = self.waiting.back_mut()
            && newest.turn == turn
            && newest.answer == answer
            && newest.reason == reason
            && newest.last.next() == id
            && newest.first != id
        {
            newest.last = id;
            return;
        }
        self.waiting.push_back(Waiting { turn, first: id, last: id, answer, reason });
    }

    /// Whether the present turn has a message that must be answered.
    pub(super) fn turn_awaits_receipt(&self) -> bool {
        let turn = self.first_turn + self.turns.len() as u64;
        self.waiting.back().is_some_and(|newest| newest.turn == turn)
    }

    /// The present turn ends: it went to `shards` shards. Returns its number, which comes back with
    /// each receipt.
    pub(super) fn end_turn(&mut self, shards: usize) -> u64 {
        self.turns.push_back(shards);
        self.first_turn + self.turns.len() as u64 - 1
    }

    /// A shard owns what it got in `turn`.
    pub(super) fn accept(&mut self, turn: u64) {
        let index = turn.wrapping_sub(self.first_turn) as usize;
        if let Some(due) = self.turns.get_mut(index) {
            *due = due.saturating_sub(1);
        }
    }

    /// Answers everything that is due.
    pub(super) fn answer(&mut self, link: &Link, out: &mut Output) {
        while self.turns.pop_front_if(|due| *due == 0).is_some() {
            self.first_turn += 1;
        }
        let complete = self.first_turn;
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.turn < complete) {
            let mut id = waiting.first;
            loop {
                send_answer(id, &waiting, link, out);
                match waiting.answer {
                    Answer::PubAck => self.waiting_pubacks -= 1,
                    Answer::PubRec if waiting.reason.as_u8() >= 0x80 => {
                        self.received.remove(&id);
                    }
                    Answer::PubRec => (),
                }
                if id == waiting.last {
                    break;
                }
                id = id.next();
            }
        }
    }
}

fn send_answer(id: PacketId, waiting: &Waiting, link: &Link, out: &mut Output) {
    if waiting.reason == ReasonCode::Success {
        let first_byte = match waiting.answer {
            Answer::PubAck => 0x40,
            Answer::PubRec => 0x50,
        };
        let [high, low] = id.get().to_be_bytes();
        out.bytes.extend_from_slice(&[first_byte, 2, high, low]);
        out.tally.packets_sent += 1;
        return;
    }
    let ack = Ack { id, reason: waiting.reason, properties: Properties::EMPTY };
    let packet = match waiting.answer {
        Answer::PubAck => Packet::PubAck(ack),
        Answer::PubRec => Packet::PubRec(ack),
    };
    out.send(&packet, link);
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
