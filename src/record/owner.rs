//! Whose session it is, as bytes. Floor 1, part of [`Record`](super::Record).
//!
//! ```text
//! [has a user u8][user text][rules u32] and each rule: [flags u8: 1 denies, 2 publish, 4 subscribe][filter text]
//! ```

use bytes::{Buf, BufMut};

use super::{put_text, take_bool, take_text};

const DENIES: u8 = 1;
const IS_PUBLISH: u8 = 1 << 1;
const IS_SUBSCRIBE: u8 = 1 << 2;

/// Whose session it is, and what the token of his last connection said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner<'a> {
    /// `None` for an anonymous client.
    pub user: Option<&'a str>,
    /// In their order.
    pub rules: Vec<OwnerRule<'a>>,
}

/// A rule of a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OwnerRule<'a> {
    /// It denies, or else allows.
    pub denies: bool,
    /// It is about publishing.
    pub is_publish: bool,
    /// It is about receiving.
    pub is_subscribe: bool,
    /// The topics.
    pub filter: &'a str,
}

impl<'a> Owner<'a> {
    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(u8::from(self.user.is_some()));
        put_text(self.user.unwrap_or_default(), out);
        out.put_u32_le(self.rules.len() as u32);
        for rule in &self.rules {
            let flag = |is_set, flag| if is_set { flag } else { 0 };
            let publish = flag(rule.is_publish, IS_PUBLISH);
            out.put_u8(flag(rule.denies, DENIES) | publish | flag(rule.is_subscribe, IS_SUBSCRIBE));
            put_text(rule.filter, out);
        }
    }

    /// Reads what [`Owner::encode`] has written, and takes it off; `None` for anything else.
    pub fn decode(body: &mut &'a [u8]) -> Option<Self> {
        let has_user = take_bool(body)?;
        let user = Some(take_text(body)?).filter(|_| has_user);
        let count = body.try_get_u32_le().ok()?;
        let mut rules = Vec::new();
        for _ in 0..count {
            let flags = body.try_get_u8().ok().filter(|flags| flags >> 3 == 0)?;
            rules.push(OwnerRule {
                denies: flags & DENIES != 0,
                is_publish: flags & IS_PUBLISH != 0,
                is_subscribe: flags & IS_SUBSCRIBE != 0,
                filter: take_text(body)?,
            });
        }
        Some(Self { user, rules })
    }
}
