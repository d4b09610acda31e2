//! Subscriptions of one session, requests that wait for the shards, and replays. Floor 2, owned by
//! `Session`.
//!
//! # Invariants
//!
//! - SUBACK and UNSUBACK leave when every concerned shard has answered, and in the order in which the
//!   requests came.
//! - Retained messages follow their SUBACK: a replay is asked for after it was sent.
//! - One chunk of one replay is on its way at a time.

use std::collections::{HashMap, VecDeque};

use crate::codec::{
    Packet, Properties, ReasonCode, RetainHandling, SubAck, Subscribe, SubscribeOptions, UnsubAck,
    Unsubscribe,
};
use crate::ids::{PacketId, ProtocolVersion};
use crate::message::{Grant, Replay};
use crate::session::output::{Request, Retained};
use crate::session::{Link, Output};
use crate::topic::TopicFilter;

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Subscribing {
    filters: HashMap<TopicFilter, Grant>,
    requests: VecDeque<Pending>,
    /// Token of the next request; a token is never used twice in a session's life.
    next_token: u64,
    replays: VecDeque<Replay>,
    replay_is_out: bool,
}

/// A SUBSCRIBE or UNSUBSCRIBE that is not answered yet.
#[derive(Debug)]
struct Pending {
    token: u64,
    id: PacketId,
    answer: Answer,
    reasons: Vec<u8>,
    /// Shards that have answered.
    parts: usize,
    /// Shards that have to; known with the first answer, zero parts with `Some(0)`.
    parts_due: Option<usize>,
    replays: Vec<Replay>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    SubAck,
    UnsubAck,
}

impl Subscribing {
    /// Requests of a connection that is gone are not answered; replays go on with the next one.
    pub(super) fn detach(&mut self) {
        self.requests.clear();
    }

    /// What the session is subscribed to.
    pub(super) fn filters(&self) -> impl Iterator<Item = &TopicFilter> {
        self.filters.keys()
    }

    /// How many filters that is.
    pub(super) fn len(&self) -> usize {
        self.filters.len()
    }

    /// Whether there was a request, on any connection.
    pub(super) fn has_ever_asked(&self) -> bool {
        self.next_token > 0
    }

    /// SUBSCRIBE: remembers what is granted and asks the router for it.
    pub(super) fn subscribe(
        &mut self,
        packet: &Subscribe<'_>,
        filters_max: usize,
        link: &Link,
        out: &mut Output,
    ) {
        let mut wanted = Vec::with_capacity(packet.filters.len());
        let mut reasons = Vec::with_capacity(packet.filters.len());
        for (text, options) in packet.filters.iter() {
            let outcome = self.grant(text, options, filters_max, out);
            reasons.push(match outcome {
                Ok(granted) => {
                    wanted.push(granted);
                    options.qos as u8
                }
                Err(reason) => suback_failure(reason, link.version),
            });
        }
        let token = self.enqueue(packet.id, Answer::SubAck, reasons, wanted.is_empty());
        if wanted.is_empty() {
            self.answer(link, out);
        } else {
            out.requests.push_back(Request::Subscribe { token, filters: wanted });
        }
    }

    /// UNSUBSCRIBE: forgets the filters and asks the router to.
    pub(super) fn unsubscribe(&mut self, packet: &Unsubscribe<'_>, link: &Link, out: &mut Output) {
        let mut gone = Vec::new();
        let mut reasons = Vec::with_capacity(packet.filters.len());
        for text in packet.filters.iter() {
            let filter = TopicFilter::parse(text);
            let known = filter.as_ref().is_ok_and(|filter| self.filters.remove(filter).is_some());
            let reason = match (&filter, known) {
                (Ok(_), true) => ReasonCode::Success,
                (Ok(_), false) => ReasonCode::NoSubscriptionExisted,
                (Err(_), _) => ReasonCode::TopicFilterInvalid,
            };
            reasons.push(reason.as_u8());
            if let (Ok(filter), true) = (filter, known) {
                gone.push(filter);
            }
        }
        out.tally.subscriptions -= gone.len() as i64;
        let token = self.enqueue(packet.id, Answer::UnsubAck, reasons, gone.is_empty());
        if gone.is_empty() {
            self.answer(link, out);
        } else {
            out.requests.push_back(Request::Unsubscribe { token, filters: gone });
        }
    }

