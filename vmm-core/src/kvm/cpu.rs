//! One virtual CPU: its state at power-on, at a kernel's entry, and as a whole.

use std::io;

use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, Msrs, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave, kvm_xsave2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::saved::{CpuSection, Exposed};
use super::{KvmError, cpuid, hyperv, tried};
use crate::base::{GuestAddress, Section, StateError};
use crate::hw::Topology;

/// Model-specific registers that a machine reset touches, of those the kernel knows (Intel SDM volume 4): SYSENTER,
/// PAT, EFER, STAR family, KERNEL_GS_BASE, TSC_AUX, APIC base is in sregs, MISC_ENABLE, MTRRs.
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MSR_TSC: u32 = 0x10;
/// Whether VMX may be used (Intel SDM volume 4, IA32_FEATURE_CONTROL).
const MSR_FEATURE_CONTROL: u32 = 0x3a;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 0x806;
const FAST_STRINGS: u64 = 1;

/// APIC local vector table registers, as offsets into its page, and delivery modes.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const APIC_MODE_NMI: u32 = 0x4 << 8;
const APIC_MODE_EXTINT: u32 = 0x7 << 8;

/// Everything the kernel keeps of a CPU.
#[derive(Clone)]
pub struct CpuState {
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    /// The XSAVE area, as long as the kernel's.
    pub(super) xsave: Vec<u8>,
    pub(super) xcrs: Option<kvm_xcrs>,
    pub(super) debug: kvm_debugregs,
    pub(super) lapic: kvm_lapic_state,
    pub(super) events: kvm_vcpu_events,
    pub(super) mp: kvm_mp_state,
    pub(super) msrs: Vec<kvm_msr_entry>,
    /// What the guest has of guests of its own: struct kvm_nested_state, as long as it says. Empty where it can have none.
    pub(super) nested: Vec<u8>,
}

/// How a 64-bit kernel is entered (Linux x86 boot protocol, 64-bit).
#[derive(Debug, Clone, Copy)]
pub struct LongMode {
    /// First instruction.
    pub entry: GuestAddress,
    /// The boot parameters, in RSI.
    pub boot_params: GuestAddress,
    /// Page tables that map at least the first 4 GiB one to one.
    pub page_table: GuestAddress,
    /// A table with 64-bit code in selector 0x10 and data in 0x18.
    pub gdt: GuestAddress,
    /// Its limit.
    pub gdt_limit: u16,
}

/// How a PVH kernel is entered: 32-bit, flat, paging off (Xen's PVH boot protocol).
#[derive(Debug, Clone, Copy)]
pub struct ProtectedMode {
    /// First instruction.
    pub entry: GuestAddress,
    /// The start info, in EBX.
    pub start_info: GuestAddress,
}

/// What a machine's CPUs are to be.
#[derive(Debug, Clone, Copy)]
pub struct CpuModel {
    /// How they are arranged.
    pub topology: Topology,
    /// They show Hyper-V's interfaces instead of KVM's.
    pub hyperv: bool,
}

/// A CPU of the kernel's.
pub struct KvmCpu {
    fd: VcpuFd,
    index: u32,
    msr_indices: Vec<u32>,
    exposed: Exposed,
    /// Bytes of the XSAVE area.
    xsave_len: usize,
    /// The guest may run guests of its own.
    nests: bool,
}

/// A CPU of a checkpoint, checked and ready to be taken over.
#[derive(Clone)]
pub struct SavedCpu {
    state: CpuState,
    exposed: Exposed,
    tsc_khz: u32,
}

/// Why a CPU can't go on here.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// This computer's processors can't do all that the guest was told.
    #[error(
        "this computer's processor lacks what the guest was told it has: {}; go on with it on a computer like the one it \
         was saved on",
        .0.join(", ")
    )]
    Missing(Vec<String>),
    /// Its clock would run at another speed.
    #[error(
        "its time stamp counter ran at {saved} kHz, this computer's runs at {here} kHz and can't be scaled; go on with it \
         on a computer like the one it was saved on"
    )]
    Frequency {
        /// What the guest was told.
        saved: u32,
        /// What there is.
        here: u32,
    },
}

