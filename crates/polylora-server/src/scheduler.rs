//! The thread that runs the engine: which requests are in the batch, and what each reads next.
//!
//! ```text
//! jobs ── waiting, by key and adapter ── admitted ── rows of the batch ── events
//!             ^   (memory, adapter there)                 │
//!             └──────────── preempted ────────────────────┘
//! ```
//!
//! Every step takes each row that writes one token further, and, with what is left of the step's
//! budget, reads pieces of prompts. Requests are admitted, and prompts read, in the order of what
//! their tenants had so far (see [`fair`]). A row whose keys and values no longer fit, or that
//! takes more than its tenant's share of the batch, gives up its place and goes on later from
//! where it was: nothing that was accepted is ever dropped.

mod embedding;
mod fair;

pub(crate) use fair::Tenant;

use crate::adapters::{Adapters, Lease, Leased, NoLease, Number};
use crate::metrics::Metrics;
use embedding::Embedding;
use fair::Accounts;
use polylora_engine::{
    Completion, CompletionOptions, Engine, Finish, LoadedAdapter, PAGE, PrefixCache, Row, Scored,
    Tokenizer, Way,
};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// Tokens of prompts that a step reads at most: the engine takes so many through the layers at
/// once.
const READ_AT_MOST: usize = 512;

/// And at least, that long prompts come to an end.
const READ_AT_LEAST: usize = 32;

/// How long a step may take when somebody waits for the next token of an answer.
const STEP: Duration = Duration::from_millis(250);

/// Tokens of an answer that there must be room for, besides the prompt, before it is begun. What
/// comes after takes room as it is written.
const BEGUN: usize = 4 * PAGE;

/// How long the thread sleeps at most where nothing can be done: for what it is not told of.
const IDLE: Duration = Duration::from_millis(100);

/// How the scheduler is to work.
pub(crate) struct Limits {
    /// Rows in a batch.
    pub(crate) rows: usize,
    /// Tokens of one request, its answer included.
    pub(crate) context: usize,
    /// Pages of keys and values, of all requests and the prefix cache.
    pub(crate) pages: usize,
    /// Requests that wait.
    pub(crate) waiting: usize,
}

/// A request for an answer, or for an embedding.
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    /// With the scale that each is multiplied with.
    pub(crate) adapters: Vec<(Number, f32)>,
    /// What they are called.
    pub(crate) names: Arc<[String]>,
    pub(crate) tenant: Tenant,
    pub(crate) task: Task,
    /// Which of the events' receiver's jobs this is.
    pub(crate) index: usize,
    /// Where events go; nobody listens any more: the job is dropped.
    pub(crate) events: UnboundedSender<(usize, Event)>,
    pub(crate) arrived: Instant,
    /// The request's, in the log.
    pub(crate) span: tracing::Span,
}

impl Job {
    /// What metrics call its adapter; nothing for the base.
    fn label(&self) -> Option<&str> {
        match &*self.names {
            [] => None,
            [name] => Some(name),
            _ => Some("(several)"),
        }
    }
}

/// What is to be done with a prompt.
pub(crate) enum Task {
    Complete {
        options: Box<CompletionOptions>,
        /// How many of the likeliest tokens are wanted beside each of the prompt's.
        score_prompt: Option<usize>,
    },
    Embed(Pooling),
}

pub(crate) use embedding::Pooling;

/// Where the events of one request's jobs come, each with its job's number.
pub(crate) type Events = UnboundedReceiver<(usize, Event)>;

/// What became of a job so far.
#[derive(Debug)]
pub(crate) enum Event {
    /// It has a row; so many tokens of its prompt were known.
    Begun {
        cached: usize,
    },
    /// Of the prompt's tokens after the first.
    PromptScores(Vec<Scored>),
    /// Text that is certain, and the scores of tokens that were written, where asked for. A token
    /// may be scored before its text is certain.
    Wrote {
        text: String,
        scored: Vec<Scored>,
    },
    /// That was all.
    Done {
        finish: Finish,
        tokens: usize,
    },
    Embedded(Vec<f32>),
    Failed(Failure),
}

