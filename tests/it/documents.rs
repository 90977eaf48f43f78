//! The documents are true: every YAML block and every command in them is tried, every file under `conf` is checked.

use std::path::Path;
use std::process::Command;

use crate::actors::{Ca, Check, PLAIN, Proxy, check};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The blocks of a page in a language, with the words behind it.
fn blocks_of(page: &str, language: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let mut found = Vec::new();
    for block in text.split("\n```").skip(1).step_by(2) {
        let (info, body) = block.split_once('\n').unwrap();
        if info.split(' ').next() == Some(language) {
            found.push((info.to_owned(), format!("{body}\n")));
        }
    }
    found
}

fn blocks(language: &str) -> Vec<(String, String)> {
    blocks_of("README.md", language)
}

/// The README's files in a directory of their own, with what they refer to; and what `check` says of them.
fn the_readmes_files() -> (tempfile::TempDir, Check) {
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    let ca = Ca::new();
    ca.issue(here, "shop", &["shop.example.com", "www.shop.example.com"]);
    ca.issue(here, "panel", &["panel.example.com"]);
    ca.issue(here, "apps", &["*.apps.example.com"]);
    ca.issue(here, "app", &["app.example.com"]);
    std::fs::write(here.join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(here.join("sorry.html"), "sorry").unwrap();
    std::fs::create_dir(here.join("sites.d")).unwrap();
    std::fs::write(here.join("sites.d/pay.key"), "k").unwrap();
    let blocks = blocks("yaml");
    assert_eq!(blocks.len(), 7);
    let files: Vec<(String, String)> = blocks
        .into_iter()
        .map(|(info, text)| {
            let name = info.split("file=").nth(1).expect("each block says which file it is").to_owned();
            let name = if name == "portcullis.yaml" { "main.yaml".to_owned() } else { name };
            (name, text.replace("/etc/ssl", here.to_str().unwrap()))
        })
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let result = check("check", &[], here, &files);
    (directory, result)
}

#[test]
fn the_readmes_configuration_is_good() {
    let (_directory, result) = the_readmes_files();
    assert_eq!((result.code, result.text.as_str()), (Some(0), "main.yaml: good: 4 sites, 5 backend groups, 2 users, 4 tests passed\n"));
}

#[test]
fn the_readmes_commands_work() {
    let (directory, _) = the_readmes_files();
    let blocks = blocks("sh");
    let lines: Vec<&str> = blocks.iter().flat_map(|(_, body)| body.lines()).collect();
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let mut seen = 0;
    for line in lines {
        let words: Vec<&str> = line.split('#').next().unwrap().split_whitespace().collect();
        match words[..] {
            ["make", target, ..] => assert!(makefile.contains(&format!("\n{target}:")), "{line}"),
            // What ends by itself is run as it stands; the demonstration and the proxy have stories of their own.
            ["portcullis", "check" | "explain" | "schema", ..] => {
                let args = words[1..].iter().map(|word| word.replace("portcullis.yaml", "main.yaml"));
                let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).args(args).current_dir(directory.path()).output().unwrap();
                assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
                let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
                assert!(text.len() > 20, "{line}: {text}");
            }
            ["portcullis", verb @ ("config" | "users" | "backend"), sub, ..] => {
                let help = Command::new(env!("CARGO_BIN_EXE_portcullis")).args([verb, sub, "--help"]).output().unwrap();
                assert!(help.status.success(), "{line}");
            }
            ["portcullis", verb, ref rest @ ..] => {
                let help = Command::new(env!("CARGO_BIN_EXE_portcullis")).args([verb, "--help"]).output().unwrap();
                assert!(help.status.success(), "{line}");
                let help = String::from_utf8(help.stdout).unwrap();
                assert!(rest.iter().filter(|word| word.starts_with('-')).all(|flag| help.contains(*flag)), "{line}");
            }
            _ => panic!("a command of an unknown kind: {line}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 15);
}

/// Every command of `docs/operating.md` is given to a running process, in the order of the page.
#[test]
fn the_commands_of_the_operators_page_work() {
    let main = format!(
        "{PLAIN}users: users.yaml\nbackend_groups:\n  node1: {{ backends: ['127.0.0.1:9'] }}\n  node2: {{ backends: ['127.0.0.1:9'] }}\n  \
         cloud: {{ sticky: true, backends: [{{ address: '127.0.0.1:9', name: S1 }}, {{ address: '127.0.0.1:8', name: S2 }}] }}\n"
    );
    let proxy = Proxy::start(&[
        ("main.yaml", &main),
        ("sites.d/shop.yaml", "domains: [shop.test]\ngroups: { blue: node1, green: node2 }\nactive: blue\n"),
        ("users.yaml", "managed: true\nusers: { user1: { mail: node1 } }\n"),
    ]);
    let mut given = 0;
    for line in blocks_of("docs/operating.md", "sh").iter().flat_map(|(_, body)| body.lines()) {
        let words: Vec<&str> = line.split('#').next().unwrap().split_whitespace().collect();
        let args: Vec<&str> = match words[..] {
            // It follows until it is ended, and has a story of its own.
            ["portcullis", "health", "--track-file", _] => continue,
            ["portcullis", "upgrade", "--binary", _] => vec!["upgrade", "--binary", env!("CARGO_BIN_EXE_portcullis")],
            ["portcullis", "config", "rollback", _] => {
                let oldest = proxy.ok(&["config", "history"]).split_whitespace().next().unwrap().to_owned();
                proxy.ok(&["config", "rollback", &oldest]);
                given += 1;
                continue;
            }
            ["portcullis", "config", "rollback"] => {
                proxy.write("sites.d/more.yaml", "domains: [more.test]\ngroup: node1\n");
                proxy.ok(&["reload"]);
                vec!["config", "rollback"]
            }
            ["portcullis", "users", "import", file] => {
                proxy.write(file, &proxy.ok(&["users", "export"]));
                vec!["users", "import", file]
            }
            ["portcullis", ref args @ ..] => args.to_vec(),
            ["install", ref args @ ..] => {
                for file in args.iter().filter(|word| word.starts_with("conf/")) {
                    assert!(root().join(file).is_file(), "{line}");
                }
                continue;
            }
            ["systemd-sysusers" | "systemctl", ..] => continue,
            _ => panic!("a command of an unknown kind: {line}"),
        };
        proxy.ok(&args);
        given += 1;
    }
    assert_eq!(given, 24);
}

/// What the pages about containers and virtual addresses show is good.
#[test]
fn the_files_of_the_other_pages_are_good() {
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    std::fs::write(here.join("sticky.key"), "0123456789abcdef").unwrap();
    std::fs::create_dir(here.join("sites.d")).unwrap();
    std::fs::create_dir(here.join("users.d")).unwrap();
    let of_pair = blocks_of("docs/virtual-ip.md", "yaml").remove(0).1.replace("/etc/portcullis/sticky.key", "sticky.key");
    let result = check("check", &[], here, &[("main.yaml", &format!("{of_pair}sites: sites.d/*.yaml\n"))]);
    assert_eq!(result.code, Some(0), "{}", result.text);
    let text = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let result = check("check", &[], here, &[("main.yaml", &text("docker/portcullis.yaml"))]);
    assert_eq!(result.code, Some(0), "{}", result.text);
    let app = text("docker/config/sites.d/app.yaml");
    let result = check("check", &[], here, &[("main.yaml", &text("docker/config/portcullis.yaml")), ("sites.d/app.yaml", &app)]);
    assert_eq!(result.code, Some(0), "{}", result.text);
    // The ConfigMap, as Kubernetes mounts it.
    let manifests = blocks_of("docker/README.md", "yaml").remove(0).1;
    let map: serde_yaml::Value = serde_yaml::from_str(manifests.split("---").next().unwrap()).unwrap();
    let file = |name: &str| map["data"][name].as_str().unwrap().to_owned();
    let result = check("check", &[], here, &[("main.yaml", &file("portcullis.yaml")), ("site-shop.yaml", &file("site-shop.yaml"))]);
    assert!(result.code == Some(0) && result.text.contains("good: 1 site"), "{}", result.text);
    for manifest in manifests.split("---") {
        assert!(serde_yaml::from_str::<serde_yaml::Value>(manifest).unwrap()["kind"].is_string());
    }
}

#[test]
fn the_file_to_start_from_is_good() {
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    Ca::new().issue(here, "cert", &["shop.example.com", "www.shop.example.com"]);
    let main = std::fs::read_to_string(root().join("conf/portcullis.yaml")).unwrap();
    let shop = std::fs::read_to_string(root().join("conf/sites.d/shop.yaml.example")).unwrap();
    let here_text = here.to_str().unwrap();
    let shop = shop
        .replace("/etc/letsencrypt/live/shop/fullchain.pem", &format!("{here_text}/cert.pem"))
        .replace("/etc/letsencrypt/live/shop/privkey.pem", &format!("{here_text}/cert.key"));
    std::fs::create_dir(here.join("users.d")).unwrap();
    let result = check("check", &[], here, &[("main.yaml", &main), ("sites.d/shop.yaml", &shop)]);
    assert_eq!((result.code, result.text.as_str()), (Some(0), "main.yaml: good: 1 site, 1 backend group, 0 users\n"));
}

/// The reference page is what the program says of its keys; `UPDATE=1` writes it anew.
#[test]
fn the_reference_is_made_from_the_schema() {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).args(["schema", "--markdown"]).output().unwrap();
    let (made, path) = (String::from_utf8(output.stdout).unwrap(), root().join("docs/reference.md"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    assert_eq!(made, std::fs::read_to_string(&path).unwrap());
    let raw = std::fs::read_to_string(root().join("src/config/raw/mod.rs")).unwrap();
    let keys = raw.lines().filter_map(|line| line.strip_prefix("    pub(crate) ")?.split_once(": ").map(|(key, _)| key));
    let mut count = 0;
    for key in keys {
        assert!(made.contains(&format!("| `{key}` |")), "{key}");
        count += 1;
    }
    assert!(count > 120, "{count}");
    assert!(!made.contains("|  |"), "every key has a description");
}

/// `src/architecture.md` says who names Pingora, and that every file opens with a sentence about itself.
#[test]
fn the_architecture_is_what_its_page_says() {
    let mut folders = vec![root().join("src")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let place = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
            if !place.ends_with(".rs") {
                continue;
            }
            seen += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//! ") || place == "lib.rs", "{place} does not say what it is for");
            let may = ["proxy/", "balance/", "health/", "app.rs", "observe/events.rs"].iter().any(|allowed| place.starts_with(allowed));
            let names = text.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| line.contains("pingora"));
            assert!(may || !names, "{place} names Pingora");
            let pure = ["decide.rs", "routing/", "rewrite/"].iter().any(|folder| place.starts_with(folder));
            let worldly = ["std::fs", "std::env", "tokio", "Instant::now", "SystemTime::now", "Mutex"];
            assert!(!pure || !worldly.iter().any(|word| text.contains(word)), "{place} is not pure");
        }
    }
    assert!(seen > 40, "{seen}");
}
