//! What one client may do. Floor 1, made by `access`.

use std::fmt;
use std::sync::Arc;

use super::overlap::{covers, intersection};
use super::{Action, Entry, List, Permission, Rule, Rules, Source};
use crate::topic::{TopicFilter, matches};

/// What the rules give one client. Cheap to clone, and without rules nothing but a null pointer.
#[derive(Clone, Debug, Default)]
pub struct Rights(Option<Arc<Restricted>>);

/// The rules that concern one client.
#[derive(Debug)]
struct Restricted {
    rules: Arc<Rules>,
    /// Decides first.
    own: Parts,
    /// Decides about the rest.
    general: Parts,
    /// A name of the client is a wildcard where the general list would need it.
    has_unsafe_name: bool,
}

/// Rules of one list.
#[derive(Debug, Default)]
struct Parts {
    /// Those that others have, too.
    shared: Vec<Arc<Vec<Entry>>>,
    /// Those with the client's names in them, and those of its token.
    made_out: Box<[Entry]>,
    /// What would have to be denied cannot be said with the client's names, so all is.
    is_closed: bool,
}

/// Yes or no, and why. For logs and for people: it shows the rule and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'r> {
    is_allowed: bool,
    by: By<'r>,
}

#[derive(Clone, Copy, Debug)]
enum By<'r> {
    /// There are no rules.
    Nothing,
    /// This rule.
    Rule(&'r Entry, &'r Rules),
    /// None of the rules allows it.
    NoRule,
    /// Before a rule for everybody could allow it.
    UnsafeName,
}

/// Which way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Publish,
    Subscribe,
}

/// The client whose names stand for `%c` and `%u`.
#[derive(Clone, Copy)]
struct Names<'a> {
    user: Option<&'a str>,
    client: &'a str,
}

/// Why a filter cannot be made out.
enum Unusable {
    /// It has no such name: the rule is not about it.
    NoSuchName,
    /// The name would be more than a part of a level.
    Unsafe,
}

impl Rights {
    /// There are no rules.
    pub const UNRESTRICTED: Self = Self(None);

    pub(super) fn new(
        rules: &Arc<Rules>,
        user: Option<&str>,
        client: &str,
        own_rules: &[Rule],
    ) -> Self {
        if !rules.are_in_force && own_rules.is_empty() {
            return Self::UNRESTRICTED;
        }
        let names = Names { user, client };
        let from_token = (1..).zip(own_rules).map(|(number, rule)| Entry {
            rule: rule.clone(),
            source: Source::Token { number },
            is_pattern: true,
            client: None,
        });
        let from_token: Vec<Entry> = from_token.collect();
        let by_user = match user {
            Some(user) => rules.users.get(user),
            None => Some(&rules.anonymous),
        };
        let lists = by_user.into_iter().chain(rules.clients.get(client));
        let own = Parts::new(lists, &from_token, names);
        let general = Parts::new([&rules.everybody], &[], names);
        let has_wildcard = |name: &str| name.contains(['+', '#']);
        let has_unsafe_name = has_wildcard(client) || user.is_some_and(has_wildcard);
        Self(Some(Arc::new(Restricted { rules: rules.clone(), own, general, has_unsafe_name })))
    }

    /// Whether anything may be denied.
    pub fn are_restricted(&self) -> bool {
        self.0.is_some()
    }

    /// Whether they were made from `rules`.
    pub fn are_of(&self, rules: &Arc<Rules>) -> bool {
        match &self.0 {
            None => !rules.are_in_force,
            Some(restricted) => Arc::ptr_eq(&restricted.rules, rules),
        }
    }

    /// Whether the client may publish to `topic`.
    pub fn may_publish(&self, topic: &str) -> Decision<'_> {
        match &self.0 {
            None => Decision::UNRESTRICTED,
            Some(restricted) => restricted.decide(topic, Way::Publish),
        }
    }

    /// Whether messages of `topic` may go to the client.
    pub fn may_receive(&self, topic: &str) -> Decision<'_> {
        match &self.0 {
            None => Decision::UNRESTRICTED,
            Some(restricted) => restricted.decide(topic, Way::Subscribe),
        }
    }

    /// Whether a subscription to `filter` could bring the client anything: some rule allows topics that the filter
    /// matches, and no single one denies all of these. Several that deny all of them together are not seen: the
    /// subscription is made then and brings nothing.
    pub fn may_subscribe(&self, filter: &TopicFilter) -> Decision<'_> {
        match &self.0 {
            None => Decision::UNRESTRICTED,
            Some(restricted) if filter.has_wildcards() => {
                restricted.decide_filter(filter.unshared())
            }
            Some(restricted) => restricted.decide(filter.unshared(), Way::Subscribe),
        }
    }
}

