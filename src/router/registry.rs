//! Which client id is where. Floor 4.
//!
//! There is one slot per client id, and it holds the session behind an async lock. A connection owns the
//! lock for its life. A second CONNECT with the same id tells the first to go, waits for the lock and finds
//! everything. No other path creates or moves a session, so two owners cannot exist.
//!
//! The same identifier behind another mount point is another [`ClientId`]: it has a slot of its own, and neither sees the
//! other.
//!
//! # Takeover
//!
//! Each CONNECT takes a ticket from its slot. Only the holder of the newest ticket may wait or stay: a
//! waiter that sees a newer one gives up, an owner that sees one is told by [`Mail::TakenOver`]. So
//! a thousand connections with one id cost one handover, not a thousand.
//!
//! # Owners
//!
//! A session belongs to the user that its client has proved to be. Nobody else gets it, ends it, or ends the connection that has
//! it: a claim of another user is refused before it takes a ticket. A session of an anonymous client goes to whoever
//! claims it, and belongs to him from then on if he has proved who he is.
//!
//! # Deadlines
//!
//! A session whose client is away ends when its expiry interval has passed, and a will that waits with it
//! is published when its delay has. The next of both is an entry among the deadlines; one task waits for
//! the first of all ([`Registry::due`]). Who holds the lock of the slot decides by the clock: the task and a
//! claim that come at the same moment do the same, each of them once.
//!
//! When the broker stops, sessions that are in memory only end with it: the wills that wait with them are
//! published before the clients are told to go ([`Registry::take_wills`]). The others are in the log with their
//! wills and deadlines, and the next process parks them again.
//!
//! # Invariants
//!
//! - A deadline is entered and removed only by the holder of the lock of its slot: there is one while the
//!   slot holds a session that has something due, and none in every other case. A claim that is dropped
//!   without [`Claim::take`] changes nothing.
//! - Locks are taken in the order slot, deadlines. The task goes the other way, and so may only *try* a slot;
//!   one that is being claimed or parked at that moment is looked at again a little later.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use tokio::sync::{Notify, OwnedMutexGuard};

use crate::ids::{ClientId, SessionId};
use crate::router::deadline::{Deadline, Deadlines};
use crate::router::mailbox::{Home, Inbox, Mail, Mailbox};
use crate::session::authentication::UserName;
use crate::session::{Session, Will};

/// What [`Registry::due`] takes out at once; the rest follows.
const DUE_MAX: usize = 256;
/// When a slot is looked at again that was in use when its deadline came.
const SECOND_LOOK: Duration = Duration::from_millis(10);

/// A session whose client is away, or is just coming back.
#[derive(Debug)]
pub struct Parked {
    /// Everything that the protocol knows about it.
    pub session: Box<Session>,
    /// Where its messages wait.
    pub inbox: Inbox,
    /// When it ends, unless the client comes back.
    pub expires_at: Option<Instant>,
    /// Published at its time, unless the client comes back before [MQTT-3.1.3-9].
    pub will: Option<Box<WaitingWill>>,
}

/// A will whose connection is gone.
#[derive(Debug)]
pub struct WaitingWill {
    /// The message.
    pub will: Will,
    /// When it is published; not after the end of its session.
    pub due_at: Instant,
}

/// Something whose time has come.
#[derive(Debug)]
pub enum Due {
    /// The will of a session that goes on. Nobody claims the session before it is dropped: the next connection may
    /// bring another will.
    Will(Will, Arc<Mailbox>, Held),
    /// A session that has ended, with its will if that still waited.
    End(Parked),
}

/// Keeps a session where it is.
#[derive(Debug)]
pub struct Held {
    _place: OwnedMutexGuard<Place>,
}

/// See the module comment.
#[derive(Debug, Default)]
pub struct Registry {
    slots: DashMap<ClientId, Arc<Slot>>,
    sessions: AtomicU64,
    deadlines: Mutex<Deadlines<(ClientId, Arc<Slot>)>>,
    /// A deadline was entered before all others.
    earlier: Notify,
}

