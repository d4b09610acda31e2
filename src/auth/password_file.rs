//! The password file: one user per line, `name:hash`, as Mosquitto has it. Floor 3, read by `auth::verifier` and
//! changed by `main`.
//!
//! Empty lines and lines that begin with `#` are comments. What a hash may be is in `auth::password`.
//!
//! # Invariants
//!
//! - Nothing of a line behind its colon is in an error or a log.
//! - A user who does not exist costs as much time as one who does: his password is tried on the entry of another
//!   user, always the same for the same name.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use quick_cache::sync::Cache;
use tracing::warn;

use crate::auth::credential::{Credential, Key, hmac};
use crate::auth::password::{InvalidPassword, StoredPassword};

/// All users of a password file.
#[derive(Debug)]
pub struct PasswordFile {
    by_name: HashMap<Box<str>, Entry>,
    /// Their names, for the choice of whose password an unknown user has to guess.
    names: Vec<Box<str>>,
    secret: Secret,
    /// Keyed hashes of names and passwords that were right, so that clients that come back cost little.
    right: Cache<Key, ()>,
}

/// What those may who are neither the file's owner nor of its group.
const OTHERS: u32 = 0o007;
/// Right passwords that are remembered, at about 100 bytes each.
const REMEMBERED_MAX: usize = 10_000;

#[derive(Debug)]
struct Entry {
    line: usize,
    password: StoredPassword,
}

/// Makes the choice of [`PasswordFile::matches`] one that nobody outside can foresee.
struct Secret(Key);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Why there are no users.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPasswordFile {
    /// It cannot be read or written.
    #[error("password file {}: {error}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// From the system.
        error: io::Error,
    },
    /// A line is not what it should be.
    #[error("password file {}, line {line}: {reason}", path.display())]
    Line {
        /// As given.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: InvalidLine,
    },
    /// The system gave no random numbers.
    #[error("no random numbers from the system: {0}")]
    Randomness(#[from] getrandom::Error),
}

/// What is wrong with a line, or a name.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidLine {
    /// Not `name:hash`.
    #[error("there is no colon between user name and hash")]
    NoColon,
    /// A name that no line can have.
    #[error("the user name must not be empty, hold a colon or control characters, or begin with #")]
    Name,
    /// The same user once more.
    #[error("user `{}` is already in line {earlier}: remove one of the two", name.escape_debug())]
    Twice {
        /// Who.
        name: String,
        /// From 1.
        earlier: usize,
    },
    /// The part behind the colon.
    #[error("user `{}`: {reason}", name.escape_debug())]
    Password {
        /// Whose.
        name: String,
        /// What is wrong.
        reason: InvalidPassword,
    },
    /// Bytes that are no text.
    #[error("it is not UTF-8")]
    NotText,
}

impl PasswordFile {
    /// Reads and checks a whole file.
    pub fn read(path: &Path) -> Result<Self, InvalidPasswordFile> {
        let failed = |error| InvalidPasswordFile::File { path: path.into(), error };
        let mode = fs::metadata(path).map_err(failed)?.mode();
        if mode & OTHERS != 0 {
            let mode = format!("{:o}", mode & 0o777);
            warn!(file = %path.display(), mode, "every user of this machine may read the password file: `chmod o-rwx` it");
        }
        let bytes = fs::read(path).map_err(failed)?;
        let mut secret = Key::default();
        getrandom::fill(&mut secret)?;
        Self::parse(&bytes, secret).map_err(|(line, reason)| InvalidPasswordFile::Line {
            path: path.into(),
            line,
            reason,
        })
    }

