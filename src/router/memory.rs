//! Looks at the memory of the process and says when it is short. Floor 4, part of [`Router`].
//!
//! Who asks for more then is refused by code: CONNECT and SUBSCRIBE where they are handled, messages by what a queue
//! may hold, see [`queues`](super::queues). What is there is served.

use std::time::Duration;

use tracing::{info, warn};

use crate::router::Router;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

impl Router {
    /// Looks at what is `in_use`, in bytes, for as long as it is polled. For one task.
    pub async fn watch_memory(&self, in_use: fn() -> Option<u64>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let Some(bytes) = in_use() else { continue };
            self.metrics.memory_bytes.set(bytes);
            self.judge_memory(bytes);
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::message::TopicHasher;
    use crate::router::Limits;
    use crate::router::keeper::RetainedLimits;
    use crate::router::queues::QueueLimits;
    use crate::router::sharing::Strategy;

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
