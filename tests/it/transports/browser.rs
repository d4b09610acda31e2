//! MQTT.js in a real browser, Chromium without a window, over WebSocket and WSS.
//!
//! A little HTTP server gives the page out, so that the page is from a site; what the page has to say it says over
//! MQTT.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use mailboxqtt::ids::ProtocolVersion::V311;
use tempfile::TempDir;

use crate::broker::Broker;
use crate::process::{Process, script, tools, unique};
use crate::transports::authority::Authority;
use crate::transports::{QUICK, await_refused};
use crate::wire::Client;

#[test]
fn page_in_a_browser_receives_and_publishes_over_websocket_and_wss() {
    let site = serve_page();
    let broker = start(site);
    for (scheme, listener) in [("ws", 0), ("wss", 1)] {
        let name = unique("page");
        let mut client = Client::connect(&broker, V311);
        client.subscribe(&format!("{name}/out"), 2);
        let _browser =
            Browser::open(site, &format!("{scheme}://{}", broker.listener(listener)), &name);
        let message = client.message();
        assert_eq!(message.text(), "ready");
        client.take(&message);
        // The last is longer than a frame of ours.
        for (qos, payload) in [(0, vec![b'a']), (1, vec![b'b']), (2, vec![b'c'; 200_000])] {
            client.publish(&format!("{name}/in"), &payload, qos, 7);
            client.complete(qos, 7);
            let message = client.message();
            assert_eq!((message.qos, message.payload.len()), (qos, payload.len()));
            assert!(message.payload == payload);
            client.take(&message);
        }
    }
    broker.stop();
}

#[test]
fn page_of_another_site_is_refused() {
    let site = serve_page();
    // Another site by its port.
    let broker = start(([127, 0, 0, 1], 1).into());
    let url = format!("ws://{}", broker.listener(0));
    let _browser = Browser::open(site, &url, &unique("evil"));
    await_refused(&broker, "websocket_origin");
    broker.stop();
}

/// WebSocket and WSS for the pages of `site`.
fn start(site: SocketAddr) -> Broker {
    let authority = Authority::new();
    let listener = format!(
        "[[listeners]]\nlisten = '127.0.0.1:0'\nprotocol = 'websocket'\n\
         websocket_path = '/'\nwebsocket_origins = ['http://{site}']\n"
    );
    let tls = authority.server("server").settings();
    Broker::start_listening(2, &format!("{QUICK}{listener}{listener}{tls}"))
}

/// Ends with its process.
struct Browser {
    _process: Process,
    _profile: TempDir,
}

impl Browser {
    fn open(site: SocketAddr, url: &str, name: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("chromium");
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--ignore-certificate-errors",
            // Keeps it open, on a port of the loopback interface that nobody uses.
            "--remote-debugging-port=0",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg(format!("http://{site}/?url={url}&name={name}"));
        let process = Process::spawn(command.stdin(Stdio::null()));
        Self { _process: process, _profile: profile }
    }
}

/// Serves the page and MQTT.js for as long as the tests run.
fn serve_page() -> SocketAddr {
    let page = fs::read(script("browser.html")).unwrap();
    let library = fs::read(tools("mqttjs/node_modules/mqtt/dist/mqtt.min.js")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (page, library) = (page.clone(), library.clone());
            // A browser opens connections that it does not use.
            thread::spawn(move || answer(&stream, &page, &library));
        }
    });
    addr
}

fn answer(mut stream: &TcpStream, page: &[u8], library: &[u8]) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let _ = lines.find(String::is_empty);
    let (kind, body) = match first.split(' ').nth(1) {
        Some("/mqtt.js") => ("text/javascript", library),
        _ => ("text/html; charset=utf-8", page),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // The browser may have gone.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}
