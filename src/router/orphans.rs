//! Sessions of users whom nobody knows any more. Floor 4, part of [`Router`].
//!
//! Nobody can claim such a session: it blocks its client identifier, its queue fills for nobody and may stop those who
//! publish to it. So it ends, as if its time had come; but not at once, so that a file of users that was wrong for a
//! while costs nobody his messages.
//!
//! # Invariants
//!
//! - Only what is parked ends: a client that is connected has been known, and is told otherwise by somebody else.
//! - A user who is known again in between begins anew.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::ids::{ClientId, SessionId};
use crate::router::Router;
use crate::session::authentication::UserName;

/// Sessions that are looked at before others get a turn.
const SESSIONS_MAX: usize = 256;
/// Of those that end at the same time so many are in the log by name.
const NAMED_MAX: u64 = 100;

/// Since when the users of which sessions have not been known.
#[derive(Debug, Default)]
pub struct Orphans(HashMap<SessionId, Instant>);

impl Router {
    /// Ends the sessions that were found without a user for `grace` or longer, and have none at `now`: `may_come` says
    /// whether anybody could still prove to be the user.
    pub async fn end_orphans(
        &self,
        orphans: &mut Orphans,
        grace: Duration,
        may_come: impl Fn(&UserName) -> bool,
        now: Instant,
    ) {
        let mut still = HashMap::new();
        let mut ended = 0;
        for (index, client_id) in self.registry.client_ids().into_iter().enumerate() {
            if let Some((session, user)) = self.absent_user(&client_id)
                && !may_come(&user)
            {
                let since = orphans.0.get(&session).copied().unwrap_or(now);
                if now.saturating_duration_since(since) >= grace
                    && self.registry.expire(&client_id, &user, now)
                {
                    ended += 1;
                    if ended <= NAMED_MAX {
                        warn!(client = %client_id, %user, "the session ends: nobody knows its user any more");
                    }
                } else {
                    still.insert(session, since);
                }
            }
            if index % SESSIONS_MAX == SESSIONS_MAX - 1 {
                tokio::task::yield_now().await;
            }
        }
        orphans.0 = still;
        if ended > 0 {
            self.metrics.sessions_orphaned.add(ended);
            warn!(sessions = ended, "sessions have ended whose users nobody knows any more");
        }
    }

    /// Whose session it is, where its client is away and has proved who it is.
    fn absent_user(&self, client_id: &ClientId) -> Option<(SessionId, UserName)> {
        let mailbox = self.registry.mailbox_of(client_id).filter(|it| !it.is_connected())?;
        Some((mailbox.session(), mailbox.holder().user?))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::codec::Connect;
    use crate::ids::ProtocolVersion;
    use crate::message::TopicHasher;
    use crate::metrics::Metrics;
    use crate::router::keeper::RetainedLimits;
    use crate::router::mailbox::{Home, QueueLimits};
    use crate::router::registry::{Due, Parked};
    use crate::router::sharing::Strategy;
    use crate::session::authentication::{Authenticated, Proof};
    use crate::session::{Limits, Session, negotiate};

    const LIMITS: Limits = Limits::OF_TESTS;
    const GRACE: Duration = Duration::from_secs(60);

    fn router() -> Router {
        let limits = crate::router::Limits {
            queue: QueueLimits { messages_max: 100, bytes_max: 10_000 },
            retained: RetainedLimits { messages_max: 0, bytes_max: 0 },
            sharing: Strategy::RoundRobin,
        };
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        Router::spawn(1, limits, hasher, Arc::new(Metrics::default()), None)
    }

    /// The client `id` of `user` has come and gone; its session has no end.
    async fn leave(router: &Router, id: &str, user: Option<&str>) {
        let version = ProtocolVersion::V311;
        let connect = Connect { version, client_id: id, ..Connect::OF_TESTS };
        let mut opening = negotiate(&connect, &LIMITS, || ClientId::new("spare")).unwrap();
        let user = user.map(UserName::new);
        opening.authenticated = user.map(|user| Authenticated::new(user, Proof::Password));
        let id = ClientId::new(id);
        let claim = router.registry.claim(&id, opening.user()).await.unwrap();
        let session = Box::new(Session::new(LIMITS, &opening, Instant::now()));
        let inbox = router.open_mailbox(Some(&id), Home::Memory);
        let parked = Parked { session, inbox, expires_at: None, will: None };
        router.hold(&parked, &opening);
        parked.inbox.mailbox().set_connected(false);
        claim.park(parked, &router.registry);
    }

    /// The clients whose sessions end.
    async fn ended(router: &Router) -> Vec<String> {
        let due = tokio::time::timeout(Duration::ZERO, router.registry.due()).await;
        let id = |due| match due {
            Due::End(parked) => parked.inbox.mailbox().client_id().unwrap().as_str().to_owned(),
            Due::Will(..) => panic!("there is no will"),
        };
        let mut ids: Vec<_> = due.unwrap_or_default().into_iter().map(id).collect();
        ids.sort_unstable();
        ids
    }

    #[tokio::test]
    async fn session_ends_when_nobody_has_known_its_user_for_a_while() {
        let router = router();
        for (id, user) in [("a", Some("anna")), ("b", Some("bob")), ("c", Some("bob")), ("d", None)]
        {
            leave(&router, id, user).await;
        }
        let (anna, everybody) = (|user: &UserName| user.as_str() == "anna", |_: &UserName| true);
        let (mut orphans, start) = (Orphans::default(), Instant::now() - 4 * GRACE);
        router.end_orphans(&mut orphans, GRACE, anna, start).await;
        assert_eq!(ended(&router).await, [""; 0], "perhaps the file is wrong");
        router.end_orphans(&mut orphans, GRACE, everybody, start + GRACE).await;
        // Known in between: it begins anew.
        router.end_orphans(&mut orphans, GRACE, anna, start + GRACE).await;
        router.end_orphans(&mut orphans, GRACE, anna, start + 2 * GRACE - GRACE / 2).await;
        assert_eq!(ended(&router).await, [""; 0]);

        // One of them is connected now.
        let claim =
            router.registry.claim(&ClientId::new("c"), Some(&UserName::new("bob"))).await.unwrap();
        router.end_orphans(&mut orphans, GRACE, anna, start + 2 * GRACE).await;
        assert_eq!(ended(&router).await, ["b"]);
        assert_eq!(router.metrics.sessions_orphaned.value(), 1);
        drop(claim);
        // Each is counted once.
        router.end_orphans(&mut orphans, GRACE, anna, start + 2 * GRACE).await;
        router.end_orphans(&mut orphans, GRACE, anna, start + 3 * GRACE).await;
        assert_eq!(ended(&router).await, ["c"]);
        assert_eq!(router.metrics.sessions_orphaned.value(), 2);
    }
}
