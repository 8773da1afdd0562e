//! How targets are probed, and what becomes of the flows of those that are not healthy, as it was checked.

use std::fmt;
use std::ops::RangeInclusive;

/// Source ports of probes: a block below those of any SNAT pool (1024…65535), so that no flow ever has one.
pub const PROBE_PORTS: RangeInclusive<u16> = 896..=1023;

/// A target group's rules about the health of its targets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthSettings {
    /// How targets are probed; `None`: they are not, and all are taken for usable.
    pub check: Option<HealthCheck>,
    /// How long flows of a target that became unhealthy may go on, 0…360000 seconds; `None`: they are reset at once.
    pub unhealthy_drain_seconds: Option<u32>,
    /// How long a target that was taken out of the group is draining, 0…3600 seconds.
    pub deregistration_delay_seconds: u16,
    /// Whether its flows end after that.
    pub deregistration_ends_flows: bool,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            check: None,
            unhealthy_drain_seconds: None,
            deregistration_delay_seconds: 300,
            deregistration_ends_flows: false,
        }
    }
}

/// What a group's targets are asked, how often, and how many answers count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    /// What a probe is.
    pub question: Question,
    /// Port to probe, 1…65535; `None`: each target's own.
    pub port: Option<u16>,
    /// Time from probe to probe, 5…300 seconds.
    pub interval_seconds: u16,
    /// How long a probe may take, 2…120 seconds.
    pub timeout_seconds: u16,
    /// Passes in a row until an unhealthy target is healthy again, 2…10.
    pub healthy_threshold: u8,
    /// Failures in a row until a target is unhealthy, 2…10.
    pub unhealthy_threshold: u8,
}

/// What a probe is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// Whether a TCP handshake succeeds.
    Connect,
    /// Whether the status of an HTTP/1.1 GET passes.
    Get {
        /// Whether within TLS; the certificate is not verified.
        tls: bool,
        /// What is asked for: begins with `/`, printable ASCII without blanks, at most 1,024 bytes.
        path: String,
        /// The status codes that pass.
        matcher: Matcher,
    },
}

/// Status codes that pass: ranges within 200…599, sorted by their beginning.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matcher(Vec<(u16, u16)>);

impl Matcher {
    /// Reads `200-399`, `200,204` or both mixed, with at most 32 parts; `None` if it is not that.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u16>().ok()).flatten().filter(|status| (200..=599).contains(status))
        };
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let part = part.trim();
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first.trim())?, number(last.trim())?),
                None => (number(part)?, number(part)?),
            };
            if first > last || ranges.len() == 32 {
                return None;
            }
            ranges.push((first, last));
        }
        ranges.sort_unstable();
        Some(Self(ranges))
    }

    /// Whether a status code passes.
    #[must_use]
    pub fn passes(&self, status: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&status))
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matcher_takes_ranges_and_single_codes_within_200_to_599_and_nothing_else() {
        let matcher = Matcher::parse("301, 200-204,599").unwrap();
        assert_eq!(matcher.to_string(), "200-204,301,599");
        let passing: Vec<u16> = (0..=u16::MAX).filter(|status| matcher.passes(*status)).collect();
        assert_eq!(passing, [200, 201, 202, 203, 204, 301, 599]);
        let many = vec!["200"; 33].join(",");
        for text in ["", ",", "199", "600", "200-", "-200", "300-200", "2000", "+20", "200;204", "0200", &many] {
            assert_eq!(Matcher::parse(text), None, "{text}");
        }
    }
}
