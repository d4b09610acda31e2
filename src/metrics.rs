//! Counters of the whole broker. Floor 0: plain atomics, read by `sys`.
//!
//! Every message that is not delivered is counted here under its reason. Counters are added to once
//! per batch, not once per message.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicU64};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; adding zero costs no shared write.
    pub fn add(&self, n: u64) {
        if n != 0 {
            self.0.fetch_add(n, Relaxed);
        }
    }

    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`, which may be negative; returns the value after it.
    pub fn add(&self, n: i64) -> i64 {
        self.0.fetch_add(n, Relaxed) + n
    }

    /// Another value, whatever it was; for one writer.
    pub fn set(&self, value: u64) {
        self.0.store(i64::try_from(value).unwrap_or(i64::MAX), Relaxed);
    }

    /// The value now; a moment's negative value, seen between two updates, reads as zero.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed).max(0) as u64
    }
}

/// Why a message was not delivered or not stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum DropReason {
    /// The session's queue is at its limit of messages or bytes.
    QueueFull,
    /// It waited longest in a queue at its limit, and another one has its place.
    QueueEvicted,
    /// All queues together are at their limit of messages or bytes.
    QueuesFull,
    /// Memory is short, and what the session's queue may hold then is reached.
    MemoryFull,
    /// QoS 0 for a session whose client is away.
    Offline,
    /// Larger than the subscriber's Maximum Packet Size [MQTT-3.1.2-24].
    PacketTooLarge,
    /// Its Message Expiry Interval passed before it could be sent [MQTT-3.3.2-5].
    Expired,
    /// A retained message over the limit of messages or bytes: delivered, not stored.
    RetainedFull,
    /// The publisher may not publish to this topic.
    NotAuthorized,
    /// The session ended while the message was on its way to it.
    SessionEnded,
    /// The publisher says that the payload is text, and it is not (MQTT 5, section 3.3.2.3.2).
    PayloadFormatInvalid,
    /// With the mount point of its listener the topic is over 65,535 bytes, or the message with the whole topic over
    /// the largest packet that there can be.
    TopicTooLong,
    /// The subscriber answered with a reason code from 0x80 up [MQTT-4.8.2-6].
    RefusedBySubscriber,
    /// It waited on disk, and the disk did not give it back.
    Unreadable,
}

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 14] = [
        Self::QueueFull,
        Self::QueueEvicted,
        Self::QueuesFull,
        Self::MemoryFull,
        Self::Offline,
        Self::PacketTooLarge,
        Self::Expired,
        Self::RetainedFull,
        Self::NotAuthorized,
        Self::SessionEnded,
        Self::PayloadFormatInvalid,
        Self::TopicTooLong,
        Self::RefusedBySubscriber,
        Self::Unreadable,
    ];

    /// The name in `$SYS` and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::QueueEvicted => "queue_evicted",
            Self::QueuesFull => "queues_full",
            Self::MemoryFull => "memory_full",
            Self::Offline => "offline",
            Self::PacketTooLarge => "packet_too_large",
            Self::Expired => "expired",
            Self::RetainedFull => "retained_full",
            Self::NotAuthorized => "not_authorized",
            Self::SessionEnded => "session_ended",
            Self::PayloadFormatInvalid => "payload_format_invalid",
            Self::TopicTooLong => "topic_too_long",
            Self::RefusedBySubscriber => "refused_by_subscriber",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Why a connection was closed before its CONNECT could be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum RefuseReason {
    /// There are as many connections as there may be, at all or on this listener.
    TooMany,
    /// There are as many connections as there may be from this address.
    TooManyOfAddress,
    /// Connections come too fast from this address.
    TooFastOfAddress,
    /// Connections come too fast from all addresses together.
    TooFast,
    /// No PROXY header, or a wrong one, where there has to be one.
    ProxyHeader,
    /// The PROXY header did not come in time.
    ProxyTooSlow,
    /// The connection ended in the TLS handshake.
    TlsLost,
    /// The TLS handshake did not end in time.
    TlsTooSlow,
    /// What came is not TLS, or breaks its rules.
    TlsProtocol,
    /// No TLS version or cipher suite that both sides want.
    TlsVersion,
    /// The client did not like our certificate, or ended the handshake for another reason of its own.
    TlsRefusedByClient,
    /// No client certificate where there has to be one.
    TlsNoCertificate,
    /// The client's certificate is not valid any more, or not yet.
    TlsCertificateExpired,
    /// The client's certificate is revoked.
    TlsCertificateRevoked,
    /// The client's certificate is not from the listener's authority, or cannot be checked.
    TlsCertificateUntrusted,
    /// The client's certificate does not name a user.
    TlsCertificateNameless,
    /// What came is no request to upgrade to WebSocket, or a wrong one.
    WebsocketRequest,
    /// The upgrade to WebSocket did not end in time.
    WebsocketTooSlow,
    /// Another path than the listener's.
    WebsocketPath,
    /// A web page of a site that may not connect.
    WebsocketOrigin,
    /// The client does not ask for the subprotocol `mqtt` [MQTT-6.0.0-3].
    WebsocketSubprotocol,
}

impl RefuseReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [Self; 21] = [
        Self::TooMany,
        Self::TooManyOfAddress,
        Self::TooFastOfAddress,
        Self::TooFast,
        Self::ProxyHeader,
        Self::ProxyTooSlow,
        Self::TlsLost,
        Self::TlsTooSlow,
        Self::TlsProtocol,
        Self::TlsVersion,
        Self::TlsRefusedByClient,
        Self::TlsNoCertificate,
        Self::TlsCertificateExpired,
        Self::TlsCertificateRevoked,
        Self::TlsCertificateUntrusted,
        Self::TlsCertificateNameless,
        Self::WebsocketRequest,
        Self::WebsocketTooSlow,
        Self::WebsocketPath,
        Self::WebsocketOrigin,
        Self::WebsocketSubprotocol,
    ];

    /// The name in `$SYS` and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::TooManyOfAddress => "too_many_of_address",
            Self::TooFastOfAddress => "too_fast_of_address",
            Self::TooFast => "too_fast",
            Self::ProxyHeader => "proxy_header",
            Self::ProxyTooSlow => "proxy_too_slow",
            Self::TlsLost => "tls_lost",
            Self::TlsTooSlow => "tls_too_slow",
            Self::TlsProtocol => "tls_protocol",
            Self::TlsVersion => "tls_version",
            Self::TlsRefusedByClient => "tls_refused_by_client",
            Self::TlsNoCertificate => "tls_no_certificate",
            Self::TlsCertificateExpired => "tls_certificate_expired",
            Self::TlsCertificateRevoked => "tls_certificate_revoked",
            Self::TlsCertificateUntrusted => "tls_certificate_untrusted",
            Self::TlsCertificateNameless => "tls_certificate_nameless",
            Self::WebsocketRequest => "websocket_request",
            Self::WebsocketTooSlow => "websocket_too_slow",
            Self::WebsocketPath => "websocket_path",
            Self::WebsocketOrigin => "websocket_origin",
            Self::WebsocketSubprotocol => "websocket_subprotocol",
        }
    }
}

/// What there is too little of for a message: it is refused, and nothing was done with it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(usize)]
pub enum Shortage {
    /// The queue of a session that has subscribed is at its limit.
    Queue,
    /// All queues together are at their limit.
    Queues,
    /// What the data directory may hold, or room on the disk.
    Disk,
    /// Memory.
    Memory,
}

impl Shortage {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 4] = [Self::Queue, Self::Queues, Self::Disk, Self::Memory];

    /// The name in `$SYS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue_full",
            Self::Queues => "queues_full",
            Self::Disk => "disk_full",
            Self::Memory => "memory_full",
        }
    }
}

