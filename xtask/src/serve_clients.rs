//! `polylora serve` as clients that others wrote see it.

use crate::build_program;
use crate::python::Environment;
use crate::real_model::run;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What the server says once it can be asked; its address follows.
const LISTENING: &str = "listening on ";

/// `cargo xtask serve-clients`
pub(crate) fn check(root: &Path) -> Result<()> {
    let scripts = root.join("tools/serve");
    let environment = Environment::make(&root.join(".cache/serve"))?;
    let install = ["-m", "pip", "install", "--quiet", "--requirement", "requirements.txt"];
    environment.python(&scripts, &install)?;

    let polylora = build_program(root)?;
    let valley = polylora.with_file_name("valley");
    run(Command::new(&polylora).args(["demo", "--write"]).arg(&valley).stdout(Stdio::null()))?;

    let mut serve = Command::new(&polylora);
    serve.env("RUST_LOG", "warn");
    serve.arg("serve").arg(valley.join("valley-q4_k_m.gguf")).args(["--port", "0"]);
    for adapter in ["shout", "pirate", "json"] {
        serve.arg("--adapter").arg(valley.join(adapter));
    }
    let server = Server::start(serve)?;
    environment.python(&scripts, &["clients.py", &server.url])?;
    server.stop()
}

/// A server that runs until it is dropped.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(mut command: Command) -> Result<Server> {
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        // From here on it is ended whatever happens.
        let mut server = Server { process, url: String::new() };
        for line in &mut lines {
            let line = line?;
            eprintln!("{line}");
            if let Some((_, address)) = line.split_once(LISTENING) {
                server.url = address.split_whitespace().next().unwrap_or_default().to_owned();
                break;
            }
        }
        if server.url.is_empty() {
            bail!("{command:?} ended before it listened");
        }
        // It would stop where nobody reads what it says.
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| eprintln!("{line}"))
        });
        Ok(server)
    }

    /// Asks it to end, which it must do well.
    fn stop(mut self) -> Result<()> {
        run(Command::new("kill").arg(self.process.id().to_string()))?;
        let status = self.process.wait()?;
        if !status.success() {
            bail!("the server, asked to end, ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
