//! A WebSocket: what the client sends in frames and what it gets in frames, however the bytes are cut.
//!
//! The first byte says how many bytes are a plan of pieces and of what is done, the rest is what the client sends
//! behind the upgrade. What must come out is said by [`Expected`], which looks at whole frames, one by one.

use std::io;
use std::pin::Pin;

use mailboxqtt::net::websocket::WebSocket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::choices::Choices;
use super::pieces::{Pieces, finish};

/// See the module comment.
pub fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let plan_len = choices.below(32);
    let plan = choices.bytes(plan_len);
    let sent = choices.rest();
    let expected = Expected::of(sent);
    for plan in [plan, &[1], &[]] {
        Played::play(sent, plan).check(&expected);
    }
}

/// What has to be read and answered.
#[derive(Debug, Default)]
struct Expected {
    /// What is in binary frames, up to the end.
    received: Vec<u8>,
    /// What is in pings.
    pings: Vec<Vec<u8>>,
    end: End,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum End {
    /// The stream stops between or within frames.
    #[default]
    Lost,
    /// The client closed, with this code.
    Closed(Option<[u8; 2]>),
    /// The client broke a rule, which is answered with this code.
    Refused(u16),
}

impl Expected {
    fn of(sent: &[u8]) -> Self {
        let mut expected = Self::default();
        let mut rest = sent;
        let mut is_in_message = false;
        loop {
            let Some((header, behind)) = split_header(rest) else { return expected };
            let refusal = header.refusal(is_in_message);
            if let Some(code) = refusal {
                expected.end = End::Refused(code);
                return expected;
            }
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            let (masked, next) = behind.split_at(len.min(behind.len()));
            let mask = header.mask.unwrap_or_default();
            let payload: Vec<u8> =
                masked.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
            let is_whole = payload.len() == len;
            match header.opcode {
                0 | 2 => {
                    is_in_message = !header.is_final;
                    expected.received.extend(payload);
                }
                8 if is_whole => {
                    expected.end = End::Closed(payload.first_chunk().copied());
                    return expected;
                }
                9 if is_whole => expected.pings.push(payload),
                _ => (),
            }
            if !is_whole {
                return expected;
            }
            rest = next;
        }
    }
}

struct Header {
    is_final: bool,
    has_reserved_bits: bool,
    opcode: u8,
    len: u64,
    mask: Option<[u8; 4]>,
}

impl Header {
    /// The code with which the connection ends.
    fn refusal(&self, is_in_message: bool) -> Option<u16> {
        let is_control = self.opcode >= 8;
        let is_known = matches!(self.opcode, 0 | 1 | 2 | 8 | 9 | 10);
        if self.has_reserved_bits || self.mask.is_none() || !is_known {
            return Some(1002);
        }
        match self.opcode {
            1 => Some(1003),
            _ if is_control => (!self.is_final || self.len > 125).then_some(1002),
            opcode => (is_in_message != (opcode == 0)).then_some(1002),
        }
    }
}

/// The header at the start of `bytes` and what is behind it, if it is all there.
fn split_header(bytes: &[u8]) -> Option<(Header, &[u8])> {
    let ([first, second], rest) = bytes.split_first_chunk()?;
    let (len, rest) = match second & 0x7F {
        126 => {
            let (len, rest) = rest.split_first_chunk()?;
            (u16::from_be_bytes(*len).into(), rest)
        }
        127 => {
            let (len, rest) = rest.split_first_chunk()?;
            (u64::from_be_bytes(*len), rest)
        }
        len => (u64::from(len), rest),
    };
    let (mask, rest) = match second & 0x80 {
        0 => (None, rest),
        _ => {
            let (mask, rest) = rest.split_first_chunk()?;
            (Some(*mask), rest)
        }
    };
    let is_final = first & 0x80 != 0;
    let has_reserved_bits = first & 0x70 != 0;
    Some((Header { is_final, has_reserved_bits, opcode: first & 0x0F, len, mask }, rest))
}

/// What came of it.
struct Played {
    received: Vec<u8>,
    /// Whether reading failed.
    is_refused: bool,
    /// What the socket took of what was written.
    written: Vec<u8>,
    /// What the client got.
    got: Vec<u8>,
}

impl Played {
    /// Reads and writes in turns until there is nothing to read, then closes.
    fn play(sent: &[u8], plan: &[u8]) -> Self {
        let mut stream = Pieces::new(sent, plan);
        let mut socket = WebSocket::new(&mut stream);
        let mut played =
            Self { received: Vec::new(), is_refused: false, written: Vec::new(), got: Vec::new() };
        let mut turns = plan.iter().copied().cycle();
        loop {
            let turn = turns.next().unwrap_or(u8::MAX);
            match played.read(&mut socket, usize::from(turn).max(1)) {
                Ok(0) => break,
                Ok(_) => (),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
                    assert!(!error.to_string().contains(char::is_control), "{error}");
                    played.is_refused = true;
                    break;
                }
            }
            if turn % 3 == 0 && !played.write(&mut socket, usize::from(turn) * 3) {
                break;
            }
        }
        assert!(finish(|cx| Pin::new(&mut socket).poll_flush(cx)).is_ok());
        assert!(finish(|cx| Pin::new(&mut socket).poll_shutdown(cx)).is_ok());
        assert!(!played.write(&mut socket, 1), "nothing is sent behind the close");
        played.got = stream.output;
        played
    }

