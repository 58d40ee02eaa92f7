//! The reason of an error of the system, for messages.

use std::io;

/// Formats an error of the system for a message: with a small first letter and without its number, as in *permission
/// denied*. The case of a path in it is kept.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let mut letters = text.split(" (os error").next().unwrap_or_default().chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_no_number_and_a_small_first_letter() {
        assert_eq!(reason(&io::Error::from_raw_os_error(13)), "permission denied");
        assert_eq!(reason(&io::Error::other("Cannot open /A")), "cannot open /A");
        assert_eq!(reason(&io::Error::other("")), "");
    }
}
