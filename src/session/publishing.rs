//! A PUBLISH from the client: may it be, what is answered, where does it go. Floor 2, part of `Session`.
//!
//! Nearly all messages come under their own name and are not refused: that way is short and is compiled into the loop
//! that reads packets.

use crate::codec::Publish;
use crate::ids::{PacketId, ProtocolVersion, Qos};
use crate::message::Incoming as Arrival;
use crate::metrics::Shortage;
use crate::session::aliases::SHORT_TOPIC_BYTES_MAX;
use crate::session::incoming::{Novelty, Verdict};
use crate::session::refusal::{PublishRefusal, has_wrong_format};
use crate::session::{CloseReason, Output, Place, Session};
use crate::topic::is_system_topic;

impl Session {
    /// The client published. `publish.topic` and `place` refer to the read buffer that the caller will
    /// flush `out.routes` with.
    #[inline(always)]
    pub fn handle_publish(&mut self, publish: &Publish<'_>, place: Place, out: &mut Output) {
        out.tally.packets_received += 1;
        out.tally.publishes_received += 1;
        out.tally.publish_bytes_received += place.frame.len() as u64;
        let (mut alias, mut expires, mut format) = (None, false, None);
        if !publish.properties.is_empty() {
            if publish.properties.subscription_identifiers().next().is_some() {
                let what = "subscription identifier in a client's PUBLISH";
                return out.close(CloseReason::Protocol(what));
            }
            alias = publish.properties.topic_alias();
            expires = publish.properties.message_expiry_interval_s().is_some();
            let is_checked = self.limits.check_payload_format;
            if is_checked && has_wrong_format(publish.properties, publish.payload) {
                format = Some(PublishRefusal::PayloadFormat);
            }
        }
        if let Some(alias) = alias
            && let Err(reason) = self.learn_alias(alias, publish.topic, out.is_memory_short)
        {
            return out.close(reason);
        }
        let (qos, retain) = (publish.delivery.qos(), publish.retain);
        if let Err(reason) = self.limits.availability.check_publish(qos, retain) {
            return out.close(reason);
        }
        if alias.is_some() || self.link.mount_point.is_some() {
            return self.handle_renamed(publish, place.frame.len(), alias, expires, format, out);
        }
        let topic = publish.topic;
        let refusal = self.find_refusal(topic).or(format);
        if self.admit(publish, topic, refusal, out) {
            let message = Arrival { topic, qos, retain, expires };
            out.routes.add(message, place.frame, place.topic_at);
        }
    }

    /// Why the client may not publish to `topic`, which is its whole name.
    #[inline(always)]
    pub(super) fn find_refusal(&mut self, topic: &str) -> Option<PublishRefusal> {
        if is_system_topic(topic) {
            return Some(PublishRefusal::SystemTopic);
        }
        (!self.permission.may_publish(topic)).then_some(PublishRefusal::NotAllowed)
    }

    /// Whether the message is to be routed. What is to be said of it is noted.
    #[inline(always)]
    pub(super) fn admit(
        &mut self,
        publish: &Publish<'_>,
        topic: &str,
        refusal: Option<PublishRefusal>,
        out: &mut Output,
    ) -> bool {
        let qos = publish.delivery.qos();
        if let Some(id) = publish.delivery.id()
            && self.receive(id, qos, refusal, out) == Novelty::Repeated
        {
            return false;
        }
        if let Some(refusal) = refusal {
            self.refuse(refusal, topic, qos, out);
        }
        refusal.is_none()
    }

    #[cold]
    fn refuse(&self, refusal: PublishRefusal, topic: &str, qos: Qos, out: &mut Output) {
        refusal.count(&mut out.tally);
        if refusal == PublishRefusal::NotAllowed {
            out.deny("publish", topic, &self.permission.rights().may_publish(topic));
        }
        if (qos, refusal) == (Qos::AtMostOnce, PublishRefusal::PayloadFormat) {
            out.close(CloseReason::PayloadFormatInvalid);
        }
    }

    /// Checks the alias of a PUBLISH, and remembers the topic if it comes with one and there is memory for it.
    fn learn_alias(
        &mut self,
        alias: u16,
        topic: &str,
        is_memory_short: bool,
    ) -> Result<(), CloseReason> {
        if alias > self.limits.topic_alias_max {
            return Err(CloseReason::TopicAliasInvalid);
        }
        if is_memory_short && topic.len() > SHORT_TOPIC_BYTES_MAX {
            return Err(CloseReason::NoRoom(Shortage::Memory));
        }
        if !topic.is_empty() {
            self.aliases.set(alias, topic);
        } else if self.aliases.get(alias).is_none() {
            return Err(CloseReason::Protocol("topic alias that stands for no topic yet"));
        }
        Ok(())
    }

    /// A QoS 1 or 2 message arrived: an answer is due at the end of the turn.
    fn receive(
        &mut self,
        id: PacketId,
        qos: Qos,
        refusal: Option<PublishRefusal>,
        out: &mut Output,
    ) -> Novelty {
        let verdict = refusal.map_or(Verdict::Accepted, Verdict::Refused);
        let novelty = match qos {
            Qos::AtMostOnce | Qos::AtLeastOnce => {
                self.incoming.receive_once(id, verdict);
                Novelty::New
            }
            Qos::ExactlyOnce => self.incoming.receive(id, verdict),
        };
        let max = self.limits.receive_max;
        let is_v5 = self.link.version == ProtocolVersion::V5;
        if is_v5 && self.incoming.unacknowledged() > usize::from(max) {
            out.close(CloseReason::ReceiveMaximumExceeded(max));
        }
        novelty
    }
}
