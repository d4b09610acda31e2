//! Messages sent to the client and not yet acknowledged. Floor 2, called by `session::outgoing`.
//!
//! Packet identifiers are given out in order, so the window is a ring: the identifier itself is the
//! index. The frames are not held per message but per *body*, a stretch of frames that went out
//! together; it is let go when the last of its messages no longer needs it.
//!
//! # Invariants
//!
//! - At most `max` messages are sent on this connection and not complete [MQTT-3.3.4-9].
//! - An identifier is not used again before its message is complete [MQTT-2.2.1-3].
//! - `slots[i]` belongs to identifier `first + i`; `slots[0]` is never complete.
//! - A PUBREL is never held back by what is unacknowledged [MQTT-3.3.4-10].

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::codec::next_frame;
use crate::ids::{PacketId, ProtocolVersion, Qos};
use crate::message::{Logged, Undelivered, Via};

/// Packet identifiers that exist: all 16-bit numbers but zero.
const IDENTIFIERS: usize = 65_535;

/// See the module comment.
#[derive(Debug)]
pub(super) struct Window {
    max: usize,
    /// Sent on this connection and not complete, and whatever awaits PUBCOMP since an earlier one.
    unacknowledged: usize,
    first: PacketId,
    slots: VecDeque<Slot>,
    bodies: VecDeque<Held>,
    /// How many bodies have left the front: the number of `bodies[0]`.
    bodies_gone: u32,
    /// PUBLISHes of the slots from here on were sent on an earlier connection only.
    resend_from: usize,
    /// PUBRELs to be sent again, in the order of their PUBRECs [MQTT-4.6.0-4].
    pubrels: VecDeque<PacketId>,
    /// PUBRECs so far, which numbers them.
    pubrecs: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: State,
    /// Number of the body that holds its frame; once its PUBREC has come, the number of that.
    body: u32,
}

/// Where a message stands on its way to the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    AwaitsPubAck,
    AwaitsPubRec,
    AwaitsPubComp,
    Complete,
}

/// Frames that were sent together.
#[derive(Debug)]
pub(super) struct Body {
    /// Exactly the frames, as the broker holds them.
    pub(super) frames: Bytes,
    /// How they are encoded.
    pub(super) version: ProtocolVersion,
    /// QoS that they are delivered with, 1 or 2.
    pub(super) qos: Qos,
    /// RETAIN flag that they are delivered with.
    pub(super) retain: bool,
    /// They have a Message Expiry Interval, which counts from `received_at`.
    pub(super) expires: bool,
    /// When the broker got them.
    pub(super) received_at: Instant,
    /// By which subscriptions they come.
    pub(super) via: Option<Arc<Via>>,
    /// What the queue limit was charged for them.
    pub(super) charged_bytes: usize,
    /// The first of them, where they are in the log.
    pub(super) logged: Option<Logged>,
}

impl Body {
    /// Of the subscriptions that they match.
    pub(super) fn identifiers(&self) -> &[NonZeroU32] {
        self.via.as_ref().map_or(&[], |via| &via.identifiers)
    }

    /// Frame number `index` of it, where it is in the log.
    fn logged_at(&self, index: usize) -> Option<Logged> {
        self.logged.map(|Logged { at, number }| Logged { at, number: number + index as u32 })
    }
}

#[derive(Debug)]
struct Held {
    body: Body,
    /// Identifier of the first frame.
    first: PacketId,
    /// Messages that may have to be sent again from it.
    open: usize,
}

/// What has to be sent again after the client came back.
#[derive(Debug)]
pub(super) enum Resend<'w> {
    /// The PUBLISH, with DUP; its frame is number `index` of the body.
    Publish { id: PacketId, body: &'w Body, index: usize },
    /// The PUBREL.
    PubRel { id: PacketId },
}

/// What an acknowledgement meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Acknowledged {
    /// It was awaited.
    Expected {
        /// Bytes that the queue limit gets back.
        released_bytes: usize,
        /// The message, where it is in the log and the session is done with it.
        done: Option<Logged>,
    },
    /// No message awaits it.
    Unknown,
}

