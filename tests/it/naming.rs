//! Names of backends: resolved as their time to live says, with the last good answer kept.

use std::time::{Duration, Instant};

use crate::actors::{NameServer, Origin, PLAIN, Proxy, Reply, get};

/// Two backends on one port, at two addresses of the loopback network.
fn pair() -> (Origin, Origin, u16) {
    for _ in 0..50 {
        let one = Origin::at("127.0.0.2:0", |_| Reply::text("two"));
        let port = one.address.port();
        if std::net::TcpListener::bind(("127.0.0.3", port)).is_ok() {
            return (one, Origin::at(&format!("127.0.0.3:{port}"), |_| Reply::text("three")), port);
        }
    }
    panic!("no port is free at both addresses");
}

fn wait_for(proxy: &Proxy, target: &str, body: &str) {
    let began = Instant::now();
    while get(proxy.address(), "shop.test", target, "").text() != body {
        assert!(began.elapsed() < Duration::from_secs(15), "{body} does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_name_is_followed_as_its_time_to_live_says() {
    let names = NameServer::new();
    let (_two, _three, port) = pair();
    names.say("app.internal", &["127.0.0.2"], 1);
    let main = format!(
        "{PLAIN}name_servers: ['{}']\nbackend_groups:\n  app: {{ backends: ['app.internal:{port}'], health_check: off }}\n  far: {{ backends: ['far.internal:{port}'], health_check: off }}\n",
        names.address
    );
    let site = ("sites.d/shop.yaml", "domains: [shop.test]\ngroup: app\nroutes: [{ path: /far/, group: far }]\n");
    let proxy = Proxy::start(&[("main.yaml", &main), site]);
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "two");
    // A name that does not resolve at the start is no error: others serve, and it is asked for again.
    assert!(proxy.events().contains("`far.internal:"), "{}", proxy.events());
    assert_eq!(get(proxy.address(), "shop.test", "/far/", "").status, 503);
    names.say("app.internal", &["127.0.0.3"], 1);
    wait_for(&proxy, "/", "three");
    proxy.wait_event("is now 127.0.0.3");
    names.say("far.internal", &["127.0.0.2"], 60);
    proxy.wait_event("resolves again");
    wait_for(&proxy, "/far/", "two");
    // Both addresses are backends.
    names.say("app.internal", &["127.0.0.2", "127.0.0.3"], 1);
    proxy.wait_event(&format!("is now 127.0.0.2:{port}, 127.0.0.3:{port}"));
    wait_for(&proxy, "/", "two");
    wait_for(&proxy, "/", "three");
    let mut seen: Vec<String> = (0..4).map(|_| get(proxy.address(), "shop.test", "/", "").text()).collect();
    seen.sort();
    assert_eq!(seen, ["three", "three", "two", "two"]);
    // The name server is gone: the last good answer stays, also over a reload.
    names.fall_silent();
    proxy.wait_event("its last addresses stay");
    proxy.reload();
    assert_eq!(get(proxy.address(), "shop.test", "/", "").status, 200);
}

#[test]
fn a_long_time_to_live_is_respected() {
    let names = NameServer::new();
    let (_two, _three, port) = pair();
    names.say("app.internal", &["127.0.0.2"], 3600);
    let main = format!("{PLAIN}name_servers: ['{}']\n", names.address);
    let site = format!("domains: [shop.test]\nbackends: ['app.internal:{port}']\nhealth_check: off\n");
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let began = Instant::now();
    let mut asked = names.questions();
    // The first look-up of the running process tells how long the answer is good for; then there is silence.
    while began.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
        if began.elapsed() < Duration::from_secs(1) {
            asked = names.questions();
        }
    }
    assert_eq!(names.questions(), asked, "nobody asks while the answer is good");
    names.say("app.internal", &["127.0.0.3"], 3600);
    proxy.reload();
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "three", "a reload asks anew");
}

#[test]
fn a_family_that_fails_keeps_its_addresses_and_silence_holds_up_nobody() {
    let names = NameServer::new();
    let (_two, _three, port) = pair();
    names.say("app.internal", &["127.0.0.2", "::1"], 1);
    let main = format!("{PLAIN}name_servers: ['{}']\n", names.address);
    let site = format!("domains: [shop.test]\nbackends: ['app.internal:{port}']\nhealth_check: off\n");
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    names.fail_for_ipv4();
    names.say("app.internal", &["127.0.0.2", "::2"], 1);
    proxy.wait_event(&format!("is now 127.0.0.2:{port}, [::2]:{port}"));
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "two");
}

#[test]
fn a_sticky_client_stays_when_a_name_gets_more_addresses() {
    let names = NameServer::new();
    let (_two, _three, port) = pair();
    names.say("app.internal", &["127.0.0.2"], 1);
    let main = format!("{PLAIN}name_servers: ['{}']\n", names.address);
    let site = format!("domains: [shop.test]\nbackends: ['app.internal:{port}']\nhealth_check: off\nsticky: true\n");
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let cookie = get(proxy.address(), "shop.test", "/", "").header("set-cookie");
    let cookie = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    names.say("app.internal", &["127.0.0.2", "127.0.0.3"], 1);
    proxy.wait_event(&format!("is now 127.0.0.2:{port}, 127.0.0.3:{port}"));
    wait_for(&proxy, "/", "three");
    for _ in 0..4 {
        let again = get(proxy.address(), "shop.test", "/", &cookie);
        assert_eq!((again.text().as_str(), again.header("set-cookie").as_str()), ("two", ""));
    }
}
