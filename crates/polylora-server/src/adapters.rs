//! The adapters that may be asked for, and those of them that are in memory.
//!
//! ```text
//! registered ── lease ──> loading ──> resident, leased ── last lease dropped ──> resident
//!     ^                      └─> failed                                              │
//!     └──────────── least recently used, when another needs the room ───────────────┘
//! ```
//!
//! An adapter is registered by a name and the place of its files. It is read when somebody first
//! takes a [`Lease`] of it, by a thread of its own, and stays in memory until others need the
//! room; while leases are held it stays in any case. A change of its files begins a new
//! generation: leases of the old one keep what they have.

mod folder;

pub(crate) use folder::Unfit;

use folder::{Fingerprint, Folder};
use polylora_adapter::{Adapter, AdapterSpec, ChangeKind, load_copy};
use polylora_engine::{AdapterLoader, LoadedAdapter};
use polylora_file::Gguf;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// How often the folder is looked through for new and changed adapters.
pub(crate) const RESCAN: Duration = Duration::from_secs(5);

/// The longest name of an adapter that is loaded by request, in bytes.
const LONGEST_NAME: usize = 256;

/// What stands for an adapter everywhere but in texts: its place in the list of all that ever
/// were, so it never means another one.
pub(crate) type Number = usize;

/// The registry and cache of adapters; clones are of one.
#[derive(Clone)]
pub(crate) struct Adapters(Arc<Shared>);

struct Shared {
    base: Gguf,
    loader: AdapterLoader,
    folder: Option<Folder>,
    capacity: usize,
    state: Mutex<State>,
    to_load: Sender<Key>,
    watch: Box<dyn Watch>,
}

/// Who is told what happens.
pub(crate) trait Watch: Send + Sync {
    /// Something that leases waited for has come: an adapter, or room for one.
    fn changed(&self);
    /// An adapter was loaded.
    fn loaded(&self, took: Duration);
    /// An adapter made room for another.
    fn evicted(&self);
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    numbers: HashMap<String, Number>,
    residents: HashMap<Key, Resident>,
    /// Bytes of all residents, of those that are being loaded as far as they are known.
    bytes: usize,
    clock: u64,
    /// What applies where a request names the base and says nothing of adapters.
    defaults: Vec<(Number, f32)>,
}

/// One name.
struct Entry {
    name: String,
    /// Where its files are; none after it was taken away.
    source: Option<AdapterSpec>,
    origin: Origin,
    /// When it was registered.
    created: SystemTime,
    generation: u64,
    /// Of its files; after it was taken away by request, of those that the folder then had under its
    /// name, which are not found again.
    fingerprint: Option<Fingerprint>,
    /// Of this generation, once it was loaded: what is known of it.
    known: Option<Known>,
    error: Option<Arc<str>>,
}

#[derive(Clone)]
struct Known {
    hash: String,
    rank: usize,
    bytes: usize,
}

/// Who registered an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    CommandLine,
    Folder,
    Request,
}

/// What is in memory: one generation of an adapter at one scale, which is folded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    number: Number,
    generation: u64,
    /// The request's, as bits.
    scale: u32,
}

struct Resident {
    slot: Slot,
    bytes: usize,
    leases: usize,
    used: u64,
}

#[derive(Clone)]
enum Slot {
    Loading,
    Ready(Arc<LoadedAdapter>),
    Failed(Arc<str>),
    /// It turned out larger than the room that was kept for it, or another generation has begun.
    Again,
}

/// A right to an adapter in memory, now or soon. It stays there until this is dropped.
pub(crate) struct Lease {
    adapters: Adapters,
    key: Key,
}

/// How far a lease has come.
pub(crate) enum Leased {
    Loading,
    Ready(Arc<LoadedAdapter>),
    /// Ask for another lease: this one comes to nothing.
    Again,
    Failed(Arc<str>),
}

/// Why there is no lease.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoLease {
    /// It is not there any more.
    Gone,
    /// All that is in memory is in use: try again when something has changed.
    NoRoom,
    Failed(Arc<str>),
}

