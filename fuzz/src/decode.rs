//! Bytes from the network, read in every way that the broker reads them.
//!
//! The first byte decides the version, the others are one read. Nothing may panic, the ways of
//! reading must agree, and what decodes comes back from its own encoding.

use std::num::NonZeroU32;

use mailboxqtt::codec::{
    Delivery, Forward, Packet, Properties, Property, Publish, PublishView, ReasonCode, TopicAlias,
    decode, frame_len, header_len, next_frame, packet_id_offset,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V31, V311};
use mailboxqtt::ids::{PacketId, ProtocolVersion};
use mailboxqtt::topic::{TopicFilter, check_topic_name};

use super::choices::Choices;

/// Small, so that the limit is met.
const PACKET_BYTES_MAX: u32 = 1000;

/// See the module comment.
pub fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let version = choices.one_of(&[V5, V311, V31]);
    let read = choices.rest();
    read_as_own_buffer(read, version);
    read_as_stream(read, version);
}

/// The functions that take a frame on trust must still end well on garbage.
fn read_as_own_buffer(bytes: &[u8], version: ProtocolVersion) {
    assert!(next_frame(bytes).is_none_or(|len| len <= bytes.len()));
    assert!(packet_id_offset(bytes).is_none_or(|at| at <= bytes.len()));
    if let Some(view) = PublishView::parse(bytes, version) {
        assert_eq!(next_frame(bytes), Some(view.frame_len));
        let mut again = Vec::new();
        view.encode(version, Delivery::AtMostOnce, false, &Forward::default(), &mut again);
    }
    walk(Properties::from_validated(bytes));
}

/// As `net::connection` cuts a read buffer.
fn read_as_stream(read: &[u8], version: ProtocolVersion) {
    let mut rest = read;
    let mut previous = None;
    loop {
        check_header(rest);
        let Ok(Some(len)) = frame_len(rest, PACKET_BYTES_MAX) else { return };
        assert!(len as u32 <= PACKET_BYTES_MAX && len >= 2);
        let Some((frame, behind)) = rest.split_at_checked(len) else {
            assert!(decode(rest, version).is_err(), "a part of a packet is no packet");
            return;
        };
        let decoded = decode(frame, version);
        if frame[0] >> 4 == 3 {
            let after = Publish::decode_after(frame, version, previous);
            assert_eq!(after.clone().map(Packet::Publish), decoded);
            if let Ok(publish) = after {
                check_publish(frame, version, &publish);
                previous = Some(publish.topic);
            }
        } else {
            assert!(Publish::decode_after(frame, version, previous).is_err());
        }
        match decoded {
            Ok(packet) => check_packet(frame, version, &packet),
            Err(error) => {
                assert!(error.reason_code().is_error() && !error.to_string().is_empty());
                return;
            }
        }
        rest = behind;
    }
}

/// A header is whole or it is not: more bytes behind it do not change it.
fn check_header(bytes: &[u8]) {
    let whole = frame_len(bytes, u32::MAX);
    for end in 0..bytes.len().min(6) {
        match frame_len(&bytes[..end], u32::MAX) {
            Ok(None) => (),
            early => assert_eq!(early, whole),
        }
    }
    assert_eq!(header_len(bytes).is_some(), matches!(whole, Ok(Some(_))));
}

fn check_packet(frame: &[u8], version: ProtocolVersion, packet: &Packet<'_>) {
    assert!(!format!("{packet:?}").is_empty());
    check_fields(packet);
    let mut encoded = Vec::new();
    packet.encode(version, &mut encoded);
    assert_eq!(packet.encoded_len(version), encoded.len());
    // AUTH is read without the property length that it must be written with.
    let shortest_len = frame.len() + usize::from(matches!(packet, Packet::Auth(_)));
    assert!(encoded.len() <= shortest_len, "the encoding is the shortest one");
    let mut expected = *packet;
    if let Packet::ConnAck(connack) = &mut expected {
        // A refusal that claims a session is read, and never written.
        connack.session_present &= connack.reason == ReasonCode::Success && version != V31;
    }
    assert_eq!(decode(&encoded, version), Ok(expected));
    for end in 0..frame.len().min(64) {
        assert!(decode(&frame[..end], version).is_err(), "a part of a packet is no packet");
    }
}

