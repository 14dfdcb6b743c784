//! Hyper-V's interfaces, as far as KVM has them (Hypervisor Top-Level Functional Specification 6.0b, §2.4): what makes
//! Windows use a paravirtual clock, timers, TLB flushes and spin locks.

use kvm_bindings::{
    CpuId, KVM_CAP_HYPERV_ENFORCE_CPUID, KVM_CAP_HYPERV_SYNIC2, kvm_cpuid_entry2, kvm_cpuid2, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd};
use vmm_sys_util::errno::Error;

use super::{KvmError, tried};

vmm_sys_util::ioctl_iowr_nr!(KVM_GET_SUPPORTED_HV_CPUID, kvm_bindings::KVMIO, 0xc1, kvm_cpuid2);

/// Leaves.
const VENDOR: u32 = 0x4000_0000;
const INTERFACE: u32 = 0x4000_0001;
const VERSION: u32 = 0x4000_0002;
const FEATURES: u32 = 0x4000_0003;
const RECOMMENDATIONS: u32 = 0x4000_0004;
const LIMITS: u32 = 0x4000_0005;
const HARDWARE: u32 = 0x4000_0006;
/// KVM's own leaves, which a guest must not find beside these: systems that know both would take KVM's.
const KVM_LEAVES: std::ops::Range<u32> = 0x4000_0000..0x4000_0100;

/// What of KVM's offer is passed on, by leaf: EAX, EBX, ECX, EDX (TLFS §2.4.4, §2.4.5).
///
/// Features, EAX: run time, reference counter, synthetic interrupts and timers, APIC registers, hypercalls, processor
/// index, reference TSC, frequencies. No privileges in EBX: there is no bus to post messages to. EDX: hypercalls with
/// XMM registers, frequencies, crash registers, flushes by range, direct timers.
/// Recommendations: remote TLB flushes, APIC registers, relaxed timing, no AutoEOI, cluster IPIs, wide processor masks.
/// Not: nesting (enlightened VMCS), re-enlightenment, debugging, the bus.
const OFFERED: [(u32, [u32; 4]); 7] = [
    (VENDOR, [!0; 4]),
    (INTERFACE, [!0; 4]),
    (VERSION, [!0; 4]),
    (FEATURES, [0x0000_0a7f, 0, 0, 0x0008_c510]),
    (RECOMMENDATIONS, [0x0000_0e2c, !0, 0, 0]),
    (LIMITS, [!0; 4]),
    (HARDWARE, [!0; 4]),
];
/// How often a lock is tried before the hypervisor is told.
const SPINS: u32 = 0x1fff;
/// The synthetic interrupt controller and its timers, in the features' EAX.
const SYNIC: u32 = 1 << 2;
const STIMER: u32 = 1 << 3;

/// KVM's Hyper-V leaves.
fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, Error> {
    let mut cpuid = CpuId::new(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(|_| Error::new(libc::ENOMEM))?;
    // SAFETY: the kernel writes at most as many entries as the structure says it has room for.
    let result = unsafe {
        vmm_sys_util::ioctl::ioctl_with_mut_ptr(kvm, KVM_GET_SUPPORTED_HV_CPUID(), cpuid.as_mut_fam_struct_ptr())
    };
    if result < 0 { Err(Error::last()) } else { Ok(cpuid.as_slice().to_vec()) }
}

/// Puts Hyper-V's leaves in the place of KVM's.
pub(super) fn patch(entries: &mut Vec<kvm_cpuid_entry2>, kvm: &Kvm) -> Result<(), KvmError> {
    let what = "this computer's KVM has no Hyper-V interfaces; switch hyperv off for this machine";
    let offered = offer(&tried(what, supported(kvm))?);
    entries.retain(|entry| !KVM_LEAVES.contains(&entry.function));
    entries.extend(offered);
    Ok(())
}

/// What the guest is offered of what KVM has.
fn offer(supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let mut offered = Vec::new();
    for (function, [eax, ebx, ecx, edx]) in OFFERED {
        let Some(entry) = supported.iter().find(|e| e.function == function) else { continue };
        let mut entry = *entry;
        (entry.eax, entry.ebx, entry.ecx, entry.edx) =
            (entry.eax & eax, entry.ebx & ebx, entry.ecx & ecx, entry.edx & edx);
        if function == RECOMMENDATIONS {
            entry.ebx = SPINS;
        }
        offered.push(entry);
    }
    let last = offered.last().map_or(VENDOR, |entry| entry.function);
    if let Some(vendor) = offered.first_mut().filter(|entry| entry.function == VENDOR) {
        let [ebx, ecx, edx] = [*b"Micr", *b"osof", *b"t Hv"].map(u32::from_le_bytes);
        (vendor.eax, vendor.ebx, vendor.ecx, vendor.edx) = (last, ebx, ecx, edx);
    }
    offered
}

/// Switches on, for one CPU, what the leaves promise and KVM does only when asked.
pub(super) fn enable(cpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
    let features = entries.iter().find(|e| e.function == FEATURES).map_or(0, |e| e.eax);
    if features & (SYNIC | STIMER) != 0 {
        let cap = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
        tried("KVM could not create a synthetic interrupt controller", cpu.enable_cap(&cap))?;
    }
    let cap = kvm_enable_cap { cap: KVM_CAP_HYPERV_ENFORCE_CPUID, args: [1, 0, 0, 0], ..Default::default() };
    // A kernel before 5.14 can't; then a guest finds more than it was told of.
    let _ = cpu.enable_cap(&cap);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offer_is_kvm_s_cut_down_under_microsoft_s_name() {
        let all = |function| kvm_cpuid_entry2 { function, eax: !0, ebx: !0, ecx: !0, edx: !0, ..Default::default() };
        let kvm: Vec<_> = (0x4000_0000..=0x4000_000a).chain([0x4000_0080]).map(all).collect();
        let offered = offer(&kvm);
        let functions: Vec<_> = offered.iter().map(|e| e.function).collect();
        assert_eq!(functions, (VENDOR..=HARDWARE).collect::<Vec<_>>());
        assert_eq!((offered[0].eax, offered[0].ebx.to_le_bytes()), (HARDWARE, *b"Micr"));
        let (features, recommended) = (offered[3], offered[4]);
        // Of the features: no reset register, statistics or guest idle state; no enlightened VMCS to be used.
        assert_eq!(features.eax & (1 << 7 | 1 << 8 | 1 << 10 | 1 << 13), 0);
        assert_eq!(features.eax & (SYNIC | STIMER), SYNIC | STIMER);
        assert_eq!((features.ebx, recommended.eax & 1 << 14, recommended.ebx), (0, 0, SPINS));
    }

    #[test]
    fn a_kvm_that_has_less_offers_less() {
        let leaf = |function| kvm_cpuid_entry2 { function, ..Default::default() };
        let offered =
            offer(&[leaf(VENDOR), leaf(INTERFACE), leaf(VERSION), leaf(FEATURES), leaf(RECOMMENDATIONS), leaf(LIMITS)]);
        assert_eq!((offered.len(), offered[0].eax, offered[3].eax), (6, LIMITS, 0));
    }
}
