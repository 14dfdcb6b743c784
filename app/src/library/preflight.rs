//! What a host needs before a machine can start, looked at one by one: each thing that is wrong says why, and has a
//! command that mends it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::{HostLimits, UefiSupport};

/// One thing a host needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, like `Virtualization (KVM)`.
    pub what: &'static str,
    /// How it is.
    pub outcome: Outcome,
}

/// How a thing that a host needs is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be; the text says what was found.
    Good(String),
    /// Machines start, and something may go wrong later.
    Warning(Cause),
    /// No machine can start.
    Failed(Cause),
}

/// What is wrong and what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// What is wrong and why, a sentence or two.
    pub cause: String,
    /// What to do about it, a sentence.
    pub remedy: String,
    /// A command that does it, to copy into a terminal.
    pub command: Option<String>,
}

/// Less free space than this is worth a warning, bytes.
const LITTLE_SPACE: u64 = 4 << 30;
/// Less free memory than this is worth a warning, MiB.
const LITTLE_MEMORY: u64 = 512;

/// The variable that names the folder with the firmware, instead of the host's own.
pub const FIRMWARE_VARIABLE: &str = "ORANGERY_FIRMWARE";

/// Looks at everything a machine needs of this host; `library` is the library's folder. A few file system calls.
pub fn preflight(library: &Path) -> Vec<Check> {
    let limits = HostLimits::read(library);
    vec![
        kvm(Path::new("/dev/kvm")),
        firmware(&firmware_folders()),
        uefi(limits.uefi),
        tpm(&program_folders()),
        memory(&limits),
        space(&limits, library),
    ]
}

/// Whether nothing stands in the way of a start.
pub fn can_start(checks: &[Check]) -> bool {
    !checks.iter().any(|check| matches!(check.outcome, Outcome::Failed(_)))
}

fn failed(what: &'static str, cause: String, remedy: &str, command: Option<&str>) -> Check {
    let command = command.map(Into::into);
    Check { what, outcome: Outcome::Failed(Cause { cause, remedy: remedy.into(), command }) }
}

/// The KVM API version that every kernel since 2.6.22 has (KVM_GET_API_VERSION).
const KVM_API_VERSION: libc::c_int = 12;
/// `_IO(KVMIO, 0x00)`.
const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;

/// `_IO(KVMIO, 0x01)`.
const KVM_CREATE_VM: libc::c_ulong = 0xae01;

/// Whether KVM can make no machine because the processor's virtualization is taken.
fn is_busy(kvm: &File) -> bool {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    // SAFETY: KVM_CREATE_VM takes a number and touches no memory of ours.
    let machine = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM as _, 0) };
    if machine >= 0 {
        // SAFETY: the ioctl made this descriptor for us alone.
        drop(unsafe { OwnedFd::from_raw_fd(machine) });
        return false;
    }
    io::Error::last_os_error().raw_os_error() == Some(libc::EBUSY)
}

fn kvm(device: &Path) -> Check {
    use std::os::fd::AsRawFd;
    const WHAT: &str = "Virtualization (KVM)";
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(file) => {
            // SAFETY: KVM_GET_API_VERSION takes no argument and touches no memory; on another file it fails.
            let version = unsafe { libc::ioctl(file.as_raw_fd(), KVM_GET_API_VERSION as _, 0) };
            if version == KVM_API_VERSION && is_busy(&file) {
                let cause = "Another virtualization program (VirtualBox, VMware …) keeps the processor for itself.";
                return failed(WHAT, cause.into(), "Shut down its virtual machines first.", None);
            }
            if version == KVM_API_VERSION {
                return Check { what: WHAT, outcome: Outcome::Good(format!("{} can be used", device.display())) };
            }
            let cause = format!("{} is there, but KVM does not answer on it.", device.display());
            failed(
                WHAT,
                cause,
                "Reload the kernel's module.",
                Some(&format!("sudo modprobe -r {0} && sudo modprobe {0}", module())),
            )
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => failed(
            WHAT,
            format!("{} is there, but you are not permitted to use it.", device.display()),
            "Add yourself to the group kvm, then log out and in again.",
            Some("sudo usermod -aG kvm $USER"),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => kvm_missing(WHAT, &cpu_flags()),
        Err(error) => failed(
            WHAT,
            format!("{} cannot be opened: {error}.", device.display()),
            "Look at what the kernel says about it.",
            Some("sudo dmesg | grep -i kvm"),
        ),
    }
}

fn kvm_missing(what: &'static str, flags: &str) -> Check {
    let has = |flag: &str| flags.split_ascii_whitespace().any(|f| f == flag);
    if has("vmx") || has("svm") {
        return failed(
            what,
            "The processor can virtualize, but the kernel's KVM module is not loaded.".into(),
            "Load it. If that fails, virtualization is off in the computer's BIOS or UEFI set-up: turn on \
             “Intel VT-x” or “AMD-V” (“SVM”) there.",
            Some(&format!("sudo modprobe {}", module())),
        );
    }
    let inside = has("hypervisor");
    let cause = if inside {
        "This computer is a virtual machine itself, and its host does not pass virtualization on to it.".to_string()
    } else {
        "The processor does not offer virtualization: it is turned off in the computer's BIOS or UEFI set-up, or the \
         processor has none."
            .to_string()
    };
    let remedy = if inside {
        "Turn on nested virtualization for it on its host, then load the module."
    } else {
        "Turn on “Intel VT-x” or “AMD-V” (“SVM”) in the set-up, then load the module."
    };
    failed(what, cause, remedy, Some(&format!("sudo modprobe {}", module())))
}

fn cpu_flags() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("flags"));
    line.and_then(|line| line.split_once(':')).map(|(_, flags)| flags.into()).unwrap_or_default()
}