impl Window {
    /// An empty window.
    pub(super) fn new() -> Self {
        Self {
            max: 0,
            unacknowledged: 0,
            first: PacketId::FIRST,
            slots: VecDeque::new(),
            bodies: VecDeque::new(),
            bodies_gone: 0,
            resend_from: 0,
            pubrels: VecDeque::new(),
            pubrecs: 0,
        }
    }

    /// What an earlier process has sent: bodies with the identifier of their first message, and how many
    /// they are; and identifiers whose PUBCOMP is due, in the order of their PUBRECs. The window is empty before.
    pub(super) fn remember(
        &mut self,
        sent: Vec<(PacketId, Body, usize)>,
        awaits_pubcomp: &[PacketId],
    ) {
        let spans = sent.iter().map(|(id, _, count)| (*id, *count));
        let spans: Vec<_> = spans.chain(awaits_pubcomp.iter().map(|id| (*id, 1))).collect();
        let Some((first, len)) = enclosing(&spans) else { return };
        self.first = first;
        self.slots = vec![Slot { state: State::Complete, body: 0 }; len].into();
        for id in awaits_pubcomp {
            if let Some(slot) = self.slots.get_mut(distance(first, *id)) {
                *slot = Slot { state: State::AwaitsPubComp, body: self.pubrecs };
                self.pubrecs = self.pubrecs.wrapping_add(1);
            }
        }
        for (id, body, count) in sent {
            let state = match body.qos {
                Qos::AtMostOnce | Qos::AtLeastOnce => State::AwaitsPubAck,
                Qos::ExactlyOnce => State::AwaitsPubRec,
            };
            let number = self.bodies.len() as u32;
            let start = distance(first, id);
            for slot in self.slots.iter_mut().skip(start).take(count) {
                *slot = Slot { state, body: number };
            }
            self.bodies.push_back(Held { body, first: id, open: count });
        }
    }

    /// A connection begins that allows `max` unacknowledged messages; all open ones are to be
    /// sent again [MQTT-4.4.0-1].
    pub(super) fn attach(&mut self, max: u16) {
        self.max = max.into();
        self.resend_from = 0;
        let slots = self.slots.iter().enumerate();
        let half_done = slots.filter(|(_, slot)| slot.state == State::AwaitsPubComp);
        let mut half_done: Vec<_> = half_done.map(|(index, slot)| (index, slot.body)).collect();
        half_done.sort_by_key(|(_, pubrec)| Reverse(self.pubrecs.wrapping_sub(*pubrec)));
        self.unacknowledged = half_done.len();
        self.pubrels = half_done.into_iter().map(|(index, _)| self.id_at(index)).collect();
    }

    /// How many new messages may be sent now.
    pub(super) fn free(&self) -> usize {
        if self.resend_from < self.slots.len() {
            return 0;
        }
        (self.max - self.unacknowledged.min(self.max)).min(IDENTIFIERS - self.slots.len())
    }

