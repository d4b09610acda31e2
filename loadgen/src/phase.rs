//! What the threads of a run share: the phase they are in and what each has done. Written by `run`
//! (phases) and by each `worker` (its own counters); nobody waits on anything here.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use mio::Waker;

use crate::clock::Clock;
use crate::slice::Exchange;
use crate::window::Progress;

/// The phases, in order. A run may leave any of them for a later one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Phase {
    /// Clients connect and subscribe.
    Ramp,
    /// Load without measurement.
    WarmUp,
    /// Load.
    Measure,
    /// No new messages; what is under way arrives.
    Drain,
    /// Over.
    Stop,
}

const PHASES: [Phase; 5] = [Phase::Ramp, Phase::WarmUp, Phase::Measure, Phase::Drain, Phase::Stop];

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The clock of the run.
    pub(crate) clock: Clock,
    /// Clients that are ready.
    pub(crate) ready: AtomicUsize,
    /// A thread has given up; its error comes with its end.
    pub(crate) failed: AtomicBool,
    /// Closed loop: positions of subscribers.
    pub(crate) progress: Progress,
    /// One per thread.
    pub(crate) threads: Vec<Thread>,
    phase: AtomicU8,
    /// When each phase began.
    began_ns: [AtomicU64; PHASES.len()],
}

/// How others reach one thread, and what it tells them.
#[derive(Debug)]
pub(crate) struct Thread {
    /// Interrupts its wait.
    pub(crate) waker: Waker,
    /// Publishers that may go on, noted by threads that hold their subscribers.
    pub(crate) notes: Mutex<Vec<u32>>,
    /// What it has measured, second by second.
    pub(crate) slices: Exchange,
    /// Deliveries that follow from what its publishers have sent.
    pub(crate) expected: AtomicU64,
    /// Different messages that its subscribers have received.
    pub(crate) arrived: AtomicU64,
    /// Messages of its publishers that are due, unwritten or unacknowledged. Not zero until the
    /// thread has said so in the last phase.
    pub(crate) unfinished: AtomicU64,
}

impl Shared {
    /// Everything at zero, in the phase of connecting.
    pub(crate) fn new(clock: Clock, progress: Progress, wakers: Vec<Waker>) -> Self {
        let thread = |waker| Thread {
            waker,
            notes: Mutex::default(),
            slices: Exchange::default(),
            expected: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            unfinished: AtomicU64::new(1),
        };
        Self {
            clock,
            ready: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            progress,
            threads: wakers.into_iter().map(thread).collect(),
            phase: AtomicU8::new(0),
            began_ns: Default::default(),
        }
    }

    /// The phase as of now.
    pub(crate) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// When a phase began, once it has.
    pub(crate) fn began_ns(&self, phase: Phase) -> u64 {
        self.began_ns[phase as usize].load(Ordering::Acquire)
    }

    /// When a phase ended, once a later one has begun.
    pub(crate) fn ended_ns(&self, phase: Phase) -> Option<u64> {
        let later = PHASES.iter().filter(|later| **later > phase);
        later.map(|later| self.began_ns(*later)).find(|began_ns| *began_ns > 0)
    }

    /// Begins a phase and tells all threads.
    pub(crate) fn enter(&self, phase: Phase) {
        self.began_ns[phase as usize].store(self.clock.now_ns(), Ordering::Release);
        self.phase.store(phase as u8, Ordering::Release);
        for thread in &self.threads {
            thread.wake();
        }
    }

    /// Whether everything that was sent has arrived and is acknowledged.
    pub(crate) fn is_complete(&self) -> bool {
        let (arrived, unfinished) = self.progress_of_drain();
        unfinished == 0 && arrived >= self.sum(|thread| &thread.expected)
    }

    /// Over all threads: different messages that have arrived, and what is due, unwritten or
    /// unacknowledged.
    pub(crate) fn progress_of_drain(&self) -> (u64, u64) {
        let unfinished = self.sum(|thread| &thread.unfinished);
        (self.sum(|thread| &thread.arrived), unfinished)
    }

    fn sum(&self, of: fn(&Thread) -> &AtomicU64) -> u64 {
        self.threads.iter().map(|thread| of(thread).load(Ordering::Acquire)).sum()
    }
}

impl Thread {
    /// Interrupts its wait. A wake-up that fails costs at most the poll timeout.
    pub(crate) fn wake(&self) {
        let _ = self.waker.wake();
    }

    /// Leaves notes and wakes the thread.
    pub(crate) fn note(&self, publishers: &mut Vec<u32>) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).append(publishers);
        self.wake();
    }

    /// Takes the notes that others left.
    pub(crate) fn take_notes(&self) -> Vec<u32> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
