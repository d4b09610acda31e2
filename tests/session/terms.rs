//! CONNECT and CONNACK: what is settled, what is announced, and what follows for a client that asks for
//! more than there is.

use std::time::{Duration, Instant};

use mailboxqtt::codec::{
    Connect, Packet, Properties, PropertiesBuf, Property, ReasonCode, Subscribe,
    SubscribeFiltersBuf, SubscribeOptions, Will, decode,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{ClientId, PacketId, ProtocolVersion, Qos};
use mailboxqtt::session::{
    Availability, CloseReason, Expiry, Limits, Opening, Refusal, Session, negotiate,
};

use crate::pair::{Heard, LIMITS, Pair, Terms, flow, publish};

const NOTHING: Availability = Availability {
    qos_max: Qos::AtMostOnce,
    retain: false,
    wildcard_subscriptions: false,
    shared_subscriptions: false,
    subscription_identifiers: false,
};
const ONLY_QOS_0: Limits = Limits { availability: NOTHING, ..LIMITS };

/// A CONNECT with these properties.
struct Wish<'a> {
    version: ProtocolVersion,
    id: &'a str,
    clean_start: bool,
    keep_alive_s: u16,
    properties: PropertiesBuf,
    /// QoS and RETAIN.
    will: Option<(u8, bool)>,
}

impl<'a> Wish<'a> {
    fn new(version: ProtocolVersion, id: &'a str) -> Self {
        let properties = PropertiesBuf::new();
        Self { version, id, clean_start: true, keep_alive_s: 0, properties, will: None }
    }

    fn with(mut self, property: Property<'_>) -> Self {
        self.properties.push(property);
        self
    }

    fn settle(&self, limits: &Limits) -> Result<Opening, Refusal> {
        let connect = Connect {
            version: self.version,
            clean_start: self.clean_start,
            keep_alive_s: self.keep_alive_s,
            client_id: self.id,
            properties: self.properties.as_properties(),
            will: self.will.map(|(qos, retain)| Will {
                topic: "will",
                payload: b"gone",
                qos: Qos::new(qos).unwrap(),
                retain,
                properties: Properties::EMPTY,
            }),
            user_name: None,
            password: None,
        };
        let opening = negotiate(&connect, limits, || ClientId::new("spare"))?;
        opening.check_room(limits).map(|()| opening)
    }

    /// The properties of the CONNACK.
    fn told(&self, limits: &Limits) -> Told {
        told(&self.settle(limits).unwrap(), limits, "")
    }

    /// Code, reason string and all bytes of the CONNACK that refuses it.
    fn refused(&self, limits: &Limits) -> (u8, Option<String>, Vec<u8>) {
        let mut bytes = Vec::new();
        self.settle(limits).unwrap_err().write(limits, &mut bytes);
        let Ok(Packet::ConnAck(connack)) = decode(&bytes, self.version) else {
            return (0, None, bytes);
        };
        assert!(!connack.session_present);
        (bytes[3], connack.properties.reason_string().map(str::to_owned), bytes)
    }
}

/// The properties of a CONNACK that accepts.
struct Told(Vec<u8>);

fn told(opening: &Opening, limits: &Limits, prefix: &str) -> Told {
    let mut bytes = Vec::new();
    opening.accept(true, limits, prefix, &mut bytes);
    match decode(&bytes, V5).unwrap() {
        Packet::ConnAck(connack) => {
            assert_eq!((connack.session_present, connack.reason), (true, ReasonCode::Success));
            Told(connack.properties.as_bytes().to_vec())
        }
        other => panic!("{other:?}"),
    }
}

impl Told {
    fn list(&self) -> Properties<'_> {
        Properties::from_validated(&self.0)
    }
}

/// What is there and what is not limited is not mentioned [MQTT-3.2.2-9] [MQTT-3.2.2-22].
#[test]
fn connack_names_the_limits_and_nothing_that_goes_without_saying() {
    let told = Wish::new(V5, "client").told(&LIMITS);
    let expected = [
        Property::ReceiveMaximum(LIMITS.receive_max),
        Property::MaximumPacketSize(LIMITS.packet_bytes_max),
        Property::TopicAliasMaximum(64),
    ];
    assert_eq!(told.list().iter().collect::<Vec<_>>(), expected);
    let told = Wish::new(V5, "client").told(&Limits { topic_alias_max: 0, ..LIMITS });
    assert_eq!(told.list().topic_alias_maximum(), None);
}

