//! Streams of every kind: server-sent events, uploads, WebSockets; HTTP/1.0 backends.

use std::time::SystemTime;

use crate::actors::{Ca, Client, Proxy, get};
use crate::peer::{python_client, python_server, run};

#[test]
fn events_arrive_as_they_are_sent() {
    let (_server, address) = python_server("stream_server.py", &[]);
    let proxy = Proxy::with_site(&format!("backends: ['{address}']\n"));
    let mut client = Client::plain(proxy.address());
    client.send("GET /events HTTP/1.1\r\nHost: shop.test\r\nAccept: text/event-stream\r\n\r\n");
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("text/event-stream"), "{head}");
    let mut text = String::new();
    for n in 0..5 {
        // Chunks, since the old server says no length and the client speaks HTTP/1.1.
        while text.matches("\n\n").count() <= n {
            text.push_str(&String::from_utf8(client.some()).unwrap());
        }
        let line = text.lines().find(|line| line.starts_with(&format!("data: {n} "))).unwrap();
        let sent: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(now - sent < 0.15, "event {n} was held for {} s", now - sent);
    }
    assert_eq!(get(proxy.address(), "shop.test", "/plain", "").text(), "an old answer ends with its connection");
}

#[test]
fn large_uploads_arrive_whole() {
    let (_server, address) = python_server("stream_server.py", &[]);
    let proxy = Proxy::with_site(&format!("backends: ['{address}']\n"));
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("upload");
    std::fs::write(&file, (0..25_000_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 8).to_le_bytes()).collect::<Vec<u8>>())
        .unwrap();
    let sum = run("sha256sum", &[file.to_str().unwrap()]);
    let (connect, url) =
        (format!("shop.test:{}:127.0.0.1", proxy.address().port()), format!("http://shop.test:{}/up", proxy.address().port()));
    let data = format!("@{}", file.display());
    for args in [&["--http1.1"][..], &["--http2-prior-knowledge"], &["--http1.1", "-H", "Expect: 100-continue"], &["--http1.0"]] {
        let all = [&["-sS", "--resolve", &connect, "--data-binary", &data, &url][..], args].concat();
        assert_eq!(run("curl", &all), sum.split(' ').next().unwrap(), "{args:?}");
    }
}

#[test]
fn websockets_talk_ping_and_are_silent() {
    let (_server, address) = python_server("websocket_server.py", &[]);
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    let authority = directory.path().join("ca.pem");
    std::fs::write(&authority, ca.pem()).unwrap();
    ca.issue(directory.path(), "ws", &["ws.test"]);
    let main = "listeners: [{ address: '127.0.0.1:0' }, { address: '127.0.0.1:0', tls: true }]\naccess_log: json\nstate_dir: state\nsites: sites.d/*.yaml\n";
    let site = format!(
        "domains: [ws.test]\ntls: {{ cert: ../ws.pem, key: ../ws.key }}\nhttps_redirect: false\nbackends: ['{address}']\ntimeouts: {{ websocket_idle: 1s, read: 1s }}\n"
    );
    let proxy = Proxy::start_in(directory, &[("main.yaml", main), ("sites.d/ws.yaml", &site)]);
    let (plain, tls) = (proxy.addresses[0].port(), proxy.addresses[1].port());
    let said = "text ü\npong\nstill here True\nclosed 1000\n";
    assert_eq!(python_client("websocket_client.py", &["ws://ws.test/", &plain.to_string()]), said);
    assert_eq!(python_client("websocket_client.py", &["wss://ws.test/", &tls.to_string(), authority.to_str().unwrap()]), said);
}
