//! Topic names and topic filters: what is valid, and which filter matches which topic. Floor 0:
//! imports nothing. `codec` checks names with it, `subscriptions` and `retained` match with it.
//!
//! Invariant: a [`TopicFilter`] holds a filter that the standard allows and that the trie can
//! afford, so nobody behind the edge checks it a second time.
//!
//! A shared subscription `$share/{name}/{filter}` is a [`TopicFilter`] too. Its text, and with it
//! equality, is the whole; all that concerns levels, wildcards and matching is about `{filter}`.

use std::fmt;
use std::sync::Arc;

pub use mount_point::InvalidMountPoint;
pub use mount_point::MountPoint;
pub use mount_point::Unmountable;

mod mount_point;

/// A wildcard or shared filter with more levels is refused: each of its levels may cost a node in
/// the subscription trie, so one 64 KiB SUBSCRIBE could otherwise buy 32,000 nodes. `$share` and the
/// share name are not counted: they cost none.
pub const FILTER_LEVELS_MAX: usize = 200;

/// The length of a topic is a two byte integer on the wire [MQTT-4.7.3-3].
const TOPIC_BYTES_MAX: usize = u16::MAX as usize;

const SHARE_PREFIX: &str = "$share/";

/// Whether `topic` is one of the broker's own: `$SYS` itself, which `$SYS/#` matches as well [MQTT-4.7.1-2], and what is
/// below it.
pub fn is_system_topic(topic: &str) -> bool {
    topic.strip_prefix("$SYS").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether `text` may be the topic of a message: not empty [MQTT-4.7.3-1], no wildcard
/// [MQTT-3.3.2-2], no U+0000 [MQTT-4.7.3-2], at most 65,535 bytes.
pub fn check_topic_name(text: &str) -> Result<(), InvalidTopic> {
    if text.is_empty() {
        return Err(InvalidTopic::Empty);
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(InvalidTopic::TooLong { bytes: text.len(), bytes_max: TOPIC_BYTES_MAX });
    }
    match text.bytes().position(|byte| matches!(byte, b'+' | b'#' | 0)) {
        None => Ok(()),
        Some(at) if text.as_bytes().get(at) == Some(&0) => Err(InvalidTopic::Nul { at }),
        Some(at) => Err(InvalidTopic::Wildcard { at }),
    }
}

/// Whether the filter matches the topic [MQTT-4.7.1]. `filter` is valid and without `$share/{name}/`;
/// another one gets some answer, never a panic. `a/#` matches `a`, levels may be empty, and a wildcard in first place
/// does not match a topic that begins with `$` [MQTT-4.7.2-1].
pub fn matches(filter: &str, topic: &str) -> bool {
    let (filter, mut topic) = (filter.as_bytes(), topic.as_bytes());
    if topic.first() == Some(&b'$') && matches!(filter.first(), Some(b'+' | b'#')) {
        return false;
    }
    for (at, &expected) in filter.iter().enumerate() {
        match expected {
            b'#' => return true,
            b'+' => {
                let level_len = topic.iter().position(|&byte| byte == b'/');
                topic = topic.split_at(level_len.unwrap_or(topic.len())).1;
            }
            _ => match topic.split_first() {
                Some((&byte, rest)) if byte == expected => topic = rest,
                Some(_) => return false,
                // The topic ends before the filter: `#` stands for the parent level too.
                None => return filter.get(at..) == Some(b"/#"),
            },
        }
    }
    topic.is_empty()
}

/// A valid topic filter. Cheap to clone.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TopicFilter(Arc<str>);

impl TopicFilter {
    /// Checks the rules of the standard [MQTT-4.7.1, MQTT-4.7.3, MQTT-4.8.2] and
    /// [`FILTER_LEVELS_MAX`].
    pub fn parse(text: &str) -> Result<Self, InvalidFilter> {
        if text.is_empty() {
            return Err(InvalidFilter::Empty);
        }
        if text.len() > TOPIC_BYTES_MAX {
            return Err(InvalidFilter::TooLong { bytes: text.len(), bytes_max: TOPIC_BYTES_MAX });
        }
        if let Some(at) = text.bytes().position(|byte| byte == 0) {
            return Err(InvalidFilter::Nul { at });
        }
        check_wildcards(text)?;
        if let Some(shared) = text.strip_prefix(SHARE_PREFIX) {
            check_share(shared)?;
        }
        let filter = Self(text.into());
        let levels = filter.level_count();
        if levels > FILTER_LEVELS_MAX && (filter.has_wildcards() || filter.is_shared()) {
            return Err(InvalidFilter::TooManyLevels { levels, levels_max: FILTER_LEVELS_MAX });
        }
        Ok(filter)
    }

    /// The filter as the client wrote it, including `$share/{name}/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The `{name}` of a shared subscription `$share/{name}/{filter}` [MQTT-4.8.2].
    pub fn share_name(&self) -> Option<&str> {
        self.parts().0
    }

    /// What messages are matched with: the `{filter}` of a shared subscription, else the whole text.
    pub fn unshared(&self) -> &str {
        self.parts().1
    }

    /// Whether this is a shared subscription.
    pub fn is_shared(&self) -> bool {
        self.share_name().is_some()
    }

    /// Whether a `+` or `#` is in it. Without one the filter matches exactly the topic
    /// [`Self::unshared`].
    pub fn has_wildcards(&self) -> bool {
        self.unshared().bytes().any(is_wildcard)
    }

    /// The longest prefix of [`Self::unshared`] of whole levels without a wildcard, with the `/` behind
    /// it; all of it when there is no wildcard. Every matching topic begins with it, but for one: `a/#`
    /// matches `a`, which lacks the `/`.
    pub fn literal_prefix(&self) -> &str {
        // A wildcard fills its level, so what stands before it is whole levels.
        self.unshared().split(['+', '#']).next().unwrap_or_default()
    }

    /// The levels of [`Self::unshared`] in order; at least one, and each may be empty.
    pub fn levels(&self) -> impl Iterator<Item = &str> + Clone {
        self.unshared().split('/')
    }

    /// How many levels [`Self::levels`] yields.
    pub fn level_count(&self) -> usize {
        self.unshared().bytes().filter(|&byte| byte == b'/').count() + 1
    }

    /// Whether a message with this topic belongs to this filter: see [`matches()`].
    pub fn matches(&self, topic: &str) -> bool {
        matches(self.unshared(), topic)
    }

    /// Share name and filter. A valid text with the prefix has both.
    fn parts(&self) -> (Option<&str>, &str) {
        match self.0.strip_prefix(SHARE_PREFIX).and_then(|shared| shared.split_once('/')) {
            Some((name, filter)) => (Some(name), filter),
            None => (None, &self.0),
        }
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Filters come from outside: `escape_debug` keeps control characters out of logs.
        write!(f, "{}", self.0.escape_debug())
    }
}

/// Why a text is no topic name. Positions are in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidTopic {
    /// [MQTT-4.7.3-1]
    #[error("a topic name has at least one character")]
    Empty,
    /// [MQTT-4.7.3-3]
    #[error("a topic name has at most {bytes_max} bytes, not {bytes}")]
    TooLong {
        /// What came.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// [MQTT-3.3.2-2]
    #[error("a topic name has no wildcard, but one is at byte {at}")]
    Wildcard {
        /// Where the first one is.
        at: usize,
    },
    /// [MQTT-4.7.3-2]
    #[error("a topic name has no U+0000, but one is at byte {at}")]
    Nul {
        /// Where the first one is.
        at: usize,
    },
}

/// Why a text is no topic filter. Positions are in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidFilter {
    /// [MQTT-4.7.3-1]
    #[error("a topic filter has at least one character")]
    Empty,
    /// [MQTT-4.7.3-3]
    #[error("a topic filter has at most {bytes_max} bytes, not {bytes}")]
    TooLong {
        /// What came.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// [MQTT-4.7.3-2]
    #[error("a topic filter has no U+0000, but one is at byte {at}")]
    Nul {
        /// Where the first one is.
        at: usize,
    },
    /// [MQTT-4.7.1-2], [MQTT-4.7.1-3]
    #[error("a wildcard fills its whole level, but the one at byte {at} does not")]
    WildcardInsideLevel {
        /// Where the wildcard is.
        at: usize,
    },
    /// [MQTT-4.7.1-2]
    #[error("`#` is the last level of a topic filter, but one is at byte {at}")]
    HashNotLast {
        /// Where the `#` is.
        at: usize,
    },
    /// [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    #[error("a shared subscription is `$share/`, a name without wildcards, `/`, a topic filter")]
    Share,
    /// Our own limit.
    #[error("a wildcard or shared filter has at most {levels_max} levels, not {levels}")]
    TooManyLevels {
        /// What came.
        levels: usize,
        /// [`FILTER_LEVELS_MAX`]
        levels_max: usize,
    },
}

fn is_wildcard(byte: u8) -> bool {
    matches!(byte, b'+' | b'#')
}

/// Each wildcard is alone in its level, and `#` is last.
fn check_wildcards(text: &str) -> Result<(), InvalidFilter> {
    let mut before = b'/';
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        let after = bytes.peek().map(|&(_, after)| after);
        if is_wildcard(byte) {
            if before != b'/' || after.is_some_and(|after| after != b'/') {
                return Err(InvalidFilter::WildcardInsideLevel { at });
            }
            if byte == b'#' && after.is_some() {
                return Err(InvalidFilter::HashNotLast { at });
            }
        }
        before = byte;
    }
    Ok(())
}