/// The place of one client id.
#[derive(Debug, Default)]
struct Slot {
    /// Whose the session is, or will be; `None` for an anonymous client.
    user: Mutex<Option<UserName>>,
    newest_ticket: AtomicU64,
    ticket_taken: Notify,
    /// Who has to be told when somebody else comes.
    owner: Mutex<Option<Arc<Mailbox>>>,
    place: Arc<tokio::sync::Mutex<Place>>,
}

/// What the lock of a slot guards.
#[derive(Debug, Default)]
enum Place {
    /// No session.
    #[default]
    Empty,
    /// A session that nobody is connected to.
    Parked {
        parked: Parked,
        /// Its entry among the deadlines.
        deadline: Option<Deadline>,
    },
    /// The slot has left the registry: look the client id up again.
    Removed,
}

/// What became of [`Registry::visit`].
#[derive(Debug)]
pub(super) enum Visit {
    /// The client is away, and the work is done.
    Done,
    /// The session has this owner, which may be about to leave it; none while it is changing hands.
    InUse(Option<Arc<Mailbox>>),
    /// There is none.
    NoSession,
}

/// The right to be the session of a client id. Give it back with [`Claim::park`] or [`Claim::end`].
#[derive(Debug)]
pub struct Claim {
    client_id: ClientId,
    slot: Arc<Slot>,
    place: OwnedMutexGuard<Place>,
    ticket: u64,
}

/// Why there is no [`Claim`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ClaimError {
    /// A newer connection with the same client id has come.
    #[error("a newer connection with the same client identifier has come")]
    Superseded,
    /// The session of the client id belongs to somebody else.
    #[error("the session of the client identifier belongs to another user")]
    NotOwner,
}

impl Registry {
    /// Sessions of earlier processes have had the identifiers up to `greatest`.
    pub fn go_on_behind(&self, greatest: SessionId) {
        self.sessions.fetch_max(greatest.0.saturating_add(1), Relaxed);
    }

