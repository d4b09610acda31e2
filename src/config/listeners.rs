//! `[[listeners]]` of the settings file. Floor 6, checked by `config::check`.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::auth::{InvalidMethods, Methods};
use crate::config::{File, InvalidValue, ListenerAuthentication};
use crate::net::accept::{Listen, Settings};
use crate::net::admission::AcceptRate;
use crate::net::tls::{
    CertificateFiles, ClientCertificates, InvalidTls, NamedCertificate, Tls, TlsFiles, TlsMin,
    UserFromCertificate,
};
use crate::net::upgrade::WebSocketSettings;
use crate::session::authentication::Anonymous;
use crate::topic::{InvalidMountPoint, MountPoint};

/// A listener with settings of its own. Without any there is the one of `listen`; beside these there is that one
/// only if `listen` is not at its default.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listener {
    /// Where: `ADDRESS:PORT`, or `unix:PATH` for a Unix socket, which user and group of the broker may use.
    pub listen: String,
    /// What is spoken: `mqtt`, or `websocket` (MQTT in binary WebSocket frames).
    pub protocol: Protocol,
    /// The server's certificate in PEM, followed by those that it depends on. With `key_file` it makes the listener
    /// one for TLS.
    pub certificate_file: PathBuf,
    /// The key of the certificate in PEM, without a passphrase.
    pub key_file: PathBuf,
    /// Oldest version of TLS: `1.2` or `1.3`.
    pub tls_min: TlsMin,
    /// Whether clients show certificates: `none`, `optional` (whoever does must show a good one) or `required`.
    pub client_certificates: ClientCertificates,
    /// The authorities of the clients' certificates, in PEM.
    pub client_ca_file: PathBuf,
    /// The certificates that those have revoked, in PEM; empty: none. Each authority in the chain of a client's
    /// certificate but the last needs a list in it.
    pub client_crl_file: PathBuf,
    /// The user that a client's certificate proves: `none`, `common_name` or `subject_alt_name` (its first DNS
    /// name, e-mail address or URI).
    pub user_from_certificate: UserFromCertificate,
    /// The path of WebSocket requests; empty takes any.
    pub websocket_path: String,
    /// The sites whose pages may connect by WebSocket, as in `https://example.com`; `*` is all. Empty: only pages
    /// from the host and port that they connect to. Clients that are no browsers may connect in any case.
    pub websocket_origins: Vec<String>,
    /// Every connection comes through a proxy that says whose it is (PROXY protocol, version 1 or 2). Only the
    /// proxy may be able to reach such a listener, for whoever does can say that he is anybody.
    pub proxy_protocol: bool,
    /// Accept clients that do not say who they are; without it the top-level key counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_anonymous: Option<bool>,
    /// Connections at the same time; 0 is as many as the broker may have in all.
    pub connections_max: usize,
    /// Connections per second from all addresses, beside the same key at the top; as many may come at once. 0 is no
    /// limit of its own.
    pub accept_rate_max: u32,
    /// The beginning of topics that its clients have to themselves, such as `tenant-a/`: they see what is below it,
    /// without it, and nothing else. Empty: its clients see all topics.
    pub mount_point: String,
    /// In place of `handshake_s_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_s_max: Option<u16>,
    /// In place of `connect_bytes_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_bytes_max: Option<u32>,
    /// In place of `packet_bytes_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_bytes_max: Option<u32>,
    /// In place of `inflight_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inflight_max: Option<u16>,
    /// In place of `receive_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_max: Option<u16>,
    /// In place of `subscriptions_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscriptions_max: Option<usize>,
    /// In place of `subscription_bytes_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_bytes_max: Option<usize>,
    /// In place of `keep_alive_s_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_s_max: Option<u16>,
    /// In place of `session_expiry_s_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_expiry_s_max: Option<u32>,
    /// In place of `topic_alias_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_alias_max: Option<u16>,
    /// In place of `qos_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos_max: Option<u8>,
    /// In place of `retain_available` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_available: Option<bool>,
    /// In place of `wildcard_subscriptions` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wildcard_subscriptions: Option<bool>,
    /// In place of `shared_subscriptions` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_subscriptions: Option<bool>,
    /// In place of `subscription_identifiers` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_identifiers: Option<bool>,
    /// In place of `response_topic_prefix` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_topic_prefix: Option<String>,
    /// In place of `check_payload_format` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_payload_format: Option<bool>,
    /// In place of `publish_rate_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_rate_max: Option<u32>,
    /// In place of `publish_bytes_rate_max` at the top, for connections through this listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_bytes_rate_max: Option<u64>,
    /// Users of its own, in place of `[authentication]` and `[scram_users]` as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authentication: Option<ListenerAuthentication>,
    /// Other certificates, for clients that ask for one of these servers (SNI).
    pub server_names: Vec<ServerName>,
}

