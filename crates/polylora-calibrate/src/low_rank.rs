//! The nearest matrix of a low rank.
//!
//! A randomized singular value decomposition (Halko, Martinsson and Tropp, "Finding structure with
//! randomness", SIAM Review 53, 2011): the matrix times some random vectors spans almost the space of
//! its largest singular vectors, and what it does there is a small matrix.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

/// How much of a matrix is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// This rank, or the matrix's own size where that is less.
    Rank(usize),
    /// The smallest rank that holds this share of the squared Frobenius norm, from 0 to 1.
    Energy(f64),
}

/// A matrix as `up @ down`, most nearly.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    /// `(rank, columns)`, row after row: `lora_A`.
    pub(crate) down: Vec<f32>,
    /// `(rows, rank)`, row after row: `lora_B`.
    pub(crate) up: Vec<f32>,
    /// 0 for a matrix of zeros.
    pub(crate) rank: usize,
    /// The share of the matrix's squared Frobenius norm that the product has; 1 for a matrix of zeros.
    pub(crate) held: f64,
}

/// Random vectors beyond the wanted rank: Halko et al. call 5 or 10 enough.
const OVERSAMPLING: usize = 10;
/// Times that the space is multiplied with the matrix and its transpose: singular values of trained
/// weights fall slowly, and four rounds bring what is held of even a random matrix within a percent.
const POWER_ITERATIONS: usize = 4;
/// The first rank that is tried where a share is wanted.
const FIRST_RANK: usize = 16;

/// The best approximation of a matrix, `(rows, columns)` row after row, by a low rank. The square
/// roots of the singular values go to both factors, so that neither outgrows a half-precision file.
///
/// The random numbers are always the same: so is the result, on one machine.
///
/// # Panics
/// Where the matrix is not of this size, or holds what is not a finite number.
pub(crate) fn factor(matrix: &[f32], rows: usize, columns: usize, wanted: Wanted) -> Factors {
    let total: f64 = matrix.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    assert!(total.is_finite(), "the matrix holds what is not a finite number");
    if total == 0.0 {
        return Factors { down: Vec::new(), up: Vec::new(), rank: 0, held: 1.0 };
    }
    let matrix = MatRef::from_row_major_slice(matrix, rows, columns);
    match wanted {
        Wanted::Rank(rank) => Decomposed::of(matrix, rank + OVERSAMPLING).cut(rank, total),
        Wanted::Energy(share) => {
            let mut rank = FIRST_RANK;
            loop {
                let decomposed = Decomposed::of(matrix, rank + OVERSAMPLING);
                let reached = decomposed.rank_of(share * total);
                match reached.filter(|&reached| reached <= rank) {
                    Some(rank) => return decomposed.cut(rank, total),
                    None if decomposed.is_whole => {
                        let all = decomposed.values.len();
                        return decomposed.cut(reached.unwrap_or(all), total);
                    }
                    None => rank *= 2,
                }
            }
        }
    }
}

/// Singular values, largest first, with their vectors.
struct Decomposed {
    /// `(rows, values)`
    left: Mat<f32>,
    values: Vec<f64>,
    /// `(columns, values)`
    right: Mat<f32>,
    /// Whether these are all that the matrix has.
    is_whole: bool,
}

impl Decomposed {
    /// The largest singular values and vectors, as far as a space of `size` dimensions shows them.
    fn of(matrix: MatRef<'_, f32>, size: usize) -> Decomposed {
        let is_whole = size >= matrix.nrows().min(matrix.ncols());
        if is_whole {
            let (left, values, right) = decompose(matrix);
            return Decomposed { left, values, right, is_whole };
        }
        let mut numbers = Numbers(0);
        let random = Mat::from_fn(matrix.ncols(), size, |_, _| numbers.normal());
        let mut space = orthonormal(&product(matrix, random.as_ref()));
        for _ in 0..POWER_ITERATIONS {
            // Orthonormal between the steps: else all vectors turn to the first.
            let back = orthonormal(&product(matrix.transpose(), space.as_ref()));
            space = orthonormal(&product(matrix, back.as_ref()));
        }
        let (left, values, right) = decompose(product(space.transpose(), matrix).as_ref());
        let left = product(space.as_ref(), left.as_ref());
        Decomposed { left, values, right, is_whole }
    }

    /// The smallest rank whose values' squares add up to `energy`.
    fn rank_of(&self, energy: f64) -> Option<usize> {
        let sums = self.values.iter().scan(0.0, |sum, value| {
            *sum += value * value;
            Some(*sum)
        });
        let place = sums.into_iter().position(|sum| sum >= energy);
        place.map(|place| place + 1)
    }

    /// The factors of the first `rank` values.
    fn cut(&self, rank: usize, total: f64) -> Factors {
        let rank = rank.min(self.values.len());
        let values = &self.values[..rank];
        let held: f64 = values.iter().map(|value| value * value).sum();
        let root = |i: usize| values[i].sqrt() as f32;
        let (rows, columns) = (self.left.nrows(), self.right.nrows());
        let down = (0..rank).flat_map(|i| (0..columns).map(move |j| (i, j)));
        let up = (0..rows).flat_map(|i| (0..rank).map(move |j| (i, j)));
        Factors {
            down: down.map(|(i, j)| self.right[(j, i)] * root(i)).collect(),
            up: up.map(|(i, j)| self.left[(i, j)] * root(j)).collect(),
            rank,
            // Rounding may bring it above.
            held: (held / total).min(1.0),
        }
    }
}

