//! Kernels that the monitor places itself: a Linux bzImage by the 64-bit boot protocol (Linux
//! Documentation/arch/x86/boot.rst), an ELF by PVH (Xen, docs/misc/pvh.pandoc).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{BzImage, KernelLoader, KernelLoaderResult};

use super::BootError;
use super::acpi::AcpiFiles;
use super::layout::{self, ONE_MIB, Range};
use crate::base::{GuestAddress, GuestMemory};
use crate::kvm::{LongMode, ProtectedMode};

/// Below 1 MiB: the descriptor table, the boot structures, the page tables, the command line, the root pointer.
const GDT: u64 = 0x500;
const START_INFO: u64 = 0x6000;
const PVH_MAP: u64 = 0x6100;
const PVH_MODULES: u64 = 0x6c00;
const PVH_MAP_MAX: usize = 64;
const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const CMDLINE: u64 = 0x2_0000;
const RSDP: u64 = 0xe_0000;

/// `setup_header.header`: "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The first protocol version with 64-bit entry and `xloadflags`.
const VERSION_MIN: u16 = 0x020c;
const XLF_KERNEL_64: u16 = 1;
const LOADED_HIGH: u8 = 1;
const LOADER_OTHER: u8 = 0xff;
/// The 64-bit entry is this far into the kernel.
const ENTRY_64: u64 = 0x200;
const PVH_MAGIC: u32 = 0x336e_c578;

/// How CPU 0 enters what was loaded.
#[derive(Debug, Clone, Copy)]
pub enum Entry {
    /// By the Linux 64-bit protocol.
    Long(LongMode),
    /// By PVH.
    Protected(ProtectedMode),
}

/// A kernel to be loaded at every power-on.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The command line.
    pub cmdline: String,
}

impl Kernel {
    /// Puts everything into guest memory. Needs the tables as they are before they are placed.
    pub fn load(&self, memory: &GuestMemory, acpi: AcpiFiles) -> Result<Entry, BootError> {
        let no_room = |what| BootError::NoRoom { what, memory_mib: memory.size() >> 20 };
        let acpi_len = acpi.placed_len();
        let tables_at = memory.low_top().checked_sub(acpi_len).filter(|&at| at > 2 * ONE_MIB);
        let tables_at = tables_at.ok_or_else(|| no_room("the kernel"))?;
        let (tables, rsdp) = acpi.place(tables_at);
        let write = |at: u64, data: &[u8], what| memory.write(GuestAddress(at), data).map_err(|_| no_room(what));
        write(tables_at, &tables, "the ACPI tables")?;
        write(RSDP, &rsdp, "the ACPI tables")?;
        write(CMDLINE, &[self.cmdline.as_bytes(), &[0]].concat(), "the command line")?;
        let map = layout::kernel_map(memory, acpi_len);

        let mut file = open("kernel", &self.kernel)?;
        let mut magic = [0; 4];
        let head = file.read_exact(&mut magic);
        head.map_err(|source| BootError::Read { what: "kernel", path: self.kernel.clone(), source })?;
        if magic == *b"\x7fELF" {
            let result = Elf::load(memory.as_mmap(), None, &mut file, None).map_err(|e| self.unfit("ELF kernel", e))?;
            let PvhBootCapability::PvhEntryPresent(entry) = result.pvh_boot_cap else {
                return Err(self.unfit("ELF kernel", "it has no PVH entry note"));
            };
            let initrd = self.load_initrd(memory, result.kernel_end, tables_at)?;
            self.start_info(memory, &map, initrd).map_err(|_| no_room("the kernel"))?;
            return Ok(Entry::Protected(ProtectedMode { entry, start_info: GuestAddress(START_INFO) }));
        }
        let result = BzImage::load(memory.as_mmap(), None, &mut file, Some(GuestAddress(ONE_MIB)))
            .map_err(|e| self.unfit("Linux kernel", e))?;
        let header = self.check(&result)?;
        let top = tables_at.min(u64::from(header.initrd_addr_max).saturating_add(1));
        // The kernel unpacks itself in place: what it needs for that is free as well.
        let end = (result.kernel_load.0 + u64::from(header.init_size)).max(result.kernel_end);
        let initrd = self.load_initrd(memory, end, top)?;
        self.zero_page(memory, header, &map, initrd).map_err(|_| no_room("the kernel"))?;
        page_tables(memory).map_err(|_| no_room("the kernel"))?;
        Ok(Entry::Long(LongMode {
            entry: GuestAddress(result.kernel_load.0 + ENTRY_64),
            boot_params: GuestAddress(ZERO_PAGE),
            page_table: GuestAddress(PAGE_TABLES),
            gdt: GuestAddress(GDT),
            gdt_limit: 4 * 8 - 1,
        }))
    }

    fn unfit(&self, what: &'static str, why: impl ToString) -> BootError {
        BootError::Format { what, path: self.kernel.clone(), why: why.to_string() }
    }

