//! A Unix socket in front of an origin, for backends on Unix sockets.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// A listening Unix socket that passes each connection on to a TCP address. Dropping it removes the socket.
pub struct UnixBridge {
    path: PathBuf,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UnixBridge {
    /// Listens at `path`, and passes each connection on to `origin`.
    #[track_caller]
    pub fn start(path: &Path, origin: SocketAddr) -> Self {
        let listener = UnixListener::bind(path).expect("the path is free");
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let thread = thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                thread::spawn(move || carry(&client, origin));
            }
        });
        Self { path: path.to_owned(), is_over, thread: Some(thread) }
    }

    /// Returns the address of the socket as the configuration writes it.
    pub fn address(&self) -> String {
        format!("unix:{}", self.path.display())
    }
}

impl Drop for UnixBridge {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // This wakes the thread that accepts.
        drop(UnixStream::connect(&self.path));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the accepting thread does not panic");
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Carries bytes in both directions until each side has sent its last one.
fn carry(client: &UnixStream, origin: SocketAddr) {
    let Ok(origin) = TcpStream::connect(origin) else { return };
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &*client, &mut &origin);
            let _ = origin.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut &origin, &mut &*client);
        let _ = client.shutdown(Shutdown::Write);
    });
}
