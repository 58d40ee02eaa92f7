//! Numbers within bounds. A number outside is rejected while it is read, with a message that names the bounds.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number<const MIN: u32, const MAX: u32>(u32);

/// A whole percentage from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent<const MIN: u32, const MAX: u32>(u32);

/// A factor above 1 and at most 1000.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(f64);

/// Implements a type of whole numbers with bounds and a noun for messages.
macro_rules! whole {
    ($name:ident, $noun:literal) => {
        impl<const MIN: u32, const MAX: u32> $name<MIN, MAX> {
            /// Returns the nearest number within the bounds.
            pub fn near(number: u32) -> Self {
                Self(number.clamp(MIN, MAX))
            }

            /// Returns the number.
            pub fn get(self) -> u32 {
                self.0
            }
        }

        impl<const MIN: u32, const MAX: u32> Serialize for $name<MIN, MAX> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u32(self.0)
            }
        }

        impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for $name<MIN, MAX> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Whole { noun: $noun, min: MIN, max: MAX }).map(Self)
            }
        }

        impl<const MIN: u32, const MAX: u32> JsonSchema for $name<MIN, MAX> {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                format!("{} from {MIN} to {MAX}", $noun).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "integer", "minimum": MIN, "maximum": MAX})
            }
        }
    };
}

whole!(Number, "a whole number");
whole!(Percent, "a percentage");

struct Whole {
    noun: &'static str,
    min: u32,
    max: u32,
}

struct RatioVisitor;

// === impl Whole ===

impl Visitor<'_> for Whole {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { noun, min, max } = self;
        write!(f, "{noun} from {min} to {max}")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u32, E> {
        let within = u32::try_from(number).ok().filter(|number| (self.min..=self.max).contains(number));
        within.ok_or_else(|| E::custom(format!("expected {}, found {number}", &self as &dyn de::Expected)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u32, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

// === impl Ratio ===

impl Ratio {
    /// Returns the number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl From<u16> for Ratio {
    /// Returns the nearest whole number within the bounds.
    fn from(number: u16) -> Self {
        Self(f64::from(number.clamp(2, 1000)))
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Writes 5 rather than 5.0, as people do.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 1000")]
        let whole = self.0 as u16;
        match f64::from(whole).total_cmp(&self.0) {
            std::cmp::Ordering::Equal => serializer.serialize_u16(whole),
            _ => serializer.serialize_f64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RatioVisitor)
    }
}

impl JsonSchema for Ratio {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Ratio".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "exclusiveMinimum": 1, "maximum": 1000})
    }
}

impl Visitor<'_> for RatioVisitor {
    type Value = Ratio;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number above 1, at most 1000")
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Ratio, E> {
        if number > 1.0 && number <= 1000.0 {
            return Ok(Ratio(number));
        }
        Err(E::custom(format!("expected {}, found {number}", &self as &dyn de::Expected)))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Ratio, E> {
        // A number that does not fit into an i32 is outside the bounds in any case.
        let near = i32::try_from(number).unwrap_or(if number < 0 { i32::MIN } else { i32::MAX });
        self.visit_f64(f64::from(near))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Ratio, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: de::DeserializeOwned>(text: &str) -> Result<T, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn whole_numbers_outside_their_bounds_are_refused() {
        type Few = Number<1, 10>;
        for (text, number) in [("1", 1), ("10", 10)] {
            assert_eq!(read::<Few>(text).map(Number::get), Ok(number));
        }
        for text in ["0", "11", "-1", "18446744073709551615", "1.5", "\"1\"", "null"] {
            let message = read::<Few>(text).expect_err("refused");
            assert!(message.contains("a whole number from 1 to 10"), "{text}: {message}");
        }
        assert_eq!((Few::near(0).get(), Few::near(5).get(), Few::near(99).get()), (1, 5, 10));
    }

    #[test]
    fn messages_call_a_percentage_a_percentage() {
        assert_eq!(read::<Percent<0, 100>>("100").map(Percent::get), Ok(100));
        let message = read::<Percent<0, 100>>("101").expect_err("refused");
        assert!(message.contains("a percentage from 0 to 100, found 101"), "{message}");
    }

    #[test]
    fn ratios_are_above_one_and_read_back_unchanged() {
        for text in ["5", "1.5", "1000", "1.0001"] {
            let ratio: Ratio = read(text).expect("it is within the bounds");
            assert_eq!(serde_json::to_string(&ratio).expect("it can be written"), text);
        }
        for text in ["1", "1.0", "0", "-5", "1001", "1e300", "18446744073709551615"] {
            let message = read::<Ratio>(text).expect_err("refused");
            assert!(message.contains("a number above 1, at most 1000, found"), "{text}: {message}");
        }
    }
}