/// Left vectors, values and right vectors.
fn decompose(matrix: MatRef<'_, f32>) -> (Mat<f32>, Vec<f64>, Mat<f32>) {
    let found = matrix.thin_svd().expect("of finite numbers it converges");
    let values = found.S().column_vector().iter().map(|&value| f64::from(value)).collect();
    (found.U().to_owned(), values, found.V().to_owned())
}

fn orthonormal(matrix: &Mat<f32>) -> Mat<f32> {
    matrix.qr().compute_thin_Q()
}

fn product(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> Mat<f32> {
    let mut product = Mat::zeros(a.nrows(), b.ncols());
    matmul(&mut product, Accum::Replace, a, b, 1.0, Par::rayon(0));
    product
}

/// SplitMix64, which is all that a random space needs.
struct Numbers(u64);

impl Numbers {
    /// From 0, exclusive, to 1.
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // 53 bits are what a double holds.
        ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Of the normal distribution (Box and Muller 1958).
    fn normal(&mut self) -> f32 {
        let (length, turn) = (self.uniform(), self.uniform());
        ((-2.0 * length.ln()).sqrt() * (std::f64::consts::TAU * turn).cos()) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 150;
    const COLUMNS: usize = 90;

    fn random(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
        let mut numbers = Numbers(seed);
        (0..rows * columns).map(|_| numbers.normal()).collect()
    }

    /// `(rows, rank)` times `(rank, columns)`.
    fn times(up: &[f32], down: &[f32], rows: usize, columns: usize, rank: usize) -> Vec<f32> {
        let at = |i: usize, j: usize| {
            (0..rank).map(|r| up[i * rank + r] * down[r * columns + j]).sum::<f32>()
        };
        (0..rows).flat_map(|i| (0..columns).map(move |j| at(i, j))).collect()
    }

    /// `||a - b|| / ||a||`
    fn error(a: &[f32], b: &[f32]) -> f64 {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        (off / a.iter().map(|&a| square(a)).sum::<f64>()).sqrt()
    }

    #[test]
    fn a_low_rank_is_recovered() {
        for (rows, columns) in [(ROWS, COLUMNS), (COLUMNS, ROWS), (ROWS, 8), (1, COLUMNS)] {
            let rank = 3.min(rows);
            let (up, down) = (random(rows, rank, 1), random(rank, columns, 2));
            let matrix = times(&up, &down, rows, columns, rank);
            for wanted in [Wanted::Rank(rank), Wanted::Energy(0.9999)] {
                let found = factor(&matrix, rows, columns, wanted);
                assert_eq!(found.rank, rank, "{rows} {columns} {wanted:?}");
                let again = times(&found.up, &found.down, rows, columns, rank);
                let error = error(&matrix, &again);
                assert!(error < 1e-4, "{rows} {columns} {wanted:?}: {error}");
                assert!(found.held > 0.9999, "{wanted:?}: {}", found.held);
            }
        }
    }

    #[test]
    fn what_is_held_is_what_a_full_decomposition_holds() {
        let matrix = random(ROWS, COLUMNS, 3);
        let full = MatRef::from_row_major_slice(&matrix, ROWS, COLUMNS).singular_values().unwrap();
        let squares: Vec<f64> = full.iter().map(|&x| f64::from(x) * f64::from(x)).collect();
        let share = |rank: usize| squares[..rank].iter().sum::<f64>() / squares.iter().sum::<f64>();
        for rank in [1, 5, 20, 60, COLUMNS, 2 * COLUMNS] {
            let found = factor(&matrix, ROWS, COLUMNS, Wanted::Rank(rank));
            let rank = rank.min(COLUMNS);
            assert_eq!(found.rank, rank);
            assert!((found.held - share(rank)).abs() < 1e-2, "{rank}: {}", found.held);
            let again = times(&found.up, &found.down, ROWS, COLUMNS, rank);
            let lost = error(&matrix, &again).powi(2);
            assert!((1.0 - lost - found.held).abs() < 1e-4, "{rank}: {lost}, {}", found.held);
        }
        // The sketch has to grow, and in the end to be the whole matrix.
        for energy in [0.1, 0.5, 0.9, 1.0] {
            let found = factor(&matrix, ROWS, COLUMNS, Wanted::Energy(energy));
            assert!(found.held >= energy - 1e-6, "{energy}: {}", found.held);
            let fewer = found.rank - 1;
            assert!(share(fewer) < energy + 1e-2, "{energy}: {} is too much", found.rank);
        }
    }

    #[test]
    fn nothing_has_no_rank() {
        for wanted in [Wanted::Rank(4), Wanted::Energy(0.9)] {
            let found = factor(&[0.0; 12], 3, 4, wanted);
            assert_eq!((found.rank, found.down.len(), found.up.len()), (0, 0, 0));
            assert_eq!(found.held, 1.0);
        }
    }

    #[test]
    fn the_same_again() {
        let matrix = random(ROWS, COLUMNS, 4);
        let [a, b] = [1, 2].map(|_| factor(&matrix, ROWS, COLUMNS, Wanted::Rank(7)));
        assert!(a.down == b.down && a.up == b.up);
    }
}
