//! The client: speaks by the rules as long as nobody makes it break them, and keeps its own books.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mailboxqtt::codec::{
    Ack, Auth, Disconnect, Packet, Properties, PropertiesBuf, Property, Publish, ReasonCode,
    Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe, UnsubscribeFiltersBuf, decode,
    frame_len,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V31, V311};
use mailboxqtt::ids::{PacketId, Qos};

use super::LIMITS;
use super::answers::Routed;
use super::catalogue::Catalogue;
use super::choices::Choices;
use super::pair::{Terms, flow, pid, puback, pubcomp, pubrec, pubrel};
use super::secret::{ANSWER, METHOD};
use super::sending::{Sending, number_in};

const FILTERS: [&str; 7] = ["a/b", "#", "a/+/c", "one", "bad#", "$share/group/one", "$SYS/#"];
const FORBIDDEN_TOPIC: &str = "$SYS/forged";
/// Messages from here on are crimes: nobody counts them.
const UNCOUNTED_FROM: u32 = 1 << 30;
/// Packet identifiers from here on are not in flight, for the client counts from 1.
const STRANGE_ID_FROM: u16 = 60_000;

/// See the module comment.
#[derive(Debug)]
pub(super) struct Client {
    terms: Terms,
    /// What it publishes to.
    topics: [String; 3],
    /// Topic aliases that it has told the session of on this connection.
    aliases: BTreeSet<u16>,
    /// PUBLISH packets so far.
    publishes: u32,
    /// Encoded and not yet read by the session.
    pub(super) uplink: Vec<u8>,
    /// Written by the session and not yet read by the client.
    pub(super) downlink: Vec<u8>,
    /// The start of a packet whose end has not arrived.
    tail: Vec<u8>,
    /// What the application got, in order: QoS and number.
    got: Vec<(u8, u32)>,
    /// Messages that the client refused with its PUBREC.
    refused: BTreeSet<u32>,
    /// QoS 2 identifiers between PUBLISH and PUBREL, with the number of the message.
    received: BTreeMap<u16, u32>,
    answers: VecDeque<Reply>,
    /// In the order of the first sending.
    open: VecDeque<Open>,
    next_number: u32,
    next_id: u16,
    /// Numbers of complete messages, with the QoS.
    complete: BTreeMap<u32, u8>,
    /// Bytes of it were changed on the way: what it believes may be wrong.
    pub(super) is_corrupted: bool,
}

#[derive(Clone, Copy, Debug)]
enum Reply {
    Ack(u16),
    Rec(u16),
    Comp(u16),
}

#[derive(Clone, Copy, Debug)]
struct Open {
    id: u16,
    qos: u8,
    number: u32,
    is_released: bool,
}

impl Client {
    /// A client that publishes to `topics`, and whose packet identifiers begin with `first_id`.
    pub(super) fn new(terms: Terms, topics: [String; 3], first_id: u16) -> Self {
        Self {
            terms,
            topics,
            aliases: BTreeSet::new(),
            publishes: 0,
            uplink: Vec::new(),
            downlink: Vec::new(),
            tail: Vec::new(),
            got: Vec::new(),
            refused: BTreeSet::new(),
            received: BTreeMap::new(),
            answers: VecDeque::new(),
            open: VecDeque::new(),
            next_number: 0,
            next_id: first_id,
            complete: BTreeMap::new(),
            is_corrupted: false,
        }
    }

    /// The link is gone with everything on it. What the client has not answered it answers on the
    /// next one, or never.
    pub(super) fn disconnected(&mut self, choices: &mut Choices<'_>) {
        self.uplink.clear();
        self.downlink.clear();
        self.tail.clear();
        if !choices.one_in(3) {
            self.answers.clear();
        }
    }

    /// Sends again what is open, in the order of the first sending [MQTT-4.4.0-1].
    pub(super) fn connected(&mut self, terms: Terms) {
        self.terms = terms;
        self.aliases.clear();
        let open: Vec<Open> = self.open.iter().copied().collect();
        open.iter().for_each(|open| self.send_open(open, true));
    }

