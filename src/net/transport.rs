//! From an accepted socket to a connection: PROXY header, TLS, WebSocket, CONNECT, in this order and as far as
//! the listener has them. Floor 5, called by `net::accept`.
//!
//! One time limit lies over all of it, so nobody holds a connection open without saying who he is. What a client waits
//! for its turn in TLS is the broker's fault and does not count: if it did, and more clients came at once than
//! can be served in that time, they would be cut off half done and come back for all of it.

use std::future::Future;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};

use crate::metrics::RefuseReason;
use crate::net::admission::Admitted;
use crate::net::connection::Connection;
use crate::net::listener::Serving;
use crate::net::peer::{Address, Peer};
use crate::net::proxy::{self, ProxyError};
use crate::net::tls::{self, TlsError, TlsStream};
use crate::net::upgrade::{self, UpgradeError};
use crate::net::websocket::WebSocket;

/// A connection that is about to be told that it is one.
pub(super) struct Opened<S> {
    pub(super) connection: Connection<S>,
    pub(super) address: Address,
    pub(super) admitted: Option<Admitted>,
}

/// Why there is nothing over which a CONNECT could come.
#[derive(Debug, thiserror::Error)]
enum TransportError {
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    #[error("not in time")]
    TooSlow(RefuseReason),
}

impl TransportError {
    fn reason(&self) -> RefuseReason {
        match self {
            Self::Proxy(_) => RefuseReason::ProxyHeader,
            Self::Tls(error) => error.reason(),
            Self::Upgrade(error) => error.reason(),
            Self::TooSlow(reason) => *reason,
        }
    }
}

/// MQTT as it is, over TCP or a Unix socket.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    serving: Arc<Serving>,
    mut stream: S,
    mut peer: Peer,
) -> Option<Opened<S>> {
    let until = deadline(&peer);
    read_proxy_header(&serving, &mut stream, &mut peer, until).await?;
    connect(&serving, stream, peer, until).await
}

/// MQTT over TLS.
pub(super) async fn open_tls(
    serving: Arc<Serving>,
    mut stream: TcpStream,
    mut peer: Peer,
) -> Option<Opened<TlsStream>> {
    let mut until = deadline(&peer);
    read_proxy_header(&serving, &mut stream, &mut peer, until).await?;
    let stream = encrypt(&serving, stream, &mut peer, &mut until).await?;
    connect(&serving, stream, peer, until).await
}

/// MQTT over WebSocket.
pub(super) async fn open_websocket(
    serving: Arc<Serving>,
    mut stream: TcpStream,
    mut peer: Peer,
) -> Option<Opened<WebSocket<TcpStream>>> {
    let until = deadline(&peer);
    read_proxy_header(&serving, &mut stream, &mut peer, until).await?;
    let stream = upgrade(&serving, stream, &peer, until).await?;
    connect(&serving, stream, peer, until).await
}

/// MQTT over WebSocket over TLS.
pub(super) async fn open_tls_websocket(
    serving: Arc<Serving>,
    mut stream: TcpStream,
    mut peer: Peer,
) -> Option<Opened<WebSocket<TlsStream>>> {
    let mut until = deadline(&peer);
    read_proxy_header(&serving, &mut stream, &mut peer, until).await?;
    let stream = encrypt(&serving, stream, &mut peer, &mut until).await?;
    let stream = upgrade(&serving, stream, &peer, until).await?;
    connect(&serving, stream, peer, until).await
}

fn deadline(peer: &Peer) -> Instant {
    Instant::now() + peer.listener.limits.handshake_max
}

/// Whoever speaks of the connection from here on means the address behind the proxy.
async fn read_proxy_header<S: AsyncRead + Unpin>(
    serving: &Serving,
    stream: &mut S,
    peer: &mut Peer,
    until: Instant,
) -> Option<()> {
    if peer.listener.proxy_protocol {
        let reading = proxy::read_header(stream);
        let source = step(serving, peer, until, RefuseReason::ProxyTooSlow, reading).await?;
        peer.address = source.map_or(peer.address, Address::Ip);
        return serving.admit(peer);
    }
    Some(())
}

/// Puts `until` off by the time that the client waits for its turn.
async fn encrypt(
    serving: &Serving,
    stream: TcpStream,
    peer: &mut Peer,
    until: &mut Instant,
) -> Option<TlsStream> {
    let tls = peer.listener.tls.clone()?;
    let reading = tls::read_hello(stream);
    let greeted = step(serving, peer, *until, RefuseReason::TlsTooSlow, reading).await?;
    let waits_since = Instant::now();
    let turn = tokio::select! {
        turn = serving.turns.next() => turn,
        () = serving.stop.cancelled() => return None,
    };
    *until += waits_since.elapsed();
    let shaking = tls.answer(greeted, turn);
    let (stream, certificate) =
        step(serving, peer, *until, RefuseReason::TlsTooSlow, shaking).await?;
    peer.certificate = certificate;
    Some(stream)
}

async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    serving: &Serving,
    mut stream: S,
    peer: &Peer,
    until: Instant,
) -> Option<WebSocket<S>> {
    let settings = peer.listener.websocket.as_ref()?;
    let upgrading = upgrade::accept(&mut stream, settings);
    step(serving, peer, until, RefuseReason::WebsocketTooSlow, upgrading).await?;
    Some(WebSocket::new(stream))
}

async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    serving: &Serving,
    stream: S,
    peer: Peer,
    until: Instant,
) -> Option<Opened<S>> {
    let connection = serving.open(stream, &peer, until).await?;
    Some(Opened { connection, address: peer.address, admitted: peer.admitted })
}

impl Serving {
    /// Whether the address may have one more connection. `None` is no, counted.
    pub(super) fn admit(&self, peer: &mut Peer) -> Option<()> {
        let address = peer.address.ip();
        let admitted = match &peer.listener.accept_rate {
            Some(listener) => self.gatekeeper.admit_at(listener, address),
            None => self.gatekeeper.admit(address),
        };
        match admitted {
            Ok(admitted) => {
                peer.admitted = Some(admitted);
                Some(())
            }
            Err(why) => {
                // Many of them come fast, so the log has them only where somebody looks for them.
                debug!(peer = %peer.address, listener = %peer.listener.listen, %why, "connection refused");
                self.router.metrics().connection_refused(why.reason());
                None
            }
        }
    }
}

/// One step, which ends in time, or the connection does.
async fn step<T, E: Into<TransportError>>(
    serving: &Serving,
    peer: &Peer,
    until: Instant,
    too_slow: RefuseReason,
    step: impl Future<Output = Result<T, E>>,
) -> Option<T> {
    let done = tokio::select! {
        done = timeout_at(until, step) => done,
        () = serving.stop.cancelled() => return None,
    };
    let error = match done {
        Ok(Ok(done)) => return Some(done),
        Ok(Err(error)) => error.into(),
        Err(_) => TransportError::TooSlow(too_slow),
    };
    let reason = error.reason();
    serving.router.metrics().connection_refused(reason);
    let (address, listener) = (peer.address, &peer.listener.listen);
    match reason {
        // Port probes and health checks do this all day.
        reason if reason != RefuseReason::TlsLost && serving.gatekeeper.may_log() => {
            info!(peer = %address, %listener, reason = reason.name(), %error, "connection refused");
        }
        _ => {
            debug!(peer = %address, %listener, reason = reason.name(), %error, "connection refused");
        }
    }
    None
}
