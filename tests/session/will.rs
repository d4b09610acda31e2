//! What a client leaves behind: when it is published, when it is not, and as what.

use std::time::{Duration, Instant};

use mailboxqtt::codec::{
    Connect, Disconnect, Packet, Properties, PropertiesBuf, Property, ReasonCode, Will, decode,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{ClientId, ProtocolVersion, Qos};
use mailboxqtt::session::{CloseReason, Expiry, Opening, Session, negotiate};

use crate::pair::{LIMITS, Pair, Terms};

/// A CONNECT with a will of these properties, and a session that stays for `expiry_s`.
fn opening(version: ProtocolVersion, expiry_s: u32, of_will: &PropertiesBuf) -> Opening {
    let mut own = PropertiesBuf::new();
    own.push(Property::SessionExpiryInterval(expiry_s));
    let connect = Connect {
        version,
        clean_start: false,
        keep_alive_s: 0,
        client_id: "client",
        properties: if version == V5 { own.as_properties() } else { Properties::EMPTY },
        will: Some(Will {
            topic: "will",
            payload: b"gone",
            qos: Qos::AtLeastOnce,
            retain: true,
            properties: of_will.as_properties(),
        }),
        user_name: None,
        password: None,
    };
    negotiate(&connect, &LIMITS, || ClientId::new("spare")).unwrap()
}

fn delay(seconds: u32) -> PropertiesBuf {
    let mut properties = PropertiesBuf::new();
    properties.push(Property::WillDelayInterval(seconds));
    properties
}

fn lost() -> CloseReason {
    CloseReason::Lost("gone".into())
}

/// Seconds from the end of the connection to the will.
fn wait_s(expiry_s: u32, delay_s: u32) -> u64 {
    let now = Instant::now();
    let mut session = Session::new(LIMITS, &opening(V5, expiry_s, &delay(delay_s)), now);
    let will = session.detach(&lost()).unwrap();
    let due_at = will.due_at(now, session.expiry().ends_at(now));
    due_at.duration_since(now).as_secs()
}

/// [MQTT-3.1.2-8]
#[test]
fn will_waits_for_its_delay_or_for_the_end_of_the_session_whichever_is_first() {
    for (expiry_s, delay_s, expected) in [
        (0, 0, 0),
        (0, 100, 0),
        (100, 0, 0),
        (100, 5, 5),
        (5, 100, 5),
        (5, 5, 5),
        (u32::MAX, 7, 7),
        (u32::MAX, u32::MAX, u64::from(u32::MAX)),
        (9, u32::MAX, 9),
    ] {
        assert_eq!(wait_s(expiry_s, delay_s), expected, "{expiry_s}, {delay_s}");
    }
}

#[test]
fn will_of_v311_never_waits() {
    let now = Instant::now();
    let mut session = Session::new(LIMITS, &opening(V311, 0, &PropertiesBuf::new()), now);
    let will = session.detach(&lost()).unwrap();
    assert_eq!(will.due_at(now, session.expiry().ends_at(now)), now);
}

/// [MQTT-3.1.3-10] [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-18] [MQTT-3.3.2-20]
#[test]
fn will_is_published_with_its_properties_in_order_and_without_the_delay() {
    let kept = [
        Property::UserProperty { name: "b", value: "1" },
        Property::PayloadFormatIndicator(true),
        Property::UserProperty { name: "a", value: "2" },
        Property::MessageExpiryInterval(60),
        Property::ContentType("text/plain"),
        Property::UserProperty { name: "b", value: "1" },
        Property::ResponseTopic("answers"),
        Property::CorrelationData(b"\0\x01"),
    ];
    let mut properties = PropertiesBuf::new();
    for (index, property) in kept.iter().enumerate() {
        if index == 3 {
            properties.push(Property::WillDelayInterval(1));
        }
        properties.push(*property);
    }
    let mut session = Session::new(LIMITS, &opening(V5, 9, &properties), Instant::now());
    let will = session.detach(&lost()).unwrap();
    let Packet::Publish(publish) = decode(&will.frame, V5).unwrap() else { panic!("{will:?}") };
    assert_eq!(publish.properties.iter().collect::<Vec<_>>(), kept);
    assert_eq!((publish.topic, publish.payload), ("will", &b"gone"[..]));
    assert_eq!((publish.delivery.qos(), publish.retain), (Qos::AtLeastOnce, true));
    assert_eq!(will.delay, Duration::from_secs(1));
}

/// [MQTT-3.1.2-8] [MQTT-3.1.2-10] [MQTT-3.14.4-3]
#[test]
fn only_disconnect_with_reason_0_discards_the_will() {
    for (reason, is_published) in [
        (ReasonCode::NORMAL_DISCONNECTION, false),
        (ReasonCode::DisconnectWithWill, true),
        (ReasonCode::UnspecifiedError, true),
        (ReasonCode::ProtocolError, true),
    ] {
        let mut pair = Pair::new(Terms::V5);
        pair.session.attach(LIMITS, &opening(V5, 9, &delay(5)), pair.now);
        let properties = Properties::EMPTY;
        pair.say(&[Packet::Disconnect(Disconnect { reason, properties })]);
        let closed = pair.close_reason().unwrap();
        assert_eq!(pair.session.detach(&closed).is_some(), is_published, "{reason}");
        assert!(pair.session.detach(&closed).is_none(), "there is one will per connection");
    }
    for reason in [
        lost(),
        CloseReason::KeepAliveTimeout(1),
        CloseReason::TakenOver,
        CloseReason::ShuttingDown,
        CloseReason::Protocol("test"),
    ] {
        let opening = opening(V5, 9, &delay(5));
        let mut session = Session::new(LIMITS, &opening, Instant::now());
        assert!(session.detach(&reason).is_some(), "{reason}");
    }
}

/// Section 3.14.2.2.2: a session that DISCONNECT ends takes no time, and so its will does not wait.
#[test]
fn expiry_on_disconnect_bounds_the_wait_of_the_will() {
    let mut pair = Pair::new(Terms::V5);
    pair.session.attach(LIMITS, &opening(V5, 100, &delay(50)), pair.now);
    let mut properties = PropertiesBuf::new();
    properties.push(Property::SessionExpiryInterval(0));
    let reason = ReasonCode::DisconnectWithWill;
    let properties = properties.as_properties();
    pair.say(&[Packet::Disconnect(Disconnect { reason, properties })]);
    let closed = pair.close_reason().unwrap();
    let will = pair.session.detach(&closed).unwrap();
    assert_eq!(pair.session.expiry(), Expiry::WithConnection);
    assert_eq!(will.due_at(pair.now, pair.session.expiry().ends_at(pair.now)), pair.now);
}

/// [MQTT-3.1.2-7]
#[test]
fn each_connection_brings_its_own_will_or_none() {
    let mut pair = Pair::new(Terms::V5);
    pair.session.attach(LIMITS, &opening(V5, 9, &delay(5)), pair.now);
    pair.session.attach(LIMITS, &opening(V5, 9, &delay(6)), pair.now);
    assert_eq!(pair.session.detach(&lost()).unwrap().delay, Duration::from_secs(6));
    pair.resume(Terms::V5, LIMITS);
    assert!(pair.session.detach(&lost()).is_none());
}
