use super::*;
use crate::store::MemoryStore;

/// 2026-11-30, 23:00 UTC.
const NOVEMBER_ENDS: u64 = 1_796_079_600_000;
const HOUR: u64 = 3_600_000;

fn parties(_: &str) -> Option<Parties> {
    Some(Parties { consumer: "shop".into(), provider: "bank".into(), service: "vpce-svc-1".into() })
}

fn told(endpoint: &str, bytes: u64) -> EndpointUsage {
    EndpointUsage { endpoint: endpoint.into(), connections: bytes / 100, packets: bytes / 10, bytes }
}

fn month(text: &str) -> Month {
    text.parse().unwrap()
}

fn bytes(ledger: &Ledger, of: &str) -> u64 {
    ledger.usage(month(of)).unwrap().iter().map(|(_, usage)| usage.bytes).sum()
}

fn hours(ledger: &Ledger, of: &str, zone: &str) -> u64 {
    ledger.usage(month(of)).unwrap().iter().filter_map(|(_, usage)| usage.hours.get(zone)).sum()
}

fn available(zones: &[&str]) -> Option<(Parties, BTreeSet<String>)> {
    Some((parties("").unwrap(), zones.iter().map(|zone| (*zone).to_owned()).collect()))
}

#[test]
fn bytes_count_once_over_repeats_reconnects_restarts_of_control_and_new_lives_of_the_gateway() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let ledger = Ledger::open(store.clone()).unwrap();
    let record = |ledger: &Ledger, gateway: &str, boot: &str, bytes| {
        ledger.record(NOVEMBER_ENDS, gateway, boot, &[told("vpce-1", bytes)], &parties).unwrap();
    };
    record(&ledger, "gw-1", "a", 1000);
    record(&ledger, "gw-1", "a", 1000);
    record(&ledger, "gw-1", "a", 1500);
    assert_eq!(bytes(&ledger, "2026-11"), 1500);
    // Control restarts, and the gateway says everything again.
    let ledger = Ledger::open(store).unwrap();
    record(&ledger, "gw-1", "a", 1500);
    record(&ledger, "gw-1", "a", 1600);
    assert_eq!(bytes(&ledger, "2026-11"), 1600);
    // The gateway restarts: its counters begin at 0.
    record(&ledger, "gw-1", "b", 100);
    record(&ledger, "gw-1", "b", 250);
    assert_eq!(bytes(&ledger, "2026-11"), 1850);
    // A message of its earlier life was late; nothing of it is new.
    record(&ledger, "gw-1", "a", 1600);
    assert_eq!(bytes(&ledger, "2026-11"), 1850);
    record(&ledger, "gw-1", "b", 260);
    assert_eq!(bytes(&ledger, "2026-11"), 1860);
    // Another gateway counts for itself.
    record(&ledger, "gw-2", "a", 40);
    assert_eq!(bytes(&ledger, "2026-11"), 1900);
    let [(endpoint, usage)] = &ledger.usage(month("2026-11")).unwrap()[..] else { panic!("one endpoint") };
    assert_eq!((endpoint.as_str(), usage.connections, usage.packets), ("vpce-1", 16 + 2, 160 + 26 + 4));
}

#[test]
fn a_counter_that_goes_backwards_counts_nothing_until_it_is_past_where_it_was() {
    let ledger = Ledger::open(Arc::new(MemoryStore::new())).unwrap();
    for (bytes_told, counted) in [(1000, 1000), (400, 1000), (900, 1000), (1001, 1001), (0, 1001)] {
        ledger.record(NOVEMBER_ENDS, "gw-1", "a", &[told("vpce-1", bytes_told)], &parties).unwrap();
        assert_eq!(bytes(&ledger, "2026-11"), counted, "after {bytes_told}");
    }
    ledger.record(NOVEMBER_ENDS, "gw-1", "a", &[told("vpce-1", u64::MAX)], &parties).unwrap();
    ledger.record(NOVEMBER_ENDS, "gw-1", "b", &[told("vpce-1", u64::MAX)], &parties).unwrap();
    assert_eq!(bytes(&ledger, "2026-11"), u64::MAX);
}

#[test]
fn the_same_endpoint_twice_in_a_message_counts_once() {
    let ledger = Ledger::open(Arc::new(MemoryStore::new())).unwrap();
    let message = [told("vpce-1", 100), told("vpce-1", 100), told("vpce-1", 150)];
    ledger.record(NOVEMBER_ENDS, "gw-1", "a", &message, &parties).unwrap();
    assert_eq!(bytes(&ledger, "2026-11"), 150);
}

#[test]
fn what_flows_after_the_end_of_a_month_counts_in_the_next() {
    let ledger = Ledger::open(Arc::new(MemoryStore::new())).unwrap();
    ledger.record(NOVEMBER_ENDS, "gw-1", "a", &[told("vpce-1", 1000)], &parties).unwrap();
    ledger.record(NOVEMBER_ENDS + HOUR, "gw-1", "a", &[told("vpce-1", 1700)], &parties).unwrap();
    assert_eq!((bytes(&ledger, "2026-11"), bytes(&ledger, "2026-12")), (1000, 700));
}

