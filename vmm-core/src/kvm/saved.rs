//! What a checkpoint keeps of the kernel's part of a machine: KVM's own structures (Linux, Documentation/virt/kvm/api.rst)
//! as bytes, for they are an interface that never changes.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_pit_state2, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use serde::{Deserialize, Serialize};

use crate::base::{Bytes, SavedState, StateError};

/// A structure of the kernel's interface.
///
/// # Safety
/// Any bytes are a valid value, and all its bytes may be read: integers and arrays of them, with no implicit padding but
/// what the kernel itself fills in.
unsafe trait Abi: Copy {}

// SAFETY: each is laid out by the kernel's headers for x86-64 from integers, arrays and unions of integers, with its
// padding as named fields.
unsafe impl Abi for kvm_cpuid_entry2 {}
// SAFETY: as above.
unsafe impl Abi for kvm_debugregs {}
// SAFETY: as above.
unsafe impl Abi for kvm_irqchip {}
// SAFETY: as above.
unsafe impl Abi for kvm_lapic_state {}
// SAFETY: as above.
unsafe impl Abi for kvm_mp_state {}
// SAFETY: as above.
unsafe impl Abi for kvm_pit_state2 {}
// SAFETY: as above.
unsafe impl Abi for kvm_regs {}
// SAFETY: as above.
unsafe impl Abi for kvm_sregs {}
// SAFETY: as above.
unsafe impl Abi for kvm_vcpu_events {}
// SAFETY: as above.
unsafe impl Abi for kvm_xcrs {}

fn bytes<T: Abi>(values: &[T]) -> Bytes {
    // SAFETY: the slice's memory is initialised and has no padding that may not be read, as `Abi` promises.
    Bytes(unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }.to_vec())
}

/// Reads `T`s; there must be whole ones, `count` if that is given.
fn values<T: Abi>(bytes: &Bytes, count: Option<usize>) -> Option<Vec<T>> {
    let Bytes(bytes) = bytes;
    let fits = bytes.len().is_multiple_of(size_of::<T>()) && count.is_none_or(|n| bytes.len() == n * size_of::<T>());
    fits.then(|| {
        let whole = bytes.chunks_exact(size_of::<T>());
        // SAFETY: each chunk has as many bytes as a T, any of which are one, as `Abi` promises; it need not be aligned.
        whole.map(|chunk| unsafe { chunk.as_ptr().cast::<T>().read_unaligned() }).collect()
    })
}

fn one<T: Abi>(name: &str, what: &str, bytes: &Bytes) -> Result<T, StateError> {
    let found = values(bytes, Some(1)).and_then(|values| values.first().copied());
    found.ok_or_else(|| StateError::invalid(name, format!("its {what} have another size")))
}

/// What a CPU says of itself (CPUID), as the guest sees it.
#[derive(Clone, Default)]
pub struct Exposed(pub(super) Vec<kvm_cpuid_entry2>);

/// A CPU in a checkpoint.
#[derive(Serialize, Deserialize)]
pub(super) struct CpuSection {
    cpuid: Bytes,
    regs: Bytes,
    sregs: Bytes,
    xsave: Bytes,
    xcrs: Option<Bytes>,
    debug: Bytes,
    lapic: Bytes,
    events: Bytes,
    mp: Bytes,
    /// Number and value.
    msrs: Vec<(u32, u64)>,
    tsc_khz: u32,
    /// Absent in checkpoints of before it was kept.
    #[serde(default)]
    nested: Bytes,
}

impl SavedState for CpuSection {
    const VERSION: u32 = 1;
}

/// The interrupt controllers, the timer and the clocks in a checkpoint.
#[derive(Serialize, Deserialize)]
pub(super) struct ChipSection {
    pic_master: Bytes,
    pic_slave: Bytes,
    io_apic: Bytes,
    pit: Bytes,
    /// KVM's clock, ns since the machine started.
    clock: u64,
    /// The host's time when it was read, ns since 1970.
    real_time: u64,
}

impl SavedState for ChipSection {
    const VERSION: u32 = 1;
}

