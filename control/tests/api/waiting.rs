//! Answers that wait until an endpoint has left a state.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::bed::Bed;

#[test]
fn who_waits_for_an_endpoint_to_leave_a_state_is_answered_when_it_does() {
    let bed = Bed::start();
    let service = bed.provide();
    let (endpoint, other) = (bed.connect("web", &service), bed.connect("other", &service));
    let asked = format!("/v1/endpoints/{endpoint}?while=pendingAcceptance&wait_seconds=60");
    let seen = format!("/v1/services/bank-api/connections?endpoint={endpoint}&while=pendingAcceptance&wait_seconds=60");
    std::thread::scope(|scope| {
        let consumer = scope.spawn(|| bed.consumer.get(&asked).expect(200));
        let provider = scope.spawn(|| bed.provider.get(&seen).expect(200));
        let accept = |endpoint: &str| {
            let path = format!("/v1/services/bank-api/connections/{endpoint}/accept");
            bed.provider.post(&path, json!({})).expect(200);
        };
        accept(&other);
        std::thread::sleep(Duration::from_millis(200));
        assert!(!consumer.is_finished() && !provider.is_finished(), "another endpoint's change ends the wait");
        let begin = Instant::now();
        accept(&endpoint);
        assert_eq!(consumer.join().unwrap()["status"]["state"], "pending");
        let connections = provider.join().unwrap();
        assert_eq!(connections["connections"].as_array().unwrap().len(), 1, "{connections}");
        assert_eq!(connections["connections"][0]["state"], "pending");
        assert!(begin.elapsed() < Duration::from_secs(30), "the wait went on to its end");
    });
}

#[test]
fn a_wait_ends_at_its_time_with_the_state_that_there_is() {
    let bed = Bed::start();
    let service = bed.provide();
    let endpoint = bed.connect("web", &service);
    let path = |query: &str| format!("/v1/endpoints/{endpoint}?{query}");
    for (query, least) in [("while=pendingAcceptance&wait_seconds=1", 1), ("while=pendingAcceptance", 0)] {
        let begin = Instant::now();
        assert_eq!(bed.consumer.get(&path(query)).expect(200)["status"]["state"], "pendingAcceptance");
        assert!(begin.elapsed() >= Duration::from_secs(least));
    }
    // A state that it does not have is no reason to wait.
    let answer = bed.consumer.get(&path("while=available&wait_seconds=60")).expect(200);
    assert_eq!(answer["status"]["state"], "pendingAcceptance");
}

#[test]
fn a_wait_that_cannot_be_is_refused() {
    let bed = Bed::start();
    let service = bed.provide();
    let endpoint = bed.connect("web", &service);
    for (path, field) in [
        (format!("/v1/endpoints/{endpoint}?while=tired&wait_seconds=1"), "while"),
        (format!("/v1/endpoints/{endpoint}?while=pending&wait_seconds=61"), "wait_seconds"),
        (format!("/v1/endpoints/{endpoint}?wait_seconds=1"), "wait_seconds"),
        ("/v1/services/bank-api/connections?while=pending&wait_seconds=1".to_owned(), "while"),
        ("/v1/vpcs/bank-net?while=pending&wait_seconds=1".to_owned(), "while"),
    ] {
        let refused = bed.operator.get(&path).error();
        let operators = (400, "Invalid".to_owned(), Some(field.to_owned()));
        assert!(refused == operators || bed.provider.get(&path).error() == operators, "{path}: {refused:?}");
    }
    // Who may not see the endpoint waits for nothing.
    let answer = bed.stranger.get(&format!("/v1/endpoints/{endpoint}?while=pendingAcceptance&wait_seconds=60"));
    assert_eq!(answer.error().0, 404);
}