/// [MQTT-3.2.2-9]
#[test]
fn connack_names_everything_that_is_missing() {
    let told = Wish::new(V5, "client").told(&ONLY_QOS_0);
    let list = told.list();
    assert_eq!(list.maximum_qos(), Some(Qos::AtMostOnce));
    assert_eq!(list.retain_available(), Some(false));
    assert_eq!(list.wildcard_subscription_available(), Some(false));
    assert_eq!(list.shared_subscription_available(), Some(false));
    assert_eq!(list.subscription_identifier_available(), Some(false));
}

#[test]
fn connack_of_v311_has_no_properties_whatever_there_is_to_say() {
    let limits = Limits { keep_alive_s_max: Some(5), session_expiry_s_max: Some(5), ..ONLY_QOS_0 };
    let wish = Wish { clean_start: false, ..Wish::new(V311, "client") };
    let mut bytes = Vec::new();
    wish.settle(&limits).unwrap().accept(true, &limits, "responses/", &mut bytes);
    assert_eq!(bytes, [0x20, 2, 1, 0]);
}

/// [MQTT-3.1.2-26] [MQTT-3.1.2-27]
#[test]
fn topic_aliases_towards_a_client_are_the_fewer_of_its_and_ours() {
    for (asked, settled) in [(None, 0), (Some(0), 0), (Some(7), 7), (Some(65_535), 64)] {
        let wish = Wish::new(V5, "client");
        let wish = match asked {
            Some(max) => wish.with(Property::TopicAliasMaximum(max)),
            None => wish,
        };
        assert_eq!(wish.settle(&LIMITS).unwrap().link.topic_alias_max, settled, "{asked:?}");
    }
    assert_eq!(Wish::new(V311, "client").settle(&LIMITS).unwrap().link.topic_alias_max, 0);
}

/// [MQTT-3.1.2-29]
#[test]
fn problem_information_is_wanted_unless_the_client_says_no() {
    let wants = |wish: Wish<'_>| wish.settle(&LIMITS).unwrap().link.problem_information;
    assert!(wants(Wish::new(V5, "client")));
    let asked = |value| Property::RequestProblemInformation(value);
    assert!(wants(Wish::new(V5, "client").with(asked(true))));
    assert!(!wants(Wish::new(V5, "client").with(asked(false))));
}

/// [MQTT-3.1.2-28]
#[test]
fn response_information_is_given_to_clients_that_ask_where_a_prefix_is_configured() {
    let given = |wish: &Wish<'_>, prefix: &str| {
        let told = told(&wish.settle(&LIMITS).unwrap(), &LIMITS, prefix);
        told.list().response_information().map(str::to_owned)
    };
    let asks = |id, value| Wish::new(V5, id).with(Property::RequestResponseInformation(value));
    let information = given(&asks("client", true), "responses/");
    assert_eq!(information.as_deref(), Some("responses/client/"));
    assert_eq!(given(&asks("client", true), ""), None);
    assert_eq!(given(&asks("client", false), "responses/"), None);
    assert_eq!(given(&Wish::new(V5, "client"), "responses/"), None);
    assert_eq!(given(&asks("", true), "responses/").as_deref(), Some("responses/spare/"));
    // With these there would be no topic name.
    assert_eq!(given(&asks("a/+", true), "responses/"), None);
    let long = "c".repeat(65_530);
    assert_eq!(given(&asks(&long, true), "responses/"), None);
}

/// [MQTT-3.1.2-24]
#[test]
fn response_information_is_left_out_where_the_client_has_no_room_for_it() {
    // Without it the CONNACK has 16 bytes; with it 3 + 17 more.
    for (room, is_given) in [(35, false), (36, true), (16, false)] {
        let wish = Wish::new(V5, "client")
            .with(Property::RequestResponseInformation(true))
            .with(Property::MaximumPacketSize(room));
        let mut bytes = Vec::new();
        wish.settle(&LIMITS).unwrap().accept(false, &LIMITS, "responses/", &mut bytes);
        assert_eq!(bytes.len(), if is_given { 36 } else { 16 });
    }
}

