//! Another server says who a client is: one POST per login. Floor 3, called by `auth::verifier`.
//!
//! What it is asked, and what it answers, is in docs/authentication.md. Whatever else it answers, and if it answers
//! nothing in time, the client is refused.
//!
//! # Invariants
//!
//! - At most so many questions at once, and so many that wait.
//! - No password is kept: the cache knows a keyed hash of what was asked, and only what was allowed is in it.
//! - A redirect is no answer, so passwords go where the settings say and nowhere else.

use std::error::Error;
use std::fmt;
use std::fs;
use std::iter;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use reqwest::{Certificate, Client, Url, redirect};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use crate::access::Rule;
use crate::auth::claims::read_rules;
use crate::auth::credential::{Key, hmac};
use crate::auth::slots::Slots;
use crate::session::authentication::{
    Authenticated, AuthenticationError, Login, Proof, Refused, UserName,
};

/// Largest answer in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Whom to ask, and how.
#[derive(Clone)]
pub struct CallOutSettings {
    /// `http://` or `https://`. Its query is for nobody's eyes.
    pub url: String,
    /// From the question to the whole answer.
    pub answer_max: Duration,
    /// Questions at the same time.
    pub questions_max: usize,
    /// More of them that may wait.
    pub waiting_max: usize,
    /// How long the same question need not be asked again after it was allowed; zero asks always.
    pub cache: Duration,
    /// Such answers that are remembered, about 200 bytes each without rules.
    pub cache_entries_max: usize,
    /// Whose certificates are trusted; `None` is whom the system trusts.
    pub ca_file: Option<PathBuf>,
}

/// The URL is not for logs.
impl fmt::Debug for CallOutSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallOutSettings").finish_non_exhaustive()
    }
}

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InvalidCallOut(String);

/// See the module comment.
pub(super) struct CallOut {
    client: Client,
    url: Url,
    slots: Slots,
    cache: Cache<Key, Allowed>,
    cache_for: Duration,
    secret: Key,
}

/// The secret is not for logs.
impl fmt::Debug for CallOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallOut").field("url", &shown(&self.url).as_str()).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Allowed {
    user: UserName,
    rules: Arc<[Rule]>,
    until: Instant,
}

#[derive(Serialize)]
struct Question<'a> {
    client_id: &'a str,
    username: Option<&'a str>,
    password: Option<&'a str>,
    /// Without the port.
    peer: Option<IpAddr>,
}

#[derive(Deserialize)]
struct Answer {
    result: Verdict,
    /// In place of the user name that was asked about.
    username: Option<String>,
    acl: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Allow,
    Deny,
    /// There is nobody else to ask.
    Ignore,
}

