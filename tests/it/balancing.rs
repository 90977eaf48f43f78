//! Backend groups: turns, health, stickiness, failover.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::actors::{Client, Origin, PLAIN, Proxy, Reply, get};

fn bodies(proxy: &Proxy, count: usize) -> String {
    (0..count).map(|_| get(proxy.address(), "shop.test", "/", "").text()).collect()
}

#[test]
fn weights_three_to_one_give_a_a_b_a() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let proxy = Proxy::with_site(&format!(
        "backends:\n  - {{ address: '{}', name: a, weight: 3 }}\n  - {{ address: '{}', name: b }}\n",
        a.address, b.address
    ));
    assert_eq!(bodies(&proxy, 8), "AABAAABA");
}

#[test]
fn a_dead_backend_costs_no_request_and_comes_back() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let proxy = Proxy::with_site(&format!("backends: ['{}', '{}']\nhealth_check: {{ interval: 50ms, rise: 1 }}\n", a.address, b.address));
    assert_eq!(bodies(&proxy, 4), "ABAB");
    a.die();
    assert_eq!(bodies(&proxy, 20), "B".repeat(20));
    let post = Client::plain(proxy.address()).request("POST", "shop.test", "/p", "", b"hello");
    assert_eq!(post.text(), "B", "also what is not idempotent moves on, since nothing of it was sent");
    let event = proxy.wait_event("refuses connections and is out of the rotation");
    assert!(event.contains(&a.address.to_string()), "{event}");
    let once = proxy.events().matches("refuses connections").count();
    assert_eq!(once, 1, "it was asked once and left alone");
    a.revive();
    proxy.wait_event("accepts connections again");
    assert!(bodies(&proxy, 4).contains('A'));
}

#[test]
fn health_checks_ask_for_a_path_and_move_the_traffic() {
    let sick = Arc::new(AtomicBool::new(false));
    let script = sick.clone();
    let a = Origin::new(move |request| match request.target.as_str() {
        "/healthz" if script.load(Ordering::SeqCst) => Reply::Http(500, Vec::new(), Vec::new()),
        "/healthz" => Reply::Http(204, Vec::new(), Vec::new()),
        _ => Reply::text("A"),
    });
    let b = Origin::named("B");
    let check = "{ path: /healthz, host: health.test, interval: 30ms, rise: 1, fall: 2 }";
    let proxy = Proxy::with_site(&format!("backends: ['{}', '{}']\nhealth_check: {check}\n", a.address, b.address));
    let probe = a.request();
    assert_eq!((probe.target.as_str(), probe.header("host").as_str()), ("/healthz", "health.test"));
    sick.store(true, Ordering::SeqCst);
    let event = proxy.wait_event("becomes unhealthy");
    assert!(event.contains("answered with status 500") && event.contains(&a.address.to_string()), "{event}");
    assert_eq!(bodies(&proxy, 6), "BBBBBB");
    sick.store(false, Ordering::SeqCst);
    proxy.wait_event("becomes healthy");
    assert!(bodies(&proxy, 4).contains('A'));
}

#[test]
fn tcp_checks_are_on_by_default() {
    let a = Origin::named("A");
    let b = Origin::named("B");
    a.die();
    let proxy = Proxy::start(&[
        ("main.yaml", &format!("{PLAIN}defaults: {{ health_check: {{ interval: 30ms, fall: 1, rise: 1 }} }}\n")),
        ("sites.d/shop.yaml", &format!("domains: [shop.test]\nbackends: ['{}', '{}']\n", a.address, b.address)),
    ]);
    proxy.wait_event("becomes unhealthy");
    assert_eq!(bodies(&proxy, 4), "BBBB");
}

#[test]
fn an_address_is_probed_once_however_many_groups_name_it() {
    let probes = Arc::new(AtomicUsize::new(0));
    let count = probes.clone();
    let origin = Origin::new(move |request| {
        count.fetch_add(usize::from(request.target == "/hz"), Ordering::SeqCst);
        Reply::text("ok")
    });
    let check = "{ path: /hz, interval: 1h }";
    let group = |name: &str, weight| {
        format!("  {name}: {{ backends: [{{ address: '{}', weight: {weight} }}], health_check: {check} }}\n", origin.address)
    };
    let main = format!("{PLAIN}backend_groups:\n{}{}{}", group("a", 1), group("b", 2), group("c", 1));
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/a.yaml", "domains: [shop.test]\ngroup: a\n")]);
    assert_eq!(bodies(&proxy, 1), "ok");
    let first = origin.request();
    let second = origin.request();
    assert!([&first.target, &second.target].iter().any(|target| *target == "/hz"));
    assert_eq!(probes.load(Ordering::SeqCst), 1);
}

