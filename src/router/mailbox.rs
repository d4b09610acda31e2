//! The way to one session: a flume channel, its limits, and the wake-up of whoever reads it. Floor 4.
//!
//! Shards hold a [`Mailbox`], the connection or the parked session holds the [`Inbox`]. While the client
//! is away the channel is the offline queue.
//!
//! # Limits
//!
//! The channel itself is unbounded; what it may hold is accounted in `messages` and `bytes`, from the
//! moment a delivery is sent until the session has put it on the wire (messages) and it is
//! acknowledged (bytes). At the limit a delivery is dropped and counted. Everything else that goes
//! through a mailbox is a direct answer to something the session sent, so the session bounds it.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use crate::access::Rights;
use crate::ids::{ClientId, PacketId, SessionId};
use crate::message::{Delivery, Kind, Replay, Stored};
use crate::metrics::{DropReason, Metrics};
use crate::router::bell::Bell;
use crate::router::holder::Holder;

/// What may wait in memory for a client that is away, if it is in the log.
const CROWD_BYTES: usize = 256 * 1024;

/// What a session is told.
#[derive(Debug)]
pub enum Mail {
    /// Messages.
    Delivery(Delivery),
    /// A shard owns what it got in this turn.
    Accepted {
        /// The number that came with the batch.
        turn: u64,
        /// Messages of a v5 client at QoS 1 and 2 to whose topics nobody has subscribed: as many as the
        /// batch has at most, and no memory where there are none.
        unmatched: Vec<PacketId>,
    },
    /// A shard has done its part of a SUBSCRIBE or UNSUBSCRIBE.
    PartDone {
        /// Of the request.
        token: u64,
        /// How many shards have a part.
        parts_due: usize,
        /// Retained messages to be fetched from that shard.
        replay: Option<Replay>,
    },
    /// The chunk that was asked for; what is left of the replay.
    Chunk {
        /// At most one of each kind.
        deliveries: Vec<Delivery>,
        /// To be asked for next.
        rest: Option<Replay>,
    },
    /// Messages that were read from the log, and those that could not be.
    Fetched {
        /// In their order.
        fetched: Vec<Delivery>,
        /// They are gone.
        lost: Vec<Stored>,
    },
    /// Something that the session wrote into its journal is safe.
    Safe,
    /// Messages that wait may have expired: drop them.
    Expire,
    /// Other rules are in force, and this is what they give the client.
    Rights(Rights),
    /// Another connection wants the session. Meant for every owner with an older ticket: the mail may
    /// still be there when the session has a new owner.
    TakenOver {
        /// Of the connection that wants it.
        ticket: u64,
    },
    /// The broker stops.
    ShuttingDown,
}

/// Bounds of one mailbox.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Messages that wait.
    pub messages_max: u64,
    /// Bytes held by messages that wait or are not acknowledged.
    pub bytes_max: usize,
}

/// Where the messages of a session live.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Home {
    /// They end with the process.
    Memory,
    /// QoS 1 and 2 are in the log, too.
    Log,
}

/// The sending half.
#[derive(Debug)]
pub struct Mailbox {
    session: SessionId,
    home: Home,
    sender: flume::Sender<Mail>,
    limits: QueueLimits,
    messages: AtomicU64,
    bytes: AtomicUsize,
    is_connected: AtomicBool,
    /// A message that expires may wait, and `expiring` has been told.
    may_expire: AtomicBool,
    expiring: Option<Expiring>,
    /// Bytes that came while the client was away, since somebody has looked.
    crowd_bytes: AtomicUsize,
    /// Looked at when routes are compiled and connections begin, never for each message.
    holder: Mutex<Holder>,
    bell: Bell,
    metrics: Arc<Metrics>,
}

/// Where a mailbox says that a message waits in it that will expire.
#[derive(Clone, Debug)]
pub struct Expiring {
    /// Whose mailbox it is.
    pub client_id: ClientId,
    /// Unbounded, and each client is in it a few times at most: it is looked at once all the same.
    pub clients: flume::Sender<ClientId>,
    /// Where it says that much waits in memory that is in the log, too. The same holds for it.
    pub crowded: flume::Sender<ClientId>,
}

