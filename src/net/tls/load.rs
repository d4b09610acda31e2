//! The files of TLS: read and checked as a whole, at the start and whenever they may have changed. Floor 5,
//! called by `config`.
//!
//! An error names the file and what is wrong with it. Nothing is in force before everything has been read.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tracing::warn;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::net::tls::{Tls, UserFromCertificate};

/// A certificate of the server that is valid for less than this many days is warned about.
const RENEWAL_DAYS: i64 = 14;
/// Others may read the file.
const OTHERS_READ: u32 = 0o004;

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificates {
    /// They are not asked for one.
    #[default]
    None,
    /// They may; a wrong one is refused.
    Optional,
    /// They have to.
    Required,
}

/// The oldest version of TLS.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum TlsMin {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V13,
}

/// A certificate and its key.
#[derive(Clone, Debug, Default)]
pub struct CertificateFiles {
    /// The certificate and those that it depends on, in PEM.
    pub certificate_file: PathBuf,
    /// Its key, in PEM, without a passphrase.
    pub key_file: PathBuf,
}

/// A certificate for clients that ask for this server.
#[derive(Clone, Debug)]
pub struct NamedCertificate {
    /// As in the client's SNI; `*.` at its start stands for one label.
    pub name: String,
    /// What they get.
    pub files: CertificateFiles,
}

/// Where everything is.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// For clients that ask for no server, or for another one than the named.
    pub own: CertificateFiles,
    /// For the others.
    pub named: Vec<NamedCertificate>,
    /// Whether clients show certificates.
    pub client_certificates: ClientCertificates,
    /// Authorities of the clients' certificates, in PEM.
    pub client_ca_file: PathBuf,
    /// What those have revoked, in PEM; empty path: nothing. Each authority in the chain of a client's
    /// certificate but the last needs a list here, or the certificate is refused.
    pub client_crl_file: PathBuf,
    /// Whom a client's certificate names.
    pub user_from: UserFromCertificate,
    /// The oldest version of TLS.
    pub tls_min: TlsMin,
}

/// Why TLS is impossible with these files.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTls {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// From the system.
        error: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {what}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Certificate and key do not belong together.
    #[error("{} does not hold the key of the certificate in {}", key.display(), certificate.display())]
    OtherKey {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// Two certificates for one name.
    #[error("the server name `{0}` has two certificates")]
    SameName(String),
    /// Anything else.
    #[error("TLS: {0}")]
    Other(#[from] rustls::Error),
}

/// The certificates of a listener by the names that clients ask for.
#[derive(Debug)]
struct Certificates {
    own: Arc<CertifiedKey>,
    /// In lower case.
    named: HashMap<String, Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().and_then(|name| self.find(&name.to_ascii_lowercase()));
        Some(named.unwrap_or(&self.own).clone())
    }
}

impl Certificates {
    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        self.named.get(name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.named.get(&format!("*.{parent}"))
        })
    }
}

impl Tls {
    /// Reads and checks all files.
    pub fn load(files: &TlsFiles) -> Result<Self, InvalidTls> {
        let provider = Arc::new(default_provider());
        let own = Arc::new(load_certificate(&files.own, &provider)?);
        let mut named = HashMap::new();
        for NamedCertificate { name, files } in &files.named {
            let certificate = Arc::new(load_certificate(files, &provider)?);
            if named.insert(name.to_ascii_lowercase(), certificate).is_some() {
                return Err(InvalidTls::SameName(name.clone()));
            }
        }
        let versions: &[_] = match files.tls_min {
            TlsMin::V12 => &[&TLS12, &TLS13],
            TlsMin::V13 => &[&TLS13],
        };
        let verifier = match files.client_certificates {
            ClientCertificates::None => None,
            wanted => {
                let roots = Arc::new(load_authorities(&files.client_ca_file)?);
                let mut builder =
                    WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
                if !files.client_crl_file.as_os_str().is_empty() {
                    builder = builder.with_crls(load_revocations(&files.client_crl_file)?);
                }
                if wanted == ClientCertificates::Optional {
                    builder = builder.allow_unauthenticated();
                }
                let verifier = builder.build().map_err(|error| {
                    content(&files.client_crl_file, format!("cannot be used: {error}"))
                })?;
                Some(verifier)
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(
                verifier.clone().unwrap_or_else(WebPkiClientVerifier::no_client_auth),
            )
            .with_cert_resolver(Arc::new(Certificates { own, named }));
        match files.client_certificates {
            // Clients that come back are spared the costly half of the handshake, and the broker remembers
            // nothing for it.
            ClientCertificates::None => config.ticketer = Ticketer::new()?,
            _ => {
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
            }
        }
        Ok(Self { config: Arc::new(config), verifier, user_from: files.user_from })
    }
}

fn load_certificate(
    files: &CertificateFiles,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, InvalidTls> {
    let CertificateFiles { certificate_file, key_file } = files;
    let chain = load_chain(certificate_file)?;
    for certificate in &chain {
        check_time(certificate_file, certificate)?;
    }
    let text = read(key_file)?;
    warn_if_everybody_may_read(key_file);
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let is_encrypted = String::from_utf8_lossy(&text).contains("ENCRYPTED");
        let what = match is_encrypted {
            true => "the key has a passphrase: remove it with `openssl pkey -in FILE -out NEW`",
            false => "there is no private key in it (PEM: BEGIN PRIVATE KEY)",
        };
        content(key_file, what)
    })?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            InvalidTls::OtherKey { key: key_file.clone(), certificate: certificate_file.clone() }
        }
        error => content(key_file, format!("cannot be used: {error}")),
    })
}

