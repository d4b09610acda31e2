//! A topic prefix behind which clients are among themselves. Floor 0, part of `topic`.
//!
//! Clients see the topics below it without it, and no others. Their names get it on the way in and lose it on the way
//! out; everything in between knows whole names only.

use std::sync::Arc;

use super::{InvalidFilter, SHARE_PREFIX, TOPIC_BYTES_MAX, TopicFilter, check_topic_name};

/// Longest mount point: each topic behind it is that much longer.
const BYTES_MAX: usize = 256;

/// See the module comment. Cheap to clone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MountPoint(Arc<str>);

/// Why a text is no mount point.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidMountPoint {
    /// The name of a level would be glued onto it.
    #[error(
        "`mount_point` must end with `/`, such as `tenant-a/`: topics are put behind it as they are"
    )]
    NoSlash,
    /// It is among the topics of the broker, or looks like it.
    #[error("`mount_point` must not begin with `$`: such topics are the broker's own")]
    Dollar,
    /// No topic begins like this.
    #[error("`mount_point` must not hold `+`, `#` or U+0000: it is the beginning of topic names")]
    NoTopic,
    /// Over the limit.
    #[error("`mount_point` has at most {BYTES_MAX} bytes")]
    TooLong,
}

/// Why a topic of a client has no whole name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unmountable {
    /// It begins with `$`: there are no such topics behind a mount point.
    Dollar,
    /// Topics have at most 65,535 bytes.
    TooLong,
}

impl MountPoint {
    /// Checks the rules above.
    pub fn parse(text: &str) -> Result<Self, InvalidMountPoint> {
        if text.len() > BYTES_MAX {
            return Err(InvalidMountPoint::TooLong);
        }
        if text.starts_with('$') {
            return Err(InvalidMountPoint::Dollar);
        }
        if !text.ends_with('/') {
            return Err(InvalidMountPoint::NoSlash);
        }
        check_topic_name(text).map_err(|_| InvalidMountPoint::NoTopic)?;
        Ok(Self(text.into()))
    }

    /// As it stands before each topic.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The whole name of a client's `topic`, which is a valid topic name.
    pub fn whole_topic(&self, topic: &str) -> Result<String, Unmountable> {
        if topic.starts_with('$') {
            return Err(Unmountable::Dollar);
        }
        if self.0.len() + topic.len() > TOPIC_BYTES_MAX {
            return Err(Unmountable::TooLong);
        }
        Ok([&self.0, topic].concat())
    }

    /// The whole of a client's `filter`: behind `$share/{name}/`, where it has that. `None` for a filter of topics that
    /// begin with `$`.
    pub fn whole_filter(&self, filter: &TopicFilter) -> Option<Result<TopicFilter, InvalidFilter>> {
        if filter.unshared().starts_with('$') {
            return None;
        }
        let whole = match filter.share_name() {
            Some(name) => [SHARE_PREFIX, name, "/", &self.0, filter.unshared()].concat(),
            None => [&self.0, filter.unshared()].concat(),
        };
        Some(TopicFilter::parse(&whole))
    }

    /// The client's name of a whole topic; `None` for one that is not below the mount point.
    pub fn strip<'t>(&self, topic: &'t [u8]) -> Option<&'t [u8]> {
        topic.strip_prefix(self.0.as_bytes()).filter(|rest| !rest.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount_point() -> MountPoint {
        MountPoint::parse("tenant-a/").unwrap()
    }

    #[test]
    fn mount_point_is_whole_levels_of_a_topic() {
        let longest = format!("{}/", "x".repeat(BYTES_MAX - 1));
        for text in ["tenant-a/", "/", "a/b/", "é /", &longest] {
            assert_eq!(MountPoint::parse(text).unwrap().as_str(), text);
        }
        for (text, error) in [
            ("", InvalidMountPoint::NoSlash),
            ("tenant", InvalidMountPoint::NoSlash),
            ("$SYS/", InvalidMountPoint::Dollar),
            ("$share/g/", InvalidMountPoint::Dollar),
            ("a/+/", InvalidMountPoint::NoTopic),
            ("a#/", InvalidMountPoint::NoTopic),
            ("a\0/", InvalidMountPoint::NoTopic),
            (&format!("x{longest}"), InvalidMountPoint::TooLong),
        ] {
            assert_eq!(MountPoint::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn topic_gets_it_and_loses_it() {
        let mount_point = mount_point();
        for topic in ["a", "/", "a/b", "tenant-a/x", "é", "a$"] {
            let whole = mount_point.whole_topic(topic).unwrap();
            assert_eq!(whole, format!("tenant-a/{topic}"));
            assert_eq!(mount_point.strip(whole.as_bytes()), Some(topic.as_bytes()));
        }
        for topic in ["tenant-a", "tenant-a/", "tenant-ab/x", "tenant-b/x", "$SYS/x", ""] {
            assert_eq!(mount_point.strip(topic.as_bytes()), None, "{topic}");
        }
        for topic in ["$SYS/x", "$", "$x"] {
            assert_eq!(mount_point.whole_topic(topic), Err(Unmountable::Dollar));
        }
        let room = TOPIC_BYTES_MAX - "tenant-a/".len();
        assert_eq!(mount_point.whole_topic(&"x".repeat(room)).unwrap().len(), TOPIC_BYTES_MAX);
        let over = "x".repeat(room + 1);
        assert_eq!(mount_point.whole_topic(&over), Err(Unmountable::TooLong));
    }

    #[test]
    fn filter_gets_it_behind_the_share_name() {
        let whole = |text: &str| {
            let filter = TopicFilter::parse(text).unwrap();
            Some(mount_point().whole_filter(&filter)?.map(|whole| whole.as_str().to_owned()))
        };
        for (filter, expected) in [
            ("#", "tenant-a/#"),
            ("+/x", "tenant-a/+/x"),
            ("a/b", "tenant-a/a/b"),
            ("/", "tenant-a//"),
            ("$share/g/#", "$share/g/tenant-a/#"),
            ("$share/g//x", "$share/g/tenant-a//x"),
        ] {
            assert_eq!(whole(filter), Some(Ok(expected.to_owned())), "{filter}");
        }
        for filter in ["$SYS/#", "$", "$share", "$share/g/$SYS/#", "$share/g/$x"] {
            assert_eq!(whole(filter), None, "{filter}");
        }
        let long = whole(&"x".repeat(TOPIC_BYTES_MAX)).unwrap();
        assert!(matches!(long, Err(InvalidFilter::TooLong { .. })));
    }
}