/// How far two time stamp counters may be apart, in parts of a million, and still pass for one: what a guest's own clock
/// discipline makes good.
const TSC_TOLERANCE_PPM: u64 = 250;
/// Bytes of the XSAVE area of KVM_GET_XSAVE.
const XSAVE_LEN: usize = size_of::<kvm_xsave>();

impl KvmCpu {
    /// With `saved`, the CPU says of itself what that said.
    pub(super) fn new(
        kvm: &Kvm,
        vm: &VmFd,
        index: u32,
        model: CpuModel,
        saved: Option<&SavedCpu>,
    ) -> Result<KvmCpu, CpuError> {
        let apic_id = model.topology.apic_id(index);
        let fd = tried("KVM could not create a CPU", vm.create_vcpu(u64::from(apic_id)))?;
        let mut leaves = tried("KVM does not tell what CPUs it supports", cpuid::supported(kvm))?;
        let facts = cpuid::Facts {
            topology: model.topology,
            deadline_timer: vm.check_extension(Cap::TscDeadlineTimer),
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        };
        cpuid::patch(&mut leaves, apic_id, facts);
        if model.hyperv {
            hyperv::patch(&mut leaves, kvm)?;
            hyperv::enable(&fd, &leaves)?;
        }
        if let Some(saved) = saved {
            let missing = cpuid::missing(&saved.exposed.0, &leaves);
            if !missing.is_empty() {
                return Err(CpuError::Missing(missing));
            }
            set_frequency(&fd, saved.tsc_khz, facts.tsc_khz)?;
            leaves.clone_from(&saved.exposed.0);
        }
        let table = cpuid::table(&leaves).and_then(|table| fd.set_cpuid2(&table));
        tried("KVM refused the CPU's features", table)?;
        let list = tried("KVM does not tell its model-specific registers", kvm.get_msr_index_list())?;
        let xsave_len = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(XSAVE_LEN);
        let nests = vm.check_extension_int(Cap::NestedState) > 0;
        Ok(KvmCpu { fd, index, msr_indices: list.as_slice().to_vec(), exposed: Exposed(leaves), xsave_len, nests })
    }

