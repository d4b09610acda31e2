//! Messages of shared subscriptions whose member went away go to another one. Floor 4, part of
//! [`Router`].
//!
//! # When, and which
//!
//! When a client's connection ends, whatever waits for it unsent, if another member is there to take it: it
//! would only lose its place in the order, and wait for somebody else who is away. When its session ends,
//! all of that, and what was sent at QoS 1 and not acknowledged. A message leaves the one session before
//! it enters another, so no two members have it. If nobody else has room after all it goes back to where it
//! came from, as long as that may wait for its client.

use std::collections::HashMap;
use std::sync::Arc;

use crate::codec::PublishView;
use crate::ids::SessionId;
use crate::message::{Batch, Run, Undelivered, shard_of};
use crate::metrics::DropReason;
use crate::router::Router;
use crate::router::mailbox::{Inbox, Mail, Mailbox};
use crate::router::shard::{Command, ShareAgain};
use crate::session::{Output, Session};
use crate::topic::TopicFilter;

impl Router {
    /// Hands over what waits for `session`, whose client is away and whose mailbox knows it.
    pub async fn hand_over(&self, session: &mut Session, inbox: &Inbox, has_ended: bool) {
        if !session.has_shared() {
            return;
        }
        // Until now a shard may have taken the client for connected. What it sent is in the mailbox then.
        self.settle().await;
        let mut out = Output::new(self.collector());
        take_mail(session, inbox, &mut out);
        let id = inbox.mailbox().session();
        let mut known = HashMap::new();
        let are_takers = |filter: &TopicFilter| {
            let found = || has_ended || self.is_anybody_else_there(filter, id);
            *known.entry(filter.clone()).or_insert_with(found)
        };
        let undelivered = session.take_shared(has_ended, are_takers, &mut out);
        self.settle_away(&mut out, inbox.mailbox());
        for messages in undelivered {
            self.share_again(messages, inbox).await;
        }
    }

    /// Does what `net::connection` would with the output of a session, for a client that is away: accounts,
    /// counters and journal.
    pub(super) fn settle_away(&self, out: &mut Output, mailbox: &Arc<Mailbox>) {
        let tally = std::mem::take(&mut out.tally);
        let _ = mailbox.release(tally.released_messages, tally.released_bytes);
        self.metrics.dropped(DropReason::Expired, tally.expired);
        self.metrics.dropped(DropReason::Unreadable, tally.unreadable);
        self.metrics.dropped(DropReason::QueueEvicted, tally.evicted);
        self.write_journal(out, mailbox);
    }

    fn is_anybody_else_there(&self, filter: &TopicFilter, session: SessionId) -> bool {
        self.trie.group(filter).is_some_and(|group| {
            let mut others = group.members.iter().filter(|(member, _)| *member != session);
            others.any(|(_, subscriber)| subscriber.mailbox.is_connected())
        })
    }

    async fn share_again(&self, messages: Undelivered, inbox: &Inbox) {
        let Undelivered { filter, frames, count, version, expires, received_at, logged } = messages;
        let Some(view) = PublishView::parse(&frames, version) else { return };
        let run = Run {
            hash: self.hasher.hash(view.topic),
            offset: 0,
            len: frames.len() as u32,
            count,
            topic_at: view.header_len as u32 + 2,
            topic_len: view.topic.len() as u16,
            qos: view.qos(),
            retain: view.retain(),
            expires,
        };
        let batch = Batch { frames: frames.clone(), runs: vec![run], version, received_at };
        let from = inbox.mailbox().session();
        if let Some(shard) = self.shards.get(shard_of(run.hash, self.shards.len())) {
            let again = ShareAgain { batch, filter, from, logged };
            shard.send(Command::Share(Box::new(again))).await;
        }
    }
}

/// What `net::connection` does with mail, but for a client that is not there to be answered.
pub(super) fn take_mail(session: &mut Session, inbox: &Inbox, out: &mut Output) {
    while let Some(mail) = inbox.try_next() {
        match mail {
            Mail::Delivery(delivery) => session.handle_delivery(delivery, out),
            Mail::Accepted { turn, unmatched } => session.handle_accepted(turn, unmatched, out),
            Mail::Refused { turn, refused } => session.handle_refused(turn, refused),
            Mail::MakeRoom => {
                let (messages, bytes) = inbox.mailbox().excess();
                session.make_room(messages, bytes, out);
            }
            Mail::PartDone { token, parts_due, replay } => {
                session.handle_part_done(token, parts_due, replay, out);
            }
            Mail::Chunk { deliveries, rest } => {
                for delivery in deliveries {
                    session.handle_delivery(delivery, out);
                }
                session.handle_chunk(rest);
            }
            Mail::Fetched { fetched, lost } => session.handle_fetched(fetched, lost, out),
            // Nobody is connected who could go, and whoever takes the mail also looks for what has expired.
            Mail::TakenOver { .. }
            | Mail::UsersChanged(_)
            | Mail::ShuttingDown
            | Mail::Expire
            | Mail::Safe
            | Mail::Rights(_) => (),
        }
    }
}
