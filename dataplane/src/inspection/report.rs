//! What a gateway says of itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use postern_forwarding::WorkerCounters;
use postern_forwarding::counters::{EndpointCounters, TargetCounters};
use postern_frame_io::{ReceiveStatistics, TransmitStatistics};
use postern_measurement::Counter;
use serde::{Deserialize, Serialize};

use crate::control_link::LinkCounters;
use crate::health::{GroupHealth, ProbeCounters};
use crate::link::LoopCounters;
use crate::neighbours::NeighbourCounters;

/// Counter or gauge, as Prometheus calls them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Comes and goes.
    Gauge,
}

/// How a field is called on the Prometheus page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// Name.
    pub name: &'static str,
    /// More labels, such as `direction="forward"`; mostly none.
    pub labels: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// What it counts.
    pub help: &'static str,
}

/// Something with a value now.
trait Value {
    fn value(&self) -> u64;
}

impl Value for Counter {
    fn value(&self) -> u64 {
        self.get()
    }
}

impl Value for bool {
    fn value(&self) -> u64 {
        u64::from(*self)
    }
}

impl Value for u64 {
    fn value(&self) -> u64 {
        *self
    }
}

/// One list makes the report, its sum, and its metrics.
macro_rules! report {
    ($(#[$doc:meta])* $name:ident of $source:ty {
        $($kind:ident $field:ident = $metric:literal $labels:literal $help:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
        pub struct $name {
            $(#[doc = $help] pub $field: u64,)*
        }

        impl $name {
            /// The metrics, in the order of [`Self::values`].
            pub const METRICS: &'static [Metric] = &[$(
                Metric { name: $metric, labels: $labels, kind: Kind::$kind, help: $help },
            )*];

            /// The values now.
            #[must_use]
            pub fn read(from: &$source) -> Self {
                Self { $($field: from.$field.value(),)* }
            }

            /// Adds another's values to these.
            pub fn add(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }

            /// The values, in order.
            #[must_use]
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$field,)*]
            }
        }
    };
}

report! {
    /// Frames and flows of one worker, or of all.
    FrameReport of WorkerCounters {
        Counter received = "postern_frames_received_total" "" "Frames that the devices delivered.",
        Counter handed_in = "postern_frames_handed_in_total" "" "Frames taken from other workers.",
        Counter handed_out = "postern_frames_handed_out_total" "" "Frames handed to other workers.",
        Counter forwarded = "postern_frames_forwarded_total" "" "Translated frames that the kernel accepted.",
        Counter answered = "postern_frames_answered_total" "" "Frames turned into an answer that the kernel accepted.",
        Counter punted = "postern_frames_punted_total" "" "Frames passed on to the threads for neighbours (ARP) and health checks (answers to probes).",
        Gauge held = "postern_frames_held" "" "Frames held now for a neighbour, or for the first fragment of their datagram.",
        Counter made = "postern_frames_made_total" "" "Frames of the forwarder's own making that the kernel accepted.",
        Counter made_refused = "postern_frames_made_refused_total" "" "Frames of the forwarder's own making that the kernel refused.",
        Gauge flows = "postern_flows" "" "Live flows.",
        Gauge half_open = "postern_flows_half_open" "" "Half-open TCP flows.",
        Counter flows_new = "postern_flows_new_total" "" "Flows made.",
        Counter flows_ended = "postern_flows_ended_total" "" "Flows ended.",
        Counter ports_early = "postern_snat_ports_early_total" "" "Ports given before their rest was over, because no other was free.",
        Counter rests_cut_short = "postern_snat_rests_cut_short_total" "" "Rests of ports that ended early because there was no room to remember more.",
        Counter half_open_evicted = "postern_flows_half_open_evicted_total" "" "Half-open flows evicted for their port, or for another one where there are as many as may be.",
        Counter proxy_headers = "postern_proxy_headers_total" "" "PROXY headers sent, first tries only.",
        Counter proxy_headers_repeated = "postern_proxy_headers_repeated_total" "" "PROXY headers sent once more, because no acknowledgement had come in time.",
        Counter proxy_headers_given_up = "postern_proxy_headers_given_up_total" "" "Flows ended because their target never acknowledged the PROXY header.",
        Counter flows_lent = "postern_flows_lent_total" "" "Flows made with a port of this worker for another worker's bucket.",
        Counter bursts = "postern_bursts_total" "" "Bursts processed.",
    }
}

