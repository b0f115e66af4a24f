//! A folder that PEFT wrote: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! What the tensors are for is in their names ([`parts`]), what is computed with them in the
//! configuration ([`config`]). The tensors decide what is changed: `target_modules` and
//! `layers_to_transform` only say how they were chosen.

mod columns;
mod config;
mod experts;
mod parts;

use super::{Format, Listed};
use crate::adapter::{Change, ChangeKind, Matching, ReadFile, check_values};
use crate::error::Fault;
use crate::factor::Factor;
use crate::names::{Names, Site, without_prefixes};
use crate::summary::Summary;
use columns::LowRank;
use config::Config;
use experts::Stack;
use parts::{Key, Part, Parts, by_module};
use polylora_file::{Bytes, Tensor, safetensors, sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const INDEX: &str = "adapter_model.safetensors.index.json";
const SHARD: &str = "adapter_model-";
const PICKLE: &str = "adapter_model.bin";

pub(super) const FORMAT: Format = Format {
    expects: "a folder with adapter_config.json (PEFT)",
    recognizes: |path| folder(path).join(CONFIG).is_file(),
    among,
    read,
    summarize,
};

/// The folder itself, or that of one of its files.
fn folder(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match path.parent() {
        Some(parent) if [CONFIG, WEIGHTS, INDEX].contains(&name) => parent.into(),
        _ => path.to_owned(),
    }
}

/// The folders with a configuration and weights.
fn among(names: &[&str]) -> Vec<Listed> {
    let configs = names.iter().filter_map(|name| name.strip_suffix(CONFIG));
    let folders = configs.filter(|folder| folder.is_empty() || folder.ends_with('/'));
    folders.filter_map(|folder| listed(folder, names)).collect()
}

/// Of sharded weights all files are taken that are named like shards: the index that says which
/// are meant is not at hand.
fn listed(folder: &str, names: &[&str]) -> Option<Listed> {
    let is_shard = |name: &str| name.starts_with(SHARD) && name.ends_with(".safetensors");
    let inside: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(folder)).collect();
    let weights: Vec<&str> = if inside.contains(&WEIGHTS) {
        vec![WEIGHTS]
    } else if inside.contains(&INDEX) {
        let sharded = |name: &&str| *name == INDEX || is_shard(name);
        inside.into_iter().filter(sharded).collect()
    } else {
        return None;
    };
    let files = [CONFIG].into_iter().chain(weights).map(|name| format!("{folder}{name}"));
    Some(Listed { path: folder.trim_end_matches('/').to_owned(), files: files.collect() })
}

/// What is in the folder.
struct Contents {
    config: Config,
    tensors: Vec<Arc<Tensor>>,
    hash: String,
}

impl Contents {
    fn open(path: &Path, read_file: ReadFile) -> Result<Contents, Fault> {
        let folder = folder(path);
        let read = |name: &str| {
            let bytes = read_file(&folder.join(name));
            bytes.map_err(|error| Fault::Read { what: name.to_owned(), error })
        };
        let config_bytes = read(CONFIG)?;
        let config = Config::parse(&config_bytes)?;

        // Each file is read once, so that the hash is of what is used.
        let mut weights = BTreeMap::new();
        let first = if folder.join(WEIGHTS).is_file() {
            WEIGHTS
        } else if folder.join(INDEX).is_file() {
            for shard in shards(&read(INDEX)?)? {
                weights.insert(folder.join(&shard), read(&shard)?);
            }
            INDEX
        } else if folder.join(PICKLE).exists() {
            return Err(Fault::Pickle(PICKLE.to_owned()));
        } else {
            return Err(Fault::NoWeights);
        };
        let first = folder.join(first);
        if weights.is_empty() {
            weights.insert(first.clone(), read(WEIGHTS)?);
        }
        let known = |path: &Path| weights.get(path).cloned().map_or_else(|| read_file(path), Ok);
        let tensors = safetensors::open_with(&first, &known)?.tensors;
        let tensors = tensors.into_iter().map(Arc::new).collect();
        let files = std::iter::once(&config_bytes).chain(weights.values());
        Ok(Contents { config, tensors, hash: sha256(files.map(|file| &**file)) })
    }
}

