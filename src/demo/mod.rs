//! `portcullis demo`: the real proxy on an embedded configuration, with backends of its own on loopback.

mod backend;

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::app::{self, Failure};
use backend::Backend;

/// The files of the demonstration, as they are in `conf/demo`.
const FILES: [(&str, &str); 4] = [
    ("portcullis.yaml", include_str!("../../conf/demo/portcullis.yaml")),
    ("sites.d/panel.yaml", include_str!("../../conf/demo/sites.d/panel.yaml")),
    ("sites.d/shop.yaml", include_str!("../../conf/demo/sites.d/shop.yaml")),
    ("users.d/users.yaml", include_str!("../../conf/demo/users.d/users.yaml")),
];

const DOMAINS: [&str; 2] = ["panel.localhost", "shop.localhost"];

#[derive(Args, Debug)]
pub struct Options {
    /// Port for plain HTTP on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// Port for HTTPS on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 8443)]
    https_port: u16,
    /// Seconds between one death of a backend and its return, and the next death.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    failure_every: u64,
}

/// Runs the demonstration until it is told to stop.
pub fn run(options: &Options) -> Result<(), Failure> {
    crate::observe::events::init();
    let names = ["panel", "node1", "node2", "S1", "S2", "S3"];
    let start =
        |name: &'static str| Backend::start(name).map(Arc::new).map_err(|error| Failure::Start(format!("demo backend {name}: {error}")));
    let backends = names.into_iter().map(start).collect::<Result<Vec<_>, _>>()?;
    let directory = std::env::temp_dir().join(format!("portcullis-demo-{}", std::process::id()));
    write_files(&directory, options, &backends).map_err(|error| Failure::State { path: directory.clone(), why: error.to_string() })?;
    let config = directory.join("portcullis.yaml");
    let certificate = directory.join("demo.pem");
    let every = Duration::from_secs(options.failure_every);
    let mortal = backends.iter().find(|backend| backend.name == "S2").cloned();
    let on_ready = move |addresses: &[SocketAddr]| {
        say(&what_to_try(addresses, &certificate, every));
        if let Some(mortal) = mortal {
            std::thread::spawn(move || die_and_return(&mortal, every));
        }
    };
    let result = app::run(app::Options { config, strict: true, on_ready: Some(Box::new(on_ready)) });
    // What is left behind in the temporary directory harms nobody.
    let _ = fs::remove_dir_all(&directory);
    result
}

fn write_files(directory: &Path, options: &Options, backends: &[Arc<Backend>]) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
    for (name, text) in FILES {
        let mut text = text.replace("@HTTP@", &options.http_port.to_string()).replace("@HTTPS@", &options.https_port.to_string());
        for backend in backends {
            text = text.replace(&format!("@{}@", backend.name.to_uppercase()), &backend.address.to_string());
        }
        let path: PathBuf = directory.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, text)?;
    }
    let pair = rcgen::generate_simple_self_signed(DOMAINS.map(str::to_owned)).map_err(io::Error::other)?;
    fs::write(directory.join("demo.pem"), pair.cert.pem())?;
    let mut key = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(directory.join("demo.key"))?;
    key.write_all(pair.signing_key.serialize_pem().as_bytes())
}

/// Commands and links, each of which works as it is printed.
fn what_to_try(addresses: &[SocketAddr], certificate: &Path, every: Duration) -> String {
    let port = |index: usize| addresses.get(index).map_or(0, SocketAddr::port);
    let (http, https) = (port(0), port(1));
    let directory = certificate.parent().unwrap_or(certificate).display();
    let jar = certificate.with_file_name("cookies").display().to_string();
    let cert = certificate.display();
    let (seconds, pid) = (every.as_secs(), std::process::id());
    format!(
        "
The demo runs. Try in another terminal:

  Each user's app is on the node that the users table says, under a URL that never changes:
    curl --cacert {cert} https://panel.localhost:{https}/user1/phpmyadmin/
    curl --cacert {cert} https://panel.localhost:{https}/user1/roundcube/
    curl --cacert {cert} https://panel.localhost:{https}/user2/phpmyadmin/
  What no user has goes to the panel:
    curl --cacert {cert} https://panel.localhost:{https}/
  The app redirects and sets cookies in its own terms; they come back in yours:
    curl -i --cacert {cert} https://panel.localhost:{https}/user1/phpmyadmin/login
  The shop has three backends, and a cookie keeps you on one:
    curl -c {jar} -b {jar} --cacert {cert} https://shop.localhost:{https}/
  Plain HTTP is redirected:
    curl -i http://shop.localhost:{http}/cart?item=1

  In a browser (it will warn of the certificate, which this demo made itself):
    https://panel.localhost:{https}/user1/phpmyadmin/
    https://shop.localhost:{https}/

  Every {seconds} s the shop's backend S2 dies or comes back: no request fails.
  Move user1 to node2: change its row in {directory}/users.d/users.yaml, then:
    kill -HUP {pid}
  Ctrl-C ends it.

"
    )
}

fn die_and_return(backend: &Backend, every: Duration) {
    loop {
        std::thread::sleep(every);
        backend.die();
        say(&format!("demo: {} has died; its clients move to another backend\n", backend.name));
        std::thread::sleep(every);
        match backend.revive() {
            Ok(()) => say(&format!("demo: {} is back\n", backend.name)),
            Err(error) => return say(&format!("demo: {} cannot come back: {error}\n", backend.name)),
        }
    }
}

fn say(text: &str) {
    // Whoever closed standard output does not want to know.
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}
