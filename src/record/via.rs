//! By which subscriptions a message comes to a session, as bytes. Floor 1, part of records and of rows of the tables.
//!
//! ```text
//! [identifiers u16, then u32 each][filter u16 and its text]
//! ```
//!
//! Each is there only if the flags say so, which lie elsewhere.

use std::num::NonZeroU32;

use bytes::{Buf, BufMut};

/// There are subscription identifiers.
const HAS_IDENTIFIERS: u8 = 1 << 3;
/// There is the filter of a shared subscription.
const IS_SHARED: u8 = 1 << 4;

/// What [`put`] writes, and what [`take`] has to be told.
pub(crate) fn flags(identifiers: &[NonZeroU32], share: Option<&str>) -> u8 {
    let has_identifiers = if identifiers.is_empty() { 0 } else { HAS_IDENTIFIERS };
    has_identifiers | if share.is_some() { IS_SHARED } else { 0 }
}

/// Appends the bytes. Identifiers are at most 65,535.
pub(crate) fn put(identifiers: &[NonZeroU32], share: Option<&str>, out: &mut Vec<u8>) {
    if !identifiers.is_empty() {
        out.put_u16_le(identifiers.len() as u16);
        identifiers.iter().for_each(|identifier| out.put_u32_le(identifier.get()));
    }
    if let Some(filter) = share {
        out.put_u16_le(filter.len() as u16);
        out.put_slice(filter.as_bytes());
    }
}

/// Reads what [`put`] has written, and takes it off; `None` for anything else. Other flags mean nothing here.
pub(crate) fn take<'a>(
    flags: u8,
    body: &mut &'a [u8],
) -> Option<(Vec<NonZeroU32>, Option<&'a str>)> {
    let mut identifiers = Vec::new();
    if flags & HAS_IDENTIFIERS != 0 {
        for _ in 0..body.try_get_u16_le().ok()? {
            identifiers.push(NonZeroU32::new(body.try_get_u32_le().ok()?)?);
        }
    }
    let mut share = None;
    if flags & IS_SHARED != 0 {
        let len = body.try_get_u16_le().ok()?;
        let (text, rest) = body.split_at_checked(len.into())?;
        *body = rest;
        share = Some(str::from_utf8(text).ok()?);
    }
    Some((identifiers, share))
}
