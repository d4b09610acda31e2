//! Topic names, topic filters and the trie, against the standard's words written down naively.
//!
//! The bytes make texts of a small alphabet and a list of changes to a [`Trie`]. What is valid, what
//! matches and who is found must agree with definitions that split texts into levels and loop.

use std::collections::{BTreeMap, BTreeSet};

use mailboxqtt::ids::SessionId;
use mailboxqtt::subscriptions::Trie;
use mailboxqtt::topic::{FILTER_LEVELS_MAX, TopicFilter, check_topic_name, matches};

use super::choices::Choices;

/// Few, so that filters share sessions and levels. A deep one meets the limit of levels, a long one
/// that of bytes.
const PARTS: [&str; 15] =
    ["a", "b", "/", "/", "/", "+", "+", "#", "$", "é", "$share/g/", "\0", "/+/", "$share", "word/"];
const SESSIONS: u64 = 24;

/// See the module comment.
pub fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut model = Model::default();
    while !choices.is_exhausted() {
        match choices.below(8) {
            0..3 => model.insert(&mut choices),
            3 => model.remove_any(&mut choices),
            4 => model.remove_present(&mut choices),
            5 => check_texts(&text(&mut choices), &text(&mut choices)),
            _ => model.look_up(&text(&mut choices)),
        }
    }
    model.remove_all();
}

/// Both texts as a filter and as a topic, and a filter with what it could match.
fn check_texts(one: &str, other: &str) {
    for text in [one, other] {
        assert_eq!(check_topic_name(text).is_ok(), is_topic_name(text), "{text:?}");
        let parsed = TopicFilter::parse(text);
        assert_eq!(parsed.is_ok(), is_filter(text), "{text:?}");
        let Ok(filter) = parsed else { continue };
        check_parts(&filter, text);
        let filled = unshared(text).replace('+', "b").replace('#', "a/b");
        let parent = unshared(text).replace('+', "").replace("/#", "");
        for topic in [one, other, &filled, &parent, &format!("${filled}")] {
            if is_topic_name(topic) {
                let expected = naive_match(unshared(text), topic);
                assert_eq!(filter.matches(topic), expected, "{text:?} on {topic:?}");
            }
        }
    }
    // An invalid filter gets some answer.
    let _ = (matches(one, other), matches(other, one));
}

fn check_parts(filter: &TopicFilter, text: &str) {
    assert_eq!(filter.as_str(), text);
    assert!(!filter.to_string().contains(char::is_control));
    assert_eq!(filter.share_name(), share_name(text));
    assert_eq!(filter.is_shared(), share_name(text).is_some());
    let text = unshared(text);
    assert_eq!(filter.unshared(), text);
    assert_eq!(filter.levels().count(), filter.level_count());
    assert!(filter.levels().eq(text.split('/')));
    let has_wildcards = text.split('/').any(|level| level == "+" || level == "#");
    assert_eq!(filter.has_wildcards(), has_wildcards);
    let prefix = filter.literal_prefix();
    assert!(text.starts_with(prefix) && !prefix.contains(['+', '#']));
    assert!(if has_wildcards {
        prefix.is_empty() || prefix.ends_with('/')
    } else {
        prefix == text
    });
}

/// The trie, and the same subscriptions as a list.
#[derive(Default)]
struct Model {
    trie: Trie<u8>,
    present: BTreeMap<(String, u64), u8>,
    generation: u64,
}

impl Model {
    fn insert(&mut self, choices: &mut Choices<'_>) {
        let (text, session, value) = (text(choices), session(choices), choices.byte());
        let Ok(filter) = TopicFilter::parse(&text) else { return };
        let earlier = self.trie.insert(&filter, SessionId(session), value);
        assert_eq!(earlier, self.present.insert((text, session), value));
        self.generation += 1;
        self.check();
    }

    fn remove_any(&mut self, choices: &mut Choices<'_>) {
        let (text, session) = (text(choices), session(choices));
        self.remove(&text, session);
    }

    fn remove_present(&mut self, choices: &mut Choices<'_>) {
        let at = choices.below(self.present.len());
        let Some((text, session)) = self.present.keys().nth(at).cloned() else { return };
        self.remove(&text, session);
    }

    fn remove(&mut self, text: &str, session: u64) {
        let Ok(filter) = TopicFilter::parse(text) else { return };
        let value = self.trie.remove(&filter, SessionId(session));
        assert_eq!(value, self.present.remove(&(text.to_owned(), session)));
        self.generation += u64::from(value.is_some());
        self.check();
    }

