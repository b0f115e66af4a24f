//! Every type on every instruction set, against double precision.

use super::slab::SLAB;
use super::*;
use crate::dequantize;
use crate::format::Codes;
use crate::isa::LANES;

/// Numbers that are the same in every run: a linear congruence.
pub(super) struct Random(pub(super) u32);

impl Random {
    pub(super) fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 24) as u8
    }

    /// Between -1 and 1.
    pub(super) fn value(&mut self) -> f32 {
        (i32::from(self.byte()) * 256 + i32::from(self.byte()) - 32_768) as f32 / 32_768.0
    }
}

fn block_types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| ty.decodes() && ty.block_weights() > 1)
}

/// Whether a block means weights of ordinary size.
fn ordinary(ty: GgmlType, block: &[u8]) -> bool {
    let mut weights = vec![0.0; ty.block_weights()];
    dequantize(ty, block, &mut weights).unwrap();
    let largest = weights.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
    weights.iter().all(|w| w.is_finite()) && (1e-3..1e3).contains(&largest)
}

/// A block of random bytes, tried until it is [`ordinary`].
fn random_block(random: &mut Random, ty: GgmlType) -> Vec<u8> {
    loop {
        let block: Vec<u8> = (0..ty.block_bytes()).map(|_| random.byte()).collect();
        if ordinary(ty, &block) {
            return block;
        }
    }
}

/// A block in which every byte is `fill` that can be while it stays [`ordinary`]: its codes are
/// the lowest or highest, or whatever `fill` means.
fn extreme_block(random: &mut Random, ty: GgmlType, fill: u8) -> Vec<u8> {
    let mut block = random_block(random, ty);
    for i in 0..block.len() {
        let before = std::mem::replace(&mut block[i], fill);
        if !ordinary(ty, &block) {
            block[i] = before;
        }
    }
    block
}

/// Quantized, with the quantized values: `[tokens][columns]`.
fn activations(isa: Isa, values: &[f32], columns: usize) -> (Activations, Vec<f32>) {
    let mut x = Activations::default();
    x.reset(values.len() / columns, columns);
    for (mut token, values) in x.tokens_mut().zip(values.chunks_exact(columns)) {
        token.quantize(isa, values);
    }
    let mut quantized = Vec::new();
    for token in 0..x.tokens() {
        quantized.extend((0..columns).map(|k| {
            let slab = &x.token(token as u32)[k / SLAB];
            slab.scales[k % SLAB / ACTIVATION_GROUP] * f32::from(slab.codes[k % SLAB])
        }));
    }
    (x, quantized)
}

/// Compares `out` with sums in double precision. What single precision may lose depends on the
/// size of what is added: some times the largest weight, where a minimum is taken off again.
fn compare(
    what: &str,
    ty: GgmlType,
    weights: &[u8],
    columns: usize,
    x: &[f32],
    tokens: &[u32],
    out: &[f32],
) {
    let row_bytes = ty.row_bytes(columns).unwrap();
    let rows = weights.len() / row_bytes;
    let mut row = vec![0.0; columns];
    for (r, bytes) in weights.chunks_exact(row_bytes).enumerate() {
        dequantize(ty, bytes, &mut row).unwrap();
        for (i, &token) in tokens.iter().enumerate() {
            let x = &x[token as usize * columns..][..columns];
            let (mut want, mut size) = (0.0, 0.0);
            for (row, x) in row.chunks(16).zip(x.chunks(16)) {
                let largest = row.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
                for (&w, &x) in row.iter().zip(x) {
                    want += f64::from(w) * f64::from(x);
                    size += f64::from(largest) * f64::from(x.abs());
                }
            }
            let got = f64::from(out[i * rows + r]);
            let error = (got - want).abs();
            assert!(error <= 2e-5 * size, "{what}: row {r}, token {i}: {got} for {want} of {size}");
        }
    }
}

