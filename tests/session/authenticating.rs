//! Enhanced authentication and re-authentication, with methods that other people could have written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mailboxqtt::codec::{
    Auth, Connect, Packet, Properties, PropertiesBuf, Property, ReasonCode, decode,
};
use mailboxqtt::ids::ClientId;
use mailboxqtt::ids::ProtocolVersion::{self, V5, V311};
use mailboxqtt::message::{Collector, TopicHasher};
use mailboxqtt::session::authentication::{
    Access, Admission, Anonymous, Authenticated, Authenticating, AuthenticationError,
    Authenticator, Caller, Directory, Exchange, Logins, Proof, Refused, Step, UserName,
};
use mailboxqtt::session::{CloseReason, Opening, Output, Session, negotiate};

use crate::pair::LIMITS;

/// The server speaks first, and asks until it has heard a name and the same name backwards.
#[derive(Debug)]
struct Riddle;

impl Authenticator for Riddle {
    fn method(&self) -> &str {
        "RIDDLE"
    }

    fn begin(&self) -> Box<dyn Exchange> {
        Box::new(Answers(Vec::new()))
    }
}

#[derive(Debug)]
struct Answers(Vec<String>);

impl Exchange for Answers {
    fn step(&mut self, data: &[u8]) -> Result<Step, Refused> {
        self.0.push(String::from_utf8(data.to_vec()).unwrap());
        match &self.0[..] {
            [_] => Ok(Step::Continue { data: b"name?".to_vec() }),
            [_, _] => Ok(Step::Continue { data: b"backwards?".to_vec() }),
            [_, name, backwards] if name.chars().rev().eq(backwards.chars()) => {
                Ok(Step::Done { data: b"welcome".to_vec(), user: UserName::new(name) })
            }
            _ => Err(Refused("wrong answer")),
        }
    }
}

/// One step and no answer.
#[derive(Debug)]
struct Token;

impl Authenticator for Token {
    fn method(&self) -> &str {
        "TOKEN"
    }

    fn begin(&self) -> Box<dyn Exchange> {
        Box::new(Self)
    }
}

impl Exchange for Token {
    fn step(&mut self, data: &[u8]) -> Result<Step, Refused> {
        let name = data.strip_prefix(b"token of ").ok_or(Refused("no token"))?;
        let user = UserName::new(str::from_utf8(name).unwrap());
        Ok(Step::Done { data: Vec::new(), user })
    }
}

fn admit(anonymous: Anonymous, connect: &Connect<'_>) -> Result<Admission, AuthenticationError> {
    admit_caller(connect, &Caller { certificate_user: None, anonymous }, Logins::Ignored)
}

fn admit_caller(
    connect: &Connect<'_>,
    caller: &Caller<'_>,
    logins: Logins,
) -> Result<Admission, AuthenticationError> {
    let access = Access { authenticators: vec![Arc::new(Riddle), Arc::new(Token)], logins };
    access.handle_connect(connect, caller)
}

/// Authentication Method and Data, each if there is one.
fn properties(method: Option<&str>, data: Option<&[u8]>) -> PropertiesBuf {
    let mut properties = PropertiesBuf::new();
    if let Some(method) = method {
        properties.push(Property::AuthenticationMethod(method));
    }
    if let Some(data) = data {
        properties.push(Property::AuthenticationData(data));
    }
    properties
}

fn connect(properties: &PropertiesBuf) -> Connect<'_> {
    let properties = properties.as_properties();
    Connect {
        version: V5,
        clean_start: true,
        keep_alive_s: 0,
        client_id: "client",
        properties,
        will: None,
        user_name: None,
        password: None,
    }
}

/// CONNECT with a method and its first data.
fn begin(method: &str, data: Option<&[u8]>) -> Result<Admission, AuthenticationError> {
    admit(Anonymous::Refused, &connect(&properties(Some(method), data)))
}

/// What AUTH says: reason, method, data.
fn understand(auth: &[u8]) -> (u8, Option<String>, Option<Vec<u8>>) {
    let Ok(Packet::Auth(auth)) = decode(auth, V5) else { panic!("{auth:?} is not AUTH") };
    let method = auth.properties.authentication_method().map(str::to_owned);
    (auth.reason.as_u8(), method, auth.properties.authentication_data().map(<[u8]>::to_vec))
}

