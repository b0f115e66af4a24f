//! How fast weights are multiplied: some tokens by a matrix of 2048 columns, by rows or by panels, on
//! each instruction set of this CPU, beside plain reading.
//!
//! `cargo bench -p polylora-quant --bench product [-- [THREADS] [TYPE...]]`
#![allow(clippy::print_stdout)] // The table is what it is for.

use polylora_quant::product::{Activations, Scratch, Way, multiply};
use polylora_quant::{GgmlType, Isa};
use std::hint::black_box;
use std::time::{Duration, Instant};

const COLUMNS: usize = 2048;
const CASES: [(usize, Way); 8] = [
    (1, Way::Few),
    (1, Way::Many),
    (4, Way::Few),
    (8, Way::Few),
    (8, Way::Many),
    (16, Way::Few),
    (256, Way::Many),
    (1024, Way::Many),
];
/// Bytes of weights: far more than a cache holds.
const WEIGHTS: usize = 128 << 20;
/// Rows that a thread takes at a time, as an engine would deal them out.
const ROWS: usize = 64;
/// How long each figure is measured.
const TIME: Duration = Duration::from_millis(700);

/// Seconds that all threads take for one round of `work(thread)`: the best of all rounds, which
/// other work on the machine disturbs least.
fn seconds(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed() < TIME {
        let round = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let work = &work;
                scope.spawn(move || work(thread));
            }
        });
        best = best.min(round.elapsed().as_secs_f64());
    }
    best
}

/// `bytes`, cut for `threads`.
fn part(bytes: &[u8], threads: usize, thread: usize) -> &[u8] {
    let piece = bytes.len() / threads;
    &bytes[thread * piece..][..piece]
}

fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; 8];
    for words in bytes.as_chunks::<64>().0 {
        for (sum, word) in sums.iter_mut().zip(words.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, &sum| all.wrapping_add(sum))
}

/// Seconds for `rows` rows of `weights` by `tokens` tokens.
fn product(isa: Isa, way: Way, ty: GgmlType, threads: usize, tokens: usize, weights: &[u8]) -> f64 {
    let mut x = Activations::default();
    x.reset(tokens, COLUMNS);
    for (t, mut token) in x.tokens_mut().enumerate() {
        let values: Vec<f32> = (0..COLUMNS).map(|k| ((t * 31 + k) as f32).sin()).collect();
        token.quantize(isa, &values);
    }
    let all: Vec<u32> = (0..tokens as u32).collect();
    let chunk = ROWS * ty.row_bytes(COLUMNS).expect("a multiple of every block");
    seconds(threads, |thread| {
        let mut scratch = Scratch::default();
        let mut out = vec![0.0; ROWS * tokens];
        for weights in part(weights, threads, thread).chunks_exact(chunk) {
            multiply(isa, way, ty, weights, &x, &all, &mut out, &mut scratch, &[])
                .expect("lengths fit");
            black_box(&out);
        }
    })
}

fn main() {
    // `cargo test --benches` comes without this flag: then there is nothing to do.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let threads = asked.iter().find_map(|arg| arg.parse().ok());
    let threads =
        threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let types: Vec<GgmlType> = asked.iter().filter_map(|arg| arg.parse().ok()).collect();

    // Any bytes will do, but for the scales: those of zeros and small numbers are ordinary.
    let weights: Vec<u8> =
        (0..WEIGHTS as u32).map(|i| (i.wrapping_mul(40_503) >> 11) as u8 & 0x3b).collect();
    println!("{threads} threads; GB/s of weights, thousand million products a second");
    print!("{:24}", "");
    for (tokens, way) in CASES {
        print!("{:>18}", format!("{tokens} {way:?}"));
    }
    println!();
    for &ty in GgmlType::ALL {
        let wanted = types.is_empty() || types.contains(&ty);
        if !wanted || !ty.decodes() || ty.block_weights() == 1 {
            continue;
        }
        for isa in Isa::available() {
            print!("{ty:12}{:12}", isa.name());
            for (tokens, way) in CASES {
                // A cached matrix is enough where memory is no limit.
                let weights = &weights[..if tokens < 100 { WEIGHTS } else { WEIGHTS / 32 }];
                let seconds = product(isa, way, ty, threads, tokens, weights);
                let bytes = weights.len() as f64;
                let count = bytes / ty.block_bytes() as f64 * ty.block_weights() as f64;
                let rate = count * tokens as f64 / seconds / 1e9;
                print!("{:9.1}{rate:9.1}", bytes / seconds / 1e9);
            }
            println!();
        }
    }
    let seconds = seconds(threads, |thread| {
        black_box(read(part(&weights, threads, thread)));
    });
    println!("plain reading: {:.1} GB/s", WEIGHTS as f64 / seconds / 1e9);
}
