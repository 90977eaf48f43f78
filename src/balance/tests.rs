//! Cases for picking: order, eligibility, stickiness.

use super::round_robin::round;
use super::sticky::{Stickiness, cookie_value, default_cookie, without_cookie};
use super::*;

const NOW: Now = Now(1_000);

fn group(spec: &[(usize, bool)], sticky: bool) -> Group {
    let backends: Vec<Backend> = (1u16..)
        .zip(spec)
        .map(|(n, (weight, backup))| Backend {
            hand: Hand::default(),
            name: format!("b{n}"),
            host: format!("b{n}"),
            address: Address::Inet(([127, 0, 0, 1], n).into()),
            shown: String::new(),
            probed_as: ProbedAs::default(),
            weight: *weight,
            backup: *backup,
            state: Arc::default(),
        })
        .collect();
    let timeout = Duration::from_secs(1);
    let stickiness = sticky.then(|| Stickiness::new("srv", None, b"secret", "g", backends.iter().map(|b| b.name.as_str())));
    let timeouts = Timeouts { connect: timeout, read: timeout, send: timeout, websocket_idle: timeout };
    let connect = Connect::new("g", None, crate::config::Protocol::Http1, None);
    Group::new(Settings { name: "g".into(), timeouts, stickiness, registry: None, connect, host: HostSent::Keep }, backends)
}

fn picks(group: &Group, count: usize) -> String {
    (0..count).map(|_| group.pick(None, &[], NOW).map_or('-', |pick| char::from(b'A' + pick.backend as u8))).collect()
}

#[test]
fn the_round_is_smooth() {
    let letters = |weights: &[usize]| round(weights).iter().map(|index| char::from(b'A' + *index as u8)).collect::<String>();
    for (weights, order) in
        [(&[3, 1][..], "AABA"), (&[1, 1, 1], "ABC"), (&[5, 1, 1], "AABACAA"), (&[10, 10], "AB"), (&[2, 4], "BAB"), (&[], "")]
    {
        assert_eq!(letters(weights), order, "{weights:?}");
    }
}

#[test]
fn requests_take_turns_by_weight() {
    assert_eq!(picks(&group(&[(3, false), (1, false)], false), 8), "AABAAABA");
    assert_eq!(picks(&group(&[(1, false), (1, false), (1, false)], false), 6), "ABCABC");
}

#[test]
fn the_share_of_an_unhealthy_backend_is_spread_evenly() {
    let group = group(&[(1, false), (1, false), (1, false)], false);
    group.backends[0].state.set_healthy(false);
    let picked = picks(&group, 100);
    assert_eq!(picked.matches('A').count(), 0);
    assert_eq!(picked.matches('B').count(), 50);
    assert_eq!(picked.matches('C').count(), 50);
}

#[test]
fn a_backend_that_refused_is_out_at_once_and_comes_back() {
    let group = group(&[(1, false), (1, false)], false);
    assert!(group.backends[0].state.eject(NOW));
    assert!(!group.backends[0].state.eject(NOW), "it is out already");
    assert_eq!(picks(&group, 3), "BBB");
    let later = Now(NOW.0 + 10_001);
    assert!(group.backends[0].state.is_eligible(later));
    assert!(!group.backends[0].state.readmit(Now(NOW.0 - 1)), "what connected before it refused says nothing");
    assert_eq!(picks(&group, 3), "BBB");
    group.backends[0].state.readmit(Now(NOW.0 + 1));
    assert!(picks(&group, 4).contains('A'));
}

#[test]
fn a_backup_serves_only_when_nothing_else_can() {
    let group = group(&[(1, false), (1, true)], false);
    assert_eq!(picks(&group, 3), "AAA");
    group.backends[0].state.set_healthy(false);
    assert_eq!(picks(&group, 3), "BBB");
    group.backends[1].state.set_healthy(false);
    assert_eq!(picks(&group, 1), "-");
}

#[test]
fn an_attempt_never_goes_where_one_was_made() {
    let group = group(&[(1, false), (100, false)], false);
    for _ in 0..300 {
        assert_eq!(group.pick(None, &[1], NOW).map(|pick| pick.backend), Some(0));
    }
    assert_eq!(group.pick(None, &[0, 1], NOW), None);
}

#[test]
fn a_client_sticks_until_its_backend_is_not_eligible() {
    let group = group(&[(1, false), (1, false)], true);
    let stickiness = group.stickiness.as_ref().unwrap();
    let cookie = stickiness.set_cookie(1, true).unwrap();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure"), "{cookie}");
    let value = cookie_value(cookie.as_bytes(), "srv").unwrap();
    for _ in 0..5 {
        assert_eq!(group.pick(Some(value), &[], NOW), Some(Pick { backend: 1, stuck: true }));
    }
    group.backends[1].state.set_healthy(false);
    assert_eq!(group.pick(Some(value), &[], NOW), Some(Pick { backend: 0, stuck: false }));
    assert_eq!(stickiness.backend("made-up"), None);
}

#[test]
fn two_nodes_with_one_secret_agree_and_others_do_not() {
    let value = |secret: &[u8], group: &str| Stickiness::new("c", None, secret, group, ["b1"].into_iter()).set_cookie(0, false);
    assert_eq!(value(b"x", "g"), value(b"x", "g"));
    assert_ne!(value(b"x", "g"), value(b"y", "g"));
    assert_ne!(value(b"x", "g"), value(b"x", "h"));
    assert_ne!(default_cookie("a"), default_cookie("b"));
}

#[test]
fn the_cookie_is_found_and_taken_out() {
    for (header, value, rest) in [
        ("srv=1", Some("1"), Some("")),
        ("a=b; srv=1; c=d", Some("1"), Some("a=b; c=d")),
        ("a=b;srv=1", Some("1"), Some("a=b")),
        ("xsrv=1; a=srv=2", None, None),
        ("n=J\u{fc}rgen; srv=1", Some("1"), Some("n=J\u{fc}rgen")),
        ("", None, None),
    ] {
        assert_eq!(cookie_value(header.as_bytes(), "srv"), value, "{header}");
        assert_eq!(without_cookie(header.as_bytes(), "srv").as_deref(), rest.map(str::as_bytes), "{header}");
    }
}
