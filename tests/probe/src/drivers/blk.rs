//! virtio-blk (virtio 1.2 §5.2): one request at a time for tests, many in flight for benchmarks.

use crate::dma::Dma;
use crate::drivers::pci::Function;
use crate::drivers::virtio::{Device, Queue, Segment, feature};
use crate::report::Outcome;
use crate::{ensure, fail};

/// Feature bits.
pub mod features {
    /// Largest segment is in the configuration.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// Most segments are in the configuration.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Read-only.
    pub const READ_ONLY: u64 = 1 << 5;
    /// Block size is in the configuration.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flush.
    pub const FLUSH: u64 = 1 << 9;
    /// Topology is in the configuration.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The cache mode can be changed.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// Discard.
    pub const DISCARD: u64 = 1 << 13;
    /// Write zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types.
pub mod request {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// Read the device's name, 20 bytes.
    pub const GET_ID: u32 = 8;
    /// Discard.
    pub const DISCARD: u32 = 11;
    /// Write zeroes.
    pub const WRITE_ZEROES: u32 = 13;
}

/// Request results.
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed.
    pub const IO_ERROR: u8 = 1;
    /// Not known, or not negotiated.
    pub const UNSUPPORTED: u8 = 2;
    /// What the driver puts there to see that the device writes it.
    pub const UNTOUCHED: u8 = 0xee;
}

/// Unit of capacity and sector numbers, whatever the block size is.
pub const SECTOR: usize = 512;
const WANTED: u64 = features::SEG_MAX
    | features::SIZE_MAX
    | features::READ_ONLY
    | features::BLK_SIZE
    | features::FLUSH
    | features::TOPOLOGY
    | features::CONFIG_WCE
    | features::DISCARD
    | features::WRITE_ZEROES;
/// Header, status, and room for discard ranges.
const HEADER_BYTES: usize = 16;
/// Most requests in flight.
pub const MAX_DEPTH: usize = 32;

/// A disk, started.
pub struct Disk {
    /// The device.
    pub device: Device,
    /// Its first queue.
    pub queue: Queue,
    /// Sectors.
    pub capacity: u64,
    /// Most data segments of a request.
    pub max_segments: usize,
    header: Dma,
    status: Dma,
    indirect: Dma,
}

impl Disk {
    /// Starts the device at a function; `extra` are device-independent features to negotiate.
    pub fn open(function: &Function, extra: u64) -> Outcome<Disk> {
        let device = Device::open(function, WANTED | extra)?;
        let config = device.config()?;
        let capacity = u64::from(config.read32(4)) << 32 | u64::from(config.read32(0));
        let max_segments = if device.has(features::SEG_MAX) { config.read32(12).max(1) as usize } else { 1 };
        let queue = device.queue(0, 256)?;
        device.start()?;
        ensure!(capacity > 0, "the disk has no sectors");
        Ok(Disk {
            device,
            queue,
            capacity,
            max_segments,
            header: Dma::new(HEADER_BYTES * MAX_DEPTH),
            status: Dma::new(MAX_DEPTH),
            indirect: Dma::new(16 * 256),
        })
    }

    /// Whether the device says it can't be written.
    pub fn read_only(&self) -> bool {
        self.device.has(features::READ_ONLY)
    }

    fn head(&self, slot: usize, kind: u32, sector: u64) -> (Segment, Segment) {
        let header = self.header.part(slot * HEADER_BYTES, HEADER_BYTES);
        header.write(0, kind);
        header.write(4, 0u32);
        header.write(8, sector);
        let status = self.status.part(slot, 1);
        status.write(0, status::UNTOUCHED);
        (Segment::read(&header), Segment::write(&status))
    }

    fn data(kind: u32, memory: &Dma) -> Segment {
        if matches!(kind, request::IN | request::GET_ID) { Segment::write(memory) } else { Segment::read(memory) }
    }

    /// One request with its data in pieces; returns the status the device gave. Chains of more than a few segments go
    /// through an indirect descriptor where that is negotiated.
    pub fn request(&mut self, kind: u32, sector: u64, pieces: &[Dma]) -> Outcome<u8> {
        const MOST: usize = 128;
        ensure!(pieces.len() <= MOST, "a request of {} pieces is more than this driver builds", pieces.len());
        let (header, status) = self.head(0, kind, sector);
        let mut segments = [header; MOST + 2];
        for (segment, piece) in segments[1..].iter_mut().zip(pieces) {
            *segment = Disk::data(kind, piece);
        }
        segments[pieces.len() + 1] = status;
        let segments = &segments[..pieces.len() + 2];
        let written = if self.device.has(feature::INDIRECT) && segments.len() > 4 {
            let head = self.queue.push_indirect(&self.indirect, segments);
            self.queue.notify();
            let (done, written) = self.queue.wait()?;
            ensure!(done == head, "chain {done} completed instead of {head}");
            written
        } else {
            self.queue.request(segments)?
        };
        let result = self.status.read(0);
        ensure!(result != status::UNTOUCHED, "the device completed a request without writing its status");
        if result == status::OK && kind == request::IN {
            let bytes = pieces.iter().map(Dma::len).sum::<usize>() as u32 + 1;
            ensure!(written == bytes, "a read of {} bytes reports {written} bytes written", bytes - 1);
        }
        Ok(result)
    }

    /// A request that must succeed.
    pub fn expect(&mut self, kind: u32, sector: u64, pieces: &[Dma]) -> Outcome<()> {
        match self.request(kind, sector, pieces)? {
            status::OK => Ok(()),
            other => fail!("request type {kind} at sector {sector} ended with status {other}"),
        }
    }

    /// Discards or zeroes a range.
    pub fn range_request(&mut self, kind: u32, sector: u64, sectors: u32) -> Outcome<u8> {
        let range = self.header.part(HEADER_BYTES, 16);
        range.write(0, sector);
        range.write(8, sectors);
        range.write(12, 0u32);
        self.request(kind, 0, &[range])
    }

    /// Starts a transfer in `slot` without waiting and without ringing the doorbell; returns the chain's head.
    pub fn submit(&mut self, slot: usize, kind: u32, sector: u64, memory: &Dma) -> u16 {
        let (header, status) = self.head(slot, kind, sector);
        self.queue.push(&[header, Disk::data(kind, memory), status])
    }

    /// The status of a slot's last transfer.
    pub fn slot_status(&self, slot: usize) -> u8 {
        self.status.read(slot)
    }
}
