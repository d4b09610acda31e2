//! The time series of a result: one point per second, and one for the rest of each phase.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::Encoded;
use crate::phase::Phase;

/// One second, or what a phase has left of one.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Point {
    /// Which phase it belongs to.
    pub(crate) phase: PointPhase,
    /// When it began, in seconds since the measurement began: negative before. Where nothing is
    /// measured (`connect`), since the run began.
    pub(crate) at_s: f64,
    /// How long it was.
    pub(crate) length_s: f64,
    /// Clients that became ready in it.
    pub(crate) connected: usize,
    /// Messages sent in it.
    pub(crate) sent: u64,
    /// Deliveries in it.
    pub(crate) received: u64,
    /// Messages sent per second.
    pub(crate) sent_per_s: f64,
    /// Deliveries per second.
    pub(crate) received_per_s: f64,
    /// Of the messages that arrived in it, from the intended send time.
    pub(crate) latency_us: Option<Spread>,
    /// Messages missing before later ones, up to its end.
    pub(crate) missing: u64,
    /// Second arrivals, up to its end.
    pub(crate) duplicated: u64,
    /// Arrivals after a later message, up to its end.
    pub(crate) reordered: u64,
    /// The broker's process, where it was looked at.
    pub(crate) broker: Option<BrokerSecond>,
    /// The latencies behind `latency_us`.
    pub(crate) latency: Option<Encoded>,
}

/// The phases of a run, as results name them.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PointPhase {
    /// Clients connect and subscribe; with `connect`, they stay connected.
    Connect,
    /// Load without measurement.
    WarmUp,
    /// Load.
    Measure,
    /// What is under way arrives.
    Drain,
}

impl From<Phase> for PointPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Ramp => Self::Connect,
            Phase::WarmUp => Self::WarmUp,
            Phase::Measure => Self::Measure,
            Phase::Drain | Phase::Stop => Self::Drain,
        }
    }
}

impl PointPhase {
    /// As in the JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::WarmUp => "warm_up",
            Self::Measure => "measure",
            Self::Drain => "drain",
        }
    }
}

/// Latencies of a second, in microseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// Median.
    pub(crate) p50: f64,
    /// One in a hundred is slower.
    pub(crate) p99: f64,
    /// The slowest.
    pub(crate) max: f64,
}

impl Spread {
    /// Nothing for nothing.
    pub(crate) fn of(histogram_ns: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram_ns.value_at_quantile(quantile) as f64 / 1e3;
        let max = histogram_ns.max() as f64 / 1e3;
        (!histogram_ns.is_empty()).then(|| Self { p50: at(0.5), p99: at(0.99), max })
    }
}

/// The broker's process in a second.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct BrokerSecond {
    /// Of one core.
    pub(crate) cpu_percent: f64,
    /// Resident, at the end.
    pub(crate) rss_kib: u64,
}
