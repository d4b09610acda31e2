//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side. Floor 3; `config` makes a [`Scram`].
//!
//! ```text
//! CONNECT, AUTH 0x19   client-first   n,,n=<user>,r=<client's nonce>
//! AUTH 0x18            server-first   r=<both nonces>,s=<salt>,i=<iterations>
//! AUTH 0x18            client-final   c=<gs2 header>,r=<both nonces>,p=<proof>
//! CONNACK, AUTH 0x00   server-final   v=<ServerSignature>
//! ```
//!
//! The server has to do six HMACs and one hash for an exchange, some microseconds: that stays on the worker
//! thread. PBKDF2, which is slow on purpose, is the client's part.
//!
//! A user who does not exist gets a salt that looks like the others' and stays the same as long as the
//! broker runs, and then fails like a wrong password, so that nobody finds out who exists.
//!
//! Why not a crate. `rsasl` 2.3 indexes short messages out of their bounds, which would end the process, and
//! tells unknown users from known ones by salt, iterations and error. `scram-rs` 0.25 asks for the salted
//! password, which is as good as the password, and does PBKDF2 for unknown users. `scram` 0.6 asks for it, too,
//! and needs `ring` 0.16. The first two compare secrets in a time that depends on them. On RustCrypto's
//! hashes the server's side is a page of state machine.
//!
//! # Invariants
//!
//! - Neither a password nor what could stand for one is ever here.
//! - Each exchange has a nonce of its own, so a message that was listened to is of no use later.
//! - An open exchange holds at most three times [`MESSAGE_BYTES_MAX`].

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ctutils::CtEq;
use sha2::{Digest, Sha256};

use crate::auth::credential::{Credential, InvalidCredential, Key, hmac, prepare};
use crate::session::authentication::{Authenticator, Exchange, Refused, Step, UserName};

/// Longest message of a client in bytes; one more is refused.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Bytes of chance in the server's half of the nonce.
const NONCE_BYTES: usize = 18;

/// The Authentication Method `SCRAM-SHA-256`.
#[derive(Clone, Debug)]
pub struct Scram {
    users: Arc<Users>,
}

/// Why the users cannot be served.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidUser {
    /// A name that SASLprep rules out.
    #[error("the user name `{}` {error}", name.escape_debug())]
    Name {
        /// As given.
        name: String,
        /// Why not.
        error: InvalidCredential,
    },
    /// Text that is no credential.
    #[error("the value of `{}` {error}; `mailboxqtt scram-user` makes one", name.escape_debug())]
    Credential {
        /// Whose.
        name: String,
        /// Why not.
        error: InvalidCredential,
    },
    /// Names that SASLprep makes equal.
    #[error("`{}` is there twice: in different spellings, or in the password file as well", name.escape_debug())]
    Twice {
        /// The second one.
        name: String,
    },
    /// The system gave no random numbers.
    #[error("no random numbers from the system: {0}")]
    Randomness(#[from] getrandom::Error),
}

impl Scram {
    /// `users` are names with the text form of their credentials.
    pub fn new(users: &BTreeMap<String, String>) -> Result<Self, InvalidUser> {
        Self::with_others(users, std::iter::empty())
    }

    /// The same with `others`, who come from elsewhere.
    pub(super) fn with_others<'a>(
        users: &BTreeMap<String, String>,
        others: impl Iterator<Item = (&'a str, &'a Credential)>,
    ) -> Result<Self, InvalidUser> {
        let prepared = |name: &str| {
            prepare(name).map_err(|error| InvalidUser::Name { name: name.into(), error })
        };
        let mut read = Vec::new();
        for (name, text) in users {
            let key = prepared(name)?;
            let credential: Credential = text
                .parse()
                .map_err(|error| InvalidUser::Credential { name: name.clone(), error })?;
            read.push((name.as_str(), key, credential));
        }
        for (name, credential) in others {
            read.push((name, prepared(name)?, credential.clone()));
        }
        let mut credentials = HashMap::new();
        let mut patterns = Vec::new();
        for (name, key, credential) in read {
            patterns.push(credential.clone());
            if credentials.insert(key, credential).is_some() {
                return Err(InvalidUser::Twice { name: name.to_owned() });
            }
        }
        Ok(Self { users: Arc::new(Users { credentials, patterns, secret: secret()? }) })
    }

    /// Whether there is a user of this name, which is a prepared one.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.users.credentials.contains_key(name)
    }

    /// Whether there is nobody.
    pub(super) fn is_empty(&self) -> bool {
        self.users.credentials.is_empty()
    }
}

