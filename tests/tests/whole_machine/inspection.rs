//! What an operator sees of a running gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use postern_dataplane::inspection::FlowReport;
use postern_forwarding::DropReason;
use postern_lab::{Topology, network};

use crate::bed::Bed;
use crate::binary::binary;

#[test]
fn the_metrics_page_has_every_drop_reason_and_agrees_with_the_counters() {
    const WORKERS: usize = 2;
    let start = Bed::start_with(Topology::builder().workers(WORKERS), |declaration| {
        declaration.gateway.metrics = Some("127.0.0.1:9464".into());
    });
    let Some(bed) = start else { return };
    bed.ask(0, |client| {
        for _ in 0..16 {
            client.ask_tcp(network::page(), 0).unwrap();
        }
    });
    let report = bed.expect_counters(&[]);
    let page = bed
        .network()
        .gateway
        .run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:9464").unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: gateway\r\n\r\n").unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).unwrap();
            page
        })
        .unwrap();
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let samples = parse(body);

    let sum = |name: &str| samples[name].iter().map(|(_, value)| value).sum::<u64>();
    assert_eq!(sum("postern_flows_new_total"), report.total.frames.flows_new);
    assert_eq!(sum("postern_frames_received_total"), report.total.frames.received);
    assert_eq!(sum("postern_frames_forwarded_total"), report.total.frames.forwarded);
    assert_eq!(sum("postern_generation"), 1);
    assert_eq!(sum("postern_endpoint_flows_new_total"), 16);
    assert_eq!(sum("postern_target_flows_new_total"), 16);
    let reasons: BTreeSet<_> =
        samples["postern_frames_dropped_total"].iter().map(|(labels, _)| labels["reason"].as_str()).collect();
    assert_eq!(reasons, DropReason::ALL.iter().map(|reason| reason.label()).collect());
    assert_eq!(samples["postern_frames_dropped_total"].len(), WORKERS * DropReason::COUNT);
    assert_eq!(sum("postern_frames_dropped_total"), 0);
}

type Samples = BTreeMap<String, Vec<(BTreeMap<String, String>, u64)>>;

/// Reads the text exposition format 0.0.4: each family has its type before its samples and stands in one piece.
fn parse(page: &str) -> Samples {
    let mut samples = Samples::new();
    let mut family = String::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            assert!(!samples.contains_key(name), "{name} stands in two places");
            name.clone_into(&mut family);
            samples.insert(family.clone(), Vec::new());
        } else if !line.starts_with('#') {
            let (name, rest) = line.split_once('{').unwrap_or_else(|| panic!("no labels: {line}"));
            assert_eq!(name, family, "a sample outside its family: {line}");
            let (labels, value) = rest.split_once("} ").unwrap_or_else(|| panic!("no value: {line}"));
            let labels = labels.split("\",").map(|label| {
                let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
                (name.to_owned(), value.trim_end_matches('"').to_owned())
            });
            let sample = (labels.collect(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")));
            let same = samples.get_mut(&family).unwrap();
            assert!(same.iter().all(|(labels, _)| *labels != sample.0), "{line} stands twice");
            same.push(sample);
        }
    }
    samples
}

#[test]
fn flows_are_listed_with_both_tuples_and_what_they_carried() {
    let Some(bed) = Bed::start(Topology::builder().workers(2)) else { return };
    let mut streams = Vec::new();
    for consumer in 0..2 {
        for port in 0..20 {
            streams.push(bed.ask(consumer, |client| client.connect(network::page(), 41_000 + port).unwrap()));
        }
    }
    let reply = bed.ask(0, |client| client.ask_udp(network::echo(), 42_000, 1, 100).unwrap());

    let flows: Vec<FlowReport> = serde_json::from_value(bed.gateway().flows().unwrap()).unwrap();
    assert_eq!(flows.len(), 41);
    assert_eq!(flows.iter().map(|flow| (flow.vpc.as_str(), flow.client)).collect::<BTreeSet<_>>().len(), 41);
    assert_eq!(flows.iter().map(|flow| flow.worker).collect::<BTreeSet<_>>(), BTreeSet::from([0, 1]));
    let udp = flows.iter().find(|flow| flow.protocol == "udp").unwrap();
    assert_eq!(udp.snat, reply.answer.seen);
    assert_eq!(udp.client, SocketAddr::from((network::CLIENT, 42_000)));
    assert_eq!((udp.service, udp.state.as_str()), (network::echo().into(), "udp"));
    assert_eq!((udp.packets_forward, udp.bytes_forward, udp.packets_reverse), (1, 128, 1));
    for flow in flows.iter().filter(|flow| flow.protocol == "tcp") {
        assert_eq!((flow.state.as_str(), flow.service), ("established", network::page().into()));
        assert!(flow.packets_forward >= 2 && flow.packets_reverse >= 1);
        let is_one = |addresses: &[Ipv4Addr], address: IpAddr| addresses.iter().any(|one| address == *one);
        assert!(is_one(&network::TARGETS, flow.target.ip()) && is_one(&network::SNAT, flow.snat.ip()));
        let endpoint = if flow.vpc == "vpc-a" { 0 } else { 1 };
        assert_eq!(flow.endpoint, postern_lab::declaration::ENDPOINTS[endpoint]);
    }

    // As a table, and filtered.
    let list = |arguments: &[&str]| {
        let socket = bed.gateway().directory().join("control.sock");
        let output = Command::new(binary()).arg("flows").args(arguments).arg("--socket").arg(socket).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(list(&[]).contains("41 flows"));
    assert!(list(&["--endpoint", postern_lab::declaration::ENDPOINTS[1]]).contains("20 flows"));
    assert!(list(&["--limit", "7"]).contains("7 flows"));
    drop(streams);
    bed.expect_counters(&[("endpoints.client_resets", 0..=u64::MAX)]);
}
