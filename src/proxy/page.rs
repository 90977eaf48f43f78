//! The small pages for answers that are our own: status, what to do, and the id that finds the request in the log.

use http::StatusCode;

/// An HTML page for a status. It tells nothing about the inside.
pub(super) fn page(status: u16, request_id: &str) -> String {
    let title = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error");
    let advice = advice(status);
    let id = escape(request_id);
    let id = if id.is_empty() { String::new() } else { format!("<p><small>Request {id}</small></p>\n") };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{status} {title}</title></head>\n<body>\n<h1>{status} {title}</h1>\n<p>{advice}</p>\n{id}</body></html>\n"
    )
}

fn advice(status: u16) -> &'static str {
    match status {
        404 => "There is nothing at this address.",
        408 => "The request took too long to arrive.",
        502 => "The server behind this address did not answer as it should. Please try again.",
        503 => "No server is available for this address at the moment. Please try again soon.",
        504 => "The server behind this address did not answer in time. Please try again.",
        400..=499 => "The request could not be understood.",
        _ => "The request could not be served.",
    }
}

/// An id from a trusted proxy may hold anything that is printable.
fn escape(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':')).collect()
}
