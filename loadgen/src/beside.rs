//! What goes on beside the steady load, on a thread of its own: subscribers that read slowly,
//! clients that come and go with their subscriptions, or subscriptions that nothing matches. Called by `run`; follows its phases, and leaves
//! the loop of `worker`, whose figures are what is measured, as it is.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::client::Part;
use crate::fleet::{Fleet, Play};
use crate::handshake::Session;
use crate::phase::{Phase, Shared};
use crate::result::Percentiles;
use crate::scenario::{Layout, Role, Scenario};
use crate::settings::Settings;
use crate::table::{figures, grouped, heads, line};

mod churn;
mod slow;
mod unmatched;

/// Handshakes under way.
const CONCURRENT: usize = 50;
/// Clients of which `run` hears together that they are ready: it gives up when it hears nothing for long.
const READY_TOGETHER: usize = 500;

/// What is to go on.
#[derive(Clone, Debug)]
pub(crate) enum Beside {
    /// Nothing.
    Nothing,
    /// Subscribers that read slowly.
    Slow {
        /// How many.
        clients: usize,
        /// Their filters, which all messages match.
        filters: Vec<String>,
        /// That each of them reads.
        bytes_per_s: u64,
    },
    /// Clients that subscribe and unsubscribe.
    Churn {
        /// How many.
        clients: usize,
        /// SUBSCRIBE and UNSUBSCRIBE per second, over all of them.
        rate: f64,
        /// First levels of their filters, below which nobody publishes.
        prefix: String,
    },
    /// Subscriptions that no message matches.
    Unmatched {
        /// How many.
        filters: u64,
        /// First level of all topics.
        prefix: String,
    },
}

/// What it has shown.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BesideReport {
    /// Subscribers that read slowly.
    Slow {
        /// How many.
        clients: usize,
        /// That each of them read, until the load was over.
        bytes_per_s: u64,
        /// Different messages that they have received, also after the load.
        received: u64,
        /// Messages for them that never came; they are not among the losses of the others.
        lost: u64,
        /// Connections that the broker has closed.
        disconnected: usize,
    },
    /// Clients that subscribe and unsubscribe.
    Churn {
        /// How many.
        clients: usize,
        /// That was asked for.
        rate_per_s: f64,
        /// SUBACK that came.
        subscribed: u64,
        /// UNSUBACK that came.
        unsubscribed: u64,
        /// Subscriptions that were refused.
        refused: u64,
        /// Requests without an answer, and those that were due and had to wait for them to the end.
        unanswered: u64,
        /// From the scheduled time of a request to its answer.
        latency_us: Option<Percentiles>,
    },
    /// Subscriptions that no message matches.
    Unmatched {
        /// That hold them.
        clients: usize,
        /// How many.
        filters: u64,
    },
}

impl Beside {
    /// What the arguments want beside the clients of the layout.
    pub(crate) fn new(args: &Args, layout: &Layout) -> Self {
        match args.scenario {
            Scenario::Slow => {
                let filters = layout.clients.iter().find_map(|role| match role {
                    Role::Subscriber { filters, .. } => Some(filters.clone()),
                    Role::Publisher { .. } | Role::Idle => None,
                });
                Self::Slow {
                    clients: layout.beside,
                    filters: filters.unwrap_or_default(),
                    bytes_per_s: args.load.slow_bytes,
                }
            }
            Scenario::Churn => Self::Churn {
                clients: layout.beside,
                rate: args.load.churn_rate,
                prefix: format!("{}/churn", args.topic_prefix),
            },
            _ if args.load.unmatched > 0 => {
                Self::Unmatched { filters: args.load.unmatched, prefix: args.topic_prefix.clone() }
            }
            _ => Self::Nothing,
        }
    }

    /// Clients that hold so many subscriptions that no message matches.
    pub(crate) fn unmatched_clients(filters: u64) -> usize {
        unmatched::clients(filters)
    }

    /// Goes on from the first connection to the end of the run. What the slow ones have lost is left
    /// open: `sent` of [`BesideReport::settle`] is known later.
    pub(crate) fn run(
        &self,
        settings: &Settings,
        shared: &Shared,
        stop: &AtomicBool,
    ) -> anyhow::Result<Option<BesideReport>> {
        match self {
            Self::Nothing => Ok(None),
            Self::Slow { clients, filters, bytes_per_s } => {
                slow::run(settings, shared, stop, *clients, filters, *bytes_per_s).map(Some)
            }
            Self::Churn { clients, rate, prefix } => {
                churn::run(settings, shared, stop, *clients, *rate, prefix).map(Some)
            }
            Self::Unmatched { filters, prefix } => {
                unmatched::run(settings, shared, stop, *filters, prefix).map(Some)
            }
        }
    }
}

/// Connects all clients of the fleet, unless the run ends before.
fn connect(
    fleet: &mut Fleet<'_>,
    shared: &Shared,
    clients: usize,
    mut part: impl FnMut(usize) -> Part,
    play: &mut impl Play,
) -> anyhow::Result<()> {
    for from in (0..clients).step_by(READY_TOGETHER) {
        let numbers = from..clients.min(from + READY_TOGETHER);
        let ready = numbers.len();
        fleet.connect(numbers, CONCURRENT, Session::Clean, &mut part, play)?;
        if fleet.is_stopped() || shared.phase() == Phase::Stop {
            return Ok(());
        }
        shared.ready.fetch_add(ready, Ordering::AcqRel);
    }
    Ok(())
}

impl BesideReport {
    /// Computes what was lost, from what all publishers have sent.
    pub(crate) fn settle(&mut self, sent: u64) {
        if let Self::Slow { clients, received, lost, .. } = self {
            *lost = (sent * *clients as u64).saturating_sub(*received);
        }
    }
}

impl fmt::Display for BesideReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: u64| grouped(number as f64);
        match self {
            Self::Slow { clients, bytes_per_s, received, lost, disconnected } => line(
                f,
                "slow ones",
                format_args!(
                    "{clients} that read {} bytes/s each: received {}, lost {}, disconnected \
                     {disconnected}",
                    number(*bytes_per_s),
                    number(*received),
                    number(*lost)
                ),
            ),
            Self::Unmatched { clients, filters } => line(
                f,
                "beside it",
                format_args!(
                    "{} subscriptions of {clients} clients that no message matches",
                    number(*filters)
                ),
            ),
            Self::Churn {
                clients,
                rate_per_s,
                subscribed,
                unsubscribed,
                refused,
                unanswered,
                latency_us,
            } => {
                line(
                    f,
                    "churn",
                    format_args!(
                        "{clients} clients, {} requests/s: {} subscribed, {} unsubscribed, \
                         {refused} refused, {unanswered} unanswered",
                        grouped(*rate_per_s),
                        number(*subscribed),
                        number(*unsubscribed)
                    ),
                )?;
                let Some(latency) = latency_us else { return Ok(()) };
                line(f, "  µs", format_args!("{}", heads()))?;
                line(f, "  answered in", format_args!("{}", figures(latency)))
            }
        }
    }
}
