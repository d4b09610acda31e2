//! What only MQTT 5 has, as the v5 client of `rumqttc` sees it.
//!
//! A [`Peer`] turns the event loop of its client itself while it waits for something, so nothing happens
//! behind the back of a test; to drop it is to lose the connection.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use ::rumqttc::Outgoing;
use ::rumqttc::v5::mqttbytes::QoS;
use ::rumqttc::v5::mqttbytes::v5::{
    DisconnectReasonCode, Filter, LastWill, LastWillProperties, Packet, PubAckReason, PubRecReason,
    Publish, PublishProperties, RetainForwardRule, SubscribeProperties, SubscribeReasonCode,
};
use ::rumqttc::v5::{Client, Connection, ConnectionError, Event, MqttOptions, StateError};

use crate::broker::Broker;
use crate::process::{PATIENCE, unique};

const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
const QOS_1: QoS = QoS::AtLeastOnce;

#[test]
fn every_property_of_a_message_is_forwarded_and_user_properties_keep_their_order() {
    let broker = Broker::start();
    let topic = unique("props");
    let (mut sender, mut receiver) = (Peer::start(&broker), Peer::start(&broker));
    receiver.subscribe(&topic, QoS::ExactlyOnce, None);
    let pairs = [("k", "1"), ("other", "ü"), ("k", "3"), ("a", "")];
    let sent = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(600),
        topic_alias: None,
        response_topic: Some("answers/here".to_owned()),
        correlation_data: Some((0..=255).collect::<Vec<u8>>().into()),
        user_properties: pairs.map(|(name, value)| (name.into(), value.into())).into(),
        subscription_identifiers: Vec::new(),
        content_type: Some("text/plain".to_owned()),
    };
    for qos in QOS {
        sender.publish_with(&topic, qos, "hello", sent.clone());
        let message = receiver.message();
        assert_eq!((message.qos, text(&message)), (qos, "hello".to_owned()));
        let mut properties = message.properties.unwrap();
        let left = properties.message_expiry_interval.take().unwrap();
        assert!((1..=600).contains(&left), "{left} seconds are left");
        assert_eq!(properties, PublishProperties { message_expiry_interval: None, ..sent.clone() });
    }
    broker.stop();
}

#[test]
fn acknowledgements_say_what_became_of_the_request() {
    let broker = Broker::start();
    let topic = unique("answer");
    let (mut sender, mut receiver) = (Peer::start(&broker), Peer::start(&broker));
    let answers = |sender: &mut Peer| {
        [QOS_1, QoS::ExactlyOnce].map(|qos| sender.publish(&topic, qos, "hello"))
    };
    assert_eq!(answers(&mut sender), [Answer::NoMatchingSubscribers; 2]);
    let too_deep = vec!["+"; 201].join("/");
    let filters = [(&*topic, QoS::ExactlyOnce), (&*too_deep, QOS_1), ("$share/crew/x", QOS_1)];
    let filters = filters.map(|(filter, qos)| Filter::new(filter, qos));
    let granted = receiver.subscribe_all(filters.into(), None);
    let expected = [
        SubscribeReasonCode::Success(QoS::ExactlyOnce),
        SubscribeReasonCode::TopicFilterInvalid,
        SubscribeReasonCode::Success(QOS_1),
    ];
    assert_eq!(granted, expected);
    assert_eq!(answers(&mut sender), [Answer::Success; 2]);
    assert_eq!(sender.publish("$SYS/broker/uptime", QOS_1, "x"), Answer::NotAuthorized);
    broker.stop();
}

#[test]
fn one_copy_carries_the_identifiers_of_all_subscriptions_that_match() {
    let broker = Broker::start();
    let root = unique("sub");
    let topic = format!("{root}/one/two");
    let (mut sender, mut receiver) = (Peer::start(&broker), Peer::start(&broker));
    sender.publish_retained(&topic, "retained");
    let filters = [
        (format!("{root}/#"), Some(1)),
        (format!("{root}/+/two"), Some(268_435_455)),
        (topic.clone(), None),
    ];
    for (filter, identifier) in &filters {
        receiver.subscribe(filter, QOS_1, *identifier);
        let message = receiver.message();
        assert_eq!((text(&message), message.retain), ("retained".to_owned(), true));
        assert_eq!(identifiers(&message), BTreeSet::from_iter(*identifier));
    }
    for qos in [QoS::AtMostOnce, QOS_1] {
        sender.publish(&topic, qos, "live");
        let message = receiver.message();
        assert_eq!(text(&message), "live");
        assert_eq!(identifiers(&message), BTreeSet::from([1, 268_435_455]));
    }
    broker.stop();
}

