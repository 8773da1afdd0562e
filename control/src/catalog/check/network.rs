//! VPCs, attachments, pools, endpoints: what has addresses.

use std::net::IpAddr;

use postern_tables::check::range::{BANDWIDTH, FLOWS, NEW_FLOWS};
use postern_tables::check::text;
use postern_tables::error::Problem;
use postern_wire::MacAddress;

use super::super::access::{called, sees};
use super::super::addresses::{Network, Prefix, unicast};
use super::super::model::{AttachmentSpec, EndpointSpec, EndpointStatus, Kind, SnatPoolSpec, VpcSpec};
use super::super::{Code, Refusal};
use super::{Checker, number, unique, zone};

/// Most prefixes of a VPC or an attachment, and routes of an attachment.
const PREFIXES: usize = 1024;
/// Most addresses of a pool.
const POOL: usize = 4096;
/// Most addresses of an endpoint.
const ENDPOINT: usize = 16;

impl Checker<'_, '_> {
    pub(super) fn vpc(&self, spec: &VpcSpec) -> Result<(), Refusal> {
        let prefixes = prefixes("spec.prefixes", &spec.prefixes)?;
        for (at, prefix) in prefixes.iter().enumerate() {
            if let Some(other) = prefixes[..at].iter().find(|other| other.overlaps(*prefix)) {
                let problem = format_args!("overlaps {other}; prefixes of a VPC must not overlap");
                return Err(Refusal::value(format!("spec.prefixes[{at}]"), prefix, problem));
            }
        }
        Ok(())
    }

    pub(super) fn attachment(&self, id: &str, spec: &AttachmentSpec) -> Result<(), Refusal> {
        const PORT: &str = "the name of an interface; allowed are 1 to 15 bytes without blanks, / and :";
        let fits = |character: char| !character.is_whitespace() && !character.is_control() && !"/:".contains(character);
        let port = spec.port.as_str();
        if port.is_empty() || port.len() > 15 || !port.chars().all(fits) || [".", ".."].contains(&port) {
            return Err(Refusal::form("spec.port", port, PORT));
        }
        if let Some(vlan) = spec.vlan {
            number(|| "spec.vlan".to_owned(), vlan, (1, 4094), "")?;
        }
        if let Some(mtu) = spec.mtu {
            number(|| "spec.mtu".to_owned(), mtu, (576, 65_535), " bytes")?;
        }
        if let Some(mac) = &spec.mac
            && !mac.parse::<MacAddress>().is_ok_and(|mac| !mac.is_group() && mac != MacAddress::ZERO)
        {
            return Err(Refusal::form("spec.mac", mac, "a unicast MAC address such as 02:00:00:00:00:01"));
        }
        let on_link = prefixes("spec.prefixes", &spec.prefixes)?;
        unique(on_link.iter(), |at| format!("spec.prefixes[{at}]"), ToString::to_string)?;
        self.routes(spec, &on_link)?;
        self.beside_others(id, spec, &on_link)
    }

    fn routes(&self, spec: &AttachmentSpec, on_link: &[Prefix]) -> Result<(), Refusal> {
        few("spec.routes", spec.routes.len(), PREFIXES, " routes")?;
        let mut destinations = Vec::new();
        for (at, route) in spec.routes.iter().enumerate() {
            let destination = Prefix::parse(|| format!("spec.routes[{at}].destination"), &route.destination)?;
            destinations.push(destination);
            let Some(via) = route.via else { continue };
            let field = || format!("spec.routes[{at}].via");
            unicast(field, via)?;
            if !on_link.iter().any(|prefix| prefix.contains(via)) {
                let problem = "is not in an on-link prefix of the attachment; a router must be a neighbour";
                return Err(Refusal::value(field(), via, problem));
            }
            if via.is_ipv6() != destination.is_ipv6() {
                return Err(Refusal::value(field(), via, "is not of the family of the route's destination"));
            }
        }
        let both = on_link.iter().copied().chain(destinations);
        let field = |at: usize| match at.checked_sub(on_link.len()) {
            Some(at) => format!("spec.routes[{at}].destination"),
            None => format!("spec.prefixes[{at}]"),
        };
        unique(both, field, ToString::to_string)
    }

