//! Clients that subscribe and unsubscribe in turn, by an absolute schedule: every other subscription
//! has a wildcard. Nobody publishes below their filters, so what the load feels is the churn alone.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use hdrhistogram::Histogram;
use mailboxqtt::codec::{
    Packet, Properties, Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe,
    UnsubscribeFiltersBuf, decode,
};
use mailboxqtt::ids::{PacketId, ProtocolVersion, Qos};

use super::BesideReport;
use crate::client::{Client, Part};
use crate::clock::Clock;
use crate::fleet::{Fleet, Idle, Play};
use crate::phase::{Phase, Shared};
use crate::receive::{self, Broken};
use crate::result::Percentiles;
use crate::settings::Settings;
use crate::tally::histogram;

/// How long answers are waited for after the load.
const DRAIN_NS: u64 = 2_000_000_000;
/// Longest wait of a turn: the phase may change.
const TURN_NS: u64 = 20_000_000;
/// Requests of one turn, and requests without an answer. What is due beyond waits, and its time counts
/// from its due time.
const REQUESTS_PER_TURN: usize = 1_024;
const PENDING_MAX: usize = 65_536;

/// Takes the answers.
struct Churn {
    clock: Clock,
    version: ProtocolVersion,
    /// When each request was scheduled, by client and packet identifier.
    pending: HashMap<(usize, PacketId), u64>,
    /// Requests scheduled from here on are measured.
    measured_from_ns: u64,
    latency_ns: Histogram<u64>,
    subscribed: u64,
    unsubscribed: u64,
    refused: u64,
}

pub(super) fn run(
    settings: &Settings,
    shared: &Shared,
    stop: &AtomicBool,
    clients: usize,
    rate: f64,
    prefix: &str,
) -> anyhow::Result<BesideReport> {
    let mut fleet = Fleet::new(settings, clients, stop)?;
    fleet.others = settings.clients;
    super::connect(&mut fleet, shared, clients, |_| Part::Idle, &mut Idle)?;
    let mut churn = Churn {
        clock: shared.clock,
        version: settings.wire.version,
        pending: HashMap::new(),
        measured_from_ns: u64::MAX,
        latency_ns: histogram()?,
        subscribed: 0,
        unsubscribed: 0,
        refused: 0,
    };
    while shared.phase() == Phase::Ramp {
        fleet.turn_within(&mut churn, TURN_NS)?;
    }
    let start_ns = shared.clock.now_ns();
    let due_ns = |request: u64| start_ns + (request as f64 * 1e9 / rate) as u64;
    let (mut request, mut overdue) = (0, 0);
    while shared.phase() < Phase::Drain {
        if shared.phase() == Phase::Measure {
            churn.measured_from_ns = shared.began_ns(Phase::Measure);
        }
        let now_ns = shared.clock.now_ns();
        for _ in 0..REQUESTS_PER_TURN {
            if due_ns(request) > now_ns || churn.pending.len() >= PENDING_MAX {
                break;
            }
            let number = (request % clients as u64) as usize;
            if let Some(client) = fleet.client(number) {
                let id = churn.ask(client, prefix, number, request / clients as u64);
                churn.pending.insert((number, id), due_ns(request));
                fleet.touch(number);
            }
            request += 1;
        }
        let due = (now_ns.saturating_sub(start_ns) as f64 * rate / 1e9) as u64;
        overdue = due.saturating_sub(request);
        let wait_ns = match churn.pending.len() {
            PENDING_MAX.. => TURN_NS,
            _ => due_ns(request).saturating_sub(shared.clock.now_ns()),
        };
        fleet.turn_within(&mut churn, wait_ns.min(TURN_NS))?;
    }
    let until_ns = shared.clock.now_ns() + DRAIN_NS;
    while !churn.pending.is_empty() && shared.clock.now_ns() < until_ns {
        fleet.turn_within(&mut churn, TURN_NS)?;
    }
    fleet.disconnect(0..clients);
    Ok(BesideReport::Churn {
        clients,
        rate_per_s: rate,
        subscribed: churn.subscribed,
        unsubscribed: churn.unsubscribed,
        refused: churn.refused,
        unanswered: churn.pending.len() as u64 + overdue,
        latency_us: Percentiles::of(&churn.latency_ns),
    })
}

impl Churn {
    /// Request `turn` of a client: even ones subscribe, odd ones end the subscription before.
    fn ask(&self, client: &mut Client, prefix: &str, number: usize, turn: u64) -> PacketId {
        let id = PacketId::new((turn % u64::from(u16::MAX)) as u16 + 1).unwrap_or(PacketId::FIRST);
        let filter = match turn / 2 % 2 {
            0 => format!("{prefix}/{number}/{}", turn / 2),
            _ => format!("{prefix}/+/{number}-{}", turn / 2),
        };
        let properties = Properties::EMPTY;
        if turn.is_multiple_of(2) {
            let mut filters = SubscribeFiltersBuf::new();
            filters.push(&filter, SubscribeOptions::new(Qos::AtMostOnce));
            let subscribe = Subscribe { id, properties, filters: filters.as_filters() };
            Packet::Subscribe(subscribe).encode(self.version, &mut client.control);
        } else {
            let mut filters = UnsubscribeFiltersBuf::new();
            filters.push(&filter);
            let unsubscribe = Unsubscribe { id, properties, filters: filters.as_filters() };
            Packet::Unsubscribe(unsubscribe).encode(self.version, &mut client.control);
        }
        id
    }

    fn answered(&mut self, number: usize, id: PacketId) {
        let Some(due_ns) = self.pending.remove(&(number, id)) else { return };
        if due_ns >= self.measured_from_ns {
            let took_ns = self.clock.now_ns().saturating_sub(due_ns);
            self.latency_ns.saturating_record(took_ns);
        }
    }
}

impl Play for Churn {
    fn take(&mut self, number: usize, _: &mut Client, bytes: &[u8]) -> Result<usize, Broken> {
        let mut used = 0;
        while let Some(frame) = receive::next_frame(&bytes[used..])? {
            used += frame.bytes.len();
            match decode(frame.bytes, self.version) {
                Ok(Packet::SubAck(answer)) => {
                    let refused = answer.reasons.iter().any(|reason| *reason >= 0x80);
                    self.refused += u64::from(refused);
                    self.subscribed += u64::from(!refused);
                    self.answered(number, answer.id);
                }
                Ok(Packet::UnsubAck(answer)) => {
                    self.unsubscribed += 1;
                    self.answered(number, answer.id);
                }
                Ok(Packet::Disconnect(farewell)) => {
                    return Err(Broken::Disconnected(farewell.reason.as_u8()));
                }
                Ok(_) => {}
                Err(_) => return Err(Broken::Malformed),
            }
        }
        Ok(used)
    }

    fn refill(&mut self, _client: &mut Client) -> bool {
        false
    }
}
