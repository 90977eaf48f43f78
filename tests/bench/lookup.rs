//! Decides about requests against tables of a given size: `lookup ROWS REQUESTS`. `lookup.sh` counts its instructions.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark is not the product")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use http::HeaderMap;
use portcullis::config::origin::Origin;
use portcullis::config::{self, GroupId, Route, Target, Unknown, UsersRule};
use portcullis::decide::{RequestView, Verdict, decide};
use portcullis::routing::host::{HostPattern, HostTable};
use portcullis::routing::path_table::PathPattern;
use portcullis::routing::users::{UserTable, Users};
use portcullis::snapshot::{Rules, Site};

fn main() {
    // Under `cargo bench` there may be flags of its own.
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u32>().ok());
    let (rows, requests) = (numbers.next().unwrap_or(10), numbers.next().unwrap_or(10));
    let (rules, headers) = (rules(rows), HeaderMap::new());
    if requests == 0 {
        println!("{} {}", rules.hosts.size() / rows as usize, rules.users.size() / rows as usize);
    }
    let mut forwarded = 0;
    for n in 0..requests {
        // Rows far apart, so that no cache of ours could help.
        let row = n.wrapping_mul(2_654_435_761) % rows;
        let host = format!("d{row}.example.com");
        let path = format!("/user{row}/phpmyadmin/index.php");
        let request = RequestView {
            method: "GET",
            host: &host,
            path: path.as_bytes(),
            query: None,
            absolute: false,
            secure: true,
            headers: &headers,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
            trusted: false,
            listener: ":443",
            request_id: "",
        };
        forwarded += u32::from(matches!(decide(&rules, &request), Verdict::Forward(_)));
    }
    assert_eq!(forwarded, requests);
}

/// One site with `rows` domains, and as many users.
fn rules(rows: u32) -> Rules {
    let mut hosts = HostTable::default();
    let mut users = UserTable::default();
    users.add_app("phpmyadmin", "mysql");
    users.add_app("roundcube", "mail");
    for row in 0..rows {
        hosts.insert(&HostPattern::parse(&format!("d{row}.example.com")).unwrap(), 0);
        users.add_user(&format!("user{row}"), [("mail", row % 8), ("mysql", row % 7)]);
    }
    hosts.shrink();
    users.shrink();
    let rule = UsersRule { app: None, unknown_user: Unknown::Next, unknown_app: Unknown::NotFound };
    let route = |path: &str, target| Route::new(path.to_owned(), Origin::nowhere(), PathPattern::parse(path).unwrap(), target);
    let by_user = Route { strip: Some(1), ..route("/{user}/{app}/", Target::Users(rule)) };
    let mut panel = config::Site::new(Path::new("panel.yaml"), "panel".to_owned());
    panel.routes = vec![by_user, route("/", Target::Group(GroupId(0)))];
    Rules { hosts: Arc::new(hosts), sites: [Site::new(Arc::new(panel), None)].into(), users: Users::new(users), ..Rules::default() }
}
