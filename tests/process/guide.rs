//! The guide lists exactly the metrics and subcommands that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use tests::{Lab, Origin};

use crate::pool;

/// The labels of each metric family, by its name.
type Families = BTreeMap<String, BTreeSet<String>>;

#[test]
fn the_guide_lists_every_metric_of_ours_with_its_labels() {
    let lab = Lab::new();
    let (one, down) = (Origin::start("one"), Origin::refusing("down"));
    let daemon = lab.start(&pool(&[&one, &down], "health_check: {type: tcp, interval: 1s}"));
    daemon.get("/").unwrap();
    daemon.settle();
    let mut listed = listed();
    // The other families come from the system, which decides their names.
    listed.retain(|family, _| family.starts_with("lb_"));
    assert_eq!(listed, served(&daemon.metrics_text()));
}

#[test]
fn the_guide_describes_every_subcommand() {
    let help = Lab::new().run(&["--help"]).stdout;
    let (_, commands) = help.split_once("Commands:\n").expect("--help has commands");
    let listed = commands.lines().take_while(|line| !line.is_empty());
    // Continuation lines of a description have a deeper indentation.
    let names: Vec<&str> = listed.filter(|line| !line.starts_with("    ")).map(first_word).collect();
    assert!(names.contains(&"drain"), "{help}");
    let page = page("operating");
    for name in names.into_iter().filter(|name| *name != "help") {
        let row = |end: &str| page.contains(&format!("\n| `{name}{end}"));
        assert!(row("`") || row(" "), "the page on operating has no row for {name}");
    }
}

/// The families in the guide's section on metrics. Each row names families and their common labels. The values of a
/// label follow it in backquotes.
fn listed() -> Families {
    let page = page("observability");
    let (_, section) = page.split_once("\n## Metrics\n").expect("there is a section on metrics");
    let (section, _) = section.split_once("\n### ").expect("another section follows");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" | "));
    let families = rows.flat_map(|(families, labels)| {
        let labels: BTreeSet<String> = words(&outside_backticks(labels)).map(str::to_owned).collect();
        let families = families.split('`').filter(|part| part.contains('_') && !part.contains(' '));
        families.map(move |family| (family.to_owned(), labels.clone()))
    });
    families.collect()
}

fn served(text: &str) -> Families {
    let of_ours = text.lines().filter_map(|line| line.strip_prefix("# TYPE lb_"));
    let names = of_ours.map(|line| format!("lb_{}", first_word(line)));
    names.map(|family| (labels_of(&family, text), family)).map(|(labels, family)| (family, labels)).collect()
}

/// The labels of the first series of a family, without `le`, which every histogram has.
fn labels_of(family: &str, text: &str) -> BTreeSet<String> {
    let series = text.lines().find_map(|line| {
        let rest = line.strip_prefix(family)?;
        let rest = rest.strip_prefix("_bucket").unwrap_or(rest);
        Some(rest.strip_prefix('{')?.rsplit_once('}')?.0)
    });
    let labels =
        series.into_iter().flat_map(|series| series.split("\",")).filter_map(|pair| pair.split_once('='));
    labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le").collect()
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../shared/guide/{name}.md"));
    fs::read_to_string(path).expect("the guide has this page")
}

fn first_word(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

fn outside_backticks(text: &str) -> String {
    text.split('`').step_by(2).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_of_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.split(move |letter| !is_of_word(letter)).filter(|word| !word.is_empty())
}
