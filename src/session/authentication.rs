//! Who a client is, and enhanced authentication (section 4.12): which packet carries which step. Floor 2.
//!
//! An [`Authenticator`] is an Authentication Method; `auth` has them, the settings choose, and [`Access`] holds
//! the choice. An [`Exchange`] is one client's way through a method. `net` drives it from CONNECT to CONNACK,
//! the session drives it for a re-authentication.
//!
//! A user name and a password are a [`Login`], which takes too long to be checked here: the caller of
//! [`Access::handle_connect`] has it checked.
//!
//! ```text
//! CONNECT   -> Access::handle_connect ------+-> Admission::Login         -> whoever checks passwords
//!                                           +-> Admission::Continue      -> AUTH 0x18
//! AUTH 0x18 -> Authenticating::handle_auth -+-> Admission::Authenticated -> CONNACK 0x00
//!
//! AUTH 0x19 -+-> Reauthentication::handle_auth -> AUTH 0x18 or 0x00
//! AUTH 0x18 -+
//! ```
//!
//! # Invariants
//!
//! - A client that names no method is never sent AUTH, nor a method in CONNACK [MQTT-4.12.0-6].
//! - Every AUTH of a connection, and its CONNACK, names the method of its CONNECT [MQTT-4.12.0-5].
//! - At most one exchange is open on a connection.
//! - Any failure ends the connection [MQTT-4.12.0-4] [MQTT-4.12.1-2].

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::access::Rule;
use crate::codec::{Auth, Connect, Packet, PropertiesBuf, Property, ReasonCode};
use crate::ids::write_name;
use crate::session::{CloseReason, Link, Output};

/// An Authentication Method.
pub trait Authenticator: fmt::Debug + Send + Sync {
    /// Its name in CONNECT, AUTH and CONNACK.
    fn method(&self) -> &str;

    /// A client asks to be authenticated, for the first time or again.
    fn begin(&self) -> Box<dyn Exchange>;
}

/// One client's way through an Authentication Method.
///
/// It holds a bounded amount of memory, whatever the client sends: an exchange may stay open for as long as
/// the connection.
pub trait Exchange: fmt::Debug + Send + Sync {
    /// The client sent `data`, at most 65,535 bytes. Authentication Data that was left out is empty; data that
    /// is returned empty is left out. Called on a worker thread, so it may compute for some microseconds and
    /// must not wait. Not called again after [`Step::Done`] or an error.
    fn step(&mut self, data: &[u8]) -> Result<Step, Refused>;
}

/// What comes next in an [`Exchange`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// The client has to answer `data`.
    Continue {
        /// Authentication Data of AUTH, at most 65,535 bytes.
        data: Vec<u8>,
    },
    /// The client is `user`.
    Done {
        /// Authentication Data of the CONNACK, or of the last AUTH; at most 65,535 bytes.
        data: Vec<u8>,
        /// Who it has proved to be.
        user: UserName,
    },
}

/// The client has not proved who it is. The reason is for the log: the client is told "Not authorized" and
/// nothing more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub &'static str);

/// Who a client has proved to be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UserName(Arc<str>);

impl UserName {
    /// Any text; what it may be is up to the method.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The name as the method knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_name(&self.0, f)
    }
}

/// AUTH on a connection whose CONNECT named no method [MQTT-4.12.0-7].
pub(super) const NO_METHOD: &str = "AUTH without an authentication method";

/// Who may connect.
#[derive(Clone, Debug)]
pub struct Access {
    /// The methods that a CONNECT may name.
    pub authenticators: Vec<Arc<dyn Authenticator>>,
    /// What becomes of a user name or a password in a CONNECT without a method.
    pub logins: Logins,
}

/// Whether user names and passwords are looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Logins {
    /// There is something to check them with.
    Checked,
    /// They mean nothing: whoever sends them is anonymous.
    Ignored,
}

/// What is known of a client before its CONNECT.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The user whom a client certificate has proved the client to be.
    pub certificate_user: Option<&'a UserName>,
    /// What becomes of a CONNECT that says nothing of who it is.
    pub anonymous: Anonymous,
}

/// Whether clients may connect that do not say who they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Anonymous {
    /// They may.
    Allowed,
    /// They get "Not authorized".
    Refused,
}

/// How far a CONNECT has come.
#[derive(Debug)]
pub enum Admission {
    /// The client need not say who it is, and did not.
    Anonymous,
    /// It is who it says.
    Authenticated(Authenticated),
    /// It is whom it says if its password is right.
    Login(Login),
    /// It is sent `auth`, and its answer goes to `authenticating`.
    Continue {
        /// The rest of the exchange.
        authenticating: Authenticating,
        /// An AUTH packet.
        auth: Vec<u8>,
    },
}

