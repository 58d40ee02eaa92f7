//! Durations: `250ms`, `5s`, `1m`, `1h`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{Schema, json_schema};

use crate::scalar::{Rejection, Scalar};
use crate::text::Text;

/// The description of a duration in diagnostics.
const EXPECTED: &str = "a duration such as 250ms, 5s, 1m or 1h";

/// The longest duration of a key that states no limit of its own, in hours.
const DAY: u64 = 24;

/// A duration of at least `MIN` milliseconds and at most `MAX_HOURS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoundedDuration<const MIN: u64, const MAX_HOURS: u64>(Duration);

/// A duration above zero and of at most `MAX_HOURS`, by default a day.
pub type PositiveDuration<const MAX_HOURS: u64 = DAY> = BoundedDuration<1, MAX_HOURS>;

/// A duration of at most `MAX_HOURS`, by default a day. Zero is allowed.
pub type AnyDuration<const MAX_HOURS: u64 = DAY> = BoundedDuration<0, MAX_HOURS>;

/// Words of other products for the absence of a limit.
const UNLIMITED: [&str; 9] =
    ["never", "infinite", "infinity", "inf", "indefinite", "forever", "unlimited", "max", "-1"];

/// Words of other products for something that is turned off.
const OFF: [&str; 6] = ["off", "none", "no", "false", "disable", "disabled"];

/// The units in milliseconds, in descending order.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A duration in a notation that is understood but not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loose {
    milliseconds: u64,
    /// The unit for the suggested notation.
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// The text has no unit.
    Missing,
    /// The unit of the text, spelled out or with a fraction.
    Written(u64),
    /// The largest unit that gives a whole number.
    Largest,
}

/// The bounds of a duration: milliseconds, and hours.
#[derive(Clone, Copy)]
struct Bounds {
    min: u64,
    max_hours: u64,
}

impl Bounds {
    /// Parses a duration. Values out of range are reported as such, even in a notation that is not accepted.
    ///
    /// # Errors
    ///
    /// Returns the problem, and on a second line what to write instead.
    fn parse(self, text: &str) -> Result<Duration, String> {
        if let Some(duration) = exact(text) {
            return self.check(text, duration).map(|()| duration);
        }
        let unclear = format!("expected {EXPECTED}, found {text:?}");
        let Some(loose) = loose(text) else { return Err(unclear + &self.for_word(text)) };
        let in_seconds = Duration::from_millis(loose.milliseconds);
        let whole = text.parse::<u64>().ok().filter(|_| loose.unit == Unit::Missing);
        let in_range = |duration| self.check(text, duration).is_ok();
        match whole {
            Some(number) if !in_range(in_seconds) && in_range(Duration::from_millis(number)) => {
                return Err(format!("{text:?} has no unit\nwrite {number}ms"));
            }
            _ => self.check(text, in_seconds)?,
        }
        let spelled = loose.spelled();
        match (loose.unit, whole) {
            (Unit::Missing, Some(number @ 1..)) => {
                Err(format!("{text:?} has no unit\nwrite {spelled}, or {number}ms for milliseconds"))
            }
            (Unit::Missing, _) => Err(format!("{text:?} has no unit\nwrite {spelled}")),
            _ => Err(format!("{unclear}\nwrite {spelled}")),
        }
    }

    fn check(self, text: &str, duration: Duration) -> Result<(), String> {
        let Self { min, max_hours } = self;
        if duration < Duration::from_millis(min) {
            let shortest =
                format!("write {min}ms, which is the shortest, or {max_hours}h, which is the longest");
            return Err(format!("the duration must be above zero, found {text}\n{shortest}"));
        }
        if duration <= Duration::from_secs(max_hours * 3600) {
            return Ok(());
        }
        let limit = match max_hours {
            DAY => "a day".to_owned(),
            hours if hours.is_multiple_of(DAY) => format!("{} days", hours / DAY),
            hours => format!("{hours}h"),
        };
        Err(format!("the duration {text} is longer than {limit}\nwrite {max_hours}h, which is the longest"))
    }