/// What may be told of an adapter.
pub(crate) struct Told {
    pub(crate) number: Number,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) created: SystemTime,
    pub(crate) generation: u64,
    pub(crate) residence: Residence,
    /// Bytes in memory, of all scales.
    pub(crate) bytes: Option<usize>,
    pub(crate) rank: Option<usize>,
    pub(crate) hash: Option<String>,
    pub(crate) error: Option<Arc<str>>,
}

/// Where an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Residence {
    Registered,
    Loading,
    Resident,
    Failed,
}

/// What an adapter that is to be registered by request must be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0:?} is no name for an adapter: it takes up to 256 bytes, and no commas or controls")]
    Name(String),
    #[error("{0:?} is the name of the model itself: take another")]
    IsBase(String),
    #[error("the adapter {0:?} is there already: unload it first, or ask for load_inplace")]
    Duplicate(String),
    #[error("the adapter {0:?} was named when the server was started, and stays")]
    CommandLine(String),
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error("{0}")]
    Load(Arc<str>),
}

impl Adapters {
    /// An empty registry, and a thread that loads what is asked for.
    ///
    /// `capacity`: bytes of adapters in memory. `folder`: where adapters are looked for.
    pub(crate) fn new(
        base: Gguf,
        loader: AdapterLoader,
        capacity: usize,
        folder: Option<&Path>,
        watch: Box<dyn Watch>,
    ) -> std::io::Result<Adapters> {
        let (to_load, loads) = channel();
        let folder = folder.map(Folder::open).transpose()?;
        let state = Mutex::default();
        let shared = Shared { base, loader, folder, capacity, state, to_load, watch };
        let adapters = Adapters(Arc::new(shared));
        // One thread: the others have a model to run.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pool = pool.map_err(std::io::Error::other)?;
        let shared = Arc::downgrade(&adapters.0);
        let load = move |loads: Receiver<Key>| {
            while let Ok(key) = loads.recv() {
                let Some(shared) = shared.upgrade() else { break };
                pool.install(|| shared.carry_out(key));
            }
        };
        std::thread::Builder::new().name("adapters".into()).spawn(move || load(loads))?;
        Ok(adapters)
    }

    /// Registers what was named when the server was started.
    pub(crate) fn add(&self, spec: AdapterSpec) -> Result<Number, Refused> {
        let mut state = self.0.lock();
        if state.find(&spec.name).is_some() {
            return Err(Refused::Duplicate(spec.name));
        }
        Ok(state.register(spec, Origin::CommandLine, None))
    }

