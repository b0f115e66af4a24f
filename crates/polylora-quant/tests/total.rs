//! Decoding is total: any bytes give weights (perhaps NaN), the same on every instruction set,
//! and lengths that do not fit give an error.

use polylora_quant::{
    GgmlType, Isa, RowError, changed_codes, dequantize, dequantize_with, quantize,
};

/// Decodes `bytes`, whole blocks, on every instruction set, and holds the results together.
#[track_caller]
fn decode_everywhere(ty: GgmlType, bytes: &[u8]) {
    let decode = |isa: Isa| {
        let mut weights = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_weights()];
        dequantize_with(isa, ty, bytes, &mut weights).unwrap();
        // Which NaN an operation gives is not for IEEE to say: all are one.
        let bits = weights.iter().map(|w| if w.is_nan() { f32::NAN } else { *w }.to_bits());
        bits.collect::<Vec<u32>>()
    };
    let all = Isa::available();
    let want = decode(all[0]);
    for &isa in &all[1..] {
        let got = decode(isa);
        let at = got.iter().zip(&want).position(|(got, want)| got != want);
        assert_eq!(at, None, "{ty}: {} differs from {}", isa.name(), all[0].name());
    }
}

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| ty.decodes())
}

/// Bytes that are the same in every run: xorshift, of 64 bits.
fn random_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn random_blocks_decode() {
    for ty in types() {
        // 1000 blocks: where a scale is a half, some thirty are NaN or infinite.
        decode_everywhere(ty, &random_bytes(1000 * ty.block_bytes()));
    }
}

#[test]
fn every_byte_at_every_place_decodes() {
    for ty in types() {
        // One byte through all its values, among zeros and among ones, at every place of a
        // block; then all bytes alike.
        for others in [0x00, 0xff] {
            let mut blocks = vec![others; 256 * ty.block_bytes()];
            for place in 0..ty.block_bytes() {
                for (value, block) in blocks.chunks_exact_mut(ty.block_bytes()).enumerate() {
                    block[place] = value as u8;
                }
                decode_everywhere(ty, &blocks);
                for block in blocks.chunks_exact_mut(ty.block_bytes()) {
                    block[place] = others;
                }
            }
        }
        let alike = (0..=255u8).flat_map(|value| vec![value; ty.block_bytes()]);
        decode_everywhere(ty, &alike.collect::<Vec<u8>>());
    }
}

#[test]
fn blocks_need_no_alignment() {
    for ty in types() {
        let bytes = random_bytes(4 * ty.block_bytes());
        let one_off = [&[0], &bytes[..]].concat();
        let mut aligned = vec![0.0; 4 * ty.block_weights()];
        let mut shifted = aligned.clone();
        dequantize(ty, &bytes, &mut aligned).unwrap();
        dequantize(ty, &one_off[1..], &mut shifted).unwrap();
        let bits = |weights: &[f32]| weights.iter().map(|w| w.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&shifted), bits(&aligned), "{ty}");
    }
}

#[test]
fn no_blocks_give_no_weights() {
    for ty in types() {
        assert_eq!(dequantize(ty, &[], &mut []), Ok(()), "{ty}");
        assert_eq!(changed_codes(ty, &[], &[]), Ok(0), "{ty}");
    }
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    for ty in types() {
        let (weights, size) = (ty.block_weights(), ty.block_bytes());
        // Bytes and weights of one block more, or less, than the other; and parts of blocks.
        let misfits = [
            (2 * weights, size),
            (weights, 2 * size),
            (0, size),
            (weights, 0),
            (weights, size - 1),
            (weights, size + 1),
            (weights + 1, size),
        ];
        for (weights, bytes) in misfits {
            let error = Err(RowError::Length { ty, weights, bytes });
            assert_eq!(dequantize(ty, &vec![0; bytes], &mut vec![0.0; weights]), error);
            assert_eq!(quantize(ty, &vec![0.0; weights], None, &mut vec![0; bytes]), error);
        }
        let (row, mut out) = (vec![0.0; weights], vec![0; size]);
        assert_eq!(
            quantize(ty, &row, Some(&row[1..]), &mut out),
            Err(RowError::Importance { weights, importance: weights - 1 }),
        );
        assert!(changed_codes(ty, &vec![0; size], &vec![0; 2 * size]).is_err(), "{ty}");
    }
}

#[test]
fn numbers_that_are_no_weights_are_refused() {
    for ty in GgmlType::ALL.iter().copied().filter(|ty| !ty.decodes()) {
        let mut bytes = vec![0; ty.block_bytes()];
        assert_eq!(dequantize(ty, &bytes, &mut [0.0]), Err(RowError::NoWeights(ty)));
        assert_eq!(quantize(ty, &[0.0], None, &mut bytes), Err(RowError::NoWeights(ty)));
    }
}
