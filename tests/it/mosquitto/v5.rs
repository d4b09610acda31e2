//! What only MQTT 5 has, as mosquitto's clients see it: `-D` sets properties, and the format of
//! mosquitto_sub shows those that arrive.
//!
//! libmosquitto 2.0.11 closes the connection on a PUBLISH with more than one Subscription Identifier, and on
//! one with an alias and no topic although it says how many aliases it takes. Here therefore no two
//! subscriptions with identifiers overlap, and aliases go to the broker only.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::broker::Broker;
use crate::mosquitto::{Message, Subscriber, address, mosquitto_pub, persistent, publish};
use crate::process::{Process, require, unique};
use crate::wire::wait_for_counter;

const V5: [&str; 2] = ["-V", "mqttv5"];

#[test]
fn every_property_of_a_message_is_forwarded_and_user_properties_keep_their_order() {
    let broker = Broker::start();
    let topic = unique("props");
    let mut v5 = Subscriber::start(&broker, &["-V", "mqttv5", "-t", &topic, "-q", "2"]);
    let mut v3 = Subscriber::start(&broker, &["-V", "mqttv311", "-t", &topic, "-q", "2"]);
    for qos in ["0", "1", "2"] {
        let mut args = vec!["-t", &topic, "-q", qos, "-m", "hello"];
        for (name, value) in [("k", "1"), ("other", "2"), ("k", "3")] {
            args.extend(["-D", "publish", "user-property", name, value]);
        }
        args.extend(["-D", "publish", "content-type", "text/plain"]);
        args.extend(["-D", "publish", "response-topic", "answers/here"]);
        args.extend(["-D", "publish", "correlation-data", "c-17"]);
        args.extend(["-D", "publish", "payload-format-indicator", "1"]);
        args.extend(["-D", "publish", "message-expiry-interval", "600"]);
        args.extend(["-D", "publish", "topic-alias", "7"]);
        publish_v5(&broker, &args);

        let message = v5.next();
        assert_eq!(message.user_properties, "k:1 other:2 k:3");
        assert_eq!(message.content_type, "text/plain");
        assert_eq!(message.response_topic, "answers/here");
        assert_eq!(message.correlation_data, "c-17");
        assert_eq!(message.payload_format, "1");
        assert!((1..=600).contains(&seconds_left(&message)), "{}", message.message_expiry);
        assert_eq!((&*message.topic, &*message.payload, &*message.qos), (&*topic, "hello", qos));

        let message = v3.next();
        assert_eq!((&*message.topic, &*message.payload, &*message.qos), (&*topic, "hello", qos));
        assert_eq!(message.user_properties, "");
    }
    broker.stop();
}

#[test]
fn properties_of_retained_and_queued_messages_are_kept() {
    let broker = Broker::start();
    let (topic, id) = (unique("kept"), unique("keeper"));
    let session = persistent("mqttv5", &id, &topic);
    Subscriber::register(&broker, &session);
    let mut args = vec!["-t", &topic, "-r", "-q", "1", "-m", "hello"];
    args.extend(["-D", "publish", "user-property", "k", "v"]);
    args.extend(["-D", "publish", "content-type", "text/plain"]);
    publish_v5(&broker, &args);

    let mut queued = Subscriber::start(&broker, &session);
    let mut retained = Subscriber::start(&broker, &["-V", "mqttv5", "-t", &topic]);
    for subscriber in [&mut queued, &mut retained] {
        let message = subscriber.next();
        assert_eq!(message.user_properties, "k:v");
        assert_eq!(message.content_type, "text/plain");
        assert_eq!(message.payload, "hello");
    }
    broker.stop();
}

/// From the second line on mosquitto_pub sends the alias in place of the topic.
#[test]
fn lines_with_an_alias_in_place_of_their_topic_arrive_on_it() {
    let broker = Broker::start();
    for (qos, alias) in [("0", "1"), ("1", "64"), ("2", "7")] {
        let topic = unique("alias");
        let mut subscriber = subscribe(&broker, &["-t", &topic, "-q", qos]);
        let args =
            ["-V", "mqttv5", "-t", &topic, "-q", qos, "-l", "-D", "publish", "topic-alias", alias];
        let mut publisher = mosquitto_pub(&broker, &args, Stdio::piped());
        let mut stdin = publisher.stdin();
        for n in 0..20 {
            writeln!(stdin, "line {n}").unwrap();
            let message = subscriber.next();
            assert_eq!((message.topic, message.payload), (topic.clone(), format!("line {n}")));
        }
        drop(stdin);
        publisher.succeed();
    }
    broker.stop();
}

