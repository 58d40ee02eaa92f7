//! The two formats of a line, as functions from a [`Record`] to bytes.
//!
//! One request is always one line. Values from a client (method, host, path) cannot end a line, a quoted field or a
//! JSON string, and cannot send a control character to a terminal.
//!
//! Numbers and times are formatted by hand, because every request pays for a line. A line costs a few hundred
//! nanoseconds.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Record;

/// The longest path that is logged whole, in bytes.
const MAX_PATH: usize = 2048;

/// Appends a line of plain text for people, such as this one (wrapped here):
///
/// ```text
/// 2026-11-22T12:00:00.123Z 127.0.0.1 "GET example.com/path HTTP/1.1" 200 123B 1.200ms web 10.0.0.1:8080
///     ttfb=1.000ms tries=1 reused=yes in=0B listener=main tried=- passed_over=10.0.0.2:8080:down reason=-
/// ```
///
/// An absent value is `-`, except that `offset=` and `detail=` follow only if there is one. `"`, `\` and bytes other
/// than printable ASCII are written as `\xHH`.
pub(crate) fn format_text(record: &Record<'_>, line: &mut Vec<u8>) {
    push_time(line, record.time);
    line.push(b' ');
    push_or_dash(line, record.client, push_ip);
    line.extend_from_slice(b" \"");
    push_request(line, record);
    line.extend_from_slice(b"\" ");
    push_or_dash(line, record.status, |line, status| push_number(line, status.into()));
    line.push(b' ');
    push_number(line, record.bytes_out);
    line.extend_from_slice(b"B ");
    push_milliseconds(line, record.duration);
    line.extend_from_slice(b"ms ");
    push_or_dash(line, record.pool, push_word);
    line.push(b' ');
    push_or_dash(line, record.backend, push_word);
    line.extend_from_slice(b" ttfb=");
    push_or_dash(line, record.ttfb, |line, ttfb| {
        push_milliseconds(line, ttfb);
        line.extend_from_slice(b"ms");
    });
    line.extend_from_slice(b" tries=");
    push_number(line, record.tries.into());
    line.extend_from_slice(b" reused=");
    push_or_dash(line, record.reused, |line, reused| {
        line.extend_from_slice(if reused { b"yes" } else { b"no" });
    });
    line.extend_from_slice(b" in=");
    push_number(line, record.bytes_in);
    line.extend_from_slice(b"B listener=");
    push_word(line, record.listener);
    line.extend_from_slice(b" tried=");
    push_list(line, &record.tried);
    line.extend_from_slice(b" passed_over=");
    push_list(line, &record.passed_over);
    line.extend_from_slice(b" reason=");
    push_or_dash(line, record.failure, |line, reason| {
        line.push(b'"');
        push_quoted_text(line, reason.as_bytes());
        line.push(b'"');
    });
    if let Some(offset) = record.offset {
        line.extend_from_slice(b" offset=");
        push_number(line, offset as u64);
    }
    if let Some(detail) = record.detail {
        line.extend_from_slice(b" detail=\"");
        push_quoted_text(line, detail.as_bytes());
        line.push(b'"');
    }
    line.push(b'\n');
}

