//! Listening: connections, how many there may be, and for how long.

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutStream;

/// How long a connection may take to say what it wants: also for the next request of one that
/// stays open.
const HEADERS: Duration = Duration::from_secs(30);

/// How long a client may leave what it is sent unread.
const UNREAD: Duration = Duration::from_secs(30);

/// Bytes of headers that are taken, and of an answer that are held for a client that reads slowly:
/// of all connections at once it is to be little.
const BUFFER: usize = 64 << 10;

/// How long to wait where no connection can be taken, for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// What one connection too many is told.
const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\n\
    content-length: 137\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\r\n\
    {\"error\":{\"message\":\"Too many connections are open: try again later.\",\
    \"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}\n";

/// A port that is listened on.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    most: usize,
    open: Arc<AtomicUsize>,
}

/// One open connection, as long as this lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Listener {
    /// Listens for `most` connections at a time.
    pub(crate) async fn bind(host: &str, port: u16, most: usize) -> io::Result<Listener> {
        // Each connection is a descriptor; where the limit cannot be raised, it is met sooner.
        let _ = rlimit::increase_nofile_limit(u64::MAX);
        let listener = TcpListener::bind((host, port)).await?;
        let address = listener.local_addr()?;
        Ok(Listener { listener, address, most, open: Arc::default() })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number of open connections, as it changes.
    pub(crate) fn open(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.open)
    }

    /// Serves until `shutdown`; then takes no more connections, closes those that are idle, and
    /// lets the others finish what they are being sent.
    pub(crate) async fn serve(self, router: Router, shutdown: impl Future<Output = ()>) {
        let Listener { listener, most, open, .. } = self;
        // Without HTTP/2: clients of this API do not ask for it in the clear, and a connection that
        // begins in the way of both would not be let go.
        let mut server = Builder::new(TokioExecutor::new()).http1_only();
        server.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(BUFFER);
        let graceful = GracefulShutdown::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut shutdown => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be taken");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            open.fetch_add(1, Ordering::Relaxed);
            let counted = Counted(Arc::clone(&open));
            if open.load(Ordering::Relaxed) > most {
                refuse(stream).await;
                continue;
            }
            // Tokens are small, and are not to wait for each other.
            let _ = stream.set_nodelay(true);
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(UNREAD));
            let service = TowerToHyperService::new(router.clone());
            let io = TokioIo::new(Box::pin(stream));
            let connection = server.serve_connection(io, service).into_owned();
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                // What went wrong with a connection is its client's business.
                if let Err(error) = connection.await {
                    tracing::debug!(error, "a connection ended");
                }
                drop(counted);
            });
        }
        drop(listener);
        graceful.shutdown().await;
    }
}

/// Tells a client that there are too many, as far as that goes without waiting.
async fn refuse(mut stream: TcpStream) {
    // An answer so small is taken by the system at once.
    let _ = tokio::time::timeout(PAUSE, stream.write_all(FULL.as_bytes())).await;
    let _ = tokio::time::timeout(PAUSE, stream.shutdown()).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::stream;
    use std::convert::Infallible;
    use std::time::Instant;
    use tokio::io::AsyncReadExt;
    use tokio::sync::oneshot;

    /// A server with a short answer at `/`, a slow one at `/slow` and an endless one at `/flood`.
    async fn start(
        most: usize,
    ) -> (SocketAddr, Arc<AtomicUsize>, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let flood = || async {
            let piece = Ok::<_, Infallible>(Bytes::from(vec![b'x'; 1 << 16]));
            Body::from_stream(stream::repeat(piece))
        };
        let slow = || async {
            let pieces = stream::unfold(0, |n| async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                (n < 10).then(|| (Ok::<_, Infallible>(Bytes::from("piece ")), n + 1))
            });
            Body::from_stream(pieces)
        };
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/slow", get(slow))
            .route("/flood", get(flood));
        let listener = Listener::bind("127.0.0.1", 0, most).await.unwrap();
        let (address, open) = (listener.address(), listener.open());
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            let _ = stopped.await;
        };
        (address, open, stop, tokio::spawn(listener.serve(router, shutdown)))
    }

    async fn send(address: SocketAddr, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn read_some(stream: &mut TcpStream) -> String {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    async fn read_all(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn one_too_many_is_told_so() {
        let (address, open, _stop, _server) = start(2).await;
        let mut kept = [send(address, "/").await, send(address, "/").await];
        for stream in &mut kept {
            assert!(read_some(stream).await.ends_with("hello"));
        }
        let refused = read_all(&mut send(address, "/").await).await;
        let (head, body) = refused.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 1"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head} {}", body.len());
        let error: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(error["error"]["code"], "too_many_connections");
        drop(kept);
        while open.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(read_some(&mut send(address, "/").await).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn the_end_waits_for_answers_and_not_for_idle_connections() {
        let (address, _, stop, server) = start(100).await;
        let mut idle = send(address, "/").await;
        assert!(read_some(&mut idle).await.ends_with("hello"));
        let mut slow = send(address, "/slow").await;
        assert!(read_some(&mut slow).await.contains("200 OK"));
        stop.send(()).unwrap();
        let start = Instant::now();
        assert_eq!(read_all(&mut idle).await, "");
        assert!(start.elapsed() < Duration::from_millis(400));
        assert_eq!(read_all(&mut slow).await.matches("piece").count(), 10);
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_reads_nothing_is_let_go() {
        let (address, open, _stop, _server) = start(100).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(b"GET / HTTP/1.1\r\nhos").await.unwrap();
        let _wordless = TcpStream::connect(address).await.unwrap();
        let mut other = TcpStream::connect(address).await.unwrap();
        other.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        let unread = send(address, "/flood").await;
        // Time is not waited for here: it goes on when nothing else does.
        let start = tokio::time::Instant::now();
        while open.load(Ordering::Relaxed) > 0 {
            assert!(start.elapsed() < 3 * HEADERS, "{open:?} are still open");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(unread);
    }

    #[tokio::test]
    async fn thousands_of_connections_come_and_go() {
        let (address, open, _stop, _server) = start(5000).await;
        let mut streams = Vec::new();
        for _ in 0..2000 {
            streams.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(read_some(&mut send(address, "/").await).await.ends_with("hello"));
        drop(streams);
        while open.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
