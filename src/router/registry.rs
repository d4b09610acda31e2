//! Which client id is where. Floor 4.
//!
//! There is one slot per client id, and it holds the session behind an async lock. A connection owns the
//! lock for its life. A second CONNECT with the same id tells the first to go, waits for the lock and finds
//! everything. No other path creates or moves a session, so two owners cannot exist.
//!
//! # Takeover
//!
//! Each CONNECT takes a ticket from its slot. Only the holder of the newest ticket may wait or stay: a
//! waiter that sees a newer one gives up, an owner that sees one is told by [`Mail::TakenOver`]. So
//! a thousand connections with one id cost one handover, not a thousand.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dashmap::DashMap;
use tokio::sync::{Notify, OwnedMutexGuard};

use crate::ids::{ClientId, SessionId};
use crate::router::mailbox::{Inbox, Mail, Mailbox};
use crate::session::Session;

/// A session whose client is away, or is just coming back.
#[derive(Debug)]
pub struct Parked {
    /// Everything that the protocol knows about it.
    pub session: Box<Session>,
    /// Where its messages wait.
    pub inbox: Inbox,
    /// When it ends, unless the client comes back.
    pub expires_at: Option<Instant>,
}

/// See the module comment.
#[derive(Debug, Default)]
pub struct Registry {
    slots: DashMap<ClientId, Arc<Slot>>,
    sessions: AtomicU64,
    /// Set when a session is parked that will expire: else nobody needs to look for one.
    may_expire: AtomicBool,
}

/// The place of one client id.
#[derive(Debug, Default)]
struct Slot {
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
    Parked(Parked),
    /// The slot has left the registry: look the client id up again.
    Removed,
}

/// The right to be the session of a client id. Give it back with [`Claim::park`] or [`Claim::end`].
#[derive(Debug)]
pub struct Claim {
    client_id: ClientId,
    slot: Arc<Slot>,
    place: OwnedMutexGuard<Place>,
    ticket: u64,
}

/// A newer connection with the same client id has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a newer connection with the same client identifier has come")]
pub struct Superseded;

impl Registry {
    /// A session identifier that was never used.
    pub fn fresh_session_id(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Relaxed))
    }

    /// Becomes the owner of `client_id`: whoever is it now is told to go, and is waited for.
    pub async fn claim(&self, client_id: &ClientId) -> Result<Claim, Superseded> {
        loop {
            let slot = self.slots.entry(client_id.clone()).or_default().clone();
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

    /// Tells every connected session something.
    pub fn tell_owners(&self, mail: impl Fn() -> Mail) {
        let slots: Vec<Arc<Slot>> = self.slots.iter().map(|slot| slot.value().clone()).collect();
        for slot in slots {
            if let Some(owner) = slot.owner() {
                owner.send(mail());
            }
        }
    }

    /// Takes the sessions out whose time has come.
    pub fn take_expired(&self, now: Instant) -> Vec<Parked> {
        if !self.may_expire.swap(false, SeqCst) {
            return Vec::new();
        }
        let slots: Vec<(ClientId, Arc<Slot>)> =
            self.slots.iter().map(|slot| (slot.key().clone(), slot.value().clone())).collect();
        let mut expired = Vec::new();
        for (client_id, slot) in slots {
            // A slot that is in use has no session to expire.
            let Ok(mut place) = slot.place.clone().try_lock_owned() else { continue };
            match &*place {
                Place::Parked(Parked { expires_at: Some(at), .. }) if *at <= now => (),
                Place::Parked(Parked { expires_at: Some(_), .. }) => {
                    self.may_expire.store(true, SeqCst);
                    continue;
                }
                _ => continue,
            }
            if let Place::Parked(parked) = std::mem::replace(&mut *place, Place::Removed) {
                expired.push(parked);
            }
            self.slots.remove_if(&client_id, |_, other| Arc::ptr_eq(other, &slot));
        }
        expired
    }
}

impl Slot {
    fn owner(&self) -> Option<Arc<Mailbox>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_owner(&self, owner: Option<Arc<Mailbox>>) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = owner;
    }

    async fn wait_for_place(
        self: Arc<Self>,
        ticket: u64,
    ) -> Result<OwnedMutexGuard<Place>, Superseded> {
        let mut place = std::pin::pin!(self.place.clone().lock_owned());
        loop {
            let taken = self.ticket_taken.notified();
            if self.newest_ticket.load(SeqCst) != ticket {
                return Err(Superseded);
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

    /// The parked session, if there is one.
    pub fn take(&mut self) -> Option<Parked> {
        match std::mem::take(&mut *self.place) {
            Place::Parked(parked) => Some(parked),
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
        let expires = parked.expires_at.is_some();
        *self.place = Place::Parked(parked);
        drop(self);
        // Behind the unlock: whoever looks for expired sessions after this finds it.
        if expires {
            registry.may_expire.store(true, SeqCst);
        }
    }

    /// Leaves nothing.
    pub fn end(mut self, registry: &Registry) {
        self.slot.set_owner(None);
        *self.place = Place::Removed;
        registry.slots.remove_if(&self.client_id, |_, other| Arc::ptr_eq(other, &self.slot));
    }
}