/// Appends a JSON object and a line feed.
///
/// Its keys are `time` (RFC 3339, UTC), `client`, `listener`, `method`, `host`, `path`, `protocol`, `status`,
/// `bytes_in`, `bytes_out`, `duration_ms`, `pool`, `backend`, `ttfb_ms`, `tries`, `reused`, `tried`, `passed_over`,
/// `reason`, `offset` and `detail`. All keys are always present, and an absent value is `null`. `tried` and
/// `passed_over` are objects whose keys are backends. Bytes that are not UTF-8 become U+FFFD.
pub(crate) fn format_json(record: &Record<'_>, line: &mut Vec<u8>) {
    line.extend_from_slice(b"{\"time\":\"");
    push_time(line, record.time);
    line.extend_from_slice(b"\",\"client\":");
    push_or_null(line, record.client, |line, ip| {
        line.push(b'"');
        push_ip(line, ip);
        line.push(b'"');
    });
    line.extend_from_slice(b",\"listener\":");
    push_json_string(line, record.listener.as_bytes());
    line.extend_from_slice(b",\"method\":");
    push_or_null(line, record.method, |line, method| push_json_string(line, method.as_bytes()));
    line.extend_from_slice(b",\"host\":");
    push_or_null(line, record.host, push_json_string);
    line.extend_from_slice(b",\"path\":");
    push_or_null(line, record.path, |line, path| push_json_string(line, &shortened(path)));
    line.extend_from_slice(b",\"protocol\":");
    push_or_null(line, record.version.map(protocol), |line, name| push_json_string(line, name.as_bytes()));
    line.extend_from_slice(b",\"status\":");
    push_or_null(line, record.status, |line, status| push_number(line, status.into()));
    line.extend_from_slice(b",\"bytes_in\":");
    push_number(line, record.bytes_in);
    line.extend_from_slice(b",\"bytes_out\":");
    push_number(line, record.bytes_out);
    line.extend_from_slice(b",\"duration_ms\":");
    push_milliseconds(line, record.duration);
    line.extend_from_slice(b",\"pool\":");
    push_or_null(line, record.pool, |line, pool| push_json_string(line, pool.as_bytes()));
    line.extend_from_slice(b",\"backend\":");
    push_or_null(line, record.backend, |line, backend| push_json_string(line, backend.as_bytes()));
    line.extend_from_slice(b",\"ttfb_ms\":");
    push_or_null(line, record.ttfb, push_milliseconds);
    line.extend_from_slice(b",\"tries\":");
    push_number(line, record.tries.into());
    line.extend_from_slice(b",\"reused\":");
    push_or_null(line, record.reused, |line, reused| {
        line.extend_from_slice(if reused { b"true" } else { b"false" });
    });
    line.extend_from_slice(b",\"tried\":");
    push_json_object(line, &record.tried);
    line.extend_from_slice(b",\"passed_over\":");
    push_json_object(line, &record.passed_over);
    line.extend_from_slice(b",\"reason\":");
    push_or_null(line, record.failure, |line, reason| push_json_string(line, reason.as_bytes()));
    line.extend_from_slice(b",\"offset\":");
    push_or_null(line, record.offset, |line, offset| push_number(line, offset as u64));
    line.extend_from_slice(b",\"detail\":");
    push_or_null(line, record.detail, |line, detail| push_json_string(line, detail.as_bytes()));
    line.extend_from_slice(b"}\n");
}

/// Appends a list such as `10.0.0.1:80:connect,10.0.0.2:80:503`.
fn push_list(line: &mut Vec<u8>, pairs: &[(&str, Cow<'static, str>)]) {
    for (index, (backend, word)) in pairs.iter().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        push_word(line, backend);
        line.push(b':');
        push_word(line, word);
    }
    if pairs.is_empty() {
        line.push(b'-');
    }
}

/// Appends an object such as `{"10.0.0.1:80":"connect"}`. A backend that appears twice has both words:
/// `"reset,connect"`.
fn push_json_object(line: &mut Vec<u8>, pairs: &[(&str, Cow<'static, str>)]) {
    if pairs.is_empty() {
        return line.extend_from_slice(b"null");
    }
    for (index, (backend, _)) in pairs.iter().enumerate() {
        if pairs.iter().take(index).any(|(before, _)| before == backend) {
            continue;
        }
        line.push(if index == 0 { b'{' } else { b',' });
        push_json_string(line, backend.as_bytes());
        line.push(b':');
        let of_it = pairs.iter().skip(index).filter(|(other, _)| other == backend);
        let words: Vec<&str> = of_it.map(|(_, word)| &**word).collect();
        push_json_string(line, words.join(",").as_bytes());
    }
    line.push(b'}');
}

/// Appends a request line such as `GET example.com/path HTTP/1.1`. The caller writes the quotes.
fn push_request(line: &mut Vec<u8>, record: &Record<'_>) {
    push_or_dash(line, record.method, |line, method| push_quoted_text(line, method.as_bytes()));
    line.push(b' ');
    push_or_dash(line, record.host, push_quoted_text);
    push_or_dash(line, record.path, |line, path| push_quoted_text(line, &shortened(path)));
    line.push(b' ');
    push_or_dash(line, record.version.map(protocol), |line, name| line.extend_from_slice(name.as_bytes()));
}

/// Returns a path as it is logged. A long one ends with its length, such as `/a...(9000B)`, because a client could fill
/// the disk otherwise.
fn shortened(path: &[u8]) -> Cow<'_, [u8]> {
    match path.get(..MAX_PATH) {
        Some(start) if path.len() > MAX_PATH => {
            Cow::Owned([start, format!("...({}B)", path.len()).as_bytes()].concat())
        }
        _ => Cow::Borrowed(path),
    }
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_09 => "HTTP/0.9",
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_11 => "HTTP/1.1",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP",
    }
}

// === values ===

fn push_or_dash<T>(line: &mut Vec<u8>, value: Option<T>, push: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => push(line, value),
        None => line.push(b'-'),
    }
}

