//! Real applications behind the real proxy: phpMyAdmin with MariaDB on two nodes, DokuWiki on the second, used by a
//! real browser. Run by `make test-apps`, which installs them.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "tests fail by panicking")]

#[path = "../it/actors/mod.rs"]
#[expect(dead_code, unused_imports, reason = "these stories need only some of the actors")]
mod actors;
mod browser;
mod node;

use actors::{Ca, Proxy};
use browser::Browser;
use node::Node;

#[test]
fn a_user_moves_to_another_node_and_keeps_the_url() {
    let (node1, node2) = (Node::start("node1"), Node::start("node2"));
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "panel", &["panel.localhost", "*.apps.localhost"]);
    let main = format!(
        "listeners: [{{ address: '127.0.0.1:0', tls: true }}]\naccess_log: json\nsites: sites.d/*.yaml\nusers: users.d/*.yaml\nbackend_groups:\n  \
         node1: {{ backends: ['{}'], health_check: /phpmyadmin/themes/dot.gif }}\n  node2: {{ backends: ['{}'] }}\n",
        node1.address, node2.address
    );
    let tls = "tls: { cert: ../panel.pem, key: ../panel.key }\nhsts: 1h\n";
    let panel =
        format!("domains: [panel.localhost]\n{tls}routes:\n  - {{ path: '/{{user}}/{{app}}/', users: true, strip: '/{{user}}' }}\n");
    let apps = format!("domains: ['{{user}}.apps.localhost']\n{tls}routes:\n  - {{ path: '/{{app}}/', users: true }}\n");
    let users = |mysql: &str| format!("apps:\n  phpmyadmin: {{ role: mysql }}\nusers:\n  user1: {{ mysql: {mysql}, dokuwiki: node2 }}\n");
    let proxy = Proxy::start_in(
        directory,
        &[("main.yaml", &main), ("sites.d/panel.yaml", &panel), ("sites.d/apps.yaml", &apps), ("users.d/users.yaml", &users("node1"))],
    );
    let port = proxy.address().port();
    let url = format!("https://panel.localhost:{port}/user1/phpmyadmin/");
    let browser = Browser::start();

    log_in(&browser, &url);
    let databases = databases(&browser, &url);
    assert!(databases.contains("on_node1") && !databases.contains("on_node2"), "{databases}");
    let line = proxy.wait_access(|line| line["user"] == "user1" && line["app"] == "phpmyadmin");
    assert_eq!(line["backend"].as_str(), Some(node1.address.to_string().as_str()));
    let cookies = browser.cookies();
    assert!(
        !cookies.is_empty() && cookies.iter().all(|(_, path)| path.starts_with("/user1/phpmyadmin/")),
        "confined to the app: {cookies:?}"
    );
    browser.screenshot("phpmyadmin-on-node1.png");

    // One row, one reload: the same URL, the new node.
    proxy.write("users.d/users.yaml", &users("node2"));
    assert!(proxy.reload().contains("reloaded: generation 2"));
    log_in(&browser, &url);
    let databases = self::databases(&browser, &url);
    assert!(databases.contains("on_node2") && !databases.contains("on_node1"), "{databases}");

    // A second application, on a host name of the user's own.
    let wiki = format!("https://user1.apps.localhost:{port}/dokuwiki/doku.php?id=start");
    browser.open(&wiki);
    let text = browser.text();
    assert!(text.contains("DokuWiki") || text.contains("This topic does not exist yet"), "{text}");
    browser.follow("a[href*='do=login']");
    assert!(browser.url().starts_with(&format!("https://user1.apps.localhost:{port}/dokuwiki/")), "{}", browser.url());
    assert!(browser.text().contains("Username") || browser.text().contains("Log"), "{}", browser.text());
    let line = proxy.wait_access(|line| line["app"] == "dokuwiki");
    assert_eq!((line["group"].as_str(), line["status"].as_u64()), (Some("node2"), Some(200)));
    assert!(!proxy.events().contains("panic"));
}

fn log_in(browser: &Browser, url: &str) {
    browser.open(url);
    browser.fill("input[name=pma_username]", "user1");
    browser.fill("input[name=pma_password]", "secret1");
    browser.follow("#input_go");
    assert!(browser.url().starts_with(url), "{}", browser.url());
}

fn databases(browser: &Browser, url: &str) -> String {
    browser.open(&format!("{url}index.php?route=/server/databases"));
    browser.text()
}
