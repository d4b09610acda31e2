//! What differs between two settings files, and what of it a broker can do while it runs. Floor 6, called by
//! `main`.

use toml::{Table, Value};

use crate::config::File;
use crate::config::schema::{Schema, join};

/// Keys and sections that are taken over on SIGHUP; all others need a restart.
const RELOADED: &[&str] = &[
    "listen",
    "listeners",
    "allow_anonymous",
    "scram_users",
    "authentication",
    "authorisation",
    "connections_max",
    "handshake_s_max",
    "connect_bytes_max",
    "packet_bytes_max",
    "inflight_max",
    "receive_max",
    "subscriptions_max",
    "subscription_bytes_max",
    "sessions_max",
    "keep_alive_s_max",
    "session_expiry_s_max",
    "topic_alias_max",
    "qos_max",
    "retain_available",
    "wildcard_subscriptions",
    "shared_subscriptions",
    "subscription_identifiers",
    "response_topic_prefix",
    "check_payload_format",
    "queue_messages_max",
    "queue_bytes_max",
    "queue_policy",
    "queues_messages_max",
    "queues_bytes_max",
    "publish_rate_max",
    "publish_bytes_rate_max",
    "disk_bytes_max",
    "memory_bytes_max",
    "connections_per_address_max",
    "accept_rate_per_address_max",
    "accept_rate_max",
];

/// What a new settings file changes. Keys are named with their section in dots.
#[derive(Clone, Debug)]
pub struct Change {
    /// What counts from now on.
    pub taken_over: Vec<String>,
    /// What counts when the broker is started again.
    pub needs_restart: Vec<String>,
    /// The new settings, and the old ones for what needs a restart.
    pub in_force: File,
}

impl Change {
    /// From `old`, which is in force, to `new`.
    pub fn between(old: &File, new: &File) -> Result<Self, toml::ser::Error> {
        let (before, mut after) = (Table::try_from(old)?, Table::try_from(new)?);
        let mut names = Vec::new();
        differing(&Schema::of::<File>(), &before, &after, "", &mut names);
        let (taken_over, needs_restart): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| is_reloaded(name));
        for name in &needs_restart {
            restore(name, &before, &mut after);
        }
        // What was read twice can be read together, too.
        let in_force = after.try_into().unwrap_or_else(|_| new.clone());
        Ok(Self { taken_over, needs_restart, in_force })
    }
}

/// Whether the key is taken over on SIGHUP.
pub fn is_reloaded(key: &str) -> bool {
    let is_part = |of: &str| key.strip_prefix(of).is_some_and(|rest| rest.starts_with('.'));
    RELOADED.iter().any(|name| *name == key || is_part(name))
}

fn differing(schema: &Schema, before: &Table, after: &Table, path: &str, names: &mut Vec<String>) {
    for (key, schema) in schema.keys() {
        match (before.get(*key), after.get(*key), schema) {
            (Some(Value::Table(before)), Some(Value::Table(after)), Schema::Table(_)) => {
                differing(schema, before, after, &join(path, key), names);
            }
            (before, after, _) if before != after => names.push(join(path, key)),
            _ => (),
        }
    }
}

/// Gives the key `name` of `after` its value in `before`.
fn restore(name: &str, before: &Table, after: &mut Table) {
    let (key, rest) = name.split_once('.').map_or((name, None), |(key, rest)| (key, Some(rest)));
    match (rest, before.get(key), after.get_mut(key)) {
        (Some(rest), Some(Value::Table(before)), Some(Value::Table(after))) => {
            restore(rest, before, after);
        }
        (_, Some(value), _) => {
            after.insert(key.to_owned(), value.clone());
        }
        (_, None, _) => {
            after.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_named_by_key_and_told_apart_by_what_they_need() {
        let old = File::default();
        let users = [("alice".to_owned(), "x".to_owned().into())];
        let new = File { shards: 3, inflight_max: 7, scram_users: users.into(), ..old.clone() };
        let change = Change::between(&old, &new).unwrap();
        assert_eq!(change.taken_over, ["inflight_max", "scram_users"]);
        assert_eq!(change.needs_restart, ["shards"]);
        assert_eq!((change.in_force.shards, change.in_force.inflight_max), (0, 7));

        // It still needs the restart the next time.
        let again = Change::between(&change.in_force, &new).unwrap();
        assert_eq!((again.taken_over.len(), again.needs_restart), (0, vec!["shards".to_owned()]));
    }

    #[test]
    fn every_key_that_is_taken_over_exists() {
        let schema = Schema::of::<File>();
        for name in RELOADED {
            let found = name.split('.').try_fold(&schema, |schema, key| schema.below(key));
            assert!(found.is_some(), "{name}");
        }
    }

    #[test]
    fn sections_are_taken_over_as_a_whole() {
        assert!(is_reloaded("scram_users.alice") && is_reloaded("scram_users"));
        assert!(!is_reloaded("shards") && !is_reloaded("scram_users_max"));
    }
}
