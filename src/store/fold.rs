//! What each record does to the tables. Floor 3, called by `tables`.
//!
//! # Invariants
//!
//! - Whatever a record says of sessions, messages and identifiers that are not there is nothing: the log may
//!   have a hole, and what a hole took away must not take anything else along.
//! - An identifier of a session that is [`Outgoing::Sent`] names a part of its queue, and each part that was
//!   sent has all its identifiers there.

use super::database::TablesError;
use super::entry::{Entry, IDENTIFIERS, Part, Sent, id_after};
use super::overlay::Overlay;
use super::place::split;
use super::row::{Outgoing, Retained, Terms, Will};
use crate::codec::PublishView;
use crate::ids::{LogPosition, PacketId, Qos, SessionId};
use crate::record::{Messages, Record, Span};

/// The record at `at` happens.
pub(super) fn fold(
    overlay: &mut Overlay,
    at: LogPosition,
    record: Record<'_>,
) -> Result<(), TablesError> {
    if let Some(session) = session_of(&record) {
        overlay.greatest_session = overlay.greatest_session.max(session.0);
        if !overlay.is_known(session) && !matches!(record, Record::SessionBegan { .. }) {
            return Ok(());
        }
    }
    match record {
        Record::Messages(messages) => fold_messages(overlay, at, messages)?,
        Record::Done { session, span } => done(overlay, session, span)?,
        Record::Sent { session, span, first_id } => {
            send(overlay, session, span, Sent { first_id, at })?;
        }
        Record::Received { session, id } => {
            if finish(overlay, session, id)? {
                overlay.outgoing(session)?.set(id, Outgoing::Received { at });
            }
        }
        Record::Completed { session, id } => {
            finish(overlay, session, id)?;
            overlay.outgoing(session)?.remove(id);
        }
        Record::Accepted { session, first_id, last_id } => {
            let accepted = overlay.accepted(session)?;
            let mut id = first_id;
            accepted.set(id, ());
            while id != last_id {
                id = id.next();
                accepted.set(id, ());
            }
        }
        Record::Released { session, id } => overlay.accepted(session)?.remove(id),
        Record::SessionBegan { session, client_id } => overlay.begin_session(session, client_id),
        Record::Connected { session, terms } => {
            let will = terms.will.map(|will| Will {
                version: will.version,
                delay_s: will.delay_s,
                frame: will.frame.into(),
            });
            let terms = Terms { expiry_s: terms.expiry_s, left_at_ms: None, will };
            *overlay.terms(session)? = terms;
        }
        Record::Disconnected { session, at_ms, expiry_s, is_will_withdrawn } => {
            let terms = overlay.terms(session)?;
            terms.left_at_ms = Some(at_ms);
            terms.expiry_s = expiry_s;
            if is_will_withdrawn {
                terms.will = None;
            }
        }
        Record::WillPublished { session } => overlay.terms(session)?.will = None,
        Record::SessionEnded { session } => overlay.end_session(session)?,
        Record::Subscribed { session, filter, grant } => {
            overlay.subscribe(session, filter, Some(grant));
        }
        Record::Unsubscribed { session, filter } => overlay.subscribe(session, filter, None),
        Record::RetainedGone { topic } => overlay.retain(topic, None)?,
        Record::Owned { session, owner } => {
            let mut row = Vec::new();
            owner.encode(&mut row);
            overlay.own(session, row);
        }
    }
    Ok(())
}

fn session_of(record: &Record<'_>) -> Option<SessionId> {
    match record {
        Record::Messages(_) | Record::RetainedGone { .. } => None,
        Record::Done { session, .. }
        | Record::Sent { session, .. }
        | Record::Received { session, .. }
        | Record::Completed { session, .. }
        | Record::Accepted { session, .. }
        | Record::Released { session, .. }
        | Record::SessionBegan { session, .. }
        | Record::Connected { session, .. }
        | Record::Disconnected { session, .. }
        | Record::WillPublished { session }
        | Record::SessionEnded { session }
        | Record::Subscribed { session, .. }
        | Record::Unsubscribed { session, .. }
        | Record::Owned { session, .. } => Some(*session),
    }
}

