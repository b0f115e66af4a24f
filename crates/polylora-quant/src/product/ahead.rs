//! What is needed later, asked for from memory while something else is computed.

use crate::isa::Simd;

/// Bytes that come from memory together.
const CACHE_LINE: usize = 64;

/// How far ahead of what is read: a page, at whose end the CPU's own prefetching stops.
const AHEAD: usize = 4096;

/// Asks for the bytes that come some time after these.
#[inline(always)]
pub(super) fn ask_ahead<S: Simd>(s: S, bytes: &[u8]) {
    for line in (0..bytes.len()).step_by(CACHE_LINE) {
        s.prefetch(bytes, AHEAD + line);
    }
}

/// Bytes that are asked for from memory a few lines at a time: all at once would wait for each
/// other, and the product for them.
pub(super) struct Ahead<'a> {
    rest: &'a [&'a [u8]],
    /// Where in the first of `rest`.
    at: usize,
    lines_per_step: usize,
}

impl<'a> Ahead<'a> {
    /// All of `slices` in so many steps.
    pub(super) fn new(slices: &'a [&'a [u8]], steps: usize) -> Ahead<'a> {
        let lines: usize = slices.iter().map(|bytes| bytes.len().div_ceil(CACHE_LINE)).sum();
        Ahead { rest: slices, at: 0, lines_per_step: lines.div_ceil(steps.max(1)) }
    }

    /// Asks for the next few.
    #[inline(always)]
    pub(super) fn step<S: Simd>(&mut self, s: S) {
        for _ in 0..self.lines_per_step {
            let Some((bytes, rest)) = self.rest.split_first() else { return };
            s.prefetch(bytes, self.at);
            self.at += CACHE_LINE;
            if self.at >= bytes.len() {
                (self.rest, self.at) = (rest, 0);
            }
        }
    }
}
