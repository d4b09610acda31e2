//! How long an address has to wait before it may try to log in again. Floor 3, kept by `auth::verifier`. Pure: time
//! comes in as `now`.
//!
//! An address may fail [`Patience::failures_free`] times. From then on each of its logins, good ones too, waits before it
//! is looked at: whoever guesses would not wait for the answer to a wrong guess. The wait doubles with each failure up to
//! [`Patience::delay_max`]; every [`FORGIVEN_EVERY`] without one takes a failure back. Logins that come while others of
//! the address wait are spread out behind them, and refused when that would take more than twice the wait.
//!
//! # Invariants
//!
//! - An address that does not fail costs no memory here and never waits.
//! - At most `addresses_max` addresses are remembered; those that failed least recently are forgotten first.
//! - IPv6 addresses count by /64, for that is what one machine has at least.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// After this long one failure is forgiven.
pub(super) const FORGIVEN_EVERY: Duration = Duration::from_secs(15);
/// The first wait.
const DELAY_MIN: Duration = Duration::from_millis(250);
/// Logins of one address that wait at once, about.
const WAITING: u32 = 8;

/// How much is borne.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Patience {
    /// Failures without a consequence.
    pub failures_free: u32,
    /// The longest wait, but for a queue of as long; zero switches all of it off.
    pub delay_max: Duration,
    /// Addresses that are remembered, about 64 bytes each.
    pub addresses_max: usize,
}

/// The address has too many logins that wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TooMany;

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Failures {
    by_address: HashMap<IpAddr, Record>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    failures: u32,
    /// When `failures` was right.
    at: Instant,
    /// No login that waits is looked at before this.
    next: Instant,
}

impl Failures {
    /// How long a login from `address` has to wait before it is looked at.
    pub(super) fn admit(
        &mut self,
        address: IpAddr,
        now: Instant,
        patience: &Patience,
    ) -> Result<Duration, TooMany> {
        let Some(record) = self.by_address.get_mut(&network(address)) else {
            return Ok(Duration::ZERO);
        };
        record.forgive(now);
        let delay = delay(record.failures, patience);
        if delay.is_zero() {
            return Ok(delay);
        }
        let begins = record.next.max(now + delay);
        if begins > now + delay * 2 {
            return Err(TooMany);
        }
        record.next = begins + delay / WAITING;
        Ok(begins - now)
    }

    /// A login from `address` has failed.
    pub(super) fn record(&mut self, address: IpAddr, now: Instant, patience: &Patience) {
        if patience.delay_max.is_zero() {
            return;
        }
        let network = network(address);
        if self.by_address.len() >= patience.addresses_max
            && !self.by_address.contains_key(&network)
        {
            self.make_room(now);
        }
        let record =
            self.by_address.entry(network).or_insert(Record { failures: 0, at: now, next: now });
        record.forgive(now);
        if record.failures == 0 {
            record.at = now;
        }
        // More than the longest wait needs would be remembered for too long.
        record.failures = (record.failures + 1).min(patience.failures_free + WAITS_COUNTED);
    }

    /// Forgets who is forgiven, and the half that failed least recently if that are few.
    fn make_room(&mut self, now: Instant) {
        let before = self.by_address.len();
        self.by_address.retain(|_, record| {
            record.forgive(now);
            record.failures > 0
        });
        if self.by_address.len() > before / 2 {
            let mut times: Vec<Instant> =
                self.by_address.values().map(|record| record.at).collect();
            let middle = times.len() / 2;
            let (_, middle, _) = times.select_nth_unstable(middle);
            let middle = *middle;
            self.by_address.retain(|_, record| record.at > middle);
        }
    }
}

impl Record {
    fn forgive(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs() / FORGIVEN_EVERY.as_secs();
        let forgiven = u32::try_from(passed).unwrap_or(u32::MAX);
        if forgiven > 0 {
            self.failures = self.failures.saturating_sub(forgiven);
            self.at += FORGIVEN_EVERY * forgiven;
        }
    }
}

/// Failures over the free ones that are counted: with the last the wait is over two minutes, if it may be.
const WAITS_COUNTED: u32 = 10;

fn delay(failures: u32, patience: &Patience) -> Duration {
    match failures.saturating_sub(patience.failures_free) {
        0 => Duration::ZERO,
        over => (DELAY_MIN * (1 << (over - 1).min(WAITS_COUNTED))).min(patience.delay_max),
    }
}

