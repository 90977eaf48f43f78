//! The configuration as written: serde mirrors of the files, without defaults, names unresolved.
//!
//! The descriptions here are the ones that `portcullis schema` and the reference page show.

mod forms;
pub(crate) mod schema;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{Size, Time};
pub(crate) use forms::{Condition, Limit, OneOrMany, Short, Word};

/// Keys that the design knows and this version does not have yet. They are refused, never ignored.
pub(crate) const NOT_IN_THIS_VERSION: &[&str] =
    &["acme", "client_certificate", "compression", "max_concurrent", "proxy_protocol", "rate_limit", "slow_start", "static_files"];

/// The main file: where connections are accepted, which backend groups there are, where sites and users are found.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Main {
    /// The addresses that connections are accepted on. At least one.
    #[serde(default)]
    pub(crate) listeners: Vec<Listener>,
    /// What becomes of a request for a host that no site has: `drop` closes the connection without an answer, `404`
    /// answers, the name of a site lets that site answer. Default `drop`.
    pub(crate) unknown_host: Option<Word>,
    /// Addresses and networks of proxies before this one. What they say about their clients (`X-Forwarded-For`,
    /// `X-Forwarded-Proto`, `X-Request-Id`) is believed; of everybody else it is dropped.
    #[serde(default)]
    pub(crate) trusted_proxies: OneOrMany,
    /// Certificates for the sites that say `tls: true`: files, directories (searched two levels deep) or globs. A
    /// certificate is chosen by the names in it.
    pub(crate) certificates: Option<OneOrMany>,
    /// Name servers for the names of backends, such as `10.0.0.53` or `127.0.0.1:5353`. Default: those of the system.
    #[serde(default)]
    pub(crate) name_servers: OneOrMany,
    /// Worker threads, 1 to 1024. Default: one for each CPU. A change needs an upgrade.
    pub(crate) threads: Option<usize>,
    /// The OS user to become once the listeners are bound. A change needs a restart.
    pub(crate) run_as: Option<String>,
    /// Where the process keeps what must survive it. Default `/var/lib/portcullis`.
    pub(crate) state_dir: Option<PathBuf>,
    /// The key of the sticky cookies, at least 16 characters, so that several proxies agree. Default: made once and kept in
    /// `state_dir`.
    pub(crate) sticky_secret: Option<String>,
    /// One line for each request: `combined`, `json`, `off`, or a mapping with `format` and `path`. Default `combined` on
    /// standard output.
    pub(crate) access_log: Option<Short<AccessLog>>,
    /// How long requests may take to finish when the process stops or hands over to another; WebSockets are closed then. Default
    /// `30s`.
    pub(crate) drain_timeout: Option<Time>,
    /// How long a process that is told to stop still accepts connections while `/readyz` fails already, so that a load
    /// balancer before it looks elsewhere first. Default `0s`.
    pub(crate) drain_delay: Option<Time>,
    /// How the running process is asked and told things: `off`, or a mapping. Default: a socket at
    /// `/run/portcullis/admin.sock`. A change needs an upgrade.
    pub(crate) admin: Option<Short<Admin>>,
    /// A change of the main file, a site or a users file is a reload, once the files have come to rest. Default `false`.
    #[serde(default)]
    pub(crate) watch: bool,
    /// A file that has the number of the process while it is ready. A change needs an upgrade.
    pub(crate) pid_file: Option<PathBuf>,
    /// What sites, groups and routes get that say nothing else.
    #[serde(default)]
    pub(crate) defaults: Defaults,
    /// Sets of backends by name, for sites, routes and users to refer to.
    #[serde(default)]
    pub(crate) backend_groups: BTreeMap<String, Group>,
    /// The site files: paths or globs, relative to this file.
    pub(crate) sites: Option<OneOrMany>,
    /// The users files: paths or globs, relative to this file.
    pub(crate) users: Option<OneOrMany>,
}

