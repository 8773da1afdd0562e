//! Devices that read and write capture files (pcap; pcapng to read), and a wrapper that records what passes.
//!
//! A capture holds bytes only. Super-frames and partial checksums are written as they are, like tcpdump does, and a tag that
//! travels beside a frame is put into what is written.

use std::io::{Cursor, Read, Write};
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError, TsResolution};
use postern_wire::frame::{HEADROOM, NO_VLAN};
use postern_wire::{Frame, PortIndex};

use crate::device::{
    BURST, Burst, Capabilities, DeviceError, Receive, ReceiveStatistics, Transmit, TransmitReport, TransmitStatistics,
};
use crate::vlan;

/// The first bytes of a pcapng file (draft-ietf-opsawg-pcapng §4.1), in either byte order.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Largest frame that is written: the largest IPv4 packet, Ethernet, tags.
const LARGEST: u32 = 65_536 + 64;

/// Receives the frames of a capture file, in order, as fast as they are asked for.
pub struct CaptureReceiver<R: Read> {
    source: Source<R>,
    buffers: Vec<Vec<u8>>,
    port: PortIndex,
    finished: bool,
    statistics: ReceiveStatistics,
}

/// A reader of which some bytes were looked at.
type Whole<R> = std::io::Chain<Cursor<[u8; 4]>, R>;

enum Source<R: Read> {
    Pcap(PcapReader<Whole<R>>),
    PcapNg(PcapNgReader<Whole<R>>),
}

impl<R: Read> CaptureReceiver<R> {
    /// Reads pcap or pcapng; the frames say that they came in on `port`.
    ///
    /// # Errors
    /// If the file is neither, or holds something else than Ethernet frames.
    pub fn new(mut reader: R, port: PortIndex) -> Result<Self, DeviceError> {
        let mut magic = [0; 4];
        reader.read_exact(&mut magic).map_err(PcapError::IoError)?;
        let whole = Cursor::new(magic).chain(reader);
        let source = if magic == PCAPNG {
            Source::PcapNg(PcapNgReader::new(whole)?)
        } else {
            let reader = PcapReader::new(whole)?;
            if reader.header().datalink != DataLink::ETHERNET {
                return Err(PcapError::InvalidField("the frames are not Ethernet frames").into());
            }
            Source::Pcap(reader)
        };
        let buffers = (0..BURST).map(|_| Vec::new()).collect();
        Ok(Self { source, buffers, port, finished: false, statistics: ReceiveStatistics::default() })
    }

    /// Whether every frame was received.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.finished
    }
}

impl<R: Read> Source<R> {
    /// Reads the next frame into `buffer` behind the headroom; whether it was whole, `None` at the end.
    fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<bool>, PcapError> {
        buffer.clear();
        buffer.resize(HEADROOM, 0);
        match self {
            Self::Pcap(reader) => {
                let Some(packet) = reader.next_raw_packet() else { return Ok(None) };
                let packet = packet?;
                buffer.extend_from_slice(&packet.data);
                Ok(Some(packet.data.len() == packet.orig_len as usize))
            }
            Self::PcapNg(reader) => {
                while let Some(block) = reader.next_block() {
                    let (data, length) = match block? {
                        Block::EnhancedPacket(packet) => (packet.data, packet.original_len),
                        Block::SimplePacket(packet) => (packet.data, packet.original_len),
                        Block::InterfaceDescription(interface) if interface.linktype != DataLink::ETHERNET => {
                            return Err(PcapError::InvalidField("an interface's frames are not Ethernet frames"));
                        }
                        _ => continue,
                    };
                    buffer.extend_from_slice(&data);
                    return Ok(Some(data.len() == length as usize));
                }
                Ok(None)
            }
        }
    }
}

