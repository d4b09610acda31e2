//! Finds out who a client is, by whatever the settings offer. Floor 3; `config` loads [`Methods`], `net` asks the
//! [`Gatekeeper`], which outlives a change of them.
//!
//! | order | what | where it is checked |
//! |---|---|---|
//! | 1 | client certificate | by the listener; here it is believed |
//! | 2 | Authentication Method, if CONNECT names one | [`Scram`], on the thread of the connection: microseconds |
//! | 3 | token in place of a password | [`Tokens`], on the same thread: some tens of microseconds |
//! | 4 | password file, if it knows the user or nobody else can be asked | on a thread for blocking work |
//! | 5 | call-out | another server |
//!
//! The first that knows the user decides. All that fail give the client the same answer.
//!
//! # Invariants
//!
//! - No password is checked on a thread that moves messages, and no more at once than [`Settings::checks_max`].
//! - A client that sends neither user name, password nor method costs no lock and no allocation here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::auth::call_out::{CallOut, CallOutSettings, InvalidCallOut};
use crate::auth::failures::{Failures, Patience};
use crate::auth::password_file::{InvalidPasswordFile, PasswordFile};
use crate::auth::scram::{InvalidUser, Scram};
use crate::auth::slots::Slots;
use crate::auth::token::{InvalidKeys, TokenSettings, Tokens};
use crate::codec::Connect;
use crate::ids::ClientId;
use crate::session::authentication::{
    Access, Admission, Anonymous, Authenticated, AuthenticationError, Caller, Directory, Login,
    Logins, Proof, Refused, UserName,
};

/// What there is to find out with who a client is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What becomes of clients that do not say who they are.
    pub anonymous: Anonymous,
    /// Names with the text form of their credentials.
    pub scram_users: BTreeMap<String, String>,
    /// Where users and their passwords are.
    pub password_file: Option<PathBuf>,
    /// Tokens in place of passwords.
    pub tokens: Option<TokenSettings>,
    /// Another server that knows users.
    pub call_out: Option<CallOutSettings>,
    /// Passwords that are checked at the same time.
    pub checks_max: usize,
    /// More of them that may wait.
    pub checks_waiting_max: usize,
    /// With addresses that fail.
    pub patience: Patience,
}

/// The same, read and checked.
#[derive(Debug)]
pub struct Methods {
    access: Access,
    anonymous: Anonymous,
    scram: Option<Scram>,
    tokens: Option<Tokens>,
    passwords: Option<Arc<PasswordFile>>,
    call_out: Option<CallOut>,
    checks: Slots,
    patience: Patience,
}

