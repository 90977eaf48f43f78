//! Asks the running process, for the commands of `portcullis`.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {why}", path.display())]
    Unreachable { path: PathBuf, why: String },
    #[error("the connection ended before the answer: {0}")]
    Lost(String),
}

/// A question that is answered as a whole: status and JSON.
pub fn ask(socket: &Path, method: Method, path: &str, body: impl Into<Bytes>) -> Result<(u16, Value), Error> {
    let body = body.into();
    run(async {
        let response = send(socket, method, path, body).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| Error::Lost(error.to_string()))?.to_bytes();
        let value = serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).trim_end().to_owned()));
        Ok((status, value))
    })
}

/// What a process says of its readiness, as it says it.
pub struct Followed {
    body: Incoming,
    lines: Vec<u8>,
}

/// Follows the readiness.
pub async fn follow(socket: &Path) -> Result<Followed, Error> {
    let body = send(socket, Method::GET, "/readyz?follow", Bytes::new()).await?.into_body();
    Ok(Followed { body, lines: Vec::new() })
}

impl Followed {
    /// The next line; `None`: the process has ended, or has handed over to another one.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') {
                let line = self.lines.drain(..=end).collect::<Vec<u8>>();
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.lines.extend_from_slice(data);
            }
        }
    }
}

fn run<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::Lost(error.to_string()))?.block_on(work)
}

async fn send(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Error> {
    let unreachable = |error: io::Error| Error::Unreachable { path: socket.to_owned(), why: explain(&error) };
    let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
    let lost = |error: hyper::Error| Error::Lost(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("Host", "portcullis").body(Full::new(body));
    let request = request.map_err(|error| Error::Lost(error.to_string()))?;
    sender.send_request(request).await.map_err(lost)
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket: is portcullis running, and is this its `admin: { socket: … }`?".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody answers: the process that made the socket has ended".to_owned(),
        io::ErrorKind::PermissionDenied => "only root and members of the socket's group may use it".to_owned(),
        _ => error.to_string(),
    }
}
