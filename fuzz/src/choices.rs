//! Bytes as a list of decisions: small changes of the bytes are small changes of what happens.
//!
//! Bytes that are not there are zero, so every input means something, and the shortest one means
//! the simplest.

/// See the module comment.
#[derive(Clone, Debug)]
pub(crate) struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    /// Starts at the first byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether all bytes are used.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte as it is.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *byte
    }

    /// Any number of two bytes.
    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Any number of four bytes.
    pub(crate) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    /// A number below `bound`, from one byte where that is enough, else from two.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let raw = if bound <= 256 { usize::from(self.byte()) } else { usize::from(self.u16()) };
        raw % bound.max(1)
    }

    /// True in about one of two cases.
    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// True in about one of `cases` cases, and never when the bytes are used up.
    pub(crate) fn one_in(&mut self, cases: u8) -> bool {
        let byte = self.byte();
        byte != 0 && byte.is_multiple_of(cases)
    }

    /// One of `list`.
    pub(crate) fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// The next bytes, at most `len`.
    pub(crate) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    /// All bytes that are left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.bytes(self.rest.len())
    }
}
