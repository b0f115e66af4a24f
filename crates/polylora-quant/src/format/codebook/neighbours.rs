//! The grids as their encoders see them: for every run of levels that weights may round to, its
//! entry in the grid, or the entries about it that are to be tried.
//!
//! ggml tries the entries on the nearest one, two or three spheres about a run (on one sphere lie
//! all that are equally near), and takes the first of those that fit best. Which these are is worked
//! out once, for every run, when a format's first row is encoded: in one or two tenths of a second.

use super::{grids, spread};
use crate::isa::{LANES, Lanes, Simd};
use std::sync::LazyLock;

/// Of IQ1_S and IQ1_M: 3.7 MB, once it is used.
pub(in crate::format) static IQ1: LazyLock<Grid<8>> =
    LazyLock::new(|| Grid::new(&grids::IQ1, &[-1, 0, 1], 3));
/// Of IQ2_XXS: 1.6 MB.
pub(in crate::format) static IQ2_XXS: LazyLock<Grid<8>> =
    LazyLock::new(|| Grid::new(&grids::IQ2_XXS, &[1, 3, 5], 2));
/// Of IQ2_XS: 2.3 MB.
pub(in crate::format) static IQ2_XS: LazyLock<Grid<8>> =
    LazyLock::new(|| Grid::new(&grids::IQ2_XS, &[1, 3, 5], 2));
/// Of IQ2_S: 1.0 MB.
pub(in crate::format) static IQ2_S: LazyLock<Grid<8>> =
    LazyLock::new(|| Grid::new(&grids::IQ2_S, &[1, 3, 5], 1));
/// Of IQ3_XXS: 0.4 MB.
pub(in crate::format) static IQ3_XXS: LazyLock<Grid<4>> =
    LazyLock::new(|| Grid::new(&grids::IQ3_XXS, &[1, 3, 5, 7, 9, 11, 13, 15], 2));
/// Of IQ3_S: 0.4 MB.
pub(in crate::format) static IQ3_S: LazyLock<Grid<4>> =
    LazyLock::new(|| Grid::new(&grids::IQ3_S, &[1, 3, 5, 7, 9, 11, 13, 15], 3));

/// A grid of runs of `W` codes.
///
/// A run has a number: those of its levels, the first lowest, as the digits of a number whose base
/// is how many levels there are. So the numbers leave no gaps.
pub(in crate::format) struct Grid<const W: usize> {
    /// The entries.
    pub(super) codes: Box<[[i8; W]]>,
    /// By a run's number.
    ways: Box<[Way]>,
    chunks: Box<[Chunk<W>]>,
}

/// What there is for a run: entry `first` of the grid where `chunks` is 0, which is the run itself;
/// else so many chunks, from `first` on.
#[derive(Clone, Copy)]
struct Way {
    first: u16,
    chunks: u16,
}

/// Sixteen entries to try, in columns. What the last chunk of a run lacks repeats its first entry.
#[derive(Clone, Copy)]
struct Chunk<const W: usize> {
    codes: [[i8; LANES]; W],
    index: [u16; LANES],
}

impl<const W: usize> Grid<W> {
    /// The grid of these `packed` level numbers; runs off it get the entries on the nearest
    /// `spheres`.
    fn new<const N: usize>(packed: &[u16; N], levels: &[i8], spheres: usize) -> Grid<W> {
        let numbers = &[0, 1, 2, 3, 4, 5, 6, 7][..levels.len()];
        let entries = spread::<W, N>(packed, numbers);
        // The squares of each entry's distance from a level, by place and level.
        let off = |place: usize, level: i8| {
            entries.iter().map(move |entry| entry[place].abs_diff(level).pow(2)).collect()
        };
        let squares: Vec<Vec<Vec<u8>>> =
            (0..W).map(|place| numbers.iter().map(|&level| off(place, level)).collect()).collect();

        let (mut ways, mut chunks) = (Vec::new(), Vec::new());
        for number in 0..levels.len().pow(W as u32) {
            let mut distances = vec![0_u8; N]; // At most four times seven squared.
            let mut rest = number;
            for squares in &squares {
                for (distance, square) in distances.iter_mut().zip(&squares[rest % levels.len()]) {
                    *distance += square;
                }
                rest /= levels.len();
            }
            if let Some(index) = distances.iter().position(|&distance| distance == 0) {
                ways.push(Way { first: index as u16, chunks: 0 });
                continue;
            }
            let first = chunks.len();
            for near in nearest(&distances, spheres).chunks(LANES) {
                let mut chunk = Chunk { codes: [[0; LANES]; W], index: [near[0]; LANES] };
                chunk.index[..near.len()].copy_from_slice(near);
                for (lane, &index) in chunk.index.iter().enumerate() {
                    for (codes, &level) in chunk.codes.iter_mut().zip(&entries[usize::from(index)])
                    {
                        codes[lane] = levels[level as usize];
                    }
                }
                chunks.push(chunk);
            }
            ways.push(Way { first: first as u16, chunks: (chunks.len() - first) as u16 });
        }
        Grid {
            codes: spread::<W, N>(packed, levels).into(),
            ways: ways.into(),
            chunks: chunks.into(),
        }
    }

