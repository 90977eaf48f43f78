//! Answers "why": which site, route, user, app, group and backends a request would meet, and which rules lost.
//!
//! It is asked of the files, loaded and compiled as for `run`, or of what a process has in force; the request is rehearsed by the
//! data path's own code.

mod losers;
mod text;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Serialize;
use time::OffsetDateTime;

use crate::balance::hand::Standing;
use crate::balance::state::Now;
use crate::config::origin::Origin;
use crate::config::places::user_place;
use crate::config::{self, Config, Listener};
use crate::health::{HealthChecks, probe_once};
use crate::proxy::rehearse::{Imagined, Outcome, Rehearsal, rehearse};
use crate::rewrite::headers::{HeaderEdit, Value};
use crate::rewrite::template::SECRET;
use crate::routing::conditions::cookies;
use crate::routing::host::{Captures, HostPattern, normalize_host};
use crate::routing::path;
use crate::snapshot::{Carry, Snapshot, compile};
use crate::tls;

/// What is asked.
pub struct Question {
    pub url: String,
    pub method: Method,
    /// `Name: value` each.
    pub headers: Vec<String>,
    /// `name=value` each.
    pub cookies: Vec<String>,
    pub from: IpAddr,
    /// The name in the handshake, where it is not the URL's.
    pub sni: Option<String>,
    /// The listener, by name.
    pub listener: Option<String>,
}

/// Who is asked.
pub struct Asked {
    pub snapshot: Arc<Snapshot>,
    pub listeners: Vec<Arc<Listener>>,
    pub users_files: Vec<PathBuf>,
    pub backends: Knowledge,
}

/// How it is known which backends could take the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// It is not.
    None,
    /// They are asked now, as a health check would.
    Probe,
    /// The process has asked them, and been told of them.
    Process,
}

/// The answer.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The configuration in force that was asked; otherwise it was the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    pub request: Request,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Named>,
    /// `forward`, `redirect`, `respond`, `refuse` or `drop`.
    pub outcome: &'static str,
    /// The word in the access log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// What the reason comes from, where it is not plain to see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Of an answer of our own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// The request as the backend gets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<Sent>,
    /// What is changed in the headers of the backend's answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answer_edits: Vec<String>,
    /// The backend that the client's cookie names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticks_to: Option<String>,
    pub backends: Vec<Backend>,
    /// Routes of the site that do not answer, those for the path first, and other sites whose domains match.
    pub lost: Vec<Loser>,
}

#[derive(Debug, Serialize)]
pub struct Request {
    pub method: String,
    pub url: String,
    pub listener: String,
    /// The client's address, after `trusted_proxies`.
    pub client: IpAddr,
    /// The connection counts as encrypted.
    pub secure: bool,
}

/// Something of the configuration and where it is said.
#[derive(Debug, Serialize)]
pub struct Named {
    pub name: String,
    pub origin: String,
}

#[derive(Debug, Serialize)]
pub struct Certificate {
    /// Files; empty: the handshake is refused.
    pub files: Vec<String>,
    pub preset: &'static str,
    pub details: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, Vec<String>>,
    pub body_bytes: usize,
}

