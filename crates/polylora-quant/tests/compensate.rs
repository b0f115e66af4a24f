//! Rounding with error feedback: what it is for, and what it must not do.

use polylora_quant::compensate::{Curvature, quantize_compensated};
use polylora_quant::{GgmlType, Importance, Isa, RowError, dequantize, quantize_with};

const COLUMNS: usize = 512;
/// Not a multiple of the rows that are worked on side by side.
const ROWS: usize = 19;

/// The types that round.
fn types() -> impl Iterator<Item = GgmlType> {
    let rounds = |ty: &GgmlType| ty.decodes() && ty.block_weights() > 1;
    GgmlType::ALL.iter().copied().filter(rounds)
}

/// Numbers that are the same in every run: a linear congruence. Between -1 and 1.
fn numbers(seed: u32) -> impl Iterator<Item = f32> {
    let next = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let states = std::iter::successors(Some(seed), next).skip(1);
    states.map(|state| (state >> 8) as f32 / (1 << 23) as f32 - 1.0)
}

fn weights() -> Vec<f32> {
    numbers(7).take(ROWS * COLUMNS).collect()
}

/// The second moments of inputs whose neighbours have much in common, some columns larger than others.
fn moments() -> Vec<f64> {
    let mut moments = vec![0.0; COLUMNS * COLUMNS];
    let mut noise = numbers(1);
    for _ in 0..2 * COLUMNS {
        let mut level = 0.0;
        let input: Vec<f64> = (0..COLUMNS)
            .map(|column| {
                level = 0.9 * level + f64::from(noise.next().expect("no end"));
                level * if column % 37 == 0 { 8.0 } else { 1.0 }
            })
            .collect();
        for (i, row) in moments.chunks_exact_mut(COLUMNS).enumerate() {
            row.iter_mut().zip(&input).for_each(|(sum, x)| *sum += input[i] * x);
        }
    }
    moments
}

/// `F D F^T` of the moments, `F` unit upper triangular: from the last column to the first.
fn curvature(moments: &[f64]) -> Curvature {
    let mut rest = moments.to_vec();
    let (mut feedback, mut loss) = (vec![0.0; COLUMNS * COLUMNS], vec![0.0; COLUMNS]);
    for j in (0..COLUMNS).rev() {
        let diagonal = rest[j * COLUMNS + j];
        loss[j] = diagonal as f32;
        let column: Vec<f64> = (0..j).map(|i| rest[i * COLUMNS + j] / diagonal).collect();
        for i in 0..j {
            feedback[j * COLUMNS + i] = column[i] as f32;
            for k in 0..j {
                rest[i * COLUMNS + k] -= column[i] * diagonal * column[k];
            }
        }
    }
    Curvature::new(feedback, loss)
}

fn flat() -> Curvature {
    Curvature::new(vec![0.0; COLUMNS * COLUMNS], vec![1.0; COLUMNS])
}

/// `e H e^T`, over all rows.
fn loss(ty: GgmlType, bytes: &[u8], weights: &[f32], moments: &[f64]) -> f64 {
    let mut decoded = vec![0.0; weights.len()];
    dequantize(ty, bytes, &mut decoded).unwrap();
    let off: Vec<f64> =
        decoded.iter().zip(weights).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    let of_row = |row: &[f64]| {
        let products = moments.chunks_exact(COLUMNS).zip(row);
        products.map(|(h, e)| e * h.iter().zip(row).map(|(h, e)| h * e).sum::<f64>()).sum::<f64>()
    };
    off.chunks_exact(COLUMNS).map(of_row).sum()
}

fn identity() -> Vec<f64> {
    let at = |i| if i % (COLUMNS + 1) == 0 { 1.0 } else { 0.0 };
    (0..COLUMNS * COLUMNS).map(at).collect()
}

