//! How a search came to its result.

use serde::{Deserialize, Serialize};

use super::{Percentiles, RunResult};

/// The steps of a `--search`; the result around it is that of its best step.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Search {
    /// What was to hold.
    pub(crate) bound: String,
    /// The highest rate at which it held; nothing if it held at none.
    pub(crate) highest_per_s: Option<f64>,
    /// Why the rates between the last one that held and the first one that did not were not tried.
    #[serde(default)]
    pub(crate) ended_early: Option<String>,
    /// In the order in which they were run.
    pub(crate) steps: Vec<Step>,
}

/// One run of a search.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Step {
    /// Messages per second over all publishers.
    pub(crate) rate_per_s: f64,
    /// Whether the bound and every promise of the QoS held, nothing was lost and the run was valid.
    pub(crate) held: bool,
    /// Why not.
    pub(crate) because: Option<String>,
    /// Deliveries per second.
    pub(crate) received_per_s: f64,
    /// Deliveries that never came.
    pub(crate) lost: u64,
    /// From the intended send time.
    pub(crate) latency_us: Option<Percentiles>,
}

impl Step {
    /// A step that held, unless there is a reason why not.
    pub(crate) fn new(
        rate_per_s: f64,
        because: Option<String>,
        result: Option<&RunResult>,
    ) -> Self {
        Self {
            rate_per_s,
            held: because.is_none(),
            because,
            received_per_s: result.map_or(0.0, |result| result.received_per_s),
            lost: result.map_or(0, |result| result.lost),
            latency_us: result.and_then(|result| result.latency_us),
        }
    }
}
