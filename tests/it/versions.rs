//! Versions of the configuration: the way back, confirmation, and last good versions of sites, also after a restart.

use nix::sys::signal::Signal;

use crate::actors::{Origin, PLAIN, Proxy, check, get};

fn site(host: &str, origin: &Origin) -> String {
    format!("domains: [{host}]\nbackends: ['{}']\nhealth_check: off\n", origin.address)
}

#[test]
fn a_reload_tells_what_changed_or_why_not() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/a.yaml", &site("a.test", &a))]);
    proxy.write("sites.d/b.yaml", &site("b.test", &b));
    proxy.write("main.yaml", &format!("{PLAIN}backend_groups: {{ g: {{ backends: ['127.0.0.1:9'] }} }}\nthreads: 3\n"));
    let said = proxy.ok(&["reload"]);
    for part in ["generation 2 (", "site b added", "backend group g added", "`portcullis upgrade` puts in force: threads"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    proxy.write("main.yaml", &format!("{PLAIN}thread: 3\n"));
    let said = proxy.cli(&["reload"]);
    assert!(
        said.code == Some(78) && said.text.contains("did you mean `threads`?") && said.text.contains("generation 2 stays"),
        "{}",
        said.text
    );
    assert!(proxy.ok(&["status"]).contains("unknown key `thread` (by root (pid "));
    proxy.write("main.yaml", PLAIN);
    proxy.write("sites.d/b.yaml", "domains: [b.test]\n");
    let said = proxy.cli(&["reload", "--strict"]);
    assert!(said.code == Some(78) && said.text.contains("leads nowhere"), "{}", said.text);
    let said = proxy.cli(&["reload"]);
    assert!(said.code == Some(3) && said.text.contains("site b has errors: its last good version stays"), "{}", said.text);
    assert_eq!(get(proxy.address(), "b.test", "/", "").text(), "B");
    let status = proxy.cli(&["status"]);
    assert!(status.code == Some(3) && status.text.contains("b: errors; its last good version is in force"), "{}", status.text);
}

#[test]
fn there_is_a_way_back_and_it_lasts_until_the_next_reload() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/s.yaml", &site("s.test", &a))]);
    let asked = |proxy: &Proxy| get(proxy.address(), "s.test", "/", "").text();
    proxy.write("sites.d/s.yaml", &site("s.test", &b));
    proxy.write("sites.d/new.yaml", &site("new.test", &b));
    proxy.ok(&["reload"]);
    assert_eq!(asked(&proxy), "B");
    let said = proxy.ok(&["config", "rollback"]);
    assert!(said.contains("generation 3 (") && said.contains("site new removed") && said.contains("site s changed"), "{said}");
    assert_eq!(asked(&proxy), "A");
    assert!(proxy.ok(&["config", "history"]).contains("back to 1"));
    let proxy = proxy.crash_and_restart();
    assert_eq!(asked(&proxy), "A", "a crash does not bring the files back");
    assert!(proxy.events().contains("a rollback, is in force"), "{}", proxy.events());
    proxy.ok(&["reload"]);
    assert_eq!(asked(&proxy), "B", "the files count again");
    let said = proxy.cli(&["config", "rollback", "77"]);
    assert!(said.code == Some(2) && said.text.contains("there is no generation 77"), "{}", said.text);
    let digests: std::collections::HashSet<String> = proxy
        .ok(&["config", "history"])
        .lines()
        .filter_map(|line| line.split("UTC  ").nth(1)?.split(' ').next().map(str::to_owned))
        .collect();
    assert_eq!(digests.len(), 2, "equal configurations have equal digests");
}

