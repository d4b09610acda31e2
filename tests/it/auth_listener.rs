//! Listeners that have users of their own, beside those that share the common ones.

use std::path::{Path, PathBuf};

use mailboxqtt::ids::ProtocolVersion::{self, V5, V31, V311};

use crate::broker::Broker;
use crate::process::unique;
use crate::service::Service;
use crate::wire::{Client, Got, Hello, wait_for_counter};

/// Password files, in a folder of their own. The password of every user is `x`, by a hash that costs nothing.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &[&str])]) -> Self {
        let all = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, users)| all.write(name, users));
        all
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, users: &[&str]) {
        let lines = users.iter().map(|user| format!("{user}:{HASH}\n"));
        std::fs::write(self.path(name), lines.collect::<String>()).unwrap();
    }
}

const HASH: &str = "$6$c2FsdA==$6eVdMq4I5n/QFfgZ0/M9n4vpSI7CRVQSApIGU+7jLnaJc6uSeeYJVVj+vSVOhyOXs0nStcL5iykHFunAzR5sag==";

/// The section with the common users.
fn common(file: &Path) -> String {
    format!("[authentication]\npassword_file = '{}'\n", file.display())
}

/// A listener on a loopback address of its own, with the users of `file` if there is one.
fn listener(number: u8, own: Option<&Path>) -> String {
    let own = own
        .map(|file| format!("[listeners.authentication]\npassword_file = '{}'\n", file.display()));
    format!("[[listeners]]\nlisten = '127.0.0.{number}:0'\n{}", own.unwrap_or_default())
}

#[track_caller]
fn log_in(addr: std::net::SocketAddr, version: ProtocolVersion, user: &str) -> (Client, u8) {
    let id = unique("own");
    let (client, answer) = Hello::new(version, &id).user(user, b"x").try_open(addr);
    let Got::ConnAck(_, code, _) = answer else { panic!("{answer:?}") };
    (client, code)
}

#[test]
fn user_of_one_listener_is_nobody_on_another() {
    let files = Files::new(&[("all", &["anna"]), ("inside", &["bob"])]);
    let settings = format!(
        "{}{}{}",
        common(&files.path("all")),
        listener(2, Some(&files.path("inside"))),
        listener(3, None)
    );
    let broker = Broker::start_listening(2, &settings);
    let [inside, outside] = [0, 1].map(|number| broker.listener(number));
    for version in [V31, V311, V5] {
        let refused = if version == V5 { 0x87 } else { 5 };
        assert_eq!(log_in(broker.addr(), version, "anna").1, 0);
        assert_eq!(log_in(outside, version, "anna").1, 0);
        assert_eq!(log_in(inside, version, "bob").1, 0);
        assert_eq!(log_in(inside, version, "anna").1, refused);
        assert_eq!(log_in(outside, version, "bob").1, refused);
        assert_eq!(log_in(broker.addr(), version, "bob").1, refused);
    }
    let (_, answer) = Hello::new(V5, &unique("nobody")).try_open(inside);
    assert!(matches!(answer, Got::ConnAck(_, 0x87, _)), "{answer:?}");
    broker.stop();
}

#[test]
fn failures_on_one_listener_slow_logins_down_on_all() {
    let files = Files::new(&[("all", &["anna"]), ("inside", &["bob"])]);
    let settings = format!(
        "sys_interval_s = 1\nallow_anonymous = true\n{}failures_free = 2\nfailure_delay_s_max = 1\n\
         [[listeners]]\nlisten = '127.0.0.1:0'\n[listeners.authentication]\npassword_file = '{}'\n",
        common(&files.path("all")),
        files.path("inside").display()
    );
    let broker = Broker::start_listening(1, &settings);
    for _ in 0..3 {
        assert_eq!(log_in(broker.listener(0), V311, "anna").1, 5);
    }
    assert_eq!(log_in(broker.addr(), V311, "anna").1, 0);
    wait_for_counter(&broker, "errors/authentication", 3);
    wait_for_counter(&broker, "authentication/delayed", 1);
    broker.stop();
}

#[test]
fn user_who_is_gone_from_his_listener_is_disconnected_and_namesakes_elsewhere_stay() {
    let files = Files::new(&[("all", &["anna", "bob"]), ("inside", &["anna", "bob"])]);
    let settings = format!(
        "{}{}{}",
        common(&files.path("all")),
        listener(2, Some(&files.path("inside"))),
        listener(3, None)
    );
    let mut service = Service::start(&settings);
    let [inside, outside] = [(); 2].map(|()| service.next_listener("TCP"));
    let open = |addr, user| log_in(addr, V5, user).0;
    let (mut bob_inside, mut bob_outside) = (open(inside, "bob"), open(outside, "bob"));
    let (mut anna_inside, mut anna_outside) = (open(inside, "anna"), open(outside, "anna"));

    files.write("inside", &["anna"]);
    service.reload(&settings);
    assert_eq!(bob_inside.next(), Got::Disconnect(0x87));
    assert_eq!(log_in(inside, V5, "bob").1, 0x87);
    assert_eq!(log_in(outside, V5, "bob").1, 0);

    files.write("all", &["bob"]);
    service.reload(&settings);
    assert_eq!(anna_outside.next(), Got::Disconnect(0x87));
    for client in [&mut anna_inside, &mut bob_outside] {
        client.subscribe(&unique("stays"), 0);
    }
    service.stop();
}

#[test]
fn listener_that_gets_or_loses_users_of_its_own_keeps_only_those_whom_it_still_knows() {
    let files = Files::new(&[("all", &["anna", "carl"]), ("inside", &["bob", "carl"])]);
    let own = files.path("inside");
    let with = |own: Option<&Path>| format!("{}{}", common(&files.path("all")), listener(2, own));
    let mut service = Service::start(&with(None));
    let addr = service.next_listener("TCP");
    let (mut anna, mut carl) = (log_in(addr, V5, "anna").0, log_in(addr, V5, "carl").0);
    assert_eq!(log_in(addr, V5, "bob").1, 0x87);

    service.reload(&with(Some(&own)));
    assert_eq!(anna.next(), Got::Disconnect(0x87));
    assert_eq!(log_in(addr, V5, "anna").1, 0x87);
    let mut bob = log_in(addr, V5, "bob").0;

    service.reload(&with(None));
    assert_eq!(bob.next(), Got::Disconnect(0x87));
    assert_eq!(log_in(addr, V5, "anna").1, 0);
    carl.subscribe(&unique("stays"), 0);

    // Where the listener is no more, the common users count on, for it had no others.
    files.write("all", &["anna"]);
    service.reload(&common(&files.path("all")));
    assert_eq!(carl.next(), Got::Disconnect(0x87));
    service.stop();
}
