//! Conditions on a result, as in `p99>5ms`: `--fail-if` gives up on them, `--search` looks for the
//! edge of one.

use std::fmt;
use std::str::FromStr;

use crate::result::{Percentiles, RunResult};

/// What can be asked of a result, and in which unit it is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Figure {
    /// Median of the latency from the intended send time, like all percentiles here.
    P50,
    /// One in ten is slower.
    P90,
    /// One in a hundred is slower.
    P99,
    /// One in a thousand is slower.
    P999,
    /// One in ten thousand is slower.
    P9999,
    /// The slowest.
    Max,
    /// Deliveries that never came.
    Lost,
    /// Second arrivals.
    Duplicated,
    /// Arrivals after a later message.
    Reordered,
    /// Deliveries per second.
    ReceivedPerS,
    /// Clients per second while connecting.
    ConnectPerS,
    /// CPU time of the broker per delivered message.
    BrokerCpuUs,
}

const FIGURES: [(&str, Figure); 12] = [
    ("p50", Figure::P50),
    ("p90", Figure::P90),
    ("p99", Figure::P99),
    ("p99.9", Figure::P999),
    ("p99.99", Figure::P9999),
    ("max", Figure::Max),
    ("lost", Figure::Lost),
    ("duplicated", Figure::Duplicated),
    ("reordered", Figure::Reordered),
    ("received_per_s", Figure::ReceivedPerS),
    ("connect_per_s", Figure::ConnectPerS),
    ("broker_cpu_us", Figure::BrokerCpuUs),
];

/// Longer ones first: `<` begins `<=`.
const COMPARISONS: [(&str, Comparison); 4] = [
    ("<=", |figure, bound| figure <= bound),
    (">=", |figure, bound| figure >= bound),
    ("<", |figure, bound| figure < bound),
    (">", |figure, bound| figure > bound),
];

/// Microseconds per unit.
const UNITS: [(&str, f64); 5] = [("ns", 1e-3), ("us", 1.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6)];

type Comparison = fn(f64, f64) -> bool;

/// A figure compared with a bound.
#[derive(Clone, Debug)]
pub(crate) struct Threshold {
    /// As it was written, without blanks.
    text: String,
    figure: Figure,
    sign: &'static str,
    holds: Comparison,
    /// Microseconds where the figure is a time.
    bound: f64,
}

impl Figure {
    fn name(self) -> &'static str {
        FIGURES.iter().find(|(_, figure)| *figure == self).map_or("", |(name, _)| name)
    }

    /// Whether it is a latency, which has a unit.
    fn is_latency(self) -> bool {
        matches!(self, Self::P50 | Self::P90 | Self::P99 | Self::P999 | Self::P9999 | Self::Max)
    }

    /// In microseconds where it is a latency; nothing where it was not measured.
    fn of(self, result: &RunResult) -> Option<f64> {
        let latency = |of: fn(&Percentiles) -> f64| result.latency_us.as_ref().map(of);
        match self {
            Self::P50 => latency(|latency| latency.p50),
            Self::P90 => latency(|latency| latency.p90),
            Self::P99 => latency(|latency| latency.p99),
            Self::P999 => latency(|latency| latency.p99_9),
            Self::P9999 => latency(|latency| latency.p99_99),
            Self::Max => latency(|latency| latency.max),
            Self::Lost => Some(result.lost as f64),
            Self::Duplicated => Some(result.duplicated as f64),
            Self::Reordered => Some(result.reordered as f64),
            Self::ReceivedPerS => Some(result.received_per_s),
            Self::ConnectPerS => Some(result.connect.per_s),
            Self::BrokerCpuUs => result.broker.and_then(|broker| broker.cpu_us_per_message),
        }
    }

    fn why_missing(self) -> &'static str {
        match self {
            Self::BrokerCpuUs => "is not known: it needs --pid, and messages",
            _ => "is not known: nothing was received",
        }
    }

    fn shown(self, value: f64) -> String {
        match self {
            _ if self.is_latency() => micros(value),
            Self::BrokerCpuUs => format!("{value:.3} µs per message"),
            Self::ReceivedPerS | Self::ConnectPerS => format!("{value:.0}"),
            _ => format!("{value}"),
        }
    }
}

impl Threshold {
    /// A sentence if the condition holds for a result, or cannot be told.
    pub(crate) fn failure(&self, result: &RunResult) -> Option<String> {
        let name = self.figure.name();
        match self.figure.of(result) {
            None => Some(format!("{name} {} (--fail-if '{self}')", self.figure.why_missing())),
            Some(value) if (self.holds)(value, self.bound) => {
                Some(format!("{name} is {} (--fail-if '{self}')", self.figure.shown(value)))
            }
            Some(_) => None,
        }
    }

    /// Nothing if a result stays within the bound, or else the reason why not.
    pub(crate) fn excess(&self, result: &RunResult) -> Option<String> {
        let name = self.figure.name();
        match self.figure.of(result) {
            None => Some(format!("{name} {}", self.figure.why_missing())),
            Some(value) if (self.holds)(value, self.bound) => None,
            Some(value) => Some(format!("{name} {}", self.figure.shown(value))),
        }
    }