    /// A session identifier that was never used.
    pub fn fresh_session_id(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Relaxed))
    }

    /// Becomes the owner of `client_id`: whoever is it now is told to go, and is waited for. `user` is who the client has
    /// proved to be; where the session belongs to another one, nothing happens.
    pub async fn claim(
        &self,
        client_id: &ClientId,
        user: Option<&UserName>,
    ) -> Result<Claim, ClaimError> {
        loop {
            let slot = self.slots.entry(client_id.clone()).or_default().clone();
            slot.admit(user)?;
            let ticket = slot.newest_ticket.fetch_add(1, SeqCst) + 1;
            slot.ticket_taken.notify_waiters();
            if let Some(owner) = slot.owner() {
                owner.send(Mail::TakenOver { ticket });
            }
            let place = slot.clone().wait_for_place(ticket).await?;
            if !matches!(*place, Place::Removed) {
                return Ok(Claim { client_id: client_id.clone(), slot, place, ticket });
            }
        }
    }

    /// Works on the session of `client_id` if its client is away.
    pub(super) fn visit(&self, client_id: &ClientId, work: impl FnOnce(&mut Parked)) -> Visit {
        let Some(slot) = self.slots.get(client_id).map(|slot| slot.clone()) else {
            return Visit::NoSession;
        };
        match slot.place.clone().try_lock_owned().as_deref_mut() {
            Ok(Place::Parked { parked, .. }) => work(parked),
            Ok(Place::Empty | Place::Removed) => return Visit::NoSession,
            Err(_) => return Visit::InUse(slot.owner()),
        }
        Visit::Done
    }

    /// Every client id that has a session, or just gets one or loses it.
    pub(super) fn client_ids(&self) -> Vec<ClientId> {
        self.slots.iter().map(|slot| slot.key().clone()).collect()
    }

    /// The mailbox of its session; none while that is changing hands.
    pub(super) fn mailbox_of(&self, client_id: &ClientId) -> Option<Arc<Mailbox>> {
        let mut mailbox = None;
        let visited = self.visit(client_id, |it| mailbox = Some(it.inbox.mailbox().clone()));
        match visited {
            Visit::InUse(owner) => owner,
            Visit::Done | Visit::NoSession => mailbox,
        }
    }

    /// The time of the session of `client_id` has come at `now`, if its client is away and it still belongs to `user`.
    pub(super) fn expire(&self, client_id: &ClientId, user: &UserName, now: Instant) -> bool {
        let Some(slot) = self.slots.get(client_id).map(|slot| slot.clone()) else { return false };
        let Ok(mut place) = slot.place.clone().try_lock_owned() else { return false };
        let Place::Parked { parked, deadline } = &mut *place else { return false };
        if !slot.is_of(user) {
            return false;
        }
        let mut deadlines = self.deadlines();
        if let Some(later) = deadline.take() {
            deadlines.remove(later);
        }
        parked.expires_at = Some(now);
        *deadline = Some(deadlines.enter(now, (client_id.clone(), slot.clone())));
        drop((deadlines, place));
        // Behind the unlock: whoever is woken can look at it.
        self.earlier.notify_one();
        true
    }

    /// Tells every connected session something.
    pub fn tell_owners(&self, mail: impl Fn() -> Mail) {
        let slots: Vec<Arc<Slot>> = self.slots.iter().map(|slot| slot.value().clone()).collect();
        for slot in slots {
            if let Some(owner) = slot.owner() {
                owner.send(mail());
            }
        }
    }

    /// Waits until the time of a session or a will has come, and takes out what is due. Nothing is lost when
    /// the future is dropped. For one task at a time.
    pub async fn due(&self) -> Vec<Due> {
        loop {
            let now = tokio::time::Instant::now().into_std();
            let due = self.take_due(now);
            if !due.is_empty() {
                return due;
            }
            let first = self.deadlines().first();
            match first {
                None => self.earlier.notified().await,
                Some(at) => {
                    let at = if at <= now { now + SECOND_LOOK } else { at };
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => (),
                        () = self.earlier.notified() => (),
                    }
                }
            }
        }
    }

    /// Takes out the wills that wait with sessions in memory, which are about to end with the process.
    pub fn take_wills(&self) -> Vec<Due> {
        let mut wills = Vec::new();
        for (_, slot) in self.deadlines().items() {
            if let Ok(mut place) = slot.place.clone().try_lock_owned()
                && let Place::Parked { parked, .. } = &mut *place
                && parked.inbox.mailbox().home() == Home::Memory
                && let Some(waiting) = parked.will.take()
            {
                let mailbox = parked.inbox.mailbox().clone();
                wills.push(Due::Will(waiting.will, mailbox, Held { _place: place }));
            }
        }
        wills
    }

    fn take_due(&self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        // Slots that leave stay locked until they have left: whoever waits for one finds another.
        let mut leaving = Vec::new();
        let mut deadlines = self.deadlines();
        let lock = |(deadline, (_, slot)): (Deadline, &(ClientId, Arc<Slot>))| {
            Some((deadline, slot.place.clone().try_lock_owned().ok()?))
        };
        let locked: Vec<_> = deadlines.due(now).filter_map(lock).take(DUE_MAX).collect();
        for (deadline, mut place) in locked {
            let Some((client_id, slot)) = deadlines.remove(deadline) else { continue };
            match std::mem::replace(&mut *place, Place::Removed) {
                Place::Parked { parked, .. } if parked.has_ended(now) => {
                    due.push(Due::End(parked));
                    leaving.push((client_id, slot, place));
                }
                Place::Parked { mut parked, .. } => {
                    let will = parked.will.take_if(|will| will.due_at <= now);
                    let mailbox = parked.inbox.mailbox().clone();
                    let next = parked.next_deadline();
                    let deadline = next.map(|at| deadlines.enter(at, (client_id, slot)));
                    *place = Place::Parked { parked, deadline };
                    if let Some(waiting) = will {
                        due.push(Due::Will(waiting.will, mailbox, Held { _place: place }));
                    }
                }
                other => *place = other,
            }
        }
        drop(deadlines);
        for (client_id, slot, _place) in leaving {
            self.slots.remove_if(&client_id, |_, other| Arc::ptr_eq(other, &slot));
        }
        due
    }

    fn deadlines(&self) -> MutexGuard<'_, Deadlines<(ClientId, Arc<Slot>)>> {
        self.deadlines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parked {
    /// Whether its time is over.
    pub fn has_ended(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// The client is back: its will is taken back [MQTT-3.1.3-9], unless it should have been published
    /// by now. Then it is returned, to be published all the same.
    pub fn take_overdue_will(&mut self, now: Instant) -> Option<Will> {
        let waiting = self.will.take().filter(|waiting| waiting.due_at <= now)?;
        Some(waiting.will)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let will = self.will.as_ref().map(|waiting| waiting.due_at);
        will.into_iter().chain(self.expires_at).min()
    }
}

impl Slot {
    /// Whether the session may go to `user`; then it is his.
    fn admit(&self, user: Option<&UserName>) -> Result<(), ClaimError> {
        let mut owner = self.user.lock().unwrap_or_else(PoisonError::into_inner);
        if owner.is_some() && owner.as_ref() != user {
            return Err(ClaimError::NotOwner);
        }
        *owner = user.cloned();
        Ok(())
    }

    fn is_of(&self, user: &UserName) -> bool {
        self.user.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(user)
    }

    fn owner(&self) -> Option<Arc<Mailbox>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_owner(&self, owner: Option<Arc<Mailbox>>) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = owner;
    }

    async fn wait_for_place(
        self: Arc<Self>,
        ticket: u64,
    ) -> Result<OwnedMutexGuard<Place>, ClaimError> {
        let mut place = std::pin::pin!(self.place.clone().lock_owned());
        loop {
            let taken = self.ticket_taken.notified();
            if self.newest_ticket.load(SeqCst) != ticket {
                return Err(ClaimError::Superseded);
            }
            tokio::select! {
                place = &mut place => return Ok(place),
                () = taken => (),
            }
        }
    }
}

