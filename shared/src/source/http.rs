//! HTTP requests to the hub: redirects, token, errors, retries.

use std::time::Duration;

use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::hub::{HubConfig, Repo};
use crate::progress::{self, Progress};
use crate::{Error, ErrorKind, Result};

/// A failed attempt.
pub(super) struct Failure {
    pub error: Error,
    /// Whether the failure may be temporary.
    pub temporary: bool,
    /// The `Retry-After` of the server.
    pub wait: Option<Duration>,
}

impl Failure {
    pub fn temporary(error: Error) -> Self {
        Self { error, temporary: true, wait: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, temporary: false, wait: None }
    }
}

/// The repository and file of a request, for messages.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub repo: &'a Repo,
    pub file: Option<&'a str>,
}

impl About<'_> {
    pub fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        let error = Error::new(kind, message).at(self.repo.to_string());
        match self.file {
            Some(file) => error.context(file),
            None => error,
        }
    }
}

pub(super) struct Http {
    agent: Agent,
    config: HubConfig,
}

impl Http {
    pub fn new(config: HubConfig) -> Self {
        let host = config.endpoint.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
        let here = host.is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str()));
        let mut agent = Agent::config_builder()
            .user_agent(concat!("fauna/", env!("CARGO_PKG_VERSION")))
            // Sizes and hashes are those of the uncompressed files.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(config.timeout))
            .timeout_recv_response(Some(config.timeout))
            .timeout_per_read(Some(config.timeout));
        if here {
            agent = agent.proxy(None);
        }
        Self { agent: agent.build().into(), config }
    }

    /// Sends a GET (or HEAD) request for `url`, from byte `from`.
    ///
    /// Redirects are followed here because the token must be sent to the scheme, host and port of the hub only.
    pub fn get(&self, about: About, url: &str, head: bool, from: u64) -> Result<Response<Body>, Failure> {
        let endpoint = self.config.endpoint.parse::<Uri>();
        let endpoint = endpoint.map_err(|e| Error::input(format!("{}: {e}", self.config.endpoint)))?;
        let bad =
            |url: &str| about.error(ErrorKind::Network, format!("the hub returned an invalid URL: {url}"));
        let mut uri: Uri = url.parse().map_err(|_| bad(url))?;
        for _ in 0..10 {
            let mut request = if head { self.agent.head(&uri) } else { self.agent.get(&uri) };
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            if let Some(token) = self.config.token.as_ref().filter(|_| same_origin(&uri, &endpoint)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let answer = request.call().map_err(|error| self.unreachable(about, &uri, from, error))?;
            // For HEAD requests the headers of the hub suffice; redirects to the storage are not followed.
            let location = header(&answer, "location").filter(|_| answer.status().is_redirection());
            match location {
                Some(next) if !(head && header(&answer, "x-linked-etag").is_some()) => {
                    uri = resolve(&uri, next).ok_or_else(|| bad(next))?;
                }
                _ => return self.accepted(about, answer, head),
            }
        }
        Err(about.error(ErrorKind::Network, "more than ten redirects").into())
    }

    /// Calls `attempt` until it succeeds, fails permanently, or fails `retries` times in a row without progress.
    ///
    /// `attempt` returns whether it made progress and its result, so that a long download may be interrupted often.
    pub fn persist<T>(
        &self,
        retries: u32,
        progress: &dyn Progress,
        mut attempt: impl FnMut() -> (bool, Result<T, Failure>),
    ) -> Result<T> {
        let mut failed = 0;
        loop {
            let (advanced, outcome) = attempt();
            let failure = match outcome {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            failed = if advanced { 1 } else { failed + 1 };
            if !failure.temporary || failed > retries {
                return Err(failure.error);
            }
            let wait = self.config.backoff * 2u32.saturating_pow(failed - 1);
            pause(failure.wait.unwrap_or(wait).min(Duration::from_secs(60)), progress)?;
        }
    }

    fn unreachable(&self, about: About, uri: &Uri, from: u64, error: ureq::Error) -> Failure {
        use std::io::ErrorKind::{
            ConnectionAborted, ConnectionRefused, ConnectionReset, TimedOut, UnexpectedEof,
        };
        let host = uri.host().unwrap_or_default();
        // Name resolution errors are permanent, except in a download that has begun.
        let temporary = match &error {
            ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => true,
            ureq::Error::Io(io) => {
                from > 0
                    || [ConnectionAborted, ConnectionRefused, ConnectionReset, TimedOut, UnexpectedEof]
                        .contains(&io.kind())
            }
            _ => from > 0,
        };
        let error = about
            .error(ErrorKind::Network, format!("cannot reach {host}: {error}"))
            .hint("check the network; HTTPS_PROXY sets a proxy, HF_ENDPOINT another hub")
            .caused_by(error);
        Failure { error, temporary, wait: None }
    }

    /// Returns `answer` if it is a success, else the error of its status.
    fn accepted(&self, about: About, answer: Response<Body>, head: bool) -> Result<Response<Body>, Failure> {
        let status = answer.status();
        let out_of_range = status == StatusCode::RANGE_NOT_SATISFIABLE;
        if status.is_success() || out_of_range || (head && status.is_redirection()) {
            return Ok(answer);
        }
        let code = header(&answer, "x-error-code").unwrap_or_default();
        let repo = about.repo;
        let page = format!("{}/{}", self.config.endpoint, repo.id());
        let token = match self.config.token {
            Some(_) => "the token (HF_TOKEN, or the file of huggingface-cli login) has no access",
            None => "set HF_TOKEN to a token with access",
        };
        let error = match (status.as_u16(), code) {
            (401 | 403, "GatedRepo") => about
                .error(ErrorKind::Auth, "the repository is gated, and access was not granted")
                .hint(format!("accept the licence on {page}"))
                .hint(token),
            (401 | 403, _) => about
                .error(ErrorKind::Auth, "the repository is private or does not exist")
                .hint(token)
                .hint(format!("or check the name: {page}")),
            (404, "EntryNotFound") => about.error(ErrorKind::NotFound, "the repository has no such file"),
            (404, "RevisionNotFound") => about
                .error(ErrorKind::NotFound, format!("the repository has no revision {}", repo.revision())),
            (404, _) => about
                .error(ErrorKind::NotFound, "the repository does not exist")
                .hint(format!("check the name: {page}")),
            _ => about.error(ErrorKind::Network, format!("the hub returned {status}")),
        };
        let temporary = status.is_server_error() || [408, 429].contains(&status.as_u16());
        let wait = header(&answer, "retry-after").and_then(|s| s.parse().ok()).map(Duration::from_secs);
        Err(Failure { error, temporary, wait })
    }
}

/// The value of a header, if it is present and valid text.
pub(super) fn header<'a>(answer: &'a Response<Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// Sleeps; returns early if cancelled.
pub(super) fn pause(time: Duration, progress: &dyn Progress) -> Result<()> {
    let step = Duration::from_millis(50);
    let mut left = time;
    while !left.is_zero() {
        progress::check(progress)?;
        std::thread::sleep(left.min(step));
        left = left.saturating_sub(step);
    }
    progress::check(progress)
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port =
        |uri: &Uri| uri.port_u16().or(if uri.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    a.scheme() == b.scheme() && a.host() == b.host() && port(a) == port(b)
}

/// Resolves the `Location` header of a response from `base`.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    let path = match location.strip_prefix('/') {
        Some(path) => path.to_owned(),
        None => format!("{}/{location}", base.path().rsplit_once('/')?.0).trim_start_matches('/').to_owned(),
    };
    format!("{}://{}/{path}", base.scheme_str()?, base.authority()?).parse().ok()
}

/// Percent-encodes `name` for a URL path.
pub(super) fn percent_encoded(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://hub.co/a", "https://hub.co:443"));
        for other in ["https://hub.co:444/a", "http://hub.co/a", "https://cdn.hub.co/a"] {
            assert!(!same(other, "https://hub.co"), "{other}");
        }
    }

    #[test]
    fn relative_redirects_stay_on_their_host() {
        let base = "https://hub.co/api/a?x=1".parse().unwrap();
        assert_eq!(resolve(&base, "/b?c=d").unwrap(), "https://hub.co/b?c=d");
        assert_eq!(resolve(&base, "b").unwrap(), "https://hub.co/api/b");
        assert_eq!(resolve(&base, "https://cdn.co/x").unwrap(), "https://cdn.co/x");
    }

    #[test]
    fn file_names_are_percent_encoded() {
        assert_eq!(percent_encoded("a b/ü#?.json"), "a%20b/%C3%BC%23%3F.json");
    }
}
