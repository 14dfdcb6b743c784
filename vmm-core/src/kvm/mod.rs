//! Everything that is asked of /dev/kvm, and the hardware contracts that it fulfils for the devices.

mod cpu;
mod cpuid;
mod hyperv;
mod irq;
mod saved;
mod slots;

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use cpu::{
    CpuError, CpuModel, CpuSaveError, CpuState, KvmCpu, LongMode, ProtectedMode, SavedCpu, section_name as cpu_section,
};
pub use cpuid::Processor;
use irq::Irqs;
pub use irq::{ChipState, GsiLine};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use saved::ChipSection;
use slots::Slots;
use vmm_sys_util::eventfd::EventFd;

use crate::base::{GuestMemory, Section};
use crate::hw::{
    Doorbells, IrqLine, MemorySlots, MsiRoute, MsiSink, SharedRegion, SlotId, SystemManagement, TSEG_SIZES,
};

/// Where KVM keeps the three pages of its real-mode TSS and its identity page table: reserved in every memory map the
/// guest sees.
pub const RESERVED_START: u64 = 0xfeff_c000;
/// See [`RESERVED_START`].
pub const RESERVED_LEN: u64 = 0x4000;
/// The window of the legacy VGA frame buffer, where there is no RAM.
pub const VGA_WINDOW: u64 = 0xa_0000;
/// Its length.
pub const VGA_WINDOW_LEN: u64 = 0x2_0000;

/// The name of the section that [`KvmVm::save`] makes.
pub const CHIPS: &str = "chips";

/// The host's time, ns since 1970.
fn real_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// The device file could not be used, or KVM refused something that the machine needs.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct KvmError {
    /// What was tried.
    pub what: &'static str,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Names what a failed call was for.
pub(crate) fn tried<T, E: Into<io::Error>>(what: &'static str, result: Result<T, E>) -> Result<T, KvmError> {
    result.map_err(|e| KvmError { what, source: e.into() })
}

/// The parts of a run of RAM outside the VGA's window, which is the VGA's to answer, or to show memory of its own in.
fn without_vga_window(start: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let (end, window_end) = (start + len, VGA_WINDOW + VGA_WINDOW_LEN);
    let below = (start, end.min(VGA_WINDOW));
    let above = (start.max(window_end), end);
    [below, above].into_iter().filter(|(start, end)| start < end).map(|(start, end)| (start, end - start))
}

/// The last [`TSEG_SIZES`] bytes of low RAM are in slots of their own, so that hiding some takes nothing else away, not even
/// for a moment: where these parts begin, and their length.
fn at_tseg_sizes(start: u64, len: u64) -> Vec<(u64, u64)> {
    let end = start + len;
    let inner = TSEG_SIZES.iter().rev().filter_map(|&size| end.checked_sub(size)).filter(|&at| at > start);
    let edges: Vec<u64> = [start].into_iter().chain(inner).chain([end]).collect();
    edges.windows(2).map(|edge| (edge[0], edge[1] - edge[0])).collect()
}

/// Whether this host's KVM has system management mode.
pub fn has_smm() -> bool {
    Kvm::new().is_ok_and(|kvm| kvm.check_extension_raw(u64::from(kvm_bindings::KVM_CAP_X86_SMM)) > 0)
}

/// A virtual machine of the kernel's: memory slots, interrupt controllers, CPUs.
pub struct KvmVm {
    kvm: Kvm,
    vm: Arc<VmFd>,
    slots: Slots,
    /// The slots of low RAM, and where each begins.
    low_ram: Vec<(u64, SlotId)>,
    irqs: Arc<Irqs>,
    /// The slots point into it.
    memory: GuestMemory,
}

