//! What all clients together may take of the machine: checked limits. Floor 6, called by `config::check`.

use crate::config::{File, InvalidValue, Limits};
use crate::net::admission::AdmissionLimits;
use crate::router::queues::{QueueLimits, QueuesLimits};

/// A smaller data directory has no room for the log to be given back in time.
const DISK_BYTES_MIN: u64 = 32 << 20;
/// In files of the log.
const DISK_SEGMENTS_MIN: u64 = 16;
/// A smaller process has no room for a flood that comes between two looks at it.
const MEMORY_BYTES_MIN: u64 = 32 << 20;

impl File {
    /// Checks the values and puts those together that may change while the broker runs.
    pub(super) fn limits(&self) -> Result<Limits, InvalidValue> {
        let invalid = |key, rule| Err(InvalidValue { key, rule });
        if self.queue_messages_max == 0 {
            return invalid("queue_messages_max", "must be at least 1");
        }
        if self.queue_bytes_max == 0 {
            return invalid("queue_bytes_max", "must be at least 1");
        }
        if self.queues_messages_max == 0 {
            return invalid("queues_messages_max", "must be at least 1");
        }
        if self.queues_bytes_max == 0 {
            return invalid("queues_bytes_max", "must be at least 1");
        }
        let disk_bytes_min = DISK_BYTES_MIN.max(DISK_SEGMENTS_MIN * self.log_segment_bytes);
        if (1..disk_bytes_min).contains(&self.disk_bytes_max) {
            let rule = "must be 0, or at least 33554432 and 16 times `log_segment_bytes`";
            return invalid("disk_bytes_max", rule);
        }
        if (1..MEMORY_BYTES_MIN).contains(&self.memory_bytes_max) {
            return invalid("memory_bytes_max", "must be 0 or at least 33554432");
        }
        let each =
            QueueLimits { messages_max: self.queue_messages_max, bytes_max: self.queue_bytes_max };
        Ok(Limits {
            queues: QueuesLimits {
                policy: self.queue_policy,
                each,
                messages_max: self.queues_messages_max,
                bytes_max: self.queues_bytes_max,
            },
            disk_bytes_max: self.disk_bytes_max,
            memory_bytes_max: self.memory_bytes_max,
            admission: AdmissionLimits {
                connections_per_address_max: self.connections_per_address_max,
                accept_rate_per_address_max: self.accept_rate_per_address_max,
                accept_rate_max: self.accept_rate_max,
            },
        })
    }
}
