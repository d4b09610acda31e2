//! Where and how a result came about: machine, version, arguments, time. Linux: reads `/proc`.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What another run needs to be the same.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Environment {
    /// Name of the generator's machine.
    pub(crate) host: Option<String>,
    /// Cores that the generator may use.
    pub(crate) cores: usize,
    /// Model of the processor.
    pub(crate) cpu: Option<String>,
    /// Memory of the machine.
    pub(crate) memory_kib: Option<u64>,
    /// Name and release of the kernel.
    pub(crate) kernel: Option<String>,
    /// Version of the generator.
    pub(crate) loadgen: String,
    /// The command line without the program; what is secret in it is replaced by stars.
    pub(crate) arguments: Vec<String>,
}

/// Arguments that are followed by a secret.
const SECRET: &str = "--password";

impl Environment {
    /// Of this process.
    pub(crate) fn here() -> Self {
        let line = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let cpuinfo = line("/proc/cpuinfo").unwrap_or_default();
        let meminfo = line("/proc/meminfo").unwrap_or_default();
        Self {
            host: line("/proc/sys/kernel/hostname"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: field(&cpuinfo, "model name").map(str::to_owned),
            memory_kib: field(&meminfo, "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse().ok()),
            kernel: line("/proc/sys/kernel/osrelease").map(|release| format!("Linux {release}")),
            loadgen: env!("CARGO_PKG_VERSION").to_owned(),
            arguments: without_secrets(
                std::env::args_os().skip(1).map(|text| text.to_string_lossy().into_owned()),
            ),
        }
    }
}

/// The value of the first line that begins with a name.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let mut values = lines.filter(|(key, _)| key.trim() == name);
    values.next().map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
}

fn without_secrets(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut follows = false;
    let hide = |argument: String| {
        let hidden = std::mem::replace(&mut follows, argument == SECRET);
        match argument.split_once('=') {
            _ if hidden => "***".to_owned(),
            Some((SECRET, _)) => format!("{SECRET}=***"),
            _ => argument,
        }
    };
    arguments.map(hide).collect()
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A moment as `2026-11-22T21:04:05Z`.
pub(crate) fn utc(unix_ms: u64) -> String {
    let seconds = Duration::from_millis(unix_ms).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a number of days since 1970. Years are counted from March, so that the
/// day that leap years add is the last one; 400 of them have 146,097 days.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march_month = (5 * day + 2) / 153;
    let day = day - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_utc() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_583_020_799, "2020-02-29T23:59:59Z"),
            (1_609_459_199, "2020-12-31T23:59:59Z"),
            (1_795_380_245, "2026-11-22T20:44:05Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(unix_s * 1_000 + 999), text);
        }
    }

    #[test]
    fn a_password_is_not_in_the_arguments() {
        for arguments in [["--password", "secret", "--json"], ["--password=secret", "a=b", "c"]] {
            let shown = without_secrets(arguments.map(str::to_owned).into_iter());
            assert_eq!(shown.len(), 3);
            assert!(!shown.concat().contains("secret"), "{shown:?}");
            assert_eq!(shown[2], arguments[2]);
        }
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "processor\t: 0\nmodel\t\t: 3\nmodel name\t: Some CPU @ 2 GHz\nflags\t:\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(text, "model"), Some("3"));
        assert_eq!(field(text, "flags"), None);
    }

    #[test]
    fn this_machine_has_a_core() {
        assert!(Environment::here().cores > 0);
    }
}
