//! Properties of the codec over arbitrary packets and arbitrary bytes.
//!
//! A packet is made from owned parts, encoded, and must come back as it was; everything that is
//! not one whole well-formed frame must be refused without a panic.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use mailboxqtt::codec::{
    Ack, Auth, ConnAck, Connect, Delivery, Disconnect, Packet, Properties, PropertiesBuf, Property,
    Publish, PublishView, ReasonCode, RetainHandling, SubAck, Subscribe, SubscribeFiltersBuf,
    SubscribeOptions, UnsubAck, Unsubscribe, UnsubscribeFiltersBuf, Will, decode, frame_len,
    next_frame, packet_id_offset,
};
use mailboxqtt::ids::{PacketId, ProtocolVersion, Qos};

const V5: ProtocolVersion = ProtocolVersion::V5;

/// A frame together with the version it is written in.
type Written = (ProtocolVersion, Vec<u8>);

proptest! {
    #[test]
    fn every_packet_comes_back_from_its_encoding((version, frame) in frames()) {
        let packet = decode(&frame, version).unwrap();
        let mut again = Vec::new();
        packet.encode(version, &mut again);
        prop_assert_eq!(&again, &frame);
        prop_assert_eq!(packet.encoded_len(version), frame.len());
        prop_assert_eq!(frame_len(&frame, u32::MAX), Ok(Some(frame.len())));
        if let Packet::Publish(publish) = packet {
            let view = PublishView::parse(&frame, version).unwrap();
            prop_assert_eq!(view.topic, publish.topic.as_bytes());
            prop_assert_eq!(view.payload, publish.payload);
            prop_assert_eq!(view.properties, publish.properties.as_bytes());
            prop_assert_eq!(view.packet_id, publish.delivery.id().map(PacketId::get));
            prop_assert_eq!(view.frame_len, frame.len());
            prop_assert_eq!(next_frame(&frame), Some(frame.len()));
            if view.packet_id.is_some() {
                prop_assert_eq!(packet_id_offset(&frame), Some(view.packet_id_at));
            }
            let after = Publish::decode_after(&frame, version, Some(publish.topic));
            prop_assert_eq!(after, Ok(publish));
        }
    }

    #[test]
    fn every_strict_prefix_is_refused((version, frame) in frames()) {
        for end in 0..frame.len() {
            let prefix = &frame[..end];
            prop_assert!(decode(prefix, version).is_err());
            prop_assert!(!matches!(frame_len(prefix, u32::MAX), Ok(Some(len)) if len <= end));
            prop_assert!(next_frame(prefix).is_none());
        }
    }

    #[test]
    fn flipping_any_one_byte_never_panics((version, mut frame) in frames(), mask in 1_u8..) {
        for index in 0..frame.len() {
            frame[index] ^= mask;
            read_in_every_way(&frame, version);
            frame[index] ^= mask;
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..80), version in versions()) {
        read_in_every_way(&bytes, version);
    }

    #[test]
    fn arbitrary_bodies_never_panic(
        first_byte in any::<u8>(), body in vec(any::<u8>(), 0..100), version in versions(),
    ) {
        let mut frame = vec![first_byte, body.len() as u8];
        frame.extend(body);
        read_in_every_way(&frame, version);
    }
}

/// Calls all that reads, and walks over all that was read.
fn read_in_every_way(bytes: &[u8], version: ProtocolVersion) {
    let _ = frame_len(bytes, 1000);
    let _ = next_frame(bytes);
    let _ = packet_id_offset(bytes);
    let _ = PublishView::parse(bytes, version);
    let _ = Publish::decode_after(bytes, version, Some("a"));
    let _ = Properties::from_validated(bytes).iter().count();
    let _ = Properties::from_validated(bytes).topic_alias();
    if let Ok(packet) = decode(bytes, version) {
        // What decodes can be written and shown.
        let mut again = Vec::new();
        packet.encode(version, &mut again);
        assert!(!format!("{packet:?}").is_empty());
    }
}

