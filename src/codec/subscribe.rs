//! SUBSCRIBE: a list of topic filters with options (section 3.8 of both standards).
//!
//! The list stays raw: it is checked once at decode and read again by [`SubscribeFilters::iter`].
//! Whether a text is a valid filter is decided by `session`, which can refuse one filter and take
//! the others. Floor 1.

use std::fmt;

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, put_header};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::wire::{Reader, put_string};
use crate::ids::{PacketId, ProtocolVersion, Qos};

const OWNER: Owner = Owner::packet(PacketType::Subscribe);

const QOS: u8 = 0b0000_0011;
const NO_LOCAL: u8 = 0b0000_0100;
const RETAIN_AS_PUBLISHED: u8 = 0b0000_1000;
const RETAIN_HANDLING_SHIFT: u8 = 4;
const RESERVED: u8 = 0b1100_0000;

/// SUBSCRIBE.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Subscribe<'a> {
    /// Echoed by SUBACK [MQTT-2.2.1-6].
    pub id: PacketId,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// At least one [MQTT-3.8.3-2].
    pub filters: SubscribeFilters<'a>,
}

impl<'a> Subscribe<'a> {
    pub(super) fn decode(frame: Frame<'a>, version: ProtocolVersion) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame.body);
        let id = reader.packet_id()?;
        let properties = Properties::decode(&mut reader, version, OWNER)?;
        let filters = SubscribeFilters::decode(reader, version)?;
        Ok(Self { id, properties, filters })
    }

    pub(super) fn body_len(&self, version: ProtocolVersion) -> usize {
        2 + self.properties.encoded_len(version) + self.filters.bytes.len()
    }

    /// Writes the whole packet. MQTT 3.x has no option but the QoS.
    pub fn encode(&self, version: ProtocolVersion, out: &mut impl BufMut) {
        put_header(PacketType::Subscribe, self.body_len(version), out);
        out.put_u16(self.id.get());
        self.properties.encode(version, out);
        if version == ProtocolVersion::V5 {
            out.put_slice(self.filters.bytes);
        } else {
            for (filter, options) in self.filters.iter() {
                put_string(filter, out);
                out.put_u8(options.qos as u8);
            }
        }
    }
}

/// How a client wants the messages of one filter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SubscribeOptions {
    /// The greatest QoS to deliver with [MQTT-3.8.4-8].
    pub qos: Qos,
    /// Do not echo what this client publishes [MQTT-3.8.3-3]; false before MQTT 5.
    pub no_local: bool,
    /// Keep the RETAIN flag when forwarding [MQTT-3.3.1-13]; false before MQTT 5.
    pub retain_as_published: bool,
    /// What happens to retained messages at SUBSCRIBE; `Send` before MQTT 5.
    pub retain_handling: RetainHandling,
}

/// Whether SUBSCRIBE is answered with retained messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum RetainHandling {
    /// Always [MQTT-3.3.1-9].
    Send = 0,
    /// Only if the subscription did not exist [MQTT-3.3.1-10].
    SendIfNew = 1,
    /// Never [MQTT-3.3.1-11].
    DoNotSend = 2,
}

impl SubscribeOptions {
    /// All that MQTT 3.x can say.
    pub fn new(qos: Qos) -> Self {
        Self {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        }
    }

    fn decode(raw: u8, version: ProtocolVersion) -> Result<Self, DecodeError> {
        let reserved = if version == ProtocolVersion::V5 { RESERVED } else { !QOS };
        if raw & reserved != 0 {
            return Err(DecodeError::SubscribeReservedBits { options: raw });
        }
        Ok(Self {
            qos: Qos::new(raw & QOS).ok_or(DecodeError::SubscribeQos)?,
            no_local: raw & NO_LOCAL != 0,
            retain_as_published: raw & RETAIN_AS_PUBLISHED != 0,
            retain_handling: match raw >> RETAIN_HANDLING_SHIFT & 0b11 {
                0 => RetainHandling::Send,
                1 => RetainHandling::SendIfNew,
                2 => RetainHandling::DoNotSend,
                _ => return Err(DecodeError::RetainHandling),
            },
        })
    }

    fn as_u8(self) -> u8 {
        let mut raw = self.qos as u8 | (self.retain_handling as u8) << RETAIN_HANDLING_SHIFT;
        if self.no_local {
            raw |= NO_LOCAL;
        }
        if self.retain_as_published {
            raw |= RETAIN_AS_PUBLISHED;
        }
        raw
    }
}

