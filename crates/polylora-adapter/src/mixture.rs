//! Which type each tensor takes when a whole model is quantized.
//!
//! A name like `Q4_K_M` is a recipe: a main type, and exceptions for the tensors that suffer
//! most from it. The choices are those of llama.cpp's `llama-quantize`, tensor by tensor, so that
//! with the same encoders the same file comes out. In the order of questions asked of a tensor:
//!
//! 1. Is it left as it is? Vectors, norms, routers, small convolutions: the file `kept.rs`.
//! 2. Does a rule of the recipe give it another type than the main one? The rules are data, in
//!    `table.rs`; what their conditions mean is in `rule.rs`.
//! 3. Do its rows divide into whole blocks of that type? If not, a type of smaller blocks steps in.
//!
//! Some rules count: "the first eighth of the layers". llama.cpp counts tensors by layer, then by
//! name, wherever in the file they are.

mod kept;
mod rule;
mod table;

use polylora_file::Gguf;
use polylora_quant::GgmlType;
use rule::{Counters, Model, Role};
use std::fmt;
use std::str::FromStr;
use table::{Mixture, TABLE};

/// A way to quantize a model: by the name of a tensor type, or of a mixture of llama.cpp.
///
/// ```
/// use polylora_adapter::mixture::Recipe;
///
/// let recipe: Recipe = "q4_k_m".parse()?;
/// assert_eq!(recipe.to_string(), "Q4_K_M");
/// assert_eq!(recipe.file_type(), 15);
/// # Ok::<(), polylora_adapter::mixture::UnknownRecipe>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Recipe(&'static Mixture);

impl Recipe {
    /// Every recipe, the widest types first.
    pub fn all() -> impl Iterator<Item = Recipe> {
        TABLE.iter().map(Recipe)
    }

    /// Its name in llama.cpp, in capitals.
    pub fn name(self) -> &'static str {
        self.0.names[0]
    }

    /// One line on what it does.
    pub fn about(self) -> String {
        let Mixture { ty, about, .. } = self.0;
        let bits = format!("{:.2} bits a weight", ty.bits_per_weight());
        if about.is_empty() { bits } else { format!("{bits}; {about}") }
    }

    /// The type of the tensors that no rule makes an exception of.
    pub fn main_type(self) -> GgmlType {
        self.0.ty
    }

    /// The value of `general.file_type` for its result (llama.cpp's `llama_ftype`).
    pub fn file_type(self) -> u32 {
        self.0.file_type
    }

    /// The type of each of the model's tensors, in the file's order. With `pure`, all that are
    /// quantized at all take the main type. `imatrix` says whether there is an importance matrix:
    /// some rules ask that.
    ///
    /// # Errors
    /// A tensor whose rows are not whole blocks of its type, where no other type stands in.
    pub fn tensor_types(
        self,
        base: &Gguf,
        pure: bool,
        imatrix: bool,
    ) -> Result<Vec<GgmlType>, NoFittingType> {
        let model = Model::of(base, imatrix);
        let mut counters = Counters::default();
        let mut types: Vec<GgmlType> = base.tensors().iter().map(|tensor| tensor.ty).collect();
        for i in rule::counting_order(base) {
            let tensor = &base.tensors()[i];
            if kept::is_kept(model.architecture, tensor) {
                continue;
            }
            types[i] = self.0.ty;
            if self.0.ty.block_weights() == 1 {
                continue; // F32, F16 and BF16 fit every row and need no exceptions.
            }
            if !pure {
                let role = Role::of(tensor, &model);
                let place = counters.next(role, tensor, &model, self.0.family);
                types[i] = self.0.choose(role, place, tensor, &model);
            }
            types[i] = fitting(types[i], tensor.columns()).ok_or_else(|| NoFittingType {
                tensor: tensor.name.clone(),
                ty: types[i],
                columns: tensor.columns(),
            })?;
        }
        Ok(types)
    }

    /// Whether llama.cpp refuses to make this tensor of this type without an importance matrix,
    /// because the result would be useless.
    pub fn needs_imatrix(self, tensor: &str, ty: GgmlType) -> bool {
        use GgmlType::*;
        match ty {
            _ if rule::is_embedding(tensor) || rule::is_head(tensor) => false,
            IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS => true,
            Q2_K => self.name() == "Q2_K_S",
            _ => false,
        }
    }
}

/// `ty` where rows of `columns` are whole blocks of it; else a type of about its size and smaller
/// blocks, and where these do not fit either, F16.
fn fitting(ty: GgmlType, columns: usize) -> Option<GgmlType> {
    use GgmlType::*;
    let fits = |ty: &GgmlType| columns.is_multiple_of(ty.block_weights());
    if fits(&ty) {
        return Some(ty);
    }
    let smaller = match ty {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_0 | Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ if ty.block_weights() <= 32 => F16,
        _ => return None,
    };
    Some(smaller).filter(fits).or(Some(F16))
}

/// The value of `general.file_type` for a model whose weights are mostly of type `ty`: what
/// llama.cpp guesses for a file that does not say. `None` for types that no model is made of.
pub fn file_type_of(ty: GgmlType) -> Option<u32> {
    ty.name().parse().ok().map(Recipe::file_type)
}

impl FromStr for Recipe {
    type Err = UnknownRecipe;

    /// By name, whatever the case. `Q3_K`, `Q4_K` and `Q5_K` mean the `_M` mixtures, as in llama.cpp.
    fn from_str(name: &str) -> Result<Recipe, UnknownRecipe> {
        let named = |mixture: &&Mixture| mixture.names.iter().any(|n| n.eq_ignore_ascii_case(name));
        TABLE.iter().find(named).map(Recipe).ok_or_else(|| UnknownRecipe(name.to_owned()))
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No recipe has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no type or mixture is named {0:?}; known are {known}", known = names())]
pub struct UnknownRecipe(String);

fn names() -> String {
    TABLE.iter().flat_map(|mixture| mixture.names).copied().collect::<Vec<_>>().join(", ")
}

/// A tensor's rows are not whole blocks of its type, and no type is known to stand in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "tensor {tensor} has {columns} columns, not whole blocks of {ty} ({} each), and no other type \
     stands in for {ty}: choose another type for the model", .ty.block_weights()
)]
pub struct NoFittingType {
    /// The tensor.
    pub tensor: String,
    /// The type it should take.
    pub ty: GgmlType,
    /// Its row length.
    pub columns: usize,
}
