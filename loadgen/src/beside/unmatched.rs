//! Subscriptions that no message matches: what they cost the others is how a broker looks for subscribers.

use std::sync::atomic::{AtomicBool, Ordering};

use super::BesideReport;
use crate::client::{Part, Subscriber};
use crate::fleet::{Fleet, Idle};
use crate::handshake::Session;
use crate::phase::{Phase, Shared};
use crate::settings::Settings;

/// Brokers limit the subscriptions of one session.
const FILTERS_PER_CLIENT: u64 = 50_000;
/// Each has a large SUBSCRIBE under way.
const CONCURRENT: usize = 2;
/// How often they look whether the load is over.
const TURN_NS: u64 = 100_000_000;

/// Clients that hold so many filters.
pub(super) fn clients(filters: u64) -> usize {
    filters.div_ceil(FILTERS_PER_CLIENT) as usize
}

pub(super) fn run(
    settings: &Settings,
    shared: &Shared,
    stop: &AtomicBool,
    filters: u64,
    prefix: &str,
) -> anyhow::Result<BesideReport> {
    let clients = clients(filters);
    let mut fleet = Fleet::new(settings, clients, stop)?;
    fleet.others = settings.clients;
    let part = |number| {
        let first = number as u64 * FILTERS_PER_CLIENT;
        let own = first..filters.min(first + FILTERS_PER_CLIENT);
        let filters = own.map(|filter| filter_of(prefix, filter)).collect();
        Part::Subscriber(Subscriber { filters, trackers_at: 0, publisher_first: 0, publishers: 0 })
    };
    fleet.connect(0..clients, CONCURRENT, Session::Clean, part, &mut Idle)?;
    shared.ready.fetch_add(clients, Ordering::AcqRel);
    while shared.phase() < Phase::Drain {
        fleet.turn_within(&mut Idle, TURN_NS)?;
    }
    fleet.disconnect(0..clients);
    Ok(BesideReport::Unmatched { clients, filters })
}

/// Every other one has a wildcard at a level where the topics of the load pass.
fn filter_of(prefix: &str, number: u64) -> String {
    match number % 2 {
        0 => format!("{prefix}/unmatched/{number}"),
        _ => format!("{prefix}/+/unmatched-{number}"),
    }
}
