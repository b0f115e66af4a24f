//! Fetching from the hub, against a stand-in for it on this machine: what is asked of it, what
//! lies in the cache then, and what is said when something is wrong.
#![cfg(feature = "hub")]

use polylora::synthetic::{Llama, quantize_file};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const TINY: Llama = Llama { layers: 1, hidden: 256, ffn: 256, heads: 4, kv_heads: 2, vocab: 64 };
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secretsecret";
/// The repository that needs the token.
const PRIVATE: &str = "me/private";

/// Variables that the machine of the tests may have set, and must not reach the program.
const OF_THE_MACHINE: [&str; 9] = [
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
];

/// What the stand-in has, and how it behaves.
#[derive(Default)]
struct State {
    repositories: Vec<(String, Vec<Served>)>,
    requests: Vec<Request>,
    /// After so many bytes of content the connection is cut; each is for one answer.
    cuts: Vec<usize>,
    /// Content comes a byte at a time after the half.
    drips: bool,
}

#[derive(Clone)]
struct Served {
    name: String,
    bytes: Vec<u8>,
    /// What is sent in its place.
    sent: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Request {
    path: String,
    range: Option<String>,
    has_token: bool,
}

/// The hub's HTTP, as far as it is used.
struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    fn new() -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let hub = Hub { address: format!("http://127.0.0.1:{port}"), state };
        let state = Arc::clone(&hub.state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (state, stream) = (Arc::clone(&state), stream.unwrap());
                // A client that goes away is no fault.
                std::thread::spawn(move || answer(&state, port, stream).unwrap_or_default());
            }
        });
        hub
    }

    fn put(&self, repository: &str, name: &str, bytes: &[u8]) {
        self.put_as(repository, name, bytes, None);
    }

    fn put_as(&self, repository: &str, name: &str, bytes: &[u8], sent: Option<&[u8]>) {
        let sent = sent.map(<[u8]>::to_vec);
        let file = Served { name: name.to_owned(), bytes: bytes.to_vec(), sent };
        let mut state = self.state.lock().unwrap();
        match state.repositories.iter_mut().find(|(name, _)| name == repository) {
            Some((_, files)) => files.push(file),
            None => state.repositories.push((repository.to_owned(), vec![file])),
        }
    }

    /// The requests for content since this was last asked.
    fn fetched(&self) -> Vec<Request> {
        let requests = std::mem::take(&mut self.state.lock().unwrap().requests);
        requests.into_iter().filter(|request| request.path.starts_with("/content/")).collect()
    }
}