    /// Whether it has said and read everything.
    pub(super) fn is_quiet(&self) -> bool {
        self.uplink.is_empty() && self.downlink.is_empty() && self.answers.is_empty()
    }

    /// Publishes some messages by the rules.
    pub(super) fn publish(&mut self, choices: &mut Choices<'_>) {
        for _ in 0..=choices.below(4) {
            let qos = choices.below(3) as u8;
            if qos > 0 && self.open.len() >= usize::from(LIMITS.receive_max) {
                return;
            }
            let number = self.next_number;
            self.next_number += 1;
            let open = Open { id: self.free_id(), qos, number, is_released: false };
            if qos > 0 {
                self.open.push_back(open);
            }
            self.send_open(&open, false);
        }
    }

    fn free_id(&mut self) -> u16 {
        loop {
            let id = self.next_id;
            self.next_id = if id >= STRANGE_ID_FROM - 1 { 1 } else { id + 1 };
            if self.open.iter().all(|open| open.id != id) {
                return id;
            }
        }
    }

    fn send_open(&mut self, open: &Open, dup: bool) {
        if open.is_released {
            return self.send(&pubrel(open.id));
        }
        let payload = open.number.to_be_bytes();
        let delivery = flow(open.qos, open.id, dup && open.qos > 0);
        let topic = self.topic_of(open.number).to_owned();
        let (topic, alias) = self.alias(&topic);
        // Some are retained, some have properties; the same ones each time that they are sent.
        let mut list = PropertiesBuf::new();
        if open.number.is_multiple_of(3) && self.terms.version == V5 {
            list.push(Property::UserProperty { name: "number", value: "three" });
        }
        if open.number % 8 == 7 && self.terms.version == V5 && open.qos > 0 {
            // Which is wrong for some of the numbers.
            list.push(Property::PayloadFormatIndicator(true));
        }
        if let Some(alias) = alias {
            list.push(Property::TopicAlias(alias));
        }
        let properties = list.as_properties();
        let retain = open.number.is_multiple_of(5);
        let packet = Publish { topic: &topic, payload: &payload, properties, delivery, retain };
        self.send(&Packet::Publish(packet));
    }

    /// How to name a topic: every other time by its alias, when the session knows it.
    fn alias(&mut self, topic: &str) -> (String, Option<u16>) {
        self.publishes += 1;
        let at = self.topics.iter().position(|known| known == topic);
        let Some(at) = at.filter(|_| self.terms.version == V5 && self.publishes.is_multiple_of(2))
        else {
            return (topic.to_owned(), None);
        };
        let alias = at as u16 + 1;
        let is_new = self.aliases.insert(alias);
        (if is_new { topic.to_owned() } else { String::new() }, Some(alias))
    }

    /// The same one each time; some are forbidden.
    fn topic_of(&self, number: u32) -> &str {
        match number % 16 {
            15 => FORBIDDEN_TOPIC,
            _ => &self.topics[number as usize % self.topics.len()],
        }
    }

    /// Answers something that it got, mostly in order.
    pub(super) fn answer(&mut self, choices: &mut Choices<'_>) {
        let count = self.answers.len();
        let at = if choices.one_in(5) { choices.below(count) } else { 0 };
        let Some(reply) = self.answers.remove(at) else { return };
        let packet = match reply {
            Reply::Ack(id) => puback(id),
            Reply::Rec(id) if self.terms.version == V5 && choices.one_in(12) => self.refuse(id),
            Reply::Rec(id) => pubrec(id),
            Reply::Comp(id) => pubcomp(id),
        };
        self.send(&packet);
        if choices.one_in(16) {
            // A second one says nothing new.
            self.send(&packet);
        }
    }

