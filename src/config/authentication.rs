//! The section `[authentication]` and those below it: who may log in by what. Floor 6, a part of `config::file`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::auth::{self, CallOutSettings, ClaimNames, Patience, TokenPlace, TokenSettings};
use crate::config::{File, InvalidValue, Url};

/// Users with passwords, and what is done against guesses.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Authentication {
    /// Users and their passwords, one `name:hash` per line, as `mailboxqtt passwd` and `mosquitto_passwd` write them;
    /// empty is none.
    pub password_file: PathBuf,
    /// Passwords that are checked at the same time; 0 is one per core. Each may take 19 MiB meanwhile, or what its
    /// hash asks for.
    pub checks_max: usize,
    /// Further clients that may wait for the check of their password, a quarter of them from one address; one more is
    /// told that the broker is busy.
    pub checks_waiting_max: usize,
    /// Failures that an address may have before its logins have to wait; one is forgiven every 15 s.
    pub failures_free: u32,
    /// Longest time in seconds that a login from an address with more failures waits before it is looked at, and
    /// at most a third of `handshake_s_max`; 0 lets nobody wait.
    pub failure_delay_s_max: u16,
    /// Addresses whose failures are remembered, at about 64 bytes each.
    pub failure_addresses_max: usize,
    /// Seconds that a session stays whose client is away and whose user is in no password file and no list of SCRAM
    /// users any more; 0 is for ever. Where clients may come by tokens, a call-out or certificates nobody knows all
    /// users, and no session ends for that.
    pub removed_user_session_s_max: u32,
    /// JSON Web Tokens in place of passwords; with one of its three key files it is on.
    pub jwt: Jwt,
    /// Another server that is asked; with an URL it is on.
    pub http: Http,
}

/// Users of one listener, in place of `[authentication]` and `[scram_users]` as a whole: whoever is known there is not
/// known here. What is done against guesses is for all listeners together, and said there.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerAuthentication {
    /// Users and their passwords, as `password_file` below `[authentication]`; empty is none.
    pub password_file: PathBuf,
    /// JSON Web Tokens in place of passwords; with one of its three key files it is on.
    pub jwt: Jwt,
    /// Another server that is asked; with an URL it is on. Its limits and what it remembers are for this listener.
    pub http: Http,
}

/// Tokens, and what is read of them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Jwt {
    /// Where a token is in a CONNECT: `password` or `user_name`.
    pub from: Place,
    /// A secret of at least 32 bytes for HS256, HS384 and HS512.
    pub secret_file: PathBuf,
    /// A public key in PEM: RSA for RS and PS, EC for ES256 and ES384, Ed25519 for EdDSA.
    pub public_key_file: PathBuf,
    /// A JSON Web Key Set; a token that has a `kid` needs the key with that one.
    pub jwks_file: PathBuf,
    /// The claim that is the user name.
    pub user_claim: String,
    /// The claim that has to be the client identifier; empty lets a client use any.
    pub client_id_claim: String,
    /// The claim that has rules for topics; empty reads none.
    pub acl_claim: String,
    /// `aud` has to be one of these; empty takes tokens that are for nobody in particular.
    pub audiences: Vec<String>,
    /// `iss` has to be one of these; empty takes all.
    pub issuers: Vec<String>,
    /// Refuse tokens without `exp`, which are good for ever.
    pub expiry_required: bool,
    /// Seconds that clocks may differ, at most a day.
    pub leeway_s: u32,
}

/// Where a token is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In place of the password.
    #[default]
    Password,
    /// In place of the user name.
    UserName,
}

/// A server that says who may log in.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where to POST the question, by `http://` or `https://`; empty is nowhere. A query in it is never shown.
    pub url: Url,
    /// Milliseconds for the whole answer; then the client is refused.
    pub timeout_ms: u32,
    /// Questions at the same time.
    pub questions_max: usize,
    /// Further clients that may wait for their question; one more is told that the broker is busy.
    pub questions_waiting_max: usize,
    /// Seconds for which what was allowed is not asked again; 0 asks for each login.
    pub cache_s: u32,
    /// Answers that are remembered, at about 200 bytes each without rules.
    pub cache_entries_max: usize,
    /// Certificates in PEM that are trusted for `https://`; empty trusts whom the system trusts.
    pub ca_file: PathBuf,
}

impl Default for Jwt {
    fn default() -> Self {
        Self {
            from: Place::Password,
            secret_file: PathBuf::new(),
            public_key_file: PathBuf::new(),
            jwks_file: PathBuf::new(),
            user_claim: "sub".to_owned(),
            client_id_claim: String::new(),
            acl_claim: String::new(),
            audiences: Vec::new(),
            issuers: Vec::new(),
            expiry_required: true,
            leeway_s: 30,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            url: Url::default(),
            timeout_ms: 3_000,
            questions_max: 64,
            questions_waiting_max: 1_000,
            cache_s: 60,
            cache_entries_max: 10_000,
            ca_file: PathBuf::new(),
        }
    }
}

