//! What the session has to send of what shards delivered, by the words of the standard.
//!
//! Holds for everything that is written, whether it arrives or not. All checks are exact: after each
//! complete filling of the output, everything that could be sent has been sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use mailboxqtt::codec::{Ack, Packet, PacketType, Property, Publish, PublishView, ReasonCode};
use mailboxqtt::ids::{PacketId, ProtocolVersion};
use mailboxqtt::message::Undelivered;

use super::LIMITS;
use super::catalogue::{Catalogue, Item, has_takers};
use super::pair::Terms;

/// See the module comment.
#[derive(Debug)]
pub(super) struct Sending {
    terms: Terms,
    now: Instant,
    /// What the client has learnt on this connection.
    aliases: BTreeMap<u16, String>,
    /// Delivered and never sent: QoS 0, and QoS 1 and 2.
    waiting: [VecDeque<u32>; 2],
    /// From the first PUBLISH until the session has seen the last acknowledgement, in the order of the first
    /// sending.
    open: Vec<Open>,
    /// PUBRECs so far.
    pubrecs: u32,
    /// Too large for the client when it was their turn [MQTT-3.1.2-25], or out of date.
    pub(super) left_out: BTreeSet<u32>,
    /// Given to another member of a shared subscription.
    pub(super) given_away: BTreeSet<u32>,
}

/// A message of QoS 1 or 2 in flight.
#[derive(Clone, Copy, Debug)]
struct Open {
    id: u16,
    number: u32,
    qos: u8,
    stage: Stage,
    /// Its PUBLISH was sent on this connection, or need not be sent again: it counts against the Receive
    /// Maximum.
    is_counted: bool,
    /// PUBREL has to be sent again.
    pubrel_due: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// PUBLISH was sent.
    Published,
    /// PUBREC came: PUBREL from now on. With the number of the PUBREC.
    Released(u32),
}

impl Sending {
    /// Nothing was delivered yet.
    pub(super) fn new(terms: Terms, now: Instant) -> Self {
        Self {
            terms,
            now,
            aliases: BTreeMap::new(),
            waiting: [VecDeque::new(), VecDeque::new()],
            open: Vec::new(),
            pubrecs: 0,
            left_out: BTreeSet::new(),
            given_away: BTreeSet::new(),
        }
    }

    /// The clock.
    pub(super) fn pass(&mut self, now: Instant) {
        self.now = now;
    }

    /// A connection begins: everything open has to be sent again.
    pub(super) fn attach(&mut self, terms: Terms) {
        self.terms = terms;
        self.aliases.clear();
        for open in &mut self.open {
            open.is_counted = open.stage != Stage::Published;
            open.pubrel_due = open.is_counted;
        }
    }

    /// A shard had message `number` for the client.
    pub(super) fn delivered(&mut self, number: u32, qos: u8) {
        self.waiting[usize::from(qos > 0)].push_back(number);
    }

    /// The client is away, and what waits for it by a shared subscription goes to other members, if any: all of it.
    /// Of what was sent only what was not acknowledged at QoS 1 may go, and only if the session has
    /// ended [MQTT-4.8.2-4] [MQTT-4.8.2-5].
    pub(super) fn give_away(
        &mut self,
        undelivered: &[Undelivered],
        has_ended: bool,
        catalogue: &Catalogue,
    ) {
        let mut given = BTreeSet::new();
        for run in undelivered {
            let mut frames = &run.frames[..];
            for _ in 0..run.count {
                let view = PublishView::parse(frames, run.version).expect("these are frames");
                assert!(given.insert(number_in(view.payload)), "given away twice");
                frames = &frames[view.frame_len..];
            }
            assert!(frames.is_empty());
        }
        let mut expected = BTreeSet::new();
        let share = |number: &u32| catalogue.item(*number).share.as_ref();
        for queue in &mut self.waiting {
            queue.retain(|number| {
                let is_wanted = share(number).is_some_and(has_takers);
                if is_wanted {
                    expected.insert(*number);
                }
                !is_wanted
            });
        }
        if has_ended {
            let open = self.open.iter().filter(|open| open.qos == 1).map(|open| open.number);
            expected.extend(open.filter(|number| share(number).is_some()));
        }
        assert_eq!(given, expected);
        self.given_away.append(&mut expected);
    }

    /// What has expired leaves the queues. Returns whether anything waits that will.
    pub(super) fn drop_expired(&mut self, catalogue: &Catalogue) -> bool {
        let mut will_expire = false;
        for queue in &mut self.waiting {
            queue.retain(|number| {
                let item = catalogue.item(*number);
                let has_expired = item.has_expired(self.now);
                if has_expired {
                    self.left_out.insert(*number);
                }
                will_expire |= item.expires() && !has_expired;
                !has_expired
            });
        }
        will_expire
    }

