//! The broker that is flooded, in a control group with little memory where there may be one.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::flood::{CONTAINER_BYTES, MEMORY_BYTES_MAX};
use crate::process::Process;

/// All limits out of the way but that of memory.
const SETTINGS: &str = "
    allow_anonymous = true
    sys_interval_s = 3600
    sessions_max = 100000000
    subscriptions_max = 100000000
    subscription_bytes_max = 10000000000
    queue_messages_max = 100000000
    queue_bytes_max = 10000000000
    queues_messages_max = 100000000
    queues_bytes_max = 1000000000000
    retained_messages_max = 100000000
    retained_bytes_max = 10000000000
";
/// Enters the group whose folder is the first argument, and becomes what the others say.
const ENTER: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";

/// See the module comment.
pub(super) struct Broker {
    process: Process,
    addr: SocketAddr,
    group: Option<Group>,
    _folder: TempDir,
}

/// The most that it has used.
pub(super) struct Peak {
    resident: u64,
    /// With what the system holds for it: buffers of sockets and files.
    all: Option<u64>,
}

impl Broker {
    /// With these settings, too.
    pub(super) fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.toml");
        let built_here = || env!("CARGO_BIN_EXE_mailboxqtt").into();
        let binary = std::env::var_os("MAILBOXQTT_TEST_BINARY").unwrap_or_else(built_here);
        let group = Group::new();
        let memory = match group {
            Some(_) => String::new(),
            None => format!("memory_bytes_max = {MEMORY_BYTES_MAX}\n"),
        };
        fs::write(&path, [SETTINGS, &memory, settings].concat()).unwrap();
        let mut command = match &group {
            None => Command::new(binary),
            Some(group) => {
                let mut command = Command::new("sh");
                command.args(["-c", ENTER]).arg(&group.folder).arg(binary);
                command
            }
        };
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path().join("data"));
        command.arg("--config").arg(path).stdin(Stdio::null());
        let mut process = Process::spawn(&mut command);
        let addr = process.wait_for("it served", |line| {
            let (_, rest) = line.split_once(" listening on ")?;
            rest.split(' ').next()?.parse().ok()
        });
        Self { process, addr, group, _folder: folder }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// So far. Fails where it has been killed.
    pub(super) fn peak(&mut self) -> Peak {
        let id = self.process.id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
        let kilobytes: u64 = kilobytes.expect("the broker has died").parse().unwrap();
        Peak { resident: kilobytes * 1024, all: self.group.as_ref().map(Group::peak_bytes) }
    }

    /// It has to be there still, and to end well.
    pub(super) fn stop(mut self) {
        if let Some(group) = &self.group {
            assert_eq!(group.kills(), 0, "the system has killed it");
        }
        self.process.signal(Signal::TERM);
        self.process.succeed();
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB | ", self.resident >> 20)?;
        match self.all {
            Some(all) => write!(f, "{} MiB", all >> 20),
            None => f.write_str("not measured"),
        }
    }
}

/// A control group of version 2, or of version 1 for memory alone.
struct Group {
    folder: PathBuf,
    is_v2: bool,
}

impl Group {
    /// With its limit; `None` where there may be none, which is said.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = Path::new("/sys/fs/cgroup");
        let is_v2 = root.join("cgroup.controllers").exists();
        let root = if is_v2 { root.to_owned() } else { root.join("memory") };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = root.join(format!("mailboxqtt-flood-{}-{number}", std::process::id()));
        let made = fs::create_dir(&folder).and_then(|()| {
            let group = Self { folder, is_v2 };
            group.limit()?;
            Ok(group)
        });
        match made {
            Ok(group) => Some(group),
            Err(error) => {
                println!("no control group, so no limit is enforced: {error}");
                None
            }
        }
    }

    fn limit(&self) -> std::io::Result<()> {
        let bytes = CONTAINER_BYTES.to_string();
        let set = |file: &str, value: &str| fs::write(self.folder.join(file), value);
        if self.is_v2 {
            set("memory.max", &bytes)?;
            // Where there is no swap there is no such file.
            let _ = set("memory.swap.max", "0");
            return Ok(());
        }
        set("memory.limit_in_bytes", &bytes)?;
        // Buffers of sockets are only counted where they have a limit, and on top of the others.
        set("memory.kmem.tcp.limit_in_bytes", &u64::MAX.to_string())
            .or_else(|_| set("memory.kmem.tcp.limit_in_bytes", &(1_u64 << 40).to_string()))
    }

    fn peak_bytes(&self) -> u64 {
        let read = |file: &str| -> u64 { self.read(file).trim().parse().unwrap() };
        match self.is_v2 {
            true => read("memory.peak"),
            false => read("memory.max_usage_in_bytes") + read("memory.kmem.tcp.max_usage_in_bytes"),
        }
    }

    /// How many processes of it the system has killed.
    fn kills(&self) -> u64 {
        let text = self.read(if self.is_v2 { "memory.events" } else { "memory.oom_control" });
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap();
        line.trim().parse().unwrap()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It is empty when the broker has been waited for; a folder that stays does no harm.
        let _ = fs::remove_dir(&self.folder);
    }
}
