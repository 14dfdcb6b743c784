//! The rows of the boot matrix.

use super::{Firmware, Medium, Part, Place, Row, Step};

/// What rows have unless they say otherwise.
const ROW: Row = Row {
    name: "",
    medium: Medium::GrubRescue,
    firmware: Firmware::Bios,
    place: Place::Cdrom,
    cpus: 1,
    memory: 128,
    extra: "",
    steps: &[],
    quick: false,
};

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
    Row { name, place, cpus, steps: GRUB.split_at(7).0, quick, ..ROW }
}

/// Debian on a disk, which says what it runs on, restarts once, and switches itself off.
const fn debian(name: &'static str, firmware: Firmware, place: Place, cpus: u32, steps: &'static [Step]) -> Row {
    Row { name, medium: Medium::DebianDisk, firmware, place, cpus, memory: 768, steps, ..ROW }
}

/// The same with a TPM.
const fn with_tpm(row: Row) -> Row {
    Row { extra: "--tpm", ..row }
}

/// The steps of [`debian`]; what it says first is as the row has it, then with a TPM what tpm2-tools got from it.
macro_rules! says {
    ($($words:literal),+) => {
        &[
            Step::Serial("GNU GRUB"),
            $(Step::Serial(concat!("matrix: ", $words)),)+
            Step::Photograph,
            Step::Serial("matrix: restarting"),
            Step::Serial("matrix: switching off"),
            Step::Off,
        ]
    };
}

/// A part of the screen in a file.
macro_rules! part {
    ($what:literal, $file:literal) => {
        Part($what, include_bytes!(concat!("pictures/", $file, ".png")))
    };
}

/// The steps of an installer's disc: its boot menu (by ISOLINUX or GRUB, in a graphics mode), the first question, and an
/// answer that follows a key. Text mode and windows have fonts of their own.
macro_rules! installer {
    ($menu:literal, $title:literal, $chosen:literal) => {
        &[
            Step::Shows(part!("boot menu", $menu)),
            Step::Keys("enter"),
            Step::Shows(part!("Select a language", $title)),
            Step::Keys("down"),
            Step::Shows(part!("Esperanto chosen", $chosen)),
        ]
    };
}

/// Debian's installer on a disc.
const fn installer(name: &'static str, medium: Medium, firmware: Firmware, memory: u32, steps: &'static [Step]) -> Row {
    Row { name, medium, firmware, cpus: 2, memory, steps, ..ROW }
}

