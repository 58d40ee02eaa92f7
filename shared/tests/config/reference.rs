//! `shared/guide/reference.md` lists every key of the schema, with its values and its default.
//!
//! `UPDATE_SCHEMA=1 cargo test --workspace --test config schema` writes the page together with the schema.

use std::fmt::Write;
use std::fs;

use serde_json::{Map, Value};
use shared::config::schema;

use crate::support::repository;

const HEAD: &str = "\
# Reference

This page lists every key of the configuration file. It is generated from the schema, so it is complete. `deploy/config/example.yaml`
shows the same keys in one file, and the other pages of the guide explain them.

A star in a path stands for any name or any item of a list: `pools.*.policy` is the key `policy` of each pool.
";

#[test]
fn the_reference_page_lists_the_keys_of_the_schema() {
    let path = repository().join("shared/guide/reference.md");
    let page = Schema(schema()).page();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, &page).expect("the page can be written");
    }
    let written = fs::read_to_string(&path).expect("the page exists");
    assert!(
        written == page,
        "the reference differs from the schema: run `UPDATE_SCHEMA=1 cargo test --workspace --test config schema`"
    );
}

/// A schema whose references point into itself.
struct Schema(Value);

/// A table of the page: the keys of one mapping.
struct Section<'a> {
    path: String,
    description: String,
    keys: Vec<Key<'a>>,
}

/// A row of a table.
struct Key<'a> {
    name: &'a str,
    required: bool,
    schema: Value,
}

impl Schema {
    fn page(&self) -> String {
        let mut sections = Vec::new();
        self.collect(&self.0, "", &mut sections);
        let mut page = HEAD.to_owned();
        for section in sections {
            section.write(&mut page);
        }
        page
    }

    /// Adds the section of a mapping, and then the sections of the mappings below it.
    fn collect<'a>(&'a self, mapping: &'a Value, path: &str, sections: &mut Vec<Section<'a>>) {
        let description = text(&mapping["description"]);
        let required = mapping["required"].as_array().cloned().unwrap_or_default();
        let properties = mapping["properties"].as_object().into_iter().flatten();
        let current = properties.filter(|(_, schema)| schema["deprecated"] != Value::Bool(true));
        let keys = current.clone().map(|(name, schema)| Key {
            name,
            required: required.iter().any(|key| key == name),
            schema: self.resolved(schema),
        });
        sections.push(Section { path: path.to_owned(), description, keys: keys.collect() });
        for (name, schema) in current {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            for (below, mapping) in self.mappings(schema) {
                self.collect(mapping, &format!("{path}{below}"), sections);
            }
        }
    }

    /// The mappings with fixed keys that a value may be or contain, with the path from the value to each.
    fn mappings<'a>(&'a self, schema: &'a Value) -> Vec<(&'static str, &'a Value)> {
        let target = self.target(schema);
        if target["properties"].is_object() {
            return vec![("", target)];
        }
        let choices =
            target["anyOf"].as_array().into_iter().flatten().flat_map(|choice| self.mappings(choice));
        let items = target.get("items").into_iter();
        let named = target["patternProperties"].as_object().into_iter().flat_map(Map::values);
        let below = items.chain(named).flat_map(|schema| self.mappings(schema));
        choices.chain(below.map(|(_, mapping)| (".*", mapping))).collect()
    }

    fn target<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let pointer = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
        pointer.map_or(schema, |pointer| self.0.pointer(pointer).expect("a reference has a target"))
    }

    /// A schema with the keywords of the schema that it refers to; its own keywords win.
    fn resolved(&self, schema: &Value) -> Value {
        let mut merged = self.target(schema).as_object().cloned().unwrap_or_default();
        merged.extend(schema.as_object().cloned().unwrap_or_default());
        if let Some(items) = merged.get("items") {
            let items = self.resolved(items);
            merged.insert("items".to_owned(), items);
        }
        if let Some(Value::Array(choices)) = merged.get("anyOf") {
            let choices = choices.iter().map(|choice| self.resolved(choice)).collect();
            merged.insert("anyOf".to_owned(), choices);
        }
        Value::Object(merged)
    }
}

// === impl Section ===

