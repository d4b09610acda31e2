//! An acl file, and what its rules say to a few clients about a few topics and filters.
//!
//! The bytes are the file. Whatever is in it, nothing panics, an error names lines that are there in words that can be
//! logged, and the answers agree with one another.

use std::sync::Arc;

use mailboxqtt::access::{Rights, Rules};
use mailboxqtt::ids::ClientId;
use mailboxqtt::topic::TopicFilter;

/// See the module comment.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut rules = Rules::default();
    if let Err(error) = rules.add_file("acl", &text) {
        let lines: Vec<u32> = error.0.iter().map(|it| it.line).collect();
        assert!(lines.is_sorted() && (1..=20).contains(&lines.len()), "{lines:?}");
        assert!(lines.iter().all(|line| *line as usize <= text.lines().count()), "{lines:?}");
        assert!(!error.to_string().contains(char::is_control), "{error}");
        assert!(!rules.are_in_force() && rules.is_empty());
        return;
    }
    let mut commented = Rules::default();
    let with_comments = format!("# {}\n\n{text}\n#", text.lines().next().unwrap_or_default());
    commented.add_file("acl", &with_comments).expect("comments mean nothing");
    assert_eq!(commented.len(), rules.len());
    let (rules, commented) = (Arc::new(rules), Arc::new(commented));
    let words: Vec<&str> = text.split_whitespace().take(40).collect();
    for (user, client) in
        [(None, "a"), (Some("a"), "b"), (Some("b"), "+"), (None, "#/a"), (Some("$SYS"), "%u")]
    {
        let client = ClientId::new(client);
        let rights = rules.rights(user, &client, &[]);
        assert!(rights.are_restricted());
        let same = commented.rights(user, &client, &[]);
        let topics = ["a", "a/b", "b/a/c", "$SYS/a"].iter().chain(&words);
        let topics: Vec<&str> =
            topics.copied().filter(|it| !it.contains(['+', '#', '\0'])).collect();
        for topic in &topics {
            assert_eq!(
                rights.may_publish(topic).is_allowed(),
                same.may_publish(topic).is_allowed()
            );
            assert!(!rights.may_publish(topic).to_string().contains(char::is_control));
            assert_eq!(
                rights.may_receive(topic).is_allowed(),
                same.may_receive(topic).is_allowed()
            );
        }
        let filters = ["#", "+/b", "a/#", "$SYS/#", "$share/g/+"].iter().chain(&words);
        filters.for_each(|text| check_filter(text, &topics, &rights));
    }
}

/// A subscription that would bring something is not refused.
fn check_filter(text: &str, topics: &[&str], rights: &Rights) {
    let Ok(filter) = TopicFilter::parse(text) else { return };
    let may_subscribe = rights.may_subscribe(&filter).is_allowed();
    let mut matching = topics.iter().filter(|topic| filter.matches(topic));
    if matching.any(|topic| rights.may_receive(topic).is_allowed()) {
        assert!(may_subscribe, "{text:?}");
    }
    if !filter.has_wildcards() {
        assert_eq!(may_subscribe, rights.may_receive(filter.unshared()).is_allowed(), "{text:?}");
    }
}
