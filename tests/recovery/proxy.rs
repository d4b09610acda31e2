//! A way to the broker that can be cut, which is all that a client sees of a kill.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Forwards connections to a broker.
pub(crate) struct Proxy {
    addr: SocketAddr,
    /// All that were opened; `None` when the way is cut.
    ways: Arc<Mutex<Option<Vec<Way>>>>,
}

/// Both ends of one connection.
struct Way {
    client: TcpStream,
    server: TcpStream,
}

impl Proxy {
    pub(crate) fn start(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let ways = Arc::new(Mutex::new(Some(Vec::new())));
        let open = ways.clone();
        thread::spawn(move || {
            // The last connection is that of `cut`.
            while let Ok((client, _)) = listener.accept() {
                let mut open = open.lock().unwrap();
                let Some(open) = &mut *open else { return };
                let server = TcpStream::connect(broker).unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                open.push(Way {
                    client: client.try_clone().unwrap(),
                    server: server.try_clone().unwrap(),
                });
                forward(client.try_clone().unwrap(), server.try_clone().unwrap());
                forward(server, client);
            }
        });
        Self { addr, ways }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends all connections. What is on its way may arrive or not; afterwards the broker knows that they have ended,
    /// so that no CONNECT of before takes over a connection that comes later.
    pub(crate) fn cut(self) {
        let ways: Vec<Way> = self.ways.lock().unwrap().take().into_iter().flatten().collect();
        for Way { client, server } in &ways {
            // One that has ended by itself cannot be ended.
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Write);
        }
        for Way { mut server, .. } in ways {
            server.set_read_timeout(Some(crate::stage::STALL)).unwrap();
            let ended = io::copy(&mut server, &mut io::sink());
            let is_stuck = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
            assert!(!ended.is_err_and(is_stuck), "the broker keeps a connection that has ended");
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
