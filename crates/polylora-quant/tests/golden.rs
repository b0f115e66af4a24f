//! Every type against blocks that ggml's own C library made: `golden/<TYPE>.safetensors`.
//!
//! A file holds `input` f32 [8, 768], `imatrix` f32 [768], and what ggml makes of them:
//! `quantized` u8 [8, bytes of a row] and `dequantized` f32 [8, 768] without importance,
//! `quantized_im` and `dequantized_im` with it. Either pair may be missing, where ggml needs
//! importance or knows of none.

use polylora_quant::{GgmlType, Isa, dequantize_with, quantize_with};
use safetensors::SafeTensors;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Weights in a row of every file.
const ROW: usize = 768;
/// The names of what ggml made and of its way back, and whether importance came in.
type Pair = (&'static str, &'static str, bool);
const PAIRS: [Pair; 2] =
    [("quantized", "dequantized", false), ("quantized_im", "dequantized_im", true)];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The types that have a file: all that hold weights, but F32, whose bytes are its weights.
fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|&ty| ty.decodes() && ty != GgmlType::F32)
}

fn read(ty: GgmlType) -> Vec<u8> {
    let path = folder().join(format!("{ty}.safetensors"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A tensor's bytes; `None` where the file has none of that name.
fn bytes<'a>(file: &SafeTensors<'a>, name: &str) -> Option<&'a [u8]> {
    file.tensor(name).ok().map(|tensor| tensor.data())
}

fn floats(file: &SafeTensors, name: &str) -> Option<Vec<f32>> {
    let (numbers, rest) = bytes(file, name)?.as_chunks();
    assert!(rest.is_empty());
    Some(numbers.iter().map(|&number| f32::from_le_bytes(number)).collect())
}

/// Runs `check` for every type, on every instruction set, on each pair that its file has, and
/// fails with all that it finds amiss: a line for each at most.
fn for_each_pair(check: fn(GgmlType, Isa, &SafeTensors, Pair) -> Result<(), String>) {
    let mut faults = Vec::new();
    for ty in types() {
        let data = read(ty);
        let file = SafeTensors::deserialize(&data).unwrap();
        let pairs = PAIRS.iter().filter(|(quantized, ..)| bytes(&file, quantized).is_some());
        assert!(pairs.clone().count() > 0, "{ty}: nothing to compare");
        for &pair in pairs {
            for isa in Isa::available() {
                if let Err(fault) = check(ty, isa, &file, pair) {
                    faults.push(format!("{ty}, {}, {}: {fault}", pair.0, isa.name()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_file_belongs_to_a_type_and_every_type_has_a_file() {
    let entries = fs::read_dir(folder()).unwrap();
    let found: BTreeSet<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let wanted: BTreeSet<String> = types().map(|ty| format!("{ty}.safetensors")).collect();
    let (missing, extra) = (&wanted - &found, &found - &wanted);
    assert!(missing.is_empty(), "types without a file: {missing:?}");
    assert!(extra.is_empty(), "files without a type: {extra:?}");
}

#[test]
fn the_table_agrees_with_ggml_on_ids_and_sizes() {
    for ty in types() {
        let data = read(ty);
        let (_, header) = SafeTensors::read_metadata(&data).unwrap();
        let facts = header.metadata().as_ref().unwrap();
        assert_eq!(facts["type"], ty.name());
        assert_eq!(facts["ggml_type"], ty.id().to_string(), "{ty}: id");
        assert_eq!(facts["block_size"], ty.block_weights().to_string(), "{ty}: weights a block");
        assert_eq!(facts["type_size"], ty.block_bytes().to_string(), "{ty}: bytes a block");
        assert_eq!(GgmlType::from_id(ty.id()), Ok(ty));
    }
}

#[test]
fn decodes_bit_for_bit() {
    for_each_pair(|ty, isa, file, (quantized, dequantized, _)| {
        let quantized = bytes(file, quantized).expect("it was asked for");
        let want = floats(file, dequantized).ok_or("no weights to compare with")?;
        let mut got = vec![0.0; want.len()];
        dequantize_with(isa, ty, quantized, &mut got).map_err(|error| error.to_string())?;
        let same = |(got, want): (&f32, &f32)| got.to_bits() == want.to_bits();
        match got.iter().zip(&want).position(|pair| !same(pair)) {
            None => Ok(()),
            Some(at) => Err(format!(
                "row {}, block {}, weight {}: {:e}, ggml has {:e}",
                at / ROW,
                at % ROW / ty.block_weights(),
                at % ty.block_weights(),
                got[at],
                want[at],
            )),
        }
    });
}

#[test]
fn encodes_byte_for_byte() {
    for_each_pair(|ty, isa, file, (quantized, _, with_importance)| {
        let input = floats(file, "input").ok_or("no input")?;
        let importance = floats(file, "imatrix").ok_or("no importance")?;
        let importance = with_importance.then_some(&importance[..]);
        let row_bytes = ty.row_bytes(ROW).ok_or("a row is not whole blocks")?;
        let want = bytes(file, quantized).expect("it was asked for").chunks_exact(row_bytes);
        assert_eq!(want.len() * ROW, input.len(), "{ty}: rows");

        let mut got = vec![0; row_bytes];
        for (row, (input, want)) in input.chunks_exact(ROW).zip(want).enumerate() {
            quantize_with(isa, ty, input, importance, &mut got).map_err(|e| e.to_string())?;
            let Some(at) = got.iter().zip(want).position(|(got, want)| got != want) else {
                continue;
            };
            let blocks = got.chunks(ty.block_bytes()).zip(want.chunks(ty.block_bytes()));
            return Err(format!(
                "row {row}, block {}, byte {}: {:#04x}, ggml has {:#04x} ({} of {} blocks differ)",
                at / ty.block_bytes(),
                at % ty.block_bytes(),
                got[at],
                want[at],
                blocks.clone().filter(|(got, want)| got != want).count(),
                blocks.len(),
            ));
        }
        Ok(())
    });
}

#[test]
fn f32_is_its_own_bytes() {
    let weights = [0.1, -0.0, f32::MIN_POSITIVE / 4.0, f32::INFINITY, -3.4e38];
    let want: Vec<u8> = weights.iter().flat_map(|weight: &f32| weight.to_le_bytes()).collect();
    for isa in Isa::available() {
        let mut got = vec![0; want.len()];
        quantize_with(isa, GgmlType::F32, &weights, None, &mut got).unwrap();
        assert_eq!(got, want, "{}", isa.name());
        let mut back = [0.0; 5];
        dequantize_with(isa, GgmlType::F32, &got, &mut back).unwrap();
        assert_eq!(back.map(f32::to_bits), weights.map(f32::to_bits), "{}", isa.name());
    }
}