fn plain(isa: Isa, ty: GgmlType, weights: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; ty.row_bytes(weights.len()).unwrap()];
    let alike = vec![1.0; weights.len()];
    let needs_it = ty.encodes() == Some(Importance::Required);
    quantize_with(isa, ty, weights, needs_it.then_some(&alike[..]), &mut bytes).unwrap();
    bytes
}

fn compensated(
    isa: Isa,
    ty: GgmlType,
    weights: &[f32],
    base: Option<&[u8]>,
    curvature: &Curvature,
) -> Vec<u8> {
    let mut bytes = vec![0; ty.row_bytes(weights.len()).unwrap()];
    quantize_compensated(isa, ty, weights, base, curvature, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_read_comes_out_better_in_every_type_on_every_instruction_set() {
    let (weights, moments) = (weights(), moments());
    let curvature = curvature(&moments);
    for ty in types() {
        let without = loss(ty, &plain(Isa::best(), ty, &weights), &weights, &moments);
        let with = Isa::available().into_iter().map(|isa| {
            loss(ty, &compensated(isa, ty, &weights, None, &curvature), &weights, &moments)
        });
        let with: Vec<f64> = with.collect();
        // Where codes come in runs out of a codebook, feedback goes from block to block alone.
        let runs = ["IQ1", "IQ2", "IQ3"].iter().any(|name| ty.name().starts_with(name));
        let most = if runs { 0.9 } else { 0.5 };
        for loss in &with {
            assert!(*loss < most * without, "{ty}: {loss} of {without}");
            // They fuse products and sums, or do not: a tie here and there goes another way.
            assert!((loss / with[0] - 1.0).abs() < 0.05, "{ty}: {with:?}");
        }
    }
}

#[test]
fn where_all_errors_count_alike_it_is_no_worse() {
    let (weights, identity) = (weights(), identity());
    for ty in types() {
        let without = loss(ty, &plain(Isa::best(), ty, &weights), &weights, &identity);
        let bytes = compensated(Isa::best(), ty, &weights, None, &flat());
        let with = loss(ty, &bytes, &weights, &identity);
        assert!(with <= 1.000_01 * without, "{ty}: {with}, not {without}");
    }
}

#[test]
fn what_a_type_can_hold_stays_as_it_came() {
    let curvature = curvature(&moments());
    for ty in types() {
        let base = plain(Isa::best(), ty, &weights());
        let mut held = vec![0.0; ROWS * COLUMNS];
        dequantize(ty, &base, &mut held).unwrap();
        let bytes = compensated(Isa::best(), ty, &held, Some(&base), &curvature);
        let mut again = vec![0.0; held.len()];
        dequantize(ty, &bytes, &mut again).unwrap();
        assert!(held == again, "{ty}");
    }
}

#[test]
fn rows_do_not_know_those_of_other_sixteens() {
    let (ty, curvature) = (GgmlType::Q4_0, curvature(&moments()));
    let (all, row) = (weights(), ty.row_bytes(COLUMNS).unwrap());
    let together = compensated(Isa::best(), ty, &all, None, &curvature);
    let last = compensated(Isa::best(), ty, &all[16 * COLUMNS..], None, &curvature);
    assert!(together[16 * row..] == last);
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let (isa, ty, weights) = (Isa::best(), GgmlType::Q4_0, weights());
    let mut out = vec![0; ty.row_bytes(weights.len()).unwrap()];
    let quantize = |ty, weights: &[f32], base: Option<&[u8]>, out: &mut [u8]| {
        quantize_compensated(isa, ty, weights, base, &flat(), out)
    };
    assert!(quantize(ty, &weights, None, &mut out).is_ok());
    assert!(quantize(ty, &weights, None, &mut out[1..]).is_err());
    assert!(quantize(ty, &weights, Some(&[0; 18]), &mut out).is_err());
    assert!(quantize(ty, &weights[..32], None, &mut out[..18]).is_err());
    let refused = quantize(GgmlType::I32, &weights, None, &mut out);
    assert_eq!(refused, Err(RowError::NoWeights(GgmlType::I32)));
}
