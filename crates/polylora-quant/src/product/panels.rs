//! Products with many tokens: sixteen rows of weights are packed side by side, and each tile of
//! them by a few tokens stays in registers.
//!
//! A slab of a few panels is packed and multiplied with all tokens before the next: it stays in the
//! first cache, and so do a tile's tokens until all of these panels have met them.

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
struct Panel {
    codes: [[u8; QUAD * LANES]; SLAB / QUAD],
    scales: [[f32; LANES]; GROUPS],
    /// Minima with their sign turned.
    offsets: [[f32; LANES]; GROUPS],
}

/// Panels that are multiplied together: their slabs, of 6 KiB each, and a tile's tokens fit a first
/// cache of 32 KiB.
const TOGETHER: usize = 4;

/// What weights are packed in.
#[derive(Clone, Debug)]
pub(super) struct Panels {
    /// The rows of one before they are laid side by side.
    rows: [Codes; LANES],
    packed: [Panel; TOGETHER],
}

/// Sixteen sums.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Sums([f32; LANES]);

impl Panel {
    const ZERO: Panel = Panel {
        codes: [[0; QUAD * LANES]; SLAB / QUAD],
        scales: [[0.0; LANES]; GROUPS],
        offsets: [[0.0; LANES]; GROUPS],
    };
}

impl Panels {
    pub(super) const ZERO: Panels =
        Panels { rows: [Codes::ZERO; LANES], packed: [Panel::ZERO; TOGETHER] };
}

/// What a format must tell of itself to be multiplied in panels.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    /// Weights that share a scale.
    pub(crate) group: usize,
    /// The highest code after all are shifted to begin at zero.
    pub(crate) top: i32,
    /// Decodes the `n`th slab of up to sixteen rows, each of so many bytes.
    pub(crate) decode: fn(Isa, rows: &[u8], row_bytes: usize, n: usize, &mut [Codes; LANES]),
}

/// Fills in [`Rows`], for any number of tokens.
pub(super) fn multiply_panels(
    isa: Isa,
    layout: Layout,
    Rows { weights, x, tokens, out, stride, ahead }: Rows<'_>,
    panels: &mut Panels,
    sums: &mut Vec<Sums>,
) {
    let row_bytes = weights.len() / stride;
    let panel_bytes = LANES * row_bytes;
    let slabs = x.columns().div_ceil(SLAB);
    let mut ahead = Ahead::new(ahead, stride.div_ceil(TOGETHER * LANES) * slabs);
    let mut first = 0;
    for weights in weights.chunks(TOGETHER * panel_bytes) {
        let Panels { rows, packed } = panels;
        let packed = &mut packed[..weights.len().div_ceil(panel_bytes)];
        sums.clear();
        sums.resize(packed.len() * tokens.len(), Sums([0.0; LANES]));
        for n in 0..slabs {
            for (weights, panel) in weights.chunks(panel_bytes).zip(&mut *packed) {
                (layout.decode)(isa, weights, row_bytes, n, rows);
                isa.run(SideBySide { rows, panel });
            }
            isa.run(Tiles { layout, panels: packed, x, n, tokens, sums, ahead: &mut ahead });
        }
        for sums in sums.chunks_exact(tokens.len()) {
            let lanes = LANES.min(stride - first);
            for (sums, out) in sums.iter().zip(out.chunks_exact_mut(stride)) {
                let out = &mut out[first..first + lanes];
                match out.as_mut_array() {
                    Some(out) => *out = sums.0,
                    None => out.copy_from_slice(&sums.0[..lanes]),
                }
            }
            first += lanes;
        }
    }
}

/// See [`Layout::decode`].
pub(crate) fn decode_rows<F: Format>(
    isa: Isa,
    rows: &[u8],
    row_bytes: usize,
    n: usize,
    codes: &mut [Codes; LANES],
) {
    struct Of<'a, F: Format>(&'a [F::Block], usize, usize, &'a mut [Codes; LANES]);

    impl<F: Format> Kernel for Of<'_, F> {
        type Output = ();
        // It leaves codes as they are multiplied.
        const MULTIPLIES_BYTES: bool = true;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Of(weights, row_blocks, n, codes) = self;
            for (row, codes) in weights.chunks_exact(row_blocks).zip(codes) {
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

    isa.run(Of::<F>(blocks(rows), row_bytes / size_of::<F::Block>(), n, codes));
}

/// Packs decoded rows: rows to columns, of codes in fours, of scales and of minima.
struct SideBySide<'a> {
    rows: &'a [Codes; LANES],
    panel: &'a mut Panel,
}

