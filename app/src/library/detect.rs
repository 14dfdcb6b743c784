//! What a file is that a person opens: an installation medium, a disk image, a kernel, or something for a later version.
//!
//! ISO 9660 (ECMA-119) §8 volume descriptors and El Torito 1.0 §2; the UEFI specification §5 for GPT; Linux's
//! `Documentation/arch/x86/boot.rst` for bzImages. Only the first 64 KiB or so are read, whatever the file claims.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use vmm_core::backend::disk::{self, Format, Identity};
use vmm_core::config::Boot;

use super::{Firmware, HostLimits, NewDisk, NewMachine};

/// Bytes in a sector of an ISO 9660 file system.
const ISO_SECTOR: u64 = 2048;
/// The first volume descriptor's sector (ECMA-119 §6.2.1).
const ISO_DESCRIPTORS: u64 = 16;
/// How many volume descriptors are looked at.
const MAX_DESCRIPTORS: u64 = 32;
/// Entries of an El Torito boot catalogue that are looked at: one sector of them.
const CATALOGUE_ENTRY: usize = 32;

/// What a file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Medium {
    /// The file, absolute.
    pub path: PathBuf,
    /// Its size, bytes.
    pub size: u64,
    /// What it is.
    pub kind: MediumKind,
}

/// Kinds of files that a machine can be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediumKind {
    /// An ISO 9660 image: a CD or DVD.
    Iso {
        /// Its volume's name, as far as it has one.
        label: Option<String>,
        /// A BIOS can boot it (El Torito, 80x86).
        bios: bool,
        /// UEFI can boot it (El Torito, EFI).
        uefi: bool,
    },
    /// A disk image, raw or qcow2, or a block device.
    Disk {
        /// Its partition table.
        table: Table,
        /// A BIOS finds code in its first sector.
        bios: bool,
        /// It has an EFI system partition.
        uefi: bool,
    },
    /// A Linux kernel (bzImage).
    Linux {
        /// The kernel's version, as it says itself.
        version: Option<String>,
    },
    /// A 64-bit or 32-bit x86 ELF program: a kernel with a PVH entry, or one that the monitor will refuse.
    Elf,
}

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// A master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt,
    /// None that is known: an empty disk, or one file system without partitions.
    None,
}

/// Why nothing can be made of a file.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// It cannot be read.
    #[error("could not read {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something that this version does not take.
    #[error("{} is {what}; {advice}", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
        /// What its owner can do.
        advice: &'static str,
    },
}

const CONVERT: &str = "convert it first: 'orangery disk convert OLD NEW'";
const UNPACK: &str = "unpack it first, and open what is inside";

/// Formats that are recognised by their first bytes, and refused in words.
const REFUSED: [(usize, &[u8], &str, &str); 13] = [
    (0, b"KDMV", "a VMDK disk image", CONVERT),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor", CONVERT),
    (0, b"vhdxfile", "a VHDX disk image", CONVERT),
    (0, b"conectix", "a VHD disk image", CONVERT),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "a VirtualBox disk image (VDI)", CONVERT),
    (257, b"ustar", "a tar archive or an appliance (OVA)", "import of appliances comes in a later version"),
    (0, b"PK\x03\x04", "a ZIP archive", UNPACK),
    (0, b"\x1f\x8b", "compressed with gzip", UNPACK),
    (0, b"\xfd7zXZ\0", "compressed with xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (0, b"BZh", "compressed with bzip2", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (0, b"%PDF-", "a PDF document", "a virtual machine starts from an ISO, a disk image or a kernel"),
];