    /// The entry for the run with this `number`, to which weights `x` were rounded, and whether that
    /// is the run itself.
    ///
    /// If not, it is the one for which the squares of `scale * code - x` add up to the least, each
    /// by its `w`; `shift`, where given, is added to the codes. Where all of these sums are beyond
    /// single precision, ggml aborts; here it is the nearest entry.
    #[inline(always)]
    pub(super) fn snap<S: Simd>(
        &self,
        s: S,
        number: u16,
        x: &[f32; W],
        w: &[f32; W],
        scale: f32,
        shift: Option<f32>,
    ) -> (u16, bool) {
        let Way { first, chunks } = self.ways[usize::from(number)];
        if chunks == 0 {
            return (first, true);
        }
        let chunks = &self.chunks[usize::from(first)..][..usize::from(chunks)];
        let mut index = chunks[0].index[0];
        let mut least = f32::MAX;
        for chunk in chunks {
            let mut sum = s.splat(0.0);
            for i in 0..W {
                let code = s.load_whole(&chunk.codes[i]);
                let code = match shift {
                    Some(shift) => code + s.splat(shift),
                    None => code,
                };
                let off = s.splat(scale) * code - s.splat(x[i]);
                sum = sum + s.splat(w[i]) * off * off;
            }
            let sum = sum.min(s.splat(f32::MAX)); // What is no number, too.
            let smallest = -(s.splat(0.0) - sum).largest();
            if smallest < least {
                least = smallest;
                let there = S::F32::bits(sum.eq(s.splat(smallest)));
                index = chunk.index[there.trailing_zeros() as usize % LANES];
            }
        }
        (index, false)
    }
}

/// What lies on the nearest few `spheres`: the nearer first, and in order.
fn nearest(distances: &[u8], spheres: usize) -> Vec<u16> {
    let mut seen = [false; 256];
    for &distance in distances {
        seen[usize::from(distance)] = true;
    }
    let radii = (0..=255).filter(|&radius| seen[usize::from(radius)]);
    let farthest = radii.take(spheres).last().unwrap_or(0);
    let near = (0..).zip(distances).filter(|&(_, &distance)| distance <= farthest);
    let mut near: Vec<u16> = near.map(|(index, _)| index).collect();
    near.sort_by_key(|&index| distances[usize::from(index)]);
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many entries there are to try in all, by ggml's count, and the bytes that the
    /// documentation tells.
    #[track_caller]
    fn assert_size<const W: usize>(grid: &Grid<W>, spheres_hold: usize, megabytes: f64) {
        let mut held = 0;
        for way in &grid.ways {
            for chunk in &grid.chunks[usize::from(way.first)..][..usize::from(way.chunks)] {
                let padding = chunk.index[1..].iter().filter(|&&index| index == chunk.index[0]);
                held += LANES - padding.count();
            }
        }
        assert_eq!(held, spheres_hold);
        let bytes =
            size_of_val(&*grid.codes) + size_of_val(&*grid.ways) + size_of_val(&*grid.chunks);
        assert!((bytes as f64 / 1e6 - megabytes).abs() < 0.05, "{bytes}");
    }

    #[test]
    fn tables_hold_what_they_should() {
        assert_size(&IQ1, 327_721, 3.7);
        assert_size(&IQ2_XXS, 113_157, 1.6);
        assert_size(&IQ2_XS, 181_721, 2.3);
        assert_size(&IQ2_S, 44_716, 1.0);
        assert_size(&IQ3_XXS, 18_985, 0.4);
        assert_size(&IQ3_S, 24_733, 0.4);
    }
}
