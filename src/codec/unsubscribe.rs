//! UNSUBSCRIBE: a list of topic filters (section 3.10 of both standards).
//!
//! The list stays raw, as in `subscribe.rs`. Floor 1.

use std::fmt;

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, put_header};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::wire::{Reader, put_string};
use crate::ids::{PacketId, ProtocolVersion};

const OWNER: Owner = Owner::packet(PacketType::Unsubscribe);

/// UNSUBSCRIBE.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unsubscribe<'a> {
    /// Echoed by UNSUBACK [MQTT-2.2.1-6].
    pub id: PacketId,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// At least one [MQTT-3.10.3-2].
    pub filters: UnsubscribeFilters<'a>,
}

impl<'a> Unsubscribe<'a> {
    pub(super) fn decode(frame: Frame<'a>, version: ProtocolVersion) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame.body);
        let id = reader.packet_id()?;
        let properties = Properties::decode(&mut reader, version, OWNER)?;
        let filters = UnsubscribeFilters::decode(reader)?;
        Ok(Self { id, properties, filters })
    }

    pub(super) fn body_len(&self, version: ProtocolVersion) -> usize {
        2 + self.properties.encoded_len(version) + self.filters.bytes.len()
    }

    /// Writes the whole packet.
    pub fn encode(&self, version: ProtocolVersion, out: &mut impl BufMut) {
        put_header(PacketType::Unsubscribe, self.body_len(version), out);
        out.put_u16(self.id.get());
        self.properties.encode(version, out);
        out.put_slice(self.filters.bytes);
    }
}

/// The payload of UNSUBSCRIBE.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct UnsubscribeFilters<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> UnsubscribeFilters<'a> {
    fn decode(reader: Reader<'a>) -> Result<Self, DecodeError> {
        let bytes = reader.rest();
        let mut reader = reader;
        let mut len = 0;
        while !reader.is_empty() {
            reader.string()?;
            len += 1;
        }
        if len == 0 {
            return Err(DecodeError::NoFilters);
        }
        Ok(Self { bytes, len })
    }

    /// Filters in the order of the packet, which UNSUBACK follows [MQTT-3.11.3-1].
    pub fn iter(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        std::iter::from_fn(move || reader.string().ok())
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

impl fmt::Debug for UnsubscribeFilters<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Builds the payload of UNSUBSCRIBE.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UnsubscribeFiltersBuf {
    bytes: Vec<u8>,
    len: usize,
}

impl UnsubscribeFiltersBuf {
    /// An empty list; allocates with the first filter.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a filter; what is over 65,535 bytes is cut off.
    pub fn push(&mut self, filter: &str) -> &mut Self {
        put_string(filter, &mut self.bytes);
        self.len += 1;
        self
    }

    /// The list as a packet carries it.
    pub fn as_filters(&self) -> UnsubscribeFilters<'_> {
        UnsubscribeFilters { bytes: &self.bytes, len: self.len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Packet;
    use crate::codec::golden::assert_golden;
    use crate::ids::ProtocolVersion::{V5, V311};

    #[test]
    fn two_filters_in_both_versions() {
        let mut filters = UnsubscribeFiltersBuf::new();
        filters.push("a/+").push("b");
        let packet = Unsubscribe {
            id: PacketId::FIRST,
            properties: Properties::EMPTY,
            filters: filters.as_filters(),
        };
        let v311 = b"\xA2\x0A\0\x01\0\x03a/+\0\x01b";
        assert_golden(v311, V311, Packet::Unsubscribe(packet));
        let v5 = b"\xA2\x0B\0\x01\0\0\x03a/+\0\x01b";
        assert_golden(v5, V5, Packet::Unsubscribe(packet));
        assert_eq!(packet.filters.iter().collect::<Vec<_>>(), ["a/+", "b"]);
        assert_eq!(packet.filters.len(), 2);
    }
}
