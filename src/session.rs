//! One MQTT session as a pure state machine: all of the protocol, and nothing else. Floor 2.
//!
//! # Who calls whom
//!
//! `net::connection` owns a [`Session`] while the client is there; `router::registry` parks it while it
//! is not. The owner makes one `handle_*` call after the other and then carries out what the [`Output`]
//! says: bytes to write, messages to route, requests to the router, a reason to close.
//! The session calls nobody.
//!
//! ```text
//!   socket --PUBLISH--> handle_publish ---+
//!   socket --packet---> handle_packet ----+             bytes    -> socket
//!   shard  --messages-> handle_delivery --+-> Session -> routes   -> shards
//!   shard  --receipt--> handle_accepted --+             requests -> router
//!   shard  --done-----> handle_part_done -+             close    -> the end
//!   clock  -----------> handle_timeout ---+
//! ```
//!
//! # Invariants
//!
//! - No clock, no I/O, no task: time comes in as `now`.
//! - PUBACK and PUBREC leave only after every shard that got a part of the turn has taken it.
//! - One flow for 3.1, 3.1.1 and 5.0; the version matters to the codec and to reason codes only.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::codec::{Disconnect, Packet, Properties, Publish, ReasonCode};
use crate::ids::{PacketId, ProtocolVersion, Qos};
use crate::message::Delivery;
use crate::message::Incoming as Arrival;
use crate::message::Replay;
use crate::session::authentication::Reauthentication;
use crate::session::incoming::{Answer, Incoming, Novelty};
use crate::session::outgoing::{Outgoing, Step};
use crate::session::subscribing::Subscribing;
use crate::topic::TopicFilter;

pub mod authentication;

mod availability;
mod close;
mod connect;
mod incoming;
mod outgoing;
mod output;
mod subscribing;
mod will;
mod window;

pub use availability::Availability;
pub use close::CloseReason;
pub use connect::Expiry;
pub use connect::Link;
pub use connect::Opening;
pub use connect::negotiate;
pub use connect::refuse;
pub use output::Output;
pub use output::Request;
pub use output::Retained;
pub use output::Tally;
pub use will::Will;

/// [`Session::fill`] stops when the output holds this much; one more stretch of frames may go over it.
pub const OUTPUT_BYTES_MAX: usize = 256 * 1024;

/// Bounds of one session. All of them are finite.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Unacknowledged messages towards the client.
    pub inflight_max: u16,
    /// Unacknowledged messages from a v5 client: our Receive Maximum.
    pub receive_max: u16,
    /// Largest packet that is read, in bytes with its header.
    pub packet_bytes_max: u32,
    /// Filters that a session may be subscribed to.
    pub subscriptions_max: usize,
    /// Bytes of the texts of those.
    pub subscription_bytes_max: usize,
    /// Longest keep-alive that a v5 client may have, in seconds; `None` leaves it to the client.
    pub keep_alive_s_max: Option<u16>,
    /// Topic aliases that a client may use towards us, and we towards it.
    pub topic_alias_max: u16,
    /// What is left out.
    pub availability: Availability,
    /// Whether a payload that says it is text has to be text.
    pub check_payload_format: bool,
}

/// See the module comment.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    link: Link,
    last_heard: Instant,
    incoming: Incoming,
    outgoing: Outgoing,
    subscribing: Subscribing,
    will: Option<Will>,
    expiry: Expiry,
    /// `None` for a client that is not authenticated. Boxed, because most are not.
    reauthentication: Option<Box<Reauthentication>>,
}

/// Where a PUBLISH frame is in the read buffer.
#[derive(Clone, Debug)]
pub struct Place {
    /// The whole frame.
    pub frame: Range<usize>,
    /// Where its topic starts.
    pub topic_at: usize,
}

impl Session {
    /// A new session at the moment its first connection is accepted.
    pub fn new(limits: Limits, opening: &Opening, now: Instant) -> Self {
        let mut session = Self {
            limits,
            link: opening.link.clone(),
            last_heard: now,
            incoming: Incoming::default(),
            outgoing: Outgoing::new(),
            subscribing: Subscribing::default(),
            will: None,
            expiry: Expiry::WithConnection,
            reauthentication: None,
        };
        session.attach(opening, now);
        session
    }

    /// A connection begins; everything open is sent again by [`Session::fill`] [MQTT-4.4.0-1].
    pub fn attach(&mut self, opening: &Opening, now: Instant) {
        self.link = opening.link.clone();
        self.last_heard = now;
        self.will = opening.will.clone();
        self.expiry = opening.expiry;
        let authenticated = opening.authenticated.as_ref();
        self.reauthentication = authenticated.map(|it| Box::new(Reauthentication::new(it)));
        self.outgoing.attach(&self.link);
    }

