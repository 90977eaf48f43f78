//! The real binary, started on files of its own.

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// How long anything may take that is waited for: far longer than it does.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Proxy {
    pub directory: TempDir,
    child: Child,
    events: Lines,
    access: Lines,
    pub addresses: Vec<SocketAddr>,
}

impl Proxy {
    /// Starts on `main.yaml` and other files; `directory` may hold certificates already. The access log is JSON on
    /// standard output.
    pub fn start_in(directory: TempDir, files: &[(&str, &str)]) -> Self {
        write_files(directory.path(), files);
        keep_to(directory.path());
        Self::spawn(directory, |_| {})
    }

    /// As `start_in`, with a signal while it is still starting.
    pub fn start_early(directory: TempDir, files: &[(&str, &str)], early: Signal) -> Self {
        write_files(directory.path(), files);
        keep_to(directory.path());
        Self::spawn(directory, |child| {
            // The program is there and at work, or it could not have said what it waits for.
            let status = format!("/proc/{}/status", child.id());
            let blocks = || {
                std::fs::read_to_string(&status)
                    .unwrap()
                    .lines()
                    .any(|line| line.starts_with("SigBlk:") && !line.ends_with("0000000000000000"))
            };
            while !blocks() {
                std::thread::yield_now();
            }
            kill(Pid::from_raw(child.id() as i32), early).unwrap();
        })
    }

    /// Starts on files that are there already, with more in the environment.
    pub fn start_with(directory: TempDir, environment: &[(&str, &std::ffi::OsStr)]) -> Self {
        keep_to(directory.path());
        Self::spawn_with(directory, environment, |_| {})
    }

    /// As `start_in`, by another program, which is to become the proxy.
    pub fn start_inside(directory: TempDir, wrapper: &[&str], files: &[(&str, &str)]) -> Self {
        write_files(directory.path(), files);
        keep_to(directory.path());
        let inner = command(directory.path(), "run");
        let mut outer = Command::new(wrapper[0]);
        outer.args(&wrapper[1..]).arg(inner.get_program()).args(inner.get_args()).current_dir(directory.path());
        Self::begin(directory, outer, |_| {})
    }

    fn spawn(directory: TempDir, meanwhile: impl FnOnce(&Child)) -> Self {
        Self::spawn_with(directory, &[], meanwhile)
    }

    fn spawn_with(directory: TempDir, environment: &[(&str, &std::ffi::OsStr)], meanwhile: impl FnOnce(&Child)) -> Self {
        let mut command = command(directory.path(), "run");
        command.envs(environment.iter().copied());
        Self::begin(directory, command, meanwhile)
    }

