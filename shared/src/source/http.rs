//! Requests to the hub: redirects, the token, what a refusal means, and when to try again.

use std::time::Duration;

use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::hub::{HubConfig, Repo};
use crate::progress::{self, Progress};
use crate::{Error, ErrorKind, Result};

/// A failed attempt.
pub(super) struct Failure {
    pub error: Error,
    /// It may pass: a new try makes sense.
    pub passing: bool,
    /// How long the server asks to wait before that.
    pub wait: Option<Duration>,
}

impl Failure {
    pub fn passing(error: Error) -> Self {
        Self { error, passing: true, wait: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, passing: false, wait: None }
    }
}

/// What a request is about, for messages.
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
            // The sizes and hashes are those of the files themselves, so nothing may be compressed on the way.
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

    /// The answer to GET (or HEAD) of `url`, from byte `from` on.
    ///
    /// Redirects are followed here because the token may go to the hub's own scheme, host and port only, whatever
    /// host a redirect names.
    pub fn get(&self, about: About, url: &str, head: bool, from: u64) -> Result<Response<Body>, Failure> {
        let endpoint = self.config.endpoint.parse::<Uri>();
        let endpoint = endpoint.map_err(|e| Error::input(format!("{}: {e}", self.config.endpoint)))?;
        let bad = |url: &str| {
            about.error(ErrorKind::Network, format!("the hub gave an address that is none: {url}"))
        };
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
            // A HEAD asks what the hub itself knows; the redirect to where the bytes are does not matter then.
            let location = header(&answer, "location").filter(|_| answer.status().is_redirection());
            match location {
                Some(next) if !(head && header(&answer, "x-linked-etag").is_some()) => {
                    uri = resolve(&uri, next).ok_or_else(|| bad(next))?;
                }
                _ => return self.accepted(about, answer, head),
            }
        }
        Err(about.error(ErrorKind::Network, "redirected more than ten times").into())
    }

    /// Tries until it works, fails for good, or has failed `retries` times with nothing new between.
    ///
    /// `attempt` returns whether it got anywhere with its failure, so that a long download may break often.
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
            if !failure.passing || failed > retries {
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
        // A host that has no address will have none in a second either, unless a download from it is under way.
        let passing = match &error {
            ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => true,
            ureq::Error::Io(io) => {
                from > 0
                    || [ConnectionAborted, ConnectionRefused, ConnectionReset, TimedOut, UnexpectedEof]
                        .contains(&io.kind())
            }
            _ => from > 0,
        };
        let error = about
            .error(ErrorKind::Network, format!("{host} does not answer: {error}"))
            .hint("is the network up? HTTPS_PROXY names a proxy, HF_ENDPOINT another hub")
            .caused_by(error);
        Failure { error, passing, wait: None }
    }

    /// `answer` if it is what was asked for, else what the refusal means.
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
            Some(_) => "the token given (HF_TOKEN, or the file of huggingface-cli login) does not open it",
            None => "set HF_TOKEN to a token that may read it",
        };
        let error = match (status.as_u16(), code) {
            (401 | 403, "GatedRepo") => about
                .error(ErrorKind::Auth, "its owner asks who downloads it, and you have not been let in")
                .hint(format!("accept the licence on {page}"))
                .hint(token),
            (401 | 403, _) => about
                .error(ErrorKind::Auth, "it is private, or there is no such repository")
                .hint(token)
                .hint(format!("or look at the spelling: {page}")),
            (404, "EntryNotFound") => about.error(ErrorKind::NotFound, "the repository has no such file"),
            (404, "RevisionNotFound") => {
                about.error(ErrorKind::NotFound, format!("it has no revision {}", repo.revision()))
            }
            (404, _) => about
                .error(ErrorKind::NotFound, "the hub has no such repository")
                .hint(format!("look at the spelling: {page}")),
            _ => about.error(ErrorKind::Network, format!("the hub answers {status}")),
        };
        let passing = status.is_server_error() || [408, 429].contains(&status.as_u16());
        let wait = header(&answer, "retry-after").and_then(|s| s.parse().ok()).map(Duration::from_secs);
        Err(Failure { error, passing, wait })
    }
}

/// The text of a header, if it is there and is text.
pub(super) fn header<'a>(answer: &'a Response<Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// Sleeps, and wakes up if the user cancels.
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

/// The address that `location`, found at `base`, means.
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

/// `name` as a part of an address.
pub(super) fn percent_encoded(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_port_or_scheme_is_another_origin() {
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
    fn odd_file_names_are_encoded() {
        assert_eq!(percent_encoded("a b/ü#?.json"), "a%20b/%C3%BC%23%3F.json");
    }
}
