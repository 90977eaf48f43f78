//! The paths of the admin socket, and what each does.
//!
//! Answers are JSON; what went wrong is a problem document (RFC 9457). Times are seconds since 1970.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::asked::{Asked, ExplainBody, ReloadBody, RollbackBody, StandingBody, SwitchBody, UpgradeBody, UserBody, decode};
use super::{metrics, status};
use crate::balance::hand::Standing;
use crate::config::diagnostic::{Place, Report, Severity};
use crate::explain::{self, Knowledge};
use crate::lifecycle::control::{CommandError, Control};
use crate::lifecycle::drain::Held;
use crate::lifecycle::readiness::{Readiness, Stage};
use crate::lifecycle::reload::{Outcome, Told};
use crate::lifecycle::upgrade::Upgrades;
use crate::lifecycle::users::{Table, User};
use crate::persist::BackendRecord;

/// A users file of an import may be as large as any.
const MAX_IMPORT: usize = 1 << 30;
/// Other bodies are a few words.
const MAX_BODY: usize = 1 << 20;
/// Whoever follows the readiness hears something this often, or knows that the process is stuck.
const SPEAK: Duration = Duration::from_secs(1);
/// Users in one answer.
const MAX_PAGE: usize = 10_000;

/// Seconds that a configuration may wait for its confirmation.
const LONGEST_CONFIRM: u64 = 30 * 86_400;

type Body = BoxBody<Bytes, Infallible>;
type Answer = Result<Value, CommandError>;

/// Who asks.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A process on the socket that may, described for the log.
    Peer(String),
    /// A process on the socket that may not.
    Stranger,
    /// Somebody on the plain address.
    Anybody,
}

/// What answers.
pub struct Api {
    pub control: Arc<Control>,
    pub readiness: Arc<Readiness>,
    pub upgrades: Arc<Upgrades>,
    /// The process does not end before an upgrade is answered.
    pub drain: Arc<crate::proxy::Shared>,
    pub stop: Arc<Notify>,
    pub started: Instant,
}

