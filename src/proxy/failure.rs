//! From an error of Pingora to what the client and the log are told: the one place where errors become statuses.

use pingora::{Error, ErrorSource, ErrorType};

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `None`: the client is gone, there is nobody to answer.
    pub status: Option<u16>,
    /// The word in the log.
    pub reason: &'static str,
}

/// What the log says of a request whose client left before its answer (nginx's status).
pub(super) const CLIENT_GONE: u16 = 499;

pub(super) fn classify(error: &Error) -> Failure {
    use ErrorType as E;
    let answer = |status, reason| Failure { status: Some(status), reason };
    match (error.etype(), error.esource()) {
        (E::HTTPStatus(status), _) => answer(*status, "refused"),
        (E::ConnectRefused, _) => answer(502, "connect_refused"),
        (E::ConnectTimedout | E::TLSHandshakeTimedout, _) => answer(504, "connect_timeout"),
        (E::ConnectNoRoute | E::ConnectError | E::BindError | E::SocketError | E::ConnectProxyFailure, _) => answer(502, "connect_error"),
        (E::TLSHandshakeFailure | E::InvalidCert | E::HandshakeError, _) => answer(502, "backend_tls"),
        (E::ReadTimedout, ErrorSource::Upstream) => answer(504, "read_timeout"),
        (E::WriteTimedout, ErrorSource::Upstream) => answer(504, "send_timeout"),
        (E::ReadTimedout, ErrorSource::Downstream) => answer(408, "client_timeout"),
        (E::ConnectionClosed | E::ReadError | E::WriteError, ErrorSource::Upstream) => answer(502, "backend_closed"),
        (E::ReadError | E::WriteError | E::WriteTimedout | E::ConnectionClosed | E::H1Error | E::H2Error, ErrorSource::Downstream) => {
            Failure { status: None, reason: "client_gone" }
        }
        (_, ErrorSource::Downstream) => answer(400, "bad_request"),
        (_, ErrorSource::Upstream) => answer(502, "bad_response"),
        (_, ErrorSource::Internal | ErrorSource::Unset) => answer(500, "internal"),
    }
}

/// Whether an HTTP/2 backend has said that it did nothing with the request (RFC 9113 section 8.7): it refused the stream, or
/// went away before it.
pub(super) fn never_processed(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<h2::Error>();
    cause.is_some_and(|cause| cause.is_remote() && (cause.reason() == Some(h2::Reason::REFUSED_STREAM) || cause.is_go_away()))
}

/// Whether nothing but the connection went wrong, so that the request may be tried again where that is safe.
pub(super) fn lost_connection(error: &Error) -> bool {
    use ErrorType as E;
    *error.esource() == ErrorSource::Upstream
        && matches!(error.etype(), E::ConnectionClosed | E::ReadError | E::WriteError | E::H2Error | E::InvalidH2)
}