#[derive(Debug, Serialize)]
pub struct Sent {
    pub method: String,
    pub target: String,
    pub host: String,
    pub added: BTreeMap<String, Vec<String>>,
    pub changed: BTreeMap<String, Vec<String>>,
    pub dropped: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Backend {
    pub name: String,
    pub address: String,
    pub weight: usize,
    pub backup: bool,
    /// `None`: nobody has asked.
    pub eligible: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Loser {
    pub route: String,
    pub origin: String,
    pub why: String,
}

impl Asked {
    /// What the files say, as a process would begin with them.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn files(config: Config, backends: Knowledge) -> Result<Self, String> {
        let users_files = config.users_files.clone();
        let listeners = config.listeners.iter().cloned().map(Arc::new).collect();
        let (health, _nobody) = HealthChecks::new();
        let tls = tls::Shared::new(tls::tickets::Tickets::new().map_err(|error| error.to_string())?);
        let carry = Carry { generation: 0, health: &health, tls: &tls, secret: b"", standing: &|_, _| Standing::Enabled };
        Ok(Self { snapshot: Arc::new(compile(config, &carry)), listeners, users_files, backends })
    }

    /// Explains what would become of a request.
    ///
    /// # Errors
    /// The question cannot be answered.
    pub fn explain(&self, question: &Question) -> Result<Explanation, String> {
        let snapshot = &self.snapshot;
        let (imagined, url) = imagine(question, &self.listeners, snapshot)?;
        let rehearsal = rehearse(snapshot.clone(), &imagined).map_err(|error| format!("no such request can be made: {error}"))?;
        let context = Context { snapshot, imagined: &imagined, rehearsal: &rehearsal };
        let generation = (self.backends == Knowledge::Process).then_some(snapshot.generation);
        let mut explanation = Explanation { generation, ..context.explanation(&url) };
        if explanation.certificate.as_ref().is_some_and(|certificate| certificate.files.is_empty()) {
            // No request ever gets through a handshake that is refused.
            let Explanation { request, certificate, .. } = explanation;
            let nothing = Explanation::nothing(request);
            return Ok(Explanation { generation, certificate, reason: Some("unknown_sni"), ..nothing });
        }
        if let Some(row) = rehearsal.user {
            let name = snapshot.rules.users.user_name(row);
            explanation.user = Some(Named { name: name.to_owned(), origin: self.origin_of_user(name) });
            if explanation.reason == Some("unknown_app") {
                explanation.note = context.why_unknown(name);
            }
        }
        match self.backends {
            Knowledge::None => {}
            Knowledge::Probe => context.probe(&mut explanation.backends)?,
            Knowledge::Process => {
                let sticks_to = explanation.sticks_to.clone();
                context.recall(&mut explanation.backends, sticks_to.as_deref());
            }
        }
        Ok(explanation)
    }

    fn origin_of_user(&self, name: &str) -> String {
        let place = || user_place(&self.users_files, name).map(|origin| origin.to_string()).unwrap_or_default();
        match self.snapshot.rules.users.row(name) {
            Some((Some(table), _)) if self.backends == Knowledge::Process => format!("managed table {table}"),
            // Without a process the rows of a managed table are those of its file.
            Some((Some(_), _)) => format!("{}, a seed: `--live` knows the row in force", place()),
            _ => place(),
        }
    }
}

impl Explanation {
    /// Nothing is known but what was asked.
    fn nothing(request: Request) -> Self {
        Self {
            generation: None,
            request,
            certificate: None,
            site: None,
            route: None,
            user: None,
            app: None,
            group: None,
            outcome: "drop",
            reason: None,
            note: None,
            answer: None,
            sent: None,
            answer_edits: Vec::new(),
            sticks_to: None,
            backends: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// As text for a person.
    pub fn render(&self) -> String {
        text::render(self)
    }
}

/// Writes the question down as a request.
fn imagine(question: &Question, listeners: &[Arc<Listener>], snapshot: &Snapshot) -> Result<(Imagined, String), String> {
    let whole = question.url.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?']));
    let (scheme, rest) = whole.unwrap_or(("https", question.url.as_str()));
    let secure = match scheme {
        "http" => false,
        "https" => true,
        other => return Err(format!("`{other}` is neither `http` nor `https`")),
    };
    if question.method == Method::CONNECT {
        return Err("CONNECT is answered with 405: this is no forward proxy".to_owned());
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    // Clients keep the fragment to themselves.
    let target = target.split('#').next().unwrap_or_default();
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    if !crate::routing::host::is_authority(authority.as_bytes()) || authority.is_empty() {
        return Err(format!("`{authority}` is no host: write `https://shop.example.com/path`"));
    }
    let host = normalize_host(authority).unwrap_or_default();
    let site = snapshot.rules.hosts.find(&host).and_then(|(site, _)| snapshot.site(site));
    let names = || listeners.iter().map(|listener| format!("`{}`", listener.name)).collect::<Vec<_>>().join(", ");
    let listener = match &question.listener {
        Some(name) => listeners
            .iter()
            .find(|listener| listener.name == *name)
            .ok_or_else(|| format!("no listener is named `{name}`: there are {}", names()))?,
        None => {
            let fits = |listener: &&Arc<Listener>| listener.tls == secure && site.is_none_or(|site| site.answers_on(&listener.name));
            let of_kind = |listener: &&Arc<Listener>| listener.tls == secure;
            let found = listeners.iter().find(fits).or_else(|| listeners.iter().find(of_kind));
            found.ok_or_else(|| format!("no listener takes {scheme}: there are {}", names()))?
        }
    };
    let mut headers = HeaderMap::new();
    let add = |headers: &mut HeaderMap, name: &str, value: &str| -> Result<(), String> {
        let name: HeaderName = name.trim().parse().map_err(|_| format!("`{name}` is no name of a header"))?;
        headers.append(name, HeaderValue::from_str(value.trim()).map_err(|_| format!("`{value}` is no value of a header"))?);
        Ok(())
    };
    add(&mut headers, "host", authority)?;
    for header in &question.headers {
        let (name, value) = header.split_once(':').ok_or_else(|| format!("`{header}`: write `Name: value`"))?;
        add(&mut headers, name, value)?;
    }
    if !question.cookies.is_empty() {
        add(&mut headers, "cookie", &question.cookies.join("; "))?;
    }
    let sni = question.sni.clone().unwrap_or_else(|| host.to_string());
    let imagined =
        Imagined { method: question.method.clone(), target: target.clone(), headers, from: question.from, listener: listener.clone(), sni };
    Ok((imagined, format!("{scheme}://{authority}{target}")))
}

/// What an explanation is made from.
struct Context<'a> {
    snapshot: &'a Snapshot,
    imagined: &'a Imagined,
    rehearsal: &'a Rehearsal,
}

impl Context<'_> {
    fn explanation(&self, url: &str) -> Explanation {
        let rehearsal = self.rehearsal;
        let site = rehearsal.site.and_then(|site| self.snapshot.site(site));
        let route = rehearsal.site.zip(rehearsal.route).and_then(|(site, route)| self.snapshot.route(site, route));
        let named = |name: &str, origin: &Origin| Named { name: name.to_owned(), origin: origin.to_string() };
        let forward = match &rehearsal.outcome {
            Outcome::Forward { forward, .. } => Some(forward),
            _ => None,
        };
        let group = forward.and_then(|forward| self.snapshot.checked.groups.get(forward.group.0 as usize));
        let (outcome, answer, sent) = self.outcome();
        Explanation {
            generation: None,
            request: Request {
                method: self.imagined.method.to_string(),
                url: url.to_owned(),
                listener: self.imagined.listener.name.clone(),
                client: rehearsal.client,
                secure: rehearsal.secure,
            },
            certificate: self.certificate(),
            site: site.map(|site| named(&site.config.name, &site.config.origin)),
            route: route.map(|route| named(&route.name, &route.origin)),
            user: None,
            app: forward.and_then(|forward| forward.app).map(|app| self.snapshot.rules.users.app_name(app).to_owned()),
            group: group.map(|group| named(&group.name, &group.origin)),
            outcome,
            reason: rehearsal.reason,
            note: None,
            answer_edits: if sent.is_some() { route.map(|route| edits(&route.response_headers)).unwrap_or_default() } else { Vec::new() },
            sticks_to: self.sticks_to(),
            answer,
            sent,
            backends: self.backends(),
            lost: self.losers(),
        }
    }

    fn outcome(&self) -> (&'static str, Option<Answer>, Option<Sent>) {
        match &self.rehearsal.outcome {
            Outcome::Drop => ("drop", None, None),
            Outcome::Answer { status, headers, body } => {
                let word = match self.rehearsal.reason {
                    Some("redirect") => "redirect",
                    Some("respond") => "respond",
                    _ => "refuse",
                };
                let mut headers = listed(headers);
                mask(&mut headers, &self.secret_answer_headers());
                (word, Some(Answer { status: *status, headers, body_bytes: body.len() }), None)
            }
            Outcome::Forward { target, headers, .. } => {
                let mut sent = Sent {
                    method: self.imagined.method.to_string(),
                    target: target.clone(),
                    host: headers.get("host").map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned()).unwrap_or_default(),
                    added: BTreeMap::new(),
                    changed: BTreeMap::new(),
                    dropped: Vec::new(),
                };
                let (before, mut after) = (listed(&self.imagined.headers), listed(headers));
                let site = self.rehearsal.site.and_then(|site| self.snapshot.site(site));
                mask(&mut after, site.map(|site| site.config.secret_headers.as_slice()).unwrap_or_default());
                for (name, values) in after {
                    match before.get(&name) {
                        None => drop(sent.added.insert(name, values)),
                        Some(old) if *old != values => drop(sent.changed.insert(name, values)),
                        Some(_) => {}
                    }
                }
                sent.dropped = before.into_keys().filter(|name| !headers.contains_key(name.as_str())).collect();
                ("forward", None, Some(sent))
            }
        }
    }

