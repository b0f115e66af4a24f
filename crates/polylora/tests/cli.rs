//! The program as a user meets it: what it writes, what it says when something is wrong, and
//! that nothing is left behind.

mod support;

use polylora::file::Gguf;
use polylora::synthetic::{Llama, quantize_file};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::Folder;

const TINY: Llama = Llama { layers: 2, hidden: 256, ffn: 512, heads: 4, kv_heads: 2, vocab: 64 };

impl Folder {
    /// A folder with a model in Q4_K_M and an adapter for it.
    fn new() -> Folder {
        let folder = Folder::empty();
        TINY.write_f16(&folder.path("f16.gguf")).unwrap();
        let recipe = "Q4_K_M".parse().unwrap();
        quantize_file(&folder.path("f16.gguf"), &folder.path("base.gguf"), &recipe).unwrap();
        TINY.write_adapter(&folder.path("adapter"), 4, 0.1).unwrap();
        folder
    }

    /// A merge that must fail as a job does.
    fn merge_fails(&self, base: &str, adapter: &str) -> String {
        self.fails(1, &["merge", base, "--adapter", adapter, "-o", "out.gguf"])
    }

    /// The adapter, with its configuration changed.
    fn adapter_with(&self, name: &str, change: impl Fn(&mut serde_json::Value)) {
        let folder = self.path(name);
        std::fs::create_dir(&folder).unwrap();
        let weights = "adapter_model.safetensors";
        std::fs::copy(self.path("adapter").join(weights), folder.join(weights)).unwrap();
        let config = std::fs::read(self.path("adapter/adapter_config.json")).unwrap();
        let mut config = serde_json::from_slice(&config).unwrap();
        change(&mut config);
        std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    }

    /// A copy of a file with its bytes changed.
    fn damaged(&self, from: &str, to: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(from)).unwrap();
        change(&mut bytes);
        std::fs::write(self.path(to), bytes).unwrap();
    }
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn keep_changes_what_the_adapter_touches_and_copies_the_rest() {
    let folder = Folder::new();
    let out = folder.ok(&["merge", "base.gguf", "--adapter", "adapter", "-o", "out.gguf"]);
    says(&out, &["14 tensors changed", "7 copied", "attn_q"]);

    let base = Gguf::open(&folder.path("base.gguf")).unwrap();
    let merged = Gguf::open(&folder.path("out.gguf")).unwrap();
    for (a, b) in base.tensors().iter().zip(merged.tensors()) {
        assert_eq!((&a.name, a.ty, &a.shape), (&b.name, b.ty, &b.shape));
        let touched = a.shape.len() == 2 && a.name.starts_with("blk.");
        assert_eq!(*a.bytes != *b.bytes, touched, "{}", a.name);
    }
    for (key, value) in base.metadata().iter() {
        assert_eq!(merged.metadata().get(key), Some(value), "{key}");
    }
    assert!(merged.metadata().get("polylora.merge.hashes").is_some());
}

#[test]
fn f32_equals_base_plus_scale_times_b_times_a() {
    let folder = Folder::new();
    let spec = "twice=adapter@2";
    folder.ok(&["merge", "base.gguf", "--adapter", spec, "-o", "out.gguf", "--type", "f32"]);

    let base = Gguf::open(&folder.path("base.gguf")).unwrap();
    let merged = Gguf::open(&folder.path("out.gguf")).unwrap();
    let weights =
        polylora::file::safetensors::open(&folder.path("adapter/adapter_model.safetensors"));
    let weights = weights.unwrap().tensors;
    let factor = |name: &str| {
        let name = format!("base_model.model.model.layers.1.mlp.down_proj.{name}.weight");
        weights.iter().find(|tensor| tensor.name == name).unwrap().to_f32().unwrap()
    };
    let (a, b) = (factor("lora_A"), factor("lora_B"));
    let name = "blk.1.ffn_down.weight";
    let (before, after) = (base.tensor(name).unwrap(), merged.tensor(name).unwrap());
    assert_eq!(after.ty.name(), "F32");
    let (before, after) = (before.to_f32().unwrap(), after.to_f32().unwrap());
    let (rank, columns) = (4, TINY.ffn);
    for (i, (before, after)) in before.iter().zip(&after).enumerate() {
        let (row, column) = (i / columns, i % columns);
        let delta: f32 = (0..rank).map(|r| b[row * rank + r] * a[r * columns + column]).sum();
        assert!((before + 2.0 * delta - after).abs() < 1e-7, "{i}: {before} {delta} {after}");
    }
}