/// Looks at a file and says what it is.
///
/// # Errors
/// It cannot be read, or is nothing that a machine can be made from.
pub fn detect(path: &Path) -> Result<Medium, DetectError> {
    let io = |source| DetectError::Io { path: path.into(), source };
    let refuse = |what, advice| Err(DetectError::Unsupported { path: path.into(), what, advice });
    // Metadata first: opening a pipe would wait for its writer.
    let kind = std::fs::metadata(path).map_err(io)?.file_type();
    if kind.is_dir() {
        return refuse("a folder", "open the ISO or the disk image itself");
    }
    if !kind.is_file() && !kind.is_block_device() {
        return refuse("no file that holds data", "open an ISO, a disk image or a kernel");
    }
    let mut file = File::open(path).map_err(io)?;
    if matches!(disk::identify(path), Ok(Identity::Own(Format::Qcow2))) {
        file = start_of(path)?;
    }
    let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(io)?;
    let absolute = std::path::absolute(path).map_err(io)?;
    let head = read_at(&file, 0, 4096).map_err(io)?;
    let found = |kind| Ok(Medium { path: absolute, size, kind });
    if let Some(iso) = iso(&file).map_err(io)? {
        return found(iso);
    }
    let magic = |&(at, magic, _, _): &(usize, &[u8], _, _)| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, what, advice)) = REFUSED.into_iter().find(magic) {
        return refuse(what, advice);
    }
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return found(MediumKind::Linux { version: linux_version(&file, &head).map_err(io)? });
    }
    if head.starts_with(b"\x7fELF") {
        // e_machine: EM_386 or EM_X86_64.
        return match head.get(18..20) {
            Some([3 | 62, 0]) => found(MediumKind::Elf),
            _ => refuse("a program for another processor", "Orangery runs x86 machines"),
        };
    }
    if size == 0 {
        return refuse("empty", "was its download or copy interrupted?");
    }
    if size % 512 != 0 {
        return refuse("no ISO, disk image or kernel", "a raw disk image would be a multiple of 512 bytes long");
    }
    let gpt = read_at(&file, 512, 8).map_err(io)? == b"EFI PART";
    let mbr = head.get(510..512) == Some(&[0x55, 0xaa]);
    let table = if gpt {
        Table::Gpt
    } else if mbr {
        Table::Mbr
    } else {
        Table::None
    };
    // A disk without a table may be new and empty; other data is not taken for one without a hint.
    let named_so =
        path.extension().is_some_and(|e| ["img", "raw", "bin", "hdd", "dd"].iter().any(|r| e.eq_ignore_ascii_case(r)));
    let blank = head.iter().all(|&b| b == 0);
    if table == Table::None && !named_so && !blank && !kind.is_block_device() {
        return refuse("no ISO, disk image or kernel", "if it is a raw disk image, name it so (.img or .raw)");
    }
    // The boot code of a master boot record comes before the disk's signature and the partitions.
    let bios = mbr && head.get(..440).is_some_and(|code| code.iter().any(|&byte| byte != 0));
    let uefi = match table {
        Table::Gpt => gpt_has_esp(&file).map_err(io)?,
        Table::Mbr => mbr_has_esp(&head),
        Table::None => false,
    };
    found(MediumKind::Disk { table, bios, uefi })
}

/// A file as long as the disk in a qcow2 image, with the part of it that is looked at.
fn start_of(path: &Path) -> Result<File, DetectError> {
    const LOOKED_AT: usize = 1 << 20;
    let io = |source| DetectError::Io { path: path.into(), source };
    let (bytes, size) = disk::tools::start(path, LOOKED_AT).map_err(|error| io(io::Error::other(error)))?;
    let memory = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).map_err(|error| io(error.into()))?;
    let file = File::from(memory);
    file.set_len(size).map_err(io)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).map_err(io)?;
    Ok(file)
}

