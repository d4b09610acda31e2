//! Whether a broker answers: for service managers and containers, which start what does not answer again. Floor 5,
//! called by the command alone.
//!
//! The question is a CONNECT of a protocol level that does not exist. A broker that works refuses it
//! [MQTT-3.1.2-2], without a session, a user or a password, so nothing is left behind. One of ours neither counts it as
//! an error nor mentions it in its log.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The protocol level of the question.
pub(super) const LEVEL: u8 = 127;
/// CONNECT of the protocol `MQTT` at [`LEVEL`], with an empty client identifier.
const QUESTION: &[u8] = b"\x10\x0c\0\x04MQTT\x7f\x02\0\0\0\0";
/// First byte of a CONNACK.
const CONNACK: u8 = 0x20;

/// Asks the broker that accepts MQTT over TCP at `addr`; each step may take `step_max`.
pub fn check(addr: SocketAddr, step_max: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&addr, step_max)?;
    stream.set_read_timeout(Some(step_max))?;
    stream.set_write_timeout(Some(step_max))?;
    stream.write_all(QUESTION)?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    match first {
        [CONNACK] => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "what answers is no MQTT broker")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::codec::{DecodeError, decode};
    use crate::ids::ProtocolVersion::V311;

    const STEP_MAX: Duration = Duration::from_secs(30);

    #[test]
    fn question_is_a_connect_of_a_level_that_nobody_serves() {
        let decoded = decode(QUESTION, V311);
        let expected = DecodeError::UnsupportedProtocolVersion { level: LEVEL };
        assert_eq!(decoded.map(|_| ()), Err(expected));
    }

    #[test]
    fn only_a_connack_is_an_answer() {
        for (answer, is_healthy) in
            [(&b"\x20\x02\0\x01"[..], true), (b"HTTP/1.1 400", false), (b"", false)]
        {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let broker = thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                stream.read_exact(&mut [0; QUESTION.len()]).unwrap();
                stream.write_all(answer).unwrap();
            });
            assert_eq!(check(addr, STEP_MAX).is_ok(), is_healthy, "{answer:?}");
            broker.join().unwrap();
        }
    }

    #[test]
    fn nobody_is_no_answer() {
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(check(addr, STEP_MAX).is_err());
    }
}
