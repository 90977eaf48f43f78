//! Decides about requests against tables of a given size: `lookup ROWS REQUESTS`. `lookup.sh` counts its instructions.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark is not the product")]

use portcullis::balance::Group;
use portcullis::config::{GroupId, Target, Timeouts, Unknown, UsersRule};
use portcullis::decide::{RequestView, Verdict, decide};
use portcullis::routing::host::{HostPattern, HostTable};
use portcullis::routing::path_table::{PathPattern, PathTable};
use portcullis::routing::users::UserTable;
use portcullis::snapshot::{Route, Site, Snapshot};

fn main() {
    // Under `cargo bench` there may be flags of its own.
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<u32>().ok());
    let (rows, requests) = (numbers.next().unwrap_or(10), numbers.next().unwrap_or(10));
    let snapshot = snapshot(rows);
    if requests == 0 {
        println!("{} {}", snapshot.hosts.size() / rows as usize, snapshot.users.size() / rows as usize);
    }
    let mut forwarded = 0;
    for n in 0..requests {
        // Rows far apart, so that no cache of ours could help.
        let row = n.wrapping_mul(2_654_435_761) % rows;
        let host = format!("d{row}.example.com");
        let path = format!("/user{row}/phpmyadmin/index.php");
        let request = RequestView { method: "GET", host: &host, path: path.as_bytes(), query: None, absolute: false, secure: true };
        forwarded += u32::from(matches!(decide(&snapshot, &request), Verdict::Forward(_)));
    }
    assert_eq!(forwarded, requests);
}

/// One site with `rows` domains, and as many users.
fn snapshot(rows: u32) -> Snapshot {
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
    let route = |path: &str, target, strip| {
        let pattern = PathPattern::parse(path).unwrap();
        Route { name: path.to_owned(), pattern, target, strip, timeouts: Timeouts::default() }
    };
    let routes = vec![route("/{user}/{app}/", Target::Users(rule), Some(1)), route("/", Target::Group(GroupId(0)), None)];
    let mut paths = PathTable::default();
    for (index, route) in (0..).zip(&routes) {
        paths.insert(&route.pattern, index);
    }
    let site = Site { name: "panel".to_owned(), tls: None, hsts: None, https_redirect: None, routes, paths };
    Snapshot::from_parts(hosts, vec![site], Vec::<Group>::new(), users)
}
