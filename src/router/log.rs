//! Which runs of a shard are written into the log, and how. Floor 4, called by `router::shard`.
//!
//! A run has a record if a durable session gets it at QoS 1 or 2, or if it is retained: body, sessions and the
//! publisher's QoS 2 identifiers together, for half of that would be wrong after a crash. Of a run that no
//! durable session gets only the identifiers are written, if it is a durable session that published it.

use crate::ids::{PacketId, Qos, SessionId};
use crate::message::{Batch, Delivery, Kind, Logged, Run};
use crate::record::{Messages, MessagesWriter, Recipient, Record, Span, Targets};
use crate::router::keeper::Kept;
use crate::router::mailbox::{Home, Mailbox};
use crate::router::shard::packet_ids;
use crate::router::turn::Turn;
use crate::store::handle::Store;

/// Where messages come from.
#[derive(Clone, Copy)]
pub(super) struct Publisher<'a> {
    /// Of its session.
    pub(super) mailbox: &'a Mailbox,
    /// The client waits for acknowledgements. Nobody does for a will, and its packet identifier means nothing.
    pub(super) is_acknowledged: bool,
}

/// Call it before `run` is routed: `is_durable` says whether a durable session may get it.
pub(super) fn begin(
    turn: &mut Turn,
    store: &Store,
    batch: &Batch,
    run: &Run,
    from: Publisher<'_>,
    kept: Option<Kept>,
    is_durable: bool,
) {
    let is_retained = is_retained(from, kept);
    if is_retained || (is_durable && run.qos != Qos::AtMostOnce) {
        let publisher = has_identifiers(from, run).then(|| from.mailbox.session());
        begin_with(turn, store, batch, run, is_retained, publisher);
    }
}

/// Messages that have been routed before go to another member of their shared subscription.
pub(super) fn begin_again(turn: &mut Turn, store: &Store, batch: &Batch, run: &Run) {
    if run.qos != Qos::AtMostOnce {
        begin_with(turn, store, batch, run, false, None);
    }
}

/// `run` has been routed. Returns whether its publisher has to wait for the log.
pub(super) fn end(
    turn: &mut Turn,
    batch: &Batch,
    run: &Run,
    from: Publisher<'_>,
    kept: Option<Kept>,
) -> bool {
    let is_written = turn.end_record(is_retained(from, kept));
    let is_refused = kept == Some(Kept::Refused) && from.mailbox.client_id().is_some();
    if is_refused && let Ok(topic) = std::str::from_utf8(batch.topic(run)) {
        Record::RetainedGone { topic }.encode(turn.records());
    }
    if is_written || !has_identifiers(from, run) {
        return is_written || is_refused;
    }
    let session = from.mailbox.session();
    let mut accept = |(first_id, last_id): (PacketId, PacketId)| {
        Record::Accepted { session, first_id, last_id }.encode(turn.records());
    };
    let mut ids: Option<(PacketId, PacketId)> = None;
    for id in packet_ids(batch, run) {
        ids = match ids {
            Some((first, last)) if last.next() == id => Some((first, id)),
            earlier => {
                earlier.into_iter().for_each(&mut accept);
                Some((id, id))
            }
        };
    }
    ids.into_iter().for_each(accept);
    true
}

/// The messages of `batch`, which waited for `from`, are somebody else's now, or nobody's.
pub(super) fn moved(turn: &mut Turn, batch: &Batch, from: SessionId, logged: Option<Logged>) {
    let Some(Logged { at, number }) = logged else { return };
    let count = batch.runs.iter().map(|run| run.count).sum();
    let span = Span { at, first: number, count };
    Record::Done { session: from, span }.encode(turn.records());
}

/// Retained messages for a durable session are from now on its own: after a crash it must know what it was
/// sent.
pub(super) fn replayed(deliveries: &mut [Delivery], mailbox: &Mailbox, store: &Store) {
    if mailbox.home() != Home::Log {
        return;
    }
    let mut records = Vec::new();
    for delivery in deliveries.iter_mut().filter(|it| it.kind == Kind::Acknowledged) {
        let mut pieces = std::mem::take(&mut delivery.pieces);
        for piece in &mut pieces {
            let Some(buffer) = delivery.buffers.get(piece.buffer as usize) else { continue };
            let messages = Messages {
                version: piece.version,
                qos: piece.frame_qos,
                expires: piece.expires,
                is_retained: false,
                received_at_ms: store.clock().epoch_ms(buffer.received_at),
                publisher: None,
                count: piece.count,
                frames: delivery.frames(piece),
                targets: Targets::NONE,
            };
            let mut writer = MessagesWriter::begin(&messages, &mut records);
            let via = delivery.via(piece);
            let recipient = Recipient {
                session: mailbox.session(),
                qos: piece.qos,
                retain: piece.retain,
                identifiers: via.map_or(&[], |via| &via.identifiers),
                share: None,
                part: None,
            };
            writer.add(&recipient, &mut records);
            piece.record = writer.start() as u32 + 1;
            piece.first = 0;
            writer.end(&mut records);
        }
        delivery.pieces = pieces;
    }
    if records.is_empty() {
        return;
    }
    let at = store.append(&records, None);
    for delivery in deliveries.iter_mut().filter(|it| it.kind == Kind::Acknowledged) {
        delivery.logged_from = at;
    }
}

fn begin_with(
    turn: &mut Turn,
    store: &Store,
    batch: &Batch,
    run: &Run,
    is_retained: bool,
    publisher: Option<SessionId>,
) {
    let start = run.offset as usize;
    turn.begin_record(&Messages {
        version: batch.version,
        qos: run.qos,
        expires: run.expires,
        is_retained,
        received_at_ms: store.clock().epoch_ms(batch.received_at),
        publisher,
        count: run.count,
        frames: batch.frames.get(start..start + run.len as usize).unwrap_or_default(),
        targets: Targets::NONE,
    });
}

/// The broker's own retained messages are made anew by each process.
fn is_retained(from: Publisher<'_>, kept: Option<Kept>) -> bool {
    kept == Some(Kept::Newest) && from.mailbox.client_id().is_some()
}

/// Whether the identifiers in the frames must not be forgotten before their PUBREL.
fn has_identifiers(from: Publisher<'_>, run: &Run) -> bool {
    run.qos == Qos::ExactlyOnce && from.is_acknowledged && from.mailbox.home() == Home::Log
}
