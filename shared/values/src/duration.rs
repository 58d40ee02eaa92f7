//! Durations: `250ms`, `5s`, `1m`, `1h`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{Schema, json_schema};

use crate::scalar::{Refusal, Scalar};
use crate::text::Text;

/// The description of a duration in diagnostics.
const EXPECTED: &str = "a duration such as 250ms, 5s, 1m or 1h";

/// The longest duration of a key that states no limit of its own, in hours.
const DAY: u64 = 24;

/// A duration above zero and of at most `MAX_HOURS`, by default a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PositiveDuration<const MAX_HOURS: u64 = DAY>(Duration);

/// A duration of at most `MAX_HOURS`, by default a day. Zero is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AnyDuration<const MAX_HOURS: u64 = DAY>(Duration);

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

/// Parses a duration. `accept` rejects values out of range. It is called before the notation is checked, so that a
/// value out of range is reported as such.
///
/// # Errors
///
/// Returns the problem, and on a second line what to write instead.
fn parse(text: &str, accept: impl Fn(Duration) -> Result<(), String>) -> Result<Duration, String> {
    if let Some(duration) = exact(text) {
        return accept(duration).map(|()| duration);
    }
    let unclear = || format!("expected {EXPECTED}, found {text:?}");
    let loose = loose(text).ok_or_else(unclear)?;
    let in_range = |milliseconds| accept(Duration::from_millis(milliseconds)).is_ok();
    if loose.unit == Unit::Missing {
        return Err(format!("{text:?} has no unit\n{}", with_unit(text, loose, in_range)));
    }
    accept(Duration::from_millis(loose.milliseconds))?;
    Err(format!("{}\nwrite {}", unclear(), loose.spelled()))
}

fn above_zero(text: &str, duration: Duration) -> Result<(), String> {
    if duration.is_zero() { Err(format!("the duration must be above zero, found {text}")) } else { Ok(()) }
}

fn up_to(hours: u64, text: &str, duration: Duration) -> Result<(), String> {
    if duration <= Duration::from_secs(hours * 3600) {
        return Ok(());
    }
    let limit = match hours {
        DAY => "a day".to_owned(),
        hours if hours.is_multiple_of(DAY) => format!("{} days", hours / DAY),
        hours => format!("{hours}h"),
    };
    Err(format!("the duration {text} is longer than {limit}\nwrite {hours}h, which is the longest"))
}

/// Returns the refusal of a boolean.
fn of_bool(value: bool) -> Refusal {
    Refusal::Type { hint: value.then(|| "write a duration such as 30s".to_owned()) }
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

/// Returns the hint for a number without a unit, which can mean seconds or milliseconds.
fn with_unit(text: &str, loose: Loose, in_range: impl Fn(u64) -> bool) -> String {
    let is_whole = text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = loose.spelled();
    match text.parse::<u64>() {
        Ok(number) if is_whole && !in_range(loose.milliseconds) => format!("write {number}ms"),
        Ok(number @ 1..) if is_whole => format!("write {seconds}, or {number}ms for milliseconds"),
        _ => format!("write {seconds}"),
    }
}

/// Parses the notations of other products: `60sec`, `1 minute`, `1d`, `1m30s`, `1.5s`, `60`.
fn loose(text: &str) -> Option<Loose> {
    let lower = text.trim().to_lowercase();
    if lower.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Some(Loose { milliseconds: thousandths(&lower)?, unit: Unit::Missing });
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
    let (factor, unit) = unit(name)?;
    let milliseconds = thousandths(number)?.checked_mul(factor)?;
    milliseconds
        .is_multiple_of(1_000)
        .then(|| (milliseconds / 1_000, unit, rest.trim_start_matches([' ', ','])))
}

/// Returns the milliseconds of a unit in any spelling, and those of the unit to write instead.
fn unit(name: &str) -> Option<(u64, u64)> {
    let unit = match name {
        "ms" | "msec" | "msecs" | "milli" | "millis" | "millisecond" | "milliseconds" => 1,
        "s" | "sec" | "secs" | "second" | "seconds" => 1_000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => return Some((86_400_000, 3_600_000)),
        "w" | "week" | "weeks" => return Some((604_800_000, 3_600_000)),
        _ => return None,
    };
    Some((unit, unit))
}

/// Parses a number with up to three decimals and multiplies it by 1000.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    whole.checked_mul(1_000)?.checked_add(format!("{fraction:0<3}").parse().ok()?)
}

// === impl PositiveDuration, AnyDuration ===

impl<const MAX_HOURS: u64> PositiveDuration<MAX_HOURS> {
    /// Returns the duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl<const MAX_HOURS: u64> Scalar for PositiveDuration<MAX_HOURS> {
    const READS_NUMBERS: bool = true;

