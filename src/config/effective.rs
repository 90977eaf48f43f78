//! The configuration as it is in force, written as configuration files again: defaults filled in, names resolved,
//! secrets hidden.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_yaml::Value;

use super::raw::{self, Condition, Limit, OneOrMany, Short, Word};
use super::units::{Size, Time};
use super::{
    AccessLog, Admin, CheckKind, Config, Group, GroupId, HealthCheck, HostSent, HttpCheck, Listener, LogFormat, LogTarget, Member,
    Protocol, Respond, RespondBody, Route, Site, SiteCertificates, Target, Timeouts, Unknown, UnknownHost, UsersRule,
};
use crate::rewrite::headers::{HeaderEdit, Name, Value as HeaderText};
use crate::rewrite::template::SECRET;
use crate::routing::conditions::TextMatch;
use crate::routing::path_table::Segment;
use crate::tls::client::ClientTls;

/// All files, or one site's. The error names the sites that there are.
pub fn print(config: &Config, site: Option<&str>) -> Result<String, String> {
    let Some(wanted) = site else {
        let mut text = format!("# the main file\n{}", yaml(main(config)));
        for site in &config.sites {
            text.push_str(&format!("---\n# {}\n{}", site.path.display(), yaml(self::site(site, config))));
        }
        return Ok(text);
    };
    match config.sites.iter().find(|site| site.name == wanted) {
        Some(site) => Ok(yaml(self::site(site, config))),
        None => {
            let names: Vec<&str> = config.sites.iter().map(|site| site.name.as_str()).collect();
            Err(format!("no site is named `{wanted}`; there are: {}", names.join(", ")))
        }
    }
}

fn yaml(value: impl serde::Serialize) -> String {
    let value = serde_yaml::to_value(value).map(without_nothing).unwrap_or_default();
    serde_yaml::to_string(&value).unwrap_or_default()
}

/// Leaves out what says nothing: no value, an empty list, an empty mapping.
fn without_nothing(value: Value) -> Value {
    let says_something = |value: &Value| match value {
        Value::Null => false,
        Value::Sequence(items) => !items.is_empty(),
        Value::Mapping(entries) => !entries.is_empty(),
        _ => true,
    };
    match value {
        Value::Sequence(items) => Value::Sequence(items.into_iter().map(without_nothing).collect()),
        Value::Mapping(entries) => {
            let entries = entries.into_iter().map(|(key, value)| (key, without_nothing(value)));
            Value::Mapping(entries.filter(|(_, value)| says_something(value)).collect())
        }
        scalar => scalar,
    }
}

fn time(duration: Duration) -> Option<Time> {
    Some(Time(duration))
}

// === The main file ===

fn main(config: &Config) -> raw::Main {
    let groups = config.groups.iter().filter(|group| !group.of_site);
    let paths = |paths: Vec<String>| (!paths.is_empty()).then_some(OneOrMany(paths));
    raw::Main {
        listeners: config.listeners.iter().map(listener).collect(),
        unknown_host: Some(Word(match &config.unknown_host {
            UnknownHost::Drop => "drop".to_owned(),
            UnknownHost::NotFound => "404".to_owned(),
            UnknownHost::Site(name) => name.clone(),
        })),
        trusted_proxies: OneOrMany(config.trusted_proxies.iter().map(ToString::to_string).collect()),
        certificates: config.store.as_ref().map(|store| OneOrMany(store.paths.iter().map(|path| path.display().to_string()).collect())),
        name_servers: OneOrMany(config.name_servers.iter().map(ToString::to_string).collect()),
        threads: Some(config.threads),
        run_as: config.run_as.clone(),
        state_dir: Some(config.state_dir.clone()),
        sticky_secret: config.sticky_secret.as_ref().map(|_| SECRET.to_owned()),
        access_log: Some(access_log(&config.access_log)),
        drain_timeout: time(config.drain_timeout),
        drain_delay: time(config.drain_delay),
        admin: Some(admin(&config.admin)),
        watch: config.watch,
        pid_file: config.pid_file.clone(),
        defaults: raw::Defaults::default(),
        backend_groups: groups.map(|group| (group.name.clone(), self::group(group))).collect(),
        sites: paths(config.sites.iter().map(|site| site.path.display().to_string()).collect()),
        users: paths(config.users_files.iter().map(|path| path.display().to_string()).collect()),
    }
}