#[test]
fn subscription_options_are_applied() {
    let broker = Broker::start();
    let topic = unique("options");
    let (mut sender, mut other) = (Peer::start(&broker), Peer::start(&broker));
    sender.publish_retained(&topic, "retained");
    let filter = Filter::new(&*topic, QOS_1);
    let no_local = Filter { nolocal: true, ..filter.clone() };
    // Nothing is sent: the first does not want it, the second is not new.
    for rule in [RetainForwardRule::Never, RetainForwardRule::OnNewSubscribe] {
        let filter = Filter { retain_forward_rule: rule, ..no_local.clone() };
        sender.subscribe_all(vec![filter], None);
    }
    let as_published = Filter { preserve_retain: true, ..filter };
    other.subscribe_all(vec![as_published], None);
    assert_eq!(text(&other.message()), "retained");

    sender.publish_retained(&topic, "own");
    let message = other.message();
    assert_eq!((text(&message), message.retain), ("own".to_owned(), true));
    other.publish(&topic, QOS_1, "of another");
    assert_eq!(text(&sender.message()), "of another");
    broker.stop();
}

/// The library hands messages out as they came, so the test keeps what the aliases stand for.
#[test]
fn topic_aliases_stand_for_topics_in_both_directions() {
    let broker = Broker::start();
    let root = unique("alias");
    let mut options = options(&broker, &unique("rumqttc"));
    options.set_topic_alias_max(Some(2));
    let (mut sender, mut receiver) = (Peer::start(&broker), Peer::connect(options));
    receiver.subscribe(&format!("{root}/+"), QoS::ExactlyOnce, None);
    let topics = ["a", "b", "c"].map(|letter| format!("{root}/{letter}"));
    let (mut learnt, mut without_topic) = (HashMap::new(), 0);
    for qos in QOS {
        for (topic, alias) in topics.iter().zip([64, 1, 2]) {
            let with = PublishProperties { topic_alias: Some(alias), ..Default::default() };
            sender.publish_with(topic, qos, "named", with.clone());
            sender.publish_with("", qos, "by alias", with);
        }
        let mut received: HashMap<_, Vec<_>> = HashMap::new();
        for message in (0..6).map(|_| receiver.message()) {
            let alias = message.properties.as_ref().and_then(|properties| properties.topic_alias);
            let topic = match alias {
                Some(alias) if message.topic.is_empty() => {
                    without_topic += 1;
                    Clone::clone(&learnt[&alias])
                }
                _ => message.topic.clone(),
            };
            if let Some(alias) = alias {
                assert!((1..=2).contains(&alias));
                learnt.insert(alias, topic.clone());
            }
            received.entry(topic).or_default().push(text(&message));
        }
        for topic in &topics {
            assert_eq!(received[topic.as_bytes()], ["named", "by alias"]);
        }
    }
    // Each of the two was named once, and the third always.
    assert_eq!((learnt.len(), without_topic), (2, 2 * 5));
    broker.stop();
}

#[test]
fn no_more_messages_are_on_their_way_than_the_client_takes() {
    let broker = Broker::start();
    let topic = unique("window");
    let mut options = options(&broker, &unique("rumqttc"));
    options.set_receive_maximum(Some(3)).set_manual_acks(true);
    let (mut sender, mut slow) = (Peer::start(&broker), Peer::connect(options));
    slow.subscribe(&topic, QOS_1, None);
    for n in 0..10 {
        sender.publish(&topic, QOS_1, &n.to_string());
    }
    let mut open = VecDeque::new();
    for n in 0..10 {
        slow.settle();
        open.append(&mut slow.messages);
        assert_eq!(open.len(), 3.min(10 - n));
        let oldest: Publish = open.pop_front().unwrap();
        assert_eq!(text(&oldest), n.to_string());
        slow.client.ack(&oldest).unwrap();
    }
    broker.stop();
}

