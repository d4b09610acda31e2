//! A timer of microsecond resolution for the event loop: the timeout of `epoll` counts
//! milliseconds. Named here only: `rustix` for `timerfd`, which fires within a few microseconds of
//! its deadline.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Fires once after it was set. Needs no reading: each expiry is a new edge.
#[derive(Debug)]
pub(crate) struct Timer {
    fd: OwnedFd,
}

impl Timer {
    /// A timer that reports as `token`.
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Self { fd })
    }

    /// Fires in `after_ns` nanoseconds, once; what was set before is forgotten.
    pub(crate) fn set(&self, after_ns: u64) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would switch the timer off.
        let after_ns = after_ns.max(1) as i64;
        let after =
            Timespec { tv_sec: after_ns / 1_000_000_000, tv_nsec: after_ns % 1_000_000_000 };
        let setting = Itimerspec { it_interval: zero, it_value: after };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &setting)?;
        Ok(())
    }
}
