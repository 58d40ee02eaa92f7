//! The proxy as a Pingora service.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use pingora::listeners::ListenerConfig;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;

use crate::access_log::AccessLog;
use crate::frontend::Frontend;
use crate::listener::ListenAddress;
use crate::plan::Plan;
use crate::proxy::Proxy;
use crate::traffic::Traffic;

/// Buffers of a client connection, in bytes. Pingora's 64 KiB for reading would be most of the memory of an idle connection,
/// and everything that reads has a buffer of its own. What is written is gathered, so that the head of an answer does not
/// travel alone.
const READ_BUFFER: usize = 0;
const WRITE_BUFFER: usize = 1460;

/// A service that accepts on all listeners of `plan` and proxies by its routes.
///
/// `access_logs` has one for each listener, in the order of their ids.
pub fn service(
    conf: &Arc<ServerConf>,
    plan: &Arc<Plan>,
    traffic: &Arc<Traffic>,
    access_logs: Box<[AccessLog]>,
) -> Service<Frontend> {
    let proxy = http_proxy(conf, Proxy::new(plan.clone(), traffic.clone(), access_logs.clone()));
    let frontend = Frontend::new(proxy, plan.listeners.clone(), traffic.clone(), access_logs);
    let mut service = Service::new("proxy".into(), frontend);
    for (_, listener) in plan.listeners.iter() {
        service.add_listener(endpoint(&listener.address));
    }
    service
}

/// The mode of Unix socket files: whoever may enter their directory may connect, as with a TCP port.
pub const UNIX_SOCKET_MODE: u32 = 0o666;

fn endpoint(address: &ListenAddress) -> ListenerConfig {
    let key = address.bind_key();
    let config = match address {
        ListenAddress::Tcp(_) => ListenerConfig::tcp(key),
        ListenAddress::Unix(_) => {
            ListenerConfig::uds(key).permissions(Permissions::from_mode(UNIX_SOCKET_MODE))
        }
    };
    config.l4_buffer(L4BufferSettings::new(READ_BUFFER, WRITE_BUFFER))
}
