//! One run from the first connection to the last message: starts the threads, moves them through
//! the phases, looks at the broker's process before and after, and merges what was measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow, bail};
use indicatif::ProgressBar;
use mailboxqtt::ids::Qos;
use mio::{Poll, Waker};

use crate::args::Args;
use crate::beside::{Beside, BesideReport};
use crate::clock::Clock;
use crate::fleet::Fleet;
use crate::live::Live;
use crate::phase::{Phase, Shared};
use crate::proc::{self, Usage};
use crate::recorder::{Recorded, Recorder};
use crate::scenario::{Layout, Scenario};
use crate::sequence::Tracker;
use crate::sequence::group::GroupTracker;
use crate::settings::{Arrival, Pace, Planned, Settings};
use crate::source;
use crate::tally::Tally;
use crate::window::Progress;
use crate::worker::{WAKE, Worker};

/// How often the phases look round.
const TICK: Duration = Duration::from_millis(20);
/// Connecting has failed when nothing has moved for so long.
const RAMP_STALL: Duration = Duration::from_secs(15);
/// How long what is under way may take to arrive, as long as anything arrives: late is not lost.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// The same when somebody wants the end.
const DRAIN_STOPPED_MAX: Duration = Duration::from_secs(5);
/// When nothing has moved for so long nothing more will come.
const DRAIN_SILENCE: Duration = Duration::from_secs(5);
/// The same at QoS 0, where what was dropped never comes.
const DRAIN_SILENCE_QOS_0: Duration = Duration::from_secs(1);
/// Files besides the connections: standard streams, results, what looks at the broker.
const FILES_BESIDE: u64 = 64;
/// Of each thread: epoll, timer, waker.
const FILES_PER_THREAD: u64 = 4;

/// What a run has shown.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Merged over all threads.
    pub(crate) tally: Tally,
    /// What went on beside.
    pub(crate) beside: Option<BesideReport>,
    /// Second by second.
    pub(crate) recorded: Recorded,
    /// When it began.
    pub(crate) started: SystemTime,
    /// When the measurement began, if it has.
    pub(crate) measured_from: Option<SystemTime>,
    /// How the load was paced.
    pub(crate) pace: Pace,
    /// All clients, and how many of them publish.
    pub(crate) clients: usize,
    /// How many of them publish.
    pub(crate) publishers: u32,
    /// Threads of the generator.
    pub(crate) threads: usize,
    /// From the first connection to the last client ready.
    pub(crate) ramp: Duration,
    /// How many clients became ready.
    pub(crate) ready: usize,
    /// The measured interval.
    pub(crate) measured: Duration,
    /// CPU time of the generator in it.
    pub(crate) own_cpu: Duration,
    /// The broker, if its process was given.
    pub(crate) broker: Option<BrokerUsage>,
    /// Stopped by a signal.
    pub(crate) interrupted: bool,
}

/// What the broker's process has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BrokerUsage {
    /// Before the first connection.
    pub(crate) idle: Usage,
    /// At the beginning of the measured interval.
    pub(crate) before: Usage,
    /// At its end.
    pub(crate) after: Usage,
}

/// Why there is no outcome.
#[derive(Debug)]
pub(crate) struct Failure {
    /// A sentence.
    pub(crate) error: anyhow::Error,
    /// Whether the load had begun: otherwise it says nothing about the load.
    pub(crate) under_load: bool,
}

/// Does what the arguments say. `stop` ends it early, with what there is.
pub(crate) fn run(args: &Args, stop: &Arc<AtomicBool>) -> Result<Outcome, Failure> {
    let mut under_load = false;
    run_noting_load(args, stop, &mut under_load).map_err(|error| Failure { error, under_load })
}

