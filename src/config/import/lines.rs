//! The lines of a `mosquitto.conf` and of the files that it includes. Floor 6, called by `config::import`.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Value;

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {error}", path.display())]
pub struct ImportError {
    /// As given, or as the file that includes it gives it.
    path: PathBuf,
    /// From the system.
    error: io::Error,
}

/// One setting.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    pub(super) name: String,
    /// Without spaces at its ends.
    pub(super) value: String,
}

/// Where a setting stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) file: Arc<Path>,
    /// From 1.
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display().to_string().escape_debug(), self.line)
    }
}

impl Line {
    /// The value if it is one of mosquitto's words for yes and no.
    pub(super) fn flag(&self) -> Option<bool> {
        match self.value.as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        }
    }

    /// The value as it is.
    pub(super) fn text(&self) -> Value {
        self.value.clone().into()
    }
}

/// All settings in the order in which mosquitto reads them: files of an `include_dir` where it stands, those
/// that end in `.conf` in the order of their bytes.
pub(super) fn read(path: &Path) -> Result<Vec<Line>, ImportError> {
    let mut lines = Vec::new();
    for line in lines_of(path)? {
        let included = (line.name == "include_dir").then(|| PathBuf::from(&line.value));
        lines.push(line);
        for path in included.map_or(Ok(Vec::new()), |dir| files_of(&dir))? {
            lines.extend(lines_of(&path)?);
        }
    }
    Ok(lines)
}

fn lines_of(path: &Path) -> Result<Vec<Line>, ImportError> {
    let bytes = fs::read(path).map_err(|error| ImportError { path: path.into(), error })?;
    let file: Arc<Path> = path.into();
    let text = String::from_utf8_lossy(&bytes);
    let setting = |(at, line): (usize, &str)| {
        let line = line.trim();
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let place = Place { file: file.clone(), line: at + 1 };
        let is_setting = !line.is_empty() && !line.starts_with('#');
        is_setting.then(|| Line { place, name: name.into(), value: value.trim().into() })
    };
    Ok(text.lines().enumerate().filter_map(setting).collect())
}

fn files_of(dir: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let error = |error| ImportError { path: dir.into(), error };
    let entries = fs::read_dir(dir).map_err(error)?.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = entries.collect::<Result<Vec<_>, _>>().map_err(error)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    paths.sort();
    Ok(paths)
}
