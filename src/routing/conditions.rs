//! What a route asks of a request beyond its path: method, scheme, headers, cookies and query.
//!
//! All conditions of a route must hold. Of two routes for the same path the one that asks for more wins: first the one
//! that names methods, then the one with more headers and cookies, then the one with more of the query, then the one
//! that names a scheme.

use std::borrow::Cow;

use http::header::{COOKIE, HeaderName};
use http::{HeaderMap, Method};
use regex::Regex;

use super::path::decode_query;
use crate::rewrite::forwarded::is_protected;
use crate::rewrite::template::SECRET;

/// The conditions of one route. Without any it takes every request for its path.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Empty: every method. `GET` includes `HEAD`.
    pub methods: Vec<Method>,
    /// `Some(true)`: encrypted requests alone; `Some(false)`: plain ones alone.
    pub secure: Option<bool>,
    pub headers: Vec<(HeaderName, TextMatch)>,
    pub cookies: Vec<(String, TextMatch)>,
    pub query: Vec<(String, TextMatch)>,
}

/// What a value must be.
#[derive(Clone, Debug)]
pub enum TextMatch {
    Present,
    Absent,
    Is { text: String, secret: bool },
    Matches { regex: Regex, secret: bool },
}

/// How much a route asks for; the greater wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    methods: bool,
    headers: usize,
    query: usize,
    secure: bool,
}

/// The request as conditions see it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub method: &'a str,
    pub secure: bool,
    pub headers: &'a HeaderMap,
    /// The sender may speak for its clients; of others these headers are not there.
    pub trusted: bool,
    /// Without its `?`.
    pub query: Option<&'a str>,
}

/// The first condition that a request does not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmet {
    Method,
    Scheme,
    Header(String),
    Cookie(String),
    Query(String),
}

// === impl TextMatch ===

impl TextMatch {
    /// Whether one of the values fits; none at all is what `Absent` asks for.
    fn fits<'v>(&self, mut values: impl Iterator<Item = Cow<'v, str>>) -> bool {
        match self {
            TextMatch::Present => values.next().is_some(),
            TextMatch::Absent => values.next().is_none(),
            TextMatch::Is { text, .. } => values.any(|value| value == *text),
            TextMatch::Matches { regex, .. } => values.any(|value| regex.is_match(&value)),
        }
    }

    /// Whether no value can fit both.
    fn excludes(&self, other: &TextMatch) -> bool {
        match (self, other) {
            (TextMatch::Absent, TextMatch::Absent) => false,
            (TextMatch::Absent, _) | (_, TextMatch::Absent) => true,
            (TextMatch::Is { text: a, .. }, TextMatch::Is { text: b, .. }) => a != b,
            (TextMatch::Is { text, .. }, TextMatch::Matches { regex, .. })
            | (TextMatch::Matches { regex, .. }, TextMatch::Is { text, .. }) => !regex.is_match(text),
            (TextMatch::Present | TextMatch::Matches { .. }, _) | (_, TextMatch::Present) => false,
        }
    }

    /// As it is written: the text, `~regex`, `true` or `false`. A secret is not shown.
    pub fn written(&self) -> String {
        match self {
            TextMatch::Present => "true".to_owned(),
            TextMatch::Absent => "false".to_owned(),
            TextMatch::Is { secret: true, .. } | TextMatch::Matches { secret: true, .. } => SECRET.to_owned(),
            TextMatch::Is { text, .. } => text.clone(),
            TextMatch::Matches { regex, .. } => format!("~{}", regex.as_str()),
        }
    }
}

// === impl Conditions ===

impl Conditions {
    pub fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.secure.is_none() && self.headers.is_empty() && self.cookies.is_empty() && self.query.is_empty()
    }

    pub fn specificity(&self) -> Specificity {
        Specificity {
            methods: !self.methods.is_empty(),
            // A cookie is a part of a header.
            headers: self.headers.len() + self.cookies.len(),
            query: self.query.len(),
            secure: self.secure.is_some(),
        }
    }

    /// The first condition that does not hold; `None`: the route takes the request.
    pub fn unmet(&self, asked: &Asked<'_>) -> Option<Unmet> {
        if self.is_empty() {
            return None;
        }
        // What a request is comes before how it is made: the answer to a wrong method differs.
        if self.secure.is_some_and(|secure| secure != asked.secure) {
            return Some(Unmet::Scheme);
        }
        for (name, wanted) in &self.headers {
            let is_there = asked.trusted || !is_protected(name.as_str());
            let values = asked.headers.get_all(name).iter().filter(|_| is_there).map(|value| String::from_utf8_lossy(value.as_bytes()));
            if !wanted.fits(values) {
                return Some(Unmet::Header(name.as_str().to_owned()));
            }
        }
        for (name, wanted) in &self.cookies {
            if !wanted.fits(cookies(asked.headers, name)) {
                return Some(Unmet::Cookie(name.clone()));
            }
        }
        for (name, wanted) in &self.query {
            if !wanted.fits(query_values(asked.query, name)) {
                return Some(Unmet::Query(name.clone()));
            }
        }
        (!self.takes_method(asked.method)).then_some(Unmet::Method)
    }

    fn takes_method(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|own| own == method || (*own == Method::GET && method == "HEAD"))
    }

    /// Whether no request can meet both: then it does not matter which is looked at first.
    pub fn excludes(&self, other: &Conditions) -> bool {
        let methods = !self.methods.is_empty()
            && !other.methods.is_empty()
            && !self.methods.iter().any(|method| other.takes_method(method.as_str()))
            && !other.methods.iter().any(|method| self.takes_method(method.as_str()));
        let scheme = matches!((self.secure, other.secure), (Some(a), Some(b)) if a != b);
        methods
            || scheme
            || any_excludes(&self.headers, &other.headers)
            || any_excludes(&self.cookies, &other.cookies)
            || any_excludes(&self.query, &other.query)
    }
}