impl KvmVm {
    /// A machine with this RAM, PICs, an I/O APIC and a PIT, and no CPUs yet. With `smm`, its CPUs have system management
    /// mode.
    pub fn new(memory: &GuestMemory, smm: bool) -> Result<KvmVm, KvmError> {
        let kvm = tried("could not open /dev/kvm", Kvm::new())?;
        let vm = Arc::new(tried("KVM could not create a virtual machine", kvm.create_vm())?);
        tried("KVM refused the TSS's place", vm.set_tss_address(RESERVED_START as usize + 0x1000))?;
        tried("KVM refused the identity map's place", vm.set_identity_map_address(RESERVED_START))?;
        // Memory first: a slot waits for whoever uses the buses, which the interrupt controllers put themselves on.
        let slots = Slots::new(vm.clone(), smm);
        let mut low_ram = Vec::new();
        for region in memory.regions() {
            let low = region.start.0 == 0;
            let parts = without_vga_window(region.start.0, region.len);
            let parts = parts.flat_map(|(start, len)| match smm && low {
                true => at_tseg_sizes(start, len),
                false => vec![(start, len)],
            });
            for (start, len) in parts {
                // SAFETY: the part is inside the region, which stays mapped as long as `memory`, of which self keeps a
                // clone.
                let slot = unsafe {
                    let host = region.host.add((start - region.start.0) as usize);
                    slots.add(start, host, len, slots::Kind::Ram)
                };
                let slot = tried("KVM refused the guest's memory", slot)?;
                if low {
                    low_ram.push((start, slot));
                }
            }
        }
        tried("KVM could not create the interrupt controllers", vm.create_irq_chip())?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        tried("KVM could not create the timer", vm.create_pit2(pit))?;
        let irqs = Arc::new(Irqs::new(vm.clone()));
        tried("KVM refused the interrupt routing", irqs.commit())?;
        Ok(KvmVm { kvm, vm, slots, low_ram, irqs, memory: memory.clone() })
    }

    /// Shows `region` read-only at `address`: firmware. A write exits as MMIO.
    pub fn map_rom(&self, address: u64, region: &Arc<SharedRegion>) -> Result<(), KvmError> {
        let len = region.len() as u64;
        tried("KVM refused the firmware's memory", self.slots.map(address, region, 0, len, slots::Kind::Rom).map(drop))
    }

    /// Creates CPU `index`; with `saved`, one that says of itself what that said.
    pub fn create_cpu(&self, index: u32, model: CpuModel, saved: Option<&SavedCpu>) -> Result<KvmCpu, CpuError> {
        KvmCpu::new(&self.kvm, &self.vm, index, model, saved)
    }

    /// Has model-specific registers that KVM does not know exit instead of raising an exception in the guest.
    pub fn tolerate_unknown_registers(&self) -> Result<(), KvmError> {
        let args = [u64::from(kvm_bindings::KVM_MSR_EXIT_REASON_UNKNOWN), 0, 0, 0];
        let cap =
            kvm_bindings::kvm_enable_cap { cap: kvm_bindings::KVM_CAP_X86_USER_SPACE_MSR, args, ..Default::default() };
        tried("KVM can't tolerate unknown registers, as Hyper-V's interfaces need", self.vm.enable_cap(&cap))
    }

    /// What the CPUs say of themselves.
    pub fn processor(&self) -> Result<Processor, KvmError> {
        let leaves = tried("KVM does not tell what CPUs it supports", cpuid::supported(&self.kvm))?;
        Ok(Processor::of(&leaves))
    }

    /// The most CPUs that this host recommends.
    pub fn max_cpus(&self) -> usize {
        self.kvm.get_nr_vcpus()
    }

    /// An interrupt line.
    pub fn line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(GsiLine::new(self.vm.clone(), gsi))
    }

    /// Whether a doorbell may be written with any size.
    pub fn has_any_length_doorbells(&self) -> bool {
        self.vm.check_extension_raw(u64::from(kvm_bindings::KVM_CAP_IOEVENTFD_ANY_LENGTH)) > 0
    }

    /// The interrupt controllers' and timer's state.
    pub fn chips(&self) -> Result<ChipState, KvmError> {
        ChipState::get(&self.vm)
    }

    /// Sets the interrupt controllers' and timer's state.
    pub fn set_chips(&self, state: &ChipState) -> Result<(), KvmError> {
        state.set(&self.vm)
    }

    /// What a checkpoint keeps of the interrupt controllers, the timer and the clock.
    pub fn save(&self) -> Result<Section, CpuSaveError> {
        let clock = tried("could not read the machine's clock", self.vm.get_clock())?.clock;
        Ok(Section::encode(CHIPS, &ChipSection::new(&self.chips()?, clock, real_time()))?)
    }

    /// Takes over what [`KvmVm::save`] saved; its clock has gone on since. Returns for how long that was, ns.
    pub fn restore(&self, section: &Section) -> Result<u64, CpuSaveError> {
        let decoded: ChipSection = section.decode()?;
        self.set_chips(&decoded.chips(&section.name)?)?;
        let (clock, then) = decoded.clock();
        // A host whose clock was set back since: no time has passed.
        let elapsed = real_time().saturating_sub(then);
        let clock = kvm_bindings::kvm_clock_data { clock: clock.saturating_add(elapsed), ..Default::default() };
        tried("could not set the machine's clock", self.vm.set_clock(&clock))?;
        Ok(elapsed)
    }

    /// The RAM the guest sees.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

