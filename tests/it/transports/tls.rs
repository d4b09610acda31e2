//! TLS, with mosquitto's clients and a client of rustls.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use mailboxqtt::codec::{Delivery, Packet, Properties, Publish};
use mailboxqtt::ids::ProtocolVersion::V311;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};

use crate::broker::Broker;
use crate::process::{Process, require, unique};
use crate::transports::authority::{Authority, Files, text};
use crate::transports::{
    ACCEPTED, IMPATIENT, QUICK, await_log, await_refused, dial, next_packet, read_to_end, say_hello,
};
use crate::wire::Client;

pub(super) type TlsClient = StreamOwned<ClientConnection, TcpStream>;

#[test]
fn message_of_mosquitto_goes_over_tls() {
    let authority = Authority::new();
    let broker = start(&authority.server("server").settings());
    for version in ["mqttv31", "mqttv311", "mqttv5"] {
        let topic = unique("tls");
        let mut subscriber = Client::connect(&broker, V311);
        subscriber.subscribe(&topic, 2);
        let args = ["-V", version, "-t", &topic, "-q", "2", "-m", "hello"];
        assert!(publish(&broker, &authority.file(), &args));
        assert_eq!(subscriber.message().text(), "hello");
    }
    broker.stop();
}

#[test]
fn certificate_of_the_client_has_to_be_there_and_good() {
    let (authority, other) = (Authority::new(), Authority::new());
    let settings = format!(
        "{}client_certificates = 'required'\nclient_ca_file = '{}'\nclient_crl_file = '{}'\n",
        authority.server("server").settings(),
        text(&authority.file()),
        text(&authority.revoke(&["revoked"])),
    );
    let broker = start(&settings);
    let args = ["-t", "a", "-m", "b", "-q", "1"];
    let publish = |files: Option<&Files>| match files {
        Some(files) => {
            let args = [&files.arguments()[..], &args].concat();
            publish(&broker, &authority.file(), &args)
        }
        None => publish(&broker, &authority.file(), &args),
    };
    assert!(publish(Some(&authority.client("alice"))));
    for (files, reason) in [
        (None, "tls_no_certificate"),
        (Some(other.client("alice")), "tls_certificate_untrusted"),
        (Some(authority.expired("late")), "tls_certificate_expired"),
        (Some(authority.client("revoked")), "tls_certificate_revoked"),
    ] {
        assert!(!publish(files.as_ref()), "{reason}");
        await_refused(&broker, reason);
    }
    broker.stop();
}

/// Nobody else is let in: a listener with users from certificates has users.
#[test]
fn certificate_names_the_user_where_it_is_optional_and_is_good_if_it_is_there() {
    let (authority, other) = (Authority::new(), Authority::new());
    let settings = format!(
        "{}client_certificates = 'optional'\nclient_ca_file = '{}'\n\
         user_from_certificate = 'common_name'\n",
        authority.server("server").settings(),
        text(&authority.file()),
    );
    let broker = start(&settings);
    let args = ["-t", "a", "-m", "b", "-q", "1"];
    let with = |files: Files| {
        let args = [&files.arguments()[..], &args].concat();
        publish(&broker, &authority.file(), &args)
    };
    assert!(with(authority.client("alice")));
    assert!(!with(other.client("alice")));
    assert!(!publish(&broker, &authority.file(), &args), "it is anonymous");
    let nameless = authority.client("");
    assert!(!with(nameless));
    await_refused(&broker, "tls_certificate_nameless");
    broker.stop();
}

#[test]
fn client_that_does_not_trust_the_certificate_is_counted() {
    let authority = Authority::new();
    let broker = start(&authority.server("server").settings());
    assert!(!publish(&broker, &Authority::new().file(), &["-t", "a", "-m", "b"]));
    await_refused(&broker, "tls_refused_by_client");
    broker.stop();
}

#[test]
fn handshakes_that_nobody_finishes_keep_nobody_waiting() {
    let authority = Authority::new();
    let settings = listener("handshake_s_max = 600\n", &authority.server("server").settings());
    let broker = Broker::start_listening(1, &settings);
    let addr = broker.listener(0);
    // More than there are cores that could wait for them.
    let _half_open: Vec<_> = (0..200)
        .map(|index| {
            let mut stream = dial(addr);
            if index % 2 == 0 {
                let mut silent = client(&authority.file(), "localhost", &[&TLS13]);
                silent.write_tls(&mut stream).unwrap();
            }
            stream
        })
        .collect();
    let mut stream = connect(addr, &authority.file(), "localhost").unwrap();
    assert_eq!(say_hello(&mut stream), ACCEPTED);
    broker.stop();
}

