//! Puts the parts together, serves, and stops them in an order that loses nothing. Floor 6, called by
//! `main` and by tests.

mod handle;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::auth::Verifier;
use crate::config::{Config, Durability, Limits};
use crate::message::TopicHasher;
use crate::metrics::Metrics;
use crate::net::accept::{self, Bound, Listen, Listeners};
use crate::net::admission::Gatekeeper;
use crate::router::Router;
use crate::router::mailbox::Mail;
use crate::router::orphans::Orphans;
use crate::session::authentication::UserName;
use crate::store::log::Settings;
use crate::store::start::{StartError, Started};
use crate::{store, sys};

use handle::{Parts, Requests};

pub use handle::Handle;
pub use handle::ReplaceError;

/// Time for all clients to be told that the broker stops.
const GOODBYE_MAX: Duration = Duration::from_secs(5);
/// Longest time between two looks for sessions whose users nobody knows any more: each takes some milliseconds for
/// ten thousand sessions.
const ORPHANS_LOOK_MAX: Duration = Duration::from_secs(15 * 60);

/// A broker whose sockets are bound and whose data are read: nobody is served yet, but nobody is refused either.
pub struct Broker {
    config: Config,
    bound: Vec<Bound>,
    durable: Option<Durable>,
    handle: Handle,
    requests: Requests,
    /// Says how much memory the process uses, where somebody knows.
    memory_in_use: fn() -> Option<u64>,
}

/// What outlives the process.
struct Durable {
    started: Started,
    /// Says why, if the log cannot be written any more.
    failure: oneshot::Receiver<String>,
}

/// The log cannot be written any more. Nothing was acknowledged since.
#[derive(Debug, thiserror::Error)]
#[error(
    "the message log has failed: {0}; what was acknowledged is there when the broker is started again"
)]
pub struct LogFailed(String);

/// An address cannot be listened on, or the data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has it, or the system does not let us.
    #[error(transparent)]
    Listener(#[from] accept::BindError),
    /// Another broker has them, or there is no access.
    #[error(
        "{0}; choose another directory with --data-dir, or keep nothing with --durability none"
    )]
    Data(StartError),
}

impl Broker {
    /// Takes the addresses. Call it on a tokio runtime.
    pub fn bind(mut config: Config) -> Result<Self, BindError> {
        let listeners = std::mem::take(&mut config.listeners).into_iter();
        let bound = listeners.map(Bound::bind).collect::<Result<_, _>>()?;
        let disk_bytes_max = config.limits.disk_bytes_max;
        let durability = config.durability.as_ref();
        let durable =
            durability.map(|it| open(it, disk_bytes_max)).transpose().map_err(BindError::Data)?;
        let (handle, requests) = Handle::new();
        Ok(Self { config, bound, durable, handle, requests, memory_in_use: || None })
    }

    /// With somebody to ask how many bytes of memory the process uses; nobody else can limit them.
    pub fn with_memory_in_use(self, memory_in_use: fn() -> Option<u64>) -> Self {
        Self { memory_in_use, ..self }
    }

    /// Its listeners, in the order of the settings.
    pub fn listening(&self) -> impl Iterator<Item = &Bound> {
        self.bound.iter()
    }

