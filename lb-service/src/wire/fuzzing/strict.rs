//! A second reader of messages. It has the whole message before it, is written for clarity alone, and shares no code
//! with the first one. It reads only what no recipient can read in another way.

use super::super::chunked::Sender;
use super::super::framing::Length;

/// The name and the value of a field.
pub(super) type Field<'a> = (&'a [u8], &'a [u8]);

/// The first line and the fields of a message, and the index of the first byte behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) line: &'a [u8],
    pub(super) fields: Vec<Field<'a>>,
    pub(super) end: usize,
}

/// A body, its trailers, and the index of the first byte behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Body<'a> {
    pub(super) data: Vec<u8>,
    pub(super) trailers: Vec<Field<'a>>,
    pub(super) end: usize,
}

/// Reads a request; `None` if it is incomplete or not valid.
pub(super) fn request(bytes: &[u8]) -> Option<(Head<'_>, Body<'_>)> {
    let head = head(bytes)?;
    let body = body(bytes, head.end, request_length(&head.fields)?, Sender::Client)?;
    Some((head, body))
}

/// Reads a response to a request with the method HEAD (`to_head`) or another method; `None` if it is incomplete or not
/// valid. A body that ends with the connection has all bytes.
pub(super) fn response(bytes: &[u8], to_head: bool) -> Option<(Head<'_>, Body<'_>)> {
    let head = head(bytes)?;
    let status = head.line.get(9..12)?;
    let has_none = to_head || status[0] == b'1' || status == b"204" || status == b"304";
    let length = if has_none { Length::None } else { response_length(&head.fields)? };
    let body = body(bytes, head.end, length, Sender::Client)?;
    Some((head, body))
}

/// Reads a head.
pub(super) fn head(bytes: &[u8]) -> Option<Head<'_>> {
    let (line, after) = line(bytes, 0)?;
    let (fields, end) = section(bytes, after)?;
    Some(Head { line, fields, end })
}

/// Reads a chunked body that begins at `at`.
pub(super) fn chunked(bytes: &[u8], mut at: usize, sender: Sender) -> Option<Body<'_>> {
    let (mut data, mut extensions) = (Vec::new(), 0);
    loop {
        let (line, after) = line(bytes, at)?;
        let (digits, extension) =
            line.split_at(line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count());
        extensions += extension.len();
        if !is_extension(extension, sender) || extension.len() > 1024 || extensions > 16 * 1024 {
            return None;
        }
        let size = size(digits)?;
        if size == 0 {
            let (trailers, end) = section(bytes, after)?;
            let is_small = end - after <= 16 * 1024 && trailers.len() <= 64;
            return is_small.then_some(Body { data, trailers, end });
        }
        let end = after.checked_add(size)?;
        data.extend_from_slice(bytes.get(after..end)?);
        at = end + 2;
        if bytes.get(end..at)? != b"\r\n" {
            return None;
        }
    }
}

/// Returns the length of the body of a request; `None` if it is not clear.
pub(super) fn request_length(fields: &[Field<'_>]) -> Option<Length> {
    match (&values(fields, b"content-length")[..], &values(fields, b"transfer-encoding")[..]) {
        ([], []) => Some(Length::None),
        ([length], []) => number(length).map(Length::Known),
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Some(Length::Chunked),
        _ => None,
    }
}

/// Returns the length of the body of a response that has one; `None` if it is not clear.
fn response_length(fields: &[Field<'_>]) -> Option<Length> {
    match request_length(fields)? {
        Length::None => Some(Length::UntilClose),
        length => Some(length),
    }
}

/// Returns the values of the fields with this name.
pub(super) fn values<'a>(fields: &[Field<'a>], name: &[u8]) -> Vec<&'a [u8]> {
    fields.iter().filter(|field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1).collect()
}

/// Returns the members of the lists in the fields with this name, in lower case.
pub(super) fn members(fields: &[Field<'_>], name: &[u8]) -> Vec<Vec<u8>> {
    let list = values(fields, name).join(&b","[..]);
    let members = list.split(|byte| *byte == b',').map(trimmed).filter(|member| !member.is_empty());
    members.map(<[u8]>::to_ascii_lowercase).collect()
}

/// Returns whether the text is a token.
pub(super) fn is_token(text: &[u8]) -> bool {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_allowed)
}

fn body(bytes: &[u8], start: usize, length: Length, sender: Sender) -> Option<Body<'_>> {
    let end = match length {
        Length::None => start,
        Length::Known(length) => start.checked_add(usize::try_from(length).ok()?)?,
        Length::UntilClose => bytes.len(),
        Length::Chunked => return chunked(bytes, start, sender),
    };
    Some(Body { data: bytes.get(start..end)?.to_vec(), trailers: Vec::new(), end })
}

/// Reads fields up to an empty line.
fn section(bytes: &[u8], mut at: usize) -> Option<(Vec<Field<'_>>, usize)> {
    let mut fields = Vec::new();
    loop {
        let (line, after) = line(bytes, at)?;
        at = after;
        if line.is_empty() {
            return Some((fields, after));
        }
        fields.push(field(line)?);
    }
}

/// Reads a line, which ends with CR LF and has neither inside.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let len = bytes.get(at..)?.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &bytes[at..at + len];
    (!line.contains(&b'\r') && !line.contains(&b'\n')).then_some((line, at + len + 2))
}

fn field(line: &[u8]) -> Option<Field<'_>> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], trimmed(&line[colon + 1..]));
    (is_token(name) && !value.iter().copied().any(is_control)).then_some((name, value))
}

fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

fn trimmed(text: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let start = text.iter().position(|byte| !is_blank(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// Reads a length.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let is_plain = text.len() <= 19 && text.iter().all(u8::is_ascii_digit);
    let number: i64 = str::from_utf8(text).ok().filter(|_| is_plain)?.parse().ok()?;
    u64::try_from(number).ok()
}

/// Reads the size of a chunk.
fn size(digits: &[u8]) -> Option<usize> {
    let text = str::from_utf8(digits).ok().filter(|text| text.len() <= 16)?;
    let size = u64::from_str_radix(text, 16).ok().filter(|size| *size < 1 << 52)?;
    usize::try_from(size).ok()
}

/// Returns whether this may follow the size of a chunk.
fn is_extension(text: &[u8], sender: Sender) -> bool {
    let named = trimmed(text);
    match named.first() {
        None => text.is_empty() || sender == Sender::Backend,
        Some(first) => *first == b';' && !text.iter().copied().any(is_control) && has_closed_quotes(named),
    }
}

fn has_closed_quotes(text: &[u8]) -> bool {
    let (mut is_quoted, mut bytes) = (false, text.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\\' if is_quoted && bytes.next().is_none() => return false,
            _ => {}
        }
    }
    !is_quoted
}