    /// Headers of our own answers whose values are secrets of the configuration, though clients do see them.
    fn secret_answer_headers(&self) -> Vec<HeaderName> {
        let route = self.rehearsal.site.zip(self.rehearsal.route).and_then(|(site, route)| self.snapshot.route(site, route));
        let Some(route) = route else { return Vec::new() };
        let (of_target, location): (&[HeaderEdit], _) = match &route.target {
            config::Target::Redirect(redirect) => (&[], redirect.to.secret.then_some(http::header::LOCATION)),
            config::Target::Respond(respond) => (&respond.headers, None),
            _ => (&[], None),
        };
        let secret = |edit: &HeaderEdit| match edit {
            HeaderEdit::Set { name, value } | HeaderEdit::Add { name, value } if value.is_secret() => Some(name.name.clone()),
            _ => None,
        };
        of_target.iter().chain(route.response_headers.iter()).filter_map(secret).chain(location).collect()
    }

    fn certificate(&self) -> Option<Certificate> {
        if !self.imagined.listener.tls {
            return None;
        }
        let rules = &self.snapshot.rules;
        let sni = normalize_host(&self.imagined.sni)?;
        let site = rules.site_for_sni(&sni, &self.imagined.listener.name);
        let none = |why: String| Certificate { files: Vec::new(), preset: "", details: vec![why] };
        let Some((preset, tls)) = site.and_then(|site| Some((site.config.tls.as_ref()?.preset, site.tls.as_ref()?))) else {
            return Some(none(format!("no site with a certificate has the name `{sni}`: the handshake is refused")));
        };
        let (loaded, table) = (tls.certificates.certificates(), tls.certificates.table());
        let chosen = table.find(&sni);
        let chosen = if chosen.is_empty() && tls.certificates.stands_for_all() { table.all() } else { chosen };
        if chosen.is_empty() {
            return Some(none(format!("no certificate of `certificates` is for `{sni}`: the handshake is refused")));
        }
        let found: Vec<_> = loaded.iter().filter(|loaded| chosen.iter().any(|key| Arc::ptr_eq(key, &loaded.key))).collect();
        let pattern = HostPattern::Exact(sni.into_owned());
        let details = found.iter().map(|loaded| {
            let covers = if loaded.facts.covers(&pattern) { "" } else { ", but not for this name" };
            let days = loaded.facts.days_left(OffsetDateTime::now_utc());
            format!(
                "{}, for {}{covers}, good until {} ({days} days)",
                loaded.facts.kind,
                loaded.facts.names.join(" "),
                loaded.facts.not_after.date()
            )
        });
        Some(Certificate {
            files: found.iter().map(|loaded| loaded.files.cert.display().to_string()).collect(),
            preset: preset.as_str(),
            details: details.collect(),
        })
    }

