//! Checks the routes of a site: what they ask for, what they do, and that no two of them tie.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use http::{HeaderName, Method};

use super::super::diagnostic::{Diagnostic, Place, Report, did_you_mean};
use super::super::raw::{self, Condition, Short};
use super::super::{GroupId, Route, Switch, Target, Timeouts, Unknown, UsersRule};
use super::site::Context;
use super::{At, answers, at, check_name, dead_regex, edits, timeouts};
use crate::rewrite::headers::{HeaderEdit, merge};
use crate::routing::conditions::{Conditions, TextMatch};
use crate::routing::host::regex_of;
use crate::routing::path_table::{PathPattern, Segment, parse_segments};

/// What all routes of a site share.
pub(super) struct Scope<'a> {
    pub(super) site: &'a str,
    pub(super) from: &'a Path,
    pub(super) raw: &'a raw::Site,
    /// What every domain captures.
    pub(super) captures: &'a [&'a str],
    /// The group of the site's own `backends`.
    pub(super) own_group: Option<GroupId>,
    /// Of the wider scopes.
    pub(super) request_headers: &'a [HeaderEdit],
    pub(super) response_headers: &'a [HeaderEdit],
    pub(super) context: &'a Context<'a>,
}

/// Checks all routes. `site` is the site's document.
pub(super) fn check_all(scope: &Scope<'_>, switch: Option<&Switch>, site: &At<'_>, report: &mut Report) -> Vec<Route> {
    let raw = scope.raw;
    let site_group = match &raw.group {
        Some(name) => scope.group(name, &site.key("group"), report),
        None => switch
            .and_then(|switch| switch.groups.iter().find(|(name, _)| *name == switch.active))
            .map(|(_, group)| *group)
            .or(scope.own_group),
    };
    let to_active = switch.is_some();
    let site_timeouts = timeouts(&raw.timeouts, &site.key("timeouts"), report);
    let at = site.key("routes");
    let mut routes: Vec<(Route, Place)> = Vec::new();
    let mut failed = false;
    for (index, raw) in raw.routes.iter().enumerate() {
        let checker = Checker { scope, raw, at: at.index(index), site_group, to_active, site_timeouts };
        match checker.check(report) {
            Some(route) => routes.push((route, at.index(index).key("path").place())),
            None => failed = true,
        }
    }
    report_ties(&routes, report);
    if !failed {
        dead_regex::report(&routes, report);
    }
    let takes_all = |route: &Route| route.pattern.key() == "/" && route.conditions.is_empty();
    let mut routes: Vec<Route> = routes.into_iter().map(|(route, _)| route).collect();
    match site_group {
        // The short form: what no route takes goes to the site's group.
        Some(group) if !routes.iter().any(takes_all) => {
            let key = if raw.backends.is_some() {
                "backends"
            } else if to_active {
                "groups"
            } else {
                "group"
            };
            let origin = site.key(key).origin();
            routes.push(Route {
                to_active,
                timeouts: site_timeouts,
                max_body: scope.max_body(),
                request_headers: scope.request_headers.into(),
                response_headers: scope.response_headers.into(),
                ..Route::new("/".to_owned(), origin, PathPattern::Prefix(Vec::new()), Target::Group(group))
            });
        }
        None if raw.routes.is_empty() && !report.has_errors() => {
            report.push(site.error("the site leads nowhere").with_help("add `backends: [127.0.0.1:3000]`, `group: NAME` or `routes`"));
        }
        Some(_) | None => {}
    }
    routes
}

/// Two routes for the same path of which neither asks for more: it would depend on their order which of them answers.
fn report_ties(routes: &[(Route, Place)], report: &mut Report) {
    let mut by_path: HashMap<String, Vec<usize>> = HashMap::new();
    for (index, (route, place)) in routes.iter().enumerate() {
        let same = by_path.entry(route.pattern.key()).or_default();
        let ties = |other: &&usize| {
            routes.get(**other).is_some_and(|(other, _)| {
                other.conditions.specificity() == route.conditions.specificity() && !other.conditions.excludes(&route.conditions)
            })
        };
        if let Some((_, first)) = same.iter().find(ties).and_then(|other| routes.get(*other)) {
            let diagnostic = match route.conditions.is_empty() {
                true => Diagnostic::error(place.clone(), "another route matches just the same paths"),
                false => Diagnostic::error(place.clone(), "another route matches the same requests, and neither asks for more")
                    .with_help("let one of them ask for something that the other one excludes, or for more"),
            };
            report.push(diagnostic.with_related(first.clone(), "the other one is here"));
        }
        same.push(index);
    }
}

