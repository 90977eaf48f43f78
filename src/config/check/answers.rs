//! Checks answers without a backend: redirects, fixed answers, maintenance and error pages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use super::super::diagnostic::Report;
use super::super::raw::{self, Short};
use super::super::source::{read_limited_bytes, relative_to};
use super::super::{ErrorPages, Maintenance, Redirect, Respond, RespondBody};
use super::{At, edits, nets};
use crate::rewrite::headers::HeaderEdit;

/// A file that is answered with is held in memory.
const MAX_FILE: u64 = 1 << 20;

const RETRY_AFTER: Duration = Duration::from_secs(300);

pub(super) fn redirect(raw: &Short<raw::Redirect>, captures: &[&str], at: &At<'_>, report: &mut Report) -> Option<Redirect> {
    let (to, status, place) = match raw {
        Short::Word(to) => (to, None, at.clone()),
        Short::Long(long) => (&long.to, long.status, at.key("to")),
        Short::Switch(_) => {
            report.push(at.error("`redirect` is a URL or path").with_help("write `redirect: \"https://new.example.com{path}\"`"));
            return None;
        }
    };
    if let Some(status) = status
        && !matches!(status, 301 | 302 | 303 | 307 | 308)
    {
        report.push(at.key("status").error(format!("`{status}` is no redirect: 301, 302, 303, 307 or 308")));
    }
    // nginx's way round.
    if let Some((code, rest)) = to.split_once(' ')
        && code.parse::<u16>().is_ok()
    {
        report.push(
            place
                .error(format!("`{to}` is no URL and no path"))
                .with_help(format!("write `redirect: {{ to: \"{rest}\", status: {code} }}`")),
        );
        return None;
    }
    let good = to.starts_with('/') || to.starts_with("http://") || to.starts_with("https://") || to.starts_with('{');
    if !good || to.bytes().any(|byte| !byte.is_ascii_graphic()) {
        report
            .push(place.error(format!("`{to}` is no URL and no path")).with_help("write `https://new.example.com{path}` or `/new{path}`"));
        return None;
    }
    match edits::template(to, captures, &place, report) {
        Ok(to) => Some(Redirect { to, status }),
        Err(why) => {
            report.push(place.error(why));
            None
        }
    }
}

pub(super) fn respond(raw: &Short<raw::Respond>, captures: &[&str], from: &Path, at: &At<'_>, report: &mut Report) -> Option<Respond> {
    let long = match raw {
        Short::Word(word) => match word.parse() {
            Ok(status) => raw::Respond { status: Some(status), headers: BTreeMap::new(), body: None, file: None },
            Err(_) => {
                report.push(at.error(format!("`{word}` is no status")).with_help("write `respond: 204`, or `respond: { body: TEXT }`"));
                return None;
            }
        },
        Short::Long(long) => long.clone(),
        Short::Switch(_) => {
            report.push(at.error("`respond` is a status or a mapping").with_help("write `respond: 204`, or `respond: { body: TEXT }`"));
            return None;
        }
    };
    let status = long.status.unwrap_or(200);
    if !(200..=599).contains(&status) {
        report.push(at.key("status").error(format!("`{status}` is no status of an answer: 200 to 599")));
    }
    if long.body.is_some() && long.file.is_some() {
        report.push(at.key("file").error("`body` and `file` exclude each other"));
    }
    if matches!(status, 204 | 205 | 304) && (long.body.is_some() || long.file.is_some()) {
        report.push(at.key("status").error(format!("an answer with status {status} has no body")));
    }
    let headers = edits::values(&long.headers, captures, &at.key("headers"), report);
    if matches!(status, 301 | 302 | 303 | 307 | 308) && !headers.iter().any(|(name, _)| name.name == http::header::LOCATION) {
        report.push(
            at.key("status")
                .error(format!("a {status} without `Location` leads nowhere"))
                .with_help("write `redirect: { to: URL, status: … }`"),
        );
    }
    let body = match (&long.body, &long.file) {
        (Some(text), _) => match edits::template(text, captures, &at.key("body"), report) {
            Ok(template) => RespondBody::Text(template),
            Err(why) => {
                report.push(at.key("body").error(why));
                RespondBody::Empty
            }
        },
        (None, Some(file)) => {
            let path = relative_to(from, file);
            match read_limited_bytes(&path, MAX_FILE) {
                Ok(content) => RespondBody::File { content: Bytes::from(content), content_type: content_type(&path), path },
                Err(why) => {
                    report.push(at.key("file").error(format!("{}: {why}", path.display())));
                    RespondBody::Empty
                }
            }
        }
        (None, None) => RespondBody::Empty,
    };
    let headers = headers.into_iter().map(|(name, value)| HeaderEdit::Set { name, value }).collect();
    Some(Respond { status: StatusCode::from_u16(status).unwrap_or(StatusCode::OK), headers, body })
}

