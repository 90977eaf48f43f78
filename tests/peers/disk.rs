//! A full disk under the state directory: commands fail and change nothing, reloads are in force and say that they are not kept.

use std::path::PathBuf;

use crate::actors::{Origin, PLAIN, Proxy, get};

#[test]
fn a_full_disk_loses_nothing() {
    let (one, two) = (Origin::named("node1"), Origin::named("node2"));
    let main = |comment: &str| {
        format!(
            "{PLAIN}users: users.yaml\nbackend_groups:\n  node1: {{ backends: ['{}'], health_check: off }}\n  node2: {{ backends: ['{}'], health_check: off }}\n{comment}",
            one.address, two.address
        )
    };
    let directory = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(directory.path().join("state")).unwrap();
    // A disk of its own, for this process alone.
    let script = "mount -t tmpfs -o size=1m tmpfs state && exec \"$@\"";
    let proxy = Proxy::start_inside(
        directory,
        &["unshare", "--mount", "sh", "-c", script, "sh"],
        &[
            ("main.yaml", &main("")),
            ("sites.d/panel.yaml", "domains: [panel.test]\nroutes: [{ path: '/{user}/{app}/', users: true }]\n"),
            ("users.yaml", "managed: true\nusers: { user1: { wiki: node1 } }\n"),
        ],
    );
    let at = |user: &str| get(proxy.address(), "panel.test", &format!("/{user}/wiki/"), "").text();
    assert_eq!(at("user1"), "node1");
    let state = PathBuf::from(format!("/proc/{}/root{}/state", proxy.pid(), proxy.directory.path().display()));
    let filler = state.join("filler");
    std::fs::write(&filler, vec![0; 4 << 20]).expect_err("the disk is full");
    // More than fits into what the state has already.
    let rows: String = (0..20_000).map(|n| format!("  u{n}: {{ wiki: node2 }}\n")).collect();
    proxy.write("many.yaml", &format!("users:\n  user1: {{ wiki: node2 }}\n{rows}"));
    let said = proxy.cli(&["users", "import", "many.yaml", "--force"]);
    assert!(said.code == Some(1) && said.text.contains("nothing has changed") && said.text.contains("No space left"), "{}", said.text);
    assert_eq!(at("user1"), "node1");
    let comment = format!("unknown_host: 404\n# {}\n", "x".repeat(800_000));
    proxy.write("main.yaml", &main(&comment));
    let said = proxy.cli(&["reload"]);
    assert!(said.code == Some(0) && said.text.contains("it could not be kept"), "{}", said.text);
    assert_eq!(get(proxy.address(), "unknown.test", "/", "").status, 404, "it is in force all the same");
    assert!(proxy.events().contains("is in force but cannot be kept"), "{}", proxy.events());
    assert_eq!(proxy.status()["config"]["is_kept"], false);
    let said = proxy.cli(&["reload", "--confirm", "5m"]);
    assert!(said.code == Some(1) && said.text.contains("there would be no way back"), "{}", said.text);
    // Room again: everything is kept again, without a restart.
    std::fs::remove_file(&filler).unwrap();
    proxy.write("main.yaml", &main("unknown_host: 404\n"));
    proxy.ok(&["reload"]);
    assert_eq!(proxy.status()["config"]["is_kept"], true);
    proxy.ok(&["users", "set", "user1", "wiki=node2"]);
    assert_eq!(at("user1"), "node2");
    proxy.ok(&["config", "rollback"]);
    // A process that cannot keep anything takes over all the same.
    std::fs::write(&filler, vec![0; 4 << 20]).expect_err("the disk is full");
    proxy.ok(&["upgrade"]);
    assert_eq!(at("user1"), "node2", "what was kept before is there");
}

#[test]
fn a_disk_that_is_full_at_the_first_start_is_used_once_there_is_room() {
    let origin = Origin::named("node1");
    let directory = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(directory.path().join("state")).unwrap();
    let script = "mount -t tmpfs -o size=3m tmpfs state && { head -c 4m /dev/zero >state/filler; exec \"$@\"; }";
    let site = format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address);
    let proxy = Proxy::start_inside(
        directory,
        &["unshare", "--mount", "sh", "-c", script, "sh"],
        &[("main.yaml", PLAIN), ("sites.d/shop.yaml", &site)],
    );
    assert!(proxy.events().contains("nothing is kept"), "{}", proxy.events());
    assert_eq!(proxy.cli(&["config", "history"]).code, Some(1));
    let state = PathBuf::from(format!("/proc/{}/root{}/state", proxy.pid(), proxy.directory.path().display()));
    std::fs::remove_file(state.join("filler")).unwrap();
    proxy.ok(&["upgrade"]);
    assert_eq!(proxy.status()["config"]["is_kept"], true);
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "node1");
}