    fn refuse<'a>(&mut self, id: u16) -> Packet<'a> {
        if let Some(number) = self.received.remove(&id) {
            self.refused.insert(number);
            self.got.retain(|(_, got)| *got != number);
        }
        let reason = ReasonCode::QuotaExceeded;
        Packet::PubRec(Ack { id: pid(id), reason, properties: Properties::EMPTY })
    }

    /// SUBSCRIBE, UNSUBSCRIBE or PINGREQ.
    pub(super) fn ask(&mut self, choices: &mut Choices<'_>) {
        let id = pid(1 + choices.below(3) as u16);
        let properties = Properties::EMPTY;
        // Many of them, and the answer is over the smallest packet size.
        let count = choices.one_of(&[1, 2, 3, 20]);
        match choices.below(4) {
            0 => {
                let mut list = PropertiesBuf::new();
                if choices.one_in(3) && self.terms.version == V5 {
                    list.push(Property::SubscriptionIdentifier(1));
                }
                let properties = list.as_properties();
                let mut filters = SubscribeFiltersBuf::new();
                for _ in 0..count {
                    let options = SubscribeOptions::new(Qos::AtLeastOnce);
                    filters.push(choices.one_of(&FILTERS), options);
                }
                let filters = filters.as_filters();
                self.send(&Packet::Subscribe(Subscribe { id, properties, filters }));
            }
            1 => {
                let mut filters = UnsubscribeFiltersBuf::new();
                for _ in 0..count {
                    filters.push(choices.one_of(&FILTERS));
                }
                let filters = filters.as_filters();
                self.send(&Packet::Unsubscribe(Unsubscribe { id, properties, filters }));
            }
            2 if self.terms.version == V5 && choices.flag() => {
                self.authenticate(ReasonCode::ReAuthenticate, b"");
            }
            _ => self.send(&Packet::PingReq),
        }
    }

    fn authenticate(&mut self, reason: ReasonCode, data: &[u8]) {
        let mut list = PropertiesBuf::new();
        list.push(Property::AuthenticationMethod(METHOD));
        list.push(Property::AuthenticationData(data));
        self.send(&Packet::Auth(Auth { reason, properties: list.as_properties() }));
    }

    /// Something that a client must not do, or need not do. It harms nobody's books.
    pub(super) fn misbehave(&mut self, choices: &mut Choices<'_>) {
        let strange_id = STRANGE_ID_FROM + choices.below(5) as u16;
        let payload = UNCOUNTED_FROM.to_be_bytes();
        let mut list = PropertiesBuf::new();
        match choices.below(13) {
            12 if self.terms.version == V5 => {
                self.authenticate(ReasonCode::ContinueAuthentication, b"no");
            }
            0 => self.send(&puback(strange_id)),
            1 => self.send(&pubrec(strange_id)),
            2 => self.send(&pubcomp(strange_id)),
            3 => self.send(&pubrel(strange_id)),
            4 => self.send(&Packet::PingResp),
            5 => {
                let (reason, properties) = (ReasonCode::Success, Properties::EMPTY);
                self.send(&Packet::Disconnect(Disconnect { reason, properties }));
            }
            6 => {
                list.push(Property::SubscriptionIdentifier(1));
                self.send_with("one", &payload, flow(0, 0, false), list.as_properties());
            }
            7 => {
                list.push(Property::TopicAlias(choices.one_of(&[1, 2, 3, 4, 100])));
                self.send_with("", &payload, flow(0, 0, false), list.as_properties());
            }
            8 => {
                let delivery = flow(choices.below(2) as u8, strange_id, false);
                self.send_with(FORBIDDEN_TOPIC, &payload, delivery, Properties::EMPTY);
            }
            9 => {
                // More than the Receive Maximum, if nobody answers in between.
                for id in STRANGE_ID_FROM..=STRANGE_ID_FROM + LIMITS.receive_max {
                    self.send_with("one", &payload, flow(1, id, false), Properties::EMPTY);
                }
            }
            10 => {
                list.push(Property::SessionExpiryInterval(choices.below(2) as u32));
                let (reason, properties) = (ReasonCode::DisconnectWithWill, list.as_properties());
                self.send(&Packet::Disconnect(Disconnect { reason, properties }));
            }
            _ => {
                let frame: &[&[u8]] = &[
                    b"\x10\x0E\0\x04MQTT\x05\x02\0\x3C\0\0\x01c",
                    b"\x20\x02\0\0",
                    b"\xF0\x00",
                    b"\x00\x00",
                    b"\xFF\xFF\xFF\xFF\xFF",
                    b"\x30\x01\0",
                ];
                self.uplink.extend_from_slice(choices.one_of(frame));
            }
        }
    }

