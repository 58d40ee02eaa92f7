//! The `Connection` field: whether the connection is kept, and which fields are for the next hop only (RFC 9110,
//! section 7.6.1).

use super::fields::FieldLines;
use super::grammar::{is_token, members};
use super::known::Known;

/// What the `Connection` fields of a message say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The connection ends with this message. It takes precedence over [`keep_alive`](Self::keep_alive).
    pub(crate) close: bool,
    /// The connection is kept, although the version is HTTP/1.0.
    pub(crate) keep_alive: bool,
    /// The `Upgrade` field counts.
    pub(crate) upgrade: bool,
    /// Other fields are named, so each field of the message must be compared with [`names`].
    pub(crate) names_fields: bool,
}

/// The `Connection` field is not a list of tokens, is too long, or names a field that it must not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadConnection;

/// The largest number of options. No message needs more than a few, and each is compared with each field.
const MAX_OPTIONS: usize = 16;

/// Fields that a request carries along its whole path. Naming one would make the proxy drop what it has added itself,
/// or what the backend must see (CVE-2022-31813, CVE-2024-45410).
const END_TO_END: [&[u8]; 11] = [
    b"host",
    b"content-length",
    b"content-type",
    b"cookie",
    b"authorization",
    b"cache-control",
    b"forwarded",
    b"x-real-ip",
    b"x-request-id",
    b"via",
    b"expect",
];

// === impl Options ===

impl Options {
    /// Reads the options of a request.
    ///
    /// # Errors
    ///
    /// If a member is not a token, if there are more than 16, or if one is a field that a request carries along its
    /// whole path.
    pub(crate) fn of_request(fields: &FieldLines) -> Result<Self, BadConnection> {
        let mut options = Self::default();
        for (index, option) in names(fields).enumerate() {
            if index >= MAX_OPTIONS || !is_token(option) || is_end_to_end(option) {
                return Err(BadConnection);
            }
            options.add(option);
        }
        Ok(options)
    }

    /// Reads the options of a response. A member that is not a token is ignored.
    pub(crate) fn of_response(fields: &FieldLines) -> Self {
        let mut options = Self::default();
        names(fields).filter(|option| is_token(option)).for_each(|option| options.add(option));
        options
    }

    fn add(&mut self, option: &[u8]) {
        match () {
            () if option.eq_ignore_ascii_case(b"close") => self.close = true,
            () if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
            () if option.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
            () => self.names_fields = true,
        }
    }
}

/// Returns the members of all `Connection` fields.
pub(crate) fn names(fields: &FieldLines) -> impl Iterator<Item = &[u8]> {
    fields.values(Known::Connection).flat_map(members)
}

/// Returns the number of fields that do not pass because `Connection` names them.
pub(crate) fn count_named(fields: &FieldLines, options: Options) -> usize {
    if !options.names_fields {
        return 0;
    }
    let is_named = |name: &[u8]| names(fields).any(|named| named.eq_ignore_ascii_case(name));
    fields.iter().filter(|field| !field.known.never_passes() && is_named(field.name)).count()
}

/// The fields that a message names in `Connection`, for its trailers: these do not pass either.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named(Option<FieldLines>);

// === impl Named ===

impl Named {
    /// Returns the fields that the head of a message names.
    pub(crate) fn of(fields: &FieldLines, options: Options) -> Self {
        Self(options.names_fields.then(|| fields.clone()))
    }

    /// Returns whether this field is named.
    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        self.0.iter().flat_map(names).any(|named| named.eq_ignore_ascii_case(name))
    }
}

fn is_end_to_end(name: &[u8]) -> bool {
    const X_FORWARDED: &[u8] = b"x-forwarded-";
    let prefix = name.get(..X_FORWARDED.len());
    prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(X_FORWARDED))
        || END_TO_END.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn fields(text: &str) -> FieldLines {
        FieldLines::parse(Bytes::copy_from_slice(text.as_bytes()), 0).unwrap()
    }

    fn of(text: &str) -> Result<Options, BadConnection> {
        Options::of_request(&fields(text))
    }

    #[test]
    fn options_of_all_lines_count() {
        let both = Options { close: true, keep_alive: true, ..Options::default() };
        assert_eq!(of("Connection: Keep-Alive\r\nConnection: ,CLOSE,\r\n"), Ok(both));
        assert_eq!(of("A: b\r\n"), Ok(Options::default()));
        let named = Options { upgrade: true, names_fields: true, ..Options::default() };
        assert_eq!(of("Connection: upgrade, X-Private\r\n"), Ok(named));
    }

    #[test]
    fn an_option_is_a_token_and_there_are_few() {
        assert_eq!(of("Connection: a b\r\n"), Err(BadConnection));
        assert_eq!(of("Connection: :authority\r\n"), Err(BadConnection));
        let options = |count| format!("Connection: {}\r\n", vec!["a"; count].join(","));
        assert!(of(&options(16)).is_ok());
        assert_eq!(of(&options(17)), Err(BadConnection));
    }

    #[test]
    fn a_request_cannot_drop_fields_that_backends_rely_on() {
        for name in [
            "Host",
            "Content-Length",
            "Content-Type",
            "Cookie",
            "Authorization",
            "Cache-Control",
            "Forwarded",
            "x-forwarded-for",
            "X-Forwarded-Anything",
            "X-Real-IP",
            "X-Request-Id",
            "VIA",
            "Expect",
        ] {
            assert_eq!(of(&format!("Connection: close, {name}\r\n")), Err(BadConnection), "{name}");
        }
        assert!(of("Connection: transfer-encoding\r\n").is_ok(), "it has no effect");
    }

    #[test]
    fn fields_that_are_named_are_counted_unless_they_never_pass() {
        let count = |text| {
            let fields = fields(text);
            count_named(&fields, Options::of_request(&fields).unwrap())
        };
        assert_eq!(count("Connection: x-a, TE, x-c\r\nX-A: 1\r\nx-a: 2\r\nTE: trailers\r\nX-B: 3\r\n"), 2);
        assert_eq!(count("Connection: close\r\nX-A: 1\r\n"), 0);
    }

    #[test]
    fn a_response_with_odd_options_is_read_as_far_as_possible() {
        let options = Options::of_response(&fields("Connection: a b, close, host\r\n"));
        assert_eq!(options, Options { close: true, names_fields: true, ..Options::default() });
    }
}
