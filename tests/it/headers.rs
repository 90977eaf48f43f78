//! What backends are told about clients, and what clients may not say about themselves.

use crate::actors::{Ca, Client, H2, Origin, PLAIN, Proxy, get, tls_config};
use std::sync::Arc;

const SPOOF: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\nX-Forwarded-Port: 1\r\nX-Real-IP: 6.6.6.6\r\n\
                     X-Request-Id: spoofed\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Prefix: /evil\r\nX_Forwarded_For: 6.6.6.6\r\nProxy: http://evil.test\r\n";

#[test]
fn a_stranger_cannot_speak_for_others() {
    let origin = Origin::echo();
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let response = get(proxy.address(), "shop.test", "/", SPOOF);
    let request = origin.request();
    assert!(
        !response.text().contains("6.6.6.6") && !response.text().contains("evil") && !response.text().contains("spoofed"),
        "{}",
        response.text()
    );
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-real-ip", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "shop.test"),
        ("x-forwarded-port", &proxy.address().port().to_string()),
        ("host", "shop.test"),
        ("via", "1.1 portcullis"),
        ("forwarded", ""),
        ("proxy", ""),
    ] {
        assert_eq!(request.header(name), value, "{name}");
    }
    let line = proxy.wait_target("/");
    assert_eq!(request.header("x-request-id"), line["request_id"].as_str().unwrap());
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!(response.header("via"), "1.1 portcullis");
}

#[test]
fn a_trusted_proxy_is_believed_and_appended() {
    let origin = Origin::echo();
    let main = format!("{PLAIN}trusted_proxies: [127.0.0.0/8]\n");
    let site = format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address);
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let headers = "X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: public.test\r\nX-Forwarded-Port: 443\r\nX-Request-Id: edge-1\r\nVia: 1.1 edge\r\n";
    get(proxy.address(), "shop.test", "/", headers);
    let request = origin.request();
    for (name, value) in [
        ("x-forwarded-for", "6.6.6.6, 192.0.2.7, 127.0.0.1"),
        ("x-real-ip", "192.0.2.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "public.test"),
        ("x-forwarded-port", "443"),
        ("x-request-id", "edge-1"),
        ("via", "1.1 edge | 1.1 portcullis"),
    ] {
        assert_eq!(request.header(name), value, "{name}");
    }
    assert_eq!(proxy.wait_target("/")["client"], "192.0.2.7");
}

#[test]
fn headers_of_one_connection_end_here() {
    let origin = Origin::new(|_| {
        crate::actors::Reply::text("x").header("Keep-Alive", "timeout=5").header("Proxy-Connection", "x").header("X-Kept", "y")
    });
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let sent =
        "Connection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers\r\nUpgrade: h2c\r\nX-Other: 2\r\n";
    let response = get(proxy.address(), "shop.test", "/", sent);
    let request = origin.request();
    for name in ["x-mine", "keep-alive", "proxy-connection", "te", "upgrade"] {
        assert_eq!(request.header(name), "", "{name}");
    }
    assert_eq!(request.header("x-other"), "2");
    assert_eq!(
        (response.header("keep-alive"), response.header("proxy-connection"), response.header("x-kept")),
        (String::new(), String::new(), "y".into())
    );
    assert_eq!(response.header("connection"), "close");
}

#[test]
fn plain_requests_are_redirected_where_there_is_a_certificate() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "shop", &["shop.test"]);
    let origin = Origin::echo();
    let main = "listeners: [{ address: '127.0.0.1:0' }, { address: '127.0.0.1:0', tls: true }]\naccess_log: json\nsites: sites.d/*.yaml\ntrusted_proxies: [127.0.0.9]\n";
    let site = format!(
        "domains: [shop.test]\ntls: {{ cert: ../shop.pem, key: ../shop.key }}\nhsts: {{ max_age: 1y, include_subdomains: true }}\nhttps_port: 8443\nbackends: ['{}']\n",
        origin.address
    );
    let proxy = Proxy::start_in(directory, &[("main.yaml", main), ("sites.d/shop.yaml", &site)]);
    for (method, host, status, location) in [
        ("GET", "shop.test", 301, "https://shop.test:8443/a?b=c"),
        ("HEAD", "shop.test", 301, "https://shop.test:8443/a?b=c"),
        ("POST", "shop.test", 308, "https://shop.test:8443/a?b=c"),
        ("GET", "SHOP.test:80", 301, "https://shop.test:8443/a?b=c"),
    ] {
        let response = Client::plain(proxy.address()).request(method, host, "/a?b=c", "", b"");
        assert_eq!((response.status, response.header("location").as_str()), (status, location), "{method} {host}");
        assert_eq!(response.header("strict-transport-security"), "", "never on plain HTTP");
    }
    let acme = get(proxy.address(), "shop.test", "/.well-known/acme-challenge/token", "");
    assert_eq!(acme.status, 200, "ACME servers ask over plain HTTP");
    let config = Arc::new(tls_config(ca.roots(), &["h2"], rustls::ALL_VERSIONS));
    let h2 = H2::tls(proxy.addresses[1], "shop.test", config);
    let response = h2.request("GET", "https://shop.test/", &[], &[]).unwrap();
    assert_eq!(response.header("strict-transport-security"), "max-age=31536000; includeSubDomains");
    let text = response.text().to_ascii_lowercase();
    assert!(
        text.contains("x-forwarded-proto: https") && text.contains("via: 2.0 portcullis") && text.contains("host: shop.test"),
        "{text}"
    );
}