/// The types of what is usually answered with; anything else is handed over as bytes.
fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|ending| ending.to_str()).unwrap_or_default() {
        "html" | "htm" => "text/html; charset=utf-8",
        "txt" => "text/plain; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "pdf" => "application/pdf",
        _ => "application/octet-stream",
    }
}

pub(super) fn maintenance(raw: Option<&Short<raw::Maintenance>>, from: &Path, at: &At<'_>, report: &mut Report) -> Option<Maintenance> {
    let long = match raw? {
        Short::Switch(false) => return None,
        Short::Switch(true) => raw::Maintenance::default(),
        Short::Long(long) => long.clone(),
        Short::Word(word) => {
            let help = "write `maintenance: true`, or `maintenance: { page: FILE, allow: [192.0.2.7] }`";
            report.push(at.error(format!("`{word}` says nothing here")).with_help(help));
            return None;
        }
    };
    let allow = nets(&long.allow.0, &at.key("allow"), report);
    let page_file = long.page.as_ref().map(|page| relative_to(from, page));
    let page = page_file.as_ref().and_then(|page| self::page(page, &at.key("page"), report));
    Some(Maintenance { allow, retry_after: long.retry_after.map_or(RETRY_AFTER, |time| time.0), page, page_file })
}

/// The pages of a scope, in front of those of the wider one.
pub(super) fn error_pages(
    raw: &BTreeMap<String, PathBuf>,
    details: Option<bool>,
    wider: &ErrorPages,
    from: &Path,
    at: &At<'_>,
    report: &mut Report,
) -> ErrorPages {
    let mut pages = ErrorPages { pages: Vec::new(), files: Vec::new(), details: details.unwrap_or(wider.details) };
    for (key, file) in raw {
        let at = at.key("error_pages").key(key);
        let is_status = key.parse().is_ok_and(|status: u16| (400..=599).contains(&status));
        if !is_status && !matches!(key.as_str(), "4xx" | "5xx" | "default") {
            report.push(at.error(format!("`{key}` is no error: write a status from 400 to 599, `4xx`, `5xx` or `default`")));
            continue;
        }
        let path = relative_to(from, file);
        if let Some(page) = page(&path, &at, report) {
            pages.pages.push((key.clone(), page));
            pages.files.push((key.clone(), path));
        }
    }
    let missing = |list: &[(String, PathBuf)], key: &str| !list.iter().any(|(known, _)| known == key);
    for ((key, page), (_, file)) in wider.pages.iter().zip(&wider.files) {
        if missing(&pages.files, key) {
            pages.pages.push((key.clone(), page.clone()));
            pages.files.push((key.clone(), file.clone()));
        }
    }
    pages
}

fn page(path: &Path, at: &At<'_>, report: &mut Report) -> Option<Arc<str>> {
    let text = read_limited_bytes(path, MAX_FILE).and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text".to_owned()));
    match text {
        Ok(text) => Some(text.into()),
        Err(why) => {
            report.push(at.error(format!("{}: {why}", path.display())));
            None
        }
    }
}
