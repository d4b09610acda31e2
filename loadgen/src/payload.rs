//! The head of every payload: who sent it, when, and as which message. Written by `block`, read by
//! `receive`; knows no socket and no clock.
//!
//! Sixteen bytes, one little-endian number, so that the smallest payload of the usual benchmarks
//! can carry it:
//!
//! ```text
//! bits    0..24 publisher   24..40 run   40..80 sequence number   80..128 time
//! ```
//!
//! A sequence number of 40 bits lasts for 10^12 messages of one publisher. The time is the low 48
//! bits of the nanoseconds of the process clock, which go round after 78 hours: [`widen`] brings the
//! whole time back, for a message that was on its way for less than half of that.

/// Bytes of a [`Stamp`] on the wire, and so the smallest payload.
pub(crate) const STAMP_BYTES: usize = 16;

/// Publishers that stamps tell apart.
pub(crate) const PUBLISHERS_MAX: usize = 1 << PUBLISHER_BITS;

const PUBLISHER_BITS: u32 = 24;
const SOURCE_BITS: u32 = 40;
const SEQUENCE_BITS: u32 = 40;
const TIME_BITS: u32 = 48;

/// What a subscriber needs to measure and to account for one message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp {
    /// Whose message it is.
    pub(crate) source: Source,
    /// Counts the messages of one publisher from zero.
    pub(crate) sequence: u64,
    /// When the message left: the low 48 bits, see [`widen`]. In an open loop the time table knows when
    /// it was meant to.
    pub(crate) sent_low: u64,
}

/// One publisher of one run. Publishers with consecutive numbers are consecutive sources.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Source(u64);

impl Source {
    /// Publishers count from zero. The low 16 bits of `run` tell this run from earlier ones and from
    /// another generator on the same topics.
    pub(crate) fn new(run: u32, publisher: u32) -> Self {
        let run = u64::from(run as u16) << PUBLISHER_BITS;
        Self(run | u64::from(publisher) & low(PUBLISHER_BITS))
    }

    /// How many publishers after `first` this one is; a great number for one of another run.
    #[inline]
    pub(crate) fn after(self, first: Self) -> u64 {
        self.0.wrapping_sub(first.0)
    }
}

impl Stamp {
    /// The stamp of a message.
    #[inline]
    pub(crate) fn new(source: Source, sequence: u64, sent_ns: u64) -> Self {
        let sent_low = sent_ns & low(TIME_BITS);
        Self { source, sequence: sequence & low(SEQUENCE_BITS), sent_low }
    }

    /// Reads the head of a payload; `None` when it is too short to be one of ours.
    #[inline]
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let head = u128::from_le_bytes(*payload.first_chunk()?);
        Some(Self {
            source: Source(head as u64 & low(SOURCE_BITS)),
            sequence: (head >> SOURCE_BITS) as u64 & low(SEQUENCE_BITS),
            sent_low: (head >> (SOURCE_BITS + SEQUENCE_BITS)) as u64,
        })
    }

    /// As it goes over the wire.
    #[inline]
    pub(crate) fn to_bytes(self) -> [u8; STAMP_BYTES] {
        let Self { source, sequence, sent_low } = self;
        let head = u128::from(source.0)
            | u128::from(sequence) << SOURCE_BITS
            | u128::from(sent_low) << (SOURCE_BITS + SEQUENCE_BITS);
        head.to_le_bytes()
    }

    /// A whole payload of `size` bytes; the rest after the stamp is filler.
    pub(crate) fn payload(self, size: usize) -> Vec<u8> {
        let mut payload = self.to_bytes().to_vec();
        payload.resize(size.max(STAMP_BYTES), b'.');
        payload
    }
}

/// The time that has these low 48 bits and is nearest to `now_ns`.
#[inline]
pub(crate) fn widen(sent_low: u64, now_ns: u64) -> u64 {
    let shift = u64::BITS - TIME_BITS;
    let ago = ((now_ns.wrapping_sub(sent_low) << shift) as i64) >> shift;
    now_ns.saturating_add_signed(ago.saturating_neg())
}

const fn low(bits: u32) -> u64 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_smallest_and_a_larger_payload() {
        let stamp = Stamp::new(Source::new(7, 16_777_215), 1 << 39, 99);
        for size in [STAMP_BYTES, 64] {
            assert_eq!(Stamp::read(&stamp.payload(size)), Some(stamp));
            assert_eq!(stamp.payload(size).len(), size);
        }
    }

    #[test]
    fn a_foreign_short_payload_is_not_a_stamp() {
        assert_eq!(Stamp::read(&[0; STAMP_BYTES - 1]), None);
    }

    #[test]
    fn publishers_of_a_run_are_consecutive_and_those_of_another_run_are_far_away() {
        let first = Source::new(9, 5);
        assert_eq!(Source::new(9, 8).after(first), 3);
        for (run, publisher) in [(9, 4), (8, 5), (10, 5)] {
            let after = Source::new(run, publisher).after(first);
            assert!(after >= PUBLISHERS_MAX as u64, "{run} {publisher}");
        }
    }

    #[test]
    fn times_are_whole_again_across_the_turn_of_their_low_bits() {
        for now_ns in [3, 1 << 47, (1 << 48) - 1, 1 << 48, (1 << 48) + 3, 5 << 48] {
            for ago_ns in [0, 1, 5_000_000_000] {
                let intended_ns = u64::saturating_sub(now_ns, ago_ns);
                let stamp = Stamp::new(Source::new(1, 1), 0, intended_ns);
                assert_eq!(widen(stamp.sent_low, now_ns), intended_ns, "{now_ns} {ago_ns}");
            }
            let ahead = Stamp::new(Source::new(1, 1), 0, now_ns + 7);
            assert_eq!(widen(ahead.sent_low, now_ns), now_ns + 7);
        }
    }
}
