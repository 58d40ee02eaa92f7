//! Classes of bytes (RFC 9110, section 5.6.2; RFC 9112, sections 2 and 3), and numbers.

/// The bytes of a token: `!#$%&'*+-.^_`|~`, digits and letters.
const TOKEN: u8 = 1;
/// The bytes of a field value: tab, space, visible ASCII and bytes above ASCII.
const VALUE: u8 = 2;
/// The bytes of a target: visible ASCII except `#`.
const TARGET: u8 = 4;
/// The bytes of a registered name, besides escapes (RFC 3986, section 3.2.2). The comma is missing, because it
/// separates the members of a list.
const REG_NAME: u8 = 8;

static CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "the index is below 256")]
const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut index = 0;
    while index < 256 {
        classes[index] = class(index as u8);
        index += 1;
    }
    classes
}

const fn class(byte: u8) -> u8 {
    let token = byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        );
    let value = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    let target = byte.is_ascii_graphic() && byte != b'#';
    let reg_name = byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'='
        );
    (token as u8) * TOKEN + (value as u8) * VALUE + (target as u8) * TARGET + (reg_name as u8) * REG_NAME
}

#[expect(clippy::indexing_slicing, reason = "there is a class for each byte")]
fn is_of(byte: u8, class: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

/// Returns whether the text is a token.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && token_length(text) == text.len()
}

/// Returns the number of bytes of a token at the beginning of the text.
pub(super) fn token_length(text: &[u8]) -> usize {
    text.iter().position(|byte| !is_of(*byte, TOKEN)).unwrap_or(text.len())
}

/// Returns whether all bytes may stand in the value of a field.
pub(super) fn is_value(text: &[u8]) -> bool {
    value_length(text) == text.len()
}

/// Returns the number of bytes at the beginning of the text that may stand in the value of a field.
pub(super) fn value_length(text: &[u8]) -> usize {
    let mut rest = text;
    loop {
        // Values are the longest part of a head, so most of their bytes are looked at eight at a time.
        let words = rest.as_chunks().0.iter().take_while(|word| !may_have_control(**word));
        rest = rest.get(8 * words.count()..).unwrap_or_default();
        let (word, after) = rest.split_at(rest.len().min(8));
        match word.iter().position(|byte| !is_of(*byte, VALUE)) {
            Some(place) => return text.len() - rest.len() + place,
            None if after.is_empty() => return text.len(),
            None => rest = after,
        }
    }
}

/// Returns whether one of eight bytes is a tab, another control byte or DEL (Mycroft's test for a small byte).
fn may_have_control(bytes: [u8; 8]) -> bool {
    const ONES: u64 = u64::MAX / 0xff;
    let word = u64::from_le_bytes(bytes);
    let below_space = word.wrapping_sub(ONES * 0x20) & !word;
    let is_del = (word ^ (ONES * 0x7f)).wrapping_sub(ONES) & !(word ^ (ONES * 0x7f));
    (below_space | is_del) & (ONES * 0x80) != 0
}

/// Returns whether all bytes may stand in a target.
pub(super) fn is_target(text: &[u8]) -> bool {
    text.iter().all(|byte| is_of(*byte, TARGET))
}

/// Returns whether the byte may stand in a registered name.
pub(super) fn is_reg_name(byte: u8) -> bool {
    is_of(byte, REG_NAME)
}

/// Returns whether each `%` is followed by two hexadecimal digits that are not both zero.
pub(super) fn has_valid_escapes(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some((_, escape)) = split_once(rest, b'%') {
        let Some((digits, after)) = escape.split_at_checked(2) else { return false };
        if !digits.iter().all(u8::is_ascii_hexdigit) || digits == b"00" {
            return false;
        }
        rest = after;
    }
    true
}

/// Splits a text at the first byte of this value, which is in neither part.
pub(super) fn split_once(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let (before, rest) = text.split_at_checked(memchr::memchr(byte, text)?)?;
    Some((before, rest.get(1..)?))
}

