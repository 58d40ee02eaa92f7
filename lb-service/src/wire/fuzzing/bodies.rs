//! Properties of chunked bodies and of their trailers.

use std::num::NonZeroUsize;

use bytes::Bytes;

use super::super::body::{BodyWriter, Frame};
use super::super::chunked::{BadBody, CHUNK_END, Decoder, Sender, Step};
use super::super::connection::{Named, Options};
use super::super::fields::FieldLines;
use super::super::{trailers as grammar, write};
use super::pieces::{drawn, in_each_split};
use super::strict;

/// The data of a body, its trailers, and the index of the first byte behind it; `None` if it is incomplete.
type Decoded = Result<Option<(Vec<u8>, Vec<OwnedField>, usize)>, BadBody>;

/// The name and the value of a field.
pub(super) type OwnedField = (Vec<u8>, Vec<u8>);

/// Fields that a trailer never replaces, whoever names them.
const NEVER: [&[u8]; 12] = [
    b"content-length",
    b"transfer-encoding",
    b"host",
    b"connection",
    b"te",
    b"trailer",
    b"upgrade",
    b"authorization",
    b"cookie",
    b"set-cookie",
    b"x-forwarded-for",
    b"content-type",
];

/// Decodes the bytes as chunked bodies of both senders, and encodes them as the data of a chunked body.
///
/// # Panics
///
/// Panics if the pieces in which the bytes arrive matter, if another reader decodes them in another way, or if what is
/// encoded is not decoded to itself.
pub fn chunked_body(bytes: &[u8]) {
    let [client, backend] = [Sender::Client, Sender::Backend].map(|sender| decoded(bytes, sender));
    if client.is_ok() {
        assert_eq!(client, backend, "a backend may send everything that a client may send");
    }
    let encoded = encoded(bytes);
    let expected = Ok(Some((bytes.to_vec(), Vec::new(), encoded.len())));
    assert_eq!(decoded(&encoded, Sender::Client), expected, "what is encoded is decoded");
}

/// Reads the bytes as trailers, and passes them on.
///
/// # Panics
///
/// Panics if a field leaves that must not, if one is lost, or if what leaves can be read in another way.
pub fn trailers(bytes: &[u8]) {
    let _ = grammar::parse(Bytes::copy_from_slice(bytes));
    let body = [b"0\r\n", bytes].concat();
    let mut decoder = Decoder::new(Sender::Backend);
    let Ok(Step::End { .. }) = decoder.step(&body) else { return };
    let Ok(fields) = decoder.take_trailers() else { return };
    // The fields that they name stand for those that the head of the message names.
    let named = Named::of(&fields, Options::of_response(&fields));
    let mut out = Vec::new();
    write::last_chunk(&mut out, Some(&fields), &named);
    let read = strict::chunked(&out, 0, Sender::Client).expect("what leaves is a chunked body");
    assert_eq!((read.data.len(), read.end), (0, out.len()), "nothing follows the trailers");
    check_passed(&owned(&fields), &read.trailers);
}

fn check_passed(received: &[OwnedField], passed: &[strict::Field<'_>]) {
    let received: Vec<_> = received.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let named = strict::members(&received, b"connection");
    let is_forbidden = |field: &strict::Field<'_>| {
        let name = field.0.to_ascii_lowercase();
        NEVER.contains(&&name[..]) || named.contains(&name)
    };
    assert!(!passed.iter().any(is_forbidden), "a field that frames or authenticates leaves: {passed:?}");
    let mut rest = received.iter();
    assert!(passed.iter().all(|field| rest.any(|other| other == field)), "the order has changed: {passed:?}");
    let is_checksum = |field: &&strict::Field<'_>| field.0 == b"x-checksum" && !is_forbidden(field);
    let count = |fields: &[strict::Field<'_>]| fields.iter().filter(is_checksum).count();
    assert_eq!(count(&received), count(passed), "an ordinary field is lost");
}

/// Decodes a body in each split, and by the second reader.
fn decoded(bytes: &[u8], sender: Sender) -> Decoded {
    let decoded = in_each_split(bytes, |ends| decode(bytes, ends, sender));
    let body = strict::chunked(bytes, 0, sender);
    let expected = body.map(|body| (body.data, body.trailers.iter().map(to_owned).collect(), body.end));
    assert_eq!(decoded.clone().ok().flatten(), expected, "the readers disagree about a body from {sender:?}");
    decoded
}

/// Decodes a body that arrives in pieces with these ends.
fn decode(bytes: &[u8], ends: &[usize], sender: Sender) -> Decoded {
    let (mut decoder, mut data, mut at) = (Decoder::new(sender), Vec::new(), 0);
    for end in ends {
        while let step @ (Step::Data { .. } | Step::End { .. }) = decoder.step(&bytes[at..*end])? {
            match step {
                Step::Data { start, end } => {
                    data.extend_from_slice(&bytes[at + start..at + end]);
                    at += end;
                }
                Step::End { end } => return Ok(Some((data, owned(&decoder.take_trailers()?), at + end))),
                Step::Incomplete => {}
            }
        }
        at = *end;
    }
    Ok(None)
}

fn encoded(bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::new(), 0);
    for end in drawn(bytes) {
        write_piece(&mut out, &mut BodyWriter::Chunked, &bytes[at..end]);
        at = end;
    }
    write::last_chunk(&mut out, None, &Named::default());
    out
}

/// Writes a piece of a body.
pub(super) fn write_piece(out: &mut Vec<u8>, writer: &mut BodyWriter, piece: &[u8]) {
    let Some(size) = NonZeroUsize::new(piece.len()) else { return };
    match writer.frame(size).expect("the body is not longer than announced") {
        Frame::Plain => out.extend_from_slice(piece),
        Frame::Chunk(head) => {
            [head.as_bytes(), piece, CHUNK_END].iter().for_each(|part| out.extend_from_slice(part));
        }
    }
}

/// Returns copies of the fields.
pub(super) fn owned(fields: &FieldLines) -> Vec<OwnedField> {
    fields.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect()
}

fn to_owned(field: &strict::Field<'_>) -> OwnedField {
    (field.0.to_vec(), field.1.to_vec())
}