/// The same for as long as the process runs: who asks for a salt before and after a reload must not see which of them
/// were made up.
fn secret() -> Result<Key, getrandom::Error> {
    static SECRET: OnceLock<Key> = OnceLock::new();
    let mut new = Key::default();
    getrandom::fill(&mut new)?;
    Ok(*SECRET.get_or_init(|| new))
}

impl Authenticator for Scram {
    fn method(&self) -> &str {
        "SCRAM-SHA-256"
    }

    fn begin(&self) -> Box<dyn Exchange> {
        Box::new(ScramExchange { users: self.users.clone(), state: State::Begun })
    }
}

/// What all exchanges of a method share.
struct Users {
    /// By prepared name.
    credentials: HashMap<String, Credential>,
    /// What the credential of an unknown user may look like: like one of these.
    patterns: Vec<Credential>,
    /// From which those are made.
    secret: Key,
}

/// The secret is not for logs, and the names are too many.
impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("count", &self.credentials.len()).finish_non_exhaustive()
    }
}

impl Users {
    /// The credential of `name`; one that no password fits where there is no such user.
    fn credential(&self, name: &str) -> Credential {
        // Made for every name, so that known and unknown ones take the same time.
        let imagined = self.imagined(name);
        self.credentials.get(name).cloned().unwrap_or(imagined)
    }

    fn imagined(&self, name: &str) -> Credential {
        let [a, b, c, d, ..] = hmac(&self.secret, &[b"pattern", name.as_bytes()]);
        let choice = u32::from_be_bytes([a, b, c, d]) as usize % self.patterns.len().max(1);
        Credential::imagine(name, &self.secret, self.patterns.get(choice))
    }
}

#[derive(Debug)]
struct ScramExchange {
    users: Arc<Users>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The client has said nothing yet.
    Begun,
    /// It named the method without its first message, and was asked for it.
    Asked,
    /// Its final message is awaited.
    Challenged(Box<Challenge>),
    /// By success or failure.
    Ended,
}

impl Exchange for ScramExchange {
    fn step(&mut self, data: &[u8]) -> Result<Step, Refused> {
        if data.len() > MESSAGE_BYTES_MAX {
            return Err(Refused("message is too long"));
        }
        let message = str::from_utf8(data).map_err(|_| MALFORMED)?;
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Begun if data.is_empty() => {
                self.state = State::Asked;
                Ok(Step::Continue { data: Vec::new() })
            }
            State::Begun | State::Asked => {
                let challenge = Challenge::new(message, &nonce()?, &self.users)?;
                let data = challenge.server_first.clone().into_bytes();
                self.state = State::Challenged(Box::new(challenge));
                Ok(Step::Continue { data })
            }
            State::Challenged(challenge) => {
                let server_final = challenge.check(message)?;
                let user = UserName::new(&challenge.user);
                Ok(Step::Done { data: server_final.into_bytes(), user })
            }
            State::Ended => Err(Refused("exchange is over")),
        }
    }
}

const MALFORMED: Refused = Refused("malformed message");

/// The server's half: letters, digits, `+` and `/` [RFC 5802, section 5.1].
fn nonce() -> Result<String, Refused> {
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes).map_err(|_| Refused("no random numbers from the system"))?;
    Ok(BASE64_STANDARD.encode(bytes))
}

/// Between server-first and client-final.
#[derive(Debug)]
struct Challenge {
    /// Prepared.
    user: String,
    credential: Credential,
    gs2_header: String,
    client_first_bare: String,
    server_first: String,
    /// The client's half and ours.
    nonce: String,
}

impl Challenge {
    /// Answers client-first.
    fn new(client_first: &str, server_nonce: &str, users: &Users) -> Result<Self, Refused> {
        let ClientFirst { gs2_header, authorization, bare, user, nonce } =
            ClientFirst::parse(client_first).ok_or(MALFORMED)?;
        if gs2_header.starts_with("p=") {
            return Err(Refused("channel binding is not supported"));
        }
        let user = prepared_name(user)?;
        if let Some(authorization) = authorization
            && prepared_name(authorization)? != user
        {
            return Err(Refused("asks to act for another user"));
        }
        let credential = users.credential(&user);
        let nonce = format!("{nonce}{server_nonce}");
        let salt = BASE64_STANDARD.encode(&credential.salt);
        let server_first = format!("r={nonce},s={salt},i={}", credential.iterations);
        let (gs2_header, client_first_bare) = (gs2_header.to_owned(), bare.to_owned());
        Ok(Self { user, credential, gs2_header, client_first_bare, server_first, nonce })
    }

