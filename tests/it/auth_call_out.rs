//! Another server says who may log in. [`Server`] is that server: a few lines of HTTP over a socket, and what it says is
//! up to each test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use mailboxqtt::ids::ProtocolVersion::{self, V5, V311};
use serde_json::{Value, json};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Got, Hello, wait_for_counter};

/// See the module comment. It serves until the test ends.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    questions: Receiver<Value>,
}

/// What a question comes over.
trait Wire: Read + Write + Send {}

impl<T: Read + Write + Send> Wire for T {}

impl Server {
    /// `answer` is what goes over the wire for a question; empty is no answer, and the connection stays open.
    pub(crate) fn start(answer: impl Fn(&Value) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::start_over(|stream| Box::new(stream), answer)
    }

    /// The same behind TLS.
    fn start_tls(
        tls: Arc<rustls::ServerConfig>,
        answer: impl Fn(&Value) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let over = move |stream| -> Box<dyn Wire> {
            let connection = rustls::ServerConnection::new(tls.clone()).unwrap();
            Box::new(rustls::StreamOwned::new(connection, stream))
        };
        Self::start_over(over, answer)
    }

    fn start_over(
        over: impl Fn(TcpStream) -> Box<dyn Wire> + Send + Sync + 'static,
        answer: impl Fn(&Value) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (tell, questions) = channel();
        let (answer, over) = (Arc::new(answer), Arc::new(over));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (tell, answer, over) = (tell.clone(), answer.clone(), over.clone());
                thread::spawn(move || {
                    let mut reader = BufReader::new(over(stream.unwrap()));
                    while let Some(question) = read_question(&mut reader) {
                        let bytes = answer(&question);
                        // The test may have ended.
                        let _ = tell.send(question);
                        let _ = reader.get_mut().write_all(&bytes);
                    }
                });
            }
        });
        Self { addr, questions }
    }

    fn broker(&self, settings: &str) -> Broker {
        broker_asking(self.addr, settings)
    }

    fn question(&self) -> Value {
        self.questions.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    fn assert_not_asked(&self) {
        assert!(self.questions.try_recv().is_err());
    }
}

fn broker_asking(addr: SocketAddr, settings: &str) -> Broker {
    let section = format!("[authentication.http]\nurl = \"http://{addr}/login\"\n");
    Broker::start_configured(&format!("sys_interval_s = 1\n{section}{settings}"))
}

/// The body of the next request, which has to be what it should be.
fn read_question(reader: &mut BufReader<Box<dyn Wire>>) -> Option<Value> {
    let mut length = 0;
    let mut lines = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        assert!(lines > 0 || line == "post /login http/1.1", "{line}");
        lines += 1;
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(serde_json::from_slice(&body).unwrap())
}

pub(crate) fn ok(body: &Value) -> Vec<u8> {
    response("200 OK", &body.to_string())
}

