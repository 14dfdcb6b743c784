//! Makes new qcow2 images, and gives old ones another backing file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::chain::{self, Roots};
use super::flush::patched_header;
use super::format::{CLUSTER_BITS, Compression, Header, MAX_BACKING_NAME, MAX_L1_BYTES, MAX_REFTABLE_BYTES, MAX_SIZE};
use super::piece::Piece;
use super::refcounts::Refcounts;
use crate::backend::disk::image::{Image, Lock, OpenError, OpenOptions};
use crate::backend::disk::open::Format;
use crate::backend::disk::part::Part;

/// What a new image is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the virtual disk; it gets whole sectors.
    pub size: u64,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster: u32,
    /// Bits of a refcount: a power of two up to 64. With 1, no other program can make internal snapshots in it.
    pub refcount_bits: u32,
}

impl CreateOptions {
    /// A thin disk.
    pub fn thin(size: u64) -> CreateOptions {
        CreateOptions { size, cluster: 64 << 10, refcount_bits: 16 }
    }

    /// What stands on another image: small clusters, so that the first change of one copies nothing around it.
    pub fn overlay(size: u64) -> CreateOptions {
        // A table of level 1 may have 4 Mi entries.
        let cluster = [4 << 10, 8 << 10, 16 << 10, 64 << 10].into_iter().find(|c| needs(size, *c) * 8 <= MAX_L1_BYTES);
        CreateOptions { size, cluster: cluster.unwrap_or(64 << 10), refcount_bits: 1 }
    }
}

/// Entries of level 1 for a disk.
fn needs(size: u64, cluster: u32) -> u64 {
    size.div_ceil(u64::from(cluster) * u64::from(cluster) / 8)
}

/// Why an image could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The host refused.
    #[error("could not {action} the disk image {}", path.display())]
    Host {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No such image can be made.
    #[error("could not make the disk image {}: {reason}", path.display())]
    Impossible {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The image, or what it is to stand on, can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Makes a new image at a path where nothing is. It is on stable storage when this returns.
pub fn create(path: &Path, options: CreateOptions) -> Result<(), CreateError> {
    make(path, options, None)
}

/// Makes a new image that stands on another, which it names as `backing`: a path relative to its own folder.
pub fn create_overlay(path: &Path, backing: &Path, format: Format, options: CreateOptions) -> Result<(), CreateError> {
    make(path, options, Some(name_of(path, backing, format)?))
}

/// Makes a raw image of this size at a path where nothing is, sparse. It is on stable storage when this returns.
pub fn create_raw(path: &Path, size: u64) -> Result<(), CreateError> {
    let host = |action| move |source| CreateError::Host { action, path: path.into(), source };
    let (part, file) = Part::begin(path).map_err(host("create"))?;
    file.set_len(size.next_multiple_of(512)).and_then(|()| file.sync_all()).map_err(host("write"))?;
    part.put_in_place().map_err(host("create"))
}

/// The names of a backing file and of its format as the header has them.
fn name_of(path: &Path, backing: &Path, format: Format) -> Result<(String, String), CreateError> {
    let name = backing.to_str().filter(|n| !n.is_empty() && n.len() <= MAX_BACKING_NAME).ok_or_else(|| {
        let reason = format!("the name of its backing file {} is too long or no text", backing.display());
        CreateError::Impossible { path: path.into(), reason }
    })?;
    // What looks like a protocol to other programs.
    let name = if name.contains(':') && !name.starts_with(['/', '.']) { format!("./{name}") } else { name.into() };
    let format = match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    };
    Ok((name, format.into()))
}

fn make(path: &Path, options: CreateOptions, backing: Option<(String, String)>) -> Result<(), CreateError> {
    let host = |action| move |source| CreateError::Host { action, path: path.into(), source };
    let (part, file) = Part::begin(path).map_err(host("create"))?;
    write_new(path, &file, options, backing)?;
    file.sync_all().map_err(host("write"))?;
    part.put_in_place().map_err(host("create"))
}

/// Makes a new, empty file an image, as [`create`] does; it is not on stable storage yet.
pub fn format(path: &Path, file: &File, options: CreateOptions) -> Result<(), CreateError> {
    write_new(path, file, options, None)
}

fn write_new(
    path: &Path,
    file: &File,
    options: CreateOptions,
    backing: Option<(String, String)>,
) -> Result<(), CreateError> {
    let impossible = |reason: &str| CreateError::Impossible { path: path.into(), reason: reason.into() };
    let CreateOptions { size, cluster, refcount_bits } = options;
    let size = size
        .checked_next_multiple_of(512)
        .filter(|size| *size <= MAX_SIZE)
        .ok_or_else(|| impossible("it is too large"))?;
    let bits = cluster.trailing_zeros();
    if !cluster.is_power_of_two() || !CLUSTER_BITS.contains(&bits) {
        return Err(impossible("a cluster has 512 bytes to 2 MiB, a power of two"));
    }
    if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
        return Err(impossible("a refcount has 1 to 64 bits, a power of two"));
    }
    let l1_entries = needs(size, cluster);
    if l1_entries * 8 > MAX_L1_BYTES {
        return Err(impossible("its clusters are too small for its size"));
    }
    let cluster = u64::from(cluster);
    let (order, l1_clusters) = (refcount_bits.trailing_zeros(), (l1_entries * 8).div_ceil(cluster));
    // Room in the refcount table for the whole disk with its tables, so that it hardly ever has to move.
    let clusters = size.div_ceil(cluster) + size.div_ceil(cluster * cluster / 8) + l1_clusters + 2;
    let blocks = (clusters + clusters / 8).div_ceil((cluster * 8) >> order);
    let table_clusters = (blocks * 8).div_ceil(cluster).clamp(1, MAX_REFTABLE_BYTES / cluster);
    let table = vec![0; (table_clusters * cluster / 8) as usize];
    let mut refs = Refcounts::new(bits, order, cluster, table, Vec::new(), 0);
    let places = refs.allocate_exactly(1 + table_clusters + l1_clusters);
    places.map_err(|error| impossible(&error.to_string()))?;
    let mut header = Header {
        version: 3,
        cluster_bits: bits,
        size,
        l1_entries: l1_entries as u32,
        l1_offset: (1 + table_clusters) * cluster,
        reftable_offset: cluster,
        reftable_clusters: table_clusters as u32,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: order,
        compression: Compression::Deflate,
        backing: None,
        backing_format: None,
        extensions: Vec::new(),
    };
    if let Some((name, format)) = backing {
        (header.backing, header.backing_format) = (Some(name), Some(format));
    }
    let first =
        header.encode(cluster as usize).ok_or_else(|| impossible("the name of its backing file is too long"))?;

    let write = || -> io::Result<()> {
        file.set_len(refs.end() * cluster)?;
        let stages = refs.stages();
        for piece in stages.first.iter().chain(&stages.second) {
            piece.write(file)?;
        }
        file.write_all_at(&first, 0)
    };
    let mut write = write;
    write().map_err(|source| CreateError::Host { action: "write", path: path.into(), source })
}

