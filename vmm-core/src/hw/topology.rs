//! How a machine's CPUs are arranged, and the APIC ids that follow from it (Intel SDM volume 3, §9.9.1).

use serde::{Deserialize, Serialize};

/// Sockets, cores in each, threads in each of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Processors.
    pub sockets: u32,
    /// Cores of a processor.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

impl Topology {
    /// One processor of that many cores: what suits every system, for some use two processors at most.
    pub fn one_socket(cores: u32) -> Topology {
        Topology { sockets: 1, cores, threads: 1 }
    }

    /// CPUs in all; `None` where they are beyond counting.
    pub fn cpus(self) -> Option<u32> {
        self.sockets.checked_mul(self.cores)?.checked_mul(self.threads)
    }

    /// Bits of an APIC id that tell the threads of a core apart.
    pub fn thread_bits(self) -> u32 {
        bits(self.threads)
    }

    /// Bits of an APIC id that tell the threads of a processor apart.
    pub fn package_bits(self) -> u32 {
        self.thread_bits() + bits(self.cores)
    }

    /// Threads of a processor.
    pub fn threads_per_socket(self) -> u32 {
        self.cores * self.threads
    }

    /// The APIC id of CPU `index`: threads count first, then cores, then processors.
    pub fn apic_id(self, index: u32) -> u32 {
        let (core, thread) = (index / self.threads, index % self.threads);
        let (socket, core) = (core / self.cores, core % self.cores);
        socket << self.package_bits() | core << self.thread_bits() | thread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_one_socket_of_cores_the_id_is_the_number() {
        let topology = Topology::one_socket(6);
        assert_eq!((0..6).map(|i| topology.apic_id(i)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
        assert_eq!((topology.cpus(), topology.thread_bits(), topology.package_bits()), (Some(6), 0, 3));
    }

    #[test]
    fn threads_and_cores_have_whole_fields_of_the_id() {
        let topology = Topology { sockets: 2, cores: 3, threads: 2 };
        assert_eq!((0..12).map(|i| topology.apic_id(i)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn no_arrangement_of_64_cpus_needs_an_id_that_an_xapic_has_not() {
        for (sockets, cores) in (1..=64).flat_map(|s| (1..=64).map(move |c| (s, c))) {
            for threads in 1..=64 {
                let topology = Topology { sockets, cores, threads };
                if let Some(count @ 1..=64) = topology.cpus() {
                    let ids: std::collections::BTreeSet<_> = (0..count).map(|i| topology.apic_id(i)).collect();
                    assert_eq!(ids.len(), count as usize);
                    assert!(ids.iter().all(|&id| id < 255), "{topology:?}");
                }
            }
        }
    }
}
