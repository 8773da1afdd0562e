//! Whatever happens to a gateway — frames that are nearly right, answers, time, new tables, neighbours that come and go,
//! ports that go down — its forwarders do not panic, account for every frame, share no port and keep within their room;
//! and when nobody sends any more, nothing is left.
//!
//! An input is a little program: see [`Gateway::step`].
#![no_main]

mod forward {
    pub(crate) mod gateway;
    pub(crate) mod packet;
    pub(crate) mod tables;
}

use forward::gateway::Gateway;
use forward::packet::Input;
use libfuzzer_sys::fuzz_target;
use postern_forwarding::Forwarder;

/// Most live flows of a worker: the least that is allowed.
const FLOWS: u32 = 1024;
/// Steps of one input at most, so that no input takes long.
const STEPS: usize = 400;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let workers = 1 + u16::from(input.byte() % 3);
    let mut memory: Vec<_> =
        (0..workers).map(|_| vec![0_u64; Forwarder::region_size(FLOWS, FLOWS).div_ceil(8)]).collect();
    let mut gateway = Gateway::new(&mut memory, FLOWS);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        gateway.step(&mut input);
        gateway.assert_sound();
    }
    gateway.fall_silent();
});
