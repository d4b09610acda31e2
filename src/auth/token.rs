//! JSON Web Tokens (RFC 7519) in place of a password. Floor 3, called by `auth::gatekeeper`.
//!
//! A signature costs some tens of microseconds, so it is checked where the packet is handled.
//!
//! # Invariants
//!
//! - What a token says of its algorithm only chooses among what its key may be used for, and that is decided by the
//!   kind of the key: no token is good without a signature, and no public key is ever taken for a secret.
//! - Neither tokens nor keys are in logs or errors.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};

use crate::auth::claims::{ClaimNames, Claims};
use crate::session::authentication::{Authenticated, Login, Proof, Refused};

/// Fewest bytes of a secret: as long as the shortest hash (RFC 7518, section 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// Most keys; each may be tried on a token that does not say which it needs.
const KEYS_MAX: usize = 64;

/// Which tokens are good, and what they say.
#[derive(Clone, Debug)]
pub struct TokenSettings {
    /// Where they are in a CONNECT.
    pub from: TokenPlace,
    /// A secret for HS256, HS384 and HS512: all bytes of the file but a line end.
    pub secret_file: Option<PathBuf>,
    /// A public key in PEM: RSA, EC or Ed25519.
    pub public_key_file: Option<PathBuf>,
    /// Keys of any kind (RFC 7517).
    pub jwks_file: Option<PathBuf>,
    /// Whom a token has to be for, one of these; empty is anybody, if it names nobody.
    pub audiences: Vec<String>,
    /// By whom it has to be issued, one of these; empty is anybody.
    pub issuers: Vec<String>,
    /// Whether a token has to have an end.
    pub expiry_required: bool,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// What is read.
    pub names: ClaimNames,
}

/// Where a token is in a CONNECT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenPlace {
    /// In place of the password.
    Password,
    /// In place of the user name.
    UserName,
}

/// Why there are no keys. Holds nothing of them.
#[derive(Debug, thiserror::Error)]
pub enum InvalidKeys {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// From the system.
        error: io::Error,
    },
    /// It is not what it should be.
    #[error("{} {reason}", path.display())]
    Key {
        /// As given.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// See the module comment.
#[derive(Debug)]
pub(super) struct Tokens {
    from: TokenPlace,
    keys: Vec<Key>,
    names: ClaimNames,
    leeway: Duration,
}

/// A key and what it may be used for.
struct Key {
    /// Its `kid`, in a set of them.
    id: Option<String>,
    key: DecodingKey,
    /// Its algorithms are those of the kind of the key.
    validation: Validation,
}

/// Keys are not for logs.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let algorithms = &self.validation.algorithms;
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithms", algorithms)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn load(settings: &TokenSettings) -> Result<Self, InvalidKeys> {
        let mut keys = Vec::new();
        if let Some(path) = &settings.secret_file {
            keys.push((None, secret(path)?));
        }
        if let Some(path) = &settings.public_key_file {
            keys.push((None, public_key(path)?));
        }
        if let Some(path) = &settings.jwks_file {
            keys.extend(key_set(path)?);
        }
        let validated =
            |(id, (key, algorithms)): (Option<String>, (DecodingKey, Vec<Algorithm>))| Key {
                id,
                key,
                validation: validation(settings, algorithms),
            };
        Ok(Self {
            from: settings.from,
            keys: keys.into_iter().map(validated).collect(),
            names: settings.names.clone(),
            leeway: settings.leeway,
        })
    }

    /// The token in `login`; `None` where there is none, or one without a signature that could be checked.
    pub(super) fn find<'a>(&self, login: &'a Login) -> Option<&'a [u8]> {
        let token = match self.from {
            TokenPlace::Password => login.password.as_deref()?,
            TokenPlace::UserName => login.user_name.as_deref()?.as_bytes(),
        };
        decode_header(token).is_ok().then_some(token)
    }

    /// Who a client with this identifier and this token is.
    pub(super) fn check(&self, token: &[u8], client_id: &str) -> Result<Authenticated, Refused> {
        let payload = self.verify(token)?;
        let claims = Claims::read(&payload, &self.names, client_id)?;
        let mut authenticated = Authenticated::new(claims.user, Proof::Token);
        authenticated.ends_at = claims.expires_s.and_then(|at| self.ends_at(at));
        authenticated.rules = claims.rules;
        Ok(authenticated)
    }

    fn verify(&self, token: &[u8]) -> Result<Map<String, Value>, Refused> {
        let header = decode_header(token).map_err(|_| Refused("malformed token"))?;
        let is_for = |key: &&Key| {
            let is_kind = key.validation.algorithms.contains(&header.alg);
            let is_named = match (&key.id, &header.kid) {
                (Some(one), Some(other)) => one == other,
                _ => true,
            };
            is_kind && is_named
        };
        let mut refused = Refused("there is no key for the algorithm or `kid` of the token");
        for key in self.keys.iter().filter(is_for) {
            match decode::<Map<String, Value>>(token, &key.key, &key.validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => refused = reason(error.kind()),
            }
        }
        Err(refused)
    }

    /// `None` is later than anybody can count.
    fn ends_at(&self, expires_s: u64) -> Option<Instant> {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(expires_s))?;
        let left = at.checked_add(self.leeway)?.duration_since(SystemTime::now());
        Instant::now().checked_add(left.unwrap_or_default())
    }
}