impl From<Shortage> for DropReason {
    /// Of a message that is dropped and not refused.
    fn from(shortage: Shortage) -> Self {
        match shortage {
            // What is refused for want of disk is never dropped.
            Shortage::Queue | Shortage::Disk => Self::QueueFull,
            Shortage::Queues => Self::QueuesFull,
            Shortage::Memory => Self::MemoryFull,
        }
    }
}

/// All counters. One per broker.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Bytes read from clients.
    pub bytes_received: Counter,
    /// Bytes written to clients.
    pub bytes_sent: Counter,
    /// Packets of any type read from clients.
    pub packets_received: Counter,
    /// Packets of any type written to clients.
    pub packets_sent: Counter,
    /// PUBLISH packets read from clients.
    pub publishes_received: Counter,
    /// PUBLISH packets written to clients.
    pub publishes_sent: Counter,
    /// Bytes of PUBLISH packets read from clients.
    pub publish_bytes_received: Counter,
    /// Bytes of PUBLISH packets written to clients.
    pub publish_bytes_sent: Counter,
    /// Connections that were accepted, whether they sent a CONNECT or not.
    pub sockets_opened: Counter,
    /// Connections that sent something the standard forbids.
    pub protocol_errors: Counter,
    /// Acknowledgements from clients with a packet identifier under which nothing is open.
    pub acks_unknown: Counter,
    /// Clients that did not prove, on connecting or anew, who they are, where they have to.
    pub authentications_failed: Counter,
    /// Clients that had to wait before anybody looked at who they are, as their address had failed too often.
    pub authentications_delayed: Counter,
    /// Clients that were refused because too many logged in at once.
    pub authentications_busy: Counter,
    /// Clients that were refused because nobody could say who they are.
    pub authentications_unavailable: Counter,
    /// Messages and wills that the rules do not let their clients publish.
    pub publishes_denied: Counter,
    /// Filters of which the rules let nothing come to the client that asked for them.
    pub subscriptions_denied: Counter,
    /// CONNECTs refused for their will, or because another user has the session.
    pub connects_denied: Counter,
    /// Clients that are connected.
    pub clients_connected: Gauge,
    /// Sessions, with and without a client.
    pub sessions: Gauge,
    /// Sessions whose expiry came while the client was away.
    pub sessions_expired: Counter,
    /// Subscriptions of all sessions.
    pub subscriptions: Gauge,
    /// Retained messages.
    pub retained_messages: Gauge,
    /// Bytes of retained messages, topics included.
    pub retained_bytes: Gauge,
    /// Messages in all mailboxes and behind full windows.
    pub queued_messages: Gauge,
    /// Bytes held by those.
    pub queued_bytes: Gauge,
    /// Good CONNECTs of clients without a session for which there was no memory or no disk.
    pub connects_refused: Counter,
    /// Bytes of memory that the process uses, if somebody looks.
    pub memory_bytes: Gauge,
    /// How often memory was short.
    pub memory_short: Counter,
    dropped: [Counter; DropReason::ALL.len()],
    connections_refused: [Counter; RefuseReason::ALL.len()],
    refused: [Counter; Shortage::ALL.len()],
}

