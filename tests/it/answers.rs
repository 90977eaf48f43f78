//! Answers without a backend: redirects, fixed answers, maintenance, error pages and problem documents.

use crate::actors::{Client, H2, Origin, PLAIN, Proxy, get};

#[test]
fn routes_redirect_and_respond_by_themselves() {
    let origin = Origin::named("backend");
    let site = format!(
        "backends: ['{}']\nroutes:\n  - {{ path: /old/, redirect: 'https://new.test{{path}}' }}\n  - {{ path: '~^/p/(?<id>\\d+)$', redirect: {{ to: '/product?id={{id}}', status: 308 }} }}\n  \
         - {{ path: /ping, respond: 204 }}\n  - {{ path: /hello, respond: {{ status: 418, body: 'hello {{client_address}}', headers: {{ X-Path: '{{path}}', Content-Type: text/x-tea }} }} }}\n  \
         - {{ path: /file, respond: {{ file: ../page.json }} }}\n",
        origin.address
    );
    let proxy =
        Proxy::start(&[("main.yaml", PLAIN), ("page.json", "{}\n"), ("sites.d/shop.yaml", &format!("domains: [shop.test]\n{site}"))]);
    let mut client = Client::plain(proxy.address());
    let moved = client.request("GET", "shop.test", "/old/a?b=c", "", b"");
    assert_eq!((moved.status, moved.header("location").as_str()), (302, "https://new.test/old/a?b=c"));
    let moved = client.request("POST", "shop.test", "/p/42", "Content-Length: 0\r\n", b"");
    assert_eq!((moved.status, moved.header("location").as_str()), (308, "/product?id=42"));
    let pong = client.request("GET", "shop.test", "/ping", "", b"");
    assert_eq!((pong.status, pong.header("content-length").as_str()), (204, ""));
    let hello = client.request("GET", "shop.test", "/hello", "", b"");
    assert_eq!((hello.status, hello.text().as_str()), (418, "hello 127.0.0.1"));
    assert_eq!((hello.header("x-path").as_str(), hello.header("content-type").as_str()), ("/hello", "text/x-tea"));
    let file = client.request("GET", "shop.test", "/file", "", b"");
    assert_eq!((file.text().as_str(), file.header("content-type").as_str()), ("{}\n", "application/json"));
    let upload = client.request("POST", "shop.test", "/ping", "", b"hello");
    assert_eq!(upload.status, 204);
    assert_eq!(get(proxy.address(), "shop.test", "/else", "").text(), "backend");
    let line = proxy.wait_target("/hello");
    assert_eq!((line["reason"].as_str(), line["route"].as_str(), line["status"].as_u64()), (Some("respond"), Some("/hello"), Some(418)));
    let h2 = H2::plain(proxy.address()).request("GET", "http://shop.test/hello", &[], &[]).unwrap();
    assert_eq!((h2.status, h2.text().as_str()), (418, "hello 127.0.0.1"));
}

#[test]
fn a_method_that_no_route_takes_is_405_with_those_that_some_do() {
    let origin = Origin::named("backend");
    let proxy = Proxy::with_site(&format!(
        "routes:\n  - {{ path: /x, methods: [GET], group: shop }}\n  - {{ path: /x, methods: [DELETE], group: shop }}\nbackends: ['{}']\n",
        origin.address
    ));
    // The site's own group takes what the routes leave: without it there is nothing else.
    assert_eq!(get(proxy.address(), "shop.test", "/x", "").status, 200);
    proxy.write(
        "sites.d/shop.yaml",
        "domains: [shop.test]\nroutes:\n  - { path: /x, methods: [GET], respond: 200 }\n  - { path: /x, methods: [DELETE], respond: 204 }\n",
    );
    proxy.reload();
    let mut client = Client::plain(proxy.address());
    let refused = client.request("PUT", "shop.test", "/x", "Content-Length: 0\r\n", b"");
    assert_eq!((refused.status, refused.header("allow").as_str()), (405, "DELETE, GET, HEAD"));
    assert_eq!(client.request("GET", "shop.test", "/y", "", b"").status, 404);
}

