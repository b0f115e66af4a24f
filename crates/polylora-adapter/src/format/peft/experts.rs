//! Experts whose weights the model keeps in one parameter, adapted through `target_parameters`.
//!
//! PEFT gives all experts of a layer one pair, with `r` rows of A for each. With E experts:
//!
//! ```text
//! A  (E * r, in)    expert slowest:  row  e * r + k     is row k of expert e
//! B  (out, r * E)   expert fastest:  column  k * E + e  is column k of expert e
//! ```
//!
//! Before 0.19.1 PEFT took `in` for `out` where the model stores an expert's weight as `(out, in)`.
//! Then what is named A is `(E * r, out)` and holds the transposed `up`, and B the transposed
//! `down`: the shapes tell.

use super::config::Config;
use super::parts::{Key, Part, Parts};
use super::{Reader, ends_with_name, pair_fault, shape_fault};
use crate::adapter::{Change, ChangeKind, Matching};
use crate::error::Fault;
use crate::factor::Factor;
use crate::names::GateUp;
use polylora_file::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a module of experts consists of, in the order that PEFT wraps it: the first lies innermost.
const PARAMETERS: &[&str] = &["gate_up_proj", "down_proj"];

/// The pair of one fused parameter.
pub(super) struct Stack {
    module: String,
    layer: usize,
    parameter: &'static str,
    rank: usize,
    scale: f64,
    a: Arc<Tensor>,
    b: Arc<Tensor>,
}

/// Which of the two named factors is which.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// A takes the inputs.
    AsNamed,
    /// B takes the inputs.
    Swapped,
}

/// Rows of an expert that go to one tensor of the base.
struct Destination<'a> {
    tensor: &'a Tensor,
    /// The first of them among the rows that the tensor has for each expert.
    first: usize,
    /// Their place in the fused parameter: `start`, `start + step`, ...
    start: usize,
    step: usize,
    rows: usize,
}

impl Stack {
    /// Finds out which parameter the pair is for: the configuration names those of the module,
    /// the depth of wrapping orders them.
    pub(super) fn new(
        config: &Config,
        key: &Key,
        all: &BTreeMap<Key, Parts>,
        layer: usize,
        a: &Arc<Tensor>,
        b: &Arc<Tensor>,
    ) -> Result<Stack, Fault> {
        let targeted = |parameter: &&&str| {
            let name = format!("{}.{parameter}", key.module);
            config.target_parameters.iter().any(|target| ends_with_name(&name, target))
        };
        let parameters: Vec<&&str> = PARAMETERS.iter().filter(targeted).collect();
        let wraps = |other: &(&Key, &Parts)| {
            other.0.module == key.module && other.1.get(Part::Down).is_some()
        };
        let pairs = all.iter().filter(wraps).count();
        let parameter = (parameters.len().checked_sub(1 + key.depth))
            .filter(|_| pairs == parameters.len())
            .map(|i| *parameters[i])
            .ok_or_else(|| Fault::Field {
                field: "target_parameters".to_owned(),
                value: format!("{:?}", config.target_parameters),
                why: format!("these are not the {pairs} adapted parameters of {}", key.module),
            })?;
        let name = format!("{}.{parameter}", key.module);
        let (rank, scale) = config.rank_and_scale(&name);
        let (a, b) = (Arc::clone(a), Arc::clone(b));
        Ok(Stack { module: key.module.clone(), layer, parameter, rank, scale, a, b })
    }