/// [MQTT-3.1.2-24]
#[test]
fn client_without_room_for_the_connack_is_refused() {
    let wish = |room| Wish::new(V5, "client").with(Property::MaximumPacketSize(room));
    let (code, _, bytes) = wish(15).refused(&LIMITS);
    assert_eq!((code, bytes), (0x83, vec![0x20, 3, 0, 0x83, 0]));
    let (_, _, bytes) = wish(4).refused(&LIMITS);
    assert_eq!(bytes, [0_u8; 0], "not even the refusal fits");
}

/// [MQTT-3.1.2-21] [MQTT-3.2.2-21] [MQTT-3.2.2-22]
#[test]
fn server_keep_alive_is_told_where_it_differs_from_the_wish() {
    let limits = Limits { keep_alive_s_max: Some(20), ..LIMITS };
    for (wish_s, told_s) in [(0, Some(20)), (21, Some(20)), (20, None), (1, None)] {
        let wish = Wish { keep_alive_s: wish_s, ..Wish::new(V5, "client") };
        assert_eq!(wish.told(&limits).list().server_keep_alive_s(), told_s, "{wish_s}");
        assert_eq!(wish.told(&LIMITS).list().server_keep_alive_s(), None, "{wish_s}");
    }
}

/// [MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.2.2-16]
#[test]
fn client_without_an_identifier_is_told_the_one_it_gets() {
    let told = Wish::new(V5, "").told(&LIMITS);
    assert_eq!(told.list().assigned_client_identifier(), Some("spare"));
    let told = Wish::new(V5, "client").told(&LIMITS);
    assert_eq!(told.list().assigned_client_identifier(), None);
}

/// Section 3.2.2.3.2
#[test]
fn session_expiry_is_told_where_it_is_lowered() {
    let limits = Limits { session_expiry_s_max: Some(60), ..LIMITS };
    let minute = Expiry::After(Duration::from_secs(60));
    for (wish_s, granted, told_s) in [
        (0, Expiry::WithConnection, None),
        (59, Expiry::After(Duration::from_secs(59)), None),
        (60, minute, None),
        (61, minute, Some(60)),
        (u32::MAX, minute, Some(60)),
    ] {
        let wish = Wish::new(V5, "client").with(Property::SessionExpiryInterval(wish_s));
        assert_eq!(wish.settle(&limits).unwrap().expiry, granted);
        assert_eq!(wish.told(&limits).list().session_expiry_interval_s(), told_s);
        assert_eq!(wish.told(&LIMITS).list().session_expiry_interval_s(), None);
    }
    let unlimited = Wish::new(V5, "client").with(Property::SessionExpiryInterval(u32::MAX));
    assert_eq!(unlimited.settle(&LIMITS).unwrap().expiry, Expiry::Never);
    let persistent = Wish { clean_start: false, ..Wish::new(V311, "client") };
    assert_eq!(persistent.settle(&limits).unwrap().expiry, minute);
    assert_eq!(persistent.settle(&LIMITS).unwrap().expiry, Expiry::Never);
}

/// Section 3.14.2.2.2
#[test]
fn disconnect_may_change_the_session_expiry_within_the_same_limit() {
    let limits = Limits { session_expiry_s_max: Some(60), ..LIMITS };
    for (first_s, last_s, granted) in [
        (10, 0, Some(Expiry::WithConnection)),
        (10, 30, Some(Expiry::After(Duration::from_secs(30)))),
        (10, 1_000, Some(Expiry::After(Duration::from_secs(60)))),
        (0, 0, Some(Expiry::WithConnection)),
        (0, 1, None),
    ] {
        let mut pair = Pair::with_limits(Terms::V5, limits);
        let wish = Wish::new(V5, "client").with(Property::SessionExpiryInterval(first_s));
        pair.session.attach(limits, &wish.settle(&limits).unwrap(), pair.now);
        let mut properties = PropertiesBuf::new();
        properties.push(Property::SessionExpiryInterval(last_s));
        let reason = ReasonCode::Success;
        let properties = properties.as_properties();
        pair.say(&[Packet::Disconnect(mailboxqtt::codec::Disconnect { reason, properties })]);
        let closed = pair.close_reason().unwrap();
        match granted {
            Some(expiry) => {
                assert_eq!(closed, CloseReason::Disconnected);
                assert_eq!(pair.session.expiry(), expiry, "{first_s} to {last_s}");
            }
            None => assert_eq!(closed.reason_code(), Some(ReasonCode::ProtocolError)),
        }
    }
}

