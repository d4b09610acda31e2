//! CONNECT and CONNACK: what client and broker agree on. Floor 2, called by `net::handshake`.

use std::time::Duration;

use crate::codec::{ConnAck, Connect, Packet, PropertiesBuf, Property, ReasonCode};
use crate::ids::{ClientId, ProtocolVersion};
use crate::session::Limits;
use crate::session::authentication::Authenticated;
use crate::session::will::Will;
use crate::topic::check_topic_name;

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
    /// The terms.
    pub link: Link,
    /// Set by the caller once the client has proved who it is; `None` for an anonymous one.
    pub authenticated: Option<Authenticated>,
    assigned: bool,
    server_keep_alive_s: Option<u16>,
}

/// Checks a CONNECT against the rules that are not the codec's, and settles the terms. `spare_id` is used
/// for a client that sends none. An error is the reason for the CONNACK.
pub fn negotiate(
    connect: &Connect<'_>,
    limits: &Limits,
    spare_id: impl FnOnce() -> ClientId,
) -> Result<Opening, ReasonCode> {
    let is_v5 = connect.version == ProtocolVersion::V5;
    let assigned = connect.client_id.is_empty();
    if assigned && !is_v5 && !connect.clean_start {
        return Err(ReasonCode::ClientIdentifierNotValid);
    }
    let client_id = if assigned { spare_id() } else { ClientId::new(connect.client_id) };
    let link = Link {
        version: connect.version,
        keep_alive: None,
        send_max: connect.properties.receive_maximum().unwrap_or(u16::MAX).min(limits.inflight_max),
        packet_bytes_max: connect.properties.maximum_packet_size(),
        topic_alias_max: connect
            .properties
            .topic_alias_maximum()
            .unwrap_or(0)
            .min(limits.topic_alias_max),
        problem_information: connect.properties.request_problem_information().unwrap_or(true),
    };
    let will = match &connect.will {
        Some(will) if check_topic_name(will.topic).is_err() => {
            return Err(ReasonCode::TopicNameInvalid);
        }
        Some(will) if will.topic.starts_with("$SYS/") => return Err(ReasonCode::NotAuthorized),
        Some(will) => Some(Will::new(will, link.wire_version())),
        None => None,
    };
    let keep_alive_s = match limits.keep_alive_s_max {
        Some(max) if is_v5 && (connect.keep_alive_s == 0 || connect.keep_alive_s > max) => max,
        _ => connect.keep_alive_s,
    };
    let keep_alive = (keep_alive_s > 0).then(|| Duration::from_secs(keep_alive_s.into()));
    Ok(Opening {
        client_id,
        clean_start: connect.clean_start,
        expiry: expiry(connect),
        will,
        link: Link { keep_alive, ..link },
        authenticated: None,
        assigned,
        server_keep_alive_s: (keep_alive_s != connect.keep_alive_s).then_some(keep_alive_s),
    })
}

fn expiry(connect: &Connect<'_>) -> Expiry {
    let interval_s = match connect.version {
        ProtocolVersion::V5 => connect.properties.session_expiry_interval_s().unwrap_or(0),
        _ if connect.clean_start => 0,
        _ => u32::MAX,
    };
    match interval_s {
        0 => Expiry::WithConnection,
        u32::MAX => Expiry::Never,
        seconds => Expiry::After(Duration::from_secs(seconds.into())),
    }
}

impl Opening {
    /// Writes the CONNACK that accepts the client.
    pub fn accept(&self, session_present: bool, limits: &Limits, out: &mut Vec<u8>) {
        let mut properties = PropertiesBuf::new();
        if self.link.version == ProtocolVersion::V5 {
            properties.push(Property::ReceiveMaximum(limits.receive_max));
            properties.push(Property::MaximumPacketSize(limits.packet_bytes_max));
            if limits.topic_alias_max > 0 {
                properties.push(Property::TopicAliasMaximum(limits.topic_alias_max));
            }
            limits.availability.announce(&mut properties);
            if self.assigned {
                properties.push(Property::AssignedClientIdentifier(self.client_id.as_str()));
            }
            if let Some(seconds) = self.server_keep_alive_s {
                properties.push(Property::ServerKeepAlive(seconds));
            }
            if let Some(authenticated) = &self.authenticated {
                authenticated.announce(&mut properties);
            }
        }
        let properties = properties.as_properties();
        let reason = ReasonCode::Success;
        let packet = Packet::ConnAck(ConnAck { session_present, reason, properties });
        packet.encode(self.link.version, out);
    }
}

/// Writes the CONNACK that refuses a client [MQTT-3.2.2-6].
pub fn refuse(version: ProtocolVersion, reason: ReasonCode, out: &mut Vec<u8>) {
    let properties = crate::codec::Properties::EMPTY;
    let packet = Packet::ConnAck(ConnAck { session_present: false, reason, properties });
    packet.encode(version, out);
}
