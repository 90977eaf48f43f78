//! nginx as a backend: TLS with verification, client certificates, HTTP/2, unix sockets, IPv6, ranges and large files.

use crate::actors::{Ca, PLAIN, Proxy, get};
use crate::peer::{free, nginx, run};

/// What nginx saw of a request.
const SEEN: &str = "return 200 \"$server_protocol $host $remote_addr sni=$ssl_server_name client=$ssl_client_s_dn\\n\";";

#[test]
fn tls_is_verified_and_shows_a_certificate_where_it_is_asked() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    ca.issue(here, "backend", &["backend.internal", "127.0.0.1"]);
    ca.issue(here, "client", &["proxy.internal"]);
    std::fs::write(here.join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(here.join("stranger.pem"), stranger.pem()).unwrap();
    let (open, closed) = (free(), free());
    let tls = "ssl_certificate DIR/backend.pem; ssl_certificate_key DIR/backend.key;";
    let servers = format!(
        "server {{ listen {open} ssl http2; {tls} location / {{ {SEEN} }} }}\nserver {{ listen {closed} ssl; {tls} ssl_client_certificate DIR/ca.pem; ssl_verify_client on; location / {{ {SEEN} }} }}"
    );
    let _nginx = nginx(here, &servers, open);
    let here = here.to_str().unwrap();
    let group = |name: &str, address, rest: &str| format!("  {name}: {{ backends: ['{address}'], health_check: off, {rest} }}\n");
    let trust = format!("ca: {here}/ca.pem");
    let main = [
        format!("{PLAIN}backend_groups:\n"),
        group("named", open, &format!("tls: {{ {trust}, server_name: backend.internal }}")),
        group("address", open, &format!("tls: {{ {trust} }}")),
        group("wrong", open, &format!("tls: {{ {trust}, server_name: other.internal }}")),
        group("system", open, "tls: true"),
        group("stranger", open, &format!("tls: {{ ca: {here}/stranger.pem, server_name: backend.internal }}")),
        group("unverified", open, "tls: { verify: false }"),
        group("h2", open, &format!("tls: {{ {trust}, server_name: backend.internal }}, protocol: http2, host: backend")),
        group("auto", open, &format!("tls: {{ {trust}, server_name: backend.internal }}, protocol: auto, host: other.test, source: 127.0.0.7")),
        group("mtls", closed, &format!("tls: {{ {trust}, server_name: backend.internal, cert: {here}/client.pem, key: {here}/client.key }}")),
        group("nameless", closed, &format!("tls: {{ {trust}, server_name: backend.internal }}")),
        format!("  checked: {{ backends: ['{closed}'], tls: {{ {trust}, server_name: backend.internal, cert: {here}/client.pem, key: {here}/client.key }}, \
                 health_check: {{ path: /, body: 'CN=proxy', interval: 100ms, fall: 1, rise: 1 }} }}\n"),
        format!("  sick: {{ backends: ['{open}'], tls: {{ ca: {here}/stranger.pem }}, health_check: {{ interval: 100ms, fall: 1 }} }}\n"),
    ]
    .concat();
    let names = ["named", "address", "wrong", "system", "stranger", "unverified", "h2", "auto", "mtls", "nameless", "checked", "sick"];
    let routes: String = names.iter().map(|name| format!("  - {{ path: /{name}, group: {name} }}\n")).collect();
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &format!("domains: [shop.test]\nroutes:\n{routes}"))]);
    for (group, status, seen) in [
        ("named", 200, "HTTP/1.1 shop.test 127.0.0.1 sni=backend.internal client=\n"),
        // An address is no name that TLS could send, but the certificate must have it.
        ("address", 200, "HTTP/1.1 shop.test 127.0.0.1 sni= client=\n"),
        ("wrong", 502, ""),
        ("system", 502, ""),
        ("stranger", 502, ""),
        ("unverified", 200, "HTTP/1.1 shop.test 127.0.0.1 sni= client=\n"),
        ("h2", 200, "HTTP/2.0 127.0.0.1 127.0.0.1 sni=backend.internal client=\n"),
        ("auto", 200, "HTTP/2.0 other.test 127.0.0.7 sni=backend.internal client=\n"),
        ("mtls", 200, "HTTP/1.1 shop.test 127.0.0.1 sni=backend.internal client=CN=proxy.internal\n"),
        ("nameless", 400, ""),
        ("checked", 200, "HTTP/1.1 shop.test 127.0.0.1 sni=backend.internal client=CN=proxy.internal\n"),
    ] {
        for _ in 0..2 {
            let answer = get(proxy.address(), "shop.test", &format!("/{group}"), "");
            assert_eq!(answer.status, status, "{group}: {}", answer.text());
            assert!(seen.is_empty() || answer.text() == seen, "{group}: {}", answer.text());
        }
        if status == 502 {
            assert_eq!(proxy.wait_target(&format!("/{group}"))["reason"], "backend_tls", "{group}");
        }
    }
    proxy.wait_event("becomes unhealthy: TLS:");
}

