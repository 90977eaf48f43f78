//! An explanation as text: one fact on each line, with the place that says so.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Explanation, Named};

pub(super) fn render(explanation: &Explanation) -> String {
    let mut text = Text(String::new());
    if let Some(generation) = explanation.generation {
        text.line("generation", &format!("{generation}, in force"));
    }
    let request = &explanation.request;
    let secure = if request.secure { "encrypted" } else { "plain" };
    text.line(&request.method, &format!("{}  ({secure}, from {}, on listener {})", request.url, request.client, request.listener));
    if let Some(certificate) = &explanation.certificate {
        for (file, detail) in certificate.files.iter().zip(&certificate.details) {
            text.line("certificate", &format!("{file}: {detail} (preset {})", certificate.preset));
        }
        if certificate.files.is_empty() {
            text.line("certificate", &certificate.details.join("; "));
        }
    }
    let named = |text: &mut Text, what: &str, named: Option<&Named>| {
        if let Some(Named { name, origin }) = named {
            text.line(what, &format!("{name}  ({origin})"));
        }
    };
    named(&mut text, "site", explanation.site.as_ref());
    named(&mut text, "route", explanation.route.as_ref());
    named(&mut text, "user", explanation.user.as_ref());
    if let Some(app) = &explanation.app {
        text.line("app", app);
    }
    named(&mut text, "group", explanation.group.as_ref());
    outcome(&mut text, explanation);
    if let Some(note) = &explanation.note {
        text.line("because", note);
    }
    for edit in &explanation.answer_edits {
        text.line("answer", edit);
    }
    if let Some(backend) = &explanation.sticks_to {
        text.line("sticky", backend);
    }
    for backend in &explanation.backends {
        let state = match (backend.eligible, &backend.why) {
            (Some(true), None) => "eligible: a probe succeeded just now".to_owned(),
            (Some(true), Some(why)) => format!("eligible: {why}"),
            (Some(false), why) => format!("not eligible: {}", why.as_deref().unwrap_or("a probe failed just now")),
            (None, _) => "not probed".to_owned(),
        };
        let backup = if backend.backup { ", backup" } else { "" };
        text.line("backend", &format!("{} at {}, weight {}{backup}: {state}", backend.name, backend.address, backend.weight));
    }
    for lost in &explanation.lost {
        text.line("lost", &format!("{}  ({}): {}", lost.route, lost.origin, lost.why));
    }
    text.0
}

fn outcome(text: &mut Text, explanation: &Explanation) {
    let reason =
        explanation.reason.filter(|reason| *reason != explanation.outcome).map(|reason| format!(" ({reason})")).unwrap_or_default();
    match (&explanation.answer, &explanation.sent) {
        (Some(answer), _) => {
            let location = answer.headers.get("location").map(|location| format!(" to {}", location.join(", "))).unwrap_or_default();
            text.line(explanation.outcome, &format!("{}{location}{reason}, {} bytes", answer.status, answer.body_bytes));
            text.headers("header", &answer.headers);
        }
        (None, Some(sent)) => {
            text.line("sent as", &format!("{} {}  (Host: {})", sent.method, sent.target, sent.host));
            text.headers("added", &sent.added);
            text.headers("changed", &sent.changed);
            for name in &sent.dropped {
                text.line("dropped", name);
            }
        }
        (None, None) => text.line(explanation.outcome, &format!("the connection is closed without an answer{reason}")),
    }
}

struct Text(String);

impl Text {
    fn line(&mut self, what: &str, value: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{what:<12} {value}");
    }

    fn headers(&mut self, what: &str, headers: &BTreeMap<String, Vec<String>>) {
        for (name, values) in headers {
            for value in values {
                self.line(what, &format!("{name}: {value}"));
            }
        }
    }
}
