//! Authentication: how a client proves who it is. Floor 3, chosen by `config`, driven by `net` and
//! `session` through the traits of [`session::authentication`](crate::session::authentication).
//!
//! [`Scram`] is SCRAM-SHA-256, [`Credential`] what it stores of a password; [`password_file`] has the users who
//! send a password; the [`Verifier`] asks all of them in their order.

mod call_out;
mod claims;
mod credential;
mod failures;
mod password;
pub mod password_file;
mod scram;
mod slots;
mod token;
mod verifier;

pub use call_out::CallOutSettings;
pub use call_out::InvalidCallOut;
pub use claims::ClaimNames;
pub use claims::Claims;
pub use credential::Credential;
pub use credential::ITERATIONS_MIN;
pub use credential::InvalidCredential;
pub use credential::prepare;
pub use failures::Patience;
pub use password::Form;
pub use password::InvalidPassword;
pub use password::StoredPassword;
pub use scram::InvalidUser;
pub use scram::Scram;
pub use token::InvalidKeys;
pub use token::TokenPlace;
pub use token::TokenSettings;
pub use verifier::InvalidMethods;
pub use verifier::Limits;
pub use verifier::Methods;
pub use verifier::Settings;
pub use verifier::Verifier;
