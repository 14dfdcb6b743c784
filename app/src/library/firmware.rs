//! Which firmware a machine starts with: chosen by looking at its medium and at this host, never by asking.

use vmm_core::config::Boot;

use super::MediumKind;

/// The file in a machine's folder that keeps its UEFI variables.
pub const VARIABLES: &str = "nvram.fd";

/// What starts a machine that has no kernel of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
    /// OVMF that starts only what is signed.
    UefiSecure,
}

/// How well this host runs UEFI firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UefiSupport {
    /// As it should.
    Good,
    /// Its KVM is software alone, without VT-x or AMD-V, and lacks instructions that OVMF begins with.
    Software,
    /// It has none.
    Missing,
}

impl UefiSupport {
    /// What this host has.
    pub fn read() -> UefiSupport {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let hardware = info.lines().filter(|line| line.starts_with("flags")).any(|line| {
            // VT-x and AMD-V; without either, KVM is there in software alone.
            line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")
        });
        match vmm_core::vm::uefi_firmware(false) {
            Err(_) => UefiSupport::Missing,
            Ok(_) if hardware => UefiSupport::Good,
            Ok(_) => UefiSupport::Software,
        }
    }
}

impl Firmware {
    /// All, in the order in which they are offered.
    pub const ALL: [Firmware; 3] = [Firmware::Uefi, Firmware::UefiSecure, Firmware::Bios];

    /// What it is called.
    pub fn label(self) -> &'static str {
        match self {
            Firmware::Bios => "BIOS",
            Firmware::Uefi => "UEFI",
            Firmware::UefiSecure => "UEFI with Secure Boot",
        }
    }

    /// How a machine with it is kept, its variables in its folder.
    pub fn boot(self) -> Boot {
        match self {
            Firmware::Bios => Boot::Bios,
            Firmware::Uefi | Firmware::UefiSecure => {
                Boot::Uefi { variables: Some(VARIABLES.into()), secure_boot: self == Firmware::UefiSecure, menu: false }
            }
        }
    }

    /// What a machine has; none where a kernel is loaded without firmware.
    pub fn of(boot: &Boot) -> Option<Firmware> {
        match boot {
            Boot::Bios => Some(Firmware::Bios),
            Boot::Uefi { secure_boot: false, .. } => Some(Firmware::Uefi),
            Boot::Uefi { secure_boot: true, .. } => Some(Firmware::UefiSecure),
            Boot::Kernel { .. } => None,
        }
    }

    /// The firmware for a machine with this medium, or with none that is known: UEFI for all that can, on a host that can.
    pub fn choose(medium: Option<&MediumKind>, support: UefiSupport) -> Firmware {
        let (bios, uefi) = starts(medium);
        match (bios, uefi, support) {
            (true, false, _) => Firmware::Bios,
            (false, true, _) | (_, _, UefiSupport::Good) => Firmware::Uefi,
            _ => Firmware::Bios,
        }
    }

    /// Why the choice may surprise, or may not work; a sentence.
    pub fn remark(self, medium: Option<&MediumKind>, support: UefiSupport) -> Option<&'static str> {
        let (bios, uefi) = starts(medium);
        match (self, support) {
            (Firmware::Bios, _) if uefi && !bios => Some("This medium starts on UEFI only"),
            (Firmware::Bios, UefiSupport::Software) if uefi => {
                Some("BIOS, because this host has no VT-x or AMD-V, without which UEFI does not start")
            }
            (Firmware::Bios, UefiSupport::Missing) if uefi => {
                Some("BIOS, because no UEFI firmware is installed (package ovmf)")
            }
            (Firmware::Bios, _) => None,
            (_, _) if bios && !uefi => Some("This medium starts on a BIOS only"),
            (_, UefiSupport::Software) => Some("This host has no VT-x or AMD-V: UEFI does not start here"),
            (_, UefiSupport::Missing) => Some("No UEFI firmware is installed: install the package ovmf"),
            (_, UefiSupport::Good) => None,
        }
    }
}

/// Whether the medium is known to start on a BIOS, and on UEFI. One that starts on neither leaves all open: a disk that
/// is empty, or a CD of data beside it.
fn starts(medium: Option<&MediumKind>) -> (bool, bool) {
    match medium {
        Some(&(MediumKind::Iso { bios, uefi, .. } | MediumKind::Disk { bios, uefi, .. })) if bios || uefi => {
            (bios, uefi)
        }
        _ => (true, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iso(bios: bool, uefi: bool) -> MediumKind {
        MediumKind::Iso { label: None, bios, uefi }
    }

    #[test]
    fn the_medium_decides_where_it_leaves_no_choice() {
        for support in [UefiSupport::Good, UefiSupport::Software, UefiSupport::Missing] {
            assert_eq!(Firmware::choose(Some(&iso(true, false)), support), Firmware::Bios);
            assert_eq!(Firmware::choose(Some(&iso(false, true)), support), Firmware::Uefi);
        }
    }

    #[test]
    fn where_there_is_a_choice_the_host_decides() {
        for medium in [Some(&iso(true, true)), Some(&iso(false, false)), None] {
            assert_eq!(Firmware::choose(medium, UefiSupport::Good), Firmware::Uefi);
            assert_eq!(Firmware::choose(medium, UefiSupport::Software), Firmware::Bios);
            assert_eq!(Firmware::choose(medium, UefiSupport::Missing), Firmware::Bios);
        }
    }

    #[test]
    fn only_a_choice_that_may_surprise_is_explained() {
        let remark = |firmware: Firmware, bios, uefi, support| firmware.remark(Some(&iso(bios, uefi)), support);
        use Firmware::{Bios, Uefi};
        assert_eq!(remark(Uefi, true, true, UefiSupport::Good), None);
        assert_eq!(remark(Bios, true, false, UefiSupport::Software), None);
        assert!(remark(Bios, true, true, UefiSupport::Software).unwrap().contains("VT-x"));
        assert!(remark(Bios, true, true, UefiSupport::Missing).unwrap().contains("ovmf"));
        assert!(remark(Uefi, false, true, UefiSupport::Missing).unwrap().contains("ovmf"));
        assert!(remark(Uefi, true, false, UefiSupport::Good).unwrap().contains("BIOS only"));
        assert!(remark(Bios, false, true, UefiSupport::Good).unwrap().contains("UEFI only"));
    }

    #[test]
    fn every_firmware_is_told_from_the_boot_it_makes() {
        for firmware in Firmware::ALL {
            assert_eq!(Firmware::of(&firmware.boot()), Some(firmware));
        }
    }
}
