//! Keys and values with a new name. The old name still works and causes a warning.
//!
//! The tree is changed before any other module reads it, so that no other module handles the old names. A row can also
//! name the boolean that YAML 1.1 makes of the old name. Ansible and PyYAML write the name back as this boolean, whose
//! meaning is then unclear, so it is rejected with the new name in the hint.

use serde_json::{Value as Json, json};

use super::document::{Node, Step, Value};
use super::problem::{Id, Problem};

/// A key or value that was renamed.
struct Renamed {
    /// The path of the mapping that contains the key, or of the value; `*` stands for any key or item.
    path: &'static [&'static str],
    what: What,
    old: &'static str,
    new: &'static str,
    /// The boolean that YAML 1.1 makes of the old name. `None` means that it remains a string.
    boolean: Option<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Key,
    Value,
}

const RENAMED: &[Renamed] = &[
    Renamed {
        path: &["pools", "*", "retries"],
        what: What::Key,
        old: "on",
        new: "when",
        boolean: Some(true),
    },
    Renamed {
        path: &["access_log", "format"],
        what: What::Value,
        old: "off",
        new: "none",
        boolean: Some(false),
    },
    Renamed {
        path: &["pools", "*", "outlier_detection"],
        what: What::Key,
        old: "gray",
        new: "slow_backends",
        boolean: None,
    },
];

/// Renames all old names in the tree, and reports each of them.
pub(crate) fn rename(root: &mut Node, problems: &mut Vec<Problem>) {
    for renamed in RENAMED {
        for path in root.matching(renamed.path) {
            match renamed.what {
                What::Key => renamed.rename_key(root, &path, problems),
                What::Value => renamed.rename_value(root, &path, problems),
            }
        }
    }
}

/// Adds the old names to the schema as deprecated, so that editors do not report them as errors.
pub(crate) fn describe(schema: &mut Json) {
    for renamed in RENAMED {
        let Some(pointer) = pointer_to(schema, renamed.path) else { continue };
        let Some(place) = schema.pointer_mut(&pointer) else { continue };
        let description = json!(format!("The old name of `{}`.", renamed.new));
        match renamed.what {
            What::Key => {
                let mut key = place["properties"][renamed.new].clone();
                key["deprecated"] = json!(true);
                key["description"] = description;
                place["properties"][renamed.old] = key;
            }
            What::Value => {
                let word = json!({
                    "type": "string", "const": renamed.old, "deprecated": true, "description": description,
                });
                if let Some(words) = place["oneOf"].as_array_mut() {
                    words.push(word);
                }
            }
        }
    }
}

/// Returns the JSON pointer of the schema at a path of keys.
fn pointer_to(schema: &Json, path: &[&str]) -> Option<String> {
    let mut pointer = String::new();
    for step in path {
        let parts = match *step {
            "*" => {
                vec!["items".to_owned(), "additionalProperties".to_owned(), "patternProperties".to_owned()]
            }
            key => vec![format!("properties/{key}")],
        };
        let found = |part: &String| {
            schema.pointer(&format!("{pointer}/{part}")).is_some_and(|part| !part.is_boolean())
        };
        let part = parts.into_iter().find(found)?;
        pointer = format!("{pointer}/{part}");
        if part == "patternProperties" {
            let pattern = schema.pointer(&pointer)?.as_object()?.keys().next()?;
            pointer = format!("{pointer}/{}", pattern.replace('~', "~0").replace('/', "~1"));
        }
        if let Some(reference) = schema.pointer(&pointer)?["$ref"].as_str() {
            pointer = reference.trim_start_matches('#').to_owned();
        }
    }
    Some(pointer)
}

// === impl Renamed ===

impl Renamed {
    fn rename_key(&self, root: &mut Node, path: &[Step], problems: &mut Vec<Problem>) {
        let Self { old, new, .. } = self;
        self.reject_boolean_key(root, path, problems);
        let Some(Value::Map(map)) = root.get(path).map(|node| &node.value) else { return };
        let Some(first) = map.get(old).map(|entry| entry.key_span) else { return };
        if let Some(second) = map.get(new).map(|entry| entry.key_span) {
            let message = format!("the key `{new}` is given twice, once under its old name `{old}`");
            let problem = Problem::new(Id::DuplicateKey, message).at(first).related(second, "given here");
            problems.push(problem.hint(format!("remove `{old}`")));
            root.remove_wrong(&under(path, old));
            return;
        }
        problems.push(self.warning(&format!("the key `{old}` has a new name, `{new}`")).at(first));
        root.rename_key(path, old, new);
    }