#[test]
fn alias_beyond_what_the_broker_takes_ends_the_connection_with_its_reason() {
    let broker = Broker::start();
    let args = ["-d", "-q", "1", "-t", "a/b", "-m", "x", "-D", "publish", "topic-alias", "65"];
    let mut publisher = debugged("mosquitto_pub", &broker, &args);
    publisher.wait_for("it was told of the alias", |line| {
        line.ends_with("DISCONNECT (148)").then_some(())
    });
    broker.stop();
}

#[test]
fn publisher_is_told_that_nobody_has_subscribed() {
    let broker = Broker::start();
    let topic = unique("alone");
    let args = ["-d", "-q", "1", "-t", &topic, "-m", "x"];
    let code = || {
        let mut publisher = debugged("mosquitto_pub", &broker, &args);
        let code = publisher.wait_for("its message was acknowledged", |line| {
            let (_, code) = line.split_once("received PUBACK (Mid: 1, RC:")?;
            Some(code.to_owned())
        });
        publisher.succeed();
        code
    };
    assert_eq!(code(), "16)");
    let _subscriber = subscribe(&broker, &["-t", &topic]);
    assert_eq!(code(), "0)");
    broker.stop();
}

#[test]
fn session_stays_for_its_expiry_interval_and_not_for_longer() {
    let broker = Broker::start_configured("sys_interval_s = 1");
    let topic = unique("expiry");
    let (short, long) = (unique("short"), unique("long"));
    let session = |id, expiry| {
        let [v, v5, i, id, c, q, qos, t, topic] = persistent("mqttv5", id, &topic);
        [v, v5, i, id, c, q, qos, t, topic, "-x", expiry]
    };
    let (short, long) = (session(&short, "1"), session(&long, "600"));
    Subscriber::register(&broker, &long);
    Subscriber::register(&broker, &short);
    publish_v5(&broker, &["-t", &topic, "-q", "1", "-m", "while they were away"]);
    // It can only be the short one.
    wait_for_counter(&broker, "clients/expired", 1);

    let mut of_long = Subscriber::start(&broker, &long);
    let mut of_short = Subscriber::start(&broker, &short);
    publish_v5(&broker, &["-t", &topic, "-q", "1", "-m", "live"]);
    assert_eq!(of_long.next().payload, "while they were away");
    assert_eq!(of_long.next().payload, "live");
    assert_eq!(of_short.next().payload, "live");
    broker.stop();
}

#[test]
fn will_waits_for_its_delay_and_arrives_with_its_properties() {
    let broker = Broker::start();
    let topic = unique("will");
    let mut watcher = subscribe(&broker, &["-t", &topic, "-q", "1"]);
    let mut args = will(&topic, "gone", "1");
    for (name, value) in [("k", "1"), ("other", "2"), ("k", "3")] {
        args.extend(["-D", "will", "user-property", name, value]);
    }
    args.extend(["-D", "will", "content-type", "text/plain"]);
    args.extend(["-D", "will", "response-topic", "answers/here"]);
    args.extend(["-D", "will", "correlation-data", "c-17"]);
    args.extend(["-D", "will", "payload-format-indicator", "1"]);
    args.extend(["-D", "will", "message-expiry-interval", "600"]);
    let id = unique("doomed");
    let doomed = Subscriber::start(&broker, &[&persistent("mqttv5", &id, &id)[..], &args].concat());
    let killed = Instant::now();
    drop(doomed);

    let message = watcher.next();
    assert!(killed.elapsed() >= Duration::from_secs(1), "after {:?}", killed.elapsed());
    assert_eq!((&*message.payload, &*message.qos, &*message.retain), ("gone", "1", "0"));
    assert_eq!(message.user_properties, "k:1 other:2 k:3");
    assert_eq!(message.content_type, "text/plain");
    assert_eq!(message.response_topic, "answers/here");
    assert_eq!(message.correlation_data, "c-17");
    assert_eq!(message.payload_format, "1");
    assert!((1..=600).contains(&seconds_left(&message)), "{}", message.message_expiry);
    broker.stop();
}