/// An address that connections are accepted on, and the limits of its connections.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listener {
    /// `:443` for all addresses of IPv4 and IPv6, `192.0.2.1:443` or `[2001:db8::1]:443` for one.
    pub(crate) address: String,
    /// What sites call this listener in `listeners:`. Default: its address as written.
    pub(crate) name: Option<String>,
    /// Connections are encrypted; the site's certificate is chosen by the name in the handshake. Default `false`.
    #[serde(default)]
    pub(crate) tls: bool,
    /// Listens also while this machine does not have the address: a virtual one that comes when another machine fails.
    /// Default `false`.
    #[serde(default)]
    pub(crate) freebind: bool,
    /// How long a connection may stay without a request. Default `75s`.
    pub(crate) keep_alive: Option<Time>,
    /// How long the head of a request, or the TLS handshake, may take as a whole; 408 then. Default `10s`.
    pub(crate) header_deadline: Option<Time>,
    /// How long a client may take to accept a piece of an answer; the connection is closed then. Default `60s`.
    pub(crate) send_timeout: Option<Time>,
    /// Bytes of a request's head, 1KiB to 1MiB; 431 beyond. Default `32KiB`.
    pub(crate) max_header_size: Option<Size>,
    /// Connections at once; further clients wait in the kernel's queue. Default 50000.
    pub(crate) max_connections: Option<usize>,
    /// Requests on one connection before it is closed. Default 100000.
    pub(crate) max_requests: Option<u64>,
}

/// How the running process is asked and told things.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admin {
    /// The unix socket that `portcullis reload`, `status` and others use, or `off`. Its mode is 0660. Default
    /// `/run/portcullis/admin.sock`.
    pub(crate) socket: Option<String>,
    /// The OS group whose members may use the socket, beside root and the user of the process, who must be root or a member too.
    /// Default: the group of the process.
    pub(crate) group: Option<String>,
    /// An address that answers `/livez`, `/readyz` and `/metrics`, and nothing else, to everybody who reaches it. Default: none.
    pub(crate) address: Option<String>,
}

/// The access log.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessLog {
    /// `combined`, `json` or `off`. Default `combined`.
    #[schemars(extend("enum" = ["combined", "json", "off", null]))]
    pub(crate) format: Option<String>,
    /// A file; USR1 opens it anew after a rotation. Default: standard output.
    pub(crate) path: Option<PathBuf>,
}

/// What sites, groups and routes get that say nothing else.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Defaults {
    /// Timeouts towards backends.
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    /// How backends are checked: `tcp`, a path, `off`, or a mapping. Default `tcp`.
    pub(crate) health_check: Option<Short<HealthCheck>>,
    /// The largest body of a request, or `off`; 413 beyond. Default `1GiB`.
    pub(crate) max_body: Option<Limit>,
    /// Protocol versions and ciphers towards clients.
    pub(crate) tls: Option<DefaultTls>,
    /// Edits of the headers that every backend gets.
    #[serde(default)]
    pub(crate) request_headers: HeaderEdits,
    /// Edits of the headers that every client gets.
    #[serde(default)]
    pub(crate) response_headers: HeaderEdits,
    /// Pages for answers that are our own, by status (`404`), class (`5xx`) or `default`. HTML files, in which `{status}`,
    /// `{title}`, `{request_id}` and (with `error_details`) `{reason}` are filled in. A site's pages come before these.
    #[serde(default)]
    pub(crate) error_pages: BTreeMap<String, PathBuf>,
    /// Error pages name the reason that the access log has, such as `connect_timeout`. Default `false`.
    pub(crate) error_details: Option<bool>,
}

/// TLS towards clients where the site says nothing.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DefaultTls {
    /// `intermediate` (TLS 1.2 and 1.3) or `modern` (TLS 1.3 alone). Default `intermediate`.
    #[schemars(extend("enum" = ["intermediate", "modern", null]))]
    pub(crate) preset: Option<String>,
}

/// Timeouts towards a backend, each for one operation. The narrowest scope that says one wins: route, site, group,
/// defaults.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Timeouts {
    /// Until a connection (and TLS) is made; another backend is tried then, or 504. Default `5s`.
    pub(crate) connect: Option<Time>,
    /// Silence of a backend that an answer is expected from; 504 then. Default `60s`.
    pub(crate) read: Option<Time>,
    /// Until a backend accepts a piece of the request; 504 then. Default `60s`.
    pub(crate) send: Option<Time>,
    /// Silence of a WebSocket in both directions; it is closed then. Default `1h`.
    pub(crate) websocket_idle: Option<Time>,
}

