//! What the user asked for: a virtual machine as data, checked before anything is built.
//!
//! [`VmConfig::validate`] needs no host access beyond what it is given, so a wizard can call it on every keystroke; each
//! error names the field's path for the view to highlight.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use crate::hw::Topology;

#[cfg(test)]
mod tests;

/// The most virtual CPUs a machine can have: what an 8-bit xAPIC id leaves room for, rounded to what is tested.
pub const MAX_CPUS: u32 = 64;
/// The least memory a machine can have, MiB. Firmware alone needs a few.
pub const MIN_MEMORY_MIB: u64 = 4;
/// The least memory a machine with UEFI can have, MiB.
pub const MIN_UEFI_MEMORY_MIB: u64 = 128;
/// The most memory a machine can have, MiB (256 GiB).
pub const MAX_MEMORY_MIB: u64 = 256 * 1024;
/// The most disks and drives of one kind: what fits on PCI bus 0 beside the fixed devices.
pub const MAX_DISKS: usize = 16;
/// CD-ROM drives, on the SATA controller.
pub const MAX_CDROMS: usize = 4;
/// CD-ROM drives and SATA disks together: the ports of the SATA controller.
pub const SATA_PORTS: usize = 6;
/// Network cards.
pub const MAX_NETS: usize = 8;
/// The longest kernel command line, bytes (Linux/x86 `COMMAND_LINE_SIZE`).
pub const MAX_CMDLINE: usize = 2047;

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Virtual CPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// What the machine starts.
    #[serde(default)]
    pub boot: Boot,
    /// Hard disks, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// CD-ROM drives; each may be empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cdroms: Vec<CdromConfig>,
    /// Network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetConfig>,
    /// The screen.
    #[serde(default)]
    pub display: DisplayConfig,
    /// Whether it has a TPM 2.0.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tpm: bool,
    /// How the CPUs are arranged: as cores of one processor when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// Shows the guest Hyper-V's interfaces instead of KVM's: for Windows, which has no others.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hyperv: bool,
    /// What the machine tells its guest that it is (SMBIOS): made anew at every start when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

/// What the machine starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Boot {
    /// SeaBIOS: from the first CD-ROM drive that holds a medium, then the disks in order.
    #[default]
    Bios,
    /// UEFI: what its variables name, else from the first CD-ROM drive that holds a medium, then the disks in order.
    Uefi {
        /// The file that keeps the firmware's variables, made when it is missing. Without one they are forgotten when the
        /// machine stops.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        variables: Option<PathBuf>,
        /// Start only what is signed: a firmware that enforces Secure Boot, and variables with Microsoft's keys.
        #[serde(default, skip_serializing_if = "is_false")]
        secure_boot: bool,
        /// Wait at the start for a key that opens the firmware's menu.
        #[serde(default, skip_serializing_if = "is_false")]
        menu: bool,
    },
    /// A kernel loaded by the monitor itself: a Linux bzImage, or an ELF with a PVH entry.
    Kernel {
        /// The kernel's file.
        kernel: PathBuf,
        /// The initial RAM disk, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        cmdline: String,
    },
}

/// A hard disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The image: a raw file or block device.
    pub path: PathBuf,
    /// The guest may not write.
    #[serde(default, skip_serializing_if = "is_false")]
    pub readonly: bool,
    /// How the host caches it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: Cache,
    /// The controller it is behind.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bus: DiskBus,
}

impl DiskConfig {
    /// The disk in this image, as most are: it may be written, and has the default controller.
    pub fn new(path: impl Into<PathBuf>) -> DiskConfig {
        DiskConfig { path: path.into(), readonly: false, cache: Cache::default(), bus: DiskBus::default() }
    }
}

/// The controller that a disk is behind: what its guest has a driver for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskBus {
    /// virtio-blk: the fastest, for guests that know virtual machines.
    #[default]
    Virtio,
    /// A port of the SATA (AHCI) controller, for guests of any age.
    Sata,
    /// NVMe: for every current system.
    Nvme,
}

