//! From the settings file as written to the settings of each owner, or the rule that a value breaks. Floor 6,
//! called by `main`.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use crate::auth::Methods;
use crate::config::listeners::InvalidListener;
use crate::config::{Config, Durability, DurabilityOverride, File, InvalidConfig, InvalidValue};
use crate::net::accept::{Listen, Settings};
use crate::router::keeper::RetainedLimits;
use crate::store::handle::Override;
use crate::topic::TopicFilter;
use crate::{net, router};

/// Most router shards.
const SHARDS_MAX: u16 = 1024;

impl File {
    /// Checks the values. `files_max` is how many files the process may open.
    pub fn check(self, files_max: usize) -> Result<Config, InvalidConfig> {
        let not_zero = |key, value: u64| match value {
            0 => Err(InvalidValue { key, rule: "must be at least 1" }),
            _ => Ok(()),
        };
        not_zero("sessions_max", self.sessions_max)?;
        if self.shards > SHARDS_MAX {
            return Err(InvalidValue { key: "shards", rule: "must be at most 1024" }.into());
        }
        if !(64 * 1024..=1 << 32).contains(&self.log_segment_bytes) {
            let rule = "must be from 65536 to 4294967296";
            return Err(InvalidValue { key: "log_segment_bytes", rule }.into());
        }
        let limits = self.limits()?;
        not_zero("sys_interval_s", self.sys_interval_s.into())?;
        let connection = self.connection_limits()?;
        self.authentication.check()?;
        let listeners = self.all_listeners().into_iter().map(|it| it.check(&self));
        let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
        check_addresses(&listeners)?;
        let handshakes = listeners.iter().map(|it| it.limits.handshake_max);
        let handshake_max = handshakes.min().unwrap_or(connection.handshake_max);
        let users = self.scram_users.iter();
        let users = users.map(|(name, credential)| (name.clone(), credential.expose().into()));
        let authentication = Methods::load(&self.authentication.settings(users.collect()))?;
        let level = self.durability.level();
        let mut overrides = Vec::new();
        for DurabilityOverride { filter, level: own_level } in &self.durability_overrides {
            let parsed = TopicFilter::parse(filter).ok().filter(|filter| !filter.is_shared());
            let Some(filter) = parsed else {
                let rule = "has a filter that is none: see section 4.7 of the standard";
                return Err(InvalidValue { key: "durability_overrides", rule }.into());
            };
            overrides.push(Override { filter, level: own_level.level() });
        }
        if level.is_none() && !overrides.is_empty() {
            let rule = "means nothing with durability `none`: set that to `os` or `always`";
            return Err(InvalidValue { key: "durability_overrides", rule }.into());
        }
        let durability = level.map(|level| Durability {
            dir: self.data_dir,
            level,
            log_segment_bytes: self.log_segment_bytes,
            overrides,
        });
        if durability.as_ref().is_some_and(|it| it.dir.as_os_str().is_empty()) {
            return Err(InvalidConfig::NoDataDir);
        }
        let rules = self.authorisation.load()?;
        // Files that are not connections: standard streams, listener, epoll, a margin.
        let connections_possible = files_max.saturating_sub(32).max(1);
        Ok(Config {
            listeners,
            shards: match self.shards {
                0 => available_parallelism().map_or(1, usize::from),
                shards => shards.into(),
            },
            durability,
            net: net::Totals {
                connections_max: match self.connections_max {
                    0 => connections_possible,
                    max => max.min(connections_possible),
                },
                sessions_max: self.sessions_max,
                removed_user_session_max: self.authentication.removed_user_session_max(),
            },
            session: connection.session,
            authentication: Arc::new(authentication),
            authentication_limits: self.authentication.limits(handshake_max),
            router: router::Limits {
                queue: limits.queues.each,
                retained: RetainedLimits {
                    messages_max: self.retained_messages_max,
                    bytes_max: self.retained_bytes_max,
                },
                sharing: self.shared_strategy,
            },
            rules,
            limits,
            sys_interval: Duration::from_secs(self.sys_interval_s.into()),
        })
    }
}

