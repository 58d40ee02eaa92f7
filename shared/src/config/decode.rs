//! Decodes the tree into typed sections, and finds every problem instead of only the first.
//!
//! serde stops at the first error. [`decode`] reports this error, removes the value from the tree and decodes again,
//! until decoding succeeds or nothing is left. The tree marks each gap ([`Node::is_damaged`]), so that a consequence of
//! the gap, such as `missing field`, is not reported.
//!
//! The types of a section report errors through serde. A custom message can have a hint on a second line.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use values::{choice, did_you_mean, number};

use super::document::{self, Entry, List, Node, Step, Value};
use super::keys::keys;
use super::problem::{Id, MAX_PROBLEMS, Problem};
use super::{syntax, words};
use crate::words::listed;

/// Returns whether a tree can be decoded without a problem.
pub(crate) fn is_valid<T: DeserializeOwned>(root: &Node) -> bool {
    T::deserialize(root).is_ok()
}

/// Decodes a tree. Wrong values are reported and removed from the tree. `None` means that the rest is not enough for
/// the type.
pub(crate) fn decode<T: DeserializeOwned>(root: &mut Node, problems: &mut Vec<Problem>) -> Option<T> {
    for _ in 0..MAX_PROBLEMS {
        match T::deserialize(&*root) {
            Ok(value) => return Some(value),
            Err(error) => {
                let kind = error.other_kind::<T>(root);
                problems.extend(error.problem(root, kind));
                if !error.cut_out(root) {
                    return None;
                }
            }
        }
    }
    None
}

/// The error of a type about a value, and the place of the value.
#[derive(Debug)]
pub(crate) struct Error {
    fault: Fault,
    /// The steps from the value up to the root.
    upwards: Vec<Step>,
    /// Whether the error is about the last key of the path instead of its value.
    on_key: bool,
}

#[derive(Debug)]
enum Fault {
    UnknownKey { found: String, known: &'static [&'static str] },
    MissingKey(&'static str),
    WrongType { found: String, expected: String, hint: Option<String> },
    UnknownChoice { found: String, hint: Option<String> },
    Invalid(String),
}

// === impl Error ===

impl Error {
    fn new(fault: Fault) -> Self {
        Self { fault, upwards: Vec::new(), on_key: false }
    }

    fn under(mut self, step: Step) -> Self {
        self.upwards.push(step);
        self
    }

    fn on_key(mut self, key: &str) -> Self {
        self.on_key = true;
        self.under(key.into())
    }

    fn path(&self) -> Vec<Step> {
        self.upwards.iter().rev().cloned().collect()
    }

    /// Converts the error into a problem. `None` means that it is only a consequence of a value that was removed
    /// before.
    fn problem(&self, root: &Node, kind: Option<String>) -> Option<Problem> {
        let path = self.path();
        let place = if self.on_key { root.key_place(&path) } else { root.place(&path) };
        let follows = match self.fault {
            Fault::MissingKey(key) => is_gap(root.get(&path)?, &path, key),
            Fault::Invalid(_) => !self.on_key && root.is_damaged(&path),
            _ => false,
        };
        (!follows).then(|| {
            let problem = self.fault.problem().at(place);
            let hint = self
                .newcomers_hint(&path, root)
                .or(self.already_given(&path, root, problem.hint))
                .or(kind)
                .or_else(|| self.keys_there(&path));
            self.as_one(&path, root, Problem { hint, explains: self.explains(&path, root), ..problem })
        })
    }

    /// Replaces the hint for a misspelt key if the key that was meant is given as well.
    fn already_given(&self, path: &[Step], root: &Node, hint: Option<String>) -> Option<String> {
        let (Fault::UnknownKey { found, .. }, Some((_, at))) = (&self.fault, path.split_last()) else {
            return hint;
        };
        hint.map(|hint| words::beside(&hint, found, root.get(at)).unwrap_or(hint))
    }

    /// Returns the kind of problem that follows from this error.
    fn explains(&self, path: &[Step], root: &Node) -> Option<Id> {
        let Fault::UnknownKey { found, .. } = &self.fault else { return None };
        let (_, at) = path.split_last()?;
        words::is_for_pools(at, found, root.get(path)).then_some(Id::NoPools)
    }

    /// Reports an unknown key together with its twins, see [`Self::twins`].
    fn as_one(&self, path: &[Step], root: &Node, problem: Problem) -> Problem {
        let twins = self.twins(path, root);
        let Some(first) = twins.first() else { return problem };
        let keys: Vec<&str> = path[path.len() - 1..].iter().chain(&twins).filter_map(Step::key).collect();
        let also = root.key_place(&[&path[..path.len() - 1], std::slice::from_ref(first)].concat());
        let message = format!("unknown keys {}", listed(&keys));
        Problem { message, ..problem }.related(also, "also unknown")
    }

