//! Embeddings: what a model makes of a text, as one vector.

use super::{Event, Failure, Job, Scheduler};
use crate::adapters::Lease;
use polylora_engine::{Input, LoadedAdapter, Sequence, Wanted, Way};
use std::sync::Arc;

/// Tokens that are read in one go, between two steps of the batch.
const READ_AT_ONCE: usize = 128;

/// How the states of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    Last,
}

impl Pooling {
    /// By the number that llama.cpp writes as `<architecture>.pooling_type`.
    pub(crate) fn of(number: u64) -> Option<Pooling> {
        match number {
            1 => Some(Pooling::Mean),
            3 => Some(Pooling::Last),
            _ => None,
        }
    }
}

/// A text on its way through the model.
pub(super) struct Embedding {
    pub(super) job: Box<Job>,
    pooling: Pooling,
    sequence: Sequence,
    adapters: Vec<Arc<LoadedAdapter>>,
    /// Keeps the adapters in memory.
    _leases: Vec<Lease>,
    sum: Vec<f32>,
}

impl Scheduler {
    /// Begins with a waiting job that asks for an embedding.
    pub(super) fn begin_embedding(
        &mut self,
        index: usize,
        pooling: Pooling,
        adapters: Vec<Arc<LoadedAdapter>>,
    ) {
        let waiting = self.take_waiting(index);
        let job = waiting.job;
        self.metrics.begun(job.label(), job.arrived.elapsed(), 0);
        let _ = job.events.send((job.index, Event::Begun { cached: 0 }));
        let sequence = self.engine.sequence(job.prompt.len());
        let (sum, _leases) = (Vec::new(), waiting.leases);
        self.embedding = Some(Embedding { job, pooling, sequence, adapters, _leases, sum });
    }

    /// Takes the text a piece further.
    pub(super) fn embed(&mut self) {
        let Some(mut embedding) = self.embedding.take() else { return };
        let Embedding { job, pooling, sequence, adapters, sum, .. } = &mut embedding;
        let start = sequence.len();
        let tokens = &job.prompt[start..job.prompt.len().min(start + READ_AT_ONCE)];
        let (count, is_last) = (tokens.len(), start + tokens.len() == job.prompt.len());
        let logits = match pooling {
            Pooling::Mean => Wanted::All,
            Pooling::Last if is_last => Wanted::Last,
            Pooling::Last => Wanted::None,
        };
        let input = Input { sequence, tokens, adapters, logits, way: Way::Many };
        let states = match self.engine.hidden_states(&mut [input]) {
            Ok(states) => states,
            Err(error) => {
                self.failed(&embedding.job, Failure::Engine(error.to_string()));
                self.accounts.leave(&embedding.job.tenant);
                return;
            }
        };
        let rows = match logits {
            Wanted::All => count,
            Wanted::Last => 1,
            Wanted::None => 0,
        };
        if let Some(width) = states.len().checked_div(rows) {
            sum.resize(width, 0.0);
            for state in states.chunks_exact(width) {
                sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += value);
            }
        }
        self.accounts.charge(&job.tenant, count, 0);
        self.metrics.tokens(job.label(), count, 0);
        if !is_last {
            self.embedding = Some(embedding);
            return;
        }
        // Of length one, as everyone has them: so the mean needs no division.
        let length = sum.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        sum.iter_mut().for_each(|v| *v = (f64::from(*v) / length.max(f64::MIN_POSITIVE)) as f32);
        let _ = job.events.send((job.index, Event::Embedded(std::mem::take(sum))));
        self.metrics.finished(job.label(), "stop", job.arrived.elapsed());
        self.accounts.leave(&embedding.job.tenant);
    }
}
