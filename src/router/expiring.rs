//! Messages that expire while they wait for a client leave its queue. Floor 4, part of [`Router`].
//!
//! No message is sent after its time in any case: the session looks at that. This makes room for others in
//! the queue of a client that is away, or does not acknowledge. A mailbox says when the first message comes that
//! will expire, and is looked at every second until there is none left. That the session changes hands
//! meanwhile, or that its owner leaves it without having looked, only makes it wait for the next second.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::ids::ClientId;
use crate::router::Router;
use crate::router::handover::take_mail;
use crate::router::mailbox::Mail;
use crate::router::registry::{Parked, Visit};
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
            let clients: HashSet<ClientId> = std::iter::once(first).chain(others).collect();
            for client_id in clients {
                if self.drop_expired_of(&client_id) {
                    // This router has the receiver, too.
                    let _ = self.expiring.0.send(client_id);
                }
                // A queue may be long, and there may be many.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Returns whether to look again, though no mailbox has said so.
    fn drop_expired_of(&self, client_id: &ClientId) -> bool {
        let visit = self.registry.visit(client_id, |Parked { session, inbox, .. }| {
            let mailbox = inbox.mailbox();
            mailbox.forget_expiry();
            let mut out = Output::new(self.collector());
            take_mail(session, inbox, &mut out);
            if session.drop_expired(Instant::now(), &mut out) {
                mailbox.expect_expiry();
            }
            self.settle_away(&mut out, mailbox);
        });
        match visit {
            Visit::Done | Visit::NoSession => false,
            Visit::InUse(None) => true,
            Visit::InUse(Some(owner)) => {
                let may_expire = owner.may_expire();
                if may_expire {
                    owner.send(Mail::Expire);
                }
                may_expire
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::codec::Delivery as Flow;
    use crate::codec::{Connect, Packet, PropertiesBuf, Property, Publish};
    use crate::ids::{PacketId, ProtocolVersion, Qos};
    use crate::message::{Buffer, Delivery, Kind, Piece, TopicHasher};
    use crate::metrics::{DropReason, Metrics};
    use crate::router::keeper::RetainedLimits;
    use crate::router::mailbox::{Home, QueueLimits};
    use crate::router::registry::Claim;
    use crate::router::sharing::Strategy;
    use crate::router::{self, Router};
    use crate::session::{CloseReason, Limits, Session, negotiate};

    const LIMITS: Limits = Limits { inflight_max: 1, ..Limits::OF_TESTS };

    #[tokio::test(start_paused = true)]
    async fn queue_is_looked_at_again_if_its_session_was_changing_hands() {
        let (router, claim, parked) = waiting().await;
        tokio::time::sleep(3 * INTERVAL).await;
        assert_eq!(router.metrics.dropped_for(DropReason::Expired), 0);
        claim.park(parked, &router.registry);
        tokio::time::sleep(3 * INTERVAL).await;
        assert_eq!(router.metrics.dropped_for(DropReason::Expired), 1);
        assert_eq!(router.metrics.queued_messages.value(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn queue_is_looked_at_again_if_its_owner_left_without_having_looked() {
        let (router, claim, parked) = waiting().await;
        claim.announce(parked.inbox.mailbox());
        tokio::time::sleep(3 * INTERVAL).await;
        assert!(!parked.inbox.is_empty());
        claim.park(parked, &router.registry);
        tokio::time::sleep(3 * INTERVAL).await;
        assert_eq!(router.metrics.dropped_for(DropReason::Expired), 1);
        tokio::time::sleep(3 * INTERVAL).await;
        assert!(router.expiring.1.is_empty(), "there is nothing left to be looked at");
    }

    /// A router that drops what expires, and a claimed session for which an expired message waits.
    async fn waiting() -> (Router, Claim, Parked) {
        let queue = QueueLimits { messages_max: 10, bytes_max: 10_000 };
        let retained = RetainedLimits { messages_max: 0, bytes_max: 0 };
        let limits = router::Limits { queue, retained, sharing: Strategy::RoundRobin };
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let router = Router::spawn(1, limits, hasher, Arc::new(Metrics::default()), None);
        tokio::spawn({
            let router = router.clone();
            async move { router.drop_expired().await }
        });

        let connect = Connect::OF_TESTS;
        let opening = negotiate(&connect, &LIMITS, || ClientId::new("spare")).unwrap();
        let claim = router.registry.claim(&opening.client_id, None).await.unwrap();
        let mut session = Box::new(Session::new(LIMITS, &opening, Instant::now()));
        session.detach(&CloseReason::Lost("gone".into()));
        let inbox = router.open_mailbox(Some(&opening.client_id), Home::Memory);
        inbox.mailbox().deliver(expired());
        (router, claim, Parked { session, inbox, expires_at: None, will: None })
    }

    fn expired() -> Delivery {
        let mut properties = PropertiesBuf::new();
        properties.push(Property::MessageExpiryInterval(0));
        let publish = Publish {
            topic: "t",
            payload: b"x",
            properties: properties.as_properties(),
            delivery: Flow::AtLeastOnce { id: PacketId::FIRST, dup: false },
            retain: false,
        };
        let mut frame = Vec::new();
        Packet::Publish(publish).encode(ProtocolVersion::V5, &mut frame);
        let piece = Piece {
            buffer: 0,
            offset: 0,
            len: frame.len() as u32,
            count: 1,
            version: ProtocolVersion::V5,
            frame_qos: Qos::AtLeastOnce,
            frame_retain: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            expires: true,
            via: 0,
            record: 0,
            first: 0,
        };
        let buffer = Buffer { frames: Bytes::from(frame), received_at: Instant::now() };
        Delivery::new(Kind::Acknowledged, vec![buffer], vec![piece], Vec::new())
    }
}
