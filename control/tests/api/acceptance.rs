//! A connection as its two sides live it.

use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::Bed;

fn kinds(answer: &Value) -> Vec<&str> {
    answer["events"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect()
}

#[test]
fn a_connection_is_asked_for_accepted_rejected_and_deleted_and_both_sides_are_told() {
    let bed = Bed::start();
    let service = bed.provide();
    let endpoint = bed.connect("e", &service);
    let state = || bed.consumer.get("/v1/endpoints/e").expect(200)["status"]["state"].as_str().unwrap().to_owned();
    assert_eq!(state(), "pendingAcceptance");
    let connections = bed.provider.get("/v1/services/bank-api/connections").expect(200);
    assert_eq!(connections["connections"][0]["endpoint"], json!(endpoint));
    assert_eq!(connections["connections"][0]["consumer"], "shop");
    let decide = |what: &str| format!("/v1/services/bank-api/connections/{endpoint}/{what}");
    let accepted = bed.provider.send("POST", &decide("accept"), &[], None).expect(200);
    assert_eq!((accepted["state"].as_str(), state().as_str()), (Some("pending"), "pending"));
    bed.server().catalog().endpoint_applied(&endpoint).unwrap();
    assert_eq!(state(), "available");
    bed.provider.post(&decide("reject"), json!({ "reason": "unpaid" })).expect(200);
    let shown = bed.consumer.get("/v1/endpoints/e").expect(200);
    assert_eq!(
        (shown["status"]["state"].as_str(), shown["status"]["reason"].as_str()),
        (Some("rejected"), Some("unpaid"))
    );
    bed.consumer.delete("/v1/endpoints/e").expect(200);
    let provider = bed.provider.get("/v1/events").expect(200);
    assert_eq!(kinds(&provider), ["Connect", "Accept", "Reject", "Delete"]);
    assert_eq!(provider["events"], bed.consumer.get("/v1/events").expect(200)["events"]);
    assert_eq!(bed.stranger.get("/v1/events").expect(200)["events"], json!([]));
    let after = provider["events"][1]["sequence"].as_u64().unwrap();
    let rest = bed.provider.get(&format!("/v1/events?after={after}&limit=1")).expect(200);
    assert_eq!((kinds(&rest), rest["next"].as_u64()), (vec!["Reject"], Some(after + 1)));
}

#[test]
fn who_waits_for_an_event_is_answered_when_it_comes() {
    let bed = Bed::start();
    let service = bed.provide();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bed.provider.get("/v1/events?wait_seconds=60").expect(200));
        // Whether it waits already or not: it is told.
        std::thread::sleep(Duration::from_millis(50));
        bed.connect("e", &service);
        assert_eq!(kinds(&waiting.join().unwrap()), ["Connect"]);
    });
    let nothing = bed.provider.get("/v1/events?after=1&wait_seconds=1").expect(200);
    assert_eq!((nothing["events"].clone(), nothing["next"].as_u64()), (json!([]), Some(1)));
}

#[test]
fn a_stream_of_events_gives_what_was_and_what_comes_and_goes_on_where_it_was_cut() {
    let bed = Bed::start();
    let service = bed.provide();
    bed.connect("e1", &service);
    let stream = |headers: &[(&str, &str)]| {
        let mut headers = headers.to_vec();
        headers.push(("Accept", "text/event-stream"));
        let mut stream = bed.provider.connect();
        stream.write_all(bed.provider.request("GET", "/v1/events", &headers, None).as_bytes()).unwrap();
        BufReader::new(stream)
    };
    let next = |lines: &mut BufReader<std::net::TcpStream>, prefix: &str| loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the stream ended before {prefix}");
        if let Some(rest) = line.trim_end().strip_prefix(prefix) {
            return rest.to_owned();
        }
    };
    let mut lines = stream(&[]);
    assert_eq!(next(&mut lines, "content-type: "), "text/event-stream");
    assert_eq!((next(&mut lines, "id: ").as_str(), next(&mut lines, "event: ").as_str()), ("1", "Connect"));
    bed.connect("e2", &service);
    assert_eq!(next(&mut lines, "id: "), "2");
    let data: Value = serde_json::from_str(&next(&mut lines, "data: ")).unwrap();
    assert_eq!((data["consumer"].as_str(), data["sequence"].as_u64()), (Some("shop"), Some(2)));
    drop(lines);
    let mut lines = stream(&[("Last-Event-ID", "1")]);
    assert_eq!(next(&mut lines, "id: "), "2");
}
