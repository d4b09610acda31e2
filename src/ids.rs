//! Identifiers and small enumerations that every floor speaks. Floor 0: imports nothing.

use std::fmt::{self, Write};
use std::num::NonZeroU16;
use std::sync::Arc;

/// MQTT packet identifier. Zero cannot be expressed: the wire forbids it [MQTT-2.2.1-3].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PacketId(NonZeroU16);

impl PacketId {
    /// The first identifier that a session uses.
    pub const FIRST: Self = Self(NonZeroU16::MIN);

    /// Parses the wire value; `None` for zero.
    pub fn new(raw: u16) -> Option<Self> {
        NonZeroU16::new(raw).map(Self)
    }

    /// The value as it goes on the wire.
    pub fn get(self) -> u16 {
        self.0.get()
    }

    /// The identifier after this one; 65,535 is followed by 1.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(NonZeroU16::MIN))
    }
}

/// Quality of service: how often a message may arrive [MQTT-4.3].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Qos {
    /// QoS 0.
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl Qos {
    /// Parses the two wire bits; `None` for 3, which the standard forbids [MQTT-3.3.1-4].
    pub fn new(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Which encoding a connection speaks. Only `codec` and reason codes look at it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ProtocolVersion {
    /// MQTT 3.1, `MQIsdp` level 3: read like 3.1.1.
    V31,
    /// MQTT 3.1.1, level 4.
    V311,
    /// MQTT 5.0, level 5.
    V5,
}

/// Names a session for its whole life: the client identifier, and the mount point behind which the client chose it.
/// Behind each mount point identifiers are others, so tenants can neither take nor guess at each other's. Cheap to
/// clone.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ClientId(Arc<str>);

/// Between mount point and identifier; neither has it [MQTT-1.5.4-2].
const MOUNTED: char = '\0';

impl ClientId {
    /// Any UTF-8 string that the codec let through is a client identifier.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The same identifier behind a mount point.
    #[must_use]
    pub fn behind(&self, mount_point: &str) -> Self {
        Self(format!("{mount_point}{MOUNTED}{}", self.as_str()).into())
    }

    /// The identifier as the client sent it.
    pub fn as_str(&self) -> &str {
        self.parts().map_or(&self.0, |(_, text)| text)
    }

    /// The whole, for the log of what must survive; [`ClientId::new`] takes it back.
    pub fn as_record(&self) -> &str {
        &self.0
    }

    /// Whether messages of `topic` are for this client at all: behind a mount point only what is below it.
    pub fn sees(&self, topic: &str) -> bool {
        self.parts().is_none_or(|(mount_point, _)| {
            topic.strip_prefix(mount_point).is_some_and(|rest| !rest.is_empty())
        })
    }

    /// Mount point and identifier, if there is a mount point.
    fn parts(&self) -> Option<(&str, &str)> {
        self.0.split_once(MOUNTED)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((mount_point, _)) = self.parts() {
            // What no identifier could say: a zero byte, escaped like any other.
            write_name(mount_point, f)?;
            write!(f, "{}", MOUNTED.escape_debug())?;
        }
        write_name(self.as_str(), f)
    }
}

/// Characters of a name that a log shows, control characters counted as the several that stand for them.
const NAME_CHARS_MAX: usize = 256;

/// Names come from outside: control characters stay out of logs, and one name does not fill them.
pub(crate) fn write_name(name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut shown = name.escape_debug();
    shown.by_ref().take(NAME_CHARS_MAX).try_for_each(|c| f.write_char(c))?;
    if shown.next().is_some() { f.write_str("...") } else { Ok(()) }
}

/// Names one session object; never used twice, not even by a later run of the broker with the same data.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionId(pub u64);

/// A place in the log: bytes from the beginning of all logging, also those that are gone. It only grows, and no
/// place is used twice.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LogPosition(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_a_log_has_no_control_characters_and_an_end() {
        let shown = |name: &str| ClientId::new(name).to_string();
        assert_eq!(shown("fridge"), "fridge");
        assert_eq!(shown("a\n\u{1b}[2J"), "a\\n\\u{1b}[2J");
        assert_eq!(shown(&"x".repeat(256)), "x".repeat(256));
        assert_eq!(shown(&"x".repeat(65_535)), "x".repeat(256) + "...");
        assert_eq!(shown(&"\u{1}".repeat(65_535)).len(), 259);
        assert_eq!(ClientId::new("fridge").behind("tenant-a/").to_string(), "tenant-a/\\0fridge");
        assert_eq!(shown("tenant-a/\\0fridge"), "tenant-a/\\\\0fridge");
    }

    #[test]
    fn identifiers_behind_different_mount_points_are_different_and_keep_their_text() {
        let plain = ClientId::new("b/c");
        let (one, other) = (plain.behind("a/"), ClientId::new("c").behind("a/b/"));
        assert_ne!(one, plain);
        assert_ne!(one, other);
        assert_ne!(one, ClientId::new("a/b/c"));
        assert_eq!((one.as_str(), other.as_str(), plain.as_str()), ("b/c", "c", "b/c"));
        assert_eq!(ClientId::new(one.as_record()), one);
        assert!(one.sees("a/x") && one.sees("a//"));
        for foreign in ["a", "a/", "ab/x", "b/x", "$SYS/broker/uptime"] {
            assert!(!one.sees(foreign), "{foreign}");
        }
        assert!(plain.sees("$SYS/broker/uptime") && plain.sees("a"));
    }
}
