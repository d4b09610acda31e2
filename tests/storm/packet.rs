//! Random packets: as the standard wants them, as it forbids them, damaged, and bytes that are none.
//!
//! Nothing here makes a `$` by chance: topics that begin with one could not be found again and cleared. Only
//! filters of shared subscriptions have one, see [`hidden_topics`].

use std::collections::HashMap;
use std::ops::RangeInclusive;

use fastrand::Rng;
use mailboxqtt::codec::{PropertiesBuf, Property, RetainHandling, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::{V5, V31, V311};
use mailboxqtt::ids::{ProtocolVersion, Qos};

use crate::wire::{Hello, Publication, frame, property_list, string};

/// Client identifiers that all connections share, so that they take one another's sessions over.
const CLIENT_IDS: usize = 60;
/// Of the topics `storm/<letter>/<number>`.
const LETTERS: RangeInclusive<char> = 'a'..='e';
const NUMBERS: u8 = 20;
/// Not valid as filters, but as topics.
const MALFORMED_SHARED: [&str; 2] = ["$share//x", "$share/x"];
/// The broker takes as many.
const ALIASES: u16 = 64;

/// The client identifiers of well-formed CONNECTs, without those that the broker assigns.
pub(crate) fn client_ids() -> impl Iterator<Item = String> {
    (0..CLIENT_IDS).map(client_id)
}

/// Topics that no subscription finds, and that are published to all the same: behind a packet that was cut short, the
/// broker may take part of a SUBSCRIBE for a PUBLISH whose topic is the filter. Twice in 300,000 connections.
pub(crate) fn hidden_topics() -> impl Iterator<Item = String> {
    let places = LETTERS.flat_map(|letter| (0..NUMBERS).map(move |number| (letter, number)));
    let valid = places.map(|(letter, number)| shared_filter(letter, number));
    valid.chain(MALFORMED_SHARED.map(str::to_owned))
}

fn shared_filter(letter: char, number: u8) -> String {
    format!("$share/crew-{letter}/storm/{letter}/{number}")
}

fn client_id(number: usize) -> String {
    format!("storm-{number}")
}

/// Makes the packets of one connection.
#[derive(Debug)]
pub(crate) struct Maker {
    pub(crate) rng: Rng,
    pub(crate) version: ProtocolVersion,
    /// What a client must not be sent more than.
    pub(crate) packet_bytes_max: usize,
    next_id: u16,
    aliases: HashMap<u16, String>,
}

impl Maker {
    pub(crate) fn new(rng: Rng) -> Self {
        let packet_bytes_max = usize::MAX;
        Self { rng, version: V5, packet_bytes_max, next_id: 1, aliases: HashMap::new() }
    }

    /// `percent` times of a hundred.
    pub(crate) fn chance(&mut self, percent: u8) -> bool {
        self.rng.u8(..100) < percent
    }

    /// A well-formed CONNECT. What follows is in its version.
    pub(crate) fn connect(&mut self) -> Vec<u8> {
        self.version = *self.pick(&[V31, V311, V311, V5, V5, V5, V5]);
        let id = match self.rng.u8(..8) {
            0 => String::new(),
            _ => client_id(self.rng.usize(..CLIENT_IDS)),
        };
        let (topic, prefix) = (self.topic(), self.text());
        let mut hello = Hello::new(self.version, &id);
        hello.clean_start = self.rng.bool();
        hello.keep_alive_s = *self.pick(&[0, 0, 1, 60]);
        if self.chance(40) {
            hello = hello.will(&topic, &prefix, self.rng.u8(..3), self.chance(30));
        }
        if self.chance(10) {
            hello = hello.user(&prefix, prefix.as_bytes());
        }
        if self.version == V5 {
            hello.properties = self.connect_properties();
            hello.will_properties = self.message_properties();
            hello.will_properties.push(Property::WillDelayInterval(self.rng.u32(..4)));
            let max = hello.properties.as_properties().maximum_packet_size();
            self.packet_bytes_max = max.map_or(usize::MAX, |max| max as usize);
        }
        hello.bytes()
    }

    fn connect_properties(&mut self) -> PropertiesBuf {
        let mut properties = PropertiesBuf::new();
        if self.chance(70) {
            let expiry = *self.pick(&[0, 1, 2, 5, u32::MAX]);
            properties.push(Property::SessionExpiryInterval(expiry));
        }
        if self.chance(50) {
            properties.push(Property::ReceiveMaximum(self.rng.u16(1..50)));
        }
        if self.chance(20) {
            properties.push(Property::MaximumPacketSize(self.rng.u32(20..2000)));
        }
        if self.chance(50) {
            properties.push(Property::TopicAliasMaximum(self.rng.u16(..8)));
        }
        if self.chance(20) {
            properties.push(Property::RequestResponseInformation(self.rng.bool()));
        }
        if self.chance(20) {
            properties.push(Property::RequestProblemInformation(self.rng.bool()));
        }
        if self.chance(10) {
            properties.push(Property::AuthenticationMethod("SCRAM-SHA-256"));
            let first: &[u8] = match self.rng.u8(..3) {
                0 => b"n,,n=alice,r=storm",
                1 => b"n,,n=bob,r=storm",
                _ => b"no,message",
            };
            properties.push(Property::AuthenticationData(first));
        }
        self.user_properties(&mut properties);
        properties
    }

    /// A packet that a client may send now, if it keeps to the limits by chance.
    pub(crate) fn legal(&mut self) -> Vec<u8> {
        match self.rng.u8(..100) {
            0..=59 => self.publish(),
            60..=79 => self.subscribe(),
            80..=86 => self.unsubscribe(),
            87..=91 => vec![0xC0, 0],
            92 => self.disconnect(),
            _ => (0..self.rng.u8(5..30)).flat_map(|_| self.small_publish()).collect(),
        }
    }

    fn publish(&mut self) -> Vec<u8> {
        let size = match self.rng.u32(..5_000) {
            0 => self.rng.usize(..1 << 20),
            1..=10 => self.rng.usize(..1 << 17),
            11..=500 => self.rng.usize(..1 << 12),
            _ => self.rng.usize(..1 << 6),
        };
        self.publish_of(size)
    }

    fn small_publish(&mut self) -> Vec<u8> {
        let size = self.rng.usize(..64);
        self.publish_of(size)
    }

    fn publish_of(&mut self, size: usize) -> Vec<u8> {
        let payload = vec![self.rng.u8(b'a'..=b'z'); size];
        let (mut topic, mut properties) = (self.topic(), PropertiesBuf::new());
        if self.version == V5 {
            properties = self.message_properties();
            if self.chance(20) {
                let alias = self.rng.u16(1..=ALIASES);
                properties.push(Property::TopicAlias(alias));
                if self.rng.bool() && self.aliases.contains_key(&alias) {
                    topic.clear();
                } else {
                    self.aliases.insert(alias, topic.clone());
                }
            }
        }
        let (qos, id, retain) = (self.rng.u8(..3), self.fresh_id(), self.chance(10));
        let publication = Publication::new(&topic, &payload).qos(qos, id);
        Publication { retain, properties, dup: qos > 0 && self.chance(5), ..publication }
            .bytes(self.version)
    }

    fn message_properties(&mut self) -> PropertiesBuf {
        let mut properties = PropertiesBuf::new();
        if self.chance(30) {
            properties.push(Property::MessageExpiryInterval(self.rng.u32(..3)));
        }
        if self.chance(10) {
            properties.push(Property::PayloadFormatIndicator(self.rng.bool()));
            properties.push(Property::ContentType(&self.text()));
        }
        if self.chance(10) {
            properties.push(Property::ResponseTopic(&self.topic()));
            properties.push(Property::CorrelationData(&self.bytes(20)));
        }
        self.user_properties(&mut properties);
        properties
    }

    fn user_properties(&mut self, properties: &mut PropertiesBuf) {
        while self.chance(20) {
            properties.push(Property::UserProperty { name: &self.text(), value: &self.text() });
        }
    }

    fn subscribe(&mut self) -> Vec<u8> {
        let mut parts = self.fresh_id().to_be_bytes().to_vec();
        if self.version == V5 {
            let identifier = Property::SubscriptionIdentifier(self.rng.u32(1..100));
            parts.extend(if self.chance(40) { property_list(&[identifier]) } else { vec![0] });
        }
        for _ in 0..self.rng.u8(1..5) {
            parts.extend(string(self.filter()));
            parts.push(self.options());
        }
        frame(0x82, &[&parts])
    }

    fn options(&mut self) -> u8 {
        let mut options = SubscribeOptions::new(Qos::new(self.rng.u8(..3)).unwrap());
        if self.version == V5 {
            options.no_local = self.chance(10);
            options.retain_as_published = self.rng.bool();
            let handling =
                [RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend];
            options.retain_handling = *self.pick(&handling);
        }
        let SubscribeOptions { qos, no_local, retain_as_published, retain_handling } = options;
        let flags = u8::from(no_local) << 2 | u8::from(retain_as_published) << 3;
        qos as u8 | flags | (retain_handling as u8) << 4
    }

    fn unsubscribe(&mut self) -> Vec<u8> {
        let mut parts = self.fresh_id().to_be_bytes().to_vec();
        if self.version == V5 {
            parts.push(0);
        }
        for _ in 0..self.rng.u8(1..5) {
            parts.extend(string(self.filter()));
        }
        frame(0xA2, &[&parts])
    }

    fn disconnect(&mut self) -> Vec<u8> {
        if self.version != V5 || self.rng.bool() {
            return vec![0xE0, 0];
        }
        let code = *self.pick(&[0, 0x04, 0x80, 0x82]);
        // Who had none may not begin one here.
        let expiry = Property::SessionExpiryInterval(self.rng.u32(..3));
        frame(0xE0, &[&[code], &property_list(&[expiry])])
    }

    /// An answer to AUTH, or the beginning of a new authentication.
    pub(crate) fn auth(&mut self, code: u8, data: &[u8]) -> Vec<u8> {
        let list =
            [Property::AuthenticationMethod("SCRAM-SHA-256"), Property::AuthenticationData(data)];
        frame(0xF0, &[&[code], &property_list(&list)])
    }

    /// An acknowledgement; mostly a success where a version can say anything else.
    pub(crate) fn ack(&mut self, first_byte: u8, id: u16) -> Vec<u8> {
        let id = id.to_be_bytes();
        if self.version != V5 || self.chance(80) {
            return frame(first_byte, &[&id]);
        }
        let codes: &[u8] = match first_byte {
            0x62 | 0x70 => &[0, 0x92],
            _ => &[0, 0x10, 0x80, 0x83, 0x97],
        };
        frame(first_byte, &[&id, &[*self.pick(codes)]])
    }

    /// Whole packets that the standard forbids a client to send now, or ever.
    pub(crate) fn illegal(&mut self) -> Vec<u8> {
        let id = self.rng.u16(..);
        let [high, low] = id.to_be_bytes();
        let topic = string(self.topic());
        match self.rng.u8(..21) {
            // Of another maker: this connection stays what it is.
            0 => Self::new(self.rng.fork()).connect(),
            1 => vec![0x20, 2, 0, 0],
            2 => frame(0x90, &[&[high, low], &[0]]),
            3 => vec![0xD0, 0],
            4 => frame(0x36, &[&topic, &[high, low], b"text"]),
            5 => frame(0x32, &[&topic, &[0, 0], &[0], b"text"]),
            6 => frame(0x30, &[&string("storm/+/#"), &[0], b"text"]),
            7 => frame(0x30, &[&string(b"storm/\xC3\x28"), &[0], b"text"]),
            8 => frame(0x30, &[&string(b"storm/\0"), &[0], b"text"]),
            // Aliases that cannot be, and one that nobody has named.
            9 => frame(0x30, &[&topic, &property_list(&[Property::TopicAlias(u16::MAX)])]),
            10 => frame(0x30, &[&topic, &[3, 0x23, 0, 0]]),
            11 => frame(0x30, &[&[0, 0], &property_list(&[Property::TopicAlias(63)])]),
            // Twice what may be there once, what does not belong there, and what does not exist.
            12 => frame(0x30, &[&topic, &[4, 1, 1, 1, 1]]),
            13 => frame(0x30, &[&topic, &[2, 0x0B, 1]]),
            14 => frame(0x30, &[&topic, &[2, 0x7F, 1]]),
            15 => frame(0x82, &[&[high, low], &[0]]),
            16 => frame(0x80, &[&[high, low], &[0], &topic, &[0]]),
            17 => frame(0x82, &[&[high, low], &[0], &topic, &[0xFF]]),
            18 => frame(0x60, &[&[high, low]]),
            // A new authentication of who has had none, mostly.
            19 => self.auth(0x19, b"n,,n=alice,r=storm"),
            // Far more than the broker takes is announced.
            _ => vec![0x32, 0xFF, 0xFF, 0xFF, 0x7F, 0, 1, b'a'],
        }
    }

    /// An acknowledgement of something that nobody has sent, most probably.
    pub(crate) fn stray_ack(&mut self) -> Vec<u8> {
        let (first_byte, id) = (*self.pick(&[0x40, 0x50, 0x62, 0x70]), self.rng.u16(1..100));
        self.ack(first_byte, id)
    }

    /// Bytes without a sense.
    pub(crate) fn garbage(&mut self) -> Vec<u8> {
        self.bytes(200)
    }

    /// `bytes` with some of them changed.
    pub(crate) fn damage(&mut self, bytes: &mut [u8]) {
        for _ in 0..self.rng.u8(1..4) {
            let at = self.rng.usize(..bytes.len());
            bytes[at] = self.byte();
        }
    }

    fn bytes(&mut self, count_max: usize) -> Vec<u8> {
        let count = self.rng.usize(1..count_max);
        (0..count).map(|_| self.byte()).collect()
    }

    fn byte(&mut self) -> u8 {
        match self.rng.u8(..) {
            b'$' => b'%',
            byte => byte,
        }
    }

    fn text(&mut self) -> String {
        let count = self.rng.usize(1..12);
        (0..count).map(|_| self.rng.lowercase()).collect()
    }

    fn topic(&mut self) -> String {
        let (letter, number) = (self.rng.char(LETTERS), self.rng.u8(..NUMBERS));
        format!("storm/{letter}/{number}")
    }

    fn filter(&mut self) -> String {
        let (letter, number) = (self.rng.char(LETTERS), self.rng.u8(..NUMBERS));
        match self.rng.u8(..40) {
            0 => "#".to_owned(),
            1 => "storm/#".to_owned(),
            2 => "+/+/+".to_owned(),
            3 => format!("storm/{letter}/#"),
            4..=7 => format!("storm/+/{number}"),
            8..=9 => format!("$share/crew-{letter}/storm/#"),
            10..=15 => shared_filter(letter, number),
            16 => "$SYS/#".to_owned(),
            // The last ones are malformed, and end the connection.
            17 if self.chance(30) => {
                let [empty_group, no_filter] = MALFORMED_SHARED;
                let wrong = ["", "a/#/b", "a+", "$share/a+/x", empty_group, no_filter];
                (*self.pick(&wrong)).to_owned()
            }
            _ => self.topic(),
        }
    }

    fn fresh_id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id = id % u16::MAX + 1;
        id
    }

    fn pick<'l, T>(&mut self, list: &'l [T]) -> &'l T {
        &list[self.rng.usize(..list.len())]
    }
}
