//! Guests for the tests: one of Debian's own kernels with busybox and a script, booted directly.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::initramfs::Initramfs;
use crate::media::{Flavour, Kernel};

/// Drivers of all that a virtual machine has, in the cloud kernel.
pub const CLOUD_DRIVERS: &[&str] = &[
    "virtio_pci",
    "virtio_balloon",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "virtio_console",
    "virtio_input",
    "evdev",
    "button",
    "sr_mod",
];

/// Drivers that only the generic kernel has, besides [`CLOUD_DRIVERS`].
pub const GENERIC_DRIVERS: &[&str] = &["virtio-gpu", "ahci", "sd_mod", "nvme", "isofs"];

/// A kernel and an initramfs, to be given to `--kernel` and `--initrd`.
#[derive(Debug)]
pub struct Guest {
    /// The kernel's compressed image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

impl Guest {
    /// A guest that loads all drivers, runs the script with busybox's shell on /dev/console and powers off. `files` are
    /// put into its root folder. The initramfs is written into `folder`.
    pub fn build(flavour: Flavour, folder: &Path, script: &str, files: &[(&str, &[u8])]) -> Result<Self> {
        Self::with_programs(flavour, folder, script, files, |_| Ok(()))
    }

    /// The same with programs and libraries of this machine, which `add` adds.
    pub fn with_programs(
        flavour: Flavour,
        folder: &Path,
        script: &str,
        files: &[(&str, &[u8])],
        add: impl FnOnce(&mut Initramfs) -> Result<()>,
    ) -> Result<Self> {
        let kernel = Kernel::fetch(flavour)?;
        let mut drivers = CLOUD_DRIVERS.to_vec();
        if flavour == Flavour::Generic {
            drivers.extend_from_slice(GENERIC_DRIVERS);
        }
        let mut fs = Initramfs::with_busybox()?;
        fs.file("init", include_bytes!("guest/init.sh"), 0o755);
        fs.file("script", script.as_bytes(), 0o755);
        for (name, content) in files {
            fs.file(name, content, 0o644);
        }
        add(&mut fs)?;
        fs.modules(&kernel, &drivers)?;
        let initrd = folder.join("guest.initrd");
        fs.write(&initrd)?;
        Ok(Self { kernel: kernel.image, initrd })
    }
}
