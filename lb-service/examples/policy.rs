//! One policy, `peak_ewma`, in a small Pingora proxy.
//!
//! The example uses only the module `policy` of this crate. It listens on the first address and balances over the
//! others:
//!
//! ```text
//! cargo run -p lb-service --example policy -- 127.0.0.1:6188 10.0.0.1:8080 10.0.0.2:8080
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lb_service::policy::{Algorithm, InFlight, Load, Policy, PolicyConfig};
use pingora::http::ResponseHeader;
use pingora::lb::{Backends, LoadBalancer, discovery};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

/// The minimum cost of a backend after a failed connection or an error response. It decays.
const PENALTY: Duration = Duration::from_secs(5);

struct Proxy {
    balancer: LoadBalancer<Policy>,
    /// The loads of the backends, which the policy reads.
    loads: HashMap<SocketAddr, Arc<Load>>,
}

/// A request that was sent to a backend. It counts as in flight until this is dropped together with the request's
/// context.
struct Sent {
    backend: InFlight,
    began: Instant,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Option<Sent>;

    fn new_ctx(&self) -> Self::CTX {
        None
    }

    async fn upstream_peer(&self, _session: &mut Session, sent: &mut Self::CTX) -> Result<Box<HttpPeer>> {
        // A hash algorithm needs a key here, for instance the path: `session.req_header().uri.path().as_bytes()`.
        let backend = self
            .balancer
            .select(b"", self.loads.len())
            .ok_or_else(|| Error::explain(ErrorType::ConnectNoRoute, "no backend is ready"))?;
        let load = self.loads.get(&backend.addr).ok_or_else(|| Error::new(ErrorType::InternalError))?;
        // A retry replaces the first attempt, which is then no longer in flight.
        *sent = Some(Sent { backend: load.enter(), began: Instant::now() });
        Ok(Box::new(HttpPeer::new(backend.addr, false, String::new())))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        sent: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        if let Some(sent) = sent {
            sent.backend.load().penalize(PENALTY, Instant::now());
        }
        error.set_retry(true); // nothing was sent; the penalty makes another backend likely
        error
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        sent: &mut Self::CTX,
    ) -> Result<()> {
        if let Some(sent) = sent {
            let now = Instant::now();
            sent.backend.load().responded(now - sent.began, now);
            // Without a penalty, fast error responses would make this backend look like the fastest.
            if response.status == 429 || response.status.is_server_error() {
                sent.backend.load().penalize(PENALTY, now);
            }
        }
        Ok(())
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut addresses = std::env::args().skip(1);
    let listen = addresses.next().ok_or("usage: policy LISTEN BACKEND...")?;
    let members = discovery::Static::try_from_iter(addresses)?;

    let config = PolicyConfig::new(Algorithm::PeakEwma);
    let loads =
        members.get().into_iter().map(|member| (member.addr.clone(), config.load(&member.addr))).collect();
    let balancer = LoadBalancer::from_backends_with_config(Backends::new(members), Some(config));
    // A static list is available at once. With another discovery, or with health checks, run the balancer as a
    // background service.
    futures::FutureExt::now_or_never(balancer.update()).ok_or("the list of backends is not ready")??;

    let mut server = Server::new(None)?;
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Proxy { balancer, loads });
    service.add_tcp(&listen);
    server.add_service(service);
    server.run_forever();
}
