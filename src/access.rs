//! Who may publish and receive what: the rules, and what they give one client. Floor 1: pure. The settings read
//! rules in, `router` keeps those that are in force, sessions and routes ask [`Rights`].
//!
//! ```text
//! acl file, settings -> Rules --(user, client id, rules of a token)--> Rights -> may_publish | may_receive | may_subscribe
//! ```
//!
//! Each client has two lists, with mosquitto's semantics: its *own*, rules that name it or come with its token, and the
//! *general* one, rules for everybody. In a list whatever denies comes before whatever allows; the own list
//! decides before the general one; what no rule allows is denied.
//!
//! # Invariants
//!
//! - A name never becomes a wildcard: a client whose id or user name has `+` or `#` gets nothing from the general list, and nobody
//!   gets anything from a pattern into which his name would bring a `/`, or a `$` in first place.
//! - Without any rules all is allowed, and asking costs one branch.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::ids::ClientId;
use crate::topic::TopicFilter;

pub use acl_file::InvalidAclFile;
pub use acl_file::InvalidLine;
pub use acl_file::LineError;
pub use authorizer::Authorizer;
pub use rights::Decision;
pub use rights::Rights;

mod acl_file;
mod authorizer;
mod overlap;
mod rights;

/// What one rule says about the topics of one filter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Whether it opens or closes them.
    pub permission: Permission,
    /// For which way.
    pub action: Action,
    /// Compared with topics as it stands: `$share/` in it means nothing. `%c` and `%u` in it stand for the client
    /// identifier and the user name, except in the `topic` lines of an acl file.
    pub filter: TopicFilter,
}

/// See [`Rule`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Permission {
    /// Unless something else denies it.
    Allow,
    /// Whatever else in the same list allows it.
    Deny,
}

/// See [`Rule`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// To the broker; also by a will.
    Publish,
    /// From the broker: by a subscription, shared or not, and from what is retained.
    Subscribe,
    /// Both ways.
    All,
}

/// Whom a rule is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Whom {
    /// Every client.
    Everybody,
    /// Clients that have not proved who they are.
    Anonymous,
    /// Clients that have proved to be this user.
    User(Box<str>),
}

/// Where a rule was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The acl file, in this line, counted from 1.
    File {
        /// The line.
        line: u32,
    },
    /// The settings, counted from 1.
    Settings {
        /// Which of them.
        number: u32,
    },
    /// The client's token, counted from 1.
    Token {
        /// Which of them.
        number: u32,
    },
}

/// All rules of the broker. See the module comment.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Without it there are no rules, and everything is allowed.
    are_in_force: bool,
    /// How messages name the acl file.
    file: Box<str>,
    anonymous: List,
    users: HashMap<Box<str>, List>,
    clients: HashMap<Box<str>, List>,
    everybody: List,
}

/// A rule, where it comes from, and what it depends on.
#[derive(Clone, Debug)]
struct Entry {
    rule: Rule,
    source: Source,
    /// `%c` and `%u` in its filter stand for names.
    is_pattern: bool,
    /// Only for this client identifier.
    client: Option<Box<str>>,
}

/// Rules for the same clients.
#[derive(Clone, Debug, Default)]
struct List {
    /// The same for all of them, and shared by them.
    plain: Arc<Vec<Entry>>,
    /// Those that have to be made out for each client.
    templates: Vec<Entry>,
}

impl Rules {
    /// None are written yet; in force already, so that nothing is allowed. Without rules there is [`Rules::default`].
    pub fn in_force() -> Self {
        Self { are_in_force: true, ..Self::default() }
    }

