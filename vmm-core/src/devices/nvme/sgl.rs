//! Where a command's data is: scatter gather lists (NVM Express base 1.4 §4.4) of data blocks, segments and last
//! segments, byte by byte.

use super::prp::Runs;
use super::status::Status;
use crate::base::{GuestAddress, GuestMemory};

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
/// Descriptors that one command may have, segments' included: what ends a list that leads to itself.
const MAX_DESCRIPTORS: usize = 4096;

/// Descriptor types, in the upper half of the last byte; the lower half is 0 for an address.
mod kind {
    pub const DATA_BLOCK: u8 = 0x00;
    pub const SEGMENT: u8 = 0x20;
    pub const LAST_SEGMENT: u8 = 0x30;
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    kind: u8,
}

impl Descriptor {
    fn new(bytes: &[u8; DESCRIPTOR]) -> Descriptor {
        let [a, b, c, d, e, f, g, h, i, j, k, l, _, _, _, kind] = *bytes;
        let (address, len) = (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u32::from_le_bytes([i, j, k, l]));
        Descriptor { address, len, kind }
    }
}

/// The runs that a command's descriptor and the segments behind it describe: exactly `len` bytes.
pub(super) fn walk(memory: &GuestMemory, first: &[u8; DESCRIPTOR], len: u64) -> Result<Runs, Status> {
    let mut runs = Runs::default();
    let mut total = 0;
    let mut seen = 0;
    let mut segment = vec![*first];
    // The command's own descriptor may be of any kind. A segment ends in the way to the next; the last has none.
    let mut may_lead_on = true;
    let mut must_lead_on = false;
    loop {
        let mut next = None;
        let last = segment.len() - 1;
        for (at, bytes) in segment.iter().enumerate() {
            let descriptor = Descriptor::new(bytes);
            seen += 1;
            if seen > MAX_DESCRIPTORS {
                return Err(Status::INVALID_SGL_COUNT);
            }
            match descriptor.kind {
                kind::DATA_BLOCK if at == last && must_lead_on => return Err(Status::INVALID_SGL_SEGMENT),
                kind::DATA_BLOCK => {
                    total += u64::from(descriptor.len);
                    if total > len {
                        return Err(Status::SGL_LENGTH);
                    }
                    runs.push(descriptor.address, u64::from(descriptor.len));
                }
                kind::SEGMENT | kind::LAST_SEGMENT if at == last && may_lead_on => next = Some(descriptor),
                kind::SEGMENT | kind::LAST_SEGMENT => return Err(Status::INVALID_SGL_SEGMENT),
                _ => return Err(Status::SGL_TYPE),
            }
        }
        let Some(Descriptor { address, len, kind }) = next else { break };
        let len = len as usize;
        if len == 0 || !len.is_multiple_of(DESCRIPTOR) {
            return Err(Status::INVALID_SGL_SEGMENT);
        }
        if len / DESCRIPTOR > MAX_DESCRIPTORS - seen {
            return Err(Status::INVALID_SGL_COUNT);
        }
        let mut bytes = vec![0; len];
        memory.read(GuestAddress(address), &mut bytes).map_err(|_| Status::DATA_TRANSFER)?;
        segment = bytes.as_chunks().0.to_vec();
        may_lead_on = kind == kind::SEGMENT;
        must_lead_on = may_lead_on;
    }
    if total == len { Ok(runs) } else { Err(Status::SGL_LENGTH) }
}
