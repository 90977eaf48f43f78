//! Reload: all of the new configuration or none of it, and a broken site is nobody else's trouble.

use crate::actors::{Client, Origin, PLAIN, Proxy, get};

#[test]
fn moving_a_user_is_one_row_and_a_reload() {
    let (node1, node2) = (Origin::named("node1"), Origin::named("node2"));
    let main = format!(
        "{PLAIN}backend_groups:\n  node1: {{ backends: ['{}'] }}\n  node2: {{ backends: ['{}'] }}\nusers: users.yaml\n",
        node1.address, node2.address
    );
    let users = |node: &str| format!("apps: {{ pma: {{ role: mysql }} }}\nusers: {{ user1: {{ mysql: {node} }} }}\n");
    let proxy = Proxy::start(&[
        ("main.yaml", &main),
        ("sites.d/panel.yaml", "domains: [panel.test]\nroutes: [{ path: '/{user}/{app}/', users: true }]\n"),
        ("users.yaml", &users("node1")),
    ]);
    let mut kept = Client::plain(proxy.address());
    assert_eq!(kept.request("GET", "panel.test", "/user1/pma/", "", b"").text(), "node1");
    proxy.write("users.yaml", &users("node2"));
    let said = proxy.reload();
    assert!(said.contains("reloaded: generation 2 with 1 sites"), "{said}");
    assert_eq!(kept.request("GET", "panel.test", "/user1/pma/", "", b"").text(), "node2", "also on a connection from before");
    proxy.write("users.yaml", &users("node3"));
    let said = proxy.reload();
    assert!(
        said.contains("no backend group is named `node3`") && said.contains("did you mean") && said.contains("reload refused"),
        "{said}"
    );
    assert_eq!(get(proxy.address(), "panel.test", "/user1/pma/", "").text(), "node2", "the configuration in force stays");
}

#[test]
fn a_broken_site_keeps_its_last_good_version_and_others_go_live() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let site = |host: &str, origin: &Origin| format!("domains: [{host}]\nbackends: ['{}']\n", origin.address);
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/a.yaml", &site("a.test", &a))]);
    proxy.write("sites.d/a.yaml", "domains: [a.test]\nbakends: [x]\n");
    proxy.write("sites.d/b.yaml", &site("b.test", &b));
    let said = proxy.reload();
    assert!(
        said.contains("unknown key `bakends`") && said.contains("did you mean `backends`?") && said.contains("its last good version stays"),
        "{said}"
    );
    assert_eq!(get(proxy.address(), "a.test", "/", "").text(), "A");
    assert_eq!(get(proxy.address(), "b.test", "/", "").text(), "B");
    proxy.write("sites.d/a.yaml", &site("a.test", &b));
    proxy.reload();
    assert_eq!(get(proxy.address(), "a.test", "/", "").text(), "B", "mended, it goes live");
}

#[test]
fn a_site_that_is_broken_from_the_start_answers_503() {
    let b = Origin::named("B");
    let proxy = Proxy::start(&[
        ("main.yaml", PLAIN),
        ("sites.d/a.yaml", "domains: [a.test]\ngroup: nowhere\n"),
        ("sites.d/b.yaml", &format!("domains: [b.test]\nbackends: ['{}']\n", b.address)),
    ]);
    let response = get(proxy.address(), "a.test", "/a", "");
    assert_eq!((response.status, proxy.wait_target("/a")["reason"].as_str()), (503, Some("broken_site")));
    assert_eq!(get(proxy.address(), "b.test", "/", "").text(), "B");
}

#[test]
fn health_survives_a_reload() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let site = format!("domains: [shop.test]\nbackends: ['{}', '{}']\nhealth_check: {{ interval: 1h }}\n", a.address, b.address);
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/shop.yaml", &site)]);
    a.die();
    for _ in 0..2 {
        assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "B");
    }
    proxy.wait_event("out of the rotation");
    // The first probe may have connected just before the backend died, and let it in once more.
    let mut asked_once = 0;
    for n in 0.. {
        let target = format!("/before{n}");
        assert_eq!(get(proxy.address(), "shop.test", &target, "").text(), "B");
        asked_once = if proxy.wait_target(&target)["attempts"] == 1 { asked_once + 1 } else { 0 };
        if asked_once == 4 {
            break;
        }
    }
    proxy.reload();
    for n in 0..4 {
        let target = format!("/{n}");
        assert_eq!(get(proxy.address(), "shop.test", &target, "").text(), "B");
        assert_eq!(proxy.wait_target(&target)["attempts"], 1, "the dead backend is not asked again");
    }
}

