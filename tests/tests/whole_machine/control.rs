//! A gateway whose tables come from a control plane: a small one of the tests' own, in the gateway's namespace.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postern_lab::declaration::{SERVICE, VPCS};
use postern_lab::network::{self, Network};
use postern_lab::{Topology, Way};
use postern_push::proto::from_gateway::Message as Said;
use postern_push::proto::push_server::{Push, PushServer};
use postern_push::proto::to_gateway::Message as Heard;
use postern_push::proto::{self, FromGateway, Hello, ToGateway, Update, Welcome};
use postern_tables::declaration;
use postern_tables::{Declaration, Resource, ResourceKey, ResourceKind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::bed::{Bed, eventually};
use crate::traffic::{PingPong, Transfers};

/// Where control listens in the gateway's namespace.
const ADDRESS: &str = "127.0.0.1:7443";
/// How long the gateway may take to connect or to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the gateway said, without what it says of its traffic.
type Heards = Sender<Said>;

/// Sends every gateway what a file declares, and then changes, one after the other.
struct Control {
    everything: Vec<proto::Resource>,
    changes: u64,
    said: Heards,
}

/// Generation 1 is everything. From then on an endpoint more comes and goes.
fn change_after(generation: u64) -> Update {
    let id = "vpce-0000000000000000c";
    let endpoint = declaration::Endpoint {
        id: id.to_owned(),
        vpc: VPCS[0].to_owned(),
        service: SERVICE.to_owned(),
        addresses: vec!["10.0.0.102".to_owned()],
        ..declaration::Endpoint::default()
    };
    let (mut changed, mut removed) = (Vec::new(), Vec::new());
    if generation % 2 == 1 {
        changed.push(proto::Resource::try_from(&Resource::Endpoint(endpoint)).unwrap());
    } else {
        removed.push(proto::Key::from(&ResourceKey { kind: ResourceKind::Endpoint, name: id.to_owned() }));
    }
    Update { generation: generation + 1, complete: true, changed, removed, ..Update::default() }
}

#[tonic::async_trait]
impl Push for Control {
    type StreamStream = ReceiverStream<Result<ToGateway, Status>>;

    async fn stream(&self, request: Request<Streaming<FromGateway>>) -> Result<Response<Self::StreamStream>, Status> {
        let mut from = request.into_inner();
        let (to, messages) = mpsc::channel(16);
        let (said, everything, changes) = (self.said.clone(), self.everything.clone(), self.changes);
        tokio::spawn(async move {
            while let Ok(Some(FromGateway { message: Some(message) })) = from.message().await {
                let mut answers = Vec::new();
                if let Said::Hello(Hello { generation, .. }) = &message {
                    let welcome = Welcome { version: 1, catalog: "lab".to_owned(), status_interval_milliseconds: 200 };
                    answers.push(Heard::Welcome(welcome));
                    if *generation == 0 {
                        let (generation, changed) = (1, everything.clone());
                        let update = Update { generation, full: true, complete: true, changed, ..Update::default() };
                        answers.push(Heard::Update(update));
                    }
                }
                if let Said::Applied(proto::Applied { generation }) = &message
                    && *generation <= changes
                {
                    answers.push(Heard::Update(change_after(*generation)));
                }
                if said.send(message).is_err() {
                    return;
                }
                for message in answers {
                    let _ = to.send(Ok(ToGateway { message: Some(message) })).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// A control plane that runs until it is dropped; then all its connections are gone.
struct Server {
    said: Receiver<Said>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves on a listener what `text` declares, and so many changes.
    fn start(listener: TcpListener, text: &str, changes: u64) -> Self {
        let declaration = Declaration::from_toml(text, "gateway.toml").unwrap();
        let everything =
            declaration.resources().map(|resource| proto::Resource::try_from(&resource).unwrap()).collect();
        let (to, said) = channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let connections = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
                let service = PushServer::new(Control { everything, changes, said: to });
                let server = tonic::transport::Server::builder().add_service(service);
                tokio::select! {
                    served = server.serve_with_incoming(connections) => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { said, stop: Some(stop), thread: Some(thread) }
    }

    /// Waits for something that the gateway says.
    fn wait(&self, what: &str, mut is_it: impl FnMut(&Said) -> bool) -> Said {
        loop {
            let said = self.said.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{what}: {error}"));
            if is_it(&said) {
                return said;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The process part of a file, with `[control]`.
fn with_control(text: &str) -> String {
    let whole = Declaration::from_toml(text, "gateway.toml").unwrap();
    let directory = whole.gateway.run_directory.clone().unwrap();
    let token = format!("{directory}/token");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(&token, "token").unwrap();
    let control = declaration::Control {
        address: format!("http://{ADDRESS}"),
        token_file: Some(token),
        state_directory: Some(format!("{directory}/state")),
        ..declaration::Control::default()
    };
    let limits = declaration::Limits { endpoints: Some(4096), targets: Some(4096) };
    let Declaration { gateway, workers, selection, ports, .. } = whole;
    Declaration { control: Some(control), limits, gateway, workers, selection, ports, ..Declaration::default() }
        .to_toml()
}

/// A gateway without endpoints that is told where control is, and what control is to serve there.
fn bed_with_control() -> Option<(Bed, TcpListener, String)> {
    let (listening, listeners) = channel();
    let (declared, texts) = channel();
    let listen = move |network: &Network| {
        let listener = network.gateway.run(|| TcpListener::bind(ADDRESS)).unwrap().unwrap();
        listening.send(listener).unwrap();
    };
    let builder = Topology::builder().workers(2).prepare(listen).configure(move |text| {
        let process = with_control(&text);
        declared.send(text).unwrap();
        process
    });
    let bed = Bed::start(builder)?;
    Some((bed, listeners.recv().unwrap(), texts.recv().unwrap()))
}

#[test]
fn traffic_outlives_control_and_a_start_without_control_forwards() {
    let Some((mut bed, listener, text)) = bed_with_control() else { return };
    assert!(bed.counters().endpoints.is_empty(), "nothing is declared in the file");
    let server = Server::start(listener, &text, 0);
    let hello = server.wait("Hello", |said| matches!(said, Said::Hello(_)));
    assert!(matches!(hello, Said::Hello(Hello { generation: 0, .. })));
    let applied = server.wait("an outcome", |said| matches!(said, Said::Applied(_) | Said::Refused(_)));
    assert_eq!(applied, Said::Applied(proto::Applied { generation: 1 }));
    let control = bed.counters().control.unwrap();
    assert_eq!((control.connected, control.generation, control.applied), (1, 1, 1));

    // New endpoints are announced when they are applied: clients need not wait.
    bed.ask(0, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    server.wait(
        "usage",
        |said| matches!(said, Said::Status(status) if status.endpoints.iter().any(|usage| usage.new_connections == 1)),
    );

    let ping_pong = PingPong::start(bed.client(1));
    let transfers = Transfers::start(bed.client(0), Way::Download);
    ping_pong.wait_for_more(Duration::from_secs(10));
    drop(server);
    eventually("the loss is noticed", PATIENCE, || bed.counters().control.unwrap().connected == 0);
    ping_pong.wait_for_more(Duration::from_secs(10));
    bed.ask(0, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    assert_eq!(ping_pong.stop(), Vec::<u64>::new());
    assert!(!transfers.stop().is_empty());

    bed.gateway_mut().restart().unwrap();
    let control = bed.counters().control.unwrap();
    assert_eq!((control.connected, control.generation), (0, 1));
    bed.ask(0, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
    bed.ask(1, |client| drop(client.ask_tcp(network::page(), 0).unwrap()));
}

#[test]
fn thousands_of_changes_lose_no_frame_and_change_no_flow() {
    /// A change costs what the disk takes for it: on a slow one there are fewer.
    const CHANGES: u64 = 10_000;
    const ENOUGH: Duration = Duration::from_secs(60);
    let Some((bed, listener, text)) = bed_with_control() else { return };
    let server = Server::start(listener, &text, CHANGES);
    let applied = |said: &Said| matches!(said, Said::Applied(_) | Said::Refused(_));
    assert_eq!(server.wait("the first outcome", applied), Said::Applied(proto::Applied { generation: 1 }));
    let flows = || {
        let flows = bed.gateway().flows().unwrap();
        let row = |flow: &serde_json::Value| ["vpc", "client", "snat", "target"].map(|key| flow[key].to_string());
        flows.as_array().unwrap().iter().map(row).collect::<BTreeSet<_>>()
    };
    let ring_drops = || bed.counters().ports.iter().map(|port| port.received.kernel_drops).sum::<u64>();
    let players = [PingPong::start(bed.client(0)), PingPong::start(bed.client(1))];
    let (before, drops, since) = (flows(), ring_drops(), Instant::now());
    let mut last = 1;
    while last <= CHANGES && since.elapsed() < ENOUGH {
        match server.wait("an outcome", applied) {
            Said::Applied(proto::Applied { generation }) => last = generation,
            said => panic!("{said:?}"),
        }
    }
    println!("{} changes in {:.1?}", last - 1, since.elapsed());
    players.iter().for_each(|player| player.wait_for_more(Duration::from_secs(10)));
    assert_eq!(flows(), before, "a flow changed");
    let lost: usize = players.map(|player| player.stop().len()).into_iter().sum();
    let drops = ring_drops() - drops;
    assert!(
        lost as u64 <= drops,
        "{lost} datagrams are lost, and the kernel kept only {drops} frames from the gateway"
    );
}
