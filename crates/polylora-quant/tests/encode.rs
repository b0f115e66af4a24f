//! Encoding beyond what the golden files hold: weights of every kind, rows of every length, the
//! same on every instruction set, and a panic on none.

use polylora_quant::{GgmlType, Importance, Isa, RowError, dequantize, quantize_with};

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| ty.encodes().is_some())
}

/// Without importance and with it, as far as `ty` can be encoded so.
fn ways(ty: GgmlType, importance: &[f32]) -> impl Iterator<Item = Option<&[f32]>> {
    let needs_it = ty.encodes() == Some(Importance::Required);
    [None, Some(importance)].into_iter().skip(usize::from(needs_it))
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

/// Importances of columns of which some, or most, are never active.
fn importance(random: &mut Random, weights: usize) -> Vec<f32> {
    let active = 1 + random.below(8);
    let mut one = || if random.below(8) < active { random.weight().abs() } else { 0.0 };
    (0..weights).map(|_| one()).collect()
}

fn encode(isa: Isa, ty: GgmlType, row: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0xaa; ty.row_bytes(row.len()).unwrap()];
    quantize_with(isa, ty, row, importance, &mut out).unwrap();
    out
}

/// Seeds of single blocks that take the encoders down their rarest ways, found by running them
/// against ggml with each of these ways closed: a search that ends in a negative scale, which then
/// wraps around in ggml's bytes (285), weights that do not count and lie millions of steps away
/// (3911), an offset that rounding lifts over the highest weight (31200, 85195, 568000).
const RARE: [u32; 5] = [285, 3911, 31_200, 85_195, 568_000];

/// FNV-1a of 64 bits over all that `encode` makes of the rare blocks and of 400 hard rows: without
/// importance where it can do without, then with it.
fn hashes(ty: GgmlType, encode: impl Fn(&[f32], Option<&[f32]>) -> Vec<u8>) -> Vec<u64> {
    let mut random = Random(5);
    let mut hashes = vec![0xcbf2_9ce4_8422_2325_u64; ways(ty, &[]).count()];
    for n in 0..RARE.len() + 400 {
        let (random, blocks) = match RARE.get(n) {
            Some(&seed) => (&mut Random(seed), 1),
            None => (&mut random, n % 20),
        };
        let row = hard_row(random, blocks, ty.block_weights().max(32));
        let importance = importance(random, row.len());
        for (hash, importance) in hashes.iter_mut().zip(ways(ty, &importance)) {
            for byte in encode(&row, importance) {
                *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    hashes
}

/// What ggml's C library gives, without importance and with it; where there is only one, it needs
/// importance or does not look at it.
const HASHES: [(&str, &[u64]); 27] = [
    ("Q4_0", &[0xe101_df99_149a_0d7f, 0xdd5d_3e31_ea75_d03e]),
    ("Q4_1", &[0x925d_1910_ea4e_ee7b, 0x268d_5951_3c31_dfda]),
    ("Q5_0", &[0x303f_4693_630f_bcc5, 0xd3a2_b145_2d17_01f2]),
    ("Q5_1", &[0x64d1_5680_937d_d684, 0x7189_7ecd_5e50_1091]),
    ("Q8_0", &[0x04f7_27a3_1e0f_b843]),
    ("Q8_1", &[0x8730_88d8_b8ee_5083]),
    ("Q2_K", &[0x18ac_c78c_2180_596d, 0x88ea_4f0c_a981_11e5]),
    ("Q3_K", &[0x6d11_b664_c926_47e8, 0xa857_8e7c_03d7_65ac]),
    ("Q4_K", &[0x495c_2d3b_12dd_c4e1, 0x80d7_c99c_99cd_9666]),
    ("Q5_K", &[0x2728_ac92_bd20_220f, 0x9e21_f0ca_7b45_ddb3]),
    ("Q6_K", &[0xe4a6_4b42_c696_f511, 0x33cf_b46a_fe90_e8cc]),
    ("Q8_K", &[0x1c78_0bc7_0232_36ae]),
    ("IQ2_XXS", &[0xfd15_3008_ffdd_9030]),
    ("IQ2_XS", &[0x2d6d_dda6_a455_db8d]),
    ("IQ3_XXS", &[0x32e9_d8f7_5b9e_facc, 0x571b_912c_bfa0_42e4]),
    ("IQ1_S", &[0xc1a3_0c60_eb3c_6845]),
    ("IQ4_NL", &[0x989d_8a5b_be6b_0aa2, 0xb5e9_ce69_a2be_baf7]),
    ("IQ3_S", &[0x1340_2d7e_1301_d334, 0x8f7a_68b5_ddc2_1e4f]),
    ("IQ2_S", &[0x3c91_e184_f3cc_5fcc, 0xcc87_770e_1457_bb67]),
    ("IQ4_XS", &[0x7ab8_be4d_fed5_aceb, 0xf22e_599c_9718_ae2f]),
    ("IQ1_M", &[0x9fcb_ed9a_9a81_6ef1, 0x1755_7692_d559_fb91]),
    ("TQ1_0", &[0x8734_2601_93d9_afdc]),
    ("TQ2_0", &[0xeebb_4667_e181_6852]),
    ("MXFP4", &[0xd18d_b73b_cd20_50c0]),
    ("NVFP4", &[0xbc51_9a13_6329_9a46]),
    ("Q1_0", &[0xa857_38bb_ed58_c189]),
    ("Q2_0", &[0x5f38_19f4_411e_0ea8]),
];

#[test]
fn hard_rows_are_those_of_ggml() {
    for (name, want) in HASHES {
        let ty: GgmlType = name.parse().unwrap();
        for isa in Isa::available() {
            let got = hashes(ty, |row, importance| encode(isa, ty, row, importance));
            let (last, want_last) = (got.last(), want.last());
            assert_eq!((got[0], last), (want[0], want_last), "{name}, {}", isa.name());
        }
    }
}

#[test]
fn few_bits_need_importance() {
    let (row, mut needed) = ([1.0; 256], Vec::new());
    for ty in types() {
        let mut out = vec![0; ty.row_bytes(row.len()).unwrap()];
        if let Err(error) = quantize_with(Isa::best(), ty, &row, None, &mut out) {
            assert_eq!(error, RowError::NeedsImportance(ty));
            needed.push(ty.name());
        }
    }
    assert_eq!(needed, ["IQ2_XXS", "IQ2_XS", "IQ1_S"]);
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
                for importance in ways(ty, &importance) {
                    // With importance, blocks of 32 depend on the whole row's mean square.
                    if importance.is_none() || block == 256 {
                        let same = encode(isa, ty, &row, importance) == alone(importance);
                        let weighted = importance.is_some();
                        assert!(same, "{ty}, {blocks} blocks, {}, {weighted}", isa.name());
                    }
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
                for importance in ways(ty, &importance) {
                    dequantize(ty, &encode(isa, ty, &row, importance), &mut back).unwrap();
                }
            }
        }
    }
}
