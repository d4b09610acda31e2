//! The percentiles that tables and results show.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Microseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    /// Median.
    pub(crate) p50: f64,
    /// One in ten is slower.
    pub(crate) p90: f64,
    /// One in a hundred is slower.
    pub(crate) p99: f64,
    /// One in a thousand is slower.
    pub(crate) p99_9: f64,
    /// One in ten thousand is slower.
    pub(crate) p99_99: f64,
    /// The slowest.
    pub(crate) max: f64,
}

impl Percentiles {
    /// Nothing for nothing.
    pub(crate) fn of(histogram_ns: &Histogram<u64>) -> Option<Self> {
        if histogram_ns.is_empty() {
            return None;
        }
        let at = |quantile| histogram_ns.value_at_quantile(quantile) as f64 / 1e3;
        Some(Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram_ns.max() as f64 / 1e3,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_microseconds() {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        for ms in 1..=100 {
            histogram.record(ms * 1_000_000).unwrap();
        }
        let percentiles = Percentiles::of(&histogram).unwrap();
        let near = |value: f64, expected: f64| (value - expected).abs() < expected / 500.0;
        assert!(near(percentiles.p50, 50_000.0), "{percentiles:?}");
        assert!(near(percentiles.p99, 99_000.0), "{percentiles:?}");
        assert!(near(percentiles.max, 100_000.0), "{percentiles:?}");
    }

    #[test]
    fn a_run_without_deliveries_has_no_percentiles() {
        assert_eq!(Percentiles::of(&Histogram::new(3).unwrap()), None);
    }
}
