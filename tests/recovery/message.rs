//! Messages that say themselves which they are, so that whatever arrives can be traced to who sent it.

use std::fmt;

/// Names a message: its publisher, and the number that this publisher gave it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key {
    pub(crate) publisher: u8,
    pub(crate) number: u32,
}

impl Key {
    /// The payload of this message on `topic`: its name, its length and the topic, then letters that differ from
    /// message to message. The same whenever it is asked for.
    pub(crate) fn payload(self, topic: &str) -> String {
        let len = self.letters(topic);
        let mut payload = format!("{} {} {len} {topic} ", self.publisher, self.number);
        let first = self.number.wrapping_add(u32::from(self.publisher));
        payload.extend((0..len).map(|at| letter(first.wrapping_add(at))));
        payload
    }

    /// The name in the payload of a message that came on `topic`; `None` unless every byte is as it was published.
    pub(crate) fn parse(topic: &str, payload: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        let mut words = text.split(' ');
        let publisher = words.next()?.parse().ok()?;
        let number = words.next()?.parse().ok()?;
        let key = Self { publisher, number };
        (text == key.payload(topic)).then_some(key)
    }

    /// Letters at the end: mostly few, now and then more than fit into a page, or into one read of the broker, which
    /// a will cannot have.
    fn letters(self, topic: &str) -> u32 {
        let number = self.number.wrapping_mul(31).wrapping_add(self.publisher.into());
        match (number.wrapping_mul(0x9E37_79B1) >> 12) % 512 {
            0 if !topic.starts_with("will/") => 70_000,
            0..=8 => 3_000,
            rest => rest % 160,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of publisher {}", self.number, self.publisher)
    }
}

fn letter(number: u32) -> char {
    char::from(b'a' + (number % 26) as u8)
}

#[test]
fn payload_names_its_message_and_shows_every_damage() {
    let key = Key { publisher: 3, number: 1_234 };
    let payload = key.payload("a/b");
    assert_eq!(Key::parse("a/b", payload.as_bytes()), Some(key));
    assert_eq!(Key::parse("a/c", payload.as_bytes()), None);
    for at in 0..payload.len() {
        let mut damaged = payload.clone().into_bytes();
        damaged[at] ^= 1;
        assert_ne!(Key::parse("a/b", &damaged), Some(key));
        assert_eq!(Key::parse("a/b", &payload.as_bytes()[..at]), None);
    }
}