fn said(reason: u8, method: &str, data: &str) -> (u8, Option<String>, Option<Vec<u8>>) {
    (reason, Some(method.to_owned()), (!data.is_empty()).then(|| data.as_bytes().to_vec()))
}

/// The exchange after AUTH of `data` was sent to the client.
#[track_caller]
fn asked(admission: Result<Admission, AuthenticationError>, data: &str) -> Authenticating {
    match admission {
        Ok(Admission::Continue { authenticating, auth }) => {
            assert_eq!(understand(&auth), said(0x18, "RIDDLE", data));
            authenticating
        }
        other => panic!("{other:?}"),
    }
}

fn answer(
    authenticating: Authenticating,
    method: Option<&str>,
    reason: ReasonCode,
    data: &[u8],
) -> Result<Admission, AuthenticationError> {
    let properties = properties(method, Some(data));
    authenticating.handle_auth(&Auth { reason, properties: properties.as_properties() })
}

/// A session whose client is authenticated by `method`, or anonymous.
struct Server {
    session: Session,
    out: Output,
    connack: Vec<u8>,
}

impl Server {
    fn new(method: Option<&str>, data: Option<&[u8]>) -> Self {
        let properties = properties(method, data);
        let connect = connect(&properties);
        let mut opening = negotiate(&connect, &LIMITS, || ClientId::new("spare")).unwrap();
        opening.authenticated = match admit(Anonymous::Allowed, &connect).unwrap() {
            Admission::Anonymous => None,
            Admission::Authenticated(authenticated) => Some(authenticated),
            other => panic!("{other:?}"),
        };
        Self::open(&opening)
    }

    fn open(opening: &Opening) -> Self {
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let mut connack = Vec::new();
        opening.accept(false, &LIMITS, "", &mut connack);
        Self {
            session: Session::new(LIMITS, opening, Instant::now()),
            out: Output::new(Collector::new(hasher, 1, Instant::now())),
            connack,
        }
    }

    /// After the whole riddle.
    fn riddled(name: &str) -> Self {
        let properties = properties(Some("RIDDLE"), None);
        let mut opening =
            negotiate(&connect(&properties), &LIMITS, || ClientId::new("spare")).unwrap();
        let admission = answer_all(begin("RIDDLE", None), name);
        let Ok(Admission::Authenticated(authenticated)) = admission else { panic!("refused") };
        assert_eq!(authenticated.user, UserName::new(name));
        opening.authenticated = Some(authenticated);
        Self::open(&opening)
    }

    fn auth(&mut self, reason: ReasonCode, method: Option<&str>, data: &[u8]) {
        let properties = properties(method, Some(data));
        let auth = Auth { reason, properties: properties.as_properties() };
        self.session.handle_packet(&Packet::Auth(auth), &mut self.out);
    }

    /// The one packet that was sent since.
    fn sent(&mut self) -> Vec<u8> {
        assert_eq!(self.out.close, None);
        std::mem::take(&mut self.out.bytes)
    }

    /// The connection ended without another AUTH; what DISCONNECT says.
    fn closed(&mut self) -> (CloseReason, u8) {
        assert!(self.out.bytes.is_empty());
        let reason = self.out.close.take().expect("the connection goes on");
        self.session.say_goodbye(&reason, &mut self.out);
        match decode(&std::mem::take(&mut self.out.bytes), V5) {
            Ok(Packet::Disconnect(disconnect)) => (reason, disconnect.reason.as_u8()),
            other => panic!("{other:?}"),
        }
    }
}

fn answer_all(
    admission: Result<Admission, AuthenticationError>,
    name: &str,
) -> Result<Admission, AuthenticationError> {
    let backwards: String = name.chars().rev().collect();
    let go_on = ReasonCode::ContinueAuthentication;
    let name_next = asked(admission, "name?");
    let admission = answer(name_next, Some("RIDDLE"), go_on, name.as_bytes());
    let backwards_next = asked(admission, "backwards?");
    answer(backwards_next, Some("RIDDLE"), go_on, backwards.as_bytes())
}

