//! A hub on loopback: a real HTTP server whose answers a test may bend.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::digest;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as the server saw it, header names in lower case.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte asked for.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Promise the whole body and close the connection after so many bytes of it.
    pub cut: Option<usize>,
    /// Wait that long before closing.
    pub stall: Duration,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, stall: Duration::ZERO }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

/// A server that answers with `answer` until the test ends.
pub struct Server {
    pub port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some(request) = read(&mut BufReader::new(&stream)) else { return };
                    log.lock().unwrap().push(request.clone());
                    let reply = answer(&request);
                    let length = reply.body.len();
                    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
                    if !reply.headers.iter().any(|(name, _)| name == "Content-Length") {
                        head += &format!("Content-Length: {length}\r\n");
                    }
                    for (name, value) in &reply.headers {
                        head += &format!("{name}: {value}\r\n");
                    }
                    head += "\r\n";
                    let body = if request.method == "HEAD" {
                        &[]
                    } else {
                        &reply.body[..reply.cut.unwrap_or(length)]
                    };
                    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
                    std::thread::sleep(reply.stall);
                });
            }
        });
        Self { port, seen }
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests for the content of files.
    pub fn downloads(&self) -> Vec<Request> {
        self.seen().into_iter().filter(|r| r.method == "GET" && r.path.contains("/resolve/")).collect()
    }
}

fn read(input: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    Some(Request { method, path, headers })
}

/// A repository `owner/name` at [`COMMIT`], served as the hub does.
#[derive(Clone)]
pub struct Repository {
    pub files: Vec<(String, Vec<u8>)>,
}

impl Repository {
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        Self { files: files.iter().map(|(name, content)| (name.to_string(), content.to_vec())).collect() }
    }

    /// A small config and `size` bytes of weights.
    pub fn tiny(size: usize) -> Self {
        Self::new(&[("config.json", b"{}"), ("model.safetensors", &noise(size))])
    }

    pub fn listing(&self) -> serde_json::Value {
        let siblings = self.files.iter().map(|(name, content)| {
            let mut file =
                serde_json::json!({"rfilename": name, "size": content.len(), "blobId": git_hash(content)});
            if name.ends_with(".safetensors") {
                file["lfs"] = serde_json::json!({"sha256": sha256(content), "size": content.len()});
            }
            file
        });
        serde_json::json!({"sha": COMMIT, "siblings": siblings.collect::<Vec<_>>()})
    }

    pub fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap();
        if path == "/api/models/owner/name/revision/main" {
            return Reply::new(200, self.listing().to_string());
        }
        let name = path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"));
        match name.and_then(|name| self.files.iter().find(|(n, _)| n == name)) {
            Some((name, content)) => {
                let tag = if name.ends_with(".safetensors") { sha256(content) } else { git_hash(content) };
                let reply = match request.from() {
                    None => Reply::new(200, content.clone()),
                    Some(from) => Reply::new(206, &content[from..]).header(
                        "Content-Range",
                        &format!("bytes {from}-{}/{}", content.len() - 1, content.len()),
                    ),
                };
                reply.header("ETag", &format!("\"{tag}\""))
            }
            None => Reply::new(404, "").header("X-Error-Code", "EntryNotFound"),
        }
    }
}

/// Bytes that no part of repeats.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

pub fn sha256(content: &[u8]) -> String {
    hex(&digest::digest(&digest::SHA256, content))
}

pub fn git_hash(content: &[u8]) -> String {
    let mut all = format!("blob {}\0", content.len()).into_bytes();
    all.extend(content);
    hex(&digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &all))
}

fn hex(hash: &digest::Digest) -> String {
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
