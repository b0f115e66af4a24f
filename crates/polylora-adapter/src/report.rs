//! What a rewrite did, for people and for programs.

use crate::adapter::Mismatch;
use crate::fidelity::Sums;
use crate::rewrite::{Output, Plan};
use polylora_quant::GgmlType;
use serde::Serialize;
use std::path::PathBuf;

/// What was written and what survived. The order of fields is the order in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file, or the parts of a split one.
    pub files: Vec<PathBuf>,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Tensors whose bytes are the base's.
    pub copied: usize,
    /// The others, the worst first.
    pub tensors: Vec<TensorReport>,
    /// Over all changed tensors together; `None` where no adapter was merged.
    pub adapter: Option<Survival>,
    /// What did not fit the base and was left alone.
    pub mismatches: Vec<Mismatch>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
    /// Where weights were rounded by what their layers read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
}

/// How a merge came out that was calibrated.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// Tokens that it was calibrated by.
    pub tokens: usize,
    /// How far the next token's distribution is from that of the base with the adapters at run time:
    /// the mean Kullback-Leibler divergence, in nats, on a part of the texts that was held back; of a
    /// single text, on that.
    pub divergence: f64,
    /// The same of the base without the adapters.
    pub base_divergence: f64,
    /// The median of the tensors' [`output_error`](TensorReport::output_error).
    pub output_error: f64,
    /// The adapter that holds what the weights could not, which is to be applied with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual: Option<PathBuf>,
}

/// One tensor that was not merely copied.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// The base's type; `None` for a tensor that the base does not have.
    pub from: Option<&'static str>,
    /// The type written.
    pub to: &'static str,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// Rank of what was merged into each row; 0 where nothing low-rank was.
    pub rank: usize,
    /// `||intended change|| / ||weight||`.
    pub change: f64,
    /// What survived of the change; `None` where only the type changed.
    pub survival: Option<Survival>,
    /// `||written - wanted|| / ||weight||`: the rounding.
    pub rounding: f64,
    /// `||W_written x - W_wanted y|| / ||(W_wanted - W_base) y||`, for what the layer reads in the
    /// written model, `x`, and should read, `y`: 0 is perfect, 1 as bad as no change at all. `None`
    /// where the merge was not calibrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// Share of codes that differ from the base's; `None` where the type changed.
    pub codes_changed: Option<f64>,
    #[serde(skip)]
    sums: Sums,
}

/// How much of an intended change is in the written weights.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Survival {
    /// The part of the change that arrived: 1 is all of it, 0 nothing. The length of the realised
    /// change along the intended one.
    pub survived: f64,
    /// `||realised - intended|| / ||intended||`: 0 is perfect, 1 as bad as no change at all.
    pub relative_error: f64,
    /// Cosine between the realised and the intended change.
    pub correlation: f64,
}

/// What the figures mean for someone who wants to use the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The change arrived.
    Kept,
    /// The change arrived, with rounding errors that matter beside it.
    Weakened,
    /// Rounding undid much of the change.
    Lost,
}

/// Of a change that lost more than this, what the adapter does is visibly less. (Measured on
/// SmolLM2-135M with an adapter that answers in capitals: with 23 % left in Q4_1, 29 % of its
/// effect on the next token's distribution is left.)
const SURVIVED: f64 = 0.7;
/// From this relative error on, rounding is a matter of its own beside the change. (The same
/// adapter in Q8_0: 0.29, and no effect is lost; in Q5_1: 2.3, and a quarter is.)
const NOISY: f64 = 0.5;

/// The parts of what an adapter does to the next token's distribution that may be missing: with less
/// than the first, answers are as at run time; with more than the second, the file is hardly worth
/// it. (SmolLM2-135M in Q4_1: with 3 % missing, answers in capitals are in capitals, with 70 % they
/// are not.)
const MISSING: [f64; 2] = [0.1, 0.5];

impl Survival {
    fn of(sums: &Sums) -> Option<Survival> {
        (sums.intended > 0.0).then(|| Survival {
            survived: sums.survived(),
            relative_error: sums.relative_error(),
            correlation: sums.correlation(),
        })
    }

    /// In one word.
    pub fn verdict(&self) -> Verdict {
        if self.survived < SURVIVED {
            Verdict::Lost
        } else if self.relative_error > NOISY {
            Verdict::Weakened
        } else {
            Verdict::Kept
        }
    }
}

impl Calibration {
    /// The part of what the adapters do that is missing.
    fn missing(&self) -> f64 {
        if self.divergence > 0.0 { self.divergence / self.base_divergence } else { 0.0 }
    }

    /// In one word.
    fn outcome(&self) -> Verdict {
        match self.missing() {
            missing if missing < MISSING[0] => Verdict::Kept,
            missing if missing < MISSING[1] => Verdict::Weakened,
            _ => Verdict::Lost,
        }
    }

