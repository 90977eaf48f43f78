//! A backend that does what a script says: well or badly.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as a backend has received it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// All values of a header, joined; empty if it is not there.
    pub fn header(&self, name: &str) -> String {
        let values: Vec<_> =
            self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect();
        values.join(" | ")
    }
}

pub enum Reply {
    /// Status, headers and body, with a length.
    Http(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Bytes as they are; then the connection stays.
    Raw(Vec<u8>),
    /// Bytes as they are; then it closes.
    RawClose(Vec<u8>),
    /// The script takes the connection over.
    Take(Box<dyn FnOnce(TcpStream) + Send>),
}

impl Reply {
    pub fn text(body: impl Into<String>) -> Self {
        Reply::Http(200, Vec::new(), body.into().into_bytes())
    }
    pub fn header(self, name: &'static str, value: impl Into<String>) -> Self {
        match self {
            Reply::Http(status, mut headers, body) => {
                headers.push((name, value.into()));
                Reply::Http(status, headers, body)
            }
            other => other,
        }
    }
}

/// The method of what is no request.
pub const GARBAGE: &str = "GARBAGE";

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

pub struct Origin {
    pub address: SocketAddr,
    script: Arc<Script>,
    live: Mutex<Option<Live>>,
    seen: Mutex<Receiver<Request>>,
    tell: Sender<Request>,
}

struct Live {
    stopped: Arc<AtomicBool>,
    connections: Arc<Mutex<HashMap<SocketAddr, TcpStream>>>,
    thread: std::thread::JoinHandle<()>,
}

impl Origin {
    pub fn new(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", script)
    }

    /// A backend at an address of one's own choice.
    pub fn at(address: &str, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, seen) = channel();
        let origin = Self { address, script: Arc::new(script), live: Mutex::new(None), seen: Mutex::new(seen), tell };
        origin.serve(listener);
        origin
    }

    /// A backend that answers with its name.
    pub fn named(name: &'static str) -> Self {
        Self::new(move |_| Reply::text(name))
    }

    /// A backend that answers with the method, target and headers it got.
    pub fn echo() -> Self {
        Self::new(|request| {
            let headers: String = request.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
            Reply::text(format!("{} {}\n{headers}", request.method, request.target))
        })
    }

    /// The next request that it has received.
    pub fn request(&self) -> Request {
        self.seen.lock().unwrap().recv_timeout(Duration::from_secs(10)).expect("the origin gets a request")
    }

    /// The requests so far, health checks left out.
    pub fn drain(&self) -> Vec<Request> {
        self.seen.lock().unwrap().try_iter().filter(|request| !request.header("user-agent").starts_with("portcullis-health")).collect()
    }

    /// The process dies: connections are reset, new ones refused.
    pub fn die(&self) {
        let Some(live) = self.live.lock().unwrap().take() else { return };
        live.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then drops its socket.
        let _ = TcpStream::connect(self.address);
        live.thread.join().unwrap();
        for connection in live.connections.lock().unwrap().values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// It comes back at the same address.
    pub fn revive(&self) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&self.address.into()).unwrap();
        socket.listen(128).unwrap();
        self.serve(socket.into());
    }

    fn serve(&self, listener: TcpListener) {
        let stopped = Arc::new(AtomicBool::new(false));
        let connections: Arc<Mutex<HashMap<SocketAddr, TcpStream>>> = Arc::default();
        let (script, tell) = (self.script.clone(), self.tell.clone());
        let (stop, open) = (stopped.clone(), connections.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let Ok(peer) = stream.peer_addr() else { continue };
                open.lock().unwrap().insert(peer, stream.try_clone().unwrap());
                let (script, tell, open) = (script.clone(), tell.clone(), open.clone());
                std::thread::spawn(move || {
                    converse(stream, &*script, &tell);
                    open.lock().unwrap().remove(&peer);
                });
            }
        });
        *self.live.lock().unwrap() = Some(Live { stopped, connections, thread });
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.die();
    }
}

fn converse(stream: TcpStream, script: &Script, tell: &Sender<Request>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read_request(&mut reader) {
        if request.method == GARBAGE {
            // No server could go on: whoever sent this has lost the place.
            let _ = tell.send(request);
            let _ = stream.write_all(b"HTTP/1.1 400 Garbage\r\nContent-Length: 7\r\nConnection: close\r\n\r\ngarbage");
            return;
        }
        let head = request.method == "HEAD";
        let reply = script(&request);
        let _ = tell.send(request);
        let written = match reply {
            Reply::Http(status, headers, body) => {
                let mut text = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\n", body.len());
                for (name, value) in headers {
                    text.push_str(&format!("{name}: {value}\r\n"));
                }
                text.push_str("\r\n");
                let body = if head { Vec::new() } else { body };
                stream.write_all(&[text.into_bytes(), body].concat())
            }
            Reply::Raw(bytes) => stream.write_all(&bytes),
            Reply::RawClose(bytes) => {
                let _ = stream.write_all(&bytes);
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            Reply::Take(take) => {
                take(stream);
                return;
            }
        };
        if written.is_err() {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let line = read_line(reader)?;
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1" | "HTTP/1.0"] = words[..] else {
        return Some(Request { method: GARBAGE.to_owned(), target: line, headers: Vec::new(), body: Vec::new() });
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request = Request { method, target, headers, body: Vec::new() };
    if let Ok(length) = request.header("content-length").parse() {
        request.body = vec![0; length];
        reader.read_exact(&mut request.body).ok()?;
    } else if request.header("transfer-encoding").eq_ignore_ascii_case("chunked") {
        loop {
            let size = usize::from_str_radix(read_line(reader)?.split(';').next()?, 16).ok()?;
            let mut chunk = vec![0; size];
            reader.read_exact(&mut chunk).ok()?;
            request.body.extend(chunk);
            // The line end of the chunk, or the empty trailer section.
            read_line(reader)?;
            if size == 0 {
                break;
            }
        }
    }
    Some(request)
}

fn read_line(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    match reader.read_line(&mut line) {
        Ok(1..) => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
        _ => None,
    }
}
