//! The README and the guide: their YAML examples are accepted, and their links lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_service::failure::{Failure, Rejection};
use lb_service::listener::{ClientLimits, ClientTimeouts};
use shared::config::load_text;

use crate::support::{context, repository};

/// A pool for examples that have none.
const POOL: &str = "pools:\n  web:\n    backends: [10.0.0.1:8080, 10.0.0.2:8080]\n";

/// The documents for people at the root, beside the guide.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "tests/soak/RESULTS.md",
];

#[test]
fn every_yaml_example_is_accepted_without_a_warning() {
    let mut examples = 0;
    for page in pages().into_iter().chain([repository().join("README.md")]) {
        for example in blocks(&read(&page), "yaml") {
            examples += 1;
            let whole = if example.contains("pools:") { example } else { format!("{POOL}{example}") };
            let name = page.display().to_string();
            let loaded =
                load_text(&name, &whole, &context()).unwrap_or_else(|problems| panic!("{whole}\n{problems}"));
            assert!(loaded.warnings.is_empty(), "{whole}\n{}", loaded.warnings);
        }
    }
    assert!(examples >= 15, "only {examples} examples were found");
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let documents = DOCUMENTS.iter().map(|name| repository().join(name));
    let broken: Vec<String> = documents.chain(pages()).flat_map(|page| broken_links(&page)).collect();
    assert!(broken.is_empty(), "these links lead nowhere: {broken:#?}");
}

fn broken_links(page: &Path) -> Vec<String> {
    let text = read(page);
    let defined = definitions(&text).into_values();
    let targets = inline_targets(&text).into_iter().chain(defined).filter(|target| !target.contains("://"));
    let leads_nowhere = |target: &String| {
        let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
        let file = if path.is_empty() { page.to_owned() } else { page.with_file_name(path) };
        !file.exists() || !(anchor.is_empty() || anchors(&read(&file)).contains(anchor))
    };
    let broken = targets.filter(leads_nowhere);
    broken.map(|target| format!("{}: {target}", page.display())).collect()
}

#[test]
fn links_between_pages_are_the_same_in_rustdoc() {
    let in_rustdoc = definitions(&read(&guide().join("links.md")));
    for page in pages() {
        let text = read(&page);
        let own = page.file_stem().expect("a page has a name").to_string_lossy().into_owned();
        for (label, target) in definitions(&text) {
            assert!(uses(&text, &label), "{own}: nothing uses [{label}]");
            if let Some(expected) = module_path(&own, &target) {
                assert_eq!(in_rustdoc.get(&label), Some(&expected), "{own}: [{label}] in links.md");
            }
        }
    }
}

#[test]
fn each_reason_to_reject_a_request_has_a_row_with_its_status_and_is_a_label() {
    let page = |name| read(&guide().join(name));
    let (observability, limits) = (page("observability.md"), page("limits.md"));
    let labels = observability.lines().find(|line| line.starts_with("| `lb_rejected_total`"));
    for rejection in Rejection::all() {
        let (word, status) = (rejection.as_str(), Failure::Rejected(rejection).status());
        let row = format!("\n| `{word}` | {status} | ");
        let has_row = observability.contains(&row) || limits.contains(&row);
        assert!(has_row, "the guide has no row for {word}, {status}");
        assert!(
            labels.is_some_and(|row| row.contains(&format!("`{word}`"))),
            "{word} is no label in the guide"
        );
    }
}

#[test]
fn the_limits_of_clients_have_the_defaults_of_the_code() {
    let (limits, timeouts) = (ClientLimits::default(), ClientTimeouts::default());
    let seconds = |timeout: Duration| format!("{} s", timeout.as_secs());
    let kibibytes = |bytes: usize| format!("{} KiB", bytes / 1024);
    let page = read(&guide().join("limits.md"));
    for (key, default) in [
        ("limits.head", kibibytes(limits.head.head)),
        ("limits.fields", limits.head.fields.to_string()),
        ("limits.target", kibibytes(limits.head.target)),
        ("timeouts.idle", seconds(timeouts.idle)),
        ("timeouts.head", seconds(timeouts.head)),
        ("timeouts.body", seconds(timeouts.body)),
        ("min_rate", format!("{} bytes per second", limits.min_rate)),
    ] {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{key}`")));
        assert!(
            row.is_some_and(|row| row.contains(&format!(" | {default} | "))),
            "{key}: {default}: {row:?}"
        );
    }
}

/// Whether a link has this label. Labels ignore case.
fn uses(text: &str, label: &str) -> bool {
    let text = text.to_lowercase();
    let with_label: Vec<&str> = text.split(&format!("[{label}]")).skip(1).collect();
    with_label.iter().any(|rest| !rest.starts_with(':'))
}

/// The path in rustdoc of a link to `target` on the page `own`; `None` when it leads out of the guide.
fn module_path(own: &str, target: &str) -> Option<String> {
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let page =
        if file.is_empty() { own } else { file.strip_suffix(".md").filter(|page| !page.contains('/'))? };
    let anchor = anchor.map(|anchor| format!("#{anchor}")).unwrap_or_default();
    Some(format!("crate::guide::{page}{anchor}"))
}

#[test]
fn the_readme_links_to_every_page() {
    let readme = read(&repository().join("README.md"));
    let linked: BTreeSet<String> = inline_targets(&readme).into_iter().collect();
    for page in pages() {
        let path = format!("shared/guide/{}", page.file_name().expect("a page has a name").to_string_lossy());
        assert!(linked.contains(&path), "the README has no link to {path}");
    }
    assert!(readme.lines().count() <= 200, "the README is longer than 200 lines");
}

// === reading Markdown ===

fn guide() -> PathBuf {
    repository().join("shared/guide")
}

/// The pages of the guide, without the file that holds the links for rustdoc.
fn pages() -> Vec<PathBuf> {
    let entries =
        fs::read_dir(guide()).expect("the guide exists").map(|entry| entry.expect("an entry").path());
    let mut pages: Vec<PathBuf> = entries.filter(|path| !path.ends_with("links.md")).collect();
    pages.sort();
    pages
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The contents of the code blocks in this language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let parts = text.split("```").skip(1).step_by(2);
    let of_language = parts.filter_map(|part| part.strip_prefix(language)?.strip_prefix('\n'));
    of_language.map(str::to_owned).collect()
}

/// The text outside of code blocks and code spans.
fn prose(text: &str) -> String {
    let outside: String = text.split("```").step_by(2).collect();
    outside.lines().map(|line| line.split('`').step_by(2).collect::<String>() + "\n").collect()
}

/// The targets of `[text](target)`.
fn inline_targets(text: &str) -> Vec<String> {
    let prose = prose(text);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The targets of `[label]: target`, by label.
fn definitions(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    lines.map(|(label, target)| (label.to_owned(), target.to_owned())).collect()
}

/// The anchors of the headings, as GitHub and rustdoc make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let outside: String = text.split("```").step_by(2).collect();
    let headings =
        outside.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let is_kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    headings
        .map(|heading| heading.to_lowercase().chars().filter(is_kept).collect::<String>().replace(' ', "-"))
        .collect()
}
