//! Plays a request through without any connection: the same view, decision and edits as on the data path, for `explain`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, Version};
use pingora::http::RequestHeader;

use super::apply;
use super::carry::{consider_traced, own_answer};
use super::ctx::{Ctx, Todo};
use super::wire::{Facts, TlsFacts};
use crate::balance::Pick;
use crate::config::Listener;
use crate::decide::{Forward, Lost, Trace};
use crate::snapshot::Snapshot;

/// A request that nobody sends.
pub struct Imagined {
    pub method: http::Method,
    /// Path and query.
    pub target: String,
    /// With `Host`.
    pub headers: HeaderMap,
    pub from: IpAddr,
    pub listener: Arc<Listener>,
    /// The name in the handshake, on a TLS listener.
    pub sni: String,
}

/// What would become of it.
pub struct Rehearsal {
    pub site: Option<u32>,
    /// The route that answers, in the site.
    pub route: Option<u32>,
    /// Routes for the path that did not answer.
    pub lost: Vec<(u32, Lost)>,
    /// The row of the users table.
    pub user: Option<u32>,
    pub client: IpAddr,
    pub secure: bool,
    pub reason: Option<&'static str>,
    pub outcome: Outcome,
}

pub enum Outcome {
    Forward {
        forward: Forward,
        /// The request as the backend would get it.
        target: String,
        headers: HeaderMap,
    },
    Answer {
        status: u16,
        headers: HeaderMap,
        body: bytes::Bytes,
    },
    Drop,
}

#[derive(Default)]
struct Losers(Vec<(u32, Lost)>);

impl Trace for Losers {
    fn lost(&mut self, route: u32, why: Lost) {
        self.0.push((route, why));
    }
}

/// Plays a request through.
///
/// # Errors
/// The request cannot be written down.
pub fn rehearse(snapshot: Arc<Snapshot>, imagined: &Imagined) -> pingora::Result<Rehearsal> {
    let mut request = RequestHeader::build(imagined.method.clone(), imagined.target.as_bytes(), None)?;
    for (name, value) in &imagined.headers {
        request.append_header(name.clone(), value.clone())?;
    }
    let tls = imagined.listener.tls.then(|| TlsFacts { sni: imagined.sni.clone(), version: "TLSv1.3" });
    let facts = Facts {
        peer: SocketAddr::new(imagined.from, 0),
        local_port: imagined.listener.address.port(),
        listener: imagined.listener.clone(),
        tls,
        finish: tokio::sync::watch::channel(false).1,
        fd: -1,
    };
    let mut ctx = Ctx::new(snapshot);
    ctx.facts = Some(Arc::new(facts));
    request.set_version(Version::HTTP_11);
    let mut losers = Losers::default();
    let todo = consider_traced(&request, &mut ctx, || "(request id)".to_owned(), &mut losers);
    let outcome = match todo {
        Todo::Drop => Outcome::Drop,
        Todo::Answer(answer) => {
            let (head, body) = own_answer(&request, &ctx, &answer)?;
            Outcome::Answer { status: head.status.as_u16(), headers: head.headers.clone(), body }
        }
        Todo::Forward => {
            // One of the backends, so that what depends on it can be shown.
            ctx.attempts.pick = Some(Pick { backend: 0, stuck: true });
            let mut sent = request.clone();
            apply::request(&mut sent, &ctx, &request)?;
            let target = String::from_utf8_lossy(sent.raw_path()).into_owned();
            let headers = sent.headers.clone();
            match ctx.forward.clone() {
                Some(forward) => Outcome::Forward { forward, target, headers },
                None => Outcome::Drop,
            }
        }
    };
    Ok(Rehearsal {
        site: ctx.site,
        route: ctx.forward.as_ref().map(|forward| forward.route).or(ctx.answered_by),
        lost: losers.0,
        user: ctx.user,
        client: ctx.client.address,
        secure: ctx.client.secure,
        reason: ctx.reason,
        outcome,
    })
}
