//! Objects as people read them.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use postern_control::catalog::model::Kind;
use serde_json::Value;

use super::kinds::columns;

/// One line about an object that was just made, changed or deleted.
pub(super) fn changed(done: &str, kind: Kind, object: &Value) -> String {
    let (id, name) = (cell(&object["id"]), cell(&object["name"]));
    let name = if name.is_empty() || name == id { String::new() } else { format!(" ({name})") };
    let state = match object["status"]["state"].as_str() {
        Some(state) if done != "deleted" => format!(", {state}"),
        _ => String::new(),
    };
    let addresses = match cell(&object["status"]["addresses"]) {
        addresses if addresses.is_empty() || done == "deleted" => String::new(),
        addresses => format!(", {addresses}"),
    };
    format!("{done} {kind} {id}{name}{state}{addresses}")
}

/// Everything about an object, a line for each value.
pub(crate) fn one(object: &Value) -> String {
    let mut lines = Vec::new();
    flatten("", object, &mut lines);
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    lines.iter().map(|(key, value)| format!("{key:width$}  {value}").trim_end().to_owned() + "\n").collect()
}

fn flatten(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value.as_u64()) {
                    ("created" | "updated" | "last_seen", Some(milliseconds)) => {
                        lines.push((join(key), time(milliseconds)));
                    }
                    _ => flatten(&join(key), value, lines),
                }
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (at, item) in items.iter().enumerate() {
                lines.push((format!("{path}[{at}]"), cell(item)));
            }
        }
        Value::Null => {}
        other => lines.push((path.to_owned(), cell(other))),
    }
}

/// A listing.
pub(super) fn many(kind: Kind, objects: &[Value]) -> String {
    let columns = [("id", "id"), ("name", "name"), ("owner", "owner")].into_iter().chain(columns(kind).iter().copied());
    let columns: Vec<_> = columns.collect();
    let heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
    let rows = objects.iter().map(|object| {
        columns.iter().map(|(_, path)| cell(path.split('.').fold(object, |value, key| &value[key]))).collect()
    });
    table(&heads, rows)
}

/// Who connects to a service.
pub(super) fn connections(connections: &[Value]) -> String {
    let rows = connections.iter().map(|connection| {
        let created = connection["created"].as_u64().map(time).unwrap_or_default();
        vec![cell(&connection["endpoint"]), cell(&connection["consumer"]), cell(&connection["state"]), created]
    });
    table(&["endpoint", "consumer", "state", "created"], rows)
}

/// The tokens of a principal, as far as anything is known of them.
pub(super) fn tokens(tokens: &[Value]) -> String {
    let rows = tokens.iter().map(|token| {
        let created = token["created"].as_u64().map(time).unwrap_or_default();
        vec![cell(&token["id"]), created]
    });
    table(&["token", "created"], rows)
}

/// The targets of a group, with their health as far as it is known.
pub(super) fn targets_of(group: &Value) -> Vec<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let declared = list(&group["spec"]["targets"]);
    let seen = list(&group["status"]["targets"]);
    let same = |left: &Value, right: &Value| left["address"] == right["address"] && left["port"] == right["port"];
    let mut targets: Vec<Value> = Vec::new();
    for target in &declared {
        let mut target = target.clone();
        if let Some(seen) = seen.iter().find(|seen| same(seen, &target)) {
            target["health"] = seen["health"].clone();
            target["by_gateway"] = seen["by_gateway"].clone();
        }
        targets.push(target);
    }
    let leaving = seen.into_iter().filter(|seen| !declared.iter().any(|target| same(seen, target)));
    targets.extend(leaving);
    targets
}

/// Targets and their health.
pub(super) fn targets(targets: &[Value]) -> String {
    let rows = targets.iter().map(|target| {
        let by_gateway = target["by_gateway"].as_object().into_iter().flatten();
        let views = by_gateway.map(|(gateway, health)| format!("{gateway} {}", cell(health))).collect::<Vec<_>>();
        let [address, port, weight, zone, health] =
            ["address", "port", "weight", "zone", "health"].map(|key| cell(&target[key]));
        vec![address, port, weight, zone, health, views.join("\n")]
    });
    table(&["address", "port", "weight", "zone", "health", "by gateway"], rows)
}

/// Addresses of an endpoint or a pool that a gateway holds.
pub(super) fn held_by(object: &Value, gateway: &str) -> Vec<String> {
    let addresses = object["status"]["addresses"].as_array().into_iter().flatten();
    let of_endpoint =
        addresses.filter(|address| address["gateway"] == gateway).map(|address| cell(&address["address"]));
    let holders = object["status"]["holders"].as_object().into_iter().flatten();
    let of_pool = holders.filter(|(_, holder)| *holder == gateway).map(|(address, _)| address.clone());
    of_endpoint.chain(of_pool).collect()
}

/// A table; columns of which all values are numbers are set to the right.
pub(crate) fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic).set_header(heads);
    let mut numbers = vec![true; heads.len()];
    for row in rows {
        for (cell, numbers) in row.iter().zip(&mut numbers) {
            *numbers &= cell.parse::<f64>().is_ok() || cell.is_empty();
        }
        table.add_row(row);
    }
    for (column, numbers) in table.column_iter_mut().zip(numbers) {
        if numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// A value in a cell.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(object) => item(value).unwrap_or_else(|| {
            object.iter().map(|(key, value)| format!("{key} {}", cell(value))).collect::<Vec<_>>().join(", ")
        }),
    }
}

