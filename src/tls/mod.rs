//! TLS towards clients: certificates, and one `rustls::ServerConfig` for each site that has one.

pub mod inspect;
pub mod load;

use std::sync::Arc;

use rustls::crypto::aws_lc_rs as provider;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;

/// Makes `aws-lc-rs` the process's provider: it has post-quantum key exchange. The first statement of `main`, since
/// Pingora would install another one.
pub fn install_provider() {
    // Failing means that a provider is installed already, which only a second call can cause.
    let _ = provider::default_provider().install_default();
}

/// What all TLS configurations share, so that a session resumes whichever connection it began on, and after a reload.
pub struct Shared {
    ticketer: Arc<dyn ProducesTickets>,
    /// For names that no site has: its handshake ends in an alert.
    refuse: Arc<ServerConfig>,
}

#[derive(Debug)]
struct Fixed(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

impl Shared {
    pub fn new() -> Result<Self, rustls::Error> {
        let ticketer = provider::Ticketer::new()?;
        let refuse = server_config(None, &ticketer);
        Ok(Self { ticketer, refuse })
    }

    /// The configuration for a site's names: TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1.
    pub fn config_for(&self, certificate: Arc<CertifiedKey>) -> Arc<ServerConfig> {
        server_config(Some(certificate), &self.ticketer)
    }

    pub fn refuse(&self) -> Arc<ServerConfig> {
        self.refuse.clone()
    }
}

fn server_config(certificate: Option<Arc<CertifiedKey>>, ticketer: &Arc<dyn ProducesTickets>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(Fixed(certificate)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets are kept by the clients: ten thousand of them resume without any memory of ours.
    config.ticketer = ticketer.clone();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Arc::new(config)
}
