//! The listeners: accepts connections and serves each in a task of its own. Floor 5, started by `broker`.
//!
//! A connection keeps the settings with which it was accepted. [`Listeners::replace`] gives new ones to those
//! that come later, so nobody is disconnected: neither by new certificates nor by a listener that goes. Only who its
//! users are, and whether anonymous clients may stay, is looked up again: at the CONNECT and when users change.
//!
//! # Invariants
//!
//! - Every transport has a task type of its own: the task of a plain TCP connection is not as large as that of
//!   a TLS connection.
//! - What opens a connection is a future that is freed when the connection is open.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::auth::{Methods, Verifier};
use crate::metrics::RefuseReason;
use crate::net::admission::{AcceptRate, Gatekeeper};
use crate::net::connection::Connection;
use crate::net::listener::Serving;
use crate::net::peer::{Address, Entrance, Peer};
use crate::net::socket::{Accepted, Socket};
use crate::net::tls::{Certificate, Tls};
use crate::net::transport::{self, Opened};
use crate::net::upgrade::WebSocketSettings;
use crate::net::{Limits, Totals};
use crate::router::Router;
use crate::session::authentication::Anonymous;
use crate::topic::MountPoint;

pub use crate::net::socket::{BindError, Listen};

/// Pause after an accept that failed for want of a resource.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One listener.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where.
    pub listen: Listen,
    /// Whether its clients may come without saying who they are.
    pub anonymous: Anonymous,
    /// What its clients are checked with, in place of what is common to all listeners that have none.
    pub methods: Option<Arc<Methods>>,
    /// Its connections at the same time; one more is closed as soon as it is accepted.
    pub connections_max: usize,
    /// How fast they may come; `None` is no limit but that of all listeners.
    pub accept_rate: Option<Arc<AcceptRate>>,
    /// Of each of them.
    pub limits: Arc<Limits>,
    /// Every connection begins with a PROXY header.
    pub proxy_protocol: bool,
    /// Before all topics of its clients, if they have topics to themselves.
    pub mount_point: Option<MountPoint>,
    /// Every connection is encrypted.
    pub tls: Option<Tls>,
    /// Every connection is a WebSocket.
    pub websocket: Option<WebSocketSettings>,
}

/// A listener whose address is taken and that accepts nobody yet: clients wait in its backlog.
#[derive(Debug)]
pub struct Bound {
    settings: Settings,
    socket: Socket,
    local: Listen,
}

impl Bound {
    /// Takes the address. Call it on a tokio runtime.
    pub fn bind(settings: Settings) -> Result<Self, BindError> {
        let socket = Socket::bind(&settings.listen)?;
        let local = socket.local().map_err(|error| {
            let listen = settings.listen.clone();
            BindError::Other { listen, error }
        })?;
        Ok(Self { settings, socket, local })
    }

    /// Where it listens: the port is the real one where 0 was asked for.
    pub fn local(&self) -> &Listen {
        &self.local
    }

    /// What connections to it are made of, in words.
    pub fn transport(&self) -> &'static str {
        match (&self.settings.websocket, &self.settings.tls, &self.local) {
            (None, None, Listen::Tcp(_)) => "TCP",
            (None, Some(_), _) => "TLS",
            (Some(_), None, _) => "WebSocket",
            (Some(_), Some(_), _) => "WebSocket and TLS",
            (None, None, Listen::Unix(_)) => "a Unix socket",
        }
    }
}

/// All listeners of a broker that serves.
pub struct Listeners {
    /// Of connections that are still to come.
    serving: Arc<ArcSwap<Serving>>,
    stop: CancellationToken,
    running: Mutex<Vec<Running>>,
    /// The connections.
    tasks: TaskTracker,
    /// The tasks that accept.
    services: TaskTracker,
}

/// A listener that accepts.
struct Running {
    listen: Listen,
    port: Arc<Port>,
    stop: CancellationToken,
}

/// What the connections of a listener share.
struct Port {
    serving: Arc<ArcSwap<Serving>>,
    settings: Entrance,
    connections: AtomicUsize,
}

/// Listeners for [`Listeners::replace`], all of whose addresses are taken.
pub struct Prepared {
    /// In the order of the settings.
    listeners: Vec<PreparedListener>,
}

enum PreparedListener {
    /// New settings for a listener that runs.
    Kept(Box<Settings>),
    New(Box<Bound>),
}

