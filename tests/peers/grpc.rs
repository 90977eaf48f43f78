//! gRPC by its own library on both sides, in the clear and over TLS: trailers, streams both ways, deadlines.

use crate::actors::{Ca, Proxy};
use crate::peer::{python_client, python_server};

const SPOKEN: &str = "unary cba of the client of the server OK\nfail FAILED_PRECONDITION as you wished of the server\nslow DEADLINE_EXCEEDED\n\
    none UNIMPLEMENTED\ndown 1000\nup 10000000\nboth 50 M49\nmany 500\n";

#[test]
fn grpc_goes_through_whole() {
    let ca = Ca::new();
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path().to_owned();
    ca.issue(&here, "grpc", &["grpc.test"]);
    std::fs::write(here.join("ca.pem"), ca.pem()).unwrap();
    let file = |name: &str| here.join(name).to_str().unwrap().to_owned();
    let (_clear, clear) = python_server("grpc_server.py", &[]);
    let (_secure, secure) = python_server("grpc_server.py", &[&file("grpc.pem"), &file("grpc.key")]);
    let main = format!(
        "listeners: [{{ address: '127.0.0.1:0' }}, {{ address: '127.0.0.1:0', tls: true }}]\naccess_log: json\nstate_dir: state\nsites: sites.d/*.yaml\nbackend_groups:\n  \
         clear: {{ backends: ['{clear}'], protocol: http2 }}\n  secure: {{ backends: ['{secure}'], protocol: http2, tls: {{ ca: {}, server_name: grpc.test }} }}\n",
        file("ca.pem")
    );
    let site = |group: &str, domain: &str| format!("domains: [{domain}]\ngroup: {group}\n");
    let secure_site = site("secure", "grpc.test") + "tls: { cert: ../grpc.pem, key: ../grpc.key }\n";
    let proxy = Proxy::start_in(
        directory,
        &[("main.yaml", &main), ("sites.d/a.yaml", &site("clear", "clear.test")), ("sites.d/b.yaml", &secure_site)],
    );
    let (plain, tls) = (proxy.addresses[0].to_string(), proxy.addresses[1].to_string());
    assert_eq!(python_client("grpc_client.py", &[&plain, "clear.test"]), SPOKEN);
    assert_eq!(python_client("grpc_client.py", &[&tls, "grpc.test", &file("ca.pem")]), SPOKEN);
    let gone = proxy.wait_access(|line| line["target"] == "/test.Echo/Unary" && line["status"] == 499);
    assert_eq!(gone["reason"], "client_gone", "a deadline of the client is a reset");
}
