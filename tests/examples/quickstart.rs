//! Pingora's quick start over plain HTTP, which the benchmark compares with.
//!
//! Usage: `quickstart THREADS LISTEN BACKEND...`, for instance `quickstart 1 127.0.0.1:6188 127.0.0.1:8080`. All other
//! settings are Pingora's defaults, and the allocator is the system's. Only the `println!` per request is removed,
//! because it would halve the throughput.

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
