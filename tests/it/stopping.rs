//! Stop: what is under way finishes, what is idle closes.

use std::sync::mpsc::channel;

use nix::sys::signal::Signal;

use crate::actors::{Client, Origin, PLAIN, Proxy, Reply};

#[test]
fn a_request_under_way_finishes_and_idle_connections_close() {
    let (go, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::new(move |request| {
        if request.target == "/slow" {
            wait.lock().unwrap().recv().unwrap();
        }
        Reply::text("done")
    });
    let mut proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let mut idle = Client::plain(proxy.address());
    assert_eq!(idle.request("GET", "shop.test", "/", "", b"").text(), "done");
    origin.request();
    let mut busy = Client::plain(proxy.address());
    busy.send("GET /slow HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    let address = proxy.address();
    proxy.wait_event("ready");
    // The slow request has arrived once the proxy says that two connections are open, one of them busy.
    let mut late = Client::plain(address);
    assert_eq!(late.request("GET", "shop.test", "/late", "", b"").status, 200);
    proxy.signal(Signal::SIGTERM);
    proxy.wait_event("stopping");
    assert!(idle.closes());
    assert!(proxy.is_running());
    go.send(()).unwrap();
    let response = busy.response(false);
    assert_eq!((response.text().as_str(), response.header("connection").as_str()), ("done", "close"));
    assert!(busy.closes());
    assert_eq!(proxy.wait_exit(), Some(0));
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn the_drain_timeout_and_a_second_signal_end_it() {
    for second in [false, true] {
        let origin =
            Origin::new(|_| Reply::Take(Box::new(|stream| drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut std::io::sink())))));
        let timeout = if second { "1h" } else { "200ms" };
        let main = format!("{PLAIN}drain_timeout: {timeout}\n");
        let site = format!("domains: [shop.test]\nbackends: ['{}']\n", origin.address);
        let mut proxy = Proxy::start(&[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
        let mut client = Client::plain(proxy.address());
        client.send("GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n");
        origin.request();
        proxy.signal(Signal::SIGTERM);
        proxy.wait_event("stopping");
        if second {
            proxy.signal(Signal::SIGINT);
        }
        assert_eq!(proxy.wait_exit(), Some(0));
        assert!(proxy.events().contains("cut"), "{}", proxy.events());
    }
}
