//! `mailboxqtt acl explain`: what the rules say to one thing that one client might do, and which rule says it. Floor 6,
//! called by `main`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::config::{Authorisation, InvalidAuthorisation};
use crate::ids::ClientId;
use crate::topic::{InvalidFilter, InvalidTopic, TopicFilter, check_topic_name, is_system_topic};

/// What is asked.
#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// Client identifier
    pub client: String,

    /// User name; `-` is a client that has not proved who it is
    #[arg(allow_hyphen_values = true)]
    pub user: String,

    /// What it would do
    pub action: ExplainAction,

    /// Topic to publish to, or topic filter to subscribe to
    pub topic: String,

    /// An acl file in place of the rules in the settings
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub acl_file: Option<PathBuf>,

    /// Settings file whose rules are asked
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// See [`Explain`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ExplainAction {
    /// Send a message to the topic.
    Publish,
    /// Get messages of the topic, or of any topic that the filter matches.
    Subscribe,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unexplained {
    /// There are no rules to be asked.
    #[error(transparent)]
    Rules(#[from] InvalidAuthorisation),
    /// Nobody could publish there.
    #[error(transparent)]
    Topic(#[from] InvalidTopic),
    /// Nobody could subscribe to it.
    #[error(transparent)]
    Filter(#[from] InvalidFilter),
}

impl Explain {
    /// Whether it is allowed, and the sentence that says why. The rules are those of `authorisation`, unless the
    /// question names an acl file.
    pub fn answer(&self, authorisation: &Authorisation) -> Result<(bool, String), Unexplained> {
        let rules = match &self.acl_file {
            Some(path) => Authorisation { acl_file: path.clone(), rules: Vec::new() }.load()?,
            None => authorisation.load()?,
        };
        let user = Some(self.user.as_str()).filter(|user| *user != "-");
        let rights = Arc::new(rules).rights(user, &ClientId::new(&self.client), &[]);
        let filter;
        let decision = match self.action {
            ExplainAction::Publish => {
                check_topic_name(&self.topic)?;
                if is_system_topic(&self.topic) {
                    return Ok((false, "denied: topics below $SYS/ are the broker's own".into()));
                }
                rights.may_publish(&self.topic)
            }
            ExplainAction::Subscribe => {
                filter = TopicFilter::parse(&self.topic)?;
                rights.may_subscribe(&filter)
            }
        };
        let verdict = if decision.is_allowed() { "allowed" } else { "denied" };
        Ok((decision.is_allowed(), format!("{verdict}: {decision}")))
    }
}
