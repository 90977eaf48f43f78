//! A small HTTP/1.1 server that says who it is; it can die and come back at the same address.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Socket, Type};

pub(super) struct Backend {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    alive: Arc<AtomicBool>,
}

impl Backend {
    pub(super) fn start(name: &'static str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let backend = Self { name, address: listener.local_addr()?, alive: Arc::new(AtomicBool::new(true)) };
        backend.serve(listener);
        Ok(backend)
    }

    pub(super) fn die(&self) {
        self.alive.store(false, Ordering::SeqCst);
        // Wakes the accepting thread, which then closes its socket.
        let _ = TcpStream::connect(self.address);
    }

    pub(super) fn revive(&self) -> io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&self.address.into())?;
        socket.listen(128)?;
        self.alive.store(true, Ordering::SeqCst);
        self.serve(socket.into());
        Ok(())
    }

    fn serve(&self, listener: TcpListener) {
        let (name, alive) = (self.name, self.alive.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if !alive.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let alive = alive.clone();
                // A client that leaves ends its own conversation.
                std::thread::spawn(move || drop(converse(name, stream, &alive)));
            }
        });
    }
}

fn converse(name: &str, mut stream: TcpStream, alive: &AtomicBool) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or("/").to_owned();
        let mut headers = String::new();
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            headers.push_str(&header);
        }
        if !alive.load(Ordering::SeqCst) {
            return Ok(());
        }
        stream.write_all(answer(name, &target, &headers).as_bytes())?;
    }
}

fn answer(name: &str, target: &str, headers: &str) -> String {
    let path = target.split('?').next().unwrap_or_default();
    let app = path.split('/').nth(1).unwrap_or_default();
    if path.ends_with("/login") {
        // As applications do that know nothing of a prefix.
        return format!(
            "HTTP/1.1 302 Found\r\nLocation: /{app}/\r\nSet-Cookie: session=1; Path=/{app}/; HttpOnly\r\nContent-Length: 0\r\n\r\n"
        );
    }
    let shown: String =
        headers.lines().filter(|line| line.to_ascii_lowercase().starts_with("x-")).map(|line| format!("  {line}\n")).collect();
    let body = format!("This is {name}. It was asked for {target} and told:\n{shown}");
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
