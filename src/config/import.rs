//! Makes a settings file of a `mosquitto.conf`, and says what it leaves out. Floor 6, called by `main`.
//!
//! `lines` reads the file and those that it includes, `listener` collects the settings of each listener, and
//! `draft` holds what comes out. A setting gets there only if [`File`](crate::config::File) takes it, so what is
//! printed can always be read; everything else is left out with a reason. Only the names of settings are
//! repeated, because there are passwords among the values.
//!
//! The meaning of each setting is that of mosquitto 2.0, where anything said before the first `listener` is for a
//! listener on port 1883 that may not be wanted at all.

mod draft;
mod lines;
mod listener;

use std::path::Path;

use toml::Value;

use draft::Draft;
use lines::{Line, read};
use listener::{Listener, Scope};

pub use lines::ImportError;

/// A settings file that does what a `mosquitto.conf` does, as far as there are settings for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Import {
    /// The settings file.
    pub settings: String,
    /// What has no place in it: file, line, setting and reason.
    pub left_out: Vec<String>,
}

/// Reads the `mosquitto.conf` at `path`. An error is a file that cannot be read.
pub fn import(path: &Path) -> Result<Import, ImportError> {
    let lines = read(path)?;
    let mut draft = Draft::default();
    let mut listeners = vec![Listener::default()];
    let is_true =
        |wanted: &str| lines.iter().any(|line| line.name == wanted && line.flag() == Some(true));
    let scope = match is_true("per_listener_settings") {
        true => Scope::Listener,
        false => Scope::All,
    };
    let mut file = None;
    for line in &lines {
        // Each file begins with the listener that need not be named.
        if file.replace(&line.place.file) != Some(&line.place.file) {
            listeners.push(Listener::default());
        }
        // What stands below a `connection` and is not about bridges is for the listener before it, or for all.
        if line.name == "listener" {
            listeners.push(Listener::named(line));
        } else if line.name.starts_with("bridge_") || BRIDGE.contains(&line.name.as_str()) {
            draft.leave_out(line, "there are no bridges to other brokers here");
        } else if !listeners.last_mut().is_some_and(|it| it.take(line, scope)) {
            global(line, &mut draft);
        }
    }
    listener::write(Listener::join_unnamed(listeners), scope, &mut draft);
    let newest = Value::from("drop_newest");
    draft.add("queue_policy", newest, "mosquitto drops what comes when a queue is full");
    Ok(draft.finish())
}

/// A setting that is for the whole broker.
fn global(line: &Line, draft: &mut Draft) {
    let number = line.value.parse::<i64>().ok();
    match (line.name.as_str(), number, line.flag()) {
        ("allow_anonymous" | "retain_available", _, Some(flag)) => {
            draft.set(line, &line.name, Value::Boolean(flag));
        }
        ("password_file", ..) => draft.set(line, "authentication.password_file", line.text()),
        ("acl_file", ..) => draft.set(line, "authorisation.acl_file", line.text()),
        ("persistence", _, Some(true)) => draft.set(line, "durability", "always".into()),
        ("persistence", _, Some(false)) => draft.set(line, "durability", "none".into()),
        ("persistence_location", ..) => draft.leave_out(
            line,
            "what is there is not read, and this broker has a folder of its own, see data_dir",
        ),
        ("max_inflight_messages", Some(0), _) => draft.set(line, "inflight_max", 65_535.into()),
        ("max_inflight_messages", Some(max), _) => draft.set(line, "inflight_max", max.into()),
        ("max_queued_messages" | "max_queued_bytes" | "max_packet_size", Some(0), _) => {
            draft.leave_out(line, "everything has a limit here, and the default is kept");
        }
        ("max_queued_messages", Some(max), _) => {
            draft.set(line, "queue_messages_max", max.into());
        }
        ("max_queued_bytes", Some(max), _) => draft.set(line, "queue_bytes_max", max.into()),
        ("max_packet_size", Some(max), _) => draft.set(line, "packet_bytes_max", max.into()),
        ("message_size_limit", Some(0), _) => (),
        ("message_size_limit", Some(_), _) => draft.leave_out(
            line,
            "there is a limit for packets and none for payloads: set packet_bytes_max with room for the topic",
        ),
        ("max_keepalive", Some(65_535), _) => draft.set(line, "keep_alive_s_max", 0.into()),
        ("max_keepalive", Some(max), _) => draft.set(line, "keep_alive_s_max", max.into()),
        ("persistent_client_expiration", ..) => match seconds(&line.value) {
            Some(seconds) => draft.set(line, "session_expiry_s_max", seconds.into()),
            None => draft.leave_out(line, "is not a number and one of h, d, w, m, y"),
        },
        ("sys_interval", Some(0), _) => {
            draft.leave_out(line, "$SYS is always published; set sys_interval_s to make it seldom");
        }
        ("sys_interval", Some(seconds), _) => draft.set(line, "sys_interval_s", seconds.into()),
        ("memory_limit", Some(bytes @ 1..), _) => {
            draft.set(line, "memory_bytes_max", bytes.into());
        }
        ("global_max_connections", Some(max @ 0..), _) => {
            draft.set(line, "connections_max", max.into());
        }
        _ if is_so_already(line) => (),
        (name, ..) => draft.leave_out(line, reason(name)),
    }
}

