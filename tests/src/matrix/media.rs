//! What the matrix starts: discs and disks of the distribution's packages, as they are or put together from them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Context, Result, ensure};

use crate::media;

/// A medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// GRUB's rescue disc, which is an image for USB sticks as well.
    GrubRescue,
    /// GRUB's rescue floppy.
    GrubFloppy,
    /// memtest86+'s disc.
    Memtest,
    /// iPXE's disc for a BIOS.
    Ipxe,
    /// A disc with iPXE's program for UEFI.
    IpxeUefi,
    /// None: what the firmware has by itself, which is a shell.
    Nothing,
    /// The Debian installer's kernel and initrd, in text mode.
    DebianInstaller,
    /// The same as a disc for BIOS and UEFI, made by `installer-disc.sh`.
    DebianInstallerDisc,
    /// The installer with windows and a pointer, as such a disc.
    DebianGraphicalInstallerDisc,
    /// A Debian system on a disk, made by `debian-disk.sh`, that starts by every firmware, restarts and switches itself off.
    DebianDisk,
}

/// A medium on this machine.
#[derive(Debug)]
pub struct Made {
    /// Its file; a kernel's, then its initrd's.
    pub files: Vec<PathBuf>,
    /// A kernel's command line.
    pub words: &'static str,
    /// The package it comes from, and its version.
    pub version: String,
}

impl Medium {
    fn package(self) -> &'static str {
        match self {
            Medium::GrubRescue | Medium::GrubFloppy => "grub-rescue-pc",
            Medium::Memtest => "memtest86+",
            Medium::Ipxe | Medium::IpxeUefi => "ipxe",
            Medium::Nothing => "ovmf",
            Medium::DebianInstaller | Medium::DebianInstallerDisc | Medium::DebianGraphicalInstallerDisc => {
                "debian-installer-12-netboot-amd64"
            }
            Medium::DebianDisk => "linux-image-amd64",
        }
    }

    /// Finds or makes it.
    ///
    /// # Errors
    /// The package can't be had.
    pub fn make(self) -> Result<Made> {
        let folder = match self {
            Medium::DebianDisk => media::cached("debian-disk-4", make_debian_disk)?,
            Medium::DebianInstallerDisc => installer_disc("text")?,
            Medium::DebianGraphicalInstallerDisc => installer_disc("gtk")?,
            Medium::IpxeUefi => ipxe_uefi_disc()?,
            Medium::Nothing => PathBuf::new(),
            _ => media::unpacked(self.package())?,
        };
        let (files, words) = match self {
            Medium::GrubRescue => (vec![media::grub_rescue_iso()?], ""),
            Medium::GrubFloppy => (vec![folder.join("usr/lib/grub-rescue/grub-rescue-floppy.img")], ""),
            Medium::Memtest => (vec![media::memtest_iso()?], ""),
            Medium::Ipxe => (vec![folder.join("usr/lib/ipxe/ipxe.iso")], ""),
            Medium::IpxeUefi => (vec![folder.join("uefi.iso")], ""),
            Medium::Nothing => (Vec::new(), ""),
            Medium::DebianDisk => (vec![folder.join("disk.img")], ""),
            Medium::DebianInstallerDisc | Medium::DebianGraphicalInstallerDisc => (vec![folder.join("disc.iso")], ""),
            Medium::DebianInstaller => {
                let folder = folder.join(INSTALLER).join("text/debian-installer/amd64");
                (vec![folder.join("linux"), folder.join("initrd.gz")], "console=ttyS0")
            }
        };
        Ok(Made { files, words, version: media::version(self.package())? })
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Medium::GrubRescue => "GRUB rescue disc",
            Medium::GrubFloppy => "GRUB rescue floppy",
            Medium::Memtest => "memtest86+",
            Medium::Ipxe | Medium::IpxeUefi => "iPXE",
            Medium::Nothing => "the firmware's own shell",
            Medium::DebianInstaller | Medium::DebianInstallerDisc => "Debian installer, text",
            Medium::DebianGraphicalInstallerDisc => "Debian installer, GTK",
            Medium::DebianDisk => "Debian on a disk",
        })
    }
}

/// The installer's trees for network starts in its package, one for each kind.
const INSTALLER: &str = "usr/lib/debian-installer/images/12/amd64";

fn make_debian_disk(folder: &Path) -> Result<()> {
    bash(folder, include_str!("debian-disk.sh"), &[])
}

/// A folder with the disc of the installer that has this interface.
fn installer_disc(interface: &str) -> Result<PathBuf> {
    let tree = media::unpacked("debian-installer-12-netboot-amd64")?.join(INSTALLER).join(interface);
    let isolinux = media::unpacked("isolinux")?.join("usr/lib/ISOLINUX/isolinux.bin");
    let (shim, grub) = (media::shim()?, media::grub_cd()?);
    media::cached(&format!("installer-disc-{interface}"), |folder| {
        bash(folder, include_str!("installer-disc.sh"), &[&tree, &isolinux, &shim, &grub])
    })
}

/// A folder with a disc that starts iPXE's program for UEFI.
fn ipxe_uefi_disc() -> Result<PathBuf> {
    let program = media::unpacked("ipxe")?.join("boot/ipxe.efi");
    media::cached("ipxe-uefi-disc", |folder| {
        media::uefi_disc(folder, &[("BOOTX64.EFI", program.as_path())], &[]).map(drop)
    })
}

/// Runs a script of bash that makes a medium in `folder`, its first argument.
fn bash(folder: &Path, content: &str, arguments: &[&Path]) -> Result<()> {
    let script = folder.join("script");
    fs::write(&script, content).context("could not write a script")?;
    let status = Command::new("bash").arg(&script).arg(folder).args(arguments).stdout(std::io::stderr()).status();
    ensure!(status.context("could not run bash")?.success(), "a medium could not be made");
    fs::remove_file(script).context("could not remove a script")
}
