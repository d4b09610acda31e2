//! Mount points, over sockets: two tenants of one broker, each with a listener of its own, and a listener from which
//! all topics are seen.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::{self, V5, V311};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Process, require, unique};
use crate::service::Service;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBREC, Publication, VERSIONS, publish,
    wait_for_counter_at,
};

const NOT_AUTHORIZED: u8 = 0x87;
const TOPIC_NAME_INVALID: u8 = 0x90;
/// The longest topic behind `tenant-a/`.
const ROOM: usize = u16::MAX as usize - "tenant-a/".len();

/// A broker whose tenants have a listener each.
struct Tenants {
    process: Process,
    /// Where all topics are seen.
    whole: SocketAddr,
    a: SocketAddr,
    b: SocketAddr,
    dir: TempDir,
}

impl Tenants {
    fn start() -> Self {
        Self::start_with("")
    }

    /// With these settings besides.
    fn start_with(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = |mount_point| {
            format!("[[listeners]]\nlisten = '127.0.0.1:0'\nmount_point = '{mount_point}'\n")
        };
        let (a, b) = (listener("tenant-a/"), listener("tenant-b/"));
        let text = format!("sys_interval_s = 1\n{settings}\n{a}{b}");
        fs::write(dir.path().join("settings.toml"), text).unwrap();
        let (process, [whole, a, b]) = Self::spawn(&dir);
        Self { process, whole, a, b, dir }
    }

    fn spawn(dir: &TempDir) -> (Process, [SocketAddr; 3]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path().join("data"));
        command.arg("--config").arg(dir.path().join("settings.toml"));
        command.env("MAILBOXQTT_LOG_SEGMENT_BYTES", "262144").stdin(Stdio::null());
        let mut process = Process::spawn(&mut command);
        let addrs = [(); 3].map(|()| {
            process.wait_for("it listened", |line| {
                line.split_once(" listening on ")?.1.split(' ').next()?.parse().ok()
            })
        });
        (process, addrs)
    }

    /// The process is killed, and another one goes on with its data.
    fn crash(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.finish();
        (self.process, [self.whole, self.a, self.b]) = Self::spawn(&self.dir);
    }

    /// Ends it; returns its log.
    fn stop(mut self) -> String {
        self.process.signal(Signal::TERM);
        let (status, _, log) = self.process.finish_with_stderr();
        assert!(status.success(), "{log}");
        log
    }
}

fn client(addr: SocketAddr, version: ProtocolVersion) -> Client {
    Hello::new(version, &unique("mounted")).open(addr).0
}

fn subscribed(addr: SocketAddr, version: ProtocolVersion, filter: &str) -> Client {
    let mut client = client(addr, version);
    client.subscribe(filter, 2);
    client
}

fn subscribed_at_0(addr: SocketAddr, filter: &str) -> Client {
    let mut client = client(addr, V311);
    client.subscribe(filter, 0);
    client
}

/// Topics and texts.
fn shown(messages: &[Message]) -> Vec<(&str, &str)> {
    messages.iter().map(|message| (&*message.topic, message.text())).collect()
}

