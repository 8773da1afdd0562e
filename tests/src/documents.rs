//! What operators read is complete: every key, every counter, every drop reason, and a dashboard of metrics that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use postern_dataplane::inspection::{CountersReport, prometheus};
use postern_forwarding::DropReason;
use postern_tables::Declaration;
use serde_json::Value;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names and meanings of all metrics.
fn metrics() -> Vec<(String, String)> {
    let page = prometheus::page(&CountersReport::default());
    let help = page.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let metrics: Vec<_> = help.map(|(name, help)| (name.to_owned(), help.to_owned())).collect();
    assert!(metrics.len() > 50, "the page was not read");
    metrics
}

/// First cells of a page's tables, where they are code.
fn rows(page: &str) -> BTreeSet<&str> {
    page.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0)).collect()
}

#[test]
fn every_drop_reason_stands_in_the_counters_page_with_its_meaning() {
    let page = read("docs/counters.md");
    for reason in DropReason::ALL {
        let row = format!("| `{}` | {} |", reason.label(), reason.description().trim());
        assert!(page.contains(&row), "docs/counters.md needs the row\n{row}");
    }
}

#[test]
fn every_metric_stands_in_the_counters_page_with_its_meaning_and_nothing_else_does() {
    let page = read("docs/counters.md");
    let metrics = metrics();
    for (name, help) in &metrics {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
        assert!(row.is_some_and(|row| row.ends_with(&format!("| {help} |"))), "docs/counters.md: {name}: {help}");
    }
    let known = metrics.iter().map(|(name, _)| name.as_str());
    let known: BTreeSet<_> = known.chain(DropReason::ALL.iter().map(|reason| reason.label())).collect();
    let unknown: Vec<_> = rows(&page).difference(&known).copied().collect();
    assert!(unknown.is_empty(), "docs/counters.md has what no gateway counts: {unknown:?}");
}

#[test]
fn every_key_stands_in_the_configuration_page_and_nothing_else_does() {
    // The examples have every key; a test of postern-tables says so.
    let mut keys = BTreeSet::new();
    for file in ["gateway.toml", "gateway-with-control.toml"] {
        let example = read(&format!("configs/{file}"));
        let uncommented = example.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|first: char| first.is_ascii_lowercase()) => rest,
            _ => line,
        });
        let text = uncommented.collect::<Vec<_>>().join("\n");
        let declaration = Declaration::from_toml(&text, file).unwrap();
        collect_keys("", &serde_json::to_value(declaration).unwrap(), &mut keys);
    }
    // Lists that an example leaves out.
    keys.retain(|key| key.contains('.'));
    // Nor does a table count that one example has and another leaves out.
    let all = keys.clone();
    keys.retain(|key| {
        !all.iter().any(|other| other.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('.')))
    });
    let page = read("docs/configuration.md");
    assert_eq!(rows(&page), keys.iter().map(String::as_str).collect());
}

/// Keys whose values are no tables, as `table.key`.
fn collect_keys(path: &str, value: &Value, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect_keys(&path, value, keys);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().for_each(|value| collect_keys(path, value, keys));
        }
        // A value that the example does not give has a default there is no value for.
        _ => drop(keys.insert(path.to_owned())),
    }
}

#[test]
fn the_gateway_that_the_readme_shows_passes_the_check() {
    let readme = read("README.md");
    let text = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of TOML");
    let checked = Declaration::from_toml(text, "README.md").and_then(Declaration::check);
    let checked = checked.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(checked.warnings, []);
}

#[test]
fn every_link_between_pages_leads_to_a_file() {
    for page in ["README.md", "docs/behaviour.md", "docs/configuration.md", "docs/operations.md", "docs/packet-path.md"]
    {
        let text = read(page);
        let ends = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in ends.filter(|link| !link.starts_with('#') && !link.contains("://")) {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
            assert!(directory.parent().unwrap().join(link).exists(), "{page} leads to {link}, which is not there");
        }
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&read("configs/grafana-dashboard.json")).unwrap();
    let known = metrics();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            for word in expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
                if word.starts_with("postern_") {
                    assert!(known.iter().any(|(name, _)| name == word), "{word} in {}", panel["title"]);
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 10, "the dashboard was not read");
}
