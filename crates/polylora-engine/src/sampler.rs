//! From logits to a token: the sampling parameters that users of llama.cpp and vLLM know.

use polylora_quant::{Isa, vector};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};

/// How the next token is chosen.
///
/// Names, defaults and order are those of llama.cpp's default chain: `logit_bias`, the three
/// penalties, `top_k`, `top_p`, `min_p`, `temperature`, then the draw. (vLLM divides by the
/// temperature before it cuts; with a temperature of 1 there is no difference.)
///
/// ```
/// # use polylora_engine::SamplingParams;
/// let json = r#"{"temperature": 0.2, "logit_bias": {"50256": -100}}"#;
/// let params: SamplingParams = serde_json::from_str(json)?;
/// params.validate()?;
/// assert_eq!((params.temperature, params.top_k), (0.2, 40));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// What logits are divided by before the draw; 0 takes the likeliest token, without a draw.
    pub temperature: f32,
    /// Only this many of the likeliest tokens stay; 0 or less: all.
    pub top_k: i32,
    /// Of the tokens so far, the fewest whose probabilities reach this sum stay; in (0, 1].
    pub top_p: f32,
    /// Tokens less likely than this share of the likeliest's probability go; in \[0, 1\].
    pub min_p: f32,
    /// Divides a positive logit, multiplies a negative one, of each token seen; 1: no change.
    #[serde(alias = "repetition_penalty")]
    pub repeat_penalty: f32,
    /// How many of the last tokens the three penalties look at; 0: none, -1: all.
    pub repeat_last_n: i32,
    /// Taken off the logit of each token seen.
    pub presence_penalty: f32,
    /// Taken off the logit of each token once for every time that it was seen.
    pub frequency_penalty: f32,
    /// Added to logits, by token; negative infinity forbids a token.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The same seed, parameters and logits give the same tokens; none: a new seed each time.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
        }
    }
}

/// Sampling parameters that cannot be followed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidParams {
    /// A parameter out of its range.
    #[error("{name} is {value}: it must be {expected}")]
    OutOfRange {
        /// Which parameter.
        name: &'static str,
        /// What was given.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// A bias that is no number to add.
    #[error("logit_bias of token {token} is {bias}: it must be a finite number, or -inf to forbid")]
    Bias {
        /// Whose bias.
        token: u32,
        /// What was given.
        bias: f32,
    },
    /// A bias for a token that does not exist.
    #[error("logit_bias names token {token}, but the vocabulary ends at {}", vocab_size - 1)]
    UnknownToken {
        /// The token.
        token: u32,
        /// How many there are.
        vocab_size: usize,
    },
    /// A model without tokens.
    #[error("the vocabulary is empty: there is nothing to sample")]
    EmptyVocabulary,
}

impl SamplingParams {
    /// Whether every parameter is in its range; the first that is not, otherwise.
    pub fn validate(&self) -> Result<(), InvalidParams> {
        let SamplingParams { temperature, top_p, min_p, repeat_penalty, .. } = *self;
        let SamplingParams { repeat_last_n, presence_penalty, frequency_penalty, .. } = *self;
        let checks = [
            // Comparisons with NaN are false, so NaN passes none of these.
            (
                "temperature",
                temperature,
                temperature >= 0.0 && temperature.is_finite(),
                "0 (always the likeliest token) or a positive number",
            ),
            ("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1 (1 keeps all)"),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 (keeps all) to 1"),
            (
                "repeat_penalty",
                repeat_penalty,
                // Not subnormal: a logit divided by it is to stay finite.
                repeat_penalty > 0.0 && repeat_penalty.is_normal(),
                "a positive number (1 changes nothing)",
            ),
            (
                "repeat_last_n",
                repeat_last_n as f32,
                repeat_last_n >= -1,
                "a number of tokens, 0 for none or -1 for all",
            ),
            (
                "presence_penalty",
                presence_penalty,
                presence_penalty.is_finite(),
                "a finite number (0 changes nothing)",
            ),
            (
                "frequency_penalty",
                frequency_penalty,
                frequency_penalty.is_finite(),
                "a finite number (0 changes nothing)",
            ),
        ];
        for (name, value, valid, expected) in checks {
            if !valid {
                return Err(InvalidParams::OutOfRange { name, value, expected });
            }
        }
        match self.logit_bias.iter().find(|(_, b)| !b.is_finite() && **b != f32::NEG_INFINITY) {
            Some((&token, &bias)) => Err(InvalidParams::Bias { token, bias }),
            None => Ok(()),
        }
    }

