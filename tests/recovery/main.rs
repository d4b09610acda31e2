//! The broker is killed by SIGKILL again and again, at any moment, and loses nothing that it has acknowledged.
//!
//! The real binary runs on one directory. While it lives, publishers publish at QoS 1 and 2, others set and clear
//! retained messages or leave wills, and subscribers with persistent sessions take what comes; all of them speak
//! through sockets, each in a thread of its own. After 5 to 300 ms it is killed, and started again on what it has left;
//! sometimes it is killed while it starts. The clients come back and go on as the standard says: what was not
//! acknowledged is sent again with its identifier. After the last start everything is drained, and then:
//!
//! - each message whose PUBACK or PUBREC came is with everybody who was subscribed, QoS 2 exactly once ([`history`]);
//! - messages of one publisher, topic and QoS came in their order;
//! - retained messages are the newest acknowledged ones, or newer ([`retained`]);
//! - sessions and subscriptions were there at each return, without another SUBSCRIBE ([`subscriber`]);
//! - the wills of the clients that were connected at a kill were published ([`mourner`]);
//! - the broker has ended no connection by itself ([`stage`]).
//!
//! What time does while the broker is down is tested in [`downtime`], step by step, and what becomes of a message whose
//! bytes have changed on the disk in [`damage`].
//!
//! The same clients also run while the power of the broker's disk is cut ([`power`]), and while nothing but their
//! connections is cut ([`proxy`]), which shows that they are right.
//!
//! `RECOVERY_KILLS` says how often it is killed, `RECOVERY_CUTS` how often the connections are cut, `RECOVERY_SEED=N`
//! makes the same choices again; the scheduling is the machine's. `just kill N` does it with the broker as it is
//! released. See [`server`] for the arguments of the broker. When a test fails the directory is kept.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may"
)]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../it/broker.rs"]
mod broker;
mod damage;
mod downtime;
mod formats;
mod history;
mod limits;
mod link;
mod message;
mod mourner;
mod power;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../it/process.rs"]
mod process;
mod proxy;
mod publisher;
mod repertoire;
mod retained;
mod server;
mod stage;
mod subscriber;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../it/wire.rs"]
mod wire;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fastrand::Rng;
use mailboxqtt::ids::ProtocolVersion::{self, V5, V311};
use tempfile::TempDir;

use crate::history::{Filter, Inbox, Published, Sent};
use crate::mourner::Mourner;
use crate::proxy::Proxy;
use crate::publisher::Kind::{self, Clean, Persistent};
use crate::publisher::{Progress, Publisher};
use crate::repertoire::Repertoire;
use crate::server::{Server, kill_while_starting};
use crate::stage::{Act, Stage, Visit};
use crate::subscriber::{Manners, Memory, Subscriber};

/// Kills where nobody says otherwise.
const KILLS: u64 = 20;
/// Cuts of all connections, likewise.
const CUTS: u64 = 10;
/// Violations that are told with their stories, per inbox.
const STORIES_MAX: usize = 5;
/// One start in so many is cut short, too.
const STARTS_PER_KILL: u8 = 4;

const CALM: Manners = Manners { receive_max: None, held_max: 20, present_in: 1, wanders: false };

#[test]
fn nothing_acknowledged_is_lost_however_often_the_broker_is_killed() {
    let kills = number("RECOVERY_KILLS").unwrap_or(KILLS);
    let directory = DataDir::new();
    let (mut cut_starts, mut longest_start) = (0, Duration::ZERO);
    let mut is_begun = false;
    trial(kills, |rng| {
        while is_begun && rng.u8(..STARTS_PER_KILL) == 0 {
            kill_while_starting(directory.path(), Duration::from_millis(rng.u64(..40)));
            cut_starts += 1;
        }
        is_begun = true;
        let server = Server::start(directory.path());
        longest_start = longest_start.max(server.start_time());
        Life { addr: server.addr(), end: Box::new(move || server.kill()) }
    });
    println!("{kills} kills, {cut_starts} more at a start; longest start {longest_start:?}");
}

/// The clients and the judgement of this test are right: where the broker lives on they find nothing wrong.
#[test]
fn nothing_acknowledged_is_lost_however_often_the_connections_are_cut() {
    let directory = DataDir::new();
    let server = Server::start(directory.path());
    trial(number("RECOVERY_CUTS").unwrap_or(CUTS), |_| {
        let proxy = Proxy::start(server.addr());
        Life { addr: proxy.addr(), end: Box::new(move || proxy.cut()) }
    });
    server.stop();
}

