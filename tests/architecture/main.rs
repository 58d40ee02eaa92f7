//! The rules about the structure of the project, checked on its files: dependencies between crates, top-level folders,
//! and what every crate and module must have.

mod comments;
#[cfg(test)]
mod figures;
mod modules;
mod security;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The folders that are allowed at the top level, besides hidden ones and cargo's `target`.
const FOLDERS: [&str; 6] = ["lb-service", "health-service", "metrics-service", "shared", "deploy", "tests"];

/// The allowed dependencies between members of the workspace. `tests` may depend on any.
const EDGES: [(&str, &str); 7] = [
    ("shared", "lb-service"),
    ("shared", "health-service"),
    ("shared", "metrics-service"),
    ("shared", "values"),
    ("lb-service", "values"),
    ("health-service", "values"),
    ("metrics-service", "values"),
];

#[test]
fn members_have_only_the_allowed_dependencies_on_each_other() {
    let members = members();
    let names: BTreeSet<&str> = members.keys().map(String::as_str).collect();
    let unknown: Vec<String> = members
        .iter()
        .filter(|(name, _)| *name != "tests")
        .flat_map(|(name, member)| member.dependencies.iter().map(move |to| (name.as_str(), to.as_str())))
        .filter(|(_, to)| names.contains(to))
        .filter(|edge| !EDGES.contains(edge))
        .map(|(from, to)| format!("{from} -> {to}"))
        .collect();
    assert!(unknown.is_empty(), "these dependencies are not allowed: {unknown:?}");
}

#[test]
fn the_composition_root_depends_on_every_service() {
    let shared = &members()["shared"];
    for (_, service) in EDGES.iter().filter(|(from, _)| *from == "shared") {
        assert!(shared.dependencies.contains(*service), "shared does not compose {service}");
    }
}

#[test]
fn the_harness_does_not_link_the_daemon() {
    let tests = &members()["tests"];
    assert!(!tests.dependencies.contains("shared"), "process tests must not link the daemon");
}

#[test]
fn the_top_level_has_only_the_six_folders() {
    let entries = fs::read_dir(root()).expect("the workspace can be read");
    let folders = entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir());
    let names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let other: Vec<String> = names
        .filter(|name| !name.starts_with('.') && name != "target" && !FOLDERS.contains(&name.as_str()))
        .collect();
    assert!(other.is_empty(), "these folders are not allowed at the top level: {other:?}");
}

#[test]
fn a_build_without_cmake_prints_one_line_with_the_package_to_install() {
    let empty = tempfile::tempdir().expect("there is room for a directory");
    // The script needs dirname. The PATH contains no other program, so cmake is missing.
    std::os::unix::fs::symlink("/usr/bin/dirname", empty.path().join("dirname")).expect("it can be linked");
    let stand_in = root().join("deploy/cmake");
    let said =
        Command::new("/bin/sh").arg(&stand_in).env("PATH", empty.path()).output().expect("there is a shell");
    let text = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(127), "{text}");
    assert!(text.lines().count() == 1 && text.contains("apt-get install -y cmake"), "{text}");
}

#[test]
fn every_crate_inherits_the_lints_of_the_workspace() {
    for (name, member) in members() {
        let manifest = fs::read_to_string(&member.manifest).expect("a member has a manifest");
        assert!(inherits_lints(&manifest), "{name} does not set `lints.workspace = true`");
    }
}

#[test]
fn every_module_begins_with_a_doc_comment() {
    let mut silent = Vec::new();
    for member in members().values() {
        let directory = member.manifest.parent().expect("a manifest is in a folder");
        for file in rust_files(&directory.join("src")) {
            let text = fs::read_to_string(&file).expect("a source file can be read");
            if !text.starts_with("//!") {
                silent.push(file);
            }
        }
    }
    assert!(silent.is_empty(), "these files do not begin with a `//!` comment: {silent:#?}");
}

/// A crate of the workspace.
struct Member {
    manifest: PathBuf,
    dependencies: BTreeSet<String>,
}

/// Returns the crates of the workspace by name, from `cargo metadata`.
fn members() -> BTreeMap<String, Member> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let packages = metadata["packages"].as_array().expect("metadata lists packages");
    packages.iter().map(|package| (text(&package["name"]), Member::read(package))).collect()
}

impl Member {
    fn read(package: &Value) -> Self {
        // This includes normal, dev and build dependencies.
        let dependencies = package["dependencies"].as_array().expect("a package lists its dependencies");
        Self {
            manifest: text(&package["manifest_path"]).into(),
            dependencies: dependencies.iter().map(|dependency| text(&dependency["name"])).collect(),
        }
    }
}

fn inherits_lints(manifest: &str) -> bool {
    let lines: Vec<String> = manifest.lines().map(|line| line.replace(' ', "")).collect();
    let in_table = lines.windows(2).any(|pair| pair[0] == "[lints]" && pair[1] == "workspace=true");
    in_table || lines.iter().any(|line| line == "lints.workspace=true")
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => rust_files(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is in the workspace")
}

fn text(value: &Value) -> String {
    value.as_str().expect("cargo writes this as text").to_owned()
}
