//! Packets of every kind with arbitrary fields: each must come back from its own encoding.
//!
//! The fields are legal, so a packet that does not decode is a flaw of the codec. One input makes
//! several packets, which also have to be told apart when they lie behind one another.

use mailboxqtt::codec::{
    Ack, Auth, ConnAck, Connect, Delivery, Disconnect, Forward, Packet, Properties, PropertiesBuf,
    Property, Publish, PublishView, ReasonCode, RetainHandling, SubAck, Subscribe,
    SubscribeFiltersBuf, SubscribeOptions, UnsubAck, Unsubscribe, UnsubscribeFiltersBuf, Will,
    decode, frame_len, next_frame,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V31, V311};
use mailboxqtt::ids::{PacketId, ProtocolVersion, Qos};

use super::choices::Choices;

const PACKETS_MAX: usize = 8;
const TEXT_BYTES_MAX: usize = 65_535;

/// See the module comment.
pub fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut stream = Stream { version: choices.one_of(&[V5, V311, V31]), ..Stream::default() };
    for _ in 0..PACKETS_MAX {
        stream.add(&mut choices);
        if choices.is_exhausted() {
            break;
        }
    }
    stream.check();
}

/// Frames behind one another.
struct Stream {
    version: ProtocolVersion,
    bytes: Vec<u8>,
    frame_lens: Vec<usize>,
}

impl Default for Stream {
    fn default() -> Self {
        Self { version: V5, bytes: Vec::new(), frame_lens: Vec::new() }
    }
}

impl Stream {
    fn add(&mut self, choices: &mut Choices<'_>) {
        match choices.below(15) {
            0 => self.publish(choices),
            1 => self.connect(choices),
            2 => self.connack(choices),
            3 => self.ack(choices),
            4 => self.subscribe(choices),
            5 => self.suback(choices),
            6 => self.unsubscribe(choices),
            7 => self.unsuback(choices),
            8 => self.put(&Packet::PingReq, V5),
            9 => self.put(&Packet::PingResp, V5),
            10 => self.disconnect(choices),
            11 => self.auth(choices),
            _ => self.publish(choices),
        }
    }

    /// Writes `packet` and reads it back.
    fn put(&mut self, packet: &Packet<'_>, version: ProtocolVersion) {
        let mut frame = Vec::new();
        packet.encode(version, &mut frame);
        assert_eq!(packet.encoded_len(version), frame.len());
        assert_eq!(frame_len(&frame, u32::MAX), Ok(Some(frame.len())));
        assert_eq!(frame_len(&frame, frame.len() as u32), Ok(Some(frame.len())));
        assert!(frame_len(&frame, frame.len() as u32 - 1).is_err());
        assert_eq!(decode(&frame, version), Ok(*packet));
        self.frame_lens.push(frame.len());
        self.bytes.extend(frame);
    }

    fn check(&self) {
        let mut rest = &self.bytes[..];
        for len in &self.frame_lens {
            assert_eq!(frame_len(rest, u32::MAX), Ok(Some(*len)));
            assert_eq!(next_frame(rest), Some(*len));
            rest = &rest[*len..];
        }
        assert!(rest.is_empty());
    }

    fn publish(&mut self, choices: &mut Choices<'_>) {
        let version = self.version;
        let (topic, payload) = (name(choices), data(choices));
        let mut list = PropertiesBuf::new();
        push_message_properties(choices, &mut list);
        if choices.one_in(4) {
            list.push(Property::TopicAlias(choices.u16().max(1)));
        }
        for _ in 0..choices.below(4) {
            list.push(Property::SubscriptionIdentifier(choices.u32() % 268_435_455 + 1));
        }
        let properties = shown(&list, version);
        // A topic alias can stand for the topic.
        let is_alias_alone = properties.topic_alias().is_some() && choices.flag();
        let publish = Publish {
            topic: if is_alias_alone { "" } else { &topic },
            payload: &payload,
            properties,
            delivery: delivery(choices),
            retain: choices.flag(),
        };
        self.put(&Packet::Publish(publish), version);
        let frame = &self.bytes[self.bytes.len() - self.frame_lens[self.frame_lens.len() - 1]..];
        for previous in [None, Some(publish.topic), Some("previous")] {
            assert_eq!(Publish::decode_after(frame, version, previous), Ok(publish));
        }
        let view = PublishView::parse(frame, version).expect("a whole PUBLISH has a view");
        assert_eq!(view.topic, publish.topic.as_bytes());
        assert_eq!(view.payload, payload);
        let mut again = Vec::new();
        view.encode(version, publish.delivery, publish.retain, &Forward::default(), &mut again);
        assert_eq!(again, frame);
    }

