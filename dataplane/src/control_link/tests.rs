//! The link against a control plane of the tests' own, on loopback.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use postern_push::proto::from_gateway::Message as Said;
use postern_push::proto::push_server::{Push, PushServer};
use postern_push::proto::to_gateway::Message as Heard;
use postern_push::proto::{self, FromGateway, Hello, ToGateway, Update, Welcome};
use postern_tables::declaration::Endpoint;
use postern_tables::{Declaration, Resource, ResourceKey, ResourceKind, Snapshot};
use tokio::net::TcpListener;
use tokio::task::JoinHandle as Task;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::target_views::{TargetHealth, TargetKey, TargetView};
use super::*;
use crate::test_bed::CONFIGURATION;

/// Nothing here takes as long.
const LONG: Duration = Duration::from_secs(60);

/// One stream, seen from control.
struct Stream {
    token: Option<String>,
    from: Streaming<FromGateway>,
    to: mpsc::Sender<Result<ToGateway, Status>>,
}

impl Stream {
    async fn hear(&mut self) -> Said {
        let message = timeout(LONG, self.from.message()).await.expect("the gateway says something").unwrap();
        message.expect("the stream goes on").message.unwrap()
    }

    async fn say(&self, message: Heard) {
        self.to.send(Ok(ToGateway { message: Some(message) })).await.unwrap();
    }

    /// Takes the Hello and says Welcome.
    async fn welcome(&mut self) -> Hello {
        let Said::Hello(hello) = self.hear().await else { panic!("Hello comes first") };
        self.say(Heard::Welcome(Welcome {
            version: 1,
            catalog: "catalog-a".to_owned(),
            status_interval_milliseconds: 100,
        }))
        .await;
        hello
    }

    /// What is said of an update; statuses in between are skipped.
    async fn outcome(&mut self) -> Said {
        loop {
            match self.hear().await {
                Said::Status(_) => {}
                other => return other,
            }
        }
    }

    async fn applies(&mut self, update: Update) {
        let generation = update.generation;
        self.say(Heard::Update(update)).await;
        assert_eq!(self.outcome().await, Said::Applied(proto::Applied { generation }));
    }

    /// The first status that has something.
    async fn status(&mut self, has: impl Fn(&proto::Status) -> bool) -> proto::Status {
        loop {
            if let Said::Status(status) = self.hear().await
                && has(&status)
            {
                return status;
            }
        }
    }
}