    fn backends(&self) -> Vec<Backend> {
        let Outcome::Forward { forward, .. } = &self.rehearsal.outcome else { return Vec::new() };
        let Some(group) = self.snapshot.group(forward.group) else { return Vec::new() };
        let backends = group.backends().iter().map(|backend| Backend {
            name: backend.name.clone(),
            address: backend.shown.clone(),
            weight: backend.weight,
            backup: backend.backup,
            eligible: None,
            why: None,
        });
        backends.collect()
    }

    /// Which app of the user is not placed, and by what it would be.
    fn why_unknown(&self, user: &str) -> Option<String> {
        let site = self.snapshot.site(self.rehearsal.site?)?;
        let route = site.config.routes.get(self.rehearsal.route? as usize)?;
        let path = path::normalize(self.imagined.target.split('?').next()?.as_bytes()).ok()?;
        let host = self.imagined.headers.get("host").and_then(|host| host.to_str().ok()).and_then(normalize_host)?;
        let of_host =
            self.snapshot.rules.hosts.find(&host).filter(|(site, _)| Some(*site) == self.rehearsal.site).map(|(_, captures)| captures);
        let of_host = of_host.unwrap_or_default();
        // The path is nearer than the host: its captures come first.
        let mut captures = Captures::new();
        route.pattern.capture(&path, &mut captures);
        captures.extend(of_host.iter().copied());
        let captured = captures.iter().find(|(name, _)| *name == "app").map(|(_, app)| path::decode(app).into_owned());
        let app = match &route.target {
            config::Target::Users(rule) => rule.app.clone().or(captured)?,
            _ => return None,
        };
        Some(match self.snapshot.rules.users.role_of(&app) {
            Some(role) => format!("{app} is placed by the role {role}, and {user} has a row for neither"),
            None => format!("{user} has no row for {app}, which has no role"),
        })
    }