/// [MQTT-3.1.2-23]
#[test]
fn each_connection_sets_the_expiry_of_its_session_anew() {
    let open = |expiry_s: u32| {
        let wish = Wish::new(V5, "client").with(Property::SessionExpiryInterval(expiry_s));
        wish.settle(&LIMITS).unwrap()
    };
    let now = Instant::now();
    let mut session = Session::new(LIMITS, &open(100), now);
    for expiry_s in [5, 0, u32::MAX, 7] {
        session.detach(&CloseReason::Lost("gone".into()));
        session.attach(LIMITS, &open(expiry_s), now);
        let ends_at = match expiry_s {
            u32::MAX => None,
            seconds => Some(now + Duration::from_secs(seconds.into())),
        };
        assert_eq!(session.expiry().ends_at(now), ends_at);
    }
}

/// [MQTT-3.2.2-12] [MQTT-3.2.2-13]
#[test]
fn will_that_could_not_be_published_is_refused() {
    let qos_1 = Availability { qos_max: Qos::AtLeastOnce, ..Availability::EVERYTHING };
    let qos_1 = Limits { availability: qos_1, ..LIMITS };
    let refused = |version, will, limits| {
        let (code, ..) = Wish { will: Some(will), ..Wish::new(version, "client") }.refused(limits);
        code
    };
    assert_eq!(refused(V5, (2, false), &qos_1), 0x9B);
    assert_eq!(refused(V5, (1, false), &ONLY_QOS_0), 0x9B);
    assert_eq!(refused(V5, (0, true), &ONLY_QOS_0), 0x9A);
    assert_eq!(refused(V311, (2, false), &qos_1), 3);
    assert_eq!(refused(V311, (0, true), &ONLY_QOS_0), 3);
    for (will, limits) in [((1, true), &qos_1), ((0, false), &ONLY_QOS_0), ((2, true), &LIMITS)] {
        for version in [V5, V311] {
            let wish = Wish { will: Some(will), ..Wish::new(version, "client") };
            assert!(wish.settle(limits).is_ok(), "{will:?}");
        }
    }
}

/// [MQTT-3.2.2-9]: also a refusal says what would have been accepted.
#[test]
fn refusal_says_why_and_what_is_missing() {
    let wish = Wish { will: Some((1, false)), ..Wish::new(V5, "client") };
    let (_, sentence, bytes) = wish.refused(&ONLY_QOS_0);
    assert!(sentence.unwrap().contains("lower it"));
    let Ok(Packet::ConnAck(connack)) = decode(&bytes, V5) else { panic!("{bytes:?}") };
    assert_eq!(connack.properties.maximum_qos(), Some(Qos::AtMostOnce));
    assert_eq!(connack.properties.retain_available(), Some(false));
}

/// [MQTT-3.2.2-19]
#[test]
fn refusal_leaves_out_what_the_client_has_no_room_for() {
    let wish = |room| {
        let wish = Wish { will: Some((1, false)), ..Wish::new(V5, "client") };
        wish.with(Property::MaximumPacketSize(room))
    };
    let (_, sentence, whole) = wish(1000).refused(&ONLY_QOS_0);
    assert!(sentence.is_some());
    let room = whole.len() as u32;
    assert_eq!(wish(room).refused(&ONLY_QOS_0).2, whole);
    let (code, sentence, bytes) = wish(room - 1).refused(&ONLY_QOS_0);
    assert_eq!((code, sentence, bytes.len()), (0x9B, None, 15));
    assert_eq!(wish(15).refused(&ONLY_QOS_0).2, bytes);
    assert_eq!(wish(14).refused(&ONLY_QOS_0).2, [0x20, 3, 0, 0x9B, 0]);
    assert_eq!(wish(5).refused(&ONLY_QOS_0).2, [0x20, 3, 0, 0x9B, 0]);
    assert_eq!(wish(4).refused(&ONLY_QOS_0).2, [0_u8; 0]);
}