#[test]
fn session_goes_on_as_it_was_until_its_expiry_and_not_after() {
    let broker = Broker::start();
    let (topic, ends, id) = (unique("session"), unique("ends"), unique("keeper"));
    let (mut sender, mut watcher) = (Peer::start(&broker), Peer::start(&broker));
    watcher.subscribe(&ends, QOS_1, None);
    let mut of_keeper = options(&broker, &id);
    of_keeper.set_clean_start(false).set_session_expiry_interval(Some(600)).set_manual_acks(true);
    let mut keeper = Peer::connect(of_keeper.clone());
    assert!(!keeper.session_present);
    keeper.subscribe(&topic, QOS_1, Some(7));
    let properties =
        PublishProperties { user_properties: vec![("k".into(), "v".into())], ..Default::default() };
    sender.publish_with(&topic, QOS_1, "unacknowledged", properties);
    assert_eq!(text(&keeper.message()), "unacknowledged");
    drop(keeper);
    sender.publish(&topic, QOS_1, "queued");

    // The will waits for the end of the session and tells of it.
    let delay = LastWillProperties { delay_interval: Some(3600), ..no_will_properties() };
    let will = LastWill::new(&ends, "session is over", QOS_1, false, Some(delay));
    of_keeper.set_session_expiry_interval(Some(1)).set_last_will(will);
    let mut keeper = Peer::connect(of_keeper.clone());
    assert!(keeper.session_present);
    let message = keeper.message();
    assert_eq!((text(&message), message.dup), ("unacknowledged".to_owned(), true));
    assert_eq!(identifiers(&message), BTreeSet::from([7]));
    assert_eq!(message.properties.unwrap().user_properties, [("k".into(), "v".into())]);
    assert_eq!(text(&keeper.message()), "queued");
    let lost = Instant::now();
    drop(keeper);
    assert_eq!(text(&watcher.message()), "session is over");
    assert!(lost.elapsed() >= Duration::from_secs(1), "after {:?}", lost.elapsed());
    assert!(!Peer::connect(of_keeper).session_present);
    broker.stop();
}

#[test]
fn will_waits_for_its_delay_and_arrives_with_its_properties() {
    let broker = Broker::start();
    let topic = unique("will");
    let mut watcher = Peer::start(&broker);
    watcher.subscribe(&topic, QOS_1, None);
    let pairs = [("k", "1"), ("other", "2"), ("k", "3")];
    let user_properties = pairs.map(|(name, value)| (name.into(), value.into())).to_vec();
    let properties = LastWillProperties {
        delay_interval: Some(1),
        content_type: Some("text/plain".to_owned()),
        user_properties: user_properties.clone(),
        ..no_will_properties()
    };
    let mut doomed = options(&broker, &unique("doomed"));
    doomed.set_session_expiry_interval(Some(600));
    doomed.set_last_will(LastWill::new(&topic, "gone", QOS_1, false, Some(properties)));
    let doomed = Peer::connect(doomed);
    let lost = Instant::now();
    drop(doomed);
    let message = watcher.message();
    assert!(lost.elapsed() >= Duration::from_secs(1), "after {:?}", lost.elapsed());
    assert_eq!((text(&message), message.qos, message.retain), ("gone".to_owned(), QOS_1, false));
    let properties = message.properties.unwrap();
    assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
    assert_eq!(properties.user_properties, user_properties);
    broker.stop();
}

#[test]
fn members_of_a_group_share_messages_and_those_of_a_lost_member_go_to_the_other() {
    let broker = Broker::start();
    let topic = unique("work");
    let filter = format!("$share/crew/{topic}");
    let mut of_lost = options(&broker, &unique("lost"));
    of_lost.set_manual_acks(true);
    let (mut sender, mut one) = (Peer::start(&broker), Peer::start(&broker));
    let mut lost = Peer::connect(of_lost);
    sender.publish_retained(&topic, "retained, not for the group");
    for member in [&mut one, &mut lost] {
        member.subscribe(&filter, QOS_1, None);
    }
    let sent: BTreeSet<String> = (0..60).map(|n| n.to_string()).collect();
    for text in &sent {
        assert_eq!(sender.publish(&topic, QOS_1, text), Answer::Success);
    }
    one.settle();
    lost.settle();
    assert!(!one.messages.is_empty() && !lost.messages.is_empty());
    assert_eq!(one.messages.len() + lost.messages.len(), sent.len());
    drop(lost);
    let received: BTreeSet<String> = (0..60).map(|_| text(&one.message())).collect();
    assert_eq!(received, sent);
    one.settle();
    assert!(one.messages.is_empty());
    broker.stop();
}

#[test]
fn client_is_told_that_its_session_was_taken_over() {
    let broker = Broker::start();
    let id = unique("twin");
    let mut first = Peer::connect(options(&broker, &id));
    let _second = Peer::connect(options(&broker, &id));
    let error = first.connection.recv_timeout(PATIENCE).unwrap().unwrap_err();
    let ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) = error else {
        panic!("the connection failed without a word: {error}")
    };
    assert_eq!(reason_code, DisconnectReasonCode::SessionTakenOver);
    broker.stop();
}

fn options(broker: &Broker, id: &str) -> MqttOptions {
    let addr = broker.addr();
    let mut options = MqttOptions::new(id, addr.ip().to_string(), addr.port());
    options.set_clean_start(true);
    options
}

fn no_will_properties() -> LastWillProperties {
    LastWillProperties {
        delay_interval: None,
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: Vec::new(),
    }
}

fn text(message: &Publish) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

/// Of its subscriptions; their order means nothing.
fn identifiers(message: &Publish) -> BTreeSet<usize> {
    let properties = message.properties.iter();
    properties.flat_map(|properties| properties.subscription_identifiers.clone()).collect()
}

