//! Ranges of status codes.

use std::borrow::Cow;
use std::fmt;

use schemars::{Schema, json_schema};

use crate::scalar::{Rejection, Scalar};

/// An inclusive range of status codes, written `200-399` or `204`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    first: u16,
    last: u16,
}

// === impl StatusRange ===

impl StatusRange {
    /// The codes of success and redirection: 200 to 399.
    pub const SUCCESS_OR_REDIRECT: Self = Self { first: 200, last: 399 };

    /// Returns `None` unless `100 <= first <= last <= 599`.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (100 <= first && first <= last && last <= 599).then_some(Self { first, last })
    }

    /// Returns whether `status` lies in the range.
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

/// Returns the hint for a class of codes such as `2xx`.
fn class(text: &str) -> Option<String> {
    let class = text.to_lowercase().strip_suffix("xx")?.parse::<u16>().ok();
    class.filter(|class| (1..=5).contains(class)).map(|class| format!("\nwrite \"{class}00-{class}99\""))
}

impl Scalar for StatusRange {
    fn expected() -> Cow<'static, str> {
        "a status code such as 204 or a range such as 200-399, within 100 to 599".into()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        // `u16::from_str` takes a leading `+`; a status code has none.
        let code = |text: &str| (text.len() == 3).then(|| text.parse().ok()).flatten();
        code(first).zip(code(last)).and_then(|(first, last)| Self::new(first, last)).ok_or_else(|| {
            let hint = class(text).unwrap_or_default();
            format!("expected {}, found {text:?}{hint}", Self::expected()).into()
        })
    }

    fn from_integer(number: i64) -> Result<Self, Rejection> {
        let code = u16::try_from(number).ok().and_then(|code| Self::new(code, code));
        code.ok_or_else(|| format!("expected {}, found {number}", Self::expected()).into())
    }

    fn schema() -> Schema {
        json_schema!({
            "anyOf": [
                {"type": "string", "pattern": "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$"},
                {"type": "integer", "minimum": 100, "maximum": 599}
            ]
        })
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{accepts, rejection};

    #[test]
    fn a_range_has_one_or_two_codes_of_three_digits() {
        accepts::<StatusRange>(&["200-399", "204", "100-599"]);
        for text in ["399-200", "600", "+99", "20", "0200", "200-", ""] {
            assert!(rejection::<StatusRange>(text).contains("a status code such as 204"), "{text}");
        }
        assert!(rejection::<StatusRange>("2xx").ends_with("write \"200-299\""));
        assert!(!rejection::<StatusRange>("6xx").contains("write"));
        assert_eq!(StatusRange::from_integer(204), Ok(StatusRange { first: 204, last: 204 }));
        assert!(StatusRange::from_integer(600).is_err());
    }

    #[test]
    fn a_range_contains_its_ends() {
        let range = StatusRange::SUCCESS_OR_REDIRECT;
        assert_eq!([199, 200, 399, 400].map(|status| range.contains(status)), [false, true, true, false]);
        assert_eq!(range.to_string(), "200-399");
    }
}
