//! The broker as a service manager sees it: news over a socket, and the log.
//!
//! The news are also the events by which other tests know that settings have been read again.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{fs, io};

use mailboxqtt::ids::ProtocolVersion::V5;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{PATIENCE, Process, unique};
use crate::wire::Hello;

/// A broker that is started by a service manager with a settings file.
pub(crate) struct Service {
    pub(crate) addr: SocketAddr,
    process: Process,
    news: UnixDatagram,
    folder: TempDir,
}

impl Service {
    /// With `settings` in its file; returns when it has said that it serves.
    pub(crate) fn start(settings: &str) -> Self {
        Self::start_with(settings, &[])
    }

    /// With these variables in its environment, too.
    pub(crate) fn start_with(settings: &str, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("notify");
        let news = UnixDatagram::bind(&socket).unwrap();
        news.set_read_timeout(Some(PATIENCE)).unwrap();
        let file = folder.path().join("mailboxqtt.toml");
        fs::write(&file, settings).unwrap();

        let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
        command.args(["--listen", "127.0.0.1:0", "--durability", "none", "--config"]).arg(file);
        command.env("NOTIFY_SOCKET", socket).env_remove("RUST_LOG").stdin(Stdio::null());
        command.envs(variables.iter().copied());
        let mut process = Process::spawn(&mut command);
        let addr = process.wait_for("it served", |line| {
            let (_, rest) = line.split_once(" listening on ")?;
            rest.split(' ').next()?.parse().ok()
        });
        let service = Self { addr, process, news, folder };
        service.wait_for_news("READY=1");
        service
    }

    /// Where it listens besides, over `transport`; once, and in their order.
    pub(crate) fn next_listener(&mut self, transport: &str) -> SocketAddr {
        self.process.wait_for("it listened once more", |line| {
            let (addr, over) = line.split_once(" listening on ")?.1.split_once(" over ")?;
            (over == transport).then(|| addr.parse().unwrap())
        })
    }

    /// Writes the settings file and has it read; returns when that is done, well or not.
    pub(crate) fn reload(&self, settings: &str) {
        fs::write(self.path("mailboxqtt.toml"), settings).unwrap();
        self.process.signal(Signal::HUP);
        let said = self.wait_for_news("RELOADING=1");
        assert!(said.contains("MONOTONIC_USEC="), "{said}");
        self.wait_for_news("READY=1");
    }

    /// Waits until the log holds `words`, and returns that line.
    pub(crate) fn wait_for_log(&self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.process.stderr();
            let mut whole = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(line) = whole.find(|line| line.contains(words)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "nothing of `{words}` in the log:\n{log}");
            std::thread::yield_now();
        }
    }

    /// Where a file of this name is that goes with the settings.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its news until the one that has `words`.
    fn wait_for_news(&self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut bytes = [0; 512];
            let length = match self.news.recv(&mut bytes) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            };
            let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if said.lines().any(|line| line == words) {
                return said;
            }
        }
        panic!("no news of {words}")
    }

    /// Ends it as a service manager does.
    pub(crate) fn stop(mut self) {
        self.process.signal(Signal::TERM);
        self.wait_for_news("STOPPING=1");
        let rest = self.process.succeed();
        assert!(rest.is_empty(), "the broker prints one line, then also {rest:?}");
    }
}

#[test]
fn service_manager_is_told_when_clients_are_served_and_when_that_ends() {
    let service = Service::start("");
    Hello::new(V5, &unique("ready")).open(service.addr).0.disconnect();
    service.stop();
}

