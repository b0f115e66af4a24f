//! The weights that a description asks for, found by their names.

use super::description::Description;
use crate::Error;
use polylora_adapter::Scales;
use polylora_file::{Gguf, Tensor};
use std::collections::{HashMap, HashSet};

/// The embedding, which is the head too where there is no other.
pub(super) const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// What rotations read, and llama.cpp's converters leave behind.
const NOT_WEIGHTS: &[&str] =
    &["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// All weights of a model.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Norm,
    head: Linear,
    sites: HashMap<String, SiteShape>,
}

/// A layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Norm,
    /// Queries, keys and values; or one matrix of all three.
    pub(crate) qkv: Vec<Linear>,
    /// By head.
    pub(crate) query_norm: Option<Norm>,
    pub(crate) key_norm: Option<Norm>,
    pub(crate) attention_output: Linear,
    pub(crate) attention_post_norm: Option<Norm>,
    pub(crate) feed_forward_norm: Norm,
    pub(crate) feed_forward: FeedForward,
    pub(crate) feed_forward_post_norm: Option<Norm>,
}

/// `down(activation(gate(x)) * up(x))`
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a layer, and none is moved about")]
pub(crate) enum FeedForward {
    /// One for all tokens.
    Dense {
        /// Gate and up; or one matrix of both, gate first.
        gate_up: Vec<Linear>,
        down: Linear,
    },
    /// Each token passes some of many.
    Mixture { router: Linear, gate: Linear, up: Linear, down: Linear },
}

impl FeedForward {
    /// What leads back.
    pub(crate) fn down(&self) -> &Linear {
        let (FeedForward::Dense { down, .. } | FeedForward::Mixture { down, .. }) = self;
        down
    }
}

/// A linear layer, or a stack of experts' layers: `y = s W x + bias`.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// `(rows, columns)`, or `(experts, rows, columns)`.
    pub(crate) tensor: Tensor,
    /// Outputs; of one expert.
    pub(crate) rows: usize,
    /// Inputs.
    pub(crate) columns: usize,
    /// The `s` of each expert.
    pub(crate) scales: Scales,
    pub(crate) bias: Option<Vec<f32>>,
    /// Its number among all places that an adapter may change.
    pub(crate) site: usize,
}

/// The weight of a norm.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>,
    /// Its number among all places that an adapter may change.
    pub(crate) site: usize,
}

/// A place that an adapter may change, by the name of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SiteShape {
    /// `(vocabulary, hidden)`, looked up.
    Embedding,
    /// A norm's weight of `len` values.
    Norm { site: usize, len: usize },
    /// A linear layer.
    Linear { site: usize, rows: usize, columns: usize, experts: usize },
    /// Its bias.
    Bias { site: usize, len: usize },
}

impl Weights {
    /// Finds everything, and sees to it that nothing is left over.
    pub(super) fn find(
        architecture: &str,
        description: &Description,
        gguf: &Gguf,
    ) -> Result<Weights, Error> {
        let mut finder = Finder { gguf, sites: HashMap::new(), used: HashSet::new(), count: 0 };
        let hidden = description.hidden;
        let embedding = finder.tensor(EMBEDDING)?;
        if embedding.shape.len() != 2 || embedding.columns() != hidden {
            return Err(shape_error(&embedding, &["vocabulary", &hidden.to_string()]));
        }
        finder.sites.insert(EMBEDDING.to_owned(), SiteShape::Embedding);
        let layers = (0..description.layers)
            .map(|layer| Layer::find(&mut finder, description, layer))
            .collect::<Result<_, _>>()?;
        let output_norm = finder.norm("output_norm", hidden)?;
        let head = match gguf.tensor(HEAD) {
            Some(_) => finder.linear("output", embedding.rows(), hidden)?,
            None => finder.tied_head(&embedding),
        };
        finder.check_all_used(architecture)?;
        Ok(Weights { embedding, layers, output_norm, head, sites: finder.sites })
    }