impl Metrics {
    /// Counts `messages` that were dropped because of `reason`.
    pub fn dropped(&self, reason: DropReason, messages: u64) {
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.add(messages);
        }
    }

    /// How many were dropped because of `reason` since start-up.
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).map_or(0, Counter::value)
    }

    /// How many were dropped for any reason since start-up.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().map(Counter::value).sum()
    }

    /// Counts a connection that was closed because of `reason`.
    pub fn connection_refused(&self, reason: RefuseReason) {
        if let Some(counter) = self.connections_refused.get(reason as usize) {
            counter.add(1);
        }
    }

    /// How many connections were closed because of `reason` since start-up.
    pub fn connections_refused_for(&self, reason: RefuseReason) -> u64 {
        self.connections_refused.get(reason as usize).map_or(0, Counter::value)
    }

    /// How many connections were closed before their CONNECT for any of these reasons since start-up.
    pub fn connections_refused(&self) -> u64 {
        self.connections_refused.iter().map(Counter::value).sum()
    }

    /// Counts `messages` that were refused because of `shortage`.
    pub fn refused(&self, shortage: Shortage, messages: u64) {
        if let Some(counter) = self.refused.get(shortage as usize) {
            counter.add(messages);
        }
    }

    /// How many were refused because of `shortage` since start-up.
    pub fn refused_for(&self, shortage: Shortage) -> u64 {
        self.refused.get(shortage as usize).map_or(0, Counter::value)
    }
}
