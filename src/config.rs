//! Settings: defaults, then the file, then the environment, then the arguments. Floor 6.
//!
//! [`Arguments`] is the command line, [`File`] the settings file field for field, [`Config`] the checked
//! result, split by owner.
//!
//! A section of the file is a struct in a file of its own below `src/config/`, with `Default`,
//! `#[serde(default, deny_unknown_fields)]` and a comment per key. It has a field in [`File`], and what its
//! check makes of it has a field in [`Config`]. What must not be printed is a [`Secret`].

mod arguments;
mod authentication;
mod authorisation;
mod change;
mod check;
mod connection;
mod explain;
mod file;
mod import;
mod layers;
mod limits;
mod listeners;
pub mod memory;
mod print;
mod read;
mod schema;
mod secret;
mod unknown;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::access::Rules;
use crate::net::accept;
use crate::net::admission::AdmissionLimits;
use crate::router::queues::QueuesLimits;
use crate::store::handle::Override;
use crate::store::log::Level;
use crate::{auth, net, router, session};

pub use arguments::AclCommand;
pub use arguments::Arguments;
pub use arguments::Command;
pub use authentication::Authentication;
pub use authentication::ListenerAuthentication;
pub use authorisation::Authorisation;
pub use authorisation::AuthorisationRule;
pub use authorisation::InvalidAuthorisation;
pub use authorisation::RuleAction;
pub use authorisation::RulePermission;
pub use change::Change;
pub use change::is_reloaded;
pub use explain::Explain;
pub use explain::ExplainAction;
pub use explain::Unexplained;
pub use file::DurabilityLevel;
pub use file::DurabilityOverride;
pub use file::File;
pub use file::LogFormat;
pub use import::Import;
pub use import::ImportError;
pub use import::import;
pub use layers::Origin;
pub use layers::Settings;
pub use layers::variable;
pub use listeners::InvalidListener;
pub use listeners::Listener;
pub use print::print;
pub use read::Mistake;
pub use read::parse;
pub use schema::Scalar;
pub use schema::Schema;
pub use secret::Secret;
pub use secret::Url;
pub use unknown::UnknownKey;

/// Checked settings, split by owner. No part of the broker sees another part's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// For `net`, at least one.
    pub listeners: Vec<accept::Settings>,
    /// For `broker`, at least one.
    pub shards: usize,
    /// For `broker`; `None` keeps everything in memory.
    pub durability: Option<Durability>,
    /// For `net`.
    pub net: net::Totals,
    /// For `router`: of sessions to which nobody has come back since the start. Others have those of a listener.
    pub session: session::Limits,
    /// For `net`: of all listeners that have none of their own.
    pub authentication: Arc<auth::Methods>,
    /// For `net`.
    pub authentication_limits: auth::Limits,
    /// For `router`.
    pub router: router::Limits,
    /// For `router`.
    pub rules: Rules,
    /// For `router`: what may change while it runs.
    pub limits: Limits,
    /// For `sys`.
    pub sys_interval: Duration,
}

/// Limits that take effect at once when they change.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of queues.
    pub queues: QueuesLimits,
    /// Of the data directory; 0 is none.
    pub disk_bytes_max: u64,
    /// Of the process; 0 is none.
    pub memory_bytes_max: u64,
    /// Of those who connect.
    pub admission: AdmissionLimits,
}

/// What outlives the process.
#[derive(Clone, Debug)]
pub struct Durability {
    /// Where it is.
    pub dir: PathBuf,
    /// What has to be true of a record before anything is acknowledged.
    pub level: Level,
    /// Size of each file of the message log.
    pub log_segment_bytes: u64,
    /// Other levels for some topics.
    pub overrides: Vec<Override>,
}

/// A value that cannot be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("setting `{key}` {rule}")]
pub struct InvalidValue {
    /// As in the file.
    pub key: &'static str,
    /// What it must be.
    pub rule: &'static str,
}

/// Why there are no settings. Names the key and the rule, so that the operator need not read code.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// The file cannot be read.
    #[error("cannot read the settings file {}: {error}", path.display())]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// From the system.
        error: io::Error,
    },
    /// The file is not what it should be.
    #[error("settings file {}, {mistake}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// Names line and key.
        mistake: Mistake,
    },
    /// A variable is not what it should be.
    #[error("environment variable {name}: {rule}")]
    Environment {
        /// Of the variable.
        name: String,
        /// What is wrong with it.
        rule: String,
    },
    /// The layers do not make one whole.
    #[error("the settings of file, environment and arguments do not go together: {error}")]
    Layers {
        /// What is wrong with them.
        error: String,
    },
    /// A value that cannot be.
    #[error(transparent)]
    Value(#[from] InvalidValue),
    /// The same, and who said it.
    #[error("{value} ({origin})")]
    Said {
        /// Names the key.
        value: InvalidValue,
        /// Where it was said.
        origin: Origin,
    },
    /// Users that cannot be.
    #[error(transparent)]
    Authentication(#[from] auth::InvalidMethods),
    /// Rules that cannot be read.
    #[error(transparent)]
    Authorisation(#[from] InvalidAuthorisation),
    /// Neither said nor to be found out.
    #[error(
        "there is no place for the data: set `data_dir` (--data-dir DIR), or HOME, or keep nothing \
         with --durability none"
    )]
    NoDataDir,
    /// A listener that cannot be.
    #[error(transparent)]
    Listener(#[from] InvalidListener),
}