impl<R: Read + Send> Receive for CaptureReceiver<R> {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>) -> Result<usize, DeviceError> {
        let before = burst.len();
        for buffer in &mut self.buffers[before..] {
            let whole = loop {
                match self.source.next(buffer)? {
                    Some(false) => self.statistics.truncated += 1,
                    whole => break whole,
                }
            };
            if whole.is_none() {
                self.finished = true;
                break;
            }
            let length = buffer.len() - HEADROOM;
            let Some(mut frame) = Frame::new(buffer, HEADROOM, length) else { continue };
            frame.ingress = self.port;
            let pushed = burst.push(frame);
            debug_assert!(pushed.is_ok(), "there are as many buffers as there is room");
        }
        let received = burst.len() - before;
        self.statistics.delivered += received as u64;
        Ok(received)
    }

    fn release(&mut self) {}

    fn statistics(&mut self) -> ReceiveStatistics {
        self.statistics
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A pcap file that frames are written to, with the time of writing in nanoseconds.
struct CaptureFile<W: Write> {
    writer: PcapWriter<W>,
    bytes: Vec<u8>,
    error: Option<PcapError>,
}

impl<W: Write> CaptureFile<W> {
    fn new(writer: W) -> Result<Self, DeviceError> {
        let ts_resolution = TsResolution::NanoSecond;
        let header = PcapHeader { snaplen: LARGEST, ts_resolution, ..PcapHeader::default() };
        Ok(Self { writer: PcapWriter::with_header(writer, header)?, bytes: Vec::new(), error: None })
    }

    /// Writes a frame; false once something could not be written.
    fn write(&mut self, frame: &Frame<'_>) -> bool {
        if self.error.is_some() {
            return false;
        }
        let bytes = if frame.vlan == NO_VLAN {
            frame.bytes()
        } else {
            self.bytes.clear();
            self.bytes.resize(4, 0);
            self.bytes.extend_from_slice(frame.bytes());
            let tagged = Frame::new(&mut self.bytes, 4, frame.len());
            let inserted = tagged.is_some_and(|mut copy| vlan::insert(&mut copy, vlan::ETHERTYPE, frame.vlan));
            // A frame too short to have addresses has no place for a tag.
            &self.bytes[if inserted { 0 } else { 4 }..]
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.error = self.writer.write_packet(&PcapPacket::new(now, bytes.len() as u32, bytes)).err();
        self.error.is_none()
    }

    fn finish(self) -> Result<W, DeviceError> {
        match self.error {
            None => Ok(self.writer.into_writer()),
            Some(error) => Err(error.into()),
        }
    }
}

/// Writes every frame that is sent to a pcap file.
pub struct CaptureTransmitter<W: Write> {
    file: CaptureFile<W>,
    statistics: TransmitStatistics,
}

impl<W: Write> CaptureTransmitter<W> {
    /// Begins a capture file.
    ///
    /// # Errors
    /// If nothing can be written.
    pub fn new(writer: W) -> Result<Self, DeviceError> {
        Ok(Self { file: CaptureFile::new(writer)?, statistics: TransmitStatistics::default() })
    }

    /// Ends the capture, and returns what it was written to.
    ///
    /// # Errors
    /// The first error of writing; frames from then on were refused (`EIO`).
    pub fn finish(self) -> Result<W, DeviceError> {
        self.file.finish()
    }
}

impl<W: Write + Send> Transmit for CaptureTransmitter<W> {
    fn transmit(&mut self, frames: &mut [Frame<'_>], selected: &[u8], report: &mut TransmitReport) {
        assert!(selected.len() <= BURST, "{} frames were selected, a burst has {BURST}", selected.len());
        report.clear();
        for &index in selected {
            if self.file.write(&frames[usize::from(index)]) {
                report.accept(1);
            } else {
                report.refuse(nix::errno::Errno::EIO);
            }
        }
        self.statistics.calls += 1;
        self.statistics.accepted += report.accepted() as u64;
        self.statistics.refused += report.refused() as u64;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { super_frames: true, partial_checksums: true }
    }

    fn statistics(&self) -> TransmitStatistics {
        self.statistics
    }
}

/// A half of a device, and a pcap file of everything that passes it: received frames, or frames before they are sent.
/// Recording ends with the first error of writing; frames pass all the same.
pub struct Recorder<D, W: Write> {
    device: D,
    file: CaptureFile<W>,
}

impl<D, W: Write> Recorder<D, W> {
    /// Begins to record.
    ///
    /// # Errors
    /// If nothing can be written.
    pub fn new(device: D, writer: W) -> Result<Self, DeviceError> {
        Ok(Self { device, file: CaptureFile::new(writer)? })
    }

    /// Ends the recording, and returns what it was written to.
    ///
    /// # Errors
    /// The first error of writing.
    pub fn finish(self) -> Result<W, DeviceError> {
        self.file.finish()
    }
}

impl<D: Receive, W: Write + Send> Receive for Recorder<D, W> {
    fn receive<'a>(&'a mut self, burst: &mut Burst<'a>) -> Result<usize, DeviceError> {
        let before = burst.len();
        let received = self.device.receive(burst)?;
        for frame in &burst.frames()[before..] {
            self.file.write(frame);
        }
        Ok(received)
    }

    fn release(&mut self) {
        self.device.release();
    }

    fn statistics(&mut self) -> ReceiveStatistics {
        self.device.statistics()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.poll_fd()
    }
}

impl<D: Transmit, W: Write + Send> Transmit for Recorder<D, W> {
    fn transmit(&mut self, frames: &mut [Frame<'_>], selected: &[u8], report: &mut TransmitReport) {
        for &index in selected {
            self.file.write(&frames[usize::from(index)]);
        }
        self.device.transmit(frames, selected, report);
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn statistics(&self) -> TransmitStatistics {
        self.device.statistics()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    fn written() -> Vec<u8> {
        let mut transmitter = CaptureTransmitter::new(Vec::new()).unwrap();
        let mut report = TransmitReport::new();
        for number in 0..100u8 {
            let mut buffer = vec![number; 60 + usize::from(number)];
            let length = buffer.len();
            let mut frame = Frame::new(&mut buffer, 0, length).unwrap();
            if number == 1 {
                frame.vlan = 0x0064;
            }
            transmitter.transmit(&mut [frame], &[0], &mut report);
            assert_eq!(report.accepted(), 1);
        }
        transmitter.finish().unwrap()
    }

    #[test]
    fn what_was_written_is_read_again_in_bursts_with_tags_in_the_frames() {
        let file = written();
        let mut receiver = CaptureReceiver::new(file.as_slice(), PortIndex(2)).unwrap();
        let mut lengths = Vec::new();
        for expected in [64, 36, 0] {
            assert!(!receiver.is_finished());
            let mut burst = Burst::new();
            assert_eq!(receiver.receive(&mut burst).unwrap(), expected);
            for frame in burst.frames() {
                assert_eq!((frame.headroom(), frame.ingress), (HEADROOM, PortIndex(2)));
                if lengths.len() == 1 {
                    assert_eq!(frame.bytes()[10..18], [1, 1, 0x81, 0, 0, 0x64, 1, 1]);
                }
                lengths.push(frame.len());
            }
            if expected < 64 {
                break;
            }
        }
        assert!(receiver.is_finished());
        let expected: Vec<_> = (0..100).map(|number| 60 + number + if number == 1 { 4 } else { 0 }).collect();
        assert_eq!(lengths, expected);
    }

    #[test]
    fn a_frame_that_was_cut_short_is_counted_and_left_out() {
        let mut file = written();
        // The original length of the first packet, behind the file header, time and captured length.
        let at = 24 + 12;
        assert!(file[at..at + 4].contains(&60));
        file[at..at + 4].fill(1);
        let mut receiver = CaptureReceiver::new(file.as_slice(), PortIndex(0)).unwrap();
        let mut burst = Burst::new();
        assert_eq!(receiver.receive(&mut burst).unwrap(), 64);
        assert_eq!(burst.frames()[0].len(), 65);
        assert_eq!(receiver.statistics().truncated, 1);
    }

    #[test]
    fn pcapng_is_read_too_and_anything_else_is_refused() {
        let mut file = Vec::new();
        let word = |file: &mut Vec<u8>, value: u32| file.extend_from_slice(&value.to_le_bytes());
        for value in [0x0a0d_0d0a, 28, 0x1a2b_3c4d, 1, u32::MAX, u32::MAX, 28, 1, 20, 1, 65_535, 20] {
            word(&mut file, value);
        }
        for value in [6, 92, 0, 0, 0, 60, 60] {
            word(&mut file, value);
        }
        file.extend_from_slice(&[9; 60]);
        word(&mut file, 92);
        let mut receiver = CaptureReceiver::new(file.as_slice(), PortIndex(0)).unwrap();
        let mut burst = Burst::new();
        assert_eq!(receiver.receive(&mut burst).unwrap(), 1);
        assert_eq!(burst.frames()[0].bytes(), [9; 60]);
        assert!(CaptureReceiver::new(&[7u8; 100][..], PortIndex(0)).is_err());
        assert!(CaptureReceiver::new(&[][..], PortIndex(0)).is_err());
    }

    #[test]
    fn a_recorder_writes_what_passes_in_both_directions() {
        let (transmitter, receiver) = memory::link(PortIndex(0), 10, 1514).unwrap();
        let mut transmitter = Recorder::new(transmitter, Vec::new()).unwrap();
        let mut receiver = Recorder::new(receiver, Vec::new()).unwrap();
        let mut buffer = [5; 60];
        let mut frames = [Frame::new(&mut buffer, 0, 60).unwrap()];
        transmitter.transmit(&mut frames, &[0], &mut TransmitReport::new());
        assert_eq!(receiver.receive(&mut Burst::new()).unwrap(), 1);
        for file in [transmitter.finish().unwrap(), receiver.finish().unwrap()] {
            let mut receiver = CaptureReceiver::new(file.as_slice(), PortIndex(0)).unwrap();
            let mut burst = Burst::new();
            assert_eq!(receiver.receive(&mut burst).unwrap(), 1);
            assert_eq!(burst.frames()[0].bytes(), [5; 60]);
        }
    }
}