impl Listeners {
    /// Accepts on all of them until `stop`; the connections that they have accepted go on, counted by `tasks`.
    /// The tasks that accept are counted by `services`.
    pub fn start(
        bound: Vec<Bound>,
        router: Router,
        totals: Totals,
        (gatekeeper, verifier): (Arc<Gatekeeper>, Arc<Verifier>),
        (tasks, services): (TaskTracker, TaskTracker),
        stop: CancellationToken,
    ) -> Self {
        let turns = Arc::default();
        let serving = Serving { router, totals, gatekeeper, verifier, turns, stop: stop.clone() };
        let serving = Arc::new(ArcSwap::from_pointee(serving));
        let listeners = Self { serving, stop, running: Mutex::default(), tasks, services };
        let running = bound.into_iter().map(|bound| listeners.spawn(bound)).collect();
        listeners.with_running(|list| *list = running);
        listeners
    }

    /// Gives these to the connections that come later.
    pub fn renew(&self, totals: Totals) {
        let serving = self.serving.load_full();
        let (router, stop) = (serving.router.clone(), self.stop.clone());
        let (gatekeeper, verifier) = (serving.gatekeeper.clone(), serving.verifier.clone());
        let turns = serving.turns.clone();
        let serving = Serving { router, totals, gatekeeper, verifier, turns, stop };
        self.serving.store(Arc::new(serving));
    }

    /// What all users are known by that may come through any listener, and how long others' sessions stay. `None` where
    /// anybody might come, by a token, another server or a certificate; where there are no users, so that the
    /// settings may well be wrong; and where such sessions stay for ever.
    pub fn all_users(&self) -> Option<(Vec<Arc<Methods>>, Duration)> {
        let serving = self.serving.load();
        let grace = serving.totals.removed_user_session_max?;
        let settings: Vec<_> = self.with_running(|running| {
            running.iter().map(|it| it.port.settings.load_full()).collect()
        });
        let methods = settings.iter().map(|it| serving.verifier.methods(it.methods.as_ref()));
        let methods: Vec<_> = methods.collect();
        let by_certificate = settings.iter().filter_map(|it| it.tls.as_ref()).any(Tls::names_users);
        let are_known = !by_certificate && methods.iter().all(|it| it.knows_all());
        let are_there = methods.iter().any(|it| !it.is_empty());
        (are_known && are_there).then_some((methods, grace))
    }

    /// Takes the addresses of `settings` on which nobody listens yet. Nothing changes before
    /// [`Listeners::replace`]. Call it on a tokio runtime.
    pub fn prepare(&self, settings: Vec<Settings>) -> Result<Prepared, BindError> {
        let mut old: Vec<Listen> =
            self.with_running(|running| running.iter().map(|it| it.listen.clone()).collect());
        let prepare = |settings: Settings| match old.iter().position(|it| *it == settings.listen) {
            // Several have one address where that is any port: they are told apart by their order.
            Some(at) => {
                old.remove(at);
                Ok(PreparedListener::Kept(Box::new(settings)))
            }
            None => Bound::bind(settings).map(|bound| PreparedListener::New(Box::new(bound))),
        };
        let listeners = settings.into_iter().map(prepare).collect::<Result<_, _>>()?;
        Ok(Prepared { listeners })
    }

    /// From now on these are the listeners: those with the same address take the new settings, new ones accept,
    /// and what is not among them closes its socket. Connections go on as they are.
    pub fn replace(&self, new: Prepared) {
        self.with_running(|running| {
            let mut kept = Vec::new();
            for listener in new.listeners {
                match listener {
                    PreparedListener::New(bound) => kept.push(self.spawn(*bound)),
                    PreparedListener::Kept(settings) => {
                        let same = running.iter().position(|it| it.listen == settings.listen);
                        if let Some(at) = same {
                            let old = running.remove(at);
                            old.port.settings.store(Arc::new(*settings));
                            kept.push(old);
                        }
                    }
                }
            }
            for gone in std::mem::replace(running, kept) {
                info!(listener = %gone.listen, "no more connections are accepted here");
                gone.stop.cancel();
            }
        });
    }