    /// The tensors of the base that hold this parameter, with the inputs and outputs of an expert.
    fn destinations<'a>(
        &self,
        reader: &Reader<'a>,
    ) -> Result<(Vec<Destination<'a>>, usize, usize), Fault> {
        let name = |stem: &str| format!("blk.{}.{stem}.weight", self.layer);
        let missing =
            |stem: &str| Fault::NoTarget { tensor: self.a.name.clone(), target: name(stem) };
        let find = |stem: &str| {
            let tensor = reader.names.target(&name(stem));
            tensor.filter(|tensor| tensor.shape.len() == 3).ok_or_else(|| missing(stem))
        };
        if self.parameter == "down_proj" {
            let tensor = find("ffn_down_exps")?;
            let rows = tensor.shape[1];
            let whole = Destination { tensor, first: 0, start: 0, step: 1, rows };
            return Ok((vec![whole], tensor.columns(), rows));
        }
        // Some files keep both halves in one tensor, gate first.
        let (gate, up, first_up) = match find("ffn_gate_up_exps") {
            Ok(both) => (both, both, both.shape[1] / 2),
            Err(_) => (find("ffn_gate_exps")?, find("ffn_up_exps")?, 0),
        };
        let rows = if first_up > 0 { first_up } else { gate.shape[1] };
        if gate.shape != up.shape {
            return Err(missing("ffn_up_exps"));
        }
        let (start_up, step) = match reader.names.architecture.gate_up {
            GateUp::Stacked => (rows, 1),
            GateUp::Alternating => (1, 2),
        };
        let halves = vec![
            Destination { tensor: gate, first: 0, start: 0, step, rows },
            Destination { tensor: up, first: first_up, start: start_up, step, rows },
        ];
        Ok((halves, gate.columns(), 2 * rows))
    }

    /// The order that the shapes tell; `None` where inputs and outputs are as many.
    fn order(&self, reader: &Reader<'_>) -> Result<Option<Order>, Fault> {
        let (destinations, inputs, outputs) = self.destinations(reader)?;
        let experts = destinations[0].tensor.shape[0];
        let ranks = experts.saturating_mul(self.rank);
        let (&[a_rows, a_columns], &[b_rows, b_columns]) = (&*self.a.shape, &*self.b.shape) else {
            return Err(pair_fault(&self.a, &self.b));
        };
        if a_rows != b_columns {
            return Err(pair_fault(&self.a, &self.b));
        }
        if a_rows != ranks && a_rows.is_multiple_of(experts) {
            let (stored, expected) = (a_rows / experts, self.rank);
            return Err(Fault::Rank { tensor: self.a.name.clone(), stored, expected });
        }
        if a_rows != ranks {
            return Err(shape_fault(&self.a, vec![ranks, inputs]));
        }
        match (a_columns, b_rows) {
            found if found == (inputs, outputs) => {
                Ok((inputs != outputs).then_some(Order::AsNamed))
            }
            found if found == (outputs, inputs) => Ok(Some(Order::Swapped)),
            (found, _) if found == inputs => Err(shape_fault(&self.b, vec![outputs, ranks])),
            _ => Err(shape_fault(&self.a, vec![ranks, inputs])),
        }
    }

    fn changes(&self, reader: &Reader<'_>, order: Order, scale: f32) -> Result<Vec<Change>, Fault> {
        let (destinations, inputs, outputs) = self.destinations(reader)?;
        let experts = destinations[0].tensor.shape[0];
        let rank = self.rank;
        let (a_columns, b_rows) = match order {
            Order::AsNamed => (inputs, outputs),
            Order::Swapped => (outputs, inputs),
        };
        let mut changes = Vec::new();
        for expert in 0..experts {
            let a =
                Factor::view(&self.a, expert * rank * a_columns, [rank, a_columns], [a_columns, 1]);
            let b = Factor::view(&self.b, expert, [b_rows, rank], [rank * experts, experts]);
            let (down, up) = match order {
                Order::AsNamed => (a, b),
                Order::Swapped => (b.transposed(), a.transposed()),
            };
            for &Destination { tensor, first, start, step, rows } in &destinations {
                let first = expert * tensor.shape[1] + first;
                changes.push(Change {
                    tensor: tensor.name.clone(),
                    rows: first..first + rows,
                    source: format!("{}.{}", self.module, self.parameter),
                    kind: ChangeKind::LowRank {
                        down: down.clone(),
                        up: up.clone().select_rows(start, rows, step),
                        scale,
                        magnitude: None,
                    },
                });
            }
        }
        Ok(changes)
    }
}

/// Matches the stacks. One that is as wide as it is high takes the order of the others.
pub(super) fn read(
    reader: &Reader<'_>,
    stacks: Vec<Stack>,
    matching: &mut Matching<'_>,
) -> Result<(), Fault> {
    let known = |order: Order| {
        stacks.iter().any(|stack| matches!(stack.order(reader), Ok(Some(found)) if found == order))
    };
    let common = match (known(Order::AsNamed), known(Order::Swapped)) {
        (true, false) => Some(Order::AsNamed),
        (false, true) => Some(Order::Swapped),
        _ => None,
    };
    for stack in &stacks {
        let order = match stack.order(reader) {
            Ok(order) => order.or(common).ok_or_else(|| Fault::Square(stack.a.name.clone()))?,
            Err(fault) => {
                matching.settle(&stack.a.name, Err(fault))?;
                continue;
            }
        };
        let changes = stack.changes(reader, order, matching.scale(stack.scale));
        matching.settle(&stack.a.name, changes)?;
    }
    Ok(())
}
