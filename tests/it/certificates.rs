//! Certificates while the proxy runs: renewed, half-written, chosen by their names and kinds.

use std::path::Path;
use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::actors::{Ca, Client, Origin, Proxy, check, tls_config};

const MAIN: &str = "listeners: [{ address: '127.0.0.1:0', tls: true }]\naccess_log: json\nsites: sites.d/*.yaml\nstate_dir: state\n";

fn served(proxy: &Proxy, ca: &Ca, name: &str) -> Result<CertificateDer<'static>, std::io::Error> {
    served_to(proxy, name, tls_config(ca.roots(), &["http/1.1"], &[&rustls::version::TLS13, &rustls::version::TLS12]))
}

fn served_to(proxy: &Proxy, name: &str, config: rustls::ClientConfig) -> Result<CertificateDer<'static>, std::io::Error> {
    Client::tls(proxy.address(), name, Arc::new(config)).map(|(_, info)| info.certificate)
}

fn in_file(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

/// Waits until the certificate of a file is the one that is served.
fn wait_for(proxy: &Proxy, ca: &Ca, name: &str, file: &Path) {
    let wanted = in_file(file);
    let began = std::time::Instant::now();
    while served(proxy, ca, name).unwrap() != wanted {
        assert!(began.elapsed().as_secs() < 15, "{} is not served in time", file.display());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_renewal_is_in_force_without_a_reload() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path().to_owned();
    let origin = Origin::named("up");
    // As certbot keeps them: links into an archive.
    let (archive, live) = (here.join("archive"), here.join("live/shop"));
    for folder in [&archive, &live] {
        std::fs::create_dir_all(folder).unwrap();
    }
    ca.issue(&archive, "1", &["shop.test"]);
    ca.issue(&archive, "2", &["shop.test"]);
    let link = |version: &str| {
        for (name, file) in [("fullchain.pem", format!("{version}.pem")), ("privkey.pem", format!("{version}.key"))] {
            let aside = live.join("aside");
            std::os::unix::fs::symlink(archive.join(file), &aside).unwrap();
            std::fs::rename(&aside, live.join(name)).unwrap();
        }
    };
    link("1");
    let site = format!(
        "domains: [shop.test]\ntls: {{ cert: ../live/shop/fullchain.pem, key: ../live/shop/privkey.pem }}\nbackends: ['{}']\n",
        origin.address
    );
    let proxy = Proxy::start_in(directory, &[("main.yaml", MAIN), ("sites.d/shop.yaml", &site)]);
    assert_eq!(served(&proxy, &ca, "shop.test").unwrap(), in_file(&archive.join("1.pem")));
    link("2");
    wait_for(&proxy, &ca, "shop.test", &archive.join("2.pem"));
    assert!(proxy.events().contains("was renewed and is in use"));
    // A certificate that is there before its key does not belong to it; half a file is no certificate.
    ca.issue(&archive, "3", &["shop.test"]);
    std::fs::remove_file(live.join("fullchain.pem")).unwrap();
    std::os::unix::fs::symlink(archive.join("3.pem"), live.join("fullchain.pem")).unwrap();
    proxy.wait_event("this key does not belong to the certificate");
    assert_eq!(served(&proxy, &ca, "shop.test").unwrap(), in_file(&archive.join("2.pem")), "the one before stays");
    let whole = std::fs::read_to_string(archive.join("3.pem")).unwrap();
    std::fs::write(archive.join("3.pem"), &whole[..whole.len() / 2]).unwrap();
    proxy.wait_event("it is no PEM file");
    assert_eq!(served(&proxy, &ca, "shop.test").unwrap(), in_file(&archive.join("2.pem")));
    std::fs::write(archive.join("3.pem"), whole).unwrap();
    link("3");
    wait_for(&proxy, &ca, "shop.test", &archive.join("3.pem"));
    // A reload while the file is broken keeps it too.
    std::fs::write(archive.join("3.key"), "").unwrap();
    let said = proxy.reload();
    assert!(said.contains("the certificate that is in use stays"), "{said}");
    assert_eq!(served(&proxy, &ca, "shop.test").unwrap(), in_file(&archive.join("3.pem")));
}

#[test]
fn sites_without_files_choose_from_a_directory_by_name() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path().to_owned();
    let certs = here.join("certs");
    std::fs::create_dir_all(certs.join("live/b")).unwrap();
    ca.issue(&certs, "a", &["a.test"]);
    ca.issue(&certs, "wild", &["*.w.test"]);
    ca.issue(&certs.join("live/b"), "privkey", &["b.test"]);
    std::fs::rename(certs.join("live/b/privkey.pem"), certs.join("live/b/fullchain.pem")).unwrap();
    std::fs::rename(certs.join("live/b/privkey.key"), certs.join("live/b/privkey.pem")).unwrap();
    let origin = Origin::named("up");
    let main = format!("{MAIN}certificates: certs\n");
    let site = |domains: &str| format!("domains: [{domains}]\ntls: true\nbackends: ['{}']\n", origin.address);
    let (one, two) = (site("a.test, x.w.test, late.test"), site("b.test"));
    let proxy = Proxy::start_in(directory, &[("main.yaml", &main), ("sites.d/one.yaml", &one), ("sites.d/two.yaml", &two)]);
    for (name, file) in [("a.test", "certs/a.pem"), ("x.w.test", "certs/wild.pem"), ("b.test", "certs/live/b/fullchain.pem")] {
        assert_eq!(served(&proxy, &ca, name).unwrap(), in_file(&here.join(file)), "{name}");
    }
    assert!(proxy.events().contains("no certificate of `certificates` is for late.test"), "{}", proxy.events());
    assert!(served(&proxy, &ca, "late.test").is_err());
    ca.issue(&certs, "late", &["late.test"]);
    proxy.wait_event("late.pem is new and in use");
    assert_eq!(served(&proxy, &ca, "late.test").unwrap(), in_file(&certs.join("late.pem")));
    // What cannot be looked at is not gone: a key that comes later, half a file, a directory that is away for a while.
    std::fs::rename(certs.join("late.key"), here.join("aside.key")).unwrap();
    std::fs::write(certs.join("a.pem"), "").unwrap();
    proxy.wait_event("a.pem: there is no certificate in it");
    proxy.reload();
    assert_eq!(served(&proxy, &ca, "late.test").unwrap(), in_file(&certs.join("late.pem")));
    assert!(served(&proxy, &ca, "a.test").is_ok());
    std::fs::rename(here.join("aside.key"), certs.join("late.key")).unwrap();
    std::fs::rename(&certs, here.join("away")).unwrap();
    proxy.wait_event("cannot be read");
    assert!(served(&proxy, &ca, "late.test").is_ok() && served(&proxy, &ca, "b.test").is_ok());
    std::fs::rename(here.join("away"), &certs).unwrap();
    std::fs::remove_file(certs.join("late.pem")).unwrap();
    proxy.wait_event("late.pem is gone");
    assert!(served(&proxy, &ca, "late.test").is_err());
}

#[test]
fn a_name_may_have_ecdsa_and_rsa() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path().to_owned();
    ca.issue(&here, "ecdsa", &["shop.test"]);
    ca.issue_with(&here, "rsa", &["shop.test"], &KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap(), |_| {});
    let origin = Origin::named("up");
    let site = format!(
        "domains: [shop.test]\ntls: {{ certificates: [{{ cert: ../ecdsa.pem, key: ../ecdsa.key }}, {{ cert: ../rsa.pem, key: ../rsa.key }}] }}\nbackends: ['{}']\n",
        origin.address
    );
    let proxy = Proxy::start_in(directory, &[("main.yaml", MAIN), ("sites.d/shop.yaml", &site)]);
    assert_eq!(served(&proxy, &ca, "shop.test").unwrap(), in_file(&here.join("ecdsa.pem")));
    // A client of TLS 1.2 that knows only RSA.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| format!("{:?}", suite.suite()).contains("_RSA_"));
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&rustls::version::TLS12]).unwrap();
    let config = config.with_root_certificates(ca.roots()).with_no_client_auth();
    assert_eq!(served_to(&proxy, "shop.test", config).unwrap(), in_file(&here.join("rsa.pem")));
}

