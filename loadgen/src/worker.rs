//! One thread of the generator: an event loop over its share of the clients.
//!
//! `run` starts one per core and moves it through the phases. A turn of the loop is: wait, read
//! every socket that has something (parsing and accounting at once), then refill and flush every
//! client that was touched, with one write each. So a turn costs two system calls per active pair,
//! however many messages they carry, and the clock is read once per read and once per write.
//! Connecting is in `ramp`; what may leave when, and the writes, are in `pacing`.
//!
//! # Invariant
//!
//! All state here belongs to this thread; other threads see only `phase::Shared`.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use mailboxqtt::ids::{ProtocolVersion, Qos};
use mio::event::Event;
use mio::{Events, Poll, Token};

use crate::client::{Client, Part, Stage};
use crate::payload::{self, Source};
use crate::phase::{Phase, Shared};
use crate::ping::{PINGREQ, Pinger};
use crate::proc;
use crate::receive::{self, Expected, Run};
use crate::schedule::{Schedule, Timetable};
use crate::sequence::Tracking;
use crate::settings::{Planned, Settings};
use crate::slice::Cutter;
use crate::tally::{Snapshot, Tally};
use crate::timer::Timer;
use crate::window::{Gate, Place};

mod pacing;
mod ramp;

/// Wakes the loop when the phase changes or another thread left notes.
pub(crate) const WAKE: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

/// Few enough that the first message of a turn does not wait long for the last.
const EVENTS_PER_TURN: usize = 256;
const SCRATCH_BYTES: usize = 256 * 1024;
/// Room for the longest topic and header beside the payload.
const FRAME_OVERHEAD_BYTES_MAX: usize = 70_000;

/// How often a loop without events looks round.
const IDLE: Duration = Duration::from_millis(100);
/// How often a draining loop says how far it is.
const DRAIN: Duration = Duration::from_millis(5);
/// Open loop: the last stretch before a deadline is spent polling. A sleeping core needs some 30 µs
/// to wake up, which would otherwise be part of every latency.
const SPIN_NS: u64 = 50_000;

/// See the module. `T` accounts for what arrives.
pub(crate) struct Worker<'a, T> {
    index: usize,
    shared: &'a Shared,
    settings: &'a Settings,
    poll: Poll,
    timer: Timer,
    /// Clients to be connected, the last one first.
    planned: Vec<Planned>,
    opening: usize,
    clients: Vec<Client>,
    /// Number in the run, per client.
    numbers: Vec<usize>,
    trackers: Vec<T>,
    /// Per publisher of the run.
    gates: Vec<Gate>,
    /// Per publisher of the run: its client here, if it is one of ours.
    owned: Vec<Option<u32>>,
    /// Clients to be refilled and flushed at the end of the turn.
    queue: Vec<u32>,
    /// Publishers of other threads that may go on.
    abroad: Vec<u32>,
    scratch: Vec<u8>,
    phase: Phase,
    schedule: Option<Schedule>,
    pinger: Pinger,
    /// Open loop: kept when the schedule has been given up.
    timetable: Option<Timetable>,
    cutter: Cutter,
    measure_began: Snapshot,
    stall_checked_ns: u64,
    /// Draining: when it last said how far it is.
    said_ns: u64,
    tally: Tally,
}

impl<'a, T: Tracking> Worker<'a, T> {
    /// Prepares a thread; nothing is connected yet.
    pub(crate) fn new(
        index: usize,
        shared: &'a Shared,
        settings: &'a Settings,
        poll: Poll,
        mut planned: Vec<Planned>,
    ) -> anyhow::Result<Self> {
        planned.reverse();
        let publishers = settings.publishers as usize;
        let scratch = SCRATCH_BYTES.max(2 * (settings.payload_bytes + FRAME_OVERHEAD_BYTES_MAX));
        Ok(Self {
            index,
            shared,
            settings,
            timer: Timer::new(poll.registry(), TIMER).context("timer")?,
            poll,
            opening: 0,
            clients: Vec::with_capacity(planned.len()),
            numbers: Vec::with_capacity(planned.len()),
            planned,
            trackers: Vec::new(),
            gates: (0..publishers).map(|_| Gate::default()).collect(),
            owned: vec![None; publishers],
            queue: Vec::new(),
            abroad: Vec::new(),
            scratch: vec![0; scratch],
            phase: Phase::Ramp,
            schedule: None,
            pinger: Pinger::new(settings.keep_alive_s),
            timetable: None,
            cutter: Cutter::new()?,
            measure_began: Snapshot::default(),
            stall_checked_ns: 0,
            said_ns: 0,
            tally: Tally::new()?,
        })
    }