fn frames() -> impl Strategy<Value = Written> {
    prop_oneof![
        connects(),
        connacks(),
        publishes(),
        acks(),
        subscribes(),
        subacks(),
        unsubscribes(),
        unsubacks(),
        versions().prop_map(|version| write(version, Packet::PingReq)),
        versions().prop_map(|version| write(version, Packet::PingResp)),
        disconnects(),
        auths(),
    ]
}

fn write(version: ProtocolVersion, packet: Packet<'_>) -> Written {
    let mut frame = Vec::new();
    packet.encode(version, &mut frame);
    // The round trip of the packet itself; the caller's property compares bytes.
    assert_eq!(decode(&frame, version), Ok(packet));
    (version, frame)
}

/// The list in MQTT 5, and what MQTT 3.x leaves of it.
fn properties(list: &PropertiesBuf, version: ProtocolVersion) -> Properties<'_> {
    if version == V5 { list.as_properties() } else { Properties::EMPTY }
}

fn connects() -> impl Strategy<Value = Written> {
    let will = (texts(), data(), qos(), any::<bool>(), will_lists());
    let fields = (any::<bool>(), any::<u16>(), texts(), connect_lists());
    let credentials = (option::of(texts()), option::of(data()));
    (all_versions(), fields, option::of(will), credentials).prop_map(
        |(version, (clean_start, keep_alive_s, client_id, list), will, (user, password))| {
            let may_have_password = version == V5 || user.is_some();
            let connect = Connect {
                version,
                clean_start,
                keep_alive_s,
                client_id: &client_id,
                properties: properties(&list, version),
                will: will.as_ref().map(|(topic, payload, qos, retain, list)| Will {
                    topic,
                    payload,
                    qos: *qos,
                    retain: *retain,
                    properties: properties(list, version),
                }),
                user_name: user.as_deref(),
                password: password.as_deref().filter(|_| may_have_password),
            };
            write(version, Packet::Connect(connect))
        },
    )
}

fn connacks() -> impl Strategy<Value = Written> {
    (versions(), any::<bool>(), texts(), any::<u16>()).prop_map(
        |(version, present, text, number)| {
            let mut list = PropertiesBuf::new();
            list.push(Property::AssignedClientIdentifier(&text))
                .push(Property::ServerKeepAlive(number))
                .push(Property::MaximumQos(Qos::AtLeastOnce))
                .push(Property::RetainAvailable(present))
                .push(Property::ServerReference(&text))
                .push(Property::ResponseInformation(&text))
                .push(Property::WildcardSubscriptionAvailable(present))
                .push(Property::SubscriptionIdentifierAvailable(!present))
                .push(Property::SharedSubscriptionAvailable(present));
            let reason = if present { ReasonCode::Success } else { ReasonCode::NotAuthorized };
            let properties = properties(&list, version);
            write(
                version,
                Packet::ConnAck(ConnAck { session_present: present, reason, properties }),
            )
        },
    )
}

fn publishes() -> impl Strategy<Value = Written> {
    (versions(), texts(), data(), deliveries(), any::<bool>(), publish_lists()).prop_map(
        |(version, topic, payload, delivery, retain, list)| {
            let properties = properties(&list, version);
            let publish =
                Publish { topic: &topic, payload: &payload, properties, delivery, retain };
            write(version, Packet::Publish(publish))
        },
    )
}

fn acks() -> impl Strategy<Value = Written> {
    (versions(), ids(), any::<bool>(), reason_lists(), 0..4).prop_map(
        |(version, id, failed, list, kind)| {
            let reason = match kind {
                _ if !failed || version != V5 => ReasonCode::Success,
                0 | 1 => ReasonCode::QuotaExceeded,
                _ => ReasonCode::PacketIdentifierNotFound,
            };
            let ack = Ack { id, reason, properties: properties(&list, version) };
            let packet = match kind {
                0 => Packet::PubAck(ack),
                1 => Packet::PubRec(ack),
                2 => Packet::PubRel(ack),
                _ => Packet::PubComp(ack),
            };
            write(version, packet)
        },
    )
}

