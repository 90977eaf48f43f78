//! From raw values to checked ones: names are resolved, defaults filled in, every mistake collected.

mod answers;
mod at;
mod certificates;
mod dead_regex;
mod edits;
mod group;
mod health;
mod last_good;
mod listener;
mod members;
mod route;
mod route_tests;
mod site;
mod users;
mod users_stream;

pub use last_good::{Claims, keep_last_good, keep_vanished};
pub use site::digest_of;
pub use users::{fits_into_a_path, read_text as read_users};

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::diagnostic::{Diagnostic, Place, Report, Severity, did_you_mean};
use super::files;
use super::raw::{self, Short};
use super::read::read;
use super::source::{read_document, relative_to};
use super::{
    AccessLog, Admin, Config, ErrorPages, Group, GroupId, LogFormat, LogTarget, Previous, Secret, Site, SiteCertificates, Timeouts,
    UnknownHost,
};
use crate::rewrite::headers::HeaderEdit;
use crate::routing::users::Users;
use crate::tls::Preset;
use crate::tls::store::{Files, Loaded};
use at::At;

/// Groups of the main file by name, for routes and users that refer to them.
type GroupNames = HashMap<String, GroupId>;

/// The body of a request that a backend gets where nothing else is said: enough for any upload by a browser.
const MAX_BODY: u64 = 1 << 30;

/// What sites, groups and routes get that say nothing else.
struct Defaults<'a> {
    group: group::Defaults<'a>,
    max_body: Option<u64>,
    preset: Preset,
    request_headers: Vec<HeaderEdit>,
    response_headers: Vec<HeaderEdit>,
    error_pages: ErrorPages,
}

impl<'a> Defaults<'a> {
    fn new(raw: &raw::Defaults, from: &Path, resolving: members::Resolving<'a>, at: &At<'_>, report: &mut Report) -> Self {
        let preset = raw.tls.as_ref().and_then(|tls| tls.preset.as_deref());
        let none = ErrorPages::default();
        Self {
            group: group::Defaults::new(raw, resolving, at, report),
            max_body: raw.max_body.map_or(Some(MAX_BODY), |limit| limit.0),
            preset: certificates::preset(preset, Preset::Intermediate, &at.key("tls").key("preset"), report),
            request_headers: edits::check(&raw.request_headers, &[], &at.key("request_headers"), report),
            response_headers: edits::check(&raw.response_headers, &[], &at.key("response_headers"), report),
            error_pages: answers::error_pages(&raw.error_pages, raw.error_details, &none, from, at, report),
        }
    }
}

