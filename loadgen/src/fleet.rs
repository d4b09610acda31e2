//! A number of connections on one thread that are led through steps: connect, send, receive, leave.
//! For the scenarios in `steps`; the steady load is `worker`'s, which this leaves alone. Clients,
//! handshakes, frames and parsing are the same.
//!
//! What a client does once it is ready is up to a [`Play`], which is given what it receives and asked
//! for what it sends.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

use crate::client::{Client, Part, Stage};
use crate::clock::Clock;
use crate::handshake::{Login, Session};
use crate::ping::{PINGREQ, Pinger};
use crate::receive::{self, Broken};
use crate::settings::Settings;
use crate::source;
use crate::tally::histogram;
use crate::timer::Timer;

pub(crate) mod receiver;
pub(crate) mod sender;

const EVENTS_PER_TURN: usize = 256;
const SCRATCH_BYTES: usize = 256 * 1024;
/// How long a turn waits when nothing happens.
const TICK: Duration = Duration::from_millis(50);
/// Connecting has failed when no client has become ready for so long.
const STALL: Duration = Duration::from_secs(15);
/// What has not arrived does not come any more when nothing has for so long.
const SILENCE: Duration = Duration::from_secs(5);
/// Pause before failed connections are tried again, when no others come about.
const RETRY: Duration = Duration::from_millis(10);
const TIMER: Token = Token(usize::MAX);
const PINGRESP: u8 = 0xd0;

/// What clients do once they are ready.
pub(crate) trait Play {
    /// Takes all whole packets at the start of `bytes`; says how long they are. Answers go into the
    /// control buffer of the client.
    fn take(&mut self, number: usize, client: &mut Client, bytes: &[u8]) -> Result<usize, Broken>;

    /// Makes more ready to be written, if there is more; it is asked again when that is written.
    fn refill(&mut self, client: &mut Client) -> bool;
}

/// Waits and answers nothing but what the protocol asks for.
pub(crate) struct Idle;

impl Play for Idle {
    fn take(&mut self, _: usize, client: &mut Client, bytes: &[u8]) -> Result<usize, Broken> {
        Ok(receive::as_publisher(bytes, &mut client.control)?.0)
    }

    fn refill(&mut self, _client: &mut Client) -> bool {
        false
    }
}

/// See the module.
pub(crate) struct Fleet<'a> {
    settings: &'a Settings,
    /// Ends every wait early; `None` once it has and only tidying up is left.
    stop: Option<&'a AtomicBool>,
    /// One for all steps.
    pub(crate) clock: Clock,
    poll: Poll,
    events: Events,
    timer: Timer,
    /// By their number; `None` for one that is not connected.
    clients: Vec<Option<Client>>,
    /// What the first one is called: the number of clients of the run that others lead.
    pub(crate) others: usize,
    /// Whether the broker may close connections; `None` when that ends the run, otherwise how many it
    /// has closed.
    pub(crate) closed: Option<usize>,
    /// Bytes that the system keeps for a client to read; `None` for its choice.
    pub(crate) receive_buffer_bytes: Option<usize>,
    /// Handshakes under way.
    opening: usize,
    /// Clients whose connections did not come about, and when each was first asked for.
    failed: Vec<(usize, u64)>,
    /// Handshakes that have succeeded.
    shaken: u64,
    pinger: Pinger,
    /// Clients to be flushed at the end of the turn.
    touched: Vec<usize>,
    scratch: Vec<u8>,
    /// Connections that the broker refused or cut before CONNACK and that were tried again.
    pub(crate) retries: u64,
    /// From asking for a connection to CONNACK, attempts that failed included, since it was last taken.
    pub(crate) connect_ns: Histogram<u64>,
}

