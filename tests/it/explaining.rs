//! `explain`, the tests in site files, the schema and the dumps of `check`.

use std::process::Command;

use serde_json::Value;

use crate::actors::{Ca, Origin, PLAIN, Proxy, check, get};

const MAIN: &str = "listeners: [{ address: '127.0.0.1:8080', name: plain }, { address: '127.0.0.1:8443', name: secure, tls: true }]\n\
    state_dir: state\nsites: sites.d/*.yaml\nusers: users.yaml\nbackend_groups:\n  node1: { backends: [BACKEND], host: app.internal }\n  \
    node2: { backends: [{ address: '127.0.0.1:1', name: dead }], sticky: true }\n";
const USERS: &str = "apps: { phpmyadmin: { role: mysql } }\nusers:\n  user1: { mysql: node1 }\n  user2: { mysql: node2 }\n";
const PANEL: &str = "domains: [panel.test]\ntls: { cert: ../panel.pem, key: ../panel.key }\nroutes:\n  - { path: '/{user}/{app}/', users: true, strip: '/{user}' }\n  \
    - { path: /old/, redirect: 'https://new.test{path}' }\n  - { path: /, name: beta, headers: { X-Beta: true }, group: node2 }\n  \
    - { path: /, group: node1, request_headers: { set: { X-Secret: '${file:../secret}' }, remove: [Accept] } }\n";

struct Stage {
    directory: tempfile::TempDir,
    _origin: Origin,
}

fn stage() -> Stage {
    let directory = tempfile::TempDir::new().unwrap();
    let origin = Origin::named("up");
    let ca = Ca::new();
    ca.issue(directory.path(), "panel", &["panel.test"]);
    let main = MAIN.replace("BACKEND", &format!("'{}'", origin.address));
    let files = [
        ("main.yaml", main.as_str()),
        ("users.yaml", USERS),
        ("secret", "s3cret"),
        ("sites.d/panel.yaml", PANEL),
        ("sites.d/all.yaml", "domains: ['*.test']\ngroup: node1\n"),
    ];
    assert_eq!(check("check", &[], directory.path(), &files).code, Some(0));
    Stage { directory, _origin: origin }
}

