//! Numbers, times and similar words in messages.

/// Formats a number with its noun: `1 request`, `2 requests`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Formats a length like [`count`].
pub(crate) fn count_of(number: usize, noun: &str) -> String {
    count(u64::try_from(number).unwrap_or(u64::MAX), noun)
}

/// Formats a number of bytes: `64 KiB`, `4 MiB`. It must be a multiple of 1 KiB, except below 1 KiB.
pub(crate) fn size(bytes: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;
    match bytes {
        0..KIB => count(bytes, "byte"),
        KIB..MIB => format!("{} KiB", bytes / KIB),
        MIB.. => format!("{} MiB", bytes / MIB),
    }
}

/// Returns a text with a small first letter.
pub(crate) fn uncapitalised(text: &str) -> String {
    let (first, rest) = text.split_at(text.chars().next().map_or(0, char::len_utf8));
    first.to_lowercase() + rest
}

/// Formats names as an enumeration: "`a`, `b` and `c`".
pub(crate) fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => quoted.concat(),
    }
}

/// Formats a time span in its two largest units: `12s`, `1m05s`, `2h03m`, `5d01h`.
pub(crate) fn span(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{:02}m", minutes % 60),
        (days, hours, _) => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_every_other_number_is_plural() {
        assert_eq!(
            [0, 1, 2].map(|number| count(number, "request")),
            ["0 requests", "1 request", "2 requests"]
        );
    }

    #[test]
    fn a_span_has_two_units() {
        let spans = [0, 59, 65, 3600 + 180, 5 * 86_400 + 3600].map(span);
        assert_eq!(spans, ["0s", "59s", "1m05s", "1h03m", "5d01h"]);
    }
}