    /// Hidden values to logits.
    pub(crate) fn head(&self) -> &Linear {
        &self.head
    }

    /// Whether the head has weights of its own, and not the embedding's.
    pub(crate) fn has_own_head(&self) -> bool {
        self.head.tensor.name != self.embedding.name
    }

    /// The place that has this name in a GGUF.
    pub(crate) fn site(&self, tensor: &str) -> Option<SiteShape> {
        self.sites.get(tensor).copied()
    }

    /// Puts other weights in the place of a linear layer's.
    pub(crate) fn replace(&mut self, tensor: Tensor) -> Result<(), Error> {
        let linear = self.linears_mut().find(|linear| linear.tensor.name == tensor.name);
        let error = |why: &str| Error::Tensor { name: tensor.name.clone(), why: why.to_owned() };
        let linear = linear.ok_or_else(|| error("is no linear layer"))?;
        if linear.tensor.shape != tensor.shape {
            return Err(error("is of another shape"));
        }
        linear.tensor = tensor;
        Ok(())
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let layers = self.layers.iter_mut().flat_map(|layer| {
            let feed_forward: Vec<&mut Linear> = match &mut layer.feed_forward {
                FeedForward::Dense { gate_up, down } => gate_up.iter_mut().chain([down]).collect(),
                FeedForward::Mixture { router, gate, up, down } => vec![router, gate, up, down],
            };
            layer.qkv.iter_mut().chain([&mut layer.attention_output]).chain(feed_forward)
        });
        layers.chain([&mut self.head])
    }

    /// The linear layer with this number.
    pub(crate) fn linear(&self, site: usize) -> Option<&Linear> {
        self.linears().find(|linear| linear.site == site)
    }

    /// All of them; the last one is the head, which may be the embedding too.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let layers = self.layers.iter().flat_map(|layer| {
            let feed_forward: Vec<&Linear> = match &layer.feed_forward {
                FeedForward::Dense { gate_up, down } => gate_up.iter().chain([down]).collect(),
                FeedForward::Mixture { router, gate, up, down } => vec![router, gate, up, down],
            };
            layer.qkv.iter().chain([&layer.attention_output]).chain(feed_forward)
        });
        layers.chain([&self.head])
    }

    /// The norm with this number.
    pub(crate) fn norm(&self, site: usize) -> Option<&Norm> {
        let layers = self.layers.iter().flat_map(|layer| {
            let always = [&layer.attention_norm, &layer.feed_forward_norm];
            let others = [
                &layer.query_norm,
                &layer.key_norm,
                &layer.attention_post_norm,
                &layer.feed_forward_post_norm,
            ];
            always.into_iter().chain(others.into_iter().flatten())
        });
        layers.chain([&self.output_norm]).find(|norm| norm.site == site)
    }
}

impl Layer {
    fn find(
        finder: &mut Finder<'_>,
        description: &Description,
        layer: usize,
    ) -> Result<Layer, Error> {
        let &Description { hidden, head, has_head_norms, has_post_norms, .. } = description;
        let (queries, keys) = (description.queries(), description.keys());
        let name = |part: &str| format!("blk.{layer}.{part}");
        let fused = finder.has(&name("attn_qkv.weight"));
        let qkv = if fused {
            vec![finder.linear(&name("attn_qkv"), queries + 2 * keys, hidden)?]
        } else {
            vec![
                finder.linear(&name("attn_q"), queries, hidden)?,
                finder.linear(&name("attn_k"), keys, hidden)?,
                finder.linear(&name("attn_v"), keys, hidden)?,
            ]
        };
        let mut norm = |part: &str, len: usize, wanted: bool| {
            wanted.then(|| finder.norm(&name(part), len)).transpose()
        };
        let query_norm = norm("attn_q_norm", head, has_head_norms)?;
        let key_norm = norm("attn_k_norm", head, has_head_norms)?;
        let attention_post_norm = norm("post_attention_norm", hidden, has_post_norms)?;
        let feed_forward_post_norm = norm("post_ffw_norm", hidden, has_post_norms)?;
        Ok(Layer {
            attention_norm: finder.norm(&name("attn_norm"), hidden)?,
            qkv,
            query_norm,
            key_norm,
            attention_output: finder.linear(&name("attn_output"), hidden, queries)?,
            attention_post_norm,
            feed_forward_norm: finder.norm(&name("ffn_norm"), hidden)?,
            feed_forward: FeedForward::find(finder, description, &name)?,
            feed_forward_post_norm,
        })
    }
}

