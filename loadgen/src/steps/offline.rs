//! `offline`: sessions that stay subscribe and go away; messages for them are stored; they come back
//! and are given all of them.
//!
//! Each publisher has a share of the sessions and sends to them in turn, so that what a session is
//! missing, has twice or in the wrong order is known exactly.

use anyhow::bail;
use mailboxqtt::ids::Qos;

use super::Stage;
use crate::block::{Block, Message};
use crate::client::{Part, Publisher, Subscriber};
use crate::fleet::Idle;
use crate::fleet::receiver::Receiver;
use crate::fleet::sender::Sender;
use crate::handshake::Session;
use crate::payload::Source;
use crate::sequence::{Tracker, Tracking};
use crate::settings::Settings;

const MESSAGES: u64 = 100_000;

pub(super) fn run(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    if stage.args.qos() == Qos::AtMostOnce {
        bail!("offline needs --qos 1 or 2: at QoS 0 a broker need not keep anything");
    }
    let (sessions, publishers) = (stage.subscribers, stage.publishers);
    if publishers > sessions {
        bail!("{publishers} publishers are too many for {sessions} sessions");
    }
    let ran = steps(stage, sessions, publishers);
    // Whatever happened: the sessions would stay at the broker.
    let forgotten = stage.fleet.forget(0..sessions);
    ran.and(forgotten)
}

fn steps(stage: &mut Stage<'_>, sessions: usize, publishers: usize) -> anyhow::Result<()> {
    let each = (stage.args.load.messages.unwrap_or(MESSAGES) / sessions as u64).max(1);
    let expected = each * sessions as u64;
    let (concurrent, settings) = (stage.concurrent(), stage.settings);
    let prefix = &stage.args.topic_prefix;
    let topic = |session: usize| format!("{prefix}/offline/{session:07}");

    let begun = stage.begin()?;
    let part = |session| subscriber(session, vec![topic(session)], sessions, publishers);
    stage.fleet.connect(0..sessions, concurrent, Session::Persistent, part, &mut Idle)?;
    stage.end(begun, stage.fleet.clock.now_ns(), ("subscribed", "sessions"), sessions as u64)?;
    stage.fleet.disconnect(0..sessions);
    if stage.fleet.is_stopped() {
        return Ok(());
    }

    let share = |publisher| share(publisher, sessions, publishers);
    let limits = (0..publishers).map(|publisher| share(publisher).len() as u64 * each);
    let mut sender = Sender {
        clock: stage.fleet.clock,
        qos: settings.qos,
        window: stage.args.window.unwrap_or(super::WINDOW),
        limits: limits.collect(),
        sent: 0,
        done: 0,
    };
    let senders = sessions..sessions + publishers;
    let part = |number: usize| {
        let topics: Vec<String> = share(number - sessions).map(topic).collect();
        publisher(settings, number - sessions, &topics, sender.window, false)
    };
    stage.fleet.connect(senders.clone(), concurrent, Session::Clean, part, &mut Idle)?;
    let begun = stage.begin()?;
    stage.fleet.touch_all(senders.clone());
    stage.fleet.until(&mut sender, Sender::is_done)?;
    stage.end(begun, stage.fleet.clock.now_ns(), ("stored", "messages"), sender.done)?;
    stage.fleet.disconnect(senders);
    if stage.fleet.is_stopped() {
        return Ok(());
    }
    stage.report.unacknowledged = sender.sent.saturating_sub(sender.done);

    let mut trackers = Vec::with_capacity(sessions);
    for publisher in 0..publishers {
        let stride = share(publisher).len() as u64;
        trackers.extend((0..stride).map(|first| Tracker::new(first, stride)));
    }
    let clock = stage.fleet.clock;
    let mut receiver = Receiver { settings, clock, trackers, received: 0, last_ns: 0 };
    let begun = stage.begin()?;
    // The subscriptions are in the sessions.
    let part = |session| subscriber(session, Vec::new(), sessions, publishers);
    stage.fleet.connect(0..sessions, concurrent, Session::Persistent, part, &mut receiver)?;
    let expected = expected.min(sender.sent);
    stage.fleet.until(&mut receiver, |receiver| receiver.has(expected))?;
    stage.end(begun, receiver.last_ns, ("drained", "messages"), receiver.received)?;
    stage.settle_accounts(expected, receiver.account());
    Ok(())
}

/// The sessions of a publisher.
fn share(publisher: usize, sessions: usize, publishers: usize) -> std::ops::Range<usize> {
    publisher * sessions / publishers..(publisher + 1) * sessions / publishers
}

/// A session; its tracker has its number.
fn subscriber(session: usize, filters: Vec<String>, sessions: usize, publishers: usize) -> Part {
    let owner = (0..publishers).find(|id| share(*id, sessions, publishers).contains(&session));
    Part::Subscriber(Subscriber {
        filters,
        trackers_at: session,
        publisher_first: owner.unwrap_or(0) as u32,
        publishers: 1,
    })
}

/// A publisher that sends on its topics in turn.
pub(super) fn publisher(
    settings: &Settings,
    id: usize,
    topics: &[String],
    window: u64,
    retain: bool,
) -> Part {
    let message = Message {
        source: Source::new(settings.run, id as u32),
        wire: settings.wire,
        qos: settings.qos,
        retain,
        payload_bytes: settings.payload_bytes,
    };
    Part::Publisher(Publisher {
        id: id as u32,
        block: Block::new(topics, window, message),
        acked: 0,
        receive_max: u64::MAX,
        due: 0,
        written_off: 0,
        moved: (0, 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_has_one_publisher() {
        for (sessions, publishers) in [(10, 3), (7, 7), (100, 1)] {
            let shares = (0..publishers).flat_map(|id| share(id, sessions, publishers));
            assert_eq!(shares.collect::<Vec<_>>(), (0..sessions).collect::<Vec<_>>());
        }
    }
}
