//! The bounded channels to the shards, as one connection sees them. Floor 4.
//!
//! # Invariants
//!
//! - What one connection sends to one shard arrives in the order of sending, because a full channel
//!   holds back everything behind it.
//! - A connection whose backlog is not empty takes no more packets and does not read from its socket:
//!   TCP pushes back on the publisher. The backlog is therefore bounded by what one flush can bring.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::router::shard::{Command, ShardHandle};

/// See the module comment.
pub struct Links {
    shards: std::sync::Arc<[ShardHandle]>,
    backlog: VecDeque<(usize, Command)>,
    waiting: Option<Waiting>,
}

type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Links {
    /// Nothing waits.
    pub(super) fn new(shards: std::sync::Arc<[ShardHandle]>) -> Self {
        Self { shards, backlog: VecDeque::new(), waiting: None }
    }

    /// Sends `command`, now if there is room and nothing waits before it.
    pub fn send(&mut self, shard: usize, command: Command) {
        if self.are_full() {
            self.backlog.push_back((shard, command));
            return;
        }
        if let Some(handle) = self.shards.get(shard)
            && let Err(command) = handle.try_send(command)
        {
            self.backlog.push_back((shard, command));
        }
    }

    /// Whether something waits for room.
    pub fn are_full(&self) -> bool {
        self.waiting.is_some() || !self.backlog.is_empty()
    }

    /// Ready when everything has been sent.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                std::task::ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            let Some((shard, command)) = self.backlog.pop_front() else { return Poll::Ready(()) };
            if let Some(handle) = self.shards.get(shard)
                && let Err(command) = handle.try_send(command)
            {
                let handle = handle.clone();
                self.waiting = Some(Box::pin(async move { handle.send(command).await }));
            }
        }
    }
}
