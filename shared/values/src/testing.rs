//! Helpers for the tests of values.

use serde::de::DeserializeOwned;

use crate::Scalar;

/// Returns the rejection of a text, with the hint on the second line.
#[track_caller]
pub(crate) fn rejection<T: Scalar>(text: &str) -> String {
    match T::from_text(text) {
        Ok(_) => panic!("{text:?} was accepted"),
        Err(rejection) => rejection.to_string(),
    }
}

/// Asserts that these texts are valid.
#[track_caller]
pub(crate) fn accepts<T: Scalar>(texts: &[&str]) {
    for text in texts {
        if let Err(rejection) = T::from_text(text) {
            panic!("{text:?}: {rejection}");
        }
    }
}

/// Reads JSON.
pub(crate) fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}
