//! Copies of a machine that share its past: their disks stand on the same images, which have a name in both folders (hard
//! links) and are written by neither. Each may be deleted without the other.

use std::path::Path;

use super::layers::FOLDER;
use super::machine::paths_mut;
use super::{Library, LibraryError, Machine, Timestamp, UNFINISHED, files, layers, make_folders, name, random_hex};

impl Library {
    /// Makes a machine called `name` whose disks stand on what those of `source` are now. From now on nobody may write to
    /// these images.
    ///
    /// # Errors
    /// The name is none or taken, a disk can't be shared, or the host has no room. Nothing is made then.
    pub(crate) fn make_fork(&self, source: &Machine, name: &str) -> Result<Machine, LibraryError> {
        let name = name::check(name)?;
        let _guard = self.guard()?;
        self.refuse_taken(&name, None)?;
        let id = random_hex().map_err(LibraryError::io("make an id from", Path::new("/dev/urandom")))?;
        let building = self.root().join(UNFINISHED);
        let _ = std::fs::remove_dir_all(&building);
        let made = (|| {
            let mut machine = source.clone();
            (machine.id, machine.name, machine.created) = (id, name, Timestamp::now());
            (machine.present, machine.resume, machine.restoring) = (None, None, None);
            machine.folder.clone_from(&building);
            let own = |path: &Path| path.starts_with(FOLDER) || Some(path) == variables(source);
            for path in paths_mut(&mut machine.config).filter(|path| !own(path)) {
                *path = source.resolve(path);
            }
            make_folders(&building.join(FOLDER))?;
            make_folders(&machine.logs())?;
            for image in layers::images_of(source)? {
                let [from, to] = [source.folder(), &building].map(|folder| folder.join(FOLDER).join(&image));
                std::fs::hard_link(&from, &to).map_err(LibraryError::io("share the image", &from))?;
            }
            let overlays = machine.make_overlays(&machine.id)?;
            let mut machine = machine.with_overlays(&overlays);
            let disks = building.join(FOLDER);
            files::sync_folder(&disks).map_err(LibraryError::io("write", &disks))?;
            machine.write()?;
            machine.folder = self.place(&building, &machine.name)?;
            Ok(machine)
        })();
        if made.is_err() {
            let _ = std::fs::remove_dir_all(&building);
        }
        made
    }
}

/// The file of UEFI's variables, as the machine's file names it.
fn variables(machine: &Machine) -> Option<&Path> {
    match &machine.config.boot {
        vmm_core::config::Boot::Uefi { variables, .. } => variables.as_deref(),
        _ => None,
    }
}
