//! Hands what libFuzzer makes up to [`mailboxqtt_fuzz::proxy_header`].
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mailboxqtt_fuzz::proxy_header::run(bytes));
