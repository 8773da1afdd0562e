//! An operator drains a gateway: its addresses go to another one, and at no time do both answer for them.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postern_frame_io::af_packet::{PacketReceiver, ReceiverConfig};
use postern_frame_io::interface::Interface as Opened;
use postern_frame_io::{Burst, Receive};
use postern_lab::control::{self, CONSUMERS, Commands, OPERATOR, PROVIDER, PUSH, token_file};
use postern_lab::network::{CLIENT, ENDPOINT, SNAT, TARGETS, page};
use postern_lab::{Client, Control, Gateway, Interface, Launcher, Namespace, Servers, VethEnd};
use postern_wire::MacAddress;

use crate::bed::{Watchdog, eventually, is_root};
use crate::binary::binary;
use crate::frames::Sender;

/// How long a change may take; machines that test are busy.
const LONG: Duration = Duration::from_secs(60);
const GATEWAYS: [&str; 2] = ["one", "two"];

const fn mac(group: u8, number: u8) -> MacAddress {
    MacAddress([0x02, 0, 0, 0, group, number])
}

/// An ARP packet that says who has the endpoint's address.
#[derive(Clone, Copy, Debug)]
struct Claim {
    by: MacAddress,
    /// Asked for by nobody.
    announced: bool,
}

/// Asks for the endpoint's address all the time, and writes down who claims it.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Claim>>>,
}

impl Watch {
    fn start(namespace: &Namespace, own: MacAddress) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let open = || {
            let config = ReceiverConfig { slots: 4096, promiscuous: true, ..ReceiverConfig::default() };
            PacketReceiver::open(&Opened::by_name("switch").unwrap(), &config).unwrap()
        };
        let (mut receiver, mut sender) = (namespace.run(open).unwrap(), Sender::new(namespace, "switch"));
        let ending = stop.clone();
        let thread = thread::spawn(move || {
            let mut claims = Vec::new();
            let mut asked: Option<Instant> = None;
            while !ending.load(Ordering::Relaxed) {
                if asked.is_none_or(|asked| asked.elapsed() > Duration::from_millis(5)) {
                    sender.send(&request(own));
                    asked = Some(Instant::now());
                }
                let mut burst = Burst::new();
                receiver.receive(&mut burst).unwrap();
                claims.extend(burst.frames_mut().iter().filter_map(|frame| claim(frame.bytes())));
                thread::sleep(Duration::from_millis(1));
            }
            claims
        });
        Self { stop, thread: Some(thread) }
    }

    fn end(mut self) -> Vec<Claim> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Who has the endpoint's address? (RFC 826)
fn request(own: MacAddress) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(own.0);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(own.0);
    frame.extend(CLIENT.octets());
    frame.extend([0; 6]);
    frame.extend(ENDPOINT.octets());
    frame.resize(60, 0);
    frame
}

fn claim(frame: &[u8]) -> Option<Claim> {
    let arp = frame.get(12..42).filter(|arp| arp[..2] == [0x08, 0x06])?;
    let (sender, target) = (&arp[16..20], &arp[26..30]);
    let by = MacAddress(arp[10..16].try_into().ok()?);
    (sender == ENDPOINT.octets()).then(|| Claim { by, announced: target == sender })
}

/// A consumer's host and a provider's, each with a switch to which two gateways are plugged, and control beside these.
struct Pair {
    // Dropped in this order: processes end before the wires go.
    gateways: Vec<Gateway>,
    _control: Control,
    _servers: Servers,
    commands: Commands,
    client: Namespace,
    switch: Interface,
    ids: Vec<String>,
    _target: Namespace,
    directory: Directory,
    _watchdog: Watchdog,
}

/// Removed at the end.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A host whose interface is a switch with a port for each gateway.
fn host(name: &str, gateways: &Namespace, port: &str, group: u8, address: IpAddr) -> (Namespace, Interface) {
    let namespace = Namespace::anonymous(name).unwrap();
    for scope in ["all", "default"] {
        // A kernel without IPv6 is silent already.
        drop(namespace.set_sysctl(&format!("net.ipv6.conf.{scope}.disable_ipv6"), "1"));
    }
    let switch = Interface::bridge(&namespace, "switch", 1500).unwrap();
    for number in 1..=2 {
        let name = format!("{port}{number}");
        let end = VethEnd::new(gateways, &name).mac(mac(group, number)).mtu(1500);
        let far = format!("gateway-{number}");
        let (_, plugged) = end.pair(&VethEnd::new(&namespace, &far).mac(mac(group, 0x10 + number)).mtu(1500)).unwrap();
        plugged.attach_to(&switch).unwrap();
    }
    switch.add_address(address, 24).unwrap();
    (namespace, switch)
}