    /// Returns the line with the hint for a word in the place of a duration. It is empty for unknown words.
    fn for_word(self, text: &str) -> String {
        let lower = text.trim().to_lowercase();
        let is_one_of = |words: &[&str]| words.contains(&lower.as_str());
        match self.min {
            0 if is_one_of(&OFF) => "\nwrite 0s".to_owned(),
            _ if is_one_of(&UNLIMITED) || is_one_of(&OFF) => {
                format!("\nwrite {}h, which is the longest", self.max_hours)
            }
            _ => String::new(),
        }
    }
}

/// Returns the rejection of a boolean.
fn of_bool(value: bool) -> Rejection {
    Rejection::Type { hint: value.then(|| "write a duration such as 30s".to_owned()) }
}

/// Formats a default: in seconds, as most people write it, or else in milliseconds.
fn spelled(duration: Duration) -> String {
    match duration.subsec_nanos() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// Parses a whole number with a unit. An overflow becomes [`Duration::MAX`], which is then out of range.
fn exact(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, name) = text.split_at(digits);
    let (_, unit) = UNITS.iter().find(|(unit, _)| *unit == name)?;
    if number.is_empty() {
        return None;
    }
    let milliseconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*unit));
    Some(milliseconds.map_or(Duration::MAX, Duration::from_millis))
}

/// Parses the notations of other products: `60sec`, `1 minute`, `1d`, `1m30s`, `1.5s`, `500us`, `60`. Fractions of a
/// millisecond are rounded up.
fn loose(text: &str) -> Option<Loose> {
    let lower = text.trim().to_lowercase();
    if lower.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Some(Loose { milliseconds: in_milliseconds(&lower, 1_000_000_000)?, unit: Unit::Missing });
    }
    let (mut rest, mut milliseconds, mut parts, mut last) = (lower.as_str(), 0_u64, 0, 0);
    while !rest.is_empty() {
        let (part, unit, after) = part(rest)?;
        milliseconds = milliseconds.checked_add(part)?;
        (rest, last, parts) = (after, unit, parts + 1);
    }
    let is_whole = last > 0 && milliseconds.is_multiple_of(last);
    let unit = if parts == 1 && is_whole { Unit::Written(last) } else { Unit::Largest };
    Some(Loose { milliseconds, unit })
}

/// Splits off the first number with its unit. Returns its milliseconds, the unit for the suggested notation, and the
/// rest of the text.
fn part(text: &str) -> Option<(u64, u64, &str)> {
    let number = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, rest) = text.split_at(number);
    let rest = rest.trim_start();
    let name = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(name);
    let (nanoseconds, unit) = unit(name)?;
    Some((in_milliseconds(number, nanoseconds)?, unit, rest.trim_start_matches([' ', ','])))
}

/// Returns the nanoseconds of a unit in any spelling, and the milliseconds of the unit to write instead.
fn unit(name: &str) -> Option<(u64, u64)> {
    let milliseconds = match name {
        "ns" | "nsec" | "nsecs" | "nanosecond" | "nanoseconds" => return Some((1, 1)),
        "us" | "µs" | "μs" | "usec" | "usecs" | "micros" | "microsecond" | "microseconds" => {
            return Some((1_000, 1));
        }
        "ms" | "msec" | "msecs" | "milli" | "millis" | "millisecond" | "milliseconds" => 1,
        "s" | "sec" | "secs" | "second" | "seconds" => 1_000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => return Some((86_400_000_000_000, 3_600_000)),
        "w" | "week" | "weeks" => return Some((604_800_000_000_000, 3_600_000)),
        _ => return None,
    };
    Some((milliseconds * 1_000_000, milliseconds))
}

