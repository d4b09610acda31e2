//! Wakes the one reader of a flume channel. Floor 4, used by `mailbox` and `shard`.
//!
//! Cheaper than the channel's own async receive where many small channels are read: a sender that finds the
//! reader awake pays one atomic operation.
//!
//! # How it works
//!
//! A sender pushes and then rings; the reader registers its waker, arms the bell and then looks into
//! the channel again. Both look behind the channel's own lock, so one of the two sees the other.
//!
//! # One after the other
//!
//! Waking two tasks at once wakes another worker thread for the second, which costs more than all the rest of
//! a single message: 38 instead of 24 µs of CPU at QoS 1. [`Bell::ring_before`] wakes one reader and leaves
//! the other one's waker with it, to be woken when it has run. An armed bell has a task that will be polled after
//! its ring, unless it is leaving: so every poll ends with [`Bell::pass_on`], and the last one with
//! [`Bell::leave`], which disarms first. A bell that is not armed takes nothing along.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use atomic_waker::AtomicWaker;

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Bell {
    is_armed: AtomicBool,
    waker: AtomicWaker,
    /// To be woken when the reader has run.
    next: Mutex<Option<Waker>>,
    /// There may be one. Set before the ring that lets the reader see it.
    has_next: AtomicBool,
}

impl Bell {
    /// Something was pushed.
    pub(super) fn ring(&self) {
        if self.disarm() {
            self.waker.wake();
        }
    }

    /// Something was pushed for the reader of this bell and for that of `other`, who may run after it.
    pub(super) fn ring_before(&self, other: &Self) {
        if !other.disarm() {
            return self.ring();
        }
        let Some(waker) = other.waker.take() else { return self.ring() };
        let earlier = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            self.has_next.store(true, Relaxed);
            next.replace(waker)
        };
        if let Some(earlier) = earlier {
            earlier.wake();
        }
        match self.disarm() {
            true => self.waker.wake(),
            false => self.pass_on(),
        }
    }

    /// The reader has run: wakes whoever was to be woken after it.
    pub(super) fn pass_on(&self) {
        if self.has_next.load(Relaxed) {
            let next = {
                let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
                self.has_next.store(false, Relaxed);
                next.take()
            };
            if let Some(waker) = next {
                waker.wake();
            }
        }
    }

    /// The reader will not read any more, or not for long.
    pub(super) fn leave(&self) {
        self.disarm();
        self.pass_on();
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
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

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

    /// A reader that sleeps.
    fn armed() -> (Bell, Arc<Count>) {
        let (bell, count) = (Bell::default(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        assert!(bell.poll_rung(&mut Context::from_waker(&waker), || false).is_pending());
        (bell, count)
    }

    #[test]
    fn second_reader_is_woken_when_the_first_one_has_run() {
        let ((first, first_count), (second, second_count)) = (armed(), armed());
        first.ring_before(&second);
        assert_eq!((first_count.0.load(Relaxed), second_count.0.load(Relaxed)), (1, 0));
        first.pass_on();
        first.pass_on();
        assert_eq!((first_count.0.load(Relaxed), second_count.0.load(Relaxed)), (1, 1));
    }

    #[test]
    fn second_reader_is_woken_at_once_where_the_first_one_does_not_sleep() {
        let (awake, (second, second_count)) = (Bell::default(), armed());
        awake.ring_before(&second);
        assert_eq!(second_count.0.load(Relaxed), 1);

        let ((left, _), (second, second_count)) = (armed(), armed());
        left.leave();
        left.ring_before(&second);
        assert_eq!(second_count.0.load(Relaxed), 1);
    }

    #[test]
    fn reader_that_leaves_wakes_who_was_to_be_woken_after_it() {
        let ((first, _), (second, second_count)) = (armed(), armed());
        first.ring_before(&second);
        first.leave();
        assert_eq!(second_count.0.load(Relaxed), 1);
    }

    #[test]
    fn reader_takes_one_along_and_others_are_woken_at_once() {
        let ((first, _), (second, second_count), (third, third_count)) =
            (armed(), armed(), armed());
        first.ring_before(&second);
        first.ring_before(&third);
        assert!(second_count.0.load(Relaxed) + third_count.0.load(Relaxed) >= 1);
        first.pass_on();
        assert_eq!((second_count.0.load(Relaxed), third_count.0.load(Relaxed)), (1, 1));
    }

    #[test]
    fn reader_before_itself_is_woken_once() {
        let (bell, count) = armed();
        bell.ring_before(&bell);
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
