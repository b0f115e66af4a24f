//! How long it takes to choose a token: microseconds, by vocabulary and by what is asked.
//!
//! `cargo bench -p polylora-engine --bench sampling`
#![allow(clippy::print_stdout)] // The table is what it is for.

use polylora_engine::{LogProbs, Sampler, SamplingParams};
use std::hint::black_box;
use std::time::Instant;

/// Of SmolLM2 and of Qwen3.
const VOCABULARIES: [usize; 2] = [49_152, 151_936];
const REPS: usize = 201;

/// Numbers that look like SmolLM2's logits: normal with a deviation of 3, and one of 500 stands out.
fn logits(count: usize) -> Vec<f32> {
    let mut seed = 1_u32;
    let mut uniform = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as f32 / (1 << 24) as f32
    };
    (0..count)
        .map(|i| {
            let normal = (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
            3.0 * normal + if i % 500 == 7 { 7.0 * uniform() } else { 0.0 }
        })
        .collect()
}

/// The median of some calls.
fn microseconds(mut call: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..REPS)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[REPS / 2]
}

fn main() {
    // `cargo test --benches` comes without this flag: then there is nothing to do.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let all = SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: Some(1),
        ..SamplingParams::default()
    };
    let settings = [
        ("temperature 0", SamplingParams { temperature: 0.0, ..all.clone() }),
        ("defaults", SamplingParams { seed: Some(1), ..SamplingParams::default() }),
        ("nothing cut", all.clone()),
        ("top_p 0.95", SamplingParams { top_p: 0.95, ..all.clone() }),
        ("min_p 0.05", SamplingParams { min_p: 0.05, ..all }),
    ];
    print!("{:16}", "us a token");
    for count in VOCABULARIES {
        print!("{count:>10}");
    }
    println!();
    let given = VOCABULARIES.map(logits);
    for (name, params) in settings {
        print!("{name:16}");
        for given in &given {
            let mut sampler =
                Sampler::new(params.clone(), given.len()).expect("the parameters are in range");
            let mut logits = given.clone();
            let time = microseconds(|| {
                black_box(sampler.sample(black_box(&mut logits)).expect("all are finite"));
            });
            print!("{time:10.1}");
        }
        println!();
    }
    print!("{:16}", "logprobs");
    for given in &given {
        let time = microseconds(|| {
            black_box(LogProbs::new(black_box(given)).top(5));
        });
        print!("{time:10.1}");
    }
    println!();
}
