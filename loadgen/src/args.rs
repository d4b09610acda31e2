//! The command line, and what follows from it where it is silent.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::builder::RangedI64ValueParser;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};
use mailboxqtt::ids::Qos;

pub(crate) use self::command::{Command, Merge, Report};
pub(crate) use self::load::Load;
pub(crate) use self::outputs::{Conduct, Outputs};
use crate::beside::Beside;
use crate::payload::{PUBLISHERS_MAX, STAMP_BYTES};
use crate::presets::Preset;
use crate::scenario::{Layout, Scenario, Size};
use crate::settings::Pace;

mod command;
mod load;
mod outputs;

/// Clients that deserve a thread of their own: fewer share one, which keeps feedback free.
const CLIENTS_PER_THREAD: usize = 500;
/// Closed loop: messages outstanding, over all publishers and over all deliveries, by default.
const OUTSTANDING: u64 = 20_000;
const OUTSTANDING_DELIVERIES: u64 = 100_000;
const WINDOW: u64 = 100;
/// How long one of several addresses of a name may take to answer.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// Packet identifiers go round after 65,535 messages.
const WINDOW_MAX: u64 = 16_384;

/// Measures any MQTT broker: throughput, end-to-end latency, loss, and what it costs.
///
/// Connects the clients, warms up, measures, waits for what is under way and prints a table.
/// Publishers and subscribers are in one process, so a latency is the difference of two readings of
/// one clock.
///
/// By default the loop is closed: each publisher has at most --window messages outstanding, until
/// its slowest subscriber has received them (and, at QoS 1 and 2, the broker has acknowledged
/// them). That finds the throughput; the latency is then mostly the queue that the window makes.
/// For latency use an open loop with --rate: messages leave by an absolute schedule and latency
/// counts from the scheduled time, so that a broker that stalls cannot hide it.
#[derive(Clone, Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
#[command(version, after_long_help = EXAMPLES, after_help = "--help shows examples")]
pub(crate) struct Args {
    /// The broker; names are resolved
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1883")]
    pub(crate) addr: String,

    /// Who publishes what to whom
    #[arg(long, value_enum, default_value_t = Scenario::P2p)]
    pub(crate) scenario: Scenario,

    /// Connections in all [default: p2p and churn 100, fan-in 11, fan-out and slow 51, wildcard 16,
    /// shared 15, offline 110, retain 20, reconnect and connect 1000]
    #[arg(long, value_name = "N", value_parser = clients)]
    pub(crate) clients: Option<usize>,

    /// Publishers among them, in all but p2p, churn, reconnect and connect
    #[arg(long, value_name = "N", value_parser = clients)]
    pub(crate) publishers: Option<usize>,

    /// Subscribers among them, in all but p2p, churn, reconnect and connect
    #[arg(long, value_name = "N", value_parser = clients)]
    pub(crate) subscribers: Option<usize>,