    /// An attachment beside the others of its gateway.
    fn beside_others(&self, id: &str, spec: &AttachmentSpec, on_link: &[Prefix]) -> Result<(), Refusal> {
        let others = self.draft.users_of_kind(&spec.gateway, Kind::Attachment).filter(|&other| other != id);
        for other in others.filter_map(|id| self.draft.object(Kind::Attachment, id)) {
            let Some(attachment) = other.as_attachment() else { continue };
            if (&attachment.spec.port, attachment.spec.vlan) == (&spec.port, spec.vlan) {
                let tag = spec.vlan.map_or("untagged frames".to_owned(), |vlan| format!("VLAN {vlan}"));
                let problem =
                    format!("is used for {tag} by {}; a port and VLAN belong to one attachment", called(other));
                return Err(Refusal::value("spec.port", &spec.port, problem));
            }
            if attachment.spec.vpc != spec.vpc {
                continue;
            }
            let routes = attachment.spec.routes.iter().map(|route| &route.destination);
            let theirs = attachment.spec.prefixes.iter().chain(routes);
            let theirs: Vec<_> = theirs.filter_map(|text| Prefix::parse(String::new, text).ok()).collect();
            let routes = spec.routes.iter().filter_map(|route| Prefix::parse(String::new, &route.destination).ok());
            if let Some(twice) = on_link.iter().copied().chain(routes).find(|prefix| theirs.contains(prefix)) {
                let problem = format!("is also behind {} of the same gateway and VPC", called(other));
                return Err(Refusal::value("spec.prefixes", twice, problem));
            }
        }
        Ok(())
    }

    /// What could not go on without an attachment: addresses that its gateway holds in its VPC by no other.
    pub(super) fn only_through(&self, id: &str) -> Vec<(Kind, &str)> {
        let before = self.draft.before(Kind::Attachment, id).and_then(|before| before.as_attachment());
        let Some(spec) = before.map(|before| &before.spec) else { return Vec::new() };
        let others = self.draft.users_of_kind(&spec.vpc, Kind::Attachment);
        let mut others = others.filter_map(|id| self.draft.object(Kind::Attachment, id)?.as_attachment());
        if others.any(|other| other.spec.gateway == spec.gateway) {
            return Vec::new();
        }
        let held = |(kind, id): &(Kind, &str)| match self.draft.object(*kind, id).map(|object| &**object) {
            Some(super::AnyObject::Endpoint(endpoint)) => {
                endpoint.spec.vpc == spec.vpc
                    && endpoint.status.addresses.iter().any(|held| held.gateway.as_ref() == Some(&spec.gateway))
            }
            Some(super::AnyObject::SnatPool(pool)) => {
                pool.spec.vpc == spec.vpc && pool.status.holders.values().any(|holder| *holder == spec.gateway)
            }
            _ => false,
        };
        self.draft.users(&spec.gateway).filter(held).collect()
    }

    pub(super) fn snat_pool(&self, id: &str, spec: &SnatPoolSpec) -> Result<(), Refusal> {
        few("spec.addresses", spec.addresses.len(), POOL, " addresses")?;
        if let Some(ports) = &spec.ports
            && text::port_range(ports).is_none()
        {
            return Err(Refusal::form(
                "spec.ports",
                ports,
                "a range of ports; allowed is FIRST-LAST within 1024-65535",
            ));
        }
        if let Some(rest) = spec.rest_seconds {
            number(|| "spec.rest_seconds".to_owned(), rest, (0, 240), " seconds")?;
        }
        unique(spec.addresses.iter(), |at| format!("spec.addresses[{at}]"), ToString::to_string)?;
        if let Some(at) = spec.draining.iter().position(|address| !spec.addresses.contains(address)) {
            let field = format!("spec.draining[{at}]");
            return Err(Refusal::value(field, spec.draining[at], "is for an address that is not in the pool"));
        }
        if let Some(address) = spec.pinned.keys().find(|address| !spec.addresses.contains(address)) {
            let field = format!("spec.pinned.{address}");
            return Err(Refusal::value(field, &spec.pinned[address], "is for an address that is not in the pool"));
        }
        let Some(network) = self.network(&spec.vpc) else { return Ok(()) };
        for (address, gateway) in &spec.pinned {
            self.attached(&network, &format!("spec.pinned.{address}"), gateway)?;
        }
        let on_link = network.on_link();
        let six = spec.addresses.first().is_some_and(IpAddr::is_ipv6);
        for (at, &address) in spec.addresses.iter().enumerate() {
            let field = || format!("spec.addresses[{at}]");
            if address.is_ipv6() != six {
                return Err(Refusal::value(
                    field(),
                    address,
                    "is of another family than the first; a pool has one family",
                ));
            }
            self.claimed(&network, (Kind::SnatPool, id), &field, address)?;
            if !network.reaches.is_empty() && !on_link.iter().any(|prefix| prefix.contains(address)) {
                let prefixes: Vec<_> = on_link.iter().map(ToString::to_string).collect();
                let prefixes = if prefixes.is_empty() { "they have none".to_owned() } else { prefixes.join(", ") };
                let problem = format!(
                    "is not in an on-link prefix of an attachment to VPC {} ({prefixes}), so no target would find it",
                    network.vpc
                );
                return Err(Refusal::value(field(), address, problem));
            }
            let within = network.prefixes.iter().any(|prefix| prefix.contains(address));
            if network.reaches.is_empty() && !within {
                let problem = format!("is not in the prefixes of VPC {}, which has no attachment yet", network.vpc);
                return Err(Refusal::value(field(), address, problem));
            }
        }
        Ok(())
    }

