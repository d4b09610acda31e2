//! A settings file: what is accepted prints as a file that says the same, and a refusal names a line and no secret.

use std::path::Path;

use mailboxqtt::config::{File, Mistake, Settings, parse, print};
use toml::Table;

/// A short secret may be part of something else by chance.
const SECRET_BYTES_MIN: usize = 12;

/// See the module comment.
pub fn run(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let parsed = parse(text);
    check_lines(text, &parsed);
    let table = match parsed {
        Ok(table) => table,
        Err(mistake) => return check_mistake(text, &mistake),
    };
    let file: File = table.clone().try_into().expect("a file can be made of it");
    assert_eq!(parse(&table.to_string()).as_ref(), Ok(&table), "it says what it said");

    let settings = Settings::of(Path::new("fuzz.toml"), table).expect("there is one layer");
    let printed = print(&settings).expect("whatever was read can be written");
    let again = parse(&printed).unwrap_or_else(|mistake| panic!("{mistake}:\n{printed}"));
    let again: File = again.try_into().expect("a file can be made of it");
    assert_eq!(shown(&again), shown(&file), "{printed}");
    assert!(again.scram_users.is_empty());
    for secret in file.scram_users.values().map(|secret| secret.expose()) {
        if secret.len() >= SECRET_BYTES_MIN && text.matches(secret).count() == 1 {
            assert!(!printed.contains(secret), "{printed}");
            assert!(!format!("{file:?}").contains(secret), "{file:?}");
        }
    }
}

/// Comments in front move everything down and change nothing else.
fn check_lines(text: &str, parsed: &Result<Table, Mistake>) {
    if text.starts_with('\u{FEFF}') {
        // It may stand at the start only.
        return;
    }
    let mut expected = parsed.clone();
    match &mut expected {
        Ok(_) => (),
        Err(Mistake::Value { line, .. }) => *line += 2,
        Err(Mistake::Unknown(keys)) => keys.iter_mut().for_each(|key| key.line += 2),
    }
    assert_eq!(parse(&format!("# one\n# two\n{text}")), expected);
}

fn check_mistake(text: &str, mistake: &Mistake) {
    let line_count = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let lines: Vec<usize> = match mistake {
        Mistake::Value { line, .. } => vec![*line],
        Mistake::Unknown(keys) => keys.iter().map(|key| key.line).collect(),
    };
    assert!(lines.is_sorted() && !lines.is_empty(), "{lines:?}");
    assert!(lines.iter().all(|line| (1..=line_count).contains(line)), "{lines:?}");
    assert!(!mistake.to_string().contains(char::is_control), "{mistake}");
}

/// All of it but the secrets.
fn shown(file: &File) -> Table {
    let mut values = Table::try_from(file).expect("whatever was read can be written");
    values.remove("scram_users");
    values
}