/// [MQTT-4.12.0-2] [MQTT-4.12.0-3] [MQTT-4.12.0-5]
#[test]
fn method_of_several_steps_ends_with_its_method_and_data_in_the_connack() {
    let server = Server::riddled("anna-b");
    let Ok(Packet::ConnAck(connack)) = decode(&server.connack, V5) else { panic!("no CONNACK") };
    assert_eq!(connack.properties.authentication_method(), Some("RIDDLE"));
    assert_eq!(connack.properties.authentication_data(), Some(&b"welcome"[..]));
}

/// [MQTT-4.12.0-5]
#[test]
fn method_of_one_step_needs_no_auth_and_leaves_empty_data_out() {
    let server = Server::new(Some("TOKEN"), Some(b"token of anna"));
    let Ok(Packet::ConnAck(connack)) = decode(&server.connack, V5) else { panic!("no CONNACK") };
    assert_eq!(connack.properties.authentication_method(), Some("TOKEN"));
    assert_eq!(connack.properties.authentication_data(), None);
}

/// [MQTT-3.1.2-24]
#[test]
fn connack_with_method_and_data_over_the_maximum_packet_size_of_the_client_is_not_sent() {
    let admit = |max| {
        let mut properties = properties(Some("TOKEN"), Some(b"token of anna"));
        properties.push(Property::MaximumPacketSize(max));
        let connect = connect(&properties);
        let mut opening = negotiate(&connect, &LIMITS, || ClientId::new("spare")).unwrap();
        let admission = admit(Anonymous::Refused, &connect).unwrap();
        let Admission::Authenticated(authenticated) = admission else { panic!("more steps") };
        opening.authenticated = Some(authenticated);
        opening.check_room(&LIMITS)
    };
    let whole = Server::new(Some("TOKEN"), Some(b"token of anna")).connack.len() as u32;
    assert_eq!(admit(whole), Ok(()));
    assert_eq!(admit(whole - 1).unwrap_err().reason, ReasonCode::ImplementationSpecificError);
}

/// [MQTT-4.12.0-6]
#[test]
fn client_that_names_no_method_hears_of_none() {
    let server = Server::new(None, None);
    let Ok(Packet::ConnAck(connack)) = decode(&server.connack, V5) else { panic!("no CONNACK") };
    assert_eq!(connack.properties.authentication_method(), None);
    assert_eq!(connack.properties.authentication_data(), None);
}

/// [MQTT-4.12.0-1]
#[test]
fn unknown_method_is_a_bad_authentication_method() {
    for method in ["", "riddle", "RIDDLE2"] {
        let error = begin(method, None).unwrap_err();
        assert_eq!(error, AuthenticationError::UnknownMethod);
        assert_eq!(error.reason_code().as_u8(), 0x8C);
    }
}

/// [MQTT-4.12.0-4]
#[test]
fn failure_is_not_authorized_and_says_nothing_else() {
    let error = begin("TOKEN", Some(b"none")).unwrap_err();
    assert_eq!(error, AuthenticationError::Refused(Refused("no token")));
    assert_eq!(error.reason_code().as_u8(), 0x87);
    assert!(!error.is_protocol_error());
    let name_next = asked(begin("RIDDLE", None), "name?");
    let go_on = ReasonCode::ContinueAuthentication;
    let backwards_next = asked(answer(name_next, Some("RIDDLE"), go_on, b"anna-b"), "backwards?");
    let error = answer(backwards_next, Some("RIDDLE"), go_on, b"anna-b").unwrap_err();
    assert_eq!(error.reason_code().as_u8(), 0x87);
}

#[test]
fn anonymous_clients_of_every_version_are_refused_where_they_are_not_allowed() {
    let refused = |version: ProtocolVersion| {
        let none = PropertiesBuf::new();
        let connect = Connect { version, ..connect(&none) };
        admit(Anonymous::Refused, &connect).unwrap_err()
    };
    assert_eq!(refused(V5).reason_code().as_u8(), 0x87);
    assert_eq!(refused(V311), AuthenticationError::Anonymous);
}