#[test]
fn a_site_in_maintenance_lets_some_through() {
    let origin = Origin::named("backend");
    let site = |maintenance: &str| format!("domains: [shop.test]\nbackends: ['{}']\n{maintenance}", origin.address);
    let proxy = Proxy::start(&[
        ("main.yaml", PLAIN),
        ("sites.d/shop.yaml", &site("maintenance: true\n")),
        ("closed.html", "<p>{status} back soon</p>"),
    ]);
    let closed = get(proxy.address(), "shop.test", "/", "");
    assert_eq!((closed.status, closed.header("retry-after").as_str()), (503, "300"));
    assert_eq!(proxy.wait_target("/")["reason"], "maintenance");
    proxy.write("sites.d/shop.yaml", &site("maintenance: { page: ../closed.html, retry_after: 1h, allow: [10.0.0.0/8] }\n"));
    proxy.reload();
    let closed = get(proxy.address(), "shop.test", "/", "");
    assert_eq!((closed.text().as_str(), closed.header("retry-after").as_str()), ("<p>503 back soon</p>", "3600"));
    proxy.write("sites.d/shop.yaml", &site("maintenance: { allow: [127.0.0.1] }\n"));
    proxy.reload();
    assert_eq!(get(proxy.address(), "shop.test", "/", "").text(), "backend");
    let origin_saw: Vec<_> = origin.drain();
    assert_eq!(origin_saw.len(), 1, "a closed site sends nothing to its backends");
}

#[test]
fn errors_look_as_the_site_and_the_client_want() {
    let site = "domains: [shop.test]\nroutes: [{ path: /a, group: dead }]\nerror_pages: { 404: ../404.html, 5xx: ../5xx.html }\n";
    let main = format!(
        "{PLAIN}unknown_host: 404\ndefaults: {{ error_pages: {{ default: any.html }} }}\nbackend_groups: {{ dead: {{ backends: ['127.0.0.1:1'], health_check: off }} }}\n"
    );
    let proxy = Proxy::start(&[
        ("main.yaml", &main),
        ("404.html", "<h1>lost: {request_id}</h1>"),
        ("5xx.html", "<h1>{status} {title}</h1>"),
        ("any.html", "<h1>any {status}</h1>"),
        ("sites.d/shop.yaml", site),
    ]);
    let text = |target: &str, headers: &str| get(proxy.address(), "shop.test", target, headers);
    let lost = text("/none", "");
    assert_eq!((lost.status, lost.text()), (404, format!("<h1>lost: {}</h1>", lost.header("x-request-id"))));
    assert_eq!(text("/a", "").text(), "<h1>502 Bad Gateway</h1>");
    // The backend that refused is out for a second.
    let problem = text("/a", "Accept: application/json\r\n");
    assert_eq!(problem.header("content-type"), "application/problem+json");
    let json: serde_json::Value = serde_json::from_str(&problem.text()).unwrap();
    assert_eq!((json["status"].as_u64(), json["title"].as_str()), (Some(503), Some("Service Unavailable")));
    assert_eq!(json["request_id"].as_str(), Some(problem.header("x-request-id").as_str()));
    assert!(json.get("reason").is_none(), "nothing of the inside is told unless it is asked for");
    assert!(!problem.text().contains("127.0.0.1") && !problem.text().contains("dead"), "{}", problem.text());
    assert_eq!(get(proxy.address(), "other.test", "/", "").text(), "<h1>any 404</h1>", "also where no site answers");
    proxy.write("sites.d/shop.yaml", &format!("{site}error_details: true\n"));
    proxy.reload();
    let told = get(proxy.address(), "shop.test", "/a", "Accept: application/problem+json\r\n");
    assert!(told.text().contains("\"reason\":\""), "{}", told.text());
    // What the gate refuses itself looks the same.
    let mut client = Client::plain(proxy.address());
    client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert_eq!(client.response(false).text(), "<h1>any 400</h1>");
}
