//! Members of two groups come, go, resume, end, unsubscribe and acknowledge at random, while messages are
//! published. Every message must have come to a member of each group: at QoS 1 at least once, at QoS 2
//! once, and perhaps not at all if a session ended that it was sent to [MQTT-4.8.2-5].
//!
//! `SHARING_SEED=N cargo test --test it sharing::churn` makes the choices of one round again; the
//! scheduling is the machine's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use fastrand::Rng;
use mailboxqtt::codec::{Property, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::V5;
use mailboxqtt::ids::{ProtocolVersion, Qos};

use super::publish_all;
use crate::broker::Broker;
use crate::process::{PATIENCE, unique};
use crate::wire::{Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, VERSIONS};

const STEPS: usize = 250;
const MEMBERS: usize = 4;

#[test]
fn nothing_is_lost_or_doubled_while_members_come_and_go() {
    for seed in seeds(0..6) {
        Game::new(seed, Endings::Never).play();
    }
}

#[test]
fn nothing_of_qos_1_is_lost_and_nothing_of_qos_2_doubled_while_sessions_end() {
    for seed in seeds(100..106) {
        Game::new(seed, Endings::Often).play();
    }
}

fn seeds(usual: std::ops::Range<u64>) -> Vec<u64> {
    match std::env::var("SHARING_SEED") {
        Ok(seed) => vec![seed.parse().expect("SHARING_SEED is a number")],
        Err(_) => usual.collect(),
    }
}

/// Whether sessions end while they have messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Endings {
    Never,
    Often,
}

struct Game {
    rng: Rng,
    endings: Endings,
    broker: Broker,
    stem: String,
    senders: Vec<Client>,
    /// QoS of each message so far; its number is its payload.
    published: Vec<u8>,
    groups: Vec<Group>,
}

struct Group {
    /// The first one stays subscribed and its session never ends, so that there is always somebody.
    members: Vec<Member>,
    came: Arrivals,
}

/// How often each message came, by its number.
type Arrivals = BTreeMap<usize, usize>;

/// A client as it is with and without its connection.
struct Member {
    id: String,
    filter: String,
    addr: SocketAddr,
    version: ProtocolVersion,
    receive_max: Option<u16>,
    client: Option<Client>,
    /// The broker keeps a session for it.
    has_session: bool,
    /// What is still to be said on this connection: first byte and identifier.
    unanswered: Vec<(u8, u16)>,
    /// QoS 2 messages between PUBLISH and PUBREL.
    unreleased: BTreeMap<u16, usize>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Start {
    Resume,
    /// Ends the session that there was.
    Clean,
}

impl Game {
    fn new(seed: u64, endings: Endings) -> Self {
        println!("SHARING_SEED={seed}, sessions end: {endings:?}");
        let mut rng = Rng::with_seed(seed);
        let strategies =
            ["round_robin", "random", "least_in_flight", "sticky_publisher", "sticky_topic"];
        let strategy = strategies[seed as usize % strategies.len()];
        let broker = Broker::start_configured(&format!(
            "shards = 3\ninflight_max = 6\nshared_strategy = \"{strategy}\""
        ));
        let stem = unique("churn");
        let filters = [format!("$share/g/{stem}/+"), format!("$share/h/{stem}/#")];
        let group = |filter: &String| Group {
            members: (0..MEMBERS).map(|_| Member::new(filter, broker.addr(), &mut rng)).collect(),
            came: BTreeMap::new(),
        };
        let mut groups: Vec<Group> = filters.iter().map(group).collect();
        for Group { members, came } in &mut groups {
            members[0].connect(Start::Resume);
            members[0].subscribe(came);
        }
        let senders = VERSIONS.map(|version| Client::connect(&broker, version)).into();
        Self { rng, endings, broker, stem, senders, published: Vec::new(), groups }
    }

    fn play(mut self) {
        for _ in 0..STEPS {
            self.step();
        }
        let deadline = Instant::now() + PATIENCE;
        while !self.is_complete() && Instant::now() < deadline {
            self.settle();
        }
        // And once more: what came until now could still come twice.
        self.settle();
        for group in &self.groups {
            for (number, qos) in self.published.iter().enumerate() {
                let came = group.came.get(&number).copied().unwrap_or(0);
                let is_right = match (qos, self.endings) {
                    (1, _) => came >= 1,
                    (_, Endings::Never) => came == 1,
                    (_, Endings::Often) => came <= 1,
                };
                let filter = &group.members[0].filter;
                assert!(is_right, "{number} of QoS {qos} came {came} times to {filter}");
            }
        }
        self.broker.stop();
    }

    fn step(&mut self) {
        let kind = self.rng.u8(..100);
        if kind < 30 {
            return self.publish();
        }
        let group = self.rng.usize(..self.groups.len());
        let index = self.rng.usize(..MEMBERS);
        let is_anchor = index == 0;
        let may_end = self.endings == Endings::Often && !is_anchor;
        let Group { members, came } = &mut self.groups[group];
        let member = &mut members[index];
        match kind {
            30..55 => member.read(came),
            55..65 => member.answer_some(&mut self.rng),
            65..75 => member.leave(&mut self.rng),
            75..88 => member.connect(Start::Resume),
            88..92 if may_end => member.connect(Start::Clean),
            92..95 if !is_anchor => member.unsubscribe(came),
            _ => {
                member.connect(Start::Resume);
                member.subscribe(came);
            }
        }
    }