    /// Returns the hint for an unknown key and its twins in the words of other products.
    fn combined_hint(&self, path: &[Step], root: &Node) -> Option<String> {
        let (last, at) = path.split_last()?;
        let keys = [vec![last.clone()], self.twins(path, root)].concat();
        let hint = |step: &Step| {
            words::for_entry(at, step.key()?, root.get(&[at, std::slice::from_ref(step)].concat()))
        };
        words::combined(&keys.iter().filter_map(hint).collect::<Vec<_>>())
    }

    /// Returns the other unknown keys of the mapping that stand for the same key as the unknown key of this error, such
    /// as `write_timeout` beside `read_timeout`. One problem reports all of them.
    fn twins(&self, path: &[Step], root: &Node) -> Vec<Step> {
        let (Fault::UnknownKey { found, known }, Some((_, at))) = (&self.fault, path.split_last()) else {
            return Vec::new();
        };
        let target = words::for_key(at, found).and_then(words::target);
        let Some((target, Value::Map(map))) = target.zip(root.get(at).map(|node| &node.value)) else {
            return Vec::new();
        };
        let is_twin = |key: &&str| {
            let other = || words::for_key(at, key).and_then(words::target);
            key != found && !known.contains(key) && other() == Some(target)
        };
        map.entries.iter().map(|entry| entry.key.as_str()).filter(is_twin).map(Step::from).collect()
    }

    /// Returns the hint for a value that would be valid with another type, such as `3` for `"3"`. The notations of the
    /// value are tried one by one.
    fn other_kind<T: DeserializeOwned>(&self, root: &mut Node) -> Option<String> {
        let path = self.path();
        let is_about_value = matches!(self.fault, Fault::WrongType { .. } | Fault::Invalid(_));
        let found = root.get(&path).filter(|_| is_about_value && !self.on_key)?.clone();
        let ways = other_kinds(&found);
        let right = ways.into_iter().find(|(value, _)| {
            root.replace(&path, value.clone());
            T::deserialize(&*root).err().is_none_or(|error| !error.path().starts_with(&path))
        });
        root.replace(&path, found.value);
        right.map(|(_, hint)| hint)
    }

    /// Returns the hint for the notation of another product or file format.
    fn newcomers_hint(&self, path: &[Step], root: &Node) -> Option<String> {
        let node = root.get(path);
        match &self.fault {
            Fault::UnknownKey { found, .. } => {
                let (_, at) = path.split_last()?;
                words::oddity(at, found, node)
                    .or_else(|| self.combined_hint(path, root))
                    .map(|hint| words::beside(&hint, found, root.get(at)).unwrap_or(hint))
            }
            Fault::WrongType { expected, .. } if expected == "a mapping" => {
                words::for_mapping(path, &node?.value)
            }
            Fault::WrongType { expected, .. } if expected == "a list" => words::for_list(path, &node?.value),
            Fault::WrongType { expected, .. } => words::for_nothing(path, &node?.value)
                .or_else(|| words::for_true(path, &node?.value))
                .or_else(|| words::for_false(path, expected, &node?.value)),
            Fault::Invalid(_) if !self.on_key => words::for_nothing(path, &node?.value),
            _ => None,
        }
    }

    /// Returns the hint with the keys of the mapping that is expected.
    fn keys_there(&self, path: &[Step]) -> Option<String> {
        match &self.fault {
            Fault::WrongType { expected, .. } if expected == "a mapping" && path.is_empty() => {
                words::example("pools")
                    .map(|smallest| format!("start with the smallest configuration:{smallest}"))
            }
            Fault::WrongType { expected, .. } if expected == "a mapping" => keys_of(path),
            _ => None,
        }
    }

    /// Removes the wrong value from the tree. A key in another spelling is renamed instead, so that its value is
    /// checked as well. Returns `false` if the root itself is wrong.
    fn cut_out(&self, root: &mut Node) -> bool {
        let path = self.path();
        if let Some((_, at)) = path.split_last() {
            for twin in self.twins(&path, root) {
                root.remove_wrong(&[at, &[twin]].concat());
            }
        }
        let meant = self.respelled(&path);
        meant.is_some_and(|meant| root.rename_wrong(&path, meant)) || root.remove_wrong(&path)
    }

    /// Returns the known key that an unknown key is another spelling of.
    fn respelled(&self, path: &[Step]) -> Option<&'static str> {
        let Fault::UnknownKey { found, known } = &self.fault else { return None };
        let (_, at) = path.split_last()?;
        words::respelled(found, known).filter(|_| words::for_key(at, found).is_none())
    }
}