fn listener(listener: &Listener) -> raw::Listener {
    raw::Listener {
        address: listener.address.to_string(),
        name: Some(listener.name.clone()),
        tls: listener.tls,
        freebind: listener.freebind,
        keep_alive: time(listener.keep_alive),
        header_deadline: time(listener.header_deadline),
        send_timeout: time(listener.send_timeout),
        max_header_size: Some(Size(listener.max_header_size as u64)),
        max_connections: Some(listener.max_connections),
        max_requests: Some(listener.max_requests),
    }
}

fn admin(admin: &Admin) -> Short<raw::Admin> {
    let socket = admin.socket.as_ref().map_or_else(|| "off".to_owned(), |path| path.display().to_string());
    let address = admin.address.map(|address| address.to_string());
    Short::Long(raw::Admin { socket: Some(socket), group: admin.group.clone(), address })
}

fn access_log(log: &AccessLog) -> Short<raw::AccessLog> {
    let format = match log.format {
        LogFormat::Combined => "combined",
        LogFormat::Json => "json",
    };
    let path = match &log.target {
        LogTarget::Off => return Short::Word("off".to_owned()),
        LogTarget::Stdout => None,
        LogTarget::File(path) => Some(path.clone()),
    };
    Short::Long(raw::AccessLog { format: Some(format.to_owned()), path })
}

// === Groups ===

fn group(group: &Group) -> raw::Group {
    raw::Group {
        balance: Some("round_robin".to_owned()),
        sticky: sticky(group),
        health_check: Some(health_check(group.health_check.as_ref(), group.tls.is_some())),
        timeouts: Some(timeouts(group.timeouts)),
        tls: group.tls.as_ref().map(|tls| {
            let ClientTls { verify, ca, identity } = tls.client.as_ref();
            Short::Long(raw::BackendTls {
                server_name: tls.server_name.clone(),
                verify: Some(*verify),
                ca: ca.as_ref().map(|ca| ca.path.clone()),
                cert: identity.as_ref().map(|own| own.cert.clone()),
                key: identity.as_ref().map(|own| own.key.clone()),
            })
        }),
        protocol: Some(
            match group.protocol {
                Protocol::Http1 => "http1",
                Protocol::Http2 => "http2",
                Protocol::Auto => "auto",
            }
            .to_owned(),
        ),
        host: Some(match &group.host {
            HostSent::Keep => "keep".to_owned(),
            HostSent::Backend => "backend".to_owned(),
            HostSent::Fixed(host) => host.clone(),
        }),
        source: group.source.map(|source| source.to_string()),
        backends: backends(&group.members),
    }
}

fn backends(members: &[Member]) -> Vec<Short<raw::Backend>> {
    let backend = |member: &Member| raw::Backend {
        address: member.host.clone(),
        name: member.name.clone(),
        weight: Some(member.weight),
        backup: member.backup,
    };
    members.iter().map(|member| Short::Long(backend(member))).collect()
}

fn sticky(group: &Group) -> Option<Short<raw::Sticky>> {
    let sticky = group.sticky.as_ref()?;
    Some(Short::Long(raw::Sticky { cookie: Some(sticky.cookie.clone()), max_age: sticky.max_age.map(Time) }))
}

fn health_check(check: Option<&HealthCheck>, group_has_tls: bool) -> Short<raw::HealthCheck> {
    let Some(check) = check else { return Short::Word("off".to_owned()) };
    let own = raw::HealthCheck {
        port: check.port,
        tls: (check.tls.is_some() != group_has_tls).then_some(check.tls.is_some()),
        interval: time(check.interval),
        timeout: time(check.timeout),
        jitter: time(check.jitter),
        rise: Some(check.rise),
        fall: Some(check.fall),
        ..raw::HealthCheck::default()
    };
    let CheckKind::Http(http) = &check.kind else { return Short::Long(own) };
    let HttpCheck { method, path, host, headers, statuses, body, body_is_secret } = http.as_ref();
    let shown = |value: &http::HeaderValue| {
        if value.is_sensitive() { SECRET.to_owned() } else { String::from_utf8_lossy(value.as_bytes()).into_owned() }
    };
    let headers = headers.iter().map(|(name, value)| (name.to_string(), Word(shown(value))));
    Short::Long(raw::HealthCheck {
        path: Some(path.clone()),
        method: Some(method.to_string()),
        host: host.clone(),
        status: Some(OneOrMany(
            statuses.iter().map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") }).collect(),
        )),
        body: body.clone().map(|body| if *body_is_secret { SECRET.to_owned() } else { body }),
        headers: headers.collect(),
        ..own
    })
}

