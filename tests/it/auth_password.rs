//! User names and passwords in CONNECT, checked with a password file, with mosquitto's clients and raw bytes; and
//! `mailboxqtt passwd`, with which operators write that file.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mailboxqtt::ids::ProtocolVersion::{self, V5, V31, V311};

use crate::broker::Broker;
use crate::process::{Process, require, unique};
use crate::wire::{Client, Got, Hello, wait_for_counter};

/// A folder with a password file.
struct Users {
    folder: tempfile::TempDir,
}

impl Users {
    fn new(users: &[(&str, &str)]) -> Self {
        let users_file = Self { folder: tempfile::tempdir().unwrap() };
        for (name, password) in users {
            users_file.passwd(&[name], password);
        }
        users_file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("users")
    }

    /// Runs `mailboxqtt passwd` on the file, which has to succeed.
    fn passwd(&self, arguments: &[&str], password: &str) {
        let (is_success, said) = passwd(&self.path(), arguments, password);
        assert!(is_success, "{said}");
    }

    /// A broker with these users and more settings before their section.
    fn broker(&self, settings: &str) -> Broker {
        let file = self.path();
        let file = file.display();
        let section = format!("[authentication]\npassword_file = \"{file}\"\n");
        Broker::start_configured(&format!("{settings}\n{section}"))
    }
}

/// Whether `mailboxqtt passwd` succeeded, and what it complained of.
fn passwd(file: &Path, arguments: &[&str], password: &str) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.arg("passwd").arg(file).args(arguments).stdin(Stdio::piped());
    let mut process = Process::spawn(&mut command);
    // Who is refused for a name has no ear for a password.
    let _ = writeln!(process.stdin(), "{password}");
    let (status, _, said) = process.finish_with_stderr();
    (status.success(), said)
}

/// The answer to a CONNECT with this user name and password: its code, or 0.
#[track_caller]
fn log_in(broker: &Broker, version: ProtocolVersion, name: &str, password: &str) -> u8 {
    let id = unique("pw");
    let hello = Hello::new(version, &id).user(name, password.as_bytes());
    code(hello.try_open(broker.addr()))
}

#[track_caller]
fn code((mut client, answer): (Client, Got)) -> u8 {
    let Got::ConnAck(_, code, _) = answer else { panic!("{answer:?}") };
    if code == 0 {
        client.disconnect();
    } else {
        client.assert_closed();
    }
    code
}

#[test]
fn clients_of_every_version_log_in_with_their_password_and_nobody_else_does() {
    let users = Users::new(&[("alice", "wonder:land$"), ("bob", "builder")]);
    let broker = users.broker("");
    for (version, refused) in [(V31, 5), (V311, 5), (V5, 0x87)] {
        assert_eq!(log_in(&broker, version, "alice", "wonder:land$"), 0);
        assert_eq!(log_in(&broker, version, "bob", "builder"), 0);
        assert_eq!(log_in(&broker, version, "bob", "wonder:land$"), refused);
        assert_eq!(code(Hello::new(version, &unique("no")).try_open(broker.addr())), refused);
    }
    // A user name alone proves nothing, and neither does a password alone.
    let mut hello = Hello::new(V5, "alone");
    hello.user_name = Some("alice");
    assert_eq!(code(hello.try_open(broker.addr())), 0x87);
    let mut hello = Hello::new(V5, "alone");
    hello.password = Some(b"wonder:land$");
    assert_eq!(code(hello.try_open(broker.addr())), 0x87);
    broker.stop();
}

#[test]
fn wrong_password_and_unknown_user_get_the_same_bytes() {
    let users = Users::new(&[("alice", "wonderland")]);
    let broker = users.broker("");
    let answer = |name: &str, password: &str| {
        let mut client = Client::raw(broker.addr(), V5);
        client.send(&Hello::new(V5, "guess").user(name, password.as_bytes()).bytes());
        let frame = client.next_frame().unwrap();
        client.assert_closed();
        frame
    };
    let wrong = answer("alice", "guess");
    assert_eq!(wrong[3], 0x87);
    for (name, password) in [("alicf", "wonderland"), ("", "wonderland"), ("alice", "")] {
        assert_eq!(answer(name, password), wrong, "{name} {password}");
    }
    let log = broker.stop_and_read_log();
    assert!(log.contains("unknown user or wrong password (user `alicf`)"), "{log}");
    assert!(!log.contains("wonderland"), "{log}");
}

#[test]
fn anonymous_clients_come_in_beside_users_where_they_may() {
    let users = Users::new(&[("alice", "wonderland")]);
    let broker = users.broker("allow_anonymous = true");
    assert_eq!(code(Hello::new(V311, &unique("any")).try_open(broker.addr())), 0);
    assert_eq!(log_in(&broker, V311, "alice", "wonderland"), 0);
    assert_eq!(log_in(&broker, V311, "alice", "guess"), 5);
    broker.stop();
}

#[test]
fn without_anybody_to_check_them_user_names_mean_nothing() {
    let broker = Broker::start();
    assert_eq!(log_in(&broker, V311, "alice", "whatever"), 0);
    broker.stop();
}