/// What is spoken over a connection.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// MQTT.
    #[default]
    Mqtt,
    /// MQTT in WebSocket.
    Websocket,
}

/// A certificate for clients that ask for one server.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerName {
    /// The server, such as `mqtt.example.com`; `*.example.com` is every name with one label more.
    pub name: String,
    /// As for the listener.
    pub certificate_file: PathBuf,
    /// As for the listener.
    pub key_file: PathBuf,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            listen: String::new(),
            protocol: Protocol::default(),
            certificate_file: PathBuf::new(),
            key_file: PathBuf::new(),
            tls_min: TlsMin::default(),
            client_certificates: ClientCertificates::default(),
            client_ca_file: PathBuf::new(),
            client_crl_file: PathBuf::new(),
            user_from_certificate: UserFromCertificate::default(),
            websocket_path: "/mqtt".to_owned(),
            websocket_origins: Vec::new(),
            proxy_protocol: false,
            allow_anonymous: None,
            connections_max: 0,
            accept_rate_max: 0,
            mount_point: String::new(),
            handshake_s_max: None,
            connect_bytes_max: None,
            packet_bytes_max: None,
            inflight_max: None,
            receive_max: None,
            subscriptions_max: None,
            subscription_bytes_max: None,
            keep_alive_s_max: None,
            session_expiry_s_max: None,
            topic_alias_max: None,
            qos_max: None,
            retain_available: None,
            wildcard_subscriptions: None,
            shared_subscriptions: None,
            subscription_identifiers: None,
            response_topic_prefix: None,
            check_payload_format: None,
            publish_rate_max: None,
            publish_bytes_rate_max: None,
            authentication: None,
            server_names: Vec::new(),
        }
    }
}

/// Why a listener cannot be.
#[derive(Debug, thiserror::Error)]
pub enum InvalidListener {
    /// Not an address.
    #[error(
        "`listen = \"{0}\"` of a listener is not ADDRESS:PORT (numbers, no names), such as 0.0.0.0:8883, nor unix:PATH"
    )]
    Address(String),
    /// A rule between its keys.
    #[error("listener {listen}: {rule}")]
    Rule {
        /// Which.
        listen: String,
        /// What must be.
        rule: &'static str,
    },
    /// Its clients would not be among themselves.
    #[error("listener {listen}: {error}")]
    MountPoint {
        /// Which.
        listen: String,
        /// What must be.
        error: InvalidMountPoint,
    },
    /// Only the first could have it.
    #[error("{0} is the address of two listeners: give each one of its own, or leave one out")]
    SameAddress(Listen),
    /// Its files.
    #[error("listener {listen}: {error}")]
    Tls {
        /// Which.
        listen: String,
        /// Names the file.
        error: Box<InvalidTls>,
    },
    /// A value of its own that cannot be.
    #[error("listener {listen}: {value}")]
    Value {
        /// Which.
        listen: String,
        /// Names the key.
        value: InvalidValue,
    },
    /// Users of its own that cannot be.
    #[error("listener {listen}: {error}")]
    Authentication {
        /// Which.
        listen: String,
        /// Names the key.
        error: Box<InvalidMethods>,
    },
    /// Everybody could connect.
    #[error(
        "listening on {0} would let anybody on the network in without a password; listen on a loopback \
         address, give it users (a password_file below [authentication] in the settings file, made with \
         `mailboxqtt passwd FILE USER`, or [scram_users], or tokens, or a call-out), require client certificates that name a user (client_certificates and user_from_certificate of the listener), \
         or say --allow-anonymous (in the settings file: allow_anonymous = true)"
    )]
    OpenToTheWorld(Listen),
}

