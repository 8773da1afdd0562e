//! The subcommands of `postern bench` that measure with test frames.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use postern_benches::methods::{self, MacAddress, Options, Place, Ports};
use postern_benches::search::Range;
use postern_benches::traffic::lab::Io;
use postern_benches::traffic::stream::{Sizes, Transport};

use super::documents::write;
use super::seconds;

#[derive(Subcommand)]
pub(super) enum Method {
    /// Find the highest rate at which no frame is lost, and the loss by rate (RFC 2544), for each frame size; needs root
    Throughput(Common),
    /// Find the non-drop rate and the partial drop rate of 0.5 % (MLRsearch), for each frame size; needs root
    Ndr(Common),
    /// Measure how fast connections are made and let go, how many there can be, and the throughput with a full table
    /// (RFC 9693); needs root
    Connections(Common),
    /// Measure latency at 0, 10, 50 and 90 % of the partial drop rate; needs root
    Latency {
        #[command(flatten)]
        common: Common,
        /// The partial drop rate in frames a second, so that it is not searched for
        #[arg(long, value_name = "RATE", value_parser = rate)]
        pdr: Option<f64>,
    },
    /// Send frames at one rate, or as fast as can be, and say what became of each; needs root
    Traffic {
        #[command(flatten)]
        common: Common,
        /// Frames a second; by default as many as the generator can
        #[arg(long, value_name = "RATE", value_parser = rate)]
        rate: Option<f64>,
        /// Frames that are made inside the kernel, as many as can be, and only counted; IPv4 and UDP, sizes up to 3,000
        #[arg(long, conflicts_with_all = ["rate", "tcp", "ipv6", "tx_port"])]
        in_kernel: bool,
    },
    /// Measure TCP between the kernel's own stacks: bulk, round trips, connections in turn; needs root
    Tcp(Common),
    /// Measure how long traffic is blocked while tables change or the gateway restarts; needs root
    Reconf {
        #[command(flatten)]
        common: Common,
        /// Frames a second
        #[arg(long, value_name = "RATE", default_value_t = 20_000.0, value_parser = rate)]
        rate: f64,
    },
}

/// What all of them are told.
#[derive(Args)]
pub(super) struct Common {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write the report as one HTML page to a file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// A few seconds: shows that it works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// IPv6 instead of IPv4
    #[arg(long)]
    ipv6: bool,
    /// TCP instead of UDP
    #[arg(long)]
    tcp: bool,
    /// Workers of the gateway
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// How frames come in and go out of the gateway's ports: af_packet, io_uring, af_xdp or auto
    #[arg(long, default_value = "af_packet")]
    io: Io,
    /// Traffic both ways: what comes out is sent back, and is received when it is back
    #[arg(long)]
    both: bool,
    /// Flows, 1 to 16,000,000; of `connections` the room of the gateway's table. By default 64, of `connections` 262,144
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    flows: Option<u32>,
    /// Frame sizes with frame check sequence, 64 to 9018, or imix. By default 64, 128, 256, 512, 1024, 1280, 1518 and imix;
    /// of some methods the smallest that has room for headers and stamp
    #[arg(long, value_delimiter = ',', value_name = "BYTES")]
    size: Vec<Sizes>,
    /// Seconds of a trial, 0.1 to 60
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// The lowest rate that is tried, frames a second
    #[arg(long, value_name = "RATE", default_value_t = 1_000.0, value_parser = rate)]
    lowest: f64,
    /// The highest rate that is tried, frames a second
    #[arg(long, value_name = "RATE", default_value_t = 1_500_000.0, value_parser = rate)]
    highest: f64,
    /// Which addresses and ports the flows have
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Interface of this host on which frames are sent; with --rx-port, instead of a gateway in namespaces
    #[arg(long, value_name = "INTERFACE", requires_all = ["rx_port", "source", "destination", "target"])]
    tx_port: Option<String>,
    /// Interface of this host on which frames come out of the device under test
    #[arg(long, value_name = "INTERFACE", requires = "tx_port")]
    rx_port: Option<String>,
    /// Address of the sending interface on its network, for which ARP and Neighbor Discovery are answered
    #[arg(long, value_name = "ADDRESS", requires = "tx_port")]
    source: Option<IpAddr>,
    /// First address of the clients, which the device must route to the source; by default the source
    #[arg(long, value_name = "ADDRESS", requires = "tx_port")]
    clients: Option<IpAddr>,
    /// How many addresses clients have
    #[arg(long, requires = "clients", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    hosts: u32,
    /// Address and port to send to, the endpoint's
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tx_port")]
    destination: Option<SocketAddr>,
    /// MAC address to send to; by default the destination is asked
    #[arg(long, value_name = "MAC", requires = "tx_port", value_parser = mac)]
    mac: Option<MacAddress>,
    /// Address and port that frames have when they come out, the target's, for which ARP and Neighbor Discovery are answered
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tx_port")]
    target: Option<SocketAddr>,
}

/// What a method makes of its arguments where nothing is said.
#[derive(Clone, Copy)]
struct Defaults {
    flows: u32,
    quick_flows: u32,
    every_size: bool,
}

const FEW: Defaults = Defaults { flows: 64, quick_flows: 64, every_size: false };

