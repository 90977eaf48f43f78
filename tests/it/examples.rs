//! Every example of `conf/examples` fits the schema, is good, starts and answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use regex::Regex;
use serde_json::Value;

use crate::actors::{Ca, Client, Origin, Proxy, Reply, tls_config};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/examples")
}

/// All files of an example by their path in it.
fn files_of(folder: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    files
}

/// A running example: its backends answer with their addresses as the example has them.
struct Stage {
    proxy: Proxy,
    ca: Ca,
    origins: BTreeMap<String, Origin>,
}

/// Starts an example on ports of its own: addresses, certificates and sockets are the test's.
fn start(name: &str) -> Stage {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path().to_owned();
    std::fs::create_dir_all(here.join("certs")).unwrap();
    ca.issue(
        &here.join("certs"),
        "any",
        &[
            "panel.example.com",
            "*.apps.example.com",
            "hosting.example.com",
            "shop.example.com",
            "www.shop.example.com",
            "*.blogs.example.com",
            "old-shop.example.com",
            "app.example.com",
            "app.internal",
        ],
    );
    let mut files = files_of(&examples().join(name));
    let mut origins = BTreeMap::new();
    let backend = Regex::new(r"\b10\.\d+\.\d+\.\d+:\d+\b").unwrap();
    let certificate = Regex::new(r"/etc/ssl/[a-z]+\.(pem|key)").unwrap();
    for text in files.values_mut() {
        for found in backend.find_iter(&text.clone()) {
            let said = found.as_str().to_owned();
            origins
                .entry(said.clone())
                .or_insert_with(|| Origin::new(move |request| Reply::text(format!("{said} {} ready", request.target))));
        }
        for (address, origin) in &origins {
            *text = text.replace(address.as_str(), &origin.address.to_string());
        }
        *text = certificate.replace_all(text, format!("{}/certs/any.$1", here.display())).into_owned();
        *text = text.replace("/etc/letsencrypt/live", &here.join("certs").display().to_string());
        *text = text.replace("\":80\"", "\"127.0.0.1:0\"").replace("\":443\"", "\"127.0.0.1:0\"").replace("127.0.0.1:8081", "127.0.0.1:0");
        // The scripted backends speak plain HTTP.
        *text = text.lines().filter(|line| !line.trim_start().starts_with("tls: { server_name")).collect::<Vec<_>>().join("\n") + "\n";
    }
    let main = files.remove("portcullis.yaml").unwrap() + "state_dir: state\naccess_log: json\n";
    let mut all: Vec<(&str, &str)> = vec![("main.yaml", &main)];
    all.extend(files.iter().map(|(path, text)| (path.as_str(), text.as_str())));
    let proxy = Proxy::start_in(directory, &all);
    assert!(!proxy.events().contains("error"), "{}", proxy.events());
    Stage { proxy, ca, origins }
}

impl Stage {
    fn ask(&self, listener: usize, tls: bool, host: &str, target: &str, headers: &str) -> (u16, String, String) {
        let mut client = match tls {
            false => Client::plain(self.proxy.addresses[listener]),
            true => {
                let config = tls_config(self.ca.roots(), &["http/1.1"], &[&rustls::version::TLS13]);
                Client::tls(self.proxy.addresses[listener], host, Arc::new(config)).unwrap().0
            }
        };
        let answer = client.request("GET", host, target, headers, b"");
        (answer.status, answer.header("location"), answer.text())
    }

    fn forwarded(&self, host: &str, target: &str, headers: &str) -> String {
        let (status, _, text) = self.ask(1, true, host, target, headers);
        assert_eq!(status, 200, "{host}{target}: {text}");
        text
    }
}

#[test]
fn a_hosting_panel() {
    let stage = start("hosting-panel");
    assert_eq!(stage.forwarded("panel.example.com", "/user1/phpmyadmin/x", ""), "10.0.0.21:80 /phpmyadmin/x ready");
    assert_eq!(stage.forwarded("panel.example.com", "/user1/snappymail/", ""), "10.0.0.22:80 /snappymail/ ready");
    assert_eq!(stage.forwarded("panel.example.com", "/static/a.css", ""), "10.0.0.10:8080 /static/a.css ready");
    assert_eq!(stage.forwarded("user2.apps.example.com", "/wiki/", ""), "10.0.0.21:80 /wiki/ ready");
    assert_eq!(stage.ask(1, true, "panel.example.com", "/user1/nothing/", "").0, 404);
    assert_eq!(stage.ask(0, false, "panel.example.com", "/x", "").1, "https://panel.example.com/x");
}

#[test]
fn many_domains() {
    let stage = start("many-domains");
    assert_eq!(stage.forwarded("shop.example.com", "/items/1", ""), "10.0.1.11:3000 /items/1 ready");
    assert_eq!(stage.forwarded("anna.blogs.example.com", "/", ""), "10.0.1.12:8080 / ready");
    assert_eq!(stage.ask(1, true, "www.shop.example.com", "/a", "").1, "https://shop.example.com/a");
    assert_eq!(stage.ask(0, false, "parked.example.org", "/", "").2, "parked.example.org is not set up yet.\n");
    let (status, _, page) = stage.ask(1, true, "old-shop.example.com", "/", "");
    assert!(status == 503 && page.contains("tell us this number"), "{page}");
}

