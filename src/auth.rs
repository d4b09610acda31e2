//! Authentication: how a client proves who it is. Floor 3, chosen by `config`, driven by `net` and
//! `session` through the traits of [`session::authentication`](crate::session::authentication).
//!
//! [`Scram`] is SCRAM-SHA-256, [`Credential`] what it stores of a password; [`password_file`] has the users who
//! send a password.

mod credential;
mod password;
pub mod password_file;
mod scram;

pub use credential::Credential;
pub use credential::ITERATIONS_MIN;
pub use credential::InvalidCredential;
pub use credential::prepare;
pub use password::Form;
pub use password::InvalidPassword;
pub use password::StoredPassword;
pub use scram::InvalidUser;
pub use scram::Scram;
