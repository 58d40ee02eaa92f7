//! Parses text into a tree in which every key and value has its place in the file.
//!
//! Only this module depends on the YAML parser. It works on the events of the parser for two reasons: only the events
//! have the positions of keys, and all duplicate keys can be reported, not only the first one. The version is YAML 1.2,
//! so `yes` and `off` are strings. A file has one document. Anchors and aliases are supported; a limit on the number of
//! values stops documents that grow exponentially through aliases.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, StrInput};

use super::problem::{Id, Problem, Span};
use super::syntax;

/// The maximum number of values in a file, including those that aliases repeat.
const MAX_NODES: usize = 100_000;
/// The maximum nesting depth of values.
const MAX_DEPTH: usize = 32;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// The bytes of the value; of a block mapping, from its first key to the end of its last value.
    pub(crate) span: Span,
    /// The value itself.
    pub(crate) value: Value,
}

/// A value of any type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A string; `plain` if it was written without quotes.
    Text { text: String, plain: bool },
    /// A list.
    List(List),
    /// A mapping.
    Map(Map),
}

/// The values of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct List {
    pub(crate) items: Vec<Node>,
    /// Whether a wrong value was removed from it, at any depth.
    pub(crate) damaged: bool,
}

/// The entries of a mapping in the order of the file, with unique keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Map {
    pub(crate) entries: Vec<Entry>,
    /// The keys that were removed from this mapping because they were wrong.
    pub(crate) removed: Vec<String>,
    /// Whether a wrong value was removed from it, at any depth.
    pub(crate) damaged: bool,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) node: Node,
}

/// One step from a value to one inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A step into a mapping.
    Key(String),
    /// A step into a list.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl Step {
    /// Returns the key of a step into a mapping.
    pub(crate) fn key(&self) -> Option<&str> {
        match self {
            Self::Key(key) => Some(key),
            Self::Index(_) => None,
        }
    }
}

/// Parses the only document of a file. The tree contains everything that can be read in spite of problems.
pub(crate) fn parse(text: &str) -> (Option<Node>, Vec<Problem>) {
    let mut builder = Builder::new(text);
    let root = match builder.document() {
        Ok(root) => Some(root),
        Err(problem) => {
            builder.problems.push(*problem);
            None
        }
    };
    (root, builder.problems)
}

/// Converts text without quotes to a value of the type that YAML gives it.
pub(crate) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::Text { text: text.to_owned(), plain: true }),
    }
}

fn number(text: &str) -> Option<Value> {
    if let Some(digits) = text.strip_prefix("0x") {
        return i64::from_str_radix(digits, 16).ok().map(Value::Int);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return i64::from_str_radix(digits, 8).ok().map(Value::Int);
    }
    let has_digit = text.bytes().any(|byte| byte.is_ascii_digit());
    // `inf` and `nan` are strings in YAML, although Rust parses them as numbers.
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    if !has_digit || !numeric {
        return None;
    }
    text.parse().map(Value::Int).ok().or_else(|| text.parse().map(Value::Float).ok())
}

fn given_twice(key: &str, first: Span, second: Span) -> Problem {
    Problem::new(Id::DuplicateKey, format!("the key `{key}` is given twice"))
        .at(second)
        .related(first, "first given here")
        .hint("remove one of the two, or put both values under one key")
}

/// An error that stops the parsing. It is boxed because it is large and rare.
type Fatal = Box<Problem>;

struct Builder<'a> {
    text: &'a str,
    events: Parser<'a, StrInput<'a>>,
    /// The complete values with an anchor, by the number that the parser gives the anchor.
    anchors: HashMap<usize, Node>,
    nodes: usize,
    problems: Vec<Problem>,
}

// === impl Node ===

impl Node {
    /// Returns the value at `path`.
    pub(crate) fn get(&self, path: &[Step]) -> Option<&Self> {
        path.iter().try_fold(self, |node, step| node.child(step))
    }