impl File {
    /// Those of `[[listeners]]` and the one of `listen`.
    pub(super) fn all_listeners(&self) -> Vec<Listener> {
        let mut listeners = self.listeners.clone();
        if listeners.is_empty() || self.listen != Self::default().listen {
            listeners.insert(0, Listener::plain(self.listen));
        }
        listeners
    }
}

impl Listener {
    /// MQTT over plain TCP.
    pub fn plain(listen: impl ToString) -> Self {
        Self { listen: listen.to_string(), ..Self::default() }
    }

    /// Checks the values and reads the files. What the listener does not say for itself is as in `common`.
    pub fn check(self, common: &File) -> Result<Settings, InvalidListener> {
        let Some(listen) = Listen::parse(&self.listen) else {
            return Err(InvalidListener::Address(self.listen));
        };
        if let Some(rule) = self.broken_rule(&listen) {
            return Err(InvalidListener::Rule { listen: self.listen, rule });
        }
        if let Err(value) = self.authentication.as_ref().map_or(Ok(()), |own| own.check()) {
            return Err(InvalidListener::Value { listen: self.listen, value });
        }
        let mount_point = match &*self.mount_point {
            "" => Ok(None),
            text => MountPoint::parse(text).map(Some),
        };
        let mount_point = mount_point.map_err(|error| {
            let listen = self.listen.clone();
            InvalidListener::MountPoint { listen, error }
        })?;
        let limits = common.through(&self).connection_limits().map_err(|value| {
            let listen = self.listen.clone();
            InvalidListener::Value { listen, value }
        })?;
        // Behind a proxy are the proxy's clients, wherever the proxy itself is.
        let is_open = listen.is_open() || self.proxy_protocol;
        let anonymous = match self.allow_anonymous.or(common.allow_anonymous) {
            Some(true) => Anonymous::Allowed,
            Some(false) => Anonymous::Refused,
            None if self.has_users(common) => Anonymous::Refused,
            None if is_open => return Err(InvalidListener::OpenToTheWorld(listen)),
            None => Anonymous::Allowed,
        };
        let websocket = (self.protocol == Protocol::Websocket).then(|| WebSocketSettings {
            path: self.websocket_path.clone(),
            origins: self.websocket_origins.clone(),
        });
        let methods = self.authentication.as_ref().map(|own| Methods::load(&own.settings()));
        let methods = methods.transpose().map_err(|error| InvalidListener::Authentication {
            listen: self.listen.clone(),
            error: Box::new(error),
        })?;
        Ok(Settings {
            listen,
            methods: methods.map(Arc::new),
            anonymous,
            connections_max: match self.connections_max {
                0 => usize::MAX,
                max => max,
            },
            accept_rate: AcceptRate::new(self.accept_rate_max).map(Arc::new),
            limits: Arc::new(limits),
            proxy_protocol: self.proxy_protocol,
            mount_point,
            tls: self.load_tls()?,
            websocket,
        })
    }

    /// Why nobody can connect, if it is so.
    pub(super) fn doubt(&self, common: &File) -> Option<String> {
        let is_refused = self.allow_anonymous.or(common.allow_anonymous) == Some(false);
        (is_refused && !self.has_users(common)).then(|| {
            format!(
                "listener {} lets nobody in: allow_anonymous is false and there are no users",
                self.listen
            )
        })
    }

    /// Whether anybody can prove who he is.
    fn has_users(&self, common: &File) -> bool {
        self.authentication.is_some()
            || common.has_users()
            || self.user_from_certificate != UserFromCertificate::None
    }