/// Why a job came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the adapter {0:?} was taken away before the request's turn came")]
    AdapterGone(String),
    #[error("the adapter {name:?} cannot be loaded")]
    Adapter {
        name: String,
        /// For who runs the server.
        why: Arc<str>,
    },
    /// The answer cannot be begun, or not go on.
    #[error("{0}")]
    Completion(String),
    #[error("the engine failed")]
    Engine(String),
}

/// Why a job is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Too many wait; there may be room after this time.
    Full(Duration),
    /// The server is going down.
    Draining,
}

enum Command {
    Take(Box<Job>),
    /// Something that jobs wait for may have come.
    Look,
    /// Finish what there is, then end.
    Drain,
    /// Panic, as a fault of this program would.
    #[cfg(test)]
    Fail,
}

/// How others talk to the scheduler.
#[derive(Clone)]
pub(crate) struct Handle {
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

/// What both sides know.
struct Shared {
    draining: AtomicBool,
    waiting: AtomicUsize,
    most_waiting: usize,
    running: AtomicUsize,
    pages: AtomicUsize,
    prefix_pages: AtomicUsize,
    most_pages: usize,
    /// Milliseconds that the last requests took, smoothed.
    took: AtomicUsize,
}

/// How busy the engine is.
pub(crate) struct Load {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    /// Pages of keys and values that requests hold, and that the prefix cache holds besides.
    pub(crate) pages: usize,
    pub(crate) prefix_pages: usize,
    pub(crate) most_pages: usize,
}

impl Handle {
    /// Takes jobs, all or none.
    pub(crate) fn submit(&self, jobs: Vec<Job>) -> Result<(), NotTaken> {
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(NotTaken::Draining);
        }
        let count = jobs.len();
        let taken = self.shared.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
            (n + count <= self.shared.most_waiting).then_some(n + count)
        });
        if taken.is_err() {
            let took = self.shared.took.load(Ordering::Relaxed) as u64;
            return Err(NotTaken::Full(Duration::from_millis(took.max(1000))));
        }
        for job in jobs {
            if self.commands.send(Command::Take(Box::new(job))).is_err() {
                return Err(NotTaken::Draining);
            }
        }
        Ok(())
    }

    /// Has the scheduler look again at what jobs wait for.
    pub(crate) fn look(&self) {
        // It may have ended, with nothing left to look at.
        let _ = self.commands.send(Command::Look);
    }

    /// Takes no more jobs; the thread ends when all that were taken are done.
    pub(crate) fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        let _ = self.commands.send(Command::Drain);
    }

    #[cfg(test)]
    pub(crate) fn fail(&self) {
        self.commands.send(Command::Fail).unwrap();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire)
    }

    pub(crate) fn load(&self) -> Load {
        let get = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Load {
            running: get(&self.shared.running),
            waiting: get(&self.shared.waiting),
            pages: get(&self.shared.pages),
            prefix_pages: get(&self.shared.prefix_pages),
            most_pages: self.shared.most_pages,
        }
    }
}

/// The state of the thread.
pub(crate) struct Scheduler {
    engine: Engine,
    tokenizer: Tokenizer,
    adapters: Adapters,
    limits: Limits,
    metrics: Arc<Metrics>,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    accounts: Accounts,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
    /// In the order in which they were admitted.
    rows: Vec<Running>,
    embedding: Option<Embedding>,
    prefixes: PrefixCache,
    /// Seconds that a token of a step took of late.
    pace: f64,
}

/// A job without a row.
struct Waiting {
    job: Box<Job>,
    leases: Vec<Lease>,
    /// How far it was when its row was taken from it.
    begun: Option<Begun>,
}

/// A row that was begun, without the sequence.
struct Begun {
    row: Row,
    /// When it last wrote a token.
    last_token: Option<Instant>,
}

/// A job with a row.
struct Running {
    job: Box<Job>,
    row: Row,
    leases: Vec<Lease>,
    /// When it last wrote a token.
    last_token: Option<Instant>,
    /// Tokens that were written before the present step.
    written: usize,
    has_told_scores: bool,
}

