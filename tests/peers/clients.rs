//! Clients of every age: ApacheBench with HTTP/1.0, nghttp with priorities, h2load with many streams, HAProxy in front.

use crate::actors::{Ca, Client, H2, Origin, PLAIN, Proxy};
use crate::peer::{free, run, wait_for};

#[test]
fn apachebench_speaks_http10_with_and_without_keep_alive() {
    let origin = Origin::named("an answer of twenty.");
    let proxy = Proxy::start(&[
        ("main.yaml", PLAIN),
        ("sites.d/a.yaml", &format!("domains: ['127.0.0.1.test', shop.test]\nbackends: ['{}']\n", origin.address)),
    ]);
    let url = format!("http://{}/", proxy.address());
    for keep_alive in [&[][..], &["-k"]] {
        let text = run("ab", &[&["-q", "-n", "500", "-c", "10", "-H", "Host: shop.test"], keep_alive, &[url.as_str()]].concat());
        assert!(text.contains("Complete requests:      500") && text.contains("Failed requests:        0"), "{text}");
        assert!(!text.contains("Non-2xx"), "{text}");
        assert!(keep_alive.is_empty() || text.contains("Keep-Alive requests:    500"), "{text}");
    }
}

#[test]
fn http2_streams_are_many_prioritised_and_reset() {
    let body = "x".repeat(40_000);
    let origin = Origin::new(move |_| crate::actors::Reply::text(body.clone()));
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "a", &["localhost"]);
    let site = format!(
        "domains: [localhost]\ntls: {{ cert: ../a.pem, key: ../a.key }}\nhttps_redirect: false\nbackends: ['{}']\n",
        origin.address
    );
    let main = "listeners: [{ address: '127.0.0.1:0' }, { address: '127.0.0.1:0', tls: true }]\naccess_log: json\nstate_dir: state\nsites: sites.d/*.yaml\n";
    let proxy = Proxy::start_in(directory, &[("main.yaml", main), ("sites.d/a.yaml", &site)]);
    let (plain, tls) =
        (format!("http://localhost:{}/", proxy.addresses[0].port()), format!("https://localhost:{}/", proxy.addresses[1].port()));
    for url in [&plain, &tls] {
        let text = run("h2load", &["-n", "2000", "-c", "4", "-m", "100", url]);
        assert!(text.contains("2000 succeeded, 0 failed, 0 errored"), "{text}");
    }
    // Weights and dependencies of RFC 7540, which RFC 9113 deprecates and clients still send.
    let many: Vec<String> = (0..20).map(|n| format!("{plain}{n}")).collect();
    let mut args = vec!["-n", "-s", "-p", "1", "-p", "256", "-w", "10"];
    args.extend(many.iter().map(String::as_str));
    let text = run("nghttp", &args);
    assert_eq!(text.matches(" 200 ").count(), 20, "{text}");
    // Streams that are reset leave their connection, and everybody else's, as it was.
    let h2 = H2::plain(proxy.addresses[0]);
    for n in 0..20 {
        h2.abandon("POST", &format!("http://localhost/{n}"));
    }
    assert_eq!(h2.request("GET", "http://localhost/after", &[], &[]).unwrap().status, 200);
}

#[test]
fn curl_gets_an_early_answer_to_its_upload() {
    let origin = Origin::named("up");
    let site = format!(
        "domains: [shop.test]\nbackends: ['{}']\nmax_body: 100KiB\nroutes: [{{ path: /go/, redirect: /there/ }}, {{ path: /no/, respond: 403 }}]\n",
        origin.address
    );
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/a.yaml", &site)]);
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("upload");
    std::fs::write(&file, vec![b'x'; 3_000_000]).unwrap();
    let (connect, data) = (format!("shop.test:{}:127.0.0.1", proxy.address().port()), format!("@{}", file.display()));
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        for (target, status) in [("/go/", "307"), ("/no/", "403"), ("/up", "413")] {
            let url = format!("http://shop.test:{}{target}", proxy.address().port());
            let args = ["-sS", protocol, "--resolve", &connect, "--data-binary", &data, "-o", "/dev/null", "-w", "%{http_code}", &url];
            assert_eq!(run("curl", &args), status, "{protocol} {target}");
        }
    }
}

#[test]
fn haproxy_in_front_is_believed() {
    let origin = Origin::echo();
    let directory = tempfile::TempDir::new().unwrap();
    let main = format!("{PLAIN}trusted_proxies: [127.0.0.1]\n");
    let proxy =
        Proxy::start(&[("main.yaml", &main), ("sites.d/a.yaml", &format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address))]);
    let front = free();
    let configuration = format!(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\nfrontend f\n  bind {front}\n  option forwardfor\n  \
         http-request set-header X-Forwarded-Proto https\n  default_backend b\nbackend b\n  server s {}\n",
        proxy.address()
    );
    let file = directory.path().join("haproxy.cfg");
    std::fs::write(&file, configuration).unwrap();
    let mut haproxy = std::process::Command::new("/usr/sbin/haproxy").arg("-f").arg(&file).spawn().unwrap();
    wait_for(front);
    let mut client = Client::plain(front);
    for n in 0..10 {
        let text = client.request("GET", "shop.test", &format!("/{n}"), "X-Forwarded-For: 203.0.113.9\r\n", b"").text().to_lowercase();
        // HAProxy appends whom it heard from; that one is trusted too, being on this machine.
        assert!(text.contains("x-real-ip: 203.0.113.9") && text.contains("x-forwarded-proto: https"), "{text}");
    }
    haproxy.kill().unwrap();
    haproxy.wait().unwrap();
}

#[test]
fn curl_sees_early_hints() {
    let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let origin = Origin::new(move |_| crate::actors::Reply::Raw(hints.to_vec()));
    let proxy = Proxy::with_site(&format!("backends: ['{}']\nhealth_check: off\n", origin.address));
    let connect = format!("shop.test:{}:127.0.0.1", proxy.address().port());
    let url = format!("http://shop.test:{}/", proxy.address().port());
    let curl = |protocol: &str| run("curl", &["-sS", protocol, "--resolve", &connect, "-D", "-", &url]).to_lowercase();
    let text = curl("--http1.1");
    let (hints, answer) = (text.find(" 103").unwrap(), text.find(" 200").unwrap());
    assert!(hints < answer && text.contains("link: </a.css>; rel=preload") && text.ends_with("ok"), "{text}");
    // Pingora 0.9.1 cannot send interim answers by HTTP/2: the final one must come whole.
    let text = curl("--http2-prior-knowledge");
    assert!(text.contains(" 200") && text.ends_with("ok"), "{text}");
}
