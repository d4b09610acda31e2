//! Who may connect before a word was said: how many connections, and how fast one after the other, from one address and
//! in total. And who finds no room once it is known. Floor 5, asked by `net::listener`.
//!
//! # Limits
//!
//! An address is an IPv4 address, or the 64 bits of an IPv6 address that a provider gives to one customer. At most
//! `ADDRESSES_MAX` are remembered, some 100 bytes each; above that those are forgotten that have not come for a second,
//! and if all have, everybody counts towards the limit of all only.
//!
//! # Invariants
//!
//! - A connection costs the same whatever is remembered: all addresses are looked through when there are as many as may
//!   be, and once in a second. Those that are left then came since, or as many have to come before the next look.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use tracing::warn;

use crate::metrics::RefuseReason;
use crate::router::Router;
use crate::router::log_room::LogRoom;
use crate::session::{Expiry, Opening};

/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 100_000;
/// What an address has left of its rate is all of it by then.
const FORGET_AFTER: Duration = Duration::from_secs(1);
/// The largest CONNECT while memory is short: enough for long names and passwords, and no large will.
const SHORT_CONNECT_BYTES_MAX: u32 = 4096;

/// How many connections there may be, and how fast they may come; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AdmissionLimits {
    /// At the same time from one address.
    pub connections_per_address_max: u32,
    /// Per second from one address; as many may come at once.
    pub accept_rate_per_address_max: u32,
    /// Per second from all; as many may come at once.
    pub accept_rate_max: u32,
}

/// Why a connection is closed as soon as it is accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// This address has as many as it may.
    #[error("too many connections from this address (connections_per_address_max)")]
    TooMany,
    /// This address comes too fast.
    #[error("connections come too fast from this address (accept_rate_per_address_max)")]
    TooFast,
    /// All together come too fast.
    #[error("connections come too fast (accept_rate_max)")]
    AllTooFast,
    /// They come too fast to one listener.
    #[error("connections come too fast to this listener (its accept_rate_max)")]
    ListenerTooFast,
}

impl Refused {
    /// How it is counted.
    pub(super) fn reason(self) -> RefuseReason {
        match self {
            Self::TooMany => RefuseReason::TooManyOfAddress,
            Self::TooFast => RefuseReason::TooFastOfAddress,
            Self::AllTooFast | Self::ListenerTooFast => RefuseReason::TooFast,
        }
    }
}

/// See the module comment. One for all listeners.
#[derive(Debug, Default)]
pub struct Gatekeeper {
    rules: ArcSwap<Rules>,
    connections: Arc<Connections>,
    log_room: LogRoom,
}

/// By address, where that is limited.
#[derive(Debug, Default)]
struct Connections(Mutex<HashMap<IpAddr, u32>>);

#[derive(Debug, Default)]
struct Rules {
    limits: AdmissionLimits,
    all: Option<DefaultDirectRateLimiter>,
    each: Option<Each>,
}

/// How fast each address comes.
#[derive(Debug)]
struct Each {
    limiter: DefaultKeyedRateLimiter<IpAddr>,
    addresses_max: usize,
    /// When those that had not come for a while were forgotten.
    forgot_at: Mutex<Option<Instant>>,
}

/// How fast connections may come to one listener, from all addresses together.
#[derive(Debug)]
pub struct AcceptRate(DefaultDirectRateLimiter);

impl AcceptRate {
    /// So many per second, and as many at once; 0 is no limit.
    pub fn new(per_s: u32) -> Option<Self> {
        NonZeroU32::new(per_s).map(|per_s| Self(RateLimiter::direct(Quota::per_second(per_s))))
    }
}

/// A connection that was admitted; dropping it makes room for another one.
#[derive(Debug)]
pub struct Admitted {
    /// Boxed, because nearly always there is none and every connection has one.
    counted: Option<Box<(IpAddr, Arc<Connections>)>>,
}

impl Gatekeeper {
    /// With these limits.
    pub fn new(limits: AdmissionLimits) -> Self {
        let gatekeeper = Self::default();
        gatekeeper.replace(limits);
        gatekeeper
    }

    /// Other limits from now on. Connections stay; rates begin anew.
    pub fn replace(&self, limits: AdmissionLimits) {
        let quota = |per_s| NonZeroU32::new(per_s).map(Quota::per_second);
        let all = quota(limits.accept_rate_max).map(RateLimiter::direct);
        let each =
            quota(limits.accept_rate_per_address_max).map(|quota| Each::new(quota, ADDRESSES_MAX));
        self.rules.store(Arc::new(Rules { limits, all, each }));
    }

