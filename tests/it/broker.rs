//! The broker as its own process, for every module of this binary.
//!
//! [`Broker::start`] runs the `mailboxqtt` that cargo built beside these tests on a free port of
//! the loopback interface and returns when it serves. [`Broker::stop`] ends it as an operator does
//! and checks that it ends well; a broker that is dropped instead is killed by its id. When a test
//! fails, the log of its broker is printed with it.
//!
//! `MAILBOXQTT_TEST_BINARY` names another build of the broker, for example one with optimisation.
//!
//! `MAILBOXQTT_TEST_ADDR=HOST:PORT cargo test --test it` makes [`Broker::start`] use the broker
//! that listens there, whichever it is, and leaves it running. That is how the tests themselves
//! are tried against another broker. [`Broker::start_with`] and [`Broker::start_configured`] ask for
//! particular settings, which another broker cannot be given: a test that needs them then ends with
//! the word [`SKIPPED`], by which `just conformance --addr` knows it from one that failed.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::process::Process;

/// How the message of a test begins that cannot be pointed at another broker.
const SKIPPED: &str = "skipped: ";

const TEST_ADDR: &str = "MAILBOXQTT_TEST_ADDR";
const TEST_BINARY: &str = "MAILBOXQTT_TEST_BINARY";

/// Whether the tests run against a broker that is not ours.
pub(crate) fn is_pointed_elsewhere() -> bool {
    std::env::var_os(TEST_ADDR).is_some()
}

/// A broker that serves.
pub(crate) struct Broker {
    addr: SocketAddr,
    /// Where else, for a broker of our own.
    others: Vec<String>,
    /// `None` when the broker is not ours.
    process: Option<Process>,
    /// Its data, for as long as it runs.
    _folder: Option<tempfile::TempDir>,
}

impl Broker {
    /// A broker with its default settings.
    pub(crate) fn start() -> Self {
        match std::env::var(TEST_ADDR) {
            Ok(addr) => {
                let addr = addr.to_socket_addrs().ok().and_then(|mut all| all.next());
                Self {
                    addr: addr.expect("MAILBOXQTT_TEST_ADDR must be HOST:PORT"),
                    others: Vec::new(),
                    process: None,
                    _folder: None,
                }
            }
            Err(_) => Self::start_with(&[]),
        }
    }

    /// A broker of our own with `args` behind `--listen 127.0.0.1:0`.
    pub(crate) fn start_with(args: &[&str]) -> Self {
        assert!(!is_pointed_elsewhere(), "{SKIPPED}needs a broker of our own, with settings");
        let built_here = || env!("CARGO_BIN_EXE_mailboxqtt").into();
        let mut command = Command::new(std::env::var_os(TEST_BINARY).unwrap_or_else(built_here));
        let folder = tempfile::tempdir().unwrap();
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path());
        // Many brokers, and little data in each.
        command.env("MAILBOXQTT_LOG_SEGMENT_BYTES", "262144");
        command.args(args).stdin(Stdio::null());
        let mut process = Process::spawn(&mut command);
        let addr = process.wait_for("it served", |line| {
            let (_, rest) = line.split_once(" listening on ")?;
            rest.split(' ').next()?.parse().ok()
        });
        Self { addr, others: Vec::new(), process: Some(process), _folder: Some(folder) }
    }

    /// A broker of our own with this text as its settings file, which has as many `[[listeners]]`.
    pub(crate) fn start_listening(listeners: usize, settings: &str) -> Self {
        let mut broker = Self::start_configured(settings);
        let process = broker.process.as_mut().expect("a broker of our own");
        broker.others = (0..listeners)
            .map(|_| {
                process.wait_for("it named its next listener", |line| {
                    let (_, rest) = line.split_once(" listening on ")?;
                    rest.split(' ').next().map(str::to_owned)
                })
            })
            .collect();
        broker
    }

    /// Where a listener of [`Broker::start_listening`] accepts connections.
    pub(crate) fn listener(&self, number: usize) -> SocketAddr {
        self.others[number].parse().unwrap()
    }

    /// A broker of our own with this text as its settings file.
    pub(crate) fn start_configured(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.toml");
        fs::write(&path, settings).unwrap();
        // It has read the file when it serves.
        Self::start_with(&["--config", path.to_str().unwrap()])
    }

    /// Memory that it occupies, in bytes; for a broker of our own.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let id = self.process.as_ref().expect("a broker of our own").id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kilobytes * 1024
    }

    /// Sends it a signal without waiting for what it does.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("a broker of our own").signal(signal);
    }

    /// Waits for its end after [`Broker::signal`]: exit code 0, no other word.
    pub(crate) fn end(mut self) {
        let rest = self.process.as_mut().expect("a broker of our own").succeed();
        assert!(rest.is_empty(), "the broker prints one line, then also {rest:?}");
    }

    /// Stops it, and returns everything that it has logged; for a broker of our own.
    pub(crate) fn stop_and_read_log(mut self) -> String {
        let process = self.process.as_mut().expect("a broker of our own");
        process.signal(Signal::TERM);
        let (status, _, log) = process.finish_with_stderr();
        assert!(status.success(), "{log}");
        log
    }

    /// Where it accepts connections.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its log so far; empty for a broker that is not ours.
    #[allow(dead_code, reason = "for tests that look for the reason of a disconnect in the log")]
    pub(crate) fn stderr(&self) -> String {
        self.process.as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// Asks it to stop and fails the test unless it does so with exit code 0 and without another
    /// word on its standard output. A broker that is not ours runs on.
    pub(crate) fn stop(self) {
        let Some(mut process) = self.process else { return };
        process.signal(Signal::TERM);
        let rest = process.succeed();
        assert!(rest.is_empty(), "the broker prints one line, then also {rest:?}");
    }
}
