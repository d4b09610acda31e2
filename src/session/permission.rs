//! What the client may publish, remembered for the topics that it has used last. Floor 2, owned by `Session`.
//!
//! # Limits
//!
//! At most [`TOPICS_MAX`] topics of [`TOPIC_BYTES_MAX`] bytes, so 16 KiB for a client that is restricted, and nothing for others.

use std::collections::HashMap;

use crate::access::Rights;

/// Topics that are remembered; then it begins anew.
const TOPICS_MAX: usize = 64;
/// Longer ones are decided each time.
const TOPIC_BYTES_MAX: usize = 256;

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Permission {
    rights: Rights,
    /// Whether it may publish to these.
    #[expect(clippy::box_collection, reason = "8 bytes in each of many sessions instead of 48")]
    known: Option<Box<HashMap<Box<str>, bool>>>,
}

impl Permission {
    /// The rights that hold from now on.
    pub(super) fn new(rights: Rights) -> Self {
        Self { rights, known: None }
    }

    /// What else the client may do.
    pub(super) fn rights(&self) -> &Rights {
        &self.rights
    }

    /// Whether the client may publish to `topic`.
    #[inline(always)]
    pub(super) fn may_publish(&mut self, topic: &str) -> bool {
        !self.rights.are_restricted() || self.is_allowed(topic)
    }

    /// The same for a client with rules.
    #[inline(never)]
    fn is_allowed(&mut self, topic: &str) -> bool {
        if topic.len() > TOPIC_BYTES_MAX {
            return self.rights.may_publish(topic).is_allowed();
        }
        let known = self.known.get_or_insert_default();
        if let Some(is_allowed) = known.get(topic) {
            return *is_allowed;
        }
        let is_allowed = self.rights.may_publish(topic).is_allowed();
        if known.len() >= TOPICS_MAX {
            known.clear();
        }
        known.insert(topic.into(), is_allowed);
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::access::Rules;
    use crate::ids::ClientId;

    #[test]
    fn topics_are_remembered_up_to_a_limit_and_judged_alike() {
        let mut rules = Rules::default();
        rules.add_file("acl", "topic write a/+").unwrap();
        let mut permission =
            Permission::new(Arc::new(rules).rights(None, &ClientId::new("c"), &[]));
        for _ in 0..2 {
            for number in 0..10 * TOPICS_MAX {
                assert!(permission.may_publish(&format!("a/{number}")));
                assert!(!permission.may_publish(&format!("b/{number}")));
                assert!(permission.known.as_ref().unwrap().len() <= TOPICS_MAX);
            }
        }
        assert!(permission.may_publish(&format!("a/{}", "x".repeat(TOPIC_BYTES_MAX))));
        assert!(Permission::default().may_publish("b") && Permission::default().known.is_none());
    }
}
