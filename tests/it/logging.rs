//! The access log: one line for each request, also for what is no request.

use nix::sys::signal::Signal;

use crate::actors::{Client, Origin, PLAIN, Proxy, get};

#[test]
fn a_line_says_what_was_decided_and_how_long_it_took() {
    let origin = Origin::named("hello");
    let proxy = Proxy::with_site(&format!("backends: [{{ address: '{}', name: s1 }}]\n", origin.address));
    get(proxy.address(), "shop.test", "/a?b", "Referer: http://r/\r\nUser-Agent: test \"1\"\r\n");
    let line = proxy.wait_target("/a?b");
    for (key, value) in [
        ("method", "GET"),
        ("host", "shop.test"),
        ("protocol", "HTTP/1.1"),
        ("site", "shop"),
        ("route", "/"),
        ("group", "shop"),
        ("backend", "s1"),
        ("referer", "http://r/"),
        ("user_agent", "test \"1\""),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    assert_eq!((line["status"].as_u64(), line["bytes_out"].as_u64(), line["attempts"].as_u64()), (Some(200), Some(5), Some(1)));
    for key in ["duration_ms", "connect_ms", "first_byte_ms"] {
        assert!(line[key].as_f64().is_some_and(|ms| ms > 0.0 && ms < 10_000.0), "{key}: {line}");
    }
    assert!(line["first_byte_ms"].as_f64() <= line["duration_ms"].as_f64());
}

#[test]
fn what_is_no_request_is_logged_too() {
    let proxy = Proxy::with_site("backends: ['127.0.0.1:9']\n");
    for (bytes, status, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", 400, "no_host"),
        ("\x16\x03\x01\x02\x00\x01\x00", 400, "not_http"),
        ("GET / HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "length_and_chunked"),
    ] {
        let mut client = Client::plain(proxy.address());
        client.send(bytes);
        let response = client.response(false);
        assert_eq!(response.status, status);
        assert!(client.closes());
        let line = proxy.wait_access(|line| line["reason"] == reason);
        assert!(response.text().contains(line["request_id"].as_str().unwrap()));
    }
}

#[test]
fn the_combined_log_goes_to_a_file_that_can_be_rotated() {
    let origin = Origin::named("x");
    let main = PLAIN.replace("access_log: json", "access_log: { path: access.log }");
    let site = format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address);
    let mut proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let log = proxy.directory.path().join("access.log");
    get(proxy.address(), "shop.test", "/before", "");
    // The line is written after the answer, by another thread.
    wait_for_text(&log, "/before");
    let moved = proxy.directory.path().join("access.log.1");
    std::fs::rename(&log, &moved).unwrap();
    proxy.signal(Signal::SIGUSR1);
    proxy.wait_event("the access log is opened again");
    get(proxy.address(), "shop.test", "/after", "");
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit(), Some(0));
    let (old, new) = (std::fs::read_to_string(moved).unwrap(), std::fs::read_to_string(log).unwrap());
    assert!(old.contains("\"GET /before HTTP/1.1\" 200 1 ") && !old.contains("/after"), "{old}");
    assert!(new.contains("\"GET /after HTTP/1.1\" 200 1 ") && new.contains(" site=shop route=/ "), "{new}");
}

fn wait_for_text(file: &std::path::Path, text: &str) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !std::fs::read_to_string(file).unwrap().contains(text) {
        assert!(std::time::Instant::now() < deadline, "{text} is not written");
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_full_disk_loses_lines_and_no_requests() {
    let origin = Origin::named("x");
    let main = PLAIN.replace("access_log: json", "access_log: { path: /dev/full }");
    let site = format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address);
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    for _ in 0..50 {
        assert_eq!(get(proxy.address(), "shop.test", "/", "").status, 200);
    }
    proxy.wait_event("access log: cannot be written");
}
