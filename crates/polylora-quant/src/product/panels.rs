//! Products with many tokens: sixteen rows of weights are packed side by side, and each tile of
//! them by a few tokens stays in registers.
//!
//! A slab of sixteen rows is packed and multiplied with all tokens before the next: it stays in
//! the first cache.

use super::activations::{ACTIVATION_GROUP, Activations, Slab};
use super::ahead::Ahead;
use super::rows::Rows;
use super::slab::{self, GROUP, GROUPS, SLAB};
use crate::format::{Codes, Format};
use crate::isa::{Isa, Kernel, LANES, Lanes, Simd, span};
use crate::row::blocks;
use zerocopy::{IntoBytes, transmute};

/// Four codes of one row lie together.
const QUAD: usize = 4;

/// A slab of sixteen rows.
#[derive(Clone, Debug)]
#[repr(align(64))] // Read a register at a time.
pub(crate) struct Panel {
    codes: [[u8; QUAD * LANES]; SLAB / QUAD],
    scales: [[f32; LANES]; GROUPS],
    /// Minima with their sign turned.
    offsets: [[f32; LANES]; GROUPS],
    /// The rows before they are laid side by side.
    rows: [Codes; LANES],
}

/// Sixteen sums.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Sums([f32; LANES]);

impl Panel {
    pub(super) const ZERO: Panel = Panel {
        codes: [[0; QUAD * LANES]; SLAB / QUAD],
        scales: [[0.0; LANES]; GROUPS],
        offsets: [[0.0; LANES]; GROUPS],
        rows: [Codes::ZERO; LANES],
    };

    /// All codes before they are laid side by side.
    #[cfg(test)]
    pub(super) fn decoded(&self) -> impl Iterator<Item = u8> {
        self.rows.iter().flat_map(|row| row.codes).map(|code| code as u8)
    }
}

/// What a format must tell of itself to be multiplied in panels.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    /// Weights that share a scale.
    pub(crate) group: usize,
    /// The highest code after all are shifted to begin at zero.
    pub(crate) top: i32,
    /// Decodes the `n`th slab of up to sixteen rows, each of so many bytes.
    pub(crate) decode: fn(Isa, rows: &[u8], row_bytes: usize, n: usize, &mut Panel),
}

/// Fills in [`Rows`], for any number of tokens.
pub(super) fn multiply_panels(
    isa: Isa,
    layout: Layout,
    Rows { weights, x, tokens, out, stride, ahead }: Rows<'_>,
    panel: &mut Panel,
    sums: &mut Vec<Sums>,
) {
    let row_bytes = weights.len() / stride;
    let steps = stride.div_ceil(LANES) * x.columns().div_ceil(SLAB);
    let mut ahead = Ahead::new(ahead, steps);
    for (p, weights) in weights.chunks(LANES * row_bytes).enumerate() {
        sums.clear();
        sums.resize(tokens.len(), Sums([0.0; LANES]));
        for n in 0..x.columns().div_ceil(SLAB) {
            (layout.decode)(isa, weights, row_bytes, n, panel);
            isa.run(Tiles { layout, panel, x, n, tokens, sums, ahead: &mut ahead });
        }
        let lanes = weights.len() / row_bytes;
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(stride)) {
            out[p * LANES..][..lanes].copy_from_slice(&sums.0[..lanes]);
        }
    }
}

/// See [`Layout::decode`].
pub(crate) fn decode_rows<F: Format>(
    isa: Isa,
    rows: &[u8],
    row_bytes: usize,
    n: usize,
    panel: &mut Panel,
) {
    struct Of<'a, F: Format>(&'a [F::Block], usize, usize, &'a mut Panel);

    impl<F: Format> Kernel for Of<'_, F> {
        type Output = ();
        // It leaves codes as they are multiplied.
        const MULTIPLIES_BYTES: bool = true;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Of(weights, row_blocks, n, panel) = self;
            for (row, codes) in weights.chunks_exact(row_blocks).zip(&mut panel.rows) {
                let from = n * (SLAB / F::WEIGHTS);
                let to = row.len().min(from + SLAB / F::WEIGHTS);
                let blocks = &row[from..to];
                let bytes = blocks.as_bytes();
                for line in (0..bytes.len()).step_by(64) {
                    // The same place in the next sixteen rows.
                    s.prefetch(bytes, LANES * row_blocks * size_of::<F::Block>() + line);
                }
                slab::decode::<S, F>(s, blocks, codes);
            }
        }
    }

    isa.run(Of::<F>(blocks(rows), row_bytes / size_of::<F::Block>(), n, panel));
}

