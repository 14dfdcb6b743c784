//! Opens an image with all that it stands on. What an image names as its backing file is only followed inside folders
//! that the caller names: an image that came from elsewhere must not show the guest the host's files.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::flush::parse_l1;
use super::format::{FormatError, Header, is_qcow2};
use super::layer::{Kind, Layer};
use super::refcounts::Refcounts;
use super::table::Map;
use crate::backend::disk::DiskError;
use crate::backend::disk::image::{Image, Lock, OpenError, OpenOptions};
use crate::backend::disk::open::Format;

/// The most images in a chain.
const MOST_LAYERS: usize = 256;
/// The most that refcounts may take in memory.
const MOST_REFCOUNTS: u64 = 256 << 20;
/// What a machine's folder holds.
const MACHINE: &str = "machine.toml";

/// The folders that backing files may be in, at any depth.
#[derive(Debug, Clone)]
pub struct Roots(Vec<PathBuf>);

impl Roots {
    /// The image's own folder; the one above too, if that is a machine's.
    pub fn of(image: &Path) -> Roots {
        let own = folder(image);
        let above = own.parent().filter(|above| above.join(MACHINE).is_file()).map(Path::to_path_buf);
        Roots(above.into_iter().chain([own]).collect())
    }

    /// These folders.
    pub fn among(folders: &[&Path]) -> Roots {
        Roots(folders.iter().filter_map(|folder| folder.canonicalize().ok()).collect())
    }

    fn hold(&self, path: &Path) -> bool {
        self.0.iter().any(|root| path.starts_with(root))
    }
}

/// The real folder that an image is in.
fn folder(image: &Path) -> PathBuf {
    let real = image.canonicalize().unwrap_or_else(|_| image.to_path_buf());
    real.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf)
}

