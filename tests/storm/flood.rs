//! Floods: clients that ask for more memory than there is, in every way that the protocol has.
//!
//! Each [`kinds::KINDS`] gets a broker of its own that may use [`CONTAINER_BYTES`]: where this process may make
//! control groups (Linux, as root), the broker runs in one with that limit, and the system kills it if it takes
//! more. Its `memory_bytes_max` is what [limits](../../docs/limits.md) advises for such a container. All other limits
//! are out of the way. What is asserted is that the broker never dies, that a client who came before the flood is
//! served all the time, that one with a session can come back in the middle of it, and that new ones can when the
//! flood is over. What it took is printed as a table.
//!
//! `just flood` runs all kinds against the broker as it is released; `FLOOD=WORDS` only those that have these words in
//! their name. Without it only [`QUICK`] are run.

mod broker;
mod kinds;
mod tide;

use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::ids::ProtocolVersion::V5;

use self::broker::Broker;
use self::kinds::{KINDS, Kind};
use self::tide::Tide;
use crate::process::PATIENCE;
use crate::wire::{Client, Got, Hello};

/// What the broker may use before it is killed.
const CONTAINER_BYTES: u64 = 256 << 20;
/// Its `memory_bytes_max`.
const MEMORY_BYTES_MAX: u64 = CONTAINER_BYTES / 4 * 3;
/// What is run where nobody asks for more: takes seconds with a development build, too.
const QUICK: &str = "half CONNECTs";
/// Every client that floods has gone, and the allocator gives back what they had: far over what that takes.
const EBB: Duration = Duration::from_secs(60);

#[test]
fn broker_survives_floods_and_serves_on() {
    rlimit::increase_nofile_limit(rlimit::INFINITY).unwrap();
    let wanted = std::env::var("FLOOD").unwrap_or_else(|_| QUICK.to_owned());
    let kinds: Vec<_> = KINDS.iter().filter(|kind| kind.name.contains(&wanted)).collect();
    assert!(!kinds.is_empty(), "FLOOD={wanted} is no flood");
    let rows: Vec<_> = kinds.into_iter().map(survive).collect();
    println!("\n| flood | resident | with what the system holds | what the clients were told |");
    println!("|---|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
}

/// Returns a row of the table.
fn survive(kind: &Kind) -> String {
    let begun = Instant::now();
    let mut broker = Broker::start(kind.settings);
    let addr = broker.addr();
    let bystander = Bystander::start(addr);
    Hello::persistent(V5, "regular").open(addr).0.disconnect();
    let mut tide = Tide::new(addr);
    let told = (kind.flood)(&mut tide);
    let (_, was_present) = Hello::persistent(V5, "regular").open(addr);
    assert!(was_present, "who has a session gets it in the middle of a flood");
    let peak = broker.peak();
    tide.ebb();
    wait_for_newcomers(addr);
    let slowest = bystander.finish();
    broker.stop();
    let row = format!("| {} | {peak} | {told} |", kind.name);
    println!("{row} {:.1} s, bystander at most {slowest:.1?}", begun.elapsed().as_secs_f64());
    row
}

/// Until a client that the broker has never seen can do what it likes.
fn wait_for_newcomers(addr: std::net::SocketAddr) {
    let deadline = Instant::now() + EBB;
    loop {
        let (mut client, answer) = Hello::new(V5, "newcomer").try_open(addr);
        // What was on its way may still come, and take the last of the memory again.
        if matches!(answer, Got::ConnAck(_, 0, _))
            && client.subscribe_all(&[("newcomer", 1)]) == [1]
        {
            client.deliver("newcomer", "served");
            assert_eq!(client.message().text(), "served");
            return;
        }
        assert!(Instant::now() < deadline, "the flood is over, and yet {answer:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Sends messages to himself while others flood.
struct Bystander {
    stop: std::sync::mpsc::Sender<()>,
    thread: thread::JoinHandle<Duration>,
}

impl Bystander {
    fn start(addr: std::net::SocketAddr) -> Self {
        let mut client = Hello::new(V5, "bystander").open(addr).0;
        client.subscribe("bystander", 1);
        let (stop, is_over) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let mut slowest = Duration::ZERO;
            // Ends when the sender is dropped.
            while is_over.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                slowest = slowest.max(trip(&mut client));
                thread::sleep(Duration::from_millis(20));
            }
            client.disconnect();
            slowest
        });
        Self { stop, thread }
    }

    /// Returns the longest time that a message has taken.
    fn finish(self) -> Duration {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

/// How long a message takes to its publisher.
fn trip(client: &mut Client) -> Duration {
    let sent = Instant::now();
    client.deliver("bystander", "there and back");
    let message = client.message();
    let took = sent.elapsed();
    client.take(&message);
    assert!(took < PATIENCE);
    took
}
