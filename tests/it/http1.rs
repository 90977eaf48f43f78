//! The gate in front of Pingora: what passes, what is refused, and how connections live and end.

use std::io::Write as _;
use std::time::Instant;

use crate::actors::{Ca, Client, H2, Origin, Proxy, Reply, tls_config};

/// A backend for every behaviour that the gate must get right.
fn origin() -> Origin {
    Origin::new(|request| match request.target.as_str() {
        "/304" => Reply::Raw(b"HTTP/1.1 304 NM\r\nETag: \"a\"\r\n\r\n".to_vec()),
        "/chunked" => Reply::Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec()),
        "/close" => Reply::RawClose(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil-close".to_vec()),
        "/http10" => Reply::RawClose(b"HTTP/1.0 200 OK\r\n\r\nold".to_vec()),
        "/continue" => Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        target => Reply::text(format!("{} {}", target, request.body.len())),
    })
}

struct Stage {
    proxy: Proxy,
    origin: Origin,
    tls: std::sync::Arc<rustls::ClientConfig>,
}

fn stage(listener: &str) -> Stage {
    let origin = origin();
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "a", &["a.test"]);
    let main = format!(
        "listeners:\n  - {{ address: '127.0.0.1:0' {listener} }}\n  - {{ address: '127.0.0.1:0', tls: true {listener} }}\naccess_log: json\nsites: sites.d/*.yaml\n"
    );
    let site =
        format!("domains: [a.test]\nhttps_redirect: false\ntls: {{ cert: ../a.pem, key: ../a.key }}\nbackends: ['{}']\n", origin.address);
    let tls = std::sync::Arc::new(tls_config(ca.roots(), &["http/1.1"], rustls::ALL_VERSIONS));
    Stage { proxy: Proxy::start_in(directory, &[("main.yaml", &main), ("sites.d/a.yaml", &site)]), origin, tls }
}

impl Stage {
    /// A client without and one with TLS: the gate must not tell them apart.
    fn clients(&self) -> [Client; 2] {
        [Client::plain(self.proxy.addresses[0]), Client::tls(self.proxy.addresses[1], "a.test", self.tls.clone()).unwrap().0]
    }
}

const H: &str = "Host: a.test\r\n";

fn g(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\n{H}\r\n")
}

#[test]
fn requests_follow_each_other_on_a_connection_however_they_are_cut() {
    let stage = stage("");
    let chunked = format!("POST /p HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n");
    let sized = format!("POST /p HTTP/1.1\r\n{H}Content-Length: 5\r\n\r\nhello");
    let big = format!("POST /p HTTP/1.1\r\n{H}Content-Length: 100000\r\n\r\n{}", "x".repeat(100_000));
    let large_chunk = format!("{chunked}186a0\r\n{}\r\n0\r\n\r\n", "y".repeat(100_000));
    let stories: Vec<(&str, String, Vec<&str>)> = vec![
        ("three", g("/1") + &g("/2") + &g("/3"), vec!["/1 0", "/2 0", "/3 0"]),
        ("length, then next", sized + &g("/2"), vec!["/p 5", "/2 0"]),
        ("much, then next", big + &g("/2"), vec!["/p 100000", "/2 0"]),
        (
            "chunks, then next",
            format!("{chunked}5;a=b\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nX-T: v\r\n\r\n{}", g("/2")),
            vec!["/p 21", "/2 0"],
        ),
        ("large chunk", large_chunk + &g("/2"), vec!["/p 100000", "/2 0"]),
        ("no body, chunked answer", g("/304") + &g("/chunked") + &g("/2"), vec!["", "hello", "/2 0"]),
        ("empty lines between", format!("\r\n\r\n{}\r\n{}", g("/1"), g("/2")), vec!["/1 0", "/2 0"]),
        ("long head", format!("GET /h HTTP/1.1\r\n{H}X: {}\r\n\r\n{}", "a".repeat(20_000), g("/2")), vec!["/h 0", "/2 0"]),
    ];
    for (name, bytes, answers) in &stories {
        for mut client in stage.clients() {
            client.send(bytes);
            for answer in answers {
                assert_eq!(client.response(false).text(), *answer, "{name}");
            }
            // The connection is still good for another one.
            client.send(g("/again"));
            assert_eq!(client.response(false).text(), "/again 0", "{name}");
        }
        // Byte by byte where that is not too long.
        if bytes.len() < 1000 {
            let [mut client, _] = stage.clients();
            for byte in bytes.as_bytes() {
                client.send([*byte]);
            }
            for answer in answers {
                assert_eq!(client.response(false).text(), *answer, "{name}, byte by byte");
            }
        }
    }
    assert!(!stage.proxy.events().contains("carrier"), "the judge is as strict as Pingora");
}

