//! Certificates for tests.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;

pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Writes `NAME.pem` and `NAME.key` for the names into a directory.
    pub fn issue(&self, directory: &Path, name: &str, domains: &[&str]) {
        self.issue_with(directory, name, domains, &KeyPair::generate().unwrap(), |_| {});
    }

    /// As `issue`, for one that ended long ago.
    pub fn issue_expired(&self, directory: &Path, name: &str, domain: &str) {
        self.issue_with(directory, name, &[domain], &KeyPair::generate().unwrap(), |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        });
    }

    /// As `issue`, with a key of one's own and changes to what is certified.
    pub fn issue_with(&self, directory: &Path, name: &str, domains: &[&str], key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) {
        let domains: Vec<String> = domains.iter().map(|domain| (*domain).to_owned()).collect();
        let mut params = CertificateParams::new(domains.clone()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, domains[0].as_str());
        change(&mut params);
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        write(&directory.join(format!("{name}.pem")), &certificate.pem());
        write(&directory.join(format!("{name}.key")), &key.serialize_pem());
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The certificate of an authority with a name that nothing here was issued by.
    pub fn named_pem(&self) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "somebody else");
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().pem()
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }
}

/// Renamed into place, and for nobody else to read.
pub fn write(path: &Path, text: &str) {
    let aside = path.with_extension("aside");
    std::fs::write(&aside, text).unwrap();
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&aside, path).unwrap();
}