/// The files that an index names, each once.
fn shards(index: &[u8]) -> Result<BTreeSet<String>, Fault> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| Fault::Json { file: INDEX, error })?;
    Ok(index.weight_map.into_values().collect())
}

fn read(path: &Path, matching: &mut Matching<'_>) -> Result<String, Fault> {
    let Contents { config, tensors, hash } = Contents::open(path, matching.read_file)?;
    let modules = by_module(&tensors)?;
    let used: Vec<Arc<Tensor>> = modules.values().flat_map(|parts| parts.tensors()).collect();
    check_values(&used)?;

    let reader = Reader { config: &config, names: Names::of(matching.base)? };
    let mut stacks = Vec::new();
    for (key, parts) in &modules {
        reader.module(key, parts, &modules, matching, &mut stacks)?;
    }
    experts::read(&reader, stacks, matching)?;
    Ok(hash)
}

/// What every module is read with.
struct Reader<'a> {
    config: &'a Config,
    names: Names<'a>,
}

/// A pair of factors and what they are named in the configuration's patterns.
struct Pair<'p> {
    down: &'p Arc<Tensor>,
    up: &'p Arc<Tensor>,
    magnitude: Option<&'p Arc<Tensor>>,
    scale: f64,
    rank: usize,
}

impl Reader<'_> {
    fn module(
        &self,
        key: &Key,
        parts: &Parts,
        all: &BTreeMap<Key, Parts>,
        matching: &mut Matching<'_>,
        stacks: &mut Vec<Stack>,
    ) -> Result<(), Fault> {
        let module = without_prefixes(&key.module);
        // What is replaced comes before what is added to it.
        for part in [Part::Weight, Part::Bias] {
            if let Some(saved) = parts.get(part) {
                let changes = self.saved(module, part, saved, matching);
                matching.settle(&saved.name, changes)?;
            }
        }
        if let Some((down, up)) = parts.pair(Part::Down, Part::Up)? {
            match self.names.experts(module, &down.name) {
                Ok(None) => {
                    let (rank, scale) = self.config.rank_and_scale(&self.pattern_key(&key.module));
                    let magnitude = parts.get(Part::Magnitude);
                    let pair = Pair { down, up, magnitude, scale, rank };
                    matching.settle(&down.name, self.low_rank(module, &pair, matching))?;
                }
                Ok(Some(layer)) => {
                    let stack = Stack::new(self.config, key, all, layer, down, up)?;
                    stacks.push(stack);
                }
                Err(fault) => matching.settle(&down.name, Err(fault))?,
            }
        }
        if let Some((down, up)) = parts.pair(Part::EmbeddingDown, Part::EmbeddingUp)? {
            let changes = self.embedding(key, down, up, parts.get(Part::Magnitude), matching);
            matching.settle(&down.name, changes)?;
        }
        if let Some(bias) = parts.get(Part::UpBias) {
            let (_, scale) = self.config.rank_and_scale(&self.pattern_key(&key.module));
            let scale = matching.scale(scale);
            matching.settle(&bias.name, self.added_bias(module, bias, scale))?;
        }
        if let Some(tokens) = parts.get(Part::Tokens) {
            let ids = self.token_ids(key, tokens)?;
            let changes = self.tokens(key, ids, tokens, all, matching);
            matching.settle(&tokens.name, changes)?;
        }
        Ok(())
    }

    /// A module's name in `rank_pattern` and `alpha_pattern`: a parameter that was targeted by
    /// itself is named with its own last part.
    fn pattern_key(&self, module: &str) -> String {
        let weight = format!("{module}.weight");
        let mut parameters = self.config.target_parameters.iter();
        if parameters.any(|parameter| ends_with_name(&weight, parameter)) {
            weight
        } else {
            module.to_owned()
        }
    }

    /// `lora_A` (rank, in) and `lora_B` (out, rank), perhaps with the rows' lengths (out).
    fn low_rank(
        &self,
        module: &str,
        pair: &Pair<'_>,
        matching: &Matching<'_>,
    ) -> Result<Vec<Change>, Fault> {
        let Pair { down, up, magnitude, scale, rank } = *pair;
        check_rank(down, up, rank)?;
        let site = self.names.site(module, &down.name)?;
        let (tensor, rows, columns) = self.rows_of(&site, &down.name)?;
        expect_shape(down, &[rank, columns])?;
        expect_shape(up, &[rows.len(), rank])?;
        let rotary = self.names.rotary(&site.stem, rows.len(), &up.name)?;
        let magnitude = match magnitude {
            None => None,
            Some(magnitude) => {
                expect_shape(magnitude, &[rows.len()])?;
                let column = Factor::whole(magnitude).transposed();
                Some(column.rotated(rotary))
            }
        };
        let kind = ChangeKind::LowRank {
            down: Factor::whole(down),
            up: Factor::whole(up).rotated(rotary),
            scale: matching.scale(scale),
            magnitude,
        };
        Ok(vec![Change { tensor, rows, source: module.to_owned(), kind }])
    }

    /// `lora_embedding_A` (rank, vocabulary) and `lora_embedding_B` (width, rank), perhaps with the
    /// columns' lengths (width): what is added is `(B @ A)` transposed, so A takes B's role.
    fn embedding(
        &self,
        key: &Key,
        down: &Arc<Tensor>,
        up: &Arc<Tensor>,
        magnitude: Option<&Arc<Tensor>>,
        matching: &Matching<'_>,
    ) -> Result<Vec<Change>, Fault> {
        let (rank, scale) = self.config.rank_and_scale(&key.module);
        check_rank(down, up, rank)?;
        let module = without_prefixes(&key.module);
        let site = self.names.site(module, &down.name)?;
        let (tensor, rows, columns) = self.rows_of(&site, &down.name)?;
        expect_shape(down, &[rank, rows.len()])?;
        expect_shape(up, &[columns, rank])?;
        let pair = LowRank {
            down: Factor::whole(up).transposed(),
            up: Factor::whole(down).transposed(),
            scale: matching.scale(scale),
        };
        let mut kinds = Vec::new();
        if let Some(magnitude) = magnitude {
            expect_shape(magnitude, &[columns])?;
            let factors = columns::factors(&pair, magnitude, self.names.target(&tensor))?;
            kinds.push(ChangeKind::ScaleColumns { factors });
        }
        let LowRank { down, up, scale } = pair;
        kinds.insert(0, ChangeKind::LowRank { down, up, scale, magnitude: None });
        let change = |kind| Change {
            tensor: tensor.clone(),
            rows: rows.clone(),
            source: module.to_owned(),
            kind,
        };
        Ok(kinds.into_iter().map(change).collect())
    }

    /// `lora_B.bias` (out).
    fn added_bias(
        &self,
        module: &str,
        bias: &Arc<Tensor>,
        scale: f32,
    ) -> Result<Vec<Change>, Fault> {
        let site = self.names.site(module, &bias.name)?;
        let (_, weight_rows, _) = self.rows_of(&site, &bias.name)?;
        let tensor = format!("{}.bias", site.stem);
        let rows = match self.names.target(&tensor) {
            Some(_) => self.bias_row(&site, &bias.name)?,
            None if self.names.takes_bias(&site.stem) => 0..1,
            None => {
                let target = tensor;
                return Err(Fault::NoTarget { tensor: bias.name.clone(), target });
            }
        };
        expect_shape(bias, &[weight_rows.len()])?;
        let rotary = self.names.rotary(&site.stem, weight_rows.len(), &bias.name)?;
        let kind = ChangeKind::Add { values: Factor::whole(bias).rotated(rotary), scale };
        Ok(vec![Change { tensor, rows, source: module.to_owned(), kind }])
    }

    /// A module of `modules_to_save`, or a bias that was trained along.
    fn saved(
        &self,
        module: &str,
        part: Part,
        saved: &Arc<Tensor>,
        matching: &Matching<'_>,
    ) -> Result<Vec<Change>, Fault> {
        let site = self.names.site(module, &saved.name)?;
        let (tensor, rows, columns) = if part == Part::Weight {
            self.rows_of(&site, &saved.name)?
        } else {
            let tensor = format!("{}.bias", site.stem);
            let rows = self.bias_row(&site, &saved.name)?;
            let columns = self.names.target(&tensor).map_or(0, Tensor::columns);
            (tensor, rows, columns)
        };
        let turned = part == Part::Weight && self.names.is_turned(&site.stem);
        // A norm or a bias is a row; so is, in a GGUF, a matrix of one row.
        let expected = if turned { [columns, rows.len()] } else { [rows.len(), columns] };
        if saved.shape != expected && (rows.len() != 1 || saved.shape != [columns]) {
            let expected = if rows.len() == 1 { vec![columns] } else { expected.to_vec() };
            return Err(shape_fault(saved, expected));
        }
        let vector = rows.len() == 1;
        let size = if vector { columns } else { rows.len() };
        let rotary = self.names.rotary(&site.stem, size, &saved.name)?;
        let is_norm = part == Part::Weight && site.stem.ends_with("norm");
        let plus = if is_norm { self.names.architecture.norm_plus } else { 0.0 };
        let values = Factor::whole(saved);
        let values = if turned { values.transposed() } else { values };
        let values = values.rotated(rotary).plus(plus);
        let kind = ChangeKind::Replace { values, scale: matching.scale(1.0) };
        Ok(vec![Change { tensor, rows, source: module.to_owned(), kind }])
    }

    /// The tokens that the configuration gives embeddings of their own in a module.
    fn token_ids(&self, key: &Key, values: &Tensor) -> Result<&[usize], Fault> {
        let mut lists = self.config.tokens.iter();
        let list = lists.find(|(module, _)| ends_with_name(&key.module, module));
        let (_, ids) = list.ok_or_else(|| Fault::UnknownTensor(values.name.clone()))?;
        Ok(ids)
    }

    /// New embeddings for some tokens (tokens, width). A head that is the embedding changes too,
    /// unless it has tokens of its own.
    fn tokens(
        &self,
        key: &Key,
        ids: &[usize],
        values: &Arc<Tensor>,
        all: &BTreeMap<Key, Parts>,
        matching: &Matching<'_>,
    ) -> Result<Vec<Change>, Fault> {
        let module = without_prefixes(&key.module);
        let site = self.names.site(module, &values.name)?;
        let (tensor, rows, columns) = self.rows_of(&site, &values.name)?;
        expect_shape(values, &[ids.len(), columns])?;
        if let Some(id) = ids.iter().find(|&&id| id >= rows.len()) {
            let why = format!("has a token {id}, where the base has {} tokens", rows.len());
            return Err(Fault::Module { tensor: values.name.clone(), why });
        }
        let head_apart = || {
            let is_head = |key: &&Key| without_prefixes(&key.module) == "lm_head";
            all.keys().find(is_head).is_some_and(|key| all[key].get(Part::Tokens).is_some())
        };
        let mut targets = vec![tensor];
        if site.stem == "token_embd" && self.names.is_tied() && !head_apart() {
            targets.push("output.weight".to_owned());
        }
        let change = |(i, &id): (usize, &usize), tensor: &str| Change {
            tensor: tensor.to_owned(),
            rows: id..id + 1,
            source: module.to_owned(),
            kind: ChangeKind::Replace {
                values: Factor::whole(values).select_rows(i, 1, 1),
                scale: matching.scale(1.0),
            },
        };
        let of = |tensor: &String| {
            ids.iter().enumerate().map(|id| change(id, tensor)).collect::<Vec<_>>()
        };
        Ok(targets.iter().flat_map(of).collect())
    }

    /// The weight at a site: its name, its rows there and its columns.
    fn rows_of(&self, site: &Site, tensor: &str) -> Result<(String, Range<usize>, usize), Fault> {
        let name = format!("{}.weight", site.stem);
        let Some(target) = self.names.target(&name) else {
            return Err(Fault::NoTarget { tensor: tensor.to_owned(), target: name });
        };
        let rows = match (site.expert, &*target.shape) {
            (None, [_] | [_, _]) => 0..target.rows(),
            (Some(expert), &[experts, rows, _]) if expert < experts => {
                expert * rows..(expert + 1) * rows
            }
            (expert, shape) => {
                let expert =
                    expert.map_or_else(String::new, |expert| format!("expert {expert} of "));
                let why = format!("is {expert}{name}, which is {shape:?} in the base");
                return Err(Fault::Module { tensor: tensor.to_owned(), why });
            }
        };
        Ok((name, rows, target.columns()))
    }

    /// The row of a bias: each expert has its own.
    fn bias_row(&self, site: &Site, tensor: &str) -> Result<Range<usize>, Fault> {
        let name = format!("{}.bias", site.stem);
        let rows = self.names.target(&name).map(Tensor::rows);
        let row = site.expert.unwrap_or(0);
        match rows {
            Some(rows) if row < rows && (rows == 1 || site.expert.is_some()) => Ok(row..row + 1),
            _ => Err(Fault::NoTarget { tensor: tensor.to_owned(), target: name }),
        }
    }
}

