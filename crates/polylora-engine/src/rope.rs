//! Rotary position embeddings.

use crate::Error;
use crate::model::Keys;
use polylora_quant::{Isa, vector};

/// Which values of a head are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// `2 i` and `2 i + 1`.
    Neighbours,
    /// `i` and `i + d / 2`.
    Halves,
}

/// The rotation of queries and keys: pair `i` of a head at position `p` is turned by
/// `p * frequency[i]`.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    pairs: Pairs,
    /// Values of a head that are turned; even. The rest stays.
    pub(crate) dimensions: usize,
    base: f32,
    scaling: Scaling,
    /// Divisors of the frequencies.
    factors: Option<Factors>,
    /// What sine and cosine are multiplied with.
    magnitude: f32,
}

/// How the angles of a longer context are brought into the range of training.
#[derive(Clone, Copy, Debug)]
enum Scaling {
    /// Positions are divided.
    Linear { factor: f32 },
    /// Peng et al., 2023 (YaRN): high frequencies stay, low ones are divided, with a ramp between
    /// those that turn `BETA_FAST` and `BETA_SLOW` times in the original context.
    Yarn { factor: f32, original: usize, beta_fast: f32, beta_slow: f32 },
}

/// See [`Rope::factors`].
#[derive(Clone, Debug)]
enum Factors {
    /// For any context: Llama 3.
    Always(Vec<f32>),
    /// One set for contexts up to `original` tokens, one for longer ones: LongRoPE (Phi 3).
    ByContext { original: usize, short: Vec<f32>, long: Vec<f32> },
}

/// Turns in the original context, as the paper has them.
const BETA_FAST: f32 = 32.0;
const BETA_SLOW: f32 = 1.0;

impl Rope {
    /// As the metadata has it; `head` values in a head.
    pub(crate) fn read(
        keys: &Keys<'_>,
        pairs: Pairs,
        head: usize,
        context: usize,
    ) -> Result<Rope, Error> {
        let dimensions = keys.size("rope.dimension_count")?.unwrap_or(head);
        if dimensions > head || !dimensions.is_multiple_of(2) {
            let why = format!("is {dimensions}, in heads of {head}: it must be even, and not more");
            return Err(keys.error("rope.dimension_count", why));
        }
        let factor = match keys.float("rope.scaling.factor")? {
            None => keys.float_or("rope.scale_linear", 1.0)?,
            Some(0.0) => 1.0,
            Some(factor) => factor,
        };
        let original = keys.size("rope.scaling.original_context_length")?.unwrap_or(context);
        let attention_factor = keys.float_or("rope.scaling.attn_factor", 1.0)?;
        let (scaling, magnitude) = match keys.text("rope.scaling.type").unwrap_or("linear") {
            "none" => (Scaling::Linear { factor: 1.0 }, 1.0),
            "linear" | "longrope" => (Scaling::Linear { factor }, 1.0),
            "yarn" => {
                let beta_fast = keys.float_or("rope.scaling.yarn_beta_fast", BETA_FAST)?;
                let beta_slow = keys.float_or("rope.scaling.yarn_beta_slow", BETA_SLOW)?;
                let magnitude = if factor > 1.0 { 1.0 + 0.1 * factor.ln() } else { 1.0 };
                (Scaling::Yarn { factor, original, beta_fast, beta_slow }, magnitude)
            }
            other => {
                let why = format!("is {other:?}; known are none, linear, yarn and longrope");
                return Err(keys.error("rope.scaling.type", why));
            }
        };
        let values = |name: &str| keys.values(name, dimensions / 2);
        let long = values("rope_factors_long.weight")?;
        let factors = match (values("rope_freqs.weight")?, long) {
            (Some(factors), _) => Some(Factors::Always(factors)),
            (None, None) => None,
            (None, Some(long)) => {
                let short = values("rope_factors_short.weight")?
                    .unwrap_or_else(|| vec![1.0; dimensions / 2]);
                Some(Factors::ByContext { original, short, long })
            }
        };
        Ok(Rope {
            pairs,
            dimensions,
            base: keys.float_or("rope.freq_base", 10_000.0)?,
            scaling,
            factors,
            magnitude: magnitude * attention_factor,
        })
    }

    /// The same with another base, where there is one.
    pub(crate) fn with_base(&self, base: Option<f32>) -> Rope {
        Rope { base: base.unwrap_or(self.base), ..self.clone() }
    }

    /// The same for positions as they are.
    pub(crate) fn unscaled(&self) -> Rope {
        Rope { scaling: Scaling::Linear { factor: 1.0 }, ..self.clone() }
    }

    /// Whether sequences of up to `context` tokens are long ones, which may turn otherwise.
    pub(crate) fn is_long(&self, context: usize) -> bool {
        matches!(self.factors, Some(Factors::ByContext { original, .. }) if context > original)
    }

