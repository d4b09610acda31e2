//! The durable state, said once more and as plainly as possible: a list of messages for each session, one by
//! one, nothing on disk, nothing counted.

use std::collections::{BTreeMap, BTreeSet};

use mailboxqtt::ids::{LogPosition, PacketId, Qos, SessionId};
use mailboxqtt::message::Grant;
use mailboxqtt::record::{Messages, Record, Span};
use mailboxqtt::store::{RecoveredRun, RecoveredSession, RecoveredState};

/// See the module comment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Model {
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) retained: BTreeMap<String, Retained>,
    pub(crate) greatest_session: u64,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Session {
    pub(crate) client_id: String,
    /// As bytes.
    pub(crate) owner: Option<Vec<u8>>,
    pub(crate) expiry_s: u32,
    pub(crate) left_at_ms: Option<u64>,
    pub(crate) will: Option<(Vec<u8>, u32)>,
    pub(crate) subscriptions: BTreeMap<String, Grant>,
    pub(crate) accepted: BTreeSet<PacketId>,
    /// In the order of arrival.
    pub(crate) messages: Vec<Message>,
    pub(crate) awaits_pubcomp: Vec<PacketId>,
}

/// One message for one session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Message {
    pub(crate) at: LogPosition,
    pub(crate) number: u32,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) identifiers: Vec<u32>,
    pub(crate) share: Option<String>,
    pub(crate) expires: bool,
    pub(crate) received_at_ms: u64,
    pub(crate) frames_len: u32,
    /// Position of the record that said so, and its identifier.
    pub(crate) sent: Option<(LogPosition, PacketId)>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Retained {
    pub(crate) at: LogPosition,
    pub(crate) number: u32,
    pub(crate) frame: Vec<u8>,
}

impl Model {
    pub(crate) fn apply(&mut self, at: LogPosition, record: &Record<'_>) {
        match record {
            Record::Messages(messages) => self.messages(at, *messages),
            Record::RetainedGone { topic } => drop(self.retained.remove(*topic)),
            Record::SessionBegan { session, client_id } => {
                self.names(*session);
                let new = || Session { client_id: (*client_id).to_owned(), ..Session::default() };
                self.sessions.entry(*session).or_insert_with(new);
            }
            Record::SessionEnded { session } => {
                self.names(*session);
                self.sessions.remove(session);
            }
            Record::Done { session, span } => self.with(*session, |it| it.done(*span)),
            Record::Sent { session, span, first_id } => {
                self.with(*session, |it| it.sent(at, *span, *first_id));
            }
            Record::Received { session, id } => self.with(*session, |it| {
                if it.finish(*id) {
                    it.awaits_pubcomp.push(*id);
                }
            }),
            Record::Completed { session, id } => self.with(*session, |it| {
                it.finish(*id);
                it.awaits_pubcomp.retain(|other| other != id);
            }),
            Record::Accepted { session, first_id, last_id } => self.with(*session, |it| {
                let ids = std::iter::successors(Some(*first_id), |id| Some(id.next()));
                let before = ids.take_while(|id| id != last_id);
                it.accepted.extend(before.chain([*last_id]));
            }),
            Record::Released { session, id } => {
                self.with(*session, |it| it.accepted.retain(|other| other != id));
            }
            Record::Connected { session, terms } => self.with(*session, |it| {
                it.expiry_s = terms.expiry_s;
                it.left_at_ms = None;
                it.will = terms.will.map(|will| (will.frame.to_vec(), will.delay_s));
            }),
            Record::Disconnected { session, at_ms, expiry_s, is_will_withdrawn } => {
                self.with(*session, |it| {
                    it.left_at_ms = Some(*at_ms);
                    it.expiry_s = *expiry_s;
                    it.will = it.will.take().filter(|_| !is_will_withdrawn);
                });
            }
            Record::WillPublished { session } => self.with(*session, |it| it.will = None),
            Record::Subscribed { session, filter, grant } => self.with(*session, |it| {
                it.subscriptions.insert((*filter).to_owned(), *grant);
            }),
            Record::Owned { session, owner } => self.with(*session, |it| {
                let mut row = Vec::new();
                owner.encode(&mut row);
                it.owner = Some(row);
            }),
            Record::Unsubscribed { session, filter } => {
                self.with(*session, |it| it.subscriptions.retain(|other, _| other != filter));
            }
        }
    }

    /// How many messages somebody needs, by the position of their record.
    pub(crate) fn live(&self) -> BTreeMap<LogPosition, u64> {
        let mut live = BTreeMap::new();
        let queued = self.sessions.values().flat_map(|it| it.messages.iter().map(|it| it.at));
        for at in queued.chain(self.retained.values().map(|it| it.at)) {
            *live.entry(at).or_default() += 1;
        }
        live
    }

    fn names(&mut self, session: SessionId) {
        self.greatest_session = self.greatest_session.max(session.0);
    }

    fn with(&mut self, session: SessionId, change: impl FnOnce(&mut Session)) {
        self.names(session);
        if let Some(session) = self.sessions.get_mut(&session) {
            change(session);
        }
    }

