//! Domains: what may stand in `domains:`, and which site a host name belongs to.
//!
//! Exact names win over patterns with wildcards or captures (the longest literal suffix first, then the pattern with
//! fewer labels left open), and those over regexes in the order of the files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use memchr::memchr;
use regex::{Regex, RegexBuilder};
use smallvec::SmallVec;

use super::name_table::NameTable;

/// The largest automaton of a regex, in bytes: far more than a domain or path needs.
pub(crate) const REGEX_SIZE: usize = 256 << 10;

/// A domain as written: `shop.example.com`, `*.example.com`, `{user}.apps.example.com` or `~regex`.
#[derive(Clone, Debug)]
pub enum HostPattern {
    Exact(String),
    /// Labels that are open, then the literal rest with its leading dot.
    Open {
        labels: Vec<Label>,
        suffix: String,
    },
    Regex(Regex),
}

/// An open label of a host pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// One or more labels; only as the first.
    Any,
    /// Exactly one label, to be used by name.
    Capture(String),
}

/// The names found for captures; few, so they are searched in order.
pub type Captures<'a> = SmallVec<[(&'a str, &'a str); 4]>;

// === impl HostPattern ===

impl HostPattern {
    /// Reads a domain of the configuration; the error says what is wrong and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(regex) = text.strip_prefix('~') {
            return regex_of(regex).map(HostPattern::Regex);
        }
        if text.contains("://") || text.contains('/') {
            return Err("a domain has no scheme and no path: write `shop.example.com`".to_owned());
        }
        if text == "_" {
            return Err("`_` catches nothing here: `unknown_host: NAME` in the main file makes a site answer for every name".to_owned());
        }
        if text.contains(':') {
            return Err("a domain has no port: the listener has it".to_owned());
        }
        if !text.is_ascii() {
            return Err("write an international name in its ASCII form (`xn--…`)".to_owned());
        }
        let name = text.trim_end_matches('.').to_ascii_lowercase();
        let mut labels = Vec::new();
        let mut rest = name.as_str();
        while rest.starts_with(['*', '{']) {
            let (label, tail) = rest.split_once('.').ok_or("a pattern needs a literal domain behind its first labels")?;
            labels.push(open_label(label, labels.is_empty())?);
            rest = tail;
        }
        for label in rest.split('.') {
            literal_label(label)?;
        }
        if name.len() > 253 {
            return Err("a domain has at most 253 characters".to_owned());
        }
        Ok(if labels.is_empty() { HostPattern::Exact(name) } else { HostPattern::Open { labels, suffix: format!(".{rest}") } })
    }

    /// The names of the captures that this pattern offers.
    pub fn captures(&self) -> Vec<&str> {
        match self {
            HostPattern::Exact(_) => Vec::new(),
            HostPattern::Open { labels, .. } => labels.iter().filter_map(Label::name).collect(),
            HostPattern::Regex(regex) => regex.capture_names().flatten().collect(),
        }
    }

    /// Two patterns with the same key match the same hosts.
    pub fn key(&self) -> String {
        match self {
            HostPattern::Exact(name) => name.clone(),
            HostPattern::Open { labels, suffix } => {
                let open: Vec<_> = labels.iter().map(|label| if *label == Label::Any { "*" } else { "{}" }).collect();
                format!("{}{suffix}", open.join("."))
            }
            HostPattern::Regex(regex) => format!("~{}", regex.as_str()),
        }
    }
}

/// As it is written in `domains`.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => f.write_str(name),
            HostPattern::Open { labels, suffix } => {
                let open = labels.iter().map(|label| label.name().map_or_else(|| "*".to_owned(), |name| format!("{{{name}}}")));
                write!(f, "{}{suffix}", open.collect::<Vec<_>>().join("."))
            }
            HostPattern::Regex(regex) => write!(f, "~{}", regex.as_str()),
        }
    }
}

impl Label {
    fn name(&self) -> Option<&str> {
        match self {
            Label::Any => None,
            Label::Capture(name) => Some(name),
        }
    }
}

