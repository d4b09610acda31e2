//! One connection from its CONNECT to its CONNACK, and its end. Floor 5, called by `net::accept`, which
//! brings a stream of any transport.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant as Moment, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::auth::Verifier;
use crate::codec::ReasonCode;
use crate::ids::{ClientId, ProtocolVersion};
use crate::metrics::DropReason;
use crate::net::Totals;
use crate::net::admission::{self, Gatekeeper};
use crate::net::connection::{Connection, Start};
use crate::net::handshake::{Desk, HandshakeError, authenticate, read_hello};
use crate::net::peer::{Address, Peer};
use crate::net::tls::Turns;
use crate::router::Router;
use crate::router::mailbox::{Home, Mail};
use crate::router::registry::{Claim, ClaimError, Parked, WaitingWill};
use crate::session;
use crate::session::authentication::{Authenticated, Caller, Directory};
use crate::session::{CloseReason, Expiry, Opening, Session, negotiate};

/// How long a closing connection may take to write its last bytes.
const LAST_WORDS_MAX: Duration = Duration::from_secs(2);
/// How long it then waits for the client to end its side.
const LINGER_MAX: Duration = Duration::from_millis(200);

/// What all connections share.
pub(super) struct Serving {
    pub(super) router: Router,
    pub(super) totals: Totals,
    pub(super) verifier: Arc<Verifier>,
    pub(super) gatekeeper: Arc<Gatekeeper>,
    pub(super) turns: Arc<Turns>,
    pub(super) stop: CancellationToken,
}