#[test]
fn tenant_sees_its_own_topics_and_no_others_in_every_version_and_at_every_qos() {
    let broker = Tenants::start();
    for version in VERSIONS {
        let mut whole = subscribed(broker.whole, version, "#");
        let mut all_of_a = subscribed(broker.a, version, "#");
        let mut some_of_a = subscribed(broker.a, version, "x/+");
        let mut one_of_a = subscribed(broker.a, version, "x/y");
        let mut all_of_b = subscribed(broker.b, version, "#");
        let mut prefixed_of_b = subscribed(broker.b, version, "tenant-a/#");
        for from in VERSIONS {
            for qos in 0..=2 {
                let text = format!("{from:?} {qos}");
                client(broker.a, from).deliver_at("x/y", &text, qos);
                for own in [&mut all_of_a, &mut some_of_a, &mut one_of_a] {
                    let message = own.receive(1).remove(0);
                    assert_eq!((&*message.topic, message.text()), ("x/y", &*text));
                    assert_eq!(message.qos, qos);
                }
                let message = whole.receive(1).remove(0);
                assert_eq!((&*message.topic, message.text()), ("tenant-a/x/y", &*text));
                // And from outside, by the whole name.
                client(broker.whole, from).deliver_at("tenant-b/x/y", &text, qos);
                let message = all_of_b.receive(1).remove(0);
                assert_eq!((&*message.topic, message.text()), ("x/y", &*text));
                assert_eq!(whole.receive(1)[0].topic, "tenant-b/x/y");
            }
        }
        for other in
            [&mut all_of_a, &mut some_of_a, &mut one_of_a, &mut all_of_b, &mut prefixed_of_b]
        {
            other.assert_silent();
        }
        assert_eq!(one_of_a.unsubscribe("x/y").first().copied().unwrap_or(0), 0);
        client(broker.a, version).deliver("x/y", "late");
        one_of_a.assert_silent();
    }
    broker.stop();
}

/// `tenant-a/#` matches `tenant-a` as well (section 4.7.1.2), and that is not a topic of the tenant.
#[test]
fn topic_of_the_mount_point_itself_is_not_below_it() {
    let broker = Tenants::start();
    let mut outside = client(broker.whole, V311);
    for topic in ["tenant-a", "tenant-a/", "tenant-ab", "x", "tenant-a/own"] {
        outside.deliver_retained(topic, "retained");
    }
    let mut inside = client(broker.a, V5);
    inside.subscribe("$share/g/#", 1);
    inside.subscribe("#", 1);
    let own = inside.receive(1);
    assert_eq!(shown(&own), [("own", "retained")]);
    for topic in ["tenant-a", "tenant-a/", "tenant-ab", "x", "tenant-a/own"] {
        outside.deliver(topic, "live");
    }
    // Once by each subscription.
    let live = inside.receive(2);
    assert_eq!(shown(&live), [("own", "live"), ("own", "live")]);
    inside.assert_silent();
    // Not even as far as the session, which would leave it out and count it. The second value is not an old one.
    let counter = "$SYS/broker/publish/messages/dropped/not_authorized";
    let mut system = subscribed_at_0(broker.whole, counter);
    let values = [system.message(), system.message()];
    assert_eq!(values[1].text(), "0");
    broker.stop();
}

#[test]
fn retained_messages_are_the_tenants_own() {
    let mut broker = Tenants::start();
    client(broker.a, V311).deliver_retained("r/1", "of a");
    client(broker.b, V5).deliver_retained("r/1", "of b");
    client(broker.whole, V5).deliver_retained("tenant-b/r/2", "from outside");
    for is_restarted in [false, true] {
        for version in VERSIONS {
            let mut of_a = subscribed(broker.a, version, "#");
            let got = of_a.receive(1);
            assert_eq!(shown(&got), [("r/1", "of a")]);
            assert!(got[0].retain);
            of_a.assert_silent();
            let mut of_b = subscribed(broker.b, version, "r/+");
            let mut got = of_b.receive(2);
            got.sort_by(|one, other| one.topic.cmp(&other.topic));
            assert_eq!(shown(&got), [("r/1", "of b"), ("r/2", "from outside")]);
        }
        if !is_restarted {
            broker.crash();
        }
    }
    client(broker.a, V311).deliver_retained("r/1", "");
    subscribed(broker.a, V311, "#").assert_silent();
    let left = subscribed(broker.whole, V311, "+/r/1").receive(1);
    assert_eq!(shown(&left), [("tenant-b/r/1", "of b")]);
    broker.stop();
}