fn open_label(label: &str, first: bool) -> Result<Label, String> {
    if label == "*" {
        return if first { Ok(Label::Any) } else { Err("`*` may only be the first label".to_owned()) };
    }
    let name = label.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    match name {
        Some(name) if is_capture_name(name) => Ok(Label::Capture(name.to_owned())),
        _ => Err(format!("`{label}` is no label: a capture such as `{{user}}` takes a whole label")),
    }
}

fn literal_label(label: &str) -> Result<(), String> {
    let good = !label.is_empty() && label.len() <= 63 && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    match label {
        "" => Err("a label of the domain is empty".to_owned()),
        _ if good => Ok(()),
        _ => Err(format!("`{label}` is no label of a domain name")),
    }
}

pub(crate) fn is_capture_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Compiles a regex of the configuration, bounded in size.
pub(crate) fn regex_of(text: &str) -> Result<Regex, String> {
    if text.chars().any(char::is_control) {
        // `"\b"` in double quotes is a backspace.
        return Err("this regex has a control character: write it in single quotes, where a backslash stands for itself".to_owned());
    }
    RegexBuilder::new(text.trim_start()).size_limit(REGEX_SIZE).build().map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        format!("this is no regex: {reason}")
    })
}

/// The host of a request as it is looked up: without port and trailing dot, in lower case. `None`: there is no name.
pub fn normalize_host(host: &str) -> Option<Cow<'_, str>> {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    // No label is empty (RFC 1035 section 2.3.1).
    if name.is_empty() || name.starts_with('.') || name.contains("..") {
        return None;
    }
    Some(if name.bytes().any(|b| b.is_ascii_uppercase()) { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) })
}

/// The port that a request's host names, if it names one.
pub fn port_of(host: &str) -> Option<u16> {
    let tail = host.rsplit(']').next().unwrap_or(host);
    tail.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}

/// Whether the bytes are a host with or without a port (RFC 3986 section 3.2, without user information).
pub fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = match authority.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = memchr(b']', rest) else { return false };
            let (address, rest) = rest.split_at(end);
            if !std::str::from_utf8(address).is_ok_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
                return false;
            }
            (&b""[..], rest.get(1..).unwrap_or_default())
        }
        None => authority.split_at(memchr(b':', authority).unwrap_or(authority.len())),
    };
    let port = match port.split_first() {
        None => return is_name(host),
        Some((b':', port)) => port,
        Some(_) => return false,
    };
    is_name(host) && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

fn is_name(host: &[u8]) -> bool {
    host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(b))
}

// === HostTable ===

/// Which site serves a host name. Sites are numbers; the caller knows what they stand for.
#[derive(Debug, Default)]
pub struct HostTable {
    exact: NameTable,
    exact_sites: Vec<u32>,
    open: HashMap<String, Vec<OpenHost>, foldhash::fast::RandomState>,
    regexes: Vec<(Regex, u32)>,
}

#[derive(Debug)]
struct OpenHost {
    labels: Vec<Label>,
    site: u32,
}

impl HostTable {
    pub fn insert(&mut self, pattern: &HostPattern, site: u32) {
        match pattern {
            HostPattern::Exact(name) => {
                if self.exact.insert(name).1 {
                    self.exact_sites.push(site);
                }
            }
            HostPattern::Open { labels, suffix } => {
                let hosts = self.open.entry(suffix.clone()).or_default();
                hosts.push(OpenHost { labels: labels.clone(), site });
                // captures take exactly one label each and so say more than `*`
                hosts.sort_by_key(|host| (host.labels.first() == Some(&Label::Any), std::cmp::Reverse(host.labels.len())));
            }
            HostPattern::Regex(regex) => self.regexes.push((regex.clone(), site)),
        }
    }

    pub fn shrink(&mut self) {
        self.exact.shrink();
        self.exact_sites.shrink_to_fit();
    }

    /// Bytes held by exact names.
    pub fn size(&self) -> usize {
        self.exact.size() + self.exact_sites.capacity() * 4
    }

