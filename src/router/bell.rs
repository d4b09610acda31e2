//! Wakes the one reader of a flume channel. Floor 4, used by `mailbox` and `shard`.
//!
//! Cheaper than the channel's own async receive where many small channels are read: a sender that finds the
//! reader awake pays one atomic operation.
//!
//! # How it works
//!
//! A sender pushes and then rings; the reader registers its waker, arms the bell and then looks into
//! the channel again. Both look behind the channel's own lock, so one of the two sees the other.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::AcqRel;
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Bell {
    is_armed: AtomicBool,
    waker: AtomicWaker,
}

impl Bell {
    /// Something was pushed.
    pub(super) fn ring(&self) {
        if self.disarm() {
            self.waker.wake();
        }
    }

    /// Ready if there is something to read; else the task is woken by the next ring.
    pub(super) fn poll_rung(
        &self,
        cx: &mut Context<'_>,
        has_something: impl Fn() -> bool,
    ) -> Poll<()> {
        if has_something() {
            return Poll::Ready(());
        }
        // Registered anew each time, also while armed: a sender that disarmed the bell earlier may wake
        // late, and so use up the waker that was registered since.
        self.waker.register(cx.waker());
        self.is_armed.swap(true, AcqRel);
        if has_something() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn disarm(&self) -> bool {
        self.is_armed.swap(false, AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn ring_wakes_a_reader_that_found_nothing_and_only_once() {
        let (bell, count) = (Bell::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        bell.ring();
        assert!(bell.poll_rung(&mut Context::from_waker(&waker), || false).is_pending());
        bell.ring();
        bell.ring();
        assert_eq!(count.0.load(Relaxed), 1);
    }

    #[test]
    fn late_wake_of_an_earlier_ring_does_not_lose_the_next_one() {
        let (bell, count) = (Bell::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let poll = || bell.poll_rung(&mut Context::from_waker(&waker), || false).is_pending();
        assert!(poll());
        // A sender is interrupted in the middle of its ring, and the reader polls meanwhile.
        assert!(bell.disarm());
        assert!(poll());
        bell.waker.wake();
        assert!(poll());

        bell.ring();
        assert_eq!(count.0.load(Relaxed), 2);
    }
}