    /// Checks client-final; returns server-final.
    fn check(&self, client_final: &str) -> Result<String, Refused> {
        let ClientFinal { without_proof, channel_binding, nonce, proof } =
            ClientFinal::parse(client_final).ok_or(MALFORMED)?;
        if channel_binding != self.gs2_header.as_bytes() {
            return Err(Refused("first and final message differ in the channel binding"));
        }
        if nonce != self.nonce {
            return Err(Refused("first and final message differ in the nonce"));
        }
        let (bare, server_first) = (&self.client_first_bare, &self.server_first);
        let message = format!("{bare},{server_first},{without_proof}");
        let client_signature = hmac(&self.credential.stored_key, &[message.as_bytes()]);
        let mut client_key = proof;
        client_key.iter_mut().zip(client_signature).for_each(|(key, signed)| *key ^= signed);
        let stored_key: Key = Sha256::digest(client_key).into();
        if !stored_key.ct_eq(&self.credential.stored_key).to_bool() {
            return Err(Refused("unknown user or wrong password"));
        }
        let server_signature = hmac(&self.credential.server_key, &[message.as_bytes()]);
        Ok(format!("v={}", BASE64_STANDARD.encode(server_signature)))
    }
}

/// `n,a=<name>,n=<name>,r=<nonce>,...`, where the second field may be empty.
struct ClientFirst<'a> {
    /// Up to and with the second comma.
    gs2_header: &'a str,
    authorization: Option<&'a str>,
    /// Everything behind the header.
    bare: &'a str,
    user: &'a str,
    nonce: &'a str,
}

impl<'a> ClientFirst<'a> {
    fn parse(message: &'a str) -> Option<Self> {
        let (flag, rest) = message.split_once(',')?;
        if flag != "n" && flag != "y" && !flag.starts_with("p=") {
            return None;
        }
        let (authorization, bare) = rest.split_once(',')?;
        let gs2_header = message.strip_suffix(bare)?;
        let authorization = match authorization {
            "" => None,
            attribute => Some(attribute.strip_prefix("a=")?),
        };
        // An extension that must be understood would come first, as `m=`. Others may follow.
        let mut attributes = bare.split(',');
        let user = attributes.next()?.strip_prefix("n=")?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        if nonce.is_empty() || !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        Some(Self { gs2_header, authorization, bare, user, nonce })
    }
}

/// `c=<base64>,r=<nonce>,...,p=<base64>`.
struct ClientFinal<'a> {
    /// Everything before `,p=`.
    without_proof: &'a str,
    channel_binding: Vec<u8>,
    nonce: &'a str,
    proof: Key,
}

impl<'a> ClientFinal<'a> {
    fn parse(message: &'a str) -> Option<Self> {
        let (without_proof, proof) = message.rsplit_once(",p=")?;
        let mut attributes = without_proof.split(',');
        let channel_binding = attributes.next()?.strip_prefix("c=")?;
        let channel_binding = BASE64_STANDARD.decode(channel_binding).ok()?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        let proof = BASE64_STANDARD.decode(proof).ok()?.try_into().ok()?;
        Some(Self { without_proof, channel_binding, nonce, proof })
    }
}

