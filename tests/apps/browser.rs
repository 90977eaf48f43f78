//! Headless Chromium, driven through chromedriver (W3C WebDriver).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

impl Browser {
    pub fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium-driver is installed");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map(Result::unwrap);
        let started = lines.find(|line| line.contains("started successfully on port")).unwrap();
        let port = started.rsplit(' ').next().unwrap().trim_end_matches('.').parse().unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::TempDir::new().unwrap();
        let mut browser = Self { driver, port, session: String::new(), _profile: profile };
        let data = format!("--user-data-dir={}", browser._profile.path().display());
        let args = json!([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--ignore-certificate-errors",
            "--window-size=1200,900",
            "--lang=en",
            data
        ]);
        let capabilities =
            json!({ "capabilities": { "alwaysMatch": { "acceptInsecureCerts": true, "goog:chromeOptions": { "args": args } } } });
        let session = browser.call("POST", "/session", &capabilities);
        browser.session = session["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    pub fn open(&self, url: &str) {
        self.act("POST", "/url", &json!({ "url": url }));
    }

    pub fn url(&self) -> String {
        self.act("GET", "/url", &Value::Null).as_str().unwrap().to_owned()
    }

    /// What a person reads on the page.
    pub fn text(&self) -> String {
        let script = json!({ "script": "return document.body.innerText", "args": [] });
        self.act("POST", "/execute/sync", &script).as_str().unwrap_or_default().to_owned()
    }

    pub fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.act("POST", &format!("/element/{element}/clear"), &json!({}));
        self.act("POST", &format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// Clicks what leads to another page, and waits for that page.
    pub fn follow(&self, selector: &str) {
        let element = self.find(selector);
        self.act("POST", &format!("/element/{element}/click"), &json!({}));
        let gone = || self.try_act("GET", &format!("/element/{element}/name"), &Value::Null).is_err();
        until(&format!("leaving the page of {selector}"), gone);
        let complete = json!({ "script": "return document.readyState", "args": [] });
        until("the next page", || self.act("POST", "/execute/sync", &complete) == "complete");
    }

    /// Names and paths of the page's cookies.
    pub fn cookies(&self) -> Vec<(String, String)> {
        let cookies = self.act("GET", "/cookie", &Value::Null);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        cookies.as_array().unwrap().iter().map(|cookie| (text(&cookie["name"]), text(&cookie["path"]))).collect()
    }

    /// Keeps a picture of the page where `SCREENSHOTS` names a directory.
    pub fn screenshot(&self, name: &str) {
        let Some(directory) = std::env::var_os("SCREENSHOTS") else { return };
        let picture = self.act("GET", "/screenshot", &Value::Null);
        let decode = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut decode = decode.unwrap();
        let mut input = decode.stdin.take().unwrap();
        let text = picture.as_str().unwrap().to_owned();
        std::thread::spawn(move || input.write_all(text.as_bytes()));
        let bytes = decode.wait_with_output().unwrap().stdout;
        std::fs::write(std::path::Path::new(&directory).join(name), bytes).unwrap();
    }

    fn find(&self, selector: &str) -> String {
        let query = json!({ "using": "css selector", "value": selector });
        let mut found = None;
        until(selector, || {
            found = self.try_act("POST", "/element", &query).ok();
            found.is_some()
        });
        found.unwrap()[ELEMENT].as_str().unwrap().to_owned()
    }

    fn act(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_act(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn try_act(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let answer = self.call(method, &format!("/session/{}{path}", self.session), body);
        if answer["error"].is_string() { Err(answer) } else { Ok(answer) }
    }

    /// One request to chromedriver; gives the `value` of its answer.
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
        let mut reader = BufReader::new(stream);
        let (mut length, mut line) = (0, String::new());
        while line != "\r\n" {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap_or_else(|error| panic!("{method} {path}: {error}")) > 0);
            if let Some(("content-length", value)) = line.to_ascii_lowercase().split_once(':').map(|(name, value)| (name, value.trim())) {
                length = value.parse().unwrap();
            }
        }
        // chromedriver keeps the connection open, whatever it is asked.
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).unwrap();
        let json: Value = serde_json::from_slice(&answer).unwrap_or_else(|_| panic!("{method} {path}: no JSON"));
        json["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // Ends Chromium; chromedriver alone would leave it behind.
            let _ = self.try_act("DELETE", "", &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
