//! The rows of the boot matrix.

use super::{Firmware, Medium, Place, Row, Step};

/// GRUB's rescue disc: its menu, its prompt, an answer, and that it reads its own disc.
const GRUB: &[Step] = &[
    Step::Screen(&["GNU GRUB", "for a command-line"]),
    Step::Keys("c"),
    Step::Screen(&["grub>"]),
    Step::Keys("'echo The disc works' enter"),
    Step::Screen(&["\nThe disc works"]),
    Step::Keys("'ls /boot/grub' enter"),
    Step::Screen(&["i386-pc"]),
    // Back through the firmware, and off by APM.
    Step::Keys("reboot enter"),
    Step::Screen(&["GNU GRUB", "for a command-line"]),
    Step::Keys("c"),
    Step::Screen(&["grub>"]),
    Step::Keys("halt enter"),
    Step::Off,
];

/// GRUB's rescue system on a disk, by a BIOS.
const fn grub(name: &'static str, place: Place, cpus: u32, quick: bool) -> Row {
    let steps = GRUB.split_at(7).0;
    Row { name, medium: Medium::GrubRescue, firmware: Firmware::Bios, place, cpus, memory: 128, steps, quick }
}

/// Debian on a disk, which says what it runs on, restarts once, and switches itself off.
const fn debian(name: &'static str, firmware: Firmware, place: Place, cpus: u32, steps: &'static [Step]) -> Row {
    Row { name, medium: Medium::DebianDisk, firmware, place, cpus, memory: 768, steps, quick: false }
}

/// The steps of [`debian`]; what it says first is as the row has it.
macro_rules! says {
    ($words:literal) => {
        &[
            Step::Serial(concat!("matrix: ", $words)),
            Step::Serial("matrix: restarting"),
            Step::Serial("matrix: switching off"),
            Step::Off,
        ]
    };
}

/// Every row.
pub const TABLE: &[Row] = &[
    Row {
        name: "grub-cd",
        medium: Medium::GrubRescue,
        firmware: Firmware::Bios,
        place: Place::Cdrom,
        cpus: 1,
        memory: 128,
        steps: GRUB,
        quick: true,
    },
    grub("grub-virtio", Place::VirtioBlk, 2, false),
    grub("grub-sata", Place::Sata, 1, true),
    grub("grub-nvme", Place::Nvme, 1, true),
    Row {
        name: "grub-floppy",
        medium: Medium::GrubFloppy,
        firmware: Firmware::Bios,
        place: Place::VirtioBlk,
        cpus: 1,
        memory: 128,
        steps: GRUB.split_at(5).0,
        quick: false,
    },
    Row {
        name: "memtest-cd",
        medium: Medium::Memtest,
        firmware: Firmware::Bios,
        place: Place::Cdrom,
        cpus: 1,
        memory: 64,
        steps: &[Step::Screen(&["Memtest86+", "Time:"]), Step::Counts("Memtest86+")],
        quick: true,
    },
    Row {
        name: "ipxe-cd",
        medium: Medium::Ipxe,
        firmware: Firmware::Bios,
        place: Place::Cdrom,
        cpus: 1,
        memory: 128,
        steps: &[
            Step::Screen(&["iPXE", "Ctrl-B"]),
            Step::Keys("ctrl-b"),
            Step::Screen(&["iPXE>"]),
            Step::Keys("'echo ${platform}' enter"),
            Step::Screen(&["\npcbios"]),
            Step::Keys("poweroff enter"),
            Step::Off,
        ],
        quick: false,
    },
    debian("debian-bios-virtio", Firmware::Bios, Place::VirtioBlk, 1, says!("BIOS, 1 CPUs, root on /dev/vda3")),
    debian("debian-bios-sata", Firmware::Bios, Place::Sata, 2, says!("BIOS, 2 CPUs, root on /dev/sda3")),
    debian("debian-bios-nvme", Firmware::Bios, Place::Nvme, 4, says!("BIOS, 4 CPUs, root on /dev/nvme0n1p3")),
    debian("debian-uefi-virtio", Firmware::Uefi, Place::VirtioBlk, 1, says!("UEFI, 1 CPUs, root on /dev/vda3")),
    debian("debian-uefi-sata", Firmware::Uefi, Place::Sata, 4, says!("UEFI, 4 CPUs, root on /dev/sda3")),
    debian("debian-uefi-nvme", Firmware::Uefi, Place::Nvme, 2, says!("UEFI, 2 CPUs, root on /dev/nvme0n1p3")),
    debian(
        "debian-secure-nvme",
        Firmware::SecureBoot,
        Place::Nvme,
        2,
        says!("Secure Boot, 2 CPUs, root on /dev/nvme0n1p3"),
    ),
    Row {
        name: "memtest-uefi-cd",
        medium: Medium::Memtest,
        firmware: Firmware::Uefi,
        place: Place::Cdrom,
        cpus: 1,
        memory: 128,
        // Blue.
        steps: &[Step::Paper([0, 0, 170])],
        quick: true,
    },
    Row {
        name: "installer-direct",
        medium: Medium::DebianInstaller,
        firmware: Firmware::Direct,
        place: Place::Files,
        cpus: 1,
        memory: 768,
        steps: &[Step::Serial("Choose the language to be used")],
        quick: false,
    },
];
