//! CONNECT and CONNACK: what client and broker agree on, or why they do not. Floor 2, called by `net`.
//!
//! # Invariants
//!
//! - A wish of the client that is not granted is answered in the CONNACK: Server Keep Alive, Session
//!   Expiry Interval, Assigned Client Identifier, Maximum QoS and its kin.
//! - No CONNACK is larger than the client's Maximum Packet Size [MQTT-3.1.2-24]. What may be left out is,
//!   Response Information and reason strings; a client that cannot take the rest is refused.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::{Rights, Rule};
use crate::codec;
use crate::codec::{ConnAck, Connect, Packet, PropertiesBuf, Property, ReasonCode};
use crate::ids::{ClientId, ProtocolVersion, SessionId};
use crate::session::Denial;
use crate::session::Limits;
use crate::session::authentication::{Authenticated, UserName};
use crate::session::refusal::has_wrong_format;
use crate::session::will::Will;
use crate::topic::{MountPoint, Unmountable, check_topic_name, is_system_topic};

/// The terms of one connection.
#[derive(Clone, Debug)]
pub struct Link {
    /// What the client speaks.
    pub version: ProtocolVersion,
    /// How long the client may be silent, before the factor of one and a half; `None` for ever.
    pub keep_alive: Option<Duration>,
    /// Unacknowledged messages towards the client: its Receive Maximum, or our own limit if lower.
    pub send_max: u16,
    /// Largest packet that the client takes, in bytes.
    pub packet_bytes_max: Option<u32>,
    /// Greatest topic alias towards the client: its Topic Alias Maximum, or our own limit if lower;
    /// 0 forbids aliases [MQTT-3.1.2-26] [MQTT-3.1.2-27].
    pub topic_alias_max: u16,
    /// Whether the client wants reason strings and user properties also outside of CONNACK and
    /// DISCONNECT, and of PUBLISH, which always keeps them [MQTT-3.1.2-29].
    pub problem_information: bool,
    /// The session outlives the process, and this is its name in the log.
    pub durable: Option<SessionId>,
    /// Stands before all topics of the client, who does not see it.
    pub mount_point: Option<MountPoint>,
}

impl Link {
    /// The encoding of PUBLISH: 3.1 and 3.1.1 have the same.
    pub fn wire_version(&self) -> ProtocolVersion {
        match self.version {
            ProtocolVersion::V31 | ProtocolVersion::V311 => ProtocolVersion::V311,
            ProtocolVersion::V5 => ProtocolVersion::V5,
        }
    }
}

/// How long a session outlives its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expiry {
    /// Not at all.
    WithConnection,
    /// For this long.
    After(Duration),
    /// Until a client asks for a clean start.
    Never,
}

impl Expiry {
    /// What is granted to a client that asks for `wish_s` seconds.
    pub(super) fn from_seconds(wish_s: u32, limits: &Limits) -> Self {
        match limits.session_expiry_s_max.map_or(wish_s, |max| wish_s.min(max)) {
            0 => Self::WithConnection,
            u32::MAX => Self::Never,
            seconds => Self::After(Duration::from_secs(seconds.into())),
        }
    }

    /// When a session ends whose connection ended at `now`; `None` is never.
    pub fn ends_at(self, now: Instant) -> Option<Instant> {
        match self {
            Self::WithConnection => Some(now),
            Self::After(duration) => Some(now + duration),
            Self::Never => None,
        }
    }

    /// As the property carries it.
    pub fn as_seconds(self) -> u32 {
        match self {
            Self::WithConnection => 0,
            Self::After(duration) => duration.as_secs().try_into().unwrap_or(u32::MAX),
            Self::Never => u32::MAX,
        }
    }
}