fn subscribes() -> impl Strategy<Value = Written> {
    let filters = vec((texts(), qos(), any::<bool>(), any::<bool>(), 0..3), 1..5);
    (versions(), ids(), option::of(1..=268_435_455_u32), filters).prop_map(
        |(version, id, identifier, filters)| {
            let mut list = PropertiesBuf::new();
            if let Some(identifier) = identifier {
                list.push(Property::SubscriptionIdentifier(identifier));
            }
            let mut payload = SubscribeFiltersBuf::new();
            for (filter, qos, no_local, retain_as_published, handling) in &filters {
                let mut options = SubscribeOptions::new(*qos);
                if version == V5 {
                    options.no_local = *no_local;
                    options.retain_as_published = *retain_as_published;
                    options.retain_handling = match handling {
                        0 => RetainHandling::Send,
                        1 => RetainHandling::SendIfNew,
                        _ => RetainHandling::DoNotSend,
                    };
                }
                payload.push(filter, options);
            }
            let properties = properties(&list, version);
            let filters = payload.as_filters();
            write(version, Packet::Subscribe(Subscribe { id, properties, filters }))
        },
    )
}

fn subacks() -> impl Strategy<Value = Written> {
    let reasons = vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(0x80)], 1..5);
    (versions(), ids(), reason_lists(), reasons).prop_map(|(version, id, list, reasons)| {
        let properties = properties(&list, version);
        write(version, Packet::SubAck(SubAck { id, properties, reasons: &reasons }))
    })
}

fn unsubscribes() -> impl Strategy<Value = Written> {
    (versions(), ids(), vec(texts(), 1..5)).prop_map(|(version, id, names)| {
        let mut payload = UnsubscribeFiltersBuf::new();
        for name in &names {
            payload.push(name);
        }
        let (properties, filters) = (Properties::EMPTY, payload.as_filters());
        write(version, Packet::Unsubscribe(Unsubscribe { id, properties, filters }))
    })
}

fn unsubacks() -> impl Strategy<Value = Written> {
    let reasons = vec(prop_oneof![Just(0_u8), Just(0x11), Just(0x87)], 1..5);
    (versions(), ids(), reason_lists(), reasons).prop_map(|(version, id, list, reasons)| {
        let properties = properties(&list, version);
        let reasons = if version == V5 { &reasons[..] } else { &[] };
        write(version, Packet::UnsubAck(UnsubAck { id, properties, reasons }))
    })
}

fn disconnects() -> impl Strategy<Value = Written> {
    (versions(), any::<bool>(), reason_lists()).prop_map(|(version, failed, list)| {
        let failed = failed && version == V5;
        let reason = if failed { ReasonCode::QuotaExceeded } else { ReasonCode::Success };
        let properties = properties(&list, version);
        write(version, Packet::Disconnect(Disconnect { reason, properties }))
    })
}

fn auths() -> impl Strategy<Value = Written> {
    (texts(), data(), option::of(Just(ReasonCode::ReAuthenticate))).prop_map(
        |(method, data, reason)| {
            let mut list = PropertiesBuf::new();
            list.push(Property::AuthenticationMethod(&method))
                .push(Property::AuthenticationData(&data));
            let reason = reason.unwrap_or(ReasonCode::Success);
            write(V5, Packet::Auth(Auth { reason, properties: list.as_properties() }))
        },
    )
}

