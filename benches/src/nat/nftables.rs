//! The reference: the kernel's own NAT, by the `nft` program.

use std::io::Write;
use std::process::{Command, Stdio};

use super::NatError;
use super::topology::{ENDPOINT, GATEWAY_SERVER_INTERFACE, TARGET};

/// Whether there is an `nft` that runs.
#[must_use]
pub fn available() -> bool {
    let version = Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// The reference's rules: the endpoint's address becomes the target's, the client's becomes the gateway's.
#[must_use]
pub fn rules() -> String {
    format!(
        "table ip postern_reference {{\n chain before {{\n  type nat hook prerouting priority dstnat; policy accept;\n  \
         ip daddr {ENDPOINT} dnat to {TARGET}\n }}\n chain after {{\n  type nat hook postrouting priority srcnat; \
         policy accept;\n  oifname \"{GATEWAY_SERVER_INTERFACE}\" masquerade\n }}\n}}\n"
    )
}

/// Applies rules in the calling thread's namespace.
///
/// # Errors
/// When `nft` cannot be run or refuses, with its words.
pub fn apply(rules: &str) -> Result<(), NatError> {
    let run = |error| NatError::Io("run nft", error);
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(run)?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(rules.as_bytes()).map_err(run)?;
    }
    let output = nft.wait_with_output().map_err(run)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(NatError::Nft(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// Packets that a named counter of the calling thread's namespace has seen.
///
/// # Errors
/// When there is no such counter.
pub fn counter(family: &str, table: &str, name: &str) -> Result<u64, NatError> {
    let output = Command::new("nft")
        .args(["list", "counter", family, table, name])
        .output()
        .map_err(|error| NatError::Io("run nft", error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    packets(&text).ok_or_else(|| NatError::Nft(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn packets(listing: &str) -> Option<u64> {
    let mut words = listing.split_whitespace();
    words.by_ref().find(|word| *word == "packets")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packets_of_a_counter_listing_are_found() {
        let listing = "table netdev a {\n\tcounter arrived {\n\t\tpackets 12345 bytes 67\n\t}\n}\n";
        assert_eq!(packets(listing), Some(12_345));
        assert_eq!(packets(""), None);
    }
}