/// The KVM module of this processor's maker.
fn module() -> &'static str {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if info.contains("GenuineIntel") { "kvm_intel" } else { "kvm_amd" }
}

/// The firmware's files: the BIOS and the video BIOS of the monitor's graphics card.
const FIRMWARE: [&str; 2] = ["bios-256k.bin", "vgabios-virtio.bin"];

/// Where the monitor looks for firmware.
fn firmware_folders() -> Vec<PathBuf> {
    match std::env::var_os(FIRMWARE_VARIABLE) {
        Some(own) => vec![own.into()],
        None => ["/usr/share/seabios", "/usr/share/qemu", "/usr/share/qemu-kvm"].map(PathBuf::from).into(),
    }
}

fn firmware(folders: &[PathBuf]) -> Check {
    const WHAT: &str = "Firmware (SeaBIOS)";
    let missing: Vec<&str> =
        FIRMWARE.into_iter().filter(|file| !folders.iter().any(|folder| folder.join(file).is_file())).collect();
    if missing.is_empty() {
        return Check { what: WHAT, outcome: Outcome::Good("SeaBIOS and its video BIOS are installed".into()) };
    }
    let cause =
        format!("The firmware that a machine starts with is not installed ({} is missing).", missing.join(", "));
    failed(WHAT, cause, "Install the package seabios.", Some(install_command(Path::new("/usr/bin"))))
}

/// The command that installs SeaBIOS with this host's package manager.
fn install_command(programs: &Path) -> &'static str {
    installer(
        programs,
        [
            ("apt-get", "sudo apt-get install seabios"),
            ("dnf", "sudo dnf install seabios-bin seavgabios-bin"),
            ("zypper", "sudo zypper install qemu-seabios qemu-vgabios"),
            ("pacman", "sudo pacman -S seabios"),
            ("apk", "sudo apk add seabios"),
        ],
    )
}

