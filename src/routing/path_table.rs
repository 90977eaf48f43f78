//! Path rules: what may stand in `path:`, and which routes of a site match, best first.
//!
//! An exact path wins, then the longest prefix of whole segments other than `/`, then regexes in the order of the
//! file, then `/`. Among prefixes of the same length a literal segment beats a capture, from the left.

use std::fmt;

use regex::Regex;
use smallvec::SmallVec;

use super::host::{Captures, is_capture_name, regex_of};
use super::path::{normalize, segments};

/// A path rule as written: a prefix `/a/{b}/`, an exact path `=/a`, a regex `~^/a`.
#[derive(Clone, Debug)]
pub enum PathPattern {
    Prefix(Vec<Segment>),
    Exact { segments: Vec<Segment>, directory: bool },
    Regex(Regex),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Literal(String),
    Capture(String),
}

// === impl PathPattern ===

impl PathPattern {
    /// Reads a path rule; the error says what is wrong and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(regex) = text.strip_prefix('~') {
            return regex_of(regex).map(PathPattern::Regex);
        }
        let exact = text.strip_prefix('=');
        let path = exact.unwrap_or(text).trim_start();
        if !path.starts_with('/') {
            return Err("a path starts with `/` (prefix), `=/` (exact) or `~` (regex)".to_owned());
        }
        if path.contains('*') {
            return Err(
                "`*` means nothing in a path: a prefix such as `/a/` matches everything below it, `/{name}/` one segment".to_owned()
            );
        }
        if path.contains(['?', '#']) {
            return Err("a path has no query and no fragment".to_owned());
        }
        let segments = parse_segments(path)?;
        Ok(match exact {
            Some(_) => PathPattern::Exact { segments, directory: path.ends_with('/') },
            None => PathPattern::Prefix(segments),
        })
    }

    pub fn segments(&self) -> &[Segment] {
        match self {
            PathPattern::Prefix(segments) | PathPattern::Exact { segments, .. } => segments,
            PathPattern::Regex(_) => &[],
        }
    }

    pub fn captures(&self) -> Vec<&str> {
        match self {
            PathPattern::Regex(regex) => regex.capture_names().flatten().collect(),
            PathPattern::Prefix(segments) | PathPattern::Exact { segments, .. } => segments.iter().filter_map(Segment::capture).collect(),
        }
    }

    /// Two rules with the same key match the same paths.
    pub fn key(&self) -> String {
        let join = |segments: &[Segment]| {
            segments.iter().map(|s| if let Segment::Literal(text) = s { format!("/{text}") } else { "/{}".to_owned() }).collect::<String>()
        };
        match self {
            PathPattern::Prefix(segments) => format!("{}/", join(segments)),
            PathPattern::Exact { segments, directory } => format!("={}{}", join(segments), if *directory { "/" } else { "" }),
            PathPattern::Regex(regex) => format!("~{}", regex.as_str()),
        }
    }

    /// What the captures of this rule are in a path that matches it.
    pub fn capture<'a>(&'a self, path: &'a str, captures: &mut Captures<'a>) {
        match self {
            PathPattern::Prefix(pattern) | PathPattern::Exact { segments: pattern, .. } => {
                for (rule, text) in pattern.iter().zip(segments(path)) {
                    if let Segment::Capture(name) = rule {
                        captures.push((name, text));
                    }
                }
            }
            PathPattern::Regex(regex) => {
                let Some(found) = regex.captures(path) else { return };
                captures.extend(regex.capture_names().flatten().filter_map(|name| Some((name, found.name(name)?.as_str()))));
            }
        }
    }
}

/// As it is written in `path`.
impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |segments: &[Segment]| {
            let text = |segment: &Segment| match segment {
                Segment::Literal(text) => format!("/{text}"),
                Segment::Capture(name) => format!("/{{{name}}}"),
            };
            segments.iter().map(text).collect::<String>()
        };
        match self {
            PathPattern::Prefix(segments) => write!(f, "{}/", join(segments)),
            PathPattern::Exact { segments, directory } => {
                write!(f, "={}{}", join(segments), if *directory || segments.is_empty() { "/" } else { "" })
            }
            PathPattern::Regex(regex) => write!(f, "~{}", regex.as_str()),
        }
    }
}