impl Serving {
    /// CONNECT to CONNACK, of which the CONNECT has to come before `until`.
    pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        from: &Peer,
        until: Moment,
    ) -> Option<Connection<S>> {
        let peer = from.address;
        let shaken = tokio::select! {
            shaken = self.shake_hands(&mut stream, from, until) => shaken,
            () = self.stop.cancelled() => return None,
        };
        let error = match shaken {
            Ok(None) => return None,
            Ok(Some((opening, claim, rest))) => {
                match self.session_for(&opening, from.listener.limits.session, claim).await {
                    Ok((claim, parked, was_present)) => {
                        let user = opening.user().map(|user| user.as_str());
                        debug!(%peer, client = %opening.client_id, user, was_present, "client connected");
                        let connection =
                            self.begin(stream, (from, &opening), claim, parked, was_present, rest);
                        return Some(connection);
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        match &error {
            // Port probes and health checks do this all day.
            HandshakeError::Lost(_) => debug!(%peer, %error, "connection closed"),
            _ if error.is_health_question() => debug!(%peer, "asked whether the broker works"),
            _ if self.gatekeeper.may_log() => info!(%peer, %error, "connection closed"),
            _ => debug!(%peer, %error, "connection closed"),
        }
        let metrics = self.router.metrics();
        metrics.protocol_errors.add(error.is_protocol_error().into());
        metrics.authentications_failed.add(error.is_failed_authentication().into());
        metrics.authentications_busy.add(error.is_busy().into());
        metrics.authentications_unavailable.add(error.is_unavailable().into());
        let mut connack = Vec::new();
        if let Some(refusal) = error.answer() {
            refusal.write(&from.listener.limits.session, &mut connack);
        }
        // Also without a word: TLS and WebSocket say that this is the end.
        write_last(&mut stream, &connack).await;
        None
    }

    /// Gets to know the client and waits for the right to the client id. `None` where a newer connection
    /// has it.
    async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        peer: &Peer,
        until: Moment,
    ) -> Result<Option<(Opening, Claim, Vec<u8>)>, HandshakeError> {
        let introduction = timeout_at(until, self.introduce(stream, peer)).await;
        let (opening, rest) = introduction.map_err(|_| HandshakeError::TooSlow)??;
        // A claim ends another connection, so whoever makes one has proved who he is.
        let client = &opening.client_id;
        match self.router.registry().claim(client, opening.user()).await {
            Ok(claim) => Ok(Some((opening, claim, rest))),
            Err(ClaimError::Superseded) => {
                debug!(peer = %peer.address, %client, "a newer connection has the client id");
                Ok(None)
            }
            Err(ClaimError::NotOwner) => {
                self.router.metrics().connects_denied.add(1);
                let explanation = "the client identifier is another user's: choose one of your own";
                Err(opening.refusal(ReasonCode::NotAuthorized, explanation).into())
            }
        }
    }

    /// Reads the CONNECT, settles the terms and finds out who the client is. Returns what it sent behind
    /// that, too.
    async fn introduce<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        peer: &Peer,
    ) -> Result<(Opening, Vec<u8>), HandshakeError> {
        let limits = &peer.listener.limits;
        let bytes_max = &|| admission::connect_bytes_max(&self.router, limits.connect_bytes_max);
        let metrics = self.router.metrics();
        let hello = read_hello(stream, bytes_max).await?;
        metrics.bytes_received.add(hello.bytes.len() as u64);
        let connect = hello.connect()?;
        let mut opening = negotiate(&connect, &limits.session, || self.spare_client_id())?;
        if let Some(mount_point) = &peer.listener.mount_point {
            opening.mount(&connect, mount_point)?;
        }
        let failed = |error| HandshakeError::authentication(&opening.link, error);
        let listener = peer.entrance.load_full();
        let caller =
            Caller { certificate_user: peer.certificate.user(), anonymous: listener.anonymous };
        let methods = self.verifier.methods(listener.methods.as_ref());
        let admission = methods.admit(&connect, &caller).map_err(failed)?;
        let mut rest = hello.into_rest();
        let desk = Desk { verifier: &self.verifier, metrics, peer, bytes_max };
        opening.authenticated = authenticate(stream, admission, &opening, &mut rest, &desk).await?;
        opening.check_room(&limits.session)?;
        if let Some(authenticated) = &opening.authenticated {
            opening.rules = authenticated.rules.clone();
        }
        opening.rights = self.router.rights_of(&opening);
        if let Err((refusal, denial)) = opening.check_will() {
            metrics.connects_denied.add(1);
            self.router.report(&opening.client_id, opening.user(), &[denial]);
            return Err(refusal.into());
        }
        if opening.is_will_dropped {
            let client = &opening.client_id;
            debug!(%client, "its will is for a topic below $SYS/, which are the broker's own: it is dropped");
            metrics.dropped(DropReason::NotAuthorized, 1);
        }
        Ok((opening, rest))
    }

    /// Finds the session of the client, or makes one. The flag is CONNACK's session present.
    async fn session_for(
        &self,
        opening: &Opening,
        limits: session::Limits,
        mut claim: Claim,
    ) -> Result<(Claim, Parked, bool), HandshakeError> {
        let now = Instant::now();
        let metrics = self.router.metrics();
        let mut parked = claim.take(self.router.registry());
        // Another one in the place of its session costs nothing more.
        let had_one = parked.is_some();
        let is_over = |parked: &mut Parked| opening.clean_start || parked.has_ended(now);
        if let Some(parked) = parked.take_if(is_over) {
            metrics.sessions_expired.add(parked.has_ended(now).into());
            let was_durable = parked.session.durable().is_some();
            self.router.end_parked(parked).await;
            if was_durable {
                // CONNACK says that it is gone.
                self.router.settle_log().await;
            }
        }
        if let Some(mut parked) = parked {
            if let Some(will) = parked.take_overdue_will(now) {
                self.router.publish_will(will, parked.inbox.mailbox()).await;
                // In the log before the will of this connection takes its place.
                self.router.write_will_published(parked.inbox.mailbox()).await;
            }
            parked.session.attach(limits, opening, now);
            parked.inbox.mailbox().set_connected(true);
            return Ok((claim, parked, true));
        }
        if metrics.sessions.value() >= self.totals.sessions_max {
            claim.end(self.router.registry());
            let explanation = "the broker holds as many sessions as it may: try again later";
            return Err(opening.refusal(ReasonCode::QuotaExceeded, explanation).into());
        }
        if !had_one && let Some(explanation) = admission::lacks_room(&self.router, opening) {
            claim.end(self.router.registry());
            metrics.connects_refused.add(1);
            return Err(opening.refusal(ReasonCode::QuotaExceeded, explanation).into());
        }
        metrics.sessions.add(1);
        let mut session = Box::new(Session::new(limits, opening, now));
        let home = match opening.expiry {
            Expiry::WithConnection => Home::Memory,
            Expiry::After(_) | Expiry::Never => self.router.home_of_durable(),
        };
        let inbox = self.router.open_mailbox(Some(&opening.client_id), home);
        if home == Home::Log {
            session.make_durable(inbox.mailbox().session());
        }
        Ok((claim, Parked { session, inbox, expires_at: None, will: None }, false))
    }

    /// The connection with its CONNACK still to be written.
    fn begin<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        (from, opening): (&Peer, &Opening),
        claim: Claim,
        mut parked: Parked,
        was_present: bool,
        received: Vec<u8>,
    ) -> Connection<S> {
        claim.announce(parked.inbox.mailbox());
        self.router.hold(&parked, opening);
        // From here on whoever replaces the rules finds the session; before they may have been replaced unseen.
        parked.session.set_rights(self.router.refresh_rights(parked.inbox.mailbox()));
        if self.stop.is_cancelled() {
            // Whoever told the owners to go may have looked before we were one.
            parked.inbox.mailbox().send(Mail::ShuttingDown);
        }
        // The same for whoever told them that users have changed, or the settings of their listener.
        let is_known = match &opening.authenticated {
            Some(Authenticated { user, proof, .. }) => {
                let methods = from.methods(&self.verifier);
                parked.session.renew_identity(&*methods);
                methods.is_still_known(user, proof)
            }
            None => true,
        };
        if !is_known || !Arc::ptr_eq(&from.entrance.load(), &from.listener) {
            parked.inbox.mailbox().send(Mail::UsersChanged(self.verifier.methods(None)));
        }
        self.router.metrics().clients_connected.add(1);
        self.router.metrics().packets_received.add(1);
        self.router.metrics().packets_sent.add(1);
        let mut connack = Vec::new();
        let limits = &from.listener.limits;
        let prefix = &limits.response_topic_prefix;
        opening.accept(was_present, &limits.session, prefix, &mut connack);
        let packet_bytes_max = limits.session.packet_bytes_max;
        let start = Start { connack, received, packet_bytes_max };
        let connected = self.router.write_connected(&parked, opening, was_present);
        let mut connection = Connection::new(stream, claim, parked, self.router.clone(), start);
        connection.limit(limits.publish);
        connection.entrance = Some(from.entrance.clone());
        connection.certificate = from.certificate.clone();
        if let Some(at) = connected {
            connection.hold(at);
        }
        connection
    }

    /// Gives everything back in an order in which nothing is lost: batches to the shards, the will, the
    /// session to its slot; the last bytes to the client come last, for it may not read them.
    pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut connection: Connection<S>,
        reason: CloseReason,
        peer: Address,
    ) {
        let client = connection.claim.client_id().clone();
        let metrics = self.router.metrics();
        metrics.protocol_errors.add(reason.is_protocol_error().into());
        metrics.authentications_failed.add(reason.is_failed_authentication().into());
        let is_bad = reason.is_protocol_error() || reason.is_failed_authentication();
        if is_bad && self.gatekeeper.may_log() {
            info!(%peer, %client, %reason, "connection closed");
        } else {
            debug!(%peer, %client, %reason, "connection closed");
        }
        let last_words = connection.last_words(&reason);
        if connection.session.durable().is_some() && !last_words.is_empty() {
            // Among them may be what waits for the log.
            self.router.settle_log().await;
        }
        let Connection { mut stream, claim, mut session, inbox, mut links, .. } = connection;
        std::future::poll_fn(|cx| links.poll_flush(cx)).await;
        let may_be_refused =
            session.link().version != ProtocolVersion::V5 && session.awaits_receipt();
        if may_be_refused || inbox.mailbox().is_refused() {
            // What the client had sent behind a message that was refused is refused before it may send that again. A
            // shard that has not come to it yet would otherwise refuse what the next connection brings.
            self.router.settle().await;
            inbox.mailbox().forget_refusal();
        }
        self.router.metrics().clients_connected.add(-1);
        inbox.mailbox().set_connected(false);
        let now = Instant::now();
        let ends_at = session.expiry().ends_at(now);
        let mut waiting = None;
        if let Some(will) = session.detach(&reason) {
            let due_at = will.due_at(now, ends_at);
            // Where no session outlives the process no will waits for longer than that.
            let is_last = self.stop.is_cancelled() && session.durable().is_none();
            if due_at <= now || is_last {
                self.router.publish_will(will, inbox.mailbox()).await;
                self.router.write_will_published(inbox.mailbox()).await;
            } else {
                waiting = Some(Box::new(WaitingWill { will, due_at }));
            }
        }
        let mut parked = Parked { session, inbox, expires_at: ends_at, will: waiting };
        if parked.has_ended(now) {
            self.router.end_parked(parked).await;
            claim.end(self.router.registry());
        } else {
            self.router.write_disconnected(&parked);
            self.router.hand_over(&mut parked.session, &parked.inbox, false).await;
            let mailbox = parked.inbox.mailbox().clone();
            claim.park(parked, self.router.registry());
            // While the session changed hands, whoever replaced the rules did not see it.
            self.router.refresh_rights(&mailbox);
        }
        write_last(&mut stream, &last_words).await;
    }

    /// For a client that sends no identifier: unique among this broker's sessions [MQTT-3.1.3-6].
    fn spare_client_id(&self) -> ClientId {
        let number = self.router.registry().fresh_session_id().0;
        ClientId::new(&format!("auto-{:016x}-{number:x}", self.router.run_id()))
    }
}