/// A name as the users are kept by: `=2C` and `=3D` stand for comma and equals sign.
fn prepared_name(escaped: &str) -> Result<String, Refused> {
    let mut parts = escaped.split('=');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (sign, rest) = match (part.strip_prefix("2C"), part.strip_prefix("3D")) {
            (Some(rest), _) => (',', rest),
            (None, Some(rest)) => ('=', rest),
            (None, None) => return Err(MALFORMED),
        };
        name.push(sign);
        name.push_str(rest);
    }
    prepare(&name).map_err(|_| Refused("user name cannot be"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677, section 3: user `user`, password `pencil`.
    const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    fn scram(users: &[(&str, &str)]) -> Result<Scram, InvalidUser> {
        let text = |text: &str| text.to_owned();
        Scram::new(&users.iter().map(|(name, value)| (text(name), text(value))).collect())
    }

    fn users() -> Arc<Users> {
        let longer = PENCIL.replace("4096", "8192").replace("W22Z", "AAAAW22Z");
        scram(&[("user", PENCIL), ("a,b=c", PENCIL), ("IX", PENCIL), ("longer", &longer)])
            .unwrap()
            .users
    }

    fn challenge(client_first: &str) -> Result<Challenge, Refused> {
        Challenge::new(client_first, SERVER_NONCE, &users())
    }

    /// `r`, `s`, `i` of server-first.
    fn attributes(server_first: &str) -> [String; 3] {
        let attributes: Vec<String> = server_first.split(',').map(str::to_owned).collect();
        attributes.try_into().unwrap()
    }

    #[test]
    fn exchange_of_the_rfc() {
        let challenge = challenge(CLIENT_FIRST).unwrap();
        assert_eq!(challenge.server_first, SERVER_FIRST);
        assert_eq!(challenge.check(CLIENT_FINAL).as_deref(), Ok(SERVER_FINAL));
        assert_eq!(challenge.user, "user");
    }

    #[test]
    fn anything_that_differs_from_the_first_message_fails_the_final_one() {
        let challenge = challenge(CLIENT_FIRST).unwrap();
        for (from, to) in [
            ("c=biws", "c=eSws"),
            ("c=biws", "c="),
            ("c=biws", "c=biw"),
            ("c=biws,", ""),
            ("k0,", "k1,"),
            ("k0,", ","),
            ("r=r", "r=R"),
            ("k0,", "k0,x=1,"),
            ("p=dHz", "p=dHy"),
            ("dVQ=", "dVQ"),
            ("dVQ=", ""),
            (",p=", ",q="),
            (",p=", ",p=,p="),
        ] {
            let message = CLIENT_FINAL.replace(from, to);
            assert_ne!(message, CLIENT_FINAL);
            assert!(challenge.check(&message).is_err(), "{message}");
        }
    }

    /// Client-final with the right proof over whatever it says.
    fn proven(challenge: &Challenge, without_proof: &str) -> String {
        let salt = &challenge.credential.salt;
        let salted: Key = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(b"pencil", salt, 4096);
        let bare = &challenge.client_first_bare;
        let message = format!("{bare},{},{without_proof}", challenge.server_first);
        let signature = hmac(&challenge.credential.stored_key, &[message.as_bytes()]);
        let mut proof = hmac(&salted, &[b"Client Key"]);
        proof.iter_mut().zip(signature).for_each(|(key, signed)| *key ^= signed);
        format!("{without_proof},p={}", BASE64_STANDARD.encode(proof))
    }

    #[test]
    fn right_proof_does_not_make_up_for_another_nonce_or_header() {
        let challenge = challenge(CLIENT_FIRST).unwrap();
        let nonce = &challenge.nonce;
        let check = |without_proof: String| challenge.check(&proven(&challenge, &without_proof));
        assert_eq!(check(format!("c=biws,r={nonce}")).as_deref(), Ok(SERVER_FINAL));
        assert!(check(format!("c=biws,r={nonce},x=1")).is_ok());
        let nonce_differs = Refused("first and final message differ in the nonce");
        assert_eq!(check(format!("c=biws,r={nonce}1")), Err(nonce_differs));
        assert_eq!(check("c=biws,r=rOprNGfwEbeRWgbNEkqO".to_owned()), Err(nonce_differs));
        let binding_differs = Refused("first and final message differ in the channel binding");
        assert_eq!(check(format!("c=eSws,r={nonce}")), Err(binding_differs));
        assert_eq!(check(format!("c=,r={nonce}")), Err(binding_differs));
    }

    #[test]
    fn names_are_unescaped_and_prepared_and_signed_as_they_came() {
        assert_eq!(challenge("n,,n=a=2Cb=3Dc,r=x").unwrap().user, "a,b=c");
        let prepared = challenge("y,,n=\u{2168},r=x,extension=1").unwrap();
        assert_eq!(prepared.user, "IX");
        assert_eq!(prepared.client_first_bare, "n=\u{2168},r=x,extension=1");
        assert_eq!(prepared.gs2_header, "y,,");
        assert!(prepared.server_first.contains("W22ZaJ0SNY7soEsUEjb6gQ=="));
    }

    #[test]
    fn malformed_first_messages_and_channel_binding_are_refused() {
        for message in [
            "",
            "n",
            "n,",
            "n,,",
            "n,,n=user",
            "n,,n=user,r=",
            "n,,n=user,r=a b",
            "n,,n=,r=x",
            "n,,n=us=er,r=x",
            "n,,n=user=,r=x",
            "n,,m=now,n=user,r=x",
            "n,,r=x,n=user",
            "n,b=user,n=user,r=x",
            "n,a=user=4,n=user,r=x",
            "x,,n=user,r=x",
            "p,,n=user,r=x",
            "n,,n=us\u{7}er,r=x",
        ] {
            assert!(challenge(message).is_err(), "{message}");
        }
        let error = challenge("p=tls-exporter,,n=user,r=x").unwrap_err();
        assert_eq!(error, Refused("channel binding is not supported"));
    }

    #[test]
    fn nobody_acts_for_another_user() {
        assert!(challenge("n,a=user,n=user,r=x").is_ok());
        let error = challenge("n,a=admin,n=user,r=x").unwrap_err();
        assert_eq!(error, Refused("asks to act for another user"));
    }

    #[test]
    fn unknown_users_look_like_known_ones_and_are_the_same_each_time() {
        let users = users();
        let first = |name: &str| {
            let message = format!("n,,n={name},r=x");
            attributes(&Challenge::new(&message, SERVER_NONCE, &users).unwrap().server_first)
        };
        let lengths_of_salts = |salts: &[&str]| salts.iter().map(|salt| salt.len()).max();
        let mut seen = Vec::new();
        for name in (0..64).map(|n| format!("nobody{n}")) {
            let [nonce, salt, iterations] = first(&name);
            assert_eq!(first(&name), [nonce, salt.clone(), iterations.clone()]);
            seen.push((salt, iterations));
        }
        let [_, short, few] = first("user");
        let [_, long, many] = first("longer");
        assert_ne!(lengths_of_salts(&[&short]), lengths_of_salts(&[&long]));
        let looks_like = |salt: &str, iterations: &str| {
            seen.iter().filter(|(s, i)| s.len() == salt.len() && i == iterations).count()
        };
        assert_eq!(looks_like(&short, &few) + looks_like(&long, &many), seen.len());
        assert!(looks_like(&short, &few) > 0 && looks_like(&long, &many) > 0);
        seen.sort();
        seen.dedup_by(|a, b| a.0 == b.0);
        assert_eq!(seen.len(), 64, "no two have one salt");
    }

    #[test]
    fn unknown_user_fails_in_the_words_of_a_wrong_password() {
        let fails = |client_first| {
            let challenge = challenge(client_first).unwrap();
            challenge.check(&CLIENT_FINAL.replace("rOprNGfwEbeRWgbNEkqO", "x")).unwrap_err()
        };
        assert_eq!(fails("n,,n=nobody,r=x"), fails("n,,n=user,r=x"));
    }

    #[test]
    fn exchange_ends_with_its_first_failure() {
        let mut exchange = scram(&[("user", PENCIL)]).unwrap().begin();
        assert!(exchange.step(b"n,,n=user,r=x").is_ok());
        assert_eq!(exchange.step(b"c=biws,r=x,p="), Err(MALFORMED));
        assert_eq!(exchange.step(b"n,,n=user,r=x"), Err(Refused("exchange is over")));
    }

    #[test]
    fn client_without_a_first_message_is_asked_for_it_once() {
        let mut exchange = scram(&[("user", PENCIL)]).unwrap().begin();
        assert_eq!(exchange.step(b""), Ok(Step::Continue { data: Vec::new() }));
        assert_eq!(exchange.step(b""), Err(MALFORMED));
    }

    #[test]
    fn nonces_are_new_and_messages_bounded() {
        let scram = scram(&[("user", PENCIL)]).unwrap();
        let first = |message: &str| scram.begin().step(message.as_bytes());
        assert_ne!(first("n,,n=user,r=x"), first("n,,n=user,r=x"));
        let long = |len: usize| format!("n,,n=user,r={}", "x".repeat(len - 12));
        assert!(first(&long(MESSAGE_BYTES_MAX)).is_ok());
        assert_eq!(first(&long(MESSAGE_BYTES_MAX + 1)), Err(Refused("message is too long")));
        assert_eq!(scram.begin().step(b"n,,n=\xFF,r=x"), Err(MALFORMED));
    }

    #[test]
    fn unknown_users_are_the_same_after_users_were_read_anew() {
        let salt = |scram: &Scram| scram.users.credential("nobody").salt;
        let [before, after] = [(); 2].map(|()| scram(&[("user", PENCIL)]).unwrap());
        assert_eq!(salt(&before), salt(&after));
    }

    #[test]
    fn users_that_cannot_be_are_refused_by_name() {
        let error = |users: &[(&str, &str)]| scram(users).unwrap_err().to_string();
        assert!(
            error(&[("alice", "pencil")]).starts_with("the value of `alice` is not of the form")
        );
        assert!(error(&[("", PENCIL)]).contains("it is empty"));
        assert!(error(&[("a\u{7}", PENCIL)]).starts_with(r"the user name `a\u{7}` cannot be used"));
        let twice = error(&[("IX", PENCIL), ("\u{2168}", PENCIL)]);
        assert_eq!(
            twice,
            "`\u{2168}` is there twice: in different spellings, or in the password file as well"
        );
    }
}