impl Api {
    /// Answers one request. What is put into `held` keeps the process until the answer is on its way.
    pub async fn answer(self: Arc<Self>, request: Request<Incoming>, caller: Caller, held: &Mutex<Option<Held>>) -> Response<Body> {
        let path = request.uri().path().trim_end_matches('/').to_owned();
        if let (&Method::GET | &Method::HEAD, "/livez" | "/readyz" | "/healthz") = (request.method(), path.as_str()) {
            let follows = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "follow"));
            return match (path.as_str(), follows, &caller) {
                ("/livez", ..) => text(StatusCode::OK, "ok\n"),
                (_, true, Caller::Peer(_)) => self.follow(),
                _ => self.ready(),
            };
        }
        if let (&Method::GET, "/metrics", Caller::Peer(_) | Caller::Anybody) = (request.method(), path.as_str(), &caller) {
            return respond(StatusCode::OK, metrics::CONTENT_TYPE, metrics::text(&self.control, self.readiness.stage()));
        }
        let by = match caller {
            Caller::Peer(by) => by,
            Caller::Stranger => return problem(StatusCode::FORBIDDEN, "this process may not use the admin socket"),
            Caller::Anybody => return problem(StatusCode::NOT_FOUND, "only /livez, /readyz and /metrics are answered here"),
        };
        let (parts, body) = request.into_parts();
        if let (&Method::PUT, Some(table)) = (&parts.method, path.strip_prefix("/v1/tables/")) {
            // Before a large body is taken in for nothing.
            let (table, snapshot) = (decode(table), self.control.snapshot());
            if table != "-" && !snapshot.rules.users.managed().any(|own| own == table) {
                return problem(StatusCode::NOT_FOUND, &format!("no managed table is named `{table}`"));
            }
        }
        let limit = if parts.method == Method::PUT { MAX_IMPORT } else { MAX_BODY };
        let Ok(body) = Limited::new(body, limit).collect().await.map(|body| body.to_bytes()) else {
            return problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or did not come");
        };
        let segments: Vec<String> = path.trim_start_matches('/').split('/').map(decode).collect();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let asked = Asked { method: parts.method, segments, query, body, by };
        if asked.is("POST", &["v1", "stop"]) {
            *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.drain.drain.hold());
        }
        if asked.is("POST", &["v1", "upgrade"]) {
            *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.drain.drain.hold());
            return answered(self.upgrade(&asked).await);
        }
        // Reading files, resolving names and writing state block.
        let api = self.clone();
        match tokio::task::spawn_blocking(move || api.route(&asked)).await {
            Ok(response) => response,
            Err(_) => problem(StatusCode::INTERNAL_SERVER_ERROR, "the command failed by a bug; the log has it"),
        }
    }

    fn route(&self, asked: &Asked) -> Response<Body> {
        let segments: Vec<&str> = asked.segments.iter().map(String::as_str).collect();
        let control = &self.control;
        let by = asked.by.as_str();
        if let Err(error) = asked.parameters(parameters(asked.method.as_str(), &segments)) {
            return failed(&error);
        }
        match (asked.method.as_str(), segments.as_slice()) {
            ("GET", ["v1", "status"]) => ok(&status::status(control, self.readiness.stage(), self.started)),
            ("POST", ["v1", "reload"]) => match asked.json::<ReloadBody>() {
                Ok(body) if body.confirm_seconds.is_some_and(|seconds| !(1..=LONGEST_CONFIRM).contains(&seconds)) => {
                    failed(&CommandError::Invalid("the time to confirm is from 1s to 30d".to_owned()))
                }
                Ok(body) => told(control.reload(&body.into_reload(by))),
                Err(error) => failed(&error),
            },
            ("POST", ["v1", "confirm"]) => {
                answered(control.confirm(by).map(|applied| json!({ "generation": applied.generation, "digest": applied.digest })))
            }
            ("GET", ["v1", "generations"]) => answered(status::generations(control)),
            ("POST", ["v1", "rollback"]) => match asked.json::<RollbackBody>() {
                Ok(body) => told(control.rollback(by, body.generation)),
                Err(error) => failed(&error),
            },
            ("GET", ["v1", "tables"]) => {
                answered(control.tables().map(|tables| json!({ "tables": tables.iter().map(table_json).collect::<Vec<_>>() })))
            }
            ("PUT", ["v1", "tables", name]) => answered(self.import(asked, name)),
            ("GET", ["v1", "users"]) => answered(self.users(asked)),
            ("GET", ["v1", "users", name]) => match control.user(name) {
                Some(user) => ok(&user_json(&user)),
                None => failed(&CommandError::NotFound(format!("there is no user `{name}`"))),
            },
            ("PATCH", ["v1", "users", name]) => answered(self.set_user(asked, name)),
            ("DELETE", ["v1", "users", name]) => {
                answered(control.remove_user(by, asked.query_value("table").as_deref(), name).map(|user| user_json(&user)))
            }
            ("GET", ["v1", "backends"]) => ok(&json!({ "backend_groups": status::groups(control, None, usize::MAX) })),
            ("GET", ["v1", "backends", group]) if !control.snapshot().groups.iter().any(|own| own.name == *group) => {
                failed(&CommandError::NotFound(format!("no backend group is named `{group}`")))
            }
            ("GET", ["v1", "backends", group]) => ok(&json!({ "backend_groups": status::groups(control, Some(group), usize::MAX) })),
            ("POST", ["v1", "backends", group, backend]) => answered(self.set_standing(asked, group, backend)),
            ("POST", ["v1", "sites", site, "switch"]) => answered(self.switch(asked, site)),
            ("POST", ["v1", "explain"]) => answered(self.explain(asked)),
            ("POST", ["v1", "stop"]) if self.readiness.stage() == Stage::Stopping => {
                failed(&CommandError::Conflict("it is stopping already; a second signal cuts what is open".to_owned()))
            }
            ("POST", ["v1", "stop"]) => {
                log::info!("told to stop by {by}");
                self.stop.notify_one();
                ok(&json!({ "stopping": true }))
            }
            (_, path) => match allowed(path) {
                Some(methods) => {
                    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, &format!("{methods} only"));
                    response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(methods));
                    response
                }
                None => problem(StatusCode::NOT_FOUND, "there is no such path; the manual has them all"),
            },
        }
    }

    async fn upgrade(&self, asked: &Asked) -> Answer {
        let body: UpgradeBody = asked.json()?;
        let timeout = body.timeout_seconds.map(Duration::from_secs);
        let pid = self.upgrades.upgrade(&asked.by, body.binary, timeout).await?;
        Ok(json!({ "pid": pid }))
    }

    fn explain(&self, asked: &Asked) -> Answer {
        let question = asked.json::<ExplainBody>()?.into_question()?;
        let listeners = self.control.listeners().seen().into_iter().map(|seen| seen.listener).collect();
        let users_files = self.control.settings().users_files.clone();
        let process = explain::Asked { snapshot: self.control.snapshot(), listeners, users_files, backends: Knowledge::Process };
        let explanation = process.explain(&question).map_err(CommandError::Invalid)?;
        Ok(json!({ "text": explanation.render(), "explanation": explanation }))
    }

    fn import(&self, asked: &Asked, name: &str) -> Answer {
        let version = match (asked.query_value("version"), asked.query_value("force").as_deref()) {
            (None, Some("true")) => None,
            (Some(text), None) => Some(text.parse().map_err(|_| CommandError::Invalid(format!("`{text}` is no version")))?),
            _ => {
                let why = "which version does it replace? Either `version=N` (`GET /v1/tables` tells it), or `force=true` for any";
                return Err(CommandError::Invalid(why.to_owned()));
            }
        };
        let table = Some(name).filter(|name| *name != "-");
        self.control.import_users(&asked.by, table, asked.body.clone(), version).map(|table| table_json(&table))
    }

    fn users(&self, asked: &Asked) -> Answer {
        let limit = match asked.query_value("limit") {
            None => MAX_PAGE,
            Some(text) => match text.parse::<usize>() {
                Ok(limit @ 1..) => limit.min(MAX_PAGE),
                _ => return Err(CommandError::Invalid(format!("`{text}` is no limit"))),
            },
        };
        let after = asked.query_value("after").unwrap_or_default();
        let users = self.control.users(asked.query_value("table").as_deref(), &after, limit)?;
        let next = (users.len() == limit).then(|| users.last().map(|user| user.name.clone())).flatten();
        Ok(json!({ "users": users.iter().map(user_json).collect::<Vec<_>>(), "next": next }))
    }

    fn set_user(&self, asked: &Asked, name: &str) -> Answer {
        let body = asked.json::<UserBody>()?;
        let placed: Vec<_> = body.placements.into_iter().collect();
        let (user, is_new) = self.control.set_user(&asked.by, body.table.as_deref(), name, &placed)?;
        let mut answer = user_json(&user);
        if let Value::Object(fields) = &mut answer {
            fields.insert("is_new".to_owned(), Value::Bool(is_new));
        }
        Ok(answer)
    }

    fn set_standing(&self, asked: &Asked, group: &str, backend: &str) -> Answer {
        let body = asked.json::<StandingBody>()?;
        let BackendRecord { state, by, time } = self.control.set_standing(&asked.by, group, backend, body.state)?;
        let warning = (state != Standing::Enabled).then(|| status::without_backend(&self.control, group)).flatten();
        Ok(json!({ "group": group, "backend": backend, "state": state, "by": by, "since": time, "warning": warning }))
    }

    fn switch(&self, asked: &Asked, site: &str) -> Answer {
        let body = asked.json::<SwitchBody>()?;
        let before = self.control.switch(&asked.by, site, &body.active)?;
        let group = status::group_of_switch(&self.control, site);
        let warning = group.and_then(|group| status::without_backend(&self.control, &group));
        Ok(json!({ "site": site, "active": body.active, "before": before, "warning": warning }))
    }

    // === Readiness ===

    fn ready(&self) -> Response<Body> {
        let (status, line) = readiness_line(self.readiness.stage());
        let mut response = text(status, &line);
        response.headers_mut().insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
        response
    }

    /// Whether another process answers those who connect now.
    pub fn has_handed_over(&self) -> bool {
        self.readiness.stage() == Stage::HandedOver
    }

    /// A line now, one at each change and one every second, until the process ends.
    fn follow(&self) -> Response<Body> {
        let mut stages = self.readiness.watch();
        // The first look is at once.
        stages.mark_changed();
        let lines = stream::unfold(stages, |mut stages| async move {
            if let Ok(changed) = timeout(SPEAK, stages.changed()).await {
                changed.ok()?;
            }
            let stage = *stages.borrow_and_update();
            if stage == Stage::HandedOver {
                // Whoever follows asks again, and finds the process that has taken over.
                return None;
            }
            let line = readiness_line(stage).1;
            Some((Ok(Frame::data(Bytes::from(line))), stages))
        });
        Response::new(BodyExt::boxed(StreamBody::new(lines)))
    }
}

