//! The JSON Schema of the configuration, for editors and for programs that write configurations.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::renamed;
use super::sections::Config;

/// A pattern for strings with a variable. Any value can be such a string, since its type depends on the environment.
const VARIABLE: &str = r"\$\{";

/// Returns the schema of the whole file, draft 2020-12.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Config>().to_value();
    require_pools(&mut schema);
    adjust(&mut schema);
    renamed::describe(&mut schema);
    schema["title"] = json!("load_balancer");
    in_reading_order(schema)
}

/// Moves the title and the description to the beginning, where readers look first.
fn in_reading_order(mut schema: Value) -> Value {
    let first = ["$schema", "title", "description"].map(|key| (key.to_owned(), schema[key].take()));
    let rest =
        schema.as_object().cloned().unwrap_or_default().into_iter().filter(|(_, value)| !value.is_null());
    first.into_iter().chain(rest).collect()
}

/// Returns the schema as text, as in `deploy/load_balancer.schema.json`.
pub fn schema_text() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).expect("a schema is JSON");
    text.push('\n');
    text
}

/// Marks `pools` as required. The type has a default for it, so that a missing key gets a diagnostic of its own.
fn require_pools(schema: &mut Value) {
    schema["required"] = json!(["pools"]);
    if let Some(pools) = schema.pointer_mut("/properties/pools").and_then(Value::as_object_mut) {
        pools.remove("default");
        pools.insert("minProperties".to_owned(), json!(1));
    }
}

/// Adds the rules that the types cannot express, recursively: a value is never null, and any value can be a variable.
fn adjust(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    reject_null(object);
    for part in ["properties", "patternProperties", "$defs"] {
        object
            .get_mut(part)
            .and_then(Value::as_object_mut)
            .into_iter()
            .flat_map(Map::values_mut)
            .for_each(adjust);
    }
    for part in ["items", "additionalProperties"] {
        object.get_mut(part).into_iter().for_each(adjust);
    }
    for part in ["anyOf", "oneOf"] {
        object.get_mut(part).and_then(Value::as_array_mut).into_iter().flatten().for_each(adjust);
    }
    allow_variables(object);
}

/// Removes null from the types. An optional key can be left out, but a key without a value is rejected.
fn reject_null(object: &mut Map<String, Value>) {
    if let Some(types) = object.get_mut("type").and_then(Value::as_array_mut) {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            object["type"] = only.clone();
        }
    }
    let Some(choices) = object.get_mut("anyOf").and_then(Value::as_array_mut) else { return };
    choices.retain(|choice| choice["type"] != "null");
    if let [Value::Object(only)] = choices.as_slice() {
        let only = only.clone();
        object.remove("anyOf");
        object.extend(only);
    }
}

fn allow_variables(object: &mut Map<String, Value>) {
    let variable = json!({"type": "string", "pattern": VARIABLE});
    if let Some(Value::Array(words)) = object.remove("enum") {
        object.remove("type");
        object.insert("anyOf".to_owned(), json!([{"enum": words}, variable]));
    }
    let words = object.get_mut("oneOf").and_then(Value::as_array_mut);
    if let Some(words) = words.filter(|words| words.iter().all(|word| word.get("const").is_some())) {
        words.push(variable);
    }
    if let Some(kind @ ("integer" | "number" | "boolean")) = object.get("type").and_then(Value::as_str) {
        let kinds = json!([kind, "string"]);
        object.insert("type".to_owned(), kinds);
        object.insert("pattern".to_owned(), json!(VARIABLE));
    } else if let Some(Value::String(pattern)) = object.get_mut("pattern") {
        *pattern = format!("{pattern}|{VARIABLE}");
    }
}