report! {
    /// What a worker counts of itself.
    LoopReport of LoopCounters {
        Counter steps = "postern_worker_steps_total" "" "Looks at all ports, rings and timers.",
        Counter sleeps = "postern_worker_sleeps_total" "" "Sleeps in the kernel.",
        Counter restarts = "postern_worker_restarts_total" "" "Restarts after a panic.",
        Counter requests_lost = "postern_neighbour_requests_lost_total" "" "Neighbour requests for which there was no room.",
        Gauge generation = "postern_worker_generation" "" "Generation of the tables in use.",
        Gauge tables_longest = "postern_worker_tables_longest_nanoseconds" "" "Longest time that taking new tables took the worker.",
    }
}

report! {
    /// Traffic of one endpoint address. Packets and bytes are IP datagrams; a super-frame counts as its segments.
    EndpointTraffic of EndpointCounters {
        Counter packets_forward = "postern_endpoint_packets_total" "direction=\"forward\"" "Packets by direction; forward is from the consumer.",
        Counter packets_reverse = "postern_endpoint_packets_total" "direction=\"reverse\"" "Packets by direction; forward is from the consumer.",
        Counter bytes_forward = "postern_endpoint_bytes_total" "direction=\"forward\"" "Bytes by direction; forward is from the consumer.",
        Counter bytes_reverse = "postern_endpoint_bytes_total" "direction=\"reverse\"" "Bytes by direction; forward is from the consumer.",
        Gauge flows = "postern_endpoint_flows" "" "Live flows of the endpoint.",
        Counter flows_new = "postern_endpoint_flows_new_total" "" "Flows made for the endpoint.",
        Counter drops = "postern_endpoint_frames_dropped_total" "" "Frames of the endpoint that were dropped.",
        Counter port_allocation_errors = "postern_endpoint_port_allocation_errors_total" "" "Flows refused because all ports toward their target were in use.",
        Counter client_resets = "postern_endpoint_resets_total" "from=\"client\"" "RSTs by who sent them.",
        Counter target_resets = "postern_endpoint_resets_total" "from=\"target\"" "RSTs by who sent them.",
        Counter own_resets = "postern_endpoint_resets_total" "from=\"gateway\"" "RSTs by who sent them.",
    }
}

report! {
    /// Traffic of one target.
    TargetTraffic of TargetCounters {
        Counter packets_forward = "postern_target_packets_total" "direction=\"forward\"" "Packets by direction; forward is to the target.",
        Counter packets_reverse = "postern_target_packets_total" "direction=\"reverse\"" "Packets by direction; forward is to the target.",
        Counter bytes_forward = "postern_target_bytes_total" "direction=\"forward\"" "Bytes by direction; forward is to the target.",
        Counter bytes_reverse = "postern_target_bytes_total" "direction=\"reverse\"" "Bytes by direction; forward is to the target.",
        Gauge flows = "postern_target_flows" "" "Live flows of the target.",
        Counter flows_new = "postern_target_flows_new_total" "" "Flows made toward the target.",
        Counter port_allocation_errors = "postern_target_port_allocation_errors_total" "" "Flows refused because all ports toward the target were in use.",
    }
}

report! {
    /// What a port's devices received.
    ReceivedReport of ReceiveStatistics {
        Counter delivered = "postern_device_frames_delivered_total" "" "Frames that the device delivered.",
        Counter kernel_drops = "postern_device_kernel_drops_total" "" "Frames that the kernel dropped because the ring or the socket's queue was full.",
        Counter large = "postern_device_large_frames_total" "" "Frames larger than a slot of the ring.",
        Counter pairing_mismatches = "postern_device_pairing_mismatches_total" "" "Large frames dropped because what was received was not the slot's frame.",
        Counter receive_failures = "postern_device_receive_failures_total" "" "Large frames dropped because receiving them failed.",
        Counter unpaired = "postern_device_unpaired_total" "" "Large frames dropped while the order of slots and queue was being found again.",
        Counter resynchronisations = "postern_device_resynchronisations_total" "" "How often the receive queue was emptied to find its order again.",
        Counter truncated = "postern_device_truncated_total" "" "Frames dropped because they were cut short.",
    }
}

report! {
    /// What a port's devices sent.
    SentReport of TransmitStatistics {
        Counter accepted = "postern_device_frames_accepted_total" "" "Frames that the kernel accepted.",
        Counter refused = "postern_device_frames_refused_total" "" "Frames that the kernel refused.",
        Counter calls = "postern_device_send_calls_total" "" "System calls that sent frames.",
        Counter waits = "postern_device_send_waits_total" "" "How often a full send buffer was waited for.",
    }
}

