//! The seconds of a run: collects what the threads measured in each (`slice`), looks at the broker's
//! process when one ends, and makes a point of the time series of it. Called by `run` on the main
//! thread every few milliseconds, where it has something to do once a second.

use std::collections::BTreeMap;

use anyhow::Context;
use hdrhistogram::Histogram;

use crate::phase::{Phase, Shared};
use crate::proc::{self, Usage};
use crate::result::{BrokerSecond, Encoded, Point, PointPhase, Spread};
use crate::slice::{SLICE_NS, Second, Slice, Trouble};
use crate::tally::histogram;

/// What a run has shown, second by second and in all.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// Points in order; their times count from the beginning of the measurement.
    pub(crate) points: Vec<Point>,
    /// From the intended send time to the arrival, of messages meant to leave while measuring.
    pub(crate) latency_ns: Histogram<u64>,
    /// Open loop: from their real send time.
    pub(crate) service_ns: Histogram<u64>,
    /// Open loop: from the intended to the real send time.
    pub(crate) slip_ns: Histogram<u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Recorder<'a> {
    shared: &'a Shared,
    pid: Option<u32>,
    /// Seconds that some thread has not handed over yet.
    open: BTreeMap<Second, Open>,
    /// Points, and when their second began.
    points: Vec<(u64, Point)>,
    /// Per thread: the last second that it has handed over.
    handed_over: Vec<Option<Second>>,
    /// The second that the main thread is in, and what there was at its beginning.
    now: Second,
    began: Sample,
    recorded: Recorded,
    spare: Vec<Histogram<u64>>,
}

#[derive(Debug)]
struct Open {
    sent: u64,
    received: u64,
    trouble: Trouble,
    latency_ns: Histogram<u64>,
    connected: usize,
    broker: Option<BrokerSecond>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at_ns: u64,
    ready: usize,
    broker: Option<Usage>,
}

impl<'a> Recorder<'a> {
    /// Begins with the first second of connecting.
    pub(crate) fn new(shared: &'a Shared, pid: Option<u32>) -> anyhow::Result<Self> {
        Ok(Self {
            shared,
            pid,
            open: BTreeMap::new(),
            points: Vec::new(),
            handed_over: vec![None; shared.threads.len()],
            now: Second { phase: Phase::Ramp, number: 0 },
            began: Sample { at_ns: 0, ready: 0, broker: pid.and_then(|pid| proc::usage(pid).ok()) },
            recorded: Recorded {
                points: Vec::new(),
                latency_ns: histogram().context("latency histogram")?,
                service_ns: histogram().context("service histogram")?,
                slip_ns: histogram().context("slip histogram")?,
            },
            spare: Vec::new(),
        })
    }

    /// Collects what there is; true when a second has become complete.
    pub(crate) fn look(&mut self) -> anyhow::Result<bool> {
        let phase = self.shared.phase();
        let now_ns = self.shared.clock.now_ns();
        let second = Second::at(phase, self.shared.began_ns(phase), now_ns);
        if second != self.now {
            self.sample(now_ns)?;
            self.now = second;
        }
        self.collect()?;
        let complete = match self.now.phase {
            Phase::Ramp => Some(self.now),
            _ => self.handed_over.iter().copied().min().flatten(),
        };
        let points = self.points.len();
        while let Some((&second, _)) = self.open.first_key_value() {
            // The main thread and the workers all have to be past it.
            if second >= self.now || complete.is_none_or(|complete| second > complete) {
                break;
            }
            self.close_first()?;
        }
        Ok(self.points.len() > points)
    }

    /// The last complete second.
    pub(crate) fn last(&self) -> Option<&Point> {
        self.points.last().map(|(_, point)| point)
    }

