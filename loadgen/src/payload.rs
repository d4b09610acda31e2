//! The head of every payload: who sent it, when, and as which message. Written by `block`, read by
//! `receive`; knows no socket and no clock.

/// Bytes of a [`Stamp`] on the wire, and so the smallest payload.
pub(crate) const STAMP_BYTES: usize = 24;

/// What a subscriber needs to measure and to account for one message. Integers are little-endian.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp {
    /// Tells this run from earlier ones and from another generator on the same topics.
    pub(crate) run: u32,
    /// Publisher number within the run.
    pub(crate) publisher: u32,
    /// Counts the messages of one publisher from zero.
    pub(crate) sequence: u64,
    /// When the message left, in nanoseconds on the process clock. In an open loop the time table
    /// knows when it was meant to.
    pub(crate) sent_ns: u64,
}

/// Where the sequence number lies within the stamp; the time follows it.
pub(crate) const SEQUENCE_AT: usize = 8;

impl Stamp {
    /// Reads the head of a payload; `None` when it is too short to be one of ours.
    #[inline]
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let head: &[u8; STAMP_BYTES] = payload.first_chunk()?;
        let (run, rest) = head.split_first_chunk()?;
        let (publisher, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        Some(Self {
            run: u32::from_le_bytes(*run),
            publisher: u32::from_le_bytes(*publisher),
            sequence: u64::from_le_bytes(*sequence),
            sent_ns: u64::from_le_bytes(*rest.first_chunk()?),
        })
    }

    /// A whole payload of `size` bytes; the rest after the stamp is filler.
    pub(crate) fn payload(self, size: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(size.max(STAMP_BYTES));
        payload.extend(self.run.to_le_bytes());
        payload.extend(self.publisher.to_le_bytes());
        payload.extend(self.sequence.to_le_bytes());
        payload.extend(self.sent_ns.to_le_bytes());
        payload.resize(size.max(STAMP_BYTES), b'.');
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_payload() {
        let stamp = Stamp { run: 7, publisher: 4_000_000_000, sequence: 1 << 40, sent_ns: 99 };
        assert_eq!(Stamp::read(&stamp.payload(64)), Some(stamp));
        assert_eq!(stamp.payload(64).len(), 64);
    }

    #[test]
    fn a_foreign_short_payload_is_not_a_stamp() {
        assert_eq!(Stamp::read(&[0; STAMP_BYTES - 1]), None);
    }
}
