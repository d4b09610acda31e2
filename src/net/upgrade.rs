//! The request by which HTTP becomes WebSocket, and the answer. Floor 5, used by `net::transport`.
//!
//! Whoever is refused gets a status and a sentence. The request is bounded in bytes here and in time by the
//! caller.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::HeaderMap;
use tungstenite::http::header::{HOST, HeaderValue, ORIGIN, SEC_WEBSOCKET_PROTOCOL};

use crate::metrics::RefuseReason;
use crate::net::listener::write_last;

/// Longest request; browsers send all cookies of the site with it.
const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// Where the headers end.
const END: &[u8] = b"\r\n\r\n";
/// [MQTT-6.0.0-3] [MQTT-6.0.0-4]
const SUBPROTOCOL: &str = "mqtt";
/// Among the origins it stands for all.
const ANY_ORIGIN: &str = "*";

/// Who may become a WebSocket.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WebSocketSettings {
    /// The path of the request, without a query; empty takes any.
    pub path: String,
    /// Sites whose pages may connect, as in `https://example.com`; `*` is all. Empty: only pages of the host
    /// and port that the request goes to. What is no browser need not name a site.
    pub origins: Vec<String>,
}

/// Why it stays HTTP.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    /// The connection ended, or failed.
    #[error("connection lost in the WebSocket upgrade: {0}")]
    Lost(#[from] io::Error),
    /// No end within the limit.
    #[error("HTTP request of more than {REQUEST_BYTES_MAX} bytes")]
    TooLong,
    /// No request, or not one for a WebSocket.
    #[error("no WebSocket request: {0}")]
    Request(Box<tungstenite::Error>),
    /// The client may not send before it is answered.
    #[error("bytes behind the WebSocket request, before its answer")]
    TooEarly,
    /// Another path.
    #[error("nothing is served at this path (websocket_path)")]
    Path,
    /// A page of another site.
    #[error("the origin `{0}` may not connect (websocket_origins)")]
    Origin(String),
    /// [MQTT-6.0.0-3]
    #[error("the request does not offer the subprotocol `mqtt`")]
    Subprotocol,
}

impl UpgradeError {
    pub(super) fn reason(&self) -> RefuseReason {
        match self {
            Self::Lost(_) | Self::TooLong | Self::Request(_) | Self::TooEarly => {
                RefuseReason::WebsocketRequest
            }
            Self::Path => RefuseReason::WebsocketPath,
            Self::Origin(_) => RefuseReason::WebsocketOrigin,
            Self::Subprotocol => RefuseReason::WebsocketSubprotocol,
        }
    }

    /// The HTTP answer; none for whoever has gone.
    fn answer(&self) -> Option<String> {
        let status = match self {
            Self::Lost(_) => return None,
            Self::TooLong => "431 Request Header Fields Too Large",
            Self::Request(_) | Self::TooEarly | Self::Subprotocol => "400 Bad Request",
            Self::Path => "404 Not Found",
            Self::Origin(_) => "403 Forbidden",
        };
        // What the client sent stays out of it.
        let text = match self {
            Self::Origin(_) => "pages of this origin may not connect".to_owned(),
            error => error.to_string(),
        };
        Some(format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
             Sec-WebSocket-Version: 13\r\nConnection: close\r\n\r\n{text}\n",
            text.len() + 1
        ))
    }
}

/// Reads the request and answers it. Nothing behind it has been read when this returns.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    settings: &WebSocketSettings,
) -> Result<(), UpgradeError> {
    let answered = match read_request(stream).await {
        Ok(bytes) => answer(&bytes, settings),
        Err(error) => Err(error),
    };
    match answered {
        Ok(response) => {
            stream.write_all(&response).await?;
            stream.flush().await?;
            Ok(())
        }
        Err(error) => {
            if let Some(answer) = error.answer() {
                write_last(stream, answer.as_bytes()).await;
            }
            Err(error)
        }
    }
}

async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, UpgradeError> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let searched = bytes.len().saturating_sub(END.len() - 1);
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let unsearched = bytes.get(searched..).unwrap_or_default();
        if unsearched.windows(END.len()).any(|window| window == END) {
            return Ok(bytes);
        }
        if bytes.len() > REQUEST_BYTES_MAX {
            return Err(UpgradeError::TooLong);
        }
    }
}