#[test]
fn what_nobody_confirms_goes_away_again() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/s.yaml", &site("s.test", &a))]);
    let asked = |proxy: &Proxy| get(proxy.address(), "s.test", "/", "").text();
    proxy.write("sites.d/s.yaml", &site("s.test", &b));
    let said = proxy.ok(&["reload", "--confirm", "1s"]);
    assert!(said.contains("generation 1 comes back at "), "{said}");
    assert_eq!(asked(&proxy), "B");
    proxy.wait_event("rolled back to generation 1");
    assert_eq!(asked(&proxy), "A");
    proxy.ok(&["reload", "--confirm", "1h"]);
    assert!(proxy.ok(&["status"]).contains("unconfirmed"));
    // It waits across a crash, and a plain reload is no confirmation.
    let proxy = proxy.crash_and_restart();
    proxy.wait_event("waits for `portcullis confirm`");
    assert!(proxy.ok(&["reload"]).contains("unless `portcullis confirm` comes first"));
    assert!(proxy.ok(&["confirm"]).contains("is confirmed"));
    assert!(!proxy.ok(&["status"]).contains("unconfirmed"));
    assert_eq!(proxy.cli(&["confirm"]).code, Some(2), "nothing waits any more");
    // The way back stays, whatever is reloaded meanwhile, and a rollback that is refused does not take it away.
    proxy.write("sites.d/s.yaml", &site("s.test", &a));
    proxy.ok(&["reload"]);
    proxy.ok(&["reload", "--confirm", "1h"]);
    let former = proxy.status()["config"]["pending"]["former"].clone();
    for n in 0..15 {
        proxy.write("sites.d/s.yaml", &format!("{}# {n}\n", site("s.test", &b)));
        proxy.ok(&["reload"]);
    }
    assert_eq!(proxy.cli(&["config", "rollback", "9999"]).code, Some(2));
    assert_eq!(proxy.status()["config"]["pending"]["former"], former);
    proxy.ok(&["reload", "--confirm", "1s"]);
    proxy.wait_event(&format!("rolled back to generation {former}"));
    assert_eq!(asked(&proxy), "A");
}

#[test]
fn a_broken_site_is_served_after_a_restart_and_others_are_not_kept_down() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/a.yaml", &site("a.test", &a)), ("sites.d/b.yaml", &site("b.test", &b))]);
    proxy.write("sites.d/a.yaml", "domains: [a.test");
    let proxy = proxy.crash_and_restart();
    assert!(proxy.events().contains("site a has errors: its last good version stays"), "{}", proxy.events());
    let asked = |proxy: &Proxy, host: &str| get(proxy.address(), host, "/", "").text();
    assert_eq!((asked(&proxy, "a.test"), asked(&proxy, "b.test")), ("A".into(), "B".into()));
    let proxy = proxy.crash_and_restart();
    assert_eq!(asked(&proxy, "a.test"), "A", "and after the next one");
    // The way back to a configuration of then brings what was in force, not the broken file.
    proxy.write("sites.d/a.yaml", &site("a.test", &b));
    proxy.ok(&["reload"]);
    assert_eq!(asked(&proxy, "a.test"), "B");
    proxy.ok(&["config", "rollback"]);
    assert_eq!(asked(&proxy, "a.test"), "A");
}

#[test]
fn a_site_whose_file_vanishes_stays_until_somebody_means_it() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/a.yaml", &site("a.test", &a)), ("sites.d/b.yaml", &site("b.test", &b))]);
    let path = |proxy: &Proxy, name: &str| proxy.directory.path().join(format!("sites.d/{name}.yaml"));
    let status = |proxy: &Proxy, host: &str| get(proxy.address(), host, "/", "").status;
    std::fs::remove_file(path(&proxy, "a")).unwrap();
    let said = proxy.cli(&["reload"]);
    assert!(said.code == Some(3) && said.text.contains("site a: its file") && said.text.contains("is gone"), "{}", said.text);
    assert_eq!(status(&proxy, "a.test"), 200);
    assert_eq!(proxy.cli(&["reload", "--strict"]).code, Some(78));
    let proxy = proxy.crash_and_restart();
    assert_eq!((status(&proxy, "a.test"), status(&proxy, "b.test")), (200, 200), "also after a restart");
    assert!(proxy.cli(&["status"]).text.contains("a: its file is gone"));
    // A link that leads nowhere is the same.
    std::os::unix::fs::symlink("nowhere.yaml", path(&proxy, "a")).unwrap();
    assert_eq!(proxy.cli(&["reload"]).code, Some(3));
    assert_eq!(status(&proxy, "a.test"), 200);
    std::fs::remove_file(path(&proxy, "a")).unwrap();
    assert_eq!(proxy.cli(&["reload", "--prune"]).code, Some(0));
    assert_eq!(proxy.status()["sites"]["good"], 1);
    // A file that was renamed is no loss, and one that is switched off was meant.
    std::fs::rename(path(&proxy, "b"), path(&proxy, "c")).unwrap();
    assert!(proxy.ok(&["reload"]).contains("site c added"));
    assert_eq!(status(&proxy, "b.test"), 200);
    let proxy = proxy.crash_and_restart();
    assert_eq!((status(&proxy, "b.test"), proxy.status()["sites"]["good"].as_u64()), (200, Some(1)));
    proxy.write("sites.d/c.yaml", &format!("enabled: false\n{}", site("b.test", &b)));
    assert!(proxy.ok(&["reload"]).contains("site c removed"));
}

