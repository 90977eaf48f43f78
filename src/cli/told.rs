//! What the running process answers, written down for people.

#![expect(clippy::indexing_slicing, reason = "JSON that lacks a key has null there")]

use std::fmt::Write as _;

use serde_json::Value;
use time::OffsetDateTime;

use super::plural;

/// The state of the process.
pub(super) fn status(status: &Value) -> String {
    let config = &status["config"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut out = format!(
        "portcullis {}  {}, pid {}, up {}\n",
        text(&status["version"]),
        text(&status["state"]),
        status["pid"],
        span(status["uptime_seconds"].as_u64().unwrap_or_default()),
    );
    let back = &config["rolled_back_to"];
    let back = if back.is_null() { String::new() } else { format!(", back to {back}") };
    let _ = writeln!(
        out,
        "configuration    generation {} ({}){back}, since {}, by {}",
        config["generation"],
        text(&config["digest"]),
        moment(&config["time"]),
        text(&config["by"]),
    );
    if !config["pending"].is_null() {
        let pending = &config["pending"];
        let _ = writeln!(out, "unconfirmed      generation {} comes back at {}", pending["former"], moment(&pending["until"]));
    }
    if !config["last_refusal"].is_null() {
        let refusal = &config["last_refusal"];
        let _ = writeln!(out, "refused          at {}: {}", moment(&refusal["time"]), text(&refusal["why"]));
    }
    if config["is_kept"] == false {
        out.push_str("not kept         there is no way back to this configuration: the state directory cannot be written\n");
    }
    for listener in rows(&status["listeners"]) {
        let tls = if listener["tls"] == true { ", TLS" } else { "" };
        let _ = writeln!(out, "listener         {}{tls}, {} connections", text(&listener["address"]), listener["connections"]);
    }
    let _ = writeln!(out, "sites            {} good", status["sites"]["good"]);
    for broken in rows(&status["sites"]["broken"]) {
        let trouble = if broken["trouble"] == "file_gone" { "its file is gone" } else { "errors" };
        let state = if broken["state"] == "left_out" { "answers 503" } else { "its last good version is in force" };
        let _ = writeln!(out, "  {}: {trouble}; {state} ({})", text(&broken["site"]), text(&broken["file"]));
    }
    let _ = writeln!(out, "users            {}", status["users"]);
    for table in texts(&status["users_tables_out_of_force"]) {
        let _ = writeln!(out, "  the table {table} is kept, but no users file names it: its users are not in force");
    }
    let (mut all, mut eligible) = (0, 0);
    for backend in rows(&status["backend_groups"]).flat_map(|group| rows(&group["backends"])) {
        all += 1;
        eligible += usize::from(backend["eligible"] == true);
    }
    let _ = writeln!(out, "backends         {eligible} of {all} eligible");
    let troubled = backends(&status["backend_groups"], |backend| backend["eligible"] == false);
    out.extend(troubled.lines().map(|line| format!("  {line}\n")));
    for switch in rows(&status["switches"]) {
        let by =
            switch["by"].as_str().map_or_else(|| ", as its file says".to_owned(), |by| format!(" (by {by}, {})", moment(&switch["since"])));
        let _ = writeln!(out, "switch           {}: {}{by}", text(&switch["site"]), text(&switch["active"]));
    }
    out
}

fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// A line for each backend that is to be shown.
pub(super) fn backends(groups: &Value, shown: impl Fn(&Value) -> bool) -> String {
    let mut text = String::new();
    for group in rows(groups) {
        for backend in rows(&group["backends"]).filter(|backend| shown(backend)) {
            let health = match (backend["healthy"].as_bool(), backend["eligible"].as_bool()) {
                (Some(true), Some(true)) => "healthy",
                (Some(true), _) if backend["state"] == "enabled" => "refuses connections",
                (Some(true), _) => "healthy",
                _ => "unhealthy",
            };
            let by = backend["by"].as_str().map_or_else(String::new, |by| format!(" (by {by}, {})", moment(&backend["since"])));
            let backup = if backend["backup"] == true { ", backup" } else { "" };
            let (name, address) = (backend["name"].as_str().unwrap_or_default(), backend["address"].as_str().unwrap_or_default());
            let address = if name == address { String::new() } else { format!("  {address}") };
            let _ = writeln!(
                text,
                "{}/{name}{address}  {health}{backup}, {}{by}",
                group["name"].as_str().unwrap_or_default(),
                backend["state"].as_str().unwrap_or_default(),
            );
        }
    }
    text
}

/// A configuration that has come into force.
pub(super) fn in_force(answer: &Value) -> String {
    let generation = &answer["generation"];
    let mut text = format!("generation {generation} ({}) is in force\n", answer["digest"].as_str().unwrap_or_default());
    let mut any = false;
    for change in texts(&answer["changes"]) {
        any = true;
        let _ = writeln!(text, "  {change}");
    }
    if !any {
        text.push_str("  nothing changed in listeners, groups, sites and the number of users\n");
    }
    for (key, what) in [("needs_upgrade", "`portcullis upgrade` puts in force"), ("needs_restart", "only a restart puts in force")] {
        let keys: Vec<&str> = texts(&answer[key]).collect();
        if !keys.is_empty() {
            let _ = writeln!(text, "  {what}: {}", keys.join(", "));
        }
    }
    if !answer["pending"].is_null() {
        let pending = &answer["pending"];
        let _ = writeln!(
            text,
            "  generation {} comes back at {} unless `portcullis confirm` comes first",
            pending["former"],
            moment(&pending["until"])
        );
    }
    text
}

/// The configurations that were in force.
pub(super) fn history(answer: &Value) -> String {
    let mut text = String::new();
    for generation in rows(&answer["generations"]) {
        let in_force = if generation["in_force"] == true { " (in force)" } else { "" };
        let back = &generation["rolled_back_to"];
        let back = if back.is_null() { String::new() } else { format!(", back to {back}") };
        let broken: Vec<&str> = texts(&generation["broken_sites"]).collect();
        let broken = if broken.is_empty() { String::new() } else { format!(", with errors: {}", broken.join(", ")) };
        let _ = writeln!(
            text,
            "{:>4}  {}  {}  {}{back}, by {}{broken}{in_force}",
            generation["number"],
            moment(&generation["time"]),
            generation["digest"].as_str().unwrap_or_default(),
            plural(usize::try_from(generation["sites"].as_u64().unwrap_or_default()).unwrap_or_default(), "site"),
            generation["by"].as_str().unwrap_or_default(),
        );
        for change in texts(&generation["changes"]) {
            let _ = writeln!(text, "        {change}");
        }
    }
    text
}

pub(super) fn user(user: &Value) -> String {
    let placements = user["placements"].as_object().into_iter().flatten();
    let placed: Vec<String> = placements.map(|(word, group)| format!("{word}={}", group.as_str().unwrap_or_default())).collect();
    format!("{}  {}\n", user["user"].as_str().unwrap_or_default(), placed.join(" "))
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

pub(super) fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Seconds since 1970 as `2026-11-21 14:05:09 UTC`.
fn moment(seconds: &Value) -> String {
    let time = seconds.as_i64().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.map_or_else(String::new, |t| {
        let month = u8::from(t.month());
        format!("{}-{month:02}-{:02} {:02}:{:02}:{:02} UTC", t.year(), t.day(), t.hour(), t.minute(), t.second())
    })
}
