//! Replays the corpus of every fuzz target, without libFuzzer.
//!
//! `fuzz/corpus/TARGET` holds the inputs that reach all code that the fuzzer has reached; see
//! `fuzz/src` for what each target checks. An input that once failed is a test with a name below
//! the code that was wrong; here it stays as bytes.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::panic;
use std::path::Path;

#[allow(unreachable_pub, reason = "it is public where it is a library")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

#[test]
fn every_input_of_acl_file_passes() {
    replay("acl_file", targets::acl_file::run);
}

#[test]
fn every_input_of_decode_passes() {
    replay("decode", targets::decode::run);
}

#[test]
fn every_input_of_round_trip_passes() {
    replay("round_trip", targets::round_trip::run);
}

#[test]
fn every_input_of_session_operations_passes() {
    replay("session_operations", targets::session_operations::run);
}

#[test]
fn every_input_of_topic_filters_passes() {
    replay("topic_filters", targets::topic_filters::run);
}

#[test]
fn every_input_of_password_file_passes() {
    replay("password_file", targets::password_file::run);
}

#[test]
fn every_input_of_token_claims_passes() {
    replay("token_claims", targets::token_claims::run);
}

#[test]
fn every_input_of_config_passes() {
    replay("config", targets::config::run);
}

#[test]
fn every_input_of_proxy_header_passes() {
    replay("proxy_header", targets::proxy_header::run);
}

#[test]
fn every_input_of_websocket_passes() {
    replay("websocket", targets::websocket::run);
}

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|input| input.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "nothing to replay in {}", folder.display());
    for input in inputs {
        let bytes = fs::read(&input).unwrap();
        if let Err(cause) = panic::catch_unwind(|| run(&bytes)) {
            eprintln!("this was {}", input.display());
            panic::resume_unwind(cause);
        }
    }
}