#[test]
fn listeners_come_go_and_change_without_a_restart() {
    let origin = Origin::named("ok");
    let main = |listeners: &str| PLAIN.replace("[{ address: \"127.0.0.1:0\" }]", listeners);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let one = format!("[{{ address: '127.0.0.1:0', name: first }}, {{ address: '127.0.0.1:{port}', name: second }}]");
    let proxy = Proxy::start(&[("main.yaml", &main(&one)), ("sites.d/s.yaml", &site("s.test", &origin))]);
    let second: std::net::SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let mut kept = crate::actors::Client::plain(proxy.address());
    let mut leaving = crate::actors::Client::plain(second);
    let asked = |client: &mut crate::actors::Client| client.request("GET", "s.test", "/", "", b"").text();
    assert_eq!((asked(&mut kept), asked(&mut leaving)), ("ok".into(), "ok".into()));
    // From one address to all of them, over our own socket; the first listener gets another limit.
    let two = format!("[{{ address: '127.0.0.1:0', name: first, max_requests: 2 }}, {{ address: '0.0.0.0:{port}', name: second }}]");
    proxy.write("main.yaml", &main(&two));
    let said = proxy.ok(&["reload"]);
    assert!(said.contains("2 listeners changed: first, second"), "{said}");
    assert_eq!(asked(&mut kept), "ok", "a listener that stays keeps its connections");
    let mut new = crate::actors::Client::plain(second);
    assert_eq!(asked(&mut new), "ok");
    assert!(leaving.closes(), "the old socket is gone, and its connections finish");
    let mut limited = crate::actors::Client::plain(proxy.address());
    assert_eq!((asked(&mut limited), asked(&mut limited)), ("ok".into(), "ok".into()));
    assert!(limited.closes(), "new connections have the new limit");
    // What cannot be listened on refuses all of it.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bad = format!("[{{ address: '127.0.0.1:0', name: first }}, {{ address: '{}' }}]", taken.local_addr().unwrap());
    proxy.write("main.yaml", &main(&bad));
    let said = proxy.cli(&["reload"]);
    assert!(said.code == Some(78) && said.text.contains("another program listens there already"), "{}", said.text);
    assert_eq!(asked(&mut crate::actors::Client::plain(second)), "ok");
    proxy.write("main.yaml", &main("[{ address: '127.0.0.1:0', name: first }, { address: '192.0.2.77:81', freebind: true }]"));
    let said = proxy.ok(&["reload"]);
    assert!(said.contains("listener second removed") && said.contains("listener 192.0.2.77:81 added"), "{said}");
    assert!(std::net::TcpStream::connect(second).is_err());
}