/// A control plane that hands its streams to the test.
struct Control(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl Push for Control {
    type StreamStream = ReceiverStream<Result<ToGateway, Status>>;

    async fn stream(&self, request: Request<Streaming<FromGateway>>) -> Result<Response<Self::StreamStream>, Status> {
        let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        if token.as_deref() == Some("Bearer wrong") {
            return Err(Status::unauthenticated("the token is nobody's"));
        }
        let (to, messages) = mpsc::channel(64);
        let stream = Stream { token, from: request.into_inner(), to };
        self.0.send(stream).await.map_err(|_| Status::unavailable("going down"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

struct Server {
    address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
    task: Task<()>,
}

impl Server {
    async fn start(address: Option<SocketAddr>) -> Self {
        Self::start_with(address, tonic::transport::Server::builder()).await
    }

    async fn start_with(address: Option<SocketAddr>, mut builder: tonic::transport::Server) -> Self {
        let listener = TcpListener::bind(address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap())).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, streams) = mpsc::channel(4);
        let router = builder.add_service(PushServer::new(Control(to)));
        let task =
            tokio::spawn(async move { router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() });
        Self { address, streams, task }
    }

    async fn stream(&mut self) -> Stream {
        timeout(LONG, self.streams.recv()).await.expect("a gateway connects").unwrap()
    }

    /// Dies with all its connections.
    async fn die(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.address
    }
}

/// A gateway whose workers take what is published at once.
struct Gateway {
    link: ControlLink,
    views: Arc<TargetViews>,
    counters: Vec<Arc<WorkerCounters>>,
    published: Arc<Mutex<Vec<Arc<Snapshot>>>>,
    applied: AppliedState,
    snapshot: Arc<Snapshot>,
}

impl Gateway {
    fn start(directory: &Path, control: &str) -> Self {
        let checked = checked(directory, control);
        let settings = checked.control.clone().unwrap();
        let ColdStart { tables, applied, state } = cold_start(&checked, &settings).unwrap();
        let snapshot = tables.snapshot().clone();
        let counters: Vec<_> = (0..2).map(|_| Arc::new(WorkerCounters::new(16, 16))).collect();
        let (publications, mut requests) = mpsc::channel::<Publication>(1);
        let published = Arc::new(Mutex::new(Vec::new()));
        let seen = published.clone();
        tokio::spawn(async move {
            while let Some(Publication { snapshot, settled }) = requests.recv().await {
                seen.lock().unwrap().push(snapshot);
                let _ = settled.send(());
            }
        });
        let views = Arc::new(TargetViews::default());
        let link = ControlLink::start(LinkParts {
            settings,
            identity: Identity { gateway: "gateway-1".into(), boot_id: "b007".into(), ports: vec!["consumer0".into()] },
            tables: Arc::new(Mutex::new(tables)),
            applied: applied.clone(),
            state,
            counters: counters.clone(),
            publications,
            views: views.clone(),
        });
        Self { link: link.unwrap(), views, counters, published, applied, snapshot }
    }

    fn endpoints(&self) -> Vec<String> {
        let published = self.published.lock().unwrap();
        endpoints(published.last().unwrap_or(&self.snapshot))
    }

    /// Ends the link; its thread is waited for.
    async fn stop(self) {
        tokio::task::spawn_blocking(move || drop(self.link)).await.unwrap();
    }
}

fn endpoints(snapshot: &Snapshot) -> Vec<String> {
    let mut ids: Vec<_> = (0..snapshot.endpoints.len())
        .filter_map(|at| snapshot.endpoint(postern_tables::snapshot::EndpointIndex(at as u32)))
        .map(|endpoint| endpoint.id.to_string())
        .collect();
    ids.sort();
    ids
}

/// The process part of the test bed's configuration, with `[control]`.
fn checked(directory: &Path, control: &str) -> Checked {
    let ports = CONFIGURATION.split("[[vpc]]").next().unwrap();
    let directory = directory.display();
    let text = format!(
        "[gateway]\nname = \"gateway-1\"\n[limits]\nendpoints = 16\ntargets = 16\n[control]\n{control}\nstate_directory = \
         \"{directory}\"\n{ports}"
    );
    Declaration::from_toml(&text, "gateway.toml")
        .and_then(Declaration::check)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

/// A fresh directory with a token in it.
fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("postern-link-{name}-{}", std::process::id()));
    drop(fs::remove_dir_all(&path));
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("token"), "s3cret\n").unwrap();
    path
}

fn plain(directory: &Path, address: SocketAddr) -> String {
    format!("address = \"http://{address}\"\ntoken_file = \"{}\"", directory.join("token").display())
}

/// Everything that the test bed's configuration declares, and more endpoints.
fn full(generation: u64, more: &[Endpoint]) -> Update {
    let declaration = Declaration::from_toml(CONFIGURATION, "").unwrap();
    let resources = declaration.resources().chain(more.iter().cloned().map(Resource::Endpoint));
    update(generation, true, resources, &[])
}

fn update(generation: u64, full: bool, changed: impl Iterator<Item = Resource>, removed: &[&str]) -> Update {
    let key = |id: &&str| ResourceKey { kind: ResourceKind::Endpoint, name: (*id).to_owned() };
    Update {
        generation,
        full,
        complete: true,
        changed: changed.map(|resource| proto::Resource::try_from(&resource).unwrap()).collect(),
        removed: removed.iter().map(key).map(|key| proto::Key::from(&key)).collect(),
        digest: vec![generation as u8],
    }
}

fn endpoint(id: &str, address: &str) -> Endpoint {
    Endpoint {
        id: id.to_owned(),
        vpc: "vpc-consumer".to_owned(),
        service: "vpce-svc-0123456789abcdef0".to_owned(),
        addresses: vec![address.to_owned()],
        ..Endpoint::default()
    }
}

fn added(generation: u64, endpoints: &[Endpoint]) -> Update {
    update(generation, false, endpoints.iter().cloned().map(Resource::Endpoint), &[])
}

const FIRST: &str = "vpce-0123456789abcdef0";

#[tokio::test]
async fn everything_then_changes_are_applied_and_a_bad_change_is_refused_whole_with_its_reasons() {
    let directory = directory("apply");
    let mut server = Server::start(None).await;
    let gateway = Gateway::start(&directory, &plain(&directory, server.address));
    let mut stream = server.stream().await;
    assert_eq!(stream.token.as_deref(), Some("Bearer s3cret"));
    let hello = stream.welcome().await;
    assert_eq!(
        (hello.gateway.as_str(), hello.boot_id.as_str(), hello.ports),
        ("gateway-1", "b007", vec!["consumer0".to_owned()])
    );
    assert_eq!((hello.oldest_version, hello.newest_version, hello.catalog.as_str(), hello.generation), (1, 1, "", 0));

    // In two parts, which are applied together.
    let mut second = full(5, &[]);
    let mut first = Update { complete: false, digest: Vec::new(), ..second.clone() };
    second.changed = first.changed.split_off(3);
    stream.say(Heard::Update(first)).await;
    stream.applies(second).await;
    assert_eq!(gateway.endpoints(), [FIRST]);
    stream.applies(added(6, &[endpoint("vpce-a", "10.0.0.101")])).await;
    assert_eq!(gateway.endpoints(), [FIRST, "vpce-a"]);

    // One that is right, two that are not.
    let bad = added(
        7,
        &[endpoint("vpce-b", "10.0.0.102"), endpoint("vpce-c", "10.0.0.300"), endpoint("vpce-d", "10.0.0.101")],
    );
    stream.say(Heard::Update(bad)).await;
    let Said::Refused(refused) = stream.outcome().await else { panic!("a bad update is not refused") };
    assert_eq!((refused.generation, refused.reasons.len()), (7, 2), "{:?}", refused.reasons);
    assert!(refused.reasons.iter().any(|reason| reason.contains("10.0.0.300")), "{:?}", refused.reasons);
    assert_eq!(gateway.endpoints(), [FIRST, "vpce-a"]);
    let report = gateway.link.status().report();
    assert_eq!((report.connected, report.catalog.as_str(), report.generation), (true, "catalog-a", 6));
    assert!(report.last_error.is_some_and(|error| error.contains("generation 7 refused")));

    stream.applies(update(8, false, std::iter::empty(), &["vpce-a"])).await;
    assert_eq!(gateway.endpoints(), [FIRST]);
    let published = gateway.published.lock().unwrap().len();
    stream.applies(update(9, false, std::iter::empty(), &[])).await;
    assert_eq!(gateway.published.lock().unwrap().len(), published, "a confirmation publishes nothing");
    let counters = gateway.link.status();
    let counters = counters.counters();
    assert_eq!((counters.applied.get(), counters.refused.get(), counters.generation.get()), (4, 1, 9));
    gateway.stop().await;
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn control_that_dies_is_found_again_and_told_what_is_applied() {
    let directory = directory("reconnect");
    let mut server = Server::start(None).await;
    let gateway = Gateway::start(&directory, &plain(&directory, server.address));
    let mut stream = server.stream().await;
    stream.welcome().await;
    stream.applies(full(5, &[])).await;
    drop(stream);
    let address = server.die().await;
    let mut server = Server::start(Some(address)).await;
    let mut stream = server.stream().await;
    let hello = stream.welcome().await;
    assert_eq!((hello.catalog.as_str(), hello.generation, hello.digest.as_slice()), ("catalog-a", 5, &[5][..]));
    stream.applies(added(6, &[endpoint("vpce-a", "10.0.0.101")])).await;
    assert_eq!(gateway.endpoints(), [FIRST, "vpce-a"]);
    assert_eq!(gateway.link.status().counters().streams.get(), 2);
    gateway.stop().await;
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_start_without_control_has_all_that_was_acknowledged() {
    let directory = directory("cold");
    let mut server = Server::start(None).await;
    let control = plain(&directory, server.address);
    let gateway = Gateway::start(&directory, &control);
    let mut stream = server.stream().await;
    stream.welcome().await;
    stream.applies(full(5, &[endpoint("vpce-b", "10.0.0.102")])).await;
    stream.applies(added(6, &[endpoint("vpce-a", "10.0.0.101")])).await;
    stream.applies(update(7, false, std::iter::empty(), &["vpce-b"])).await;
    drop(stream);
    server.die().await;
    gateway.stop().await;

    let gateway = Gateway::start(&directory, &control);
    let known = AppliedState { catalog: "catalog-a".to_owned(), generation: 7, digest: vec![7] };
    assert_eq!((gateway.endpoints(), gateway.applied.clone()), (vec![FIRST.to_owned(), "vpce-a".to_owned()], known));
    gateway.stop().await;

    // A damaged file: no endpoints, and the process lives.
    let file = directory.join("tables.bin");
    let mut bytes = fs::read(&file).unwrap();
    bytes[100] ^= 1;
    fs::write(&file, bytes).unwrap();
    let gateway = Gateway::start(&directory, &control);
    assert_eq!((gateway.endpoints(), gateway.applied.clone()), (vec![], AppliedState::default()));
    assert!(directory.join("tables.bin.damaged").exists());
    gateway.stop().await;
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_full_disk_stops_no_change_keeps_nothing_older_and_with_room_again_the_next_change_brings_all_of_it() {
    let directory = directory("full-disk");
    let mut server = Server::start(None).await;
    let control = plain(&directory, server.address);
    let gateway = Gateway::start(&directory, &control);
    let mut stream = server.stream().await;
    stream.welcome().await;
    stream.applies(full(5, &[])).await;
    let (file, new) = (directory.join("tables.bin"), directory.join("tables.bin.new"));
    assert!(file.exists());

    // Whatever is written anew finds no room.
    std::os::unix::fs::symlink("/dev/full", &new).unwrap();
    let status = gateway.link.status();
    stream.applies(full(6, &[endpoint("vpce-a", "10.0.0.101")])).await;
    assert_eq!(gateway.endpoints(), [FIRST, "vpce-a"], "workers do not wait for the disk");
    assert!(!file.exists(), "generation 5 could bring back what another gateway holds by now");
    let said = status.report().last_error.unwrap();
    for words in ["tables.bin: No space left on device", "a start without control would have no endpoints"] {
        assert!(said.contains(words), "{said}");
    }
    stream.applies(added(7, &[endpoint("vpce-b", "10.0.0.102")])).await;
    assert_eq!((status.counters().disk_failures.get(), status.counters().applied.get()), (2, 3));

    fs::remove_file(&new).unwrap();
    stream.applies(added(8, &[endpoint("vpce-c", "10.0.0.103")])).await;
    assert_eq!(status.counters().disk_failures.get(), 2);
    drop(stream);
    server.die().await;
    gateway.stop().await;
    let gateway = Gateway::start(&directory, &control);
    assert_eq!(gateway.endpoints(), [FIRST, "vpce-a", "vpce-b", "vpce-c"]);
    assert_eq!(gateway.applied.generation, 8);
    gateway.stop().await;
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn what_control_says_no_to_is_kept_and_asked_for_slowly() {
    let directory = directory("refused");
    fs::write(directory.join("token"), "wrong").unwrap();
    let mut server = Server::start(None).await;
    let control = plain(&directory, server.address);
    let gateway = Gateway::start(&directory, &control);
    let error = async |word: &str| {
        let said = || gateway.link.status().report().last_error.filter(|error| error.contains(word));
        for _ in 0..6000 {
            if said().is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{word}: {:?}", gateway.link.status().report());
    };
    error("the token is nobody's").await;
    // New settings are tried at once.
    fs::write(directory.join("good"), "s3cret").unwrap();
    let control = control.replace("/token\"", "/good\"");
    gateway.link.configure(checked(&directory, &control).control.as_ref().unwrap());
    let mut stream = server.stream().await;
    assert!(matches!(stream.hear().await, Said::Hello(_)));
    let word = "the gateway speaks versions 1 to 1, this control 2 to 3";
    stream.to.send(Err(Status::failed_precondition(word))).await.unwrap();
    error(word).await;
    assert_eq!(gateway.link.status().counters().streams.get(), 0);
    assert!(timeout(Duration::from_secs(2), server.streams.recv()).await.is_err(), "it comes back too soon");
    gateway.stop().await;
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn usage_drops_and_target_views_flow_back_and_a_new_stream_is_told_all() {
    let directory = directory("status");
    let mut server = Server::start(None).await;
    let gateway = Gateway::start(&directory, &plain(&directory, server.address));
    let mut stream = server.stream().await;
    stream.welcome().await;
    stream.applies(full(5, &[endpoint("vpce-a", "10.0.0.101")])).await;
    let snapshot = gateway.published.lock().unwrap()[0].clone();
    let index = |id: &str| {
        let at = |at: u32| snapshot.endpoint(postern_tables::snapshot::EndpointIndex(at));
        (0..16).find(|number| at(*number).is_some_and(|endpoint| *endpoint.id == *id)).unwrap() as usize
    };
    for (worker, packets) in gateway.counters.iter().zip([3, 4]) {
        let endpoint = &worker.endpoints[index("vpce-a")];
        endpoint.packets_forward.add(packets);
        endpoint.bytes_forward.add(100 * packets);
        worker.flows.set(1);
        worker.count_drop(postern_forwarding::DropReason::NoFlow, 2);
    }
    let status = stream.status(|status| status.endpoints.iter().any(|usage| usage.packets == 7)).await;
    assert_eq!((status.flows, status.drops, status.endpoints.len()), (2, 4, 1));
    assert_eq!((status.endpoints[0].endpoint.as_str(), status.endpoints[0].bytes), ("vpce-a", 700));
    assert_eq!(status.drops_by_reason.values().sum::<u64>(), 4);

    let key = TargetKey { group: "group".to_owned(), address: "10.0.0.80".parse().unwrap(), port: 8080 };
    gateway.counters[0].targets[0].flows.set(9);
    gateway.views.set(key, TargetView { health: TargetHealth::Unhealthy, reason: "timeout".to_owned() });
    let status = stream.status(|status| !status.targets.is_empty()).await;
    let [target] = &status.targets[..] else { panic!("{status:?}") };
    assert_eq!(
        (target.health(), target.reason.as_str(), target.active_flows),
        (proto::Health::Unhealthy, "timeout", 9)
    );
    assert!(status.endpoints.is_empty(), "only what moved");
    // One that is no more is said too.
    let gone = TargetKey { group: "group".to_owned(), address: "10.0.0.81".parse().unwrap(), port: 8080 };
    gateway.views.set(gone.clone(), TargetView { health: TargetHealth::Draining, reason: String::new() });
    stream.status(|status| status.targets.iter().any(|target| target.health() == proto::Health::Draining)).await;
    gateway.views.remove(&gone);
    let status = stream.status(|status| !status.targets.is_empty()).await;
    assert_eq!(
        (status.targets[0].address.as_str(), status.targets[0].health()),
        ("10.0.0.81", proto::Health::Unspecified)
    );

    drop(stream);
    let address = server.die().await;
    let mut server = Server::start(Some(address)).await;
    let mut stream = server.stream().await;
    stream.welcome().await;
    let status = stream.status(|status| !status.endpoints.is_empty()).await;
    assert_eq!((status.endpoints[0].packets, status.targets.len()), (7, 2));
    gateway.stop().await;
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn control_and_gateway_know_each_other_by_certificates() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use tonic::transport::{Certificate, Identity as Shown, ServerTlsConfig};
    let directory = directory("tls");
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "the tests' authority");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
    };
    let (certificate, key) = issue(&["127.0.0.1"]);
    let tls = ServerTlsConfig::new()
        .identity(Shown::from_pem(certificate, key))
        .client_ca_root(Certificate::from_pem(ca.pem()));
    let builder = tonic::transport::Server::builder().tls_config(tls).unwrap();
    let mut server = Server::start_with(None, builder).await;

    let (certificate, key) = issue(&["gateway-1"]);
    let files = [("ca", ca.pem()), ("certificate", certificate), ("key", key)];
    let mut control = format!("address = \"https://{}\"\n", server.address);
    for (name, contents) in &files {
        let path = directory.join(name);
        fs::write(&path, contents).unwrap();
        control.push_str(&format!("{name} = \"{}\"\n", path.display()));
    }
    let gateway = Gateway::start(&directory, &control);
    let mut stream = server.stream().await;
    assert_eq!(stream.token, None);
    stream.welcome().await;
    stream.applies(full(5, &[])).await;
    assert_eq!(gateway.endpoints(), [FIRST]);
    gateway.stop().await;

    // Somebody else in control's place is not believed.
    let other = CertifiedIssuer::self_signed(CertificateParams::new(Vec::new()).unwrap(), KeyPair::generate().unwrap());
    fs::write(directory.join("ca"), other.unwrap().pem()).unwrap();
    let gateway = Gateway::start(&directory, &control);
    for _ in 0..6000 {
        if gateway.link.status().report().last_error.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let report = gateway.link.status().report();
    assert!(report.last_error.is_some_and(|error| error.contains("certificate")) && !report.connected);
    assert_eq!(gateway.endpoints(), [FIRST], "traffic goes on by what is on disk");
    gateway.stop().await;
    fs::remove_dir_all(directory).unwrap();
}

/// Passes one connection on to `server`, and cuts it when so many bytes have come from there.
async fn cut_after(bytes: u64, server: SocketAddr) -> (SocketAddr, Task<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(server).await.unwrap();
        let ((mut near_read, mut near_write), (far_read, mut far_write)) = (near.split(), far.split());
        let mut some = tokio::io::AsyncReadExt::take(far_read, bytes);
        tokio::select! {
            _ = tokio::io::copy(&mut near_read, &mut far_write) => {}
            _ = tokio::io::copy(&mut some, &mut near_write) => {}
        }
    });
    (address, task)
}

#[tokio::test]
async fn a_stream_that_is_cut_anywhere_leaves_the_tables_before_or_those_after() {
    let more: Vec<_> = (0..12).map(|at| endpoint(&format!("vpce-{at}"), &format!("10.0.0.{}", 110 + at))).collect();
    let (mut before, mut after) = (0, 0);
    for cut in (0..3000).step_by(150) {
        let directory = directory(&format!("cut-{cut}"));
        let mut server = Server::start(None).await;
        let (address, proxy) = cut_after(cut, server.address).await;
        let gateway = Gateway::start(&directory, &plain(&directory, address));
        let served = async {
            let mut stream = server.stream().await;
            let Ok(Some(_)) = stream.from.message().await else { return };
            let welcome = Welcome { version: 1, catalog: "catalog-a".to_owned(), status_interval_milliseconds: 100 };
            // Two parts, so that a cut may come between them.
            let mut second = full(5, &more);
            let mut first = Update { complete: false, digest: Vec::new(), ..second.clone() };
            second.changed = first.changed.split_off(6);
            for message in [Heard::Welcome(welcome), Heard::Update(first), Heard::Update(second)] {
                let _ = stream.to.send(Ok(ToGateway { message: Some(message) })).await;
            }
            // It says that it has applied all, or is cut.
            while let Ok(Some(message)) = stream.from.message().await {
                if matches!(message.message, Some(Said::Applied(_))) {
                    return;
                }
            }
        };
        tokio::select! {
            () = served => {}
            _ = proxy => {}
        }
        server.die().await;
        let published = gateway.published.clone();
        gateway.stop().await;
        match published.lock().unwrap().last().map(|snapshot| endpoints(snapshot).len()) {
            None => before += 1,
            Some(count) => {
                assert_eq!(count, 13, "half applied after {cut} bytes");
                after += 1;
            }
        }
        fs::remove_dir_all(directory).unwrap();
    }
    assert!(before > 0 && after > 0, "{before} before, {after} after");
}

proptest::proptest! {
    #[test]
    fn an_update_with_other_bytes_is_taken_whole_or_not_at_all(
        flips in proptest::collection::vec((proptest::prelude::any::<u16>(), 0..8_u8), 1..6),
        length in proptest::option::of(proptest::prelude::any::<u16>()),
        full_update in proptest::prelude::any::<bool>(),
    ) {
        use prost::Message;
        let process = CONFIGURATION.split("[[vpc]]").next().unwrap();
        let process = format!("[limits]\nendpoints = 16\ntargets = 16\n{process}");
        let checked = Declaration::from_toml(&process, "gateway.toml").and_then(Declaration::check).unwrap();
        let mut tables = Tables::new(&checked);
        let whole = |update| postern_push::Assembler::default().add(update);
        tables.update(whole(full(5, &[])).unwrap().unwrap().change).unwrap();
        let more = [endpoint("vpce-a", "10.0.0.101"), endpoint("vpce-b", "10.0.0.102")];
        let mut bytes = if full_update { full(6, &more) } else { added(6, &more) }.encode_to_vec();
        for (at, bit) in flips {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        bytes.truncate(length.map_or(bytes.len(), |length| usize::from(length) % bytes.len()));
        if let Ok(update) = Update::decode(bytes.as_slice())
            && let Ok(Some(update)) = whole(update)
        {
            let declared = |tables: &Tables| tables.resources().collect::<Vec<_>>();
            let (before, generation) = (declared(&tables), tables.snapshot().generation);
            if let Err(errors) = tables.update(update.change) {
                proptest::prop_assert!(!errors.to_string().is_empty());
                proptest::prop_assert_eq!((declared(&tables), tables.snapshot().generation), (before, generation));
            }
        }
    }
}
