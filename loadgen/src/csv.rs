//! The time series of a result as CSV: a line per second, for spreadsheets and plotting tools.

use std::io::{self, Write};

use crate::result::Point;

const HEAD: &str = "phase,at_s,length_s,connected,sent,received,sent_per_s,received_per_s,\
                    p50_us,p99_us,max_us,missing,duplicated,reordered,broker_cpu_percent,\
                    broker_rss_kib";

/// Writes a head and all points. A figure that was not measured is an empty field.
pub(crate) fn write(out: &mut impl Write, series: &[Point]) -> io::Result<()> {
    writeln!(out, "{HEAD}")?;
    for point in series {
        let latency = point.latency_us;
        let us = |figure: Option<f64>| figure.map_or_else(String::new, |us| format!("{us:.3}"));
        let cpu = point.broker.map(|broker| format!("{:.1}", broker.cpu_percent));
        let rss = point.broker.map(|broker| broker.rss_kib.to_string());
        writeln!(
            out,
            "{},{:.3},{:.3},{},{},{},{:.1},{:.1},{},{},{},{},{},{},{},{}",
            point.phase.name(),
            point.at_s,
            point.length_s,
            point.connected,
            point.sent,
            point.received,
            point.sent_per_s,
            point.received_per_s,
            us(latency.map(|latency| latency.p50)),
            us(latency.map(|latency| latency.p99)),
            us(latency.map(|latency| latency.max)),
            point.missing,
            point.duplicated,
            point.reordered,
            cpu.unwrap_or_default(),
            rss.unwrap_or_default(),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::result;

    #[test]
    fn every_line_has_the_fields_of_the_head() {
        let mut series = result(50_000).series;
        series[1].latency_us = None;
        series[1].broker = None;
        let mut out = Vec::new();
        write(&mut out, &series).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        for line in &lines {
            assert_eq!(line.split(',').count(), HEAD.split(',').count(), "{line}");
        }
        assert!(lines[1].starts_with("measure,0.000,1.000,0,1000,1000,1000.0,1000.0,50."));
        assert!(lines[2].ends_with(",,,,0,0,0,,"), "{}", lines[2]);
    }
}
