//! What the rules have denied, in the log: a line each, as many as fit into a second. Floor 4, owned by [`Router`].
//!
//! # Limits
//!
//! At most [`LINES_MAX`] lines a second of the whole broker. The first line of a later second says how many were left out. The
//! counters in `$SYS/broker/access/denied/` have all of them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::ids::ClientId;
use crate::session::Denial;
use crate::session::authentication::UserName;

/// Lines a second.
const LINES_MAX: u32 = 20;

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Denials {
    second: Mutex<Option<Second>>,
}

/// The present second, from its first line on.
#[derive(Debug)]
struct Second {
    began_at: Instant,
    lines: u32,
    left_out: u64,
}

impl Denials {
    /// Logs `denial` if there is room. Nothing that came from a client goes into the log as it is.
    pub(super) fn report(&self, client: &ClientId, user: Option<&UserName>, denial: &Denial) {
        let Some(left_out) = self.admit(Instant::now()) else { return };
        if left_out > 0 {
            warn!(left_out, "denials were left out of the log");
        }
        let Denial { action, topic, rule } = denial;
        let user = user.map(tracing::field::display);
        warn!(%client, user, topic = %topic.escape_debug(), rule = %rule.escape_debug(), "denied: {action}");
    }

    /// Whether there is room for a line; if so, how many had none since the last one.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *second {
            Some(present) if now < present.began_at + Duration::from_secs(1) => {
                if present.lines == LINES_MAX {
                    present.left_out += 1;
                    return None;
                }
                present.lines += 1;
                Some(0)
            }
            over => {
                let left_out = over.as_ref().map_or(0, |past| past.left_out);
                *over = Some(Second { began_at: now, lines: 1, left_out: 0 });
                Some(left_out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_has_so_many_lines_and_the_next_one_says_how_many_were_left_out() {
        let (denials, start) = (Denials::default(), Instant::now());
        let admitted = |ms| denials.admit(start + Duration::from_millis(ms));
        assert_eq!((0..1000).filter(|ms| admitted(*ms).is_some()).count(), LINES_MAX as usize);
        assert_eq!(admitted(1000), Some(1000 - u64::from(LINES_MAX)));
        assert_eq!(admitted(1001), Some(0));
        assert_eq!(admitted(5000), Some(0));
    }
}