fn timeouts(timeouts: Timeouts) -> raw::Timeouts {
    raw::Timeouts {
        connect: timeouts.connect.map(Time),
        read: timeouts.read.map(Time),
        send: timeouts.send.map(Time),
        websocket_idle: timeouts.websocket_idle.map(Time),
    }
}

// === Sites ===

fn site(site: &Site, config: &Config) -> raw::Site {
    let group_of = |id: GroupId| config.groups.get(id.0 as usize);
    let own = site.routes.iter().find_map(|route| match route.target {
        Target::Group(id) => group_of(id).filter(|group| group.of_site),
        _ => None,
    });
    let names = &site.listeners;
    raw::Site {
        name: Some(site.name.clone()),
        enabled: None,
        domains: OneOrMany(site.domains.iter().map(ToString::to_string).collect()),
        listeners: (!names.is_empty()).then(|| OneOrMany(names.clone())),
        tls: site.tls.as_ref().map(tls),
        hsts: site.hsts.map(|hsts| {
            Short::Long(raw::Hsts { max_age: Time(hsts.max_age), include_subdomains: hsts.include_subdomains, preload: hsts.preload })
        }),
        https_redirect: Some(site.https_redirect.is_some()),
        https_port: site.https_redirect.filter(|redirect| redirect.always).map(|redirect| redirect.port),
        maintenance: site.maintenance.as_ref().map(|closed| {
            Short::Long(raw::Maintenance {
                allow: OneOrMany(closed.allow.iter().map(ToString::to_string).collect()),
                retry_after: time(closed.retry_after),
                page: closed.page_file.clone(),
            })
        }),
        groups: switch(site, &group_of),
        active: site.switch.as_ref().map(|switch| switch.active.clone()),
        backends: own.map(|group| backends(&group.members)),
        balance: own.map(|_| "round_robin".to_owned()),
        health_check: own.map(|group| health_check(group.health_check.as_ref(), false)),
        sticky: own.and_then(sticky),
        response_headers: edits(&site.response_headers),
        error_pages: site.error_pages.files.iter().cloned().collect(),
        error_details: Some(site.error_pages.details),
        routes: site.routes.iter().map(|route| self::route(route, site, &group_of)).collect(),
        ..raw::Site::default()
    }
}

fn switch<'c>(site: &Site, group_of: &impl Fn(GroupId) -> Option<&'c Group>) -> BTreeMap<String, String> {
    let groups = site.switch.iter().flat_map(|switch| &switch.groups);
    groups.filter_map(|(name, group)| Some((name.clone(), group_of(*group)?.name.clone()))).collect()
}

fn tls(tls: &super::SiteTls) -> Short<raw::Tls> {
    let preset = Some(tls.preset.as_str().to_owned());
    let certificates = match &tls.certificates {
        SiteCertificates::Store => Vec::new(),
        SiteCertificates::Own(own) => {
            own.iter().map(|loaded| raw::Pair { cert: loaded.files.cert.clone(), key: loaded.files.key.clone() }).collect()
        }
    };
    Short::Long(raw::Tls { cert: None, key: None, certificates, preset })
}

