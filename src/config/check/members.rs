//! Checks the backends of a group: addresses and names, which are looked up here, all at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::super::diagnostic::{Place, Report};
use super::super::raw::{self, Short};
use super::super::{Address, Group, Member};
use super::{At, check_name};
use crate::resolve::look_up_blocking;

/// More backends than any group has; the order of their turns is computed when it is built.
const MAX_BACKENDS: usize = 1024;

/// Names of all backends are resolved together and may take this long.
const RESOLVE: Duration = Duration::from_secs(5);

/// What a name gets that was asked for when the time of all was nearly over.
const MOMENT: Duration = Duration::from_millis(300);

/// Who is asked for names.
#[derive(Clone, Copy)]
pub(super) struct Resolving<'a> {
    /// Empty: the system.
    pub(super) servers: &'a [SocketAddr],
    /// The groups in force, whose addresses stand in for a name that does not resolve now.
    pub(super) previous: &'a [Group],
}

/// The members of a group, with the addresses that their names have now.
pub(super) fn members(raw: &[Short<raw::Backend>], lookups: &Lookups<'_>, at: &At<'_>, report: &mut Report) -> Vec<Member> {
    let written: Vec<(raw::Backend, At<'_>)> =
        raw.iter().enumerate().filter_map(|(index, short)| Some((written(short)?, at.index(index)))).collect();
    if written.len() < raw.len() {
        report.push(at.error("a backend is an address such as `10.0.0.1:8080`, or a mapping with `address`"));
    }
    if raw.len() > MAX_BACKENDS {
        report.push(at.error(format!("a group has at most {MAX_BACKENDS} backends")));
        return Vec::new();
    }
    let resolved = resolve(lookups, written.iter().map(|(backend, _)| backend.address.as_str()));
    let mut members: Vec<Member> = Vec::new();
    let mut addresses: HashMap<Address, Place> = HashMap::new();
    let mut names: HashMap<String, Place> = HashMap::new();
    for ((backend, at), resolved) in written.iter().zip(resolved) {
        let weight = backend.weight.unwrap_or(1);
        if !(1..=256).contains(&weight) {
            report.push(at.key("weight").error("`weight` is a number from 1 to 256").with_help("to take a backend out, remove it"));
        }
        if let Some(name) = &backend.name {
            check_name(name, "backend", &at.key("name"), report);
        }
        let (found, by_name) = match resolved {
            Ok(found) => found,
            Err(Unresolved::NoAddress(why)) => {
                let help = "write `10.0.0.1:8080`, `[2001:db8::1]:8080`, `app.internal:8080` or `unix:/run/app.sock`";
                report.push(at.key("address").error(why).with_help(help));
                continue;
            }
            Err(Unresolved::Name(why)) => {
                let known = last_known(&backend.address, lookups.resolving.previous);
                let help = match known.len() {
                    0 => "the group goes on without it; it is asked for again and again",
                    _ => "its last known addresses stay; it is asked for again and again",
                };
                report.push(at.key("address").warning(format!("`{}` does not resolve: {why}", backend.address)).with_help(help));
                (known, true)
            }
        };
        for address in &found {
            if let Some(first) = addresses.insert(address.clone(), at.place()) {
                report.push(
                    at.key("address").error(format!("{address} is in this group twice")).with_related(first, "it is first named here"),
                );
            }
        }
        let name = backend.name.clone().unwrap_or_else(|| backend.address.clone());
        if let Some(first) = names.insert(name.clone(), at.place())
            && backend.name.is_some()
        {
            report.push(at.key("name").error(format!("a second backend is named `{name}`")).with_related(first, "the first one is here"));
        }
        members.push(Member {
            name: backend.name.clone(),
            host: backend.address.clone(),
            resolved: by_name,
            addresses: found,
            weight,
            backup: backend.backup,
        });
    }
    if !members.is_empty() && members.iter().all(|member| member.backup) {
        report.push(at.error("every backend is a backup: one must not be"));
    }
    members
}

/// The addresses that a name had when it last resolved.
fn last_known(host: &str, previous: &[Group]) -> Vec<Address> {
    let members = previous.iter().flat_map(|group| &group.members).filter(|member| member.host == host);
    let mut known: Vec<Address> = members.flat_map(|member| member.addresses.clone()).collect();
    known.sort();
    known.dedup();
    known
}

pub(super) fn written(short: &Short<raw::Backend>) -> Option<raw::Backend> {
    match short {
        Short::Switch(_) => None,
        Short::Word(address) => Some(raw::Backend { address: address.clone(), name: None, weight: None, backup: false }),
        Short::Long(backend) => Some(backend.clone()),
    }
}

enum Unresolved {
    NoAddress(String),
    Name(String),
}

/// Addresses, and whether a name led to them.
type Resolved = Result<(Vec<Address>, bool), Unresolved>;

/// Resolves addresses, names side by side, since one silent name server must not hold up the others.
fn resolve<'a>(lookups: &Lookups<'_>, addresses: impl Iterator<Item = &'a str>) -> Vec<Resolved> {
    let pending: Vec<_> = addresses.map(|text| lookup(text).map(|known| (text, known))).collect();
    for (text, known) in pending.iter().flatten() {
        if known.is_none() {
            lookups.begin(text);
        }
    }
    let wait = |pending: Result<(&str, Option<Address>), String>| match pending {
        Err(why) => Err(Unresolved::NoAddress(why)),
        Ok((_, Some(address))) => Ok((vec![address], false)),
        Ok((text, None)) => match lookups.wait(text) {
            Ok(addresses) if addresses.is_empty() => Err(Unresolved::Name("it has no address".to_owned())),
            Ok(addresses) => Ok((addresses.into_iter().map(Address::Inet).collect(), true)),
            Err(why) => Err(Unresolved::Name(why)),
        },
    };
    pending.into_iter().map(wait).collect()
}

