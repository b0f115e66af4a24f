//! Every decoder on any bytes: the first chooses the type, the next two a number of weights, the
//! others are the row.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polylora_quant::{GgmlType, Isa, changed_codes, dequantize, dequantize_with};

fuzz_target!(|input: &[u8]| {
    let Some((&[ty, low, high], row)) = input.split_first_chunk() else { return };
    let ty = GgmlType::ALL[usize::from(ty) % GgmlType::ALL.len()];

    // Whatever the lengths: an answer, and the right one.
    let mut weights = vec![0.0; usize::from(u16::from_le_bytes([low, high]))];
    let fits = ty.decodes() && ty.row_bytes(weights.len()) == Some(row.len());
    assert_eq!(dequantize(ty, row, &mut weights).is_ok(), fits, "{ty}");

    // The whole blocks: the same weights on every instruction set.
    if !ty.decodes() {
        return;
    }
    let blocks = row.len() / ty.block_bytes();
    let row = &row[..blocks * ty.block_bytes()];
    let decode = |isa: Isa| {
        let mut weights = vec![0.0; blocks * ty.block_weights()];
        dequantize_with(isa, ty, row, &mut weights).expect("the lengths fit");
        weights
    };
    let all = Isa::available();
    let want = decode(all[0]);
    for &isa in &all[1..] {
        let got = decode(isa);
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        let at = got.iter().zip(&want).position(|pair| !same(pair));
        assert_eq!(at, None, "{ty}: {} differs from {}", isa.name(), all[0].name());
    }
    assert_eq!(changed_codes(ty, row, row), Ok(0), "{ty}");
});