    /// After all threads have ended: what there is in all.
    pub(crate) fn finish(mut self) -> anyhow::Result<Recorded> {
        self.sample(self.shared.clock.now_ns())?;
        self.collect()?;
        while !self.open.is_empty() {
            self.close_first()?;
        }
        let zero_ns = self.shared.began_ns(Phase::Measure);
        let place = |(began_ns, mut point): (u64, Point)| {
            point.at_s = (began_ns as f64 - zero_ns as f64) / 1e9;
            point
        };
        self.recorded.points = self.points.into_iter().map(place).collect();
        Ok(self.recorded)
    }

    fn collect(&mut self) -> anyhow::Result<()> {
        let shared = self.shared;
        for (index, thread) in shared.threads.iter().enumerate() {
            for slice in thread.slices.collect() {
                self.handed_over[index] = Some(slice.second);
                self.merge(&slice)?;
                thread.slices.give_back(slice);
            }
        }
        Ok(())
    }

    fn merge(&mut self, slice: &Slice) -> anyhow::Result<()> {
        let open = self.open(slice.second)?;
        open.sent += slice.sent;
        open.received += slice.received;
        open.trouble.add(slice.trouble);
        open.latency_ns.add(&slice.latency_ns)?;
        if slice.second.phase >= Phase::Measure {
            self.recorded.service_ns.add(&slice.service_ns)?;
            self.recorded.slip_ns.add(&slice.slip_ns)?;
        }
        Ok(())
    }

    /// The second that the main thread was in is over.
    fn sample(&mut self, at_ns: u64) -> anyhow::Result<()> {
        let began = self.began;
        let ready = self.shared.ready.load(std::sync::atomic::Ordering::Acquire);
        // A process that has gone is reported where its absence matters.
        let broker = self.pid.and_then(|pid| proc::usage(pid).ok());
        self.began = Sample { at_ns, ready, broker };
        let elapsed_s = at_ns.saturating_sub(began.at_ns).max(1) as f64 / 1e9;
        let open = self.open(self.now)?;
        open.connected += ready - began.ready;
        open.broker = broker.zip(began.broker).map(|(after, before)| BrokerSecond {
            cpu_percent: after.cpu.saturating_sub(before.cpu).as_secs_f64() / elapsed_s * 100.0,
            rss_kib: after.rss_bytes / 1024,
        });
        Ok(())
    }

    fn open(&mut self, second: Second) -> anyhow::Result<&mut Open> {
        use std::collections::btree_map::Entry;
        Ok(match self.open.entry(second) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Open {
                sent: 0,
                received: 0,
                trouble: Trouble::default(),
                latency_ns: self.spare.pop().map_or_else(histogram, Ok)?,
                connected: 0,
                broker: None,
            }),
        })
    }

    fn close_first(&mut self) -> anyhow::Result<()> {
        let Some((second, open)) = self.open.pop_first() else { return Ok(()) };
        let began_ns = self.shared.began_ns(second.phase) + second.number * SLICE_NS;
        let ended_ns = self.shared.ended_ns(second.phase).unwrap_or(self.began.at_ns);
        let ended_ns = ended_ns.min(began_ns + SLICE_NS);
        let Open { sent, received, trouble, mut latency_ns, connected, broker } = open;
        let length_s = ended_ns.saturating_sub(began_ns) as f64 / 1e9;
        // Shorter is the rounding of a phase that ended on the second.
        if length_s > 0.001 || sent + received > 0 {
            let per_s = |count: u64| count as f64 / length_s.max(0.001);
            let point = Point {
                phase: PointPhase::from(second.phase),
                at_s: 0.0,
                length_s,
                connected,
                sent,
                received,
                sent_per_s: per_s(sent),
                received_per_s: per_s(received),
                latency_us: Spread::of(&latency_ns),
                missing: trouble.missing,
                duplicated: trouble.duplicated,
                reordered: trouble.reordered,
                broker,
                latency: Encoded::unless_empty(&latency_ns)?,
            };
            self.points.push((began_ns, point));
        }
        if second.phase >= Phase::Measure {
            self.recorded.latency_ns.add(&latency_ns)?;
        }
        if !latency_ns.is_empty() {
            latency_ns.reset();
        }
        self.spare.push(latency_ns);
        Ok(())
    }
}
