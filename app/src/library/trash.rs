//! The trash: a deleted machine keeps its folder, out of the way, until the trash is emptied.

use std::path::{Path, PathBuf};

use super::{Library, LibraryError, Machine, Timestamp, files, make_folders, name};

/// In front of the name of what is being removed: it is not listed.
const GOING: &str = ".";
/// The folder in the library's root.
const FOLDER: &str = ".trash";

/// A machine in the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trashed {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was deleted.
    pub deleted: Timestamp,
    /// Where it lies now.
    pub folder: PathBuf,
}

impl Library {
    /// Moves a machine, disks and all, to the trash. Disks that lie elsewhere stay where they are.
    ///
    /// # Errors
    /// There is none of that name, or it runs.
    pub fn trash(&self, name: &str) -> Result<Trashed, LibraryError> {
        let _guard = self.guard()?;
        let mut machine = self.load(name)?;
        // Held while it moves: nobody starts it meanwhile, and whoever runs it is safe from this.
        let _lock = machine.lock()?;
        let deleted = Timestamp::now();
        let trash = self.root.join(FOLDER);
        make_folders(&trash)?;
        let short: String = machine.id.chars().take(8).collect();
        let folder = trash.join(format!("{deleted}-{}-{short}", name::slug(&machine.name)));
        std::fs::rename(&machine.folder, &folder).map_err(LibraryError::io("move to the trash", &machine.folder))?;
        for changed in [&trash, &self.root] {
            files::sync_folder(changed).map_err(LibraryError::io("write", changed))?;
        }
        Ok(Trashed { id: machine.id, name: machine.name, deleted, folder })
    }

    /// What is in the trash, the last deleted first. A folder that cannot be understood is left out (and goes when the
    /// trash is emptied).
    ///
    /// # Errors
    /// The trash cannot be read.
    pub fn trashed(&self) -> Result<Vec<Trashed>, LibraryError> {
        let trash = self.root.join(FOLDER);
        let items = match std::fs::read_dir(&trash) {
            Ok(items) => items,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(LibraryError::io("read the trash", &trash)(error)),
        };
        let mut all: Vec<Trashed> = items.filter_map(|item| read(&item.ok()?.path())).collect();
        all.sort_by(|a, b| b.deleted.cmp(&a.deleted).then_with(|| b.folder.cmp(&a.folder)));
        Ok(all)
    }

    /// Takes a machine out of the trash, under its old name.
    ///
    /// # Errors
    /// It is no longer there, or another machine has its name by now.
    pub fn restore(&self, trashed: &Trashed) -> Result<Machine, LibraryError> {
        let _guard = self.guard()?;
        let mut machine = Machine::read(&trashed.folder)?;
        self.refuse_taken(&machine.name, None)?;
        machine.folder = self.place(&trashed.folder, &machine.name)?;
        let trash = self.root.join(FOLDER);
        files::sync_folder(&trash).map_err(LibraryError::io("write", &trash))?;
        Ok(machine)
    }

    /// Removes everything in the trash for good, and says how many machines that were.
    ///
    /// # Errors
    /// A folder cannot be removed; the others are gone.
    pub fn empty_trash(&self) -> Result<usize, LibraryError> {
        let _guard = self.guard()?;
        // Who empties it wants the space.
        self.sweep_unfinished();
        let trash = self.root.join(FOLDER);
        let items = match std::fs::read_dir(&trash) {
            Ok(items) => items,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(LibraryError::io("read the trash", &trash)(error)),
        };
        let mut removed = 0;
        let mut failed = None;
        for item in items.flatten() {
            let path = item.path();
            // A link's target is not ours to remove.
            let result = if item.file_type().is_ok_and(|kind| kind.is_dir()) {
                // One that is removed in part is no machine any more that could be brought back.
                let mut name = std::ffi::OsString::from(GOING);
                name.push(item.file_name());
                let going = trash.join(name);
                let renamed = std::fs::rename(&path, &going).and_then(|()| files::sync_folder(&trash));
                renamed.and_then(|()| std::fs::remove_dir_all(&going))
            } else {
                std::fs::remove_file(&path)
            };
            match result {
                Ok(()) => removed += 1,
                Err(error) => failed = Some(LibraryError::io("remove", &path)(error)),
            }
        }
        failed.map_or(Ok(removed), Err)
    }
}

fn read(folder: &Path) -> Option<Trashed> {
    let deleted = folder.file_name()?.to_str()?.get(..20)?.parse().ok()?;
    let machine = Machine::read(folder).ok()?;
    Some(Trashed { id: machine.id, name: machine.name, deleted, folder: folder.into() })
}
