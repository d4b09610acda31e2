//! What a password file keeps of a password, in each of its forms: read, checked, made anew. Floor 3, called by
//! `auth::password_file`.
//!
//! | form | what it is | who writes it |
//! |---|---|---|
//! | `$argon2id$v=19$m=...,t=...,p=...$salt$hash` | Argon2id (RFC 9106) | `mailboxqtt passwd`, Mosquitto 2.1 |
//! | `$7$iterations$salt$hash` | PBKDF2-HMAC-SHA512 | `mosquitto_passwd` since 2.0 |
//! | `$6$salt$hash` | SHA-512 of password and salt, not crypt's `$6$` | `mosquitto_passwd` before |
//! | `SCRAM-SHA-256$...` | see [`Credential`] | `mailboxqtt passwd --scram` |
//!
//! A check takes up to some tens of milliseconds, so it is for a thread that moves no messages.

use std::fmt;

use argon2::{Argon2, Params, PasswordHash};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
use ctutils::CtEq;
use sha2::{Digest, Sha512};

use crate::auth::credential::{Credential, ITERATIONS_MIN, InvalidCredential};

/// Most rounds of PBKDF2: some seconds of one core.
const ITERATIONS_MAX: u32 = 10_000_000;
/// Most memory of one Argon2 check in KiB.
const ARGON2_KIB_MAX: u32 = 1024 * 1024;
/// Most passes over that memory.
const ARGON2_PASSES_MAX: u32 = 64;
/// Most lanes of that memory, which one thread works on.
const ARGON2_LANES_MAX: u32 = 64;
/// Bytes that a salt may have.
const SALT_BYTES_MAX: usize = 64;
/// Bytes of the salt of a new Argon2id hash.
const NEW_SALT_BYTES: usize = 16;
/// Longest password that is taken, as a CONNECT can hold no longer one.
const PASSWORD_BYTES_MAX: usize = 65_535;

/// A stored password. It has one of the forms of the module comment.
#[derive(Clone)]
pub enum StoredPassword {
    /// `$argon2id$`
    Argon2id(Box<Argon2id>),
    /// `$7$`
    Pbkdf2 {
        /// Rounds.
        iterations: u32,
        /// Of this password.
        salt: Vec<u8>,
        /// Of the password.
        hash: [u8; 64],
    },
    /// `$6$`
    Sha512 {
        /// Of this password.
        salt: Vec<u8>,
        /// Of password and salt.
        hash: [u8; 64],
    },
    /// Checks a password, and the proof of a SCRAM exchange.
    Scram(Credential),
}

/// What Argon2id needs to be run again.
#[derive(Clone)]
pub struct Argon2id {
    params: Params,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

/// Which form a new password gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// Argon2id with 19 MiB and two passes.
    Argon2id,
    /// For SCRAM-SHA-256, too.
    Scram,
}

/// Why text is no stored password, or a password cannot be stored. Holds nothing of either.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidPassword {
    /// None of the forms.
    #[error(
        "the password is not hashed; replace the line with `mailboxqtt passwd FILE USER`, or the whole file \
         with `mosquitto_passwd -U FILE`"
    )]
    Plain,
    /// A form of other programs.
    #[error(
        "the hash is of a kind that is not known here (known are $argon2id$, $7$, $6$ and SCRAM-SHA-256$); \
         replace the line with `mailboxqtt passwd FILE USER`"
    )]
    Kind,
    /// Too few or too many parts, or one that is no number or no base64.
    #[error("the hash is not of the form {0}")]
    Form(&'static str),
    /// A part outside of its bounds.
    #[error("{what} of the hash is {value}, and must be from {min} to {max}")]
    Bounds {
        /// Which.
        what: &'static str,
        /// As read.
        value: u64,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A SCRAM credential that is none.
    #[error("the value {0}")]
    Scram(#[from] InvalidCredential),
    /// Nothing to check.
    #[error("the password is empty: choose another")]
    Empty,
    /// Longer than any CONNECT may carry.
    #[error("the password has {0} bytes, and {PASSWORD_BYTES_MAX} is the most that MQTT can carry")]
    TooLong(usize),
    /// The system gave no random numbers.
    #[error("no random numbers from the system: {0}")]
    Randomness(#[from] getrandom::Error),
    /// Out of memory or the like.
    #[error("Argon2 failed: {0}")]
    Argon2(argon2::Error),
}

impl StoredPassword {
    /// Reads the part of a line behind the user name.
    pub fn parse(text: &str) -> Result<Self, InvalidPassword> {
        if text.starts_with("$argon2id$") {
            return Argon2id::parse(text).map(|it| Self::Argon2id(Box::new(it)));
        }
        if let Some(rest) = text.strip_prefix("$7$") {
            return parse_pbkdf2(rest);
        }
        if let Some(rest) = text.strip_prefix("$6$") {
            const FORM: &str = "$6$<salt>$<hash>, with 64 bytes of hash, both in base64";
            let (salt, hash) = rest.split_once('$').ok_or(InvalidPassword::Form(FORM))?;
            return Ok(Self::Sha512 {
                salt: parse_salt(salt, FORM)?,
                hash: parse_hash(hash, FORM)?,
            });
        }
        if text.starts_with("SCRAM-SHA-256$") {
            return Ok(Self::Scram(text.parse()?));
        }
        match text.starts_with('$') && text.matches('$').count() > 1 {
            true => Err(InvalidPassword::Kind),
            false => Err(InvalidPassword::Plain),
        }
    }

    /// The text of a new entry for `password`, with a new salt.
    pub fn hash(password: &str, form: Form) -> Result<String, InvalidPassword> {
        match password.len() {
            0 => return Err(InvalidPassword::Empty),
            1..=PASSWORD_BYTES_MAX => (),
            bytes => return Err(InvalidPassword::TooLong(bytes)),
        }
        match form {
            Form::Argon2id => Argon2id::new(password.as_bytes()).map(|it| it.to_string()),
            Form::Scram => Ok(Credential::new(password, ITERATIONS_MIN)?.to_string()),
        }
    }

    /// Whether this is the password. Takes the time of the form, whatever the password is.
    pub fn matches(&self, password: &[u8]) -> bool {
        match self {
            Self::Argon2id(stored) => stored.matches(password),
            Self::Pbkdf2 { iterations, salt, hash } => {
                let mut derived = [0; 64];
                pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, *iterations, &mut derived);
                derived.ct_eq(hash).to_bool()
            }
            Self::Sha512 { salt, hash } => {
                let digest: [u8; 64] =
                    Sha512::new().chain_update(password).chain_update(salt).finalize().into();
                digest.ct_eq(hash).to_bool()
            }
            Self::Scram(credential) => credential.matches(password),
        }
    }
}

/// Hashes are not for logs.
impl fmt::Debug for StoredPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Argon2id(_) => "Argon2id",
            Self::Pbkdf2 { .. } => "Pbkdf2",
            Self::Sha512 { .. } => "Sha512",
            Self::Scram(_) => "Scram",
        })
    }
}

