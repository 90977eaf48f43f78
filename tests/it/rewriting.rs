//! Strip mode: what the backend says about itself comes back in the client's terms.

use crate::actors::{Origin, PLAIN, Proxy, Reply, get};

fn panel(origin: &Origin) -> Proxy {
    let main = format!("{PLAIN}backend_groups:\n  node1: {{ backends: [{}] }}\nusers: users.yaml\n", origin.address);
    Proxy::start(&[
        ("main.yaml", &main),
        ("sites.d/panel.yaml", "domains: [panel.test]\nroutes:\n  - { path: '/{user}/{app}/', users: true, strip: '/{user}' }\n"),
        ("users.yaml", "users: { user1: { phpmyadmin: node1 } }\n"),
    ])
}

#[test]
fn an_app_under_a_prefix_works_without_knowing_it() {
    let origin = Origin::new(|request| {
        let own = request.header("x-own-address");
        Reply::Http(302, Vec::new(), Vec::new())
            .header("Location", format!("http://{own}/phpmyadmin/index.php?a=b"))
            .header("Content-Location", "/phpmyadmin/here")
            .header("Refresh", "5; url=/phpmyadmin/again")
            .header("Set-Cookie", "pma=1; Path=/phpmyadmin/; HttpOnly; Priority=High; SameSite=Weird")
            .header("Set-Cookie", "root=2; path=/; Domain=node1.internal")
            .header("Set-Cookie", "__Host-x=3; Path=/; Secure")
            .header("Set-Cookie", "plain=4")
    });
    let proxy = panel(&origin);
    let response = get(proxy.address(), "panel.test:8080", "/user1/phpmyadmin/", &format!("X-Own-Address: {}\r\n", origin.address));
    assert_eq!(response.header("location"), "http://panel.test:8080/user1/phpmyadmin/index.php?a=b");
    assert_eq!(response.header("content-location"), "/user1/phpmyadmin/here");
    assert_eq!(response.header("refresh"), "5; url=/user1/phpmyadmin/again");
    assert_eq!(
        response.header("set-cookie"),
        "pma=1; Path=/user1/phpmyadmin/; HttpOnly; Priority=High; SameSite=Weird | root=2; path=/user1/phpmyadmin/ | __Host-x=3; Path=/; Secure | plain=4"
    );
    assert_eq!(origin.request().header("x-forwarded-prefix"), "/user1");
    proxy.wait_event("`__Host-` cookie cannot be confined");
}

#[test]
fn without_strip_only_the_backends_address_is_hidden() {
    let origin = Origin::new(|request| {
        let own = request.header("x-own-address");
        Reply::text("").header("Location", format!("http://{own}/a")).header("Set-Cookie", "a=b; Path=/").header("Refresh", "1; url=/x")
    });
    let proxy = Proxy::with_site(&format!("backends: [{}]\n", origin.address));
    let response = get(proxy.address(), "shop.test", "/", &format!("X-Own-Address: {}\r\n", origin.address));
    assert_eq!(response.header("location"), "http://shop.test/a");
    assert_eq!(response.header("set-cookie"), "a=b; Path=/");
    assert_eq!(response.header("refresh"), "1; url=/x");
    assert_eq!(origin.request().header("x-forwarded-prefix"), "");
}