/// Checks the files from the main file on. `None` when a mistake outside the sites refuses all of it; otherwise the
/// configuration and the names of broken sites.
pub(super) fn check(path: &Path, files: &files::Files, previous: &Previous, report: &mut Report) -> Option<(Config, Vec<String>)> {
    let mut document = read_document(files, path, report)?;
    let main: raw::Main = read(&mut document, report);
    let at = At::root(&document);
    let listeners = listener::check(&main.listeners, &at.key("listeners"), report);
    let name_servers = name_servers(&main.name_servers.0, &at.key("name_servers"), report);
    let resolving = members::Resolving { servers: &name_servers, previous: &previous.groups };
    let defaults = Defaults::new(&main.defaults, path, resolving, &at.key("defaults"), report);
    let mut groups = group::check_all(&main.backend_groups, path, &defaults.group, &at.key("backend_groups"), report);
    let store = certificates::store(main.certificates.as_ref(), path, previous.store.as_deref(), &at.key("certificates"), report);
    let names: GroupNames = (0..).zip(&groups).map(|(id, group)| (group.name.clone(), GroupId(id))).collect();
    let users_files = paths_of(main.users.as_ref(), files, path, &at.key("users"), report);
    let users = users::check(&users_files, files, &names, report);
    let trusted_proxies = nets(&main.trusted_proxies.0, &at.key("trusted_proxies"), report);
    let access_log = access_log(main.access_log.as_ref(), path, &at.key("access_log"), report);
    let site_files = site_files(main.sites.as_ref(), files, path, &at.key("sites"), report);
    let admin = admin(main.admin.as_ref(), path, &at.key("admin"), report);
    let patterns = |patterns: Option<&raw::OneOrMany>| {
        patterns.into_iter().flat_map(|patterns| &patterns.0).map(|pattern| relative_to(path, Path::new(pattern))).collect()
    };
    let (site_patterns, users_patterns) = (patterns(main.sites.as_ref()), patterns(main.users.as_ref()));
    if main.threads == Some(0) || main.threads > Some(1024) {
        report.push(at.key("threads").error("`threads` is a number from 1 to 1024"));
    }
    if main.sticky_secret.as_ref().is_some_and(|secret| secret.len() < 16) {
        report.push(
            at.key("sticky_secret").error("`sticky_secret` needs at least 16 characters").with_help("make one: `openssl rand -hex 16`"),
        );
    }
    run_as(main.run_as.as_deref(), &at.key("run_as"), report);
    let refused = report.has_errors();

    // From here on mistakes belong to single sites.
    let context = site::Context {
        defaults: &defaults,
        groups: &names,
        listeners: &listeners,
        store: store.as_deref(),
        loaded: &loaded_before(&previous.sites),
        previous: &previous.sites.iter().map(|site| (site.path.as_path(), site.as_ref())).collect(),
    };
    let sites = check_sites(site_files, files, &context, &mut groups, report);
    let unknown_host = unknown_host(main.unknown_host.as_ref(), &sites, &at.key("unknown_host"), report);
    warn_about_tls(&main, &sites, &at, report);
    if refused {
        return None;
    }
    let broken = sites.iter().filter(|site| site.broken).map(|site| site.site.name.clone()).collect();
    let config = Config {
        listeners,
        unknown_host: unknown_host?,
        trusted_proxies,
        name_servers: name_servers.clone(),
        threads: main.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        run_as: main.run_as,
        state_dir: main.state_dir.map_or_else(|| PathBuf::from("/var/lib/portcullis"), |dir| relative_to(path, &dir)),
        sticky_secret: main.sticky_secret.map(Secret),
        access_log,
        drain_timeout: main.drain_timeout.map_or(Duration::from_secs(30), |time| time.0),
        drain_delay: main.drain_delay.map_or(Duration::ZERO, |time| time.0),
        groups,
        sites: sites.into_iter().map(|checked| Arc::new(checked.site)).collect(),
        users: Users::new(users),
        users_files,
        site_patterns,
        users_patterns,
        admin,
        watch: main.watch,
        pid_file: main.pid_file.map(|file| relative_to(path, &file)),
        store,
        error_pages: Arc::new(defaults.error_pages),
    };
    Some((config, broken))
}

// === Files that the main file names ===

/// The files that patterns name, each once.
fn paths_of(patterns: Option<&raw::OneOrMany>, files: &files::Files, from: &Path, at: &At<'_>, report: &mut Report) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for (index, pattern) in patterns.into_iter().flat_map(|patterns| &patterns.0).enumerate() {
        match files.named(pattern, from) {
            Ok(found) => paths.extend(found),
            Err(why) => report.push(at.index(index).error(why)),
        }
    }
    let mut seen = HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    paths
}

/// The paths of the site files.
fn site_files(patterns: Option<&raw::OneOrMany>, files: &files::Files, from: &Path, at: &At<'_>, report: &mut Report) -> Vec<PathBuf> {
    if patterns.is_none() {
        let help = "add `sites: sites.d/*.yaml`, and a file for each site in that directory";
        report.push(at.warning("no `sites`: every request is for an unknown host").with_help(help));
    }
    paths_of(patterns, files, from, at, report)
}

/// The certificates of sites in force.
fn loaded_before(sites: &[Arc<Site>]) -> HashMap<Files, Arc<Loaded>> {
    let own = sites.iter().filter_map(|site| match &site.tls.as_ref()?.certificates {
        SiteCertificates::Own(own) => Some(own),
        SiteCertificates::Store => None,
    });
    own.flatten().map(|loaded| (loaded.files.clone(), loaded.clone())).collect()
}

