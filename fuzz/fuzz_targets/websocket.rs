//! Hands what libFuzzer makes up to [`mailboxqtt_fuzz::websocket`].
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mailboxqtt_fuzz::websocket::run(bytes));
