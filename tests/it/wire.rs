//! The smallest client that can say anything: a blocking socket, bytes out, packets in.
//!
//! Used by `conformance`, `abuse`, `bounds` and `lifecycle`. It does nothing by itself: no
//! acknowledgement, no ping, no reconnect. Every wait ends after [`PATIENCE`] and fails the test. Packets
//! are decoded by the broker's own codec, whose golden bytes are tested elsewhere; what the codec would
//! not write, a test writes itself with [`frame`] and [`string`].
//!
//! [`Got`] says of a packet what most tests ask for. Everything else about it is in
//! [`Client::last_frame`] and [`Client::properties`].

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mailboxqtt::codec::{
    Ack, Auth, Connect, Delivery, Disconnect, Packet, Properties, PropertiesBuf, Property, Publish,
    ReasonCode, Subscribe, SubscribeFiltersBuf, SubscribeOptions, Unsubscribe,
    UnsubscribeFiltersBuf, Will, decode, frame_len,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V31, V311};
use mailboxqtt::ids::{PacketId, ProtocolVersion, Qos};
use socket2::SockRef;

use crate::broker::{Broker, is_pointed_elsewhere};
use crate::process::{PATIENCE, unique};

/// The versions that most tests are run with.
pub(crate) const VERSIONS: [ProtocolVersion; 2] = [V311, V5];

/// First bytes of the acknowledgements.
pub(crate) const PUBACK: u8 = 0x40;
pub(crate) const PUBREC: u8 = 0x50;
pub(crate) const PUBREL: u8 = 0x62;
pub(crate) const PUBCOMP: u8 = 0x70;

/// A packet from the broker, or the end of the connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Got {
    /// Session present, return or reason code, properties as on the wire.
    ConnAck(bool, u8, Vec<u8>),
    Publish(Message),
    /// First byte, identifier, reason code.
    Ack(u8, u16, u8),
    SubAck(u16, Vec<u8>),
    UnsubAck(u16, Vec<u8>),
    PingResp,
    /// Reason code.
    Disconnect(u8),
    /// Reason code.
    Auth(u8),
    /// No more bytes will come.
    Closed,
}

/// A PUBLISH from the broker.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    /// Zero at QoS 0.
    pub(crate) id: u16,
    pub(crate) dup: bool,
    pub(crate) retain: bool,
    /// As on the wire.
    pub(crate) properties: Vec<u8>,
}

impl Message {
    /// The payload as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }

    pub(crate) fn properties(&self) -> Properties<'_> {
        Properties::from_validated(&self.properties)
    }
}

/// What a CONNECT says.
#[derive(Clone, Debug)]
pub(crate) struct Hello<'a> {
    pub(crate) version: ProtocolVersion,
    pub(crate) id: &'a str,
    pub(crate) clean_start: bool,
    pub(crate) keep_alive_s: u16,
    pub(crate) properties: PropertiesBuf,
    /// Topic, payload, QoS, retain.
    pub(crate) will: Option<(&'a str, &'a str, u8, bool)>,
    pub(crate) will_properties: PropertiesBuf,
    pub(crate) user_name: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
}

impl<'a> Hello<'a> {
    /// A clean session, without a keep-alive that could end it.
    pub(crate) fn new(version: ProtocolVersion, id: &'a str) -> Self {
        Self {
            version,
            id,
            clean_start: true,
            keep_alive_s: 0,
            properties: PropertiesBuf::new(),
            will: None,
            will_properties: PropertiesBuf::new(),
            user_name: None,
            password: None,
        }
    }

    /// A session that outlives its connection, with what it already holds.
    pub(crate) fn persistent(version: ProtocolVersion, id: &'a str) -> Self {
        let hello = Self { clean_start: false, ..Self::new(version, id) };
        if version == V5 { hello.with(Property::SessionExpiryInterval(3600)) } else { hello }
    }

