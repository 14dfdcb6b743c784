//! UEFI firmware (OVMF): found as the ecosystem describes it, in files like /usr/share/qemu/firmware/*.json (QEMU's
//! docs/interop/firmware.json), else where distributions are known to put it.
//!
//! Builds for x86-64 are taken, and those that need system management mode only where there is no other: not every host's KVM
//! has it. The firmware is two images that lie one above the other and end at 4 GiB: the variables' template, and the code.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{BootError, secure_boot};

/// The variable that names a folder with firmware, instead of the host's own.
const OWN: &str = "ORANGERY_FIRMWARE";
/// The names of code and variables in such a folder, and in those of [`FOLDERS`].
const NAMES: [(&str, &str); 2] = [("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd")];
/// Where distributions that have no descriptors put OVMF.
const FOLDERS: [&str; 3] = ["/usr/share/OVMF", "/usr/share/edk2/ovmf", "/usr/share/edk2/x64"];
/// Places with names of their own: Arch Linux, QEMU's own build, openSUSE.
const PLACES: [(&str, &str); 3] = [
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
];
/// Names of variables with Microsoft's keys, beside those without: Debian's 4 MiB and 2 MiB builds.
const ENROLLED: [(&str, &str); 2] = [("OVMF_VARS_4M.fd", "OVMF_VARS_4M.ms.fd"), ("OVMF_VARS.fd", "OVMF_VARS.ms.fd")];
/// The most that the two images have together: what is free below 4 GiB.
const MAX_SIZE: usize = 8 << 20;
/// The least that code has.
const MIN_CODE: usize = 64 << 10;
const PAGE: usize = 4096;
/// The most descriptors, and the most bytes of one, that are read.
const MAX_DESCRIPTORS: usize = 256;
const MAX_DESCRIPTOR: u64 = 64 << 10;
/// Where a firmware volume has its signature (UEFI PI 1.7, volume 3, §3.2.1).
const VOLUME_SIGNATURE: std::ops::Range<usize> = 40..44;

/// A firmware that a machine can start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uefi {
    /// The image that runs.
    pub code: PathBuf,
    /// The variables of a new machine.
    pub template: PathBuf,
    /// What it calls itself.
    pub description: String,
    /// It needs system management mode, in which it guards its variables.
    pub smm: bool,
}

/// The contents of a firmware's two files.
#[derive(Debug, Clone)]
pub struct Images {
    /// What runs; its end is at 4 GiB.
    pub code: Vec<u8>,
    /// The variables of a new machine, below the code.
    pub variables: Vec<u8>,
}

impl Uefi {
    /// Finds this host's firmware: with `secure`, a build that enforces Secure Boot and variables with Microsoft's keys.
    /// `smm`: whether machines can have system management mode here.
    pub fn find(secure: bool, smm: bool) -> Result<Uefi, BootError> {
        match std::env::var_os(OWN).map(PathBuf::from) {
            Some(own) => Uefi::choose(secure, smm, std::slice::from_ref(&own), &known(std::slice::from_ref(&own), &[])),
            None => Uefi::choose(secure, smm, &descriptor_folders(), &known(&FOLDERS.map(PathBuf::from), &PLACES)),
        }
    }

