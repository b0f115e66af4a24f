//! Encoding beyond what the golden files hold: weights of every kind, rows of every length, the
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
        self.below(1 << 16) as f32 / 32_768.0 - 1.0
    }

    /// 2 to a power from `low` to `high - 1`.
    fn power(&mut self, low: i32, high: i32) -> f32 {
        f32::from_bits(((127 + low) as u32 + self.below((high - low) as u32)) << 23)
    }
}

/// A row of `blocks` runs of `block` weights, each of another kind that encoders treat apart.
fn hard_row(random: &mut Random, blocks: usize, block: usize) -> Vec<f32> {
    let mut row = Vec::new();
    for _ in 0..blocks {
        // Magnitudes from where a scale is zero in half precision to where it is infinite.
        let size = random.power(-60, 40);
        let level = random.weight() * size;
        let kind = random.below(11);
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
            7 => random.weight() * size * 0.0001,
            8 | 9 => random.weight() * random.power(-36, 4), // Nothing in common.
            _ => random.weight() * size,
        }));
    }
    row
}

fn importance(random: &mut Random, weights: usize) -> Vec<f32> {
    // Some columns are never active.
    (0..weights).map(|_| if random.below(4) == 0 { 0.0 } else { random.weight().abs() }).collect()
}

fn encode(isa: Isa, ty: GgmlType, row: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xaa; ty.row_bytes(row.len()).unwrap()];
    quantize_with(isa, ty, row, importance, &mut out).unwrap();
    out
}

/// FNV-1a of 64 bits over all that `encode` makes of 400 hard rows: first without importance,
/// then with it.
fn hashes(ty: GgmlType, encode: impl Fn(&[f32], Option<&[f32]>) -> Vec<u8>) -> [u64; 2] {
    let mut random = Random(5);
    let mut hashes = [0xcbf2_9ce4_8422_2325_u64; 2];
    for n in 0..400 {
        let row = hard_row(&mut random, n % 20, ty.block_weights().max(32));
        let importance = importance(&mut random, row.len());
        for (hash, importance) in hashes.iter_mut().zip([None, Some(&importance[..])]) {
            for byte in encode(&row, importance) {
                *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    hashes
}

/// What ggml's C library gives; the second is `None` where it does not look at importance.
const HASHES: [(&str, u64, Option<u64>); 12] = [
    ("Q4_0", 0x9023_d50c_32eb_af78, Some(0x8385_e279_d89e_c25b)),
    ("Q4_1", 0xaa07_1534_ec5d_caed, Some(0xeb8e_c94a_2026_4499)),
    ("Q5_0", 0xe84c_457b_2905_8dc5, Some(0xbb64_bbb1_b56d_55fe)),
    ("Q5_1", 0xf18c_8e75_bf1e_0bd3, Some(0xfa64_e2ce_a168_b716)),
    ("Q8_0", 0x40f6_e6ba_1226_f93e, None),
    ("Q8_1", 0xc3dc_8622_a64e_2883, None),
    ("Q2_K", 0x6d8e_2b6f_5788_b4ae, Some(0x35c2_3a4c_1604_3a5b)),
    ("Q3_K", 0x1f30_b109_e0e0_8a1d, Some(0xd67c_d137_08a6_df54)),
    ("Q4_K", 0xc170_ffa6_e877_33e1, Some(0x7815_638c_8a1e_44a0)),
    ("Q5_K", 0x9469_e581_bad3_a6a4, Some(0xa94c_c88e_02d7_aecc)),
    ("Q6_K", 0xbc0c_4ce6_8f7e_9360, Some(0x3a44_a8ba_90cb_01ff)),
    ("Q8_K", 0x48d5_8efe_8967_5f35, None),
];

#[test]
fn hard_rows_are_those_of_ggml() {
    for (name, plain, weighted) in HASHES {
        let ty: GgmlType = name.parse().unwrap();
        for isa in Isa::available() {
            let got = hashes(ty, |row, importance| encode(isa, ty, row, importance));
            assert_eq!(got, [plain, weighted.unwrap_or(plain)], "{name}, {}", isa.name());
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