#[test]
fn aliases_stand_for_the_names_that_the_tenant_knows() {
    let broker = Tenants::start();
    let hello = Hello::new(V5, "aliases").with(Property::TopicAliasMaximum(1));
    let (mut reader, _) = hello.open(broker.a);
    reader.subscribe("#", 1);
    let mut whole = subscribed(broker.whole, V5, "tenant-a/#");
    let mut writer = client(broker.a, V5);
    for (id, topic, expected) in [(1, "x", "x"), (2, "", ""), (3, "", "")] {
        let named = Publication::new(topic, "m").qos(1, id).with(Property::TopicAlias(7));
        writer.deliver_publication(&named);
        let message = reader.receive(1).remove(0);
        assert_eq!((&*message.topic, message.properties().topic_alias()), (expected, Some(1)));
        assert_eq!(whole.receive(1)[0].topic, "tenant-a/x");
    }
    writer.deliver("y", "m");
    let message = reader.receive(1).remove(0);
    assert_eq!((&*message.topic, message.properties().topic_alias()), ("y", None));
    broker.stop();
}

/// They go in several turns, for each is written anew with a longer topic.
#[test]
fn many_small_messages_of_one_read_arrive_in_their_order() {
    const COUNT: usize = 20_000;
    let broker = Tenants::start();
    for (version, qos) in [(V311, 0), (V5, 1)] {
        let mut reader = subscribed(broker.a, version, "t/+");
        let mut writer = client(broker.a, version);
        let mut sent = 0;
        while sent < COUNT {
            let mut bytes = Vec::new();
            for number in sent..sent + 1000 {
                let topic = format!("t/{}", number % 3);
                let id = (number % 60_000) as u16 + 1;
                let text = number.to_string();
                bytes.extend(publish(version, &topic, text.as_bytes(), qos, id, false));
            }
            writer.send(&bytes);
            let mut messages = reader.receive(1000);
            messages.sort_by_key(|message| message.topic.clone());
            for (index, topic) in ["t/0", "t/1", "t/2"].into_iter().enumerate() {
                let numbers = messages.iter().filter(|message| message.topic == topic);
                let numbers: Vec<usize> =
                    numbers.map(|message| message.text().parse().unwrap()).collect();
                let expected = (sent..sent + 1000).filter(|number| number % 3 == index);
                assert_eq!(numbers, expected.collect::<Vec<_>>());
            }
            if qos == 1 {
                for number in sent..sent + 1000 {
                    let id = (number % 60_000) as u16 + 1;
                    assert_eq!(writer.next_answer(), Got::Ack(PUBACK, id, 0));
                }
            }
            sent += 1000;
        }
    }
    broker.stop();
}

#[test]
fn will_is_published_below_the_mount_point_at_once_delayed_and_after_a_crash() {
    let mut broker = Tenants::start();
    let ids = ["now", "later", "after"].map(|name| (name, unique(name)));
    let hello = |name: &'static str, id| {
        let hello = Hello::persistent(V5, id).will("will", name, 1, true);
        if name == "later" { hello.will_with(Property::WillDelayInterval(1)) } else { hello }
    };
    for (name, id) in &ids[..2] {
        let mut own = subscribed(broker.a, V311, "will");
        let mut whole = subscribed(broker.whole, V311, "+/will");
        let mut other = subscribed(broker.b, V311, "#");
        drop(hello(name, id).open(broker.a).0);
        let of_own = own.receive(1);
        assert_eq!(shown(&of_own), [("will", *name)]);
        let of_whole = whole.receive(1);
        assert_eq!(shown(&of_whole), [("tenant-a/will", *name)]);
        other.assert_silent();
        client(broker.a, V311).deliver_retained("will", "");
    }
    let (name, id) = &ids[2];
    let _connected = hello(name, id).open(broker.a);
    broker.crash();
    let retained = subscribed(broker.a, V311, "will").receive(1);
    assert_eq!(shown(&retained), [("will", "after")]);
    let whole = subscribed(broker.whole, V311, "#").receive(1);
    assert_eq!(shown(&whole), [("tenant-a/will", "after")]);
    subscribed(broker.b, V311, "#").assert_silent();
    broker.stop();
}