    /// Wildcard filters per subscriber, in wildcard
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = ten_thousand())]
    pub(crate) filters: u32,

    /// Quality of service of messages and of subscriptions
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub(crate) qos: u8,

    /// Bytes per payload; the first 16 hold run, sender, number and time
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = payload)]
    pub(crate) payload: usize,

    /// Closed loop: messages of a publisher outstanding [default: 100, less with very many clients]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=WINDOW_MAX))]
    pub(crate) window: Option<u64>,

    /// Open loop: messages per second, over all publishers
    #[arg(long, value_name = "MSG_PER_S", conflicts_with = "window", value_parser = rate)]
    pub(crate) rate: Option<f64>,

    /// Seconds of load before the measurement
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    pub(crate) warmup: Duration,

    /// Seconds that are measured
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub(crate) duration: Duration,

    /// Handshakes under way at the same time
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = ten_thousand())]
    pub(crate) concurrent: u32,

    /// connect: seconds to keep all connections open, e.g. to see their memory with --pid
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds)]
    pub(crate) hold: Duration,

    /// What the clients speak and how they come.
    #[command(flatten)]
    pub(crate) load: Load,

    /// Process of the broker, to report its CPU time and memory
    #[arg(long)]
    pub(crate) pid: Option<u32>,

    /// Threads [default: one per core, but at most one per 500 clients]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) threads: Option<u32>,

    /// User name in CONNECT
    #[arg(long, value_name = "NAME")]
    pub(crate) username: Option<String>,

    /// Password in CONNECT
    #[arg(long, requires = "username")]
    pub(crate) password: Option<String>,

    /// First part of all client identifiers
    #[arg(long, value_name = "TEXT", default_value = "loadgen")]
    pub(crate) client_prefix: String,

    /// First level of all topics; processes that run at the same time need different ones
    #[arg(long, value_name = "TEXT", default_value = "loadgen")]
    pub(crate) topic_prefix: String,

    /// Makes client identifiers and payloads the same in every run [default: different ones]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u32>,

    #[command(flatten)]
    pub(crate) outputs: Outputs,

    #[command(flatten)]
    pub(crate) conduct: Conduct,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  Ten thousand clients in pairs, at QoS 2:
    loadgen --clients 10000 --qos 2

  How much CPU time the broker spends per message, ten pairs:
    loadgen --clients 20 --pid $(pidof mosquitto)

  Latency under a steady 5,000 messages per second:
    loadgen --clients 20 --qos 1 --rate 5000

  One publisher to 500 subscribers, few messages outstanding:
    loadgen --scenario fan-out --subscribers 500 --window 4

  Memory of ten thousand idle connections, held for 30 seconds:
    loadgen --scenario connect --clients 10000 --hold 30 --pid $(pidof mosquitto)

  A load that others measure, too, for a minute (--list-presets shows all):
    loadgen --preset singlenode-p2p-1K-1K-1K-1K --duration 60

  A broker elsewhere, result for a script:
    loadgen --addr broker.example:1883 --username me --password secret --json

  The highest rate at which 99 % of the messages take less than 5 ms:
    loadgen --clients 20 --qos 1 --search 'p99<5ms'

  A check for CI:
    loadgen --clients 20 --qos 1 --rate 5000 --fail-if 'p99>5ms' --fail-if 'lost>0'

  Two processes at the same time, as one result:
    loadgen --topic-prefix a --out a.json & loadgen --topic-prefix b --out b.json; wait
    loadgen merge a.json b.json

  Two brokers side by side, as a page to look at:
    loadgen --addr a:1883 --label a --out a.json; loadgen --addr b:1883 --label b --out b.json
    loadgen report --out compared.html a.json b.json

Exit code:
  0  everything arrived as its QoS promises
  1  something was lost or not acknowledged at QoS 1 or 2, or arrived twice at QoS 2
  2  the run could not be done: no broker, connection refused or broken, bad arguments
  3  a condition of --fail-if holds, or the bound of --search at no rate
  4  the run is void (see its reasons), and --strict or --fail-if was given
The first that applies, in the order 2, 1, 3, 4.";

impl Args {
    /// Reads a command line, whose first word is the name of the program.
    pub(crate) fn read(words: Vec<OsString>) -> Result<Self, clap::Error> {
        let given = Self::command().try_get_matches_from(&words)?;
        let preset = given.get_one::<String>("preset").and_then(|name| Preset::find(name));
        let Some(preset) = preset else { return Self::from_arg_matches(&given) };
        let is_given = |name: &str| given.value_source(name) == Some(ValueSource::CommandLine);
        let mut all = words;
        // Behind the name of the program.
        let options = preset.options_unless(is_given);
        all.splice(all.len().min(1)..all.len().min(1), options);
        Self::try_parse_from(all)
    }

    /// The quality of service.
    pub(crate) fn qos(&self) -> Qos {
        Qos::new(self.qos).unwrap_or(Qos::AtMostOnce)
    }

    /// The address of the broker; where a name has several, the first that accepts a connection.
    pub(crate) fn target(&self) -> anyhow::Result<SocketAddr> {
        let found = self.addr.to_socket_addrs().with_context(|| {
            format!("--addr {}: it takes HOST:PORT, with a host that exists", self.addr)
        })?;
        let found: Vec<SocketAddr> = found.collect();
        let answers = |target: &&SocketAddr| TcpStream::connect_timeout(target, PROBE_MAX).is_ok();
        let target = match found.as_slice() {
            [only] => Some(only),
            several => several.iter().find(answers).or(several.first()),
        };
        target.copied().with_context(|| format!("--addr {}: the name has no address", self.addr))
    }

