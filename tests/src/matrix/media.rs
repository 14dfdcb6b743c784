//! What the matrix starts: discs and disks of the distribution's packages, as they are or put together from them.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

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
        }
    }

    /// Finds or makes it.
    ///
    /// # Errors
    /// The package can't be had.
    pub fn make(self) -> Result<Made> {
        let folder = media::unpacked(self.package())?;
        let installer = "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";
        let (files, words) = match self {
            Medium::GrubRescue => (vec![folder.join("usr/lib/grub-rescue/grub-rescue-cdrom.iso")], ""),
            Medium::GrubFloppy => (vec![folder.join("usr/lib/grub-rescue/grub-rescue-floppy.img")], ""),
            Medium::Memtest => (vec![folder.join("usr/lib/memtest86+/memtest86+x64.iso")], ""),
            Medium::Ipxe => (vec![folder.join("usr/lib/ipxe/ipxe.iso")], ""),
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
        })
    }
}
