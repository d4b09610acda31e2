//! The certificate that a client has shown: checked again while it is connected. Floor 5, made by `net::tls`, kept by
//! `net::connection`.
//!
//! A client that has shown none costs eight bytes here.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::net::peer::Entrance;
use crate::session::CloseReason;
use crate::session::authentication::{AuthenticationError, UserName};

/// See the module comment.
#[derive(Clone, Debug, Default)]
pub(in crate::net) struct Certificate(Option<Arc<Shown>>);

/// What was found good in the handshake.
#[derive(Debug)]
pub(super) struct Shown {
    /// The client's own first, then those of authorities.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Whom it names, where the listener has users from certificates.
    pub(super) user: Option<UserName>,
    /// When it expires, and the connection with it.
    ends_at: Option<Instant>,
}

impl Certificate {
    /// `chain` was found good just now.
    pub(super) fn new(chain: &[CertificateDer<'_>], user: Option<UserName>) -> Self {
        let ends_at = chain.first().and_then(|own| ends_at(own));
        let chain = chain.iter().map(|it| it.clone().into_owned()).collect();
        Self(Some(Arc::new(Shown { chain, user, ends_at })))
    }

    /// Whom it has proved the client to be.
    pub(in crate::net) fn user(&self) -> Option<&UserName> {
        self.0.as_ref()?.user.as_ref()
    }

    /// When to call [`Certificate::handle_timeout`].
    pub(in crate::net) fn poll_timeout(&self) -> Option<Instant> {
        self.0.as_ref()?.ends_at
    }

    /// Why the client may not stay any longer.
    pub(in crate::net) fn handle_timeout(&self, now: Instant) -> Option<CloseReason> {
        let is_over = self.poll_timeout().is_some_and(|at| at <= now);
        is_over.then(|| AuthenticationError::Certificate("it has expired").into())
    }

    /// Why the client may not stay with the settings that its listener has now.
    pub(in crate::net) fn check(&self, entrance: Option<&Entrance>) -> Option<CloseReason> {
        let (shown, entrance) = (self.0.as_ref()?, entrance?);
        let checked = match &entrance.load().tls {
            Some(tls) => tls.check(shown),
            None if shown.user.is_some() => Err(AuthenticationError::UserGone),
            None => Ok(()),
        };
        checked.err().map(CloseReason::from)
    }
}

/// The end of the last second in which it is good.
fn ends_at(certificate: &[u8]) -> Option<Instant> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let not_after = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let left = Duration::from_secs(not_after + 1).saturating_sub(since_epoch);
    Instant::now().checked_add(left)
}