/// Converts a number with up to nine decimals, in units of this many nanoseconds, to milliseconds. Fractions of a
/// millisecond are rounded up.
fn in_milliseconds(text: &str, nanoseconds: u64) -> Option<u64> {
    const BILLION: u128 = 1_000_000_000;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let billionths = u128::from(whole) * BILLION + format!("{fraction:0<9}").parse::<u128>().ok()?;
    let milliseconds = billionths.checked_mul(nanoseconds.into())?.div_ceil(BILLION * 1_000_000);
    milliseconds.try_into().ok()
}

// === impl BoundedDuration ===

impl<const MIN: u64, const MAX_HOURS: u64> BoundedDuration<MIN, MAX_HOURS> {
    /// Returns the duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl<const MIN: u64, const MAX_HOURS: u64> Scalar for BoundedDuration<MIN, MAX_HOURS> {
    const READS_NUMBERS: bool = true;

    fn expected() -> Cow<'static, str> {
        EXPECTED.into()
    }

    fn from_text(text: &str) -> Result<Self, Rejection> {
        Ok(Self(Bounds { min: MIN, max_hours: MAX_HOURS }.parse(text)?))
    }

    fn from_bool(value: bool) -> Result<Self, Rejection> {
        Err(of_bool(value))
    }

    fn schema() -> Schema {
        let digits = if MIN == 0 { "[0-9]+" } else { "0*[1-9][0-9]*" };
        json_schema!({"type": "string", "pattern": format!("^{digits}(ms|s|m|h)$")})
    }
}

impl<const MIN: u64, const MAX_HOURS: u64> From<BoundedDuration<MIN, MAX_HOURS>> for Duration {
    fn from(duration: BoundedDuration<MIN, MAX_HOURS>) -> Self {
        duration.0
    }
}

impl<T: Scalar + Copy + Into<Duration>> Text<T> {
    /// Writes a default in the code.
    ///
    /// # Panics
    ///
    /// Panics if the default is out of range.
    pub fn of(duration: Duration) -> Self {
        Self::literal(&spelled(duration))
    }

    /// Returns the duration.
    pub fn duration(&self) -> Duration {
        (*self.get()).into()
    }
}

// === impl Loose ===