    /// Messages that are not complete.
    pub(super) fn len(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state != State::Complete).count()
    }

    /// The identifier of the next message; those after it follow in order.
    pub(super) fn next_id(&self) -> PacketId {
        self.id_at(self.slots.len())
    }

    /// Opens a slot for each of `count` messages of `body`, from [`Window::next_id`] on; `count` is at most
    /// [`Window::free`].
    pub(super) fn push(&mut self, body: Body, count: usize) {
        let id = self.next_id();
        let state = match body.qos {
            Qos::AtMostOnce | Qos::AtLeastOnce => State::AwaitsPubAck,
            Qos::ExactlyOnce => State::AwaitsPubRec,
        };
        let number = self.bodies_gone.wrapping_add(self.bodies.len() as u32);
        self.bodies.push_back(Held { body, first: id, open: count });
        self.slots.extend(std::iter::repeat_n(Slot { state, body: number }, count));
        self.unacknowledged += count;
        self.resend_from = self.slots.len();
    }

    /// The client acknowledged a QoS 1 message.
    pub(super) fn puback(&mut self, id: PacketId) -> Acknowledged {
        match self.index_in(id, &[State::AwaitsPubAck]) {
            Some(index) => self.complete(index),
            None => Acknowledged::Unknown,
        }
    }

    /// The client has a QoS 2 message. `Expected` means that PUBREL is due, also for a repeated PUBREC.
    pub(super) fn pubrec(&mut self, id: PacketId) -> Acknowledged {
        match self.index_in(id, &[State::AwaitsPubRec, State::AwaitsPubComp]) {
            Some(index) => {
                Acknowledged::Expected { released_bytes: self.half_complete(index), done: None }
            }
            None => Acknowledged::Unknown,
        }
    }

    /// The client refused a QoS 2 message: it is complete [MQTT-4.3.3-4].
    pub(super) fn pubrec_refused(&mut self, id: PacketId) -> Acknowledged {
        match self.index_in(id, &[State::AwaitsPubRec]) {
            Some(index) => self.complete(index),
            None => Acknowledged::Unknown,
        }
    }

    /// The client finished a QoS 2 message.
    pub(super) fn pubcomp(&mut self, id: PacketId) -> Acknowledged {
        match self.index_in(id, &[State::AwaitsPubComp]) {
            Some(index) => self.complete(index),
            None => Acknowledged::Unknown,
        }
    }

    /// What to send again next: PUBRELs, then messages in the order of the first sending [MQTT-4.6.0-1]. Call
    /// [`Window::resent`] after it.
    pub(super) fn next_resend(&mut self) -> Option<Resend<'_>> {
        while let Some(id) = self.pubrels.front().copied() {
            if self.index_in(id, &[State::AwaitsPubComp]).is_some() {
                return Some(Resend::PubRel { id });
            }
            self.pubrels.pop_front();
        }
        let needs_none = |slot: &Slot| matches!(slot.state, State::AwaitsPubComp | State::Complete);
        while self.slots.get(self.resend_from).is_some_and(needs_none) {
            self.resend_from += 1;
        }
        if self.unacknowledged >= self.max {
            return None;
        }
        let slot = *self.slots.get(self.resend_from)?;
        let id = self.id_at(self.resend_from);
        let held = self.bodies.get(slot.body.wrapping_sub(self.bodies_gone) as usize)?;
        Some(Resend::Publish { id, body: &held.body, index: distance(held.first, id) })
    }

    /// What [`Window::next_resend`] returned is on its way.
    pub(super) fn resent(&mut self) {
        if self.pubrels.pop_front().is_none() {
            self.resend_from += 1;
            self.unacknowledged += 1;
        }
    }

    /// What was sent at QoS 1 by a shared subscription and not acknowledged. The session has ended: the
    /// window is not used again.
    pub(super) fn take_shared(&self, undelivered: &mut Vec<Undelivered>) {
        for (index, slot) in self.slots.iter().enumerate() {
            let held = self.bodies.get(slot.body.wrapping_sub(self.bodies_gone) as usize);
            if slot.state == State::AwaitsPubAck
                && let Some(Held { body, first, .. }) = held
                && let Some(filter) = body.via.as_ref().and_then(|via| via.share.clone())
                && let Some(frame) = frame_at(&body.frames, distance(*first, self.id_at(index)))
            {
                undelivered.push(Undelivered {
                    filter,
                    frames: Bytes::copy_from_slice(frame),
                    count: 1,
                    version: body.version,
                    expires: body.expires,
                    received_at: body.received_at,
                    logged: body.logged_at(distance(*first, self.id_at(index))),
                });
            }
        }
    }

    /// The message of the slot, if the log has it and its PUBREC has not come.
    fn logged(&self, index: usize) -> Option<Logged> {
        let slot = self.slots.get(index)?;
        if !matches!(slot.state, State::AwaitsPubAck | State::AwaitsPubRec) {
            return None;
        }
        let held = self.bodies.get(slot.body.wrapping_sub(self.bodies_gone) as usize)?;
        held.body.logged_at(distance(held.first, self.id_at(index)))
    }

    fn id_at(&self, index: usize) -> PacketId {
        let raw = (usize::from(self.first.get()) - 1 + index) % IDENTIFIERS + 1;
        PacketId::new(raw as u16).unwrap_or(PacketId::FIRST)
    }

    /// Where `id` is, if it is in one of `states`.
    fn index_in(&self, id: PacketId, states: &[State]) -> Option<usize> {
        let index = distance(self.first, id);
        self.slots.get(index).is_some_and(|slot| states.contains(&slot.state)).then_some(index)
    }

    /// PUBREC came for the slot, perhaps not for the first time; returns bytes that are not held any more.
    fn half_complete(&mut self, index: usize) -> usize {
        match self.slots.get_mut(index) {
            Some(slot) if slot.state == State::AwaitsPubRec => {
                let body = slot.body;
                *slot = Slot { state: State::AwaitsPubComp, body: self.pubrecs };
                self.pubrecs = self.pubrecs.wrapping_add(1);
                // On this connection the message was not sent, but its PUBREL is.
                self.unacknowledged += usize::from(index >= self.resend_from);
                self.release(body)
            }
            _ => 0,
        }
    }

    fn complete(&mut self, index: usize) -> Acknowledged {
        let done = self.logged(index);
        let slot = self.slots.get_mut(index);
        let earlier =
            slot.map(|slot| std::mem::replace(slot, Slot { state: State::Complete, ..*slot }));
        let awaits_pubcomp = earlier.is_some_and(|slot| slot.state == State::AwaitsPubComp);
        if index < self.resend_from || awaits_pubcomp {
            self.unacknowledged = self.unacknowledged.saturating_sub(1);
        }
        while self.slots.front().is_some_and(|slot| slot.state == State::Complete) {
            self.slots.pop_front();
            self.first = self.first.next();
            self.resend_from = self.resend_from.saturating_sub(1);
        }
        let released_bytes = match earlier {
            Some(Slot { state: State::AwaitsPubAck | State::AwaitsPubRec, body }) => {
                self.release(body)
            }
            _ => 0,
        };
        Acknowledged::Expected { released_bytes, done }
    }

    /// One message of `body` will not be sent again. Lets go of the bodies that nobody needs;
    /// returns what they were charged.
    fn release(&mut self, body: u32) -> usize {
        if let Some(held) = self.bodies.get_mut(body.wrapping_sub(self.bodies_gone) as usize) {
            held.open = held.open.saturating_sub(1);
        }
        let mut released_bytes = 0;
        while let Some(held) = self.bodies.pop_front_if(|held| held.open == 0) {
            self.bodies_gone = self.bodies_gone.wrapping_add(1);
            released_bytes += held.body.charged_bytes;
        }
        released_bytes
    }
}

