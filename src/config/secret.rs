//! Text of a setting that is for nobody's eyes, or that may hold such text. Floor 6, used by the sections of the settings file.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};

/// A password, token or key in the settings file. Neither the log, nor an error, nor `--print-config` shows it.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// How `config::schema` knows it.
    pub(super) const NAME: &'static str = "Secret";

    /// The text itself, for whoever uses it; do not print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// For `config::print`, which leaves it out.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(Self::NAME, &self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(Self::NAME, Text)
    }
}

/// Where another program is asked. Its query may hold a key, so that is neither in the log, nor in an error, nor in what
/// `--print-config` shows.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Url(String);

impl Url {
    /// How `config::schema` knows it.
    pub(super) const NAME: &'static str = "Url";

    /// The text itself, for whoever uses it; do not print it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What anybody may see of an URL: nothing behind its path, and nothing at all if there is a user in it.
    pub(super) fn shown(url: &str) -> &str {
        let shown = url.split(['?', '#']).next().unwrap_or_default();
        if shown.contains('@') { "" } else { shown }
    }
}

impl From<String> for Url {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Url").field(&Self::shown(&self.0)).finish()
    }
}

/// For `config::print`, which leaves a part of it out.
impl Serialize for Url {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(Self::NAME, &self.0)
    }
}

impl<'de> Deserialize<'de> for Url {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Secret(text) = deserializer.deserialize_newtype_struct(Self::NAME, Text)?;
        Ok(Self(text))
    }
}

/// Takes text only. serde's own refusal of anything else would repeat it.
struct Text;

impl Text {
    fn refused<T, E: Error>() -> Result<T, E> {
        Err(E::custom("a secret must be text in quotes"))
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text in quotes")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Secret, D::Error> {
        deserializer.deserialize_str(self)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
        Ok(Secret(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Secret, E> {
        Self::refused()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Secret, E> {
        Self::refused()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Secret, E> {
        Self::refused()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Secret, E> {
        Self::refused()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Read = Result<BTreeMap<String, Secret>, toml::de::Error>;

    #[test]
    fn secret_is_read_and_is_not_in_its_debug_form() {
        let read: Read = toml::from_str("key = 'hunter2'");
        let secret = &read.unwrap()["key"];
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn of_an_url_nothing_is_shown_that_may_be_a_secret() {
        for (url, shown) in [
            ("", ""),
            ("https://host:8/path", "https://host:8/path"),
            ("https://host/path?key=hunter2", "https://host/path"),
            ("https://host#hunter2", "https://host"),
            ("https://bob:hunter2@host/", ""),
        ] {
            assert_eq!(Url::shown(url), shown);
            assert!(!format!("{:?}", Url::from(url.to_owned())).contains("hunter2"));
        }
    }

    #[test]
    fn secret_that_is_no_text_is_refused_without_its_value() {
        for value in ["1234", "true", "1.5", "[1234]", "{a = 1234}", "0x04D2"] {
            let read: Read = toml::from_str(&format!("key = {value}"));
            let error = read.unwrap_err();
            assert!(!error.message().contains("1234"), "{error}");
            assert!(error.message().contains("text in quotes"), "{error}");
        }
    }
}
