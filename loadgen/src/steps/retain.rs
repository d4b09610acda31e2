//! `retain`: retained messages are set at full speed, replayed to subscribers of all of them, and
//! cleared again.

use mailboxqtt::codec::{Delivery, Packet, Properties, Publish};
use mailboxqtt::ids::Qos;

use super::{Stage, offline};
use crate::client::{Part, Subscriber};
use crate::fleet::Idle;
use crate::fleet::receiver::Receiver;
use crate::fleet::sender::Sender;
use crate::handshake::Session;
use crate::sequence::Tracking;
use crate::sequence::group::{GroupTracker, MESSAGES_MAX};

const MESSAGES: u64 = 10_000;

pub(super) fn run(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let messages = stage.args.load.messages.unwrap_or(MESSAGES);
    let publishers = stage.publishers.min(messages as usize);
    if messages.div_ceil(publishers as u64) > MESSAGES_MAX {
        anyhow::bail!(
            "{publishers} publishers cannot set {messages} messages, at most {MESSAGES_MAX} each: \
             give more --publishers"
        );
    }
    let prefix = &stage.args.topic_prefix;
    let topic = |message: u64| format!("{prefix}/retain/{message:09}");
    let share = |publisher: usize| {
        let (publisher, publishers) = (publisher as u64, publishers as u64);
        publisher * messages / publishers..(publisher + 1) * messages / publishers
    };
    let subscribers = stage.subscribers;
    let (concurrent, settings) = (stage.concurrent(), stage.settings);

    let mut sender = Sender {
        clock: stage.fleet.clock,
        qos: settings.qos,
        window: stage.args.window.unwrap_or(super::WINDOW),
        limits: (0..publishers).map(share).map(|share| share.end - share.start).collect(),
        sent: 0,
        done: 0,
    };
    let window = sender.window;
    let senders = subscribers..subscribers + publishers;
    let part = |number: usize| {
        let topics: Vec<String> = share(number - subscribers).map(topic).collect();
        offline::publisher(settings, number - subscribers, &topics, window, true)
    };
    stage.fleet.connect(senders.clone(), concurrent, Session::Clean, part, &mut Idle)?;
    let begun = stage.begin()?;
    stage.fleet.touch_all(senders.clone());
    let set = stage.fleet.until(&mut sender, Sender::is_done)?;
    if set && settings.qos == Qos::AtMostOnce {
        stage.fleet.settle(senders.clone())?;
    }
    stage.end(begun, stage.fleet.clock.now_ns(), ("set", "messages"), sender.done)?;
    let replayed = if stage.fleet.is_stopped() {
        Ok(())
    } else {
        stage.report.unacknowledged = sender.sent.saturating_sub(sender.done);
        replay(stage, publishers, sender.sent)
    };
    // Whatever happened: they would stay at the broker.
    stage.fleet.ignore_stop();
    let begun = stage.begin()?;
    for (number, publisher) in senders.clone().zip(0..) {
        let Some(client) = stage.fleet.client(number) else { continue };
        for message in share(publisher) {
            let clear = Publish {
                topic: &topic(message),
                payload: &[],
                properties: Properties::EMPTY,
                delivery: Delivery::AtMostOnce,
                retain: true,
            };
            Packet::Publish(clear).encode(settings.wire.version, &mut client.control);
        }
    }
    stage.fleet.settle(senders.clone())?;
    stage.end(begun, stage.fleet.clock.now_ns(), ("cleared", "messages"), messages)?;
    stage.fleet.disconnect(senders);
    replayed
}

fn replay(stage: &mut Stage<'_>, publishers: usize, messages: u64) -> anyhow::Result<()> {
    let (concurrent, subscribers) = (stage.concurrent(), stage.subscribers);
    let clock = stage.fleet.clock;
    // In no particular order, so each pair of subscriber and publisher has a bitmap.
    let trackers = (0..subscribers * publishers).map(|_| GroupTracker::new(0, 1)).collect();
    let settings = stage.settings;
    let mut receiver = Receiver { settings, clock, trackers, received: 0, last_ns: 0 };
    let part = |number: usize| {
        Part::Subscriber(Subscriber {
            filters: Vec::new(),
            trackers_at: number * publishers,
            publisher_first: 0,
            publishers: publishers as u32,
        })
    };
    stage.fleet.connect(0..subscribers, concurrent, Session::Clean, part, &mut receiver)?;
    let begun = stage.begin()?;
    let filter = format!("{}/retain/#", stage.args.topic_prefix);
    for number in 0..subscribers {
        stage.fleet.subscribe(number, &filter);
    }
    let expected = messages * subscribers as u64;
    stage.fleet.until(&mut receiver, |receiver| receiver.has(expected))?;
    stage.end(begun, receiver.last_ns, ("replayed", "messages"), receiver.received)?;
    stage.settle_accounts(expected, receiver.account());
    stage.fleet.disconnect(0..subscribers);
    Ok(())
}