    /// Reads an adapter now, to know that it can be.
    pub(crate) fn load_now(&self, number: Number) -> Result<(), Arc<str>> {
        let lease = self.lease(number, 1.0).map_err(|why| match why {
            NoLease::Failed(why) => why,
            NoLease::NoRoom | NoLease::Gone => "there is no room for it".into(),
        })?;
        loop {
            match lease.state() {
                Leased::Ready(_) => return Ok(()),
                Leased::Failed(why) => return Err(why),
                Leased::Again => return Err("there is no room for it".into()),
                Leased::Loading => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Registers the adapter at `path`, which lies in the folder, after it was read. With
    /// `replace` the name may be taken: its next generation begins.
    pub(crate) fn add_by_request(
        &self,
        name: &str,
        path: &str,
        base_id: &str,
        replace: bool,
    ) -> Result<Number, Refused> {
        if name == base_id {
            return Err(Refused::IsBase(name.to_owned()));
        }
        if !is_name(name) {
            return Err(Refused::Name(name.to_owned()));
        }
        let folder = self.0.folder.as_ref().ok_or(Unfit::NoFolder)?;
        let path = folder.resolve(path)?;
        let fingerprint = Fingerprint::of(&path);
        let spec = AdapterSpec { name: name.to_owned(), path, scale: 1.0 };
        // Looked at first for a quick answer, and again when it is registered.
        let taken = |state: &State| match state.find(name) {
            Some(number) if !replace => {
                Some(Refused::Duplicate(state.entries[number].name.clone()))
            }
            _ => None,
        };
        if let Some(refused) = taken(&self.0.lock()) {
            return Err(refused);
        }
        let (loaded, known) = self.0.load(&spec, 1.0).map_err(Refused::Load)?;
        let mut state = self.0.lock();
        if let Some(refused) = taken(&state) {
            return Err(refused);
        }
        let number = state.register(spec, Origin::Request, fingerprint);
        let bytes = known.bytes;
        state.entries[number].known = Some(known);
        // Where there is no room it is read again when it is used.
        if state.make_room(bytes, self.0.capacity, &*self.0.watch) {
            state.clock += 1;
            let used = state.clock;
            let generation = state.entries[number].generation;
            let key = Key { number, generation, scale: 1f32.to_bits() };
            let slot = Slot::Ready(loaded);
            state.residents.insert(key, Resident { slot, bytes, leases: 0, used });
            state.bytes += bytes;
        }
        drop(state);
        self.0.watch.changed();
        Ok(number)
    }

    /// Takes an adapter away; those who use it go on with it. Files of its name in the folder are no
    /// adapter until they change.
    pub(crate) fn remove(&self, number: Number) -> Result<(), Refused> {
        let mut state = self.0.lock();
        let entry = &mut state.entries[number];
        if entry.origin == Origin::CommandLine {
            return Err(Refused::CommandLine(entry.name.clone()));
        }
        entry.source = None;
        entry.fingerprint =
            self.0.folder.as_ref().and_then(|folder| folder.fingerprint(&entry.name));
        state.next_generation(number);
        state.defaults.retain(|&(default, _)| default != number);
        drop(state);
        self.0.watch.changed();
        Ok(())
    }

    /// Looks through the folder for adapters that are new, changed or gone.
    pub(crate) fn rescan(&self) {
        let Some(folder) = &self.0.folder else { return };
        let known: HashMap<PathBuf, Option<Fingerprint>> = {
            let state = self.0.lock();
            let sources = state.entries.iter().filter_map(|entry| {
                let source = entry.source.as_ref()?;
                Some((source.path.clone(), entry.fingerprint.clone()))
            });
            sources.collect()
        };
        let found = match folder.scan(&known) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(folder = %folder.root().display(), %error, "cannot list adapters");
                return;
            }
        };
        let mut state = self.0.lock();
        for (spec, fingerprint) in &found {
            match state.find(&spec.name) {
                None if state.was_removed(&spec.name, fingerprint) => {}
                None => {
                    tracing::info!(adapter = spec.name, "adapter found");
                    state.register(spec.clone(), Origin::Folder, Some(fingerprint.clone()));
                }
                Some(number) => {
                    let entry = &mut state.entries[number];
                    let is_same = entry.source.as_ref().is_some_and(|s| s.path == spec.path);
                    if is_same && entry.fingerprint.as_ref() != Some(fingerprint) {
                        tracing::info!(adapter = spec.name, "adapter changed");
                        entry.fingerprint = Some(fingerprint.clone());
                        state.next_generation(number);
                    }
                }
            }
        }
        let gone = |entry: &Entry| {
            let listed =
                |source: &AdapterSpec| found.iter().any(|(spec, _)| spec.name == source.name);
            entry.origin == Origin::Folder && entry.source.as_ref().is_some_and(|s| !listed(s))
        };
        let gone: Vec<Number> =
            (0..state.entries.len()).filter(|&number| gone(&state.entries[number])).collect();
        for number in gone {
            tracing::info!(adapter = state.entries[number].name, "adapter gone");
            state.entries[number].source = None;
            state.entries[number].fingerprint = None;
            state.next_generation(number);
        }
        drop(state);
        self.0.watch.changed();
    }

    /// The number of a name that is registered.
    pub(crate) fn find(&self, name: &str) -> Option<Number> {
        self.0.lock().find(name)
    }

    /// The name of a number that is registered.
    pub(crate) fn name(&self, number: Number) -> Option<String> {
        let state = self.0.lock();
        let entry = state.entries.get(number).filter(|entry| entry.source.is_some())?;
        Some(entry.name.clone())
    }

    /// All names that ever were, in the order of their numbers.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().entries.iter().map(|entry| entry.name.clone()).collect()
    }

