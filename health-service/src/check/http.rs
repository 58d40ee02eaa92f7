//! The HTTP check: one request on a new connection, and the examination of its response.

use std::io;

use pingora::http::RequestHeader;
use pingora::protocols::http::v1::client::HttpSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};

use super::{CheckError, USER_AGENT, authority};
use crate::connect::{ByteStream, Connect, Protocol};
use crate::settings::HttpCheck;

/// Limit on the part of a body that is searched for the expected text.
const LONGEST_BODY: usize = 256 * 1024;

pub(super) async fn check(
    connect: &dyn Connect,
    address: &SocketAddr,
    check: &HttpCheck,
) -> Result<(), CheckError> {
    let host = authority(check.host.as_deref(), connect.server_name(), address);
    let request = request(check, &host)?;
    let connection = connect.connect(address, Protocol::Http1).await?;
    let mut session = session(connection.stream);
    session.write_request_header(Box::new(request)).await?;
    session.finish_body().await?;
    let status = read_status(&mut session).await?;
    if !check.expects_status(status) {
        return Err(CheckError::Status { status, expected: check.expected_statuses() });
    }
    match &check.expect_body {
        Some(text) if !body_contains(&mut session, text.as_bytes()).await? => {
            Err(CheckError::Body(text.clone()))
        }
        _ => Ok(()),
    }
}

fn session(stream: Box<dyn ByteStream>) -> HttpSession {
    HttpSession::new(Box::new(Stream::from(VirtualSocketStream::new(Box::new(stream)))))
}

impl VirtualSocket for Box<dyn ByteStream> {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        // The options are set where the connection is made.
        Ok(())
    }
}

fn request(check: &HttpCheck, host: &str) -> Result<RequestHeader, CheckError> {
    let mut request = RequestHeader::build(check.method.clone(), check.path.as_str().as_bytes(), None)?;
    request.insert_header("Host", host)?;
    request.insert_header("User-Agent", USER_AGENT)?;
    request.insert_header("Accept", "*/*")?;
    request.insert_header("Connection", "close")?;
    if check.method == http::Method::POST
        || check.method == http::Method::PUT
        || check.method == http::Method::PATCH
    {
        // Some servers require a length with a method that usually has a body.
        request.insert_header("Content-Length", "0")?;
    }
    Ok(request)
}

/// Reads the status of the final response. Interim responses such as 103 are skipped.
async fn read_status(session: &mut HttpSession) -> Result<u16, CheckError> {
    loop {
        session.read_response().await?;
        match session.get_status() {
            Some(status) if status.is_informational() && status != http::StatusCode::SWITCHING_PROTOCOLS => {}
            Some(status) => return Ok(status.as_u16()),
            None => return Err(CheckError::NotHttp),
        }
    }
}

/// Reads the body until the text appears, the body ends or [`LONGEST_BODY`] is reached.
async fn body_contains(session: &mut HttpSession, text: &[u8]) -> Result<bool, CheckError> {
    let mut body = Vec::new();
    while body.len() < LONGEST_BODY
        && let Some(part) = session.read_body_ref().await?
    {
        // A match may begin in the previous part, so the search starts that far back.
        let unseen = body.len().saturating_sub(text.len().saturating_sub(1));
        let room = LONGEST_BODY - body.len();
        body.extend(part.iter().take(room));
        if contains(body.get(unseen..).unwrap_or_default(), text) {
            return Ok(true);
        }
    }
    Ok(text.is_empty())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_anywhere_in_the_body() {
        assert!(contains(b"status: ok\n", b"ok"));
        assert!(!contains(b"status: o", b"ok"));
        assert!(contains(b"", b""));
    }
}
