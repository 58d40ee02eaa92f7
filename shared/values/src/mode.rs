//! The mode of a socket file.

use std::borrow::Cow;

use schemars::{Schema, json_schema};

use crate::scalar::{Rejection, Scalar};

/// The permission bits of a socket file, which lets at least one user connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

/// The hint for a number. YAML reads `0660` as the decimal number 660, so its digits are not known to be the mode.
const IN_QUOTES: &str = "put the octal digits in quotes, such as `mode: \"0660\"`";

impl SocketMode {
    /// Returns the permission bits.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Scalar for SocketMode {
    fn expected() -> Cow<'static, str> {
        "a mode in quotes, such as \"0660\"".into()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0')).unwrap_or(text);
        let is_octal = digits.len() == 3 && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(digits, 8).ok().filter(|_| is_octal);
        let Some(mode) = mode else {
            let hint = "use three octal digits, for the owner, the group and all others";
            return Err(format!("{}\n{hint}", Self::unexpected(text)).into());
        };
        if mode & 0o222 == 0 {
            let message = format!("with the mode {text:?}, only root could connect to the socket");
            return Err(format!("{message}\nadd write permission, such as \"0660\"").into());
        }
        Ok(Self(mode))
    }

    fn from_integer(number: i64) -> Result<Self, Rejection> {
        Err(format!("expected {}, found the number {number}\n{IN_QUOTES}", Self::expected()).into())
    }

    fn from_float(number: f64) -> Result<Self, Rejection> {
        Err(format!("expected {}, found the number {number}\n{IN_QUOTES}", Self::expected()).into())
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^(0o|0)?[0-7]{3}$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rejection;

    #[test]
    fn a_mode_has_three_octal_digits_and_lets_somebody_connect() {
        for (text, mode) in [("0660", 0o660), ("660", 0o660), ("0o600", 0o600), ("0222", 0o222)] {
            assert_eq!(SocketMode::from_text(text), Ok(SocketMode(mode)), "{text}");
        }
        for text in ["", "0", "66", "0668", "1660", "04660", "+660", "rw-rw----", "0x1b"] {
            assert!(rejection::<SocketMode>(text).contains("three octal digits"), "{text}");
        }
        assert!(rejection::<SocketMode>("0444").contains("only root could connect"));
        assert!(SocketMode::from_integer(660).is_err_and(|why| why.to_string().contains("in quotes")));
    }
}