/// A set of backends that can stand in for each other.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    /// Which backend gets the next request. `round_robin`, smooth and weighted, is the default.
    #[schemars(extend("enum" = ["round_robin", null]))]
    pub(crate) balance: Option<String>,
    /// A client keeps its backend, by a signed cookie: `true`, or a mapping.
    pub(crate) sticky: Option<Short<Sticky>>,
    /// How backends are checked: `tcp`, a path such as `/healthz`, `off`, or a mapping.
    pub(crate) health_check: Option<Short<HealthCheck>>,
    /// Timeouts towards these backends.
    pub(crate) timeouts: Option<Timeouts>,
    /// TLS to the backends: `true`, or a mapping. Certificates are verified. Default `false`.
    pub(crate) tls: Option<Short<BackendTls>>,
    /// `http1` (default), `http2` (over TLS, or in the clear with prior knowledge: gRPC needs it) or `auto` (over TLS the
    /// backend chooses).
    #[schemars(extend("enum" = ["http1", "http2", "auto", null]))]
    pub(crate) protocol: Option<String>,
    /// The `Host` that backends see: `keep` (default) sends the client's, `backend` the backend's own address as written
    /// here, anything else is sent as it is.
    pub(crate) host: Option<String>,
    /// The local address that connections to these backends come from.
    pub(crate) source: Option<String>,
    /// Addresses, or mappings with more to say.
    pub(crate) backends: Vec<Short<Backend>>,
}

/// TLS to backends.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackendTls {
    /// The name that the backends' certificates must have, sent as SNI. Default: the host part of each backend's address.
    pub(crate) server_name: Option<String>,
    /// Whether certificates are verified. Default `true`.
    pub(crate) verify: Option<bool>,
    /// A file with the certificates of the authorities to trust. Default: those of the system.
    pub(crate) ca: Option<PathBuf>,
    /// The certificate that we show to backends that ask for one, with its chain. It is read when the configuration is.
    pub(crate) cert: Option<PathBuf>,
    /// The key of `cert`.
    pub(crate) key: Option<PathBuf>,
}

/// One server that requests are sent to.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Backend {
    /// `10.0.0.1:8080`, `[2001:db8::1]:8080`, `app.internal:8080` (each of its addresses is a backend, resolved again as its
    /// time to live says) or `unix:/run/app.sock`.
    pub(crate) address: String,
    /// What logs, metrics and sticky cookies call it. Default: its address.
    pub(crate) name: Option<String>,
    /// Its share of the requests, 1 to 256. Default 1.
    #[schemars(range(min = 1, max = 256))]
    pub(crate) weight: Option<usize>,
    /// Used only while no other backend is eligible. Default `false`.
    #[serde(default)]
    pub(crate) backup: bool,
}

/// A client keeps its backend.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sticky {
    /// The name of the cookie. Default: derived from the group's name.
    pub(crate) cookie: Option<String>,
    /// How long browsers keep it. Default: until they are closed.
    pub(crate) max_age: Option<Time>,
}

/// How the health of a backend is found out. Without `path` it is a TCP connect (and a TLS handshake where `tls` says so).
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HealthCheck {
    /// The path that is asked for: this makes it an HTTP check.
    pub(crate) path: Option<String>,
    /// `GET` (default), `HEAD`, `OPTIONS` or `POST`.
    #[schemars(extend("enum" = ["GET", "HEAD", "OPTIONS", "POST", null]))]
    pub(crate) method: Option<String>,
    /// The `Host` of the probe. Default: the backend's address as written.
    pub(crate) host: Option<String>,
    /// The statuses of a healthy backend: `200`, `2xx`, `200-399`, or a list. Default `200-399`.
    pub(crate) status: Option<OneOrMany>,
    /// A text that the first 64 KiB of the answer's body must have.
    pub(crate) body: Option<String>,
    /// Headers of the probe.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Word>,
    /// Another port than the one that requests go to.
    pub(crate) port: Option<u16>,
    /// Whether the probe uses TLS. Default: as requests to the group do.
    pub(crate) tls: Option<bool>,
    /// The time from one probe to the next. Default `5s`.
    pub(crate) interval: Option<Time>,
    /// How long a probe may take. Default `2s`.
    pub(crate) timeout: Option<Time>,
    /// Up to this is waited, at random, before each probe, so that backends are not probed at the same moment. Default: a
    /// tenth of `interval`.
    pub(crate) jitter: Option<Time>,
    /// Good probes in a row that make a backend healthy. Default 2.
    pub(crate) rise: Option<usize>,
    /// Bad probes in a row that make a backend unhealthy. Default 3.
    pub(crate) fall: Option<usize>,
}