impl Loose {
    fn spelled(self) -> String {
        let fits = |unit: &u64| self.milliseconds.is_multiple_of(*unit);
        let (name, unit) = match self.unit {
            Unit::Written(unit) => UNITS.into_iter().find(|(_, known)| *known == unit),
            Unit::Missing => UNITS.into_iter().skip(2).find(|(_, unit)| fits(unit)),
            Unit::Largest => UNITS.into_iter().find(|(_, unit)| fits(unit)),
        }
        .unwrap_or(("ms", 1));
        format!("{}{name}", self.milliseconds / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{accepts, rejection};

    #[test]
    fn a_number_and_a_unit_are_read() {
        for (text, milliseconds) in
            [("250ms", 250), ("0s", 0), ("1m", 60_000), ("24h", 86_400_000), ("007s", 7_000)]
        {
            let duration = AnyDuration::<24>::from_text(text).map(AnyDuration::get);
            assert_eq!(duration, Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn other_spellings_are_rejected_with_the_right_one() {
        for (text, right) in [
            ("60sec", "60s"),
            ("60 s", "60s"),
            ("500 ms", "500ms"),
            ("5S", "5s"),
            ("1d", "24h"),
            ("1 day", "24h"),
            ("1m30s", "90s"),
            ("1h 30m", "90m"),
            ("1 hour, 30 minutes", "90m"),
            ("1.5s", "1500ms"),
            ("0.5h", "30m"),
            ("1.0s", "1s"),
            (".5s", "500ms"),
            ("2 minutes", "2m"),
            ("90min", "90m"),
            (" 5s", "5s"),
            ("500000us", "500ms"),
            ("250000 µs", "250ms"),
            ("1us", "1ms"),
            ("0.0001s", "1ms"),
            ("2000000000ns", "2000ms"),
            ("1h30m", "90m"),
            ("5 s", "5s"),
        ] {
            let rejection = rejection::<AnyDuration>(text);
            assert_eq!(
                rejection.split_once('\n').map(|(_, hint)| hint),
                Some(&*format!("write {right}")),
                "{text}"
            );
            accepts::<AnyDuration>(&[right]);
        }
    }

    #[test]
    fn a_bare_number_lacks_a_unit() {
        assert_eq!(rejection::<AnyDuration>("60"), "\"60\" has no unit\nwrite 60s, or 60ms for milliseconds");
        assert_eq!(rejection::<AnyDuration>("0"), "\"0\" has no unit\nwrite 0s");
        assert_eq!(rejection::<AnyDuration>("0.5"), "\"0.5\" has no unit\nwrite 500ms");
        assert_eq!(rejection::<AnyDuration>("100000"), "\"100000\" has no unit\nwrite 100000ms");
        assert!(
            rejection::<AnyDuration>("100000000")
                .ends_with("longer than a day\nwrite 24h, which is the longest")
        );
    }

    #[test]
    fn words_for_no_limit_are_rejected_with_the_nearest_bound() {
        let hint = |rejection: String| rejection.lines().nth(1).map(str::to_owned);
        let longest = Some("write 24h, which is the longest".to_owned());
        for text in ["never", "infinite", "Unlimited", "-1"] {
            assert_eq!(hint(rejection::<AnyDuration>(text)), longest, "{text}");
            assert_eq!(hint(rejection::<PositiveDuration>(text)), longest, "{text}");
        }
        for text in ["off", "none", "disabled"] {
            assert_eq!(hint(rejection::<AnyDuration>(text)), Some("write 0s".to_owned()), "{text}");
            assert_eq!(hint(rejection::<PositiveDuration>(text)), longest, "{text}");
        }
    }

    #[test]
    fn what_is_out_of_range_is_rejected_as_that() {
        for text in ["25h", "2d", "1 week", "99999999999999999999h"] {
            let message = rejection::<AnyDuration>(text);
            let expected =
                format!("the duration {text} is longer than a day\nwrite 24h, which is the longest");
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn what_is_no_duration_has_no_hint() {
        for text in ["", "s", "-5s", "+5s", "ms", "soon", "5x", "1.2.3s", "1m30", "é"] {
            assert_eq!(rejection::<AnyDuration>(text), format!("expected {EXPECTED}, found {text:?}"));
        }
    }

    #[test]
    fn a_type_states_its_bounds() {
        for zero in ["0", "0ms", "0 s"] {
            let expected = format!(
                "the duration must be above zero, found {zero}\nwrite 1ms, which is the shortest, or 24h, which is the longest"
            );
            assert_eq!(rejection::<PositiveDuration>(zero), expected);
        }
        accepts::<AnyDuration>(&["0s"]);
        accepts::<PositiveDuration<9600>>(&["9600h"]);
        assert!(rejection::<PositiveDuration<9600>>("9601h").contains("longer than 400 days\nwrite 9600h"));
        assert!(rejection::<PositiveDuration<36>>("40h").contains("longer than 36h\nwrite 36h"));
    }

    #[test]
    fn numbers_and_booleans_have_a_hint() {
        let rejection = AnyDuration::<24>::from_float(1.0).map_err(|rejection| rejection.to_string());
        assert_eq!(rejection, Err("\"1.0\" has no unit\nwrite 1s".to_owned()));
        let hint = Some("write a duration such as 30s".to_owned());
        assert_eq!(PositiveDuration::<24>::from_bool(true), Err(Rejection::Type { hint }));
        assert_eq!(PositiveDuration::<24>::from_bool(false), Err(Rejection::TYPE));
    }

    #[test]
    fn a_default_is_written_in_seconds_or_milliseconds() {
        for (milliseconds, text) in [(0, "0s"), (250, "250ms"), (1_500, "1500ms"), (300_000, "300s")] {
            let written = Text::<AnyDuration>::of(Duration::from_millis(milliseconds));
            assert_eq!((written.written(), written.duration().as_millis()), (text, milliseconds.into()));
        }
    }
}
