//! What is wrong with a declaration: always file, key, value and what is allowed, and always all of it.

use std::fmt;
use std::net::IpAddr;

use postern_wire::{Family, IpPrefix};

/// Everything that is wrong with one declaration, in the order of the file's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors(Vec<ConfigurationError>);

impl std::error::Error for Errors {}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().take(Self::SHOWN).enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(error, f)?;
        }
        match self.0.len().checked_sub(Self::SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n… and {more} more"),
        }
    }
}

impl Errors {
    /// How many errors are printed; all are in [`Errors::iter`].
    pub const SHOWN: usize = 100;

    /// `list`, if there is anything in it.
    pub(crate) fn unless_empty(list: Vec<ConfigurationError>) -> Result<(), Self> {
        if list.is_empty() { Ok(()) } else { Err(Self(list)) }
    }

    pub(crate) fn from_syntax(file: &str, text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let before = &text.as_bytes()[..start];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let content = text.lines().nth(line - 1).unwrap_or_default().trim();
        Self(vec![ConfigurationError {
            file: file.to_owned(),
            key: format!("line {line}"),
            value: shorten(content),
            problem: Problem::Syntax(
                error.message().trim().replace('\n', ", ").replace("expected i64", "expected an integer"),
            ),
        }])
    }

    /// The single errors.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigurationError> {
        self.0.iter()
    }
}

impl<'e> IntoIterator for &'e Errors {
    type Item = &'e ConfigurationError;
    type IntoIter = std::slice::Iter<'e, ConfigurationError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One thing that is wrong, or, as a warning, doubtful.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigurationError {
    /// The file.
    pub file: String,
    /// The key, with positions in lists counted from 0, such as `endpoint[3].addresses[0]`.
    pub key: String,
    /// The value as it stands there.
    pub value: String,
    /// What is wrong with it, and what is allowed.
    pub problem: Problem,
}

impl std::error::Error for ConfigurationError {}

impl fmt::Display for ConfigurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, key, value, problem } = self;
        match problem {
            Problem::Syntax(_) => write!(f, "{file}: {key}: {problem}, in: {value}"),
            _ => write!(f, "{file}: {key} = {value}: {problem}"),
        }
    }
}

