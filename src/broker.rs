//! Puts the parts together, serves, and stops them in an order that loses nothing. Floor 6, called by
//! `main` and by tests.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::Config;
use crate::message::TopicHasher;
use crate::metrics::Metrics;
use crate::net::listener;
use crate::router::Router;
use crate::router::mailbox::Mail;
use crate::sys;

/// Connections that the system may hold ready for us.
const BACKLOG: i32 = 4096;
/// Time for all clients to be told that the broker stops.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// A broker whose socket is bound: nobody is served yet, but nobody is refused either.
#[derive(Debug)]
pub struct Broker {
    config: Config,
    listener: TcpListener,
    local_addr: SocketAddr,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has it.
    #[error(
        "{0} is in use: another broker is running there; stop it, or choose another address with \
         --listen"
    )]
    InUse(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {addr}: {error}")]
    Other {
        /// As configured.
        addr: SocketAddr,
        /// From the system.
        error: io::Error,
    },
}

impl Broker {
    /// Takes the address. Call it on a tokio runtime.
    pub fn bind(config: Config) -> Result<Self, BindError> {
        let addr = config.listen;
        let (listener, local_addr) = listen(addr).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse(addr),
            _ => BindError::Other { addr, error },
        })?;
        Ok(Self { config, listener, local_addr })
    }

    /// Where it listens: the port is the real one where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many router shards it will have.
    pub fn shards(&self) -> usize {
        self.config.shards
    }

    /// Serves until `shutdown` is ready, then stops: no new clients, what was received is routed, and so
    /// are the wills that wait, for their sessions end now; clients are told (v5 with 0x8B
    /// [MQTT-4.13.2-1]) and their last bytes written.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let metrics = Arc::new(Metrics::default());
        let router = Router::spawn(self.config.shards, self.config.router, hasher, metrics);
        let stop = CancellationToken::new();
        let connections = TaskTracker::new();
        let services = TaskTracker::new();
        services.spawn(listener::run(
            self.listener,
            router.clone(),
            self.config.net,
            self.config.access,
            connections.clone(),
            stop.clone(),
        ));
        services.spawn(sys::run(router.clone(), self.config.sys_interval, stop.clone()));
        services.spawn(keep_deadlines(router.clone(), stop.clone()));
        services.spawn(drop_expired(router.clone(), stop.clone()));

        shutdown.await;
        info!(clients = connections.len(), "shutting down");
        stop.cancel();
        services.close();
        services.wait().await;
        router.settle_due(router.registry().take_wills()).await;
        router.settle().await;
        router.registry().tell_owners(|| Mail::ShuttingDown);
        connections.close();
        if tokio::time::timeout(GOODBYE_MAX, connections.wait()).await.is_err() {
            warn!(clients = connections.len(), "some clients did not take their goodbye in time");
        }
        router.stop().await;
    }
}

/// Publishes wills and ends sessions at their time.
async fn keep_deadlines(router: Router, stop: CancellationToken) {
    loop {
        let due = tokio::select! {
            due = router.registry().due() => due,
            () = stop.cancelled() => return,
        };
        router.settle_due(due).await;
    }
}

/// Makes room in queues whose messages have expired.
async fn drop_expired(router: Router, stop: CancellationToken) {
    tokio::select! {
        () = router.drop_expired() => (),
        () = stop.cancelled() => (),
    }
}

fn listen(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // A restart must not wait for the old connections' TIME_WAIT to pass.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let local_addr = listener.local_addr()?;
    Ok((listener, local_addr))
}
