//! What the broker keeps of a SCRAM user's password (RFC 5802, section 3): enough to check it, too little to
//! use it anywhere. Floor 3, called by `auth::scram` and, for a new user, by `main`.
//!
//! Text form as in PostgreSQL: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, the last three
//! in base64.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ctutils::CtEq;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Fewest iterations that RFC 7677 (section 4) advises; clients refuse fewer.
pub const ITERATIONS_MIN: u32 = 4096;
/// Bytes of a new salt.
const SALT_BYTES: usize = 16;
/// Bytes that a salt may have; [`Credential::imagine`] makes them with one HMAC.
const SALT_BYTES_MAX: usize = 32;

/// A key, a hash, a signature: everything of SHA-256 has this size.
pub(super) type Key = [u8; 32];

/// See the module comment.
#[derive(Clone, Eq, PartialEq)]
pub struct Credential {
    /// Rounds of PBKDF2, which the client has to do.
    pub(super) iterations: u32,
    /// Told to everybody who asks for the user.
    pub(super) salt: Vec<u8>,
    /// Hash of the ClientKey, which only the client knows.
    pub(super) stored_key: Key,
    /// Proves to the client that the broker knows it.
    pub(super) server_key: Key,
}

/// Why there is no credential. Holds nothing of the text, which may be a password in a wrong place.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidCredential {
    /// Not the form that `scram-user` prints.
    #[error("is not of the form SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>")]
    Form,
    /// Too few of them.
    #[error("has {0} iterations, and {ITERATIONS_MIN} is the fewest that clients accept")]
    Iterations(u32),
    /// One that protects nothing, or cannot be told from an imagined one.
    #[error("has a salt of {0} bytes, and there must be 8 to {SALT_BYTES_MAX}")]
    Salt(usize),
    /// A name or password that SASLprep (RFC 4013) rules out.
    #[error("cannot be used with SCRAM: {0}")]
    Unpreparable(String),
    /// The system gave no random numbers.
    #[error("cannot be salted: {0}")]
    Randomness(#[from] getrandom::Error),
}

impl Credential {
    /// For `password`, with a new salt. Takes about a millisecond for each 4,096 iterations.
    pub fn new(password: &str, iterations: u32) -> Result<Self, InvalidCredential> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt)?;
        Self::derive(password, &salt, iterations)
    }

    fn derive(password: &str, salt: &[u8], iterations: u32) -> Result<Self, InvalidCredential> {
        check(iterations, salt)?;
        Ok(Self::from_prepared(prepare(password)?.as_bytes(), salt, iterations))
    }

    fn from_prepared(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        let mut salted_password = Key::default();
        pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, iterations, &mut salted_password);
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: Sha256::digest(hmac(&salted_password, &[b"Client Key"])).into(),
            server_key: hmac(&salted_password, &[b"Server Key"]),
        }
    }

    /// Whether this is the password. As slow as [`Self::new`].
    pub(super) fn matches(&self, password: &[u8]) -> bool {
        let prepared = str::from_utf8(password).ok().and_then(|text| prepare(text).ok());
        // What cannot be prepared is derived from all the same, so that it takes the same time.
        let bytes = prepared.as_ref().map_or(password, |text| text.as_bytes());
        let is_same = Self::from_prepared(bytes, &self.salt, self.iterations)
            .stored_key
            .ct_eq(&self.stored_key)
            .to_bool();
        is_same && prepared.is_some()
    }

    /// For a user who does not exist: as `like` to look at, or as a new one, the same for the same `secret`
    /// and `name`, and of no password.
    pub(super) fn imagine(name: &str, secret: &Key, like: Option<&Self>) -> Self {
        let (iterations, salt_bytes) =
            like.map_or((ITERATIONS_MIN, SALT_BYTES), |like| (like.iterations, like.salt.len()));
        let mut salt = hmac(secret, &[b"salt", name.as_bytes()]).to_vec();
        salt.truncate(salt_bytes);
        Self {
            iterations,
            salt,
            stored_key: hmac(secret, &[b"stored key", name.as_bytes()]),
            server_key: hmac(secret, &[b"server key", name.as_bytes()]),
        }
    }
}

fn check(iterations: u32, salt: &[u8]) -> Result<(), InvalidCredential> {
    if iterations < ITERATIONS_MIN {
        return Err(InvalidCredential::Iterations(iterations));
    }
    match salt.len() {
        8..=SALT_BYTES_MAX => Ok(()),
        bytes => Err(InvalidCredential::Salt(bytes)),
    }
}

