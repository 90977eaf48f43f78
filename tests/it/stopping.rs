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

/// Clients that keep their connections busy while the process stops: each request that was sent gets its answer, the
/// last one with `Connection: close`.
#[test]
fn a_request_that_races_the_stop_is_answered() {
    let origin = Origin::named("ok");
    let mut proxy = Proxy::with_site(&format!("backends: ['{}']\n", origin.address));
    let address = proxy.address();
    let (begun, all_begun) = channel();
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let begun = begun.clone();
            std::thread::spawn(move || {
                let mut client = Client::plain(address);
                let mut count = 0;
                loop {
                    let response = client.request("GET", "shop.test", "/", "", b"");
                    assert_eq!(response.text(), "ok");
                    count += 1;
                    if count == 3 {
                        begun.send(()).unwrap();
                    }
                    if response.header("connection") == "close" {
                        return count;
                    }
                    std::thread::park_timeout(std::time::Duration::from_millis(2));
                }
            })
        })
        .collect();
    (0..20).for_each(|_| all_begun.recv_timeout(std::time::Duration::from_secs(10)).unwrap());
    proxy.signal(Signal::SIGTERM);
    for client in clients {
        assert!(client.join().unwrap() >= 3);
    }
    assert_eq!(proxy.wait_exit(), Some(0));
    assert!(proxy.events().contains("every connection has finished"));
}

#[test]
fn http2_streams_finish_and_the_connection_says_goodbye() {
    let (go, wait) = channel::<()>();
    let (arrived, arrivals) = channel();
    let script = std::sync::Mutex::new((arrived, wait));
    let origin = Origin::new(move |request| {
        if request.target == "/slow" {
            let script = script.lock().unwrap();
            script.0.send(()).unwrap();
            script.1.recv().unwrap();
        }
        Reply::text(request.target.clone())
    });
    let mut proxy = Proxy::with_site(&format!("backends: ['{}']\nhealth_check: off\n", origin.address));
    let h2 = crate::actors::H2::plain(proxy.address());
    assert_eq!(h2.request("GET", "http://shop.test/first", &[], &[]).unwrap().text(), "/first");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| h2.request("GET", "http://shop.test/slow", &[], &[]));
        arrivals.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        proxy.signal(Signal::SIGTERM);
        proxy.wait_event("stopping");
        go.send(()).unwrap();
        assert_eq!(slow.join().unwrap().unwrap().text(), "/slow");
    });
    assert_eq!(proxy.wait_exit(), Some(0), "the connection ends by GOAWAY, or the process would wait for it");
    assert!(proxy.events().contains("every connection has finished"), "{}", proxy.events());
    assert!(h2.request("GET", "http://shop.test/after", &[], &[]).is_err());
}

/// A log driver that has stalled: nobody reads what is written.
#[test]
fn a_log_that_is_stuck_does_not_keep_the_process() {
    let directory = tempfile::TempDir::new().unwrap();
    let log = directory.path().join("log");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _unread = std::fs::OpenOptions::new().read(true).write(true).open(&log).unwrap();
    let main = format!("{}access_log: {{ path: log }}\n", PLAIN.replace("access_log: json\n", ""));
    let site = "domains: [shop.test]\nroutes: [{ path: /, respond: { body: ok } }]\n";
    let mut proxy = Proxy::start_in(directory, &[("main.yaml", &main), ("sites.d/shop.yaml", site)]);
    // More than the pipe, the writer and the queue before it hold.
    let batch = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n".repeat(100);
    let mut client = Client::plain(proxy.address());
    for _ in 0..220 {
        client.send(&batch);
        for _ in 0..100 {
            assert_eq!(client.response(false).status, 200, "requests do not wait for the log");
        }
    }
    proxy.signal(Signal::SIGUSR1);
    // What hears the signals hears this one, too.
    assert!(proxy.next_event("reloaded", || proxy.signal(Signal::SIGHUP)).contains("generation"));
    drop(client);
    proxy.signal(Signal::SIGTERM);
    assert_eq!(proxy.wait_exit(), Some(0));
}
