//! Who may publish and receive what, over a socket: an acl file, every way in and out of the broker, and whose a session
//! is. Users log in with [`Scram`].

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use mailboxqtt::codec::{Packet, Property, decode};
use mailboxqtt::ids::ProtocolVersion::{self, V5, V311};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::auth::{Scram, user_line};
use crate::process::{Process, unique};
use crate::wire::{Client, Got, Hello};

const METHOD: &str = "SCRAM-SHA-256";
const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const NOT_AUTHORIZED: u8 = 0x87;

/// A broker with an acl file that can be stopped and started again with another one.
struct Guarded {
    process: Process,
    addr: SocketAddr,
    dir: TempDir,
}

impl Guarded {
    /// Everybody is anonymous.
    fn start(acl: &str) -> Self {
        Self::with_settings(acl, "")
    }

    /// Also alice (`wonderland`) and bob (`builder`).
    fn with_users(acl: &str) -> Self {
        let lines = [("alice", "wonderland"), ("bob", "builder")]
            .map(|(name, password)| user_line(name, password, &[]));
        let users = lines.join("\n");
        Self::with_settings(acl, &format!("allow_anonymous = true\n[scram_users]\n{users}\n"))
    }

    fn with_settings(acl: &str, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let acl_file = dir.path().join("acl");
        let section = format!("{settings}[authorisation]\nacl_file = \"{}\"\n", acl_file.display());
        fs::write(dir.path().join("settings.toml"), section).unwrap();
        let (process, addr) = Self::spawn(&dir, acl);
        Self { process, addr, dir }
    }

    fn spawn(dir: &TempDir, acl: &str) -> (Process, SocketAddr) {
        fs::write(dir.path().join("acl"), acl).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path().join("data"));
        command.arg("--config").arg(dir.path().join("settings.toml"));
        command.env("MAILBOXQTT_LOG_SEGMENT_BYTES", "262144").stdin(Stdio::null());
        let mut process = Process::spawn(&mut command);
        let addr = process.wait_for("it served", |line| {
            line.split_once(" listening on ")?.1.split(' ').next()?.parse().ok()
        });
        (process, addr)
    }

    /// Stops it, and starts it with another acl file and the same data.
    fn restart(&mut self, acl: &str) {
        self.process.signal(Signal::TERM);
        self.process.succeed();
        (self.process, self.addr) = Self::spawn(&self.dir, acl);
    }

    fn client(&self, version: ProtocolVersion, id: &str) -> Client {
        Hello::new(version, id).open(self.addr).0
    }

    /// CONNECT and the whole exchange; returns the CONNACK.
    fn try_log_in(&self, hello: Hello<'_>, name: &str, password: &str) -> (Client, Got) {
        let scram = Scram::new(name, password);
        let hello = hello
            .with(Property::AuthenticationMethod(METHOD))
            .with(Property::AuthenticationData(&scram.first()));
        let mut client = Client::raw(self.addr, V5);
        client.send(&hello.bytes());
        let frame = client.next_frame().expect("AUTH");
        let Packet::Auth(auth) = decode(&frame, V5).unwrap() else { panic!("{frame:?}") };
        let (last, _) = scram.last(auth.properties.authentication_data().unwrap());
        let data = Property::AuthenticationData(&last);
        client.send_auth(0x18, &[Property::AuthenticationMethod(METHOD), data]);
        let answer = client.next();
        (client, answer)
    }

    /// The same, to be accepted; says whether there was a session.
    #[track_caller]
    fn log_in(&self, hello: Hello<'_>, name: &str, password: &str) -> (Client, bool) {
        match self.try_log_in(hello, name, password) {
            (client, Got::ConnAck(present, 0, _)) => (client, present),
            (_, other) => panic!("{name} was answered by {other:?}"),
        }
    }

    /// A counter in `$SYS`, which has to be at least `least` some time.
    fn wait_for(&self, name: &str, least: u64) {
        let mut client = self.client(V311, &unique("sys"));
        client.subscribe(&format!("$SYS/broker/{name}"), 0);
        while client.message().text().parse::<u64>().unwrap() < least {}
    }
}