/// A connected client that does not end its side keeps the broker for a moment.
#[test]
fn service_manager_is_told_of_nothing_more_once_the_broker_stops() {
    let mut service = Service::start("");
    let (_client, _) = Hello::new(V5, &unique("slow")).open(service.addr);
    service.process.signal(Signal::TERM);
    service.wait_for_news("STOPPING=1");
    service.process.signal(Signal::HUP);
    service.process.succeed();
    service.news.set_nonblocking(true).unwrap();
    assert_eq!(service.news.recv(&mut [0; 512]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn watchdog_is_fed_again_and_again() {
    let service = Service::start_with("", &[("WATCHDOG_USEC", "20000")]);
    for _ in 0..3 {
        service.wait_for_news("WATCHDOG=1");
    }
    service.stop();
}

#[test]
fn watchdog_of_another_process_is_not_fed() {
    let service = Service::start_with("", &[("WATCHDOG_USEC", "20000"), ("WATCHDOG_PID", "1")]);
    service.process.signal(Signal::HUP);
    // It would come first: it is fed at once.
    let mut bytes = [0; 512];
    let length = service.news.recv(&mut bytes).unwrap();
    assert!(bytes[..length].starts_with(b"RELOADING=1"), "{:?}", &bytes[..length]);
    service.stop();
}

#[test]
fn connections_that_end_badly_do_not_flood_the_log() {
    let service = Service::start("connections_max = 1");
    let (client, _) = Hello::new(V5, &unique("only")).open(service.addr);
    let mut connections = 0;
    let deadline = Instant::now() + PATIENCE;
    while !service.process.stderr().contains("were left out of the log") {
        assert!(Instant::now() < deadline, "nothing was left out of {connections}");
        for _ in 0..100 {
            drop(TcpStream::connect(service.addr).unwrap());
        }
        connections += 100;
    }
    let log = service.process.stderr();
    let lines = log.matches("connection refused: too many").count();
    assert!(lines >= 20 && lines < connections, "{lines} of {connections}");
    client.disconnect();
    service.stop();
}

#[test]
fn log_has_an_object_in_each_line_if_that_is_wanted() {
    let service = Service::start("log_format = \"json\"");
    service.reload("inflight_max = 0");
    let line = service.wait_for_log("the settings are not changed");
    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(object["level"], "ERROR");
    assert!(object["timestamp"].is_string(), "{line}");
    assert!(object["error"].as_str().unwrap().contains("inflight_max"), "{line}");
    service.stop();
}

#[test]
fn log_has_times_except_in_the_journal_which_gets_priorities() {
    let service = Service::start("");
    service.reload("inflight_max = 0");
    let line = service.wait_for_log("the settings are not changed");
    assert!(line.starts_with("20"), "{line}");
    service.stop();

    let (said, device_and_inode) = log_into_a_file(None);
    assert!(said.starts_with("20"), "{said}");
    assert_eq!(log_into_a_file(Some("1:1")).0[..2], said[..2]);
    // The journal is whatever has this number.
    let (said, _) = log_into_a_file(Some(&device_and_inode));
    assert!(said.starts_with("<4>"), "{said}");
    assert!(said.contains("WARN mailboxqtt: nothing reads"), "{said}");
}

/// What a broker whose standard error is a file logs of a doubtful environment, and the number of that file; with
/// `journal` for the variable JOURNAL_STREAM. The file is the same one each time.
fn log_into_a_file(journal: Option<&str>) -> (String, String) {
    use std::os::unix::fs::MetadataExt;

    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("log-{}", std::process::id()));
    let file = fs::OpenOptions::new().create(true).write(true).truncate(true).open(&path).unwrap();
    let number = file.metadata().map(|it| format!("{}:{}", it.dev(), it.ino())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    // It says what it doubts, and ends because the address is nobody's here.
    command.args(["--durability", "none", "--listen", "192.0.2.1:1", "--allow-anonymous"]);
    command.env("MAILBOXQTT_INFLIGT_MAX", "1").env_remove("RUST_LOG").stdin(Stdio::null());
    command.envs(journal.map(|journal| ("JOURNAL_STREAM", journal)));
    let status = command.stderr(file).stdout(Stdio::null()).status().unwrap();
    assert!(!status.success());
    let said = fs::read_to_string(path).unwrap();
    (said, number)
}
