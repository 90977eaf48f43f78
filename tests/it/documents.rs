//! The documents are true: every YAML block of the README is checked, every file under `conf` too.

use std::path::Path;
use std::process::Command;

use crate::actors::{Ca, Check, check};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The blocks of the README's language `language`, with the words behind it.
fn blocks(language: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    let mut found = Vec::new();
    for block in text.split("\n```").skip(1).step_by(2) {
        let (info, body) = block.split_once('\n').unwrap();
        if info.split(' ').next() == Some(language) {
            found.push((info.to_owned(), format!("{body}\n")));
        }
    }
    found
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
    assert_eq!(seen, 8);
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
