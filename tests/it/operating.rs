//! The admin socket, and what an operator does by it: backends, switches, status, readiness.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;

use crate::actors::{Client, Origin, PLAIN, Proxy, check, get};

/// Asks the admin socket in HTTP, as other programs do.
pub fn ask(proxy: &Proxy, head: &str, body: &str) -> (u16, serde_json::Value) {
    let mut stream = UnixStream::connect(proxy.directory.path().join("admin.sock")).unwrap();
    write!(stream, "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

fn answers(proxy: &Proxy, cookie: &str, count: usize) -> Vec<String> {
    let headers = if cookie.is_empty() { String::new() } else { format!("Cookie: {cookie}\r\n") };
    (0..count).map(|_| get(proxy.address(), "shop.test", "/", &headers).text()).collect()
}

#[test]
fn draining_lets_sticky_clients_stay_and_disabling_moves_them() {
    let (a, b) = (Origin::named("A"), Origin::named("B"));
    let site = format!(
        "domains: [shop.test]\nsticky: true\nhealth_check: off\nbackends:\n  - {{ address: '{}', name: a }}\n  - {{ address: '{}', name: b }}\n",
        a.address, b.address
    );
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/shop.yaml", &site)]);
    let cookie = loop {
        let response = get(proxy.address(), "shop.test", "/", "");
        if response.text() == "A" {
            break response.header("set-cookie").split(';').next().unwrap().to_owned();
        }
    };
    proxy.ok(&["backend", "drain", "shop/a"]);
    assert_eq!(answers(&proxy, &cookie, 3), ["A"; 3], "who sticks to it stays");
    assert_eq!(answers(&proxy, "", 4), ["B"; 4], "nobody else comes");
    proxy.reload();
    assert_eq!((answers(&proxy, &cookie, 1), answers(&proxy, "", 4)), (vec!["A".to_owned()], vec!["B".to_owned(); 4]), "after a reload");
    proxy.ok(&["backend", "disable", "shop/a"]);
    assert_eq!(answers(&proxy, &cookie, 3), ["B"; 3], "who stuck to it moves");
    let list = proxy.ok(&["backend", "list", "shop"]);
    assert!(list.contains("shop/a") && list.contains("disabled (by root (pid "), "{list}");
    let proxy = proxy.crash_and_restart();
    assert_eq!(answers(&proxy, &cookie, 3), ["B"; 3], "what was said survives");
    assert!(proxy.ok(&["backend", "disable", "shop/b"]).contains("the group shop has no eligible backend now"));
    assert_eq!(get(proxy.address(), "shop.test", "/none", "").status, 503);
    assert_eq!(proxy.wait_target("/none")["reason"], "no_backend");
    assert!(proxy.cli(&["status"]).text.contains("0 of 2 eligible"));
    proxy.ok(&["backend", "enable", "shop/b"]);
    proxy.ok(&["backend", "enable", "shop/a"]);
    assert_eq!(answers(&proxy, &cookie, 2), ["A"; 2]);
    for (name, says) in [
        ("shop/c", "has no backend `c`; it has: a, b"),
        ("shpo/a", "did you mean `shop`?"),
        ("shop", "GROUP/NAME"),
        ("shop/", "GROUP/NAME"),
    ] {
        let said = proxy.cli(&["backend", "drain", name]);
        assert!(said.code == Some(2) && said.text.contains(says), "{name}: {}", said.text);
    }
}

#[test]
fn blue_and_green_are_switched_while_running() {
    let (blue, green) = (Origin::named("blue"), Origin::named("green"));
    let main = format!("{PLAIN}backend_groups:\n  b: {{ backends: ['{}'] }}\n  g: {{ backends: ['{}'] }}\n", blue.address, green.address);
    let site = |active: &str| {
        format!(
            "domains: [shop.test]\ngroups: {{ blue: b, green: g }}\nactive: {active}\nroutes: [{{ path: /fixed/, group: b }}, {{ path: /own/ }}]\ntests: [{{ get: /own/, group: b }}]\n"
        )
    };
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site("blue"))]);
    let mut kept = Client::plain(proxy.address());
    let mut asked = |target: &str| kept.request("GET", "shop.test", target, "", b"").text();
    assert_eq!((asked("/"), asked("/own/"), asked("/fixed/")), ("blue".into(), "blue".into(), "blue".into()));
    proxy.ok(&["switch", "shop", "green"]);
    assert_eq!(
        (asked("/"), asked("/own/"), asked("/fixed/")),
        ("green".into(), "green".into(), "blue".into()),
        "on a connection from before"
    );
    proxy.reload();
    assert_eq!(asked("/"), "green", "a reload of an unchanged file keeps it, and its tests are about the file");
    assert!(proxy.ok(&["status"]).contains("shop: green (by root"));
    let proxy = proxy.crash_and_restart();
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "green");
    // While the file is broken, or gone, it stays as it was.
    for broken in ["domains: [shop.test\n", ""] {
        match broken {
            "" => std::fs::remove_file(proxy.directory.path().join("sites.d/shop.yaml")).unwrap(),
            text => proxy.write("sites.d/shop.yaml", text),
        }
        assert_eq!(proxy.cli(&["reload"]).code, Some(3));
        proxy.ok(&["upgrade"]);
        assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "green", "{broken}");
        assert!(proxy.cli(&["status"]).text.contains("shop: green (by root"));
        proxy.write("sites.d/shop.yaml", &site("blue"));
        proxy.ok(&["reload"]);
        assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "green");
    }
    // The file says something else than when it was switched: it counts again.
    proxy.write("sites.d/shop.yaml", &site("green").replace("tests: [{ get: /own/, group: b }]\n", ""));
    assert!(proxy.ok(&["reload"]).contains("the switch of the site shop has ended"));
    proxy.write("sites.d/shop.yaml", &site("blue"));
    proxy.reload();
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "blue", "the file's last word");
    for (args, says) in [(["switch", "shop", "red"], "it has: blue, green"), (["switch", "shpo", "green"], "did you mean `shop`?")] {
        let said = proxy.cli(&args);
        assert!(said.code == Some(2) && said.text.contains(says), "{}", said.text);
    }
}