    /// One of `parts_due` shards has done what request `token` asked.
    pub(super) fn part_done(&mut self, token: u64, parts_due: usize, replay: Option<Replay>) {
        // A request of an earlier connection has no entry any more, and nobody waits for its replay.
        let Some(pending) = self.requests.iter_mut().find(|pending| pending.token == token) else {
            return;
        };
        pending.parts += 1;
        pending.parts_due = Some(parts_due);
        pending.replays.extend(replay);
    }

    /// A chunk has arrived; `rest` is what is left of its replay.
    pub(super) fn chunk_arrived(&mut self, rest: Option<Replay>) {
        self.replay_is_out = false;
        if let Some(rest) = rest {
            self.replays.push_front(rest);
        }
    }

    /// Answers the requests that are complete.
    pub(super) fn answer(&mut self, link: &Link, out: &mut Output) {
        let complete = |pending: &mut Pending| pending.parts_due == Some(pending.parts);
        while let Some(pending) = self.requests.pop_front_if(complete) {
            let (id, properties) = (pending.id, Properties::EMPTY);
            let reasons = &pending.reasons[..];
            let packet = match pending.answer {
                Answer::SubAck => Packet::SubAck(SubAck { id, properties, reasons }),
                Answer::UnsubAck => Packet::UnsubAck(UnsubAck { id, properties, reasons }),
            };
            out.send(&packet, link.version);
            self.replays.extend(pending.replays);
        }
    }

    /// Asks for the next chunk. Call it when everything that arrived has been sent.
    pub(super) fn ask_for_chunk(&mut self, out: &mut Output) {
        if self.replay_is_out {
            return;
        }
        if let Some(replay) = self.replays.pop_front() {
            self.replay_is_out = true;
            out.requests.push_back(Request::Replay(replay));
        }
    }

    fn grant(
        &mut self,
        text: &str,
        options: SubscribeOptions,
        filters_max: usize,
        out: &mut Output,
    ) -> Result<(TopicFilter, Grant, Retained), ReasonCode> {
        let filter = TopicFilter::parse(text).map_err(|_| ReasonCode::TopicFilterInvalid)?;
        if filter.is_shared() {
            return Err(ReasonCode::SharedSubscriptionsNotSupported);
        }
        let grant = Grant {
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
        };
        let is_new = !self.filters.contains_key(&filter);
        if is_new && self.filters.len() >= filters_max {
            return Err(ReasonCode::QuotaExceeded);
        }
        self.filters.insert(filter.clone(), grant);
        out.tally.subscriptions += i64::from(is_new);
        let retained = match options.retain_handling {
            RetainHandling::Send => Retained::Replay,
            RetainHandling::SendIfNew if is_new => Retained::Replay,
            RetainHandling::SendIfNew | RetainHandling::DoNotSend => Retained::Skip,
        };
        Ok((filter, grant, retained))
    }

    fn enqueue(
        &mut self,
        id: PacketId,
        answer: Answer,
        reasons: Vec<u8>,
        is_complete: bool,
    ) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let parts_due = is_complete.then_some(0);
        let replays = Vec::new();
        self.requests.push_back(Pending {
            token,
            id,
            answer,
            reasons,
            parts: 0,
            parts_due,
            replays,
        });
        token
    }
}

/// 3.1.1 knows one failure code only [MQTT-3.9.3-2].
fn suback_failure(reason: ReasonCode, version: ProtocolVersion) -> u8 {
    match version {
        ProtocolVersion::V5 => reason.as_u8(),
        ProtocolVersion::V31 | ProtocolVersion::V311 => 0x80,
    }
}
