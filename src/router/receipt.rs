//! What a publisher is told when a shard owns its messages. Floor 4, made by `router::shard`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::ids::PacketId;
use crate::metrics::Shortage;
use crate::router::mailbox::{Mail, Mailbox};
use crate::store::log::Level;

/// The batch of `mailbox` that came with number `turn` is owned.
pub(super) struct Receipt {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) turn: u64,
    /// Messages for nobody, see [`Mail::Accepted`].
    pub(super) unmatched: Vec<PacketId>,
    /// Messages with which nothing was done.
    pub(super) refused: Vec<(PacketId, Shortage)>,
    /// Some of it has to be in the log before, at this level.
    pub(super) level: Option<Level>,
}

impl Receipt {
    pub(super) fn give(self) {
        self.post().ring();
    }

    /// Returns whom to ring.
    pub(super) fn post(self) -> Arc<Mailbox> {
        let Self { mailbox, turn, unmatched, refused, .. } = self;
        if !refused.is_empty() {
            mailbox.post(Mail::Refused { turn, refused });
        }
        mailbox.post(Mail::Accepted { turn, unmatched });
        mailbox
    }
}

/// Receipts that wait for two things: the messages are in the mailboxes, and they are safe in the log. Either may come
/// first, for the log has a thread of its own.
pub(super) struct Awaited {
    has_one_happened: AtomicBool,
    receipts: Mutex<Vec<Receipt>>,
}

impl Awaited {
    pub(super) fn new(receipts: Vec<Receipt>) -> Self {
        Self { has_one_happened: AtomicBool::new(false), receipts: receipts.into() }
    }

    /// One of the two has happened; with the second the receipts are given.
    pub(super) fn happened(&self) {
        if self.has_one_happened.swap(true, Ordering::AcqRel) {
            let mut receipts = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *receipts).into_iter().for_each(Receipt::give);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;
    use crate::router::mailbox::{Home, QueueLimits, mailbox};

    #[test]
    fn receipt_is_given_once_when_both_have_happened() {
        let limits = QueueLimits { messages_max: 1, bytes_max: 1 };
        let inbox = mailbox(SessionId(1), Home::Memory, None, limits, Arc::default());
        let receipt = Receipt {
            mailbox: inbox.mailbox().clone(),
            turn: 7,
            unmatched: Vec::new(),
            refused: Vec::new(),
            level: Some(Level::Always),
        };
        let awaited = Awaited::new(vec![receipt]);
        awaited.happened();
        assert!(inbox.try_next().is_none());
        awaited.happened();
        assert!(matches!(inbox.try_next(), Some(Mail::Accepted { turn: 7, .. })));
        assert!(inbox.try_next().is_none());
    }
}