    pub(super) fn endpoint(&self, id: &str, spec: &EndpointSpec, status: &EndpointStatus) -> Result<(), Refusal> {
        few("spec.addresses", spec.addresses.len(), ENDPOINT, " addresses")?;
        few("spec.security_groups", spec.security_groups.len(), 16, " security groups")?;
        unique(spec.security_groups.iter(), |at| format!("spec.security_groups[{at}]"), |id| (*id).clone())?;
        if let Some(mtu) = spec.mtu {
            number(|| "spec.mtu".to_owned(), mtu, (576, 65_535), " bytes")?;
        }
        if let Some(budget) = spec.snat_port_budget {
            number(|| "spec.snat_port_budget".to_owned(), budget, FLOWS, " ports")?;
        }
        if let Some(flows) = spec.max_flows {
            number(|| "spec.max_flows".to_owned(), flows, FLOWS, " flows")?;
        }
        if let Some(flows) = spec.new_flows_per_second {
            number(|| "spec.new_flows_per_second".to_owned(), flows, NEW_FLOWS, " flows")?;
        }
        if let Some(bytes) = spec.bytes_per_second {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            number(|| "spec.bytes_per_second".to_owned(), bytes, BANDWIDTH, " bytes")?;
        }
        let Some(network) = self.network(&spec.vpc) else { return Ok(()) };
        let field = |at: usize| format!("spec.addresses[{at}].address");
        for (at, wanted) in spec.addresses.iter().enumerate() {
            zone(format!("spec.addresses[{at}].zone"), wanted.zone.as_deref())?;
            if let Some(gateway) = &wanted.gateway {
                self.attached(&network, &format!("spec.addresses[{at}].gateway"), gateway)?;
            }
        }
        let zones = spec.addresses.iter().filter_map(|wanted| wanted.zone.as_ref());
        unique(zones, |_| "spec.addresses".to_owned(), |zone| format!("zone \"{zone}\""))?;
        unique(status.addresses.iter().map(|held| held.address), field, ToString::to_string)?;
        for (at, address) in status.addresses.iter().map(|held| held.address).enumerate() {
            let field = || field(at);
            self.claimed(&network, (Kind::Endpoint, id), &field, address)?;
            if !network.prefixes.iter().any(|prefix| prefix.contains(address)) {
                let prefixes: Vec<_> = network.prefixes.iter().map(ToString::to_string).collect();
                let problem = format!("is not in the prefixes of VPC {} ({})", network.vpc, prefixes.join(", "));
                return Err(Refusal::value(field(), address, problem));
            }
        }
        Ok(())
    }

    /// An address that is to be this object's alone.
    fn claimed(
        &self,
        network: &Network,
        own: (Kind, &str),
        field: &dyn Fn() -> String,
        address: IpAddr,
    ) -> Result<(), Refusal> {
        unicast(field, address)?;
        if let Some(what) = network.unfit(address) {
            return Err(Refusal::value(field(), address, Problem::Address { what }));
        }
        let Some((kind, id)) = self.draft.claims(&network.vpc, address).find(|other| *other != own) else {
            return Ok(());
        };
        let object = self.draft.object(kind, id).filter(|object| sees(self.caller, object));
        let by = object.map_or("an object of another principal".to_owned(), |object| called(object));
        let users = object.map(|object| object.id().to_owned()).into_iter().collect();
        let problem = format!("is already used in VPC {} by {by}; each address may be used once", network.vpc);
        Err(Refusal { code: Code::AlreadyExists, users, ..Refusal::value(field(), address, problem) })
    }

    /// A gateway that is to hold an address.
    fn attached(&self, network: &Network, field: &str, gateway: &str) -> Result<(), Refusal> {
        if network.reaches.iter().any(|reach| reach.gateway == gateway) {
            return Ok(());
        }
        let problem = format!("has no attachment to VPC {}, so it cannot hold the address", network.vpc);
        Err(Refusal::value(field, gateway, problem))
    }
}

fn prefixes(field: &str, written: &[String]) -> Result<Vec<Prefix>, Refusal> {
    few(field, written.len(), PREFIXES, " prefixes")?;
    let prefix = |(at, text): (usize, &String)| Prefix::parse(|| format!("{field}[{at}]"), text);
    written.iter().enumerate().map(prefix).collect()
}

/// Refuses lists that are too long.
pub(super) fn few(field: &str, length: usize, most: usize, unit: &'static str) -> Result<(), Refusal> {
    if length <= most {
        return Ok(());
    }
    Err(Refusal { code: Code::TooLarge, ..Refusal::range(field, length as i64, (0, most as i64), unit) })
}