fn gateway_file(name: &str, number: usize, directory: &Path, token: &Path) -> String {
    let own = directory.display().to_string();
    format!(
        "[gateway]\nname = {name:?}\nrun_directory = {own:?}\n[workers]\ncount = 1\nflows = 4096\n\
         [control]\naddress = \"http://{PUSH}\"\ntoken_file = {:?}\nstate_directory = {:?}\n\
         [[port]]\ninterface = \"c{number}\"\nmode = \"own\"\n[[port]]\ninterface = \"p{number}\"\nmode = \"own\"\n",
        token.display().to_string(),
        directory.join("state").display().to_string(),
    )
}

impl Pair {
    /// Two gateways with an endpoint that one of them holds; `None` where the machine does not let us.
    fn start(test: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let watchdog = Watchdog::new();
        let launcher = Launcher::new(binary());
        let directory = Directory(std::env::temp_dir().join(format!("postern-{test}-{}", std::process::id())));
        fs::create_dir_all(&directory.0).unwrap();
        let path = &directory.0;
        let gateways = Namespace::anonymous("gateways").unwrap();
        let (client, switch) = host("client", &gateways, "c", 0x0a, CLIENT.into());
        let (target, _) = host("target", &gateways, "p", 0x90, TARGETS[0].into());
        let servers = Servers::start(&target, "target-1").unwrap();
        let control = Control::start(&launcher, &gateways, path).unwrap();
        let commands = Commands::new(&launcher, path);
        let run = |who: &str, line: &[&str]| commands.run(who, line).unwrap_or_else(|error| panic!("{error}"));
        let id = |who: &str, line: &[&str]| run(who, line)["id"].as_str().unwrap().to_owned();
        for principal in [PROVIDER, CONSUMERS[0], GATEWAYS[0], GATEWAYS[1]] {
            run(OPERATOR, &["principal", "create", principal]);
            let token = run(OPERATOR, &["principal", "token", principal]);
            fs::write(token_file(path, principal), token["token"].as_str().unwrap()).unwrap();
        }
        let (mut processes, mut ids) = (Vec::new(), Vec::new());
        for (at, name) in GATEWAYS.into_iter().enumerate() {
            ids.push(id(OPERATOR, &["gateway", "create", name]));
            let own = path.join(name);
            fs::create_dir_all(&own).unwrap();
            let file = gateway_file(name, at + 1, &own, &token_file(path, name));
            processes.push(Gateway::start(&launcher, &gateways, &own, &file).unwrap());
            control::connected(&commands, name).unwrap();
        }
        for (owner, vpc, port, prefix) in
            [(CONSUMERS[0], "shop", "c", "10.0.0.0/24"), (PROVIDER, "stock", "p", "10.9.0.0/24")]
        {
            let network = id(owner, &["vpc", "create", vpc, "--prefix", prefix]);
            for (at, gateway) in ids.iter().enumerate() {
                let (name, port) = (format!("{vpc}-{at}"), format!("{port}{}", at + 1));
                let line = ["attachment", "create", &name, "--gateway", gateway, "--vpc", &network, "--port", &port];
                run(OPERATOR, &[&line[..], &["--prefix", prefix]].concat());
            }
        }
        let declared = path.join("provider.toml");
        let [first, second] = SNAT;
        let text = format!(
            "[[snat_pool]]\nname = \"pool\"\nvpc = \"stock\"\naddresses = [\"{first}\", \"{second}\"]\n\
             [[target_group]]\nname = \"page\"\nvpc = \"stock\"\nsnat_pool = \"pool\"\n\
             [[target_group.targets]]\naddress = \"{}\"\nport = 80\n\
             [[load_balancer]]\nname = \"front\"\n\
             [[load_balancer.listeners]]\nprotocol = \"tcp\"\nport = 80\n\
             target_groups = [{{ target_group = \"page\" }}]\n\
             [[service]]\nname = \"api\"\nload_balancers = [\"front\"]\nallowed_principals = [\"*\"]\n",
            TARGETS[0]
        );
        fs::write(&declared, text).unwrap();
        run(PROVIDER, &["apply", "-f", &declared.display().to_string()]);
        let service = id(PROVIDER, &["service", "show", "api"]);
        let address = ENDPOINT.to_string();
        let line = ["endpoint", "create", "web", "--vpc", "shop", "--service", &service, "--address", &address];
        run(CONSUMERS[0], &line);
        let pair = Self {
            gateways: processes,
            _control: control,
            _servers: servers,
            commands,
            client,
            switch,
            ids,
            _target: target,
            directory,
            _watchdog: watchdog,
        };
        pair.until_available();
        Some(pair)
    }