impl CallOut {
    pub(super) fn new(settings: &CallOutSettings) -> Result<Self, InvalidCallOut> {
        let invalid = |why: &dyn fmt::Display| InvalidCallOut(why.to_string());
        let url =
            Url::parse(&settings.url).map_err(|error| invalid(&format!("is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid(&"must begin with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(&"must not hold a user name or a password"));
        }
        if url.scheme() == "http" && !is_loopback(&url) {
            warn!(url = %shown(&url), "passwords go over the network in the clear: ask by https://");
        }
        // Whoever came first has chosen, and there is one choice.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(settings.answer_max)
            .pool_max_idle_per_host(settings.questions_max);
        if let Some(path) = &settings.ca_file {
            let in_file = |why: &dyn fmt::Display| {
                invalid(&format!("has a ca_file {}: {why}", path.display()))
            };
            let pem = fs::read(path).map_err(|error| in_file(&error))?;
            let certificates =
                Certificate::from_pem_bundle(&pem).map_err(|error| in_file(&error))?;
            if certificates.is_empty() {
                return Err(in_file(&"no certificate in PEM"));
            }
            client = client.tls_certs_only(certificates);
        }
        let client =
            client.build().map_err(|error| invalid(&format!("cannot be asked: {error}")))?;
        let mut secret = Key::default();
        getrandom::fill(&mut secret).map_err(|error| invalid(&error))?;
        Ok(Self {
            client,
            url,
            slots: Slots::new(settings.questions_max, settings.waiting_max),
            cache: Cache::new(settings.cache_entries_max),
            cache_for: settings.cache,
            secret,
        })
    }

    /// Who the client is, in the words of the server.
    pub(super) async fn check(
        &self,
        login: &Login,
        client_id: &str,
        peer: Option<IpAddr>,
    ) -> Result<Authenticated, AuthenticationError> {
        let user = login.user_name.as_deref();
        let refused = |why| AuthenticationError::Login {
            user: user.map(UserName::new),
            refused: Refused(why),
        };
        let password = login.password.as_deref().map(str::from_utf8).transpose();
        let password =
            password.map_err(|_| refused("the password is no text, which JSON cannot hold"))?;
        let question = Question { client_id, username: user, password, peer };
        let key = self.key(&question);
        if let Some(allowed) = self.cache.get(&key)
            && Instant::now() < allowed.until
        {
            return Ok(authenticated(allowed));
        }
        let answer = self.ask(&question).await?;
        match answer.result {
            Verdict::Allow => (),
            Verdict::Deny | Verdict::Ignore => return Err(refused("denied by the call-out")),
        }
        let user = answer.username.as_deref().filter(|name| !name.is_empty()).or(user);
        let user = user.ok_or_else(|| refused("allowed by the call-out without a user name"))?;
        let rules = match &answer.acl {
            None => Arc::default(),
            Some(list) => read_rules(list).map_err(|Refused(why)| unavailable(&why))?,
        };
        let until = Instant::now() + self.cache_for;
        let allowed = Allowed { user: UserName::new(user), rules, until };
        if !self.cache_for.is_zero() {
            self.cache.insert(key, allowed.clone());
        }
        Ok(authenticated(allowed))
    }

    async fn ask(&self, question: &Question<'_>) -> Result<Answer, AuthenticationError> {
        let _slot = self.slots.take(question.peer).await.map_err(|_| AuthenticationError::Busy)?;
        // An error of the library may hold the URL, and that more than the log should.
        let failed = |error: reqwest::Error| unavailable(&with_cause(&error.without_url()));
        let mut response =
            self.client.post(self.url.clone()).json(question).send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(unavailable(&format!("status {}", response.status().as_u16())));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(unavailable(&format!(
                    "an answer of more than {ANSWER_BYTES_MAX} bytes"
                )));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|_| unavailable(&"an answer that is not understood"))
    }

    /// The same for the same question, and of no use to anybody else.
    fn key(&self, question: &Question<'_>) -> Key {
        let peer = question.peer.map(|peer| peer.to_string());
        let fields =
            [Some(question.client_id), question.username, question.password, peer.as_deref()];
        let mut joined = Vec::new();
        for field in fields {
            joined.push(field.is_some().into());
            let field = field.unwrap_or_default();
            joined.extend_from_slice(&(field.len() as u64).to_be_bytes());
            joined.extend_from_slice(field.as_bytes());
        }
        hmac(&self.secret, &[&joined])
    }
}

fn authenticated(allowed: Allowed) -> Authenticated {
    let mut authenticated = Authenticated::new(allowed.user, Proof::CallOut);
    authenticated.rules = allowed.rules;
    authenticated
}

/// The error and the innermost of its causes, such as "Connection refused".
fn with_cause(error: &dyn Error) -> String {
    match iter::successors(error.source(), |&cause| cause.source()).last() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn unavailable(why: &dyn fmt::Display) -> AuthenticationError {
    AuthenticationError::Unavailable(format!("call-out: {why}"))
}

/// Without its query, which may hold a key.
fn shown(url: &Url) -> Url {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    shown
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
