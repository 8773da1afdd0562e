//! Kernel to frames: devices, rings, fan-out, bpf(2), pinning. All unsafe code lives here.
