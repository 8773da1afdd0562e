//! Whatever comes in: no panic, no state, the books balanced.

use std::cell::RefCell;

use proptest::prelude::*;

use super::bed::*;
use postern_wire::Offload;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_make_neither_panic_nor_flow(bytes in proptest::collection::vec(any::<u8>(), 0..200), port in 0u16..4) {
        BED.with_borrow_mut(|bed| {
            let flows = bed.total(|counters| counters.flows.get());
            bed.receive(postern_wire::PortIndex(port), &bytes);
            assert_eq!(bed.total(|counters| counters.flows.get()), flows);
        });
    }

    #[test]
    fn damaged_packets_of_live_flows_never_panic(
        damage in proptest::collection::vec((0usize..120, any::<u8>()), 0..6),
        cut in 0usize..120,
        raw in any::<[u8; 10]>(),
        offloaded: bool,
        kind in 0u8..4,
    ) {
        BED.with_borrow_mut(|bed| {
        bed.checks = true;
        let client = socket(CLIENT, 1);
        let query = bed.one(CONSUMER_A, &udp(CONSUMER_A, client, socket(ENDPOINT, 53), b"q"));
        let (port, mut bytes) = match kind {
            0 => (CONSUMER_A, udp(CONSUMER_A, client, socket(ENDPOINT, 53), b"some payload")),
            1 => (PROVIDER, udp(PROVIDER, TARGET, query.source(), b"some payload")),
            2 => (CONSUMER_A, tcp(CONSUMER_A, client, socket(ENDPOINT, 80), Flags::SYN, 1, 0, b"")),
            _ => (PROVIDER, {
                let mut bytes = query.bytes[..14].to_vec();
                bytes[..6].copy_from_slice(&port_mac(PROVIDER).0);
                bytes.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 10, 9, 0, 1, 10, 9, 0, 200, 3, 3, 0, 0, 0, 0, 0, 0]);
                bytes.extend(&query.bytes[14..]);
                bytes
            }),
        };
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut % 20));
        if bytes.len() >= 34 {
            let length = (bytes.len() - 14) as u16;
            bytes[16..18].copy_from_slice(&length.to_be_bytes());
            bytes[24..26].fill(0);
            let header = (usize::from(bytes[14] & 15) * 4).max(20);
            if bytes.len() >= 14 + header {
                let sum = postern_wire::checksum::checksum(&bytes[14..14 + header], 0);
                bytes[24..26].copy_from_slice(&sum.to_le_bytes());
            }
        }
        let offload = if offloaded {
            Offload {
                flags: raw[0] & 3,
                segmentation_type: raw[1] & 7,
                header_length: u16::from(raw[2]),
                segment_size: u16::from(raw[4]),
                checksum_start: u16::from(raw[6]) % 64,
                checksum_offset: u16::from(raw[8]) % 32,
            }
        } else {
            Offload::NONE
        };
        bed.unchecked(port, &bytes, offload);
        bed.assert_balanced();
        });
    }
}

thread_local! {
    /// One gateway for all cases: making one costs more than a case, and nothing that comes in may spoil it.
    static BED: RefCell<Bed> = RefCell::new(small());
}

fn small() -> Bed {
    let configuration = CONFIGURATION
        .replace("{pool}", POOL)
        .replace("{targets}", "[[target_group.target]]\naddress = \"10.9.0.11\"\nport = 8080\n");
    Bed::from_toml(1, &configuration, 1024)
}
