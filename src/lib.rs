//! The mailboxqtt broker as a library: everything that the binary wires together.
pub mod codec;
pub mod ids;
pub mod topic;
