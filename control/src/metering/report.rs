//! Usage as those who pay and those who are paid may see it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::calendar::Month;
use super::ledger::Usage;
use crate::catalog::Caller;

/// What usage is added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Owner of the endpoint.
    Consumer,
    /// Endpoint.
    Endpoint,
    /// Service.
    Service,
}

impl FromStr for By {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "consumer" => Ok(Self::Consumer),
            "endpoint" => Ok(Self::Endpoint),
            "service" => Ok(Self::Service),
            _ => Err(()),
        }
    }
}

/// Usage of a month by a consumer, an endpoint or a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageRow {
    /// The month, as `2026-11`, of UTC.
    pub month: String,
    /// Name of the consumer, unless there are several.
    pub consumer: Option<String>,
    /// Id of the endpoint, unless there are several.
    pub endpoint: Option<String>,
    /// Id of the service, unless there are several.
    pub service: Option<String>,
    /// Hours that began while an endpoint was available, in all zones; only for its consumer and operators.
    pub endpoint_hours: Option<u64>,
    /// The same by zone; `any`: addresses without a zone.
    pub hours_by_zone: BTreeMap<String, u64>,
    /// Connections.
    pub connections: u64,
    /// Packets of both directions.
    pub packets: u64,
    /// Bytes of both directions.
    pub bytes: u64,
    /// The same in gigabytes of 10⁹ bytes.
    pub gigabytes: f64,
}

/// Adds up what a caller may see: operators everything; others what their endpoints used, and what others used of their
/// services, of which they see no hours.
pub(super) fn rows(caller: &Caller, month: Month, by: By, usage: &[(String, Usage)]) -> Vec<UsageRow> {
    let mut rows: BTreeMap<&str, UsageRow> = BTreeMap::new();
    for (endpoint, usage) in usage {
        let parties = &usage.parties;
        let pays = caller.is_operator() || parties.consumer == caller.principal;
        if !pays && parties.provider != caller.principal {
            continue;
        }
        let key = match by {
            By::Consumer => &parties.consumer,
            By::Endpoint => endpoint,
            By::Service => &parties.service,
        };
        let row = rows.entry(key).or_insert_with(|| UsageRow {
            month: month.to_string(),
            consumer: Some(parties.consumer.clone()),
            endpoint: Some(endpoint.clone()),
            service: Some(parties.service.clone()),
            ..UsageRow::default()
        });
        let only = |one: &mut Option<String>, other: &String| {
            if one.as_ref() != Some(other) {
                *one = None;
            }
        };
        only(&mut row.consumer, &parties.consumer);
        only(&mut row.endpoint, endpoint);
        only(&mut row.service, &parties.service);
        if pays {
            for (zone, hours) in &usage.hours {
                *row.hours_by_zone.entry(zone.clone()).or_default() += hours;
            }
            row.endpoint_hours = Some(row.endpoint_hours.unwrap_or(0) + usage.hours.values().sum::<u64>());
        }
        row.connections = row.connections.saturating_add(usage.connections);
        row.packets = row.packets.saturating_add(usage.packets);
        row.bytes = row.bytes.saturating_add(usage.bytes);
        row.gigabytes = row.bytes as f64 / 1e9;
    }
    rows.into_values().collect()
}

/// Rows as CSV (RFC 4180) with a header.
#[must_use]
pub fn csv(rows: &[UsageRow]) -> String {
    let mut page =
        "month,consumer,endpoint,service,endpoint_hours,hours_by_zone,connections,packets,bytes,gigabytes\r\n"
            .to_owned();
    for row in rows {
        let zones: Vec<_> = row.hours_by_zone.iter().map(|(zone, hours)| format!("{zone}:{hours}")).collect();
        let text = |text: &Option<String>| field(text.as_deref().unwrap_or_default());
        let _ = write!(
            page,
            "{},{},{},{},{},{},{},{},{},{}\r\n",
            row.month,
            text(&row.consumer),
            text(&row.endpoint),
            text(&row.service),
            row.endpoint_hours.map(|hours| hours.to_string()).unwrap_or_default(),
            field(&zones.join(";")),
            row.connections,
            row.packets,
            row.bytes,
            row.gigabytes,
        );
    }
    page
}

/// A field, quoted where it must be; what a spreadsheet would take for a formula is not one.
fn field(text: &str) -> String {
    let text = match text.chars().next() {
        Some('=' | '+' | '-' | '@') => format!("'{text}"),
        _ => text.to_owned(),
    };
    if text.contains([',', '"', '\r', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::model::Role;
    use crate::metering::Parties;

    fn usage(consumer: &str, provider: &str, bytes: u64) -> Usage {
        let parties =
            Parties { consumer: consumer.into(), provider: provider.into(), service: format!("svc-of-{provider}") };
        Usage { parties, hours: [("a".into(), 2), ("b".into(), 3)].into(), bytes, ..Usage::default() }
    }

    #[test]
    fn a_consumer_sees_its_own_a_provider_its_services_and_an_operator_everything() {
        let month = "2026-11".parse().unwrap();
        let all = [
            ("e1".to_owned(), usage("shop", "bank", 10)),
            ("e2".to_owned(), usage("farm", "bank", 20)),
            ("e3".to_owned(), usage("shop", "mill", 40)),
        ];
        let seen = |principal: &str, role, by| {
            let caller = Caller { principal: principal.into(), role };
            let rows = rows(&caller, month, by, &all);
            rows.iter().map(|row| (row.endpoint.clone(), row.endpoint_hours, row.bytes)).collect::<Vec<_>>()
        };
        let e = |name: &str| Some(name.to_owned());
        assert_eq!(seen("shop", Role::Tenant, By::Endpoint), [(e("e1"), Some(5), 10), (e("e3"), Some(5), 40)]);
        assert_eq!(seen("shop", Role::Tenant, By::Consumer), [(None, Some(10), 50)]);
        assert_eq!(seen("bank", Role::Tenant, By::Endpoint), [(e("e1"), None, 10), (e("e2"), None, 20)]);
        assert_eq!(seen("bank", Role::Tenant, By::Service), [(None, None, 30)]);
        assert_eq!(seen("nobody", Role::Tenant, By::Consumer), []);
        assert_eq!(seen("root", Role::Operator, By::Service), [(None, Some(10), 30), (e("e3"), Some(5), 40)]);
    }

    #[test]
    fn fields_of_csv_are_quoted_and_no_formulas() {
        assert_eq!(field("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(field("=1+1"), "'=1+1");
        assert_eq!(field("vpce-0"), "vpce-0");
        let row = UsageRow { month: "2026-11".into(), bytes: 1_500_000_000, gigabytes: 1.5, ..UsageRow::default() };
        assert!(csv(&[row]).ends_with("\r\n2026-11,,,,,,0,0,1500000000,1.5\r\n"));
    }
}
