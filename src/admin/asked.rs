//! Requests on the admin socket, and what their bodies say.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;

use crate::balance::hand::Standing;
use crate::explain::Question;
use crate::lifecycle::control::CommandError;
use crate::lifecycle::reload::Reload;

pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) segments: Vec<String>,
    pub(super) query: String,
    pub(super) body: Bytes,
    pub(super) by: String,
}

impl Asked {
    pub(super) fn is(&self, method: &str, path: &[&str]) -> bool {
        self.method == method && self.segments.iter().map(String::as_str).eq(path.iter().copied())
    }

    /// The body, an object; an empty one says nothing.
    pub(super) fn json<T: for<'d> Deserialize<'d>>(&self) -> Result<T, CommandError> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(CommandError::Invalid("the body is no JSON object".to_owned()));
        }
        serde_json::from_slice(body).map_err(|error| CommandError::Invalid(format!("the body: {error}")))
    }

    /// Whether the query says nothing that this request does not know: a slip of the pen must not be taken for silence.
    pub(super) fn parameters(&self, known: &[&str]) -> Result<(), CommandError> {
        let names = self.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next().unwrap_or_default());
        match names.into_iter().find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(name) if known.is_empty() => Err(CommandError::Invalid(format!("there are no parameters here, such as `{name}`"))),
            Some(name) => Err(CommandError::Invalid(format!("`{name}` is no parameter here; there are: {}", known.join(", ")))),
        }
    }

    pub(super) fn query_value(&self, key: &str) -> Option<String> {
        self.query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| decode(value))
    }
}

pub(super) fn decode(text: &str) -> String {
    crate::routing::path::decode(text).into_owned()
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ReloadBody {
    pub(super) strict: bool,
    pub(super) prune: bool,
    pub(super) confirm_seconds: Option<u64>,
}

impl ReloadBody {
    pub(super) fn into_reload(self, by: &str) -> Reload {
        Reload { by: by.to_owned(), strict: self.strict, prune: self.prune, confirm: self.confirm_seconds.map(Duration::from_secs) }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RollbackBody {
    pub(super) generation: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UserBody {
    pub(super) table: Option<String>,
    /// App or role to group; null takes it away.
    pub(super) placements: BTreeMap<String, Option<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StandingBody {
    pub(super) state: Standing,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SwitchBody {
    pub(super) active: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct UpgradeBody {
    pub(super) binary: Option<PathBuf>,
    pub(super) timeout_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplainBody {
    url: String,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    cookies: Vec<String>,
    from: Option<IpAddr>,
    sni: Option<String>,
    listener: Option<String>,
}

impl ExplainBody {
    pub(super) fn into_question(self) -> Result<Question, CommandError> {
        let Self { url, method, headers, cookies, from, sni, listener } = self;
        let method = method.as_deref().unwrap_or("GET");
        let method = method.parse().map_err(|_| CommandError::Invalid(format!("`{method}` is no method")))?;
        // An address of the documentation (RFC 5737), as on the command line.
        let from = from.unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
        Ok(Question { url, method, headers, cookies, from, sni, listener })
    }
}
