//! The state of the process as JSON: what `portcullis status` and `portcullis backend list` show.

use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

use crate::balance::state::Now;
use crate::lifecycle::control::Control;
use crate::lifecycle::readiness::Stage;
use crate::persist::seconds;

/// How many groups, sites and tables are listed unless more are asked for.
const SHOWN: usize = 1000;

/// Everything in short.
pub fn status(control: &Control, stage: Stage, started: Instant) -> Value {
    let (applied, snapshot) = (control.applied(), control.snapshot());
    let listeners = control.listeners().seen().into_iter().map(|seen| {
        json!({
            "name": seen.listener.name,
            "address": seen.address.unwrap_or(seen.listener.address).to_string(),
            "tls": seen.listener.tls,
            "connections": seen.connections,
            "max_connections": seen.listener.max_connections,
        })
    });
    let broken = applied.broken.iter().map(|broken| {
        let state = if broken.kept { "last_good_version" } else { "left_out" };
        let trouble = if broken.vanished { "file_gone" } else { "errors" };
        json!({ "site": broken.name, "file": broken.path, "state": state, "trouble": trouble })
    });
    let refused = applied.refused.as_ref().map(|(time, why)| json!({ "time": seconds(*time), "why": why }));
    let pending = control.pending().map(|pending| json!({ "former": pending.former, "until": pending.until }));
    let sites = snapshot.good_sites();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_seconds": started.elapsed().as_secs(),
        "state": state(stage),
        "config": {
            "file": control.path(),
            "generation": applied.generation,
            "time": seconds(applied.time),
            "digest": applied.digest,
            "by": applied.by,
            "rolled_back_to": applied.rolled_back_to,
            "is_kept": applied.is_kept,
            "pending": pending,
            "last_refusal": refused,
        },
        "listeners": listeners.collect::<Vec<_>>(),
        "sites": { "good": sites, "broken": broken.collect::<Vec<_>>() },
        "users": snapshot.rules.users.len(),
        "users_tables_out_of_force": applied.tables_out_of_force,
        "backend_groups": groups(control, None, SHOWN),
        "switches": switches(control),
    })
}

fn state(stage: Stage) -> &'static str {
    match stage {
        Stage::Starting => "starting",
        Stage::Ready => "ready",
        Stage::Stopping => "stopping",
        Stage::HandedOver => "handed_over",
    }
}

/// The groups with their backends, or one of them.
pub fn groups(control: &Control, named: Option<&str>, limit: usize) -> Value {
    let (snapshot, spoken, now) = (control.snapshot(), control.spoken(), Now::read());
    let groups = snapshot.groups.iter().filter(|group| named.is_none_or(|name| group.name == name)).take(limit);
    let groups = groups.map(|group| {
        let backends = group.backends().iter().map(|backend| {
            let record = spoken.backends.get(&(group.name.clone(), backend.name.clone()));
            json!({
                "name": backend.name,
                "address": backend.shown,
                "weight": backend.weight,
                "backup": backend.backup,
                "healthy": backend.state.is_healthy(),
                "eligible": backend.may_be_picked(now),
                "state": backend.hand.standing().as_str(),
                "by": record.map(|record| &record.by),
                "since": record.map(|record| record.time),
            })
        });
        json!({ "name": group.name, "backends": backends.collect::<Vec<_>>() })
    });
    Value::Array(groups.collect())
}

/// A group that no request can be sent to, in words.
pub fn without_backend(control: &Control, group: &str) -> Option<String> {
    let (snapshot, now) = (control.snapshot(), Now::read());
    let group = snapshot.groups.iter().find(|own| own.name == group)?;
    let is_empty = !group.backends().iter().any(|backend| backend.may_be_picked(now));
    is_empty.then(|| format!("the group {} has no eligible backend now: requests are answered with 503", group.name))
}

/// The backend group that a site's switch leads to.
pub fn group_of_switch(control: &Control, site: &str) -> Option<String> {
    let checked = control.snapshot().checked.clone();
    let switch = checked.sites.iter().find(|own| own.name == site)?.switch.as_ref()?;
    let (_, group) = switch.groups.iter().find(|(name, _)| *name == switch.active)?;
    Some(checked.groups.get(group.0 as usize)?.name.clone())
}

fn switches(control: &Control) -> Value {
    let (snapshot, spoken) = (control.snapshot(), control.spoken());
    let sites = snapshot.checked.sites.iter().filter_map(|site| Some((site, site.switch.as_ref()?))).take(SHOWN);
    let switches = sites.map(|(site, switch)| {
        let record = spoken.switches.get(&site.name).filter(|record| record.active == switch.active);
        json!({
            "site": site.name,
            "active": switch.active,
            "groups": switch.groups.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "by": record.map(|record| &record.by),
            "since": record.map(|record| record.time),
        })
    });
    Value::Array(switches.collect())
}

/// The configurations that are kept.
pub fn generations(control: &Control) -> Result<Value, crate::lifecycle::control::CommandError> {
    let failed = |error: crate::persist::Error| crate::lifecycle::control::CommandError::Failed(error.to_string());
    let kept = control.needed_store()?.generations().map_err(failed)?;
    let current = control.applied().generation;
    let shown = kept.into_iter().map(|generation| {
        let mut value = serde_json::to_value(&generation).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.insert("in_force".to_owned(), Value::Bool(generation.number == current));
        }
        value
    });
    Ok(json!({ "generations": shown.collect::<Vec<_>>(), "now": seconds(SystemTime::now()) }))
}