/// What `/readyz` says of a stage.
fn readiness_line(stage: Stage) -> (StatusCode, String) {
    match stage.reason() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        // Whoever asks on a connection from before: what is asked about is served.
        Some(reason) if stage == Stage::HandedOver => (StatusCode::OK, format!("ready: {reason}\n")),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

/// Which parameters a request takes.
fn parameters(method: &str, path: &[&str]) -> &'static [&'static str] {
    match (method, path) {
        ("PUT", ["v1", "tables", _]) => &["version", "force"],
        ("GET", ["v1", "users"]) => &["table", "after", "limit"],
        ("DELETE", ["v1", "users", _]) => &["table"],
        _ => &[],
    }
}

/// Which methods a path takes.
fn allowed(path: &[&str]) -> Option<&'static str> {
    Some(match path {
        ["v1", "status" | "generations" | "tables" | "users"] | ["v1", "backends"] | ["v1", "backends", _] => "GET",
        ["v1", "reload" | "confirm" | "rollback" | "explain" | "stop" | "upgrade"]
        | ["v1", "backends", _, _]
        | ["v1", "sites", _, "switch"] => "POST",
        ["v1", "tables", _] => "PUT",
        ["v1", "users", _] => "GET, PATCH, DELETE",
        _ => return None,
    })
}