/// Removes spaces and tabs at both ends.
#[expect(clippy::indexing_slicing, reason = "the blanks at the end are counted behind those at the start")]
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let is_blank = |byte: &&u8| matches!(byte, b' ' | b'\t');
    let start = text.iter().take_while(is_blank).count();
    let end = text[start..].iter().rev().take_while(is_blank).count();
    &text[start..text.len() - end]
}

/// Parses 1 to 19 decimal digits up to 2^63 - 1. `str::parse` would accept a sign.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if !(1..=19).contains(&text.len()) || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = text.iter().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(number).filter(|number| *number <= i64::MAX as u64)
}

/// Returns the members of a comma-separated list, without the empty ones (RFC 9110, section 5.6.1.2).
pub(crate) fn members(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(trim).filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_of_a_value_is_valid_at_each_place() {
        for byte in 0..=u8::MAX {
            for place in 0..17 {
                let mut text = *b"seventeen letters";
                text[place] = byte;
                let length = if is_of(byte, VALUE) { text.len() } else { place };
                assert_eq!(value_length(&text), length, "{byte} at {place}");
            }
        }
    }

    #[test]
    fn a_token_has_no_separator_and_no_control_byte() {
        assert!(is_token(b"X-Request_Id.1"));
        for text in [&b""[..], b"a b", b"a:", b"a\t", b"a,b", b"\xc3\xa9", b"a\0", b"(a)"] {
            assert!(!is_token(text), "{text:?}");
        }
    }

    /// Asserts that exactly the letters, the digits and these bytes are in a class.
    #[track_caller]
    fn assert_class(is_of: impl Fn(u8) -> bool, others: &[u8]) {
        for byte in 0..=u8::MAX {
            let expected = byte.is_ascii_alphanumeric() || others.contains(&byte);
            assert_eq!(is_of(byte), expected, "{:?}", char::from(byte));
        }
    }

    #[test]
    fn each_byte_is_in_the_classes_that_the_rfcs_say() {
        assert_class(|byte| is_token(&[byte]), b"!#$%&'*+-.^_`|~");
        assert_class(|byte| is_target(&[byte]), b"!\"$%&'()*+,-./:;<=>?@[\\]^_`{|}~");
        assert_class(is_reg_name, b"-._~!$&'()*+;=");
    }

    #[test]
    fn a_value_has_no_control_byte_except_a_tab() {
        assert!(is_value(b"a\tb \xc3\xa9~"));
        for byte in (0..=0x1f).chain([0x7f]).filter(|byte| *byte != b'\t') {
            assert!(!is_value(&[b'a', byte]), "{byte:#x}");
        }
    }

    #[test]
    fn a_target_is_visible_ascii_without_a_fragment() {
        assert!(is_target(b"/a?b={c}|^[]`\\"));
        for text in [&b"/#a"[..], b"/ a", b"/\x7f", b"/\xc3\xa9", b"/\0"] {
            assert!(!is_target(text), "{text:?}");
        }
    }

    #[test]
    fn an_escape_has_two_digits_and_is_not_zero() {
        assert!(has_valid_escapes(b"/a%2Fb%c3%A9") && has_valid_escapes(b""));
        for text in [&b"%"[..], b"%2", b"%2x", b"a%00b", b"%%41"] {
            assert!(!has_valid_escapes(text), "{text:?}");
        }
    }

    #[test]
    fn a_number_has_digits_only() {
        assert_eq!(decimal(b"007"), Some(7));
        assert_eq!(decimal(b"9223372036854775807"), Some(i64::MAX as u64));
        for text in [&b""[..], b"+1", b"-1", b"1 ", b"0x1", b"9223372036854775808", b"00000000000000000001"] {
            assert_eq!(decimal(text), None, "{text:?}");
        }
    }

    #[test]
    fn empty_members_of_a_list_are_ignored() {
        assert_eq!(members(b", a ,,b\t,").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(members(b" ,\t").count(), 0);
    }
}