fn push_or_null<T>(line: &mut Vec<u8>, value: Option<T>, push: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => push(line, value),
        None => line.extend_from_slice(b"null"),
    }
}

#[expect(clippy::indexing_slicing, reason = "a number has at most 20 digits")]
fn push_number(line: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return line.extend_from_slice(&digits[start..]);
        }
    }
}

/// Appends a number with leading zeros, so that it has `WIDTH` digits.
fn push_padded<const WIDTH: usize>(line: &mut Vec<u8>, mut number: u64) {
    let mut digits = [b'0'; WIDTH];
    for digit in digits.iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
    line.extend_from_slice(&digits);
}

/// Appends milliseconds with three decimals, which is exact to the microsecond.
fn push_milliseconds(line: &mut Vec<u8>, duration: Duration) {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    push_number(line, micros / 1000);
    line.push(b'.');
    push_padded::<3>(line, micros % 1000);
}

fn push_ip(line: &mut Vec<u8>, ip: IpAddr) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            for (index, octet) in ip.octets().into_iter().enumerate() {
                if index > 0 {
                    line.push(b'.');
                }
                push_number(line, octet.into());
            }
        }
        IpAddr::V6(ip) => line.extend_from_slice(ip.to_string().as_bytes()),
    }
}

/// Appends a time as RFC 3339 in UTC with milliseconds. A time before 1970 is written as the beginning of 1970.
fn push_time(line: &mut Vec<u8>, time: SystemTime) {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    push_padded::<4>(line, year);
    for (mark, number) in [
        (b'-', month),
        (b'-', day),
        (b'T', seconds / 3600 % 24),
        (b':', seconds / 60 % 60),
        (b':', seconds % 60),
    ] {
        line.push(mark);
        push_padded::<2>(line, number);
    }
    line.push(b'.');
    push_padded::<3>(line, since_epoch.subsec_millis().into());
    line.push(b'Z');
}

/// Returns year, month and day of the Gregorian calendar, from days since 1970-01-01.
///
/// The algorithm is Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last day.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

// === text from outside ===

/// Appends a name from the configuration. Spaces are escaped, so that it stays one word.
fn push_word(line: &mut Vec<u8>, word: &str) {
    push_escaped_text(line, word.as_bytes(), |byte| byte == b' ');
}

/// Appends text between quotes. The caller writes the quotes.
fn push_quoted_text(line: &mut Vec<u8>, text: &[u8]) {
    push_escaped_text(line, text, |_| false);
}

/// Appends text in which quotes, backslashes, bytes other than printable ASCII, and bytes for which `also` holds are
/// written as `\xHH`.
fn push_escaped_text(line: &mut Vec<u8>, text: &[u8], also: impl Fn(u8) -> bool) {
    let special = |byte: u8| !(b' '..=b'~').contains(&byte) || matches!(byte, b'"' | b'\\') || also(byte);
    push_runs(line, text, special, |line, byte| {
        line.extend_from_slice(b"\\x");
        push_hex(line, byte);
    });
}

fn push_json_string(line: &mut Vec<u8>, text: &[u8]) {
    line.push(b'"');
    if text.is_ascii() {
        push_json_ascii(line, text);
    } else {
        push_json_unicode(line, text);
    }
    line.push(b'"');
}