#[test]
fn a_preset_refuses_old_protocols() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "a", &["a.test", "b.test", "c.test"]);
    let origin = Origin::named("up");
    let site = |name: &str, preset: &str| {
        format!("domains: [{name}.test]\ntls: {{ cert: ../a.pem, key: ../a.key{preset} }}\nbackends: ['{}']\n", origin.address)
    };
    let main = format!("{MAIN}defaults: {{ tls: {{ preset: modern }} }}\n");
    let files = [("a", ""), ("b", ", preset: intermediate"), ("c", ", preset: modern")]
        .map(|(name, preset)| (format!("sites.d/{name}.yaml"), site(name, preset)));
    let mut all = vec![("main.yaml", main.as_str())];
    all.extend(files.iter().map(|(path, text)| (path.as_str(), text.as_str())));
    let proxy = Proxy::start_in(directory, &all);
    for (name, old) in [("a.test", false), ("b.test", true), ("c.test", false)] {
        let by = |version| served_to(&proxy, name, tls_config(ca.roots(), &[], &[version])).is_ok();
        assert_eq!((by(&rustls::version::TLS12), by(&rustls::version::TLS13)), (old, true), "{name}");
    }
    // Nor is there a way round by the name of another site.
    for (version, host, status) in
        [(&rustls::version::TLS12, "c.test", 421), (&rustls::version::TLS12, "b.test", 200), (&rustls::version::TLS13, "c.test", 200)]
    {
        let (mut client, _) = Client::tls(proxy.address(), "b.test", Arc::new(tls_config(ca.roots(), &["http/1.1"], &[version]))).unwrap();
        assert_eq!(client.request("GET", host, "/", "", b"").status, status, "{host}");
    }
}

