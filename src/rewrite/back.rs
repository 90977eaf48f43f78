//! What a backend says about itself, in the client's terms: `Location`, `Refresh` and `Set-Cookie`.
//!
//! A backend behind a stripped prefix does not know where the client sees it. Its paths get the prefix back, its own
//! address becomes the public one. `Set-Cookie` is edited in place: no attribute is lost, also none that is unknown.

/// How the client sees what the backend calls by its own names.
#[derive(Clone, Copy, Debug)]
pub struct Public<'a> {
    /// `https` or `http`.
    pub scheme: &'a str,
    /// The host as the client wrote it, with its port.
    pub host: &'a str,
    /// What was stripped: `/user1`, or nothing.
    pub prefix: &'a str,
    /// The app's own part of the public paths: `/user1/phpmyadmin`, or nothing.
    pub app: &'a str,
    /// What the backend may call itself: its name in the configuration, its address, and the `Host` that it is sent.
    pub backend: [&'a str; 3],
}

impl Public<'_> {
    /// A path of the backend as the client must ask for it.
    fn path(&self, path: &str) -> String {
        if self.prefix.is_empty() || is_below(path, self.app) {
            // The app knows its prefix (from `X-Forwarded-Prefix`) and has put it there already.
            return path.to_owned();
        }
        format!("{}{path}", self.prefix)
    }

    fn is_backend(&self, authority: &str) -> bool {
        self.backend.iter().any(|own| {
            own.eq_ignore_ascii_case(authority)
                || [":80", ":443"].iter().any(|port| own.strip_suffix(port).is_some_and(|own| own.eq_ignore_ascii_case(authority)))
        })
    }

    fn is_public(&self, authority: &str) -> bool {
        fn name(authority: &str) -> &str {
            let end =
                authority.rfind(':').filter(|at| authority.get(at + 1..).is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit())));
            end.and_then(|end| authority.get(..end)).unwrap_or(authority)
        }
        name(authority).eq_ignore_ascii_case(name(self.host))
    }
}

/// Whether a path is `prefix` or something below it.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| !prefix.is_empty() && (rest.is_empty() || rest.starts_with(['/', '?', '#'])))
}

/// Rewrites the value of `Location` or `Content-Location`; `None`: it stays as it is.
pub fn location(value: &str, public: &Public<'_>) -> Option<String> {
    let (authority, path) = split_url(value)?;
    let rewritten = match authority {
        None => public.path(path),
        Some(authority) if public.is_backend(authority) => format!("{}://{}{}", public.scheme, public.host, public.path(path)),
        // Without a prefix the backend speaks of the public host as it is: that is its own business.
        Some(authority) if !public.prefix.is_empty() && public.is_public(authority) => {
            format!("{}://{}{}", public.scheme, public.host, public.path(path))
        }
        Some(_) => return None,
    };
    (rewritten != value).then_some(rewritten)
}

/// Splits `http://host/path` and `//host/path` into authority and path, `/path` into no authority and path. `None`:
/// anything else (a relative path, another scheme) means the same to the client.
fn split_url(value: &str) -> Option<(Option<&str>, &str)> {
    let rest = ["http://", "https://", "//"].iter().find_map(|start| {
        let head = value.get(..start.len())?;
        head.eq_ignore_ascii_case(start).then(|| value.get(start.len()..)).flatten()
    });
    match rest {
        Some(rest) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            Some((Some(authority), if path.is_empty() { "/" } else { path }))
        }
        None => value.starts_with('/').then_some((None, value)),
    }
}

/// Rewrites the URL in `Refresh: 5; url=/path`; `None`: it stays as it is.
pub fn refresh(value: &str, public: &Public<'_>) -> Option<String> {
    let at =
        value.char_indices().map(|(at, _)| at).find(|at| value.get(*at..at + 3).is_some_and(|word| word.eq_ignore_ascii_case("url")))?;
    let (head, tail) = value.split_at(at + 3);
    let equals = tail.find('=')?;
    if !tail.get(..equals)?.trim().is_empty() {
        return None;
    }
    let (sign, url) = tail.split_at(equals + 1);
    let trimmed = url.trim_start();
    let space = url.get(..url.len() - trimmed.len())?;
    let quote = trimmed.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let bare = match quote {
        Some(quote) => trimmed.get(1..)?.split(quote).next()?,
        None => trimmed.trim_end(),
    };
    let rewritten = location(bare, public)?;
    let quote = quote.map(String::from).unwrap_or_default();
    Some(format!("{head}{sign}{space}{quote}{rewritten}{quote}"))
}

