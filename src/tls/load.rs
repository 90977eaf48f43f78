//! Loads a certificate chain and its key, and says what is wrong with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}: cannot be read: {why}", path.display())]
    Certificate { path: PathBuf, why: String },
    #[error("{}: it is not usable: {why}", path.display())]
    UnusableCertificate { path: PathBuf, why: String },
    #[error("{}: there is no certificate in it; are `cert` and `key` swapped?", path.display())]
    Empty { path: PathBuf },
    #[error("{}: cannot be read: {why}", path.display())]
    Key { path: PathBuf, why: String },
    #[error("{}: {why}", path.display())]
    UnusableKey { path: PathBuf, why: String },
    #[error("{}: this key does not belong to the certificate in {}", key.display(), cert.display())]
    Mismatch { cert: PathBuf, key: PathBuf },
}

impl LoadError {
    /// Whether the key's file is to blame rather than the certificate's.
    pub fn in_key(&self) -> bool {
        match self {
            LoadError::Certificate { .. } | LoadError::UnusableCertificate { .. } | LoadError::Empty { .. } => false,
            LoadError::Key { .. } | LoadError::UnusableKey { .. } | LoadError::Mismatch { .. } => true,
        }
    }
}

/// Reads a chain (leaf first) and its key from PEM files.
pub fn certified_key(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, LoadError> {
    let unreadable = |error: rustls_pki_types::pem::Error| LoadError::Certificate { path: cert.to_owned(), why: reason(&error) };
    let chain = CertificateDer::pem_file_iter(cert).map_err(unreadable)?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if chain.is_empty() {
        return Err(LoadError::Empty { path: cert.to_owned() });
    }
    let der = PrivateKeyDer::from_pem_file(key).map_err(|error| LoadError::Key { path: key.to_owned(), why: reason(&error) })?;
    let unusable = |error: rustls::Error| {
        // A key that is too weak to be taken is best called so.
        let weak = super::inspect::inspect(&chain).and_then(|facts| facts.weaknesses.into_iter().next());
        LoadError::UnusableKey { path: key.to_owned(), why: weak.unwrap_or_else(|| error.to_string()) }
    };
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(unusable)?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) => Ok(Arc::new(certified)),
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err(LoadError::Mismatch { cert: cert.to_owned(), key: key.to_owned() })
        }
        Err(rustls::Error::InvalidCertificate(error)) => {
            Err(LoadError::UnusableCertificate { path: cert.to_owned(), why: unusable_because(&error) })
        }
        Err(error) => Err(LoadError::UnusableCertificate { path: cert.to_owned(), why: error.to_string() }),
    }
}

fn unusable_because(error: &rustls::CertificateError) -> String {
    let text = format!("{error:?}");
    if text.contains("UnsupportedCertVersion") {
        return "it is an X.509 certificate of version 1; `openssl req -x509 -addext subjectAltName=DNS:…` makes one of version 3"
            .to_owned();
    }
    text
}

pub(super) fn reason(error: &rustls_pki_types::pem::Error) -> String {
    match error {
        rustls_pki_types::pem::Error::Io(error) => error.to_string(),
        rustls_pki_types::pem::Error::NoItemsFound => "there is no PEM block of the right kind in it".to_owned(),
        other => format!("it is no PEM file: {other}"),
    }
}
