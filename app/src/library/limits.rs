//! What the host has, and what a machine gets of it unless a person says otherwise.

use std::path::Path;

use vmm_core::config;

use super::UefiSupport;

/// What this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// CPUs this process may use.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Memory that is free or can be made free now, MiB.
    pub memory_available_mib: u64,
    /// Free space where the library is, bytes.
    pub space: u64,
    /// How well it runs UEFI firmware.
    pub uefi: UefiSupport,
}

/// A desktop's disk: 40 GiB, thin.
const DESKTOP_DISK: u64 = 40 << 30;
/// The least a default disk has.
const LEAST_DISK: u64 = 8 << 30;

impl HostLimits {
    /// Reads them; `library` is the library's folder. What the host does not tell is taken as small.
    pub fn read(library: &Path) -> HostLimits {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = |key: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let existing = library.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
        HostLimits {
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(config::MAX_CPUS)),
            memory_mib: kib("MemTotal") / 1024,
            memory_available_mib: kib("MemAvailable") / 1024,
            space: rustix::fs::statvfs(existing).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize)),
            uefi: UefiSupport::read(),
        }
    }

    /// The most CPUs a machine can have here.
    pub fn max_cpus(&self) -> u32 {
        self.cpus.clamp(1, config::MAX_CPUS)
    }

    /// The most memory a machine can have here, MiB: what the host has without the gigabyte (or the quarter of a small
    /// host) that it needs itself.
    pub fn max_memory_mib(&self) -> u64 {
        let own = (self.memory_mib / 4).min(1024);
        (self.memory_mib - own).clamp(config::MIN_MEMORY_MIB, config::MAX_MEMORY_MIB)
    }

    /// CPUs of a desktop: 4, or all that a smaller host has.
    pub fn default_cpus(&self) -> u32 {
        self.max_cpus().min(4)
    }

    /// Memory of a desktop, MiB: 4 GiB, or half of a smaller host's in steps of 256 MiB.
    pub fn default_memory_mib(&self) -> u64 {
        let half = (self.memory_mib / 2 / 256 * 256).max(256);
        half.min(4096).min(self.max_memory_mib())
    }

    /// A desktop's disk, bytes: 40 GiB (thin), or what is free where there is less, in whole GiB.
    pub fn default_disk(&self) -> u64 {
        DESKTOP_DISK.min(self.space >> 30 << 30).max(LEAST_DISK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cpus: u32, memory_mib: u64, space: u64) -> HostLimits {
        HostLimits { cpus, memory_mib, memory_available_mib: memory_mib, space, uefi: UefiSupport::Good }
    }

    #[test]
    fn a_large_host_gives_a_desktop_its_defaults() {
        let host = host(16, 32_000, 500 << 30);
        assert_eq!((host.default_cpus(), host.default_memory_mib(), host.default_disk()), (4, 4096, 40 << 30));
        assert_eq!((host.max_cpus(), host.max_memory_mib()), (16, 30_976));
    }

    #[test]
    fn a_small_host_gives_less_and_keeps_some() {
        let host = host(2, 3900, (20 << 30) + 5);
        assert_eq!((host.default_cpus(), host.default_memory_mib(), host.default_disk()), (2, 1792, 20 << 30));
        assert_eq!(host.max_memory_mib(), 3900 - 975);
    }

    #[test]
    fn a_host_that_tells_nothing_still_gives_a_valid_machine() {
        let host = host(0, 0, 0);
        assert_eq!(host.max_cpus(), 1);
        assert!(host.default_memory_mib() >= config::MIN_MEMORY_MIB);
    }

    #[test]
    fn this_host_tells_what_it_has() {
        let host = HostLimits::read(Path::new("/no/such/folder"));
        assert!(host.cpus >= 1 && host.memory_mib > 64 && host.space > 0);
        assert!(host.memory_available_mib <= host.memory_mib);
    }
}
