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

use crate::config::Address;
use crate::reload::Reloader;

/// An answer is used for at least this long, whatever it says: a name server is no load balancer.
const LEAST: Duration = Duration::from_secs(1);
/// And asked for again at least this often.
const MOST: Duration = Duration::from_secs(3600);
/// When a name that did not resolve is asked for again.
const AGAIN: Duration = Duration::from_secs(5);
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
            let found = runtime.block_on(async { look_up(&resolver(servers)?, name).await });
            found.map_err(std::io::Error::other)?.0
        }
    };
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// Asks the given servers, or those of the system.
fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, String> {
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
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // We keep answers ourselves, for as long as they are good.
    options.cache_size = 0;
    builder.build().map_err(|error| error.to_string())
}

/// The addresses of `host:port`, sorted, and until when they are good.
async fn look_up(resolver: &TokioResolver, name: &str) -> Result<(Vec<SocketAddr>, Instant), String> {
    let (host, port) = name.rsplit_once(':').ok_or("it has no port")?;
    let port: u16 = port.parse().map_err(|_| "its port is no number")?;
    let found = resolver.lookup_ip(host).await.map_err(|error| error.to_string())?;
    let mut addresses: Vec<SocketAddr> = found.iter().map(|address| SocketAddr::new(address, port)).collect();
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok((addresses, found.valid_until())) }
}

/// Keeps the addresses of names up to date until the process ends.
pub async fn keep_resolved(reloader: Arc<Reloader>, servers: Vec<SocketAddr>) {
    let mut due: HashMap<String, Instant> = HashMap::new();
    let mut failing: HashSet<String> = HashSet::new();
    loop {
        let known = reloader.names();
        due.retain(|name, _| known.contains_key(name));
        let now = Instant::now();
        let asked: Vec<&String> = known.keys().filter(|name| due.get(*name).is_none_or(|at| *at <= now)).collect();
        if !asked.is_empty() {
            let mut changed = Names::new();
            for (name, answer) in ask(&servers, &asked).await {
                let old = known.get(&name).map(Vec::as_slice).unwrap_or_default();
                due.insert(name.clone(), Instant::now() + take(&name, answer, old, &mut changed, &mut failing));
            }
            if !changed.is_empty() {
                let reloader = reloader.clone();
                // Compiling groups is work; the runtime goes on meanwhile.
                let _ = tokio::task::spawn_blocking(move || reloader.readdress(&changed)).await;
            }
        }
        let next =
            due.values().min().map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(10), LOOK));
        tokio::time::sleep(next).await;
    }
}

type Answer = Result<(Vec<SocketAddr>, Instant), String>;

async fn ask(servers: &[SocketAddr], names: &[&String]) -> Vec<(String, Answer)> {
    // Made anew: the system's servers may have changed.
    let resolver = match resolver(servers) {
        Ok(resolver) => resolver,
        Err(why) => return names.iter().map(|name| ((*name).clone(), Err(why.clone()))).collect(),
    };
    join_all(names.iter().map(|name| async { ((*name).clone(), look_up(&resolver, name).await) })).await
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