    /// The kernel's handle.
    pub fn fd(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Its number; the first is 0, whatever its APIC id.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The CPU is to run, after a pause perhaps: tells a guest with a KVM clock that the time it missed is no hang of its own.
    pub fn going_on(&self) {
        // Refused where the guest has no such clock.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// The first of the crash registers, by which a guest with Hyper-V's interfaces says why it crashed.
    pub fn crash_code(&self) -> u64 {
        const CRASH_P0: u32 = 0x4000_0100;
        let wanted = [kvm_msr_entry { index: CRASH_P0, ..Default::default() }];
        let Ok(mut msrs) = Msrs::from_entries(&wanted) else { return 0 };
        match self.fd.get_msrs(&mut msrs) {
            Ok(1) => msrs.as_slice().first().map_or(0, |msr| msr.data),
            _ => 0,
        }
    }

    /// Wires the local interrupt pins as firmware does where none runs, and makes all memory write-back.
    pub fn set_up_without_firmware(&self) -> Result<(), KvmError> {
        let mut lapic = tried("could not read the local APIC", self.fd.get_lapic())?;
        for (register, mode) in [(APIC_LVT0, APIC_MODE_EXTINT), (APIC_LVT1, APIC_MODE_NMI)] {
            for (i, byte) in mode.to_le_bytes().into_iter().enumerate() {
                lapic.regs[register + i] = byte as _;
            }
        }
        tried("could not set the local APIC", self.fd.set_lapic(&lapic))?;
        for (index, data) in [(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK), (MSR_MISC_ENABLE, FAST_STRINGS)] {
            if self.msr_indices.contains(&index) || index == MSR_MTRR_DEF_TYPE {
                let msrs = [kvm_msr_entry { index, data, ..Default::default() }];
                // A host whose KVM lacks the register (a software KVM) does without.
                let _ = Msrs::from_entries(&msrs).map(|m| self.fd.set_msrs(&m));
            }
        }
        Ok(())
    }

    /// Puts the CPU at a 64-bit kernel's entry.
    pub fn enter_long_mode(&self, to: LongMode) -> Result<(), KvmError> {
        let mut sregs = tried("could not read the CPU's registers", self.fd.get_sregs())?;
        let code = kvm_segment {
            selector: 0x10,
            limit: 0xffff_ffff,
            type_: 0xb,
            present: 1,
            s: 1,
            l: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment { selector: 0x18, type_: 3, l: 0, db: 1, ..code };
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.gdt.base = to.gdt.0;
        sregs.gdt.limit = to.gdt_limit;
        sregs.cr3 = to.page_table.0;
        // PAE; PE, ET, PG; LME, LMA.
        sregs.cr4 |= 1 << 5;
        sregs.cr0 = 1 | 1 << 4 | 1 << 31;
        sregs.efer |= 1 << 8 | 1 << 10;
        tried("could not set the CPU's registers", self.fd.set_sregs(&sregs))?;
        let regs = kvm_regs { rip: to.entry.0, rsi: to.boot_params.0, rsp: 0x8ff0, rflags: 2, ..Default::default() };
        tried("could not set the CPU's registers", self.fd.set_regs(&regs))
    }

    /// Puts the CPU at a PVH kernel's entry.
    pub fn enter_protected_mode(&self, to: ProtectedMode) -> Result<(), KvmError> {
        let mut sregs = tried("could not read the CPU's registers", self.fd.get_sregs())?;
        let code = kvm_segment {
            selector: 0x8,
            limit: 0xffff_ffff,
            type_: 0xb,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment { selector: 0x10, type_: 3, ..code };
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment { selector: 0, limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
        sregs.cr0 = 1 | 1 << 4;
        sregs.cr4 = 0;
        tried("could not set the CPU's registers", self.fd.set_sregs(&sregs))?;
        let regs = kvm_regs { rip: to.entry.0, rbx: to.start_info.0, rflags: 2, ..Default::default() };
        tried("could not set the CPU's registers", self.fd.set_regs(&regs))
    }

    /// Reads everything. The CPU is not running.
    pub fn state(&self) -> Result<CpuState, KvmError> {
        let fd = &self.fd;
        Ok(CpuState {
            regs: tried("could not read the CPU's registers", fd.get_regs())?,
            sregs: tried("could not read the CPU's registers", fd.get_sregs())?,
            xsave: self.xsave()?,
            xcrs: fd.get_xcrs().ok(),
            debug: tried("could not read the debug registers", fd.get_debug_regs())?,
            lapic: tried("could not read the local APIC", fd.get_lapic())?,
            events: tried("could not read the CPU's pending events", fd.get_vcpu_events())?,
            mp: tried("could not read whether the CPU is started", fd.get_mp_state())?,
            msrs: self.msrs()?,
            nested: self.nested()?,
        })
    }

    /// Sets everything.
    pub fn set_state(&self, state: &CpuState) -> Result<(), KvmError> {
        let CpuState { regs, sregs, xsave, xcrs, debug, lapic, events, mp, msrs, nested } = state;
        let fd = &self.fd;
        tried("could not set whether the CPU is started", fd.set_mp_state(*mp))?;
        tried("could not set the CPU's registers", fd.set_sregs(sregs))?;
        if !nested.is_empty() {
            // VMX is believed only where the guest's firmware has allowed it.
            set_msrs(fd, msrs.iter().filter(|msr| msr.index == MSR_FEATURE_CONTROL));
            self.set_nested(nested)?;
        }
        tried("could not set the CPU's registers", fd.set_regs(regs))?;
        if let Some(xcrs) = xcrs {
            tried("could not set the extended control registers", fd.set_xcrs(xcrs))?;
        }
        self.set_xsave(xsave)?;
        tried("could not set the debug registers", fd.set_debug_regs(debug))?;
        tried("could not set the local APIC", fd.set_lapic(lapic))?;
        set_msrs(fd, msrs.iter());
        tried("could not set the CPU's pending events", fd.set_vcpu_events(events))
    }

    /// The state after power-on: CPU 0 at the reset vector, the others waiting for it. Taken from a fresh CPU's state.
    pub fn power_on(&self, fresh: &CpuState) -> Result<(), KvmError> {
        let mut state = fresh.clone();
        state.mp.mp_state = if self.index == 0 { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_UNINITIALIZED };
        state.msrs.retain(|msr| msr.index != MSR_TSC);
        self.set_state(&state)
    }

    /// What a checkpoint keeps of it. The CPU is not running.
    pub fn save(&self) -> Result<Section, CpuSaveError> {
        let section = CpuSection::new(&self.state()?, &self.exposed, self.fd.get_tsc_khz().unwrap_or(0));
        Ok(Section::encode(&section_name(self.index), &section)?)
    }

    /// Takes over a saved state, with this time stamp counter: it has gone on since, and those of a machine count together.
    pub fn restore(&self, saved: &SavedCpu, tsc: Option<u64>) -> Result<(), KvmError> {
        let mut state = saved.state.clone();
        for msr in &mut state.msrs {
            if let (MSR_TSC, Some(tsc)) = (msr.index, tsc) {
                msr.data = tsc;
            }
        }
        self.set_state(&state)
    }

    fn nested(&self) -> Result<Vec<u8>, KvmError> {
        if !self.nests {
            return Ok(Vec::new());
        }
        let mut state = KvmNestedStateBuffer::empty();
        tried("could not read what the CPU has of nested guests", self.fd.nested_state(&mut state))?;
        let length = (state.size as usize).min(size_of_val(&state));
        // SAFETY: the structure is laid out by the kernel without implicit padding, and was zeroed before the kernel wrote it.
        Ok(unsafe { std::slice::from_raw_parts((&raw const state).cast::<u8>(), length) }.to_vec())
    }

    fn set_nested(&self, bytes: &[u8]) -> Result<(), KvmError> {
        let mut state = KvmNestedStateBuffer::empty();
        let length = bytes.len().min(size_of_val(&state));
        // SAFETY: both are at least that long, and any bytes are valid in the structure; the kernel checks what it says.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut state).cast::<u8>(), length) };
        // Never beyond what is there.
        state.size = length as u32;
        tried("could not set what the CPU has of nested guests", self.fd.set_nested_state(&state))
    }

    fn xsave(&self) -> Result<Vec<u8>, KvmError> {
        let what = "could not read the FPU";
        if self.xsave_len == XSAVE_LEN {
            let area = tried(what, self.fd.get_xsave())?;
            return Ok(area.region.iter().flat_map(|word| word.to_le_bytes()).collect());
        }
        let mut area = xsave_area(self.xsave_len)?;
        // SAFETY: the area is as long as KVM_CAP_XSAVE2 says that the kernel writes.
        tried(what, unsafe { self.fd.get_xsave2(&mut area) })?;
        let start: *const u8 = (&raw const *area.as_fam_struct_ref()).cast();
        // SAFETY: the wrapper has allocated the structure and the words behind it, xsave_len bytes at least, initialised.
        Ok(unsafe { std::slice::from_raw_parts(start, self.xsave_len) }.to_vec())
    }

    fn set_xsave(&self, bytes: &[u8]) -> Result<(), KvmError> {
        let mut area = xsave_area(self.xsave_len.max(bytes.len()))?;
        // SAFETY: the wrapper has allocated the structure and the words behind it, at least as long as `bytes`; any bytes are
        // valid in it.
        unsafe {
            let start: *mut u8 = (&raw mut *area.as_mut_fam_struct()).cast();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len());
        }
        // SAFETY: the area is as long as the kernel reads.
        tried("could not set the FPU", unsafe { self.fd.set_xsave2(&area) })
    }

    fn msrs(&self) -> Result<Vec<kvm_msr_entry>, KvmError> {
        let mut found = Vec::new();
        let mut rest: &[u32] = &self.msr_indices;
        // The kernel stops at the first register it can't read: pass over it.
        while !rest.is_empty() {
            let wanted: Vec<_> = rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let too_many = |e| KvmError { what: "too many registers", source: io::Error::other(format!("{e:?}")) };
            let mut msrs = Msrs::from_entries(&wanted).map_err(too_many)?;
            let count = self.fd.get_msrs(&mut msrs).unwrap_or(0);
            found.extend(msrs.as_slice().iter().take(count).copied());
            rest = rest.get(count + 1..).unwrap_or(&[]);
        }
        Ok(found)
    }

    /// The registers that tell where a CPU failed, for a problem's text.
    pub fn whereabouts(&self) -> String {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(r), Ok(s)) => {
                format!("cs:rip {:#x}:{:#x}, cr0 {:#x}, cr3 {:#x}, efer {:#x}", s.cs.base, r.rip, s.cr0, s.cr3, s.efer)
            }
            _ => "at an unknown place".into(),
        }
    }
}

impl SavedCpu {
    /// CPU `index` of a checkpoint.
    pub fn decode(section: &Section) -> Result<SavedCpu, StateError> {
        let decoded: CpuSection = section.decode()?;
        let (exposed, tsc_khz) = (decoded.exposed(&section.name)?, decoded.tsc_khz());
        Ok(SavedCpu { state: decoded.state(&section.name)?, exposed, tsc_khz })
    }

    /// Its time stamp counter as it is `elapsed` ns after it was saved.
    pub fn tsc_after(&self, elapsed: u64) -> Option<u64> {
        let tsc = self.state.msrs.iter().find(|msr| msr.index == MSR_TSC)?.data;
        let ticks = u128::from(elapsed) * u128::from(self.tsc_khz) / 1_000_000;
        Some(tsc.wrapping_add(ticks as u64))
    }
}

/// The name of CPU `index`'s section.
pub fn section_name(index: u32) -> String {
    format!("cpu{index}")
}

/// Why a CPU can't be saved.
#[derive(Debug, thiserror::Error)]
pub enum CpuSaveError {
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// It can't be encoded.
    #[error(transparent)]
    State(#[from] StateError),
}

/// An XSAVE area of at least `len` bytes.
/// Sets these one by one: some that can be read can't be written, and the kernel derives those itself.
fn set_msrs<'a>(fd: &VcpuFd, msrs: impl Iterator<Item = &'a kvm_msr_entry>) {
    for msr in msrs {
        if let Ok(one) = Msrs::from_entries(std::slice::from_ref(msr)) {
            let _ = fd.set_msrs(&one);
        }
    }
}

fn xsave_area(len: usize) -> Result<Xsave, KvmError> {
    let words = len.saturating_sub(size_of::<kvm_xsave2>()).div_ceil(size_of::<u32>());
    let what = "could not allocate the FPU's state";
    Xsave::new(words).map_err(|e| KvmError { what, source: io::Error::other(format!("{e:?}")) })
}

/// Has a time stamp counter run as the guest knows it.
fn set_frequency(fd: &VcpuFd, saved: u32, here: u32) -> Result<(), CpuError> {
    let near = u64::from(saved.abs_diff(here)) * 1_000_000 <= u64::from(saved) * TSC_TOLERANCE_PPM;
    if saved == 0 || here == 0 || near || fd.set_tsc_khz(saved).is_ok() {
        return Ok(());
    }
    Err(CpuError::Frequency { saved, here })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_stamp_counter_goes_on_while_a_cpu_is_saved() {
        let mut state = CpuState {
            regs: Default::default(),
            sregs: Default::default(),
            xsave: vec![],
            xcrs: None,
            debug: Default::default(),
            lapic: Default::default(),
            events: Default::default(),
            mp: Default::default(),
            msrs: vec![],
            nested: vec![],
        };
        let saved =
            |state: &CpuState| SavedCpu { state: state.clone(), exposed: Exposed::default(), tsc_khz: 2_500_000 };
        assert_eq!(saved(&state).tsc_after(10), None);
        state.msrs.push(kvm_msr_entry { index: MSR_TSC, data: 7, ..Default::default() });
        assert_eq!(saved(&state).tsc_after(1_000_000_000), Some(2_500_000_007));
    }
}
