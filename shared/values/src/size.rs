//! Sizes in bytes: `240B`, `64KiB`, `1MiB`, `2GiB`.

use std::borrow::Cow;

use schemars::{Schema, json_schema};

use crate::scalar::{Rejection, Scalar};
use crate::text::Text;

/// A number of bytes from `MIN` to `MAX`. If `MIN` is 0, `0` can be written without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size<const MIN: u64, const MAX: u64>(u64);

/// The units in bytes, in descending order.
const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Words of other products for the absence of a limit.
const UNLIMITED: [&str; 6] = ["off", "none", "unlimited", "infinite", "max", "-1"];

// === impl Size ===

impl<const MIN: u64, const MAX: u64> Size<MIN, MAX> {
    /// Returns the number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the number of bytes as a size in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    fn within(text: &str, bytes: u64) -> Result<Self, Rejection> {
        let bound = match bytes {
            low if low < MIN => format!("is below the smallest, {0}\nwrite {0}", spelled(MIN)),
            high if high > MAX => format!("is above the largest, {0}\nwrite {0}", spelled(MAX)),
            bytes => return Ok(Self(bytes)),
        };
        Err(format!("the size {text} {bound}").into())
    }
}

impl<const MIN: u64, const MAX: u64> Text<Size<MIN, MAX>> {
    /// Writes a default in the code.
    ///
    /// # Panics
    ///
    /// Panics if the default is out of range.
    pub fn size(bytes: u64) -> Self {
        Self::literal(&spelled(bytes))
    }
}

impl<const MIN: u64, const MAX: u64> Scalar for Size<MIN, MAX> {
    const READS_NUMBERS: bool = true;

    fn expected() -> Cow<'static, str> {
        match MIN {
            0 => "a size such as 64KiB or 1MiB, or 0",
            _ => "a size such as 64KiB or 1MiB",
        }
        .into()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        if let Some(bytes) = exact(text) {
            return Self::within(text, bytes);
        }
        let hint = match loose(text) {
            Some(0) if MIN == 0 && text == "0" => return Ok(Self(0)),
            Some(bytes) => format!("\nwrite {}", spelled(Self::within(text, bytes)?.0)),
            None if MIN == 0 && UNLIMITED.contains(&text.to_ascii_lowercase().as_str()) => {
                "\nwrite 0".to_owned()
            }
            None => String::new(),
        };
        Err(format!("expected {}, found {text:?}{hint}", Self::expected()).into())
    }

    fn schema() -> Schema {
        match MIN {
            0 => {
                json_schema!({"anyOf": [{"const": 0}, {"type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB)$"}]})
            }
            _ => json_schema!({"type": "string", "pattern": "^0*[1-9][0-9]*(B|KiB|MiB|GiB)$"}),
        }
    }
}

/// Parses a whole number with a unit. An overflow becomes the largest number, which is then out of range.
fn exact(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, name) = text.split_at(digits);
    let (_, unit) = UNITS.iter().find(|(unit, _)| *unit == name).filter(|_| !number.is_empty())?;
    Some(number.parse::<u64>().ok().and_then(|number| number.checked_mul(*unit)).unwrap_or(u64::MAX))
}

/// Parses the notations of other products: `65536`, `64k`, `64KB`, `64 KiB`, `1m`. All of them count in powers of 1024.
fn loose(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
    let (number, name) = lower.split_at(digits);
    let unit = match name.trim_start() {
        "" | "b" | "byte" | "bytes" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Writes a size in the largest unit that gives a whole number.
fn spelled(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| "0".to_owned(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Limit = Size<0, 1_073_741_824>;
    type Head = Size<1024, 1_048_576>;

    fn message<const MIN: u64, const MAX: u64>(text: &str) -> String {
        match Size::<MIN, MAX>::from_text(text) {
            Err(Rejection::Value(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_number_and_a_unit_are_read() {
        for (text, bytes) in
            [("240B", 240), ("64KiB", 65_536), ("1MiB", 1 << 20), ("1GiB", 1 << 30), ("0B", 0)]
        {
            assert_eq!(Limit::from_text(text), Ok(Size(bytes)), "{text}");
        }
        assert_eq!(Limit::from_integer(0), Ok(Size(0)));
    }

    #[test]
    fn other_spellings_are_rejected_with_the_right_one() {
        for (text, right) in [
            ("64k", "64KiB"),
            ("64KB", "64KiB"),
            ("64 KiB", "64KiB"),
            ("64kib", "64KiB"),
            ("1m", "1MiB"),
            ("65536", "64KiB"),
            ("1000", "1000B"),
            ("unlimited", "0"),
        ] {
            let message = message::<0, 1_073_741_824>(text);
            assert!(message.ends_with(&format!("\nwrite {right}")), "{message}");
            assert!(Limit::from_text(right).is_ok());
        }
        assert!(!message::<0, 1_073_741_824>("big").contains("write"));
    }

    #[test]
    fn a_size_out_of_range_names_the_bound() {
        assert_eq!(message::<1024, 1_048_576>("1B"), "the size 1B is below the smallest, 1KiB\nwrite 1KiB");
        assert_eq!(
            message::<1024, 1_048_576>("99GiB"),
            "the size 99GiB is above the largest, 1MiB\nwrite 1MiB"
        );
        assert!(Head::from_integer(0).is_err());
    }
}