    /// From the bytes of a file. An error comes with the number of its line.
    pub fn parse(bytes: &[u8], secret: [u8; 32]) -> Result<Self, (usize, InvalidLine)> {
        let mut by_name: HashMap<Box<str>, Entry> = HashMap::new();
        let mut names = Vec::new();
        for (line, bytes) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            let text = str::from_utf8(bytes).map_err(|_| (line, InvalidLine::NotText))?;
            let Some((name, password)) = parse_line(text).map_err(|reason| (line, reason))? else {
                continue;
            };
            let owned = || name.to_owned();
            if let Some(Entry { line: earlier, .. }) = by_name.get(name) {
                return Err((line, InvalidLine::Twice { name: owned(), earlier: *earlier }));
            }
            let password = StoredPassword::parse(password)
                .map_err(|reason| (line, InvalidLine::Password { name: owned(), reason }))?;
            names.push(name.into());
            by_name.insert(name.into(), Entry { line, password });
        }
        Ok(Self { by_name, names, secret: Secret(secret), right: Cache::new(REMEMBERED_MAX) })
    }

    /// Whether there is such a user.
    pub fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether user and password were right before. Takes a microsecond; false says nothing.
    pub fn remembers(&self, name: &str, password: Option<&[u8]>) -> bool {
        !self.right.is_empty()
            && password.is_some_and(|password| self.right.get(&self.key(name, password)).is_some())
    }

    /// Of no use to anybody who does not know the secret of this process.
    fn key(&self, name: &str, password: &[u8]) -> Key {
        hmac(&self.secret.0, &[&(name.len() as u64).to_be_bytes(), name.as_bytes(), password])
    }

    /// Whether user and password are right. May take some tens of milliseconds, and as long for an unknown user
    /// as for a known one; no password is tried like one that is wrong.
    pub fn matches(&self, name: &str, password: Option<&[u8]>) -> bool {
        let entry = self.by_name.get(name);
        let Some(tried) = entry.or_else(|| self.stand_in(name)) else { return false };
        let is_right = tried.password.matches(password.unwrap_or_default());
        match password {
            Some(password) if is_right && entry.is_some() => {
                self.right.insert(self.key(name, password), ());
                true
            }
            _ => false,
        }
    }

    /// The entry that an unknown user's password is tried on.
    fn stand_in(&self, name: &str) -> Option<&Entry> {
        let [a, b, c, d, ..] = hmac(&self.secret.0, &[name.as_bytes()]);
        let choice = u32::from_be_bytes([a, b, c, d]) as usize % self.names.len().max(1);
        self.by_name.get(self.names.get(choice)?)
    }

    /// The users who may log in by SCRAM-SHA-256 as well.
    pub(super) fn scram_users(&self) -> impl Iterator<Item = (&str, &Credential)> {
        self.by_name.iter().filter_map(|(name, entry)| match &entry.password {
            StoredPassword::Scram(credential) => Some((&**name, credential)),
            _ => None,
        })
    }
}

/// Name and hash; `None` for a comment. Blanks around both mean nothing, as in Mosquitto.
fn parse_line(line: &str) -> Result<Option<(&str, &str)>, InvalidLine> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, password) = line.split_once(':').ok_or(InvalidLine::NoColon)?;
    let name = name.trim_end();
    check_name(name)?;
    Ok(Some((name, password.trim_start())))
}

fn check_name(name: &str) -> Result<(), InvalidLine> {
    let is_odd = name.is_empty()
        || name.starts_with('#')
        || name.trim() != name
        || name.contains(|c: char| c == ':' || c.is_control());
    if is_odd { Err(InvalidLine::Name) } else { Ok(()) }
}

/// Whether a line is that of `name`, be its hash what it may.
fn is_of(line: &str, name: &str) -> bool {
    matches!(parse_line(line), Ok(Some((other, _))) if other == name)
}

/// `text` with the line of `name` replaced, or with a new one at the end. All other lines stay as they are.
pub fn with_user(text: &str, name: &str, hash: &str) -> Result<String, InvalidLine> {
    check_name(name)?;
    let mut changed = String::with_capacity(text.len() + name.len() + hash.len() + 2);
    let mut is_there = false;
    for line in text.split_inclusive('\n') {
        if !is_of(line, name) {
            changed.push_str(line);
        } else if !is_there {
            is_there = true;
            changed.push_str(&format!("{name}:{hash}\n"));
        }
    }
    if !is_there {
        if !changed.is_empty() && !changed.ends_with('\n') {
            changed.push('\n');
        }
        changed.push_str(&format!("{name}:{hash}\n"));
    }
    Ok(changed)
}

/// `text` without the line of `name`; `None` where there is none.
pub fn without_user(text: &str, name: &str) -> Option<String> {
    let kept: String = text.split_inclusive('\n').filter(|line| !is_of(line, name)).collect();
    (kept.len() < text.len()).then_some(kept)
}