/// A broker that can be connected to, until it ends.
struct Life {
    addr: SocketAddr,
    /// The broker of the last life is dropped instead.
    end: Box<dyn FnOnce()>,
}

/// All clients through `ends` lives and the one behind them, and the judgement.
fn trial(ends: u64, start: impl FnMut(&mut Rng) -> Life) {
    let seed = number("RECOVERY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("RECOVERY_SEED={seed}, {ends} times");
    let inboxes = inboxes();
    let subscribers = subscribers(&inboxes);
    let stage = Arc::new(Stage::new(subscribers.len()));
    let subscribers: Vec<JoinHandle<()>> = subscribers
        .into_iter()
        .enumerate()
        .map(|(index, mut subscriber)| {
            subscriber.rng = rng(seed, 100 + index);
            subscriber.stage = stage.clone();
            thread::spawn(move || subscriber.live())
        })
        .collect();
    let publishers = start_publishers(seed, &stage);

    let last = live_and_die(&stage, ends, rng(seed, 0), start);
    stage.begin(Act::Finishing);
    let published: Vec<Vec<Sent>> =
        publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect();
    let published = Published(published);
    for inbox in &inboxes {
        inbox.lock().unwrap().demand(&published);
    }
    stage.begin(Act::Draining);
    subscribers.into_iter().for_each(|subscriber| subscriber.join().unwrap());
    let retained = retained::read(last.addr, &published);
    drop(last);

    let inboxes: Vec<_> = inboxes.iter().map(|inbox| inbox.lock().unwrap()).collect();
    let mut wrong = stage.complaints();
    for inbox in &inboxes {
        wrong.extend(told(inbox, &published));
    }
    wrong.extend(retained::violations(&published, &retained));
    summarize(&published, inboxes.iter().map(|inbox| &**inbox), retained.len());
    assert!(wrong.is_empty(), "RECOVERY_SEED={seed}, {ends} times\n{}", wrong.join("\n"));
}

/// One life after the other; returns the last one.
fn live_and_die(
    stage: &Stage,
    ends: u64,
    mut rng: Rng,
    mut start: impl FnMut(&mut Rng) -> Life,
) -> Life {
    for number in 1.. {
        let life = start(&mut rng);
        let is_last = u64::from(number) > ends;
        stage.open(Visit { life: number, addr: life.addr, is_last });
        if number == 1 {
            stage.wait_until_ready();
            stage.begin(Act::Running);
        }
        // The random moment of the end.
        thread::sleep(Duration::from_millis(rng.u64(5..300)));
        if is_last {
            return life;
        }
        stage.close();
        (life.end)();
    }
    unreachable!("more lives than numbers")
}

/// All that can have messages, by the filters that bring them.
fn inboxes() -> Vec<Arc<Mutex<Inbox>>> {
    let inbox = |name: &'static str, filters: &[(&'static str, u8)]| {
        let filters = filters.iter().map(|&(text, qos)| Filter { text, qos }).collect();
        Arc::new(Mutex::new(Inbox::new(name, filters)))
    };
    vec![
        inbox("everything", &[("live/#", 2), ("will/+", 2)]),
        inbox(
            "exact",
            &[("live/p0/0/q1", 2), ("live/p0/1/q2", 2), ("live/p3/0/q2", 2), ("live/p1/0/q1", 2)],
        ),
        inbox("one-level", &[("live/+/0/+", 2)]),
        inbox("absent", &[("live/#", 2)]),
        inbox("overlapping", &[("live/p1/#", 2), ("live/+/1/+", 1), ("live/p1/1/q2", 2)]),
        inbox("overlapping-old", &[("live/p0/#", 1), ("live/+/0/#", 2)]),
        inbox("narrow", &[("live/p2/#", 2), ("live/p3/#", 2)]),
        inbox("wanderer", &[("live/+/2/#", 2)]),
        inbox("shared", &[("$share/crew/live/#", 2)]),
        inbox("wills", &[("will/#", 1)]),
    ]
}

