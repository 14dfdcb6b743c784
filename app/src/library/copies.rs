//! Copies of a machine: forks, and clones, linked or full.
//!
//! A fork and a linked clone share the first machine's past: their disks stand on the same images, which have a name in both
//! folders (hard links) and are written by neither. A full clone shares nothing. Each may be deleted without the others.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_core::backend::disk;
use vmm_core::backend::disk::tools::{self, Job, Target, ToolError};
use vmm_core::checkpoint::Sharing;
use vmm_core::config::{DiskConfig, Mac};

use super::checkpoints::{ABOUT, About, Kind, Saved};
use super::layers::FOLDER;
use super::machine::paths_mut;
use super::{
    Entry, Library, LibraryError, Machine, Timestamp, files, layers, lock, make_folders, name, random_hex, snapshots,
};

/// What the name of a folder begins with in which a copy is made.
const UNFINISHED: &str = ".copy-";
/// What the one checkpoint of a clone is called whose first machine was suspended.
const AS_CLONED: &str = "As it was cloned";

/// Which clone is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloneWish {
    /// The snapshot that it is to be of, by name or id; of what the machine is now when absent.
    pub of: Option<String>,
    /// What to call it.
    pub name: String,
    /// It shares nothing with the first machine; else they share what both have in common.
    pub full: bool,
}

type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

impl Library {
    /// The first of `stem 1`, `stem 2` and so on that no machine is called.
    ///
    /// # Errors
    /// The library can't be read.
    pub fn free_fork_name(&self, stem: &str) -> Result<String, LibraryError> {
        let taken: Vec<String> = self.list()?.iter().map(Entry::name).collect();
        let mut names = (1..=taken.len() + 1).map(|number| format!("{stem} {number}"));
        // One of more names than there are machines is free.
        Ok(names.find(|wish| !taken.iter().any(|other| name::same(other, wish))).unwrap_or_default())
    }

    /// Makes a machine called `name` whose disks stand on what those of `source`, which runs, are now. From now on nobody may
    /// write to these images. Its network cards are not plugged in, and have other addresses.
    ///
    /// # Errors
    /// The name is none or taken, a disk can't be shared, or the host has no room. Nothing is made then.
    pub(crate) fn make_fork(&self, source: &Machine, name: &str) -> Result<Machine, LibraryError> {
        self.make_copy(source, name, |machine| {
            for net in &mut machine.config.nets {
                net.tap = None;
            }
            link_images(source, machine)?;
            let overlays = machine.make_overlays(&machine.id)?;
            *machine = machine.with_overlays(&overlays);
            Ok(())
        })
    }

    /// Makes a clone of `source`, of what it is now (it must not run then) or of a snapshot.
    ///
    /// # Errors
    /// The machine runs, there is no such snapshot, the name is none or taken, the host has no room, or `progress` said no.
    /// Nothing is made then.
    pub fn clone_machine(
        &self,
        source: &mut Machine,
        wish: &CloneWish,
        progress: Progress<'_>,
    ) -> Result<Machine, LibraryError> {
        // A snapshot stays what it is, whoever runs the machine meanwhile.
        let lock = match (source.lock(), &wish.of) {
            (Err(LibraryError::Running { .. }), Some(_)) => None,
            (lock, _) => Some(lock?),
        };
        if lock.is_some() {
            source.finish_what_was_begun()?;
        }
        let checkpoints = source.checkpoints();
        let point = match (&wish.of, source.goes_on_from()?) {
            (Some(wanted), _) => Some(source.snapshot(wanted)?),
            (None, Some(id)) => checkpoints.list()?.into_iter().find(|saved| saved.id == id),
            (None, None) => None,
        };
        let then = match (&wish.of, &point) {
            (Some(_), Some(point)) => point.machine(source)?,
            _ => source.clone(),
        };
        let of_ram = point.as_ref().filter(|saved| snapshots::has_ram(&checkpoints.store().path(&saved.id)));
        let loose = match (&wish.of, &point) {
            _ if of_ram.is_some() => Vec::new(),
            (Some(_), Some(point)) => snapshots::kept_files(&checkpoints.store().path(&point.id)),
            _ => source.loose_files()?,
        };
        // What the machine is now is shared: it goes on with images of its own, from before another has those that it had.
        let overlays = match (&wish.of, wish.full) {
            (None, false) => source.make_overlays(&super::Checkpoints::new_id()?)?,
            _ => Vec::new(),
        };
        let changed = source.with_overlays(&overlays);
        if !overlays.is_empty() {
            changed.write().inspect_err(|_| {
                source.go_back_to_images(&overlays);
            })?;
        }
        let made = self.make_copy(&then, &wish.name, |machine| {
            if wish.full {
                copy_disks(&then, machine, progress)?;
            } else {
                link_images(&then, machine)?;
            }
            machine.put_loose_files(&loose)?;
            if let Some(saved) = of_ram {
                take_ram(source, saved, machine, wish.full)?;
            }
            if !wish.full || of_ram.is_some() {
                let overlays = machine.make_overlays(&machine.id)?;
                *machine = machine.with_overlays(&overlays);
            }
            if let Some(saved) = of_ram {
                (machine.present, machine.resume) = (Some(saved.id.clone()), Some(saved.id.clone()));
            }
            Ok(())
        });
        if made.is_ok() || !source.go_back_to_images(&overlays) {
            *source = changed;
        }
        drop(lock);
        made
    }