#[test]
fn endpoints_that_nobody_knows_count_nothing_and_those_that_are_forgotten_still_do() {
    let ledger = Ledger::open(Arc::new(MemoryStore::new())).unwrap();
    let nobody = |_: &str| None;
    ledger.record(NOVEMBER_ENDS, "gw-1", "a", &[told("vpce-1", 1000)], &nobody).unwrap();
    assert_eq!(bytes(&ledger, "2026-11"), 0);
    ledger.record(NOVEMBER_ENDS, "gw-1", "a", &[told("vpce-2", 1000)], &parties).unwrap();
    ledger.record(NOVEMBER_ENDS, "gw-1", "a", &[told("vpce-2", 1200)], &nobody).unwrap();
    assert_eq!(bytes(&ledger, "2026-11"), 1200);
    let [(_, usage)] = &ledger.usage(month("2026-11")).unwrap()[..] else { panic!("one endpoint") };
    assert_eq!(usage.parties.consumer, "shop");
}

#[test]
fn counters_are_forgotten_only_when_they_are_old_and_their_endpoint_is_gone() {
    let ledger = Ledger::open(Arc::new(MemoryStore::new())).unwrap();
    let counters = |ledger: &Ledger| ledger.range::<Counter>("metering/counter/").unwrap().len();
    ledger.record(NOVEMBER_ENDS, "gw-1", "a", &[told("vpce-1", 10), told("vpce-2", 10)], &parties).unwrap();
    ledger.forget_counters(NOVEMBER_ENDS, &|_| false).unwrap();
    assert_eq!(counters(&ledger), 2);
    ledger.forget_counters(NOVEMBER_ENDS + 1, &|endpoint| endpoint == "vpce-1").unwrap();
    assert_eq!(counters(&ledger), 1);
    assert_eq!(bytes(&ledger, "2026-11"), 20);
}

#[test]
fn a_name_of_a_life_that_is_empty_or_too_long_is_refused() {
    let ledger = Ledger::open(Arc::new(MemoryStore::new())).unwrap();
    for boot_id in [String::new(), "x".repeat(129)] {
        let refused = ledger.record(0, "gw-1", &boot_id, &[told("vpce-1", 1)], &parties).unwrap_err().to_string();
        assert!(refused.contains("gw-1") && refused.contains(&boot_id.len().to_string()), "{refused}");
    }
}

#[test]
fn each_hour_that_begins_while_an_endpoint_is_available_counts_once_in_each_zone() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let ledger = Ledger::open(store.clone()).unwrap();
    let start = NOVEMBER_ENDS - 20 * HOUR;
    let observe = |ledger: &Ledger, time, zones: &[&str]| {
        let what = if zones.is_empty() { None } else { available(zones) };
        ledger.observe(time, &[("vpce-1", what)]).unwrap();
        (hours(ledger, "2026-11", "a"), hours(ledger, "2026-11", "b"))
    };
    assert_eq!(observe(&ledger, start + 60_000, &["a", "b"]), (1, 1));
    assert_eq!(observe(&ledger, start + 120_000, &["a", "b"]), (1, 1));
    assert_eq!(observe(&ledger, start + HOUR, &["a", "b"]), (2, 2));
    // It leaves and comes back within the hour: that hour is counted already.
    assert_eq!(observe(&ledger, start + HOUR + 1, &[]), (2, 2));
    assert_eq!(observe(&ledger, start + HOUR + 2, &["a"]), (2, 2));
    assert_eq!(observe(&ledger, start + HOUR + 3, &[]), (2, 2));
    // While it is away nothing counts.
    assert_eq!(observe(&ledger, start + 5 * HOUR, &["a"]), (3, 2));
    // Control restarts three hours later, and the endpoint was available all the time.
    let ledger = Ledger::open(store).unwrap();
    assert_eq!(ledger.present(), ["vpce-1".to_owned()].into());
    assert_eq!(observe(&ledger, start + 8 * HOUR + 1, &["a"]), (6, 2));
    // The clock goes back: nothing counts again.
    assert_eq!(observe(&ledger, start + 7 * HOUR, &["a"]), (6, 2));
    assert_eq!(observe(&ledger, start + 8 * HOUR + 2, &["a"]), (6, 2));
}

#[test]
fn hours_over_the_end_of_a_month_count_in_the_month_in_which_they_began() {
    let ledger = Ledger::open(Arc::new(MemoryStore::new())).unwrap();
    ledger.observe(NOVEMBER_ENDS, &[("vpce-1", available(&["a"]))]).unwrap();
    ledger.observe(NOVEMBER_ENDS + 3 * HOUR, &[("vpce-1", available(&["a"]))]).unwrap();
    assert_eq!((hours(&ledger, "2026-11", "a"), hours(&ledger, "2026-12", "a")), (1, 3));
}

#[test]
fn an_endpoint_that_is_gone_leaves_no_presence_behind() {
    let ledger = Ledger::open(Arc::new(MemoryStore::new())).unwrap();
    ledger.observe(NOVEMBER_ENDS, &[("vpce-1", available(&["a"]))]).unwrap();
    ledger.observe(NOVEMBER_ENDS + 1, &[("vpce-1", None)]).unwrap();
    ledger.observe(NOVEMBER_ENDS + HOUR, &[("vpce-1", None)]).unwrap();
    assert_eq!(ledger.range::<Presence>("metering/presence/").unwrap(), []);
    assert_eq!(hours(&ledger, "2026-11", "a"), 1);
}

#[test]
fn a_ledger_with_what_metering_did_not_write_is_refused_with_the_key() {
    let store = Arc::new(MemoryStore::new());
    let changes = vec![("metering/presence/vpce-1".to_owned(), Some(b"{".to_vec()))];
    store.commit(&Transaction { conditions: vec![], changes }).unwrap();
    let refused = Ledger::open(store).unwrap_err().to_string();
    assert!(refused.contains("metering/presence/vpce-1"), "{refused}");
}
