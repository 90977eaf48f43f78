//! What is known of one request while it is carried, from its arrival to its line in the access log.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Version;

use crate::balance::state::Now;
use crate::balance::{Backend, Group, Pick, Timeouts, Tried};
use crate::config::{self, GroupId, Route};
use crate::decide::{Forward, Verdict};
use crate::rewrite::forwarded::Client;
use crate::routing::users::{UserTable, Users};
use crate::snapshot::{Rules, Site, Snapshot};

use super::failure::Failure;
use super::wire::{Facts, Home};

pub struct Ctx {
    pub started: Instant,
    /// Pinned for the whole life of the request: it sees one configuration.
    pub snapshot: Arc<Snapshot>,
    /// The connection that is lent for it; HTTP/2 streams have none.
    pub home: Option<Arc<Home>>,
    pub facts: Option<Arc<Facts>>,
    pub client: Client,
    /// The protocol of the client; Pingora changes the request's own version.
    pub version: Version,
    pub request_id: String,
    pub site: Option<u32>,
    /// The row of the users table.
    pub user: Option<u32>,
    pub forward: Option<Forward>,
    /// The route that answers without a backend.
    pub answered_by: Option<u32>,
    /// Bytes of the body that went to a backend.
    pub body_sent: u64,
    pub attempts: Attempts,
    /// Why the request was not answered by a backend, or not as it should have been.
    pub reason: Option<&'static str>,
}

/// The tries at getting an answer from a backend.
#[derive(Default)]
pub struct Attempts {
    /// Backends that are not asked again for this request.
    pub tried: Tried,
    pub count: usize,
    pub pick: Option<Pick>,
    /// How the last attempt failed.
    pub failure: Option<Failure>,
    /// The request was sent once and lost its connection; it is sent again only once.
    pub resent: bool,
    pub began: Option<Instant>,
    pub connect: Option<Duration>,
    pub first_byte: Option<Duration>,
}

impl Ctx {
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self {
            started: Instant::now(),
            snapshot,
            home: None,
            facts: None,
            client: Client { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), trusted: false, secure: false },
            version: Version::HTTP_11,
            request_id: String::new(),
            site: None,
            user: None,
            forward: None,
            answered_by: None,
            body_sent: 0,
            attempts: Attempts::default(),
            reason: None,
        }
    }

    /// Lets go of the configuration but for what the log will tell: a WebSocket may outlive hundreds of them.
    pub fn unpin(&mut self) {
        let Some((site, group)) = self.site().cloned().zip(self.pinned_group()) else { return };
        let (rules, mut names) = (&self.snapshot.rules, UserTable::default());
        let app = self.forward.as_ref().and_then(|forward| forward.app).map(|app| rules.users.app_name(app));
        if let Some(user) = self.user {
            names.add_user(rules.users.user_name(user), app.map(|app| (app, 0)));
        }
        let kept = Rules { sites: [site].into(), users: Users::new(names), ..Rules::default() };
        self.snapshot = Arc::new(Snapshot {
            generation: self.snapshot.generation,
            rules: Arc::new(kept),
            groups: [group].into(),
            checked: Arc::default(),
        });
        // Each is the first of its kind now.
        (self.site, self.user) = (Some(0), self.user.map(|_| 0));
        if let Some(forward) = &mut self.forward {
            (forward.site, forward.group) = (0, GroupId(0));
            (forward.user, forward.app) = (forward.user.map(|_| 0), forward.app.map(|_| 0));
        }
    }

    fn pinned_group(&self) -> Option<Arc<Group>> {
        self.snapshot.groups.get(self.forward.as_ref()?.group.0 as usize).cloned()
    }

    /// Takes note of a verdict; what is left to do is in the result.
    pub fn decided(&mut self, verdict: Verdict) -> Todo {
        match verdict {
            Verdict::Forward(forward) => {
                self.site = Some(forward.site);
                self.user = forward.user;
                self.forward = Some(forward);
                Todo::Forward
            }
            Verdict::Redirect { site, route, location, status } => {
                (self.site, self.answered_by) = (Some(site), route);
                self.reason = Some("redirect");
                Todo::Answer(Answer::Redirect { location, status })
            }
            Verdict::Respond { site, route } => {
                (self.site, self.answered_by) = (Some(site), Some(route));
                self.reason = Some("respond");
                Todo::Answer(Answer::Respond)
            }
            Verdict::Refuse { site, route, user, status, reason } => {
                (self.site, self.answered_by) = (site, route);
                self.user = user;
                self.reason = Some(reason.as_str());
                Todo::Answer(Answer::Refuse(status))
            }
            Verdict::Drop => {
                self.reason = Some("unknown_host");
                Todo::Drop
            }
        }
    }

    pub fn site(&self) -> Option<&Site> {
        self.snapshot.site(self.site?)
    }

    pub fn route(&self) -> Option<&Route> {
        let route = self.forward.as_ref().map(|forward| forward.route).or(self.answered_by)?;
        self.snapshot.route(self.site?, route)
    }

    pub fn group(&self) -> Option<&Group> {
        self.snapshot.group(self.forward.as_ref()?.group)
    }

    /// The backend of the current attempt.
    pub fn backend(&self) -> Option<&Backend> {
        self.group()?.backend(self.attempts.pick?.backend)
    }

    /// The timeouts of this request: the route's where it has some, otherwise the group's.
    pub fn timeouts(&self) -> Option<Timeouts> {
        let wide = self.group()?.timeouts;
        let narrow = self.route().map_or_else(config::Timeouts::default, |route| route.timeouts);
        Some(Timeouts {
            connect: narrow.connect.unwrap_or(wide.connect),
            read: narrow.read.unwrap_or(wide.read),
            send: narrow.send.unwrap_or(wide.send),
            websocket_idle: narrow.websocket_idle.unwrap_or(wide.websocket_idle),
        })
    }

    /// Begins an attempt at the picked backend.
    pub fn attempt(&mut self, pick: Pick) {
        self.attempts.pick = Some(pick);
        self.attempts.tried.push(pick.backend);
        self.attempts.count += 1;
        self.attempts.began = Some(Instant::now());
    }

    /// The attempt has a new connection, so its backend takes connections.
    pub fn connected(&mut self) {
        self.attempts.connect = self.attempts.began.map(|began| began.elapsed());
        if let Some(backend) = self.backend()
            && let Some(began) = self.attempts.began
            && backend.state.readmit(Now::of(began))
        {
            log::info!("backend {} accepts connections again", backend.address);
        }
    }

    /// Whether a backend is left that no attempt was made at.
    pub fn may_try_again(&self) -> bool {
        self.group().is_some_and(|group| self.attempts.tried.len() < group.backends().len())
    }
}

/// What the carrier of the request does next.
pub enum Todo {
    Forward,
    Answer(Answer),
    Drop,
}

/// An answer of our own.
pub enum Answer {
    Redirect {
        location: String,
        status: u16,
    },
    /// What the route says.
    Respond,
    /// A page for this status.
    Refuse(u16),
}