impl Stage {
    fn explain(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let output = command.arg("explain").args(args).args(["-c", "main.yaml"]).current_dir(self.directory.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    }

    fn json(&self, args: &[&str]) -> Value {
        let (code, text) = self.explain(&[args, &["--format", "json"]].concat());
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str(&text).unwrap()
    }
}

#[test]
fn a_forwarded_request_is_explained_from_certificate_to_backend() {
    let stage = stage();
    let (code, text) = stage.explain(&["https://panel.test/user1/phpmyadmin/x?y", "-H", "X-Forwarded-For: 1.2.3.4"]);
    assert_eq!(code, Some(0), "{text}");
    for line in [
        "GET          https://panel.test/user1/phpmyadmin/x?y  (encrypted, from 192.0.2.1, on listener secure)",
        "certificate  sites.d/../panel.pem: ECDSA P-256, for panel.test, good until ",
        "site         panel  (sites.d/panel.yaml:1)",
        "route        /{user}/{app}/  (sites.d/panel.yaml:4)",
        "user         user1  (users.yaml:3)",
        "app          phpmyadmin",
        "group        node1  (main.yaml:6)",
        "sent as      GET /phpmyadmin/x?y  (Host: app.internal)",
        "added        x-forwarded-prefix: /user1",
        "changed      host: app.internal",
        "changed      x-forwarded-for: 192.0.2.1",
        ", weight 1: eligible: a probe succeeded just now",
        "lost         beta  (sites.d/panel.yaml:6): any other path wins over `/`",
        "lost         /old/  (sites.d/panel.yaml:5): its path does not match",
        "lost         site all  (sites.d/all.yaml:1): `*.test` matches too, but `panel.test` is more specific",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let (_, text) = stage.explain(&["https://panel.test/user2/phpmyadmin/"]);
    assert!(text.contains("dead at 127.0.0.1:1, weight 1: not eligible: Connection refused"), "{text}");
    let (_, text) = stage.explain(&["https://panel.test/user2/phpmyadmin/", "--no-probe"]);
    assert!(text.contains("not probed"), "{text}");
}

#[test]
fn what_lost_says_why_and_secrets_stay_secret() {
    let stage = stage();
    let home = stage.json(&["https://panel.test/nobody/phpmyadmin/", "-H", "Accept: a", "-H", "X-Secret: forged"]);
    assert_eq!((home["route"]["name"].as_str(), home["outcome"].as_str()), (Some("/"), Some("forward")));
    assert_eq!(home["sent"]["changed"]["x-secret"][0], "(secret)");
    assert_eq!(home["sent"]["dropped"], serde_json::json!(["accept"]));
    let lost = home["lost"].as_array().unwrap();
    let why = |route: &str| lost.iter().find(|lost| lost["route"] == route).unwrap()["why"].as_str().unwrap().to_owned();
    assert_eq!(why("/{user}/{app}/"), "the users table has no such user");
    assert_eq!(why("beta"), "it asks for the header `x-beta: true`");
    assert_eq!(stage.json(&["https://panel.test/", "-H", "X-Beta: 1"])["route"]["name"], "beta");
    let redirect = stage.json(&["https://panel.test/old/a", "-X", "POST"]);
    assert_eq!((redirect["outcome"].as_str(), redirect["answer"]["status"].as_u64()), (Some("redirect"), Some(307)));
    assert_eq!(redirect["answer"]["headers"]["location"][0], "https://new.test/old/a");
    let https = stage.json(&["http://panel.test/x"]);
    assert_eq!(https["answer"]["headers"]["location"][0], "https://panel.test/x");
    let to_https = https["lost"].as_array().unwrap().iter().find(|lost| lost["why"] == "plain requests are redirected to HTTPS first");
    assert_eq!(to_https.unwrap()["route"], "/");
    let refused = stage.json(&["https://panel.test/user1/nothing/"]);
    assert_eq!((refused["outcome"].as_str(), refused["reason"].as_str()), (Some("refuse"), Some("unknown_app")));
    assert_eq!((refused["user"]["name"].as_str(), refused["route"]["name"].as_str()), (Some("user1"), Some("/{user}/{app}/")));
    assert_eq!(refused["note"], "user1 has no row for nothing, which has no role");
    let unknown = stage.json(&["http://other.example/"]);
    assert_eq!((unknown["outcome"].as_str(), unknown["reason"].as_str()), (Some("drop"), Some("unknown_host")));
    let handshake = stage.json(&["https://panel.test/", "--sni", "other.example"]);
    assert_eq!((handshake["outcome"].as_str(), handshake["reason"].as_str()), (Some("drop"), Some("unknown_sni")));
}

#[test]
fn the_default_site_answers_handshakes_for_unknown_names() {
    let stage = stage();
    let main = stage.directory.path().join("main.yaml");
    let text = std::fs::read_to_string(&main).unwrap();
    std::fs::write(&main, format!("{text}unknown_host: panel\n")).unwrap();
    let unknown = stage.json(&["https://nobody.example/"]);
    assert_eq!((unknown["outcome"].as_str(), unknown["site"]["name"].as_str()), (Some("forward"), Some("panel")), "{unknown}");
    assert_eq!(unknown["certificate"]["files"].as_array().map(Vec::len), Some(1), "{unknown}");
}

#[test]
fn a_question_that_makes_no_sense_is_wrong_usage() {
    let stage = stage();
    for (args, says) in [
        (&["ftp://panel.test/"][..], "neither `http` nor `https`"),
        (&["https:///x"], "is no host"),
        (&["https://panel.test/", "--listener", "none"], "there are `plain`, `secure`"),
        (&["https://panel.test/", "-H", "nonsense"], "write `Name: value`"),
        (&["https://panel.test/", "--from", "here"], "invalid"),
    ] {
        let (code, text) = stage.explain(args);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(says), "{says} is not in {text}");
    }
}

#[test]
fn explain_and_the_data_path_agree() {
    let origin = Origin::echo();
    let site = format!(
        "domains: [shop.test]\nbackends: ['{}']\nroutes:\n  - {{ path: '/a/{{b}}/', strip: /a, request_headers: {{ set: {{ X-B: '{{b}}' }}, remove: [X-Gone] }} }}\n",
        origin.address
    );
    let main = PLAIN.replace("127.0.0.1:0", "127.0.0.1:8080");
    let directory = tempfile::TempDir::new().unwrap();
    check("check", &[], directory.path(), &[("main.yaml", &main), ("sites.d/shop.yaml", &site)]);
    let proxy = Proxy::with_site(site.split_once('\n').unwrap().1);
    for target in ["/a/tea/x?y=1", "/a//b/../c/", "/plain", "/a/%7Eu/"] {
        let headers = "X-Gone: 1\r\nX-Real-IP: 9.9.9.9\r\nCookie: a=b\r\n";
        let real = get(proxy.address(), "shop.test", target, headers).text();
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let url = format!("http://shop.test{target}");
        let args = [
            "explain",
            &url,
            "-c",
            "main.yaml",
            "--format",
            "json",
            "--no-probe",
            "--from",
            "127.0.0.1",
            "-H",
            "X-Gone: 1",
            "-H",
            "X-Real-IP: 9.9.9.9",
            "-b",
            "a=b",
        ];
        let output = command.args(args).current_dir(directory.path()).output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(real.lines().next().unwrap(), format!("GET {}", told["sent"]["target"].as_str().unwrap()));
        for kind in ["added", "changed"] {
            for (name, values) in told["sent"][kind].as_object().unwrap() {
                let value = values[0].as_str().unwrap();
                if ["x-request-id", "x-forwarded-port"].contains(&name.as_str()) {
                    continue;
                }
                assert!(real.to_lowercase().contains(&format!("{name}: {value}").to_lowercase()), "{name}: {value} is not in\n{real}");
            }
        }
        for name in told["sent"]["dropped"].as_array().unwrap() {
            assert!(!real.to_lowercase().contains(&format!("\n{}:", name.as_str().unwrap())), "{name} is in\n{real}");
        }
    }
}

#[test]
fn a_failed_test_isolates_its_site_at_check_and_reload() {
    let origin = Origin::named("good");
    let site = |expected: &str| {
        format!(
            "domains: [shop.test]\nbackends: ['{}']\nroutes: [{{ path: /ping, respond: 204 }}]\ntests:\n  - {{ get: /ping, status: 204 }}\n  - {expected}\n",
            origin.address
        )
    };
    let other = format!("domains: [other.test]\nbackends: ['{}']\n", origin.address);
    let good = site("{ get: '/x?y', group: shop, route: /, path: '/x?y' }");
    let proxy = Proxy::start(&[("main.yaml", PLAIN), ("sites.d/shop.yaml", &good), ("sites.d/other.yaml", &other)]);
    let bad = site("{ post: /x, group: elsewhere, status: 204 }").replace("/ping, respond: 204", "/ping, respond: 205");
    proxy.write("sites.d/shop.yaml", &bad);
    proxy.write("sites.d/other.yaml", &other.replace("other.test", "new.test"));
    let said = proxy.reload();
    assert!(said.contains("site shop has errors: its last good version stays"), "{said}");
    assert!(proxy.events().contains("this test fails: status should be `204`, but it is `205`"), "{}", proxy.events());
    assert!(
        proxy.events().contains("group should be `elsewhere`, but it is `shop`; status should be `204`, but the request goes to a backend")
    );
    assert_eq!(get(proxy.address(), "shop.test", "/ping", "").status, 204, "the last good version answers");
    assert_eq!(get(proxy.address(), "new.test", "/", "").text(), "good", "other sites go on");
    let directory = tempfile::TempDir::new().unwrap();
    let result =
        check("check", &[], directory.path(), &[("main.yaml", PLAIN), ("sites.d/shop.yaml", &bad), ("sites.d/other.yaml", &other)]);
    assert_eq!(result.code, Some(3), "{}", result.text);
    assert!(result.text.contains("help: `portcullis explain http://shop.test/x --method POST -c main.yaml` tells why"), "{}", result.text);
    assert_eq!(check("check", &["--strict"], directory.path(), &[]).code, Some(78));
    let result = check("check", &[], directory.path(), &[("sites.d/shop.yaml", &good)]);
    assert!(result.text.contains("2 tests passed"), "{}", result.text);
}

/// What is printed is a configuration again, and prints itself.
#[test]
fn the_effective_configuration_is_one() {
    let stage = stage();
    let directory = stage.directory.path();
    let everything = "domains: [every.test, '*.wild.test', '{user}.u.test', '~^re\\d\\.test$']\nlisteners: [plain]\nmaintenance: { allow: [10.0.0.0/8], retry_after: 90s }\n\
        timeouts: { read: 90s }\nmax_body: off\nresponse_headers: { set: { X-A: '{host}' }, remove: [Server] }\nerror_pages: { 404: ../panel.pem }\nerror_details: true\n\
        backends: [{ address: '127.0.0.1:9', weight: 3, name: n }, { address: 'unix:/run/x.sock', backup: true }]\nhealth_check: { path: /h, status: [200, 3xx], body: ok, port: 99, jitter: 0s }\nsticky: { max_age: 1d }\n\
        routes:\n  - { path: '=/e', methods: [GET, POST], scheme: http, headers: { X-B: '~^a' }, cookies: { c: false }, query: { q: true }, group: node1, timeouts: { connect: 1s } }\n  \
        - { path: '~^/r/(?<id>\\d+)', redirect: { to: '/x/{id}', status: 301 } }\n  - { path: /s/, respond: { status: 201, body: 'a {{b}}', headers: { X-R: '{path}' } } }\n  \
        - { path: '/a/{b}/', strip: /a, response_headers: { add: { X-C: '1' } }, request_headers: { rename: { X-From: X-To } } }\n";
    check("check", &[], directory, &[("sites.d/every.yaml", everything)]);
    let print = |site: &str| {
        let result = check("check", &["--print-effective", site], directory, &[]);
        assert_eq!(result.code, Some(0), "{}", result.text);
        result.text
    };
    for site in ["every", "all"] {
        let printed = print(site);
        let again = printed.replace("sites.d/../panel.pem", "../panel.pem");
        check("check", &[], directory, &[(&format!("sites.d/{site}.yaml"), &again)]);
        assert_eq!(print(site), printed, "printing it again changes nothing");
    }
    let all = check("check", &["--print-effective"], directory, &[]).text;
    assert!(all.contains("X-Secret: (secret)") && !all.contains("s3cret"), "{all}");
    assert!(all.contains("read: 1m") && all.contains("jitter: 500ms"), "defaults are filled in: {all}");
    let unknown = check("check", &["--print-effective", "none"], directory, &[]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.text.contains("there are: all, every, panel"), "{}", unknown.text);
}

#[test]
fn check_speaks_json() {
    let directory = tempfile::TempDir::new().unwrap();
    let files = [("main.yaml", PLAIN), ("sites.d/a.yaml", "domains: [a.test]\nbackend: x\n")];
    let result = check("check", &["--format", "json"], directory.path(), &files);
    assert_eq!(result.code, Some(3));
    let json: Value = serde_json::from_str(&result.text).unwrap();
    assert_eq!((json["result"].as_str(), json["broken_sites"][0].as_str()), (Some("in_part"), Some("a")));
    let first = &json["diagnostics"][0];
    assert_eq!(first["message"], "unknown key `backend`");
    assert_eq!(first["place"], serde_json::json!({ "file": "sites.d/a.yaml", "line": 2, "column": 1 }));
    assert_eq!((first["severity"].as_str(), first["help"].as_str()), (Some("error"), Some("did you mean `backends`?")));
}

#[test]
fn secrets_stay_secret_everywhere() {
    let directory = tempfile::TempDir::new().unwrap();
    let here = directory.path();
    let main = format!(
        "{}backend_groups:\n  g: {{ backends: ['127.0.0.1:1'], health_check: {{ path: /h, headers: {{ Authorization: 'Bearer ${{file:key}}' }}, body: '${{file:key}}' }} }}\n",
        PLAIN.replace("127.0.0.1:0", "127.0.0.1:8080")
    );
    let site = "domains: [a.test]\ngroup: g\nresponse_headers: { add: { X-Add: '${file:../key}' } }\nroutes:\n  - { path: /cond/, name: cond, headers: { X-Token: '${file:../key}' }, cookies: { t: '${file:../key}' }, group: g }\n  \
        - { path: /cond/, query: { t: '~${file:../key}' }, respond: 204 }\n  - { path: /redirect/, redirect: 'https://x.test/${file:../key}' }\n  \
        - { path: /respond/, respond: { headers: { X-R: '${file:../key}' } } }\n";
    let result = check("check", &["--print-effective"], here, &[("main.yaml", &main), ("key", "s3cr3tvalue"), ("sites.d/a.yaml", site)]);
    assert!(result.code == Some(0) && !result.text.contains("s3cr3t"), "{}", result.text);
    for path in ["/cond/", "/redirect/", "/respond/", "/"] {
        for format in ["text", "json"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
            let url = format!("http://a.test{path}");
            let output =
                command.args(["explain", &url, "--no-probe", "-c", "main.yaml", "--format", format]).current_dir(here).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && !text.contains("s3cr3t"), "{text}");
        }
    }
    let filled = "'${file:key}'";
    let wrong = format!(
        "listeners: [{{ address: {filled} }}]\nunknown_host: {filled}\ntrusted_proxies: [{filled}]\nname_servers: [{filled}]\naccess_log: {filled}\ndefaults: {{ tls: {{ preset: {filled} }} }}\n\
         sites: sites.d/*.yaml\nbackend_groups:\n  g: {{ backends: [{filled}], balance: {filled}, protocol: {filled}, source: {filled}, host: 'a b${{file:key}}', health_check: {{ path: {filled}, method: {filled}, status: {filled} }} }}\n"
    );
    let wrong_site = "domains: ['${file:../key}!']\ngroup: '${file:../key}'\nlisteners: '${file:../key}'\nroutes:\n  - { path: /, methods: '${file:../key}|', scheme: '${file:../key}', redirect: '${file:../key}' }\n  \
        - { path: /x, respond: '${file:../key}' }\n  - { path: '${file:../key}', group: g }\n  - { path: /y, redirect: '/${file:../key}{path}' }\n";
    let result = check("check", &[], here, &[("main.yaml", &wrong), ("sites.d/a.yaml", wrong_site)]);
    assert!(result.code == Some(78) && !result.text.contains("s3cr3t"), "{}", result.text);
    let count = result.text.matches("error: ").count();
    assert!(count >= 18, "{count} {}", result.text);
    assert!(result.text.contains("values of the request cannot stand beside `${…}`"), "{}", result.text);
}

