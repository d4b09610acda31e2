//! Mosquitto's acl file. Floor 1, called by `access`.
//!
//! ```text
//! # a comment                     empty lines are nothing, too
//! topic read news/#               before the first `user`: for clients that are anonymous
//! user alice                      the lines that follow are for alice; a name may have spaces
//! topic alice/#                   read and write
//! topic deny alice/secret/#       before all that allows
//! pattern readwrite dev/%c/#      for everybody, wherever it stands: %c is the client identifier, %u the user name
//! ```

use std::fmt;

use super::{Action, Entry, Permission, Rule, Source, Whom};
use crate::topic::{InvalidFilter, TopicFilter};

/// Lines that an error names at most.
const LINES_MAX: usize = 20;

/// Lines that cannot be understood, at most the first 20 of them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub struct InvalidAclFile(pub Vec<InvalidLine>);

impl fmt::Display for InvalidAclFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{line}")?;
        }
        Ok(())
    }
}

/// A line that cannot be understood.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {error}")]
pub struct InvalidLine {
    /// Counted from 1.
    pub line: u32,
    /// What is wrong with it.
    pub error: LineError,
}

/// What is wrong with a line.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LineError {
    /// Its first word.
    #[error("`{}` is none of `user`, `topic`, `pattern` and `#`", .0.escape_debug())]
    Keyword(String),
    /// `user` and nothing else.
    #[error("a user name is missing behind `user`")]
    NoUser,
    /// `topic` or `pattern` and nothing else.
    #[error("a topic filter is missing")]
    NoFilter,
    /// What stands between the keyword and the filter.
    #[error(
        "`{}` is none of `read`, `write`, `readwrite` and `deny`, one of which stands before a filter with a space",
        .0.escape_debug()
    )]
    Access(String),
    /// Not what the standard allows.
    #[error(transparent)]
    Filter(#[from] InvalidFilter),
}

/// What a line says.
enum Line {
    Nothing,
    User(Box<str>),
    Topic(Rule),
    Pattern(Rule),
}

/// The rules of a file in their order, and whom they are for.
pub(super) fn parse(text: &str) -> Result<Vec<(Whom, Entry)>, InvalidAclFile> {
    let mut entries = Vec::new();
    let mut invalid = Vec::new();
    let mut whom = Whom::Anonymous;
    for (line, text) in (1..).zip(text.lines()) {
        let entry = |rule, is_pattern| {
            let source = Source::File { line };
            Entry { rule, source, is_pattern, client: None }
        };
        match parse_line(text) {
            Ok(Line::Nothing) => (),
            Ok(Line::User(name)) => whom = Whom::User(name),
            Ok(Line::Topic(rule)) => entries.push((whom.clone(), entry(rule, false))),
            Ok(Line::Pattern(rule)) => entries.push((Whom::Everybody, entry(rule, true))),
            Err(error) if invalid.len() < LINES_MAX => invalid.push(InvalidLine { line, error }),
            Err(_) => break,
        }
    }
    match invalid.is_empty() {
        true => Ok(entries),
        false => Err(InvalidAclFile(invalid)),
    }
}

fn parse_line(line: &str) -> Result<Line, LineError> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(Line::Nothing);
    }
    let (keyword, rest) = line.split_once(' ').unwrap_or((line, ""));
    let rest = rest.trim();
    match keyword {
        "user" if rest.is_empty() => Err(LineError::NoUser),
        "user" => Ok(Line::User(rest.into())),
        "topic" => parse_rule(rest).map(Line::Topic),
        "pattern" => parse_rule(rest).map(Line::Pattern),
        _ => Err(LineError::Keyword(keyword.to_owned())),
    }
}

/// `text` is what follows the keyword: a filter, or an access and a filter.
fn parse_rule(text: &str) -> Result<Rule, LineError> {
    if text.is_empty() {
        return Err(LineError::NoFilter);
    }
    let (access, filter) = text.split_once(' ').unwrap_or(("readwrite", text));
    let (permission, action) = match access {
        "read" => (Permission::Allow, Action::Subscribe),
        "write" => (Permission::Allow, Action::Publish),
        "readwrite" => (Permission::Allow, Action::All),
        "deny" => (Permission::Deny, Action::All),
        _ => return Err(LineError::Access(access.to_owned())),
    };
    let filter = TopicFilter::parse(filter.trim())?;
    Ok(Rule { permission, action, filter })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<(Whom, String, u32)> {
        let entries = parse(text).unwrap().into_iter();
        let shown = |(whom, Entry { rule, source, .. })| {
            let Source::File { line } = source else { panic!("{source:?}") };
            let Rule { permission, action, filter } = rule;
            (whom, format!("{permission} {action} {filter}"), line)
        };
        entries.map(shown).collect()
    }

    fn errors(text: &str) -> Vec<(u32, LineError)> {
        parse(text).unwrap_err().0.into_iter().map(|it| (it.line, it.error)).collect()
    }

    #[test]
    fn lines_are_for_whom_the_user_line_before_them_names() {
        let text = "# comment\ntopic read a b/#\r\n\n  user  alice two  \ntopic  $SYS/#\n\
                    pattern write dev/%c/%u\ntopic deny x\nuser bob\ntopic write read";
        let user = |name: &str| Whom::User(name.into());
        let expected = [
            (Whom::Anonymous, "allow subscribe a b/#", 2),
            (user("alice two"), "allow publish and subscribe $SYS/#", 5),
            (Whom::Everybody, "allow publish dev/%c/%u", 6),
            (user("alice two"), "deny publish and subscribe x", 7),
            (user("bob"), "allow publish read", 9),
        ];
        assert_eq!(rules(text), expected.map(|(whom, text, line)| (whom, text.to_owned(), line)));
        assert_eq!(rules("topic read")[0].1, "allow publish and subscribe read", "a topic");
    }

    #[test]
    fn each_bad_line_is_named_with_what_is_wrong() {
        let text = "topic a/b\nuser\ntopics a\npattern\ntopic a b\ntopic a/#/b\ntopic read #x";
        assert_eq!(
            errors(text),
            [
                (2, LineError::NoUser),
                (3, LineError::Keyword("topics".to_owned())),
                (4, LineError::NoFilter),
                (5, LineError::Access("a".to_owned())),
                (6, LineError::Filter(InvalidFilter::HashNotLast { at: 2 })),
                (7, LineError::Filter(InvalidFilter::WildcardInsideLevel { at: 0 })),
            ]
        );
        assert_eq!(errors(&"x\n".repeat(1000)).len(), LINES_MAX);
        let shown = parse("\ntopic\nx\x1b").unwrap_err().to_string();
        assert!(shown.starts_with("line 2: a topic filter is missing; line 3: "), "{shown}");
        assert!(!shown.contains('\x1b'), "{shown:?}");
    }
}