    /// Whether a line about a connection that ends badly may go into the log: whoever makes many must not fill the disk
    /// with them. The counters have all.
    pub(super) fn may_log(&self) -> bool {
        let left_out = self.log_room.admit(Instant::now());
        if let Some(left_out @ 1..) = left_out {
            warn!(left_out, "connections that ended were left out of the log");
        }
        left_out.is_some()
    }

    /// Whether a connection from `address` may go on; `None` is one without, of a Unix socket. Call it before anything
    /// is read, TLS included, and keep what it returns for as long as the connection lasts.
    pub fn admit(&self, address: Option<IpAddr>) -> Result<Admitted, Refused> {
        self.admit_within(address, || Ok(()))
    }

    /// [`Gatekeeper::admit`] at a listener with a rate of its own, which a Unix socket may have, too.
    pub fn admit_at(
        &self,
        listener: &AcceptRate,
        address: Option<IpAddr>,
    ) -> Result<Admitted, Refused> {
        let check = || listener.0.check().map_err(|_| Refused::ListenerTooFast);
        self.admit_within(address, check)
    }

    fn admit_within(
        &self,
        address: Option<IpAddr>,
        check_listener: impl FnOnce() -> Result<(), Refused>,
    ) -> Result<Admitted, Refused> {
        let Some(address) = address.map(network_of) else {
            check_listener()?;
            return Ok(Admitted { counted: None });
        };
        let rules = self.rules.load();
        let max = rules.limits.connections_per_address_max;
        if max > 0 && self.connections.lock().get(&address).is_some_and(|count| *count >= max) {
            return Err(Refused::TooMany);
        }
        // The address first, and then the listener: who comes too fast alone must not use up what is for all there, nor
        // those who come too fast there what is for all.
        if rules.each.as_ref().is_some_and(|each| !each.admits(address, Instant::now())) {
            return Err(Refused::TooFast);
        }
        check_listener()?;
        if rules.all.as_ref().is_some_and(|all| all.check().is_err()) {
            return Err(Refused::AllTooFast);
        }
        if max == 0 {
            return Ok(Admitted { counted: None });
        }
        *self.connections.lock().entry(address).or_insert(0) += 1;
        Ok(Admitted { counted: Some(Box::new((address, self.connections.clone()))) })
    }
}

impl Each {
    fn new(quota: Quota, addresses_max: usize) -> Self {
        let limiter = RateLimiter::keyed(quota);
        Self { limiter, addresses_max, forgot_at: Mutex::default() }
    }

    fn admits(&self, address: IpAddr, now: Instant) -> bool {
        self.forget(now);
        self.is_full() || self.limiter.check_key(&address).is_ok()
    }

    /// Makes room where that is needed. Returns how many addresses were looked at.
    fn forget(&self, now: Instant) -> usize {
        if !self.is_full() {
            return 0;
        }
        let mut forgot_at = self.forgot_at.lock().unwrap_or_else(PoisonError::into_inner);
        if forgot_at.is_some_and(|at| now.saturating_duration_since(at) < FORGET_AFTER) {
            return 0;
        }
        *forgot_at = Some(now);
        let looked_at = self.limiter.len();
        self.limiter.retain_recent();
        looked_at
    }

    fn is_full(&self) -> bool {
        self.limiter.len() >= self.addresses_max
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some((address, connections)) = self.counted.as_deref() else { return };
        let mut connections = connections.lock();
        if let Some(count) = connections.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                connections.remove(address);
            }
        }
    }
}

/// Why a client without a session cannot have one now. Who has one may come: it takes what waits, and that makes room.
pub(super) fn lacks_room(router: &Router, opening: &Opening) -> Option<&'static str> {
    if router.queues().is_memory_short() {
        return Some("the broker is short of memory: try again later");
    }
    let is_kept = opening.expiry != Expiry::WithConnection;
    (is_kept && router.is_disk_short())
        .then_some("the disk of the broker is full: try again later, or with a session that ends with the connection")
}