/// Every row.
pub const TABLE: &[Row] = &[
    Row { name: "grub-cd", steps: GRUB, quick: true, ..ROW },
    grub("grub-virtio", Place::VirtioBlk, 2, false),
    grub("grub-sata", Place::Sata, 1, true),
    grub("grub-nvme", Place::Nvme, 1, true),
    Row { name: "grub-floppy", medium: Medium::GrubFloppy, place: Place::VirtioBlk, steps: GRUB.split_at(5).0, ..ROW },
    Row {
        name: "memtest-cd",
        medium: Medium::Memtest,
        memory: 64,
        steps: &[Step::Screen(&["Memtest86+", "Time:"]), Step::Counts("Memtest86+")],
        quick: true,
        ..ROW
    },
    Row {
        name: "memtest-uefi-cd",
        medium: Medium::Memtest,
        firmware: Firmware::Uefi,
        // Blue.
        steps: &[Step::Paper([0, 0, 170])],
        quick: true,
        ..ROW
    },
    Row {
        name: "ipxe-cd",
        medium: Medium::Ipxe,
        steps: &[
            // It asks for the key for two seconds, which an emulated host can miss; pressed before that, it waits.
            Step::Screen(&["Loading ipxe.krn"]),
            Step::Keys("ctrl-b"),
            Step::Screen(&["iPXE>"]),
            Step::Keys("'echo ${platform}' enter"),
            Step::Screen(&["\npcbios"]),
            // Untouched, it looks for a network card.
            Step::Keys("reboot enter"),
            Step::Screen(&["No more network devices"]),
        ],
        ..ROW
    },
    Row {
        name: "ipxe-uefi-cd",
        medium: Medium::IpxeUefi,
        firmware: Firmware::Uefi,
        steps: &[
            Step::Serial("iPXE initialising devices"),
            Step::Keys("ctrl-b"),
            Step::Serial("iPXE>"),
            Step::Keys("'echo ${platform}' enter"),
            Step::Serial("\nefi"),
            Step::Keys("reboot enter"),
            Step::Serial("No more network devices"),
        ],
        ..ROW
    },
    Row {
        name: "uefi-shell",
        medium: Medium::Nothing,
        firmware: Firmware::Uefi,
        place: Place::Nowhere,
        cpus: 2,
        steps: &[
            Step::Serial("Shell>"),
            Step::Keys("ver enter"),
            Step::Serial("UEFI Interactive Shell v"),
            Step::Photograph,
            Step::Keys("'reset -s' enter"),
            Step::Off,
        ],
        ..ROW
    },
    Row {
        name: "uefi-boot-menu",
        medium: Medium::Nothing,
        firmware: Firmware::Uefi,
        place: Place::Nowhere,
        extra: "--boot-menu",
        steps: &[
            Step::Shows(part!("the firmware's logo", "uefi-logo")),
            Step::KeysUntil("esc", "Boot Maintenance Manager"),
        ],
        ..ROW
    },
    debian("debian-bios-virtio", Firmware::Bios, Place::VirtioBlk, 1, says!("BIOS, 1 CPUs, root on /dev/vda3")),
    debian("debian-bios-sata", Firmware::Bios, Place::Sata, 4, says!("BIOS, 4 CPUs, root on /dev/sda3")),
    with_tpm(debian(
        "debian-bios-nvme",
        Firmware::Bios,
        Place::Nvme,
        2,
        says!("BIOS, 2 CPUs, root on /dev/nvme0n1p3", "TPM says 1"),
    )),
    debian("debian-uefi-virtio", Firmware::Uefi, Place::VirtioBlk, 1, says!("UEFI, 1 CPUs, root on /dev/vda3")),
    debian("debian-uefi-sata", Firmware::Uefi, Place::Sata, 2, says!("UEFI, 2 CPUs, root on /dev/sda3")),
    debian("debian-uefi-nvme", Firmware::Uefi, Place::Nvme, 2, says!("UEFI, 2 CPUs, root on /dev/nvme0n1p3")),
    debian(
        "debian-secure-virtio",
        Firmware::SecureBoot,
        Place::VirtioBlk,
        1,
        says!("Secure Boot, 1 CPUs, root on /dev/vda3"),
    ),
    debian("debian-secure-sata", Firmware::SecureBoot, Place::Sata, 1, says!("Secure Boot, 1 CPUs, root on /dev/sda3")),
    with_tpm(debian(
        "debian-secure-nvme",
        Firmware::SecureBoot,
        Place::Nvme,
        2,
        says!("Secure Boot, 2 CPUs, root on /dev/nvme0n1p3", "TPM says 1"),
    )),
    Row {
        name: "installer-direct",
        medium: Medium::DebianInstaller,
        firmware: Firmware::Direct,
        place: Place::Files,
        memory: 1024,
        steps: &[Step::Serial("Choose the language to be used")],
        ..ROW
    },
    installer(
        "installer-bios-cd",
        Medium::DebianInstallerDisc,
        Firmware::Bios,
        1024,
        installer!("isolinux-install", "installer-title", "installer-chosen"),
    ),
    installer(
        "installer-uefi-cd",
        Medium::DebianInstallerDisc,
        Firmware::Uefi,
        1024,
        installer!("grub-title", "installer-title", "installer-chosen"),
    ),
    installer(
        "installer-gtk-uefi-cd",
        Medium::DebianGraphicalInstallerDisc,
        Firmware::Uefi,
        1536,
        installer!("grub-title", "gtk-title", "gtk-chosen"),
    ),
];
