//! Checks one site: domains, certificate, routes. Its mistakes are its own and leave other sites alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use super::super::diagnostic::{Place, Report, Source, did_you_mean};
use super::super::raw::{self, Short};
use super::super::read::read;
use super::super::source::relative_to;
use super::super::tree::Document;
use super::super::{Group, GroupId, Route, Site, Target, Unknown, UsersRule};
use super::group::{self, Defaults, Written};
use super::{At, GroupNames, at, check_name, timeouts};
use crate::routing::host::HostPattern;
use crate::routing::path_table::{PathPattern, Segment, parse_segments};
use crate::tls;

/// A site file as it was read.
pub(super) struct File {
    pub(super) path: PathBuf,
    /// `None`: it could not be read; the report says why.
    pub(super) document: Option<Document>,
    pub(super) report: Report,
}

/// What a site may refer to.
pub(super) struct Context<'a> {
    pub(super) defaults: &'a Defaults<'a>,
    pub(super) groups: &'a GroupNames,
    /// The port of the first TLS listener.
    pub(super) tls_port: Option<u16>,
}

pub(super) struct Checked {
    pub(super) site: Site,
    pub(super) place: Place,
    /// One for each domain of the site.
    pub(super) domain_places: Vec<Place>,
    /// The group of the site's own `backends`.
    pub(super) group: Option<Group>,
    pub(super) broken: bool,
}

/// Checks a site file. A `previous` site of the same file lends its name and domains to one that cannot be read.
/// `None`: it is not enabled.
pub(super) fn check(file: File, previous: &[Site], context: &Context<'_>) -> Option<(Checked, Report)> {
    let File { path, document, mut report } = file;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let Some(mut document) = document else {
        let site = unread(&path, stem, previous);
        let place = Place { source: Arc::new(Source { path, text: String::new() }), span: 0..0 };
        let domain_places = vec![place.clone(); site.domains.len()];
        return Some((Checked { site, place, domain_places, group: None, broken: true }, report));
    };
    let raw: raw::Site = read(&mut document, &mut report);
    if raw.enabled == Some(false) {
        return None;
    }
    let at = At::root(&document);
    let checker = Checker { at: &at, path: &path, raw: &raw, context, name: raw.name.clone().unwrap_or(stem) };
    let checked = checker.check(&mut report);
    Some((checked, report))
}

/// A site whose file cannot be read: it is known by what it was.
fn unread(path: &Path, stem: String, previous: &[Site]) -> Site {
    let old = previous.iter().find(|old| old.path == path);
    Site {
        path: path.to_owned(),
        name: old.map_or(stem, |old| old.name.clone()),
        domains: old.map(|old| old.domains.clone()).unwrap_or_default(),
        certificate: None,
        hsts: None,
        https_redirect: None,
        routes: Vec::new(),
    }
}

/// A certificate that browsers refuse is still served: some clients do not look, and nothing better is here.
fn warn_about(certified: &CertifiedKey, domains: &[HostPattern], at: &At<'_>, report: &mut Report) {
    let Some(facts) = certified.cert.first().and_then(tls::inspect::inspect) else { return };
    let now = OffsetDateTime::now_utc();
    if facts.not_after < now {
        report.push(at.warning(format!("the certificate has expired on {}", facts.not_after.date())));
    } else if facts.not_before > now {
        report.push(at.warning(format!("the certificate is not good before {}", facts.not_before.date())));
    }
    let missing: Vec<String> = domains.iter().filter(|domain| !facts.covers(domain)).map(HostPattern::key).collect();
    if !missing.is_empty() {
        report.push(at.warning(format!("the certificate is not for {}: browsers will refuse it", missing.join(", "))));
    }
}

struct Checker<'a> {
    at: &'a At<'a>,
    path: &'a Path,
    raw: &'a raw::Site,
    context: &'a Context<'a>,
    name: String,
}

