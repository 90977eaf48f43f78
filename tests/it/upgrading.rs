//! Upgrade: a new process takes over with the same sockets, or the old one goes on as if nothing had happened.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use rustls::version::{TLS12, TLS13};

use crate::actors::{Ca, Client, H2, Origin, PLAIN, Proxy, Reply, get, tls_config};

const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// Answers requests, and echoes what WebSockets say.
fn origin() -> Origin {
    Origin::new(|request| match request.target.as_str() {
        "/ws" => Reply::Take(Box::new(|mut stream| {
            use std::io::{Read as _, Write as _};
            let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                if stream.write_all(&piece[..read]).is_err() {
                    return;
                }
            }
        })),
        _ => Reply::text("ok"),
    })
}

fn start(main: &str) -> (Proxy, Origin) {
    let origin = origin();
    let site = format!("domains: [shop.test]\nbackends: ['{}']\nhealth_check: off\n", origin.address);
    (Proxy::start(&[("main.yaml", &format!("{PLAIN}{main}")), ("sites.d/shop.yaml", &site)]), origin)
}

/// A program that stands in for a new version: it gets the line on its standard input and does what `script` says.
fn stand_in(proxy: &Proxy, name: &str, script: &str) -> String {
    let text = format!(
        "#!/usr/bin/env python3\nimport json, os, socket, sys, time\nline = socket.socket(fileno=0)\n\
         def hear(): return json.loads(socket.recv_fds(line, 65536, 1)[0])\ndef say(what): line.send(json.dumps(what).encode())\n\
         hello = hear()['Hello']\n[hear() for _ in range(hello['listeners'] + hello['plain_admin'])]\n{script}\n"
    );
    let path = proxy.directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn clients_do_not_notice_that_another_process_serves() {
    let (proxy, _origin) = start("drain_timeout: 1s\n");
    let address = proxy.address();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Each ends when its connection is told to; a new one goes on.
        let client = || {
            let mut served = 0;
            let mut client = Client::plain(address);
            while !stop.load(Ordering::Relaxed) {
                let response = client.request("GET", "shop.test", "/", "", b"");
                assert_eq!(response.text(), "ok");
                served += 1;
                if response.header("connection") == "close" {
                    client = Client::plain(address);
                }
            }
            served
        };
        let h2 = || {
            let mut served = 0;
            let mut client = H2::plain(address);
            while !stop.load(Ordering::Relaxed) {
                match client.request("GET", "http://shop.test/", &[], &[]) {
                    Ok(response) => {
                        assert_eq!(response.text(), "ok");
                        served += 1;
                    }
                    // Only a request that was never taken may fail.
                    Err(error) => {
                        assert!(error.is_go_away() || error.is_io() || error.is_library(), "{error}");
                        client = H2::plain(address);
                        assert_eq!(client.request("GET", "http://shop.test/", &[], &[]).unwrap().text(), "ok");
                    }
                }
            }
            served
        };
        let workers = [scope.spawn(client), scope.spawn(client), scope.spawn(h2)];
        let mut seen = vec![proxy.pid()];
        for n in 0..5 {
            if n % 2 == 0 {
                proxy.ok(&["upgrade"]);
            } else {
                proxy.next_event(" serves; this one finishes", || proxy.signal(Signal::SIGUSR2));
            }
            assert!(!seen.contains(&proxy.pid()), "another process serves");
            seen.push(proxy.pid());
            assert_eq!(proxy.status()["pid"].as_i64(), Some(i64::from(proxy.pid())));
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            assert!(worker.join().unwrap() > 10);
        }
    });
}