    fn publish(&mut self) {
        let count = self.rng.usize(1..=25);
        let list: Vec<(String, u8, String)> = (0..count)
            .map(|_| {
                let (topic, qos) = (self.rng.u8(..5), self.rng.u8(1..=2));
                self.published.push(qos);
                let number = self.published.len() - 1;
                (format!("{}/{topic}", self.stem), qos, number.to_string())
            })
            .collect();
        let sender = self.rng.usize(..self.senders.len());
        publish_all(&mut self.senders[sender], &list);
    }

    fn is_complete(&self) -> bool {
        let numbers = self.published.iter().enumerate();
        let mut due = numbers.filter(|(_, qos)| **qos == 1 || self.endings == Endings::Never);
        due.all(|(number, _)| self.groups.iter().all(|group| group.came.contains_key(&number)))
    }

    /// Everybody comes back and takes what there is.
    fn settle(&mut self) {
        for Group { members, came } in &mut self.groups {
            for member in members {
                member.connect(Start::Resume);
                member.read_to_the_end(came);
            }
        }
    }
}

impl Member {
    fn new(filter: &str, addr: SocketAddr, rng: &mut Rng) -> Self {
        let version = VERSIONS[rng.usize(..2)];
        let receive_max = (version == V5 && rng.bool()).then(|| rng.u16(1..6));
        Self {
            id: unique("churn"),
            filter: filter.to_owned(),
            addr,
            version,
            receive_max,
            client: None,
            has_session: false,
            unanswered: Vec::new(),
            unreleased: BTreeMap::new(),
        }
    }

    fn connect(&mut self, start: Start) {
        if self.client.is_some() && start == Start::Resume {
            return;
        }
        let mut hello = Hello::persistent(self.version, &self.id);
        hello.clean_start = start == Start::Clean;
        if let Some(max) = self.receive_max {
            hello = hello.with(Property::ReceiveMaximum(max));
        }
        // An earlier connection, if there is one, is taken over.
        let (client, present) = hello.open(self.addr);
        assert_eq!(present, self.has_session && start == Start::Resume, "{}", self.id);
        self.unanswered.clear();
        if !present {
            self.unreleased.clear();
        }
        self.client = Some(client);
        // Before MQTT 5 a session that begins clean ends with its connection.
        self.has_session = start == Start::Resume || self.version == V5;
    }

    fn leave(&mut self, rng: &mut Rng) {
        let Some(mut client) = self.client.take() else { return };
        match rng.u8(..3) {
            0 => drop(client),
            1 => {
                client.send(&[0xE0, 0]);
                // What was sent to it before is lost to this client.
                while client.next() != Got::Closed {}
            }
            // While the earlier connection is open.
            _ => self.connect(Start::Resume),
        }
    }

    fn subscribe(&mut self, came: &mut Arrivals) {
        let Some(client) = &mut self.client else { return };
        let options = SubscribeOptions::new(Qos::ExactlyOnce);
        client.send_subscribe(&[(&self.filter, options)]);
        self.handle_until(came, |got| matches!(got, Got::SubAck(..)));
    }

    fn unsubscribe(&mut self, came: &mut Arrivals) {
        let Some(client) = &mut self.client else { return };
        client.send_unsubscribe(&[&self.filter], &[]);
        self.handle_until(came, |got| matches!(got, Got::UnsubAck(..)));
    }

    fn handle_until(&mut self, came: &mut Arrivals, is_last: impl Fn(&Got) -> bool) {
        while let Some(client) = &mut self.client {
            let got = client.next();
            if is_last(&got) {
                return;
            }
            self.handle(got, came);
        }
    }

    fn read(&mut self, came: &mut Arrivals) {
        let got = self.client.iter_mut().flat_map(Client::drain_packets).collect::<Vec<_>>();
        got.into_iter().for_each(|got| self.handle(got, came));
    }

    fn read_to_the_end(&mut self, came: &mut Arrivals) {
        loop {
            self.read(came);
            if self.unanswered.is_empty() {
                return;
            }
            self.answer(self.unanswered.len());
        }
    }

    fn handle(&mut self, got: Got, came: &mut Arrivals) {
        match got {
            Got::Publish(Message { qos, id, dup, payload, .. }) => {
                let number = str::from_utf8(&payload).unwrap().parse().unwrap();
                match self.unreleased.get(&id) {
                    Some(earlier) if qos == 2 => assert_eq!((*earlier, dup), (number, true)),
                    _ => *came.entry(number).or_default() += 1,
                }
                if qos == 2 {
                    self.unreleased.insert(id, number);
                }
                self.unanswered.push(if qos == 2 { (PUBREC, id) } else { (PUBACK, id) });
            }
            Got::Ack(PUBREL, id, 0) => {
                self.unreleased.remove(&id);
                self.unanswered.push((PUBCOMP, id));
            }
            other => panic!("{}: {other:?}", self.id),
        }
    }

    fn answer_some(&mut self, rng: &mut Rng) {
        let count = rng.usize(..=self.unanswered.len());
        self.answer(count);
    }

    fn answer(&mut self, count: usize) {
        let Some(client) = &mut self.client else { return };
        for (first_byte, id) in self.unanswered.drain(..count) {
            client.ack(first_byte, id);
        }
    }
}
