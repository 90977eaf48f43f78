//! Checks one site: domains, certificate, routes. Its mistakes are its own and leave other sites alone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::diagnostic::{Place, Report, Source, did_you_mean};
use super::super::raw::{self, Short};
use super::super::read::read;
use super::super::tree::Document;
use super::super::{Group, GroupId, Hsts, HttpsRedirect, Listener, Site};
use super::group::{self, Written};
use super::{At, Defaults, GroupNames, answers, at, certificates, check_name, edits, route, route_tests};
use crate::rewrite::headers::{HeaderEdit, merge};
use crate::routing::host::HostPattern;
use crate::tls::store::{Files, Loaded, Store};

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
    pub(super) listeners: &'a [Listener],
    pub(super) store: Option<&'a Store>,
    /// Certificates that were loaded before, by their files: what has not changed is not read again.
    pub(super) loaded: &'a HashMap<Files, Arc<Loaded>>,
    pub(super) previous: &'a HashMap<&'a Path, &'a Site>,
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

/// Checks a site file. The site that it was before lends its name and domains to one that cannot be read. `None`: it is
/// not enabled.
pub(super) fn check(file: File, context: &Context<'_>) -> Option<(Checked, Report)> {
    let File { path, document, mut report } = file;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let Some(mut document) = document else {
        let site = unread(&path, stem, context);
        let place = Place { source: Arc::new(Source::new(path, "")), span: 0..0 };
        let domain_places = vec![place.clone(); site.domains.len()];
        return Some((Checked { site, place, domain_places, group: None, broken: true }, report));
    };
    let raw: raw::Site = read(&mut document, &mut report);
    if raw.enabled == Some(false) {
        return None;
    }
    let at = At::root(&document);
    let digest = digest_of(&document.source.text);
    let checker = Checker { digest, at: &at, path: &path, raw: &raw, context, name: raw.name.clone().unwrap_or(stem) };
    let checked = checker.check(&mut report);
    Some((checked, report))
}

/// The SHA-256 of a text.
pub fn digest_of(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref());
    bytes
}

/// A site whose file cannot be read: it is known by what it was.
fn unread(path: &Path, stem: String, context: &Context<'_>) -> Site {
    let old = context.previous.get(path);
    Site { domains: old.map(|old| old.domains.clone()).unwrap_or_default(), ..Site::new(path, old.map_or(stem, |old| old.name.clone())) }
}

struct Checker<'a> {
    digest: [u8; 32],
    at: &'a At<'a>,
    path: &'a Path,
    raw: &'a raw::Site,
    context: &'a Context<'a>,
    name: String,
}

