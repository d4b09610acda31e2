//! The counters of the broker, as a client sees them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mailboxqtt::ids::ProtocolVersion::V5;

use crate::wire::{Client, Hello};

/// Where they are.
const ROOT: &str = "$SYS/broker/";
/// The last one of a round.
const LAST: &str = "publish/messages/dropped/payload_format_invalid";
/// Far over what anything takes that is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

/// A client that gets all of them every second.
pub(crate) struct Counters {
    client: Client,
    values: HashMap<String, u64>,
}

/// What has to be as it was. The counters themselves are retained messages, and their client is a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct State {
    pub(crate) tasks: u64,
    pub(crate) clients: u64,
    pub(crate) sessions: u64,
    pub(crate) subscriptions: u64,
    pub(crate) retained: u64,
    pub(crate) queued: u64,
}

impl Counters {
    pub(crate) fn watch(addr: SocketAddr) -> Self {
        let mut client = Hello::new(V5, "counters").open(addr).0;
        client.subscribe(&format!("{ROOT}#"), 0);
        Self { client, values: HashMap::new() }
    }

    pub(crate) fn value(&self, name: &str) -> u64 {
        self.values.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn state(&self) -> State {
        let retained = self.value("retained messages/count");
        State {
            tasks: self.value("tasks"),
            clients: self.value("clients/connected"),
            sessions: self.value("clients/total"),
            subscriptions: self.value("subscriptions/count"),
            retained,
            queued: self.value("messages/stored").saturating_sub(retained),
        }
    }

    /// How it is when nothing happens: the first rounds may be of a broker that does not know yet of this client, or
    /// has not counted its own retained messages.
    pub(crate) fn settled(&mut self) -> State {
        let mut before = self.state();
        self.wait_until("the counters settle", |counters| {
            let now = counters.state();
            let is_settled = now == before && now.subscriptions == 1 && now.retained > 0;
            before = now;
            is_settled
        });
        before
    }

    /// Waits for the broker to publish them once more.
    pub(crate) fn next_round(&mut self) {
        loop {
            let message = self.client.message();
            let name = message.topic.strip_prefix(ROOT).unwrap();
            if let Ok(value) = message.text().parse() {
                self.values.insert(name.to_owned(), value);
            }
            if name == LAST {
                return;
            }
        }
    }

    /// Keeps up with them for a while.
    pub(crate) fn watch_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.next_round();
        }
    }

    pub(crate) fn wait_until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "not in time: {what}, but {:?}", self.state());
            self.next_round();
        }
    }
}
