//! I/O commands on the namespace (NVM Express base 1.4 §6): from a command to requests of the disk.

use super::identify::{MAX_TRANSFER, NAMESPACE};
use super::prp::{self, Runs};
use super::queues::Command;
use super::sgl;
use super::status::Status;
use crate::backend::disk::{Buffers, Geometry, Request, SECTOR};
use crate::base::GuestMemory;

/// Opcodes of the NVM command set.
pub(super) mod opcode {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// All namespaces.
pub(super) const EVERY_NAMESPACE: u32 = u32::MAX;
/// In dword 12: the command ends when its blocks are on stable storage.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// In dword 12 of Write Zeroes: the space may be given back.
const DEALLOCATE: u32 = 1 << 25;
/// In dword 12 of Write: a directive, of which there is none.
const DIRECTIVE: u32 = 0xf << 20;
/// In dword 11 of Dataset Management: the ranges are of no use any more.
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;
/// Bytes of a range.
const RANGE: usize = 16;

/// What a command comes to.
pub(super) struct Plan {
    /// What the disk does for it, nothing for a command that is done already.
    pub requests: Vec<Request>,
    /// Sectors that are read (0) or written (1).
    pub counts: Option<(bool, u64)>,
    /// The first block, for the error log.
    pub block: u64,
}

impl Plan {
    fn new(requests: Vec<Request>) -> Plan {
        Plan { requests, counts: None, block: 0 }
    }
}

/// Where a command's data is.
pub(super) fn data(memory: &GuestMemory, page: u64, command: &Command, len: u64) -> Result<Runs, Status> {
    if len > MAX_TRANSFER {
        return Err(Status::INVALID_FIELD);
    }
    match command.data_kind() {
        0 => prp::walk(memory, page, command.prps(), len),
        1 => sgl::walk(memory, &command.sgl(), len),
        // There is no metadata that could be described by an SGL.
        _ => Err(Status::INVALID_FIELD),
    }
}

fn buffers(memory: &GuestMemory, page: u64, command: &Command, len: u64) -> Result<Buffers, Status> {
    let runs = data(memory, page, command, len)?;
    Buffers::from_runs(memory, &runs.0).map_err(|_| Status::DATA_TRANSFER)
}

/// The offset of a range of blocks and its bytes, if it is inside the disk.
fn range(geometry: &Geometry, block: u64, count: u64) -> Result<(u64, u64), Status> {
    let (offset, len) = (block.checked_mul(SECTOR), count.checked_mul(SECTOR));
    let (Some(offset), Some(len)) = (offset, len) else { return Err(Status::LBA_RANGE) };
    let inside = offset.checked_add(len).is_some_and(|end| end <= geometry.size);
    if inside { Ok((offset, len)) } else { Err(Status::LBA_RANGE) }
}

/// Finds out what a command asks for. `durable`: the driver has turned the write cache off.
pub(super) fn plan(
    memory: &GuestMemory,
    page: u64,
    geometry: &Geometry,
    command: &Command,
    durable: bool,
) -> Result<Plan, Status> {
    let opcode = command.opcode();
    let known = match opcode {
        opcode::FLUSH | opcode::WRITE | opcode::READ => true,
        opcode::WRITE_ZEROES => !geometry.readonly,
        opcode::DATASET_MANAGEMENT => geometry.discard_granularity > 0,
        _ => false,
    };
    if !known {
        return Err(Status::INVALID_OPCODE);
    }
    if command.is_fused() {
        return Err(Status::INVALID_FIELD);
    }
    match command.namespace() {
        NAMESPACE => {}
        EVERY_NAMESPACE if opcode == opcode::FLUSH => {}
        _ => return Err(Status::INVALID_NAMESPACE),
    }
    if opcode == opcode::FLUSH {
        return Ok(Plan::new(vec![Request::Flush]));
    }
    if geometry.readonly && opcode != opcode::READ {
        return Err(Status::WRITE_PROTECTED);
    }
    if opcode == opcode::DATASET_MANAGEMENT {
        return ranges(memory, page, geometry, command);
    }
    let (block, count) = (command.qword(10), u64::from(command.dword(12) & 0xffff) + 1);
    let options = command.dword(12);
    let durable = durable || options & FORCE_UNIT_ACCESS != 0;
    let (offset, len) = range(geometry, block, count)?;
    let request = match opcode {
        opcode::READ => Request::Read { offset, buffers: buffers(memory, page, command, len)? },
        opcode::WRITE if options & DIRECTIVE != 0 => return Err(Status::INVALID_FIELD),
        opcode::WRITE => Request::Write { offset, buffers: buffers(memory, page, command, len)?, durable },
        _ => Request::WriteZeroes { offset, len, unmap: options & DEALLOCATE != 0, durable },
    };
    let counts = (opcode != opcode::WRITE_ZEROES).then_some((opcode == opcode::WRITE, count));
    // FUA of a read: what a cache holds of the blocks goes to stable storage first (§6.9).
    let mut requests = if opcode == opcode::READ && options & FORCE_UNIT_ACCESS != 0 && !geometry.readonly {
        vec![Request::Flush]
    } else {
        Vec::new()
    };
    requests.push(request);
    Ok(Plan { requests, counts, block })
}

/// Dataset Management (§6.7): ranges to discard; other attributes are advice.
fn ranges(memory: &GuestMemory, page: u64, geometry: &Geometry, command: &Command) -> Result<Plan, Status> {
    let count = (command.dword(10) & 0xff) as usize + 1;
    let mut bytes = vec![0; count * RANGE];
    data(memory, page, command, bytes.len() as u64)?.read(memory, &mut bytes)?;
    let mut requests = Vec::new();
    for entry in bytes.as_chunks::<RANGE>().0 {
        let [_, _, _, _, a, b, c, d, rest @ ..] = *entry;
        let (count, block) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(rest));
        let (offset, len) = range(geometry, block, u64::from(count))?;
        if len > 0 && command.dword(11) & ATTRIBUTE_DEALLOCATE != 0 {
            requests.push(Request::Discard { offset, len });
        }
    }
    Ok(Plan::new(requests))
}