/// A user name and a password that nobody has checked yet.
#[derive(Clone, Eq, PartialEq)]
pub struct Login {
    /// Who the client says it is.
    pub user_name: Option<String>,
    /// Its proof.
    pub password: Option<Vec<u8>>,
}

/// Passwords are not for logs.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user_name", &self.user_name).finish_non_exhaustive()
    }
}

/// A client that has proved who it is.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// Who it is.
    pub user: UserName,
    /// How it has proved that.
    pub proof: Proof,
    /// When the proof ends, and with it the connection; `None` is never.
    pub ends_at: Option<Instant>,
    /// What the proof itself says that the client may do; empty where it says nothing of that.
    pub rules: Arc<[Rule]>,
}

/// How a client has proved who it is.
#[derive(Clone, Debug)]
pub enum Proof {
    /// By its certificate, before the CONNECT.
    Certificate,
    /// By an Authentication Method, with which it may do so again.
    Method {
        /// That method.
        authenticator: Arc<dyn Authenticator>,
        /// Authentication Data for the CONNACK.
        data: Vec<u8>,
    },
    /// By a token.
    Token,
    /// By a password that the broker knows.
    Password,
    /// By what another server said of user name and password.
    CallOut,
}

/// Who is still known after users have changed.
pub trait Directory: fmt::Debug + Send + Sync {
    /// Whether `user`, proved by `proof` earlier, could do so again. True where nobody but another server or
    /// the client itself could tell.
    fn is_still_known(&self, user: &UserName, proof: &Proof) -> bool;
}

/// A client between its CONNECT and its CONNACK.
#[derive(Debug)]
pub struct Authenticating {
    authenticator: Arc<dyn Authenticator>,
    exchange: Box<dyn Exchange>,
    /// As in the CONNECT.
    user_name: Option<UserName>,
    /// The client's Maximum Packet Size.
    packet_bytes_max: Option<u32>,
}

