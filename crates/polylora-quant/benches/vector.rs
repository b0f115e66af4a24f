//! How long the operations on vectors take: nanoseconds a call, on each instruction set of this CPU.
//!
//! `cargo bench -p polylora-quant --bench vector`
#![allow(clippy::print_stdout)] // The table is what it is for.

use polylora_quant::{Isa, vector};
use std::hint::black_box;
use std::time::Instant;

/// As in a model of 1.1B: hidden state, feed-forward layer, head; and a vocabulary.
const HIDDEN: usize = 2048;
const FEED_FORWARD: usize = 5632;
const HEAD: usize = 64;
const VOCABULARY: usize = 32_000;

/// The fastest of some rounds of calls, which other work on the machine disturbs least.
fn nanoseconds(mut call: impl FnMut()) -> f64 {
    const CALLS: usize = 200;
    let mut best = f64::INFINITY;
    for _ in 0..50 {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        best = best.min(start.elapsed().as_secs_f64() / CALLS as f64);
    }
    best * 1e9
}

fn main() {
    // `cargo test --benches` comes without this flag: then there is nothing to do.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let values = |count: usize| -> Vec<f32> { (0..count).map(|i| (i as f32).sin()).collect() };
    let (y, weight) = (values(FEED_FORWARD), values(HIDDEN));
    let angles = values(HEAD / 2);
    let [cos, sin] = [f32::cos, f32::sin].map(|of| angles.iter().copied().map(of).collect());
    let (cos, sin): (&Vec<f32>, &Vec<f32>) = (&cos, &sin);

    type Call<'a> = &'a dyn Fn(Isa, &mut [f32]);
    let operations: [(&str, usize, Call<'_>); 8] = [
        ("rms_norm", HIDDEN, &|isa, x| vector::rms_norm(isa, &weight, &weight, 1e-5, x)),
        ("silu_mul", FEED_FORWARD, &|isa, x| vector::silu_mul(isa, x, &y)),
        ("gelu_mul", FEED_FORWARD, &|isa, x| vector::gelu_mul(isa, x, &y)),
        ("softmax", HIDDEN, &|isa, x| vector::softmax(isa, x)),
        ("rotate_halves", HEAD, &|isa, x| vector::rotate_halves(isa, x, cos, sin)),
        ("rotate_neighbours", HEAD, &|isa, x| vector::rotate_neighbours(isa, x, cos, sin)),
        ("max", VOCABULARY, &|isa, x| {
            black_box(vector::max(isa, x));
        }),
        ("exp_sum", VOCABULARY, &|isa, x| {
            black_box(vector::exp_sum(isa, x, 1.0, 1.0));
        }),
    ];
    print!("{:18}{:>8}", "ns", "values");
    for isa in Isa::available() {
        print!("{:>10}", isa.name());
    }
    println!();
    for (name, count, call) in operations {
        print!("{name:18}{count:8}");
        for isa in Isa::available() {
            let mut x = values(count);
            print!("{:10.0}", nanoseconds(|| call(isa, black_box(&mut x))));
        }
        println!();
    }
}
