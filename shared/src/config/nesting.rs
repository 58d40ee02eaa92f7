//! Diagnostics for keys that are not indented enough, and therefore stand beside the key that they belong to.
//!
//! YAML accepts such a file, but almost every key in it would have a problem of its own, which does not name the cause.
//! Here, the cause is one problem, and the keys are moved to where they belong, so that their values are checked as
//! well.

use std::collections::{BTreeMap, BTreeSet};

use super::document::{Entry, Map, Node, Step, Value};
use super::keys::keys;
use super::problem::{Id, Problem, Span};
use super::{syntax, words};
use crate::words::{count_of, listed};

/// The name of a pool without a name.
const NAMELESS: &str = "web";

/// The number of spaces to indent by, in a file without an indented line.
const USUAL_INDENT: usize = 2;

/// Reports every run of keys that stands beside its owner, and moves it into the owner.
pub(crate) fn mend(root: &mut Node, text: &str, problems: &mut Vec<Problem>) {
    let mut mender = Mender { text, sections: sections(), problems, changed: Vec::new() };
    mender.visit(root, &mut Vec::new());
    mender.changed.iter().for_each(|path| root.mark_damaged(path));
}

/// Returns the keys of each mapping, by the pattern of its path.
fn sections() -> BTreeMap<String, BTreeSet<String>> {
    let mut sections: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in keys() {
        let (section, key) = path.rsplit_once('.').unwrap_or(("", &path));
        sections.entry(section.to_owned()).or_default().insert(key.to_owned());
    }
    sections
}

struct Mender<'a> {
    text: &'a str,
    sections: BTreeMap<String, BTreeSet<String>>,
    problems: &'a mut Vec<Problem>,
    /// The paths of the values that keys were moved into.
    changed: Vec<Vec<Step>>,
}

/// The kind of value that a run of keys belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// `pools`.
    Pools,
    /// A pool.
    Pool,
    /// Any other section.
    Section,
    /// The last item of a list.
    Item,
}

// === impl Mender ===