fn push_json_ascii(line: &mut Vec<u8>, text: &[u8]) {
    let special = |byte: u8| byte < b' ' || matches!(byte, b'"' | b'\\' | 0x7f);
    push_runs(line, text, special, |line, byte| match byte {
        b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
        control => {
            line.extend_from_slice(b"\\u00");
            push_hex(line, control);
        }
    });
}

/// Appends text. Control characters beyond ASCII and line separators are escaped although JSON allows them, because
/// some terminals and line-based readers do not treat them as text.
fn push_json_unicode(line: &mut Vec<u8>, text: &[u8]) {
    for character in text.utf8_chunks().flat_map(|chunk| {
        chunk.valid().chars().chain((!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER))
    }) {
        let mut encoded = [0; 4];
        match character {
            '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => {
                line.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
            }
            ascii if ascii.is_ascii() => push_json_ascii(line, ascii.encode_utf8(&mut encoded).as_bytes()),
            other => line.extend_from_slice(other.encode_utf8(&mut encoded).as_bytes()),
        }
    }
}

/// Copies the runs between special bytes of `text` unchanged, and calls `escape` for each special byte.
fn push_runs(
    line: &mut Vec<u8>,
    text: &[u8],
    special: impl Fn(u8) -> bool,
    escape: impl Fn(&mut Vec<u8>, u8),
) {
    let mut rest = text;
    while let Some((run, [byte, after @ ..])) =
        rest.iter().position(|&byte| special(byte)).and_then(|at| rest.split_at_checked(at))
    {
        line.extend_from_slice(run);
        escape(line, *byte);
        rest = after;
    }
    line.extend_from_slice(rest);
}