/// Why nobody could log in.
#[derive(Debug, thiserror::Error)]
pub enum InvalidMethods {
    /// Of SCRAM.
    #[error("setting `scram_users`: {0}")]
    User(#[from] InvalidUser),
    /// Of the password file.
    #[error("setting `authentication.password_file`: {0}")]
    PasswordFile(#[from] InvalidPasswordFile),
    /// Of tokens.
    #[error("section `authentication.jwt`: {0}")]
    Keys(#[from] InvalidKeys),
    /// Of the call-out.
    #[error("setting `authentication.http.url` {0}")]
    CallOut(#[from] InvalidCallOut),
}

impl Methods {
    /// Reads all files that the settings name.
    pub fn load(settings: &Settings) -> Result<Self, InvalidMethods> {
        let passwords = settings.password_file.as_deref().map(PasswordFile::read).transpose()?;
        let more = passwords.iter().flat_map(PasswordFile::scram_users);
        let scram = Scram::with_others(&settings.scram_users, more)?;
        let scram = (!scram.is_empty()).then_some(scram);
        let mut access = Access { authenticators: Vec::new(), logins: Logins::Ignored };
        if let Some(scram) = &scram {
            access.authenticators.push(Arc::new(scram.clone()));
        }
        let tokens = settings.tokens.as_ref().map(Tokens::load).transpose()?;
        let call_out = settings.call_out.as_ref().map(CallOut::new).transpose()?;
        if passwords.is_some() || tokens.is_some() || call_out.is_some() {
            access.logins = Logins::Checked;
        }
        Ok(Self {
            access,
            anonymous: settings.anonymous,
            scram,
            tokens,
            passwords: passwords.map(Arc::new),
            call_out,
            checks: Slots::new(settings.checks_max, settings.checks_waiting_max),
            patience: settings.patience,
        })
    }

    /// What becomes of clients that do not say who they are.
    pub fn anonymous(&self) -> Anonymous {
        self.anonymous
    }

    async fn check(
        &self,
        login: Login,
        client_id: &ClientId,
        address: Option<IpAddr>,
    ) -> Result<Authenticated, AuthenticationError> {
        let user = login.user_name.as_deref().map(UserName::new);
        if let Some(tokens) = &self.tokens
            && let Some(token) = tokens.find(&login)
        {
            let checked = tokens.check(token, client_id.as_str());
            return checked.map_err(|refused| AuthenticationError::Login { user, refused });
        }
        let name = login.user_name.as_deref().unwrap_or_default();
        if let Some(passwords) = &self.passwords
            && (self.call_out.is_none() || passwords.knows(name))
        {
            let is_right = self.check_password(passwords, login).await?;
            return match user {
                Some(user) if is_right => Ok(Authenticated::new(user, Proof::Password)),
                user => Err(AuthenticationError::Login { user, refused: WRONG }),
            };
        }
        match &self.call_out {
            Some(call_out) => call_out.check(&login, client_id.as_str(), address).await,
            None => Err(AuthenticationError::Login { user, refused: NO_TOKEN }),
        }
    }

    async fn check_password(
        &self,
        passwords: &Arc<PasswordFile>,
        login: Login,
    ) -> Result<bool, AuthenticationError> {
        let slot = self.checks.take().await.map_err(|_| AuthenticationError::Busy)?;
        let passwords = passwords.clone();
        let checking = tokio::task::spawn_blocking(move || {
            // Held to the end of the work, also if the client does not wait for it.
            let _slot = slot;
            let name = login.user_name.unwrap_or_default();
            passwords.matches(&name, login.password.as_deref())
        });
        checking
            .await
            .map_err(|_| AuthenticationError::Unavailable("the check has failed".to_owned()))
    }
}

/// For the log. The client is told the same for everything.
const WRONG: Refused = Refused("unknown user or wrong password");

const NO_TOKEN: Refused = Refused("no token");

impl Directory for Methods {
    fn is_still_known(&self, user: &UserName, proof: &Proof) -> bool {
        let name = user.as_str();
        match proof {
            Proof::Method { .. } => self.scram.as_ref().is_some_and(|scram| scram.knows(name)),
            Proof::Password => self.passwords.as_ref().is_some_and(|file| file.knows(name)),
            Proof::Certificate | Proof::Token | Proof::CallOut => true,
        }
    }
}

/// See the module comment.
#[derive(Debug)]
pub struct Gatekeeper {
    methods: ArcSwap<Methods>,
    failures: Mutex<Failures>,
}

impl Gatekeeper {
    /// With these methods until there are others.
    pub fn new(methods: Arc<Methods>) -> Self {
        Self { methods: ArcSwap::new(methods), failures: Mutex::new(Failures::default()) }
    }

    /// For all who connect from now on. Who is connected and no longer known is for the caller to be told, by
    /// `Mail::UsersChanged` with the same `methods`.
    pub fn replace(&self, methods: Arc<Methods>) {
        self.methods.store(methods);
    }

    /// What becomes of clients that do not say who they are.
    pub fn anonymous(&self) -> Anonymous {
        self.methods.load().anonymous()
    }

    /// What the CONNECT says of who the client is.
    pub fn admit(
        &self,
        connect: &Connect<'_>,
        caller: &Caller<'_>,
    ) -> Result<Admission, AuthenticationError> {
        self.methods.load().access.handle_connect(connect, caller)
    }

    /// How long a client from `address` has to wait before [`Gatekeeper::check`], or before its exchange.
    pub fn wait(&self, address: IpAddr, now: Instant) -> Result<Duration, AuthenticationError> {
        let patience = self.methods.load().patience;
        let wait = self.failures().admit(address, now, &patience);
        wait.map_err(|_| AuthenticationError::Busy)
    }

    /// A client from `address` has not proved what it tried to.
    pub fn failed(&self, address: IpAddr, now: Instant) {
        let patience = self.methods.load().patience;
        self.failures().record(address, now, &patience);
    }

    /// Who it is, or why not. Cancelling it is safe.
    pub async fn check(
        &self,
        login: Login,
        client_id: &ClientId,
        address: Option<IpAddr>,
    ) -> Result<Authenticated, AuthenticationError> {
        let methods = self.methods.load_full();
        methods.check(login, client_id, address).await
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