#[test]
fn the_default_site_answers_for_every_name() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    ca.issue(directory.path(), "a", &["shop.test", "other.test"]);
    let origin = Origin::named("default");
    let site = format!("domains: [shop.test]\ntls: {{ cert: ../a.pem, key: ../a.key }}\nbackends: ['{}']\n", origin.address);
    let main = format!("{MAIN}unknown_host: shop\n");
    let proxy = Proxy::start_in(directory, &[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let config = tls_config(ca.roots(), &["http/1.1"], &[&rustls::version::TLS13]);
    let (mut client, _) = Client::tls(proxy.address(), "other.test", Arc::new(config)).unwrap();
    assert_eq!(client.request("GET", "other.test", "/", "", b"").text(), "default");
}

#[test]
fn check_tells_what_clients_will_distrust() {
    let (ca, other) = (Ca::new(), Ca::new());
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    let soon = |params: &mut rcgen::CertificateParams| params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(5);
    ca.issue_with(here, "soon", &["a.test"], &KeyPair::generate().unwrap(), soon);
    ca.issue_with(here, "later", &["a.test"], &KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), |params| {
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        params.not_after = rcgen::date_time_ymd(2091, 1, 1);
    });
    ca.issue(here, "chain", &["a.test"]);
    let chain = std::fs::read_to_string(here.join("chain.pem")).unwrap() + &other.named_pem();
    std::fs::write(here.join("chain.pem"), chain).unwrap();
    ca.issue(here, "open", &["a.test"]);
    let mode = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(here.join("open.key"), mode(0o644)).unwrap();
    let weak = [
        "openssl req -x509 -newkey rsa:1024 -nodes -keyout weak.key -out weak.pem -subj /CN=a.test -addext subjectAltName=DNS:a.test -days 90",
        "openssl req -x509 -newkey rsa:2048 -sha1 -nodes -keyout sha1.key -out sha1.pem -subj /CN=a.test -addext subjectAltName=DNS:a.test -days 90",
        "chmod 600 weak.key sha1.key",
    ];
    for line in weak {
        let output = std::process::Command::new("sh").args(["-c", line]).current_dir(here).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let main = "listeners: [{ address: '127.0.0.1:0', tls: true }]\nstate_dir: state\nsites: sites.d/*.yaml\n";
    let group = |name: &str| {
        format!("{main}backend_groups: {{ g: {{ backends: ['127.0.0.1:9'], tls: {{ cert: {name}.pem, key: {name}.key }} }} }}\n")
    };
    ca.issue_expired(here, "old", "a.test");
    for (name, says) in
        [("soon", "it is read when the configuration is"), ("old", "the certificate has expired on 2021-01-01: backends will refuse it")]
    {
        let result = check("check", &[], here, &[("main.yaml", &group(name)), ("sites.d/a.yaml", "domains: [a.test]\ngroup: g\n")]);
        assert!(result.text.contains(says) && result.code == Some(0), "{name}: {}", result.text);
    }
    for (name, says) in [
        ("soon", "the certificate expires in 4 days"),
        ("later", "the certificate is not good before 2090-01-01"),
        ("chain", "its chain is broken: certificate 1 was issued by"),
        ("open", "everybody on this machine can read the key"),
        ("weak", "its RSA key has 1024 bits: 2048 are the least"),
        ("sha1", "it is signed with SHA-1"),
    ] {
        let site = format!("domains: [a.test]\ntls: {{ cert: ../{name}.pem, key: ../{name}.key }}\nbackends: ['127.0.0.1:9']\n");
        let result = check("check", &[], here, &[("main.yaml", main), ("sites.d/a.yaml", &site)]);
        // A key that is too weak is refused by the library.
        let code = if name == "weak" { 3 } else { 0 };
        assert!(result.text.contains(says) && result.code == Some(code), "{name}: {}", result.text);
    }
}

#[test]
fn what_is_no_file_does_not_hold_up_the_start() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    std::fs::create_dir(here.join("certs")).unwrap();
    ca.issue(&here.join("certs"), "good", &["a.test"]);
    ca.issue(here, "one", &["a.test"]);
    let fifo = |name: &str| nix::unistd::mkfifo(&here.join(name), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    for name in ["certs/fifo.pem", "certs/other.key", "fifo.pem", "fifo.key"] {
        fifo(name);
    }
    ca.issue(&here.join("certs"), "late", &["b.test"]);
    std::fs::rename(here.join("certs/late.pem"), here.join("certs/other.pem")).unwrap();
    std::os::unix::fs::symlink("loop.pem", here.join("certs/loop.pem")).unwrap();
    let main = "listeners: [{ address: '127.0.0.1:0', tls: true }]\nstate_dir: state\nsites: sites.d/*.yaml\ncertificates: certs\n";
    let site = |cert: &str, key: &str| format!("domains: [a.test]\ntls: {{ cert: ../{cert}, key: ../{key} }}\nbackends: ['127.0.0.1:9']\n");
    let result =
        check("check", &[], here, &[("main.yaml", main), ("sites.d/a.yaml", "domains: [a.test]\ntls: true\nbackends: ['127.0.0.1:9']\n")]);
    assert!(result.code == Some(0) && result.text.contains("other.key: is no regular file: it is left out"), "{}", result.text);
    for (cert, key) in [("fifo.pem", "one.key"), ("one.pem", "fifo.key")] {
        let result = check("check", &[], here, &[("sites.d/a.yaml", &site(cert, key))]);
        assert!(result.code == Some(3) && result.text.contains("is no regular file"), "{}", result.text);
    }
}

/// Ports and keys are opened by root; what comes later, the user must be able to read.
#[test]
fn a_key_that_the_user_cannot_read_is_told_at_the_start() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    mode(directory.path(), 0o755);
    ca.issue(directory.path(), "a", &["a.test"]);
    mode(&directory.path().join("a.key"), 0o600);
    let main = "listeners: [{ address: '127.0.0.1:0', tls: true }]\nrun_as: nobody\nsites: sites.d/*.yaml\n";
    let site = "domains: [a.test]\ntls: { cert: ../a.pem, key: ../a.key }\nroutes: [{ path: /, respond: { body: served } }]\n";
    let proxy = Proxy::start_in(directory, &[("main.yaml", main), ("sites.d/a.yaml", site)]);
    proxy.wait_event("a.key: this process can no longer read it as the user that it runs as");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{}", proxy.pid())).unwrap());
    assert_eq!(owner, 65534);
    let config = Arc::new(tls_config(ca.roots(), &["http/1.1"], rustls::ALL_VERSIONS));
    let (mut client, _) = Client::tls(proxy.address(), "a.test", config).unwrap();
    assert_eq!(client.request("GET", "a.test", "/", "", b"").text(), "served");
    // A reload goes on with what it has read.
    proxy.ok(&["reload"]);
    assert_eq!(client.request("GET", "a.test", "/", "", b"").text(), "served");
}