    /// For `--search`: a latency that is to stay below something.
    pub(crate) fn parse_bound(text: &str) -> Result<Self, String> {
        let threshold: Self = text.parse()?;
        if !threshold.figure.is_latency() || threshold.sign.starts_with('>') {
            return Err(format!(
                "`{text}` is no bound for a search: it takes a latency that stays below a time, \
                 as in p99<5ms"
            ));
        }
        Ok(threshold)
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text: String = text.split_whitespace().collect();
        let at = text.find(['<', '>']).ok_or_else(|| {
            format!("`{text}` compares nothing: it takes <, <=, > or >=, as in p99>5ms")
        })?;
        let (name, comparison) = text.split_at(at);
        let Some((_, figure)) = FIGURES.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = FIGURES.iter().map(|(known, _)| *known).collect();
            return Err(format!("there is no `{name}`: it is one of {}", known.join(", ")));
        };
        let found = COMPARISONS.iter().find_map(|(sign, holds)| {
            comparison.strip_prefix(sign).map(|bound| (*sign, *holds, bound))
        });
        let Some((sign, holds, bound)) = found else {
            return Err(format!("`{text}` has no <, <=, > or >=, as in p99>5ms"));
        };
        let bound = if figure.is_latency() { time_us(name, bound) } else { number(name, bound) }?;
        Ok(Self { text: text.clone(), figure: *figure, sign, holds, bound })
    }
}

fn time_us(name: &str, text: &str) -> Result<f64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (value, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(known, _)| *known == unit);
    match (value.parse::<f64>(), unit) {
        (Ok(value), Some((_, us))) => Ok(value * us),
        _ => Err(format!(
            "`{text}` is no time to compare {name} with: it takes a number and ns, us, ms or s, \
             as in 5ms"
        )),
    }
}

fn number(name: &str, text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
    value.ok_or_else(|| {
        format!("`{text}` is no number to compare {name} with: it takes digits alone, as in 10000")
    })
}

/// A time with the unit that reads best.
pub(crate) fn micros(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} µs"),
        us if us < 1e4 => format!("{:.2} ms", us / 1e3),
        us if us < 1e5 => format!("{:.1} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::result;

    #[test]
    fn a_condition_that_holds_is_a_sentence_with_figure_and_bound() {
        let result = result(5_300_000);
        let sentence = threshold("p99 > 5ms").failure(&result).unwrap();
        assert_eq!(sentence, "p99 is 5.30 ms (--fail-if 'p99>5ms')");
        for text in ["p99>6ms", "lost>0", "received_per_s<1000", "broker_cpu_us>200", "max>1s"] {
            assert_eq!(threshold(text).failure(&result), None, "{text}");
        }
        for text in
            ["p50>=5us", "lost<=0", "p99.9>4999.9us", "p99.99>5000000ns", "connect_per_s<201"]
        {
            assert!(threshold(text).failure(&result).is_some(), "{text}");
        }
    }

    #[test]
    fn a_figure_that_was_not_measured_fails() {
        let mut result = result(1_000);
        (result.broker, result.latency_us) = (None, None);
        let sentence = threshold("broker_cpu_us>1").failure(&result).unwrap();
        assert!(sentence.contains("--pid"), "{sentence}");
        assert!(threshold("p50>1s").failure(&result).unwrap().contains("nothing was received"));
    }

    #[test]
    fn errors_teach() {
        for (text, lesson) in [
            ("p98>5ms", "it is one of p50, p90, p99, p99.9, p99.99, max, lost"),
            ("p99=5ms", "it takes <, <=, > or >=, as in p99>5ms"),
            ("p99>5", "a number and ns, us, ms or s, as in 5ms"),
            ("p99>5sec", "a number and ns, us, ms or s, as in 5ms"),
            ("lost>5ms", "digits alone"),
            ("lost>NaN", "digits alone"),
            ("", "as in p99>5ms"),
        ] {
            let error = text.parse::<Threshold>().unwrap_err();
            assert!(error.contains(lesson), "{text}: {error}");
        }
    }

    #[test]
    fn a_search_wants_a_latency_below_a_time() {
        for text in ["p99>5ms", "lost<1", "received_per_s<5"] {
            assert!(Threshold::parse_bound(text).unwrap_err().contains("p99<5ms"), "{text}");
        }
        let bound = Threshold::parse_bound("p99<5ms").unwrap();
        assert_eq!(bound.excess(&result(4_000_000)), None);
        assert_eq!(bound.excess(&result(7_000_000)).unwrap(), "p99 7.00 ms");
    }

    #[test]
    fn times_are_shown_in_the_unit_that_reads_best() {
        let shown = [0.4, 999.0, 1_234.0, 12_345.0, 123_456.0, 1_234_567.0].map(micros);
        assert_eq!(shown, ["0 µs", "999 µs", "1.23 ms", "12.3 ms", "123 ms", "1.23 s"]);
    }

    fn threshold(text: &str) -> Threshold {
        text.parse().unwrap()
    }
}