fn response(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[track_caller]
fn log_in(broker: &Broker, version: ProtocolVersion, id: &str, user: (&str, &str)) -> u8 {
    let hello = Hello::new(version, id).user(user.0, user.1.as_bytes());
    let (mut client, answer) = hello.try_open(broker.addr());
    let Got::ConnAck(_, code, _) = answer else { panic!("{answer:?}") };
    if code == 0 {
        client.disconnect();
    } else {
        client.assert_closed();
    }
    code
}

#[test]
fn the_server_is_told_who_asks_and_its_word_is_law() {
    let server = Server::start(|question| {
        let is_right = question["username"] == "alice" && question["password"] == "wonderland";
        ok(&json!({ "result": if is_right { "allow" } else { "deny" } }))
    });
    let broker = server.broker("");
    let id = unique("asks");
    assert_eq!(log_in(&broker, V5, &id, ("alice", "wonderland")), 0);
    let expected = json!({ "client_id": id, "username": "alice", "password": "wonderland", "peer": "127.0.0.1" });
    assert_eq!(server.question(), expected);
    assert_eq!(log_in(&broker, V5, &id, ("alice", "guess")), 0x87);
    assert_eq!(log_in(&broker, V311, &id, ("bob", "wonderland")), 5);
    broker.stop();
}

#[test]
fn what_was_allowed_is_not_asked_again_but_what_was_denied_is() {
    let server = Server::start(|question| {
        ok(&json!({ "result": if question["username"] == "alice" { "allow" } else { "deny" } }))
    });
    let broker = server.broker("");
    let id = unique("cached");
    for _ in 0..3 {
        assert_eq!(log_in(&broker, V311, &id, ("alice", "wonderland")), 0);
    }
    server.question();
    server.assert_not_asked();
    // Nothing else than the same question has the same answer.
    for (id, user) in [(&*unique("other"), ("alice", "wonderland")), (&*id, ("alice", "wonderlan"))]
    {
        assert_eq!(log_in(&broker, V311, id, user), 0);
        server.question();
    }
    for _ in 0..2 {
        assert_eq!(log_in(&broker, V311, &id, ("bob", "builder")), 5);
        server.question();
    }
    broker.stop();

    let always = server.broker("cache_s = 0\n");
    for _ in 0..2 {
        assert_eq!(log_in(&always, V311, &id, ("alice", "wonderland")), 0);
        server.question();
    }
    always.stop();
}

#[test]
fn whatever_is_no_answer_lets_nobody_in() {
    for (bytes, part) in [
        (response("500 Internal Server Error", "{\"result\":\"allow\"}"), "status 500"),
        (response("204 No Content", ""), "status 204"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "status 302",
        ),
        (response("200 OK", "allow"), "not understood"),
        (response("200 OK", "{}"), "not understood"),
        (response("200 OK", "{\"result\":\"yes\"}"), "not understood"),
        (response("200 OK", "{\"result\":\"allow\",\"acl\":[1]}"), "cannot be read"),
        (response("200 OK", &" ".repeat(70_000)), "more than 65536 bytes"),
        (b"garbage\r\n\r\n".to_vec(), "call-out"),
    ] {
        let server = Server::start(move |_| bytes.clone());
        let broker = server.broker("");
        assert_eq!(log_in(&broker, V5, "c", ("alice", "wonderland")), 0x88, "{part}");
        assert_eq!(log_in(&broker, V311, "c", ("alice", "wonderland")), 3, "{part}");
        let log = broker.stop_and_read_log();
        assert!(log.contains(part) && !log.contains("wonderland"), "{part}: {log}");
    }
}

#[test]
fn a_server_that_is_down_or_silent_lets_nobody_in_and_is_counted() {
    let silent = Server::start(|_| Vec::new());
    let broker = silent.broker("timeout_ms = 100\n");
    assert_eq!(log_in(&broker, V5, "c", ("alice", "wonderland")), 0x88);
    broker.stop();
    let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let section = format!("[authentication.http]\nurl = \"http://{down}/login\"\n");
    let broker =
        Broker::start_configured(&format!("sys_interval_s = 1\nallow_anonymous = true\n{section}"));
    assert_eq!(log_in(&broker, V5, "c", ("alice", "wonderland")), 0x88);
    assert_eq!(log_in(&broker, V311, "c", ("alice", "wonderland")), 3);
    wait_for_counter(&broker, "authentication/unavailable", 2);
    let log = broker.stop_and_read_log();
    assert!(log.contains("Connection refused"), "{log}");
}

#[test]
fn while_as_many_are_asked_about_as_may_be_further_clients_are_told_that_the_broker_is_busy() {
    let silent = Server::start(|_| Vec::new());
    let broker =
        silent.broker("questions_max = 1\nquestions_waiting_max = 0\ntimeout_ms = 60000\n");
    let first = thread::spawn({
        let addr = broker.addr();
        move || {
            let mut client = crate::wire::Client::raw(addr, V5);
            client.send(&Hello::new(V5, "first").user("alice", b"wonderland").bytes());
            client
        }
    });
    let _first = first.join().unwrap();
    silent.question();
    assert_eq!(log_in(&broker, V5, "second", ("alice", "wonderland")), 0x89);
    assert_eq!(log_in(&broker, V311, "second", ("alice", "wonderland")), 3);
    broker.stop();
}

#[test]
fn passwords_of_the_file_are_checked_there_and_others_by_the_server() {
    let server = Server::start(|question| {
        ok(&json!({ "result": if question["username"] == "bob" { "allow" } else { "deny" } }))
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    // SHA-512 of `x` and `salt`.
    std::fs::write(&file, ALICE).unwrap();
    let section = format!("[authentication]\npassword_file = \"{}\"\n", file.display());
    let http = format!("[authentication.http]\nurl = \"http://{}/login\"\n", server.addr);
    let broker = Broker::start_configured(&format!("{section}{http}"));
    assert_eq!(log_in(&broker, V311, "c", ("alice", "x")), 0);
    assert_eq!(log_in(&broker, V311, "c", ("alice", "y")), 5);
    server.assert_not_asked();
    assert_eq!(log_in(&broker, V311, "c", ("bob", "anything")), 0);
    assert_eq!(log_in(&broker, V311, "c", ("carl", "anything")), 5);
    broker.stop();
}

#[test]
fn a_server_behind_tls_is_asked_if_its_authority_is_trusted() {
    let authority = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = parameters.self_signed(&authority).unwrap();
    let issuer = rcgen::Issuer::new(parameters, authority);
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let own = own.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    let server = Server::start_tls(Arc::new(tls), |_| ok(&json!({ "result": "allow" })));
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, root.pem()).unwrap();
    let section = format!("[authentication.http]\nurl = \"https://{}/login\"\n", server.addr);
    let broker =
        Broker::start_configured(&format!("{section}ca_file = \"{}\"\n", ca_file.display()));
    assert_eq!(log_in(&broker, V5, "c", ("alice", "wonderland")), 0);
    server.question();
    broker.stop();
    let broker = Broker::start_configured(&section);
    assert_eq!(log_in(&broker, V5, "c", ("alice", "wonderland")), 0x88);
    server.assert_not_asked();
    broker.stop();
}

#[test]
fn a_password_that_is_no_text_is_refused_without_asking() {
    let server = Server::start(|_| ok(&json!({ "result": "allow" })));
    let broker = server.broker("");
    let (mut client, answer) = Hello::new(V5, "c").user("alice", b"\xFF").try_open(broker.addr());
    assert!(matches!(answer, Got::ConnAck(_, 0x87, _)), "{answer:?}");
    client.assert_closed();
    server.assert_not_asked();
    broker.stop();
}

const ALICE: &str = "alice:$6$c2FsdA==$6eVdMq4I5n/QFfgZ0/M9n4vpSI7CRVQSApIGU+7jLnaJc6uSeeYJVVj+vSVOhyOXs0nStcL5iykHFunAzR5sag==\n";
