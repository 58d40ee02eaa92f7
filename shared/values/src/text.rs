//! Values that keep what was written, and names.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::scalar::{self, Rejection, Scalar, TextScalar};

/// A value together with its original text. Two of them are equal if their texts are.
#[derive(Clone)]
pub struct Text<T> {
    written: String,
    value: T,
}

/// A name, such as that of a pool or a listener: 1 to 64 letters, digits and `.`, `_`, `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(Box<str>);

// === impl Text ===

impl<T: Scalar> Text<T> {
    /// Parses a text.
    ///
    /// # Errors
    ///
    /// Returns the rejection of [`Scalar::from_text`].
    pub fn new(written: &str) -> Result<Self, Rejection> {
        Ok(Self { written: written.to_owned(), value: T::from_text(written)? })
    }

    /// Parses a default in the code.
    ///
    /// # Panics
    ///
    /// Panics if the default is not valid.
    pub fn literal(written: &str) -> Self {
        Self::new(written).expect("a default is valid")
    }
}

impl<T> Text<T> {
    /// Returns the value.
    pub fn get(&self) -> &T {
        &self.value
    }

    /// Returns the original text.
    pub fn written(&self) -> &str {
        &self.written
    }
}

impl<T> PartialEq for Text<T> {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl<T> Eq for Text<T> {}

/// Only names have an order, because the order of texts is not that of durations.
impl<T: AsRef<str>> PartialOrd for Text<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: AsRef<str>> Ord for Text<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.written.cmp(&other.written)
    }
}

impl<T> fmt::Debug for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.written.fmt(f)
    }
}

impl<T> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl<T> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

impl<T: Scalar> Scalar for Text<T> {
    const READS_NUMBERS: bool = T::READS_NUMBERS;

    fn expected() -> Cow<'static, str> {
        T::expected()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        Self::new(text)
    }

    fn from_integer(number: i64) -> Result<Self, Rejection> {
        Ok(Self { value: T::from_integer(number)?, written: number.to_string() })
    }

    fn from_float(number: f64) -> Result<Self, Rejection> {
        Ok(Self { value: T::from_float(number)?, written: format!("{number:?}") })
    }

    fn from_bool(value: bool) -> Result<Self, Rejection> {
        Ok(Self { value: T::from_bool(value)?, written: value.to_string() })
    }

    fn schema() -> Schema {
        T::schema()
    }
}

impl<'de, T: Scalar> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar::read(deserializer)
    }
}

impl<T: Scalar> JsonSchema for Text<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::expected()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

// === impl Name ===

impl Name {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TextScalar for Name {
    const EXPECTED: &'static str = "a name of letters, digits, `.`, `_` and `-`";
    const PATTERN: &'static str = "^[A-Za-z0-9._-]{1,64}$";

    fn parse(text: &str) -> Result<Self, Rejection> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() || text.len() > 64 || !text.chars().all(allowed) {
            let hint = "use 1 to 64 letters, digits, `.`, `_` and `-`";
            return Err(format!("{text:?} cannot be a name\n{hint}").into());
        }
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{accepts, rejection};

    #[test]
    fn names_are_short_and_plain() {
        accepts::<Name>(&["web", "web-1.eu_west"]);
        for text in ["", "a b", "a/b", "ä"] {
            assert!(rejection::<Name>(text).contains("cannot be a name"), "{text}");
        }
        assert!(rejection::<Name>(&"a".repeat(65)).contains("cannot be a name"));
    }
}