/// What became of a `Set-Cookie`.
#[derive(Debug, PartialEq, Eq)]
pub enum CookieEdit {
    Unchanged,
    Rewritten(String),
    /// A `__Host-` cookie must have the path `/`, so it cannot be confined (RFC 6265bis section 4.1.3.2).
    HostPrefixed,
}

/// Rewrites `Path` and `Domain` of a `Set-Cookie` in place. A cookie for `/` is confined to the app; a domain that is not
/// the public host's is dropped, since the browser would refuse the cookie.
pub fn set_cookie(value: &str, public: &Public<'_>) -> CookieEdit {
    let is_host_prefixed = value.trim_start().get(..7).is_some_and(|start| start.eq_ignore_ascii_case("__Host-"));
    if is_host_prefixed {
        return if public.app.is_empty() { CookieEdit::Unchanged } else { CookieEdit::HostPrefixed };
    }
    let mut out = String::with_capacity(value.len() + public.app.len());
    let mut changed = false;
    for (index, attribute) in value.split(';').enumerate() {
        let edit = if index == 0 { Edit::Keep } else { edit_attribute(attribute, public) };
        match edit {
            Edit::Keep => {
                if index > 0 {
                    out.push(';');
                }
                out.push_str(attribute);
            }
            Edit::Replace(new) => {
                out.push(';');
                out.push_str(&new);
                changed = true;
            }
            Edit::Remove => changed = true,
        }
    }
    if changed { CookieEdit::Rewritten(out) } else { CookieEdit::Unchanged }
}

enum Edit {
    Keep,
    Replace(String),
    Remove,
}