#[test]
fn the_old_process_ends_as_soon_as_it_is_empty_and_says_goodbye_to_websockets() {
    let (mut proxy, _origin) = start("drain_timeout: 1500ms\n");
    let mut socket = Client::plain(proxy.address());
    socket.send(WEBSOCKET);
    assert!(socket.head().starts_with("HTTP/1.1 101 "));
    let mut idle = Client::plain(proxy.address());
    assert_eq!(idle.request("GET", "shop.test", "/", "", b"").text(), "ok");
    let began = std::time::Instant::now();
    proxy.ok(&["upgrade"]);
    assert!(idle.closes(), "who has nothing to say is let go");
    // A frame that is half sent: nothing of ours lands inside it.
    socket.send([0x81, 0x83, 1, 2, 3, 4, b'a', b'b', b'c']);
    assert_eq!(socket.exactly(9), [0x81, 0x83, 1, 2, 3, 4, b'a', b'b', b'c'], "the tunnel goes on");
    assert_eq!(socket.exactly(4), [0x88, 0x02, 0x03, 0xE9], "1001, going away");
    assert!(began.elapsed() >= std::time::Duration::from_millis(1400), "not before the deadline");
    assert!(socket.closes());
    assert_eq!(proxy.wait_exit(), Some(0));
    assert_eq!(proxy.wait_target("/ws")["reason"], "going_away");
    // Nobody is connected: it ends at once, whatever the timeout.
    let (mut proxy, _origin) = start("drain_timeout: 1h\n");
    proxy.ok(&["upgrade"]);
    assert_eq!(proxy.wait_exit(), Some(0));
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "ok");
}

/// A balancer keeps its connection to `/readyz`: an upgrade is no reason to take the node out.
#[test]
fn readiness_stays_over_an_upgrade() {
    let admin = "admin: { socket: admin.sock, address: '127.0.0.1:0' }";
    let origin = origin();
    let site = format!("domains: [shop.test]\nbackends: ['{}']\nhealth_check: off\n", origin.address);
    let main = PLAIN.replace("admin: { socket: admin.sock }", admin);
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let plain = proxy.wait_event("/livez, /readyz and /metrics are answered on");
    let plain = plain.rsplit(' ').next().unwrap().parse().unwrap();
    // The old process has something to finish.
    let mut websocket = Client::plain(proxy.address());
    websocket.send(WEBSOCKET);
    websocket.head();
    let mut kept = Client::plain(plain);
    assert_eq!(kept.request("GET", "x", "/readyz", "", b"").status, 200);
    proxy.ok(&["upgrade"]);
    let answer = kept.request("GET", "x", "/readyz", "", b"");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ready: another process has taken over\n"));
    assert_eq!(answer.header("connection"), "close");
    assert!(kept.closes());
    assert_eq!(get(plain, "x", "/readyz", "").text(), "ready\n");
}

/// Sockets that nobody takes fill the line between the processes.
#[test]
fn a_new_process_that_hangs_is_given_up_however_many_listeners_there_are() {
    let listeners: String = (0..400).map(|n| format!("  - {{ address: '127.0.0.1:0', name: l{n} }}\n")).collect();
    let main = format!("listeners:\n{listeners}{}", PLAIN.split_once('\n').unwrap().1);
    let origin = origin();
    let site = format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address);
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let binary = proxy.directory.path().join("hangs");
    std::fs::write(&binary, "#!/bin/sh\nexec sleep 300\n").unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = proxy.cli(&["upgrade", "--binary", binary.to_str().unwrap(), "--timeout", "1s"]);
    assert!(said.code == Some(1) && said.text.contains("the new process said nothing for 1s"), "{}", said.text);
    assert!(said.text.contains("was killed"), "{}", said.text);
    proxy.ok(&["reload"]);
    assert_eq!(get(proxy.addresses[399], "shop.test", "/", "").text(), "ok");
}

