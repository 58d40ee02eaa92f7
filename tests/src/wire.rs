//! HTTP/1.1 as bytes: reads heads and bodies from any stream and normalises nothing.
//!
//! Both ends of the harness use it, so a test can compare the sent and the received bytes.

use std::io::{self, ErrorKind, Read, Write};

/// The largest head in bytes. A larger one is an error.
const MAX_HEAD: usize = 256 * 1024;

/// Start line and headers of one message, in their original order and spelling.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// The bytes, including the empty line at the end.
    pub raw: Vec<u8>,
    /// Request line or status line.
    pub start: String,
    /// Names and values, with duplicates.
    pub headers: Vec<(String, String)>,
}

/// The way in which the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The end of the connection is the end of the body.
    ToEnd,
}

/// One connection, with a buffer for bytes that were received but not yet used.
pub struct Wire<S> {
    stream: S,
    buffer: Vec<u8>,
    start: usize,
}

impl Head {
    /// Returns the first value of a header. The case of the name does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// Returns all values of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// Returns the framing that the headers announce, or `None` if they announce none.
    pub fn framing(&self) -> Option<Framing> {
        if self.lists("transfer-encoding", "chunked") {
            return Some(Framing::Chunked);
        }
        let length = self.header("content-length")?.parse().ok()?;
        Some(Framing::Length(length))
    }

    /// Whether a header with a list value contains this element.
    pub fn lists(&self, name: &str, element: &str) -> bool {
        let values = self.all(name).into_iter().flat_map(|value| value.split(','));
        values.map(str::trim).any(|value| value.eq_ignore_ascii_case(element))
    }

    /// Parses the bytes of a head, including the empty line at the end.
    ///
    /// # Errors
    ///
    /// Returns `InvalidData` if a line is not a header.
    pub fn parse(raw: Vec<u8>) -> io::Result<Self> {
        let text = String::from_utf8_lossy(&raw).into_owned();
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(parse_header).collect::<io::Result<_>>()?;
        Ok(Self { raw, start, headers })
    }
}

impl<S: Read + Write> Wire<S> {
    /// Wraps a stream from which nothing has been read.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), start: 0 }
    }

    /// Returns the stream, for socket options. A caller must not read from it, because some bytes may be in the buffer.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Sends bytes unchanged.
    ///
    /// # Errors
    ///
    /// Returns the errors of the stream.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Reads a head. Returns `None` if the peer closed before its first byte.
    ///
    /// # Errors
    ///
    /// Returns the errors of the stream, `UnexpectedEof` if it ends within a head, and `InvalidData` if it is not HTTP.
    pub fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(end) = find(self.unread(), b"\r\n\r\n") {
                return Head::parse(self.take(end + 4)).map(Some);
            }
            if self.unread().len() > MAX_HEAD {
                return Err(invalid("the head is too long"));
            }
            if self.fill()? == 0 {
                return if self.unread().is_empty() { Ok(None) } else { Err(cut("within a head")) };
            }
        }
    }

    /// Reads a body, passes it to `sink` piece by piece, and returns its trailers.
    ///
    /// # Errors
    ///
    /// Returns the errors of the stream, and `UnexpectedEof` if the body is cut short.
    pub fn body(
        &mut self,
        framing: Framing,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Vec<(String, String)>> {
        match framing {
            Framing::Empty => Ok(Vec::new()),
            Framing::Length(length) => self.exactly(length, sink).map(|()| Vec::new()),
            Framing::Chunked => self.chunks(sink),
            Framing::ToEnd => self.until_end(sink).map(|()| Vec::new()),
        }
    }

    /// Waits for the next byte or for the end of the connection. Returns whether there is a byte.
    ///
    /// # Errors
    ///
    /// Returns the errors of the stream.
    pub fn more(&mut self) -> io::Result<bool> {
        Ok(!self.unread().is_empty() || self.fill()? > 0)
    }

    /// Returns the next bytes, or nothing at the end of the connection.
    ///
    /// # Errors
    ///
    /// Returns the errors of the stream.
    pub fn some(&mut self) -> io::Result<Vec<u8>> {
        self.more()?;
        Ok(self.take(self.unread().len()))
    }

    /// Returns the bytes in the buffer.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn exactly(&mut self, mut left: u64, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        while left > 0 {
            if self.unread().is_empty() && self.fill()? == 0 {
                return Err(cut("within a body"));
            }
            let ready = self.unread().len();
            let piece = usize::try_from(left).map_or(ready, |left| left.min(ready));
            sink(&self.unread()[..piece]);
            self.start += piece;
            left -= piece as u64;
        }
        Ok(())
    }

    fn chunks(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<Vec<(String, String)>> {
        loop {
            let line = self.line()?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(|_| invalid("not a chunk size"))?;
            if size == 0 {
                return self.trailers();
            }
            self.exactly(size, sink)?;
            if !self.line()?.is_empty() {
                return Err(invalid("a chunk is longer than its size"));
            }
        }
    }

    fn trailers(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut trailers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(trailers);
            }
            trailers.push(parse_header(&line)?);
        }
    }

    fn until_end(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        loop {
            let piece = self.some()?;
            if piece.is_empty() {
                return Ok(());
            }
            sink(&piece);
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(self.unread(), b"\r\n") {
                let line = self.take(end + 2);
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.fill()? == 0 {
                return Err(cut("within a line"));
            }
        }
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let taken = self.buffer[self.start..self.start + length].to_vec();
        self.start += length;
        taken
    }

    /// Reads more bytes from the stream. Returns 0 at its end.
    fn fill(&mut self) -> io::Result<usize> {
        const PIECE: usize = 64 * 1024;
        self.buffer.drain(..self.start);
        self.start = 0;
        let kept = self.buffer.len();
        self.buffer.resize(kept + PIECE, 0);
        let read = read_retrying(&mut self.stream, &mut self.buffer[kept..]);
        self.buffer.truncate(kept + read.as_ref().copied().unwrap_or(0));
        read
    }
}

