//! A distribution in the text format of HdrHistogram (`.hgrm`), which its plotter and many other
//! tools read. Values are microseconds.

use std::io::{self, Write};

use hdrhistogram::Histogram;

/// Lines per halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
const NS_PER_US: f64 = 1e3;

/// Writes the distribution of a histogram of nanoseconds.
pub(crate) fn write(out: &mut impl Write, histogram_ns: &Histogram<u64>) -> io::Result<()> {
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut count = 0;
    for step in histogram_ns.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / NS_PER_US;
        let quantile = step.quantile_iterated_to();
        write!(out, "{value:12.3} {quantile:2.12} {count:10}")?;
        if quantile < 1.0 {
            write!(out, " {:14.2}", 1.0 / (1.0 - quantile))?;
        }
        writeln!(out)?;
    }
    let (mean, deviation) = (histogram_ns.mean() / NS_PER_US, histogram_ns.stdev() / NS_PER_US);
    let (max, total) = (histogram_ns.max() as f64 / NS_PER_US, histogram_ns.len());
    let buckets = histogram_ns.buckets();
    let sub_buckets = histogram_ns.distinct_values() / (usize::from(buckets) + 1) * 2;
    writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]")?;
    writeln!(out, "#[Max     = {max:12.3}, Total count    = {total:12}]")?;
    writeln!(out, "#[Buckets = {buckets:12}, SubBuckets     = {sub_buckets:12}]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tally::histogram;

    #[test]
    fn percentiles_rise_to_one_and_the_last_line_holds_everything() {
        let mut histogram_ns = histogram().unwrap();
        for us in 1..=1_000 {
            histogram_ns.record(us * 1_000).unwrap();
        }
        let text = text(&histogram_ns);
        assert!(text.starts_with("       Value     Percentile TotalCount 1/(1-Percentile)\n\n"));
        let lines = text.lines().skip(2).take_while(|line| !line.starts_with('#'));
        let lines: Vec<Vec<f64>> = lines
            .map(|line| line.split_whitespace().map(|cell| cell.parse().unwrap()).collect())
            .collect();
        assert!(lines.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] < pair[1][1]));
        assert!(lines.iter().any(|line| line[1] == 0.5 && (line[0] - 500.0).abs() < 1.0));
        let last = lines.last().unwrap();
        assert_eq!((last[1], last[2], last.len()), (1.0, 1_000.0, 3));
        assert!((last[0] - 1_000.0).abs() < 1.0, "{last:?}");
        assert!(text.contains("SubBuckets     =         2048]"), "{text}");
        assert!(text.contains("Total count    =         1000]"), "{text}");
    }

    #[test]
    fn an_empty_distribution_is_only_head_and_foot() {
        assert_eq!(text(&histogram().unwrap()).lines().filter(|line| !line.is_empty()).count(), 4);
    }

    fn text(histogram_ns: &Histogram<u64>) -> String {
        let mut out = Vec::new();
        write(&mut out, histogram_ns).unwrap();
        String::from_utf8(out).unwrap()
    }
}