fn edit_attribute(attribute: &str, public: &Public<'_>) -> Edit {
    let Some((name, value)) = attribute.split_once('=') else { return Edit::Keep };
    let value = value.trim();
    if name.trim().eq_ignore_ascii_case("path") && value.starts_with('/') {
        let path = if value == "/" && !public.app.is_empty() { format!("{}/", public.app) } else { public.path(value) };
        return if path == value { Edit::Keep } else { Edit::Replace(format!("{name}={path}")) };
    }
    if name.trim().eq_ignore_ascii_case("domain") {
        let domain = value.trim_start_matches('.');
        let host = crate::routing::host::normalize_host(public.host).unwrap_or_default();
        let covers = host.len() >= domain.len()
            && host.get(host.len() - domain.len()..).is_some_and(|tail| tail.eq_ignore_ascii_case(domain))
            && (host.len() == domain.len() || host.get(..host.len() - domain.len()).is_some_and(|front| front.ends_with('.')));
        return if covers && !domain.is_empty() { Edit::Keep } else { Edit::Remove };
    }
    Edit::Keep
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: Public<'_> = Public {
        scheme: "https",
        host: "panel.example.com",
        prefix: "/user1",
        app: "/user1/phpmyadmin",
        backend: ["node1.internal:80", "10.0.0.21:80", "app.internal"],
    };
    const PLAIN: Public<'_> = Public { prefix: "", app: "", ..APP };

    #[test]
    fn locations_lead_where_the_client_can_go() {
        for (value, rewritten) in [
            ("/phpmyadmin/index.php", Some("/user1/phpmyadmin/index.php")),
            ("/", Some("/user1/")),
            ("/other/x?y=/z", Some("/user1/other/x?y=/z")),
            ("/user1/phpmyadmin/x", None),
            ("/user1/phpmyadmin", None),
            ("/user1/phpmyadmin2", Some("/user1/user1/phpmyadmin2")),
            ("index.php?a=b", None),
            ("?a=b", None),
            ("http://10.0.0.21/phpmyadmin/", Some("https://panel.example.com/user1/phpmyadmin/")),
            ("http://10.0.0.21:80/phpmyadmin/", Some("https://panel.example.com/user1/phpmyadmin/")),
            ("http://app.internal/login", Some("https://panel.example.com/user1/login")),
            ("http://node1.internal/phpmyadmin/", Some("https://panel.example.com/user1/phpmyadmin/")),
            ("//panel.example.com/x", Some("https://panel.example.com/user1/x")),
            ("http://panel.example.com:80/phpmyadmin/", Some("https://panel.example.com/user1/phpmyadmin/")),
            ("https://panel.example.com", Some("https://panel.example.com/user1/")),
            ("HTTPS://PANEL.example.com/a", Some("https://panel.example.com/user1/a")),
            ("https://elsewhere.org/phpmyadmin/", None),
            ("mailto:a@b", None),
            ("", None),
        ] {
            assert_eq!(location(value, &APP).as_deref(), rewritten, "{value}");
        }
    }

    #[test]
    fn without_a_prefix_only_the_backends_own_name_is_hidden() {
        for (value, rewritten) in [
            ("/a", None),
            ("http://panel.example.com/a", None),
            ("http://10.0.0.21/a", Some("https://panel.example.com/a")),
            ("http://10.0.0.22/a", None),
        ] {
            assert_eq!(location(value, &PLAIN).as_deref(), rewritten, "{value}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics_and_no_cookie_loses_its_name(text in "\\PC{0,60}", path in "[/a-z;= ]{0,30}") {
            let cookie = format!("a=b{text}; Path={path}");
            let _ = (location(&text, &APP), refresh(&text, &APP), refresh(&format!("1;url={text}"), &APP));
            if let CookieEdit::Rewritten(new) = set_cookie(&cookie, &APP) {
                proptest::prop_assert!(new.starts_with("a=b"), "{new}");
            }
        }
    }

    #[test]
    fn refresh_keeps_its_time_and_quotes() {
        for (value, rewritten) in [
            ("5; url=/phpmyadmin/", Some("5; url=/user1/phpmyadmin/")),
            ("0;URL='/a'", Some("0;URL='/user1/a'")),
            ("0; url = \"/a\"", Some("0; url = \"/user1/a\"")),
            ("5", None),
            ("5; url=index.php", None),
            ("5; curl", None),
            ("\u{fc}; url=/a", Some("\u{fc}; url=/user1/a")),
        ] {
            assert_eq!(refresh(value, &APP).as_deref(), rewritten, "{value}");
        }
    }

    #[test]
    fn cookies_are_confined_and_lose_nothing() {
        let rewritten = |text: &str| CookieEdit::Rewritten(text.to_owned());
        for (value, edit) in [
            ("a=b; Path=/phpmyadmin/; HttpOnly", rewritten("a=b; Path=/user1/phpmyadmin/; HttpOnly")),
            ("a=b; path=/", rewritten("a=b; path=/user1/phpmyadmin/")),
            (
                "a=b; Path=/; Priority=High; SameSite=Weird; Expires=Thu, 01 Jan 2099 00:00:00 GMT; X",
                rewritten("a=b; Path=/user1/phpmyadmin/; Priority=High; SameSite=Weird; Expires=Thu, 01 Jan 2099 00:00:00 GMT; X"),
            ),
            ("a=b", CookieEdit::Unchanged),
            ("a=b; Path=relative", CookieEdit::Unchanged),
            ("a=b; Path=/user1/phpmyadmin/", CookieEdit::Unchanged),
            ("Path=/x; HttpOnly", CookieEdit::Unchanged),
            ("a=b; Domain=node1.internal; Secure", rewritten("a=b; Secure")),
            ("a=b; Domain=.example.com", CookieEdit::Unchanged),
            ("a=b; Domain=panel.example.com", CookieEdit::Unchanged),
            ("a=b; Domain=l.example.com", rewritten("a=b")),
            ("__Host-a=b; Path=/; Secure", CookieEdit::HostPrefixed),
        ] {
            assert_eq!(set_cookie(value, &APP), edit, "{value}");
        }
        // An app that sees its whole path is confined as well.
        let own = Public { prefix: "", ..APP };
        assert_eq!(set_cookie("a=b; Path=/", &own), rewritten("a=b; Path=/user1/phpmyadmin/"));
        assert_eq!(set_cookie("a=b; Path=/x", &own), CookieEdit::Unchanged);
        assert_eq!(set_cookie("a=b; Path=/", &PLAIN), CookieEdit::Unchanged);
        assert_eq!(set_cookie("__Host-a=b; Path=/", &PLAIN), CookieEdit::Unchanged);
        assert_eq!(set_cookie("a=b; Domain=node1.internal", &PLAIN), rewritten("a=b"));
    }
}
