//! One thread of the generator: an event loop over its share of the clients.
//!
//! `run` starts one per core and moves it through the phases. A turn of the loop is: wait, read every
//! socket that has something (parsing and accounting at once), then refill and flush every client
//! that was touched, with one write each. So a turn costs two system calls per active pair, however
//! many messages they carry, and the clock is read once per read and once per write.
//!
//! # Invariant
//!
//! All state here belongs to this thread; other threads see only `phase::Shared`.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use mailboxqtt::codec::{Packet, decode};
use mailboxqtt::ids::{ProtocolVersion, Qos};
use mio::event::Event;
use mio::{Events, Interest, Poll, Token};

use crate::block::Block;
use crate::client::{Client, Login, Part, Publisher, Stage, Subscriber};
use crate::payload::Stamp;
use crate::phase::{Phase, Shared};
use crate::proc;
use crate::receive::{self, Expected};
use crate::scenario::Role;
use crate::schedule::{Schedule, Timetable};
use crate::sequence::Tracker;
use crate::tally::{Snapshot, Tally};
use crate::timer::Timer;
use crate::window::{Gate, Place};

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
/// Closed loop at QoS 0: a window that stands still for so long is written off.
const STALL_NS: u64 = 1_000_000_000;
/// Open loop at QoS 1 and 2: unacknowledged messages per publisher, well below the 65,535 that
/// packet identifiers allow. What is due beyond waits, and its latency counts from its due time.
const UNACKNOWLEDGED_MAX: u64 = 16_384;
/// Open loop: the last stretch before a deadline is spent polling. A sleeping core needs some 30 µs to
/// wake up, which would otherwise be part of every latency.
const SPIN_NS: u64 = 50_000;
/// Loopback connections from one source address; beyond, the next address of 127.0.0.0/8 is used.
const CONNECTIONS_PER_SOURCE: usize = 20_000;
/// More connections than this do not fit the usual range of ports of one address.
const SOURCE_PORTS: usize = 28_000;

/// What all threads of a run are told.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The broker.
    pub(crate) target: SocketAddr,
    /// Of publishing and of subscriptions.
    pub(crate) qos: Qos,
    /// Size of a payload.
    pub(crate) payload_bytes: usize,
    /// Open loop with this rate, or closed loop with this window.
    pub(crate) pace: Pace,
    /// How many subscribers each message reaches.
    pub(crate) receivers: u64,
    /// A subscriber receives every how-manieth message of its publishers.
    pub(crate) stride: u64,
    /// Tells this run from others.
    pub(crate) run: u32,
    /// Clients of all threads.
    pub(crate) clients: usize,
    /// Publishers of all threads.
    pub(crate) publishers: u32,
    /// Handshakes under way at the same time, per thread.
    pub(crate) concurrent: usize,
    /// First part of each client identifier.
    pub(crate) client_prefix: String,
    /// What CONNECT says.
    pub(crate) user_name: Option<String>,
    /// What CONNECT says.
    pub(crate) password: Option<String>,
}

/// Who decides when the next message leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// The subscribers: at most so many messages of a publisher are outstanding.
    Window(u64),
    /// The clock: so many messages per second over all publishers.
    Rate(f64),
}

/// A client to be connected: its number in the run, and what it does.
pub(crate) type Planned = (usize, Role);

/// See the module.
pub(crate) struct Worker<'a> {
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
    trackers: Vec<Tracker>,
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
    /// Intended send times that are measured.
    measured_ns: std::ops::Range<u64>,
    measure_began: Snapshot,
    stall_checked_ns: u64,
    tally: Tally,
}