    /// Breaks a byte that is on its way.
    pub(super) fn corrupt(&mut self, choices: &mut Choices<'_>) {
        let at = choices.below(self.uplink.len());
        if let Some(byte) = self.uplink.get_mut(at) {
            *byte ^= choices.byte();
            self.is_corrupted = true;
        }
    }

    /// Bytes of any kind.
    pub(super) fn babble(&mut self, choices: &mut Choices<'_>) {
        let count = choices.below(20);
        self.uplink.extend_from_slice(choices.bytes(count));
        self.is_corrupted = true;
    }

    fn send_with(
        &mut self,
        topic: &str,
        payload: &[u8],
        delivery: mailboxqtt::codec::Delivery,
        properties: Properties<'_>,
    ) {
        if topic.is_empty() && self.terms.version != V5 {
            return;
        }
        let packet = Publish { topic, payload, properties, delivery, retain: false };
        self.send(&Packet::Publish(packet));
    }

    fn send(&mut self, packet: &Packet<'_>) {
        packet.encode(self.terms.version, &mut self.uplink);
    }

    /// Reads the next `count` bytes of the downlink.
    pub(super) fn read(&mut self, count: usize, catalogue: &Catalogue) {
        self.tail.extend(self.downlink.drain(..count));
        let bytes = std::mem::take(&mut self.tail);
        let mut rest = &bytes[..];
        while let Ok(Some(len)) = frame_len(rest, u32::MAX)
            && let Some((frame, behind)) = rest.split_at_checked(len)
        {
            let packet = decode(frame, self.terms.version).expect("the session writes packets");
            self.take(&packet, catalogue);
            rest = behind;
        }
        self.tail = rest.to_vec();
    }

    fn take(&mut self, packet: &Packet<'_>, catalogue: &Catalogue) {
        match packet {
            Packet::Publish(publish) => self.take_publish(publish, catalogue),
            Packet::PubRel(ack) => {
                self.received.remove(&ack.id.get());
                self.answers.push_back(Reply::Comp(ack.id.get()));
            }
            Packet::PubAck(ack) => self.completed(ack.id, 1),
            Packet::PubRec(ack) if ack.reason.is_error() => self.completed(ack.id, 2),
            Packet::PubRec(ack) => {
                let id = ack.id.get();
                if let Some(open) = self.open.iter_mut().find(|open| open.id == id && open.qos == 2)
                {
                    open.is_released = true;
                    self.send(&pubrel(id));
                }
            }
            Packet::PubComp(ack) => self.completed(ack.id, 2),
            Packet::Auth(auth) if auth.reason == ReasonCode::ContinueAuthentication => {
                self.authenticate(ReasonCode::ContinueAuthentication, ANSWER);
            }
            _ => (),
        }
    }

    fn take_publish(&mut self, publish: &Publish<'_>, catalogue: &Catalogue) {
        let number = number_in(publish.payload);
        let qos = catalogue.item(number).qos;
        match publish.delivery.id().map(PacketId::get) {
            None => self.got.push((qos, number)),
            Some(id) if qos == 1 => {
                self.got.push((qos, number));
                self.answers.push_back(Reply::Ack(id));
            }
            Some(id) => {
                if self.received.insert(id, number).is_none() {
                    self.got.push((qos, number));
                }
                self.answers.push_back(Reply::Rec(id));
            }
        }
    }

