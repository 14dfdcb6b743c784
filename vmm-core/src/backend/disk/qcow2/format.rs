//! The header of a qcow2 image and the words of its tables (QEMU's docs/interop/qcow2.txt). All numbers are big-endian.

use std::fmt::Write as _;

/// `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// Cluster sizes that the specification allows, as powers of two.
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The most that a table of level 1 may take, as QEMU has it.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// The most that the table of refcount blocks may take, as QEMU has it.
pub const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// The longest name of a backing file.
pub const MAX_BACKING_NAME: usize = 1023;
/// The largest virtual disk that is opened: what a hostile header makes us allocate is bounded by it.
pub const MAX_SIZE: u64 = 64 << 40;

/// Bits of an entry of level 1 or 2.
pub mod entry {
    /// It alone refers to its cluster.
    pub const COPIED: u64 = 1 << 63;
    /// The cluster is compressed.
    pub const COMPRESSED: u64 = 1 << 62;
    /// The cluster reads as zeroes (version 3).
    pub const ZERO: u64 = 1;
    /// Where the cluster is.
    pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
}

/// Incompatible features.
pub mod incompatible {
    /// Refcounts may be out of date.
    pub const DIRTY: u64 = 1;
    /// The image is damaged, and was found to be.
    pub const CORRUPT: u64 = 2;
    /// Data is in another file.
    pub const EXTERNAL_DATA: u64 = 4;
    /// Clusters are compressed by something else than deflate.
    pub const COMPRESSION: u64 = 8;
    /// Entries of level 2 have 16 bytes.
    pub const EXTENDED_L2: u64 = 16;
}

/// Where the header says how clusters are compressed.
const COMPRESSION_AT: usize = 104;
/// The smallest clusters that have subclusters, as a power of two.
const LEAST_SUBCLUSTERED: u32 = 14;

/// Persistent bitmaps are up to date.
pub const AUTOCLEAR_BITMAPS: u64 = 1;

mod extension {
    pub const END: u32 = 0;
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const BITMAPS: u32 = 0x2385_2875;
    pub const ENCRYPTION: u32 = 0x0537_be77;
}

/// Why an image is not used. It is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It uses what we can't do.
    #[error(
        "it uses {0}, which Orangery can't; make a copy without it by the program that it is from ('qemu-img convert')"
    )]
    Unsupported(String),
    /// It can be read, but not written.
    #[error(
        "it has {0}, which writing would spoil; open it read-only, or make a copy without: 'orangery disk convert OLD NEW'"
    )]
    ReadOnly(&'static str),
    /// It breaks the format's rules.
    #[error("it is damaged or no such image: {0}")]
    Damaged(String),
    /// It is of a format that is only read to convert it.
    #[error("it is a {0} image, which machines can't use as it is; convert it first: 'orangery disk convert OLD NEW'")]
    Foreign(&'static str),
}

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1951, without a header.
    Deflate,
    /// RFC 8878, one frame for each cluster.
    Zstd,
}

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster, as a power of two.
    pub cluster_bits: u32,
    /// Bytes of the virtual disk.
    pub size: u64,
    /// Entries of the table of level 1.
    pub l1_entries: u32,
    /// Where that is.
    pub l1_offset: u64,
    /// Where the table of refcount blocks is.
    pub reftable_offset: u64,
    /// Clusters of that.
    pub reftable_clusters: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Where their table is.
    pub snapshots_offset: u64,
    /// Incompatible features.
    pub incompatible: u64,
    /// Compatible features.
    pub compatible: u64,
    /// Features that a writer who does not know them clears.
    pub autoclear: u64,
    /// Bits of a refcount, as a power of two.
    pub refcount_order: u32,
    /// How clusters are compressed.
    pub compression: Compression,
    /// What it stands on.
    pub backing: Option<String>,
    /// The format of that.
    pub backing_format: Option<String>,
    /// Extensions that are kept as they are.
    pub extensions: Vec<(u32, Vec<u8>)>,
}

fn damaged<T>(what: impl Into<String>) -> Result<T, FormatError> {
    Err(FormatError::Damaged(what.into()))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_be_bytes(*b))
}

/// Whether these first bytes of a file are a qcow2 image's.
pub fn is_qcow2(start: &[u8]) -> bool {
    start.len() >= 8 && u32_at(start, 0) == MAGIC
}

impl Header {
    /// The size of the cluster that holds the header, from its first 24 bytes.
    pub fn cluster_size(start: &[u8]) -> Result<usize, FormatError> {
        let bits = u32_at(start, 20);
        if !CLUSTER_BITS.contains(&bits) {
            return damaged(format!("its clusters would have 2^{bits} bytes"));
        }
        Ok(1 << bits)
    }