impl Argon2id {
    const FORM: &str = "$argon2id$v=19$m=<KiB>,t=<passes>,p=<lanes>$<salt>$<hash>";

    fn new(password: &[u8]) -> Result<Self, InvalidPassword> {
        let mut salt = vec![0; NEW_SALT_BYTES];
        getrandom::fill(&mut salt)?;
        let mut new = Self { params: Params::DEFAULT, salt, hash: vec![0; 32] };
        new.hash = new.derive(password).map_err(InvalidPassword::Argon2)?;
        Ok(new)
    }

    fn parse(text: &str) -> Result<Self, InvalidPassword> {
        let form = InvalidPassword::Form(Self::FORM);
        let parsed = PasswordHash::new(text).map_err(|_| form.clone())?;
        let (Some(salt), Some(hash)) = (parsed.salt, parsed.hash) else { return Err(form) };
        let params = Params::try_from(&parsed).map_err(|_| form.clone())?;
        if parsed.version != Some(argon2::Version::V0x13.into())
            || !params.keyid().is_empty()
            || !params.data().is_empty()
        {
            return Err(form);
        }
        check_bounds("the memory in KiB", params.m_cost(), 8, ARGON2_KIB_MAX)?;
        check_bounds("the number of passes", params.t_cost(), 1, ARGON2_PASSES_MAX)?;
        check_bounds("the number of lanes", params.p_cost(), 1, ARGON2_LANES_MAX)?;
        let hash = hash.as_bytes().to_vec();
        check_bounds("the length in bytes", hash.len() as u32, 16, 64)?;
        Ok(Self { params, salt: salt.to_vec(), hash })
    }

    fn derive(&self, password: &[u8]) -> Result<Vec<u8>, argon2::Error> {
        let mut hash = vec![0; self.hash.len()];
        Argon2::from(&self.params).hash_password_into(password, &self.salt, &mut hash)?;
        Ok(hash)
    }

    fn matches(&self, password: &[u8]) -> bool {
        self.derive(password).is_ok_and(|hash| hash.ct_eq(&self.hash).to_bool())
    }
}

impl fmt::Display for Argon2id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (m, t, p) = (self.params.m_cost(), self.params.t_cost(), self.params.p_cost());
        let [salt, hash] =
            [&self.salt, &self.hash].map(|bytes| BASE64_STANDARD_NO_PAD.encode(bytes));
        write!(f, "$argon2id$v=19$m={m},t={t},p={p}${salt}${hash}")
    }
}

fn parse_pbkdf2(rest: &str) -> Result<StoredPassword, InvalidPassword> {
    const FORM: &str =
        "$7$<iterations>$<salt>$<hash>, with 64 bytes of hash, the last two in base64";
    let form = || InvalidPassword::Form(FORM);
    let (iterations, rest) = rest.split_once('$').ok_or_else(form)?;
    let (salt, hash) = rest.split_once('$').ok_or_else(form)?;
    let iterations = iterations.parse().map_err(|_| form())?;
    check_bounds("the number of iterations", iterations, 1, ITERATIONS_MAX)?;
    Ok(StoredPassword::Pbkdf2 {
        iterations,
        salt: parse_salt(salt, FORM)?,
        hash: parse_hash(hash, FORM)?,
    })
}