/// The groups of which one is active.
pub(super) fn switch(scope: &Scope<'_>, site: &At<'_>, report: &mut Report) -> Option<Switch> {
    let raw = scope.raw;
    if raw.groups.is_empty() {
        if raw.active.is_some() {
            report.push(site.key("active").error("`active` needs `groups`").with_help("add `groups: { blue: GROUP, green: GROUP }`"));
        }
        return None;
    }
    if raw.group.is_some() || raw.backends.is_some() {
        report.push(site.key("groups").error("`groups` stands instead of `group` and `backends`").with_help("keep one of them"));
    }
    let at = site.key("groups");
    let mut groups = Vec::new();
    for (name, group) in &raw.groups {
        check_name(name, "group of a switch", &at.key(name), report);
        groups.extend(scope.group(group, &at.key(name), report).map(|group| (name.clone(), group)));
    }
    let Some(active) = &raw.active else {
        report.push(site.key("groups").error("`active` is missing: which of them gets the requests?"));
        return None;
    };
    if !raw.groups.contains_key(active) {
        let diagnostic = site.key("active").error(format!("`{active}` is none of `groups`"));
        report.push(at::hint(diagnostic, did_you_mean(active, raw.groups.keys().map(String::as_str))));
        return None;
    }
    Some(Switch { groups, active: active.clone() })
}

impl Scope<'_> {
    fn group(&self, name: &str, at: &At<'_>, report: &mut Report) -> Option<GroupId> {
        if name == self.site && self.own_group.is_some() {
            return self.own_group;
        }
        let found = self.context.groups.get(name).copied();
        if found.is_none() {
            let diagnostic = at.error(format!("no backend group is named `{name}`"));
            let names = self.context.groups.keys().map(String::as_str);
            report.push(at::hint(diagnostic, did_you_mean(name, names)));
        }
        found
    }

    fn max_body(&self) -> Option<u64> {
        self.raw.max_body.map_or(self.context.defaults.max_body, |limit| limit.0)
    }
}

/// One route with what surrounds it.
struct Checker<'a> {
    scope: &'a Scope<'a>,
    raw: &'a raw::Route,
    at: At<'a>,
    site_group: Option<GroupId>,
    /// The site's group is the active one of its switch.
    to_active: bool,
    site_timeouts: Timeouts,
}