/// Converts a scalar to values of other types, each with its hint.
fn other_kinds(found: &Node) -> Vec<(Value, String)> {
    let mut ways = Vec::new();
    let text = match &found.value {
        Value::Text { text, .. } => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Null | Value::List(_) | Value::Map(_) => return ways,
    };
    let quoted = Value::Text { text: text.clone(), plain: false };
    let is_text = matches!(found.value, Value::Text { .. });
    let plain = document::resolve(&text);
    if matches!(plain, Value::Bool(_) | Value::Int(_) | Value::Float(_)) {
        let quotes = if is_text { ", without quotes" } else { "" };
        ways.push((plain, format!("write {text}{quotes}")));
    }
    if !is_text {
        ways.push((quoted.clone(), format!("quote it: \"{text}\"")));
    }
    let alone = |value: Value| {
        let items = vec![Node { span: found.span, value }];
        Value::List(List { items, damaged: false })
    };
    ways.push((alone(found.value.clone()), format!("put it in brackets: [{text}]")));
    ways.push((alone(quoted), format!("put it in brackets: [\"{text}\"]")));
    ways
}

/// Returns whether the key was removed because it was wrong, misspelt, or under the name of another product.
fn is_gap(node: &Node, path: &[Step], key: &str) -> bool {
    let is_it =
        |gone: &String| gone == key || did_you_mean(gone, [key]).is_some() || words::means(path, gone, key);
    matches!(&node.value, Value::Map(map) if map.removed.iter().any(is_it))
}

impl Fault {
    fn problem(&self) -> Problem {
        match self {
            Self::UnknownKey { found, known } => {
                let problem = Problem::new(Id::UnknownKey, format!("unknown key `{found}`"));
                match elsewhere(found) {
                    Some(places)
                        if is_at_top_level(found, known)
                            || did_you_mean(found, known.iter().copied()).is_none() =>
                    {
                        problem.hint(places)
                    }
                    _ => problem.hint(meant_key(found, known)),
                }
            }
            Self::UnknownChoice { found, hint } => {
                let problem = Problem::new(Id::UnknownChoice, format!("unknown value `{found}`"));
                Problem { hint: hint.clone(), ..problem }
            }
            Self::MissingKey(key) => {
                let example = words::example(key).map_or_else(|| format!("`{key}: …`"), str::to_owned);
                Problem::new(Id::MissingKey, format!("the key `{key}` is missing"))
                    .hint(format!("add {example}"))
            }
            Self::WrongType { found, expected, hint } => {
                let problem = Problem::new(Id::WrongType, format!("expected {expected}, found {found}"));
                Problem { hint: hint.clone(), ..problem }
            }
            Self::Invalid(text) => match text.split_once('\n') {
                Some((message, hint)) => Problem::new(Id::InvalidValue, message).hint(hint),
                None => Problem::new(Id::InvalidValue, text),
            },
        }
    }
}

/// The words of other load balancers for the limits of a pool or of a backend.
const ELSEWHERE: &[&str] = &["max_conns", "maxconn", "max_connections"];

/// Returns the hint for an unknown key: the key that was meant, or else all keys.
fn meant_key(found: &str, known: &[&str]) -> String {
    let limit = known.iter().copied().find(|key| *key == "max_requests" && ELSEWHERE.contains(&found));
    match limit.or_else(|| did_you_mean(found, known.iter().copied())) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("use one of these keys: {}", known.join(", ")),
    }
}

