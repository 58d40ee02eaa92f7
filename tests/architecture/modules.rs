//! No cycle between modules: the graph of `use` lines of every crate is acyclic at each level.
//!
//! A module and the modules inside it are one unit and may use each other. So an edge counts between the two siblings
//! that contain its ends: `use crate::pool::Pool` in `exchange/mod.rs` is the edge from `exchange` to `pool`. A name
//! that a module re-exports from one of its children counts as the child's. Unit tests are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::{members, rust_files};

/// A module by its path from the root of its crate: `[]` is `lib.rs`, `["pool", "pick"]` is `pool/pick.rs`.
type Module = Vec<String>;

#[test]
fn no_crate_has_a_cycle_of_modules() {
    for (name, source) in sources() {
        let cycles = cycles(&source);
        assert!(cycles.is_empty(), "{name} has modules that use each other:\n{}", cycles.join("\n"));
    }
}

#[test]
fn a_cycle_is_found_through_a_re_export_and_a_parent_is_none() {
    let files = [
        (vec![], "mod a;\nmod b;\n"),
        (module("a"), "mod inner;\npub use inner::{Thing, Other};\nuse crate::b::B;"),
        (module("a::inner"), "use super::Whole;\n#[cfg(test)]\nmod tests {\n    use crate::c::C;\n}"),
        (module("b"), "use crate::{\n    c::{self, D},\n    a::Thing as Renamed,\n};"),
        (module("c"), "use std::fmt;\n"),
    ];
    let source = files.map(|(module, text)| (module, text.to_owned())).into();
    assert_eq!(cycles(&source), ["a -> b (a), b -> a (b)"]);
}

/// The modules of each crate, with their text.
fn sources() -> Vec<(String, BTreeMap<Module, String>)> {
    let product = members().into_iter().filter(|(name, _)| name != "tests");
    product.map(|(name, member)| (name, read(&member.manifest.with_file_name("src")))).collect()
}

fn read(directory: &Path) -> BTreeMap<Module, String> {
    // Cargo's targets: a crate of its own each.
    let is_module = |file: &std::path::PathBuf| file.file_name().is_none_or(|name| name != "main.rs");
    let files = rust_files(directory).into_iter().filter(is_module);
    files
        .map(|file| (module_of(directory, &file), fs::read_to_string(&file).expect("it can be read")))
        .collect()
}

fn module_of(directory: &Path, file: &Path) -> Module {
    let inner = file.strip_prefix(directory).expect("it lies there").with_extension("");
    let mut names: Module = inner.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    names.pop_if(|last| last == "mod" || last == "lib");
    names
}

fn module(path: &str) -> Module {
    path.split("::").map(str::to_owned).collect()
}

/// Each cycle as one line: its edges, each with the files that it comes from.
fn cycles(source: &BTreeMap<Module, String>) -> Vec<String> {
    let mut levels: BTreeMap<Module, Edges> = BTreeMap::new();
    for (from, to) in uses(source) {
        let Some((parent, edge)) = between_siblings(&from, &to) else { continue };
        levels.entry(parent).or_default().entry(edge).or_default().insert(from.join("/"));
    }
    levels.values().filter_map(cycle).collect()
}

/// Between which siblings, and in which files.
type Edges = BTreeMap<(String, String), BTreeSet<String>>;

