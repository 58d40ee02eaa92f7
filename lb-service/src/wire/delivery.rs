//! How a response leaves for a client: its framing, and what becomes of the connection of the client.

use http::Version;

use super::body::BodyWriter;
use super::framing::{Length, ResponseFraming};
use super::write::{Framing, Persistence};

/// The framing of a response that is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// What the head says about the body.
    pub(crate) framing: Framing,
    /// Frames the body.
    pub(crate) writer: BodyWriter,
}

// === impl Delivery ===

impl Delivery {
    /// Returns how a response leaves for a client that speaks this version. HTTP/1.0 has no chunks, so the end of the
    /// connection ends a body of unknown length there.
    pub(crate) fn new(received: ResponseFraming, version: Version) -> Self {
        let (framing, writer) = match received.length {
            Length::None => {
                (received.announced.map_or(Framing::None, Framing::Length), BodyWriter::Length(0))
            }
            Length::Known(length) => (Framing::Length(length), BodyWriter::Length(length)),
            Length::Chunked | Length::UntilClose if version == Version::HTTP_11 => {
                (Framing::Chunked, BodyWriter::Chunked)
            }
            Length::Chunked | Length::UntilClose => (Framing::UntilClose, BodyWriter::UntilClose),
        };
        Self { framing, writer }
    }

    /// Returns whether the client cannot tell the end of the response from a broken connection.
    pub(crate) fn is_undelimited(self) -> bool {
        self.framing == Framing::UntilClose
    }
}

// === impl Persistence ===

impl Persistence {
    /// Returns what a response says to a client that speaks this version, if its connection is kept or closed.
    pub(crate) fn new(is_kept: bool, version: Version) -> Self {
        match (is_kept, version) {
            (true, Version::HTTP_10) => Self::KeepAlive,
            (true, _) => Self::Implied,
            (false, _) => Self::Close,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(length: Length, announced: Option<u64>, version: Version) -> (Framing, BodyWriter, bool) {
        let received = ResponseFraming { length, announced, is_ambiguous: false };
        let delivery = Delivery::new(received, version);
        (delivery.framing, delivery.writer, delivery.is_undelimited())
    }

    #[test]
    fn a_length_is_passed_on_in_each_version() {
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert_eq!(
                delivery(Length::Known(7), None, version),
                (Framing::Length(7), BodyWriter::Length(7), false)
            );
            assert_eq!(delivery(Length::None, None, version), (Framing::None, BodyWriter::Length(0), false));
            let to_head = delivery(Length::None, Some(7), version);
            assert_eq!(to_head, (Framing::Length(7), BodyWriter::Length(0), false));
        }
    }

    #[test]
    fn only_a_client_of_http_1_1_gets_chunks() {
        for length in [Length::Chunked, Length::UntilClose] {
            let chunks = (Framing::Chunked, BodyWriter::Chunked, false);
            assert_eq!(delivery(length, None, Version::HTTP_11), chunks);
            let until_close = (Framing::UntilClose, BodyWriter::UntilClose, true);
            assert_eq!(delivery(length, None, Version::HTTP_10), until_close);
        }
    }

    #[test]
    fn only_a_client_of_http_1_0_is_told_that_its_connection_is_kept() {
        let cases = [
            (true, Version::HTTP_10, Persistence::KeepAlive),
            (true, Version::HTTP_11, Persistence::Implied),
            (false, Version::HTTP_10, Persistence::Close),
            (false, Version::HTTP_11, Persistence::Close),
        ];
        for (is_kept, version, persistence) in cases {
            assert_eq!(Persistence::new(is_kept, version), persistence, "{is_kept} {version:?}");
        }
    }
}