impl Section<'_> {
    fn write(&self, page: &mut String) {
        let heading = if self.path.is_empty() { "Top level".to_owned() } else { format!("`{}`", self.path) };
        let description =
            if self.path.is_empty() { String::new() } else { format!("{}\n\n", self.description) };
        _ = write!(
            page,
            "\n## {heading}\n\n{description}| key | value | default | meaning |\n|---|---|---|---|\n"
        );
        for key in &self.keys {
            _ = writeln!(page, "{}", key.row());
        }
    }
}

// === impl Key ===

impl Key<'_> {
    fn row(&self) -> String {
        let description = text(&self.schema["description"]);
        let (meaning, described) = split_default(&description);
        let default = match self.schema.get("default") {
            _ if self.required => "required".to_owned(),
            Some(value) if !value.is_object() => format!("`{}`", value_text(value)),
            _ => described,
        };
        let words = [words(&self.schema), words(&self.schema["items"])].concat();
        let list: String = words.iter().map(|(word, about)| format!("<br>`{word}`: {about}")).collect();
        let cells = [format!("`{}`", self.name), kind(&self.schema), default, format!("{meaning}{list}")];
        format!("| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))
    }
}

/// The sentence before "; default: …" at the end of a description, and the default.
fn split_default(description: &str) -> (String, String) {
    let parts = ["; default: ", ". Default: "].into_iter().find_map(|mark| description.rsplit_once(mark));
    match parts {
        Some((meaning, default)) if !default.contains(". ") => {
            (format!("{meaning}."), default.trim_end_matches('.').to_owned())
        }
        _ => (description.to_owned(), String::new()),
    }
}

/// The words that a value may be, with what each means; empty unless every word has a description.
fn words(schema: &Value) -> Vec<(String, String)> {
    let choices = ["oneOf", "anyOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
    let current = choices.filter(|choice| choice["deprecated"] != Value::Bool(true));
    let words = current
        .filter_map(|choice| Some((choice["const"].as_str()?.to_owned(), text(&choice["description"]))));
    words.collect()
}

/// What kind of value a key takes.
fn kind(schema: &Value) -> String {
    let choices = ["oneOf", "anyOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
    let mut kinds: Vec<String> = choices.filter(|choice| !is_variable(choice)).map(kind).collect();
    kinds.retain(|kind| !kind.is_empty());
    kinds.dedup();
    if !kinds.is_empty() {
        let are_words = kinds.iter().all(|kind| kind.starts_with('`'));
        return kinds.join(if are_words { ", " } else { " or " });
    }
    if let Some(word) = schema["const"].as_str() {
        return if schema["deprecated"] == Value::Bool(true) { String::new() } else { format!("`{word}`") };
    }
    if let Some(words) = schema["enum"].as_array() {
        let unquoted =
            words.iter().filter(|word| word.as_str().is_none_or(|word| word.parse::<u32>().is_err()));
        return unquoted.map(|word| format!("`{}`", value_text(word))).collect::<Vec<_>>().join(", ");
    }
    let name = schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or_default();
    match name {
        "integer" | "number" => range(schema),
        "boolean" => "`true` or `false`".to_owned(),
        "array" => format!("list of: {}", kind(&schema["items"])),
        "object" => "mapping".to_owned(),
        "string" if is_duration(schema) => "duration".to_owned(),
        "string" => "text".to_owned(),
        _ => String::new(),
    }
}

fn range(schema: &Value) -> String {
    let least = schema.get("minimum").map(value_text);
    let least =
        least.or_else(|| schema.get("exclusiveMinimum").map(|above| format!("above {}", value_text(above))));
    match (least, schema.get("maximum").map(value_text)) {
        (Some(least), Some(most)) if least == most => least,
        (Some(least), Some(most)) if most.len() < 10 => format!("{least} to {most}"),
        (Some(least), _) => format!("{least} or more"),
        _ => "number".to_owned(),
    }
}

/// Every value may also be a text with a variable, which the head of the guide explains once.
fn is_variable(schema: &Value) -> bool {
    schema["pattern"] == r"\$\{" && schema.get("minimum").is_none() && schema["type"] == "string"
}

fn is_duration(schema: &Value) -> bool {
    schema["pattern"].as_str().is_some_and(|pattern| pattern.contains("(ms|s|m|h)"))
}

fn value_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A description in one line.
fn text(description: &Value) -> String {
    description.as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}