/// `shared` is what follows `$share/`: a name, `/`, and a filter that is not empty.
fn check_share(shared: &str) -> Result<(), InvalidFilter> {
    match shared.split_once('/') {
        Some((name, filter))
            if !name.is_empty() && !name.bytes().any(is_wildcard) && !filter.is_empty() =>
        {
            Ok(())
        }
        _ => Err(InvalidFilter::Share),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_standard_match_as_it_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/broker", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/broker", true),
            ("$SYS/#", "$SYS", true),
            ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
            ("+/tennis/#", "sport/tennis", true),
            ("a/$b/+", "a/$b/$c", true),
            ("ACCOUNTS", "Accounts", false),
            ("/finance", "finance", false),
            ("a/b", "a", false),
            ("a", "a/b", false),
            ("a/b", "a/bc", false),
            ("a/#", "ab", false),
            ("/#", "/", true),
            ("//#", "/", true),
            ("+/#", "a", true),
            ("a//b", "a/+/b", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} on {topic}");
        }
    }

    #[test]
    fn a_topic_name_is_refused_with_its_reason() {
        let long = "a".repeat(TOPIC_BYTES_MAX + 1);
        for (text, expected) in [
            ("", InvalidTopic::Empty),
            ("a/+", InvalidTopic::Wildcard { at: 2 }),
            ("a#", InvalidTopic::Wildcard { at: 1 }),
            ("\0", InvalidTopic::Nul { at: 0 }),
            (&long, InvalidTopic::TooLong { bytes: 65_536, bytes_max: 65_535 }),
        ] {
            assert_eq!(check_topic_name(text), Err(expected));
        }
        for text in ["/", " ", "$SYS/x", "\u{feff}", &long[1..]] {
            assert_eq!(check_topic_name(text), Ok(()));
        }
    }

    #[test]
    fn a_filter_is_refused_with_its_reason() {
        let long = "a".repeat(TOPIC_BYTES_MAX + 1);
        for (text, expected) in [
            ("", InvalidFilter::Empty),
            ("a\0b", InvalidFilter::Nul { at: 1 }),
            ("sport/tennis#", InvalidFilter::WildcardInsideLevel { at: 12 }),
            ("sport+", InvalidFilter::WildcardInsideLevel { at: 5 }),
            ("+sport", InvalidFilter::WildcardInsideLevel { at: 0 }),
            ("##", InvalidFilter::WildcardInsideLevel { at: 0 }),
            ("sport/#/ranking", InvalidFilter::HashNotLast { at: 6 }),
            ("#/", InvalidFilter::HashNotLast { at: 0 }),
            ("$share/", InvalidFilter::Share),
            ("$share/group", InvalidFilter::Share),
            ("$share/group/", InvalidFilter::Share),
            ("$share//a", InvalidFilter::Share),
            ("$share/+/a", InvalidFilter::Share),
            (&long, InvalidFilter::TooLong { bytes: 65_536, bytes_max: 65_535 }),
        ] {
            assert_eq!(TopicFilter::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn only_filters_that_cost_nodes_are_limited_in_levels() {
        let deep = "/".repeat(FILTER_LEVELS_MAX);
        let levels = FILTER_LEVELS_MAX + 1;
        let error = InvalidFilter::TooManyLevels { levels, levels_max: FILTER_LEVELS_MAX };
        assert_eq!(filter(&deep).level_count(), levels);
        assert_eq!(TopicFilter::parse(&format!("{deep}+")), Err(error));
        assert_eq!(TopicFilter::parse(&format!("$share/g/{deep}")), Err(error));
        assert_eq!(filter(&format!("{}#", &deep[1..])).level_count(), FILTER_LEVELS_MAX);
        assert_eq!(filter(&format!("$share/g/{}", &deep[1..])).level_count(), FILTER_LEVELS_MAX);
    }

    #[test]
    fn the_literal_prefix_ends_before_the_level_of_the_first_wildcard() {
        for (text, expected) in
            [("a/b/#", "a/b/"), ("a/+/c/#", "a/"), ("+/a", ""), ("#", ""), ("a/b", "a/b")]
        {
            assert_eq!(filter(text).literal_prefix(), expected);
        }
    }

    #[test]
    fn levels_may_be_empty_and_are_all_counted() {
        assert_eq!(filter("/a//+").levels().collect::<Vec<_>>(), ["", "a", "", "+"]);
        assert_eq!(filter("/a//+").level_count(), 4);
    }

    #[test]
    fn a_shared_filter_is_known_by_its_first_level() {
        for (text, share_name, unshared) in [
            ("$share/group/a/+", Some("group"), "a/+"),
            ("$share/g//", Some("g"), "/"),
            ("$share/g/$share/h/a", Some("g"), "$share/h/a"),
            ("$shared/group/a", None, "$shared/group/a"),
            ("$share", None, "$share"),
            ("a/$share/b", None, "a/$share/b"),
        ] {
            let filter = filter(text);
            assert_eq!((filter.share_name(), filter.unshared()), (share_name, unshared), "{text}");
            assert_eq!((filter.is_shared(), filter.as_str()), (share_name.is_some(), text));
        }
    }

    #[test]
    fn a_wildcard_in_first_place_of_a_shared_filter_does_not_match_a_dollar_topic() {
        for (text, topic, expected) in [
            ("$share/g/#", "$SYS/a", false),
            ("$share/g/+/a", "$SYS/a", false),
            ("$share/g/$SYS/#", "$SYS/a", true),
            ("$share/g/#", "$share/g/a", false),
            ("$share/g/a", "$share/g/a", false),
            ("$share/g/a", "a", true),
        ] {
            assert_eq!(filter(text).matches(topic), expected, "{text} on {topic}");
        }
    }

    #[test]
    fn a_filter_in_a_log_line_has_no_control_characters() {
        assert_eq!(filter("a\n/#").to_string(), "a\\n/#");
    }

    #[test]
    fn a_topic_of_many_levels_is_matched_without_recursion() {
        let topic = "a/".repeat(30_000);
        assert!(filter("+/#").matches(&topic));
        assert!(!filter("+/+").matches(&topic));
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_definition_level_by_level(
            filter in "(\\$?[ab+]?/){0,4}(#|[ab+]|)", topic in "\\$?[ab]?(/\\$?[ab]?){0,4}",
        ) {
            if let (Ok(filter), Ok(())) = (TopicFilter::parse(&filter), check_topic_name(&topic)) {
                let levels: Vec<_> = topic.split('/').collect();
                let dollar = topic.starts_with('$') && filter.literal_prefix().is_empty()
                    && filter.has_wildcards();
                let defined = !dollar && defined_match(&filter.levels().collect::<Vec<_>>(), &levels);
                prop_assert_eq!(filter.matches(&topic), defined, "{} on {}", filter, topic);
            }
        }

        #[test]
        fn a_shared_filter_means_what_the_filter_in_it_means(
            text in "(\\$?[ab+]?/){0,4}(#|[ab+]|)", name in "[a-c$]{1,2}",
            topic in "\\$?[ab]?(/\\$?[ab]?){0,4}",
        ) {
            let shared = TopicFilter::parse(&format!("$share/{name}/{text}"));
            prop_assert_eq!(shared.is_ok(), TopicFilter::parse(&text).is_ok());
            if let (Ok(shared), Ok(plain)) = (shared, TopicFilter::parse(&text)) {
                prop_assert_eq!((shared.share_name(), shared.unshared()), (Some(&*name), &*text));
                prop_assert_eq!(shared.matches(&topic), plain.matches(&topic));
                prop_assert_eq!(shared.has_wildcards(), plain.has_wildcards());
                prop_assert_eq!(shared.literal_prefix(), plain.literal_prefix());
                prop_assert_eq!(shared.level_count(), plain.level_count());
                prop_assert!(shared.levels().eq(plain.levels()));
            }
        }

        #[test]
        fn arbitrary_text_never_panics(filter in any::<String>(), topic in any::<String>()) {
            let _ = (check_topic_name(&topic), TopicFilter::parse(&filter));
            matches(&filter, &topic);
            if let Ok(filter) = TopicFilter::parse(&format!("{SHARE_PREFIX}{filter}")) {
                prop_assert!(filter.is_shared());
                prop_assert!(!filter.unshared().is_empty());
            }
        }

        #[test]
        fn every_valid_topic_name_is_a_filter_that_matches_itself(topic in "[a-z/$é]{1,40}") {
            prop_assume!(!topic.starts_with(SHARE_PREFIX));
            prop_assert_eq!(check_topic_name(&topic), Ok(()));
            prop_assert!(filter(&topic).matches(&topic));
            prop_assert!(!filter(&topic).has_wildcards());
        }
    }

    /// The standard's words as a recursion over levels.
    fn defined_match(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) | ([], []) => true,
            ([f, filter @ ..], [t, topic @ ..]) => {
                (f == t || *f == "+") && defined_match(filter, topic)
            }
            _ => false,
        }
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text).unwrap()
    }
}