    /// The address of the first that is not a Unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.bound.iter().find_map(|bound| match bound.local() {
            Listen::Tcp(addr) => Some(*addr),
            Listen::Unix(_) => None,
        })
    }

    /// How many router shards it will have.
    pub fn shards(&self) -> usize {
        self.config.shards
    }

    /// The way to it while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `shutdown` is ready, then stops: no new clients, what was received is routed, and so
    /// are the wills that wait, for their sessions end now; clients are told (v5 with 0x8B
    /// [MQTT-4.13.2-1]) and their last bytes written.
    ///
    /// What outlives the process is in the log then. An error is a log that cannot be written: the broker stops,
    /// for it could acknowledge nothing any more.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), LogFailed> {
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let metrics = Arc::new(Metrics::default());
        let (store, recovered, checkpointer, failure) = match self.durable {
            None => (None, None, None, None),
            Some(Durable { started, failure }) => {
                let Started { store, recovered, checkpointer } = started;
                (Some(store), Some(recovered), Some(checkpointer), Some(failure))
            }
        };
        let Config { shards, router: limits, .. } = self.config;
        let router = Router::spawn(shards, limits, hasher, metrics, store);
        router.replace_rules(self.config.rules).await;
        let gatekeeper = Arc::new(Gatekeeper::default());
        set_limits(&router, &gatekeeper, self.config.limits);
        if let Some(recovered) = recovered {
            router.recover(recovered, self.config.session).await;
        }
        let stop = CancellationToken::new();
        let connections = TaskTracker::new();
        let services = TaskTracker::new();
        let tasks = (connections.clone(), services.clone());
        let Config { net, authentication, authentication_limits, .. } = self.config;
        let verifier = Arc::new(Verifier::new(authentication, authentication_limits));
        let guards = (gatekeeper.clone(), verifier.clone());
        let listeners =
            Listeners::start(self.bound, router.clone(), net, guards, tasks, stop.clone());
        let listeners = Arc::new(listeners);
        services.spawn(end_orphans(router.clone(), listeners.clone(), stop.clone()));
        let parts = Parts { listeners, router: router.clone(), gatekeeper, verifier };
        services.spawn(sys::run(router.clone(), self.config.sys_interval, stop.clone()));
        services.spawn(keep_deadlines(router.clone(), stop.clone()));
        services.spawn(drop_expired(router.clone(), stop.clone()));
        services.spawn(relieve_mailboxes(router.clone(), stop.clone()));
        services.spawn(watch_memory(router.clone(), self.memory_in_use, stop.clone()));

        let mut requests = self.requests;
        let (mut shutdown, mut failure) = (pin!(shutdown), pin!(failed(failure)));
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                request = requests.next() => request.answer(&parts).await,
                failure = &mut failure => {
                    // No goodbye: what waits for the log would go out with it.
                    let error = LogFailed(failure);
                    error!(%error, "shutting down");
                    return Err(error);
                }
            }
        }
        drop(requests);
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
        // What is on its way to the shards belongs into the log. They stand still if that has failed.
        let _ = tokio::time::timeout(GOODBYE_MAX, router.settle()).await;
        let _ = tokio::time::timeout(GOODBYE_MAX, router.stop()).await;
        let Some(checkpointer) = checkpointer else { return Ok(()) };
        match tokio::task::spawn_blocking(|| checkpointer.stop()).await {
            Ok(Some(failure)) => Err(LogFailed(failure)),
            // A panic of it has been logged.
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

/// What all clients together may take, from now on.
fn set_limits(router: &Router, gatekeeper: &Gatekeeper, limits: Limits) {
    let Limits { queues, disk_bytes_max, memory_bytes_max, admission } = limits;
    gatekeeper.replace(admission);
    router.queues().replace(queues);
    router.queues().set_memory_bytes_max(memory_bytes_max);
    router.replace_disk_limit(disk_bytes_max);
}

fn open(durability: &Durability, disk_bytes_max: u64) -> Result<Durable, StartError> {
    let (tell, failure) = oneshot::channel();
    // Nobody listens any more when the broker is about to end.
    let on_failure = move |why| drop(tell.send(why));
    let Durability { dir, level, log_segment_bytes, overrides } = durability;
    let default = Settings::default();
    // Files that wait to be used are not counted, so there had better be few.
    let spare_segments_max = if disk_bytes_max > 0 { 1 } else { default.spare_segments_max };
    let log = Settings { segment_bytes: *log_segment_bytes, spare_segments_max, ..default };
    let mut started = store::start::start(dir, *level, log, on_failure)?;
    started.store = started.store.with_overrides(overrides.clone());
    Ok(Durable { started, failure })
}

/// Ready when the log has failed.
async fn failed(failure: Option<oneshot::Receiver<String>>) -> String {
    match failure {
        Some(failure) => match failure.await {
            Ok(why) => why,
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
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

/// Ends sessions whose users nobody knows any more.
async fn end_orphans(router: Router, listeners: Arc<Listeners>, stop: CancellationToken) {
    let mut orphans = Orphans::default();
    loop {
        let users = listeners.all_users();
        let grace = users.as_ref().map_or(ORPHANS_LOOK_MAX, |(_, grace)| *grace);
        tokio::select! {
            () = tokio::time::sleep((grace / 4).min(ORPHANS_LOOK_MAX)) => (),
            () = stop.cancelled() => return,
        }
        // They may have changed meanwhile.
        match listeners.all_users() {
            None => orphans = Orphans::default(),
            Some((methods, grace)) => {
                let may_come = |user: &UserName| methods.iter().any(|it| it.knows(user));
                router.end_orphans(&mut orphans, grace, may_come, Instant::now()).await;
            }
        }
    }
}

/// Makes room in queues whose messages have expired.
async fn drop_expired(router: Router, stop: CancellationToken) {
    tokio::select! {
        () = router.drop_expired() => (),
        () = stop.cancelled() => (),
    }
}

/// Leaves to the log what waits for clients that are away.
async fn relieve_mailboxes(router: Router, stop: CancellationToken) {
    tokio::select! {
        () = router.relieve_mailboxes() => (),
        () = stop.cancelled() => (),
    }
}

/// Says when memory is short.
async fn watch_memory(router: Router, in_use: fn() -> Option<u64>, stop: CancellationToken) {
    tokio::select! {
        () = router.watch_memory(in_use) => (),
        () = stop.cancelled() => (),
    }
}
