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
//!
//! # The wake-up
//!
//! A sender pushes and then tests `armed`; the reader registers its waker, sets `armed` and then tests the
//! channel again. Both tests come behind the channel's own lock, so one of the two sees the other.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;

use crate::ids::SessionId;
use crate::message::{Delivery, Kind, Replay};
use crate::metrics::{DropReason, Metrics};

/// What a session is told.
#[derive(Debug)]
pub enum Mail {
    /// Messages.
    Delivery(Delivery),
    /// A shard owns what it got in this turn.
    Accepted {
        /// The number that came with the batch.
        turn: u64,
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
    /// Another connection wants the session.
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

/// The sending half.
#[derive(Debug)]
pub struct Mailbox {
    session: SessionId,
    sender: flume::Sender<Mail>,
    limits: QueueLimits,
    messages: AtomicU64,
    bytes: AtomicUsize,
    is_connected: AtomicBool,
    armed: AtomicBool,
    waker: AtomicWaker,
    metrics: Arc<Metrics>,
}

/// The receiving half; there is one.
#[derive(Debug)]
pub struct Inbox {
    mailbox: Arc<Mailbox>,
    receiver: flume::Receiver<Mail>,
    /// Of the connection that reads it.
    ticket: u64,
}

/// A new mailbox for `session`, whose client is connected.
pub fn mailbox(session: SessionId, limits: QueueLimits, metrics: Arc<Metrics>) -> Inbox {
    let (sender, receiver) = flume::unbounded();
    let mailbox = Mailbox {
        session,
        sender,
        limits,
        messages: AtomicU64::new(0),
        bytes: AtomicUsize::new(0),
        is_connected: AtomicBool::new(true),
        armed: AtomicBool::new(false),
        waker: AtomicWaker::new(),
        metrics,
    };
    Inbox { mailbox: Arc::new(mailbox), receiver, ticket: 0 }
}

impl Mailbox {
    /// Whose mailbox this is.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Sends messages, or drops and counts them: at the limit, and at QoS 0 while the client is away.
    pub fn deliver(&self, delivery: Delivery) {
        let messages = u64::from(delivery.messages);
        if delivery.kind == Kind::Unacknowledged && !self.is_connected.load(Relaxed) {
            return self.metrics.dropped(DropReason::Offline, messages);
        }
        // Shards may pass the test at the same time: the limit can be overrun by one delivery of each.
        let waiting = self.messages.load(Relaxed);
        let held = self.bytes.load(Relaxed);
        if waiting >= self.limits.messages_max || held >= self.limits.bytes_max {
            return self.metrics.dropped(DropReason::QueueFull, messages);
        }
        self.charge(&delivery);
        self.send(Mail::Delivery(delivery));
    }

    /// Sends everything but messages: never refused.
    pub fn send(&self, mail: Mail) {
        if let Mail::Chunk { deliveries, .. } = &mail {
            // Asked for by the session, one chunk at a time: counted, never dropped.
            deliveries.iter().for_each(|delivery| self.charge(delivery));
        }
        if let Err(flume::SendError(mail)) = self.sender.send(mail) {
            self.refund(&mail);
            return;
        }
        if self.armed.swap(false, AcqRel) {
            self.waker.wake();
        }
    }

    /// Takes what the session has put on the wire out of the account.
    pub fn release(&self, messages: u64, bytes: usize) {
        if messages > 0 {
            self.messages.fetch_sub(messages, Relaxed);
            self.metrics.queued_messages.add(-(messages as i64));
        }
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Relaxed);
            self.metrics.queued_bytes.add(-(bytes as i64));
        }
    }

    /// The client came or went.
    pub fn set_connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Release);
    }

    fn charge(&self, delivery: &Delivery) {
        self.messages.fetch_add(u64::from(delivery.messages), Relaxed);
        self.bytes.fetch_add(delivery.held_bytes, Relaxed);
        self.metrics.queued_messages.add(i64::from(delivery.messages));
        self.metrics.queued_bytes.add(delivery.held_bytes as i64);
    }

    /// The session has ended: nobody will read `mail`.
    fn refund(&self, mail: &Mail) {
        let deliveries = match mail {
            Mail::Delivery(delivery) => std::slice::from_ref(delivery),
            Mail::Chunk { deliveries, .. } => deliveries,
            _ => &[],
        };
        for delivery in deliveries {
            let messages = u64::from(delivery.messages);
            self.release(messages, delivery.held_bytes);
            self.metrics.dropped(DropReason::SessionEnded, messages);
        }
    }
}

impl Inbox {
    /// The sending half.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// The connection with `ticket` is the reader from now on. The earlier one may have armed the
    /// wake-up, but with its own waker.
    pub(super) fn set_ticket(&mut self, ticket: u64) {
        self.ticket = ticket;
        self.mailbox.armed.store(false, Release);
    }

    /// The next mail, if there is one. A call to go that was meant for an earlier reader, because
    /// it came when that one was on its way out already, is left out.
    pub fn try_next(&self) -> Option<Mail> {
        let is_stale =
            |mail: &Mail| matches!(mail, Mail::TakenOver { ticket } if *ticket <= self.ticket);
        self.receiver.try_iter().find(|mail| !is_stale(mail))
    }

    /// Ready when there is mail; else the task is woken when some comes.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.receiver.is_empty() {
            return Poll::Ready(());
        }
        if !self.mailbox.armed.load(Acquire) {
            self.mailbox.waker.register(cx.waker());
            self.mailbox.armed.swap(true, AcqRel);
            if !self.receiver.is_empty() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;
    use std::task::{Wake, Waker};

    use super::*;

    #[test]
    fn next_reader_is_woken_by_its_own_waker() {
        let mut inbox = inbox();
        let (first, second) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        inbox.set_ticket(1);
        assert!(poll(&inbox, &first).is_pending());

        inbox.set_ticket(2);
        assert!(poll(&inbox, &second).is_pending());
        inbox.mailbox().send(Mail::Accepted { turn: 0 });
        assert!(second.0.load(SeqCst));
        assert!(poll(&inbox, &second).is_ready());
    }

    #[test]
    fn call_to_go_is_heard_by_the_reader_it_was_meant_for_only() {
        let mut inbox = inbox();
        inbox.set_ticket(1);
        for ticket in [2, 3, 4] {
            inbox.mailbox().send(Mail::TakenOver { ticket });
        }
        assert!(matches!(inbox.try_next(), Some(Mail::TakenOver { ticket: 2 })));

        inbox.set_ticket(3);
        assert!(matches!(inbox.try_next(), Some(Mail::TakenOver { ticket: 4 })));

        inbox.mailbox().send(Mail::TakenOver { ticket: 4 });
        inbox.mailbox().send(Mail::Accepted { turn: 0 });
        inbox.set_ticket(4);
        assert!(matches!(inbox.try_next(), Some(Mail::Accepted { turn: 0 })));
        assert!(inbox.try_next().is_none());
    }

    #[derive(Default)]
    struct Bell(AtomicBool);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }

    fn poll(inbox: &Inbox, bell: &Arc<Bell>) -> Poll<()> {
        inbox.poll_ready(&mut Context::from_waker(&Waker::from(bell.clone())))
    }

    fn inbox() -> Inbox {
        let limits = QueueLimits { messages_max: 10, bytes_max: 1000 };
        mailbox(SessionId(0), limits, Arc::default())
    }
}
