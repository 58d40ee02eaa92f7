//! The keys of the configuration, derived from its schema.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::schema::schema;

/// Returns the paths of all keys in alphabetical order, such as `pools.*.timeouts.connect`. `*` stands for any name or
/// item. Old names of renamed keys are left out.
pub fn keys() -> Vec<String> {
    let schema = schema();
    let mut found = BTreeSet::new();
    collect(&schema, &schema, "", &mut found);
    found.into_iter().collect()
}

fn collect(root: &Value, schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let schema = resolve(root, schema);
    let Some(object) = schema.as_object() else { return };
    let is_old = |value: &Value| value["deprecated"] == Value::Bool(true);
    let properties = object.get("properties").and_then(Value::as_object).into_iter().flatten();
    for (key, value) in properties.filter(|(_, value)| !is_old(value)) {
        let path = join(path, key);
        collect(root, value, &path, found);
        found.insert(path);
    }
    for part in ["items", "additionalProperties"].iter().filter_map(|part| object.get(*part)) {
        collect(root, part, &join(path, "*"), found);
    }
    for part in object.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(Map::values) {
        collect(root, part, &join(path, "*"), found);
    }
    for part in ["anyOf", "oneOf", "allOf"].iter().filter_map(|part| object.get(*part)?.as_array()).flatten()
    {
        collect(root, part, path, found);
    }
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#'));
    target.and_then(|pointer| root.pointer(pointer)).unwrap_or(schema)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_all_crates_and_depths_are_found() {
        let keys = keys();
        for key in [
            "threads",
            "pools.*.backends.*.weight",
            "pools.*.health_check.expect_status",
            "routes.*.match.header",
            "metrics.address",
            "listeners.*.address",
        ] {
            assert!(keys.iter().any(|known| known == key), "{key} is not in {keys:?}");
        }
    }
}
