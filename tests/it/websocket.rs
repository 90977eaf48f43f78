//! Upgrades, which the gate tunnels itself.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use crate::actors::{Ca, Client, Origin, PLAIN, Proxy, Reply, tls_config};

const ASK: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n";

fn ask(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: shop.test\r\n{ASK}\r\n")
}

/// Answers at once and in one write, as quick backends do, then echoes.
fn origin() -> Origin {
    Origin::new(|request| match request.target.as_str() {
        "/no" => Reply::Http(403, Vec::new(), b"nope".to_vec()).header("X-Why", "because"),
        "/chunked-no" => Reply::Raw(b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nnope\r\n0\r\n\r\n".to_vec()),
        "/die" => Reply::RawClose(Vec::new()),
        _ => Reply::Take(Box::new(|mut stream| {
            let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\nSet-Cookie: a=b; Path=/\r\n\r\nHELLO";
            let _ = stream.write_all(head);
            let mut piece = [0; 65536];
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                if stream.write_all(&piece[..read]).is_err() {
                    return;
                }
            }
            // The client is done sending: say good-bye after its end.
            let _ = stream.write_all(b"BYE");
        })),
    })
}

/// Pingora bug #946 loses the first bytes behind a quick 101 in one of a few hundred upgrades.
#[test]
fn no_first_byte_is_ever_lost() {
    let origin = origin();
    let proxy = Proxy::with_site(&format!("backends: ['{}']\nhealth_check: off\n", origin.address));
    for n in 0..1500 {
        let mut client = Client::plain(proxy.address());
        client.send(ask("/ws") + "EARLY");
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{n}: {head}");
        assert_eq!(client.exactly(10), b"HELLOEARLY", "{n}");
    }
}

#[test]
fn bytes_go_both_ways_at_once_and_each_side_may_finish_first() {
    let origin = origin();
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "shop", &["shop.test"]);
    let main = "listeners: [{ address: '127.0.0.1:0' }, { address: '127.0.0.1:0', tls: true }]\naccess_log: json\nsites: sites.d/*.yaml\n";
    let site = format!(
        "domains: [shop.test]\nhttps_redirect: false\ntls: {{ cert: ../shop.pem, key: ../shop.key }}\nbackends: ['{}']\n",
        origin.address
    );
    let proxy = Proxy::start_in(directory, &[("main.yaml", main), ("sites.d/shop.yaml", &site)]);
    let mut plain = Client::plain(proxy.addresses[0]);
    plain.send(ask("/duplex"));
    let head = plain.head();
    assert!(head.contains("Sec-WebSocket-Accept: y") && head.contains("Set-Cookie: a=b") && head.contains("Via: 1.1 portcullis"), "{head}");
    assert_eq!(plain.exactly(5), b"HELLO");
    // More than all buffers on the way hold: it stalls unless both directions run.
    let data: Vec<u8> = (0..8_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut sender = plain.second();
    let sent = data.clone();
    let writing = std::thread::spawn(move || {
        sender.write_all(&sent).unwrap();
        sender.shutdown(std::net::Shutdown::Write).unwrap();
    });
    assert!(plain.exactly(data.len()) == data);
    writing.join().unwrap();
    assert_eq!(plain.rest(), b"BYE", "the end of one direction leaves the other open");
    let line = proxy.wait_target("/duplex");
    assert_eq!(
        (line["status"].as_u64(), line["bytes_in"].as_u64(), line["bytes_out"].as_u64()),
        (Some(101), Some(8_000_000), Some(8_000_008))
    );

    let (mut tls, _) =
        Client::tls(proxy.addresses[1], "shop.test", Arc::new(tls_config(ca.roots(), &["http/1.1"], rustls::ALL_VERSIONS))).unwrap();
    tls.send(ask("/tls") + "x");
    assert!(tls.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(tls.exactly(6), b"HELLOx");
    let request = std::iter::from_fn(|| Some(origin.request())).find(|request| request.target == "/tls").unwrap();
    assert_eq!(
        (request.header("x-forwarded-proto").as_str(), request.header("connection").as_str(), request.header("upgrade").as_str()),
        ("https", "Upgrade", "websocket")
    );
    assert_eq!(request.header("host"), "shop.test");
}

#[test]
fn a_refusal_of_the_backend_is_relayed() {
    let origin = origin();
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    for (target, status) in [("/no", 403), ("/chunked-no", 401)] {
        let mut client = Client::plain(proxy.address());
        client.send(ask(target));
        let response = client.response(false);
        assert_eq!((response.status, response.text().as_str()), (status, "nope"));
        assert_eq!(response.header("connection"), "close");
        assert!(client.closes());
    }
    let mut client = Client::plain(proxy.address());
    client.send(ask("/die"));
    assert_eq!(client.response(false).status, 502);
    assert_eq!(proxy.wait_target("/die")["reason"], "backend_closed");
}

#[test]
fn upgrades_are_decided_on_like_any_request() {
    let origin = origin();
    let dead = Origin::named("dead");
    dead.die();
    let site = format!(
        "domains: [shop.test]\nbackends: ['{}', '{}']\nsticky: true\nhealth_check: off\nroutes: [{{ path: /app/, strip: /app, group: shop }}, {{ path: '=/none', users: true, app: x }}]\n",
        dead.address, origin.address
    );
    let site = site.replace(", { path: '=/none', users: true, app: x }", "");
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/shop.yaml", &site)]);
    let mut client = Client::plain(proxy.address());
    client.send(ask("/app/ws"));
    let head = client.head();
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("Set-Cookie: srv_") && head.contains("Set-Cookie: a=b; Path=/app/"),
        "{head}"
    );
    let line = {
        drop(client);
        proxy.wait_target("/app/ws")
    };
    assert_eq!((line["attempts"].as_u64(), line["group"].as_str()), (Some(2), Some("shop")), "a dead backend was passed over");
    let mut bad = Client::plain(proxy.address());
    bad.send(ask("/%2e%2e/x"));
    assert_eq!(bad.response(false).status, 400);
    let mut unknown = Client::plain(proxy.address());
    unknown.send(ask("/x").replace("shop.test", "unknown.test"));
    assert!(unknown.closes());
}

