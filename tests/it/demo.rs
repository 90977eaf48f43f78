//! `portcullis demo`: every command that it prints works, and a dying backend costs nothing.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn whatever_it_prints_works() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["demo", "--http-port", "0", "--https-port", "0", "--failure-every", "1"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut demo = Demo(command.spawn().unwrap());
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut text = String::new();
    for line in lines.by_ref() {
        text.push_str(&line);
        text.push('\n');
        if line.contains("Ctrl-C") {
            break;
        }
    }
    let curls: Vec<&str> = text.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    assert!(curls.len() >= 7, "{text}");
    let mut answers = String::new();
    for curl in &curls {
        let output = Command::new("sh").arg("-c").arg(format!("{curl} -sS --max-time 10")).output().unwrap();
        assert!(output.status.success(), "{curl}: {}", String::from_utf8_lossy(&output.stderr));
        answers.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    for expected in [
        "This is node1. It was asked for /phpmyadmin/",
        "This is node2. It was asked for /roundcube/",
        "This is node2. It was asked for /phpmyadmin/",
        "This is panel. It was asked for /",
        "/user1/phpmyadmin/\r\n",
        "Path=/user1/phpmyadmin/; HttpOnly",
        "This is S1.",
        "301",
    ] {
        assert!(answers.contains(expected), "{expected:?} is not in {answers}");
    }
    let links: Vec<&str> = text.lines().map(str::trim).filter(|line| line.starts_with("https://")).collect();
    assert_eq!(links.len(), 2);
    let shop = curls.iter().find(|curl| curl.contains("shop.localhost") && curl.contains("--cacert")).unwrap();
    let mut stories = Vec::new();
    // While S2 dies and returns, nothing fails.
    for line in lines {
        if line.starts_with("demo: S2") {
            let output = Command::new("sh").arg("-c").arg(format!("{shop} -sSf --max-time 10")).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            stories.push(line);
        }
        if stories.len() == 2 {
            break;
        }
    }
    assert!(stories[0].contains("has died") && stories[1].contains("is back"), "{stories:?}");
    let kill = text.lines().map(str::trim).find(|line| line.starts_with("kill -HUP")).unwrap();
    assert!(Command::new("sh").arg("-c").arg(kill).status().unwrap().success());
    assert!(demo.0.try_wait().unwrap().is_none(), "a reload does not end it");
}
