//! What the session has to answer, route and refuse, by the words of the standard.
//!
//! Sees each packet that the session is given, each end of a turn, each receipt and each part of a
//! request, and says which packets must have come out and whether the connection must be over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mailboxqtt::codec::{
    Ack, Auth, DecodeError, Disconnect, Packet, PacketType, PropertiesBuf, Property, Publish,
    PublishView, ReasonCode,
};
use mailboxqtt::ids::ProtocolVersion::V5;
use mailboxqtt::ids::{PacketId, Qos};
use mailboxqtt::message::Batch;

use super::LIMITS;
use super::pair::Terms;
use super::secret::{ANSWER, METHOD};
use super::sending::Sending;

/// See the module comment.
#[derive(Debug)]
pub(super) struct Answers {
    terms: Terms,
    /// Before the topics as shards know them.
    mount_point: &'static str,
    authentication: Authentication,
    /// What the client's topic aliases stand for.
    aliases: BTreeMap<u16, String>,
    /// QoS 2 identifiers between PUBLISH and PUBREL, and what is said about the message.
    received: BTreeMap<u16, Verdict>,
    /// In the order of the PUBLISHes.
    waiting: VecDeque<Waiting>,
    /// Turns that shards have a part of; those of earlier connections as well.
    turns: BTreeMap<u64, Turn>,
    requests: VecDeque<Request>,
    /// SUBSCRIBE and UNSUBSCRIBE packets so far.
    tokens: u64,
    /// What the present turn has to route.
    routes: Vec<Routed>,
    /// What must have come out since it was last asked for.
    said: Vec<Answer>,
    /// Requests whose SUBACK was sent.
    answered: BTreeSet<u64>,
    /// Messages that were refused.
    pub(super) not_routed: u64,
    close: Option<Close>,
}

/// A packet that answers another one. Codes are those of MQTT 5.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    PubAck(u16, u8),
    PubRec(u16, u8),
    PubRel(u16, u8),
    PubComp(u16, u8),
    /// With the number of reason codes.
    SubAck(u16, usize),
    /// With the number of reason codes; none in MQTT 3.x.
    UnsubAck(u16, usize),
    PingResp,
    Auth(u8),
}

/// Whether the client may prove anew who it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Authentication {
    /// It never was authenticated.
    None,
    Complete,
    /// It has begun to, and was asked for more.
    Open,
}

/// How the connection has to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Close {
    /// The client has said goodbye.
    Silently,
    /// DISCONNECT with this code, in MQTT 5.
    With(u8),
}

/// A message on its way to a shard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Routed {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    /// Raw.
    pub(super) properties: Vec<u8>,
}

/// What is said about a message in the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Accepted,
    /// Nobody has subscribed to its topic.
    Unmatched,
    Refused(ReasonCode),
}

#[derive(Debug)]
struct Waiting {
    /// Known when the turn has ended.
    turn: Option<u64>,
    id: u16,
    qos: Qos,
    verdict: Verdict,
    /// QoS 2, and the identifier was known already: the answer is that of the first time.
    is_repeated: bool,
}

#[derive(Debug)]
struct Turn {
    receipts_due: usize,
    unmatched: BTreeSet<u16>,
}

#[derive(Debug)]
struct Request {
    token: u64,
    answer: Answer,
    is_complete: bool,
}

impl Answers {
    /// Nothing was said yet.
    pub(super) fn new(terms: Terms, mount_point: &'static str) -> Self {
        Self {
            mount_point,
            terms,
            authentication: Authentication::None,
            aliases: BTreeMap::new(),
            received: BTreeMap::new(),
            waiting: VecDeque::new(),
            turns: BTreeMap::new(),
            requests: VecDeque::new(),
            tokens: 0,
            routes: Vec::new(),
            said: Vec::new(),
            answered: BTreeSet::new(),
            not_routed: 0,
            close: None,
        }
    }

