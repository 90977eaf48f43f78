//! Which routes and sites lost, and why.

use http::Method;

use super::{Context, Loser};
use crate::config::Route;
use crate::decide::Lost;
use crate::routing::conditions::Unmet;
use crate::routing::host::{HostPattern, HostTable, normalize_host};
use crate::routing::path;
use crate::routing::path_table::PathPattern;

impl Context<'_> {
    /// The routes that do not answer, and why not.
    pub(super) fn losers(&self) -> Vec<Loser> {
        let Some(site) = self.rehearsal.site.and_then(|site| self.snapshot.site(site)) else { return self.lost_sites() };
        let raw_path = self.imagined.target.split('?').next().unwrap_or_default();
        let matches = path::normalize(raw_path.as_bytes()).map(|path| site.paths.find(&path)).unwrap_or_default();
        let winner = self.rehearsal.route;
        let loser = |route: &Route, why: String| Loser { route: route.name.clone(), origin: route.origin.to_string(), why };
        let mut losers = Vec::new();
        if winner.is_none() && self.rehearsal.lost.is_empty() {
            // The site answers as a whole: no route was asked.
            return self.lost_sites();
        }
        for index in matches.iter().filter(|index| Some(**index) != winner) {
            let Some(route) = site.config.routes.get(*index as usize) else { continue };
            let lost = self.rehearsal.lost.iter().find(|(lost, _)| lost == index);
            let why = match lost {
                Some((_, why)) => reason(why, route),
                None => beaten(route, winner.and_then(|winner| site.config.routes.get(winner as usize))),
            };
            losers.push(loser(route, why));
        }
        for (index, route) in (0..).zip(&site.config.routes) {
            if Some(index) != winner && !matches.contains(&index) {
                losers.push(loser(route, "its path does not match".to_owned()));
            }
        }
        losers.extend(self.lost_sites());
        losers
    }

    /// Other sites that have a pattern for this host.
    fn lost_sites(&self) -> Vec<Loser> {
        let host = self.imagined.headers.get("host").and_then(|host| host.to_str().ok()).and_then(normalize_host).unwrap_or_default();
        let matching = |pattern: &&HostPattern| {
            let mut table = HostTable::default();
            table.insert(pattern, 0);
            table.find(&host).is_some()
        };
        let winner = self.rehearsal.site.and_then(|site| self.snapshot.site(site));
        let won = winner.and_then(|site| site.config.domains.iter().find(matching));
        let mut losers = Vec::new();
        for (index, site) in (0..).zip(self.snapshot.rules.sites.iter()) {
            let Some(pattern) = site.config.domains.iter().find(matching).filter(|_| Some(index) != self.rehearsal.site) else { continue };
            let why = match won {
                _ if !site.answers_on(&self.imagined.listener.name) => "it does not answer on this listener".to_owned(),
                Some(won) => format!("`{pattern}` matches too, but `{won}` is more specific"),
                None => format!("`{pattern}` matches too"),
            };
            losers.push(Loser { route: format!("site {}", site.config.name), origin: site.config.origin.to_string(), why });
        }
        losers
    }
}

/// Why a route that matches, too, comes behind the one that answers.
fn beaten(loser: &Route, winner: Option<&Route>) -> String {
    let Some(winner) = winner else { return "it was not asked".to_owned() };
    if loser.pattern.key() == winner.pattern.key() {
        return "another route for the same path asks for more".to_owned();
    }
    match (&winner.pattern, &loser.pattern) {
        (PathPattern::Exact { .. }, _) => "an exact path wins".to_owned(),
        (_, loser) if loser.key() == "/" => "any other path wins over `/`".to_owned(),
        (PathPattern::Prefix(_), PathPattern::Regex(_)) => "a prefix other than `/` wins over regexes".to_owned(),
        (PathPattern::Regex(_), PathPattern::Regex(_)) => "an earlier regex of the file matches".to_owned(),
        (winner, loser) if winner.segments().len() > loser.segments().len() => "a longer path wins".to_owned(),
        _ => "a literal segment wins over a captured one".to_owned(),
    }
}

fn reason(lost: &Lost, route: &Route) -> String {
    let conditions = &route.conditions;
    match lost {
        Lost::Unmet(Unmet::Method) => {
            let methods: Vec<&str> = conditions.methods.iter().map(Method::as_str).collect();
            format!("it takes only {}", methods.join(", "))
        }
        Lost::Unmet(Unmet::Scheme) => format!("it takes only {}", if conditions.secure == Some(true) { "https" } else { "http" }),
        Lost::Unmet(Unmet::Header(name)) => {
            let wanted = conditions.headers.iter().find(|(own, _)| own.as_str() == name).map(|(_, wanted)| wanted.written());
            format!("it asks for the header `{name}: {}`", wanted.unwrap_or_default())
        }
        Lost::Unmet(Unmet::Cookie(name)) => {
            let wanted = conditions.cookies.iter().find(|(own, _)| own == name).map(|(_, wanted)| wanted.written());
            format!("it asks for the cookie `{name}: {}`", wanted.unwrap_or_default())
        }
        Lost::Unmet(Unmet::Query(name)) => {
            let wanted = conditions.query.iter().find(|(own, _)| own == name).map(|(_, wanted)| wanted.written());
            format!("it asks for `{name}: {}` in the query", wanted.unwrap_or_default())
        }
        Lost::UnknownUser => "the users table has no such user".to_owned(),
        Lost::UnknownApp => "the users table has no such app of this user".to_owned(),
        Lost::RedirectedToHttps => "plain requests are redirected to HTTPS first".to_owned(),
    }
}
