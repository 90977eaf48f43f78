//! Managed users tables: moved by command, in force for the next request, kept.

use crate::actors::{Client, Origin, PLAIN, Proxy, get};

struct Stage {
    proxy: Proxy,
    _nodes: [Origin; 2],
}

fn start() -> Stage {
    let nodes = [Origin::named("node1"), Origin::named("node2")];
    let main = format!(
        "{PLAIN}backend_groups:\n  node1: {{ backends: ['{}'], health_check: off }}\n  node2: {{ backends: ['{}'], health_check: off }}\nusers: users.d/*.yaml\n",
        nodes[0].address, nodes[1].address
    );
    let proxy = Proxy::start(&[
        ("main.yaml", &main),
        ("sites.d/panel.yaml", "domains: [panel.test]\nroutes: [{ path: '/{user}/{app}/', users: true }]\n"),
        ("users.d/fixed.yaml", "apps: { pma: { role: mysql } }\nusers: { fixed: { mysql: node1 } }\n"),
        ("users.d/panel.yaml", "managed: true\nusers: { user1: { mysql: node1, wiki: node1 } }\n"),
    ]);
    Stage { proxy, _nodes: nodes }
}

fn at(proxy: &Proxy, path: &str) -> String {
    let answer = get(proxy.address(), "panel.test", path, "");
    if answer.status == 200 { answer.text() } else { answer.status.to_string() }
}

#[test]
fn a_user_moves_by_one_command() {
    let Stage { proxy, _nodes } = start();
    let mut kept = Client::plain(proxy.address());
    let mut asked = |path: &str| kept.request("GET", "panel.test", path, "", b"").text();
    assert_eq!(asked("/user1/pma/"), "node1");
    let generation = proxy.status()["config"]["generation"].clone();
    for (n, node) in ["node2", "node1"].into_iter().cycle().take(20).enumerate() {
        proxy.ok(&["users", "set", "user1", &format!("mysql={node}")]);
        assert_eq!(asked("/user1/pma/"), node, "{n}: the next request, on a connection from before");
    }
    assert_eq!(asked("/user1/wiki/"), "node1", "what was not spoken of stays");
    let said = proxy.ok(&["users", "set", "new one", "mysql=node2", "wiki=node1"]);
    assert_eq!(said, "new one  mysql=node2 wiki=node1\n`new one` is new in the table `panel`\n");
    assert_eq!(proxy.ok(&["users", "set", "new one", "wiki=node1"]), "new one  mysql=node2 wiki=node1\n");
    assert_eq!((at(&proxy, "/new%20one/pma/"), at(&proxy, "/new%20one/wiki/")), ("node2".into(), "node1".into()));
    proxy.ok(&["users", "set", "new one", "wiki="]);
    assert_eq!(at(&proxy, "/new%20one/wiki/"), "404");
    assert_eq!(proxy.ok(&["users", "get", "user1"]), "user1  mysql=node1 wiki=node1\n");
    assert_eq!(proxy.status()["config"]["generation"], generation, "no reload");
    // The log of requests names them, and the log of events who did it.
    get(proxy.address(), "panel.test", "/new%20one/pma/named", "");
    assert_eq!(proxy.wait_target("/new%20one/pma/named")["user"], "new one");
    assert!(
        proxy.events().contains("users table panel version 2: user1: ") && proxy.events().contains("(by root (pid "),
        "{}",
        proxy.events()
    );
    proxy.ok(&["users", "remove", "user1"]);
    assert_eq!(at(&proxy, "/user1/pma/"), "404");
    for (args, says) in [
        (vec!["users", "set", "user2", "mysql=node3"], "did you mean `node"),
        (vec!["users", "set", "a/b", "mysql=node1"], "must fit into one segment"),
        (vec!["users", "set", "fixed", "mysql=node2"], "is in a users file that is not managed"),
        (vec!["users", "remove", "user1"], "there is no user `user1`"),
        (vec!["users", "set", "user2", "mysql=node1", "--table", "nope"], "no managed table is named `nope`"),
        (vec!["users", "get", "nobody"], "there is no user `nobody`"),
    ] {
        let said = proxy.cli(&args);
        assert!(said.code != Some(0) && said.text.contains(says), "{args:?}: {}", said.text);
    }
}