    fn sticks_to(&self) -> Option<String> {
        let Outcome::Forward { forward, .. } = &self.rehearsal.outcome else { return None };
        let group = self.snapshot.group(forward.group)?;
        let stickiness = group.stickiness.as_ref()?;
        let value = cookies(&self.imagined.headers, &stickiness.cookie).next()?;
        let named = stickiness.backend(&value).and_then(|backend| group.backend(backend));
        Some(named.map_or_else(|| "its cookie names no backend of this group".to_owned(), |backend| backend.name.clone()))
    }

    /// Tells what the process knows of the backends.
    fn recall(&self, backends: &mut [Backend], sticks_to: Option<&str>) {
        let Outcome::Forward { forward, .. } = &self.rehearsal.outcome else { return };
        let Some(group) = self.snapshot.group(forward.group) else { return };
        let now = Now::read();
        for (backend, known) in backends.iter_mut().zip(group.backends()) {
            let (eligible, why) = match known.hand.standing() {
                Standing::Disabled => (false, "disabled by an operator"),
                Standing::Draining if !known.state.is_eligible(now) => (false, "draining, and unhealthy"),
                Standing::Draining if sticks_to == Some(known.name.as_str()) => (true, "draining, but this client sticks to it"),
                Standing::Draining => (false, "draining: only clients that stick to it get there"),
                Standing::Enabled if !known.state.is_healthy() => (false, "unhealthy"),
                Standing::Enabled if !known.state.is_eligible(now) => (false, "it refuses connections: left alone for a moment"),
                Standing::Enabled => (true, "healthy"),
            };
            (backend.eligible, backend.why) = (Some(eligible), Some(why.to_owned()));
        }
    }

    /// Asks the backends how they are, as a health check would.
    fn probe(&self, backends: &mut [Backend]) -> Result<(), String> {
        let Outcome::Forward { forward, .. } = &self.rehearsal.outcome else { return Ok(()) };
        let Some((group, checked)) = self.snapshot.group(forward.group).zip(self.snapshot.checked.groups.get(forward.group.0 as usize))
        else {
            return Ok(());
        };
        // Without health checks a connection is all that a request needs.
        let check = checked.health_check.clone().unwrap_or_else(|| checked.tcp_check(Duration::from_secs(2)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        for (backend, known) in backends.iter_mut().zip(group.backends()) {
            let probe = runtime.block_on(probe_once(&check, &known.address, &known.host));
            (backend.eligible, backend.why) = match probe {
                Ok(()) => (Some(true), None),
                Err(why) => (Some(false), Some(why)),
            };
        }
        Ok(())
    }
}

/// Edits as they are written.
fn edits(edits: &[HeaderEdit]) -> Vec<String> {
    let shown = |value: &Value| match value {
        value if value.is_secret() => SECRET.to_owned(),
        Value::Fixed { value, .. } => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        Value::Filled(template) => template.to_string(),
    };
    let edit = |edit: &HeaderEdit| match edit {
        HeaderEdit::Rename { from, to } => format!("rename {from} to {}", to.name),
        HeaderEdit::Remove(name) => format!("remove {name}"),
        HeaderEdit::Set { name, value } => format!("set {}: {}", name.name, shown(value)),
        HeaderEdit::Add { name, value } => format!("add {}: {}", name.name, shown(value)),
    };
    edits.iter().map(edit).collect()
}

/// Secrets are not shown.
fn mask(headers: &mut BTreeMap<String, Vec<String>>, names: &[HeaderName]) {
    for name in names {
        if let Some(values) = headers.get_mut(name.as_str()) {
            *values = vec![SECRET.to_owned()];
        }
    }
}

fn listed(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut listed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        listed.entry(name.to_string()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    listed
}
