//! What the user asked for: a virtual machine as data, checked before anything is built.
//!
//! [`VmConfig::validate`] needs no host access beyond what it is given, so a wizard can call it on every keystroke; each
//! error names the field's path for the view to highlight.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The most virtual CPUs a machine can have: what an 8-bit xAPIC id leaves room for, rounded to what is tested.
pub const MAX_CPUS: u32 = 64;
/// The least memory a machine can have, MiB. Firmware alone needs a few.
pub const MIN_MEMORY_MIB: u64 = 4;
/// The most memory a machine can have, MiB (256 GiB).
pub const MAX_MEMORY_MIB: u64 = 256 * 1024;
/// The most disks and drives of one kind: what fits on PCI bus 0 beside the fixed devices.
pub const MAX_DISKS: usize = 16;
/// CD-ROM drives: the ports of the AHCI controller.
pub const MAX_CDROMS: usize = 4;
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
}

/// What the machine starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Boot {
    /// SeaBIOS: from the first CD-ROM drive that holds a medium, then the disks in order.
    #[default]
    Bios,
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

/// A hard disk on virtio-blk.
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

/// A CD-ROM drive on AHCI.
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
    /// The name of an existing host tap interface.
    pub tap: String,
    /// The card's MAC address; derived from the tap's name when absent.
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
        for (i, net) in self.nets.iter().enumerate() {
            let fits = (1..=15).contains(&net.tap.len()) && !net.tap.contains(['/', ' ', '\0']);
            check(
                fits,
                &format_args!("nets[{i}].tap"),
                format!("{:?} is no name of a network interface (1 to 15 characters, no slash or space)", net.tap),
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
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }
}
