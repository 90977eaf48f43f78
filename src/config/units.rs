//! Durations and sizes as they are written in the configuration: a number always has its unit.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A duration such as `5s`, `500ms` or `1h30m`. A year is 365 days, as HSTS preload lists count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

/// A number of bytes such as `64KiB` or `10m`; `k`, `m` and `g` are binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const TIME_UNITS: [(&str, u64); 8] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
    ("w", 604_800_000),
    ("y", 31_536_000_000),
    ("min", 60_000),
];

const SIZE_UNITS: [(&str, u64); 10] = [
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("kb", 0),
    ("mb", 0),
    ("gb", 0),
];

/// Splits `1h30m` into its (number, unit) pairs.
fn pairs(text: &str) -> Result<Vec<(u64, &str)>, String> {
    let mut rest = text;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        if digits == 0 {
            return Err(format!("`{text}` does not start with a number"));
        }
        if letters == 0 && tail.starts_with(' ') {
            return Err(format!("`{text}` has a space in it"));
        }
        if letters == 0 {
            return Err(format!("`{text}` has no unit"));
        }
        let number = number.parse().map_err(|_| format!("`{number}` is too large"))?;
        found.push((number, unit));
        rest = tail;
    }
    Ok(found)
}

impl Time {
    /// Reads `5s`, `1h30m`; the error says what is wrong, not where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hint = "write for example `500ms`, `5s`, `1m`, `1h` or `1d`";
        let pairs = pairs(text).map_err(|why| format!("{why}: {hint}"))?;
        if pairs.is_empty() {
            return Err(format!("a duration is missing: {hint}"));
        }
        let mut total: u64 = 0;
        for (number, unit) in pairs {
            let Some((_, factor)) = TIME_UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(format!("`{unit}` is no unit of time: {hint}"));
            };
            total =
                number.checked_mul(*factor).and_then(|millis| total.checked_add(millis)).ok_or_else(|| format!("`{text}` is too long"))?;
        }
        // A hundred years: longer values overflow the arithmetic of timers and mean nothing.
        if total > 100 * 31_536_000_000 {
            return Err(format!("`{text}` is too long"));
        }
        Ok(Time(Duration::from_millis(total)))
    }
}

impl Size {
    /// Reads `64KiB`, `10m`; the error says what is wrong, not where.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hint = "write for example `512B`, `64KiB`, `10MiB` or `1GiB`";
        let pairs = pairs(text).map_err(|why| format!("{why}: {hint}"))?;
        let [(number, unit)] = pairs[..] else {
            return Err(format!("`{text}` is no size: {hint}"));
        };
        let lower = unit.to_ascii_lowercase();
        match SIZE_UNITS.iter().find(|(name, _)| *name == lower) {
            Some((_, 0)) => Err(format!(
                "`{unit}` is read as 1000 by some and 1024 by others: write `{}iB`",
                unit.get(..1).unwrap_or_default().to_ascii_uppercase()
            )),
            Some((_, factor)) => number.checked_mul(*factor).map(Size).ok_or_else(|| format!("`{text}` is too large")),
            None => Err(format!("`{unit}` is no unit of size: {hint}")),
        }
    }
}

// === Writing: the largest unit that leaves no rest ===

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let units = [("y", 31_536_000_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
        let fits = units.iter().find(|(_, factor)| millis >= *factor && millis.is_multiple_of(*factor));
        let (unit, factor) = fits.unwrap_or(&("s", 1_000));
        write!(f, "{}{unit}", millis / factor)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
            .into_iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        let (unit, factor) = fits.unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === Reading ===

struct TextOf<T> {
    parse: fn(&str) -> Result<T, String>,
    what: &'static str,
}

impl<T> Visitor<'_> for TextOf<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.parse)(&number.to_string()).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOf { parse: Time::parse, what: "a duration such as `5s`" })
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOf { parse: Size::parse, what: "a size such as `64KiB`" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["5s", "500ms", "90m", "1h", "1y", "7B", "3KiB", "10MiB", "1GiB"] {
            let time = Time::parse(text).map(|time| time.to_string());
            let size = Size::parse(text).map(|size| size.to_string());
            assert_eq!(time.or(size), Ok(text.to_owned()));
        }
        assert_eq!(Time(Duration::ZERO).to_string(), "0s");
    }

    #[test]
    fn durations_need_a_known_unit() {
        for (text, millis) in [("5s", 5_000), ("500ms", 500), ("1h30m", 5_400_000), ("1y", 31_536_000_000)] {
            assert_eq!(Time::parse(text), Ok(Time(Duration::from_millis(millis))), "{text}");
        }
        for (text, why) in [
            ("5", "has no unit"),
            ("s", "does not start with a number"),
            ("", "missing"),
            ("5 s", "has a space"),
            ("5x", "no unit of time"),
            ("99999999999999999999s", "too large"),
            ("101y", "too long"),
        ] {
            let error = Time::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_binary_and_never_ambiguous() {
        for (text, bytes) in [("1k", 1024), ("64KiB", 65536), ("10m", 10 << 20), ("1GiB", 1 << 30), ("7B", 7)] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        for (text, why) in [("1MB", "write `MiB`"), ("1", "has no unit"), ("1k2m", "is no size"), ("1x", "no unit of size")] {
            let error = Size::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