fn any_excludes<N: PartialEq>(ours: &[(N, TextMatch)], theirs: &[(N, TextMatch)]) -> bool {
    ours.iter().any(|(name, own)| theirs.iter().any(|(other, their)| name == other && own.excludes(their)))
}

/// The values of a cookie (RFC 6265 section 5.4: a name may be there more than once).
pub fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let text = pair.trim_ascii();
        let at = text.iter().position(|byte| *byte == b'=')?;
        (text.get(..at)? == name.as_bytes()).then(|| String::from_utf8_lossy(text.get(at + 1..).unwrap_or_default()))
    })
}

/// The decoded values of a key of the query; a key without `=` has the empty value.
pub fn query_values<'a>(query: Option<&'a str>, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    query.into_iter().flat_map(|query| query.split('&')).filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode_query(key) == name).then(|| decode_query(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn is(text: &str) -> TextMatch {
        TextMatch::Is { text: text.to_owned(), secret: false }
    }

    #[test]
    fn all_conditions_must_hold() {
        let conditions = Conditions {
            methods: vec![Method::GET],
            secure: Some(true),
            headers: vec![("x-beta".parse().unwrap(), is("1")), ("x-old".parse().unwrap(), TextMatch::Absent)],
            cookies: vec![("plan".to_owned(), TextMatch::Matches { regex: Regex::new("^(gold|silver)$").unwrap(), secret: false })],
            query: vec![("v".to_owned(), is("2 x")), ("debug".to_owned(), TextMatch::Present)],
        };
        let good = [("x-beta", "1"), ("cookie", "a=b; plan=gold")];
        let query = Some("debug&v=2+x");
        let asked = |method, secure, pairs: &[_], query| {
            conditions.unmet(&Asked { method, secure, headers: &headers(pairs), trusted: false, query })
        };
        assert_eq!(asked("GET", true, &good, query), None);
        assert_eq!(asked("HEAD", true, &good, query), None, "GET includes HEAD");
        assert_eq!(asked("POST", true, &good, query), Some(Unmet::Method));
        assert_eq!(asked("GET", false, &good, query), Some(Unmet::Scheme));
        assert_eq!(asked("GET", true, &good[1..], query), Some(Unmet::Header("x-beta".to_owned())));
        let old = [good[0], good[1], ("x-old", "")];
        assert_eq!(asked("GET", true, &old, query), Some(Unmet::Header("x-old".to_owned())));
        assert_eq!(asked("GET", true, &[good[0], ("cookie", "plan=lead")], query), Some(Unmet::Cookie("plan".to_owned())));
        assert_eq!(asked("GET", true, &good, Some("debug&v=2")), Some(Unmet::Query("v".to_owned())));
        assert_eq!(asked("GET", true, &good, Some("v=2%20x")), Some(Unmet::Query("debug".to_owned())));
        assert_eq!(asked("GET", true, &good, None), Some(Unmet::Query("v".to_owned())));
    }

    #[test]
    fn conditions_that_no_request_meets_together_do_not_tie() {
        let header = |value: TextMatch| Conditions { headers: vec![("x".parse().unwrap(), value)], ..Conditions::default() };
        let method = |method: Method| Conditions { methods: vec![method], ..Conditions::default() };
        let regex = |text: &str| TextMatch::Matches { regex: Regex::new(text).unwrap(), secret: false };
        for (a, b, excludes) in [
            (header(is("1")), header(is("2")), true),
            (header(is("1")), header(is("1")), false),
            (header(is("1")), header(TextMatch::Absent), true),
            (header(TextMatch::Present), header(TextMatch::Absent), true),
            (header(TextMatch::Present), header(is("1")), false),
            (header(regex("^a")), header(is("b")), true),
            (header(regex("^a")), header(is("ab")), false),
            (header(regex("^a")), header(regex("^b")), false),
            (method(Method::GET), method(Method::POST), true),
            (method(Method::GET), method(Method::HEAD), false),
            (method(Method::GET), header(is("1")), false),
            (Conditions { secure: Some(true), ..Conditions::default() }, Conditions { secure: Some(false), ..Conditions::default() }, true),
        ] {
            assert_eq!((a.excludes(&b), b.excludes(&a)), (excludes, excludes), "{a:?} {b:?}");
        }
    }
}