impl Claim {
    /// Whose session this is.
    pub fn client_id(&self) -> &ClientId {
        &self.client_id
    }

    /// A [`Mail::TakenOver`] with a higher number is meant for the holder of this claim.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// The parked session, if there is one: it may be over already, see [`Parked::has_ended`] and
    /// [`Parked::take_overdue_will`].
    pub fn take(&mut self, registry: &Registry) -> Option<Parked> {
        match std::mem::take(&mut *self.place) {
            Place::Parked { parked, deadline } => {
                if let Some(deadline) = deadline {
                    registry.deadlines().remove(deadline);
                }
                Some(parked)
            }
            Place::Empty | Place::Removed => None,
        }
    }

    /// From now on `mailbox` is told when another connection wants the session; at once, if one does.
    pub fn announce(&self, mailbox: &Arc<Mailbox>) {
        self.slot.set_owner(Some(mailbox.clone()));
        let newest = self.slot.newest_ticket.load(SeqCst);
        if newest != self.ticket {
            mailbox.send(Mail::TakenOver { ticket: newest });
        }
    }

    /// Leaves the session for the next connection.
    pub fn park(mut self, parked: Parked, registry: &Registry) {
        self.slot.set_owner(None);
        let mut is_first = false;
        let deadline = parked.next_deadline().map(|at| {
            let mut deadlines = registry.deadlines();
            is_first = deadlines.first().is_none_or(|first| at < first);
            deadlines.enter(at, (self.client_id.clone(), self.slot.clone()))
        });
        *self.place = Place::Parked { parked, deadline };
        drop(self);
        // Behind the unlock: whoever is woken can look at it.
        if is_first {
            registry.earlier.notify_one();
        }
    }