fn validation(settings: &TokenSettings, algorithms: Vec<Algorithm>) -> Validation {
    let mut validation = Validation {
        algorithms,
        leeway: settings.leeway.as_secs(),
        validate_exp: true,
        validate_nbf: true,
        ..Validation::default()
    };
    let mut required = Vec::new();
    if settings.expiry_required {
        required.push("exp");
    }
    if !settings.audiences.is_empty() {
        validation.set_audience(&settings.audiences);
        required.push("aud");
    }
    if !settings.issuers.is_empty() {
        validation.set_issuer(&settings.issuers);
        required.push("iss");
    }
    validation.set_required_spec_claims(&required);
    validation
}

/// For the log.
fn reason(kind: &ErrorKind) -> Refused {
    Refused(match kind {
        ErrorKind::InvalidSignature => "the signature of the token is wrong",
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token is from another issuer",
        ErrorKind::InvalidAudience => "the token is for another audience",
        ErrorKind::MissingRequiredClaim(_) => "the token lacks `exp`, `aud` or `iss`",
        _ => "malformed token",
    })
}

fn read(path: &Path) -> Result<Vec<u8>, InvalidKeys> {
    fs::read(path).map_err(|error| InvalidKeys::File { path: path.into(), error })
}

fn invalid(path: &Path, reason: impl Into<String>) -> InvalidKeys {
    InvalidKeys::Key { path: path.into(), reason: reason.into() }
}

fn secret(path: &Path) -> Result<(DecodingKey, Vec<Algorithm>), InvalidKeys> {
    let bytes = read(path)?;
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let secret = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    if secret.starts_with(b"-----BEGIN") {
        return Err(invalid(path, "is a key in PEM and no secret: name it as public_key_file"));
    }
    if secret.len() < SECRET_BYTES_MIN {
        let found = secret.len();
        let reason = format!(
            "holds a secret of {found} bytes, and {SECRET_BYTES_MIN} are the fewest that are safe"
        );
        return Err(invalid(path, reason));
    }
    let key = DecodingKey::from_secret(secret);
    let algorithms = key.family().algorithms().to_vec();
    Ok((key, algorithms))
}

fn public_key(path: &Path) -> Result<(DecodingKey, Vec<Algorithm>), InvalidKeys> {
    let pem = read(path)?;
    if pem.windows(11).any(|window| window == b"PRIVATE KEY") {
        return Err(invalid(
            path,
            "is a private key, which the broker must not have: name the public one",
        ));
    }
    let key = DecodingKey::from_rsa_pem(&pem)
        .or_else(|_| DecodingKey::from_ec_pem(&pem))
        .or_else(|_| DecodingKey::from_ed_pem(&pem))
        .map_err(|_| {
            invalid(path, "is no public key of RSA, EC (P-256, P-384) or Ed25519 in PEM")
        })?;
    let algorithms = key.family().algorithms().to_vec();
    Ok((key, algorithms))
}