#[test]
fn http2_in_the_clear_unix_sockets_and_ipv6() {
    let directory = tempfile::TempDir::new().unwrap();
    let (clear, six) = (free(), free().port());
    let servers = format!(
        "server {{ listen {clear} http2; location / {{ {SEEN} }} }}\nserver {{ listen unix:DIR/app.sock; location / {{ {SEEN} }} }}\nserver {{ listen [::1]:{six}; location / {{ {SEEN} }} }}"
    );
    let _nginx = nginx(directory.path(), &servers, clear);
    let socket = format!("unix:{}/app.sock", directory.path().display());
    let main = format!(
        "{PLAIN}backend_groups:\n  h2c: {{ backends: ['{clear}'], protocol: http2, health_check: {{ path: /, body: HTTP/2.0, interval: 100ms, fall: 1, rise: 1 }} }}\n  unix: {{ backends: ['{socket}', {{ address: 'unix:/nonexistent.sock', name: gone }}], sticky: true }}\n  \
         six: {{ backends: ['[::1]:{six}'], host: backend, health_check: / }}\n"
    );
    let site =
        "domains: [shop.test]\nroutes:\n  - { path: /h2c, group: h2c }\n  - { path: /unix, group: unix }\n  - { path: /six, group: six }\n";
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", site)]);
    for n in 0..6 {
        assert_eq!(get(proxy.address(), "shop.test", "/h2c", "").text(), "HTTP/2.0 shop.test 127.0.0.1 sni= client=\n");
        assert_eq!(get(proxy.address(), "shop.test", "/unix", "").text(), "HTTP/1.1 shop.test unix: sni= client=\n", "{n}");
        assert_eq!(get(proxy.address(), "shop.test", "/six", "").text(), "HTTP/1.1 [::1] ::1 sni= client=\n");
    }
    assert!(!proxy.events().contains("becomes unhealthy: /"), "probes speak HTTP/2 too: {}", proxy.events());
    let line = proxy.wait_target("/unix");
    assert_eq!(line["backend"], socket.as_str());
    let cookie = get(proxy.address(), "shop.test", "/unix", "").header("set-cookie");
    let cookie = cookie.split(';').next().unwrap();
    let again = get(proxy.address(), "shop.test", "/unix", &format!("Cookie: {cookie}\r\n"));
    assert_eq!((again.status, again.header("set-cookie").as_str()), (200, ""), "a socket is as sticky as an address");
}

#[test]
fn files_come_whole_in_parts_and_not_at_all() {
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    let address = free();
    std::fs::create_dir(here.join("www")).unwrap();
    // 200 MB that no part is like another.
    let block: Vec<u8> = (0..1_000_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 8).to_le_bytes()).collect();
    std::fs::write(here.join("www/large.txt"), block.repeat(50)).unwrap();
    std::fs::write(here.join("www/small.txt"), "0123456789").unwrap();
    let _nginx = nginx(here, &format!("server {{ listen {address}; root DIR/www; }}"), address);
    let proxy = Proxy::with_site(&format!("backends: ['{address}']\n"));
    let url = |path: &str| format!("http://shop.test:{}{path}", proxy.address().port());
    let connect = format!("shop.test:{}:127.0.0.1", proxy.address().port());
    let curl = |args: &[&str]| run("curl", &[&["-sS", "--resolve", connect.as_str()], args].concat());
    for protocol in ["--http1.1", "--http2-prior-knowledge", "--http1.0"] {
        let got = here.join("got");
        curl(&[protocol, "-o", got.to_str().unwrap(), &url("/large.txt")]);
        assert!(std::fs::read(&got).unwrap() == std::fs::read(here.join("www/large.txt")).unwrap(), "{protocol}");
        assert_eq!(curl(&[protocol, "-r", "2-4", &url("/small.txt")]), "234");
        assert_eq!(curl(&[protocol, "-r", "-3", &url("/small.txt")]), "789");
        let parts = curl(&[protocol, "-H", "Range: bytes=0-1,5-6", "-D", "-", &url("/small.txt")]);
        assert!(parts.contains("206") && parts.contains("multipart/byteranges"), "{parts}");
        let beyond = curl(&[protocol, "-r", "100-", "-D", "-", "-o", "/dev/null", &url("/small.txt")]);
        assert!(beyond.contains(" 416") && beyond.contains("bytes */10"), "{beyond}");
        let head = curl(&[protocol, "-I", &url("/large.txt")]).to_lowercase();
        assert!(head.contains("content-length: 200000000") && head.contains(" 200"), "{head}");
        let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().trim().to_owned();
        let same = curl(&[
            protocol,
            "-H",
            &format!("If-None-Match: {etag}"),
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{size_download}",
            &url("/large.txt"),
        ]);
        assert_eq!(same, "304 0", "{protocol}");
    }
}
