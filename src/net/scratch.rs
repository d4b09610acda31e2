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

/// Calls `use_it` with the scratch buffers of this thread.
pub(super) fn with_scratch<R>(router: &Router, use_it: impl FnOnce(&mut Scratch) -> R) -> R {
    let own = SCRATCH.take().filter(|scratch| scratch.router == router.run_id());
    let mut scratch = own.unwrap_or_else(|| {
        Box::new(Scratch {
            read: Vec::with_capacity(READ_BYTES_MAX),
            out: Output::new(router.collector()),
            router: router.run_id(),
        })
    });
    let result = use_it(&mut scratch);
    scratch.read.clear();
    scratch.out.bytes.clear();
    // One large message must not stay behind in every worker.
    scratch.out.bytes.shrink_to(2 * OUTPUT_BYTES_MAX);
    SCRATCH.set(Some(scratch));
    result
}