#[test]
fn the_socket_answers_those_who_may_and_says_what_it_does_not_understand() {
    let proxy = Proxy::with_site("backends: ['127.0.0.1:9']\nhealth_check: off\n");
    let mode = std::fs::metadata(proxy.directory.path().join("admin.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let (status, answer) = ask(&proxy, "GET /v1/status", "");
    assert_eq!((status, answer["config"]["generation"].as_u64(), answer["state"].as_str()), (200, Some(1), Some("ready")));
    assert_eq!(answer["pid"].as_i64(), Some(i64::from(proxy.pid())));
    for (head, body, code, says) in [
        ("GET /v1/nothing", "", 404, "no such path"),
        ("GET /v1/reload", "", 405, "POST only"),
        ("POST /v1/reload", "{\"stict\": true}", 422, "unknown field `stict`"),
        ("POST /v1/reload", "nonsense", 422, "the body"),
        ("POST /v1/backends/shop/x", "{\"state\": \"gone\"}", 422, "unknown variant `gone`"),
        ("POST /v1/confirm", "", 404, "nothing waits"),
        ("POST /v1/rollback", "{\"generation\": 99}", 404, "no generation 99"),
        ("GET /v1/users/nobody", "", 404, "no user `nobody`"),
        ("POST /v1/reload", "[]", 422, "no JSON object"),
        ("GET /v1/status?verbose=1", "", 422, "there are no parameters here, such as `verbose`"),
        ("GET /v1/users?Table=t", "", 422, "`Table` is no parameter here; there are: table, after, limit"),
        ("GET /v1/users?limit=many", "", 422, "`many` is no limit"),
    ] {
        let (status, answer) = ask(&proxy, head, body);
        assert!(status == code && answer["detail"].as_str().unwrap().contains(says), "{head}: {status} {answer}");
    }
    // Somebody else's process: the mode was widened by hand.
    let socket = proxy.directory.path().join("admin.sock");
    for path in [proxy.directory.path(), &socket] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let as_nobody = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "curl", "-s", "--unix-socket"])
        .arg(&socket)
        .arg("http://x/v1/status")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&as_nobody.stdout);
    assert!(text.contains("may not use the admin socket"), "{text} {}", String::from_utf8_lossy(&as_nobody.stderr));
    proxy.wait_event("admin socket: nobody (pid ");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let proxy = Proxy::with_site("backends: ['127.0.0.1:9']\nhealth_check: off\n");
    for args in [&["status", "-c", "main.yaml"][..], &["config", "history", "-c", "main.yaml"], &["schema"]] {
        let command = || {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"));
            command.args(args).current_dir(proxy.directory.path());
            command
        };
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command().stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("the output cannot be written: No space left"), "{args:?}: {said}");
        // Whoever has seen enough is content.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(command().stdout(writer).output().unwrap().status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn a_socket_that_was_left_behind_is_replaced_and_one_that_answers_is_not() {
    let proxy = Proxy::with_site("backends: ['127.0.0.1:9']\n");
    // Another process with another state directory, but the same socket.
    let files = [("main.yaml", PLAIN.replace("state_dir: state", "state_dir: other"))];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let second = check("run", &[], proxy.directory.path(), &files);
    assert!(second.code == Some(1) && second.text.contains("admin.sock: another process answers there already"), "{}", second.text);
    // And one with the same state directory.
    let files = [("main.yaml", PLAIN.replace("admin.sock", "other.sock"))];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let second = check("run", &[], proxy.directory.path(), &files);
    assert!(second.code == Some(1) && second.text.contains("state.redb: another portcullis uses it"), "{}", second.text);
    proxy.write("main.yaml", PLAIN);
    let proxy = proxy.crash_and_restart();
    assert_eq!(proxy.status()["state"], "ready", "the dead socket is no obstacle");
    assert!(proxy.ok(&["health"]).contains("ready"));
    let path = proxy.directory.path().join("admin.sock");
    proxy.ok(&["stop"]);
    proxy.wait_event("stopped: every connection has finished");
    for _ in 0..1000 {
        if !path.exists() {
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    let said = proxy.cli(&["status"]);
    assert!(said.code == Some(1) && said.text.contains("there is no such socket: is portcullis running"), "{}", said.text);
}

#[test]
fn readiness_fails_first_and_connections_are_still_taken() {
    let origin = Origin::named("ok");
    let main =
        PLAIN.replace("admin: { socket: admin.sock }", "admin: { socket: admin.sock, address: '127.0.0.1:0' }") + "drain_delay: 700ms\n";
    let site = format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address);
    let mut proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let said = proxy.wait_event("/metrics are answered on ");
    let plain = said.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!((get(plain, "x", "/readyz", "").status, get(plain, "x", "/livez", "").status), (200, 200));
    assert_eq!(get(plain, "x", "/v1/status", "").status, 404, "commands are the socket's");
    proxy.write("sites.d/broken.yaml", "domains: [b.test\n");
    proxy.cli(&["reload"]);
    proxy.write("main.yaml", "listeners: 5\n");
    proxy.cli(&["reload", "--socket", "admin.sock"]);
    let metrics = get(plain, "x", "/metrics", "").text();
    for line in [
        "portcullis_ready 1",
        "portcullis_config_generation 2",
        "portcullis_config_last_reload_success 0",
        "portcullis_config_reloads_total{result=\"in_part\"} 1",
        "portcullis_config_reloads_total{result=\"refused\"} 1",
        "portcullis_sites{state=\"good\"} 1",
        "portcullis_sites{state=\"left_out\"} 1",
        "portcullis_backends_eligible{group=\"shop\"} 1",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|own| own == line), "{line}: {metrics}");
    }
    proxy.write("main.yaml", &main);
    proxy.signal(nix::sys::signal::Signal::SIGTERM);
    proxy.wait_event("connections are still accepted for 700ms");
    let answer = get(plain, "x", "/readyz", "");
    assert_eq!((answer.status, answer.text().as_str(), get(plain, "x", "/livez", "").status), (503, "not ready: stopping\n", 200));
    let health = proxy.cli(&["health", "--socket", "admin.sock"]);
    assert!(health.code == Some(1) && health.text.contains("not ready: stopping"), "{}", health.text);
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "ok", "a new connection");
    assert_eq!(proxy.wait_exit(), Some(0));
}

