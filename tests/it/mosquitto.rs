//! Behaviour as `mosquitto_pub` and `mosquitto_sub` see it, in all three protocol versions; what only
//! MQTT 5 has is in [`v5`].
//!
//! A [`Subscriber`] exists only once the broker has acknowledged its subscription: with `-d`
//! mosquitto_sub says so. `stdbuf` makes it say so at once, although its output is a pipe. Where a
//! test shows that something does *not* arrive, it sends a later message that does, on the same
//! topic, and looks at which one came first.

use std::collections::VecDeque;
use std::io::Write;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::broker::Broker;
use crate::process::{Process, require, unique};

mod v5;

const VERSIONS: [&str; 3] = ["mqttv31", "mqttv311", "mqttv5"];

/// How mosquitto_sub prints a message. The payload is last, because it may contain the separator.
const FORMAT: &str = "MESSAGE|%q|%r|%C|%R|%D|%P|%E|%F|%S|%t|%p";

#[test]
fn message_arrives_with_the_lower_qos_of_publisher_and_subscriber() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("qos");
        let subscribers = ["0", "1", "2"].map(|qos| {
            (qos, Subscriber::start(&broker, &["-V", version, "-t", &topic, "-q", qos]))
        });
        for qos in ["0", "1", "2"] {
            publish(&broker, &["-V", version, "-t", &topic, "-q", qos, "-m", qos]);
        }
        for (granted, mut subscriber) in subscribers {
            for published in ["0", "1", "2"] {
                let message = subscriber.next();
                assert_eq!(message.payload, published);
                assert_eq!(message.qos, published.min(granted));
                assert_eq!(message.topic, topic);
            }
        }
    }
    broker.stop();
}

#[test]
fn message_crosses_from_each_version_to_each_other_version() {
    let broker = Broker::start();
    let topic = unique("cross");
    let subscribers = VERSIONS
        .map(|version| Subscriber::start(&broker, &["-V", version, "-t", &topic, "-q", "2"]));
    for version in VERSIONS {
        for qos in ["0", "1", "2"] {
            let text = format!("{version} at {qos}");
            publish(&broker, &["-V", version, "-t", &topic, "-q", qos, "-m", &text]);
        }
    }
    for mut subscriber in subscribers {
        let received = subscriber.take(VERSIONS.len() * 3);
        for qos in ["0", "1", "2"] {
            let expected = VERSIONS.map(|version| format!("{version} at {qos}"));
            assert_eq!(payloads_at(qos, &received), expected);
        }
    }
    broker.stop();
}

#[test]
fn plus_matches_exactly_one_level() {
    let broker = Broker::start();
    for version in VERSIONS {
        let root = unique("plus");
        let filter = format!("{root}/+/temperature");
        let mut subscriber = Subscriber::start(&broker, &["-V", version, "-t", &filter]);

        for level in ["kitchen/temperature/now", "temperature", "a/b/temperature"] {
            publish(&broker, &["-t", &format!("{root}/{level}"), "-m", "no"]);
        }
        // An empty level is a level.
        for level in ["kitchen/temperature", "/temperature"] {
            publish(&broker, &["-t", &format!("{root}/{level}"), "-m", "yes"]);
            let message = subscriber.next();
            assert_eq!(message.topic, format!("{root}/{level}"));
            assert_eq!(message.payload, "yes");
        }
    }
    broker.stop();
}

#[test]
fn hash_matches_the_parent_and_every_level_below_it() {
    let broker = Broker::start();
    for version in VERSIONS {
        let root = unique("hash");
        let mut subscriber =
            Subscriber::start(&broker, &["-V", version, "-t", &format!("{root}/#")]);

        publish(&broker, &["-t", &format!("{root}er"), "-m", "no"]);
        for below in ["", "/a", "/a/b/c/d", "/"] {
            publish(&broker, &["-t", &format!("{root}{below}"), "-m", "yes"]);
            assert_eq!(subscriber.next().topic, format!("{root}{below}"));
        }
    }
    broker.stop();
}