/// The answer that makes it a WebSocket.
fn answer(bytes: &[u8], settings: &WebSocketSettings) -> Result<Vec<u8>, UpgradeError> {
    let wrong = |error| UpgradeError::Request(Box::new(error));
    let Some((len, request)) = Request::try_parse(bytes).map_err(wrong)? else {
        return Err(wrong(tungstenite::Error::AttackAttempt));
    };
    if !settings.path.is_empty() && request.uri().path() != settings.path {
        return Err(UpgradeError::Path);
    }
    let mut response = create_response(&request).map_err(wrong)?;
    check_origin(request.headers(), &settings.origins)?;
    if !offers_mqtt(request.headers()) {
        return Err(UpgradeError::Subprotocol);
    }
    if len != bytes.len() {
        return Err(UpgradeError::TooEarly);
    }
    let subprotocol = HeaderValue::from_static(SUBPROTOCOL);
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
    let mut answer = Vec::new();
    write_response(&mut answer, &response).map_err(wrong)?;
    Ok(answer)
}

fn offers_mqtt(headers: &HeaderMap) -> bool {
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let mut offers = offers.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(','));
    offers.any(|offer| offer.trim() == SUBPROTOCOL)
}

fn check_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), UpgradeError> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let origin = String::from_utf8_lossy(origin.as_bytes());
    let is_allowed = match allowed {
        [] => {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            let own = origin.split_once("://").map(|(_, authority)| authority);
            matches!((own, host), (Some(own), Some(host)) if own.eq_ignore_ascii_case(host))
        }
        some => some.iter().any(|it| it == ANY_ORIGIN || it.eq_ignore_ascii_case(&origin)),
    };
    match is_allowed {
        true => Ok(()),
        false => Err(UpgradeError::Origin(origin.escape_debug().take(200).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_answered_with_the_subprotocol() {
        let answered = answer(request(&[]).as_bytes(), &settings(&[])).unwrap();
        let answered = String::from_utf8(answered).unwrap().to_ascii_lowercase();
        assert!(answered.starts_with("http/1.1 101 "), "{answered}");
        assert!(answered.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"));
        assert!(answered.contains("sec-websocket-protocol: mqtt\r\n"), "{answered}");
        assert!(!answered.contains("extensions"), "{answered}");
    }

    #[test]
    fn pages_of_other_sites_may_not_connect_unless_they_are_named() {
        let from = |origin: &str, allowed: &[&str]| {
            let origin = format!("Origin: {origin}\r\n");
            answer(request(&[&origin]).as_bytes(), &settings(allowed)).is_ok()
        };
        assert!(from("http://broker:9001", &[]));
        assert!(!from("http://broker", &[]) && !from("https://evil.example", &[]));
        assert!(!from("null", &[]) && !from("evil://broker:9001.evil.example", &[]));
        let site = ["https://app.example", "https://b.example:444"];
        assert!(from("https://APP.example", &site) && from("https://b.example:444", &site));
        assert!(!from("http://app.example", &site) && !from("https://b.example", &site));
        assert!(
            !from("https://app.example.evil.example", &site) && !from("http://broker:9001", &site)
        );
        assert!(from("https://evil.example", &["*"]) && from("null", &["*"]));
    }

    #[test]
    fn other_requests_are_refused_by_reason() {
        let reason = |request: String| {
            let error = answer(request.as_bytes(), &settings(&[])).unwrap_err();
            assert!(error.answer().unwrap().ends_with(&format!("{error}\n")));
            error.reason()
        };
        let wrong = |from: &str, to: &str| {
            let whole = request(&[]);
            assert!(whole.contains(from), "{from}");
            reason(whole.replace(from, to))
        };
        assert_eq!(wrong("/mqtt?", "/other?"), RefuseReason::WebsocketPath);
        assert_eq!(wrong("mqttv3.1, mqtt", "mqttv3.1"), RefuseReason::WebsocketSubprotocol);
        assert_eq!(wrong("Upgrade: websocket\r\n", ""), RefuseReason::WebsocketRequest);
        assert_eq!(wrong("Version: 13", "Version: 8"), RefuseReason::WebsocketRequest);
        assert_eq!(wrong("GET", "POST"), RefuseReason::WebsocketRequest);
        assert_eq!(wrong("\r\n\r\n", "\r\n\r\n\u{82}"), RefuseReason::WebsocketRequest);
    }

    #[tokio::test]
    async fn request_without_end_is_given_up() {
        let endless = [request(&[]).trim_end().as_bytes(), &[b'x'; REQUEST_BYTES_MAX]].concat();
        let error = read_request(&mut endless.as_slice()).await.unwrap_err();
        assert!(matches!(error, UpgradeError::TooLong), "{error}");
    }

    fn settings(origins: &[&str]) -> WebSocketSettings {
        let origins = origins.iter().map(|it| (*it).to_owned()).collect();
        WebSocketSettings { path: "/mqtt".to_owned(), origins }
    }

    fn request(more: &[&str]) -> String {
        format!(
            "GET /mqtt?a=b HTTP/1.1\r\nHost: broker:9001\r\nConnection: keep-alive, Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{}\
             Sec-WebSocket-Extensions: permessage-deflate\r\n\
             Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n\r\n",
            more.concat()
        )
    }
}
