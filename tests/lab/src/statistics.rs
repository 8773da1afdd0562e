//! What the kernel counted: per interface, and per protocol of a namespace's own stack.

use std::collections::BTreeMap;

/// Counters of one interface, from `/proc/net/dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct InterfaceStatistics {
    /// Bytes received.
    pub receive_bytes: u64,
    /// Frames received.
    pub receive_packets: u64,
    /// Frames that could not be received.
    pub receive_errors: u64,
    /// Frames received and dropped by the kernel.
    pub receive_drops: u64,
    /// Bytes sent.
    pub transmit_bytes: u64,
    /// Frames sent.
    pub transmit_packets: u64,
    /// Frames that could not be sent.
    pub transmit_errors: u64,
    /// Frames dropped on the way out.
    pub transmit_drops: u64,
}

impl InterfaceStatistics {
    pub(crate) fn parse(text: &str) -> Vec<(String, Self)> {
        text.lines().skip(2).filter_map(Self::parse_line).collect()
    }

    fn parse_line(line: &str) -> Option<(String, Self)> {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        let number = |at: usize| numbers.get(at).copied();
        let statistics = Self {
            receive_bytes: number(0)?,
            receive_packets: number(1)?,
            receive_errors: number(2)?,
            receive_drops: number(3)?,
            transmit_bytes: number(8)?,
            transmit_packets: number(9)?,
            transmit_errors: number(10)?,
            transmit_drops: number(11)?,
        };
        Some((name.trim().to_owned(), statistics))
    }
}

/// Counters of a network stack, from `/proc/net/snmp` and `/proc/net/netstat`, by the kernel's names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProtocolStatistics {
    counters: BTreeMap<String, i64>,
}

impl ProtocolStatistics {
    /// Pairs of lines: `Tcp: InSegs OutSegs` and `Tcp: 5 6`.
    pub(crate) fn parse(text: &str) -> Self {
        let mut counters = BTreeMap::new();
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let (Some((protocol, names)), Some((_, values))) = (pair[0].split_once(':'), pair[1].split_once(':'))
            else {
                continue;
            };
            for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
                counters.insert(format!("{protocol}.{name}"), value.parse().unwrap_or(0));
            }
        }
        Self { counters }
    }

    /// A counter by protocol and name, such as `Tcp.RetransSegs`, `Tcp.InCsumErrors`, `Udp.InCsumErrors` or
    /// `TcpExt.TCPTimeouts`; 0 where the kernel has no such counter.
    #[must_use]
    pub fn counter(&self, name: &str) -> i64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// TCP segments and UDP datagrams that arrived with a wrong checksum.
    #[must_use]
    pub fn checksum_errors(&self) -> i64 {
        self.counter("Tcp.InCsumErrors") + self.counter("Udp.InCsumErrors")
    }

    /// TCP segments sent again.
    #[must_use]
    pub fn retransmits(&self) -> i64 {
        self.counter("Tcp.RetransSegs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_net_dev_is_read_by_column() {
        let text = "Inter-| Receive | Transmit\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let expected = InterfaceStatistics {
            receive_bytes: 1,
            receive_packets: 2,
            receive_errors: 3,
            receive_drops: 4,
            transmit_bytes: 9,
            transmit_packets: 10,
            transmit_errors: 11,
            transmit_drops: 12,
        };
        assert_eq!(InterfaceStatistics::parse(text), [("eth0".to_owned(), expected)]);
    }

    #[test]
    fn a_pair_of_lines_of_proc_net_snmp_names_its_counters() {
        let statistics =
            ProtocolStatistics::parse("Tcp: RetransSegs InCsumErrors\nTcp: 7 2\nUdp: InCsumErrors\nUdp: 3\n");
        assert_eq!(statistics.retransmits(), 7);
        assert_eq!(statistics.checksum_errors(), 5);
        assert_eq!(statistics.counter("Tcp.NoSuchName"), 0);
    }
}