#[test]
fn a_silent_tunnel_ends_at_its_idle_timeout() {
    let origin = origin();
    let proxy = Proxy::with_site(&format!("backends: ['{}']\ntimeouts: {{ websocket_idle: 300ms }}\n", origin.address));
    let mut client = Client::plain(proxy.address());
    client.send(ask("/idle"));
    client.head();
    let began = std::time::Instant::now();
    assert_eq!(client.rest(), b"HELLO");
    assert!(began.elapsed().as_millis() >= 250);
}

#[test]
fn a_client_that_leaves_during_the_handshake_ends_the_work_done_for_it() {
    let (tell, gone) = std::sync::mpsc::channel();
    let origin = Origin::new(move |_| {
        let tell = tell.clone();
        Reply::Take(Box::new(move |mut stream| {
            let _ = std::io::Read::read(&mut stream, &mut [0; 16]);
            let _ = tell.send(());
        }))
    });
    let proxy = Proxy::with_site(&format!("backends: ['{}']\nhealth_check: off\ntimeouts: {{ read: 1h }}\n", origin.address));
    let mut client = Client::plain(proxy.address());
    client.send(ask("/ws"));
    origin.request();
    drop(client);
    gone.recv_timeout(std::time::Duration::from_secs(10)).expect("the backend's connection is closed");
    assert_eq!(proxy.wait_target("/ws")["reason"], "client_gone");
}

/// Each WebSocket is of another configuration, all of them large; none keeps its configuration in memory.
#[test]
fn an_open_websocket_does_not_hold_its_configuration() {
    let origin = origin();
    let main = format!("{PLAIN}users: users.yaml\nbackend_groups: {{ node: {{ backends: ['{}'], health_check: off }} }}\n", origin.address);
    let users: String = (0..50_000).map(|n| format!("  somebody-with-a-long-name-{n}: {{ ws: node }}\n")).collect();
    let proxy = Proxy::start(&[
        ("main.yaml", &main),
        ("sites.d/shop.yaml", "domains: [shop.test]\nroutes: [{ path: '/{user}/{app}/', users: true, strip: '/{user}/{app}' }]\n"),
        ("users.yaml", &format!("users:\n{users}")),
    ]);
    let mut open = Vec::new();
    let mut resident = Vec::new();
    for n in 0..30 {
        let mut client = Client::plain(proxy.address());
        client.send(ask(&format!("/somebody-with-a-long-name-{n}/ws/socket")));
        assert!(client.head().starts_with("HTTP/1.1 101 "));
        assert_eq!(client.exactly(5), b"HELLO");
        open.push(client);
        proxy.reload();
        resident.push(proxy.resident() >> 20);
    }
    // One table has 5 MiB; two are there while a reload puts the new one in the place of the old one.
    assert!(resident[29] < resident[9] + 30, "{resident:?}");
    for (n, client) in open.iter_mut().enumerate() {
        client.send("MORE");
        assert_eq!(client.exactly(4), b"MORE", "{n}");
        client.half_close();
        assert_eq!(client.exactly(3), b"BYE", "{n}");
    }
    let line = proxy.wait_target("/somebody-with-a-long-name-7/ws/socket");
    let told = |key: &str| line[key].as_str().unwrap().to_owned();
    assert_eq!(
        (told("user"), told("app"), told("site"), told("group")),
        ("somebody-with-a-long-name-7".into(), "ws".into(), "shop".into(), "node".into())
    );
    assert_eq!(told("backend"), origin.address.to_string());
}
