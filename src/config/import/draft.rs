//! The settings file that an import makes, line by line. Floor 6, filled by `config::import`.

use std::fmt::Write as _;

use toml::{Table, Value};

use crate::config::File;
use crate::config::import::Import;
use crate::config::import::lines::{Line, Place};
use crate::config::print::entry;
use crate::config::read::in_plain_words;

/// What comes out of an import.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// By name in dots.
    settings: Vec<(String, Value, String)>,
    listeners: Vec<Vec<(&'static str, Value, String)>>,
    left_out: Vec<String>,
    denies_all: bool,
}

impl Draft {
    /// Sets `key`, with its sections in dots, as `line` says, or leaves it out if it cannot be that.
    pub(super) fn set(&mut self, line: &Line, key: &str, value: Value) {
        self.set_as(line, key, value, &line.place.to_string());
    }

    /// [`Draft::set`] with a word of its own on where it comes from.
    pub(super) fn set_as(&mut self, line: &Line, key: &str, value: Value, origin: &str) {
        let nest = |key: &str, inner: Value| Table::from_iter([(key.to_owned(), inner)]);
        let whole = match key.split_once('.') {
            Some((section, key)) => nest(section, nest(key, value.clone()).into()),
            None => nest(key, value.clone()),
        };
        match whole.try_into::<File>() {
            Ok(_) => {
                // The last word counts.
                self.settings.retain(|(name, ..)| name != key);
                self.settings.push((key.to_owned(), value, origin.to_owned()));
            }
            Err(error) => self.leave_out(
                line,
                &format!("`{key}` cannot be that: {}", in_plain_words(error.message())),
            ),
        }
    }

    /// Sets `key` as mosquitto does without a word in its settings; `origin` says what that is.
    pub(super) fn add(&mut self, key: &str, value: Value, origin: &str) {
        self.settings.push((key.to_owned(), value, origin.to_owned()));
    }

    /// [`Draft::add`] if nobody has said anything of it.
    pub(super) fn add_unless_set(&mut self, key: &str, value: Value, origin: &str) {
        if !self.settings.iter().any(|(name, ..)| name == key) {
            self.add(key, value, origin);
        }
    }

    /// Adds a listener at the address `listen`; `false` if there can be none.
    pub(super) fn add_listener(&mut self, place: &Place, listen: &str) -> bool {
        let settings = vec![("listen", Value::from(listen), place.to_string())];
        let is_good = is_listener(&settings).is_ok();
        if is_good {
            self.listeners.push(settings);
        }
        is_good
    }

    /// [`Draft::add`] for the listener at the address `listen`, if it was added last.
    pub(super) fn add_of_listener(
        &mut self,
        listen: &str,
        key: &'static str,
        value: Value,
        origin: &str,
    ) {
        let last = self.listeners.last_mut();
        let is_it = |settings: &&mut Vec<(&str, Value, String)>| {
            settings.first().is_some_and(|(_, address, _)| address.as_str() == Some(listen))
        };
        if let Some(settings) = last.filter(is_it) {
            settings.push((key, value, origin.to_owned()));
        }
    }

    /// Sets `key` of the listener that was added last, with its section in dots.
    pub(super) fn set_of_listener(&mut self, line: &Line, key: &'static str, value: Value) {
        let Some(settings) = self.listeners.last_mut() else { return };
        settings.push((key, value, line.place.to_string()));
        if let Err(error) = is_listener(settings) {
            settings.pop();
            self.leave_out(line, &format!("`listeners.{key}` cannot be that: {error}"));
        }
    }

    /// Nobody may do anything: there are rules which cannot be said.
    pub(super) fn deny_all(&mut self) {
        self.denies_all = true;
    }

    /// Says why there is nothing for `line`. Its value may be a secret.
    pub(super) fn leave_out(&mut self, line: &Line, reason: &str) {
        let sentence = format!("{}: {}: {reason}", line.place, line.name.escape_debug());
        if !self.left_out.contains(&sentence) {
            self.left_out.push(sentence);
        }
    }

    /// The text: what was left out and makes the broker more open, keys at the top, then sections, then listeners.
    pub(super) fn finish(mut self) -> Import {
        let mut text = String::new();
        for sentence in self.left_out.iter().filter(|it| it.contains(": SECURITY: ")) {
            let _ = writeln!(text, "# Left out: {sentence}");
        }
        self.settings
            .sort_by_key(|(key, ..)| key.split_once('.').map(|(section, _)| section.to_owned()));
        let mut section = None;
        for (name, value, origin) in &self.settings {
            let (of, key) =
                name.split_once('.').map_or((None, &**name), |(of, key)| (Some(of), key));
            if let Some(of) = of.filter(|_| section != of) {
                let _ = write!(text, "\n[{of}]\n");
            }
            section = of;
            line(&mut text, key, value, origin);
        }
        if self.denies_all {
            text.push_str("\n[[authorisation.rules]]\n");
            text.push_str("permission = \"deny\"\naction = \"all\"\nfilter = \"#\"\n");
        }
        for listener in &self.listeners {
            text.push_str("\n[[listeners]]\n");
            let (sections, own): (Vec<_>, Vec<_>) =
                listener.iter().partition(|(key, ..)| key.contains('.'));
            for (key, value, origin) in own {
                line(&mut text, key, value, origin);
            }
            for (key, value, origin) in sections {
                // There is but one key of a section that a listener can have from there.
                let (section, key) = key.split_once('.').unwrap_or(("", key));
                let _ = write!(text, "\n[listeners.{section}]\n");
                line(&mut text, key, value, origin);
            }
        }
        Import { settings: text, left_out: self.left_out }
    }
}

/// Whether a listener may have these settings, and why not.
fn is_listener(settings: &[(&'static str, Value, String)]) -> Result<(), String> {
    let table = settings.iter().map(|(key, value, _)| match key.split_once('.') {
        Some((section, key)) => {
            let section_of = Table::from_iter([(key.to_owned(), value.clone())]);
            (section.to_owned(), section_of.into())
        }
        None => ((*key).to_owned(), value.clone()),
    });
    let listeners = Value::Array(vec![Value::Table(table.collect())]);
    let whole = Table::from_iter([("listeners".to_owned(), listeners)]);
    let read: Result<File, _> = whole.try_into();
    read.map(drop).map_err(|error| in_plain_words(error.message()))
}

fn line(text: &mut String, key: &str, value: &Value, origin: &str) {
    // Numbers, words and plain text can always be written.
    let entry = entry(key, value).unwrap_or_default();
    let _ = writeln!(text, "{entry:<44} # {origin}");
}