#[test]
fn mosquitto_reads_what_it_may_with_a_file_that_mosquitto_passwd_wrote() {
    for command in ["mosquitto_passwd", "mosquitto_pub", "mosquitto_sub"] {
        require(command);
    }
    let users = Users { folder: tempfile::tempdir().unwrap() };
    for (create, name, password) in [(true, "alice", "wonderland"), (false, "bob", "b u:ilder")] {
        let mut command = Command::new("mosquitto_passwd");
        command.args(create.then_some("-c")).arg("-b").arg(users.path()).args([name, password]);
        Process::spawn(&mut command).succeed();
    }
    let text = fs::read_to_string(users.path()).unwrap();
    assert!(text.lines().all(|line| line.contains(":$7$")), "{text}");
    users.passwd(&["carl"], "chess");
    assert!(fs::read_to_string(users.path()).unwrap().starts_with(&text));
    let broker = users.broker("");
    let (host, port) = (broker.addr().ip().to_string(), broker.addr().port().to_string());
    let publish = |name: &str, password: &str| {
        let mut command = Command::new("mosquitto_pub");
        command.args([
            "-h", &host, "-p", &port, "-u", name, "-P", password, "-t", "a", "-m", "b", "-q", "1",
        ]);
        Process::spawn(&mut command).finish_with_stderr()
    };
    for (name, password) in [("alice", "wonderland"), ("bob", "b u:ilder"), ("carl", "chess")] {
        let (status, _, said) = publish(name, password);
        assert!(status.success(), "{name}: {said}");
    }
    let (status, _, said) = publish("alice", "chess");
    assert!(!status.success() && said.contains("not authorised"), "{said}");
    broker.stop();
}

#[test]
fn passwd_adds_replaces_and_removes_users_and_keeps_everything_else() {
    let users = Users::new(&[("alice", "first")]);
    let path = users.path();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let comment = "# ours\n\n";
    fs::write(&path, format!("{comment}{}", fs::read_to_string(&path).unwrap())).unwrap();
    users.passwd(&["bob"], "builder");
    users.passwd(&["alice"], "second");
    users.passwd(&["carl", "--scram"], "chess");
    let text = fs::read_to_string(&path).unwrap();
    let kinds: Vec<_> = text
        .strip_prefix(comment)
        .unwrap()
        .lines()
        .map(|line| line.split('$').next().unwrap())
        .collect();
    assert_eq!(kinds, ["alice:", "bob:", "carl:SCRAM-SHA-256"]);
    users.passwd(&["bob", "--delete"], "");
    assert!(!fs::read_to_string(&path).unwrap().contains("bob"));
    let (is_success, said) = passwd(&path, &["bob", "--delete"], "");
    assert!(!is_success && said.contains("no user `bob`"), "{said}");
    for (name, password, part) in
        [("a:b", "x", "user name"), ("dora", "", "empty"), ("", "x", "user name")]
    {
        let before = fs::read(&path).unwrap();
        let (is_success, said) = passwd(&path, &[name], password);
        assert!(!is_success && said.contains(part), "{said}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    let broker = users.broker("");
    assert_eq!(log_in(&broker, V311, "alice", "second"), 0);
    assert_eq!(log_in(&broker, V311, "alice", "first"), 5);
    assert_eq!(log_in(&broker, V311, "carl", "chess"), 0);
    broker.stop();
}

#[test]
fn what_others_change_in_the_file_while_a_password_is_typed_stays_changed() {
    let users = Users::new(&[("alice", "first"), ("bob", "builder")]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.arg("passwd").arg(users.path()).arg("alice").stdin(Stdio::piped());
    let mut slow = Process::spawn(&mut command);
    // It has read the file by the time that another one is through with a hash, or will find the change anyway.
    users.passwd(&["carl"], "chess");
    users.passwd(&["bob", "--delete"], "");
    writeln!(slow.stdin(), "second").unwrap();
    let (status, _, said) = slow.finish_with_stderr();
    assert!(status.success(), "{said}");
    let text = fs::read_to_string(users.path()).unwrap();
    assert!(text.contains("carl:") && text.contains("alice:") && !text.contains("bob:"), "{text}");
}

#[test]
fn plain_passwords_are_refused_with_line_and_way_out() {
    let users = Users::new(&[]);
    fs::write(users.path(), "# old\nalice:hunter2\n").unwrap();
    let settings = users.folder.path().join("settings.toml");
    let section = format!("[authentication]\npassword_file = \"{}\"\n", users.path().display());
    fs::write(&settings, section).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.args(["--listen", "127.0.0.1:0", "--durability", "none", "--config"]).arg(&settings);
    let (status, _, said) = Process::spawn(&mut command).finish_with_stderr();
    assert!(!status.success());
    for part in ["line 2", "`alice`", "not hashed", "mailboxqtt passwd", "mosquitto_passwd -U"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn address_that_fails_too_often_waits_for_bad_and_good_logins_alike() {
    let users = Users::new(&[]);
    let text = "alice:$6$c2FsdA==$6eVdMq4I5n/QFfgZ0/M9n4vpSI7CRVQSApIGU+7jLnaJc6uSeeYJVVj+vSVOhyOXs0nStcL5iykHFunAzR5sag==\n";
    fs::write(users.path(), text).unwrap();
    let file = users.path();
    let settings = format!(
        "sys_interval_s = 1\nallow_anonymous = true\n[authentication]\npassword_file = \"{}\"\nfailures_free = 2\nfailure_delay_s_max = 1\n",
        file.display()
    );
    let broker = Broker::start_configured(&settings);
    for _ in 0..3 {
        assert_eq!(log_in(&broker, V311, "alice", "guess"), 5);
    }
    assert_eq!(log_in(&broker, V311, "alice", "x"), 0);
    wait_for_counter(&broker, "errors/authentication", 3);
    wait_for_counter(&broker, "authentication/delayed", 1);
    broker.stop();
}
