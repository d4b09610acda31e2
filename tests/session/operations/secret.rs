//! An Authentication Method of two steps: the server asks, and the answer is "yes".

use std::sync::Arc;

use mailboxqtt::session::authentication::{
    Authenticated, Authenticator, Exchange, Proof, Refused, Step, UserName,
};

/// Its name.
pub(super) const METHOD: &str = "SECRET";
/// The only right answer.
pub(super) const ANSWER: &[u8] = b"yes";

/// See the module comment.
#[derive(Debug)]
pub(super) struct Secret;

/// A client that has proved who it is.
pub(super) fn authenticated() -> Authenticated {
    let user = UserName::new("anna");
    let proof = Proof::Method { authenticator: Arc::new(Secret), data: Vec::new() };
    Authenticated::new(user, proof)
}

impl Authenticator for Secret {
    fn method(&self) -> &str {
        METHOD
    }

    fn begin(&self) -> Box<dyn Exchange> {
        Box::new(Steps(0))
    }
}

#[derive(Debug)]
struct Steps(u8);

impl Exchange for Steps {
    fn step(&mut self, data: &[u8]) -> Result<Step, Refused> {
        self.0 += 1;
        match (self.0, data) {
            (1, _) => Ok(Step::Continue { data: b"?".to_vec() }),
            (2, ANSWER) => Ok(Step::Done { data: Vec::new(), user: UserName::new("anna") }),
            (2, _) => Err(Refused("wrong answer")),
            (step, _) => panic!("step {step} after the end"),
        }
    }
}
