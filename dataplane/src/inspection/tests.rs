use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use postern_tables::declaration::Polling;
use tokio::sync::mpsc;

use super::client::{ClientError, ask};
use super::report::{NeighbourReport, StatusReport};
use super::server::{Inspector, Query, listen, serve, serve_metrics};
use super::*;
use crate::back_end::BackEnd;
use crate::link::Shared;
use crate::neighbours::NeighbourCounters;
use crate::polling::IdlePolicy;
use crate::supervisor::{WorkerPlan, Workers};
use crate::test_bed::*;

/// A gateway whose two workers run, with what only the control-side thread knows made up.
async fn inspected(name: &str) -> (Workers, Arc<Shared>, Vec<[Wire; 2]>, std::path::PathBuf, Arc<Inspector>) {
    let (shared, devices, wires) = bed(2);
    let plan = WorkerPlan {
        flows: 1024,
        ipv6_flows: 1024,
        cpus: Vec::new(),
        policy: IdlePolicy::new(Polling::Sleep),
        ownership: ownership(2),
        secret: [1, 2, 3, 4],
    };
    let workers = Workers::start(&shared, &plan, devices).unwrap();
    let (to, mut queries) = mpsc::channel(4);
    let inspector = Arc::new(Inspector::new("test".to_owned(), shared.clone(), to));
    tokio::spawn(async move {
        while let Some(query) = queries.recv().await {
            match query {
                Query::Status(to) => drop(to.send(StatusReport { gateway: "test".into(), ..Default::default() })),
                Query::Counters(to) => {
                    let neighbours = NeighbourCounters { conflicts: 3, ..Default::default() };
                    drop(to.send((neighbours, vec![BackEnd::AfPacket; 2])));
                }
            }
        }
    });
    let socket = std::env::temp_dir().join(format!("postern-{name}-{}.sock", std::process::id()));
    tokio::spawn(serve(listen(&socket).unwrap(), inspector.clone()));
    (workers, shared, wires, socket, inspector)
}

async fn asked(socket: &std::path::Path, request: Request) -> Result<Vec<Answer>, ClientError> {
    let socket = socket.to_owned();
    let task = tokio::task::spawn_blocking(move || {
        let mut answers = Vec::new();
        ask(&socket, &request, |answer| {
            answers.push(answer);
            true
        })?;
        Ok(answers)
    });
    task.await.unwrap()
}

/// Opens flows from so many client ports.
async fn open_flows(shared: &Shared, wires: &mut [[Wire; 2]], flows: u16) {
    for port in 0..flows {
        let from = SocketAddrV4::new(CLIENT, 2000 + port);
        wires[0][CONSUMER].send(&datagram(CONSUMER, from, SERVICE, b"x"));
        // No more than the workers let wait for a neighbour, or their ports' far ends hold.
        if port % 16 == 15 {
            forwarded(shared, wires, u64::from(port + 1)).await;
        }
    }
    forwarded(shared, wires, u64::from(flows)).await;
}