impl Common {
    fn options(&self, defaults: Defaults) -> Result<Options, String> {
        let transport = if self.tcp { Transport::Tcp } else { Transport::Udp };
        let six = self.destination.map_or(self.ipv6, |destination| destination.is_ipv6());
        // The smallest sizes that have room for headers and stamp.
        let smallest = match (six, transport) {
            (false, Transport::Udp) => 64,
            (true, Transport::Udp) => 84,
            (false, Transport::Tcp) => 88,
            (true, Transport::Tcp) => 108,
        };
        let sizes = if !self.size.is_empty() {
            self.size.clone()
        } else if defaults.every_size && self.quick {
            vec![Sizes::Fixed(smallest), Sizes::Imix]
        } else if defaults.every_size {
            let fixed = [smallest, 128, 256, 512, 1024, 1280, 1518].map(Sizes::Fixed);
            fixed.into_iter().chain([Sizes::Imix]).collect()
        } else {
            vec![Sizes::Fixed(smallest)]
        };
        if self.lowest > self.highest {
            return Err(format!("--lowest {} is more than --highest {}", self.lowest, self.highest));
        }
        let highest = if self.quick { self.highest.min(100_000.0) } else { self.highest };
        let flows = if self.quick { defaults.quick_flows } else { defaults.flows };
        Ok(Options {
            place: self.place()?,
            six,
            workers: self.workers,
            io: self.io,
            transport,
            flows: self.flows.unwrap_or(flows),
            sizes,
            seconds: if self.quick { 0.1 } else { self.seconds },
            both: self.both,
            range: Range { lowest: self.lowest, highest: highest.max(self.lowest) },
            seed: self.seed,
            quick: self.quick,
        })
    }

    fn place(&self) -> Result<Place, String> {
        let (Some(tx), Some(rx), Some(source), Some(destination), Some(target)) =
            (&self.tx_port, &self.rx_port, self.source, self.destination, self.target)
        else {
            let binary = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
            return Ok(Place::Lab(binary));
        };
        let clients = self.clients.unwrap_or(source);
        let (tx, rx, hosts, mac) = (tx.clone(), rx.clone(), self.hosts, self.mac);
        Ok(Place::Ports(Ports { tx, rx, source, clients, hosts, destination, mac, target }))
    }
}

impl Method {
    const fn common(&self) -> &Common {
        match self {
            Self::Throughput(common) | Self::Ndr(common) | Self::Connections(common) | Self::Tcp(common) => common,
            Self::Latency { common, .. } | Self::Reconf { common, .. } | Self::Traffic { common, .. } => common,
        }
    }

    /// Runs it: the text to print, and whether everything was as it must be.
    pub(super) fn run(&self, progress: impl FnMut(&str) + Send) -> Result<(String, bool), String> {
        let common = self.common();
        let defaults = match self {
            Self::Throughput(_) | Self::Ndr(_) => Defaults { every_size: true, ..FEW },
            Self::Connections(_) => Defaults { flows: 262_144, quick_flows: 4096, every_size: false },
            _ => FEW,
        };
        let options = common.options(defaults)?;
        let method = match self {
            Self::Throughput(_) => methods::Method::Throughput,
            Self::Ndr(_) => methods::Method::Ndr,
            Self::Connections(_) => methods::Method::Connections,
            Self::Latency { pdr, .. } => methods::Method::Latency { partial_drop_rate: *pdr },
            Self::Traffic { rate, in_kernel, .. } => methods::Method::Traffic { rate: *rate, in_kernel: *in_kernel },
            Self::Tcp(_) => methods::Method::Tcp,
            Self::Reconf { rate, .. } => {
                methods::Method::Reconf { rate: if options.quick { rate.min(2_000.0) } else { *rate } }
            }
        };
        let since = SystemTime::now();
        let report = methods::run(method, &options, progress).map_err(|error| error.to_string())?;
        if let Some(path) = &common.html {
            write(path, &report.to_document(since).to_html())?;
        }
        Ok((if common.json { report.to_json() } else { report.to_text() }, report.passed))
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (1.0..=1e9).contains(&rate) => Ok(rate),
        _ => Err("must be a number of frames a second from 1 to 1,000,000,000".to_owned()),
    }
}

fn mac(text: &str) -> Result<MacAddress, String> {
    text.parse().map_err(|_| "must be a MAC address as 02:00:00:00:00:01".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{Parser, error::ErrorKind};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        method: Method,
    }

    fn parse(words: &str) -> Result<Options, ErrorKind> {
        let line = Line::try_parse_from(format!("bench {words}").split(' ')).map_err(|error| error.kind())?;
        line.method.common().options(FEW).map_err(|_| ErrorKind::Io)
    }

    #[test]
    fn ports_are_given_together_with_what_is_between_them() {
        let whole =
            "ndr --tx-port one --rx-port other --source 10.0.0.1 --destination 10.0.0.9:53 --target 10.1.0.1:5353";
        let Place::Ports(ports) = parse(whole).unwrap().place else { panic!("namespaces") };
        assert_eq!((ports.clients, ports.hosts, ports.mac), ("10.0.0.1".parse().unwrap(), 1, None));
        for without in
            [" --rx-port other", " --source 10.0.0.1", " --destination 10.0.0.9:53", " --target 10.1.0.1:5353"]
        {
            assert!(parse(&whole.replace(without, "")).is_err(), "{without}");
        }
        assert!(matches!(parse("ndr").unwrap().place, Place::Lab(_)));
    }

    #[test]
    fn sizes_begin_with_the_smallest_that_has_room_for_a_stamp() {
        assert_eq!(parse("ndr").unwrap().sizes, [Sizes::Fixed(64)]);
        assert_eq!(parse("ndr --ipv6").unwrap().sizes, [Sizes::Fixed(84)]);
        assert_eq!(parse("ndr --size 9000,imix").unwrap().sizes, [Sizes::Fixed(9000), Sizes::Imix]);
        assert_eq!(parse("ndr --size 63").unwrap_err(), ErrorKind::ValueValidation);
        assert_eq!(parse("ndr --lowest 2000 --highest 1000").unwrap_err(), ErrorKind::Io);
    }
}