/// What one thread does in a few milliseconds.
const FEW: usize = 256;

/// Does the same to many things on all processors; results are in the order of the things.
fn in_parallel<T: Send, R: Send>(things: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // For a few, threads cost more than they save.
    if things.len() < FEW || threads == 1 {
        return things.into_iter().map(work).collect();
    }
    let share = things.len().div_ceil(threads);
    let mut things = things.into_iter();
    std::thread::scope(|scope| {
        let shares: Vec<Vec<T>> = (0..threads).map(|_| things.by_ref().take(share).collect()).collect();
        let work = &work;
        let running: Vec<_> =
            shares.into_iter().map(|share| scope.spawn(move || share.into_iter().map(work).collect::<Vec<R>>())).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

// === Sites ===

/// Checks the sites. Of two that name a domain, the one that had it before keeps it; of two newcomers, the first file.
fn check_sites(
    paths: Vec<PathBuf>,
    files: &files::Files,
    context: &site::Context<'_>,
    groups: &mut Vec<Group>,
    report: &mut Report,
) -> Vec<site::Checked> {
    let one = |path: PathBuf| {
        let mut own = Report::default();
        let document = read_document(files, &path, &mut own);
        // What was found wrong while reading is the site's own trouble.
        site::check(site::File { path, document, report: own }, context)
    };
    let mut sites: Vec<_> = in_parallel(paths, one).into_iter().flatten().collect();
    for (checked, _) in sites.iter_mut().filter(|(_, own)| own.has_errors()) {
        // It will stay as it was, and so has the domains that it had.
        let Some(old) = context.previous.get(checked.site.path.as_path()) else { continue };
        checked.site.domains.clone_from(&old.domains);
        checked.domain_places = vec![checked.place.clone(); old.domains.len()];
    }
    let owners = owners(&sites, context);
    let mut names: HashMap<String, Place> = HashMap::new();
    for (index, (checked, own)) in sites.iter_mut().enumerate() {
        if let Some(first) = names.get(&checked.site.name) {
            let message = format!("a second site is named `{}`", checked.site.name);
            own.push(Diagnostic::error(checked.place.clone(), message).with_related(first.clone(), "the first one is here"));
        }
        names.entry(checked.site.name.clone()).or_insert_with(|| checked.place.clone());
        for (pattern, place) in checked.site.domains.iter().zip(&checked.domain_places) {
            match owners.get(&pattern.key()) {
                Some((owner, kept)) if *owner != index || (!own.has_errors() && !same_place(kept, place)) => own.push(
                    Diagnostic::error(place.clone(), format!("`{}` belongs to another site already", pattern.key()))
                        .with_related(kept.clone(), "the site that keeps it names it here")
                        .with_help("a domain belongs to one site: remove it from one of them"),
                ),
                Some(_) | None => {}
            }
        }
        checked.broken = own.has_errors();
        if checked.broken {
            checked.site.routes.clear();
            // Its good domains answer 503; those of another site stay with that one.
            checked.site.domains.retain(|pattern| owners.get(&pattern.key()).is_none_or(|(owner, _)| *owner == index));
        } else if let Some(group) = checked.group.take() {
            checked.site.give_own_group(GroupId(u32::try_from(groups.len()).unwrap_or(u32::MAX)));
            groups.push(group);
        }
    }
    let mut all = Vec::new();
    for (checked, own) in sites {
        report.append(own);
        all.push(checked);
    }
    all
}

/// Which of the sites each domain belongs to, and where it is named.
fn owners(sites: &[(site::Checked, Report)], context: &site::Context<'_>) -> HashMap<String, (usize, Place)> {
    let mut owners: HashMap<String, (usize, Place)> = HashMap::new();
    let had = |checked: &site::Checked, key: &str| {
        context.previous.get(checked.site.path.as_path()).is_some_and(|old| old.domains.iter().any(|domain| domain.key() == key))
    };
    for newcomers in [false, true] {
        for (index, (checked, _)) in sites.iter().enumerate() {
            for (pattern, place) in checked.site.domains.iter().zip(&checked.domain_places) {
                if newcomers || had(checked, &pattern.key()) {
                    owners.entry(pattern.key()).or_insert_with(|| (index, place.clone()));
                }
            }
        }
    }
    owners
}

fn same_place(a: &Place, b: &Place) -> bool {
    a.source.path == b.source.path && a.span == b.span
}

// === Single keys ===

fn unknown_host(value: Option<&raw::Word>, sites: &[site::Checked], at: &At<'_>, report: &mut Report) -> Option<UnknownHost> {
    match value.map(|word| word.0.as_str()) {
        None | Some("drop") => Some(UnknownHost::Drop),
        Some("404") => Some(UnknownHost::NotFound),
        Some(name) => {
            let names = || sites.iter().map(|checked| checked.site.name.as_str());
            if names().any(|site| site == name) {
                return Some(UnknownHost::Site(name.to_owned()));
            }
            let diagnostic = at.error(format!("`{name}` is neither `drop` nor `404` nor the name of a site"));
            report.push(at::hint(diagnostic, did_you_mean(name, names().chain(["drop"]))));
            None
        }
    }
}

fn nets(texts: &[String], at: &At<'_>, report: &mut Report) -> Vec<IpNet> {
    let mut nets = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)) {
            Ok(net) => nets.push(net),
            Err(_) => report.push(
                at.index(index)
                    .error(format!("`{text}` is no address and no network"))
                    .with_help("write for example `10.0.0.0/8` or `192.0.2.7`"),
            ),
        }
    }
    nets
}