    /// The connection is gone. Returns the will if it is due.
    pub fn detach(&mut self, reason: &CloseReason) -> Option<Will> {
        self.incoming.detach();
        self.subscribing.detach();
        self.reauthentication = None;
        self.will.take().filter(|_| reason.publishes_will())
    }

    /// How long the session outlives its connection.
    pub fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// The terms of the present connection, or of the last one.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Largest packet that is read, in bytes with its header.
    pub fn packet_bytes_max(&self) -> u32 {
        self.limits.packet_bytes_max
    }

    /// What the session is subscribed to.
    pub fn filters(&self) -> impl Iterator<Item = &TopicFilter> {
        self.subscribing.filters()
    }

    /// How many filters that is.
    pub fn subscriptions(&self) -> usize {
        self.subscribing.len()
    }

    /// Whether any shard may know the session, also if it has unsubscribed from everything since.
    pub fn has_subscribed(&self) -> bool {
        self.subscribing.has_asked()
    }

    /// Messages that were sent to the client and are not complete.
    pub fn inflight(&self) -> usize {
        self.outgoing.inflight()
    }

    /// Something was read from the client: it is alive.
    pub fn handle_read(&mut self, now: Instant) {
        self.last_heard = now;
    }

    /// The client published. `publish.topic` and `place` refer to the read buffer that the caller will
    /// flush `out.routes` with.
    pub fn handle_publish(&mut self, publish: &Publish<'_>, place: Place, out: &mut Output) {
        out.tally.packets_received += 1;
        out.tally.publishes_received += 1;
        out.tally.publish_bytes_received += place.frame.len() as u64;
        if !publish.properties.is_empty()
            && let Err(reason) = check_publish_properties(publish.properties)
        {
            return out.close(reason);
        }
        let refusal = publish.topic.starts_with("$SYS/").then_some(ReasonCode::NotAuthorized);
        let route = match publish.delivery.id() {
            None => refusal.is_none(),
            Some(id) => {
                let reason = refusal.unwrap_or(ReasonCode::Success);
                match self.receive(id, publish.delivery.qos(), reason, out) {
                    Novelty::New => refusal.is_none(),
                    Novelty::Repeated => return,
                }
            }
        };
        if !route {
            out.tally.not_authorized += 1;
            return;
        }
        out.routes.add(Arrival {
            topic: publish.topic,
            qos: publish.delivery.qos(),
            retain: publish.retain,
            frame: place.frame,
            topic_at: place.topic_at,
        });
    }

