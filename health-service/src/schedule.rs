//! The time of the next check of a backend.
//!
//! An interval begins at the **start** of a check, so a slow check does not stretch it. A check that takes longer than
//! its interval is followed by the next one at once; two checks of a backend never overlap. The first checks of all
//! backends start together. The second checks are spread at random over one interval, and the later ones stay spread.

use std::time::Duration;

use crate::settings::Settings;

/// The position of a backend in its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchedulePhase {
    /// Only its first check is done.
    First,
    /// Recent results agree with its state.
    Steady,
    /// Recent results contradict its state, but no threshold is reached yet.
    Changing,
}

/// The shortest time between the starts of two checks of a backend, whatever the settings say.
const SHORTEST: Duration = Duration::from_millis(1);

/// Time from the start of one check to the start of the next. `random` is uniform in `0.0..1.0`.
pub fn pause(settings: &Settings, phase: SchedulePhase, random: f64) -> Duration {
    let pause = match phase {
        SchedulePhase::First => settings.interval.mul_f64(random),
        SchedulePhase::Steady => jittered(settings.interval, settings.jitter.fraction(), random),
        SchedulePhase::Changing => jittered(settings.fast_interval, settings.jitter.fraction(), random),
    };
    pause.max(SHORTEST)
}

/// `interval`, shortened or lengthened by at most the fraction `jitter`.
fn jittered(interval: Duration, jitter: f64, random: f64) -> Duration {
    interval.mul_f64(1.0 + jitter * (2.0 * random - 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use values::Percent;

    use super::*;

    fn settings(jitter: u8) -> Settings {
        Settings {
            interval: Duration::from_secs(10),
            fast_interval: Duration::from_secs(2),
            jitter: Percent::near(jitter.into()),
            ..Settings::default()
        }
    }

    #[test]
    fn the_second_check_starts_anywhere_within_one_interval() {
        assert_eq!(pause(&settings(10), SchedulePhase::First, 0.0), SHORTEST);
        assert_eq!(pause(&settings(10), SchedulePhase::First, 0.25), Duration::from_millis(2500));
        assert!(pause(&settings(10), SchedulePhase::First, 0.999) < Duration::from_secs(10));
    }

    #[test]
    fn without_jitter_the_pause_is_exactly_the_interval() {
        for random in [0.0, 0.5, 0.99] {
            assert_eq!(pause(&settings(0), SchedulePhase::Steady, random), Duration::from_secs(10));
            assert_eq!(pause(&settings(0), SchedulePhase::Changing, random), Duration::from_secs(2));
        }
    }

    #[test]
    fn jitter_shortens_and_lengthens_the_interval() {
        assert_eq!(pause(&settings(10), SchedulePhase::Steady, 0.0), Duration::from_secs(9));
        assert_eq!(pause(&settings(10), SchedulePhase::Steady, 0.5), Duration::from_secs(10));
        assert_eq!(pause(&settings(50), SchedulePhase::Changing, 0.0), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn a_pause_stays_within_the_jitter(jitter in 0_u8..=100, random in 0.0..1.0_f64) {
            let pause = pause(&settings(jitter), SchedulePhase::Steady, random).as_secs_f64();
            let spread = 10.0 * f64::from(jitter) / 100.0;
            prop_assert!(pause >= (10.0 - spread - 1e-6).max(0.001) && pause <= 10.0 + spread + 1e-6);
        }
    }
}
