//! PEFT folders against small bases: every kind of tensor, and every way to be refused.

mod support;

use polylora_adapter::{ChangeKind, Fault, OnMismatch};
use safetensors::tensor::Dtype;
use std::fs;
use support::{
    GgufFile, PeftFolder, change_of, count_from, llama, load_path, matmul, product, small, values,
};

const RANK_2: &str = r#""r": 2, "lora_alpha": 6"#;
const LAYER: &str = "base_model.model.model.layers.0.";

/// Rows of a matrix as llama.cpp's converter moves them: 4 values a head.
fn interleaved(matrix: &[f32], columns: usize) -> Vec<f32> {
    let heads = matrix.chunks_exact(4 * columns);
    let moved = heads.flat_map(|head| [0, 2, 1, 3].map(|i| &head[i * columns..][..columns]));
    moved.flatten().copied().collect()
}

#[test]
fn a_pair_becomes_rows_of_the_base() {
    let folder = PeftFolder::new(RANK_2).pair("1.mlp.down_proj", 2, 12, 8);
    let adapter = folder.load_with(&llama(), -0.5, OnMismatch::Fail).unwrap();
    let change = change_of(&adapter, "blk.1.ffn_down.weight");
    assert_eq!(change.rows, 0..8);
    assert_eq!(change.source, "layers.1.mlp.down_proj");
    let ChangeKind::LowRank { down, up, scale, magnitude: None } = &change.kind else {
        panic!("{change:?}");
    };
    assert_eq!(down.to_f32(), count_from(1.0, &[2, 12]));
    assert_eq!(up.to_f32(), count_from(101.0, &[8, 2]));
    assert_eq!(up.rows_f32(3..5), [107.0, 108.0, 109.0, 110.0]);
    assert_eq!((*scale, adapter.scale), (-1.5, -0.5));
    assert_eq!(adapter.hash.len(), 64);
}

#[test]
fn prefixes_and_names_of_adapters_do_not_matter() {
    for prefix in [
        "base_model.model.model.",
        "model.",
        "base_model.model.",
        "base_model.model.model.language_model.",
        "base_model.model.language_model.model.",
    ] {
        for infix in ["", ".default"] {
            let name = format!("{prefix}layers.0.mlp.up_proj");
            let folder = PeftFolder::new(RANK_2)
                .tensor(&format!("{name}.lora_A{infix}.weight"), &[2, 8], &[1.0; 16])
                .tensor(&format!("{name}.lora_B{infix}.weight"), &[12, 2], &[1.0; 24]);
            let adapter = folder.load(&llama()).unwrap_or_else(|fault| panic!("{name}: {fault}"));
            change_of(&adapter, "blk.0.ffn_up.weight");
        }
    }
}

#[test]
fn queries_and_keys_take_the_order_of_the_base() {
    let folder = PeftFolder::new(RANK_2)
        .pair("0.self_attn.q_proj", 2, 8, 8)
        .pair("0.self_attn.k_proj", 2, 8, 4)
        .pair("0.self_attn.v_proj", 2, 8, 4);
    let up = |base: GgufFile, tensor: &str| {
        let adapter = folder.load(&base).unwrap();
        match &change_of(&adapter, tensor).kind {
            ChangeKind::LowRank { up, .. } => up.to_f32(),
            other => panic!("{other:?}"),
        }
    };
    let (q, k) = (count_from(101.0, &[8, 2]), count_from(101.0, &[4, 2]));
    assert_eq!(up(llama(), "blk.0.attn_q.weight"), interleaved(&q, 2));
    assert_eq!(up(llama(), "blk.0.attn_k.weight"), interleaved(&k, 2));
    assert_eq!(up(llama(), "blk.0.attn_v.weight"), k);
    assert_eq!(up(small("qwen3"), "blk.0.attn_q.weight"), q);
    assert_eq!(up(small("qwen3"), "blk.0.attn_k.weight"), k);
}

