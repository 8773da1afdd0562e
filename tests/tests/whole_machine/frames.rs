//! Frames written by hand, and a switch that knows VLANs: some kernels have no 802.1Q interfaces.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use postern_frame_io::af_packet::{PacketReceiver, PacketTransmitter, ReceiverConfig, SEND_BUFFER};
use postern_frame_io::interface::Interface;
use postern_frame_io::poll::sleep;
use postern_frame_io::{BURST, Burst, Receive, Transmit, TransmitReport};
use postern_lab::Namespace;
use postern_wire::Frame;
use postern_wire::frame::{HEADROOM, NO_VLAN};

/// Sends frames as they are.
pub(crate) struct Sender(PacketTransmitter);

impl Sender {
    pub(crate) fn new(namespace: &Namespace, interface: &str) -> Self {
        let open = || PacketTransmitter::open(&Interface::by_name(interface).unwrap(), SEND_BUFFER).unwrap();
        Self(namespace.run(open).unwrap())
    }

    /// Sends a frame so often, as fast as it goes.
    pub(crate) fn flood(&mut self, bytes: &[u8], frames: usize) {
        let selected: [u8; BURST] = std::array::from_fn(|at| at as u8);
        let mut report = TransmitReport::new();
        for done in (0..frames).step_by(BURST) {
            let mut buffers = vec![[&[0; HEADROOM], bytes].concat(); BURST.min(frames - done)];
            let mut burst = Burst::new();
            for buffer in &mut buffers {
                let frame = Frame::new(buffer, HEADROOM, bytes.len()).unwrap();
                assert!(burst.push(frame).is_ok(), "a burst has room for a burst");
            }
            let count = burst.len();
            self.0.transmit(burst.frames_mut(), &selected[..count], &mut report);
            assert_eq!(report.refused(), 0, "{:?}", report.refusals().next());
        }
    }

    /// Sends a frame, Ethernet header included.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let mut buffer = [&[0; HEADROOM], bytes].concat();
        let frame = Frame::new(&mut buffer, HEADROOM, bytes.len()).unwrap();
        let mut report = TransmitReport::new();
        self.0.transmit(&mut [frame], &[0], &mut report);
        assert_eq!(report.refused(), 0, "{:?}", report.refusals().next());
    }
}

/// One port of a switch.
struct SwitchPort {
    receive: PacketReceiver,
    transmit: PacketTransmitter,
}

impl SwitchPort {
    fn new(name: &str) -> Self {
        let interface = Interface::by_name(name).unwrap();
        let config = ReceiverConfig { slots: 4096, large_buffers: 32, promiscuous: true, ..ReceiverConfig::default() };
        Self {
            receive: PacketReceiver::open(&interface, &config).unwrap(),
            transmit: PacketTransmitter::open(&interface, SEND_BUFFER).unwrap(),
        }
    }
}

/// Access ports, each in a VLAN or in the untagged network, and one trunk. Runs until it is dropped.
pub(crate) struct VlanSwitch {
    stop: Arc<AtomicBool>,
    strays: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl VlanSwitch {
    /// Joins interfaces of a namespace: `access` by name and VLAN (`None`: untagged on the trunk).
    pub(crate) fn start(namespace: &Namespace, access: &[(&'static str, Option<u16>)], trunk: &'static str) -> Self {
        let (stop, strays) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (mut ports, mut trunk) = namespace
            .run(|| (access.iter().map(|(name, _)| SwitchPort::new(name)).collect::<Vec<_>>(), SwitchPort::new(trunk)))
            .unwrap();
        let vlans: Vec<u16> = access.iter().map(|(_, vlan)| vlan.unwrap_or(NO_VLAN)).collect();
        let (ending, counting) = (stop.clone(), strays.clone());
        let thread = thread::spawn(move || {
            while !ending.load(Ordering::Relaxed) {
                let mut busy = false;
                for (port, vlan) in ports.iter_mut().zip(&vlans) {
                    busy |= to_trunk(&mut port.receive, *vlan, &mut trunk.transmit);
                }
                busy |= from_trunk(&mut trunk.receive, &vlans, &mut ports, &counting);
                if !busy {
                    let receivers = ports.iter().map(|port| &port.receive).chain([&trunk.receive]);
                    sleep(receivers.filter_map(|receiver| receiver.poll_fd()), None, Duration::from_millis(20));
                }
            }
        });
        Self { stop, strays, thread: Some(thread) }
    }

    /// Frames on the trunk in a VLAN that no access port has.
    pub(crate) fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }
}

impl Drop for VlanSwitch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn to_trunk(receive: &mut PacketReceiver, vlan: u16, trunk: &mut PacketTransmitter) -> bool {
    let mut burst = Burst::new();
    // An interface that goes is an interface without frames.
    if receive.receive(&mut burst).unwrap_or(0) == 0 {
        return false;
    }
    burst.frames_mut().iter_mut().for_each(|frame| frame.vlan = vlan);
    let all: Vec<u8> = (0..burst.len() as u8).collect();
    trunk.transmit(burst.frames_mut(), &all, &mut TransmitReport::new());
    true
}

fn from_trunk(receive: &mut PacketReceiver, vlans: &[u16], ports: &mut [SwitchPort], strays: &AtomicU64) -> bool {
    let mut burst = Burst::new();
    if receive.receive(&mut burst).unwrap_or(0) == 0 {
        return false;
    }
    let mut selections = vec![Vec::with_capacity(BURST); ports.len()];
    for (at, frame) in burst.frames_mut().iter_mut().enumerate() {
        match vlans.iter().position(|vlan| *vlan == frame.vlan) {
            Some(port) => selections[port].push(at as u8),
            None => drop(strays.fetch_add(1, Ordering::Relaxed)),
        }
        frame.vlan = NO_VLAN;
    }
    for (port, selection) in ports.iter_mut().zip(&selections) {
        if !selection.is_empty() {
            port.transmit.transmit(burst.frames_mut(), selection, &mut TransmitReport::new());
        }
    }
    true
}