#[test]
fn what_was_said_of_users_survives_reloads_crashes_and_upgrades() {
    let Stage { proxy, _nodes } = start();
    proxy.ok(&["users", "set", "user1", "mysql=node2"]);
    proxy.ok(&["users", "set", "user2", "mysql=node2"]);
    proxy.write("users.d/panel.yaml", "managed: true\nusers: { user1: { mysql: node1 }, later: { mysql: node1 } }\n");
    proxy.ok(&["reload"]);
    assert_eq!(at(&proxy, "/user1/pma/"), "node2", "the file is only the seed");
    assert_eq!(at(&proxy, "/later/pma/"), "404");
    let proxy = proxy.crash_and_restart();
    assert_eq!(
        (at(&proxy, "/user1/pma/"), at(&proxy, "/user2/pma/"), at(&proxy, "/fixed/pma/")),
        ("node2".into(), "node2".into(), "node1".into())
    );
    proxy.ok(&["upgrade"]);
    assert_eq!(at(&proxy, "/user2/pma/"), "node2");
    proxy.ok(&["users", "set", "user2", "mysql=node1"]);
    assert_eq!(at(&proxy, "/user2/pma/"), "node1", "the new process takes commands");
    // A group that rows lead to cannot go.
    let main = std::fs::read_to_string(proxy.directory.path().join("main.yaml")).unwrap().replace("  node2:", "  node9:");
    proxy.write("main.yaml", &main);
    let said = proxy.cli(&["reload"]);
    assert!(
        said.code == Some(78) && said.text.contains("no backend group is named `node2`") && said.text.contains("user1"),
        "{}",
        said.text
    );
}

#[test]
fn a_table_is_replaced_as_a_whole_if_nobody_has_changed_it_meanwhile() {
    let Stage { proxy, _nodes } = start();
    proxy.ok(&["users", "set", "user1", "mysql=node2"]);
    // Apps that are lost are told.
    let fixed = proxy.directory.path().join("users.d/fixed.yaml");
    let whole = std::fs::read_to_string(&fixed).unwrap();
    std::fs::write(&fixed, whole.replace("apps: { pma: { role: mysql } }\n", "")).unwrap();
    assert!(proxy.ok(&["reload"]).contains("app pma removed"));
    std::fs::write(&fixed, &whole).unwrap();
    assert!(proxy.ok(&["reload"]).contains("app pma added"));
    let exported = proxy.ok(&["users", "export"]);
    proxy.write("export.yaml", &exported);
    // A slip of the pen replaces no table.
    for query in ["", "?Version=1", "?version=one", "?force=yes"] {
        let (status, answer) = crate::operating::ask(&proxy, &format!("PUT /v1/tables/panel{query}"), "users: {}\n");
        assert_eq!(status, 422, "{query}: {answer}");
    }
    let cut = exported.rsplit_once("# end").unwrap().0;
    proxy.write("cut.yaml", cut);
    let said = proxy.cli(&["users", "import", "cut.yaml"]);
    assert!(said.code == Some(2) && said.text.contains("may have been cut short"), "{}", said.text);
    let said = proxy.ok(&["users", "import", "export.yaml"]);
    assert_eq!(said, "table panel has version 3 with 1 users\n");
    proxy.ok(&["users", "set", "user1", "mysql=node1"]);
    let said = proxy.cli(&["users", "import", "export.yaml"]);
    assert!(said.code == Some(1) && said.text.contains("has version 4 by now"), "{}", said.text);
    assert_eq!(at(&proxy, "/user1/pma/"), "node1");
    proxy.write(
        "table.yaml",
        &format!("users:\n{}", (0..50_000).map(|n| format!("  u{n}: {{ mysql: node{} }}\n", n % 2 + 1)).collect::<String>()),
    );
    assert_eq!(proxy.cli(&["users", "import", "table.yaml"]).code, Some(2), "which version it replaces must be said");
    proxy.ok(&["users", "import", "table.yaml", "--version", "4"]);
    assert_eq!(
        (at(&proxy, "/u49999/pma/"), at(&proxy, "/user1/pma/"), at(&proxy, "/fixed/pma/")),
        ("node2".into(), "404".into(), "node1".into())
    );
    assert_eq!(proxy.ok(&["users", "list"]).lines().count(), 50_000, "in several pages");
    assert_eq!(proxy.ok(&["users", "tables"]), "panel  version 5, 50000 users\n");
    for (text, says) in [
        ("users: { user1: { mysql: node3 } }\n", "no backend group is named `node3`"),
        ("users: { fixed: { mysql: node1 } }\n", "`fixed` is in another table already"),
        ("users: [", "import:1:8"),
        ("apps: { roundcube: { role: mail } }\nusers: {}\n", "`roundcube` is another one there"),
    ] {
        proxy.write("bad.yaml", text);
        let said = proxy.cli(&["users", "import", "bad.yaml", "--force"]);
        assert!(said.code != Some(0) && said.text.contains(says), "{}", said.text);
    }
    assert_eq!(at(&proxy, "/u49999/pma/"), "node2", "nothing has changed");
    let proxy = proxy.crash_and_restart();
    assert_eq!(at(&proxy, "/u49998/pma/"), "node1");
}