/// The command of the package manager that is in `programs`; the first where none is.
fn installer(programs: &Path, commands: [(&str, &'static str); 5]) -> &'static str {
    let [(_, first), ..] = commands;
    commands.into_iter().find(|(program, _)| programs.join(program).exists()).map_or(first, |(_, command)| command)
}

/// The command that installs swtpm with this host's package manager.
pub fn install_swtpm() -> &'static str {
    installer(
        Path::new("/usr/bin"),
        [
            ("apt-get", "sudo apt-get install swtpm"),
            ("dnf", "sudo dnf install swtpm"),
            ("zypper", "sudo zypper install swtpm"),
            ("pacman", "sudo pacman -S swtpm"),
            ("apk", "sudo apk add swtpm"),
        ],
    )
}

/// Where programs are started from.
fn program_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// Whether swtpm is installed.
pub fn has_swtpm() -> bool {
    holds_swtpm(&program_folders())
}

fn holds_swtpm(folders: &[PathBuf]) -> bool {
    folders.iter().any(|folder| folder.join("swtpm").is_file())
}

/// swtpm, which only machines with a TPM need: no warning where it is missing.
fn tpm(folders: &[PathBuf]) -> Check {
    const WHAT: &str = "TPM (swtpm)";
    let text = if holds_swtpm(folders) {
        "swtpm is installed".to_string()
    } else {
        format!("swtpm is not installed; machines with a TPM need it: {}", install_swtpm())
    };
    Check { what: WHAT, outcome: Outcome::Good(text) }
}

fn uefi(support: UefiSupport) -> Check {
    const WHAT: &str = "Firmware (UEFI)";
    let text = match support {
        UefiSupport::Good => "UEFI firmware is installed",
        UefiSupport::Software => {
            "UEFI firmware is installed; it needs VT-x or AMD-V, which this host does not have, so machines start with a BIOS"
        }
        UefiSupport::Missing => {
            let cause =
                "No UEFI firmware is installed: machines start with a BIOS, and what needs UEFI does not start.".into();
            let command = Some(install_ovmf().into());
            let cause = Cause { cause, remedy: "Install the package ovmf.".into(), command };
            return Check { what: WHAT, outcome: Outcome::Warning(cause) };
        }
    };
    Check { what: WHAT, outcome: Outcome::Good(text.into()) }
}

/// The command that installs OVMF with this host's package manager.
fn install_ovmf() -> &'static str {
    installer(
        Path::new("/usr/bin"),
        [
            ("apt-get", "sudo apt-get install ovmf"),
            ("dnf", "sudo dnf install edk2-ovmf"),
            ("zypper", "sudo zypper install qemu-ovmf-x86_64"),
            ("pacman", "sudo pacman -S edk2-ovmf"),
            ("apk", "sudo apk add ovmf"),
        ],
    )
}

fn memory(limits: &HostLimits) -> Check {
    const WHAT: &str = "Memory";
    let free = super::size::human(limits.memory_available_mib << 20);
    if limits.memory_available_mib >= LITTLE_MEMORY {
        return Check { what: WHAT, outcome: Outcome::Good(format!("{free} free")) };
    }
    let cause = format!("Only {free} of memory are free: a machine may be slow, or be ended by the kernel.");
    let cause = Cause { cause, remedy: "Close other programs or machines first.".into(), command: None };
    Check { what: WHAT, outcome: Outcome::Warning(cause) }
}

fn space(limits: &HostLimits, library: &Path) -> Check {
    const WHAT: &str = "Disk space";
    let free = super::size::human(limits.space);
    if limits.space >= LITTLE_SPACE {
        return Check { what: WHAT, outcome: Outcome::Good(format!("{free} free")) };
    }
    let cause = format!("Only {free} are free where the machines are ({}).", library.display());
    let remedy = "Free some space, or keep the machines elsewhere: set ORANGERY_LIBRARY to another folder.".into();
    Check {
        what: WHAT,
        outcome: Outcome::Warning(Cause {
            cause,
            remedy,
            command: Some(format!("df -h {}", super::quoted(&library.to_string_lossy()))),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(check: &Check) -> Option<&str> {
        match &check.outcome {
            Outcome::Failed(cause) => cause.command.as_deref(),
            _ => None,
        }
    }

    #[test]
    fn a_missing_device_is_explained_by_what_the_processor_can() {
        assert!(command(&kvm_missing("k", "fpu vmx")).unwrap().starts_with("sudo modprobe kvm_"));
        for (flags, word) in [("fpu svm", "not loaded"), ("fpu hypervisor", "virtual machine itself"), ("fpu", "BIOS")]
        {
            let Outcome::Failed(cause) = kvm_missing("k", flags).outcome else { panic!() };
            assert!(cause.cause.contains(word), "{flags}: {}", cause.cause);
        }
    }

    #[test]
    fn a_device_that_is_no_kvm_is_told_apart_from_none() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("kvm");
        assert!(matches!(kvm(&device).outcome, Outcome::Failed(_)));
        std::fs::write(&device, "").unwrap();
        let Outcome::Failed(cause) = kvm(&device).outcome else { panic!() };
        assert!(cause.cause.contains("does not answer"));
    }

    #[test]
    fn firmware_is_found_in_any_folder_and_its_package_named() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [a.path().to_path_buf(), b.path().to_path_buf()];
        assert!(command(&firmware(&folders)).unwrap().contains("seabios"));
        std::fs::write(a.path().join(FIRMWARE[0]), "").unwrap();
        let Outcome::Failed(cause) = firmware(&folders).outcome else { panic!() };
        assert!(cause.cause.contains(FIRMWARE[1]) && !cause.cause.contains(FIRMWARE[0]));
        std::fs::write(b.path().join(FIRMWARE[1]), "").unwrap();
        assert!(can_start(&[firmware(&folders)]));
    }

    #[test]
    fn a_missing_swtpm_is_told_and_keeps_no_machine_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [dir.path().to_path_buf()];
        let words = || match tpm(&folders).outcome {
            Outcome::Good(text) => text,
            other => panic!("{other:?}"),
        };
        assert!(words().contains("not installed") && words().contains("swtpm"));
        std::fs::write(dir.path().join("swtpm"), "").unwrap();
        assert_eq!(words(), "swtpm is installed");
    }

    #[test]
    fn missing_uefi_firmware_is_a_warning_with_a_package_and_what_it_can_not_do_is_told() {
        let check = uefi(UefiSupport::Missing);
        let Outcome::Warning(cause) = &check.outcome else { panic!() };
        assert!(cause.command.as_deref().is_some_and(|command| command.contains("ovmf")));
        assert!(can_start(std::slice::from_ref(&check)));
        assert!(matches!(uefi(UefiSupport::Software).outcome, Outcome::Good(text) if text.contains("BIOS")));
    }

    #[test]
    fn a_full_disk_warns_and_names_a_command_that_a_shell_takes() {
        let limits = HostLimits {
            cpus: 1,
            memory_mib: 100,
            memory_available_mib: 100,
            space: 1 << 20,
            uefi: crate::library::UefiSupport::Good,
        };
        let check = space(&limits, Path::new("/a b/it's"));
        let Outcome::Warning(cause) = &check.outcome else { panic!() };
        assert_eq!(cause.command.as_deref(), Some(r"df -h '/a b/it'\''s'"));
        assert!(can_start(&[check, memory(&limits)]));
    }
}