    /// A connection begins. What an earlier one waits for is not answered any more; what it would have been
    /// refused is judged anew.
    pub(super) fn attach(&mut self, terms: Terms, authentication: Authentication) {
        self.terms = terms;
        self.authentication = authentication;
        self.aliases.clear();
        self.received.retain(|_, verdict| !matches!(verdict, Verdict::Refused(_)));
        self.waiting.clear();
        self.requests.clear();
        self.said.clear();
        self.close = None;
    }

    /// The packets that must have come out since the last time.
    pub(super) fn take_said(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.said)
    }

    /// Why the connection must be over; the first reason counts.
    pub(super) fn close(&self) -> Option<Close> {
        self.close
    }

    /// The session was given what is no packet.
    pub(super) fn malformed(&mut self, error: &DecodeError) {
        self.close_with(match error.reason_code() {
            // A second CONNECT of whatever version is one all the same [MQTT-3.1.0-2].
            ReasonCode::UnsupportedProtocolVersion => ReasonCode::ProtocolError,
            reason => reason,
        });
    }

    /// Something else than a packet ends the connection.
    pub(super) fn close_with(&mut self, reason: ReasonCode) {
        self.close.get_or_insert(Close::With(reason.as_u8()));
    }

    /// Whether the SUBACK of a request was sent.
    pub(super) fn is_answered(&self, token: u64) -> bool {
        self.answered.contains(&token)
    }

    /// The session was given `packet`, and asked the router for something or not.
    pub(super) fn take(&mut self, packet: &Packet<'_>, asked: bool, sending: &mut Sending) {
        match packet {
            Packet::Publish(publish) => self.publish(publish),
            Packet::PubAck(ack) => self.acknowledged(PacketType::PubAck, ack, sending),
            Packet::PubRec(ack) => self.acknowledged(PacketType::PubRec, ack, sending),
            Packet::PubComp(ack) => self.acknowledged(PacketType::PubComp, ack, sending),
            Packet::PubRel(ack) => {
                let is_known = self.received.remove(&ack.id.get()).is_some();
                let is_wrong = !is_known && self.terms.version == V5;
                self.say(Answer::PubComp(ack.id.get(), if is_wrong { 0x92 } else { 0 }));
            }
            Packet::Subscribe(subscribe) => {
                let answer = Answer::SubAck(subscribe.id.get(), subscribe.filters.len());
                self.request(answer, asked);
            }
            Packet::Unsubscribe(unsubscribe) => {
                let is_v5 = self.terms.version == V5;
                let codes = if is_v5 { unsubscribe.filters.len() } else { 0 };
                self.request(Answer::UnsubAck(unsubscribe.id.get(), codes), asked);
            }
            Packet::PingReq => self.say(Answer::PingResp),
            Packet::Disconnect(disconnect) => self.disconnect(disconnect),
            Packet::Auth(auth) => self.authenticate(auth),
            Packet::Connect(_)
            | Packet::ConnAck(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp => self.close_with(ReasonCode::ProtocolError),
        }
    }

    fn publish(&mut self, publish: &Publish<'_>) {
        if publish.properties.subscription_identifiers().next().is_some() {
            // [MQTT-3.3.4-6]
            return self.close_with(ReasonCode::ProtocolError);
        }
        let Some(topic) = self.topic_of(publish) else { return };
        let (qos, verdict) = (publish.delivery.qos(), self.verdict(&topic, publish));
        let mut is_new = true;
        if let Some(id) = publish.delivery.id().map(PacketId::get) {
            let mut waiting = Waiting { turn: None, id, qos, verdict, is_repeated: false };
            if qos == Qos::ExactlyOnce {
                is_new = !self.received.contains_key(&id);
                waiting.verdict = *self.received.entry(id).or_insert(verdict);
                waiting.is_repeated = !is_new;
            }
            self.waiting.push_back(waiting);
            let is_v5 = self.terms.version == V5;
            if is_v5 && self.unacknowledged() > usize::from(LIMITS.receive_max) {
                self.close_with(ReasonCode::ReceiveMaximumExceeded);
            }
        }
        match verdict {
            _ if !is_new => (),
            Verdict::Refused(_) => self.not_routed += 1,
            Verdict::Accepted | Verdict::Unmatched => {
                self.routes.push(Routed::new(publish, format!("{}{topic}", self.mount_point)));
            }
        }
        if let (Qos::AtMostOnce, Verdict::Refused(ReasonCode::PayloadFormatInvalid)) =
            (qos, verdict)
        {
            self.close_with(ReasonCode::PayloadFormatInvalid);
        }
    }

    fn verdict(&self, topic: &str, publish: &Publish<'_>) -> Verdict {
        let says_text = publish.properties.payload_format_indicator() == Some(true);
        let is_mounted = !self.mount_point.is_empty();
        if topic.starts_with("$SYS/") || is_mounted && topic.starts_with('$') {
            Verdict::Refused(ReasonCode::NotAuthorized)
        } else if says_text && std::str::from_utf8(publish.payload).is_err() {
            Verdict::Refused(ReasonCode::PayloadFormatInvalid)
        } else {
            Verdict::Accepted
        }
    }

    /// The topic, or what its alias stands for on this connection; `None` where that ends it.
    fn topic_of(&mut self, publish: &Publish<'_>) -> Option<String> {
        let Some(alias) = publish.properties.topic_alias() else {
            return Some(publish.topic.to_owned());
        };
        if alias > LIMITS.topic_alias_max {
            // [MQTT-3.3.2-9]
            self.close_with(ReasonCode::TopicAliasInvalid);
            return None;
        }
        if !publish.topic.is_empty() {
            self.aliases.insert(alias, publish.topic.to_owned());
        }
        let topic = self.aliases.get(&alias).cloned();
        if topic.is_none() {
            self.close_with(ReasonCode::ProtocolError);
        }
        topic
    }

    /// What counts against our Receive Maximum [MQTT-3.3.4-7].
    fn unacknowledged(&self) -> usize {
        let waiting = self.waiting.iter().filter(|waiting| waiting.qos == Qos::AtLeastOnce);
        waiting.count() + self.received.len()
    }

    fn acknowledged(&mut self, kind: PacketType, ack: &Ack<'_>, sending: &mut Sending) {
        if let Some((id, code)) = sending.acknowledged(kind, ack) {
            self.say(Answer::PubRel(id, code));
        }
    }

    fn request(&mut self, answer: Answer, asked: bool) {
        let token = self.tokens;
        self.tokens += 1;
        self.requests.push_back(Request { token, answer, is_complete: !asked });
        self.answer_requests();
    }

    /// All shards that are concerned have done what request `token` asked for.
    pub(super) fn request_done(&mut self, token: u64) {
        let request = self.requests.iter_mut().find(|request| request.token == token);
        if let Some(request) = request {
            request.is_complete = true;
        }
        self.answer_requests();
    }

    /// In the order of the requests.
    fn answer_requests(&mut self) {
        while let Some(request) = self.requests.pop_front_if(|request| request.is_complete) {
            self.answered.insert(request.token);
            self.say(request.answer);
        }
    }

    fn authenticate(&mut self, auth: &Auth<'_>) {
        let is_named = auth.properties.authentication_method() == Some(METHOD);
        let data = auth.properties.authentication_data().unwrap_or_default();
        match (auth.reason, self.authentication) {
            (ReasonCode::ReAuthenticate, Authentication::Complete) if is_named => {
                self.authentication = Authentication::Open;
                self.say(Answer::Auth(ReasonCode::ContinueAuthentication.as_u8()));
            }
            (ReasonCode::ContinueAuthentication, Authentication::Open) if is_named => {
                self.authentication = Authentication::Complete;
                match data == ANSWER {
                    true => self.say(Answer::Auth(ReasonCode::Success.as_u8())),
                    false => self.close_with(ReasonCode::NotAuthorized),
                }
            }
            _ => self.close_with(ReasonCode::ProtocolError),
        }
    }

    fn disconnect(&mut self, disconnect: &Disconnect<'_>) {
        // No CONNECT here asks for a session that outlives its connection [MQTT-3.14.2-2].
        if disconnect.properties.session_expiry_interval_s().is_some_and(|seconds| seconds > 0) {
            return self.close_with(ReasonCode::ProtocolError);
        }
        self.close.get_or_insert(Close::Silently);
    }

    /// The turn that gathers the messages since the last one ended, with these batches for the shards.
    pub(super) fn end_turn(
        &mut self,
        number: Option<u64>,
        batches: &[(usize, Batch)],
        shard_of: impl Fn(&str) -> usize,
    ) -> Vec<Routed> {
        let routes = std::mem::take(&mut self.routes);
        for (shard, batch) in batches {
            let expected = routes.iter().filter(|routed| shard_of(&routed.topic) == *shard);
            assert!(expected.eq(routed_by(batch).iter()), "wrong messages for shard {shard}");
        }
        let sum: usize = batches.iter().map(|(_, batch)| routed_by(batch).len()).sum();
        assert_eq!(sum, routes.len(), "a shard was forgotten or named twice");
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.turn.is_none()) {
            assert!(number.is_some(), "nothing would answer {waiting:?}");
            waiting.turn = number;
        }
        if let Some(number) = number {
            let receipts_due = batches.len();
            self.turns.insert(number, Turn { receipts_due, unmatched: BTreeSet::new() });
        }
        self.answer_turns();
        routes
    }

    /// A shard owns its batch of turn `number`; nobody has subscribed to the topics of `unmatched`.
    pub(super) fn accept(&mut self, number: u64, unmatched: &[u16]) {
        let turn = self.turns.get_mut(&number).expect("each batch gets one receipt");
        turn.receipts_due -= 1;
        turn.unmatched.extend(unmatched);
        self.answer_turns();
    }

    /// Complete turns in the order of the PUBLISHes [MQTT-4.6.0-2] [MQTT-4.6.0-3].
    fn answer_turns(&mut self) {
        while let Some(first) = self.turns.first_entry()
            && first.get().receipts_due == 0
        {
            let (complete, turn) = first.remove_entry();
            let is_due = |waiting: &mut Waiting| waiting.turn.is_some_and(|turn| turn <= complete);
            while let Some(waiting) = self.waiting.pop_front_if(is_due) {
                let verdict = self.conclude(&waiting, &turn.unmatched);
                let code = match verdict {
                    _ if self.terms.version != V5 => ReasonCode::Success,
                    Verdict::Accepted => ReasonCode::Success,
                    Verdict::Unmatched => ReasonCode::NoMatchingSubscribers,
                    Verdict::Refused(code) => code,
                };
                self.say(match waiting.qos {
                    Qos::ExactlyOnce => Answer::PubRec(waiting.id, code.as_u8()),
                    Qos::AtMostOnce | Qos::AtLeastOnce => Answer::PubAck(waiting.id, code.as_u8()),
                });
            }
        }
    }

    fn conclude(&mut self, waiting: &Waiting, unmatched: &BTreeSet<u16>) -> Verdict {
        let noted = match waiting.qos {
            Qos::ExactlyOnce => self.received.get(&waiting.id).copied(),
            Qos::AtMostOnce | Qos::AtLeastOnce => None,
        };
        match waiting.verdict {
            Verdict::Accepted if waiting.is_repeated => noted.unwrap_or(Verdict::Accepted),
            Verdict::Accepted if unmatched.contains(&waiting.id) => {
                if noted.is_some() {
                    self.received.insert(waiting.id, Verdict::Unmatched);
                }
                Verdict::Unmatched
            }
            Verdict::Refused(code) => {
                if waiting.qos == Qos::ExactlyOnce && !waiting.is_repeated {
                    // The identifier is free with its PUBREC [MQTT-4.3.3-9].
                    self.received.remove(&waiting.id);
                }
                Verdict::Refused(code)
            }
            verdict => verdict,
        }
    }

    /// An answer that the client does not take for its size ends the connection, for it cannot be
    /// left out [MQTT-3.1.2-24].
    fn say(&mut self, answer: Answer) {
        match self.terms.packet_bytes_max {
            Some(max) if answer.len(self.terms) > max as usize => {
                self.close_with(ReasonCode::PacketTooLarge);
            }
            _ => self.said.push(answer),
        }
    }
}

