//! The listeners of a `mosquitto.conf`. Floor 6, called by `config::import`.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};

use toml::Value;

use crate::config::import::draft::Draft;
use crate::config::import::lines::Line;
use crate::config::import::reason;
use crate::topic::MountPoint;

/// mosquitto's, where nothing else is said.
const PORT: u16 = 1883;

/// Whose settings users, rules and consent to anonymous clients are: what `per_listener_settings` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scope {
    /// Of the whole broker.
    All,
    /// Of one listener.
    Listener,
}

/// A listener with everything that was said of it; a setting that was said twice counts as it was said last.
#[derive(Clone, Debug, Default)]
pub(super) struct Listener {
    /// `None` for the one that need not be named.
    named: Option<Line>,
    settings: Vec<Line>,
}

/// Settings of a listener.
const OWN: &[&str] = &[
    "bind_address",
    "bind_interface",
    "cafile",
    "capath",
    "certfile",
    "ciphers",
    "ciphers_tls1.3",
    "crlfile",
    "dhparamfile",
    "http_dir",
    "keyfile",
    "max_connections",
    "max_qos",
    "max_topic_alias",
    "maximum_qos",
    "mount_point",
    "port",
    "protocol",
    "psk_hint",
    "require_certificate",
    "socket_domain",
    "tls_engine",
    "tls_engine_kpass_sha1",
    "tls_keyform",
    "tls_version",
    "use_identity_as_username",
    "use_subject_as_username",
    "use_username_as_clientid",
    "websockets_origin",
];

/// What mosquitto does with clients that do not say who they are, where nothing is said of them.
const REFUSED: &str = "mosquitto refuses them where a listener is set up";

/// Settings of a listener in [`Scope::Listener`].
const SCOPED: &[&str] = &["acl_file", "allow_anonymous", "password_file"];

/// Settings that do not open the listener that need not be named.
const SILENT: &[&str] = &["acl_file", "allow_anonymous", "max_topic_alias", "tls_version"];

impl Listener {
    /// That begins with this line.
    pub(super) fn named(line: &Line) -> Self {
        Self { named: Some(line.clone()), settings: Vec::new() }
    }

    /// Whether `line` is a setting of it.
    pub(super) fn take(&mut self, line: &Line, scope: Scope) -> bool {
        let name = line.name.as_str();
        let is_own = OWN.contains(&name) || scope == Scope::Listener && SCOPED.contains(&name);
        if is_own {
            self.settings.push(line.clone());
        }
        is_own
    }

    /// All files together have one listener that need not be named.
    pub(super) fn join_unnamed(all: Vec<Self>) -> Vec<Self> {
        let (unnamed, mut named): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|listener| listener.named.is_none());
        let settings: Vec<Line> = unnamed.into_iter().flat_map(|it| it.settings).collect();
        let unnamed = Self { named: None, settings };
        if named.is_empty() || unnamed.is_opened() {
            named.insert(0, unnamed);
        }
        named
    }

    /// Whether something is said of it that asks for it; if not, it is there only where there is no other, and
    /// then for this machine alone.
    fn is_opened(&self) -> bool {
        let opens = |line: &Line| {
            let is_default = line.name == "protocol" && line.value == "mqtt";
            !SILENT.contains(&line.name.as_str()) && !is_default
        };
        self.named.is_some() || self.settings.iter().any(opens)
    }

    /// The last word on `name`.
    fn line(&self, name: &str) -> Option<&Line> {
        self.settings.iter().rev().find(|line| line.name == name)
    }

    fn flag(&self, name: &str) -> Option<&Line> {
        self.line(name).filter(|line| line.flag() == Some(true))
    }

    /// The line that it is about, for what is left out.
    fn first_line(&self) -> Option<&Line> {
        self.named.as_ref().or(self.line("port")).or(self.settings.first())
    }

    /// Port, and host or path.
    fn place(&self) -> (Option<u16>, Option<&str>) {
        match &self.named {
            Some(line) => {
                let (port, host) = line.value.split_once(' ').unwrap_or((&line.value, ""));
                (port.parse().ok(), Some(host.trim()).filter(|host| !host.is_empty()))
            }
            None => {
                let port = self.line("port").map_or(Some(PORT), |line| line.value.parse().ok());
                (port, self.line("bind_address").map(|line| line.value.as_str()))
            }
        }
    }

    /// Where it listens; an error is why that cannot be known.
    fn addresses(&self) -> Result<Vec<String>, &'static str> {
        let (port, host) = self.place();
        let port = port.ok_or("is not a port")?;
        let domain = self.line("socket_domain").map(|line| line.value.as_str());
        match (port, host) {
            (0, Some(path)) => return Ok(vec![format!("unix:{path}")]),
            (0, None) => return Err("port 0 needs the path of a Unix socket"),
            _ => (),
        }
        let is_wanted = |ip: &IpAddr| match domain {
            Some("ipv4") => ip.is_ipv4(),
            Some("ipv6") => ip.is_ipv6(),
            _ => true,
        };
        let ips: BTreeSet<IpAddr> = match host {
            // Here as there, an IPv6 socket is for IPv6 alone.
            None => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()].into(),
            Some("localhost") => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into(),
            Some(host) => {
                let found = (host, port).to_socket_addrs();
                found
                    .map_err(|_| "is a name that is not known here: put the address")?
                    .map(|addr| addr.ip())
                    .collect()
            }
        };
        let wanted = ips.into_iter().filter(is_wanted);
        Ok(wanted.map(|ip| std::net::SocketAddr::new(ip, port).to_string()).collect())
    }
}