#[test]
fn leading_wildcard_does_not_match_topics_that_begin_with_a_dollar() {
    let broker = Broker::start();
    let root = unique("dollar");
    let system = format!("${root}/x");
    let mut all = Subscriber::start(&broker, &["-t", "#", "-t", "+/x"]);
    let mut explicit = Subscriber::start(&broker, &["-t", &format!("${root}/+")]);

    publish(&broker, &["-t", &system, "-m", "for those who ask for it"]);
    assert_eq!(explicit.next().topic, system);

    publish(&broker, &["-t", &format!("{root}/x"), "-m", "for all"]);
    // Other tests may share the broker, so `#` sees their topics as well.
    loop {
        let topic = all.next().topic;
        assert!(!topic.starts_with('$'), "`#` must not match `{topic}`");
        if topic == format!("{root}/x") {
            break;
        }
    }
    broker.stop();
}

#[test]
fn retained_message_reaches_a_later_subscriber_with_the_retain_flag() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("retain");
        publish(&broker, &["-V", version, "-t", &topic, "-r", "-q", "1", "-m", "old"]);
        publish(&broker, &["-V", version, "-t", &topic, "-r", "-q", "1", "-m", "kept"]);
        let wildcard = format!("{topic}/#");
        for filter in [&topic, &wildcard] {
            let mut late = Subscriber::start(&broker, &["-V", version, "-t", filter, "-q", "2"]);
            let message = late.next();
            assert_eq!((&*message.payload, &*message.retain), ("kept", "1"));
            assert_eq!(message.qos, "1");
            // A subscription that was there before the message gets it as a live one.
            publish(&broker, &["-V", version, "-t", &topic, "-r", "-q", "1", "-m", "kept"]);
            let message = late.next();
            assert_eq!((&*message.payload, &*message.retain), ("kept", "0"));
        }
    }
    broker.stop();
}

#[test]
fn empty_retained_message_clears_the_retained_one() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("clear");
        publish(&broker, &["-V", version, "-t", &topic, "-r", "-q", "1", "-m", "kept"]);
        publish(&broker, &["-V", version, "-t", &topic, "-r", "-q", "1", "-n"]);
        let mut late = Subscriber::start(&broker, &["-V", version, "-t", &topic]);
        publish(&broker, &["-V", version, "-t", &topic, "-m", "live"]);
        let message = late.next();
        assert_eq!((&*message.payload, &*message.retain), ("live", "0"));
    }
    broker.stop();
}

#[test]
fn will_is_published_when_its_client_is_killed() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("will");
        let mut watcher = Subscriber::start(&broker, &["-V", version, "-t", &topic, "-q", "2"]);
        let doomed = Subscriber::start(
            &broker,
            &[
                "-V",
                version,
                "-t",
                &unique("doomed"),
                "--will-topic",
                &topic,
                "--will-payload",
                "gone",
                "--will-qos",
                "1",
                "--will-retain",
            ],
        );
        doomed.process.signal(Signal::KILL);

        let will = watcher.next();
        assert_eq!((&*will.payload, &*will.qos, &*will.retain), ("gone", "1", "0"));
        let mut late = Subscriber::start(&broker, &["-V", version, "-t", &topic]);
        let will = late.next();
        assert_eq!((&*will.payload, &*will.retain), ("gone", "1"));
    }
    broker.stop();
}

#[test]
fn no_will_is_published_after_a_clean_disconnect() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (topic, will_topic, id) = (unique("wish"), unique("nowill"), unique("polite"));
        let mut watcher = Subscriber::start(&broker, &["-V", version, "-t", &will_topic]);
        let mut polite = Subscriber::start(
            &broker,
            &[
                "-V",
                version,
                "-i",
                &id,
                "-t",
                &topic,
                "-C",
                "1",
                "--will-topic",
                &will_topic,
                "--will-payload",
                "gone",
            ],
        );
        publish(&broker, &["-V", version, "-t", &topic, "-m", "you may go"]);
        assert_eq!(polite.next().payload, "you may go");
        polite.process.succeed();

        // With the same identifier: the broker has finished the earlier connection by then.
        publish(&broker, &["-V", version, "-i", &id, "-t", &will_topic, "-m", "still here"]);
        assert_eq!(watcher.next().payload, "still here");
    }
    broker.stop();
}

