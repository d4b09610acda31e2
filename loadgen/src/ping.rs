//! PINGREQ of many clients, evenly spread over the time that they have. Called by `worker` and `fleet`
//! once per turn; knows no socket and no clock.

/// PINGREQ on the wire.
pub(crate) const PINGREQ: [u8; 2] = [0xc0, 0];

/// Says whose turn it is. Each client has its turn once in half of the keep-alive, whether or not it
/// has sent anything else.
#[derive(Debug)]
pub(crate) struct Pinger {
    keep_alive_s: u16,
    /// Turns up to now; turn `n` is that of client `n % clients`.
    turns: u64,
    since_ns: u64,
}

impl Pinger {
    /// 0 seconds for no pings.
    pub(crate) fn new(keep_alive_s: u16) -> Self {
        Self { keep_alive_s, turns: 0, since_ns: 0 }
    }

    /// The broker wishes to hear from the clients after so many seconds at the latest; 0 for no wish.
    pub(crate) fn hurry(&mut self, keep_alive_s: u16) {
        if keep_alive_s > 0 && (self.keep_alive_s == 0 || keep_alive_s < self.keep_alive_s) {
            self.keep_alive_s = keep_alive_s;
        }
    }

    /// Whether there is anything to do at all.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.keep_alive_s > 0
    }

    /// A client whose turn has come; call it until there is none.
    pub(crate) fn next(&mut self, clients: usize, now_ns: u64) -> Option<usize> {
        if self.since_ns == 0 {
            self.since_ns = now_ns;
        }
        let period_ns = u64::from(self.keep_alive_s) * 500_000_000;
        let elapsed_ns = now_ns.saturating_sub(self.since_ns);
        let due = u128::from(elapsed_ns) * clients as u128 / u128::from(period_ns.max(1));
        if u128::from(self.turns) >= due {
            return None;
        }
        // Who has missed several turns needs only one.
        self.turns = self.turns.max(due.saturating_sub(clients as u128) as u64);
        let client = self.turns % clients as u64;
        self.turns += 1;
        Some(client as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn every_client_has_its_turn_in_half_of_the_keep_alive() {
        let mut pinger = Pinger::new(10);
        assert_eq!(turns(&mut pinger, 1), [0; 0]);
        assert_eq!(turns(&mut pinger, 1 + S), [0; 0]);
        assert_eq!(turns(&mut pinger, 1 + 3 * S), [0]);
        assert_eq!(turns(&mut pinger, 1 + 5 * S), [1]);
        assert_eq!(turns(&mut pinger, 1 + 500 * S).len(), 2);
    }

    #[test]
    fn a_broker_that_is_in_a_hurry_is_obeyed() {
        let mut pinger = Pinger::new(0);
        assert!(!pinger.is_on());
        pinger.hurry(0);
        assert!(!pinger.is_on());
        pinger.hurry(4);
        pinger.hurry(60);
        assert_eq!(turns(&mut pinger, 1), [0; 0]);
        assert_eq!(turns(&mut pinger, 1 + 2 * S).len(), 2);
    }

    fn turns(pinger: &mut Pinger, now_ns: u64) -> Vec<usize> {
        std::iter::from_fn(|| pinger.next(2, now_ns)).collect()
    }
}
