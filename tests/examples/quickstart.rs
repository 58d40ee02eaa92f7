//! Pingora's quick start as it stands there, over plain HTTP: the measure that the benchmark compares with.
//!
//! `quickstart THREADS LISTEN BACKEND...`, for instance `quickstart 1 127.0.0.1:6188 127.0.0.1:8080`. Everything else
//! is Pingora's default, the allocator is Rust's. Only the quick start's `println!` for each request is left out, which
//! alone would halve what it can do.

use std::env;
use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use pingora::Result;
use pingora::lb::LoadBalancer;
use pingora::lb::selection::RoundRobin;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::upstreams::peer::HttpPeer;

struct LB(Arc<LoadBalancer<RoundRobin>>);

#[async_trait]
impl ProxyHttp for LB {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let upstream = self.0.select(b"", 256).expect("a backend that is never checked is always ready");
        Ok(Box::new(HttpPeer::new(upstream, false, String::new())))
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let (Some(threads), Some(listen)) = (arguments.next(), arguments.next()) else {
        return Err("usage: quickstart THREADS LISTEN BACKEND...".into());
    };

    let mut server = Server::new(None)?;
    server.bootstrap();

    let upstreams = LoadBalancer::try_from_iter(arguments)?;
    let mut lb = http_proxy_service(&server.configuration, LB(Arc::new(upstreams)));
    lb.threads = Some(threads.parse()?);
    lb.add_tcp(&listen);

    server.add_service(lb);
    server.run_forever()
}
