//! Which rules are in force, and whom they concern. Floor 4, part of [`Router`].
//!
//! # Invariants
//!
//! - A mailbox whose session is connected or parked has the rights of the rules in force, whenever those were replaced: who
//!   begins a connection or parks a session looks at them again when [`Router::replace_rules`] can see it.
//! - Routes that were compiled with other rights are out of date before [`Router::replace_rules`] returns.

use std::sync::Arc;

use crate::access::{Rights, Rules};
use crate::ids::ClientId;
use crate::router::Router;
use crate::router::holder::Holder;
use crate::router::mailbox::{Mail, Mailbox};
use crate::router::registry::Parked;
use crate::session::authentication::UserName;
use crate::session::{Denial, Opening, Tally};

/// Sessions that are looked at before others get a turn.
const SESSIONS_MAX: usize = 256;

impl Router {
    /// What the rules in force give the client of a CONNECT.
    pub fn rights_of(&self, opening: &Opening) -> Rights {
        let user = opening.user().map(UserName::as_str);
        self.authorizer.rights(user, &opening.client_id, &opening.rules)
    }

    /// The session of `mailbox` belongs to the client of a CONNECT from now on.
    pub fn hold(&self, parked: &Parked, opening: &Opening) {
        let mailbox = parked.inbox.mailbox();
        let (user, rules) = (opening.user().cloned(), opening.rules.clone());
        let holder = Holder { user, rules, rights: opening.rights.clone() };
        let has_changed = !mailbox.holder().is_same(&holder);
        mailbox.set_holder(holder);
        // Without a subscription it is in no route.
        if has_changed && parked.session.has_subscribed() {
            self.trie.invalidate();
        }
    }

    /// What the client of `mailbox` may do by the rules in force.
    pub fn refresh_rights(&self, mailbox: &Mailbox) -> Rights {
        let holder = mailbox.holder();
        let Some(client_id) = mailbox.client_id().filter(|_| !self.authorizer.gave(&holder.rights))
        else {
            return holder.rights;
        };
        let rights = self.rights_of_holder(&holder, client_id);
        mailbox.set_holder(Holder { rights: rights.clone(), ..holder });
        self.trie.invalidate();
        rights
    }

    /// Puts `rules` into force. Sessions, connected or not, have their rights by them when this returns, and routes
    /// are compiled anew. Nobody is disconnected, no subscription ends, and what waits in a queue is delivered.
    pub async fn replace_rules(&self, rules: Rules) {
        self.authorizer.replace(Arc::new(rules));
        for (index, client_id) in self.registry.client_ids().into_iter().enumerate() {
            if let Some(mailbox) = self.registry.mailbox_of(&client_id) {
                let rights = self.refresh_rights(&mailbox);
                if mailbox.is_connected() {
                    mailbox.send(Mail::Rights(rights));
                }
            }
            if index % SESSIONS_MAX == SESSIONS_MAX - 1 {
                tokio::task::yield_now().await;
            }
        }
        self.trie.invalidate();
    }

    /// Counts and logs what the rules did not let the client of a session do.
    pub fn settle_denials(&self, mailbox: &Mailbox, tally: &Tally, denials: &mut Vec<Denial>) {
        self.metrics.publishes_denied.add(tally.publishes_denied);
        self.metrics.subscriptions_denied.add(tally.subscriptions_denied);
        if let Some(client_id) = mailbox.client_id() {
            self.report(client_id, mailbox.holder().user.as_ref(), denials);
        }
        denials.clear();
    }

    /// Logs what the rules did not let a client do.
    pub fn report(&self, client: &ClientId, user: Option<&UserName>, denials: &[Denial]) {
        for denial in denials {
            self.denials.report(client, user, denial);
        }
    }