    pub(crate) fn with(mut self, property: Property<'_>) -> Self {
        self.properties.push(property);
        self
    }

    pub(crate) fn will(self, topic: &'a str, payload: &'a str, qos: u8, retain: bool) -> Self {
        Self { will: Some((topic, payload, qos, retain)), ..self }
    }

    /// A property of the will.
    pub(crate) fn will_with(mut self, property: Property<'_>) -> Self {
        self.will_properties.push(property);
        self
    }

    pub(crate) fn user(self, name: &'a str, password: &'a [u8]) -> Self {
        Self { user_name: Some(name), password: Some(password), ..self }
    }

    /// The CONNECT packet.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let connect = Connect {
            version: self.version,
            clean_start: self.clean_start,
            keep_alive_s: self.keep_alive_s,
            client_id: self.id,
            properties: self.properties.as_properties(),
            will: self.will.map(|(topic, payload, qos, retain)| Will {
                topic,
                payload: payload.as_bytes(),
                qos: Qos::new(qos).unwrap(),
                retain,
                properties: self.will_properties.as_properties(),
            }),
            user_name: self.user_name,
            password: self.password,
        };
        Packet::Connect(connect).encode(self.version, &mut bytes);
        bytes
    }

    /// Connects and returns the client with its answer, whichever it is.
    pub(crate) fn try_open(&self, addr: SocketAddr) -> (Client, Got) {
        let mut client = Client::raw(addr, self.version);
        client.send(&self.bytes());
        let answer = client.next();
        (client, answer)
    }

    /// Connects; says whether there was a session.
    pub(crate) fn open(&self, addr: SocketAddr) -> (Client, bool) {
        match self.try_open(addr) {
            (client, Got::ConnAck(present, 0, _)) => (client, present),
            (_, other) => panic!("{self:?} was answered by {other:?}"),
        }
    }
}

/// A connection.
pub(crate) struct Client {
    stream: TcpStream,
    version: ProtocolVersion,
    /// Received and not yet taken.
    received: Vec<u8>,
    /// Messages that came ahead of an answer.
    early: VecDeque<Vec<u8>>,
    last_frame: Vec<u8>,
    next_id: u16,
}

impl Client {
    /// A connection on which nothing has been said.
    pub(crate) fn raw(addr: SocketAddr, version: ProtocolVersion) -> Self {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let (received, early, last_frame) = (Vec::new(), VecDeque::new(), Vec::new());
        Self { stream, version, received, early, last_frame, next_id: 1 }
    }

    /// A client with a clean session and a name of its own.
    pub(crate) fn connect(broker: &Broker, version: ProtocolVersion) -> Self {
        Hello::new(version, &unique("wire")).open(broker.addr()).0
    }

