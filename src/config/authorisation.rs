//! The section `[authorisation]`: who may publish and receive what. Floor 6, called by `config::check`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::access::{Action, InvalidAclFile, Permission, Rule, Rules, Whom};
use crate::topic::{InvalidFilter, TopicFilter};

/// Rules for publishing and subscribing. Without any everything is allowed; with some, what none of them allows is denied.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authorisation {
    /// An acl file of mosquitto; empty is none. An empty file allows nothing.
    pub acl_file: PathBuf,
    /// The same rules written here. They are looked at together with those of the file; see docs/authorisation.md.
    pub rules: Vec<AuthorisationRule>,
}

/// One rule. Without `user`, `anonymous` and `client` it is for everybody.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorisationRule {
    /// Only for clients that have proved to be this user.
    #[serde(default)]
    pub user: Option<String>,
    /// Only for clients that have not proved who they are.
    #[serde(default)]
    pub anonymous: bool,
    /// Only for the client with this identifier, which anybody may choose who has no session of another user there.
    #[serde(default)]
    pub client: Option<String>,
    /// `allow`, or `deny`, which comes before everything that allows.
    pub permission: RulePermission,
    /// `publish`, `subscribe` or `all`.
    pub action: RuleAction,
    /// Which topics; `%c` in it is the client identifier, `%u` the user name.
    pub filter: String,
}

/// See [`AuthorisationRule`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RulePermission {
    /// Unless something denies it.
    Allow,
    /// Whatever allows it.
    Deny,
}

/// See [`AuthorisationRule`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleAction {
    /// From the client, also by its will.
    Publish,
    /// To the client.
    Subscribe,
    /// Both.
    All,
}

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum InvalidAuthorisation {
    /// The acl file cannot be read.
    #[error("cannot read the acl file {}: {error}", path.display())]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// From the system; also that it is not UTF-8.
        error: io::Error,
    },
    /// Some of its lines are wrong.
    #[error("acl file {}: {error}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// Names the lines.
        error: InvalidAclFile,
    },
    /// The filter of a rule is none.
    #[error("rule {number} below [[authorisation.rules]]: `filter`: {error}")]
    Filter {
        /// Counted from 1.
        number: u32,
        /// What is wrong with it.
        error: InvalidFilter,
    },
    /// It is for a user, and for those who are none.
    #[error(
        "rule {number} below [[authorisation.rules]] has `user` and `anonymous`: a client is one or the other"
    )]
    UserAndAnonymous {
        /// Counted from 1.
        number: u32,
    },
}

impl Authorisation {
    /// Reads the acl file, if there is one, and checks all rules.
    pub fn load(&self) -> Result<Rules, InvalidAuthorisation> {
        let mut rules = Rules::default();
        if !self.acl_file.as_os_str().is_empty() {
            add_file(&self.acl_file, &mut rules)?;
        }
        for (number, it) in (1..).zip(&self.rules) {
            let whom = match (&it.user, it.anonymous) {
                (Some(_), true) => return Err(InvalidAuthorisation::UserAndAnonymous { number }),
                (Some(user), false) => Whom::User(user.as_str().into()),
                (None, true) => Whom::Anonymous,
                (None, false) => Whom::Everybody,
            };
            let filter = TopicFilter::parse(&it.filter)
                .map_err(|error| InvalidAuthorisation::Filter { number, error })?;
            let permission = match it.permission {
                RulePermission::Allow => Permission::Allow,
                RulePermission::Deny => Permission::Deny,
            };
            let action = match it.action {
                RuleAction::Publish => Action::Publish,
                RuleAction::Subscribe => Action::Subscribe,
                RuleAction::All => Action::All,
            };
            let rule = Rule { permission, action, filter };
            rules.add(number, whom, it.client.as_deref(), rule);
        }
        Ok(rules)
    }
}

fn add_file(path: &Path, rules: &mut Rules) -> Result<(), InvalidAuthorisation> {
    let text = fs::read_to_string(path)
        .map_err(|error| InvalidAuthorisation::Unreadable { path: path.into(), error })?;
    rules
        .add_file(&path.display().to_string(), &text)
        .map_err(|error| InvalidAuthorisation::File { path: path.into(), error })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ids::ClientId;

    fn load(text: &str) -> Result<Rules, InvalidAuthorisation> {
        toml::from_str::<Authorisation>(text).unwrap().load()
    }

    #[test]
    fn rules_of_the_settings_and_of_the_file_count_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acl");
        fs::write(&path, "user bob\ntopic read news/#\n").unwrap();
        let path = path.display();
        let text = format!(
            "acl_file = \"{path}\"\n\
             [[rules]]\nuser = \"bob\"\npermission = \"deny\"\naction = \"all\"\nfilter = \"news/secret\"\n\
             [[rules]]\nanonymous = true\nclient = \"c\"\npermission = \"allow\"\naction = \"publish\"\nfilter = \"in/%c\"\n"
        );
        let rules = Arc::new(load(&text).unwrap());
        let bob = rules.rights(Some("bob"), &ClientId::new("c"), &[]);
        assert!(bob.may_receive("news/x").is_allowed());
        let denied = bob.may_receive("news/secret").to_string();
        assert_eq!(denied, "authorisation.rules[1]: deny publish and subscribe news/secret");
        let anonymous = |client| rules.rights(None, &ClientId::new(client), &[]);
        assert!(anonymous("c").may_publish("in/c").is_allowed());
        assert!(!anonymous("d").may_publish("in/d").is_allowed());
        assert!(!load("").unwrap().are_in_force());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file_and_line_or_its_number() {
        let rule = "permission = \"allow\"\naction = \"all\"\n";
        let error = |text: &str| load(text).unwrap_err().to_string();
        let twice = format!("[[rules]]\n{rule}filter = \"a\"\n[[rules]]\n{rule}filter = \"a#\"");
        assert!(error(&twice).starts_with("rule 2 below [[authorisation.rules]]: `filter`: "));
        let both = format!("[[rules]]\n{rule}filter = \"a\"\nuser = \"b\"\nanonymous = true");
        assert!(error(&both).contains("one or the other"));
        assert!(error("acl_file = \"/nowhere/acl\"").starts_with("cannot read the acl file /now"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acl");
        fs::write(&path, "topic a\nuser\n").unwrap();
        let said = error(&format!("acl_file = \"{}\"", path.display()));
        assert!(said.ends_with("acl: line 2: a user name is missing behind `user`"), "{said}");
    }
}