impl DiskBus {
    /// Every one, the default first.
    pub const ALL: [DiskBus; 3] = [DiskBus::Virtio, DiskBus::Sata, DiskBus::Nvme];

    /// What files and the command line call it.
    pub fn name(self) -> &'static str {
        match self {
            DiskBus::Virtio => "virtio",
            DiskBus::Sata => "sata",
            DiskBus::Nvme => "nvme",
        }
    }

    /// What people call it.
    pub fn title(self) -> &'static str {
        match self {
            DiskBus::Virtio => "virtio",
            DiskBus::Sata => "SATA",
            DiskBus::Nvme => "NVMe",
        }
    }
}

impl FromStr for DiskBus {
    type Err = String;

    fn from_str(name: &str) -> Result<DiskBus, String> {
        DiskBus::ALL.into_iter().find(|bus| bus.name() == name).ok_or_else(|| {
            let known = DiskBus::ALL.map(DiskBus::name).join(" or ");
            format!("there is no disk controller {name:?}; write {known}")
        })
    }
}

/// How a disk's I/O meets the host's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// O_DIRECT where the file system can, the page cache where it can't.
    #[default]
    Auto,
    /// The host's page cache; a guest's flush is an fdatasync.
    Writeback,
}

/// A CD-ROM drive on the SATA controller.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CdromConfig {
    /// The ISO in the drive; empty when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// A virtio-net card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The name of an existing host tap interface. Absent: the card is not plugged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The card's MAC address; derived from the tap's name when absent, and made up for one that is not plugged in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// An Ethernet address, written `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl TryFrom<String> for Mac {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is no MAC address; write six hexadecimal bytes like 52:54:00:12:34:56");
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || bytes[0] & 1 != 0 {
            return Err(bad());
        }
        Ok(Mac(bytes))
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A machine's identity, written as 32 hexadecimal digits, with hyphens or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(pub [u8; 16]);

impl TryFrom<String> for Uuid {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digits: Vec<u32> = text.chars().filter(|c| *c != '-').map_while(|c| c.to_digit(16)).collect();
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| (high << 4 | low) as u8).collect();
        let complete = text.chars().filter(|c| *c != '-').count() == digits.len() && rest.is_empty();
        let bytes = bytes.try_into().ok().filter(|_| complete);
        bytes.map(Uuid).ok_or_else(|| format!("{text:?} is no UUID; write 32 hexadecimal digits"))
    }
}

impl From<Uuid> for String {
    fn from(uuid: Uuid) -> String {
        uuid.to_string()
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let hyphen = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{hyphen}{byte:02x}")?;
        }
        Ok(())
    }
}

/// The screen the guest is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisplayConfig {
    /// Preferred width, pixels.
    pub width: u32,
    /// Preferred height, pixels.
    pub height: u32,
}

impl Default for DisplayConfig {
    fn default() -> Self {
        DisplayConfig { width: 1280, height: 800 }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// One thing wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConfigError {
    /// The field's path as TOML writes it, like `disks[1].path`.
    pub field: String,
    /// What is wrong and what would be right, one sentence.
    pub problem: String,
}

impl VmConfig {
    /// A machine with this many CPUs and MiB of memory that starts by firmware, and no more in it than every machine has.
    pub fn new(cpus: u32, memory_mib: u64) -> VmConfig {
        VmConfig {
            cpus,
            memory_mib,
            boot: Boot::default(),
            disks: Vec::new(),
            cdroms: Vec::new(),
            nets: Vec::new(),
            display: DisplayConfig::default(),
            tpm: false,
            topology: None,
            hyperv: false,
            uuid: None,
        }
    }

    /// How the CPUs are arranged.
    pub fn topology(&self) -> Topology {
        self.topology.unwrap_or_else(|| Topology::one_socket(self.cpus))
    }

