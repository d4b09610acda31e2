//! A way to the broker that can be cut, which is all that a client sees of a kill.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Forwards connections to a broker.
pub(crate) struct Proxy {
    addr: SocketAddr,
    /// All that were opened, on both sides; `None` when the way is cut.
    streams: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Proxy {
    pub(crate) fn start(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let streams = Arc::new(Mutex::new(Some(Vec::new())));
        let open = streams.clone();
        thread::spawn(move || {
            // The last connection is that of `cut`.
            while let Ok((client, _)) = listener.accept() {
                let mut open = open.lock().unwrap();
                let Some(open) = &mut *open else { return };
                let server = TcpStream::connect(broker).unwrap();
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                    open.push(stream.try_clone().unwrap());
                }
                forward(client.try_clone().unwrap(), server.try_clone().unwrap());
                forward(server, client);
            }
        });
        Self { addr, streams }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends all connections. What is on its way may arrive or not.
    pub(crate) fn cut(self) {
        let streams = self.streams.lock().unwrap().take();
        for stream in streams.into_iter().flatten() {
            // One that has ended by itself cannot be ended.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // It is refused if the listener has gone already.
        let _ = TcpStream::connect(self.addr);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
