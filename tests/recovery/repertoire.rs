//! What a publisher publishes, one message after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use fastrand::Rng;

/// Topics of each QoS that one publisher uses.
const LIVE_TOPICS: u8 = 3;
/// Retained messages that one publisher changes again and again.
const CHANGING_TOPICS: u8 = 40;

/// See the module comment. The QoS is in the topic's name: order is promised among messages of one QoS.
#[derive(Debug)]
pub(crate) enum Repertoire {
    /// Messages that are not retained, on `live/p<publisher>/<number>/q<QoS>`.
    Live(Vec<Arc<str>>),
    /// Retained messages.
    Retained(Retained),
}

/// Retained messages, on `keep/p<publisher>/...`.
#[derive(Debug)]
pub(crate) struct Retained {
    publisher: u8,
    /// Set and cleared at random.
    changing: Vec<Arc<str>>,
    /// The life whose own messages are in `planned` or sent.
    life: u32,
    planned: VecDeque<Choice>,
}

/// The next message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Choice {
    pub(crate) topic: Arc<str>,
    pub(crate) qos: u8,
    /// It has no payload, so that it clears the retained message.
    pub(crate) is_clear: bool,
}

impl Repertoire {
    pub(crate) fn live(publisher: u8) -> Self {
        let numbers = (0..LIVE_TOPICS).flat_map(|number| [(number, 1), (number, 2)]);
        let topic = |(number, qos)| format!("live/p{publisher}/{number}/q{qos}").into();
        Self::Live(numbers.map(topic).collect())
    }

    pub(crate) fn retained(publisher: u8) -> Self {
        let topic =
            |number| format!("keep/p{publisher}/changing{number}/q{}", number % 2 + 1).into();
        let changing = (0..CHANGING_TOPICS).map(topic).collect();
        Self::Retained(Retained { publisher, changing, life: 0, planned: VecDeque::new() })
    }

    pub(crate) fn is_retained(&self) -> bool {
        matches!(self, Self::Retained(_))
    }

    pub(crate) fn next(&mut self, rng: &mut Rng, life: u32) -> Choice {
        match self {
            Self::Live(topics) => {
                let topic = topics[rng.usize(..topics.len())].clone();
                Choice::new(topic, false)
            }
            Self::Retained(retained) => retained.next(rng, life),
        }
    }
}

impl Retained {
    fn next(&mut self, rng: &mut Rng, life: u32) -> Choice {
        if self.life < life {
            let (publisher, before) = (self.publisher, self.life);
            let topic = |what: &str, life: u32| {
                format!("keep/p{publisher}/{what}{life}/q{}", life % 2 + 1).into()
            };
            // Never touched again: nothing later hides that it is lost.
            self.planned.push_back(Choice::new(topic("once", life), false));
            self.planned.push_back(Choice::new(topic("gone", life), false));
            if before > 0 {
                self.planned.push_back(Choice::new(topic("gone", before), true));
            }
            self.life = life;
        }
        self.planned.pop_front().unwrap_or_else(|| {
            let topic = self.changing[rng.usize(..self.changing.len())].clone();
            Choice::new(topic, rng.u8(..3) == 0)
        })
    }
}

impl Choice {
    fn new(topic: Arc<str>, is_clear: bool) -> Self {
        let qos = if topic.ends_with("q2") { 2 } else { 1 };
        Self { topic, qos, is_clear }
    }
}