/// Items of lists that have a short form.
fn item(value: &Value) -> Option<String> {
    let more = |keys: &[&str]| {
        let known = keys.iter().filter(|key| !value[**key].is_null());
        known.map(|key| format!(" {key} {}", cell(&value[*key]))).collect::<String>()
    };
    if let (Some(address), Some(port)) = (value["address"].as_str(), value["port"].as_u64()) {
        let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        return Some(format!("{address}:{port}{}", more(&["weight", "zone", "health"])));
    }
    if let (Some(protocol), Some(groups)) = (value["protocol"].as_str(), value["target_groups"].as_array()) {
        let groups = groups.iter().map(|group| match group["weight"].as_u64() {
            None | Some(1) => cell(&group["target_group"]),
            Some(weight) => format!("{} ×{weight}", cell(&group["target_group"])),
        });
        let groups = groups.collect::<Vec<_>>().join(" + ");
        return Some(format!(
            "{protocol}:{} → {groups}{}",
            cell(&value["port"]),
            more(&["idle_seconds", "mss", "reset_on_expiry"])
        ));
    }
    let address = value["address"].as_str()?;
    let gateway = value["gateway"].as_str().map(|gateway| format!(" at {gateway}")).unwrap_or_default();
    Some(format!("{address}{gateway}{}", more(&["zone"])))
}

/// Milliseconds since 1970 as `2026-11-22T21:00:00Z`; 0: `never`.
pub(crate) fn time(milliseconds: u64) -> String {
    if milliseconds == 0 {
        return "never".to_owned();
    }
    let seconds = milliseconds / 1000;
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a day since 1970, in the Gregorian calendar.
fn date(mut day: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // Whole cycles of 400 years first: no more than 400 steps then, whatever the number.
    const CYCLE: u64 = 146_097;
    let mut year = 1970 + day / CYCLE * 400;
    day %= CYCLE;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(time(0), "never");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(time(1_795_381_199_999), "2026-11-22T20:59:59Z");
        assert_eq!(time(4_107_542_400_000), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_listing_has_a_row_for_each_object_and_short_forms_of_items() {
        let endpoint = json!({
            "id": "vpce-1", "name": "web", "owner": "alice",
            "spec": { "vpc": "vpc-1", "service": "vpce-svc-1" },
            "status": { "state": "available", "reason": null,
                "addresses": [{ "address": "10.0.0.100", "zone": null, "gateway": "gw-1" }] },
        });
        let listing = many(Kind::Endpoint, &[endpoint]);
        for text in ["vpce-1", "web", "alice", "available", "10.0.0.100 at gw-1"] {
            assert!(listing.contains(text), "{listing}");
        }
        let listener = json!({ "protocol": "tcp", "port": 443, "target_groups":
            [{ "target_group": "blue", "weight": 9 }, { "target_group": "green", "weight": 1 }] });
        assert_eq!(cell(&listener), "tcp:443 → blue ×9 + green");
        assert_eq!(cell(&json!({ "address": "fd00::1", "port": 80 })), "[fd00::1]:80");
    }

    #[test]
    fn targets_that_leave_are_listed_beside_those_that_are_declared() {
        let group = json!({
            "spec": { "targets": [{ "address": "10.0.0.1", "port": 80, "weight": 2 }] },
            "status": { "targets": [
                { "address": "10.0.0.1", "port": 80, "health": "healthy", "by_gateway": { "gw-1": "healthy" } },
                { "address": "10.0.0.2", "port": 80, "health": "draining", "by_gateway": {} },
            ] },
        });
        let targets = targets_of(&group);
        assert_eq!(targets.len(), 2);
        assert_eq!((&targets[0]["weight"], &targets[0]["health"]), (&json!(2), &json!("healthy")));
        assert_eq!(targets[1]["health"], "draining");
        assert!(super::targets(&targets).contains("gw-1 healthy"));
    }

    #[test]
    fn everything_about_an_object_is_a_line_for_each_value() {
        let object = json!({ "id": "vpc-1", "created": 1000, "spec": { "prefixes": ["10.0.0.0/24", "10.1.0.0/24"] } });
        let text = one(&object);
        assert!(text.contains("spec.prefixes  10.0.0.0/24, 10.1.0.0/24\n"), "{text}");
        assert!(text.contains("created        1970-01-01T00:00:01Z\n"), "{text}");
    }

    #[test]
    fn what_a_gateway_holds_is_found_in_endpoints_and_pools() {
        let endpoint = json!({ "status": { "addresses": [{ "address": "10.0.0.1", "gateway": "gw-1" }] } });
        let pool = json!({ "status": { "holders": { "10.9.0.1": "gw-1", "10.9.0.2": "gw-2" } } });
        assert_eq!(held_by(&endpoint, "gw-1"), ["10.0.0.1"]);
        assert_eq!(held_by(&pool, "gw-1"), ["10.9.0.1"]);
        assert!(held_by(&endpoint, "gw-2").is_empty());
    }
}