impl<'a> Fleet<'a> {
    /// So many clients, none of them connected.
    pub(crate) fn new(
        settings: &'a Settings,
        clients: usize,
        stop: &'a AtomicBool,
    ) -> anyhow::Result<Self> {
        let poll = Poll::new().context("poll")?;
        Ok(Self {
            settings,
            stop: Some(stop),
            clock: Clock::new(),
            timer: Timer::new(poll.registry(), TIMER).context("timer")?,
            poll,
            others: 0,
            closed: None,
            receive_buffer_bytes: None,
            events: Events::with_capacity(EVENTS_PER_TURN),
            clients: (0..clients).map(|_| None).collect(),
            opening: 0,
            failed: Vec::new(),
            shaken: 0,
            pinger: Pinger::new(settings.keep_alive_s),
            touched: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES.max(2 * (settings.payload_bytes + 70_000))],
            retries: 0,
            connect_ns: histogram()?,
        })
    }

    /// Whether somebody wants the end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// From now on nothing is cut short: for tidying up.
    pub(crate) fn ignore_stop(&mut self) {
        self.stop = None;
    }

    /// The client of that number, while it is connected.
    pub(crate) fn client(&mut self, number: usize) -> Option<&mut Client> {
        self.clients[number].as_mut()
    }

    /// Connects these clients, `concurrent` at a time, each in the part that it is given, until all
    /// are ready or somebody wants the end. A connection that does not come about is tried again.
    pub(crate) fn connect(
        &mut self,
        numbers: Range<usize>,
        concurrent: usize,
        session: Session,
        mut part: impl FnMut(usize) -> Part,
        play: &mut impl Play,
    ) -> anyhow::Result<()> {
        let mut next = numbers.start;
        let mut patience = Patience::new(STALL);
        self.failed.clear();
        while next < numbers.end || self.opening > 0 {
            if self.is_stopped() {
                return Ok(());
            }
            while next < numbers.end && self.opening < concurrent {
                self.open(next, session, part(next), self.clock.now_ns())?;
                next += 1;
            }
            let shaken = self.shaken;
            self.turn(play)?;
            let failed = std::mem::take(&mut self.failed);
            if !failed.is_empty() && self.shaken == shaken {
                std::thread::sleep(RETRY);
            }
            for (number, since_ns) in failed {
                self.retries += 1;
                self.open(number, session, part(number), since_ns)?;
            }
            if !patience.goes_on(self.shaken > shaken) {
                let ready = next - numbers.start - self.opening;
                let (all, stall_s) = (numbers.len(), STALL.as_secs());
                let retries = self.retries;
                bail!(
                    "only {ready} of {all} clients connected, and none in {stall_s} seconds; \
                     {retries} attempts failed"
                );
            }
        }
        Ok(())
    }

    /// Sends SUBSCRIBE from a client that is ready; it is ready again with SUBACK.
    pub(crate) fn subscribe(&mut self, number: usize, filter: &str) {
        let Some(client) = &mut self.clients[number] else { return };
        let Part::Subscriber(subscriber) = &mut client.part else { return };
        subscriber.filters = vec![filter.to_owned()];
        if client.say_subscribe(self.settings.wire.version, self.settings.qos) {
            client.stage = Stage::Subscribing;
            self.opening += 1;
            self.touch(number);
        }
    }

    /// Turns the wheel until `is_done`, or somebody wants the end, or nothing moves any more. True
    /// when it is done.
    pub(crate) fn until<P: Play>(
        &mut self,
        play: &mut P,
        is_done: impl Fn(&P) -> bool,
    ) -> anyhow::Result<bool> {
        let mut patience = Patience::new(SILENCE);
        while !is_done(play) {
            if self.is_stopped() {
                return Ok(false);
            }
            // What needs no answer may be over with the writing: do not wait for an event then.
            self.flush(play)?;
            if is_done(play) {
                break;
            }
            let moved = self.turn(play)?;
            if !patience.goes_on(moved) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the broker has read everything that these clients have sent: it then answers
    /// their PINGREQ.
    pub(crate) fn settle(&mut self, numbers: Range<usize>) -> anyhow::Result<bool> {
        let mut asked = 0;
        for number in numbers {
            if let Some(client) = &mut self.clients[number] {
                client.control.extend_from_slice(&PINGREQ);
                asked += 1;
                self.touch(number);
            }
        }
        let mut answers = Answers { count: 0 };
        self.until(&mut answers, |answers| answers.count >= asked)
    }

    /// Lets these clients be flushed in the next turn.
    pub(crate) fn touch_all(&mut self, numbers: Range<usize>) {
        self.touched.extend(numbers);
    }

    /// These clients take leave.
    pub(crate) fn disconnect(&mut self, numbers: Range<usize>) {
        for number in numbers {
            if let Some(mut client) = self.part_with(number) {
                client.say_disconnect();
            }
        }
    }

    /// The connections of these clients end at once and without a word, as when a network fails.
    pub(crate) fn cut(&mut self, numbers: Range<usize>) {
        for number in numbers {
            if let Some(client) = self.part_with(number) {
                // RST instead of FIN; where that cannot be had, FIN will do.
                let _ = SockRef::from(&client.socket).set_linger(Some(Duration::ZERO));
            }
        }
    }

    /// Ends the sessions of these clients at the broker, whether or not they are connected.
    pub(crate) fn forget(&mut self, numbers: Range<usize>) -> anyhow::Result<()> {
        self.ignore_stop();
        self.disconnect(numbers.clone());
        self.connect(numbers.clone(), 50, Session::Clean, |_| Part::Idle, &mut Idle)?;
        self.disconnect(numbers);
        Ok(())
    }

    /// Takes a client out, whose handshake may still be under way.
    fn part_with(&mut self, number: usize) -> Option<Client> {
        let client = self.clients[number].take()?;
        self.opening -= usize::from(client.stage != Stage::Ready);
        Some(client)
    }

    fn open(
        &mut self,
        number: usize,
        session: Session,
        part: Part,
        since_ns: u64,
    ) -> anyhow::Result<()> {
        let settings = self.settings;
        let source = source::of(&settings.sources, self.others + number);
        let buffer = self.receive_buffer_bytes;
        let mut client = Client::open(settings.target, source, buffer, part, since_ns)
            .with_context(|| format!("connection {number} to {}", settings.target))?;
        client.say_connect(
            settings.wire,
            Login {
                client_id: &settings.client_id(self.others + number),
                session,
                keep_alive_s: settings.keep_alive_s,
                user_name: settings.user_name.as_deref(),
                password: settings.password.as_deref(),
            },
        );
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut client.socket, Token(number), interest)?;
        self.clients[number] = Some(client);
        self.opening += 1;
        self.touch(number);
        Ok(())
    }

    /// Lets this client be flushed in the next turn.
    pub(crate) fn touch(&mut self, number: usize) {
        self.touched.push(number);
    }

    /// As [`Fleet::turn`], which ends in so many nanoseconds if it has nothing to do.
    pub(crate) fn turn_within(&mut self, play: &mut impl Play, time_ns: u64) -> anyhow::Result<()> {
        self.timer.set(time_ns).context("timer")?;
        self.turn(play)?;
        Ok(())
    }

    /// Reads at most so many bytes of what has arrived for a client, and answers.
    pub(crate) fn sip(
        &mut self,
        number: usize,
        bytes: usize,
        play: &mut impl Play,
    ) -> anyhow::Result<()> {
        let Some(mut client) = self.clients[number].take() else { return Ok(()) };
        let mut scratch = std::mem::take(&mut self.scratch);
        let until = scratch.len().min(client.partial.len() + bytes);
        let went = self.read_once(number, &mut client, &mut scratch[..until], play);
        self.scratch = scratch;
        let went = went.and_then(|_| Ok(client.flush()?));
        self.put_back(number, client, went)
    }

    /// Lets the clients whose turn it is say that they are there.
    pub(crate) fn ping(&mut self) {
        let now_ns = self.clock.now_ns();
        while self.pinger.is_on()
            && let Some(number) = self.pinger.next(self.clients.len(), now_ns)
        {
            if let Some(client) = &mut self.clients[number]
                && client.stage == Stage::Ready
            {
                client.control.extend_from_slice(&PINGREQ);
                self.touched.push(number);
            }
        }
    }

    /// Reads what has arrived, and writes what there is. True when anything has arrived.
    fn turn(&mut self, play: &mut impl Play) -> anyhow::Result<bool> {
        self.ping();
        self.flush(play)?;
        // Whatever happens, events and buffer stay: there may be tidying up to do.
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let taken = self.take_events(&mut events, play);
        self.events = events;
        let moved = taken?;
        self.flush(play)?;
        Ok(moved)
    }

    fn take_events(&mut self, events: &mut Events, play: &mut impl Play) -> anyhow::Result<bool> {
        match self.poll.poll(events, Some(TICK)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            waited => waited.context("poll")?,
        }
        for event in events.iter() {
            let Token(number) = event.token();
            if event.token() == TIMER {
                continue;
            }
            let closed = event.is_read_closed() || event.is_error();
            if event.is_readable() || closed {
                self.read(number, closed, play)?;
            }
            self.touch(number);
        }
        Ok(!events.is_empty())
    }

    fn read(&mut self, number: usize, closed: bool, play: &mut impl Play) -> anyhow::Result<()> {
        let Some(mut client) = self.clients[number].take() else { return Ok(()) };
        let mut scratch = std::mem::take(&mut self.scratch);
        let went = loop {
            match self.read_once(number, &mut client, &mut scratch, play) {
                Ok(Some(more)) if more || closed => {}
                Ok(_) => break Ok(()),
                Err(ended) => break Err(ended),
            }
        };
        self.scratch = scratch;
        self.put_back(number, client, went)
    }

    /// `None` when there was nothing to read; otherwise whether there may be more.
    fn read_once(
        &mut self,
        number: usize,
        client: &mut Client,
        scratch: &mut [u8],
        play: &mut impl Play,
    ) -> Result<Option<bool>, Ended> {
        let Some((filled, more)) = client.fill(scratch)? else { return Ok(None) };
        let used = self
            .digest(number, client, &scratch[..filled], play)
            .map_err(|error| Ended::Said(error.context(format!("client {number}"))))?;
        client.partial.extend_from_slice(&scratch[used..filled]);
        Ok(Some(more))
    }

    /// Where nothing is wrong with its connection, a client goes back to its place.
    fn put_back(
        &mut self,
        number: usize,
        client: Client,
        went: Result<(), Ended>,
    ) -> anyhow::Result<()> {
        match went {
            Ok(()) => {
                self.clients[number] = Some(client);
                Ok(())
            }
            Err(Ended::Closed(error)) => self.broken(number, client.stage, error),
            Err(Ended::Said(error)) => {
                // In MQTT 5 a broker says so before it closes a connection.
                if let Some(Broken::Disconnected(_)) = error.downcast_ref()
                    && let Some(closed) = &mut self.closed
                {
                    *closed += 1;
                    return Ok(());
                }
                self.clients[number] = Some(client);
                Err(error)
            }
        }
    }

    fn digest(
        &mut self,
        number: usize,
        client: &mut Client,
        bytes: &[u8],
        play: &mut impl Play,
    ) -> anyhow::Result<usize> {
        if client.stage == Stage::Ready {
            return Ok(play.take(number, client, bytes)?);
        }
        let shaken = client.shake_hands(bytes, self.settings.wire, self.settings.qos)?;
        if let Some(since_ns) = shaken.since_ns {
            let took_ns = self.clock.now_ns().saturating_sub(since_ns);
            self.connect_ns.saturating_record(took_ns);
        }
        if let Some(wished_s) = shaken.keep_alive_s {
            self.pinger.hurry(wished_s);
        }
        if client.stage != Stage::Ready {
            return Ok(shaken.used);
        }
        self.opening -= 1;
        self.shaken += 1;
        Ok(shaken.used + play.take(number, client, &bytes[shaken.used..])?)
    }

    fn flush(&mut self, play: &mut impl Play) -> anyhow::Result<()> {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for &number in &touched {
            let Some(mut client) = self.clients[number].take() else { continue };
            let flushed = loop {
                let refilled = client.stage == Stage::Ready && play.refill(&mut client);
                if let Err(error) = client.flush() {
                    break Err(error);
                }
                if !refilled || !client.is_flushed() {
                    break Ok(());
                }
            };
            self.put_back(number, client, flushed.map_err(Ended::Closed))?;
        }
        touched.clear();
        self.touched = touched;
        Ok(())
    }

    /// A connection that ends before CONNACK may be tried again; later it ends the run.
    fn broken(&mut self, number: usize, stage: Stage, error: io::Error) -> anyhow::Result<()> {
        let target = self.settings.target;
        self.opening -= usize::from(stage != Stage::Ready);
        if let Stage::Connecting { since_ns } = stage {
            if self.shaken == 0 {
                return Err(anyhow!(error).context(format!(
                    "no broker answers at {target}: start one with `just run`, \
                     or say where it is with --addr HOST:PORT"
                )));
            }
            self.failed.push((number, since_ns));
            return Ok(());
        }
        if let Some(closed) = &mut self.closed {
            *closed += 1;
            return Ok(());
        }
        Err(anyhow!(error).context(format!(
            "the broker at {target} closed the connection of client {number} during the run"
        )))
    }
}

/// Why no more is read from a client.
enum Ended {
    /// Its connection has ended.
    Closed(io::Error),
    /// What the broker said ends it.
    Said(anyhow::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Closed(error)
    }
}

/// Counts PINGRESP.
struct Answers {
    count: usize,
}

impl Play for Answers {
    fn take(&mut self, _: usize, _: &mut Client, bytes: &[u8]) -> Result<usize, Broken> {
        let mut used = 0;
        while let Some(frame) = receive::next_frame(&bytes[used..])? {
            used += frame.bytes.len();
            self.count += usize::from(frame.bytes[0] == PINGRESP);
        }
        Ok(used)
    }

    fn refill(&mut self, _client: &mut Client) -> bool {
        false
    }
}

/// Runs out when nothing moves.
struct Patience {
    moved: Instant,
    time: Duration,
}

impl Patience {
    fn new(time: Duration) -> Self {
        Self { moved: Instant::now(), time }
    }

    fn goes_on(&mut self, moved: bool) -> bool {
        if moved {
            self.moved = Instant::now();
        }
        self.moved.elapsed() < self.time
    }
}