impl Checker<'_> {
    fn check(&self, report: &mut Report) -> Option<Route> {
        let (raw, at) = (self.raw, &self.at);
        let pattern = match PathPattern::parse(&raw.path) {
            Ok(pattern) => pattern,
            Err(why) => {
                report.push(at.key("path").error(why));
                return None;
            }
        };
        let mut captures = pattern.captures();
        captures.extend(self.scope.captures);
        let conditions = self.conditions(report);
        let target = self.target(&pattern, &captures, report);
        let strip = raw.strip.as_deref().and_then(|strip| self.strip(strip, &pattern, report));
        let own = |raw, key, report: &mut Report| edits::check(raw, &captures, &at.key(key), report);
        let request_headers = merge(self.scope.request_headers, own(&raw.request_headers, "request_headers", report));
        let response_headers = merge(self.scope.response_headers, own(&raw.response_headers, "response_headers", report));
        Some(Route {
            name: raw.name.clone().unwrap_or_else(|| raw.path.clone()),
            origin: at.key("path").origin(),
            conditions,
            to_active: self.to_active && raw.group.is_none() && matches!(target, Some(Target::Group(_))),
            target: target?,
            strip,
            timeouts: timeouts(&raw.timeouts, &at.key("timeouts"), report).or(self.site_timeouts),
            max_body: raw.max_body.map_or_else(|| self.scope.max_body(), |limit| limit.0),
            request_headers: request_headers.into(),
            response_headers: response_headers.into(),
            pattern,
        })
    }

    // === What it asks for ===

    fn conditions(&self, report: &mut Report) -> Conditions {
        let (raw, at) = (self.raw, &self.at);
        let mut methods = Vec::new();
        for (index, text) in raw.methods.iter().flat_map(|methods| &methods.0).enumerate() {
            let at = at.key("methods");
            let at = if raw.methods.as_ref().is_some_and(|methods| methods.0.len() > 1) { at.index(index) } else { at };
            match text.parse::<Method>() {
                Ok(_) if !text.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-') => {
                    report.push(at.error(format!("`{text}` is no method")).with_help("write a list: `[GET, POST]`"));
                }
                Ok(method) if text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') => methods.push(method),
                Ok(_) => report.push(at.error(format!("methods have capital letters: `{}`", text.to_ascii_uppercase()))),
                Err(_) => report.push(at.error(format!("`{text}` is no method"))),
            }
        }
        if raw.methods.as_ref().is_some_and(|methods| methods.0.is_empty()) {
            report.push(at.key("methods").error("`methods` names none: the route would never match"));
        }
        let secure = match raw.scheme.as_deref() {
            None => None,
            Some("https") => Some(true),
            Some("http") => Some(false),
            Some(other) => {
                report.push(at.key("scheme").error(format!("`{other}` is neither `http` nor `https`")));
                None
            }
        };
        let mut headers = Vec::new();
        for (name, condition) in &raw.headers {
            let at = at.key("headers").key(name);
            match name.parse::<HeaderName>() {
                Ok(name) if name == http::header::HOST => report.push(at.error("the host is asked for by `domains`")),
                Ok(name) if name == http::header::COOKIE => report.push(at.error("cookies are asked for by `cookies`")),
                Ok(name) => headers.extend(text_match(condition, &at, report).map(|wanted| (name, wanted))),
                Err(_) => report.push(at.error(format!("`{name}` is no name of a header"))),
            }
        }
        let texts = |raw: &BTreeMap<String, Condition>, key: &str, report: &mut Report| {
            let matches = raw.iter().filter_map(|(name, condition)| {
                let wanted = text_match(condition, &at.key(key).key(name), report)?;
                Some((name.clone(), wanted))
            });
            matches.collect::<Vec<_>>()
        };
        let cookies = texts(&raw.cookies, "cookies", report);
        let query = texts(&raw.query, "query", report);
        Conditions { methods, secure, headers, cookies, query }
    }

    // === What it does ===

    fn target(&self, pattern: &PathPattern, captures: &[&str], report: &mut Report) -> Option<Target> {
        let (raw, at) = (self.raw, &self.at);
        let users = match &raw.users {
            None | Some(Short::Switch(false)) => false,
            Some(_) => true,
        };
        let kinds =
            [("group", raw.group.is_some()), ("users", users), ("redirect", raw.redirect.is_some()), ("respond", raw.respond.is_some())];
        let given: Vec<&str> = kinds.into_iter().filter(|(_, given)| *given).map(|(key, _)| key).collect();
        if let [first, second, ..] = given.as_slice() {
            report.push(at.key(second).error(format!("`{first}` and `{second}` exclude each other")));
            return None;
        }
        if raw.redirect.is_some() || raw.respond.is_some() {
            self.refuse_what_backends_need(given.first().copied().unwrap_or_default(), report);
        }
        if !users && raw.app.is_some() {
            report.push(at.key("app").error("`app` needs `users: true`"));
        }
        if let Some(redirect) = &raw.redirect {
            return answers::redirect(redirect, captures, &at.key("redirect"), report).map(Target::Redirect);
        }
        if let Some(respond) = &raw.respond {
            let respond = answers::respond(respond, captures, self.scope.from, &at.key("respond"), report)?;
            return Some(Target::Respond(Arc::new(respond)));
        }
        if users {
            return self.users_rule(pattern, report).map(Target::Users);
        }
        match (&raw.group, self.site_group) {
            (Some(name), _) => self.scope.group(name, &at.key("group"), report).map(Target::Group),
            (None, Some(group)) => Some(Target::Group(group)),
            (None, None) => {
                let help = "add `group: NAME`, `users: true`, `redirect: URL` or `respond: 404`";
                report.push(at.error("the route leads nowhere").with_help(help));
                None
            }
        }
    }

    /// A key without an effect is a mistake.
    fn refuse_what_backends_need(&self, target: &str, report: &mut Report) {
        let (raw, at) = (self.raw, &self.at);
        let timeouts = raw.timeouts.connect.or(raw.timeouts.read).or(raw.timeouts.send).or(raw.timeouts.websocket_idle).is_some();
        let edits = &raw.request_headers;
        let edited = !(edits.set.is_empty() && edits.add.is_empty() && edits.remove.0.is_empty() && edits.rename.is_empty());
        let keys =
            [("strip", raw.strip.is_some()), ("timeouts", timeouts), ("request_headers", edited), ("max_body", raw.max_body.is_some())];
        for (key, _) in keys.into_iter().filter(|(_, given)| *given) {
            report.push(at.key(key).error(format!("`{key}` has no effect with `{target}`: no backend is asked")));
        }
    }

    fn users_rule(&self, pattern: &PathPattern, report: &mut Report) -> Option<UsersRule> {
        let (raw, at) = (self.raw, &self.at);
        let (unknown_user, unknown_app) = match &raw.users {
            Some(Short::Long(rule)) => (rule.unknown_user.as_ref(), rule.unknown_app.as_ref()),
            Some(Short::Word(_)) => {
                report.push(at.key("users").error("write `users: true`, or `users: { unknown_user: 404 }`"));
                return None;
            }
            Some(Short::Switch(_)) | None => (None, None),
        };
        let in_path = pattern.captures();
        let everywhere = |name: &str| in_path.contains(&name) || self.scope.captures.contains(&name);
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
        Some(UsersRule { app: raw.app.clone(), unknown_user, unknown_app })
    }

    /// `strip` names leading segments of the path: what is stripped can be put back in answers.
    fn strip(&self, text: &str, pattern: &PathPattern, report: &mut Report) -> Option<usize> {
        let at = self.at.key("strip");
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

fn text_match(condition: &Condition, at: &At<'_>, report: &mut Report) -> Option<TextMatch> {
    match condition {
        Condition::Presence(true) => Some(TextMatch::Present),
        Condition::Presence(false) => Some(TextMatch::Absent),
        Condition::Text(text) => match text.strip_prefix('~') {
            None => Some(TextMatch::Is { text: text.clone(), secret: at.is_filled() }),
            Some(regex) => match regex_of(regex) {
                Ok(regex) => Some(TextMatch::Matches { regex, secret: at.is_filled() }),
                Err(why) => {
                    report.push(at.error(why));
                    None
                }
            },
        },
    }
}
