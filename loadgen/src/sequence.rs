//! Exact accounting of one publisher's messages at one subscriber: lost, duplicated, reordered.
//! Called by `receive` per run of messages; knows no socket and no clock.
//!
//! A tracker expects the sequence numbers `first, first + stride, first + 2 × stride, …`. The
//! stride is 1, except where a subscriber matches only every n-th message of a publisher
//! (`wildcard`).
//!
//! # Invariant
//!
//! Every number below `next` that belongs to this pair has either arrived once or lies in
//! `missing`.

pub(crate) mod group;

/// Gaps that are remembered per pair. A broker that tears more holes than this loses messages on a
/// grand scale; the oldest gap is then taken for lost, and a message that fills it for a duplicate.
const GAPS_MAX: usize = 1_024;

/// Accounts for the messages of one publisher. `worker` is compiled once for each kind.
pub(crate) trait Tracking {
    /// Expects `first`, then every `stride`-th number.
    fn new(first: u64, stride: u64) -> Self;

    /// Accounts for one message.
    fn arrived(&mut self, sequence: u64);

    /// How far the publisher's messages have come, for the closed loop.
    fn position(&self) -> u64;

    /// The position at which `window` wants to be told; `u64::MAX` when it does not.
    fn target(&self) -> u64;

    /// See [`Tracking::target`].
    fn set_target(&mut self, target: u64);

    /// Whether something else than the message that was due has arrived and nobody has taken note.
    fn is_freshly_troubled(&self) -> bool;

    /// Somebody takes note.
    fn note_trouble(&mut self);

    /// Messages up to the last one in order: as many would have arrived if none were missing.
    fn due(&self) -> u64;

    /// The sums so far. What never arrived is the caller's to compute: only it knows what was sent.
    fn account(&self) -> Account;

    /// The number of messages that do not count as outstanding, at a position and with what was
    /// written off before.
    fn passed(position: u64, written_off: u64) -> u64;

    /// What is to be written off so that nothing of what was sent counts as outstanding.
    fn write_off(position: u64, sent: u64) -> u64;
}

/// What one subscriber has seen of one publisher.
#[derive(Debug)]
pub(crate) struct Tracker {
    /// The sequence number that is due.
    next: u64,
    /// The number at which `window` wants to be told; `u64::MAX` when it does not.
    target: u64,
    /// Whether anything else than the message that was due has ever arrived, and who knows it.
    trouble: Trouble,
    stride: u64,
    first: u64,
    /// Gaps as `[from, until)`, oldest first.
    missing: Vec<(u64, u64)>,
    /// Messages in gaps that were dropped from `missing`.
    forgotten: u64,
    duplicated: u64,
    reordered: u64,
}

/// Keeps a second look at trackers to those that need it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trouble {
    /// Every message was the one that was due.
    None,
    /// Not every one, and nobody has taken note of it.
    Fresh,
    /// Not every one.
    Noted,
}

/// The sums that the report wants.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Account {
    /// Different messages that arrived.
    pub(crate) unique: u64,
    /// Messages that arrived again.
    pub(crate) duplicated: u64,
    /// Messages that arrived after a later one of the same publisher.
    pub(crate) reordered: u64,
}

impl Tracking for Tracker {
    fn new(first: u64, stride: u64) -> Self {
        Self {
            next: first,
            target: u64::MAX,
            trouble: Trouble::None,
            stride: stride.max(1),
            first,
            missing: Vec::new(),
            forgotten: 0,
            duplicated: 0,
            reordered: 0,
        }
    }

    #[inline]
    fn arrived(&mut self, sequence: u64) {
        if sequence == self.next {
            self.next += self.stride;
        } else {
            self.arrived_out_of_turn(sequence);
        }
    }

    #[inline]
    fn position(&self) -> u64 {
        self.next
    }

    #[inline]
    fn target(&self) -> u64 {
        self.target
    }

