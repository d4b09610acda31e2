//! Finds out who a client is, by whatever the settings offer. Floor 3; `config` loads [`Methods`], `net` asks the
//! [`Verifier`], which outlives a change of them.
//!
//! There is one verifier for all listeners, with the methods that they have in common. A listener may have methods of
//! its own in place of those; whoever asks brings them along.
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
//! - No password is checked on a thread that moves messages, and no more at once than [`Limits::checks_max`], through
//!   whichever listeners they come.
//! - The failures of an address count on all listeners together.
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
use crate::auth::token::{InvalidKeys, TokenPlace, TokenSettings, Tokens};
use crate::codec::Connect;
use crate::ids::ClientId;
use crate::session::authentication::{
    Access, Admission, Authenticated, AuthenticationError, Caller, Directory, Login, Logins, Proof,
    Refused, UserName,
};

/// What there is to find out with who a client is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names with the text form of their credentials.
    pub scram_users: BTreeMap<String, String>,
    /// Where users and their passwords are.
    pub password_file: Option<PathBuf>,
    /// Tokens in place of passwords.
    pub tokens: Option<TokenSettings>,
    /// Another server that knows users.
    pub call_out: Option<CallOutSettings>,
}

/// What all logins together may take, whatever methods they are checked with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
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
    scram: Option<Scram>,
    tokens: Option<Tokens>,
    /// A user name may be one.
    has_token_names: bool,
    passwords: Option<Arc<PasswordFile>>,
    call_out: Option<CallOut>,
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
            scram,
            tokens,
            has_token_names: settings
                .tokens
                .as_ref()
                .is_some_and(|it| it.from == TokenPlace::UserName),
            passwords: passwords.map(Arc::new),
            call_out,
        })
    }

    /// What the CONNECT says of who the client is.
    pub fn admit(
        &self,
        connect: &Connect<'_>,
        caller: &Caller<'_>,
    ) -> Result<Admission, AuthenticationError> {
        self.access.handle_connect(connect, caller)
    }

    async fn check(
        &self,
        slots: &Slots,
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
            let is_right = check_password(slots, passwords, login, address).await?;
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

    /// What of `error` the log may have: a user name that could be a token is not in it.
    fn without_token(&self, error: AuthenticationError) -> AuthenticationError {
        let AuthenticationError::Login { user, refused } = error else { return error };
        let is_known = |user: &UserName| {
            self.passwords.as_ref().is_some_and(|passwords| passwords.knows(user.as_str()))
        };
        let user = user.filter(|user| !self.has_token_names || is_known(user));
        AuthenticationError::Login { user, refused }
    }
}