#[test]
fn no_backend_left_is_503_and_all_refusing_is_502() {
    let a = Origin::named("A");
    let address = a.address;
    a.die();
    let proxy = Proxy::with_site(&format!("backends: ['{address}']\nhealth_check: off\n"));
    let first = get(proxy.address(), "shop.test", "/1", "");
    assert_eq!(first.status, 502);
    assert_eq!(proxy.wait_target("/1")["reason"], "connect_refused");
    let second = get(proxy.address(), "shop.test", "/2", "");
    assert_eq!((second.status, second.header("retry-after").as_str()), (503, "5"));
    let line = proxy.wait_target("/2");
    assert_eq!((line["reason"].as_str(), line["attempts"].as_u64()), (Some("no_backend"), Some(0)));
    assert!(second.text().contains(line["request_id"].as_str().unwrap()), "the page names the request");
}

#[test]
fn a_cookie_keeps_a_client_until_its_backend_fails() {
    let (a, b) = (Origin::named("A"), Origin::new(|request| Reply::text("B").header("X-Cookie", request.header("cookie"))));
    let proxy = Proxy::with_site(&format!("backends: ['{}', '{}']\nsticky: {{ cookie: SRV, max_age: 1h }}\n", a.address, b.address));
    assert_eq!(bodies(&proxy, 1), "A");
    let response = get(proxy.address(), "shop.test", "/", "");
    let cookie = response.header("set-cookie");
    assert!(cookie.starts_with("SRV=") && cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    for _ in 0..4 {
        let again = get(proxy.address(), "shop.test", "/", &format!("Cookie: a=b; {pair}; c=d\r\n"));
        assert_eq!(again.text(), "B");
        assert_eq!(again.header("set-cookie"), "", "it has its cookie already");
        assert_eq!(again.header("x-cookie"), "a=b; c=d", "the backend does not see ours");
    }
    b.die();
    let moved = get(proxy.address(), "shop.test", "/", &format!("Cookie: {pair}\r\n"));
    assert_eq!(moved.text(), "A");
    let new = moved.header("set-cookie");
    assert!(new.starts_with("SRV=") && !new.starts_with(pair), "it sticks to the new one: {new}");
}

#[test]
fn sticky_clients_stay_across_restarts_and_nodes_with_one_secret() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let site = format!("domains: [shop.test]\nbackends: ['{}', '{}']\nsticky: true\n", a.address, b.address);
    let main = format!("{PLAIN}sticky_secret: one-secret-for-both-nodes\n");
    let files = [("main.yaml", main.as_str()), ("sites.d/shop.yaml", site.as_str())];
    let cookies: Vec<String> = (0..2).map(|_| get(Proxy::start(&files).address(), "shop.test", "/", "").header("set-cookie")).collect();
    assert_eq!(cookies[0], cookies[1]);
    let kept = [("main.yaml", PLAIN), ("sites.d/shop.yaml", site.as_str())];
    let first = Proxy::start(&kept);
    let before = get(first.address(), "shop.test", "/", "").header("set-cookie");
    let key = std::fs::read(first.directory.path().join("state/sticky.key")).unwrap();
    assert_eq!(key.len(), 32);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(first.directory.path().join("state/sticky.key")).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let again = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(again.path().join("state")).unwrap();
    std::fs::write(again.path().join("state/sticky.key"), key).unwrap();
    let second = Proxy::start_in(again, &kept);
    assert_eq!(get(second.address(), "shop.test", "/", "").header("set-cookie"), before);
    assert_ne!(before, cookies[0]);
}

/// A backend that reads the request, then closes without a word.
fn dies_after_reading() -> Origin {
    Origin::new(|_| Reply::RawClose(Vec::new()))
}

