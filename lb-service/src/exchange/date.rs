//! The date of a response (RFC 9110, section 6.6.1).

use std::time::SystemTime;

use http::HeaderValue;
use http::header::DATE;

use crate::head_edit::HeadEdit;

/// Adds the date to a response of a backend that has sent none.
pub(crate) fn complete(response: &mut impl HeadEdit, clock: fn() -> SystemTime) {
    if !response.contains(&DATE) {
        response.add(DATE, value(clock()));
    }
}

/// Returns a time as the value of the field.
#[expect(clippy::expect_used, reason = "the text is made of letters, digits and spaces")]
pub(super) fn value(time: SystemTime) -> HeaderValue {
    HeaderValue::try_from(httpdate::fmt_http_date(time)).expect("a date is visible ASCII")
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[test]
    fn only_a_response_without_a_date_gets_one() {
        let mut response = HeaderMap::new();
        complete(&mut response, || SystemTime::UNIX_EPOCH);
        assert_eq!(response[DATE], "Thu, 01 Jan 1970 00:00:00 GMT");
        complete(&mut response, || unreachable!("the response has a date"));
        assert_eq!(response.get_all(DATE).iter().count(), 1);
    }
}