fn run_noting_load(
    args: &Args,
    stop: &Arc<AtomicBool>,
    under_load: &mut bool,
) -> anyhow::Result<Outcome> {
    let layout = args.layout()?;
    let beside = Beside::new(args, &layout);
    let all_clients = layout.clients.len() + layout.beside;
    let threads = args.threads(layout.clients.len());
    allow_files(all_clients, threads)?;
    let usage = || args.pid.map(proc::usage).transpose();
    let idle = usage()?;
    let pace = args.pace(&layout);
    let clients = layout.clients.len();
    let publishers = layout.publishers;
    let settings = settings(args, &layout, pace, threads)?;

    let polls = (0..threads).map(|_| Poll::new()).collect::<Result<Vec<_>, _>>()?;
    let wakers = polls.iter().map(|poll| Waker::new(poll.registry(), WAKE));
    let wakers = wakers.collect::<Result<Vec<_>, _>>()?;
    let started = SystemTime::now();
    let shared = Shared::new(Clock::new(), Progress::new(threads, publishers), wakers);
    let planned = plan(layout, threads);

    let outcome: anyhow::Result<Outcome> = thread::scope(|scope| {
        let mut handles = Vec::with_capacity(threads);
        for ((index, poll), planned) in polls.into_iter().enumerate().zip(planned) {
            let (shared, settings) = (&shared, &settings);
            handles.push(scope.spawn(move || {
                let tally = if settings.grouped {
                    Worker::<GroupTracker>::new(index, shared, settings, poll, planned)
                        .and_then(Worker::run)
                } else {
                    Worker::<Tracker>::new(index, shared, settings, poll, planned)
                        .and_then(Worker::run)
                };
                if tally.is_err() {
                    shared.failed.store(true, Ordering::Release);
                }
                tally
            }));
        }
        let (settings, shared) = (&settings, &shared);
        let beside = scope.spawn(move || {
            let report = beside.run(settings, shared, stop);
            if report.is_err() {
                shared.failed.store(true, Ordering::Release);
            }
            report
        });
        let recorder = Recorder::new(shared, args.pid)?;
        let live = Live::new(args.conduct.quiet, pace.to_string());
        let mut steering = Steering { args, shared, stop, recorder, live };
        let steered = steering.through_phases(all_clients, usage);
        steering.live.clear();
        shared.enter(Phase::Stop);

        // The thread that failed knows more than the steering that noticed it.
        let mut merged = Tally::new()?;
        for handle in handles {
            let tally = handle.join().map_err(|_| anyhow!("a thread of the generator broke"))?;
            merged.merge(&tally?)?;
        }
        let broke = |_| anyhow!("a thread of the generator broke");
        let mut beside = beside.join().map_err(broke)??;
        if let Some(beside) = &mut beside {
            beside.settle(merged.sent);
        }
        let recorded = steering.recorder.finish()?;
        let measured_ns = shared.began_ns(Phase::Measure);
        let measured_from = started + Duration::from_nanos(measured_ns);
        let steered = steered?;
        let Steered { ramp, ready, measured, own_cpu, before, after } = steered;
        let broker = idle.zip(before).zip(after);
        Ok(Outcome {
            tally: merged,
            beside,
            recorded,
            started,
            measured_from: (measured_ns > 0).then_some(measured_from),
            pace,
            clients: all_clients,
            publishers,
            threads,
            ramp,
            ready,
            measured,
            own_cpu,
            broker: broker.map(|((idle, before), after)| BrokerUsage { idle, before, after }),
            interrupted: stop.load(Ordering::Relaxed),
        })
    });
    *under_load = shared.began_ns(Phase::WarmUp) > 0;
    if args.load.persistent {
        // Also after Ctrl-C or a failure: nobody else would end the sessions.
        let forgotten =
            Fleet::new(&settings, clients, stop).and_then(|mut fleet| fleet.forget(0..clients));
        return outcome.and_then(|outcome| forgotten.map(|()| outcome));
    }
    outcome
}

struct Steering<'a> {
    args: &'a Args,
    shared: &'a Shared,
    stop: &'a AtomicBool,
    recorder: Recorder<'a>,
    live: Live,
}

struct Steered {
    ramp: Duration,
    ready: usize,
    measured: Duration,
    own_cpu: Duration,
    before: Option<Usage>,
    after: Option<Usage>,
}