/// A CONNECT that may go on.
#[derive(Debug)]
pub struct Opening {
    /// The client's own identifier, or the one that it gets.
    pub client_id: ClientId,
    /// Discard an earlier session [MQTT-3.1.2-4].
    pub clean_start: bool,
    /// How long the session stays.
    pub expiry: Expiry,
    /// Published when the connection ends without DISCONNECT.
    pub will: Option<Will>,
    /// The client has a will for a topic of the broker's own, and speaks a version without a word for that: bridges
    /// have, so the client is let in, and the will is dropped like its messages there.
    pub is_will_dropped: bool,
    /// The terms.
    pub link: Link,
    /// Set by the caller once the client has proved who it is; `None` for an anonymous one.
    pub authenticated: Option<Authenticated>,
    /// Set by the caller: what the client's token says about what it may do. Empty without a token.
    pub rules: Arc<[Rule]>,
    /// Set by the caller: what it may do.
    pub rights: Rights,
    /// The client sent no identifier.
    assigned: bool,
    /// The client has to ping at least this often, whatever it asked for.
    server_keep_alive_s: Option<u16>,
    /// The session stays for less time than the client asked for.
    is_expiry_lowered: bool,
    /// The client asks where it may have responses sent to.
    wants_response_information: bool,
}

/// A CONNECT that is not accepted. The text is what the log says, and what a v5 client is told.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{explanation}")]
pub struct Refusal {
    /// What the client speaks.
    pub version: ProtocolVersion,
    /// In MQTT 3.x the nearest return code is sent.
    pub reason: ReasonCode,
    /// A sentence that names the cause and the way out.
    pub explanation: Cow<'static, str>,
    /// Largest packet that the client takes, in bytes.
    pub packet_bytes_max: Option<u32>,
}

/// Checks a CONNECT against the rules that are not the codec's, and settles the terms. `spare_id` is used
/// for a client that sends none. [`Opening::check_room`] is left to the caller.
pub fn negotiate(
    connect: &Connect<'_>,
    limits: &Limits,
    spare_id: impl FnOnce() -> ClientId,
) -> Result<Opening, Refusal> {
    let is_v5 = connect.version == ProtocolVersion::V5;
    let assigned = connect.client_id.is_empty();
    let refusal = |reason, explanation| Refusal::new(connect, reason, explanation);
    if assigned && !is_v5 && !connect.clean_start {
        let explanation = "a client without an identifier needs a clean session: send one of both";
        return Err(refusal(ReasonCode::ClientIdentifierNotValid, explanation));
    }
    let keep_alive_s = match limits.keep_alive_s_max {
        Some(max) if is_v5 && (connect.keep_alive_s == 0 || connect.keep_alive_s > max) => max,
        _ => connect.keep_alive_s,
    };
    let properties = connect.properties;
    let link = Link {
        version: connect.version,
        keep_alive: (keep_alive_s > 0).then(|| Duration::from_secs(keep_alive_s.into())),
        send_max: properties.receive_maximum().unwrap_or(u16::MAX).min(limits.inflight_max),
        packet_bytes_max: properties.maximum_packet_size(),
        topic_alias_max: properties.topic_alias_maximum().unwrap_or(0).min(limits.topic_alias_max),
        problem_information: properties.request_problem_information().unwrap_or(true),
        durable: None,
        mount_point: None,
    };
    let will = settle_will(connect, &link, limits)
        .map_err(|(reason, explanation)| refusal(reason, explanation))?;
    let wish_s = expiry_wish_s(connect);
    let expiry = Expiry::from_seconds(wish_s, limits);
    Ok(Opening {
        client_id: if assigned { spare_id() } else { ClientId::new(connect.client_id) },
        clean_start: connect.clean_start,
        expiry,
        is_will_dropped: connect.will.is_some() && will.is_none(),
        will,
        link,
        authenticated: None,
        rules: Arc::default(),
        rights: Rights::UNRESTRICTED,
        assigned,
        server_keep_alive_s: (keep_alive_s != connect.keep_alive_s).then_some(keep_alive_s),
        is_expiry_lowered: expiry.as_seconds() != wish_s,
        wants_response_information: properties.request_response_information() == Some(true),
    })
}

