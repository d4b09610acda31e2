//! What waits to be written to the client, because the stream has not taken it or because the log does not have what it
//! tells of. Floor 5, part of `net::connection`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use crate::ids::LogPosition;
use crate::net::gates::Gates;

/// See the module comment. Its length is bounded by whoever stops to read.
#[derive(Debug)]
pub(super) struct Unsent {
    bytes: Vec<u8>,
    /// What is before has been written.
    from: usize,
    /// What may not be written yet.
    gates: Gates,
}

impl Unsent {
    /// These are to be written first.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, from: 0, gates: Gates::default() }
    }

    /// How many bytes wait.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.from
    }

    /// Whether none does.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Nothing at all is written before what was appended to the log at `at` is safe.
    pub(super) fn hold(&mut self, at: LogPosition) {
        self.gates.put(at, self.from);
    }

    /// The same for what is still to come.
    pub(super) fn hold_the_rest(&mut self, at: LogPosition) {
        self.gates.put(at, self.bytes.len());
    }

    /// What is `is_safe` holds nothing any more.
    pub(super) fn release(&mut self, is_safe: impl Fn(LogPosition) -> bool) {
        self.gates.open(is_safe);
    }

    /// These come behind what waits; `bytes` is empty then.
    pub(super) fn append(&mut self, bytes: &mut Vec<u8>) {
        self.bytes.append(bytes);
    }

    /// Takes all, held or not.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let bytes = self.bytes.split_off(self.from);
        self.bytes = Vec::new();
        self.from = 0;
        bytes
    }

    /// Writes what waits and then `bytes`, which are empty then; keeps what the stream does not take. Returns how many bytes
    /// it took.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        bytes: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let mut written = 0;
        if !self.is_empty() || !self.gates.are_open() {
            self.bytes.append(bytes);
            let end = self.gates.end(self.bytes.len());
            written = write_some(stream, cx, self.bytes.get(self.from..end).unwrap_or_default())?;
            self.from += written;
            if self.is_empty() {
                self.bytes = Vec::new();
                self.forget_written();
            } else if self.from > self.bytes.len() / 2 {
                self.bytes.drain(..self.from);
                self.forget_written();
            }
        } else if !bytes.is_empty() {
            written = write_some(stream, cx, bytes)?;
            self.bytes.extend_from_slice(bytes.get(written..).unwrap_or_default());
            bytes.clear();
        }
        Ok(written)
    }

    fn forget_written(&mut self) {
        self.gates.forget(self.from);
        self.from = 0;
    }
}

/// Writes until everything is written or the stream takes no more; returns how much it took.
fn write_some<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> io::Result<usize> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match Pin::new(&mut *stream).poll_write(cx, rest) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(count)) => written += count,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => break,
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncReadExt;

    use super::*;

    /// What a client has read after each write, whose pipe holds four bytes.
    async fn read(client: &mut tokio::io::DuplexStream) -> String {
        let mut bytes = [0; 4];
        let count = client.read(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn bytes_go_out_in_their_order_as_far_as_the_stream_takes_them_and_the_log_allows() {
        let (mut stream, mut client) = tokio::io::duplex(4);
        let mut cx = Context::from_waker(Waker::noop());
        let mut unsent = Unsent::new(b"ab".to_vec());
        unsent.hold(LogPosition(1));
        let mut write = |unsent: &mut Unsent, text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            let written = unsent.poll_write(&mut stream, &mut cx, &mut bytes).unwrap();
            assert!(bytes.is_empty());
            (written, unsent.len())
        };
        assert_eq!(write(&mut unsent, "cd"), (0, 4), "held");
        unsent.hold_the_rest(LogPosition(2));
        unsent.release(|at| at == LogPosition(1));
        assert_eq!(write(&mut unsent, "efghij"), (4, 6));
        assert_eq!(read(&mut client).await, "abcd");
        assert_eq!(write(&mut unsent, ""), (0, 6), "held");
        unsent.release(|_| true);
        assert_eq!(write(&mut unsent, "k"), (4, 3), "as much as the pipe takes");
        assert_eq!(read(&mut client).await, "efgh");
        assert_eq!(write(&mut unsent, ""), (3, 0));
        assert_eq!(read(&mut client).await, "ijk");
        assert_eq!(write(&mut unsent, "lmnopq"), (4, 2));
        assert_eq!((unsent.take(), unsent.is_empty()), (b"pq".to_vec(), true));
    }
}