impl Default for Authentication {
    fn default() -> Self {
        Self {
            password_file: PathBuf::new(),
            checks_max: 0,
            checks_waiting_max: 1_000,
            failures_free: 10,
            failure_delay_s_max: 4,
            failure_addresses_max: 65_536,
            removed_user_session_s_max: 86_400,
            jwt: Jwt::default(),
            http: Http::default(),
        }
    }
}

impl File {
    /// Whether anybody can prove who he is on a listener that has no users of its own.
    pub(super) fn has_users(&self) -> bool {
        !self.scram_users.is_empty() || self.authentication.is_some()
    }
}

impl Authentication {
    /// Whether anybody could log in by it.
    pub fn is_some(&self) -> bool {
        some_path(&self.password_file).is_some() || self.jwt.is_on() || self.http.is_on()
    }

    /// Checks the values.
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        not_zero("authentication.failure_addresses_max", self.failure_addresses_max)?;
        self.jwt.check()?;
        self.http.check()
    }

    /// How long a session stays whose user nobody knows any more.
    pub(super) fn removed_user_session_max(&self) -> Option<Duration> {
        let seconds = self.removed_user_session_s_max;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// For `auth`: what users are known by.
    pub(super) fn settings(&self, scram_users: BTreeMap<String, String>) -> auth::Settings {
        auth::Settings {
            scram_users,
            password_file: some_path(&self.password_file),
            tokens: self.jwt.is_on().then(|| self.jwt.settings()),
            call_out: self.http.is_on().then(|| self.http.settings()),
        }
    }

    /// For `auth`. Nobody is made to wait longer than a handshake may take.
    pub(super) fn limits(&self, handshake_max: Duration) -> auth::Limits {
        let delay_max = Duration::from_secs(self.failure_delay_s_max.into());
        auth::Limits {
            checks_max: match self.checks_max {
                0 => available_parallelism().map_or(1, usize::from),
                max => max,
            },
            checks_waiting_max: self.checks_waiting_max,
            patience: Patience {
                failures_free: self.failures_free,
                delay_max: delay_max.min(handshake_max / 3),
                addresses_max: self.failure_addresses_max,
            },
        }
    }
}

impl ListenerAuthentication {
    /// Whether anybody could log in by it.
    pub fn is_some(&self) -> bool {
        some_path(&self.password_file).is_some() || self.jwt.is_on() || self.http.is_on()
    }

    /// Checks the values.
    pub(super) fn check(&self) -> Result<(), InvalidValue> {
        self.jwt.check()?;
        self.http.check()
    }

    /// For `auth`: what users are known by.
    pub(super) fn settings(&self) -> auth::Settings {
        auth::Settings {
            scram_users: BTreeMap::new(),
            password_file: some_path(&self.password_file),
            tokens: self.jwt.is_on().then(|| self.jwt.settings()),
            call_out: self.http.is_on().then(|| self.http.settings()),
        }
    }
}

impl Jwt {
    fn check(&self) -> Result<(), InvalidValue> {
        not_zero("authentication.jwt.user_claim", self.user_claim.len())?;
        if self.leeway_s > 86_400 {
            let rule = "must be at most 86400, a day";
            return Err(InvalidValue { key: "authentication.jwt.leeway_s", rule });
        }
        Ok(())
    }

    fn is_on(&self) -> bool {
        let files = [&self.secret_file, &self.public_key_file, &self.jwks_file];
        files.into_iter().any(|path| some_path(path).is_some())
    }

    fn settings(&self) -> TokenSettings {
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        TokenSettings {
            from: match self.from {
                Place::Password => TokenPlace::Password,
                Place::UserName => TokenPlace::UserName,
            },
            secret_file: some_path(&self.secret_file),
            public_key_file: some_path(&self.public_key_file),
            jwks_file: some_path(&self.jwks_file),
            audiences: self.audiences.clone(),
            issuers: self.issuers.clone(),
            expiry_required: self.expiry_required,
            leeway: Duration::from_secs(self.leeway_s.into()),
            names: ClaimNames {
                user: self.user_claim.clone(),
                client_id: some(&self.client_id_claim),
                rules: some(&self.acl_claim),
            },
        }
    }
}

impl Http {
    fn check(&self) -> Result<(), InvalidValue> {
        not_zero("authentication.http.timeout_ms", self.timeout_ms as usize)?;
        not_zero("authentication.http.questions_max", self.questions_max)
    }

    fn is_on(&self) -> bool {
        !self.url.expose().is_empty()
    }

    fn settings(&self) -> CallOutSettings {
        CallOutSettings {
            url: self.url.expose().to_owned(),
            answer_max: Duration::from_millis(self.timeout_ms.into()),
            questions_max: self.questions_max,
            waiting_max: self.questions_waiting_max,
            cache: Duration::from_secs(self.cache_s.into()),
            cache_entries_max: self.cache_entries_max,
            ca_file: some_path(&self.ca_file),
        }
    }
}

fn not_zero(key: &'static str, value: usize) -> Result<(), InvalidValue> {
    match value {
        0 => Err(InvalidValue { key, rule: "must be at least 1" }),
        _ => Ok(()),
    }
}

/// `None` for an empty one.
fn some_path(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}
