//! The message log on a real directory, on a disk that loses power, tears sectors and breaks, and through a week.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod checkpoint;
mod disk;
mod faults;
mod history;
mod log;
mod week;