/// What stands in the way of a waiting job.
enum Turn {
    /// It has its adapters.
    Ready(Vec<Arc<LoadedAdapter>>),
    /// They are not there yet.
    Wait,
    Never(Failure),
}

/// Tells of the thread's end, also where it panics.
struct NoticeOfEnd(Arc<Notify>);

impl Drop for NoticeOfEnd {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Starts the thread; it owns the engine, and `ended` is told when it ends. Returns how to talk to it, and its end.
pub(crate) fn start(
    engine: Engine,
    tokenizer: Tokenizer,
    limits: Limits,
    metrics: Arc<Metrics>,
    ended: Arc<Notify>,
    adapters: impl FnOnce(Handle) -> std::io::Result<Adapters>,
) -> std::io::Result<(Handle, Adapters, std::thread::JoinHandle<()>)> {
    let (sender, commands) = channel();
    let shared = Arc::new(Shared {
        draining: AtomicBool::new(false),
        waiting: AtomicUsize::new(0),
        most_waiting: limits.waiting,
        running: AtomicUsize::new(0),
        pages: AtomicUsize::new(0),
        prefix_pages: AtomicUsize::new(0),
        most_pages: limits.pages,
        took: AtomicUsize::new(0),
    });
    let handle = Handle { commands: sender, shared: Arc::clone(&shared) };
    let adapters = adapters(handle.clone())?;
    let scheduler = Scheduler {
        engine,
        tokenizer,
        adapters: adapters.clone(),
        limits,
        metrics,
        commands,
        shared,
        accounts: Accounts::default(),
        waiting: VecDeque::new(),
        rows: Vec::new(),
        embedding: None,
        prefixes: PrefixCache::new(),
        pace: 0.0,
    };
    let thread = std::thread::Builder::new().name("scheduler".into());
    let thread = thread.spawn(move || {
        let _notice = NoticeOfEnd(ended);
        scheduler.run();
    })?;
    Ok((handle, adapters, thread))
}

impl Scheduler {
    fn run(mut self) {
        let mut draining = false;
        loop {
            draining |= self.take_commands();
            self.drop_unheard();
            self.admit();
            self.report();
            if self.is_idle() {
                if draining && self.waiting.is_empty() {
                    return;
                }
                continue;
            }
            self.embed();
            self.step();
        }
    }

    fn is_idle(&self) -> bool {
        self.rows.is_empty() && self.embedding.is_none()
    }

    /// Takes what has come; where there is nothing else to do, waits for something. Returns whether
    /// the end has come.
    fn take_commands(&mut self) -> bool {
        let mut draining = false;
        let mut next = match (self.is_idle(), self.waiting.is_empty()) {
            (true, true) => self.commands.recv().map_err(|_| ()),
            (true, false) => match self.commands.recv_timeout(IDLE) {
                Err(RecvTimeoutError::Timeout) => return false,
                other => other.map_err(|_| ()),
            },
            (false, _) => self.commands.try_recv().map_err(|_| ()),
        };
        loop {
            match next {
                Ok(Command::Take(job)) => {
                    self.accounts.enter(&job.tenant);
                    self.waiting.push_back(Waiting { job, leases: Vec::new(), begun: None });
                }
                Ok(Command::Look) => {}
                Ok(Command::Drain) => draining = true,
                #[cfg(test)]
                Ok(Command::Fail) => panic!("as a test asked for"),
                Err(()) => return draining,
            }
            next = self.commands.try_recv().map_err(|_| ());
        }
    }

    /// Drops what nobody listens to any more.
    fn drop_unheard(&mut self) {
        let unheard = |job: &Job| job.events.is_closed();
        while let Some(index) = self.waiting.iter().position(|waiting| unheard(&waiting.job)) {
            let waiting = self.take_waiting(index);
            self.dropped(&waiting.job);
            self.accounts.leave(&waiting.job.tenant);
        }
        while let Some(index) = self.rows.iter().position(|row| unheard(&row.job)) {
            let running = self.end(index);
            self.dropped(&running.job);
        }
        if let Some(embedding) = self.embedding.take_if(|embedding| unheard(&embedding.job)) {
            self.dropped(&embedding.job);
            self.accounts.leave(&embedding.job.tenant);
        }
    }