    /// Whether anything may be denied to a client without rules of its own.
    pub fn are_in_force(&self) -> bool {
        self.are_in_force
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        let named = self.users.values().chain(self.clients.values());
        named.chain([&self.anonymous, &self.everybody]).map(List::len).sum()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds what mosquitto's acl file `text` says; messages call it `name`. With an error nothing is added.
    pub fn add_file(&mut self, name: &str, text: &str) -> Result<(), InvalidAclFile> {
        let entries = acl_file::parse(text)?;
        self.are_in_force = true;
        self.file = name.into();
        for (whom, entry) in entries {
            self.add_entry(whom, entry);
        }
        Ok(())
    }

    /// Adds rule `number` of the settings, for clients with this identifier only if there is one.
    pub fn add(&mut self, number: u32, whom: Whom, client: Option<&str>, rule: Rule) {
        self.are_in_force = true;
        let (source, client) = (Source::Settings { number }, client.map(Into::into));
        self.add_entry(whom, Entry { rule, source, is_pattern: true, client });
    }

    /// What the rules, and the rules `own` of its token, give a client. `user` is who it has proved to be.
    pub fn rights(self: &Arc<Self>, user: Option<&str>, client: &ClientId, own: &[Rule]) -> Rights {
        Rights::new(self, user, client.as_str(), own)
    }

    fn add_entry(&mut self, whom: Whom, entry: Entry) {
        let list = match (whom, &entry.client) {
            (Whom::User(name), _) => self.users.entry(name).or_default(),
            (Whom::Anonymous, _) => &mut self.anonymous,
            (Whom::Everybody, Some(client)) => self.clients.entry(client.clone()).or_default(),
            (Whom::Everybody, None) => &mut self.everybody,
        };
        match entry.has_names() || entry.client.is_some() {
            true => list.templates.push(entry),
            false => Arc::make_mut(&mut list.plain).push(entry),
        }
    }
}

impl List {
    fn len(&self) -> usize {
        self.plain.len() + self.templates.len()
    }
}

impl Entry {
    /// Whether its filter is another one for each client.
    fn has_names(&self) -> bool {
        let filter = self.rule.filter.as_str();
        self.is_pattern && (filter.contains("%c") || filter.contains("%u"))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::All => "publish and subscribe",
        })
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic::matches;

    fn rules(file: &str) -> Arc<Rules> {
        let mut rules = Rules::default();
        rules.add_file("acl", file).unwrap();
        Arc::new(rules)
    }

    fn rights(file: &str, user: &str, client: &str) -> Rights {
        rules(file).rights(user_of(user), &ClientId::new(client), &[])
    }

    fn user_of(user: &str) -> Option<&str> {
        (user != "-").then_some(user)
    }

    fn rule(permission: Permission, action: Action, filter: &str) -> Rule {
        Rule { permission, action, filter: TopicFilter::parse(filter).unwrap() }
    }

    #[test]
    fn without_rules_all_is_allowed_and_nothing_is_kept() {
        let rights = Arc::new(Rules::default()).rights(None, &ClientId::new("c"), &[]);
        assert!(!rights.are_restricted() && rights.may_publish("a").is_allowed());
        assert_eq!(size_of::<Rights>(), size_of::<usize>());
        // An empty file is a file.
        assert!(!self::rights("", "-", "c").may_publish("a").is_allowed());
    }

    #[test]
    fn lines_before_the_first_user_are_for_anonymous_clients_only() {
        let file = "topic read a\nuser bob\ntopic write b";
        assert!(rights(file, "-", "c").may_receive("a").is_allowed());
        assert!(!rights(file, "-", "c").may_publish("a").is_allowed());
        assert!(!rights(file, "bob", "c").may_receive("a").is_allowed());
        assert!(rights(file, "bob", "c").may_publish("b").is_allowed());
        assert!(!rights(file, "carol", "c").may_receive("a").is_allowed());
    }

    #[test]
    fn deny_wins_within_its_list_and_the_own_list_before_the_general_one() {
        let file = "user bob\ntopic a/#\ntopic deny a/x\npattern deny a/y\npattern read a/x\n\
                    pattern deny b/x\npattern b/#";
        let bob = rights(file, "bob", "c");
        let shown = |topic| bob.may_receive(topic).to_string();
        assert_eq!(shown("a/x"), "acl:3: deny publish and subscribe a/x");
        assert_eq!(shown("a/y"), "acl:2: allow publish and subscribe a/#");
        assert_eq!(shown("b/x"), "acl:6: deny publish and subscribe b/x");
        assert_eq!(shown("b"), "acl:7: allow publish and subscribe b/#");
        assert_eq!(shown("c"), "no rule allows it");
    }

    #[test]
    fn system_topics_need_a_rule_that_names_them() {
        let file = "topic #\ntopic +/broker/x\nuser bob\ntopic read $SYS/#";
        assert!(!rights(file, "-", "c").may_receive("$SYS/broker/x").is_allowed());
        assert!(rights(file, "bob", "c").may_receive("$SYS/broker/x").is_allowed());
        let filter = TopicFilter::parse("$SYS/#").unwrap();
        assert!(!rights(file, "-", "c").may_subscribe(&filter).is_allowed());
        assert!(rights(file, "bob", "c").may_subscribe(&filter).is_allowed());
    }

