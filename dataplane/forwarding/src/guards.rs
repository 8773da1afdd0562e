//! Security groups: whether a client may open a flow. Established flows do not come here.

use std::net::IpAddr;

use postern_flows::WideAddresses;
use postern_tables::snapshot::{EndpointIndex, Listener, SecurityGroupIndex};
use postern_wire::{FlowKey, Frame, Parsed, ipv6};

use crate::forwarder::Forwarder;
use crate::verdict::DropReason;

/// The IP protocol of echo, as rules know it for both families.
const ICMP: u8 = 1;

impl Forwarder<'_> {
    /// Whether the client of a TCP or UDP packet may open a flow: a listener takes it, and the security groups of the endpoint
    /// and of the listener's load balancer let the client in.
    #[cold]
    #[inline(never)]
    pub(crate) fn guard(&self, frame: &Frame<'_>, index: EndpointIndex, parsed: &Parsed) -> Result<(), DropReason> {
        let endpoint = self.snapshot.endpoint(index).ok_or(DropReason::NotLocal)?;
        let listener = self.listener(index, parsed.key).ok_or(DropReason::NoListener)?;
        let client = source(frame, parsed).ok_or(DropReason::Truncated)?;
        let (protocol, port) = (parsed.key.protocol(), parsed.key.destination_port());
        for groups in [&endpoint.security_groups, &listener.security_groups] {
            if !self.passes(groups, protocol, client, port) {
                self.count_blocked(groups);
                return Err(DropReason::SecurityGroup);
            }
        }
        Ok(())
    }

    /// Whether a client may have an echo of the endpoint.
    #[cold]
    pub(crate) fn guard_echo(
        &self,
        frame: &Frame<'_>,
        index: EndpointIndex,
        parsed: &Parsed,
    ) -> Result<(), DropReason> {
        let endpoint = self.snapshot.endpoint(index).ok_or(DropReason::NotLocal)?;
        let client = source(frame, parsed).ok_or(DropReason::Truncated)?;
        if self.passes(&endpoint.security_groups, ICMP, client, 0) {
            return Ok(());
        }
        self.count_blocked(&endpoint.security_groups);
        Err(DropReason::SecurityGroup)
    }

    /// Whether a live flow could be opened now.
    #[cold]
    pub(crate) fn still_admits(&self, flow: u32) -> bool {
        let record = self.table.record(flow);
        let (index, key) = (EndpointIndex(record.endpoint), record.forward);
        let client = self.table.wide(flow).map_or(IpAddr::V4(key.source()), WideAddresses::client);
        let Some(endpoint) = self.snapshot.endpoint(index) else { return false };
        let of_balancer = self.listener(index, key).map(|listener| &*listener.security_groups).unwrap_or_default();
        [&endpoint.security_groups, of_balancer]
            .iter()
            .all(|groups| self.passes(groups, key.protocol(), client, key.destination_port()))
    }

    pub(crate) fn listener(&self, index: EndpointIndex, key: FlowKey) -> Option<&Listener> {
        let endpoint = self.snapshot.endpoint(index)?;
        let listener = self.snapshot.listener(endpoint.service, key.protocol(), key.destination_port())?;
        self.snapshot.listeners.get(listener.at())
    }

    fn passes(&self, groups: &[SecurityGroupIndex], protocol: u8, client: IpAddr, port: u16) -> bool {
        groups.is_empty() || self.snapshot.admits(groups, protocol, client, port)
    }

    fn count_blocked(&self, groups: &[SecurityGroupIndex]) {
        for group in groups {
            if let Some(counter) = self.counters.security_groups.get(group.at()) {
                counter.add(1);
            }
        }
    }
}

/// The source of a packet of either family.
fn source(frame: &Frame<'_>, parsed: &Parsed) -> Option<IpAddr> {
    if parsed.key.is_wide() {
        let addresses = ipv6::addresses(frame.bytes(), usize::from(parsed.l3))?;
        return Some(ipv6::source(addresses).into());
    }
    Some(parsed.key.source().into())
}