/// A clean start ends the session, and with it the waiting of a will.
#[test]
fn client_that_is_back_before_the_delay_takes_its_will_back() {
    let broker = Broker::start();
    let (topic, id) = (unique("will"), unique("mortal"));
    let mut watcher = subscribe(&broker, &["-t", &topic, "-q", "1"]);
    let session = persistent("mqttv5", &id, &id);
    let mortal = [&session[..], &will(&topic, "gone", "3600")].concat();
    for (is_back, expected) in [(true, ["next"].as_slice()), (false, &["gone", "next"])] {
        drop(Subscriber::start(&broker, &mortal));
        if is_back {
            Subscriber::register(&broker, &session);
        }
        // mosquitto_pub connects with a clean start.
        publish_v5(&broker, &["-i", &id, "-t", &topic, "-q", "1", "-m", "next"]);
        for text in expected {
            assert_eq!(watcher.next().payload, *text);
        }
    }
    broker.stop();
}

#[test]
fn will_with_a_delay_comes_at_the_end_of_its_session_if_that_is_sooner() {
    let broker = Broker::start();
    let (topic, id) = (unique("will"), unique("doomed"));
    let mut watcher = subscribe(&broker, &["-t", &topic, "-q", "1"]);
    // Without `-c` the session ends with its connection.
    let args = ["-V", "mqttv5", "-i", &id, "-t", &id];
    drop(Subscriber::start(&broker, &[&args[..], &will(&topic, "gone", "3600")].concat()));
    assert_eq!(watcher.next().payload, "gone");
    broker.stop();
}

/// The will of a client that was killed later is the clock.
#[test]
fn message_expires_in_a_queue_and_another_arrives_with_the_time_that_is_left() {
    let broker = Broker::start();
    let (topic, will_topic, id) = (unique("expiry"), unique("will"), unique("keeper"));
    let session = persistent("mqttv5", &id, &topic);
    Subscriber::register(&broker, &session);
    for (expiry, text) in [("1", "short"), ("600", "long")] {
        let expiry = ["-D", "publish", "message-expiry-interval", expiry];
        let message = ["-t", &topic, "-q", "1", "-r", "-m", text];
        publish_v5(&broker, &[&message[..], &expiry].concat());
    }
    let expiring = ["-D", "publish", "message-expiry-interval", "1"];
    let retained = format!("{topic}/retained");
    publish_v5(
        &broker,
        &[&["-t", &retained, "-q", "1", "-r", "-m", "short"][..], &expiring].concat(),
    );
    let mut watcher = subscribe(&broker, &["-t", &will_topic]);
    let doomed = unique("doomed");
    let clock = persistent("mqttv5", &doomed, &doomed);
    drop(Subscriber::start(
        &broker,
        &[&clock[..], &will(&will_topic, "two seconds", "2")].concat(),
    ));
    watcher.next();

    let mut back = Subscriber::start(&broker, &session);
    let mut late = subscribe(&broker, &["-t", &format!("{topic}/#")]);
    for (subscriber, retain) in [(&mut back, "0"), (&mut late, "1")] {
        let message = subscriber.next();
        assert_eq!((&*message.payload, &*message.retain), ("long", retain));
        let left = seconds_left(&message);
        assert!((1..=598).contains(&left), "{left} seconds are left of 600");
    }
    publish_v5(&broker, &["-t", &topic, "-q", "1", "-m", "live"]);
    assert_eq!(late.next().payload, "live");
    broker.stop();
}

