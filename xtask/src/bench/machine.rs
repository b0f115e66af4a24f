//! What the machine itself can do, beside which rates are read.
#![allow(unsafe_code)] // The instructions that multiply bytes: see SAFETY below.

use std::hint::black_box;
use std::time::Instant;

/// Bytes that are read: far more than a cache holds.
const READ: usize = 256 << 20;

/// GB/s of plain reading by all threads at once.
pub(super) fn read_rate(threads: usize) -> f64 {
    let words = vec![1_u64; READ / size_of::<u64>()];
    let part = words.len() / threads;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for words in words.chunks(part) {
            scope.spawn(move || {
                let mut sums = [0_u64; 32];
                for words in words.as_chunks::<32>().0 {
                    for (sum, word) in sums.iter_mut().zip(words) {
                        *sum = sum.wrapping_add(*word);
                    }
                }
                black_box(sums)
            });
        }
    });
    READ as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Thousand million products of bytes a second, added up in 32 bits, that all threads at once can
/// compute in registers; `None` where this CPU has no instruction for it that is known here.
pub(super) fn int8_peak(threads: usize) -> Option<f64> {
    let (rounds, kernel) = kernel()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || kernel(ROUNDS));
        }
    });
    let products = (ROUNDS * rounds * threads) as f64;
    Some(products / start.elapsed().as_secs_f64() / 1e9)
}

/// Some tenths of a second.
const ROUNDS: usize = 20_000_000;

/// A loop of so many products a round.
#[cfg(target_arch = "x86_64")]
fn kernel() -> Option<(usize, fn(usize))> {
    use std::arch::x86_64::*;

    /// Sums that do not wait for each other: more than any pipeline is long.
    const SUMS: usize = 12;

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn avx512(rounds: usize) {
        let mut sums = [_mm512_setzero_si512(); SUMS];
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn avxvnni(rounds: usize) {
        let mut sums = [_mm256_setzero_si256(); SUMS];
        let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(5)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the CPU has the features.
        Some((64 * SUMS, |rounds| unsafe { avx512(rounds) }))
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni") {
        // SAFETY: the CPU has the features.
        Some((32 * SUMS, |rounds| unsafe { avxvnni(rounds) }))
    } else {
        None
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn kernel() -> Option<(usize, fn(usize))> {
    None
}