/// What a decoded packet promises to whoever uses it.
fn check_fields(packet: &Packet<'_>) {
    match packet {
        Packet::Connect(connect) => {
            walk(connect.properties);
            if let Some(will) = connect.will {
                assert_eq!(check_topic_name(will.topic), Ok(()));
                walk(will.properties);
            }
        }
        Packet::ConnAck(connack) => walk(connack.properties),
        Packet::Publish(publish) => walk(publish.properties),
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            walk(ack.properties);
        }
        Packet::Subscribe(subscribe) => {
            walk(subscribe.properties);
            assert!(!subscribe.filters.is_empty());
            assert_eq!(subscribe.filters.iter().count(), subscribe.filters.len());
            for (filter, _) in subscribe.filters.iter() {
                let _ = TopicFilter::parse(filter);
            }
        }
        Packet::SubAck(suback) => walk(suback.properties),
        Packet::Unsubscribe(unsubscribe) => {
            walk(unsubscribe.properties);
            assert!(!unsubscribe.filters.is_empty());
            assert_eq!(unsubscribe.filters.iter().count(), unsubscribe.filters.len());
        }
        Packet::UnsubAck(unsuback) => walk(unsuback.properties),
        Packet::PingReq | Packet::PingResp => (),
        Packet::Disconnect(disconnect) => walk(disconnect.properties),
        Packet::Auth(auth) => walk(auth.properties),
    }
}

fn check_publish(frame: &[u8], version: ProtocolVersion, publish: &Publish<'_>) {
    let view = PublishView::parse(frame, version).expect("what decodes has a view");
    assert_eq!(view.topic, publish.topic.as_bytes());
    assert_eq!(view.payload, publish.payload);
    assert_eq!(view.properties, publish.properties.as_bytes());
    assert_eq!(view.packet_id, publish.delivery.id().map(PacketId::get));
    assert_eq!(view.frame_len, frame.len());
    assert_eq!(view.header_len, header_len(frame).unwrap_or(0));
    if let Some(id) = view.packet_id {
        assert_eq!(packet_id_offset(frame), Some(view.packet_id_at));
        assert_eq!(frame[view.packet_id_at..view.packet_id_at + 2], id.to_be_bytes());
    }
    if publish.topic.is_empty() {
        // With a topic alias alone; nothing of the kind reaches our own buffers.
        assert!(publish.properties.topic_alias().is_some());
        return;
    }
    assert_eq!(check_topic_name(publish.topic), Ok(()));
    let id = PacketId::FIRST;
    for delivery in [
        Delivery::AtMostOnce,
        Delivery::AtLeastOnce { id, dup: true },
        Delivery::ExactlyOnce { id, dup: false },
    ] {
        for other in [V311, V5] {
            let mut encoded = Vec::new();
            view.encode(other, delivery, true, &Forward::default(), &mut encoded);
            let properties = if other == V5 { publish.properties } else { Properties::EMPTY };
            let expected = Publish { delivery, retain: true, properties, ..*publish };
            assert_eq!(decode(&encoded, other), Ok(Packet::Publish(expected)));
        }
    }
    // What a client publishes has neither of them by now.
    let is_bare = publish.properties.topic_alias().is_none()
        && publish.properties.subscription_identifiers().next().is_none();
    if is_bare {
        check_forwarded(&view, publish);
    }
}