/// The look-ups of one load: each name is asked for once.
pub(super) struct Lookups<'a> {
    resolving: Resolving<'a>,
    /// When the last answer is taken: all names are given the same time.
    deadline: Instant,
    known: Mutex<HashMap<String, Lookup>>,
}

type Found = Result<Vec<SocketAddr>, String>;

enum Lookup {
    Asked(mpsc::Receiver<std::io::Result<Vec<SocketAddr>>>),
    Answered(Found),
}

impl<'a> Lookups<'a> {
    pub(super) fn new(resolving: Resolving<'a>) -> Self {
        Self { resolving, deadline: Instant::now() + RESOLVE, known: Mutex::default() }
    }

    /// Begins to look a name up, if it is one and nobody has asked yet.
    pub(super) fn begin(&self, text: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains_key(text) || !matches!(lookup(text), Ok(None)) {
            return;
        }
        let (tell, answer) = mpsc::channel();
        let (name, servers) = (text.to_owned(), self.resolving.servers.to_vec());
        // A thread that cannot be started gives no answer, which is reported as such.
        let _ = std::thread::Builder::new().name("resolve".into()).spawn(move || {
            // Nobody may be waiting any more: that is no error.
            let _ = tell.send(look_up_blocking(&name, &servers));
        });
        known.insert(text.to_owned(), Lookup::Asked(answer));
    }

    /// The answer, if it comes in time. One that was only just asked for gets a moment, whatever the others took.
    fn wait(&self, text: &str) -> Found {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match known.remove(text) {
            Some(Lookup::Answered(found)) => found,
            None => Err("nobody asked for it".to_owned()),
            Some(Lookup::Asked(answer)) => {
                let left = self.deadline.saturating_duration_since(Instant::now()).max(MOMENT);
                match answer.recv_timeout(left) {
                    Ok(Ok(addresses)) => Ok(addresses),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(format!("no answer within {} s", RESOLVE.as_secs())),
                }
            }
        };
        known.insert(text.to_owned(), Lookup::Answered(found.clone()));
        found
    }
}

/// The longest path of a unix socket (`sun_path` less its end).
const MAX_SOCKET_PATH: usize = 107;

/// The address that a text is; `None`: it is a name.
fn lookup(text: &str) -> Result<Option<Address>, String> {
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(format!("`{text}` is a URL: a backend is an address with a port, and `tls: true` of its group says https"));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.len() > MAX_SOCKET_PATH {
            return Err(format!("`{path}` is no path of a socket: it starts with `/` and has at most {MAX_SOCKET_PATH} characters"));
        }
        return Ok(Some(Address::Unix(path.into())));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { Err("`0` is no port".to_owned()) } else { Ok(Some(Address::Inet(address))) };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("`{text}` has no port"))?;
    port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| format!("`{port}` is no port"))?;
    let good = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if !good {
        return Err(format!("`{host}` is no host name and no address"));
    }
    Ok(None)
}