    fn connect(&mut self, choices: &mut Choices<'_>) {
        let version = choices.one_of(&[V5, V311, V31]);
        let (client_id, topic, payload) = (text(choices), name(choices), data(choices));
        let (user_name, password) = (text(choices), data(choices));
        let mut list = PropertiesBuf::new();
        push_connect_properties(choices, &mut list);
        let mut of_will = PropertiesBuf::new();
        push_message_properties(choices, &mut of_will);
        if choices.one_in(2) {
            of_will.push(Property::WillDelayInterval(choices.u32()));
        }
        let will = Will {
            topic: &topic,
            payload: &payload,
            qos: qos(choices),
            retain: choices.flag(),
            properties: shown(&of_will, version),
        };
        let user_name = choices.flag().then_some(&user_name[..]);
        let may_have_password = version == V5 || user_name.is_some();
        let connect = Connect {
            version,
            clean_start: choices.flag(),
            keep_alive_s: choices.u16(),
            client_id: &client_id,
            properties: shown(&list, version),
            will: choices.flag().then_some(will),
            user_name,
            password: (choices.flag() && may_have_password).then_some(&password[..]),
        };
        self.put(&Packet::Connect(connect), version);
    }

    fn connack(&mut self, choices: &mut Choices<'_>) {
        let mut list = PropertiesBuf::new();
        push_connack_properties(choices, &mut list);
        let reason = match self.version {
            V5 => choices.one_of(&[
                ReasonCode::Success,
                ReasonCode::NotAuthorized,
                ReasonCode::QuotaExceeded,
                ReasonCode::BadAuthenticationMethod,
            ]),
            V31 | V311 => choices.one_of(&[ReasonCode::Success, ReasonCode::NotAuthorized]),
        };
        let may_be_present = reason == ReasonCode::Success && self.version != V31;
        let connack = ConnAck {
            session_present: choices.flag() && may_be_present,
            reason,
            properties: shown(&list, self.version),
        };
        self.put(&Packet::ConnAck(connack), self.version);
    }

    fn ack(&mut self, choices: &mut Choices<'_>) {
        let mut list = PropertiesBuf::new();
        push_reason(choices, &mut list);
        let (kind, failed) = (choices.below(4), choices.flag() && self.version == V5);
        let reason = match kind {
            _ if !failed => ReasonCode::Success,
            0 | 1 => {
                choices.one_of(&[ReasonCode::NoMatchingSubscribers, ReasonCode::QuotaExceeded])
            }
            _ => ReasonCode::PacketIdentifierNotFound,
        };
        let ack = Ack { id: id(choices), reason, properties: shown(&list, self.version) };
        let packet = match kind {
            0 => Packet::PubAck(ack),
            1 => Packet::PubRec(ack),
            2 => Packet::PubRel(ack),
            _ => Packet::PubComp(ack),
        };
        self.put(&packet, self.version);
    }

    fn subscribe(&mut self, choices: &mut Choices<'_>) {
        let mut list = PropertiesBuf::new();
        if choices.flag() {
            list.push(Property::SubscriptionIdentifier(choices.u32() % 268_435_455 + 1));
        }
        push_user_properties(choices, &mut list);
        let mut filters = SubscribeFiltersBuf::new();
        let mut expected = Vec::new();
        for _ in 0..=choices.below(4) {
            let filter = text(choices);
            let mut options = SubscribeOptions::new(qos(choices));
            if self.version == V5 {
                options.no_local = choices.flag() && !filter.starts_with("$share/");
                options.retain_as_published = choices.flag();
                options.retain_handling = choices.one_of(&[
                    RetainHandling::Send,
                    RetainHandling::SendIfNew,
                    RetainHandling::DoNotSend,
                ]);
            }
            filters.push(&filter, options);
            expected.push((filter, options));
        }
        let subscribe = Subscribe {
            id: id(choices),
            properties: shown(&list, self.version),
            filters: filters.as_filters(),
        };
        let read = subscribe.filters.iter().map(|(filter, options)| (filter.to_owned(), options));
        assert_eq!(read.collect::<Vec<_>>(), expected);
        self.put(&Packet::Subscribe(subscribe), self.version);
    }

