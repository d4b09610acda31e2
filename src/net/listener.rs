//! Accepts connections and serves each in a task of its own. Floor 5, started by `broker`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::codec::{DecodeError, ReasonCode};
use crate::ids::{ClientId, ProtocolVersion};
use crate::net::Limits;
use crate::net::connection::Connection;
use crate::net::handshake::{HandshakeError, read_hello};
use crate::router::Router;
use crate::router::registry::{Claim, Parked};
use crate::session::{CloseReason, Expiry, Opening, Session, negotiate, refuse};

/// How long a closing connection may take to write its last bytes.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for want of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until `stop`; the connections that it has accepted go on, counted by `tasks`.
pub async fn run(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let serving = Arc::new(Serving { router, limits, stop: stop.clone() });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                serving.router.metrics().sockets_opened.add(1);
                if tasks.len() >= limits.connections_max {
                    warn!(%peer, max = limits.connections_max, "connection refused: too many");
                    continue;
                }
                let serving = serving.clone();
                tasks.spawn(async move { serving.serve_tcp(stream, peer).await });
            }
            Err(error) if is_of_one_peer(&error) => debug!(%error, "connection lost in accept"),
            Err(error) => {
                warn!(%error, "cannot accept connections for the moment");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors of accept that say nothing about the next one.
fn is_of_one_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// What all connections of a listener share.
struct Serving {
    router: Router,
    limits: Limits,
    stop: CancellationToken,
}

impl Serving {
    async fn serve_tcp(&self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "cannot set TCP_NODELAY");
        }
        // The CONNECT is read in a future of its own, so that its size is not that of an idle connection.
        let opened = Box::pin(self.open(stream, peer)).await;
        if let Some((mut connection, claim)) = opened {
            let reason = connection.run().await;
            Box::pin(self.close(connection, claim, reason, peer)).await;
        }
    }

    /// CONNECT to CONNACK.
    async fn open<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        peer: SocketAddr,
    ) -> Option<(Connection<S>, Claim)> {
        let hello = tokio::select! {
            hello = timeout(self.limits.handshake_max, read_hello(
                &mut stream,
                self.limits.session.packet_bytes_max,
            )) => hello,
            () = self.stop.cancelled() => return None,
        };
        let Ok(hello) = hello else {
            info!(%peer, "connection closed: no CONNECT in time");
            return None;
        };
        let outcome = hello.and_then(|hello| {
            let connect = hello.connect()?;
            let version = connect.version;
            let negotiated = negotiate(&connect, &self.limits.session, || self.spare_client_id());
            Ok((negotiated, version, hello))
        });
        let (opening, hello) = match outcome {
            Ok((Ok(opening), _, hello)) => (opening, hello),
            Ok((Err(reason), version, _)) => {
                info!(%peer, %reason, "connection refused");
                self.refuse(&mut stream, version, reason).await;
                return None;
            }
            Err(error) => {
                self.router.metrics().protocol_errors.add(1);
                info!(%peer, %error, "connection closed");
                if let HandshakeError::Malformed(DecodeError::UnsupportedProtocolVersion {
                    ..
                }) = error
                {
                    let reason = ReasonCode::UnsupportedProtocolVersion;
                    self.refuse(&mut stream, ProtocolVersion::V311, reason).await;
                }
                return None;
            }
        };
        let claim = tokio::select! {
            claim = self.router.registry().claim(&opening.client_id) => claim,
            () = self.stop.cancelled() => return None,
        };
        let Ok(claim) = claim else {
            debug!(%peer, client = %opening.client_id, "a newer connection has the client id");
            return None;
        };
        Some(self.begin(stream, peer, opening, claim, hello.into_rest()).await)
    }

    /// Finds or makes the session and writes the CONNACK into the new connection's output.
    async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        peer: SocketAddr,
        opening: Opening,
        mut claim: Claim,
        rest: Vec<u8>,
    ) -> (Connection<S>, Claim) {
        let now = Instant::now();
        let mut parked = claim.take();
        if let Some(parked) = parked
            .take_if(|parked| opening.clean_start || parked.expires_at.is_some_and(|at| at <= now))
        {
            self.router.end_session(&parked.session, parked.inbox).await;
        }
        let session_present = parked.is_some();
        let (session, inbox) = match parked {
            Some(Parked { mut session, inbox, .. }) => {
                session.attach(&opening, now);
                inbox.mailbox().set_connected(true);
                (session, inbox)
            }
            None => {
                self.router.metrics().sessions.add(1);
                let session = Session::new(self.limits.session, &opening, now);
                (Box::new(session), self.router.open_mailbox())
            }
        };
        claim.announce(inbox.mailbox());
        self.router.metrics().clients_connected.add(1);
        debug!(%peer, client = %opening.client_id, session_present, "client connected");
        let mut connack = Vec::new();
        opening.accept(session_present, &self.limits.session, &mut connack);
        self.router.metrics().packets_sent.add(1);
        self.router.metrics().packets_received.add(1);
        let router = self.router.clone();
        let ticket = claim.ticket();
        (Connection::new(stream, session, inbox, router, ticket, rest, connack), claim)
    }

    /// Gives everything back in an order in which nothing is lost: batches to the shards, the will, the
    /// session to its slot; the last bytes to the client come last, for it may not read them.
    async fn close<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut connection: Connection<S>,
        claim: Claim,
        reason: CloseReason,
        peer: SocketAddr,
    ) {
        let client = claim.client_id().clone();
        if reason.is_protocol_error() {
            self.router.metrics().protocol_errors.add(1);
            info!(%peer, %client, %reason, "connection closed");
        } else {
            debug!(%peer, %client, %reason, "connection closed");
        }
        let last_words = connection.last_words(&reason);
        let Connection { mut stream, mut session, inbox, mut links, .. } = connection;
        std::future::poll_fn(|cx| links.poll_flush(cx)).await;
        self.router.metrics().clients_connected.add(-1);
        inbox.mailbox().set_connected(false);
        if let Some(will) = session.detach(&reason) {
            self.router.publish_will(will, inbox.mailbox()).await;
        }
        match session.expiry() {
            Expiry::WithConnection => {
                self.router.end_session(&session, inbox).await;
                claim.end(self.router.registry());
            }
            Expiry::After(duration) => {
                let expires_at = Some(Instant::now() + duration);
                claim.park(Parked { session, inbox, expires_at });
            }
            Expiry::Never => claim.park(Parked { session, inbox, expires_at: None }),
        }
        write_last(&mut stream, &last_words).await;
    }

    async fn refuse<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        version: ProtocolVersion,
        reason: ReasonCode,
    ) {
        let mut connack = Vec::new();
        refuse(version, reason, &mut connack);
        write_last(stream, &connack).await;
    }

    /// For a client that sends no identifier: unique among this broker's sessions [MQTT-3.1.3-6].
    fn spare_client_id(&self) -> ClientId {
        let number = self.router.registry().fresh_session_id().0;
        ClientId::new(&format!("auto-{:016x}-{number:x}", self.router.run_id()))
    }
}

/// Writes `bytes` and ends the stream; gives up after [`LAST_WORDS_MAX`].
async fn write_last<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) {
    let writing = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await
    };
    // The connection is over either way.
    let _ = timeout(LAST_WORDS_MAX, writing).await;
}
