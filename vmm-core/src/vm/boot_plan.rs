//! What is done at every power-on and reset so that CPU 0 finds something to run.

use std::io::Read;
use std::sync::Arc;

use super::BuildError;
use super::generation::Generation;
use crate::backend::nvram::Nvram;
use crate::base::{GuestAddress, GuestMemory};
use crate::boot::acpi::{self, AcpiConfig, AcpiFiles, EventLog};
use crate::boot::bios::Bios;
use crate::boot::linux::{Entry, Kernel};
use crate::boot::smbios::{self, Smbios, SmbiosConfig};
use crate::boot::uefi::Uefi;
use crate::boot::{BootError, layout, secure_boot};
use crate::config::{Boot, VmConfig};
use crate::devices::chipset::HostBridge;
use crate::devices::legacy::{FwCfgError, FwCfgItems, fw_cfg_key as key};
use crate::hw::SharedRegion;
use crate::kvm::{self, KvmVm};
use crate::pci::{BarKind, PciRoot, reg};

/// The option ROM of the VGA-class function, by the name that SeaBIOS looks for.
const VIDEO_ROM: &str = "pci1af4,1050.rom";
/// What firmware is told of the TPM (QEMU's docs/specs/tpm.rst): the address of the memory of the physical presence
/// interface, u32, of which there is none; the TPM's version, 2; the interface's version, none.
const TPM_CONFIG: &str = "etc/tpm/config";
const TPM_2_WITHOUT_PPI: [u8; 6] = [0, 0, 0, 0, 2, 0];
/// What firmware in system management mode and the machine agree on (QEMU's docs, `etc/smi/*`): the features that there are, u64;
/// those that are wanted, u64; and whether it may have them, u8. There is one: the interrupt comes to all CPUs, which firmware
/// then waits for.
const SMI_SUPPORTED: &str = "etc/smi/supported-features";
const SMI_REQUESTED: &str = "etc/smi/requested-features";
const SMI_OK: &str = "etc/smi/features-ok";
const SMI_BROADCAST: u64 = 1;
/// Registers that firmware sets: PCIEXBAR of the host bridge; PMBASE, ACPI_CNTL and the interrupt routes of the LPC.
const HOST_BRIDGE: usize = 0;
const LPC: usize = 0x1f << 3;
const PCIEXBAR: usize = 0x60;
const PMBASE: usize = 0x40;
const ACPI_CNTL: usize = 0x44;
const PIRQ_ROUTES: [usize; 2] = [0x60, 0x68];

/// How long UEFI waits for the key that opens its menu, ms.
const MENU_WAIT: u16 = 5000;
/// How far behind their entry point the SMBIOS structures are, where no firmware places them.
const SMBIOS_TABLES: u64 = 0x20;

/// See the module.
pub(super) struct BootPlan {
    source: Source,
    acpi: AcpiConfig,
    /// UEFI's variables and their place, until the chip that holds them is made.
    variables: Option<(u64, Nvram)>,
    uuid: [u8; 16],
    smbios: Smbios,
    generation: Arc<Generation>,
}

enum Source {
    /// Firmware finds its own way.
    Bios(Bios),
    /// The same; `menu`: it waits for a key; `smm`: it has system management mode.
    Uefi { menu: bool, smm: bool },
    /// The monitor places a kernel, and does what firmware would have done to the devices.
    Kernel(Kernel),
}

impl BootPlan {
    /// The UEFI firmware that a machine is to start with, if it is to.
    pub(super) fn uefi(config: &VmConfig) -> Result<Option<Uefi>, BootError> {
        match config.boot {
            Boot::Uefi { secure_boot, .. } => Uefi::find(secure_boot, kvm::has_smm()).map(Some),
            Boot::Bios | Boot::Kernel { .. } => Ok(None),
        }
    }