    fn broken_rule(&self, listen: &Listen) -> Option<&'static str> {
        let has_tls = self.has_tls();
        let wants_certificates = self.client_certificates != ClientCertificates::None;
        let has = |path: &PathBuf| !path.as_os_str().is_empty();
        let has_both = has(&self.certificate_file) && has(&self.key_file);
        let is_unix = matches!(listen, Listen::Unix(_));
        if self.authentication.as_ref().is_some_and(|own| !own.is_some()) {
            return Some(
                "`authentication` of its own needs a `password_file`, `jwt` or `http`, or nobody could log in",
            );
        }
        if has_tls && !has_both {
            return Some("TLS needs both `certificate_file` and `key_file`");
        }
        if is_unix && (has_tls || self.protocol == Protocol::Websocket) {
            return Some("a Unix socket speaks `mqtt` without TLS only");
        }
        if wants_certificates && !has_tls {
            return Some(
                "`client_certificates` needs `certificate_file` and `key_file`: it is for TLS",
            );
        }
        if wants_certificates != has(&self.client_ca_file) {
            return Some(
                "`client_ca_file` and `client_certificates` (`optional` or `required`) belong together",
            );
        }
        if has(&self.client_crl_file) && !wants_certificates {
            return Some("`client_crl_file` means nothing without `client_certificates`");
        }
        if self.user_from_certificate != UserFromCertificate::None && !wants_certificates {
            return Some("`user_from_certificate` means nothing without `client_certificates`");
        }
        if self.server_names.iter().any(|it| !(has(&it.certificate_file) && has(&it.key_file))) {
            return Some("each of `server_names` needs `certificate_file` and `key_file`");
        }
        if self.server_names.iter().any(|it| it.name.is_empty()) {
            return Some("each of `server_names` needs a `name`");
        }
        if !self.websocket_origins.is_empty() && self.protocol != Protocol::Websocket {
            return Some("`websocket_origins` means nothing without protocol `websocket`");
        }
        if !self.websocket_path.is_empty() && !self.websocket_path.starts_with('/') {
            return Some("`websocket_path` must begin with `/`");
        }
        None
    }

    fn has_tls(&self) -> bool {
        let files = [&self.certificate_file, &self.key_file];
        files.iter().any(|path| !path.as_os_str().is_empty()) || !self.server_names.is_empty()
    }

    fn load_tls(self) -> Result<Option<Tls>, InvalidListener> {
        if !self.has_tls() {
            return Ok(None);
        }
        let named = self.server_names.into_iter().map(|it| {
            let ServerName { name, certificate_file, key_file } = it;
            NamedCertificate { name, files: CertificateFiles { certificate_file, key_file } }
        });
        let files = TlsFiles {
            own: CertificateFiles {
                certificate_file: self.certificate_file,
                key_file: self.key_file,
            },
            named: named.collect(),
            client_certificates: self.client_certificates,
            client_ca_file: self.client_ca_file,
            client_crl_file: self.client_crl_file,
            user_from: self.user_from_certificate,
            tls_min: self.tls_min,
        };
        let tls = Tls::load(&files);
        tls.map(Some)
            .map_err(|error| InvalidListener::Tls { listen: self.listen, error: Box::new(error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> File {
        File::default()
    }

    fn users() -> File {
        File { scram_users: [("alice".to_owned(), String::new().into())].into(), ..nobody() }
    }

    fn consent() -> File {
        File { allow_anonymous: Some(true), ..nobody() }
    }

    fn refusal() -> File {
        File { allow_anonymous: Some(false), ..nobody() }
    }

    #[test]
    fn listening_beyond_loopback_needs_authentication_or_consent() {
        let open = Listener::plain("0.0.0.0:1883");
        let error = open.clone().check(&nobody()).unwrap_err().to_string();
        for way_out in [
            "0.0.0.0:1883",
            "loopback",
            "[scram_users]",
            "user_from_certificate",
            "allow_anonymous",
        ] {
            assert!(error.contains(way_out), "{error}");
        }
        assert!(open.clone().check(&users()).is_ok() && open.clone().check(&consent()).is_ok());
        let own = |allow_anonymous| Listener { allow_anonymous, ..open.clone() };
        assert!(own(Some(true)).check(&nobody()).is_ok());
        // Then it is not open, but shut.
        for (listener, common) in [(own(Some(false)), consent()), (open.clone(), refusal())] {
            let doubt = listener.doubt(&common).unwrap();
            assert!(doubt.starts_with("listener 0.0.0.0:1883 lets nobody in"), "{doubt}");
            assert_eq!(listener.check(&common).unwrap().anonymous, Anonymous::Refused);
        }
        assert!(open.doubt(&nobody()).is_none() && own(Some(false)).doubt(&users()).is_none());
        assert!(Listener::plain("unix:/nowhere/mqtt.sock").check(&nobody()).is_ok());
        // Whoever comes to the proxy comes in.
        let proxied = Listener { proxy_protocol: true, ..Listener::plain("127.0.0.1:0") };
        assert!(proxied.clone().check(&nobody()).is_err() && proxied.check(&users()).is_ok());
    }

    #[test]
    fn anonymous_clients_are_refused_where_there_are_users_and_no_consent() {
        let anonymous = |allow_anonymous, common: File| {
            let listener = Listener { allow_anonymous, ..Listener::plain("127.0.0.1:0") };
            listener.check(&common).unwrap().anonymous
        };
        assert_eq!(anonymous(None, nobody()), Anonymous::Allowed);
        assert_eq!(anonymous(None, users()), Anonymous::Refused);
        assert_eq!(anonymous(Some(true), users()), Anonymous::Allowed);
        assert_eq!(anonymous(Some(false), nobody()), Anonymous::Refused);
        assert_eq!(anonymous(None, consent()), Anonymous::Allowed);
        assert_eq!(anonymous(None, refusal()), Anonymous::Refused);
        assert_eq!(anonymous(Some(true), refusal()), Anonymous::Allowed);
    }

    #[test]
    fn users_of_a_listener_are_looked_for_in_its_own_section_alone() {
        let own = |text: &str| -> Listener {
            toml::from_str(&format!("listen = '0.0.0.0:1'\n[authentication]\n{text}")).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("users");
        std::fs::write(&file, "").unwrap();
        let text = format!("password_file = '{}'", file.display());
        let settings = own(&text).check(&nobody()).unwrap();
        assert!(settings.methods.is_some() && settings.anonymous == Anonymous::Refused);
        assert!(Listener::plain("127.0.0.1:1").check(&users()).unwrap().methods.is_none());
        for (text, named) in [
            ("", "`authentication` of its own needs"),
            (
                "password_file = '/nowhere'",
                "`authentication.password_file`: password file /nowhere",
            ),
            ("http = { url = 'ftp://x' }", "`authentication.http.url` must begin with"),
            (
                "http = { url = 'http://x', timeout_ms = 0 }",
                "`authentication.http.timeout_ms` must",
            ),
        ] {
            let error = own(text).check(&users()).unwrap_err().to_string();
            assert!(error.starts_with("listener 0.0.0.0:1: "), "{error}");
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn limits_of_a_listener_are_checked_with_its_name() {
        let listener = Listener { qos_max: Some(3), ..Listener::plain("127.0.0.1:1") };
        let error = listener.check(&nobody()).unwrap_err().to_string();
        assert_eq!(error, "listener 127.0.0.1:1: setting `qos_max` must be 0, 1 or 2");
    }

    #[test]
    fn keys_that_do_not_fit_together_are_refused_with_the_listener_and_the_rule() {
        let broken = [
            ("certificate_file = 'x'", "`key_file`"),
            ("client_certificates = 'required'", "`certificate_file`"),
            ("client_ca_file = 'x'", "`client_ca_file`"),
            ("client_crl_file = 'x'", "`client_crl_file`"),
            ("user_from_certificate = 'common_name'", "`user_from_certificate`"),
            ("websocket_origins = ['*']", "`websocket_origins`"),
            ("websocket_path = 'mqtt'", "`websocket_path`"),
            ("server_names = [{ name = 'a' }]", "`certificate_file`"),
            ("mount_point = 'tenant-a'", "must end with `/`"),
            ("mount_point = '$SYS/'", "must not begin with `$`"),
            ("mount_point = 'tenant/+/'", "must not hold `+`"),
        ];
        for (text, named) in broken {
            let mut listener: Listener = toml::from_str(text).unwrap();
            listener.listen = "127.0.0.1:8883".to_owned();
            let error = listener.check(&nobody()).unwrap_err().to_string();
            assert!(error.starts_with("listener 127.0.0.1:8883: "), "{error}");
            assert!(error.contains(named), "{text}: {error}");
        }
        let error = Listener::plain("8883").check(&nobody()).unwrap_err().to_string();
        assert!(
            error.starts_with("`listen = \"8883\"` of a listener is not ADDRESS:PORT"),
            "{error}"
        );
        let text = "listen = 'unix:x'\nprotocol = 'websocket'";
        let listener: Listener = toml::from_str(text).unwrap();
        assert!(listener.check(&nobody()).is_err());
    }
}