    /// Makes a machine like `source` in a folder of its own, which `fill` fills; it writes the machine's file last.
    fn make_copy(
        &self,
        source: &Machine,
        name: &str,
        fill: impl FnOnce(&mut Machine) -> Result<(), LibraryError>,
    ) -> Result<Machine, LibraryError> {
        let name = name::check(name)?;
        let host = Path::new("/dev/urandom");
        let id = random_hex().map_err(LibraryError::io("make an id from", host))?;
        let building = self.root().join(format!("{UNFINISHED}{id}"));
        let mut machine = source.clone();
        (machine.id, machine.name, machine.created) = (id, name, Timestamp::now());
        (machine.present, machine.resume, machine.restoring) = (None, None, None);
        machine.timeline = None;
        machine.folder.clone_from(&building);
        let variables = machine.variables();
        for path in paths_mut(&mut machine.config) {
            let own = path.starts_with(FOLDER) || Some(building.join(&*path)) == variables;
            if !own {
                *path = source.resolve(path);
            }
        }
        for net in &mut machine.config.nets {
            let [_, _, _, b, c, d, ..] =
                files::random_bytes().map_err(LibraryError::io("make an address from", host))?;
            net.mac = Some(Mac([0x52, 0x54, 0, b, c, d]));
        }
        let made = (|| {
            let _lock = {
                let _guard = self.guard()?;
                self.refuse_taken(&machine.name, None)?;
                self.sweep_unfinished();
                make_folders(&building.join(FOLDER))?;
                // Before anybody else looks for what is unfinished.
                lock::VmLock::take(&building, false).map_err(LibraryError::io("lock", &building))?
            };
            make_folders(&machine.logs())?;
            fill(&mut machine)?;
            let disks = building.join(FOLDER);
            files::sync_folder(&disks).map_err(LibraryError::io("write", &disks))?;
            machine.write()?;
            // Another may have taken the name while this one was filled.
            let _guard = self.guard()?;
            self.refuse_taken(&machine.name, None)?;
            machine.folder = self.place(&building, &machine.name)?;
            Ok(machine)
        })();
        if made.is_err() {
            let _ = std::fs::remove_dir_all(&building);
        }
        made
    }

    /// Removes what processes left that were killed while they made a copy.
    ///
    /// # Errors
    /// The library can't be locked.
    pub(crate) fn remove_unfinished_copies(&self) -> Result<(), LibraryError> {
        let _guard = self.guard()?;
        self.sweep_unfinished();
        Ok(())
    }

    /// The same. The caller has the library's lock.
    pub(super) fn sweep_unfinished(&self) {
        for entry in std::fs::read_dir(self.root()).into_iter().flatten().flatten() {
            let left = entry.file_name().to_str().is_some_and(|name| name.starts_with(UNFINISHED));
            // Whoever makes one holds it.
            if left && matches!(lock::VmLock::take(&entry.path(), false), Ok(Ok(_))) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Gives the images that the disks of `source` are and stand on a name in the folder of `copy` as well.
fn link_images(source: &Machine, copy: &Machine) -> Result<(), LibraryError> {
    for image in layers::images_of(source)? {
        let [from, to] = [source.folder(), copy.folder()].map(|folder| folder.join(FOLDER).join(&image));
        std::fs::hard_link(&from, &to).map_err(LibraryError::io("share the image", &from))?;
    }
    Ok(())
}

/// Copies the disks of `source` that can be written, each with all that it stands on as one image; `copy` has them then.
fn copy_disks(source: &Machine, copy: &mut Machine, progress: Progress<'_>) -> Result<(), LibraryError> {
    let to_copy = |disk: &DiskConfig| !disk.readonly || disk.path.starts_with(FOLDER);
    let mut disks = Vec::new();
    for (index, disk) in source.config.disks.iter().enumerate().filter(|(_, disk)| to_copy(disk)) {
        let path = source.resolve(&disk.path);
        disks.push((index, disk::facts(&path).map_err(layers::image)?, path));
    }
    let total = disks.iter().map(|(_, facts, _)| facts.size).sum();
    let (mut before, cancel) = (0, AtomicBool::new(false));
    for (index, facts, from) in disks {
        // Thin either way; what was raw is read the fastest as it is.
        let format = facts.format;
        let path = PathBuf::from(FOLDER).join(format!("disk-{index}.{}", format.name()));
        let to = copy.resolve(&path);
        let mut told = |done: u64, _: u64| {
            if !progress(before + done, total) {
                cancel.store(true, Ordering::Relaxed);
            }
        };
        let mut job = Job { progress: &mut told, cancel: &cancel };
        match tools::convert(&from, &to, Target { format, cluster: None }, &mut job) {
            Err(ToolError::Cancelled) => return Err(LibraryError::Cancelled),
            copied => copied.map_err(layers::image)?,
        }
        before += facts.size;
        if let Some(disk) = copy.config.disks.get_mut(index) {
            disk.path = path;
        }
    }
    Ok(())
}

/// Gives `copy` the RAM of a point of `source`, as a snapshot of its own.
fn take_ram(source: &Machine, saved: &Saved, copy: &Machine, full: bool) -> Result<(), LibraryError> {
    let name = if saved.about.name.is_empty() { AS_CLONED.into() } else { saved.about.name.clone() };
    let about = About {
        kind: Kind::Snapshot,
        created: saved.about.created,
        name,
        note: saved.about.note.clone(),
        parent: None,
        machine: copy.text()?,
    };
    let how = if full { Sharing::Copied } else { Sharing::Linked };
    let to = copy.checkpoints();
    source.checkpoints().store().copy(&saved.id, to.store(), how, &[(ABOUT, &about.text())])?;
    Ok(())
}
