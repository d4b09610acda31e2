//! Which keys a settings file may have, found out from the types that it is read into. Floor 6, called by
//! `config::layers`, `config::file` and `config::print`.
//!
//! serde's derive tells a `Deserializer` the fields of each struct. [`Probe`] asks along one path after the
//! other and answers nothing, so a new section needs no list of its keys anywhere.

use std::cell::Cell;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess,
    SeqAccess, Visitor,
};

use crate::config::{Secret, Url};

/// What may stand at one place of a settings file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Schema {
    /// A table with these keys, in the order of their declaration.
    Table(Vec<(&'static str, Schema)>),
    /// A table with any keys.
    Map(Box<Schema>),
    /// An array.
    List(Box<Schema>),
    /// A value of its own.
    Scalar(Scalar),
}

/// Values that are written in one piece.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scalar {
    /// `true` or `false`.
    Boolean,
    /// A number without a fraction.
    Integer,
    /// Any number.
    Float,
    /// Text, and everything that is written as text.
    Text,
    /// Text that nobody may see.
    Secret,
    /// Text of which nobody may see all.
    Url,
    /// One of several of these.
    Any,
}

impl Schema {
    /// Of the file, or the part of it, that is read into a `T`.
    pub fn of<T: DeserializeOwned>() -> Self {
        explore::<T>(&mut Vec::new())
    }

    /// The keys of a table, and none elsewhere.
    pub fn keys(&self) -> &[(&'static str, Schema)] {
        match self {
            Self::Table(keys) => keys,
            Self::Map(_) | Self::List(_) | Self::Scalar(_) => &[],
        }
    }

    /// What is below `key` in a table or a map.
    pub fn below(&self, key: &str) -> Option<&Schema> {
        match self {
            Self::Table(keys) => keys.iter().find(|(name, _)| *name == key).map(|(_, it)| it),
            Self::Map(values) => Some(values),
            Self::List(_) | Self::Scalar(_) => None,
        }
    }

    /// Whether there may be secrets in it.
    pub fn holds_secrets(&self) -> bool {
        match self {
            Self::Table(keys) => keys.iter().any(|(_, schema)| schema.holds_secrets()),
            Self::Map(schema) | Self::List(schema) => schema.holds_secrets(),
            Self::Scalar(scalar) => matches!(scalar, Scalar::Secret | Scalar::Url),
        }
    }

    /// Every scalar that has a name of its own, with that name in dots; maps and arrays have none.
    pub fn scalars(&self) -> Vec<(String, Scalar)> {
        let mut found = Vec::new();
        self.collect_scalars("", &mut found);
        found
    }

    fn collect_scalars(&self, path: &str, found: &mut Vec<(String, Scalar)>) {
        for (key, schema) in self.keys() {
            let path = join(path, key);
            match schema {
                Self::Scalar(scalar) => found.push((path, *scalar)),
                _ => schema.collect_scalars(&path, found),
            }
        }
    }
}

/// `section.key`, and the key alone at the top.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn explore<T: DeserializeOwned>(path: &mut Vec<Step>) -> Schema {
    let shape = Cell::new(Shape::Scalar(Scalar::Any));
    // Always an error: the probe has an answer to nothing.
    let _ = T::deserialize(Probe { path, shape: &shape });
    let mut element = || {
        path.push(Step::Element);
        let schema = explore::<T>(path);
        path.pop();
        Box::new(schema)
    };
    match shape.get() {
        Shape::Scalar(scalar) => Schema::Scalar(scalar),
        Shape::List => Schema::List(element()),
        Shape::Map => Schema::Map(element()),
        Shape::Struct(fields) => {
            let mut keys = Vec::new();
            for field in fields {
                path.push(Step::Key(field));
                keys.push((*field, explore::<T>(path)));
                path.pop();
            }
            Schema::Table(keys)
        }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Key(&'static str),
    /// Of an array or a map.
    Element,
}

#[derive(Clone, Copy)]
enum Shape {
    Struct(&'static [&'static str]),
    Map,
    List,
    Scalar(Scalar),
}

/// Goes along `path`, tells `shape` what is wanted at its end, and gives it up there.
#[derive(Clone, Copy)]
struct Probe<'a> {
    path: &'a [Step],
    shape: &'a Cell<Shape>,
}

impl<'a> Probe<'a> {
    fn found<T>(self, shape: Shape) -> Result<T, Error> {
        if self.path.is_empty() {
            self.shape.set(shape);
        }
        Err(Error::custom("found"))
    }

