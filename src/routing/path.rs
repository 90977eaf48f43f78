//! The normal form of a request path: one spelling for one meaning, or a refusal.
//!
//! Matching and forwarding use the same normal form, so that the backend never sees another path than the one that was
//! decided on. RFC 3986 section 6.2.2: escapes of unreserved characters are decoded, other escapes get upper-case
//! digits, dot segments are resolved; `//` is merged. `%2F` stays escaped and never splits a segment.

use std::borrow::Cow;

/// Why a path is refused with 400 (Bad Request).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    #[error("path does not start with a slash")]
    NotAbsolute,
    #[error("path leads above the root")]
    AboveRoot,
    #[error("path has an invalid percent escape")]
    Escape,
    #[error("path has a NUL byte")]
    Nul,
    #[error("path has a backslash")]
    Backslash,
    #[error("path hides a dot segment")]
    HiddenDots,
    #[error("target has a fragment")]
    Fragment,
}

/// What a byte of a path is to the scanner.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    /// May stand as it is (RFC 3986 `pchar`).
    Plain,
    /// Starts something that must be looked at: `/`, `.`, `%`, `;`, `\`, `#`.
    Special,
    /// Must be escaped.
    Escape,
}

const fn class(byte: u8) -> Class {
    match byte {
        b'/' | b'.' | b'%' | b';' | b'\\' | b'#' => Class::Special,
        b'-' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => Class::Plain,
        _ if byte.is_ascii_alphanumeric() => Class::Plain,
        _ => Class::Escape,
    }
}

/// Brings a path (without its query) into its normal form; borrows when it has it already.
pub fn normalize(path: &[u8]) -> Result<Cow<'_, str>, BadPath> {
    if path.first() != Some(&b'/') {
        return Err(BadPath::NotAbsolute);
    }
    if is_normal(path)
        && let Ok(text) = std::str::from_utf8(path)
    {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(path.len() + 8);
    let trailing = path.split(|b| *b == b'/').next_back();
    for segment in path.split(|b| *b == b'/').skip(1) {
        let segment = normal_segment(segment)?;
        match segment.as_str() {
            "" | "." => {}
            ".." => {
                let parent = out.rfind('/').ok_or(BadPath::AboveRoot)?;
                out.truncate(parent);
            }
            text => {
                out.push('/');
                out.push_str(text);
            }
        }
    }
    // "/a/", "/a/." and "/a/b/.." name a directory: the slash at the end stays.
    let directory = trailing.map(normal_segment).transpose()?.is_none_or(|last| matches!(last.as_str(), "" | "." | ".."));
    if directory || out.is_empty() {
        out.push('/');
    }
    Ok(Cow::Owned(out))
}

/// Whether nothing in the path needs a second look: the usual case, one pass without a copy.
fn is_normal(path: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in path {
        match class(byte) {
            Class::Plain => {}
            Class::Special => match byte {
                b'/' if previous == b'/' => return false,
                // a dot is harmless unless it starts a segment
                b'.' if previous == b'/' => return false,
                b'/' | b'.' => {}
                _ => return false,
            },
            Class::Escape => return false,
        }
        previous = byte;
    }
    true
}

/// One segment in its normal form.
fn normal_segment(segment: &[u8]) -> Result<String, BadPath> {
    let mut out = String::with_capacity(segment.len());
    let mut rest = segment.iter().copied();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = rest.next().and_then(hex).ok_or(BadPath::Escape)?;
            let low = rest.next().and_then(hex).ok_or(BadPath::Escape)?;
            let decoded = high << 4 | low;
            match decoded {
                0 => return Err(BadPath::Nul),
                b'\\' => return Err(BadPath::Backslash),
                _ if decoded.is_ascii_alphanumeric() || matches!(decoded, b'-' | b'.' | b'_' | b'~') => out.push(char::from(decoded)),
                _ => escape(&mut out, decoded),
            }
            continue;
        }
        match byte {
            b'\\' => return Err(BadPath::Backslash),
            b'#' => return Err(BadPath::Fragment),
            0 => return Err(BadPath::Nul),
            _ if class(byte) == Class::Escape => escape(&mut out, byte),
            _ => out.push(char::from(byte)),
        }
    }
    if hides_dots(&out) { Err(BadPath::HiddenDots) } else { Ok(out) }
}

/// Whether a backend that decodes `%2F`, or cuts off `;parameters`, would see a dot segment where we see none.
fn hides_dots(segment: &str) -> bool {
    if !segment.starts_with('.') && !segment.contains("%2F") {
        return false;
    }
    let cuts = segment.contains(';') || segment.contains("%3B") || segment.contains("%2F");
    cuts && segment.split("%2F").any(|part| {
        let name = part.split(';').next().unwrap_or_default().split("%3B").next().unwrap_or_default();
        matches!(name, "." | "..")
    })
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// A segment or label with its escapes decoded: how names of users and apps are looked up.
pub fn decode(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            // A normal path has only whole escapes.
            b'%' => bytes.extend(rest.next().and_then(hex).zip(rest.next().and_then(hex)).map(|(high, low)| high << 4 | low)),
            _ => bytes.push(byte),
        }
    }
    // What is no text is no name either.
    String::from_utf8(bytes).map_or(Cow::Borrowed(segment), Cow::Owned)
}

