//! Numbers within bounds. A message about a number outside them names the bounds.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;

use schemars::{Schema, json_schema};
use serde::{Serialize, Serializer};

use crate::scalar::{Rejection, Scalar};

/// The largest value of a key that counts something.
pub const MAX_COUNT: u32 = 1_000_000;

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number<const MIN: u32, const MAX: u32>(u32);

/// A whole percentage from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent<const MIN: u32, const MAX: u32>(u32);

/// A factor above 1 and at most 1000.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(f64);

/// A port from 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port(NonZeroU16);

/// Implements a type of whole numbers with bounds and a noun for messages. `$fraction` returns the hint for a number
/// with a fraction, given the number and the bounds.
macro_rules! whole {
    ($name:ident, $noun:literal, $fraction:expr) => {
        impl<const MIN: u32, const MAX: u32> $name<MIN, MAX> {
            /// Returns the nearest number within the bounds.
            pub const fn near(number: u32) -> Self {
                match number {
                    low if low < MIN => Self(MIN),
                    high if high > MAX => Self(MAX),
                    number => Self(number),
                }
            }

            /// Returns the number.
            pub const fn get(self) -> u32 {
                self.0
            }

            /// Returns the number as a count of things in memory.
            pub fn as_usize(self) -> usize {
                usize::try_from(self.0).unwrap_or(usize::MAX)
            }
        }

        impl<const MIN: u32, const MAX: u32> Serialize for $name<MIN, MAX> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u32(self.0)
            }
        }

        impl<const MIN: u32, const MAX: u32> Scalar for $name<MIN, MAX> {
            fn expected() -> Cow<'static, str> {
                format!("{} from {MIN} to {MAX}", $noun).into()
            }

            fn from_text(text: &str) -> Result<Self, Rejection> {
                let within = |number: f64| is_whole_in(number, &(MIN..=MAX));
                Err(Rejection::Type { hint: hint(text, within) })
            }

            fn from_integer(number: i64) -> Result<Self, Rejection> {
                let within = u32::try_from(number).ok().filter(|number| (MIN..=MAX).contains(number));
                within.map(Self).ok_or_else(|| out_of_bounds::<Self>(number))
            }

            fn from_float(number: f64) -> Result<Self, Rejection> {
                let whole = is_whole_in(number, &(MIN..=MAX)).then(|| format!("write {number}"));
                Err(Rejection::Type { hint: whole.or_else(|| $fraction(number, MIN..=MAX)) })
            }

            fn schema() -> Schema {
                json_schema!({"type": "integer", "minimum": MIN, "maximum": MAX})
            }
        }

        crate::scalar!($name<const MIN: u32, const MAX: u32>);
    };
}

whole!(Number, "a whole number", |_, _: RangeInclusive<u32>| None);
whole!(Percent, "a percentage", of_share);

impl<const MIN: u32, const MAX: u32> Percent<MIN, MAX> {
    /// Returns the percentage as a fraction: 0.5 for 50.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

/// Returns the hint for a share such as 0.2 in place of a percentage.
fn of_share(share: f64, bounds: RangeInclusive<u32>) -> Option<String> {
    let percent = (share * 100.0).round();
    let is_share = (0.01..10.0).contains(&share) && is_whole_in(percent, &bounds);
    is_share.then(|| format!("write {percent}; 100 stands for the whole"))
}

fn is_whole_in(number: f64, bounds: &RangeInclusive<u32>) -> bool {
    let within = f64::from(*bounds.start())..=f64::from(*bounds.end());
    number.fract() == 0.0 && within.contains(&number)
}

fn out_of_bounds<T: Scalar>(number: impl std::fmt::Display) -> Rejection {
    format!("expected {}, found {number}", T::expected()).into()
}

/// Returns the hint for a text that has a number in it, if the number is accepted.
pub fn hint(text: &str, accepts: impl Fn(f64) -> bool) -> Option<String> {
    let accepted = |number: &str| number.parse().ok().filter(|number: &f64| accepts(*number)).map(|_| ());
    if let Some(thousands) = text.strip_suffix(['k', 'K']) {
        thousands.parse::<u32>().ok()?;
        return accepted(&format!("{thousands}000")).map(|()| format!("write {thousands}000"));
    }
    let (number, what) = match (text.strip_suffix('%'), text.strip_suffix([';', ','])) {
        (Some(number), _) => (number.trim_end(), "the percent sign"),
        (_, Some(number)) => (number.trim_end(), "the separator"),
        (None, None) => (text, "quotes"),
    };
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    accepted(number).filter(|()| is_plain).map(|()| format!("write {number}, without {what}"))
}

// === impl Ratio ===

impl Ratio {
    /// Returns the number.
    pub fn get(self) -> f64 {
        self.0
    }

    fn of(number: f64) -> Option<Self> {
        (number > 1.0 && number <= 1000.0).then_some(Self(number))
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
            Ordering::Equal => serializer.serialize_u16(whole),
            _ => serializer.serialize_f64(self.0),
        }
    }
}