#[track_caller]
fn assert_refused(answer: &Got, code: u8) {
    assert!(matches!(answer, Got::ConnAck(false, got, _) if *got == code), "{answer:?}");
}

#[test]
fn message_that_no_rule_allows_is_refused_by_code_and_counted() {
    let acl = "topic read #\ntopic write open/#\ntopic deny open/secret\ntopic read $SYS/#\ntopic write $SYS/x";
    let broker = Guarded::with_settings(acl, "sys_interval_s = 1\n");
    let mut reader = broker.client(V5, &unique("reader"));
    reader.subscribe("#", 0);
    let mut v5 = broker.client(V5, &unique("v5"));
    for (topic, code) in [
        ("open/a", 0),
        ("closed", NOT_AUTHORIZED),
        ("open/secret", NOT_AUTHORIZED),
        ("$SYS/x", NOT_AUTHORIZED),
    ] {
        v5.publish(topic, "1", 1, 1);
        assert_eq!(v5.next(), Got::Ack(PUBACK, 1, code), "{topic}");
        v5.publish(topic, "2", 2, 2);
        assert_eq!(v5.next(), Got::Ack(PUBREC, 2, code), "{topic}");
        if code == 0 {
            v5.ack(0x62, 2);
            assert_eq!(v5.next(), Got::Ack(0x70, 2, 0));
        }
        v5.publish(topic, "0", 0, 0);
    }
    // MQTT 3.1.1 has no word for it: acknowledged, and dropped.
    let mut v3 = broker.client(V311, &unique("v3"));
    v3.publish("closed", "1", 1, 1);
    assert_eq!(v3.next(), Got::Ack(PUBACK, 1, 0));
    v3.assert_silent();
    v5.assert_silent();
    let texts: Vec<_> = reader.drain().into_iter().map(|it| (it.topic, it.payload)).collect();
    let expected = ["1", "2", "0"].map(|payload| ("open/a".to_owned(), payload.into()));
    assert_eq!(texts, expected);
    broker.wait_for("access/denied/publish", 7);
    broker.wait_for("publish/messages/dropped/not_authorized", 10);
}

#[test]
fn alias_is_judged_by_the_topic_that_it_stands_for() {
    let broker = Guarded::start("topic read #\ntopic write a");
    let mut client = broker.client(V5, &unique("alias"));
    for (topic, alias, code) in [
        ("a", 1, 0x10),
        ("b", 2, NOT_AUTHORIZED),
        ("", 1, 0x10),
        ("", 2, NOT_AUTHORIZED),
        ("b", 1, NOT_AUTHORIZED),
        ("", 1, NOT_AUTHORIZED),
    ] {
        let mut publish = vec![0x32, 0, 0, topic.len() as u8];
        publish.extend_from_slice(topic.as_bytes());
        publish.extend_from_slice(&[0, 9, 3, 0x23, 0, alias, b'x']);
        publish[1] = publish.len() as u8 - 2;
        client.send(&publish);
        assert_eq!(client.next(), Got::Ack(PUBACK, 9, code), "{topic:?} with alias {alias}");
    }
}

