//! What applying changes, as people read it.

use serde_json::Value;

use crate::objects::show::cell;

/// The steps of a plan, marked `+`, `~` and `-`, and a sum.
pub(super) fn plan(plan: &Value, dry_run: bool, colours: bool) -> String {
    let mut text = String::new();
    let mut counts = [0_usize; 4];
    for step in plan["steps"].as_array().into_iter().flatten() {
        let (at, mark, colour) = match step["action"].as_str().unwrap_or_default() {
            "create" => (0, '+', "32"),
            "change" => (1, '~', "33"),
            "delete" => (2, '-', "31"),
            _ => (3, ' ', ""),
        };
        counts[at] += 1;
        if at == 3 {
            continue;
        }
        let line = format!("{mark} {} {}", cell(&step["kind"]), cell(&step["name"]));
        text.push_str(&paint(&line, colour, colours));
        text.push('\n');
        for difference in step["differences"].as_array().into_iter().flatten() {
            text.push_str(&format!("    {}\n", self::difference(difference)));
        }
    }
    let [made, changed, deleted, kept] = counts;
    let verb = if dry_run { "would be" } else { "are" };
    text.push_str(&format!("{made} {verb} made, {changed} changed, {deleted} deleted; {kept} stay as they are\n"));
    text
}

fn difference(difference: &Value) -> String {
    let Some(field) = difference["field"].as_str() else { return cell(difference) };
    let show = |value: &Value| match value {
        Value::Null => "nothing".to_owned(),
        Value::Array(items) if items.is_empty() => "nothing".to_owned(),
        value => cell(value),
    };
    format!("{field}: {} → {}", show(&difference["before"]), show(&difference["after"]))
}

fn paint(text: &str, colour: &str, colours: bool) -> String {
    if colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_is_marked_by_what_it_does_and_summed_up() {
        let steps = json!({ "steps": [
            { "action": "create", "kind": "vpc", "name": "a", "differences": [] },
            { "action": "change", "kind": "service", "name": "web", "differences":
                [{ "field": "spec.allowed_principals", "before": ["a"], "after": ["a", "b"] },
                 { "field": "spec.private_dns_name", "before": null, "after": "web.example" }] },
            { "action": "delete", "kind": "endpoint", "name": "old", "differences": [] },
            { "action": "keep", "kind": "vpc", "name": "b", "differences": [] },
        ] });
        assert_eq!(
            plan(&steps, true, false),
            "+ vpc a\n~ service web\n    spec.allowed_principals: a → a, b\n    spec.private_dns_name: nothing → \
             web.example\n- endpoint old\n1 would be made, 1 changed, 1 deleted; 1 stay as they are\n"
        );
        assert!(plan(&steps, false, true).contains("\x1b[31m- endpoint old\x1b[0m"));
    }
}