/// [MQTT-3.2.2-11] [MQTT-3.2.2-14]: DISCONNECT 0x9B and 0x9A; MQTT 3.1.1 can only be closed.
#[test]
fn publish_over_what_was_announced_ends_the_connection_and_is_not_routed() {
    for (packet_qos, retain, code) in [(1, false, 0x9B), (2, true, 0x9B), (0, true, 0x9A)] {
        for terms in [Terms::V5, Terms::V311] {
            let mut pair = Pair::with_limits(terms, ONLY_QOS_0);
            let Packet::Publish(packet) = publish("t", b"....", flow(packet_qos, 1, false)) else {
                panic!("not a PUBLISH")
            };
            pair.say(&[Packet::Publish(mailboxqtt::codec::Publish { retain, ..packet })]);
            assert_eq!(pair.routed, []);
            let reason = pair.close_reason().unwrap();
            assert!(reason.is_protocol_error());
            pair.session.say_goodbye(&reason, &mut pair.out);
            let told = if terms.version == V5 { vec![Heard::Disconnect(code)] } else { vec![] };
            assert_eq!(pair.hear(), told);
        }
    }
    let mut pair = Pair::with_limits(Terms::V5, ONLY_QOS_0);
    pair.say(&[publish("t", b"....", flow(0, 0, false))]);
    assert_eq!((pair.routed.len(), pair.close_reason()), (1, None));
}

/// [MQTT-3.2.2-10] [MQTT-3.8.3-2 of 3.1.1]
#[test]
fn subscriptions_get_the_highest_qos_that_there_is_and_missing_filters_are_refused_one_by_one() {
    let mut filters = SubscribeFiltersBuf::new();
    for filter in ["a", "a/+", "$share/g/a", "b"] {
        filters.push(filter, SubscribeOptions::new(Qos::ExactlyOnce));
    }
    let filters = filters.as_filters();
    let (id, properties) = (PacketId::new(7).unwrap(), Properties::EMPTY);
    let mut pair = Pair::with_limits(Terms::V311, ONLY_QOS_0);
    pair.say(&[Packet::Subscribe(Subscribe { id, properties, filters })]);
    pair.session.handle_part_done(0, 1, None, &mut pair.out);
    assert_eq!(pair.hear(), [Heard::SubAck(7, vec![0, 0x80, 0x80, 0])]);
    assert_eq!(pair.session.subscriptions(), 2);
}

/// Sections 3.2.2.3.11 and 3.2.2.3.13
#[test]
fn missing_kind_of_filter_ends_the_connection_of_a_client_that_was_told() {
    for (filter, code) in [
        ("a/+", ReasonCode::WildcardSubscriptionsNotSupported),
        ("$share/g/a", ReasonCode::SharedSubscriptionsNotSupported),
    ] {
        let mut filters = SubscribeFiltersBuf::new();
        filters.push("b", SubscribeOptions::new(Qos::AtMostOnce));
        filters.push(filter, SubscribeOptions::new(Qos::AtMostOnce));
        let (id, properties) = (PacketId::FIRST, Properties::EMPTY);
        let mut pair = Pair::with_limits(Terms::V5, ONLY_QOS_0);
        pair.say(&[Packet::Subscribe(Subscribe { id, properties, filters: filters.as_filters() })]);
        assert_eq!(pair.close_reason().unwrap().reason_code(), Some(code));
        assert_eq!(pair.session.subscriptions(), 0);
    }
}

/// Section 3.2.2.3.12
#[test]
fn subscription_identifier_ends_the_connection_where_there_are_none() {
    let mut filters = SubscribeFiltersBuf::new();
    filters.push("a", SubscribeOptions::new(Qos::AtMostOnce));
    let mut properties = PropertiesBuf::new();
    properties.push(Property::SubscriptionIdentifier(1));
    let (id, properties) = (PacketId::FIRST, properties.as_properties());
    let mut pair = Pair::with_limits(Terms::V5, ONLY_QOS_0);
    pair.say(&[Packet::Subscribe(Subscribe { id, properties, filters: filters.as_filters() })]);
    let reason = pair.close_reason().unwrap();
    assert_eq!(reason.reason_code(), Some(ReasonCode::SubscriptionIdentifiersNotSupported));
}
