//! Limits of requests, the timeouts that fire, and clients that go away.

use std::io::{Read as _, Write as _};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::actors::{Client, H2, Origin, PLAIN, Proxy, Reply};

#[test]
fn a_body_that_is_too_large_is_413_however_it_comes() {
    let origin = Origin::new(|request| Reply::text(request.body.len().to_string()));
    let main = format!("{PLAIN}defaults: {{ max_body: 1KiB }}\n");
    let site = format!(
        "domains: [shop.test]\nbackends: ['{}']\nroutes:\n  - {{ path: /big/, max_body: 4KiB }}\n  - {{ path: /any/, max_body: off }}\n",
        origin.address
    );
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let sized = |target: &str, length: usize| {
        let mut client = Client::plain(proxy.address());
        client.request("POST", "shop.test", target, "", &vec![b'x'; length])
    };
    for (target, length, status) in
        [("/", 1024, 200), ("/", 1025, 413), ("/big/", 1025, 200), ("/big/", 4097, 413), ("/any/", 300_000, 200)]
    {
        let answer = sized(target, length);
        assert_eq!(answer.status, status, "{target} {length}");
        assert!(status != 200 || answer.text() == length.to_string());
    }
    let chunked = |length: usize| {
        let mut client = Client::plain(proxy.address());
        let body = format!("{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length));
        client.send(format!("POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        client.response(false).status
    };
    assert_eq!((chunked(1024), chunked(1025)), (200, 413));
    let h2 = H2::plain(proxy.address());
    let by_h2 = |length: usize| h2.request("POST", "http://shop.test/", &[], &[&vec![b'x'; length]]).unwrap().status;
    assert_eq!((by_h2(1024), by_h2(1025), by_h2(10)), (200, 413, 200));
    let line = proxy.wait_access(|line| line["status"] == 413);
    assert_eq!(line["reason"], "body_too_large");
    assert!(origin.drain().iter().all(|request| request.body.len() <= 300_000));
}

#[test]
fn each_timeout_is_named_and_the_narrowest_scope_decides() {
    let silent = Origin::new(|_| Reply::Take(Box::new(|mut stream| drop(stream.read_to_end(&mut Vec::new())))));
    // The queue of this socket is full: nobody accepts.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let full_address = full.local_addr().unwrap().as_socket().unwrap();
    let _fill: Vec<_> =
        (0..4).filter_map(|_| std::net::TcpStream::connect_timeout(&full_address, Duration::from_millis(300)).ok()).collect();
    let main = format!(
        "{PLAIN}defaults: {{ timeouts: {{ read: 20s, connect: 20s }}, health_check: off }}\nbackend_groups:\n  silent: {{ backends: ['{0}'], timeouts: {{ read: 200ms }} }}\n  \
         slow: {{ backends: ['{0}'] }}\n  full: {{ backends: ['{full_address}'], timeouts: {{ connect: 200ms }} }}\n",
        silent.address
    );
    let site = "domains: [shop.test]\ngroup: silent\nroutes:\n  - { path: /slow/, group: slow, timeouts: { read: 300ms } }\n  - { path: /full/, group: full }\n";
    let by_site = "domains: [site.test]\ngroup: slow\ntimeouts: { read: 250ms }\n";
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", site), ("sites.d/site.yaml", by_site)]);
    for (host, target, reason, least) in [
        ("shop.test", "/", "read_timeout", 200),
        ("shop.test", "/slow/", "read_timeout", 300),
        ("site.test", "/", "read_timeout", 250),
        ("shop.test", "/full/", "connect_timeout", 200),
    ] {
        let began = Instant::now();
        let answer = Client::plain(proxy.address()).request("GET", host, target, "", b"");
        let took = began.elapsed();
        assert_eq!(answer.status, 504, "{host}{target}");
        assert!(took >= Duration::from_millis(least) && took < Duration::from_secs(10), "{host}{target} {took:?}");
        let line = proxy.wait_access(|line| line["target"] == target && line["host"] == host);
        assert_eq!(line["reason"], reason, "{host}{target}");
    }
}

#[test]
fn a_backend_that_does_not_read_is_a_send_timeout() {
    // It may have answered early, so that its answer is waited for as long as `read` says.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let held = std::thread::spawn(move || listener.incoming().take(1).map(Result::unwrap).collect::<Vec<_>>());
    let proxy = Proxy::with_site(&format!("backends: ['{address}']\nhealth_check: off\ntimeouts: {{ send: 300ms, read: 500ms }}\n"));
    let mut client = Client::plain(proxy.address());
    client.send("POST /up HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 100000000\r\n\r\n");
    let mut second = client.second();
    let sender = std::thread::spawn(move || while second.write_all(&[0; 65536]).is_ok() {});
    assert_eq!(client.response(false).status, 504);
    assert_eq!(proxy.wait_target("/up")["reason"], "send_timeout");
    drop(client);
    sender.join().unwrap();
    drop(held.join().unwrap());
}

#[test]
fn a_client_that_goes_away_ends_the_work_done_for_it() {
    let (tell, gone) = channel();
    let origin = Origin::new(move |_| {
        let tell = tell.clone();
        Reply::Take(Box::new(move |mut stream| {
            // The backend is at work; it learns that nobody waits any more.
            let _ = stream.read(&mut [0; 16]);
            let _ = tell.send(());
        }))
    });
    let proxy = Proxy::with_site(&format!("backends: ['{}']\nhealth_check: off\n", origin.address));
    let mut client = Client::plain(proxy.address());
    client.send("GET /work HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    origin.request();
    drop(client);
    gone.recv_timeout(Duration::from_secs(10)).expect("the backend's connection is closed");
    let line = proxy.wait_target("/work");
    assert_eq!((line["status"].as_u64(), line["reason"].as_str()), (Some(499), Some("client_gone")));
    // The same for a stream of HTTP/2, whose connection stays.
    let h2 = H2::plain(proxy.address());
    h2.abandon("GET", "http://shop.test/stream");
    origin.request();
    gone.recv_timeout(Duration::from_secs(10)).expect("a reset stream ends its backend's work");
}