    fn reject_boolean_key(&self, root: &mut Node, path: &[Step], problems: &mut Vec<Problem>) {
        let Some(boolean) = self.boolean.map(|boolean| boolean.to_string()) else { return };
        let path = under(path, &boolean);
        if root.get(&path).is_some() {
            let problem = Problem::new(Id::UnknownKey, format!("unknown key `{boolean}`"));
            problems.push(problem.at(root.key_place(&path)).hint(self.boolean_hint("key")));
            root.remove_wrong(&path);
        }
    }

    fn rename_value(&self, root: &mut Node, path: &[Step], problems: &mut Vec<Problem>) {
        let Self { old, new, boolean, .. } = self;
        let Some(node) = root.get(path) else { return };
        let span = node.span;
        match &node.value {
            Value::Text { text, .. } if text == old => {
                problems.push(self.warning(&format!("the value `{old}` has a new name, `{new}`")).at(span));
                root.replace(path, Value::Text { text: (*new).to_owned(), plain: true });
            }
            Value::Bool(found) if Some(*found) == *boolean => {
                let problem = Problem::new(Id::UnknownChoice, format!("unknown value `{found}`"));
                problems.push(problem.at(span).hint(self.boolean_hint("value")));
                root.remove_wrong(path);
            }
            _ => {}
        }
    }

    fn warning(&self, message: &str) -> Problem {
        let why =
            self.boolean.map(|boolean| format!(": tools for YAML 1.1 read `{}` as {boolean}", self.old));
        let hint = format!("write `{}`{}", self.new, why.unwrap_or_default());
        Problem::new(Id::Renamed, message).hint(hint)
    }

    fn boolean_hint(&self, what: &str) -> String {
        let Self { old, new, .. } = self;
        format!("write `{new}` if the {what} was `{old}` before a tool for YAML 1.1 wrote the file")
    }
}

fn under(path: &[Step], key: &str) -> Vec<Step> {
    path.iter().cloned().chain([key.into()]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::document::parse;
    use super::super::schema::schema;
    use super::*;

    fn renamed(text: &str) -> (Node, Vec<String>) {
        let (root, problems) = parse(text);
        assert_eq!(problems, []);
        let (mut root, mut problems) = (root.expect("it is YAML"), Vec::new());
        rename(&mut root, &mut problems);
        let place = |problem: &Problem| problem.span.map_or("?", |span| &text[span.range()]);
        let shown = |problem: &Problem| format!("{} at {}: {}", problem.id, place(problem), problem.message);
        (root, problems.iter().map(shown).collect())
    }

    #[test]
    fn old_names_become_new_ones_with_a_warning() {
        let (root, problems) = renamed("pools: {a: {retries: {on: [reset]}}, b: {retries: {when: [reset]}}}");
        assert_eq!(problems, ["LB017 at on: the key `on` has a new name, `when`"]);
        for pool in ["a", "b"] {
            let path = ["pools".into(), pool.into(), "retries".into(), "when".into()];
            assert!(root.get(&path).is_some(), "{pool}");
        }
        let (root, problems) = renamed("access_log: {format: off}");
        assert_eq!(problems, ["LB017 at off: the value `off` has a new name, `none`"]);
        let format = root.get(&["access_log".into(), "format".into()]).map(|node| &node.value);
        assert!(matches!(format, Some(Value::Text { text, .. }) if text == "none"));
    }

    #[test]
    fn a_key_under_both_names_is_an_error() {
        let (_, problems) = renamed("pools: {a: {retries: {on: [reset], when: [timeout]}}}");
        assert_eq!(problems, ["LB003 at on: the key `when` is given twice, once under its old name `on`"]);
    }

    #[test]
    fn the_boolean_that_yaml_1_1_makes_of_an_old_name_is_rejected() {
        let (_, problems) = renamed("pools: {a: {retries: {true: [reset]}}}\naccess_log: {format: false}\n");
        assert_eq!(problems, ["LB010 at true: unknown key `true`", "LB014 at false: unknown value `false`"]);
    }

    #[test]
    fn the_schema_has_every_old_name_as_deprecated() {
        let schema = schema();
        for Renamed { path, what, old, .. } in RENAMED {
            let pointer = pointer_to(&schema, path).unwrap_or_else(|| panic!("no {path:?} in the schema"));
            let place = schema.pointer(&pointer).unwrap();
            let found = match what {
                What::Key => place["properties"].get(old),
                What::Value => place["oneOf"].as_array().unwrap().iter().find(|word| word["const"] == *old),
            };
            assert_eq!(found.map(|found| &found["deprecated"]), Some(&json!(true)), "{old}");
        }
    }
}