impl FeedForward {
    fn find(
        finder: &mut Finder<'_>,
        description: &Description,
        name: &dyn Fn(&str) -> String,
    ) -> Result<FeedForward, Error> {
        let hidden = description.hidden;
        if let Some(experts) = description.experts {
            let inner = finder.rows_of(&name("ffn_up_exps.weight"))?;
            let count = experts.count;
            return Ok(FeedForward::Mixture {
                router: finder.linear(&name("ffn_gate_inp"), count, hidden)?,
                gate: finder.experts(&name("ffn_gate_exps"), count, inner, hidden)?,
                up: finder.experts(&name("ffn_up_exps"), count, inner, hidden)?,
                down: finder.experts(&name("ffn_down_exps"), count, hidden, inner)?,
            });
        }
        let rows = finder.rows_of(&name("ffn_up.weight"))?;
        let (inner, gate_up) = if finder.has(&name("ffn_gate.weight")) {
            let gate = finder.linear(&name("ffn_gate"), rows, hidden)?;
            (rows, vec![gate, finder.linear(&name("ffn_up"), rows, hidden)?])
        } else if rows.is_multiple_of(2) {
            (rows / 2, vec![finder.linear(&name("ffn_up"), rows, hidden)?])
        } else {
            let why = format!("has {rows} rows, which are no gate and up in one");
            return Err(Error::Tensor { name: name("ffn_up.weight"), why });
        };
        Ok(FeedForward::Dense { gate_up, down: finder.linear(&name("ffn_down"), hidden, inner)? })
    }
}

impl Linear {
    /// Whether its weights are blocks of codes, not numbers.
    pub(crate) fn is_quantized(&self) -> bool {
        self.tensor.ty.block_weights() > 1
    }
}

/// What has been found so far.
struct Finder<'a> {
    gguf: &'a Gguf,
    sites: HashMap<String, SiteShape>,
    used: HashSet<&'a str>,
    /// Places numbered so far.
    count: usize,
}

