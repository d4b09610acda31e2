//! What one thread has counted in the whole run. Filled by `worker`, merged by `run`. What it has
//! measured second by second is in `slice`.

use std::time::Duration;

use anyhow::Context;
use hdrhistogram::{CreationError, Histogram};

/// Longest time that the histograms tell apart: an hour.
const TIME_NS_MAX: u64 = 3_600_000_000_000;
/// Significant decimal digits of a recorded time.
const DIGITS: u8 = 3;

/// An empty histogram of nanoseconds; all are of one kind, so that they can be added.
pub(crate) fn histogram() -> Result<Histogram<u64>, CreationError> {
    Histogram::new_with_bounds(1, TIME_NS_MAX, DIGITS)
}

/// Sums of one thread, or of all after [`Tally::merge`].
#[derive(Debug)]
pub(crate) struct Tally {
    /// From asking for a connection to CONNACK.
    pub(crate) connect_ns: Histogram<u64>,
    /// Messages sent, in the whole run.
    pub(crate) sent: u64,
    /// Deliveries, duplicates included, in the whole run.
    pub(crate) received: u64,
    /// Messages sent while measuring.
    pub(crate) sent_measured: u64,
    /// Deliveries while measuring.
    pub(crate) received_measured: u64,
    /// Deliveries that follow from what was sent, in the whole run.
    pub(crate) expected: u64,
    /// Different messages that arrived, in the whole run.
    pub(crate) unique: u64,
    /// Second arrivals, in the whole run.
    pub(crate) duplicated: u64,
    /// Arrivals after a later message of the same publisher, in the whole run.
    pub(crate) reordered: u64,
    /// Messages of others that arrived, in the whole run.
    pub(crate) foreign: u64,
    /// Messages whose flow the broker did not end, at QoS 1 and 2.
    pub(crate) unacknowledged: u64,
    /// CPU time of the busiest thread while measuring, as a share of the time.
    pub(crate) busiest: f64,
    /// The same of the threads that have no publishers.
    pub(crate) busiest_receiving: f64,
}

impl Tally {
    /// Nothing measured yet.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            connect_ns: histogram().context("connect histogram")?,
            sent: 0,
            received: 0,
            sent_measured: 0,
            received_measured: 0,
            expected: 0,
            unique: 0,
            duplicated: 0,
            reordered: 0,
            foreign: 0,
            unacknowledged: 0,
            busiest: 0.0,
            busiest_receiving: 0.0,
        })
    }

    /// Adds what another thread has measured.
    pub(crate) fn merge(&mut self, other: &Self) -> anyhow::Result<()> {
        self.connect_ns.add(&other.connect_ns)?;
        self.sent += other.sent;
        self.received += other.received;
        self.sent_measured += other.sent_measured;
        self.received_measured += other.received_measured;
        self.expected += other.expected;
        self.unique += other.unique;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.foreign += other.foreign;
        self.unacknowledged += other.unacknowledged;
        self.busiest = self.busiest.max(other.busiest);
        self.busiest_receiving = self.busiest_receiving.max(other.busiest_receiving);
        Ok(())
    }

    /// Deliveries that never came, in the whole run.
    pub(crate) fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.unique)
    }
}

/// What was spent up to a moment; the difference of two is what was spent between.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Snapshot {
    /// When.
    pub(crate) at_ns: u64,
    /// CPU time of the thread.
    pub(crate) cpu: Duration,
    /// Messages sent.
    pub(crate) sent: u64,
    /// Deliveries.
    pub(crate) received: u64,
}
