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

use crate::access::Rights;
use crate::codec::{Ack, Disconnect, Packet, Properties, ReasonCode};
use crate::ids::{PacketId, ProtocolVersion, SessionId};
use crate::message::{Delivery, Replay, Stored, Undelivered};
use crate::metrics::Shortage;
use crate::session::aliases::ReceivedAliases;
use crate::session::authentication::{
    Anonymous, AuthenticationError, Directory, Identity, NO_METHOD,
};
use crate::session::incoming::Incoming;
use crate::session::outgoing::{Outgoing, Step};
use crate::session::permission::Permission;
use crate::session::refusal::NO_OPEN_MESSAGE;
use crate::session::subscribing::Subscribing;
use crate::topic::TopicFilter;

mod aliases;
pub mod authentication;
mod availability;
mod close;
mod connect;
mod incoming;
mod journal;
mod naming;
mod outgoing;
mod output;
mod permission;
mod publishing;
mod queue;
mod refusal;
mod remembered;
mod subscribing;
mod will;
mod window;

pub use availability::Availability;
pub use close::CloseReason;
pub use connect::Expiry;
pub use connect::Link;
pub use connect::Opening;
pub use connect::Refusal;
pub use connect::negotiate;
pub use journal::Journal;
pub use output::Denial;
pub use output::Output;
pub use output::Request;
pub use output::Retained;
pub use output::Tally;
pub use refusal::FilterRefusal;
pub use remembered::Remembered;
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
    /// Longest time that a session outlives its connection, in seconds; `None` leaves it to the client.
    pub session_expiry_s_max: Option<u32>,
    /// Topic aliases that a client may use towards us, and we towards it.
    pub topic_alias_max: u16,
    /// What is left out.
    pub availability: Availability,
    /// Whether a payload that says it is text has to be text.
    pub check_payload_format: bool,
}

#[cfg(test)]
impl Limits {
    /// Where they are not what is tested.
    pub(crate) const OF_TESTS: Self = Self {
        inflight_max: 10,
        receive_max: 10,
        packet_bytes_max: 1000,
        subscriptions_max: 10,
        subscription_bytes_max: 1000,
        keep_alive_s_max: None,
        session_expiry_s_max: None,
        topic_alias_max: 0,
        availability: Availability::EVERYTHING,
        check_payload_format: false,
    };
}