    fn messages(&mut self, at: LogPosition, messages: Messages<'_>) {
        for target in messages.targets {
            self.with(target.session, |it| {
                it.messages.extend((0..messages.count).map(|number| Message {
                    at,
                    number,
                    qos: target.qos,
                    retain: target.retain,
                    identifiers: target.identifiers.iter().map(|it| it.get()).collect(),
                    share: target.share.map(str::to_owned),
                    expires: messages.expires,
                    received_at_ms: messages.received_at_ms,
                    frames_len: messages.frames.len() as u32,
                    sent: None,
                }));
            });
        }
        let frames = super::frames(messages.frames);
        if let Some(publisher) = messages.publisher {
            let ids = frames.iter().filter_map(|frame| super::id_of(frame));
            self.with(publisher, |it| it.accepted.extend(ids));
        }
        if let (true, Some(frame)) = (messages.is_retained, frames.last()) {
            let (topic, payload) = super::topic_and_payload(frame);
            let number = messages.count - 1;
            let retained = Retained { at, number, frame: frame.to_vec() };
            match payload.is_empty() {
                true => drop(self.retained.remove(&topic)),
                false => drop(self.retained.insert(topic, retained)),
            }
        }
    }
}

impl Session {
    fn done(&mut self, span: Span) {
        let wanted = |it: &Message| {
            it.at == span.at && it.number >= span.first && it.number - span.first < span.count
        };
        let mut gone = BTreeSet::new();
        self.messages.retain(|it| !(wanted(it) && it.sent.is_none() && gone.insert(it.number)));
        self.messages.retain(|it| !(wanted(it) && gone.insert(it.number)));
    }

    fn sent(&mut self, at: LogPosition, span: Span, first_id: PacketId) {
        let mut id = first_id;
        for step in 0..span.count.min(65_535) {
            let number = span.first.wrapping_add(step);
            let is_it = |it: &Message| it.at == span.at && it.number == number && it.sent.is_none();
            if self.messages.iter().any(is_it) {
                self.finish(id);
                self.awaits_pubcomp.retain(|other| *other != id);
                if let Some(message) = self.messages.iter_mut().find(|it| is_it(it)) {
                    message.sent = Some((at, id));
                }
            }
            id = id.next();
        }
    }

    /// Whether a message was sent with this identifier; it is done.
    fn finish(&mut self, id: PacketId) -> bool {
        let before = self.messages.len();
        self.messages.retain(|it| it.sent.is_none_or(|(_, other)| other != id));
        self.messages.len() < before
    }
}

/// What was recovered, in the words of the model. The frames of retained messages are read with `read`.
pub(crate) fn as_model(
    recovered: &RecoveredState,
    read: impl Fn(&mailboxqtt::store::Place) -> Vec<u8>,
) -> Model {
    assert_eq!(recovered.unreadable_rows, 0);
    let retained = recovered.retained.iter().map(|it| {
        let (at, number) = (it.place.at, it.place.first);
        (it.topic.to_string(), Retained { at, number, frame: read(&it.place) })
    });
    Model {
        sessions: recovered.sessions.iter().map(|it| (it.session, session(it))).collect(),
        retained: retained.collect(),
        greatest_session: recovered.greatest_session,
    }
}

/// The model with what cannot be seen in [`RecoveredState`] brought into one form: messages that were sent
/// come first, in the order of sending.
pub(crate) fn in_order(mut model: Model) -> Model {
    for session in model.sessions.values_mut() {
        let order =
            |it: &Message| it.sent.map_or((1, LogPosition(0), 0), |(at, _)| (0, at, it.number));
        session.messages.sort_by_key(order);
        for message in &mut session.messages {
            message.sent = message.sent.map(|(_, id)| (LogPosition(0), id));
        }
    }
    model
}

fn session(it: &RecoveredSession) -> Session {
    let sent = it.sent.iter().flat_map(|it| messages(&it.run, Some(it.first_id)));
    let waiting = it.waiting.iter().flat_map(|it| messages(it, None));
    Session {
        client_id: it.client_id.to_string(),
        owner: it.owner.as_deref().map(<[u8]>::to_vec),
        expiry_s: it.expiry_s,
        left_at_ms: it.left_at_ms,
        will: it.will.as_ref().map(|will| (will.frame.to_vec(), will.delay_s)),
        subscriptions: it.subscriptions.iter().map(|(f, grant)| (f.to_string(), *grant)).collect(),
        accepted: it.accepted.iter().copied().collect(),
        messages: sent.chain(waiting).collect(),
        awaits_pubcomp: it.awaits_pubcomp.clone(),
    }
}

fn messages(run: &RecoveredRun, first_id: Option<PacketId>) -> Vec<Message> {
    let mut id = first_id;
    let mut messages = Vec::new();
    for step in 0..run.place.count {
        messages.push(Message {
            at: run.place.at,
            number: run.place.first + step,
            qos: run.qos,
            retain: run.retain,
            identifiers: run.identifiers.iter().map(|it| it.get()).collect(),
            share: run.share.as_deref().map(str::to_owned),
            expires: run.expires,
            received_at_ms: run.received_at_ms,
            frames_len: run.place.len,
            sent: id.map(|id| (LogPosition(0), id)),
        });
        id = id.map(PacketId::next);
    }
    messages
}