impl Doorbells for KvmVm {
    fn register(&self, address: u64, bell: &EventFd) -> io::Result<()> {
        if !self.has_any_length_doorbells() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let address = kvm_ioctls::IoEventAddress::Mmio(address);
        Ok(self.vm.register_ioevent(bell, &address, kvm_ioctls::NoDatamatch)?)
    }

    fn unregister(&self, address: u64, bell: &EventFd) -> io::Result<()> {
        let address = kvm_ioctls::IoEventAddress::Mmio(address);
        Ok(self.vm.unregister_ioevent(bell, &address, kvm_ioctls::NoDatamatch)?)
    }
}

impl MemorySlots for KvmVm {
    fn map(&self, address: u64, region: &Arc<SharedRegion>, offset: u64, len: u64) -> io::Result<SlotId> {
        self.slots.map(address, region, offset, len, slots::Kind::Logged)
    }

    fn map_readonly(&self, address: u64, region: &Arc<SharedRegion>, offset: u64, len: u64) -> io::Result<SlotId> {
        self.slots.map(address, region, offset, len, slots::Kind::Rom)
    }

    fn unmap(&self, slot: SlotId) -> io::Result<()> {
        self.slots.remove(slot)
    }

    fn take_dirty(&self, slot: SlotId) -> io::Result<Vec<u64>> {
        self.slots.take_dirty(slot)
    }
}

impl SystemManagement for KvmVm {
    fn interrupt(&self) {
        // To all local APICs, by their physical ids (Intel SDM volume 3, §11.11): the kernel has noted it when this returns. It
        // has nothing to refuse.
        const ALL: u32 = 0xfee0_0000 | 0xff << 12;
        const SMI: u32 = 2 << 8;
        let _ = self.vm.signal_msi(kvm_bindings::kvm_msi { address_lo: ALL, data: SMI, ..Default::default() });
    }

    fn hide_ram(&self, len: u64) -> io::Result<()> {
        let shown = self.memory.low_top().saturating_sub(len);
        self.memory.hide(len);
        self.low_ram.iter().try_for_each(|&(start, slot)| self.slots.hide(slot, start >= shown))
    }
}

impl MsiSink for KvmVm {
    fn route(&self) -> io::Result<Arc<dyn MsiRoute>> {
        self.irqs.clone().msi_route()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_ram_in_the_vga_window() {
        let parts = |start, len| without_vga_window(start, len).collect::<Vec<_>>();
        assert_eq!(parts(0, 0x10_0000), [(0, 0xa_0000), (0xc_0000, 0x4_0000)]);
        assert_eq!(parts(0, 0xb_0000), [(0, 0xa_0000)]);
        assert_eq!(parts(0x1_0000_0000, 0x1000), [(0x1_0000_0000, 0x1000)]);
    }

    #[test]
    fn low_ram_is_cut_wherever_system_management_may_begin() {
        let mib =
            |parts: Vec<(u64, u64)>| parts.into_iter().map(|(start, len)| (start >> 20, len >> 20)).collect::<Vec<_>>();
        assert_eq!(mib(at_tseg_sizes(0, 64 << 20)), [(0, 48), (48, 8), (56, 6), (62, 1), (63, 1)]);
        assert_eq!(mib(at_tseg_sizes(0, 2 << 20)), [(0, 1), (1, 1)]);
        assert_eq!(at_tseg_sizes(0, 0xa_0000), [(0, 0xa_0000)]);
    }
}