/// See the module comment.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    link: Link,
    /// Its name in the log, if it outlives the process.
    durable: Option<SessionId>,
    /// Nobody is connected.
    is_away: bool,
    last_heard: Instant,
    aliases: ReceivedAliases,
    incoming: Incoming,
    outgoing: Outgoing,
    subscribing: Subscribing,
    permission: Permission,
    will: Option<Will>,
    expiry: Expiry,
    /// `None` for a client that is not authenticated. Boxed, because most are not.
    identity: Option<Box<Identity>>,
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
        let mut session = Self::empty(limits, opening.link.clone(), now);
        session.attach(limits, opening, now);
        session
    }

    fn empty(limits: Limits, link: Link, now: Instant) -> Self {
        Self {
            limits,
            link,
            durable: None,
            is_away: true,
            last_heard: now,
            aliases: ReceivedAliases::default(),
            incoming: Incoming::default(),
            outgoing: Outgoing::new(),
            subscribing: Subscribing::default(),
            permission: Permission::default(),
            will: None,
            expiry: Expiry::WithConnection,
            identity: None,
        }
    }

    /// What has to outlive the process goes into the journal from now on, under this name.
    pub fn make_durable(&mut self, session: SessionId) {
        self.durable = Some(session);
        self.link.durable = self.durable;
    }

    /// Its name in the log, if it outlives the process.
    pub fn durable(&self) -> Option<SessionId> {
        self.durable
    }

    /// A connection begins; everything open is sent again by [`Session::fill`] [MQTT-4.4.0-1].
    /// It has the limits of its listener, as CONNACK says.
    pub fn attach(&mut self, limits: Limits, opening: &Opening, now: Instant) {
        self.limits = limits;
        self.link = Link { durable: self.durable, ..opening.link.clone() };
        self.is_away = false;
        self.last_heard = now;
        self.permission = Permission::new(opening.rights.clone());
        self.will = opening.will.clone();
        self.expiry = opening.expiry;
        self.aliases.clear();
        let authenticated = opening.authenticated.as_ref();
        self.identity = authenticated.map(|it| Box::new(Identity::new(it)));
        self.outgoing.attach(&self.link);
    }

    /// The connection is gone. Returns the will unless `reason` discards it; [`Will::due_at`] says how
    /// long it waits.
    pub fn detach(&mut self, reason: &CloseReason) -> Option<Will> {
        self.is_away = true;
        self.aliases.clear();
        self.incoming.detach();
        self.outgoing.detach();
        self.subscribing.detach();
        self.identity = None;
        self.will.take().filter(|_| reason.publishes_will())
    }

    /// What the client may do from now on.
    pub fn set_rights(&mut self, rights: Rights) {
        self.permission = Permission::new(rights);
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

    /// Whether [`Session::take_shared`] could find anything.
    pub fn has_shared(&self) -> bool {
        self.subscribing.has_shared()
    }

    /// The client is away: messages of shared subscriptions that wait for it may go to other members, where
    /// there `are_takers`. What was sent and not acknowledged waits for the client, unless the session
    /// `has_ended`; then at QoS 1 it may go, too [MQTT-4.8.2-4] [MQTT-4.8.2-5].
    pub fn take_shared(
        &mut self,
        has_ended: bool,
        mut are_takers: impl FnMut(&TopicFilter) -> bool,
        out: &mut Output,
    ) -> Vec<Undelivered> {
        self.outgoing.take_shared(has_ended, &mut are_takers, out)
    }

    /// Drops messages whose Message Expiry Interval has passed while they waited [MQTT-3.3.2-5]. Returns
    /// whether others wait that will expire. [`Session::fill`] does not need it: it makes room.
    pub fn drop_expired(&mut self, now: Instant, out: &mut Output) -> bool {
        self.outgoing.drop_expired(now, &self.link, out)
    }

    /// Messages that were sent to the client and are not complete.
    pub fn inflight(&self) -> usize {
        self.outgoing.inflight()
    }

    /// Something was read from the client: it is alive.
    pub fn handle_read(&mut self, now: Instant) {
        self.last_heard = now;
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
            Packet::Auth(auth) => match &mut self.identity {
                Some(identity) => identity.handle_auth(auth, &self.link, out),
                None => out.close(CloseReason::Protocol(NO_METHOD)),
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

    /// Whether a shard has yet to say what became of messages that the client has published.
    pub fn awaits_receipt(&self) -> bool {
        self.incoming.awaits_receipt()
    }

    /// A shard has messages for this client. [`Session::fill`] puts them on the wire.
    pub fn handle_delivery(&mut self, delivery: Delivery, out: &mut Output) {
        self.outgoing.push(delivery, self.is_away, out);
    }

    /// Messages wait in the log since an earlier process.
    pub fn handle_stored(&mut self, stored: Stored) {
        self.outgoing.push_stored(stored);
    }

    /// What was asked for by [`Request::Fetch`]; `lost` is what could not be read.
    pub fn handle_fetched(&mut self, fetched: Vec<Delivery>, lost: Vec<Stored>, out: &mut Output) {
        self.outgoing.push_fetched(fetched, lost, &self.link, out);
    }

    /// A shard owns what it got in `turn`; nobody has subscribed to the topics of the messages
    /// `unmatched`.
    pub fn handle_accepted(&mut self, turn: u64, unmatched: Vec<PacketId>, out: &mut Output) {
        self.incoming.accept(turn, unmatched);
        self.incoming.answer(&self.link, out);
    }

    /// A shard has no room for these messages of `turn`. [`Session::handle_accepted`] follows.
    pub fn handle_refused(&mut self, turn: u64, refused: Vec<(PacketId, Shortage)>) {
        self.incoming.refuse(turn, refused);
    }

    /// So many messages and bytes too many wait: drops those that wait longest, at QoS 0 first. What is on its way to
    /// the client stays.
    pub fn make_room(&mut self, messages: u64, bytes: usize, out: &mut Output) {
        self.outgoing.make_room(messages, bytes, &self.link, out);
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
    /// The clock `now` is read only for messages that expire.
    pub fn fill(&mut self, now: impl Fn() -> Instant, out: &mut Output) -> bool {
        let more = self.outgoing.fill(&self.link, &now, out);
        if let Some(chunk) = self.outgoing.next_chunk() {
            out.requests.push_back(Request::Fetch(chunk));
        }
        if self.outgoing.is_drained() {
            self.subscribing.ask_for_chunk(out);
        }
        more
    }

    /// When to call [`Session::handle_timeout`]; `None` means never.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let keep_alive = self.link.keep_alive.map(|it| self.last_heard + keep_alive_grace(it));
        let identity = self.identity.as_ref().and_then(|identity| identity.ends_at());
        match (keep_alive, identity) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// The deadline from [`Session::poll_timeout`] may have passed.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut Output) {
        if let Some(keep_alive) = self.link.keep_alive
            && self.last_heard + keep_alive_grace(keep_alive) <= now
        {
            out.close(CloseReason::KeepAliveTimeout(keep_alive.as_secs()));
        }
        let ends_at = self.identity.as_ref().and_then(|identity| identity.ends_at());
        if ends_at.is_some_and(|at| at <= now) {
            out.close(AuthenticationError::Expired.into());
        }
    }

    /// What `known` says of users holds from now on: an authentication that has begun before does not count.
    pub fn renew_identity(&mut self, known: &dyn Directory) {
        if let Some(identity) = &mut self.identity {
            identity.renew(known);
        }
    }

    /// A client whom nobody knows any more has to go, and one that is nobody where `anonymous` says so. Who may stay
    /// proves anew who it is by what is known now.
    pub fn handle_users_changed(
        &mut self,
        known: &dyn Directory,
        anonymous: Anonymous,
        out: &mut Output,
    ) {
        let error = match &self.identity {
            Some(identity) if !identity.is_still_known(known) => AuthenticationError::UserGone,
            None if anonymous == Anonymous::Refused => AuthenticationError::Anonymous,
            _ => return self.renew_identity(known),
        };
        out.close(error.into());
    }

    /// The connection ends for `reason`: a v5 client is told [MQTT-3.14.0-1].
    pub fn say_goodbye(&self, reason: &CloseReason, out: &mut Output) {
        if let (ProtocolVersion::V5, Some(code)) = (self.link.version, reason.reason_code()) {
            let packet = Disconnect { reason: code, properties: Properties::EMPTY };
            out.send_last(&packet, &reason.explanation(), &self.link);
        }
    }

    fn pubrel(&mut self, id: PacketId, out: &mut Output) {
        if self.incoming.release(id) {
            out.journal.released(self.durable, id);
            return out.send(&Packet::PubComp(Ack::success(id)), &self.link);
        }
        out.tally.acks_unknown += 1;
        let reason = ReasonCode::PacketIdentifierNotFound;
        let ack = Ack { id, reason, properties: Properties::EMPTY };
        out.send_explained(&Packet::PubComp(ack), NO_OPEN_MESSAGE, &self.link);
    }

    fn subscribe(&mut self, packet: &crate::codec::Subscribe<'_>, out: &mut Output) {
        if self.link.version == ProtocolVersion::V5
            && let Err(reason) = self.limits.availability.check_subscribe(packet)
        {
            return out.close(reason);
        }
        let rights = self.permission.rights();
        self.subscribing.subscribe(packet, &self.limits, rights, &self.link, out);
    }

    fn disconnect(&mut self, packet: &Disconnect<'_>, out: &mut Output) {
        if let Some(seconds) = packet.properties.session_expiry_interval_s() {
            if self.expiry == Expiry::WithConnection && seconds > 0 {
                return out.close(CloseReason::Protocol(
                    "session expiry set on DISCONNECT, though it was zero on CONNECT",
                ));
            }
            self.expiry = Expiry::from_seconds(seconds, &self.limits);
        }
        out.close(match packet.reason {
            ReasonCode::Success => CloseReason::Disconnected,
            reason => CloseReason::DisconnectedWithReason(reason.as_u8()),
        });
    }
}

/// One and a half keep-alive periods [MQTT-3.1.2-22].
fn keep_alive_grace(keep_alive: Duration) -> Duration {
    keep_alive * 3 / 2
}
