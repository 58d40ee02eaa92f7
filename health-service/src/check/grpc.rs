//! The gRPC check: one request to the backend's own health service, on a new connection.
//!
//! It calls the method `Check` of `grpc.health.v1` (`health-checking.md` in the repository of gRPC) over HTTP/2. With
//! TLS, HTTP/2 is negotiated in the handshake; without TLS, it is used with prior knowledge.
//!
//! ```text
//! check          connects, sends the request, closes
//!   first_frame  records whether the backend uses HTTP/2 at all
//!   message      request and response as bytes
//!   response     what the response, or its absence, means
//! ```
//!
//! The check itself drives the connection, without a task, so nothing remains when the check is dropped.

mod first_frame;
mod message;
mod response;

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::uri::Scheme;
use http::{Method, Request, Uri, Version, header};
use pingora::protocols::l4::socket::SocketAddr;

use self::first_frame::{FirstFrame, Noting};
use self::response::GrpcResponse;
use super::{CheckError, USER_AGENT, authority};
use crate::connect::{ByteStream, Connect, Protocol};
use crate::settings::GrpcCheck;

const PATH: &str = "/grpc.health.v1.Health/Check";

/// Limit on the body that is read. Two bytes are enough, and fields of later versions are small.
const LONGEST_BODY: usize = 4 * 1024;

/// Limit on the head of a response.
const LARGEST_HEAD: u32 = 16 * 1024;

/// Time limit for closing the connection cleanly. The frame goes into an empty socket buffer, so this takes no time in
/// practice.
const GOODBYE: Duration = Duration::from_millis(50);

pub(super) async fn check(
    connect: &dyn Connect,
    address: &SocketAddr,
    check: &GrpcCheck,
) -> Result<(), CheckError> {
    let authority = authority(check.host.as_deref(), connect.server_name(), address);
    let request = request(connect.is_tls(), authority)?;
    let stream = connect_http2(connect, address).await?;
    let first = FirstFrame::default();
    let response =
        exchange_on(Noting::new(stream, first.clone()), request, message::request(&check.service)).await;
    response::judge(&response.map_err(|error| response::failure(&error, &first))?, &check.service)
}

/// Connects. With TLS, the backend must negotiate HTTP/2.
async fn connect_http2(
    connect: &dyn Connect,
    address: &SocketAddr,
) -> Result<Box<dyn ByteStream>, CheckError> {
    let connected = connect.connect(address, Protocol::Http2).await;
    let connection = connected.map_err(|error| handshake_failure(error.into()))?;
    if connect.is_tls() && connection.protocol != Some(Protocol::Http2) {
        return Err(CheckError::NotHttp2);
    }
    Ok(connection.stream)
}

/// A server without HTTP/2 may abort the handshake for that reason (RFC 7301, section 3.2).
fn handshake_failure(error: CheckError) -> CheckError {
    match error {
        CheckError::Tls(cause) if cause.contains("no application protocol") => CheckError::NotHttp2,
        other => other,
    }
}

fn request(is_tls: bool, authority: String) -> Result<Request<()>, CheckError> {
    let uri = Uri::builder()
        .scheme(if is_tls { Scheme::HTTPS } else { Scheme::HTTP })
        .authority(authority)
        .path_and_query(PATH)
        .build();
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri.map_err(|error| CheckError::Other(error.to_string()))?)
        .version(Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(());
    request.map_err(|error| CheckError::Other(error.to_string()))
}

/// Sends the request, receives the response, and closes the connection.
async fn exchange_on(
    stream: Noting<Box<dyn ByteStream>>,
    request: Request<()>,
    message: Bytes,
) -> Result<GrpcResponse, h2::Error> {
    let mut client = h2::client::Builder::new();
    client.enable_push(false).max_header_list_size(LARGEST_HEAD);
    let (sender, mut connection) = client.handshake(stream).await?;
    let (response, ended) = {
        let mut response = std::pin::pin!(exchange(sender, request, message));
        tokio::select! {
            biased;
            response = &mut response => (response, None),
            // It ends first if it breaks, or if the backend closes it, with or without a response.
            ended = &mut connection => (response.await, Some(ended)),
        }
    };
    // The last sender is dropped, so the connection closes itself with GOAWAY.
    let ended = match ended {
        Some(ended) => ended,
        None => tokio::time::timeout(GOODBYE, connection).await.unwrap_or(Ok(())),
    };
    // The error of the connection says more than the error of its stream.
    response.map_err(|error| ended.err().unwrap_or(error))
}

async fn exchange(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    message: Bytes,
) -> Result<GrpcResponse, h2::Error> {
    let (response, mut stream) = sender.ready().await?.send_request(request, false)?;
    stream.send_data(message, true)?;
    let (head, body) = response.await?.into_parts();
    let (body, trailers) = read(body).await?;
    Ok(GrpcResponse { status: head.status, headers: head.headers, body, trailers })
}

/// Reads the body and the trailers, or the body up to [`LONGEST_BODY`].
async fn read(mut stream: RecvStream) -> Result<(Vec<u8>, Option<http::HeaderMap>), h2::Error> {
    let mut body = Vec::new();
    while let Some(part) = stream.data().await {
        body.extend_from_slice(&part?);
        if body.len() > LONGEST_BODY {
            return Ok((body, None));
        }
    }
    Ok((body, stream.trailers().await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_that_of_a_grpc_client() {
        for (is_tls, authority, uri) in [
            (false, "10.0.0.1:8080", "http://10.0.0.1:8080/grpc.health.v1.Health/Check"),
            (true, "b.example", "https://b.example/grpc.health.v1.Health/Check"),
        ] {
            let request = request(is_tls, authority.to_owned()).expect("a valid request");
            assert_eq!((request.method(), request.uri().to_string()), (&Method::POST, uri.to_owned()));
            assert_eq!(request.headers()["content-type"], "application/grpc");
            assert_eq!(request.headers()["te"], "trailers");
        }
    }

    #[test]
    fn a_handshake_without_a_common_protocol_means_no_http2() {
        let alert = CheckError::Tls("received fatal alert: no application protocol".to_owned());
        assert_eq!(handshake_failure(alert), CheckError::NotHttp2);
        assert_eq!(handshake_failure(CheckError::Refused), CheckError::Refused);
    }
}