/// A stretch of identifiers that holds all `spans`: its first one and its length. The first span is the oldest, or
/// younger than some of those that await PUBCOMP: these lie less than half the ring before it.
fn enclosing(spans: &[(PacketId, usize)]) -> Option<(PacketId, usize)> {
    let (origin, _) = *spans.first()?;
    let back = |id: PacketId| Some(distance(id, origin)).filter(|back| *back < IDENTIFIERS / 2);
    let oldest = spans.iter().max_by_key(|(id, _)| back(*id))?.0;
    let ends = spans.iter().map(|(id, count)| distance(oldest, *id) + count);
    Some((oldest, ends.max()?.min(IDENTIFIERS)))
}

/// Frame number `index` of `frames`.
fn frame_at(mut frames: &[u8], index: usize) -> Option<&[u8]> {
    for _ in 0..index {
        frames = frames.get(next_frame(frames)?..)?;
    }
    frames.get(..next_frame(frames)?)
}

/// How many identifiers lie between `from` and `to`.
fn distance(from: PacketId, to: PacketId) -> usize {
    (usize::from(to.get()) + IDENTIFIERS - usize::from(from.get())) % IDENTIFIERS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_each_other_and_skip_zero_when_they_wrap() {
        let mut window = window(10);
        for _ in 0..6553 {
            let first = window.next_id();
            window.push(body(Qos::AtLeastOnce), 10);
            for offset in 0..10 {
                let raw = first.get() + offset;
                assert_ne!(window.puback(id(raw)), Acknowledged::Unknown);
            }
        }
        assert_eq!(window.next_id(), id(65_531));
        window.push(body(Qos::AtLeastOnce), 10);
        for raw in (65_531..=65_535).chain(1..=5) {
            assert_ne!(window.puback(id(raw)), Acknowledged::Unknown, "{raw}");
        }
        assert_eq!(window.len(), 0);
    }

    #[test]
    fn out_of_order_acknowledgements_free_the_window_but_not_the_identifier() {
        let mut window = window(2);
        window.push(body(Qos::AtLeastOnce), 2);
        assert_eq!(window.free(), 0);
        window.puback(id(2));
        assert_eq!(window.free(), 1);
        assert_eq!(window.next_id(), id(3));
        window.push(body(Qos::AtLeastOnce), 1);
        assert_eq!(window.puback(id(2)), Acknowledged::Unknown);
    }

    #[test]
    fn body_is_given_back_with_its_last_message() {
        let mut window = window(10);
        window.push(body(Qos::AtLeastOnce), 2);
        assert_eq!(window.puback(id(1)), Acknowledged::Expected { released_bytes: 0, done: None });
        assert_eq!(
            window.puback(id(2)),
            Acknowledged::Expected { released_bytes: 100, done: None }
        );
    }

    #[test]
    fn qos_2_body_is_given_back_at_pubrec_and_the_window_at_pubcomp() {
        let mut window = window(1);
        window.push(body(Qos::ExactlyOnce), 1);
        assert_eq!(
            window.pubrec(id(1)),
            Acknowledged::Expected { released_bytes: 100, done: None }
        );
        assert_eq!(window.pubrec(id(1)), Acknowledged::Expected { released_bytes: 0, done: None });
        assert_eq!(window.free(), 0);
        assert_eq!(window.pubcomp(id(1)), Acknowledged::Expected { released_bytes: 0, done: None });
        assert_eq!(window.free(), 1);
        assert_eq!(window.pubcomp(id(1)), Acknowledged::Unknown);
    }

    #[test]
    fn resend_keeps_order_identifiers_and_kinds_and_respects_a_smaller_window() {
        let mut window = window(10);
        window.push(body(Qos::ExactlyOnce), 3);
        window.push(body(Qos::AtLeastOnce), 1);
        window.pubrec(id(1));
        window.pubcomp(id(1));
        window.pubrec(id(2));

        window.attach(2);
        let mut sent = Vec::new();
        while let Some(resend) = window.next_resend() {
            sent.push(match resend {
                Resend::Publish { id, index, .. } => (id.get(), Some(index)),
                Resend::PubRel { id } => (id.get(), None),
            });
            window.resent();
        }
        assert_eq!(sent, [(2, None), (3, Some(2))]);
        assert_eq!(window.free(), 0);

        window.pubcomp(id(2));
        assert!(matches!(window.next_resend(), Some(Resend::Publish { index: 0, .. })));
    }

    #[test]
    fn what_an_earlier_process_has_sent_is_sent_again_in_its_order_over_the_end_of_the_ring() {
        let mut window = Window::new();
        let sent =
            vec![(id(65_534), body(Qos::ExactlyOnce), 3), (id(5), body(Qos::ExactlyOnce), 1)];
        window.remember(sent, &[id(65_530), id(3)]);
        window.attach(10);
        let mut again = Vec::new();
        while let Some(resend) = window.next_resend() {
            again.push(match resend {
                Resend::Publish { id, index, .. } => (id.get(), Some(index)),
                Resend::PubRel { id } => (id.get(), None),
            });
            window.resent();
        }
        let publishes = [(65_534, Some(0)), (65_535, Some(1)), (1, Some(2)), (5, Some(0))];
        assert_eq!(again[..2], [(65_530, None), (3, None)]);
        assert_eq!(again[2..], publishes);
        assert_eq!(window.next_id(), id(6));
        assert_eq!(window.len(), 6);
        // Between them nothing is open.
        assert_eq!(window.pubrec(id(4)), Acknowledged::Unknown);
        for raw in [65_534, 65_535, 1, 5] {
            assert_ne!(window.pubrec(id(raw)), Acknowledged::Unknown, "{raw}");
        }
        for raw in [65_530, 65_534, 65_535, 1, 3, 5] {
            assert_ne!(window.pubcomp(id(raw)), Acknowledged::Unknown, "{raw}");
        }
        assert_eq!(window.len(), 0);
    }

    fn window(max: u16) -> Window {
        let mut window = Window::new();
        window.attach(max);
        window
    }

    fn body(qos: Qos) -> Body {
        Body {
            frames: Bytes::new(),
            version: ProtocolVersion::V311,
            qos,
            retain: false,
            expires: false,
            received_at: Instant::now(),
            via: None,
            charged_bytes: 100,
            logged: None,
        }
    }

    fn id(raw: u16) -> PacketId {
        PacketId::new(raw).unwrap()
    }
}
