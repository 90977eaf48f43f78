//! What a certificate says of itself: its names, how long it is good, how strong it is, and whether its chain holds.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::routing::host::HostPattern;

/// RSA keys below this are refused by browsers and by the CA/Browser Forum.
const RSA_BITS: usize = 2048;

/// The facts about a chain that an operator must know.
#[derive(Clone, Debug)]
pub struct Facts {
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// The DNS names of the subject's alternative names, in lower case; browsers look at nothing else.
    pub names: Vec<String>,
    /// `ECDSA P-256`, `RSA 2048`.
    pub kind: String,
    /// Why clients will distrust it, whatever its names and dates.
    pub weaknesses: Vec<String>,
}

/// Reads a chain, leaf first; `None` if it is none, which loading it has found out before.
pub fn inspect(chain: &[CertificateDer<'_>]) -> Option<Facts> {
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let alternative = leaf.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let (kind, weak) = kind(&leaf);
    let mut weaknesses: Vec<String> = weak.into_iter().collect();
    let algorithm = leaf.signature_algorithm.algorithm.to_id_string();
    if SHA1_SIGNATURES.contains(&algorithm.as_str()) {
        weaknesses.push("it is signed with SHA-1, which no browser accepts".to_owned());
    }
    weaknesses.extend(broken_chain(chain));
    Some(Facts {
        not_before: leaf.validity().not_before.to_datetime(),
        not_after: leaf.validity().not_after.to_datetime(),
        names: names.collect(),
        kind,
        weaknesses,
    })
}

/// sha1WithRSAEncryption, ecdsa-with-SHA1, and MD5 with RSA.
const SHA1_SIGNATURES: [&str; 3] = ["1.2.840.113549.1.1.5", "1.2.840.10045.4.1", "1.2.840.113549.1.1.4"];

/// What kind of key it is, and why it is too weak.
fn kind(leaf: &X509Certificate<'_>) -> (String, Option<String>) {
    match leaf.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => {
            let bits = key.key_size();
            let weak = (bits < RSA_BITS).then(|| format!("its RSA key has {bits} bits: {RSA_BITS} are the least that browsers accept"));
            (format!("RSA {bits}"), weak)
        }
        Ok(PublicKey::EC(point)) => (format!("ECDSA P-{}", point.key_size()), None),
        _ => ("Ed25519".to_owned(), None),
    }
}

/// Why a client that knows only the root cannot build the chain.
fn broken_chain(chain: &[CertificateDer<'_>]) -> Option<String> {
    let mut parsed = Vec::new();
    for (index, der) in chain.iter().enumerate() {
        match X509Certificate::from_der(der) {
            Ok((_, certificate)) => parsed.push(certificate),
            Err(_) => return Some(format!("certificate {} of the chain is damaged", index + 1)),
        }
    }
    for (index, pair) in parsed.windows(2).enumerate() {
        let [lower, upper] = pair else { continue };
        if lower.issuer() != upper.subject() {
            return Some(format!(
                "its chain is broken: certificate {} was issued by `{}`, but certificate {} is `{}`",
                index + 1,
                lower.issuer(),
                index + 2,
                upper.subject()
            ));
        }
    }
    // A public authority names where its own certificate is found; those of one's own rarely do.
    let leaf = parsed.first()?;
    let names_its_issuer = leaf.extensions().iter().any(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.1");
    (parsed.len() == 1 && leaf.issuer() != leaf.subject() && names_its_issuer)
        .then(|| "its chain lacks the intermediate certificate: use the file that has it, often `fullchain.pem`".to_owned())
}

impl Facts {
    /// Whether the certificate is good for every host that a pattern matches (RFC 6125 section 6.4.3: `*` is one label).
    /// What a regex matches cannot be told.
    pub fn covers(&self, pattern: &HostPattern) -> bool {
        let has = |wanted: &str| self.names.iter().any(|name| name == wanted);
        match pattern {
            HostPattern::Exact(name) => has(name) || name.split_once('.').is_some_and(|(_, rest)| has(&format!("*.{rest}"))),
            // No certificate covers several open labels; of `*`, which may be several, it can cover the usual one.
            HostPattern::Open { labels, suffix } => labels.len() == 1 && has(&format!("*{suffix}")),
            HostPattern::Regex(_) => true,
        }
    }

    /// Whole days until the certificate ends; negative when it has.
    pub fn days_left(&self, now: OffsetDateTime) -> i64 {
        (self.not_after - now).whole_days()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_one_label() {
        let names = ["a.test", "*.b.test"].map(str::to_owned).to_vec();
        let epoch = OffsetDateTime::UNIX_EPOCH;
        let facts = Facts { not_before: epoch, not_after: epoch, names, kind: String::new(), weaknesses: Vec::new() };
        for (domain, covered) in [
            ("a.test", true),
            ("www.a.test", false),
            ("x.b.test", true),
            ("b.test", false),
            ("x.y.b.test", false),
            ("*.b.test", true),
            ("{user}.b.test", true),
            ("*.a.test", false),
            ("~^anything$", true),
        ] {
            assert_eq!(facts.covers(&HostPattern::parse(domain).unwrap()), covered, "{domain}");
        }
    }
}
