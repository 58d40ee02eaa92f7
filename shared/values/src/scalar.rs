//! The trait of a value that is written as one scalar, and the visitor that reads all of them.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{Schema, json_schema};
use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// A value that is written as one scalar: a text, a number or a boolean.
pub trait Scalar: Sized {
    /// Whether a number is parsed like a text with its digits. The message about a duration without a unit or an
    /// address without a host is better than one about the type.
    const READS_NUMBERS: bool = false;

    /// Returns the description of a valid value in messages: `a duration such as 250ms, 5s, 1m or 1h`.
    fn expected() -> Cow<'static, str>;

    /// Parses a text.
    ///
    /// # Errors
    ///
    /// Returns the reason why the text is rejected.
    fn from_text(text: &str) -> Result<Self, Rejection>;

    /// Parses an integer.
    ///
    /// # Errors
    ///
    /// Returns the reason why the integer is rejected: by default, because of its type.
    fn from_integer(number: i64) -> Result<Self, Rejection> {
        of_digits(&number.to_string())
    }

    /// Parses a number with a fraction or an exponent.
    ///
    /// # Errors
    ///
    /// Returns the reason why the number is rejected: by default, because of its type.
    fn from_float(number: f64) -> Result<Self, Rejection> {
        of_digits(&format!("{number:?}"))
    }

    /// Parses a boolean.
    ///
    /// # Errors
    ///
    /// Returns the reason why the boolean is rejected: by default, because of its type.
    fn from_bool(_: bool) -> Result<Self, Rejection> {
        Err(Rejection::TYPE)
    }

    /// Returns the JSON Schema of the value.
    fn schema() -> Schema;

    /// Returns the message for a text that is not valid. A hint can follow on a second line.
    fn unexpected(found: &str) -> String {
        format!("expected {}, found {found:?}", Self::expected())
    }
}

/// A value that is only written as a text. Its constants describe it, and it implements [`Scalar`].
pub trait TextScalar: Sized {
    /// [`Scalar::READS_NUMBERS`]
    const READS_NUMBERS: bool = false;

    /// The description of a valid value in messages: `a path that begins with / such as /v1`.
    const EXPECTED: &'static str;

    /// The regular expression for the schema. An empty one stands for any text that is not empty.
    const PATTERN: &'static str = "";

    /// Parses a text.
    ///
    /// # Errors
    ///
    /// Returns the reason why the text is rejected.
    fn parse(text: &str) -> Result<Self, Rejection>;

    /// Returns the JSON Schema of the value.
    fn text_schema() -> Schema {
        match Self::PATTERN {
            "" => json_schema!({"type": "string", "minLength": 1}),
            pattern => json_schema!({"type": "string", "pattern": pattern}),
        }
    }
}

impl<T: TextScalar> Scalar for T {
    const READS_NUMBERS: bool = <T as TextScalar>::READS_NUMBERS;

    fn expected() -> Cow<'static, str> {
        T::EXPECTED.into()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        T::parse(text)
    }

    fn schema() -> Schema {
        T::text_schema()
    }
}

fn of_digits<T: Scalar>(digits: &str) -> Result<T, Rejection> {
    if T::READS_NUMBERS { T::from_text(digits) } else { Err(Rejection::TYPE) }
}

/// The reason why a scalar is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The value has another type than expected.
    Type {
        /// The hint. `None` means that it is not clear what to write.
        hint: Option<String>,
    },
    /// The text is not one of the accepted words.
    Word {
        /// The text.
        found: String,
        /// The hint.
        hint: String,
    },
    /// The value has the right type, but it is not valid. This message can have a hint on a second line.
    Value(String),
}

/// Reads one scalar. Fields can use it as `deserialize_with`.
///
/// # Errors
///
/// A value of the wrong type is [`invalid_type`](Error::invalid_type), an unknown word is
/// [`invalid_value`](Error::invalid_value) with [`Unexpected::Other`], and any other is [`custom`](Error::custom).
/// The expected value of the first two and the message of the third can have a hint on a second line.
pub fn read<'de, D: Deserializer<'de>, T: Scalar>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(ScalarVisitor(PhantomData))
}

/// Implements `Deserialize` and `JsonSchema` for a type that implements [`Scalar`]. The schema is inlined, so its name
/// cannot collide with that of another crate.
#[macro_export]
macro_rules! scalar {
    ($type:ident $(<$(const $parameter:ident: $of:ty),+>)?) => {
        impl<'de $(, $(const $parameter: $of),+)?> ::serde::Deserialize<'de> for $type $(<$($parameter),+>)? {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::scalar::read(deserializer)
            }
        }

        impl $(<$(const $parameter: $of),+>)? ::schemars::JsonSchema for $type $(<$($parameter),+>)? {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                <Self as $crate::Scalar>::expected()
            }

            fn json_schema(_: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                <Self as $crate::Scalar>::schema()
            }
        }
    };
}

struct ScalarVisitor<T>(PhantomData<T>);

/// An expected value with the hint on a second line.
struct Hinted<'a>(&'a str, Option<&'a str>);

// === impl Rejection ===

impl Rejection {
    /// The value has another type, and no hint applies.
    pub const TYPE: Self = Self::Type { hint: None };

    /// Converts the rejection of `found` into an error of serde, as [`read`] describes it.
    pub fn into_error<E: Error>(self, found: Unexpected<'_>, expected: &str) -> E {
        match self {
            Self::Type { hint } => E::invalid_type(found, &Hinted(expected, hint.as_deref()).text().as_str()),
            Self::Word { found, hint } => {
                E::invalid_value(Unexpected::Other(&found), &Hinted(expected, Some(&hint)).text().as_str())
            }
            Self::Value(message) => E::custom(message),
        }
    }
}

impl From<String> for Rejection {
    fn from(message: String) -> Self {
        Self::Value(message)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type { hint } => {
                f.write_str(&Hinted("the value has the wrong type", hint.as_deref()).text())
            }
            Self::Word { found, hint } => write!(f, "unknown value `{found}`\n{hint}"),
            Self::Value(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Rejection {}

impl Hinted<'_> {
    fn text(&self) -> String {
        let Self(text, hint) = self;
        hint.map_or_else(|| (*text).to_owned(), |hint| format!("{text}\n{hint}"))
    }
}

// === impl ScalarVisitor ===

impl<T: Scalar> ScalarVisitor<T> {
    fn finish<E: Error>(read: Result<T, Rejection>, found: Unexpected<'_>) -> Result<T, E> {
        read.map_err(|rejection| rejection.into_error(found, &T::expected()))
    }
}

impl<T: Scalar> Visitor<'_> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&T::expected())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Self::finish(T::from_text(text), Unexpected::Str(text))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        Self::finish(T::from_integer(number), Unexpected::Signed(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        match i64::try_from(number) {
            Ok(number) => self.visit_i64(number),
            Err(_) => Err(E::custom(format!("expected {}, found {number}", T::expected()))),
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        Self::finish(T::from_float(number), Unexpected::Float(number))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<T, E> {
        Self::finish(T::from_bool(value), Unexpected::Bool(value))
    }
}
