//! Output that waits until the log has what it tells the client of. Floor 5, part of `net::connection`.

use std::collections::VecDeque;

use crate::ids::LogPosition;

/// Places in the output of a connection, in their order.
#[derive(Debug, Default)]
pub(super) struct Gates(VecDeque<Gate>);

/// What is behind it may not be written yet.
#[derive(Debug)]
struct Gate {
    /// Where in the log is what has to be safe.
    at: LogPosition,
    /// Bytes of output before the gate.
    behind: usize,
}

impl Gates {
    /// Nothing behind the first `behind` bytes may be written before what was appended at `at` is safe.
    pub(super) fn put(&mut self, at: LogPosition, behind: usize) {
        self.0.push_back(Gate { at, behind });
    }

    /// Takes away those that `is_safe`, up to the first that is not.
    pub(super) fn open(&mut self, is_safe: impl Fn(LogPosition) -> bool) {
        while self.0.front().is_some_and(|gate| is_safe(gate.at)) {
            self.0.pop_front();
        }
    }

    /// Whether all may be written.
    pub(super) fn are_open(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of `len` bytes may be written.
    pub(super) fn end(&self, len: usize) -> usize {
        self.0.front().map_or(len, |gate| gate.behind)
    }

    /// The first `count` bytes of the output are gone.
    pub(super) fn forget(&mut self, count: usize) {
        self.0.iter_mut().for_each(|gate| gate.behind = gate.behind.saturating_sub(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_out_up_to_the_first_gate_and_gates_open_in_their_order() {
        let mut gates = Gates::default();
        assert_eq!((gates.are_open(), gates.end(100)), (true, 100));
        gates.put(LogPosition(7), 10);
        gates.put(LogPosition(5), 30);
        gates.open(|at| at == LogPosition(5));
        assert_eq!(gates.end(100), 10);
        gates.forget(10);
        assert_eq!(gates.end(90), 0);
        gates.open(|at| at == LogPosition(7));
        assert_eq!((gates.are_open(), gates.end(90)), (false, 20));
        gates.open(|_| true);
        assert_eq!((gates.are_open(), gates.end(90)), (true, 90));
    }
}