/// Returns whether an unknown key belongs to the top level and is not another spelling of a known key.
fn is_at_top_level(found: &str, known: &[&'static str]) -> bool {
    keys().iter().any(|key| key == found) && words::respelled(found, known).is_none()
}

/// Returns the hint for a key that belongs to another section.
fn elsewhere(key: &str) -> Option<String> {
    let keys = keys();
    let places: Vec<&str> =
        keys.iter().filter(|path| path.rsplit('.').next() == Some(key)).map(String::as_str).collect();
    let places: Vec<String> = places.into_iter().map(place).collect();
    (!places.is_empty()).then(|| format!("move it to {}", places.join(", or ")))
}

/// Formats a path as the place of a key.
fn place(path: &str) -> String {
    let top_level = if path.contains('.') { "" } else { " at the top level" };
    format!("`{}`{top_level}", nested(path))
}

/// Formats a path such as `pools.*.backends.*.weight` in the notation of the file: `pools: {NAME: {backends: [{weight:
/// …}]}}`.
fn nested(path: &str) -> String {
    let names: Vec<&str> = path.split('.').collect();
    let mut text = String::from("…");
    for (at, name) in names.iter().enumerate().rev() {
        let is_item = *name == "*" && names[..at].last() != Some(&"pools");
        let inner = match text.as_str() {
            "…" => text,
            list if list.starts_with('[') => text,
            _ => format!("{{{text}}}"),
        };
        text = match *name {
            "*" if is_item => format!("[{inner}]"),
            "*" => format!("NAME: {inner}"),
            key => format!("{key}: {inner}"),
        };
    }
    text
}

/// Returns the hint with the keys of the mapping at `path`.
fn keys_of(path: &[Step]) -> Option<String> {
    let fits = |(step, name): (&Step, &str)| name == "*" || matches!(step, Step::Key(key) if key == name);
    let keys = keys();
    let below = keys.iter().filter_map(|key| {
        let names: Vec<&str> = key.split('.').collect();
        let (last, parents) = names.split_last()?;
        let is_here = parents.len() == path.len() && path.iter().zip(parents.iter().copied()).all(fits);
        is_here.then_some(*last)
    });
    let below: Vec<&str> = below.filter(|key| *key != "*").collect();
    (!below.is_empty()).then(|| format!("use these keys: {}", below.join(", ")))
}

/// Returns the hint for a value of the wrong type.
fn remedy(found: Unexpected<'_>, expected: &str) -> Option<String> {
    match (expected, found) {
        (_, Unexpected::Unit) => Some("give the key a value, or remove it".to_owned()),
        ("a string", _) => as_text(found).map(|text| format!("quote it: \"{text}\"")),
        ("a mapping", Unexpected::Str(text)) if text.len() < 100 => {
            syntax::with_colon(text).map(|right| format!("write `{right}`"))
        }
        ("a mapping", Unexpected::Seq) => Some("write `key: value`, without `-` and brackets".to_owned()),
        ("true or false", Unexpected::Str(text)) => meant(text).map(|meant| format!("write {meant}")),
        (_, Unexpected::Str(text)) if expected.starts_with("a whole number") => number::hint(text, |_| true),
        _ => None,
    }
}

/// Returns the boolean that a word such as `yes` stands for in YAML 1.1.
fn meant(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "on" | "y" | "always" | "enabled" => Some(true),
        "no" | "off" | "n" | "none" | "never" | "disabled" => Some(false),
        _ => None,
    }
}

/// Splits off the second line, which is the hint of a type in the crate `values`.
fn with_hint(expected: &dyn Expected) -> (String, Option<String>) {
    let expected = expected.to_string();
    match expected.split_once('\n') {
        Some((expected, hint)) => (in_words(expected), Some(hint.to_owned())),
        None => (in_words(&expected), None),
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::new(Fault::Invalid(text.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let (expected, hint) = with_hint(expected);
        let hint = hint.or_else(|| remedy(found, &expected));
        Self::new(Fault::WrongType { found: name(found), expected, hint })
    }

    /// An [`Unexpected::Other`] is a word that is none of the accepted ones; see [`values::scalar::read`].
    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let (expected, hint) = with_hint(expected);
        Self::new(match found {
            Unexpected::Other(word) => Fault::UnknownChoice { found: word.to_owned(), hint },
            found => Fault::Invalid(format!("expected {expected}, found {}", name(found))),
        })
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        let hint = Some(choice::hint(found, known, &[]));
        Self::new(Fault::UnknownChoice { found: found.to_owned(), hint })
    }

    fn unknown_field(found: &str, known: &'static [&'static str]) -> Self {
        Self::new(Fault::UnknownKey { found: found.to_owned(), known })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Fault::MissingKey(key))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.fault)
    }
}

impl std::error::Error for Error {}

/// Translates the type names of serde into the terms of a configuration.
fn in_words(expected: &str) -> String {
    let words = match expected {
        "a string" | "a borrowed string" => "a string",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a mapping",
        "i64" | "u32" | "u64" | "usize" => "a whole number",
        other if other.starts_with("struct ") => "a mapping",
        other if other.starts_with("enum ") => "a word",
        other => other,
    };
    words.to_owned()
}

fn name(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Str(text) => format!("the string {text:?}"),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        Unexpected::Float(number) => format!("the number {number:?}"),
        other => as_text(other).map_or_else(|| other.to_string(), |number| format!("the number {number}")),
    }
}

