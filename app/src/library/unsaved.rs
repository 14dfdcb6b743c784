//! Running a machine without saving: what its guest changes goes to files that are removed when it ends.

use std::path::PathBuf;

use vmm_core::backend::disk::{self, CreateOptions};
use vmm_core::config::{Boot, VmConfig};

use super::{LibraryError, Machine, files, layers, make_folders};

/// The folder of such files, in the machine's. The process that runs the machine makes it, and removes it.
const FOLDER: &str = "unsaved";

/// A machine with files for what its guest changes. They are removed when this is dropped, and by the next start where the
/// process was killed.
#[derive(Debug)]
pub struct Unsaved {
    folder: PathBuf,
    /// The machine, every path absolute.
    pub config: VmConfig,
    /// The folder of its TPM's state.
    pub tpm: PathBuf,
}

impl Machine {
    /// Prepares a run without saving. The caller has its lock.
    ///
    /// # Errors
    /// A disk's image can't be understood, or the host has no room.
    pub fn unsaved(&self) -> Result<Unsaved, LibraryError> {
        self.discard_unsaved()?;
        let folder = self.folder().join(FOLDER);
        make_folders(&folder)?;
        let mut unsaved = Unsaved { tpm: folder.join("tpm"), folder, config: self.resolved() };
        for (index, disk) in unsaved.config.disks.iter_mut().enumerate().filter(|(_, disk)| !disk.readonly) {
            let facts = disk::facts(&disk.path).map_err(layers::image)?;
            let path = unsaved.folder.join(format!("disk-{index}.qcow2"));
            let options = CreateOptions::overlay(facts.size);
            disk::create_overlay(&path, &disk.path, facts.format, options).map_err(layers::image)?;
            disk.path = path;
        }
        let copy =
            |from: &PathBuf, to: &PathBuf| std::fs::copy(from, to).map(drop).map_err(LibraryError::io("copy", from));
        if let Boot::Uefi { variables: Some(path), .. } = &mut unsaved.config.boot {
            let own = unsaved.folder.join("nvram.fd");
            if path.is_file() {
                copy(path, &own)?;
            }
            *path = own;
        }
        make_folders(&unsaved.tpm)?;
        for from in files::of(&self.tpm()) {
            if let Some(name) = from.file_name().filter(|name| name.to_string_lossy().starts_with("tpm2-")) {
                copy(&from, &unsaved.tpm.join(name))?;
            }
        }
        Ok(unsaved)
    }

    /// Removes what a run without saving left whose process was killed. The caller has its lock.
    ///
    /// # Errors
    /// The host refuses it.
    pub fn discard_unsaved(&self) -> Result<(), LibraryError> {
        let folder = self.folder().join(FOLDER);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(LibraryError::io("remove", &folder)(error))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Unsaved {
    fn drop(&mut self) {
        // What can't be removed now is removed by the next start.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
