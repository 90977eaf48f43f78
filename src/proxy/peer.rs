//! From a backend to the peer that Pingora connects to.

use pingora::upstreams::peer::HttpPeer;

use crate::balance::{Backend, Timeouts};

/// A pooled connection is given up before usual servers close it (Node after 5 s is the exception, Apache too).
const POOL_IDLE: std::time::Duration = std::time::Duration::from_secs(55);

/// The peer for an attempt. `group` keeps the connections of groups apart: one pool entry never serves two of them.
pub(super) fn peer(backend: &Backend, group: u32, timeouts: Timeouts) -> HttpPeer {
    let mut peer = HttpPeer::new(backend.address, false, String::new());
    peer.group_key = u64::from(group);
    peer.options.connection_timeout = Some(timeouts.connect);
    peer.options.total_connection_timeout = Some(timeouts.connect);
    peer.options.read_timeout = Some(timeouts.read);
    peer.options.write_timeout = Some(timeouts.send);
    peer.options.idle_timeout = Some(POOL_IDLE);
    // Upgrades are tunnelled by the gate and never get here.
    peer.options.http_upstream_request_policy = pingora::upstreams::peer::HttpUpstreamRequestPolicy::deny_upgrades();
    peer
}
