//! Random operations on one session, with an oracle for what the client and the shards may see.
//!
//! Both ends speak at random: the client publishes, acknowledges out of order, loses its link with
//! whatever was on it, and comes back with other terms; shards deliver, and answer in any order.
//! At the end everything is brought to rest, and the books must be even.
//!
//! `SESSION_SEED=N cargo test --test session fuzz` plays one seed again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mailboxqtt::codec::Packet;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::session::CloseReason;

use crate::pair::{
    Heard, LIMITS, Message, Pair, Receipt, Run, Terms, delivery_of, flow, puback, pubcomp, publish,
    pubrec, pubrel,
};

const SEEDS: u64 = 300;
const STEPS: usize = 400;
/// Over the packet size that some connections allow.
const LARGE_BYTES: usize = 100;
const SMALL_PACKET_BYTES_MAX: u32 = 60;
const TOPICS: [&str; 3] = ["one", "two", "three"];

#[test]
fn random_operations_lose_nothing_and_double_nothing_at_qos_2() {
    let seeds = match std::env::var("SESSION_SEED") {
        Ok(seed) => vec![seed.parse().expect("SESSION_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    };
    for seed in seeds {
        println!("SESSION_SEED={seed}");
        let mut game = Game::new(seed);
        for _ in 0..STEPS {
            game.step();
        }
        game.finish();
    }
}

struct Game {
    rng: fastrand::Rng,
    pair: Pair,
    link_is_up: bool,
    subscriber: Subscriber,
    publisher: Publisher,
    /// Receipts that shards have not given yet.
    due: Vec<Receipt>,
}

/// The client as it receives.
#[derive(Default)]
struct Subscriber {
    /// Number of the next message that a shard delivers.
    next: u32,
    /// By number: QoS of delivery, and whether it may be missing for its size.
    delivered: BTreeMap<u32, (u8, bool)>,
    /// What the application got, in order.
    got: Vec<(u8, u32)>,
    /// QoS 2 identifiers between PUBLISH and PUBREL.
    received: BTreeSet<u16>,
    answers: VecDeque<Answer>,
    /// Open from the first PUBLISH until the session has seen the last acknowledgement.
    open: BTreeMap<u16, u32>,
    /// Opened or sent again on this connection and not complete.
    unacknowledged: BTreeSet<u16>,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Ack(u16),
    Rec(u16),
    Comp(u16),
}

/// The client as it publishes.
#[derive(Default)]
struct Publisher {
    next: u32,
    /// In the order of the first sending.
    open: VecDeque<Open>,
    /// Numbers of complete messages, with the QoS.
    complete: BTreeMap<u32, u8>,
    next_id: u16,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    id: u16,
    qos: u8,
    number: u32,
    is_released: bool,
}

impl Game {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let pair = Pair::new(terms(&mut rng));
        Self {
            rng,
            pair,
            link_is_up: true,
            subscriber: Subscriber::default(),
            publisher: Publisher::default(),
            due: Vec::new(),
        }
    }

    fn step(&mut self) {
        match self.rng.u8(..100) {
            0..25 => self.deliver(),
            25..45 => self.publish(),
            45..60 => self.give_receipt(),
            60..94 => self.answer(),
            94..97 if self.link_is_up => self.lose_link(),
            _ if !self.link_is_up => self.resume(),
            _ => (),
        }
        if self.link_is_up && self.rng.u8(..10) < 7 {
            let heard = self.pair.hear();
            self.hear_all(&heard);
        }
    }

    fn deliver(&mut self) {
        let to = self.rng.u8(0..=2);
        let mut runs = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            let to = if to == 0 { 0 } else { self.rng.u8(1..=2) };
            let from = self.rng.u8(to..=2);
            let count = self.rng.u32(1..8);
            let is_large = self.rng.u8(..10) == 0;
            let payload_bytes = if is_large { LARGE_BYTES } else { 4 };
            let version = if self.rng.bool() { V5 } else { V311 };
            let first = self.subscriber.next;
            self.subscriber.next += count;
            for number in first..first + count {
                self.subscriber.delivered.insert(number, (to, is_large));
            }
            runs.push(Run { version, from, to, first, count, payload_bytes });
        }
        self.pair.deliver(delivery_of(&runs));
    }

    fn publish(&mut self) {
        if !self.link_is_up {
            return;
        }
        let room = usize::from(LIMITS.receive_max).saturating_sub(self.publisher.open.len());
        let mut payloads = Vec::new();
        for _ in 0..self.rng.usize(1..5).min(room) {
            let qos = self.rng.u8(1..=2);
            payloads.push(self.publisher.open(qos));
        }
        self.send(&payloads);
    }

    /// The client sends what is open, in one read.
    fn send(&mut self, messages: &[Open]) {
        let numbers: Vec<[u8; 4]> = messages.iter().map(|open| open.number.to_be_bytes()).collect();
        let packets: Vec<Packet<'_>> = messages
            .iter()
            .zip(&numbers)
            .map(|(open, number)| match open.is_released {
                true => pubrel(open.id),
                false => publish(topic_of(open.number), number, flow(open.qos, open.id, false)),
            })
            .collect();
        self.due.extend(self.pair.say(&packets));
        assert_eq!(self.pair.close_reason(), None);
    }

    fn give_receipt(&mut self) {
        if !self.link_is_up || self.due.is_empty() {
            return;
        }
        for _ in 0..self.rng.usize(1..=self.due.len()) {
            let receipt = self.due.swap_remove(self.rng.usize(..self.due.len()));
            // Of each message the shard may say that nobody has subscribed to its topic.
            let open = self.publisher.open.iter().map(|open| open.id);
            let is_v5 = self.pair.session.link().version == V5;
            let unmatched: Vec<u16> = open.filter(|_| is_v5 && self.rng.bool()).collect();
            self.pair.accept_unmatched(&receipt, &unmatched);
        }
    }

    fn answer(&mut self) {
        let count = self.subscriber.answers.len();
        if !self.link_is_up || count == 0 {
            return;
        }
        let at = if self.rng.u8(..5) == 0 { self.rng.usize(..count) } else { 0 };
        let answer = self.subscriber.answers.remove(at).unwrap();
        let packet = match answer {
            Answer::Ack(id) => puback(id),
            Answer::Rec(id) => pubrec(id),
            Answer::Comp(id) => pubcomp(id),
        };
        if let Answer::Ack(id) | Answer::Comp(id) = answer {
            self.subscriber.open.remove(&id);
            self.subscriber.unacknowledged.remove(&id);
        }
        self.pair.say(&[packet]);
    }

    /// The session has written `heard`; how much of it the client gets to see is chance.
    fn lose_link(&mut self) {
        let heard = self.pair.hear();
        self.check_sent(&heard);
        let arrived = self.rng.usize(0..=heard.len());
        self.arrive(&heard[..arrived]);
        self.subscriber.answers.clear();
        self.pair.session.detach(&CloseReason::Lost("gone".to_owned()));
        self.pair.requests();
        self.link_is_up = false;
    }

    fn resume(&mut self) {
        let terms = terms(&mut self.rng);
        self.resume_with(terms);
    }

    fn resume_with(&mut self, terms: Terms) {
        self.subscriber.unacknowledged.clear();
        self.pair.resume(terms, LIMITS);
        self.link_is_up = true;
        // In the order of the first sending [MQTT-4.4.0-1].
        let open: Vec<Open> = self.publisher.open.iter().copied().collect();
        self.send(&open);
    }

    fn hear_all(&mut self, heard: &[Heard]) {
        self.check_sent(heard);
        self.arrive(heard);
    }

    /// What holds for everything that is sent, whether it arrives or not.
    fn check_sent(&mut self, heard: &[Heard]) {
        let link = self.pair.session.link().clone();
        let subscriber = &mut self.subscriber;
        for packet in heard {
            match packet {
                Heard::Publish(Message { id, qos: 1..=2, dup, number }) => {
                    match subscriber.open.insert(*id, *number) {
                        Some(earlier) if !dup || earlier != *number => {
                            let large = subscriber.delivered[&earlier].1;
                            assert!(large, "identifier {id} of {earlier} used for {number}");
                        }
                        Some(_) => (),
                        None => assert!(!dup, "{number} was never sent before"),
                    }
                    subscriber.unacknowledged.insert(*id);
                    assert!(subscriber.unacknowledged.len() <= usize::from(link.send_max));
                }
                // Never held back, and counted by the messages behind it.
                Heard::PubRel(id) => drop(subscriber.unacknowledged.insert(*id)),
                _ => (),
            }
        }
    }

    fn arrive(&mut self, heard: &[Heard]) {
        let mut release = Vec::new();
        for packet in heard {
            let subscriber = &mut self.subscriber;
            match packet {
                Heard::Publish(Message { id, qos, number, .. }) => {
                    let (expected, _) = subscriber.delivered[number];
                    assert_eq!(*qos, expected);
                    let is_new = *qos < 2 || subscriber.received.insert(*id);
                    if is_new {
                        subscriber.got.push((*qos, *number));
                    }
                    match qos {
                        0 => (),
                        1 => subscriber.answers.push_back(Answer::Ack(*id)),
                        _ => subscriber.answers.push_back(Answer::Rec(*id)),
                    }
                }
                Heard::PubRel(id) => {
                    subscriber.received.remove(id);
                    subscriber.answers.push_back(Answer::Comp(*id));
                }
                Heard::PubAck(id, 0 | 0x10) => self.publisher.complete(*id, 1),
                Heard::PubRec(id, 0 | 0x10) => release.extend(self.publisher.release(*id)),
                Heard::PubComp(id) => self.publisher.complete(*id, 2),
                other => panic!("unexpected {other:?}"),
            }
        }
        if self.link_is_up {
            self.send(&release);
        }
    }

    /// Brings everything to rest and checks the books.
    fn finish(&mut self) {
        if self.link_is_up {
            self.lose_link();
        }
        self.resume_with(Terms::V5);
        loop {
            let heard = self.pair.hear();
            let is_quiet = heard.is_empty();
            self.hear_all(&heard);
            if is_quiet && self.due.is_empty() && self.subscriber.answers.is_empty() {
                break;
            }
            self.give_receipt();
            self.answer();
        }
        self.subscriber.check();
        self.publisher.check(&self.pair);
        assert_eq!(self.pair.session.inflight(), 0);
        assert_eq!(self.pair.released_messages, self.pair.charged_messages);
        assert_eq!(self.pair.released_bytes, self.pair.charged_bytes);
    }
}

impl Subscriber {
    fn check(&self) {
        for level in 0..=2 {
            let got: Vec<u32> =
                self.got.iter().filter(|(qos, _)| *qos == level).map(|(_, n)| *n).collect();
            let mut first_times = got.clone();
            let mut seen = BTreeSet::new();
            first_times.retain(|number| seen.insert(*number));
            assert!(first_times.is_sorted(), "order at QoS {level}: {first_times:?}");
            if level != 1 {
                assert_eq!(got, first_times, "duplicates at QoS {level}");
            }
            let due = self.delivered.iter().filter(|(_, (qos, _))| *qos == level);
            for (number, (_, may_miss)) in due {
                let is_lost = level > 0 && !may_miss && !seen.contains(number);
                assert!(!is_lost, "{number} lost at QoS {level}");
            }
        }
    }
}

impl Publisher {
    fn open(&mut self, qos: u8) -> Open {
        self.next_id = self.next_id % 1000 + 1;
        let open = Open { id: self.next_id, qos, number: self.next, is_released: false };
        self.next += 1;
        self.open.push_back(open);
        open
    }

    fn release(&mut self, id: u16) -> Option<Open> {
        let open = self.open.iter_mut().find(|open| open.id == id && open.qos == 2)?;
        open.is_released = true;
        Some(*open)
    }

    fn complete(&mut self, id: u16, qos: u8) {
        if let Some(at) = self.open.iter().position(|open| open.id == id && open.qos == qos) {
            let open = self.open.remove(at).unwrap();
            self.complete.insert(open.number, qos);
        }
    }

    fn check(&self, pair: &Pair) {
        assert!(self.open.is_empty(), "not acknowledged: {:?}", self.open);
        for topic in TOPICS {
            for level in 1..=2 {
                let routed = pair.routed.iter().filter(|routed| routed.topic == topic);
                let routed = routed.filter(|routed| routed.qos as u8 == level);
                let mut numbers: Vec<u32> = routed.map(|routed| routed.number).collect();
                if level == 1 {
                    let mut seen = BTreeSet::new();
                    numbers.retain(|number| seen.insert(*number));
                }
                let of_topic = self.complete.iter().filter(|(n, _)| topic_of(**n) == topic);
                let expected: Vec<u32> =
                    of_topic.filter(|(_, qos)| **qos == level).map(|(n, _)| *n).collect();
                assert_eq!(numbers, expected, "routed to {topic} at QoS {level}");
            }
        }
    }
}

fn topic_of(number: u32) -> &'static str {
    TOPICS[number as usize % TOPICS.len()]
}

fn terms(rng: &mut fastrand::Rng) -> Terms {
    if rng.bool() {
        return Terms::V311;
    }
    let receive_max = rng.bool().then(|| rng.u16(1..15));
    let packet_bytes_max = (rng.u8(..4) == 0).then_some(SMALL_PACKET_BYTES_MAX);
    Terms { receive_max, packet_bytes_max, ..Terms::V5 }
}