/// rustls cannot even speak TLS 1.1, so its hello is written here.
#[test]
fn old_versions_are_refused() {
    let authority = Authority::new();
    let broker = start(&authority.server("server").settings());
    let suites = [0, 2, 0xC0, 0x13];
    let body = [&[3, 2][..], &[7; 32], &[0], &suites, &[1, 0]].concat();
    let message = [&[1, 0, 0, body.len() as u8], &body[..]].concat();
    let record = [&[22, 3, 1, 0, message.len() as u8], &message[..]].concat();
    let mut stream = dial(broker.listener(0));
    stream.write_all(&record).unwrap();
    let answer = read_to_end(&mut stream);
    // A fatal alert: protocol_version, or handshake_failure.
    assert!(matches!(answer[..], [21, 3, _, 0, 2, 2, 40 | 70]), "{answer:?}");
    await_refused(&broker, "tls_version");
    let accepts = |broker: &Broker, version: &'static SupportedProtocolVersion| {
        let stream = connect_with(broker.listener(0), &authority.file(), "server", &[version]);
        stream.is_ok_and(|mut stream| say_hello(&mut stream) == ACCEPTED)
    };
    assert!(accepts(&broker, &TLS12) && accepts(&broker, &TLS13));
    broker.stop();

    let settings = format!("{}tls_min = '1.3'\n", authority.server("server").settings());
    let broker = start(&settings);
    assert!(!accepts(&broker, &TLS12) && accepts(&broker, &TLS13));
    broker.stop();
}

#[test]
fn certificate_is_the_one_of_the_server_that_the_client_asks_for() {
    let authority = Authority::new();
    let named = |name: &str, file: &str| {
        format!(
            "[[listeners.server_names]]\nname = '{name}'\n{}",
            authority.server(file).settings()
        )
    };
    let settings = format!(
        "{}{}{}",
        authority.server("server").settings(),
        named("A.example", "a.example"),
        named("*.b.example", "x.b.example"),
    );
    let broker = start(&settings);
    let all = ["server", "a.example", "x.b.example", "y.b.example", "b.example"];
    for (asked, shown) in
        all.into_iter().zip(["server", "a.example", "x.b.example", "x.b.example", "server"])
    {
        let mut stream = connect(broker.listener(0), &authority.file(), asked);
        let served = stream
            .as_mut()
            .ok()
            .and_then(|stream| stream.conn.peer_certificates().map(|chain| chain[0].to_vec()));
        let expected = fs::read(authority.server_file(shown)).unwrap();
        let expected = CertificateDer::from_pem_slice(&expected).unwrap();
        match served {
            Some(served) => assert_eq!(served, expected.as_ref(), "{asked}"),
            // It is not for that name, as the client has noticed.
            None => assert!(["y.b.example", "b.example"].contains(&asked), "{asked}"),
        }
    }
    broker.stop();
}

#[test]
fn connection_that_does_not_finish_its_handshake_ends() {
    let authority = Authority::new();
    let settings = listener(IMPATIENT, &authority.server("server").settings());
    let broker = Broker::start_listening(1, &settings);
    let mut silent = dial(broker.listener(0));
    assert_eq!(read_to_end(&mut silent), b"");
    await_refused(&broker, "tls_too_slow");
    // And one that shakes hands and then says nothing.
    let mut stream = connect(broker.listener(0), &authority.file(), "server").unwrap();
    assert_eq!(read_to_end(&mut stream), b"");
    let mut nonsense = dial(broker.listener(0));
    nonsense.write_all(b"\x10\x0C\0\x04MQTT\x04\x02\0\0\0\0").unwrap();
    read_to_end(&mut nonsense);
    await_refused(&broker, "tls_protocol");
    broker.stop();
}

/// More than the buffers of TLS and of the sockets hold, and the reader is late.
#[test]
fn large_message_comes_whole_although_its_reader_is_slow() {
    let authority = Authority::new();
    let broker = start(&authority.server("server").settings());
    let mut reader = connect(broker.listener(0), &authority.file(), "server").unwrap();
    assert_eq!(say_hello(&mut reader), ACCEPTED);
    reader.write_all(b"\x82\x0A\0\x01\0\x05large\0").unwrap();
    assert_eq!(next_packet(&mut reader), [0x90, 3, 0, 1, 0]);

    let mut writer = connect(broker.listener(0), &authority.file(), "server").unwrap();
    assert_eq!(say_hello(&mut writer), ACCEPTED);
    let payload: Vec<u8> = (0..12_000_000_u32).map(|n| (n * 7 / 5) as u8).collect();
    let mut sent = Vec::new();
    let (properties, delivery) = (Properties::EMPTY, Delivery::AtMostOnce);
    let publish =
        Publish { topic: "large", payload: &payload, properties, delivery, retain: false };
    Packet::Publish(publish).encode(V311, &mut sent);
    writer.write_all(&sent).unwrap();
    writer.write_all(&[0xC0, 0]).unwrap();
    assert_eq!(next_packet(&mut writer), [0xD0, 0]);
    assert!(next_packet(&mut reader) == sent);
    // What comes after it is not held up by anything either.
    reader.write_all(&[0xC0, 0]).unwrap();
    assert_eq!(next_packet(&mut reader), [0xD0, 0]);
    broker.stop();
}