#[test]
fn subscription_that_could_bring_nothing_is_refused_and_others_bring_what_is_allowed() {
    let acl = "topic write #\ntopic read open/+\ntopic deny open/secret";
    let broker = Guarded::start(acl);
    for (version, refused) in [(V5, NOT_AUTHORIZED), (V311, 0x80)] {
        let mut spy = broker.client(version, &unique("spy"));
        let filters =
            ["#", "$SYS/#", "closed/+", "+/+", "open/secret", "$share/g/closed", "$share/g/+/a"];
        let codes = spy.subscribe_all(&filters.map(|filter| (filter, 0)));
        assert_eq!(codes, [0, refused, refused, 0, refused, refused, 0], "{version:?}");
        let mut publisher = broker.client(version, &unique("pub"));
        for topic in ["closed", "open/secret", "x/secret", "open/a/b", "$SYS/x", "open/b"] {
            publisher.publish(topic, "x", 0, 0);
        }
        publisher.assert_silent();
        let topics: Vec<_> = spy.drain().into_iter().map(|it| it.topic).collect();
        assert_eq!(topics, ["open/b"]);
    }
}

#[test]
fn retained_messages_are_replayed_to_those_who_may_receive_them() {
    let broker = Guarded::start("topic write #\ntopic read a/+\ntopic deny a/x");
    let mut client = broker.client(V5, &unique("retained"));
    for (id, topic) in (1..).zip(["a/b", "b", "a", "a/c"]) {
        client.retain(topic, "kept", 1, id);
        assert!(matches!(client.next(), Got::Ack(PUBACK, got, _) if got == id));
    }
    client.subscribe("#", 0);
    let mut topics: Vec<_> = client.receive(2).into_iter().map(|it| it.topic).collect();
    topics.sort();
    assert_eq!(topics, ["a/b", "a/c"]);
    client.assert_silent();
}

#[test]
fn member_of_a_shared_subscription_that_may_not_receive_is_passed_over() {
    let broker = Guarded::start("topic write #\npattern read jobs/%c/#\npattern read all/#");
    let (mut one, mut two) = (broker.client(V5, "one"), broker.client(V5, "two"));
    for client in [&mut one, &mut two] {
        client.subscribe("$share/g/#", 1);
    }
    let mut publisher = broker.client(V5, &unique("pub"));
    for id in 1..=6 {
        publisher.publish("jobs/one/x", id.to_string(), 1, id);
        assert_eq!(publisher.next(), Got::Ack(PUBACK, id, 0));
    }
    assert_eq!(one.receive(6).len(), 6);
    two.assert_silent();
    publisher.publish("jobs/three", "x", 1, 9);
    assert_eq!(publisher.next(), Got::Ack(PUBACK, 9, 0x10), "nobody may receive it");
}

#[test]
fn client_identifier_never_becomes_a_wildcard() {
    let broker = Guarded::start("pattern readwrite dev/%c/#");
    let mut honest = broker.client(V5, "honest");
    honest.subscribe("dev/honest/#", 0);
    for id in ["+", "#", "a/b", "honest/x", "+/+", "$SYS"] {
        let mut client = broker.client(V5, id);
        let codes = client.subscribe_all(&[("dev/#", 0), ("dev/honest/x", 0), ("#", 0)]);
        // The last one is no wildcard, only somebody with a place of his own.
        let own = if id == "$SYS" { 0 } else { NOT_AUTHORIZED };
        assert_eq!(codes, [own, NOT_AUTHORIZED, own], "{id}");
        client.publish("dev/honest/x", "forged", 1, 1);
        assert_eq!(client.next(), Got::Ack(PUBACK, 1, NOT_AUTHORIZED), "{id}");
    }
    honest.publish("dev/honest/x", "own", 0, 0);
    let texts: Vec<_> = honest.drain().into_iter().map(|it| it.payload).collect();
    assert_eq!(texts, [b"own"]);
}

#[test]
fn client_whose_will_is_not_allowed_is_refused() {
    let broker = Guarded::start("topic read #\ntopic write wills/#");
    for (version, code) in [(V5, NOT_AUTHORIZED), (V311, 5)] {
        let id = unique("will");
        let (mut client, answer) =
            Hello::new(version, &id).will("closed", "bye", 0, false).try_open(broker.addr);
        assert_refused(&answer, code);
        client.assert_closed();
        Hello::new(version, &id).will("wills/mine", "bye", 0, false).open(broker.addr);
    }
}

