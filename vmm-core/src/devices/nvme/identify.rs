//! What Identify tells of the controller and its namespace (NVM Express base 1.4 §5.15).

use super::prp::Runs;
use super::registers::VERSION;
use crate::backend::disk::{Geometry, SECTOR};

/// Bytes of each structure.
pub(super) const LEN: usize = 4096;
/// The only namespace.
pub(super) const NAMESPACE: u32 = 1;
/// The largest transfer as a shift of the smallest page: 1 MiB.
const MAX_TRANSFER_SHIFT: u8 = 8;
/// The same in bytes.
pub(super) const MAX_TRANSFER: u64 = 4096 << MAX_TRANSFER_SHIFT;
/// Event requests that may wait.
pub(super) const MAX_EVENT_REQUESTS: usize = 4;
/// Entries of the error log.
pub(super) const ERROR_LOG_ENTRIES: usize = 4;
/// PCI vendor and subsystem vendor ids.
pub(super) const VENDOR: u16 = 0x1b36;
pub(super) const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
/// Firmware revision.
pub(super) const FIRMWARE: &[u8; 8] = b"1.0     ";

/// Composite temperature, kelvins, of a drive that has none; and where it would be too hot.
pub(super) const TEMPERATURE: u16 = 300;
pub(super) const WARNING_TEMPERATURE: u16 = 343;
const CRITICAL_TEMPERATURE: u16 = 373;

/// ONCS bits (§5.15.2.2).
const DATASET_MANAGEMENT: u16 = 1 << 2;
const WRITE_ZEROES: u16 = 1 << 3;
const SELECT_FEATURES: u16 = 1 << 4;

/// A structure under construction.
struct Bytes(Vec<u8>);

impl Bytes {
    fn put(&mut self, at: usize, data: &[u8]) {
        self.0[at..at + data.len()].copy_from_slice(data);
    }

    /// ASCII, cut or padded with spaces.
    fn text(&mut self, at: usize, len: usize, text: &str) {
        let mut padded = vec![b' '; len];
        for (to, byte) in padded.iter_mut().zip(text.bytes()) {
            *to = if (0x20..0x7f).contains(&byte) { byte } else { b'?' };
        }
        self.put(at, &padded);
    }
}

/// A UUID of the kind whose contents are up to us (version 8, RFC 9562 §5.8), the same for the same name.
pub(super) fn uuid(name: &str) -> [u8; 16] {
    // FNV-1a of 128 bits.
    let hash = name.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    let mut bytes = hash.to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// Identify Controller (figure 247).
pub(super) fn controller(serial: &str, geometry: &Geometry) -> Vec<u8> {
    let mut bytes = Bytes(vec![0; LEN]);
    bytes.put(0, &VENDOR.to_le_bytes());
    bytes.put(2, &SUBSYSTEM.0.to_le_bytes());
    bytes.text(4, 20, serial);
    bytes.text(24, 40, "Orangery NVMe disk");
    bytes.put(64, FIRMWARE);
    bytes.put(77, &[MAX_TRANSFER_SHIFT]);
    bytes.put(80, &VERSION.to_le_bytes());
    // An I/O controller.
    bytes.put(111, &[1]);
    // Doorbell Buffer Config.
    bytes.put(256, &(1u16 << 8).to_le_bytes());
    // Aborts and event requests at once, counted from 0; one firmware slot, read-only.
    bytes.put(258, &[3, MAX_EVENT_REQUESTS as u8 - 1, 0x03]);
    // Log pages: SMART for a namespace, effects, offsets.
    bytes.put(261, &[0x07, ERROR_LOG_ENTRIES as u8 - 1]);
    bytes.put(266, &WARNING_TEMPERATURE.to_le_bytes());
    bytes.put(268, &CRITICAL_TEMPERATURE.to_le_bytes());
    // Entry sizes, least and most.
    bytes.put(512, &[0x66, 0x44]);
    bytes.put(516, &NAMESPACE.to_le_bytes());
    let mut commands = SELECT_FEATURES;
    if !geometry.readonly {
        commands |= WRITE_ZEROES;
    }
    if geometry.discard_granularity > 0 {
        commands |= DATASET_MANAGEMENT;
    }
    bytes.put(520, &commands.to_le_bytes());
    // A volatile write cache; a flush of all namespaces is understood.
    bytes.put(525, &[0x07]);
    // SGLs without alignment.
    bytes.put(536, &1u32.to_le_bytes());
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = uuid(serial);
    let name = format!(
        "nqn.2014-08.org.nvmexpress:uuid:{a:02x}{b:02x}{c:02x}{d:02x}-{e:02x}{f:02x}-{g:02x}{h:02x}-{i:02x}{j:02x}-\
         {k:02x}{l:02x}{m:02x}{n:02x}{o:02x}{p:02x}"
    );
    bytes.put(768, name.as_bytes());
    bytes.0
}

/// Identify Namespace (figure 245).
pub(super) fn namespace(geometry: &Geometry) -> Vec<u8> {
    let mut bytes = Bytes(vec![0; LEN]);
    let blocks = (geometry.size / SECTOR).to_le_bytes();
    for at in [0, 8, 16] {
        bytes.put(at, &blocks);
    }
    // The preferred sizes below are valid.
    bytes.put(24, &[1 << 4]);
    // Write Zeroes may deallocate; what is deallocated reads as anything.
    bytes.put(33, &[1 << 3]);
    let less_one = |len: u32| (u64::from(len) / SECTOR).saturating_sub(1).min(u64::from(u16::MAX)) as u16;
    let (write, discard) = (less_one(geometry.physical_block), less_one(geometry.discard_granularity));
    for (at, value) in [(64, write), (66, write), (68, discard), (70, discard)] {
        bytes.put(at, &value.to_le_bytes());
    }
    bytes.put(99, &[u8::from(geometry.readonly)]);
    // The one format: blocks of 512 bytes, for firmware knows no other everywhere; no metadata.
    bytes.put(128, &[0, 0, SECTOR.trailing_zeros() as u8, 0]);
    bytes.0
}

/// The namespaces above `after` (§5.15.2.3).
pub(super) fn active_namespaces(after: u32) -> Vec<u8> {
    let mut bytes = Bytes(vec![0; LEN]);
    if after < NAMESPACE {
        bytes.put(0, &NAMESPACE.to_le_bytes());
    }
    bytes.0
}

/// The namespace's names (§5.15.2.4): its UUID.
pub(super) fn descriptors(serial: &str) -> Vec<u8> {
    let mut bytes = Bytes(vec![0; LEN]);
    bytes.put(0, &[3, 16]);
    bytes.put(4, &uuid(serial));
    bytes.0
}

/// What a log or structure's reader gets: the part from `offset` on.
pub(super) fn part(bytes: &[u8], offset: u64, runs: &Runs) -> Option<Vec<u8>> {
    let len = runs.0.iter().map(|(_, len)| len).sum();
    let from = usize::try_from(offset).ok().filter(|&at| at < bytes.len())?;
    let mut part = bytes[from..].to_vec();
    part.resize(len, 0);
    Some(part)
}