impl CpuSection {
    pub fn new(state: &super::CpuState, exposed: &Exposed, tsc_khz: u32) -> CpuSection {
        let super::CpuState { regs, sregs, xsave, xcrs, debug, lapic, events, mp, msrs, nested } = state;
        CpuSection {
            cpuid: bytes(&exposed.0),
            regs: bytes(&[*regs]),
            sregs: bytes(&[*sregs]),
            xsave: Bytes(xsave.clone()),
            xcrs: xcrs.map(|xcrs| bytes(&[xcrs])),
            debug: bytes(&[*debug]),
            lapic: bytes(&[*lapic]),
            events: bytes(&[*events]),
            mp: bytes(&[*mp]),
            msrs: msrs.iter().map(|msr| (msr.index, msr.data)).collect(),
            tsc_khz,
            nested: Bytes(nested.clone()),
        }
    }

    pub fn exposed(&self, name: &str) -> Result<Exposed, StateError> {
        let leaves = values(&self.cpuid, None).filter(|leaves| leaves.len() <= kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        leaves.map(Exposed).ok_or_else(|| StateError::invalid(name, "its CPUID leaves have another size"))
    }

    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    pub fn state(self, name: &str) -> Result<super::CpuState, StateError> {
        let CpuSection { cpuid: _, regs, sregs, xsave, xcrs, debug, lapic, events, mp, msrs, tsc_khz: _, nested } =
            self;
        if msrs.len() > kvm_bindings::KVM_MAX_MSR_ENTRIES {
            return Err(StateError::invalid(name, "it has too many registers"));
        }
        Ok(super::CpuState {
            regs: one(name, "registers", &regs)?,
            sregs: one(name, "special registers", &sregs)?,
            xsave: xsave.0,
            xcrs: xcrs.map(|xcrs| one(name, "extended control registers", &xcrs)).transpose()?,
            debug: one(name, "debug registers", &debug)?,
            lapic: one(name, "local APIC's registers", &lapic)?,
            events: one(name, "pending events", &events)?,
            mp: one(name, "start state", &mp)?,
            msrs: msrs
                .into_iter()
                .map(|(index, data)| kvm_bindings::kvm_msr_entry { index, data, ..Default::default() })
                .collect(),
            nested: nested.0,
        })
    }
}

impl ChipSection {
    pub fn new(chips: &super::ChipState, clock: u64, real_time: u64) -> ChipSection {
        let super::ChipState { chips: [master, slave, io_apic], pit } = chips;
        ChipSection {
            pic_master: bytes(&[*master]),
            pic_slave: bytes(&[*slave]),
            io_apic: bytes(&[*io_apic]),
            pit: bytes(&[*pit]),
            clock,
            real_time,
        }
    }

    /// KVM's clock and the host's time when it was read, ns.
    pub fn clock(&self) -> (u64, u64) {
        (self.clock, self.real_time)
    }

    pub fn chips(&self, name: &str) -> Result<super::ChipState, StateError> {
        let ChipSection { pic_master, pic_slave, io_apic, pit, clock: _, real_time: _ } = self;
        let mut chips = [pic_master, pic_slave, io_apic]
            .into_iter()
            .map(|chip| one::<kvm_irqchip>(name, "interrupt controllers", chip))
            .collect::<Result<Vec<_>, _>>()?;
        for (id, chip) in (0u32..).zip(&mut chips) {
            // The number says where the kernel writes.
            chip.chip_id = id;
        }
        let chips = <[kvm_irqchip; 3]>::try_from(chips)
            .map_err(|_| StateError::invalid(name, "it has another number of interrupt controllers"))?;
        Ok(super::ChipState { chips, pit: one(name, "timer's registers", pit)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_of_another_size_are_refused() {
        let regs = kvm_regs { rip: 0x1234, rflags: 2, ..Default::default() };
        let Bytes(mut raw) = bytes(&[regs]);
        assert_eq!(one::<kvm_regs>("cpu0", "registers", &Bytes(raw.clone())).unwrap(), regs);
        raw.pop();
        let error = one::<kvm_regs>("cpu0", "registers", &Bytes(raw)).unwrap_err();
        assert!(error.to_string().contains("cpu0"), "{error}");
        assert!(values::<kvm_cpuid_entry2>(&Bytes(vec![0; 41]), None).is_none());
    }
}