/// The rules have changed while the will waited, and the broker was not even running.
#[test]
fn will_that_is_not_allowed_any_more_is_not_published() {
    let all = "topic readwrite #";
    let mut broker = Guarded::start(all);
    let id = unique("mourned");
    let hello = Hello::persistent(V5, &id).will("wills/mine", "bye", 1, true);
    drop(hello.will_with(Property::WillDelayInterval(3600)).open(broker.addr));
    broker.restart("topic read #");
    // A clean start ends the session, and that its will.
    broker.client(V5, &id).disconnect();
    let mut reader = broker.client(V5, &unique("reader"));
    reader.subscribe("wills/#", 0);
    reader.assert_silent();
}

#[test]
fn session_of_a_user_is_nobody_elses_also_after_a_restart() {
    let acl = "pattern readwrite #";
    let mut broker = Guarded::with_users(acl);
    let id = unique("owned");
    let persistent = || Hello::persistent(V5, &id);
    let (mut alice, present) = broker.log_in(persistent(), "alice", "wonderland");
    assert!(!present);
    alice.subscribe("for/alice", 1);
    for round in 0..3 {
        // Neither with the session nor without it: connected, away, and after a restart.
        for hello in [persistent(), Hello::new(V5, &id)] {
            assert_refused(&broker.try_log_in(hello, "bob", "builder").1, NOT_AUTHORIZED);
        }
        assert_refused(&persistent().try_open(broker.addr).1, NOT_AUTHORIZED);
        assert_refused(&Hello::new(V311, &id).try_open(broker.addr).1, 5);
        match round {
            0 => {
                alice.assert_silent();
                // The end comes behind the answer to this, so the session is away then.
                alice.send_disconnect(0, &[]);
                alice.assert_closed();
            }
            1 => broker.restart(acl),
            _ => (),
        }
    }
    let mut anybody = broker.client(V5, &unique("pub"));
    anybody.publish("for/alice", "kept", 1, 1);
    assert_eq!(anybody.next(), Got::Ack(PUBACK, 1, 0));
    let (mut alice, present) = broker.log_in(persistent(), "alice", "wonderland");
    assert!(present);
    assert_eq!(alice.receive(1)[0].text(), "kept");
    // Her own second connection takes it over, as ever.
    let (_second, present) = broker.log_in(persistent(), "alice", "wonderland");
    assert!(present);
    alice.assert_closed_with(0x8E);
}

#[test]
fn session_of_an_anonymous_client_goes_to_the_first_user_and_stays_his() {
    let broker = Guarded::with_users("pattern readwrite #");
    let id = unique("adopted");
    let (mut anonymous, _) = Hello::persistent(V5, &id).open(broker.addr);
    anonymous.subscribe("a", 1);
    let (_bob, present) = broker.log_in(Hello::persistent(V5, &id), "bob", "builder");
    assert!(present);
    assert_refused(&Hello::persistent(V5, &id).try_open(broker.addr).1, NOT_AUTHORIZED);
    let (_, answer) = broker.try_log_in(Hello::new(V5, &id), "alice", "wonderland");
    assert_refused(&answer, NOT_AUTHORIZED);
}

#[test]
fn session_that_is_away_gets_what_the_rules_allow_it_after_a_restart() {
    let before = "topic write #\nuser alice\ntopic read #";
    let mut broker = Guarded::with_users(before);
    let id = unique("away");
    let (mut alice, _) = broker.log_in(Hello::persistent(V5, &id), "alice", "wonderland");
    assert_eq!(alice.subscribe_all(&[("#", 1), ("exact", 1)]), [1, 1]);
    alice.disconnect();
    broker.restart("topic write #\nuser alice\ntopic read a/#");
    let mut publisher = broker.client(V5, &unique("pub"));
    for (id, topic, code) in [(1, "b", 0x10), (2, "exact", 0x10), (3, "a/b", 0)] {
        publisher.publish(topic, "x", 1, id);
        assert_eq!(publisher.next(), Got::Ack(PUBACK, id, code), "{topic}");
    }
    let (mut alice, present) = broker.log_in(Hello::persistent(V5, &id), "alice", "wonderland");
    assert!(present);
    assert_eq!(alice.receive(1)[0].topic, "a/b");
    alice.assert_silent();
}