/// Writes `bytes`, ends the stream and reads for a moment what the client still sends: a socket that is
/// closed with unread input is reset, and the client might never see the last bytes.
pub(super) async fn write_last<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) {
    let writing = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await
    };
    // The connection is over either way.
    let written = timeout(LAST_WORDS_MAX, writing).await;
    if bytes.is_empty() || !matches!(written, Ok(Ok(()))) {
        return;
    }
    let reading = async {
        let mut ignored = [0; 1024];
        while stream.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
    };
    let _ = timeout(LINGER_MAX, reading).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{join, sink};

    use super::*;
    use crate::config::{DurabilityLevel, File};
    use crate::message::TopicHasher;
    use crate::metrics::{Metrics, Shortage};
    use crate::net::accept::Settings;
    use crate::net::tls::Certificate;
    use crate::router::mailbox::Mailbox;

    /// With room for one message in each queue.
    fn serving() -> (Serving, Arc<Settings>) {
        let file =
            File { durability: DurabilityLevel::None, queue_messages_max: 1, ..File::default() };
        let config = file.check(1024).unwrap();
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let router = Router::spawn(1, config.router, hasher, Arc::new(Metrics::default()), None);
        router.queues().replace(config.limits.queues);
        let listener = Arc::new(config.listeners[0].clone());
        let serving = Serving {
            router,
            totals: config.net,
            verifier: Arc::new(Verifier::new(config.authentication, config.authentication_limits)),
            gatekeeper: Arc::default(),
            turns: Arc::default(),
            stop: CancellationToken::new(),
        };
        (serving, listener)
    }

    /// A connection on which `sent` comes at once, and then its end. Only if the broker waits for a shard has that a
    /// turn meanwhile: there is one thread.
    async fn serve(
        (serving, listener): &(Serving, Arc<Settings>),
        sent: &'static [u8],
    ) -> Arc<Mailbox> {
        let listener = listener.clone();
        let entrance = Arc::new(listener.clone().into());
        let (address, certificate) = (Address::Unix, Certificate::default());
        let peer = Peer { address, certificate, listener, entrance, admitted: None };
        let until = Moment::now() + Duration::from_secs(10);
        let stream = join(sent, sink());
        let mut connection = serving.open(stream, &peer, until).await.unwrap();
        let mailbox = connection.inbox.mailbox().clone();
        let reason = connection.run().await;
        serving.close(connection, reason, address).await;
        mailbox
    }

    #[tokio::test]
    async fn message_refused_behind_the_end_of_its_connection_is_no_matter_for_the_next_one() {
        let broker = serving();
        let router = &broker.0.router;
        // The session of `s` has subscribed to `a` at QoS 1, and waits.
        serve(&broker, b"\x10\x0D\0\x04MQTT\x04\0\0\0\0\x01s\x82\x06\0\x01\0\x01a\x01").await;
        router.settle().await;
        // Of two messages for it the second finds no room.
        let sent = b"\x10\x0D\0\x04MQTT\x04\0\0\0\0\x01p\
            \x32\x05\0\x01a\0\x01\x32\x05\0\x01a\0\x02";
        let publisher = serve(&broker, sent).await;
        router.settle().await;
        assert_eq!(router.metrics().refused_for(Shortage::Queue), 1);
        assert!(!publisher.is_refused(), "what the next connection brings would be refused");
    }
}