    /// Runs through all phases and returns what was measured.
    pub(crate) fn run(mut self) -> anyhow::Result<Tally> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        while self.phase != Phase::Stop {
            self.open_more()?;
            let timeout = self.timeout()?;
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                waited => waited.context("poll")?,
            }
            for event in &events {
                self.take(event)?;
            }
            self.follow_phase()?;
            self.take_due();
            self.write_off_stalls();
            if self.pinger.is_on() {
                self.ping();
            }
            self.flush_queue()?;
            if events.is_empty() {
                self.cutter.seen_ns = self.shared.clock.now_ns();
            }
            if self.cutter.is_due() {
                let exchange = &self.shared.threads[self.index].slices;
                self.cutter.cut(&self.tally, &self.trackers, exchange)?;
            }
            if !self.abroad.is_empty() {
                self.notify_abroad();
            }
            if self.phase == Phase::Drain {
                self.say_how_far();
            }
        }
        let exchange = &self.shared.threads[self.index].slices;
        self.cutter.end(&self.tally, &self.trackers, exchange)?;
        self.close_books();
        for client in &mut self.clients {
            client.say_disconnect();
        }
        Ok(self.tally)
    }

    fn timeout(&self) -> anyhow::Result<Duration> {
        if self.phase == Phase::Drain {
            return Ok(DRAIN);
        }
        let next_ns = self.schedule.as_ref().and_then(Schedule::next_ns);
        let Some(next_ns) = next_ns.or_else(|| self.arrives_ns()) else {
            return Ok(IDLE);
        };
        let now_ns = self.shared.clock.now_ns();
        if next_ns <= now_ns + SPIN_NS {
            return Ok(Duration::ZERO);
        }
        self.timer.set(next_ns - now_ns - SPIN_NS).context("timer")?;
        Ok(IDLE)
    }

    fn take(&mut self, event: &Event) -> anyhow::Result<()> {
        let Token(index) = event.token();
        match event.token() {
            TIMER => return Ok(()),
            WAKE => {
                for publisher in self.shared.threads[self.index].take_notes() {
                    self.enqueue_publisher(publisher);
                }
                return Ok(());
            }
            _ => {}
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(index, event.is_read_closed() || event.is_error())?;
        }
        if event.is_writable() && !self.clients[index].is_flushed() {
            self.enqueue(index);
        }
        Ok(())
    }

    /// A read that does not fill the buffer has emptied the socket, and the next bytes are a new
    /// event; only a connection that was `closed` is read to its very end.
    fn read(&mut self, index: usize, closed: bool) -> anyhow::Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        loop {
            let filled = self.clients[index].fill(&mut scratch);
            let (filled, more) = match filled {
                Ok(None) => break,
                Ok(Some(filled)) => filled,
                Err(error) => return Err(self.broken(index, error)),
            };
            let used = self
                .digest(index, &scratch[..filled])
                .with_context(|| format!("client {}", self.numbers[index]))?;
            if used < filled {
                self.clients[index].partial.extend_from_slice(&scratch[used..filled]);
            }
            if !more && !closed {
                break;
            }
        }
        self.scratch = scratch;
        Ok(())
    }

    /// Takes all whole packets; returns how many bytes they are.
    fn digest(&mut self, index: usize, bytes: &[u8]) -> anyhow::Result<usize> {
        let client = &mut self.clients[index];
        if client.stage != Stage::Ready {
            return self.shake_hands(index, bytes);
        }
        match &mut client.part {
            Part::Idle => Ok(receive::as_publisher(bytes, &mut client.control)?.0),
            Part::Publisher(publisher) => {
                let (used, acked) = receive::as_publisher(bytes, &mut client.control)?;
                publisher.acked += acked;
                self.enqueue(index);
                Ok(used)
            }
            Part::Subscriber(subscriber) => {
                let expected = Expected {
                    first: Source::new(self.settings.run, subscriber.publisher_first),
                    publisher_first: subscriber.publisher_first,
                    trackers_at: subscriber.trackers_at,
                    publishers: subscriber.publishers,
                    stride: self.settings.stride,
                };
                let used = match self.settings.wire.version {
                    ProtocolVersion::V5 => self.receive::<true>(index, bytes, expected)?,
                    _ => self.receive::<false>(index, bytes, expected)?,
                };
                if !self.clients[index].control.is_empty() {
                    self.enqueue(index);
                }
                Ok(used)
            }
        }
    }

    fn receive<const MQTT5: bool>(
        &mut self,
        index: usize,
        bytes: &[u8],
        expected: Expected,
    ) -> anyhow::Result<usize> {
        let Self { shared, tally, gates, owned, clients, queue, abroad, cutter, .. } = self;
        let now_ns = shared.clock.now_ns();
        cutter.seen_ns = now_ns;
        let step = self.settings.pace.step();
        let thread = self.index;
        let timetable = self.timetable;
        // Moved out for the call, because the queue wants the other clients at the same time.
        let mut answers = std::mem::take(&mut clients[index].control);
        let trackers = &mut self.trackers;
        let mut foreign = 0;
        let used = receive::as_subscriber::<MQTT5, T>(
            bytes,
            expected,
            trackers,
            &mut answers,
            &mut foreign,
            |trackers, run| {
                tally.received += run.count;
                let sent_ns = payload::widen(run.sent_ns, now_ns);
                cutter.record(Run { sent_ns, ..run }, expected.stride, timetable, now_ns);
                let tracker = &mut trackers[run.tracker];
                if tracker.is_freshly_troubled() {
                    tracker.note_trouble();
                    cutter.watch(run.tracker);
                }
                if tracker.position() < tracker.target() {
                    return;
                }
                tracker.set_target(u64::MAX);
                let publisher = run.publisher;
                let place = Place { progress: &shared.progress, thread, publisher, step };
                if gates[publisher as usize].reached(trackers, place) {
                    match owned[publisher as usize] {
                        Some(client) => enqueue(clients, queue, client as usize),
                        None => abroad.push(publisher),
                    }
                }
            },
        );
        self.tally.foreign += foreign;
        self.clients[index].control = answers;
        Ok(used?)
    }

    fn ping(&mut self) {
        let now_ns = self.shared.clock.now_ns();
        while let Some(index) = self.pinger.next(self.clients.len(), now_ns) {
            if self.clients[index].stage == Stage::Ready {
                self.clients[index].control.extend_from_slice(&PINGREQ);
                self.enqueue(index);
            }
        }
    }

    /// Notices that the phase has changed.
    fn follow_phase(&mut self) -> anyhow::Result<()> {
        let phase = self.shared.phase();
        if phase == self.phase {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.phase, phase);
        // The warm-up may have been too short to be noticed.
        if before < Phase::WarmUp && matches!(phase, Phase::WarmUp | Phase::Measure) {
            self.begin_load();
        }
        if phase == Phase::Measure {
            self.measure_began = self.snapshot();
        }
        if before == Phase::Measure {
            self.end_measurement();
        }
        let began_ns = self.shared.began_ns(phase);
        let exchange = &self.shared.threads[self.index].slices;
        self.cutter.enter(phase, began_ns, &self.tally, &self.trackers, exchange)
    }

    fn notify_abroad(&mut self) {
        // Every other thread is told everything: threads are few, and each skips what is not its
        // own.
        let notes = std::mem::take(&mut self.abroad);
        for (index, thread) in self.shared.threads.iter().enumerate() {
            if index != self.index {
                thread.note(&mut notes.clone());
            }
        }
    }

    /// Draining: tells `run` whether something is still missing. Not in every turn: it looks at every
    /// client and tracker, while what arrives is still measured.
    fn say_how_far(&mut self) {
        let now_ns = self.shared.clock.now_ns();
        if now_ns < self.said_ns + DRAIN.as_nanos() as u64 {
            return;
        }
        self.said_ns = now_ns;
        let next_ns = self.schedule.as_ref().and_then(Schedule::next_ns);
        let mut unfinished =
            u64::from(next_ns.is_some_and(|next| next < self.cutter.recorded_ns.end));
        for client in &self.clients {
            let Part::Publisher(publisher) = &client.part else { continue };
            let patched = publisher.block.patched();
            if self.schedule.is_some() {
                unfinished += publisher.due.saturating_sub(patched);
            }
            unfinished += u64::from(!publisher.block.is_flushed());
            if self.settings.qos != Qos::AtMostOnce {
                unfinished += patched.saturating_sub(publisher.acked);
            }
        }
        let thread = &self.shared.threads[self.index];
        let unique = self.trackers.iter().map(|tracker| tracker.account().unique).sum();
        thread.expected.store(self.tally.sent * self.settings.receivers, Ordering::Release);
        thread.arrived.store(unique, Ordering::Release);
        thread.unfinished.store(unfinished, Ordering::Release);
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            at_ns: self.shared.clock.now_ns(),
            cpu: proc::thread_cpu(),
            sent: self.tally.sent,
            received: self.tally.received,
        }
    }

    fn end_measurement(&mut self) {
        let (began, ended) = (self.measure_began, self.snapshot());
        self.tally.sent_measured = ended.sent - began.sent;
        self.tally.received_measured = ended.received - began.received;
        let wall_ns = (ended.at_ns - began.at_ns).max(1);
        let cpu = ended.cpu.saturating_sub(began.cpu);
        self.tally.busiest = cpu.as_secs_f64() * 1e9 / wall_ns as f64;
        if self.owned.iter().all(Option::is_none) {
            self.tally.busiest_receiving = self.tally.busiest;
        }
    }

    fn close_books(&mut self) {
        self.tally.expected = self.tally.sent * self.settings.receivers;
        for tracker in &self.trackers {
            let account = tracker.account();
            self.tally.unique += account.unique;
            self.tally.duplicated += account.duplicated;
            self.tally.reordered += account.reordered;
        }
        for client in &self.clients {
            if let Part::Publisher(publisher) = &client.part
                && self.settings.qos != Qos::AtMostOnce
            {
                self.tally.unacknowledged +=
                    publisher.block.patched().saturating_sub(publisher.acked);
            }
        }
    }

    fn enqueue(&mut self, index: usize) {
        enqueue(&mut self.clients, &mut self.queue, index);
    }

    fn enqueue_publisher(&mut self, publisher: u32) {
        if let Some(index) = self.owned[publisher as usize] {
            self.enqueue(index as usize);
        }
    }
}

#[inline]
fn enqueue(clients: &mut [Client], queue: &mut Vec<u32>, index: usize) {
    let client = &mut clients[index];
    if !client.queued {
        client.queued = true;
        queue.push(index as u32);
    }
}
