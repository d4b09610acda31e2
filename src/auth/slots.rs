//! A bounded number of things at once, and a bounded number of others that wait for it. Floor 3, called by
//! `auth::verifier` and `auth::call_out`.
//!
//! One address gets a quarter of the room, so that whoever asks as fast as he can does not keep all others out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::failures::network;

/// See the module comment.
#[derive(Debug)]
pub(super) struct Slots {
    running: Arc<Semaphore>,
    /// One permit for each that runs or waits.
    present: Arc<Semaphore>,
    /// How many of those may be of one address.
    share: usize,
    by_address: Arc<ByAddress>,
}

/// Who is there, where that is known.
#[derive(Debug, Default)]
struct ByAddress(Mutex<HashMap<IpAddr, usize>>);

/// The right to go on, for as long as it lives.
#[derive(Debug)]
pub(super) struct Slot {
    _running: OwnedSemaphorePermit,
    _place: Place,
}

/// The right to wait for that.
#[derive(Debug)]
struct Place {
    _present: OwnedSemaphorePermit,
    of: Option<(IpAddr, Arc<ByAddress>)>,
}

/// All may run, and as many wait as may, of this address or at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Full;

impl Slots {
    pub(super) fn new(running_max: usize, waiting_max: usize) -> Self {
        let present = (running_max + waiting_max).min(Semaphore::MAX_PERMITS);
        Self {
            running: Arc::new(Semaphore::new(running_max)),
            present: Arc::new(Semaphore::new(present)),
            share: present.div_ceil(4),
            by_address: Arc::default(),
        }
    }

    /// Waits for its turn, first come, first served. Whoever is dropped waits no longer. `None` is a client without
    /// an address, on this machine.
    pub(super) async fn take(&self, address: Option<IpAddr>) -> Result<Slot, Full> {
        let place = self.enter(address)?;
        let running = self.running.clone().acquire_owned().await.map_err(|_| Full)?;
        Ok(Slot { _running: running, _place: place })
    }

    fn enter(&self, address: Option<IpAddr>) -> Result<Place, Full> {
        let present = self.present.clone().try_acquire_owned().map_err(|_| Full)?;
        let Some(address) = address.map(network) else {
            return Ok(Place { _present: present, of: None });
        };
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_insert(0);
        if *count >= self.share {
            return Err(Full);
        }
        *count += 1;
        Ok(Place { _present: present, of: Some((address, self.by_address.clone())) })
    }
}

impl ByAddress {
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((address, by_address)) = &self.of else { return };
        let mut by_address = by_address.lock();
        if let Some(count) = by_address.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_run_so_many_wait_and_the_next_is_refused() {
        let slots = Slots::new(1, 1);
        let first = slots.take(None).await.unwrap();
        let mut second = Box::pin(slots.take(None));
        let waits = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(second.as_mut().poll(cx).is_pending())
        })
        .await;
        assert!(waits);
        assert!(slots.take(None).await.is_err());
        drop(first);
        let _second = second.await.unwrap();
        let third = Box::pin(slots.take(None));
        drop(third);
        let waiting = Box::pin(slots.take(None));
        drop(waiting);
    }

    #[tokio::test]
    async fn address_that_asks_as_fast_as_it_can_leaves_room_for_others() {
        let slots = Slots::new(8, 0);
        let [one, same, other] =
            ["2001:db8::1", "2001:db8::2", "192.0.2.1"].map(|text| text.parse().ok());
        let first = slots.take(one).await.unwrap();
        let _second = slots.take(same).await.unwrap();
        assert!(slots.take(one).await.is_err());
        let _other = slots.take(other).await.unwrap();
        drop(first);
        let _third = slots.take(one).await.unwrap();
        assert!(slots.take(same).await.is_err());
    }
}