    fn suback(&mut self, choices: &mut Choices<'_>) {
        let mut list = PropertiesBuf::new();
        push_reason(choices, &mut list);
        let known: &[u8] = match self.version {
            V5 => &[0, 1, 2, 0x80, 0x87, 0x8F, 0x97, 0x9E, 0xA1, 0xA2],
            V31 | V311 => &[0, 1, 2, 0x80],
        };
        let reasons: Vec<u8> = (0..=choices.below(5)).map(|_| choices.one_of(known)).collect();
        let properties = shown(&list, self.version);
        let suback = SubAck { id: id(choices), properties, reasons: &reasons };
        self.put(&Packet::SubAck(suback), self.version);
    }

    fn unsubscribe(&mut self, choices: &mut Choices<'_>) {
        let mut list = PropertiesBuf::new();
        push_user_properties(choices, &mut list);
        let mut filters = UnsubscribeFiltersBuf::new();
        let expected: Vec<String> = (0..=choices.below(4)).map(|_| text(choices)).collect();
        for filter in &expected {
            filters.push(filter);
        }
        let unsubscribe = Unsubscribe {
            id: id(choices),
            properties: shown(&list, self.version),
            filters: filters.as_filters(),
        };
        assert_eq!(unsubscribe.filters.iter().collect::<Vec<_>>(), expected);
        self.put(&Packet::Unsubscribe(unsubscribe), self.version);
    }

    fn unsuback(&mut self, choices: &mut Choices<'_>) {
        let mut list = PropertiesBuf::new();
        push_reason(choices, &mut list);
        let known = [0, 0x11, 0x80, 0x87, 0x8F];
        let reasons: Vec<u8> = (0..=choices.below(5)).map(|_| choices.one_of(&known)).collect();
        let unsuback = UnsubAck {
            id: id(choices),
            properties: shown(&list, self.version),
            reasons: if self.version == V5 { &reasons } else { &[] },
        };
        self.put(&Packet::UnsubAck(unsuback), self.version);
    }

    fn disconnect(&mut self, choices: &mut Choices<'_>) {
        let mut list = PropertiesBuf::new();
        push_reason(choices, &mut list);
        if choices.one_in(3) {
            list.push(Property::SessionExpiryInterval(choices.u32()));
        }
        let reason = match self.version {
            V5 => choices.one_of(&[
                ReasonCode::Success,
                ReasonCode::DisconnectWithWill,
                ReasonCode::KeepAliveTimeout,
                ReasonCode::ServerMoved,
            ]),
            V31 | V311 => ReasonCode::Success,
        };
        let properties = shown(&list, self.version);
        self.put(&Packet::Disconnect(Disconnect { reason, properties }), self.version);
    }

    fn auth(&mut self, choices: &mut Choices<'_>) {
        let mut list = PropertiesBuf::new();
        push_reason(choices, &mut list);
        push_authentication(choices, &mut list);
        let reason = choices.one_of(&[
            ReasonCode::Success,
            ReasonCode::ContinueAuthentication,
            ReasonCode::ReAuthenticate,
        ]);
        self.put(&Packet::Auth(Auth { reason, properties: list.as_properties() }), V5);
    }
}

/// The list in MQTT 5, and what MQTT 3.x leaves of it.
fn shown(list: &PropertiesBuf, version: ProtocolVersion) -> Properties<'_> {
    if version == V5 { list.as_properties() } else { Properties::EMPTY }
}

/// What PUBLISH and a will have in common.
fn push_message_properties(choices: &mut Choices<'_>, list: &mut PropertiesBuf) {
    let wanted = choices.byte();
    if wanted & 1 != 0 {
        list.push(Property::PayloadFormatIndicator(choices.flag()));
    }
    if wanted & 2 != 0 {
        list.push(Property::MessageExpiryInterval(choices.u32()));
    }
    if wanted & 4 != 0 {
        list.push(Property::ContentType(&text(choices)));
    }
    if wanted & 8 != 0 {
        list.push(Property::ResponseTopic(&name(choices)));
    }
    if wanted & 16 != 0 {
        list.push(Property::CorrelationData(&data(choices)));
    }
    push_user_properties(choices, list);
}

fn push_connect_properties(choices: &mut Choices<'_>, list: &mut PropertiesBuf) {
    let wanted = choices.byte();
    if wanted & 1 != 0 {
        list.push(Property::SessionExpiryInterval(choices.u32()));
    }
    if wanted & 2 != 0 {
        list.push(Property::ReceiveMaximum(choices.u16().max(1)));
    }
    if wanted & 4 != 0 {
        list.push(Property::MaximumPacketSize(choices.u32().max(1)));
    }
    if wanted & 8 != 0 {
        list.push(Property::TopicAliasMaximum(choices.u16()));
    }
    if wanted & 16 != 0 {
        list.push(Property::RequestResponseInformation(choices.flag()));
    }
    if wanted & 32 != 0 {
        list.push(Property::RequestProblemInformation(choices.flag()));
    }
    push_authentication(choices, list);
    push_user_properties(choices, list);
}

