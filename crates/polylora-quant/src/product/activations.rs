//! A batch of tokens, rounded to eight bits.

use super::slab::{GROUP, GROUPS, SLAB};
use crate::isa::{Isa, Kernel, LANES, Lanes, Simd};

/// Values of a token that share a scale.
pub const ACTIVATION_GROUP: usize = 32;

/// A batch of tokens' activations, as [`super::multiply`] reads them: codes of eight bits, and one
/// scale for every [`ACTIVATION_GROUP`] of them.
#[derive(Debug, Default)]
pub struct Activations {
    tokens: usize,
    columns: usize,
    slabs: Vec<Slab>, // [tokens][columns / SLAB, rounded up]
}

/// What meets a slab of weights. What a token has no value for is zero.
#[derive(Clone, Debug)]
#[repr(align(64))] // The codes are read a register at a time.
pub(super) struct Slab {
    pub(super) codes: [i8; SLAB],
    pub(super) scales: [f32; SLAB / ACTIVATION_GROUP],
    /// `scale * (sum of the codes)` of each group of weights: what their minimum multiplies.
    pub(super) sums: [f32; GROUPS],
    /// The sums of two groups.
    pub(super) sums_of_two: [f32; GROUPS / 2],
}

impl Slab {
    const ZERO: Slab = Slab {
        codes: [0; SLAB],
        scales: [0.0; SLAB / ACTIVATION_GROUP],
        sums: [0.0; GROUPS],
        sums_of_two: [0.0; GROUPS / 2],
    };
}

impl Activations {
    /// Room for `tokens` tokens of `columns` values each; what it held is gone.
    pub fn reset(&mut self, tokens: usize, columns: usize) {
        self.tokens = tokens;
        self.columns = columns;
        self.slabs.resize(tokens * columns.div_ceil(SLAB), Slab::ZERO);
    }

    /// How many tokens it holds.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Values in a token.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One for each token, in order, to be filled; on several threads if need be.
    pub fn tokens_mut(&mut self) -> impl Iterator<Item = ActivationMut<'_>> {
        let columns = self.columns;
        let slabs = self.slabs.chunks_exact_mut(columns.div_ceil(SLAB).max(1));
        slabs.map(move |slabs| ActivationMut { columns, slabs })
    }

    /// The slabs of one token.
    #[inline(always)]
    pub(super) fn token(&self, token: u32) -> &[Slab] {
        let slabs = self.columns.div_ceil(SLAB);
        &self.slabs[token as usize * slabs..][..slabs]
    }
}

/// The place of one token in [`Activations`].
#[derive(Debug)]
pub struct ActivationMut<'a> {
    columns: usize,
    slabs: &'a mut [Slab],
}

impl ActivationMut<'_> {
    /// Rounds a token's `values` to eight bits: the greatest magnitude of every
    /// [`ACTIVATION_GROUP`] becomes 127. An infinite value makes its group's products NaN; NaN
    /// counts as zero.
    ///
    /// # Panics
    /// Where `values` are not as many as the columns.
    pub fn quantize(&mut self, isa: Isa, values: &[f32]) {
        struct Quantize<'a>(&'a [f32], &'a mut [Slab]);

        impl Kernel for Quantize<'_> {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                for (values, slab) in self.0.chunks(SLAB).zip(self.1) {
                    match values.as_array() {
                        Some(values) => quantize(s, values, slab),
                        None => {
                            let mut padded = [0.0; SLAB];
                            padded[..values.len()].copy_from_slice(values);
                            quantize(s, &padded, slab);
                        }
                    }
                }
            }
        }

        assert_eq!(values.len(), self.columns, "a token has one value for each column");
        isa.run(Quantize(values, self.slabs));
    }
}

#[inline(always)]
fn quantize<S: Simd>(s: S, values: &[f32; SLAB], slab: &mut Slab) {
    let groups = values.as_chunks::<ACTIVATION_GROUP>().0.iter();
    let codes = slab.codes.as_chunks_mut::<ACTIVATION_GROUP>().0;
    for (g, (values, codes)) in groups.zip(codes).enumerate() {
        let (halves, _) = values.as_chunks::<LANES>();
        let (low, high) = (s.load(&halves[0]), s.load(&halves[1]));
        let scale = low.abs().max(high.abs().max(s.splat(0.0))).largest() / 127.0;
        let inverse = s.splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
        // A subnormal scale has an infinite inverse.
        let (lowest, highest) = (s.splat(-127.0), s.splat(127.0));
        let low = s.nearest_int((low * inverse).max(lowest).min(highest));
        let high = s.nearest_int((high * inverse).max(lowest).min(highest));

        slab.scales[g] = scale;
        slab.sums[2 * g] = scale * low.sum();
        slab.sums[2 * g + 1] = scale * high.sum();
        slab.sums_of_two[g] = slab.sums[2 * g] + slab.sums[2 * g + 1];
        let (codes, _) = codes.as_chunks_mut::<GROUP>();
        codes[0] = low.to_bytes().map(|code| code as i8);
        codes[1] = high.to_bytes().map(|code| code as i8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(isa: Isa, values: &[f32]) -> Activations {
        let mut x = Activations::default();
        x.reset(1, values.len());
        x.tokens_mut().for_each(|mut token| token.quantize(isa, values));
        x
    }

    #[test]
    fn codes_times_scale_are_the_values() {
        for isa in Isa::available() {
            for columns in [1, 31, 32, 33, 256, 300, 576] {
                let values: Vec<f32> =
                    (0..columns).map(|i| (i as f32 * 0.7).sin() * (i / 32 + 1) as f32).collect();
                let x = quantized(isa, &values);
                for (k, value) in values.iter().enumerate() {
                    let slab = &x.token(0)[k / SLAB];
                    let scale = slab.scales[k % SLAB / ACTIVATION_GROUP];
                    let code = slab.codes[k % SLAB];
                    let error = (value - scale * f32::from(code)).abs();
                    assert!(error <= scale * 0.5001, "{}: value {k} of {columns}", isa.name());
                }
                for slab in x.token(0) {
                    for (g, sum) in slab.sums.iter().enumerate() {
                        let codes = &slab.codes[g * GROUP..][..GROUP];
                        let codes: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                        assert_eq!(*sum, slab.scales[g / 2] * codes as f32);
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_held_before_is_gone() {
        let isa = Isa::best();
        let mut x = quantized(isa, &[1.0; 256]);
        x.reset(1, 40);
        x.tokens_mut().for_each(|mut token| token.quantize(isa, &[2.0; 40]));
        assert_eq!(x.token(0)[0].codes[39..42], [127, 0, 0]);
        assert_eq!(x.token(0)[0].scales[2..], [0.0; 6]);
    }

    #[test]
    fn awkward_values_do_not_overflow_a_code() {
        let values = [f32::MAX, f32::INFINITY, f32::NAN, 1e-45, -1e-40, f32::MIN_POSITIVE, 0.0];
        for isa in Isa::available() {
            for value in values {
                let mut group = [0.0; 32];
                (group[0], group[17]) = (value, -value);
                let x = quantized(isa, &group);
                assert!(x.token(0)[0].codes.iter().all(|&code| code != i8::MIN), "{value}");
            }
        }
    }
}