/// A site file: domains and their routes.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Site {
    /// What logs and metrics call the site. Default: the file's name without its ending.
    pub(crate) name: Option<String>,
    /// `false` leaves the file out. Default `true`.
    pub(crate) enabled: Option<bool>,
    /// `shop.example.com`, `*.example.com`, `{user}.apps.example.com` or `~regex`. Exact names win over the longest wildcard,
    /// wildcards over regexes.
    #[serde(default)]
    pub(crate) domains: OneOrMany,
    /// The listeners that this site answers on, by name. Default: all. On others its domains are unknown hosts: a domain belongs to
    /// one site, whichever listeners that one answers on.
    pub(crate) listeners: Option<OneOrMany>,
    /// The site's certificate: `{ cert: FILE, key: FILE }`, or `true` for one of the main file's `certificates`.
    pub(crate) tls: Option<Short<Tls>>,
    /// `Strict-Transport-Security`: a duration such as `1y`, or a mapping.
    pub(crate) hsts: Option<Short<Hsts>>,
    /// Plain requests are redirected to HTTPS: 301 for GET and HEAD, 308 otherwise. Default: where the site has `tls`.
    pub(crate) https_redirect: Option<bool>,
    /// The port of those redirects. Default: that of the first TLS listener, told only to clients that name a port themselves.
    pub(crate) https_port: Option<u16>,
    /// Every request is answered with 503 while this is `true`, or as a mapping says; only `/.well-known/acme-challenge/` is let
    /// through.
    pub(crate) maintenance: Option<Short<Maintenance>>,
    /// The backend group of requests that no route takes elsewhere.
    pub(crate) group: Option<String>,
    /// Backend groups by a name of your own, such as `{ blue: old, green: new }`, of which `active` gets the requests.
    #[serde(default)]
    pub(crate) groups: BTreeMap<String, String>,
    /// Which of `groups` gets the requests. `portcullis switch SITE NAME` changes it while running; a change here wins over
    /// that.
    pub(crate) active: Option<String>,
    /// Backends of this site alone, instead of `group`.
    pub(crate) backends: Option<Vec<Short<Backend>>>,
    /// As in a backend group, for `backends` of this site.
    pub(crate) balance: Option<String>,
    /// As in a backend group, for `backends` of this site.
    pub(crate) health_check: Option<Short<HealthCheck>>,
    /// As in a backend group, for `backends` of this site.
    pub(crate) sticky: Option<Short<Sticky>>,
    /// Timeouts towards backends.
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    /// The largest body of a request, or `off`; 413 beyond.
    pub(crate) max_body: Option<Limit>,
    /// Edits of the headers that backends get.
    #[serde(default)]
    pub(crate) request_headers: HeaderEdits,
    /// Edits of the headers that clients get, with answers of our own too.
    #[serde(default)]
    pub(crate) response_headers: HeaderEdits,
    /// Pages for answers that are our own, by status (`404`), class (`5xx`) or `default`.
    #[serde(default)]
    pub(crate) error_pages: BTreeMap<String, PathBuf>,
    /// Error pages name the reason that the access log has. Default `false`.
    pub(crate) error_details: Option<bool>,
    /// What is done with which paths. Their order does not matter, but for regexes.
    #[serde(default)]
    pub(crate) routes: Vec<Route>,
    /// Requests with what must become of them, tried by `check` and before every reload.
    #[serde(default)]
    pub(crate) tests: Vec<Test>,
}

