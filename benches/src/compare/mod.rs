//! `postern bench compare`: Postern's back ends, the kernel's own NAT, a bare reflector, and peers that a user describes, one
//! after another on the same topology, line by line, in an order that changes from round to round.
//!
//! A turn says what was measured, the CPU time of everything on the machine, and whether other load disturbed it. Ratios are
//! taken in each round by itself, so that what slows the machine for a while slows both sides of a ratio.

pub mod line;
pub mod load;
pub mod peer;
mod tables;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use postern_lab::Namespace;

pub use line::Line;
use line::{How, Outcome};
use load::{Moment, Used};
use peer::{Peer, PeerError, PeerGateway};

use crate::nat::gateway::{Polling, PosternGateway, ReferenceGateway, Room};
use crate::nat::processor::{GATEWAY_CPU, LOAD_CPU, cores};
use crate::nat::reflector::ReflectorGateway;
use crate::nat::topology::{
    CLIENT_INTERFACE, GATEWAY_CLIENT_INTERFACE, GATEWAY_SERVER_INTERFACE, SERVER_INTERFACE, Topology,
};
use crate::nat::{self, NatError, flood, nftables};
use crate::report::{Interface, Report};
use crate::traffic::TrafficError;

/// Why there is no comparison, or why a turn failed.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// A peer.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The topology, a gateway or a measurement.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// Test frames.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// A namespace.
    #[error(transparent)]
    Namespace(#[from] postern_lab::NamespaceError),
    /// Nothing of ours can take part.
    #[error("none of Postern's back ends works here: {0}")]
    NoBackEnd(String),
    /// Two contenders would be mistaken for each other.
    #[error("two contenders have the name {0:?}")]
    SameName(String),
    /// There is no rate without loss.
    #[error("no rate without loss: {0}")]
    NoRate(String),
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `postern` binary, started as the gateway.
    pub binary: PathBuf,
    /// Back ends of Postern: values of the configuration's `io`.
    pub io: Vec<String>,
    /// Files of peers.
    pub peers: Vec<PathBuf>,
    /// How often each contender has its turn at each line, 1…100.
    pub rounds: usize,
    /// How long one measurement lasts.
    pub window: Duration,
    /// Connections in turn, for each turn.
    pub connections: u64,
    /// How often a turn that was disturbed is repeated.
    pub repeats: usize,
    /// Names of the only lines that are wanted; all, if there are none.
    pub only: Vec<String>,
    /// Whether it is to show that it works only.
    pub quick: bool,
}

/// Who forwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Postern with a back end.
    Postern(String),
    /// Postern's packet sockets without Postern.
    Reflector,
    /// nftables, forwarding on the gateway's CPU.
    NftablesPinned,
    /// nftables, forwarding wherever the sender runs.
    NftablesInline,
    /// One of the peers.
    Peer(usize, String),
}

impl Contender {
    /// The name in tables.
    fn name(&self) -> String {
        match self {
            Self::Postern(io) => format!("Postern, {io}"),
            Self::Reflector => "bare reflector, af_packet".to_owned(),
            Self::NftablesPinned => "nftables, pinned".to_owned(),
            Self::NftablesInline => "nftables, inline".to_owned(),
            Self::Peer(_, name) => name.clone(),
        }
    }

    const fn is_own(&self) -> bool {
        matches!(self, Self::Postern(_))
    }
}

/// One turn.
#[derive(Debug)]
pub(crate) struct Turn {
    round: usize,
    line: Line,
    contender: Contender,
    outcome: Result<(Outcome, Used), String>,
}

/// All gateways; each has a topology of its own, built alike.
struct Field {
    postern: PosternGateway,
    reflector: ReflectorGateway,
    reference: Option<ReferenceGateway>,
    peers: Vec<PeerGateway>,
    /// The links of all namespaces in which nothing runs but what was started for the comparison.
    namespaces: BTreeSet<String>,
}

