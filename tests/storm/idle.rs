//! What a connection costs that does nothing, with its session, over each transport.
//!
//! Half of `IDLE_CONNECTIONS` connect first, so that what the broker needs once is there; then the other half, and
//! what its resident memory has grown by is divided by their number. Each has a clean session without
//! subscriptions, has sent its CONNECT and got its CONNACK. `just idle N` prints it of the broker as it is released.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mailboxqtt::ids::ProtocolVersion::V5;
use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::number;
use crate::process::{PATIENCE, Process};
use crate::wire::Hello;

const CONNECTIONS: u64 = 200;
/// For tasks to end that have opened a connection.
const REST: Duration = Duration::from_millis(500);
const NAMES: [&str; 4] = ["TCP", "TLS", "WebSocket", "WebSocket over TLS"];

/// Both ways to the broker.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

#[test]
fn idle_connections_are_served_over_every_transport_and_their_cost_is_printed() {
    rlimit::increase_nofile_limit(rlimit::INFINITY).unwrap();
    let count = number("IDLE_CONNECTIONS").unwrap_or(CONNECTIONS);
    for (index, name) in NAMES.iter().enumerate() {
        let (broker, addr, tls) = start(index);
        let first: Vec<_> =
            (0..count / 2).map(|id| connect(addr, tls.as_ref(), index, id)).collect();
        thread::sleep(REST);
        let before = resident_bytes(&broker);
        let second: Vec<_> =
            (count / 2..count).map(|id| connect(addr, tls.as_ref(), index, id)).collect();
        thread::sleep(REST);
        let grown = resident_bytes(&broker).saturating_sub(before);
        let each = grown as f64 / 1024.0 / second.len() as f64;
        println!("{name:<20} {each:6.1} KiB for each of {} connections", second.len());
        drop((first, second));
        stop(broker);
    }
}

/// A broker whose only listener speaks the transport with this index, and what its clients need for TLS.
fn start(index: usize) -> (Process, SocketAddr, Option<Arc<ClientConfig>>) {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (pem, key) =
        (file("server.pem", certificate.pem()), file("server.key", key.serialize_pem()));
    let is_tls = index % 2 == 1;
    let mut listener = "[[listeners]]\nlisten = '127.0.0.1:0'\n".to_owned();
    if is_tls {
        listener += &format!("certificate_file = '{pem}'\nkey_file = '{key}'\n");
    }
    if index >= 2 {
        listener += "protocol = 'websocket'\n";
    }
    let settings = file("settings.toml", format!("durability = 'none'\n{listener}"));
    let built_here = || env!("CARGO_BIN_EXE_mailboxqtt").into();
    let binary = std::env::var_os("MAILBOXQTT_TEST_BINARY").unwrap_or_else(built_here);
    let mut command = Command::new(binary);
    command.args(["--listen", "127.0.0.1:0", "--config", &settings, "--data-dir"]);
    command.arg(folder.path().join("data")).stdin(Stdio::null());
    let mut process = Process::spawn(&mut command);
    let [_, addr] = [(); 2].map(|()| {
        process.wait_for("it served", |line| {
            let (_, rest) = line.split_once(" listening on ")?;
            rest.split(' ').next()?.parse().ok()
        })
    });
    let config = is_tls.then(|| {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    });
    (process, addr, config)
}

/// A client that has its CONNACK.
fn connect(
    addr: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    index: usize,
    id: u64,
) -> Box<dyn Stream> {
    let tcp = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(tcp),
        Some(config) => {
            let name = ServerName::try_from("localhost").unwrap();
            let session = ClientConnection::new(config.clone(), name).unwrap();
            Box::new(StreamOwned::new(session, tcp))
        }
    };
    let hello = Hello::new(V5, &format!("idle-{id}")).bytes();
    let is_websocket = index >= 2;
    if is_websocket {
        stream
            .write_all(
                b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                  Sec-WebSocket-Protocol: mqtt\r\n\r\n",
            )
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        // One frame with all of it, masked with zeros.
        stream.write_all(&[0x82, 0x80 | hello.len() as u8, 0, 0, 0, 0]).unwrap();
    }
    stream.write_all(&hello).unwrap();
    stream.flush().unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    let connack = if is_websocket { answer[2] } else { answer[0] };
    assert_eq!(connack, 0x20, "CONNACK");
    stream
}

fn resident_bytes(broker: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

fn stop(mut broker: Process) {
    broker.signal(Signal::TERM);
    broker.succeed();
}