#[test]
fn products_of_every_type_are_right_on_every_isa() {
    let mut random = Random(1);
    // Rows that fill panels or do not, tokens that fill tiles or do not.
    let shapes = [(1, 1), (15, 3), (16, 8), (17, 13), (33, 40), (5, 9), (81, 7), (2, 2)];
    for ty in block_types() {
        for (n, &(rows, count)) in shapes.iter().enumerate() {
            let columns: usize = [32, 576, 1504, 256, 2048, 96, 768, 320][n];
            let columns = columns.next_multiple_of(ty.block_weights());
            let blocks = rows * columns / ty.block_weights();
            let weights: Vec<u8> =
                (0..blocks).flat_map(|_| random_block(&mut random, ty)).collect();
            let values: Vec<f32> = (0..50 * columns).map(|_| random.value()).collect();
            let tokens: Vec<u32> = (0..count).map(|i| (i * 7 + n as u32) % 50).collect();
            for isa in Isa::available() {
                let (x, quantized) = activations(isa, &values, columns);
                let mut scratch = Scratch::default();
                let mut out = vec![f32::NAN; rows * tokens.len()];
                for way in [Way::Few, Way::Many] {
                    out.fill(f32::NAN);
                    multiply(isa, way, ty, &weights, &x, &tokens, &mut out, &mut scratch, &[])
                        .unwrap();
                    let what = format!("{ty} {} {rows}x{columns} {way:?}", isa.name());
                    compare(&what, ty, &weights, columns, &quantized, &tokens, &out);
                    // To the bit what each token gives alone.
                    let mut alone = vec![f32::NAN; rows];
                    for (token, out) in tokens.chunks(1).zip(out.chunks(rows)) {
                        multiply(isa, way, ty, &weights, &x, token, &mut alone, &mut scratch, &[])
                            .unwrap();
                        assert_eq!(alone, out, "{what}");
                    }
                }

                let what = format!("{ty} {} {rows}x{columns}", isa.name());
                out.fill(f32::NAN);
                multiply_exact(
                    isa,
                    ty,
                    &weights,
                    columns,
                    &values,
                    &tokens,
                    &mut out,
                    &mut scratch,
                )
                .unwrap();
                compare(&format!("exact {what}"), ty, &weights, columns, &values, &tokens, &out);
            }
        }
    }
}

#[test]
fn the_widest_codes_do_not_saturate() {
    const COLUMNS: usize = 256;
    const ROWS: usize = 17;
    let mut random = Random(2);
    for ty in block_types() {
        for fill in [0x00, 0xff, 0x80, 0x7f, 0x88, 0x77, 0x08, 0xf0] {
            let block = extreme_block(&mut random, ty, fill);
            let weights = block.repeat(ROWS * COLUMNS / ty.block_weights());
            let mut row = vec![0.0; COLUMNS];
            dequantize(ty, &weights[..ty.row_bytes(COLUMNS).unwrap()], &mut row).unwrap();
            // All codes 127, all -127, and with the signs that make every product positive.
            let mut values = vec![1.0; COLUMNS];
            values.extend([-1.0; COLUMNS]);
            values.extend(row.iter().map(|w| 1.0_f32.copysign(*w)));
            values.extend(row.iter().map(|w| -1.0_f32.copysign(*w)));
            for isa in Isa::available() {
                let (x, quantized) = activations(isa, &values, COLUMNS);
                // By rows, and by panels.
                for tokens in [&[0, 1][..], &[2, 3], &[0, 1, 2, 3, 0, 1, 2, 3, 3]] {
                    let mut out = vec![f32::NAN; ROWS * tokens.len()];
                    let scratch = &mut Scratch::default();
                    let way = Way::of(tokens.len());
                    multiply(isa, way, ty, &weights, &x, tokens, &mut out, scratch, &[]).unwrap();
                    let what = format!("{ty} {} {fill:#x}", isa.name());
                    compare(&what, ty, &weights, COLUMNS, &quantized, tokens, &out);
                }
            }
        }
    }
}