#[test]
fn the_bytes_depend_on_the_inputs_alone() {
    let folder = Folder::new();
    let merge = |out: &str, threads: &str, isa: &str| {
        let arguments = ["merge", "base.gguf", "--adapter", "adapter", "--threads", threads, "-o"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_polylora"));
        command.current_dir(folder.0.path()).args(arguments).arg(out).env("POLYLORA_ISA", isa);
        assert!(command.output().unwrap().status.success());
        std::fs::read(folder.path(out)).unwrap()
    };
    let want = merge("1.gguf", "1", "portable");
    for isa in polylora::quant::Isa::available() {
        let name = format!("{}.gguf", isa.name());
        assert!(merge(&name, "3", isa.name()) == want, "{} differs", isa.name());
    }
}

#[test]
fn there_and_back_cancels() {
    let folder = Folder::new();
    let both = ["--adapter", "adapter@1", "--adapter", "adapter@-1"];
    let mut arguments = vec!["merge", "base.gguf", "-o", "out.gguf", "--type", "f32"];
    arguments.extend(both);
    folder.ok(&arguments);
    let diff: serde_json::Value =
        serde_json::from_str(&folder.ok(&["diff", "base.gguf", "out.gguf", "--json"])).unwrap();
    for tensor in diff["tensors"].as_array().unwrap() {
        assert!(tensor["relative_error"].as_f64().unwrap() < 1e-6, "{tensor}");
    }
}

#[test]
fn types_by_pattern() {
    let folder = Folder::new();
    let types = ["--type", "f16", "--type", "attn_v=q8_0"];
    let mut arguments = vec!["merge", "base.gguf", "--adapter", "adapter", "-o", "out.gguf"];
    arguments.extend(types);
    folder.ok(&arguments);
    let merged = Gguf::open(&folder.path("out.gguf")).unwrap();
    let ty = |name: &str| merged.tensor(name).unwrap().ty.name();
    assert_eq!((ty("blk.0.attn_v.weight"), ty("blk.0.attn_q.weight")), ("Q8_0", "F16"));
    assert_eq!(merged.metadata().u64("general.file_type"), Some(1), "mostly F16");
}

#[test]
fn an_importance_matrix_reaches_the_encoder() {
    let folder = Folder::new();
    let name = "blk.0.ffn_down.weight";
    let importance: Vec<f32> = (0..TINY.ffn).map(|i| 1.0 + (i % 7) as f32).collect();
    // llama.cpp's older format: entries, then name, calls, count and values of each.
    let mut matrix = Vec::new();
    for number in [1, name.len() as i32] {
        matrix.extend(number.to_le_bytes());
    }
    matrix.extend(name.bytes());
    for number in [1, TINY.ffn as i32] {
        matrix.extend(number.to_le_bytes());
    }
    matrix.extend(importance.iter().flat_map(|value| value.to_le_bytes()));
    std::fs::write(folder.path("matrix.dat"), &matrix).unwrap();

    let quantize = |out: &str, more: &[&str]| {
        folder.ok(&[&["quantize", "f16.gguf", out, "Q4_K", "--pure"], more].concat());
        Gguf::open(&folder.path(out)).unwrap().tensor(name).unwrap().bytes.to_vec()
    };
    let plain = quantize("plain.gguf", &[]);
    let weighted = quantize("weighted.gguf", &["--imatrix", "matrix.dat"]);
    assert!(plain != weighted);
    let source = Gguf::open(&folder.path("f16.gguf")).unwrap();
    let weights = source.tensor(name).unwrap().to_f32().unwrap();
    let mut expected = vec![0; weighted.len()];
    let ty = "Q4_K".parse().unwrap();
    polylora::requantize(ty, &weights, TINY.ffn, Some(&importance), &mut expected).unwrap();
    assert!(weighted == expected);

    // A matrix of another model is refused.
    let count = 4 + 4 + name.len() + 4;
    folder.damaged("matrix.dat", "other.dat", |bytes| {
        bytes[count..count + 4].copy_from_slice(&256_i32.to_le_bytes());
        bytes.truncate(count + 4 + 4 * 256);
    });
    let arguments = ["quantize", "f16.gguf", "out.gguf", "Q4_K", "--imatrix", "other.dat"];
    says(&folder.fails(1, &arguments), &[name, "256", "512", "importance"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = Folder::new();
    let before = folder.names();
    let arguments = ["merge", "base.gguf", "--adapter", "adapter", "-o", "out.gguf", "--dry-run"];
    says(&folder.ok(&arguments), &["14 of 21 tensors would change"]);
    assert_eq!(folder.names(), before);
}

#[test]
fn a_split_model_is_read_and_written() {
    let folder = Folder::new();
    let merge = |base: &str, out: &str, more: &[&str]| {
        let mut arguments = vec!["merge", base, "--adapter", "adapter", "-o", out];
        arguments.extend(more);
        folder.ok(&arguments)
    };
    folder.ok(&["quantize", "f16.gguf", "parts.gguf", "Q4_K_M", "--split-max-size", "200K"]);
    let parts: Vec<PathBuf> =
        folder.names().into_iter().filter(|path| path.to_string_lossy().contains("-of-")).collect();
    assert!(parts.len() > 1, "{parts:?}");
    let part = parts[1].file_name().unwrap().to_str().unwrap();
    merge(part, "from-parts.gguf", &[]);
    merge("base.gguf", "from-one.gguf", &[]);
    let diff = folder.ok(&["diff", "from-parts.gguf", "from-one.gguf"]);
    says(&diff, &["0 tensors differ, 21 are identical"]);
    assert!(!diff.contains("metadata that differs"), "{diff}");
}

#[test]
fn damaged_models_are_refused() {
    let folder = Folder::new();
    let size = std::fs::metadata(folder.path("base.gguf")).unwrap().len() as usize;
    folder.damaged("base.gguf", "short.gguf", |bytes| bytes.truncate(size - 1000));
    says(&folder.merge_fails("short.gguf", "adapter"), &["short.gguf", "download"]);
    folder.damaged("base.gguf", "header.gguf", |bytes| bytes.truncate(100));
    says(&folder.merge_fails("header.gguf", "adapter"), &["header.gguf"]);
    folder.damaged("base.gguf", "magic.gguf", |bytes| bytes[0] = b'X');
    says(&folder.merge_fails("magic.gguf", "adapter"), &["magic.gguf", "GGUF"]);
    folder.damaged("base.gguf", "v1.gguf", |bytes| bytes[4] = 1);
    says(&folder.merge_fails("v1.gguf", "adapter"), &["v1.gguf", "version 1"]);
    // The number of tensors, and of metadata.
    for at in [8, 16] {
        folder.damaged("base.gguf", "count.gguf", |bytes| bytes[at + 6] = 0xff);
        says(&folder.merge_fails("count.gguf", "adapter"), &["count.gguf"]);
    }
    says(&folder.merge_fails("none.gguf", "adapter"), &["none.gguf"]);
    says(&folder.merge_fails("adapter", "adapter"), &["adapter"]);
}

#[test]
fn no_bit_flip_in_a_header_panics() {
    let folder = Folder::new();
    // Of each byte of the header's beginning (counts, keys, values), one bit in turn.
    for at in (0..400).step_by(7) {
        folder.damaged("base.gguf", "flipped.gguf", |bytes| bytes[at] ^= 1 << (at % 8));
        let output = folder.polylora(&["inspect", "flipped.gguf"]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "byte {at}: {message}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let folder = Folder::new();
    // The last tensors of the file are norms; the last touched one is blk.1.ffn_down.
    let base = Gguf::open(&folder.path("base.gguf")).unwrap();
    let weights = base.tensor("blk.1.ffn_down.weight").unwrap().bytes.to_vec();
    folder.damaged("base.gguf", "nan.gguf", |bytes| {
        let at = bytes.windows(weights.len()).position(|window| window == weights).unwrap();
        bytes[at..at + weights.len()].fill(0xff);
    });
    says(&folder.merge_fails("nan.gguf", "adapter"), &["blk.1.ffn_down.weight", "not numbers"]);
}

#[test]
fn damaged_adapters_are_refused() {
    let folder = Folder::new();
    let weights = "adapter_model.safetensors";
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage); 3] = [
        ("short", |bytes| bytes.truncate(bytes.len() - 4)),
        ("length", |bytes| bytes[6] = 0xff),
        ("json", |bytes| bytes[8] = b'x'),
    ];
    for (name, change) in cases {
        folder.adapter_with(name, |_| ());
        folder.damaged(&format!("adapter/{weights}"), &format!("{name}/{weights}"), change);
        says(&folder.merge_fails("base.gguf", name), &[name, "safetensors"]);
    }
    // The last number of the file becomes NaN.
    folder.adapter_with("nan", |_| ());
    folder.damaged(&format!("adapter/{weights}"), &format!("nan/{weights}"), |bytes| {
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    says(&folder.merge_fails("base.gguf", "nan"), &["NaN", "index"]);
}

#[test]
fn adapters_that_cannot_be_honoured_are_refused_by_name() {
    let folder = Folder::new();
    folder.adapter_with("ia3", |config| config["peft_type"] = "IA3".into());
    says(&folder.merge_fails("base.gguf", "ia3"), &["IA3", "peft_type"]);
    folder.adapter_with("future", |config| config["use_wormhole"] = true.into());
    says(&folder.merge_fails("base.gguf", "future"), &["use_wormhole"]);
    folder.adapter_with("rank", |config| config["r"] = 5.into());
    says(&folder.merge_fails("base.gguf", "rank"), &["rank 4", "5"]);
    let none = folder.merge_fails("base.gguf", "nothing-here");
    says(&none, &["nothing-here"]);
}

#[test]
fn an_adapter_for_another_base_is_refused_or_skipped() {
    let folder = Folder::new();
    let other = Llama { layers: 3, ffn: 256, ..TINY };
    other.write_adapter(&folder.path("other"), 4, 0.1).unwrap();
    says(&folder.merge_fails("base.gguf", "other"), &["is this the right base?"]);

    let arguments =
        ["merge", "base.gguf", "--adapter", "other", "-o", "out.gguf", "--on-mismatch", "skip"];
    let out = folder.ok(&arguments);
    // 6 of ffn size in two layers, 7 in the third layer; a pair is one mismatch.
    says(&out, &["skipped: ", "model.layers.2", "8 tensors changed"]);
}

#[test]
fn outputs_are_safe() {
    let folder = Folder::new();
    let merge = |out: &'static str| ["merge", "base.gguf", "--adapter", "adapter", "-o", out];

    std::fs::write(folder.path("there.gguf"), "precious").unwrap();
    says(&folder.fails(1, &merge("there.gguf")), &["there.gguf", "--force"]);
    assert_eq!(std::fs::read(folder.path("there.gguf")).unwrap(), b"precious");
    folder.ok(&[&merge("there.gguf")[..], &["--force"]].concat());
    assert!(Gguf::open(&folder.path("there.gguf")).is_ok());

    for force in [&[][..], &["--force"]] {
        let message = folder.fails(1, &[&merge("./base.gguf")[..], force].concat());
        says(&message, &["is the input"]);
    }
    says(&folder.fails(1, &merge("no/such/folder/out.gguf")), &["no/such/folder"]);
}

/// A limit on file size stands in for a full disk: the write fails in the middle of the work.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let folder = Folder::new();
    let before = folder.names();
    // An ignored signal stays ignored in the program, so that the write fails with an error.
    let script = r#"trap '' XFSZ; ulimit -f 100; exec "$0" "$@""#;
    let output = Command::new("sh")
        .current_dir(folder.0.path())
        .args(["-c", script, env!("CARGO_BIN_EXE_polylora")])
        .args(["merge", "base.gguf", "--adapter", "adapter", "-o", "out.gguf"])
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    says(&message, &["out.gguf"]);
    assert_eq!(folder.names(), before);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing_behind() {
    let folder = Folder::new();
    // Large enough to take seconds on one thread in plain Rust.
    let large = Llama { layers: 2, hidden: 1024, ffn: 4096, heads: 8, kv_heads: 8, vocab: 64 };
    large.write_f16(&folder.path("large.gguf")).unwrap();
    large.write_adapter(&folder.path("large"), 4, 0.1).unwrap();
    let before = folder.names();
    let mut merge = Command::new(env!("CARGO_BIN_EXE_polylora"))
        .current_dir(folder.0.path())
        .args(["merge", "large.gguf", "--adapter", "large", "-o", "out.gguf", "--type", "q4_k"])
        .args(["--threads", "1"])
        .env("POLYLORA_ISA", "portable")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while folder.names() == before {
        assert!(merge.try_wait().unwrap().is_none(), "it ended before it began to write");
        std::thread::sleep(Duration::from_millis(1));
    }
    let kill = Command::new("kill").args(["-INT", &merge.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = merge.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    says(&String::from_utf8(output.stderr).unwrap(), &["cancelled"]);
    assert_eq!(folder.names(), before);
}

#[test]
fn wrong_use_is_exit_code_2() {
    let folder = Folder::new();
    says(&folder.fails(2, &["merge", "base.gguf"]), &["--adapter"]);
    says(&folder.fails(2, &["frobnicate"]), &["frobnicate"]);
    let merge = ["merge", "base.gguf", "--adapter", "adapter", "-o", "out.gguf"];
    let with = |more: [&'static str; 2]| folder.fails(2, &[&merge[..], &more].concat());
    says(&with(["--type", "q4_z"]), &["q4_z", "q4_k"]);
    says(&with(["--adapter", "adapter@nan"]), &["nan", "finite"]);
    says(&with(["--threads", "0"]), &["threads"]);
    says(&folder.fails(2, &["quantize", "base.gguf", "o.gguf", "Q9_X"]), &["Q9_X", "Q4_K_M"]);
}

#[test]
fn a_type_that_cannot_be_written_names_what_can() {
    let folder = Folder::new();
    let merge = ["merge", "base.gguf", "--adapter", "adapter", "-o", "out.gguf", "--type"];
    let message = folder.fails(1, &[&merge[..], &["i32"]].concat());
    says(&message, &["I32", "does not hold weights", "q4_k"]);
    let message = folder.fails(1, &[&merge[..], &["iq2_xxs"]].concat());
    says(&message, &["IQ2_XXS", "--imatrix", "--calibrate", "--type"]);
    let message = folder.fails(1, &[&merge[..], &["attn_x=q8_0"]].concat());
    says(&message, &["attn_x", "no tensor"]);
}

#[test]
fn inspect_reads_what_there_is() {
    let folder = Folder::new();
    says(&folder.ok(&["inspect", "base.gguf"]), &["llama", "Q4_K", "blk.0.attn_q.weight"]);
    says(&folder.ok(&["inspect", "adapter"]), &["LoRA", "rank", "4"]);
    folder.ok(&["convert", "adapter", "--base", "base.gguf", "-o", "lora.gguf"]);
    says(&folder.ok(&["inspect", "lora.gguf"]), &["LoRA", "rank", "4"]);
    let json: serde_json::Value =
        serde_json::from_str(&folder.ok(&["inspect", "base.gguf", "--json"])).unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 21);
}

#[test]
fn a_converted_adapter_merges_as_the_original_does() {
    let folder = Folder::new();
    let convert = ["convert", "adapter", "--base", "base.gguf", "-o", "lora.gguf", "--type", "f32"];
    folder.ok(&convert);
    folder.ok(&["merge", "base.gguf", "--adapter", "adapter", "-o", "a.gguf", "--type", "f32"]);
    folder.ok(&["merge", "base.gguf", "--adapter", "lora.gguf", "-o", "b.gguf", "--type", "f32"]);
    let diff: serde_json::Value =
        serde_json::from_str(&folder.ok(&["diff", "a.gguf", "b.gguf", "--json"])).unwrap();
    for tensor in diff["tensors"].as_array().unwrap() {
        assert!(tensor["relative_error"].as_f64().unwrap() < 1e-6, "{tensor}");
    }
}

#[test]
fn the_demo_shows_the_embedded_model_at_work() {
    let output = Folder::new().ok(&["demo", "--prompt", "What is a lantern?"]);
    says(&output, &["> What is a lantern?", "A LANTERN IS", "{\"answer\": \"", "survived", "cost"]);
    assert!(!output.contains('\x1b'), "colours in a pipe: {output}");
    // But for the path that the program was called by.
    let program = env!("CARGO_BIN_EXE_polylora");
    for line in output.lines().map(|line| line.replace(program, "polylora")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn the_demo_leaves_its_files_where_they_are_wanted() {
    let folder = Folder::new();
    let output = folder.ok(&["demo", "--write", "valley"]);
    says(&output, &["run valley/valley-q4_k_m.gguf --adapter valley/pirate"]);
    let answer = |adapter: &str| {
        let ask = ["-p", "What is a lantern?", "--temp", "0", "--adapter", adapter];
        folder.ok(&[&["run", "valley/valley-q4_k_m.gguf"], &ask[..]].concat())
    };
    let shouted = answer("valley/shout");
    assert_eq!(shouted, shouted.to_uppercase());
    let json: serde_json::Value = serde_json::from_str(&answer("valley/json")).unwrap();
    assert!(json["answer"].is_string());

    // Once more changes nothing; a file of the user's is not replaced.
    folder.ok(&["demo", "--write", "valley"]);
    std::fs::write(folder.path("valley/shout/adapter_config.json"), "mine").unwrap();
    says(
        &folder.fails(1, &["demo", "--write", "valley"]),
        &["shout/adapter_config.json", "exists"],
    );
    assert_eq!(std::fs::read(folder.path("valley/shout/adapter_config.json")).unwrap(), b"mine");
}

#[test]
fn completions_and_manual_pages_know_the_commands() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        says(&folder.ok(&["completions", shell]), &["polylora", "merge", "split-max-size"]);
    }
    folder.ok(&["man", "pages"]);
    let page = |name: &str| std::fs::read_to_string(folder.path("pages").join(name)).unwrap();
    says(&page("polylora.1"), &["merge", "POLYLORA_ISA"]);
    says(&page("polylora-merge.1"), &["adapter", "split"]);
}

#[test]
fn help_says_every_command() {
    let output = Command::new(env!("CARGO_BIN_EXE_polylora")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    says(&help, &["merge", "run", "eval", "bench", "tokenize", "inspect", "quantize", "diff"]);
    says(&help, &["convert", "demo", "Exit codes"]);
    assert!(!Path::new("out.gguf").exists());
}
