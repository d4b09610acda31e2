//! Whose session a mailbox belongs to, and what may come into it. Floor 4, owned by `mailbox`.

use std::sync::Arc;

use crate::access::{Rights, Rule};
use crate::session::authentication::UserName;

/// See the module comment. Of an anonymous client without rules everything is empty.
#[derive(Clone, Debug, Default)]
pub struct Holder {
    /// Who the client has proved to be; `None` for an anonymous one, or for the broker.
    pub user: Option<UserName>,
    /// What its token says about what it may do.
    pub rules: Arc<[Rule]>,
    /// What it may do, by the rules that were in force when this was set.
    pub rights: Rights,
}

impl Holder {
    /// Whether both are the same user with the same rules of a token.
    pub fn is_same(&self, other: &Self) -> bool {
        self.user == other.user && self.rules == other.rules
    }
}
