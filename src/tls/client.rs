//! What is trusted of backends and what is shown to them, read from files.

use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;

use super::inspect::{Facts, inspect};
use super::load::{LoadError, certificates, certified_key, private_key};

/// The client's side of TLS to a backend group.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientTls {
    pub verify: bool,
    /// Authorities to trust instead of the system's.
    pub ca: Option<Authorities>,
    pub identity: Option<Identity>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Authorities {
    pub path: PathBuf,
    pub certificates: Vec<Vec<u8>>,
}

/// The certificate that backends may ask for.
#[derive(PartialEq, Eq)]
pub struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// DER.
    pub private: Vec<u8>,
}

impl Authorities {
    /// # Errors
    /// The file cannot be read, or has no certificate that can be trusted.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let why = |why: String| LoadError::Certificate { path: path.to_owned(), why };
        let certificates = certificates(path)?;
        if certificates.is_empty() {
            return Err(why("there is no certificate in it".to_owned()));
        }
        let mut roots = rustls::RootCertStore::empty();
        for certificate in &certificates {
            let parsed = x509_parser::parse_x509_certificate(certificate);
            if parsed.is_err() || roots.add(certificate.clone()).is_err() {
                return Err(why("a certificate in it cannot be trusted as an authority".to_owned()));
            }
        }
        Ok(Self { path: path.to_owned(), certificates: certificates.into_iter().map(|certificate| certificate.to_vec()).collect() })
    }
}

impl Identity {
    /// # Errors
    /// The files cannot be read, or do not belong together.
    pub fn read(cert: &Path, key: &Path) -> Result<Self, LoadError> {
        let certified = certified_key(cert, key)?;
        let private = private_key(key)?;
        let chain = certified.cert.iter().map(|certificate| certificate.to_vec()).collect();
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), chain, private: private.secret_der().to_vec() })
    }
}

impl Identity {
    /// What its certificate says of itself.
    pub fn facts(&self) -> Option<Facts> {
        let chain: Vec<CertificateDer<'_>> = self.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        inspect(&chain)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.cert.display())
    }
}

impl Hash for ClientTls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.verify.hash(state);
        self.ca.as_ref().map(|ca| &ca.certificates).hash(state);
        self.identity.as_ref().map(|identity| &identity.chain).hash(state);
    }
}
