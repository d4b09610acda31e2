//! The message log on a real directory, and on a disk that loses power, tears sectors and breaks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod disk;
mod faults;
mod history;
mod log;
