//! Backends that send anything: each check has a result, whatever the bytes are and however they are split.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use health_service::{CheckKind, Checker, GrpcCheck, HttpCheck, PeerConnect, Settings};
use pingora::upstreams::peer::HttpPeer;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// Parts of responses over HTTP/1.1.
const HTTP1: [&[u8]; 22] = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\n",
    b"HTTP/1.0 200\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 18446744073709551615\r\n",
    b"X: \xff\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b"0\r\n",
    b"1\r\na\r\n",
    b"5\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b"fffffffffffffffe;x=\"y\r\n",
    b"4;a=b\r\n",
    b"data",
    b"Trailer: x\r\n",
    b"",
    b"\0",
];

/// Beginnings after which the bytes are those of a body.
const HTTP1_HEADS: [&[u8]; 4] = [
    b"",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n",
];

/// The settings with which a server begins, and a response without its end.
const HTTP2_HEADS: [&[u8]; 3] =
    [b"", b"\0\0\0\x04\0\0\0\0\0", b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x04\0\0\0\x01\x88"];

/// Frames of HTTP/2, whole and broken.
const HTTP2: [&[u8]; 10] = [
    b"\0\0\0\x04\0\0\0\0\0",
    b"\0\0\0\x04\x01\0\0\0\0",
    b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\0\0",
    b"\0\0\x08\x06\0\0\0\0\0abcdefgh",
    b"\0\0\x01\x01\x04\0\0\0\x01\x88",
    b"\0\0\x01\x01\x05\0\0\0\x01\x88",
    b"\0\0\x05\0\x01\0\0\0\x01\0\0\0\0\x02",
    b"\0\0\x04\x08\0\0\0\0\0\xff\xff\xff\xff",
    b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0",
    b"\xff\xff\xff\0\0\xff",
];

fn pieces(
    heads: &'static [&'static [u8]],
    parts: &'static [&'static [u8]],
) -> impl Strategy<Value = Vec<Vec<u8>>> {
    let piece = prop_oneof![4 => select(parts).prop_map(<[u8]>::to_vec), 1 => any::<Vec<u8>>()];
    let rest = proptest::collection::vec(piece, 0..24);
    (select(heads), rest).prop_map(|(head, rest)| [vec![head.to_vec()], rest].concat())
}

/// Checks a backend that sends these pieces one by one. A panic fails the test.
fn check(kind: CheckKind, pieces: Vec<Vec<u8>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address: SocketAddr = listener.local_addr().expect("it is bound");
        let backend = async {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let _ = stream.set_nodelay(true);
            for piece in pieces {
                let _ = stream.write_all(&piece).await;
                tokio::task::yield_now().await;
            }
            let _ = stream.shutdown().await;
        };
        let settings = Settings { kind, timeout: Duration::from_secs(2), ..Settings::default() };
        let connect = PeerConnect::new(HttpPeer::new("0.0.0.0:1", false, String::new()));
        let checker = Checker::new(Arc::new(connect), settings);
        let address = address.into();
        let _ = tokio::join!(backend, checker.check(&address));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_bytes_of_a_backend_give_a_result_to_an_http_check(pieces in pieces(&HTTP1_HEADS, &HTTP1)) {
        let check_body = HttpCheck { expect_body: Some("hello".to_owned()), ..HttpCheck::default() };
        check(CheckKind::Http(check_body), pieces);
    }

    #[test]
    fn any_bytes_of_a_backend_give_a_result_to_a_grpc_check(pieces in pieces(&HTTP2_HEADS, &HTTP2)) {
        check(CheckKind::Grpc(GrpcCheck::default()), pieces);
    }
}