/// At least one certificate.
fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, InvalidTls> {
    let text = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| content(path, format!("is not PEM: {error}")))?;
    match chain.is_empty() {
        true => Err(content(path, "there is no certificate in it (PEM: BEGIN CERTIFICATE)")),
        false => Ok(chain),
    }
}

fn check_time(path: &Path, certificate: &[u8]) -> Result<(), InvalidTls> {
    let validity = validity(path, certificate)?;
    if validity.is_valid() {
        let to = validity.not_after;
        if to.timestamp() - now_s() < RENEWAL_DAYS * 24 * 60 * 60 {
            warn!(file = %path.display(), "the certificate expires soon, at {to}: renew it");
        }
        return Ok(());
    }
    let (from, to) = (validity.not_before, validity.not_after);
    Err(content(path, format!("the certificate is valid from {from} to {to} only, and not now")))
}

fn validity(
    path: &Path,
    certificate: &[u8],
) -> Result<x509_parser::certificate::Validity, InvalidTls> {
    let parsed = X509Certificate::from_der(certificate);
    let (_, parsed) =
        parsed.map_err(|error| content(path, format!("is not a certificate: {error}")))?;
    Ok(parsed.validity().clone())
}

fn load_authorities(path: &Path) -> Result<RootCertStore, InvalidTls> {
    let mut roots = RootCertStore::empty();
    for certificate in load_chain(path)? {
        if !validity(path, &certificate)?.is_valid() {
            warn!(file = %path.display(), "an authority in it is not valid now, nor are its certificates");
        }
        let added = roots.add(certificate);
        added.map_err(|error| content(path, format!("has no usable authority: {error}")))?;
    }
    Ok(roots)
}

fn load_revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, InvalidTls> {
    let text = read(path)?;
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
    let lists = lists.map_err(|error| content(path, format!("is not PEM: {error}")))?;
    if lists.is_empty() {
        return Err(content(path, "there is no list of revocations in it (PEM: BEGIN X509 CRL)"));
    }
    for list in &lists {
        let parsed = CertificateRevocationList::from_der(list);
        let (_, parsed) =
            parsed.map_err(|error| content(path, format!("is not a CRL: {error}")))?;
        if parsed.next_update().is_some_and(|next| next.timestamp() < now_s()) {
            // Nobody can get better from refusing everybody; what is in the list stays revoked.
            warn!(file = %path.display(), "there should be a newer list of revocations by now");
        }
    }
    Ok(lists)
}

fn now_s() -> i64 {
    x509_parser::time::ASN1Time::now().timestamp()
}

fn read(path: &Path) -> Result<Vec<u8>, InvalidTls> {
    fs::read(path).map_err(|error| InvalidTls::Unreadable { path: path.into(), error })
}

fn warn_if_everybody_may_read(path: &Path) {
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & OTHERS_READ != 0 {
        warn!(file = %path.display(), "every user of this machine can read the private key: `chmod o-r` it");
    }
}

fn content(path: &Path, what: impl Into<String>) -> InvalidTls {
    InvalidTls::Content { path: path.into(), what: what.into() }
}