    /// Whether an identifier is in flight.
    pub(super) fn is_open(&self, id: u16) -> bool {
        self.open.iter().any(|open| open.id == id)
    }

    /// Messages in flight.
    pub(super) fn inflight(&self) -> usize {
        self.open.len()
    }

    /// The session was given an acknowledgement. Returns the PUBREL that it must answer with.
    pub(super) fn acknowledged(&mut self, kind: PacketType, ack: &Ack<'_>) -> Option<(u16, u8)> {
        let id = ack.id.get();
        let at = self.open.iter().position(|open| open.id == id);
        let refused = ack.reason.is_error();
        match (kind, at.map(|at| (at, self.open[at].qos, self.open[at].stage))) {
            (PacketType::PubAck, Some((at, 1, _)))
            | (PacketType::PubComp, Some((at, 2, Stage::Released(_)))) => {
                self.open.remove(at);
            }
            (PacketType::PubRec, Some((at, 2, Stage::Published))) if refused => {
                self.open.remove(at);
            }
            (PacketType::PubRec, Some((at, 2, stage))) if !refused => {
                let open = &mut self.open[at];
                open.is_counted = true;
                if stage == Stage::Published {
                    open.stage = Stage::Released(self.pubrecs);
                    self.pubrecs += 1;
                }
                return Some((id, ReasonCode::Success.as_u8()));
            }
            (PacketType::PubRec, _) if !refused => {
                let is_v5 = self.terms.version == ProtocolVersion::V5;
                let code = ReasonCode::PacketIdentifierNotFound.as_u8();
                return Some((id, if is_v5 { code } else { 0 }));
            }
            _ => (),
        }
        None
    }

    /// The session has written a packet of its own accord.
    pub(super) fn written(&mut self, packet: &Packet<'_>, catalogue: &Catalogue) {
        match packet {
            Packet::Publish(publish) => self.published(publish, catalogue),
            Packet::PubRel(ack) => {
                assert_eq!(ack.reason, ReasonCode::Success);
                self.released_again(ack.id.get());
            }
            other => panic!("nobody asked for {other:?}"),
        }
    }

    /// In the order of the PUBRECs, and once per connection [MQTT-4.4.0-1] [MQTT-4.6.0-4].
    fn released_again(&mut self, id: u16) {
        let due = self.open.iter_mut().filter(|open| open.pubrel_due);
        let next = due.min_by_key(|open| match open.stage {
            Stage::Published => panic!("no PUBREC came for {open:?}"),
            Stage::Released(pubrec) => pubrec,
        });
        let next = next.unwrap_or_else(|| panic!("no PUBREL is due, neither for {id}"));
        assert_eq!(next.id, id);
        next.pubrel_due = false;
    }

    fn published(&mut self, publish: &Publish<'_>, catalogue: &Catalogue) {
        let number = number_in(publish.payload);
        let item = catalogue.item(number);
        self.check_content(publish, item);
        let Some(id) = publish.delivery.id().map(PacketId::get) else {
            return self.take_waiting(0, number, catalogue);
        };
        if publish.delivery.dup() {
            let open = self.sent_again(id, catalogue);
            assert_eq!((open.number, open.qos), (number, item.qos), "identifier {id} was reused");
            return self.check_window();
        }
        self.leave_out_unsent(self.open.len(), catalogue);
        assert!(self.open.iter().all(|open| open.is_counted), "{number} before older ones");
        assert!(!self.is_open(id), "identifier {id} is in flight");
        self.take_waiting(1, number, catalogue);
        let (qos, stage) = (item.qos, Stage::Published);
        self.open.push(Open { id, number, qos, stage, is_counted: true, pubrel_due: false });
        self.check_window();
    }

    fn check_window(&self) {
        let (sent, window) = (self.sent(), self.window());
        assert!(sent <= window, "{sent} in flight, {window} allowed");
    }

    /// The message as it was published, at the QoS of the subscription.
    fn check_content(&mut self, publish: &Publish<'_>, item: &Item) {
        let topic = self.topic_of(publish);
        assert_eq!(topic, item.topic);
        assert_eq!(publish.payload, item.payload);
        assert_eq!((publish.delivery.qos() as u8, publish.retain), (item.qos, item.retain));
        let is_own = |property: &Property<'_>| !matches!(property, Property::TopicAlias(_));
        let got: Vec<_> = publish.properties.iter().filter(is_own).collect();
        let list = item.properties(self.now);
        let expected = list.as_properties().iter();
        match self.terms.version {
            ProtocolVersion::V5 => assert_eq!(got, expected.collect::<Vec<_>>()),
            ProtocolVersion::V31 | ProtocolVersion::V311 => assert_eq!(got, []),
        }
    }