impl<'a> Worker<'a> {
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
            measured_ns: u64::MAX..u64::MAX,
            measure_began: Snapshot::default(),
            stall_checked_ns: 0,
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
            self.flush_queue()?;
            if !self.abroad.is_empty() {
                self.notify_abroad();
            }
            if self.phase == Phase::Drain {
                self.say_how_far();
            }
        }
        self.close_books();
        for client in &mut self.clients {
            client.say_disconnect();
        }
        Ok(self.tally)
    }

    /// Keeps as many handshakes under way as are allowed.
    fn open_more(&mut self) -> anyhow::Result<()> {
        while self.opening < self.settings.concurrent {
            let Some((number, role)) = self.planned.pop() else { return Ok(()) };
            let part = self.part(role);
            let settings = self.settings;
            let now_ns = self.shared.clock.now_ns();
            let mut client = Client::open(settings.target, self.source(number), part, now_ns)
                .with_context(|| self.unreachable(number))?;
            let client_id = format!("{}-{:08x}-{number}", settings.client_prefix, settings.run);
            let login = Login {
                user_name: settings.user_name.as_deref(),
                password: settings.password.as_deref(),
            };
            client.say_connect(&client_id, login);
            let index = self.clients.len();
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut client.socket, Token(index), interest)?;
            if let Part::Publisher(publisher) = &client.part {
                self.owned[publisher.id as usize] = Some(index as u32);
            }
            self.clients.push(client);
            self.numbers.push(number);
            self.opening += 1;
            self.enqueue(index);
        }
        Ok(())
    }

    /// What the role needs on this thread: frames, or trackers.
    fn part(&mut self, role: Role) -> Part {
        match role {
            Role::Idle => Part::Idle,
            Role::Publisher { id, topics } => {
                let frames_min = match self.settings.pace {
                    Pace::Window(window) => window,
                    Pace::Rate(_) => {
                        if self.settings.publishers > 1_000 {
                            16
                        } else {
                            256
                        }
                    }
                };
                let stamp =
                    Stamp { run: self.settings.run, publisher: id, sequence: 0, intended_ns: 0 };
                let (qos, payload_bytes) = (self.settings.qos, self.settings.payload_bytes);
                Part::Publisher(Publisher {
                    id,
                    block: Block::new(&topics, frames_min, qos, stamp, payload_bytes),
                    acked: 0,
                    due: 0,
                    written_off: 0,
                    moved: (0, 0),
                })
            }
            Role::Subscriber { filters, publishers, first } => {
                let trackers_at = self.trackers.len();
                for publisher in publishers.clone() {
                    self.gates[publisher as usize].add(self.trackers.len() as u32);
                    self.trackers.push(Tracker::new(first, self.settings.stride));
                }
                let count = publishers.len() as u32;
                let publisher_first = publishers.start;
                Part::Subscriber(Subscriber {
                    filters,
                    trackers_at,
                    publisher_first,
                    publishers: count,
                })
            }
        }
    }

    /// Over loopback, one address has too few ports for very many connections.
    fn source(&self, number: usize) -> Option<SocketAddr> {
        let many = self.settings.clients > SOURCE_PORTS;
        let IpAddr::V4(target) = self.settings.target.ip() else { return None };
        if !many || !target.is_loopback() {
            return None;
        }
        let host = (number / CONNECTIONS_PER_SOURCE + 1) as u32;
        let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() - 1 + host);
        Some(SocketAddr::new(address.into(), 0))
    }

    fn timeout(&self) -> anyhow::Result<Duration> {
        if self.phase == Phase::Drain {
            return Ok(DRAIN);
        }
        let Some(next_ns) = self.schedule.as_ref().and_then(Schedule::next_ns) else {
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

    /// A read that does not fill the buffer has emptied the socket, and the next bytes are a new event;
    /// only a connection that was `closed` is read to its very end.
    fn read(&mut self, index: usize, closed: bool) -> anyhow::Result<()> {
        let mut scratch = std::mem::take(&mut self.scratch);
        loop {
            let filled = self.clients[index].fill(&mut scratch);
            let (filled, more) = match filled {
                Ok(None) => break,
                Ok(Some(filled)) => filled,
                Err(error) => return Err(self.broken(index, error)),
            };
            let used = self.digest(index, &scratch[..filled])?;
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
            Part::Idle => {
                let mut used = 0;
                while let Some(frame) = receive::next_frame(&bytes[used..])? {
                    used += frame.bytes.len();
                }
                Ok(used)
            }
            Part::Publisher(publisher) => {
                let (used, acked) = receive::as_publisher(bytes, &mut client.control)?;
                publisher.acked += acked;
                self.enqueue(index);
                Ok(used)
            }
            Part::Subscriber(subscriber) => {
                let expected = Expected {
                    run: self.settings.run,
                    trackers_at: subscriber.trackers_at,
                    publisher_first: subscriber.publisher_first,
                    publishers: subscriber.publishers,
                };
                let used = self.receive(index, bytes, expected)?;
                if !self.clients[index].control.is_empty() {
                    self.enqueue(index);
                }
                Ok(used)
            }
        }
    }

    #[inline]
    fn receive(&mut self, index: usize, bytes: &[u8], expected: Expected) -> anyhow::Result<usize> {
        let Self { shared, tally, gates, owned, clients, queue, abroad, .. } = self;
        let now_ns = shared.clock.now_ns();
        let step = self.settings.pace.step();
        let thread = self.index;
        let measured_ns = self.measured_ns.clone();
        // Moved out for the call, because the queue wants the other clients at the same time.
        let mut answers = std::mem::take(&mut clients[index].control);
        let trackers = &mut self.trackers;
        let used =
            receive::as_subscriber(bytes, expected, trackers, &mut answers, |trackers, run| {
                tally.received += run.count;
                if measured_ns.contains(&run.intended_ns) {
                    let latency_ns = now_ns.saturating_sub(run.intended_ns);
                    tally.latency_ns.saturating_record_n(latency_ns, run.count);
                }
                let tracker = &mut trackers[run.tracker];
                if tracker.next < tracker.target {
                    return;
                }
                tracker.target = u64::MAX;
                let publisher = run.publisher;
                let place = Place { progress: &shared.progress, thread, publisher, step };
                if gates[publisher as usize].reached(trackers, place) {
                    match owned[publisher as usize] {
                        Some(client) => enqueue(clients, queue, client as usize),
                        None => abroad.push(publisher),
                    }
                }
            });
        self.clients[index].control = answers;
        Ok(used?)
    }

    /// CONNACK and SUBACK; anything that follows them in the same read is left to the caller.
    fn shake_hands(&mut self, index: usize, bytes: &[u8]) -> anyhow::Result<usize> {
        let mut used = 0;
        while self.clients[index].stage != Stage::Ready {
            let Some(frame) = receive::next_frame(&bytes[used..])? else { return Ok(used) };
            used += frame.bytes.len();
            let packet = decode(frame.bytes, ProtocolVersion::V311)
                .context("the broker answered the handshake with a malformed packet")?;
            let client = &mut self.clients[index];
            match (client.stage, packet) {
                (Stage::Connecting { since_ns }, Packet::ConnAck(answer)) => {
                    if answer.reason.as_u8() >= 0x80 {
                        let number = self.numbers[index];
                        bail!("the broker refused client {number}: {}", answer.reason);
                    }
                    let now_ns = self.shared.clock.now_ns();
                    self.tally.connect_ns.saturating_record(now_ns.saturating_sub(since_ns));
                    if client.say_subscribe(self.settings.qos) {
                        client.stage = Stage::Subscribing;
                        self.enqueue(index);
                    } else {
                        self.ready(index);
                    }
                }
                (Stage::Subscribing, Packet::SubAck(answer)) => {
                    if let Some(reason) = answer.reasons.iter().find(|reason| **reason > 2) {
                        bail!("the broker refused a subscription with 0x{reason:02x}");
                    }
                    self.ready(index);
                }
                (stage, _) => bail!("the broker sent an unexpected packet while {stage:?}"),
            }
        }
        Ok(used + self.digest(index, &bytes[used..])?)
    }

    fn ready(&mut self, index: usize) {
        self.clients[index].stage = Stage::Ready;
        self.opening -= 1;
        self.shared.ready.fetch_add(1, Ordering::AcqRel);
    }

    /// Notices that the phase has changed.
    fn follow_phase(&mut self) -> anyhow::Result<()> {
        let phase = self.shared.phase();
        if phase == self.phase {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.phase, phase);
        if before < Phase::WarmUp && phase == Phase::WarmUp {
            self.begin_load();
        }
        if phase == Phase::Measure {
            self.measured_ns = self.shared.began_ns(Phase::Measure)..u64::MAX;
            self.measure_began = self.snapshot();
        }
        if before <= Phase::Measure && phase > Phase::Measure {
            self.measured_ns.end = self.shared.began_ns(Phase::Drain);
            if before == Phase::Measure {
                self.end_measurement();
            }
        }
        Ok(())
    }

    fn begin_load(&mut self) {
        let start_ns = self.shared.began_ns(Phase::WarmUp);
        let publishers: Vec<u32> = (0..self.settings.publishers)
            .filter(|publisher| self.owned[*publisher as usize].is_some())
            .collect();
        match self.settings.pace {
            Pace::Rate(rate) => {
                let publishers_all = u64::from(self.settings.publishers);
                let timetable = Timetable { start_ns, publishers: publishers_all, rate };
                self.schedule = Some(Schedule::new(timetable, publishers));
            }
            Pace::Window(_) => {
                let step = self.settings.pace.step();
                for (publisher, gate) in (0..).zip(&mut self.gates) {
                    let progress = &self.shared.progress;
                    let place = Place { progress, thread: self.index, publisher, step };
                    gate.arm(&mut self.trackers, place);
                }
                for publisher in publishers {
                    self.enqueue_publisher(publisher);
                }
            }
        }
    }

    /// Open loop: notes whose messages are due. While draining, only what was due before.
    fn take_due(&mut self) {
        let Some(mut schedule) = self.schedule.take() else { return };
        let until_ns = self.shared.clock.now_ns().min(match self.phase {
            Phase::Drain | Phase::Stop => self.measured_ns.end,
            Phase::Ramp | Phase::WarmUp | Phase::Measure => u64::MAX,
        });
        while let Some(publisher) = schedule.pop_due(until_ns) {
            if let Some(index) = self.owned[publisher as usize] {
                if let Part::Publisher(publisher) = &mut self.clients[index as usize].part {
                    publisher.due += 1;
                }
                self.enqueue(index as usize);
            }
        }
        self.schedule = Some(schedule);
    }

    /// Closed loop at QoS 0: a message may be lost for good, and must not hold its publisher.
    fn write_off_stalls(&mut self) {
        let Pace::Window(_) = self.settings.pace else { return };
        if self.settings.qos != Qos::AtMostOnce || self.phase < Phase::WarmUp {
            return;
        }
        let now_ns = self.shared.clock.now_ns();
        if now_ns < self.stall_checked_ns + STALL_NS / 4 {
            return;
        }
        self.stall_checked_ns = now_ns;
        for index in 0..self.clients.len() {
            let Part::Publisher(publisher) = &mut self.clients[index].part else { continue };
            let position = self.shared.progress.received(publisher.id).max(publisher.written_off);
            let waits = position < publisher.block.patched() && publisher.block.is_flushed();
            if position != publisher.moved.0 || !waits {
                publisher.moved = (position, now_ns);
            } else if publisher.moved.1 + STALL_NS <= now_ns {
                publisher.written_off = publisher.block.patched();
                self.enqueue(index);
            }
        }
    }

    fn flush_queue(&mut self) -> anyhow::Result<()> {
        let mut queue = std::mem::take(&mut self.queue);
        for &index in &queue {
            let index = index as usize;
            self.clients[index].queued = false;
            // Once, unless the frames of the publisher hold less than what may leave.
            loop {
                let refilled = self.refill(index);
                if let Err(error) = self.clients[index].flush() {
                    return Err(self.broken(index, error));
                }
                if !refilled || !self.clients[index].is_flushed() {
                    break;
                }
            }
        }
        queue.clear();
        self.queue = queue;
        Ok(())
    }

    /// Patches as many messages as may leave now; true when there were any.
    #[inline]
    fn refill(&mut self, index: usize) -> bool {
        let Part::Publisher(publisher) = &mut self.clients[index].part else { return false };
        let acknowledged = self.settings.qos != Qos::AtMostOnce;
        let Publisher { id, block, acked, due, written_off, .. } = publisher;
        match self.settings.pace {
            Pace::Window(window) => {
                if self.phase != Phase::WarmUp && self.phase != Phase::Measure {
                    return false;
                }
                let received = self.shared.progress.received(*id);
                let done = if acknowledged { received.min(*acked) } else { received };
                let outstanding = block.patched() - done.max(*written_off).min(block.patched());
                let free = window.saturating_sub(outstanding).min(block.room());
                if free < self.settings.pace.step().min(block.frames()) {
                    return false;
                }
                let now_ns = self.shared.clock.now_ns();
                block.patch(free, |_| now_ns);
                self.tally.sent += free;
                true
            }
            Pace::Rate(_) => {
                let Some(schedule) = &self.schedule else { return false };
                let timetable = schedule.timetable();
                let unacknowledged =
                    if acknowledged { block.patched().saturating_sub(*acked) } else { 0 };
                let allowed = UNACKNOWLEDGED_MAX.saturating_sub(unacknowledged);
                let count = due.saturating_sub(block.patched()).min(block.room()).min(allowed);
                if count == 0 {
                    return false;
                }
                let now_ns = self.shared.clock.now_ns();
                for sequence in block.patched()..block.patched() + count {
                    let intended_ns = timetable.intended_ns(*id, sequence);
                    if self.measured_ns.contains(&intended_ns) {
                        let slip_ns = now_ns.saturating_sub(intended_ns);
                        self.tally.slip_ns.saturating_record(slip_ns);
                    }
                }
                let id = *id;
                block.patch(count, |sequence| timetable.intended_ns(id, sequence));
                self.tally.sent += count;
                true
            }
        }
    }

    fn notify_abroad(&mut self) {
        // Every other thread is told everything: threads are few, and each skips what is not its own.
        let notes = std::mem::take(&mut self.abroad);
        for (index, thread) in self.shared.threads.iter().enumerate() {
            if index != self.index {
                thread.note(&mut notes.clone());
            }
        }
    }

    /// Draining: tells `run` whether something is still missing.
    fn say_how_far(&self) {
        let mut unfinished = 0;
        for client in &self.clients {
            let Part::Publisher(publisher) = &client.part else { continue };
            let patched = publisher.block.patched();
            unfinished += publisher.due.saturating_sub(patched);
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

    /// A connection that fails ends the run: the sentence says what it means.
    fn broken(&self, index: usize, error: io::Error) -> anyhow::Error {
        let number = self.numbers[index];
        let closed = matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        );
        let target = self.settings.target;
        match self.clients[index].stage {
            Stage::Connecting { .. } if closed => anyhow::anyhow!(
                "the broker at {target} closed connection {number} before CONNACK \
                 (it may be out of open files, or limit its connections)"
            ),
            Stage::Connecting { .. } => anyhow::Error::new(error).context(self.unreachable(number)),
            _ if closed => anyhow::anyhow!(
                "the broker at {target} closed the connection of client {number} during the run: \
                 it has stopped, or the client broke one of its limits"
            ),
            _ => anyhow::Error::new(error)
                .context(format!("the connection of client {number} to {target} broke")),
        }
    }

    fn unreachable(&self, number: usize) -> String {
        let target = self.settings.target;
        if self.shared.ready.load(Ordering::Acquire) == 0 {
            format!(
                "no broker answers at {target}: start one with `just run`, \
                 or say where it is with --addr HOST:PORT"
            )
        } else {
            format!("connection {number} to {target} could not be opened")
        }
    }
}

impl Pace {
    /// A quarter of the window: what a refill brings at least.
    pub(crate) fn step(self) -> u64 {
        match self {
            Self::Window(window) => (window / 4).max(1),
            Self::Rate(_) => u64::MAX,
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
