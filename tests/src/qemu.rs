//! QEMU's word on what we write.

use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use vmm_core::base::take_lock;

/// Asks `qemu-img check` whether an image is whole, and returns whether it has clusters that nothing refers to. An image whose
/// machine was killed a moment ago may be locked yet.
///
/// # Errors
/// It is damaged, or `qemu-img` is not there.
pub fn check(image: &Path) -> Result<bool> {
    let mut told = None;
    let asked = take_lock(|| {
        let output = Command::new("qemu-img").arg("check").arg(image).output()?;
        // 'Failed to get shared "write" lock'; what is wrong with an image may be a block.
        let locked = String::from_utf8_lossy(&output.stderr).contains("\" lock");
        told = Some(output);
        if locked { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match told.as_ref().map(|output| output.status.code()) {
        Some(Some(0)) => Ok(false),
        Some(Some(3)) => Ok(true),
        Some(_) => bail!("{} is damaged, or in use: {told:?}", image.display()),
        None => asked.map(|()| false).context("could not run qemu-img"),
    }
}
