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
use crate::session::{Denial, Opening};

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