#[test]
fn files_are_followed_where_that_is_wanted() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/s.yaml", &site("s.test", &a))]);
    proxy.write("main.yaml", &format!("{PLAIN}watch: true\n"));
    proxy.ok(&["reload"]);
    // As Kubernetes does it: a directory behind a link that is turned.
    let here = proxy.directory.path();
    let turn = |to: &str| {
        std::os::unix::fs::symlink(to, here.join("data.new")).unwrap();
        std::fs::rename(here.join("data.new"), here.join("sites.data")).unwrap();
    };
    for (version, origin) in [("v1", &a), ("v2", &b)] {
        std::fs::create_dir(here.join(version)).unwrap();
        std::fs::write(here.join(version).join("s.yaml"), site("s.test", origin)).unwrap();
    }
    turn("v1");
    proxy.write("main.yaml", &format!("{}watch: true\n", PLAIN.replace("sites.d/", "sites.data/")));
    proxy.wait_event("generation 3 with 1 sites is in force (by a change of the files)");
    assert_eq!(get(proxy.address(), "s.test", "/", "").text(), "A");
    turn("v2");
    proxy.wait_event("generation 4 with 1 sites is in force (by a change of the files)");
    assert_eq!(get(proxy.address(), "s.test", "/", "").text(), "B");
    // A mistake is told once, not at each look.
    std::fs::write(here.join("v2/s.yaml"), "domains: [s.test\n").unwrap();
    proxy.wait_event("site s has errors: its last good version stays");
    std::fs::write(here.join("v2/s.yaml"), site("s.test", &a)).unwrap();
    proxy.wait_event("generation 6 with 1 sites is in force (by a change of the files)");
    assert_eq!((get(proxy.address(), "s.test", "/", "").text().as_str(), proxy.count_events("has errors")), ("A", 1));
}

/// Whoever reloads or goes back has seen the files: only another change is one.
#[test]
fn files_that_are_followed_do_not_undo_a_rollback() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let main = format!("{PLAIN}watch: true\n");
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/s.yaml", &site("s.test", &a))]);
    let served = || get(proxy.address(), "s.test", "/", "").text();
    let stays = |wanted: &str| {
        // Three looks, and a good deal more.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(4);
        while std::time::Instant::now() < until {
            assert_eq!(served(), wanted, "{}", proxy.events());
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
        assert_eq!(proxy.count_events("(by a change of the files)"), 0, "{}", proxy.events());
    };
    proxy.write("sites.d/s.yaml", &site("s.test", &b));
    proxy.ok(&["reload"]);
    assert_eq!(served(), "B");
    proxy.ok(&["config", "rollback"]);
    stays("A");
    proxy.ok(&["reload", "--confirm", "1s"]);
    proxy.wait_event("was not confirmed in time");
    proxy.wait_event("rolled back to generation 3: generation 5");
    stays("A");
    // What is refused is told once, whoever asked.
    proxy.write("main.yaml", &format!("{main}nonsense: 1\n"));
    assert_eq!(proxy.cli(&["reload"]).code, Some(78));
    stays("A");
    assert_eq!(proxy.count_events("reload refused"), 1);
    proxy.write("main.yaml", &main);
    proxy.wait_event("generation 6 with 1 sites is in force (by a change of the files)");
    assert_eq!(served(), "B");
}

