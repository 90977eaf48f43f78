//! Domain, user and app to a backend group.

use crate::actors::{Client, Origin, PLAIN, Proxy, get};

/// A panel with two users on two nodes, by path and by host name.
fn panel() -> (Proxy, [Origin; 3]) {
    let origins = [Origin::named("panel"), Origin::echo(), Origin::echo()];
    let [panel, node1, node2] = &origins;
    let main = format!(
        "{PLAIN}backend_groups:\n  panel: {{ backends: [{}] }}\n  node1: {{ backends: [{}] }}\n  node2: {{ backends: [{}] }}\nusers: users.d/*.yaml\n",
        panel.address, node1.address, node2.address
    );
    let proxy = Proxy::start(&[
        ("main.yaml", &main),
        (
            "sites.d/panel.yaml",
            "domains: [panel.test]\nroutes:\n  - { path: '/{user}/{app}/', users: true, strip: '/{user}' }\n  - { path: /, group: panel }\n  \
             - { path: '=/exact', group: node1 }\n  - { path: '~^/re(?<n>[0-9]+)$', group: node2 }\n",
        ),
        ("sites.d/apps.yaml", "domains: ['{user}.apps.test']\nroutes:\n  - { path: '/{app}/', users: true }\n"),
        ("sites.d/wild.yaml", "domains: ['*.wild.test', '~^re[0-9]+\\.test$']\ngroup: panel\n"),
        (
            "users.d/users.yaml",
            "apps:\n  roundcube: { role: mail }\n  phpmyadmin: { role: mysql }\nusers:\n  user1: { mysql: node1, mail: node2 }\n  user2: { mysql: node2, wiki: node1 }\n",
        ),
    ]);
    (proxy, origins)
}

#[test]
fn users_and_apps_go_where_the_table_says() {
    let (proxy, origins) = panel();
    for (host, target, status, site, group, user, app, reason) in [
        ("panel.test", "/user1/phpmyadmin/", 200, "panel", "node1", "user1", "phpmyadmin", ""),
        ("panel.test", "/user1/roundcube/x?y=z", 200, "panel", "node2", "user1", "roundcube", ""),
        ("panel.test", "/user2/phpmyadmin/", 200, "panel", "node2", "user2", "phpmyadmin", ""),
        ("panel.test", "/user2/wiki/", 200, "panel", "node1", "user2", "wiki", ""),
        ("panel.test", "/user2/roundcube/", 404, "panel", "", "user2", "", "unknown_app"),
        ("panel.test", "/user1/mail/", 404, "panel", "", "user1", "", "unknown_app"),
        ("panel.test", "/static/css/a.css", 200, "panel", "panel", "", "", ""),
        ("panel.test", "/", 200, "panel", "panel", "", "", ""),
        ("panel.test", "/exact", 200, "panel", "node1", "", "", ""),
        ("panel.test", "/exact/", 200, "panel", "panel", "", "", ""),
        ("panel.test", "/re7", 200, "panel", "node2", "", "", ""),
        ("PANEL.test:80", "/", 200, "panel", "panel", "", "", ""),
        ("panel.test.", "/dot", 200, "panel", "panel", "", "", ""),
        ("user1.apps.test", "/phpmyadmin/", 200, "apps", "node1", "user1", "phpmyadmin", ""),
        ("user1.apps.test", "/roundcube/a", 200, "apps", "node2", "user1", "roundcube", ""),
        ("user3.apps.test", "/phpmyadmin/n", 404, "apps", "", "", "", "unknown_user"),
        ("user1.apps.test", "/none", 404, "apps", "", "user1", "", "unknown_app"),
        ("a.b.wild.test", "/w", 200, "wild", "panel", "", "", ""),
        ("re12.test", "/r", 200, "wild", "panel", "", "", ""),
    ] {
        let response = get(proxy.address(), host, target, "");
        assert_eq!(response.status, status, "{host}{target}: {}", response.text());
        let line = proxy.wait_access(|line| line["target"] == target && line["host"] == host);
        let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            (word("site"), word("group"), word("user"), word("app"), word("reason")),
            (site.into(), group.into(), user.into(), app.into(), reason.into()),
            "{host}{target}"
        );
    }
    drop(origins);
}

#[test]
fn the_backend_sees_the_path_that_was_decided_on() {
    let (proxy, [panel, node1, _]) = panel();
    for (sent, received) in [
        ("/user1/phpmyadmin/a/../b?x=%2e", "/phpmyadmin/b?x=%2e"),
        ("//us%65r1///phpmyadmin/%7Ex", "/phpmyadmin/~x"),
        ("/user1/phpmyadmin/a%2fb", "/phpmyadmin/a%2Fb"),
        ("/user1/phpmyadmin", "/phpmyadmin"),
        ("http://panel.test/user1/phpmyadmin/abs?q", "/phpmyadmin/abs?q"),
    ] {
        assert_eq!(get(proxy.address(), "panel.test", sent, "").status, 200, "{sent}");
        assert_eq!(node1.request().target, received, "{sent}");
    }
    for (sent, received) in [("/x%20y?a b", None), ("/a%20b", Some("/a%20b")), ("/?", Some("/?"))] {
        let mut client = Client::plain(proxy.address());
        client.send(format!("GET {sent} HTTP/1.1\r\nHost: panel.test\r\n\r\n"));
        let response = client.response(false);
        match received {
            Some(target) => assert_eq!(panel.request().target, target),
            None => assert_eq!(response.status, 400),
        }
    }
}