#[test]
fn reloads_under_load_lose_nothing() {
    let (origin, other) = (Origin::named("ok"), Origin::named("ok"));
    let site = |origin: &Origin, n: usize| {
        format!(
            "domains: [shop.test]\nbackends: ['{}']\nresponse_headers: {{ set: {{ X-N: '{n}' }} }}\nroutes: [{{ path: /n{n}, respond: 204 }}]\n",
            origin.address
        )
    };
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/shop.yaml", &site(&origin, 0))]);
    let address = proxy.address();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let served = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::plain(address);
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        assert_eq!(client.request("GET", "shop.test", "/", "", b"").text(), "ok");
                        served.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for n in 0..30 {
            // The very site that is asked changes its backends, headers and routes.
            proxy.write("sites.d/shop.yaml", &site(if n % 2 == 0 { &other } else { &origin }, n));
            proxy.write("sites.d/other.yaml", &format!("domains: [other{n}.test]\nbackends: ['{}']\n", origin.address));
            proxy.reload();
            // Each configuration serves some.
            let before = served.load(std::sync::atomic::Ordering::Relaxed);
            while served.load(std::sync::atomic::Ordering::Relaxed) < before + 4 && workers.iter().all(|worker| !worker.is_finished()) {
                std::thread::yield_now();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn a_newcomer_does_not_get_a_domain_that_another_site_has() {
    let (old, new) = (Origin::named("old"), Origin::named("new"));
    let site = |origin: &Origin| format!("domains: [o.test]\nbackends: ['{}']\n", origin.address);
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/old.yaml", &site(&old))]);
    proxy.write("sites.d/a.yaml", &site(&new));
    let said = proxy.reload();
    assert!(said.contains("`o.test` belongs to another site already") && said.contains("site a is left out"), "{said}");
    assert_eq!(get(proxy.address(), "o.test", "/", "").text(), "old");
    // Also while the old one is broken and stays as it was.
    proxy.write("sites.d/old.yaml", "domains: [o.test");
    let said = proxy.reload();
    assert!(said.contains("site old has errors: its last good version stays"), "{said}");
    assert_eq!(get(proxy.address(), "o.test", "/", "").text(), "old");
}

#[test]
fn a_kept_site_never_leads_to_another_group() {
    let (own, nine) = (Origin::named("own"), Origin::named("nine"));
    let main = |groups: &str| format!("{PLAIN}{groups}");
    let with = main(&format!("backend_groups: {{ node9: {{ backends: ['{}'] }} }}\n", nine.address));
    let site = format!("name: named\ndomains: [n.test]\nbackends: ['{}']\nroutes: [{{ path: /nine/, group: node9 }}]\n", own.address);
    let proxy = Proxy::start(&[("main.yaml", &with), ("sites.d/file.yaml", &site)]);
    assert_eq!(get(proxy.address(), "n.test", "/nine/", "").text(), "nine");
    // Unreadable, it is still known by its name.
    proxy.write("sites.d/file.yaml", "domains: [n.test");
    let said = proxy.reload();
    assert!(said.contains("site named has errors: its last good version stays"), "{said}");
    assert_eq!(
        (get(proxy.address(), "n.test", "/nine/", "").text(), get(proxy.address(), "n.test", "/", "").text()),
        ("nine".into(), "own".into())
    );
    // Without the group it cannot stay: that is no mistake of the site alone.
    proxy.write("main.yaml", &main(""));
    let said = proxy.reload();
    assert!(said.contains("is served now") && said.contains("correct the sites first: named"), "{said}");
    assert_eq!(get(proxy.address(), "n.test", "/nine/", "").text(), "nine");
    proxy.write("sites.d/file.yaml", &site.replace("node9", "node8"));
    assert!(proxy.reload().contains("is served now"));
    proxy.write("sites.d/file.yaml", &format!("name: named\ndomains: [n.test]\nbackends: ['{}']\n", own.address));
    proxy.ok(&["reload"]);
    assert_eq!(get(proxy.address(), "n.test", "/nine/", "").text(), "own");
}

/// A slip of the pen in the main file must not take sites down that nobody has touched.
#[test]
fn a_group_that_sites_need_is_not_lost_with_its_name() {
    let origin = Origin::named("ok");
    let main = |name: &str| format!("{PLAIN}backend_groups: {{ {name}: {{ backends: ['{}'] }} }}\n", origin.address);
    let sites: Vec<(String, String)> =
        (0..12).map(|n| (format!("sites.d/s{n:02}.yaml"), format!("domains: [s{n}.test]\ngroup: node1\n"))).collect();
    let main_file = main("node1");
    let files: Vec<(&str, &str)> =
        std::iter::once(("main.yaml", main_file.as_str())).chain(sites.iter().map(|(file, text)| (file.as_str(), text.as_str()))).collect();
    let proxy = Proxy::start(&files);
    let before = proxy.status()["config"]["generation"].clone();
    proxy.write("main.yaml", &main("node01"));
    let said = proxy.cli(&["reload"]);
    assert_eq!(said.code, Some(78), "{}", said.text);
    assert!(said.text.contains("s00, s01, s02, s03, s04 and 7 more"), "{}", said.text);
    assert!(said.text.contains("bring the group back"), "{}", said.text);
    assert!(!said.text.contains("left out"), "{}", said.text);
    assert_eq!(proxy.status()["config"]["generation"], before);
    assert_eq!(get(proxy.address(), "s11.test", "/", "").text(), "ok");
    // A file that is gone needs its group as well, until somebody means it.
    for (file, _) in &sites {
        std::fs::remove_file(proxy.directory.path().join(file)).unwrap();
    }
    assert_eq!(proxy.cli(&["reload"]).code, Some(78));
    assert_eq!(get(proxy.address(), "s11.test", "/", "").text(), "ok");
    proxy.ok(&["reload", "--prune"]);
    assert_eq!(proxy.status()["sites"]["good"], 0);
}

#[test]
fn what_a_reload_cannot_change_is_named() {
    let proxy = Proxy::with_site("backends: ['127.0.0.1:9']\n");
    proxy.write("main.yaml", &format!("{PLAIN}threads: 3\nrun_as: nobody\n"));
    let said = proxy.reload();
    assert!(
        said.contains("only an upgrade puts it in force: threads") && said.contains("only a restart puts it in force: run_as"),
        "{said}"
    );
}

#[test]
fn a_kept_site_keeps_its_own_backends_and_domains() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let site = |domains: &str, origin: &Origin| format!("domains: [{domains}]\nbackends: ['{}']\n", origin.address);
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/m.yaml", &site("a.test, x.test", &one))]);
    // Broken, while its name and one of its domains are given to others.
    proxy.write("main.yaml", &format!("{PLAIN}backend_groups: {{ m: {{ backends: ['{}'] }} }}\n", two.address));
    proxy.write("sites.d/m.yaml", "domains: [a.test]\nnonsense: 1\n");
    proxy.write("sites.d/c.yaml", &site("x.test, c.test", &two));
    let said = proxy.reload();
    assert!(
        said.contains("site m has errors: its last good version stays") && said.contains("`x.test` belongs to another site already"),
        "{said}"
    );
    for host in ["a.test", "x.test"] {
        assert_eq!(get(proxy.address(), host, "/", "").text(), "one", "{host}");
    }
    proxy.write("sites.d/m.yaml", &site("a.test", &one).replace("backends", "name: other\nbackends"));
    let said = proxy.reload();
    assert!(!said.contains("error"), "{said}");
    assert_eq!(
        (get(proxy.address(), "a.test", "/", "").text(), get(proxy.address(), "x.test", "/", "").text()),
        ("one".into(), "two".into())
    );
}

#[test]
fn reloads_do_not_disturb_http2_over_tls() {
    let origin = Origin::named("ok");
    let ca = crate::actors::Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "shop", &["shop.test"]);
    let main = "listeners: [{ address: '127.0.0.1:0', tls: true }]\naccess_log: off\nsites: sites.d/*.yaml\n";
    let site = format!("domains: [shop.test]\ntls: {{ cert: ../shop.pem, key: ../shop.key }}\nbackends: ['{}']\n", origin.address);
    let proxy = Proxy::start_in(directory, &[("main.yaml", main), ("sites.d/shop.yaml", &site)]);
    let config = crate::actors::tls_config(ca.roots(), &["h2"], rustls::ALL_VERSIONS);
    let h2 = crate::actors::H2::tls(proxy.address(), "shop.test", std::sync::Arc::new(config));
    for _ in 0..5 {
        for _ in 0..20 {
            assert_eq!(h2.request("GET", "https://shop.test/", &[], &[]).unwrap().text(), "ok");
        }
        proxy.reload();
    }
    assert!(h2.request("GET", "https://unknown.test/", &[], &[]).is_err(), "only this stream is reset");
    assert_eq!(h2.request("GET", "https://shop.test/", &[], &[]).unwrap().text(), "ok");
}

#[test]
fn a_reload_that_comes_too_early_is_not_the_end() {
    let origin = Origin::named("up");
    let directory = tempfile::TempDir::new().unwrap();
    let site = format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address);
    // A name server that never answers makes the start slow.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let main = format!(
        "{PLAIN}name_servers: ['{}']\nbackend_groups: {{ far: {{ backends: ['far.internal:80'], health_check: off }} }}\n",
        silent.local_addr().unwrap()
    );
    let proxy = Proxy::start_early(directory, &[("main.yaml", &main), ("sites.d/a.yaml", &site)], nix::sys::signal::Signal::SIGHUP);
    proxy.wait_event("reloaded: generation 2");
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "up");
}
