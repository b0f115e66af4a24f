//! The hub, over HTTP.

use super::cache::{COMMIT_DIGITS, home, is_hash, variable};
use super::listing::{Content, Entry, Listing, check_name};
use crate::source::Reference;
use anyhow::{Context, Result, anyhow};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::time::Duration;
use ureq::config::RedirectAuthHeaders;
use ureq::http::header::{AUTHORIZATION, RANGE};
use ureq::{Agent, Body, http::Response};

const HUB: &str = "https://huggingface.co";

/// Silence for longer than this is a lost connection.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a listing: 100,000 files, with room to spare.
const MAX_LISTING: u64 = 64 << 20;

/// What needs no escape in a part of a URL's path.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why something was not had.
pub(super) enum Failure {
    /// No answer, or none to speak of: it may be had later, or from the cache.
    NoAnswer(String),
    /// It will not be had by asking again.
    Final(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Final(error)
    }
}

/// Whether the user wants no connection made: the values that the hub's own tools take.
pub(super) fn is_offline() -> bool {
    let value = variable("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&&*value)
}

/// A hub to ask. Its token is for this host alone, and is never shown.
pub(super) struct Remote {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
}

struct Token {
    /// `Bearer TOKEN`
    header: String,
    /// Where it was found, for messages.
    from: String,
}

impl Token {
    fn find() -> Result<Option<Token>> {
        let (token, from) = match variable("HF_TOKEN") {
            Some(token) => (token, "HF_TOKEN".to_owned()),
            None => {
                let path = match variable("HF_TOKEN_PATH") {
                    Some(path) => path.into(),
                    None => home()?.join("token"),
                };
                let Ok(token) = std::fs::read_to_string(&path) else { return Ok(None) };
                (token, path.display().to_string())
            }
        };
        let token = token.trim();
        if token.is_empty() {
            return Ok(None);
        }
        // What cannot stand in a header would be shown by the error about it.
        anyhow::ensure!(
            token.bytes().all(|byte| byte.is_ascii_graphic()),
            "what {from} holds is no token: it has spaces or letters that no token has"
        );
        Ok(Some(Token { header: format!("Bearer {token}"), from }))
    }
}

impl Remote {
    pub(super) fn new() -> Result<Remote> {
        let agent = Agent::config_builder()
            .user_agent(concat!("polylora/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build();
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Ok(Remote { agent: agent.into(), endpoint, token: Token::find()? })
    }

    /// The files of a revision.
    pub(super) fn list(&self, reference: &Reference, revision: &str) -> Result<Listing, Failure> {
        let Reference { owner, repo, .. } = reference;
        let revision_part = utf8_percent_encode(revision, ESCAPED);
        let path = format!("api/models/{owner}/{repo}/revision/{revision_part}?blobs=true");
        let response = self.get(&path, 0)?;
        match response.status().as_u16() {
            200 => {}
            404 if error_code(&response) == "RevisionNotFound" => {
                let error = anyhow!("hf:{owner}/{repo} has no revision {revision:?}");
                return Err(Failure::Final(error));
            }
            _ => return Err(self.refusal(&response, reference)),
        }
        let text = response.into_body().into_with_config().limit(MAX_LISTING).read_to_vec();
        let text = text.map_err(|error| self.no_answer(&error))?;
        let about = || format!("{} answers what is no listing of hf:{owner}/{repo}", self.endpoint);
        let info: Info = serde_json::from_slice(&text).with_context(about)?;
        Ok(info.listing().with_context(about)?)
    }

    /// A file's content from byte `from` on; 206 where the hub goes on from there, 200 where it
    /// begins anew.
    pub(super) fn open(
        &self,
        reference: &Reference,
        commit: &str,
        name: &str,
        from: u64,
    ) -> Result<Response<Body>, Failure> {
        let Reference { owner, repo, .. } = reference;
        let name = name.split('/').map(|part| utf8_percent_encode(part, ESCAPED).to_string());
        let name = name.collect::<Vec<_>>().join("/");
        let response = self.get(&format!("{owner}/{repo}/resolve/{commit}/{name}"), from)?;
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            _ => Err(self.refusal(&response, reference)),
        }
    }

    fn get(&self, path: &str, from: u64) -> Result<Response<Body>, Failure> {
        let mut request = self.agent.get(format!("{}/{path}", self.endpoint));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, &token.header);
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        request.call().map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                let endpoint = &self.endpoint;
                Failure::Final(anyhow!("HF_ENDPOINT is {endpoint:?}: write it as {HUB}"))
            }
            error => self.no_answer(&error),
        })
    }

    fn no_answer(&self, error: &ureq::Error) -> Failure {
        Failure::NoAnswer(format!("{} cannot be reached ({error})", self.endpoint))
    }

    /// What an answer other than the one wanted means.
    fn refusal(&self, response: &Response<Body>, reference: &Reference) -> Failure {
        let (endpoint, status) = (&self.endpoint, response.status().as_u16());
        let Reference { owner, repo, .. } = reference;
        match status {
            // The hub says no more of what a stranger may not know.
            401 | 403 | 404 => Failure::Final(anyhow!(
                "hf:{owner}/{repo} was not given ({status}): it is private or gated, or does not \
                 exist. Check the name; where it needs access, ask for that at \
                 {endpoint}/{owner}/{repo}. {}",
                self.about_token()
            )),
            _ => Failure::NoAnswer(format!("{endpoint} answers {}", response.status())),
        }
    }

    fn about_token(&self) -> String {
        match &self.token {
            Some(token) => format!("The token from {} was sent, and does not open it", token.from),
            None => "No token was sent: set HF_TOKEN to one, or log in with `hf auth login`".into(),
        }
    }
}

fn error_code(response: &Response<Body>) -> &str {
    let code = response.headers().get("x-error-code");
    code.and_then(|code| code.to_str().ok()).unwrap_or_default()
}

/// What the hub tells of a revision, as far as it is of use here.
#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Info {
    /// Every name and hash becomes a path of the cache, so none is taken on trust.
    fn listing(self) -> Result<Listing> {
        anyhow::ensure!(is_hash(&self.sha, COMMIT_DIGITS), "{:?} is no commit", self.sha);
        let files = self.siblings.into_iter().map(Sibling::entry).collect::<Result<_>>()?;
        Ok(Listing { commit: self.sha, files })
    }
}

impl Sibling {
    fn entry(self) -> Result<Entry> {
        let name = self.rfilename;
        check_name(&name)?;
        let (content, digits, size) = match (self.lfs, self.blob_id) {
            (Some(lfs), _) => (Content::Large(lfs.sha256), 64, Some(lfs.size)),
            (None, Some(id)) => (Content::Small(id), 40, self.size),
            (None, None) => anyhow::bail!("{name} has no hash to compare it with"),
        };
        let hash = content.hash();
        anyhow::ensure!(is_hash(hash, digits), "{name} has a hash that is none: {hash:?}");
        let size = size.with_context(|| format!("{name} has no size"))?;
        Ok(Entry { name, size, content: Some(content) })
    }
}