    /// What may be told of all that are registered.
    pub(crate) fn list(&self) -> Vec<Told> {
        let state = self.0.lock();
        // A thousand names are asked for in one go: one look at the residents is enough.
        let mut held: HashMap<Number, (usize, Residence)> = HashMap::new();
        for (key, resident) in &state.residents {
            // Who waited for one that failed may not have heard of it yet.
            let is_there = matches!(resident.slot, Slot::Loading | Slot::Ready(_));
            if key.generation != state.entries[key.number].generation || !is_there {
                continue;
            }
            let (bytes, residence) = held.entry(key.number).or_insert((0, Residence::Loading));
            if let Slot::Ready(_) = resident.slot {
                *bytes += resident.bytes;
                *residence = Residence::Resident;
            }
        }
        let told = state.entries.iter().enumerate().filter_map(|(number, entry)| {
            let source = entry.source.as_ref()?;
            let held = held.get(&number);
            let absent =
                if entry.error.is_some() { Residence::Failed } else { Residence::Registered };
            Some(Told {
                number,
                name: entry.name.clone(),
                path: source.path.clone(),
                created: entry.created,
                generation: entry.generation,
                residence: held.map_or(absent, |&(_, residence)| residence),
                bytes: held.map(|&(bytes, _)| bytes).filter(|&bytes| bytes > 0),
                rank: entry.known.as_ref().map(|known| known.rank),
                hash: entry.known.as_ref().map(|known| known.hash.clone()),
                error: entry.error.clone(),
            })
        });
        told.collect()
    }

    /// Bytes in memory, and how many may be.
    pub(crate) fn usage(&self) -> (usize, usize) {
        (self.0.lock().bytes, self.0.capacity)
    }

    /// What applies where a request names the base and says nothing of adapters.
    pub(crate) fn defaults(&self) -> Vec<(Number, f32)> {
        self.0.lock().defaults.clone()
    }

    /// Sets [`defaults`](Adapters::defaults).
    pub(crate) fn set_defaults(&self, defaults: Vec<(Number, f32)>) {
        self.0.lock().defaults = defaults;
    }

    /// Asks for the present generation of an adapter, its own scale multiplied by `scale`.
    pub(crate) fn lease(&self, number: Number, scale: f32) -> Result<Lease, NoLease> {
        let shared = &self.0;
        let mut state = shared.lock();
        let entry = &state.entries[number];
        if entry.source.is_none() {
            return Err(NoLease::Gone);
        }
        if let Some(error) = &entry.error {
            return Err(NoLease::Failed(Arc::clone(error)));
        }
        let key = Key { number, generation: entry.generation, scale: scale.to_bits() };
        // A factor takes half the bytes in memory that it has in a file in single precision, and
        // twice those of eight bits.
        let estimate = match (&entry.known, &entry.fingerprint) {
            (Some(known), _) => known.bytes,
            (None, Some(fingerprint)) => fingerprint.bytes() as usize,
            (None, None) => 0,
        };
        state.clock += 1;
        let used = state.clock;
        if let Some(resident) = state.residents.get_mut(&key) {
            resident.leases += 1;
            resident.used = used;
        } else {
            let room = estimate.min(shared.capacity);
            if !state.make_room(room, shared.capacity, &*shared.watch) {
                return Err(NoLease::NoRoom);
            }
            state.bytes += room;
            let slot = Slot::Loading;
            state.residents.insert(key, Resident { slot, bytes: room, leases: 1, used });
            // The thread ends only with this registry.
            let _ = shared.to_load.send(key);
        }
        Ok(Lease { adapters: self.clone(), key })
    }
}