    /// The next step, and the probe behind it.
    fn next(self) -> Option<(Step, Self)> {
        let (step, path) = self.path.split_first()?;
        Some((*step, Self { path, shape: self.shape }))
    }
}

macro_rules! scalar {
    ($scalar:expr => $($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            self.found(Shape::Scalar($scalar))
        })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    scalar!(Scalar::Boolean => deserialize_bool);
    scalar!(Scalar::Integer => deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64);
    scalar!(Scalar::Integer => deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);
    scalar!(Scalar::Integer => deserialize_i128 deserialize_u128);
    scalar!(Scalar::Float => deserialize_f32 deserialize_f64);
    scalar!(Scalar::Text => deserialize_char deserialize_str deserialize_string);
    scalar!(Scalar::Text => deserialize_bytes deserialize_byte_buf deserialize_identifier);
    scalar!(Scalar::Any => deserialize_any deserialize_ignored_any deserialize_unit);

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match name {
            Secret::NAME => self.found(Shape::Scalar(Scalar::Secret)),
            Url::NAME => self.found(Shape::Scalar(Scalar::Url)),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.found(Shape::Scalar(Scalar::Text))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.next() {
            Some((Step::Key(key), probe)) => visitor.visit_map(Once { key, probe: Some(probe) }),
            _ => self.found(Shape::Struct(fields)),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.next() {
            Some((Step::Element, probe)) => visitor.visit_map(Once { key: "", probe: Some(probe) }),
            _ => self.found(Shape::Map),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.next() {
            Some((Step::Element, probe)) => visitor.visit_seq(Once { key: "", probe: Some(probe) }),
            _ => self.found(Shape::List),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }
}

/// A table with one key, or an array with one element.
struct Once<'a> {
    key: &'static str,
    probe: Option<Probe<'a>>,
}

impl<'de> MapAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let key: StrDeserializer<'_, Error> = self.key.into_deserializer();
        self.probe.map(|_| seed.deserialize(key)).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let probe = self.probe.take().ok_or_else(|| Error::custom("there is one value"))?;
        seed.deserialize(probe)
    }
}

impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.probe.take().map(|probe| seed.deserialize(probe)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its shape counts")]
    #[serde(deny_unknown_fields)]
    struct Everything {
        number: u16,
        addr: SocketAddr,
        path: Option<PathBuf>,
        choice: Choice,
        section: Option<Section>,
        several: Vec<Section>,
        names: Vec<String>,
        map: BTreeMap<String, Secret>,
    }

    #[derive(Deserialize)]
    #[serde(default)]
    struct Section {
        flag: bool,
        token: Secret,
    }

    #[derive(Deserialize)]
    enum Choice {
        This,
    }

    impl Default for Section {
        fn default() -> Self {
            let _ = Choice::This;
            Self { flag: true, token: Secret::default() }
        }
    }

    #[test]
    fn every_key_of_every_section_is_found_with_its_kind() {
        let schema = Schema::of::<Everything>();
        let names: Vec<&str> = schema.keys().iter().map(|(name, _)| *name).collect();
        let declared = ["number", "addr", "path", "choice", "section", "several", "names", "map"];
        assert_eq!(names, declared);

        let section = Schema::Table(vec![
            ("flag", Schema::Scalar(Scalar::Boolean)),
            ("token", Schema::Scalar(Scalar::Secret)),
        ]);
        let text = Schema::Scalar(Scalar::Text);
        assert_eq!(schema.below("addr"), Some(&text));
        assert_eq!(schema.below("path"), Some(&text));
        assert_eq!(schema.below("choice"), Some(&text));
        assert_eq!(schema.below("section"), Some(&section));
        assert_eq!(schema.below("several"), Some(&Schema::List(Box::new(section))));
        assert_eq!(schema.below("names"), Some(&Schema::List(Box::new(text))));
        let secrets = Schema::Map(Box::new(Schema::Scalar(Scalar::Secret)));
        assert_eq!(schema.below("map"), Some(&secrets));
        assert_eq!(schema.below("nothing"), None);
    }

    #[test]
    fn scalars_are_named_by_their_path_and_those_of_arrays_and_maps_have_no_name() {
        let scalars = Schema::of::<Everything>().scalars();
        let names: Vec<&str> = scalars.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["number", "addr", "path", "choice", "section.flag", "section.token"]);
    }
}