    /// All clients of the run.
    pub(crate) fn layout(&self) -> anyhow::Result<Layout> {
        if self.topic_prefix.is_empty() || self.topic_prefix.contains(['+', '#', '\0']) {
            bail!("--topic-prefix must be a topic: not empty, without + and #");
        }
        let size = Size {
            clients: self.clients,
            publishers: self.publishers,
            subscribers: self.subscribers,
            filters: self.filters as usize,
            topics: self.load.topics as usize,
            slow_percent: self.load.slow_percent,
            churn_clients: self.load.churn_clients as usize,
            group: &self.load.group,
        };
        let layout = Layout::new(self.scenario, size, &self.topic_prefix);
        let mut layout = layout.map_err(anyhow::Error::msg)?;
        if self.load.unmatched > 0 {
            if self.scenario.is_steps() || layout.beside > 0 {
                bail!("--unmatched does not go together with {}", self.scenario.name());
            }
            layout.beside = Beside::unmatched_clients(self.load.unmatched);
        }
        if layout.publishers as usize > PUBLISHERS_MAX {
            bail!("at most {PUBLISHERS_MAX} publishers have a number in a payload");
        }
        Ok(layout)
    }

    /// Who decides when the next message leaves.
    pub(crate) fn pace(&self, layout: &Layout) -> Pace {
        let each = self.load.rate_per_publisher;
        match self.rate.or(each.map(|each| each * f64::from(layout.publishers.max(1)))) {
            Some(rate) => Pace::Rate(rate),
            None => Pace::Window(self.window.unwrap_or_else(|| default_window(layout))),
        }
    }

    /// How many threads the clients get.
    pub(crate) fn threads(&self, clients: usize) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let useful = cores.min(clients.div_ceil(CLIENTS_PER_THREAD)).max(1);
        self.threads.map_or(useful, |threads| threads as usize).min(clients.max(1))
    }
}

/// Bounds what is under way, so that ten thousand clients measure the broker and not its queues.
fn default_window(layout: &Layout) -> u64 {
    let publishers = u64::from(layout.publishers).max(1);
    let receivers = layout.receivers.max(1);
    WINDOW.min(OUTSTANDING / publishers).min(OUTSTANDING_DELIVERIES / publishers / receivers).max(1)
}

fn ten_thousand() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=10_000)
}

fn clients(text: &str) -> Result<usize, String> {
    let clients: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    if clients > 10_000_000 {
        return Err("at most 10,000,000".to_owned());
    }
    Ok(clients)
}

