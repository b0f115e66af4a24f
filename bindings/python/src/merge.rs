//! Merging, and what it reports.

use crate::error::OrRaise;
use crate::json;
use crate::specs::specs;
use polylora_adapter::report::{Report, Survival as Survived};
use polylora_adapter::rewrite::{Observer, Plan, TypeRules};
use polylora_adapter::{Adapter, AdapterSpec, OnMismatch, load};
use polylora_file::imatrix::Imatrix;
use polylora_file::{Gguf, WriteOptions, check_output};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use serde::Serialize;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long Python's signals wait while the work goes on elsewhere.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);

/// `keep`, a type, or a list of these and of `PATTERN=TYPE`.
#[derive(FromPyObject)]
pub(crate) enum Rules {
    One(String),
    Several(Vec<String>),
}

impl Rules {
    fn keep() -> Rules {
        Rules::One("keep".to_owned())
    }

    fn parse(self) -> PyResult<TypeRules> {
        let texts = match self {
            Rules::One(text) => vec![text],
            Rules::Several(texts) => texts,
        };
        TypeRules::parse(&texts).or_raise()
    }
}

/// Merges adapters into a model: W' = W + scale * (B @ A), back to each tensor's own type.
///
/// base: a GGUF model; of a split one, any part.
/// adapters: one or a list of them; each a path (a PEFT folder or a GGUF LoRA), a text
///     "[NAME=]PATH[@SCALE]", or (path, scale).
/// out: the file to write. It appears whole or not at all.
/// type: of the changed tensors: "keep", or f16, q8_0, ...; or a list of these and of
///     "PATTERN=TYPE" for those whose name matches a regular expression.
/// imatrix: an importance matrix of llama.cpp, to weigh errors by when rounding.
/// on_mismatch: "fail", or "skip" to leave out what does not fit the base.
/// overwrite: replace out if it exists.
/// threads: to work on; None for all processors.
/// max_shard: bytes that a file may have; larger models are split.
///
/// Read the report's verdict: rounding may have undone the change.
#[pyfunction]
#[pyo3(signature = (base, adapters, out, *, r#type=Rules::keep(), imatrix=None, on_mismatch="fail",
    overwrite=false, threads=None, max_shard=None))]
#[pyo3(text_signature = "(base, adapters, out, *, type='keep', imatrix=None, on_mismatch='fail', \
    overwrite=False, threads=None, max_shard=None)")]
#[expect(clippy::too_many_arguments, reason = "all but three are keywords in Python")]
pub(crate) fn merge(
    py: Python<'_>,
    base: PathBuf,
    adapters: &Bound<'_, PyAny>,
    out: PathBuf,
    r#type: Rules,
    imatrix: Option<PathBuf>,
    on_mismatch: &str,
    overwrite: bool,
    threads: Option<NonZeroUsize>,
    max_shard: Option<NonZeroU64>,
) -> PyResult<MergeReport> {
    let adapters = specs(adapters)?;
    if adapters.is_empty() {
        return Err(PyValueError::new_err("there are no adapters to merge"));
    }
    let job = Job {
        base,
        adapters,
        out,
        rules: r#type.parse()?,
        imatrix,
        on_mismatch: match on_mismatch {
            "fail" => OnMismatch::Fail,
            "skip" => OnMismatch::Skip,
            other => {
                let why = format!("on_mismatch is {other:?}: it is 'fail' or 'skip'");
                return Err(PyValueError::new_err(why));
            }
        },
        write: WriteOptions { overwrite, max_shard: max_shard.map(NonZeroU64::get) },
    };
    let threads = threads.map_or(0, NonZeroUsize::get);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| PyRuntimeError::new_err(format!("no threads: {error}")))?;
    let report = interruptible(py, |stop| pool.install(|| job.run(stop)))?;
    Ok(MergeReport(report))
}

struct Job {
    base: PathBuf,
    adapters: Vec<AdapterSpec>,
    out: PathBuf,
    rules: TypeRules,
    imatrix: Option<PathBuf>,
    on_mismatch: OnMismatch,
    write: WriteOptions,
}

impl Job {
    fn run(&self, stop: &Stop) -> PyResult<Report> {
        let base = Gguf::open_model(&self.base).or_raise()?;
        let adapters = self.adapters.iter().map(|spec| spec.path.as_path());
        let parts = base.parts().iter().map(PathBuf::as_path);
        check_output(&self.out, parts.chain(adapters)).or_raise()?;
        let imatrix = self.imatrix.as_deref().map(Imatrix::open).transpose().or_raise()?;
        let adapters = self.adapters.iter().map(|spec| load(spec, &base, self.on_mismatch));
        let adapters = adapters.collect::<Result<Vec<Adapter>, _>>().or_raise()?;
        let plan = Plan::merge(&base, &adapters, &self.rules, imatrix.as_ref()).or_raise()?;
        plan.write(&self.out, self.write, stop).or_raise()
    }
}

/// Tells the work to give up.
struct Stop(AtomicBool);