impl Kernel for SideBySide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let SideBySide { rows: decoded, panel } = self;
        let zero = s.splat(0.0);
        let mut rows = [zero; LANES];
        for (c, columns) in panel.codes.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            for (row, codes) in rows.iter_mut().zip(decoded) {
                // Moved as if they were floats.
                let quads: &[u8; QUAD * LANES] = &codes.codes.as_bytes().as_chunks().0[c];
                *row = s.load(&transmute!(*quads));
            }
            for (column, quads) in s.transpose(rows).iter().zip(columns) {
                *quads = transmute!(column.to_array());
            }
        }
        for offsets in [false, true] {
            for (row, codes) in rows.iter_mut().zip(decoded) {
                *row = if offsets { zero - s.load(&codes.mins) } else { s.load(&codes.scales) };
            }
            let columns = if offsets { &mut panel.offsets } else { &mut panel.scales };
            for (column, out) in s.transpose(rows).iter().zip(columns) {
                *out = column.to_array();
            }
        }
    }
}

/// Adds to `sums`, `(panels, tokens)`, the products of packed panels with the `n`th slab of all tokens.
struct Tiles<'a, 'b> {
    layout: Layout,
    panels: &'a [Panel],
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
        let count = self.tokens.len();
        let columns = (self.x.columns() - self.n * SLAB).min(SLAB);
        let shape = Shape {
            groups: columns / WIDTH,
            quads: self.layout.group.min(WIDTH) / QUAD,
            span: span(self.layout.top),
        };
        let most = S::tile_tokens(shape.span);
        let paired = if S::PAIRS { self.panels.len() / 2 * 2 } else { 0 };
        let (pairs, single) = self.panels.split_at(paired);
        let (pairs, _) = pairs.as_chunks::<2>();
        let (of_pairs, of_single) = self.sums.split_at_mut(paired * count);
        let mut first = 0;
        macro_rules! tiles {
            ($($t:literal)*) => {$(
                if $t <= S::TILE && $t <= most {
                    for tokens in self.tokens[first..].as_chunks::<$t>().0 {
                        let mut x = [&self.x.token(tokens[0])[self.n]; $t];
                        for (x, &token) in x.iter_mut().zip(tokens) {
                            *x = &self.x.token(token)[self.n];
                        }
                        for (panels, sums) in pairs.iter().zip(of_pairs.chunks_exact_mut(2 * count)) {
                            let (one, other) = sums.split_at_mut(count);
                            let sums = [&mut one[first..], &mut other[first..]];
                            tile::<S, 2, $t, WIDTH, SIGNED>(s, panels, x, &shape, sums);
                        }
                        for (panel, sums) in single.iter().zip(of_single.chunks_exact_mut(count)) {
                            let panel = std::slice::from_ref(panel).as_array().expect("is one");
                            let sums = [&mut sums[first..]];
                            tile::<S, 1, $t, WIDTH, SIGNED>(s, panel, x, &shape, sums);
                        }
                        first += $t;
                    }
                }
            )*};
        }
        tiles! { 8 6 4 2 1 }
        debug_assert_eq!(first, count);
    }
}

struct Shape {
    /// Groups in this slab, of `WIDTH` columns.
    groups: usize,
    /// `WIDTH / QUAD`, but unknown to the compiler: see [`Simd::tile`].
    quads: usize,
    span: usize,
}

/// One tile: `P` panels by `T` tokens, over a slab in groups of `WIDTH` columns.
#[inline(always)]
fn tile<S: Simd, const P: usize, const T: usize, const WIDTH: usize, const SIGNED: bool>(
    s: S,
    panels: &[Panel; P],
    x: [&Slab; T],
    shape: &Shape,
    sums: [&mut [Sums]; P],
) {
    let mut totals = [[s.splat(0.0); T]; P];
    for p in 0..P {
        for t in 0..T {
            totals[p][t] = s.load(&sums[p][t].0);
        }
    }
    let quads = shape.quads.min(WIDTH / QUAD);
    for g in 0..shape.groups.min(SLAB / WIDTH) {
        let first = g * WIDTH / QUAD;
        let mut weights: [&[[u8; QUAD * LANES]]; P] = [&[]; P];
        for p in 0..P {
            weights[p] = &panels[p].codes[first..][..quads];
        }
        let mut codes: [&[[i8; QUAD]]; T] = [&[]; T];
        for t in 0..T {
            codes[t] = &x[t].codes.as_chunks::<QUAD>().0[first..][..quads];
        }
        let products = s.tile::<P, T, SIGNED>(weights, codes, shape.span);
        let first = g * WIDTH / GROUP;
        for p in 0..P {
            let (scales, offsets) =
                (s.load(&panels[p].scales[first]), s.load(&panels[p].offsets[first]));
            for t in 0..T {
                let scale = s.splat(x[t].scales[g * WIDTH / ACTIVATION_GROUP]);
                let sum = if WIDTH == GROUP { x[t].sums[g] } else { x[t].sums_of_two[g % 8] };
                let total = (products[p][t] * scales).mul_add(scale, totals[p][t]);
                totals[p][t] = offsets.mul_add(s.splat(sum), total);
            }
        }
    }
    for p in 0..P {
        for t in 0..T {
            sums[p][t].0 = totals[p][t].to_array();
        }
    }
}