report! {
    /// What the owner of the neighbour tables counted.
    NeighbourReport of NeighbourCounters {
        Counter answered = "postern_arp_answered_total" "" "ARP requests for addresses of ours that were answered.",
        Counter asked = "postern_arp_asked_total" "" "ARP requests that we sent.",
        Counter announced = "postern_arp_announced_total" "" "Announcements that we sent.",
        Counter unsolicited = "postern_arp_unsolicited_total" "" "ARP replies that nobody asked for; they changed nothing.",
        Counter conflicts = "postern_arp_conflicts_total" "" "ARP frames in which another station claims an address of ours.",
        Counter ignored = "postern_arp_ignored_total" "" "Frames that are no ARP or belong to no attachment.",
        Counter unreachable = "postern_neighbours_unreachable_total" "" "Next hops that did not answer.",
        Counter refused = "postern_neighbours_refused_total" "" "Requests for next hops that were refused because the table was full.",
    }
}

report! {
    /// What the link to control counted.
    ControlReport of LinkCounters {
        Gauge connected = "postern_control_connected" "" "Whether the stream to control is open: 1 or 0.",
        Gauge generation = "postern_control_generation" "" "Generation of control's catalog that is applied and on disk.",
        Counter streams = "postern_control_streams_total" "" "Streams that control welcomed.",
        Counter applied = "postern_control_updates_applied_total" "" "Updates of control that were applied.",
        Counter refused = "postern_control_updates_refused_total" "" "Updates of control that were refused; the tables before them stayed.",
        Counter disk_failures = "postern_control_disk_failures_total" "" "Failures to write applied tables to the state directory.",
    }
}

report! {
    /// The health of one target group.
    GroupReport of GroupHealth {
        Gauge healthy = "postern_target_group_healthy_targets" "" "Targets that pass their health checks (HealthyHostCount).",
        Gauge unhealthy = "postern_target_group_unhealthy_targets" "" "Targets that do not, draining ones included (UnHealthyHostCount).",
        Gauge fails_open = "postern_target_group_fails_open" "" "1 while no target is known to be healthy, so that new flows go to all.",
        Counter unhealthy_routing_flows = "postern_target_group_unhealthy_routing_flows_total" "" "Flows that began while no target was known to be healthy (UnhealthyRoutingFlowCount).",
    }
}

report! {
    /// What the prober counted.
    ProbeReport of ProbeCounters {
        Counter passed = "postern_probes_passed_total" "" "Health probes that passed.",
        Counter failed = "postern_probes_failed_total" "" "Health probes that failed.",
        Counter late = "postern_probes_late_total" "" "Health probes that began late because too many were on their way.",
        Counter sent = "postern_probe_packets_sent_total" "" "Packets of health probes.",
        Counter received = "postern_probe_packets_received_total" "" "Packets of targets that belong to a health probe.",
        Counter stray = "postern_probe_packets_stray_total" "" "Packets to the ports of health probes that belong to none, or are broken.",
        Counter lost = "postern_probe_packets_lost_total" "" "Packets of health probes for which there was no room.",
    }
}

/// Every counter.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CountersReport {
    /// Name of the gateway.
    pub gateway: String,
    /// Generation of the published tables.
    pub generation: u64,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// All workers together.
    pub total: WorkerReport,
    /// By worker.
    pub workers: Vec<WorkerReport>,
    /// By endpoint address.
    pub endpoints: Vec<EndpointReport>,
    /// By target.
    pub targets: Vec<TargetReport>,
    /// By target group.
    #[serde(default)]
    pub target_groups: Vec<TargetGroupReport>,
    /// By security group.
    #[serde(default)]
    pub security_groups: Vec<SecurityGroupReport>,
    /// Health probes.
    #[serde(default)]
    pub probes: ProbeReport,
    /// By port.
    pub ports: Vec<PortReport>,
    /// ARP and next hops.
    pub neighbours: NeighbourReport,
    /// The link to control, if there is one.
    #[serde(default)]
    pub control: Option<ControlReport>,
}

impl WorkerReport {
    /// The share of the frames that came in by a device and went over a handoff ring, in thousandths, 0…1000.
    #[must_use]
    pub fn handoff_permille(&self) -> u64 {
        (self.frames.handed_out.min(self.frames.received) * 1000).checked_div(self.frames.received).unwrap_or(0)
    }
}

/// What one worker counted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Frames and flows.
    pub frames: FrameReport,
    /// Drops by reason, every reason.
    pub drops: BTreeMap<String, u64>,
    /// Frames that came in minus frames that are accounted for: zero whenever no burst is in hand.
    pub imbalance: i64,
    /// The loop.
    pub worker: LoopReport,
    /// Frames of every kind that the kernel refused, by errno.
    pub refused: BTreeMap<String, u64>,
}