#[test]
fn persistent_session_gets_in_order_what_was_published_while_it_was_away() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (topic, id) = (unique("away"), unique("keeper"));
        let session = persistent(version, &id, &topic);
        Subscriber::register(&broker, &session);

        for (qos, text) in [("1", "a"), ("2", "b"), ("1", "c"), ("2", "d")] {
            publish(&broker, &["-V", version, "-t", &topic, "-q", qos, "-m", text]);
        }
        let mut back = Subscriber::start(&broker, &session);
        let received = back.take(4);
        assert_eq!(payloads_at("1", &received), ["a", "c"]);
        assert_eq!(payloads_at("2", &received), ["b", "d"]);

        publish(&broker, &["-V", version, "-t", &topic, "-m", "live"]);
        assert_eq!(back.next().payload, "live");
    }
    broker.stop();
}

#[test]
fn clean_connect_discards_the_persistent_session() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (topic, id) = (unique("forget"), unique("keeper"));
        let session = persistent(version, &id, &topic);
        Subscriber::register(&broker, &session);
        publish(&broker, &["-V", version, "-t", &topic, "-q", "1", "-m", "lost on purpose"]);

        // mosquitto_pub connects with a clean session.
        publish(&broker, &["-V", version, "-i", &id, "-t", &unique("other"), "-m", "x"]);

        let mut back = Subscriber::start(&broker, &session);
        publish(&broker, &["-V", version, "-t", &topic, "-q", "1", "-m", "live"]);
        assert_eq!(back.next().payload, "live");
    }
    broker.stop();
}

#[test]
fn ten_thousand_lines_at_qos_0_arrive_in_order() {
    lines_arrive_in_order_exactly_once("0");
}

#[test]
fn ten_thousand_lines_at_qos_1_arrive_in_order() {
    lines_arrive_in_order_exactly_once("1");
}

#[test]
fn ten_thousand_lines_at_qos_2_arrive_in_order() {
    lines_arrive_in_order_exactly_once("2");
}

#[test]
fn payload_of_one_mebibyte_arrives_unchanged() {
    let broker = Broker::start();
    let payload: String = ('a'..='z').cycle().take(1 << 20).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(payload.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    for version in VERSIONS {
        let topic = unique("large");
        let mut subscriber = Subscriber::start(&broker, &["-V", version, "-t", &topic, "-q", "2"]);
        for qos in ["0", "1", "2"] {
            publish(&broker, &["-V", version, "-t", &topic, "-q", qos, "-f", path]);
            assert!(subscriber.next().payload == payload, "the payload of QoS {qos} is damaged");
        }
    }
    broker.stop();
}

#[test]
fn second_connection_with_the_same_identifier_takes_the_session_over() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (topic, id) = (unique("taken"), unique("twin"));
        let session = persistent(version, &id, &topic);
        let mut first = Subscriber::start(&broker, &session);
        let mut second = Subscriber::start(&broker, &session);

        // mosquitto_sub ends when it is told why (0x8E), and connects again after a second when its
        // connection is just closed, as it is before version 5.
        let sign = if version == "mqttv5" { "DISCONNECT (142)" } else { "sending CONNECT" };
        first.process.wait_for("it was disconnected", |line| line.ends_with(sign).then_some(()));
        drop(first);

        // Should the first have come back before its end, the second comes back in turn, and what
        // was published meanwhile waits in the session that both of them share.
        publish(&broker, &["-V", version, "-t", &topic, "-q", "1", "-m", "hello"]);
        assert_eq!(second.next().payload, "hello");
    }
    broker.stop();
}

fn lines_arrive_in_order_exactly_once(qos: &str) {
    const LINES: usize = 10_000;
    let broker = Broker::start();
    for version in ["mqttv311", "mqttv5"] {
        let topic = unique("lines");
        let mut subscriber = Subscriber::start(&broker, &["-V", version, "-t", &topic, "-q", qos]);

        let args = ["-V", version, "-t", &topic, "-q", qos, "-l"];
        let mut publisher = mosquitto_pub(&broker, &args, Stdio::piped());
        let mut stdin = publisher.stdin();
        let lines = (0..LINES).map(|n| format!("line {n}\n")).collect::<String>();
        stdin.write_all(lines.as_bytes()).unwrap();
        for n in 0..LINES {
            assert_eq!(subscriber.next().payload, format!("line {n}"));
        }
        // At the end of its input mosquitto_pub forgets what it has not yet written at QoS 0, so
        // the end comes last.
        drop(stdin);
        publisher.succeed();

        publish(&broker, &["-V", version, "-t", &topic, "-q", qos, "-m", "end"]);
        assert_eq!(subscriber.next().payload, "end");
    }
    broker.stop();
}