fn route<'g>(route: &Route, site: &Site, group_of: &impl Fn(GroupId) -> Option<&'g Group>) -> raw::Route {
    let conditions = &route.conditions;
    let wanted = |text: &TextMatch| match text {
        TextMatch::Present => Condition::Presence(true),
        TextMatch::Absent => Condition::Presence(false),
        text => Condition::Text(text.written()),
    };
    let texts = |pairs: &[(String, TextMatch)]| pairs.iter().map(|(name, text)| (name.clone(), wanted(text))).collect();
    let methods: Vec<String> = conditions.methods.iter().map(ToString::to_string).collect();
    let group = match &route.target {
        Target::Group(id) if !route.to_active => group_of(*id),
        _ => None,
    };
    let to_backends = matches!(route.target, Target::Group(_) | Target::Users(_));
    raw::Route {
        path: route.pattern.to_string(),
        name: Some(route.name.clone()),
        methods: (!methods.is_empty()).then_some(OneOrMany(methods)),
        scheme: conditions.secure.map(|secure| if secure { "https" } else { "http" }.to_owned()),
        headers: conditions.headers.iter().map(|(name, text)| (name.to_string(), wanted(text))).collect(),
        cookies: texts(&conditions.cookies),
        query: texts(&conditions.query),
        // The site's own group goes by the site's name.
        group: group.map(|group| if group.of_site { site.name.clone() } else { group.name.clone() }),
        users: match &route.target {
            Target::Users(rule) => Some(users(rule)),
            _ => None,
        },
        app: match &route.target {
            Target::Users(rule) => rule.app.clone(),
            _ => None,
        },
        redirect: match &route.target {
            Target::Redirect(redirect) => Some(Short::Long(raw::Redirect { to: redirect.to.to_string(), status: redirect.status })),
            _ => None,
        },
        respond: match &route.target {
            Target::Respond(respond) => Some(Short::Long(self::respond(respond))),
            _ => None,
        },
        strip: route.strip.map(|count| stripped(route, count)),
        request_headers: if to_backends { edits(&route.request_headers) } else { raw::HeaderEdits::default() },
        response_headers: edits(&route.response_headers),
        timeouts: if to_backends {
            timeouts(group.map_or(route.timeouts, |group| route.timeouts.or(group.timeouts)))
        } else {
            raw::Timeouts::default()
        },
        max_body: to_backends.then_some(Limit(route.max_body)),
    }
}

fn users(rule: &UsersRule) -> Short<raw::UsersRule> {
    let word = |unknown: Unknown| Some(Word(if unknown == Unknown::Next { "next" } else { "404" }.to_owned()));
    Short::Long(raw::UsersRule { unknown_user: word(rule.unknown_user), unknown_app: word(rule.unknown_app) })
}

fn respond(respond: &Respond) -> raw::Respond {
    let headers = respond.headers.iter().filter_map(|edit| match edit {
        HeaderEdit::Set { name, value } => Some((written(name), text(value))),
        _ => None,
    });
    let (body, file) = match &respond.body {
        RespondBody::Empty => (None, None),
        RespondBody::Text(template) => (Some(template.to_string()), None),
        RespondBody::File { path, .. } => (None, Some(path.clone())),
    };
    raw::Respond { status: Some(respond.status.as_u16()), headers: headers.collect(), body, file }
}

fn stripped(route: &Route, count: usize) -> String {
    let segment = |segment: &Segment| match segment {
        Segment::Literal(text) => format!("/{text}"),
        Segment::Capture(name) => format!("/{{{name}}}"),
    };
    route.pattern.segments().iter().take(count).map(segment).collect()
}

fn edits(edits: &[HeaderEdit]) -> raw::HeaderEdits {
    let mut raw = raw::HeaderEdits { rename: BTreeMap::new(), remove: OneOrMany::default(), set: BTreeMap::new(), add: BTreeMap::new() };
    for edit in edits {
        match edit {
            HeaderEdit::Rename { from, to } => drop(raw.rename.insert(from.to_string(), written(to))),
            HeaderEdit::Remove(name) => raw.remove.0.push(name.to_string()),
            HeaderEdit::Set { name, value } => drop(raw.set.insert(written(name), text(value))),
            HeaderEdit::Add { name, value } => drop(raw.add.insert(written(name), text(value))),
        }
    }
    raw
}

fn written(name: &Name) -> String {
    String::from_utf8_lossy(&name.written).into_owned()
}

fn text(value: &HeaderText) -> Word {
    Word(match value {
        value if value.is_secret() => SECRET.to_owned(),
        HeaderText::Fixed { value, .. } => String::from_utf8_lossy(value.as_bytes()).replace('{', "{{").replace('}', "}}"),
        HeaderText::Filled(template) => template.to_string(),
    })
}