#[test]
fn codes_are_as_wide_as_their_format_says() {
    let portable = Isa::available()[0]; // It shifts all codes to unsigned ones.
    let mut random = Random(3);
    for ty in block_types() {
        let layout = ty.info().ok().and_then(|info| info.blocks.as_ref()).unwrap().panels;
        let row_bytes = ty.row_bytes(SLAB).unwrap();
        let mut decoded = [Codes::ZERO; LANES];
        let mut seen = [false; 256];
        for _ in 0..2000 {
            let rows: Vec<u8> = (0..16 * row_bytes).map(|_| random.byte()).collect();
            (layout.decode)(portable, &rows, row_bytes, 0, &mut decoded);
            for &code in decoded.iter().flat_map(|row| &row.codes) {
                seen[usize::from(code as u8)] = true;
            }
        }
        let widest = seen.iter().rposition(|&seen| seen);
        assert_eq!((seen[0], widest), (true, Some(layout.top as usize)), "{ty}");
    }
}

#[test]
fn garbage_multiplies_to_something() {
    let mut random = Random(4);
    for ty in block_types() {
        let columns = 2 * ty.block_weights();
        let values: Vec<f32> = (0..9 * columns).map(|_| random.value()).collect();
        let tokens: Vec<u32> = (0..9).collect();
        for isa in Isa::available() {
            let (x, _) = activations(isa, &values, columns);
            for _ in 0..20 {
                let bytes = 3 * ty.row_bytes(columns).unwrap();
                let weights: Vec<u8> = (0..bytes).map(|_| random.byte()).collect();
                let scratch = &mut Scratch::default();
                for (way, count) in [(Way::Few, 1), (Way::Few, 9), (Way::Many, 9)] {
                    let (mut out, tokens) = (vec![0.0; 3 * count], &tokens[..count]);
                    multiply(isa, way, ty, &weights, &x, tokens, &mut out, scratch, &[]).unwrap();
                }
            }
        }
    }
}

#[test]
fn floats_multiply_exactly() {
    let mut random = Random(5);
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
        for columns in [1, 15, 16, 17, 100, 576] {
            let rows: Vec<f32> = (0..5 * columns).map(|_| random.value()).collect();
            let mut weights = vec![0; ty.row_bytes(rows.len()).unwrap()];
            crate::quantize(ty, &rows, None, &mut weights).unwrap();
            let values: Vec<f32> = (0..7 * columns).map(|_| random.value()).collect();
            let tokens = [6, 0, 2, 2, 5, 1];
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; 5 * tokens.len()];
                let scratch = &mut Scratch::default();
                multiply_exact(isa, ty, &weights, columns, &values, &tokens, &mut out, scratch)
                    .unwrap();
                let what = format!("{ty} {} {columns}", isa.name());
                compare(&what, ty, &weights, columns, &values, &tokens, &out);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let isa = Isa::best();
    let (x, _) = activations(isa, &[1.0; 128], 64);
    let scratch = &mut Scratch::default();
    let mut multiply = |ty, weights: &[u8], tokens: &[u32], out: &mut [f32]| {
        multiply(isa, Way::of(tokens.len()), ty, weights, &x, tokens, out, scratch, &[])
    };
    assert_eq!(multiply(GgmlType::Q8_0, &[0; 136], &[1, 0], &mut [0.0; 4]), Ok(()));
    assert_eq!(multiply(GgmlType::Q8_0, &[], &[0], &mut []), Ok(()));
    assert_eq!(multiply(GgmlType::Q8_0, &[0; 68], &[], &mut []), Ok(()));
    assert!(matches!(
        multiply(GgmlType::Q8_0, &[0; 67], &[0], &mut [0.0]),
        Err(RowError::Length { .. })
    ));
    assert!(matches!(
        multiply(GgmlType::Q4_K, &[0; 144], &[0], &mut [0.0]),
        Err(RowError::Length { .. })
    ));
    assert!(matches!(
        multiply(GgmlType::Q8_0, &[0; 68], &[0], &mut [0.0; 2]),
        Err(RowError::Output { .. })
    ));
    assert_eq!(
        multiply(GgmlType::Q8_0, &[0; 68], &[0, 2], &mut [0.0; 2]),
        Err(RowError::Token { token: 2, held: 2 })
    );
    assert_eq!(
        multiply(GgmlType::F32, &[0; 256], &[0], &mut [0.0]),
        Err(RowError::NotBlocks(GgmlType::F32))
    );
    assert_eq!(
        multiply(GgmlType::I8, &[0; 64], &[0], &mut [0.0]),
        Err(RowError::NoWeights(GgmlType::I8))
    );
}