impl Lease {
    /// How far it has come.
    pub(crate) fn state(&self) -> Leased {
        match &self.adapters.0.lock().residents[&self.key].slot {
            Slot::Loading => Leased::Loading,
            Slot::Ready(adapter) => Leased::Ready(Arc::clone(adapter)),
            Slot::Failed(why) => Leased::Failed(Arc::clone(why)),
            Slot::Again => Leased::Again,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let shared = &self.adapters.0;
        let mut state = shared.lock();
        let resident = state.residents.get_mut(&self.key).expect("what is leased stays");
        resident.leases -= 1;
        if resident.leases > 0 {
            return;
        }
        let is_useful = matches!(resident.slot, Slot::Ready(_) | Slot::Loading);
        let current = state.entries[self.key.number].generation;
        if !is_useful || current != self.key.generation {
            state.forget(self.key);
        }
        drop(state);
        shared.watch.changed();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Reads the files of an adapter, and makes it ready.
    fn load(
        &self,
        spec: &AdapterSpec,
        scale: f32,
    ) -> Result<(Arc<LoadedAdapter>, Known), Arc<str>> {
        let start = Instant::now();
        let scaled = AdapterSpec { scale: spec.scale * scale, ..spec.clone() };
        let load = || -> Result<_, Arc<str>> {
            let adapter =
                load_copy(&scaled, &self.base).map_err(|error| Arc::from(error.to_string()))?;
            let loaded =
                self.loader.load(&adapter).map_err(|error| Arc::from(error.to_string()))?;
            let known =
                Known { hash: adapter.hash.clone(), rank: rank(&adapter), bytes: loaded.bytes() };
            Ok((loaded, known))
        };
        // A stranger's file is not to end the thread, whatever is in it.
        let loaded = std::panic::catch_unwind(AssertUnwindSafe(load));
        let loaded = loaded.unwrap_or_else(|_| Err("reading it failed unexpectedly".into()));
        let (adapter, took) = (&spec.name, start.elapsed());
        match &loaded {
            Ok((_, known)) => {
                self.watch.loaded(took);
                let (seconds, bytes) = (took.as_secs_f64(), known.bytes);
                tracing::debug!(adapter, scale, seconds, bytes, "adapter loaded");
            }
            Err(error) => tracing::error!(adapter, %error, "adapter cannot be loaded"),
        }
        loaded
    }

    /// Loads what a lease was given for, unless nobody wants it any more.
    fn carry_out(&self, key: Key) {
        let spec = {
            let mut state = self.lock();
            // A key may have been forgotten and asked for anew: it is here twice then.
            match state.residents.get(&key) {
                Some(resident) if matches!(resident.slot, Slot::Loading) => {}
                _ => return,
            }
            let current = state.entries[key.number].generation == key.generation;
            match &state.entries[key.number].source {
                Some(source) if current => source.clone(),
                _ => {
                    state.settle(key, Slot::Again);
                    drop(state);
                    return self.watch.changed();
                }
            }
        };
        let loaded = self.load(&spec, f32::from_bits(key.scale));
        let mut state = self.lock();
        // Its files may have changed meanwhile, and nobody waits for what they were.
        let Some(resident) = state.residents.get_mut(&key) else { return };
        // The room that was kept for it may be too little or too much.
        let kept = std::mem::take(&mut resident.bytes);
        state.bytes -= kept;
        let is_current = state.entries[key.number].generation == key.generation;
        let slot = match loaded {
            Ok((adapter, known)) => {
                let bytes = known.bytes;
                if is_current {
                    state.entries[key.number].known = Some(known);
                }
                if bytes > self.capacity {
                    let why = format!(
                        "it takes {bytes} bytes in memory, and all adapters together may take {} \
                         (--adapter-memory)",
                        self.capacity
                    );
                    Slot::Failed(why.into())
                } else if state.make_room(bytes, self.capacity, &*self.watch) {
                    state.bytes += bytes;
                    if let Some(resident) = state.residents.get_mut(&key) {
                        resident.bytes = bytes;
                    }
                    Slot::Ready(adapter)
                } else {
                    Slot::Again
                }
            }
            // What has come instead is another matter.
            Err(_) if !is_current => Slot::Again,
            Err(why) => Slot::Failed(why),
        };
        if let (Slot::Failed(why), true) = (&slot, is_current) {
            state.entries[key.number].error = Some(Arc::clone(why));
        }
        state.settle(key, slot);
        drop(state);
        self.watch.changed();
    }
}

impl State {
    fn find(&self, name: &str) -> Option<Number> {
        let number = *self.numbers.get(name)?;
        self.entries[number].source.is_some().then_some(number)
    }

    /// Whether these files were there when the adapter of that name was taken away.
    fn was_removed(&self, name: &str, files: &Fingerprint) -> bool {
        let number = self.numbers.get(name);
        number.is_some_and(|&number| self.entries[number].fingerprint.as_ref() == Some(files))
    }

    /// Registers an adapter, or the next generation of one.
    fn register(
        &mut self,
        spec: AdapterSpec,
        origin: Origin,
        fingerprint: Option<Fingerprint>,
    ) -> Number {
        if let Some(&number) = self.numbers.get(&spec.name) {
            let entry = &mut self.entries[number];
            (entry.source, entry.origin, entry.fingerprint) = (Some(spec), origin, fingerprint);
            entry.created = SystemTime::now();
            self.next_generation(number);
            return number;
        }
        let number = self.entries.len();
        self.numbers.insert(spec.name.clone(), number);
        self.entries.push(Entry {
            name: spec.name.clone(),
            source: Some(spec),
            origin,
            created: SystemTime::now(),
            generation: 1,
            fingerprint,
            known: None,
            error: None,
        });
        number
    }

    /// What is in memory of an adapter is of the past: it goes when nobody uses it.
    fn next_generation(&mut self, number: Number) {
        let entry = &mut self.entries[number];
        entry.generation += 1;
        entry.known = None;
        entry.error = None;
        let unused = |(key, resident): (&Key, &Resident)| {
            (key.number == number && resident.leases == 0).then_some(*key)
        };
        let unused: Vec<Key> = self.residents.iter().filter_map(unused).collect();
        unused.into_iter().for_each(|key| self.forget(key));
    }

    /// Notes what became of a load.
    fn settle(&mut self, key: Key, slot: Slot) {
        let current = self.entries[key.number].generation == key.generation;
        let Some(resident) = self.residents.get_mut(&key) else { return };
        let is_ready = matches!(slot, Slot::Ready(_));
        resident.slot = slot;
        if resident.leases == 0 && !(is_ready && current) {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: Key) {
        if let Some(resident) = self.residents.remove(&key) {
            self.bytes -= resident.bytes;
        }
    }

    /// Makes room for `bytes` by forgetting what was not used for longest; whether it could.
    fn make_room(&mut self, bytes: usize, capacity: usize, watch: &dyn Watch) -> bool {
        let unused =
            |resident: &&Resident| resident.leases == 0 && matches!(resident.slot, Slot::Ready(_));
        let free = self.residents.values().filter(unused).map(|resident| resident.bytes).sum();
        // Nothing is forgotten in vain.
        if (self.bytes + bytes).saturating_sub(free) > capacity {
            return false;
        }
        while self.bytes + bytes > capacity {
            let oldest = self.residents.iter().filter(|(_, resident)| unused(resident));
            let oldest = oldest.min_by_key(|(_, resident)| resident.used).map(|(key, _)| *key);
            let Some(oldest) = oldest else { return false };
            self.forget(oldest);
            watch.evicted();
        }
        true
    }
}

/// The largest rank in an adapter.
fn rank(adapter: &Adapter) -> usize {
    let ranks = adapter.changes.iter().map(|change| match &change.kind {
        ChangeKind::LowRank { down, .. } => down.rows(),
        _ => 0,
    });
    ranks.max().unwrap_or(0)
}

/// Whether an adapter may be called so: lists of names in metrics are separated by commas.
fn is_name(name: &str) -> bool {
    let is_plain = |c: char| !c.is_control() && c != ',';
    !name.is_empty() && name.len() <= LONGEST_NAME && name.chars().all(is_plain)
}