#[test]
fn groups_of_one_name_belong_to_different_tenants() {
    let broker = Tenants::start();
    let mut of_a = [V311, V5].map(|version| subscribed(broker.a, version, "$share/g/x/#"));
    let mut of_b = subscribed(broker.b, V311, "$share/g/x/#");
    let mut writer = client(broker.a, V311);
    for number in 0..10 {
        writer.deliver("x/y", number.to_string());
    }
    let mut got = 0;
    for member in &mut of_a {
        let messages = member.receive(1);
        got += messages.len() + member.drain().len();
        assert!(messages.iter().all(|message| message.topic == "x/y"));
    }
    assert_eq!(got, 10);
    of_b.assert_silent();
    client(broker.b, V311).deliver("x/y", "of b");
    let message = of_b.receive(1);
    assert_eq!(shown(&message), [("x/y", "of b")]);
    of_a.iter_mut().for_each(Client::assert_silent);
    broker.stop();
}

/// Tenants choose their identifiers without knowing of each other.
#[test]
fn one_client_identifier_behind_two_mount_points_is_two_sessions() {
    let mut broker = Tenants::start();
    for version in VERSIONS {
        let id = unique("fridge");
        let persistent = Hello::persistent(version, &id);
        let mut clients = [broker.whole, broker.a, broker.b].map(|addr| {
            let (mut client, was_present) = persistent.open(addr);
            assert!(!was_present);
            client.subscribe("x/#", 1);
            client
        });
        // Neither is taken over, nor ended by a clean start of the other.
        clients.iter_mut().for_each(Client::assert_silent);
        let (again, was_present) = Hello::new(version, &id).open(broker.b);
        assert!(!was_present);
        let [whole, mut of_a, mut of_b] = clients;
        of_b.assert_closed_with(0x8E);
        of_a.assert_silent();
        again.disconnect();
        whole.disconnect();
        of_a.disconnect();

        client(broker.a, V311).deliver("x/1", "for a");
        client(broker.b, V311).deliver("x/1", "for b, which has begun anew");
        client(broker.whole, V311).deliver("x/1", "for the whole");
        broker.crash();
        client(broker.a, V311).deliver("x/2", "for a");
        for (addr, is_present, expected) in [
            (broker.a, true, &[("x/1", "for a"), ("x/2", "for a")][..]),
            (broker.b, false, &[]),
            (broker.whole, true, &[("x/1", "for the whole")]),
        ] {
            let (mut client, was_present) = persistent.open(addr);
            assert_eq!(was_present, is_present);
            let got = client.receive(expected.len());
            assert_eq!(shown(&got), expected);
            client.assert_silent();
            // The subscription is known by the name that the client gave it.
            let code = client.unsubscribe("x/#");
            let known = if is_present { 0 } else { 0x11 };
            assert_eq!(code, if version == V5 { vec![known] } else { vec![] });
        }
    }
    broker.stop();
}

/// Among them messages that were sent and not acknowledged, and many that are read from the log.
#[test]
fn what_waited_for_a_client_comes_without_the_mount_point_also_after_a_crash() {
    const COUNT: usize = 600;
    let mut broker = Tenants::start();
    for (version, qos) in [(V311, 1), (V5, 2)] {
        let id = unique("away");
        let persistent = Hello::persistent(version, &id);
        let (mut reader, _) = persistent.open(broker.a);
        reader.subscribe("q/#", qos);
        let mut writer = client(broker.a, V311);
        writer.deliver_at("q/sent", "0", qos);
        let first = reader.message();
        assert_eq!((&*first.topic, first.qos), ("q/sent", qos));
        drop(reader);
        for number in 1..COUNT {
            let text = format!("{number} {}", "x".repeat(1000));
            writer.deliver_at("q/waits", text, qos);
        }
        broker.crash();
        let (mut reader, was_present) = persistent.open(broker.a);
        assert!(was_present);
        for (number, message) in reader.receive(COUNT).iter().enumerate() {
            let topic = if number == 0 { "q/sent" } else { "q/waits" };
            assert_eq!(message.topic, topic);
            assert_eq!(message.text().split(' ').next(), Some(&*number.to_string()));
        }
        reader.assert_silent();
        client(broker.a, V311).deliver("q/live", "after it");
        assert_eq!(reader.receive(1)[0].topic, "q/live");
        reader.disconnect();
    }
    broker.stop();
}