/// What is wrong with a value, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not TOML, an unknown key or a value of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// A required key is missing or empty.
    #[error("is required; allowed is {0}")]
    Missing(&'static str),
    /// A number outside its range.
    #[error("is out of range; allowed is {low} to {high}{unit}")]
    Range {
        /// Smallest allowed.
        low: i64,
        /// Largest allowed.
        high: i64,
        /// Unit with a blank in front, or nothing.
        unit: &'static str,
    },
    /// A text that does not have the form.
    #[error("is not {0}")]
    Form(String),
    /// Something that may exist once is there twice.
    #[error("is already used by {0}; each may be used once")]
    Duplicate(String),
    /// A reference to something that is not declared.
    #[error("is not the name of a declared {kind}; {known}")]
    Unknown {
        /// What it should name.
        kind: &'static str,
        /// What is declared.
        known: String,
    },
    /// An address that no host can have.
    #[error("is {what}; allowed is a unicast address of the VPC")]
    Address {
        /// What it is instead.
        what: String,
    },
    /// Targets of both families in one group.
    #[error(
        "is an {family} address, but the group's first target has an {first} one; all of a group are of one family"
    )]
    OtherFamily {
        /// Its family.
        family: Family,
        /// That of the first.
        first: Family,
    },
    /// An endpoint's IPv4 address whose service has IPv6 targets only.
    #[error(
        "is an IPv4 address, but all listeners of service \"{0}\" lead to IPv6 targets, which IPv4 clients cannot reach; \
         allowed are IPv6 addresses"
    )]
    OnlyIpv6Targets(String),
    /// A router of the other family.
    #[error("is an {router} address, but the route's destination is {destination}; both must be of one family")]
    RouterFamily {
        /// The router's family.
        router: Family,
        /// The destination's.
        destination: Family,
    },
    /// A group's pool has no address that its targets could answer to.
    #[error("has no {0} address, so new flows to the group's targets will be refused; add one to the pool")]
    PoolFamily(Family),
    /// A router that is not a neighbour.
    #[error("is not in an on-link prefix of attachment \"{attachment}\" ({prefixes}); a router must be a neighbour")]
    RouterNotOnLink {
        /// The attachment.
        attachment: String,
        /// Its prefixes.
        prefixes: String,
    },
    /// Two objects that belong together are in different VPCs.
    #[error("is in VPC {other}, but {of} is in VPC {vpc}; both must be in one VPC")]
    OtherVpc {
        /// VPC of the object named.
        other: String,
        /// What names it.
        of: String,
        /// Its VPC.
        vpc: String,
    },
    /// A VPC that the gateway does not reach.
    #[error("has no attachment, so the gateway cannot reach it; declare an [[attachment]] with this vpc")]
    NoAttachment,
    /// A target that no route leads to.
    #[error("has no route in VPC {0}; allowed is an address in an attachment's prefixes or behind a [[route]]")]
    NoRoute(String),
    /// Two listeners of one service or load balancer want the same flows.
    #[error("gives {protocol} port {port} of the {of} to a second listener; the first is {first}")]
    ListenerTwice {
        /// `tcp` or `udp`.
        protocol: &'static str,
        /// The port.
        port: u16,
        /// `service` or `load balancer`.
        of: &'static str,
        /// Key of the first.
        first: String,
    },
    /// Metrics would be seen by other hosts.
    #[error("is not a loopback address; allowed is 127.0.0.0/8 or ::1, or any with metrics_public = true")]
    PublicMetrics,
    /// Control's address is not encrypted and not on this host.
    #[error("is not encrypted; allowed is https://, or http:// with a loopback address such as 127.0.0.1")]
    PlainControl,
    /// A key without the one that belongs to it.
    #[error("needs {0} too")]
    Incomplete(&'static str),
    /// Declared in a file whose gateway gets its tables from control.
    #[error("is declared in a file with [control]; allowed is one of them: leave [[{0}]] out, or [control]")]
    DeclaredByControl(&'static str),
    /// A list whose length must match another number.
    #[error("has {given} entries; allowed is {needed}, one for each worker")]
    Count {
        /// Entries given.
        given: usize,
        /// Entries needed.
        needed: i64,
    },
    /// A spinning worker would stop the other on its CPU.
    #[error("has CPU {0} twice with polling = \"spin\"; allowed is a CPU of its own for each spinning worker")]
    SpinningTogether(i64),
    /// A key that has no meaning there.
    #[error("is for TCP listeners only; leave it out of a UDP listener")]
    TcpOnly,
    /// A group whose targets get a PROXY header, behind a UDP listener.
    #[error("has a proxy_protocol, which is for TCP only; a UDP listener needs a group without")]
    ProxyTcpOnly,
    /// A key that has no meaning there.
    #[error("is for health checks with protocol = \"http\" or \"https\" only; leave it out with \"tcp\"")]
    HttpOnly,
    /// More than the room that was made at the start.
    #[error("{declared} are declared, but this process has room for {room}; raise {key} and restart")]
    NoRoom {
        /// Declared.
        declared: usize,
        /// Room.
        room: u32,
        /// The key of the room.
        key: &'static str,
    },
    /// A change that a running process cannot make.
    #[error("was {0} when this process started; changing it needs a restart")]
    NeedsRestart(String),
    /// An address to which nobody on the link asks the way.
    #[error(
        "is in no on-link prefix of VPC {0}, so no neighbour asks for it; it works only if a router sends it to the gateway"
    )]
    NotOnLink(String),
}

impl Problem {
    pub(crate) fn network_end(what: &str, address: IpAddr, prefix: IpPrefix) -> Self {
        Self::Address { what: format!("the {what} address {address} of {prefix}") }
    }
}

/// A value as an error shows it: at most 80 characters, control characters escaped.
pub(crate) fn shorten(text: &str) -> String {
    let mut short: String = String::new();
    for character in text.chars().take(80) {
        if character.is_control() {
            short.extend(character.escape_default());
        } else {
            short.push(character);
        }
    }
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}
