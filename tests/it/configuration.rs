//! Bad configurations: every mistake at once, with its place and what to do, and the documented exit code.

use portcullis::config::files::Files;
use std::path::Path;

use crate::actors::{Ca, Origin, PLAIN, check};

/// Every `tests/config/*.case` is files, a line of dashes, and what `check` says about them. `UPDATE=1` writes the
/// latter anew.
#[test]
fn mistakes_are_explained_as_the_cases_say() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut wrong = Vec::new();
    let (mut count, mut mistakes) = (0, 0);
    let mut paths: Vec<_> = std::fs::read_dir(&cases).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "case")) {
        count += 1;
        let text = std::fs::read_to_string(path).unwrap();
        let (files, expected) = text.split_once("\n----------\n").unwrap();
        let said = run_case(files);
        mistakes += said.lines().filter(|line| line.starts_with("error: ")).count();
        if said == expected {
            continue;
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, format!("{files}\n----------\n{said}")).unwrap();
        } else {
            wrong.push(format!("=== {}\n--- expected\n{expected}\n--- said\n{said}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 20 && mistakes >= 200, "only {count} cases with {mistakes} mistakes were found");
}

/// The files of a case: `== name` begins each.
fn run_case(files: &str) -> String {
    let directory = tempfile::TempDir::new().unwrap();
    let ca = Ca::new();
    ca.issue(directory.path(), "one", &["one.test"]);
    ca.issue(directory.path(), "two", &["two.test"]);
    ca.issue_expired(directory.path(), "old", "old.test");
    let files: Vec<(&str, &str)> = files.split("== ").skip(1).map(|file| file.split_once('\n').unwrap()).collect();
    let result = check("check", &[], directory.path(), &files);
    let here = directory.path().to_str().unwrap();
    let text = result.text.replace(here, "DIR");
    let text: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    format!("exit {}\n{text}", result.code.unwrap())
}

fn refused(verb: &str, files: &[(&str, &str)], code: i32, says: &str) {
    let directory = tempfile::TempDir::new().unwrap();
    let result = check(verb, &[], directory.path(), files);
    assert_eq!(result.code, Some(code), "{}", result.text);
    assert!(result.text.contains(says), "{says:?} is not in: {}", result.text);
    assert!(!result.text.contains("panicked"), "{}", result.text);
}

#[test]
fn run_ends_with_the_documented_codes() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let main = |listener: &str| format!("listeners: [{{ address: '{listener}' }}]\nsites: sites.d/*.yaml\n");
    let site = ("sites.d/a.yaml", "domains: [a.test]\nbackends: ['127.0.0.1:9']\n");
    refused("run", &[("main.yaml", "listeners: 5\n")], 78, "expected a list, found integer `5`");
    refused("run", &[("main.yaml", &main(&address.to_string())), site], 1, "another program listens there already");
    refused("run", &[("main.yaml", &main("192.0.2.1:80")), site], 1, "this machine does not have the address");
    refused("run", &[], 78, "main.yaml: cannot be read");
    let sticky = ("sites.d/a.yaml", "domains: [a.test]\nbackends: ['127.0.0.1:9']\nsticky: true\n");
    let state = format!("{}state_dir: /dev/null/state\n", main("127.0.0.1:0"));
    refused("run", &[("main.yaml", &state), sticky], 1, "the key of the sticky cookies cannot be kept");
    let log = format!("{}access_log: {{ path: /proc/access.log }}\n", main("127.0.0.1:0"));
    refused("run", &[("main.yaml", &log), site], 1, "the access log cannot be opened");
    refused("nonsense", &[], 2, "unrecognized subcommand");
}

#[test]
fn check_ends_with_the_documented_codes() {
    let good = ("sites.d/a.yaml", "domains: [a.test]\nbackends: ['127.0.0.1:9']\n");
    let broken = ("sites.d/b.yaml", "domains: [b.test]\n");
    let directory = tempfile::TempDir::new().unwrap();
    let result = check("check", &[], directory.path(), &[("main.yaml", PLAIN), good]);
    assert_eq!((result.code, result.text.as_str()), (Some(0), "main.yaml: good: 1 site, 1 backend group, 0 users\n"));
    let result = check("check", &[], directory.path(), &[broken]);
    assert_eq!(result.code, Some(3), "{}", result.text);
    assert!(result.text.contains("left out: b"), "{}", result.text);
    let result = check("check", &["--strict"], directory.path(), &[]);
    assert_eq!(result.code, Some(78), "{}", result.text);
    assert!(!directory.path().join("state").exists(), "check writes nothing");
    let result = check("run", &["--strict"], directory.path(), &[]);
    assert_eq!(result.code, Some(78), "{}", result.text);
    let short = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["-t", "-c", "main.yaml"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert_eq!(short.status.code(), Some(3));
}

#[test]
fn files_that_are_no_files_end_nothing() {
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    std::fs::create_dir(here.join("sites.d")).unwrap();
    std::fs::write(here.join("main.yaml"), PLAIN).unwrap();
    std::os::unix::fs::symlink("loop.yaml", here.join("sites.d/loop.yaml")).unwrap();
    std::fs::create_dir(here.join("sites.d/directory.yaml")).unwrap();
    nix::unistd::mkfifo(&here.join("sites.d/fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::write(here.join("sites.d/binary.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    std::fs::write(here.join("sites.d/deep.yaml"), "[".repeat(100_000)).unwrap();
    let bomb: String =
        (1..40).map(|n| format!("a{n}: &a{n} [*a{m}, *a{m}, *a{m}, *a{m}, *a{m}, *a{m}, *a{m}, *a{m}]\n", m = n - 1)).collect();
    std::fs::write(here.join("sites.d/bomb.yaml"), format!("a0: &a0 [x, x]\n{bomb}")).unwrap();
    let result = check("check", &[], here, &[]);
    assert_eq!(result.code, Some(3), "{}", result.text);
    for says in [
        "loop.yaml: cannot be read",
        "directory.yaml: is a directory",
        "fifo.yaml: is no regular file",
        "binary.yaml: is not UTF-8",
        "deep.yaml",
        "YAML aliases (`*…`) are not supported",
    ] {
        assert!(result.text.contains(says), "{says:?} is not in: {:.3000}", result.text);
    }
    for name in ["loop", "directory", "fifo", "binary", "deep", "bomb"] {
        assert!(result.text.lines().last().unwrap().contains(name), "{name} is left out");
    }
}

#[test]
fn a_secret_is_never_shown() {
    let directory = tempfile::TempDir::new().unwrap();
    std::fs::write(directory.path().join("secret"), "hunter2\n").unwrap();
    let main = "listeners: [{ address: '127.0.0.1:0', max_connections: '${file:secret}' }]\nsites: sites.d/*.yaml\n";
    std::fs::create_dir(directory.path().join("sites.d")).unwrap();
    let result = check("check", &[], directory.path(), &[("main.yaml", main)]);
    assert_eq!(result.code, Some(78));
    assert!(result.text.contains("expected a whole number") && !result.text.contains("hunter2"), "{}", result.text);
}

#[test]
fn names_of_backends_are_resolved_at_start() {
    let origin = Origin::named("by name");
    let port = origin.address.port();
    let site = format!(
        "domains: [shop.test]\nbackends: [{{ address: 'localhost:{port}', name: local }}, 'no-such-host.invalid:80']\nhealth_check: off\n"
    );
    let directory = tempfile::TempDir::new().unwrap();
    let files = [("main.yaml", PLAIN), ("sites.d/shop.yaml", site.as_str())];
    let result = check("check", &[], directory.path(), &files);
    assert_eq!(result.code, Some(0), "{}", result.text);
    assert!(result.text.contains("`no-such-host.invalid:80` does not resolve"), "{}", result.text);
    let proxy = crate::actors::Proxy::start(&files);
    assert_eq!(crate::actors::get(proxy.address(), "shop.test", "/", "").text(), "by name");
}

/// Whatever is done to a good configuration, reading it ends, without a panic, with a configuration or with errors.
#[test]
fn a_damaged_configuration_is_explained_or_accepted() {
    portcullis::tls::install_provider();
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    std::fs::create_dir(here.join("sites.d")).unwrap();
    let good = [
        (
            "main.yaml",
            "listeners:\n  - address: \":80\"\n    keep_alive: 5s\nsites: sites.d/*.yaml\nusers: users.yaml\ndefaults: { timeouts: { connect: 1s } }\nbackend_groups:\n  node1: { backends: [{ address: 127.0.0.1:1, weight: 3 }], sticky: { cookie: A } }\n",
        ),
        ("users.yaml", "apps: { pma: { role: mysql } }\nusers: { user1: { mysql: node1 } }\n"),
        (
            "sites.d/a.yaml",
            "domains: [a.test, '*.b.test', '{user}.c.test', '~^d']\nroutes:\n  - { path: '/{user}/{app}/', users: true, strip: '/{user}' }\n  - { path: '~^/x', group: node1 }\nbackends: [127.0.0.1:2]\n",
        ),
    ];
    let words = [
        "{",
        "}",
        "[",
        "]",
        ": ",
        "- ",
        "\n",
        "  ",
        "'",
        "\"",
        "${env:HOME}",
        "${file:",
        "null",
        "0",
        "-1",
        "99999999999999999999",
        "&a",
        "*a",
        "!!x",
        "#",
        "\t",
        "|",
        "~(",
        "/{",
        "\u{feff}",
        "é",
    ];
    let mut seed = 7_u64;
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let mut refused = 0;
    for _ in 0..600 {
        let victim = next(good.len());
        for (index, (name, text)) in good.iter().enumerate() {
            let mut text: Vec<char> = text.chars().collect();
            if index == victim {
                for _ in 0..=next(3) {
                    let at = next(text.len());
                    match next(3) {
                        0 => drop(text.remove(at)),
                        1 => drop(text.splice(at..at, words[next(words.len())].chars())),
                        _ => text.truncate(at.max(1)),
                    }
                }
            }
            std::fs::write(here.join(name), text.iter().collect::<String>()).unwrap();
        }
        let loaded = portcullis::config::load(&here.join("main.yaml"), &Files::on_disk(), &portcullis::config::Previous::default());
        refused += usize::from(loaded.report.has_errors());
        assert!(loaded.config.is_some() || loaded.report.has_errors());
        loaded.report.render(false);
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_silent_name_server_does_not_empty_a_group() {
    use portcullis::config::{Previous, load};
    let directory = tempfile::TempDir::new().unwrap();
    let main = directory.path().join("main.yaml");
    let text = |host: &str| format!("listeners: [{{ address: '127.0.0.1:80' }}]\nbackend_groups: {{ g: {{ backends: ['{host}:80'] }} }}\n");
    std::fs::write(&main, text("localhost")).unwrap();
    let mut groups = load(&main, &Files::on_disk(), &Previous::default()).config.unwrap().groups;
    let address = groups[0].members[0].addresses.clone();
    // As it was while this name still resolved.
    groups[0].members[0].host = "no-such-host.invalid:80".to_owned();
    std::fs::write(&main, text("no-such-host.invalid")).unwrap();
    let loaded = load(&main, &Files::on_disk(), &Previous { groups, ..Previous::default() });
    assert!(loaded.report.render(false).contains("its last known addresses stay"), "{}", loaded.report.render(false));
    assert_eq!(loaded.config.unwrap().groups[0].members[0].addresses, address);
}

/// A search through the file for each row made this take minutes.
#[test]
fn a_large_users_table_is_read_in_time_that_grows_with_its_rows() {
    use portcullis::config::{Previous, load};
    let directory = tempfile::TempDir::new().unwrap();
    let main = directory.path().join("main.yaml");
    std::fs::write(
        &main,
        "listeners: [{ address: '127.0.0.1:80' }]\nbackend_groups: { g: { backends: ['127.0.0.1:1'] } }\nusers: users.yaml\n",
    )
    .unwrap();
    let time = |rows: usize| {
        let table: String = (0..rows).map(|row| format!("  user{row}: {{ mysql: g }}\n")).collect();
        std::fs::write(directory.path().join("users.yaml"), format!("users:\n{table}")).unwrap();
        let began = std::time::Instant::now();
        assert_eq!(load(&main, &Files::on_disk(), &Previous::default()).config.unwrap().users.len(), rows);
        began.elapsed()
    };
    time(1_000);
    let (few, many) = (time(4_000), time(40_000));
    // Ten times the rows: ten times the time, and a hundred times if each is searched for.
    assert!(many < few * 40, "{few:?} for 4,000 rows, {many:?} for 40,000");
}
