//! The file of keys that sign session cookies.
//!
//! ```text
//! # 2026-11, signs
//! 6f1c…   64 hex digits
//! # 2026-10, still accepted
//! 0b9e…
//! ```
//!
//! The first key signs, and every key verifies. Keys are never printed: [`SessionKeys`] displays their number, and
//! [`SessionKeysError`] names a line without its content.

use std::fmt;
use std::sync::Arc;

use ring::hmac;

/// The keys of session cookies, at least one. Clones share them.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKeys(Arc<[Box<[u8]>]>);

/// The reason why a text is not a list of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SessionKeysError {
    #[error("it has no key")]
    Empty,
    #[error("it has more than {} keys", SessionKeys::MAX)]
    TooMany,
    #[error("line {line} has a character that is not a hex digit")]
    NotHex { line: usize },
    #[error("line {line} has an odd number of hex digits, and a byte has two")]
    HalfByte { line: usize },
    #[error(
        "line {line} has a key of {bits} bits; a key has {} to {} bits ({} to {} hex digits)",
        MIN_BYTES * 8,
        MAX_BYTES * 8,
        MIN_BYTES * 2,
        MAX_BYTES * 2
    )]
    Length { line: usize, bits: usize },
}

/// The minimum length of a key in bytes: a key under 128 bits is easier to guess than the cookie.
const MIN_BYTES: usize = 16;
/// The maximum length of a key in bytes: the block of SHA-256, since a longer key adds nothing.
const MAX_BYTES: usize = 64;

// === impl SessionKeys ===

impl SessionKeys {
    /// The maximum number of keys in a list. A rotation needs two.
    pub const MAX: usize = 16;

    /// Parses a list with one key in hexadecimal per line. Blank lines and the text after a `#` are skipped.
    ///
    /// # Errors
    /// If a line is not a key, or if there is no key or too many.
    pub fn parse(text: &[u8]) -> Result<Self, SessionKeysError> {
        let mut keys: Vec<Box<[u8]>> = Vec::new();
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
            if line.is_empty() {
                continue;
            }
            let key = key(line, index + 1)?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        match keys.len() {
            0 => Err(SessionKeysError::Empty),
            count if count > Self::MAX => Err(SessionKeysError::TooMany),
            _ => Ok(Self(keys.into())),
        }
    }

    /// Returns the number of keys. A key that is listed twice counts once.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the keys for HMAC-SHA-256, in the order of the list.
    pub(super) fn signers(&self) -> impl Iterator<Item = hmac::Key> {
        self.0.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key))
    }
}

fn key(digits: &[u8], line: usize) -> Result<Box<[u8]>, SessionKeysError> {
    let values: Option<Vec<u8>> = digits.iter().map(|digit| nibble(*digit)).collect();
    let values = values.ok_or(SessionKeysError::NotHex { line })?;
    if values.len() % 2 == 1 {
        return Err(SessionKeysError::HalfByte { line });
    }
    let bytes: Box<[u8]> = values.as_chunks().0.iter().map(|[high, low]| high << 4 | low).collect();
    match bytes.len() {
        MIN_BYTES..=MAX_BYTES => Ok(bytes),
        other => Err(SessionKeysError::Length { line, bits: other * 8 }),
    }
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionKeys({} hidden)", self.count())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    const ONE: &str = "000102030405060708090a0b0c0d0e0f";
    const TWO: &str = "F0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF";

    fn parse(text: &str) -> Result<SessionKeys, SessionKeysError> {
        SessionKeys::parse(text.as_bytes())
    }

    #[test]
    fn keys_stand_in_lines_with_comments_between_them() {
        let bare = parse(&format!("{ONE}\n{TWO}")).unwrap();
        assert_eq!(bare.count(), 2);
        let dressed = format!("# new\r\n\r\n  {ONE}  # signs\r\n\t\n{}\n# end", TWO.to_lowercase());
        assert_eq!(parse(&dressed).unwrap(), bare);
    }

    #[test]
    fn the_order_of_keys_matters_and_duplicates_do_not() {
        assert_ne!(parse(&format!("{ONE}\n{TWO}")), parse(&format!("{TWO}\n{ONE}")));
        assert_eq!(parse(&format!("{ONE}\n{TWO}\n{ONE}")), parse(&format!("{ONE}\n{TWO}")));
    }

    #[test]
    fn an_invalid_list_is_rejected_with_the_number_of_its_line() {
        use SessionKeysError::{Empty, HalfByte, Length, NotHex, TooMany};
        let many: String = (0..=SessionKeys::MAX).map(|key| format!("{key:032x}\n")).collect();
        for (text, why) in [
            (String::new(), Empty),
            ("\n# nothing\n".to_owned(), Empty),
            (format!("{ONE}\n{ONE} {TWO}"), NotHex { line: 2 }),
            (format!("#\n{}g", &ONE[1..]), NotHex { line: 2 }),
            (format!("key: {ONE}"), NotHex { line: 1 }),
            (format!("{ONE}0"), HalfByte { line: 1 }),
            (ONE[2..].to_owned(), Length { line: 1, bits: 120 }),
            ("ab".repeat(65), Length { line: 1, bits: 520 }),
            (many, TooMany),
        ] {
            assert_eq!(parse(&text), Err(why), "{text}");
        }
        assert!(parse(&"ab".repeat(64)).is_ok());
    }

    #[test]
    fn no_key_is_printed() {
        let keys = parse(ONE).unwrap();
        assert_eq!(format!("{keys:?}"), "SessionKeys(1 hidden)");
        let error = parse(&format!("{ONE}\nsecret")).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(SessionKeys::parse(&text).map_or(true, |keys| keys.count() > 0));
        }
    }
}
