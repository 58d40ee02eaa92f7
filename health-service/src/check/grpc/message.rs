//! The two messages of `grpc.health.v1` as bytes: protobuf inside a gRPC frame.
//!
//! `HealthCheckRequest` is `{string service = 1}`, and `HealthCheckResponse` is `{ServingStatus status = 1}`, so a
//! hand-written codec is short. Unknown fields are skipped, as protobuf requires.

use bytes::{BufMut, Bytes, BytesMut};

/// One byte for the compression flag, four bytes for the length of the message.
const FRAME_HEAD: usize = 5;

/// Field 1 with the wire type of strings, and with that of integers.
const SERVICE: u8 = 1 << 3 | 2;
const STATUS: u64 = 1 << 3;

/// The request about `service`.
#[expect(clippy::expect_used, reason = "the name comes from the configuration")]
pub(super) fn request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(SERVICE);
        put_varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(FRAME_HEAD + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("a service has a name of less than 4 GiB"));
    framed.put(message);
    framed.freeze()
}

/// The status in a response; `None` if the bytes are not one complete, uncompressed message.
pub(super) fn status(framed: &[u8]) -> Option<u64> {
    let (head, message) = framed.split_first_chunk::<FRAME_HEAD>()?;
    let [compressed, length @ ..] = *head;
    let is_whole = usize::try_from(u32::from_be_bytes(length)) == Ok(message.len());
    (compressed == 0 && is_whole).then(|| status_field(message)).flatten()
}

/// Reads field 1. Protobuf omits a field that is zero; if a field occurs several times, the last one counts.
fn status_field(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        match tag & 7 {
            0 if tag == STATUS => status = take_varint(&mut message)?,
            0 => drop(take_varint(&mut message)?),
            1 => skip(&mut message, 8)?,
            2 => {
                let length = take_varint(&mut message)?;
                skip(&mut message, length)?;
            }
            5 => skip(&mut message, 4)?,
            _ => return None,
        }
    }
    Some(status)
}

fn skip(bytes: &mut &[u8], count: u64) -> Option<()> {
    *bytes = bytes.get(usize::try_from(count).ok()?..)?;
    Some(())
}

/// Writes seven bits per byte, the lowest first; the eighth bit says that more bytes follow.
fn put_varint(bytes: &mut BytesMut, mut number: usize) {
    while number >= 0x80 {
        bytes.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.put_u8(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).expect("short");
        [&[0], &length.to_be_bytes()[..], message].concat()
    }

    #[test]
    fn requests_equal_those_of_other_implementations() {
        assert_eq!(request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(request("shop")[..], *b"\x00\x00\x00\x00\x06\x0a\x04shop");
        let long = "x".repeat(300);
        assert_eq!(request(&long)[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        assert_eq!(request(&long)[8..], *long.as_bytes());
    }

    #[test]
    fn the_status_is_the_number_in_field_1() {
        assert_eq!(status(&framed(&[8, 1])), Some(1));
        assert_eq!(status(&framed(&[8, 3])), Some(3));
        assert_eq!(status(&framed(&[])), Some(0), "zero is left out");
        assert_eq!(status(&framed(&[8, 1, 8, 2])), Some(2), "the last one counts");
        assert_eq!(status(&framed(&[8, 0x81, 0x80, 0])), Some(1), "a varint may be longer than necessary");
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let others: [&[u8]; 4] =
            [&[0x10, 0x96, 1], &[0x19, 1, 2, 3, 4, 5, 6, 7, 8], b"\x22\x02ok", &[0x2d, 1, 2, 3, 4]];
        for other in others {
            assert_eq!(status(&framed(&[other, &[8, 1]].concat())), Some(1), "{other:?}");
            assert_eq!(status(&framed(&[&[8, 1], other].concat())), Some(1), "{other:?}");
        }
    }

    #[test]
    fn bytes_that_are_not_one_complete_message_have_no_status() {
        let good = framed(&[8, 1]);
        let broken: [&[u8]; 9] = [
            b"",
            &good[..4],
            &good[..6],
            &[&good[..], &[0]].concat(),
            &[&[1], &good[1..]].concat(),
            &framed(&[8]),
            &framed(&[0x22, 9, 1]),
            &framed(&[0x0b]),
            &framed(&[&[8][..], &[0xff; 10]].concat()),
        ];
        for bytes in broken {
            assert_eq!(status(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            status(&bytes);
            status(&framed(&bytes));
        }

        #[test]
        fn any_status_is_found_after_any_string_field(number in any::<u64>(), text in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut message = BytesMut::from(&[0x12_u8][..]);
            put_varint(&mut message, text.len());
            message.put_slice(&text);
            message.put_u8(8);
            put_varint(&mut message, usize::try_from(number).expect("64 bits"));
            prop_assert_eq!(status(&framed(&message)), Some(number));
        }
    }
}
