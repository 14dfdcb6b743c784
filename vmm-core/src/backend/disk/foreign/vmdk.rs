//! VMware's disk images (VMDK): a text that names extents, or one sparse extent with that text in it. Extents are flat or
//! sparse, and sparse ones may be compressed (`streamOptimized`).

use std::path::Path;

use super::{
    Foreign, ForeignError, Image, Locate, MAX_GRAIN, MAX_SIZE, MAX_TABLE, Opened, Place, Words, check_size, damaged,
    open_file, read_padded, read_table, unsupported,
};

const SPARSE: &[u8] = b"KDMV";
const TEXT: &[u8] = b"# Disk DescriptorFile";
/// The longest text.
const MAX_TEXT: u64 = 64 << 10;
/// The most extents.
const MOST_EXTENTS: usize = 4096;
const SECTOR: u64 = 512;
/// The grain directory is named by the copy of the header at the file's end.
const AT_END: u64 = u64::MAX;

mod flag {
    pub const ZEROED_GRAINS: u32 = 1 << 2;
    pub const COMPRESSED: u32 = 1 << 16;
}

/// Whether these are the first bytes of one, VMware's older formats included.
pub fn is(start: &[u8]) -> bool {
    start.starts_with(SPARSE) || start.starts_with(TEXT) || start.starts_with(b"COWD")
}

/// A part of the disk.
struct Extent {
    start: u64,
    len: u64,
    kind: Kind,
}

enum Kind {
    Zero,
    Flat { file: usize, offset: u64 },
    Sparse(Sparse),
}

struct Sparse {
    file: usize,
    /// Bytes.
    grain: u64,
    /// Entries of a grain table.
    per_table: u64,
    directory: Vec<u32>,
    compressed: bool,
    zeroed: bool,
    /// The last grain table that was read, and its number.
    table: Option<(u64, Vec<u32>)>,
}

struct Extents(Vec<Extent>);

/// Opens one.
pub fn open(image: Image) -> Result<Opened, ForeignError> {
    let mut start = [0; 512];
    read_padded(&image, 0, &mut start)?;
    if start.starts_with(b"COWD") {
        return Err(unsupported("VMware ESX's old sparse format"));
    }
    let (text, own) = if start.starts_with(SPARSE) {
        let words = Words(&start);
        let (at, len) = (words.le64(28)?, words.le64(36)?);
        if at == 0 || len == 0 {
            return single(image);
        }
        let (at, len) = (at.saturating_mul(SECTOR), len.saturating_mul(SECTOR).min(MAX_TEXT));
        (read_table(&image, at, len, "descriptor")?, true)
    } else {
        (read_table(&image, 0, image.length.min(MAX_TEXT), "descriptor")?, false)
    };
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).map_err(|_| damaged("its descriptor is no text"))?;
    check_parent(text)?;
    if own {
        // Its own name, whatever the text says: files are renamed.
        return single(image);
    }
    let folder = image.path.parent().unwrap_or(Path::new(".")).to_path_buf();
    let (mut files, mut extents, mut end) = (Vec::new(), Vec::new(), 0u64);
    for line in text.lines().map(str::trim).filter(|line| is_extent(line)) {
        let (sectors, kind, name, offset) = parse_extent(line)?;
        let len = sectors.checked_mul(SECTOR).filter(|len| *len > 0 && end + len <= MAX_SIZE);
        let len = len.ok_or_else(|| damaged("an extent is of no size that one may have"))?;
        if extents.len() == MOST_EXTENTS {
            return Err(damaged("it has too many extents"));
        }
        let mut file = || -> Result<usize, ForeignError> {
            let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
            if !plain {
                return Err(damaged(format!("an extent is in {name:?}, outside its own folder")));
            }
            files.push(open_file(&folder.join(name)).map_err(Box::new)?);
            Ok(files.len() - 1)
        };
        let kind = match kind {
            "ZERO" => Kind::Zero,
            "FLAT" | "VMFS" => Kind::Flat { file: file()?, offset: offset.saturating_mul(SECTOR) },
            "SPARSE" => {
                let file = file()?;
                let (sparse, capacity) = Sparse::open(&files[file], file)?;
                if capacity < len {
                    return Err(damaged("an extent is smaller than the descriptor says"));
                }
                Kind::Sparse(sparse)
            }
            other => return Err(unsupported(format!("extents of the type {other:?}"))),
        };
        extents.push(Extent { start: end, len, kind });
        end += len;
    }
    Ok((files, check_size(end)?, Box::new(Extents(extents))))
}

