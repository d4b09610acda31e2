//! CONNECT to SUBACK, of one client: what is said, and what the broker's answers mean. Called by
//! `worker::ramp`; everything goes through the codec of the library.

use anyhow::{Context, bail};
use mailboxqtt::codec::{
    ConnAck, Connect, Packet, Properties, PropertiesBuf, Property, RetainHandling, Subscribe,
    SubscribeFiltersBuf, SubscribeOptions, decode,
};
use mailboxqtt::ids::{PacketId, ProtocolVersion, Qos};

use crate::client::{Client, Part, Publisher, Stage};
use crate::receive;
use crate::settings::Wire;

/// Seconds that a session outlives its connection in MQTT 5. It is ended by the run that began it;
/// this is for a run that is killed.
const SESSION_EXPIRY_S: u32 = 3_600;

/// Whether the session outlives the connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Session {
    /// A new one, which ends with the connection; one that was there ends before.
    #[default]
    Clean,
    /// The one that is there, or else a new one; it stays.
    Persistent,
}

/// What CONNECT says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Login<'a> {
    /// The client identifier.
    pub(crate) client_id: &'a str,
    /// Whether the session stays.
    pub(crate) session: Session,
    /// Seconds; 0 for none.
    pub(crate) keep_alive_s: u16,
    /// User name and password, where the broker wants them.
    pub(crate) user_name: Option<&'a str>,
    /// See `user_name`.
    pub(crate) password: Option<&'a str>,
}

/// How far [`Client::shake_hands`] came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shaken {
    /// Bytes that it took.
    pub(crate) used: usize,
    /// When the connection was asked for, if CONNACK was among them.
    pub(crate) since_ns: Option<u64>,
    /// The keep-alive that the broker asks for instead, if CONNACK was among them.
    pub(crate) keep_alive_s: Option<u16>,
}

impl Client {
    /// Queues CONNECT.
    pub(crate) fn say_connect(&mut self, wire: Wire, login: Login<'_>) {
        let mut properties = PropertiesBuf::new();
        if login.session == Session::Persistent && wire.version == ProtocolVersion::V5 {
            properties.push(Property::SessionExpiryInterval(SESSION_EXPIRY_S));
        }
        let connect = Connect {
            version: wire.version,
            clean_start: login.session == Session::Clean,
            keep_alive_s: login.keep_alive_s,
            client_id: login.client_id,
            properties: properties.as_properties(),
            will: None,
            user_name: login.user_name,
            password: login.password.map(str::as_bytes),
        };
        Packet::Connect(connect).encode(wire.version, &mut self.control);
    }

    /// Takes CONNACK and SUBACK at the start of `bytes`, as far as they are there, and says what
    /// follows from them; afterwards the client may be [`Stage::Ready`].
    pub(crate) fn shake_hands(
        &mut self,
        bytes: &[u8],
        wire: Wire,
        qos: Qos,
    ) -> anyhow::Result<Shaken> {
        let mut shaken = Shaken::default();
        while self.stage != Stage::Ready {
            let Some(frame) = receive::next_frame(&bytes[shaken.used..])? else { break };
            shaken.used += frame.bytes.len();
            let packet = decode(frame.bytes, wire.version)
                .context("the broker answered the handshake with a malformed packet")?;
            match (self.stage, packet) {
                (Stage::Connecting { since_ns }, Packet::ConnAck(answer)) => {
                    self.accept(answer, qos)?;
                    shaken.since_ns = Some(since_ns);
                    shaken.keep_alive_s = answer.properties.server_keep_alive_s();
                    let subscribes = self.say_subscribe(wire.version, qos);
                    self.stage = if subscribes { Stage::Subscribing } else { Stage::Ready };
                }
                (Stage::Subscribing, Packet::SubAck(answer)) => {
                    if let Some(reason) = answer.reasons.iter().find(|reason| **reason > 2) {
                        bail!("the broker refused a subscription with 0x{reason:02x}");
                    }
                    if answer.reasons.iter().any(|granted| *granted < qos as u8) {
                        bail!("the broker grants less than QoS {}", qos as u8);
                    }
                    self.stage = Stage::Ready;
                }
                (Stage::Subscribing, Packet::Publish(_)) => {
                    // The subscription is in force, though SUBACK has not come yet
                    // [MQTT-3.8.4-3]. The message is for whoever follows.
                    shaken.used -= frame.bytes.len();
                    self.stage = Stage::Ready;
                }
                (_, Packet::Disconnect(farewell)) => {
                    bail!("the broker disconnected: {}", farewell.reason)
                }
                (stage, _) => bail!("the broker sent an unexpected packet while {stage:?}"),
            }
        }
        Ok(shaken)
    }

    /// What CONNACK allows; an error where it is not enough for this client.
    fn accept(&mut self, answer: ConnAck<'_>, qos: Qos) -> anyhow::Result<()> {
        if answer.reason.as_u8() >= 0x80 {
            bail!("the broker refused the connection: {}", answer.reason);
        }
        let Part::Publisher(Publisher { block, receive_max, .. }) = &mut self.part else {
            return Ok(());
        };
        let allowed = answer.properties;
        if let Some(most) = allowed.receive_maximum() {
            *receive_max = most.into();
        }
        if allowed.maximum_qos().is_some_and(|most| most < qos) {
            bail!("the broker takes no messages of QoS {}", qos as u8);
        }
        let longest = block.frame_bytes_max();
        if let Some(most) = allowed.maximum_packet_size()
            && longest > most as usize
        {
            bail!("the broker takes packets of {most} bytes, and the messages have {longest}");
        }
        let (topics, aliases) = (block.introductions(), allowed.topic_alias_maximum().unwrap_or(0));
        if topics > usize::from(aliases) {
            bail!(
                "the broker takes {aliases} topic aliases, and a publisher has {topics} topics: \
                 leave --topic-alias out"
            );
        }
        Ok(())
    }

    /// Queues SUBSCRIBE for all filters of a subscriber; false where there is nothing to subscribe.
    pub(crate) fn say_subscribe(&mut self, version: ProtocolVersion, qos: Qos) -> bool {
        let Part::Subscriber(subscriber) = &mut self.part else { return false };
        if subscriber.filters.is_empty() {
            return false;
        }
        let options = SubscribeOptions {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Send,
        };
        let mut filters = SubscribeFiltersBuf::new();
        for filter in std::mem::take(&mut subscriber.filters) {
            filters.push(&filter, options);
        }
        let subscribe = Subscribe {
            id: PacketId::FIRST,
            properties: Properties::EMPTY,
            filters: filters.as_filters(),
        };
        Packet::Subscribe(subscribe).encode(version, &mut self.control);
        true
    }
}
