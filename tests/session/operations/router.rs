//! The router and its shards, as far as a session hears of them: they own batches, bring subscriptions
//! into force, and replay retained messages, each in its own time.

use std::collections::VecDeque;

use mailboxqtt::message::Replay;
use mailboxqtt::session::{Request, Retained};

use super::choices::Choices;
use super::pair::SHARDS;

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Router {
    /// Not given yet.
    receipts: Vec<Receipt>,
    /// Requests of which a shard has not done its part.
    asked: Vec<Asked>,
    /// Asked for, and not there yet; at most one.
    replay: Option<Replay>,
}

/// What a shard will say about a batch that it got.
#[derive(Debug)]
pub(super) struct Receipt {
    pub(super) turn: u64,
    /// Packet identifiers of messages that nobody has subscribed to.
    pub(super) unmatched: Vec<u16>,
}

#[derive(Debug)]
struct Asked {
    token: u64,
    parts_due: usize,
    parts: usize,
    /// What a shard has retained for it.
    replays: VecDeque<Replay>,
}

/// What a shard says about a request.
pub(super) struct Part {
    pub(super) token: u64,
    pub(super) parts_due: usize,
    pub(super) replay: Option<Replay>,
    pub(super) is_last: bool,
}

impl Router {
    /// Takes what the session asked for.
    pub(super) fn take(&mut self, request: Request, choices: &mut Choices<'_>) {
        let parts_due = 1 + choices.below(SHARDS);
        match request {
            Request::Subscribe { token, filters } => {
                let wanted = filters.iter().filter(|(.., retained)| *retained == Retained::Replay);
                let wanted: Vec<_> =
                    wanted.map(|(filter, grant, _)| (filter.clone(), *grant)).collect();
                let shards = if wanted.is_empty() { 0 } else { choices.below(parts_due + 1) };
                let replay = |shard| Replay {
                    shard,
                    token,
                    filters: wanted.clone().into(),
                    filter: 0,
                    after: None,
                    stored_until: 0,
                };
                let replays = (0..shards).map(replay).collect();
                self.asked.push(Asked { token, parts_due, parts: 0, replays });
            }
            Request::Unsubscribe { token, .. } => {
                let replays = VecDeque::new();
                self.asked.push(Asked { token, parts_due, parts: 0, replays });
            }
            Request::Fetch(wanted) => panic!("there is no log: {wanted:?}"),
            Request::Replay(replay) => {
                assert!(self.replay.is_none(), "one chunk of one replay at a time");
                self.replay = Some(replay);
            }
        }
    }

    /// A batch of turn `turn` arrives, with messages of these packet identifiers.
    pub(super) fn take_batch(&mut self, turn: u64, ids: Vec<u16>, choices: &mut Choices<'_>) {
        let mut unmatched = ids;
        unmatched.retain(|_| choices.one_in(6));
        self.receipts.push(Receipt { turn, unmatched });
    }

    /// A receipt, in any order.
    pub(super) fn receipt(&mut self, choices: &mut Choices<'_>) -> Option<Receipt> {
        if self.receipts.is_empty() {
            return None;
        }
        Some(self.receipts.swap_remove(choices.below(self.receipts.len())))
    }

    /// One part of one request, in any order.
    pub(super) fn part(&mut self, choices: &mut Choices<'_>) -> Option<Part> {
        if self.asked.is_empty() {
            return None;
        }
        let at = choices.below(self.asked.len());
        let asked = &mut self.asked[at];
        asked.parts += 1;
        let part = Part {
            token: asked.token,
            parts_due: asked.parts_due,
            replay: asked.replays.pop_front(),
            is_last: asked.parts == asked.parts_due,
        };
        if part.is_last {
            self.asked.remove(at);
        }
        Some(part)
    }

    /// The replay that the session waits for. What is left of it goes back with the chunk.
    pub(super) fn replay(&mut self) -> Option<Replay> {
        self.replay.take()
    }

    /// Whether everything that was asked for is done.
    pub(super) fn is_quiet(&self) -> bool {
        self.receipts.is_empty() && self.asked.is_empty() && self.replay.is_none()
    }
}