#[test]
fn only_what_is_safe_to_repeat_is_sent_again() {
    let (bad, good) = (dies_after_reading(), Origin::named("good"));
    let proxy = Proxy::with_site(&format!("backends: ['{}', '{}']\n", bad.address, good.address));
    let mut seen = Vec::new();
    for (method, target) in [("GET", "/g1"), ("GET", "/g2"), ("POST", "/p1"), ("POST", "/p2"), ("PUT", "/u1"), ("PUT", "/u2")] {
        let body: &[u8] = if method == "GET" { b"" } else { b"data" };
        let status = Client::plain(proxy.address()).request(method, "shop.test", target, "", body).status;
        seen.push((target, status, proxy.wait_target(target)["attempts"].as_u64().unwrap()));
    }
    let gets: Vec<_> = seen.iter().filter(|(target, ..)| !target.starts_with("/p")).collect();
    assert!(gets.iter().all(|(_, status, _)| *status == 200), "{seen:?}");
    assert!(gets.iter().any(|(_, _, attempts)| *attempts == 2), "one of them was moved: {seen:?}");
    let posts: Vec<_> = seen.iter().filter(|(target, ..)| target.starts_with("/p")).collect();
    assert!(posts.iter().any(|(_, status, attempts)| *status == 502 && *attempts == 1), "{seen:?}");
    assert!(posts.iter().all(|(_, _, attempts)| *attempts == 1), "a POST is never sent twice: {seen:?}");
    let posted = bad.drain().iter().chain(&good.drain()).filter(|request| request.method == "POST").count();
    assert_eq!(posted, 2);
}