    fn completed(&mut self, id: PacketId, qos: u8) {
        let at = self.open.iter().position(|open| open.id == id.get() && open.qos == qos);
        if let Some(open) = at.and_then(|at| self.open.remove(at)) {
            self.complete.insert(open.number, qos);
        }
    }

    /// The books as a subscriber: each message at least once or exactly once, in order.
    pub(super) fn check_got(&self, catalogue: &Catalogue, sending: &Sending) {
        for level in 0..=2 {
            let got = self.got.iter().filter(|(qos, _)| *qos == level).map(|(_, number)| *number);
            let got: Vec<u32> = got.collect();
            let mut first_times = got.clone();
            let mut seen = BTreeSet::new();
            first_times.retain(|number| seen.insert(*number));
            if level != 1 {
                assert_eq!(got, first_times, "duplicates at QoS {level}");
            }
            // What was refused may have come again later, if the refusal was lost.
            first_times.retain(|number| !self.refused.contains(number));
            assert!(first_times.is_sorted(), "order at QoS {level}: {first_times:?}");
            for number in 0..catalogue.len() {
                let is_due = level > 0 && catalogue.item(number).qos == level;
                let is_given_away = sending.given_away.contains(&number);
                assert!(!is_given_away || !seen.contains(&number), "{number} went to two members");
                let may_miss = is_given_away
                    || sending.left_out.contains(&number)
                    || self.refused.contains(&number);
                assert!(!is_due || may_miss || seen.contains(&number), "{number} is lost");
            }
        }
    }

    /// The books as a publisher: what was completed was routed, in order, exactly once at QoS 2, below `mount_point`.
    pub(super) fn check_published(&self, routed: &[Routed], mount_point: &str) {
        assert!(self.open.is_empty(), "not acknowledged: {:?}", self.open);
        for topic in &self.topics {
            for level in [Qos::AtLeastOnce, Qos::ExactlyOnce] {
                let whole_topic = format!("{mount_point}{topic}");
                let of_topic = routed.iter().filter(|routed| routed.topic == whole_topic);
                let of_level = of_topic.filter(|routed| routed.qos == level);
                let mut numbers: Vec<u32> = of_level
                    .map(|routed| number_in(&routed.payload))
                    .filter(|number| *number < UNCOUNTED_FROM)
                    .collect();
                if level == Qos::AtLeastOnce {
                    let mut seen = BTreeSet::new();
                    numbers.retain(|number| seen.insert(*number));
                }
                let complete = self.complete.iter().filter(|(_, qos)| **qos == level as u8);
                let complete = complete.map(|(number, _)| *number);
                let expected: Vec<u32> =
                    complete.filter(|number| self.topic_of(*number) == *topic).collect();
                let is_sure = |number: &u32| number % 8 != 7;
                numbers.retain(is_sure);
                let expected: Vec<u32> = expected.into_iter().filter(is_sure).collect();
                assert_eq!(numbers, expected, "routed to {topic} at {level:?}");
            }
        }
    }
}

/// Other terms for each connection.
pub(super) fn terms(choices: &mut Choices<'_>) -> Terms {
    let version = choices.one_of(&[V5, V311, V5, V31]);
    let keep_alive_s = choices.one_of(&[0, 0, 10, 1]);
    if version != V5 {
        return Terms { version, keep_alive_s, ..Terms::V311 };
    }
    let receive_max = choices.flag().then(|| 1 + choices.below(14) as u16);
    // Not below what the CONNACK takes.
    let packet_bytes_max = choices.flag().then(|| 20 + choices.below(80) as u32);
    let topic_alias_max = choices.one_of(&[None, None, Some(0), Some(2), Some(u16::MAX)]);
    let problem_information = choices.one_of(&[None, Some(true), Some(false)]);
    Terms {
        receive_max,
        packet_bytes_max,
        problem_information,
        topic_alias_max,
        keep_alive_s,
        ..Terms::V5
    }
}
