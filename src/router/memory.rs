//! Says when the memory of the process is short. Floor 4, part of [`Router`].
//!
//! Who asks for more then is refused by code: CONNECT and SUBSCRIBE where they are handled, messages by what a queue
//! may hold, see [`queues`](super::queues). What is there is served.

use std::time::Duration;

use tracing::{info, warn};

use crate::router::Router;

/// Time between two looks at most.
const INTERVAL_MAX: Duration = Duration::from_millis(100);
/// And at least: a look costs some 50 microseconds.
const INTERVAL_MIN: Duration = Duration::from_millis(5);
/// As fast as clients may fill memory, in bytes per second.
const FILLING_PER_S: u64 = 4_000_000_000;

impl Router {
    /// So much is in use, in bytes, as far as anybody knows. Returns when to look again.
    pub fn see_memory(&self, in_use: Option<u64>) -> Duration {
        let Some(bytes) = in_use else { return INTERVAL_MAX };
        self.metrics.memory_bytes.set(bytes);
        self.judge_memory(bytes);
        next_look(bytes, self.queues.memory_bytes_max())
    }

    /// Short from the limit on, and until an eighth of it is free again.
    fn judge_memory(&self, bytes: u64) {
        let max = self.queues.memory_bytes_max();
        let was_short = self.queues.is_memory_short();
        let is_short = if was_short { bytes > max - max / 8 } else { bytes > max };
        if is_short == was_short {
            return;
        }
        self.queues.set_memory_short(is_short);
        self.metrics.memory_short.add(u64::from(is_short));
        match is_short {
            true => warn!(
                bytes,
                max,
                "memory is short: new clients, subscriptions and messages that would wait are refused; see \
                 memory_bytes_max"
            ),
            false => info!(bytes, max, "there is enough memory again"),
        }
    }
}

/// When to look again: before what is left can be filled.
fn next_look(bytes: u64, max: u64) -> Duration {
    match max.checked_sub(bytes) {
        // Nothing worse comes.
        None => INTERVAL_MAX,
        Some(left) => Duration::from_micros(left / (FILLING_PER_S / 1_000_000))
            .clamp(INTERVAL_MIN, INTERVAL_MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::message::TopicHasher;
    use crate::router::Limits;
    use crate::router::keeper::RetainedLimits;
    use crate::router::queues::QueueLimits;
    use crate::router::sharing::Strategy;

    #[test]
    fn looks_come_faster_while_there_is_less_to_fill_between_them() {
        let millis = |bytes, max| next_look(bytes, max).as_millis();
        assert_eq!(millis(0, u64::MAX), 100);
        assert_eq!(millis(0, 400_000_000), 100);
        assert_eq!(millis(200_000_000, 400_000_000), 50);
        assert_eq!(millis(399_000_000, 400_000_000), 5);
        assert_eq!(millis(401_000_000, 400_000_000), 100);
    }

    #[tokio::test]
    async fn memory_is_short_from_the_limit_on_until_an_eighth_is_free() {
        let limits = Limits {
            queue: QueueLimits { messages_max: 1, bytes_max: 1 },
            retained: RetainedLimits { messages_max: 0, bytes_max: 0 },
            sharing: Strategy::RoundRobin,
        };
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let router = Router::spawn(1, limits, hasher, Arc::default(), None);
        router.judge_memory(u64::MAX - 1);
        assert!(!router.queues.is_memory_short(), "no limit is no limit");
        router.queues.set_memory_bytes_max(800);
        let mut seen = Vec::new();
        for bytes in [800, 801, 750, 701, 700, 750] {
            router.judge_memory(bytes);
            seen.push(router.queues.is_memory_short());
        }
        assert_eq!(seen, [false, true, true, true, false, false]);
        assert_eq!(router.metrics.memory_short.value(), 1);
    }
}
