//! A connection without a network: what the peer has sent comes in pieces, what is written is taken in pieces, and
//! now and then there is nothing yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See the module comment.
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    /// What has not been read; the connection ends behind it.
    pub(crate) input: &'a [u8],
    /// What was written.
    pub(crate) output: Vec<u8>,
    /// Sizes of pieces, over and over; zero is nothing yet.
    plan: &'a [u8],
    at: usize,
}

impl<'a> Pieces<'a> {
    /// An empty `plan` takes all there is.
    pub(crate) fn new(input: &'a [u8], plan: &'a [u8]) -> Self {
        Self { input, output: Vec::new(), plan, at: 0 }
    }

    /// The size of the next piece; two times nothing in a row there is not.
    fn next_size(&mut self) -> usize {
        let previous = self.plan.get(self.at.wrapping_sub(1)).copied();
        let Some(size) = self.plan.get(self.at).copied() else {
            self.at = 0;
            return self.plan.first().map_or(usize::MAX, |size| usize::from(*size).max(1));
        };
        self.at += 1;
        if previous == Some(0) { usize::from(size).max(1) } else { size.into() }
    }

    fn poll_size(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        match self.next_size() {
            0 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            size => Poll::Ready(size),
        }
    }
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_size(cx).map(|size| {
            let (now, rest) = self.input.split_at(size.min(self.input.len()).min(buf.remaining()));
            buf.put_slice(now);
            self.input = rest;
            Ok(())
        })
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_size(cx).map(|size| {
            let size = size.min(bytes.len());
            self.output.extend_from_slice(&bytes[..size]);
            Ok(size)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Polls until it is ready.
pub(crate) fn finish<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    loop {
        if let Poll::Ready(value) = poll(&mut cx) {
            return value;
        }
    }
}