/// Whether a GUID partition table has an EFI system partition (UEFI 2.10 §5.3): in its first 128 entries, as many as there
/// are room for by the specification.
fn gpt_has_esp(file: &File) -> io::Result<bool> {
    /// C12A7328-F81F-11D2-BA4B-00A0C93EC93B.
    const ESP: [u8; 16] =
        [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
    const SECTOR: u64 = 512;
    const ENTRIES: usize = 128;
    let header = read_at(file, SECTOR, 92)?;
    let (Some(start), Some(&[a, b, c, d])) = (header.get(72..80), header.get(84..88)) else { return Ok(false) };
    let start = start.iter().rev().fold(0u64, |start, &byte| start << 8 | u64::from(byte));
    let entry = u32::from_le_bytes([a, b, c, d]) as usize;
    let Some(at) = start.checked_mul(SECTOR).filter(|&at| at < i64::MAX as u64) else { return Ok(false) };
    if !(128..=4096).contains(&entry) {
        return Ok(false);
    }
    let entries = read_at(file, at, ENTRIES * entry)?;
    Ok(entries.chunks_exact(entry).any(|entry| entry.starts_with(&ESP)))
}

/// Whether a master boot record has an EFI system partition (UEFI 2.10 §5.2.2).
fn mbr_has_esp(head: &[u8]) -> bool {
    const ESP: u8 = 0xef;
    head.get(446..510).is_some_and(|table| table.chunks_exact(16).any(|entry| entry[4] == ESP))
}

/// Reads up to `length` bytes at `offset`; fewer where the file ends.
fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Reads an ISO's volume descriptors (ECMA-119 §8): `None` when it has none.
fn iso(file: &File) -> io::Result<Option<MediumKind>> {
    let mut label = None;
    let mut primary = false;
    let (mut bios, mut uefi) = (false, false);
    for sector in ISO_DESCRIPTORS..ISO_DESCRIPTORS + MAX_DESCRIPTORS {
        let descriptor = read_at(file, sector * ISO_SECTOR, ISO_SECTOR as usize)?;
        if descriptor.len() < ISO_SECTOR as usize || &descriptor[1..6] != b"CD001" {
            break;
        }
        match descriptor[0] {
            // Boot record; El Torito's names the catalogue's sector at 0x47.
            0 if descriptor[7..].starts_with(b"EL TORITO SPECIFICATION") => {
                let at = u32::from_le_bytes([descriptor[0x47], descriptor[0x48], descriptor[0x49], descriptor[0x4a]]);
                (bios, uefi) = el_torito(&read_at(file, u64::from(at) * ISO_SECTOR, ISO_SECTOR as usize)?);
            }
            // Primary volume descriptor: the volume identifier is 32 characters at 40.
            1 => {
                primary = true;
                let text = String::from_utf8_lossy(&descriptor[40..72]);
                let text: String = text.chars().filter(|c| !c.is_control()).collect();
                label = Some(text.trim().to_string()).filter(|label| !label.is_empty());
            }
            255 => break,
            _ => {}
        }
    }
    Ok(primary.then_some(MediumKind::Iso { label, bios, uefi }))
}

/// Reads a boot catalogue: whether it has a bootable entry for a BIOS, and one for UEFI.
fn el_torito(catalogue: &[u8]) -> (bool, bool) {
    const X86: u8 = 0;
    const EFI: u8 = 0xef;
    let (mut bios, mut uefi) = (false, false);
    let mut platform = X86;
    for (index, entry) in catalogue.chunks_exact(CATALOGUE_ENTRY).enumerate() {
        match entry[0] {
            // Validation entry, which names the platform of the default entry after it.
            1 if index == 0 => platform = entry[1],
            // Section headers name that of the entries after them.
            0x90 | 0x91 => platform = entry[1],
            0x88 if platform == EFI => uefi = true,
            0x88 if platform == X86 => bios = true,
            0 if index > 1 => break,
            _ if index == 0 => break,
            _ => {}
        }
    }
    (bios, uefi)
}

/// The version string of a bzImage: header field `kernel_version` (0x20e) is its place, less 0x200.
fn linux_version(file: &File, head: &[u8]) -> io::Result<Option<String>> {
    let Some(&[low, high]) = head.get(0x20e..0x210) else { return Ok(None) };
    let at = u16::from_le_bytes([low, high]);
    if at == 0 {
        return Ok(None);
    }
    let text = read_at(file, u64::from(at) + 0x200, 128)?;
    let text = text.split(|&b| b == 0).next().unwrap_or_default();
    let version = text.split(|&b| b == b' ').next().unwrap_or_default();
    let plain = !version.is_empty() && version.iter().all(u8::is_ascii_graphic);
    Ok(plain.then(|| String::from_utf8_lossy(version).into_owned()))
}

impl Medium {
    /// One line for a person, like `CD or DVD "Debian 12.8.0" · starts on BIOS and UEFI`.
    pub fn describe(&self) -> String {
        match &self.kind {
            MediumKind::Iso { label, bios, uefi } => {
                let starts = match (bios, uefi) {
                    (true, true) => "starts on BIOS and UEFI",
                    (true, false) => "starts on BIOS",
                    (false, true) => "starts on UEFI only",
                    (false, false) => "not bootable",
                };
                let label = label.as_ref().map(|label| format!(" “{label}”")).unwrap_or_default();
                format!("CD or DVD{label} · {starts}")
            }
            MediumKind::Disk { table, bios, uefi } => {
                let table = match table {
                    Table::Mbr => "MBR partitions",
                    Table::Gpt => "GPT partitions",
                    Table::None => "no partition table",
                };
                let starts = match (bios, uefi) {
                    (true, true) => " · starts on BIOS and UEFI",
                    (true, false) => " · starts on BIOS",
                    (false, true) => " · starts on UEFI only",
                    (false, false) => "",
                };
                format!("Disk image · {table}{starts}")
            }
            MediumKind::Linux { version: Some(version) } => format!("Linux kernel {version}"),
            MediumKind::Linux { version: None } => "Linux kernel".into(),
            MediumKind::Elf => "Kernel (ELF)".into(),
        }
    }

    /// What is worth knowing before a machine is made from it, if anything.
    pub fn warning(&self) -> Option<&'static str> {
        match self.kind {
            MediumKind::Iso { bios: false, uefi: false, .. } => {
                Some("This medium does not start by itself; the machine will look for a system on its disk.")
            }
            _ => None,
        }
    }

    /// A name for a machine made from it: the volume's, made readable, or the file's.
    pub fn suggested_name(&self) -> String {
        let stem = || self.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let text = match &self.kind {
            // "CDROM", "ISOIMAGE": what tools write when nobody named the volume.
            MediumKind::Iso { label: Some(label), .. }
                if !["cdrom", "isoimage", "cd_rom", "dvd", "no_label", "unknown"]
                    .contains(&label.to_lowercase().as_str()) =>
            {
                label.clone()
            }
            _ => stem(),
        };
        let words: Vec<String> = text.split(['_', ' ']).filter(|word| !word.is_empty()).map(readable).collect();
        let name = words.join(" ");
        super::name::check(&name).unwrap_or_else(|_| "New machine".into())
    }

    /// The machine that a person most likely wants from it, with this host's defaults.
    pub fn suggest(&self, limits: &HostLimits) -> NewMachine {
        let mut new = NewMachine::with_defaults(self.suggested_name(), limits);
        new.boot = Firmware::choose(Some(&self.kind), limits.uefi).boot();
        match &self.kind {
            MediumKind::Iso { .. } => {
                new.cdroms = vec![Some(self.path.clone())];
                new.disks = vec![NewDisk::create(limits.default_disk())];
            }
            MediumKind::Disk { .. } => {
                let readonly = rustix::fs::access(&self.path, rustix::fs::Access::WRITE_OK).is_err();
                new.disks = vec![NewDisk::existing(&self.path, readonly)];
            }
            MediumKind::Linux { .. } | MediumKind::Elf => {
                new.boot = Boot::Kernel { kernel: self.path.clone(), initrd: None, cmdline: String::new() };
            }
        }
        new
    }
}

/// A word of a volume's name, which has capitals only: `DEBIAN` becomes `Debian`; short ones are initials and stay.
fn readable(word: &str) -> String {
    let shouting = word.chars().count() > 3 && word.chars().all(|c| c.is_ascii_uppercase());
    if !shouting {
        return word.into();
    }
    let mut chars = word.chars();
    chars.next().into_iter().chain(chars.flat_map(char::to_lowercase)).collect()
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
