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
    Row {
        name: "grub-usb",
        medium: Medium::GrubRescue,
        firmware: Firmware::Bios,
        place: Place::VirtioBlk,
        cpus: 2,
        memory: 128,
        steps: GRUB,
        quick: false,
    },
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
    Row {
        name: "debian-bios-virtio",
        medium: Medium::DebianDisk,
        firmware: Firmware::Bios,
        place: Place::VirtioBlk,
        cpus: 2,
        memory: 512,
        steps: &[
            Step::Serial("matrix: BIOS, 2 CPUs, root on /dev/vda3"),
            Step::Serial("matrix: restarting"),
            Step::Serial("matrix: switching off"),
            Step::Off,
        ],
        quick: false,
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