/// One sparse extent that is the whole disk.
fn single(image: Image) -> Result<Opened, ForeignError> {
    let (sparse, size) = Sparse::open(&image, 0)?;
    let size = check_size(size)?;
    Ok((vec![image], size, Box::new(Extents(vec![Extent { start: 0, len: size, kind: Kind::Sparse(sparse) }]))))
}

fn check_parent(text: &str) -> Result<(), ForeignError> {
    let parent = text.lines().filter_map(|line| line.trim().split_once('=')).find(|(key, _)| key.trim() == "parentCID");
    match parent {
        Some((_, id)) if !id.trim().eq_ignore_ascii_case("ffffffff") => {
            Err(unsupported("another VMDK image below it (a snapshot); merge it in VMware first"))
        }
        _ => Ok(()),
    }
}

fn is_extent(line: &str) -> bool {
    ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access))
}

/// Sectors, type, file and first sector of an extent: `RW 4192256 SPARSE "name-s001.vmdk" 0`.
fn parse_extent(line: &str) -> Result<(u64, &str, &str, u64), ForeignError> {
    let bad = || damaged(format!("its descriptor has the line {line:?}"));
    let (head, rest) = line.split_once('"').unwrap_or((line, "\""));
    let (name, tail) = rest.split_once('"').ok_or_else(bad)?;
    let mut words = head.split_whitespace();
    let (_access, sectors, kind) = (words.next(), words.next().ok_or_else(bad)?, words.next().ok_or_else(bad)?);
    let offset = tail.split_whitespace().next().unwrap_or("0");
    Ok((sectors.parse().map_err(|_| bad())?, kind, name, offset.parse().map_err(|_| bad())?))
}

impl Sparse {
    /// Reads the header and the grain directory; also says how many bytes of the disk it is.
    fn open(image: &Image, file: usize) -> Result<(Sparse, u64), ForeignError> {
        let mut header = [0; 512];
        read_padded(image, 0, &mut header)?;
        if !header.starts_with(SPARSE) {
            return Err(damaged("an extent has no header"));
        }
        if Words(&header).le64(56)? == AT_END {
            // The footer, before the marker that ends the stream.
            let at = image.length.checked_sub(2 * SECTOR).ok_or_else(|| damaged("its end is missing"))?;
            read_padded(image, at, &mut header)?;
            if !header.starts_with(SPARSE) {
                return Err(damaged("its end is missing: it was not copied whole"));
            }
        }
        let words = Words(&header);
        let (version, flags) = (words.le32(4)?, words.le32(8)?);
        if !(1..=3).contains(&version) {
            return Err(unsupported(format!("version {version} of VMDK")));
        }
        let size = |sectors: u64| sectors.checked_mul(SECTOR).filter(|size| *size <= MAX_SIZE);
        let (capacity, grain) = (size(words.le64(12)?), size(words.le64(20)?));
        let (Some(capacity), Some(grain)) = (capacity, grain) else {
            return Err(damaged("its disk or its grains are larger than any may be"));
        };
        let (per_table, directory) = (u64::from(words.le32(44)?), words.le64(56)?);
        if !grain.is_power_of_two() || !(4096..=MAX_GRAIN).contains(&grain) || !(1..=1 << 16).contains(&per_table) {
            return Err(damaged("its grains are of no size that they may have"));
        }
        if flags & flag::COMPRESSED != 0 && words.le16(77)? != 1 {
            return Err(unsupported("a compression other than deflate"));
        }
        let entries = capacity.div_ceil(grain * per_table);
        if entries * 4 > MAX_TABLE {
            return Err(damaged("its grain directory is larger than any may be"));
        }
        let bytes = read_table(image, directory.saturating_mul(SECTOR), entries * 4, "grain directory")?;
        let sparse = Sparse {
            file,
            grain,
            per_table,
            directory: words32(&bytes),
            compressed: flags & flag::COMPRESSED != 0,
            zeroed: flags & flag::ZEROED_GRAINS != 0,
            table: None,
        };
        Ok((sparse, capacity))
    }