/// Keys for signatures, with their `kid`.
#[allow(clippy::type_complexity, reason = "it is taken apart at once")]
fn key_set(
    path: &Path,
) -> Result<Vec<(Option<String>, (DecodingKey, Vec<Algorithm>))>, InvalidKeys> {
    let set: JwkSet = serde_json::from_slice(&read(path)?)
        .map_err(|error| invalid(path, format!("is no JSON Web Key Set: line {}", error.line())))?;
    let mut keys = Vec::new();
    for (number, jwk) in (1..).zip(&set.keys) {
        let common = &jwk.common;
        let may_verify =
            common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        if !may_verify
            || common.public_key_use.as_ref().is_some_and(|it| *it != PublicKeyUse::Signature)
        {
            continue;
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|_| {
            invalid(path, format!("has a key, number {number}, of a kind that is not supported"))
        })?;
        let mut algorithms = key.family().algorithms().to_vec();
        if let Some(only) = common.key_algorithm {
            let only = only.to_string();
            algorithms.retain(|algorithm| format!("{algorithm:?}") == only);
        }
        if algorithms.is_empty() {
            return Err(invalid(
                path,
                format!("has a key, number {number}, with an `alg` that is not of its kind"),
            ));
        }
        keys.push((common.key_id.clone(), (key, algorithms)));
    }
    match keys.len() {
        0 => Err(invalid(path, "has no key for signatures")),
        1..=KEYS_MAX => Ok(keys),
        more => Err(invalid(path, format!("has {more} keys, and {KEYS_MAX} is the most"))),
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    const SECRET: &str = "a secret of more than 32 bytes, as it has to be";
    /// Nobody has the private key any more; user anna, to the year 2100.
    const RSA_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAkh1INgjuX8iUBGRZ7fP+\nmRTZTn3uzFPtqZWIYaa1fxhiJGEu+VrJBMjQ5QBuPnLtY02Z+uJyo98dj8G5jzFz\nQrZmMlbe98VrvZ3L/H6ao8tBNENRrFu1m5FhjsbZgoYN7qGG3ilXJFM2guGH6e4N\nrmH8iN1oZ/dxYcY+vwHqILYdf52T/IN9YIikdh0bhF4MM0vt22FS4CwL6kp/B1eV\nmplTiQLnKrQGH+2DcgHPyxsK/ogMHFVxqKv3JabPu08umJJHqLvqZ2A7cojq++yS\nhuWjNl9Z2dgOyjyL7p/41JCEzThhWauv8YShfniGeXEUTkNF6swaltd/1EH3X567\n8wIDAQAB\n-----END PUBLIC KEY-----\n";
    const RSA_N: &str = "kh1INgjuX8iUBGRZ7fP-mRTZTn3uzFPtqZWIYaa1fxhiJGEu-VrJBMjQ5QBuPnLtY02Z-uJyo98dj8G5jzFzQrZmMlbe98VrvZ3L_H6ao8tBNENRrFu1m5FhjsbZgoYN7qGG3ilXJFM2guGH6e4NrmH8iN1oZ_dxYcY-vwHqILYdf52T_IN9YIikdh0bhF4MM0vt22FS4CwL6kp_B1eVmplTiQLnKrQGH-2DcgHPyxsK_ogMHFVxqKv3JabPu08umJJHqLvqZ2A7cojq--yShuWjNl9Z2dgOyjyL7p_41JCEzThhWauv8YShfniGeXEUTkNF6swaltd_1EH3X5678w";
    const RS256: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbm5hIiwiZXhwIjo0MTAyNDQ0ODAwfQ.HjMFuvVOkYnH9mdgEsVRanXwf3Y2agVBNuk8Og1B41_Y15vm44OdmodMPQzwDsNEIMslGjMpuDUdjxPUGJXKIfEo6WGk5llu8_XgAsttdO5Ba_8gVXVCIAoFjJ3oD150K_HIXi-YnyxHVOzdqaejBnl-BhiHtju54qJpREj2Terq0CBK8hFsdPz6QIMJxLvlCRQqqDeMZ1UQ_ozJRCZ0mMrDUK1VfKF6eJaKuY7pT91mYioVivnnTomS3kfSMhVswoFI49WQ8Zu-RRmOl3JJVdVNj5tpkMcv4XSaFDx6N1GJGo8CRhChp-B3KWw9qnvFeFTBrS9HRsE7ivbeQFuqUg";
    const PS384: &str = "eyJhbGciOiJQUzM4NCIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbm5hIiwiZXhwIjo0MTAyNDQ0ODAwfQ.RV8vS6_OI7SJ28Oz2yQr0ydsfuspKr5CUGx83Wx2wLEefMcxR99LWcSdafMDvdxkuD2m-ZWoBRcFCSDM7hc1IAOQF2SNM_h3U8f7CuLa2oXn6-Mk3JeVf6lmcTp-qWKhm1ga7nqoH6sFkmqL6HmmbLwO_abDK_ExGwttoix624GNGWQ_ep8E9aA_wgdm1ooh4hgguZTL79YPV-vf-FiFfqegkylQNdWM8THzQyrL2pkhwVhKVfSqC4qNZAyluamBIlsdFXxtOXWX2mtUDeLV9cXbjemRiQ8Fn9RwObgWYZEnWeY7ekfWADHW4X6zfv64lmmq27gGl-_z1NPXF2lbAw";

    struct Place {
        folder: tempfile::TempDir,
        settings: TokenSettings,
    }

    impl Place {
        fn new() -> Self {
            let settings = TokenSettings {
                from: TokenPlace::Password,
                secret_file: None,
                public_key_file: None,
                jwks_file: None,
                audiences: Vec::new(),
                issuers: Vec::new(),
                expiry_required: true,
                leeway: Duration::from_secs(30),
                names: ClaimNames { user: "sub".to_owned(), client_id: None, rules: None },
            };
            Self { folder: tempfile::tempdir().unwrap(), settings }
        }

        fn file(&self, name: &str, text: &str) -> Option<PathBuf> {
            let path = self.folder.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        }

        fn secret(mut self) -> Self {
            self.settings.secret_file = self.file("secret", &format!("{SECRET}\n"));
            self
        }

        fn public_key(mut self, pem: &str) -> Self {
            self.settings.public_key_file = self.file("key.pem", pem);
            self
        }

        fn jwks(mut self, keys: &Value) -> Self {
            self.settings.jwks_file = self.file("jwks.json", &json!({ "keys": keys }).to_string());
            self
        }

        fn load(&self) -> Result<Tokens, InvalidKeys> {
            Tokens::load(&self.settings)
        }

        /// Whom the token proves, or why nobody.
        fn check(&self, token: &str) -> Result<String, &'static str> {
            let login = Login { user_name: None, password: Some(token.into()) };
            let tokens = self.load().unwrap();
            let token = tokens.find(&login).ok_or("no token")?;
            let checked = tokens.check(token, "fridge");
            checked.map(|it| it.user.as_str().to_owned()).map_err(|Refused(why)| why)
        }
    }

    fn now_s() -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
    }

    fn sign(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, key).unwrap()
    }

    fn hs256(claims: &Value) -> String {
        sign(Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()), claims)
    }

    fn anna() -> Value {
        json!({ "sub": "anna", "exp": now_s() + 100 })
    }

    fn base64_url(bytes: &str) -> String {
        use base64::Engine;
        base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    #[test]
    fn tokens_of_every_kind_of_key_prove_their_user() {
        let secret = Place::new().secret();
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let token = sign(algorithm, &EncodingKey::from_secret(SECRET.as_bytes()), &anna());
            assert_eq!(secret.check(&token).as_deref(), Ok("anna"));
        }
        let rsa = Place::new().public_key(RSA_PEM);
        assert_eq!(rsa.check(RS256).as_deref(), Ok("anna"));
        assert_eq!(rsa.check(PS384).as_deref(), Ok("anna"));
        for (kind, algorithm) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Algorithm::ES256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Algorithm::ES384),
            (&rcgen::PKCS_ED25519, Algorithm::EdDSA),
        ] {
            let pair = rcgen::KeyPair::generate_for(kind).unwrap();
            let pem = pair.serialize_pem();
            let key = match algorithm {
                Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()).unwrap(),
                _ => EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
            };
            let place = Place::new().public_key(&pair.public_key_pem());
            assert_eq!(place.check(&sign(algorithm, &key, &anna())).as_deref(), Ok("anna"));
            let other = rcgen::KeyPair::generate_for(kind).unwrap();
            let place = Place::new().public_key(&other.public_key_pem());
            assert!(
                place.check(&sign(algorithm, &key, &anna())).unwrap_err().contains("signature")
            );
        }
    }

    #[test]
    fn tokens_without_a_signature_are_no_tokens() {
        let claims = base64_url(&anna().to_string());
        for alg in ["none", "None", "NONE", ""] {
            let header = base64_url(&json!({ "alg": alg, "typ": "JWT" }).to_string());
            for place in [Place::new().secret(), Place::new().public_key(RSA_PEM)] {
                assert_eq!(place.check(&format!("{header}.{claims}.")), Err("no token"), "{alg}");
            }
        }
        let header = base64_url(&json!({ "alg": "HS256" }).to_string());
        assert!(Place::new().secret().check(&format!("{header}.{claims}.")).is_err());
        assert_eq!(Place::new().secret().check(&format!("{header}.{claims}")), Err("no token"));
        assert_eq!(Place::new().secret().check("hunter2"), Err("no token"));
    }

    #[test]
    fn a_public_key_is_never_taken_for_a_secret() {
        let place = Place::new().public_key(RSA_PEM);
        for key in [RSA_PEM, RSA_PEM.trim_end()] {
            let token = sign(Algorithm::HS256, &EncodingKey::from_secret(key.as_bytes()), &anna());
            assert_eq!(
                place.check(&token),
                Err("there is no key for the algorithm or `kid` of the token")
            );
        }
        // With a secret beside it, too.
        let both = Place::new().secret().public_key(RSA_PEM);
        let token = sign(Algorithm::HS256, &EncodingKey::from_secret(RSA_PEM.as_bytes()), &anna());
        assert!(both.check(&token).unwrap_err().contains("signature"));
        assert_eq!(both.check(RS256).as_deref(), Ok("anna"));
        assert_eq!(both.check(&hs256(&anna())).as_deref(), Ok("anna"));
    }

    #[test]
    fn changed_tokens_are_refused() {
        let place = Place::new().secret();
        let token = hs256(&anna());
        let parts: Vec<&str> = token.split('.').collect();
        let eve = base64_url(&json!({ "sub": "eve", "exp": now_s() + 100 }).to_string());
        assert!(
            place
                .check(&format!("{}.{eve}.{}", parts[0], parts[2]))
                .unwrap_err()
                .contains("signature")
        );
        let header = base64_url(&json!({ "alg": "HS384" }).to_string());
        assert!(
            place
                .check(&format!("{header}.{}.{}", parts[1], parts[2]))
                .unwrap_err()
                .contains("signature")
        );
    }

    #[test]
    fn time_audience_and_issuer_are_checked() {
        let mut place = Place::new().secret();
        let now = now_s();
        let late = hs256(&json!({ "sub": "anna", "exp": now - 40 }));
        assert_eq!(place.check(&late), Err("the token has expired"));
        let within = hs256(&json!({ "sub": "anna", "exp": now - 10 }));
        assert_eq!(place.check(&within).as_deref(), Ok("anna"));
        let early = hs256(&json!({ "sub": "anna", "exp": now + 400, "nbf": now + 100 }));
        assert_eq!(place.check(&early), Err("the token is not valid yet"));
        let for_ever = hs256(&json!({ "sub": "anna" }));
        assert_eq!(place.check(&for_ever), Err("the token lacks `exp`, `aud` or `iss`"));
        place.settings.expiry_required = false;
        assert_eq!(place.check(&for_ever).as_deref(), Ok("anna"));
        assert_eq!(place.check(&late), Err("the token has expired"));
        let malformed = hs256(&json!({ "sub": "anna", "exp": "never" }));
        assert!(place.check(&malformed).is_err());

        place.settings.audiences = vec!["mqtt".to_owned()];
        place.settings.issuers = vec!["me".to_owned(), "you".to_owned()];
        let says =
            |aud: Value, iss: Value| hs256(&json!({ "sub": "anna", "aud": aud, "iss": iss }));
        assert_eq!(place.check(&says(json!("mqtt"), json!("me"))).as_deref(), Ok("anna"));
        assert_eq!(
            place.check(&says(json!(["http", "mqtt"]), json!("you"))).as_deref(),
            Ok("anna")
        );
        assert_eq!(
            place.check(&says(json!("http"), json!("me"))),
            Err("the token is for another audience")
        );
        assert_eq!(
            place.check(&says(json!("mqtt"), json!("eve"))),
            Err("the token is from another issuer")
        );
        assert!(place.check(&for_ever).is_err());
    }

    #[test]
    fn keys_of_a_set_are_chosen_by_kid_and_bound_to_their_algorithm() {
        let rsa = json!({ "kty": "RSA", "kid": "one", "alg": "RS256", "use": "sig", "n": RSA_N, "e": "AQAB" });
        let oct = json!({ "kty": "oct", "kid": "two", "k": base64_url(SECRET) });
        let place = Place::new().jwks(&json!([rsa, oct]));
        assert_eq!(place.check(RS256).as_deref(), Ok("anna"));
        assert_eq!(
            place.check(PS384),
            Err("there is no key for the algorithm or `kid` of the token")
        );
        let with_kid = |kid: &str| {
            let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
            encode(&header, &anna(), &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
        };
        assert_eq!(place.check(&with_kid("two")).as_deref(), Ok("anna"));
        for kid in ["one", "three"] {
            assert_eq!(
                place.check(&with_kid(kid)),
                Err("there is no key for the algorithm or `kid` of the token")
            );
        }
        let mut encryption = rsa.clone();
        encryption["use"] = json!("enc");
        for (keys, part) in [
            (json!([encryption]), "no key for signatures"),
            (json!([]), "no key for signatures"),
            (json!({}), "is no JSON Web Key Set"),
            (json!([{ "kty": "oct", "alg": "RS256", "k": base64_url(SECRET) }]), "number 1"),
        ] {
            let said = Place::new().jwks(&keys).load().unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn files_that_are_no_keys_are_refused_by_name_and_not_shown() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let private = pair.serialize_pem();
        let mut wrong = Place::new();
        wrong.settings.secret_file = wrong.file("secret", "hunter2");
        let mut mixed = Place::new();
        mixed.settings.secret_file = mixed.file("secret", RSA_PEM);
        let mut missing = Place::new();
        missing.settings.jwks_file = Some(missing.folder.path().join("nothing"));
        for (place, part) in [
            (wrong, "secret of 7 bytes"),
            (mixed, "name it as public_key_file"),
            (missing, "nothing"),
            (Place::new().public_key(&private), "private key"),
            (Place::new().public_key("hunter2"), "is no public key"),
        ] {
            let said = place.load().unwrap_err().to_string();
            assert!(said.contains(part) && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn the_end_of_a_token_is_the_end_of_the_proof() {
        let tokens = Place::new().secret().load().unwrap();
        let ends_in = |exp: u64| {
            let token = hs256(&json!({ "sub": "anna", "exp": exp }));
            let checked = tokens.check(token.as_bytes(), "fridge").unwrap();
            checked.ends_at.map(|at| at.saturating_duration_since(Instant::now()).as_secs())
        };
        let left = ends_in(now_s() + 100).unwrap();
        assert!((125..=130).contains(&left), "{left}");
        assert_eq!(ends_in(u64::MAX), None);
    }

    #[test]
    fn a_token_may_be_the_user_name() {
        let mut place = Place::new().secret();
        place.settings.from = TokenPlace::UserName;
        let tokens = place.load().unwrap();
        let login = Login { user_name: Some(hs256(&anna())), password: None };
        assert!(tokens.check(tokens.find(&login).unwrap(), "fridge").is_ok());
        let login = Login { user_name: None, password: login.user_name.map(String::into_bytes) };
        assert!(tokens.find(&login).is_none());
    }
}