#[expect(clippy::indexing_slicing, reason = "four bits are below 16")]
fn push_hex(line: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    line.push(DIGITS[usize::from(byte >> 4)]);
    line.push(DIGITS[usize::from(byte & 0xf)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    /// 2026-11-22T12:00:00.123Z
    fn noon() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_795_348_800_123)
    }

    fn complete() -> Record<'static> {
        Record {
            time: noon(),
            client: Some([127, 0, 0, 1].into()),
            listener: "main",
            method: Some("GET"),
            host: Some(b"example.com"),
            path: Some(b"/path"),
            version: Some(http::Version::HTTP_11),
            status: Some(200),
            bytes_in: 0,
            bytes_out: 123,
            duration: Duration::from_micros(1200),
            pool: Some("web"),
            backend: Some("10.0.0.1:8080"),
            ttfb: Some(Duration::from_millis(1)),
            tries: 1,
            tried: Vec::new(),
            passed_over: vec![("10.0.0.2:8080", "down".into())],
            reused: Some(true),
            failure: None,
            offset: None,
            detail: None,
        }
    }

    /// A record of a connection without a valid request.
    fn bare() -> Record<'static> {
        Record {
            failure: Some("malformed request"),
            offset: Some(17),
            detail: Some("a \"detail\""),
            ..Record::new(noon(), "unix:/run/a b")
        }
    }

    fn text(record: &Record<'_>) -> String {
        let mut line = Vec::new();
        format_text(record, &mut line);
        String::from_utf8(line).unwrap()
    }

    fn json(record: &Record<'_>) -> serde_json::Value {
        let mut line = Vec::new();
        format_json(record, &mut line);
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        serde_json::from_slice(&line).unwrap()
    }

    fn time_text(time: SystemTime) -> String {
        let mut line = Vec::new();
        push_time(&mut line, time);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_complete_record_is_one_line_of_text() {
        assert_eq!(
            text(&complete()),
            "2026-11-22T12:00:00.123Z 127.0.0.1 \"GET example.com/path HTTP/1.1\" 200 123B 1.200ms web \
             10.0.0.1:8080 ttfb=1.000ms tries=1 reused=yes in=0B listener=main tried=- passed_over=10.0.0.2:8080:down reason=-\n"
        );
    }

    #[test]
    fn a_bare_record_has_dashes_in_text() {
        assert_eq!(
            text(&bare()),
            "2026-11-22T12:00:00.123Z - \"- -- -\" - 0B 0.000ms - - ttfb=- tries=0 reused=- in=0B \
             listener=unix:/run/a\\x20b tried=- passed_over=- reason=\"malformed request\" offset=17 detail=\"a \\x22detail\\x22\"\n"
        );
    }

    #[test]
    fn a_complete_record_is_a_json_object() {
        let expected = serde_json::json!({
            "time": "2026-11-22T12:00:00.123Z", "client": "127.0.0.1", "listener": "main", "method": "GET",
            "host": "example.com", "path": "/path", "protocol": "HTTP/1.1", "status": 200, "bytes_in": 0,
            "bytes_out": 123, "duration_ms": 1.2, "pool": "web", "backend": "10.0.0.1:8080", "ttfb_ms": 1.0,
            "tries": 1, "reused": true, "tried": null, "passed_over": {"10.0.0.2:8080": "down"}, "reason": null,
            "offset": null,
            "detail": null,
        });
        assert_eq!(json(&complete()), expected);
    }

    #[test]
    fn a_bare_record_has_all_keys_in_json() {
        let value = json(&bare());
        assert_eq!(value.as_object().unwrap().len(), 21);
        assert_eq!(value["offset"], 17);
        assert_eq!(value["detail"], "a \"detail\"");
        for key in
            ["client", "method", "host", "path", "status", "pool", "backend", "ttfb_ms", "reused", "tried"]
        {
            assert!(value[key].is_null(), "{key}");
        }
    }

    #[test]
    fn a_client_cannot_forge_a_line() {
        let path = b"/\" 200\n2026-11-22T12:00:00.123Z 10.0.0.9 \"GET /\\\r\x1b[31m\x00\x7f";
        let line = text(&Record { path: Some(path), ..complete() });
        assert_eq!(line.lines().count(), 1);
        assert_eq!(line.matches('"').count(), 2);
        assert!(line.contains(r"/\x22 200\x0a2026"), "{line}");
        let value = json(&Record { path: Some(path), ..complete() });
        assert_eq!(value["path"].as_str().unwrap().as_bytes(), path);
    }

    #[test]
    fn a_long_path_is_cut_and_its_length_is_logged() {
        let path = vec![b'a'; 9000];
        let cut = format!("{}...(9000B)", "a".repeat(2048));
        let record = Record { path: Some(&path), ..complete() };
        assert!(text(&record).contains(&format!("{cut} ")));
        assert_eq!(json(&record)["path"], cut);
        assert_eq!(shortened(&path[..2048]).len(), 2048);
    }

    #[test]
    fn json_is_valid_unicode_for_any_bytes_of_a_client() {
        let value = json(&Record { host: Some(b"gr\xc3\xbcn\xff\xc2\x85\xe2\x80\xa8\"\n"), ..complete() });
        assert_eq!(value["host"], "grün\u{fffd}\u{85}\u{2028}\"\n");
    }

    #[test]
    fn an_ipv4_client_on_a_dual_stack_socket_is_written_as_ipv4() {
        let mapped = IpAddr::V6("::ffff:10.0.0.1".parse().unwrap());
        assert!(text(&Record { client: Some(mapped), ..complete() }).contains(" 10.0.0.1 "));
        let real = IpAddr::V6("2001:db8::1".parse().unwrap());
        assert!(text(&Record { client: Some(real), ..complete() }).contains(" 2001:db8::1 "));
    }

    #[test]
    fn times_at_the_boundaries_of_the_calendar_are_correct() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(time_text(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        assert_eq!(time_text(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    proptest! {
        #[test]
        fn times_agree_with_jiff(millis in 0u64..253_402_300_799_000) {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            let expected = format!("{:.3}", jiff::Timestamp::try_from(time).unwrap());
            prop_assert_eq!(time_text(time), expected);
        }

        #[test]
        fn any_bytes_are_one_line_and_valid_json(bytes in any::<Vec<u8>>(), method in any::<String>()) {
            let record = Record {
                method: Some(&method),
                host: Some(&bytes),
                path: Some(&bytes),
                pool: Some(&method),
                failure: Some(&method),
                ..complete()
            };
            let value = json(&record);
            prop_assert_eq!(value["path"].as_str().unwrap(), String::from_utf8_lossy(&bytes));
            prop_assert_eq!(value["method"].as_str().unwrap(), &method);
            let line = text(&record);
            prop_assert!(line.trim_end_matches('\n').bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert_eq!(line.matches('"').count(), 4);
        }
    }
}
