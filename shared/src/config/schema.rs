//! The JSON Schema of the configuration, for editors and for whoever writes configurations by program.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::sections::Config;

/// The schema of the whole file, draft 2020-12.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12();
    let mut schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    // An empty list of pools is refused with a message of its own, so the type has a default, which is none.
    schema["required"] = json!(["pools"]);
    if let Some(pools) = schema.pointer_mut("/properties/pools").and_then(Value::as_object_mut) {
        pools.remove("default");
        pools.insert("minProperties".to_owned(), json!(1));
    }
    schema["title"] = json!("load_balancer");
    schema
}

/// The schema as it is kept in `deploy/load_balancer.schema.json`.
pub fn schema_text() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).expect("a schema is JSON");
    text.push('\n');
    text
}
