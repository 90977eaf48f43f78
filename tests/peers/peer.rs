//! Programs beside the proxy: started on ports of their own, ended with the test.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A running server.
pub struct Peer {
    child: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        // TERM lets it end its own children.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// An address that is free now.
pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn wait_for(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "{address} does not come up");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn start(mut command: Command, address: SocketAddr) -> Peer {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    wait_for(address);
    Peer { child }
}

/// nginx with these server blocks; `DIR` in them is its directory.
pub fn nginx(directory: &Path, servers: &str, address: SocketAddr) -> Peer {
    let here = directory.to_str().unwrap();
    let servers = servers.replace("DIR", here);
    let configuration = format!(
        "daemon off; worker_processes 1; pid {here}/nginx.pid; error_log {here}/error.log;\nevents {{}}\nhttp {{\n  access_log off;\n  client_body_temp_path {here}/body;\n  \
         proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;\n  types {{ text/plain txt; }}\n{servers}\n}}\n"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-p").arg(directory).arg("-c").arg(&file).arg("-e").arg(directory.join("error.log"));
    start(command, address)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name)
}

/// A server of ours for a Python library; its last argument is the port.
pub fn python_server(name: &str, args: &[&str]) -> (Peer, SocketAddr) {
    let address = free();
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script(name)).args(args).arg(address.port().to_string());
    (start(command, address), address)
}

/// Runs a client to its end and gives what it printed.
pub fn python_client(name: &str, args: &[&str]) -> String {
    let mut command = Command::new("/usr/bin/python3");
    succeeded(command.arg(script(name)).args(args).output().unwrap())
}

/// Runs a program to its end and gives what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    succeeded(Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}; `make test-peers` installs it")))
}

fn succeeded(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