fn fold_messages(
    overlay: &mut Overlay,
    at: LogPosition,
    messages: Messages<'_>,
) -> Result<(), TablesError> {
    let mut live = 0_u64;
    for target in messages.targets {
        let session = target.session;
        let count = target.part.map_or(messages.count, |(_, count)| count);
        overlay.greatest_session = overlay.greatest_session.max(session.0);
        let is_known = overlay.enqueue(session, at, |entry| match entry {
            Some(entry) => {
                entry.add(target);
                None
            }
            None => Some(Entry::new(&messages, target)),
        });
        if is_known {
            live += u64::from(count);
        }
    }
    overlay.segments.add(at, live);
    if let Some(publisher) = messages.publisher {
        overlay.greatest_session = overlay.greatest_session.max(publisher.0);
        if overlay.is_known(publisher) {
            accept(overlay, publisher, &messages)?;
        }
    }
    if messages.is_retained {
        retain(overlay, at, &messages)?;
    }
    Ok(())
}

/// The identifiers in the frames are in use.
fn accept(
    overlay: &mut Overlay,
    publisher: SessionId,
    messages: &Messages<'_>,
) -> Result<(), TablesError> {
    let accepted = overlay.accepted(publisher)?;
    let mut rest = messages.frames;
    while let Some(view) = PublishView::parse(rest, messages.version) {
        let id = view.packet_id.filter(|_| view.qos() == Qos::ExactlyOnce);
        if let Some(id) = id.and_then(PacketId::new) {
            accepted.set(id, ());
        }
        rest = rest.get(view.frame_len..).unwrap_or_default();
    }
    Ok(())
}

/// The last of the frames is the retained message of its topic.
fn retain(
    overlay: &mut Overlay,
    at: LogPosition,
    messages: &Messages<'_>,
) -> Result<(), TablesError> {
    let number = messages.count.saturating_sub(1);
    let Some((before, last)) = split(messages.frames, number) else { return Ok(()) };
    let Some(view) = PublishView::parse(last, messages.version) else { return Ok(()) };
    let Ok(topic) = str::from_utf8(view.topic) else { return Ok(()) };
    if view.payload.is_empty() {
        return overlay.retain(topic, None);
    }
    let retained = Retained {
        version: messages.version,
        qos: messages.qos,
        expires: messages.expires,
        received_at_ms: messages.received_at_ms,
        at,
        number,
        offset: before.len() as u32,
        len: view.frame_len as u32,
    };
    overlay.segments.add(at, 1);
    overlay.retain(topic, Some(retained))
}

/// The session does not wait for these messages any more.
fn done(overlay: &mut Overlay, session: SessionId, span: Span) -> Result<(), TablesError> {
    let numbers = span.first..span.first.saturating_add(span.count);
    let taken = overlay.change_entry(session, span.at, |entry| {
        if let Some(gone) = entry.take_untouched(&numbers) {
            return (gone, Vec::new());
        }
        let taken = entry.take(numbers);
        (sum(&taken), taken)
    })?;
    let taken = taken.unwrap_or_default();
    if taken.iter().any(|part| part.sent.is_some()) {
        let outgoing = overlay.outgoing(session)?;
        for (id, _) in taken.iter().flat_map(sent_ids) {
            outgoing.remove(id);
        }
    }
    Ok(())
}

/// Messages are about to be sent. Who held one of their identifiers is done: it would not be given out again.
fn send(
    overlay: &mut Overlay,
    session: SessionId,
    span: Span,
    sent: Sent,
) -> Result<(), TablesError> {
    let numbers = span.first..span.first.saturating_add(span.count.min(IDENTIFIERS));
    let parts = overlay.change_entry(session, span.at, |entry| (0, entry.send(numbers, sent)))?;
    let ids: Vec<(PacketId, u32)> = parts.iter().flatten().flat_map(sent_ids).collect();
    for (id, number) in ids {
        finish(overlay, session, id)?;
        overlay.outgoing(session)?.set(id, Outgoing::Sent { at: span.at, number });
    }
    Ok(())
}

/// If a message was sent with this identifier it is done. False when nothing is known of the identifier, or
/// that its PUBREC came before.
fn finish(overlay: &mut Overlay, session: SessionId, id: PacketId) -> Result<bool, TablesError> {
    let Some(Outgoing::Sent { at, number }) = overlay.outgoing(session)?.get(id) else {
        return Ok(false);
    };
    overlay.change_entry(session, at, |entry| (sum(&entry.take_sent(number, id)), ()))?;
    Ok(true)
}

fn sum(parts: &[Part]) -> u64 {
    parts.iter().map(|part| u64::from(part.count)).sum()
}

/// Each identifier of a part, and the number of its message.
fn sent_ids(part: &Part) -> impl Iterator<Item = (PacketId, u32)> + use<> {
    let Part { first, count, sent } = *part;
    let first_id = sent.map(|sent| sent.first_id);
    let ids = first_id.into_iter();
    ids.flat_map(move |id| (0..count).map(move |step| (id_after(id, step), first + step)))
}
