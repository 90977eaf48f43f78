//! The answers to what went wrong: a page for people, a problem document for programs. Neither tells of the inside.

use http::StatusCode;

/// What a page says.
pub(super) struct Facts<'a> {
    pub(super) status: u16,
    /// Finds the request in the log.
    pub(super) request_id: &'a str,
    /// The word in the log, where the configuration shows it.
    pub(super) reason: Option<&'a str>,
}

pub(super) struct Page {
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

/// The answer in the form that the client asks for. `own` is the page of the configuration.
pub(super) fn page(facts: &Facts<'_>, own: Option<&str>, accept: Option<&str>) -> Page {
    if accept.is_some_and(prefers_json) {
        return Page { content_type: "application/problem+json", body: problem(facts) };
    }
    let body = own.map_or_else(|| html(facts), |own| filled(own, facts));
    Page { content_type: "text/html; charset=utf-8", body }
}

fn title(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error")
}

fn html(facts: &Facts<'_>) -> String {
    let (status, title, advice) = (facts.status, title(facts.status), advice(facts.status));
    let id = escape(facts.request_id);
    let id = if id.is_empty() { String::new() } else { format!("<p><small>Request {id}</small></p>\n") };
    let reason = facts.reason.map(|reason| format!("<p><small>Reason {}</small></p>\n", escape(reason))).unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{status} {title}</title></head>\n<body>\n<h1>{status} {title}</h1>\n<p>{advice}</p>\n{id}{reason}</body></html>\n"
    )
}

fn filled(own: &str, facts: &Facts<'_>) -> String {
    own.replace("{status}", &facts.status.to_string())
        .replace("{title}", title(facts.status))
        .replace("{request_id}", &escape(facts.request_id))
        .replace("{reason}", &escape(facts.reason.unwrap_or_default()))
}

/// A problem document (RFC 9457 section 3.1).
fn problem(facts: &Facts<'_>) -> String {
    let mut problem = serde_json::json!({
        "type": "about:blank",
        "title": title(facts.status),
        "status": facts.status,
        "detail": advice(facts.status),
        "request_id": facts.request_id,
    });
    if let (Some(reason), Some(fields)) = (facts.reason, problem.as_object_mut()) {
        fields.insert("reason".to_owned(), reason.into());
    }
    format!("{problem}\n")
}

fn advice(status: u16) -> &'static str {
    match status {
        404 => "There is nothing at this address.",
        405 => "This address does not take requests of this kind.",
        408 => "The request took too long to arrive.",
        421 => "This connection was made for another address. Please try again.",
        413 => "The request is larger than this address takes.",
        502 => "The server behind this address did not answer as it should. Please try again.",
        503 => "No server is available for this address at the moment. Please try again soon.",
        504 => "The server behind this address did not answer in time. Please try again.",
        400..=499 => "The request could not be understood.",
        _ => "The request could not be served.",
    }
}

/// Whether a client would rather have JSON than HTML (RFC 9110 section 12.5.1).
fn prefers_json(accept: &str) -> bool {
    let (mut json, mut html): (Option<f32>, Option<f32>) = (None, None);
    let mut anything: Option<f32> = None;
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality =
            parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q="))).and_then(|q| q.parse().ok()).unwrap_or(1.0);
        let slot = match name.as_str() {
            "application/problem+json" | "application/json" | "application/*" => &mut json,
            "text/html" | "text/*" | "application/xhtml+xml" => &mut html,
            "*/*" => &mut anything,
            _ => continue,
        };
        *slot = Some(slot.map_or(quality, |known| known.max(quality)));
    }
    // Who takes anything gets what people can read.
    let html = html.or(anything).unwrap_or(0.0);
    json.is_some_and(|json| json > 0.0 && (json > html || (json >= html && !accept.contains("html"))))
}

/// An id from a trusted proxy may hold anything that is printable.
fn escape(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_json_and_people_get_html() {
        for (accept, json) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
            ("*/*", false),
            ("", false),
            ("application/json", true),
            ("application/json, */*", true),
            ("application/problem+json;q=0.9, text/html;q=0.5", true),
            ("text/html;q=0.9, application/json;q=0.5", false),
            ("text/html, application/json", false),
            ("application/json;q=0", false),
            ("image/png", false),
        ] {
            assert_eq!(prefers_json(accept), json, "{accept}");
        }
    }

    #[test]
    fn what_others_wrote_is_no_markup() {
        let facts = Facts { status: 404, request_id: "<script>a", reason: None };
        let own = Some("<h1>{status} {title}</h1> {request_id} { color: red }");
        assert_eq!(page(&facts, own, None).body, "<h1>404 Not Found</h1> scripta { color: red }");
        assert!(!page(&facts, None, None).body.contains("<script"));
        let problem = page(&facts, own, Some("application/json")).body;
        let problem: serde_json::Value = serde_json::from_str(&problem).unwrap();
        assert_eq!((problem["status"].as_u64(), problem["request_id"].as_str()), (Some(404), Some("<script>a")));
    }
}