/// Large files are kept elsewhere, as the hub keeps them.
fn is_large(name: &str) -> bool {
    name.ends_with(".gguf") || name.ends_with(".safetensors")
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn hash(file: &Served) -> String {
    if is_large(&file.name) {
        return hex(Sha256::digest(&file.bytes));
    }
    let header = format!("blob {}\0", file.bytes.len());
    hex(Sha1::new().chain_update(header).chain_update(&file.bytes).finalize())
}

fn listing(files: &[Served]) -> String {
    let siblings = files.iter().map(|file| {
        let (name, size) = (&file.name, file.bytes.len());
        if is_large(name) {
            let lfs = serde_json::json!({ "sha256": hash(file), "size": size, "pointerSize": 130 });
            let id = "f".repeat(40);
            return serde_json::json!({ "rfilename": name, "size": size, "blobId": id, "lfs": lfs });
        }
        serde_json::json!({ "rfilename": name, "size": size, "blobId": hash(file) })
    });
    serde_json::json!({ "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>() }).to_string()
}

fn answer(state: &Mutex<State>, port: u16, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap()?;
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let mut request = Request { path: path.clone(), range: None, has_token: false };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match &*name.to_ascii_lowercase() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.has_token = value == format!("Bearer {TOKEN}"),
            _ => {}
        }
    }
    let (range, has_token) = (request.range.clone(), request.has_token);
    let mut locked = state.lock().unwrap();
    locked.requests.push(request);
    let head = |status: &str, more: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n")
    };
    let no = |status: &str, code: &str| head(status, &format!("x-error-code: {code}\r\n"), 0);

    // /content/OWNER/REPO/NAME: elsewhere, where no token may arrive.
    // /api/models/OWNER/REPO/revision/main?blobs=true, /OWNER/REPO/resolve/COMMIT/NAME
    let path = path.trim_start_matches('/').trim_start_matches("api/models/");
    let is_content = path.starts_with("content/");
    let parts: Vec<&str> = path.trim_start_matches("content/").splitn(3, '/').collect();
    let repository = format!("{}/{}", parts[0], parts[1]);
    let found = locked.repositories.iter().find(|(name, _)| *name == repository);
    let Some((_, files)) = found.cloned() else {
        return stream.write_all(no("401 Unauthorized", "RepoNotFound").as_bytes());
    };
    if !is_content && repository == PRIVATE && !has_token {
        return stream.write_all(no("401 Unauthorized", "GatedRepo").as_bytes());
    }
    if let Some(revision) = parts[2].strip_prefix("revision/") {
        if !revision.starts_with("main?blobs") {
            return stream.write_all(no("404 Not Found", "RevisionNotFound").as_bytes());
        }
        let body = listing(&files);
        return stream.write_all((head("200 OK", "", body.len()) + &body).as_bytes());
    }
    let name = parts[2].trim_start_matches(&format!("resolve/{COMMIT}/"));
    let file = files.iter().find(|file| file.name == name).unwrap();
    if is_large(name) && !is_content {
        let place = format!("location: http://localhost:{port}/content/{repository}/{name}\r\n");
        return stream.write_all(head("302 Found", &place, 0).as_bytes());
    }
    let cut =
        if is_content && !locked.cuts.is_empty() { locked.cuts.remove(0) } else { usize::MAX };
    let drips = locked.drips;
    drop(locked);

    let all = file.sent.as_ref().unwrap_or(&file.bytes);
    let from: usize = range.map_or(0, |range| {
        range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
    });
    let body = &all[from..];
    let (status, range) = match from {
        0 => ("200 OK", String::new()),
        _ => {
            let (last, size) = (all.len() - 1, all.len());
            ("206 Partial Content", format!("content-range: bytes {from}-{last}/{size}\r\n"))
        }
    };
    stream.write_all(head(status, &range, body.len()).as_bytes())?;
    if !drips {
        return stream.write_all(&body[..cut.min(body.len())]);
    }
    let (now, later) = body.split_at(body.len() / 2);
    stream.write_all(now)?;
    for byte in later {
        std::thread::sleep(Duration::from_millis(10));
        stream.write_all(&[*byte])?;
    }
    Ok(())
}

/// A user's machine: a home with the cache, and a folder to work in.
struct User {
    folder: tempfile::TempDir,
    hub: Hub,
}