#[test]
fn what_could_be_read_in_two_ways_never_reaches_a_backend() {
    let (proxy, origins) = panel();
    for target in ["/..", "/a/../../b", "/%2e%2e/x", "/a%00", "/a%5cb", "/..%2fx", "/a/..;/b", "/%zz", "/a%2F..%2Fb"] {
        let response = get(proxy.address(), "panel.test", target, "");
        assert_eq!(response.status, 400, "{target}");
        assert_eq!(proxy.wait_target(target)["reason"], "bad_path", "{target}");
    }
    assert!(origins.iter().all(|origin| origin.drain().is_empty()));
}

#[test]
fn an_unknown_host_is_dropped_refused_or_served_as_chosen() {
    let origin = Origin::named("default");
    for (choice, status) in [("drop", None), ("404", Some(404)), ("shop", Some(200))] {
        let main = format!("{PLAIN}unknown_host: {choice}\n");
        let site = format!("domains: [shop.test]\nbackends: [{}]\n", origin.address);
        let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
        let mut client = Client::plain(proxy.address());
        client.send("GET /u HTTP/1.1\r\nHost: unknown.test\r\n\r\n");
        match status {
            None => {
                assert!(client.closes(), "not a byte is said");
                assert_eq!(proxy.wait_target("/u")["reason"], "unknown_host");
            }
            Some(status) => assert_eq!(client.response(false).status, status, "{choice}"),
        }
    }
}

#[test]
fn a_stripped_app_gets_its_slash() {
    let origin = Origin::named("app");
    let proxy = Proxy::with_site(&format!("backends: [{}]\nroutes:\n  - {{ path: /wiki/, strip: /wiki, group: shop }}\n", origin.address));
    let response = get(proxy.address(), "shop.test", "/wiki?a=b", "");
    assert_eq!((response.status, response.header("location").as_str()), (301, "/wiki/?a=b"));
    assert_eq!(get(proxy.address(), "shop.test", "/wiki/", "").status, 200);
    assert_eq!(origin.request().target, "/");
}

#[test]
fn the_absolute_form_is_read_and_sent_in_one_way() {
    let (root, public) = (Origin::named("root"), Origin::named("public"));
    let main =
        format!("{PLAIN}backend_groups:\n  root: {{ backends: ['{}'] }}\n  public: {{ backends: ['{}'] }}\n", root.address, public.address);
    let site = "domains: [a.test]\nroutes: [{ path: /, group: root }, { path: /public/, group: public }]\n";
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/a.yaml", site)]);
    for (target, received) in [("http://a.test?x=/public/", "/?x=/public/"), ("http://a.test/abc", "/abc"), ("http://a.test", "/")] {
        assert_eq!(get(proxy.address(), "a.test", target, "").text(), "root", "{target}");
        assert_eq!(root.request().target, received);
    }
}

#[test]
fn odd_targets_are_escaped_and_endless_ones_refused() {
    let origin = Origin::echo();
    let proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    assert_eq!(get(proxy.address(), "shop.test", "/a<b>?q=\"x\"&r=`", "").status, 200);
    assert_eq!(origin.request().target, "/a%3Cb%3E?q=%22x%22&r=%60");
    let long = format!("/{}", "{".repeat(25_000));
    assert_eq!(get(proxy.address(), "shop.test", &long, "").status, 414);
    assert_eq!(get(proxy.address(), "shop.test:80.evil.test", "/", "").status, 400);
}

#[test]
fn a_user_is_found_however_the_name_is_escaped() {
    let (node, panel) = (Origin::named("node"), Origin::named("panel"));
    let main = format!(
        "{PLAIN}backend_groups:\n  node: {{ backends: ['{}'] }}\n  panel: {{ backends: ['{}'] }}\nusers: users.yaml\n",
        node.address, panel.address
    );
    let site = "domains: [p.test]\nroutes:\n  - { path: '/{user}/{app}/', users: true, strip: '/{user}' }\n  - { path: /, group: panel }\n";
    let users = "users:\n  u@x.org: { pma: node }\n  j\u{f6}rg: { 'a b+c': node }\n";
    let proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/p.yaml", site), ("users.yaml", users)]);
    for (target, group, received) in [
        ("/u@x.org/pma/", "node", "/pma/"),
        ("/u%40x.org/pma/", "node", "/pma/"),
        ("/j%c3%b6rg/a%20b+c/", "node", "/a%20b+c/"),
        ("/j%C3%B6rg/a%20b%2Bc/", "node", "/a%20b%2Bc/"),
        ("/u%2540x.org/pma/", "panel", "/u%2540x.org/pma/"),
        ("/u@x.org%2Fpma/", "panel", "/u@x.org%2Fpma/"),
        ("/%ff/pma/", "panel", "/%FF/pma/"),
    ] {
        assert_eq!(get(proxy.address(), "p.test", target, "").text(), group, "{target}");
        let origin = if group == "node" { &node } else { &panel };
        assert_eq!(origin.request().target, received, "{target}");
    }
}