#[test]
fn messages_carry_the_identifier_of_their_subscription() {
    let broker = Broker::start();
    let (one, other, id) = (unique("sub"), unique("sub"), unique("keeper"));
    let kept = format!("{one}/kept");
    publish_v5(&broker, &["-t", &kept, "-q", "1", "-r", "-m", "retained"]);
    let filter = format!("{one}/+");
    let with = |filter, identifier| {
        let [v, v5, i, id, c, q, qos, t, filter] = persistent("mqttv5", &id, filter);
        let identifier = ["-D", "subscribe", "subscription-identifier", identifier];
        [&[v, v5, i, id, c, q, qos, t, filter][..], &identifier].concat()
    };
    let first = [&with(&filter, "268435455")[..], &["-C", "1"]].concat();
    let mut subscriber = Subscriber::start(&broker, &first);
    let message = subscriber.next();
    assert_eq!((&*message.payload, &*message.subscription_identifier), ("retained", "268435455"));
    subscriber.process.succeed();

    // Another subscription of the same session; the first is still in force, and then it is replaced.
    Subscriber::register(&broker, &with(&other, "7"));
    for (topic, qos) in [(&format!("{one}/live"), "1"), (&other, "1"), (&other, "2")] {
        publish_v5(&broker, &["-t", topic, "-q", qos, "-m", "queued"]);
    }
    let mut subscriber = Subscriber::start(&broker, &with(&other, "8"));
    for (topic, identifier) in [(&format!("{one}/live"), "268435455"), (&other, "7"), (&other, "7")]
    {
        let message = subscriber.next();
        assert_eq!((&message.topic, &*message.subscription_identifier), (topic, identifier));
    }
    publish_v5(&broker, &["-t", &other, "-q", "2", "-m", "live"]);
    let message = subscriber.next();
    assert_eq!((&*message.payload, &*message.subscription_identifier), ("live", "8"));
    broker.stop();
}

#[test]
fn message_over_the_maximum_packet_size_is_left_out_for_that_client_only() {
    let broker = Broker::start();
    let topic = unique("size");
    let limit = ["-D", "connect", "maximum-packet-size", "100"];
    let mut small = subscribe(&broker, &[&["-t", &topic, "-q", "1"][..], &limit].concat());
    let mut large = subscribe(&broker, &["-t", &topic, "-q", "1"]);
    let text = "x".repeat(100);
    publish_v5(&broker, &["-t", &topic, "-q", "1", "-m", &text]);
    publish_v5(&broker, &["-t", &topic, "-q", "1", "-m", "fits"]);
    assert_eq!(small.next().payload, "fits");
    assert_eq!(large.next().payload, text);
    assert_eq!(large.next().payload, "fits");
    broker.stop();
}

#[test]
fn two_members_of_a_group_share_the_messages_and_a_third_subscriber_gets_all() {
    let broker = Broker::start();
    for qos in ["0", "1", "2"] {
        let topic = unique("work");
        let shared = format!("$share/crew/{topic}");
        let mut of_all = subscribe(&broker, &["-t", &topic, "-q", qos]);
        let mut members = ["one", "two"].map(|name| {
            let end = format!("{topic}/{name}");
            let member = subscribe(&broker, &["-t", &shared, "-t", &end, "-q", qos]);
            (member, end)
        });
        let args = ["-V", "mqttv5", "-t", &topic, "-q", qos, "-l"];
        let mut publisher = mosquitto_pub(&broker, &args, Stdio::piped());
        let mut stdin = publisher.stdin();
        let sent: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        writeln!(stdin, "{}", sent.join("\n")).unwrap();
        for text in &sent {
            assert_eq!(of_all.next().payload, *text);
        }
        // Not before: mosquitto_pub may forget the last ones at QoS 0.
        drop(stdin);
        publisher.succeed();

        let shares = members.each_mut().map(|(member, end)| {
            // What the member was given is in its mailbox, ahead of this.
            publish_v5(&broker, &["-t", end, "-q", qos, "-m", "end"]);
            let texts = std::iter::from_fn(|| Some(member.next().payload));
            texts.take_while(|text| text != "end").collect::<Vec<_>>()
        });
        assert!(shares.iter().all(|share| !share.is_empty()), "{shares:?}");
        let mut received = shares.concat();
        received.sort_by_key(|text| text.parse::<u32>().unwrap());
        assert_eq!(received, sent);
    }
    broker.stop();
}