    pub(crate) fn version(&self) -> ProtocolVersion {
        self.version
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends what the broker may refuse to take to its end, because it closes in the middle.
    pub(crate) fn send_in_vain(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn send_packet(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes);
        self.send(&bytes);
    }

    /// PUBLISH; `id` means nothing at QoS 0.
    pub(crate) fn publish(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8, id: u16) {
        let bytes = publish(self.version, topic, payload.as_ref(), qos, id, false);
        self.send(&bytes);
    }

    /// PUBLISH with RETAIN.
    pub(crate) fn retain(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8, id: u16) {
        let bytes = publish(self.version, topic, payload.as_ref(), qos, id, true);
        self.send(&bytes);
    }

    /// PUBLISH with QoS 1, and its PUBACK: when this returns every subscriber's mailbox has it.
    pub(crate) fn deliver(&mut self, topic: &str, payload: impl AsRef<[u8]>) {
        self.deliver_at(topic, payload, 1);
    }

    /// The same with any QoS. Some brokers deliver a message of QoS 2 at its PUBREL only.
    #[track_caller]
    pub(crate) fn deliver_at(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8) {
        let id = self.fresh_id();
        self.publish(topic, payload, qos, id);
        match qos {
            0 => self.assert_silent(),
            _ => self.complete(qos, id),
        }
    }

    /// Awaits what the broker says to a PUBLISH, and answers it.
    pub(crate) fn complete(&mut self, qos: u8, id: u16) {
        match qos {
            0 => (),
            1 => {
                assert!(matches!(self.next_answer(), Got::Ack(PUBACK, got, 0 | 0x10) if got == id))
            }
            _ => {
                assert!(matches!(self.next_answer(), Got::Ack(PUBREC, got, 0 | 0x10) if got == id));
                self.ack(PUBREL, id);
                assert_eq!(self.next_answer(), Got::Ack(PUBCOMP, id, 0));
            }
        }
    }

    /// PUBLISH with QoS 1 and RETAIN, and its PUBACK.
    pub(crate) fn deliver_retained(&mut self, topic: &str, payload: impl AsRef<[u8]>) {
        let id = self.fresh_id();
        self.retain(topic, payload, 1, id);
        self.complete(1, id);
    }

    /// PUBLISH as described, and all that follows.
    pub(crate) fn deliver_publication(&mut self, publication: &Publication<'_>) {
        self.send_publication(publication);
        self.complete(publication.qos, publication.id);
    }

    /// PUBLISH as described.
    pub(crate) fn send_publication(&mut self, publication: &Publication<'_>) {
        let bytes = publication.bytes(self.version);
        self.send(&bytes);
    }

    /// Acknowledges a message to its end.
    #[track_caller]
    pub(crate) fn take(&mut self, message: &Message) {
        match message.qos {
            0 => (),
            1 => self.ack(PUBACK, message.id),
            _ => {
                self.ack(PUBREC, message.id);
                assert_eq!(self.next(), Got::Ack(PUBREL, message.id, 0));
                self.ack(PUBCOMP, message.id);
            }
        }
    }

    /// An acknowledgement with `first_byte`.
    pub(crate) fn ack(&mut self, first_byte: u8, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.send(&[first_byte, 2, high, low]);
    }

    /// An acknowledgement of MQTT 5 with reason code and properties.
    pub(crate) fn ack_with(&mut self, first_byte: u8, id: u16, code: u8, list: &[Property<'_>]) {
        self.send(&frame(first_byte, &[&id.to_be_bytes(), &[code], &property_list(list)]));
    }

    /// DISCONNECT of MQTT 5, without waiting for the end.
    pub(crate) fn send_disconnect(&mut self, code: u8, list: &[Property<'_>]) {
        let (reason, properties) = (ReasonCode::from_u8(code).unwrap(), properties(list));
        let properties = properties.as_properties();
        self.send_packet(&Packet::Disconnect(Disconnect { reason, properties }));
    }

    /// AUTH of MQTT 5.
    pub(crate) fn send_auth(&mut self, code: u8, list: &[Property<'_>]) {
        let (reason, properties) = (ReasonCode::from_u8(code).unwrap(), properties(list));
        let properties = properties.as_properties();
        self.send_packet(&Packet::Auth(Auth { reason, properties }));
    }

    /// SUBSCRIBE with one filter; returns when it is granted.
    pub(crate) fn subscribe(&mut self, filter: &str, qos: u8) {
        assert_eq!(self.subscribe_all(&[(filter, qos)]), [qos]);
    }

    /// SUBSCRIBE; returns the codes of the SUBACK.
    pub(crate) fn subscribe_all(&mut self, filters: &[(&str, u8)]) -> Vec<u8> {
        let options = |qos| SubscribeOptions::new(Qos::new(qos).unwrap());
        let filters: Vec<_> = filters.iter().map(|(text, qos)| (*text, options(*qos))).collect();
        self.subscribe_with(&filters)
    }

    /// SUBSCRIBE with options.
    pub(crate) fn subscribe_with(&mut self, filters: &[(&str, SubscribeOptions)]) -> Vec<u8> {
        let id = self.send_subscribe(filters);
        match self.next_answer() {
            Got::SubAck(got, codes) if got == id => codes,
            other => panic!("SUBSCRIBE {id} was answered by {other:?}"),
        }
    }

    /// SUBSCRIBE, without waiting for the answer; returns its identifier.
    pub(crate) fn send_subscribe(&mut self, filters: &[(&str, SubscribeOptions)]) -> u16 {
        self.send_subscribe_with(filters, &[])
    }

    /// The same with properties.
    pub(crate) fn send_subscribe_with(
        &mut self,
        filters: &[(&str, SubscribeOptions)],
        list: &[Property<'_>],
    ) -> u16 {
        let (raw_id, properties) = (self.fresh_id(), properties(list));
        let mut filters_buf = SubscribeFiltersBuf::new();
        for (filter, options) in filters {
            filters_buf.push(filter, *options);
        }
        let (properties, filters) = (properties.as_properties(), filters_buf.as_filters());
        let id = PacketId::new(raw_id).unwrap();
        self.send_packet(&Packet::Subscribe(Subscribe { id, properties, filters }));
        raw_id
    }

    /// UNSUBSCRIBE, without waiting for the answer; returns its identifier.
    pub(crate) fn send_unsubscribe(&mut self, filters: &[&str], list: &[Property<'_>]) -> u16 {
        let (raw_id, properties) = (self.fresh_id(), properties(list));
        let mut filters_buf = UnsubscribeFiltersBuf::new();
        for filter in filters {
            filters_buf.push(filter);
        }
        let (properties, filters) = (properties.as_properties(), filters_buf.as_filters());
        let id = PacketId::new(raw_id).unwrap();
        self.send_packet(&Packet::Unsubscribe(Unsubscribe { id, properties, filters }));
        raw_id
    }

    /// UNSUBSCRIBE; returns when it is acknowledged, with the codes.
    pub(crate) fn unsubscribe(&mut self, filter: &str) -> Vec<u8> {
        let id = self.send_unsubscribe(&[filter], &[]);
        match self.next_answer() {
            Got::UnsubAck(got, codes) if got == id => codes,
            other => panic!("UNSUBSCRIBE {id} was answered by {other:?}"),
        }
    }

    /// DISCONNECT without a word, then waits for the broker to close.
    pub(crate) fn disconnect(mut self) {
        self.send(&[0xE0, 0]);
        self.assert_closed();
    }

    /// The next packet as it came; `None` at the end of the connection.
    pub(crate) fn next_frame(&mut self) -> Option<Vec<u8>> {
        if let Some(frame) = self.early.pop_front() {
            return Some(frame);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(len) = frame_len(&self.received, u32::MAX).unwrap()
                && len <= self.received.len()
            {
                return Some(self.received.drain(..len).collect());
            }
            if self.read_before(deadline, 64 * 1024) == 0 {
                assert!(self.received.is_empty(), "closed within a packet");
                return None;
            }
        }
    }

    /// The next packet, or the end.
    pub(crate) fn next(&mut self) -> Got {
        let frame = self.next_frame();
        self.understand(frame)
    }

    /// The next packet that is not PUBLISH. Messages may come ahead of any answer, also of a SUBACK (3.8.4);
    /// [`Client::next`] has them afterwards.
    pub(crate) fn next_answer(&mut self) -> Got {
        let mut early = VecDeque::new();
        loop {
            match self.next_frame() {
                Some(frame) if frame[0] >> 4 == 3 => early.push_back(frame),
                frame => {
                    self.early = early;
                    return self.understand(frame);
                }
            }
        }
    }

    fn understand(&mut self, frame: Option<Vec<u8>>) -> Got {
        let Some(frame) = frame else { return Got::Closed };
        let got = understand(&frame, self.version);
        self.last_frame = frame;
        got
    }

    /// The packet that [`Client::next`] took last, as it came; also through the methods that wait for
    /// an answer.
    pub(crate) fn last_frame(&self) -> &[u8] {
        &self.last_frame
    }

    /// Its properties; none before MQTT 5.
    pub(crate) fn properties(&self) -> Properties<'_> {
        match decode(&self.last_frame, wire_version(self.version)).unwrap() {
            Packet::ConnAck(packet) => packet.properties,
            Packet::Publish(packet) => packet.properties,
            Packet::PubAck(packet)
            | Packet::PubRec(packet)
            | Packet::PubRel(packet)
            | Packet::PubComp(packet) => packet.properties,
            Packet::SubAck(packet) => packet.properties,
            Packet::UnsubAck(packet) => packet.properties,
            Packet::Disconnect(packet) => packet.properties,
            Packet::Auth(packet) => packet.properties,
            _ => Properties::EMPTY,
        }
    }

    /// The next packet, which has to be a PUBLISH.
    #[track_caller]
    pub(crate) fn message(&mut self) -> Message {
        match self.next() {
            Got::Publish(message) => message,
            other => panic!("waited for PUBLISH, got {other:?}"),
        }
    }

    /// At least the next `count` messages, each acknowledged to the end of its flow.
    #[track_caller]
    pub(crate) fn receive(&mut self, count: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut unreleased = 0;
        while messages.len() < count || unreleased > 0 {
            match self.next() {
                Got::Publish(message) => {
                    match message.qos {
                        0 => (),
                        1 => self.ack(PUBACK, message.id),
                        _ => {
                            self.ack(PUBREC, message.id);
                            unreleased += 1;
                        }
                    }
                    messages.push(message);
                }
                Got::Ack(PUBREL, id, 0) => {
                    self.ack(PUBCOMP, id);
                    unreleased -= 1;
                }
                other => panic!("waited for PUBLISH, got {other:?} behind {messages:?}"),
            }
        }
        messages
    }

    /// What is on its way to this client, without acknowledging it: see [`Client::assert_silent`].
    #[track_caller]
    pub(crate) fn drain_packets(&mut self) -> Vec<Got> {
        let mut packets = Vec::new();
        for _ in 0..2 {
            self.send(&[0xC0, 0]);
            loop {
                match self.next() {
                    Got::PingResp => break,
                    Got::Closed => panic!("closed behind {packets:?}"),
                    got => packets.push(got),
                }
            }
        }
        packets
    }

    /// The same where there may be nothing but PUBLISH.
    #[track_caller]
    pub(crate) fn drain(&mut self) -> Vec<Message> {
        let message = |got| match got {
            Got::Publish(message) => message,
            other => panic!("waited for PUBLISH, got {other:?}"),
        };
        self.drain_packets().into_iter().map(message).collect()
    }

    /// Nothing is on its way to this client. What was in its mailbox before comes ahead of the second
    /// PINGRESP: the broker answers a read before it sends the mail that it took with it.
    #[track_caller]
    pub(crate) fn assert_silent(&mut self) {
        for _ in 0..2 {
            self.send(&[0xC0, 0]);
            assert_eq!(self.next(), Got::PingResp);
        }
    }

    /// Waits `time` for bytes that must not come; the pause of a test that measures time.
    #[track_caller]
    pub(crate) fn assert_silent_for(&mut self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let error = self.stream.read(&mut [0]).expect_err("something came, or the end");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    }

    /// The connection ends without another packet.
    #[track_caller]
    pub(crate) fn assert_closed(&mut self) {
        assert_eq!(self.next(), Got::Closed);
    }

    /// The connection ends; a v5 client is told `code` before it, a v3 client nothing.
    #[track_caller]
    pub(crate) fn assert_closed_with(&mut self, code: u8) {
        if self.version == V5 {
            assert_eq!(self.next(), Got::Disconnect(code));
        }
        self.assert_closed();
    }

    /// The connection ends because this client broke a rule. A v5 client is told one of `codes` first, a
    /// v3 client nothing. The standard lets a broker close without a word; ours may not.
    #[track_caller]
    pub(crate) fn assert_refused(&mut self, codes: &[u8]) {
        let answer = self.next();
        self.assert_is_refusal(&answer, codes);
    }

    /// The same where `answer` has come already.
    #[track_caller]
    pub(crate) fn assert_is_refusal(&mut self, answer: &Got, codes: &[u8]) {
        match answer {
            Got::Disconnect(code) if self.version == V5 && codes.contains(code) => {
                self.assert_closed();
            }
            Got::Closed if self.version != V5 || is_pointed_elsewhere() => (),
            other => panic!("{codes:#04x?} and the end must come, {other:x?} came"),
        }
    }

    /// The same for a CONNECT, which is answered by CONNACK with one of `codes`: reason codes for v5,
    /// return codes for v3. None at all is what v3 wants of a broker that has no code for its reason.
    #[track_caller]
    pub(crate) fn assert_connect_refused(&mut self, codes: &[u8]) {
        match self.next() {
            Got::ConnAck(false, code, _) if codes.contains(&code) => self.assert_closed(),
            Got::Closed if codes.is_empty() || is_pointed_elsewhere() => (),
            other => panic!("{codes:#04x?} and the end must come, {other:x?} came"),
        }
    }

    /// Reads what there is, at most `bytes_max`; returns how much, 0 at the end of the connection.
    pub(crate) fn read_before(&mut self, deadline: Instant, bytes_max: usize) -> usize {
        let mut chunk = vec![0; bytes_max];
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "the broker sent nothing in time");
        self.stream.set_read_timeout(Some(left)).unwrap();
        // Not for long, so each time: a broker that leaves Nagle's algorithm on sends the second of two
        // short packets only when the first was acknowledged, which takes the kernel 40 ms otherwise.
        SockRef::from(&self.stream).set_tcp_quickack(true).unwrap();
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.received.extend_from_slice(&chunk[..count]);
                count
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("the broker sent nothing in time: {error}"),
        }
    }

    fn fresh_id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id = id % u16::MAX + 1;
        id
    }
}

/// A PUBLISH to send; what a test does not name is as plain as can be.
#[derive(Clone, Debug)]
pub(crate) struct Publication<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: u8,
    /// Means nothing at QoS 0.
    pub(crate) id: u16,
    pub(crate) dup: bool,
    pub(crate) retain: bool,
    pub(crate) properties: PropertiesBuf,
}

impl<'a> Publication<'a> {
    /// QoS 0, no flag, no property.
    pub(crate) fn new(topic: &'a str, payload: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        let (payload, properties) = (payload.as_ref(), PropertiesBuf::new());
        Self { topic, payload, qos: 0, id: 0, dup: false, retain: false, properties }
    }

