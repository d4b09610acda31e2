//! Addresses that can be listened on, and the sockets that do. Floor 5, used by `net::accept`.
//!
//! A Unix socket is a file. One that an earlier process left behind is replaced; one that somebody listens
//! on, and a file of another kind, is not touched. Ours is removed when it is closed.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::net::peer::Address;

/// Connections that the system may hold ready for us.
const BACKLOG: i32 = 4096;
/// The system asks a peer that has said nothing for five minutes whether it is still there, and gives up after four
/// questions without an answer. Without that a client with Keep Alive 0 whose machine has died would stay
/// for ever; with shorter times sleeping devices would be woken for nothing.
const KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(300))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);
/// Who may connect to a Unix socket: the user and the group that the broker runs as.
const UNIX_MODE: u32 = 0o660;
/// What the name of a Unix socket begins with in the settings.
const UNIX_PREFIX: &str = "unix:";

/// Where to listen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Listen {
    /// An address of the network; port 0 is a free one. `[::]` is IPv6 alone.
    Tcp(SocketAddr),
    /// A file.
    Unix(PathBuf),
}

impl Listen {
    /// `ADDRESS:PORT`, or `unix:` and the path of a file.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix(UNIX_PREFIX) {
            Some("") => None,
            Some(path) => Some(Self::Unix(path.into())),
            None => text.parse().ok().map(Self::Tcp),
        }
    }

    /// Whether clients of other machines may reach it.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Tcp(addr) => !addr.ip().is_loopback(),
            Self::Unix(_) => false,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody else has it.
    #[error(
        "{0} is in use: another broker is running there; stop it, or choose another address with \
         --listen"
    )]
    InUse(Listen),
    /// There is a file, and it is not a socket.
    #[error("cannot listen on {0}: there is a file of that name that is not a socket")]
    NotASocket(Listen),
    /// Anything else.
    #[error("cannot listen on {listen}: {error}")]
    Other {
        /// As configured.
        listen: Listen,
        /// From the system.
        error: io::Error,
    },
}

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    /// The file goes before the listener: afterwards another process may have put its own there.
    Unix(SocketFile, UnixListener),
}

/// A connection as it was accepted.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream, Address),
    Unix(UnixStream),
}

/// Removes the file of a Unix socket at its end.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may have been removed already, and the next start replaces what is left.
        let _ = fs::remove_file(&self.0);
    }
}

impl Socket {
    /// Call it on a tokio runtime.
    pub(super) fn bind(listen: &Listen) -> Result<Self, BindError> {
        let bound = match listen {
            Listen::Tcp(addr) => bind_tcp(*addr),
            Listen::Unix(path) => {
                if !is_free(path).map_err(|error| failed(listen, error))? {
                    return Err(BindError::NotASocket(listen.clone()));
                }
                bind_unix(path)
            }
        };
        bound.map_err(|error| failed(listen, error))
    }

    /// Where it listens: the port is the real one where 0 was asked for.
    pub(super) fn local(&self) -> io::Result<Listen> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Listen::Tcp),
            Self::Unix(SocketFile(path), _) => Ok(Listen::Unix(path.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, addr) = listener.accept().await?;
                Ok(Accepted::Tcp(stream, Address::Ip(addr)))
            }
            Self::Unix(_, listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(stream))
            }
        }
    }
}

fn failed(listen: &Listen, error: io::Error) -> BindError {
    let listen = listen.clone();
    match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(listen),
        _ => BindError::Other { listen, error },
    }
}

fn bind_tcp(addr: SocketAddr) -> io::Result<Socket> {
    let socket = socket2::Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // A restart must not wait for the old connections' TIME_WAIT to pass.
    socket.set_reuse_address(true)?;
    // What it accepts inherits that.
    socket.set_tcp_keepalive(&KEEP_ALIVE)?;
    if addr.is_ipv6() {
        // Whatever the system has for a default: `[::]` and `0.0.0.0` are two addresses, and each can be had alone.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into()).map(Socket::Tcp)
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile(path.into());
    // Nobody can connect before `listen`, so nobody can while the mode is what the umask made of it.
    fs::set_permissions(path, Permissions::from_mode(UNIX_MODE))?;
    socket.listen(BACKLOG)?;
    Ok(Socket::Unix(file, UnixListener::from_std(socket.into())?))
}

/// Makes room for a Unix socket: removes one that nobody listens on. `false` where there is another file.
fn is_free(path: &Path) -> io::Result<bool> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Ok(false);
    }
    match BlockingUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map(|()| true)
        }
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["127.0.0.1:1883", "[::1]:8883", "unix:/run/mqtt.sock"] {
            assert_eq!(Listen::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "1883", "localhost:1883", "unix:", "/run/mqtt.sock"] {
            assert_eq!(Listen::parse(text), None, "{text}");
        }
        let is_open = |text| Listen::parse(text).unwrap().is_open();
        assert!(is_open("0.0.0.0:1") && is_open("[::]:1") && is_open("192.0.2.1:1"));
        assert!(!is_open("127.0.0.2:1") && !is_open("[::1]:1") && !is_open("unix:mqtt.sock"));
    }

    #[tokio::test]
    async fn system_asks_silent_peers_whether_they_are_still_there() {
        let socket = Socket::bind(&Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        let Listen::Tcp(addr) = socket.local().unwrap() else { unreachable!() };
        let _client = TcpStream::connect(addr).await.unwrap();
        let Accepted::Tcp(stream, _) = socket.accept().await.unwrap() else { unreachable!() };
        let accepted = SockRef::from(&stream);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(300));
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), 4);
    }

    #[tokio::test]
    async fn one_port_can_be_had_for_ipv4_and_ipv6() {
        let socket = Socket::bind(&Listen::parse("0.0.0.0:0").unwrap()).unwrap();
        let Ok(Listen::Tcp(addr)) = socket.local() else { panic!("{socket:?}") };
        let other = Listen::parse(&format!("[::]:{}", addr.port())).unwrap();
        match Socket::bind(&other) {
            Ok(_) => (),
            // A machine without IPv6 has nothing to share the port with.
            Err(BindError::Other { .. }) => assert!(!Path::new("/proc/net/if_inet6").exists()),
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn socket_file_is_replaced_only_if_nobody_listens_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(folder.path().join("mqtt.sock"));
        let Listen::Unix(path) = &listen else { unreachable!() };

        fs::write(path, "precious").unwrap();
        let error = Socket::bind(&listen).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        assert_eq!(fs::read(path).unwrap(), b"precious");
        fs::remove_file(path).unwrap();

        // Left behind by a process that was killed.
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        let socket = Socket::bind(&listen).unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, UNIX_MODE);

        let error = Socket::bind(&listen).unwrap_err();
        assert!(matches!(error, BindError::InUse(_)), "{error}");
        drop(socket);
        assert!(!path.exists());
    }
}
