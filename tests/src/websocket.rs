//! The part of WebSockets (RFC 6455) that an echo needs: a handshake with one key, and unfragmented messages.

use std::io::{self, Read, Write};

use crate::wire::{Framing, Head, Wire};

/// The key that every client of the harness sends. It is the RFC's example, so [`ACCEPT`] needs no hash.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The `Sec-WebSocket-Accept` that belongs to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The mask of all frames. The tests do not depend on its value.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const FINAL: u8 = 0x80;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;

/// A frame that is a whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    opcode: u8,
    /// The payload, unmasked.
    pub payload: Vec<u8>,
}

/// Returns the headers of a client's handshake, without `Host`.
pub fn handshake() -> [(&'static str, &'static str); 4] {
    [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
    ]
}

/// Returns the `Sec-WebSocket-Accept` for this handshake, or `None` if it is not a handshake of this harness.
pub fn accepts(request: &Head) -> Option<&'static str> {
    let upgrades = request.lists("connection", "upgrade") && request.lists("upgrade", "websocket");
    (upgrades && request.header("sec-websocket-key") == Some(KEY)).then_some(ACCEPT)
}

/// Reads the next frame. Returns `None` if the peer closed before its first byte.
///
/// # Errors
///
/// Returns the errors of the stream, and `UnexpectedEof` if it ends within a frame.
pub fn read<S: Read + Write>(wire: &mut Wire<S>) -> io::Result<Option<Frame>> {
    if !wire.more()? {
        return Ok(None);
    }
    let head = take(wire, 2)?;
    let long = match head[1] & 0x7f {
        126 => take(wire, 2)?,
        127 => take(wire, 8)?,
        short => vec![short],
    };
    let length = long.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
    let mask = if head[1] & 0x80 == 0 { vec![0] } else { take(wire, 4)? };
    let mut payload = take(wire, length)?;
    apply(&mask, &mut payload);
    Ok(Some(Frame { opcode: head[0] & 0x0f, payload }))
}

impl Frame {
    /// Creates a binary message.
    pub fn binary(payload: Vec<u8>) -> Self {
        Self { opcode: BINARY, payload }
    }

    /// Creates the message that ends a WebSocket.
    pub fn close() -> Self {
        Self { opcode: CLOSE, payload: Vec::new() }
    }

    /// Whether the frame ends the WebSocket.
    pub fn is_close(&self) -> bool {
        self.opcode == CLOSE
    }

    /// Returns the bytes that a client sends.
    pub fn masked(&self) -> Vec<u8> {
        let mut payload = self.payload.clone();
        apply(&MASK, &mut payload);
        [self.head(0x80), MASK.to_vec(), payload].concat()
    }

    /// Returns the bytes that a server sends.
    pub fn plain(&self) -> Vec<u8> {
        [self.head(0), self.payload.clone()].concat()
    }

    fn head(&self, masked: u8) -> Vec<u8> {
        let first = FINAL | self.opcode;
        match u16::try_from(self.payload.len()) {
            Ok(length @ 0..126) => vec![first, masked | length.to_be_bytes()[1]],
            Ok(length) => [&[first, masked | 126], length.to_be_bytes().as_slice()].concat(),
            Err(_) => [&[first, masked | 127], (self.payload.len() as u64).to_be_bytes().as_slice()].concat(),
        }
    }
}

fn apply(mask: &[u8], payload: &mut [u8]) {
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

fn take<S: Read + Write>(wire: &mut Wire<S>, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    wire.body(Framing::Length(length), &mut |piece| bytes.extend_from_slice(piece))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn frames_of_every_length_arrive_unchanged() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let sent = Frame::binary(crate::pattern::bytes(3, length));
            let bytes = [sent.masked(), sent.plain(), Frame::close().masked()].concat();
            let mut wire = Wire::new(Cursor::new(bytes));
            assert_eq!(read(&mut wire).unwrap().unwrap(), sent);
            assert_eq!(read(&mut wire).unwrap().unwrap(), sent);
            assert!(read(&mut wire).unwrap().unwrap().is_close());
            assert_eq!(read(&mut wire).unwrap(), None);
        }
    }

    #[test]
    fn a_truncated_frame_is_an_error() {
        let mut bytes = Frame::binary(vec![1; 10]).masked();
        bytes.pop();
        assert!(read(&mut Wire::new(Cursor::new(bytes))).is_err());
    }
}