#[test]
fn retained_message_is_not_for_a_shared_subscription() {
    let broker = Broker::start();
    let topic = unique("group");
    publish_v5(&broker, &["-t", &topic, "-q", "1", "-r", "-m", "retained"]);
    let mut member = subscribe(&broker, &["-t", &format!("$share/crew/{topic}"), "-q", "1"]);
    publish_v5(&broker, &["-t", &topic, "-q", "1", "-m", "live"]);
    assert_eq!(member.next().payload, "live");
    broker.stop();
}

/// The member that is killed has been sent its share, but could not acknowledge it. At QoS 2 nobody else
/// might get that [MQTT-4.8.2-5].
#[test]
fn messages_of_a_member_that_died_go_to_the_other() {
    let broker = Broker::start();
    let topic = unique("group");
    let filter = format!("$share/crew/{topic}");
    let mut survivor = subscribe(&broker, &["-t", &filter, "-q", "1"]);
    let doomed = subscribe(&broker, &["-t", &filter, "-q", "1"]);
    doomed.process.signal(Signal::STOP);
    let args = ["-V", "mqttv5", "-t", &topic, "-q", "1", "-l"];
    let mut publisher = mosquitto_pub(&broker, &args, Stdio::piped());
    let lines: String = (0..100).map(|n| format!("{n}\n")).collect();
    publisher.stdin().write_all(lines.as_bytes()).unwrap();
    publisher.succeed();
    drop(doomed);

    let received: BTreeSet<String> = (0..100).map(|_| survivor.next().payload).collect();
    assert_eq!(received, (0..100).map(|n| n.to_string()).collect());
    publish_v5(&broker, &["-t", &topic, "-q", "1", "-m", "end"]);
    assert_eq!(survivor.next().payload, "end");
    broker.stop();
}

#[test]
fn mosquitto_rr_gets_the_response_to_its_request() {
    let broker = Broker::start();
    let (requests, responses) = (unique("ask"), unique("answer"));
    let mut server = subscribe(&broker, &["-t", &requests, "-q", "1"]);
    let mut asks =
        vec!["-d", "-t", &requests, "-e", &responses, "-q", "1", "-m", "six times seven"];
    asks.extend(["-D", "publish", "correlation-data", "c-17"]);
    asks.extend(["-F", "RESPONSE|%D|%P|%p"]);
    let mut client = debugged("mosquitto_rr", &broker, &asks);

    let request = server.next();
    assert_eq!(request.payload, "six times seven");
    assert_eq!((&*request.response_topic, &*request.correlation_data), (&*responses, "c-17"));
    let mut answer = vec!["-t", &request.response_topic, "-q", "1", "-m", "42"];
    answer.extend(["-D", "publish", "correlation-data", &request.correlation_data]);
    answer.extend(["-D", "publish", "user-property", "from", "server"]);
    publish_v5(&broker, &answer);

    let response = client
        .wait_for("the response came", |line| line.strip_prefix("RESPONSE|").map(str::to_owned));
    assert_eq!(response, "c-17|from:server|42");
    client.succeed();
    broker.stop();
}

fn publish_v5(broker: &Broker, args: &[&str]) {
    publish(broker, &[&V5, args].concat());
}

fn subscribe(broker: &Broker, args: &[&str]) -> Subscriber {
    Subscriber::start(broker, &[&V5, args].concat())
}

/// Arguments of a client that leaves a will at QoS 1 behind, with this delay in seconds.
fn will<'a>(topic: &'a str, text: &'a str, delay: &'a str) -> Vec<&'a str> {
    let will = ["--will-topic", topic, "--will-payload", text, "--will-qos", "1"];
    [&will[..], &["-D", "will", "will-delay-interval", delay]].concat()
}

/// A client of MQTT 5 whose lines come at once, although its output is a pipe.
fn debugged(client: &str, broker: &Broker, args: &[&str]) -> Process {
    require(client);
    let mut command = Command::new("stdbuf");
    command.args(["-oL", client]).args(address(broker)).args(V5).args(args);
    Process::spawn(command.stdin(Stdio::null()))
}

fn seconds_left(message: &Message) -> u32 {
    message.message_expiry.parse().unwrap()
}