/// Rows to columns, of codes in fours, of scales and of minima.
#[inline(always)]
fn side_by_side<S: Simd>(s: S, panel: &mut Panel) {
    let zero = s.splat(0.0);
    let mut rows = [zero; LANES];
    for (c, columns) in panel.codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for (row, codes) in rows.iter_mut().zip(&panel.rows) {
            // Moved as if they were floats.
            let quads: &[u8; QUAD * LANES] = &codes.codes.as_bytes().as_chunks().0[c];
            *row = s.load(&transmute!(*quads));
        }
        for (column, quads) in s.transpose(rows).iter().zip(columns) {
            *quads = transmute!(column.to_array());
        }
    }
    for offsets in [false, true] {
        for (row, codes) in rows.iter_mut().zip(&panel.rows) {
            *row = if offsets { zero - s.load(&codes.mins) } else { s.load(&codes.scales) };
        }
        let columns = if offsets { &mut panel.offsets } else { &mut panel.scales };
        for (column, out) in s.transpose(rows).iter().zip(columns) {
            *out = column.to_array();
        }
    }
}

/// Packs a panel of decoded rows, and adds to `sums` its products with the `n`th slab of all
/// tokens.
struct Tiles<'a, 'b> {
    layout: Layout,
    panel: &'a mut Panel,
    x: &'a Activations,
    n: usize,
    tokens: &'a [u32],
    sums: &'a mut [Sums],
    ahead: &'a mut Ahead<'b>,
}

impl Kernel for Tiles<'_, '_> {
    type Output = ();
    const MULTIPLIES_BYTES: bool = true;

    /// The same code for all formats, but for the width of groups and of codes.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.ahead.step(s);
        side_by_side(s, self.panel);
        match (self.layout.group, self.layout.top > S::TOP_CODE) {
            (GROUP, false) => self.all::<S, GROUP, false>(s),
            (GROUP, true) => self.all::<S, GROUP, true>(s),
            (_, false) => self.all::<S, ACTIVATION_GROUP, false>(s),
            (_, true) => self.all::<S, ACTIVATION_GROUP, true>(s),
        }
    }
}

impl Tiles<'_, '_> {
    #[inline(always)]
    fn all<S: Simd, const WIDTH: usize, const SIGNED: bool>(self, s: S) {
        let (mut tokens, mut sums) = (self.tokens, &mut *self.sums);
        let columns = (self.x.columns() - self.n * SLAB).min(SLAB);
        let shape = Shape {
            groups: columns / WIDTH,
            quads: self.layout.group.min(WIDTH) / QUAD,
            span: span(self.layout.top),
        };
        let most = S::tile_tokens(shape.span);
        macro_rules! tiles {
            ($($t:literal)*) => {$(
                if $t <= S::TILE && $t <= most {
                    let (whole, rest) = tokens.as_chunks::<$t>();
                    let (of_whole, of_rest) = sums.as_chunks_mut::<$t>();
                    for (tokens, sums) in whole.iter().zip(of_whole) {
                        let mut x = [&self.x.token(tokens[0])[self.n]; $t];
                        for (x, &token) in x.iter_mut().zip(tokens) {
                            *x = &self.x.token(token)[self.n];
                        }
                        tile::<S, $t, WIDTH, SIGNED>(s, self.panel, x, &shape, sums);
                    }
                    (tokens, sums) = (rest, of_rest);
                }
            )*};
        }
        tiles! { 8 6 4 2 1 }
        debug_assert!(tokens.is_empty() && sums.is_empty());
    }
}

struct Shape {
    /// Groups in this slab, of `WIDTH` columns.
    groups: usize,
    /// `WIDTH / QUAD`, but unknown to the compiler: see [`Simd::tile`].
    quads: usize,
    span: usize,
}

/// One tile: sixteen rows by `T` tokens, over a slab in groups of `WIDTH` columns.
#[inline(always)]
fn tile<S: Simd, const T: usize, const WIDTH: usize, const SIGNED: bool>(
    s: S,
    panel: &Panel,
    x: [&Slab; T],
    shape: &Shape,
    sums: &mut [Sums; T],
) {
    let mut totals = [s.splat(0.0); T];
    for t in 0..T {
        totals[t] = s.load(&sums[t].0);
    }
    let quads = shape.quads.min(WIDTH / QUAD);
    for g in 0..shape.groups.min(SLAB / WIDTH) {
        let first = g * WIDTH / QUAD;
        let mut codes: [&[[i8; QUAD]]; T] = [&[]; T];
        for t in 0..T {
            codes[t] = &x[t].codes.as_chunks::<QUAD>().0[first..][..quads];
        }
        let products = s.tile::<T, SIGNED>(&panel.codes[first..][..quads], codes, shape.span);
        let first = g * WIDTH / GROUP;
        let (scales, offsets) = (s.load(&panel.scales[first]), s.load(&panel.offsets[first]));
        for t in 0..T {
            let scale = s.splat(x[t].scales[g * WIDTH / ACTIVATION_GROUP]);
            let sum = if WIDTH == GROUP { x[t].sums[g] } else { x[t].sums_of_two[g % 8] };
            totals[t] = (products[t] * scales).mul_add(scale, totals[t]);
            totals[t] = offsets.mul_add(s.splat(sum), totals[t]);
        }
    }
    for t in 0..T {
        sums[t].0 = totals[t].to_array();
    }
}