/// [MQTT-4.12.0-5]
#[test]
fn auth_has_to_name_the_method_of_the_connect() {
    for method in [None, Some("TOKEN"), Some("")] {
        let name_next = asked(begin("RIDDLE", None), "name?");
        let go_on = ReasonCode::ContinueAuthentication;
        let error = answer(name_next, method, go_on, b"anna").unwrap_err();
        assert_eq!(error, AuthenticationError::OtherMethod);
        assert_eq!(error.reason_code().as_u8(), 0x82);
    }
}

/// [MQTT-4.12.0-3]
#[test]
fn auth_before_the_connack_has_to_continue() {
    for reason in [ReasonCode::Success, ReasonCode::ReAuthenticate] {
        let name_next = asked(begin("RIDDLE", None), "name?");
        let error = answer(name_next, Some("RIDDLE"), reason, b"anna").unwrap_err();
        assert_eq!(error, AuthenticationError::ReasonNotNow(reason.as_u8()));
        assert_eq!(error.reason_code().as_u8(), 0x82);
    }
}

#[test]
fn user_name_of_the_connect_is_that_of_the_method() {
    let properties = properties(Some("TOKEN"), Some(b"token of anna"));
    let admit = |user_name| {
        let connect = Connect { user_name: Some(user_name), ..connect(&properties) };
        admit(Anonymous::Refused, &connect)
    };
    assert!(matches!(admit("anna"), Ok(Admission::Authenticated(_))));
    let error = admit("bob").unwrap_err();
    assert_eq!(error.to_string(), "authenticated as `anna` instead of `bob`");
    assert_eq!(error.reason_code().as_u8(), 0x87);
}

/// [MQTT-3.1.2-24]
#[test]
fn auth_over_the_maximum_packet_size_of_the_client_is_not_sent() {
    let admit = |max| {
        let mut properties = properties(Some("RIDDLE"), None);
        properties.push(Property::MaximumPacketSize(max));
        admit(Anonymous::Refused, &connect(&properties))
    };
    let Ok(Admission::Continue { auth, .. }) = admit(1000) else { panic!("no AUTH") };
    let len = auth.len() as u32;
    assert!(matches!(admit(len), Ok(Admission::Continue { .. })));
    let error = admit(len - 1).unwrap_err();
    assert_eq!(error, AuthenticationError::TooLarge(auth.len()));
    assert_eq!(error.reason_code().as_u8(), 0x95);
}

/// [MQTT-4.12.1-1]
#[test]
fn re_authentication_runs_beside_other_traffic_and_may_be_repeated() {
    let mut server = Server::riddled("anna-b");
    for _ in 0..2 {
        server.auth(ReasonCode::ReAuthenticate, Some("RIDDLE"), b"");
        assert_eq!(understand(&server.sent()), said(0x18, "RIDDLE", "name?"));
        server.session.handle_packet(&Packet::PingReq, &mut server.out);
        assert_eq!(server.sent(), [0xD0, 0]);
        server.auth(ReasonCode::ContinueAuthentication, Some("RIDDLE"), b"anna-b");
        assert_eq!(understand(&server.sent()), said(0x18, "RIDDLE", "backwards?"));
        server.auth(ReasonCode::ContinueAuthentication, Some("RIDDLE"), b"b-anna");
        assert_eq!(understand(&server.sent()), said(0x00, "RIDDLE", "welcome"));
    }
}

/// What the reason of a method was stays in the log.
#[test]
fn reasons_of_a_method_are_not_told_to_the_client() {
    let mut server = Server::new(Some("TOKEN"), Some(b"token of anna"));
    server.auth(ReasonCode::ReAuthenticate, Some("TOKEN"), b"none");
    let reason = server.out.close.take().unwrap();
    assert_eq!(reason.to_string(), "authentication failed: no token");
    server.session.say_goodbye(&reason, &mut server.out);
    let Ok(Packet::Disconnect(said)) = decode(&server.out.bytes, V5) else { panic!("{reason}") };
    let sentence = said.properties.reason_string();
    assert_eq!(sentence, Some("authentication failed: check user and password"));
}

/// [MQTT-4.12.1-2]
#[test]
fn failed_re_authentication_ends_the_connection() {
    let mut server = Server::new(Some("TOKEN"), Some(b"token of anna"));
    server.auth(ReasonCode::ReAuthenticate, Some("TOKEN"), b"none");
    let (reason, code) = server.closed();
    assert_eq!(code, 0x87);
    assert!(reason.is_failed_authentication() && !reason.is_protocol_error());
    assert!(reason.publishes_will());
}

