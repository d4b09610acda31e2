//! What is known of a client before it has said anything in MQTT. Floor 5, made by `net::transport`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::net::accept::Settings;
use crate::net::admission::Admitted;
use crate::net::tls::Certificate;
use crate::session::authentication::Anonymous;

/// The other end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where it is.
    pub(super) address: Address,
    /// The certificate that it has shown, if it was asked for one and has one.
    pub(super) certificate: Certificate,
    /// The settings of the listener as they were when the connection was accepted.
    pub(super) listener: Arc<Settings>,
    /// The same as they are now.
    pub(super) entrance: Entrance,
    /// Its place among the connections from its address, once that is known.
    pub(super) admitted: Option<Admitted>,
}

/// The settings of a listener, which a reload replaces.
pub(super) type Entrance = Arc<ArcSwap<Settings>>;

/// Whether a client that came in there without saying who it is may stay; others have no `entrance`.
pub(super) fn anonymous(entrance: Option<&Entrance>) -> Anonymous {
    entrance.map_or(Anonymous::Allowed, |entrance| entrance.load().anonymous)
}

/// Where a client is. Behind a proxy that says so (`proxy_protocol`) this is the client and not the proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Address {
    /// On the network.
    Ip(SocketAddr),
    /// On this machine, with access to the file of a Unix socket.
    Unix,
}

impl Address {
    /// Without the port; a Unix socket has none.
    pub(super) fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix => f.write_str("unix socket"),
        }
    }
}