    /// The same with descriptors from these folders, the first of the lowest rank, and then these pairs of files.
    fn choose(secure: bool, smm: bool, folders: &[PathBuf], known: &[(PathBuf, PathBuf)]) -> Result<Uefi, BootError> {
        let mut skipped = Vec::new();
        let mut plain = Vec::new();
        let mut with_smm = None;
        for path in descriptors(folders) {
            match read_descriptor(&path).and_then(|descriptor| descriptor.usable(smm)) {
                Ok((uefi, kind)) if (kind == Kind::Enrolled) == secure => match uefi.smm {
                    false => return Ok(uefi),
                    true => drop(with_smm.get_or_insert(uefi)),
                },
                Ok((uefi, Kind::Plain)) if !uefi.smm => plain.push(uefi),
                Ok(_) => {}
                Err(why) => skipped.push(format!("{}: {why}", path.display())),
            }
        }
        for (code, template) in known.iter().filter(|(code, template)| code.is_file() && template.is_file()) {
            let description = "UEFI firmware for x86-64".to_string();
            plain.push(Uefi { code: code.clone(), template: template.clone(), description, smm: false });
        }
        if !secure {
            return plain.into_iter().next().or(with_smm).ok_or_else(|| BootError::NoUefi { skipped: list(&skipped) });
        }
        // Debian 12's build without SMM enforces Secure Boot, which its descriptor does not tell: look inside.
        for uefi in plain {
            match uefi.with_keys() {
                Ok(uefi) => return Ok(uefi),
                Err(why) => skipped.push(format!("{}: {why}", uefi.code.display())),
            }
        }
        with_smm.ok_or_else(|| BootError::NoSecureBoot { skipped: list(&skipped) })
    }

    /// The same code with variables that have Microsoft's keys, if it enforces Secure Boot.
    fn with_keys(&self) -> Result<Uefi, String> {
        let beside = |&(plain, keys): &(&str, &str)| {
            (self.template.file_name()? == plain).then(|| self.template.with_file_name(keys))
        };
        let template = ENROLLED.iter().find_map(beside).filter(|path| path.is_file());
        let template = template.ok_or("there are no variables with Microsoft's keys for it")?;
        let code = std::fs::read(&self.code).map_err(|error| error.to_string())?;
        if !secure_boot::is_built_in(&code) {
            return Err("it was built without Secure Boot".into());
        }
        let description = format!("{}, with Secure Boot", self.description);
        Ok(Uefi { code: self.code.clone(), template, description, smm: self.smm })
    }

    /// Reads both images.
    pub fn read(&self) -> Result<Images, BootError> {
        let (code, variables) = (read_image(&self.code)?, read_image(&self.template)?);
        let wrong = |path: &Path, why: String| BootError::Format { what: "UEFI firmware", path: path.into(), why };
        if code.len() < MIN_CODE || !code.len().is_multiple_of(PAGE) {
            return Err(wrong(&self.code, format!("it has {} bytes", code.len())));
        }
        if code.starts_with(b"QFI\xfb") || code.ends_with(&[0; 16]) || code.ends_with(&[0xff; 16]) {
            return Err(wrong(&self.code, "there is no code where a CPU starts".into()));
        }
        if variables.is_empty() || !variables.len().is_multiple_of(PAGE) || code.len() + variables.len() > MAX_SIZE {
            return Err(wrong(&self.template, format!("it has {} bytes", variables.len())));
        }
        if variables.get(VOLUME_SIGNATURE) != Some(b"_FVH") {
            return Err(wrong(&self.template, "it is no firmware volume".into()));
        }
        Ok(Images { code, variables })
    }
}

fn read_image(path: &Path) -> Result<Vec<u8>, BootError> {
    let read = || {
        let mut bytes = Vec::new();
        // A byte more than fits shows that it is too large.
        std::fs::File::open(path)?.take(MAX_SIZE as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| BootError::Read { what: "firmware", path: path.into(), source })
}

fn list(skipped: &[String]) -> String {
    if skipped.is_empty() { String::new() } else { format!(" (not usable: {})", skipped.join("; ")) }
}

fn known(folders: &[PathBuf], places: &[(&str, &str)]) -> Vec<(PathBuf, PathBuf)> {
    let named = folders.iter().flat_map(|folder| NAMES.map(|(code, vars)| (folder.join(code), folder.join(vars))));
    named.chain(places.iter().map(|&(code, vars)| (code.into(), vars.into()))).collect()
}

/// Where descriptors are, the lowest rank first: the distribution's, the administrator's, the person's.
fn descriptor_folders() -> Vec<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    let system = ["/usr/share/qemu/firmware", "/etc/qemu/firmware"].map(PathBuf::from);
    system.into_iter().chain(config.map(|config| config.join("qemu/firmware"))).collect()
}

