//! A WebSocket as a stream of bytes: MQTT sees only what is in its binary frames. Floor 5, made by
//! `net::transport` once `net::upgrade` has agreed with the client.
//!
//! Packets and frames have nothing to do with each other [MQTT-6.0.0-2]: a frame may hold many packets, a packet
//! may be in many frames. So nothing is collected here. What is read is unmasked where it lies, in the buffer
//! of the caller, and the headers are taken out of it; what is written goes to the socket from where it
//! lies, behind a header. An announced length costs no memory, and an idle connection none but this struct.
//!
//! # Invariants
//!
//! - Only binary frames carry MQTT; any other data frame ends the connection with 1003 [MQTT-6.0.0-1].
//! - No compression: a bit that only an extension could have set ends the connection with 1002.
//! - Of many pings the last is answered, so a client that does not read fills nothing.
//! - Whoever writes goes on with the bytes that were not taken, for a frame with them may have begun.

use std::io::{self, Cursor, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// Longest header.
const HEADER_BYTES_MAX: usize = 14;
/// Longest header of a frame that a server sends: without a mask.
const OWN_HEADER_BYTES_MAX: usize = 10;
/// Longest payload of a control frame.
const CONTROL_BYTES_MAX: u64 = 125;
/// Most bytes of one frame that we send: pings are answered between two.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// See the module comment.
#[derive(Debug)]
pub struct WebSocket<S> {
    stream: S,
    reading: Reading,
    /// The last frame of a message has not come.
    is_in_message: bool,
    writing: Frame,
    /// Of a control frame, what the socket has not taken.
    control: Vec<u8>,
    /// The control frame to send after that.
    next_control: Vec<u8>,
    /// Nothing may be sent behind our close frame.
    has_closed: bool,
}

/// What comes next from the client.
#[derive(Debug)]
enum Reading {
    /// The start of a header.
    Header { bytes: [u8; HEADER_BYTES_MAX], len: usize },
    /// MQTT.
    Payload { left: u64, mask: [u8; 4] },
    /// The start of a control frame's payload.
    Control { kind: Control, left: u64, mask: [u8; 4], payload: Vec<u8> },
    /// Nothing that counts.
    Closed,
}

const NO_HEADER: Reading = Reading::Header { bytes: [0; HEADER_BYTES_MAX], len: 0 };

/// What the socket has not taken of the frame that is being sent.
#[derive(Debug, Default)]
struct Frame {
    header: [u8; OWN_HEADER_BYTES_MAX],
    /// The part of `header` that is left.
    header_from: usize,
    header_to: usize,
    /// Bytes of the payload that are left.
    left: usize,
}

/// What the client did wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Violation {
    #[error("WebSocket frame of text; MQTT is binary")]
    Text,
    #[error("WebSocket frame that is not masked")]
    NotMasked,
    #[error("WebSocket frame of an extension, and none was agreed on")]
    Extension,
    #[error("WebSocket frame of an unknown type")]
    UnknownType,
    #[error("WebSocket control frame that is too long or in parts")]
    Control,
    #[error("WebSocket frame that does not go on with the message before it, or goes on with none")]
    Order,
}

impl Violation {
    fn code(self) -> CloseCode {
        match self {
            Self::Text => CloseCode::Unsupported,
            _ => CloseCode::Protocol,
        }
    }
}