fn parse_salt(text: &str, form: &'static str) -> Result<Vec<u8>, InvalidPassword> {
    let salt = BASE64_STANDARD.decode(text).map_err(|_| InvalidPassword::Form(form))?;
    check_bounds("the length of the salt in bytes", salt.len() as u32, 1, SALT_BYTES_MAX as u32)?;
    Ok(salt)
}

fn parse_hash(text: &str, form: &'static str) -> Result<[u8; 64], InvalidPassword> {
    let hash = BASE64_STANDARD.decode(text).map_err(|_| InvalidPassword::Form(form))?;
    hash.try_into().map_err(|_| InvalidPassword::Form(form))
}

fn check_bounds(what: &'static str, value: u32, min: u32, max: u32) -> Result<(), InvalidPassword> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InvalidPassword::Bounds { what, value: value.into(), min: min.into(), max: max.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by mosquitto_passwd 2.0.11 for `pencil`.
    const PBKDF2: &str = "$7$101$9QVt6xtVHsYScRRh$HoIbUvC3aIOSMF5JymwfHsjtmCxCeFGtFlklHHBfcZpdP5F5yBOfbCibce2VPbhcmf7pqoQpVsQcTs1dOXfccQ==";
    const SHA512: &str = "$6$AAECAwQFBgcICQoL$rRzn37trE3g/BjzdN2mmtKsUjbdiQp6JD9blv4UHWyEGk5h7UCh8xJCi6Kfnkhoq2n9xbnqkIfqD5tBAb7eLdQ==";
    /// By the reference implementation, `argon2 -id -t 2 -k 64 -p 1 -l 32` with salt `somesaltsomesalt`.
    const ARGON2ID: &str = "$argon2id$v=19$m=64,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$7dp1eUAC26cBnK0F3Cgw5sO6rWe+xu8efvL3MD+0U+8";
    /// RFC 7677, section 3.
    const SCRAM: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn hashes_of_other_programs_are_checked() {
        for text in [PBKDF2, SHA512, ARGON2ID, SCRAM] {
            let stored = StoredPassword::parse(text).unwrap();
            assert!(stored.matches(b"pencil"), "{text}");
            for wrong in [&b"Pencil"[..], b"pencil ", b"", b"\xFF"] {
                assert!(!stored.matches(wrong), "{text} {wrong:?}");
            }
        }
    }

    #[test]
    fn new_hashes_are_salted_and_can_be_read() {
        for form in [Form::Argon2id, Form::Scram] {
            let [one, other] = [(); 2].map(|()| StoredPassword::hash("a:b$c", form).unwrap());
            assert_ne!(one, other);
            let stored = StoredPassword::parse(&one).unwrap();
            assert!(stored.matches(b"a:b$c") && !stored.matches(b"a:b$"));
        }
    }

    #[test]
    fn passwords_that_nobody_can_use_are_refused() {
        assert_eq!(StoredPassword::hash("", Form::Argon2id), Err(InvalidPassword::Empty));
        let long = "a".repeat(65_536);
        assert_eq!(StoredPassword::hash(&long, Form::Scram), Err(InvalidPassword::TooLong(65_536)));
    }

    #[test]
    fn anything_but_the_forms_is_refused_without_saying_it() {
        let change = |text: &str, from: &str, to: &str| {
            assert!(text.contains(from), "{text} {from}");
            text.replacen(from, to, 1)
        };
        let cases = [
            ("hunter2".to_owned(), "is not hashed"),
            (String::new(), "is not hashed"),
            ("$hunter2".to_owned(), "is not hashed"),
            ("$5$salt$hunter2".to_owned(), "not known here"),
            ("$2b$12$hunter2hunter2".to_owned(), "not known here"),
            ("$argon2i$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$hunter2".to_owned(), "not known here"),
            ("$7$101$hunter2".to_owned(), "not of the form"),
            (change(PBKDF2, "$101$", "$many$"), "not of the form"),
            (change(PBKDF2, "$101$", "$-1$"), "not of the form"),
            (change(PBKDF2, "$101$", "$0$"), "iterations of the hash is 0"),
            (change(PBKDF2, "$101$", "$99999999$"), "iterations of the hash is 99999999"),
            (format!("{PBKDF2}$"), "not of the form"),
            (change(SHA512, "==", "="), "not of the form"),
            (change(ARGON2ID, "v=19", "v=16"), "not of the form"),
            (change(ARGON2ID, "$v=19", ""), "not of the form"),
            (change(ARGON2ID, "m=64", "m=4000000"), "the memory in KiB"),
            (change(ARGON2ID, "t=2", "t=100"), "passes"),
            (change(ARGON2ID, "p=1", "p=1,keyid=aGk"), "not of the form"),
            (change(SCRAM, "4096", "many"), "is not of the form SCRAM"),
        ];
        for (text, part) in cases {
            let said = StoredPassword::parse(&text).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn nothing_of_a_hash_is_in_the_debug_form() {
        let stored = StoredPassword::parse(PBKDF2).unwrap();
        assert_eq!(format!("{stored:?}"), "Pbkdf2");
    }
}
