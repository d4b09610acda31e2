//! Subscriptions of one session, requests that wait for the shards, and replays. Floor 2, owned by
//! `Session`.
//!
//! # Invariants
//!
//! - SUBACK and UNSUBACK leave when every concerned shard has answered, and in the order in which the
//!   requests came.
//! - Retained messages follow their SUBACK: a replay is asked for after it was sent.
//! - One chunk of one replay is on its way at a time.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;

use crate::access::Rights;
use crate::codec::{
    Packet, Properties, ReasonCode, RetainHandling, SubAck, Subscribe, SubscribeOptions, UnsubAck,
    Unsubscribe,
};
use crate::ids::{PacketId, ProtocolVersion};
use crate::message::{Grant, Replay};
use crate::session::naming::whole_filter;
use crate::session::output::{Request, Retained};
use crate::session::refusal::FilterRefusal;
use crate::session::{CloseReason, Limits, Link, Output};
use crate::topic::TopicFilter;

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Subscribing {
    /// To each filter the newest request that asked for its retained messages: the replay of an earlier
    /// one is out of date.
    filters: HashMap<TopicFilter, u64>,
    /// Bytes of the texts in `filters`.
    filter_bytes: usize,
    requests: VecDeque<Pending>,
    /// Token of the next request; a token is never used twice in a session's life.
    next_token: u64,
    replays: VecDeque<Replay>,
    /// When `replays` is this long, those that nobody wants any more are looked for.
    replays_checked_at: usize,
    replay_is_out: bool,
    /// There was a shared subscription, and messages that came by it may still wait.
    has_shared: bool,
}

/// A SUBSCRIBE or UNSUBSCRIBE that is not answered yet.
#[derive(Debug)]
struct Pending {
    token: u64,
    id: PacketId,
    answer: Answer,
    reasons: Vec<u8>,
    /// Why the first of the refused filters is refused.
    why: Option<String>,
    /// Shards that have answered.
    parts: usize,
    /// Shards that have to; known with the first answer, zero parts with `Some(0)`.
    parts_due: Option<usize>,
    replays: Vec<Replay>,
    /// What the answer says about each filter that it is about; written down when it leaves.
    changes: Vec<(TopicFilter, Option<Grant>)>,
}

/// What the client will be told, and what of it has to be remembered.
struct Told {
    reasons: Vec<u8>,
    why: Option<String>,
    changes: Vec<(TopicFilter, Option<Grant>)>,
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

    /// The filters of an earlier process.
    pub(super) fn remember(&mut self, filters: Vec<TopicFilter>) {
        for filter in filters {
            self.has_shared |= filter.is_shared();
            self.filter_bytes += filter.as_str().len();
            self.filters.insert(filter, self.next_token);
            // Shards know the session.
            self.next_token = self.next_token.max(1);
        }
    }

    /// What the session is subscribed to.
    pub(super) fn filters(&self) -> impl Iterator<Item = &TopicFilter> {
        self.filters.keys()
    }

    /// How many filters that is.
    pub(super) fn len(&self) -> usize {
        self.filters.len()
    }

    /// Whether there ever was a request.
    pub(super) fn has_asked(&self) -> bool {
        self.next_token > 0
    }

    /// Whether there ever was a shared subscription.
    pub(super) fn has_shared(&self) -> bool {
        self.has_shared
    }

