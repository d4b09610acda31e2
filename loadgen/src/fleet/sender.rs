//! Publishers that send a given number of messages as fast as a window allows.

use mailboxqtt::ids::Qos;

use super::Play;
use crate::client::{Client, Part, Publisher};
use crate::clock::Clock;
use crate::receive::{self, Broken};

/// See the module.
pub(crate) struct Sender {
    /// Of the process.
    pub(crate) clock: Clock,
    /// Of publishing.
    pub(crate) qos: Qos,
    /// Unacknowledged messages of one publisher.
    pub(crate) window: u64,
    /// By publisher: how many it is to send.
    pub(crate) limits: Vec<u64>,
    /// Messages that were handed to a socket.
    pub(crate) sent: u64,
    /// Messages that are over: acknowledged, or at QoS 0 handed to a socket.
    pub(crate) done: u64,
}

impl Sender {
    /// Whether all messages are over.
    pub(crate) fn is_done(&self) -> bool {
        self.done >= self.limits.iter().sum()
    }
}

impl Play for Sender {
    fn take(&mut self, _: usize, client: &mut Client, bytes: &[u8]) -> Result<usize, Broken> {
        let (used, acked) = receive::as_publisher(bytes, &mut client.control)?;
        if let Part::Publisher(publisher) = &mut client.part {
            publisher.acked += acked;
            self.done += acked;
        }
        Ok(used)
    }

    fn refill(&mut self, client: &mut Client) -> bool {
        let Part::Publisher(publisher) = &mut client.part else { return false };
        let Publisher { id, block, acked, receive_max, .. } = publisher;
        let limit = self.limits.get(*id as usize).copied().unwrap_or(0);
        let mut count = limit.saturating_sub(block.patched()).min(block.room());
        if self.qos != Qos::AtMostOnce {
            let unacknowledged = block.patched().saturating_sub(*acked);
            count = count.min(self.window.min(*receive_max).saturating_sub(unacknowledged));
        }
        if count == 0 {
            return false;
        }
        let now_ns = self.clock.now_ns();
        let count = block.patch(count, &mut client.control, |_| now_ns);
        self.sent += count;
        if self.qos == Qos::AtMostOnce {
            self.done += count;
        }
        true
    }
}