/// The will as it will be published; `None` where it never is. An error is the reason and a sentence.
fn settle_will(
    connect: &Connect<'_>,
    link: &Link,
    limits: &Limits,
) -> Result<Option<Will>, (ReasonCode, &'static str)> {
    let Some(will) = &connect.will else { return Ok(None) };
    if check_topic_name(will.topic).is_err() {
        return Err((ReasonCode::TopicNameInvalid, "the will topic is no topic name: correct it"));
    }
    if is_system_topic(will.topic) {
        if connect.version != ProtocolVersion::V5 {
            return Ok(None);
        }
        let sentence = "topics below $SYS/ are the broker's own: choose another will topic";
        return Err((ReasonCode::NotAuthorized, sentence));
    }
    limits.availability.check_will(will)?;
    if limits.check_payload_format && has_wrong_format(will.properties, will.payload) {
        let sentence = "the will payload is not UTF-8, as its format indicator says: correct it";
        return Err((ReasonCode::PayloadFormatInvalid, sentence));
    }
    Ok(Some(Will::new(will, link.wire_version())))
}

/// Seconds that the client wants its session to outlive the connection; `u32::MAX` is for ever.
fn expiry_wish_s(connect: &Connect<'_>) -> u32 {
    match connect.version {
        ProtocolVersion::V5 => connect.properties.session_expiry_interval_s().unwrap_or(0),
        _ if connect.clean_start => 0,
        _ => u32::MAX,
    }
}

impl Opening {
    /// Refuses a client that has no room for the CONNACK.
    pub fn check_room(&self, limits: &Limits) -> Result<(), Refusal> {
        if self.can_take(&self.connack(false, &self.terms(limits))) {
            return Ok(());
        }
        let explanation = "the CONNACK is over the Maximum Packet Size of the client: raise it";
        Err(self.refusal(ReasonCode::ImplementationSpecificError, explanation))
    }

    /// The client is behind `mount_point`, and so are its identifier and its will. For the caller, as soon as the
    /// terms are settled.
    pub fn mount(
        &mut self,
        connect: &Connect<'_>,
        mount_point: &MountPoint,
    ) -> Result<(), Refusal> {
        if let Some(will) = connect.will.as_ref().filter(|_| !self.is_will_dropped) {
            let topic = mount_point.whole_topic(will.topic).map_err(|why| match why {
                Unmountable::Dollar => {
                    let sentence =
                        "topics that begin with $ do not exist here: choose another will topic";
                    self.refusal(ReasonCode::NotAuthorized, sentence)
                }
                Unmountable::TooLong => {
                    let sentence = "the will topic is too long for this listener: shorten it";
                    self.refusal(ReasonCode::TopicNameInvalid, sentence)
                }
            })?;
            let will = codec::Will { topic: &topic, ..*will };
            self.will = Some(Will::new(&will, self.link.wire_version()));
        }
        self.client_id = self.client_id.behind(mount_point.as_str());
        self.link.mount_point = Some(mount_point.clone());
        Ok(())
    }

    /// Who the client has proved to be; `None` for an anonymous one.
    pub fn user(&self) -> Option<&UserName> {
        self.authenticated.as_ref().map(|authenticated| &authenticated.user)
    }

    /// Refuses a client that may not publish its will; the denial is for the log.
    pub fn check_will(&self) -> Result<(), (Refusal, Denial)> {
        let Some(will) = &self.will else { return Ok(()) };
        let decision = self.rights.may_publish(&will.topic);
        if decision.is_allowed() {
            return Ok(());
        }
        let sentence = "the rules of the broker do not let this client publish to its will topic: ask its operator";
        let denial = Denial::new("publish a will", &will.topic, &decision);
        Err((self.refusal(ReasonCode::NotAuthorized, sentence), denial))
    }

