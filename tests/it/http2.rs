//! HTTP/2 by prior knowledge and ALPN, and its bodies on HTTP/1 backends.

use crate::actors::{Client, GARBAGE, H2, Origin, PLAIN, Proxy, Reply, get};

fn upload_counter() -> Origin {
    Origin::new(|request| Reply::text(format!("{} {} {}", request.target, request.body.len(), request.header("transfer-encoding"))))
}

#[test]
fn an_empty_last_piece_does_not_put_the_backend_out_of_step() {
    // Pingora bug #935: the last chunk was written twice, and the next answer on the connection was read out of step.
    let origin = upload_counter();
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let h2 = H2::plain(proxy.address());
    for n in 0..30 {
        let url = format!("http://shop.test/{n}");
        let response = h2.request("POST", &url, &[], &[b"hello", b""]).unwrap();
        assert_eq!((response.status, response.text()), (200, format!("/{n} 5 chunked")));
        let target = format!("/get{n}");
        let between = get(proxy.address(), "shop.test", &target, "");
        assert_eq!(between.text(), format!("{target} 0 "), "the next request on the backend's connection gets its own answer");
    }
    let garbage: Vec<_> = origin.drain().into_iter().filter(|request| request.method == GARBAGE).collect();
    assert!(garbage.is_empty(), "{} of 30 uploads left {:?} behind", garbage.len(), garbage.first().map(|request| &request.target));
}

#[test]
fn bodies_of_every_shape_arrive_whole() {
    let origin = upload_counter();
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let h2 = H2::plain(proxy.address());
    let big = vec![b'x'; 60_000];
    for (pieces, length) in [(&[&b""[..]][..], 0), (&[b"a", b"b", b"c"], 3), (&[&big, &big, &big], 180_000), (&[&big, b""], 60_000)] {
        let response = h2.request("POST", "http://shop.test/up", &[], pieces).unwrap();
        assert!(response.text().starts_with(&format!("/up {length} ")), "{}", response.text());
    }
    let sized = h2.request("PUT", "http://shop.test/sized", &[("content-length", "5")], &[b"hello"]).unwrap();
    assert_eq!(sized.text(), "/sized 5 ");
}

#[test]
fn many_streams_share_a_connection_and_errors_are_pages() {
    let origin = Origin::echo();
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let h2 = H2::plain(proxy.address());
    for n in 0..50 {
        let response = h2.request("GET", &format!("http://shop.test/{n}"), &[("cookie", "a=b"), ("cookie", "c=d")], &[]).unwrap();
        assert!(response.text().starts_with(&format!("GET /{n}\n")), "{}", response.text());
        assert!(response.text().contains("Host: shop.test"), "{}", response.text());
        let cookies: Vec<_> =
            response.text().lines().filter(|line| line.to_ascii_lowercase().starts_with("cookie:")).map(str::to_owned).collect();
        assert_eq!(cookies, ["cookie: a=b; c=d"], "HTTP/1 backends read one header (RFC 9113 section 8.2.3)");
    }
    let bad = h2.request("GET", "http://shop.test/%2e%2e/x", &[], &[]).unwrap();
    assert_eq!(bad.status, 400);
    let mismatch = h2.request("GET", "http://shop.test/", &[("host", "other.test")], &[]).unwrap();
    assert_eq!(mismatch.status, 400);
    let unknown = h2.request("GET", "http://unknown.test/", &[], &[]);
    assert!(unknown.is_err(), "an unknown host gets no answer: {unknown:?}");
    assert_eq!(h2.request("GET", "http://shop.test/after", &[], &[]).unwrap().status, 200, "its connection serves known ones");
}

#[test]
fn a_client_that_never_finishes_its_preface_is_let_go() {
    let main = PLAIN.replace("\"127.0.0.1:0\"", "\"127.0.0.1:0\", header_deadline: 300ms");
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/s.yaml", "domains: [shop.test]\nbackends: ['127.0.0.1:9']\n")]);
    let mut client = Client::plain(proxy.address());
    client.send("PRI * HTTP/2.0\r\n\r\nS");
    let answer = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[test]
fn heads_have_the_same_limits_as_in_http1() {
    let origin = Origin::named("x");
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let h2 = H2::plain(proxy.address());
    let names: Vec<String> = (0..150).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    assert_eq!(h2.request("GET", "http://shop.test/", &many, &[]).unwrap().status, 431);
    let long = "a".repeat(40_000);
    assert_eq!(h2.request("GET", "http://shop.test/", &[("x-long", &long)], &[]).unwrap().status, 431);
    assert_eq!(h2.request("GET", "http://shop.test/", &many[..50], &[]).unwrap().status, 200);
}