#[test]
fn denials_are_logged_with_client_topic_and_rule_and_no_name_forges_a_line() {
    let broker = Guarded::start("topic read #\ntopic deny closed/#");
    let mut client = broker.client(V5, "evil\nWARN forged\u{1b}[31m");
    for id in 1..=1000 {
        client.publish("closed/x\nWARN forged", "x", 1, id);
        assert_eq!(client.next(), Got::Ack(PUBACK, id, NOT_AUTHORIZED));
    }
    let said = broker.process.stderr();
    let denied: Vec<&str> = said.lines().filter(|line| line.contains("denied: publish")).collect();
    assert!(!denied.is_empty() && denied.len() < 1000, "{} lines", denied.len());
    assert!(denied[0].contains(r"evil\nWARN forged\u{1b}[31m"), "{}", denied[0]);
    assert!(denied[0].contains(r"closed/x\nWARN forged"), "{}", denied[0]);
    assert!(denied[0].contains("acl:2: deny publish and subscribe closed/#"), "{}", denied[0]);
    assert!(!said.lines().any(|line| line.starts_with("WARN forged")), "{said}");
}

#[test]
fn acl_explain_prints_the_rule_that_decides_and_its_exit_code_says_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let acl = dir.path().join("acl");
    fs::write(&acl, "topic read news/#\nuser bob\ntopic deny a/x\npattern write a/%c\n").unwrap();
    let settings = dir.path().join("settings.toml");
    let rule = "[[authorisation.rules]]\npermission = 'allow'\naction = 'all'\nfilter = 'b'\n";
    fs::write(&settings, rule).unwrap();
    let explain = |question: &[&str], flag: &str, path: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
        command.args(["acl", "explain"]).args(question).arg(flag).arg(path);
        let (status, lines, said) = Process::spawn(&mut command).finish_with_stderr();
        (status.code().unwrap(), lines.concat() + &said)
    };
    let path = acl.display();
    let ask = |question: &[&str]| explain(question, "--acl-file", &acl);
    for (question, code, answer) in [
        (
            ["c", "-", "subscribe", "news/a"],
            0,
            format!("allowed: {path}:1: allow subscribe news/#"),
        ),
        (["c", "-", "subscribe", "#"], 0, format!("allowed: {path}:1: allow subscribe news/#")),
        (["c", "bob", "subscribe", "news/a"], 1, "denied: no rule allows it".to_owned()),
        (
            ["x", "bob", "publish", "a/x"],
            1,
            format!("denied: {path}:3: deny publish and subscribe a/x"),
        ),
        (["x", "eve", "publish", "a/x"], 0, format!("allowed: {path}:4: allow publish a/x")),
    ] {
        assert_eq!(ask(&question), (code, answer), "{question:?}");
    }
    let from_settings = explain(&["c", "eve", "publish", "b"], "--config", &settings);
    let answer = "allowed: authorisation.rules[1]: allow publish and subscribe b";
    assert_eq!(from_settings, (0, answer.to_owned()));
    for question in
        [["c", "-", "publish", "a/#"], ["c", "-", "subscribe", "a/#/b"], ["c", "-", "do", "a"]]
    {
        assert_eq!(ask(&question).0, 2, "{question:?}");
    }
    fs::write(&acl, "topic\n").unwrap();
    let (code, said) = ask(&["c", "-", "publish", "a"]);
    assert!(code == 2 && said.contains("line 1: a topic filter is missing"), "{said}");
}
