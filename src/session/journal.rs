//! What a durable session wants to be known after a crash, as records. Floor 2, part of `Output`.
//!
//! Some of it has to be on disk before the client hears of it: an acknowledgement says that the broker will
//! not forget. Then the whole output is held back, for its bytes go out in their order.

use crate::ids::{PacketId, SessionId};
use crate::message::{Grant, Logged};
use crate::record::{Record, Span};
use crate::session::outgoing::Step;

/// Empty for sessions that end with the process.
#[derive(Debug, Default)]
pub struct Journal {
    records: Vec<u8>,
    holds_output: bool,
    /// Not written yet: the next message may follow it.
    done: Option<(SessionId, Span)>,
}

impl Journal {
    /// Takes out the records, and whether what is written to the client has to wait for them.
    pub fn take(&mut self) -> (Vec<u8>, bool) {
        self.write_done();
        (std::mem::take(&mut self.records), std::mem::take(&mut self.holds_output))
    }

    /// Whether there is anything to take.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.done.is_none()
    }

    /// `count` messages from `logged` on are no matter of the session any more.
    pub(super) fn done(&mut self, durable: Option<SessionId>, logged: Logged, count: u32) {
        let Some(session) = durable else { return };
        if let Some((owner, span)) = &mut self.done
            && *owner == session
            && span.at == logged.at
            && span.first + span.count == logged.number
        {
            span.count += count;
            return;
        }
        self.write_done();
        self.done = Some((session, Span { at: logged.at, first: logged.number, count }));
    }

    /// `count` QoS 2 messages from `logged` on are sent with identifiers from `first_id` on. After a crash they
    /// must be sent with the same ones, or the client would take them for others [MQTT-4.4.0-1].
    pub(super) fn sent(
        &mut self,
        durable: Option<SessionId>,
        logged: Logged,
        count: u32,
        first_id: PacketId,
    ) {
        let span = Span { at: logged.at, first: logged.number, count };
        self.hold(durable, |session| Record::Sent { session, span, first_id });
    }

    /// The client acknowledged a QoS 2 message. PUBREL says that the message is over.
    pub(super) fn step(&mut self, durable: Option<SessionId>, step: Step, id: PacketId) {
        match step {
            Step::Acknowledged => (),
            Step::Received => self.hold(durable, |session| Record::Received { session, id }),
            Step::Completed => self.add(durable, |session| Record::Completed { session, id }),
        }
    }

    /// A QoS 2 message that was sent is over without PUBREL: refused, or left out after all.
    pub(super) fn given_up(&mut self, durable: Option<SessionId>, id: PacketId) {
        self.add(durable, |session| Record::Received { session, id });
        self.add(durable, |session| Record::Completed { session, id });
    }

    /// PUBREL came: after PUBCOMP the client may use the identifier for another message.
    pub(super) fn released(&mut self, durable: Option<SessionId>, id: PacketId) {
        self.hold(durable, |session| Record::Released { session, id });
    }

    /// The subscription is in force.
    pub(super) fn subscribed(&mut self, durable: Option<SessionId>, filter: &str, grant: Grant) {
        self.hold(durable, |session| Record::Subscribed { session, filter, grant });
    }

    /// The subscription is over.
    pub(super) fn unsubscribed(&mut self, durable: Option<SessionId>, filter: &str) {
        self.hold(durable, |session| Record::Unsubscribed { session, filter });
    }

    fn hold<'a>(
        &mut self,
        durable: Option<SessionId>,
        record: impl FnOnce(SessionId) -> Record<'a>,
    ) {
        self.holds_output |= durable.is_some();
        self.add(durable, record);
    }

    fn add<'a>(
        &mut self,
        durable: Option<SessionId>,
        record: impl FnOnce(SessionId) -> Record<'a>,
    ) {
        let Some(session) = durable else { return };
        self.write_done();
        record(session).encode(&mut self.records);
    }

    fn write_done(&mut self) {
        if let Some((session, span)) = self.done.take() {
            Record::Done { session, span }.encode(&mut self.records);
        }
    }
}