fn payload(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    if bytes < STAMP_BYTES {
        let needs = "the payload carries run, sender, number and time";
        return Err(format!("{needs}: at least {STAMP_BYTES} bytes"));
    }
    if bytes > 16 << 20 {
        return Err("at most 16 MiB".to_owned());
    }
    Ok(bytes)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(0.001..=1e8).contains(&rate) {
        return Err("between 0.001 and 100,000,000 messages per second".to_owned());
    }
    Ok(rate)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.0..=1e6).contains(&seconds) {
        return Err("between 0 and 1,000,000 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn some_seconds(text: &str) -> Result<Duration, String> {
    let time = seconds(text)?;
    if time.is_zero() { Err("more than 0 seconds".to_owned()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets::PRESETS;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_payload_too_small_for_its_stamp_is_refused_with_the_reason() {
        let error = parse(&["--payload", "15"]).unwrap_err().to_string();
        assert!(error.contains("at least 16 bytes"), "{error}");
    }

    #[test]
    fn ten_thousand_clients_have_a_small_window_and_twenty_a_large_one() {
        assert_eq!(pace(&["--clients", "10000"]), Pace::Window(4));
        assert_eq!(pace(&["--clients", "20"]), Pace::Window(100));
        assert_eq!(pace(&["--clients", "20", "--window", "7"]), Pace::Window(7));
        assert_eq!(pace(&["--clients", "20", "--rate", "5000"]), Pace::Rate(5_000.0));
        assert_eq!(pace(&["--scenario", "fan-out", "--clients", "10001"]), Pace::Window(10));
    }

    #[test]
    fn more_clients_than_memory_and_a_search_without_time_are_refused() {
        assert!(parse(&["--clients", "8589934594"]).is_err());
        assert!(parse(&["--clients", "1000000"]).is_ok());
        assert!(parse(&["--search-step-s", "0"]).is_err());
    }

    #[test]
    fn a_rate_per_publisher_is_multiplied() {
        let each = ["--clients", "20", "--rate-per-publisher", "2.5"];
        assert_eq!(pace(&each), Pace::Rate(25.0));
        assert!(parse(&["--rate", "5", "--rate-per-publisher", "1"]).is_err());
        assert!(parse(&["--window", "5", "--rate-per-publisher", "1"]).is_err());
    }

    #[test]
    fn connections_come_by_a_schedule_or_so_many_at_a_time() {
        assert!(parse(&["--connect-rate", "100"]).is_ok());
        assert!(parse(&["--connect-rate", "100", "--concurrent", "5"]).is_err());
    }

    #[test]
    fn few_clients_share_one_thread() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.threads(500), 1);
        assert!(args.threads(10_000) >= 1);
        assert_eq!(parse(&["--threads", "3"]).unwrap().threads(20), 3);
    }

    #[test]
    fn a_topic_prefix_with_wildcards_is_refused() {
        assert!(parse(&["--topic-prefix", "a/#"]).unwrap().layout().is_err());
    }

    #[test]
    fn every_preset_is_a_command_line_with_clients() {
        for preset in PRESETS {
            let args = read(&["--preset", preset.name]).unwrap();
            assert!(args.load.wire().is_ok(), "{}", preset.name);
            assert!(!args.layout().unwrap().clients.is_empty(), "{}", preset.name);
        }
    }

    #[test]
    fn the_presets_of_the_suite_are_as_large_as_their_names_say() {
        for (name, clients, publishers, rate) in [
            ("fanout-1-1K-1-1K", 1_001, 1, 1.0),
            ("p2p-1K-1K-1K-1K", 2_000, 1_000, 1_000.0),
            ("sharedsub-1K-5-1K-1K", 1_005, 1_000, 1_000.0),
            ("fanout-5-1000-5-250K", 1_005, 5, 250.0),
            ("p2p-50K-50K-50K-50K", 100_000, 50_000, 50_000.0),
            ("sharedsub-50K-500-50K-50K", 50_500, 50_000, 50_000.0),
        ] {
            let args = read(&["--preset", &format!("singlenode-{name}")]).unwrap();
            let layout = args.layout().unwrap();
            assert_eq!((layout.clients.len(), layout.publishers), (clients, publishers), "{name}");
            assert_eq!(args.pace(&layout), Pace::Rate(rate), "{name}");
            assert_eq!((args.payload, args.qos, args.load.keep_alive), (16, 1, 300), "{name}");
        }
        for (name, clients, rate) in
            [("conn-tcp-10K-100", 10_000, 100.0), ("conn-tcp-1M-5K", 1_000_000, 5_000.0)]
        {
            let args = read(&["--preset", &format!("singlenode-{name}")]).unwrap();
            assert_eq!(args.layout().unwrap().clients.len(), clients);
            assert_eq!(args.load.connect_rate, Some(rate));
        }
    }

    #[test]
    fn what_is_given_replaces_what_the_preset_says_wherever_it_stands() {
        let preset = ["--preset", "singlenode-sharedsub-1K-5-1K-1K"];
        for given in [
            [&["--qos", "2", "--window", "7"][..], &preset].concat(),
            [&preset[..], &["--qos", "2", "--window", "7"]].concat(),
        ] {
            let args = read(&given).unwrap();
            assert_eq!((args.qos, args.payload), (2, 16));
            assert_eq!(args.pace(&args.layout().unwrap()), Pace::Window(7));
        }
        let fewer = read(&[&preset[..], &["--clients", "30"]].concat()).unwrap();
        assert_eq!(fewer.layout().unwrap().clients.len(), 30);
        let arriving = ["--preset", "singlenode-conn-tcp-10K-100", "--concurrent", "9"];
        assert_eq!(read(&arriving).unwrap().load.connect_rate, None);
    }

    #[test]
    fn a_preset_that_does_not_exist_is_refused() {
        assert!(read(&["--preset", "p2p"]).is_err());
    }

    fn read(arguments: &[&str]) -> Result<Args, clap::Error> {
        Args::read(["loadgen"].iter().chain(arguments).map(OsString::from).collect())
    }

    fn pace(arguments: &[&str]) -> Pace {
        let args = parse(arguments).unwrap();
        args.pace(&args.layout().unwrap())
    }

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(["loadgen"].iter().chain(arguments))
    }
}
