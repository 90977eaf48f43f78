//! Finds regexes that can never win: another route takes every path that they match.
//!
//! Only what is certain is reported: a regex that begins with literal segments under a prefix that always answers, or
//! behind an earlier regex that matches at least as much.

use regex_syntax::hir::{Hir, HirKind, Look};

use super::super::diagnostic::{Diagnostic, Place, Report};
use super::super::{Route, Target, Unknown};
use crate::routing::path_table::{PathPattern, Segment};

pub(super) fn report(routes: &[(Route, Place)], report: &mut Report) {
    let mut earlier: Vec<(String, &Place)> = Vec::new();
    for (route, place) in routes {
        let PathPattern::Regex(regex) = &route.pattern else { continue };
        let Some(shape) = Shape::of(regex.as_str()) else { continue };
        let by_prefix = routes.iter().find(|(other, _)| always_answers(other) && covers(&other.pattern, &shape.literal));
        let by_regex = earlier.iter().find(|(all_from, _)| shape.literal.starts_with(all_from.as_str()));
        let winner = by_prefix.map(|(_, place)| place).or_else(|| by_regex.map(|(_, place)| *place));
        if let Some(winner) = winner {
            report.push(
                Diagnostic::error(place.clone(), "this regex can never win")
                    .with_related(winner.clone(), "this route takes every path that it matches")
                    .with_help("prefixes other than `/` win over regexes, and regexes in the order of the file"),
            );
        }
        if shape.is_prefix && always_answers(route) {
            earlier.push((shape.literal, place));
        }
    }
}

/// Whether a route answers every request for its paths.
fn always_answers(route: &Route) -> bool {
    let falls_through =
        matches!(&route.target, Target::Users(rule) if rule.unknown_user == Unknown::Next || rule.unknown_app == Unknown::Next);
    route.conditions.is_empty() && !falls_through
}

/// Whether a prefix takes every path that begins with `literal`.
fn covers(pattern: &PathPattern, literal: &str) -> bool {
    let PathPattern::Prefix(segments) = pattern else { return false };
    // Only whole segments are certain; `/` alone loses against regexes.
    let Some((whole, _)) = literal.rsplit_once('/') else { return false };
    let mut certain = whole.split('/').skip(1);
    !segments.is_empty()
        && segments.iter().all(|segment| {
            certain.next().is_some_and(|text| match segment {
                Segment::Literal(own) => own == text,
                Segment::Capture(_) => !text.is_empty(),
            })
        })
}

/// What is certain about the paths that a regex matches.
struct Shape {
    /// How they all begin.
    literal: String,
    /// All paths that begin so match.
    is_prefix: bool,
}

impl Shape {
    fn of(regex: &str) -> Option<Self> {
        let hir = regex_syntax::parse(regex).ok()?;
        let parts: Vec<Hir> = match hir.kind() {
            HirKind::Concat(parts) => parts.clone(),
            _ => vec![hir.clone()],
        };
        let anchored = matches!(parts.first().map(Hir::kind), Some(HirKind::Look(Look::Start)));
        if !anchored {
            // Without `^` it may match anywhere: certain is only that `.*` and `/` match every path.
            let all = matches!(regex, "" | "/" | ".*" | ".*$" | "/.*");
            return Some(Shape { literal: String::new(), is_prefix: all });
        }
        let literal = match parts.get(1).map(Hir::kind) {
            Some(HirKind::Literal(literal)) => String::from_utf8(literal.0.to_vec()).ok()?,
            _ => String::new(),
        };
        let rest = parts.get(if literal.is_empty() { 1.. } else { 2.. }).unwrap_or_default();
        let is_prefix = rest.is_empty() || (rest.len() == 1 && regex.ends_with(".*")) || (rest.len() == 2 && regex.ends_with(".*$"));
        // Every path begins with a slash.
        let literal = if literal == "/" { String::new() } else { literal };
        Some(Shape { literal, is_prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_is_known_of_a_regex() {
        for (regex, literal, is_prefix) in [
            ("^/a/b", "/a/b", true),
            ("^/a/.*$", "/a/", true),
            ("^/a/.*", "/a/", true),
            (r"^/a/\d+", "/a/", false),
            ("^/a$", "/a", false),
            ("^/", "", true),
            ("", "", true),
            (".*", "", true),
            (r"\.php$", "", false),
            ("^/(a|b)/", "/", false),
            ("(?i)^/a", "", false),
        ] {
            let shape = Shape::of(regex).unwrap();
            let literal = if literal == "/" { "" } else { literal };
            assert_eq!((shape.literal.as_str(), shape.is_prefix), (literal, is_prefix), "{regex}");
        }
    }

    #[test]
    fn a_prefix_covers_whole_segments() {
        for (prefix, literal, covered) in [
            ("/a/", "/a/b", true),
            ("/a/", "/a", false),
            ("/a/", "/ab/c", false),
            ("/{x}/", "/a/b", true),
            ("/a/b/", "/a/", false),
            ("/", "/a/", false),
            ("=/a", "/a/", false),
        ] {
            assert_eq!(covers(&PathPattern::parse(prefix).unwrap(), literal), covered, "{prefix} {literal}");
        }
    }
}