    fn look_up(&self, topic: &str) {
        if !is_topic_name(topic) {
            return;
        }
        let mut subscribers = Vec::new();
        let mut groups: BTreeMap<&str, BTreeSet<(u64, u8)>> = BTreeMap::new();
        for ((filter, session), value) in &self.present {
            if !naive_match(unshared(filter), topic) {
                continue;
            }
            match share_name(filter) {
                None => subscribers.push((SessionId(*session), *value)),
                Some(_) => drop(groups.entry(filter).or_default().insert((*session, *value))),
            }
        }
        let found = self.trie.matches(topic);
        assert_eq!(
            sorted(&found.subscribers),
            sorted(&subscribers),
            "{topic:?}: {:?}",
            self.present
        );
        assert_eq!(found.groups.len(), groups.len(), "{topic:?}: {:?}", self.present);
        for group in &found.groups {
            let members = &groups[group.filter.as_str()];
            assert!(sorted(&group.members).iter().eq(members), "{topic:?}: {:?}", self.present);
            let again = self.trie.group(&group.filter).expect("it was there");
            assert_eq!(sorted(&again.members), sorted(&group.members));
        }
    }

    /// Every subscription ends, so that no node can have been forgotten on the way.
    fn remove_all(&mut self) {
        while let Some((text, session)) = self.present.keys().next().cloned() {
            self.look_up(unshared(&text));
            self.remove(&text, session);
            let filter = TopicFilter::parse(&text).expect("it was subscribed to");
            let mut members = self.present.keys().filter(|(other, _)| *other == text);
            let is_there = filter.is_shared() && members.next().is_some();
            assert_eq!(self.trie.group(&filter).is_some(), is_there);
        }
        assert!(self.trie.is_empty());
    }

    fn check(&self) {
        assert_eq!(self.trie.len(), self.present.len());
        assert_eq!(self.trie.is_empty(), self.present.is_empty());
        assert_eq!(self.trie.generation(), self.generation);
    }
}

fn text(choices: &mut Choices<'_>) -> String {
    let mut text = String::new();
    for _ in 0..choices.below(10) {
        match choices.below(PARTS.len() + 1) {
            // Over the limits of levels and of bytes.
            at if at == PARTS.len() => match choices.byte() {
                0..250 => text.push_str(&"/".repeat(FILTER_LEVELS_MAX - 10)),
                _ => text.push_str(&"a".repeat(65_530)),
            },
            at => text.push_str(PARTS[at]),
        }
    }
    text
}

fn session(choices: &mut Choices<'_>) -> u64 {
    choices.below(SESSIONS as usize) as u64
}

/// Session and value, in order.
fn sorted(found: &[(SessionId, u8)]) -> Vec<(u64, u8)> {
    let mut found: Vec<_> = found.iter().map(|(session, value)| (session.0, *value)).collect();
    found.sort_unstable();
    found
}

/// The `{name}` of `$share/{name}/{filter}`.
fn share_name(text: &str) -> Option<&str> {
    let levels: Vec<&str> = text.split('/').collect();
    (levels.len() > 2 && levels[0] == "$share").then(|| levels[1])
}

/// The `{filter}` of `$share/{name}/{filter}`, else the whole.
fn unshared(text: &str) -> &str {
    match share_name(text) {
        Some(name) => &text["$share/".len() + name.len() + 1..],
        None => text,
    }
}

/// [MQTT-4.7.3-1] [MQTT-4.7.3-2] [MQTT-4.7.3-3] [MQTT-3.3.2-2]
fn is_topic_name(text: &str) -> bool {
    is_text(text) && !text.contains('+') && !text.contains('#')
}

/// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.8.2-1] [MQTT-4.8.2-2], and our limit of levels.
fn is_filter(text: &str) -> bool {
    let levels: Vec<&str> = text.split('/').collect();
    let last = levels.len() - 1;
    let level_is_right = |(at, level): (usize, &&str)| {
        *level == "+" || *level == "#" && at == last || !level.contains(['+', '#'])
    };
    if !is_text(text) || !levels.iter().enumerate().all(level_is_right) {
        return false;
    }
    let is_shared = levels.len() > 1 && levels[0] == "$share";
    let mut levels = &levels[..];
    if is_shared {
        let has_name = !levels[1].is_empty() && !levels[1].contains(['+', '#']);
        if !has_name || levels.len() == 2 || levels[2..] == [""] {
            return false;
        }
        levels = &levels[2..];
    }
    let costs_nodes = is_shared || text.contains(['+', '#']);
    levels.len() <= FILTER_LEVELS_MAX || !costs_nodes
}

fn is_text(text: &str) -> bool {
    (1..=65_535).contains(&text.len()) && !text.contains('\0')
}

/// [MQTT-4.7.1] and [MQTT-4.7.2-1], level by level.
fn naive_match(filter: &str, topic: &str) -> bool {
    let filter: Vec<&str> = filter.split('/').collect();
    let topic: Vec<&str> = topic.split('/').collect();
    if topic[0].starts_with('$') && (filter[0] == "+" || filter[0] == "#") {
        return false;
    }
    for (at, level) in filter.iter().enumerate() {
        match (*level, topic.get(at)) {
            ("#", _) => return true,
            ("+", Some(_)) => (),
            (literal, Some(level)) if literal == *level => (),
            _ => return false,
        }
    }
    filter.len() == topic.len()
}