    #[test]
    fn patterns_have_the_names_of_the_client_and_those_with_u_are_not_for_anonymous_ones() {
        let file = "pattern write dev/%c/%u/x%c\npattern read all/%c";
        assert!(rights(file, "bob", "c1").may_publish("dev/c1/bob/xc1").is_allowed());
        assert!(!rights(file, "bob", "c1").may_publish("dev/c2/bob/xc2").is_allowed());
        assert!(!rights(file, "-", "c1").may_publish("dev/c1//xc1").is_allowed());
        assert!(rights(file, "-", "c1").may_receive("all/c1").is_allowed());
        // A name is put in as it stands, and not looked through again.
        assert!(rights(file, "bob", "%u").may_receive("all/%u").is_allowed());
        // In `topic` lines it is text.
        assert!(rights("topic %c", "-", "c1").may_receive("%c").is_allowed());
    }

    #[test]
    fn no_name_makes_a_pattern_wider() {
        let file = "pattern dev/%c/#\npattern read news\nuser +\ntopic own";
        for client in ["+", "#", "a+", "a/b", "a/#"] {
            let rights = rights(file, "-", client);
            for topic in ["dev/a/x", "dev/a/b/x", "dev/+/x", "dev/x", "dev"] {
                assert!(!rights.may_publish(topic).is_allowed(), "{client} {topic}");
            }
            assert_eq!(rights.may_receive("news").is_allowed(), client == "a/b", "{client}");
        }
        assert!(rights(file, "+", "c").may_publish("own").is_allowed());
        assert!(!rights(file, "+", "c").may_publish("dev/c/x").is_allowed());
        assert!(!rights("pattern read %c/#", "-", "$SYS").may_receive("$SYS/x").is_allowed());
        // What would be denied to it in such a place is not known, so nothing is allowed.
        let closed = rights("pattern deny dev/%c/#\npattern read #", "-", "a/b");
        assert!(!closed.may_receive("x").is_allowed());
    }

    #[test]
    fn rules_of_the_settings_and_of_a_token_are_the_same_rules() {
        use Action::{All, Publish, Subscribe};
        use Permission::{Allow, Deny};
        let mut rules = Rules::in_force();
        rules.add(1, Whom::Everybody, Some("c1"), rule(Allow, Publish, "one/%c"));
        rules.add(2, Whom::User("bob".into()), Some("c2"), rule(Allow, All, "two"));
        rules.add(3, Whom::User("bob".into()), None, rule(Deny, Subscribe, "three/%u"));
        rules.add(4, Whom::Everybody, None, rule(Allow, All, "three/#"));
        rules.add(5, Whom::Anonymous, None, rule(Allow, Publish, "five"));
        let rules = Arc::new(rules);
        let of = |user, client, own: &[Rule]| rules.rights(user, &ClientId::new(client), own);
        assert!(of(None, "c1", &[]).may_publish("one/c1").is_allowed());
        assert!(!of(None, "c2", &[]).may_publish("one/c2").is_allowed());
        assert!(of(Some("bob"), "c2", &[]).may_publish("two").is_allowed());
        assert!(!of(Some("bob"), "c1", &[]).may_publish("two").is_allowed());
        let bob = of(Some("bob"), "c", &[]);
        assert_eq!(
            bob.may_receive("three/bob").to_string(),
            "authorisation.rules[3]: deny subscribe three/bob"
        );
        assert!(bob.may_publish("three/bob").is_allowed());
        assert!(of(None, "c", &[]).may_publish("five").is_allowed());
        let own = [rule(Allow, All, "mine/%c"), rule(Deny, All, "three/x")];
        let with_token = of(Some("bob"), "c", &own);
        assert!(with_token.may_publish("mine/c").is_allowed());
        assert_eq!(
            with_token.may_publish("three/x").to_string(),
            "rule 2 of the token: deny publish and subscribe three/x"
        );
        let only_token =
            Arc::new(Rules::default()).rights(Some("bob"), &ClientId::new("c"), &own[..1]);
        assert!(only_token.may_publish("mine/c").is_allowed());
        assert!(!only_token.may_publish("x").is_allowed());
    }

    /// One line of a file, and how it reads.
    #[derive(Clone, Debug)]
    enum Line {
        User(&'static str),
        Rule { is_pattern: bool, access: &'static str, filter: &'static str },
    }