    /// Reads what is to be started, `uefi` if that is firmware; shows firmware to the guest.
    pub(super) fn new(
        config: &VmConfig,
        uefi: Option<&Uefi>,
        kvm: &KvmVm,
        generation: Arc<Generation>,
    ) -> Result<BootPlan, BuildError> {
        let low_top = kvm.memory().low_top() as u32;
        let topology = config.topology();
        let tpm = config.tpm.then_some(match &config.boot {
            Boot::Kernel { .. } => EventLog::None,
            _ => EventLog::Firmware,
        });
        let acpi = AcpiConfig { topology, low_top, ecam: layout::ECAM as u32, tpm };
        let uuid = config.uuid.map_or_else(random_uuid, |uuid| Ok(uuid.0))?;
        let smbios = Smbios::new(&SmbiosConfig::new(uuid, topology, kvm.memory(), kvm.processor()?));
        let mut variables = None;
        let source = match &config.boot {
            Boot::Bios => {
                let bios = Bios::find()?;
                show(kvm, &bios.system)?;
                Source::Bios(bios)
            }
            Boot::Uefi { variables: path, secure_boot, menu } => {
                let found = uefi.ok_or(BootError::NoUefi { skipped: String::new() })?;
                let images = found.read()?;
                let code = show(kvm, &images.code)?;
                let nvram = match path {
                    Some(path) => Nvram::open(path, &images.variables)
                        .map_err(|source| host("could not open the firmware's variables", source)),
                    None => Nvram::volatile(&images.variables)
                        .map_err(|source| host("could not allocate the firmware's memory", source)),
                };
                let nvram = nvram?;
                if let (true, Some(path)) = (*secure_boot, path)
                    && !secure_boot::has_keys(&nvram.copy())
                {
                    return Err(BootError::NoKeys { path: path.clone() }.into());
                }
                variables = Some((code - images.variables.len() as u64, nvram));
                Source::Uefi { menu: *menu, smm: found.smm }
            }
            Boot::Kernel { kernel, initrd, cmdline } => {
                let kernel = Kernel { kernel: kernel.clone(), initrd: initrd.clone(), cmdline: cmdline.clone() };
                Source::Kernel(kernel)
            }
        };
        Ok(BootPlan { source, acpi, variables, uuid, smbios, generation })
    }

    /// What the chip that holds UEFI's variables is made of: its address and its contents. Once.
    pub(super) fn take_variables(&mut self) -> Option<(u64, Nvram)> {
        self.variables.take()
    }

    /// What firmware is told. The tables are made when it asks for them, for they name what it has set by then.
    pub(super) fn firmware_items(
        &self,
        memory: &GuestMemory,
        order: &[String],
        bridge: &Arc<HostBridge>,
    ) -> Result<FwCfgItems, FwCfgError> {
        let mut items = FwCfgItems::default();
        let cpus = (self.acpi.topology.cpus().unwrap_or(1) as u16).to_le_bytes();
        items.item(key::UUID, self.uuid.to_vec());
        items.item(key::NB_CPUS, cpus.to_vec());
        items.item(key::MAX_CPUS, cpus.to_vec());
        items.item(key::RAM_SIZE, memory.size().to_le_bytes().to_vec());
        items.item(key::NUMA, vec![0; 8]);
        let menu = matches!(self.source, Source::Uefi { menu: true, .. });
        items.item(key::BOOT_MENU, u16::from(menu).to_le_bytes().to_vec());
        if menu {
            items.file("etc/boot-menu-wait", MENU_WAIT.to_le_bytes().to_vec())?;
        }
        items.item(key::IRQ0_OVERRIDE, 1u32.to_le_bytes().to_vec());
        items.file("etc/e820", layout::encode(&layout::firmware_map(memory)))?;
        items.file(smbios::ANCHOR_FILE, self.smbios.anchor.clone())?;
        items.file(smbios::TABLES_FILE, self.smbios.tables.clone())?;
        if !order.is_empty() {
            let mut text = order.join("\n").into_bytes();
            text.push(0);
            items.file("bootorder", text)?;
        }
        if matches!(self.source, Source::Uefi { smm: true, .. }) {
            items.file(SMI_SUPPORTED, SMI_BROADCAST.to_le_bytes().to_vec())?;
            items.writable_file(SMI_REQUESTED, vec![0; 8])?;
            items.answer(SMI_OK, SMI_REQUESTED, |wanted| {
                let wanted = wanted.try_into().map_or(u64::MAX, u64::from_le_bytes);
                u8::from(wanted & !SMI_BROADCAST == 0)
            })?;
        }
        if let Source::Bios(bios) = &self.source {
            items.file(VIDEO_ROM, bios.video.clone())?;
        }
        if self.acpi.tpm.is_some() {
            items.file(acpi::TPM_LOG_FILE, vec![0; acpi::TPM_LOG_LEN as usize])?;
            items.file(TPM_CONFIG, TPM_2_WITHOUT_PPI.to_vec())?;
        }
        let AcpiFiles { tables, rsdp, loader } = AcpiFiles::new(self.acpi);
        let sizes = [
            (acpi::TABLES_FILE, tables.len()),
            (acpi::RSDP_FILE, rsdp.len()),
            (acpi::LOADER_FILE, loader.len()),
            (acpi::GENERATION_FILE, acpi::generation_page(&self.generation.id()).len()),
        ];
        items.writable_file(acpi::GENERATION_ADDRESS_FILE, vec![0; 8])?;
        let (bridge, config, generation) = (bridge.clone(), self.acpi, self.generation.clone());
        items.lazy_files(&sizes, move || {
            let ecam = bridge.ecam_range().map_or(config.ecam, |(start, _)| start as u32);
            let AcpiFiles { tables, rsdp, loader } = AcpiFiles::new(AcpiConfig { ecam, ..config });
            Ok(vec![tables, rsdp, loader, acpi::generation_page(&generation.id())])
        })?;
        Ok(items)
    }

