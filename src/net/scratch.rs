//! Buffers that belong to the worker thread, not to the connection. Floor 5.
//!
//! A connection borrows them for one poll and leaves them empty, so an idle connection owns none.

use std::cell::Cell;

use crate::router::Router;
use crate::session::{OUTPUT_BYTES_MAX, Output};

/// Most bytes that one read takes.
pub(super) const READ_BYTES_MAX: usize = 64 * 1024;

/// See the module comment.
pub(super) struct Scratch {
    /// Empty, with room for [`READ_BYTES_MAX`].
    pub(super) read: Vec<u8>,
    /// Empty.
    pub(super) out: Output,
    /// Which router the output's collector fits.
    router: u64,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl Scratch {
    /// The buffers of this thread; give them back before the poll ends.
    pub(super) fn take(router: &Router) -> Box<Self> {
        let own = SCRATCH.take().filter(|scratch| scratch.router == router.run_id());
        own.unwrap_or_else(|| {
            Box::new(Self {
                read: Vec::with_capacity(READ_BYTES_MAX),
                out: Output::new(router.collector()),
                router: router.run_id(),
            })
        })
    }

    /// Empties the buffers for the next connection.
    pub(super) fn give_back(mut self: Box<Self>) {
        self.read.clear();
        self.out.bytes.clear();
        // One large message must not stay behind in every worker.
        self.out.bytes.shrink_to(2 * OUTPUT_BYTES_MAX);
        SCRATCH.set(Some(self));
    }
}
