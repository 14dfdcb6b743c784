//! What the guest is told of its CPU: KVM's supported leaves, patched for this machine's topology (platform table in
//! docs/platform.md; Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VmFd};

/// Bits of leaf 1, ECX.
const MONITOR: u32 = 1 << 3;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: several logical processors in the package.
const HTT: u32 = 1 << 28;
/// Leaf 6, EAX: the APIC timer never stops.
const ARAT: u32 = 1 << 2;

/// Fills in what differs by CPU and machine: one socket of `count` cores, this one with APIC id `index`.
pub(super) fn patch(cpuid: &mut CpuId, vm: &VmFd, index: u32, count: u32) {
    let bits = count.next_power_of_two().trailing_zeros();
    let deadline = vm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | index << 24 | count.min(255) << 16;
                entry.ecx = entry.ecx & !MONITOR | HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 };
                entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            0x4 => {
                // Cores in the package; a cache is shared by all of them from level 3 on.
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { count - 1 } else { 0 };
                if entry.eax & 0x1f != 0 {
                    entry.eax = entry.eax & 0x0000_3fff | sharing.min(0xfff) << 14 | (count - 1).min(0x3f) << 26;
                }
            }
            0x6 => entry.eax |= ARAT,
            // No performance counters, SGX or processor trace.
            0xa | 0x12 | 0x14 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0xb | 0x1f => {
                entry.edx = index;
                let level = entry.index;
                (entry.eax, entry.ebx, entry.ecx) = match level {
                    0 => (0, 1, level | 1 << 8),
                    1 => (bits, count, level | 2 << 8),
                    _ => (0, 0, level),
                };
            }
            0x8000_0008 => entry.ecx = entry.ecx & !0xffff | bits << 12 | (count - 1).min(0xff),
            0x8000_001d => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { count - 1 } else { 0 };
                entry.eax = entry.eax & 0x0000_3fff | sharing.min(0xfff) << 14;
            }
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (index, index & 0xff, 0),
            _ => {}
        }
    }
}

/// KVM's leaves, with every level of the topology leaf there for [`patch`] to fill in.
pub(super) fn supported(kvm: &Kvm) -> Result<CpuId, vmm_sys_util::errno::Error> {
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    let entries = cpuid.as_slice();
    let has = |function, index| entries.iter().any(|e| e.function == function && e.index == index);
    let mut all = entries.to_vec();
    for function in [0xb, 0x1f] {
        for index in 0..=2 {
            if has(function, 0) && !has(function, index) {
                let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
                all.push(kvm_cpuid_entry2 { function, index, flags, ..Default::default() });
            }
        }
    }
    CpuId::from_entries(&all).map_err(|_| vmm_sys_util::errno::Error::new(libc::E2BIG))
}
