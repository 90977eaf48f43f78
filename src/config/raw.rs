//! The configuration as written: serde mirrors of the files, without defaults, names unresolved.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, de::value::StrDeserializer};

use super::units::{Size, Time};

/// Keys that the design knows and this version does not have yet. They are refused, never ignored.
pub(crate) const NOT_IN_THIS_VERSION: &[&str] = &[
    "acme",
    "active",
    "admin",
    "client_certificate",
    "compression",
    "error_pages",
    "groups",
    "headers",
    "maintenance",
    "managed",
    "max_body",
    "max_concurrent",
    "methods",
    "presets",
    "proxy_protocol",
    "query",
    "rate_limit",
    "redirect",
    "request_headers",
    "respond",
    "response_headers",
    "slow_start",
    "static_files",
    "tests",
];

/// A value that may be short (a word or a switch) or a mapping when more is to be said.
#[derive(Clone, Debug)]
pub(crate) enum Short<T> {
    Switch(bool),
    Word(String),
    Long(T),
}

/// One text or a list of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct OneOrMany(pub(crate) Vec<String>);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Main {
    #[serde(default)]
    pub(crate) listeners: Vec<Listener>,
    pub(crate) unknown_host: Option<Word>,
    #[serde(default)]
    pub(crate) trusted_proxies: Vec<String>,
    pub(crate) threads: Option<usize>,
    pub(crate) run_as: Option<String>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) sticky_secret: Option<String>,
    pub(crate) access_log: Option<Short<AccessLog>>,
    pub(crate) drain_timeout: Option<Time>,
    #[serde(default)]
    pub(crate) defaults: Defaults,
    #[serde(default)]
    pub(crate) backend_groups: BTreeMap<String, Group>,
    pub(crate) sites: Option<OneOrMany>,
    pub(crate) users: Option<OneOrMany>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listener {
    pub(crate) address: String,
    #[serde(default)]
    pub(crate) tls: bool,
    pub(crate) keep_alive: Option<Time>,
    pub(crate) header_deadline: Option<Time>,
    pub(crate) send_timeout: Option<Time>,
    pub(crate) max_header_size: Option<Size>,
    pub(crate) max_connections: Option<usize>,
    pub(crate) max_requests: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessLog {
    pub(crate) format: Option<String>,
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Defaults {
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    pub(crate) health_check: Option<Short<HealthCheck>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Timeouts {
    pub(crate) connect: Option<Time>,
    pub(crate) read: Option<Time>,
    pub(crate) send: Option<Time>,
    pub(crate) websocket_idle: Option<Time>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    pub(crate) balance: Option<String>,
    pub(crate) sticky: Option<Short<Sticky>>,
    pub(crate) health_check: Option<Short<HealthCheck>>,
    pub(crate) timeouts: Option<Timeouts>,
    pub(crate) backends: Vec<Short<Backend>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Backend {
    pub(crate) address: String,
    pub(crate) name: Option<String>,
    pub(crate) weight: Option<usize>,
    #[serde(default)]
    pub(crate) backup: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sticky {
    pub(crate) cookie: Option<String>,
    pub(crate) max_age: Option<Time>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HealthCheck {
    pub(crate) path: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) interval: Option<Time>,
    pub(crate) timeout: Option<Time>,
    pub(crate) rise: Option<usize>,
    pub(crate) fall: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Site {
    pub(crate) name: Option<String>,
    pub(crate) enabled: Option<bool>,
    #[serde(default)]
    pub(crate) domains: Vec<String>,
    pub(crate) tls: Option<Short<Certificate>>,
    pub(crate) hsts: Option<Short<Hsts>>,
    pub(crate) https_redirect: Option<bool>,
    pub(crate) https_port: Option<u16>,
    pub(crate) group: Option<String>,
    pub(crate) backends: Option<Vec<Short<Backend>>>,
    pub(crate) balance: Option<String>,
    pub(crate) health_check: Option<Short<HealthCheck>>,
    pub(crate) sticky: Option<Short<Sticky>>,
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    #[serde(default)]
    pub(crate) routes: Vec<Route>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Certificate {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hsts {
    pub(crate) max_age: Time,
    #[serde(default)]
    pub(crate) include_subdomains: bool,
    #[serde(default)]
    pub(crate) preload: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Route {
    pub(crate) path: String,
    pub(crate) name: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) users: Option<Short<UsersRule>>,
    pub(crate) app: Option<String>,
    pub(crate) strip: Option<String>,
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UsersRule {
    pub(crate) unknown_user: Option<Word>,
    pub(crate) unknown_app: Option<Word>,
}

/// A users file: apps with the role that places them, users with the group of each role or app.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Users {
    #[serde(default)]
    pub(crate) apps: BTreeMap<String, App>,
    #[serde(default)]
    pub(crate) users: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct App {
    pub(crate) role: String,
}

/// A word that may look like a number, such as `404`.
#[derive(Clone, Debug)]
pub(crate) struct Word(pub(crate) String);

// === impl Deserialize ===

struct ShortVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ShortVisitor<T> {
    type Value = Short<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word or a mapping")
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Short::Switch(value))
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Short::Word(text.to_owned()))
    }
    /// What a bare number lacks is said by whoever knows what it should be.
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Short::Word(number.to_string()))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Short::Long)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Short<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShortVisitor(PhantomData))
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMany;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a list of paths")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Word;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word, E> {
                String::deserialize(StrDeserializer::new(text)).map(Word)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Word, E> {
                Ok(Word(number.to_string()))
            }
        }
        deserializer.deserialize_any(Text)
    }
}
