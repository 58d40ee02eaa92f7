//! Expansion of `${NAME}` and `${NAME:-default}` in values.
//!
//! Only values are expanded, never keys. The default is used if the variable is not set or empty, as in a shell.
//! `$${` stands for `${`. A value without quotes gets its type after the expansion, so `threads: ${N}` works.

use super::document::{self, Node, Step, Value};
use super::problem::{Id, Problem, Span};

/// A function that looks up an environment variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands every value of the tree in place. A value that cannot be expanded is reported and removed.
pub(crate) fn expand(root: &mut Node, lookup: Lookup<'_>, problems: &mut Vec<Problem>) {
    let mut expander = Expander { lookup, path: Vec::new(), faults: Vec::new() };
    expander.visit(root);
    // The last value is removed first, so that the indexes of the others remain valid.
    for (path, fault) in expander.faults.into_iter().rev() {
        problems.push(fault.at(root.place(&path)));
        root.remove_wrong(&path);
    }
}

struct Expander<'a> {
    lookup: Lookup<'a>,
    /// The path to the value that is being visited.
    path: Vec<Step>,
    faults: Vec<(Vec<Step>, Fault)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Unset(String),
    Unclosed,
    BadName(String),
}

fn expand_text(text: &str, lookup: Lookup<'_>) -> Result<String, Fault> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find("${") {
        let before = &rest[..dollar];
        let after = &rest[dollar + 2..];
        if let Some(escaped) = before.strip_suffix('$') {
            expanded.push_str(escaped);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        let end = after.find('}').ok_or(Fault::Unclosed)?;
        expanded.push_str(before);
        expanded.push_str(&variable(&after[..end], lookup)?);
        rest = &after[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn variable(inside: &str, lookup: Lookup<'_>) -> Result<String, Fault> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    if !is_name(name) {
        return Err(Fault::BadName(name.to_owned()));
    }
    match (lookup(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Fault::Unset(name.to_owned())),
    }
}

fn is_name(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.starts_with(letter) && text.chars().all(|c| letter(c) || c.is_ascii_digit())
}

// === impl Expander ===

impl Expander<'_> {
    fn visit(&mut self, node: &mut Node) {
        match &mut node.value {
            Value::Map(map) => map
                .entries
                .iter_mut()
                .for_each(|entry| self.enter(entry.key.as_str().into(), &mut entry.node)),
            Value::List(list) => {
                list.items.iter_mut().enumerate().for_each(|(index, item)| self.enter(index.into(), item));
            }
            Value::Text { text, plain } if text.contains("${") => match expand_text(text, self.lookup) {
                Ok(expanded) if *plain => node.value = document::resolve(&expanded),
                Ok(expanded) => *text = expanded,
                Err(fault) => self.faults.push((self.path.clone(), fault)),
            },
            _ => {}
        }
    }

    fn enter(&mut self, step: Step, node: &mut Node) {
        self.path.push(step);
        self.visit(node);
        self.path.pop();
    }
}

// === impl Fault ===

impl Fault {
    fn at(self, span: Span) -> Problem {
        match self {
            Self::Unset(name) => Problem::new(
                Id::Variable,
                format!("the environment variable `{name}` is not set"),
            )
            .at(span)
            .hint(format!(
                "set {name} where the daemon is started, or write ${{{name}:-default}} with a default value"
            )),
            Self::Unclosed => Problem::new(Id::Variable, "`${` has no closing `}`")
                .at(span)
                .hint("write ${NAME}; write $${ for the two characters themselves"),
            Self::BadName(name) => {
                Problem::new(Id::Variable, format!("`{name}` is not the name of an environment variable"))
                    .at(span)
                    .hint("use letters, digits and `_`; write $${ for the two characters themselves")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("10.0.0.1".into()),
            "N" => Some("4".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn expanded(text: &str) -> Result<String, Fault> {
        expand_text(text, &env)
    }

    #[test]
    fn names_and_defaults_are_replaced_wherever_they_stand() {
        assert_eq!(expanded("${HOST}:${PORT:-80}/${N}"), Ok("10.0.0.1:80/4".into()));
        assert_eq!(expanded("${EMPTY:-x}${EMPTY}"), Ok("x".into()));
        assert_eq!(expanded("${PORT:-}"), Ok(String::new()));
        assert_eq!(expanded("cost: 5$ and $HOST"), Ok("cost: 5$ and $HOST".into()));
    }

    #[test]
    fn two_dollars_stand_for_one() {
        assert_eq!(expanded("$${HOST} ${HOST}"), Ok("${HOST} 10.0.0.1".into()));
    }

    #[test]
    fn different_faults_get_different_messages() {
        assert_eq!(expanded("${PORT}"), Err(Fault::Unset("PORT".into())));
        assert_eq!(expanded("${PORT"), Err(Fault::Unclosed));
        assert_eq!(expanded("${}"), Err(Fault::BadName(String::new())));
        assert_eq!(expanded("${1A}"), Err(Fault::BadName("1A".into())));
    }

    #[test]
    fn only_values_without_quotes_change_their_type() {
        let (root, problems) = document::parse("a: ${N}\nb: \"${N}\"\n${N}: c\n");
        assert_eq!(problems, []);
        let mut root = root.expect("it is YAML");
        let mut problems = Vec::new();
        expand(&mut root, &env, &mut problems);
        assert_eq!(problems, []);
        assert_eq!(root.get(&["a".into()]).map(|node| &node.value), Some(&Value::Int(4)));
        let text = Value::Text { text: "4".into(), plain: false };
        assert_eq!(root.get(&["b".into()]).map(|node| &node.value), Some(&text));
        assert!(root.get(&["${N}".into()]).is_some());
    }
}
