//! Messages that expire while they wait for a client leave its queue. Floor 4, part of [`Router`].
//!
//! No message is sent after its time in any case: the session looks at that. This makes room for others in
//! the queue of a client that is away, or does not acknowledge. A mailbox says when the first message comes that
//! will expire, and is looked at every second until there is none left.

use std::time::{Duration, Instant};

use crate::ids::ClientId;
use crate::metrics::DropReason;
use crate::router::Router;
use crate::router::handover::take_mail;
use crate::router::mailbox::Mail;
use crate::router::registry::Parked;
use crate::session::Output;

/// Time between two looks at a queue.
const INTERVAL: Duration = Duration::from_secs(1);

impl Router {
    /// Looks after the queues for as long as it is polled. For one task.
    pub async fn drop_expired(&self) {
        while let Ok(first) = self.expiring.1.recv_async().await {
            tokio::time::sleep(INTERVAL).await;
            // What is still or again to be looked at comes behind those that are there now.
            let others = self.expiring.1.try_iter().take(self.expiring.1.len());
            for client_id in std::iter::once(first).chain(others.collect::<Vec<_>>()) {
                self.drop_expired_of(&client_id);
            }
        }
    }

    fn drop_expired_of(&self, client_id: &ClientId) {
        self.registry.visit(client_id, Mail::Expire, |Parked { session, inbox, .. }| {
            let mailbox = inbox.mailbox();
            mailbox.forget_expiry();
            let mut out = Output::new(self.collector());
            take_mail(session, inbox, &mut out);
            if session.drop_expired(Instant::now(), &mut out) {
                mailbox.expect_expiry();
            }
            let tally = out.tally;
            let _ = mailbox.release(tally.released_messages, tally.released_bytes);
            self.metrics.dropped(DropReason::Expired, tally.expired);
        });
    }
}