/// The payload of SUBSCRIBE.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct SubscribeFilters<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> SubscribeFilters<'a> {
    fn decode(reader: Reader<'a>, version: ProtocolVersion) -> Result<Self, DecodeError> {
        let bytes = reader.rest();
        let mut reader = reader;
        let mut len = 0;
        while !reader.is_empty() {
            let filter = reader.string()?;
            let options = SubscribeOptions::decode(reader.u8()?, version)?;
            // A protocol error of the whole packet [MQTT-3.8.3-4]. Before MQTT 5 there is no No
            // Local, and `$share/` is a name like any other.
            if options.no_local && filter.starts_with("$share/") {
                return Err(DecodeError::NoLocalOnShared);
            }
            len += 1;
        }
        if len == 0 {
            return Err(DecodeError::NoFilters);
        }
        Ok(Self { bytes, len })
    }

    /// Filters in the order of the packet, which SUBACK follows [MQTT-3.9.3-1].
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, SubscribeOptions)> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        std::iter::from_fn(move || {
            let filter = reader.string().ok()?;
            // What MQTT 3.x accepts is a subset of what MQTT 5 accepts, with the same meaning.
            let options = SubscribeOptions::decode(reader.u8().ok()?, ProtocolVersion::V5).ok()?;
            Some((filter, options))
        })
    }

    /// How many filters there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true for a decoded packet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for SubscribeFilters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Builds the payload of SUBSCRIBE.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SubscribeFiltersBuf {
    bytes: Vec<u8>,
    len: usize,
}

impl SubscribeFiltersBuf {
    /// An empty list; allocates with the first filter.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a filter; what is over 65,535 bytes is cut off.
    pub fn push(&mut self, filter: &str, options: SubscribeOptions) -> &mut Self {
        put_string(filter, &mut self.bytes);
        self.bytes.put_u8(options.as_u8());
        self.len += 1;
        self
    }

    /// The list as a packet carries it.
    pub fn as_filters(&self) -> SubscribeFilters<'_> {
        SubscribeFilters { bytes: &self.bytes, len: self.len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden::assert_golden;
    use crate::codec::{Packet, PropertiesBuf, Property, decode};
    use crate::ids::ProtocolVersion::{V5, V311};

    fn all_options() -> SubscribeOptions {
        SubscribeOptions {
            qos: Qos::ExactlyOnce,
            no_local: true,
            retain_as_published: true,
            retain_handling: RetainHandling::DoNotSend,
        }
    }

    #[test]
    fn two_filters_before_mqtt_5() {
        let mut filters = SubscribeFiltersBuf::new();
        filters
            .push("a/+", SubscribeOptions::new(Qos::AtLeastOnce))
            .push("b", SubscribeOptions::new(Qos::AtMostOnce));
        let packet = Subscribe {
            id: PacketId::FIRST,
            properties: Properties::EMPTY,
            filters: filters.as_filters(),
        };
        let frame = b"\x82\x0C\0\x01\0\x03a/+\x01\0\x01b\0";
        assert_golden(frame, V311, Packet::Subscribe(packet));
        assert_eq!(packet.filters.len(), 2);
    }

    #[test]
    fn options_and_identifier_of_mqtt_5() {
        let mut properties = PropertiesBuf::new();
        properties.push(Property::SubscriptionIdentifier(200));
        let mut filters = SubscribeFiltersBuf::new();
        filters.push("#", all_options());
        let packet = Subscribe {
            id: PacketId::FIRST,
            properties: properties.as_properties(),
            filters: filters.as_filters(),
        };
        let frame = b"\x82\x0A\0\x01\x03\x0B\xC8\x01\0\x01#\x2E";
        assert_golden(frame, V5, Packet::Subscribe(packet));
        assert_eq!(packet.filters.iter().collect::<Vec<_>>(), [("#", all_options())]);
    }

    #[test]
    fn options_of_mqtt_5_are_left_out_before_it() {
        let mut filters = SubscribeFiltersBuf::new();
        filters.push("#", all_options());
        let packet = Subscribe {
            id: PacketId::FIRST,
            properties: Properties::EMPTY,
            filters: filters.as_filters(),
        };
        let mut frame = Vec::new();
        packet.encode(V311, &mut frame);
        assert_eq!(frame, b"\x82\x06\0\x01\0\x01#\x02");
        assert!(decode(&frame, V311).is_ok());
    }
}