    /// [`top_k`](SamplingParams::top_k), where it limits anything.
    fn top_k(&self) -> Option<usize> {
        usize::try_from(self.top_k).ok().filter(|&k| k > 0)
    }

    /// Whether some tokens cannot be drawn for their rank.
    fn cuts(&self) -> bool {
        self.top_k().is_some() || self.top_p < 1.0 || self.min_p > 0.0
    }
}

/// A token, and how likely it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its share of the distribution that it was drawn from, after all that the parameters did;
    /// 1 where there was no draw. What the model itself gave it is
    /// [`LogProbs::of`](crate::LogProbs::of).
    pub probability: f32,
}

/// Why no token could be sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// Logits of another vocabulary.
    #[error("{given} logits were given for a vocabulary of {vocab_size} tokens")]
    WrongLength {
        /// How many came.
        given: usize,
        /// How many were due.
        vocab_size: usize,
    },
    /// There is nothing to choose from.
    #[error(
        "no token can be sampled: every logit is NaN or minus infinity (the model's output is \
         damaged, or every token is forbidden)"
    )]
    NoCandidate,
}

/// Chooses tokens for one sequence: parameters, what was seen, and a source of random numbers.
///
/// Random numbers are SplitMix64 (Steele, Lea, Flood 2014) from the seed, one for each token
/// drawn (none at temperature 0), and sums are taken in a fixed order: a seed gives the same tokens
/// everywhere, as far as the logits and the instruction sets' rounding agree.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    vocab_size: usize,
    random: SplitMix64,
    /// The last tokens that penalties look at, oldest first.
    window: VecDeque<u32>,
    /// How often each token is in `window`.
    seen: HashMap<u32, u32>,
    /// Kept between tokens for its memory alone, like `weights` and `sums`.
    candidates: Vec<Candidate>,
    weights: Vec<f32>,
    sums: Vec<f64>,
}

impl Sampler {
    /// A sampler with nothing seen yet, for logits of `vocab_size` tokens.
    pub fn new(params: SamplingParams, vocab_size: usize) -> Result<Sampler, InvalidParams> {
        params.validate()?;
        if vocab_size == 0 {
            return Err(InvalidParams::EmptyVocabulary);
        }
        if let Some((&token, _)) = params.logit_bias.last_key_value()
            && token as usize >= vocab_size
        {
            return Err(InvalidParams::UnknownToken { token, vocab_size });
        }
        // The standard library keys its hashers from the system's source of randomness.
        let seed = params.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        Ok(Sampler {
            params,
            vocab_size,
            random: SplitMix64(seed),
            window: VecDeque::new(),
            seen: HashMap::new(),
            candidates: Vec::new(),
            weights: Vec::new(),
            sums: Vec::new(),
        })
    }