/// TLS towards clients.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// The certificate with its chain (PEM). A change of the file is in force within seconds, without a reload.
    pub(crate) cert: Option<PathBuf>,
    /// The key of `cert` (PEM).
    pub(crate) key: Option<PathBuf>,
    /// Several certificates: ECDSA and RSA for one name, or different names.
    #[serde(default)]
    pub(crate) certificates: Vec<Pair>,
    /// `intermediate` (TLS 1.2 and 1.3) or `modern` (TLS 1.3 alone).
    #[schemars(extend("enum" = ["intermediate", "modern", null]))]
    pub(crate) preset: Option<String>,
}

/// A certificate and its key.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pair {
    /// The certificate with its chain (PEM).
    pub(crate) cert: PathBuf,
    /// The key of `cert` (PEM).
    pub(crate) key: PathBuf,
}

/// `Strict-Transport-Security` (RFC 6797).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hsts {
    /// How long browsers ask for this site by HTTPS alone.
    pub(crate) max_age: Time,
    /// Subdomains too. Default `false`.
    #[serde(default)]
    pub(crate) include_subdomains: bool,
    /// The site may be built into browsers. Default `false`.
    #[serde(default)]
    pub(crate) preload: bool,
}

/// A site is closed for a while.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Maintenance {
    /// Addresses and networks that are let through, to try the site.
    #[serde(default)]
    pub(crate) allow: OneOrMany,
    /// When clients may come back (`Retry-After`). Default `5m`.
    pub(crate) retry_after: Option<Time>,
    /// An HTML page to show. Default: the site's error page for 503.
    pub(crate) page: Option<PathBuf>,
}

/// What is done with requests for a path.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Route {
    /// A prefix of whole segments (`/shop/`, which `/shop` matches too; `/{user}/{app}/`), an exact path (`=/login`) or a regex
    /// (`'~^/u/(?<id>\d+)'`, in single quotes because of the backslash).
    pub(crate) path: String,
    /// What logs and metrics call the route. Default: its path.
    pub(crate) name: Option<String>,
    /// Only requests with one of these methods; `GET` includes `HEAD`. Others go to the next route that matches, at last to the
    /// site's `group` or `backends`; where there is none they get 405.
    pub(crate) methods: Option<OneOrMany>,
    /// Only `http` (not redirected to HTTPS then) or only `https` requests.
    #[schemars(extend("enum" = ["http", "https", null]))]
    pub(crate) scheme: Option<String>,
    /// Only requests with these headers: a text, `~regex`, `true` (present) or `false` (absent).
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Condition>,
    /// Only requests with these cookies, as with `headers`.
    #[serde(default)]
    pub(crate) cookies: BTreeMap<String, Condition>,
    /// Only requests with these keys in their query, as with `headers`.
    #[serde(default)]
    pub(crate) query: BTreeMap<String, Condition>,
    /// The backend group that requests go to. Default: the site's.
    pub(crate) group: Option<String>,
    /// The group is looked up in the users table, by the `{user}` and `{app}` of path or domain: `true`, or a mapping.
    pub(crate) users: Option<Short<UsersRule>>,
    /// The app for `users`, where neither path nor domain has an `{app}`.
    pub(crate) app: Option<String>,
    /// Requests are redirected: a URL or path with values of the request, or a mapping.
    pub(crate) redirect: Option<Short<Redirect>>,
    /// Requests are answered here: a status with an empty body (error pages are for errors), or a mapping.
    pub(crate) respond: Option<Short<Respond>>,
    /// How `path` begins that the backend does not see, such as `/{user}`.
    pub(crate) strip: Option<String>,
    /// Edits of the headers that the backend gets.
    #[serde(default)]
    pub(crate) request_headers: HeaderEdits,
    /// Edits of the headers that the client gets.
    #[serde(default)]
    pub(crate) response_headers: HeaderEdits,
    /// Timeouts towards backends.
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    /// The largest body of a request, or `off`; 413 beyond.
    pub(crate) max_body: Option<Limit>,
}

/// What becomes of users and apps that the table does not have.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UsersRule {
    /// `next` (default: the next route that matches answers) or `404`.
    pub(crate) unknown_user: Option<Word>,
    /// `404` (default) or `next`.
    pub(crate) unknown_app: Option<Word>,
}