fn connect_lists() -> impl Strategy<Value = PropertiesBuf> {
    (option::of(any::<u32>()), option::of(1_u16..), any::<bool>(), texts(), option::of(data()))
        .prop_map(|(expiry, maximum, flag, text, authentication)| {
            let mut list = PropertiesBuf::new();
            if let Some(expiry) = expiry {
                list.push(Property::SessionExpiryInterval(expiry));
                list.push(Property::MaximumPacketSize(expiry | 1));
            }
            if let Some(maximum) = maximum {
                list.push(Property::ReceiveMaximum(maximum));
                list.push(Property::TopicAliasMaximum(maximum));
                list.push(Property::RequestProblemInformation(flag));
                list.push(Property::RequestResponseInformation(flag));
            }
            if let Some(data) = authentication {
                list.push(Property::AuthenticationMethod(&text));
                list.push(Property::AuthenticationData(&data));
            }
            push_user_properties(&mut list, &text);
            list
        })
}

fn will_lists() -> impl Strategy<Value = PropertiesBuf> {
    (option::of(any::<u32>()), message_lists()).prop_map(|(delay, mut list)| {
        if let Some(delay) = delay {
            list.push(Property::WillDelayInterval(delay));
        }
        list
    })
}

fn publish_lists() -> impl Strategy<Value = PropertiesBuf> {
    (option::of(1_u16..), vec(1..=268_435_455_u32, 0..3), message_lists()).prop_map(
        |(alias, identifiers, mut list)| {
            if let Some(alias) = alias {
                list.push(Property::TopicAlias(alias));
            }
            for identifier in identifiers {
                list.push(Property::SubscriptionIdentifier(identifier));
            }
            list
        },
    )
}

/// What PUBLISH and a will have in common.
fn message_lists() -> impl Strategy<Value = PropertiesBuf> {
    (option::of(any::<u32>()), option::of(data()), any::<bool>(), texts()).prop_map(
        |(expiry, data, is_text, text)| {
            let mut list = PropertiesBuf::new();
            if let Some(expiry) = expiry {
                list.push(Property::MessageExpiryInterval(expiry));
                list.push(Property::PayloadFormatIndicator(is_text));
            }
            if let Some(data) = data {
                list.push(Property::ResponseTopic(&text));
                list.push(Property::CorrelationData(&data));
                list.push(Property::ContentType(&text));
                push_user_properties(&mut list, &text);
            }
            list
        },
    )
}

fn reason_lists() -> impl Strategy<Value = PropertiesBuf> {
    option::of(texts()).prop_map(|text| {
        let mut list = PropertiesBuf::new();
        if let Some(text) = text {
            list.push(Property::ReasonString(&text));
            push_user_properties(&mut list, &text);
        }
        list
    })
}

/// Twice, because it may repeat.
fn push_user_properties(list: &mut PropertiesBuf, text: &str) {
    list.push(Property::UserProperty { name: text, value: "" });
    list.push(Property::UserProperty { name: "name", value: text });
}

fn deliveries() -> impl Strategy<Value = Delivery> {
    (ids(), any::<bool>(), qos()).prop_map(|(id, dup, qos)| match qos {
        Qos::AtMostOnce => Delivery::AtMostOnce,
        Qos::AtLeastOnce => Delivery::AtLeastOnce { id, dup },
        Qos::ExactlyOnce => Delivery::ExactlyOnce { id, dup },
    })
}

fn all_versions() -> impl Strategy<Value = ProtocolVersion> {
    prop_oneof![Just(ProtocolVersion::V31), versions()]
}

fn versions() -> impl Strategy<Value = ProtocolVersion> {
    prop_oneof![Just(ProtocolVersion::V311), Just(V5)]
}

fn qos() -> impl Strategy<Value = Qos> {
    prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)]
}

fn ids() -> impl Strategy<Value = PacketId> {
    any::<u16>().prop_filter_map("a packet identifier is not zero", PacketId::new)
}

/// Text that may stand anywhere, a topic name included.
fn texts() -> impl Strategy<Value = String> {
    "[a-z/äß€😀\u{FEFF} ]{1,20}"
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}