    fn with_running<T>(&self, action: impl FnOnce(&mut Vec<Running>) -> T) -> T {
        action(&mut self.running.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn spawn(&self, bound: Bound) -> Running {
        let Bound { settings, socket, .. } = bound;
        let listen = settings.listen.clone();
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        let connections = AtomicUsize::new(0);
        let port = Arc::new(Port { serving: self.serving.clone(), settings, connections });
        let stop = self.stop.child_token();
        self.services.spawn(accept(socket, port.clone(), self.tasks.clone(), stop.clone()));
        Running { listen, port, stop }
    }
}

/// Accepts until `stop`.
async fn accept(socket: Socket, port: Arc<Port>, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok(accepted) => port.serve(accepted, &tasks),
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

impl Port {
    /// Starts the task of a connection, unless there are too many.
    fn serve(self: &Arc<Self>, accepted: Accepted, tasks: &TaskTracker) {
        let settings = self.settings.load_full();
        let serving = self.serving.load_full();
        let metrics = serving.router.metrics();
        metrics.sockets_opened.add(1);
        let address = match accepted {
            Accepted::Tcp(_, address) => address,
            Accepted::Unix(_) => Address::Unix,
        };
        let total_max = serving.totals.connections_max;
        let is_full = self.connections.load(Relaxed) >= settings.connections_max;
        if is_full || tasks.len() >= total_max {
            let max = if is_full { settings.connections_max } else { total_max };
            if serving.gatekeeper.may_log() {
                warn!(peer = %address, listener = %settings.listen, max, "connection refused: too many (connections_max)");
            }
            metrics.connection_refused(RefuseReason::TooMany);
            return;
        }
        let (has_tls, has_websocket) = (settings.tls.is_some(), settings.websocket.is_some());
        let (listener, entrance) = (settings, self.settings.clone());
        let mut peer = Peer {
            address,
            certificate: Certificate::default(),
            listener,
            entrance,
            admitted: None,
        };
        // Behind a proxy nobody is known yet.
        if !peer.listener.proxy_protocol && serving.admit(&mut peer).is_none() {
            return;
        }
        self.connections.fetch_add(1, Relaxed);
        match accepted {
            Accepted::Tcp(stream, _) => {
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(peer = %address, %error, "cannot set TCP_NODELAY");
                }
                match (has_tls, has_websocket) {
                    (false, false) => self.spawn(tasks, transport::open(serving, stream, peer)),
                    (true, false) => self.spawn(tasks, transport::open_tls(serving, stream, peer)),
                    (false, true) => {
                        self.spawn(tasks, transport::open_websocket(serving, stream, peer));
                    }
                    (true, true) => {
                        self.spawn(tasks, transport::open_tls_websocket(serving, stream, peer));
                    }
                }
            }
            Accepted::Unix(stream) => self.spawn(tasks, transport::open(serving, stream, peer)),
        }
    }

    /// Serves the connection that comes out of `opening`.
    fn spawn<S>(
        self: &Arc<Self>,
        tasks: &TaskTracker,
        opening: impl Future<Output = Option<Opened<S>>> + Send + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
        Connection<S>: Send,
    {
        let port = self.clone();
        // A future of its own, so that its size is not that of an idle connection.
        let opening = Box::pin(opening);
        tasks.spawn(async move {
            let opened = opening.await;
            if let Some(Opened { mut connection, address, admitted }) = opened {
                let reason = connection.run().await;
                let serving = port.serving.load_full();
                Box::pin(async move { serving.close(connection, reason, address).await }).await;
                drop(admitted);
            }
            port.connections.fetch_sub(1, Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::config::{DurabilityLevel, File};
    use crate::message::TopicHasher;
    use crate::metrics::Metrics;
    use crate::net::tls::TlsStream;
    use crate::session::authentication::UserName;

    /// A form that is read; of no password that anybody knows.
    const CREDENTIAL: &str = "SCRAM-SHA-256$4096:CdYjP6cN1/wAhYq14/XWuQ==$\
        Tf4P0MA9j1/AZZn21GMBC4k2CocaTzOIb3Vkb8b27w8=:eElIGnaevPodHktS1K9eSqPdEZWekqLz8gIDiduTo90=";
    const PING: ([u8; 2], [u8; 2]) = ([0xC0, 0], [0xD0, 0]);

    #[tokio::test]
    async fn listeners_are_replaced_and_nobody_is_disconnected() {
        let stop = CancellationToken::new();
        let (listeners, bound) = start(2, &stop);
        let [kept, gone] = bound[..] else { panic!("{bound:?}") };
        let (mut first, mut second) = (connect(kept).await, connect(gone).await);

        // `kept` does not take anonymous clients any more, and there is a new one.
        let new = [Settings { anonymous: Anonymous::Refused, ..plain(kept) }, plain(free())];
        let added = new[1].listen.clone();
        let prepared = listeners.prepare(new.to_vec()).unwrap();
        assert_eq!(hello(kept).await, Some([0x20, 2, 0, 0]), "nothing changes before it is said");
        listeners.replace(prepared);

        assert_eq!(hello(kept).await, Some([0x20, 2, 0, 5]));
        let Listen::Tcp(added) = added else { panic!() };
        assert_eq!(hello(added).await, Some([0x20, 2, 0, 0]));
        while TcpStream::connect(gone).await.is_ok() {
            tokio::task::yield_now().await;
        }
        for old in [&mut first, &mut second] {
            old.write_all(&PING.0).await.unwrap();
            let mut answer = [0; 2];
            old.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, PING.1);
        }
        stop.cancel();
    }

    /// Neither where others may come than those who are known, nor where nobody is: those settings may be wrong.
    #[tokio::test]
    async fn all_users_are_known_where_there_are_some_and_nothing_lets_others_in() {
        let stop = CancellationToken::new();
        let (listeners, bound) = start(1, &stop);
        assert!(listeners.all_users().is_none(), "there are no users");
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, [b'x'; 32]).unwrap();
        let methods = |tokens: bool| {
            let mut file = File { durability: DurabilityLevel::None, ..File::default() };
            file.scram_users.insert("anna".to_owned(), CREDENTIAL.to_owned().into());
            if tokens {
                file.authentication.jwt.secret_file = secret.clone();
            }
            file.check(1024).unwrap().authentication
        };
        let serve = |methods| {
            let settings = Settings { methods: Some(methods), ..plain(bound[0]) };
            listeners.replace(listeners.prepare(vec![settings]).unwrap());
        };
        serve(methods(false));
        let (known, _) = listeners.all_users().unwrap();
        let knows = |name| known.iter().any(|it| it.knows(&UserName::new(name)));
        assert!(knows("anna") && !knows("bob"));
        serve(methods(true));
        assert!(listeners.all_users().is_none(), "a token may name anybody");
        stop.cancel();
    }

    #[tokio::test]
    async fn listeners_on_any_port_keep_their_order() {
        let stop = CancellationToken::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let refusing = || Settings { anonymous: Anonymous::Refused, ..plain(any) };
        let (listeners, bound) = start_with(vec![plain(any), plain(any), refusing()], &stop);
        listeners.replace(listeners.prepare(vec![plain(any), refusing(), plain(any)]).unwrap());
        let mut codes = Vec::new();
        for addr in &bound {
            codes.push(hello(*addr).await.unwrap()[3]);
        }
        assert_eq!(codes, [0, 5, 0]);
        // The one that goes is the last.
        listeners.replace(listeners.prepare(vec![refusing(), refusing()]).unwrap());
        while TcpStream::connect(bound[2]).await.is_ok() {
            tokio::task::yield_now().await;
        }
        for addr in &bound[..2] {
            assert_eq!(hello(*addr).await.unwrap()[3], 5);
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn address_that_cannot_be_taken_changes_nothing() {
        let stop = CancellationToken::new();
        let (listeners, bound) = start(1, &stop);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let new = vec![plain(taken.local_addr().unwrap())];
        assert!(matches!(listeners.prepare(new), Err(BindError::InUse(_))));
        assert_eq!(hello(bound[0]).await, Some([0x20, 2, 0, 0]));
        stop.cancel();
    }

    /// The task of a plain connection must not grow with what other transports need.
    #[test]
    fn plain_connection_is_smaller_than_an_encrypted_one() {
        assert!(size_of::<Connection<TcpStream>>() + 512 < size_of::<Connection<TlsStream>>());
    }

    fn start(count: usize, stop: &CancellationToken) -> (Listeners, Vec<SocketAddr>) {
        start_with((0..count).map(|_| plain(free())).collect(), stop)
    }

    fn start_with(
        settings: Vec<Settings>,
        stop: &CancellationToken,
    ) -> (Listeners, Vec<SocketAddr>) {
        let file = File { durability: DurabilityLevel::None, ..File::default() };
        let config = file.check(1024).unwrap();
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let router = Router::spawn(1, config.router, hasher, Arc::new(Metrics::default()), None);
        let bound: Vec<_> = settings.into_iter().map(|it| Bound::bind(it).unwrap()).collect();
        let addresses = bound.iter().map(|bound| match bound.local() {
            Listen::Tcp(addr) => *addr,
            Listen::Unix(_) => panic!(),
        });
        let addresses = addresses.collect();
        let tasks = (TaskTracker::new(), TaskTracker::new());
        let verifier = Arc::new(Verifier::new(config.authentication, config.authentication_limits));
        let gatekeeper = Arc::new(Gatekeeper::new(config.limits.admission));
        let stop = stop.clone();
        let guards = (gatekeeper, verifier);
        (Listeners::start(bound, router, config.net, guards, tasks, stop), addresses)
    }

    fn plain(addr: SocketAddr) -> Settings {
        let file = File { durability: DurabilityLevel::None, ..File::default() };
        let settings = file.check(1024).unwrap().listeners.remove(0);
        Settings { listen: Listen::Tcp(addr), ..settings }
    }

    /// An address that nobody has, for listeners are known by theirs.
    fn free() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    async fn connect(addr: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let mut connack = [0; 4];
        stream.write_all(b"\x10\x0C\0\x04MQTT\x04\x02\0\0\0\0").await.unwrap();
        stream.read_exact(&mut connack).await.unwrap();
        assert_eq!(connack, [0x20, 2, 0, 0]);
        stream
    }

    /// The answer to a CONNECT.
    async fn hello(addr: SocketAddr) -> Option<[u8; 4]> {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let mut connack = [0; 4];
        stream.write_all(b"\x10\x0C\0\x04MQTT\x04\x02\0\0\0\0").await.unwrap();
        stream.read_exact(&mut connack).await.ok().map(|_| connack)
    }
}