/// A key or value of a query with `+` and its escapes decoded; what is no whole escape stands for itself.
pub fn decode_query(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let escaped = match (byte, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match (byte, escaped) {
            (_, Some((high, low))) => {
                bytes.push(high << 4 | low);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', None) => bytes.push(b' '),
            (_, None) => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(text), Cow::Owned)
}

/// Appends a byte as `%XX`.
pub fn escape(out: &mut String, byte: u8) {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    out.push('%');
    out.extend(DIGITS.get(usize::from(byte >> 4)));
    out.extend(DIGITS.get(usize::from(byte & 15)));
}

/// The query as it is sent: raw bytes outside printable ASCII are escaped, everything else is the client's.
pub fn normalize_query(query: &[u8]) -> Result<Cow<'_, str>, BadPath> {
    if query.contains(&b'#') {
        return Err(BadPath::Fragment);
    }
    match std::str::from_utf8(query) {
        Ok(text) if query.iter().all(u8::is_ascii_graphic) => Ok(Cow::Borrowed(text)),
        _ => {
            let mut out = String::with_capacity(query.len() + 8);
            for &byte in query {
                if byte.is_ascii_graphic() { out.push(char::from(byte)) } else { escape(&mut out, byte) }
            }
            Ok(Cow::Owned(out))
        }
    }
}

/// The segments of a normal path: `/a/b/` and `/a/b` both have `a` and `b`.
pub fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// The length of the leading `count` segments of a normal path: 6 for `/user1/x` and 1 is the `/user1`.
pub fn leading(path: &str, count: usize) -> &str {
    let mut ends = path.match_indices('/').map(|(at, _)| at).skip(1);
    match count.checked_sub(1) {
        None => "",
        Some(skip) => ends.nth(skip).and_then(|end| path.get(..end)).unwrap_or_else(|| path.strip_suffix('/').unwrap_or(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_spelling_for_one_meaning() {
        for (raw, normal) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//a///b//", "/a/b/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/a/..", "/"),
            ("/%61%2e%2E/x", "/a../x"),
            ("/a/%2e%2e/b", "/b"),
            ("/us%65r1/", "/user1/"),
            ("/%c3%a9", "/%C3%A9"),
            ("/\u{e9}", "/%C3%A9"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%252e", "/a%252e"),
            ("/a b", "/a%20b"),
            ("/<x>", "/%3Cx%3E"),
            ("/.hidden", "/.hidden"),
            ("/...", "/..."),
            ("/a;v=1/b", "/a;v=1/b"),
            ("/a..b/c..", "/a..b/c.."),
        ] {
            assert_eq!(normalize(raw.as_bytes()).as_deref(), Ok(normal), "{raw}");
        }
    }

    #[test]
    fn what_two_readers_would_read_differently_is_refused() {
        for (raw, why) in [
            ("a", BadPath::NotAbsolute),
            ("", BadPath::NotAbsolute),
            ("/..", BadPath::AboveRoot),
            ("/a/../../b", BadPath::AboveRoot),
            ("/%2e%2e/b", BadPath::AboveRoot),
            ("/%", BadPath::Escape),
            ("/%4", BadPath::Escape),
            ("/%zz", BadPath::Escape),
            ("/a%00", BadPath::Nul),
            ("/a\\b", BadPath::Backslash),
            ("/a%5cb", BadPath::Backslash),
            ("/a%2f..%2fb", BadPath::HiddenDots),
            ("/..%2fb", BadPath::HiddenDots),
            ("/a%2F%2e%2e", BadPath::HiddenDots),
            ("/..;/b", BadPath::HiddenDots),
            ("/a/..;x=1/b", BadPath::HiddenDots),
            ("/.;/b", BadPath::HiddenDots),
            ("/..%3b/b", BadPath::HiddenDots),
            ("/a%2f.%2fb", BadPath::HiddenDots),
            ("/a#b", BadPath::Fragment),
        ] {
            assert_eq!(normalize(raw.as_bytes()), Err(why), "{raw}");
        }
    }

    #[test]
    fn leading_segments() {
        for (path, count, expected) in
            [("/user1/x", 1, "/user1"), ("/user1", 1, "/user1"), ("/a/b/c", 2, "/a/b"), ("/a/b/", 2, "/a/b"), ("/a", 0, "")]
        {
            assert_eq!(leading(path, count), expected);
        }
    }

    proptest! {
        #[test]
        fn normal_paths_stay_as_they_are(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut path = vec![b'/'];
            path.extend(raw);
            if let Ok(once) = normalize(&path) {
                let twice = normalize(once.as_bytes()).map(Cow::into_owned);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
                prop_assert!(!segments(&once).any(|s| s == "." || s == ".."));
                prop_assert!(!once.contains("//"));
            }
        }
    }
}