impl Segment {
    pub fn capture(&self) -> Option<&str> {
        match self {
            Segment::Literal(_) => None,
            Segment::Capture(name) => Some(name),
        }
    }
}

/// Reads the segments of a rule or of a `strip`.
pub fn parse_segments(path: &str) -> Result<Vec<Segment>, String> {
    let mut found: Vec<Segment> = Vec::new();
    for text in segments(path) {
        let name = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let segment = match name {
            Some(name) if is_capture_name(name) => Segment::Capture(name.to_owned()),
            Some(name) => return Err(format!("`{{{name}}}` is no capture: use lower-case letters, digits and `_`")),
            None if text.contains(['{', '}']) => return Err(format!("`{text}`: a capture takes a whole segment")),
            None => {
                let absolute = format!("/{text}");
                let normal = normalize(absolute.as_bytes()).map_err(|why| format!("`{text}`: {why}"))?;
                Segment::Literal(normal.trim_start_matches('/').to_owned())
            }
        };
        if matches!(&segment, Segment::Capture(_)) && found.contains(&segment) {
            return Err(format!("`{text}` captures twice"));
        }
        found.push(segment);
    }
    Ok(found)
}

// === PathTable ===

/// The path rules of one site as a tree of segments. Routes are numbers, in the order of the file.
#[derive(Debug, Default)]
pub struct PathTable {
    /// Invariant: `nodes[0]` is the root once a rule that is no regex was inserted.
    nodes: Vec<Node>,
    regexes: Vec<(Regex, u32)>,
}

#[derive(Debug, Default)]
struct Node {
    literals: hashbrown::HashMap<Box<str>, u32, foldhash::fast::RandomState>,
    capture: Option<u32>,
    prefix: Routes,
    exact: Routes,
    exact_directory: Routes,
}

/// Routes of the same path, the one that asks for most first.
type Routes = SmallVec<[u32; 1]>;

/// The routes that match a path, best first. Sites with many overlapping rules are rare, so it seldom allocates.
pub type Matches = SmallVec<[u32; 8]>;

impl PathTable {
    /// Adds a rule. Of rules for the same path the one that was added first is found first.
    pub fn insert(&mut self, pattern: &PathPattern, route: u32) {
        let segments = match pattern {
            PathPattern::Regex(regex) => {
                self.regexes.push((regex.clone(), route));
                return;
            }
            PathPattern::Prefix(segments) | PathPattern::Exact { segments, .. } => segments,
        };
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        for segment in segments {
            at = self.child(at, segment);
        }
        let Some(node) = self.nodes.get_mut(at as usize) else { return };
        let slot = match pattern {
            PathPattern::Exact { directory: true, .. } => &mut node.exact_directory,
            PathPattern::Exact { directory: false, .. } => &mut node.exact,
            PathPattern::Prefix(_) | PathPattern::Regex(_) => &mut node.prefix,
        };
        slot.push(route);
    }

    /// The child of a node for a segment, made if it is missing.
    fn child(&mut self, parent: u32, segment: &Segment) -> u32 {
        let new = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let Some(node) = self.nodes.get_mut(parent as usize) else { return parent };
        let child = match segment {
            Segment::Literal(text) => *node.literals.entry(text.as_str().into()).or_insert(new),
            Segment::Capture(_) => *node.capture.get_or_insert(new),
        };
        if child == new {
            self.nodes.push(Node::default());
        }
        child
    }