    /// Notes a token that the penalties are to know: those that were sampled, and before them the
    /// prompt's where penalties shall cover it.
    pub fn accept(&mut self, token: u32) {
        let room = match self.params.repeat_last_n {
            0 => return,
            n if n < 0 => usize::MAX,
            n => n as usize,
        };
        if self.window.len() == room
            && let Some(oldest) = self.window.pop_front()
            && let Some(count) = self.seen.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.seen.remove(&oldest);
            }
        }
        self.window.push_back(token);
        *self.seen.entry(token).or_insert(0) += 1;
    }

    /// Chooses a token by `logits`, one for each of the vocabulary, which are left with biases and
    /// penalties applied. It is not [accepted](Sampler::accept) yet.
    ///
    /// NaN counts as minus infinity, which is never chosen. Between equal logits the lower token
    /// goes first.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<Sampled, SampleError> {
        if logits.len() != self.vocab_size {
            return Err(SampleError::WrongLength {
                given: logits.len(),
                vocab_size: self.vocab_size,
            });
        }
        self.bias(logits);
        self.penalize(logits);
        let sampled = if self.params.temperature == 0.0 {
            likeliest(logits).map(|token| Sampled { token, probability: 1.0 })
        } else if self.params.cuts() {
            self.cut(logits);
            self.weights.clear();
            self.weights.extend(self.candidates.iter().map(|c| c.logit));
            self.draw().map(|(place, probability)| Sampled {
                token: self.candidates[place].token,
                probability,
            })
        } else {
            self.weights.clear();
            self.weights.extend_from_slice(logits);
            self.draw().map(|(place, probability)| Sampled { token: place as u32, probability })
        };
        sampled.ok_or(SampleError::NoCandidate)
    }

    fn bias(&self, logits: &mut [f32]) {
        for (&token, bias) in &self.params.logit_bias {
            logits[token as usize] += bias;
        }
    }

    fn penalize(&self, logits: &mut [f32]) {
        let SamplingParams { repeat_penalty, presence_penalty, frequency_penalty, .. } =
            self.params;
        if (repeat_penalty, presence_penalty, frequency_penalty) == (1.0, 0.0, 0.0) {
            return;
        }
        for (&token, &count) in &self.seen {
            // Tokens of a prompt may lie outside the vocabulary that has logits.
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            // Dividing a negative logit would make its token likelier.
            if *logit <= 0.0 {
                *logit *= repeat_penalty;
            } else {
                *logit /= repeat_penalty;
            }
            *logit -= count as f32 * frequency_penalty + presence_penalty;
        }
    }

    /// Leaves in `candidates` what `top_k`, `top_p` and `min_p` let through.
    fn cut(&mut self, logits: &[f32]) {
        let max = vector::max(Isa::best(), logits).min(f32::MAX);
        let top_p = f64::from(self.params.top_p);
        let least = f64::from(max) + f64::from(self.params.min_p).ln();
        let kept = &mut self.candidates;
        if let Some(k) = self.params.top_k() {
            highest(logits, k, kept);
            if top_p < 1.0 {
                let weight = |c: &Candidate| (f64::from(c.logit) - f64::from(max)).exp();
                let mut missing = top_p * kept.iter().map(weight).sum::<f64>();
                kept.retain(|c| {
                    let was_missing = missing;
                    missing -= weight(c);
                    was_missing > 0.0
                });
            }
            kept.retain(|c| f64::from(c.logit) >= least);
        } else if top_p < 1.0 {
            self.nucleus(logits, max);
            self.candidates.retain(|c| f64::from(c.logit) >= least);
        } else {
            at_least(logits, least, kept);
        }
    }

    /// Leaves in `candidates` the fewest tokens whose probabilities reach `top_p`. A vocabulary is
    /// not sorted for that: halving finds about where the last of them lies.
    fn nucleus(&mut self, logits: &[f32], max: f32) {
        /// Halvings: after these, tokens within a hundredth of a nat are left to be sorted.
        const HALVINGS: usize = 11;
        let isa = Isa::best();
        let top_p = f64::from(self.params.top_p);
        self.weights.clear();
        self.weights.extend_from_slice(logits);
        let total = vector::exp_sum(isa, &mut self.weights, max, 1.0);
        let enough = top_p * total;
        let reached = |least| vector::sum_where_at_least(isa, &self.weights, logits, least);

        // Tokens that have `low` reach enough, those that have `high` do not. Where each has less
        // than this share, they have not `1 - top_p` together: the others have `top_p`.
        let share = (1.0 - top_p) / logits.len() as f64;
        let mut low = max + (share * total).ln() as f32;
        let mut high = max.next_up().min(f32::MAX);
        for _ in 0..HALVINGS {
            let middle = low + (high - low) / 2.0;
            *(if reached(middle) >= enough { &mut low } else { &mut high }) = middle;
        }
        let mut missing = enough - reached(high);
        let kept = &mut self.candidates;
        at_least(logits, low.into(), kept);
        let mut border: Vec<Candidate> = kept.extract_if(.., |c| c.logit < high).collect();
        border.sort_unstable_by(Candidate::rank);
        kept.extend(border.into_iter().take_while(|c| {
            let was_missing = missing;
            missing -= f64::from(self.weights[c.token as usize]);
            was_missing > 0.0
        }));
    }

    /// Draws one of the logits in `weights`, by their probabilities at the temperature: its place,
    /// and its probability; none where no logit is a number.
    fn draw(&mut self) -> Option<(usize, f32)> {
        let isa = Isa::best();
        let max = vector::max(isa, &self.weights);
        if max == f32::NEG_INFINITY {
            return None;
        }
        self.sums.clear();
        let blocks = self.weights.chunks_mut(BLOCK);
        self.sums
            .extend(blocks.map(|block| vector::exp_sum(isa, block, max, self.params.temperature)));
        let total: f64 = self.sums.iter().sum();

        let left = self.random.unit() * total;
        let (block, left) = falls_in(self.sums.iter().copied(), left)?;
        let weights = self.weights.iter().skip(block * BLOCK).take(BLOCK);
        let (place, _) = falls_in(weights.map(|&weight| weight.into()), left)?;
        let place = block * BLOCK + place;
        Some((place, (f64::from(self.weights[place]) / total) as f32))
    }
}