impl Steering<'_> {
    fn through_phases(
        &mut self,
        clients: usize,
        usage: impl Fn() -> anyhow::Result<Option<Usage>>,
    ) -> anyhow::Result<Steered> {
        self.ramp(clients)?;
        // The clock began with the first connection, as did the schedule of connections.
        let ramp = Duration::from_nanos(self.shared.clock.now_ns());
        let ready = self.shared.ready.load(Ordering::Acquire);
        let connect_only = self.args.scenario == Scenario::Connect;
        if !connect_only && ready == clients {
            self.shared.enter(Phase::WarmUp);
            self.wait(self.args.warmup)?;
        }
        let before = usage()?;
        let cpu_before = proc::own_cpu();
        let measured_from = Instant::now();
        if connect_only {
            self.wait(self.args.hold)?;
        } else if !self.is_stopped() {
            self.shared.enter(Phase::Measure);
            self.wait(self.args.duration)?;
        }
        let measured = measured_from.elapsed();
        let own_cpu = proc::own_cpu().saturating_sub(cpu_before);
        let after = usage().context("the broker has stopped during the run")?;
        if !connect_only {
            self.shared.enter(Phase::Drain);
            self.drain()?;
        }
        Ok(Steered { ramp, ready, measured, own_cpu, before, after })
    }

    /// Waits until all clients are ready, with a progress bar where somebody looks.
    fn ramp(&mut self, clients: usize) -> anyhow::Result<()> {
        let bar = self.live.connecting(clients);
        let ramped = self.wait_until_ready(clients, &bar);
        bar.finish_and_clear();
        ramped
    }

    fn wait_until_ready(&mut self, clients: usize, bar: &ProgressBar) -> anyhow::Result<()> {
        let mut moved = (0, Instant::now());
        loop {
            let ready = self.shared.ready.load(Ordering::Acquire);
            bar.set_position(ready as u64);
            if ready == clients || self.is_stopped() {
                return Ok(());
            }
            if ready != moved.0 {
                moved = (ready, Instant::now());
            }
            if moved.1.elapsed() > RAMP_STALL {
                let stall_s = RAMP_STALL.as_secs();
                bail!("only {ready} of {clients} clients connected, and none in {stall_s} seconds");
            }
            self.check_threads()?;
            self.recorder.look()?;
            // Short: the time until the last client is ready is a result.
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while !self.is_stopped() {
            self.check_threads()?;
            if self.recorder.look()?
                && let Some(second) = self.recorder.last()
            {
                let gone = time.saturating_sub(until.saturating_duration_since(Instant::now()));
                self.live.show(self.shared.phase(), gone, time, second);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(TICK));
        }
        Ok(())
    }

    fn drain(&mut self) -> anyhow::Result<()> {
        let silence = match self.args.qos() {
            Qos::AtMostOnce => DRAIN_SILENCE_QOS_0,
            Qos::AtLeastOnce | Qos::ExactlyOnce => DRAIN_SILENCE,
        };
        let began = Instant::now();
        let mut moved = (self.shared.progress_of_drain(), began);
        while !self.shared.is_complete() {
            let progress = self.shared.progress_of_drain();
            if progress != moved.0 {
                moved = (progress, Instant::now());
            }
            let most = if self.is_stopped() { DRAIN_STOPPED_MAX } else { DRAIN_MAX };
            if moved.1.elapsed() > silence || began.elapsed() > most {
                break;
            }
            self.check_threads()?;
            self.recorder.look()?;
            thread::sleep(TICK);
        }
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn check_threads(&self) -> anyhow::Result<()> {
        if self.shared.failed.load(Ordering::Acquire) {
            bail!("a thread of the generator gave up");
        }
        Ok(())
    }
}

/// What all threads are told.
pub(crate) fn settings(
    args: &Args,
    layout: &Layout,
    pace: Pace,
    threads: usize,
) -> anyhow::Result<Settings> {
    let target = args.target()?;
    let all_clients = layout.clients.len() + layout.beside;
    Ok(Settings {
        target,
        wire: args.load.wire()?,
        qos: args.qos(),
        payload_bytes: args.payload,
        pace,
        receivers: layout.receivers,
        stride: layout.stride,
        grouped: layout.grouped,
        run: args.seed.unwrap_or_else(run_number),
        clients: layout.clients.len(),
        publishers: layout.publishers,
        session: args.load.session(),
        arrival: match args.load.connect_rate {
            Some(rate) => Arrival::Rate(rate),
            None => Arrival::Concurrent((args.concurrent as usize).div_ceil(threads)),
        },
        sources: source::addresses(target, &args.load.source, all_clients)?,
        keep_alive_s: args.load.keep_alive,
        client_prefix: args.client_prefix.clone(),
        user_name: args.username.clone(),
        password: args.password.clone(),
    })
}

/// Different for runs that follow or accompany one another: time and process, mixed.
fn run_number() -> u32 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let time = time.map_or(0, |time| time.as_micros() as u64);
    let mixed = (time ^ (u64::from(std::process::id()) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as u32
}

/// Clients per thread, numbered over all.
fn plan(layout: Layout, threads: usize) -> Vec<Vec<Planned>> {
    let mut planned = vec![Vec::new(); threads];
    let places = layout.threads(threads);
    for ((number, role), place) in layout.clients.into_iter().enumerate().zip(places) {
        planned[place].push(Planned { number, role });
    }
    planned
}

/// Raises the limit of open files as far as this run needs and the system lets.
pub(crate) fn allow_files(clients: usize, threads: usize) -> anyhow::Result<()> {
    let needed = clients as u64 + threads as u64 * FILES_PER_THREAD + FILES_BESIDE;
    let allowed = rlimit::increase_nofile_limit(needed).unwrap_or(0);
    if allowed < needed && rlimit::setrlimit(rlimit::Resource::NOFILE, needed, needed).is_err() {
        bail!(
            "{clients} clients need {needed} open files and the system allows {allowed}: \
             raise the hard limit (`ulimit -Hn {needed}`), or give fewer --clients"
        );
    }
    Ok(())
}
