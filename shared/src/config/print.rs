//! The configuration in effect, written out as YAML that loads again.

use std::fmt::Write;

use serde_json::Value;

use super::document::Node;
use super::plan::Plan;
use super::schema::schema;
use super::sections::Config;
use crate::process::logging::LogFilter;

/// The paths of the keys whose default depends on the machine or on the path of the file.
const FROM_SURROUNDINGS: [&[&str]; 4] =
    [&["threads"], &["pid_file"], &["upgrade_sock"], &["control", "socket"]];

/// Returns the [`FROM_SURROUNDINGS`] that a file does not give.
pub(super) fn absent(root: &Node) -> Vec<&'static [&'static str]> {
    let is_absent = |path: &&[&str]| {
        let path: Vec<_> = path.iter().map(|key| (*key).into()).collect();
        root.get(&path).is_none()
    };
    FROM_SURROUNDINGS.into_iter().filter(is_absent).collect()
}

/// Formats every key that has a value, including defaults. Keys of the process that have no value, and those in
/// `absent`, are comments that say what applies. The text thus gives the right plan on another machine, too.
pub(super) fn yaml(config: &Config, plan: &Plan, absent: &[&[&str]]) -> String {
    let mut value =
        serde_json::to_value(config).expect("a configuration has no maps with keys other than strings");
    drop_times_of_no_check(&mut value);
    absent.iter().for_each(|path| remove(&mut value, path));
    let mut text = String::new();
    for (key, about) in schema()["properties"].as_object().into_iter().flatten() {
        match value.get(key) {
            Some(value) => {
                entry(&mut text, key, value, 0);
                unset_within(key, value, plan).into_iter().for_each(|(key, effect)| {
                    comment(&mut text, key, &effect);
                });
            }
            // The old name of a key.
            None if about["deprecated"] == true => {}
            None => comment(&mut text, key, &unset(key, plan)),
        }
    }
    text
}

fn remove(value: &mut Value, path: &[&str]) {
    let [sections @ .., key] = path else { return };
    let section = sections.iter().try_fold(value, |value, section| value.get_mut(section));
    section.and_then(Value::as_object_mut).and_then(|section| section.shift_remove(*key));
}

fn comment(out: &mut String, key: &str, effect: &str) {
    let _ = writeln!(out, "# {key}: {effect} (default)");
}

/// Returns what applies if a key at the top level has no value.
fn unset(key: &str, plan: &Plan) -> String {
    let server = &plan.server;
    let in_background = |yes: &str, no: &str| if server.daemon { yes } else { no }.to_owned();
    match key {
        "threads" => server.threads.to_string(),
        "upgrade_sock" => server.upgrade_sock.display().to_string(),
        "pid_file" => {
            let path = server.runtime.pid_file().display().to_string();
            in_background(&path, &format!("none in the foreground, {path} with -d"))
        }
        "error_log" => in_background("none in the background", "standard error"),
        "log_level" => LogFilter::default().to_string(),
        "user" => "the user that starts the daemon".to_owned(),
        "group" => "the group of `user`".to_owned(),
        "working_directory" => in_background("/", "the directory in which the daemon starts"),
        "ca_file" => "the authorities of the system".to_owned(),
        "client_bind_to_ipv4" | "client_bind_to_ipv6" => "chosen by the system".to_owned(),
        _ => "none".to_owned(),
    }
}

/// Returns the key without a value in a section, and what applies instead.
fn unset_within(section: &str, value: &Value, plan: &Plan) -> Option<(&'static str, String)> {
    match section {
        "access_log" if value.get("path").is_none() && value["format"] != "none" => {
            Some(("access_log.path", "standard output".to_owned()))
        }
        "control" if value.get("socket").is_none() => {
            Some(("control.socket", plan.control.socket.display().to_string()))
        }
        "reload" if value.get("rollback").is_none() => Some(("reload.rollback", "never".to_owned())),
        _ => None,
    }
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
                entry(out, key, value, indent);
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

fn entry(out: &mut String, key: &str, value: &Value, indent: usize) {
    let _ = write!(out, "{:indent$}{}:", "", scalar(&Value::from(key)));
    nested(out, value, indent + 2);
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
