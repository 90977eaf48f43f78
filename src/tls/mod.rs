//! TLS: certificates towards clients, chosen by name and replaced while running, and what is shown to backends.

pub mod client;
pub mod inspect;
pub mod load;
pub mod store;
pub mod tickets;
pub mod watch;

use std::sync::Arc;

use rustls::crypto::aws_lc_rs as provider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use tickets::Tickets;
use watch::Watched;

/// Makes `aws-lc-rs` the process's provider: it has post-quantum key exchange. The first statement of `main`, since
/// Pingora would install another one.
pub fn install_provider() {
    // Failing means that a provider is installed already, which only a second call can cause.
    let _ = provider::default_provider().install_default();
}

/// Protocol versions towards clients, after Mozilla's recommendations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// TLS 1.2 and 1.3.
    #[default]
    Intermediate,
    /// TLS 1.3 alone.
    Modern,
}

impl Preset {
    pub const NAMES: [(&'static str, Preset); 2] = [("intermediate", Preset::Intermediate), ("modern", Preset::Modern)];

    pub fn as_str(self) -> &'static str {
        match self {
            Preset::Intermediate => "intermediate",
            Preset::Modern => "modern",
        }
    }
}

/// What all TLS configurations share, so that a session resumes whichever connection it began on, and after a reload.
pub struct Shared {
    tickets: Arc<Tickets>,
    /// For names that no site has: its handshake ends in an alert.
    refuse: Arc<ServerConfig>,
}

/// Chooses among certificates that may be replaced at any moment.
#[derive(Debug)]
struct Chooser(Arc<Watched>);

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.0.table();
        let named = table.find(&hello.server_name().unwrap_or_default().to_ascii_lowercase()).to_vec();
        // A site's only certificate is shown for all its names: some clients do not look, and nothing better is here.
        let named = if named.is_empty() && self.0.stands_for_all() { table.all().to_vec() } else { named };
        // Of ECDSA and RSA for one name the first that the client can verify.
        let suits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        named.iter().find(suits).or(named.first()).cloned()
    }
}

#[derive(Debug)]
struct Nothing;

impl ResolvesServerCert for Nothing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

impl Shared {
    pub fn new(tickets: Tickets) -> Self {
        let tickets = Arc::new(tickets);
        let refuse = server_config(Arc::new(Nothing), Preset::Intermediate, &tickets);
        Self { tickets, refuse }
    }

    pub fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    /// The configuration for names with these certificates: HTTP/2 before HTTP/1.1.
    pub fn config_for(&self, certificates: Arc<Watched>, preset: Preset) -> Arc<ServerConfig> {
        server_config(Arc::new(Chooser(certificates)), preset, &self.tickets)
    }

    pub fn refuse(&self) -> Arc<ServerConfig> {
        self.refuse.clone()
    }
}

fn server_config(resolver: Arc<dyn ResolvesServerCert>, preset: Preset, tickets: &Arc<Tickets>) -> Arc<ServerConfig> {
    let versions: &[_] = match preset {
        Preset::Intermediate => &[&TLS12, &TLS13],
        Preset::Modern => &[&TLS13],
    };
    let mut config = ServerConfig::builder_with_protocol_versions(versions).with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets are kept by the clients: ten thousand of them resume without any memory of ours.
    config.ticketer = tickets.clone();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Arc::new(config)
}