    /// The client sent something other than PUBLISH.
    pub fn handle_packet(&mut self, packet: &Packet<'_>, out: &mut Output) {
        out.tally.packets_received += 1;
        match packet {
            Packet::PubAck(ack) => {
                self.outgoing.acknowledged(Step::Acknowledged, ack, &self.link, out);
            }
            Packet::PubRec(ack) => {
                self.outgoing.acknowledged(Step::Received, ack, &self.link, out);
            }
            Packet::PubComp(ack) => {
                self.outgoing.acknowledged(Step::Completed, ack, &self.link, out);
            }
            Packet::PubRel(ack) => self.pubrel(ack.id, out),
            Packet::Subscribe(subscribe) => self.subscribe(subscribe, out),
            Packet::Unsubscribe(unsubscribe) => {
                self.subscribing.unsubscribe(unsubscribe, &self.link, out);
            }
            Packet::PingReq => out.send(&Packet::PingResp, &self.link),
            Packet::Disconnect(disconnect) => self.disconnect(disconnect, out),
            Packet::Connect(_) => out.close(CloseReason::Protocol("second CONNECT")),
            Packet::Auth(auth) => match &mut self.reauthentication {
                Some(reauthentication) => reauthentication.handle_auth(auth, &self.link, out),
                None => out.close(CloseReason::Protocol("AUTH without an authentication method")),
            },
            Packet::Publish(_) => out.close(CloseReason::Protocol("PUBLISH out of its path")),
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                out.close(CloseReason::Protocol("packet that only a server sends"));
            }
        }
    }

    /// Everything that one read brought has been handled. `None` where no acknowledgement depends on
    /// it; else the number that the receipts of the touched shards have to carry.
    pub fn end_turn(&mut self, shards: usize, out: &mut Output) -> Option<u64> {
        if !self.incoming.turn_awaits_receipt() {
            return None;
        }
        let turn = self.incoming.end_turn(shards);
        if shards == 0 {
            self.incoming.answer(&self.link, out);
        }
        Some(turn)
    }

    /// A shard has messages for this client. [`Session::fill`] puts them on the wire.
    pub fn handle_delivery(&mut self, delivery: Delivery) {
        self.outgoing.push(delivery);
    }

    /// A shard owns what it got in `turn`.
    pub fn handle_accepted(&mut self, turn: u64, out: &mut Output) {
        self.incoming.accept(turn);
        self.incoming.answer(&self.link, out);
    }

    /// A shard has done its part of request `token`, which `parts_due` shards have to do.
    pub fn handle_part_done(
        &mut self,
        token: u64,
        parts_due: usize,
        replay: Option<Replay>,
        out: &mut Output,
    ) {
        self.subscribing.part_done(token, parts_due, replay);
        self.subscribing.answer(&self.link, out);
    }

    /// The chunk of retained messages that was asked for is complete; `rest` is what is left.
    pub fn handle_chunk(&mut self, rest: Option<Replay>) {
        self.subscribing.chunk_arrived(rest);
    }

    /// Puts what waits on the wire, as far as the window and the room in the output go. Call it when
    /// everything that arrived has been handled. Returns whether more could go once there is room.
    pub fn fill(&mut self, out: &mut Output) -> bool {
        let more = self.outgoing.fill(&self.link, out);
        if self.outgoing.is_drained() {
            self.subscribing.ask_for_chunk(out);
        }
        more
    }

    /// When to call [`Session::handle_timeout`]; `None` means never.
    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.last_heard + keep_alive_grace(self.link.keep_alive?))
    }

    /// The deadline from [`Session::poll_timeout`] may have passed.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Output) {
        if let Some(keep_alive) = self.link.keep_alive
            && self.last_heard + keep_alive_grace(keep_alive) <= now
        {
            out.close(CloseReason::KeepAliveTimeout(keep_alive.as_secs()));
        }
    }

    /// The connection ends for `reason`: a v5 client is told [MQTT-3.14.0-1].
    pub fn say_goodbye(&self, reason: &CloseReason, out: &mut Output) {
        if let (ProtocolVersion::V5, Some(reason)) = (self.link.version, reason.reason_code()) {
            let properties = Properties::EMPTY;
            let packet = Packet::Disconnect(Disconnect { reason, properties });
            out.send(&packet, &self.link);
        }
    }

    /// A QoS 1 or 2 message arrived: an answer is due at the end of the turn.
    fn receive(&mut self, id: PacketId, qos: Qos, reason: ReasonCode, out: &mut Output) -> Novelty {
        let (novelty, answer) = match qos {
            Qos::AtMostOnce | Qos::AtLeastOnce => (Novelty::New, Answer::PubAck),
            Qos::ExactlyOnce => (self.incoming.receive(id), Answer::PubRec),
        };
        self.incoming.await_turn(id, answer, reason);
        let max = self.limits.receive_max;
        let is_v5 = self.link.version == ProtocolVersion::V5;
        if is_v5 && self.incoming.unacknowledged() > usize::from(max) {
            out.close(CloseReason::ReceiveMaximumExceeded(max));
        }
        novelty
    }

    fn pubrel(&mut self, id: PacketId, out: &mut Output) {
        let reason = match self.incoming.release(id) {
            true => ReasonCode::Success,
            false => ReasonCode::PacketIdentifierNotFound,
        };
        let is_v5 = self.link.version == ProtocolVersion::V5;
        let reason = if is_v5 { reason } else { ReasonCode::Success };
        let ack = crate::codec::Ack { id, reason, properties: Properties::EMPTY };
        out.send(&Packet::PubComp(ack), &self.link);
    }

    fn subscribe(&mut self, packet: &crate::codec::Subscribe<'_>, out: &mut Output) {
        if packet.properties.subscription_identifiers().next().is_some() {
            return out.close(CloseReason::Protocol(
                "subscription identifier, though CONNACK said that there are none",
            ));
        }
        self.subscribing.subscribe(packet, &self.limits, &self.link, out);
    }

    fn disconnect(&mut self, packet: &Disconnect<'_>, out: &mut Output) {
        if let Some(seconds) = packet.properties.session_expiry_interval_s() {
            if self.expiry == Expiry::WithConnection && seconds > 0 {
                return out.close(CloseReason::Protocol(
                    "session expiry set on DISCONNECT, though it was zero on CONNECT",
                ));
            }
            self.expiry = match seconds {
                0 => Expiry::WithConnection,
                u32::MAX => Expiry::Never,
                seconds => Expiry::After(Duration::from_secs(seconds.into())),
            };
        }
        out.close(match packet.reason {
            ReasonCode::Success => CloseReason::Disconnected,
            reason => CloseReason::DisconnectedWithReason(reason.as_u8()),
        });
    }
}

/// What a client may not put into a PUBLISH.
fn check_publish_properties(properties: Properties<'_>) -> Result<(), CloseReason> {
    if properties.topic_alias().is_some() {
        return Err(CloseReason::TopicAliasInvalid);
    }
    if properties.subscription_identifiers().next().is_some() {
        return Err(CloseReason::Protocol("subscription identifier in a client's PUBLISH"));
    }
    Ok(())
}

/// One and a half keep-alive periods [MQTT-3.1.2-22].
fn keep_alive_grace(keep_alive: Duration) -> Duration {
    keep_alive * 3 / 2
}
