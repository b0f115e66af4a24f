//! `polylora serve` as a process: where it listens, what signals do, what it leaves in the log.
#![cfg(all(unix, feature = "serve"))]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Process {
    child: Child,
    /// Its standard error, line by line.
    lines: Receiver<String>,
    address: String,
}

impl Process {
    fn start(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Process {
        let written = polylora::embedded::write(folder).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_polylora"));
        command.arg("serve").arg(written.model).args(["--port", "0", "--threads", "1"]);
        command.args(arguments).envs(environment.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let mut process = Process { child, lines, address: String::new() };
        let line = process.wait_for("listening on http://");
        process.address = line.rsplit('/').next().unwrap().to_owned();
        process
    }

    /// The next line that holds a text.
    fn wait_for(&self, text: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("no {text:?}: {error}; seen: {seen:#?}"),
            }
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn get(&self, path: &str, headers: &str) -> String {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        let mut answer = String::new();
        self.send(&request).read_to_string(&mut answer).unwrap();
        answer
    }

    /// An answer of so many tokens as it is written.
    fn stream(&self, tokens: usize) -> TcpStream {
        let body = format!(
            "{{\"model\":\"shout\",\"prompt\":\"An owl\",\"max_tokens\":{tokens},\
             \"ignore_eos\":true,\"stream\":true}}"
        );
        self.send(&format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Where a test has failed before it ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_ends_on_request_when_what_was_begun_is_finished() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let mut process =
        Process::start(folder.path(), &["--adapter-dir", dir, "--log-format", "json"], &[]);
    assert!(process.get("/health", "").starts_with("HTTP/1.1 200"));
    let mut stream = process.stream(300);
    let mut first = [0; 16];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK\r");
    process.signal("TERM");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"),
        "{rest}"
    );
    // The log has the request's name, its adapter and what it took.
    let line: serde_json::Value = serde_json::from_str(&process.wait_for("\"finished\"")).unwrap();
    assert_eq!(
        (&line["fields"]["adapter"], &line["fields"]["written"]),
        (&"shout".into(), &300.into())
    );
    assert!(line["span"]["id"].as_str().unwrap().starts_with("req-"), "{line}");
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
    assert!(TcpStream::connect(&process.address).is_err());
}

#[test]
fn a_hangup_reads_the_keys_again_and_a_wrong_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    // Of "first" and "second".
    let hashes = [
        "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e",
        "16367aacb67a4a017c8da8ab95682ccb390863780f7114dda0a0e0c55644c7c4",
    ];
    let write = |hash: &str| {
        std::fs::write(&path, format!("[[key]]\nname = \"me\"\nsha256 = \"{hash}\"\n")).unwrap();
    };
    write(hashes[0]);
    let process = Process::start(folder.path(), &["--api-keys", path.to_str().unwrap()], &[]);
    let may = |key: &str| {
        let header = format!("authorization: Bearer {key}\r\n");
        process.get("/v1/models", &header).starts_with("HTTP/1.1 200")
    };
    assert_eq!([may("first"), may("second")], [true, false]);
    write(hashes[1]);
    process.signal("HUP");
    process.wait_for("keys read again");
    assert_eq!([may("first"), may("second")], [false, true]);
    write("nonsense");
    process.signal("HUP");
    let line = process.wait_for("the old keys stay");
    assert!(line.contains("keys.toml"), "{line}");
    assert_eq!([may("first"), may("second")], [false, true]);
}

#[test]
fn metrics_may_have_a_port_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let mut process = Process::start(folder.path(), &["--metrics-port", &port], &[]);
    process.address = format!("127.0.0.1:{port}");
    assert!(process.get("/metrics", "").contains("vllm:num_requests_running 0"));
    assert!(process.get("/v1/models", "").starts_with("HTTP/1.1 404"));
}

#[cfg(feature = "otlp")]
#[test]
fn traces_go_on_with_those_that_requests_come_with() {
    let collector = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let (sender, received) = channel();
    std::thread::spawn(move || {
        for stream in collector.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut bytes = Vec::new();
            // As much as comes: who sends waits for the answer.
            let _ = stream.read_to_end(&mut bytes);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            sender.send(bytes).unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let mut process = Process::start(folder.path(), &[], &environment);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let header = format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\n");
    process.get("/v1/models", &header);
    process.signal("TERM");
    process.child.wait().unwrap();
    let bytes = received.recv_timeout(PATIENCE).unwrap();
    let id: Vec<u8> =
        (0..16).map(|i| u8::from_str_radix(&trace[2 * i..2 * i + 2], 16).unwrap()).collect();
    assert!(bytes.starts_with(b"POST /v1/traces"));
    assert!(bytes.windows(16).any(|window| window == id), "the trace goes on");
    assert!(bytes.windows(10).any(|window| window == b"/v1/models"));
}