impl Answer {
    /// What was read, without what may be left out of it. `None` for a packet that answers nothing.
    pub(super) fn of(packet: &Packet<'_>) -> Option<Self> {
        let parts = |ack: &Ack<'_>| (ack.id.get(), ack.reason.as_u8());
        Some(match packet {
            Packet::PubAck(ack) => Self::PubAck(parts(ack).0, parts(ack).1),
            Packet::PubRec(ack) => Self::PubRec(parts(ack).0, parts(ack).1),
            Packet::PubRel(ack) => Self::PubRel(parts(ack).0, parts(ack).1),
            Packet::PubComp(ack) => Self::PubComp(parts(ack).0, parts(ack).1),
            Packet::SubAck(ack) => Self::SubAck(ack.id.get(), ack.reasons.len()),
            Packet::UnsubAck(ack) => Self::UnsubAck(ack.id.get(), ack.reasons.len()),
            Packet::PingResp => Self::PingResp,
            Packet::Auth(auth) => Self::Auth(auth.reason.as_u8()),
            _ => return None,
        })
    }

    /// Bytes of the shortest packet that says it.
    fn len(self, terms: Terms) -> usize {
        let properties = usize::from(terms.version == V5);
        match self {
            Self::PubAck(_, 0) | Self::PubRec(_, 0) | Self::PubRel(_, 0) | Self::PubComp(_, 0) => 4,
            Self::PubAck(..) | Self::PubRec(..) | Self::PubRel(..) | Self::PubComp(..) => 5,
            Self::SubAck(_, codes) | Self::UnsubAck(_, codes) => {
                let body = 2 + properties + codes;
                1 + if body < 0x80 { 1 } else { 2 } + body
            }
            Self::PingResp => 2,
            // Without data, and what it asks for has a byte of it.
            Self::Auth(0) => 7 + METHOD.len(),
            Self::Auth(_) => 7 + METHOD.len() + 4,
        }
    }
}