/// Arguments of a client whose session outlives its connections, at QoS 2. For MQTT 5.0 `-c` also
/// sets the longest session expiry.
fn persistent<'a>(version: &'a str, id: &'a str, topic: &'a str) -> [&'a str; 9] {
    ["-V", version, "-i", id, "-c", "-q", "2", "-t", topic]
}

/// Runs mosquitto_pub to its end.
fn publish(broker: &Broker, args: &[&str]) {
    mosquitto_pub(broker, args, Stdio::null()).succeed();
}

fn mosquitto_pub(broker: &Broker, args: &[&str], stdin: Stdio) -> Process {
    let mut command = Command::new("mosquitto_pub");
    Process::spawn(command.args(address(broker)).args(args).stdin(stdin))
}

fn address(broker: &Broker) -> [String; 4] {
    let addr = broker.addr();
    ["-h".into(), addr.ip().to_string(), "-p".into(), addr.port().to_string()]
}

/// A mosquitto_sub whose subscription is in force.
struct Subscriber {
    process: Process,
    /// What a resumed session sent before it acknowledged the subscription.
    early: VecDeque<Message>,
}

impl Subscriber {
    fn start(broker: &Broker, args: &[&str]) -> Self {
        let mut process = mosquitto_sub(broker, args);
        let mut early = VecDeque::new();
        process.wait_for("its subscription was in force", |line| {
            early.extend(Message::parse(line));
            granted(line)
        });
        Self { process, early }
    }

    /// Subscribes and disconnects again.
    fn register(broker: &Broker, args: &[&str]) {
        let mut process = mosquitto_sub(broker, &[args, &["-E"]].concat());
        process.wait_for("its subscription was in force", granted);
        process.succeed();
    }

    fn next(&mut self) -> Message {
        let early = self.early.pop_front();
        early.unwrap_or_else(|| self.process.wait_for("a message came", Message::parse))
    }

    fn take(&mut self, count: usize) -> Vec<Message> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// Order is promised among the messages of one publisher, topic and QoS.
fn payloads_at<'a>(qos: &str, messages: &'a [Message]) -> Vec<&'a str> {
    messages.iter().filter(|message| message.qos == qos).map(|message| &*message.payload).collect()
}

fn mosquitto_sub(broker: &Broker, args: &[&str]) -> Process {
    require("mosquitto_sub");
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "mosquitto_sub", "-d", "-F", FORMAT]);
    Process::spawn(command.args(address(broker)).args(args).stdin(Stdio::null()))
}

/// Recognises `Subscribed (mid: 1): 2`.
fn granted(line: &str) -> Option<()> {
    let (_, reasons) = line.strip_prefix("Subscribed (mid: ")?.split_once("): ")?;
    let refused = reasons.split(", ").any(|reason| !["0", "1", "2"].contains(&reason));
    assert!(!refused, "the subscription was refused: {line}");
    Some(())
}

/// A message as mosquitto_sub prints it, see [`FORMAT`].
struct Message {
    qos: String,
    retain: String,
    content_type: String,
    response_topic: String,
    correlation_data: String,
    user_properties: String,
    message_expiry: String,
    payload_format: String,
    subscription_identifier: String,
    topic: String,
    payload: String,
}

impl Message {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix("MESSAGE|")?.splitn(11, '|').map(str::to_owned);
        Some(Self {
            qos: fields.next()?,
            retain: fields.next()?,
            content_type: fields.next()?,
            response_topic: fields.next()?,
            correlation_data: fields.next()?,
            user_properties: fields.next()?,
            message_expiry: fields.next()?,
            payload_format: fields.next()?,
            subscription_identifier: fields.next()?,
            topic: fields.next()?,
            payload: fields.next()?,
        })
    }
}
