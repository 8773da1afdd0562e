//! What the demonstration shows of the control plane: a request that is pending and is accepted, a target that dies and
//! leaves, a consumer that is rejected, and what the traffic comes to.

use std::time::{Duration, Instant};

use postern_dataplane::inspection::CountersReport;
use postern_lab::control::{self, CONSUMERS, ControlError, PROVIDER};
use postern_lab::network::TARGETS;
use postern_lab::topology::Controlled;
use postern_lab::{NamespaceError, Topology};
use serde::Serialize;

use super::requests::{self, Conversation, Series};

/// Names of the provider's target groups.
const GROUPS: [&str; 3] = ["page", "echo", "bulk"];
/// The target that dies.
const VICTIM: usize = 2;
/// A target that dies is probed within an interval, and again after one; a probe of a host that is silent takes 2 s.
/// Machines that run this are busy.
const LEAVE: Duration = Duration::from_secs(60);
/// What a gateway reports and control does with it takes seconds at most.
const SOON: Duration = Duration::from_secs(30);

/// The gateway says what a target is when it has decided; its workers have the tables moments later.
const MOMENTS: Duration = Duration::from_millis(500);

/// What was seen of the control plane.
#[derive(Debug, Default, Serialize)]
pub(super) struct Tenants {
    /// States of the consumers' endpoints before the provider's word.
    pub(super) before: Vec<String>,
    /// From the provider's first word to the gateway forwarding for both, in milliseconds.
    pub(super) accepted_milliseconds: f64,
    /// From the death of a target to its leaving all groups, in seconds.
    pub(super) target_left_seconds: f64,
    /// What the consumers asked then.
    pub(super) without_target: Vec<Series>,
    /// From the provider's word to the end of the rejected consumer's flow, in milliseconds.
    pub(super) cut_milliseconds: f64,
    /// Datagrams of the other consumer that were answered meanwhile.
    pub(super) others_answered: u64,
    /// And those that were not.
    pub(super) others_lost: u64,
    /// What the consumers are to pay for.
    pub(super) usage: Vec<Usage>,
}

/// What a consumer's traffic came to.
#[derive(Debug, Serialize)]
pub(super) struct Usage {
    pub(super) consumer: String,
    pub(super) endpoint: String,
    /// As `postern usage` says it.
    pub(super) bytes: u64,
    /// As the gateway counts it.
    pub(super) gateway_bytes: u64,
    /// As the client counts it: without headers.
    pub(super) payload_bytes: u64,
}

/// Why the rest of it could not be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum TenantsError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("{0}")]
    Wrong(String),
}

/// Both endpoints wait for the provider's word, and get it.
pub(super) fn accept(lab: &Controlled, tenants: &mut Tenants) -> Result<(), TenantsError> {
    for (consumer, endpoint) in lab.declared.endpoints.iter().enumerate() {
        tenants.before.push(lab.commands.state(consumer, endpoint)?);
    }
    if tenants.before.iter().any(|state| state != "pendingAcceptance") {
        let states = tenants.before.join(" and ");
        return Err(TenantsError::Wrong(format!("the endpoints are {states} before the provider has accepted them")));
    }
    let start = Instant::now();
    control::accept(&lab.commands, &lab.declared)?;
    tenants.accepted_milliseconds = start.elapsed().as_secs_f64() * 1e3;
    // A target that is new gets no flows before it has passed a probe.
    for group in GROUPS {
        lab.commands.until("new targets pass a probe", LEAVE, |commands| {
            let targets = commands.run(PROVIDER, &["target", "list", group])?;
            let mut targets = targets.as_array().into_iter().flatten();
            Ok(targets.all(|target| target["health"] == "healthy" || target["health"] == "unavailable"))
        })?;
    }
    std::thread::sleep(MOMENTS);
    Ok(())
}

/// A target dies; both consumers go on with the others.
pub(super) fn lose_a_target(lab: &mut Topology, count: u16, tenants: &mut Tenants) -> Result<(), TenantsError> {
    let start = Instant::now();
    lab.target_mut(VICTIM).stop();
    let Some(controlled) = lab.control() else { return Ok(()) };
    for group in GROUPS {
        controlled.commands.until("a dead target leaves", LEAVE, |commands| {
            let targets = commands.run(PROVIDER, &["target", "list", group])?;
            let targets = targets.as_array().into_iter().flatten();
            let victim = TARGETS[VICTIM].to_string();
            let mut health = targets.filter(|target| target["address"] == victim.as_str());
            Ok(health.next().is_some_and(|target| target["health"] == "unhealthy"))
        })?;
    }
    std::thread::sleep(MOMENTS);
    tenants.target_left_seconds = start.elapsed().as_secs_f64();
    for client in lab.clients() {
        for ask in [requests::tcp, requests::udp] {
            tenants.without_target.push(ask(client, count)?);
        }
    }
    let victim = lab.targets()[VICTIM].node().name();
    for series in &mut tenants.without_target {
        if let Some(problem) = series.problems.pop() {
            return Err(TenantsError::Wrong(problem));
        }
        if series.by_target.contains_key(victim) {
            return Err(TenantsError::Wrong(format!("{victim}, which is dead, answered {}", series.consumer)));
        }
    }
    Ok(())
}