impl Checker<'_> {
    fn check(&self, report: &mut Report) -> Checked {
        let (raw, defaults) = (self.raw, self.context.defaults);
        check_name(&self.name, "site", &self.at.key("name"), report);
        let (domains, domain_places) = self.domains(report);
        let tls = certificates::of_site(raw.tls.as_ref(), self.path, &domains, self.context, &self.at.key("tls"), report);
        let group = self.own_group(report);
        // What every domain captures may stand in every value.
        let captures: Vec<&str> = match domains.split_first() {
            Some((first, rest)) => {
                first.captures().into_iter().filter(|name| rest.iter().all(|domain| domain.captures().contains(name))).collect()
            }
            None => Vec::new(),
        };
        let own = |raw, key, report: &mut Report| edits::check(raw, &captures, &self.at.key(key), report);
        let request_headers = merge(&defaults.request_headers, own(&raw.request_headers, "request_headers", report));
        let response_headers = merge(&defaults.response_headers, own(&raw.response_headers, "response_headers", report));
        let scope = route::Scope {
            site: &self.name,
            from: self.path,
            raw,
            captures: &captures,
            own_group: group.as_ref().map(|_| GroupId::OWN),
            request_headers: &request_headers,
            response_headers: &response_headers,
            context: self.context,
        };
        let switch = route::switch(&scope, self.at, report);
        let routes = route::check_all(&scope, switch.as_ref(), self.at, report);
        let secure = raw.tls.as_ref().is_some_and(|tls| !matches!(tls, Short::Switch(false)));
        let error_pages = answers::error_pages(&raw.error_pages, raw.error_details, &defaults.error_pages, self.path, self.at, report);
        let secret_headers = routes.iter().flat_map(|route| route.request_headers.iter()).filter_map(secret_header).collect();
        let mut site = Site {
            listeners: self.listeners(report),
            hsts: self.hsts(secure, report),
            https_redirect: self.https_redirect(secure, report),
            maintenance: answers::maintenance(raw.maintenance.as_ref(), self.path, &self.at.key("maintenance"), report),
            error_pages: Arc::new(error_pages),
            response_headers: response_headers.into(),
            secret_headers,
            tls,
            routes,
            tests: route_tests::check(&raw.tests, &domains, secure, &self.at.key("tests"), report),
            domains,
            switch,
            digest: self.digest,
            ..Site::new(self.path, self.name.clone())
        };
        site.secret_headers.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        site.secret_headers.dedup();
        let place = if raw.domains.0.is_empty() { self.at.place() } else { self.at.place_of_key("domains") };
        Checked { site, place, domain_places, group, broken: false }
    }

    /// The listeners that the site answers on; empty: all.
    fn listeners(&self, report: &mut Report) -> Vec<String> {
        let at = self.at.key("listeners");
        let names = self.raw.listeners.as_ref().map(|names| names.0.as_slice()).unwrap_or_default();
        if self.raw.listeners.is_some() && names.is_empty() {
            report.push(at.error("`listeners` names none: the site could not be reached"));
        }
        let known = || self.context.listeners.iter().map(|listener| listener.name.as_str());
        for (index, name) in names.iter().enumerate().filter(|(_, name)| !known().any(|known| known == *name)) {
            let diagnostic = at.index(index).error(format!("no listener is named `{name}`"));
            let named = known().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            report.push(match did_you_mean(name, known()) {
                meant @ Some(_) => at::hint(diagnostic, meant),
                None => diagnostic.with_help(format!("there are {named}; give a listener a `name`")),
            });
        }
        names.to_vec()
    }

    fn domains(&self, report: &mut Report) -> (Vec<HostPattern>, Vec<Place>) {
        let at = self.at.key("domains");
        if self.raw.domains.0.is_empty() && !report.has_errors() {
            report.push(at.error("the site has no `domains`").with_help("add `domains: [shop.example.com]`"));
        }
        let mut patterns = Vec::new();
        let mut places = Vec::new();
        for (index, text) in self.raw.domains.0.iter().enumerate() {
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

    fn hsts(&self, secure: bool, report: &mut Report) -> Option<Hsts> {
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
        Some(Hsts { max_age: max_age.0, include_subdomains: subdomains, preload })
    }

    fn https_redirect(&self, secure: bool, report: &mut Report) -> Option<HttpsRedirect> {
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
        let (own, of_listener) = (self.raw.https_port, self.tls_port());
        own.or(of_listener).map(|port| HttpsRedirect { port, always: own.is_some() })
    }

    /// The port of the first TLS listener that the site answers on.
    fn tls_port(&self) -> Option<u16> {
        let names = self.raw.listeners.as_ref().map(|names| names.0.as_slice()).unwrap_or_default();
        let answers = |listener: &&Listener| listener.tls && (names.is_empty() || names.contains(&listener.name));
        self.context.listeners.iter().find(answers).map(|listener| listener.address.port())
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
            tls: None,
            protocol: None,
            host: None,
            source: None,
            of_site: true,
            from: self.path,
        };
        Some(group::check(&written, &self.context.defaults.group, self.at, report))
    }
}

/// The header that an edit sets to a secret.
fn secret_header(edit: &HeaderEdit) -> Option<http::HeaderName> {
    match edit {
        HeaderEdit::Set { name, value } | HeaderEdit::Add { name, value } if value.is_secret() => Some(name.name.clone()),
        _ => None,
    }
}
