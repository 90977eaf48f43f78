//! TLS towards clients: certificates by name, versions, resumption, key exchange.

use std::sync::Arc;

use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, ProtocolVersion};

use crate::actors::{Ca, Client, Origin, Proxy, tls_config};

fn two_sites(ca: &Ca) -> (Proxy, Origin) {
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "a", &["a.test", "www.a.test"]);
    ca.issue(directory.path(), "b", &["*.b.test"]);
    let origin = Origin::named("hello");
    let site = |domains: &str, name: &str| {
        format!("domains: [{domains}]\ntls: {{ cert: ../{name}.pem, key: ../{name}.key }}\nbackends: ['{}']\n", origin.address)
    };
    let proxy = Proxy::start_in(
        directory,
        &[
            ("main.yaml", "listeners: [{ address: '127.0.0.1:0', tls: true }]\naccess_log: json\nsites: sites.d/*.yaml\n"),
            ("sites.d/a.yaml", &site("a.test, www.a.test", "a")),
            ("sites.d/b.yaml", &site("'*.b.test'", "b")),
            ("sites.d/plain.yaml", &format!("domains: [plain.test]\nbackends: ['{}']\n", origin.address)),
        ],
    );
    (proxy, origin)
}

#[test]
fn each_name_has_its_certificate_and_others_are_refused() {
    let ca = Ca::new();
    let (proxy, _origin) = two_sites(&ca);
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let config = Arc::new(tls_config(ca.roots(), &["http/1.1"], versions));
        for name in ["a.test", "www.a.test", "x.b.test"] {
            let (mut client, info) = Client::tls(proxy.address(), name, config.clone()).unwrap();
            let expected = if versions == [&TLS12] { ProtocolVersion::TLSv1_2 } else { ProtocolVersion::TLSv1_3 };
            assert_eq!(info.version, Some(expected));
            assert_eq!(client.request("GET", name, "/", "", b"").text(), "hello");
        }
        for name in ["unknown.test", "plain.test", "b.test"] {
            let error = Client::tls(proxy.address(), name, config.clone()).map(drop).unwrap_err();
            assert!(error.to_string().contains("alert"), "{name}: {error}");
        }
    }
    let mut no_name = tls_config(ca.roots(), &[], rustls::ALL_VERSIONS);
    no_name.enable_sni = false;
    assert!(Client::tls(proxy.address(), "a.test", Arc::new(no_name)).is_err(), "no name is an unknown name");
    let line = proxy.wait_access(|line| line["host"] == "a.test");
    assert_eq!((line["tls"].as_str(), line["sni"].as_str()), (Some("TLSv1.2"), Some("a.test")));
}

#[test]
fn both_protocols_are_negotiated() {
    let ca = Ca::new();
    let (proxy, _origin) = two_sites(&ca);
    for (offered, chosen) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        let (_, info) = Client::tls(proxy.address(), "a.test", Arc::new(tls_config(ca.roots(), offered, rustls::ALL_VERSIONS))).unwrap();
        assert_eq!(info.alpn.as_deref(), chosen.map(str::as_bytes));
    }
    assert!(Client::tls(proxy.address(), "a.test", Arc::new(tls_config(ca.roots(), &["smtp"], rustls::ALL_VERSIONS))).is_err());
}

#[test]
fn key_exchange_is_post_quantum_where_the_client_can() {
    let ca = Ca::new();
    let (proxy, _origin) = two_sites(&ca);
    let (_, info) = Client::tls(proxy.address(), "a.test", Arc::new(tls_config(ca.roots(), &[], &[&TLS13]))).unwrap();
    assert_eq!(info.group, Some(NamedGroup::X25519MLKEM768));
}

/// The default of rustls, a cache of 256 sessions on the server, would resume the last few hundred of these only.
#[test]
fn ten_thousand_clients_resume() {
    let ca = Ca::new();
    let (proxy, _origin) = two_sites(&ca);
    // Each client has a memory of its own, as ten thousand browsers have.
    let clients: Vec<_> = (0..10_000)
        .map(|_| {
            let mut config = tls_config(ca.roots(), &[], &[&TLS12]);
            config.resumption = rustls::client::Resumption::in_memory_sessions(4);
            Arc::new(config)
        })
        .collect();
    for config in &clients {
        let (_, info) = Client::tls(proxy.address(), "a.test", config.clone()).unwrap();
        assert!(!info.resumed);
    }
    proxy.reload();
    let resumed = clients.iter().filter(|config| Client::tls(proxy.address(), "a.test", (*config).clone()).unwrap().1.resumed).count();
    assert_eq!(resumed, 10_000, "also those that began before a reload");
}

#[test]
fn tls13_sessions_resume_and_never_across_names() {
    let ca = Ca::new();
    let (proxy, _origin) = two_sites(&ca);
    let config = Arc::new(tls_config(ca.roots(), &["http/1.1"], &[&TLS13]));
    let connect = |name: &str| {
        let (mut client, info) = Client::tls(proxy.address(), name, config.clone()).unwrap();
        // The ticket comes with the first answer.
        assert_eq!(client.request("GET", name, "/", "", b"").status, 200);
        info.resumed
    };
    assert!(!connect("a.test"));
    assert!(connect("a.test"));
    assert!(!connect("x.b.test"));
}

#[test]
fn a_handshake_has_a_deadline() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "a", &["a.test"]);
    let proxy = Proxy::start_in(
        directory,
        &[
            ("main.yaml", "listeners: [{ address: '127.0.0.1:0', tls: true, header_deadline: 300ms }]\nsites: sites.d/*.yaml\n"),
            ("sites.d/a.yaml", "domains: [a.test]\ntls: { cert: ../a.pem, key: ../a.key }\nbackends: ['127.0.0.1:9']\n"),
        ],
    );
    let mut silent = Client::plain(proxy.address());
    silent.send([0x16, 0x03, 0x01]);
    assert!(silent.closes());
}

#[test]
fn a_refused_name_is_logged_and_plain_http_is_answered() {
    let ca = Ca::new();
    let (proxy, _origin) = two_sites(&ca);
    let config = Arc::new(tls_config(ca.roots(), &[], rustls::ALL_VERSIONS));
    assert!(Client::tls(proxy.address(), "unknown.test", config).is_err());
    assert_eq!(proxy.wait_access(|line| line["reason"] == "unknown_sni")["sni"], "unknown.test");
    let mut plain = Client::plain(proxy.address());
    let response = plain.request("GET", "a.test", "/", "", b"");
    assert!(response.status == 400 && response.text().contains("https://"), "{}", response.text());
    let line = proxy.wait_access(|line| line["reason"] == "plain_on_tls");
    assert_eq!(line["request_id"].as_str(), Some(response.header("x-request-id").as_str()));
}
