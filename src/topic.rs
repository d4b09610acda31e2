//! Topic names. Called by `codec`; no state. Floor 0: imports nothing of ours.

/// Why a text is not a topic name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidTopic {
    /// Zero length [MQTT-4.7.3-1].
    #[error("topic name is empty")]
    Empty,
    /// `+` or `#` [MQTT-4.7.0-1].
    #[error("topic name contains a wildcard")]
    Wildcard,
    /// U+0000 [MQTT-4.7.3-2].
    #[error("topic name contains U+0000")]
    Nul,
    /// More than 65,535 bytes [MQTT-4.7.3-3].
    #[error("topic name of {bytes} bytes is over the limit of 65535")]
    TooLong {
        /// Length of the text.
        bytes: usize,
    },
}

/// Checks the rules of [MQTT-4.7.0-1] and [MQTT-4.7.3-1] to [MQTT-4.7.3-3].
pub fn check_topic_name(text: &str) -> Result<(), InvalidTopic> {
    if text.is_empty() {
        return Err(InvalidTopic::Empty);
    }
    if text.len() > usize::from(u16::MAX) {
        return Err(InvalidTopic::TooLong { bytes: text.len() });
    }
    for byte in text.bytes() {
        match byte {
            b'+' | b'#' => return Err(InvalidTopic::Wildcard),
            0 => return Err(InvalidTopic::Nul),
            _ => (),
        }
    }
    Ok(())
}
