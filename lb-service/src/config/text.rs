//! Values that are written as one text and parsed while they are read.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A type that is parsed from one text.
pub trait FromText: Sized {
    /// The expected value, for messages: `a duration such as 250ms or 5s`.
    const EXPECTED: &'static str;

    /// Whether a value that YAML reads as a number is passed to [`from_text`](Self::from_text), which can give a better
    /// message than a type mismatch.
    const READS_NUMBERS: bool = false;

    /// Parses the text.
    ///
    /// # Errors
    ///
    /// The first line states the problem. A second line, if there is one, is the hint.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Returns the JSON Schema of the text, which has the type `string`.
    fn schema() -> Schema;
}

/// A value together with its original text. Two of them are equal if their texts are.
#[derive(Clone)]
pub struct Text<T> {
    written: String,
    value: T,
}

// === impl Text ===

impl<T: FromText> Text<T> {
    /// Parses a text.
    ///
    /// # Errors
    ///
    /// Returns the message of [`FromText::from_text`].
    pub fn new(written: &str) -> Result<Self, String> {
        Ok(Self { written: written.to_owned(), value: T::from_text(written)? })
    }

    /// Parses a default in the code.
    pub(super) fn literal(written: &'static str) -> Self {
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

impl<T> PartialOrd for Text<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Text<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
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

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor(PhantomData))
    }
}

impl<T: FromText> JsonSchema for Text<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::EXPECTED.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        T::schema()
    }
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: FromText> Visitor<'_> for TextVisitor<T> {
    type Value = Text<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<T>, E> {
        Text::new(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Text<T>, E> {
        if T::READS_NUMBERS {
            return self.visit_str(&number.to_string());
        }
        Err(E::invalid_type(de::Unexpected::Signed(number), &self))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Text<T>, E> {
        if T::READS_NUMBERS {
            return self.visit_str(&number.to_string());
        }
        Err(E::invalid_type(de::Unexpected::Float(number), &self))
    }
}