impl<S> WebSocket<S> {
    /// On a stream on which the upgrade is complete.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            reading: NO_HEADER,
            is_in_message: false,
            writing: Frame::default(),
            control: Vec::new(),
            next_control: Vec::new(),
            has_closed: false,
        }
    }

    /// Takes headers and control frames out of `bytes` and unmasks the rest; returns how much is left at its
    /// start.
    fn unframe(&mut self, bytes: &mut [u8]) -> Result<usize, Violation> {
        let (mut from, mut kept) = (0, 0);
        while let Some(rest) = bytes.get_mut(from..).filter(|rest| !rest.is_empty()) {
            match &mut self.reading {
                Reading::Closed => break,
                Reading::Header { bytes: header, len } => {
                    if let (Some(to), Some(byte)) = (header.get_mut(*len), rest.first()) {
                        *to = *byte;
                    }
                    *len += 1;
                    from += 1;
                    if *len == header_len(header, *len) {
                        let header = *header;
                        self.begin_frame(&header)?;
                    }
                }
                Reading::Payload { left, mask } => {
                    let count = at_most(rest.len(), *left);
                    unmask(rest.get_mut(..count).unwrap_or_default(), mask);
                    *left -= count as u64;
                    if *left == 0 {
                        self.reading = NO_HEADER;
                    }
                    bytes.copy_within(from..from + count, kept);
                    from += count;
                    kept += count;
                }
                Reading::Control { kind, left, mask, payload } => {
                    let count = at_most(rest.len(), *left);
                    let part = rest.get_mut(..count).unwrap_or_default();
                    unmask(part, mask);
                    payload.extend_from_slice(part);
                    *left -= count as u64;
                    from += count;
                    if *left == 0 {
                        let (kind, payload) = (*kind, std::mem::take(payload));
                        self.reading = NO_HEADER;
                        self.handle_control(kind, &payload);
                    }
                }
            }
        }
        Ok(kept)
    }

    fn begin_frame(&mut self, header: &[u8]) -> Result<(), Violation> {
        let parsed = FrameHeader::parse(&mut Cursor::new(header));
        let Ok(Some((header, left))) = parsed else { return Err(Violation::UnknownType) };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(Violation::Extension);
        }
        let mask = header.mask.ok_or(Violation::NotMasked)?;
        match header.opcode {
            OpCode::Data(Data::Text) => return Err(Violation::Text),
            OpCode::Data(data @ (Data::Binary | Data::Continue)) => {
                if self.is_in_message != (data == Data::Continue) {
                    return Err(Violation::Order);
                }
                self.is_in_message = !header.is_final;
                self.reading = if left == 0 { NO_HEADER } else { Reading::Payload { left, mask } };
            }
            OpCode::Control(_) if !header.is_final || left > CONTROL_BYTES_MAX => {
                return Err(Violation::Control);
            }
            OpCode::Control(kind) if left > 0 => {
                self.reading = Reading::Control { kind, left, mask, payload: Vec::new() };
            }
            OpCode::Control(kind) => {
                self.reading = NO_HEADER;
                self.handle_control(kind, &[]);
            }
            OpCode::Data(Data::Reserved(_)) => return Err(Violation::UnknownType),
        }
        Ok(())
    }

    fn handle_control(&mut self, kind: Control, payload: &[u8]) {
        match kind {
            Control::Ping if !self.has_closed => self.send_control(Control::Pong, payload),
            Control::Close => {
                // With the code of the client, if it gave one.
                self.send_close(payload.get(..2).unwrap_or_default());
                self.reading = Reading::Closed;
            }
            _ => (),
        }
    }

    fn send_close(&mut self, code: &[u8]) {
        if !self.has_closed {
            self.send_control(Control::Close, code);
            self.has_closed = true;
        }
    }

    fn send_control(&mut self, kind: Control, payload: &[u8]) {
        self.next_control.clear();
        let header = FrameHeader { opcode: OpCode::Control(kind), ..FrameHeader::default() };
        // A vector takes everything.
        let _ = header.format(payload.len() as u64, &mut self.next_control);
        self.next_control.extend_from_slice(payload);
    }
}

