//! What logits say of a text, and of another model's logits. The figures are those of
//! llama-perplexity.

use polylora_engine::LogProbs;
use rayon::prelude::*;
use serde::Serialize;

/// How much a model was surprised by each token, in nats.
pub(super) fn surprise(rows: &[&[f32]], next: &[u32]) -> Vec<f64> {
    let scored =
        rows.par_iter().zip(next).map(|(row, &token)| -f64::from(LogProbs::new(row).of(token)));
    scored.collect()
}

/// One position, judged by a reference P and by the model Q.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compared {
    pub(super) surprise: f64,
    pub(super) reference_surprise: f64,
    /// KL(P || Q), in nats.
    pub(super) divergence: f64,
    pub(super) same_top: bool,
}

/// Compares the logits of a model with those of a reference, position by position.
pub(super) fn compare(rows: &[&[f32]], reference: &[&[f32]], next: &[u32]) -> Vec<Compared> {
    let pairs = rows.par_iter().zip(reference).zip(next);
    pairs.map(|((q, p), &token)| compare_one(q, p, token)).collect()
}

fn compare_one(q: &[f32], p: &[f32], token: u32) -> Compared {
    let (q, p) = (LogProbs::new(q), LogProbs::new(p));
    let top = |of: &LogProbs<'_>| of.top(1).first().map(|&(token, _)| token);
    Compared {
        surprise: -f64::from(q.of(token)),
        reference_surprise: -f64::from(p.of(token)),
        divergence: p.divergence_of(&q),
        same_top: top(&q) == top(&p),
    }
}

/// An estimate with its standard error.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Estimate {
    pub(super) value: f64,
    pub(super) error: f64,
}

impl Estimate {
    /// Of the mean of independent values.
    pub(super) fn mean(values: impl Iterator<Item = f64> + Clone) -> Estimate {
        let count = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / count;
        let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        Estimate { value: mean, error: (variance / (count - 1.0)).sqrt() }
    }

    /// Of the exponential of what this estimates.
    pub(super) fn exp(self) -> Estimate {
        let value = self.value.exp();
        Estimate { value, error: value * self.error }
    }
}

/// A model beside its reference, over all positions.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Comparison {
    pub(super) reference_perplexity: Estimate,
    /// ln(PPL(Q) / PPL(P)).
    pub(super) log_ratio: Estimate,
    /// KL(P || Q) in nats.
    pub(super) divergence: Estimate,
    pub(super) median: f64,
    #[serde(rename = "percentile_99")]
    pub(super) percentile: f64,
    pub(super) max: f64,
    /// The share of positions at which both think the same token likeliest.
    pub(super) same_top: Estimate,
}

impl Comparison {
    /// Of one position or more.
    pub(super) fn new(positions: &[Compared]) -> Comparison {
        let reference = Estimate::mean(positions.iter().map(|at| at.reference_surprise));
        // The error of a mean of differences is that of two means less their covariance.
        let ratios = positions.iter().map(|at| at.surprise - at.reference_surprise);
        let mut sorted: Vec<f64> = positions.iter().map(|at| at.divergence).collect();
        sorted.sort_by(f64::total_cmp);
        Comparison {
            reference_perplexity: reference.exp(),
            log_ratio: Estimate::mean(ratios),
            divergence: Estimate::mean(positions.iter().map(|at| at.divergence)),
            median: quantile(&sorted, 0.5),
            percentile: quantile(&sorted, 0.99),
            max: *sorted.last().expect("there is a position"),
            same_top: Estimate::mean(positions.iter().map(|at| f64::from(u8::from(at.same_top)))),
        }
    }
}

/// Between the two values nearest, where the place falls between.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, part) = (place as usize, place.fract());
    let above = (below + 1).min(sorted.len() - 1);
    (1.0 - part) * sorted[below] + part * sorted[above]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn surprise_is_minus_the_logarithm_of_the_probability() {
        // Probabilities 1/2, 1/4, 1/4, whatever is added to the logits.
        let row = [101.0, 101.0 - 2f32.ln(), 101.0 - 2f32.ln()];
        let scored = surprise(&[&row, &row], &[0, 2]);
        assert!((scored[0] - 2f64.ln()).abs() < 1e-5 && (scored[1] - 4f64.ln()).abs() < 1e-5);
    }

    #[test]
    fn divergence_is_of_the_reference_from_the_model() {
        let p = [0.5f32, 0.25, 0.25].map(f32::ln);
        let q = [0.25f32, 0.5, 0.25].map(f32::ln);
        let at = compare_one(&q, &p, 1);
        near(at.divergence, 0.5 * 2f64.ln() - 0.25 * 2f64.ln());
        near(at.surprise, 2f64.ln());
        near(at.reference_surprise, 4f64.ln());
        assert!(!at.same_top);
        let skewed = [0.9f32, 0.05, 0.05].map(f32::ln);
        let forth = compare_one(&skewed, &p, 0).divergence;
        near(forth, 0.5 * (0.5f64 / 0.9).ln() + 0.5 * 5f64.ln());
        assert!((forth - compare_one(&p, &skewed, 0).divergence).abs() > 0.1);
    }

    #[test]
    fn a_model_does_not_diverge_from_itself() {
        let row: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
        let at = compare_one(&row, &row, 5);
        assert!(at.divergence == 0.0 && at.same_top);
    }

    #[test]
    fn quantiles_lie_between_values() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(quantile(&[1.0], 0.99), 1.0);
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), 99.0);
    }

    #[test]
    fn errors_of_means() {
        let estimate = Estimate::mean([1.0, 2.0, 3.0, 4.0].into_iter());
        near(estimate.value, 2.5);
        // sqrt(variance of the sample / count) = sqrt((5/3) / 4).
        near(estimate.error, (5.0f64 / 12.0).sqrt());
    }
}