    pub(super) fn rights_of_holder(&self, holder: &Holder, client_id: &ClientId) -> Rights {
        let user = holder.user.as_ref().map(UserName::as_str);
        self.authorizer.rights(user, client_id, &holder.rules)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::codec::Connect;
    use crate::ids::Qos;
    use crate::message::{Grant, TopicHasher};
    use crate::metrics::Metrics;
    use crate::router::keeper::RetainedLimits;
    use crate::router::mailbox::{Home, Inbox, QueueLimits};
    use crate::router::sharing::Strategy;
    use crate::session::{Limits, Request, Retained, Session, negotiate};
    use crate::topic::TopicFilter;

    const LIMITS: Limits = Limits::OF_TESTS;

    fn rules(text: &str) -> Rules {
        let mut rules = Rules::default();
        rules.add_file("acl", text).unwrap();
        rules
    }

    fn router() -> Router {
        let limits = crate::router::Limits {
            queue: QueueLimits { messages_max: 100, bytes_max: 10_000 },
            retained: RetainedLimits { messages_max: 0, bytes_max: 0 },
            sharing: Strategy::RoundRobin,
        };
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        Router::spawn(2, limits, hasher, Arc::new(Metrics::default()), None)
    }

    /// A session of an anonymous client, subscribed to `a/#`, to `b` and, shared, to `c/#`.
    async fn subscribed(router: &Router, id: &str) -> Parked {
        let connect = Connect { clean_start: true, client_id: id, ..Connect::OF_TESTS };
        let opening = negotiate(&connect, &LIMITS, || ClientId::new("spare")).unwrap();
        let session = Box::new(Session::new(LIMITS, &opening, Instant::now()));
        let inbox = router.open_mailbox(Some(&opening.client_id), Home::Memory);
        let (qos, no_local, retain_as_published) = (Qos::AtMostOnce, false, false);
        let grant = Grant { qos, no_local, retain_as_published, identifier: None };
        let filter = |text| (TopicFilter::parse(text).unwrap(), grant, Retained::Skip);
        let filters = vec![filter("a/#"), filter("b"), filter("$share/g/c/#")];
        let mut links = router.links();
        router.request(Request::Subscribe { token: 0, filters }, inbox.mailbox(), &mut links);
        std::future::poll_fn(|cx| links.poll_flush(cx)).await;
        let parked = Parked { session, inbox, expires_at: None, will: None };
        router.hold(&parked, &opening);
        parked
    }

    /// What of `a/x`, `b` and `c/x` gets to `inbox`, and the rights that came meanwhile.
    async fn heard(router: &Router, inbox: &Inbox) -> (usize, Vec<Rights>) {
        let publisher = router.open_mailbox(None, Home::Memory);
        let messages = ["a/x", "b", "c/x"].map(|topic| (topic.to_owned(), "x".to_owned()));
        router.publish_own(&messages, publisher.mailbox()).await;
        router.settle().await;
        let (mut count, mut rights) = (0, Vec::new());
        while let Some(mail) = inbox.try_next() {
            match mail {
                Mail::Delivery(delivery) => count += delivery.messages as usize,
                Mail::Rights(new) => rights.push(new),
                _ => (),
            }
        }
        (count, rights)
    }

    #[tokio::test]
    async fn other_rules_hold_at_once_for_whoever_is_connected_or_away() {
        let router = router();
        let away = subscribed(&router, "away").await;
        let away_mailbox = away.inbox.mailbox().clone();
        assert_eq!(heard(&router, &away.inbox).await.0, 3);
        away_mailbox.set_connected(false);
        let claim = router.registry.claim(&ClientId::new("away"), None).await.unwrap();
        claim.park(away, &router.registry);

        let here = subscribed(&router, "here").await;
        let claim = router.registry.claim(&ClientId::new("here"), None).await.unwrap();
        claim.announce(here.inbox.mailbox());
        router.replace_rules(rules("topic read a/#\ntopic read c/#")).await;
        assert!(!away_mailbox.may_receive("b") && away_mailbox.may_receive("a/x"));
        // The other member of the group is away, and this one gets all of it.
        let (count, rights) = heard(&router, &here.inbox).await;
        assert_eq!((count, rights.len()), (2, 1));
        assert!(!rights[0].may_publish("a/x").is_allowed());

        router.replace_rules(rules("topic read b")).await;
        assert_eq!(heard(&router, &here.inbox).await.0, 1);
        assert!(away_mailbox.may_receive("b") && !away_mailbox.may_receive("a/x"));
        router.replace_rules(Rules::default()).await;
        let (count, rights) = heard(&router, &here.inbox).await;
        assert_eq!(count, 3);
        assert!(rights.last().is_some_and(|rights| !rights.are_restricted()));
        assert!(away_mailbox.may_receive("anything"));
    }

    #[tokio::test]
    async fn session_that_changes_hands_while_rules_are_replaced_has_the_new_ones() {
        let router = router();
        let parked = subscribed(&router, "c").await;
        let mailbox = parked.inbox.mailbox().clone();
        let claim = router.registry.claim(&ClientId::new("c"), None).await.unwrap();
        // Neither announced nor parked: nobody sees it.
        router.replace_rules(rules("topic read b")).await;
        assert!(mailbox.may_receive("a/x"));
        claim.announce(&mailbox);
        assert!(!router.refresh_rights(&mailbox).may_receive("a/x").is_allowed());
        assert_eq!(heard(&router, &parked.inbox).await.0, 1);
    }
}