// === Answers ===

fn user_json(user: &User) -> Value {
    let placements: serde_json::Map<String, Value> =
        user.row.iter().map(|(word, group)| (word.clone(), Value::String(group.clone()))).collect();
    json!({ "user": user.name, "table": user.table, "placements": placements })
}

fn table_json(table: &Table) -> Value {
    json!({ "table": table.name, "version": table.version, "users": table.users })
}

fn told(result: Result<Told, CommandError>) -> Response<Body> {
    let told = match result {
        Ok(told) => told,
        Err(error) => return failed(&error),
    };
    let (status, word) = match told.outcome {
        Outcome::Applied => (StatusCode::OK, "applied"),
        Outcome::InPart => (StatusCode::OK, "in_part"),
        Outcome::Refused => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
    };
    let broken = told.broken.iter().map(|broken| json!({ "site": broken.name, "text": broken.tell() }));
    let value = json!({
        "result": word,
        "generation": told.generation,
        "digest": told.digest,
        "changes": told.changes,
        "broken_sites": broken.collect::<Vec<_>>(),
        "needs_upgrade": told.needs_upgrade,
        "needs_restart": told.needs_restart,
        "pending": told.pending,
        "is_kept": told.is_kept,
        "diagnostics": diagnostics(&told.report),
        "text": told.report.render(false),
    });
    respond(status, "application/json", value.to_string())
}

/// Diagnostics as `check --format json` has them.
pub fn diagnostics(report: &Report) -> Vec<Value> {
    let place = |place: &Place| {
        let (line, column) = place.line_and_column();
        json!({ "file": place.source.path, "line": line, "column": column })
    };
    let diagnostics = report.iter().map(|diagnostic| {
        json!({
            "severity": if diagnostic.severity == Severity::Error { "error" } else { "warning" },
            "message": diagnostic.message,
            "place": diagnostic.place.as_ref().map(place),
            "related": diagnostic.related.as_ref().map(|(at, label)| json!({ "message": label, "place": place(at) })),
            "help": diagnostic.help,
        })
    });
    diagnostics.collect()
}

fn answered(answer: Answer) -> Response<Body> {
    match answer {
        Ok(value) => ok(&value),
        Err(error) => failed(&error),
    }
}

fn failed(error: &CommandError) -> Response<Body> {
    let status = match error {
        CommandError::NotFound(_) => StatusCode::NOT_FOUND,
        CommandError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        CommandError::Conflict(_) => StatusCode::CONFLICT,
        CommandError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    problem(status, &error.to_string())
}

fn ok(value: &Value) -> Response<Body> {
    respond(StatusCode::OK, "application/json", value.to_string())
}

fn problem(status: StatusCode, detail: &str) -> Response<Body> {
    let value = json!({ "status": status.as_u16(), "title": status.canonical_reason(), "detail": detail });
    respond(status, "application/problem+json", value.to_string())
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", text.to_owned())
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(BodyExt::boxed(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}
