//! How likely a model holds tokens to be.

use crate::sampler::{Candidate, exp_total, highest};
use polylora_quant::{Isa, vector};

/// Logits as the logarithms of probabilities (log-softmax).
#[derive(Clone, Copy, Debug)]
pub struct LogProbs<'a> {
    logits: &'a [f32],
    /// The logarithm of the sum of all exponentials.
    log_sum: f64,
}

impl<'a> LogProbs<'a> {
    /// Of a model's own logits, before a sampler or a constraint changed them: what vLLM and
    /// llama-server report.
    pub fn new(logits: &'a [f32]) -> LogProbs<'a> {
        let max = vector::max(Isa::best(), logits).min(f32::MAX);
        LogProbs { logits, log_sum: f64::from(max) + exp_total(logits, max).ln() }
    }

    /// The natural logarithm of the token's probability; negative infinity for one that has none,
    /// or that is not in the vocabulary.
    pub fn of(&self, token: u32) -> f32 {
        self.logits
            .get(token as usize)
            .and_then(|&logit| Candidate::new(token, logit))
            .map_or(f32::NEG_INFINITY, |c| self.log_prob(c))
    }

    /// The `n` likeliest tokens with the logarithms of their probabilities, likeliest first, equal
    /// ones by token; fewer where fewer have any.
    pub fn top(&self, n: usize) -> Vec<(u32, f32)> {
        let mut candidates = Vec::new();
        highest(self.logits, n, &mut candidates);
        candidates.into_iter().map(|c| (c.token, self.log_prob(c))).collect()
    }

    /// The Kullback-Leibler divergence `KL(P || Q)` of another distribution Q of the same tokens from
    /// this one, in nats: `sum of P_i (p_i - q_i) + log_sum(q) - log_sum(p)` of the logits.
    pub fn divergence_of(&self, q: &LogProbs<'_>) -> f64 {
        let terms = self.logits.iter().zip(q.logits).map(|(&p, &q)| {
            let (p, q) = (f64::from(p), f64::from(q));
            let probability = f64::from(((p - self.log_sum) as f32).exp());
            // Where a token is impossible, 0 * inf would spoil the sum.
            if probability == 0.0 { 0.0 } else { probability * (p - q) }
        });
        // Rounding may leave it a little below zero.
        (terms.sum::<f64>() + q.log_sum - self.log_sum).max(0.0)
    }

    fn log_prob(&self, candidate: Candidate) -> f32 {
        (f64::from(candidate.logit) - self.log_sum) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probs_are_the_logarithms_of_softmax() {
        const SHARES: [f32; 4] = [0.15, 0.5, 0.05, 0.3];
        // Off by a constant, as a model's logits are.
        let mut given: Vec<f32> = SHARES.iter().map(|s| s.ln() + 3.0).collect();
        given.extend([f32::NAN, f32::NEG_INFINITY]);
        let log_probs = LogProbs::new(&given);
        for (token, share) in (0..).zip(SHARES) {
            assert!((log_probs.of(token) - share.ln()).abs() < 1e-6);
        }
        for nowhere in [4, 5, 6, u32::MAX] {
            assert_eq!(log_probs.of(nowhere), f32::NEG_INFINITY);
        }
        assert_eq!(log_probs.top(2), [(1, log_probs.of(1)), (3, log_probs.of(3))]);
        assert_eq!(log_probs.top(9).len(), 4);
        // Where single precision would lose the small ones: 2^20 of them beside a large one.
        let mut wide = vec![-16.0; 1 << 20];
        wide[0] = 1.0;
        let exact = -(1.0 + f64::from((1 << 20) - 1) * (-17f64).exp()).ln();
        assert!((f64::from(LogProbs::new(&wide).of(0)) - exact).abs() < 1e-7);
        assert_eq!(LogProbs::new(&[f32::INFINITY, 0.0]).of(0), 0.0);
        assert_eq!(LogProbs::new(&[]).top(1), []);
    }

    #[test]
    fn divergence_is_of_the_other_from_this_one() {
        let (p, q) = ([0.0, 0.0], [0.0, 3f32.ln()]);
        let forth = LogProbs::new(&p).divergence_of(&LogProbs::new(&q));
        // 1/2 ln((1/2) / (1/4)) + 1/2 ln((1/2) / (3/4))
        assert!((forth - (0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln())).abs() < 1e-7, "{forth}");
        let back = LogProbs::new(&q).divergence_of(&LogProbs::new(&p));
        assert!((forth - back).abs() > 0.01);
        let impossible = [0.0, f32::NEG_INFINITY];
        let it = LogProbs::new(&impossible);
        assert_eq!(it.divergence_of(&it), 0.0);
    }
}
