//! Authentication Methods: how a client proves who it is. Floor 3, chosen by `config`, driven by `net` and
//! `session` through the traits of [`session::authentication`](crate::session::authentication).
//!
//! [`Scram`] is SCRAM-SHA-256, [`Credential`] what it stores of a password. Another method is another file
//! here and a line in `config`.

mod credential;
mod scram;

pub use credential::Credential;
pub use credential::ITERATIONS_MIN;
pub use credential::InvalidCredential;
pub use credential::prepare;
pub use scram::InvalidUser;
pub use scram::Scram;