impl Finder<'_> {
    fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    fn tensor(&mut self, name: &str) -> Result<Tensor, Error> {
        let error = |why: &str| Error::Tensor { name: name.to_owned(), why: why.to_owned() };
        let tensor = self.gguf.tensor(name).ok_or_else(|| error("is missing"))?;
        if !tensor.ty.decodes() {
            return Err(error("holds no weights"));
        }
        self.used.insert(&tensor.name);
        Ok(tensor.clone())
    }

    /// The last dimension but one.
    fn rows_of(&self, name: &str) -> Result<usize, Error> {
        let rows = self.gguf.tensor(name).and_then(|tensor| match *tensor.shape {
            [.., rows, _] if rows > 0 => Some(rows),
            _ => None,
        });
        let why = || "is missing, or no matrix".to_owned();
        rows.ok_or_else(|| Error::Tensor { name: name.to_owned(), why: why() })
    }

    fn next_site(&mut self) -> usize {
        self.count += 1;
        self.count - 1
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let tensor = self.tensor(name)?;
        if tensor.elements() != len {
            return Err(shape_error(&tensor, &[&len.to_string()]));
        }
        tensor
            .to_f32()
            .map_err(|error| Error::Tensor { name: name.to_owned(), why: error.to_string() })
    }

    fn norm(&mut self, stem: &str, len: usize) -> Result<Norm, Error> {
        let name = format!("{stem}.weight");
        let weight = self.vector(&name, len)?;
        let site = self.next_site();
        self.sites.insert(name, SiteShape::Norm { site, len });
        Ok(Norm { weight, site })
    }

    /// What the products of a weight are multiplied by.
    fn scales(&mut self, stem: &str, weight: &Tensor) -> Result<Scales, Error> {
        let gguf = self.gguf;
        // The second is for those who round what W reads to four bits: nothing here does, nor does
        // llama.cpp read it.
        for name in ["scale", "input_scale"].map(|part| format!("{stem}.{part}")) {
            self.used.extend(gguf.tensor(&name).map(|tensor| tensor.name.as_str()));
        }
        Ok(Scales::find(gguf, &weight.name, &weight.shape)?)
    }

    fn linear(&mut self, stem: &str, rows: usize, columns: usize) -> Result<Linear, Error> {
        let name = format!("{stem}.weight");
        let tensor = self.tensor(&name)?;
        if *tensor.shape != [rows, columns] {
            return Err(shape_error(&tensor, &[&rows.to_string(), &columns.to_string()]));
        }
        let scales = self.scales(stem, &tensor)?;
        let bias_name = format!("{stem}.bias");
        let bias = match self.has(&bias_name) {
            true => Some(self.vector(&bias_name, rows)?),
            false => None,
        };
        let site = self.next_site();
        self.sites.insert(name, SiteShape::Linear { site, rows, columns, experts: 1 });
        self.sites.insert(bias_name, SiteShape::Bias { site, len: rows });
        Ok(Linear { tensor, rows, columns, scales, bias, site })
    }

    fn experts(
        &mut self,
        stem: &str,
        experts: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Linear, Error> {
        let name = format!("{stem}.weight");
        let tensor = self.tensor(&name)?;
        if *tensor.shape != [experts, rows, columns] {
            let wanted = [experts, rows, columns].map(|size| size.to_string());
            return Err(shape_error(&tensor, &wanted.each_ref().map(|size| size.as_str())));
        }
        let scales = self.scales(stem, &tensor)?;
        let site = self.next_site();
        self.sites.insert(name, SiteShape::Linear { site, rows, columns, experts });
        Ok(Linear { tensor, rows, columns, scales, bias: None, site })
    }

    /// The embedding as a head. An adapter that names a head means this use of it, one that names
    /// the embedding the other.
    fn tied_head(&mut self, embedding: &Tensor) -> Linear {
        let (rows, columns, site) = (embedding.rows(), embedding.columns(), self.next_site());
        let shape = SiteShape::Linear { site, rows, columns, experts: 1 };
        self.sites.insert(HEAD.to_owned(), shape);
        let (tensor, scales) = (embedding.clone(), Scales::default());
        Linear { tensor, rows, columns, scales, bias: None, site }
    }

    fn check_all_used(&self, architecture: &str) -> Result<(), Error> {
        let unused = |name: &&str| !self.used.contains(name) && !NOT_WEIGHTS.contains(name);
        let names = self.gguf.tensors().iter().map(|tensor| tensor.name.as_str());
        let mut unused: Vec<&str> = names.filter(unused).collect();
        if unused.is_empty() {
            return Ok(());
        }
        const SHOWN: usize = 8;
        let more = unused.len().saturating_sub(SHOWN);
        unused.truncate(SHOWN);
        let mut names = unused.join(", ");
        if more > 0 {
            names += &format!(" and {more} more");
        }
        Err(Error::UnusedTensors { architecture: architecture.to_owned(), names })
    }
}

fn shape_error(tensor: &Tensor, wanted: &[&str]) -> Error {
    let why = format!("has the shape {:?}, not [{}]", tensor.shape, wanted.join(", "));
    Error::Tensor { name: tensor.name.clone(), why }
}