#[test]
fn all_that_belongs_to_rows_moves_with_them() {
    let eight = count_from(1.0, &[8]);
    let folder = PeftFolder::new(r#""r": 2, "lora_alpha": 6, "lora_bias": true, "use_dora": true"#)
        .pair("0.self_attn.q_proj", 2, 8, 8)
        .tensor(&format!("{LAYER}self_attn.q_proj.lora_magnitude_vector"), &[8], &eight)
        .tensor(&format!("{LAYER}self_attn.q_proj.lora_B.bias"), &[8], &eight)
        .tensor(&format!("{LAYER}self_attn.q_proj.base_layer.bias"), &[8], &eight);
    let base = llama().zeros("blk.0.attn_q.bias", &[8]);
    let adapter = folder.load(&base).unwrap();
    let ChangeKind::LowRank { magnitude: Some(magnitude), .. } =
        &change_of(&adapter, "blk.0.attn_q.weight").kind
    else {
        panic!("{adapter:?}");
    };
    let moved = interleaved(&eight, 1);
    assert_eq!((magnitude.rows(), magnitude.columns()), (8, 1));
    assert_eq!(magnitude.to_f32(), moved);
    assert_eq!(magnitude.rows_f32(1..3), moved[1..3]);

    let biases: Vec<_> = adapter.changes.iter().filter(|c| c.tensor.ends_with("bias")).collect();
    let [replaced, added] = &*biases else { panic!("{biases:?}") };
    assert!(matches!(replaced.kind, ChangeKind::Replace { scale: 1.0, .. }), "first");
    assert!(matches!(added.kind, ChangeKind::Add { scale: 3.0, .. }), "then");
    for bias in biases {
        assert_eq!(bias.rows, 0..1);
        assert_eq!(values(bias), moved);
    }
}

#[test]
fn a_bias_may_be_new_where_it_would_be_read() {
    let bias = |module: &str, rows: usize| {
        PeftFolder::new(RANK_2).pair(&format!("0.{module}"), 2, 8, rows).tensor(
            &format!("{LAYER}{module}.lora_B.bias"),
            &[rows],
            &count_from(1.0, &[rows]),
        )
    };
    let adapter = bias("self_attn.o_proj", 8).load(&llama()).unwrap();
    let change = change_of(&adapter, "blk.0.attn_output.bias");
    assert!(matches!(change.kind, ChangeKind::Add { scale: 3.0, .. }));
    assert_eq!((change.rows.clone(), values(change).len()), (0..1, 8));

    assert!(bias("self_attn.v_proj", 4).load(&small("qwen3")).is_ok());
    let fault = bias("self_attn.o_proj", 8).fault(&small("qwen3"));
    assert!(matches!(fault, Fault::NoTarget { .. }), "{fault}");
}

#[test]
fn embeddings_swap_the_factors() {
    let name = "base_model.model.model.embed_tokens.";
    let (a, b) = (count_from(1.0, &[2, 10]), count_from(31.0, &[8, 2]));
    let folder = PeftFolder::new(RANK_2)
        .tensor(&format!("{name}lora_embedding_A"), &[2, 10], &a)
        .tensor(&format!("{name}lora_embedding_B"), &[8, 2], &b)
        .tensor(&format!("{name}base_layer.weight"), &[10, 8], &[0.0; 80]);
    let adapter = folder.load(&llama()).unwrap();
    assert_eq!(adapter.changes.len(), 1);
    let change = change_of(&adapter, "token_embd.weight");
    let delta = matmul(&b, &a, 2); // (8, 10)
    let transposed = (0..10).flat_map(|i| (0..8).map(move |j| (i, j)));
    let expected: Vec<f32> = transposed.map(|(i, j)| delta[j * 10 + i] * 3.0).collect();
    assert_eq!(product(change), expected);
}

/// `W' = (W + delta) * magnitude / length of the column`, with `W` zero here.
#[test]
fn columns_of_an_embedding_may_have_lengths() {
    let name = "base_model.model.model.embed_tokens.";
    let (a, b) = (count_from(1.0, &[2, 10]), count_from(31.0, &[8, 2]));
    let folder = |magnitude: &[f32]| {
        PeftFolder::new(r#""r": 2, "lora_alpha": 6, "use_dora": true"#)
            .tensor(&format!("{name}lora_embedding_A"), &[2, 10], &a)
            .tensor(&format!("{name}lora_embedding_B"), &[8, 2], &b)
            .tensor(&format!("{name}lora_magnitude_vector"), &[magnitude.len()], magnitude)
    };
    let lengths = count_from(1.0, &[8]);
    let adapter = folder(&lengths).load(&llama()).unwrap();
    let [pair, scale] = &*adapter.changes else { panic!("{adapter:?}") };
    let ChangeKind::ScaleColumns { factors } = &scale.kind else { panic!("{scale:?}") };
    assert_eq!((&*scale.tensor, scale.rows.clone()), ("token_embd.weight", 0..10));
    let delta = product(pair);
    for (j, length) in lengths.iter().enumerate() {
        let squares = delta.iter().skip(j).step_by(8).map(|d| f64::from(*d).powi(2)).sum::<f64>();
        let expected = f64::from(*length) / squares.sqrt();
        assert!((f64::from(factors[j]) - expected).abs() < 1e-6 * expected, "{j}");
    }
    assert!(matches!(folder(&[1.0; 7]).fault(&llama()), Fault::Shape { .. }));
    let zero = folder(&lengths).load_with(&llama(), 0.0, OnMismatch::Fail).unwrap_err();
    assert!(matches!(zero, Fault::Scale(_)), "the base's columns are zero: {zero}");
}

#[test]
fn layers_that_are_kept_turned() {
    let base = GgufFile::new("gpt2")
        .zeros("blk.0.attn_qkv.weight", &[6, 2])
        .zeros("blk.0.ffn_up.bias", &[8])
        .zeros("token_embd.weight", &[5, 2]);
    let name = "base_model.model.transformer.";
    let folder = PeftFolder::new(r#""r": 1, "fan_in_fan_out": true"#)
        .tensor(&format!("{name}h.0.attn.c_attn.weight"), &[2, 6], &count_from(0.0, &[2, 6]))
        .tensor(&format!("{name}h.0.mlp.c_fc.bias"), &[8], &[1.0; 8])
        .tensor(&format!("{name}wte.weight"), &[5, 2], &count_from(0.0, &[5, 2]));
    let adapter = folder.load(&base).unwrap();
    let saved = values(change_of(&adapter, "blk.0.attn_qkv.weight"));
    assert_eq!(saved, [0., 6., 1., 7., 2., 8., 3., 9., 4., 10., 5., 11.]);
    assert_eq!(values(change_of(&adapter, "token_embd.weight")), count_from(0.0, &[5, 2]));
}

#[test]
fn the_head_is_told_apart_from_the_embedding() {
    let folder = PeftFolder::new(RANK_2)
        .tensor("base_model.model.lm_head.lora_A.weight", &[2, 8], &[1.0; 16])
        .tensor("base_model.model.lm_head.lora_B.weight", &[10, 2], &[1.0; 20]);
    for base in [llama(), llama().zeros("output.weight", &[10, 8])] {
        let adapter = folder.load(&base).unwrap();
        assert_eq!(adapter.changes.len(), 1);
        assert_eq!(change_of(&adapter, "output.weight").rows, 0..10);
    }
    let saved = PeftFolder::new(RANK_2).tensor(
        "base_model.model.lm_head.modules_to_save.default.weight",
        &[10, 8],
        &count_from(1.0, &[10, 8]),
    );
    let adapter = saved.load_with(&llama(), 0.5, OnMismatch::Fail).unwrap();
    let change = change_of(&adapter, "output.weight");
    assert!(matches!(change.kind, ChangeKind::Replace { scale: 0.5, .. }));
    assert_eq!(values(change), count_from(1.0, &[10, 8]));
}

#[test]
fn saved_norms_take_what_the_base_stores() {
    let norms = count_from(0.0, &[8]);
    let folder = PeftFolder::new(RANK_2)
        .tensor("base_model.model.model.norm.weight", &[8], &norms)
        .tensor(&format!("{LAYER}input_layernorm.weight"), &[8], &norms);
    let check = |base: GgufFile, plus: f32| {
        let adapter = folder.load(&base).unwrap();
        for tensor in ["output_norm.weight", "blk.0.attn_norm.weight"] {
            let change = change_of(&adapter, tensor);
            assert_eq!(change.rows, 0..1);
            assert_eq!(values(change), count_from(plus, &[8]));
        }
    };
    check(llama(), 0.0);
    for gemma in ["gemma", "gemma2", "gemma3"] {
        check(small(gemma), 1.0);
    }
}

#[test]
fn an_architecture_has_names_of_its_own() {
    let base = small("gemma2").zeros("blk.0.post_attention_norm.weight", &[8]);
    let folder = PeftFolder::new(RANK_2)
        .tensor(&format!("{LAYER}post_attention_layernorm.weight"), &[8], &[1.0; 8])
        .tensor(&format!("{LAYER}pre_feedforward_layernorm.weight"), &[8], &[2.0; 8]);
    let adapter = folder.load(&base).unwrap();
    let first = |tensor| values(change_of(&adapter, tensor))[0];
    assert_eq!(first("blk.0.post_attention_norm.weight"), 2.0);
    assert_eq!(first("blk.0.ffn_norm.weight"), 3.0);
}

#[test]
fn single_tokens() {
    let name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
    let rows = count_from(1.0, &[2, 8]);
    let config = r#""trainable_token_indices": [7, 3]"#;
    let folder = PeftFolder::new(config).tensor(name, &[2, 8], &rows);
    let seen = |base: GgufFile| {
        let adapter = folder.load(&base).unwrap();
        let seen = |change: &polylora_adapter::Change| {
            (change.tensor.clone(), change.rows.start, values(change)[0])
        };
        adapter.changes.iter().map(seen).collect::<Vec<_>>()
    };
    let of = |tensor: &str| [(tensor.to_owned(), 3, 9.0), (tensor.to_owned(), 7, 1.0)];
    // PEFT ties the head's rows to the embedding's, where the model does.
    let tied = [of("token_embd.weight"), of("output.weight")].concat();
    assert_eq!(seen(llama()), tied);
    assert_eq!(seen(llama().zeros("output.weight", &[10, 8])), of("token_embd.weight"));

    let beyond =
        PeftFolder::new(r#""trainable_token_indices": [7, 10]"#).tensor(name, &[2, 8], &rows);
    assert!(matches!(beyond.fault(&llama()), Fault::Module { .. }));
    let unknown = PeftFolder::new("").tensor(name, &[2, 8], &rows);
    assert!(matches!(unknown.fault(&llama()), Fault::UnknownTensor(_)));
}

#[test]
fn half_precision_is_read() {
    for (dtype, one) in [(Dtype::F16, 0x3c00u16), (Dtype::BF16, 0x3f80)] {
        let ones = |n: usize| one.to_le_bytes().repeat(n);
        let folder = PeftFolder::new(RANK_2)
            .raw(&format!("{LAYER}self_attn.q_proj.lora_A.weight"), &[2, 8], dtype, &ones(16))
            .raw(&format!("{LAYER}self_attn.q_proj.lora_B.weight"), &[8, 2], dtype, &ones(16));
        let adapter = folder.load(&llama()).unwrap();
        assert_eq!(product(change_of(&adapter, "blk.0.attn_q.weight")), [6.0; 64]);
    }
}

#[test]
fn sharded_weights_are_one_adapter() {
    let whole = PeftFolder::new(RANK_2).pair("0.mlp.up_proj", 2, 8, 12);
    let (a, b) = ("a.safetensors", "b.safetensors");
    let names = ["A", "B"].map(|half| format!("{LAYER}mlp.up_proj.lora_{half}.weight"));
    let folder = PeftFolder::new(RANK_2).write();
    fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    let shard_a = PeftFolder::new("").tensor(&names[0], &[2, 8], &count_from(1.0, &[2, 8]));
    let shard_b = PeftFolder::new("").tensor(&names[1], &[12, 2], &count_from(101.0, &[12, 2]));
    fs::write(folder.path().join(a), shard_a.weights()).unwrap();
    fs::write(folder.path().join(b), shard_b.weights()).unwrap();
    let index = format!(r#"{{"weight_map": {{"{}": "{a}", "{}": "{b}"}}}}"#, names[0], names[1]);
    fs::write(folder.path().join("adapter_model.safetensors.index.json"), index).unwrap();

    let sharded = load_path(folder.path(), &llama().open(), 1.0, OnMismatch::Fail).unwrap();
    let whole = whole.load(&llama()).unwrap();
    let delta = |adapter| product(change_of(adapter, "blk.0.ffn_up.weight"));
    assert_eq!(delta(&sharded), delta(&whole));
}

#[test]
fn numbered_experts_are_rows_of_the_stack() {
    let base = small("qwen3moe")
        .zeros("blk.0.ffn_up_exps.weight", &[3, 6, 8])
        .zeros("blk.0.ffn_down_exps.weight", &[3, 8, 6]);
    let folder = PeftFolder::new(RANK_2).pair("0.mlp.experts.2.up_proj", 2, 8, 6).pair(
        "0.mlp.experts.1.down_proj",
        2,
        6,
        8,
    );
    let adapter = folder.load(&base).unwrap();
    assert_eq!(change_of(&adapter, "blk.0.ffn_up_exps.weight").rows, 12..18);
    assert_eq!(change_of(&adapter, "blk.0.ffn_down_exps.weight").rows, 8..16);

    let mixtral = llama().zeros("blk.0.ffn_gate_exps.weight", &[3, 6, 8]);
    let folder = PeftFolder::new(RANK_2).pair("0.block_sparse_moe.experts.0.w1", 2, 8, 6);
    let adapter = folder.load(&mixtral).unwrap();
    assert_eq!(change_of(&adapter, "blk.0.ffn_gate_exps.weight").rows, 0..6);

    let beyond = PeftFolder::new(RANK_2).pair("0.mlp.experts.3.up_proj", 2, 8, 6);
    assert!(matches!(beyond.fault(&base), Fault::Module { .. }));
}

/// Three experts, width 8, hidden width 6, rank 2.
mod fused_experts {
    use super::*;

    const CONFIG: &str = r#""r": 2, "lora_alpha": 6,
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]"#;
    const INNER: &str = "mlp.experts.base_layer.";
    const OUTER: &str = "mlp.experts.";

    fn base(architecture: &str) -> GgufFile {
        small(architecture)
            .zeros("blk.0.ffn_gate_exps.weight", &[3, 6, 8])
            .zeros("blk.0.ffn_up_exps.weight", &[3, 6, 8])
            .zeros("blk.0.ffn_down_exps.weight", &[3, 8, 6])
    }

    fn with(folder: PeftFolder, wrap: &str, inputs: usize, outputs: usize) -> PeftFolder {
        let (a, b) = ([6, inputs], [outputs, 6]);
        folder.tensor(&format!("{LAYER}{wrap}lora_A.weight"), &a, &count_from(1.0, &a)).tensor(
            &format!("{LAYER}{wrap}lora_B.weight"),
            &b,
            &count_from(1.0, &b),
        )
    }

    /// What PEFT computes for expert `e`: `einsum("o r e, e r i -> e o i")`, times 3.
    fn expected(inputs: usize, outputs: usize, e: usize) -> Vec<f32> {
        let (a, b) = (count_from(1.0, &[6, inputs]), count_from(1.0, &[outputs, 6]));
        let mut delta = Vec::new();
        for o in 0..outputs {
            for i in 0..inputs {
                let term = |r: usize| b[o * 6 + r * 3 + e] * a[(e * 2 + r) * inputs + i];
                delta.push((term(0) + term(1)) * 3.0);
            }
        }
        delta
    }

    fn check(
        adapter: &polylora_adapter::Adapter,
        tensor: &str,
        expected: impl Fn(usize) -> Vec<f32>,
    ) {
        let changes: Vec<_> = adapter.changes.iter().filter(|c| c.tensor == tensor).collect();
        assert_eq!(changes.len(), 3, "{tensor}");
        for (e, change) in changes.into_iter().enumerate() {
            let rows = change.rows.len();
            assert_eq!(change.rows, e * rows..(e + 1) * rows);
            assert_eq!(product(change), expected(e), "{tensor} {e}");
        }
    }

    #[test]
    fn stacked_halves() {
        let folder = with(with(PeftFolder::new(CONFIG), INNER, 8, 12), OUTER, 6, 8);
        let adapter = folder.load(&base("qwen3moe")).unwrap();
        check(&adapter, "blk.0.ffn_gate_exps.weight", |e| expected(8, 12, e)[..6 * 8].to_vec());
        check(&adapter, "blk.0.ffn_up_exps.weight", |e| expected(8, 12, e)[6 * 8..].to_vec());
        check(&adapter, "blk.0.ffn_down_exps.weight", |e| expected(6, 8, e));
    }

    #[test]
    fn alternating_halves() {
        let folder = with(with(PeftFolder::new(CONFIG), INNER, 8, 12), OUTER, 6, 8);
        let adapter = folder.load(&base("gpt-oss")).unwrap();
        let every_second = |e: usize, first: usize| {
            let all = expected(8, 12, e);
            all.chunks_exact(8).skip(first).step_by(2).flatten().copied().collect::<Vec<_>>()
        };
        check(&adapter, "blk.0.ffn_gate_exps.weight", |e| every_second(e, 0));
        check(&adapter, "blk.0.ffn_up_exps.weight", |e| every_second(e, 1));
    }

    /// PEFT before 0.19.1: the product is the transpose of the weight's change.
    #[test]
    fn swapped_factors() {
        let folder = with(with(PeftFolder::new(CONFIG), INNER, 12, 8), OUTER, 8, 6);
        let adapter = folder.load(&base("qwen3moe")).unwrap();
        let transposed = |inputs: usize, outputs: usize, e: usize| {
            let delta = expected(inputs, outputs, e);
            let places = (0..inputs).flat_map(|i| (0..outputs).map(move |o| (i, o)));
            places.map(|(i, o)| delta[o * inputs + i]).collect::<Vec<_>>()
        };
        check(&adapter, "blk.0.ffn_gate_exps.weight", |e| transposed(12, 8, e)[..6 * 8].to_vec());
        check(&adapter, "blk.0.ffn_up_exps.weight", |e| transposed(12, 8, e)[6 * 8..].to_vec());
        check(&adapter, "blk.0.ffn_down_exps.weight", |e| transposed(8, 6, e));
    }

    /// Where an expert is as wide as it is high, the other parameter tells the order.
    #[test]
    fn square_parameters() {
        let base = small("qwen3moe")
            .zeros("blk.0.ffn_gate_exps.weight", &[3, 8, 8])
            .zeros("blk.0.ffn_up_exps.weight", &[3, 8, 8])
            .zeros("blk.0.ffn_down_exps.weight", &[3, 8, 8]);
        let both = with(with(PeftFolder::new(CONFIG), INNER, 8, 16), OUTER, 8, 8);
        check(&both.load(&base).unwrap(), "blk.0.ffn_down_exps.weight", |e| expected(8, 8, e));
        let swapped = with(with(PeftFolder::new(CONFIG), INNER, 16, 8), OUTER, 8, 8);
        let adapter = swapped.load(&base).unwrap();
        check(&adapter, "blk.0.ffn_down_exps.weight", |e| {
            let delta = expected(8, 8, e);
            (0..64).map(|at| delta[at % 8 * 8 + at / 8]).collect()
        });

        let config = r#""r": 2, "lora_alpha": 6, "target_parameters": ["experts.down_proj"]"#;
        let alone = with(PeftFolder::new(config), OUTER, 8, 8);
        assert!(matches!(alone.fault(&base), Fault::Square(_)));
    }

    #[test]
    fn both_halves_in_one_tensor_of_the_base() {
        let base = small("qwen3moe").zeros("blk.0.ffn_gate_up_exps.weight", &[3, 12, 8]);
        let config = r#""r": 2, "lora_alpha": 6, "target_parameters": ["experts.gate_up_proj"]"#;
        let adapter = with(PeftFolder::new(config), OUTER, 8, 12).load(&base).unwrap();
        let mut covered = Vec::new();
        for change in &adapter.changes {
            covered.extend(change.rows.clone());
            let (e, first) = (change.rows.start / 12, change.rows.start % 12);
            assert_eq!(product(change), expected(8, 12, e)[first * 8..][..6 * 8]);
        }
        assert_eq!(covered, (0..36).collect::<Vec<_>>());
    }

    #[test]
    fn ranks_and_parameters_must_agree() {
        let config = r#""r": 3, "target_parameters": ["experts.down_proj"]"#;
        let fault = with(PeftFolder::new(config), OUTER, 6, 8).fault(&base("qwen3moe"));
        assert!(matches!(fault, Fault::Rank { stored: 2, expected: 3, .. }), "{fault}");
        let pattern = r#""r": 3, "target_parameters": ["experts.down_proj"],
            "rank_pattern": {"experts.down_proj": 2}"#;
        assert!(with(PeftFolder::new(pattern), OUTER, 6, 8).load(&base("qwen3moe")).is_ok());

        for parameters in ["[]", r#"["experts.down_proj"]"#, r#"["mlp.gate.weight"]"#] {
            let config = format!(r#""r": 2, "target_parameters": {parameters}"#);
            let folder = with(with(PeftFolder::new(&config), INNER, 8, 12), OUTER, 6, 8);
            let fault = folder.fault(&base("qwen3moe"));
            assert!(matches!(fault, Fault::Field { .. }), "{parameters}: {fault}");
        }
        let fault = with(with(PeftFolder::new(CONFIG), INNER, 8, 10), OUTER, 6, 8);
        assert!(matches!(fault.fault(&base("qwen3moe")), Fault::Shape { .. }));
    }
}

mod refused {
    use super::*;

    #[test]
    fn another_base() {
        let wide = PeftFolder::new(RANK_2).pair("0.mlp.up_proj", 2, 16, 12);
        let fault = wide.fault(&llama());
        assert!(
            matches!(&fault, Fault::Shape { stored, expected, .. }
                if *stored == [2, 16] && *expected == [2, 8]),
            "{fault}"
        );
        assert!(fault.to_string().contains("is this the right base?"), "{fault}");
        let high = PeftFolder::new(RANK_2).pair("0.mlp.up_proj", 2, 8, 13);
        assert!(matches!(high.fault(&llama()), Fault::Shape { .. }));

        let deep = PeftFolder::new(RANK_2).pair("2.mlp.up_proj", 2, 8, 12);
        assert!(matches!(deep.fault(&llama()), Fault::Layer { layer: 2, layers: 2, .. }));

        let lacking = llama().without("blk.0.ffn_up.weight");
        let folder = PeftFolder::new(RANK_2).pair("0.mlp.up_proj", 2, 8, 12);
        assert!(matches!(folder.fault(&lacking), Fault::NoTarget { .. }));

        let fault = folder.fault(&small("mamba"));
        assert!(matches!(fault, Fault::Architecture { .. }));
        assert!(fault.to_string().contains("qwen3moe"), "{fault}");
    }

    #[test]
    fn modules_without_a_place() {
        for module in [
            "0.self_attn.W_pack",
            "0.self_attn.kv_b_proj",
            "0.mlp.something",
            "0.cross_attn.q_proj",
            "x.mlp.up_proj",
        ] {
            let fault = PeftFolder::new(RANK_2).pair(module, 2, 8, 12).fault(&llama());
            assert!(matches!(fault, Fault::Module { .. }), "{module}: {fault}");
        }
        let vision = PeftFolder::new(RANK_2)
            .tensor(
                "base_model.model.vision_tower.layers.0.mlp.up_proj.lora_A.weight",
                &[2, 8],
                &[1.0; 16],
            )
            .tensor(
                "base_model.model.vision_tower.layers.0.mlp.up_proj.lora_B.weight",
                &[12, 2],
                &[1.0; 24],
            );
        assert!(matches!(vision.fault(&llama()), Fault::Module { .. }));
        let latent = PeftFolder::new(RANK_2).pair("0.self_attn.kv_b_proj", 2, 8, 12);
        let fault = latent.fault(&small("deepseek2"));
        assert!(fault.to_string().contains("attn_k_b"), "{fault}");
        let base = small("deepseek2").zeros("blk.0.attn_kv_b.weight", &[12, 8]);
        assert!(latent.load(&base).is_ok());
    }

    #[test]
    fn what_is_skipped_is_listed_and_the_rest_applied() {
        let folder = PeftFolder::new(RANK_2)
            .pair("0.mlp.up_proj", 2, 8, 12)
            .pair("1.mlp.up_proj", 2, 16, 12)
            .pair("5.mlp.up_proj", 2, 8, 12)
            .pair("0.mlp.something", 2, 8, 12);
        assert!(folder.load(&llama()).is_err());
        let adapter = folder.load_with(&llama(), 1.0, OnMismatch::Skip).unwrap();
        assert_eq!(adapter.changes.len(), 1);
        let skipped: Vec<&str> = adapter.mismatches.iter().map(|m| &*m.tensor).collect();
        assert_eq!(
            skipped,
            ["0.mlp.something", "1.mlp.up_proj", "5.mlp.up_proj"]
                .map(|module| format!("base_model.model.model.layers.{module}.lora_A.weight"))
        );
        let nothing = PeftFolder::new(RANK_2).pair("5.mlp.up_proj", 2, 8, 12);
        let fault = nothing.load_with(&llama(), 1.0, OnMismatch::Skip).unwrap_err();
        assert!(fault.to_string().contains("layer 5"), "{fault}");
        assert!(matches!(fault, Fault::Nothing { .. }));
        assert!(matches!(PeftFolder::new(RANK_2).fault(&llama()), Fault::Nothing { .. }));
    }

    #[test]
    fn damage_is_never_skipped() {
        let ok = || PeftFolder::new(RANK_2).pair("0.mlp.up_proj", 2, 8, 12);
        let name = |part: &str| format!("{LAYER}mlp.down_proj.{part}");
        let skip = |folder: PeftFolder| {
            folder.load_with(&llama(), 1.0, OnMismatch::Skip).expect_err("damaged")
        };
        let half = skip(ok().tensor(&name("lora_A.weight"), &[2, 12], &[1.0; 24]));
        assert!(matches!(half, Fault::Half { missing: "lora_B", .. }), "{half}");
        let unknown = skip(ok().tensor(&name("lora_diag"), &[2], &[1.0; 2]));
        assert!(matches!(unknown, Fault::UnknownTensor(_)), "{unknown}");
        let rank = skip(ok().pair("1.mlp.up_proj", 3, 8, 12));
        assert!(matches!(rank, Fault::Rank { .. }), "{rank}");
        let nan = skip(ok().tensor("base_model.model.model.norm.weight", &[8], &[f32::NAN; 8]));
        assert!(matches!(nan, Fault::NotFinite { .. }), "{nan}");
    }

    #[test]
    fn halves() {
        let name = |part: &str| format!("{LAYER}mlp.up_proj.{part}");
        let up = PeftFolder::new(RANK_2).tensor(&name("lora_B.weight"), &[12, 2], &[1.0; 24]);
        assert!(matches!(up.fault(&llama()), Fault::Half { missing: "lora_A", .. }));
        for part in ["lora_magnitude_vector", "lora_B.bias"] {
            let alone = PeftFolder::new(RANK_2).tensor(&name(part), &[12], &[1.0; 12]);
            assert!(matches!(alone.fault(&llama()), Fault::Half { .. }), "{part}");
        }
        let embedding = PeftFolder::new(RANK_2).tensor(
            "base_model.model.model.embed_tokens.lora_embedding_B",
            &[8, 2],
            &[1.0; 16],
        );
        assert!(matches!(
            embedding.fault(&llama()),
            Fault::Half { missing: "lora_embedding_A", .. }
        ));
    }

    #[test]
    fn ranks_that_disagree() {
        let folder = PeftFolder::new(RANK_2).pair("0.mlp.up_proj", 3, 8, 12);
        let fault = folder.fault(&llama());
        assert!(matches!(fault, Fault::Rank { stored: 3, expected: 2, .. }), "{fault}");
        let name = format!("{LAYER}mlp.up_proj.lora_");
        let torn = PeftFolder::new(RANK_2)
            .tensor(&format!("{name}A.weight"), &[2, 8], &[1.0; 16])
            .tensor(&format!("{name}B.weight"), &[12, 4], &[1.0; 48]);
        assert!(matches!(torn.fault(&llama()), Fault::Pair { .. }));
        let flat = PeftFolder::new(RANK_2)
            .tensor(&format!("{name}A.weight"), &[16], &[1.0; 16])
            .tensor(&format!("{name}B.weight"), &[12, 2], &[1.0; 24]);
        assert!(matches!(flat.fault(&llama()), Fault::Pair { .. }));
    }

    #[test]
    fn values_that_are_no_numbers() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut a = [1.0; 16];
            a[11] = value;
            let folder = PeftFolder::new(RANK_2)
                .tensor(&format!("{LAYER}mlp.up_proj.lora_A.weight"), &[2, 8], &a)
                .tensor(&format!("{LAYER}mlp.up_proj.lora_B.weight"), &[12, 2], &[1.0; 24]);
            let fault = folder.fault(&llama());
            assert!(matches!(fault, Fault::NotFinite { index: 11, .. }), "{fault}");
            assert!(fault.to_string().contains("mlp.up_proj.lora_A.weight"), "{fault}");
        }
    }

    #[test]
    fn scales_beyond_all_numbers() {
        let config = r#""r": 2, "lora_alpha": 1e39"#;
        let own = PeftFolder::new(config).pair("0.mlp.up_proj", 2, 8, 12);
        assert!(matches!(own.fault(&llama()), Fault::Scale(_)));
        let product = PeftFolder::new(RANK_2).pair("0.mlp.up_proj", 2, 8, 12);
        let fault = product.load_with(&llama(), f32::MAX, OnMismatch::Skip).unwrap_err();
        assert!(matches!(fault, Fault::Scale(_)), "{fault}");
    }

    #[test]
    fn types_and_sizes_that_hold_nothing() {
        let integers = PeftFolder::new(RANK_2)
            .raw(&format!("{LAYER}mlp.up_proj.lora_A.weight"), &[2, 8], Dtype::I32, &[0; 64])
            .tensor(&format!("{LAYER}mlp.up_proj.lora_B.weight"), &[12, 2], &[1.0; 24]);
        assert!(matches!(integers.fault(&llama()), Fault::Type { .. }));
        let empty = PeftFolder::new(RANK_2)
            .tensor(&format!("{LAYER}mlp.up_proj.lora_A.weight"), &[0], &[])
            .tensor(&format!("{LAYER}mlp.up_proj.lora_B.weight"), &[0], &[]);
        assert!(matches!(empty.fault(&llama()), Fault::Empty(_)));
    }

    #[test]
    fn two_adapters_in_one_file() {
        let name = |adapter: &str| format!("{LAYER}mlp.up_proj.lora_A.{adapter}.weight");
        let folder = PeftFolder::new(RANK_2).tensor(&name("one"), &[2, 8], &[1.0; 16]).tensor(
            &name("two"),
            &[2, 8],
            &[1.0; 16],
        );
        assert!(matches!(folder.fault(&llama()), Fault::Twice(_)));
    }

    #[test]
    fn heads_that_do_not_divide() {
        let folder = PeftFolder::new(RANK_2).pair("0.self_attn.q_proj", 2, 8, 8);
        for heads in [0u32, 3, 8] {
            let base = llama().with("llama.attention.head_count", heads);
            let fault = folder.fault(&base);
            assert!(matches!(fault, Fault::BaseMetadata { .. }), "{heads}: {fault}");
        }
    }

    #[test]
    fn folders_that_are_incomplete() {
        let base = llama().open();
        let folder = PeftFolder::new(RANK_2).pair("0.mlp.up_proj", 2, 8, 12).write();
        let load = || load_path(folder.path(), &base, 1.0, OnMismatch::Fail);
        let weights = folder.path().join("adapter_model.safetensors");
        assert!(load().is_ok());

        let whole = fs::read(&weights).unwrap();
        fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(load(), Err(Fault::File(_))));
        fs::remove_file(&weights).unwrap();
        assert!(matches!(load(), Err(Fault::NoWeights)));
        fs::write(folder.path().join("adapter_model.bin"), b"PK").unwrap();
        let fault = load().unwrap_err();
        assert!(fault.to_string().contains("pickle"), "{fault}");

        fs::write(folder.path().join("adapter_config.json"), "{").unwrap();
        assert!(matches!(load(), Err(Fault::Json { .. })));
        fs::remove_file(folder.path().join("adapter_config.json")).unwrap();
        assert!(matches!(load(), Err(Fault::Unrecognized { exists: true, .. })));
        let nowhere = folder.path().join("nowhere");
        let fault = load_path(&nowhere, &base, 1.0, OnMismatch::Fail).unwrap_err();
        assert!(matches!(fault, Fault::Unrecognized { exists: false, .. }), "{fault}");
    }

    #[test]
    fn a_configuration_that_changes_the_arithmetic() {
        let folder =
            PeftFolder::new(r#""r": 2, "use_qalora": true"#).pair("0.mlp.up_proj", 2, 8, 12);
        let fault = folder.fault(&llama());
        assert!(fault.to_string().contains("use_qalora"), "{fault}");
    }
}