fn as_text(found: Unexpected<'_>) -> Option<String> {
    match found {
        Unexpected::Bool(value) => Some(value.to_string()),
        Unexpected::Unsigned(number) => Some(number.to_string()),
        Unexpected::Signed(number) => Some(number.to_string()),
        Unexpected::Float(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Converts a value into the form that the errors of serde use.
fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Int(number) => Unexpected::Signed(*number),
        Value::Float(number) => Unexpected::Float(*number),
        Value::Text { text, .. } => Unexpected::Str(text),
        Value::List(_) => Unexpected::Seq,
        Value::Map(_) => Unexpected::Map,
    }
}

// === Deserializer ===

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Text { text, .. } => visitor.visit_str(text),
            Value::List(list) => visitor.visit_seq(Items { items: list.items.iter().enumerate() }),
            Value::Map(map) => visitor.visit_map(Entries { entries: map.entries.iter(), current: None }),
        }
    }

    /// Never treats a key without a value as missing: a key that is present was written for a reason.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    /// Rejects a list, which serde would accept as the values of the keys in the order of the type.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.value {
            list @ Value::List(_) => Err(de::Error::invalid_type(unexpected(list), &"a mapping")),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.value {
            Value::Text { text, .. } => visitor.visit_enum(Word(text)),
            other => Err(de::Error::invalid_type(unexpected(other), &visitor)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map identifier
    }
}

struct Items<'de> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|error| error.under(index.into()))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.current = self.entries.next();
        let Some(entry) = self.current else { return Ok(None) };
        let key: de::value::StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.on_key(&entry.key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let entry = self.current.expect("serde asks for a value only after its key");
        seed.deserialize(&entry.node).map_err(|error| error.under(entry.key.as_str().into()))
    }
}

/// A variant without data, the only kind of variant in configurations.
struct Word<'de>(&'de str);

impl<'de> EnumAccess<'de> for Word<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let word: de::value::StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::UnitVariant, &"a value with data"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::UnitVariant, &"a value with data"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::UnitVariant, &"a value with data"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Section {
        size: u16,
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        inner: BTreeMap<String, Inner>,
        #[serde(default)]
        colour: Option<Colour>,
    }

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        on: bool,
    }

    #[derive(Deserialize, Debug, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Colour {
        Red,
        DarkGreen,
    }

    fn read(text: &str) -> (Option<Section>, Vec<String>) {
        let (root, problems) = document::parse(text);
        assert_eq!(problems, []);
        let mut problems = Vec::new();
        let section = decode(&mut root.expect("it is YAML"), &mut problems);
        let place = |problem: &Problem| problem.span.map_or("?", |span| &text[span.range()]);
        (section, problems.iter().map(|problem| format!("{}: {}", place(problem), problem.message)).collect())
    }

    #[test]
    fn a_valid_section_is_decoded() {
        let (section, problems) = read("size: 3\nnames: [a]\ninner: {x: {on: true}}\ncolour: dark_green\n");
        assert_eq!(problems, [""; 0]);
        let section = section.expect("nothing is wrong");
        assert_eq!((section.size, section.colour), (3, Some(Colour::DarkGreen)));
        assert_eq!(section.inner["x"], Inner { on: true });
    }

    #[test]
    fn every_problem_is_reported_at_its_place() {
        let (section, problems) = read(
            "size: 3\nnames: [a, 1, [b]]\ninner: {x: {on: maybe}, y: {}, z: {on: true, off: 1}}\ncolour: blue\nsiez: 4\n",
        );
        assert!(section.is_some_and(|section| section.names == ["a"] && section.inner.len() == 1));
        assert_eq!(
            problems,
            [
                "1: expected a string, found the number 1",
                "[b]: expected a string, found a list",
                "maybe: expected true or false, found the string \"maybe\"",
                "y: the key `on` is missing",
                "off: unknown key `off`",
                "blue: unknown value `blue`",
                "siez: unknown key `siez`",
            ]
        );
    }

    #[test]
    fn a_consequence_of_a_problem_is_not_reported() {
        let (section, problems) = read("size: 70000\n");
        assert_eq!((section, problems.len()), (None, 1));
        let (section, problems) = read("sizze: 3\n");
        assert_eq!((section, problems), (None, vec!["sizze: unknown key `sizze`".to_owned()]));
    }

    #[test]
    fn a_root_of_the_wrong_type_is_one_problem() {
        assert_eq!(read("[1, 2]\n").1, ["[1, 2]: expected a mapping, found a list"]);
    }

    #[test]
    fn a_path_is_shown_as_it_is_written() {
        assert_eq!(nested("pools.*.backends.*.weight"), "pools: {NAME: {backends: [{weight: …}]}}");
        assert_eq!(nested("routes.*.match.host"), "routes: [{match: {host: …}}]");
        assert_eq!(nested("shutdown.drain"), "shutdown: {drain: …}");
    }
}