    pub(crate) fn qos(self, qos: u8, id: u16) -> Self {
        Self { qos, id, ..self }
    }

    pub(crate) fn dup(self) -> Self {
        Self { dup: true, ..self }
    }

    pub(crate) fn retain(self) -> Self {
        Self { retain: true, ..self }
    }

    pub(crate) fn with(mut self, property: Property<'_>) -> Self {
        self.properties.push(property);
        self
    }

    /// The PUBLISH packet.
    pub(crate) fn bytes(&self, version: ProtocolVersion) -> Vec<u8> {
        let id = PacketId::new(self.id).unwrap_or(PacketId::FIRST);
        let delivery = match self.qos {
            0 => Delivery::AtMostOnce,
            1 => Delivery::AtLeastOnce { id, dup: self.dup },
            _ => Delivery::ExactlyOnce { id, dup: self.dup },
        };
        let (topic, payload, retain) = (self.topic, self.payload, self.retain);
        let properties = self.properties.as_properties();
        let mut bytes = Vec::new();
        let packet = Publish { topic, payload, properties, delivery, retain };
        Packet::Publish(packet).encode(version, &mut bytes);
        bytes
    }
}

/// The bytes of a PUBLISH.
pub(crate) fn publish(
    version: ProtocolVersion,
    topic: &str,
    payload: &[u8],
    qos: u8,
    id: u16,
    retain: bool,
) -> Vec<u8> {
    let publication = Publication::new(topic, payload).qos(qos, id);
    Publication { retain, ..publication }.bytes(version)
}

/// A frame with these parts behind its fixed header, whether they make sense or not.
pub(crate) fn frame(first_byte: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut frame = vec![first_byte];
    let mut left = body.len();
    while left > 0x7F {
        frame.push(left as u8 | 0x80);
        left >>= 7;
    }
    frame.push(left as u8);
    frame.extend(body);
    frame
}

/// Two bytes of length, then `bytes`: how strings and binary data lie in a packet.
pub(crate) fn string(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// A list of properties with its length in front; at most 127 bytes.
pub(crate) fn property_list(list: &[Property<'_>]) -> Vec<u8> {
    let list = properties(list);
    let bytes = list.as_properties().as_bytes();
    assert!(bytes.len() <= 0x7F, "its length takes more than one byte");
    [&[bytes.len() as u8], bytes].concat()
}

/// A list of properties.
pub(crate) fn properties(list: &[Property<'_>]) -> PropertiesBuf {
    let mut properties = PropertiesBuf::new();
    for property in list {
        properties.push(*property);
    }
    properties
}

/// Waits until the counter `$SYS/broker/{name}` is at least `least`. The broker should publish its
/// counters every second.
pub(crate) fn wait_for_counter(broker: &Broker, name: &str, least: u64) -> u64 {
    wait_for_counter_at(broker.addr(), name, least)
}

/// The same of the broker that listens there.
pub(crate) fn wait_for_counter_at(addr: SocketAddr, name: &str, least: u64) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let (mut client, _) = Hello::new(V311, &unique("wire")).open(addr);
    client.subscribe(&format!("$SYS/broker/{name}"), 0);
    loop {
        let value: u64 = client.message().text().parse().unwrap();
        if value >= least {
            return value;
        }
        assert!(Instant::now() < deadline, "{name} is {value}, not {least}");
    }
}

/// What everything but CONNECT is written in.
fn wire_version(version: ProtocolVersion) -> ProtocolVersion {
    if version == V31 { V311 } else { version }
}

fn understand(frame: &[u8], version: ProtocolVersion) -> Got {
    let ack = |ack: &Ack<'_>| Got::Ack(frame[0], ack.id.get(), ack.reason.as_u8());
    match decode(frame, wire_version(version)).unwrap() {
        Packet::ConnAck(connack) => {
            // The code as it is on the wire, whose meaning depends on the version.
            let properties = connack.properties.as_bytes().to_vec();
            Got::ConnAck(connack.session_present, frame[3], properties)
        }
        Packet::Publish(publish) => Got::Publish(Message {
            topic: publish.topic.into(),
            payload: publish.payload.into(),
            qos: publish.delivery.qos() as u8,
            id: publish.delivery.id().map_or(0, PacketId::get),
            dup: publish.delivery.dup(),
            retain: publish.retain,
            properties: publish.properties.as_bytes().into(),
        }),
        Packet::PubAck(packet)
        | Packet::PubRec(packet)
        | Packet::PubRel(packet)
        | Packet::PubComp(packet) => ack(&packet),
        Packet::SubAck(packet) => Got::SubAck(packet.id.get(), packet.reasons.into()),
        Packet::UnsubAck(packet) => Got::UnsubAck(packet.id.get(), packet.reasons.into()),
        Packet::PingResp => Got::PingResp,
        Packet::Disconnect(packet) => Got::Disconnect(packet.reason.as_u8()),
        Packet::Auth(packet) => Got::Auth(packet.reason.as_u8()),
        other => panic!("a broker does not send {other:?}"),
    }
}