/// Writes all listeners into `draft`.
pub(super) fn write(listeners: Vec<Listener>, scope: Scope, draft: &mut Draft) {
    if scope == Scope::Listener {
        write_rules(&listeners, draft);
    }
    // The one listener of a file that says nothing of listeners is the one at the top here.
    for line in listeners.iter().filter(|it| !it.is_opened()).flat_map(|it| &it.settings) {
        match (line.name.as_str(), line.flag(), line.value.parse::<i64>()) {
            ("allow_anonymous", Some(flag), _) => draft.set(line, &line.name, flag.into()),
            ("allow_anonymous", None, _) => draft.leave_out(line, reason("allow_anonymous")),
            ("max_topic_alias", _, Ok(max)) => draft.set(line, "topic_alias_max", max.into()),
            ("max_topic_alias", ..) => draft.leave_out(line, "is not a number"),
            _ => (),
        }
    }
    if scope == Scope::All && listeners.iter().any(Listener::is_opened) {
        draft.add_unless_set("allow_anonymous", false.into(), REFUSED);
    }
    // The default is the same in both: port 1883 of this machine.
    for listener in listeners.iter().filter(|listener| listener.is_opened()) {
        let Some(line) = listener.first_line() else { continue };
        match listener.addresses() {
            Err(reason) => draft.leave_out(line, reason),
            Ok(addresses) => {
                for listen in &addresses {
                    write_one(listener, line, listen, draft);
                    let is_said = |line: &Line| line.flag().is_some();
                    if scope == Scope::Listener
                        && !listener.line("allow_anonymous").is_some_and(is_said)
                    {
                        draft.add_of_listener(listen, "allow_anonymous", false.into(), REFUSED);
                    }
                }
                let limit = listener.line("max_connections").filter(|_| addresses.len() > 1);
                if let Some(limit) = limit.filter(|limit| limit.value != "-1") {
                    let reason = "each address of the listener may have as many here";
                    draft.leave_out(limit, reason);
                }
            }
        }
    }
}

