//! virtio block device (virtio 1.2 §5.2): turns a driver's requests into a [`Disk`]'s, without copying their data.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::disk::{Buffers, Complaints, Completion, Disk, DiskError, Geometry, Request, SECTOR};
use crate::base::{SavedState, StateError};
use crate::virtio::{Chain, ConfigBytes, ConfigSpace, Device, Fault, Info, Io, Reader, Role, Source, id};

#[cfg(test)]
mod tests;

/// Feature bits (§5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Request types (§5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// How a request ended (§5.2.6).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

const QUEUE_SIZE: u16 = 256;
/// Data segments of one request: what a chain of the queue's size leaves beside header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Ranges in one discard or write-zeroes request, and sectors in each (2 GiB).
const MAX_RANGES: usize = 32;
const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// struct virtio_blk_discard_write_zeroes.
const RANGE: usize = 16;
/// In the flags of a range.
const UNMAP: u32 = 1;
/// Bytes in the answer to GET_ID.
const ID_LEN: usize = 20;
/// The only source: the disk's event.
const DISK: u32 = 0;

/// The device.
pub struct Blk {
    disk: Box<dyn Disk>,
    geometry: Geometry,
    id: [u8; ID_LEN],
    config: Arc<ConfigBytes>,
    /// By slot, which is the token that the disk gets.
    in_flight: Vec<Option<Pending>>,
    free: Vec<usize>,
    complaints: Complaints,
    /// The host was full: nothing is taken until the machine was paused and goes on.
    stalled: bool,
}

/// A request that waits for the disk.
struct Pending {
    chain: Chain,
    status: Status,
    /// A part found the host full: all of it is to be done again.
    full: bool,
    /// Answers of the disk still to come.
    parts: usize,
}

/// What a request comes to.
enum Plan {
    /// Work for the disk.
    Disk(Vec<Request>),
    /// It is over already.
    Done(Status),
}

/// What a checkpoint keeps: nothing but what the disk must be again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// Bytes.
    size: u64,
    readonly: bool,
}

impl SavedState for BlkState {
    const VERSION: u32 = 1;
}

impl Blk {
    /// A device on this disk. `id` is shown to the guest, its first 20 bytes.
    pub fn new(disk: Box<dyn Disk>, id: &str) -> Blk {
        let geometry = disk.geometry();
        let config = Arc::new(ConfigBytes::new(config_bytes(&geometry)));
        let mut own_id = [0; ID_LEN];
        let len = id.len().min(ID_LEN);
        own_id[..len].copy_from_slice(&id.as_bytes()[..len]);
        Blk {
            disk,
            geometry,
            id: own_id,
            config,
            in_flight: Vec::new(),
            free: Vec::new(),
            complaints: Complaints::default(),
            stalled: false,
        }
    }

    /// Takes requests from the queue as long as there is room for them, and has the disk start.
    fn take(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        // A driver that does not wait for its completions could offer any number.
        while !self.stalled
            && self.in_flight.len() - self.free.len() < usize::from(QUEUE_SIZE)
            && let Some(chain) = io.pop(0)?
        {
            match self.plan(&chain, io)? {
                Plan::Disk(requests) => self.submit(chain, requests),
                Plan::Done(status) => finish(chain, status)?,
            }
        }
        self.disk.kick();
        Ok(())
    }