impl Mender<'_> {
    fn visit(&mut self, node: &mut Node, path: &mut Vec<Step>) {
        match &mut node.value {
            Value::Map(map) => {
                self.mend(map, path);
                for entry in &mut map.entries {
                    path.push(entry.key.as_str().into());
                    self.visit(&mut entry.node, path);
                    path.pop();
                }
            }
            Value::List(list) => {
                for (index, item) in list.items.iter_mut().enumerate() {
                    path.push(index.into());
                    self.visit(item, path);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    /// Mends the mapping at `at`, but no mapping in it.
    fn mend(&mut self, map: &mut Map, at: &[Step]) {
        if words::pattern(at) == "pools" {
            self.give_name(map, at);
        }
        let mut index = 0;
        while index < map.entries.len() {
            let (owner, count) = self.run_after(map, index, at);
            if count > 0 {
                let run: Vec<Entry> = map.entries.drain(index + 1..=index + count).collect();
                self.adopt(owner, &mut map.entries[index], run, at);
            }
            index += 1;
        }
    }

    /// Returns the number of entries after the one at `index` that belong to it.
    fn run_after(&self, map: &Map, index: usize, at: &[Step]) -> (Owner, usize) {
        let entry = &map.entries[index];
        let (here, path) = (words::pattern(at), [at, &[entry.key.as_str().into()]].concat());
        let path = words::pattern(&path);
        let (owner, section) = match (here.as_str(), &entry.node.value) {
            ("pools", _) => (Owner::Pool, path),
            ("", _) if path == "pools" => (Owner::Pools, path),
            (_, Value::List(_)) => (Owner::Item, format!("{path}.*")),
            _ => (Owner::Section, path),
        };
        let has =
            |section: &str, key: &str| self.sections.get(section).is_some_and(|keys| keys.contains(key));
        let inside = inside(&entry.node);
        let can_have = |next: &Entry| {
            let is_new = inside.is_none_or(|inside| inside.written_keys().all(|key| key != next.key));
            let has_other_hint = || owner != Owner::Pools && words::for_key(at, &next.key).is_some();
            is_new && (entry.node.value == Value::Null || inside.is_some() && !has_other_hint())
        };
        let belongs = |next: &&Entry| match owner {
            Owner::Pools => {
                !has(&here, &next.key) && syntax::is_word(&next.key) && words::is_pool(&next.node)
            }
            Owner::Pool => has(&section, &next.key) && !words::is_pool(&next.node),
            Owner::Section | Owner::Item => !has(&here, &next.key) && has(&section, &next.key),
        };
        let after = map.entries[index + 1..].iter();
        (owner, after.take_while(|next| belongs(next) && can_have(next)).count())
    }

    /// Reports a run of keys, and moves it into the entry before it.
    fn adopt(&mut self, owner: Owner, entry: &mut Entry, run: Vec<Entry>, at: &[Step]) {
        let keys: Vec<&str> = run.iter().map(|entry| entry.key.as_str()).collect();
        let (stands, is) = match keys.len() {
            1 => ("is", format!("it is {}", owner.of_one(&entry.key))),
            _ => ("are", format!("they are {}", owner.of_many(&entry.key))),
        };
        let message = format!("{} {stands} at the same level as `{}`, but {is}", listed(&keys), entry.key);
        let problem = Problem::new(Id::UnknownKey, message).hint(self.remedy(entry, &run));
        self.problems.push(problem.at(run[0].key_span).related(entry.key_span, "belongs here"));
        self.changed.push([at, &[entry.key.as_str().into()]].concat());
        match inside_mut(&mut entry.node) {
            Some(map) => map.entries.extend(run),
            None => entry.node.value = Value::Map(Map { entries: run, ..Map::default() }),
        }
    }

    fn remedy(&self, entry: &Entry, run: &[Entry]) -> String {
        let it = if run.len() == 1 { "it" } else { "them" };
        let is_long = run.iter().any(|entry| matches!(entry.node.value, Value::Map(_) | Value::List(_)));
        let lines = if is_long { format!(", and the lines that belong to {it},") } else { String::new() };
        match self.missing_indent(entry, run[0].key_span) {
            Some(spaces) => format!("indent {it}{lines} by {} more", count_of(spaces, "space")),
            None => format!("move {it} into `{}`", entry.key),
        }
    }

    /// Returns the number of spaces by which a key must be indented to belong to the entry. `None` means that its place
    /// does not depend on the indentation.
    fn missing_indent(&self, entry: &Entry, key: Span) -> Option<usize> {
        let column = |span: Span| syntax::indentation(self.text, span.start);
        let wanted = match inside(&entry.node).and_then(|map| map.entries.first()) {
            Some(first) => column(first.key_span)?,
            None => column(entry.key_span)? + syntax::usual_indent(self.text).unwrap_or(USUAL_INDENT),
        };
        wanted.checked_sub(column(key)?).filter(|spaces| *spaces > 0)
    }

    /// Finds the keys of a pool at the beginning of `pools`, and makes them a pool.
    fn give_name(&mut self, map: &mut Map, at: &[Step]) {
        let Some(keys) = self.sections.get("pools.*") else { return };
        let is_key = |entry: &Entry| keys.contains(&entry.key) && !words::is_pool(&entry.node);
        let is_name = |entry: &Entry| entry.key == "name" && matches!(entry.node.value, Value::Text { .. });
        let count = map.entries.iter().take_while(|entry| is_key(entry) || is_name(entry)).count();
        let (names, run): (Vec<Entry>, Vec<Entry>) =
            map.entries.drain(..count).partition(|entry| is_name(entry));
        let Some(first) = run.first().map(|entry| entry.key_span) else {
            map.entries.splice(0..0, names);
            return;
        };
        let name = names.first().and_then(|entry| match &entry.node.value {
            Value::Text { text, .. } => Some(text.clone()),
            _ => None,
        });
        let name = name.filter(|name| map.get(name).is_none()).unwrap_or_else(|| NAMELESS.to_owned());
        let keys: Vec<&str> = run.iter().map(|entry| entry.key.as_str()).collect();
        let (is, them) = if keys.len() == 1 { ("is a key", "it") } else { ("are keys", "them") };
        let message =
            format!("{} {is} of a pool, but the keys of `pools` are the names of pools", listed(&keys));
        let lines: String = keys.iter().map(|key| format!("\n    {key}: …")).collect();
        let hint = format!("put the name of the pool above {them}:\n\npools:\n  {name}:{lines}");
        self.problems.push(Problem::new(Id::UnknownKey, message).at(first).hint(hint));
        self.changed.push([at, &[name.as_str().into()]].concat());
        let node = Node { span: first, value: Value::Map(Map { entries: run, ..Map::default() }) };
        map.entries.insert(0, Entry { key: name, key_span: first, node });
    }
}

/// Returns the mapping that keys can be added to: the value itself, or the last item of a list.
fn inside(node: &Node) -> Option<&Map> {
    match &node.value {
        Value::Map(map) => Some(map),
        Value::List(list) => match &list.items.last()?.value {
            Value::Map(map) => Some(map),
            _ => None,
        },
        _ => None,
    }
}

fn inside_mut(node: &mut Node) -> Option<&mut Map> {
    match &mut node.value {
        Value::Map(map) => Some(map),
        Value::List(list) => match &mut list.items.last_mut()?.value {
            Value::Map(map) => Some(map),
            _ => None,
        },
        _ => None,
    }
}

// === impl Owner ===

impl Owner {
    fn of_one(self, owner: &str) -> String {
        match self {
            Self::Pools => "a pool".to_owned(),
            Self::Pool => "a key of a pool".to_owned(),
            Self::Section => format!("a key of `{owner}`"),
            Self::Item => format!("a key of the items of `{owner}`"),
        }
    }

    fn of_many(self, owner: &str) -> String {
        match self {
            Self::Pools => "pools".to_owned(),
            Self::Pool => "keys of a pool".to_owned(),
            Self::Section => format!("keys of `{owner}`"),
            Self::Item => format!("keys of the items of `{owner}`"),
        }
    }
}