    fn until_available(&self) {
        let available = |commands: &Commands| Ok(commands.state(0, "web")? == "available");
        self.commands.until("the endpoint is available", LONG, available).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Which gateway the catalog names for the endpoint's address.
    fn holder(&self) -> Option<usize> {
        let endpoint = self.commands.run(OPERATOR, &["endpoint", "list", "--owner", CONSUMERS[0]]).unwrap();
        let holder = endpoint[0]["status"]["addresses"][0]["gateway"].as_str()?.to_owned();
        self.ids.iter().position(|id| *id == holder)
    }

    fn ask(&self) -> Result<(), String> {
        let asked = self.client.run(|| Client::default().ask_tcp(page(), 0).map(drop));
        asked.unwrap().map_err(|error| error.to_string())
    }

    /// Connections that a gateway has forwarded for the endpoint; `None`: it does not have it.
    fn flows_of(&self, gateway: usize) -> Option<u64> {
        let counters = self.gateways[gateway].counters().unwrap();
        counters["endpoints"].as_array()?.first()?["traffic"]["flows_new"].as_u64()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if thread::panicking() {
            for gateway in &self.gateways {
                eprintln!("--- a gateway's log\n{}", gateway.log());
            }
            eprintln!("--- files in {}", self.directory.0.display());
        }
    }
}

#[test]
fn a_drained_gateway_falls_silent_before_the_next_one_answers_and_traffic_goes_on_there() {
    let Some(pair) = Pair::start("drain") else { return };
    let old = pair.holder().expect("the endpoint has a holder");
    let new = 1 - old;
    let macs = [mac(0x0a, 1), mac(0x0a, 2)];
    eventually("the endpoint answers", LONG, || pair.ask().is_ok());
    assert!(pair.flows_of(old).is_some_and(|flows| flows > 0) && pair.flows_of(new).is_none());

    let watch = Watch::start(&pair.client, pair.switch.mac().unwrap());
    thread::sleep(Duration::from_millis(100));
    pair.commands.run(OPERATOR, &["gateway", "drain", GATEWAYS[old]]).unwrap();
    eventually("the catalog names the other gateway", LONG, || pair.holder() == Some(new));
    pair.until_available();
    eventually("the endpoint answers there", LONG, || pair.ask().is_ok());
    for _ in 0..10 {
        pair.ask().unwrap();
    }
    eventually("the old one has nothing of it", LONG, || pair.flows_of(old).is_none());
    assert!(pair.flows_of(new).is_some_and(|flows| flows >= 11));

    let claims = watch.end();
    assert!(claims.iter().all(|claim| macs.contains(&claim.by)), "somebody else claims it: {claims:?}");
    let turn = claims.iter().position(|claim| claim.by == macs[new]).expect("the new one answers");
    let (before, after) = claims.split_at(turn);
    assert!(!before.is_empty(), "the old one did not answer");
    assert!(after.iter().all(|claim| claim.by == macs[new]), "the old one answers beside the new one: {claims:?}");
    assert!(after.iter().any(|claim| claim.announced), "the new holder was not announced");

    // Back again, as an operator does after the upgrade.
    pair.commands.run(OPERATOR, &["gateway", "undrain", GATEWAYS[old]]).unwrap();
    pair.commands.run(OPERATOR, &["gateway", "drain", GATEWAYS[new]]).unwrap();
    eventually("the catalog names the first gateway again", LONG, || pair.holder() == Some(old));
    eventually("the endpoint answers there", LONG, || pair.ask().is_ok());
}
