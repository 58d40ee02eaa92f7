//! Reads one YAML scalar into a type.
//!
//! Every leaf value of the section goes through [`read`], so each error quotes what was found and says what was
//! expected, whether the value is a text (`5s`) or a number (`5`).

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, Visitor};

/// A value that is written as one scalar.
pub(super) trait FromScalar: Sized {
    /// What an error says was expected: `a duration such as 250ms or 5s`.
    const EXPECTED: &'static str;

    /// Reads the value as text. The error says what is wrong with it.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Reads the value as an integer; by default an error.
    fn from_integer(number: i64) -> Result<Self, String> {
        Err(format!("expected {}, found {number}", Self::EXPECTED))
    }

    /// Reads the value as a number that is not an integer; by default an error.
    fn from_float(number: f64) -> Result<Self, String> {
        Err(format!("expected {}, found {number}", Self::EXPECTED))
    }
}

/// Reads one scalar, text or number.
pub(super) fn read<'de, D: Deserializer<'de>, T: FromScalar>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(ScalarVisitor(PhantomData))
}

struct ScalarVisitor<T>(PhantomData<T>);

impl<T: FromScalar> Visitor<'_> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::from_text(text).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        T::from_integer(number).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        let number = i64::try_from(number)
            .map_err(|_| E::custom(format!("expected {}, found {number}", T::EXPECTED)))?;
        self.visit_i64(number)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        T::from_float(number).map_err(E::custom)
    }
}