    /// Reads once, into `len` bytes behind some that are there already.
    fn read(&mut self, socket: &mut WebSocket<&mut Pieces<'_>>, len: usize) -> io::Result<usize> {
        const BEFORE: &[u8] = b"before";
        let mut room = vec![0; BEFORE.len() + len];
        let mut buf = ReadBuf::new(&mut room);
        buf.put_slice(BEFORE);
        finish(|cx| {
            let poll = Pin::new(&mut *socket).poll_read(cx, &mut buf);
            assert!(
                poll.is_ready() || buf.filled() == BEFORE,
                "nothing is there, and something came"
            );
            poll
        })?;
        let (before, now) = buf.filled().split_at(BEFORE.len());
        assert_eq!(before, BEFORE);
        self.received.extend_from_slice(now);
        Ok(now.len())
    }

    /// Writes `len` bytes, and says whether that could be done.
    fn write(&mut self, socket: &mut WebSocket<&mut Pieces<'_>>, len: usize) -> bool {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match finish(|cx| Pin::new(&mut *socket).poll_write(cx, rest)) {
                Ok(count) => {
                    assert!((1..=rest.len()).contains(&count));
                    self.written.extend_from_slice(&rest[..count]);
                    rest = &rest[count..];
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{error}");
                    return false;
                }
            }
        }
        true
    }

    fn check(&self, expected: &Expected) {
        match expected.end {
            // What came in one read with the frame that breaks the rule is gone.
            End::Refused(_) => assert!(expected.received.starts_with(&self.received)),
            End::Lost | End::Closed(_) => assert_eq!(self.received, expected.received),
        }
        assert_eq!(self.is_refused, matches!(expected.end, End::Refused(_)));
        self.check_answers(expected);
    }

    /// Whole frames without a mask: what was written, answers to pings in their order, and a close at the end.
    fn check_answers(&self, expected: &Expected) {
        let mut pings = expected.pings.iter();
        let mut last_pong = None;
        let mut carried = Vec::new();
        let mut rest = &self.got[..];
        loop {
            let (header, behind) = split_header(rest).expect("a frame comes whole");
            assert!(header.is_final && !header.has_reserved_bits && header.mask.is_none());
            let (payload, next) = behind.split_at(header.len as usize);
            match header.opcode {
                2 => carried.extend_from_slice(payload),
                10 => {
                    assert!(pings.any(|ping| ping == payload), "it answers a ping, and each once");
                    last_pong = Some(payload);
                }
                8 => {
                    let code = match expected.end {
                        End::Lost => Some(1000_u16.to_be_bytes()),
                        End::Closed(code) => code,
                        End::Refused(code) => Some(code.to_be_bytes()),
                    };
                    assert_eq!(payload, code.as_ref().map_or(&[][..], |code| &code[..]));
                    assert!(next.is_empty(), "nothing is sent behind the close");
                    break;
                }
                other => panic!("a frame of type {other}"),
            }
            rest = next;
        }
        assert_eq!(carried, self.written);
        if expected.end == End::Lost {
            assert_eq!(last_pong, expected.pings.last().map(Vec::as_slice), "the last is answered");
        }
    }
}
