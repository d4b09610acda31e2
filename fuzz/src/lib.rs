//! What the fuzz targets check: one module each, with a `run` that panics on a flaw.
//!
//! `fuzz_targets/` hands libFuzzer's bytes to them; `tests/fuzz_corpus.rs` includes this file and
//! replays the committed corpus without libFuzzer. So no module here may use anything that the
//! broker's own tests do not have.

pub mod acl_file;
mod choices;
pub mod config;
pub mod decode;
pub mod password_file;
mod pieces;
pub mod proxy_header;
pub mod round_trip;
pub mod session_operations;
pub mod token_claims;
pub mod topic_filters;
pub mod websocket;

#[allow(dead_code, reason = "the scenarios of the session use more of it")]
#[path = "../../tests/session/pair.rs"]
mod pair;

#[path = "../../tests/session/operations/mod.rs"]
mod operations;