    /// Writes the CONNACK that accepts the client. `response_topic_prefix` is empty where none is
    /// configured.
    pub fn accept(
        &self,
        session_present: bool,
        limits: &Limits,
        response_topic_prefix: &str,
        out: &mut Vec<u8>,
    ) {
        let terms = self.terms(limits);
        let mut all = terms.clone();
        if let Some(information) = self.response_information(response_topic_prefix) {
            all.push(Property::ResponseInformation(&information));
        }
        let packet = match self.connack(session_present, &all) {
            packet if self.can_take(&packet) => packet,
            _ => self.connack(session_present, &terms),
        };
        packet.encode(self.link.version, out);
    }

    /// The refusal of a client whose CONNECT was good.
    pub fn refusal(&self, reason: ReasonCode, explanation: &'static str) -> Refusal {
        Refusal {
            version: self.link.version,
            reason,
            explanation: explanation.into(),
            packet_bytes_max: self.link.packet_bytes_max,
        }
    }

    /// What the client has to know.
    fn terms(&self, limits: &Limits) -> PropertiesBuf {
        let mut terms = PropertiesBuf::new();
        if self.link.version != ProtocolVersion::V5 {
            return terms;
        }
        terms.push(Property::ReceiveMaximum(limits.receive_max));
        terms.push(Property::MaximumPacketSize(limits.packet_bytes_max));
        if limits.topic_alias_max > 0 {
            terms.push(Property::TopicAliasMaximum(limits.topic_alias_max));
        }
        limits.availability.announce(&mut terms);
        if self.assigned {
            terms.push(Property::AssignedClientIdentifier(self.client_id.as_str()));
        }
        if let Some(seconds) = self.server_keep_alive_s {
            terms.push(Property::ServerKeepAlive(seconds));
        }
        if self.is_expiry_lowered {
            terms.push(Property::SessionExpiryInterval(self.expiry.as_seconds()));
        }
        if let Some(authenticated) = &self.authenticated {
            authenticated.announce(&mut terms);
        }
        terms
    }

    fn connack<'a>(&self, session_present: bool, properties: &'a PropertiesBuf) -> Packet<'a> {
        let (reason, properties) = (ReasonCode::Success, properties.as_properties());
        Packet::ConnAck(ConnAck { session_present, reason, properties })
    }

    fn can_take(&self, packet: &Packet<'_>) -> bool {
        fits(packet, self.link.version, self.link.packet_bytes_max)
    }

    /// Where the client may have responses sent to, only for one that asks [MQTT-3.1.2-28]. `None` also
    /// for an identifier with which there is no such topic.
    fn response_information(&self, prefix: &str) -> Option<String> {
        if prefix.is_empty() || !self.wants_response_information {
            return None;
        }
        let information = format!("{prefix}{}/", self.client_id.as_str());
        check_topic_name(&information).ok().map(|()| information)
    }
}

impl Refusal {
    /// A refusal of `connect`.
    pub fn new(connect: &Connect<'_>, reason: ReasonCode, explanation: &'static str) -> Self {
        Self {
            version: connect.version,
            reason,
            explanation: explanation.into(),
            packet_bytes_max: connect.properties.maximum_packet_size(),
        }
    }

    /// Writes the CONNACK [MQTT-3.2.2-6]; nothing where the client takes no packet of its size.
    /// The explanation is left out where it would make the packet too large [MQTT-3.2.2-19].
    pub fn write(&self, limits: &Limits, out: &mut Vec<u8>) {
        let mut terms = PropertiesBuf::new();
        limits.availability.announce(&mut terms);
        let mut all = terms.clone();
        all.push(Property::ReasonString(&self.explanation));
        for properties in [&all, &terms, &PropertiesBuf::new()] {
            let (reason, properties) = (self.reason, properties.as_properties());
            let packet = Packet::ConnAck(ConnAck { session_present: false, reason, properties });
            if fits(&packet, self.version, self.packet_bytes_max) {
                return packet.encode(self.version, out);
            }
        }
    }
}

fn fits(packet: &Packet<'_>, version: ProtocolVersion, bytes_max: Option<u32>) -> bool {
    bytes_max.is_none_or(|max| packet.encoded_len(version) <= max as usize)
}
