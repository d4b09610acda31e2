//! The file system is cut off from its disk at any moment, as by a power cut, and the broker loses nothing that it has
//! acknowledged.
//!
//! The directory of the broker lies on an ext4 of its own, in a file that is mounted through a loop device. A cut is the
//! request by which file systems are tested (`FS_IOC_SHUTDOWN` without flushing): from that moment nothing reaches the
//! disk any more, whatever was written and not synced is gone, every call fails. Then it is mounted again, and the file
//! system recovers as after a crash. A disk that forgets what it was told to flush is not imitated.
//!
//! It needs root, a loop device, mkfs.ext4 and python3: `just cut N`. With
//! `RECOVERY_ARGS='--data-dir {dir} --durability os'` it has to fail.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::process::PATIENCE;
use crate::server::Server;
use crate::{DataDir, Life, STARTS_PER_KILL, number, trial};

/// Cuts where nobody says otherwise.
const CUTS: u64 = 20;
/// Of the file system; the file is sparse.
const IMAGE_BYTES: &str = "3G";
/// Every start begins a segment.
const SEGMENT: [&str; 2] = ["--log-segment-bytes", "1048576"];
/// Cuts the file system at `argv[1]` off: FS_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
const SHUT_DOWN: &str = "\
import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

#[test]
#[ignore = "needs root and a loop device: `just cut N`"]
fn nothing_acknowledged_is_lost_however_often_the_power_is_cut() {
    let cuts = number("RECOVERY_POWER_CUTS").unwrap_or(CUTS);
    let disk = Rc::new(Disk::new());
    let (cut_starts, failed) = (Cell::new(0), Rc::new(Cell::new(0)));
    let mut is_begun = false;
    trial(cuts, |rng: &mut Rng| {
        while is_begun && rng.u8(..STARTS_PER_KILL) == 0 {
            let server = Server::spawn(&disk.data(), &SEGMENT);
            thread::sleep(Duration::from_millis(rng.u64(..40)));
            disk.cut();
            server.kill_perhaps_ended();
            disk.mount();
            cut_starts.set(cut_starts.get() + 1);
        }
        is_begun = true;
        let server = Server::start_with(&disk.data(), &SEGMENT);
        // Without power there is no process; here it may live on for a while, and must not acknowledge anything.
        let goes_on = Duration::from_millis([0, 0, 50, 300][rng.usize(..4)]);
        let (disk, failed) = (disk.clone(), failed.clone());
        let addr = server.addr();
        let end = move || {
            disk.cut();
            thread::sleep(goes_on);
            failed.set(failed.get() + u32::from(server.kill_perhaps_ended()));
            disk.mount();
        };
        Life { addr, end: Box::new(end) }
    });
    let (cut_starts, failed) = (cut_starts.get(), failed.get());
    println!(
        "{cuts} cuts, {cut_starts} more at a start; {failed} times the broker saw it and ended"
    );
}

/// A file system in a file.
struct Disk {
    directory: DataDir,
    mount_point: PathBuf,
}

impl Disk {
    fn new() -> Self {
        let directory = DataDir::new();
        let mount_point = directory.path().join("mounted");
        let disk = Self { directory, mount_point };
        std::fs::create_dir(&disk.mount_point).unwrap();
        run("truncate", &["-s", IMAGE_BYTES, disk.image().to_str().unwrap()]);
        run("mkfs.ext4", &["-q", "-F", disk.image().to_str().unwrap()]);
        disk.mount();
        disk
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// The directory of the broker.
    fn data(&self) -> PathBuf {
        self.mount_point.join("data")
    }

    fn mount(&self) {
        self.unmount();
        run("mount", &["-o", "loop", path(&self.image()), path(&self.mount_point)]);
    }

    /// From here on nothing reaches the file.
    fn cut(&self) {
        run("python3", &["-c", SHUT_DOWN, path(&self.mount_point)]);
    }

    /// Nothing if it is not mounted. The kernel may still be closing files of a process that has ended.
    fn unmount(&self) {
        let deadline = Instant::now() + PATIENCE;
        let is_mounted = || {
            let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
            mounts.lines().any(|line| line.split(' ').nth(1) == Some(path(&self.mount_point)))
        };
        while is_mounted() && Instant::now() < deadline {
            let _ = Command::new("umount").arg(&self.mount_point).output();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}
