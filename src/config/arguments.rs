//! The command line, and the file and the environment below it. Floor 6, read by `main`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::auth;
use crate::config::{DurabilityLevel, File, InvalidConfig};
use crate::store::start::default_dir;

/// An MQTT broker for 3.1.1 and 5.0 that uses all cores.
#[derive(Clone, Debug, Default, Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// Where to accept MQTT over TCP [default: 127.0.0.1:1883]
    #[arg(long, env = "SOCKET_ADDR", value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// Router shards that topics are hashed onto [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: Option<u16>,

    /// Where sessions, queues and retained messages are kept; a second broker needs another place
    /// [default: $STATE_DIRECTORY, or mailboxqtt in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, env = "MAILBOXQTT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// What an acknowledgement promises [default: always]
    #[arg(long, env = "MAILBOXQTT_DURABILITY", value_name = "LEVEL")]
    pub durability: Option<DurabilityLevel>,

    /// Size of each file of the message log, two of which are made at once [default: 67108864]
    #[arg(long, env = "MAILBOXQTT_LOG_SEGMENT_BYTES", value_name = "BYTES")]
    pub log_segment_bytes: Option<u64>,

    /// Settings file in TOML; `--print-config` shows every key with its value
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Accept clients that do not say who they are, also from other machines and beside users
    #[arg(long)]
    pub allow_anonymous: bool,

    /// Print the settings that are in force as a settings file, and stop
    #[arg(long)]
    pub print_config: bool,

    /// Something else than to serve.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the command does instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Add a user to a password file, or replace the password
    ///
    /// The password is asked for at the terminal, or read as one line from standard input if that is something
    /// else. The file gets its Argon2id hash; all other lines stay as they are. The broker reads the file that
    /// `password_file` below `[authentication]` names.
    Passwd {
        /// The password file; made if there is none
        file: PathBuf,

        /// Who logs in with it
        user: String,

        /// Store what SCRAM-SHA-256 needs, so that the user may log in by that as well as by password
        #[arg(long, conflicts_with = "delete")]
        scram: bool,

        /// Remove the user
        #[arg(long)]
        delete: bool,
    },

    /// Ask for a password and print the line for `[scram_users]` in the settings file
    ///
    /// The password is asked for at the terminal, or read as one line from standard input if that is something
    /// else. The line holds what checks the password, and not the password.
    ScramUser {
        /// Who logs in with it
        name: String,

        /// Rounds of PBKDF2 that the client has to do at each login
        #[arg(long, value_name = "N", default_value_t = auth::ITERATIONS_MIN)]
        #[arg(value_parser = clap::value_parser!(u32).range(i64::from(auth::ITERATIONS_MIN)..))]
        iterations: u32,
    },
}

const EXAMPLES: &str = "\
Examples:
  mailboxqtt                                  serve on 127.0.0.1:1883
  mailboxqtt --listen 127.0.0.1:0             serve on a free port and print it
  mailboxqtt --listen 0.0.0.0:1883 --allow-anonymous
  mailboxqtt --data-dir /srv/mqtt             keep there what must survive
  mailboxqtt --durability none                keep nothing
  SOCKET_ADDR=127.0.0.1:1884 RUST_LOG=debug mailboxqtt
  mailboxqtt --print-config > mailboxqtt.toml; mailboxqtt --config mailboxqtt.toml

Users, who log in with user name and password:
  mailboxqtt passwd users alice
  printf '[authentication]\\npassword_file = \"users\"\\n' > users.toml
  mailboxqtt --config users.toml --listen 0.0.0.0:1883

Users, who log in with MQTT 5 and SCRAM-SHA-256:
  echo '[scram_users]' > users.toml
  mailboxqtt scram-user alice >> users.toml
  mailboxqtt --config users.toml --listen 0.0.0.0:1883

Environment, over the settings file and under the arguments:
  SOCKET_ADDR   like --listen
  MAILBOXQTT_DATA_DIR, MAILBOXQTT_DURABILITY, MAILBOXQTT_LOG_SEGMENT_BYTES
                like --data-dir, --durability, --log-segment-bytes
  RUST_LOG      what is logged to standard error: error, warn, info (default), debug, or
                per module, as in mailboxqtt::net=debug

Try it:
  mosquitto_sub -t 'home/#' -v &
  mosquitto_pub -t home/kitchen -m hello";

impl Arguments {
    /// Reads the file that the arguments name, if any, and puts environment and arguments over it.
    pub fn settings(&self) -> Result<File, InvalidConfig> {
        let mut file = match &self.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        file.listen = self.listen.unwrap_or(file.listen);
        file.shards = self.shards.unwrap_or(file.shards);
        file.durability = self.durability.unwrap_or(file.durability);
        file.log_segment_bytes = self.log_segment_bytes.unwrap_or(file.log_segment_bytes);
        if let Some(dir) = &self.data_dir {
            file.data_dir.clone_from(dir);
        }
        if file.data_dir.as_os_str().is_empty() {
            file.data_dir = default_dir(|name| std::env::var(name).ok()).unwrap_or_default();
        }
        file.allow_anonymous |= self.allow_anonymous;
        Ok(file)
    }
}

fn read(path: &Path) -> Result<File, InvalidConfig> {
    let text = fs::read_to_string(path)
        .map_err(|error| InvalidConfig::Unreadable { path: path.into(), error })?;
    toml::from_str(&text)
        .map_err(|error| InvalidConfig::Syntax { path: path.into(), error: Box::new(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mailboxqtt.toml");
        fs::write(&path, "shards = 3\ninflight_max = 7").unwrap();
        let arguments = Arguments { shards: Some(5), config: Some(path), ..Arguments::default() };
        let file = arguments.settings().unwrap();
        assert_eq!((file.shards, file.inflight_max), (5, 7));
    }
}