    fn child(&self, step: &Step) -> Option<&Self> {
        match (&self.value, step) {
            (Value::Map(map), Step::Key(key)) => map.get(key).map(|entry| &entry.node),
            (Value::List(list), Step::Index(index)) => list.items.get(*index),
            _ => None,
        }
    }

    fn child_mut(&mut self, step: &Step) -> Option<&mut Self> {
        match (&mut self.value, step) {
            (Value::Map(map), Step::Key(key)) => {
                map.entries.iter_mut().find(|entry| entry.key == *key).map(|entry| &mut entry.node)
            }
            (Value::List(list), Step::Index(index)) => list.items.get_mut(*index),
            _ => None,
        }
    }

    /// Returns the paths of all values that match a path of keys, in which `*` stands for any key or item.
    pub(crate) fn matching(&self, pattern: &[&str]) -> Vec<Vec<Step>> {
        let mut found = Vec::new();
        self.collect(pattern, &mut Vec::new(), &mut found);
        found
    }

    fn collect(&self, pattern: &[&str], path: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
        let Some((first, rest)) = pattern.split_first() else {
            found.push(path.clone());
            return;
        };
        let mut visit = |step: Step, child: &Self| {
            path.push(step);
            child.collect(rest, path, found);
            path.pop();
        };
        match &self.value {
            Value::Map(map) => {
                let fits = |key: &str| *first == "*" || key == *first;
                let entries = map.entries.iter().filter(|entry| fits(&entry.key));
                entries.for_each(|entry| visit(entry.key.as_str().into(), &entry.node));
            }
            Value::List(list) if *first == "*" => {
                list.items.iter().enumerate().for_each(|(index, item)| visit(index.into(), item));
            }
            _ => {}
        }
    }

    pub(crate) fn get_mut(&mut self, path: &[Step]) -> Option<&mut Self> {
        path.iter().try_fold(self, |node, step| node.child_mut(step))
    }

    /// Renames a key of the mapping at `path`. The key keeps its place in the file.
    pub(crate) fn rename_key(&mut self, path: &[Step], old: &str, new: &str) {
        let Some(Value::Map(map)) = self.get_mut(path).map(|node| &mut node.value) else { return };
        for entry in map.entries.iter_mut().filter(|entry| entry.key == old) {
            new.clone_into(&mut entry.key);
        }
    }

    /// Replaces the value at `path`.
    pub(crate) fn replace(&mut self, path: &[Step], value: Value) {
        if let Some(node) = self.get_mut(path) {
            node.value = value;
        }
    }

    /// Returns the place to point at for the value at `path`: the value if it is a scalar, otherwise its key. If it
    /// does not exist, the place of its parent is returned.
    pub(crate) fn place(&self, path: &[Step]) -> Span {
        let Some((last, parents)) = path.split_last() else { return self.first_line() };
        let Some(parent) = self.get(parents) else { return self.place(parents) };
        match (&parent.value, last) {
            (Value::Map(map), Step::Key(key)) => match map.get(key) {
                Some(entry) if entry.node.is_scalar() => entry.node.span,
                Some(entry) => entry.key_span,
                None => self.place(parents),
            },
            (Value::List(list), Step::Index(index)) => match list.items.get(*index) {
                Some(item) => item.first_line(),
                None => self.place(parents),
            },
            _ => self.place(parents),
        }
    }

    /// Returns the place of the key at `path`, or the place of the value if it has no key.
    pub(crate) fn key_place(&self, path: &[Step]) -> Span {
        let Some((Step::Key(key), parents)) = path.split_last() else { return self.place(path) };
        match self.get(parents).map(|parent| &parent.value) {
            Some(Value::Map(map)) => map.get(key).map_or_else(|| self.place(parents), |entry| entry.key_span),
            _ => self.place(parents),
        }
    }

