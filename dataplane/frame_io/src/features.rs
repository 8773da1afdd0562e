//! Offload features of an interface, by the kernel's names (`ethtool -k`; Documentation/networking/netdev-features.rst).
//!
//! What Postern changes on a port it puts back: the caller reads the features, writes down those that it will change, and
//! then changes them.

use crate::device::DeviceError;
use crate::interface::Requests;

/// Generic receive offload: TCP segments become super-frames before packet sockets see them. Off on a new veth.
pub const GRO: &str = "rx-gro";
/// The same for UDP datagrams that are not for the host.
pub const UDP_GRO_FORWARDING: &str = "rx-udp-gro-forwarding";
/// Large receive offload: merges so that it cannot be undone; must be off where packets are forwarded.
pub const LRO: &str = "rx-lro";
/// TCP segmentation offload over IPv4.
pub const TCP_SEGMENTATION: &str = "tx-tcp-segmentation";

const GET_STRINGS: u32 = 0x1b;
const GET_SET_INFO: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;
/// The string set of feature names (`ETH_SS_FEATURES`).
const FEATURE_NAMES: u32 = 4;
/// `ETH_GSTRING_LEN`, in words.
const NAME_WORDS: usize = 8;

/// One feature of an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feature {
    /// The kernel's name.
    pub name: String,
    /// Whether it is on.
    pub active: bool,
    /// Whether it can be switched.
    pub changeable: bool,
}

/// The features of an interface as they were when they were read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Features {
    features: Vec<Feature>,
}

impl Features {
    /// Reads the features of an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// If there is no such interface or the kernel refuses.
    pub fn read(interface: &str) -> Result<Self, DeviceError> {
        let requests = Requests::open(interface)?;
        // struct ethtool_sset_info: command, reserved, mask (2), then a count for each bit.
        let mut info = [GET_SET_INFO, 0, 1 << FEATURE_NAMES, 0, 0];
        call(&requests, &mut info, "count the features")?;
        let count = info[4] as usize;
        // struct ethtool_gstrings: command, set, count, then names of 32 bytes.
        let mut names = vec![0u32; 3 + count * NAME_WORDS];
        names[..3].copy_from_slice(&[GET_STRINGS, FEATURE_NAMES, count as u32]);
        call(&requests, &mut names, "name the features")?;
        // struct ethtool_gfeatures: command, blocks, then for each block of 32: available, requested, active, never changed.
        let blocks = count.div_ceil(32);
        let mut states = vec![0u32; 2 + blocks * 4];
        states[..2].copy_from_slice(&[GET_FEATURES, blocks as u32]);
        call(&requests, &mut states, "read the features")?;

        let bit = |at: usize, word: usize| states[2 + at / 32 * 4 + word] & 1 << (at % 32) != 0;
        let features = names[3..].chunks(NAME_WORDS).enumerate().map(|(at, name)| Feature {
            name: text(name),
            active: bit(at, 2),
            changeable: bit(at, 0) && !bit(at, 3),
        });
        Ok(Self { features: features.collect() })
    }

    /// The feature of this name, if this kernel knows it.
    #[must_use]
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }

    /// Whether the feature of this name is on; false if this kernel does not know it.
    #[must_use]
    pub fn is_active(&self, name: &str) -> bool {
        self.feature(name).is_some_and(|feature| feature.active)
    }
}

/// Switches features, and returns what was not as asked before: those features, and what they were.
///
/// # Errors
/// If there is no such interface, a feature is unknown or cannot be switched, or the kernel refuses.
pub fn set_features(interface: &str, wanted: &[(&str, bool)]) -> Result<Vec<(String, bool)>, DeviceError> {
    let before = Features::read(interface)?;
    let blocks = before.features.len().div_ceil(32);
    // struct ethtool_sfeatures: command, blocks, then for each block of 32: valid, requested.
    let mut request = vec![0u32; 2 + blocks * 2];
    request[..2].copy_from_slice(&[SET_FEATURES, blocks as u32]);
    let mut changed = Vec::new();
    for (name, on) in wanted {
        let unchangeable = |allowed| DeviceError::Setting {
            interface: interface.to_owned(),
            setting: "feature",
            value: u64::from(*on),
            allowed,
        };
        let at = before.features.iter().position(|feature| feature.name == *name);
        let at = at.ok_or_else(|| unchangeable("the kernel does not know this feature"))?;
        let feature = &before.features[at];
        if feature.active == *on {
            continue;
        }
        if !feature.changeable {
            return Err(unchangeable("the feature cannot be switched on this interface"));
        }
        let bit = 1 << (at % 32);
        request[2 + at / 32 * 2] |= bit;
        if *on {
            request[2 + at / 32 * 2 + 1] |= bit;
        }
        changed.push(((*name).to_owned(), feature.active));
    }
    if !changed.is_empty() {
        call(&Requests::open(interface)?, &mut request, "switch features")?;
    }
    Ok(changed)
}

/// Makes an ethtool request; `words` is the structure that its first word, the command, stands for.
fn call(requests: &Requests<'_>, words: &mut [u32], operation: &'static str) -> Result<(), DeviceError> {
    let mut argument = requests.request();
    argument.ifr_ifru.ifru_data = words.as_mut_ptr().cast::<libc::c_char>();
    // SAFETY: needed to make a system call; sound because the kernel reads and writes what the structure's own count says,
    // which each caller has made room for in `words`.
    unsafe { requests.call(libc::SIOCETHTOOL, &mut argument) }.map_err(|e| requests.error(operation, e))
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_its_features_by_name_and_a_fixed_one_is_not_switched() {
        let features = Features::read("lo").unwrap();
        assert!(features.feature(GRO).is_some_and(|feature| feature.changeable));
        assert!(features.feature("loopback").is_some_and(|feature| feature.active && !feature.changeable));
        assert!(features.feature("no-such-feature").is_none());
        let error = set_features("lo", &[("loopback", false)]).unwrap_err();
        let expected = "feature = 0 on interface \"lo\": the feature cannot be switched on this interface";
        assert_eq!(error.to_string(), expected);
        assert_eq!(set_features("lo", &[("loopback", true)]).unwrap(), []);
    }
}
