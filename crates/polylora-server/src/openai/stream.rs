//! Answers as they are written: server-sent events.

use super::Usage;
use super::generate::{Meter, gone};
use crate::error::ApiError;
use crate::scheduler::{Event, Events};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

/// How long a stream's status waits for the answer to begin: until then it can tell of an error.
/// After it the stream begins all the same, so that nobody between takes it for dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a silent stream says that it is alive.
const ALIVE: Duration = Duration::from_secs(10);

/// Makes the chunks of one API of events.
pub(super) trait Chunks: Send + 'static {
    type Chunk: Serialize;

    /// The chunks that tell of an event.
    fn chunks(&mut self, index: usize, event: Event) -> Vec<Self::Chunk>;

    /// The last chunk, which tells what it took.
    fn usage(&self, usage: Usage) -> Self::Chunk;
}

struct State<C: Chunks> {
    events: Events,
    meter: Meter,
    chunks: C,
    includes_usage: bool,
    ready: VecDeque<Sent>,
    has_ended: bool,
}

/// A response that streams the answers of a request.
pub(super) async fn respond<C: Chunks>(
    mut events: Events,
    meter: Meter,
    chunks: C,
    includes_usage: bool,
) -> Result<Response, ApiError> {
    let first = match tokio::time::timeout(PATIENCE, events.recv()).await {
        Ok(Some((_, Event::Failed(failure)))) => return Err(failure.into()),
        Ok(None) => return Err(gone()),
        Ok(Some(first)) => Some(first),
        Err(_) => None,
    };
    let (ready, has_ended) = (VecDeque::new(), false);
    let mut state = State { events, meter, chunks, includes_usage, ready, has_ended };
    if let Some((index, event)) = first {
        state.take(index, event);
    }
    // When the client goes away the stream is dropped, and with it the receiver of the events.
    let stream = stream::unfold(state, |mut state| async move {
        while state.ready.is_empty() {
            if state.has_ended {
                return None;
            }
            match state.events.recv().await {
                Some((index, event)) => state.take(index, event),
                None => state.fail(gone()),
            }
        }
        let next = state.ready.pop_front()?;
        Some((Ok::<Sent, Infallible>(next), state))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

impl<C: Chunks> State<C> {
    fn take(&mut self, index: usize, event: Event) {
        self.meter.note(&event);
        if let Event::Failed(failure) = event {
            return self.fail(failure.into());
        }
        for chunk in self.chunks.chunks(index, event) {
            self.ready.push_back(sent(&chunk));
        }
        if self.meter.open == 0 {
            if self.includes_usage {
                self.ready.push_back(sent(&self.chunks.usage(self.meter.usage())));
            }
            self.end();
        }
    }

    fn fail(&mut self, error: ApiError) {
        self.ready.push_back(sent(&error.body()));
        self.end();
    }

    fn end(&mut self) {
        self.ready.push_back(Sent::default().data("[DONE]"));
        self.has_ended = true;
    }
}

fn sent(chunk: &impl Serialize) -> Sent {
    let json =
        serde_json::to_string(chunk).expect("chunks have no maps with other keys than texts");
    Sent::default().data(json)
}