/// `14d` in seconds, as mosquitto counts.
fn seconds(duration: &str) -> Option<i64> {
    let (count, unit) = duration.split_at_checked(duration.len().checked_sub(1)?)?;
    let hours = match unit {
        "h" => 1,
        "d" => 24,
        "w" => 24 * 7,
        "m" => 24 * 30,
        "y" => 24 * 365,
        _ => return None,
    };
    count.parse::<u32>().ok().map(|count| i64::from(count) * hours * 3600)
}

/// Settings that say what happens here anyway.
fn is_so_already(line: &Line) -> bool {
    match line.name.as_str() {
        "set_tcp_nodelay" | "allow_zero_length_clientid" => line.flag() == Some(true),
        "queue_qos0_messages" | "upgrade_outgoing_qos" | "use_username_as_clientid" => {
            line.flag() == Some(false)
        }
        "per_listener_settings" | "include_dir" => true,
        "log_dest" => line.value == "stderr",
        "memory_limit" | "max_inflight_bytes" => line.value == "0",
        _ => false,
    }
}

/// Why there is no place for the setting `name`.
fn reason(name: &str) -> &'static str {
    match name {
        "set_tcp_nodelay" => "TCP_NODELAY is always set",
        "allow_zero_length_clientid" => "MQTT lets clients leave their identifier to the broker",
        "auto_id_prefix" => "identifiers that the broker gives begin with `auto-`",
        "queue_qos0_messages" => "messages at QoS 0 are not kept for clients that are away",
        "upgrade_outgoing_qos" => "MQTT does not allow it",
        "allow_duplicate_messages" => {
            "a message that matches several subscriptions of a client is delivered once"
        }
        "max_inflight_bytes" => "messages in flight are limited by number: set inflight_max",
        "max_queued_messages"
        | "max_queued_bytes"
        | "max_inflight_messages"
        | "max_packet_size"
        | "message_size_limit"
        | "max_keepalive"
        | "sys_interval"
        | "memory_limit"
        | "global_max_connections" => "is not a number that it may be",
        "allow_anonymous" | "retain_available" | "persistence" => "is not true or false",
        "autosave_interval" | "autosave_on_changes" | "persistence_file" => {
            "what is acknowledged is on the disk already: see durability and data_dir"
        }
        "user" | "pid_file" => {
            "is for the service manager, as in the unit that comes with this broker"
        }
        "log_dest" | "log_facility" => {
            "the log goes to standard error, which a service manager keeps"
        }
        "log_type" | "connection_messages" => "set RUST_LOG to error, warn, info or debug",
        "log_timestamp" | "log_timestamp_format" => {
            "the log has times of its own, and none where systemd's journal adds them"
        }
        "websockets_log_level" => "set RUST_LOG",
        "websockets_headers_size" => "headers have a fixed limit",
        "clientid_prefixes" | "use_username_as_clientid" => {
            "SECURITY: client identifiers are not bound to this here; use rules with %c and %u"
        }
        "check_retain_source" => "who may publish is decided when a message comes in",
        "psk_file" | "psk_hint" => "SECURITY: there are no pre-shared keys here; use certificates",
        "plugin" | "auth_plugin" | "auth_plugin_deny_special_chars" => {
            "SECURITY: there are no plugins here; see the sections authentication and authorisation"
        }
        _ if name.starts_with("auth_opt_") || name.starts_with("plugin_opt_") => {
            "there are no plugins here"
        }
        _ => "there is nothing like it here",
    }
}

/// Settings that are for bridges, wherever they stand.
const BRIDGE: &[&str] = &[
    "address",
    "addresses",
    "cleansession",
    "clientid",
    "connection",
    "idle_timeout",
    "keepalive_interval",
    "local_cleansession",
    "local_clientid",
    "local_password",
    "local_username",
    "notification_topic",
    "notifications",
    "notifications_local_only",
    "password",
    "remote_clientid",
    "remote_password",
    "remote_username",
    "restart_timeout",
    "round_robin",
    "start_type",
    "threshold",
    "topic",
    "try_private",
    "username",
];

#[cfg(test)]
mod tests;