    fn dropped(&self, job: &Job) {
        job.span.in_scope(|| tracing::info!("the client went away"));
        self.metrics.finished(job.label(), "cancelled", job.arrived.elapsed());
    }

    /// Gives rows to waiting jobs, as long as there is room.
    fn admit(&mut self) {
        let mut order = self.in_turn();
        // Of those that will have a row soon, adapters are loaded meanwhile; not of all.
        order.truncate(2 * self.limits.rows);
        let mut is_full = false;
        for id in order {
            let index = self.place(id);
            let adapters = match self.turn(index) {
                Turn::Ready(adapters) => adapters,
                Turn::Wait => continue,
                Turn::Never(failure) => {
                    let waiting = self.take_waiting(index);
                    self.failed(&waiting.job, failure);
                    self.accounts.leave(&waiting.job.tenant);
                    continue;
                }
            };
            if let Task::Embed(pooling) = self.waiting[index].job.task {
                is_full |= !self.has_room(index);
                if !is_full && self.embedding.is_none() {
                    self.begin_embedding(index, pooling, adapters);
                }
                continue;
            }
            // Where one has no room, smaller ones behind it are not let by: it would wait for ever.
            is_full |= self.rows.len() >= self.limits.rows && !self.make_place(index);
            is_full |= !self.has_room(self.place(id));
            if !is_full {
                self.begin(self.place(id), adapters);
            }
        }
    }

    /// Where a waiting job is; a row that makes place waits too, so places change.
    fn place(&self, id: usize) -> usize {
        self.waiting.iter().position(|waiting| waiting.id() == id).expect("it still waits")
    }

    fn take_waiting(&mut self, index: usize) -> Waiting {
        self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        self.waiting.remove(index).expect("it waits")
    }