#[test]
fn nobody_re_authenticates_as_another_user() {
    let mut server = Server::new(Some("TOKEN"), Some(b"token of anna"));
    server.auth(ReasonCode::ReAuthenticate, Some("TOKEN"), b"token of anna");
    assert_eq!(understand(&server.sent()), said(0x00, "TOKEN", ""));
    server.auth(ReasonCode::ReAuthenticate, Some("TOKEN"), b"token of bob");
    let (reason, code) = server.closed();
    assert_eq!(code, 0x87);
    assert_eq!(reason.to_string(), "authenticated as `bob` instead of `anna`");
}

/// [MQTT-4.12.0-5] [MQTT-4.12.1-1]
#[test]
fn re_authentication_by_another_method_is_a_protocol_error() {
    for method in [None, Some("RIDDLE"), Some("")] {
        let mut server = Server::new(Some("TOKEN"), Some(b"token of anna"));
        server.auth(ReasonCode::ReAuthenticate, method, b"token of anna");
        let (reason, code) = server.closed();
        assert_eq!(code, 0x82);
        assert!(reason.is_protocol_error() && !reason.is_failed_authentication());
    }
}

#[test]
fn auth_that_does_not_fit_the_exchange_is_a_protocol_error() {
    let begin = ReasonCode::ReAuthenticate;
    let go_on = ReasonCode::ContinueAuthentication;
    // Nothing is open: there is nothing to continue, and success is the server's to say.
    for reason in [go_on, ReasonCode::Success] {
        let mut server = Server::riddled("anna");
        server.auth(reason, Some("RIDDLE"), b"");
        assert_eq!(server.closed().1, 0x82);
    }
    // One is open: it is the only one.
    for reason in [begin, ReasonCode::Success] {
        let mut server = Server::riddled("anna");
        server.auth(begin, Some("RIDDLE"), b"");
        assert_eq!(understand(&server.sent()), said(0x18, "RIDDLE", "name?"));
        server.auth(reason, Some("RIDDLE"), b"");
        assert_eq!(server.closed().1, 0x82);
    }
}

/// [MQTT-4.12.0-7]
#[test]
fn auth_after_a_connect_without_method_is_a_protocol_error() {
    for reason in [ReasonCode::ReAuthenticate, ReasonCode::ContinueAuthentication] {
        let mut server = Server::new(None, None);
        server.auth(reason, Some("TOKEN"), b"token of anna");
        assert_eq!(server.closed().1, 0x82);
    }
    let mut server = Server::new(None, None);
    let auth = Auth { reason: ReasonCode::Success, properties: Properties::EMPTY };
    server.session.handle_packet(&Packet::Auth(auth), &mut server.out);
    assert_eq!(server.closed().1, 0x82);
}

#[test]
fn open_exchange_and_user_end_with_their_connection() {
    let mut server = Server::riddled("anna");
    server.auth(ReasonCode::ReAuthenticate, Some("RIDDLE"), b"");
    server.sent();
    server.session.detach(&CloseReason::Lost("gone".to_owned()));
    let properties = properties(Some("TOKEN"), Some(b"token of bob"));
    let connect = connect(&properties);
    let mut opening = negotiate(&connect, &LIMITS, || ClientId::new("spare")).unwrap();
    let admission = admit(Anonymous::Refused, &connect).unwrap();
    let Admission::Authenticated(authenticated) = admission else { panic!("more steps") };
    opening.authenticated = Some(authenticated);
    server.session.attach(LIMITS, &opening, Instant::now());
    server.auth(ReasonCode::ReAuthenticate, Some("TOKEN"), b"token of bob");
    assert_eq!(understand(&server.sent()), said(0x00, "TOKEN", ""));
}

/// A client without a method that says who it is.
fn plain<'a>(
    list: &'a PropertiesBuf,
    user: Option<&'a str>,
    password: Option<&'a [u8]>,
) -> Connect<'a> {
    Connect { user_name: user, password, ..connect(list) }
}

