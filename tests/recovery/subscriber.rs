//! A subscriber with a persistent session: subscribes once, and comes back to it after every kill.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use mailboxqtt::codec::{
    Delivery, Packet, PropertiesBuf, Property, Publish, Subscribe, SubscribeFiltersBuf,
    SubscribeOptions, Unsubscribe, UnsubscribeFiltersBuf,
};
use mailboxqtt::ids::ProtocolVersion::{self, V5};
use mailboxqtt::ids::{PacketId, Qos};

use crate::history::{Arrival, Cover, Inbox};
use crate::link::{Event, Link, Session};
use crate::message::Key;
use crate::publisher::ack;
use crate::stage::{Act, Patience, Stage, Visit};
use crate::wire::{Hello, PUBACK, PUBCOMP, PUBREC};

const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;

/// See the module comment.
pub(crate) struct Subscriber {
    pub(crate) name: String,
    pub(crate) version: ProtocolVersion,
    /// Among the clients of one shared subscription.
    pub(crate) member: u8,
    /// Of one session, or of all clients of a shared subscription.
    pub(crate) inbox: Arc<Mutex<Inbox>>,
    pub(crate) manners: Manners,
    pub(crate) rng: Rng,
    pub(crate) stage: Arc<Stage>,
    pub(crate) memory: Memory,
}

/// What makes it different from others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// MQTT 5 only.
    pub(crate) receive_max: Option<u16>,
    /// Acknowledgements that it saves up, at most.
    pub(crate) held_max: usize,
    /// It connects in one of so many lives, on average.
    pub(crate) present_in: u8,
    /// It unsubscribes, and subscribes again.
    pub(crate) wanders: bool,
}

