//! What is known of a client before it has said anything in MQTT. Floor 5, made by `net::transport`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::auth::{Methods, Verifier};
use crate::net::accept::Settings;
use crate::net::admission::Admitted;
use crate::net::tls::Certificate;
use crate::session::authentication::{Anonymous, Directory};

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

impl Peer {
    /// What clients are checked with that come in where it did.
    pub(super) fn methods(&self, verifier: &Verifier) -> Arc<Methods> {
        verifier.methods(self.entrance.load().methods.as_ref())
    }
}

/// Who may stay that came in there: whom the listener's own methods know, or those `common` to all that have none, and
/// whether clients that have not said who they are.
pub(super) fn who_may_stay(
    entrance: Option<&Entrance>,
    common: Arc<dyn Directory>,
) -> (Arc<dyn Directory>, Anonymous) {
    let Some(entrance) = entrance else { return (common, Anonymous::Allowed) };
    let listener = entrance.load();
    let known = match &listener.methods {
        Some(own) => own.clone(),
        None => common,
    };
    (known, listener.anonymous)
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