/// Changes which file an image stands on, and nothing else: both must hold the same where the image has nothing of its
/// own. Whenever power fails, it names the old one or the new one. Others may be reading the image.
pub fn rebase_header(path: &Path, backing: Option<(&Path, Format)>) -> Result<(), CreateError> {
    let options = OpenOptions { readonly: false, direct: false };
    let layer = chain::open_one(path, options, Lock::Beside, Some("qcow2"))?;
    let header = layer
        .header()
        .cloned()
        .ok_or_else(|| CreateError::Impossible { path: path.into(), reason: "it is no qcow2 image".into() })?;
    let backing = backing.map(|(backing, format)| name_of(path, backing, format)).transpose()?;
    if let Some((name, _)) = &backing {
        chain::find(path, name, &Roots::of(path)).or_else(|error| match error {
            // Whoever opens it says where it may be.
            OpenError::Outside { .. } => Ok(PathBuf::new()),
            error => Err(error),
        })?;
    }
    rebase(&layer.image, header, backing)
}

fn rebase(image: &Image, mut header: Header, backing: Option<(String, String)>) -> Result<(), CreateError> {
    const SECTOR: usize = 512;
    let path = &image.path;
    let host = |action| move |source| CreateError::Host { action, path: path.clone(), source };
    let cluster = 1usize << header.cluster_bits;
    let old = image.read_aligned(0, cluster).map_err(host("read"))?;
    (header.backing, header.backing_format) = backing.unzip();
    let head = header.encode_without_name();
    let fail = |reason: &str| CreateError::Impossible { path: path.clone(), reason: reason.into() };
    if head.len() > SECTOR {
        return Err(fail("its header has extensions that leave no room; convert it first"));
    }
    let name = header.backing.clone().unwrap_or_default();
    let mut sector = head;
    let mut place = sector.len();
    if place + name.len() <= SECTOR {
        // All of it is in one sector, which is written as a whole or not at all.
        sector.extend_from_slice(name.as_bytes());
    } else {
        // The name goes where the old one is not; the sector that points to it follows.
        let words = [old.get(8..16), old.get(16..20)];
        let number =
            |bytes: Option<&[u8]>| bytes.unwrap_or_default().iter().fold(0, |n: u64, b| n << 8 | u64::from(*b));
        let (old_start, old_len) = (number(words[0]), number(words[1]));
        let places = [SECTOR, 4 * SECTOR];
        let free = places.into_iter().find(|start| {
            let end = start + name.len();
            end <= cluster && (end as u64 <= old_start || *start as u64 >= old_start.saturating_add(old_len))
        });
        place = free.ok_or_else(|| fail("its first cluster has no room for the name of its backing file"))?;
        Piece::new(place as u64, name.as_bytes()).write(image.file()).map_err(host("write"))?;
        image.file().sync_data().map_err(host("write"))?;
    }
    if header.backing.is_some() {
        header.point_to_name(&mut sector, place);
    }
    sector.resize(SECTOR, 0);
    let piece = patched_header(image, |now| {
        // The mark, and where the tables are, as they are now.
        now[8..20].copy_from_slice(&sector[8..20]);
        let fixed = header.fixed();
        if header.version > 2 {
            now[100..104].copy_from_slice(&sector[100..104]);
        }
        now[fixed..].copy_from_slice(&sector[fixed..]);
    });
    let piece = piece.map_err(|error| fail(&error.to_string()))?;
    piece.write(image.file()).map_err(host("write"))?;
    image.file().sync_data().map_err(host("write"))
}
