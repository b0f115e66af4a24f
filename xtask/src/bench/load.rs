use super::{Setting, measure, median, ratio};
use crate::make_model;
use anyhow::Result;

/// `cargo xtask bench load`
pub(super) fn run(setting: Setting) -> Result<()> {
    let model = make_model(&setting.dir)?;
    println!("| run | ours: s | llama-completion: s | share |");
    println!("|---|---|---|---|");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first pair brings the file into the page cache.
    for rep in 0..=setting.reps {
        let mut our = setting.ours();
        our.arg("run").arg(&model.q4_k_m).args(["--prompt", "a", "--raw", "-n", "1"]);
        let our = measure(our.args(["--threads", &setting.threads()]))?;
        let mut their = setting.theirs("llama-completion");
        their.arg("-m").arg(&model.q4_k_m).args(["-p", "a", "-n", "1", "-no-cnv"]);
        // The same context, and nothing computed beforehand.
        their.args(["-c", "2048", "--no-warmup", "-t", &setting.threads()]);
        let their = measure(&mut their)?;
        if rep == 0 {
            continue;
        }
        ours.push(our.time.as_secs_f64());
        theirs.push(their.time.as_secs_f64());
        let (our, their) = (ours[rep - 1], theirs[rep - 1]);
        println!("| {rep} | {our:.3} | {their:.3} | {:.2} |", our / their);
    }
    let share = ratio(&ours, &theirs);
    println!("| median | {:.3} | {:.3} | {share:.2} |", median(ours), median(theirs));
    Ok(())
}