#[test]
fn other_settings_of_the_process_change_too() {
    let origin = Origin::named("ok");
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/s.yaml", &site("s.test", &origin))]);
    get(proxy.address(), "s.test", "/before", "");
    proxy.wait_target("/before");
    proxy.write("main.yaml", &PLAIN.replace("access_log: json", "access_log: { format: combined, path: access.log }"));
    proxy.ok(&["reload"]);
    get(proxy.address(), "s.test", "/after", "");
    let log = proxy.directory.path().join("access.log");
    for _ in 0..1000 {
        if std::fs::read_to_string(&log).is_ok_and(|text| text.contains("\"GET /after HTTP/1.1\" 200")) {
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    assert!(std::fs::read_to_string(&log).unwrap().contains("\"GET /after HTTP/1.1\" 200"));
    proxy.write("main.yaml", &PLAIN.replace("access_log: json", "access_log: { path: /proc/access.log }"));
    let said = proxy.cli(&["reload"]);
    assert!(said.code == Some(78) && said.text.contains("the access log cannot be opened"), "{}", said.text);
    get(proxy.address(), "s.test", "/still", "");
    proxy.write("main.yaml", PLAIN);
    proxy.ok(&["reload"]);
    get(proxy.address(), "s.test", "/back", "");
    proxy.wait_target("/back");
}

#[test]
fn half_written_and_looping_files_change_nothing() {
    let origin = Origin::named("ok");
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/s.yaml", &site("s.test", &origin))]);
    let here = proxy.directory.path();
    // A loop of links in the place of a site, of the main file, and of the directory of sites.
    std::os::unix::fs::symlink("loop.yaml", here.join("sites.d/loop.yaml")).unwrap();
    let said = proxy.cli(&["reload"]);
    assert!(said.code == Some(3) && said.text.contains("symbolic link"), "{:?} {}", said.code, said.text);
    std::fs::remove_file(here.join("sites.d/loop.yaml")).unwrap();
    std::fs::rename(here.join("sites.d"), here.join("aside")).unwrap();
    std::os::unix::fs::symlink("sites.d", here.join("sites.d")).unwrap();
    let said = proxy.cli(&["reload"]);
    assert!(said.code == Some(78) && said.text.contains("sites.d: cannot be read"), "{}", said.text);
    std::fs::remove_file(here.join("sites.d")).unwrap();
    std::fs::rename(here.join("aside"), here.join("sites.d")).unwrap();
    // Cut off in the middle of a word, and of a character.
    for cut in [&b"listeners: [{ addre"[..], b"# \xC3"] {
        std::fs::write(here.join("main.yaml"), cut).unwrap();
        let said = proxy.cli(&["reload", "--socket", "admin.sock"]);
        assert_eq!(said.code, Some(78), "{}", said.text);
    }
    assert_eq!(get(proxy.address(), "s.test", "/", "").text(), "ok");
    // A file that is written to all the time is not taken for what it is at some moment.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                std::fs::write(here.join("main.yaml"), format!("{PLAIN}# {n}\n")).unwrap();
            }
        });
        // The writer ends with the last reload, whatever comes out.
        let said: Vec<_> = (0..20)
            .map(|_| {
                let said = proxy.cli(&["reload", "--socket", "admin.sock"]);
                (said.code, said.text, get(proxy.address(), "s.test", "/", "").text())
            })
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for (code, text, served) in said {
            assert!(code == Some(0) || text.contains("goes on changing") || code == Some(78), "{text}");
            assert_eq!(served, "ok", "{text}");
        }
    });
    proxy.signal(Signal::SIGHUP);
    assert_eq!(proxy.status()["state"], "ready");
}

/// A ConfigMap that is turned in the middle of a reload: the one or the other, or somebody is told.
#[test]
fn a_reload_reads_all_files_as_they_were_at_one_moment() {
    const SITES: usize = 400;
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path().to_owned();
    for version in ["v1", "v2"] {
        std::fs::create_dir(here.join(version)).unwrap();
        for n in 0..SITES {
            let site = format!("domains: [s{n}.test]\nroutes: [{{ path: /, respond: {{ body: {version} }} }}]\n");
            std::fs::write(here.join(version).join(format!("s{n:04}.yaml")), site).unwrap();
        }
    }
    let turn = |to: &str| {
        std::os::unix::fs::symlink(to, here.join("new")).unwrap();
        std::fs::rename(here.join("new"), here.join("sites.d")).unwrap();
    };
    turn("v1");
    let proxy = Proxy::start_in(directory, &[("main.yaml", PLAIN)]);
    let began = std::time::Instant::now();
    proxy.ok(&["reload"]);
    let all = began.elapsed();
    for n in 0..24 {
        let (to, after) = (if n % 2 == 0 { "v2" } else { "v1" }, all * n / 24);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::park_timeout(after);
                turn(to);
            });
            let said = proxy.ok(&["reload"]);
            let first = get(proxy.address(), "s0.test", "/", "").text();
            let last = get(proxy.address(), &format!("s{}.test", SITES - 1), "/", "").text();
            assert!(first == last || said.contains("has changed after it was read"), "{first} {last} {said}");
        });
    }
}