    /// The angle per position of each pair. In double precision, for positions are large numbers.
    fn frequencies(&self, is_long: bool) -> Vec<f64> {
        let count = self.dimensions / 2;
        let base = f64::from(self.base);
        let plain = |pair: usize| base.powf(-2.0 * pair as f64 / self.dimensions as f64);
        let scaled = |pair: usize, plain: f64| match self.scaling {
            Scaling::Linear { factor } => plain / f64::from(factor),
            Scaling::Yarn { factor, original, beta_fast, beta_slow } => {
                // The pair that turns `turns` times in the original context.
                let pair_of = |turns: f32| {
                    let per_turn = original as f64 / (f64::from(turns) * std::f64::consts::TAU);
                    self.dimensions as f64 * per_turn.ln() / (2.0 * base.ln())
                };
                let first = pair_of(beta_fast).floor().max(0.0);
                let last = pair_of(beta_slow).ceil().min(self.dimensions as f64 - 1.0);
                let ramp = (pair as f64 - first) / (last - first).max(0.001);
                let kept = 1.0 - ramp.clamp(0.0, 1.0);
                plain * kept + plain / f64::from(factor) * (1.0 - kept)
            }
        };
        let factors = match &self.factors {
            None => None,
            Some(Factors::Always(factors)) => Some(factors),
            Some(Factors::ByContext { short, long, .. }) => {
                Some(if is_long { long } else { short })
            }
        };
        let divisor = |pair: usize| factors.map_or(1.0, |factors| f64::from(factors[pair]));
        (0..count).map(|pair| scaled(pair, plain(pair) / divisor(pair))).collect()
    }

    /// A table for sequences that are [long](Rope::is_long) or not.
    pub(crate) fn table(&self, is_long: bool) -> RopeTable {
        RopeTable {
            pairs: self.pairs,
            frequencies: self.frequencies(is_long),
            magnitude: f64::from(self.magnitude),
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }
}

/// Sines and cosines of the positions that have come up so far.
#[derive(Debug)]
pub(crate) struct RopeTable {
    pairs: Pairs,
    frequencies: Vec<f64>,
    magnitude: f64,
    /// `(position, pair)`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Makes sure of all positions below `end`.
    pub(crate) fn extend(&mut self, end: usize) {
        let have = self.cos.len().checked_div(self.frequencies.len()).unwrap_or(end);
        for position in have..end {
            for frequency in &self.frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.cos.push((cos * self.magnitude) as f32);
                self.sin.push((sin * self.magnitude) as f32);
            }
        }
    }

    /// Turns one head.
    pub(crate) fn turn(&self, isa: Isa, position: usize, head: &mut [f32]) {
        let count = self.frequencies.len();
        let at = position * count..(position + 1) * count;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        match self.pairs {
            Pairs::Neighbours => vector::rotate_neighbours(isa, head, cos, sin),
            Pairs::Halves => vector::rotate_halves(isa, head, cos, sin),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(pairs: Pairs, scaling: Scaling, factors: Option<Factors>) -> Rope {
        Rope { pairs, dimensions: 4, base: 10_000.0, scaling, factors, magnitude: 1.0 }
    }

    #[test]
    fn a_pair_turns_by_its_angle() {
        // Su et al., 2021: pair i at position p turns by p * base^(-2i/d).
        let plain = Scaling::Linear { factor: 1.0 };
        for (pairs, places) in [(Pairs::Neighbours, [0, 1, 2, 3]), (Pairs::Halves, [0, 2, 1, 3])] {
            let mut table = rope(pairs, plain, None).table(false);
            table.extend(4);
            let mut head = [0.0; 5];
            head[places[0]] = 1.0;
            head[places[2]] = 1.0;
            head[4] = 7.0; // Not turned.
            table.turn(Isa::best(), 3, &mut head);
            let want = [3.0_f32.cos(), 3.0_f32.sin(), 0.03_f32.cos(), 0.03_f32.sin()];
            for (place, want) in places.into_iter().zip(want) {
                assert!((head[place] - want).abs() < 1e-6, "{pairs:?}: {head:?}");
            }
            assert_eq!(head[4], 7.0);
        }
    }

    #[test]
    fn scaling_divides_positions() {
        let halved = rope(Pairs::Halves, Scaling::Linear { factor: 2.0 }, None);
        assert_eq!(halved.frequencies(false), [0.5, 0.005]);
        let factors = |short: f32, long: f32| Factors::ByContext {
            original: 8,
            short: vec![short, 1.0],
            long: vec![long, 1.0],
        };
        let by_context =
            rope(Pairs::Halves, Scaling::Linear { factor: 1.0 }, Some(factors(4.0, 8.0)));
        for (context, want) in [(8, 0.25), (9, 0.125)] {
            assert_eq!(by_context.frequencies(by_context.is_long(context))[0], want);
        }
    }

    #[test]
    fn yarn_keeps_what_turns_often() {
        let scaling =
            Scaling::Yarn { factor: 4.0, original: 4096, beta_fast: 32.0, beta_slow: 1.0 };
        let rope = Rope { dimensions: 128, ..rope(Pairs::Halves, scaling, None) };
        let plain = |pair: usize| 10_000f64.powf(-2.0 * pair as f64 / 128.0);
        let frequencies = rope.frequencies(false);
        assert_eq!(frequencies[0], plain(0));
        assert_eq!(frequencies[63], plain(63) / 4.0);
        let between = frequencies[32] / plain(32);
        assert!(between > 0.25 && between < 1.0, "{between}");
    }
}