/// Weights of which the sum is looked at before they are.
const BLOCK: usize = 256;

/// The sum of `exp(logit - max)`, without those that are no numbers.
pub(crate) fn exp_total(logits: &[f32], max: f32) -> f64 {
    let isa = Isa::best();
    let mut block = [0.0; BLOCK];
    let sums = logits.chunks(BLOCK).map(|logits| {
        let block = &mut block[..logits.len()];
        block.copy_from_slice(logits);
        vector::exp_sum(isa, block, max, 1.0)
    });
    sums.sum()
}

/// Which of the weights `left` falls in when they are laid end to end, and how far into it. Where
/// rounding lays `left` behind them all, the last that is not zero.
fn falls_in(weights: impl Iterator<Item = f64>, mut left: f64) -> Option<(usize, f64)> {
    let mut found = None;
    for (place, weight) in weights.enumerate() {
        if weight > 0.0 {
            found = Some((place, left));
            if left < weight {
                break;
            }
        }
        left -= weight;
    }
    found
}

/// A token that may be chosen. Its logit is finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) logit: f32,
    pub(crate) token: u32,
}

impl Candidate {
    /// None for NaN and negative infinity. Infinity is the largest number, so that differences of
    /// logits are numbers.
    pub(crate) fn new(token: u32, logit: f32) -> Option<Candidate> {
        (logit > f32::NEG_INFINITY).then_some(Candidate { logit: logit.min(f32::MAX), token })
    }

    /// Higher logits first, equal ones by token.
    fn rank(&self, other: &Candidate) -> Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal);
        by_logit.then(self.token.cmp(&other.token))
    }
}

/// Logits of which the largest is looked for first: that is fast, and most often it says that there
/// is nothing among them.
const GLANCE: usize = 64;

/// The token with the highest logit, the lowest of equal ones.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let max = vector::max(Isa::best(), logits);
    let found = logits.iter().position(|&logit| logit == max && max > f32::NEG_INFINITY);
    found.map(|token| token as u32)
}

/// All logits from `least` on.
fn at_least(logits: &[f32], least: f64, out: &mut Vec<Candidate>) {
    let isa = Isa::best();
    out.clear();
    for (first, block) in (0..).step_by(GLANCE).zip(logits.chunks(GLANCE)) {
        if f64::from(vector::max(isa, block)) >= least {
            let all = (first..).zip(block).filter_map(|(t, &l)| Candidate::new(t, l));
            out.extend(all.filter(|c| f64::from(c.logit) >= least));
        }
    }
}