/// A redirect.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Redirect {
    /// The new URL or path, with values of the request: `https://new.example.com{path}`. The query goes along unless the text
    /// has one.
    pub(crate) to: String,
    /// 301, 302, 303, 307 or 308. Default: 302 for GET and HEAD, 307 otherwise.
    #[schemars(extend("enum" = [301, 302, 303, 307, 308, null]))]
    pub(crate) status: Option<u16>,
}

/// An answer without a backend.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Respond {
    /// 200 to 599. Default 200.
    #[schemars(range(min = 200, max = 599))]
    pub(crate) status: Option<u16>,
    /// Headers of the answer, with values of the request.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Word>,
    /// The body, with values of the request.
    pub(crate) body: Option<String>,
    /// A file as the body, at most 1 MiB; it is read when the configuration is.
    pub(crate) file: Option<PathBuf>,
}

/// Edits of headers: first renamed, then removed, set and added. Those of the defaults, the site and the route are merged; what
/// a narrower scope says of a header wins. A value that the request does not have is empty.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeaderEdits {
    /// Old name to new name; values stay.
    #[serde(default)]
    pub(crate) rename: BTreeMap<String, String>,
    /// Names of headers that are left out.
    #[serde(default)]
    pub(crate) remove: OneOrMany,
    /// Headers that get this value alone, with values of the request such as `{user}`. One that is filled from `${file:…}` or
    /// `${env:…}` is a secret: never shown, and what clients send under its name is dropped on every route of the site.
    #[serde(default)]
    pub(crate) set: BTreeMap<String, Word>,
    /// Headers that get one more value.
    #[serde(default)]
    pub(crate) add: BTreeMap<String, Word>,
}

/// A request with what must become of it. The request's method is the key that has its path or URL.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Test {
    /// A GET of this path or URL.
    pub(crate) get: Option<String>,
    /// A HEAD of this path or URL.
    pub(crate) head: Option<String>,
    /// A POST to this path or URL.
    pub(crate) post: Option<String>,
    /// A PUT to this path or URL.
    pub(crate) put: Option<String>,
    /// A PATCH of this path or URL.
    pub(crate) patch: Option<String>,
    /// A DELETE of this path or URL.
    pub(crate) delete: Option<String>,
    /// An OPTIONS of this path or URL.
    pub(crate) options: Option<String>,
    /// The host that is asked for. Default: the URL's, or the site's first domain.
    pub(crate) host: Option<String>,
    /// `http` or `https`. Default: the URL's, or `https` where the site has `tls`.
    #[schemars(extend("enum" = ["http", "https", null]))]
    pub(crate) scheme: Option<String>,
    /// Headers of the request.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, Word>,
    /// Cookies of the request.
    #[serde(default)]
    pub(crate) cookies: BTreeMap<String, Word>,
    /// The client's address. Default `192.0.2.1`.
    pub(crate) from: Option<String>,
    /// Expected: the backend group.
    pub(crate) group: Option<String>,
    /// Expected: the name of the route.
    pub(crate) route: Option<String>,
    /// Expected: the user of the users table.
    pub(crate) user: Option<String>,
    /// Expected: the app of the users table.
    pub(crate) app: Option<String>,
    /// Expected: path and query as the backend gets them.
    pub(crate) path: Option<String>,
    /// Expected: the status of an answer of our own.
    pub(crate) status: Option<u16>,
    /// Expected: where a redirect leads.
    pub(crate) location: Option<String>,
}

/// A users file: apps with the role that places them, users with the group of each role or app.
#[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Users {
    /// The table of this file is changed by `portcullis users` while running and kept in `state_dir`; the file only seeds it.
    /// Its name is the file's without its ending. Default `false`.
    #[serde(default)]
    pub(crate) managed: bool,
    /// Apps that are placed by a role: one row moves all of a user's apps of that role.
    #[serde(default)]
    pub(crate) apps: BTreeMap<String, App>,
    /// Users with the backend group of each role or app.
    #[serde(default)]
    pub(crate) users: BTreeMap<String, BTreeMap<String, String>>,
}

/// How an app is placed.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct App {
    /// The role whose row in a user's entry says where the app is.
    pub(crate) role: String,
}
