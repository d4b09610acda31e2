//! Why a connection ends, and what the client is told. Floor 2.

use crate::codec::{DecodeError, ReasonCode};
use crate::metrics::Shortage;
use crate::session::authentication::AuthenticationError;
use crate::session::refusal::{FilterRefusal, explain};

/// Why a session lets go of its connection. The text is what the log says.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CloseReason {
    /// DISCONNECT with reason 0: the will is discarded [MQTT-3.1.2-10].
    #[error("client disconnected")]
    Disconnected,
    /// DISCONNECT that asks for the will (0x04) or reports the client's own trouble.
    #[error("client disconnected with reason 0x{0:02x}")]
    DisconnectedWithReason(u8),
    /// The peer closed the connection, or the network failed.
    #[error("connection lost: {0}")]
    Lost(String),
    /// One and a half keep-alive periods without a packet [MQTT-3.1.2-22].
    #[error("nothing received for one and a half times the keep alive of {0} s")]
    KeepAliveTimeout(u64),
    /// Another connection came with the same client identifier [MQTT-3.1.4-3].
    #[error("another connection with this client identifier took the session over")]
    TakenOver,
    /// The broker stops.
    #[error("broker is shutting down")]
    ShuttingDown,
    /// Bytes that are not MQTT, or not by its rules.
    #[error("invalid packet: {0}")]
    Malformed(#[from] DecodeError),
    /// A packet that only a server may send, or one that is not allowed now.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// More unacknowledged messages than the Receive Maximum [MQTT-3.3.4-7].
    #[error("more than {0} unacknowledged messages received")]
    ReceiveMaximumExceeded(u16),
    /// An answer is larger than the client's Maximum Packet Size.
    #[error("answer of {0} bytes is over the client's maximum packet size")]
    AnswerTooLarge(usize),
    /// A topic alias over our Topic Alias Maximum, which may be zero [MQTT-3.3.2-9].
    #[error("topic alias over the topic alias maximum of CONNACK")]
    TopicAliasInvalid,
    /// PUBLISH over the Maximum QoS.
    #[error("QoS {0} published, which is over the maximum QoS")]
    QosNotSupported(u8),
    /// PUBLISH with RETAIN, though nothing is retained.
    #[error("message to be retained published, but there are none")]
    RetainNotSupported,
    /// SUBSCRIBE with an identifier, though there are none.
    #[error("subscription identifier used, but there are none")]
    SubscriptionIdentifiersNotSupported,
    /// SUBSCRIBE with a filter of a kind that there is not.
    #[error("{0}")]
    FilterNotSupported(FilterRefusal),
    /// A QoS 0 message that says it is text and is not (MQTT 5, section 3.3.2.3.2).
    #[error("the payload of a QoS 0 message is not UTF-8, as its format indicator says")]
    PayloadFormatInvalid,
    /// There is no room for its message, and it speaks no version in which it could be told [MQTT-4.8.0-2 of 3.1.1].
    #[error("a message was not accepted: {}", explain(*.0))]
    NoRoom(Shortage),
    /// A re-authentication that failed [MQTT-4.12.1-2], a proof that has expired, a user who is gone.
    #[error(transparent)]
    Authentication(#[from] AuthenticationError),
}

impl CloseReason {
    /// What an MQTT 5 client is told in DISCONNECT; `None` where there is nobody left to tell.
    pub fn reason_code(&self) -> Option<ReasonCode> {
        match self {
            Self::Disconnected | Self::DisconnectedWithReason(_) | Self::Lost(_) => None,
            Self::KeepAliveTimeout(_) => Some(ReasonCode::KeepAliveTimeout),
            Self::TakenOver => Some(ReasonCode::SessionTakenOver),
            Self::ShuttingDown => Some(ReasonCode::ServerShuttingDown),
            Self::Malformed(error) => Some(match error.reason_code() {
                // A second CONNECT that cannot be read is one all the same [MQTT-3.1.0-2], and DISCONNECT
                // has no 0x84 [MQTT-3.14.2-1].
                ReasonCode::UnsupportedProtocolVersion => ReasonCode::ProtocolError,
                reason => reason,
            }),
            Self::Protocol(_) => Some(ReasonCode::ProtocolError),
            Self::ReceiveMaximumExceeded(_) => Some(ReasonCode::ReceiveMaximumExceeded),
            Self::AnswerTooLarge(_) => Some(ReasonCode::PacketTooLarge),
            Self::TopicAliasInvalid => Some(ReasonCode::TopicAliasInvalid),
            Self::QosNotSupported(_) => Some(ReasonCode::QosNotSupported),
            Self::RetainNotSupported => Some(ReasonCode::RetainNotSupported),
            Self::FilterNotSupported(refusal) => Some(refusal.reason_code()),
            Self::SubscriptionIdentifiersNotSupported => {
                Some(ReasonCode::SubscriptionIdentifiersNotSupported)
            }
            Self::NoRoom(_) => Some(ReasonCode::QuotaExceeded),
            Self::PayloadFormatInvalid => Some(ReasonCode::PayloadFormatInvalid),
            Self::Authentication(error) => Some(error.reason_code()),
        }
    }

    /// What an MQTT 5 client is told in words: the text of the log, but for what helps to guess users.
    pub fn explanation(&self) -> String {
        match self {
            Self::Authentication(error) => error.explanation(),
            other => other.to_string(),
        }
    }

    /// Whether the will is published [MQTT-3.1.2-8].
    pub fn publishes_will(&self) -> bool {
        !matches!(self, Self::Disconnected)
    }

    /// Whether the client broke the rules.
    pub fn is_protocol_error(&self) -> bool {
        if let Self::Authentication(error) = self {
            return error.is_protocol_error();
        }
        matches!(
            self,
            Self::Malformed(_)
                | Self::Protocol(_)
                | Self::ReceiveMaximumExceeded(_)
                | Self::TopicAliasInvalid
                | Self::QosNotSupported(_)
                | Self::RetainNotSupported
                | Self::SubscriptionIdentifiersNotSupported
                | Self::FilterNotSupported(_)
                | Self::PayloadFormatInvalid
        )
    }

    /// Whether the client kept the rules, and could not prove anew who it is.
    pub fn is_failed_authentication(&self) -> bool {
        matches!(self, Self::Authentication(error) if !error.is_protocol_error())
    }
}
