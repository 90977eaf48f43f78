//! Loads a configuration as `run`, `check` and a reload do: read, checked, and its sites' own tests passed.

use std::path::Path;
use std::sync::Arc;

use crate::config::diagnostic::{Diagnostic, Severity};
use crate::config::files::Files;
use crate::config::{self, Config, Loaded, Previous, Site, Test, TestRequest};
use crate::decide::{RequestView, Verdict, decide};
use crate::rewrite::forwarded::client;
use crate::snapshot::{Rules, compile_rules};

/// How often all files are read again that change meanwhile.
const TRIES: usize = 3;

/// Reads and checks the configuration whose main file is `path`, and runs the tests of its sites. A site whose tests fail
/// is as broken as one with a mistake.
pub fn load(path: &Path, files: &Files, previous: &Previous) -> Loaded {
    let mut loaded = config::load(path, files, previous);
    if let Some(config) = &mut loaded.config {
        for (index, failures) in failed_tests(config, path) {
            for failure in failures {
                loaded.report.push(failure);
            }
            if let Some(site) = config.sites.get_mut(index) {
                loaded.broken_sites.push(site.name.clone());
                *site = Arc::new(Site { routes: Vec::new(), ..Site::clone(site) });
            }
        }
    }
    loaded
}

/// Loads the files as they are on the disk: all of them as they were at one moment, wherever somebody does not change them all
/// the time. Turning a link may change hundreds at once.
pub fn load_from_disk(path: &Path, previous: &Previous) -> (Loaded, Files) {
    let mut tries = 1;
    loop {
        let files = Files::on_disk();
        let mut loaded = load(path, &files, previous);
        let Some(changed) = files.changed() else { return (loaded, files) };
        if tries == TRIES {
            let told = Diagnostic::about_file(&changed, "has changed after it was read, and other files go on changing, too");
            let help = "what came later counts with the next reload: reload once the files are at rest";
            loaded.report.push(Diagnostic { severity: Severity::Warning, ..told }.with_help(help));
            return (loaded, files);
        }
        tries += 1;
    }
}

/// The tests that fail, by the number of their site.
fn failed_tests(config: &Config, path: &Path) -> Vec<(usize, Vec<Diagnostic>)> {
    let tested = |site: &Arc<Site>| !site.tests.is_empty() && !site.routes.is_empty();
    if !config.sites.iter().any(tested) {
        return Vec::new();
    }
    let rules = compile_rules(config, None);
    let sites = config.sites.iter().enumerate().filter(|(_, site)| tested(site));
    let failures = sites.map(|(index, site)| (index, site.tests.iter().filter_map(|test| failure(test, path, config, &rules)).collect()));
    failures.filter(|(_, failures): &(usize, Vec<Diagnostic>)| !failures.is_empty()).collect()
}

/// What became of the request of a test, in the words that a test expects.
#[derive(Debug, Default)]
struct Outcome {
    group: Option<String>,
    route: Option<String>,
    user: Option<String>,
    app: Option<String>,
    path: Option<String>,
    status: Option<u16>,
    location: Option<String>,
    dropped: bool,
}

fn failure(test: &Test, path: &Path, config: &Config, rules: &Rules) -> Option<Diagnostic> {
    let outcome = outcome(test, config, rules);
    let expected = &test.expected;
    let text = |status: Option<u16>| status.map(|status| status.to_string());
    let forwarded = outcome.group.is_some();
    let compared = [
        ("group", expected.group.clone(), outcome.group),
        ("route", expected.route.clone(), outcome.route),
        ("user", expected.user.clone(), outcome.user),
        ("app", expected.app.clone(), outcome.app),
        ("path", expected.path.clone(), outcome.path),
        ("status", text(expected.status), text(outcome.status)),
        ("location", expected.location.clone(), outcome.location),
    ];
    let dropped = if outcome.dropped { "; the connection is closed without an answer" } else { "" };
    let differs = compared.into_iter().filter(|(_, wanted, got)| wanted.is_some() && wanted != got).map(|(what, wanted, got)| {
        let got = match (got, what) {
            (Some(got), _) => format!("it is `{got}`"),
            (None, "status" | "location") if forwarded => "the request goes to a backend".to_owned(),
            (None, _) => format!("there is no {what}"),
        };
        format!("{what} should be `{}`, but {got}", wanted.unwrap_or_default())
    });
    let differs: Vec<String> = differs.collect();
    if differs.is_empty() {
        return None;
    }
    let help = format!("`{}` tells why", question(&test.request, path));
    Some(Diagnostic::error(test.place.clone(), format!("this test fails: {}{dropped}", differs.join("; "))).with_help(help))
}

