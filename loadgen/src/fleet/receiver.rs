//! Subscribers that receive everything, account for it, and note when the last message came.

use mailboxqtt::ids::ProtocolVersion;

use super::Play;
use crate::client::{Client, Part};
use crate::clock::Clock;
use crate::payload::Source;
use crate::receive::{self, Broken, Expected, Run};
use crate::sequence::{Account, Tracking};
use crate::settings::Settings;

/// See the module.
pub(crate) struct Receiver<'a, T> {
    /// Of the run.
    pub(crate) settings: &'a Settings,
    /// Of the process.
    pub(crate) clock: Clock,
    /// As the subscribers name them.
    pub(crate) trackers: Vec<T>,
    /// Messages that have arrived, duplicates included.
    pub(crate) received: u64,
    /// When the last of them came.
    pub(crate) last_ns: u64,
}

impl<T: Tracking> Receiver<'_, T> {
    /// The sums over all trackers.
    pub(crate) fn account(&self) -> Account {
        let mut sum = Account::default();
        for tracker in &self.trackers {
            let account = tracker.account();
            sum.unique += account.unique;
            sum.duplicated += account.duplicated;
            sum.reordered += account.reordered;
        }
        sum
    }

    /// Whether so many different messages have arrived.
    pub(crate) fn has(&self, expected: u64) -> bool {
        self.received >= expected && self.account().unique >= expected
    }
}

impl<T: Tracking> Play for Receiver<'_, T> {
    fn take(&mut self, _: usize, client: &mut Client, bytes: &[u8]) -> Result<usize, Broken> {
        let Client { part, control, .. } = client;
        let Part::Subscriber(subscriber) = part else {
            return Ok(receive::as_publisher(bytes, control)?.0);
        };
        let expected = Expected {
            first: Source::new(self.settings.run, subscriber.publisher_first),
            publisher_first: subscriber.publisher_first,
            trackers_at: subscriber.trackers_at,
            publishers: subscriber.publishers,
            // Runs are only counted here.
            stride: 1,
        };
        let (mut count, mut foreign) = (0, 0);
        let on_run = |_: &mut [T], run: Run| count += run.count;
        let trackers = &mut self.trackers;
        let used = match self.settings.wire.version {
            ProtocolVersion::V5 => receive::as_subscriber::<true, T>(
                bytes,
                expected,
                trackers,
                control,
                &mut foreign,
                on_run,
            ),
            _ => receive::as_subscriber::<false, T>(
                bytes,
                expected,
                trackers,
                control,
                &mut foreign,
                on_run,
            ),
        }?;
        if count > 0 {
            self.received += count;
            self.last_ns = self.clock.now_ns();
        }
        Ok(used)
    }

    fn refill(&mut self, _client: &mut Client) -> bool {
        false
    }
}