/// The `n` highest logits, in order. One pass that compares each logit with the `n`th highest of
/// those before: the vocabulary is never sorted, and hardly ever copied.
pub(crate) fn highest(logits: &[f32], n: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if n == 0 {
        return;
    }
    let isa = Isa::best();
    // Room to gather some before the `n`th of them is sought again.
    let room = n.saturating_mul(2).max(256);
    let mut floor = f32::NEG_INFINITY;
    for (first, block) in (0..).step_by(GLANCE).zip(logits.chunks(GLANCE)) {
        // A logit equal to the floor has a later token: it comes after all that are kept.
        if vector::max(isa, block) <= floor {
            continue;
        }
        for (token, &logit) in (first..).zip(block) {
            if logit > floor
                && let Some(candidate) = Candidate::new(token, logit)
            {
                out.push(candidate);
                if out.len() == room {
                    floor = out.select_nth_unstable_by(n - 1, Candidate::rank).1.logit;
                    out.truncate(n);
                }
            }
        }
    }
    out.sort_unstable_by(Candidate::rank);
    out.truncate(n);
}

/// The generator of Steele, Lea and Flood, "Fast splittable pseudorandom number generators".
#[derive(Clone, Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to but not including 1, all multiples of 2^-53.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing cut, nothing changed.
    fn plain() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: Some(1),
            ..SamplingParams::default()
        }
    }

    /// Logits whose softmax is `shares`, off by a constant as a model's are.
    fn logits(shares: &[f32]) -> Vec<f32> {
        shares.iter().map(|s| s.ln() + 3.0).collect()
    }

    /// The distribution that `params` draw from, by drawing until every token was seen that can be.
    fn distribution(params: SamplingParams, logits: &[f32]) -> Vec<(u32, f32)> {
        let mut sampler = Sampler::new(params, logits.len()).unwrap();
        let mut shares = BTreeMap::new();
        for _ in 0..2000 {
            let Sampled { token, probability } = sampler.sample(&mut logits.to_vec()).unwrap();
            shares.insert(token, probability);
        }
        shares.into_iter().collect()
    }

    #[track_caller]
    fn assert_distribution(params: SamplingParams, logits: &[f32], expected: &[(u32, f32)]) {
        let found = distribution(params, logits);
        let close = |(a, b): (&(u32, f32), &(u32, f32))| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5;
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(close),
            "{found:?}, not {expected:?}"
        );
    }

    const SHARES: [f32; 4] = [0.15, 0.5, 0.05, 0.3];

    #[test]
    fn each_cut_leaves_what_it_should() {
        let all = logits(&SHARES);
        let whole = [(0, 0.15), (1, 0.5), (2, 0.05), (3, 0.3)];
        assert_distribution(plain(), &all, &whole);
        assert_distribution(SamplingParams { top_k: -1, ..plain() }, &all, &whole);
        assert_distribution(SamplingParams { top_k: 9, ..plain() }, &all, &whole);
        let two = [(1, 0.625), (3, 0.375)];
        assert_distribution(SamplingParams { top_k: 2, ..plain() }, &all, &two);
        // 0.5 falls short of 0.7, 0.5 + 0.3 reaches it.
        assert_distribution(SamplingParams { top_p: 0.7, ..plain() }, &all, &two);
        assert_distribution(SamplingParams { top_p: 1e-9, ..plain() }, &all, &[(1, 1.0)]);
        // 0.3 is above 0.5 * 0.5, 0.15 is not.
        assert_distribution(SamplingParams { min_p: 0.5, ..plain() }, &all, &two);
        // Squares: 0.0225, 0.25, 0.0025, 0.09 of 0.365.
        let squared = [(0, 0.061_644), (1, 0.684_932), (2, 0.006_849), (3, 0.246_575)];
        assert_distribution(SamplingParams { temperature: 0.5, ..plain() }, &all, &squared);
    }

    #[test]
    fn cuts_come_in_order_and_before_the_temperature() {
        let all = logits(&SHARES);
        // Among all, 0.5 falls short of 0.6; of the two that top_k leaves it is 0.625.
        let params = SamplingParams { top_k: 2, top_p: 0.6, ..plain() };
        assert_distribution(params, &all, &[(1, 1.0)]);
        // A high temperature makes all four nearly equal, but only among what was kept.
        let hot = SamplingParams { temperature: 1e6, top_p: 0.7, ..plain() };
        assert_distribution(hot, &all, &[(1, 0.5), (3, 0.5)]);
        let hot = SamplingParams { temperature: 1e6, min_p: 0.5, ..plain() };
        assert_distribution(hot, &all, &[(1, 0.5), (3, 0.5)]);
    }

    #[test]
    fn draws_are_as_frequent_as_they_are_probable() {
        let mut sampler = Sampler::new(plain(), 4).unwrap();
        let mut counts = [0u32; 4];
        let n = 100_000;
        for _ in 0..n {
            counts[sampler.sample(&mut logits(&SHARES)).unwrap().token as usize] += 1;
        }
        for (count, share) in counts.into_iter().zip(SHARES.map(f64::from)) {
            let deviation = (f64::from(n) * share * (1.0 - share)).sqrt();
            assert!(
                (f64::from(count) - f64::from(n) * share).abs() < 4.0 * deviation,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn biases_come_before_penalties_and_penalties_are_llama_cpps() {
        let params = SamplingParams {
            repeat_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: BTreeMap::from([(0, -2.0), (3, f32::NEG_INFINITY)]),
            ..plain()
        };
        let mut sampler = Sampler::new(params, 5).unwrap();
        for token in [0, 1, 1, 3, 77] {
            sampler.accept(token);
        }
        let mut given = [1.0, 4.0, 4.0, 4.0, 0.0];
        sampler.sample(&mut given).unwrap();
        // 1 - 2 is negative, so doubled; 4 is halved; each less 0.5 and 0.25 an occurrence.
        assert_eq!(given, [-2.75, 1.0, 4.0, f32::NEG_INFINITY, 0.0]);
    }

    #[test]
    fn penalties_look_at_the_last_tokens_alone() {
        let after = |repeat_last_n, tokens: &[u32]| {
            let params = SamplingParams { frequency_penalty: 1.0, repeat_last_n, ..plain() };
            let mut sampler = Sampler::new(params, 3).unwrap();
            tokens.iter().for_each(|&t| sampler.accept(t));
            let mut given = [0.0; 3];
            sampler.sample(&mut given).unwrap();
            given
        };
        assert_eq!(after(2, &[0, 0, 1, 0]), [-1.0, -1.0, 0.0]);
        assert_eq!(after(2, &[0, 1, 2, 2]), [0.0, 0.0, -2.0]);
        assert_eq!(after(-1, &[0, 0, 1, 0]), [-3.0, -1.0, 0.0]);
        assert_eq!(after(0, &[0, 0, 1, 0]), [0.0; 3]);
    }

    /// What llama.cpp's samplers leave, chained as in its `common/sampling.cpp` (version 0.3.36 of
    /// llama-cpp-python), for the same logits, with tokens from likeliest to least likely.
    #[test]
    fn the_whole_chain_is_llama_cpps() {
        let given: Vec<f32> =
            (0..24).map(|i| ((i * i * i * 7 + i * 13 + 5) % 103) as f32 / 25.0 - 2.0).collect();
        let chain = |params, seen: &[u32], expected: &[(u32, f32)]| {
            let mut sampler = Sampler::new(params, 24).unwrap();
            seen.iter().for_each(|&t| sampler.accept(t));
            let mut shares = BTreeMap::new();
            for _ in 0..2000 {
                let drawn = sampler.sample(&mut given.clone()).unwrap();
                shares.insert(drawn.token, drawn.probability);
            }
            let mut found: Vec<_> = shares.into_iter().collect();
            found.sort_by(|a, b| b.1.total_cmp(&a.1));
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found.0, expected.0);
                assert!((found.1 - expected.1).abs() < 2e-6, "{found:?}, not {expected:?}");
            }
        };

        let params = SamplingParams { top_k: 10, top_p: 0.8, seed: Some(1), ..Default::default() };
        let shares = [(4, 0.218240), (11, 0.207597), (8, 0.169966), (2, 0.161676)];
        chain(params, &[], &[&shares[..], &[(23, 0.153791), (9, 0.088730)]].concat());

        let params = SamplingParams {
            temperature: 1.5,
            top_p: 0.85,
            repeat_penalty: 1.3,
            frequency_penalty: 0.2,
            presence_penalty: 0.4,
            logit_bias: BTreeMap::from([(8, -1.0), (0, 2.5)]),
            ..plain()
        };
        let first = [(23, 0.151066), (18, 0.096004), (0, 0.092239), (11, 0.091767)];
        let next = [(8, 0.081809), (19, 0.077560), (2, 0.072484), (4, 0.071744)];
        let last = [(9, 0.064750), (6, 0.057842), (22, 0.056320), (16, 0.050622), (15, 0.035792)];
        chain(params, &[4, 4, 4, 11, 2, 2, 9], &[&first[..], &next, &last].concat());

        let params = SamplingParams {
            temperature: 0.5,
            top_k: 12,
            min_p: 0.3,
            repeat_penalty: 0.8,
            frequency_penalty: -0.3,
            presence_penalty: 0.1,
            ..plain()
        };
        let shares = [(2, 0.296937), (23, 0.268680), (4, 0.153472), (11, 0.141673)];
        let rest = [(8, 0.102876), (9, 0.036362)];
        chain(params, &[1, 1, 2, 23, 5], &[&shares[..], &rest].concat());
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_the_lowest_of_equals() {
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let mut sampler = Sampler::new(params, 4).unwrap();
        let taken = sampler.sample(&mut [-1.0, 2.0, f32::NAN, 2.0]).unwrap();
        assert_eq!(taken, Sampled { token: 1, probability: 1.0 });
    }

    #[test]
    fn a_seed_decides_every_draw() {
        // The generator's published first value for the seed 1234567.
        assert_eq!(SplitMix64(1_234_567).next(), 6_457_827_717_110_365_317);

        let draws = |seed| -> Vec<u32> {
            let params = SamplingParams { temperature: 1.5, seed, ..SamplingParams::default() };
            let mut sampler = Sampler::new(params, 1000).unwrap();
            let mut given: Vec<f32> = (0..1000).map(|i| (i * 37 % 101) as f32 * 0.1).collect();
            (0..12).map(|_| sampler.sample(&mut given).unwrap().token).collect()
        };
        assert_eq!(draws(Some(7)), draws(Some(7)));
        assert_ne!(draws(Some(7)), draws(Some(8)));
        assert_ne!(draws(None), draws(None));
    }

    #[test]
    fn damaged_logits_are_never_chosen_and_never_panic() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for temperature in [0.0, 1e-38, 1.0, f32::MAX] {
            for top_k in [0, 1, 2] {
                let params =
                    SamplingParams { temperature, top_k, top_p: 0.9, min_p: 0.1, ..plain() };
                let mut sampler = Sampler::new(params, 4).unwrap();
                let mut token = |mut logits: [f32; 4]| sampler.sample(&mut logits);
                assert_eq!(token([nan, -inf, 1.0, nan]).unwrap().token, 2);
                assert_eq!(token([nan, -inf, -f32::MAX, -inf]).unwrap().token, 2);
                assert_eq!(token([0.0, f32::MAX / 2.0, inf, -inf]).unwrap().token, 2);
                assert!([1, 2].contains(&token([0.0, inf, inf, nan]).unwrap().token));
                assert_eq!(token([nan, -inf, nan, -inf]), Err(SampleError::NoCandidate));
            }
        }
        let mut sampler = Sampler::new(plain(), 4).unwrap();
        let wrong = SampleError::WrongLength { given: 3, vocab_size: 4 };
        assert_eq!(sampler.sample(&mut [0.0; 3]), Err(wrong));
    }

    /// Some five thousand logits with many equal ones.
    fn many() -> Vec<f32> {
        let mut random = SplitMix64(5);
        (0..5000)
            .map(|_| ((random.unit() + random.unit()) * 500.0).round() as f32 / 100.0)
            .collect()
    }

    #[test]
    fn partial_selection_is_what_sorting_gives() {
        let given = many();
        let mut sorted: Vec<u32> = (0..5000).collect();
        // Stable: equal logits stay in the order of their tokens.
        sorted.sort_by(|&a, &b| given[b as usize].total_cmp(&given[a as usize]));
        let mut found = Vec::new();
        for n in [0, 1, 2, 40, 127, 128, 129, 3000, 5000, 6000] {
            highest(&given, n, &mut found);
            let tokens: Vec<u32> = found.iter().map(|c| c.token).collect();
            assert_eq!(tokens, sorted[..n.min(5000)], "{n}");
        }
        // Ascending logits replace what is kept over and over.
        let ascending: Vec<f32> = (0..5000).map(|i| i as f32).collect();
        highest(&ascending, 3, &mut found);
        assert_eq!(found.iter().map(|c| c.token).collect::<Vec<_>>(), [4999, 4998, 4997]);

        for top_p in [0.01, 0.5, 0.9, 0.9999] {
            let mut sampler = Sampler::new(SamplingParams { top_p, ..plain() }, 5000).unwrap();
            sampler.cut(&given);
            let total: f64 = given.iter().map(|&l| f64::from(l).exp()).sum();
            let mut sum = 0.0;
            let mut fewest = sorted.clone();
            fewest.retain(|&t| {
                let short = sum < f64::from(top_p) * total;
                sum += f64::from(given[t as usize]).exp();
                short
            });
            let mut kept: Vec<u32> = sampler.candidates.iter().map(|c| c.token).collect();
            kept.sort_unstable();
            fewest.sort_unstable();
            assert!(kept == fewest, "{top_p}: {} {}", kept.len(), fewest.len());
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let refused = |json: &str, name: &str| {
            let params: SamplingParams = serde_json::from_str(json).unwrap();
            let error = params.validate().unwrap_err().to_string();
            assert!(error.starts_with(name), "{json}: {error}");
        };
        refused(r#"{"temperature": -0.1}"#, "temperature is -0.1");
        refused(r#"{"temperature": 1e39}"#, "temperature is inf");
        refused(r#"{"top_p": 0}"#, "top_p is 0");
        refused(r#"{"top_p": 1.1}"#, "top_p");
        refused(r#"{"min_p": -0.1}"#, "min_p");
        refused(r#"{"min_p": 1.1}"#, "min_p");
        refused(r#"{"repeat_penalty": 0}"#, "repeat_penalty");
        refused(r#"{"repetition_penalty": -1}"#, "repeat_penalty");
        refused(r#"{"repeat_last_n": -2}"#, "repeat_last_n is -2");
        refused(r#"{"presence_penalty": 1e39}"#, "presence_penalty");
        refused(r#"{"frequency_penalty": -1e39}"#, "frequency_penalty");
        refused(r#"{"logit_bias": {"5": 1e39}}"#, "logit_bias of token 5");
        let nan = SamplingParams { min_p: f32::NAN, ..SamplingParams::default() };
        assert!(matches!(nan.validate(), Err(InvalidParams::OutOfRange { name: "min_p", .. })));

        let banned = BTreeMap::from([(9, f32::NEG_INFINITY)]);
        let params = SamplingParams { logit_bias: banned, ..SamplingParams::default() };
        assert_eq!(params.validate(), Ok(()));
        assert!(Sampler::new(params.clone(), 10).is_ok());
        let error = Sampler::new(params, 9).unwrap_err();
        assert_eq!(error, InvalidParams::UnknownToken { token: 9, vocab_size: 9 });
        let empty = Sampler::new(SamplingParams::default(), 0).unwrap_err();
        assert_eq!(empty, InvalidParams::EmptyVocabulary);
    }

    #[test]
    fn requests_may_name_few_parameters_and_others_too() {
        let params: SamplingParams =
            serde_json::from_str(r#"{"model": "base", "top_k": -1, "seed": 3}"#).unwrap();
        let expected = SamplingParams { top_k: -1, seed: Some(3), ..SamplingParams::default() };
        assert_eq!(params, expected);
    }
}