#[test]
fn old_clients_and_old_backends_are_served() {
    let stage = stage("");
    for mut client in stage.clients() {
        client.send(format!("GET /a HTTP/1.0\r\n{H}\r\n"));
        assert_eq!(client.response(false).text(), "/a 0");
        assert!(client.closes());
    }
    for mut client in stage.clients() {
        client.send(format!("GET /a HTTP/1.0\r\n{H}Connection: keep-alive\r\n\r\n"));
        assert_eq!(client.response(false).text(), "/a 0");
        client.send(format!("GET /b HTTP/1.0\r\n{H}\r\n"));
        assert_eq!(client.response(false).text(), "/b 0");
        assert!(client.closes());
    }
    for (target, body) in [("/close", "until-close"), ("/http10", "old")] {
        for mut client in stage.clients() {
            client.send(g(target));
            let response = client.response(false);
            assert_eq!((response.text().as_str(), response.head.starts_with("HTTP/1.1 200")), (body, true), "{target}");
        }
    }
    for mut client in stage.clients() {
        client.send(format!("GET /a HTTP/1.1\r\n{H}Connection: close\r\n\r\n{}", g("/never")));
        assert_eq!(client.response(false).text(), "/a 0");
        assert!(client.closes());
        client = stage.clients().into_iter().next().unwrap();
        client.send(format!("HEAD /head HTTP/1.1\r\n{H}\r\n{}", g("/next")));
        assert_eq!(client.response(true).header("content-length"), "7");
        assert_eq!(client.response(false).text(), "/next 0");
    }
    assert!(stage.origin.drain().iter().all(|request| request.target != "/never"));
}

#[test]
fn ambiguous_requests_are_answered_and_closed() {
    let stage = stage("");
    let post = |lines: &str| format!("POST / HTTP/1.1\r\n{H}{lines}\r\n\r\nhello");
    for (bytes, status) in [
        (post("Content-Length: 5\r\nTransfer-Encoding: chunked"), 400),
        (post("Content-Length: 5\r\nTransfer-Encoding: chunked").replace("hello", "0\r\n\r\n"), 400),
        (post("Content-Length: 5\r\nContent-Length: 5"), 400),
        (post("Content-Length: +5"), 400),
        (post("Transfer-Encoding: identity"), 400),
        ("GET / HTTP/1.1\nHost: a.test\n\n".into(), 400),
        (format!("GET / HTTP/1.1\r\n{H}{H}\r\n"), 400),
        (format!("GET / HTTP/1.1\r\n{H}X: a\r\n b\r\n\r\n"), 400),
        (format!("CONNECT a.test:443 HTTP/1.1\r\n{H}\r\n"), 405),
        (format!("GET / HTTP/1.1\r\n{H}X: {}\r\n\r\n", "a".repeat(40_000)), 431),
        (format!("GET / HTTP/1.1\r\n{H}{}\r\n", "X: 1\r\n".repeat(200)), 431),
        ("GET http://other.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".into(), 400),
    ] {
        for mut client in stage.clients() {
            client.send(&bytes);
            assert_eq!(client.response(false).status, status, "{bytes:.80}");
            assert!(client.closes(), "{bytes:.80}");
        }
    }
    assert!(stage.origin.drain().is_empty());
}

