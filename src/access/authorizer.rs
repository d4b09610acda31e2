//! The rules that are in force, replaceable while the broker runs. Floor 1, owned by `router`.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Rights, Rule, Rules};
use crate::ids::ClientId;

/// See the module comment.
#[derive(Debug, Default)]
pub struct Authorizer {
    rules: ArcSwap<Rules>,
}

impl Authorizer {
    /// What the rules that are in force give a client. `user` is who it has proved to be, `own` are the rules of its token.
    pub fn rights(&self, user: Option<&str>, client: &ClientId, own: &[Rule]) -> Rights {
        Rules::rights(&self.rules.load_full(), user, client, own)
    }

    /// Whether `rights` come from the rules that are in force.
    pub fn gave(&self, rights: &Rights) -> bool {
        rights.are_of(&self.rules.load())
    }

    /// Puts `rules` into force for those who ask from now on.
    pub fn replace(&self, rules: Arc<Rules>) {
        self.rules.store(rules);
    }
}