/// The receiving half; there is one.
#[derive(Debug)]
pub struct Inbox {
    mailbox: Arc<Mailbox>,
    receiver: flume::Receiver<Mail>,
}

/// A new mailbox for `session`, whose client is connected.
pub fn mailbox(
    session: SessionId,
    home: Home,
    expiring: Option<Expiring>,
    limits: QueueLimits,
    metrics: Arc<Metrics>,
) -> Inbox {
    let (sender, receiver) = flume::unbounded();
    let mailbox = Mailbox {
        session,
        home,
        sender,
        limits,
        messages: AtomicU64::new(0),
        bytes: AtomicUsize::new(0),
        is_connected: AtomicBool::new(true),
        may_expire: AtomicBool::new(false),
        expiring,
        crowd_bytes: AtomicUsize::new(0),
        holder: Mutex::default(),
        bell: Bell::default(),
        metrics,
    };
    Inbox { mailbox: Arc::new(mailbox), receiver }
}

impl Mailbox {
    /// Whose mailbox this is.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Where its messages live.
    pub fn home(&self) -> Home {
        self.home
    }

    /// The client whose session it is; `None` for the broker's own.
    pub fn client_id(&self) -> Option<&ClientId> {
        self.expiring.as_ref().map(|expiring| &expiring.client_id)
    }

    /// Whose session it is, and what may come into it.
    pub fn holder(&self) -> Holder {
        self.lock_holder().clone()
    }

    /// Sets whose session it is. Returns who it was.
    pub fn set_holder(&self, holder: Holder) -> Holder {
        std::mem::replace(&mut *self.lock_holder(), holder)
    }

    /// Whether the rules let messages of `topic` come into it.
    pub fn may_receive(&self, topic: &str) -> bool {
        self.lock_holder().rights.may_receive(topic).is_allowed()
    }

    fn lock_holder(&self) -> MutexGuard<'_, Holder> {
        // It is only ever replaced as a whole.
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another message could be queued, if `messages` with `bytes` were on their way already.
    pub fn has_room(&self, messages: u64, bytes: usize) -> bool {
        self.messages.load(Relaxed) + messages < self.limits.messages_max
            && self.bytes.load(Relaxed) + bytes < self.limits.bytes_max
    }

