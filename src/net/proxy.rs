//! The PROXY header, version 1 or 2, by which a proxy says whose connection it passes on. Floor 5, used by
//! `net::transport`.
//!
//! Whoever can connect to such a listener can say that he is anybody, so only the proxies may reach it. Nothing
//! behind the header is read here.

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest header of version 1, with its line end.
const LINE_BYTES_MAX: usize = 107;
/// Longest header of version 2: its addresses take 216 bytes at most, the rest is for additions such as what the
/// proxy knows of TLS, which are skipped.
const HEADER_BYTES_MAX: usize = 4096;
/// The two versions differ in their first bytes. No header is shorter.
const START_BYTES: usize = v2::PROTOCOL_PREFIX.len();
/// Version 2 up to its length, which is said by the last two bytes.
const FIXED_BYTES: usize = 16;

/// Why there is no PROXY header.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The connection ended, or failed.
    #[error("connection lost in the PROXY header: {0}")]
    Lost(#[from] io::Error),
    /// Something else came.
    #[error("no PROXY header, which this listener wants (proxy_protocol)")]
    Missing,
    /// It is not closed within its limit.
    #[error("PROXY header of more than {0} bytes")]
    TooLong(usize),
    /// A text that is wrong.
    #[error("wrong PROXY header: {}", .0.to_string().escape_debug())]
    Line(#[from] v1::BinaryParseError),
    /// Binary, and wrong.
    #[error("wrong PROXY header: {}", .0.to_string().escape_debug())]
    Header(#[from] v2::ParseError),
}

/// Reads the header and nothing behind it. `None` where the proxy speaks for itself (LOCAL, such as its health
/// checks), does not know (UNKNOWN) or has no address of the network.
pub async fn read_header<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Option<SocketAddr>, ProxyError> {
    let mut header = vec![0; START_BYTES];
    stream.read_exact(&mut header).await?;
    if header == v2::PROTOCOL_PREFIX {
        read_binary(stream, header).await
    } else if header.starts_with(v1::PROTOCOL_PREFIX.as_bytes()) {
        read_line(stream, header).await
    } else {
        Err(ProxyError::Missing)
    }
}

async fn read_binary<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut header: Vec<u8>,
) -> Result<Option<SocketAddr>, ProxyError> {
    header.resize(FIXED_BYTES, 0);
    stream.read_exact(header.get_mut(START_BYTES..).unwrap_or_default()).await?;
    let len = match header.last_chunk() {
        Some(len) => FIXED_BYTES + usize::from(u16::from_be_bytes(*len)),
        None => FIXED_BYTES,
    };
    if len > HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong(HEADER_BYTES_MAX));
    }
    header.resize(len, 0);
    stream.read_exact(header.get_mut(FIXED_BYTES..).unwrap_or_default()).await?;
    let header = v2::Header::try_from(header.as_slice())?;
    Ok(match (header.command, header.addresses) {
        (v2::Command::Local, _) => None,
        (v2::Command::Proxy, v2::Addresses::IPv4(it)) => {
            Some((it.source_address, it.source_port).into())
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(it)) => {
            Some((it.source_address, it.source_port).into())
        }
        (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    })
}

/// Byte by byte, for its end is known only when it is there; once per connection, and some forty bytes.
async fn read_line<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut line: Vec<u8>,
) -> Result<Option<SocketAddr>, ProxyError> {
    while line.last() != Some(&b'\n') {
        if line.len() == LINE_BYTES_MAX {
            return Err(ProxyError::TooLong(LINE_BYTES_MAX));
        }
        line.push(stream.read_u8().await?);
    }
    // The parser does not look after UNKNOWN.
    if !line.ends_with(b"\r\n") {
        return Err(v1::BinaryParseError::from(v1::ParseError::InvalidSuffix).into());
    }
    Ok(match v1::Header::try_from(line.as_slice())?.addresses {
        v1::Addresses::Tcp4(it) => Some((it.source_address, it.source_port).into()),
        v1::Addresses::Tcp6(it) => Some((it.source_address, it.source_port).into()),
        v1::Addresses::Unknown => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn address_is_that_of_the_client_and_nothing_behind_the_header_is_read() {
        let v4 =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0F\xC0\0\x02\x01\x7F\0\0\x01\0\x50\x07\x5B\x04\0\0";
        let v6 = [
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".as_slice(),
            &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0; 16],
            &[0, 80, 0, 81],
        ]
        .concat();
        let good: [(&[u8], Option<&str>); 7] = [
            (b"PROXY TCP4 192.0.2.1 127.0.0.1 80 1883\r\n", Some("192.0.2.1:80")),
            (b"PROXY TCP6 2001:db8::1 ::1 80 1883\r\n", Some("[2001:db8::1]:80")),
            (b"PROXY UNKNOWN\r\n", None),
            (v4, Some("192.0.2.1:80")),
            (&v6, Some("[2001:db8::1]:80")),
            (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", None),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0", None),
        ];
        for (header, expected) in good {
            let sent = [header, b"rest"].concat();
            let mut rest = sent.as_slice();
            let address = read_header(&mut rest).await.unwrap();
            assert_eq!(address, expected.map(|it| it.parse().unwrap()));
            assert_eq!(rest, b"rest");
            // Cut anywhere it is no header.
            for len in 0..header.len() {
                let error = read_header(&mut &header[..len]).await.unwrap_err();
                assert!(matches!(error, ProxyError::Lost(_) | ProxyError::Missing), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn header_is_bounded_and_has_to_be_there() {
        let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        let error = read_header(&mut endless.as_slice()).await.unwrap_err();
        assert!(matches!(error, ProxyError::TooLong(LINE_BYTES_MAX)), "{error}");
        let large = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xFF\xFF";
        let error = read_header(&mut large.as_slice()).await.unwrap_err();
        assert!(matches!(error, ProxyError::TooLong(HEADER_BYTES_MAX)), "{error}");
        for wrong in [
            b"PROXY TCP4 1 2 3 4\r\n".as_slice(),
            b"PROXY TCP4 192.0.2.1 127.0.0.1 80 1883 \r\n",
            b"PROXY TCP4 192.0.2.1 127.0.0.1 80 1883\n",
            b"PROXY UNKNOWN \n",
            b"\r\n\r\n\0\r\nQUIT\n\x41\x11\0\0",
        ] {
            let error = read_header(&mut &*wrong).await.unwrap_err();
            // For the log: a line of it is a line.
            assert!(!error.to_string().contains(char::is_control), "{error}");
            assert!(matches!(error, ProxyError::Line(_) | ProxyError::Header(_)), "{error}");
        }
        let error =
            read_header(&mut b"\x10\x0C\0\x04MQTT\x04\x02\0\0\0\0".as_slice()).await.unwrap_err();
        assert!(matches!(error, ProxyError::Missing), "{error}");
    }
}
