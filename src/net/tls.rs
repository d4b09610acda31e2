//! TLS of a listener: the handshake, and who the client is by its certificate. Floor 5, used by
//! `net::transport`; `load` reads the files.
//!
//! # Invariants
//!
//! - Where clients have certificates no session is resumed: every connection is checked against the authority
//!   and the revocations that are in force when it begins, and again whenever there are others.
//! - There is no early data, which could be replayed, and no compression.
//! - The costly part of a handshake, key exchange and signature, is done between the ClientHello and the answer to
//!   it, for one client after the other (`Turns`). So when all clients come at once there are a few of them to be
//!   answered among all that there is to do, and not thousands: those who have their answer finish, and those who are
//!   connected are served meanwhile. Nobody can hold a turn, for it waits for nothing that a client does.

mod certificate;
mod load;

use std::future::poll_fn;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::Poll;

use rustls::pki_types::UnixTime;
use rustls::server::Acceptor;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::metrics::RefuseReason;
use crate::session::authentication::{AuthenticationError, UserName};

use certificate::Shown;

pub(super) use certificate::Certificate;
pub use load::{
    CertificateFiles, ClientCertificates, InvalidTls, NamedCertificate, TlsFiles, TlsMin,
};

/// An encrypted connection.
pub(super) type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Longest user name from a certificate, in bytes.
const USER_BYTES_MAX: usize = 256;

/// Whom a client's certificate names.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UserFromCertificate {
    /// Nobody: it only says that the client may connect.
    #[default]
    None,
    /// The first common name of its subject.
    CommonName,
    /// The first DNS name, e-mail address or URI among its alternative names.
    SubjectAltName,
}

/// What a listener's certificates, keys and authorities were when its files were read.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// Of clients' certificates, where they are asked for one.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    user_from: UserFromCertificate,
}

/// Why there is no encrypted connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// The connection ended, or failed.
    #[error("connection lost in the TLS handshake: {0}")]
    Lost(io::Error),
    /// By the rules of TLS, or by the certificate.
    #[error("TLS handshake failed: {0}")]
    Failed(rustls::Error),
    /// There has to be a user, and the certificate names none.
    #[error("the client's certificate does not name a user (user_from_certificate)")]
    Nameless,
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Self::Failed(inner.clone()),
            None => Self::Lost(error),
        }
    }
}

impl TlsError {
    pub(super) fn reason(&self) -> RefuseReason {
        let error = match self {
            Self::Lost(_) => return RefuseReason::TlsLost,
            Self::Nameless => return RefuseReason::TlsCertificateNameless,
            Self::Failed(error) => error,
        };
        match error {
            rustls::Error::NoCertificatesPresented => RefuseReason::TlsNoCertificate,
            rustls::Error::InvalidCertificate(error) => match error {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => {
                    RefuseReason::TlsCertificateExpired
                }
                CertificateError::Revoked => RefuseReason::TlsCertificateRevoked,
                _ => RefuseReason::TlsCertificateUntrusted,
            },
            rustls::Error::PeerIncompatible(_) => RefuseReason::TlsVersion,
            rustls::Error::AlertReceived(_) => RefuseReason::TlsRefusedByClient,
            _ => RefuseReason::TlsProtocol,
        }
    }
}

/// Whose handshake is worked on: one client for each core, the others in the order in which they came.
#[derive(Debug)]
pub(super) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self(Semaphore::new(cores))
    }
}

/// The right to be answered.
pub(super) struct Turn<'a> {
    _permit: Option<SemaphorePermit<'a>>,
}

impl Turns {
    /// The next.
    pub(super) async fn next(&self) -> Turn<'_> {
        // It is never closed.
        Turn { _permit: self.0.acquire().await.ok() }
    }
}

/// A client that has said what it wants, and has no answer yet.
pub(super) struct Greeted(StartHandshake<TcpStream>);

/// Reads the ClientHello, which costs little.
pub(super) async fn read_hello(stream: TcpStream) -> Result<Greeted, TlsError> {
    Ok(Greeted(LazyConfigAcceptor::new(Acceptor::default(), stream).await?))
}