#[test]
fn a_new_process_that_fails_changes_nothing() {
    let (proxy, _origin) = start("");
    let mut kept = Client::plain(proxy.address());
    let mut socket = Client::plain(proxy.address());
    socket.send(WEBSOCKET);
    assert!(socket.head().starts_with("HTTP/1.1 101 "));
    let pid = proxy.pid();
    let ready = "say({'Ready': {'version': 'x'}})";
    let cases = [
        ("gone", "sys.exit(3)".to_owned(), "ended before it was ready (exit status: 3"),
        ("silent", "time.sleep(600)".to_owned(), "said nothing for 1s (process "),
        ("failed", "say({'Failed': {'why': 'no luck'}})".to_owned(), "the new process says: no luck"),
        ("nonsense", "line.send(b'what')".to_owned(), "cannot be understood"),
        ("too-early", "say('Serving')".to_owned(), "serves without having been told to"),
        ("dies-ready", format!("{ready}\nsys.exit(0)"), "the new process"),
        ("dies-told", format!("{ready}\nassert hear() == 'Yours'\nsys.exit(0)"), "ended before it served"),
        (
            "dies-published",
            format!(
                "{ready}\nhear()\nown = socket.socket(socket.AF_UNIX)\nown.bind('aside')\nos.rename('aside', 'admin.sock')\nsys.exit(0)"
            ),
            "ended before it served",
        ),
        ("fails-told", format!("{ready}\nhear()\nsay({{'Failed': {{'why': 'no room'}}}})"), "the new process says: no room"),
    ];
    for (name, script, says) in cases {
        let binary = stand_in(&proxy, name, &script);
        let said = proxy.cli(&["upgrade", "--binary", &binary, "--timeout", "1s"]);
        assert!(said.code == Some(1) && said.text.contains(says) && said.text.contains("the old process goes on"), "{name}: {}", said.text);
        assert_eq!(kept.request("GET", "shop.test", "/", "", b"").text(), "ok", "{name}: on a connection from before");
        assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "ok", "{name}: on a new one");
        socket.send([0x81, 0x01, b'x']);
        assert_eq!(socket.exactly(3), [0x81, 0x01, b'x'], "{name}");
        // The admin socket is bound anew where the new process may have replaced it.
        assert!((0..1000).any(|_| proxy.cli(&["status"]).code == Some(0)), "{name}");
        assert_eq!(proxy.status()["pid"].as_i64(), Some(i64::from(pid)), "{name}");
        assert!(proxy.ok(&["reload"]).contains("is in force"), "{name}: it takes commands, and keeps its state");
    }
    for (binary, says) in [("/bin/false", "ended before it was ready"), ("/nowhere/portcullis", "cannot be started")] {
        let said = proxy.cli(&["upgrade", "--binary", binary]);
        assert!(said.code == Some(1) && said.text.contains(says), "{}", said.text);
    }
    // The real program, which could not serve a site as well as this one does.
    let kept = std::fs::read_to_string(proxy.directory.path().join("sites.d/shop.yaml")).unwrap();
    let ca = Ca::new();
    ca.issue(proxy.directory.path(), "shop", &["shop.test"]);
    proxy.write("sites.d/shop.yaml", &format!("{kept}tls: {{ cert: ../shop.pem, key: ../shop.key }}\n"));
    proxy.ok(&["reload"]);
    std::fs::remove_file(proxy.directory.path().join("shop.key")).unwrap();
    let history = proxy.ok(&["config", "history"]);
    let said = proxy.cli(&["upgrade"]);
    assert!(said.code == Some(1) && said.text.contains("would answer with 503 for sites that are served now: shop"), "{}", said.text);
    assert_eq!(proxy.ok(&["config", "history"]), history, "it has left nothing behind");
    // Nor is a site given up whose file is gone as well.
    let file = proxy.directory.path().join("sites.d/shop.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let said = proxy.cli(&["upgrade"]);
    assert!(said.code == Some(1) && said.text.contains("would answer with 503 for sites that are served now: shop"), "{}", said.text);
    std::fs::write(&file, text).unwrap();
    // The way back to what is in force is still there.
    proxy.write("sites.d/shop.yaml", &kept);
    proxy.next_event("rolled back to generation", || drop(proxy.ok(&["reload", "--confirm", "1s"])));
    proxy.ok(&["reload"]);
    // And with files that it refuses.
    proxy.write("main.yaml", "listeners: 5\n");
    let said = proxy.cli(&["upgrade", "--socket", "admin.sock"]);
    assert!(said.code == Some(1) && said.text.contains("the new process says: the configuration has errors"), "{}", said.text);
    proxy.wait_event("expected a list, found integer `5`");
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "ok");
}

