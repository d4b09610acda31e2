//! Exact accounting of one publisher's messages over all members of a shared subscription: each is
//! to reach one of them, no matter which. All members are on one thread and share the tracker.
//!
//! The members receive side by side, so there is no order to be checked; what has arrived is a
//! bitmap that begins at the oldest message that is missing.

use std::collections::VecDeque;

use super::{Account, Tracking};

/// Words of 64 messages between the oldest one missing and the newest, at most: 65,536 messages, 8 KiB.
/// A message that is further behind is taken for lost; if it comes after all, for a duplicate.
const WORDS_MAX: u64 = 1_024;

/// Messages of one publisher that may arrive in any order at all.
pub(crate) const MESSAGES_MAX: u64 = WORDS_MAX * 64;

/// What a group has seen of one publisher.
#[derive(Debug)]
pub(crate) struct GroupTracker {
    /// Different messages that arrived.
    unique: u64,
    /// The count at which `window` wants to be told; `u64::MAX` when it does not.
    target: u64,
    /// A multiple of 64. Messages before it have arrived or are taken for lost.
    from: u64,
    /// Which of the messages behind it have arrived.
    arrived: VecDeque<u64>,
    duplicated: u64,
}

impl Tracking for GroupTracker {
    fn new(_first: u64, _stride: u64) -> Self {
        Self { unique: 0, target: u64::MAX, from: 0, arrived: VecDeque::new(), duplicated: 0 }
    }

    #[inline]
    fn arrived(&mut self, sequence: u64) {
        let Some(ahead) = sequence.checked_sub(self.from) else {
            self.duplicated += 1;
            return;
        };
        let mut word = ahead / 64;
        if word >= self.arrived.len() as u64 {
            word = self.make_room(word);
        }
        let Some(word) = self.arrived.get_mut(word as usize) else { return };
        let bit = 1 << (sequence % 64);
        if *word & bit != 0 {
            self.duplicated += 1;
            return;
        }
        *word |= bit;
        self.unique += 1;
        while self.arrived.front() == Some(&u64::MAX) {
            self.arrived.pop_front();
            self.from += 64;
        }
    }

    /// How many have arrived: which ones are missing says nothing about how many are under way.
    #[inline]
    fn position(&self) -> u64 {
        self.unique
    }

    #[inline]
    fn target(&self) -> u64 {
        self.target
    }

    fn set_target(&mut self, target: u64) {
        self.target = target;
    }

    /// What is missing may be on its way to another member: nothing is known to be wrong.
    fn is_freshly_troubled(&self) -> bool {
        false
    }

    fn note_trouble(&mut self) {}

    fn due(&self) -> u64 {
        self.unique
    }

    fn account(&self) -> Account {
        Account { unique: self.unique, duplicated: self.duplicated, reordered: 0 }
    }

    fn passed(position: u64, written_off: u64) -> u64 {
        position.saturating_add(written_off)
    }

    fn write_off(position: u64, sent: u64) -> u64 {
        sent.saturating_sub(position)
    }
}

impl GroupTracker {
    /// Extends the bitmap up to this word, and lets go of its beginning where it becomes too long.
    /// Says where the word then is.
    fn make_room(&mut self, word: u64) -> u64 {
        let dropped = (word + 1).saturating_sub(WORDS_MAX);
        self.arrived.drain(..(dropped as usize).min(self.arrived.len()));
        self.from += dropped * 64;
        let word = word - dropped;
        self.arrived.resize(word as usize + 1, 0);
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_of_arrival_is_complete() {
        let backwards = (0..1_000).rev();
        let members = (0..5).flat_map(|member| (0..200).map(move |n| n * 5 + member));
        for sequences in [backwards.collect::<Vec<u64>>(), members.collect()] {
            let tracker = after(&sequences);
            assert_eq!(account(&tracker), (1_000, 0));
            assert!(tracker.arrived.len() <= 1);
        }
    }

    #[test]
    fn a_second_arrival_is_a_duplicate_whichever_member_got_it() {
        assert_eq!(account(&after(&[0, 2, 1, 2, 0])), (3, 2));
        let twice: Vec<u64> = (0..200).chain(0..200).collect();
        assert_eq!(account(&after(&twice)), (200, 200));
    }

    #[test]
    fn what_is_too_far_behind_is_taken_for_lost() {
        let most = MESSAGES_MAX;
        assert_eq!(account(&after(&[most - 1, 0])), (2, 0));
        assert_eq!(account(&after(&[most, 64, 63])), (2, 1));
        assert_eq!(account(&after(&[0, 1 << 39, 1])), (2, 1));
        assert!(after(&[0, 1 << 39]).arrived.len() as u64 <= WORDS_MAX);
    }

    fn after(sequences: &[u64]) -> GroupTracker {
        let mut tracker = GroupTracker::new(0, 1);
        for &sequence in sequences {
            tracker.arrived(sequence);
        }
        tracker
    }

    fn account(tracker: &GroupTracker) -> (u64, u64) {
        (tracker.account().unique, tracker.account().duplicated)
    }
}