impl Routed {
    fn new(publish: &Publish<'_>, topic: String) -> Self {
        let mut properties = PropertiesBuf::new();
        let is_own = |property: &Property<'_>| !matches!(property, Property::TopicAlias(_));
        publish.properties.iter().filter(is_own).for_each(|own| {
            properties.push(own);
        });
        Self {
            topic,
            payload: publish.payload.to_vec(),
            qos: publish.delivery.qos(),
            retain: publish.retain,
            properties: properties.as_properties().as_bytes().to_vec(),
        }
    }
}

/// The packet identifiers of a batch.
pub(super) fn ids_in(batch: &Batch) -> Vec<u16> {
    let mut ids = Vec::new();
    for run in &batch.runs {
        let mut at = run.offset as usize;
        for _ in 0..run.count {
            let view = PublishView::parse(&batch.frames[at..], batch.version);
            let view = view.expect("a batch holds frames");
            ids.extend(view.packet_id);
            at += view.frame_len;
        }
    }
    ids
}

/// The messages of a batch, frame by frame.
fn routed_by(batch: &Batch) -> Vec<Routed> {
    let mut routed = Vec::new();
    for run in &batch.runs {
        let start = run.offset as usize;
        let mut frames = &batch.frames[start..start + run.len as usize];
        for _ in 0..run.count {
            let view = PublishView::parse(frames, batch.version).expect("a batch holds frames");
            assert_eq!(view.topic, batch.topic(run));
            routed.push(Routed {
                topic: String::from_utf8(view.topic.to_vec()).expect("a topic is text"),
                payload: view.payload.to_vec(),
                qos: run.qos,
                retain: run.retain,
                properties: view.properties.to_vec(),
            });
            frames = &frames[view.frame_len..];
        }
        assert!(frames.is_empty(), "a run is exactly its frames");
    }
    routed
}