/// What it remembers when a connection ends.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    is_established: bool,
    was_ready: bool,
    standing: Standing,
    /// QoS 2 messages that were received and not released.
    unreleased: HashMap<u16, Key>,
    /// Acknowledgements to be sent on this connection, and after how many of them.
    held: Vec<u8>,
    hold: usize,
    /// Packets to be taken before it changes its mind.
    wander_in: u32,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Standing {
    #[default]
    Out,
    /// Answers that have still to come.
    Subscribing(usize),
    In,
    Unsubscribing(usize, Request),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Request {
    First,
    /// The first one may have been taken before the kill.
    Repeated,
}

impl Subscriber {
    /// Until it has what it is owed.
    pub(crate) fn live(mut self) {
        let mut life = 0;
        while let Some(visit) = self.stage.visit_after(life) {
            life = visit.life;
            let is_present = self.rng.u8(..self.manners.present_in) == 0;
            if is_present || visit.is_last || !self.memory.was_ready {
                self.attend(&visit);
            }
        }
    }

    /// One connection.
    fn attend(&mut self, visit: &Visit) {
        let stage = self.stage.clone();
        let name = self.name.clone();
        let mut hello = Hello::persistent(self.version, &name);
        if let Some(receive_max) = self.manners.receive_max {
            hello = hello.with(Property::ReceiveMaximum(receive_max));
        }
        let session = match self.memory.is_established {
            true => Session::Established,
            false => Session::Any,
        };
        let Some((mut link, is_present)) = Link::open(&stage, visit, &hello, session) else {
            return;
        };
        self.memory.is_established = true;
        self.memory.held.clear();
        if !is_present {
            self.memory.unreleased.clear();
        }
        self.settle(visit, &mut link);
        let mut patience = Patience::new();
        loop {
            let act = stage.act();
            if act == Act::Draining && self.is_done() {
                return self.leave(visit, link);
            }
            match link.next(Duration::from_millis(10)) {
                Event::Packet(frame) => {
                    patience.renew();
                    self.take(visit, &frame, &mut link);
                    if self.memory.hold <= self.memory.held.len() / 4 {
                        self.acknowledge(&mut link);
                    }
                }
                Event::Quiet => {
                    self.acknowledge(&mut link);
                    if act != Act::Draining {
                        patience.renew();
                    } else if patience.is_at_end() {
                        let (open, owed) = (&self.memory.unreleased, self.inbox().owed_count());
                        let what = format!("nothing comes any more; {owed} are owed");
                        stage.complain(format!("{name}: {what}, {open:?} not released"));
                        return;
                    }
                }
                Event::Gone => return stage.lost(visit, &name, "its connection has ended"),
            }
        }
    }

    /// Nothing has to come any more, nothing has to be said.
    fn is_done(&self) -> bool {
        let memory = &self.memory;
        let is_settled = matches!(memory.standing, Standing::In | Standing::Out);
        let is_quiet = memory.unreleased.is_empty() && memory.held.is_empty();
        is_settled && is_quiet && self.inbox().is_satisfied()
    }

    /// Takes what comes all the same, which may be once too often, and goes.
    fn leave(&mut self, visit: &Visit, mut link: Link) {
        // What was in the mailbox before comes ahead of the second answer.
        for _ in 0..2 {
            link.send(&[0xC0, 0]);
            loop {
                match link.next(crate::stage::STALL) {
                    Event::Packet(frame) if frame[0] == 0xD0 => break,
                    Event::Packet(frame) => self.take(visit, &frame, &mut link),
                    other => {
                        self.stage.complain(format!("{}: {other:?} at the end", self.name));
                        return;
                    }
                }
            }
            self.acknowledge(&mut link);
        }
        link.disconnect();
    }

    /// Asks for what it wants and does not know to have.
    fn settle(&mut self, visit: &Visit, link: &mut Link) {
        match self.memory.standing {
            Standing::Out if self.memory.was_ready && self.rng.bool() => (),
            Standing::Out | Standing::Subscribing(_) => self.subscribe(visit, link),
            Standing::Unsubscribing(..) => self.unsubscribe(visit, link, Request::Repeated),
            Standing::In => (),
        }
        self.memory.wander_in = self.rng.u32(1..200);
    }

    /// One SUBSCRIBE per filter, because each has an identifier of its own.
    fn subscribe(&mut self, visit: &Visit, link: &mut Link) {
        let filters = self.inbox().filters.clone();
        let mut bytes = Vec::new();
        for (index, filter) in filters.iter().enumerate() {
            let mut properties = PropertiesBuf::new();
            if self.version == V5 {
                properties.push(Property::SubscriptionIdentifier(identifier(index)));
            }
            let mut list = SubscribeFiltersBuf::new();
            list.push(filter.text, SubscribeOptions::new(Qos::new(filter.qos).unwrap()));
            let (id, filters) = (packet_id(index), list.as_filters());
            let packet = Subscribe { id, properties: properties.as_properties(), filters };
            Packet::Subscribe(packet).encode(self.version, &mut bytes);
        }
        self.memory.standing = Standing::Subscribing(filters.len());
        self.covered(visit, Cover::Unknown);
        link.send(&bytes);
    }

    fn unsubscribe(&mut self, visit: &Visit, link: &mut Link, request: Request) {
        let filters = self.inbox().filters.clone();
        let mut bytes = Vec::new();
        for (index, filter) in filters.iter().enumerate() {
            let properties = PropertiesBuf::new();
            let mut list = UnsubscribeFiltersBuf::new();
            list.push(filter.text);
            let (id, filters) = (packet_id(index), list.as_filters());
            let packet = Unsubscribe { id, properties: properties.as_properties(), filters };
            Packet::Unsubscribe(packet).encode(self.version, &mut bytes);
        }
        self.memory.standing = Standing::Unsubscribing(filters.len(), request);
        self.covered(visit, Cover::Unknown);
        link.send(&bytes);
    }

    fn take(&mut self, visit: &Visit, frame: &[u8], link: &mut Link) {
        match link.decode(frame) {
            Packet::Publish(publish) => self.take_message(visit, &publish),
            Packet::PubRel(pubrel) if !pubrel.reason.is_error() => {
                // It may have been released before, and the broker does not know.
                self.memory.unreleased.remove(&pubrel.id.get());
                self.memory.held.extend(ack(PUBCOMP, pubrel.id.get()));
            }
            Packet::SubAck(suback) => {
                let index = usize::from(suback.id.get()) - 1;
                let granted = self.inbox().filters.get(index).map(|filter| filter.qos);
                if granted.is_none_or(|qos| suback.reasons != [qos]) {
                    self.stage.complain(format!("{}: {suback:?}", self.name));
                }
                if let Standing::Subscribing(left) = self.memory.standing {
                    self.memory.standing = Standing::Subscribing(left - 1);
                }
            }
            Packet::UnsubAck(unsuback) => {
                if let Standing::Unsubscribing(left, request) = self.memory.standing {
                    let is_missing = unsuback.reasons == [NO_SUBSCRIPTION_EXISTED];
                    if is_missing && request == Request::First {
                        self.stage.complain(format!("{}: its subscription is gone", self.name));
                    }
                    self.memory.standing = Standing::Unsubscribing(left - 1, request);
                }
            }
            other => self.stage.complain(format!("{}: {other:?} came", self.name)),
        }
        self.go_on(visit, link);
    }

    /// The last answer has come, or it is time for a change.
    fn go_on(&mut self, visit: &Visit, link: &mut Link) {
        match self.memory.standing {
            Standing::Subscribing(0) => {
                self.memory.standing = Standing::In;
                self.covered(visit, Cover::In);
                if !self.memory.was_ready {
                    self.memory.was_ready = true;
                    self.stage.ready();
                }
            }
            Standing::Unsubscribing(0, _) => {
                self.memory.standing = Standing::Out;
                self.covered(visit, Cover::Out);
                // Nothing comes that could be counted.
                if self.stage.act() == Act::Running && self.rng.bool() {
                    self.subscribe(visit, link);
                }
            }
            Standing::In if self.manners.wanders && self.stage.act() == Act::Running => {
                self.memory.wander_in = self.memory.wander_in.saturating_sub(1);
                if self.memory.wander_in == 0 {
                    self.memory.wander_in = self.rng.u32(1..200);
                    self.unsubscribe(visit, link, Request::First);
                }
            }
            _ => (),
        }
    }

    fn take_message(&mut self, visit: &Visit, publish: &Publish<'_>) {
        let name = &self.name;
        let Some(key) = Key::parse(publish.topic, publish.payload) else {
            let start: String = String::from_utf8_lossy(publish.payload).chars().take(60).collect();
            let what = format!("{start:?} on {} was not published like this", publish.topic);
            self.stage.complain(format!("{name}: {what}"));
            return;
        };
        self.check_identifiers(key, publish);
        let at = self.stage.now(visit.life);
        let qos = publish.delivery.qos() as u8;
        let id = publish.delivery.id().map_or(0, PacketId::get);
        let dup = publish.delivery.dup();
        let mut is_repeated = false;
        match publish.delivery {
            Delivery::AtMostOnce => (),
            Delivery::AtLeastOnce { .. } => self.memory.held.extend(ack(PUBACK, id)),
            Delivery::ExactlyOnce { .. } => {
                let before = self.memory.unreleased.insert(id, key);
                is_repeated = before == Some(key);
                if before.is_some_and(|before| before != key) {
                    let what = format!("{key} came with identifier {id} of unreleased {before:?}");
                    self.stage.complain(format!("{name}: {what}"));
                }
                if is_repeated && !dup {
                    self.stage.complain(format!("{name}: {key} was repeated without DUP"));
                }
                self.memory.held.extend(ack(PUBREC, id));
            }
        }
        let member = self.member;
        self.inbox().arrived(Arrival { key, member, at, qos, id, dup, is_repeated });
    }

    /// A message has the identifiers of all subscriptions by which it comes [MQTT-3.3.4-3].
    fn check_identifiers(&self, key: Key, publish: &Publish<'_>) {
        if self.version != V5 {
            return;
        }
        let mut found: Vec<u32> = publish.properties.subscription_identifiers().collect();
        found.sort_unstable();
        let expected: Vec<u32> =
            self.inbox().matching(publish.topic).map(|(index, _)| identifier(index)).collect();
        if found != expected {
            let what = format!("{key} has identifiers {found:?} instead of {expected:?}");
            self.stage.complain(format!("{}: {what}", self.name));
        }
    }

    fn acknowledge(&mut self, link: &mut Link) {
        if !self.memory.held.is_empty() {
            link.send(&self.memory.held);
            self.memory.held.clear();
        }
        self.memory.hold = self.rng.usize(0..=self.manners.held_max);
    }

    fn covered(&self, visit: &Visit, cover: Cover) {
        let at = self.stage.now(visit.life);
        self.inbox().covered(cover, at);
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap()
    }
}

/// Of the subscription to filter `index`.
fn identifier(index: usize) -> u32 {
    index as u32 + 1
}

fn packet_id(index: usize) -> PacketId {
    PacketId::new(index as u16 + 1).unwrap()
}