/// The command that explains a test's request.
fn question(request: &TestRequest, path: &Path) -> String {
    let scheme = if request.secure { "https" } else { "http" };
    let quoted = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/:.-_=~%+,@".contains(&byte));
        if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
    };
    let mut command = format!("portcullis explain {}", quoted(&format!("{scheme}://{}{}", request.host, request.target)));
    if request.method != http::Method::GET {
        command.push_str(&format!(" --method {}", request.method));
    }
    for (name, value) in &request.headers {
        command.push_str(&format!(" --header {}", quoted(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))));
    }
    if request.from != TestRequest::SOMEBODY {
        command.push_str(&format!(" --from {}", request.from));
    }
    format!("{command} -c {}", quoted(&path.display().to_string()))
}

fn outcome(test: &Test, config: &Config, rules: &Rules) -> Outcome {
    let request = &test.request;
    let (path, query) = request.target.split_once('?').map_or((request.target.as_str(), None), |(path, query)| (path, Some(query)));
    // The site's own listener, of the kind that the request needs.
    let site = rules.hosts.find(&request.host.to_ascii_lowercase()).and_then(|(site, _)| rules.site(site));
    let fits = |listener: &&config::Listener| listener.tls == request.secure && site.is_none_or(|site| site.answers_on(&listener.name));
    let listener = config.listeners.iter().find(fits).or(config.listeners.first());
    // What a trusted proxy says of its client counts, as on the data path.
    let client = client(request.from, request.secure, &request.headers, |address| rules.trusts(address));
    let verdict = decide(
        rules,
        &RequestView {
            method: request.method.as_str(),
            host: &request.host,
            path: path.as_bytes(),
            query: query.map(str::as_bytes),
            absolute: false,
            secure: client.secure,
            headers: &request.headers,
            client: client.address,
            trusted: client.trusted,
            listener: listener.map_or("", |listener| &listener.name),
            request_id: "test",
        },
    );
    let route =
        |site: u32, route: u32| rules.site(site).and_then(|site| site.config.routes.get(route as usize)).map(|route| route.name.clone());
    match verdict {
        Verdict::Forward(forward) => Outcome {
            group: config.groups.get(forward.group.0 as usize).map(|group| group.name.clone()),
            route: route(forward.site, forward.route),
            user: forward.user.map(|user| rules.users.user_name(user).to_owned()),
            app: forward.app.map(|app| rules.users.app_name(app).to_owned()),
            path: Some(forward.target.unwrap_or_else(|| request.target.clone())),
            ..Outcome::default()
        },
        Verdict::Redirect { site, route: by, location, status } => {
            Outcome { route: by.and_then(|by| route(site, by)), status: Some(status), location: Some(location), ..Outcome::default() }
        }
        Verdict::Respond { site, route: by } => {
            let status = rules.site(site).and_then(|site| match &site.config.routes.get(by as usize)?.target {
                config::Target::Respond(respond) => Some(respond.status.as_u16()),
                _ => None,
            });
            Outcome { route: route(site, by), status, ..Outcome::default() }
        }
        Verdict::Refuse { user, status, .. } => {
            Outcome { user: user.map(|user| rules.users.user_name(user).to_owned()), status: Some(status), ..Outcome::default() }
        }
        Verdict::Drop => Outcome { dropped: true, ..Outcome::default() },
    }
}