/// A start would find the second of two with one address in use. Port 0 is another one each time.
fn check_addresses(listeners: &[Settings]) -> Result<(), InvalidListener> {
    for (number, Settings { listen, .. }) in listeners.iter().enumerate() {
        let is_any = matches!(listen, Listen::Tcp(address) if address.port() == 0);
        let mut earlier = listeners.iter().take(number);
        if !is_any && earlier.any(|it| it.listen == *listen) {
            return Err(InvalidListener::SameAddress(listen.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::auth;
    use crate::config::{DurabilityLevel, Listener, Secret};
    use crate::store::log::Level;

    use crate::session::authentication::Anonymous;

    use super::*;

    #[test]
    fn zero_is_refused_by_key() {
        let file = File { inflight_max: 0, ..File::default() };
        let error = file.check(1024).unwrap_err();
        assert_eq!(error.to_string(), "setting `inflight_max` must be at least 1");
    }

    #[test]
    fn qos_and_response_topics_that_cannot_be_are_refused_by_key() {
        let error = File { qos_max: 3, ..in_memory() }.check(1024).unwrap_err();
        assert_eq!(error.to_string(), "setting `qos_max` must be 0, 1 or 2");
        for prefix in ["a/#", "+", "$SYS/", "a\0"] {
            let file = File { response_topic_prefix: prefix.into(), ..in_memory() };
            let error = file.check(1024).unwrap_err();
            assert!(error.to_string().contains("`response_topic_prefix`"), "{prefix}: {error}");
        }
        let file = File { response_topic_prefix: "answers/".into(), ..in_memory() };
        assert_eq!(
            &*file.check(1024).unwrap().listeners[0].limits.response_topic_prefix,
            "answers/"
        );
    }

    #[test]
    fn listening_beyond_loopback_needs_a_word_of_consent() {
        let open = File { listen: ([0, 0, 0, 0], 1883).into(), ..in_memory() };
        let error = open.clone().check(1024).unwrap_err();
        assert!(error.to_string().contains("--allow-anonymous"), "{error}");
        assert!(error.to_string().contains("[scram_users]"), "{error}");
        assert!(File { allow_anonymous: Some(true), ..open.clone() }.check(1024).is_ok());
        assert!(File { scram_users: alice(), ..open }.check(1024).is_ok());
    }

    #[test]
    fn two_listeners_with_one_address_are_refused_and_free_ports_are_not() {
        let check = |addresses: [&str; 2]| {
            let listeners = addresses.map(Listener::plain).to_vec();
            File { listeners, ..in_memory() }.check(1024).map(drop).map_err(|it| it.to_string())
        };
        let error = check(["127.0.0.1:1883"; 2]).unwrap_err();
        assert!(error.starts_with("127.0.0.1:1883 is the address of two listeners"), "{error}");
        assert!(check(["unix:mqtt.sock"; 2]).is_err());
        assert!(check(["127.0.0.1:0"; 2]).is_ok());
        assert!(check(["127.0.0.1:1883", "127.0.0.2:1883"]).is_ok());
    }

    #[test]
    fn anonymous_clients_are_refused_where_there_are_users_and_no_consent() {
        let anonymous = |file: File| file.check(1024).unwrap().listeners[0].anonymous;
        let users = File { scram_users: alice(), ..in_memory() };
        assert_eq!(anonymous(in_memory()), Anonymous::Allowed);
        assert_eq!(anonymous(users.clone()), Anonymous::Refused);
        assert_eq!(anonymous(File { allow_anonymous: Some(true), ..users }), Anonymous::Allowed);
    }

    #[test]
    fn user_whose_credential_cannot_be_read_is_refused_by_name() {
        let file: File = toml::from_str("[scram_users]\nbob = \"hunter2\"").unwrap();
        let error = file.check(1024).unwrap_err().to_string();
        assert!(error.starts_with("setting `scram_users`: the value of `bob` is not"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn data_without_a_place_are_refused_with_the_way_out() {
        let error = File::default().check(1024).unwrap_err().to_string();
        assert!(error.contains("--data-dir") && error.contains("--durability none"), "{error}");
        let file = File { data_dir: "data".into(), ..File::default() };
        let durability = file.check(1024).unwrap().durability.unwrap();
        assert_eq!((durability.dir, durability.level), ("data".into(), Level::Always));
        assert!(in_memory().check(1024).unwrap().durability.is_none());
    }

    #[test]
    fn levels_of_topics_are_read_in_their_order_and_wrong_ones_are_refused_by_key() {
        let text = "data_dir = \"data\"\n[[durability_overrides]]\nfilter = \"telemetry/#\"\n\
                    level = \"none\"\n[[durability_overrides]]\nfilter = \"a/+\"\nlevel = \"os\"";
        let file: File = toml::from_str(text).unwrap();
        let overrides = file.clone().check(1024).unwrap().durability.unwrap().overrides;
        let read = overrides.iter().map(|it| (it.filter.as_str(), it.level));
        assert_eq!(read.collect::<Vec<_>>(), [("telemetry/#", None), ("a/+", Some(Level::Os))]);
        let printed = toml::to_string(&file).unwrap();
        let again: File = toml::from_str(&printed).unwrap();
        assert_eq!(toml::to_string(&again).unwrap(), printed);

        for filter in ["a/#/b", "", "$share/g/a"] {
            let mut wrong = file.clone();
            wrong.durability_overrides[0].filter = filter.to_owned();
            let error = wrong.check(1024).unwrap_err().to_string();
            assert!(error.contains("`durability_overrides`"), "{filter}: {error}");
        }
        let error = File { durability: DurabilityLevel::None, ..file }.check(1024).unwrap_err();
        assert!(error.to_string().contains("`durability_overrides`"), "{error}");
    }

    /// Nothing outlives the process, so no place is needed.
    fn in_memory() -> File {
        File { durability: DurabilityLevel::None, ..File::default() }
    }

    fn alice() -> BTreeMap<String, Secret> {
        let credential = auth::Credential::new("secret", auth::ITERATIONS_MIN).unwrap();
        BTreeMap::from([("alice".to_owned(), credential.to_string().into())])
    }
}