    /// Prepares memory and, without firmware, devices; returns where CPU 0 starts, if not at its reset vector.
    pub(super) fn prepare(&self, memory: &GuestMemory, root: &PciRoot) -> Result<Option<Entry>, BootError> {
        match &self.source {
            Source::Bios(bios) => {
                let no_room = |_| BootError::NoRoom { what: "the BIOS", memory_mib: memory.size() >> 20 };
                // A copy that an earlier start has changed would take this start for a warm one.
                memory.fill(GuestAddress(0xc_0000), 0x2_0000, 0).map_err(no_room)?;
                memory.write(GuestAddress(layout::BIOS_SHADOW), bios.shadow()).map_err(no_room)?;
                Ok(None)
            }
            Source::Uefi { .. } => {
                let no_room = |_| BootError::NoRoom { what: "UEFI", memory_mib: memory.size() >> 20 };
                memory.fill(GuestAddress(0xc_0000), 0x4_0000, 0).map_err(no_room)?;
                Ok(None)
            }
            Source::Kernel(kernel) => {
                program_chipset(root);
                assign_bars(root);
                let no_room =
                    |_| BootError::NoRoom { what: "what the machine says of itself", memory_mib: memory.size() >> 20 };
                let (anchor, tables) = self.smbios.clone().place(layout::SMBIOS + SMBIOS_TABLES);
                memory.write(GuestAddress(layout::SMBIOS), &anchor).map_err(no_room)?;
                memory.write(GuestAddress(layout::SMBIOS + SMBIOS_TABLES), &tables).map_err(no_room)?;
                let page = acpi::generation_page(&self.generation.id());
                memory.write(GuestAddress(layout::generation_page(memory)), &page).map_err(no_room)?;
                kernel.load(memory, AcpiFiles::new(self.acpi)).map(Some)
            }
        }
    }
}

fn host(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> BuildError {
    BuildError::Host { what: what.into(), source: source.into() }
}

/// A UUID of version 4 (RFC 9562 §5.4).
pub(super) fn random_uuid() -> Result<[u8; 16], BuildError> {
    let mut uuid = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut uuid));
    read.map_err(|source| host("could not make a UUID", source))?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// Shows firmware to the guest, its end at 4 GiB; returns its start.
fn show(kvm: &KvmVm, firmware: &[u8]) -> Result<u64, BuildError> {
    let rom = SharedRegion::new(firmware.len());
    let rom = rom.map_err(|source| host("could not allocate the firmware's memory", source))?;
    if let Some(slice) = rom.slice(0, firmware.len()) {
        slice.copy_from(firmware);
    }
    let start = (4 << 30) - firmware.len() as u64;
    kvm.map_rom(start, &rom)?;
    Ok(start)
}

/// Sets the chipset's registers as firmware does.
fn program_chipset(root: &PciRoot) {
    let set = |function, register, data: &[u8]| {
        root.write_config(function, register, data);
    };
    set(HOST_BRIDGE, PCIEXBAR + 4, &[0; 4]);
    set(HOST_BRIDGE, PCIEXBAR, &(layout::ECAM as u32 | 1).to_le_bytes());
    set(LPC, PMBASE, &u32::from(layout::PM_BASE | 1).to_le_bytes());
    set(LPC, ACPI_CNTL, &[0x80]);
    for routes in PIRQ_ROUTES {
        set(LPC, routes, &[10, 10, 11, 11]);
    }
}

/// Gives every BAR a place, the largest first, and has all functions decode theirs.
fn assign_bars(root: &PciRoot) {
    let mut wanted = Vec::new();
    for (address, function) in root.functions() {
        let config = function.config().lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bars = (0..6).filter_map(|bar| Some((config.bar(bar)?, bar)));
        wanted.extend(bars.map(|((kind, size), bar)| (u64::from(size), address.index(), bar, kind)));
    }
    wanted.sort_by_key(|&(size, ..)| std::cmp::Reverse(size));
    let (mut memory, mut ports) = (layout::BARS, u64::from(layout::IO_BARS));
    for &(size, function, bar, kind) in &wanted {
        let next = if kind == BarKind::Io { &mut ports } else { &mut memory };
        let place = next.next_multiple_of(size);
        *next = place + size;
        root.write_config(function, reg::BAR0 + 4 * bar, &(place as u32).to_le_bytes());
    }
    for (address, _) in root.functions() {
        root.write_config(address.index(), reg::COMMAND, &[3]);
    }
}