#[test]
fn the_running_process_tells_what_commands_have_changed() {
    let (blue, green) = (Origin::named("blue"), Origin::named("green"));
    let main = format!(
        "{PLAIN}users: users.yaml\nbackend_groups:\n  b: {{ backends: ['{}'] }}\n  g: {{ backends: [{{ address: '{}', name: one }}, {{ address: '127.0.0.1:1', name: dead }}], sticky: true }}\n",
        blue.address, green.address
    );
    let proxy = Proxy::start(&[
        ("main.yaml", &main),
        ("users.yaml", "managed: true\nusers: { user1: { wiki: b } }\n"),
        ("sites.d/panel.yaml", "domains: [panel.test]\nroutes: [{ path: '/{user}/{app}/', users: true }]\n"),
        ("sites.d/shop.yaml", "domains: [shop.test]\ngroups: { blue: b, green: g }\nactive: blue\n"),
    ]);
    let explain = |args: &[&str]| proxy.ok(&[&["explain"], args].concat());
    let has = |text: &str, lines: &[&str]| {
        for line in lines {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    };
    let (wiki, shop) = ("http://panel.test/user1/wiki/", "http://shop.test/");
    has(&explain(&[wiki, "--live"]), &["generation   1, in force", "user         user1  (managed table users)", "group        b  ("]);
    proxy.ok(&["users", "set", "user1", "wiki=g"]);
    proxy.ok(&["users", "set", "user2", "wiki=b"]);
    proxy.ok(&["switch", "shop", "green"]);
    proxy.ok(&["backend", "disable", "g/one"]);
    proxy.wait_event("backend 127.0.0.1:1 becomes unhealthy");
    has(&explain(&[wiki, "--no-probe"]), &["users.yaml:2, a seed: `--live` knows the row in force)", "group        b  ("]);
    has(
        &explain(&[wiki, "--live"]),
        &["group        g  (", "weight 1: not eligible: disabled by an operator", ": not eligible: unhealthy"],
    );
    has(
        &explain(&["http://panel.test/user2/wiki/", "--live"]),
        &["user         user2  (managed table users)", "weight 1: eligible: healthy"],
    );
    has(&explain(&[shop, "--no-probe"]), &["group        b  ("]);
    has(&explain(&[shop, "--live", "-X", "post"]), &["POST         http://shop.test/", "group        g  ("]);
    // A site that is in force in its last good version.
    proxy.write("sites.d/shop.yaml", "domains: [shop.test\n");
    assert_eq!(proxy.cli(&["reload"]).code, Some(3));
    let json: Value = serde_json::from_str(&explain(&[shop, "--live", "--format", "json"])).unwrap();
    assert_eq!((&json["group"]["name"], &json["generation"], &json["backends"][0]["eligible"]), (&"g".into(), &2.into(), &false.into()));
    for (args, says) in [
        (["explain", "ftp://shop.test/", "--live"], "`ftp` is neither `http` nor `https`"),
        (["explain", "https://shop.test/", "--live"], "no listener takes https"),
    ] {
        let said = proxy.cli(&args);
        assert!(said.code == Some(2) && said.text.contains(says), "{args:?}: {}", said.text);
    }
}
