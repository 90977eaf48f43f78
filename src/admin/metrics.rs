//! What `/metrics` tells, in the text format of OpenMetrics. Made when it is asked for: requests pay nothing for it.

use std::sync::atomic::Ordering;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::balance::state::Now;
use crate::lifecycle::control::Control;
use crate::lifecycle::readiness::Stage;
use crate::persist::seconds;

/// The type of the answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SiteLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabels {
    listener: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    group: String,
}

/// Everything, as it is now.
pub fn text(control: &Control, stage: Stage) -> String {
    let mut registry = Registry::with_prefix("portcullis");
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The program", version);
    gauge(&mut registry, "ready", "Whether clients should be sent here", i64::from(stage == Stage::Ready));
    config(control, &mut registry);
    let listeners = Family::<ListenerLabels, Gauge>::default();
    for seen in control.listeners().seen() {
        let labels = ListenerLabels { listener: seen.listener.name.clone() };
        listeners.get_or_create_owned(&labels).inc_by(i64::try_from(seen.connections).unwrap_or(i64::MAX));
    }
    registry.register("connections", "Open connections of clients", listeners);
    backends(control, &mut registry);
    let mut text = String::new();
    // Writing to a text does not fail.
    let _ = encode(&mut text, &registry);
    text
}

fn config(control: &Control, registry: &mut Registry) {
    let (applied, snapshot, reloads) = (control.applied(), control.snapshot(), control.reloads());
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    gauge(registry, "config_generation", "The configuration in force", number(applied.generation));
    let help = "Whether the last reload put a configuration in force";
    gauge(registry, "config_last_reload_success", help, i64::from(applied.refused.is_none()));
    let time: Gauge = Gauge::default();
    time.set(number(seconds(applied.time)));
    let help = "When the configuration in force was put in force, since 1970";
    registry.register_with_unit("config_last_reload_success_timestamp", help, Unit::Seconds, time);
    let counted = Family::<ReloadLabels, Counter>::default();
    for (result, count) in [("applied", &reloads.applied), ("in_part", &reloads.in_part), ("refused", &reloads.refused)] {
        counted.get_or_create_owned(&ReloadLabels { result }).inc_by(count.load(Ordering::Relaxed));
    }
    registry.register("config_reloads", "Reloads by what they came to", counted);
    let sites = Family::<SiteLabels, Gauge>::default();
    let kept = applied.broken.iter().filter(|broken| broken.kept).count();
    let left_out = applied.broken.len() - kept;
    let good = snapshot.good_sites().saturating_sub(kept);
    let states = [("good", good), ("last_good_version", kept), ("left_out", left_out)];
    for (state, count) in states {
        sites.get_or_create_owned(&SiteLabels { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("sites", "Sites by their state", sites);
    gauge(registry, "users", "Users of all tables", number(snapshot.rules.users.len() as u64));
    let help = "Managed users tables that are kept but that no users file names: their users are not in force";
    gauge(registry, "users_tables_out_of_force", help, number(applied.tables_out_of_force.len() as u64));
}

fn backends(control: &Control, registry: &mut Registry) {
    let (snapshot, now) = (control.snapshot(), Now::read());
    let (all, eligible) = (Family::<GroupLabels, Gauge>::default(), Family::<GroupLabels, Gauge>::default());
    for group in snapshot.groups.iter() {
        let labels = GroupLabels { group: group.name.clone() };
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        all.get_or_create_owned(&labels).set(count(group.backends().len()));
        let able = group.backends().iter().filter(|backend| backend.may_be_picked(now));
        eligible.get_or_create_owned(&labels).set(count(able.count()));
    }
    registry.register("backends", "Backends of a group", all);
    registry.register("backends_eligible", "Backends of a group that requests may be sent to", eligible);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}
