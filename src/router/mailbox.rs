//! The way to one session: a flume channel, its limits, and the wake-up of whoever reads it. Floor 4.
//!
//! Shards hold a [`Mailbox`], the connection or the parked session holds the [`Inbox`]. While the client
//! is away the channel is the offline queue.
//!
//! # Limits
//!
//! The channel itself is unbounded; what it may hold is accounted in `messages` and `bytes`, from the
//! moment a delivery is sent until the session has put it on the wire (messages) and it is
//! acknowledged (bytes). What happens at the limit is said in [`queues`](super::queues). Everything else that goes
//! through a mailbox is a direct answer to something the session sent, so the session bounds it.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use crate::access::Rights;
use tracing::warn;

use crate::ids::{ClientId, PacketId, SessionId};
use crate::message::{Delivery, Kind, Replay, Stored};
use crate::metrics::{DropReason, Metrics, Shortage};
use crate::router::bell::Bell;
use crate::router::holder::Holder;
use crate::router::queues::{Held, Policy, Queues};
use crate::session::authentication::Directory;

pub use crate::router::queues::QueueLimits;

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
    /// A shard has no room for some messages of this turn, and has done nothing with them. [`Mail::Accepted`] follows.
    Refused {
        /// The number that came with the batch.
        turn: u64,
        /// Which messages, and why.
        refused: Vec<(PacketId, Shortage)>,
    },
    /// More waits than may: drop what waits longest.
    MakeRoom,
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
    /// Users have changed, and those who are gone have to go.
    UsersChanged(Arc<dyn Directory>),
    /// The broker stops.
    ShuttingDown,
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
    queues: Arc<Queues>,
    messages: AtomicU64,
    bytes: AtomicUsize,
    is_connected: AtomicBool,
    /// It is more than half full, and counted as that.
    is_pressed: AtomicBool,
    /// It holds more than it may, and its session was told to make room.
    is_over: AtomicBool,
    /// A message was refused because it was full, and that was reported.
    is_blamed: AtomicBool,
    /// A message of its client was refused without a word: nothing is accepted until its connection is closed.
    is_refused: AtomicBool,
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
    queues: impl Into<Arc<Queues>>,
    metrics: Arc<Metrics>,
) -> Inbox {
    let (sender, receiver) = flume::unbounded();
    let mailbox = Mailbox {
        session,
        home,
        sender,
        queues: queues.into(),
        messages: AtomicU64::new(0),
        bytes: AtomicUsize::new(0),
        is_connected: AtomicBool::new(true),
        is_pressed: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
        is_blamed: AtomicBool::new(false),
        is_refused: AtomicBool::new(false),
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

    /// Whether its mount point and the rules let messages of `topic` come into it.
    pub fn may_receive(&self, topic: &str) -> bool {
        self.client_id().is_none_or(|client_id| client_id.sees(topic))
            && self.lock_holder().rights.may_receive(topic).is_allowed()
    }

    fn lock_holder(&self) -> MutexGuard<'_, Holder> {
        // It is only ever replaced as a whole.
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why another message could not be queued, if `messages` with `bytes` were on their way already.
    pub fn shortage(&self, messages: u64, bytes: usize) -> Option<Shortage> {
        self.queues.shortage(self.held(messages, bytes), &self.metrics)
    }

    /// How many messages could be queued in the same case, were it for their number alone.
    pub(super) fn messages_left(&self, messages: u64) -> u64 {
        self.queues.messages_left(self.held(messages, 0))
    }

    /// How many messages and bytes wait that should not.
    pub fn excess(&self) -> (u64, usize) {
        self.is_over.store(false, Release);
        let Held { messages, bytes, .. } = self.queues.excess(self.held(0, 0), &self.metrics);
        (messages, bytes)
    }

    /// What happens where there is no room.
    pub(super) fn policy(&self) -> Policy {
        self.queues.policy()
    }

    /// Messages are refused because of this mailbox: said once, until it has room again.
    pub(super) fn blame(&self) {
        if !self.is_blamed.swap(true, Relaxed) {
            let client = self.client_id().map(tracing::field::display);
            let messages = self.messages.load(Relaxed);
            let is_connected = self.is_connected();
            warn!(
                client,
                messages,
                is_connected,
                "the queue of this session is full: messages for it are refused until it reads, or ends; see \
                 queue_policy"
            );
        }
    }

    /// Nothing more is accepted from its client on this connection, which will be closed.
    pub fn refuse_rest(&self) {
        self.is_refused.store(true, Release);
    }

    /// Whether [`Mailbox::refuse_rest`] was called on this connection.
    pub fn is_refused(&self) -> bool {
        self.is_refused.load(Acquire)
    }

    /// Nothing of the connection is left in any shard: the next one may publish.
    pub fn forget_refusal(&self) {
        self.is_refused.store(false, Release);
    }

    fn held(&self, messages: u64, bytes: usize) -> Held {
        Held {
            messages: self.messages.load(Relaxed) + messages,
            bytes: self.bytes.load(Relaxed) + bytes,
            is_connected: self.is_connected(),
            is_in_log: self.home == Home::Log,
        }
    }

    /// Bytes held by messages that wait or are not acknowledged.
    pub fn held_bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Whether the client is there.
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Relaxed)
    }

    /// Queues messages, to be followed by a ring, or drops and counts them: at QoS 0 while the client is away, and
    /// where there is no room if the policy says so. Messages of a shared subscription have been given to this
    /// session because it had room: they are not dropped for another shard's having filled it since. Returns what
    /// was dropped.
    pub fn deliver(&self, delivery: Delivery) -> Option<Delivery> {
        let messages = u64::from(delivery.messages);
        if delivery.kind == Kind::Unacknowledged && !self.is_connected() {
            self.metrics.dropped(DropReason::Offline, messages);
            return Some(delivery);
        }
        // Shards may pass the test at the same time: the limit can be overrun by one delivery of each.
        let shortage = self.shortage(0, 0);
        if let Some(shortage) = shortage
            && !delivery.is_shared()
            && !self.takes_all_the_same(delivery.kind)
        {
            self.metrics.dropped(shortage.into(), messages);
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
        if self.policy() == Policy::DropOldest && self.is_over_limit() {
            self.ask_for_room();
        }
        None
    }

    /// Whether messages enter that find no room.
    fn takes_all_the_same(&self, kind: Kind) -> bool {
        match self.policy() {
            Policy::DropNewest => false,
            // It was asked before they were accepted.
            Policy::Reject => kind == Kind::Acknowledged,
            Policy::DropOldest => !self.queues.is_far_over(self.held(0, 0)),
        }
    }

    fn is_over_limit(&self) -> bool {
        let Held { messages, bytes, .. } = self.queues.excess(self.held(0, 0), &self.metrics);
        messages > 0 || bytes > 0
    }

    /// Tells whoever has the session that more waits than may.
    fn ask_for_room(&self) {
        if self.is_over.swap(true, AcqRel) {
            return;
        }
        self.post(Mail::MakeRoom);
        if !self.is_connected()
            && let Some(Expiring { client_id, crowded, .. }) = &self.expiring
        {
            // Without a receiver the broker is going down.
            let _ = crowded.send(client_id.clone());
        }
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
        if self.is_pressed.load(Relaxed) && !self.queues.is_half_full(self.held(0, 0)) {
            self.set_pressed(false);
            self.is_blamed.store(false, Relaxed);
        }
        released
    }

    /// Of two that come at the same moment the later may have it wrong, until the next one.
    fn set_pressed(&self, is_pressed: bool) {
        if self.is_pressed.swap(is_pressed, AcqRel) != is_pressed {
            self.queues.count_pressed(if is_pressed { 1 } else { -1 });
        }
    }

    /// The client came or went.
    pub fn set_connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Release);
        // Whoever was told may not have come round to it.
        self.is_over.store(false, Release);
        self.forget_crowd();
    }

    /// Takes into the account what waits for the session.
    pub fn charge(&self, messages: u64, bytes: usize) {
        let messages_before = self.messages.fetch_add(messages, Relaxed);
        let bytes_before = self.bytes.fetch_add(bytes, Relaxed);
        self.metrics.queued_messages.add(messages as i64);
        self.metrics.queued_bytes.add(bytes as i64);
        let held = Held {
            messages: messages_before + messages,
            bytes: bytes_before + bytes,
            ..Held::default()
        };
        if self.queues.is_half_full(held) && !self.is_pressed.load(Relaxed) {
            self.set_pressed(true);
        }
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
        // First nothing more may enter: whoever charges after that gives it back by himself.
        drop(std::mem::replace(&mut self.receiver, flume::bounded(0).1));
        let messages = self.mailbox.messages.swap(0, Relaxed);
        let bytes = self.mailbox.bytes.swap(0, Relaxed);
        self.mailbox.set_pressed(false);
        self.mailbox.metrics.queued_messages.add(-(messages as i64));
        self.mailbox.metrics.queued_bytes.add(-(bytes as i64));
        self.mailbox.metrics.dropped(DropReason::SessionEnded, messages);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::ids::{ProtocolVersion, Qos};
    use crate::message::{Buffer, Piece};

    fn message() -> Delivery {
        let piece = Piece {
            buffer: 0,
            offset: 0,
            len: 8,
            count: 1,
            version: ProtocolVersion::V5,
            frame_qos: Qos::AtLeastOnce,
            frame_retain: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            expires: false,
            via: 0,
            record: 0,
            first: 0,
        };
        let frames = bytes::Bytes::from_static(&[0; 8]);
        let buffers = vec![Buffer { frames, received_at: Instant::now() }];
        Delivery::new(Kind::Acknowledged, buffers, vec![piece], Vec::new())
    }

    /// What the sums of all queues keep by mistake they keep for ever.
    #[test]
    fn nothing_stays_in_the_account_of_a_session_that_ends_while_messages_come() {
        let metrics = Arc::new(Metrics::default());
        let each = QueueLimits { messages_max: 2, bytes_max: 100_000 };
        let queues: Arc<Queues> = each.into();
        for _ in 0..2_000 {
            let inbox = mailbox(SessionId(1), Home::Memory, None, queues.clone(), metrics.clone());
            let mailbox = inbox.mailbox().clone();
            let barrier = Barrier::new(2);
            thread::scope(|scope| {
                scope.spawn(|| {
                    barrier.wait();
                    (0..20).for_each(|_| drop(mailbox.deliver(message())));
                });
                barrier.wait();
                drop(inbox);
            });
        }
        let sums = (metrics.queued_messages.value(), metrics.queued_bytes.value());
        assert_eq!(sums, (0, 0));
        assert!(!queues.is_tight(Held::default(), &metrics));
    }
}