async fn check_password(
    slots: &Slots,
    passwords: &Arc<PasswordFile>,
    login: Login,
    address: Option<IpAddr>,
) -> Result<bool, AuthenticationError> {
    let name = login.user_name.as_deref().unwrap_or_default();
    if passwords.remembers(name, login.password.as_deref()) {
        return Ok(true);
    }
    let slot = slots.take(address).await.map_err(|_| AuthenticationError::Busy)?;
    let passwords = passwords.clone();
    let checking = tokio::task::spawn_blocking(move || {
        // Held to the end of the work, also if the client does not wait for it.
        let _slot = slot;
        let name = login.user_name.unwrap_or_default();
        passwords.matches(&name, login.password.as_deref())
    });
    checking.await.map_err(|_| AuthenticationError::Unavailable("the check has failed".to_owned()))
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
pub struct Verifier {
    common: ArcSwap<Methods>,
    restraint: ArcSwap<Restraint>,
    failures: Mutex<Failures>,
}

/// [`Limits`], and what keeps to them.
#[derive(Debug)]
struct Restraint {
    limits: Limits,
    checks: Slots,
}

impl Restraint {
    fn new(limits: Limits) -> Self {
        Self { limits, checks: Slots::new(limits.checks_max, limits.checks_waiting_max) }
    }
}

impl Verifier {
    /// With these methods and limits until there are others.
    pub fn new(common: Arc<Methods>, limits: Limits) -> Self {
        Self {
            common: ArcSwap::new(common),
            restraint: ArcSwap::from_pointee(Restraint::new(limits)),
            failures: Mutex::new(Failures::default()),
        }
    }

    /// For all who connect from now on. Who is connected and no longer known is for the caller to be told, by
    /// `Mail::UsersChanged`.
    pub fn replace(&self, common: Arc<Methods>, limits: Limits) {
        self.common.store(common);
        if self.restraint.load().limits != limits {
            self.restraint.store(Arc::new(Restraint::new(limits)));
        }
    }

    /// What clients of a listener with methods of its `own`, or with none, are checked with now.
    pub fn methods(&self, own: Option<&Arc<Methods>>) -> Arc<Methods> {
        own.cloned().unwrap_or_else(|| self.common.load_full())
    }

    /// How long a client from `address` has to wait before [`Verifier::check`], or before its exchange.
    pub fn wait(&self, address: IpAddr, now: Instant) -> Result<Duration, AuthenticationError> {
        let patience = self.patience();
        let wait = self.failures().admit(address, now, &patience);
        wait.map_err(|_| AuthenticationError::Busy)
    }

    /// A client from `address` has not proved what it tried to.
    pub fn failed(&self, address: IpAddr, now: Instant) {
        let patience = self.patience();
        self.failures().record(address, now, &patience);
    }

    /// Who it is by `methods`, or why not. Cancelling it is safe.
    pub async fn check(
        &self,
        methods: &Methods,
        login: Login,
        client_id: &ClientId,
        address: Option<IpAddr>,
    ) -> Result<Authenticated, AuthenticationError> {
        let restraint = self.restraint.load_full();
        let checked = methods.check(&restraint.checks, login, client_id, address).await;
        checked.map_err(|error| methods.without_token(error))
    }

    fn patience(&self) -> Patience {
        self.restraint.load().limits.patience
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::claims::ClaimNames;
    use crate::auth::password::{Form, StoredPassword};

    const LIMITS: Limits = Limits {
        checks_max: 1,
        checks_waiting_max: 0,
        patience: Patience {
            failures_free: 1,
            delay_max: Duration::from_secs(1),
            addresses_max: 8,
        },
    };

    fn settings(path: Option<PathBuf>) -> Settings {
        Settings { scram_users: BTreeMap::new(), password_file: path, tokens: None, call_out: None }
    }

    /// With these users, whose password is `x`.
    fn methods(users: &[(&str, Form)]) -> Arc<Methods> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let line = |(name, form): &(&str, Form)| {
            format!("{name}:{}\n", StoredPassword::hash("x", *form).unwrap())
        };
        std::fs::write(&path, users.iter().map(line).collect::<String>()).unwrap();
        Arc::new(Methods::load(&settings(Some(path))).unwrap())
    }

    async fn check(
        verifier: &Verifier,
        name: &str,
        password: &str,
    ) -> Result<String, AuthenticationError> {
        check_with(verifier, None, name, password).await
    }

    async fn check_with(
        verifier: &Verifier,
        own: Option<&Arc<Methods>>,
        name: &str,
        password: &str,
    ) -> Result<String, AuthenticationError> {
        let login = Login { user_name: Some(name.to_owned()), password: Some(password.into()) };
        let methods = verifier.methods(own);
        let checked = verifier.check(&methods, login, &ClientId::new("fridge"), None).await;
        checked.map(|it| it.user.as_str().to_owned())
    }

    fn verifier(common: Arc<Methods>) -> Verifier {
        Verifier::new(common, LIMITS)
    }

    #[tokio::test]
    async fn users_are_those_of_the_last_replacement_and_who_is_gone_is_not_known() {
        let verifier = verifier(methods(&[("anna", Form::Argon2id), ("bob", Form::Scram)]));
        assert_eq!(check(&verifier, "anna", "x").await.as_deref(), Ok("anna"));
        assert!(check(&verifier, "anna", "y").await.unwrap_err().is_wrong_proof());
        let [anna, bob] = ["anna", "bob"].map(UserName::new);
        let by_scram = Proof::Method {
            authenticator: Arc::new(Scram::new(&BTreeMap::new()).unwrap()),
            data: Vec::new(),
        };
        let knows =
            |user: &UserName, proof: &Proof| verifier.methods(None).is_still_known(user, proof);
        assert!(knows(&anna, &Proof::Password) && knows(&bob, &Proof::Password));
        assert!(knows(&bob, &by_scram) && !knows(&anna, &by_scram));
        verifier.replace(methods(&[("carl", Form::Argon2id)]), LIMITS);
        assert!(check(&verifier, "anna", "x").await.is_err());
        assert!(!knows(&anna, &Proof::Password) && !knows(&bob, &by_scram));
        assert!(knows(&anna, &Proof::Token) && knows(&anna, &Proof::Certificate));
    }

    #[tokio::test]
    async fn a_token_in_place_of_the_user_name_is_not_in_the_error_and_users_of_the_file_are() {
        let folder = tempfile::tempdir().unwrap();
        let [secret_file, users] = ["secret", "users"].map(|name| folder.path().join(name));
        std::fs::write(&secret_file, [b'x'; 32]).unwrap();
        let hash = StoredPassword::hash("x", Form::Argon2id).unwrap();
        std::fs::write(&users, format!("anna:{hash}\n")).unwrap();
        let tokens = TokenSettings {
            from: TokenPlace::UserName,
            secret_file: Some(secret_file),
            public_key_file: None,
            jwks_file: None,
            audiences: Vec::new(),
            issuers: Vec::new(),
            expiry_required: false,
            leeway: Duration::ZERO,
            names: ClaimNames { user: "sub".to_owned(), client_id: None, rules: None },
        };
        let settings = Settings { tokens: Some(tokens), ..settings(Some(users)) };
        let verifier = verifier(Arc::new(Methods::load(&settings).unwrap()));
        // `{"alg":"HS256"}` and `{"alg":"ES512"}`, which is not known here, so that this is a name like any other.
        for token in ["eyJhbGciOiJIUzI1NiJ9.e30.c2VjcmV0", "eyJhbGciOiJFUzUxMiJ9.e30.c2VjcmV0"] {
            let error = check(&verifier, token, "y").await.unwrap_err();
            assert!(error.is_wrong_proof() && !error.to_string().contains("eyJ"), "{error}");
        }
        let error = check(&verifier, "anna", "y").await.unwrap_err();
        assert!(error.to_string().contains("`anna`"), "{error}");
    }

    #[tokio::test]
    async fn whoever_finds_no_room_to_be_checked_is_told_so_and_known_passwords_need_none() {
        let verifier = verifier(methods(&[("anna", Form::Argon2id)]));
        assert!(check(&verifier, "anna", "x").await.is_ok());
        let restraint = verifier.restraint.load_full();
        let slot = restraint.checks.take(None).await.unwrap();
        assert_eq!(check(&verifier, "anna", "y").await, Err(AuthenticationError::Busy));
        assert!(check(&verifier, "anna", "x").await.is_ok());
        // Methods of a listener's own, and those that come by a reload, bring no room along.
        let own = methods(&[("bob", Form::Argon2id)]);
        let busy = Err(AuthenticationError::Busy);
        assert_eq!(check_with(&verifier, Some(&own), "bob", "x").await, busy);
        verifier.replace(own.clone(), LIMITS);
        assert_eq!(check(&verifier, "bob", "x").await, busy);
        drop(slot);
        assert_eq!(check_with(&verifier, Some(&own), "bob", "x").await.as_deref(), Ok("bob"));
        assert!(check(&verifier, "anna", "y").await.unwrap_err().is_wrong_proof());
    }

    #[tokio::test]
    async fn users_of_a_listener_with_methods_of_its_own_are_those_and_no_others() {
        let verifier = verifier(methods(&[("anna", Form::Argon2id)]));
        let own = methods(&[("bob", Form::Argon2id)]);
        assert_eq!(check_with(&verifier, Some(&own), "bob", "x").await.as_deref(), Ok("bob"));
        assert!(check_with(&verifier, Some(&own), "anna", "x").await.is_err());
        assert!(check(&verifier, "bob", "x").await.is_err());
        let [anna, bob] = ["anna", "bob"].map(UserName::new);
        let knows = |user| verifier.methods(Some(&own)).is_still_known(user, &Proof::Password);
        assert!(knows(&bob) && !knows(&anna));
    }

    #[test]
    fn failures_of_an_address_outlive_a_replacement() {
        let verifier = verifier(methods(&[]));
        let (address, now) = ([192, 0, 2, 1].into(), Instant::now());
        verifier.failed(address, now);
        assert_eq!(verifier.wait(address, now), Ok(Duration::ZERO));
        verifier.failed(address, now);
        verifier.replace(methods(&[]), LIMITS);
        assert_eq!(verifier.wait(address, now), Ok(Duration::from_millis(250)));
    }
}
