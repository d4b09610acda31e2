//! Room in the log for what strangers cause: as many lines as fit into a second. Floor 4, used by `denials` and by `net`.
//!
//! # Limits
//!
//! At most `LINES_MAX` lines a second. The first one of a later second comes with the number of those that were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines a second.
const LINES_MAX: u32 = 20;

/// See the module comment.
#[derive(Debug, Default)]
pub struct LogRoom {
    second: Mutex<Option<Second>>,
}

/// The present second, from its first line on.
#[derive(Debug)]
struct Second {
    began_at: Instant,
    lines: u32,
    left_out: u64,
}

impl LogRoom {
    /// Whether there is room for a line; if so, how many had none since the last one.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *second {
            Some(present) if now < present.began_at + Duration::from_secs(1) => {
                if present.lines == LINES_MAX {
                    present.left_out += 1;
                    return None;
                }
                present.lines += 1;
                Some(0)
            }
            over => {
                let left_out = over.as_ref().map_or(0, |past| past.left_out);
                *over = Some(Second { began_at: now, lines: 1, left_out: 0 });
                Some(left_out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_has_so_many_lines_and_the_next_one_says_how_many_were_left_out() {
        let (room, start) = (LogRoom::default(), Instant::now());
        let admitted = |ms| room.admit(start + Duration::from_millis(ms));
        assert_eq!((0..1000).filter(|ms| admitted(*ms).is_some()).count(), LINES_MAX as usize);
        assert_eq!(admitted(1000), Some(1000 - u64::from(LINES_MAX)));
        assert_eq!(admitted(1001), Some(0));
        assert_eq!(admitted(5000), Some(0));
    }
}