/// The descriptors by name, which is their rank for the choice; one of a later folder hides its namesake, and an empty
/// file hides without being one.
fn descriptors(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = BTreeMap::new();
    for folder in folders {
        // A folder that is not there or not ours to read has none.
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_DESCRIPTORS);
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_some_and(|ending| ending == "json")
                && let Some(name) = path.file_name()
            {
                found.insert(name.to_owned(), path);
            }
        }
    }
    let has_content = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0);
    found.into_values().filter(has_content).collect()
}

/// What is read of a descriptor. Members and values that are not known here are left alone: they come with every version.
#[derive(Debug, Deserialize)]
struct Descriptor {
    #[serde(default)]
    description: String,
    #[serde(rename = "interface-types", default)]
    interfaces: Vec<String>,
    mapping: Mapping,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Mapping {
    device: String,
    /// `split` where it is absent.
    mode: Option<String>,
    executable: Option<Image>,
    #[serde(rename = "nvram-template")]
    template: Option<Image>,
}

#[derive(Debug, Deserialize)]
struct Image {
    filename: PathBuf,
    format: String,
}

#[derive(Debug, Deserialize)]
struct Target {
    architecture: String,
    #[serde(default)]
    machines: Vec<String>,
}

/// What a descriptor promises of Secure Boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// None, or none without keys of the machine's owner.
    Plain,
    /// Enforced from the first start.
    Enrolled,
}

fn read_descriptor(path: &Path) -> Result<Descriptor, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_DESCRIPTOR).read_to_string(&mut text).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("it is no firmware descriptor ({error})"))
}

impl Descriptor {
    /// The firmware and what it promises, or why it is none for this machine, which may have system management mode.
    fn usable(self, smm: bool) -> Result<(Uefi, Kind), String> {
        let has = |feature: &str| self.features.iter().any(|f| f == feature);
        if !self.interfaces.iter().any(|interface| interface == "uefi") {
            return Err("it is no UEFI firmware".into());
        }
        // Machines are names or patterns: `pc-q35-7.2`, `pc-q35-*`, `q35`.
        let ours = |target: &Target| {
            let q35 = |machine: &String| machine.starts_with("pc-q35") || machine == "q35" || machine == "*";
            target.architecture == "x86_64" && target.machines.iter().any(q35)
        };
        if !self.targets.iter().any(ours) {
            return Err("it is for another kind of machine".into());
        }
        let needs_smm = has("requires-smm");
        if needs_smm && !smm {
            return Err("it needs system management mode, which this computer's KVM does not have".into());
        }
        if self.mapping.device != "flash" || self.mapping.mode.as_deref().is_some_and(|mode| mode != "split") {
            return Err("it keeps its variables in no flash of their own".into());
        }
        let (Some(code), Some(template)) = (self.mapping.executable, self.mapping.template) else {
            return Err("it names no code and variables".into());
        };
        for image in [&code, &template] {
            if image.format != "raw" {
                let (file, format) = (image.filename.display(), &image.format);
                return Err(format!("{file} is in the format {format}; convert it: qemu-img convert -O raw"));
            }
            if !image.filename.is_file() {
                return Err(format!("{} is not there", image.filename.display()));
            }
        }
        let enrolled =
            self.features.iter().any(|f| f == "secure-boot") && self.features.iter().any(|f| f == "enrolled-keys");
        let kind = if enrolled { Kind::Enrolled } else { Kind::Plain };
        let (code, template, description) = (code.filename, template.filename, self.description);
        Ok((Uefi { code, template, description, smm: needs_smm }, kind))
    }
}

#[cfg(test)]
#[path = "uefi_tests.rs"]
mod tests;