/// What the broker said of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    Success,
    NoMatchingSubscribers,
    NotAuthorized,
}

/// A connected client.
struct Peer {
    client: Client,
    connection: Connection,
    session_present: bool,
    /// Came while something else was waited for.
    messages: VecDeque<Publish>,
}

impl Peer {
    fn start(broker: &Broker) -> Self {
        Self::connect(options(broker, &unique("rumqttc")))
    }

    fn connect(options: MqttOptions) -> Self {
        let (client, connection) = Client::new(options, 16);
        let (session_present, messages) = (false, VecDeque::new());
        let mut peer = Self { client, connection, session_present, messages };
        peer.session_present = peer.wait_for("it was connected", |packet| match packet {
            Packet::ConnAck(connack) => Some(connack.session_present),
            _ => None,
        });
        peer
    }

    fn subscribe(&mut self, filter: &str, qos: QoS, identifier: Option<usize>) {
        let granted = self.subscribe_all(vec![Filter::new(filter, qos)], identifier);
        assert_eq!(granted, [SubscribeReasonCode::Success(qos)]);
    }

    /// Returns the codes of SUBACK.
    fn subscribe_all(
        &mut self,
        filters: Vec<Filter>,
        identifier: Option<usize>,
    ) -> Vec<SubscribeReasonCode> {
        let properties = SubscribeProperties { id: identifier, user_properties: Vec::new() };
        self.client.subscribe_many_with_properties(filters, properties).unwrap();
        self.wait_for("it had subscribed", |packet| match packet {
            Packet::SubAck(suback) => Some(suback.return_codes.clone()),
            _ => None,
        })
    }

    fn publish(&mut self, topic: &str, qos: QoS, text: &str) -> Answer {
        self.publish_with(topic, qos, text, PublishProperties::default())
    }

    fn publish_retained(&mut self, topic: &str, text: &str) {
        self.client.publish(topic, QOS_1, true, text.to_owned()).unwrap();
        self.answer(QOS_1);
    }

    /// Returns when the broker has taken the message, at QoS 0 when it is sent.
    fn publish_with(
        &mut self,
        topic: &str,
        qos: QoS,
        text: &str,
        properties: PublishProperties,
    ) -> Answer {
        let text = text.to_owned();
        self.client.publish_with_properties(topic, qos, false, text, properties).unwrap();
        self.answer(qos)
    }

    fn answer(&mut self, qos: QoS) -> Answer {
        if qos == QoS::AtMostOnce {
            self.turn_until("it had published", |event| {
                matches!(event, Event::Outgoing(Outgoing::Publish(_))).then_some(())
            });
            return Answer::Success;
        }
        self.wait_for("its message was acknowledged", |packet| match packet {
            Packet::PubAck(puback) => Some(match puback.reason {
                PubAckReason::Success => Answer::Success,
                PubAckReason::NoMatchingSubscribers => Answer::NoMatchingSubscribers,
                PubAckReason::NotAuthorized => Answer::NotAuthorized,
                other => panic!("PUBACK says {other:?}"),
            }),
            Packet::PubRec(pubrec) => Some(match pubrec.reason {
                PubRecReason::Success => Answer::Success,
                PubRecReason::NoMatchingSubscribers => Answer::NoMatchingSubscribers,
                other => panic!("PUBREC says {other:?}"),
            }),
            _ => None,
        })
    }

    fn message(&mut self) -> Publish {
        if let Some(message) = self.messages.pop_front() {
            return message;
        }
        self.turn_until("a message came", |event| match event {
            Event::Incoming(Packet::Publish(_)) => Some(()),
            _ => None,
        });
        self.messages.pop_back().unwrap()
    }

    /// When this returns, all has come that was in the mailbox before and that the broker may send: it
    /// answers a read before it sends the mail that it took with it, so the second answer is behind that.
    fn settle(&mut self) {
        for _ in 0..2 {
            self.subscribe(&unique("settle"), QoS::AtMostOnce, None);
        }
    }

    fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(&Packet) -> Option<T>) -> T {
        self.turn_until(what, |event| match event {
            Event::Incoming(packet) => pick(packet),
            Event::Outgoing(_) => None,
        })
    }

    /// Turns the event loop until `pick` takes an event; messages are kept.
    fn turn_until<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = match self.connection.recv_timeout(left) {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => panic!("the connection failed before {what}: {error}"),
                Err(error) => panic!("nothing came in time before {what}: {error:?}"),
            };
            let picked = pick(&event);
            if let Event::Incoming(Packet::Publish(message)) = event {
                self.messages.push_back(message);
            }
            if let Some(picked) = picked {
                return picked;
            }
        }
    }
}
