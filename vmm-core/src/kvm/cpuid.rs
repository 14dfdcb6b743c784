//! What the guest is told of its CPU: KVM's supported leaves, patched for this machine's topology (platform table in
//! docs/platform.md; Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use vmm_sys_util::errno::Error;

use crate::hw::Topology;

/// Bits of leaf 1, ECX.
const MONITOR: u32 = 1 << 3;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: several logical processors in the package.
const HTT: u32 = 1 << 28;
/// Leaf 6, EAX: the APIC timer never stops.
const ARAT: u32 = 1 << 2;
/// Leaf 80000001, ECX: the logical processors of the package are cores (AMD).
const CMP_LEGACY: u32 = 1 << 1;

/// The hypervisor's leaves: KVM's identity, and after it the frequencies that SeaBIOS and others read.
const KVM_ID: u32 = 0x4000_0000;
const FREQUENCIES: u32 = 0x4000_0010;
/// The local APIC timer's frequency in KVM, kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Levels of leaves b and 1f.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What is the same for all CPUs of a machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// How they are arranged.
    pub topology: Topology,
    /// KVM has a TSC deadline timer.
    pub deadline_timer: bool,
    /// The time stamp counter's frequency, kHz; 0 where KVM does not tell.
    pub tsc_khz: u32,
}

/// Fills in what differs by CPU and machine.
pub(super) fn patch(entries: &mut [kvm_cpuid_entry2], apic_id: u32, facts: Facts) {
    let Facts { topology, deadline_timer, tsc_khz } = facts;
    let amd = entries.iter().any(|e| e.function == 0 && is_amd(e));
    let threads = topology.threads_per_socket();
    let (thread_bits, package_bits) = (topology.thread_bits(), topology.package_bits());
    // Ids that are one less than a power of two: what a cache is shared by is a field of the APIC id.
    let sharing = |level: u32| if level >= 3 { (1 << package_bits) - 1 } else { (1u32 << thread_bits) - 1 };
    for entry in entries {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | apic_id << 24 | threads.min(255) << 16;
                entry.ecx = entry.ecx & !(MONITOR | TSC_DEADLINE) | HYPERVISOR;
                entry.ecx |= if deadline_timer { TSC_DEADLINE } else { 0 };
                entry.edx = if threads > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            0x4 if entry.eax & 0x1f != 0 => {
                let cores = (1u32 << (package_bits - thread_bits)) - 1;
                entry.eax = entry.eax & 0x3fff | sharing(entry.eax >> 5 & 7).min(0xfff) << 14 | cores.min(0x3f) << 26;
            }
            0x6 => entry.eax |= ARAT,
            // No performance counters, SGX or processor trace.
            0xa | 0x12 | 0x14 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0xb | 0x1f => {
                entry.edx = apic_id;
                let level = entry.index;
                (entry.eax, entry.ebx, entry.ecx) = match level {
                    0 => (thread_bits, topology.threads, level | LEVEL_THREAD << 8),
                    1 => (package_bits, threads, level | LEVEL_CORE << 8),
                    _ => (0, 0, level),
                };
            }
            KVM_ID => entry.eax = FREQUENCIES,
            FREQUENCIES => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (tsc_khz, APIC_BUS_KHZ, 0, 0),
            0x8000_0001 if amd => {
                entry.ecx = if threads > 1 { entry.ecx | CMP_LEGACY } else { entry.ecx & !CMP_LEGACY };
            }
            0x8000_0008 if amd => entry.ecx = entry.ecx & !0xf0ff | package_bits << 12 | (threads - 1).min(0xff),
            0x8000_001d if entry.eax & 0x1f != 0 => {
                entry.eax = entry.eax & 0x3fff | sharing(entry.eax >> 5 & 7).min(0xfff) << 14;
            }
            0x8000_001e => {
                let core = (apic_id & ((1 << package_bits) - 1)) >> thread_bits;
                (entry.eax, entry.ebx) = (apic_id, core & 0xff | (topology.threads - 1).min(0xff) << 8);
                // A node for each socket, one node in it.
                entry.ecx = apic_id >> package_bits & 0xff;
            }
            _ => {}
        }
    }
}