/// How large a CONNECT may be at this moment. Those that have begun are held to it, too, when more of them comes; others
/// hold what has come of them until they are too slow.
pub(super) fn connect_bytes_max(router: &Router, bytes_max: u32) -> u32 {
    match router.queues().is_memory_short() {
        true => bytes_max.min(SHORT_CONNECT_BYTES_MAX),
        false => bytes_max,
    }
}

/// Whose the address is.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn addresses_of_one_customer_share_their_connections_and_get_them_back() {
        let limits =
            AdmissionLimits { connections_per_address_max: 2, ..AdmissionLimits::default() };
        let gatekeeper = Gatekeeper::new(limits);
        let first = gatekeeper.admit(address("2001:db8:0:1::1")).unwrap();
        let _second = gatekeeper.admit(address("2001:db8:0:1:ffff::2")).unwrap();
        assert_eq!(gatekeeper.admit(address("2001:db8:0:1::3")).unwrap_err(), Refused::TooMany);
        let _other = gatekeeper.admit(address("2001:db8:0:2::1")).unwrap();
        let _mapped = gatekeeper.admit(address("::ffff:192.0.2.1")).unwrap();
        let _plain = gatekeeper.admit(address("192.0.2.1")).unwrap();
        assert_eq!(gatekeeper.admit(address("192.0.2.1")).unwrap_err(), Refused::TooMany);
        drop(first);
        assert!(gatekeeper.admit(address("2001:db8:0:1::3")).is_ok());
        assert!(gatekeeper.admit(None).is_ok());
    }

    /// Counts work, not time: whoever has very many addresses must not make every connection look through all of them.
    #[test]
    fn connection_costs_the_same_when_as_many_addresses_are_known_as_may_be() {
        let each = Each::new(Quota::per_second(NonZeroU32::MIN), 100);
        let (now, mut looked_at) = (Instant::now(), 0);
        for number in 0..10_000_u32 {
            let address = IpAddr::from(std::net::Ipv4Addr::from_bits(number));
            looked_at += each.forget(now);
            assert!(each.admits(address, now), "none of them comes twice");
        }
        assert_eq!(looked_at, 100, "all of them once");
        assert_eq!(each.forget(now + FORGET_AFTER), 100);
        assert!(each.limiter.len() <= 100);
    }

    #[test]
    fn who_comes_too_fast_to_one_listener_takes_nothing_from_others() {
        let limits = AdmissionLimits {
            connections_per_address_max: 0,
            accept_rate_per_address_max: 1,
            accept_rate_max: 3,
        };
        let gatekeeper = Gatekeeper::new(limits);
        let listener = AcceptRate::new(2).unwrap();
        let come = |text| gatekeeper.admit_at(&listener, address(text)).map(drop);
        assert_eq!(come("192.0.2.1"), Ok(()));
        assert_eq!(come("192.0.2.1"), Err(Refused::TooFast), "and the listener has one left");
        assert_eq!(come("192.0.2.2"), Ok(()));
        assert_eq!(come("192.0.2.3"), Err(Refused::ListenerTooFast));
        assert_eq!(gatekeeper.admit_at(&listener, None).map(drop), Err(Refused::ListenerTooFast));
        assert_eq!(gatekeeper.admit(address("192.0.2.4")).map(drop), Ok(()));
        assert_eq!(gatekeeper.admit(address("192.0.2.5")).unwrap_err(), Refused::AllTooFast);
        assert!(AcceptRate::new(0).is_none());
    }

    #[test]
    fn who_comes_too_fast_is_refused_and_others_are_not() {
        let limits = AdmissionLimits {
            accept_rate_per_address_max: 3,
            accept_rate_max: 5,
            ..AdmissionLimits::default()
        };
        let gatekeeper = Gatekeeper::new(limits);
        let come = |text| gatekeeper.admit(address(text)).map(drop);
        assert_eq!(come("192.0.2.1"), Ok(()));
        assert_eq!((come("192.0.2.1"), come("192.0.2.1")), (Ok(()), Ok(())));
        for _ in 0..10 {
            assert_eq!(come("192.0.2.1"), Err(Refused::TooFast));
        }
        assert_eq!((come("192.0.2.2"), come("192.0.2.3")), (Ok(()), Ok(())));
        assert_eq!(come("192.0.2.4"), Err(Refused::AllTooFast));
        gatekeeper.replace(AdmissionLimits::default());
        assert_eq!(come("192.0.2.4"), Ok(()));
    }
}
