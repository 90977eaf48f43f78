//! Headers as the configuration wants them, on requests and answers, per site and route.

use crate::actors::{Client, H2, Origin, PLAIN, Proxy, Reply};

fn told() -> Origin {
    Origin::new(|_| {
        Reply::text("ok")
            .header("Server", "secret/1.0")
            .header("X-Powered-By", "PHP/5")
            .header("X-Old", "kept")
            .header("Cache-Control", "a")
    })
}

#[test]
fn headers_are_renamed_removed_set_and_added() {
    let origin = told();
    let main = format!(
        "{PLAIN}defaults:\n  response_headers: {{ remove: [Server], set: {{ X-Frame-Options: DENY, X-Wide: wide }} }}\n  request_headers: {{ set: {{ X-Edge: one }} }}\n"
    );
    let site = format!(
        "domains: ['{{user}}.shop.test', shop.test]\nbackends: ['{}']\nresponse_headers: {{ remove: [X-Powered-By], set: {{ X-Wide: site }} }}\n\
         routes:\n  - path: /a/{{thing}}/\n    request_headers:\n      rename: {{ X-Token: Authorization }}\n      remove: [Accept, X-Forwarded-Port]\n      \
         set: {{ X-Edge: '{{method}} {{host}} {{path}}?{{query}} {{thing}} {{client_address}} {{group}}', X-Many: only }}\n      add: {{ X-Many: more }}\n    \
         response_headers: {{ rename: {{ X-Old: X-New }}, set: {{ X-Backend: '{{backend}}', X-Wide: route }}, add: {{ Cache-Control: b }} }}\n",
        origin.address
    );
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let mut client = Client::plain(proxy.address());
    let answer =
        client.request("GET", "shop.test", "/a/tea/x?q=1", "X-Token: t\r\nAccept: text/html\r\nX-Many: theirs\r\nX-Edge: forged\r\n", b"");
    let seen = origin.drain().pop().unwrap();
    assert_eq!(seen.header("authorization"), "t");
    assert_eq!(
        (seen.header("x-token"), seen.header("accept"), seen.header("x-forwarded-port")),
        (String::new(), String::new(), String::new())
    );
    assert_eq!(seen.header("x-edge"), "GET shop.test /a/tea/x?q=1 tea 127.0.0.1 shop");
    assert_eq!(seen.header("x-many"), "only | more");
    let got = |name: &str| answer.header(name);
    assert_eq!(
        (got("server"), got("x-powered-by"), got("x-old"), got("x-new")),
        (String::new(), String::new(), String::new(), "kept".into())
    );
    assert_eq!((got("x-frame-options"), got("x-wide")), ("DENY".into(), "route".into()));
    assert_eq!(got("x-backend"), origin.address.to_string());
    assert!(answer.head.contains("a\r\n") && answer.head.to_lowercase().contains("cache-control: b"), "{}", answer.head);
    // Another route of the site, and an answer of our own.
    let other = client.request("GET", "shop.test", "/b", "X-Token: t\r\n", b"");
    assert_eq!((other.header("x-wide"), other.header("x-old"), other.header("server")), ("site".into(), "kept".into(), String::new()));
    let seen = origin.drain().pop().unwrap();
    assert_eq!((seen.header("x-edge"), seen.header("x-token")), ("one".into(), "t".into()));
    let own = client.request("GET", "shop.test", "/%00", "", b"");
    assert_eq!((own.status, own.header("x-wide"), own.header("x-frame-options")), (400, "site".into(), "DENY".into()));
    let h2 = H2::plain(proxy.address()).request("GET", "http://shop.test/a/tea/y", &[("x-token", "h2")], &[]).unwrap();
    assert_eq!(h2.header("x-new"), "kept");
    let seen = origin.drain().pop().unwrap();
    assert_eq!((seen.header("authorization"), seen.header("host")), ("h2".into(), "shop.test".into()));
}

#[test]
fn a_secret_header_is_only_ours_to_send() {
    let origin = told();
    let site = format!(
        "domains: [shop.test]\nbackends: ['{}']\nroutes:\n  - {{ path: /in/, request_headers: {{ set: {{ X-Secret: '${{file:../secret}}' }} }} }}\n",
        origin.address
    );
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("secret", "s3cret {path}\n"), ("sites.d/shop.yaml", &site)]);
    let mut client = Client::plain(proxy.address());
    client.request("GET", "shop.test", "/in/", "X-Secret: forged\r\n", b"");
    assert_eq!(origin.drain().pop().unwrap().header("x-secret"), "s3cret {path}", "it is taken as it is");
    client.request("GET", "shop.test", "/other", "X-Secret: forged\r\nX_Secret: forged\r\nx.secret: forged\r\nX-Secrets: fine\r\n", b"");
    let seen = origin.drain().pop().unwrap();
    assert_eq!(seen.header("x-secret"), "", "also where it is not set");
    assert_eq!((seen.header("x_secret"), seen.header("x.secret"), seen.header("x-secrets")), (String::new(), String::new(), "fine".into()));
}

#[test]
fn what_a_stranger_says_of_itself_is_nobodys_value() {
    let origin = told();
    let site = format!(
        "domains: [shop.test]\nbackends: ['{}']\nrequest_headers: {{ set: {{ X-Copy: '{{header.x-real-ip}}|{{header.x-forwarded-for}}|{{header.x-secret}}', X-Secret: '${{file:../secret}}' }} }}\n\
         routes: [{{ path: /, headers: {{ X-Forwarded-Proto: https }}, respond: 204 }}]\n",
        origin.address
    );
    let trusting = format!("{PLAIN}trusted_proxies: [127.0.0.1]\n");
    let headers = "X-Real-IP: 6.6.6.6\r\nX-Forwarded-For: 1.2.3.4\r\nX-Secret: forged\r\nX-Forwarded-Proto: https\r\n";
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("secret", "s"), ("sites.d/shop.yaml", &site)]);
    let answer = Client::plain(proxy.address()).request("GET", "shop.test", "/", headers, b"");
    assert_eq!(answer.status, 200, "a stranger's X-Forwarded-Proto meets no condition");
    assert_eq!(origin.drain().pop().unwrap().header("x-copy"), "||");
    let proxy = Proxy::start(&[("main.yaml", &trusting), ("secret", "s"), ("sites.d/shop.yaml", &site)]);
    assert_eq!(Client::plain(proxy.address()).request("GET", "shop.test", "/", headers, b"").status, 204);
}

#[test]
fn values_of_a_request_cannot_break_out_of_a_header() {
    let origin = told();
    let proxy = Proxy::with_site(&format!(
        "backends: ['{}']\nrequest_headers: {{ set: {{ X-Q: '{{query.x}}', X-P: '{{path}}', X-C: '{{cookie.c}}', X-H: '{{header.y}}' }} }}\n",
        origin.address
    ));
    let mut client = Client::plain(proxy.address());
    let answer = client.request("GET", "shop.test", "/a%0d%0aEvil:1?x=%0d%0aEvil:2", "Cookie: c=\u{e4}\tx\r\nY: \u{fc} z\r\n", b"");
    assert_eq!(answer.status, 200);
    let seen = origin.drain().pop().unwrap();
    assert_eq!((seen.header("x-p"), seen.header("x-q")), ("/a%0D%0AEvil:1".into(), "%0d%0aEvil:2".into()));
    assert_eq!(seen.header("evil"), "");
}