/// The edges that lie on a cycle.
fn cycle(edges: &Edges) -> Option<String> {
    let on_cycle = edges.iter().filter(|((from, to), _)| reaches(edges, to, from));
    let words = |((from, to), files): (&(String, String), &BTreeSet<String>)| {
        format!("{from} -> {to} ({})", files.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
    };
    let lines: Vec<_> = on_cycle.map(words).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

fn reaches(edges: &Edges, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        let next = edges.keys().filter(|(start, _)| start == at).map(|(_, end)| end.as_str());
        open.extend(next.filter(|end| seen.insert(end)));
    }
    seen.contains(to)
}

/// The common parent, and the names below it that contain the two; none if one contains the other.
fn between_siblings(from: &Module, to: &Module) -> Option<(Module, (String, String))> {
    let common = from.iter().zip(to).take_while(|(from, to)| from == to).count();
    Some((from[..common].to_vec(), (from.get(common)?.clone(), to.get(common)?.clone())))
}

/// Which module uses which.
fn uses(source: &BTreeMap<Module, String>) -> Vec<(Module, Module)> {
    let paths: Vec<_> = source
        .iter()
        .flat_map(|(module, text)| use_paths(text).into_iter().map(move |path| (module, path)))
        .collect();
    let exports: BTreeMap<Module, Module> = paths
        .iter()
        .filter(|(_, path)| path.is_public)
        .filter_map(|(module, path)| {
            Some((named(module, path.name.as_ref()?), absolute(module, &path.names, source)?))
        })
        .collect();
    let target = |module: &Module, path: &UsePath| {
        let path = absolute(module, &path.names, source)?;
        Some(defining_module(exports.get(&path).unwrap_or(&path), source))
    };
    paths.iter().filter_map(|(module, path)| Some(((*module).clone(), target(module, path)?))).collect()
}

/// One path of a `use` declaration.
#[derive(Debug, PartialEq)]
struct UsePath {
    names: Vec<String>,
    /// What it is called here; none: `*` or `_`.
    name: Option<String>,
    is_public: bool,
}

fn named(module: &Module, name: &str) -> Module {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

/// The path from the root of the crate; none if it leads out of it.
fn absolute(module: &Module, names: &[String], source: &BTreeMap<Module, String>) -> Option<Module> {
    let ups = names.iter().take_while(|name| *name == "super").count();
    let (base, rest): (&[String], _) = match names.first()?.as_str() {
        "crate" => (&[], &names[1..]),
        "self" => (module, &names[1..]),
        "super" => (&module[..module.len().checked_sub(ups)?], &names[ups..]),
        child if source.contains_key(&named(module, child)) => (module, names),
        _ => return None,
    };
    Some(base.iter().chain(rest).cloned().collect())
}

/// The longest part of a path that is a module.
fn defining_module(path: &Module, source: &BTreeMap<Module, String>) -> Module {
    let lengths = (0..=path.len()).rev();
    lengths.map(|length| path[..length].to_vec()).find(|part| source.contains_key(part)).unwrap_or_default()
}

fn use_paths(text: &str) -> Vec<UsePath> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines: Vec<&str> = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let joined = lines.join("\n");
    let statements = joined.split(';').filter_map(|statement| {
        let start = statement
            .rfind("\nuse ")
            .or_else(|| statement.rfind(" use "))
            .or_else(|| statement.starts_with("use ").then_some(0))?;
        let line = statement[..start].rsplit('\n').next().unwrap_or_default();
        Some((line.trim_start().starts_with("pub"), statement[start..].trim_start().strip_prefix("use ")?))
    });
    let mut found = Vec::new();
    statements.for_each(|(is_public, tree)| expand(&[], tree.trim(), is_public, &mut found));
    found
}

/// Takes a tree of paths apart: `a::{b, c::d as e}` is `a::b` and `a::c::d`.
fn expand(before: &[String], tree: &str, is_public: bool, found: &mut Vec<UsePath>) {
    let (head, group) = match tree.split_once('{') {
        Some((head, group)) => (head, Some(group.trim_end().trim_end_matches('}'))),
        None => (tree, None),
    };
    let (path, renamed) =
        head.split_once(" as ").map_or((head, None), |(path, name)| (path, Some(name.trim())));
    let names = path.split("::").map(str::trim).filter(|name| !name.is_empty());
    let mut all: Vec<String> = before.iter().cloned().chain(names.map(str::to_owned)).collect();
    if let Some(group) = group {
        return branches(group).into_iter().for_each(|branch| expand(&all, branch.trim(), is_public, found));
    }
    all.pop_if(|last| last == "self" || last == "*");
    let name = renamed.map(str::to_owned).or_else(|| all.last().cloned());
    found.push(UsePath { names: all, name, is_public });
}

/// The branches of a group, at its own depth.
fn branches(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (index, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&group[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    found.push(&group[start..]);
    found.retain(|branch| !branch.trim().is_empty());
    found
}
