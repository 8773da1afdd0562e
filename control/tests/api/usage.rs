//! What is billed, as those who pay and those who are paid see it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use postern_control::metering::EndpointUsage;
use serde_json::{Value, json};

use crate::bed::{Bed, NOW};
use crate::client::LONG;

const HOUR: u64 = 3_600_000;

fn told(endpoint: &str, bytes: u64) -> EndpointUsage {
    EndpointUsage { endpoint: endpoint.to_owned(), connections: 1, packets: 10, bytes }
}

/// A service with an endpoint that is available.
fn available(bed: &Bed) -> (String, String) {
    let service = bed.provide();
    let endpoint = bed.connect("e", &service);
    let path = format!("/v1/services/bank-api/connections/{endpoint}/accept");
    bed.provider.send("POST", &path, &[], None).expect(200);
    bed.server().catalog().endpoint_applied(&endpoint).unwrap();
    (service, endpoint)
}

#[test]
fn bytes_and_hours_are_shown_to_the_consumer_and_bytes_to_the_provider() {
    let bed = Bed::start();
    let (service, endpoint) = available(&bed);
    let metering = bed.server().metering();
    metering.count_hours().unwrap();
    metering.count_hours().unwrap();
    metering.record("gw-1", "a", &[told(&endpoint, 2_500_000_000), told("vpce-00000000000000000", 7)]).unwrap();
    let usage = bed.consumer.get("/v1/usage").expect(200);
    assert_eq!(usage["month"], "2026-11");
    let expected = json!([{
        "month": "2026-11", "consumer": "shop", "endpoint": endpoint, "service": service, "endpoint_hours": 1,
        "hours_by_zone": { "any": 1 }, "connections": 1, "packets": 10, "bytes": 2_500_000_000_u64, "gigabytes": 2.5,
    }]);
    assert_eq!(usage["usage"], expected);
    let provider = bed.provider.get("/v1/usage?by=service").expect(200)["usage"][0].clone();
    assert_eq!((&provider["bytes"], &provider["endpoint_hours"]), (&json!(2_500_000_000_u64), &Value::Null));
    assert_eq!(provider["hours_by_zone"], json!({}));
    assert_eq!(bed.stranger.get("/v1/usage").expect(200)["usage"], json!([]));
    assert_eq!(bed.operator.get("/v1/usage?by=consumer").expect(200)["usage"].as_array().unwrap().len(), 1);
    assert_eq!(bed.consumer.get("/v1/usage?month=2026-10").expect(200)["usage"], json!([]));
    for answer in [
        bed.consumer.get("/v1/usage?format=csv"),
        bed.consumer.send("GET", "/v1/usage", &[("Accept", "text/csv")], None),
    ] {
        assert_eq!(answer.header("content-type"), Some("text/csv; charset=utf-8"));
        let lines: Vec<_> = answer.body.lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[1], format!("2026-11,shop,{endpoint},{service},1,any:1,1,10,2500000000,2.5"));
    }
}

#[test]
fn hours_are_counted_as_endpoints_come_and_go_and_over_the_end_of_a_month() {
    let bed = Bed::start();
    let (_, endpoint) = available(&bed);
    let hours = |month: &str| {
        let usage = bed.consumer.get(&format!("/v1/usage?month={month}")).expect(200);
        usage["usage"][0]["endpoint_hours"].as_u64().unwrap_or(0)
    };
    // Nobody asks for it: the process sees the change.
    let start = Instant::now();
    while hours("2026-11") == 0 {
        assert!(start.elapsed() < LONG, "the first hour is never counted");
        std::thread::sleep(Duration::from_millis(20));
    }
    let metering = bed.server().metering();
    // 2026-12-01, 02:00.
    let december = NOW + (3 + 8 * 24 + 2) * HOUR;
    bed.time.store(december, Ordering::SeqCst);
    metering.count_hours().unwrap();
    assert_eq!((hours("2026-11"), hours("2026-12")), (3 + 8 * 24, 3));
    bed.consumer.delete("/v1/endpoints/e").expect(200);
    metering.count_hours().unwrap();
    bed.time.store(december + 5 * HOUR, Ordering::SeqCst);
    metering.count_hours().unwrap();
    assert_eq!(hours("2026-12"), 3);
    // What it had still under way counts, also when it is gone.
    metering.record("gw-1", "a", &[told(&endpoint, 10)]).unwrap();
    assert_eq!(bed.consumer.get("/v1/usage?month=2026-12").expect(200)["usage"][0]["bytes"], 10);
}
