//! The figures in the README, which must be those of the published results of the benchmark and of the soak test.

use std::fs;

use crate::root;

const BENCHMARK: &str = "tests/benches/RESULTS.md";
const SOAK: &str = "tests/soak/RESULTS.md";

#[test]
fn the_readme_has_the_figures_of_the_benchmark() {
    let rows = rows_after(BENCHMARK, "## 36 bytes, keep-alive");
    let cpu = |program| {
        let cell = &row(&rows, program)[1];
        let value: f64 = first_word(cell).parse().expect("CPU time is a number");
        format!("{value:.0} µs")
    };
    let [ours, bare, nginx, haproxy] = ["load_balancer", "bare quick start", "nginx", "HAProxy"].map(cpu);
    assert_readme_has(&format!(
        "**{ours} of CPU per request**, where a bare Pingora proxy uses {bare}, nginx {nginx} and HAProxy {haproxy}"
    ));
}

#[test]
fn the_readme_has_the_figures_of_the_soak_test() {
    let rows = rows_after(SOAK, "# Soak test");
    let ours = |title| row(&rows, title)[1].as_str();
    let requests: u64 =
        ["GET on kept", "POST", "slow / long"].iter().flat_map(|title| numbers(ours(title))).sum();
    let count = |title| numbers(ours(title))[0];
    let (failed, reloads, upgrades) = (count("**requests failed"), count("reloads"), count("upgrades"));
    let (kills, gigabytes) = (count("backends killed"), count("bytes compared") / 1000);
    assert_readme_has(&format!("**{failed} of {},000 requests failed**", requests / 1000));
    assert_readme_has(&format!(
        "{reloads} reloads, {upgrades} upgrades of the running daemon and {kills} killed"
    ));
    assert_readme_has(&format!("all {gigabytes} GB of responses"));
    let [ours, nginx, haproxy] =
        [1, 2, 3].map(|column| numbers(&row(&rows, "time until a reload")[column])[0]);
    assert_readme_has(&format!(
        "**A reload takes effect within {ours} ms** (median), \
         compared with {nginx} ms for nginx and {haproxy} ms for HAProxy"
    ));
}

fn assert_readme_has(words: &str) {
    let readme = read("README.md").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(readme.contains(words), "the README does not contain the published figures: {words}");
}

/// The cells of the rows of the first table after a line that begins with `heading`.
fn rows_after(path: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(path);
    let after = text.lines().skip_while(|line| !line.starts_with(heading)).skip(1);
    let table = after.skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    table.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// The first row whose first cell begins with `title`.
fn row<'a>(rows: &'a [Vec<String>], title: &str) -> &'a [String] {
    rows.iter().find(|cells| cells[0].starts_with(title)).unwrap_or_else(|| panic!("no row {title}"))
}

fn first_word(cell: &str) -> &str {
    cell.split_whitespace().next().unwrap_or_default()
}

/// The whole numbers in a cell.
fn numbers(cell: &str) -> Vec<u64> {
    cell.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
