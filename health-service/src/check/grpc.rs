//! The gRPC check: one question to the backend's own health service, on a connection of its own.
//!
//! The protocol is `grpc.health.v1`, its method `Check` (`health-checking.md` in the repository of gRPC), over HTTP/2:
//! as agreed in the TLS handshake where the peer has TLS, and with prior knowledge where it has not.
//!
//! ```text
//! check          connects, asks, closes
//!   first_frame  notes whether the backend speaks HTTP/2 at all
//!   message      question and answer as bytes
//!   answer       what the answer, or the lack of one, means
//! ```
//!
//! The connection is driven by the check itself and not by a task, so nothing is left over when the check is given up.

mod answer;
mod first_frame;
mod message;

use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::uri::Scheme;
use http::{Method, Request, Uri, Version, header};
use pingora::connectors::TransportConnector;
use pingora::protocols::{ALPN, Stream};
use pingora::upstreams::peer::HttpPeer;

use self::answer::Answer;
use self::first_frame::{FirstFrame, Noting};
use super::{CheckError, USER_AGENT, authority};
use crate::settings::GrpcCheck;

const PATH: &str = "/grpc.health.v1.Health/Check";

/// How much of a body is read: two bytes say all, and fields to come are small.
const LONGEST_BODY: usize = 4 * 1024;

/// How much head an answer may have.
const LARGEST_HEAD: u32 = 16 * 1024;

/// What the polite end of a connection may cost. It is written to a socket whose buffer is empty, so it costs nothing.
const GOODBYE: Duration = Duration::from_millis(50);

pub(super) async fn check(
    connector: &TransportConnector,
    peer: &HttpPeer,
    check: &GrpcCheck,
) -> Result<(), CheckError> {
    let request = request(check, peer)?;
    let stream = connect(connector, peer).await?;
    let first = FirstFrame::default();
    let answer = ask(Noting::new(stream, first.clone()), request, message::request(&check.service)).await;
    answer::judge(&answer.map_err(|error| answer::failure(&error, &first))?, &check.service)
}

/// Connects, and makes sure that the backend agrees to HTTP/2 where that is a matter of agreement.
async fn connect(connector: &TransportConnector, peer: &HttpPeer) -> Result<Stream, CheckError> {
    let stream = connector.new_stream(peer).await.map_err(|error| handshake_failure(error.into()))?;
    if peer.is_tls() && stream.selected_alpn_proto() != Some(ALPN::H2) {
        return Err(CheckError::NotHttp2);
    }
    Ok(stream)
}

/// A server that knows other protocols only may end the handshake for that reason (RFC 7301, section 3.2).
fn handshake_failure(error: CheckError) -> CheckError {
    match error {
        CheckError::Tls(cause) if cause.contains("NoApplicationProtocol") => CheckError::NotHttp2,
        other => other,
    }
}

fn request(check: &GrpcCheck, peer: &HttpPeer) -> Result<Request<()>, CheckError> {
    let uri = Uri::builder()
        .scheme(if peer.is_tls() { Scheme::HTTPS } else { Scheme::HTTP })
        .authority(authority(check.host.as_deref(), peer))
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

/// Sends the request, takes in the answer, and says goodbye.
async fn ask(stream: Noting<Stream>, request: Request<()>, message: Bytes) -> Result<Answer, h2::Error> {
    let mut client = h2::client::Builder::new();
    client.enable_push(false).max_header_list_size(LARGEST_HEAD);
    let (sender, mut connection) = client.handshake(stream).await?;
    let (answer, ended) = {
        let mut answer = std::pin::pin!(exchange(sender, request, message));
        tokio::select! {
            biased;
            answer = &mut answer => (answer, None),
            // It ends first when it breaks, or when the backend ends it: after an answer or without one.
            ended = &mut connection => (answer.await, Some(ended)),
        }
    };
    // With nobody left who could send a request, the connection ends by itself, as agreed between the two sides.
    let ended = match ended {
        Some(ended) => ended,
        None => tokio::time::timeout(GOODBYE, connection).await.unwrap_or(Ok(())),
    };
    // A connection knows better than its stream why it ended.
    answer.map_err(|error| ended.err().unwrap_or(error))
}

async fn exchange(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    message: Bytes,
) -> Result<Answer, h2::Error> {
    let (response, mut stream) = sender.ready().await?.send_request(request, false)?;
    stream.send_data(message, true)?;
    let (head, body) = response.await?.into_parts();
    let (body, trailers) = read(body).await?;
    Ok(Answer { status: head.status, headers: head.headers, body, trailers })
}

/// Reads the body and what comes after it, or as much of it as any answer may have.
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
        let named = GrpcCheck { host: Some("a.example".to_owned()), ..GrpcCheck::default() };
        let plain = HttpPeer::new("10.0.0.1:8080", false, String::new());
        let tls = HttpPeer::new("10.0.0.1:8080", true, "b.example".to_owned());
        for (check, peer, uri) in [
            (&named, &plain, "http://a.example/grpc.health.v1.Health/Check"),
            (&GrpcCheck::default(), &plain, "http://10.0.0.1:8080/grpc.health.v1.Health/Check"),
            (&GrpcCheck::default(), &tls, "https://b.example/grpc.health.v1.Health/Check"),
        ] {
            let request = request(check, peer).expect("a valid request");
            assert_eq!((request.method(), request.uri().to_string()), (&Method::POST, uri.to_owned()));
            assert_eq!(request.headers()["content-type"], "application/grpc");
            assert_eq!(request.headers()["te"], "trailers");
        }
    }

    #[test]
    fn a_handshake_that_ends_for_want_of_a_common_protocol_is_told_as_such() {
        let alert = CheckError::Tls("received fatal alert: NoApplicationProtocol".to_owned());
        assert_eq!(handshake_failure(alert), CheckError::NotHttp2);
        assert_eq!(handshake_failure(CheckError::Refused), CheckError::Refused);
    }
}