    /// See [`Report::verdict`].
    fn verdict(&self) -> String {
        let with = match &self.residual {
            Some(path) => format!(" with {} applied", path.display()),
            None => String::new(),
        };
        let kept = match self.outcome() {
            Verdict::Kept => "is in the file",
            Verdict::Weakened => "is in the file, weakened",
            Verdict::Lost => "is mostly lost",
        };
        format!(
            "The adapter {kept}{with}: calibrated by {} tokens, the model is {:.3} nats (mean KL \
             divergence, on text that was held back) from the adapter at run time; without the adapter \
             it is {:.3} away. `polylora eval --against` measures it on other text.",
            self.tokens, self.divergence, self.base_divergence
        )
    }
}

impl TensorReport {
    pub(crate) fn new(output: &Output<'_>, sums: Sums) -> TensorReport {
        let same_type = output.source.is_some_and(|source| source.ty == output.ty);
        TensorReport {
            name: output.name.clone(),
            from: output.source.map(|source| source.ty.name()),
            to: output.ty.name(),
            shape: output.shape.clone(),
            rank: output.rank(),
            change: sums.relative_change(),
            survival: Survival::of(&sums),
            rounding: sums.rounding(),
            output_error: None,
            codes_changed: same_type
                .then(|| sums.changed_codes as f64 / sums.weights.max(1) as f64),
            sums,
        }
    }

    /// What the list is sorted by: the loss of the change, or of the weight where only the type
    /// changed.
    fn badness(&self) -> f64 {
        self.survival.map_or(self.rounding, |survival| survival.relative_error)
    }
}

impl Report {
    pub(crate) fn new(
        plan: &Plan<'_>,
        files: Vec<PathBuf>,
        mut tensors: Vec<TensorReport>,
    ) -> Report {
        tensors.sort_by(|a, b| b.badness().total_cmp(&a.badness()));
        let mut total = Sums::default();
        for tensor in &tensors {
            total += tensor.sums;
        }
        Report {
            files,
            tensor_bytes: plan.tensor_bytes(),
            copied: plan.outputs().len() - tensors.len(),
            adapter: Survival::of(&total),
            tensors,
            mismatches: plan.mismatches().cloned().collect(),
            notes: plan.notes().to_vec(),
            calibration: None,
        }
    }

    /// What [`verdict`](Report::verdict) says, in one word.
    pub fn outcome(&self) -> Option<Verdict> {
        match &self.calibration {
            Some(calibration) => Some(calibration.outcome()),
            None => self.adapter.map(|survival| survival.verdict()),
        }
    }

    /// One or two sentences on whether the adapter still works in the written file, and what to
    /// do if not. `None` where no adapter was merged.
    pub fn verdict(&self) -> Option<String> {
        if let Some(calibration) = &self.calibration {
            return Some(calibration.verdict());
        }
        let survival = self.adapter?;
        let survived = 100.0 * survival.survived;
        let error = survival.relative_error;
        let coarsest = self.coarsest();
        let finer = finer(coarsest);
        Some(match survival.verdict() {
            Verdict::Kept => format!(
                "The adapter is in the file: {survived:.0} % of the change arrived; rounding adds \
                 an error of {:.1} % of it.",
                100.0 * error
            ),
            Verdict::Weakened => format!(
                "The adapter is in the file, weakened: {survived:.0} % of the change arrived, but \
                 rounding to {coarsest} is {error:.1} times as large as the change itself. \
                 --type {finer} keeps it clean."
            ),
            Verdict::Lost => format!(
                "{coarsest} is too coarse for this adapter: {survived:.0} % of the change survived, \
                 the rest was rounded away. Merge with --calibrate, which keeps the type and the \
                 size, with --type {finer} (or --type PATTERN={finer} for the worst tensors), or \
                 apply the adapter at run time instead."
            ),
        })
    }

    /// The type of the tensors that lost most, by name.
    fn coarsest(&self) -> &'static str {
        let mut lost: Vec<(&'static str, f64)> = Vec::new();
        for tensor in &self.tensors {
            match lost.iter_mut().find(|(ty, _)| *ty == tensor.to) {
                Some((_, error)) => *error += tensor.sums.error,
                None => lost.push((tensor.to, tensor.sums.error)),
            }
        }
        lost.into_iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(GgmlType::F32.name(), |(ty, _)| ty)
    }
}

/// The type to choose where this one is too coarse.
fn finer(ty: &str) -> &'static str {
    let bits = ty.parse().map_or(0.0, GgmlType::bits_per_weight);
    if bits < 8.0 { "q8_0" } else { "f16" }
}
