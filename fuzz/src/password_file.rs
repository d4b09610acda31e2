//! Password files: whatever the bytes are, they are users or an error that names a line, and shows none of its secret.
//!
//! No password is tried: that is slow on purpose, and libraries do it.

use mailboxqtt::auth::password_file::{PasswordFile, with_user, without_user};

/// A hash that anybody may see.
const HASH: &str = "$6$c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==";

/// See the module comment.
pub fn run(bytes: &[u8]) {
    let parsed = PasswordFile::parse(bytes, [0; 32]);
    if let Err((line, reason)) = &parsed {
        let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let said = reason.to_string();
        assert!(said.chars().all(|c| !c.is_control()), "{said:?}");
        let text = String::from_utf8_lossy(lines[line - 1]);
        // What is behind the first colon is a secret. Short ones may be part of the sentence by chance.
        if let Some((name, secret)) = text.split_once(':')
            && secret.len() > 20
            && !name.contains(secret)
        {
            assert!(!said.contains(secret), "{said:?}");
        }
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    let (name, rest) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(changed) = with_user(rest, name, HASH) else { return };
    assert_eq!(with_user(&changed, name, HASH).as_deref(), Ok(&*changed), "again changes nothing");
    let removed = without_user(&changed, name).expect("it was there");
    assert_eq!(without_user(&removed, name), None);
    if let Ok(before) = PasswordFile::parse(rest.as_bytes(), [0; 32]) {
        let after = PasswordFile::parse(changed.as_bytes(), [0; 32]).expect("a good line more");
        assert!(after.knows(name));
        assert_eq!(after.len(), before.len() + usize::from(!before.knows(name)));
        let after = PasswordFile::parse(removed.as_bytes(), [0; 32]).expect("a line less");
        assert!(!after.knows(name));
    }
}