impl Checker<'_> {
    fn check(&self, report: &mut Report) -> Checked {
        check_name(&self.name, "site", &self.at.key("name"), report);
        let (domains, domain_places) = self.domains(report);
        let certificate = self.certificate(&domains, report);
        let group = self.own_group(report);
        let routes = self.routes(&domains, group.as_ref().map(|_| GroupId::OWN), report);
        let secure = self.raw.tls.is_some();
        let site = Site {
            path: self.path.to_owned(),
            name: self.name.clone(),
            domains,
            hsts: self.hsts(secure, report),
            https_redirect: self.https_redirect(secure, report),
            certificate,
            routes,
        };
        let place = if self.raw.domains.is_empty() { self.at.place() } else { self.at.place_of_key("domains") };
        Checked { site, place, domain_places, group, broken: false }
    }

    fn domains(&self, report: &mut Report) -> (Vec<HostPattern>, Vec<Place>) {
        let at = self.at.key("domains");
        if self.raw.domains.is_empty() && !report.has_errors() {
            report.push(at.error("the site has no `domains`").with_help("add `domains: [shop.example.com]`"));
        }
        let mut patterns = Vec::new();
        let mut places = Vec::new();
        for (index, text) in self.raw.domains.iter().enumerate() {
            match HostPattern::parse(text) {
                Ok(pattern) => {
                    patterns.push(pattern);
                    places.push(at.index(index).place());
                }
                Err(why) => report.push(at.index(index).error(why)),
            }
        }
        (patterns, places)
    }

    fn certificate(&self, domains: &[HostPattern], report: &mut Report) -> Option<Arc<CertifiedKey>> {
        let at = self.at.key("tls");
        let files = match self.raw.tls.as_ref()? {
            Short::Long(files) => files,
            Short::Word(word) if word == "auto" => {
                report
                    .push(at.error("`tls: auto` is not in this version").with_help("name files: `tls: { cert: chain.pem, key: key.pem }`"));
                return None;
            }
            Short::Switch(false) => return None,
            Short::Switch(true) | Short::Word(_) => {
                report.push(at.error("a certificate is needed").with_help("write `tls: { cert: chain.pem, key: key.pem }`"));
                return None;
            }
        };
        let cert = relative_to(self.path, &files.cert);
        let key = relative_to(self.path, &files.key);
        match tls::load::certified_key(&cert, &key) {
            Ok(certified) => {
                warn_about(&certified, domains, &at.key("cert"), report);
                Some(certified)
            }
            Err(error) => {
                let key = if error.in_key() { "key" } else { "cert" };
                report.push(at.key(key).error(error.to_string()));
                None
            }
        }
    }

    fn hsts(&self, secure: bool, report: &mut Report) -> Option<String> {
        let at = self.at.key("hsts");
        let (max_age, subdomains, preload) = match self.raw.hsts.as_ref()? {
            Short::Switch(false) => return None,
            Short::Long(hsts) => (hsts.max_age, hsts.include_subdomains, hsts.preload),
            Short::Word(text) => match super::super::units::Time::parse(text) {
                Ok(time) => (time, false, false),
                Err(why) => {
                    report.push(at.error(why));
                    return None;
                }
            },
            Short::Switch(true) => {
                report.push(at.error("`hsts` is a duration such as `1y`"));
                return None;
            }
        };
        if !secure {
            report.push(at.error("`hsts` needs `tls`: a browser ignores it on plain HTTP"));
        }
        // hstspreload.org takes a domain only with these.
        if preload && (!subdomains || max_age.0.as_secs() < 31_536_000) {
            report.push(at.error("`preload` needs `include_subdomains: true` and a `max_age` of at least `1y`"));
        }
        let mut value = format!("max-age={}", max_age.0.as_secs());
        if subdomains {
            value.push_str("; includeSubDomains");
        }
        if preload {
            value.push_str("; preload");
        }
        Some(value)
    }

    fn https_redirect(&self, secure: bool, report: &mut Report) -> Option<u16> {
        let wanted = self.raw.https_redirect;
        if wanted == Some(true) && !secure {
            report.push(self.at.key("https_redirect").error("`https_redirect` needs `tls`"));
        }
        let redirects = secure && wanted != Some(false);
        match self.raw.https_port {
            Some(0) => report.push(self.at.key("https_port").error("`https_port` is a number from 1 to 65535")),
            Some(_) if !redirects => {
                report.push(self.at.key("https_port").error("`https_port` has no effect: nothing is redirected to HTTPS"))
            }
            Some(_) | None => {}
        }
        if !redirects {
            return None;
        }
        self.raw.https_port.or(self.context.tls_port)
    }

    /// The group of the site's own `backends`, named like the site.
    fn own_group(&self, report: &mut Report) -> Option<Group> {
        let raw = self.raw;
        let Some(backends) = &raw.backends else {
            for (key, given) in
                [("sticky", raw.sticky.is_some()), ("health_check", raw.health_check.is_some()), ("balance", raw.balance.is_some())]
            {
                if given {
                    report.push(
                        self.at
                            .key(key)
                            .error(format!("`{key}` belongs to the backend group"))
                            .with_help("say it under `backend_groups`, or give this site its own `backends`"),
                    );
                }
            }
            return None;
        };
        if raw.group.is_some() {
            report.push(self.at.key("group").error("`group` and `backends` exclude each other"));
        }
        if self.context.groups.contains_key(&self.name) {
            report.push(
                self.at
                    .key("backends")
                    .error(format!("a backend group is named `{}` already", self.name))
                    .with_help("rename this site by `name:`, or use `group:`"),
            );
        }
        let written = Written {
            name: &self.name,
            backends,
            balance: raw.balance.as_deref(),
            health_check: raw.health_check.as_ref(),
            sticky: raw.sticky.as_ref(),
            timeouts: raw::Timeouts::default(),
            of_site: true,
        };
        Some(group::check(&written, self.context.defaults, self.at, report))
    }

    // === Routes ===

    fn routes(&self, domains: &[HostPattern], own: Option<GroupId>, report: &mut Report) -> Vec<Route> {
        let at = self.at.key("routes");
        let site_group = match &self.raw.group {
            Some(name) => self.group(name, own, &self.at.key("group"), report),
            None => own,
        };
        let site_timeouts = timeouts(&self.raw.timeouts, &self.at.key("timeouts"), report);
        let mut routes: Vec<Route> = Vec::new();
        let mut seen: HashMap<String, Place> = HashMap::new();
        for (index, raw) in self.raw.routes.iter().enumerate() {
            let at = at.index(index);
            let pattern = match PathPattern::parse(&raw.path) {
                Ok(pattern) => pattern,
                Err(why) => {
                    report.push(at.key("path").error(why));
                    continue;
                }
            };
            if let Some(first) = seen.insert(pattern.key(), at.key("path").place()) {
                let diagnostic = at.key("path").error("another route matches just the same paths");
                report.push(diagnostic.with_related(first, "the other one is here"));
            }
            let target = self.target(raw, &pattern, domains, own, site_group, &at, report);
            let strip = raw.strip.as_deref().and_then(|strip| self.strip(strip, &pattern, &at.key("strip"), report));
            let timeouts = timeouts(&raw.timeouts, &at.key("timeouts"), report).or(site_timeouts);
            let Some(target) = target else { continue };
            routes.push(Route { name: raw.name.clone().unwrap_or_else(|| raw.path.clone()), pattern, target, strip, timeouts });
        }
        match site_group {
            // The short form: what no route takes goes to the site's group.
            Some(group) if !seen.contains_key("/") => routes.push(Route {
                name: "/".to_owned(),
                pattern: PathPattern::Prefix(Vec::new()),
                target: Target::Group(group),
                strip: None,
                timeouts: site_timeouts,
            }),
            None if self.raw.routes.is_empty() && !report.has_errors() => {
                report
                    .push(self.at.error("the site leads nowhere").with_help("add `backends: [127.0.0.1:3000]`, `group: NAME` or `routes`"));
            }
            Some(_) | None => {}
        }
        routes
    }

    #[expect(clippy::too_many_arguments, reason = "the places and names that one route refers to")]
    fn target(
        &self,
        raw: &raw::Route,
        pattern: &PathPattern,
        domains: &[HostPattern],
        own: Option<GroupId>,
        site_group: Option<GroupId>,
        at: &At<'_>,
        report: &mut Report,
    ) -> Option<Target> {
        let rule = match &raw.users {
            None | Some(Short::Switch(false)) => None,
            Some(Short::Switch(true)) => Some((None, None)),
            Some(Short::Long(rule)) => Some((rule.unknown_user.as_ref(), rule.unknown_app.as_ref())),
            Some(Short::Word(_)) => {
                report.push(at.key("users").error("write `users: true`, or `users: { unknown_user: 404 }`"));
                return None;
            }
        };
        let Some((unknown_user, unknown_app)) = rule else {
            if raw.app.is_some() {
                report.push(at.key("app").error("`app` needs `users: true`"));
            }
            return match (&raw.group, site_group) {
                (Some(name), _) => self.group(name, own, &at.key("group"), report).map(Target::Group),
                (None, Some(group)) => Some(Target::Group(group)),
                (None, None) => {
                    report.push(at.error("the route leads nowhere").with_help("add `group: NAME` or `users: true`"));
                    None
                }
            };
        };
        if raw.group.is_some() {
            report.push(at.key("group").error("`group` and `users` exclude each other"));
        }
        let in_path = pattern.captures();
        let everywhere =
            |name: &str| in_path.contains(&name) || (!domains.is_empty() && domains.iter().all(|domain| domain.captures().contains(&name)));
        if !everywhere("user") {
            report.push(at.key("users").error("`users` needs a `{user}` in the path or in every domain"));
        }
        match &raw.app {
            None if !everywhere("app") => {
                report.push(at.key("users").error("`users` needs an `{app}` in the path or in every domain, or `app: NAME`"))
            }
            Some(_) if everywhere("app") => report.push(at.key("app").error("the path or domain has an `{app}` already")),
            None | Some(_) => {}
        }
        let mut choice = |key: &str, word: Option<&raw::Word>, default| match word.map(|word| word.0.as_str()) {
            None => default,
            Some("404") => Unknown::NotFound,
            Some("next") => Unknown::Next,
            Some(_) => {
                report.push(at.key("users").key(key).error(format!("`{key}` is `next` or `404`")));
                default
            }
        };
        // An unknown user may be a directory of the panel; an unknown app of a known user is a mistake in the URL.
        let unknown_user = choice("unknown_user", unknown_user, Unknown::Next);
        let unknown_app = choice("unknown_app", unknown_app, Unknown::NotFound);
        Some(Target::Users(UsersRule { app: raw.app.clone(), unknown_user, unknown_app }))
    }

    fn group(&self, name: &str, own: Option<GroupId>, at: &At<'_>, report: &mut Report) -> Option<GroupId> {
        if name == self.name && own.is_some() {
            return own;
        }
        let found = self.context.groups.get(name).copied();
        if found.is_none() {
            let diagnostic = at.error(format!("no backend group is named `{name}`"));
            let names = self.context.groups.keys().map(String::as_str);
            report.push(at::hint(diagnostic, did_you_mean(name, names)));
        }
        found
    }

    /// `strip` names leading segments of the path: what is stripped can be put back in answers.
    fn strip(&self, text: &str, pattern: &PathPattern, at: &At<'_>, report: &mut Report) -> Option<usize> {
        let stripped: Vec<Segment> = match parse_segments(text) {
            Ok(segments) if text.starts_with('/') && !segments.is_empty() => segments,
            Ok(_) => {
                report.push(at.error("`strip` is a path such as `/{user}`"));
                return None;
            }
            Err(why) => {
                report.push(at.error(why));
                return None;
            }
        };
        if matches!(pattern, PathPattern::Regex(_)) {
            report.push(at.error("`strip` needs a path of segments, not a regex"));
            return None;
        }
        if !pattern.segments().starts_with(&stripped) {
            report.push(at.error("`strip` must be how the `path` of this route begins"));
            return None;
        }
        Some(stripped.len())
    }
}
