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
    /// iPXE's disc.
    Ipxe,
    /// The Debian installer's kernel and initrd, in text mode.
    DebianInstaller,
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
            Medium::Ipxe => "ipxe",
            Medium::DebianInstaller => "debian-installer-12-netboot-amd64",
            Medium::DebianDisk => "linux-image-amd64",
        }
    }

    /// Finds or makes it.
    ///
    /// # Errors
    /// The package can't be had.
    pub fn make(self) -> Result<Made> {
        let folder = match self {
            Medium::DebianDisk => media::cached("debian-disk", make_debian_disk)?,
            _ => media::unpacked(self.package())?,
        };
        let installer = "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";
        let (files, words) = match self {
            Medium::GrubRescue => (vec![media::grub_rescue_iso()?], ""),
            Medium::GrubFloppy => (vec![folder.join("usr/lib/grub-rescue/grub-rescue-floppy.img")], ""),
            Medium::Memtest => (vec![media::memtest_iso()?], ""),
            Medium::Ipxe => (vec![folder.join("usr/lib/ipxe/ipxe.iso")], ""),
            Medium::DebianDisk => (vec![folder.join("disk.img")], ""),
            Medium::DebianInstaller => {
                let folder = folder.join(installer);
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
            Medium::Ipxe => "iPXE",
            Medium::DebianInstaller => "Debian installer, text",
            Medium::DebianDisk => "Debian on a disk",
        })
    }
}

fn make_debian_disk(folder: &Path) -> Result<()> {
    let script = folder.join("script");
    fs::write(&script, include_str!("debian-disk.sh")).context("could not write a script")?;
    let status = Command::new("bash").arg(&script).arg(folder).stdout(std::io::stderr()).status();
    ensure!(status.context("could not run bash")?.success(), "the Debian disk could not be made");
    fs::remove_file(script).context("could not remove a script")
}