#[test]
fn a_managed_table_is_not_lost_with_its_file() {
    let Stage { proxy, _nodes } = start();
    proxy.ok(&["users", "set", "user1", "mysql=node2"]);
    let file = proxy.directory.path().join("users.d/panel.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    // Cut off as it is written, without the word, and gone.
    for (damage, says) in [
        (Some(""), "users.d/panel.yaml: the users file is empty"),
        (Some("users: { user1: { mysql: node1 } }\n"), "the users table `panel` is kept"),
        (None, "the users table `panel` is kept, but no users file has that name and `managed: true`"),
    ] {
        match damage {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let said = proxy.cli(&["reload"]);
        assert!(said.code == Some(78) && said.text.contains(says), "{damage:?}: {}", said.text);
        let said = proxy.cli(&["upgrade"]);
        let why = says.rsplit(": ").next().unwrap();
        assert!(said.code == Some(1) && said.text.contains(why), "{damage:?}: {}", said.text);
        assert_eq!(at(&proxy, "/user1/pma/"), "node2", "{damage:?}");
    }
    // A start has to go on without it: its users wait for the file.
    let proxy = proxy.crash_and_restart();
    assert!(proxy.events().contains("the users table `panel` is kept, but"), "{}", proxy.events());
    assert_eq!((at(&proxy, "/user1/pma/"), at(&proxy, "/fixed/pma/")), ("404".into(), "node1".into()));
    let status = proxy.cli(&["status"]);
    assert!(status.code == Some(3) && status.text.contains("the table panel is kept, but no users file names it"), "{}", status.text);
    std::fs::write(&file, &text).unwrap();
    proxy.ok(&["reload"]);
    assert_eq!(proxy.cli(&["status"]).code, Some(0));
    assert_eq!(at(&proxy, "/user1/pma/"), "node2");
    // It ends when somebody means it.
    std::fs::remove_file(&file).unwrap();
    proxy.ok(&["reload", "--prune"]);
    assert_eq!(at(&proxy, "/user1/pma/"), "404");
    proxy.ok(&["reload"]);
    let proxy = proxy.crash_and_restart();
    assert!(!proxy.events().contains("the users table"), "{}", proxy.events());
    // Nothing of it is lost: neither with the file nor for a way back.
    std::fs::write(&file, &text).unwrap();
    proxy.ok(&["reload"]);
    assert_eq!(at(&proxy, "/user1/pma/"), "node2");
    std::fs::remove_file(&file).unwrap();
    proxy.next_event("rolled back to generation", || drop(proxy.ok(&["reload", "--prune", "--confirm", "1s"])));
    assert_eq!(at(&proxy, "/user1/pma/"), "node2");
    std::fs::write(&file, &text).unwrap();
    proxy.ok(&["reload"]);
    // A user is in one table.
    proxy.ok(&["users", "set", "both", "mysql=node2"]);
    proxy.write("users.d/more.yaml", "managed: true\nusers: { both: { mysql: node1 } }\n");
    let said = proxy.cli(&["reload"]);
    let why = "the user `both` is in the managed table `panel` and in the managed table `more`";
    assert!(said.code == Some(78) && said.text.contains(why), "{}", said.text);
    assert_eq!(at(&proxy, "/both/pma/"), "node2");
}