    fn locate(&mut self, files: &[Image], offset: u64) -> Result<(Place, u64), ForeignError> {
        let (number, within) = (offset / self.grain, offset % self.grain);
        let (table, at) = (number / self.per_table, (number % self.per_table) as usize);
        let sector = self.directory.get(table as usize).copied().unwrap_or(0);
        if sector == 0 {
            let left = (self.per_table - at as u64) * self.grain - within;
            return Ok((Place::Zero, left));
        }
        let entries = match &mut self.table {
            Some((loaded, entries)) if *loaded == table => entries,
            place => {
                let image = files.get(self.file).ok_or_else(|| damaged("one of its files is missing"))?;
                let bytes = read_table(image, u64::from(sector) * SECTOR, self.per_table * 4, "grain table")?;
                &mut place.insert((table, words32(&bytes))).1
            }
        };
        let len = self.grain - within;
        Ok(match entries.get(at).copied().unwrap_or(0) {
            0 => (Place::Zero, len),
            1 if self.zeroed => (Place::Zero, len),
            sector => {
                let (file, offset) = (self.file, u64::from(sector) * SECTOR);
                let packed = Place::Packed { file, offset, grain: self.grain, within };
                (if self.compressed { packed } else { Place::At { file, offset: offset + within } }, len)
            }
        })
    }
}

fn words32(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| word.first_chunk().map_or(0, |word| u32::from_le_bytes(*word))).collect()
}

impl Locate for Extents {
    fn locate(&mut self, files: &[Image], offset: u64) -> Result<(Place, u64), ForeignError> {
        let after = self.0.partition_point(|extent| extent.start <= offset);
        let extent = after.checked_sub(1).and_then(|at| self.0.get_mut(at));
        let extent = extent.ok_or_else(|| damaged("a part of its disk is missing"))?;
        let within = offset - extent.start;
        let left = extent.len.saturating_sub(within);
        let (place, len) = match &mut extent.kind {
            Kind::Zero => (Place::Zero, left),
            Kind::Flat { file, offset } => (Place::At { file: *file, offset: offset.saturating_add(within) }, left),
            Kind::Sparse(sparse) => sparse.locate(files, within)?,
        };
        Ok((place, len.min(left).max(1)))
    }
}

/// Inflates the grain at an offset: a marker with its first sector and its length, then zlib's bytes.
pub fn inflate(image: &Image, offset: u64, grain: u64) -> Result<Vec<u8>, ForeignError> {
    let marker = read_table(image, offset, 12, Foreign::Vmdk.name())?;
    let len = u64::from(Words(&marker).le32(8)?);
    if len > 2 * grain + 1024 {
        return Err(damaged("a grain is longer than any may be"));
    }
    let packed = read_table(image, offset + 12, len, "grain")?;
    let mut bytes = vec![0; grain as usize];
    let mut inflater = flate2::Decompress::new(true);
    let result = inflater.decompress(&packed, &mut bytes, flate2::FlushDecompress::Finish);
    result.map_err(|_| damaged("a grain can't be inflated"))?;
    // The disk's last grain may be short.
    Ok(bytes)
}