/// Runs the comparison. `progress` gets a line of text before and after each turn. Returns the report, and whether Postern
/// passed every turn and no connection through it failed.
///
/// # Errors
/// When a peer file is wrong, a topology cannot be built, or none of Postern's back ends works. A turn that fails is part of the
/// report.
pub fn run(options: &Options, mut progress: impl FnMut(&str)) -> Result<(Report, bool), CompareError> {
    let since = SystemTime::now();
    let peers: Vec<Peer> = options.peers.iter().map(|path| Peer::read(path)).collect::<Result<_, _>>()?;
    let mut notes: Vec<String> = nat::strangers()?.into_iter().collect();
    notes.extend(placement());
    let field = Field::build(options, peers)?;
    let contenders = field.contenders(options, &mut notes)?;
    let interfaces = interfaces(field.postern.topology());
    let how = How { window: options.window, connections: options.connections, quick: options.quick };
    let lines: Vec<Line> = Line::ALL
        .into_iter()
        .filter(|line| options.only.is_empty() || options.only.iter().any(|only| only == line.name()))
        .collect();

    let plan: Vec<(usize, Line, &Contender)> = (0..options.rounds)
        .flat_map(|round| lines.iter().map(move |line| (round, *line)))
        .flat_map(|(round, line)| rotated(&contenders, round).map(move |contender| (round, line, contender)))
        .filter(|(_, line, contender)| field.takes_part(contender, *line))
        .collect();
    let mut turns: Vec<Turn> = Vec::with_capacity(plan.len());
    for (number, (round, line, contender)) in plan.iter().enumerate() {
        let name = contender.name();
        progress(&format!("[{}/{}] round {}: {}: {name}", number + 1, plan.len(), round + 1, line.title()));
        let mut outcome = field.turn(contender, *line, how);
        for _ in 0..options.repeats {
            let Ok((_, used)) = &outcome else { break };
            if !used.is_disturbed() {
                break;
            }
            progress(&format!("  disturbed ({:.2} CPUs); again", used.disturbance()));
            // What was disturbed less counts; what fails now does not.
            if let Ok(again) = field.turn(contender, *line, how)
                && again.1.disturbance() < used.disturbance()
            {
                outcome = Ok(again);
            }
        }
        progress(&format!("  {}", tables::told(*line, &outcome)));
        let outcome = outcome.map_err(|error| error.to_string());
        turns.push(Turn { round: *round, line: *line, contender: (*contender).clone(), outcome });
    }

    let mut report = Report::new("Postern compared with other forwarders", since, options.quick);
    report.machine.interfaces = interfaces;
    report.notes = notes;
    report.notes.extend(tables::notes(&turns));
    report.sections = tables::sections(&turns, &contenders, options.quick);
    Ok((report, tables::passed(&turns)))
}

impl Field {
    fn build(options: &Options, peers: Vec<Peer>) -> Result<Self, CompareError> {
        let postern = PosternGateway::build(&options.binary)?;
        let reflector = ReflectorGateway::build()?;
        let reference = if nftables::available() { Some(ReferenceGateway::build()?) } else { None };
        let peers: Vec<PeerGateway> = peers.into_iter().map(PeerGateway::build).collect::<Result<_, _>>()?;
        let mut field = Self { postern, reflector, reference, peers, namespaces: BTreeSet::new() };
        let topologies = [field.postern.topology(), field.reflector.topology()];
        let topologies = topologies.into_iter().chain(field.reference.as_ref().map(ReferenceGateway::topology));
        let gateways = topologies.chain(field.peers.iter().map(PeerGateway::topology)).map(Topology::gateway);
        field.namespaces = gateways.map(namespace_link).collect::<Result<_, _>>()?;
        Ok(field)
    }

    /// Who can take part here; who cannot is named in a note.
    fn contenders(&self, options: &Options, notes: &mut Vec<String>) -> Result<Vec<Contender>, CompareError> {
        let mut contenders = Vec::new();
        let mut skipped = Vec::new();
        for io in &options.io {
            match self.postern.start_with(Polling::Adaptive, io) {
                Ok(_) => contenders.push(Contender::Postern(io.clone())),
                Err(why) => skipped.push(format!("Postern, {io}, is left out: {why}")),
            }
        }
        if contenders.is_empty() {
            return Err(CompareError::NoBackEnd(skipped.join("; ")));
        }
        notes.extend(skipped);
        contenders.push(Contender::Reflector);
        if self.reference.is_some() {
            contenders.extend([Contender::NftablesPinned, Contender::NftablesInline]);
        } else {
            notes.push("nftables is left out: there is no program nft on this machine".to_owned());
        }
        let peers = self.peers.iter().enumerate();
        contenders.extend(peers.map(|(at, gateway)| Contender::Peer(at, gateway.peer().name.clone())));
        let mut names = BTreeSet::new();
        if let Some(name) = contenders.iter().map(Contender::name).find(|name| !names.insert(name.clone())) {
            return Err(CompareError::SameName(name));
        }
        notes.push(match flood::live_frames_refused(self.postern.topology())? {
            None => "overload is made inside the kernel (BPF_PROG_RUN, live frames); GRO is on where it is received"
                .to_owned(),
            Some(why) => format!("overload is sent through a packet socket: {why}"),
        });
        Ok(contenders)
    }

