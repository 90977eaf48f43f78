//! Decisions as data: `tests/decide/*.case`, each a configuration with requests and what must become of them.

use std::path::Path;

use http::{HeaderMap, HeaderName, HeaderValue};
use portcullis::config::files::Files;
use portcullis::config::{Config, Previous, Target};
use portcullis::decide::{RequestView, Verdict, decide};
use portcullis::load::load;
use portcullis::snapshot::{Rules, compile_rules};

use crate::actors::Ca;

const MAIN: &str = "listeners: [{ address: ':80', name: plain }, { address: ':443', name: secure, tls: true }]\nsites: sites.d/*.yaml\n\
    users: users.d/*.yaml\nbackend_groups:\n  a: { backends: [127.0.0.1:1] }\n  b: { backends: [127.0.0.1:2] }\n  c: { backends: [127.0.0.1:3] }\n";

/// Every request of every case; a name of a folder in `DECIDE_CASES` stands in for the repository's.
#[test]
fn every_case_is_decided_as_it_says() {
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/decide");
    let folder = std::env::var("DECIDE_CASES").unwrap_or_else(|_| repository.to_owned());
    let (mut count, mut wrong) = (0, Vec::new());
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "case")) {
        for (line, (asked, wanted, got)) in run(file).into_iter().enumerate() {
            count += 1;
            if wanted != got {
                wrong.push(format!("{} request {}: {asked}\n  wanted: {wanted}\n     got: {got}", file.display(), line + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(folder != repository || count >= 1000, "only {count} cases");
}

/// The requests of a case with what was wanted and what became of them.
fn run(file: &Path) -> Vec<(String, String, String)> {
    let text = std::fs::read_to_string(file).unwrap();
    let directory = tempfile::TempDir::new().unwrap();
    std::fs::create_dir(directory.path().join("users.d")).unwrap();
    Ca::new().issue(directory.path(), "any", &["any.test"]);
    std::fs::write(directory.path().join("main.yaml"), MAIN).unwrap();
    let mut requests = "";
    for part in text.split("\n== ").skip(1) {
        let (name, body) = part.split_once('\n').unwrap();
        if name == "requests" {
            requests = body;
            continue;
        }
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{body}\n")).unwrap();
    }
    let loaded = load(&directory.path().join("main.yaml"), &Files::on_disk(), &Previous::default());
    assert!(!loaded.report.has_errors(), "{}: {}", file.display(), loaded.report.render(false));
    let config = loaded.config.unwrap();
    let rules = compile_rules(&config, None);
    let requests = requests.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let decided = requests.map(|line| {
        let (asked, wanted) = line.split_once("=>").unwrap_or_else(|| panic!("{}: no verdict in: {line}", file.display()));
        (asked.trim().to_owned(), wanted.trim().to_owned(), decided(asked.trim(), &config, &rules))
    });
    decided.collect()
}

fn decided(asked: &str, config: &Config, rules: &Rules) -> String {
    let mut parts = asked.split(" | ").map(str::trim);
    let (method, url) = parts.next().unwrap().split_once(' ').unwrap();
    let (scheme, rest) = url.split_once("://").unwrap();
    let end = rest.find(['/', '?', '*']).unwrap_or(rest.len());
    let (host, target) = rest.split_at(end);
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let (mut headers, mut from, mut listener) = (HeaderMap::new(), "192.0.2.1", if scheme == "https" { "secure" } else { "plain" });
    for part in parts {
        if let Some(address) = part.strip_prefix("from ") {
            from = address;
        } else if let Some(name) = part.strip_prefix("on ") {
            listener = name;
        } else {
            let (name, value) = part.split_once(':').unwrap();
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value.trim()).unwrap());
        }
    }
    let verdict = decide(
        rules,
        &RequestView {
            method,
            host,
            path: path.as_bytes(),
            query: query.map(str::as_bytes),
            absolute: false,
            secure: scheme == "https",
            headers: &headers,
            client: from.parse().unwrap(),
            trusted: false,
            listener,
            request_id: "id",
        },
    );
    let site = |site: u32| rules.site(site).unwrap();
    let route = |in_site: u32, route: u32| &site(in_site).config.routes[route as usize];
    match verdict {
        Verdict::Forward(forward) => {
            let group = &config.groups[forward.group.0 as usize].name;
            let (site, route) = (&site(forward.site).config.name, &route(forward.site, forward.route).name);
            let sent = forward.target.unwrap_or_else(|| target.to_owned());
            let user = forward.user.map(|user| format!(" user={}", rules.users.user_name(user))).unwrap_or_default();
            let app = forward.app.map(|app| format!(" app={}", rules.users.app_name(app))).unwrap_or_default();
            format!("forward {site} {route} {group} {sent}{user}{app}")
        }
        Verdict::Redirect { location, status, .. } => format!("redirect {status} {location}"),
        Verdict::Respond { site, route: by } => match &route(site, by).target {
            Target::Respond(respond) => format!("respond {} {}", respond.status.as_u16(), route(site, by).name),
            other => panic!("{other:?} answers nothing"),
        },
        Verdict::Refuse { status, reason, .. } => format!("refuse {status} {}", reason.as_str()),
        Verdict::Drop => "drop".to_owned(),
    }
}