impl Restricted {
    fn decide(&self, topic: &str, way: Way) -> Decision<'_> {
        let decided = |entry| {
            let is_concerned = |it: &&Entry| it.is_for(way) && matches(it.filter(), topic);
            self.parts(entry).find(is_concerned)
        };
        let steps = [
            (&self.own, Permission::Deny),
            (&self.own, Permission::Allow),
            (&self.general, Permission::Deny),
            (&self.general, Permission::Allow),
        ];
        for (parts, permission) in steps {
            if self.is_closed(parts) {
                return Decision { is_allowed: false, by: By::UnsafeName };
            }
            if let Some(entry) = decided((parts, permission)) {
                return self.by(entry);
            }
        }
        Decision { is_allowed: false, by: By::NoRule }
    }

    fn decide_filter(&self, filter: &str) -> Decision<'_> {
        let mut denied = Decision { is_allowed: false, by: By::NoRule };
        for parts in [&self.own, &self.general] {
            if self.is_closed(parts) {
                return match denied.by {
                    By::NoRule => Decision { is_allowed: false, by: By::UnsafeName },
                    _ => denied,
                };
            }
            let allowing = self.parts((parts, Permission::Allow));
            for entry in allowing.filter(|entry| entry.is_for(Way::Subscribe)) {
                let Some(common) = intersection(entry.filter(), filter) else { continue };
                let is_general = std::ptr::eq(parts, &self.general);
                let general = is_general.then_some((&self.general, Permission::Deny));
                let denying = [Some((&self.own, Permission::Deny)), general];
                let mut denying = denying.into_iter().flatten().flat_map(|it| self.parts(it));
                let closes =
                    |it: &&Entry| it.is_for(Way::Subscribe) && covers(it.filter(), &common);
                match denying.find(closes) {
                    None => return self.by(entry),
                    Some(closing) => denied = self.by(closing),
                }
            }
        }
        denied
    }

    /// The rules of some parts that allow, or that deny.
    fn parts<'s>(
        &'s self,
        (parts, permission): (&'s Parts, Permission),
    ) -> impl Iterator<Item = &'s Entry> {
        let shared = parts.shared.iter().flat_map(|list| list.iter());
        let all = shared.chain(&parts.made_out);
        all.filter(move |entry| entry.rule.permission == permission)
    }

    fn is_closed(&self, parts: &Parts) -> bool {
        let is_general = std::ptr::eq(parts, &self.general);
        parts.is_closed || (is_general && self.has_unsafe_name && !parts.is_empty())
    }

    fn by<'s>(&'s self, entry: &'s Entry) -> Decision<'s> {
        let is_allowed = entry.rule.permission == Permission::Allow;
        Decision { is_allowed, by: By::Rule(entry, &self.rules) }
    }
}

impl Parts {
    fn new<'a>(
        lists: impl IntoIterator<Item = &'a List>,
        from_token: &'a [Entry],
        names: Names<'_>,
    ) -> Self {
        let (mut shared, mut made_out, mut is_closed) = (Vec::new(), Vec::new(), false);
        let mut make_out = |template: &Entry| match names.make_out(template) {
            Ok(entry) => made_out.push(entry),
            Err(Unusable::NoSuchName) => (),
            Err(Unusable::Unsafe) => is_closed |= template.rule.permission == Permission::Deny,
        };
        for list in lists {
            if !list.plain.is_empty() {
                shared.push(list.plain.clone());
            }
            let templates = list.templates.iter();
            templates.filter(|it| it.is_for_client(names.client)).for_each(&mut make_out);
        }
        from_token.iter().for_each(&mut make_out);
        Self { shared, made_out: made_out.into(), is_closed }
    }

    fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.made_out.is_empty()
    }
}

impl Entry {
    fn is_for(&self, way: Way) -> bool {
        match way {
            Way::Publish => self.rule.action.is_publish(),
            Way::Subscribe => self.rule.action.is_subscribe(),
        }
    }

    fn is_for_client(&self, client: &str) -> bool {
        self.client.as_deref().is_none_or(|only| only == client)
    }

    /// As it stands: a rule is about topics, and `$share/` in one means nothing.
    fn filter(&self) -> &str {
        self.rule.filter.as_str()
    }
}

impl Names<'_> {
    /// The rule with the names in it.
    fn make_out(self, template: &Entry) -> Result<Entry, Unusable> {
        if !template.has_names() {
            return Ok(template.clone());
        }
        let mut text = String::new();
        let mut rest = template.filter();
        while let Some(at) = rest.find('%') {
            let (before, from) = rest.split_at(at);
            text.push_str(before);
            let name = match from.as_bytes().get(1) {
                Some(b'c') => Some(self.client),
                Some(b'u') => Some(self.user.ok_or(Unusable::NoSuchName)?),
                _ => None,
            };
            let used = if name.is_some() { 2 } else { 1 };
            let (placeholder, behind) = from.split_at(used);
            rest = behind;
            let name = name.unwrap_or(placeholder);
            let is_first = text.is_empty();
            if name.contains(['+', '#', '/']) || (is_first && name.starts_with('$')) {
                return Err(Unusable::Unsafe);
            }
            text.push_str(name);
        }
        text.push_str(rest);
        let filter = TopicFilter::parse(&text).map_err(|_| Unusable::Unsafe)?;
        Ok(Entry { rule: Rule { filter, ..template.rule.clone() }, ..template.clone() })
    }
}

impl Decision<'_> {
    const UNRESTRICTED: Self = Self { is_allowed: true, by: By::Nothing };

    /// Yes or no.
    pub fn is_allowed(&self) -> bool {
        self.is_allowed
    }
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            By::Nothing => f.write_str("there are no rules"),
            By::NoRule => f.write_str("no rule allows it"),
            By::UnsafeName => f.write_str(
                "rules with patterns are not for client identifiers and user names with `+`, `#` or `/`",
            ),
            By::Rule(entry, rules) => {
                match entry.source {
                    Source::File { line } => write!(f, "{}:{line}", rules.file.escape_debug())?,
                    Source::Settings { number } => write!(f, "authorisation.rules[{number}]")?,
                    Source::Token { number } => write!(f, "rule {number} of the token")?,
                }
                let Rule { permission, action, filter } = &entry.rule;
                write!(f, ": {permission} {action} {filter}")
            }
        }
    }
}

impl Action {
    fn is_publish(self) -> bool {
        matches!(self, Self::Publish | Self::All)
    }

    fn is_subscribe(self) -> bool {
        matches!(self, Self::Subscribe | Self::All)
    }
}