/// Who is one and the same as far as we can tell.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { failures_free: 3, delay_max: Duration::from_secs(4), addresses_max: 8 };
    const ONE: &str = "192.0.2.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn failed(times: u32, address: &str, now: Instant) -> Failures {
        let mut failures = Failures::default();
        (0..times).for_each(|_| failures.record(ip(address), now, &PATIENCE));
        failures
    }

    #[test]
    fn the_wait_doubles_from_the_first_failure_over_the_free_ones_up_to_the_most() {
        let now = Instant::now();
        for (times, millis) in [
            (0, 0),
            (1, 0),
            (3, 0),
            (4, 250),
            (5, 500),
            (6, 1000),
            (7, 2000),
            (8, 4000),
            (50, 4000),
        ] {
            let waits = failed(times, ONE, now).admit(ip(ONE), now, &PATIENCE);
            assert_eq!(waits, Ok(Duration::from_millis(millis)), "{times}");
        }
    }

    #[test]
    fn logins_that_wait_are_spread_out_and_the_rest_is_refused() {
        let now = Instant::now();
        let mut failures = failed(8, ONE, now);
        let waits: Vec<_> =
            (0..20).map_while(|_| failures.admit(ip(ONE), now, &PATIENCE).ok()).collect();
        let expected: Vec<_> = (8..=16).map(|half| Duration::from_millis(500) * half).collect();
        assert_eq!(waits, expected);
        assert_eq!(failures.admit(ip(ONE), now, &PATIENCE), Err(TooMany));
        assert!(failures.admit(ip(ONE), now + Duration::from_secs(1), &PATIENCE).is_ok());
        assert_eq!(failures.admit(ip("192.0.2.2"), now, &PATIENCE), Ok(Duration::ZERO));
    }

    #[test]
    fn time_forgives_one_failure_after_the_other() {
        let now = Instant::now();
        let mut failures = failed(5, ONE, now);
        let mut after = |times| {
            failures.admit(ip(ONE), now + FORGIVEN_EVERY * times, &PATIENCE).unwrap().as_millis()
        };
        assert_eq!([after(1), after(2), after(5)], [250, 0, 0]);
        let mut failures = failed(1000, ONE, now);
        assert_eq!(
            failures.admit(ip(ONE), now + FORGIVEN_EVERY * 13, &PATIENCE),
            Ok(Duration::ZERO)
        );
        // A client that fails once in a while never waits.
        let mut failures = Failures::default();
        for times in 0..100 {
            let now = now + FORGIVEN_EVERY * times;
            failures.record(ip(ONE), now, &PATIENCE);
            assert_eq!(failures.admit(ip(ONE), now, &PATIENCE), Ok(Duration::ZERO));
        }
    }

    #[test]
    fn ipv6_counts_by_network_and_mapped_ipv4_as_ipv4() {
        let now = Instant::now();
        let mut failures = failed(8, "2001:db8:0:1::1", now);
        assert!(
            failures.admit(ip("2001:db8:0:1:ffff::2"), now, &PATIENCE).unwrap() > Duration::ZERO
        );
        assert_eq!(failures.admit(ip("2001:db8:0:2::1"), now, &PATIENCE), Ok(Duration::ZERO));
        let mut failures = failed(8, "::ffff:192.0.2.1", now);
        assert!(failures.admit(ip(ONE), now, &PATIENCE).unwrap() > Duration::ZERO);
    }

    #[test]
    fn memory_is_bounded_and_the_latest_failures_are_kept() {
        let now = Instant::now();
        let mut failures = Failures::default();
        for number in 0..1000_u32 {
            let address = IpAddr::from(number.to_be_bytes());
            for _ in 0..8 {
                failures.record(address, now + Duration::from_millis(number.into()), &PATIENCE);
            }
            assert!(failures.by_address.len() <= PATIENCE.addresses_max);
            let waits =
                failures.admit(address, now + Duration::from_millis(number.into()), &PATIENCE);
            assert_eq!(waits, Ok(Duration::from_secs(4)), "{number}");
        }
        // Within one instant, too.
        (0..1000_u32)
            .for_each(|number| failures.record(IpAddr::from(number.to_be_bytes()), now, &PATIENCE));
        assert!(failures.by_address.len() <= PATIENCE.addresses_max);
    }

    #[test]
    fn without_a_wait_nothing_is_remembered() {
        let now = Instant::now();
        let patience = Patience { delay_max: Duration::ZERO, ..PATIENCE };
        let mut failures = Failures::default();
        (0..50).for_each(|_| failures.record(ip(ONE), now, &patience));
        assert!(failures.by_address.is_empty());
        assert_eq!(failures.admit(ip(ONE), now, &patience), Ok(Duration::ZERO));
    }
}