/// The properties of one subscriber come before those that were published [MQTT-3.3.2-18].
fn check_forwarded(view: &PublishView<'_>, publish: &Publish<'_>) {
    let largest = NonZeroU32::new(268_435_455).expect("it is not zero");
    let identifiers = [NonZeroU32::MIN, largest];
    let interval = publish.properties.message_expiry_interval_s();
    assert_eq!(view.message_expiry_interval_s(), interval);
    for (alias, waited_s) in [
        (None, 0),
        (Some(TopicAlias::New(7)), 1),
        (Some(TopicAlias::Known(u16::MAX)), interval.unwrap_or(9)),
    ] {
        let forward = Forward { waited_s, identifiers: &identifiers, alias };
        let mut encoded = Vec::new();
        view.encode(V5, publish.delivery, publish.retain, &forward, &mut encoded);
        let Ok(Packet::Publish(read)) = decode(&encoded, V5) else {
            panic!("{publish:?} is not forwarded as it should be");
        };
        let is_known = matches!(alias, Some(TopicAlias::Known(_)));
        assert_eq!(read.topic, if is_known { "" } else { publish.topic });
        assert_eq!((read.payload, read.delivery), (publish.payload, publish.delivery));
        let number = alias.map(|(TopicAlias::New(number) | TopicAlias::Known(number))| number);
        assert_eq!(read.properties.topic_alias(), number);
        assert!(read.properties.subscription_identifiers().eq(identifiers.map(NonZeroU32::get)));
        let left = interval.map(|interval| interval.saturating_sub(waited_s));
        assert_eq!(read.properties.message_expiry_interval_s(), left);
        let published = publish.properties.iter().filter(is_unchanged);
        let own = usize::from(alias.is_some()) + identifiers.len();
        assert!(read.properties.iter().skip(own).filter(is_unchanged).eq(published));
    }
}

fn is_unchanged(property: &Property<'_>) -> bool {
    !matches!(property, Property::MessageExpiryInterval(_))
}

/// Every look-up finds what the walk finds.
fn walk(properties: Properties<'_>) {
    let mut first = Look::default();
    for property in properties.iter() {
        first.note(property);
    }
    assert_eq!(properties.user_properties().count(), first.user_properties);
    assert_eq!(properties.subscription_identifiers().count(), first.subscription_identifiers);
    // A list that was not validated may end early in one way of reading and not in the other.
    if let Some(alias) = first.topic_alias {
        assert_eq!(properties.topic_alias(), Some(alias));
    }
    if let Some(interval) = first.message_expiry_interval {
        assert_eq!(properties.message_expiry_interval_s(), Some(interval));
    }
    let _ = (properties.payload_format_indicator(), properties.content_type());
    let _ = (properties.response_topic(), properties.correlation_data());
    let _ = (properties.session_expiry_interval_s(), properties.assigned_client_identifier());
    let _ = (properties.server_keep_alive_s(), properties.authentication_method());
    let _ = (properties.authentication_data(), properties.request_problem_information());
    let _ = (properties.will_delay_interval_s(), properties.request_response_information());
    let _ = (properties.response_information(), properties.server_reference());
    let _ = (properties.reason_string(), properties.receive_maximum());
    let _ = (properties.topic_alias_maximum(), properties.maximum_qos());
    let _ = (properties.retain_available(), properties.maximum_packet_size());
    let _ = properties.wildcard_subscription_available();
    let _ = properties.subscription_identifier_available();
    let _ = properties.shared_subscription_available();
}

/// What a walk saw.
#[derive(Default)]
struct Look {
    user_properties: usize,
    subscription_identifiers: usize,
    topic_alias: Option<u16>,
    message_expiry_interval: Option<u32>,
}

impl Look {
    fn note(&mut self, property: Property<'_>) {
        match property {
            Property::UserProperty { .. } => self.user_properties += 1,
            Property::SubscriptionIdentifier(_) => self.subscription_identifiers += 1,
            Property::TopicAlias(alias) => drop(self.topic_alias.get_or_insert(alias)),
            Property::MessageExpiryInterval(seconds) => {
                self.message_expiry_interval.get_or_insert(seconds);
            }
            _ => (),
        }
    }
}
