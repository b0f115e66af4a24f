//! What survives: the change that a merge meant against the one that the written type holds.

use polylora_quant::isa::{Isa, Kernel, LANES, Lanes, Simd};
use std::ops::AddAssign;

/// Sums over weights, from which all figures of a tensor follow. With `w` the base's weight,
/// `d` the intended change and `r` the realised one (what the written bytes decode to, less `w`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sums {
    /// Sum of w².
    pub(crate) weight: f64,
    /// Sum of d².
    pub(crate) intended: f64,
    /// Sum of r².
    pub(crate) realised: f64,
    /// Sum of d * r.
    pub(crate) product: f64,
    /// Sum of (r - d)².
    pub(crate) error: f64,
    /// How many weights were summed.
    pub(crate) weights: u64,
    /// How many codes differ from the base's; 0 where the type changed.
    pub(crate) changed_codes: u64,
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.weight += other.weight;
        self.intended += other.intended;
        self.realised += other.realised;
        self.product += other.product;
        self.error += other.error;
        self.weights += other.weights;
        self.changed_codes += other.changed_codes;
    }
}

impl Sums {
    /// Sums over slices of one length: the base's weights, the merged ones before they were
    /// encoded, and after.
    pub(crate) fn of(base: &[f32], merged: &[f32], written: &[f32]) -> Sums {
        Isa::best().run(Measure { base, merged, written })
    }

    /// Of weights that are multiplied by a scale.
    pub(crate) fn scaled(self, scale: f32) -> Sums {
        let square = f64::from(scale) * f64::from(scale);
        let Sums { weight, intended, realised, product, error, weights, changed_codes } = self;
        let [weight, intended, realised, product, error] =
            [weight, intended, realised, product, error].map(|sum| square * sum);
        Sums { weight, intended, realised, product, error, weights, changed_codes }
    }

    /// `||d|| / ||w||`: how large the change is.
    pub(crate) fn relative_change(&self) -> f64 {
        ratio(self.intended, self.weight).sqrt()
    }

    /// `||r - d|| / ||d||`: 0 where the change arrived whole; 1 is as bad as no change at all.
    pub(crate) fn relative_error(&self) -> f64 {
        ratio(self.error, self.intended).sqrt()
    }

    /// `||r - d|| / ||w||`: the rounding beside the weight.
    pub(crate) fn rounding(&self) -> f64 {
        ratio(self.error, self.weight).sqrt()
    }

    /// The part of the intended change that was realised: the length of the realised change along
    /// the intended one. 0 where nothing arrived, 1 where all did, whatever was added in other
    /// directions.
    pub(crate) fn survived(&self) -> f64 {
        ratio(self.product, self.intended)
    }

    /// Cosine between the realised change and the intended one: how much of what happened is the
    /// adapter, and not rounding.
    pub(crate) fn correlation(&self) -> f64 {
        ratio(self.product, (self.intended * self.realised).sqrt())
    }

    /// Whether every weight that was summed is a number.
    pub(crate) fn is_finite(&self) -> bool {
        (self.weight + self.intended + self.realised + self.error).is_finite()
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

struct Measure<'a> {
    base: &'a [f32],
    merged: &'a [f32],
    written: &'a [f32],
}

/// Weights that are summed in single precision before the sum goes to double: short enough that
/// each lane adds but 64 terms.
const STRETCH: usize = 64 * LANES;

impl Kernel for Measure<'_> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Sums {
        let mut sums = Sums { weights: self.base.len() as u64, ..Sums::default() };
        let stretches = self.base.chunks(STRETCH).zip(self.merged.chunks(STRETCH));
        for ((base, merged), written) in stretches.zip(self.written.chunks(STRETCH)) {
            let mut lanes = [simd.splat(0.0); 5];
            let (base, base_rest) = base.as_chunks::<LANES>();
            let (merged, merged_rest) = merged.as_chunks::<LANES>();
            let (written, written_rest) = written.as_chunks::<LANES>();
            for ((base, merged), written) in base.iter().zip(merged).zip(written) {
                add(simd, &mut lanes, base, merged, written);
            }
            if !base_rest.is_empty() {
                let rest = [base_rest, merged_rest, written_rest].map(padded);
                add(simd, &mut lanes, &rest[0], &rest[1], &rest[2]);
            }
            let total =
                lanes.map(|lanes| lanes.to_array().iter().map(|&x| f64::from(x)).sum::<f64>());
            sums.weight += total[0];
            sums.intended += total[1];
            sums.realised += total[2];
            sums.product += total[3];
            sums.error += total[4];
        }
        sums
    }
}

/// Adds sixteen weights to the five sums. A function and not a closure: a closure would be compiled
/// without the instruction set's features, and call each operation.
#[inline(always)]
fn add<S: Simd>(
    simd: S,
    lanes: &mut [S::F32; 5],
    base: &[f32; LANES],
    merged: &[f32; LANES],
    written: &[f32; LANES],
) {
    let base = simd.load(base);
    let intended = simd.load(merged) - base;
    let realised = simd.load(written) - base;
    let error = realised - intended;
    lanes[0] = lanes[0] + base * base;
    lanes[1] = lanes[1] + intended * intended;
    lanes[2] = lanes[2] + realised * realised;
    lanes[3] = lanes[3] + intended * realised;
    lanes[4] = lanes[4] + error * error;
}

#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    std::array::from_fn(|i| rest.get(i).copied().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_known_changes() {
        let base: Vec<f32> = (0..1500).map(|i| (i as f32 * 0.37).cos()).collect();
        let merged: Vec<f32> = base.iter().map(|w| w + 0.25).collect();

        let whole = Sums::of(&base, &merged, &merged);
        assert!(whole.relative_error() < 1e-6 && (whole.correlation() - 1.0).abs() < 1e-6);
        assert!((whole.intended - 1500.0 * 0.0625).abs() < 1e-3, "{}", whole.intended);
        assert_eq!(whole.weights, 1500);

        let lost = Sums::of(&base, &merged, &base);
        assert_eq!((lost.correlation(), lost.survived()), (0.0, 0.0));
        assert!((lost.relative_error() - 1.0).abs() < 1e-6);

        let opposite: Vec<f32> = base.iter().map(|w| w - 0.25).collect();
        let opposite = Sums::of(&base, &merged, &opposite);
        assert!((opposite.correlation() + 1.0).abs() < 1e-6, "{opposite:?}");
        assert!((opposite.survived() + 1.0).abs() < 1e-6, "{opposite:?}");
    }

    #[test]
    fn what_is_not_a_number_shows() {
        let mut weights = vec![1.0; 70];
        assert!(Sums::of(&weights, &weights, &weights).is_finite());
        weights[69] = f32::NAN;
        assert!(!Sums::of(&weights, &weights, &weights).is_finite());
    }
}
