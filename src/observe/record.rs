//! One request as a line: the combined format, followed by what was decided, or JSON.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;

use crate::config::LogFormat;

/// What the access log tells about a request. Field names are those of the JSON form.
#[derive(Serialize)]
pub struct Record<'a> {
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    pub request_id: &'a str,
    pub client: IpAddr,
    pub method: &'a str,
    pub host: &'a str,
    pub target: &'a str,
    pub protocol: &'static str,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    #[serde(serialize_with = "millis")]
    pub duration_ms: Duration,
    pub site: Option<&'a str>,
    pub route: Option<&'a str>,
    pub user: Option<&'a str>,
    pub app: Option<&'a str>,
    pub group: Option<&'a str>,
    pub backend: Option<&'a str>,
    pub attempts: usize,
    #[serde(serialize_with = "some_millis")]
    pub connect_ms: Option<Duration>,
    #[serde(serialize_with = "some_millis")]
    pub first_byte_ms: Option<Duration>,
    pub tls: Option<&'static str>,
    pub sni: Option<&'a str>,
    /// Why no backend answered, or not as it should have.
    pub reason: Option<&'a str>,
    pub referer: Option<&'a str>,
    pub user_agent: Option<&'a str>,
}

impl<'a> Record<'a> {
    /// A record in which nothing is known but when it happened: of what could not be read as a request.
    pub fn empty(request_id: &'a str, time: SystemTime) -> Self {
        Record {
            time,
            request_id,
            client: IpAddr::from([0, 0, 0, 0]),
            method: "-",
            host: "-",
            target: "-",
            protocol: "-",
            status: 0,
            bytes_in: 0,
            bytes_out: 0,
            duration_ms: Duration::ZERO,
            site: None,
            route: None,
            user: None,
            app: None,
            group: None,
            backend: None,
            attempts: 0,
            connect_ms: None,
            first_byte_ms: None,
            tls: None,
            sni: None,
            reason: None,
            referer: None,
            user_agent: None,
        }
    }

    /// The record as one line, with its line feed.
    pub fn line(&self, format: LogFormat) -> Vec<u8> {
        let mut line = Vec::with_capacity(512);
        match format {
            LogFormat::Combined => self.combined(&mut line),
            // Writing to memory does not fail, and every field can be JSON.
            LogFormat::Json => drop(serde_json::to_writer(&mut line, self)),
        }
        line.push(b'\n');
        line
    }

    fn combined(&self, line: &mut Vec<u8>) {
        let t = OffsetDateTime::from(self.time);
        let month = &t.month().to_string()[..3];
        let _ = write!(
            line,
            "{} - - [{:02}/{month}/{}:{:02}:{:02}:{:02} +0000] \"",
            self.client,
            t.day(),
            t.year(),
            t.hour(),
            t.minute(),
            t.second()
        );
        escape(line, self.method);
        line.push(b' ');
        escape(line, self.target);
        let _ = write!(line, " {}\" {} {} \"", self.protocol, self.status, self.bytes_out);
        escape(line, self.referer.unwrap_or("-"));
        line.extend_from_slice(b"\" \"");
        escape(line, self.user_agent.unwrap_or("-"));
        line.push(b'"');
        for (key, value) in [
            ("host", Some(self.host)),
            ("site", self.site),
            ("route", self.route),
            ("user", self.user),
            ("app", self.app),
            ("group", self.group),
            ("backend", self.backend),
        ] {
            let _ = write!(line, " {key}=");
            escape_word(line, value.unwrap_or("-"));
        }
        let _ = write!(line, " attempts={} duration_ms={:.3}", self.attempts, ms(self.duration_ms));
        for (key, value) in [("connect_ms", self.connect_ms), ("first_byte_ms", self.first_byte_ms)] {
            let _ = match value {
                Some(time) => write!(line, " {key}={:.3}", ms(time)),
                None => write!(line, " {key}=-"),
            };
        }
        let _ = write!(line, " tls={} reason={} request_id=", self.tls.unwrap_or("-"), self.reason.unwrap_or("-"));
        escape_word(line, self.request_id);
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Bytes that could end the field or the line, or play with a terminal, become `\xHH` as in nginx.
fn escape(line: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | 0..b' ' | 127.. => drop(write!(line, "\\x{byte:02X}")),
            _ => line.push(byte),
        }
    }
}

/// As `escape`, for a value that ends at a space.
fn escape_word(line: &mut Vec<u8>, text: &str) {
    for part in text.split_inclusive(' ') {
        match part.strip_suffix(' ') {
            Some(word) => {
                escape(line, word);
                line.extend_from_slice(b"\\x20");
            }
            None => escape(line, part),
        }
    }
}

fn rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let t = OffsetDateTime::from(*time);
    serializer.collect_str(&format_args!(
        "{}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.millisecond()
    ))
}

fn millis<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((ms(*time) * 1000.0).round() / 1000.0)
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference")]
fn some_millis<S: serde::Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => millis(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<'a>() -> Record<'a> {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_176_221_007),
            request_id: "r1",
            client: "192.0.2.1".parse().unwrap(),
            method: "GET",
            host: "panel.example.com",
            target: "/user1/phpmyadmin/?a=\"b\"",
            protocol: "HTTP/1.1",
            status: 200,
            bytes_in: 0,
            bytes_out: 1234,
            duration_ms: Duration::from_micros(12_345),
            site: Some("panel"),
            route: Some("/{user}/{app}/"),
            user: Some("user1"),
            app: Some("phpmyadmin"),
            group: Some("node1"),
            backend: Some("10.0.0.21:80"),
            attempts: 1,
            connect_ms: Some(Duration::from_micros(250)),
            first_byte_ms: None,
            tls: Some("TLSv1.3"),
            sni: Some("panel.example.com"),
            reason: None,
            referer: None,
            user_agent: Some("x\r\n\u{1b}[2J\u{e9}"),
        }
    }

    #[test]
    fn the_combined_line_cannot_be_forged() {
        let line = String::from_utf8(record().line(LogFormat::Combined)).unwrap();
        assert_eq!(
            line,
            "192.0.2.1 - - [20/Nov/2026:12:03:41 +0000] \"GET /user1/phpmyadmin/?a=\\x22b\\x22 HTTP/1.1\" 200 1234 \"-\" \
             \"x\\x0D\\x0A\\x1B[2J\\xC3\\xA9\" host=panel.example.com site=panel route=/{user}/{app}/ user=user1 app=phpmyadmin \
             group=node1 backend=10.0.0.21:80 attempts=1 duration_ms=12.345 connect_ms=0.250 first_byte_ms=- tls=TLSv1.3 \
             reason=- request_id=r1\n"
        );
    }

    #[test]
    fn json_has_every_field() {
        let line = record().line(LogFormat::Json);
        let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(json["time"], "2026-11-20T12:03:41.007Z");
        assert_eq!(json["user_agent"], "x\r\n\u{1b}[2J\u{e9}");
        assert_eq!(json["duration_ms"], 12.345);
        assert_eq!(json["first_byte_ms"], serde_json::Value::Null);
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
    }
}