    /// Checks everything that can be checked without the host, and returns all that is wrong.
    pub fn validate(&self) -> Result<(), Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut check = |ok: bool, field: &dyn fmt::Display, problem: String| {
            if !ok {
                errors.push(ConfigError { field: field.to_string(), problem });
            }
        };
        check(
            (1..=MAX_CPUS).contains(&self.cpus),
            &"cpus",
            format!("a machine has 1 to {MAX_CPUS} CPUs, not {}", self.cpus),
        );
        if let Some(topology) = self.topology {
            let Topology { sockets, cores, threads } = topology;
            check(
                topology.cpus() == Some(self.cpus),
                &"topology",
                format!("{sockets} sockets × {cores} cores × {threads} threads are not {} CPUs", self.cpus),
            );
        }
        check(
            (MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib),
            &"memory_mib",
            format!("a machine has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB of memory, not {}", self.memory_mib),
        );
        check(self.disks.len() <= MAX_DISKS, &"disks", format!("a machine has at most {MAX_DISKS} disks"));
        check(self.cdroms.len() <= MAX_CDROMS, &"cdroms", format!("a machine has at most {MAX_CDROMS} CD-ROM drives"));
        check(self.nets.len() <= MAX_NETS, &"nets", format!("a machine has at most {MAX_NETS} network cards"));
        for (i, disk) in self.disks.iter().enumerate() {
            check(
                !disk.path.as_os_str().is_empty(),
                &format_args!("disks[{i}].path"),
                "name the disk's image file".into(),
            );
            let twin = self.disks[..i].iter().position(|other| other.path == disk.path);
            if let Some(twin) = twin.filter(|&t| !(disk.readonly && self.disks[t].readonly)) {
                check(
                    false,
                    &format_args!("disks[{i}].path"),
                    format!("it is disk {twin} already; the same image twice would destroy it"),
                );
            }
        }
        let sata = self.disks.iter().enumerate().filter(|(_, disk)| disk.bus == DiskBus::Sata);
        for (i, _) in sata.skip(SATA_PORTS.saturating_sub(self.cdroms.len())) {
            check(
                false,
                &format_args!("disks[{i}].bus"),
                format!(
                    "the SATA controller has {SATA_PORTS} ports for CD-ROM drives and SATA disks together, and all are \
                     taken; put this disk on another controller"
                ),
            );
        }
        for (i, net) in self.nets.iter().enumerate() {
            let Some(tap) = &net.tap else { continue };
            let fits = (1..=15).contains(&tap.len()) && !tap.contains(['/', ' ', '\0']);
            check(
                fits,
                &format_args!("nets[{i}].tap"),
                format!("{tap:?} is no name of a network interface (1 to 15 characters, no slash or space)"),
            );
        }
        let (w, h) = (self.display.width, self.display.height);
        check((320..=7680).contains(&w), &"display.width", format!("a screen is 320 to 7680 pixels wide, not {w}"));
        check((200..=4320).contains(&h), &"display.height", format!("a screen is 200 to 4320 pixels high, not {h}"));
        if let Boot::Kernel { kernel, cmdline, .. } = &self.boot {
            check(!kernel.as_os_str().is_empty(), &"boot.kernel", "name the kernel's file".into());
            check(
                cmdline.len() <= MAX_CMDLINE && !cmdline.contains('\0'),
                &"boot.cmdline",
                format!("a kernel command line has at most {MAX_CMDLINE} bytes and no NUL"),
            );
        }
        if let Boot::Uefi { variables, .. } = &self.boot {
            let named = variables.as_ref().is_none_or(|path| !path.as_os_str().is_empty());
            check(named, &"boot.variables", "name the file that keeps the variables".into());
            check(
                self.memory_mib >= MIN_UEFI_MEMORY_MIB || self.memory_mib < MIN_MEMORY_MIB,
                &"memory_mib",
                format!(
                    "a machine with UEFI has at least {MIN_UEFI_MEMORY_MIB} MiB of memory, not {}",
                    self.memory_mib
                ),
            );
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}