impl Observer for Stop {
    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs `job` on a thread of its own without Python's lock, while this one, which may be the main
/// thread, looks after signals: Ctrl-C ends the job.
fn interruptible<R: Send>(
    py: Python<'_>,
    job: impl FnOnce(&Stop) -> PyResult<R> + Send,
) -> PyResult<R> {
    let stop = Stop(AtomicBool::new(false));
    let done = AtomicBool::new(false);
    let caller = std::thread::current();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let result = job(&stop);
            done.store(true, Ordering::Release);
            caller.unpark();
            result
        });
        let mut interrupted = Ok(());
        // A job that panics is never done.
        let ended = || done.load(Ordering::Acquire) || worker.is_finished();
        while !ended() && interrupted.is_ok() {
            py.detach(|| std::thread::park_timeout(SIGNALS_EVERY));
            interrupted = py.check_signals();
        }
        stop.0.store(interrupted.is_err(), Ordering::Relaxed);
        let result = py.detach(|| worker.join());
        let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        interrupted.and(result)
    })
}

/// What was written and what survived.
///
/// files: the file, or the parts of a split one. tensor_bytes: of all tensors.
/// copied: how many tensors have the base's bytes. tensors: the others, the worst first.
/// adapter: the survival over all of them. mismatches: what was left out. notes: more to know.
/// verdict: in words, whether the adapter still works in the file, and what to do if not; its
///     --type is merge's type.
#[pyclass(frozen, module = "polylora")]
pub(crate) struct MergeReport(Report);

#[derive(Serialize)]
struct WithVerdict<'a> {
    verdict: Option<String>,
    #[serde(flatten)]
    report: &'a Report,
}

#[pymethods]
impl MergeReport {
    #[getter]
    fn verdict(&self) -> Option<String> {
        self.0.verdict()
    }

    #[getter]
    fn files(&self) -> &[PathBuf] {
        &self.0.files
    }

    #[getter]
    fn tensor_bytes(&self) -> u64 {
        self.0.tensor_bytes
    }

    #[getter]
    fn copied(&self) -> usize {
        self.0.copied
    }

    #[getter]
    fn tensors(&self, py: Python<'_>) -> PyResult<Vec<TensorReport>> {
        let report = |tensor: &polylora_adapter::report::TensorReport| {
            Ok(TensorReport {
                name: tensor.name.clone(),
                from_type: tensor.from,
                to_type: tensor.to,
                shape: PyTuple::new(py, &tensor.shape)?.unbind(),
                rank: tensor.rank,
                change: tensor.change,
                survival: tensor.survival.map(Survival::from),
                rounding: tensor.rounding,
                codes_changed: tensor.codes_changed,
            })
        };
        self.0.tensors.iter().map(report).collect()
    }

    #[getter]
    fn adapter(&self) -> Option<Survival> {
        self.0.adapter.map(Survival::from)
    }

    #[getter]
    fn mismatches(&self) -> Vec<Mismatch> {
        let mismatch = |found: &polylora_adapter::Mismatch| Mismatch {
            tensor: found.tensor.clone(),
            why: found.why.clone(),
        };
        self.0.mismatches.iter().map(mismatch).collect()
    }

    #[getter]
    fn notes(&self) -> Vec<String> {
        self.0.notes.clone()
    }

    /// What `polylora merge --json` prints.
    fn to_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        json::to_python(py, &WithVerdict { verdict: self.0.verdict(), report: &self.0 })
    }

    fn __repr__(&self) -> String {
        let file = self.0.files.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
        let (changed, copied) = (self.0.tensors.len(), self.0.copied);
        let verdict = self.0.verdict().unwrap_or_default();
        let file = file.display();
        format!("<polylora.MergeReport {file}: {changed} changed, {copied} copied. {verdict}>")
    }
}

/// One tensor that was not merely copied.
///
/// change: ||delta|| / ||W||. rounding: ||written - wanted|| / ||W||.
/// codes_changed: the share that differs from the base's, where the type is the same.
#[pyclass(frozen, get_all, module = "polylora")]
pub(crate) struct TensorReport {
    name: String,
    from_type: Option<&'static str>,
    to_type: &'static str,
    shape: Py<PyTuple>,
    rank: usize,
    change: f64,
    survival: Option<Survival>,
    rounding: f64,
    codes_changed: Option<f64>,
}

/// How much of an intended change is in the written weights.
///
/// survived: the part that arrived; 1 is all of it. relative_error: what rounding did, beside the
/// change; 0 is perfect. correlation: of the change written with the change meant.
#[pyclass(frozen, get_all, module = "polylora")]
#[derive(Clone)]
pub(crate) struct Survival {
    survived: f64,
    relative_error: f64,
    correlation: f64,
}

impl From<Survived> for Survival {
    fn from(survival: Survived) -> Survival {
        let Survived { survived, relative_error, correlation } = survival;
        Survival { survived, relative_error, correlation }
    }
}

/// Something of an adapter that the base has no place for.
#[pyclass(frozen, get_all, module = "polylora")]
pub(crate) struct Mismatch {
    tensor: String,
    why: String,
}

#[pymethods]
impl TensorReport {
    fn __repr__(&self) -> String {
        let survived = self.survival.as_ref().map_or(String::new(), |survival| {
            format!(", {:.0} % survived", 100.0 * survival.survived)
        });
        format!("<polylora.TensorReport {}: {}{survived}>", self.name, self.to_type)
    }
}

#[pymethods]
impl Survival {
    fn __repr__(&self) -> String {
        let Survival { survived, relative_error, correlation } = self;
        format!(
            "<polylora.Survival survived={survived:.4} relative_error={relative_error:.4} \
             correlation={correlation:.4}>"
        )
    }
}

#[pymethods]
impl Mismatch {
    fn __repr__(&self) -> String {
        format!("<polylora.Mismatch {}: {}>", self.tensor, self.why)
    }
}