fn name_servers(texts: &[String], at: &At<'_>, report: &mut Report) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse::<SocketAddr>().or_else(|_| text.parse::<std::net::IpAddr>().map(|address| SocketAddr::new(address, 53))) {
            Ok(server) => servers.push(server),
            Err(_) => report.push(
                at.index(index)
                    .error(format!("`{text}` is no address of a name server"))
                    .with_help("write `10.0.0.53` or `127.0.0.1:5353`"),
            ),
        }
    }
    servers
}

fn access_log(value: Option<&Short<raw::AccessLog>>, from: &Path, at: &At<'_>, report: &mut Report) -> AccessLog {
    let (format, path) = match value {
        None | Some(Short::Switch(true)) => (None, None),
        Some(Short::Switch(false)) => return AccessLog { format: LogFormat::Combined, target: LogTarget::Off },
        Some(Short::Word(word)) => (Some(word.as_str()), None),
        Some(Short::Long(log)) => (log.format.as_deref(), log.path.as_ref()),
    };
    let format = match format {
        None | Some("combined") => LogFormat::Combined,
        Some("json") => LogFormat::Json,
        Some("off") => return AccessLog { format: LogFormat::Combined, target: LogTarget::Off },
        Some(other) => {
            let path = other.starts_with('/').then(|| format!("{{ path: {other} }}"));
            let meant = path.as_deref().or_else(|| did_you_mean(other, ["combined", "json"]));
            let diagnostic = at.key("format").error(format!("`{other}` is no format of the access log: `combined`, `json` or `off`"));
            report.push(at::hint(diagnostic, meant));
            LogFormat::Combined
        }
    };
    let target = path.map_or(LogTarget::Stdout, |path| LogTarget::File(relative_to(from, path)));
    if let LogTarget::File(path) = &target {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if parent.is_some_and(|parent| !parent.is_dir()) {
            report.push(at.key("path").error(format!("{}: its directory does not exist", path.display())));
        } else if path.is_dir() {
            report.push(at.key("path").error(format!("{}: is a directory, a file is needed", path.display())));
        }
    }
    AccessLog { format, target }
}

/// Where the socket is unless the configuration says otherwise.
pub const ADMIN_SOCKET: &str = "/run/portcullis/admin.sock";