    /// Reads the header from the image's first cluster, or as much of it as there is.
    pub fn parse(cluster: &[u8]) -> Result<Header, FormatError> {
        if cluster.len() < 72 || u32_at(cluster, 0) != MAGIC {
            return damaged("it has no header");
        }
        let version = u32_at(cluster, 4);
        let cluster_bits = Header::cluster_size(cluster)?.trailing_zeros();
        let v3 = match version {
            2 => false,
            3 => true,
            other => return Err(FormatError::Unsupported(format!("version {other} of qcow2"))),
        };
        let header_len = if v3 { u32_at(cluster, 100) as usize } else { 72 };
        if v3 && (header_len < 104 || header_len > cluster.len() || !header_len.is_multiple_of(8)) {
            return damaged(format!("its header would have {header_len} bytes"));
        }
        let mut header = Header {
            version,
            cluster_bits,
            size: u64_at(cluster, 24),
            l1_entries: u32_at(cluster, 36),
            l1_offset: u64_at(cluster, 40),
            reftable_offset: u64_at(cluster, 48),
            reftable_clusters: u32_at(cluster, 56),
            snapshots: u32_at(cluster, 60),
            snapshots_offset: u64_at(cluster, 64),
            incompatible: if v3 { u64_at(cluster, 72) } else { 0 },
            compatible: if v3 { u64_at(cluster, 80) } else { 0 },
            autoclear: if v3 { u64_at(cluster, 88) } else { 0 },
            refcount_order: if v3 { u32_at(cluster, 96) } else { 4 },
            compression: Compression::Deflate,
            backing: None,
            backing_format: None,
            extensions: Vec::new(),
        };
        match u32_at(cluster, 32) {
            0 => {}
            1 => return Err(FormatError::Unsupported("AES encryption".into())),
            2 => return Err(FormatError::Unsupported("LUKS encryption".into())),
            other => return Err(FormatError::Unsupported(format!("encryption method {other}"))),
        }
        let feature_names = header.read_extensions(cluster, header_len)?;
        header.check_features(&feature_names)?;
        if header.incompatible & incompatible::COMPRESSION != 0 {
            header.compression = match cluster.get(COMPRESSION_AT..header_len).and_then(|rest| rest.first()) {
                Some(1) => Compression::Zstd,
                Some(other) => return Err(FormatError::Unsupported(format!("compression method {other}"))),
                None => return damaged("its header does not say how it is compressed"),
            };
        }
        if header.has_subclusters() && cluster_bits < LEAST_SUBCLUSTERED {
            return damaged("its clusters are too small for subclusters");
        }
        header.check_places()?;
        header.read_backing(cluster)?;
        Ok(header)
    }