/// Puts in the place of the file at `path` what `change` makes of its text, which is empty where there is no file yet.
/// Nobody ever reads half of it, and of two processes that change it at the same time the second one changes what the
/// first has written. Owner, group and mode stay as they were; only its owner may read a new file.
pub fn change<E: From<InvalidPasswordFile>>(
    path: &Path,
    change: impl FnOnce(&str) -> Result<String, E>,
) -> Result<(), E> {
    let failed = |error| InvalidPasswordFile::File { path: path.into(), error };
    // A link stays one.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // Not the file: that is another one afterwards.
    let folder = File::open(folder(&target)).map_err(failed)?;
    folder.lock().map_err(failed)?;
    let text = text(path)?;
    replace(&target, &change(&text)?).map_err(failed)?;
    // The lock goes with it.
    Ok(folder.sync_all().map_err(failed)?)
}

/// What is in the file at `path`; nothing where there is none yet.
pub fn text(path: &Path) -> Result<String, InvalidPasswordFile> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text.map_err(|error| InvalidPasswordFile::File { path: path.into(), error }),
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let no_name = || io::Error::from(io::ErrorKind::InvalidInput);
    let name = path.file_name().ok_or_else(no_name)?.to_string_lossy();
    let new = folder(path).join(format!(".{name}.{}.new", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = fill(&mut file, path, text).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&new);
    }
    written
}