/// Whether leaf 0 says AuthenticAMD, or HygonGenuine, which is the same.
fn is_amd(leaf: &kvm_cpuid_entry2) -> bool {
    [*b"Auth", *b"Hygo"].contains(&leaf.ebx.to_le_bytes())
}

/// KVM's leaves, with every level of the topology leaf and the frequencies there for [`patch`] to fill in.
pub(super) fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, Error> {
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    let mut all = cpuid.as_slice().to_vec();
    let has =
        |all: &[kvm_cpuid_entry2], function, index| all.iter().any(|e| e.function == function && e.index == index);
    for function in [0xb, 0x1f] {
        for index in 0..=2 {
            if has(&all, function, 0) && !has(&all, function, index) {
                let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
                all.push(kvm_cpuid_entry2 { function, index, flags, ..Default::default() });
            }
        }
    }
    if has(&all, KVM_ID, 0) && !has(&all, FREQUENCIES, 0) {
        all.push(kvm_cpuid_entry2 { function: FREQUENCIES, ..Default::default() });
    }
    Ok(all)
}

/// Registers of leaves that say what a processor can do, a bit each (Intel SDM volume 2A, CPUID; Linux,
/// Documentation/virt/kvm/x86/cpuid.rst): leaf, subleaf, register (EAX first).
const FEATURES: [(u32, u32, usize); 16] = [
    (0x1, 0, 2),
    (0x1, 0, 3),
    (0x7, 0, 1),
    (0x7, 0, 2),
    (0x7, 0, 3),
    (0x7, 1, 0),
    (0x7, 1, 3),
    (0xd, 0, 0),
    (0xd, 0, 3),
    (0xd, 1, 0),
    (KVM_ID | 1, 0, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    (0x8000_0007, 0, 3),
    (0x8000_0008, 0, 1),
    (0x8000_000a, 0, 3),
];

/// Names of features that differ between computers in use: place in [`FEATURES`], bit, name.
const NAMES: [(usize, u32, &str); 22] = [
    (0, 0, "SSE3"),
    (0, 1, "PCLMULQDQ"),
    (0, 12, "FMA"),
    (0, 17, "PCID"),
    (0, 19, "SSE4.1"),
    (0, 20, "SSE4.2"),
    (0, 21, "x2APIC"),
    (0, 22, "MOVBE"),
    (0, 25, "AES"),
    (0, 28, "AVX"),
    (0, 30, "RDRAND"),
    (2, 3, "BMI1"),
    (2, 5, "AVX2"),
    (2, 8, "BMI2"),
    (2, 10, "INVPCID"),
    (2, 16, "AVX-512F"),
    (2, 18, "RDSEED"),
    (2, 29, "SHA"),
    (3, 16, "57-bit addresses"),
    (4, 24, "AMX"),
    (11, 6, "SSE4a"),
    (13, 8, "invariant TSC"),
];

/// What `saved` promised the guest that `here` can't keep, in words; nothing if a guest can go on here.
pub(super) fn missing(saved: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Vec<String> {
    let vendor = |entries: &[kvm_cpuid_entry2]| Processor::of(entries).vendor;
    if vendor(saved) != vendor(here) {
        return vec![format!("it was saved on a processor of {}, this is one of {}", vendor(saved), vendor(here))];
    }
    let register = |entries: &[kvm_cpuid_entry2], (function, index, register): (u32, u32, usize)| {
        let entry = entries.iter().find(|e| e.function == function && e.index == index);
        entry.map_or(0, |e| [e.eax, e.ebx, e.ecx, e.edx][register])
    };
    let mut words = Vec::new();
    for (place, feature) in FEATURES.into_iter().enumerate() {
        let gone = register(saved, feature) & !register(here, feature);
        for bit in (0..32).filter(|bit| gone >> bit & 1 != 0) {
            let name = NAMES.iter().find(|name| (name.0, name.1) == (place, bit)).map(|name| name.2.to_string());
            let (function, index, register) = feature;
            let register = ["EAX", "EBX", "ECX", "EDX"][register];
            words.push(name.unwrap_or_else(|| format!("CPUID {function:x}.{index} {register} bit {bit}")));
        }
    }
    words
}

/// As the kernel takes it.
pub(super) fn table(entries: &[kvm_cpuid_entry2]) -> Result<CpuId, Error> {
    CpuId::from_entries(entries).map_err(|_| Error::new(libc::E2BIG))
}

/// What a processor says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Processor {
    /// Leaf 0, like `GenuineIntel`.
    pub vendor: String,
    /// Leaves 80000002 to 80000004.
    pub brand: String,
    /// EAX and EDX of leaf 1: family, model, stepping; features.
    pub id: [u32; 2],
}

impl Processor {
    pub(super) fn of(entries: &[kvm_cpuid_entry2]) -> Processor {
        let leaf = |function| entries.iter().find(|e| e.function == function).copied().unwrap_or_default();
        let text = |words: &[u32]| {
            let bytes = words.iter().flat_map(|word| word.to_le_bytes());
            bytes.filter(|byte| (0x20..0x7f).contains(byte)).map(char::from).collect::<String>().trim().to_string()
        };
        let (first, second) = (leaf(0), leaf(1));
        let brand = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(leaf);
        let brand: Vec<u32> = brand.iter().flat_map(|e| [e.eax, e.ebx, e.ecx, e.edx]).collect();
        Processor {
            vendor: text(&[first.ebx, first.edx, first.ecx]),
            brand: text(&brand),
            id: [second.eax, second.edx],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Topology; 5] = [
        Topology { sockets: 1, cores: 1, threads: 1 },
        Topology { sockets: 1, cores: 4, threads: 1 },
        Topology { sockets: 2, cores: 3, threads: 2 },
        Topology { sockets: 1, cores: 6, threads: 2 },
        Topology { sockets: 4, cores: 16, threads: 1 },
    ];

    /// A CPU's leaves, of an Intel or an AMD processor with a cache of each level.
    fn cpuid(vendor: &[u8; 12], topology: Topology, index: u32) -> Vec<kvm_cpuid_entry2> {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let leaf = |function, index| kvm_cpuid_entry2 { function, index, ..Default::default() };
        let mut all = vec![kvm_cpuid_entry2 { ebx: word(0), edx: word(4), ecx: word(8), ..leaf(0, 0) }, leaf(1, 0)];
        let cache_leaf = if vendor == b"AuthenticAMD" { 0x8000_001d } else { 4 };
        all.extend((0..4).map(|i| {
            // Data, instructions; unified of levels 2 and 3.
            let (kind, level) = [(1, 1), (2, 1), (3, 2), (3, 3)][i as usize];
            kvm_cpuid_entry2 { eax: kind | level << 5 | 0xffff_c000, ..leaf(cache_leaf, i) }
        }));
        all.push(leaf(cache_leaf, 4));
        all.extend((0..3).map(|i| leaf(0xb, i)));
        all.extend([0x4000_0000, 0x4000_0010, 0x8000_0001, 0x8000_0008, 0x8000_001e].map(|function| leaf(function, 0)));
        patch(&mut all, topology.apic_id(index), Facts { topology, deadline_timer: true, tsc_khz: 2_000_000 });
        all
    }

    fn leaf(all: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *all.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    /// Socket, core, thread of a CPU, counted from its number alone.
    fn place(topology: Topology, index: u32) -> [u32; 3] {
        let thread = index % topology.threads;
        let core = index / topology.threads % topology.cores;
        [index / topology.threads_per_socket(), core, thread]
    }

    /// The extended topology leaf, as Linux reads it (both vendors): shifts of the x2APIC id.
    #[test]
    fn shifts_of_the_apic_id_give_each_cpu_its_socket_core_and_thread() {
        for topology in ALL {
            for index in 0..topology.cpus().unwrap() {
                let all = cpuid(b"GenuineIntel", topology, index);
                let (thread, core) = (leaf(&all, 0xb, 0), leaf(&all, 0xb, 1));
                assert_eq!((thread.ecx >> 8, core.ecx >> 8, leaf(&all, 0xb, 2).ecx), (1, 2, 2));
                assert_eq!((thread.ebx, core.ebx), (topology.threads, topology.threads_per_socket()));
                let id = core.edx;
                let found = [id >> core.eax, (id & ((1 << core.eax) - 1)) >> thread.eax, id & ((1 << thread.eax) - 1)];
                assert_eq!(found, place(topology, index), "{topology:?} {index}");
                assert_eq!(leaf(&all, 1, 0).ebx >> 24, id);
            }
        }
    }

    /// Leaves 1 and 4, as systems read them that know no leaf b (Intel SDM volume 3, example 9-18).
    #[test]
    fn leaf_4_agrees_with_the_extended_topology() {
        for topology in ALL {
            let all = cpuid(b"GenuineIntel", topology, 0);
            let l1 = leaf(&all, 4, 0);
            let cores = (l1.eax >> 26) + 1;
            let package = 1 << leaf(&all, 0xb, 1).eax;
            assert_eq!(package / cores, 1 << leaf(&all, 0xb, 0).eax);
            // The first level is a core's, the last the package's.
            assert_eq!((l1.eax >> 14 & 0xfff) + 1, package / cores);
            assert_eq!((leaf(&all, 4, 3).eax >> 14 & 0xfff) + 1, package);
            assert_eq!(leaf(&all, 4, 4).eax, 0);
            let first = leaf(&all, 1, 0);
            assert_eq!(first.ebx >> 16 & 0xff, topology.threads_per_socket());
            assert_eq!(first.edx & HTT != 0, topology.threads_per_socket() > 1);
        }
    }

    /// Leaves 80000001, 80000008 and 8000001e (AMD APM volume 3, §E.5).
    #[test]
    fn amd_s_leaves_agree_with_the_extended_topology() {
        for topology in ALL {
            for index in 0..topology.cpus().unwrap() {
                let all = cpuid(b"AuthenticAMD", topology, index);
                let [socket, core, _] = place(topology, index);
                let sizes = leaf(&all, 0x8000_0008, 0).ecx;
                assert_eq!(((sizes & 0xff) + 1, sizes >> 12), (topology.threads_per_socket(), leaf(&all, 0xb, 1).eax));
                let extended = leaf(&all, 0x8000_001e, 0);
                assert_eq!(extended.eax, topology.apic_id(index));
                assert_eq!((extended.ebx & 0xff, (extended.ebx >> 8) + 1), (core, topology.threads));
                assert_eq!(extended.ecx, socket);
                let legacy = leaf(&all, 0x8000_0001, 0).ecx & CMP_LEGACY != 0;
                assert_eq!(legacy, topology.threads_per_socket() > 1);
                assert_eq!((leaf(&all, 0x8000_001d, 3).eax >> 14 & 0xfff) + 1, 1 << (sizes >> 12));
            }
        }
    }

    #[test]
    fn the_frequencies_follow_the_hypervisor_s_identity() {
        let all = cpuid(b"GenuineIntel", ALL[1], 0);
        let frequencies = leaf(&all, leaf(&all, 0x4000_0000, 0).eax, 0);
        assert_eq!((frequencies.eax, frequencies.ebx), (2_000_000, 1_000_000));
    }

    #[test]
    fn what_a_processor_lacks_is_named() {
        let leaf = |function, ecx| kvm_cpuid_entry2 { function, ecx, ..Default::default() };
        let saved = [leaf(0, 1), leaf(1, 1 << 25 | 1 << 28 | 1 << 2)];
        assert_eq!(missing(&saved, &saved), Vec::<String>::new());
        assert_eq!(missing(&saved, &[leaf(0, 1), leaf(1, u32::MAX)]), Vec::<String>::new());
        assert_eq!(missing(&saved, &[leaf(0, 1), leaf(1, 1 << 28)]), ["CPUID 1.0 ECX bit 2", "AES"]);
        let vendor = |text: &[u8; 4]| [kvm_cpuid_entry2 { ecx: u32::from_le_bytes(*text), ..Default::default() }];
        assert_eq!(missing(&vendor(b"cAMD"), &vendor(b"ntel")).len(), 1);
    }

    #[test]
    fn a_processor_s_name_is_read_from_its_leaves() {
        let mut all = cpuid(b"AuthenticAMD", ALL[0], 0);
        let [a, b] = [*b"  Zy", *b"nx\0\0"].map(u32::from_le_bytes);
        all.push(kvm_cpuid_entry2 { function: 0x8000_0002, eax: a, ebx: b, ..Default::default() });
        let processor = Processor::of(&all);
        assert_eq!((processor.vendor.as_str(), processor.brand.as_str()), ("AuthenticAMD", "Zynx"));
    }
}
