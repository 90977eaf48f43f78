//! What a certificate says of itself: its names and how long it is good.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::routing::host::HostPattern;

/// The facts about a leaf certificate that an operator must know.
#[derive(Debug)]
pub struct Facts {
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    /// The DNS names of the subject's alternative names; browsers look at nothing else.
    names: Vec<String>,
}

/// Reads a certificate; `None` if it is none, which loading it has found out before.
pub fn inspect(certificate: &CertificateDer<'_>) -> Option<Facts> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Some(Facts {
        not_before: certificate.validity().not_before.to_datetime(),
        not_after: certificate.validity().not_after.to_datetime(),
        names: names.collect(),
    })
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_one_label() {
        let names = ["a.test", "*.b.test"].map(str::to_owned).to_vec();
        let epoch = OffsetDateTime::UNIX_EPOCH;
        let facts = Facts { not_before: epoch, not_after: epoch, names };
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