    /// Reads the extensions and returns the table of feature names.
    fn read_extensions(&mut self, cluster: &[u8], from: usize) -> Result<Vec<u8>, FormatError> {
        let backing = u64_at(cluster, 8);
        let end = if backing == 0 { cluster.len() } else { usize::try_from(backing).unwrap_or(0).min(cluster.len()) };
        let (mut at, mut names) = (from, Vec::new());
        while at + 8 <= end {
            let (kind, len) = (u32_at(cluster, at), u32_at(cluster, at + 4) as usize);
            if kind == extension::END {
                break;
            }
            let Some(data) = len.checked_add(at + 8).and_then(|stop| cluster.get(at + 8..stop)) else {
                return damaged("an extension of its header leaves the first cluster");
            };
            match kind {
                extension::BACKING_FORMAT => match std::str::from_utf8(data) {
                    Ok(format) => self.backing_format = Some(format.into()),
                    Err(_) => return damaged("the format of its backing file is no text"),
                },
                extension::FEATURE_NAMES => names = data.to_vec(),
                extension::ENCRYPTION => return Err(FormatError::Unsupported("LUKS encryption".into())),
                kind => self.extensions.push((kind, data.to_vec())),
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(names)
    }

    fn check_features(&self, names: &[u8]) -> Result<(), FormatError> {
        use incompatible::*;
        let known = DIRTY | CORRUPT | COMPRESSION | EXTENDED_L2;
        for bit in 0..64 {
            if self.incompatible & !known & (1 << bit) == 0 {
                continue;
            }
            return Err(FormatError::Unsupported(match 1 << bit {
                EXTERNAL_DATA => "an external data file".into(),
                _ => unknown_feature(bit as u8, names),
            }));
        }
        Ok(())
    }

    fn check_places(&self) -> Result<(), FormatError> {
        let cluster = 1u64 << self.cluster_bits;
        if self.size > MAX_SIZE {
            return Err(FormatError::Unsupported(format!("a virtual disk of {} TiB", self.size >> 40)));
        }
        if self.refcount_order > 6 {
            return damaged(format!("its refcounts would have 2^{} bits", self.refcount_order));
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > MAX_L1_BYTES {
            return damaged("its L1 table is larger than any may be");
        }
        if u64::from(self.l1_entries) < self.l1_needed() {
            return damaged("its L1 table is too small for its disk");
        }
        let reftable_bytes = u64::from(self.reftable_clusters) * cluster;
        if reftable_bytes == 0 || reftable_bytes > MAX_REFTABLE_BYTES {
            return damaged("its refcount table is of no size that one may have");
        }
        for (what, offset) in [("L1", self.l1_offset), ("refcount", self.reftable_offset)] {
            let empty = what == "L1" && self.l1_entries == 0;
            if !empty && (offset < cluster || !offset.is_multiple_of(cluster) || offset > entry::OFFSET) {
                return damaged(format!("its {what} table is at {offset:#x}"));
            }
        }
        Ok(())
    }

    fn read_backing(&mut self, cluster: &[u8]) -> Result<(), FormatError> {
        let (offset, len) = (u64_at(cluster, 8), u32_at(cluster, 16) as usize);
        if offset == 0 {
            self.backing_format = None;
            return Ok(());
        }
        if len > MAX_BACKING_NAME {
            return damaged("the name of its backing file is too long");
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(name) = start.checked_add(len).and_then(|end| cluster.get(start..end)) else {
            return damaged("the name of its backing file is not in the first cluster");
        };
        match std::str::from_utf8(name) {
            Ok("") => self.backing_format = None,
            Ok(name) => self.backing = Some(name.into()),
            Err(_) => return damaged("the name of its backing file is no text"),
        }
        Ok(())
    }

    /// Whether clusters have 32 parts that are each here, zero or in the image below.
    pub fn has_subclusters(&self) -> bool {
        self.incompatible & incompatible::EXTENDED_L2 != 0
    }

    /// Bytes of an entry of level 2, as a power of two.
    pub fn entry_bits(&self) -> u32 {
        if self.has_subclusters() { 4 } else { 3 }
    }

    /// Entries that the table of level 1 needs for the disk's size.
    pub fn l1_needed(&self) -> u64 {
        self.size.div_ceil(1u64 << (2 * self.cluster_bits - self.entry_bits()))
    }

    /// Why it may not be written, if it may not.
    pub fn check_writable(&self) -> Result<(), FormatError> {
        if self.incompatible & incompatible::CORRUPT != 0 {
            return damaged("another program found it damaged and marked it so");
        }
        if self.autoclear & AUTOCLEAR_BITMAPS != 0
            || self.extensions.iter().any(|(kind, _)| *kind == extension::BITMAPS)
        {
            return Err(FormatError::ReadOnly("dirty bitmaps"));
        }
        if self.autoclear != 0 {
            return Err(FormatError::ReadOnly("features unknown to Orangery"));
        }
        if self.snapshots > 0 {
            return Err(FormatError::ReadOnly("internal snapshots"));
        }
        if self.has_subclusters() {
            return Err(FormatError::ReadOnly("subclusters (extended L2 entries)"));
        }
        Ok(())
    }

    /// The bytes of the header with its extensions and, behind them, the name of the backing file. `None`: they would
    /// not fit into `room` bytes.
    pub fn encode(&self, room: usize) -> Option<Vec<u8>> {
        let mut bytes = self.encode_without_name();
        if let Some(name) = &self.backing {
            let at = bytes.len();
            bytes.extend_from_slice(name.as_bytes());
            self.point_to_name(&mut bytes, at);
        }
        (bytes.len() <= room).then_some(bytes)
    }

    /// Bytes of the fixed fields.
    pub fn fixed(&self) -> usize {
        match (self.version, self.compression) {
            (2, _) => 72,
            (_, Compression::Deflate) => COMPRESSION_AT,
            (_, Compression::Zstd) => COMPRESSION_AT + 8,
        }
    }

    /// The bytes of the header with its extensions.
    pub fn encode_without_name(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.fixed()];
        let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
        put(0, &MAGIC.to_be_bytes());
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_entries.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.reftable_offset.to_be_bytes());
        put(56, &self.reftable_clusters.to_be_bytes());
        put(60, &self.snapshots.to_be_bytes());
        put(64, &self.snapshots_offset.to_be_bytes());
        if self.version > 2 {
            put(72, &self.incompatible.to_be_bytes());
            put(80, &self.compatible.to_be_bytes());
            put(88, &self.autoclear.to_be_bytes());
            put(96, &self.refcount_order.to_be_bytes());
            put(100, &(self.fixed() as u32).to_be_bytes());
        }
        if self.compression == Compression::Zstd {
            put(COMPRESSION_AT, &[1]);
        }
        let format = self.backing_format.iter().map(|f| (extension::BACKING_FORMAT, f.as_bytes()));
        for (kind, data) in format.chain(self.extensions.iter().map(|(k, d)| (*k, d.as_slice()))) {
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend_from_slice(&[0; 8]);
        bytes
    }

    /// Writes where the name of the backing file is into the bytes of a header.
    pub fn point_to_name(&self, bytes: &mut [u8], at: usize) {
        let len = self.backing.as_ref().map_or(0, String::len);
        bytes[8..16].copy_from_slice(&(at as u64).to_be_bytes());
        bytes[16..20].copy_from_slice(&(len as u32).to_be_bytes());
    }
}

/// What the image itself calls a feature.
fn unknown_feature(bit: u8, names: &[u8]) -> String {
    let own = names.chunks_exact(48).find(|n| n[0] == 0 && n[1] == bit).map(|n| {
        let name = n[2..].split(|b| *b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).chars().filter(|c| !c.is_control()).collect::<String>()
    });
    let mut words = format!("feature {bit}");
    if let Some(name) = own.filter(|n| !n.is_empty()) {
        let _ = write!(words, " ('{name}')");
    }
    words
}