#[test]
fn a_bad_chunk_ends_the_request_on_both_sides() {
    let stage = stage("");
    let head = format!("POST /p HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n");
    for chunk in [
        "g\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5;\x01\r\nhello\r\n",
        "0x5\r\nhello\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "0\r\nA: b\n\r\n",
    ] {
        for late in [false, true] {
            for mut client in stage.clients() {
                let good = if late { "3\r\nabc\r\n" } else { "" };
                client.send(format!("{head}{good}"));
                client.send(chunk);
                let response = client.response(false);
                assert_eq!(response.status, 400, "{chunk:?} late: {late}");
                assert!(client.closes());
            }
        }
    }
    // What reached the backend was never complete, so it saw no request.
    assert!(stage.origin.drain().is_empty());
    stage.proxy.wait_access(|line| line["reason"] == "bad_chunk");
}

#[test]
fn a_head_has_a_deadline_however_it_trickles() {
    let stage = stage(", header_deadline: 300ms");
    for mut client in stage.clients() {
        client.send("GET / HT");
        assert_eq!(client.response(false).status, 408);
        assert!(client.closes());
    }
    // On a second request as well, and against a steady drip.
    for mut client in stage.clients() {
        client.send(g("/first"));
        assert_eq!(client.response(false).status, 200);
        let began = Instant::now();
        client.send("GET /");
        while began.elapsed().as_secs() < 8 && client.try_send("x") {
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
        assert!(began.elapsed().as_millis() < 5_000, "{:?}", began.elapsed());
    }
    stage.proxy.wait_access(|line| line["reason"] == "header_deadline");
}

#[test]
fn keep_alive_ends_by_time_and_by_count() {
    let timed = stage(", keep_alive: 300ms");
    for which in 0..2 {
        let mut client = timed.clients().into_iter().nth(which).unwrap();
        client.send(g("/a"));
        assert_eq!(client.response(false).header("connection"), "keep-alive");
        let began = Instant::now();
        assert!(client.closes());
        assert!(began.elapsed().as_millis() >= 250, "{:?}", began.elapsed());
    }
    let counted = stage(", max_requests: 2");
    for mut client in counted.clients() {
        client.send(g("/a"));
        assert_eq!(client.response(false).header("connection"), "keep-alive");
        client.send(g("/b"));
        assert_eq!(client.response(false).header("connection"), "close");
        assert!(client.closes());
    }
}

#[test]
fn an_answer_for_a_dead_backend_says_that_it_ends_the_connection() {
    let stage = stage("");
    let once = |mut client: Client, request: &str| {
        client.send(request);
        let answer = client.response(false);
        assert!([502, 503].contains(&answer.status), "{}", answer.head);
        assert_eq!(answer.header("connection"), "close", "{}", answer.head);
        assert!(client.closes());
    };
    stage.origin.die();
    // At first the backend refuses, then none is eligible.
    for _ in 0..3 {
        for client in stage.clients() {
            once(client, &g("/a"));
        }
        for client in stage.clients() {
            once(client, &format!("POST /a HTTP/1.1\r\n{H}Content-Length: 3\r\n\r\nabc"));
        }
    }
}

#[test]
fn connections_beyond_the_limit_wait_for_a_place() {
    let stage = stage(", max_connections: 2");
    let address = stage.proxy.addresses[0];
    let mut held: Vec<Client> = (0..2).map(|_| Client::plain(address)).collect();
    for client in &mut held {
        client.send(g("/held"));
        assert_eq!(client.response(false).status, 200);
    }
    let mut waiting = Client::plain(address);
    waiting.send(g("/waiting"));
    stage.proxy.wait_event("2 connections, the limit");
    assert!(stage.origin.drain().iter().all(|request| request.target == "/held"));
    held.pop();
    assert_eq!(waiting.response(false).text(), "/waiting 0");
}

#[test]
fn an_early_answer_arrives_though_the_body_goes_on() {
    let early = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = early.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in early.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 1024];
            if std::io::Read::read(&mut stream, &mut head).is_ok_and(|read| read > 0) {
                let _ = stream.write_all(b"HTTP/1.1 413 Too\r\nContent-Length: 3\r\n\r\nbig");
                // Keeps the connection and reads nothing more.
                std::mem::forget(stream);
            }
        }
    });
    let proxy = Proxy::with_site(&format!("backends: ['{address}']\nhealth_check: off\n"));
    let mut client = Client::plain(proxy.address());
    client.send("POST /early HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 50000000\r\n\r\n");
    client.send(vec![b'x'; 1000]);
    let response = client.response(false);
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
    let began = Instant::now();
    // It goes on for as long as it is let, and is not let for long.
    while client.try_send(vec![b'x'; 10_000]) && began.elapsed().as_secs() < 20 {}
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
}