    fn begin(directory: TempDir, mut command: Command, meanwhile: impl FnOnce(&Child)) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        meanwhile(&child);
        let events = Lines::read(child.stderr.take().unwrap());
        let access = Lines::read(child.stdout.take().unwrap());
        let mut proxy = Self { directory, child, events, access, addresses: Vec::new() };
        proxy.wait_event("is ready");
        proxy.addresses = proxy.events.all().iter().filter_map(|line| line.split("listening on ").nth(1)?.trim().parse().ok()).collect();
        proxy
    }

    pub fn start(files: &[(&str, &str)]) -> Self {
        Self::start_in(TempDir::new().unwrap(), files)
    }

    /// One plain listener and one site `shop.test` with what is given.
    pub fn with_site(site: &str) -> Self {
        Self::start(&[("main.yaml", PLAIN), ("sites.d/shop.yaml", &format!("domains: [shop.test]\n{site}"))])
    }

    /// The address of the first listener.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub fn write(&self, file: &str, text: &str) {
        write_files(self.directory.path(), &[(file, text)]);
    }

    /// Signals the process that serves now.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// The process that serves: after an upgrade the one that has taken over.
    pub fn pid(&self) -> i32 {
        self.successors().last().copied().unwrap_or(self.child.id() as i32)
    }

    /// The processes that have taken over, one after the other.
    fn successors(&self) -> Vec<i32> {
        let pid = |line: &String| line.split_once("] process ")?.1.split_once(" (version")?.0.parse().ok();
        self.events.all().iter().filter_map(pid).collect()
    }

    /// Waits until of all processes that have taken over only one is left, beside the first.
    pub fn leaves_only(&self, pid: i32) -> bool {
        let others: Vec<i32> = self.successors().into_iter().filter(|other| *other != pid).collect();
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if !others.iter().any(|other| Path::new(&format!("/proc/{other}")).exists()) {
                return true;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        false
    }

    /// Runs a command of `portcullis` that asks this process.
    pub fn cli(&self, args: &[&str]) -> Check {
        let output = bare_command(self.directory.path()).args(args).args(["-c", "main.yaml"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        Check { code: output.status.code(), text }
    }

    /// The same, of a command that must succeed; gives what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let said = self.cli(args);
        assert_eq!(said.code, Some(0), "{args:?}: {}\n{}", said.text, self.events());
        if let Some((process, _)) = said.text.split_once(" has taken over") {
            // Signals go to the new process from here on.
            self.wait_event(&format!("] {process} (version"));
        }
        said.text
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.cli(&["status", "--format", "json"]).text).unwrap()
    }

    /// Kills the process as a crash would, and starts another one on the same files.
    pub fn crash_and_restart(self) -> Self {
        self.crash_and_restart_after(|| {})
    }

    /// The same, with something between the end and the new start.
    pub fn crash_and_restart_after(mut self, between: impl FnOnce()) -> Self {
        self.signal(Signal::SIGKILL);
        // After an upgrade the process before may still be there, and would serve again.
        let _ = self.child.kill();
        let _ = self.child.wait();
        between();
        let directory = std::mem::replace(&mut self.directory, TempDir::new().unwrap());
        drop(self);
        Self::spawn(directory, |_| {})
    }

    /// How many events have a text.
    pub fn count_events(&self, text: &str) -> usize {
        self.events.all().iter().filter(|line| line.contains(text)).count()
    }

    /// Waits for an event beyond those that there are.
    pub fn next_event(&self, text: &str, act: impl FnOnce()) -> String {
        let before = self.events.all().len();
        act();
        self.events.wait(before, |line| line.contains(text))
    }

    /// Reloads and gives what was said about it.
    pub fn reload(&self) -> String {
        let before = self.events.all().len();
        self.signal(Signal::SIGHUP);
        self.events.wait(before, |line| line.contains("reloaded: ") || line.contains("reload refused"));
        self.events.all().get(before..).unwrap().join("\n")
    }

    pub fn wait_event(&self, text: &str) -> String {
        self.events.wait(0, |line| line.contains(text))
    }

    /// The first line of the access log that fits.
    pub fn wait_access(&self, fits: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let line = self.access.wait(0, |line| serde_json::from_str(line).is_ok_and(|json| fits(&json)));
        serde_json::from_str(&line).unwrap()
    }

    /// The first line of the access log for a target.
    pub fn wait_target(&self, target: &str) -> serde_json::Value {
        self.wait_access(|line| line["target"] == target)
    }

    pub fn events(&self) -> String {
        self.events.all().join("\n")
    }

    /// Waits for the process to end and gives its exit code.
    pub fn wait_exit(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Bytes of memory in use, as the kernel counts them.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for pid in self.successors() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- events\n{}\n--- access log\n{}", self.events(), self.access.all().join("\n"));
        }
    }
}

/// A main file with one plain listener.
pub const PLAIN: &str =
    "listeners: [{ address: \"127.0.0.1:0\" }]\naccess_log: json\nsites: sites.d/*.yaml\nstate_dir: state\nadmin: { socket: admin.sock }\n";

/// What the main file does not say of state and admin socket would be the machine's: a test keeps to its directory.
fn keep_to(directory: &Path) {
    let main = directory.join("main.yaml");
    let mut text = std::fs::read_to_string(&main).unwrap();
    for (key, value) in [("state_dir:", "state_dir: state\n"), ("admin:", "admin: { socket: admin.sock }\n")] {
        if !text.contains(key) {
            text.push_str(value);
        }
    }
    std::fs::write(main, text).unwrap();
}

fn write_files(directory: &Path, files: &[(&str, &str)]) {
    for (file, text) in files {
        let path = directory.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Renamed into place, as editors do.
        let aside = path.with_extension("aside");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }
}

fn command(directory: &Path, verb: &str) -> Command {
    let mut command = bare_command(directory);
    command.arg(verb).arg("-c").arg("main.yaml");
    command
}

fn bare_command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.current_dir(directory);
    for name in ["PORTCULLIS_LOG", "PORTCULLIS_CONFIG", "PORTCULLIS_SOCKET", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(name);
    }
    command
}

/// What a command that ends has said.
pub struct Check {
    pub code: Option<i32>,
    pub text: String,
}

/// Runs `portcullis VERB -c main.yaml ARGS` on files; for configurations that end it.
pub fn check(verb: &str, args: &[&str], directory: &Path, files: &[(&str, &str)]) -> Check {
    write_files(directory, files);
    if verb == "run" && directory.join("main.yaml").exists() {
        keep_to(directory);
    }
    let output = command(directory, verb).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    Check { code: output.status.code(), text }
}

/// Lines that come in on a thread; whoever waits is woken by each.
#[derive(Clone)]
struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    fn read(from: impl Read + Send + 'static) -> Self {
        let lines = Lines(Arc::default());
        let sink = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                sink.0.0.lock().unwrap().push(line);
                sink.0.1.notify_all();
            }
        });
        lines
    }

    fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The first line from number `from` on that fits.
    fn wait(&self, from: usize, fits: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.0.0.lock().unwrap();
        let mut next = from;
        loop {
            while let Some(line) = lines.get(next) {
                if fits(line) {
                    return line.clone();
                }
                next += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain; so far:\n{}", lines.join("\n"));
            lines = self.0.1.wait_timeout(lines, left).unwrap().0;
        }
    }
}
