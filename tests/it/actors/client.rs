//! Clients that send just the bytes they are told to: HTTP/1 over TCP or TLS, and HTTP/2.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// An HTTP/1 connection.
pub struct Client {
    wire: Box<dyn Wire>,
    tcp: TcpStream,
    inbox: Vec<u8>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// All values of a header, joined; empty if it is not there.
    pub fn header(&self, name: &str) -> String {
        let values: Vec<_> =
            self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect();
        values.join(" | ")
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A GET on a connection of its own.
pub fn get(address: SocketAddr, host: &str, target: &str, headers: &str) -> Response {
    let mut client = Client::plain(address);
    client.request("GET", host, target, headers, b"")
}

impl Client {
    pub fn plain(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        tcp.set_nodelay(true).unwrap();
        Self { wire: Box::new(tcp.try_clone().unwrap()), tcp, inbox: Vec::new() }
    }

    /// A TLS handshake for a name; the error is what the handshake ended with.
    pub fn tls(address: SocketAddr, sni: &str, config: Arc<ClientConfig>) -> Result<(Self, TlsInfo), std::io::Error> {
        let mut tcp = TcpStream::connect(address)?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut connection = ClientConnection::new(config, ServerName::try_from(sni.to_owned()).unwrap()).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        let info = TlsInfo {
            resumed: connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            version: connection.protocol_version(),
            group: connection.negotiated_key_exchange_group().map(|group| group.name()),
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            certificate: connection.peer_certificates().unwrap()[0].clone().into_owned(),
        };
        let wire = Box::new(StreamOwned::new(connection, tcp.try_clone()?));
        Ok((Self { wire, tcp, inbox: Vec::new() }, info))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.write_all(bytes.as_ref()).unwrap();
        self.wire.flush().unwrap();
    }

    /// As `send`, where the other side may have closed already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.write_all(bytes.as_ref()).and_then(|()| self.wire.flush()).is_ok()
    }

    /// Sends a request and reads its response. `headers` are whole lines.
    pub fn request(&mut self, method: &str, host: &str, target: &str, headers: &str, body: &[u8]) -> Response {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{headers}{length}\r\n"));
        self.send(body);
        self.response(method == "HEAD")
    }

    /// Reads one final response.
    pub fn response(&mut self, head_only: bool) -> Response {
        let head = self.head();
        let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {head:?}"));
        let headers: Vec<(String, String)> = head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut response = Response { status, head, headers, body: Vec::new() };
        if head_only || matches!(status, 100..=199 | 204 | 304) {
            return response;
        }
        if response.header("transfer-encoding").eq_ignore_ascii_case("chunked") {
            response.body = self.chunked();
        } else if let Ok(length) = response.header("content-length").parse() {
            response.body = self.exactly(length);
        } else {
            response.body = self.rest();
        }
        response
    }

    /// The bytes up to the end of a head.
    pub fn head(&mut self) -> String {
        let end = loop {
            if let Some(end) = self.inbox.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.more(), "closed inside a head: {:?}", String::from_utf8_lossy(&self.inbox));
        };
        String::from_utf8(self.inbox.drain(..end).collect()).unwrap()
    }

    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.inbox.len() < length {
            assert!(self.more(), "closed after {} of {length} bytes", self.inbox.len());
        }
        self.inbox.drain(..length).collect()
    }

    fn chunked(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            let size = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("no chunk size: {line:?}"));
            body.extend(self.exactly(size));
            self.line();
            if size == 0 {
                return body;
            }
        }
    }

    fn line(&mut self) -> String {
        let end = loop {
            if let Some(end) = self.inbox.windows(2).position(|window| window == b"\r\n") {
                break end + 2;
            }
            assert!(self.more(), "closed inside a line");
        };
        String::from_utf8(self.inbox.drain(..end).collect()).unwrap()
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.inbox)
    }

    /// Whether the other side closes, without another byte.
    pub fn closes(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// What comes next, at least one byte.
    pub fn some(&mut self) -> Vec<u8> {
        if self.inbox.is_empty() {
            assert!(self.more(), "closed");
        }
        std::mem::take(&mut self.inbox)
    }

    fn more(&mut self) -> bool {
        let mut piece = [0; 16 << 10];
        match self.wire.read(&mut piece) {
            Ok(0) => false,
            Ok(read) => {
                self.inbox.extend_from_slice(&piece[..read]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => true,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof) => false,
            Err(error) => panic!("read: {error}; so far {:?}", String::from_utf8_lossy(&self.inbox)),
        }
    }

    /// The connection itself, to write from another thread; only without TLS.
    pub fn second(&self) -> TcpStream {
        self.tcp.try_clone().unwrap()
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&self) {
        self.tcp.shutdown(Shutdown::Write).unwrap();
    }
}

/// What was negotiated.
#[derive(Debug)]
pub struct TlsInfo {
    pub resumed: bool,
    pub version: Option<rustls::ProtocolVersion>,
    pub group: Option<rustls::NamedGroup>,
    pub alpn: Option<Vec<u8>>,
    /// The leaf that the server has shown.
    pub certificate: rustls::pki_types::CertificateDer<'static>,
}

/// A TLS client that trusts `roots` and offers `alpn`.
pub fn tls_config(roots: RootCertStore, alpn: &[&str], versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// An HTTP/2 connection with a runtime of its own.
pub struct H2 {
    /// With a thread of its own: the connection is answered for also while no request is under way.
    runtime: tokio::runtime::Runtime,
    send: h2::client::SendRequest<Bytes>,
}

impl H2 {
    /// By prior knowledge, without TLS.
    pub fn plain(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let send = runtime.block_on(async {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            Self::handshake(tcp).await
        });
        Self { runtime, send }
    }

    pub fn tls(address: SocketAddr, sni: &str, config: Arc<ClientConfig>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let send = runtime.block_on(async {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from(sni.to_owned()).unwrap();
            let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
            Self::handshake(tls).await
        });
        Self { runtime, send }
    }

    async fn handshake<T>(io: T) -> h2::client::SendRequest<Bytes>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = h2::client::handshake(io).await.unwrap();
        tokio::spawn(async move {
            // The proxy may end it.
            let _ = connection.await;
        });
        send
    }

    /// Sends a request whose body comes in `pieces`; the last one ends the stream, also when it is empty.
    pub fn request(&self, method: &str, url: &str, headers: &[(&str, &str)], pieces: &[&[u8]]) -> Result<Response, h2::Error> {
        let mut request = http::Request::builder().method(method).uri(url).version(http::Version::HTTP_2);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        self.runtime.block_on(async {
            let mut send = self.send.clone().ready().await?;
            let (response, mut stream) = send.send_request(request, pieces.is_empty())?;
            for (index, piece) in pieces.iter().enumerate() {
                stream.send_data(Bytes::copy_from_slice(piece), index + 1 == pieces.len())?;
                tokio::task::yield_now().await;
            }
            let response = tokio::time::timeout(Duration::from_secs(10), response).await.expect("an answer in time")?;
            let (parts, mut body) = response.into_parts();
            let mut bytes = Vec::new();
            while let Some(piece) = body.data().await {
                let piece = piece?;
                body.flow_control().release_capacity(piece.len())?;
                bytes.extend_from_slice(&piece);
            }
            let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
            Ok(Response { status: parts.status.as_u16(), head: format!("{parts:?}"), headers, body: bytes })
        })
    }
}

impl H2 {
    /// Sends a request and resets its stream once it is on its way.
    pub fn abandon(&self, method: &str, url: &str) {
        let request = http::Request::builder().method(method).uri(url).version(http::Version::HTTP_2).body(()).unwrap();
        self.runtime.block_on(async {
            let mut send = self.send.clone().ready().await.unwrap();
            let (response, mut stream) = send.send_request(request, false).unwrap();
            stream.send_data(Bytes::from_static(b"x"), true).unwrap();
            // The connection's task must have had the time to send it.
            let _ = tokio::time::timeout(Duration::from_millis(200), response).await;
            drop(stream);
            // So must the reset.
            tokio::time::sleep(Duration::from_millis(200)).await;
        });
    }
}