/// Returns the first value of a header. The case of the name does not matter.
pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let named = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.as_str())
}

fn read_retrying(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn parse_header(line: impl AsRef<str>) -> io::Result<(String, String)> {
    let (name, value) = line.as_ref().split_once(':').ok_or_else(|| invalid("a header without a colon"))?;
    Ok((name.to_owned(), value.trim().to_owned()))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn cut(place: &str) -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, format!("the connection ended {place}"))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn wire(text: &str) -> Wire<Cursor<Vec<u8>>> {
        Wire::new(Cursor::new(text.as_bytes().to_vec()))
    }

    fn body(wire: &mut Wire<Cursor<Vec<u8>>>, framing: Framing) -> (String, Vec<(String, String)>) {
        let mut bytes = Vec::new();
        let trailers = wire.body(framing, &mut |piece| bytes.extend_from_slice(piece)).expect("whole");
        (String::from_utf8(bytes).expect("text"), trailers)
    }

    #[test]
    fn a_head_keeps_duplicates_order_and_spelling_of_headers() {
        let head = wire("GET / HTTP/1.1\r\nB: 1\r\na: 2\r\nB: 3\r\n\r\n").head().unwrap().unwrap();
        assert_eq!(head.start, "GET / HTTP/1.1");
        assert_eq!(head.all("b"), ["1", "3"]);
        assert_eq!(head.headers[1], ("a".to_owned(), "2".to_owned()));
    }

    #[test]
    fn the_next_message_follows_a_chunked_body_with_trailers() {
        let mut wire = wire(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
        );
        let head = wire.head().unwrap().unwrap();
        let (text, trailers) = body(&mut wire, head.framing().unwrap());
        assert_eq!(text, "abcde");
        assert_eq!(trailers, [("T".to_owned(), "1".to_owned())]);
        assert_eq!(wire.head().unwrap().unwrap().start, "HTTP/1.1 204 No");
        assert!(wire.head().unwrap().is_none());
    }

    #[test]
    fn a_truncated_body_is_an_error() {
        let error = wire("abc").body(Framing::Length(4), &mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}