#[test]
fn a_sticky_cluster() {
    let stage = start("sticky-cluster");
    let mut client = Client::tls(
        stage.proxy.addresses[1],
        "app.example.com",
        Arc::new(tls_config(stage.ca.roots(), &["http/1.1"], &[&rustls::version::TLS13])),
    )
    .unwrap()
    .0;
    let first = client.request("GET", "app.example.com", "/", "", b"");
    let cookie = first.header("set-cookie");
    assert!(cookie.starts_with("SRVNAME="), "{cookie}");
    for _ in 0..4 {
        let again = client.request("GET", "app.example.com", "/", &format!("Cookie: {}\r\n", cookie.split(';').next().unwrap()), b"");
        assert_eq!(again.text(), first.text());
    }
    for address in ["10.0.2.31:8443", "10.0.2.32:8443"] {
        stage.origins[address].die();
    }
    assert_eq!(stage.forwarded("app.example.com", "/", ""), "10.0.2.33:8443 / ready", "the backup");
    stage.origins["10.0.2.33:8443"].die();
    let (status, _, page) = stage.ask(1, true, "app.example.com", "/", "");
    assert!([502, 503].contains(&status) && page.contains("Back soon"), "{status} {page}");
}

#[test]
fn blue_and_green() {
    let stage = start("blue-green");
    let group = |headers: &str, target: &str| stage.ask(0, false, "app.example.com", target, headers).2;
    assert!(group("", "/").starts_with("10.0.3.1:") || group("", "/").starts_with("10.0.3.2:"));
    assert!(["10.0.3.3:", "10.0.3.4:"].iter().any(|green| group("Cookie: version=green\r\n", "/").starts_with(green)));
    assert_eq!(stage.ask(0, false, "app.example.com", "/use-green", "").0, 303);
    let site = std::fs::read_to_string(stage.proxy.directory.path().join("sites.d/app.yaml")).unwrap();
    let green = site.replace("group: blue ", "group: green ").replace("{ get: /, group: blue }", "{ get: /, group: green }");
    stage.proxy.write("sites.d/app.yaml", &green);
    stage.proxy.reload();
    assert!(["10.0.3.3:", "10.0.3.4:"].iter().any(|green| group("", "/").starts_with(green)), "one word has moved everybody");
}

#[test]
fn behind_another_proxy() {
    let stage = start("behind-another-proxy");
    assert_eq!(stage.ask(0, false, "shop.example.com", "/a", "").2, "10.0.4.1:3000 /a ready");
    assert_eq!(stage.ask(0, false, "metrics.internal", "/metrics", "").0, 404, "not from outside");
    assert_eq!(stage.ask(1, false, "metrics.internal", "/metrics", "").2, "10.0.4.2:9100 /metrics ready");
    assert_eq!(stage.ask(1, false, "shop.example.com", "/", "").0, 404);
}

#[test]
fn an_api_with_streams() {
    let stage = start("api-and-streams");
    assert_eq!(stage.forwarded("app.example.com", "/events/1", ""), "10.0.5.2:8000 /events/1 ready");
    assert_eq!(stage.ask(1, true, "app.example.com", "/internal/x", "").0, 404);
    assert_eq!(stage.ask(1, true, "app.example.com", "/", "").0, 502, "nobody listens on the socket");
}

/// The schema that is shipped is the program's own, takes every example and refuses what the program refuses.
#[test]
fn the_schema_takes_what_the_program_takes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut validators = BTreeMap::new();
    for kind in ["main", "site", "users"] {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).args(["schema", kind]).output().unwrap();
        let (made, path) = (String::from_utf8(output.stdout).unwrap(), root.join(format!("docs/schema/{kind}.json")));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &made).unwrap();
        }
        assert_eq!(made, std::fs::read_to_string(&path).unwrap(), "{kind}: `UPDATE=1 cargo test` writes it anew");
        let schema: Value = serde_json::from_str(&made).unwrap();
        assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
        validators.insert(kind, jsonschema::draft7::new(&schema).unwrap());
    }
    let mut count = 0;
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(examples()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    folders.extend([root.join("conf/demo"), root.join("conf")]);
    for folder in folders {
        for (path, text) in files_of(&folder).iter().filter(|(path, _)| path.ends_with(".yaml") && !path.contains("examples/")) {
            let kind = if path.contains("sites.d/") {
                "site"
            } else if path.contains("users.d/") {
                "users"
            } else {
                "main"
            };
            let value: Value = serde_yaml::from_str(text).unwrap();
            let errors: Vec<String> = validators[kind].iter_errors(&value).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{} {path}: {errors:?}", folder.display());
            let says = text.contains(&format!("docs/schema/{kind}.json"));
            assert!(says || !folder.starts_with(examples()), "{} {path} does not name its schema", folder.display());
            count += 1;
        }
    }
    assert!(count >= 25, "{count}");
    for (kind, text) in [
        ("main", "listener: []"),
        ("main", "listeners: [{ address: ':80', keep_alive: 75 }]"),
        ("main", "defaults: { max_body: 10MB }"),
        ("site", "domains: { shop.test: yes }"),
        ("site", "routes: [{ path: /, scheme: ftp }]"),
        ("main", "backend_groups: { a: { backends: [], balance: leastconn } }"),
        ("site", "routes: [{ group: a }]"),
        ("site", "routes: [{ path: /, strip: 5 }]"),
        ("users", "users: { user1: node1 }"),
    ] {
        let value: Value = serde_yaml::from_str(text).unwrap();
        assert!(!validators[kind].is_valid(&value), "{kind}: {text}");
    }
}
