//! CPU time and memory, of this process and of the broker. Linux: reads `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};

/// What a process has used up to now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// Memory that is resident.
    pub(crate) rss_bytes: u64,
}

/// Looks at another process. CPU time comes in ticks of the kernel, usually of 10 ms.
pub(crate) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("there is no process {pid} (--pid)"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("there is no process {pid} (--pid)"))?;
    let ticks = cpu_ticks(&stat).context("/proc/PID/stat has an unknown format")?;
    let ticks_per_s = rustix::param::clock_ticks_per_second().max(1);
    let rss_kib = rss_kib(&status).context("/proc/PID/status has no VmRSS")?;
    Ok(Usage {
        cpu: Duration::from_secs_f64(ticks as f64 / ticks_per_s as f64),
        rss_bytes: rss_kib * 1024,
    })
}

/// User and system time of this process, to the nanosecond.
pub(crate) fn own_cpu() -> Duration {
    since_zero(ClockId::ProcessCPUTime)
}

/// User and system time of this thread, to the nanosecond.
pub(crate) fn thread_cpu() -> Duration {
    since_zero(ClockId::ThreadCPUTime)
}

fn since_zero(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Fields 14 and 15; the name in field 2 may contain blanks and brackets, so count from its end.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn rss_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 41 1 0 0 20 0";
        assert_eq!(cpu_ticks(stat), Some(42));
    }

    #[test]
    fn resident_memory_is_read_from_status() {
        assert_eq!(rss_kib("Name:\tx\nVmRSS:\t    1234 kB\n"), Some(1_234));
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        let error = usage(u32::MAX).unwrap_err();
        assert!(error.to_string().contains(&u32::MAX.to_string()));
    }

    #[test]
    fn this_process_has_used_something() {
        assert!(usage(std::process::id()).unwrap().rss_bytes > 0);
        assert!(own_cpu() > Duration::ZERO);
    }
}
