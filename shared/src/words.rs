//! Numbers, times and similar words in messages.

/// Formats a number with its noun: `1 request`, `2 requests`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Formats a length like [`count`].
pub fn count_of(number: usize, noun: &str) -> String {
    count(u64::try_from(number).unwrap_or(u64::MAX), noun)
}

/// Formats a time span in its two largest units: `12s`, `1m05s`, `2h03m`, `5d01h`.
pub fn span(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{:02}m", minutes % 60),
        (days, hours, _) => format!("{days}d{:02}h", hours % 24),
    }
}

/// Returns the word of `known` that was probably meant by `found`. `None` means that no word is similar enough.
pub(crate) fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|word| (similarity(&found.to_lowercase(), &word.to_lowercase()), word))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, word)| word)
}

/// Returns the similarity of two words, from 0 to 1. A typing error in a short word counts as much as a long common
/// prefix.
fn similarity(one: &str, other: &str) -> f64 {
    let slip = one.len() > 2 && strsim::osa_distance(one, other) == 1;
    // A word that is only the beginning of a much longer one is another word: `upstreams`,
    // `upstream_keepalive_pool_size`.
    let alike = if other.len() <= 2 * one.len() { strsim::jaro_winkler(one, other) } else { 0.0 };
    alike.max(if slip { 0.9 } else { 0.0 })
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

    #[test]
    fn a_word_is_guessed_only_when_it_is_close() {
        let known = ["round_robin", "web", "api"];
        assert_eq!(did_you_mean("roundrobin", known), Some("round_robin"));
        assert_eq!(did_you_mean("wbe", known), Some("web"));
        assert_eq!(did_you_mean("WEB", known), Some("web"));
        assert_eq!(did_you_mean("x", known), None);
        assert_eq!(did_you_mean("something", known), None);
        assert_eq!(did_you_mean("upstreams", ["upstream_keepalive_pool_size"]), None);
    }
}
