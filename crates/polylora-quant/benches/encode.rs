//! How fast each type is encoded: million weights a second on one thread, for each instruction
//! set of this CPU, without and with importance.
//!
//! `cargo bench -p polylora-quant --bench encode [-- TYPE...]`
#![allow(clippy::print_stdout)] // The table is what it is for.

use polylora_quant::{GgmlType, Importance, Isa, quantize_with};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Rows as long as a feed-forward layer's; 1 MiB of weights, so that memory is no limit.
const ROW: usize = 8192;
const ROWS: usize = 32;
/// How long each figure is measured.
const TIME: Duration = Duration::from_millis(400);

/// Numbers that look like weights: sums of uniform ones, the same in every run.
fn weights(count: usize, mut seed: u32) -> Vec<f32> {
    let mut uniform = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| 0.03 * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// Million weights a second: the best of all rounds, which other work on the machine disturbs
/// least.
fn rate(isa: Isa, ty: GgmlType, weights: &[f32], importance: Option<&[f32]>) -> f64 {
    let mut out = vec![0; ty.row_bytes(ROW).expect("a multiple of every block")];
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed() < TIME {
        let round = Instant::now();
        for row in weights.chunks_exact(ROW) {
            quantize_with(isa, ty, black_box(row), importance, &mut out).expect("lengths fit");
            black_box(&out);
        }
        best = best.min(round.elapsed().as_secs_f64());
    }
    weights.len() as f64 / best / 1e6
}

fn main() {
    // `cargo test --benches` comes without this flag: then there is nothing to do.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let weights = weights(ROWS * ROW, 1);
    let importance: Vec<f32> = weights[..ROW].iter().map(|w| w * w + 1e-5).collect();

    print!("{:8}", "M/s");
    for isa in Isa::available() {
        print!("{:>12}{:>12}", isa.name(), "importance");
    }
    println!();
    for &ty in GgmlType::ALL {
        let Some(kind) = ty.encodes() else { continue };
        if !asked.is_empty() && !asked.iter().any(|name| ty.name().eq_ignore_ascii_case(name)) {
            continue;
        }
        print!("{ty:8}");
        for isa in Isa::available() {
            match kind {
                Importance::Required => print!("{:>12}", "-"),
                _ => print!("{:12.0}", rate(isa, ty, &weights, None)),
            }
            match kind {
                Importance::Ignored => print!("{:>12}", "-"),
                _ => print!("{:12.0}", rate(isa, ty, &weights, Some(&importance))),
            }
        }
        println!();
    }
}