#[test]
fn bodies_stream_both_ways_without_being_held() {
    // Each side sends a piece only when it has the other's.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
        let mut until = |end: &str| {
            let mut line = String::new();
            while !line.ends_with(end) {
                assert!(std::io::BufRead::read_line(&mut reader, &mut line).unwrap() > 0);
            }
        };
        until("\r\n\r\n");
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        for _ in 0..5 {
            until("ping!\r\n");
            stream.write_all(b"5\r\npong!\r\n").unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
        until("0\r\n\r\n");
    });
    let proxy = Proxy::with_site(&format!("backends: ['{address}']\nhealth_check: off\n"));
    let mut client = Client::plain(proxy.address());
    client.send("POST /duplex HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.head();
    for _ in 0..5 {
        client.send("5\r\nping!\r\n");
        assert_eq!(client.exactly(10), b"5\r\npong!\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.exactly(5), b"0\r\n\r\n");
}

#[test]
fn a_large_answer_to_a_slow_client_is_not_kept_in_memory() {
    let piece = vec![b'z'; 1 << 20];
    let origin = Origin::new(move |_| {
        let piece = piece.clone();
        Reply::Take(Box::new(move |mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 209715200\r\n\r\n");
            for _ in 0..200 {
                if stream.write_all(&piece).is_err() {
                    return;
                }
            }
        }))
    });
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let before = proxy.resident();
    let mut client = Client::plain(proxy.address());
    client.send("GET /large HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    client.head();
    client.exactly(1 << 20);
    // Whatever can be buffered is buffered by now, or the origin would still be sending.
    let grown = proxy.resident().saturating_sub(before);
    assert!(grown < 40 << 20, "{} MiB", grown >> 20);
    for _ in 1..200 {
        client.exactly(1 << 20);
    }
    assert_eq!(proxy.wait_target("/large")["bytes_out"], 209_715_200);
}

#[test]
fn expect_continue_is_passed_on() {
    let stage = stage("");
    for mut client in stage.clients() {
        client.send(format!("POST /e HTTP/1.1\r\n{H}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"));
        client.send("hello");
        let response = client.response(false);
        let last = if response.status == 100 { client.response(false) } else { response };
        assert_eq!(last.text(), "/e 5");
    }
}

#[test]
fn ports_survive_nonsense() {
    let stage = stage("");
    let mut seed = 12345_u64;
    for round in 0..200 {
        let mut bytes = Vec::new();
        for _ in 0..(round * 7 % 400) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.push((seed >> 33) as u8);
        }
        let mut client = Client::plain(stage.proxy.addresses[round % 2]);
        let _ = client.try_send(&bytes);
        if round % 3 == 0 {
            client.half_close();
        }
    }
    let [mut plain, mut tls] = stage.clients();
    plain.send(g("/after"));
    tls.send(g("/after"));
    assert_eq!((plain.response(false).status, tls.response(false).status), (200, 200));
    assert!(!stage.proxy.events().contains("panic"), "{}", stage.proxy.events());
}

#[test]
fn an_http10_client_never_gets_chunks() {
    let stage = stage("");
    for (target, body) in [("/chunked", "hello"), ("/close", "until-close"), ("/sized", "/sized 0")] {
        for mut client in stage.clients() {
            client.send(format!("GET {target} HTTP/1.0\r\n{H}\r\n"));
            let answer = String::from_utf8(client.rest()).unwrap();
            assert!(
                !answer.to_ascii_lowercase().contains("transfer-encoding") && answer.ends_with(&format!("\r\n\r\n{body}")),
                "{target}: {answer}"
            );
        }
    }
}

#[test]
fn a_switch_that_nobody_asked_for_is_an_error() {
    let origin = Origin::new(|_| Reply::Raw(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\nzzz".to_vec()));
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let mut client = Client::plain(proxy.address());
    assert_eq!(client.request("GET", "shop.test", "/", "", b"").status, 502);
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(Client::plain(proxy.address()).request("GET", "shop.test", "/", upgrade, b"").status, 502);
}

#[test]
fn a_stalled_upload_is_the_clients_fault() {
    let origin = Origin::named("never");
    let site = format!("backends: ['{}']\ntimeouts: {{ read: 300ms }}\n", origin.address);
    let proxy = Proxy::with_site(&site);
    let mut client = Client::plain(proxy.address());
    client.send("POST /stalled HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(client.response(false).status, 408);
    assert_eq!(proxy.wait_target("/stalled")["reason"], "client_timeout");
}

#[test]
fn a_client_that_takes_nothing_is_cut_off_and_frees_its_backend() {
    let (tell, freed) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let origin = Origin::new(move |_| {
        let tell = tell.lock().unwrap().clone();
        Reply::Take(Box::new(move |mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
            while stream.write_all(&[b'z'; 1 << 16]).is_ok() {}
            tell.send(()).unwrap();
        }))
    });
    let main = crate::actors::PLAIN.replace("\"127.0.0.1:0\"", "\"127.0.0.1:0\", send_timeout: 300ms");
    let site = format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address);
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let mut client = Client::plain(proxy.address());
    client.send("GET /all HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    freed.recv_timeout(std::time::Duration::from_secs(20)).expect("the backend is let go");
    assert_eq!(proxy.wait_target("/all")["reason"], "client_gone");
}

#[test]
fn a_204_has_neither_length_nor_chunks() {
    let origin = Origin::new(|_| Reply::Raw(b"HTTP/1.1 204 No\r\nContent-Length: 0\r\nX-Kept: 1\r\n\r\n".to_vec()));
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let mut client = Client::plain(proxy.address());
    for _ in 0..2 {
        let response = client.request("GET", "shop.test", "/", "", b"");
        assert_eq!(
            (response.status, response.header("content-length"), response.header("transfer-encoding"), response.header("x-kept")),
            (204, String::new(), String::new(), "1".into())
        );
    }
}

/// What is safe to repeat is repeated whole: the second backend gets every byte.
#[test]
fn a_body_is_whole_at_the_second_backend() {
    let count = || Origin::new(|request| Reply::text(request.body.iter().map(|b| u64::from(*b)).sum::<u64>().to_string()));
    let (dead, alive) = (count(), count());
    dead.die();
    let proxy = Proxy::with_site(&format!("backends: ['{}', '{}']\nhealth_check: off\nsticky: true\n", dead.address, alive.address));
    let body: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    let sum: u64 = body.iter().map(|b| u64::from(*b)).sum();
    let mut moved = 0;
    for _ in 0..2 {
        let response = Client::plain(proxy.address()).request("POST", "shop.test", "/sum", "", &body);
        assert_eq!(response.text(), sum.to_string());
        assert!(response.header("set-cookie").starts_with("srv_"), "the cookie is the second backend's");
        moved += proxy.wait_target("/sum")["attempts"].as_u64().unwrap();
    }
    assert!(moved >= 2);
}

#[test]
fn interim_answers_come_before_the_final_one() {
    let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let origin = Origin::new(move |_| Reply::Raw(hints.to_vec()));
    let proxy = Proxy::with_site(&format!("backends: ['{}']\nhealth_check: off\n", origin.address));
    let mut client = Client::plain(proxy.address());
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        let interim = client.head();
        assert!(interim.starts_with("HTTP/1.1 103") && interim.to_lowercase().contains("link: </a.css>"), "{interim}");
        let last = client.response(false);
        assert_eq!((last.status, last.text().as_str()), (200, "ok"));
    }
    let h2 = H2::plain(proxy.address()).request("GET", "http://shop.test/", &[], &[]).unwrap();
    assert_eq!((h2.status, h2.text().as_str()), (200, "ok"));
}