#[test]
fn the_old_process_serves_again_when_the_new_one_dies_soon() {
    let (proxy, _origin) = start("drain_timeout: 1h\n");
    let mut socket = Client::plain(proxy.address());
    socket.send(WEBSOCKET);
    assert!(socket.head().starts_with("HTTP/1.1 101 "));
    let pid = proxy.pid();
    // It holds on to the old process's WebSocket, so that one still drains when the new one dies.
    let binary = stand_in(
        &proxy,
        "dies",
        "say({'Ready': {'version': 'x'}})\nhear()\nsay('Serving')\nhear() if os.environ.get('NEVER') else time.sleep(0.2)",
    );
    proxy.next_event("this one serves again", || drop(proxy.ok(&["upgrade", "--binary", &binary])));
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "ok");
    for _ in 0..1000 {
        if proxy.cli(&["status"]).code == Some(0) {
            break;
        }
    }
    assert_eq!(proxy.status()["pid"].as_i64(), Some(i64::from(pid)));
    socket.send([0x81, 0x01, b'x']);
    assert_eq!(socket.exactly(3), [0x81, 0x01, b'x']);
    assert!(proxy.ok(&["reload"]).contains("is in force"));
    for n in 0..3 {
        proxy.ok(&["upgrade"]);
        assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "ok", "{n}: the next upgrade works");
    }
    // The first process still has its WebSocket. Those after it have ended in good order: it does not serve again.
    assert_eq!(proxy.count_events("this one serves again"), 1, "{}", proxy.events());
    proxy.signal(Signal::SIGTERM);
    proxy.wait_event("stopped: every connection has finished");
    for _ in 0..2000 {
        if std::net::TcpStream::connect(proxy.address()).is_err() {
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
    assert_eq!(proxy.count_events("this one serves again"), 1, "{}", proxy.events());
}

/// A service manager cuts what is left when the main process has ended.
#[test]
fn a_stop_waits_for_the_processes_before_this_one() {
    for upgrades in [1, 2, 3] {
        let (mut proxy, _origin) = start("drain_timeout: 2s\n");
        let mut socket = Client::plain(proxy.address());
        socket.send(WEBSOCKET);
        assert!(socket.head().starts_with("HTTP/1.1 101 "));
        let first = proxy.pid();
        for _ in 0..upgrades {
            proxy.ok(&["upgrade"]);
        }
        let main = proxy.pid();
        // Whoever knows the first process reaches the last one.
        proxy.next_event("(by SIGHUP)", || nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), Signal::SIGHUP).unwrap());
        // Those in between had nobody: they do not stay for the sake of the first.
        assert!(proxy.leaves_only(main), "{}", proxy.events());
        proxy.ok(&["stop"]);
        assert_eq!(socket.exactly(4), [0x88, 0x02, 0x03, 0xE9], "the first process has its time");
        let lives = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(lives(main), "and the last one waits for it, after {upgrades} upgrades");
        assert_eq!(proxy.wait_exit(), Some(0));
        assert!((0..1000).any(|_| {
            std::thread::park_timeout(std::time::Duration::from_millis(5));
            !lives(main)
        }));
    }
}

#[test]
fn two_upgrades_and_a_reload_in_between_do_not_meet() {
    let (proxy, _origin) = start("");
    let binary = stand_in(&proxy, "slow", "time.sleep(600)");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| proxy.cli(&["upgrade", "--binary", &binary, "--timeout", "2s"]));
        proxy.wait_event("upgrade to ");
        let second = loop {
            // The first may not have come to the point yet.
            let said = proxy.cli(&["reload"]);
            if said.code == Some(1) {
                break said;
            }
        };
        assert!(second.text.contains("an upgrade is under way"), "{}", second.text);
        let third = proxy.cli(&["upgrade"]);
        assert!(third.code == Some(1) && third.text.contains("an upgrade is under way already"), "{}", third.text);
        assert_eq!(first.join().unwrap().code, Some(1));
    });
    assert_eq!(proxy.cli(&["reload"]).code, Some(0));
    proxy.ok(&["upgrade"]);
}