/// Why a client is not, or no longer, let in.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuthenticationError {
    /// CONNECT names a method that is not among ours [MQTT-4.12.0-1].
    #[error("unknown authentication method")]
    UnknownMethod,
    /// CONNECT says nothing of who it is that anybody would check, and has to.
    #[error("anonymous clients are not allowed: log in")]
    Anonymous,
    /// A user name or a password that is not right.
    #[error("authentication failed: {refused} (user {})", user.as_ref().map_or("not given".to_owned(), |it| format!("`{it}`")))]
    Login {
        /// As the client says.
        user: Option<UserName>,
        /// Why not.
        refused: Refused,
    },
    /// Too many clients log in at once; nothing was checked.
    #[error("too many clients log in at the moment: try again later")]
    Busy,
    /// Whoever had to be asked did not answer, or not in words that we know.
    #[error("the broker could not find out who the client is: {0}")]
    Unavailable(String),
    /// The proof was good for a time, and that is over.
    #[error("the proof of who the client is has expired: connect anew with a new one")]
    Expired,
    /// The certificate was good when the client came.
    #[error("the client's certificate is not good any more, {0}: connect anew with another one")]
    Certificate(&'static str),
    /// The user has been removed.
    #[error("the user is not known any more")]
    UserGone,
    /// By the method [MQTT-4.12.0-4].
    #[error("authentication failed: {0}")]
    Refused(#[from] Refused),
    /// CONNECT or the authentication before named another user.
    #[error("authenticated as `{is}` instead of `{expected}`")]
    OtherUser {
        /// Who it has proved to be.
        is: UserName,
        /// Who it was, or said to be.
        expected: UserName,
    },
    /// AUTH without a method, or with another one than CONNECT [MQTT-4.12.0-5] [MQTT-4.12.1-1].
    #[error("protocol error: AUTH does not name the method of CONNECT")]
    OtherMethod,
    /// AUTH that continues what has not begun, begins what is open, or says what a server says.
    #[error("protocol error: AUTH with reason 0x{0:02x}, which cannot be now")]
    ReasonNotNow(u8),
    /// Something else came where only AUTH and DISCONNECT may [MQTT-3.1.2-30].
    #[error("protocol error: neither AUTH nor DISCONNECT during the authentication")]
    NotAuth,
    /// Our AUTH is larger than the client's Maximum Packet Size [MQTT-3.1.2-24].
    #[error("AUTH of {0} bytes is over the client's maximum packet size")]
    TooLarge(usize),
}

impl AuthenticationError {
    /// What a v5 client is told, in CONNACK or in DISCONNECT.
    pub fn reason_code(&self) -> ReasonCode {
        match self {
            Self::UnknownMethod => ReasonCode::BadAuthenticationMethod,
            Self::Anonymous
            | Self::Login { .. }
            | Self::Expired
            | Self::Certificate(_)
            | Self::UserGone
            | Self::Refused(_)
            | Self::OtherUser { .. } => ReasonCode::NotAuthorized,
            Self::Busy => ReasonCode::ServerBusy,
            Self::Unavailable(_) => ReasonCode::ServerUnavailable,
            Self::OtherMethod | Self::ReasonNotNow(_) | Self::NotAuth => ReasonCode::ProtocolError,
            Self::TooLarge(_) => ReasonCode::PacketTooLarge,
        }
    }

    /// What a v5 client is told in words: nothing that would help to guess users or proofs.
    pub fn explanation(&self) -> String {
        match self {
            Self::Login { .. } | Self::Refused(_) | Self::OtherUser { .. } => {
                "authentication failed: check user and password".to_owned()
            }
            Self::Unavailable(_) => "nobody can check who you are now: try again later".to_owned(),
            error => error.to_string(),
        }
    }

    /// Whether the client broke the rules. If not, it could not or may not say who it is.
    pub fn is_protocol_error(&self) -> bool {
        self.reason_code() == ReasonCode::ProtocolError
    }

    /// Whether the client kept the rules, and the reason that it is not let in is with it.
    pub fn is_failure(&self) -> bool {
        !self.is_protocol_error() && !matches!(self, Self::Busy | Self::Unavailable(_))
    }

    /// Whether the client tried to prove something that is not so, as who guesses does.
    pub fn is_wrong_proof(&self) -> bool {
        matches!(self, Self::Login { .. } | Self::Refused(_) | Self::OtherUser { .. })
    }
}

impl Access {
    /// The first step, with what the CONNECT says of who the client is: a certificate before everything,
    /// a method before a password.
    pub fn handle_connect(
        &self,
        connect: &Connect<'_>,
        caller: &Caller<'_>,
    ) -> Result<Admission, AuthenticationError> {
        let Some(method) = connect.properties.authentication_method() else {
            return self.handle_plain(connect, caller);
        };
        let mut authenticators = self.authenticators.iter();
        let authenticator = authenticators
            .find(|authenticator| authenticator.method() == method)
            .ok_or(AuthenticationError::UnknownMethod)?;
        let authenticating = Authenticating {
            authenticator: authenticator.clone(),
            exchange: authenticator.begin(),
            user_name: caller
                .certificate_user
                .cloned()
                .or_else(|| connect.user_name.map(UserName::new)),
            packet_bytes_max: connect.properties.maximum_packet_size(),
        };
        authenticating.step(connect.properties.authentication_data().unwrap_or_default())
    }

    /// A CONNECT without a method.
    fn handle_plain(
        &self,
        connect: &Connect<'_>,
        caller: &Caller<'_>,
    ) -> Result<Admission, AuthenticationError> {
        if let Some(user) = caller.certificate_user {
            let authenticated = Authenticated::new(user.clone(), Proof::Certificate);
            return Ok(Admission::Authenticated(authenticated));
        }
        let says_who = connect.user_name.is_some() || connect.password.is_some();
        if says_who && self.logins == Logins::Checked {
            let user_name = connect.user_name.map(str::to_owned);
            let password = connect.password.map(<[u8]>::to_vec);
            return Ok(Admission::Login(Login { user_name, password }));
        }
        match caller.anonymous {
            Anonymous::Allowed => Ok(Admission::Anonymous),
            Anonymous::Refused => Err(AuthenticationError::Anonymous),
        }
    }
}

impl Authenticating {
    /// The client's answer to the AUTH that it was sent [MQTT-4.12.0-3].
    pub fn handle_auth(self, auth: &Auth<'_>) -> Result<Admission, AuthenticationError> {
        check_method(auth, &*self.authenticator)?;
        match auth.reason {
            ReasonCode::ContinueAuthentication => self.step(data(auth)),
            reason => Err(AuthenticationError::ReasonNotNow(reason.as_u8())),
        }
    }

    fn step(mut self, data: &[u8]) -> Result<Admission, AuthenticationError> {
        match self.exchange.step(data)? {
            Step::Continue { data } => {
                let properties = properties(self.authenticator.method(), &data);
                // The only reason that a server may give here [MQTT-4.12.0-2].
                let reason = ReasonCode::ContinueAuthentication;
                let mut auth = Vec::new();
                Auth { reason, properties: properties.as_properties() }.encode(&mut auth);
                if self.packet_bytes_max.is_some_and(|max| auth.len() > max as usize) {
                    return Err(AuthenticationError::TooLarge(auth.len()));
                }
                Ok(Admission::Continue { authenticating: self, auth })
            }
            Step::Done { data, user } => {
                if let Some(user_name) = &self.user_name {
                    check_user(&user, user_name)?;
                }
                let proof = Proof::Method { authenticator: self.authenticator, data };
                Ok(Admission::Authenticated(Authenticated::new(user, proof)))
            }
        }
    }
}

impl Authenticated {
    /// For as long as the client stays, and with no rules of its own.
    pub fn new(user: UserName, proof: Proof) -> Self {
        Self { user, proof, ends_at: None, rules: Arc::default() }
    }

    /// What the CONNACK says of it [MQTT-4.12.0-5].
    pub(super) fn announce(&self, out: &mut PropertiesBuf) {
        if let Proof::Method { authenticator, data } = &self.proof {
            push_properties(authenticator.method(), data, out);
        }
    }
}

/// What the session of an authenticated client remembers of it.
#[derive(Debug)]
pub(super) struct Identity {
    user: UserName,
    proof: Proof,
    ends_at: Option<Instant>,
    exchange: Option<Box<dyn Exchange>>,
}

impl Identity {
    pub(super) fn new(authenticated: &Authenticated) -> Self {
        let Authenticated { user, proof, ends_at, .. } = authenticated.clone();
        Self { user, proof, ends_at, exchange: None }
    }

    /// When the client has to go.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        self.ends_at
    }

    /// Whether the client may stay after users have changed.
    pub(super) fn is_still_known(&self, directory: &dyn Directory) -> bool {
        directory.is_still_known(&self.user, &self.proof)
    }

    /// The client begins or continues to prove anew who it is. Everything else goes on meanwhile.
    pub(super) fn handle_auth(&mut self, auth: &Auth<'_>, link: &Link, out: &mut Output) {
        let Proof::Method { authenticator, .. } = &self.proof else {
            return out.close(CloseReason::Protocol(NO_METHOD));
        };
        let authenticator = authenticator.clone();
        match self.step(&*authenticator, auth) {
            Ok((reason, data)) => {
                let properties = properties(authenticator.method(), &data);
                let packet = Auth { reason, properties: properties.as_properties() };
                out.send(&Packet::Auth(packet), link);
            }
            Err(error) => out.close(CloseReason::Authentication(error)),
        }
    }

    fn step(
        &mut self,
        authenticator: &dyn Authenticator,
        auth: &Auth<'_>,
    ) -> Result<(ReasonCode, Vec<u8>), AuthenticationError> {
        check_method(auth, authenticator)?;
        let mut exchange = match (auth.reason, self.exchange.take()) {
            (ReasonCode::ReAuthenticate, None) => authenticator.begin(),
            (ReasonCode::ContinueAuthentication, Some(exchange)) => exchange,
            (reason, _) => return Err(AuthenticationError::ReasonNotNow(reason.as_u8())),
        };
        match exchange.step(data(auth))? {
            Step::Continue { data } => {
                self.exchange = Some(exchange);
                Ok((ReasonCode::ContinueAuthentication, data))
            }
            Step::Done { data, user } => {
                check_user(&user, &self.user)?;
                Ok((ReasonCode::Success, data))
            }
        }
    }
}

fn check_method(
    auth: &Auth<'_>,
    authenticator: &dyn Authenticator,
) -> Result<(), AuthenticationError> {
    match auth.properties.authentication_method() == Some(authenticator.method()) {
        true => Ok(()),
        false => Err(AuthenticationError::OtherMethod),
    }
}

fn check_user(is: &UserName, expected: &UserName) -> Result<(), AuthenticationError> {
    match is == expected {
        true => Ok(()),
        false => Err(AuthenticationError::OtherUser { is: is.clone(), expected: expected.clone() }),
    }
}

fn data<'a>(auth: &Auth<'a>) -> &'a [u8] {
    auth.properties.authentication_data().unwrap_or_default()
}

fn properties(method: &str, data: &[u8]) -> PropertiesBuf {
    let mut properties = PropertiesBuf::new();
    push_properties(method, data, &mut properties);
    properties
}

fn push_properties(method: &str, data: &[u8], out: &mut PropertiesBuf) {
    out.push(Property::AuthenticationMethod(method));
    if !data.is_empty() {
        out.push(Property::AuthenticationData(data));
    }
}
