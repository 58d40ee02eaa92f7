//! The JSON Schema: the shipped one matches the types, and the example has every key of it.
//!
//! `UPDATE_SCHEMA=1 cargo test -p shared --test config schema` writes `deploy/load_balancer.schema.json`.

use std::collections::BTreeSet;
use std::fs;

use crate::support::{context, repository};
use serde_json::Value;
use shared::config::{keys, load_text, schema, schema_text};

#[test]
fn the_shipped_schema_matches_the_types() {
    let path = repository().join("deploy/load_balancer.schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, schema_text()).expect("the schema can be written");
    }
    let shipped = fs::read_to_string(&path).expect("the schema is shipped");
    assert!(shipped == schema_text(), "run this test with UPDATE_SCHEMA=1");
}

#[test]
fn the_example_has_every_key_of_the_schema() {
    let path = repository().join("deploy/config/example.yaml");
    let text = fs::read_to_string(&path).expect("the example is shipped");
    let loaded = load_text("example.yaml", &text, &context()).unwrap_or_else(|problems| panic!("{problems}"));
    let value = serde_json::to_value(&loaded.config).expect("a configuration is a value");
    let mut written = BTreeSet::new();
    collect(&value, "", &keys(), &mut written);
    let missing: Vec<String> = keys().into_iter().filter(|key| !written.contains(key)).collect();
    assert!(missing.is_empty(), "keys that the example lacks: {missing:?}");
    let mentioned = |key: &String| text.contains(&format!("{}:", key.rsplit('.').next().unwrap_or_default()));
    let unmentioned: Vec<String> = keys().into_iter().filter(|key| !mentioned(key)).collect();
    assert!(unmentioned.is_empty(), "keys that the example does not mention: {unmentioned:?}");
}

/// Adds the keys of a configuration as paths of the schema, in which `*` stands for names such as those of pools.
fn collect(value: &Value, path: &str, keys: &[String], written: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let own = join(path, key);
                let path = if keys.contains(&own) { own } else { join(path, "*") };
                collect(value, &path, keys, written);
                written.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, &join(path, "*"), keys, written)),
        _ => {}
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[test]
fn every_mapping_refuses_unknown_keys_and_every_key_is_described() {
    let schema = schema();
    let mut faults = Vec::new();
    inspect(&schema, "", &mut faults);
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Ansible, yamllint and PyYAML read these words as booleans, both as keys and as values.
const BOOLEANS_OF_YAML_1_1: [&str; 8] = ["y", "n", "yes", "no", "true", "false", "on", "off"];

#[test]
fn no_key_and_no_value_is_a_boolean_in_yaml_1_1() {
    let mut words = Vec::new();
    collect_words(&schema(), &mut words);
    assert!(words.iter().any(|word| word == "retries") && words.iter().any(|word| word == "least_request"));
    words.retain(|word| BOOLEANS_OF_YAML_1_1.contains(&word.to_ascii_lowercase().as_str()));
    assert_eq!(words, [""; 0]);
}

/// Adds all keys, and the words that are values, without the deprecated old names.
fn collect_words(schema: &Value, words: &mut Vec<String>) {
    match schema {
        Value::Object(map) if map.get("deprecated") == Some(&Value::Bool(true)) => {}
        Value::Object(map) => {
            let current = |value: &Value| value["deprecated"] != Value::Bool(true);
            let properties = map.get("properties").and_then(Value::as_object).into_iter().flatten();
            words.extend(properties.filter(|(_, value)| current(value)).map(|(key, _)| key.clone()));
            let choices = map.get("enum").and_then(Value::as_array).into_iter().flatten();
            let choices = choices.chain(map.get("const")).filter_map(Value::as_str);
            words.extend(choices.map(str::to_owned));
            map.values().for_each(|value| collect_words(value, words));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_words(item, words)),
        _ => {}
    }
}

fn inspect(schema: &Value, path: &str, faults: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        if schema["additionalProperties"] != Value::Bool(false) {
            faults.push(format!("{path} accepts unknown keys"));
        }
        let silent = properties.iter().filter(|(_, key)| key.get("description").is_none());
        faults.extend(silent.map(|(key, _)| format!("{path}/{key} has no description")));
    }
    match schema {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| inspect(value, &format!("{path}/{key}"), faults));
        }
        Value::Array(items) => items.iter().for_each(|item| inspect(item, path, faults)),
        _ => {}
    }
}