#[test]
fn an_upgrade_puts_in_force_what_a_reload_cannot() {
    let (proxy, _origin) = start("");
    let threads = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    let before = threads(proxy.pid());
    proxy.write("main.yaml", &format!("{PLAIN}threads: 9\n"));
    proxy.ok(&["reload"]);
    proxy.ok(&["upgrade"]);
    assert!(threads(proxy.pid()) > before, "{} {before}", threads(proxy.pid()));
    // A listener more, one address less: what is new is bound by the new process, what is gone is closed by it.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    proxy.write("main.yaml", &PLAIN.replace("127.0.0.1:0", &port.to_string()));
    let old = proxy.address();
    proxy.ok(&["upgrade"]);
    assert_eq!(get(port, "shop.test", "/", "").text(), "ok");
    for _ in 0..2000 {
        if std::net::TcpStream::connect(old).is_err() {
            return;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    panic!("the old address is still there");
}

#[test]
fn an_upgrade_that_moves_the_socket_and_the_pid_file_leaves_none_behind() {
    let (proxy, _origin) = start("pid_file: one.pid\n");
    let at = |name: &str| proxy.directory.path().join(name);
    let moved = PLAIN.replace("admin.sock", "two.sock") + "pid_file: two.pid\n";
    proxy.write("main.yaml", &moved);
    proxy.ok(&["upgrade", "--socket", "admin.sock"]);
    assert_eq!(proxy.status()["pid"].as_i64(), Some(i64::from(proxy.pid())));
    let number = |name: &str| std::fs::read_to_string(at(name)).map(|text| text.trim().parse::<i32>().unwrap());
    for _ in 0..2000 {
        if number("one.pid").is_err() && !at("admin.sock").exists() {
            assert_eq!(number("two.pid").unwrap(), proxy.pid());
            proxy.ok(&["upgrade"]);
            assert_eq!(number("two.pid").unwrap(), proxy.pid(), "what stays in its place stays");
            proxy.status();
            return;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    panic!("{:?} {}", number("one.pid"), at("admin.sock").exists());
}

#[test]
fn tls_sessions_of_before_resume_afterwards() {
    let origin = Origin::named("ok");
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "shop", &["shop.test"]);
    let main = "listeners: [{ address: '127.0.0.1:0', tls: true }]\naccess_log: off\nsites: sites.d/*.yaml\n";
    let site = format!(
        "domains: [shop.test]\ntls: {{ cert: ../shop.pem, key: ../shop.key }}\nbackends: ['{}']\nhealth_check: off\n",
        origin.address
    );
    let proxy = Proxy::start_in(directory, &[("main.yaml", main), ("sites.d/shop.yaml", &site)]);
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(tls_config(ca.roots(), &["http/1.1"], &[version]));
        let ask = || {
            let (mut client, info) = Client::tls(proxy.address(), "shop.test", config.clone()).unwrap();
            assert_eq!(client.request("GET", "shop.test", "/", "", b"").text(), "ok");
            info.resumed
        };
        assert!(!ask());
        proxy.ok(&["reload"]);
        assert!(ask(), "after a reload");
        proxy.ok(&["upgrade"]);
        assert!(ask(), "{version:?}: after an upgrade");
    }
}

#[test]
fn a_listener_that_an_upgrade_or_a_later_reload_takes_away_is_gone() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let two = PLAIN.replace("[{ address: \"127.0.0.1:0\" }]", &format!("[{{ address: '127.0.0.1:0' }}, {{ address: '{port}' }}]"));
    let origin = origin();
    let site = format!("domains: [shop.test]\nbackends: ['{}']\nhealth_check: off\n", origin.address);
    let proxy = Proxy::start(&[("main.yaml", &format!("{two}drain_timeout: 1h\n")), ("sites.d/shop.yaml", &site)]);
    let refuses = || {
        for _ in 0..1000 {
            if std::net::TcpStream::connect(port).is_err() {
                return true;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
        false
    };
    // It keeps the old process, which has the socket too.
    let mut socket = Client::plain(proxy.address());
    socket.send(WEBSOCKET);
    assert!(socket.head().starts_with("HTTP/1.1 101 "));
    proxy.ok(&["upgrade"]);
    assert_eq!(get(port, "shop.test", "/", "").text(), "ok");
    proxy.write("main.yaml", &format!("{PLAIN}drain_timeout: 1h\n"));
    proxy.ok(&["reload"]);
    assert!(refuses(), "taken away by a reload after an upgrade");
    proxy.write("main.yaml", &format!("{two}drain_timeout: 1h\n"));
    proxy.ok(&["reload"]);
    assert_eq!(get(port, "shop.test", "/", "").text(), "ok", "and brought back");
    proxy.write("main.yaml", &format!("{PLAIN}drain_timeout: 1h\n"));
    proxy.ok(&["upgrade"]);
    assert!(refuses(), "taken away by an upgrade, while older processes drain");
    socket.send([0x81, 0x01, b'x']);
    assert_eq!(socket.exactly(3), [0x81, 0x01, b'x']);
}

#[test]
fn a_second_signal_ends_a_process_that_waits_for_the_one_before_it() {
    let (proxy, _origin) = start("drain_timeout: 1h\n");
    let mut socket = Client::plain(proxy.address());
    socket.send(WEBSOCKET);
    assert!(socket.head().starts_with("HTTP/1.1 101 "));
    proxy.ok(&["upgrade"]);
    let main = proxy.pid();
    proxy.next_event("stopped: every connection has finished", || proxy.signal(Signal::SIGTERM));
    proxy.signal(Signal::SIGTERM);
    assert!((0..2000).any(|_| {
        std::thread::park_timeout(std::time::Duration::from_millis(5));
        !std::path::Path::new(&format!("/proc/{main}")).exists()
    }));
}

#[test]
fn a_process_that_serves_again_knows_what_the_one_before_was_told() {
    let (proxy, _origin) = start("drain_timeout: 1h\n");
    let mut socket = Client::plain(proxy.address());
    socket.send(WEBSOCKET);
    assert!(socket.head().starts_with("HTTP/1.1 101 "));
    let old = proxy.pid();
    let main = std::fs::read_to_string(proxy.directory.path().join("main.yaml")).unwrap()
        + "users: users.yaml\nbackend_groups: { one: { backends: ['127.0.0.1:1'] }, two: { backends: ['127.0.0.1:2'] } }\n";
    proxy.write("main.yaml", &main);
    proxy.write("users.yaml", "managed: true\nusers: { user1: { wiki: one } }\n");
    proxy.ok(&["reload", "--confirm", "1h"]);
    proxy.ok(&["upgrade"]);
    // Whoever knows the old process reaches the new one.
    proxy.write("main.yaml", &format!("{main}unknown_host: 404\n"));
    proxy.next_event("(by SIGHUP)", || nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), Signal::SIGHUP).unwrap());
    assert_eq!(get(proxy.address(), "unknown.test", "/", "").status, 404);
    proxy.ok(&["confirm"]);
    proxy.ok(&["users", "set", "user1", "wiki=two"]);
    // Files that are just being edited.
    let main = std::fs::read_to_string(proxy.directory.path().join("main.yaml")).unwrap();
    proxy.write("main.yaml", &format!("{main}half: writ"));
    proxy.next_event("reload refused", || proxy.signal(Signal::SIGKILL));
    assert!((0..1000).any(|_| proxy.cli(&["users", "get", "user1"]).text == "user1  wiki=two\n"), "{}", proxy.events());
    proxy.write("main.yaml", &main);
    assert!((0..1000).any(|_| proxy.cli(&["status"]).code == Some(0)));
    let status = proxy.status();
    assert_eq!((status["pid"].as_i64(), &status["config"]["pending"]), (Some(i64::from(old)), &serde_json::Value::Null));
    assert!((0..1000).any(|_| proxy.cli(&["reload"]).code == Some(0)), "once it has caught up it takes commands");
    assert_eq!(proxy.ok(&["users", "get", "user1"]), "user1  wiki=two\n");
    assert_eq!(get(proxy.address(), "unknown.test", "/", "").status, 404);
}
