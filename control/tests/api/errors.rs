//! Every class of error is JSON with code, message, field and users, and changes nothing.

use serde_json::{Value, json};

use crate::bed::Bed;
use crate::client::Client;

#[test]
fn whatever_is_wrong_is_said_as_json_with_the_field() {
    let bed = Bed::start();
    let service = bed.provide();
    let endpoint = bed.connect("e", &service);
    let provider = &bed.provider;
    let json = |text: &str| Some(text.to_owned());
    // Method, path, headers, body; status, code, field.
    type Case<'c> = (&'c str, &'c str, &'c [(&'c str, &'c str)], Option<String>, u16, &'c str, Option<&'c str>);
    let cases: Vec<Case<'_>> = vec![
        ("GET", "/", &[], None, 404, "NotFound", None),
        ("GET", "/v1/nothing", &[], None, 404, "NotFound", None),
        ("GET", "/v1/vpcs/a/b/c", &[], None, 404, "NotFound", None),
        ("GET", "/v1/vpcs/%ff", &[], None, 400, "Invalid", Some("path")),
        ("PATCH", "/v1/vpcs", &[], None, 405, "MethodNotAllowed", None),
        ("DELETE", "/v1/vpcs", &[], None, 405, "MethodNotAllowed", None),
        ("GET", "/v1/vpcs/none", &[], None, 404, "NotFound", None),
        ("GET", "/v1/vpcs?colour=red", &[], None, 400, "Invalid", Some("colour")),
        ("GET", "/v1/vpcs?limit=0", &[], None, 400, "Invalid", Some("limit")),
        ("GET", "/v1/vpcs?limit=1001", &[], None, 400, "Invalid", Some("limit")),
        ("GET", "/v1/vpcs?limit=ten", &[], None, 400, "Invalid", Some("limit")),
        ("GET", "/v1/vpcs?name=a&name=b", &[], None, 400, "Invalid", Some("name")),
        ("GET", "/v1/endpoints?state=asleep", &[], None, 400, "Invalid", Some("state")),
        ("GET", "/v1/whoami?x=1", &[], None, 400, "Invalid", Some("x")),
        ("GET", "/v1/events?after=-1", &[], None, 400, "Invalid", Some("after")),
        ("GET", "/v1/events?wait_seconds=61", &[], None, 400, "Invalid", Some("wait_seconds")),
        ("GET", "/v1/usage?month=2026-13", &[], None, 400, "Invalid", Some("month")),
        ("GET", "/v1/usage?by=colour", &[], None, 400, "Invalid", Some("by")),
        ("GET", "/v1/usage?format=xml", &[], None, 400, "Invalid", Some("format")),
        ("POST", "/v1/vpcs", &[], json("{"), 400, "Invalid", None),
        ("POST", "/v1/vpcs", &[], json(""), 400, "Invalid", None),
        ("POST", "/v1/vpcs", &[], json("[]"), 400, "Invalid", None),
        ("POST", "/v1/vpcs", &[], json("{} {}"), 400, "Invalid", None),
        ("POST", "/v1/vpcs", &[], json(r#"{"nam": "x"}"#), 400, "Invalid", Some("nam")),
        ("POST", "/v1/vpcs", &[], json(r#"{"name": 7}"#), 400, "Invalid", Some("name")),
        ("POST", "/v1/vpcs", &[], json(r#"{"name": "a", "name": "b"}"#), 400, "Invalid", None),
        ("POST", "/v1/vpcs", &[], json(r#"{"spec": {"prefix": []}}"#), 400, "Invalid", Some("spec.prefix")),
        ("POST", "/v1/vpcs", &[], json(r#"{"spec": {"prefixes": [1]}}"#), 400, "Invalid", Some("spec.prefixes[0]")),
        (
            "POST",
            "/v1/vpcs",
            &[("Content-Type", "text/plain")],
            json("{}"),
            415,
            "UnsupportedMediaType",
            Some("Content-Type"),
        ),
        ("POST", "/v1/vpcs", &[("Idempotency-Key", "")], json("{}"), 400, "Invalid", Some("Idempotency-Key")),
        ("PUT", "/v1/vpcs/bank-net", &[], json("{}"), 400, "Invalid", None),
        ("PUT", "/v1/vpcs/bank-net", &[("If-Match", "new")], json(r#"{"spec":{}}"#), 400, "Invalid", Some("If-Match")),
        ("DELETE", "/v1/vpcs/bank-net", &[("If-Match", "\"99\"")], None, 409, "Conflict", None),
        ("DELETE", "/v1/vpcs/bank-net", &[], None, 409, "InUse", None),
        (
            "POST",
            "/v1/vpcs",
            &[],
            json(r#"{"name": "bank-net", "spec": {"prefixes": ["10.9.0.0/16"]}}"#),
            409,
            "AlreadyExists",
            Some("name"),
        ),
        ("POST", "/v1/gateways", &[], json(r#"{"name": "mine"}"#), 403, "Forbidden", None),
        (
            "POST",
            "/v1/apply",
            &[],
            json(r#"{"manifests": [{"kind": "river", "name": "a"}]}"#),
            400,
            "Invalid",
            Some("manifests[0].kind"),
        ),
        (
            "POST",
            "/v1/apply",
            &[],
            json(r#"{"manifests": [{"kind": "vpc", "name": "a", "spec": {"colour": 1}}]}"#),
            400,
            "Invalid",
            Some("manifests[0]"),
        ),
        (
            "POST",
            "/v1/target-groups/bank-web/targets",
            &[],
            json(r#"{"targets": [{"address": "10.1.0.11", "port": 65536}]}"#),
            400,
            "Invalid",
            Some("targets[0].port"),
        ),
        ("POST", "/v1/services/bank-api/connections/vpce-0/accept", &[], None, 404, "NotFound", None),
        (
            "POST",
            "/v1/services/bank-api/connections/vpce-0/reject",
            &[],
            json(r#"{"why": "x"}"#),
            400,
            "Invalid",
            Some("why"),
        ),
    ];
    let before = bed.operator.get("/v1/vpcs").expect(200);
    for (method, path, headers, body, status, code, field) in cases {
        let answer = provider.send(method, path, headers, body.as_deref());
        let (got_status, got_code, got_field) = answer.error();
        let what = format!("{method} {path} {body:?}: {}", answer.body);
        assert_eq!((got_status, got_code.as_str()), (status, code), "{what}");
        if field.is_some() {
            assert_eq!(got_field.as_deref(), field, "{what}");
        }
        match code {
            "MethodNotAllowed" => {
                assert!(answer.header("allow").is_some_and(|allow| allow.contains("POST")), "{answer:?}");
            }
            "InUse" => assert!(!answer.json()["users"].as_array().unwrap().is_empty(), "{what}"),
            _ => {}
        }
    }
    assert_eq!(bed.operator.get("/v1/vpcs").expect(200), before);
    assert_eq!(bed.consumer.get(&format!("/v1/endpoints/{endpoint}")).status, 200);
}

#[test]
fn malformed_json_is_refused_with_line_and_column() {
    let bed = Bed::start();
    let answer = bed.provider.send("POST", "/v1/vpcs", &[], Some("{\n  \"name\": \"a\",\n  \"spec\": {,}\n}"));
    assert_eq!(answer.error().0, 400);
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("line 3 column"), "{message}");
}

#[test]
fn an_oversized_body_is_refused_whether_its_length_is_said_or_not_and_the_process_goes_on() {
    let bed = Bed::start();
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(1 << 20));
    let answer = bed.provider.send("POST", "/v1/vpcs", &[], Some(&large));
    assert_eq!((answer.error().0, answer.error().1.as_str()), (413, "TooLarge"));
    // In chunks, without a length.
    let request = format!(
        "POST /v1/vpcs HTTP/1.1\r\nHost: control\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        bed.provider.token.as_ref().unwrap()
    );
    let mut stream = bed.provider.connect();
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for _ in 0..18 {
        if std::io::Write::write_all(&mut stream, chunk.as_bytes()).is_err() {
            break;
        }
    }
    let answer = crate::client::read_answer(&mut stream);
    assert_eq!((answer.error().0, answer.error().1.as_str()), (413, "TooLarge"));
    // An apply may be larger than that.
    let manifests = format!("{{\"manifests\": []{}}}", " ".repeat(2 << 20));
    bed.provider.send("POST", "/v1/apply", &[], Some(&manifests)).expect(200);
    bed.provider.get("/v1/whoami").expect(200);
}

#[test]
fn credentials_that_are_no_bearer_token_are_refused() {
    let bed = Bed::start();
    let nobody = bed.nobody();
    for value in ["Basic YTpi", "Bearer", "Bearer ", "Bearer x y", "\u{e9}"] {
        let answer = nobody.send("GET", "/v1/whoami", &[("Authorization", value)], None);
        assert_eq!(answer.error().1, "Unauthenticated", "{value}");
    }
    let lower = format!("bearer {}", bed.operator.token.as_ref().unwrap());
    nobody.send("GET", "/v1/whoami", &[("Authorization", &lower)], None).expect(200);
}

#[test]
fn what_is_no_http_is_cut_and_the_process_goes_on() {
    let bed = Bed::start();
    for bytes in
        [&b"\x16\x03\x01\x00\xa5\x01\x00"[..], b"GET /", b"\0\0\0\0\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n"]
    {
        let mut stream = bed.nobody().connect();
        std::io::Write::write_all(&mut stream, bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let huge = Client { token: Some("x".repeat(128 * 1024)), ..bed.nobody() };
    let answer = huge.get("/v1/whoami");
    assert_eq!(answer.status, 431);
    bed.provider.get("/v1/whoami").expect(200);
}

#[test]
fn metrics_count_requests_by_route_and_say_nothing_of_tenants() {
    let bed = Bed::start();
    let service = bed.provide();
    bed.nobody().get(&format!("/v1/services/{service}"));
    bed.provider.get(&format!("/v1/services/{service}")).expect(200);
    let page = bed.nobody().get("/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let line = "postern_control_requests_total{route=\"/v1/services/{reference}\",method=\"GET\",status=\"200\"} 1";
    assert!(page.body.contains(line), "{}", page.body);
    assert!(page.body.contains("postern_control_failed_authentications_total 1\n"), "{}", page.body);
    assert!(page.body.contains("postern_control_objects{kind=\"service\"} 1\n"), "{}", page.body);
    assert!(page.body.contains("postern_control_gateways_connected 0\n"), "{}", page.body);
    for word in ["bank", "shop", "gw1", &service, "10."] {
        assert!(!page.body.contains(word), "{word}: {}", page.body);
    }
    assert_eq!(bed.nobody().get("/healthz").expect(200), json!({ "ready": true }));
    let document: Value = bed.nobody().get("/v1/openapi.json").expect(200);
    assert_eq!(document["openapi"], "3.1.0");
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/control.md")).unwrap();
    for line in page.body.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').unwrap();
        assert!(manual.contains(&format!("| `{name}` | {help} |")), "docs/control.md: {name}");
    }
}