    /// SUBSCRIBE: remembers what is granted and asks the router for it.
    pub(super) fn subscribe(
        &mut self,
        packet: &Subscribe<'_>,
        limits: &Limits,
        rights: &Rights,
        link: &Link,
        out: &mut Output,
    ) {
        let mut options = packet.filters.iter();
        if options.any(|(text, options)| options.no_local && text.starts_with("$share/")) {
            // [MQTT-3.8.3-4]
            return out.close(CloseReason::Protocol("No Local on a shared subscription"));
        }
        let identifier = packet.properties.subscription_identifiers().next();
        let identifier = identifier.and_then(NonZeroU32::new);
        let mut wanted: Vec<(_, _, Retained)> = Vec::with_capacity(packet.filters.len());
        let mut places: HashMap<_, usize> = HashMap::new();
        let mut reasons = Vec::with_capacity(packet.filters.len());
        let mut why = None;
        for (text, options) in packet.filters.iter() {
            let outcome = match check(text, limits, rights, link, out) {
                Ok(filter) => self.grant(filter, options, identifier, limits, out),
                Err(refusal) => Err(refusal),
            };
            reasons.push(match outcome {
                Ok(mut granted) => {
                    // A filter that comes twice counts once, as it was given last [MQTT-3.8.4-3], and gets
                    // the retained messages if it asked for them once [MQTT-3.8.4-5].
                    match places.entry(granted.0.clone()) {
                        Entry::Occupied(place) => {
                            let earlier = &mut wanted[*place.get()];
                            if earlier.2 == Retained::Replay {
                                granted.2 = Retained::Replay;
                            }
                            *earlier = granted;
                        }
                        Entry::Vacant(place) => {
                            place.insert(wanted.len());
                            wanted.push(granted);
                        }
                    }
                    limits.availability.grant(options.qos) as u8
                }
                Err(refusal) => {
                    why.get_or_insert_with(|| explain(reasons.len(), refusal));
                    suback_failure(refusal.reason_code(), link.version)
                }
            });
        }
        let changes = match link.durable {
            Some(_) => wanted.iter().map(|it| (it.0.clone(), Some(it.1))).collect(),
            None => Vec::new(),
        };
        let told = Told { reasons, why, changes };
        let token = self.enqueue(packet.id, Answer::SubAck, told, wanted.is_empty());
        if wanted.is_empty() {
            self.answer(link, out);
        } else {
            out.requests.push_back(Request::Subscribe { token, filters: wanted });
        }
    }

    /// UNSUBSCRIBE: forgets the filters and asks the router to.
    pub(super) fn unsubscribe(&mut self, packet: &Unsubscribe<'_>, link: &Link, out: &mut Output) {
        let mut gone = Vec::new();
        let mut changes = Vec::new();
        let mut reasons = Vec::with_capacity(packet.filters.len());
        let mut why = None;
        for text in packet.filters.iter() {
            let filter = TopicFilter::parse(text).map_err(FilterRefusal::from);
            let filter = filter.and_then(|filter| whole_filter(filter, link));
            let known = filter.as_ref().is_ok_and(|filter| self.filters.remove(filter).is_some());
            if let (Ok(filter), true) = (&filter, known) {
                self.filter_bytes -= filter.as_str().len();
            }
            let reason = match (&filter, known) {
                (Ok(_), true) => ReasonCode::Success,
                (Ok(_), false) => ReasonCode::NoSubscriptionExisted,
                (Err(refusal), _) => {
                    let refusal = *refusal;
                    why.get_or_insert_with(|| explain(reasons.len(), refusal));
                    refusal.reason_code()
                }
            };
            reasons.push(reason.as_u8());
            if link.durable.is_some()
                && let Ok(filter) = &filter
            {
                // Also of one that is not known: perhaps the connection was lost before UNSUBACK, and nothing written.
                changes.push((filter.clone(), None));
            }
            if let (Ok(filter), true) = (filter, known) {
                gone.push(filter);
            }
        }
        out.tally.subscriptions -= gone.len() as i64;
        let told = Told { reasons, why, changes };
        let token = self.enqueue(packet.id, Answer::UnsubAck, told, gone.is_empty());
        if gone.is_empty() {
            self.answer(link, out);
        } else {
            out.requests.push_back(Request::Unsubscribe { token, filters: gone });
        }
    }

