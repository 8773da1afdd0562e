//! Capture files with the times and interfaces of their frames, which a device does not tell.

use std::fs::File;
use std::io::{BufReader, BufWriter, Cursor, Read, Write};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError, TsResolution};

/// The first bytes of a pcapng file (draft-ietf-opsawg-pcapng §4.1), in either byte order.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Largest frame that is written.
const LARGEST: u32 = 65_536 + 64;

/// A frame of a capture file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CapturedFrame {
    /// When it was captured, since 1970.
    pub time: Duration,
    /// Where, if the file says so.
    pub interface: Option<String>,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether these are all.
    pub whole: bool,
}

type Whole = std::io::Chain<Cursor<[u8; 4]>, BufReader<File>>;

/// Reads pcap or pcapng.
pub enum CaptureReader {
    /// libpcap's format.
    Pcap(PcapReader<Whole>),
    /// draft-ietf-opsawg-pcapng.
    PcapNg(PcapNgReader<Whole>),
}

impl std::fmt::Debug for CaptureReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureReader").finish_non_exhaustive()
    }
}

impl CaptureReader {
    /// Opens a file.
    ///
    /// # Errors
    /// If it cannot be read, or is no capture of Ethernet frames.
    pub fn open(path: &Path) -> Result<Self, PcapError> {
        let mut file = BufReader::new(File::open(path).map_err(PcapError::IoError)?);
        let mut magic = [0; 4];
        file.read_exact(&mut magic).map_err(PcapError::IoError)?;
        let whole = Cursor::new(magic).chain(file);
        if magic == PCAPNG {
            return Ok(Self::PcapNg(PcapNgReader::new(whole)?));
        }
        let reader = PcapReader::new(whole)?;
        if reader.header().datalink != DataLink::ETHERNET {
            return Err(PcapError::InvalidField("the frames are not Ethernet frames"));
        }
        Ok(Self::Pcap(reader))
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// If the file is damaged here.
    pub fn next_frame(&mut self) -> Result<Option<CapturedFrame>, PcapError> {
        match self {
            Self::Pcap(reader) => {
                let Some(packet) = reader.next_packet() else { return Ok(None) };
                let packet = packet?;
                let whole = packet.data.len() == packet.orig_len as usize;
                Ok(Some(CapturedFrame { time: packet.timestamp, interface: None, bytes: packet.data.into(), whole }))
            }
            Self::PcapNg(reader) => {
                while let Some(block) = reader.next_block() {
                    match block? {
                        Block::EnhancedPacket(packet) => {
                            let (units, id) = (packet.timestamp.as_nanos(), packet.interface_id);
                            let whole = packet.data.len() == packet.original_len as usize;
                            let bytes = packet.data.into_owned();
                            let interface = reader.interfaces().get(id as usize);
                            let time = interface.map(|interface| time(units, interface)).unwrap_or_default();
                            let interface = interface.and_then(name);
                            return Ok(Some(CapturedFrame { time, interface, bytes, whole }));
                        }
                        Block::InterfaceDescription(interface) if interface.linktype != DataLink::ETHERNET => {
                            return Err(PcapError::InvalidField("an interface's frames are not Ethernet frames"));
                        }
                        _ => {}
                    }
                }
                Ok(None)
            }
        }
    }
}

/// The reader gives every time stamp as if its unit were a nanosecond; the interface says what it is, by default a
/// microsecond.
fn time(units: u128, interface: &InterfaceDescriptionBlock<'_>) -> Duration {
    let resolution = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    });
    let units = u64::try_from(units).unwrap_or(u64::MAX);
    let per_second = match resolution.unwrap_or(6) {
        exponent if exponent & 0x80 != 0 => 1u64.checked_shl(u32::from(exponent & 0x7f)),
        exponent => 10u64.checked_pow(u32::from(exponent)),
    };
    let per_second = per_second.unwrap_or(u64::MAX).max(1);
    let nanoseconds = u128::from(units % per_second) * 1_000_000_000 / u128::from(per_second);
    Duration::new(units / per_second, nanoseconds as u32)
}

fn name(interface: &InterfaceDescriptionBlock<'_>) -> Option<String> {
    interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
        _ => None,
    })
}

/// Writes a pcap file of Ethernet frames, with time in nanoseconds.
pub struct CaptureWriter {
    writer: PcapWriter<BufWriter<File>>,
}

impl std::fmt::Debug for CaptureWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureWriter").finish_non_exhaustive()
    }
}

impl CaptureWriter {
    /// Makes a file.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path) -> Result<Self, PcapError> {
        let file = BufWriter::new(File::create(path).map_err(PcapError::IoError)?);
        let header = PcapHeader {
            snaplen: LARGEST,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        Ok(Self { writer: PcapWriter::with_header(file, header)? })
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, time: Duration, bytes: &[u8]) -> Result<(), PcapError> {
        self.writer.write_packet(&PcapPacket::new(time, bytes.len() as u32, bytes)).map(drop)
    }

    /// Ends the file.
    ///
    /// # Errors
    /// If its end cannot be written.
    pub fn finish(self) -> Result<(), PcapError> {
        self.writer.into_writer().flush().map_err(PcapError::IoError)
    }
}
