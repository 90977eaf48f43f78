//! The gate with filters that panic, on several threads: a panic costs its request and nothing else.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::gate::Gate;
use super::wire::{Conn, Facts, Home};
use super::*;
use crate::config::{AccessLog, Listener, LogFormat, LogTarget};
use crate::snapshot::Snapshot;

/// Answers `/good`, panics at `/filter`, at `/peer`, and at `/late` with half an answer sent.
struct Panics;

#[async_trait]
impl ProxyHttp for Panics {
    type CTX = ();
    fn new_ctx(&self) {}

    fn on_connection_reuse(&self, _: &mut Session, (): &mut (), home: Box<dyn Any + Send + Sync>) {
        home.downcast::<Arc<Home>>().unwrap().admit();
    }

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> Result<bool> {
        match session.req_header().uri.path() {
            "/filter" => panic!("in a filter"),
            "/peer" => return Ok(false),
            path => {
                let late = path == "/late";
                let mut head = ResponseHeader::build(200, None)?;
                head.insert_header("Content-Length", "4")?;
                session.write_response_header(Box::new(head), false).await?;
                assert!(!late, "with half an answer sent");
                session.write_response_body(Some("good".into()), true).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        panic!("while choosing a backend")
    }
}

fn gate() -> Arc<Gate<Panics>> {
    tls::install_provider();
    let snapshot = Snapshot { generation: 1, rules: Arc::default(), groups: Arc::new([]), checked: Arc::default() };
    let shared = Shared {
        current: Current::new(snapshot),
        log: AccessLogger::open(&AccessLog { format: LogFormat::Json, target: LogTarget::Off }).unwrap(),
        drain: Drain::default(),
        tls: tls::Shared::new(tls::tickets::Tickets::new().unwrap()),
        request_ids: RequestIds::new(1),
        connector: TransportConnector::new(None),
    };
    let carrier = Arc::new(pingora_proxy::http_proxy(&Arc::new(ServerConf::default()), Panics));
    Arc::new(Gate { carrier, shared: Arc::new(shared) })
}

/// Sends bytes over a connection and gives all that comes back.
async fn ask(gate: &Arc<Gate<Panics>>, bytes: String) -> String {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let listener = Listener {
        name: "test".to_owned(),
        address: "127.0.0.1:1".parse().unwrap(),
        tls: false,
        freebind: false,
        keep_alive: Duration::from_secs(5),
        header_deadline: Duration::from_secs(5),
        send_timeout: Duration::from_secs(5),
        max_header_size: 4096,
        max_connections: 1,
        max_requests: 100,
    };
    let facts = Facts {
        peer: "127.0.0.1:2".parse().unwrap(),
        local_port: 1,
        listener: Arc::new(listener),
        tls: None,
        finish: tokio::sync::watch::channel(false).1,
        fd: -1,
    };
    let served = tokio::spawn(gate.clone().serve(Conn::new(Box::new(server), facts)));
    client.write_all(bytes.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    served.await.expect("the connection's own task never panics");
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_panic_costs_one_request() {
    let gate = gate();
    let mut tasks = Vec::new();
    for n in 0..40 {
        let gate = gate.clone();
        tasks.push(tokio::spawn(async move {
            let path = ["/filter", "/peer", "/late", "/good"][n % 4];
            (path, ask(&gate, get("/good") + &get(path)).await)
        }));
    }
    for task in tasks {
        let (path, answer) = task.await.unwrap();
        let answers: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).collect();
        assert!(answers[0].starts_with("200 OK") && answers[0].ends_with("good"), "{answer}");
        match path {
            "/good" => assert!(answers[1].ends_with("good"), "{answer}"),
            "/late" => assert!(!answer.contains("500"), "half an answer is not followed by another: {answer}"),
            _ => assert!(answers[1].starts_with("500 Internal Server Error"), "{path}: {answer}"),
        }
    }
    assert!(ask(&gate, get("/good")).await.ends_with("good"), "all others go on");
}