impl Tls {
    /// Shakes hands, `turn` being that of this client. With the stream comes what certificate the client has shown.
    pub(super) async fn answer(
        self,
        greeted: Greeted,
        turn: Turn<'_>,
    ) -> Result<(TlsStream, Certificate), TlsError> {
        let Greeted(handshake) = greeted;
        check_present(&handshake.io).await?;
        let finishing = handshake.into_stream(self.config);
        drop(turn);
        let stream = finishing.await?;
        let (_, connection) = stream.get_ref();
        let Some(chain @ [own, ..]) = connection.peer_certificates() else {
            return Ok((stream, Certificate::default()));
        };
        let user = match self.user_from {
            UserFromCertificate::None => None,
            from => Some(user(from, own).ok_or(TlsError::Nameless)?),
        };
        let certificate = Certificate::new(chain, user);
        Ok((stream, certificate))
    }

    /// Whether a client that has `shown` its certificate earlier may stay: that has to be good by the authorities and
    /// revocations of now, and to name the same user.
    fn check(&self, shown: &Shown) -> Result<(), AuthenticationError> {
        let Some((own, others)) = shown.chain.split_first() else { return Ok(()) };
        if let Some(verifier) = &self.verifier
            && let Err(error) = verifier.verify_client_cert(own, others, UnixTime::now())
        {
            let why = match TlsError::Failed(error).reason() {
                RefuseReason::TlsCertificateRevoked => "it is revoked",
                RefuseReason::TlsCertificateExpired => "it has expired",
                _ => "its authority is not trusted",
            };
            return Err(AuthenticationError::Certificate(why));
        }
        match &shown.user {
            Some(named) if user(self.user_from, own).as_ref() != Some(named) => {
                Err(AuthenticationError::UserGone)
            }
            _ => Ok(()),
        }
    }
}

/// Whoever has given up while he waited costs nothing more. Does not wait.
async fn check_present(stream: &TcpStream) -> io::Result<()> {
    let mut byte = [0];
    let seen = poll_fn(|cx| Poll::Ready(stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)))).await;
    match seen {
        Poll::Ready(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
        Poll::Ready(Err(error)) => Err(error),
        Poll::Ready(Ok(_)) | Poll::Pending => Ok(()),
    }
}

/// `None` where there is no such name, or one that cannot be anybody's.
fn user(from: UserFromCertificate, certificate: &[u8]) -> Option<UserName> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = match from {
        UserFromCertificate::None => return None,
        UserFromCertificate::CommonName => {
            certificate.subject().iter_common_name().next()?.as_str().ok()?
        }
        UserFromCertificate::SubjectAltName => {
            let names = certificate.subject_alternative_name().ok()??;
            names.value.general_names.iter().find_map(|name| match name {
                GeneralName::DNSName(name)
                | GeneralName::RFC822Name(name)
                | GeneralName::URI(name) => Some(*name),
                _ => None,
            })?
        }
    };
    let is_name =
        !name.is_empty() && name.len() <= USER_BYTES_MAX && !name.contains(char::is_control);
    is_name.then(|| UserName::new(name))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn user_is_the_name_that_was_asked_for() {
        let name = |from, common_name: &str, alternatives: Vec<SanType>| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, common_name);
            params.subject_alt_names = alternatives;
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            user(from, certificate.der()).map(|user| user.as_str().to_owned())
        };
        let mail = || SanType::Rfc822Name("a@b.example".try_into().unwrap());
        let dns = || SanType::DnsName("sensor.example".try_into().unwrap());
        let (common, alternative) =
            (UserFromCertificate::CommonName, UserFromCertificate::SubjectAltName);
        assert_eq!(name(common, "Jörg", vec![mail()]).as_deref(), Some("Jörg"));
        assert_eq!(name(alternative, "x", vec![mail(), dns()]).as_deref(), Some("a@b.example"));
        assert_eq!(name(alternative, "x", vec![dns()]).as_deref(), Some("sensor.example"));
        assert_eq!(name(alternative, "x", Vec::new()), None);
        assert_eq!(name(UserFromCertificate::None, "x", Vec::new()), None);
        for nobody in ["", "a\nb", "a\0b", &"x".repeat(257)] {
            assert_eq!(name(common, nobody, Vec::new()), None, "{nobody:?}");
        }
    }
}