fn subscribers(inboxes: &[Arc<Mutex<Inbox>>]) -> Vec<Subscriber> {
    let subscriber = |of: &str, member: u8, version: ProtocolVersion, manners: Manners| {
        let inbox = inboxes.iter().find(|inbox| inbox.lock().unwrap().name == of).unwrap().clone();
        Subscriber {
            name: format!("{of}-{member}"),
            version,
            member,
            inbox,
            manners,
            rng: Rng::new(),
            stage: Arc::new(Stage::new(0)),
            memory: Memory::default(),
        }
    };
    vec![
        subscriber("everything", 0, V311, CALM),
        subscriber("exact", 0, V311, CALM),
        subscriber("one-level", 0, V5, Manners { held_max: 0, ..CALM }),
        subscriber("absent", 0, V5, Manners { present_in: 4, ..CALM }),
        subscriber("overlapping", 0, V5, CALM),
        subscriber("overlapping-old", 0, V311, Manners { present_in: 2, ..CALM }),
        subscriber("narrow", 0, V5, Manners { receive_max: Some(4), held_max: 3, ..CALM }),
        subscriber("wanderer", 0, V5, Manners { wanders: true, ..CALM }),
        subscriber("shared", 0, V5, CALM),
        subscriber("shared", 1, V5, Manners { receive_max: Some(8), held_max: 7, ..CALM }),
        subscriber("shared", 2, V5, Manners { present_in: 3, ..CALM }),
        subscriber("wills", 0, V5, CALM),
    ]
}

/// In the order of their indices.
fn start_publishers(seed: u64, stage: &Arc<Stage>) -> Vec<JoinHandle<Vec<Sent>>> {
    let publisher = |index: u8, name, version, kind: Kind, repertoire: fn(u8) -> Repertoire| {
        let (stage, rng) = (stage.clone(), rng(seed, 200 + usize::from(index)));
        let (repertoire, progress) = (repertoire(index), Progress::default());
        let publisher = Publisher { index, name, version, kind, repertoire, rng, stage, progress };
        thread::spawn(move || publisher.live())
    };
    let mourner = |index, name, version| {
        let (stage, sent, is_established) = (stage.clone(), Vec::new(), false);
        let mourner = Mourner { index, name, version, stage, is_established, sent };
        thread::spawn(move || mourner.live())
    };
    vec![
        publisher(0, "persistent-old", V311, Persistent, Repertoire::live),
        publisher(1, "persistent", V5, Persistent, Repertoire::live),
        publisher(2, "clean-old", V311, Clean, Repertoire::live),
        publisher(3, "clean", V5, Clean, Repertoire::live),
        publisher(4, "retaining", V5, Persistent, Repertoire::retained),
        publisher(5, "retaining-clean-old", V311, Clean, Repertoire::retained),
        mourner(6, "mourner-old", V311),
        mourner(7, "mourner", V5),
    ]
}

/// What is wrong with an inbox, the first of it with all that is known.
fn told(inbox: &Inbox, published: &Published) -> Vec<String> {
    let violations = inbox.violations(published);
    let mut told: Vec<String> = violations
        .iter()
        .take(STORIES_MAX)
        .map(|violation| {
            format!("{}: {violation}\n{}", inbox.name, inbox.story(violation.key(), published))
        })
        .collect();
    if violations.len() > STORIES_MAX {
        told.push(format!("{}: and {} more", inbox.name, violations.len() - STORIES_MAX));
    }
    told
}

fn summarize<'i>(published: &Published, inboxes: impl Iterator<Item = &'i Inbox>, retained: usize) {
    let count = |is_counted: fn(&Sent) -> bool| {
        published.iter().filter(|(_, sent)| is_counted(sent)).count()
    };
    println!(
        "{} messages sent, {} of them again, {} accepted; {retained} retained messages",
        count(|_| true),
        count(|sent| !sent.again.is_empty()),
        count(|sent| sent.accepted.is_some()),
    );
    for inbox in inboxes {
        let arrivals = inbox.arrivals();
        let dup = arrivals.iter().filter(|arrival| arrival.dup).count();
        let repeated = arrivals.iter().filter(|arrival| arrival.is_repeated).count();
        let count = arrivals.len();
        println!("{:16} {count} arrivals, {dup} with DUP, {repeated} repeated", inbox.name);
    }
}

fn rng(seed: u64, index: usize) -> Rng {
    Rng::with_seed(seed.wrapping_mul(1 << 20).wrapping_add(index as u64))
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// The directory of a broker; kept when the test fails.
struct DataDir(Option<TempDir>);

impl DataDir {
    fn new() -> Self {
        Self(Some(TempDir::with_prefix("mailboxqtt-recovery-").unwrap()))
    }

    fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if let Some(directory) = self.0.take()
            && thread::panicking()
        {
            eprintln!("the broker's directory is {}", directory.keep().display());
        }
    }
}
