//! Certificates that are renewed while the broker serves: a SIGHUP, and the files are read again.

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mailboxqtt::ids::ProtocolVersion::{self, V5, V311};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{AlertDescription, ClientConfig, HandshakeKind};
use tempfile::TempDir;

use crate::process::unique;
use crate::service::Service;
use crate::transports::authority::{Authority, Files, text};
use crate::transports::tls::{TlsClient, identity, shake_hands};
use crate::transports::{next_packet, read_to_end};
use crate::wire::Hello;

#[test]
fn certificate_of_the_server_and_authority_and_revocations_of_clients_are_read_again() {
    let (old, new) = (Authority::new(), Authority::new());
    let (alice, bob) = (old.client("alice"), old.client("bob"));
    let files = Renewed::new();
    files.serve(&old.server("server"), &old.file(), &old.revoke(&[]));
    let (service, addr) = files.start();
    let (alice, bob) = (identity(&old.file(), &alice), identity(&old.file(), &bob));
    let mut connected = connect(addr, &alice).unwrap();
    assert_shown(&connected, &old.server_file("server"));
    let again = connect(addr, &bob).unwrap();
    assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Full), "it is shown each time");

    // Bob's certificate is revoked.
    files.put("crl.pem", &old.revoke(&["bob"]));
    service.reload(&files.settings());
    assert_eq!(alert(connect(addr, &bob)), AlertDescription::CertificateRevoked);
    goes_on(&mut connected);
    assert_shown(&connect(addr, &alice).unwrap(), &old.server_file("server"));

    // Everything is another authority's.
    files.serve(&new.server("server"), &new.file(), &new.revoke(&["bob"]));
    service.reload(&files.settings());
    assert!(connect(addr, &alice).is_err(), "she does not know the server any more");
    // Both authorities have the same name, so it is the signature that is wrong.
    let stranger = identity(&new.file(), &old.client("alice"));
    assert_eq!(alert(connect(addr, &stranger)), AlertDescription::DecryptError);
    let [alice, bob] =
        [new.client("alice"), new.client("bob")].map(|it| identity(&new.file(), &it));
    assert_shown(&connect(addr, &alice).unwrap(), &new.server_file("server"));
    assert_eq!(alert(connect(addr, &bob)), AlertDescription::CertificateRevoked);
    service.stop();
}

#[test]
fn client_whose_certificate_is_not_good_any_more_is_disconnected_by_a_reload() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = Renewed::new();
    files.serve(&old.server("server"), &old.file(), &old.revoke(&[]));
    let (service, addr) = files.start();
    let client = |authority: &Authority, name: &str| {
        connect_as(V5, addr, &identity(&authority.file(), &authority.client(name))).unwrap()
    };
    let (mut alice, mut bob) = (client(&old, "alice"), client(&old, "bob"));

    files.put("crl.pem", &old.revoke(&["bob"]));
    service.reload(&files.settings());
    assert_dismissed(&mut bob);
    goes_on(&mut alice);
    service.wait_for_log("not good any more, it is revoked");

    files.serve(&new.server("server"), &new.file(), &new.revoke(&[]));
    service.reload(&files.settings());
    assert_dismissed(&mut alice);
    service.wait_for_log("not good any more, its authority is not trusted");

    // The same certificate names nobody any more.
    let naming = |user_from| format!("{}user_from_certificate = '{user_from}'\n", files.settings());
    service.reload(&naming("common_name"));
    let mut carl = client(&new, "carl");
    service.reload(&naming("common_name"));
    goes_on(&mut carl);
    service.reload(&naming("subject_alt_name"));
    assert_dismissed(&mut carl);
    service.stop();
}

#[test]
fn connection_ends_with_the_certificate_of_its_client() {
    let authority = Authority::new();
    let files = Renewed::new();
    files.serve(&authority.server("server"), &authority.file(), &authority.revoke(&[]));
    let (service, addr) = files.start();
    let late = identity(&authority.file(), &authority.expiring_in("late", 4));
    let mut client = connect_as(V5, addr, &late).unwrap();
    goes_on(&mut client);
    assert_dismissed(&mut client);
    service.wait_for_log("not good any more, it has expired");
    assert_eq!(alert(connect(addr, &late)), AlertDescription::CertificateExpired);
    service.stop();
}

