//! What all clients look at: which broker is there, and what is to be done now.
//!
//! The broker has one *life* after the other. Between them nobody is there; the clients wait here for the next.
//! The end of a life is announced before the broker is killed, so a connection that ends without that was ended by
//! the broker, which it must not.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::history::When;

/// How long nothing may happen although something should.
pub(crate) const STALL: Duration = Duration::from_secs(15);
/// Complaints that are kept; one cause has many of them.
const COMPLAINTS_MAX: usize = 40;

/// What is to be done now.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Act {
    /// Everybody connects and subscribes.
    Opening,
    /// Publishers publish.
    Running,
    /// Publishers see that what they have sent is acknowledged, and go.
    Finishing,
    /// Subscribers get what they are owed, and go.
    Draining,
}

/// A broker that can be connected to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit {
    pub(crate) life: u32,
    pub(crate) addr: SocketAddr,
    /// It will not be killed.
    pub(crate) is_last: bool,
}

/// See the module comment.
#[derive(Debug)]
pub(crate) struct Stage {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    act: Act,
    /// The broker of the life that goes on, if one does.
    visit: Option<Visit>,
    /// Clients that still have something to do in [`Act::Opening`].
    unready: usize,
    moment: u64,
    complaints: Vec<String>,
    complaints_left_out: usize,
}

impl Stage {
    /// `unready` clients will say [`Stage::ready`].
    pub(crate) fn new(unready: usize) -> Self {
        let state = State {
            act: Act::Opening,
            visit: None,
            unready,
            moment: 0,
            complaints: Vec::new(),
            complaints_left_out: 0,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A life begins.
    pub(crate) fn open(&self, visit: Visit) {
        self.change(|state| state.visit = Some(visit));
    }

    /// A life is about to end.
    pub(crate) fn close(&self) {
        self.change(|state| state.visit = None);
    }

    pub(crate) fn begin(&self, act: Act) {
        self.change(|state| state.act = act);
    }

    pub(crate) fn act(&self) -> Act {
        self.lock().act
    }

    /// One client has done what is to be done in [`Act::Opening`].
    pub(crate) fn ready(&self) {
        self.change(|state| state.unready -= 1);
    }

    /// Waits until all clients are ready.
    pub(crate) fn wait_until_ready(&self) {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), 2 * STALL, |state| state.unready > 0)
            .unwrap();
        let complaints = &state.complaints;
        assert!(state.unready == 0, "{} subscribers are not ready: {complaints:#?}", state.unready);
    }

    /// Waits until publishers may publish.
    pub(crate) fn wait_until_running(&self) {
        drop(self.changed.wait_while(self.lock(), |state| state.act == Act::Opening).unwrap());
    }

    /// Waits for the first life behind `life`; `None` when there will be none.
    pub(crate) fn visit_after(&self, life: u32) -> Option<Visit> {
        let is_awaited = |state: &mut State| {
            state.visit.is_none_or(|visit| visit.life <= life && !visit.is_last)
        };
        let state = self.changed.wait_while(self.lock(), is_awaited).unwrap();
        state.visit.filter(|visit| visit.life > life)
    }

    /// A connection of `visit` has ended, or could not be made: a complaint unless the broker was killed.
    pub(crate) fn lost(&self, visit: &Visit, who: &str, how: impl Display) {
        let is_open = self.lock().visit.is_some_and(|now| now.life == visit.life);
        if is_open {
            self.complain(format!("{who}: {how}, and the broker lives"));
        }
    }

    /// The moment, which is later than all that were asked for before.
    pub(crate) fn now(&self, life: u32) -> When {
        let mut state = self.lock();
        state.moment += 1;
        When { moment: state.moment, life }
    }

    /// Something is wrong.
    pub(crate) fn complain(&self, what: impl Display) {
        let mut state = self.lock();
        if state.complaints.len() < COMPLAINTS_MAX {
            let life = state.visit.map_or("none".to_owned(), |visit| visit.life.to_string());
            state.complaints.push(format!("in life {life}: {what}"));
        } else {
            state.complaints_left_out += 1;
        }
    }

    /// All that was wrong so far.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let state = self.lock();
        let mut complaints = state.complaints.clone();
        if state.complaints_left_out > 0 {
            complaints.push(format!("and {} more", state.complaints_left_out));
        }
        complaints
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        how(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// Waits for something that does not happen any more.
#[derive(Debug)]
pub(crate) struct Patience(Instant);

impl Patience {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    /// Something has happened.
    pub(crate) fn renew(&mut self) {
        self.0 = Instant::now();
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.0.elapsed() >= STALL
    }
}
