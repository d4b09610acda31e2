//! The broker with a directory, and its end by SIGKILL.
//!
//! `RECOVERY_ARGS` replaces the arguments that make it durable, `{dir}` in them stands for the directory. With
//! `RECOVERY_ARGS='--durability none'` the broker keeps nothing, and whatever kills it has to fail.
//! `MAILBOXQTT_TEST_BINARY` names another build of the broker.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::Process;

const ARGS: &str = "--data-dir {dir} --durability always";

/// A broker that serves.
pub(crate) struct Server {
    process: Process,
    addr: SocketAddr,
    start_time: Duration,
}

impl Server {
    /// Starts on `dir`, whatever is in it, or fails the test.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    /// As [`Server::start`], with more arguments.
    pub(crate) fn start_with(dir: &Path, args: &[&str]) -> Self {
        let begun = Instant::now();
        let mut process = spawn(dir, args);
        let addr = process.wait_for("it served", |line| {
            let (_, rest) = line.split_once(" listening on ")?;
            rest.split(' ').next()?.parse().ok()
        });
        Self { process, addr, start_time: begun.elapsed() }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From nothing to serving.
    pub(crate) fn start_time(&self) -> Duration {
        self.start_time
    }

    /// SIGKILL; fails the test if it was not alive.
    pub(crate) fn kill(self) {
        kill(self.process);
    }

    /// One that may not serve yet.
    pub(crate) fn spawn(dir: &Path, args: &[&str]) -> Starting {
        Starting(spawn(dir, args))
    }

    /// SIGKILL, unless it has ended by itself because its disk has failed. Says whether it has.
    pub(crate) fn kill_perhaps_ended(self) -> bool {
        Starting(self.process).kill_perhaps_ended()
    }

    /// SIGTERM, and its end.
    pub(crate) fn stop(mut self) {
        self.process.signal(Signal::TERM);
        self.process.succeed();
    }

    /// SIGTERM, and what it has written to standard error.
    pub(crate) fn stop_and_say(mut self) -> String {
        self.process.signal(Signal::TERM);
        let (status, _, stderr) = self.process.finish_with_stderr();
        assert!(status.success(), "{status}: {stderr}");
        stderr
    }
}

/// See [`Server::spawn`].
pub(crate) struct Starting(Process);

impl Starting {
    /// See [`Server::kill_perhaps_ended`].
    pub(crate) fn kill_perhaps_ended(mut self) -> bool {
        // Its parent is this process, which has not waited for it: the id is its own still.
        self.0.signal(Signal::KILL);
        let (status, _, stderr) = self.0.finish_with_stderr();
        let is_killed = status.signal() == Some(Signal::KILL.as_raw());
        assert!(is_killed || status.code() == Some(1), "it has ended with {status}: {stderr}");
        let is_given_up = stderr.contains("cannot be read and is lost");
        assert!(!is_given_up, "what cannot be read for the moment is not lost: {stderr}");
        !is_killed
    }
}

/// Starts on `dir` and kills it after `time`, wherever it is then.
pub(crate) fn kill_while_starting(dir: &Path, time: Duration) {
    let process = spawn(dir, &[]);
    thread::sleep(time);
    kill(process);
}

fn kill(mut process: Process) {
    process.signal(Signal::KILL);
    let (status, _, stderr) = process.finish_with_stderr();
    let killed = Some(Signal::KILL.as_raw());
    assert_eq!(status.signal(), killed, "it had ended by itself, with {status}: {stderr}");
}

fn spawn(dir: &Path, more: &[&str]) -> Process {
    let built_here = || env!("CARGO_BIN_EXE_mailboxqtt").into();
    let binary = std::env::var_os("MAILBOXQTT_TEST_BINARY").unwrap_or_else(built_here);
    let args = std::env::var("RECOVERY_ARGS").unwrap_or_else(|_| ARGS.to_owned());
    let dir = dir.to_str().unwrap();
    let mut command = Command::new(binary);
    command.args(["--listen", "127.0.0.1:0"]).stdin(Stdio::null());
    command.args(args.split_whitespace().map(|word| word.replace("{dir}", dir)));
    command.args(more);
    Process::spawn(&mut command)
}
