//! Encoding beyond what the golden files hold: rows of every length, weights of every kind, the
//! same on every instruction set, and a panic on none.

use polylora_quant::{GgmlType, Isa, dequantize, quantize_with};

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| ty.encodes().is_some())
}

/// Numbers that are the same in every run: a linear congruence.
struct Random(u32);

impl Random {
    /// Below `bound`.
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % bound
    }

    /// Between -1 and 1.
    fn weight(&mut self) -> f32 {
        self.below(1 << 16) as f32 / f32::from(1u16 << 15) - 1.0
    }
}

/// A row of `blocks` runs of `block` weights, each of another kind that encoders treat apart.
fn hard_row(random: &mut Random, blocks: usize, block: usize) -> Vec<f32> {
    let mut row = Vec::new();
    for _ in 0..blocks {
        // Magnitudes from those whose scale is zero in half precision to those whose is infinite.
        let size = 10.0_f32.powi(random.below(20) as i32 - 12);
        let level = random.weight() * size;
        let kind = random.below(9);
        row.extend((0..block).map(|_| match kind {
            0 => 0.0,
            1 if random.below(2) == 0 => 0.0,
            1 => -0.0,
            2 => level,
            3 => f32::from_bits(level.to_bits() + random.below(3)), // Level, but for rounding.
            4 => random.weight().abs() * size,
            5 => -random.weight().abs() * size,
            6 => (random.weight() * 4.0).round() * size, // Ties.
            7 if random.below(50) == 0 => random.weight() * size, // The rest is small beside it.
            7 => random.weight() * size * 1e-4,
            _ => random.weight() * size,
        }));
    }
    row
}

fn importance(random: &mut Random, weights: usize) -> Vec<f32> {
    // Some columns are never active.
    (0..weights).map(|_| if random.below(5) == 0 { 0.0 } else { random.weight().abs() }).collect()
}

fn encode(isa: Isa, ty: GgmlType, row: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xaa; ty.row_bytes(row.len()).unwrap()];
    quantize_with(isa, ty, row, importance, &mut out).unwrap();
    out
}

#[test]
fn every_isa_gives_the_same_bytes() {
    let all = Isa::available();
    let mut random = Random(1);
    for ty in types() {
        for blocks in 0..40 {
            let row = hard_row(&mut random, blocks, ty.block_weights().max(32));
            let importance = importance(&mut random, row.len());
            for importance in [None, Some(&importance[..])] {
                let want = encode(all[0], ty, &row, importance);
                for &isa in &all[1..] {
                    let same = encode(isa, ty, &row, importance) == want;
                    assert!(same, "{ty}, {blocks} blocks, {}", isa.name());
                }
            }
        }
    }
}

/// Blocks go sixteen or more at a time; what does not fill that must come out as it would in
/// another place.
#[test]
fn a_block_does_not_depend_on_its_neighbours() {
    let mut random = Random(2);
    for ty in types() {
        let block = ty.block_weights().max(32);
        for blocks in [1, 2, 3, 7, 15, 16, 17, 31, 33, 40] {
            let row = hard_row(&mut random, blocks, block);
            let importance = importance(&mut random, row.len());
            for isa in Isa::available() {
                let alone = |importance: Option<&[f32]>| -> Vec<u8> {
                    let blocks = row.chunks_exact(block).enumerate();
                    let importance = |n: usize| importance.map(|all| &all[n * block..][..block]);
                    blocks.flat_map(|(n, x)| encode(isa, ty, x, importance(n))).collect()
                };
                let same = encode(isa, ty, &row, None) == alone(None);
                assert!(same, "{ty}, {blocks} blocks, {}", isa.name());
                // With importance, blocks of 32 depend on the whole row's mean square.
                if block == 256 {
                    let same = encode(isa, ty, &row, Some(&importance)) == alone(Some(&importance));
                    assert!(same, "{ty}, {blocks} blocks, importance, {}", isa.name());
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_does_not_panic() {
    let strange =
        [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, -1e-45];
    let mut random = Random(3);
    for ty in types() {
        for isa in Isa::available() {
            for rarity in [1, 2, 20, 400] {
                let mut row = hard_row(&mut random, 20, ty.block_weights().max(32));
                let mut importance = importance(&mut random, row.len());
                for value in row.iter_mut().chain(&mut importance) {
                    if random.below(rarity) == 0 {
                        *value = strange[random.below(8) as usize];
                    }
                }
                let mut back = vec![0.0; row.len()];
                for importance in [None, Some(&importance[..])] {
                    dequantize(ty, &encode(isa, ty, &row, importance), &mut back).unwrap();
                }
            }
        }
    }
}
