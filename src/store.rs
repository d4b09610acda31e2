//! What outlives the process: the log of records, and the tables that they fold into. Floor 3: owns threads
//! and files, knows nothing of sessions and routes.

pub use bodies::{Bodies, Body, Kept};
pub use database::{SetAside, TablesError, is_panic_expected};
pub use place::Place;
pub use recovered::{
    RecoveredRetained, RecoveredRun, RecoveredSent, RecoveredSession, RecoveredState, RecoveredWill,
};
pub use tables::{FoldError, Tables};

pub mod files;
pub mod handle;
pub mod log;

mod bodies;
mod committer;
mod damage;
mod database;
mod entry;
mod fold;
mod opening;
mod overlay;
mod pending;
mod place;
mod recovered;
pub mod room;
mod row;
mod scan;
mod segment;
mod segments;
mod spares;
pub mod start;
mod tables;