#[test]
fn topics_that_begin_with_a_dollar_do_not_exist_behind_a_mount_point() {
    let broker = Tenants::start();
    let mut system = subscribed_at_0(broker.whole, "$SYS/broker/uptime");
    system.message();
    let mut all = subscribed(broker.a, V311, "#");
    let mut some = subscribed(broker.a, V311, "+/broker/uptime");
    for (version, puback, suback) in [(V311, 0, 0x80), (V5, NOT_AUTHORIZED, NOT_AUTHORIZED)] {
        let mut tenant = client(broker.a, version);
        for filter in ["$SYS/#", "$SYS/broker/uptime", "$x", "$share/g/$SYS/#"] {
            assert_eq!(tenant.subscribe_all(&[(filter, 0)]), [suback], "{filter}");
        }
        for topic in ["$SYS/broker/uptime", "$x"] {
            tenant.publish(topic, "1", 1, 1);
            assert_eq!(tenant.next(), Got::Ack(PUBACK, 1, puback));
            tenant.publish(topic, "2", 2, 2);
            assert_eq!(tenant.next(), Got::Ack(PUBREC, 2, puback));
            tenant.publish(topic, "0", 0, 0);
        }
        tenant.assert_silent();
        let (_, answer) =
            Hello::new(version, &unique("will")).will("$x", "", 0, false).try_open(broker.a);
        let code = if version == V5 { NOT_AUTHORIZED } else { 5 };
        assert!(matches!(answer, Got::ConnAck(false, got, _) if got == code), "{answer:?}");
    }
    // A round of the counters has gone by.
    system.message();
    all.assert_silent();
    some.assert_silent();
    wait_for_counter_at(broker.whole, "publish/messages/dropped/not_authorized", 12);
    broker.stop();
}

#[test]
fn what_is_too_long_with_the_mount_point_is_refused_and_the_connection_goes_on() {
    let (fits, over) = ("x".repeat(ROOM), "x".repeat(ROOM + 1));
    let broker = Tenants::start();
    let mut whole = subscribed(broker.whole, V311, "#");
    for (version, puback, suback) in [(V311, 0, 0x80), (V5, TOPIC_NAME_INVALID, 0x8F)] {
        let mut tenant = client(broker.a, version);
        tenant.publish(&over, "over", 1, 1);
        assert_eq!(tenant.next(), Got::Ack(PUBACK, 1, puback));
        assert_eq!(tenant.subscribe_all(&[(&over, 0)]), [suback]);
        tenant.subscribe(&fits, 0);
        tenant.deliver(&fits, "fits");
        assert_eq!(tenant.message().topic, fits);
        assert_eq!(whole.receive(1)[0].topic, format!("tenant-a/{fits}"));
        let (_, answer) =
            Hello::new(version, &unique("will")).will(&over, "", 0, false).try_open(broker.a);
        let is_refused = match answer {
            Got::ConnAck(false, code, _) => code == TOPIC_NAME_INVALID || version == V311,
            ref other => version == V311 && *other == Got::Closed,
        };
        assert!(is_refused, "{answer:?}");
    }
    whole.assert_silent();
    wait_for_counter_at(broker.whole, "publish/messages/dropped/topic_too_long", 2);
    broker.stop();
}

