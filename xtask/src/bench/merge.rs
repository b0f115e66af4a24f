use super::{Setting, measure, median, ratio};
use crate::make_model;
use anyhow::Result;

/// `cargo xtask bench merge`
pub(super) fn run(setting: Setting) -> Result<()> {
    let model = make_model(&setting.dir)?;
    let threads = setting.threads();
    let out = |name: &str| setting.dir.join(name);
    let gguf_adapter = out("random-rank16.gguf");
    if !gguf_adapter.exists() {
        let mut convert = setting.ours();
        convert.arg("convert").arg(&model.adapter).arg("--base").arg(&model.q4_k_m);
        measure(convert.arg("-o").arg(&gguf_adapter))?;
    }

    println!("| run | ours: s | ours: peak of own memory, MiB | llama.cpp: s | times |");
    println!("|---|---|---|---|---|");
    let (mut ours, mut theirs, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for rep in 1..=setting.reps {
        let merged = out("ours.gguf");
        let mut merge = setting.ours();
        merge.arg("merge").arg(&model.q4_k_m).arg("--adapter").arg(&model.adapter);
        merge.arg("-o").arg(&merged).args(["--force", "--threads", &threads]);
        let our = measure(&mut merge)?;

        let (exported, quantized) = (out("exported.gguf"), out("theirs.gguf"));
        let mut export = setting.theirs("llama-export-lora");
        export.arg("-m").arg(&model.q4_k_m).arg("--lora").arg(&gguf_adapter);
        export.arg("-o").arg(&exported).args(["-t", &threads]);
        let first = measure(&mut export)?;
        let mut quantize = setting.theirs("llama-quantize");
        quantize.arg("--allow-requantize").arg(&exported).arg(&quantized);
        let second = measure(quantize.args(["Q4_K_M", &threads]))?;
        let their = first.time + second.time;

        let (our_s, their_s) = (our.time.as_secs_f64(), their.as_secs_f64());
        println!(
            "| {rep} | {our_s:.2} | {:.0} | {their_s:.2} ({:.2} + {:.2}) | {:.1} |",
            our.own_memory_mib,
            first.time.as_secs_f64(),
            second.time.as_secs_f64(),
            their_s / our_s
        );
        ours.push(our_s);
        theirs.push(their_s);
        memory.push(our.own_memory_mib);
    }
    let times = ratio(&theirs, &ours);
    let (ours, theirs, memory) = (median(ours), median(theirs), median(memory));
    println!("| median | {ours:.2} | {memory:.0} | {theirs:.2} | {times:.1} |");
    Ok(())
}