impl Scalar for Ratio {
    fn expected() -> Cow<'static, str> {
        "a number above 1, at most 1000".into()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        Err(Rejection::Type { hint: hint(text, |number| Self::of(number).is_some()) })
    }

    fn from_integer(number: i64) -> Result<Self, Rejection> {
        let whole = i32::try_from(number).ok().and_then(|number| Self::of(number.into()));
        whole.ok_or_else(|| out_of_bounds::<Self>(number))
    }

    fn from_float(number: f64) -> Result<Self, Rejection> {
        Self::of(number).ok_or_else(|| out_of_bounds::<Self>(format!("{number:?}")))
    }

    fn schema() -> Schema {
        json_schema!({"type": "number", "exclusiveMinimum": 1, "maximum": 1000})
    }
}

crate::scalar!(Ratio);

// === impl Port ===

impl Port {
    /// Returns the port.
    pub fn get(self) -> NonZeroU16 {
        self.0
    }
}

impl Serialize for Port {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl Scalar for Port {
    fn expected() -> Cow<'static, str> {
        "a port from 1 to 65535".into()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        Err(Rejection::Type { hint: hint(text, |number| is_whole_in(number, &(1..=65535))) })
    }

    fn from_integer(number: i64) -> Result<Self, Rejection> {
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        port.map(Self).ok_or_else(|| out_of_bounds::<Self>(number))
    }

    fn schema() -> Schema {
        json_schema!({"type": "integer", "minimum": 1, "maximum": 65535})
    }
}

crate::scalar!(Port);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::json;

    type Few = Number<1, 10>;
    type Share = Percent<0, 100>;

    fn hinted<T>(hint: &str) -> Result<T, Rejection> {
        Err(Rejection::Type { hint: Some(hint.to_owned()) })
    }

    #[test]
    fn whole_numbers_outside_their_bounds_are_rejected() {
        for (text, number) in [("1", 1), ("10", 10)] {
            assert_eq!(json::<Few>(text).map(Number::get), Ok(number));
        }
        for text in ["0", "11", "-1", "18446744073709551615", "1.5", "\"1\"", "null"] {
            let message = json::<Few>(text).expect_err("rejected");
            assert!(message.contains("a whole number from 1 to 10"), "{text}: {message}");
        }
        assert_eq!((Few::near(0).get(), Few::near(5).get(), Few::near(99).get()), (1, 5, 10));
    }

    #[test]
    fn a_number_of_another_type_is_quoted_as_found_and_has_a_hint() {
        assert!(json::<Few>("2.0").expect_err("rejected").contains("floating point `2.0`"));
        assert_eq!(Few::from_float(2.0), hinted("write 2"));
        assert_eq!(Few::from_text("3"), hinted("write 3, without quotes"));
        assert_eq!(Few::from_text("3;"), hinted("write 3, without the separator"));
        assert_eq!(Number::<0, MAX_COUNT>::from_text("10k"), hinted("write 10000"));
        assert_eq!(Share::from_text("50 %"), hinted("write 50, without the percent sign"));
        assert_eq!(Share::from_float(0.2), hinted("write 20; 100 stands for the whole"));
        assert_eq!(Percent::<101, 1000>::from_float(1.25), hinted("write 125; 100 stands for the whole"));
        assert_eq!(Ratio::from_text("5"), hinted("write 5, without quotes"));
        assert_eq!(Port::from_text("8080"), hinted("write 8080, without quotes"));
        for text in ["11", "1.5", "many", "", "-1", "inf", "1e0", "10k"] {
            assert_eq!(Few::from_text(text), Err(Rejection::TYPE), "{text}");
        }
        assert_eq!(Few::from_float(2.5), Err(Rejection::TYPE));
        assert_eq!(Few::from_float(f64::NAN), Err(Rejection::TYPE));
        assert_eq!(Share::from_float(1.5), Err(Rejection::TYPE));
    }

    #[test]
    fn messages_call_a_percentage_a_percentage() {
        assert_eq!(json::<Share>("100").map(Percent::get), Ok(100));
        let message = json::<Share>("101").expect_err("rejected");
        assert!(message.contains("a percentage from 0 to 100, found 101"), "{message}");
    }

    #[test]
    fn ratios_are_above_one_and_read_back_unchanged() {
        for text in ["5", "1.5", "1000", "1.0001"] {
            let ratio: Ratio = json(text).expect("it is within the bounds");
            assert_eq!(serde_json::to_string(&ratio).expect("it can be written"), text);
        }
        for text in ["1", "1.0", "0", "-5", "1001", "1e300", "18446744073709551615"] {
            let message = json::<Ratio>(text).expect_err("rejected");
            assert!(message.contains("a number above 1, at most 1000, found"), "{text}: {message}");
        }
    }

    #[test]
    fn ports_are_above_zero() {
        assert_eq!(json::<Port>("65535").map(|port| port.get().get()), Ok(65535));
        for number in ["0", "65536", "-1"] {
            let message = json::<Port>(number).expect_err("rejected");
            assert!(message.contains(&format!("a port from 1 to 65535, found {number}")), "{message}");
        }
    }
}