    /// The topic, or what its alias stands for [MQTT-3.1.2-26].
    fn topic_of(&mut self, publish: &Publish<'_>) -> String {
        let Some(alias) = publish.properties.topic_alias() else {
            return publish.topic.to_owned();
        };
        assert!(alias <= self.terms.topic_alias_max.unwrap_or(0), "alias {alias}");
        if !publish.topic.is_empty() {
            self.aliases.insert(alias, publish.topic.to_owned());
        }
        self.aliases.get(&alias).expect("an alias stands for a topic").clone()
    }

    /// In order of the first sending, and once per connection [MQTT-4.4.0-1] [MQTT-4.6.0-1].
    fn sent_again(&mut self, id: u16, catalogue: &Catalogue) -> Open {
        let at = self.open.iter().position(|open| open.id == id);
        let at = at.unwrap_or_else(|| panic!("identifier {id} is not in flight"));
        let at = at - self.leave_out_unsent(at, catalogue);
        let before = self.open[..at].iter().find(|open| !open.is_counted);
        assert!(before.is_none(), "{before:?} was passed over by identifier {id}");
        let open = &mut self.open[at];
        assert!(!open.is_counted, "identifier {id} twice on one connection");
        assert_eq!(open.stage, Stage::Published, "identifier {id}");
        open.is_counted = true;
        *open
    }

    /// Those before index `end` that were not sent again must be too large; returns how many.
    fn leave_out_unsent(&mut self, end: usize, catalogue: &Catalogue) -> usize {
        let mut gone = 0;
        let mut at = 0;
        while at < end - gone {
            let open = self.open[at];
            if !open.is_counted && self.is_left_out(&open, catalogue) {
                self.open.remove(at);
                self.left_out.insert(open.number);
                gone += 1;
            } else {
                at += 1;
            }
        }
        gone
    }

    fn is_left_out(&self, open: &Open, catalogue: &Catalogue) -> bool {
        open.stage == Stage::Published && self.is_too_large(open.number, catalogue)
    }

    /// The next message of a queue that the client can take is `number`.
    fn take_waiting(&mut self, queue: usize, number: u32, catalogue: &Catalogue) {
        while let Some(next) = self.waiting[queue].pop_front() {
            if next == number {
                return assert!(!catalogue.item(number).has_expired(self.now));
            }
            assert!(self.is_of_no_use(next, catalogue), "{next} was passed over by {number}");
            self.left_out.insert(next);
        }
        panic!("{number} was sent before, or never delivered");
    }

    /// The session says that it has sent all that it can.
    pub(super) fn filled(&mut self, catalogue: &Catalogue) {
        assert!(self.open.iter().all(|open| !open.pubrel_due), "a PUBREL is held back");
        let mut at = 0;
        while at < self.open.len() && self.sent() < self.window() {
            let open = self.open[at];
            if open.is_counted {
                at += 1;
                continue;
            }
            assert!(self.is_left_out(&open, catalogue), "{open:?} was not sent again");
            self.open.remove(at);
            self.left_out.insert(open.number);
        }
        self.drop_useless(0, catalogue);
        if self.sent() < self.window() {
            self.drop_useless(1, catalogue);
        }
    }

    /// Nothing waits in a queue but what is not sent at all.
    fn drop_useless(&mut self, queue: usize, catalogue: &Catalogue) {
        while let Some(number) = self.waiting[queue].pop_front() {
            assert!(self.is_of_no_use(number, catalogue), "{number} is held back");
            self.left_out.insert(number);
        }
    }

    fn sent(&self) -> usize {
        self.open.iter().filter(|open| open.is_counted).count()
    }

    /// The client's Receive Maximum, or our own limit [MQTT-3.3.4-9].
    fn window(&self) -> usize {
        self.terms.receive_max.unwrap_or(u16::MAX).min(LIMITS.inflight_max).into()
    }

    /// Of what was never sent. Once sent, a message does not expire.
    fn is_of_no_use(&self, number: u32, catalogue: &Catalogue) -> bool {
        catalogue.item(number).has_expired(self.now) || self.is_too_large(number, catalogue)
    }

    /// Without a topic alias: with one that the client knows it may go out all the same.
    fn is_too_large(&self, number: u32, catalogue: &Catalogue) -> bool {
        let len = catalogue.item(number).len(self.terms.version);
        self.terms.packet_bytes_max.is_some_and(|max| len > max as usize)
    }
}

/// The number that every payload begins with.
pub(super) fn number_in(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(u32::MAX, |bytes| u32::from_be_bytes(*bytes))
}