    fn plan(&self, chain: &Chain, io: &Io<'_>) -> Result<Plan, Fault> {
        let (mut reader, mut writer) = (chain.reader(), chain.writer());
        let [kind, _reserved]: [u32; 2] = reader.read_obj()?;
        let (kind, sector) = (u32::from_le(kind), u64::from_le(reader.read_obj()?));
        let data = reader.remaining();
        let Some(room) = writer.remaining().checked_sub(1) else {
            return Err(Fault::Request("a request has no room for its status"));
        };
        // A driver that can't flush expects that what is written is written (§5.2.6.2).
        let durable = io.features() & feature::FLUSH == 0;
        Ok(match kind {
            kind::IN => match self.range(sector, room as u64) {
                None => Plan::Done(Status::IoError),
                Some(_) if room == 0 => Plan::Done(Status::Ok),
                Some(offset) => {
                    let buffers = Buffers::from_runs(io.memory(), &writer.runs(room)?)?;
                    Plan::Disk(vec![Request::Read { offset, buffers }])
                }
            },
            kind::OUT => match self.range(sector, data as u64) {
                Some(offset) if !self.geometry.readonly => {
                    if data == 0 {
                        return Ok(Plan::Done(Status::Ok));
                    }
                    let buffers = Buffers::from_runs(io.memory(), &reader.runs(data)?)?;
                    Plan::Disk(vec![Request::Write { offset, buffers, durable }])
                }
                _ => Plan::Done(Status::IoError),
            },
            kind::FLUSH => Plan::Disk(vec![Request::Flush]),
            kind::GET_ID => {
                writer.write_all(&self.id[..room.min(ID_LEN)])?;
                Plan::Done(Status::Ok)
            }
            kind::DISCARD if io.features() & feature::DISCARD != 0 => {
                self.ranges(reader, false, |offset, len, _| Request::Discard { offset, len })?
            }
            kind::WRITE_ZEROES if io.features() & feature::WRITE_ZEROES != 0 => {
                let zero = |offset, len, unmap| Request::WriteZeroes { offset, len, unmap, durable };
                self.ranges(reader, true, zero)?
            }
            _ => Plan::Done(Status::Unsupported),
        })
    }

    /// A request for each range of a discard or write-zeroes request, from offset, length and whether to unmap
    /// (§5.2.6.2).
    fn ranges(
        &self,
        mut reader: Reader<'_>,
        may_unmap: bool,
        request: impl Fn(u64, u64, bool) -> Request,
    ) -> Result<Plan, Fault> {
        let len = reader.remaining();
        if self.geometry.readonly || len == 0 || !len.is_multiple_of(RANGE) || len / RANGE > MAX_RANGES {
            return Ok(Plan::Done(Status::IoError));
        }
        let mut requests = Vec::with_capacity(len / RANGE);
        for _ in 0..len / RANGE {
            let sector = u64::from_le(reader.read_obj()?);
            let [count, flags]: [u32; 2] = reader.read_obj()?;
            let (count, flags) = (u32::from_le(count), u32::from_le(flags));
            let unmap = flags & UNMAP != 0;
            if flags & !UNMAP != 0 || (unmap && !may_unmap) {
                return Ok(Plan::Done(Status::Unsupported));
            }
            let len = u64::from(count) * SECTOR;
            match self.range(sector, len) {
                Some(offset) if count <= MAX_RANGE_SECTORS => requests.push(request(offset, len, unmap)),
                _ => return Ok(Plan::Done(Status::IoError)),
            }
        }
        Ok(Plan::Disk(requests))
    }

    /// The offset of a range in sectors and bytes, if it is whole sectors inside the disk.
    fn range(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(len)?;
        (len.is_multiple_of(SECTOR) && end <= self.geometry.size).then_some(offset)
    }

    fn submit(&mut self, chain: Chain, requests: Vec<Request>) {
        let pending = Pending { chain, status: Status::Ok, full: false, parts: requests.len() };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        });
        self.in_flight[slot] = Some(pending);
        for request in requests {
            self.disk.submit(slot as u64, request);
        }
    }

    /// Completes the chains of all that the disk has finished.
    fn reap(&mut self, io: &mut Io<'_>) -> Result<(), Fault> {
        while let Some(Completion { token, result }) = self.disk.completed() {
            match &result {
                Err(DiskError::Full) => self.stall(io),
                Err(error) => {
                    if let Some(complaint) = self.complaints.about(error) {
                        io.problem(complaint);
                    }
                }
                Ok(()) => {}
            }
            let slot = token as usize;
            let Some(entry) = self.in_flight.get_mut(slot) else { continue };
            let Some(pending) = entry else { continue };
            pending.parts -= 1;
            match result {
                Err(DiskError::Full) => pending.full = true,
                Err(_) => pending.status = Status::IoError,
                Ok(()) => {}
            }
            if let Some(pending) = entry.take_if(|p| p.parts == 0) {
                self.free.push(slot);
                if pending.full {
                    io.put_back(0, pending.chain);
                } else {
                    finish(pending.chain, pending.status)?;
                }
            }
        }
        Ok(())
    }

    /// Takes nothing more, and has the machine paused: there will be room again, and no guest should see its writes fail
    /// until then.
    fn stall(&mut self, io: &mut Io<'_>) {
        if !std::mem::replace(&mut self.stalled, true) {
            io.stall(format!("{}; free some, then resume the machine", DiskError::Full));
        }
    }
}

