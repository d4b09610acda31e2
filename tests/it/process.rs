//! A child process whose output a test awaits line by line, and where the tools of the tests are.
//!
//! Used by the harness of the broker and by every module that drives a client program. Output is
//! drained by threads from the first moment, so a child never blocks on a full pipe. A child never
//! outlives its [`Process`]: dropping it kills it by its id, and when the test is failing prints
//! what the child said.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

/// How long a test waits for one event. Generous, because the machine may be busy: a test that
/// passes never waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Lines of a child's output that a failing test prints, and bytes of each line.
const REPORT_LINES_MAX: usize = 40;
const REPORT_LINE_BYTES_MAX: usize = 300;
/// The same of its standard error, which is where the log is.
const STDERR_LINES_MAX: usize = 200;

/// A running child with piped output.
pub(crate) struct Process {
    /// The command line, for messages.
    name: String,
    child: Child,
    lines: Receiver<String>,
    /// Everything that was taken out of `lines`, for messages.
    seen: Vec<String>,
    stderr: Arc<Mutex<String>>,
    /// Hangs up when `stderr` is complete.
    stderr_end: Receiver<()>,
}

impl Process {
    /// Starts `command` with piped output. Its standard input stays what the caller set.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let name = command_line(command);
        let mut child = match command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                panic!(
                    "`{}` is not here: `just setup` installs it",
                    command.get_program().display()
                )
            }
            Err(error) => panic!("cannot start `{name}`: {error}"),
        };
        let lines = drain_lines(child.stdout.take().unwrap());
        let (stderr, stderr_end) = drain_text(child.stderr.take().unwrap());
        Self { name, child, lines, seen: Vec::new(), stderr, stderr_end }
    }

    /// Reads lines until `pick` takes one; `what` says in a failure what was waited for.
    pub(crate) fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(line) = self.next_line_before(deadline) else {
                let (status, _) = self.finish();
                panic!("`{}` ended before {what}: {status}", self.name)
            };
            if let Some(found) = pick(&line) {
                return found;
            }
        }
    }

    /// The child's standard input, which must have been piped. It ends when this is dropped.
    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Waits for the end of the child and returns how it ended, with the lines not yet read.
    pub(crate) fn finish(&mut self) -> (ExitStatus, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        let read_before = self.seen.len();
        while self.next_line_before(deadline).is_some() {}
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.seen[read_before..].to_vec());
            }
            // Output has ended, so the end of the process itself is a matter of microseconds.
            assert!(Instant::now() < deadline, "`{}` closed its output and lives on", self.name);
            thread::yield_now();
        }
    }

    /// Waits for the end of the child and fails the test unless its exit code is 0.
    pub(crate) fn succeed(&mut self) -> Vec<String> {
        let (status, lines) = self.finish();
        assert!(status.success(), "`{}` ended with {status}", self.name);
        lines
    }

    /// Sends `signal` to this child and to nobody else.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The child's process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the child: how it ended, the lines not yet read, and everything that it
    /// wrote to its standard error.
    pub(crate) fn finish_with_stderr(&mut self) -> (ExitStatus, Vec<String>, String) {
        let (status, lines) = self.finish();
        // Hangs up when all has been read.
        let _ = self.stderr_end.recv_timeout(PATIENCE);
        (status, lines, self.stderr())
    }

    /// Everything that the child wrote to its standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    fn next_line_before(&mut self, deadline: Instant) -> Option<String> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("`{}` said nothing in time", self.name)
            }
        }
    }

    fn report(&self) -> String {
        let mut report = format!("--- `{}` said:\n", self.name);
        for line in &self.seen[self.seen.len().saturating_sub(REPORT_LINES_MAX)..] {
            let shown: String = line.chars().take(REPORT_LINE_BYTES_MAX).collect();
            let _ = writeln!(report, "  {shown}");
        }
        let stderr = self.stderr();
        let lines: Vec<_> = stderr.lines().collect();
        for line in &lines[lines.len().saturating_sub(STDERR_LINES_MAX)..] {
            let _ = writeln!(report, "  stderr: {line}");
        }
        report
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the child is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // Its last words may still be in the pipe.
            let _ = self.stderr_end.recv_timeout(Duration::from_secs(1));
            eprint!("{}", self.report());
        }
    }
}

/// A name that no other test of this run, nor of an earlier run, uses. At most 23 bytes for a
/// `stem` of up to eight, which is what MQTT 3.1 allows for a client identifier.
pub(crate) fn unique(stem: &str) -> String {
    static RUN: OnceLock<u32> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);

    assert!(stem.len() <= 8, "`{stem}` makes client identifiers too long for MQTT 3.1");
    let run = RUN.get_or_init(|| {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        now.subsec_nanos() ^ (now.as_secs() as u32).rotate_left(8)
    });
    format!("{stem}-{run:08x}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A path in the folder into which `just setup` installs what does not come from the system: the
/// variable `MAILBOXQTT_TEST_TOOLS`, without it the target folder of this build.
pub(crate) fn tools(path: &str) -> PathBuf {
    let folder = match std::env::var_os("MAILBOXQTT_TEST_TOOLS") {
        Some(folder) => PathBuf::from(folder),
        // Cargo gives integration tests the folder `tmp` in its target folder.
        None => PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().to_owned(),
    };
    let tool = folder.join(path);
    assert!(tool.exists(), "`{}` is not here: `just setup` installs it", tool.display());
    tool
}

/// Fails the test unless the system has `command`; for a command that another one starts.
pub(crate) fn require(command: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(command).is_file());
    assert!(found, "`{command}` is not here: `just setup` installs it");
}

/// The path of a client script that lies beside these tests.
pub(crate) fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients").join(name)
}

fn command_line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn drain_lines(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                // Nobody reads any more. The rest is drained so that the child does not block.
                continue;
            }
        }
    });
    lines
}

fn drain_text(mut source: impl Read + Send + 'static) -> (Arc<Mutex<String>>, Receiver<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let (end_sender, end) = mpsc::channel();
    let writer = Arc::clone(&text);
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = source.read(&mut chunk) {
            writer.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
        drop(end_sender);
    });
    (text, end)
}
