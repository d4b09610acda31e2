//! Files that wait to become segments: retired ones, and a new one made beforehand.
//!
//! A segment is written into a file that has its full size, because a sync is then one write to the disk. Making such
//! a file takes long, so it is done by a thread of its own, unless the settings say otherwise; whoever needs a file
//! that is being made waits for it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::files::{Files, StoredFile};
use super::segment::Kind;

/// A file with room for a segment.
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Arc<dyn StoredFile>,
}

/// See the module comment.
pub(super) struct Spares {
    files: Arc<dyn Files>,
    /// Size of each.
    bytes: u64,
    /// More retired ones are removed.
    ready_max: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The one that waits longest is taken first.
    ready: VecDeque<Spare>,
    /// For the name of the next new file.
    number_next: u64,
    maker: Maker,
}

/// The thread that makes files beforehand.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Maker {
    /// There is none, or it has ended: who needs a file makes it.
    Absent,
    /// It waits until somebody takes the last file.
    Waiting,
    /// It has been called, or is at work.
    Called,
}

impl Spares {
    /// All `ready` ones have `bytes`; `number_next` and beyond are free for names of new files.
    pub(super) fn new(
        files: Arc<dyn Files>,
        bytes: u64,
        ready_max: usize,
        ready: VecDeque<Spare>,
        number_next: u64,
    ) -> Self {
        let state = Mutex::new(State { ready, number_next, maker: Maker::Absent });
        Self { files, bytes, ready_max, state, changed: Condvar::new() }
    }

    /// A file of `bytes`, or of the usual size if that is enough, with whatever content.
    pub(super) fn take(&self, bytes: u64) -> io::Result<Spare> {
        let mut state = self.lock();
        while state.ready.is_empty() && state.maker == Maker::Called && bytes <= self.bytes {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let ready = if bytes <= self.bytes { state.ready.pop_front() } else { None };
        let spare = match ready {
            Some(spare) => spare,
            None => {
                let name = state.new_name();
                drop(state);
                let file = self.files.create(&name, bytes)?;
                state = self.lock();
                Spare { name, file }
            }
        };
        // Not before: the space may be enough for one file and not for two.
        if state.ready.is_empty() && state.maker == Maker::Waiting {
            state.maker = Maker::Called;
            self.changed.notify_all();
        }
        Ok(spare)
    }

    /// Keeps the file of the segment that began at `base`, or removes it.
    pub(super) fn give(&self, base: u64, file: Arc<dyn StoredFile>, bytes: u64) -> io::Result<()> {
        let segment = Kind::Segment.name(base);
        let mut state = self.lock();
        if bytes != self.bytes || state.ready.len() >= self.ready_max {
            drop(state);
            return self.files.remove(&segment);
        }
        let name = Kind::Free.name(base);
        self.files.rename(&segment, &name)?;
        state.ready.push_back(Spare { name, file });
        Ok(())
    }

    /// Makes a file whenever there is none, until [`Spares::end`]. The body of a thread; before that starts,
    /// [`Spares::announce`] has to be called.
    pub(super) fn make(&self) {
        let mut state = self.lock();
        loop {
            while state.maker == Maker::Waiting {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.maker == Maker::Absent {
                return;
            }
            let name = state.new_name();
            drop(state);
            let made = self.files.create(&name, self.bytes);
            state = self.lock();
            // An error is for whoever needs the file: he tries again and is told.
            state.ready.extend(made.map(|file| Spare { name, file }));
            if state.maker == Maker::Called {
                state.maker = Maker::Waiting;
            }
            self.changed.notify_all();
        }
    }

    /// From now on there is somebody in [`Spares::make`].
    pub(super) fn announce(&self) {
        let mut state = self.lock();
        state.maker = if state.ready.is_empty() { Maker::Called } else { Maker::Waiting };
    }

    /// Lets [`Spares::make`] return.
    pub(super) fn end(&self) {
        self.lock().maker = Maker::Absent;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new_name(&mut self) -> String {
        let number = self.number_next;
        self.number_next += 1;
        Kind::New.name(number)
    }
}
