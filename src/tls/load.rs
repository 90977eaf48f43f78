//! Loads a certificate chain and its key, and says what is wrong with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}: {why}", path.display())]
    Certificate { path: PathBuf, why: String },
    #[error("{}: it is not usable: {why}", path.display())]
    UnusableCertificate { path: PathBuf, why: String },
    #[error("{}: there is no certificate in it; are `cert` and `key` swapped?", path.display())]
    Empty { path: PathBuf },
    #[error("{}: {why}", path.display())]
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
    let chain = certificates(cert)?;
    if chain.is_empty() {
        return Err(LoadError::Empty { path: cert.to_owned() });
    }
    let der = private_key(key)?;
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

/// The certificates of a PEM file; there may be none.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let unreadable = |why| LoadError::Certificate { path: path.to_owned(), why };
    let pem = read(path).map_err(unreadable)?;
    CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| unreadable(reason(&error)))
}

/// The first private key of a PEM file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let unreadable = |why| LoadError::Key { path: path.to_owned(), why };
    let pem = read(path).map_err(unreadable)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unreadable(reason(&error)))
}

/// More than any chain or bundle of authorities has.
const MAX_FILE: u64 = 4 << 20;

/// Reads a regular file: a FIFO or a device would block for ever.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    crate::config::read_file(path, MAX_FILE)
}

fn unusable_because(error: &rustls::CertificateError) -> String {
    let text = format!("{error:?}");
    if text.contains("UnsupportedCertVersion") {
        return "it is an X.509 certificate of version 1; `openssl req -x509 -addext subjectAltName=DNS:…` makes one of version 3"
            .to_owned();
    }
    text
}

fn reason(error: &rustls_pki_types::pem::Error) -> String {
    match error {
        rustls_pki_types::pem::Error::Io(error) => format!("cannot be read: {error}"),
        rustls_pki_types::pem::Error::NoItemsFound => "cannot be read: there is no PEM block of the right kind in it".to_owned(),
        other => format!("cannot be read: it is no PEM file: {other}"),
    }
}
