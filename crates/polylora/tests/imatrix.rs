//! `polylora imatrix`: every linear layer is measured, and what is written is read again.

mod support;

use polylora::embedded;
use polylora::file::Gguf;
use polylora::file::imatrix::Imatrix;
use support::Folder;

impl Folder {
    /// A folder with the embedded model and a text of some hundred tokens.
    fn new() -> Folder {
        let folder = Folder::empty();
        let written = embedded::write(folder.0.path()).unwrap();
        std::fs::rename(written.model, folder.path("model.gguf")).unwrap();
        let text =
            "Once there was a fox who lived by the river. The owl asked him for some bread.\n";
        std::fs::write(folder.path("text.txt"), text.repeat(20)).unwrap();
        folder
    }

    fn measure(&self, out: &str, more: &[&str]) -> (serde_json::Value, Imatrix) {
        let arguments = ["imatrix", "model.gguf", "--text", "text.txt", "-o", out, "--json"];
        let said = serde_json::from_str(&self.ok(&[&arguments[..], more].concat())).unwrap();
        (said, Imatrix::open(&self.path(out)).unwrap())
    }
}

#[test]
fn every_linear_layer_has_an_entry() {
    let folder = Folder::new();
    // More chunks than go through the model together.
    let (said, imatrix) = folder.measure("imatrix.gguf", &["--ctx", "16"]);
    let chunks = said["chunks"].as_u64().unwrap();
    assert!(chunks > 16, "{said}");
    assert_eq!(imatrix.chunks(), Some(chunks));
    assert_eq!((imatrix.chunk_size(), imatrix.datasets()), (Some(16), &["text.txt".into()][..]));

    let model = Gguf::open(&folder.path("model.gguf")).unwrap();
    let linear = model.tensors().iter().filter(|tensor| tensor.shape.len() == 2);
    let linear = linear.filter(|tensor| tensor.name != "token_embd.weight");
    let mut count = 0;
    for tensor in linear {
        let values = imatrix.get(&tensor.name).unwrap_or_else(|| panic!("no {}", tensor.name));
        assert_eq!(values.len(), tensor.columns(), "{}", tensor.name);
        assert!(values.iter().all(|&value| value > 0.0), "{}", tensor.name);
        count += 1;
    }
    assert_eq!(imatrix.entries().count(), count);
    let of = |name: &str| imatrix.get(name).unwrap();
    assert_eq!(of("blk.0.attn_q.weight"), of("blk.0.attn_v.weight"), "they read the same");

    // Another model, which reads something else behind its first layer.
    let (_, shouting) = folder.measure("shout.gguf", &["--ctx", "16", "--adapter", "shout"]);
    let first = "blk.0.attn_q.weight";
    assert_eq!(shouting.get(first), imatrix.get(first));
    assert_ne!(shouting.get("blk.1.attn_q.weight"), imatrix.get("blk.1.attn_q.weight"));
}

#[test]
fn merge_and_quantize_take_it() {
    let folder = Folder::new();
    folder.measure("imatrix.gguf", &[]);
    let merge = ["merge", "model.gguf", "--adapter", "shout", "-o", "out.gguf"];
    let quantize = ["quantize", "model.gguf", "out.gguf", "Q4_0"];
    for command in [&merge[..], &quantize] {
        let [plain, weighed] = [&[][..], &["--imatrix", "imatrix.gguf"]].map(|more| {
            folder.ok(&[command, &["--force"], more].concat());
            std::fs::read(folder.path("out.gguf")).unwrap()
        });
        assert!(plain != weighed, "{command:?}: the importance changes nothing");
    }
}

#[test]
fn chats_are_read_too() {
    let folder = Folder::new();
    let chat = r#"{"messages": [{"role": "user", "content": "Tell me of the fox."},
        {"role": "assistant", "content": "The fox lived by the river."}]}"#;
    std::fs::write(folder.path("chats.jsonl"), chat.replace('\n', "")).unwrap();
    folder.ok(&["imatrix", "model.gguf", "--text", "chats.jsonl", "-o", "chats.gguf"]);
    assert_eq!(Imatrix::open(&folder.path("chats.gguf")).unwrap().chunks(), Some(1));
}

#[test]
fn a_text_without_a_token_is_refused() {
    let folder = Folder::new();
    std::fs::write(folder.path("empty.txt"), "").unwrap();
    let measure = ["imatrix", "model.gguf", "--text", "empty.txt", "-o", "out.gguf"];
    let message = folder.fails(1, &measure);
    assert!(message.contains("empty.txt is empty"), "{message}");
}