/// What went wrong with an image, whose path the caller knows.
#[derive(Debug)]
pub enum Trouble {
    Format(FormatError),
    Host(&'static str, io::Error),
}

impl Trouble {
    pub fn on(self, path: &Path) -> OpenError {
        match self {
            Trouble::Format(source) => OpenError::Format { path: path.into(), source },
            Trouble::Host(action, source) => OpenError::Host { action, path: path.into(), source },
        }
    }
}

impl From<FormatError> for Trouble {
    fn from(error: FormatError) -> Trouble {
        Trouble::Format(error)
    }
}

impl From<DiskError> for Trouble {
    fn from(error: DiskError) -> Trouble {
        match error {
            DiskError::Host(error) => Trouble::Host("repair", error),
            DiskError::Full => Trouble::Host("repair", io::Error::from_raw_os_error(libc::ENOSPC)),
            error => Trouble::Format(FormatError::Damaged(error.to_string())),
        }
    }
}

fn reading(error: io::Error) -> Trouble {
    Trouble::Host("read", error)
}

/// Whether a file starts as a qcow2 image does.
pub fn is_qcow2_file(file: &File) -> bool {
    let mut start = [0; 8];
    file.read_exact_at(&mut start, 0).is_ok() && is_qcow2(&start)
}

/// The header and the table of level 1 of an image that is open.
pub fn read_tables(image: &Image) -> Result<(Header, Map), Trouble> {
    let start = image.read_aligned(0, 512).map_err(reading)?;
    if !is_qcow2(&start) {
        return Err(FormatError::Damaged("it has no header".into()).into());
    }
    let cluster = Header::cluster_size(&start)?;
    let header = Header::parse(&image.read_aligned(0, cluster).map_err(reading)?)?;
    // Only what the file has can be anything but zeroes, and only what the disk needs is used.
    let entries = header.l1_needed();
    let bytes = image.read_aligned(header.l1_offset, (entries as usize * 8).next_multiple_of(512)).map_err(reading)?;
    let map = Map::new(&header, parse_l1(&bytes));
    Ok((header, map))
}

/// One image by itself.
pub fn open_one(path: &Path, options: OpenOptions, lock: Lock, format: Option<&str>) -> Result<Layer, OpenError> {
    let image = Image::open_locked(path, OpenOptions { direct: false, ..options }, lock)?;
    let qcow2 = match format {
        None => is_qcow2_file(image.file()),
        Some("qcow2") => true,
        Some("raw") => false,
        Some(other) => {
            let source = FormatError::Unsupported(format!("a backing file of the format {other:?}"));
            return Err(OpenError::Format { path: path.into(), source });
        }
    };
    let layer = if qcow2 {
        if image.is_block_device && !options.readonly {
            let source = FormatError::ReadOnly("no file of its own (it is on a block device)");
            return Err(OpenError::Format { path: path.into(), source });
        }
        let (header, map) = read_tables(&image).map_err(|error| error.on(path))?;
        let small = map.cluster() < 4096;
        let layer = Layer { size: header.size, kind: Kind::Qcow2(Box::new(header), map), image: Arc::new(image) };
        // Clusters smaller than pages would share them with others.
        if options.direct && !small {
            layer.image.go_direct();
        }
        layer
    } else {
        let layer = Layer { size: image.length, kind: Kind::Raw, image: Arc::new(image) };
        if options.direct {
            layer.image.go_direct();
        }
        layer
    };
    Ok(layer)
}

/// Opens and locks an image with all that it stands on.
pub fn open(path: &Path, options: OpenOptions, roots: &Roots, beside: bool) -> Result<Vec<Layer>, OpenError> {
    let lock = match (options.readonly, beside) {
        (true, _) => Lock::Shared,
        (false, false) => Lock::Exclusive,
        (false, true) => Lock::Beside,
    };
    let mut layers = vec![open_one(path, options, lock, Some("qcow2"))?];
    let mut seen = vec![identity(path)?];
    while let Some(layer) = layers.last()
        && let Some(header) = layer.header()
        && let Some(name) = &header.backing
    {
        let upper = layer.image.path.clone();
        let next = find(&upper, name, roots)?;
        let one = identity(&next)?;
        if layers.len() == MOST_LAYERS || seen.contains(&one) {
            return Err(OpenError::TooDeep { path: path.into(), most: MOST_LAYERS });
        }
        seen.push(one);
        let options = OpenOptions { readonly: true, ..options };
        let below = open_one(&next, options, Lock::Shared, header.backing_format.as_deref());
        layers.push(below.map_err(|source| OpenError::Backing { path: upper, source: Box::new(source) })?);
    }
    Ok(layers)
}

/// What a header says of its image.
pub struct Looked {
    /// Bytes of the virtual disk.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster: u32,
    /// The image that it stands on, with its format if it says that, if it may be followed.
    pub backing: Option<Result<(PathBuf, Option<Format>), OpenError>>,
    /// Why it can't be written, or what is wrong with it.
    pub problem: Option<String>,
}

/// Looks at an image that may be in use.
pub fn look(path: &Path, roots: &Roots) -> Result<Looked, OpenError> {
    let host = |source| OpenError::Host { action: "read", path: path.into(), source };
    let refused = |source| OpenError::Format { path: path.into(), source };
    let file = File::open(path).map_err(host)?;
    let mut bytes = vec![0; 512];
    file.read_exact_at(&mut bytes, 0).map_err(host)?;
    let cluster = Header::cluster_size(&bytes).map_err(refused)?;
    bytes.clear();
    file.take(cluster as u64).read_to_end(&mut bytes).map_err(host)?;
    let header = Header::parse(&bytes).map_err(refused)?;
    let format = match header.backing_format.as_deref() {
        Some("raw") => Some(Format::Raw),
        Some("qcow2") => Some(Format::Qcow2),
        _ => None,
    };
    let backing = header.backing.as_ref().map(|name| find(path, name, roots).map(|path| (path, format)));
    let problem = header.check_writable().err().map(|error| error.to_string());
    Ok(Looked { size: header.size, cluster: 1 << header.cluster_bits, backing, problem })
}

/// Which file a path leads to.
fn identity(path: &Path) -> Result<(u64, u64), OpenError> {
    let host = |source| OpenError::Host { action: "open", path: path.into(), source };
    std::fs::metadata(path).map(|m| (m.dev(), m.ino())).map_err(host)
}

/// The backing file that an image names.
pub fn find(image: &Path, name: &str, roots: &Roots) -> Result<PathBuf, OpenError> {
    let outside = || OpenError::Outside { path: image.into(), backing: name.into() };
    let plain = name.strip_prefix("file:").unwrap_or(name);
    // Such as `json:{…}` and `nbd://…`.
    let scheme = plain.split('/').next().unwrap_or_default();
    if scheme.contains(':') {
        return Err(outside());
    }
    let path = folder(image).join(plain);
    let real = path.canonicalize().map_err(|source| OpenError::Backing {
        path: image.into(),
        source: Box::new(OpenError::Host { action: "open", path: path.clone(), source }),
    })?;
    if roots.hold(&real) { Ok(real) } else { Err(outside()) }
}

/// All refcounts of an image.
pub fn load_refcounts(image: &Image, header: &Header) -> Result<Refcounts, Trouble> {
    let damaged = |what: &str| Trouble::from(FormatError::Damaged(what.into()));
    let cluster = 1usize << header.cluster_bits;
    let bytes = header.reftable_clusters as usize * cluster;
    let length = image.file().metadata().map_err(reading)?.len();
    if header.reftable_offset.saturating_add(bytes as u64) > length.next_multiple_of(cluster as u64) {
        return Err(damaged("its refcount table is beyond its end"));
    }
    let bytes = image.read_aligned(header.reftable_offset, bytes).map_err(reading)?;
    let words = bytes.chunks_exact(8).map(|w| w.first_chunk().map_or(0, |w| u64::from_be_bytes(*w)));
    let table: Vec<u64> = words.map(|at| at & !511).collect();
    let used = table.iter().filter(|at| **at != 0).count() as u64;
    if used * cluster as u64 > MOST_REFCOUNTS {
        return Err(FormatError::Unsupported("more refcounts than fit into memory".into()).into());
    }
    let (mut blocks, mut seen) = (Vec::with_capacity(table.len()), HashSet::new());
    for &at in &table {
        if at == 0 {
            blocks.push(None);
            continue;
        }
        if !at.is_multiple_of(cluster as u64) || at >= length || !seen.insert(at) {
            return Err(damaged("a refcount block is not where one may be"));
        }
        blocks.push(Some(image.read_aligned(at, cluster).map_err(reading)?.into_boxed_slice()));
    }
    let end = length.div_ceil(cluster as u64);
    let refs = Refcounts::new(header.cluster_bits, header.refcount_order, header.reftable_offset, table, blocks, end);
    if refs.end() > super::format::entry::OFFSET >> header.cluster_bits {
        return Err(damaged("it counts clusters that no entry could name"));
    }
    Ok(refs)
}