#[test]
fn file_that_cannot_be_used_leaves_all_certificates_as_they_were() {
    let (old, new) = (Authority::new(), Authority::new());
    let alice = identity(&old.file(), &old.client("alice"));
    let files = Renewed::new();
    files.serve(&old.server("server"), &old.file(), &old.revoke(&[]));
    let (service, addr) = files.start();
    let mut connected = connect(addr, &alice).unwrap();
    for broken in ["server.pem", "server.key", "ca.pem", "crl.pem"] {
        // All the others are good, and not to be used.
        files.serve(&new.server("server"), &new.file(), &new.revoke(&["alice"]));
        fs::write(files.path(broken), "-----BEGIN NOTHING-----").unwrap();
        service.reload(&files.settings());
        let line = service.wait_for_log(&format!("{broken}: "));
        assert!(line.contains("the settings are not changed"), "{line}");
        assert_shown(&connect(addr, &alice).unwrap(), &old.server_file("server"));
        goes_on(&mut connected);
    }
    service.stop();
}

/// The files of a listener, whose names stay the same.
struct Renewed(TempDir);

impl Renewed {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, from: &Path) {
        fs::copy(from, self.path(name)).unwrap();
    }

    fn serve(&self, server: &Files, client_ca: &Path, revoked: &Path) {
        self.put("server.pem", &server.certificate);
        self.put("server.key", &server.key);
        self.put("ca.pem", client_ca);
        self.put("crl.pem", revoked);
    }

    fn settings(&self) -> String {
        let path = |name| text(&self.path(name)).to_owned();
        format!(
            "[[listeners]]\nlisten = '127.0.0.2:0'\ncertificate_file = '{}'\nkey_file = '{}'\n\
             client_certificates = 'required'\nclient_ca_file = '{}'\nclient_crl_file = '{}'\n",
            path("server.pem"),
            path("server.key"),
            path("ca.pem"),
            path("crl.pem"),
        )
    }

    /// A broker, and where it speaks TLS.
    fn start(&self) -> (Service, SocketAddr) {
        let mut service = Service::start(&self.settings());
        let addr = service.next_listener("TLS");
        (service, addr)
    }
}

/// A client that has its CONNACK: only then it knows that its certificate was good.
fn connect(addr: SocketAddr, identity: &Arc<ClientConfig>) -> io::Result<TlsClient> {
    connect_as(V311, addr, identity)
}

fn connect_as(
    version: ProtocolVersion,
    addr: SocketAddr,
    identity: &Arc<ClientConfig>,
) -> io::Result<TlsClient> {
    let mut stream = shake_hands(addr, identity.clone(), "server")?;
    stream.write_all(&Hello::new(version, &unique("tls")).bytes())?;
    let mut first = [0; 2];
    stream.read_exact(&mut first)?;
    let mut rest = vec![0; first[1].into()];
    stream.read_exact(&mut rest)?;
    assert_eq!((first[0], &rest[..2]), (0x20, &[0, 0][..]));
    Ok(stream)
}

/// It was told "Not authorized", and that was all.
fn assert_dismissed(client: &mut TlsClient) {
    let disconnect = next_packet(client);
    assert_eq!((disconnect[0], disconnect[2]), (0xE0, 0x87));
    assert_eq!(read_to_end(client), b"");
}

/// Why the broker has ended the connection.
fn alert(refused: io::Result<TlsClient>) -> AlertDescription {
    let error = refused.map(drop).unwrap_err();
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("{error}"),
    }
}

fn assert_shown(client: &TlsClient, certificate: &Path) {
    let expected = CertificateDer::from_pem_file(certificate).unwrap();
    assert_eq!(client.conn.peer_certificates().unwrap()[0], expected);
}

fn goes_on(client: &mut TlsClient) {
    client.write_all(&[0xC0, 0]).unwrap();
    assert_eq!(next_packet(client), [0xD0, 0]);
}
