//! Why one message or one filter of a client is refused, and what the client is told about it: the reason
//! code and the sentence of the Reason String. Floor 2, called by the other parts of a session.
//!
//! A sentence names the thing and the way out. It holds nothing that the client sent, so that it
//! may be logged and shown as it is.

use crate::codec::{Properties, ReasonCode};
use crate::metrics::Shortage;
use crate::session::output::Tally;
use crate::topic::InvalidFilter;

/// Says why a packet identifier is answered with 0x92.
pub(super) const NO_OPEN_MESSAGE: &str =
    "no QoS 2 message is open under this packet identifier: forget it";

/// Why a message is not routed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum PublishRefusal {
    /// Only the broker publishes there.
    #[error("$SYS/ topics belong to the broker: publish to another topic")]
    SystemTopic,
    /// There are no such topics behind a mount point.
    #[error("topics that begin with $ do not exist here: publish to another topic")]
    NoSuchTopic,
    /// With its mount point it is over 65,535 bytes, or with the whole topic the message is over the largest packet
    /// that there can be.
    #[error("the whole topic is too long here: shorten it, or the payload")]
    TopicTooLong,
    /// No rule allows it, or one denies it.
    #[error(
        "the rules of the broker do not let this client publish to the topic: ask its operator"
    )]
    NotAllowed,
    /// Payload Format Indicator 1, and the payload is not UTF-8 (MQTT 5, section 3.3.2.3.2).
    #[error(
        "the payload is not UTF-8, as its format indicator says: correct it or leave the indicator out"
    )]
    PayloadFormat,
    /// A shard has no room for it.
    #[error("{}", explain(*.0))]
    NoRoom(Shortage),
}

impl PublishRefusal {
    /// For PUBACK, PUBREC and DISCONNECT.
    pub(super) fn reason_code(self) -> ReasonCode {
        match self {
            Self::SystemTopic | Self::NoSuchTopic | Self::NotAllowed => ReasonCode::NotAuthorized,
            Self::TopicTooLong => ReasonCode::TopicNameInvalid,
            Self::PayloadFormat => ReasonCode::PayloadFormatInvalid,
            Self::NoRoom(_) => ReasonCode::QuotaExceeded,
        }
    }

    /// Counts one message.
    pub(super) fn count(self, tally: &mut Tally) {
        match self {
            Self::SystemTopic | Self::NoSuchTopic | Self::NotAllowed => tally.not_authorized += 1,
            Self::TopicTooLong => tally.topic_too_long += 1,
            Self::PayloadFormat => tally.payload_format_invalid += 1,
            // The shard has counted it.
            Self::NoRoom(_) => (),
        }
    }
}

/// Whose limit it is that leaves no room for a message, and what the publisher can do.
pub(super) fn explain(shortage: Shortage) -> &'static str {
    match shortage {
        Shortage::Queue => {
            "the queue of a session that has subscribed to this topic is full: publish it again later"
        }
        Shortage::Queues => "the queues of the broker are full: publish it again later",
        Shortage::Disk => "the disk of the broker is full: publish it again later",
        Shortage::Memory => "the broker is short of memory: publish it again later",
    }
}

/// Why a filter of a SUBSCRIBE or UNSUBSCRIBE is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FilterRefusal {
    /// It is none.
    #[error("{0}")]
    Invalid(#[from] InvalidFilter),
    /// `$share/`.
    #[error("shared subscriptions are not available: leave out $share/ and the name behind it")]
    SharedNotSupported,
    /// `+` or `#`.
    #[error("wildcard subscriptions are not available: subscribe to each topic by its name")]
    WildcardsNotSupported,
    /// There are none behind a mount point that begin with `$`.
    #[error("topics that begin with $ do not exist here: subscribe to others")]
    NoSuchTopics,
    /// No message that it matches may go to the client.
    #[error("the rules of the broker let nothing of it come to this client: ask its operator")]
    NotAllowed,
    /// The session's limit of filters.
    #[error("a session has at most {0} subscriptions: unsubscribe from one first")]
    TooMany(usize),
    /// The session's limit of bytes.
    #[error("the filters of a session have at most {0} bytes: unsubscribe from one first")]
    TooManyBytes(usize),
    /// Of the whole broker.
    #[error("the broker is short of memory: subscribe again later")]
    NoMemory,
}

impl FilterRefusal {
    /// For SUBACK, UNSUBACK and DISCONNECT.
    pub fn reason_code(self) -> ReasonCode {
        match self {
            Self::Invalid(_) => ReasonCode::TopicFilterInvalid,
            Self::SharedNotSupported => ReasonCode::SharedSubscriptionsNotSupported,
            Self::WildcardsNotSupported => ReasonCode::WildcardSubscriptionsNotSupported,
            Self::NoSuchTopics | Self::NotAllowed => ReasonCode::NotAuthorized,
            Self::TooMany(_) | Self::TooManyBytes(_) | Self::NoMemory => ReasonCode::QuotaExceeded,
        }
    }
}

/// Whether `properties` say that `payload` is text, and it is not. Reads the whole payload if they do.
pub(super) fn has_wrong_format(properties: Properties<'_>, payload: &[u8]) -> bool {
    properties.payload_format_indicator() == Some(true) && std::str::from_utf8(payload).is_err()
}