/// One endpoint address.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointReport {
    /// `vpce-…`.
    pub id: String,
    /// The consumer's VPC.
    pub vpc: String,
    /// The address.
    pub address: IpAddr,
    /// What was counted, all workers together.
    pub traffic: EndpointTraffic,
    /// Its drops by reason, as far as the workers had room to tell them apart.
    pub drops: BTreeMap<String, u64>,
}

/// One target.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TargetReport {
    /// Its group.
    pub group: String,
    /// The provider's VPC.
    pub vpc: String,
    /// Address and port.
    pub target: SocketAddr,
    /// What was counted, all workers together.
    pub traffic: TargetTraffic,
}

/// One security group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecurityGroupReport {
    /// Its name.
    pub group: String,
    /// First packets and echo requests that it has not let in, all workers together.
    pub blocked: u64,
}

/// One target group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TargetGroupReport {
    /// Its name.
    pub group: String,
    /// In sum.
    pub health: GroupReport,
    /// Targets by the name of their state.
    pub states: BTreeMap<String, u64>,
}

/// One port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortReport {
    /// The interface.
    pub interface: String,
    /// The back end of its devices.
    #[serde(default)]
    pub io: String,
    /// Received, all workers together; as of the last tenth of a second.
    pub received: ReceivedReport,
    /// Sent, all workers together; as of the last tenth of a second.
    pub sent: SentReport,
}

/// One flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowReport {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The consumer's VPC.
    pub vpc: String,
    /// The client.
    pub client: SocketAddr,
    /// The endpoint's id; empty if it was deleted.
    pub endpoint: String,
    /// The endpoint's address and the port.
    pub service: SocketAddr,
    /// The address and port that the target sees.
    pub snat: SocketAddr,
    /// The target.
    pub target: SocketAddr,
    /// TCP state, or `udp`.
    pub state: String,
    /// Seconds since the first packet.
    pub age_seconds: u32,
    /// Seconds since the last packet.
    pub idle_seconds: u32,
    /// Packets from the client.
    pub packets_forward: u64,
    /// Bytes from the client.
    pub bytes_forward: u64,
    /// Packets to the client.
    pub packets_reverse: u64,
    /// Bytes to the client.
    pub bytes_reverse: u64,
    /// The worker that holds it.
    pub worker: usize,
}

/// How the gateway is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StatusReport {
    /// Name of the gateway.
    pub gateway: String,
    /// Process id.
    pub process: u32,
    /// Generation of the published tables.
    pub generation: u64,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Ports.
    pub ports: Vec<PortStatus>,
    /// Workers.
    pub workers: Vec<WorkerStatus>,
    /// Known next hops.
    pub neighbours: Vec<NeighbourStatus>,
    /// Next hops that are being looked for.
    pub unresolved: usize,
    /// What is seen of the targets' health.
    #[serde(default)]
    pub targets: Vec<TargetStatus>,
    /// The last reload that was refused since the last that was not.
    pub refused_reload: Option<String>,
    /// The link to control, if there is one.
    #[serde(default)]
    pub control: Option<ControlStatus>,
}

/// How the link to control is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ControlStatus {
    /// Where control is, or should be.
    pub address: String,
    /// Whether the stream is open.
    pub connected: bool,
    /// Identifier of the catalog that the tables came from; empty: there were none.
    pub catalog: String,
    /// Generation that is applied and on disk.
    pub generation: u64,
    /// What went wrong last, since the stream was opened or lost.
    pub last_error: Option<String>,
}

/// A port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortStatus {
    /// The interface.
    pub interface: String,
    /// Whether the host uses it too.
    pub shared: bool,
    /// The back end of its devices.
    #[serde(default)]
    pub io: String,
    /// Whether it can send.
    pub up: bool,
    /// Largest IP datagram, in bytes.
    pub mtu: u16,
    /// Its MAC address.
    pub mac: String,
}

/// A worker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub worker: usize,
    /// Generation of the tables in use.
    pub generation: u64,
    /// Live flows.
    pub flows: u64,
    /// Restarts after a panic.
    pub restarts: u64,
}

/// What is seen of a target's health.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TargetStatus {
    /// Its group.
    pub group: String,
    /// Address and port.
    pub target: SocketAddr,
    /// The name of its state.
    pub state: String,
    /// Why it is not healthy; empty where it is.
    pub reason: String,
}

/// A next hop.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NeighbourStatus {
    /// Name of the attachment.
    pub attachment: String,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: String,
}