    /// The site of a normalised host name, and what its pattern captured.
    pub fn find<'a>(&'a self, host: &'a str) -> Option<(u32, Captures<'a>)> {
        if let Some(row) = self.exact.get(host) {
            return self.exact_sites.get(row as usize).map(|site| (*site, Captures::new()));
        }
        if !self.open.is_empty()
            && let Some(found) = self.find_open(host)
        {
            return Some(found);
        }
        self.regexes.iter().find_map(|(regex, site)| {
            let found = regex.captures(host)?;
            let named = regex.capture_names().flatten().filter_map(|name| Some((name, found.name(name)?.as_str())));
            Some((*site, named.collect()))
        })
    }

    /// The longest suffix comes first: every label that is taken off makes the next candidate shorter.
    fn find_open<'a>(&'a self, host: &'a str) -> Option<(u32, Captures<'a>)> {
        for (at, _) in host.match_indices('.') {
            let (front, suffix) = host.split_at(at);
            let Some(hosts) = self.open.get(suffix) else { continue };
            for candidate in hosts {
                if let Some(captures) = candidate.captures(front) {
                    return Some((candidate.site, captures));
                }
            }
        }
        None
    }
}

impl OpenHost {
    fn captures<'a>(&'a self, front: &'a str) -> Option<Captures<'a>> {
        let mut captures = Captures::new();
        let mut rest = Some(front);
        for label in self.labels.iter().rev() {
            let text = rest?;
            match label {
                Label::Any => rest = None,
                Label::Capture(name) => {
                    let (before, last) = text.rsplit_once('.').map_or((None, text), |(before, last)| (Some(before), last));
                    captures.push((name, last));
                    rest = before;
                }
            }
        }
        rest.is_none().then_some(captures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(patterns: &[&str]) -> HostTable {
        let mut table = HostTable::default();
        for (site, pattern) in (0..).zip(patterns) {
            table.insert(&HostPattern::parse(pattern).unwrap(), site);
        }
        table
    }

    #[test]
    fn exact_over_longest_wildcard_over_regex() {
        let table = table(&[
            "www.example.com",
            "*.example.com",
            "*.eu.example.com",
            "{user}.apps.example.com",
            "{app}.{user}.apps.example.com",
            "*.apps.example.com",
            r"~^shop\d+\.example\.net$",
            r"~^shop(?<number>\d)\.",
        ]);
        for (host, site) in [
            ("www.example.com", Some(0)),
            ("a.example.com", Some(1)),
            ("a.b.example.com", Some(1)),
            ("a.eu.example.com", Some(2)),
            ("eu.example.com", Some(1)),
            ("example.com", None),
            ("bob.apps.example.com", Some(3)),
            ("wiki.bob.apps.example.com", Some(4)),
            ("a.b.c.apps.example.com", Some(5)),
            ("shop12.example.net", Some(6)),
            ("shop1.example.org", Some(7)),
            ("other.org", None),
        ] {
            assert_eq!(table.find(host).map(|(site, _)| site), site, "{host}");
        }
        let (_, captures) = table.find("wiki.bob.apps.example.com").unwrap();
        assert_eq!(captures.as_slice(), [("user", "bob"), ("app", "wiki")]);
        let (_, captures) = table.find("shop1.example.org").unwrap();
        assert_eq!(captures.as_slice(), [("number", "1")]);
    }

    #[test]
    fn hosts_are_looked_up_in_one_form() {
        for (host, name) in [
            ("Shop.Example.com", Some("shop.example.com")),
            ("shop.example.com.", Some("shop.example.com")),
            ("shop.example.com:8443", Some("shop.example.com")),
            ("[::1]:80", Some("::1")),
            ("", None),
            (":80", None),
        ] {
            assert_eq!(normalize_host(host).as_deref(), name, "{host}");
        }
        assert_eq!(port_of("a:8080"), Some(8080));
        assert_eq!(port_of("[::1]"), None);
        assert_eq!(port_of("[::1]:81"), Some(81));
    }

    #[test]
    fn a_bad_domain_says_what_to_write() {
        for (text, why) in [
            ("https://a.b", "no scheme"),
            ("a.b:80", "no port"),
            ("a..b", "empty"),
            ("a.*.b", "no label"),
            ("m\u{fc}ller.de", "xn--"),
            ("{us-er}.b", "whole label"),
            ("*", "literal domain"),
            ("~(", "no regex"),
            ("", "empty"),
        ] {
            let error = HostPattern::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