#[test]
fn a_failure_after_the_answer_began_is_not_hidden() {
    let half = Origin::new(|_| Reply::RawClose(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart".to_vec()));
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", half.address));
    let mut client = Client::plain(proxy.address());
    client.send("GET /half HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    client.head();
    assert_eq!(client.rest(), b"part", "the connection ends: the client knows that something is missing");
    assert_eq!(proxy.wait_target("/half")["reason"], "backend_closed");
}

#[test]
fn timeouts_are_504_and_name_themselves() {
    let silent =
        Origin::new(|_| Reply::Take(Box::new(|mut stream| drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut stream.by_ref())))));
    let proxy =
        Proxy::with_site(&format!("backends: ['{}']\nroutes: [{{ path: /, group: shop, timeouts: {{ read: 200ms }} }}]\n", silent.address));
    let response = get(proxy.address(), "shop.test", "/slow", "");
    assert_eq!(response.status, 504);
    assert_eq!(proxy.wait_target("/slow")["reason"], "read_timeout");
}

#[test]
fn other_cookies_may_hold_anything() {
    let origins = [Origin::echo(), Origin::echo()];
    let proxy = Proxy::with_site(&format!("backends: ['{}', '{}']\nsticky: {{ cookie: SRV }}\n", origins[0].address, origins[1].address));
    let cookie = get(proxy.address(), "shop.test", "/", "").header("set-cookie");
    let pair = cookie.split(';').next().unwrap();
    for _ in 0..4 {
        let response = get(proxy.address(), "shop.test", "/", &format!("Cookie: n=J\u{fc}rgen; {pair}\r\n"));
        assert_eq!(response.header("set-cookie"), "", "it sticks");
        assert!(response.text().contains("Cookie: n=J\u{fc}rgen\n"), "{}", response.text());
    }
}

#[test]
fn an_interim_answer_is_no_answer() {
    let dies = Origin::new(|_| Reply::RawClose(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_vec()));
    let good = Origin::named("good");
    let proxy = Proxy::with_site(&format!("backends: ['{}', '{}']\nhealth_check: off\n", dies.address, good.address));
    for (method, status) in [("GET", 200), ("GET", 200), ("POST", 502)] {
        for _ in 0..2 {
            let mut client = Client::plain(proxy.address());
            client.send(format!("{method} /{method} HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n"));
            let mut response = client.response(false);
            while response.status < 200 {
                response = client.response(false);
            }
            assert!(response.status == status || (response.status == 200 && response.text() == "good"), "{method}: {}", response.status);
        }
    }
    assert_eq!(proxy.wait_access(|line| line["status"] == 502)["reason"], "backend_closed");
}

#[test]
fn the_only_backend_is_back_within_seconds() {
    let a = Origin::named("A");
    let proxy = Proxy::with_site(&format!("backends: ['{}']\nhealth_check: off\n", a.address));
    assert_eq!(bodies(&proxy, 1), "A");
    a.die();
    assert_eq!(get(proxy.address(), "shop.test", "/", "").status, 502);
    assert_eq!(get(proxy.address(), "shop.test", "/", "").status, 503, "it is not asked by every request");
    a.revive();
    let began = std::time::Instant::now();
    while get(proxy.address(), "shop.test", "/", "").status != 200 {
        assert!(began.elapsed().as_secs() < 5, "long before the ten seconds of its ejection are over");
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    assert_eq!(bodies(&proxy, 3), "AAA");
}

#[test]
fn a_health_check_asks_as_it_is_told() {
    let healthy = Arc::new(AtomicUsize::new(1));
    let state = healthy.clone();
    let origin = Origin::new(|_| Reply::text("here"));
    let checked = Origin::new(move |request| {
        let asked = (request.method.as_str(), request.target.as_str(), request.header("host"), request.header("x-check"));
        let good = asked == ("OPTIONS", "/h?a=b", "check.test".to_owned(), "1".to_owned());
        let body = if state.load(Ordering::SeqCst) == 1 { "all is well" } else { "all is lost" };
        Reply::Http(if good { 418 } else { 500 }, Vec::new(), body.as_bytes().to_vec())
    });
    let group = |extra: &str| {
        format!(
            "{PLAIN}backend_groups:\n  g: {{ backends: ['{}'], health_check: {{ path: '/h?a=b', method: OPTIONS, host: check.test, headers: {{ X-Check: 1 }}, \
             status: [418, 5xx], body: is well, port: {}, interval: 100ms, jitter: 20ms, rise: 1, fall: 1{extra} }} }}\n",
            origin.address,
            checked.address.port()
        )
    };
    let proxy = Proxy::start(&[("main.yaml", &group("")), ("sites.d/a.yaml", "domains: [shop.test]\ngroup: g\n")]);
    assert_eq!(bodies(&proxy, 1), "here");
    healthy.store(0, Ordering::SeqCst);
    proxy.wait_event("becomes unhealthy: /h?a=b: answered with a body that has no `is well`");
    assert_eq!(get(proxy.address(), "shop.test", "/", "").status, 503);
    healthy.store(1, Ordering::SeqCst);
    proxy.wait_event("becomes healthy");
    assert_eq!(bodies(&proxy, 1), "here");
    assert!(checked.drain().is_empty(), "probes say who they are");
    proxy.write("main.yaml", &group(", timeout: 1s").replace("[418, 5xx]", "200"));
    proxy.reload();
    proxy.wait_event("becomes unhealthy: /h?a=b: answered with status 418");
}

#[test]
fn two_names_at_one_address_are_two_servers() {
    // A server that knows its sites by their host: one name is good, the other is not.
    let origin = Origin::new(|request| match request.header("host").as_str() {
        host if request.target == "/h" && host.starts_with("localhost") => Reply::Http(404, Vec::new(), Vec::new()),
        _ => Reply::text("here"),
    });
    let port = origin.address.port();
    let check = "health_check: { path: /h, interval: 100ms, jitter: 0s, fall: 1, rise: 1 }";
    let main = |bad: &str| {
        format!(
            "{PLAIN}backend_groups:\n  a-bad: {{ backends: ['{bad}:{port}'], {check} }}\n  b-good: {{ backends: ['127.0.0.1:{port}'], {check} }}\n"
        )
    };
    let site = "domains: [shop.test]\ngroup: b-good\nroutes: [{ path: /bad, group: a-bad }]\n";
    let proxy = Proxy::start(&[("main.yaml", &main("localhost")), ("sites.d/a.yaml", site)]);
    proxy.wait_event("becomes unhealthy: /h: answered with status 404");
    // 502: `localhost` has an IPv6 address, too, where nobody listens.
    assert!([502, 503].contains(&get(proxy.address(), "shop.test", "/bad", "").status));
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "here", "the same address by its good name");
    proxy.write("main.yaml", &main("127.0.0.1"));
    proxy.reload();
    assert_eq!(get(proxy.address(), "shop.test", "/bad", "").text(), "here", "a corrected name is in force");
}
