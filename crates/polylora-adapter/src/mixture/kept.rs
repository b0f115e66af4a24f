//! The tensors that keep their type whatever the recipe, by llama.cpp's list.
//!
//! They are small, or sensitive, or no weights of a matrix product.

use polylora_file::Tensor;

/// Names that contain one of these.
const PARTS: &[&str] = &[
    "_norm.weight",
    // Routers: which expert gets a token, by score or by a table.
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    // Gemma 3n.
    "altup",
    "laurel",
    "per_layer_model_proj",
    // Short convolutions.
    "ssm_conv1d",
    "shortconv.conv.weight",
    // MiniMax: which tokens attention looks at.
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    // RWKV: low-rank parts of the time mix.
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    // Positions: T5, then encoders of images.
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    ".rel_pos",
    // Where images and sounds enter.
    "sam.neck.",
    "sam.net_",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// Whole names: positions and token types of BERT.
const NAMES: &[&str] = &["position_embd.weight", "token_types.weight"];

/// The one architecture with a list of its own.
pub(super) const GLM5_NEXT: &str = "glm5-next";

/// Further parts of names in models of this architecture.
const GLM5_NEXT_PARTS: &[&str] = &[
    "hc_",
    "indexer.attn_q_b",
    "indexer.attn_k",
    "indexer.proj",
    "indexer_compressor_gate",
    "indexer_compressor_ape",
    "ssm_f_a.weight",
    "ssm_f_b.weight",
    "ssm_g_a.weight",
    "ssm_g_b.weight",
    "ssm_beta.weight",
    "attn_kv_a_mqa.weight",
    "attn_k_b.weight",
    "attn_v_b.weight",
];

/// Whether the tensor keeps its type.
pub(super) fn is_kept(architecture: &str, tensor: &Tensor) -> bool {
    let name = tensor.name.as_str();
    let has = |part: &&str| name.contains(*part);
    dimensions(tensor) < 2
        || !name.ends_with("weight")
        || NAMES.contains(&name)
        || PARTS.iter().any(has)
        || (architecture == GLM5_NEXT && GLM5_NEXT_PARTS.iter().any(has))
}

/// A matrix of one row counts as a vector, as in ggml.
fn dimensions(tensor: &Tensor) -> usize {
    tensor.shape.iter().skip_while(|&&size| size == 1).count()
}