fn write_one(listener: &Listener, first: &Line, listen: &str, draft: &mut Draft) {
    if !draft.add_listener(&first.place, listen) {
        return draft.leave_out(first, &format!("`listeners` cannot have {listen}"));
    }
    let proves = |name| listener.flag("require_certificate").and(listener.flag(name));
    for line in &listener.settings {
        if !listener.line(&line.name).is_some_and(|last| std::ptr::eq(last, line)) {
            continue;
        }
        let number = line.value.parse::<i64>().ok();
        match (line.name.as_str(), line.value.as_str(), number) {
            ("protocol", "websockets", _) => {
                draft.set_of_listener(line, "protocol", "websocket".into());
                // There, any path will do.
                draft.set_of_listener(line, "websocket_path", "".into());
                if listener.line("websockets_origin").is_none() {
                    let reason =
                        "pages of other sites may connect only if websocket_origins names them";
                    draft.leave_out(line, reason);
                }
            }
            ("protocol", "mqtt", _) | ("max_connections", _, Some(..=-1)) => (),
            ("max_connections", _, Some(max)) => {
                draft.set_of_listener(line, "connections_max", max.into());
            }
            ("mount_point", ..) => match MountPoint::parse(&line.value) {
                Ok(_) => draft.set_of_listener(line, "mount_point", line.text()),
                Err(error) => draft.leave_out(
                    line,
                    &format!("SECURITY: without it clients here see all topics: {error}"),
                ),
            },
            ("max_qos" | "maximum_qos", _, Some(max)) => {
                draft.set_of_listener(line, "qos_max", max.into());
            }
            ("max_topic_alias", _, Some(max)) => {
                draft.set_of_listener(line, "topic_alias_max", max.into());
            }
            ("max_qos" | "maximum_qos" | "max_topic_alias", ..) => {
                draft.leave_out(line, "is not a number");
            }
            ("password_file", ..) => {
                draft.set_of_listener(line, "authentication.password_file", line.text());
            }
            ("certfile", ..) => draft.set_of_listener(line, "certificate_file", line.text()),
            ("keyfile", ..) => draft.set_of_listener(line, "key_file", line.text()),
            ("tls_version", "tlsv1.3", _) => draft.set_of_listener(line, "tls_min", "1.3".into()),
            ("tls_version", "tlsv1.2", _) => draft.set_of_listener(line, "tls_min", "1.2".into()),
            ("tls_version", ..) => draft.leave_out(line, "TLS 1.2 is the oldest here"),
            ("require_certificate", "true" | "1", _) => {
                draft.set_of_listener(line, "client_certificates", "required".into());
            }
            ("cafile" | "crlfile", ..) if listener.flag("require_certificate").is_none() => {
                draft.leave_out(line, "means nothing without require_certificate");
            }
            ("cafile", ..) => draft.set_of_listener(line, "client_ca_file", line.text()),
            ("crlfile", ..) => draft.set_of_listener(line, "client_crl_file", line.text()),
            ("capath", ..) => {
                let reason =
                    "put all its certificates into one file and name that as client_ca_file";
                draft.leave_out(line, reason);
            }
            ("use_identity_as_username", "true" | "1", _) => {
                match proves("use_identity_as_username") {
                    Some(_) => {
                        draft.set_of_listener(line, "user_from_certificate", "common_name".into());
                    }
                    None => draft.leave_out(line, "means nothing without require_certificate"),
                }
            }
            ("use_subject_as_username", "true" | "1", _) => {
                let reason = "SECURITY: a user is the common name or the alternative name of a \
                              certificate: see user_from_certificate";
                // The other one has priority.
                if listener.flag("use_identity_as_username").is_none() {
                    draft.leave_out(line, reason);
                }
            }
            ("websockets_origin", ..) => {
                let origins = line.value.split(',').map(|it| it.trim().into()).collect();
                draft.set_of_listener(line, "websocket_origins", Value::Array(origins));
            }
            ("allow_anonymous", ..) => match line.flag() {
                Some(flag) => draft.set_of_listener(line, "allow_anonymous", flag.into()),
                None => draft.leave_out(line, reason("allow_anonymous")),
            },
            ("require_certificate" | "use_identity_as_username", ..)
            | ("use_subject_as_username" | "use_username_as_clientid", "false" | "0", _)
            | ("port" | "bind_address" | "socket_domain", ..)
            | ("acl_file", ..) => (),
            ("bind_interface", ..) => {
                draft.leave_out(line, "SECURITY: listeners are bound to addresses: see listen");
            }
            ("ciphers" | "ciphers_tls1.3" | "dhparamfile", ..) => {
                draft.leave_out(line, "all ciphers are strong, and they are not chosen here");
            }
            ("tls_engine" | "tls_engine_kpass_sha1" | "tls_keyform", ..) => {
                draft.leave_out(line, "keys are read from PEM files");
            }
            ("http_dir", ..) => draft.leave_out(line, "no files are served here"),
            (name, ..) => draft.leave_out(line, reason(name)),
        }
    }
}

/// Rules, which listeners have there and the whole broker has here: those that all have who have some.
fn write_rules(listeners: &[Listener], draft: &mut Draft) {
    let lines: Vec<&Line> = listeners.iter().filter_map(|it| it.line("acl_file")).collect();
    let Some(first) = lines.first() else { return };
    if lines.iter().any(|line| line.value != first.value) {
        let reason = "SECURITY: there is one for all listeners here, so nobody may do anything until you write \
                      one that names the users of all, and say it as acl_file below [authorisation] in place \
                      of the rule there";
        lines.iter().for_each(|line| draft.leave_out(line, reason));
        return draft.deny_all();
    }
    if lines.len() < listeners.len() {
        draft.leave_out(first, "it is for all listeners here, also for those without one there");
    }
    draft.set(first, "authorisation.acl_file", first.text());
}