#[test]
fn rules_and_the_log_know_whole_names() {
    let broker = Tenants::start_with(
        "[[authorisation.rules]]\npermission = 'allow'\naction = 'all'\nfilter = 'tenant-a/open/%c'",
    );
    let (mut own, _) = Hello::new(V5, "c1").open(broker.a);
    assert_eq!(own.subscribe_all(&[("open/c1", 1), ("closed", 1)]), [1, NOT_AUTHORIZED]);
    own.deliver("open/c1", "yes");
    assert_eq!(own.receive(1)[0].topic, "open/c1");
    own.publish("tenant-a/open/c1", "no", 1, 2);
    assert_eq!(own.next(), Got::Ack(PUBACK, 2, NOT_AUTHORIZED));
    let (mut other, _) = Hello::new(V5, "c1").open(broker.b);
    other.publish("open/c1", "no", 1, 1);
    assert_eq!(other.next(), Got::Ack(PUBACK, 1, NOT_AUTHORIZED));
    let log = broker.stop();
    for words in
        ["tenant-a/tenant-a/open/c1", "tenant-b/open/c1", "tenant-a/closed", "tenant-b/\\0c1"]
    {
        assert!(log.contains(words), "{words} is not in {log}");
    }
}

#[test]
fn changed_mount_point_counts_for_connections_that_come_later() {
    let settings = |mount_point: &str| {
        format!("[[listeners]]\nlisten = '127.0.0.1:0'\nmount_point = '{mount_point}'\n")
    };
    let mut service = Service::start(&settings("one/"));
    let addr = service.next_listener("TCP");
    let mut whole = subscribed(service.addr, V311, "#");
    let id = unique("stays");
    let (mut old, _) = Hello::persistent(V311, &id).open(addr);
    old.subscribe("x", 1);

    service.reload(&settings("two/"));
    let (mut new, was_present) = Hello::persistent(V311, &id).open(addr);
    assert!(!was_present, "behind another mount point it is another client");
    new.subscribe("x", 1);
    for (client, topic) in [(&mut old, "one/x"), (&mut new, "two/x")] {
        client.deliver("x", topic);
        let own = client.receive(1);
        assert_eq!(shown(&own), [("x", topic)]);
        assert_eq!(whole.receive(1)[0].topic, topic);
        client.assert_silent();
    }
    // The session of the earlier one is there when its mount point is there again.
    old.disconnect();
    client(service.addr, V311).deliver("one/x", "waits");
    service.reload(&settings("one/"));
    let (mut old, was_present) = Hello::persistent(V311, &id).open(addr);
    assert!(was_present);
    let waited = old.receive(1);
    assert_eq!(shown(&waited), [("x", "waits")]);
    service.stop();
}

#[test]
fn mosquitto_clients_of_two_tenants_are_among_themselves() {
    require("mosquitto_pub");
    let broker = Tenants::start();
    let program = |name: &str, addr: SocketAddr, version: &str, args: &[&str]| {
        let mut command = Command::new("stdbuf");
        let port = addr.port().to_string();
        command.args(["-oL", name, "-d", "-h", "127.0.0.1", "-p", &port, "-V", version]);
        Process::spawn(command.args(args).stdin(Stdio::null()))
    };
    for version in ["mqttv311", "mqttv5"] {
        let places = [(broker.a, "#", "1"), (broker.b, "#", "1"), (broker.whole, "+/news", "2")];
        let mut readers = places.map(|(addr, filter, count)| {
            // The same identifier for all of them.
            let args = ["-i", "reader", "-q", "2", "-v", "-t", filter, "-C", count];
            let mut reader = program("mosquitto_sub", addr, version, &args);
            reader.wait_for("it subscribed", |line| line.starts_with("Subscribed").then_some(()));
            reader
        });
        for (addr, text) in [(broker.a, "of a"), (broker.b, "of b")] {
            let args = ["-q", "2", "-t", "news", "-m", text];
            program("mosquitto_pub", addr, version, &args).succeed();
        }
        let said = readers.each_mut().map(|reader| {
            let mut lines = reader.succeed();
            lines.retain(|line| line.contains("news of "));
            lines
        });
        let whole = ["tenant-a/news of a", "tenant-b/news of b"];
        assert_eq!(said, [vec!["news of a"], vec!["news of b"], whole.to_vec()]);
    }
    broker.stop();
}