#[test]
fn files_that_cannot_be_used_are_refused_at_the_start_by_name_and_reason() {
    let authority = Authority::new();
    let (good, other) = (authority.server("server"), authority.server("other"));
    let with = |certificate: &Path, key: &Path| {
        format!("certificate_file = '{}'\nkey_file = '{}'\n", text(certificate), text(key))
    };
    let missing = authority.file().with_file_name("missing.pem");
    let expired = authority.expired("old");
    for (settings, file, reason) in [
        (with(&missing, &good.key), &missing, "No such file"),
        (with(&good.certificate, &missing), &missing, "No such file"),
        (expired.settings(), &expired.certificate, "Jan  1 00:00:00 2001"),
        (with(&good.certificate, &other.key), &other.key, "does not hold the key"),
        (with(&good.key, &good.key), &good.key, "no certificate"),
        (with(&good.certificate, &good.certificate), &good.certificate, "no private key"),
        (
            format!(
                "{}client_certificates = 'required'\nclient_ca_file = '{}'\nclient_crl_file = '{}'\n",
                good.settings(),
                text(&authority.file()),
                text(&good.certificate)
            ),
            &good.certificate,
            "list of revocations",
        ),
    ] {
        let (succeeded, stderr) = check(&settings);
        assert!(!succeeded, "{reason}");
        assert!(stderr.contains(text(file)) && stderr.contains(reason), "{reason}: {stderr}");
    }

    assert_eq!(check(&good.settings()), (true, String::new()));
}

#[test]
fn certificate_that_expires_soon_is_warned_about_by_a_check_and_at_the_start() {
    let authority = Authority::new();
    let files = authority.expiring_in("soon", 7 * 24 * 60 * 60);
    let (succeeded, stderr) = check(&files.settings());
    assert!(succeeded && stderr.contains("WARN"), "{stderr}");
    for part in [text(&files.certificate), "expires soon", "renew it"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    let broker = start(&files.settings());
    await_log(&broker, "expires soon");
    broker.stop();
}

#[test]
fn key_that_everybody_can_read_is_warned_about() {
    let authority = Authority::new();
    let files = authority.server("server");
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    let broker = start(&files.settings());
    await_log(&broker, "can read the private key");
    broker.stop();
}

fn listener(top: &str, settings: &str) -> String {
    format!("{top}[[listeners]]\nlisten = '127.0.0.1:0'\n{settings}")
}

fn start(settings: &str) -> Broker {
    Broker::start_listening(1, &listener(QUICK, settings))
}

/// Whether the broker could serve with these settings, and what it says.
fn check(settings: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    fs::write(&path, format!("durability = 'none'\n{}", listener(QUICK, settings))).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.args(["--check", "--config", text(&path)]).stdin(Stdio::null());
    let (status, _, stderr) = Process::spawn(&mut command).finish_with_stderr();
    (status.success(), stderr)
}

/// Whether mosquitto_pub could.
fn publish(broker: &Broker, authority: &Path, args: &[&str]) -> bool {
    require("mosquitto_pub");
    let port = broker.listener(0).port().to_string();
    let mut command = Command::new("mosquitto_pub");
    command.args(["-h", "127.0.0.1", "-p", &port, "--cafile", text(authority)]).args(args);
    Process::spawn(command.stdin(Stdio::null())).finish().0.success()
}

/// A client that trusts `authority` and asks for the server `name`; the handshake is complete.
fn connect(addr: SocketAddr, authority: &Path, name: &'static str) -> io::Result<TlsClient> {
    connect_with(addr, authority, name, &[&TLS12, &TLS13])
}

fn connect_with(
    addr: SocketAddr,
    authority: &Path,
    name: &'static str,
    versions: &[&'static SupportedProtocolVersion],
) -> io::Result<TlsClient> {
    shake_hands(addr, Arc::new(trusting(authority, versions).with_no_client_auth()), name)
}

/// What a client with the certificate of `files` connects with, again and again.
pub(super) fn identity(authority: &Path, files: &Files) -> Arc<ClientConfig> {
    let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let config = trusting(authority, &[&TLS12, &TLS13]).with_client_auth_cert(chain, key);
    Arc::new(config.unwrap())
}

/// A client that has said nothing yet.
fn client(
    authority: &Path,
    name: &'static str,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConnection {
    let config = Arc::new(trusting(authority, versions).with_no_client_auth());
    ClientConnection::new(config, name.try_into().unwrap()).unwrap()
}

fn trusting(
    authority: &Path,
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
}

/// A connection whose handshake is complete, as far as the client can know.
pub(super) fn shake_hands(
    addr: SocketAddr,
    config: Arc<ClientConfig>,
    name: &'static str,
) -> io::Result<TlsClient> {
    let connection = ClientConnection::new(config, name.try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, dial(addr));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}