    fn takes_part(&self, contender: &Contender, line: Line) -> bool {
        match contender {
            Contender::Postern(_) | Contender::Reflector => true,
            Contender::NftablesPinned | Contender::NftablesInline => line.has_reference(),
            Contender::Peer(at, _) => line.has_reference() && self.peers[*at].peer().takes_part(line),
        }
    }

    /// One turn. Whatever forwards runs only while it is its turn.
    fn turn(&self, contender: &Contender, line: Line, how: How) -> Result<(Outcome, Used), CompareError> {
        let pinned = 1 << GATEWAY_CPU.min(cores() - 1);
        match contender {
            Contender::Postern(io) => {
                let polling = if line.wants_spin() && cores() > 1 { Polling::Spin } else { Polling::Adaptive };
                let room = if line == Line::ManyFlows { Room::Many } else { Room::Few };
                let mut running = self.postern.start_for(polling, io, room)?;
                let measured = self.watched(self.postern.topology(), line, how, Some(running.pid()));
                running.check()?;
                measured
            }
            Contender::Reflector => {
                let _running = self.reflector.start()?;
                self.watched(self.reflector.topology(), line, how, None)
            }
            Contender::NftablesPinned | Contender::NftablesInline => {
                let reference = self.reference.as_ref().ok_or_else(|| NatError::Nft("there is no nft".to_owned()))?;
                let cpus = if *contender == Contender::NftablesPinned { pinned } else { 0 };
                reference.topology().steer_gateway(cpus)?;
                self.watched(reference.topology(), line, how, None)
            }
            Contender::Peer(at, _) => {
                let gateway = &self.peers[*at];
                gateway.topology().steer_gateway(if gateway.peer().pinned { pinned } else { 0 })?;
                let running = gateway.start()?;
                let measured = self.watched(gateway.topology(), line, how, None);
                running.end()?;
                measured
            }
        }
    }

    /// Measures, and says what the machine did meanwhile.
    fn watched(
        &self,
        topology: &Topology,
        line: Line,
        how: How,
        gateway: Option<u32>,
    ) -> Result<(Outcome, Used), CompareError> {
        let before = Moment::now(&self.namespaces, gateway)?;
        let outcome = line::measure(topology, line, how)?;
        let after = Moment::now(&self.namespaces, gateway)?;
        Ok((outcome, before.until(&after)))
    }
}

/// The contenders, beginning with another one in each round: nobody is always measured first, or after the same one.
fn rotated(contenders: &[Contender], round: usize) -> impl Iterator<Item = &Contender> {
    let (late, early) = contenders.split_at(round % contenders.len().max(1));
    early.iter().chain(late)
}

/// The link `/proc/PID/ns/net` of processes in a namespace.
pub(crate) fn namespace_link(namespace: &Namespace) -> Result<String, NatError> {
    let link = namespace.run(|| std::fs::read_link("/proc/thread-self/ns/net"))?;
    let link = link.map_err(|error| NatError::Io("read the name of a namespace", error))?;
    Ok(link.display().to_string())
}

fn placement() -> Vec<String> {
    if cores() > 1 {
        vec![
            format!("clients, servers and generators on CPU {LOAD_CPU}, the gateway on CPU {GATEWAY_CPU}"),
            format!(
                "nftables, pinned: receive packet steering brings the kernel's work to CPU {GATEWAY_CPU}; inline: the sender's \
                 own CPU forwards in the middle of its send call, as veth does by default"
            ),
        ]
    } else {
        vec!["one CPU only: load and gateway share it, and nftables pinned equals inline".to_owned()]
    }
}

/// The four interfaces, as they are while nothing runs.
fn interfaces(topology: &Topology) -> Vec<Interface> {
    let of = |namespace, name| Interface::of(namespace, name).ok();
    [
        of(topology.client(), CLIENT_INTERFACE),
        of(topology.gateway(), GATEWAY_CLIENT_INTERFACE),
        of(topology.gateway(), GATEWAY_SERVER_INTERFACE),
        of(topology.server(), SERVER_INTERFACE),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_begins_with_another_contender_and_leaves_none_out() {
        let contenders =
            [Contender::Postern("af_packet".to_owned()), Contender::Reflector, Contender::Peer(0, "p".to_owned())];
        let order = |round| rotated(&contenders, round).map(Contender::name).collect::<Vec<_>>();
        assert_eq!(order(0), ["Postern, af_packet", "bare reflector, af_packet", "p"]);
        assert_eq!(order(1), ["bare reflector, af_packet", "p", "Postern, af_packet"]);
        assert_eq!(order(3), order(0));
    }
}
