//! Subscribers with a small receive buffer that read a little, ten times a second. When the load is
//! over they read as fast as they can, so that what is still queued for them is told from what is
//! lost.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use super::BesideReport;
use crate::client::{Part, Subscriber};
use crate::fleet::Fleet;
use crate::fleet::receiver::Receiver;
use crate::phase::{Phase, Shared};
use crate::sequence::{Tracker, Tracking};
use crate::settings::Settings;

/// Small, so that it is the broker that has to keep what is not read.
const RECEIVE_BUFFER_BYTES: usize = 4_096;
const SIPS_PER_S: u32 = 10;
/// How often they look whether the load is over.
const LOOK: Duration = Duration::from_millis(5);
/// After the load: how often they look whether that is enough, how long for at most (and when somebody
/// wants the end), and after how long of silence not any more.
const DRAIN_TURN_NS: u64 = 20_000_000;
const DRAIN_MAX: Duration = Duration::from_secs(60);
const DRAIN_STOPPED_MAX: Duration = Duration::from_secs(5);
const DRAIN_SILENCE: Duration = Duration::from_secs(1);

pub(super) fn run(
    settings: &Settings,
    shared: &Shared,
    stop: &AtomicBool,
    clients: usize,
    filters: &[String],
    bytes_per_s: u64,
) -> anyhow::Result<BesideReport> {
    let mut fleet = Fleet::new(settings, clients, stop)?;
    fleet.others = settings.clients;
    fleet.receive_buffer_bytes = Some(RECEIVE_BUFFER_BYTES);
    let publishers = settings.publishers as usize;
    let trackers = (0..clients * publishers).map(|_| Tracker::new(0, 1)).collect();
    let clock = shared.clock;
    let mut receiver = Receiver { settings, clock, trackers, received: 0, last_ns: 0 };
    let part = |number| {
        Part::Subscriber(Subscriber {
            filters: filters.to_vec(),
            trackers_at: number * publishers,
            publisher_first: 0,
            publishers: publishers as u32,
        })
    };
    super::connect(&mut fleet, shared, clients, part, &mut receiver)?;
    // Some brokers do that with clients that do not read.
    fleet.closed = Some(0);
    let sip = (bytes_per_s / u64::from(SIPS_PER_S)).max(1) as usize;
    let began = Instant::now();
    for sips in 1.. {
        if shared.phase() >= Phase::Drain {
            break;
        }
        fleet.ping();
        for number in 0..clients {
            fleet.sip(number, sip, &mut receiver)?;
        }
        let next = Duration::from_secs(1) * sips / SIPS_PER_S;
        // In small pieces: the phase may change.
        while began.elapsed() < next && shared.phase() < Phase::Drain {
            thread::sleep(LOOK);
        }
    }
    let (began, mut moved) = (Instant::now(), (receiver.received, Instant::now()));
    // A run that fails does not drain.
    let drains = shared.began_ns(Phase::Drain) > 0;
    while drains && moved.1.elapsed() < DRAIN_SILENCE {
        let most = if fleet.is_stopped() { DRAIN_STOPPED_MAX } else { DRAIN_MAX };
        if began.elapsed() > most {
            break;
        }
        fleet.turn_within(&mut receiver, DRAIN_TURN_NS)?;
        if receiver.received != moved.0 {
            moved = (receiver.received, Instant::now());
        }
    }
    fleet.disconnect(0..clients);
    Ok(BesideReport::Slow {
        clients,
        bytes_per_s,
        received: receiver.account().unique,
        lost: 0,
        disconnected: fleet.closed.unwrap_or(0),
    })
}