#[test]
fn a_start_after_a_rollback_tells_of_sites_that_it_cannot_serve() {
    let origin = Origin::named("ok");
    let directory = tempfile::TempDir::new().unwrap();
    crate::actors::Ca::new().issue(directory.path(), "t", &["t.test"]);
    let secure = format!("{}tls: {{ cert: ../t.pem, key: ../t.key }}\n", site("t.test", &origin));
    let proxy = Proxy::start_in(directory, &[("main.yaml", PLAIN), ("sites.d/t.yaml", &secure)]);
    proxy.write("sites.d/s.yaml", &site("s.test", &origin));
    proxy.ok(&["reload"]);
    proxy.ok(&["config", "rollback"]);
    std::fs::remove_file(proxy.directory.path().join("t.key")).unwrap();
    let proxy = proxy.crash_and_restart();
    assert!(proxy.events().contains("a rollback, is in force"), "{}", proxy.events());
    assert!(proxy.events().contains("site t is left out because of its errors"), "{}", proxy.events());
}

#[test]
fn a_state_file_that_cannot_be_read_stops_the_start_and_one_that_is_empty_is_told() {
    let proxy = Proxy::start(&[
        ("main.yaml", PLAIN),
        ("sites.d/shop.yaml", "domains: [shop.test]\nroutes: [{ path: /, respond: { body: one } }]\n"),
    ]);
    let state = proxy.directory.path().join("state/state.redb");
    let proxy = proxy.crash_and_restart_after(|| {
        let whole = std::fs::read(&state).unwrap();
        let directory = state.parent().unwrap().parent().unwrap();
        for damaged in [&b"not a state file"[..], &whole[..whole.len() / 3]] {
            std::fs::write(&state, damaged).unwrap();
            let start = check("run", &[], directory, &[]);
            assert!(start.code == Some(1) && start.text.contains("state.redb: "), "{}", start.text);
            assert!(start.text.contains("move it away"), "what to do is told: {}", start.text);
        }
        std::fs::write(&state, "").unwrap();
    });
    assert!(proxy.events().contains("state.redb: it is empty: whatever was kept there is gone"), "{}", proxy.events());
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "one");
    assert!(!proxy.ok(&["config", "history"]).contains("\n   2 "), "it counts from one again");
}

#[test]
fn a_newcomer_does_not_get_a_domain_that_another_site_has_at_a_start_either() {
    let (old, new) = (Origin::named("old"), Origin::named("new"));
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/shop.yaml", &site("shop.test", &old))]);
    // It comes first in the order of files.
    proxy.write("sites.d/aaa.yaml", &site("shop.test", &new));
    assert_eq!(proxy.cli(&["reload"]).code, Some(3));
    proxy.ok(&["upgrade"]);
    let asked = |proxy: &Proxy| get(proxy.address(), "shop.test", "/", "").text();
    assert_eq!(asked(&proxy), "old");
    let proxy = proxy.crash_and_restart();
    assert_eq!(asked(&proxy), "old");
    assert!(proxy.cli(&["status"]).text.contains("aaa: errors; answers 503"), "{}", proxy.cli(&["status"]).text);
    assert_eq!(proxy.cli(&["reload"]).code, Some(3));
    std::fs::remove_file(proxy.directory.path().join("sites.d/shop.yaml")).unwrap();
    proxy.ok(&["reload", "--prune"]);
    assert_eq!(asked(&proxy), "new");
}

#[test]
fn a_state_file_with_damaged_pages_stops_the_start() {
    let mut proxy =
        Proxy::start(&[("main.yaml", PLAIN), ("sites.d/shop.yaml", "domains: [shop.test]\nroutes: [{ path: /, respond: 204 }]\n")]);
    // More than one change: the library goes back to the one before, if that is whole, and that may be nothing.
    for n in 0..3 {
        proxy.write("sites.d/shop.yaml", &format!("domains: [shop.test]\nroutes: [{{ path: /{n}, respond: 204 }}]\n"));
        proxy.ok(&["reload"]);
    }
    // After an end in good order the library does not look through it.
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit(), Some(0));
    let state = proxy.directory.path().join("state/state.redb");
    let mut pages = std::fs::read(&state).unwrap();
    let mut random = 12_345_u32;
    for byte in &mut pages[4096..] {
        random = random.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7fff_ffff;
        *byte = (random >> 16).to_le_bytes()[0];
    }
    std::fs::write(&state, &pages).unwrap();
    let start = check("run", &[], proxy.directory.path(), &[]);
    assert!(start.code == Some(1) && start.text.contains("state.redb: ") && start.text.contains("move it away"), "{}", start.text);
}
