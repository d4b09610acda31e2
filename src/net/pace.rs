//! When a connection is not read for a while: TCP pushes back on its client. Floor 5, owned by `net::connection`.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::metrics::Shortage;
use crate::session::CloseReason;

/// How long a client is not read whose message was refused without a word, before its connection is closed. It will come
/// back at once and send the same again, so this bounds how often.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// How long a large packet is not read while memory is short, before another look.
const SHORT_PAUSE: Duration = Duration::from_millis(200);
/// Looks after which its connection is closed: what has come of such packets may be what memory is short of.
const SHORT_LOOKS_MAX: u32 = 150;

/// How much one client may publish; 0 is as much as it likes.
#[derive(Clone, Copy, Debug, Default)]
pub struct PublishRates {
    /// Messages per second.
    pub messages_per_s: u32,
    /// Bytes of PUBLISH packets per second.
    pub bytes_per_s: u64,
}

/// Nothing is read before it is over.
pub(super) struct Pause {
    sleep: Pin<Box<Sleep>>,
    /// Then the connection ends.
    then: Option<CloseReason>,
    /// It is over as soon as memory is not short any more; the connection ends if so many looks later it still is.
    looks_left: Option<u32>,
}

impl Pause {
    /// Of `wait`.
    pub(super) fn of(wait: Duration) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(wait)), then: None, looks_left: None }
    }

    /// Until memory is not short any more.
    pub(super) fn for_memory() -> Self {
        Self { looks_left: Some(SHORT_LOOKS_MAX), ..Self::of(SHORT_PAUSE) }
    }

    /// The last one of a connection that will end for `reason`.
    pub(super) fn before_end(reason: CloseReason) -> Self {
        Self { then: Some(reason), ..Self::of(REFUSED_PAUSE) }
    }

    /// Whether the connection has to end at the end of it.
    pub(super) fn is_last(&self) -> bool {
        self.then.is_some()
    }

    /// Ready when it is over, with the reason to close.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        is_memory_short: bool,
    ) -> Poll<Option<CloseReason>> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            match &mut self.looks_left {
                Some(0) if is_memory_short => {
                    self.then = Some(CloseReason::NoRoom(Shortage::Memory))
                }
                Some(left) if is_memory_short => {
                    *left -= 1;
                    self.sleep.as_mut().reset(tokio::time::Instant::now() + SHORT_PAUSE);
                    continue;
                }
                _ => (),
            }
            return Poll::Ready(self.then.take());
        }
        Poll::Pending
    }
}

/// What one client has published of late. It may save up for one second, and go into debt by one read.
pub(super) struct Pace {
    rates: PublishRates,
    /// Seconds that it is ahead of its rates.
    debt_s: f64,
    counted_at: Instant,
}

impl Pace {
    /// `None` where there is no limit.
    pub(super) fn new(rates: PublishRates, now: Instant) -> Option<Box<Self>> {
        let is_limited = rates.messages_per_s > 0 || rates.bytes_per_s > 0;
        is_limited.then(|| Box::new(Self { rates, debt_s: 0.0, counted_at: now }))
    }

    /// So much came at `now`. Returns how long nothing more may be read.
    pub(super) fn spend(&mut self, messages: u64, bytes: u64, now: Instant) -> Option<Duration> {
        let passed_s = now.saturating_duration_since(self.counted_at).as_secs_f64();
        self.counted_at = now;
        let share = |amount: u64, per_s: f64| if per_s > 0.0 { amount as f64 / per_s } else { 0.0 };
        let cost_s = share(messages, self.rates.messages_per_s.into())
            .max(share(bytes, self.rates.bytes_per_s as f64));
        self.debt_s = (self.debt_s - passed_s).max(-1.0) + cost_s;
        (self.debt_s > 0.0).then(|| Duration::from_secs_f64(self.debt_s.min(3600.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_publishes_more_than_the_rate_is_not_read_until_it_is_kept() {
        let start = Instant::now();
        let rates = PublishRates { messages_per_s: 10, bytes_per_s: 1_000 };
        let mut pace = Pace::new(rates, start).unwrap();
        assert_eq!(pace.spend(5, 0, start), Some(Duration::from_millis(500)));
        let later = start + Duration::from_secs(10);
        assert_eq!(pace.spend(10, 100, later), None, "what one second allows is saved up");
        assert_eq!(pace.spend(0, 2_000, later), Some(Duration::from_secs(2)));
        assert_eq!(pace.spend(1, 0, later + Duration::from_secs(3)), None);
        assert!(Pace::new(PublishRates::default(), start).is_none());
    }

    /// What waits to be read to its end may be what memory is short of: it must not wait for ever.
    #[tokio::test(start_paused = true)]
    async fn pause_for_memory_ends_with_the_shortage_or_with_the_connection() {
        let mut pause = Pause::for_memory();
        let begun = tokio::time::Instant::now();
        let then = std::future::poll_fn(|cx| pause.poll(cx, begun.elapsed().as_secs() < 7)).await;
        assert_eq!((then, begun.elapsed().as_secs()), (None, 7));
        let mut pause = Pause::for_memory();
        let begun = tokio::time::Instant::now();
        let then = std::future::poll_fn(|cx| pause.poll(cx, true)).await;
        assert_eq!(then, Some(CloseReason::NoRoom(Shortage::Memory)));
        assert_eq!(begun.elapsed().as_secs(), 30);
    }
}
