//! Checks the tests that a site brings along: what they ask for and what they expect. `rehearse` runs them.

use std::sync::Arc;

use http::header::{COOKIE, HeaderName, HeaderValue};
use http::{HeaderMap, Method};

use super::super::diagnostic::Report;
use super::super::raw;
use super::super::site::Expected;
use super::super::{Test, TestRequest};
use super::At;
use crate::routing::host::{HostPattern, is_authority};

pub(super) fn check(raw: &[raw::Test], domains: &[HostPattern], secure: bool, at: &At<'_>, report: &mut Report) -> Arc<[Test]> {
    let tests = raw.iter().enumerate().filter_map(|(index, test)| {
        let at = at.index(index);
        let request = request(test, domains, secure, &at, report)?;
        Some(Test { place: at.place(), request, expected: expected(test, &at, report)? })
    });
    tests.collect::<Vec<_>>().into()
}

fn request(test: &raw::Test, domains: &[HostPattern], secure: bool, at: &At<'_>, report: &mut Report) -> Option<TestRequest> {
    let methods = [
        ("get", Method::GET, &test.get),
        ("head", Method::HEAD, &test.head),
        ("post", Method::POST, &test.post),
        ("put", Method::PUT, &test.put),
        ("patch", Method::PATCH, &test.patch),
        ("delete", Method::DELETE, &test.delete),
        ("options", Method::OPTIONS, &test.options),
    ];
    let asked: Vec<_> = methods.into_iter().filter_map(|(key, method, url)| url.as_ref().map(|url| (key, method, url))).collect();
    let [(key, method, url)] = asked.as_slice() else {
        let message = if asked.is_empty() { "the test asks for nothing" } else { "a test has one request" };
        report.push(at.error(message).with_help("write `{ get: /path, group: NAME }`"));
        return None;
    };
    let (scheme, authority, target) = match url.split_once("://").filter(|_| !url.starts_with('/')) {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let (authority, target) = rest.split_at(end);
            (Some(scheme), Some(authority), if target.is_empty() { "/" } else { target })
        }
        None => (None, None, url.as_str()),
    };
    if !target.starts_with('/') || target.contains([' ', '#']) {
        report.push(at.key(key).error(format!("`{url}` is no path and no URL")).with_help("write `/path?query` or `https://host/path`"));
        return None;
    }
    let secure = match scheme.or(test.scheme.as_deref()) {
        None => secure,
        Some("https") => true,
        Some("http") => false,
        Some(other) => {
            report.push(at.key("scheme").error(format!("`{other}` is neither `http` nor `https`")));
            return None;
        }
    };
    let first = || domains.iter().find_map(|domain| if let HostPattern::Exact(name) = domain { Some(name.as_str()) } else { None });
    let host = authority.or(test.host.as_deref()).or_else(first);
    let Some(host) = host.filter(|host| is_authority(host.as_bytes())) else {
        report.push(at.error("the test needs a `host`: no domain of the site is a name by itself"));
        return None;
    };
    let from = match &test.from {
        None => TestRequest::SOMEBODY,
        Some(text) => match text.parse() {
            Ok(from) => from,
            Err(_) => {
                report.push(at.key("from").error(format!("`{text}` is no address")));
                return None;
            }
        },
    };
    let mut headers = HeaderMap::new();
    for (name, value) in &test.headers {
        match name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(&value.0).ok()) {
            Some((name, value)) => drop(headers.append(name, value)),
            None => report.push(at.key("headers").key(name).error(format!("`{name}` and its value are no header"))),
        }
    }
    let cookies: Vec<String> = test.cookies.iter().map(|(name, value)| format!("{name}={}", value.0)).collect();
    if !cookies.is_empty() {
        match HeaderValue::from_str(&cookies.join("; ")) {
            Ok(value) => drop(headers.append(COOKIE, value)),
            Err(_) => report.push(at.key("cookies").error("these are no cookies")),
        }
    }
    Some(TestRequest { method: method.clone(), secure, host: host.to_owned(), target: target.to_owned(), headers, from })
}

fn expected(test: &raw::Test, at: &At<'_>, report: &mut Report) -> Option<Expected> {
    let expected = Expected {
        group: test.group.clone(),
        route: test.route.clone(),
        user: test.user.clone(),
        app: test.app.clone(),
        path: test.path.clone(),
        status: test.status,
        location: test.location.clone(),
    };
    if expected == Expected::default() {
        let help = "add `group`, `route`, `user`, `app`, `path`, `status` or `location`";
        report.push(at.error("the test expects nothing").with_help(help));
        return None;
    }
    Some(expected)
}
