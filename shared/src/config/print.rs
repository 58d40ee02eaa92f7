//! The configuration in effect, written out as YAML that loads again.

use std::fmt::Write;

use serde_json::Value;

use super::sections::Config;

/// Formats every key that has a value, including defaults.
pub(crate) fn yaml(config: &Config) -> String {
    let mut value =
        serde_json::to_value(config).expect("a configuration has no maps with keys other than strings");
    drop_times_of_no_check(&mut value);
    let mut text = String::new();
    block(&mut text, &value, 0);
    text
}

/// Removes the durations of health checks that are turned off, since those keys are rejected together with `type:
/// none`.
fn drop_times_of_no_check(config: &mut Value) {
    let pools = config.get_mut("pools").and_then(Value::as_object_mut).into_iter().flatten();
    for (_, pool) in pools {
        let Some(Value::Object(check)) = pool.get_mut("health_check") else { continue };
        if check.get("type").is_some_and(|kind| kind == "none") {
            check.retain(|key, _| key == "type");
        }
    }
}

/// Writes a mapping or a list in block style, and any other value on one line.
fn block(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let _ = write!(out, "{:indent$}{}:", "", scalar(&Value::from(key.as_str())));
                nested(out, value, indent + 2);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let _ = write!(out, "{:indent$}-", "");
                nested(out, item, indent + 2);
            }
        }
        other => {
            let _ = writeln!(out, "{:indent$}{}", "", scalar(other));
        }
    }
}

fn nested(out: &mut String, value: &Value, indent: usize) {
    if is_short(value) {
        let _ = writeln!(out, " {}", flow(value));
    } else {
        out.push('\n');
        block(out, value, indent);
    }
}

/// Returns whether a value is short enough for one line: it contains a few scalars at most.
fn is_short(value: &Value) -> bool {
    let scalar = |value: &Value| !value.is_object() && !value.is_array();
    match value {
        Value::Object(map) => map.len() <= 4 && map.values().all(scalar),
        Value::Array(items) => items.len() <= 8 && items.iter().all(scalar),
        _ => true,
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let entries: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{}: {}", scalar(&Value::from(key.as_str())), flow(value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        other => scalar(other),
    }
}

/// Formats a scalar. A string stays without quotes if YAML reads it as that string. Otherwise it is written as in JSON,
/// which YAML accepts.
fn scalar(value: &Value) -> String {
    let Value::String(text) = value else { return value.to_string() };
    // The values are already expanded. They must not be expanded again when the output is loaded.
    let text = text.replace("${", "$${");
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/');
    let plain = text.starts_with(word) && text.chars().all(|c| word(c) || c == '-') && is_text(&text);
    if plain { text } else { Value::from(text).to_string() }
}

/// Returns whether every version of YAML reads the text as a string. Tools for YAML 1.1 might process the output.
fn is_text(text: &str) -> bool {
    matches!(super::document::resolve(text), super::document::Value::Text { .. })
        && !is_other_in_yaml_1_1(text)
}

/// Returns whether YAML 1.1 would read the text as a boolean, a number or a date. Numbers and dates are recognised by
/// their characters alone.
fn is_other_in_yaml_1_1(text: &str) -> bool {
    const BOOLEANS: [&str; 6] = ["y", "n", "yes", "no", "on", "off"];
    const NUMBERS: [&str; 5] = ["0b", "0x", "0o", ".inf", ".nan"];
    let lower = text.to_ascii_lowercase();
    let is_numeric = lower.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && lower.chars().all(|c| c.is_ascii_digit() || "_.-e".contains(c))
        && lower.matches('.').count() < 2;
    BOOLEANS.contains(&lower.as_str()) || NUMBERS.iter().any(|start| lower.starts_with(start)) || is_numeric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_that_some_version_of_yaml_reads_as_another_type_is_quoted() {
        for text in
            ["no", "Off", "y", "1_000", "2026-11-22", "0b11", ".inf", "1.5", "007", "true", "~", "200-399"]
        {
            assert_eq!(scalar(&Value::from(text)), format!("{text:?}"));
        }
        for text in ["5s", "10.0.0.1", "none", "web-1", "64KiB", "/v1", "a.example", "once"] {
            assert_eq!(scalar(&Value::from(text)), text);
        }
    }
}
