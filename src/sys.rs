//! `$SYS/broker/…`: the counters as retained messages, under the names that Mosquitto uses where it
//! has them. Floor 5, started by `broker`.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::metrics::{DropReason, Metrics, RefuseReason, Shortage};
use crate::router::Router;
use crate::router::mailbox::Home;

/// Publishes every `interval`, at once for the first time, until `stop`.
pub async fn run(router: Router, interval: Duration, stop: CancellationToken) {
    let started = Instant::now();
    let inbox = router.open_mailbox(None, Home::Memory);
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut clients_max = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => (),
            () = stop.cancelled() => return,
        }
        let clients = router.metrics().clients_connected.value();
        clients_max = clients.max(clients_max);
        let mut messages = messages(router.metrics(), started.elapsed(), clients_max);
        let disk = ("$SYS/broker/store/disk/bytes".to_owned(), router.disk_bytes().to_string());
        messages.push(disk);
        router.publish_own(&messages, inbox.mailbox()).await;
    }
}

fn messages(metrics: &Metrics, uptime: Duration, clients_max: u64) -> Vec<(String, String)> {
    let clients = metrics.clients_connected.value();
    let sessions = metrics.sessions.value();
    let mut values = vec![
        ("version", concat!("mailboxqtt version ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("uptime", format!("{} seconds", uptime.as_secs())),
    ];
    let numbers = [
        ("clients/connected", clients),
        ("clients/disconnected", sessions.saturating_sub(clients)),
        ("clients/expired", metrics.sessions_expired.value()),
        ("clients/maximum", clients_max),
        ("clients/orphaned", metrics.sessions_orphaned.value()),
        ("clients/total", sessions),
        ("connections/socket/count", metrics.sockets_opened.value()),
        ("connections/refused", metrics.connections_refused()),
        ("connections/short", metrics.connects_refused.value()),
        ("bytes/received", metrics.bytes_received.value()),
        ("bytes/sent", metrics.bytes_sent.value()),
        ("messages/received", metrics.packets_received.value()),
        ("messages/sent", metrics.packets_sent.value()),
        ("messages/stored", metrics.retained_messages.value() + metrics.queued_messages.value()),
        ("publish/messages/received", metrics.publishes_received.value()),
        ("publish/messages/sent", metrics.publishes_sent.value()),
        ("publish/messages/dropped", metrics.dropped_total()),
        ("publish/bytes/received", metrics.publish_bytes_received.value()),
        ("publish/bytes/sent", metrics.publish_bytes_sent.value()),
        ("retained messages/count", metrics.retained_messages.value()),
        (
            "store/messages/count",
            metrics.retained_messages.value() + metrics.queued_messages.value(),
        ),
        ("store/messages/bytes", metrics.retained_bytes.value() + metrics.queued_bytes.value()),
        ("memory/bytes", metrics.memory_bytes.value()),
        ("memory/shortages", metrics.memory_short.value()),
        ("subscriptions/count", metrics.subscriptions.value()),
        ("errors/protocol", metrics.protocol_errors.value()),
        ("errors/acknowledgements", metrics.acks_unknown.value()),
        ("errors/authentication", metrics.authentications_failed.value()),
        ("authentication/delayed", metrics.authentications_delayed.value()),
        ("authentication/busy", metrics.authentications_busy.value()),
        ("authentication/unavailable", metrics.authentications_unavailable.value()),
        ("access/denied/publish", metrics.publishes_denied.value()),
        ("access/denied/subscribe", metrics.subscriptions_denied.value()),
        ("access/denied/connect", metrics.connects_denied.value()),
        // Of the process: one per connection, one per shard and a few more. A leak shows here.
        ("tasks", Handle::current().metrics().num_alive_tasks() as u64),
    ];
    values.extend(numbers.map(|(name, number)| (name, number.to_string())));
    let mut messages: Vec<(String, String)> =
        values.into_iter().map(|(name, value)| (format!("$SYS/broker/{name}"), value)).collect();
    for reason in DropReason::ALL {
        let topic = format!("$SYS/broker/publish/messages/dropped/{}", reason.name());
        messages.push((topic, metrics.dropped_for(reason).to_string()));
    }
    for reason in RefuseReason::ALL {
        let topic = format!("$SYS/broker/connections/refused/{}", reason.name());
        messages.push((topic, metrics.connections_refused_for(reason).to_string()));
    }
    for shortage in Shortage::ALL {
        let topic = format!("$SYS/broker/publish/messages/refused/{}", shortage.name());
        messages.push((topic, metrics.refused_for(shortage).to_string()));
    }
    messages
}