    fn check(&self, result: &KernelLoaderResult) -> Result<setup_header, BootError> {
        let header = result.setup_header.ok_or_else(|| self.unfit("Linux kernel", "it has no setup header"))?;
        let (magic, version, flags) = (header.header, header.version, header.xloadflags);
        if magic != HEADER_MAGIC || version < VERSION_MIN || flags & XLF_KERNEL_64 == 0 {
            return Err(self.unfit("Linux kernel", "it has no 64-bit entry (boot protocol 2.12 or later)"));
        }
        Ok(header)
    }

    /// Puts the initrd as high as possible below `top`; returns where, and its length.
    fn load_initrd(&self, memory: &GuestMemory, bottom: u64, top: u64) -> Result<Option<(u64, u64)>, BootError> {
        let Some(path) = &self.initrd else { return Ok(None) };
        let unread = |source| BootError::Read { what: "initial RAM disk", path: path.clone(), source };
        let mut file = open("initial RAM disk", path)?;
        let len = file.metadata().map_err(unread)?.len();
        let no_room = BootError::NoRoom { what: "the initial RAM disk", memory_mib: memory.size() >> 20 };
        let at = match top.checked_sub(len).map(|at| at & !0xfff) {
            Some(at) if at >= bottom => at,
            _ => return Err(no_room),
        };
        let mut slice = memory.slice(GuestAddress(at), len as usize).map_err(|_| no_room)?;
        vm_memory::ReadVolatile::read_exact_volatile(&mut file, &mut slice)
            .map_err(|e| unread(std::io::Error::other(e)))?;
        Ok(Some((at, len)))
    }

    fn zero_page(
        &self,
        memory: &GuestMemory,
        header: setup_header,
        map: &[Range],
        initrd: Option<(u64, u64)>,
    ) -> Result<(), crate::base::MemoryError> {
        let mut params = boot_params { hdr: header, ..Default::default() };
        params.hdr.type_of_loader = LOADER_OTHER;
        params.hdr.loadflags |= LOADED_HIGH;
        params.hdr.cmd_line_ptr = CMDLINE as u32;
        params.hdr.cmdline_size = self.cmdline.len() as u32;
        if let Some((at, len)) = initrd {
            params.hdr.ramdisk_image = at as u32;
            params.hdr.ramdisk_size = len as u32;
        }
        params.acpi_rsdp_addr = RSDP;
        for (entry, range) in params.e820_table.iter_mut().zip(map) {
            *entry = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind };
        }
        params.e820_entries = map.len() as u8;
        memory.write_obj(GuestAddress(ZERO_PAGE), params)
    }

    fn start_info(
        &self,
        memory: &GuestMemory,
        map: &[Range],
        initrd: Option<(u64, u64)>,
    ) -> Result<(), crate::base::MemoryError> {
        let map = &map[..map.len().min(PVH_MAP_MAX)];
        let mut info = hvm_start_info {
            magic: PVH_MAGIC,
            version: 1,
            cmdline_paddr: CMDLINE,
            rsdp_paddr: RSDP,
            memmap_paddr: PVH_MAP,
            memmap_entries: map.len() as u32,
            ..Default::default()
        };
        if let Some((paddr, size)) = initrd {
            (info.nr_modules, info.modlist_paddr) = (1, PVH_MODULES);
            let module = hvm_modlist_entry { paddr, size, cmdline_paddr: 0, reserved: 0 };
            memory.write_obj(GuestAddress(PVH_MODULES), module)?;
        }
        for (i, range) in map.iter().enumerate() {
            let entry = hvm_memmap_table_entry { addr: range.start, size: range.len, type_: range.kind, reserved: 0 };
            memory.write_obj(GuestAddress(PVH_MAP + 24 * i as u64), entry)?;
        }
        memory.write_obj(GuestAddress(START_INFO), info)
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    File::open(path).map_err(|source| BootError::Read { what, path: path.into(), source })
}

/// A table with flat 64-bit code in selector 0x10 and data in 0x18, and page tables that map 4 GiB one to one.
fn page_tables(memory: &GuestMemory) -> Result<(), crate::base::MemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    memory.write_obj(GuestAddress(GDT), [0, 0, 0x00af_9b00_0000_ffffu64, 0x00cf_9300_0000_ffff])?;
    let (level3, level2) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    memory.write_obj(GuestAddress(PAGE_TABLES), level3 | PRESENT_WRITABLE)?;
    for gib in 0..4 {
        memory.write_obj(GuestAddress(level3 + 8 * gib), (level2 + 0x1000 * gib) | PRESENT_WRITABLE)?;
    }
    for page in 0..4 * 512 {
        memory.write_obj(GuestAddress(level2 + 8 * page), page << 21 | PRESENT_WRITABLE | LARGE)?;
    }
    Ok(())
}