fn fill(file: &mut File, old: &Path, text: &str) -> io::Result<()> {
    if let Ok(old) = fs::metadata(old) {
        let new = file.metadata()?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(&*file, Some(old.uid()), Some(old.gid()))?;
        }
        // The service that reads it may be of the group.
        file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::password::Form;

    const SECRET: Key = [7; 32];

    fn parse(text: &str) -> PasswordFile {
        PasswordFile::parse(text.as_bytes(), SECRET).unwrap()
    }

    fn sha512(name: &str, password: &str) -> String {
        use base64::Engine;
        use sha2::Digest;
        let encode = |bytes: &[u8]| base64::prelude::BASE64_STANDARD.encode(bytes);
        let hash = sha2::Sha512::new().chain_update(password).chain_update("salt").finalize();
        format!("{name}:$6${}${}\n", encode(b"salt"), encode(&hash))
    }

    #[test]
    fn users_of_every_form_are_known_and_checked_and_comments_are_skipped() {
        let [argon2id, scram] =
            [Form::Argon2id, Form::Scram].map(|form| StoredPassword::hash("x", form).unwrap());
        let text = format!(
            "# users\r\n\n{}a:{argon2id}\r\n  b : {scram} \nlast one:{scram}",
            sha512("anna", "x")
        );
        let file = parse(&text);
        assert_eq!(file.len(), 4);
        for name in ["anna", "a", "b", "last one"] {
            assert!(file.knows(name), "{name}");
            assert!(file.matches(name, Some(b"x")), "{name}");
            assert!(!file.matches(name, Some(b"y")), "{name}");
        }
        let mut names: Vec<_> = file.scram_users().map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["b", "last one"]);
    }

    #[test]
    fn nobody_gets_in_with_the_password_of_the_user_he_is_tried_on() {
        let file = parse(&sha512("anna", "x"));
        assert!(file.stand_in("bob").is_some());
        assert!(!file.matches("bob", Some(b"x")));
        assert!(!parse("").matches("bob", Some(b"")));
    }

    #[test]
    fn only_what_was_right_is_remembered() {
        let file = parse(&(sha512("anna", "x") + &sha512("ann", "ax")));
        let tried = [("anna", "x"), ("anna", "y"), ("ann", "ax"), ("bob", "x")];
        assert!(
            tried.iter().all(|(name, password)| !file.remembers(name, Some(password.as_bytes())))
        );
        file.matches("anna", Some(b"x"));
        file.matches("anna", Some(b"y"));
        file.matches("bob", Some(b"x"));
        let remembered =
            tried.map(|(name, password)| file.remembers(name, Some(password.as_bytes())));
        assert_eq!(remembered, [true, false, false, false]);
        assert!(!file.remembers("anna", None));
    }

    #[test]
    fn no_password_is_not_the_empty_one() {
        let file = parse(&sha512("anna", ""));
        assert!(file.matches("anna", Some(b"")));
        assert!(!file.matches("anna", None));
    }

    #[test]
    fn unknown_users_are_tried_on_all_entries_and_each_on_the_same() {
        let text: String = (0..8).map(|user| sha512(&format!("user{user}"), "x")).collect();
        let file = parse(&text);
        let tried = |name: &str| file.stand_in(name).unwrap().line;
        let mut lines: Vec<_> =
            (0..200).map(|unknown| tried(&format!("unknown{unknown}"))).collect();
        assert_eq!(tried("bob"), tried("bob"));
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines, (1..=8).collect::<Vec<_>>());
    }

    #[test]
    fn wrong_lines_are_named_by_number_and_reason_and_not_by_their_secret() {
        let anna = sha512("anna", "x");
        for (text, line, part) in [
            (
                "anna:hunter2".to_owned(),
                1,
                "`anna`: the password is not hashed; replace the line with",
            ),
            (format!("{anna}\nhunter2"), 3, "no colon"),
            (format!("#\n{anna}{anna}"), 3, "user `anna` is already in line 2"),
            (":$6$hunter2".to_owned(), 1, "user name must not be empty"),
            ("a\u{7}b:$6$hunter2".to_owned(), 1, "control characters"),
            ("anna:$6$hunter2".to_owned(), 1, "not of the form $6$"),
        ] {
            let (at, reason) = PasswordFile::parse(text.as_bytes(), SECRET).unwrap_err();
            let said = reason.to_string();
            assert_eq!(at, line, "{text}");
            assert!(said.contains(part) && !said.contains("hunter2"), "{text}: {said}");
        }
        let (line, reason) = PasswordFile::parse(b"#\n\xFF:x", SECRET).unwrap_err();
        assert_eq!((line, reason), (2, InvalidLine::NotText));
    }

    #[test]
    fn lines_of_others_stay_as_they_are() {
        let text = "# mine\r\n bob : plain\n\nanna:old\nanna:older\ncarl:last";
        assert_eq!(
            with_user(text, "anna", "new").unwrap(),
            "# mine\r\n bob : plain\n\nanna:new\ncarl:last"
        );
        assert_eq!(with_user(text, "dora", "new").unwrap(), format!("{text}\ndora:new\n"));
        assert_eq!(with_user("", "dora", "new").unwrap(), "dora:new\n");
        let without = without_user(text, "bob").unwrap();
        assert_eq!(without, "# mine\r\n\nanna:old\nanna:older\ncarl:last");
        assert_eq!(without_user(text, "dora"), None);
        for name in ["", "a:b", "a\nb", "#a", " a"] {
            assert_eq!(with_user(text, name, "new"), Err(InvalidLine::Name), "{name:?}");
        }
    }

    fn put(path: &Path, text: &str) -> Result<(), InvalidPasswordFile> {
        change(path, |_| Ok(text.to_owned()))
    }

    #[test]
    fn a_file_is_replaced_whole_through_its_link_and_a_new_one_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("users"), folder.path().join("link"));
        put(&path, "first\n").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        put(&link, "second\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        let nowhere = folder.path().join("no/such/folder");
        assert!(put(&nowhere, "").unwrap_err().to_string().contains("no/such/folder"));
    }

    #[test]
    fn who_may_read_a_file_may_read_it_when_it_has_been_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        fs::write(&path, "first\n").unwrap();
        for mode in [0o640, 0o400, 0o600] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let before = fs::metadata(&path).unwrap();
            put(&path, "second\n").unwrap();
            let after = fs::metadata(&path).unwrap();
            assert_eq!(after.mode() & 0o777, mode);
            assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));
        }
    }

    #[test]
    fn changes_at_the_same_time_are_all_there_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let add = |number: usize| {
            change(&path, |text| {
                let changed = with_user(text, &format!("user{number}"), "hash").unwrap();
                // Time for the others to do the same.
                std::thread::yield_now();
                Ok::<_, InvalidPasswordFile>(changed)
            })
        };
        std::thread::scope(|scope| {
            let adding: Vec<_> = (0..8).map(|number| scope.spawn(move || add(number))).collect();
            adding.into_iter().for_each(|it| it.join().unwrap().unwrap());
        });
        assert_eq!(text(&path).unwrap().lines().count(), 8);
    }
}