    /// Waiting jobs, the one whose turn it is first.
    fn in_turn(&self) -> Vec<usize> {
        let mut order: Vec<(fair::Standing, Instant, usize)> = (self.waiting.iter())
            .map(|waiting| {
                let job = &waiting.job;
                (self.accounts.standing(&job.tenant), job.arrived, waiting.id())
            })
            .collect();
        order.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.cmp(&b.1)));
        order.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Whether a waiting job has all that it needs besides memory; asks for its adapters.
    fn turn(&mut self, index: usize) -> Turn {
        let waiting = &mut self.waiting[index];
        let name = |number: Number| self.adapters.name(number).unwrap_or_default();
        if waiting.leases.is_empty() {
            for &(number, scale) in &waiting.job.adapters {
                match self.adapters.lease(number, scale) {
                    Ok(lease) => waiting.leases.push(lease),
                    Err(no) => {
                        // All or none: two that hold one each would wait for each other.
                        waiting.leases.clear();
                        return match no {
                            NoLease::NoRoom => Turn::Wait,
                            NoLease::Gone => Turn::Never(Failure::AdapterGone(
                                waiting.job.tenant.adapter.clone(),
                            )),
                            NoLease::Failed(why) => {
                                Turn::Never(Failure::Adapter { name: name(number), why })
                            }
                        };
                    }
                }
            }
        }
        let mut ready = Vec::with_capacity(waiting.leases.len());
        let states = waiting.leases.iter().map(Lease::state).zip(&waiting.job.adapters);
        let mut wait = None;
        for (state, &(number, _)) in states {
            match state {
                Leased::Ready(adapter) => ready.push(adapter),
                Leased::Loading => wait = wait.or(Some(false)),
                Leased::Again => wait = Some(true),
                Leased::Failed(why) => {
                    return Turn::Never(Failure::Adapter { name: name(number), why });
                }
            }
        }
        if let Some(start_over) = wait {
            if start_over {
                waiting.leases.clear();
            }
            return Turn::Wait;
        }
        // What another row is reading just now need not be read twice.
        let known = |row: &Running| {
            row.row.is_reading()
                && row.row.adapters().len() == ready.len()
                && row.row.adapters().iter().zip(&ready).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        let tokens = waiting.tokens();
        let is_being_read = self.rows.iter().filter(|row| known(row)).any(|row| {
            let same = row.row.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
            // The last token is read in any case.
            let pages = same.min(tokens.len() - 1) / PAGE;
            pages > row.row.sequence().len() / PAGE
        });
        if is_being_read { Turn::Wait } else { Turn::Ready(ready) }
    }

    /// Whether a waiting job's tenant has less than its share of the batch: then a row of the one
    /// that has most makes place.
    fn make_place(&mut self, index: usize) -> bool {
        let tenant = &self.waiting[index].job.tenant;
        let rows = self.rows.iter().map(|row| &row.job.tenant);
        let Some(heavy) = fair::heavier(tenant, rows) else { return false };
        let newest = self.rows.iter().rposition(|row| heavy.is_of(&row.job.tenant));
        let Some(newest) = newest else { return false };
        self.preempt(newest);
        true
    }

    /// Pages that rows hold, shared ones counted for each.
    fn held(&self) -> usize {
        self.rows.iter().map(|row| row.row.sequence().len().div_ceil(PAGE)).sum()
    }

    /// Whether a job's prompt, and the beginning of its answer, will fit beside what is there.
    fn has_room(&self, index: usize) -> bool {
        let waiting = &self.waiting[index];
        let most = match &waiting.job.task {
            Task::Complete { options, .. } => options.max_tokens.unwrap_or(usize::MAX),
            Task::Embed(_) => 0,
        };
        let tokens = (waiting.tokens().len() + most.min(BEGUN)).min(self.limits.context);
        // What others have still to read is as good as held.
        let rows = self.rows.iter().map(|row| row.row.tokens().len().div_ceil(PAGE) + 1);
        let embedding = self.embedding.iter().map(|e| e.job.prompt.len().div_ceil(PAGE));
        let promised: usize = rows.chain(embedding).sum();
        self.is_idle() || promised + tokens.div_ceil(PAGE) <= self.limits.pages
    }

    /// Gives a row to a waiting job.
    fn begin(&mut self, index: usize, adapters: Vec<Arc<LoadedAdapter>>) {
        let Waiting { mut job, leases, begun } = self.take_waiting(index);
        let context = self.limits.context;
        let (row, last_token) = match begun {
            Some(Begun { mut row, last_token }) => {
                let tokens = row.tokens();
                let sequence = self.prefixes.begin(&self.engine, context, &adapters, tokens);
                row.set_sequence(sequence);
                (row, last_token)
            }
            None => {
                let Task::Complete { options, score_prompt } = &mut job.task else {
                    unreachable!("embeddings have no rows")
                };
                let (options, score_prompt) = (std::mem::take(&mut **options), *score_prompt);
                let vocab_size = self.engine.model().vocab_size();
                let completion = Completion::new(&self.tokenizer, vocab_size, &job.prompt, options);
                let completion = match completion {
                    Ok(completion) => completion,
                    Err(error) => {
                        self.failed(&job, Failure::Completion(error.to_string()));
                        self.accounts.leave(&job.tenant);
                        return;
                    }
                };
                let prompt = std::mem::take(&mut job.prompt);
                // Logits of what is known already would be missing.
                let sequence = match score_prompt {
                    Some(_) => self.engine.sequence(context),
                    None => self.prefixes.begin(&self.engine, context, &adapters, &prompt),
                };
                let cached = sequence.len();
                self.metrics.begun(job.label(), job.arrived.elapsed(), cached);
                let _ = job.events.send((job.index, Event::Begun { cached }));
                let tokens = prompt.len();
                job.span.in_scope(|| tracing::debug!(tokens, cached, "begun"));
                let mut row = Row::new(sequence, prompt, adapters, completion);
                // One way for all, so that an answer is what it would be alone: the one for as many
                // as a batch may have.
                row.write_as(Way::of(self.limits.rows));
                if let Some(top) = score_prompt {
                    row.score_prompt(top);
                }
                (row, None)
            }
        };
        let written = row.completion().tokens();
        let has_told_scores = written > 0;
        self.rows.push(Running { job, row, leases, last_token, written, has_told_scores });
    }

    /// Takes the row of a job away; it waits again, and goes on from where it was.
    fn preempt(&mut self, index: usize) {
        let Running { job, mut row, leases, last_token, .. } = self.rows.remove(index);
        let sequence = row.set_sequence(self.engine.sequence(self.limits.context));
        self.prefixes.remember(row.adapters(), row.tokens(), &sequence);
        drop(sequence);
        self.metrics.preempted();
        self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        let begun = Some(Begun { row, last_token });
        self.waiting.push_front(Waiting { job, leases, begun });
    }

    fn failed(&self, job: &Job, failure: Failure) {
        job.span.in_scope(|| tracing::warn!(adapter = job.tenant.adapter, ?failure, "failed"));
        self.metrics.finished(job.label(), "error", job.arrived.elapsed());
        // Nobody may be listening any more.
        let _ = job.events.send((job.index, Event::Failed(failure)));
    }

    /// How many tokens of prompts the next step reads: as many as keep it short, where somebody
    /// waits for the next token.
    fn budget(&self) -> usize {
        let is_awaited = self.rows.iter().any(|row| !row.row.is_reading());
        if !is_awaited || self.pace == 0.0 {
            return READ_AT_MOST;
        }
        ((STEP.as_secs_f64() / self.pace) as usize).clamp(READ_AT_LEAST, READ_AT_MOST)
    }

    /// Says what each row reads in the next step.
    fn share_out(&mut self) {
        let mut order: Vec<usize> = (0..self.rows.len()).collect();
        let accounts = &self.accounts;
        order.sort_by_key(|&index| accounts.standing(&self.rows[index].job.tenant));
        let mut budget = self.budget();
        for index in order {
            let row = &mut self.rows[index].row;
            if row.is_reading() {
                let count = row.unread().min(budget);
                row.read_at_most(count);
                budget -= count;
            } else {
                row.read_at_most(1);
            }
        }
    }

    /// Says what the next step reads, and sees to it that its keys and values have room: the prefix cache gives up pages
    /// first, then the newest rows of who has most give up theirs.
    fn make_room(&mut self) {
        loop {
            self.share_out();
            let new = |row: &Running| {
                let held = row.row.sequence().len();
                (held + row.row.next_read()).div_ceil(PAGE) - held.div_ceil(PAGE)
            };
            let wanted = self.engine.pages() + self.rows.iter().map(new).sum::<usize>();
            let excess = wanted.saturating_sub(self.limits.pages);
            if excess == 0 || self.prefixes.evict(excess) >= excess || self.rows.len() < 2 {
                return;
            }
            let rows = self.rows.iter().map(|row| &row.job.tenant);
            let heavy = fair::heaviest(rows).expect("there are rows");
            let newest = self.rows.iter().rposition(|row| heavy.is_of(&row.job.tenant));
            self.preempt(newest.expect("it has rows"));
        }
    }

    fn step(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        self.make_room();
        let before: Vec<(usize, bool)> = (self.rows.iter())
            .map(|row| (row.row.sequence().len(), row.row.is_reading()))
            .collect();
        let start = Instant::now();
        let advanced = self.engine.advance(self.rows.iter_mut().map(|row| &mut row.row));
        let took = start.elapsed();
        if let Err(error) = advanced {
            // A row asked for what cannot be, which was to be refused before: no row can go on.
            tracing::error!(%error, "a step of the engine failed");
            while !self.rows.is_empty() {
                let running = self.end(0);
                self.failed(&running.job, Failure::Engine(error.to_string()));
            }
            return;
        }
        let mut tokens = 0;
        for (running, (len, was_reading)) in self.rows.iter_mut().zip(before) {
            let Running { job, row, last_token, written, .. } = running;
            let fed = row.sequence().len() - len;
            tokens += fed;
            let read = if was_reading { fed } else { 0 };
            let wrote = row.completion().tokens() - *written;
            *written += wrote;
            self.accounts.charge(&job.tenant, read, wrote);
            self.metrics.tokens(job.label(), read, wrote);
            if was_reading {
                self.prefixes.remember(row.adapters(), row.tokens(), row.sequence());
            }
            if wrote > 0 {
                let now = Instant::now();
                match last_token.replace(now) {
                    None => self.metrics.first_token(job.label(), now - job.arrived),
                    Some(last) => self.metrics.next_token(now - last),
                }
            }
        }
        self.metrics.stepped(self.rows.len(), tokens, took);
        // How long a token takes is told by steps of many: a single one has the weights to itself.
        if tokens >= READ_AT_LEAST {
            let pace = took.as_secs_f64() / tokens as f64;
            self.pace = if self.pace == 0.0 { pace } else { 0.7 * self.pace + 0.3 * pace };
        }
        self.tell();
    }

    /// Tells the listeners what the last step brought.
    fn tell(&mut self) {
        let mut index = 0;
        while index < self.rows.len() {
            let Running { job, row, has_told_scores, .. } = &mut self.rows[index];
            let send = |event| {
                // Who does not listen any more is dropped before the next step.
                let _ = job.events.send((job.index, event));
            };
            if !*has_told_scores && !row.is_reading() {
                *has_told_scores = true;
                if !row.prompt_scores().is_empty() {
                    send(Event::PromptScores(row.prompt_scores().to_vec()));
                }
            }
            let (text, scored) = (row.take_text(), row.take_scored());
            if !text.is_empty() || !scored.is_empty() {
                send(Event::Wrote { text, scored });
            }
            let failure = row.take_failure();
            let finish = row.completion().finished();
            if let Some(error) = failure {
                let running = self.end(index);
                self.failed(&running.job, Failure::Completion(error.to_string()));
            } else if let Some(finish) = finish {
                send(Event::Done { finish, tokens: row.completion().tokens() });
                let running = self.end(index);
                self.finished(&running, finish);
            } else {
                index += 1;
            }
        }
    }

    fn finished(&self, Running { job, row, .. }: &Running, finish: Finish) {
        let outcome = if finish == Finish::Stop { "stop" } else { "length" };
        let took = job.arrived.elapsed();
        job.span.in_scope(|| {
            let (adapter, seconds) = (&job.tenant.adapter, took.as_secs_f64());
            let written = row.completion().tokens();
            tracing::info!(adapter, written, outcome, seconds, "finished");
        });
        self.metrics.finished(job.label(), outcome, took);
        let before = self.shared.took.load(Ordering::Relaxed);
        let smoothed = (3 * before + took.as_millis() as usize) / 4;
        self.shared.took.store(smoothed, Ordering::Relaxed);
    }

    /// Frees a row.
    fn end(&mut self, index: usize) -> Running {
        let running = self.rows.remove(index);
        let row = &running.row;
        // What was written is the beginning of the next turn of a chat.
        self.prefixes.remember(row.adapters(), row.tokens(), row.sequence());
        self.accounts.leave(&running.job.tenant);
        running
    }

    /// Tells metrics and whoever asks how busy it is.
    fn report(&mut self) {
        let held = self.held();
        let shared = &self.shared;
        let running = self.rows.len() + usize::from(self.embedding.is_some());
        shared.running.store(running, Ordering::Relaxed);
        shared.pages.store(held, Ordering::Relaxed);
        shared.prefix_pages.store(self.prefixes.pages(), Ordering::Relaxed);
        let running = self.rows.iter().map(|row| &*row.job.names);
        let running: Vec<&[String]> =
            running.chain(self.embedding.iter().map(|e| &*e.job.names)).collect();
        let waiting: Vec<&[String]> = self.waiting.iter().map(|w| &*w.job.names).collect();
        self.metrics.set_requests(&running, &waiting);
        self.metrics.set_kv_usage(held as f64 / self.limits.pages as f64);
    }
}

impl Waiting {
    /// What it is to read: its prompt, and what was written already.
    fn tokens(&self) -> &[u32] {
        self.begun.as_ref().map_or(&self.job.prompt, |begun| begun.row.tokens())
    }

    /// Tells it from all others that wait.
    fn id(&self) -> usize {
        std::ptr::from_ref::<Job>(&self.job).addr()
    }
}