/// A name or password in the form in which it is compared (SASLprep), not empty.
pub fn prepare(text: &str) -> Result<String, InvalidCredential> {
    match stringprep::saslprep(text) {
        Ok(prepared) if prepared.is_empty() => {
            Err(InvalidCredential::Unpreparable("it is empty".to_owned()))
        }
        Ok(prepared) => Ok(prepared.into_owned()),
        Err(error) => Err(InvalidCredential::Unpreparable(error.to_string())),
    }
}

/// HMAC-SHA-256 of the joined `parts`.
pub(super) fn hmac(key: &Key, parts: &[&[u8]]) -> Key {
    // HMAC pads a key with zeros to the block of the hash; a whole block is a key without a failing case.
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let mut hmac = Hmac::<Sha256>::new(&block.into());
    parts.iter().for_each(|part| hmac.update(part));
    hmac.finalize().into_bytes().into()
}

impl FromStr for Credential {
    type Err = InvalidCredential;

    fn from_str(text: &str) -> Result<Self, InvalidCredential> {
        let (iterations, salt, stored_key, server_key) =
            split(text).ok_or(InvalidCredential::Form)?;
        check(iterations, &salt)?;
        Ok(Self { iterations, salt, stored_key, server_key })
    }
}

fn split(text: &str) -> Option<(u32, Vec<u8>, Key, Key)> {
    let (head, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
    let (iterations, salt) = head.split_once(':')?;
    let (stored_key, server_key) = keys.split_once(':')?;
    let key = |text| BASE64_STANDARD.decode(text).ok()?.try_into().ok();
    let salt = BASE64_STANDARD.decode(salt).ok()?;
    Some((iterations.parse().ok()?, salt, key(stored_key)?, key(server_key)?))
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [salt, stored_key, server_key] = [&self.salt[..], &self.stored_key, &self.server_key]
            .map(|bytes| BASE64_STANDARD.encode(bytes));
        write!(f, "SCRAM-SHA-256${}:{salt}${stored_key}:{server_key}", self.iterations)
    }
}

/// Keys are not for logs.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// User and password of RFC 7677, section 3, in the form in which PostgreSQL stores them.
    const PENCIL: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn credential_of_the_rfc_is_derived_and_printed_as_postgresql_has_it() {
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let credential = Credential::derive("pencil", &salt, 4096).unwrap();
        assert_eq!(credential.to_string(), PENCIL);
        assert_eq!(PENCIL.parse(), Ok(credential));
    }

    #[test]
    fn new_credentials_of_one_password_have_nothing_in_common() {
        let [one, other] = [(); 2].map(|()| Credential::new("pencil", 4096).unwrap());
        assert_ne!(one.salt, other.salt);
        assert_ne!(one.stored_key, other.stored_key);
        assert_ne!(one.server_key, other.server_key);
    }

    #[test]
    fn passwords_are_compared_after_saslprep() {
        let salt = [7; 16];
        let derive = |password| Credential::derive(password, &salt, 4096);
        // U+2168 is the Roman numeral nine, U+00AD a soft hyphen (RFC 4013, section 3).
        assert_eq!(derive("I\u{AD}X\u{2168}"), derive("IXIX"));
        assert_ne!(derive("ix"), derive("IX"));
        assert!(matches!(derive(""), Err(InvalidCredential::Unpreparable(_))));
        assert!(matches!(derive("\u{AD}"), Err(InvalidCredential::Unpreparable(_))));
        assert!(matches!(derive("bell\u{7}"), Err(InvalidCredential::Unpreparable(_))));
    }

    #[test]
    fn anything_but_the_form_is_refused() {
        for text in [
            "",
            "pencil",
            "SCRAM-SHA-1$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d:wfPL",
            &PENCIL.replace("4096", "many"),
            &PENCIL.replace("4096", "-1"),
            &PENCIL.replace("==$", "$"),
            &PENCIL.replace("T4qY=", "T4qY"),
            &PENCIL.replace("T4qY=", "T4o="),
            &PENCIL.replace("2dU=", "2dU=:"),
            &PENCIL.replace("=:w", "=$w"),
        ] {
            assert_eq!(text.parse::<Credential>(), Err(InvalidCredential::Form), "{text}");
        }
        let few = PENCIL.replace("4096", "4095");
        assert_eq!(few.parse::<Credential>(), Err(InvalidCredential::Iterations(4095)));
        let short = PENCIL.replace("W22ZaJ0SNY7soEsUEjb6gQ==", "W22ZaJ0=");
        assert_eq!(short.parse::<Credential>(), Err(InvalidCredential::Salt(5)));
    }

    #[test]
    fn keys_are_not_in_the_debug_form() {
        let credential: Credential = PENCIL.parse().unwrap();
        assert_eq!(format!("{credential:?}"), "Credential { iterations: 4096, .. }");
    }
}
