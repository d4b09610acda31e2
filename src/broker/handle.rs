//! What a broker that serves can be asked for. Floor 6, used by `main`.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::auth::Verifier;
use crate::broker::set_limits;
use crate::config::Config;
use crate::net::accept::{BindError, Listeners};
use crate::net::admission::Gatekeeper;
use crate::router::Router;
use crate::router::mailbox::Mail;

/// The way to a [`Broker`](crate::broker::Broker) that runs.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Request>);

/// Requests, for the broker.
#[derive(Debug)]
pub(super) struct Requests(mpsc::Receiver<Request>);

#[derive(Debug)]
pub(super) enum Request {
    /// Say when clients are served.
    Serving(oneshot::Sender<()>),
    /// Go on with these settings.
    Replace(Box<Config>, oneshot::Sender<Result<(), BindError>>),
}

/// Why the settings are as they were.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// A new listener cannot have its address.
    #[error(transparent)]
    Listener(#[from] BindError),
    /// It stops.
    #[error("the broker is about to end")]
    Ending,
}

impl Handle {
    pub(super) fn new() -> (Self, Requests) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), Requests(receiver))
    }

    /// Waits until clients are served; `false` if that will never be.
    pub async fn serving(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.0.send(Request::Serving(answer)).await.is_ok() && answered.await.is_ok()
    }

    /// Goes on with the settings of `config` that can change at run time: listeners with their certificates, who
    /// may connect, what they may do, and the limits of connections and sessions, which are for those that come
    /// later. A client is disconnected only if its user is no more, or it has none and has to. An error changes nothing.
    pub async fn replace(&self, config: Config) -> Result<(), ReplaceError> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Replace(Box::new(config), answer);
        self.0.send(request).await.map_err(|_| ReplaceError::Ending)?;
        Ok(answered.await.map_err(|_| ReplaceError::Ending)??)
    }
}

impl Requests {
    /// The next one; never ready when nobody can ask any more.
    pub(super) async fn next(&mut self) -> Request {
        match self.0.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
        }
    }
}

impl Request {
    /// Does it, on a broker that serves.
    pub(super) async fn answer(self, parts: &Parts) {
        // Whoever asked may have gone away.
        match self {
            Self::Serving(answer) => drop(answer.send(())),
            Self::Replace(config, answer) => {
                drop(answer.send(parts.replace(*config).await));
            }
        }
    }
}

/// What can go on with other settings.
pub(super) struct Parts {
    pub(super) listeners: Arc<Listeners>,
    pub(super) router: Router,
    pub(super) gatekeeper: Arc<Gatekeeper>,
    pub(super) verifier: Arc<Verifier>,
}

impl Parts {
    /// All that can fail comes first.
    async fn replace(&self, config: Config) -> Result<(), BindError> {
        let prepared = self.listeners.prepare(config.listeners)?;
        self.router.replace_rules(config.rules).await;
        set_limits(&self.router, &self.gatekeeper, config.limits);
        let common = config.authentication;
        self.verifier.replace(common.clone(), config.authentication_limits);
        self.listeners.renew(config.net);
        self.listeners.replace(prepared);
        // Whoever connects from here on is known by the new ones.
        self.router.registry().tell_owners(|| Mail::UsersChanged(common.clone()));
        Ok(())
    }
}