    /// Returns the place to point at for this value: the first key of a mapping in block style, otherwise the whole
    /// value.
    fn first_line(&self) -> Span {
        match &self.value {
            Value::Map(map) => match map.entries.first() {
                Some(entry) if entry.key_span.start == self.span.start => entry.key_span,
                _ => self.span,
            },
            _ => self.span,
        }
    }

    fn is_scalar(&self) -> bool {
        !matches!(self.value, Value::List(_) | Value::Map(_))
    }

    /// Removes the value at `path` because it is wrong. Returns `false` if it does not exist.
    ///
    /// The containers on the way are marked as damaged, so that consequences of the gap are not reported as well.
    pub(crate) fn remove_wrong(&mut self, path: &[Step]) -> bool {
        let Some((step, rest)) = path.split_first() else { return false };
        match &mut self.value {
            Value::Map(map) => map.damaged = true,
            Value::List(list) => list.damaged = true,
            _ => return false,
        }
        if !rest.is_empty() {
            return self.child_mut(step).is_some_and(|child| child.remove_wrong(rest));
        }
        self.remove_child(step)
    }

    /// Renames the key at `path` because it is wrong. Returns `false` if the mapping has or had a key with the new
    /// name.
    ///
    /// The containers on the way are marked as damaged, as in [`Self::remove_wrong`].
    pub(crate) fn rename_wrong(&mut self, path: &[Step], name: &str) -> bool {
        let Some((Step::Key(key), parents)) = path.split_last() else { return false };
        let parent = parents.iter().try_fold(&mut *self, |node, step| node.child_mut(step));
        let Some(Self { value: Value::Map(map), .. }) = parent else { return false };
        if map.written_keys().any(|written| written == name) {
            return false;
        }
        let Some(entry) = map.entries.iter_mut().find(|entry| entry.key == *key) else { return false };
        name.clone_into(&mut entry.key);
        map.damaged = true;
        self.mark_damaged(parents);
        true
    }

    /// Marks the containers from the root to `path` as damaged, as in [`Self::remove_wrong`].
    pub(crate) fn mark_damaged(&mut self, path: &[Step]) {
        match &mut self.value {
            Value::Map(map) => map.damaged = true,
            Value::List(list) => list.damaged = true,
            _ => {}
        }
        if let Some((step, rest)) = path.split_first()
            && let Some(child) = self.child_mut(step)
        {
            child.mark_damaged(rest);
        }
    }

    fn remove_child(&mut self, step: &Step) -> bool {
        match (&mut self.value, step) {
            (Value::Map(map), Step::Key(key)) => map.remove(key),
            (Value::List(list), Step::Index(index)) if *index < list.items.len() => {
                list.items.remove(*index);
                true
            }
            _ => false,
        }
    }

    /// Returns whether a wrong value was removed at `path` or below it.
    pub(crate) fn is_damaged(&self, path: &[Step]) -> bool {
        let Some((last, parents)) = path.split_last() else { return self.damaged() };
        let removed = match (self.get(parents).map(|parent| &parent.value), last) {
            (Some(Value::Map(map)), Step::Key(key)) => map.removed.contains(key),
            _ => false,
        };
        removed || self.get(path).is_some_and(Self::damaged)
    }

    fn damaged(&self) -> bool {
        match &self.value {
            Value::Map(map) => map.damaged,
            Value::List(list) => list.damaged,
            _ => false,
        }
    }

    fn count(&self) -> usize {
        match &self.value {
            Value::Map(map) => 1 + map.entries.iter().map(|entry| entry.node.count()).sum::<usize>(),
            Value::List(list) => 1 + list.items.iter().map(Self::count).sum::<usize>(),
            _ => 1,
        }
    }

    fn depth(&self) -> usize {
        match &self.value {
            Value::Map(map) => 1 + map.entries.iter().map(|entry| entry.node.depth()).max().unwrap_or(0),
            Value::List(list) => 1 + list.items.iter().map(Self::depth).max().unwrap_or(0),
            _ => 1,
        }
    }
}