    /// Bytes held by messages that wait or are not acknowledged.
    pub fn held_bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Whether the client is there.
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Relaxed)
    }

    /// Queues messages, to be followed by a ring, or drops and counts them: at the limit, and at QoS 0 while the client is away.
    /// Messages of a shared subscription have been given to this session because it had room: they
    /// are not dropped for another shard's having filled it since. Returns what was dropped.
    pub fn deliver(&self, delivery: Delivery) -> Option<Delivery> {
        let messages = u64::from(delivery.messages);
        if delivery.kind == Kind::Unacknowledged && !self.is_connected() {
            self.metrics.dropped(DropReason::Offline, messages);
            return Some(delivery);
        }
        // Shards may pass the test at the same time: the limit can be overrun by one delivery of each.
        if !self.has_room(0, 0) && !delivery.is_shared() {
            self.metrics.dropped(DropReason::QueueFull, messages);
            return Some(delivery);
        }
        self.charge(messages, delivery.held_bytes);
        let held_bytes = delivery.held_bytes;
        let expires = delivery.expires;
        self.post(Mail::Delivery(delivery));
        if expires {
            self.expect_expiry();
        }
        if self.home == Home::Log && !self.is_connected() {
            self.tell_crowded(held_bytes);
        }
        None
    }

    /// So many bytes more wait for a client that is away: let somebody leave them to the log.
    fn tell_crowded(&self, bytes: usize) {
        let before = self.crowd_bytes.fetch_add(bytes, AcqRel);
        if before < CROWD_BYTES
            && before + bytes >= CROWD_BYTES
            && let Some(Expiring { client_id, crowded, .. }) = &self.expiring
        {
            // Without a receiver the broker is going down.
            let _ = crowded.send(client_id.clone());
        }
    }

    /// Call it before taking the mail of a client that is away.
    pub fn forget_crowd(&self) {
        self.crowd_bytes.store(0, Release);
    }

    /// A message waits that will expire. Behind it is in the channel: whoever is told finds it.
    pub fn expect_expiry(&self) {
        if let Some(Expiring { client_id, clients, .. }) = &self.expiring
            && !self.may_expire.swap(true, AcqRel)
        {
            // Without a receiver the broker is going down.
            let _ = clients.send(client_id.clone());
        }
    }

    /// Whether messages may wait that will expire.
    pub(super) fn may_expire(&self) -> bool {
        self.may_expire.load(Acquire)
    }

    /// Call it before looking for messages that have expired, and [`Mailbox::expect_expiry`] if others are left.
    pub fn forget_expiry(&self) {
        self.may_expire.store(false, Release);
    }

    /// Sends everything but messages: never refused.
    pub fn send(&self, mail: Mail) {
        self.post(mail);
        self.ring();
    }

    /// As [`Mailbox::send`], without waking the reader: a ring has to follow.
    pub fn post(&self, mail: Mail) {
        if let Mail::Chunk { deliveries, .. } = &mail {
            // Asked for by the session, one chunk at a time: counted, never dropped.
            for delivery in deliveries {
                self.charge(delivery.messages.into(), delivery.held_bytes);
            }
        }
        if let Err(flume::SendError(mail)) = self.sender.send(mail) {
            self.refund(&mail);
        }
    }

    /// Wakes the reader.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// Wakes the reader, and that of `other` when this one has run: cheaper than both at once, and later for
    /// the other.
    pub fn ring_before(&self, other: &Self) {
        self.bell.ring_before(&other.bell);
    }

    /// Takes what the session has put on the wire out of the account; at most what is in it, and
    /// returns how many messages that were. The account may be empty already: it is, when the
    /// inbox was dropped while a shard was sending.
    pub fn release(&self, messages: u64, bytes: usize) -> u64 {
        let mut released = 0;
        if messages > 0 {
            let before = self.messages.update(Relaxed, Relaxed, |all| all.saturating_sub(messages));
            released = before.min(messages);
            self.metrics.queued_messages.add(-(released as i64));
        }
        if bytes > 0 {
            let before = self.bytes.update(Relaxed, Relaxed, |all| all.saturating_sub(bytes));
            self.metrics.queued_bytes.add(-(before.min(bytes) as i64));
        }
        released
    }

    /// The client came or went.
    pub fn set_connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Release);
        self.forget_crowd();
    }

    /// Takes into the account what waits for the session.
    pub fn charge(&self, messages: u64, bytes: usize) {
        self.messages.fetch_add(messages, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.metrics.queued_messages.add(messages as i64);
        self.metrics.queued_bytes.add(bytes as i64);
    }

    /// The session has ended: nobody will read `mail`.
    fn refund(&self, mail: &Mail) {
        let deliveries = match mail {
            Mail::Delivery(delivery) => std::slice::from_ref(delivery),
            Mail::Chunk { deliveries, .. } => deliveries,
            _ => &[],
        };
        for delivery in deliveries {
            let released = self.release(delivery.messages.into(), delivery.held_bytes);
            self.metrics.dropped(DropReason::SessionEnded, released);
        }
    }
}

impl Inbox {
    /// The sending half.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// The next mail, if there is one.
    pub fn try_next(&self) -> Option<Mail> {
        self.receiver.try_recv().ok()
    }

    /// Whether there is no mail.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Ready when there is mail; else the task is woken when some comes.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.mailbox.bell.poll_rung(cx, || !self.receiver.is_empty())
    }

    /// The reader has run and will be woken again: lets those run who were to be woken after it.
    pub fn pass_on(&self) {
        self.mailbox.bell.pass_on();
    }

    /// The reader does not wait for mail any more: as [`Inbox::pass_on`], for the last time.
    pub fn leave(&self) {
        self.mailbox.bell.leave();
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let messages = self.mailbox.messages.swap(0, Relaxed);
        let bytes = self.mailbox.bytes.swap(0, Relaxed);
        self.mailbox.metrics.queued_messages.add(-(messages as i64));
        self.mailbox.metrics.queued_bytes.add(-(bytes as i64));
        self.mailbox.metrics.dropped(DropReason::SessionEnded, messages);
    }
}
