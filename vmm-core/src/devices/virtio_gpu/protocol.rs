//! The device's requests and answers as they are in the queues (virtio 1.2 §5.7.6).

use crate::backend::display::Rect;
use crate::virtio::{Fault, Reader};

/// Request types.
pub(super) mod command {
    pub const GET_DISPLAY_INFO: u32 = 0x0100;
    pub const RESOURCE_CREATE_2D: u32 = 0x0101;
    pub const RESOURCE_UNREF: u32 = 0x0102;
    pub const SET_SCANOUT: u32 = 0x0103;
    pub const RESOURCE_FLUSH: u32 = 0x0104;
    pub const TRANSFER_TO_HOST_2D: u32 = 0x0105;
    pub const RESOURCE_ATTACH_BACKING: u32 = 0x0106;
    pub const RESOURCE_DETACH_BACKING: u32 = 0x0107;
    pub const GET_EDID: u32 = 0x010a;
    pub const UPDATE_CURSOR: u32 = 0x0300;
    pub const MOVE_CURSOR: u32 = 0x0301;
}

const OK_NODATA: u32 = 0x1100;
const OK_DISPLAY_INFO: u32 = 0x1101;
const OK_EDID: u32 = 0x1104;

/// The request is to be answered only when it is done, with its fence.
const FLAG_FENCE: u32 = 1;
/// The number of scanouts in the answer to GET_DISPLAY_INFO, whatever the device has.
const MAX_SCANOUTS: usize = 16;
/// Room for an EDID in its answer.
const EDID_ROOM: usize = 1024;

/// Why a request is refused: the type of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Unspecified = 0x1200,
    OutOfMemory = 0x1201,
    InvalidScanout = 0x1202,
    InvalidResource = 0x1203,
    InvalidParameter = 0x1205,
}

impl From<Fault> for Refusal {
    /// A request that is shorter than its type.
    fn from(_: Fault) -> Refusal {
        Refusal::InvalidParameter
    }
}

/// What every request and answer starts with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: u32,
    flags: u32,
    fence: u64,
    context: u32,
    ring: u32,
}

impl Header {
    pub const SIZE: usize = 24;

    pub fn read(reader: &mut Reader<'_>) -> Result<Header, Fault> {
        let [kind, flags, low, high, context, ring] = words(reader)?;
        Ok(Header { kind, flags, fence: u64::from(low) | u64::from(high) << 32, context, ring })
    }

    /// The answer of type `kind` to this request.
    pub fn answer(self, kind: u32) -> [u8; Header::SIZE] {
        let mut bytes = [0; Header::SIZE];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        if self.flags & FLAG_FENCE != 0 {
            bytes[4..8].copy_from_slice(&FLAG_FENCE.to_le_bytes());
            bytes[8..16].copy_from_slice(&self.fence.to_le_bytes());
            bytes[16..20].copy_from_slice(&self.context.to_le_bytes());
            bytes[20..24].copy_from_slice(&self.ring.to_le_bytes());
        }
        bytes
    }
}

/// Reads little-endian words.
pub(super) fn words<const N: usize>(reader: &mut Reader<'_>) -> Result<[u32; N], Fault> {
    let mut words = [0; N];
    for word in &mut words {
        *word = u32::from_le(reader.read_obj()?);
    }
    Ok(words)
}

/// Reads `struct virtio_gpu_rect`.
pub(super) fn rect(reader: &mut Reader<'_>) -> Result<Rect, Fault> {
    let [x, y, width, height] = words(reader)?;
    Ok(Rect { x, y, width, height })
}

/// The answer to a request that went well.
pub(super) enum Answer {
    Done,
    /// The first scanout's size.
    DisplayInfo(u32, u32),
    Edid(Vec<u8>),
}

impl Answer {
    pub fn kind(&self) -> u32 {
        match self {
            Answer::Done => OK_NODATA,
            Answer::DisplayInfo(..) => OK_DISPLAY_INFO,
            Answer::Edid(_) => OK_EDID,
        }
    }

    /// What follows the header.
    pub fn body(&self) -> Vec<u8> {
        match self {
            Answer::Done => Vec::new(),
            Answer::DisplayInfo(width, height) => {
                // For each scanout a rectangle, enabled, flags.
                let mut bytes = vec![0; MAX_SCANOUTS * 24];
                bytes[8..12].copy_from_slice(&width.to_le_bytes());
                bytes[12..16].copy_from_slice(&height.to_le_bytes());
                bytes[16] = 1;
                bytes
            }
            Answer::Edid(edid) => {
                let mut bytes = vec![0; 8 + EDID_ROOM];
                let len = edid.len().min(EDID_ROOM);
                bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
                bytes[8..8 + len].copy_from_slice(&edid[..len]);
                bytes
            }
        }
    }
}