impl<S: AsyncWrite + Unpin> WebSocket<S> {
    /// Sends the control frames that wait, unless a frame has begun: then they wait for its end.
    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.writing.has_begun() {
            return Poll::Ready(Ok(()));
        }
        loop {
            if self.control.is_empty() {
                self.control = std::mem::take(&mut self.next_control);
            }
            if self.control.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.control))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.control.drain(..count);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        while buf.remaining() > 0 && !matches!(this.reading, Reading::Closed) {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let received = buf.filled_mut().get_mut(before..).unwrap_or_default();
            if received.is_empty() {
                break;
            }
            let unframed = this.unframe(received);
            buf.set_filled(before + *unframed.as_ref().unwrap_or(&0));
            if let Err(violation) = unframed {
                this.reading = Reading::Closed;
                this.send_close(&u16::from(violation.code()).to_be_bytes());
            }
            // It is also tried before and after everything that is written.
            if let Poll::Ready(Err(error)) = this.poll_control(cx) {
                return Poll::Ready(Err(error));
            }
            if let Err(violation) = unframed {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
            }
            if buf.filled().len() > before {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if !this.writing.has_begun() {
            if this.has_closed {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            ready!(this.poll_control(cx))?;
            this.writing = Frame::new(buf.len().min(FRAME_BYTES_MAX));
        }
        loop {
            let Frame { header, header_from, header_to, left } = &mut this.writing;
            let payload = buf.get(..buf.len().min(*left)).unwrap_or_default();
            let header = header.get(*header_from..*header_to).unwrap_or_default();
            let parts = [IoSlice::new(header), IoSlice::new(payload)];
            let stream = Pin::new(&mut this.stream);
            let count = match header.is_empty() {
                true => ready!(stream.poll_write(cx, payload))?,
                false => ready!(stream.poll_write_vectored(cx, &parts))?,
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_header = count.min(header.len());
            *header_from += of_header;
            *left -= count - of_header;
            if count > of_header {
                return Poll::Ready(Ok(count - of_header));
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_control(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.send_close(&u16::from(CloseCode::Normal).to_be_bytes());
        ready!(this.poll_control(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

impl Frame {
    fn new(payload_len: usize) -> Self {
        let binary = FrameHeader { opcode: OpCode::Data(Data::Binary), ..FrameHeader::default() };
        let mut frame = Self { left: payload_len, ..Self::default() };
        let mut room = frame.header.as_mut_slice();
        // There is room for the longest.
        let _ = binary.format(payload_len as u64, &mut room);
        frame.header_to = OWN_HEADER_BYTES_MAX - room.len();
        frame
    }

    fn has_begun(&self) -> bool {
        self.left > 0
    }
}

/// How long a header is of which `len` bytes have come.
fn header_len(header: &[u8; HEADER_BYTES_MAX], len: usize) -> usize {
    let [_, second, ..] = *header;
    let length_len = match second & 0x7F {
        _ if len < 2 => return HEADER_BYTES_MAX,
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask_len = if second & 0x80 == 0 { 0 } else { 4 };
    2 + length_len + mask_len
}

fn at_most(len: usize, left: u64) -> usize {
    usize::try_from(left).map_or(len, |left| len.min(left))
}

/// Unmasks `bytes` and turns the mask to what comes behind them.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let [a, b, c, d] = *mask;
    let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let turned = bytes.len() % 4;
    let (words, rest) = bytes.as_chunks_mut();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.to_ne_bytes()) {
        *byte ^= key;
    }
    mask.rotate_left(turned);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const BINARY: u8 = 0x82;
    const MASK: [u8; 4] = [1, 2, 3, 4];

    #[tokio::test]
    async fn bytes_are_read_however_they_are_cut_into_frames_and_reads() {
        let sent: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        for frame_len in [1, 7, 125, 126, 65_535, 65_536, 100_000] {
            let frames: Vec<u8> =
                sent.chunks(frame_len).flat_map(|part| frame(BINARY, part)).collect();
            for read_len in [1, 3, 4096] {
                if read_len == 1 && frame_len != 126 {
                    continue;
                }
                let (mut client, mut socket) = pair();
                let frames = frames.clone();
                let writing = tokio::spawn(async move {
                    client.write_all(&frames).await.unwrap();
                    client
                });
                let mut received = Vec::new();
                let mut part = vec![0; read_len];
                while received.len() < sent.len() {
                    let count = socket.read(&mut part).await.unwrap();
                    assert!(count > 0);
                    received.extend_from_slice(&part[..count]);
                }
                assert!(received == sent, "frames of {frame_len}, reads of {read_len}");
                drop(writing.await.unwrap());
                assert_eq!(socket.read(&mut part).await.unwrap(), 0);
            }
        }
    }

    #[tokio::test]
    async fn message_in_parts_goes_on_around_a_ping_which_is_answered() {
        let (mut client, mut socket) = pair();
        let frames = [
            frame(0x02, b"a"),
            frame(0x89, b"still there?"),
            frame(0x00, b"bc"),
            frame(0x8A, b"unasked"),
            frame(0x80, b""),
            frame(BINARY, b"d"),
        ];
        client.write_all(&frames.concat()).await.unwrap();
        let mut received = [0; 4];
        socket.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"abcd");
        let mut pong = [0; 14];
        client.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8A\x0Cstill there?");
    }

    /// [MQTT-6.0.0-1]: 1003 for text; 1002 for what breaks the rules of WebSocket.
    #[tokio::test]
    async fn frame_that_may_not_come_ends_the_connection_with_its_code() {
        let wrong = [
            (frame(0x81, b"text"), 1003),
            (vec![BINARY, 1, 0], 1002),
            (frame(0xC2, b"x"), 1002),
            (frame(0x83, b"x"), 1002),
            (frame(0x8B, b"x"), 1002),
            (frame(0x09, b"ping"), 1002),
            (frame(0x89, &[0; 126]), 1002),
            (frame(0x80, b"goes on with nothing"), 1002),
            ([frame(0x02, b"a"), frame(BINARY, b"b")].concat(), 1002),
        ];
        for (frames, code) in wrong {
            let (mut client, mut socket) = pair();
            client.write_all(&frames).await.unwrap();
            let mut received = Vec::new();
            let error = socket.read_to_end(&mut received).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(socket.write_all(b"more").await.is_err());
            socket.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, close(code), "{error}");
        }
    }

    #[tokio::test]
    async fn close_of_the_client_is_answered_with_its_code_and_ends_the_stream() {
        for (payload, answer) in [(&b"\x03\xE8bye"[..], close(1000)), (b"", vec![0x88, 0])] {
            let (mut client, mut socket) = pair();
            client.write_all(&[frame(BINARY, b"x"), frame(0x88, payload)].concat()).await.unwrap();
            let mut received = Vec::new();
            socket.read_to_end(&mut received).await.unwrap();
            assert_eq!(received, b"x");
            socket.shutdown().await.unwrap();
            let mut answered = Vec::new();
            client.read_to_end(&mut answered).await.unwrap();
            assert_eq!(answered, answer);
        }
    }

    #[tokio::test]
    async fn bytes_are_written_in_binary_frames_through_a_pipe_that_takes_few_at_a_time() {
        let sent: Vec<u8> = (0..=255).cycle().take(150_000).collect();
        let (mut client, socket) = tokio::io::duplex(3);
        let mut socket = WebSocket::new(socket);
        let writing = tokio::spawn({
            let sent = sent.clone();
            async move {
                socket.write_all(&sent).await.unwrap();
                socket.shutdown().await.unwrap();
            }
        });
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        let mut expected = Vec::new();
        for part in sent.chunks(FRAME_BYTES_MAX) {
            expected.extend([BINARY, 127]);
            expected.extend((part.len() as u64).to_be_bytes());
            if part.len() < 65_536 {
                expected.truncate(expected.len() - 9);
                expected.push(126);
                expected.extend((part.len() as u16).to_be_bytes());
            }
            expected.extend(part);
        }
        expected.extend(close(1000));
        assert!(received == expected);
    }

    /// A client that sends pings and reads nothing.
    #[tokio::test]
    async fn answers_to_pings_do_not_pile_up() {
        let (mut client, socket) = tokio::io::duplex(8 * 1024);
        let mut socket = WebSocket::new(socket);
        let pings: Vec<u8> = (0..2000_u32).flat_map(|n| frame(0x89, &n.to_be_bytes())).collect();
        let writing = tokio::spawn(async move {
            client.write_all(&pings).await.unwrap();
            client.write_all(&frame(BINARY, b"x")).await.unwrap();
            client
        });
        assert_eq!(socket.read_u8().await.unwrap(), b'x');
        assert!(socket.control.len() + socket.next_control.len() <= 2 * 127);
        drop(writing.await.unwrap());
    }

    /// What of a stream is random must never be found to panic, and never be taken for more than it is.
    #[tokio::test]
    async fn arbitrary_bytes_never_panic() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let len = random.usize(0..200);
            let mut bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            // Half of them look like what a client may send.
            if random.bool() && len > 1 {
                bytes[0] = *random.choice(&[0x82_u8, 0x02, 0x89, 0x88, 0x80]).unwrap();
                bytes[1] |= 0x80;
            }
            let mut socket = WebSocket::new(());
            let cut = random.usize(0..=len);
            let (first, second) = bytes.split_at_mut(cut);
            for part in [first, second] {
                if let Ok(kept) = socket.unframe(part) {
                    assert!(kept <= part.len());
                }
            }
        }
    }

    fn pair() -> (DuplexStream, WebSocket<DuplexStream>) {
        let (client, socket) = tokio::io::duplex(1 << 20);
        (client, WebSocket::new(socket))
    }

    fn close(code: u16) -> Vec<u8> {
        [&[0x88, 2], code.to_be_bytes().as_slice()].concat()
    }

    /// A frame of a client.
    fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first_byte];
        match payload.len() {
            len @ 0..=125 => frame.push(0x80 | len as u8),
            len @ 126..=65_535 => {
                frame.push(0x80 | 126);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(0x80 | 127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        frame.extend(MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }
}