    /// The routes that match a normal path, best first.
    pub fn find(&self, path: &str) -> Matches {
        let mut walk = Walk { table: self, directory: path.ends_with('/'), exact: Matches::new(), prefixes: SmallVec::new() };
        let mut rest: SmallVec<[&str; 16]> = SmallVec::new();
        rest.extend(segments(path));
        if !self.nodes.is_empty() {
            walk.visit(0, &rest, 0);
        }
        let Walk { mut exact, mut prefixes, .. } = walk;
        // Stable: among the same length, literals were visited before captures.
        prefixes.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
        let root = prefixes.iter().position(|(depth, _)| *depth == 0).unwrap_or(prefixes.len());
        exact.extend(prefixes.iter().take(root).map(|(_, route)| *route));
        exact.extend(self.regexes.iter().filter(|(regex, _)| regex.is_match(path)).map(|(_, route)| *route));
        exact.extend(prefixes.iter().skip(root).map(|(_, route)| *route));
        exact
    }
}

struct Walk<'t> {
    table: &'t PathTable,
    directory: bool,
    exact: Matches,
    prefixes: SmallVec<[(u16, u32); 8]>,
}

impl Walk<'_> {
    fn visit(&mut self, node: u32, rest: &[&str], depth: u16) {
        let Some(node) = self.table.nodes.get(node as usize) else { return };
        match rest.split_first() {
            Some((first, rest)) => {
                if let Some(child) = node.literals.get(*first) {
                    self.visit(*child, rest, depth + 1);
                }
                if let Some(child) = node.capture {
                    self.visit(child, rest, depth + 1);
                }
            }
            None => self.exact.extend_from_slice(if self.directory { &node.exact_directory } else { &node.exact }),
        }
        self.prefixes.extend(node.prefix.iter().map(|route| (depth, *route)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(rules: &[&str], path: &str) -> Vec<u32> {
        let mut table = PathTable::default();
        for (route, rule) in (0..).zip(rules) {
            table.insert(&PathPattern::parse(rule).unwrap(), route);
        }
        table.find(path).to_vec()
    }

    #[test]
    fn exact_then_longest_prefix_then_regex_then_root() {
        let rules = ["/", "~^/a", "/a/", "/a/b/", "=/a/b", "/{x}/b/c/", "=/a/"];
        for (path, routes) in [
            ("/a/b", &[4, 3, 2, 1, 0][..]),
            ("/a/b/", &[3, 2, 1, 0]),
            ("/a/", &[6, 2, 1, 0]),
            ("/a", &[2, 1, 0]),
            ("/ab", &[1, 0]),
            ("/a/b/c", &[5, 3, 2, 1, 0]),
            ("/z", &[0]),
        ] {
            assert_eq!(best(&rules, path), routes, "{path}");
        }
    }

    #[test]
    fn a_literal_beats_a_capture_segment_by_segment() {
        let rules = ["/{user}/{app}/", "/{user}/mail/", "/admin/{app}/", "/static/"];
        for (path, routes) in [
            ("/bob/mail/x", &[1, 0][..]),
            ("/admin/mail", &[2, 1, 0]),
            ("/admin/wiki", &[2, 0]),
            ("/bob/wiki/", &[0]),
            ("/static/css/a.css", &[0, 3]),
            ("/bob", &[]),
        ] {
            assert_eq!(best(&rules, path), routes, "{path}");
        }
    }

    #[test]
    fn captures_are_taken_from_the_path() {
        let pattern = PathPattern::parse("/{user}/x/{app}/").unwrap();
        let mut captures = Captures::new();
        pattern.capture("/bob/x/wiki/page", &mut captures);
        assert_eq!(captures.as_slice(), [("user", "bob"), ("app", "wiki")]);
        let pattern = PathPattern::parse(r"~^/u/(?<user>\w+)").unwrap();
        let mut captures = Captures::new();
        pattern.capture("/u/bob/", &mut captures);
        assert_eq!(captures.as_slice(), [("user", "bob")]);
    }

    #[test]
    fn a_bad_rule_says_what_to_write() {
        for (text, why) in [
            ("a", "starts with"),
            ("/a?b", "no query"),
            ("/x{y}/", "whole segment"),
            ("/{Y}/", "no capture"),
            ("/{a}/{a}/", "captures twice"),
            ("/%zz/", "escape"),
            ("~(", "no regex"),
            ("~(?:a{1000}){1000}", "no regex"),
        ] {
            let error = PathPattern::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