/// The provider rejects the second consumer: its live flow ends, the other's goes on.
pub(super) fn reject(lab: &Topology, tenants: &mut Tenants) -> Result<(), TenantsError> {
    let Some(controlled) = lab.control() else { return Ok(()) };
    let [first, second] = lab.clients().each_ref().map(Conversation::start);
    for conversation in [&first, &second] {
        if !conversation.goes_on(SOON) {
            return Err(TenantsError::Wrong("a conversation over UDP did not begin".to_owned()));
        }
    }
    let (service, endpoint) = (&controlled.declared.service, &controlled.declared.endpoints[1]);
    let start = Instant::now();
    controlled.commands.run(PROVIDER, &["service", "reject", service, endpoint, "--reason", "the trial is over"])?;
    if !second.falls_silent(SOON) {
        return Err(TenantsError::Wrong(format!("a live flow of {} went on after it was rejected", CONSUMERS[1])));
    }
    let cut = second.silent_since().map(|last| last.saturating_duration_since(start));
    tenants.cut_milliseconds = cut.unwrap_or_default().as_secs_f64() * 1e3;
    if !first.goes_on(SOON) {
        return Err(TenantsError::Wrong(format!("the flow of {} ended too", CONSUMERS[0])));
    }
    drop(second);
    (tenants.others_answered, tenants.others_lost) = first.stop();
    if tenants.others_lost > 0 {
        let lost = tenants.others_lost;
        return Err(TenantsError::Wrong(format!("{} lost {lost} datagrams by it", CONSUMERS[0])));
    }
    let state = controlled.commands.state(1, endpoint)?;
    if state != "rejected" {
        return Err(TenantsError::Wrong(format!("the rejected endpoint is {state}")));
    }
    Ok(())
}

/// What `postern usage` says is what the gateway has counted, and at least what the clients have.
pub(super) fn account(
    lab: &Controlled,
    payload: [u64; 2],
    counters: impl Fn() -> Result<CountersReport, String>,
    tenants: &mut Tenants,
) -> Result<(), TenantsError> {
    for (consumer, endpoint) in lab.declared.endpoints.iter().enumerate() {
        let mut usage = Usage {
            consumer: CONSUMERS[consumer].to_owned(),
            endpoint: endpoint.clone(),
            bytes: 0,
            gateway_bytes: 0,
            payload_bytes: payload[consumer],
        };
        let equal = lab.commands.until("usage shows what the gateway has counted", SOON, |commands| {
            usage.gateway_bytes = gateway_bytes(&counters().unwrap_or_default(), endpoint);
            usage.bytes = used(&commands.run(CONSUMERS[consumer], &["usage", "--by", "endpoint"])?, endpoint);
            Ok(usage.bytes == usage.gateway_bytes)
        });
        let problem = match equal {
            Err(ControlError::NotInTime { .. }) => {
                let Usage { bytes, gateway_bytes, .. } = usage;
                Some(format!("usage shows {bytes} bytes of {endpoint}, and the gateway counts {gateway_bytes}"))
            }
            Err(error) => return Err(error.into()),
            Ok(()) if usage.bytes < usage.payload_bytes || usage.bytes == 0 => {
                let Usage { bytes, payload_bytes, .. } = usage;
                Some(format!("usage shows {bytes} bytes of {endpoint}, and its client moved {payload_bytes}"))
            }
            Ok(()) => None,
        };
        tenants.usage.push(usage);
        if let Some(problem) = problem {
            return Err(TenantsError::Wrong(problem));
        }
    }
    Ok(())
}

fn gateway_bytes(counters: &CountersReport, endpoint: &str) -> u64 {
    let mine = counters.endpoints.iter().filter(|counted| counted.id == endpoint);
    mine.map(|counted| counted.traffic.bytes_forward + counted.traffic.bytes_reverse).sum()
}

fn used(answer: &serde_json::Value, endpoint: &str) -> u64 {
    let rows = answer["usage"].as_array().into_iter().flatten();
    rows.filter(|row| row["endpoint"] == endpoint).filter_map(|row| row["bytes"].as_u64()).sum()
}
