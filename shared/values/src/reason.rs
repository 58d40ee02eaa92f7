//! The reason of an error of the system, for messages.

use std::io;

/// Formats an error of the system for a message: in lower case and without its number, as in *permission denied*.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_neither_a_number_nor_capitals() {
        assert_eq!(reason(&io::Error::from_raw_os_error(13)), "permission denied");
        assert_eq!(reason(&io::Error::other("Broken")), "broken");
    }
}