    fn expected() -> Cow<'static, str> {
        EXPECTED.into()
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let accept = |duration| above_zero(text, duration).and_then(|()| up_to(MAX_HOURS, text, duration));
        Ok(Self(parse(text, accept)?))
    }

    fn from_bool(value: bool) -> Result<Self, Refusal> {
        Err(of_bool(value))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^0*[1-9][0-9]*(ms|s|m|h)$"})
    }
}

impl<const MAX_HOURS: u64> AnyDuration<MAX_HOURS> {
    /// Returns the duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl<const MAX_HOURS: u64> Scalar for AnyDuration<MAX_HOURS> {
    const READS_NUMBERS: bool = true;

    fn expected() -> Cow<'static, str> {
        EXPECTED.into()
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        Ok(Self(parse(text, |duration| up_to(MAX_HOURS, text, duration))?))
    }

    fn from_bool(value: bool) -> Result<Self, Refusal> {
        Err(of_bool(value))
    }

    fn schema() -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"})
    }
}

impl<const MAX_HOURS: u64> From<PositiveDuration<MAX_HOURS>> for Duration {
    fn from(duration: PositiveDuration<MAX_HOURS>) -> Self {
        duration.0
    }
}

impl<const MAX_HOURS: u64> From<AnyDuration<MAX_HOURS>> for Duration {
    fn from(duration: AnyDuration<MAX_HOURS>) -> Self {
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
    use crate::testing::{accepts, refusal};

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
    fn other_spellings_are_refused_with_the_right_one() {
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
        ] {
            let refusal = refusal::<AnyDuration>(text);
            assert_eq!(
                refusal.split_once('\n').map(|(_, hint)| hint),
                Some(&*format!("write {right}")),
                "{text}"
            );
            accepts::<AnyDuration>(&[right]);
        }
    }

    #[test]
    fn a_bare_number_lacks_a_unit() {
        assert_eq!(refusal::<AnyDuration>("60"), "\"60\" has no unit\nwrite 60s, or 60ms for milliseconds");
        assert_eq!(refusal::<AnyDuration>("0"), "\"0\" has no unit\nwrite 0s");
        assert_eq!(refusal::<AnyDuration>("0.5"), "\"0.5\" has no unit\nwrite 500ms");
        assert_eq!(refusal::<AnyDuration>("100000"), "\"100000\" has no unit\nwrite 100000ms");
    }

    #[test]
    fn what_is_out_of_range_is_refused_as_that() {
        for text in ["25h", "2d", "1 week", "99999999999999999999h"] {
            let message = refusal::<AnyDuration>(text);
            let expected =
                format!("the duration {text} is longer than a day\nwrite 24h, which is the longest");
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn what_is_no_duration_has_no_hint() {
        for text in ["", "s", "-5s", "+5s", "ms", "never", "5x", "1.2.3s", "1us", "0.0001s", "1m30", "é"] {
            assert_eq!(refusal::<AnyDuration>(text), format!("expected {EXPECTED}, found {text:?}"));
        }
    }

    #[test]
    fn a_type_states_its_bounds() {
        assert_eq!(refusal::<PositiveDuration>("0ms"), "the duration must be above zero, found 0ms");
        accepts::<AnyDuration>(&["0s"]);
        accepts::<PositiveDuration<9600>>(&["9600h"]);
        assert!(refusal::<PositiveDuration<9600>>("9601h").contains("longer than 400 days\nwrite 9600h"));
        assert!(refusal::<PositiveDuration<36>>("40h").contains("longer than 36h\nwrite 36h"));
    }

    #[test]
    fn numbers_and_booleans_have_a_hint() {
        let refusal = AnyDuration::<24>::from_float(1.0).map_err(|refusal| refusal.to_string());
        assert_eq!(refusal, Err("\"1.0\" has no unit\nwrite 1s".to_owned()));
        let hint = Some("write a duration such as 30s".to_owned());
        assert_eq!(PositiveDuration::<24>::from_bool(true), Err(Refusal::Type { hint }));
        assert_eq!(PositiveDuration::<24>::from_bool(false), Err(Refusal::TYPE));
    }

    #[test]
    fn a_default_is_written_in_seconds_or_milliseconds() {
        for (milliseconds, text) in [(0, "0s"), (250, "250ms"), (1_500, "1500ms"), (300_000, "300s")] {
            let written = Text::<AnyDuration>::of(Duration::from_millis(milliseconds));
            assert_eq!((written.written(), written.duration().as_millis()), (text, milliseconds.into()));
        }
    }
}
