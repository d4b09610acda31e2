//! A session, its client and its router, and all that may happen between them.
//!
//! The game and its oracle belong to the tests of the session, which play it with random bytes; see
//! `tests/session/operations`.

/// See the module comment.
pub fn run(bytes: &[u8]) {
    super::operations::play(bytes);
}
