//! Names of backends: looked up when a configuration is read, and again whenever an answer has had its time.
//!
//! Without `name_servers` the first look-up is the system's own (with its hosts file and whatever else it asks), and the
//! later ones go to the servers of `/etc/resolv.conf`, since only their answers say how long they are good for.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::task::JoinSet;

use crate::config::Address;
use crate::lifecycle::control::Control;

/// An answer is used for at least this long, whatever it says: a name server is no load balancer.
const LEAST: Duration = Duration::from_secs(1);
/// And asked for again at least this often.
const MOST: Duration = Duration::from_secs(3600);
/// When a name that did not resolve is asked for again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// A new configuration may bring new names.
const LOOK: Duration = Duration::from_secs(1);

/// Names that are resolved, as written: `app.internal:8080`.
pub type Names = HashMap<String, Vec<Address>>;

/// Looks a name up and waits for it. The addresses are sorted.
pub fn look_up_blocking(name: &str, servers: &[SocketAddr]) -> std::io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = match servers {
        [] => name.to_socket_addrs()?.collect(),
        servers => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let found = runtime.block_on(look_up(servers, name, &[]));
            found.map_err(std::io::Error::other)?.0
        }
    };
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// Asks the given servers, or those of the system.
fn resolver(servers: &[SocketAddr], family: LookupIpStrategy) -> Result<TokioResolver, String> {
    let mut builder = match servers {
        [] => TokioResolver::builder_tokio().map_err(|error| error.to_string())?,
        servers => {
            let server = |server: &SocketAddr| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                config.connections.iter_mut().for_each(|connection| connection.port = server.port());
                config
            };
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.ip_strategy = family;
    // We keep answers ourselves, for as long as they are good.
    options.cache_size = 0;
    builder.build().map_err(|error| error.to_string())
}

/// What a name server says of one family of addresses.
enum Family {
    /// With until when it is good.
    Known(Vec<SocketAddr>, Instant),
    /// The name has none.
    None,
    /// It did not say.
    Failed(String),
}

async fn look_up_family(servers: &[SocketAddr], host: &str, port: u16, family: LookupIpStrategy) -> Family {
    // Made anew: the system's servers may have changed.
    let resolver = match resolver(servers, family) {
        Ok(resolver) => resolver,
        Err(why) => return Family::Failed(why),
    };
    match resolver.lookup_ip(host).await {
        Ok(found) => {
            let addresses: Vec<SocketAddr> = found.iter().map(|address| SocketAddr::new(address, port)).collect();
            if addresses.is_empty() { Family::None } else { Family::Known(addresses, found.valid_until()) }
        }
        Err(error) if error.is_no_records_found() => Family::None,
        Err(error) => Family::Failed(error.to_string()),
    }
}

/// The addresses of `host:port`, sorted, and until when they are good. A family that the name server is silent about keeps the
/// addresses that are `known`.
async fn look_up(servers: &[SocketAddr], name: &str, known: &[SocketAddr]) -> Answer {
    let (host, port) = name.rsplit_once(':').ok_or("it has no port")?;
    let port: u16 = port.parse().map_err(|_| "its port is no number")?;
    let families = [(LookupIpStrategy::Ipv4Only, true), (LookupIpStrategy::Ipv6Only, false)];
    let found = join_all(families.map(|(family, _)| look_up_family(servers, host, port, family))).await;
    let (mut addresses, mut until, mut failed) = (Vec::new(), None::<Instant>, None);
    for ((_, is_v4), family) in families.into_iter().zip(found) {
        match family {
            Family::Known(own, good) => {
                addresses.extend(own);
                until = Some(until.map_or(good, |until| until.min(good)));
            }
            Family::None => {}
            Family::Failed(why) => {
                addresses.extend(known.iter().filter(|address| address.is_ipv4() == is_v4));
                failed = Some(why);
            }
        }
    }
    addresses.sort();
    addresses.dedup();
    match (addresses.is_empty(), until, failed) {
        (false, Some(until), None) => Ok((addresses, until)),
        (false, Some(_), Some(_)) => Ok((addresses, Instant::now() + AGAIN)),
        (_, _, Some(why)) => Err(why),
        (_, _, None) => Err("it has no address".to_owned()),
    }
}

/// Keeps the addresses of names up to date until the process ends. Each name is asked for by itself: one whose server is silent
/// holds up no other.
pub async fn keep_resolved(control: Arc<Control>) {
    let mut due: HashMap<String, Instant> = HashMap::new();
    let mut failing: HashSet<String> = HashSet::new();
    let mut asked: JoinSet<(String, Answer)> = JoinSet::new();
    let mut under_way: HashSet<String> = HashSet::new();
    loop {
        let (known, servers) = (control.names(), control.settings().name_servers.clone());
        due.retain(|name, _| known.contains_key(name));
        let now = Instant::now();
        let is_due = |name: &String| due.get(name).is_none_or(|at| *at <= now);
        for (name, addresses) in known.iter().filter(|(name, _)| is_due(name) && !under_way.contains(*name)) {
            let known = addresses.iter().filter_map(Address::as_inet).collect();
            asked.spawn(ask(servers.clone(), name.clone(), known));
        }
        under_way.extend(known.keys().filter(|name| is_due(name)).cloned());
        let next = due.values().filter(|at| **at > now).min();
        let next = next.map_or(LOOK, |at| at.saturating_duration_since(now).clamp(Duration::from_millis(10), LOOK));
        tokio::select! {
            Some(answered) = asked.join_next() => {
                let Ok((name, answer)) = answered else { continue };
                under_way.remove(&name);
                let mut changed = Names::new();
                let old = known.get(&name).map(Vec::as_slice).unwrap_or_default();
                due.insert(name.clone(), Instant::now() + take(&name, answer, old, &mut changed, &mut failing));
                if !changed.is_empty() {
                    let control = control.clone();
                    // Compiling groups is work; the runtime goes on meanwhile.
                    let _ = tokio::task::spawn_blocking(move || control.readdress(&changed)).await;
                }
            }
            () = tokio::time::sleep(next) => {}
        }
    }
}

type Answer = Result<(Vec<SocketAddr>, Instant), String>;

/// Asks for one name.
async fn ask(servers: Vec<SocketAddr>, name: String, known: Vec<SocketAddr>) -> (String, Answer) {
    let answer = tokio::time::timeout(PATIENCE, look_up(&servers, &name, &known)).await;
    (name, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))))
}

/// Takes an answer over; what is new goes into `changed`. Gives when to ask again.
fn take(name: &str, answer: Answer, old: &[Address], changed: &mut Names, failing: &mut HashSet<String>) -> Duration {
    match answer {
        Ok((addresses, until)) => {
            if failing.remove(name) {
                log::info!("`{name}` resolves again");
            }
            let new: Vec<Address> = addresses.into_iter().map(Address::Inet).collect();
            if new != old {
                let list = |addresses: &[Address]| addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(", ");
                log::info!("`{name}` is now {}; it was {}", list(&new), if old.is_empty() { "unknown".to_owned() } else { list(old) });
                changed.insert(name.to_owned(), new);
            }
            until.saturating_duration_since(Instant::now()).clamp(LEAST, MOST)
        }
        Err(why) => {
            if failing.insert(name.to_owned()) {
                let rest = if old.is_empty() { "it has no backends until it does" } else { "its last addresses stay" };
                log::warn!("`{name}` does not resolve: {why}; {rest}");
            }
            AGAIN
        }
    }
}
