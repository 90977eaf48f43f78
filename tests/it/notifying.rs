//! What the service manager hears, by a socket that stands in for systemd's.

use std::ffi::OsStr;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::actors::{PLAIN, Proxy};

struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(directory: &std::path::Path) -> Self {
        let socket = UnixDatagram::bind(directory.join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { socket }
    }

    fn hear(&self) -> String {
        let mut bytes = [0; 4096];
        let read = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..read].to_vec()).unwrap()
    }

    /// The next message that is not about being alive.
    fn hear_news(&self) -> String {
        loop {
            let said = self.hear();
            if !said.contains("WATCHDOG=1") {
                return said;
            }
        }
    }
}

#[test]
fn readiness_the_main_process_and_the_end_are_told() {
    let directory = tempfile::TempDir::new().unwrap();
    let manager = Manager::new(directory.path());
    std::fs::create_dir(directory.path().join("sites.d")).unwrap();
    std::fs::write(directory.path().join("main.yaml"), format!("{PLAIN}drain_timeout: 7s\n")).unwrap();
    // A broken site is no reason not to start.
    std::fs::write(directory.path().join("sites.d/broken.yaml"), "domains: [b.test\n").unwrap();
    let path = directory.path().join("notify");
    let proxy = Proxy::start_with(directory, &[("NOTIFY_SOCKET", path.as_os_str()), ("WATCHDOG_USEC", OsStr::new("400000"))]);
    let said = manager.hear_news();
    assert!(
        said.contains("READY=1") && said.contains(&format!("MAINPID={}", proxy.pid())) && said.contains("STATUS=generation 1"),
        "{said}"
    );
    // Alive, at twice the pace that is asked for.
    let began = Instant::now();
    for _ in 0..5 {
        assert!(manager.hear().contains("WATCHDOG=1"));
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let old = proxy.pid();
    proxy.ok(&["upgrade"]);
    let said = manager.hear_news();
    assert!(said.contains("READY=1") && said.contains(&format!("MAINPID={}", proxy.pid())), "{said}");
    assert_ne!(proxy.pid(), old);
    let parent = std::fs::read_to_string(format!("/proc/{}/stat", proxy.pid())).unwrap();
    let parent: i32 = parent.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    assert_ne!(parent, old, "it is not a child of the one before: systemd would take it for a stranger");
    for _ in 0..3 {
        assert!(manager.hear().contains("WATCHDOG=1"), "the new process goes on telling that it is alive");
    }
    proxy.signal(Signal::SIGTERM);
    let said = manager.hear_news();
    assert!(said.contains("STOPPING=1") && said.contains("EXTEND_TIMEOUT_USEC=9000000"), "{said}");
}
