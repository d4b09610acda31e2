//! A bounded number of things at once, and a bounded number of others that wait for it. Floor 3, called by
//! `auth::gatekeeper` and `auth::call_out`.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the module comment.
#[derive(Debug)]
pub(super) struct Slots {
    running: Arc<Semaphore>,
    /// One permit for each that runs or waits.
    present: Arc<Semaphore>,
}

/// The right to go on, for as long as it lives.
#[derive(Debug)]
pub(super) struct Slot {
    _running: OwnedSemaphorePermit,
    _present: OwnedSemaphorePermit,
}

/// All may run, and as many wait as may.
#[derive(Clone, Copy, Debug)]
pub(super) struct Full;

impl Slots {
    pub(super) fn new(running_max: usize, waiting_max: usize) -> Self {
        let present = (running_max + waiting_max).min(Semaphore::MAX_PERMITS);
        Self {
            running: Arc::new(Semaphore::new(running_max)),
            present: Arc::new(Semaphore::new(present)),
        }
    }

    /// Waits for its turn, first come, first served. Whoever is dropped waits no longer.
    pub(super) async fn take(&self) -> Result<Slot, Full> {
        let present = self.present.clone().try_acquire_owned().map_err(|_| Full)?;
        let running = self.running.clone().acquire_owned().await.map_err(|_| Full)?;
        Ok(Slot { _running: running, _present: present })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_run_so_many_wait_and_the_next_is_refused() {
        let slots = Slots::new(1, 1);
        let first = slots.take().await.unwrap();
        let mut second = Box::pin(slots.take());
        let waits = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(second.as_mut().poll(cx).is_pending())
        })
        .await;
        assert!(waits);
        assert!(slots.take().await.is_err());
        drop(first);
        let _second = second.await.unwrap();
        let third = Box::pin(slots.take());
        drop(third);
        let waiting = Box::pin(slots.take());
        drop(waiting);
    }
}