#[test]
fn user_name_or_password_without_a_method_is_a_login_where_somebody_checks_it() {
    let list = PropertiesBuf::new();
    let caller = Caller { certificate_user: None, anonymous: Anonymous::Refused };
    let admit =
        |user, password, logins| admit_caller(&plain(&list, user, password), &caller, logins);
    for (user, password) in
        [(Some("anna"), Some(&b"x"[..])), (Some("anna"), None), (None, Some(&b"x"[..]))]
    {
        let Ok(Admission::Login(login)) = admit(user, password, Logins::Checked) else {
            panic!("{user:?} is no login")
        };
        assert_eq!((login.user_name.as_deref(), login.password.as_deref()), (user, password));
        assert!(!format!("{login:?}").contains("120"), "{login:?}");
        let ignored = admit(user, password, Logins::Ignored);
        assert!(matches!(ignored, Err(AuthenticationError::Anonymous)), "{ignored:?}");
    }
    let nobody = admit(None, None, Logins::Checked);
    assert!(matches!(nobody, Err(AuthenticationError::Anonymous)), "{nobody:?}");
}

#[test]
fn certificate_decides_before_user_name_and_password() {
    let list = PropertiesBuf::new();
    let carol = UserName::new("carol");
    let caller = Caller { certificate_user: Some(&carol), anonymous: Anonymous::Refused };
    let admission = admit_caller(&plain(&list, Some("anna"), Some(b"x")), &caller, Logins::Checked);
    let Ok(Admission::Authenticated(authenticated)) = admission else { panic!("{admission:?}") };
    assert_eq!(authenticated.user, carol);
    // A method has to prove the same user.
    let list = properties(Some("TOKEN"), Some(b"token of anna"));
    let error = admit_caller(&connect(&list), &caller, Logins::Checked).unwrap_err();
    assert_eq!(error.to_string(), "authenticated as `anna` instead of `carol`");
}

/// Knows anna, and nobody else.
#[derive(Debug)]
struct OnlyAnna;

impl Directory for OnlyAnna {
    fn is_still_known(&self, user: &UserName, _proof: &Proof) -> bool {
        user.as_str() == "anna"
    }

    fn authenticator(&self, _method: &str) -> Option<Arc<dyn Authenticator>> {
        None
    }
}

/// A session of a client that has proved who it is by a password.
fn logged_in(authenticated: Option<Authenticated>) -> Server {
    let list = PropertiesBuf::new();
    let mut opening = negotiate(&connect(&list), &LIMITS, || ClientId::new("spare")).unwrap();
    opening.authenticated = authenticated;
    Server::open(&opening)
}

#[test]
fn users_who_are_gone_have_to_go_and_all_others_stay() {
    let password = |name| Some(Authenticated::new(UserName::new(name), Proof::Password));
    for (authenticated, anonymous, stays) in [
        (password("anna"), Anonymous::Allowed, true),
        (password("anna"), Anonymous::Refused, true),
        (password("bob"), Anonymous::Allowed, false),
        (None, Anonymous::Allowed, true),
        (None, Anonymous::Refused, false),
    ] {
        let mut server = logged_in(authenticated);
        server.session.handle_users_changed(&OnlyAnna, anonymous, &mut server.out);
        let code = server.out.close.as_ref().and_then(CloseReason::reason_code);
        assert_eq!(code, (!stays).then_some(ReasonCode::NotAuthorized));
    }
}

#[test]
fn session_ends_when_the_proof_ends() {
    let now = Instant::now();
    let at = now + Duration::from_secs(5);
    let anna = Authenticated::new(UserName::new("anna"), Proof::Token);
    let mut server = logged_in(Some(Authenticated { ends_at: Some(at), ..anna }));
    assert_eq!(server.session.poll_timeout(), Some(at));
    server.session.handle_timeout(at - Duration::from_millis(1), &mut server.out);
    assert_eq!(server.out.close, None);
    server.session.handle_timeout(at, &mut server.out);
    let reason = server.out.close.take().unwrap();
    assert_eq!(reason.reason_code(), Some(ReasonCode::NotAuthorized));
    assert!(reason.explanation().contains("expired"), "{}", reason.explanation());
    // Nobody waits for the end of a proof with the next connection.
    let _ = server.session.detach(&reason);
    assert_eq!(server.session.poll_timeout(), None);
}