    /// One of `parts_due` shards has done what request `token` asked.
    pub(super) fn part_done(&mut self, token: u64, parts_due: usize, replay: Option<Replay>) {
        // A request of an earlier connection has no entry any more, and nobody waits for its replay.
        let Some(first) = self.requests.front().map(|pending| pending.token) else { return };
        let index = token.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        let Some(pending) = index.and_then(|index| self.requests.get_mut(index)) else { return };
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
            match &pending.why {
                Some(why) => out.send_explained(&packet, why, link),
                None => out.send(&packet, link),
            }
            for (filter, grant) in &pending.changes {
                match grant {
                    Some(grant) => out.journal.subscribed(link.durable, filter.as_str(), *grant),
                    None => out.journal.unsubscribed(link.durable, filter.as_str()),
                }
            }
            self.replays.extend(pending.replays);
        }
        if self.replays.len() > self.replays_checked_at {
            let mut replays = std::mem::take(&mut self.replays);
            replays.retain_mut(|replay| self.narrow(replay));
            self.replays_checked_at = 2 * replays.len() + 64;
            self.replays = replays;
        }
    }

    /// Asks for the next chunk. Call it when everything that arrived has been sent.
    pub(super) fn ask_for_chunk(&mut self, out: &mut Output) {
        if self.replay_is_out {
            return;
        }
        while let Some(mut replay) = self.replays.pop_front() {
            if self.narrow(&mut replay) {
                self.replay_is_out = true;
                return out.requests.push_back(Request::Replay(replay));
            }
        }
    }

    /// Leaves out of `replay` what the client has unsubscribed from or subscribed to anew
    /// since [MQTT-3.10.4-2]. False where nothing is left.
    fn narrow(&self, replay: &mut Replay) -> bool {
        let is_wanted = |filter: &TopicFilter| {
            self.filters.get(filter).is_some_and(|newest| *newest == replay.token)
        };
        let rest = replay.filters.get(replay.filter..).unwrap_or_default();
        if rest.iter().all(|(filter, _)| is_wanted(filter)) {
            return !rest.is_empty();
        }
        if !rest.first().is_some_and(|(filter, _)| is_wanted(filter)) {
            replay.after = None;
        }
        let wanted = rest.iter().filter(|(filter, _)| is_wanted(filter)).cloned();
        replay.filters = wanted.collect();
        replay.filter = 0;
        !replay.filters.is_empty()
    }

    fn grant(
        &mut self,
        filter: TopicFilter,
        options: SubscribeOptions,
        identifier: Option<NonZeroU32>,
        limits: &Limits,
        out: &mut Output,
    ) -> Result<(TopicFilter, Grant, Retained), FilterRefusal> {
        let grant = Grant {
            qos: limits.availability.grant(options.qos),
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            identifier,
        };
        let earlier = self.filters.get(&filter).copied();
        let is_new = earlier.is_none();
        if is_new {
            if out.is_memory_short {
                return Err(FilterRefusal::NoMemory);
            }
            let bytes = self.filter_bytes + filter.as_str().len();
            if self.filters.len() >= limits.subscriptions_max {
                return Err(FilterRefusal::TooMany(limits.subscriptions_max));
            }
            if bytes > limits.subscription_bytes_max {
                return Err(FilterRefusal::TooManyBytes(limits.subscription_bytes_max));
            }
            self.filter_bytes = bytes;
            out.tally.subscriptions += 1;
        }
        let retained = match options.retain_handling {
            // Section 4.8.2: there are no retained messages for a shared subscription.
            _ if filter.is_shared() => Retained::Skip,
            RetainHandling::Send => Retained::Replay,
            RetainHandling::SendIfNew if is_new => Retained::Replay,
            RetainHandling::SendIfNew | RetainHandling::DoNotSend => Retained::Skip,
        };
        let replay_token = match (retained, earlier) {
            (Retained::Skip, Some(earlier)) => earlier,
            _ => self.next_token,
        };
        self.has_shared |= filter.is_shared();
        self.filters.insert(filter.clone(), replay_token);
        Ok((filter, grant, retained))
    }

    fn enqueue(
        &mut self,
        id: PacketId,
        answer: Answer,
        Told { reasons, why, changes }: Told,
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
            why,
            parts: 0,
            parts_due,
            replays,
            changes,
        });
        token
    }
}

/// The filter of a client with its mount point, if the client may be subscribed to it.
fn check(
    text: &str,
    limits: &Limits,
    rights: &Rights,
    link: &Link,
    out: &mut Output,
) -> Result<TopicFilter, FilterRefusal> {
    let filter = whole_filter(TopicFilter::parse(text)?, link)?;
    limits.availability.check_filter(&filter)?;
    let decision = rights.may_subscribe(&filter);
    if !decision.is_allowed() {
        out.deny("subscribe", filter.as_str(), &decision);
        return Err(FilterRefusal::NotAllowed);
    }
    Ok(filter)
}

/// What the answer to a request says about the filter at `index`: the codes say it of each, the
/// sentence of one.
fn explain(index: usize, refusal: FilterRefusal) -> String {
    format!("filter {}: {refusal}", index + 1)
}

/// 3.1.1 knows one failure code only [MQTT-3.9.3-2].
fn suback_failure(reason: ReasonCode, version: ProtocolVersion) -> u8 {
    match version {
        ProtocolVersion::V5 => reason.as_u8(),
        ProtocolVersion::V31 | ProtocolVersion::V311 => 0x80,
    }
}
