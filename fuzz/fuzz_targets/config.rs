//! Hands what libFuzzer makes up to [`mailboxqtt_fuzz::config`].
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mailboxqtt_fuzz::config::run(bytes));
