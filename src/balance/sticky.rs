//! Stickiness: a cookie that brings a client back to its backend.
//!
//! The value is an HMAC of the group's and the backend's name: it tells nothing about them, cannot be made up, and is
//! the same on every node that has the same secret. All values of a group are computed when it is built, so that a
//! request needs one look-up.

use aws_lc_rs::{digest, hmac};

use std::fmt::Write as _;

/// The cookie of one group.
#[derive(Debug)]
pub struct Stickiness {
    pub cookie: String,
    attributes: String,
    tokens: hashbrown::HashMap<String, u16, foldhash::fast::RandomState>,
    by_backend: Vec<String>,
}

impl Stickiness {
    /// Computes the value of every backend. `max_age` is in seconds.
    pub fn new<'a>(cookie: &str, max_age: Option<u64>, secret: &[u8], group: &str, backends: impl Iterator<Item = &'a str>) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let by_backend: Vec<String> = backends.map(|backend| token(&key, group, backend)).collect();
        let tokens = (0..).zip(&by_backend).map(|(index, token)| (token.clone(), index)).collect();
        let mut attributes = String::from("; Path=/; HttpOnly; SameSite=Lax");
        if let Some(seconds) = max_age {
            let _ = write!(attributes, "; Max-Age={seconds}");
        }
        Stickiness { cookie: cookie.to_owned(), attributes, tokens, by_backend }
    }

    /// The backend that a cookie's value stands for.
    pub fn backend(&self, value: &str) -> Option<u16> {
        self.tokens.get(value).copied()
    }

    /// The `Set-Cookie` value that makes a client stick to a backend.
    pub fn set_cookie(&self, backend: u16, secure: bool) -> Option<String> {
        let token = self.by_backend.get(usize::from(backend))?;
        let secure = if secure { "; Secure" } else { "" };
        Some(format!("{}={token}{}{secure}", self.cookie, self.attributes))
    }
}

/// 96 bits are beyond guessing and keep the cookie short.
fn token(key: &hmac::Key, group: &str, backend: &str) -> String {
    let mut message = group.as_bytes().to_vec();
    // A byte that no name has keeps ("ab", "c") and ("a", "bc") apart.
    message.push(0);
    message.extend_from_slice(backend.as_bytes());
    hex(hmac::sign(key, &message).as_ref(), 12)
}

/// The name of a group's cookie unless one is given: it does not tell the group's name.
pub fn default_cookie(group: &str) -> String {
    format!("srv_{}", hex(digest::digest(&digest::SHA256, group.as_bytes()).as_ref(), 4))
}

fn hex(bytes: &[u8], count: usize) -> String {
    bytes.iter().take(count).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The value of a cookie in `Cookie` headers (RFC 6265 section 4.2.1).
///
/// On bytes: the client's other cookies may hold anything.
pub fn cookie_value<'a>(header: &'a [u8], name: &str) -> Option<&'a str> {
    let value = pairs(header).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    std::str::from_utf8(value).ok()
}

fn pairs(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    header.split(|byte| *byte == b';').map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
}

/// A `Cookie` header without one cookie; `None` if it was not there, empty if nothing else was.
pub fn without_cookie(header: &[u8], name: &str) -> Option<Vec<u8>> {
    let is_it = |pair: &[u8]| pair.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
    if !pairs(header).any(is_it) {
        return None;
    }
    let kept: Vec<&[u8]> = pairs(header).filter(|pair| !is_it(pair)).collect();
    Some(kept.join(&b"; "[..]))
}