/// Writes the status, the last byte of the writable part, and completes the chain.
fn finish(chain: Chain, status: Status) -> Result<(), Fault> {
    let mut writer = chain.writer();
    writer.skip(writer.remaining().saturating_sub(1))?;
    writer.write_all(&[status as u8])?;
    let written = writer.written();
    chain.complete(written);
    Ok(())
}

/// struct virtio_blk_config (§5.2.4).
fn config_bytes(geometry: &Geometry) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    let blocks = geometry.physical_block / SECTOR as u32;
    put(0, &(geometry.size / SECTOR).to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    // Firmware knows no other size than 512.
    put(20, &(SECTOR as u32).to_le_bytes());
    // Topology: the physical block as a power of two of sectors; the smallest good transfer.
    put(24, &[blocks.trailing_zeros() as u8, 0]);
    put(26, &u16::try_from(blocks).unwrap_or(0).to_le_bytes());
    // The cache is written back.
    put(32, &[1]);
    // One queue.
    put(34, &1u16.to_le_bytes());
    if geometry.discard_granularity > 0 {
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &(MAX_RANGES as u32).to_le_bytes());
        put(44, &(geometry.discard_granularity / SECTOR as u32).to_le_bytes());
    }
    if !geometry.readonly {
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &(MAX_RANGES as u32).to_le_bytes());
        put(56, &[1]);
    }
    bytes
}

impl Device for Blk {
    const INFO: Info = Info::new(id::BLOCK, "blk", Role::Disk).class([1, 0, 0]);
    type State = BlkState;

    fn features(&self) -> u64 {
        // Not SIZE_MAX: SeaBIOS would split requests by it. Not CONFIG_WCE: a driver that wants to write through does
        // not accept FLUSH.
        let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH | feature::TOPOLOGY;
        if self.geometry.readonly {
            features |= feature::RO;
        } else {
            features |= feature::WRITE_ZEROES;
        }
        if self.geometry.discard_granularity > 0 {
            features |= feature::DISCARD;
        }
        features
    }

    fn queues(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.config.clone()
    }

    fn start(&mut self, _io: &mut Io<'_>) -> Result<(), Fault> {
        self.stalled = false;
        Ok(())
    }

    fn on_queue(&mut self, _queue: usize, io: &mut Io<'_>) -> Result<(), Fault> {
        self.take(io)?;
        // What the host has in its cache is done already.
        self.reap(io)
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { id: DISK, fd: self.disk.event() }]
    }

    fn on_source(&mut self, _id: u32, io: &mut Io<'_>) -> Result<(), Fault> {
        self.reap(io)?;
        self.take(io)
    }

    fn quiesce(&mut self, io: &mut Io<'_>) {
        self.disk.drain();
        if self.reap(io).is_err() {
            // A status in RAM that was checked can't fail; the chains that are left complete when dropped.
            self.in_flight.clear();
            self.free.clear();
        }
    }

    fn reset(&mut self) {
        self.complaints.reset();
        self.stalled = false;
    }

    fn save(&self) -> BlkState {
        let Blk { disk: _, geometry, id: _, config: _, in_flight: _, free: _, complaints: _, stalled: _ } = self;
        BlkState { size: geometry.size, readonly: geometry.readonly }
    }

    fn restore(&mut self, state: BlkState) -> Result<(), StateError> {
        let BlkState { size, readonly } = state;
        if size != self.geometry.size || readonly != self.geometry.readonly {
            let now = self.geometry.size;
            return Err(StateError::invalid("blk", format!("its disk had {size} bytes, this one has {now}")));
        }
        Ok(())
    }
}