    fn set_target(&mut self, target: u64) {
        self.target = target;
    }

    #[inline]
    fn is_freshly_troubled(&self) -> bool {
        self.trouble == Trouble::Fresh
    }

    fn note_trouble(&mut self) {
        self.trouble = Trouble::Noted;
    }

    fn due(&self) -> u64 {
        (self.next - self.first) / self.stride
    }

    fn account(&self) -> Account {
        let due = self.due();
        let missing: u64 = self.missing.iter().map(|gap| (gap.1 - gap.0) / self.stride).sum();
        Account {
            unique: due.saturating_sub(missing + self.forgotten),
            duplicated: self.duplicated,
            reordered: self.reordered,
        }
    }

    fn passed(position: u64, written_off: u64) -> u64 {
        position.max(written_off)
    }

    /// Messages before this one no longer count.
    fn write_off(_position: u64, sent: u64) -> u64 {
        sent
    }
}

impl Tracker {
    #[cold]
    fn arrived_out_of_turn(&mut self, sequence: u64) {
        if self.trouble == Trouble::None {
            self.trouble = Trouble::Fresh;
        }
        if sequence > self.next {
            if self.missing.len() == GAPS_MAX {
                let (from, until) = self.missing.remove(0);
                self.forgotten += (until - from) / self.stride;
            }
            self.missing.push((self.next, sequence));
            self.next = sequence + self.stride;
            return;
        }
        let gap = self.missing.iter().position(|gap| gap.0 <= sequence && sequence < gap.1);
        let Some(gap) = gap else {
            self.duplicated += 1;
            return;
        };
        self.reordered += 1;
        let (from, until) = self.missing.remove(gap);
        let halves = [(from, sequence), (sequence + self.stride, until)];
        for half in halves.into_iter().rev().filter(|half| half.0 < half.1) {
            self.missing.insert(gap, half);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_turn_are_only_counted() {
        assert_eq!(after(1, &[0, 1, 2, 3]), account(4, 0, 0));
    }

    #[test]
    fn a_gap_stays_missing_until_it_is_filled_and_then_counts_as_reordered() {
        assert_eq!(after(1, &[0, 3]), account(2, 0, 0));
        assert_eq!(after(1, &[0, 3, 1]), account(3, 0, 1));
        assert_eq!(after(1, &[0, 3, 2, 1]), account(4, 0, 2));
    }

    #[test]
    fn the_middle_of_a_gap_leaves_both_halves_missing() {
        assert_eq!(after(1, &[5, 2]), account(2, 0, 1));
        assert_eq!(after(1, &[5, 2, 2]), account(2, 1, 1));
        assert_eq!(after(1, &[5, 2, 0, 1, 3, 4]), account(6, 0, 5));
    }

    #[test]
    fn a_second_arrival_is_a_duplicate_and_not_a_message() {
        assert_eq!(after(1, &[0, 1, 1, 0, 2]), account(3, 2, 0));
    }

    #[test]
    fn a_stride_leaves_the_messages_of_others_out() {
        assert_eq!(after(4, &[0, 4, 8]), account(3, 0, 0));
        assert_eq!(after(4, &[0, 12, 4]), account(3, 0, 1));
    }

    #[test]
    fn gaps_over_the_limit_are_taken_for_lost() {
        let every_second: Vec<u64> = (0..=2 * GAPS_MAX as u64 + 2).step_by(2).collect();
        let unique = every_second.len() as u64;
        assert_eq!(after(1, &every_second), account(unique, 0, 0));
    }

    fn after(stride: u64, sequences: &[u64]) -> Account {
        let mut tracker = Tracker::new(0, stride);
        for &sequence in sequences {
            tracker.arrived(sequence);
        }
        tracker.account()
    }

    fn account(unique: u64, duplicated: u64, reordered: u64) -> Account {
        Account { unique, duplicated, reordered }
    }
}