// === impl Map ===

impl Map {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Returns the keys in the file, including those that were removed.
    pub(crate) fn written_keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.key.as_str()).chain(self.removed.iter().map(String::as_str))
    }

    fn remove(&mut self, key: &str) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.key != key);
        let found = self.entries.len() < before;
        if found {
            self.removed.push(key.to_owned());
        }
        found
    }
}

// === impl Builder ===

impl<'a> Builder<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            events: Parser::new_from_str(text),
            anchors: HashMap::new(),
            nodes: 0,
            problems: Vec::new(),
        }
    }

    /// Returns the next event that carries data, with its place.
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Fatal> {
        loop {
            match self.events.next_event() {
                None | Some(Ok((Event::StreamEnd, _))) => return Ok(None),
                Some(Ok((Event::StreamStart, _))) => {}
                Some(Ok((event, span))) => return Ok(Some((event, self.span(&span)))),
                Some(Err(error)) => return Err(self.syntax(&error)),
            }
        }
    }

    fn need(&mut self) -> Result<(Event<'a>, Span), Fatal> {
        match self.next()? {
            Some(event) => Ok(event),
            None => Err(Box::new(Problem::new(Id::Syntax, "the file ends unexpectedly").at(self.end()))),
        }
    }

    fn document(&mut self) -> Result<Node, Fatal> {
        let Some((Event::DocumentStart(..), _)) = self.next()? else { return Ok(Node::nothing()) };
        let (event, span) = self.need()?;
        let root = self.node(event, span, 1)?;
        self.need()?;
        match self.next()? {
            None => Ok(root),
            Some((_, span)) => {
                let problem = Problem::new(Id::Document, "a second document begins here").at(span);
                Err(Box::new(problem.hint("remove the `---`: a configuration is a single document")))
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Fatal> {
        self.account(1, depth, span)?;
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.reject_tag(tag.is_some(), span)?;
                let value = match style {
                    ScalarStyle::Plain => resolve(&text),
                    _ => Value::Text { text: text.into_owned(), plain: false },
                };
                (Node { span, value }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.reject_tag(tag.is_some(), span)?;
                (self.list(span, depth)?, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.reject_tag(tag.is_some(), span)?;
                (self.map(span, depth)?, anchor)
            }
            Event::Alias(anchor) => (self.alias(anchor, span, depth)?, 0),
            _ => return Err(Box::new(Problem::new(Id::Syntax, "expected a value here").at(span))),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn account(&mut self, nodes: usize, depth: usize, span: Span) -> Result<(), Fatal> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            let message =
                format!("the file has more than {MAX_NODES} values, including those that aliases repeat");
            return Err(Box::new(Problem::new(Id::Document, message).at(span)));
        }
        if depth > MAX_DEPTH {
            let message = format!("values are nested more than {MAX_DEPTH} levels deep");
            return Err(Box::new(Problem::new(Id::Document, message).at(span)));
        }
        Ok(())
    }

    fn reject_tag(&self, tagged: bool, span: Span) -> Result<(), Fatal> {
        if !tagged {
            return Ok(());
        }
        let problem = Problem::new(Id::Document, "a value has a YAML tag (`!…`)").at(span);
        Err(Box::new(problem.hint("remove the tag; quote a value to make it a string")))
    }

    fn list(&mut self, start: Span, depth: usize) -> Result<Node, Fatal> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.need()?;
            if event == Event::SequenceEnd {
                let last = items.last().map(|item: &Node| item.span);
                let span = self.container(start, span, last);
                return Ok(Node { span, value: Value::List(List { items, damaged: false }) });
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn map(&mut self, start: Span, depth: usize) -> Result<Node, Fatal> {
        let mut map = Map::default();
        let mut seen = HashMap::new();
        loop {
            let (event, span) = self.need()?;
            if event == Event::MappingEnd {
                let last = map.entries.last().map(|entry| entry.node.span);
                let span = self.container(start, span, last);
                return Ok(Node { span, value: Value::Map(map) });
            }
            let key = self.key(&event, span)?;
            let (event, value_span) = self.need()?;
            let mut node = self.node(event, value_span, depth + 1)?;
            if node.span.start == node.span.end {
                // An empty value has no place of its own, so the place of the key is used.
                node.span = span;
            }
            match seen.get(&key) {
                Some(first) => self.problems.push(given_twice(&key, *first, span)),
                None => {
                    seen.insert(key.clone(), span);
                    map.entries.push(Entry { key, key_span: span, node });
                }
            }
        }
    }

    fn key(&self, event: &Event<'a>, span: Span) -> Result<String, Fatal> {
        match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<" => {
                let problem = Problem::new(Id::Document, "merge keys (`<<`) are not supported").at(span);
                Err(Box::new(problem.hint("write the keys out, or use an alias for a whole value")))
            }
            Event::Scalar(text, ..) => Ok(text.to_string()),
            _ => {
                let problem = Problem::new(Id::Syntax, "a key must be a word or a string").at(span);
                let hint = match self.text[span.start..].chars().next() {
                    Some('[') => "quote a string that begins with `[`, such as the IPv6 address \"[::1]:80\"",
                    Some('{') => {
                        "quote a string that begins with `{`; if this is a template, fill it in first"
                    }
                    _ => "quote a string that begins with `{`, `[` or `*`",
                };
                Err(Box::new(problem.hint(hint)))
            }
        }
    }

    fn alias(&mut self, anchor: usize, span: Span, depth: usize) -> Result<Node, Fatal> {
        let Some(node) = self.anchors.get(&anchor) else {
            let problem = Problem::new(Id::Syntax, "the alias is inside the value that it repeats").at(span);
            return Err(Box::new(problem));
        };
        let node = node.clone();
        self.account(node.count(), depth + node.depth(), span)?;
        Ok(node)
    }

    /// Returns the place of a container: in flow style up to the closing bracket, in block style up to the end of the
    /// last value.
    fn container(&self, start: Span, end: Span, last: Option<Span>) -> Span {
        let closed = end.end > end.start;
        let end = if closed { end.end } else { last.map_or(start.end, |last| last.end) };
        Span::new(start.start, end)
    }

    fn span(&self, span: &granit_parser::Span) -> Span {
        let range = span.byte_range().unwrap_or(0..0);
        self.clamp(range.start, range.end)
    }

    /// Limits a range to the text and to character boundaries, and removes white space at its end.
    fn clamp(&self, start: usize, end: usize) -> Span {
        let start = self.text.floor_char_boundary(start);
        let end = self.text.floor_char_boundary(end).max(start);
        Span::new(start, start + self.text[start..end].trim_end().len())
    }

    fn end(&self) -> Span {
        let end = self.text.trim_end().len();
        Span::new(end, end)
    }

    fn syntax(&self, error: &ScanError) -> Fatal {
        Box::new(syntax::problem(self.text, error))
    }
}

impl Node {
    fn nothing() -> Self {
        Self { span: Span::default(), value: Value::Null }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> Node {
        let (root, problems) = parse(text);
        assert_eq!(problems, [], "{text}");
        root.expect("a document without problems has a root")
    }

    fn written<'a>(text: &'a str, path: &[Step]) -> &'a str {
        &text[root(text).place(path).range()]
    }

    fn only_problem(text: &str) -> Problem {
        let (_, mut problems) = parse(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }

    #[test]
    fn values_have_the_types_of_yaml_1_2() {
        let text = |text: &str| Value::Text { text: text.to_owned(), plain: true };
        for (written, value) in [
            ("~", Value::Null),
            ("", Value::Null),
            ("true", Value::Bool(true)),
            ("yes", text("yes")),
            ("off", text("off")),
            ("017", Value::Int(17)),
            ("-5", Value::Int(-5)),
            ("0x1F", Value::Int(31)),
            ("0o17", Value::Int(15)),
            ("1.5", Value::Float(1.5)),
            ("1e3", Value::Float(1000.0)),
            (".inf", text(".inf")),
            ("nan", text("nan")),
            ("1.1.1.1:443", text("1.1.1.1:443")),
            ("5s", text("5s")),
            ("-", text("-")),
            ("+", text("+")),
        ] {
            assert_eq!(resolve(written), value, "{written}");
        }
    }

    #[test]
    fn places_are_those_of_what_is_written() {
        let text = "a: 1\nb:\n  - {c: x, d: [y]}\n  - e: \"z\"\n    f:\n";
        assert_eq!(written(text, &["a".into()]), "1");
        assert_eq!(written(text, &["b".into()]), "b");
        assert_eq!(written(text, &["b".into(), 0.into()]), "{c: x, d: [y]}");
        assert_eq!(written(text, &["b".into(), 0.into(), "d".into(), 0.into()]), "y");
        assert_eq!(written(text, &["b".into(), 1.into()]), "e");
        assert_eq!(written(text, &["b".into(), 1.into(), "e".into()]), "\"z\"");
        assert_eq!(written(text, &["b".into(), 1.into(), "f".into()]), "f");
        assert_eq!(written(text, &["b".into(), 7.into(), "g".into()]), "b");
    }

    #[test]
    fn every_duplicate_key_is_reported() {
        let (root, problems) = parse("a: 1\na: 2\nb: {c: 1, c: 2}\na: 3\n");
        assert_eq!(problems.len(), 3);
        assert!(problems.iter().all(|problem| problem.id == Id::DuplicateKey));
        let first = root.as_ref().and_then(|root| root.get(&["a".into()])).map(|node| &node.value);
        assert_eq!(first, Some(&Value::Int(1)));
    }

    #[test]
    fn aliases_repeat_values_but_not_without_end() {
        let node = root("a: &x [1, 2]\nb: *x\n");
        assert_eq!(node.get(&["b".into(), 1.into()]).map(|node| &node.value), Some(&Value::Int(2)));
        assert_eq!(only_problem("a: &x [*x]\n").id, Id::Syntax);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            bomb += &format!("a{level}: &a{level} [{}]\n", format!("*a{}, ", level - 1).repeat(10));
        }
        assert_eq!(only_problem(&bomb).id, Id::Document);
    }

    #[test]
    fn what_is_taken_out_leaves_a_mark_on_the_way_to_it() {
        let mut node = root("a: {b: [1, 2], c: 3}\nd: 4\n");
        assert!(node.remove_wrong(&["a".into(), "b".into(), 0.into()]));
        assert!(node.is_damaged(&["a".into(), "b".into()]));
        assert!(node.is_damaged(&["a".into()]));
        assert!(!node.is_damaged(&["a".into(), "c".into()]));
        assert!(!node.is_damaged(&["d".into()]));
        assert!(node.remove_wrong(&["d".into()]));
        assert!(node.is_damaged(&["d".into()]));
        assert!(!node.remove_wrong(&["d".into()]));
        assert!(!node.remove_wrong(&[]));
    }

    #[test]
    fn a_key_that_is_renamed_keeps_its_value_and_leaves_a_mark() {
        let mut node = root("a: {bs: [1], c: 3}\n");
        assert!(node.rename_wrong(&["a".into(), "bs".into()], "b"));
        assert!(node.get(&["a".into(), "b".into(), 0.into()]).is_some());
        assert!(node.is_damaged(&["a".into()]) && node.is_damaged(&[]));
        assert!(!node.is_damaged(&["a".into(), "c".into()]));
        assert!(!node.rename_wrong(&["a".into(), "b".into()], "c"));
    }
}