/// Whether `name` is `end`, or ends with it from a dot on.
fn ends_with_name(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The two halves of a pair fit each other, and the configuration.
fn check_rank(down: &Tensor, up: &Tensor, expected: usize) -> Result<(), Fault> {
    let (&[stored, _], &[_, other]) = (&*down.shape, &*up.shape) else {
        return Err(pair_fault(down, up));
    };
    if stored != other {
        return Err(pair_fault(down, up));
    }
    if stored != expected {
        return Err(Fault::Rank { tensor: down.name.clone(), stored, expected });
    }
    Ok(())
}

fn pair_fault(down: &Tensor, up: &Tensor) -> Fault {
    let shape = |tensor: &Tensor| tensor.shape.clone();
    Fault::Pair {
        a: down.name.clone(),
        a_shape: shape(down),
        b: up.name.clone(),
        b_shape: shape(up),
    }
}

fn expect_shape(tensor: &Tensor, expected: &[usize]) -> Result<(), Fault> {
    if tensor.shape == expected { Ok(()) } else { Err(shape_fault(tensor, expected.to_vec())) }
}

fn shape_fault(tensor: &Tensor, expected: Vec<usize>) -> Fault {
    Fault::Shape { tensor: tensor.name.clone(), stored: tensor.shape.clone(), expected }
}

fn summarize(path: &Path) -> Result<Summary, Fault> {
    let Contents { config, tensors, hash } = Contents::open(path, Bytes::map)?;
    let modules = by_module(&tensors)?;
    let mut summary = Summary::new(path, "PEFT folder", hash, &tensors);
    summary.base.clone_from(&config.base);
    for (key, parts) in &modules {
        let (rank, scale) = config.rank_and_scale(&key.module);
        if parts.pair(Part::Down, Part::Up)?.is_some()
            || parts.pair(Part::EmbeddingDown, Part::EmbeddingUp)?.is_some()
        {
            summary.low_rank(without_prefixes(&key.module), rank, scale);
        } else {
            summary.target(without_prefixes(&key.module));
        }
        summary.kinds.extend(parts.kinds());
    }
    summary.config = config.fields;
    Ok(summary)
}