#[test]
fn the_track_file_follows_readiness_and_death() {
    let proxy = Proxy::with_site("backends: ['127.0.0.1:9']\n");
    let file = proxy.directory.path().join("track");
    let mut tracker = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["health", "--track-file", "track", "-c", "main.yaml"])
        .current_dir(proxy.directory.path())
        .spawn()
        .unwrap();
    let becomes = |wanted: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::fs::read_to_string(&file).unwrap_or_default().trim() != wanted {
            assert!(std::time::Instant::now() < deadline, "never {wanted}");
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
    };
    becomes("1");
    proxy.ok(&["upgrade"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n", "an upgrade is no failure");
    let proxy = proxy.crash_and_restart_after(|| becomes("0"));
    becomes("1");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(tracker.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(tracker.wait().unwrap().success());
    becomes("0");
    drop(proxy);
}

#[test]
fn the_pid_file_has_the_process_that_serves() {
    let proxy = Proxy::start(&[
        ("main.yaml", &format!("{PLAIN}pid_file: portcullis.pid\n")),
        ("sites.d/a.yaml", "domains: [a.test]\nbackends: ['127.0.0.1:9']\n"),
        // Of a process that is long gone.
        ("portcullis.pid", "999999\n"),
    ]);
    let read = || std::fs::read_to_string(proxy.directory.path().join("portcullis.pid")).unwrap().trim().parse::<i32>().unwrap();
    assert_eq!(read(), proxy.pid());
    let before = proxy.pid();
    proxy.ok(&["upgrade"]);
    assert_ne!(proxy.pid(), before);
    assert_eq!(read(), proxy.pid());
}
