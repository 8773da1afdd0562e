//! Where a gateway gets its tables from, if not from its file.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::{Checked, Checker, process};
use crate::declaration::{Control, Declaration};
use crate::error::Problem;

/// Forms of an address that are shown to who wrote another.
const ADDRESS: &str = "https:// with a host and a port, such as https://control.example.com:7443";

/// How to reach control, and where to keep what came from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlSettings {
    /// Where it listens for gateways.
    pub address: ControlAddress,
    /// Whom to trust and what to show.
    pub credentials: ControlCredentials,
    /// Directory for what was applied last.
    pub state_directory: PathBuf,
}

/// Where control listens for gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAddress {
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Files that are read at each connection, so that they can be exchanged while the gateway runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlCredentials {
    /// Certificates that control's is checked with.
    pub ca: Option<PathBuf>,
    /// The gateway's certificate chain, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A file with the gateway's token.
    pub token: Option<PathBuf>,
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.encrypted { "https" } else { "http" };
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "{scheme}://[{host}]:{port}") } else { write!(f, "{scheme}://{host}:{port}") }
    }
}

impl ControlAddress {
    /// Reads `https://HOST:PORT` or `http://HOST:PORT`.
    fn parse(text: &str) -> Option<Self> {
        let (encrypted, rest) = match text.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("http://")?),
        };
        let (host, port) = rest.strip_suffix('/').unwrap_or(rest).rsplit_once(':')?;
        let port = port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
        let host = match host.strip_prefix('[') {
            Some(host) => host.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.to_string(),
            None => is_host(host).then(|| host.to_ascii_lowercase())?,
        };
        (port != 0).then_some(Self { encrypted, host, port })
    }

    fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
            || self.host.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback())
    }
}

/// A host name (RFC 1123 §2.1) or an IPv4 address.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

pub(super) fn control(checker: &mut Checker<'_>, declaration: &Declaration) -> Option<ControlSettings> {
    let control = declaration.control.as_ref()?;
    nothing_else_is_declared(checker, declaration);
    let Control { address: text, ca, certificate, key, token_file, state_directory } = control;
    let address = ControlAddress::parse(text);
    match &address {
        None if text.is_empty() => checker.error("control.address", text, Problem::Missing(ADDRESS)),
        None => checker.error("control.address", text, Problem::Form(ADDRESS.to_owned())),
        Some(address) if !address.encrypted && !address.is_loopback() => {
            checker.error("control.address", text, Problem::PlainControl);
        }
        Some(_) => {}
    }
    let encrypted = address.as_ref().is_none_or(|address| address.encrypted);
    let mut path = |key, value: &Option<String>| process::path(checker, key, value.as_deref());
    let ca = path("control.ca", ca);
    let certificate = path("control.certificate", certificate);
    let key = path("control.key", key);
    let token = path("control.token_file", token_file);
    let state_directory = path("control.state_directory", state_directory);
    if encrypted && ca.is_none() {
        let allowed = "the absolute path of the certificates that control's is checked with";
        checker.error("control.ca", "", Problem::Missing(allowed));
    }
    let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    match (&certificate, &key) {
        (Some(_), None) => {
            checker.error("control.certificate", &shown(&certificate), Problem::Incomplete("control.key"));
        }
        (None, Some(_)) => checker.error("control.key", &shown(&key), Problem::Incomplete("control.certificate")),
        (None, None) if token.is_none() => {
            let allowed = "the absolute path of a file with the gateway's token, unless there is a certificate";
            checker.error("control.token_file", "", Problem::Missing(allowed));
        }
        _ => {}
    }
    Some(ControlSettings {
        // One that is wrong was reported.
        address: address.unwrap_or(ControlAddress { encrypted: true, host: String::new(), port: 0 }),
        credentials: ControlCredentials { ca, identity: certificate.zip(key), token },
        state_directory: state_directory.unwrap_or_else(|| PathBuf::from("/var/lib/postern")),
    })
}

/// What control declares may not stand in the file too: one of them would be ignored.
fn nothing_else_is_declared(checker: &mut Checker<'_>, declaration: &Declaration) {
    let Declaration {
        vpcs,
        attachments,
        routes,
        snat_pools,
        security_groups,
        target_groups,
        load_balancers,
        services,
        endpoints,
        ..
    } = declaration;
    let first = |name: &Option<&String>| name.cloned().unwrap_or_default();
    for (table, name) in [
        ("vpc", vpcs.first().map(|vpc| &vpc.id)),
        ("attachment", attachments.first().map(|attachment| &attachment.name)),
        ("route", routes.first().map(|route| &route.destination)),
        ("snat_pool", snat_pools.first().map(|pool| &pool.name)),
        ("security_group", security_groups.first().map(|group| &group.name)),
        ("target_group", target_groups.first().map(|group| &group.name)),
        ("load_balancer", load_balancers.first().map(|balancer| &balancer.name)),
        ("service", services.first().map(|service| &service.id)),
        ("endpoint", endpoints.first().map(|endpoint| &endpoint.id)),
    ] {
        if name.is_some() {
            checker.error(format!("{table}[0]"), &first(&name), Problem::DeclaredByControl(table));
        }
    }
}

/// What a running process that gets its tables from control cannot change.
pub(super) fn reload(fixed: &mut impl FnMut(&str, String, String), running: &Checked, new: &Checked) {
    let present = |checked: &Checked| if checked.control.is_some() { "present" } else { "absent" }.to_owned();
    fixed("control", present(running), present(new));
    if let (Some(old), Some(now)) = (&running.control, &new.control) {
        let directory = |settings: &ControlSettings| format!("\"{}\"", settings.state_directory.display());
        fixed("control.state_directory", directory(old), directory(now));
        // The key belongs to every selection table, and those come from control one by one.
        let key = |changed: bool| if changed { "another" } else { "as it was" }.to_owned();
        fixed("selection.key", key(false), key(running.selection != new.selection));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_is_written_and_nonsense_is_none() {
        for text in ["https://control.example.com:7443", "http://127.0.0.1:7443", "https://[::1]:1", "http://a:65535"] {
            let address = ControlAddress::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "https://",
            "https://a",
            "https://a:",
            "https://a:0",
            "https://a:65536",
            "https://a:+1",
            "ftp://a:1",
            "https://:1",
            "https://a b:1",
            "https://-a:1",
            "https://[::1:1",
            "https://::1:1",
            "https://a:1/path",
            "https://user@a:1",
        ] {
            assert_eq!(ControlAddress::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_the_host_itself_is_loopback() {
        let loopback = |text| ControlAddress::parse(text).is_some_and(|address| address.is_loopback());
        for text in ["http://localhost:1", "http://127.9.9.9:1", "http://[::1]:1"] {
            assert!(loopback(text), "{text}");
        }
        for text in ["http://127.0.0.1.example.com:1", "http://localhost.example:1", "http://10.0.0.1:1"] {
            assert!(!loopback(text), "{text}");
        }
    }
}