    const FILTERS: [&str; 14] = [
        "a", "b", "a/b", "#", "+", "a/#", "+/b", "a/+", "+/+", "a/%c", "%u/#", "$s/#", "$s/b",
        "b/%c/#",
    ];
    const TOPICS: [&str; 14] = [
        "a", "b", "a/b", "b/b", "b/a", "a/b/a", "b/a/b", "$s", "$s/b", "$s/a", "a/%c", "%u", "a/",
        "b/",
    ];

    fn lines() -> impl Strategy<Value = Vec<Line>> {
        let access = prop::sample::select(vec!["read", "write", "readwrite", "deny"]);
        let filter = prop::sample::select(FILTERS.to_vec());
        let rule = (any::<bool>(), access, filter)
            .prop_map(|(is_pattern, access, filter)| Line::Rule { is_pattern, access, filter });
        let user = prop::sample::select(vec!["a", "b"]).prop_map(Line::User);
        prop::collection::vec(prop_oneof![4 => rule, 1 => user], 0..12)
    }

    /// The manual's words, line by line.
    fn model(
        lines: &[Line],
        user: Option<&str>,
        client: &str,
        is_write: bool,
        topic: &str,
    ) -> bool {
        let (mut section, mut verdicts) = (None, Vec::new());
        for line in lines {
            let (is_pattern, access, filter) = match line {
                Line::User(name) => {
                    section = Some(*name);
                    continue;
                }
                Line::Rule { is_pattern, access, filter } => (*is_pattern, *access, *filter),
            };
            let is_mine = is_pattern || section == user;
            if !is_mine || (is_pattern && filter.contains("%u") && user.is_none()) {
                continue;
            }
            let filter = match is_pattern {
                true => filter.replace("%c", client).replace("%u", user.unwrap_or_default()),
                false => filter.to_owned(),
            };
            let says = match access {
                "deny" => Some(false),
                "readwrite" => Some(true),
                "read" => (!is_write).then_some(true),
                _ => is_write.then_some(true),
            };
            if matches(&filter, topic) {
                verdicts.extend(says.map(|says| (is_pattern, says)));
            }
        }
        // False sorts before true: `topic` before `pattern`, deny before allow.
        verdicts.sort_unstable();
        verdicts.first().is_some_and(|(_, says)| *says)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn decisions_agree_with_the_manual(
            lines in lines(),
            user in prop::sample::select(vec!["-", "a", "b"]),
            client in prop::sample::select(vec!["a", "b"]),
        ) {
            let text: String = lines.iter().map(|line| match line {
                Line::User(name) => format!("user {name}\n"),
                Line::Rule { is_pattern, access, filter } => {
                    let keyword = if *is_pattern { "pattern" } else { "topic" };
                    format!("{keyword} {access} {filter}\n")
                }
            }).collect();
            let rights = rights(&text, user, client);
            for topic in TOPICS {
                let said = |is_write| model(&lines, user_of(user), client, is_write, topic);
                prop_assert_eq!(rights.may_publish(topic).is_allowed(), said(true), "{}", topic);
                prop_assert_eq!(rights.may_receive(topic).is_allowed(), said(false), "{}", topic);
            }
            for filter in FILTERS {
                let filter = TopicFilter::parse(filter).unwrap();
                let mut matching = TOPICS.iter().filter(|topic| filter.matches(topic));
                if matching.any(|topic| rights.may_receive(topic).is_allowed()) {
                    // A subscription that would bring something is never refused.
                    prop_assert!(rights.may_subscribe(&filter).is_allowed(), "{}", filter);
                }
            }
        }
    }

    #[test]
    fn subscription_is_refused_where_nothing_of_it_could_come() {
        let may = |file, filter| {
            rights(file, "-", "c").may_subscribe(&TopicFilter::parse(filter).unwrap()).is_allowed()
        };
        assert!(may("topic read a/b", "#"));
        assert!(may("topic read a/+", "$share/g/+/b"));
        assert!(!may("topic read a/+", "b/#"));
        assert!(!may("topic write a/b", "a/#"));
        assert!(!may("topic read a/#\ntopic deny a/x/#", "a/x/+"));
        assert!(may("topic read a/#\ntopic deny a/x/#", "a/+/y"));
        assert!(!may("topic read #", "$SYS/#"));
        assert!(!may("topic read a\npattern deny b/#\npattern read b/+", "b/c"));
        assert!(may("topic read b/c\npattern deny b/#", "b/#"));
    }
}