/// Answers what workers ask for until so many frames have left.
async fn forwarded(shared: &Shared, wires: &mut [[Wire; 2]], frames: u64) {
    for _ in 0..500 {
        for (worker, link) in shared.links.iter().enumerate() {
            if link.requests.pop().is_some() {
                introduce(shared, worker);
            }
            link.wake.wake();
        }
        wires.iter_mut().for_each(|wires| drop(wires[PROVIDER].received()));
        if shared.links.iter().map(|link| link.counters.forwarded.get()).sum::<u64>() == frames {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    panic!("the workers did not forward");
}

#[tokio::test]
async fn every_flow_is_listed_once_and_filters_and_limits_hold() {
    let (_workers, shared, mut wires, socket, _) = inspected("flows").await;
    open_flows(&shared, &mut wires, 700).await;
    let list = async |filter: FlowFilter| {
        let mut answers = asked(&socket, Request::Flows(filter)).await.unwrap();
        let Some(Answer::End(end)) = answers.pop() else { panic!("no end") };
        let flows = answers.into_iter().map(|answer| match answer {
            Answer::Flow(flow) => flow,
            other => panic!("{other:?}"),
        });
        (flows.collect::<Vec<_>>(), end)
    };
    let (flows, end) = list(FlowFilter::default()).await;
    assert_eq!(end, FlowsEnd { flows: 700, complete: true });
    let clients: std::collections::BTreeSet<_> = flows.iter().map(|flow| flow.client.port()).collect();
    assert_eq!(clients.len(), 700);
    let flow = &flows[0];
    assert_eq!(
        (flow.protocol.as_str(), flow.vpc.as_str(), flow.service, flow.target),
        ("udp", "vpc-consumer", SERVICE.into(), TARGET.into())
    );
    assert_eq!((flow.endpoint.as_str(), flow.packets_forward), ("vpce-0123456789abcdef0", 1));

    let (some, end) = list(FlowFilter { limit: Some(5), ..FlowFilter::default() }).await;
    assert_eq!((some.len(), end), (5, FlowsEnd { flows: 5, complete: false }));
    let other = FlowFilter { client: Some((*TARGET.ip()).into()), ..FlowFilter::default() };
    assert_eq!(list(other).await.1, FlowsEnd { flows: 0, complete: true });
    let other = FlowFilter { endpoint: Some("vpce-none".to_owned()), ..FlowFilter::default() };
    assert_eq!(list(other).await.0, []);
    std::fs::remove_file(socket).unwrap();
}

#[tokio::test]
async fn counters_come_whole_and_balance_and_only_the_owner_may_ask() {
    let (_workers, shared, mut wires, socket, _) = inspected("counters").await;
    open_flows(&shared, &mut wires, 20).await;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let Some(Answer::Counters(report)) = asked(&socket, Request::Counters).await.unwrap().pop() else { panic!() };
    assert_eq!((report.total.frames.received, report.total.frames.forwarded, report.total.imbalance), (20, 20, 0));
    assert_eq!(report.workers.len(), 2);
    assert_eq!(report.total.drops.len(), postern_forwarding::DropReason::COUNT);
    assert_eq!((report.endpoints[0].traffic.packets_forward, report.targets[0].traffic.flows), (20, 20));
    assert_eq!(report.neighbours, NeighbourReport { conflicts: 3, ..Default::default() });
    std::fs::remove_file(socket).unwrap();
}

#[tokio::test]
async fn what_is_no_request_is_answered_by_an_error_and_a_status_by_the_control_side() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let (_workers, _shared, _wires, socket, _) = inspected("errors").await;
    let mut stream = BufReader::new(tokio::net::UnixStream::connect(&socket).await.unwrap());
    for (request, answer) in [
        ("{\"command\": \"explode\"}\n", "{\"error\":\"not a request: unknown variant `explode`"),
        ("\n", "{\"error\":\"not a request"),
        ("{\"command\": \"status\"}\n", "{\"status\":{\"gateway\":\"test\""),
    ] {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.starts_with(answer), "{line}");
    }
    std::fs::remove_file(socket).unwrap();
}

#[tokio::test]
async fn the_prometheus_page_names_each_metric_once_and_every_drop_reason() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (_workers, shared, mut wires, socket, inspector) = inspected("metrics").await;
    open_flows(&shared, &mut wires, 7).await;
    let address = "127.0.0.1:39464".parse().unwrap();
    tokio::spawn(serve_metrics(address, inspector).await.unwrap());
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    assert!(page.contains("text/plain; version=0.0.4"));
    assert!(page.contains("postern_frames_received_total{worker=\"0\"} 7\n"));
    assert!(page.contains("postern_endpoint_packets_total{endpoint=\"vpce-0123456789abcdef0\",address=\"10.0.0.100\",vpc=\"vpc-consumer\",direction=\"forward\"} 7\n"));
    for reason in postern_forwarding::DropReason::ALL {
        let sample = format!("postern_frames_dropped_total{{worker=\"1\",reason=\"{}\"}} 0\n", reason.label());
        assert!(page.contains(&sample), "{sample}");
    }
    let mut types: Vec<_> = page.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let count = types.len();
    types.dedup();
    types.sort_unstable();
    types.dedup();
    assert_eq!(types.len(), count, "each metric has one TYPE line");
    std::fs::remove_file(socket).unwrap();
}