fn admin(value: Option<&Short<raw::Admin>>, from: &Path, at: &At<'_>, report: &mut Report) -> Admin {
    let standard = Admin { socket: Some(PathBuf::from(ADMIN_SOCKET)), socket_is_given: false, group: None, address: None };
    let raw = match value {
        None | Some(Short::Switch(true)) => return standard,
        Some(Short::Switch(false)) => return Admin { socket: None, ..standard },
        Some(Short::Word(word)) if word == "off" => return Admin { socket: None, ..standard },
        Some(Short::Word(word)) => {
            report
                .push(at.error(format!("`admin` is `off` or a mapping, not `{word}`")).with_help(format!("write `{{ socket: {word} }}`")));
            return standard;
        }
        Some(Short::Long(admin)) => admin,
    };
    let (socket, socket_is_given) = match raw.socket.as_deref() {
        None => (standard.socket, false),
        Some("off") => (None, true),
        Some(path) => (Some(relative_to(from, Path::new(path))), true),
    };
    if socket.as_deref().is_some_and(|path| std::os::unix::net::SocketAddr::from_pathname(path).is_err()) {
        report.push(at.key("socket").error("the path of a socket has at most 107 bytes"));
    }
    if let Some(group) = &raw.group {
        match nix::unistd::Group::from_name(group) {
            Ok(Some(_)) => {}
            Ok(None) => report.push(at.key("group").error(format!("the system has no group `{group}`"))),
            Err(error) => report.push(at.key("group").error(format!("the group `{group}` cannot be looked up: {error}"))),
        }
    }
    let address = raw.address.as_deref().and_then(|text| match listener::parse_address(text) {
        Ok(address) => Some(address),
        Err(why) => {
            report.push(at.key("address").error(why).with_help("write `127.0.0.1:9090`"));
            None
        }
    });
    Admin { socket, socket_is_given, group: raw.group.clone(), address }
}

fn run_as(name: Option<&str>, at: &At<'_>, report: &mut Report) {
    let Some(name) = name else { return };
    match nix::unistd::User::from_name(name) {
        Ok(Some(_)) => {}
        Ok(None) => {
            report.push(at.error(format!("the system has no user `{name}`")).with_help(format!("create it: `useradd --system {name}`")))
        }
        Err(error) => report.push(at.error(format!("the user `{name}` cannot be looked up: {error}"))),
    }
}

/// TLS needs both halves: a listener that speaks it and a site with a certificate.
fn warn_about_tls(main: &raw::Main, sites: &[site::Checked], at: &At<'_>, report: &mut Report) {
    let with_certificate = sites.iter().find(|checked| checked.site.tls.is_some());
    let listener = main.listeners.iter().position(|listener| listener.tls);
    match (listener, with_certificate) {
        (Some(index), None) if report.count(Severity::Error) == 0 => {
            report.push(
                at.key("listeners").index(index).key("tls").warning("no site has a certificate: every TLS handshake here is refused"),
            );
        }
        (None, Some(checked)) => {
            let message = format!(
                "the certificate of `{}` is never used, and nothing is redirected to HTTPS: no listener has `tls: true`",
                checked.site.name
            );
            report.push(Diagnostic::warning(checked.place.clone(), message));
        }
        _ => {}
    }
}

/// The raw timeouts as checked ones.
fn timeouts(raw: &raw::Timeouts, at: &At<'_>, report: &mut Report) -> Timeouts {
    let mut positive = |key: &str, time: Option<super::units::Time>| {
        let time = time?.0;
        if time.is_zero() {
            report.push(at.key(key).error(format!("`{key}` must be longer than nothing")));
        }
        Some(time)
    };
    Timeouts {
        connect: positive("connect", raw.connect),
        read: positive("read", raw.read),
        send: positive("send", raw.send),
        websocket_idle: positive("websocket_idle", raw.websocket_idle),
    }
}

/// Names of groups, backends and sites stand in logs and cookies, so they are plain words.
fn check_name(name: &str, what: &str, at: &At<'_>, report: &mut Report) {
    let good = !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if !good {
        report.push(at.error(format!("`{name}` is no name for a {what}")).with_help("use up to 64 letters, digits, `.`, `_` and `-`"));
    }
}
