//! Values that are one of several words, and hints for other words.
//!
//! The accepted words come from the enum's own `Deserialize`. Words of other products stand next to the enum, in the
//! crate of the section that it belongs to.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Unexpected, Visitor};

use crate::scalar::Rejection;

/// Words of other products, in lower case and with `_` between words, each list with the accepted word that was meant
/// or with a hint.
pub type OtherWords = &'static [(&'static [&'static str], &'static str)];

/// An enum without data, whose variants are written as words.
pub trait Choice: DeserializeOwned {
    /// The words of other products.
    const OTHER_WORDS: OtherWords;
}

/// Reads a word. Fields use it as `deserialize_with`, in place of the enum's own `Deserialize`.
///
/// # Errors
///
/// Returns the errors of [`scalar::read`](crate::scalar::read).
pub fn read<'de, D: Deserializer<'de>, T: Choice>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_str(WordVisitor(PhantomData))
}

/// Returns the rejection of a word.
pub fn rejection(found: &str, known: &[&str], others: OtherWords) -> Rejection {
    Rejection::Word { found: found.to_owned(), hint: hint(found, known, others) }
}

/// Returns the hint for an unknown word: the word that was meant, or else all words.
pub fn hint(found: &str, known: &[&str], others: OtherWords) -> String {
    match meant(found, known, others) {
        Some(word) if known.contains(&word) => format!("did you mean `{word}`?"),
        Some(hint) => hint.to_owned(),
        None => format!("use one of these values: {}", known.join(", ")),
    }
}

/// Returns the word of `known` that was probably meant by `found`, or a hint of `others`.
pub fn meant<'a>(found: &str, known: &[&'a str], others: OtherWords) -> Option<&'a str> {
    let plain = found.trim_start_matches('$').to_lowercase().replace(['-', ' '], "_");
    let other = others.iter().find(|(words, _)| words.contains(&plain.as_str())).map(|(_, meant)| *meant);
    other.or_else(|| did_you_mean(found, known.iter().copied()))
}

/// Returns the word of `known` that was probably meant by `found`. `None` means that no word is similar enough.
pub fn did_you_mean<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
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

struct WordVisitor<T>(PhantomData<T>);

/// The error of an enum's `Deserialize`, which has the accepted words.
#[derive(Debug)]
struct WordError(&'static [&'static str]);

fn from_word<T: Choice>(word: &str) -> Result<T, WordError> {
    let word: StrDeserializer<'_, WordError> = word.into_deserializer();
    T::deserialize(word)
}

/// Returns the text for messages: `one of tcp, http, grpc, none`.
fn expected(known: &[&str]) -> String {
    format!("one of {}", known.join(", "))
}

// === impl WordVisitor ===

impl<T: Choice> Visitor<'_> for WordVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = from_word::<T>("").err().map_or(&[][..], |WordError(known)| known);
        f.write_str(&expected(known))
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<T, E> {
        from_word(word).map_err(|WordError(known)| {
            rejection(word, known, T::OTHER_WORDS).into_error(Unexpected::Str(word), &expected(known))
        })
    }
}

// === impl WordError ===

impl de::Error for WordError {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }

    fn unknown_variant(_: &str, known: &'static [&'static str]) -> Self {
        Self(known)
    }
}

impl fmt::Display for WordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&expected(self.0))
    }
}

impl std::error::Error for WordError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::json;

    #[derive(serde::Deserialize, Debug, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Colour {
        Red,
        DarkGreen,
    }

    #[derive(serde::Deserialize, Debug)]
    struct Paint {
        #[serde(deserialize_with = "read")]
        colour: Colour,
    }

    impl Choice for Colour {
        const OTHER_WORDS: OtherWords = &[
            (&["crimson", "scarlet"], "red"),
            (&["transparent"], "remove the key: paint is never transparent"),
        ];
    }

    #[test]
    fn a_word_is_read() {
        let paint: Paint = json(r#"{"colour": "dark_green"}"#).expect("it is a colour");
        assert_eq!(paint.colour, Colour::DarkGreen);
    }

    #[test]
    fn another_word_has_a_hint() {
        for (word, hint) in [
            ("darkgreen", "did you mean `dark_green`?"),
            ("Scarlet", "did you mean `red`?"),
            ("transparent", "remove the key: paint is never transparent"),
            ("blue", "use one of these values: red, dark_green"),
        ] {
            let message = json::<Paint>(&format!(r#"{{"colour": {word:?}}}"#)).expect_err("rejected");
            let right = format!("invalid value: {word}, expected one of red, dark_green\n{hint}");
            assert!(message.starts_with(&right), "{message}");
        }
        let message = json::<Paint>(r#"{"colour": 7}"#).expect_err("rejected");
        assert!(message.contains("expected one of red, dark_green"), "{message}");
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