    /// Leaves nothing. What was parked has been taken.
    pub fn end(mut self, registry: &Registry) {
        self.slot.set_owner(None);
        *self.place = Place::Removed;
        registry.slots.remove_if(&self.client_id, |_, other| Arc::ptr_eq(other, &self.slot));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::codec::{self, Connect, PropertiesBuf, Property};
    use crate::ids::Qos;
    use crate::metrics::Metrics;
    use crate::router::mailbox::{QueueLimits, mailbox};
    use crate::session::{CloseReason, Limits, negotiate};

    const LIMITS: Limits = Limits { inflight_max: 1, subscriptions_max: 1, ..Limits::OF_TESTS };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn client(number: usize) -> ClientId {
        ClientId::new(&format!("client-{number}"))
    }

    /// What a connection leaves behind that ended at `now`: a session that stays for `expiry_s`, and a
    /// will that waits for `will_delay_s`.
    fn parked(
        registry: &Registry,
        now: Instant,
        expiry_s: u32,
        will_delay_s: Option<u32>,
    ) -> Parked {
        let (mut own, mut of_will) = (PropertiesBuf::new(), PropertiesBuf::new());
        own.push(Property::SessionExpiryInterval(expiry_s));
        of_will.push(Property::WillDelayInterval(will_delay_s.unwrap_or(0)));
        let will = will_delay_s.map(|_| codec::Will {
            topic: "will",
            payload: b"gone",
            qos: Qos::AtMostOnce,
            retain: false,
            properties: of_will.as_properties(),
        });
        let properties = own.as_properties();
        let connect = Connect { properties, will, ..Connect::OF_TESTS };
        let opening = negotiate(&connect, &LIMITS, || ClientId::new("spare")).unwrap();
        let mut session = Box::new(Session::new(LIMITS, &opening, now));
        let will = session.detach(&CloseReason::Lost("gone".into()));
        let expires_at = session.expiry().ends_at(now);
        let will = will.map(|will| {
            let due_at = will.due_at(now, expires_at);
            Box::new(WaitingWill { will, due_at })
        });
        let limits = QueueLimits { messages_max: 1, bytes_max: 1 };
        let inbox = mailbox(
            registry.fresh_session_id(),
            Home::Memory,
            None,
            limits,
            Arc::new(Metrics::default()),
        );
        Parked { session, inbox, expires_at, will }
    }

    fn id_of(parked: &Parked) -> SessionId {
        parked.inbox.mailbox().session()
    }

    fn deadlines(registry: &Registry) -> usize {
        registry.deadlines().len()
    }

    async fn claim(registry: &Registry, number: usize) -> Claim {
        registry.claim(&client(number), None).await.unwrap()
    }

    async fn park(registry: &Registry, number: usize, expiry_s: u32, will_delay_s: Option<u32>) {
        let now = tokio::time::Instant::now().into_std();
        let parked = parked(registry, now, expiry_s, will_delay_s);
        claim(registry, number).await.park(parked, registry);
    }

    /// Waits for one thing to come due; returns whether it is a session, and when it came.
    async fn next_due(registry: &Registry, since: tokio::time::Instant) -> (bool, Duration) {
        let due = registry.due().await;
        assert_eq!(due.len(), 1, "{due:?}");
        (matches!(due.first(), Some(Due::End(_))), since.elapsed())
    }

    async fn assert_nothing_due(registry: &Registry) {
        let due = tokio::time::timeout(seconds(1_000_000), registry.due()).await;
        assert!(due.is_err(), "{due:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn will_comes_due_at_its_delay_and_its_session_at_its_expiry() {
        let (registry, start) = (Registry::default(), tokio::time::Instant::now());
        park(&registry, 1, 5, Some(2)).await;
        assert_eq!(next_due(&registry, start).await, (false, seconds(2)));
        assert_eq!(next_due(&registry, start).await, (true, seconds(5)));
        assert_eq!(deadlines(&registry), 0);
        assert!(registry.slots.is_empty());
        assert_nothing_due(&registry).await;
    }

    /// [MQTT-3.1.2-8]
    #[tokio::test(start_paused = true)]
    async fn will_that_would_wait_longer_than_its_session_comes_due_with_it() {
        let (registry, start) = (Registry::default(), tokio::time::Instant::now());
        park(&registry, 1, 3, Some(100)).await;
        let due = registry.due().await;
        assert_eq!(start.elapsed(), seconds(3));
        let [Due::End(parked)] = &due[..] else { panic!("{due:?}") };
        assert!(parked.will.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn session_without_end_waits_for_nothing_but_its_will() {
        let (registry, start) = (Registry::default(), tokio::time::Instant::now());
        park(&registry, 1, u32::MAX, None).await;
        assert_eq!(deadlines(&registry), 0);
        park(&registry, 2, u32::MAX, Some(7)).await;
        assert_eq!(next_due(&registry, start).await, (false, seconds(7)));
        assert_nothing_due(&registry).await;
        assert!(claim(&registry, 2).await.take(&registry).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn earlier_deadline_wakes_whoever_sleeps_for_a_later_one() {
        let (registry, start) = (Arc::new(Registry::default()), tokio::time::Instant::now());
        park(&registry, 1, 100, None).await;
        let waiting = tokio::spawn({
            let registry = registry.clone();
            async move { next_due(&registry, start).await }
        });
        tokio::time::sleep(seconds(1)).await;
        park(&registry, 2, 2, None).await;
        assert_eq!(waiting.await.unwrap(), (true, seconds(3)));
        assert!(claim(&registry, 2).await.take(&registry).is_none());
        assert!(claim(&registry, 1).await.take(&registry).is_some());
    }

    /// [MQTT-3.1.3-9]
    #[tokio::test(start_paused = true)]
    async fn claimed_session_has_no_deadline_and_comes_due_for_nobody() {
        let registry = Registry::default();
        park(&registry, 1, 10, Some(5)).await;
        let mut claim = claim(&registry, 1).await;
        assert_eq!(deadlines(&registry), 1);
        let parked = claim.take(&registry).unwrap();
        assert_eq!(deadlines(&registry), 0);
        assert_nothing_due(&registry).await;
        claim.park(parked, &registry);
        assert_eq!(deadlines(&registry), 1);
    }

    /// [MQTT-3.1.3-9]
    #[test]
    fn client_takes_its_will_back_until_the_moment_at_which_it_is_due() {
        let (registry, now) = (Registry::default(), Instant::now());
        let moment = Duration::from_nanos(1);
        for (delay_s, expiry_s) in [(5, 10), (10, 5)] {
            let due_at = now + seconds(5);
            let mut in_time = parked(&registry, now, expiry_s, Some(delay_s));
            assert!(in_time.take_overdue_will(due_at - moment).is_none());
            assert!(in_time.will.is_none(), "and it is gone");
            let mut late = parked(&registry, now, expiry_s, Some(delay_s));
            assert!(late.take_overdue_will(due_at).is_some());
            assert!(late.take_overdue_will(due_at).is_none(), "once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn claim_that_is_dropped_again_leaves_the_deadline_in_force() {
        let (registry, start) = (Registry::default(), tokio::time::Instant::now());
        park(&registry, 1, 10, None).await;
        let claim = claim(&registry, 1).await;
        let late = tokio::time::timeout(seconds(60), registry.due()).await;
        assert!(late.is_err(), "a slot in use is not touched: {late:?}");
        drop(claim);
        let (is_session, elapsed) = next_due(&registry, start).await;
        assert!(is_session && elapsed <= seconds(60) + SECOND_LOOK, "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn slot_in_use_does_not_hold_up_the_others() {
        let (registry, start) = (Registry::default(), tokio::time::Instant::now());
        park(&registry, 1, 10, None).await;
        park(&registry, 2, 11, None).await;
        let _claim = claim(&registry, 1).await;
        let (is_session, elapsed) = next_due(&registry, start).await;
        assert!(is_session && elapsed <= seconds(11) + SECOND_LOOK, "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_waits_gets_what_ended_meanwhile_and_nobody_else_does() {
        let registry = Registry::default();
        park(&registry, 1, 1, None).await;
        let first = claim(&registry, 1).await;
        let id = client(1);
        let mut second = Box::pin(registry.claim(&id, None));
        assert!(tokio::time::timeout(seconds(5), &mut second).await.is_err());
        // The lock goes to the one who waits, and the deadline is long over.
        drop(first);
        assert!(registry.take_due(tokio::time::Instant::now().into_std()).is_empty());
        let mut second = second.await.unwrap();
        let parked = second.take(&registry).unwrap();
        assert!(parked.has_ended(tokio::time::Instant::now().into_std()));
        second.end(&registry);
        assert!(registry.slots.is_empty());
    }

    #[test]
    fn more_than_one_round_takes_comes_due_in_rounds() {
        let registry = Registry::default();
        let now = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for number in 0..DUE_MAX + 1 {
            let parked = parked(&registry, now, 1, None);
            let claim = runtime.block_on(registry.claim(&client(number), None)).unwrap();
            claim.park(parked, &registry);
        }
        assert_eq!(registry.take_due(now).len(), 0);
        let end = now + seconds(1);
        let rounds = [(); 3].map(|()| registry.take_due(end).len());
        assert_eq!(rounds, [DUE_MAX, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn all_wills_that_wait_are_taken_at_once_and_their_sessions_stay() {
        let (registry, start) = (Registry::default(), tokio::time::Instant::now());
        park(&registry, 1, 10, Some(5)).await;
        park(&registry, 2, 10, None).await;
        park(&registry, 3, u32::MAX, Some(7)).await;
        assert_eq!(registry.take_wills().len(), 2);
        assert_eq!(registry.take_wills().len(), 0);
        let due = registry.due().await;
        assert_eq!((due.len(), start.elapsed()), (2, seconds(10)));
        assert!(due.iter().all(|due| matches!(due, Due::End(_))));
    }

    /// Random claims, parkings and jumps of the clock, against a list of what has to be due.
    #[test]
    fn what_comes_due_agrees_with_a_list_whatever_happens() {
        const CLIENTS: usize = 8;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let registry = Registry::default();
            let mut now = Instant::now();
            let mut claims: BTreeMap<usize, Claim> = BTreeMap::new();
            // End of the session, and when its will is due.
            let mut away: BTreeMap<usize, (SessionId, Option<Instant>, Option<Instant>)> =
                BTreeMap::new();
            for _ in 0..200 {
                let number = rng.usize(..CLIENTS);
                match rng.u8(..3) {
                    0 => {
                        now += seconds(rng.u64(..4));
                        let (mut ended, mut published) = (Vec::new(), Vec::new());
                        for due in registry.take_due(now) {
                            match due {
                                Due::End(parked) => ended.push(id_of(&parked)),
                                Due::Will(_, mailbox, _) => published.push(mailbox.session()),
                            }
                        }
                        let (mut to_end, mut to_publish) = (Vec::new(), Vec::new());
                        away.retain(|_, (id, ends_at, will_at)| {
                            let has_ended = ends_at.is_some_and(|at| at <= now);
                            if has_ended {
                                to_end.push(*id);
                            } else if will_at.take_if(|at| *at <= now).is_some() {
                                to_publish.push(*id);
                            }
                            !has_ended
                        });
                        for list in [&mut ended, &mut published, &mut to_end, &mut to_publish] {
                            list.sort();
                        }
                        assert_eq!((ended, published), (to_end, to_publish), "seed {seed}");
                    }
                    1 if !claims.contains_key(&number) => {
                        let mut claim =
                            runtime.block_on(registry.claim(&client(number), None)).unwrap();
                        let parked = claim.take(&registry);
                        let expected = away.remove(&number);
                        let found = parked.as_ref().map(|parked| {
                            let will_at = parked.will.as_ref().map(|will| will.due_at);
                            (id_of(parked), parked.expires_at, will_at)
                        });
                        assert_eq!(found, expected, "seed {seed}");
                        claims.insert(number, claim);
                    }
                    _ => {
                        let Some(claim) = claims.remove(&number) else { continue };
                        if rng.u8(..4) == 0 {
                            claim.end(&registry);
                            continue;
                        }
                        let expiry_s = *rng.choice(&[1, 2, 3, 5, u32::MAX]).unwrap();
                        let delay_s = *rng.choice(&[None, Some(1), Some(3), Some(9)]).unwrap();
                        let parked = parked(&registry, now, expiry_s, delay_s);
                        let will_at = parked.will.as_ref().map(|will| will.due_at);
                        away.insert(number, (id_of(&parked), parked.expires_at, will_at));
                        claim.park(parked, &registry);
                    }
                }
                let with_deadline = |entry: &&(_, Option<Instant>, Option<Instant>)| {
                    entry.1.is_some() || entry.2.is_some()
                };
                assert_eq!(deadlines(&registry), away.values().filter(with_deadline).count());
            }
        }
    }

    /// Clients come back at the very moment at which their sessions end.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn each_session_is_either_claimed_or_ended_and_never_both() {
        const CLIENTS: usize = 32;
        const ROUNDS: usize = 40;
        let registry = Arc::new(Registry::default());
        let is_over = Arc::new(AtomicBool::new(false));
        let ending = tokio::spawn({
            let (registry, is_over) = (registry.clone(), is_over.clone());
            async move {
                let mut ended = Vec::new();
                while !is_over.load(SeqCst) {
                    let due = tokio::time::timeout(Duration::from_millis(20), registry.due());
                    for due in due.await.unwrap_or_default() {
                        let Due::End(parked) = due else { panic!("no wills here") };
                        ended.push(id_of(&parked));
                    }
                }
                ended
            }
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let registry = registry.clone();
                tokio::spawn(async move {
                    let mut rng = fastrand::Rng::with_seed(number as u64);
                    let (mut left, mut found) = (Vec::new(), Vec::new());
                    for round in 0..=ROUNDS {
                        let mut claim = claim(&registry, number).await;
                        found.extend(claim.take(&registry).map(|parked| id_of(&parked)));
                        if round == ROUNDS {
                            claim.end(&registry);
                            break;
                        }
                        let mut wait = || Duration::from_micros(rng.u64(..3000));
                        let parked = Parked {
                            expires_at: Some(Instant::now() + wait()),
                            ..parked(&registry, Instant::now(), 1, None)
                        };
                        left.push(id_of(&parked));
                        claim.park(parked, &registry);
                        tokio::time::sleep(wait()).await;
                    }
                    (left, found)
                })
            })
            .collect();
        let (mut left, mut gone) = (Vec::new(), Vec::new());
        for client in clients {
            let (parked, found) = client.await.unwrap();
            left.extend(parked);
            gone.extend(found);
        }
        is_over.store(true, SeqCst);
        let ended = ending.await.unwrap();
        assert!(!ended.is_empty() && !gone.is_empty(), "no race: {} ended", ended.len());
        gone.extend(ended);
        left.sort();
        gone.sort();
        assert_eq!(left, gone);
        assert_eq!(deadlines(&registry), 0);
        assert!(registry.slots.is_empty());
    }
}