fn push_connack_properties(choices: &mut Choices<'_>, list: &mut PropertiesBuf) {
    let wanted = choices.u16();
    let (text, number, flag) = (text(choices), choices.u32(), choices.flag());
    let short = (number as u16).max(1);
    for (bit, property) in [
        Property::SessionExpiryInterval(number),
        Property::ReceiveMaximum(short),
        Property::MaximumQos(if flag { Qos::AtMostOnce } else { Qos::AtLeastOnce }),
        Property::RetainAvailable(flag),
        Property::MaximumPacketSize(number.max(1)),
        Property::AssignedClientIdentifier(&text),
        Property::TopicAliasMaximum(short),
        Property::ReasonString(&text),
        Property::WildcardSubscriptionAvailable(flag),
        Property::SubscriptionIdentifierAvailable(flag),
        Property::SharedSubscriptionAvailable(flag),
        Property::ServerKeepAlive(short),
        Property::ResponseInformation(&text),
        Property::ServerReference(&text),
    ]
    .into_iter()
    .enumerate()
    {
        if wanted >> bit & 1 != 0 {
            list.push(property);
        }
    }
    push_authentication(choices, list);
    push_user_properties(choices, list);
}

fn push_authentication(choices: &mut Choices<'_>, list: &mut PropertiesBuf) {
    if choices.flag() {
        list.push(Property::AuthenticationMethod(&text(choices)));
        if choices.flag() {
            list.push(Property::AuthenticationData(&data(choices)));
        }
    }
}

fn push_reason(choices: &mut Choices<'_>, list: &mut PropertiesBuf) {
    if choices.flag() {
        list.push(Property::ReasonString(&text(choices)));
    }
    push_user_properties(choices, list);
}

/// In order, and the same name may come again [MQTT-3.3.2-18].
fn push_user_properties(choices: &mut Choices<'_>, list: &mut PropertiesBuf) {
    let before = list.as_properties().user_properties().count();
    let pairs: Vec<_> = (0..choices.below(4)).map(|_| (text(choices), text(choices))).collect();
    for (name, value) in &pairs {
        list.push(Property::UserProperty { name, value });
    }
    let written = pairs.iter().map(|(name, value)| (&name[..], &value[..]));
    assert!(list.as_properties().user_properties().skip(before).eq(written));
}

fn delivery(choices: &mut Choices<'_>) -> Delivery {
    let (id, dup) = (id(choices), choices.flag());
    match qos(choices) {
        Qos::AtMostOnce => Delivery::AtMostOnce,
        Qos::AtLeastOnce => Delivery::AtLeastOnce { id, dup },
        Qos::ExactlyOnce => Delivery::ExactlyOnce { id, dup },
    }
}

fn qos(choices: &mut Choices<'_>) -> Qos {
    choices.one_of(&[Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce])
}

fn id(choices: &mut Choices<'_>) -> PacketId {
    PacketId::new(choices.u16()).unwrap_or(PacketId::FIRST)
}

/// Any text that may stand on the wire: no U+0000, at most 65,535 bytes.
fn text(choices: &mut Choices<'_>) -> String {
    let len = len(choices);
    let mut text: String = String::from_utf8_lossy(choices.bytes(len.min(40))).replace('\0', "0");
    while text.len() < len && len > 40 {
        text.push_str("äß€😀 ");
    }
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

/// Text that may be a topic name.
fn name(choices: &mut Choices<'_>) -> String {
    let name = text(choices).replace(['+', '#'], "/");
    if name.is_empty() { "/".to_owned() } else { name }
}

fn data(choices: &mut Choices<'_>) -> Vec<u8> {
    let len = len(choices);
    let mut data = choices.bytes(len.min(40)).to_vec();
    if len > 40 {
        data.resize(len.min(TEXT_BYTES_MAX), 0xA5);
    }
    data
}

/// Short as a rule, sometimes around the bounds of the length fields.
fn len(choices: &mut Choices<'_>) -> usize {
    match choices.byte() {
        short @ 0..252 => usize::from(short % 24),
        252..255 => 100 + choices.below(64),
        255 if choices.byte() == 255 => 65_500 + choices.below(64),
        255 => 16_350 + choices.below(64),
    }
}
