//! Frames that are made inside the kernel against a gateway in namespaces: as fast as one CPU can, without stamps, so that
//! they are counted only, by the interface where they come out.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::TrafficError;
use super::lab::Lab;
use super::stream::{CHECK_SEQUENCE, Ends};
use crate::nat::live_frames::LiveFrames;
use crate::nat::processor::{LOAD_CPU, pin};
use crate::nat::topology::CLIENT_INTERFACE;
use crate::packet::{Carried, frame};

/// Flows, by their source ports.
const FLOWS: u32 = 64;
/// The source ports are from here on.
const FIRST_PORT: u16 = 20_000;
/// The largest frame: a page has room for no larger one.
const LARGEST: u16 = 3000;

/// What was sent and what came out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Overload {
    /// The size that was sent, frame check sequence included: a multiple of four.
    pub size: usize,
    /// Frames a second that were made.
    pub offered: f64,
    /// Frames a second that came out of the gateway.
    pub forwarded: f64,
}

/// Sends frames of about this size for `warm_up` and `window`. There must be no station at the gateway, which would take the
/// frames out of the kernel's hands one by one; the gateway must know its neighbours.
///
/// # Errors
/// When the kernel cannot or may not make frames, or nothing comes out.
pub fn overload(
    lab: &Lab,
    ends: &Ends,
    size: u16,
    warm_up: Duration,
    window: Duration,
) -> Result<Overload, TrafficError> {
    let length = usize::from(size.min(LARGEST)) / 4 * 4 - CHECK_SEQUENCE;
    let bytes = template(ends, length)?;
    let frames = lab.at_client(|| LiveFrames::new(CLIENT_INTERFACE, &bytes, FLOWS))??;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, frames) = (&stop, &frames);
        let sender = scope.spawn(move || {
            lab.at_client(|| -> Result<(), TrafficError> {
                pin(LOAD_CPU)?;
                while !stop.load(Ordering::Relaxed) {
                    frames.send()?;
                }
                Ok(())
            })?
        });
        std::thread::sleep(warm_up);
        let counted = || Ok::<_, TrafficError>((frames.count()?, lab.arrived()?));
        let measured = counted().and_then(|before| {
            let start = Instant::now();
            std::thread::sleep(window);
            let after = counted()?;
            Ok((before, after, start.elapsed().as_secs_f64()))
        });
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (before, after, seconds) = measured?;
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        let (offered, forwarded) = (rate(before.0, after.0), rate(before.1, after.1));
        if forwarded == 0.0 {
            return Err(TrafficError::NoPath(seconds as u64));
        }
        Ok(Overload { size: length + CHECK_SEQUENCE, offered, forwarded })
    })
}

/// The frame of the first flow. The program in the kernel takes each further port off the checksum, which must not wrap.
fn template(ends: &Ends, length: usize) -> Result<Vec<u8>, TrafficError> {
    let (std::net::IpAddr::V4(client), true) = (ends.clients, ends.destination.is_ipv4()) else {
        return Err(TrafficError::Argument("frames are made inside the kernel for IPv4 and UDP only".to_owned()));
    };
    let (own, device) = ends.macs;
    let frames = (FIRST_PORT..)
        .step_by(FLOWS as usize)
        .map(|port| frame((device, own), SocketAddrV4::new(client, port), ends.destination, Carried::Udp, length));
    let has_room = |bytes: &Vec<u8>| u32::from(u16::from_be_bytes([bytes[40], bytes[41]])) > FLOWS;
    frames.into_iter().find(has_room).ok_or(TrafficError::NoPath(0))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use postern_wire::MacAddress;

    use super::*;

    #[test]
    fn the_checksum_of_the_first_flow_is_large_enough_for_all() {
        for last in 0..=255 {
            let destination: SocketAddr = format!("10.71.1.{last}:5201").parse().unwrap();
            let macs = (MacAddress([2; 6]), MacAddress([4; 6]));
            let ends = Ends { macs, clients: "10.128.0.0".parse().unwrap(), hosts: 1, destination };
            let bytes = template(&ends, 60).unwrap();
            assert!(bytes.len() == 60 && u32::from(u16::from_be_bytes([bytes[40], bytes[41]])) > FLOWS);
        }
    }
}