impl User {
    /// With a model and an adapter in the hub, in repositories of their own.
    fn new() -> User {
        let user = User { folder: tempfile::tempdir().unwrap(), hub: Hub::new() };
        TINY.write_f16(&user.path("f16.gguf")).unwrap();
        let recipe = "Q4_K_M".parse().unwrap();
        quantize_file(&user.path("f16.gguf"), &user.path("base.gguf"), &recipe).unwrap();
        TINY.write_adapter(&user.path("adapter"), 4, 0.1).unwrap();
        user.hub.put("me/model", "README.md", b"# A model");
        user.hub.put("me/model", "model-Q4_K_M.gguf", &user.read("base.gguf"));
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            user.hub.put("me/adapter", name, &user.read(&format!("adapter/{name}")));
        }
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polylora"));
        command.current_dir(self.folder.path()).args(arguments);
        for name in OF_THE_MACHINE {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.path("home")).env("HF_ENDPOINT", &self.hub.address);
        command
    }

    #[track_caller]
    fn ok(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, code: i32, command: &mut Command) -> String {
        let output: Output = command.output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {message}");
        assert!(!message.contains(TOKEN), "{message}");
        message
    }

    #[track_caller]
    fn pull(&self, reference: &str) -> PathBuf {
        PathBuf::from(self.ok(&mut self.command(&["pull", reference])).trim_end())
    }

    #[track_caller]
    fn pull_fails(&self, reference: &str) -> String {
        self.fails(1, &mut self.command(&["pull", reference]))
    }

    fn cache(&self, repository: &str) -> PathBuf {
        self.path("home/hub").join(format!("models--{}", repository.replace('/', "--")))
    }

    /// What is on its way.
    fn incomplete(&self, repository: &str) -> Vec<PathBuf> {
        let blobs = std::fs::read_dir(self.cache(repository).join("blobs"));
        let paths = blobs.into_iter().flatten().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|end| end == "incomplete")).collect()
    }
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn a_model_lies_where_the_hubs_tools_look_for_it() {
    let user = User::new();
    for reference in ["me/model", "hf:me/model:q4_k_m", "me/model:model-Q4_K_M.gguf"] {
        let path = user.pull(reference);
        assert_eq!(std::fs::read(&path).unwrap(), user.read("base.gguf"));
        let cache = user.cache("me/model");
        assert_eq!(path, cache.join(format!("snapshots/{COMMIT}/model-Q4_K_M.gguf")));
        let blob = cache.join("blobs").join(hex(Sha256::digest(user.read("base.gguf"))));
        assert_eq!(path.canonicalize().unwrap(), blob.canonicalize().unwrap());
        #[cfg(unix)]
        assert!(std::fs::read_link(&path).unwrap().starts_with("../../blobs"));
        assert_eq!(std::fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    }
    assert_eq!(user.hub.fetched().len(), 1, "it is fetched once");
    let json = user.ok(&mut user.command(&["pull", "me/model", "me/adapter", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["commit"], COMMIT);
    assert_eq!(json[1]["files"].as_array().unwrap().len(), 2);
    assert_eq!(json[1]["source"], "hf:me/adapter");
}

#[test]
fn references_stand_for_paths() {
    let user = User::new();
    let merge = |base: &str, adapter: &str, out: &str| {
        user.ok(&mut user.command(&["merge", base, "--adapter", adapter, "-o", out, "--json"]))
    };
    merge("base.gguf", "adapter@0.5", "local.gguf");
    merge("hf:me/model:Q4_K_M", "hf:me/adapter@0.5", "fetched.gguf");
    let diff = user.ok(&mut user.command(&["diff", "local.gguf", "fetched.gguf"]));
    says(&diff, &["0 tensors differ"]);
    let dry = ["merge", "hf:me/model", "--adapter", "hf:me/adapter", "-o", "o.gguf", "--dry-run"];
    says(&user.ok(&mut user.command(&dry)), &["7 of "]);
    says(&user.ok(&mut user.command(&["inspect", "hf:me/adapter"])), &["LoRA"]);
    let convert = ["convert", "hf:me/adapter", "--base", "hf:me/model", "-o", "lora.gguf"];
    user.ok(&mut user.command(&convert));
    // The name is the repository's, not the commit's.
    let merged = ["merge", "hf:me/model", "--adapter", "hf:me/adapter", "-o", "named.gguf"];
    says(&user.ok(&mut user.command(&merged)), &["Merged adapter into named.gguf"]);
    // A file of this name is still to be had.
    let message = user.fails(1, &mut user.command(&["inspect", "./hf:me/model"]));
    says(&message, &["./hf:me/model"]);
    says(&user.fails(2, &mut user.command(&["inspect", "hf:model"])), &["hf:OWNER/REPO"]);
}

#[test]
fn where_several_fit_they_are_listed() {
    let user = User::new();
    user.hub.put("me/model", "model-Q8_0-00001-of-00002.gguf", b"one");
    user.hub.put("me/model", "model-Q8_0-00002-of-00002.gguf", b"two");
    let listed = ["hf:me/model:model-Q4_K_M.gguf", "hf:me/model:model-Q8_0-00001-of-00002.gguf"];
    says(&user.pull_fails("me/model"), &[&listed[..], &["6 B, 2 parts"]].concat());
    says(&user.pull_fails("me/model:Q5_K"), &[&listed[..], &["\"Q5_K\""]].concat());
    assert!(user.hub.fetched().is_empty());
    let path = user.pull("me/model:q8_0");
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    let second = path.with_file_name("model-Q8_0-00002-of-00002.gguf");
    assert_eq!(std::fs::read(second).unwrap(), b"two");
}

#[test]
fn a_cut_connection_is_taken_up_where_it_ended() {
    let user = User::new();
    let size = user.read("base.gguf").len();
    user.hub.state.lock().unwrap().cuts = vec![size / 3, size / 3];
    let path = user.pull("me/model");
    assert_eq!(std::fs::read(path).unwrap(), user.read("base.gguf"));
    let ranges: Vec<_> = user.hub.fetched().into_iter().map(|request| request.range).collect();
    let [first, second] = [size / 3, 2 * (size / 3)].map(|at| Some(format!("bytes={at}-")));
    assert_eq!(ranges, [None, first, second]);
}

#[test]
fn a_later_pull_goes_on_where_an_earlier_one_gave_up() {
    let user = User::new();
    let size = user.read("base.gguf").len();
    user.hub.state.lock().unwrap().cuts = vec![1000, 0, 0, 0];
    says(&user.pull_fails("me/model"), &["1000 of", "goes on from there"]);
    assert_eq!(user.incomplete("me/model").len(), 1);
    assert!(!user.cache("me/model").join("refs/main").exists());
    user.hub.fetched();
    user.pull("me/model");
    assert_eq!(user.hub.fetched()[0].range.as_deref(), Some("bytes=1000-"));
    assert!(user.incomplete("me/model").is_empty());

    // What is left of something longer is not gone on with.
    std::fs::remove_dir_all(user.cache("me/model").join("snapshots")).unwrap();
    let blobs = user.cache("me/model").join("blobs");
    let blob = blobs.join(hex(Sha256::digest(user.read("base.gguf"))));
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(blob.with_extension("incomplete"), vec![0; size + 1]).unwrap();
    user.pull("me/model");
    assert_eq!(user.hub.fetched()[0].range, None);
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_arrived() {
    let user = User::new();
    user.hub.state.lock().unwrap().drips = true;
    let half = user.read("base.gguf").len() as u64 / 2;
    let mut pull = user.command(&["pull", "me/model"]).stderr(Stdio::null()).spawn().unwrap();
    let arrived = || {
        let paths = user.incomplete("me/model");
        paths.first().map_or(0, |path| std::fs::metadata(path).map_or(0, |file| file.len()))
    };
    while arrived() < half {
        assert!(pull.try_wait().unwrap().is_none(), "it ended before half was there");
        std::thread::sleep(Duration::from_millis(1));
    }
    let kill = Command::new("kill").args(["-INT", &pull.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(pull.wait().unwrap().code(), Some(130));
    let arrived = arrived();
    user.hub.state.lock().unwrap().drips = false;
    user.hub.fetched();
    let path = user.pull("me/model");
    assert_eq!(user.hub.fetched()[0].range, Some(format!("bytes={arrived}-")));
    assert_eq!(std::fs::read(path).unwrap(), user.read("base.gguf"));
}

#[test]
fn content_that_is_not_the_listed_one_is_refused() {
    let user = User::new();
    let mut wrong = user.read("base.gguf");
    *wrong.last_mut().unwrap() ^= 1;
    let longer = [user.read("base.gguf"), vec![0]].concat();
    let cases = [("me/flipped", &wrong, "deleted"), ("me/longer", &longer, "sends more")];
    for (repository, sent, why) in cases {
        user.hub.put_as(repository, "model.gguf", &user.read("base.gguf"), Some(sent));
        says(&user.pull_fails(repository), &[why]);
        assert!(!user.cache(repository).join("snapshots").exists());
    }
    assert!(user.incomplete("me/flipped").is_empty());
    // A small file, by Git's hash.
    user.hub.put_as("me/small", "adapter_config.json", b"{\"r\": 4}", Some(b"{\"r\": 8}"));
    user.hub.put("me/small", "adapter_model.safetensors", b"weights");
    says(&user.pull_fails("me/small"), &["me/small:adapter_config.json", "deleted"]);
}

#[test]
fn what_is_private_needs_a_token() {
    let user = User::new();
    user.hub.put(PRIVATE, "model.gguf", b"weights");
    let page = format!("{}/{PRIVATE}", user.hub.address);
    says(&user.pull_fails(PRIVATE), &["401", "private or gated", "HF_TOKEN", &page]);
    says(&user.pull_fails("me/nowhere"), &["me/nowhere", "does not exist"]);
    let mut wrong = user.command(&["pull", PRIVATE]);
    says(&user.fails(1, wrong.env("HF_TOKEN", "hf_other")), &["token from HF_TOKEN"]);
    let mut broken = user.command(&["pull", PRIVATE]);
    let message = user.fails(1, broken.env("HF_TOKEN", format!("{TOKEN}\u{e4}")));
    says(&message, &["HF_TOKEN", "no token"]);

    user.hub.fetched();
    user.ok(user.command(&["pull", PRIVATE]).env("HF_TOKEN", TOKEN));
    let elsewhere = user.hub.fetched();
    assert!(elsewhere.len() == 1 && !elsewhere[0].has_token, "{elsewhere:?}");

    // As the hub's own tools keep it; the variable that names the place wins.
    std::fs::write(user.path("home/token"), format!("{TOKEN}\n")).unwrap();
    user.pull(PRIVATE);
    std::fs::write(user.path("other"), "hf_other").unwrap();
    let mut other = user.command(&["pull", PRIVATE]);
    says(&user.fails(1, other.env("HF_TOKEN_PATH", user.path("other"))), &["other was sent"]);
}

#[test]
fn without_a_connection_the_cache_is_enough() {
    let user = User::new();
    // Nobody listens on a port that was just given back.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let without = |arguments: &[&str]| {
        let mut command = user.command(arguments);
        command.env("HF_ENDPOINT", format!("http://{gone}"));
        command
    };
    let offline = |arguments: &[&str]| {
        let mut command = user.command(arguments);
        command.env("HF_HUB_OFFLINE", "1");
        command
    };
    for (mut command, why) in [
        (without(&["pull", "me/model"]), "cannot be reached"),
        (offline(&["pull", "me/model"]), "HF_HUB_OFFLINE"),
    ] {
        let message = user.fails(1, &mut command);
        says(&message, &[why, "not in the cache", "polylora pull hf:me/model"]);
    }
    let path = user.pull("me/model");
    user.pull("me/adapter");
    user.hub.state.lock().unwrap().requests.clear();
    for reference in ["me/model", "me/model:Q4_K_M", "me/model:model-Q4_K_M.gguf"] {
        for mut command in [without(&["pull", reference]), offline(&["pull", reference])] {
            assert_eq!(Path::new(user.ok(&mut command).trim_end()), path);
        }
    }
    let merge = ["merge", "hf:me/model", "--adapter", "hf:me/adapter", "-o", "out.gguf"];
    user.ok(&mut offline(&merge));
    let message = user.fails(1, &mut offline(&["pull", "me/model:Q8_0"]));
    says(&message, &["HF_HUB_OFFLINE", "only a part", "Q8_0", "hf:me/model:model-Q4_K_M.gguf"]);
    assert!(user.hub.state.lock().unwrap().requests.is_empty());
}

#[test]
fn names_do_not_lead_out_of_the_cache() {
    let user = User::new();
    for (at, name) in ["../../../../x.gguf", "/tmp/x.gguf", "a/../../x.gguf"].iter().enumerate() {
        let repository = format!("me/hostile{at}");
        user.hub.put(&repository, name, b"weights");
        says(&user.pull_fails(&repository), &[name, "outside the cache"]);
    }
    assert!(user.hub.fetched().is_empty());
    says(&user.fails(2, &mut user.command(&["pull", "../x"])), &["hf:OWNER/REPO"]);
    let revision = ["pull", "me/model", "--revision", "../../x"];
    says(&user.fails(1, &mut user.command(&revision)), &["no revision"]);
}

#[test]
fn a_commit_from_before_lends_its_content() {
    let user = User::new();
    let path = user.pull("me/model");
    let old = user.cache("me/model").join("snapshots").join("a".repeat(40));
    std::fs::rename(path.parent().unwrap(), &old).unwrap();
    user.hub.fetched();
    assert_eq!(user.pull("me/model"), path);
    assert!(user.hub.fetched().is_empty());
}
